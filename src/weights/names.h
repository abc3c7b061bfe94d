/* SPDX-License-Identifier: MIT
 * Inside weights: which network a key belongs to and its canonical name there. */
#ifndef LW_NAMES_H
#define LW_NAMES_H

#include "base/base.h"

typedef enum lw_network {
    LW_NET_NONE = -1,
    LW_NET_UNET,
    LW_NET_CONTROL,
    LW_NET_VAE,
    LW_NET_CLIP,
    LW_N_NETS
} lw_network;

const char *lw_network_name(lw_network network); /* "unet", "control", "vae", "clip" */

/* The network of a key in the LDM naming and, in *rest, the part of the key that is the name inside it. */
lw_network lw_ldm_network(const char *key, const char **rest);

/* "unet." + rest in the arena; CLIP keys without "text_model." get it. NULL: no memory. */
char *lw_canonical_name(lw_arena *arena, lw_network network, const char *rest);

#endif
