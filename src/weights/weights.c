/* SPDX-License-Identifier: MIT
 * The store: which format a path is, its entries under canonical names, and reading them. */
#include "weights/format.h"
#include "weights/names.h"

#include <string.h>
#include <sys/stat.h>

enum { READ_CHUNK = 64 * 1024 }; /* bytes converted at a time: small enough for L2 */

struct lw_weights {
    char *path;
    const char *layout;
    lw_source *sources;
    uint32_t n_sources;
    lw_listing listing;
    lw_tensor *tensors; /* sorted by name */
    size_t n, ignored;
};

static int by_name(const void *a, const void *b) {
    const lw_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The listing's entries under canonical names into weights->tensors. `part` is the network that every key is of, or
 * LW_NET_NONE. */
static lw_status map_names(lw_weights *w, lw_network part, lw_error *err) {
    w->tensors = lw_alloc(w->listing.n, sizeof *w->tensors);
    if (!w->tensors) return lw_fail(err, LW_ENOMEM, "%s: no memory for %zu tensors", w->path, w->listing.n);
    for (size_t i = 0; i < w->listing.n; i++) {
        const lw_entry *e = &w->listing.entries[i];
        const char *rest = e->tensor.key;
        lw_network network = lw_ldm_network(e->tensor.key, &rest);
        if (part != LW_NET_NONE && network == LW_NET_NONE) network = part;
        if (network == LW_NET_NONE || (part != LW_NET_NONE && network != part)) {
            w->ignored++;
            continue;
        }
        if (e->type)
            return lw_fail(err, LW_EMODEL, "%s: tensor %s is %s, which is not read: save it as F16 or F32", w->path,
                           e->tensor.key, e->type);
        lw_tensor *t = &w->tensors[w->n++];
        *t = e->tensor;
        t->name = lw_canonical_name(w->listing.arena, network, rest);
        if (!t->name) return lw_fail(err, LW_ENOMEM, "%s: no memory for %zu names", w->path, w->listing.n);
    }
    if (w->n == 0)
        return lw_fail(err, LW_EMODEL, "%s: %zu tensors, none of them of a network that linework knows", w->path,
                       w->listing.n);
    qsort(w->tensors, w->n, sizeof *w->tensors, by_name);
    for (size_t i = 1; i < w->n; i++)
        if (strcmp(w->tensors[i - 1].name, w->tensors[i].name) == 0)
            return lw_fail(err, LW_EMODEL, "%s: tensors %s and %s are both %s", w->path, w->tensors[i - 1].key,
                           w->tensors[i].key, w->tensors[i].name);
    return LW_OK;
}

static lw_status list_file(lw_weights *w, const lw_source *source, lw_error *err) {
    w->layout = "safetensors-ldm";
    return lw_safetensors_list(source, &w->listing, err);
}

/* A store of one file, or of the bytes if there are any. */
static lw_status open_store(lw_weights **out, const char *path, const void *bytes, size_t n_bytes, lw_network part,
                            lw_error *err) {
    *out = NULL;
    lw_status status = LW_OK;
    lw_weights *w = lw_alloc(1, sizeof *w);
    if (w) {
        w->path = lw_strdup(path);
        w->sources = lw_alloc(1, sizeof *w->sources);
        w->listing.arena = lw_arena_new();
    }
    if (!w || !w->path || !w->sources || !w->listing.arena) {
        lw_weights_close(&w);
        return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
    }
    if (bytes) w->sources[0] = (lw_source){.name = w->path, .fd = -1, .bytes = bytes, .size = n_bytes};
    else LW_GO(lw_source_open(&w->sources[0], w->path, err));
    w->n_sources = 1;
    LW_GO(list_file(w, &w->sources[0], err));
    LW_GO(map_names(w, part, err));
    lw_free(w->listing.entries);
    w->listing.entries = NULL;
    *out = w;
    return LW_OK;
out:
    lw_weights_close(&w);
    return status;
}

lw_status lw_weights_open(lw_weights **out, const char *path, lw_error *err) {
    return open_store(out, path, NULL, 0, LW_NET_NONE, err);
}

lw_status lw_weights_open_part(lw_weights **out, const char *path, const char *network, lw_error *err) {
    for (int i = 0; i < LW_N_NETS; i++)
        if (strcmp(network, lw_network_name((lw_network)i)) == 0)
            return open_store(out, path, NULL, 0, (lw_network)i, err);
    *out = NULL;
    return lw_fail(err, LW_EINVAL, "%s: there is no network called %s", path, network);
}

lw_status lw_weights_open_memory(lw_weights **out, const void *bytes, size_t n_bytes, const char *name, lw_error *err) {
    return open_store(out, name, bytes ? bytes : "", n_bytes, LW_NET_NONE, err);
}

void lw_weights_close(lw_weights **weights) {
    lw_weights *w = *weights;
    *weights = NULL;
    if (!w) return;
    for (uint32_t i = 0; i < w->n_sources; i++) lw_source_close(&w->sources[i]);
    lw_free(w->sources);
    lw_free(w->tensors);
    lw_free(w->listing.entries);
    lw_arena_free(w->listing.arena);
    lw_free(w->path);
    lw_free(w);
}

const lw_tensor *lw_weights_find(const lw_weights *weights, const char *name) {
    lw_tensor key = {.name = name};
    return bsearch(&key, weights->tensors, weights->n, sizeof key, by_name);
}

size_t lw_weights_count(const lw_weights *weights) { return weights->n; }
const lw_tensor *lw_weights_at(const lw_weights *weights, size_t i) { return &weights->tensors[i]; }
size_t lw_weights_ignored(const lw_weights *weights) { return weights->ignored; }
const char *lw_weights_layout(const lw_weights *weights) { return weights->layout; }
const char *lw_weights_path(const lw_weights *weights) { return weights->path; }

const char *lw_weights_metadata(const lw_weights *weights, const char *key) {
    for (size_t i = 0; i < weights->listing.n_metadata; i++)
        if (strcmp(weights->listing.metadata[i].key, key) == 0) return weights->listing.metadata[i].value;
    return NULL;
}

/* ---- reading */

static bool all_finite(const float *v, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) { /* no branch, so that it is vectorised */
        uint32_t u;
        memcpy(&u, &v[i], 4);
        bad |= (u & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

static lw_status check_finite(const lw_weights *w, const lw_tensor *t, const float *v, size_t first, size_t n,
                              lw_error *err) {
    if (all_finite(v, n)) return LW_OK;
    size_t i = 0;
    while (all_finite(v + i, 1)) i++;
    return lw_fail(err, LW_EMODEL, "%s: weight %s: value %zu of %zu is %s", w->sources[t->source].name, t->key,
                   first + i, t->n, v[i] != v[i] ? "NaN" : "infinite as a float");
}

static lw_status read_contiguous(const lw_weights *w, const lw_tensor *t, float *dst, uint8_t *buffer, lw_error *err) {
    size_t each = lw_dtype_bytes(t->dtype), chunk = READ_CHUNK / each;
    for (size_t done = 0; done < t->n; done += chunk) {
        size_t n = t->n - done < chunk ? t->n - done : chunk;
        void *to = t->dtype == LW_F32 ? (void *)(dst + done) : buffer; /* fp32 needs no second copy */
        LW_TRY(lw_source_read(&w->sources[t->source], t->offset + (uint64_t)done * each, to, n * each, err));
        if (t->dtype != LW_F32) lw_to_f32(t->dtype, buffer, dst + done, n);
        LW_TRY(check_finite(w, t, dst + done, done, n, err));
    }
    return LW_OK;
}

lw_status lw_tensor_read(const lw_weights *weights, const lw_tensor *tensor, float *dst, lw_error *err) {
    uint8_t *buffer = lw_alloc_aligned(READ_CHUNK);
    if (!buffer) return lw_fail(err, LW_ENOMEM, "%s: no memory to read %s", weights->path, tensor->key);
    lw_status status = read_contiguous(weights, tensor, dst, buffer, err);
    lw_free(buffer);
    return status;
}
