/* SPDX-License-Identifier: MIT
 * Inside weights: which network a key belongs to, and its names in the LDM and in the diffusers naming. One table a
 * network holds both. */
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
typedef enum lw_naming { LW_NAMING_LDM, LW_NAMING_DIFFUSERS } lw_naming;

enum { LW_NAME_CAP = 256, LW_NAME_LEVELS = 16 };

const char *lw_network_name(lw_network network); /* "unet", "control", "vae", "clip" */

const char *lw_network_prefix(lw_network network); /* of its keys in the LDM naming: "control_model." */

/* The network of a canonical name ("unet.out.2.weight") and, in *rest, the name after it. */
lw_network lw_canonical_network(const char *name, const char **rest);

/* The network of a key with its LDM prefix ("control_model."…) and, in *rest, the name after it. */
lw_network lw_ldm_network(const char *key, const char **rest);

/* What the numbers in the names of one network mean: LDM counts blocks through, diffusers a level at a time. */
typedef struct lw_geometry {
    int res_blocks;                   /* a level, on the way down */
    int levels;                       /* of the VAE */
    int hint_blocks;                  /* between the first and the last convolution of the hint block */
    bool up_attention[LW_NAME_LEVELS]; /* of the diffusers level */
} lw_geometry;

/* Learns from one more name of the network (without prefix). Begin with a zeroed geometry. */
void lw_geometry_see(lw_geometry *geometry, lw_network network, lw_naming naming, const char *name);

/* Is this a name of the network in the LDM naming? CLIP's may lack "text_model.". */
bool lw_name_is_ldm(lw_network network, const char *name);
/* One naming's name in the other; false: the network has no such name. */
bool lw_name_to_ldm(lw_network network, const lw_geometry *g, const char *name, char out[LW_NAME_CAP]);
bool lw_name_to_diffusers(lw_network network, const lw_geometry *g, const char *name, char out[LW_NAME_CAP]);

/* Files of one network without prefixes are known by one of these keys; NULL ends the list. */
typedef struct lw_signature {
    const char *key;
    lw_network network;
    lw_naming naming;
} lw_signature;
extern const lw_signature lw_signatures[];

/* Does the LDM naming have a 1x1 convolution here, where diffusers may have a matrix? */
bool lw_name_is_1x1(lw_network network, const char *ldm_name);

/* "unet." + the LDM name, in the arena; CLIP's get "text_model." where they lack it. NULL: no memory. */
char *lw_canonical_name(lw_arena *arena, lw_network network, const char *ldm_name);

#endif
