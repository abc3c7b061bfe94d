/* SPDX-License-Identifier: MIT
 * A1111's text of a picture: the prompt's lines, "Negative prompt: " and its lines, and a last line "Key: value, Key:
 * value, ..." whose values are JSON strings where they hold a comma. It comes from any program, so nothing in it is
 * an error: what can't be taken up becomes a remark. */
#include "pipe/infotext.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *const sampler_texts[] = LW_INFOTEXT_SAMPLERS;
static const char *const scheduler_texts[] = LW_INFOTEXT_SCHEDULERS;
static const char *const mode_texts[] = LW_INFOTEXT_MODES;
enum { N_SAMPLERS = 6, N_SCHEDULERS = 3, N_MODES = 3, MAX_VALUE = 2000 };

/* One "Key: value" of a list, moved along it. Key and value are cut to their buffers. */
typedef struct pair {
    char key[64], value[MAX_VALUE];
} pair;

static void copy_trimmed(char *out, size_t size, const char *from, size_t n) {
    while (n > 0 && (*from == ' ' || *from == '\n' || *from == '\t')) from++, n--;
    while (n > 0 && (from[n - 1] == ' ' || from[n - 1] == '\n' || from[n - 1] == '\t')) n--;
    if (n >= size) n = size - 1;
    memcpy(out, from, n);
    out[n] = 0;
}

/* The length of the JSON string at text, quotes included; 0 where it does not end. */
static size_t quoted_length(const char *text) {
    for (size_t i = 1; text[i]; i++) {
        if (text[i] == '\\' && text[i + 1]) i++;
        else if (text[i] == '"') return i + 1;
    }
    return 0;
}

/* Takes the pair at *at and moves behind its comma. False at the end, and where there is no key. */
static bool next_pair(const char **at, pair *out) {
    const char *text = *at + strspn(*at, " ,\n\t");
    size_t key = strcspn(text, ":,\"");
    if (key == 0 || text[key] != ':') return false;
    copy_trimmed(out->key, sizeof out->key, text, key);
    text += key + 1;
    text += strspn(text, " ");
    size_t quoted = *text == '"' ? quoted_length(text) : 0;
    if (quoted) {
        json_t *json = json_loadb(text, quoted, JSON_DECODE_ANY, NULL);
        const char *value = json_string_value(json);
        copy_trimmed(out->value, sizeof out->value, value ? value : "", value ? strlen(value) : 0);
        json_decref(json);
        text += quoted;
    }
    size_t rest = strcspn(text, ",");
    if (!quoted) copy_trimmed(out->value, sizeof out->value, text, rest);
    *at = text + rest + (text[rest] == ',');
    return out->key[0] != 0;
}

/* A decimal number and nothing else, whatever the host program's locale: jansson's rules. */
static bool number_of(const char *text, double min, double max, double *out) {
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    bool good = json_is_number(json) && json_number_value(json) >= min && json_number_value(json) <= max;
    if (good) *out = json_number_value(json);
    json_decref(json);
    return good;
}

static bool int_of(const char *text, int64_t min, int64_t max, int64_t *out) {
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    bool good = json_is_integer(json) && json_integer_value(json) >= min && json_integer_value(json) <= max;
    if (good) *out = json_integer_value(json);
    json_decref(json);
    return good;
}

static bool int32_of(const char *text, int32_t min, int32_t max, int32_t *out) {
    int64_t v;
    if (!int_of(text, min, max, &v)) return false;
    *out = (int32_t)v;
    return true;
}

static int index_of(const char *text, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (!strcasecmp(text, names[i])) return i;
    return -1;
}

/* Older A1111 says "DPM++ 2M Karras" where newer says "Schedule type: Karras". */
static lw_status read_sampler(lw_infotext_builder *b, char *value, lw_error *err) {
    lw_request *r = b->text.request;
    size_t n = strlen(value), karras = strlen(" Karras");
    if (n > karras && !strcasecmp(value + n - karras, " Karras")) {
        value[n - karras] = 0;
        r->scheduler = LW_SCHEDULER_KARRAS;
    }
    int i = index_of(value, sampler_texts, N_SAMPLERS);
    if (i >= 0) {
        r->sampler = (lw_sampler)i;
        return LW_OK;
    }
    return lw_infotext_remark(b, err, "sampler \"%.60s\" is not one of linework's: %s is used", value,
                              sampler_texts[r->sampler]);
}

static lw_status read_schedule(lw_infotext_builder *b, const char *value, lw_error *err) {
    lw_request *r = b->text.request;
    int i = index_of(value, scheduler_texts, N_SCHEDULERS);
    if (i >= 0) {
        r->scheduler = (lw_scheduler)i;
        return LW_OK;
    }
    r->scheduler = LW_SCHEDULER_DISCRETE;
    if (!strcasecmp(value, "Automatic") || !strcasecmp(value, "Uniform") || !strcasecmp(value, "Normal")) return LW_OK;
    return lw_infotext_remark(b, err, "schedule \"%.60s\" is not one of linework's: discrete is used", value);
}

static bool read_size(const char *value, lw_request *r, lw_infotext *t) {
    char width[16];
    size_t n = strcspn(value, "x");
    if (n == 0 || n >= sizeof width || value[n] != 'x') return false;
    memcpy(width, value, n);
    width[n] = 0;
    int32_t w, h;
    if (!int32_of(width, 1, 8192, &w) || !int32_of(value + n + 1, 1, 8192, &h)) return false;
    t->width = w;
    t->height = h;
    if (w < 64 || h < 64) return false;
    r->width = w;
    r->height = h;
    return true;
}

/* "Module: canny, Model: ..., Weight: 1.0, ..." */
static lw_status read_control(lw_infotext_builder *b, uint32_t i, const char *value, lw_error *err) {
    lw_control *c = &b->controls[i];
    lw_request *r = b->text.request;
    pair *p = lw_arena_alloc(b->arena, 1, sizeof *p);
    if (!p) return lw_fail(err, LW_ENOMEM, "infotext: no memory for ControlNet %u", i);
    while (next_pair(&value, p)) {
        bool good = true;
        if (!strcmp(p->key, "Module") && strcasecmp(p->value, "canny") != 0) {
            b->hashes[i] = ""; /* a ready map of unknown hash */
            if (strcasecmp(p->value, "none") != 0)
                LW_TRY(lw_infotext_remark(b, err,
                                          "ControlNet %u: module \"%.60s\" is not linework's: give its map with "
                                          "--control-image",
                                          i, p->value));
        } else if (!strcmp(p->key, "Model")) {
            LW_TRY(lw_infotext_copy(b, p->value, &b->nets[i], err));
        } else if (!strcmp(p->key, "Weight")) {
            good = number_of(p->value, 0, 2, &c->strength);
        } else if (!strcmp(p->key, "Guidance Start")) {
            good = number_of(p->value, 0, 1, &c->start);
        } else if (!strcmp(p->key, "Guidance End")) {
            good = number_of(p->value, 0, 1, &c->end);
        } else if (!strcmp(p->key, "Threshold A") && i == 0) {
            good = number_of(p->value, 0, 10000, &r->canny_low);
        } else if (!strcmp(p->key, "Threshold B") && i == 0) {
            good = number_of(p->value, 0, 10000, &r->canny_high);
        } else if (!strcmp(p->key, "Control Mode") && i == 0) {
            int mode = index_of(p->value, mode_texts, N_MODES);
            if ((good = mode >= 0)) r->control_mode = (lw_control_mode)mode;
        }
        if (!good)
            LW_TRY(lw_infotext_remark(b, err, "ControlNet %u: %.60s \"%.60s\" can't be taken up", i, p->key, p->value));
    }
    return LW_OK;
}

static bool control_index(const char *key, uint32_t *i) {
    int32_t v = 0;
    if (strncmp(key, "ControlNet", 10) != 0) return false;
    if (key[10] && (key[10] != ' ' || !int32_of(key + 11, 0, LW_INFOTEXT_MAX_CONTROLS - 1, &v))) return false;
    *i = (uint32_t)v;
    return true;
}

static lw_status read_pair(lw_infotext_builder *b, pair *p, lw_error *err) {
    lw_infotext *t = &b->text;
    lw_request *r = t->request;
    const char *key = p->key;
    uint32_t control;
    bool good = true;
    if (!strcmp(key, "Steps")) good = int32_of(p->value, 1, 1000, &r->steps);
    else if (!strcmp(key, "Sampler")) return read_sampler(b, p->value, err);
    else if (!strcmp(key, "Schedule type")) return read_schedule(b, p->value, err);
    else if (!strcmp(key, "CFG scale")) good = number_of(p->value, 0, 100, &r->cfg_scale);
    else if (!strcmp(key, "Seed")) good = int_of(p->value, 0, 4294967295, &r->seed);
    else if (!strcmp(key, "Size")) good = read_size(p->value, r, t);
    else if (!strcmp(key, "Eta")) good = number_of(p->value, 0, 1, &r->eta);
    else if (!strcmp(key, "Clip skip")) good = int32_of(p->value, 1, 64, &r->clip_skip);
    else if (!strcmp(key, "Reuse steps")) return lw_infotext_copy(b, p->value, &r->reuse_steps, err);
    else if (!strcmp(key, "Batch size")) good = int32_of(p->value, 1, 12, &r->samples);
    else if (!strcmp(key, "Batch pos")) good = int32_of(p->value, 0, 11, &t->index);
    else if (!strcmp(key, "RNG")) r->rng = !strcasecmp(p->value, "CPU") ? LW_RNG_CPU : LW_RNG_CUDA;
    else if (!strcmp(key, "Model hash")) return lw_infotext_copy(b, p->value, &t->model_hash, err);
    else if (!strcmp(key, "Model")) return lw_infotext_copy(b, p->value, &t->model, err);
    else if (!strcmp(key, "VAE")) return lw_infotext_copy(b, p->value, &t->vae, err);
    else if (!strcmp(key, "Version")) return lw_infotext_copy(b, p->value, &t->version, err);
    else if (control_index(key, &control) && control < t->n_controls) return read_control(b, control, p->value, err);
    else if (!strncmp(key, "Hires", 5) || !strncmp(key, "Denoising", 9) || !strcmp(key, "Lora hashes"))
        good = false; /* would have changed the picture, and linework does not do it */
    return good ? LW_OK : lw_infotext_remark(b, err, "%.60s \"%.60s\" can't be taken up", key, p->value);
}

/* How many controls the list speaks of; pairs are counted for the test of what is a list at all. */
static uint32_t scan_list(const char *list, pair *p, int *n_pairs) {
    uint32_t n = 0, control;
    *n_pairs = 0;
    while (next_pair(&list, p)) {
        ++*n_pairs;
        if (control_index(p->key, &control) && control + 1 > n) n = control + 1;
    }
    return n;
}

/* Splits "prompt, added" at the last ", ", so that joining gives the same text again. */
static lw_status read_prompts(lw_infotext_builder *b, char *text, lw_error *err) {
    lw_request *r = b->text.request;
    char *negative = !strncmp(text, "Negative prompt:", 16) ? text : strstr(text, "\nNegative prompt:");
    r->negative_prompt = "";
    if (negative) {
        bool first = negative == text;
        char *value = negative + (first ? 16 : 17);
        LW_TRY(lw_infotext_copy(b, value + (*value == ' '), &r->negative_prompt, err));
        *negative = 0;
    }
    char *comma = NULL;
    for (char *p = text; (p = strstr(p, ", ")); p++) comma = p;
    if (comma) {
        LW_TRY(lw_infotext_copy(b, comma + 2, &r->added_prompt, err));
        *comma = 0;
    } else {
        r->added_prompt = "";
    }
    return lw_infotext_copy(b, text, &r->prompt, err);
}

lw_status lw_infotext_read_a1111(lw_infotext_builder *b, const char *text, lw_error *err) {
    b->text.foreign = 1;
    b->text.request->scheduler = LW_SCHEDULER_DISCRETE; /* where nothing is said: ours always says */
    size_t n = strlen(text);
    char *copy = lw_arena_alloc(b->arena, n + 1, 1);
    pair *p = lw_arena_alloc(b->arena, 1, sizeof *p);
    if (!copy || !p) return lw_fail(err, LW_ENOMEM, "infotext: no memory for %zu bytes of text", n);
    n = 0;
    for (const char *c = text; *c; c++)
        if (*c != '\r') copy[n++] = *c;
    while (n > 0 && strchr(" \n\t", copy[n - 1])) copy[--n] = 0;

    /* The last line is the list if it has three pairs or begins as one, as A1111 decides it; else it is prompt. */
    char *list = strrchr(copy, '\n');
    list = list ? list + 1 : copy;
    int n_pairs;
    uint32_t n_controls = scan_list(list, p, &n_pairs);
    if (n_pairs < 3 && strncmp(list, "Steps:", 6) != 0) {
        LW_TRY(lw_infotext_remark(b, err, "its text ends without a list of parameters"));
        return read_prompts(b, copy, err);
    }
    LW_TRY(lw_infotext_set_controls(b, n_controls ? n_controls : 1, err));
    for (const char *at = list; next_pair(&at, p);) LW_TRY(read_pair(b, p, err));
    if (list == copy) copy[0] = 0;
    else list[-1] = 0;
    return read_prompts(b, copy, err);
}
