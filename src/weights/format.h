/* SPDX-License-Identifier: MIT
 * Inside weights: what the file formats hand to the store. A format lists entries under the file's own keys and knows
 * nothing of networks; the store renames them. */
#ifndef LW_FORMAT_H
#define LW_FORMAT_H

#include "weights/weights.h"

/* A file, or bytes in memory, read at offsets. */
typedef struct lw_source {
    const char *name; /* for messages */
    int fd;           /* -1: bytes */
    const uint8_t *bytes;
    uint64_t size;
} lw_source;

lw_status lw_source_open(lw_source *source, const char *path, lw_error *err); /* borrows path until closed */
void lw_source_close(lw_source *source);
/* Exactly n bytes, or LW_EMODEL with both sizes. */
lw_status lw_source_read(const lw_source *source, uint64_t offset, void *dst, size_t n, lw_error *err);

typedef struct lw_entry {
    lw_tensor tensor; /* name and key are the file's key */
    const char *type; /* NULL, or a type that linework does not read: an error only if the tensor is needed */
} lw_entry;

/* What one file holds; all memory is the arena's but for the growing array. */
typedef struct lw_listing {
    lw_arena *arena;
    lw_entry *entries;
    size_t n, room;
    lw_field *metadata; /* in the arena */
    size_t n_metadata;
    uint32_t source; /* stamped on the entries that are added */
} lw_listing;

/* A zeroed entry at the end, or NULL: no memory. */
lw_entry *lw_listing_add(lw_listing *listing);

lw_status lw_safetensors_list(const lw_source *source, lw_listing *listing, lw_error *err);

/* Elements of dims[rank] and row-major strides; false on overflow or a negative dimension. */
bool lw_shape_count(const int64_t *dims, int32_t rank, int64_t *strides, size_t *n);

#endif
