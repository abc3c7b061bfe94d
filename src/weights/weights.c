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
    lw_source sources[LW_FOLDER_FILES];
    uint32_t n_sources;
    lw_listing listing; /* of all files, under their own keys; dropped when they are mapped */
    lw_tensor *tensors; /* sorted by name */
    size_t n, ignored;
};

static int by_name(const void *a, const void *b) {
    const lw_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* ---- from keys to canonical names */

/* How one file spells its keys. */
typedef struct spelling {
    bool prefixed;      /* "control_model." and so on; else every key is of `network` */
    lw_network network; /* or, with prefixes, the only one that is wanted; LW_NET_NONE: all */
    lw_naming naming;
    lw_geometry geometry;
} spelling;

/* The key without what torch's wrappers for several GPUs put before every one. */
static const char *unwrapped(const char *key) { return strncmp(key, "module.", 7) ? key : key + 7; }

static bool find_spelling(const lw_entry *entries, size_t n, lw_network part, spelling *how) {
    const char *rest;
    *how = (spelling){.network = part};
    for (size_t i = 0; i < n; i++) {
        lw_network network = lw_ldm_network(unwrapped(entries[i].tensor.key), &rest);
        if (network != LW_NET_NONE && (part == LW_NET_NONE || network == part)) return how->prefixed = true;
    }
    for (const lw_signature *s = lw_signatures; s->key; s++) {
        if (part != LW_NET_NONE && s->network != part) continue;
        for (size_t i = 0; i < n; i++) {
            if (strcmp(unwrapped(entries[i].tensor.key), s->key) != 0) continue;
            how->network = s->network;
            how->naming = s->naming;
            for (size_t k = 0; k < n; k++)
                lw_geometry_see(&how->geometry, s->network, s->naming, unwrapped(entries[k].tensor.key));
            return true;
        }
    }
    return false;
}

/* The entry's network and LDM name, or LW_NET_NONE if it is to be ignored. *known is false for a name that the network
 * does not have: fatal in the UNet and the ControlNet, where it means another architecture. */
static lw_network resolve(const spelling *how, const char *key, const char **ldm, char buffer[LW_NAME_CAP],
                          bool *known) {
    lw_network network = how->network;
    *ldm = key;
    if (how->prefixed) network = lw_ldm_network(key, ldm);
    *known = true;
    if (network == LW_NET_NONE || (how->network != LW_NET_NONE && network != how->network)) return LW_NET_NONE;
    if (how->naming == LW_NAMING_DIFFUSERS) {
        *known = lw_name_to_ldm(network, &how->geometry, key, buffer);
        *ldm = buffer;
    } else {
        *known = lw_name_is_ldm(network, *ldm);
    }
    if (!*known && (network == LW_NET_VAE || network == LW_NET_CLIP)) return LW_NET_NONE;
    return network;
}

static lw_status map_entry(lw_weights *w, const spelling *how, const lw_entry *e, lw_error *err) {
    const char *file = w->sources[e->tensor.source].name, *ldm;
    char buffer[LW_NAME_CAP];
    bool known;
    lw_network network = resolve(how, unwrapped(e->tensor.key), &ldm, buffer, &known);
    if (network == LW_NET_NONE) {
        w->ignored++;
        return LW_OK;
    }
    if (!known)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s is none of a Stable Diffusion 1 %s", file, e->tensor.key,
                       network == LW_NET_UNET ? "UNet" : "ControlNet");
    if (e->type)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s is %s, which is not read: save it as F16 or F32", file,
                       e->tensor.key, e->type);
    lw_tensor *t = &w->tensors[w->n];
    *t = e->tensor;
    if (t->rank == 2 && lw_name_is_1x1(network, ldm)) { /* a matrix where LDM has a 1x1 convolution */
        t->dims[2] = t->dims[3] = t->strides[2] = t->strides[3] = 1;
        t->rank = 4;
    }
    t->name = lw_canonical_name(w->listing.arena, network, ldm);
    if (!t->name) return lw_fail(err, LW_ENOMEM, "%s: no memory for its names", file);
    w->n++;
    return LW_OK;
}

/* The listing's entries from `first` on, which are those of one file, or of one network in several, under canonical
 * names into w->tensors. */
static lw_status map_names(lw_weights *w, size_t first, lw_network part, spelling *how, lw_error *err) {
    const lw_entry *entries = w->listing.entries ? w->listing.entries + first : NULL; /* NULL: nothing was listed */
    size_t n = w->listing.n - first;
    const char *file = w->sources[w->n_sources - 1].name;
    if (n == 0 || !find_spelling(entries, n, part, how))
        return lw_fail(err, LW_EMODEL, "%s: %zu tensors, none of them of a %s that linework knows", file, n,
                       part == LW_NET_NONE ? "network" : lw_network_name(part));
    lw_tensor *grown = lw_realloc(w->tensors, w->n + n, sizeof *grown);
    if (!grown) return lw_fail(err, LW_ENOMEM, "%s: no memory for %zu tensors", file, n);
    w->tensors = grown;
    for (size_t i = 0; i < n; i++) LW_TRY(map_entry(w, how, &entries[i], err));
    return LW_OK;
}

static lw_status sort_names(lw_weights *w, lw_error *err) {
    qsort(w->tensors, w->n, sizeof *w->tensors, by_name);
    for (size_t i = 1; i < w->n; i++) {
        const lw_tensor *a = &w->tensors[i - 1], *b = &w->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return lw_fail(err, LW_EMODEL, "%s: tensors %s and %s are both %s", w->sources[b->source].name, a->key,
                           b->key, a->name);
    }
    return LW_OK;
}

/* ---- opening */

static const char *layout_name(lw_container container, const spelling *how) {
    bool zip = container == LW_CONTAINER_ZIP;
    if (how->naming == LW_NAMING_DIFFUSERS) return zip ? "torch-zip-diffusers" : "safetensors-diffusers";
    return zip ? "torch-zip-ldm" : "safetensors-ldm";
}

/* One more file of the store, or bytes if there are any, onto the listing. */
static lw_status list_file(lw_weights *w, const char *path, const void *bytes, size_t n_bytes, lw_container *container,
                           lw_error *err) {
    lw_source *source = &w->sources[w->n_sources];
    const char *name = lw_arena_strdup(w->listing.arena, path);
    if (!name) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
    if (bytes) *source = (lw_source){.name = name, .fd = -1, .bytes = bytes, .size = n_bytes};
    else LW_TRY(lw_source_open(source, name, err));
    w->listing.source = w->n_sources++;
    LW_TRY(lw_container_of(source, container, err));
    return *container == LW_CONTAINER_ZIP ? lw_torch_list(source, &w->listing, err)
                                          : lw_safetensors_list(source, &w->listing, err);
}

static lw_status add_file(lw_weights *w, const char *path, const void *bytes, size_t n_bytes, lw_network part,
                          lw_error *err) {
    spelling how;
    lw_container container;
    LW_TRY(list_file(w, path, bytes, n_bytes, &container, err));
    LW_TRY(map_names(w, 0, part, &how, err));
    w->layout = layout_name(container, &how);
    return LW_OK;
}

static lw_status add_folder(lw_weights *w, const char *path, lw_network part, lw_error *err) {
    lw_folder folder;
    spelling how;
    lw_container container;
    LW_TRY(lw_folder_find(path, part, w->listing.arena, &folder, err));
    for (size_t i = 0; i < folder.n;) {
        lw_network network = folder.files[i].network;
        size_t first = w->listing.n;
        for (; i < folder.n && folder.files[i].network == network; i++)
            LW_TRY(list_file(w, folder.files[i].path, NULL, 0, &container, err));
        LW_TRY(map_names(w, first, network, &how, err));
    }
    w->layout = "diffusers-folder";
    return lw_folder_config(path, &w->listing, err);
}

static lw_status open_store(lw_weights **out, const char *path, const void *bytes, size_t n_bytes, lw_network part,
                            lw_error *err) {
    *out = NULL;
    lw_status status = LW_OK;
    struct stat st;
    lw_weights *w = lw_alloc(1, sizeof *w);
    if (w) {
        w->path = lw_strdup(path);
        w->listing.arena = lw_arena_new();
    }
    if (!w || !w->path || !w->listing.arena) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
        goto out;
    }
    if (!bytes && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) LW_GO(add_folder(w, path, part, err));
    else LW_GO(add_file(w, path, bytes, n_bytes, part, err));
    LW_GO(sort_names(w, err));
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

const lw_field *lw_weights_fields(const lw_weights *weights, size_t *n) {
    *n = weights->listing.n_metadata;
    return weights->listing.metadata;
}

bool lw_weights_reads(const lw_weights *weights, const char *path) {
    struct stat a, b;
    if (stat(path, &a) != 0) return false;
    for (uint32_t i = 0; i < weights->n_sources; i++)
        if (weights->sources[i].fd >= 0 && fstat(weights->sources[i].fd, &b) == 0 && a.st_dev == b.st_dev &&
            a.st_ino == b.st_ino)
            return true;
    return false;
}

uint64_t lw_weights_file_bytes(const lw_weights *weights) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < weights->n_sources; i++) bytes += weights->sources[i].size;
    return bytes;
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

/* Rows of a tensor, as a tensor of their own. */
typedef struct slice {
    lw_tensor part;
    size_t first, of; /* its first element, and how many there are in the tensor */
} slice;

static lw_status check_finite(const lw_weights *w, const slice *s, const float *v, size_t first, size_t n,
                              lw_error *err) {
    if (all_finite(v, n)) return LW_OK;
    size_t i = 0;
    while (all_finite(v + i, 1)) i++;
    return lw_fail(err, LW_EMODEL, "%s: weight %s: value %zu of %zu is %s", w->sources[s->part.source].name,
                   s->part.key, s->first + first + i, s->of, v[i] != v[i] ? "NaN" : "infinite as a float");
}

static lw_status read_contiguous(const lw_weights *w, const slice *s, float *dst, uint8_t *buffer, lw_error *err) {
    const lw_tensor *t = &s->part;
    size_t each = lw_dtype_bytes(t->dtype), chunk = READ_CHUNK / each;
    for (size_t done = 0; done < t->n; done += chunk) {
        size_t n = t->n - done < chunk ? t->n - done : chunk;
        void *to = t->dtype == LW_F32 ? (void *)(dst + done) : buffer; /* fp32 needs no second copy */
        LW_TRY(lw_source_read(&w->sources[t->source], t->offset + (uint64_t)done * each, to, n * each, err));
        if (t->dtype != LW_F32) lw_to_f32(t->dtype, buffer, dst + done, n);
        LW_TRY(check_finite(w, s, dst + done, done, n, err));
    }
    return LW_OK;
}

static bool is_contiguous(const lw_tensor *t) {
    int64_t stride = 1;
    for (int32_t i = t->rank; i-- > 0; stride *= t->dims[i])
        if (t->dims[i] != 1 && t->strides[i] != stride) return false;
    return true;
}

/* A transposed or sliced tensor of a .pth file: its whole extent in the storage is read, then gathered. */
static lw_status read_strided(const lw_weights *w, const slice *s, float *dst, lw_error *err) {
    const lw_tensor *t = &s->part;
    size_t each = lw_dtype_bytes(t->dtype), extent = 1; /* checked when the file was opened: it lies in the storage */
    int64_t index[LW_MAX_RANK] = {0};
    for (int32_t i = 0; i < t->rank; i++) extent += (size_t)(t->dims[i] - 1) * (size_t)t->strides[i];
    uint8_t *bytes = lw_alloc(extent, each);
    if (!bytes) return lw_fail(err, LW_ENOMEM, "%s: no memory to read %s", w->path, t->key);
    lw_status status = lw_source_read(&w->sources[t->source], t->offset, bytes, extent * each, err);
    for (size_t i = 0, at = 0; status == LW_OK && i < t->n; i++) {
        lw_to_f32(t->dtype, bytes + at * each, dst + i, 1);
        for (int32_t d = t->rank; d-- > 0;) { /* the next index, and where it is */
            at += (size_t)t->strides[d];
            if (++index[d] < t->dims[d]) break;
            at -= (size_t)t->strides[d] * (size_t)t->dims[d];
            index[d] = 0;
        }
    }
    lw_free(bytes);
    return status == LW_OK ? check_finite(w, s, dst, 0, t->n, err) : status;
}

static lw_status read_slice(const lw_weights *w, const slice *s, float *dst, lw_error *err) {
    if (s->part.n == 0) return LW_OK;
    if (!is_contiguous(&s->part)) return read_strided(w, s, dst, err);
    uint8_t *buffer = lw_alloc_aligned(READ_CHUNK);
    if (!buffer) return lw_fail(err, LW_ENOMEM, "%s: no memory to read %s", w->path, s->part.key);
    lw_status status = read_contiguous(w, s, dst, buffer, err);
    lw_free(buffer);
    return status;
}

lw_status lw_tensor_read(const lw_weights *weights, const lw_tensor *tensor, float *dst, lw_error *err) {
    return read_slice(weights, &(slice){*tensor, 0, tensor->n}, dst, err);
}

lw_status lw_tensor_read_rows(const lw_weights *weights, const lw_tensor *tensor, int64_t row, int64_t n, float *dst,
                              lw_error *err) {
    int64_t rows = tensor->rank ? tensor->dims[0] : 1;
    if (row < 0 || n < 0 || row > rows || n > rows - row)
        return lw_fail(err, LW_EINTERNAL, "%s: rows %lld to %lld are wanted of the %lld of %s", weights->path,
                       (long long)row, (long long)(row + n), (long long)rows, tensor->key);
    if (n == rows) return lw_tensor_read(weights, tensor, dst, err);
    size_t each = tensor->n / (size_t)rows;
    slice s = {*tensor, (size_t)row * each, tensor->n};
    s.part.dims[0] = n;
    s.part.n = (size_t)n * each;
    s.part.offset += (uint64_t)row * (uint64_t)tensor->strides[0] * lw_dtype_bytes(tensor->dtype);
    return read_slice(weights, &s, dst, err);
}
