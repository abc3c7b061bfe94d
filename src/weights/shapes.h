/* SPDX-License-Identifier: MIT
 * Inside weights: every tensor of Stable Diffusion 1.5 with ControlNet, by rule from its widths. */
#ifndef LW_SHAPES_H
#define LW_SHAPES_H

#include "weights/names.h"

typedef struct lw_widths {
    int32_t unet, unet_mult[4]; /* of UNet and ControlNet: model_channels and what each level has of it */
    int32_t vae, vae_mult[4];
    int32_t clip, clip_layers, tokens;
    int32_t hint[7]; /* of the hint block's convolutions but the last, which has the UNet's width */
} lw_widths;

extern const lw_widths lw_widths_sd15;
extern const lw_widths lw_widths_small; /* the same networks as narrow as the default heads and groups let them be */

/* What a tensor is for: how a random model fills it. */
typedef enum lw_role {
    LW_ROLE_WEIGHT,   /* of a convolution or a product */
    LW_ROLE_RESIDUAL, /* the same where the result is added to what went in */
    LW_ROLE_BIAS,
    LW_ROLE_SCALE, /* of a norm */
    LW_ROLE_SHIFT,
    LW_ROLE_EMBEDDING,
    LW_ROLE_IDS,     /* 0, 1, 2, … */
    LW_ROLE_SCHEDULE /* a table over the 1,000 timesteps, float whatever the model is */
} lw_role;

typedef struct lw_shape {
    lw_network network; /* LW_NET_NONE: a table of the whole model's, such as "betas" */
    lw_role role;
    const char *name; /* inside the network, in the LDM naming */
    int32_t rank;
    int64_t dims[4];
} lw_shape;

/* All of them, in the order of the released file; everything is the arena's. */
lw_status lw_shapes_make(const lw_widths *widths, lw_arena *arena, lw_shape **shapes, size_t *n, lw_error *err);

#endif
