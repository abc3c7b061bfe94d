/* SPDX-License-Identifier: MIT
 * Inside weights: what the file formats hand to the store. A format lists entries under the file's own keys and knows
 * nothing of networks; the store renames them. */
#ifndef LW_FORMAT_H
#define LW_FORMAT_H

#include "weights/names.h"
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

typedef enum lw_container { LW_CONTAINER_SAFETENSORS, LW_CONTAINER_ZIP } lw_container;

/* By the first bytes. What is recognised but not read is LW_EMODEL with what to do about it. */
lw_status lw_container_of(const lw_source *source, lw_container *container, lw_error *err);

lw_status lw_safetensors_list(const lw_source *source, lw_listing *listing, lw_error *err);

/* torch.save's zip: the archive's directory, its pickle, the tensors in it. */
lw_status lw_torch_list(const lw_source *source, lw_listing *listing, lw_error *err);

/* Where the bytes of a pickle's storage are. */
typedef lw_status (*lw_storage_fn)(void *user, const char *key, uint64_t *offset, uint64_t *bytes, lw_error *err);

/* Lists the tensors of a pickled state dict (itself, or under "state_dict"). Nothing of it is run: what is no tensor
 * becomes an inert object. */
lw_status lw_pickle_list(const char *file, const uint8_t *bytes, size_t n, lw_storage_fn find, void *user,
                         lw_listing *listing, lw_error *err);

/* The weight files of a diffusers folder, or of one component's. The files of a network stand together: its weights
 * may be in several. */
enum { LW_FOLDER_FILES = 64 };
typedef struct lw_folder {
    struct {
        const char *path; /* in the arena */
        lw_network network;
    } files[LW_FOLDER_FILES];
    size_t n;
} lw_folder;

/* part: the network that the folder is of, or LW_NET_NONE for a whole model. */
lw_status lw_folder_find(const char *path, lw_network part, lw_arena *arena, lw_folder *folder, lw_error *err);
/* What the folder's config.json files say beyond shapes, as the metadata "linework", where no file has one. */
lw_status lw_folder_config(const char *path, lw_listing *listing, lw_error *err);

/* ---- writing */

/* A file being written: made beside its name, put in place by closing it. */
typedef struct lw_sink {
    const char *path; /* borrowed */
    char *beside;     /* NULL: a device or FIFO, written directly */
    int fd;
    uint64_t at; /* bytes so far */
} lw_sink;

lw_status lw_sink_open(lw_sink *sink, const char *path, lw_error *err);
lw_status lw_sink_put(lw_sink *sink, const void *bytes, size_t n, lw_error *err);
/* In place if status is LW_OK, else gone; the status, or that of the closing. */
lw_status lw_sink_close(lw_sink *sink, lw_status status, lw_error *err);

/* Bytes that grow; `failed` stays set once memory was short. Freed with lw_free(data). */
typedef struct lw_text {
    char *data;
    size_t n, room;
    bool failed;
} lw_text;

void lw_text_add(lw_text *text, const void *bytes, size_t n);

/* The bytes of tensors[i]: its own, or those that load makes in a new *buffer, freed with lw_free. */
lw_status lw_save_bytes(const char *path, const lw_save *save, size_t i, void **buffer, const void **data,
                        size_t *bytes, lw_error *err);

/* Elements of dims[rank] and row-major strides; false on overflow or a negative dimension. */
bool lw_shape_count(const int64_t *dims, int32_t rank, int64_t *strides, size_t *n);

#endif
