/* SPDX-License-Identifier: MIT
 * weights: checkpoint files, memory-mapped, as a table of tensors under canonical names (= the LDM names of
 * control_sd15_canny.pth without "model.diffusion_model." etc.: see the prefixes below). Knows file formats and names;
 * must not know ops or networks' mathematics.
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
    lw_dtype dtype;
    int32_t rank;
    int64_t dims[LW_MAX_RANK];    /* row major, outermost first */
    int64_t strides[LW_MAX_RANK]; /* in elements; contiguous but for odd .pth files */
    const void *data; /* mapped; a read past a truncated file is caught by lw_tensor_read, so read through that */
    size_t n;         /* elements */
} lw_tensor;

typedef struct lw_weights lw_weights; /* immutable after open; safe to share between threads */

/* Opens a model of any supported layout. LW_EMODEL names file and tensor. */
lw_status lw_weights_open(lw_weights **out, const char *path, lw_error *err);
/* The same for a ControlNet or a VAE given by itself: every key is taken as of that network ("control" or "vae"). */
lw_status lw_weights_open_part(lw_weights **out, const char *path, const char *network, lw_error *err);
void lw_weights_close(lw_weights **weights);

/* NULL if there is none of that name. */
const lw_tensor *lw_weights_find(const lw_weights *weights, const char *name);
size_t lw_weights_count(const lw_weights *weights);
const lw_tensor *lw_weights_at(const lw_weights *weights, size_t i); /* sorted by name */
size_t lw_weights_ignored(const lw_weights *weights);                /* keys of no network of ours */
/* The metadata value of key ("linework" for ours), or NULL. */
const char *lw_weights_metadata(const lw_weights *weights, const char *key);
/* "safetensors-ldm", "torch-zip-ldm", "diffusers-folder", … */
const char *lw_weights_layout(const lw_weights *weights);
const char *lw_weights_path(const lw_weights *weights);

/* All elements as contiguous row-major floats into dst[tensor->n]. LW_EMODEL if the file was truncated under its map or
 * a value is NaN or infinite. */
lw_status lw_tensor_read(const lw_weights *weights, const lw_tensor *tensor, float *dst, lw_error *err);

/* Tells the kernel that the pages of the tensor are not needed again soon. */
void lw_tensor_release(const lw_weights *weights, const lw_tensor *tensor);

#endif
