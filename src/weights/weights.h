/* SPDX-License-Identifier: MIT
 * weights: checkpoint files as a table of tensors under canonical names (= the LDM names of control_sd15_canny.pth
 * without "model.diffusion_model." etc.: see the prefixes below). Knows file formats and names; must not know ops or
 * networks' mathematics. Files are read with pread, never mapped: docs/decisions/0006-weights-are-read-not-mapped.md.
 *
 * Canonical names: "unet.", "control.", "vae.", "clip." + the LDM key inside that network, e.g.
 * "unet.input_blocks.1.0.in_layers.0.weight", "control.zero_convs.0.0.weight", "vae.decoder.conv_in.weight",
 * "clip.text_model.embeddings.token_embedding.weight". */
#ifndef LW_WEIGHTS_H
#define LW_WEIGHTS_H

#include "base/base.h"

#define LW_MAX_RANK 8

typedef struct lw_tensor {
    const char *name; /* canonical; borrowed until the store is closed */
    const char *key;  /* as the file spells it; borrowed likewise */
    lw_dtype dtype;
    int32_t rank;
    int64_t dims[LW_MAX_RANK];    /* row major, outermost first */
    int64_t strides[LW_MAX_RANK]; /* in elements; contiguous but for odd .pth files */
    size_t n;                     /* elements */
    uint32_t source;              /* which of the store's files, */
    uint64_t offset;              /* and where in it element 0 is */
} lw_tensor;

typedef struct lw_weights lw_weights; /* immutable after open; safe to share between threads */

/* Opens a model of any supported layout. LW_EMODEL names file and tensor. */
lw_status lw_weights_open(lw_weights **out, const char *path, lw_error *err);
/* The same for a ControlNet or a VAE given by itself: every key is taken as of that network ("control" or "vae"). */
lw_status lw_weights_open_part(lw_weights **out, const char *path, const char *network, lw_error *err);
/* lw_weights_open of a file's bytes, borrowed until the store is closed; name stands in messages. */
lw_status lw_weights_open_memory(lw_weights **out, const void *bytes, size_t n_bytes, const char *name, lw_error *err);
void lw_weights_close(lw_weights **weights);

/* NULL if there is none of that name. */
const lw_tensor *lw_weights_find(const lw_weights *weights, const char *name);
size_t lw_weights_count(const lw_weights *weights);
const lw_tensor *lw_weights_at(const lw_weights *weights, size_t i); /* sorted by name */
size_t lw_weights_ignored(const lw_weights *weights);                /* keys of no network of ours */
/* The metadata value of key ("linework" for ours), or NULL. Borrowed until the store is closed. */
const char *lw_weights_metadata(const lw_weights *weights, const char *key);
const lw_field *lw_weights_fields(const lw_weights *weights, size_t *n); /* all of it, in file order */
bool lw_weights_reads(const lw_weights *weights, const char *path);      /* is path one of its files? */
uint64_t lw_weights_file_bytes(const lw_weights *weights);               /* of all files together */
/* "safetensors-ldm", "torch-zip-ldm", "diffusers-folder", … */
const char *lw_weights_layout(const lw_weights *weights);
const char *lw_weights_path(const lw_weights *weights);

/* All elements as contiguous row-major floats into dst[tensor->n]. Safe from several threads at once. LW_EMODEL if the
 * file was cut since it was opened, can't be read, or a value is NaN or infinite. */
lw_status lw_tensor_read(const lw_weights *weights, const lw_tensor *tensor, float *dst, lw_error *err);
/* The same for n of the rows that dims[0] counts, from `row` on. */
lw_status lw_tensor_read_rows(const lw_weights *weights, const lw_tensor *tensor, int64_t row, int64_t n, float *dst,
                              lw_error *err);

/* What lw_model_info promises, from the headers of path alone: {"path","layout","file_bytes","tensors","ignored",
 * "networks":{"unet":{"tensors","parameters","bytes","dtypes":{"F16":tensors}}},"metadata":{key:text}}. *json is freed
 * with lw_free. */
lw_status lw_weights_describe(const char *path, char **json, lw_error *err);

/* ---- for doctor. report is a json_t object of jansson's, which gets new members. */
struct json_t;
/* "widths": {network: "sd15" or "small"} of the networks that have the widths of one; of these "missing" (canonical
 * names), "extra" and "unused" (keys that the first two networks, or the others, have no place for) and "misshaped"
 * (sentences). */
lw_status lw_weights_audit_shapes(const lw_weights *weights, struct json_t *report, lw_error *err);
/* "damaged": a sentence for each tensor with NaN or infinity, or that can't be read. Reads every value. */
lw_status lw_weights_audit_values(const lw_weights *weights, lw_bytes_fn progress, void *user, struct json_t *report,
                                  lw_error *err);
/* Whether the file is of a family that linework does not have: its name and what to do, or NULL. */
lw_status lw_weights_other_release(const char *path, const char **name, const char **advice, lw_error *err);

/* ---- writing */

typedef struct lw_save_tensor {
    const char *name;
    lw_dtype dtype;
    int32_t rank;
    int64_t dims[LW_MAX_RANK];
    const void *data; /* little endian, row major; NULL: the load callback is asked for it */
} lw_save_tensor;

/* Fills dst with the bytes of tensors[i]: a 5.7 GB model is written one tensor at a time. */
typedef lw_status (*lw_save_load_fn)(void *user, size_t i, void *dst, lw_error *err);

typedef struct lw_save {
    const lw_save_tensor *tensors; /* in any order */
    size_t n;
    const lw_field *metadata; /* string -> string, sorted by key when written */
    size_t n_metadata;
    lw_save_load_fn load; /* may be NULL when every tensor has data */
    void *user;
} lw_save;

/* Writes safetensors: the bytes that safetensors' own writer makes (elements of larger types first, then by name). A
 * temporary file beside path is renamed when whole; a device or FIFO is written directly. LW_EOUTPUT on failure. */
lw_status lw_safetensors_write(const char *path, const lw_save *save, lw_error *err);

/* Writes what torch.save does: a zip of stored entries with a pickle, metadata left out. wrapped: the tensors stand
 * under "state_dict", as in Lightning's checkpoints. Files as above. */
lw_status lw_torch_write(const char *path, const lw_save *save, bool wrapped, lw_error *err);

/* n floats as dtype, rounded to nearest even; of the integers only I64 (for position_ids). */
void lw_from_f32(lw_dtype dtype, const float *src, void *dst, size_t n);

#endif
