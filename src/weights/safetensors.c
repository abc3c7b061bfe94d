/* SPDX-License-Identifier: MIT
 * safetensors: u64 length N, N bytes of JSON, then the data. Every byte of the data belongs to exactly one tensor, as
 * the format demands: a hole could hide something, an overlap could make two tensors one. */
#include "weights/format.h"

#include <jansson.h>
#include <string.h>

enum { HEADER_CAP = 100 * 1000 * 1000 }; /* the official reader's */

/* Types in the order of the official writer; ours are those with a dtype. Bits, since some are smaller than a byte. */
static const struct {
    const char *name;
    int bits, dtype;
} types[] = {
    {"BOOL", 8, LW_BOOL}, {"F4", 4, -1},       {"F6_E2M3", 6, -1},    {"F6_E3M2", 6, -1},  {"U8", 8, LW_U8},
    {"I8", 8, LW_I8},     {"F8_E5M2", 8, -1},  {"F8_E4M3", 8, -1},    {"F8_E8M0", 8, -1},  {"I16", 16, LW_I16},
    {"U16", 16, -1},      {"F16", 16, LW_F16}, {"BF16", 16, LW_BF16}, {"I32", 32, LW_I32}, {"U32", 32, -1},
    {"F32", 32, LW_F32},  {"C64", 64, -1},     {"F64", 64, LW_F64},   {"I64", 64, LW_I64}, {"U64", 64, -1},
};

typedef struct extent {
    uint64_t begin, end;
    const char *key;
} extent;

static int by_begin(const void *a, const void *b) {
    const extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static lw_status read_shape(const char *file, const char *key, const json_t *shape, lw_tensor *t, lw_error *err) {
    if (!json_is_array(shape)) return lw_fail(err, LW_EMODEL, "%s: tensor %s has no shape", file, key);
    if (json_array_size(shape) > LW_MAX_RANK)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s has %zu dimensions, at most %d are read", file, key,
                       json_array_size(shape), LW_MAX_RANK);
    t->rank = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->rank; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return lw_fail(err, LW_EMODEL, "%s: tensor %s: dimension %d is not a whole number from 0", file, key, i);
        t->dims[i] = json_integer_value(d);
    }
    if (!lw_shape_count(t->dims, t->rank, t->strides, &t->n))
        return lw_fail(err, LW_EMODEL, "%s: tensor %s: the product of its dimensions overflows", file, key);
    return LW_OK;
}

/* One header entry, checked against the `space` bytes of data that begin at `base`. */
static lw_status read_entry(const lw_source *source, uint64_t base, uint64_t space, const char *key, const json_t *info,
                            lw_entry *entry, extent *where, lw_error *err) {
    const char *file = source->name;
    if (!json_is_object(info)) return lw_fail(err, LW_EMODEL, "%s: tensor %s is not an object", file, key);
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    size_t type = 0, n_types = sizeof types / sizeof *types;
    while (dtype && type < n_types && strcmp(types[type].name, dtype) != 0) type++;
    if (!dtype || type == n_types)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s has %s%s", file, key, dtype ? "an unknown dtype " : "no dtype",
                       dtype ? dtype : "");
    lw_tensor *t = &entry->tensor;
    LW_TRY(read_shape(file, key, json_object_get(info, "shape"), t, err));

    const json_t *offsets = json_object_get(info, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return lw_fail(err, LW_EMODEL, "%s: tensor %s: data_offsets is not [begin, end]", file, key);
    long long begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin || (uint64_t)end > space)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s: bytes [%lld, %lld) are not in the file's %llu bytes of data",
                       file, key, begin, end, (unsigned long long)space);
    size_t bits;
    if (!lw_mul_size(t->n, (size_t)types[type].bits, &bits) || bits % 8 != 0 || bits / 8 != (uint64_t)(end - begin))
        return lw_fail(err, LW_EMODEL, "%s: tensor %s: %zu values of %s do not make %lld bytes", file, key, t->n, dtype,
                       end - begin);
    *where = (extent){(uint64_t)begin, (uint64_t)end, t->key};
    t->offset = base + (uint64_t)begin;
    if (types[type].dtype < 0) entry->type = types[type].name;
    else t->dtype = (lw_dtype)types[type].dtype;
    return LW_OK;
}

static lw_status read_metadata(const lw_source *source, json_t *meta, lw_listing *listing, lw_error *err) {
    if (!json_is_object(meta)) return lw_fail(err, LW_EMODEL, "%s: __metadata__ is not an object", source->name);
    size_t room = listing->n_metadata + json_object_size(meta); /* a folder's files have theirs one after another */
    lw_field *fields = lw_arena_alloc(listing->arena, room, sizeof *fields);
    if (!fields) return lw_fail(err, LW_ENOMEM, "%s: no memory for its metadata", source->name);
    if (listing->n_metadata) memcpy(fields, listing->metadata, listing->n_metadata * sizeof *fields);
    listing->metadata = fields;
    const char *key;
    json_t *value;
    json_object_foreach(meta, key, value) {
        if (!json_is_string(value))
            return lw_fail(err, LW_EMODEL, "%s: __metadata__ %s is not a string", source->name, key);
        lw_field *f = &listing->metadata[listing->n_metadata];
        f->key = lw_arena_strdup(listing->arena, key);
        f->value = lw_arena_strdup(listing->arena, json_string_value(value));
        if (!f->key || !f->value) return lw_fail(err, LW_ENOMEM, "%s: no memory for its metadata", source->name);
        listing->n_metadata++;
    }
    return LW_OK;
}

static lw_status check_cover(const lw_source *source, extent *extents, size_t n, uint64_t space, lw_error *err) {
    uint64_t at = 0;
    const char *before = "the header";
    qsort(extents, n, sizeof *extents, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (extents[i].begin != at)
            return lw_fail(err, LW_EMODEL, "%s: tensor %s begins at byte %llu, but %s ends at %llu", source->name,
                           extents[i].key, (unsigned long long)extents[i].begin, before, (unsigned long long)at);
        at = extents[i].end;
        before = extents[i].key;
    }
    if (at != space)
        return lw_fail(err, LW_EMODEL, "%s: %s ends at byte %llu of %llu bytes of data: the rest belongs to no tensor",
                       source->name, before, (unsigned long long)at, (unsigned long long)space);
    return LW_OK;
}

static lw_status read_header(const lw_source *source, char **text, size_t *n, lw_error *err) {
    uint8_t b[8];
    uint64_t size = 0;
    if (source->size < 8)
        return lw_fail(err, LW_EMODEL, "%s: %llu bytes are too few for a model", source->name,
                       (unsigned long long)source->size);
    LW_TRY(lw_source_read(source, 0, b, 8, err));
    for (int i = 8; i-- > 0;) size = size << 8 | b[i];
    if (size > HEADER_CAP)
        return lw_fail(err, LW_EMODEL, "%s: header of %llu bytes, at most %d are read", source->name,
                       (unsigned long long)size, HEADER_CAP);
    if (size < 2 || size > source->size - 8)
        return lw_fail(err, LW_EMODEL, "%s: header of %llu bytes in a file of %llu", source->name,
                       (unsigned long long)size, (unsigned long long)source->size);
    *text = lw_alloc((size_t)size, 1);
    if (!*text) return lw_fail(err, LW_ENOMEM, "%s: no memory for a header of %zu bytes", source->name, (size_t)size);
    *n = (size_t)size;
    LW_TRY(lw_source_read(source, 8, *text, *n, err));
    if (**text != '{') return lw_fail(err, LW_EMODEL, "%s: its header does not begin with '{'", source->name);
    return LW_OK;
}

lw_status lw_safetensors_list(const lw_source *source, lw_listing *listing, lw_error *err) {
    lw_status status = LW_OK;
    char *text = NULL;
    json_t *root = NULL;
    extent *extents = NULL;
    size_t n = 0, n_extents = 0;
    LW_GO(read_header(source, &text, &n, err));

    json_error_t why = {0};
    root = lw_fault_hit() ? NULL : json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!root) {
        status = lw_fail(err, LW_EMODEL, "%s: header is not JSON at byte %d: %s", source->name, why.position, why.text);
        goto out;
    }
    uint64_t base = 8 + (uint64_t)n, space = source->size - base;
    extents = lw_alloc(json_object_size(root), sizeof *extents);
    if (!extents) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for %zu tensors", source->name, json_object_size(root));
        goto out;
    }
    const char *key;
    json_t *info;
    json_object_foreach(root, key, info) {
        if (strcmp(key, "__metadata__") == 0) {
            LW_GO(read_metadata(source, info, listing, err));
            continue;
        }
        lw_entry *entry = lw_listing_add(listing);
        const char *copy = entry ? lw_arena_strdup(listing->arena, key) : NULL;
        if (!copy) {
            status = lw_fail(err, LW_ENOMEM, "%s: no memory for tensor %s", source->name, key);
            goto out;
        }
        entry->tensor.name = entry->tensor.key = copy;
        LW_GO(read_entry(source, base, space, copy, info, entry, &extents[n_extents], err));
        n_extents++;
    }
    status = check_cover(source, extents, n_extents, space, err);
out:
    json_decref(root);
    lw_free(extents);
    lw_free(text);
    return status;
}
