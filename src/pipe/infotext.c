/* SPDX-License-Identifier: MIT */
#include "pipe/infotext.h"

#include "pipe/request.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const sampler_texts[] = LW_INFOTEXT_SAMPLERS;
static const char *const scheduler_texts[] = LW_INFOTEXT_SCHEDULERS;
static const char *const mode_texts[] = LW_INFOTEXT_MODES;

/* ---- writing */

typedef struct string {
    char *text;
    size_t n, room;
    bool failed;
} string;

static void append(string *s, const char *text) {
    size_t n = strlen(text);
    if (s->failed) return;
    if (s->n + n + 1 > s->room) {
        size_t room = (s->n + n + 1) * 2;
        char *larger = lw_realloc(s->text, room, 1);
        if (!larger) {
            s->failed = true;
            return;
        }
        s->text = larger;
        s->room = room;
    }
    memcpy(s->text + s->n, text, n + 1);
    s->n += n;
}

static void appendf(string *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void appendf(string *s, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    append(s, text);
}

/* As Python prints a float: the fewest decimals that read back the same. The host program's locale may print another
 * point than ours. */
static const char *python_float(double v, char out[40]) {
    for (int decimals = 1; decimals <= 17; decimals++) {
        snprintf(out, 40, "%.*f", decimals, v); /* ranges keep v below 10,001 */
        if (strtod(out, NULL) == v) break;
    }
    for (char *c = out; *c; c++)
        if (!strchr("0123456789-", *c)) *c = '.';
    return out;
}

/* A value of A1111's list: as a JSON string where it holds what would end it. */
static void append_value(string *s, const char *value) {
    if (!strpbrk(value, ",:\n\"")) {
        append(s, value);
        return;
    }
    json_t *json = json_string(value);
    char *quoted = json ? json_dumps(json, JSON_ENCODE_ANY) : NULL;
    if (quoted) append(s, quoted);
    else s->failed = true;
    free(quoted);
    json_decref(json);
}

/* The job as it was run: what the request leaves to the model is filled in. */
typedef struct job {
    const lw_engine_info *engine;
    const lw_request *request;
    const lw_result *result;
    lw_infotext_extra extra;
    const char *added_prompt, *negative_prompt, *name;
    uint32_t n_controls;
} job;

static lw_control control_at(const job *j, uint32_t i) {
    return j->request->controls ? *lw_request_control(j->request, i) : (lw_control){.size = sizeof(lw_control), .strength = 1, .end = 1};
}

static const char *control_name(const job *j, uint32_t i) {
    return j->extra.control_nets && j->extra.control_nets[i] ? j->extra.control_nets[i] : j->name;
}

static void append_control(string *s, const job *j, uint32_t i) {
    char strength[40], start[40], end[40], low[40], high[40], name[128];
    lw_control c = control_at(j, i);
    int32_t short_side = j->result->width < j->result->height ? j->result->width : j->result->height;
    /* Inside the quotes the list is split at its commas again. */
    snprintf(name, sizeof name, "%s", control_name(j, i));
    for (char *p = name; *p; p++)
        if (*p == ',' || *p == '"' || *p == '\\' || (unsigned char)*p < 0x20) *p = '_';
    appendf(s, ", ControlNet %u: \"Module: %s, Model: ", i, c.map ? "none" : "canny");
    append(s, name);
    appendf(s, ", Weight: %s, Resize Mode: Just Resize, Processor Res: %d, Threshold A: %s, Threshold B: %s",
            python_float(c.strength, strength), short_side, python_float(j->request->canny_low, low),
            python_float(j->request->canny_high, high));
    appendf(s, ", Guidance Start: %s, Guidance End: %s, Pixel Perfect: False, Control Mode: %s\"",
            python_float(c.start, start), python_float(c.end, end), mode_texts[j->request->control_mode]);
}

static char *make_parameters(const job *j) {
    const lw_request *r = j->request;
    char cfg[40], eta[40];
    string s = {0};
    append(&s, r->prompt ? r->prompt : "");
    append(&s, ", ");
    append(&s, j->added_prompt);
    if (j->negative_prompt[0]) {
        append(&s, "\nNegative prompt: ");
        append(&s, j->negative_prompt);
    }
    appendf(&s, "\nSteps: %d, Sampler: %s, Schedule type: %s, CFG scale: %s, Seed: %lld, Size: %dx%d", r->steps,
            sampler_texts[r->sampler], scheduler_texts[r->scheduler], python_float(r->cfg_scale, cfg),
            (long long)j->result->seed, j->result->width, j->result->height);
    if (j->extra.model_hash) appendf(&s, ", Model hash: %.10s", j->extra.model_hash);
    append(&s, ", Model: ");
    append_value(&s, j->name);
    if (j->extra.vae) {
        append(&s, ", VAE: ");
        append_value(&s, j->extra.vae);
    }
    if (r->samples > 1) appendf(&s, ", Batch size: %d, Batch pos: %d", r->samples, j->extra.index);
    if (r->clip_skip > 1) appendf(&s, ", Clip skip: %d", r->clip_skip);
    if (r->reuse_steps && *r->reuse_steps) {
        append(&s, ", Reuse steps: ");
        append_value(&s, r->reuse_steps);
    }
    appendf(&s, ", Eta: %s, RNG: %s", python_float(r->eta, eta), r->rng == LW_RNG_CPU ? "CPU" : "NV");
    for (uint32_t i = 0; i < j->n_controls; i++) append_control(&s, j, i);
    appendf(&s, ", Version: linework %s", lw_version());
    if (!s.failed) return s.text;
    lw_free(s.text);
    return NULL;
}

static json_t *optional_string(const char *text) { return text ? json_string(text) : json_null(); }

static json_t *make_controls(const job *j) {
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < j->n_controls; i++) {
        lw_control c = control_at(j, i);
        json_t *one = json_object();
        const char *hash = c.map && j->extra.control_sha256 ? j->extra.control_sha256[i] : NULL;
        int bad =
            json_object_set_new(one, "model", optional_string(j->extra.control_nets ? j->extra.control_nets[i] : NULL));
        bad |= json_object_set_new(one, "ready_map", json_boolean(c.map != NULL));
        bad |= json_object_set_new(one, "image_sha256", optional_string(hash));
        bad |= json_object_set_new(one, "strength", json_real(c.strength));
        bad |= json_object_set_new(one, "start", json_real(c.start));
        bad |= json_object_set_new(one, "end", json_real(c.end));
        if (json_array_append_new(list, one) || bad) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

/* NULL: no memory, or a text that is not UTF-8. */
static char *make_json(const job *j) {
    const lw_request *r = j->request;
    bool exact = r->width > 0;
    json_t *o = json_object(), *model = json_object();
    int bad = json_object_set_new(model, "name", json_string(j->name));
    bad |= json_object_set_new(model, "hash", optional_string(j->extra.model_hash));
    bad |= json_object_set_new(o, "version", json_sprintf("linework %s", lw_version()));
    bad |= json_object_set_new(o, "model", model);
    bad |= json_object_set_new(o, "vae", optional_string(j->extra.vae));
    bad |= json_object_set_new(o, "prompt", json_string(r->prompt ? r->prompt : ""));
    bad |= json_object_set_new(o, "added_prompt", json_string(j->added_prompt));
    bad |= json_object_set_new(o, "negative_prompt", json_string(j->negative_prompt));
    bad |= json_object_set_new(
        o, "resolution", exact ? json_null() : json_integer(r->resolution ? r->resolution : j->engine->resolution));
    bad |= json_object_set_new(o, "width", exact ? json_integer(r->width) : json_null());
    bad |= json_object_set_new(o, "height", exact ? json_integer(r->height) : json_null());
    bad |= json_object_set_new(o, "picture_width", json_integer(j->result->width));
    bad |= json_object_set_new(o, "picture_height", json_integer(j->result->height));
    bad |= json_object_set_new(o, "samples", json_integer(r->samples));
    bad |= json_object_set_new(o, "index", json_integer(j->extra.index));
    bad |= json_object_set_new(o, "steps", json_integer(r->steps));
    bad |= json_object_set_new(o, "cfg_scale", json_real(r->cfg_scale));
    bad |= json_object_set_new(o, "eta", json_real(r->eta));
    bad |= json_object_set_new(o, "seed", json_integer(j->result->seed));
    bad |= json_object_set_new(o, "canny_low", json_real(r->canny_low));
    bad |= json_object_set_new(o, "canny_high", json_real(r->canny_high));
    bad |= json_object_set_new(o, "control_mode", json_string(lw_control_mode_name(r->control_mode)));
    bad |= json_object_set_new(o, "sampling_method", json_string(lw_sampler_name(r->sampler)));
    bad |= json_object_set_new(o, "scheduler", json_string(lw_scheduler_name(r->scheduler)));
    bad |= json_object_set_new(o, "rng", json_string(lw_rng_name(r->rng)));
    bad |= json_object_set_new(o, "clip_skip", json_integer(r->clip_skip));
    bad |= json_object_set_new(o, "reuse_steps", optional_string(r->reuse_steps));
    bad |= json_object_set_new(o, "controls", make_controls(j));
    bad |= json_object_set_new(o, "image_sha256", optional_string(j->extra.image_sha256));
    bad |= json_object_set_new(o, "init_latents_sha256", optional_string(j->extra.init_latents_sha256));
    bad |= json_object_set_new(o, "device", optional_string(lw_device_name(j->engine->device)));
    bad |= json_object_set_new(o, "precision", optional_string(lw_precision_name(j->engine->precision)));
    bad |= json_object_set_new(o, "tactics", optional_string(j->engine->tactics_hash));
    char *text = bad ? NULL : json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

void lw_infotext_extra_init(lw_infotext_extra *extra) { *extra = (lw_infotext_extra){.size = sizeof *extra}; }

lw_status lw_infotext_make(const lw_engine_info *engine, const lw_request *request, const lw_result *result,
                           const lw_infotext_extra *extra, lw_fields *fields, lw_error *err) {
    if (!engine || !request || !result || !fields) return lw_fail(err, LW_EINVAL, "infotext: a null argument");
    *fields = (lw_fields){.size = sizeof *fields};
    if ((size_t)request->control_mode >= sizeof mode_texts / sizeof *mode_texts ||
        (size_t)request->sampler >= sizeof sampler_texts / sizeof *sampler_texts ||
        (size_t)request->scheduler >= sizeof scheduler_texts / sizeof *scheduler_texts)
        return lw_fail(err, LW_EINVAL, "infotext: sampler %d, scheduler %d or control mode %d is none of linework's",
                       (int)request->sampler, (int)request->scheduler, (int)request->control_mode);
    job j = {.engine = engine, .request = request, .result = result, .extra = {.size = sizeof j.extra}};
    if (extra) memcpy(&j.extra, extra, extra->size < sizeof j.extra ? extra->size : sizeof j.extra);
    const char *added = request->added_prompt ? request->added_prompt : engine->added_prompt;
    const char *negative = request->negative_prompt ? request->negative_prompt : engine->negative_prompt;
    j.added_prompt = added ? added : "";
    j.negative_prompt = negative ? negative : "";
    j.name = engine->name ? engine->name : "";
    j.n_controls = request->controls ? request->n_controls : engine->n_control_nets > 0;

    char *parameters = make_parameters(&j), *json = make_json(&j);
    lw_field *items = lw_alloc(2, sizeof *items);
    char *keys[2] = {lw_strdup("parameters"), lw_strdup("linework")};
    char *json_copy = json ? lw_strdup(json) : NULL;
    free(json);
    if (parameters && json_copy && items && keys[0] && keys[1]) {
        items[0] = (lw_field){.key = keys[0], .value = parameters};
        items[1] = (lw_field){.key = keys[1], .value = json_copy};
        fields->items = items;
        fields->n = 2;
        return LW_OK;
    }
    bool text = parameters && items && keys[0] && keys[1] && !json;
    lw_free(parameters);
    lw_free(json_copy);
    lw_free(items);
    lw_free(keys[0]);
    lw_free(keys[1]);
    if (text) return lw_fail(err, LW_EINPUT, "infotext: a prompt or a name is not UTF-8");
    return lw_fail(err, LW_ENOMEM, "infotext: no memory for the text fields");
}

/* ---- reading */

lw_status lw_infotext_copy(lw_infotext_builder *b, const char *from, const char **to, lw_error *err) {
    *to = lw_arena_strdup(b->arena, from);
    return *to ? LW_OK : lw_fail(err, LW_ENOMEM, "infotext: no memory for %zu bytes of text", strlen(from));
}

lw_status lw_infotext_remark(lw_infotext_builder *b, lw_error *err, const char *format, ...) {
    char line[300];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < 0x20) *p = ' ';
    size_t n = strlen(b->text.remarks);
    if (n > 4000) return LW_OK; /* a text of nothing but nonsense need not be answered line by line */
    char *all = lw_arena_alloc(b->arena, n + strlen(line) + 2, 1);
    if (!all) return lw_fail(err, LW_ENOMEM, "infotext: no memory for a remark");
    memcpy(all, b->text.remarks, n);
    snprintf(all + n, strlen(line) + 2, "%s%s", n ? "\n" : "", line);
    b->text.remarks = all;
    return LW_OK;
}

lw_status lw_infotext_set_controls(lw_infotext_builder *b, uint32_t n, lw_error *err) {
    b->controls = lw_arena_alloc(b->arena, n, sizeof *b->controls);
    b->nets = lw_arena_alloc(b->arena, n, sizeof *b->nets);
    b->hashes = lw_arena_alloc(b->arena, n, sizeof *b->hashes);
    if (!b->controls || !b->nets || !b->hashes)
        return lw_fail(err, LW_ENOMEM, "infotext: no memory for %u controls", n);
    for (uint32_t i = 0; i < n; i++) b->controls[i] = (lw_control){.size = sizeof(lw_control), .strength = 1, .end = 1};
    b->text.request->controls = b->controls;
    b->text.request->n_controls = b->text.n_controls = n;
    b->text.control_nets = b->nets;
    b->text.control_sha256 = b->hashes;
    return LW_OK;
}

/* The getters of the JSON: a key that is missing or null keeps what is there. */
static lw_status get_string(lw_infotext_builder *b, const json_t *o, const char *key, const char **out, lw_error *err) {
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return LW_OK;
    if (!json_is_string(v)) return lw_fail(err, LW_EINPUT, "text field linework: %s is not a string", key);
    return lw_infotext_copy(b, json_string_value(v), out, err);
}

static lw_status get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out, lw_error *err) {
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return LW_OK;
    if (!json_is_integer(v)) return lw_fail(err, LW_EINPUT, "text field linework: %s is not a whole number", key);
    *out = json_integer_value(v);
    if (*out < min || *out > max)
        return lw_fail(err, LW_EINPUT, "text field linework: %s is %lld, outside %lld..%lld", key, (long long)*out,
                       (long long)min, (long long)max);
    return LW_OK;
}

static lw_status get_int32(const json_t *o, const char *key, int32_t min, int32_t max, int32_t *out, lw_error *err) {
    int64_t v = *out;
    LW_TRY(get_int(o, key, min, max, &v, err));
    *out = (int32_t)v;
    return LW_OK;
}

static lw_status get_number(const json_t *o, const char *key, double max, double *out, lw_error *err) {
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return LW_OK;
    if (!json_is_number(v)) return lw_fail(err, LW_EINPUT, "text field linework: %s is not a number", key);
    *out = json_number_value(v);
    if (!(*out >= 0 && *out <= max))
        return lw_fail(err, LW_EINPUT, "text field linework: %s is %g, outside 0..%g", key, *out, max);
    return LW_OK;
}

static lw_status read_controls(lw_infotext_builder *b, const json_t *o, lw_error *err) {
    const json_t *list = json_object_get(o, "controls");
    if (!list) return LW_OK;
    if (!json_is_array(list) || json_array_size(list) > LW_INFOTEXT_MAX_CONTROLS)
        return lw_fail(err, LW_EINPUT, "text field linework: controls is not a list of at most %d",
                       LW_INFOTEXT_MAX_CONTROLS);
    LW_TRY(lw_infotext_set_controls(b, (uint32_t)json_array_size(list), err));
    for (uint32_t i = 0; i < b->text.n_controls; i++) {
        const json_t *one = json_array_get(list, i);
        if (!json_is_object(one)) return lw_fail(err, LW_EINPUT, "text field linework: control %u is not an object", i);
        LW_TRY(get_string(b, one, "model", &b->nets[i], err));
        LW_TRY(get_string(b, one, "image_sha256", &b->hashes[i], err));
        LW_TRY(get_number(one, "strength", 2, &b->controls[i].strength, err));
        LW_TRY(get_number(one, "start", 1, &b->controls[i].start, err));
        LW_TRY(get_number(one, "end", 1, &b->controls[i].end, err));
        /* A ready map of unknown hash still has to be told from the picture's edges. */
        if (json_is_true(json_object_get(one, "ready_map")) && !b->hashes[i]) b->hashes[i] = "";
    }
    return LW_OK;
}

static lw_status read_names(lw_infotext_builder *b, const json_t *o, lw_error *err) {
    lw_request *r = b->text.request;
    const char *mode = NULL, *sampler = NULL, *scheduler = NULL, *rng = NULL;
    LW_TRY(get_string(b, o, "control_mode", &mode, err));
    LW_TRY(get_string(b, o, "sampling_method", &sampler, err));
    LW_TRY(get_string(b, o, "scheduler", &scheduler, err));
    LW_TRY(get_string(b, o, "rng", &rng, err));
    bool bad = (mode && lw_control_mode_from_name(mode, &r->control_mode, NULL) != LW_OK) ||
               (sampler && lw_sampler_from_name(sampler, &r->sampler, NULL) != LW_OK) ||
               (scheduler && lw_scheduler_from_name(scheduler, &r->scheduler, NULL) != LW_OK) ||
               (rng && lw_rng_from_name(rng, &r->rng, NULL) != LW_OK);
    if (!bad) return LW_OK;
    return lw_fail(err, LW_EINPUT,
                   "text field linework: control mode \"%.40s\", sampler \"%.40s\", scheduler \"%.40s\" or rng "
                   "\"%.40s\" is none of linework's",
                   mode ? mode : "", sampler ? sampler : "", scheduler ? scheduler : "", rng ? rng : "");
}

static lw_status read_object(lw_infotext_builder *b, const json_t *o, lw_error *err) {
    lw_infotext *t = &b->text;
    lw_request *r = t->request;
    if (!json_is_object(o)) return lw_fail(err, LW_EINPUT, "text field linework: is not a JSON object");
    const json_t *model = json_object_get(o, "model");
    LW_TRY(get_string(b, model, "name", &t->model, err));
    LW_TRY(get_string(b, model, "hash", &t->model_hash, err));
    LW_TRY(get_string(b, o, "version", &t->version, err));
    LW_TRY(get_string(b, o, "vae", &t->vae, err));
    LW_TRY(get_string(b, o, "prompt", &r->prompt, err));
    LW_TRY(get_string(b, o, "added_prompt", &r->added_prompt, err));
    LW_TRY(get_string(b, o, "negative_prompt", &r->negative_prompt, err));
    LW_TRY(get_string(b, o, "reuse_steps", &r->reuse_steps, err));
    LW_TRY(get_string(b, o, "image_sha256", &t->image_sha256, err));
    LW_TRY(get_string(b, o, "init_latents_sha256", &t->init_latents_sha256, err));
    LW_TRY(get_string(b, o, "device", &t->device, err));
    LW_TRY(get_string(b, o, "precision", &t->precision, err));
    LW_TRY(get_string(b, o, "tactics", &t->tactics_hash, err));
    LW_TRY(get_int32(o, "resolution", 64, 8192, &r->resolution, err));
    LW_TRY(get_int32(o, "width", 64, 8192, &r->width, err));
    LW_TRY(get_int32(o, "height", 64, 8192, &r->height, err));
    LW_TRY(get_int32(o, "picture_width", 1, 8192, &t->width, err));
    LW_TRY(get_int32(o, "picture_height", 1, 8192, &t->height, err));
    LW_TRY(get_int32(o, "samples", 1, 12, &r->samples, err));
    LW_TRY(get_int32(o, "index", 0, r->samples - 1, &t->index, err));
    LW_TRY(get_int32(o, "steps", 1, 1000, &r->steps, err));
    LW_TRY(get_number(o, "cfg_scale", 100, &r->cfg_scale, err));
    LW_TRY(get_number(o, "eta", 1, &r->eta, err));
    LW_TRY(get_int(o, "seed", 0, 4294967295, &r->seed, err));
    LW_TRY(get_number(o, "canny_low", 10000, &r->canny_low, err));
    LW_TRY(get_number(o, "canny_high", 10000, &r->canny_high, err));
    LW_TRY(get_int32(o, "clip_skip", 0, 64, &r->clip_skip, err));
    LW_TRY(read_names(b, o, err));
    if ((r->width > 0) != (r->height > 0))
        return lw_fail(err, LW_EINPUT, "text field linework: width is %d and height %d", r->width, r->height);
    return read_controls(b, o, err);
}

static lw_status read_json(lw_infotext_builder *b, const char *text, lw_error *err) {
    json_error_t why;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    if (!o) return lw_fail(err, LW_EINPUT, "text field linework: is not JSON: %s (at byte %d)", why.text, why.position);
    lw_status status = read_object(b, o, err);
    json_decref(o);
    return status;
}

static const char *find(const lw_fields *fields, const char *key) {
    for (uint32_t i = 0; fields && i < fields->n; i++)
        if (fields->items[i].key && fields->items[i].value && !strcmp(fields->items[i].key, key))
            return fields->items[i].value;
    return NULL;
}

lw_status lw_infotext_read(const lw_fields *fields, lw_infotext *out, lw_error *err) {
    if (!out || out->size < offsetof(lw_infotext, request) + sizeof out->request)
        return lw_fail(err, LW_EINVAL, "infotext: lw_infotext.size is %u, not its size", out ? out->size : 0);
    uint32_t size = out->size < sizeof *out ? out->size : (uint32_t)sizeof *out;
    memset(out, 0, size);
    out->size = size;
    const char *json = find(fields, "linework"), *parameters = find(fields, "parameters");
    if (!json && !parameters)
        return lw_fail(err, LW_EINPUT, "picture: holds neither a text field \"linework\" nor \"parameters\"");

    lw_infotext_builder b = {.arena = lw_arena_new(), .text = {.size = size, .remarks = ""}};
    if (!b.arena) return lw_fail(err, LW_ENOMEM, "infotext: no memory");
    b.text.storage = b.arena;
    b.text.request = lw_arena_alloc(b.arena, 1, sizeof *b.text.request);
    lw_status status = b.text.request ? LW_OK : lw_fail(err, LW_ENOMEM, "infotext: no memory");
    if (status == LW_OK) {
        lw_request_init(b.text.request);
        status = json ? read_json(&b, json, err) : lw_infotext_read_a1111(&b, parameters, err);
    }
    if (status == LW_OK) memcpy(out, &b.text, size);
    else lw_arena_free(b.arena);
    return status;
}

void lw_infotext_free(lw_infotext *infotext) {
    if (!infotext || infotext->size < offsetof(lw_infotext, request)) return;
    lw_arena_free(infotext->storage);
    uint32_t size = infotext->size < sizeof *infotext ? infotext->size : (uint32_t)sizeof *infotext;
    memset(infotext, 0, size);
    infotext->size = size;
}
