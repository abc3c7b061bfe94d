/* SPDX-License-Identifier: MIT
 * A store's networks against the shapes of Stable Diffusion 1.5: what is missing, extra, of another shape; and its
 * values, every one. */
#include "weights/format.h"
#include "weights/shapes.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* The widths that a network of the store has, or NULL for its own. */
static const lw_widths *widths_of(const lw_weights *w, lw_network network) {
    static const lw_widths *const known[] = {&lw_widths_sd15, &lw_widths_small};
    static const char *const tells[LW_N_NETS] = {[LW_NET_UNET] = "unet.time_embed.2.weight",
                                                 [LW_NET_CONTROL] = "control.time_embed.2.weight",
                                                 [LW_NET_VAE] = "vae.decoder.conv_in.weight",
                                                 [LW_NET_CLIP] =
                                                     "clip.text_model.embeddings.position_embedding.weight"};
    const lw_tensor *t = lw_weights_find(w, tells[network]);
    for (int i = 0; i < 2 && t; i++) {
        int64_t want = network == LW_NET_CLIP  ? known[i]->clip
                       : network == LW_NET_VAE ? (int64_t)known[i]->vae * known[i]->vae_mult[3]
                                               : 4 * (int64_t)known[i]->unet;
        if (t->rank > 0 && t->dims[network == LW_NET_CLIP ? t->rank - 1 : 0] == want) return known[i];
    }
    return NULL;
}

static void say_shape(char *text, size_t room, const int64_t *dims, int32_t rank) {
    size_t n = (size_t)snprintf(text, room, "[");
    for (int32_t i = 0; i < rank && n < room; i++)
        n += (size_t)snprintf(text + n, room - n, "%s%lld", i ? "," : "", (long long)dims[i]);
    if (n < room) snprintf(text + n, room - n, "]");
}

/* false: no memory. Keys of zips need not be UTF-8. */
static bool add(json_t *list, const char *text) {
    json_t *line = json_string(text);
    return json_array_append_new(list, line ? line : json_string("(a name that is not UTF-8)")) == 0;
}

static bool compare_shape(const lw_shape *s, const lw_tensor *t, json_t *misshaped) {
    char has[100], want[100], line[600];
    bool same = t->rank == s->rank;
    for (int32_t d = 0; same && d < s->rank; d++) same = t->dims[d] == s->dims[d];
    if (same) return true;
    say_shape(has, sizeof has, t->dims, t->rank);
    say_shape(want, sizeof want, s->dims, s->rank);
    snprintf(line, sizeof line, "%s is %s, not %s", t->key, has, want);
    return add(misshaped, line);
}

/* Not needed for canny2image, or left out by newer programs. */
static bool may_lack(const lw_shape *s) {
    return s->role == LW_ROLE_IDS ||
           (s->network == LW_NET_VAE && (!strncmp(s->name, "encoder.", 8) || !strncmp(s->name, "quant_conv.", 11)));
}

static int by_name(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

typedef struct lists {
    json_t *missing, *extra, *unused, *misshaped;
} lists;

/* One network against its shapes: names sorts those that are expected, to find what is beside them. false: no memory.
 * More than that is fatal in the UNet and the ControlNet, where it means another architecture. */
static bool audit_network(const lw_weights *w, lw_network network, const lw_shape *shapes, size_t n, lw_arena *arena,
                          const lists *l) {
    const char **names = lw_arena_alloc(arena, n, sizeof *names);
    json_t *beside = network == LW_NET_UNET || network == LW_NET_CONTROL ? l->extra : l->unused;
    size_t n_names = 0;
    bool good = names != NULL;
    for (size_t i = 0; i < n && good; i++) {
        if (shapes[i].network != network) continue;
        char *name = lw_canonical_name(arena, network, shapes[i].name);
        if (!name) return false;
        names[n_names++] = name;
        const lw_tensor *t = lw_weights_find(w, name);
        if (t) good = compare_shape(&shapes[i], t, l->misshaped);
        else if (!may_lack(&shapes[i])) good = add(l->missing, name);
    }
    if (good) qsort(names, n_names, sizeof *names, by_name);
    for (size_t i = 0; good && i < lw_weights_count(w); i++) {
        const lw_tensor *t = lw_weights_at(w, i);
        const char *rest;
        if (lw_canonical_network(t->name, &rest) == network &&
            !bsearch(&t->name, names, n_names, sizeof *names, by_name))
            good = add(beside, t->key);
    }
    return good;
}

lw_status lw_weights_audit_shapes(const lw_weights *w, json_t *report, lw_error *err) {
    lists l = {json_array(), json_array(), json_array(), json_array()};
    json_t *widths = json_object();
    lw_arena *arena = lw_arena_new();
    lw_status status = LW_OK;
    bool good = arena && widths;
    for (int i = 0; i < LW_N_NETS && good && status == LW_OK; i++) {
        lw_shape *shapes;
        size_t n;
        const lw_widths *known = widths_of(w, (lw_network)i);
        if (!known) continue;
        status = lw_shapes_make(known, arena, &shapes, &n, err);
        if (status != LW_OK) break;
        json_object_set_new(widths, lw_network_name((lw_network)i),
                            json_string(known == &lw_widths_sd15 ? "sd15" : "small"));
        good = audit_network(w, (lw_network)i, shapes, n, arena, &l);
    }
    json_object_set_new(report, "widths", widths);
    json_object_set_new(report, "missing", l.missing);
    json_object_set_new(report, "extra", l.extra);
    json_object_set_new(report, "unused", l.unused);
    json_object_set_new(report, "misshaped", l.misshaped);
    lw_arena_free(arena);
    return good ? status : lw_fail(err, LW_ENOMEM, "%s: no memory to check it", lw_weights_path(w));
}

/* Reads every value. What is NaN, infinite or can't be read is a line of "damaged". */
lw_status lw_weights_audit_values(const lw_weights *w, lw_bytes_fn progress, void *user, json_t *report,
                                  lw_error *err) {
    json_t *damaged = json_array();
    uint64_t done = 0, total = 0;
    json_object_set_new(report, "damaged", damaged);
    for (size_t i = 0; i < lw_weights_count(w); i++)
        total += lw_weights_at(w, i)->n * lw_dtype_bytes(lw_weights_at(w, i)->dtype);
    for (size_t i = 0; i < lw_weights_count(w); i++) {
        const lw_tensor *t = lw_weights_at(w, i);
        lw_error mine;
        float *values = lw_alloc_aligned(t->n * sizeof *values);
        if (!values) return lw_fail(err, LW_ENOMEM, "%s: no memory to read %s", lw_weights_path(w), t->key);
        lw_status status = lw_tensor_read(w, t, values, &mine);
        lw_free(values);
        if (status != LW_OK && status != LW_EMODEL) return lw_fail(err, status, "%s", mine.message);
        if (status == LW_EMODEL && !add(damaged, mine.message))
            return lw_fail(err, LW_ENOMEM, "%s: no memory to check it", lw_weights_path(w));
        done += t->n * lw_dtype_bytes(t->dtype);
        if (progress && progress(user, done, total))
            return lw_fail(err, LW_ECANCEL, "cancelled while reading %s", lw_weights_path(w));
    }
    return LW_OK;
}
