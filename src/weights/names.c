/* SPDX-License-Identifier: MIT */
#include "weights/names.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *ldm_prefix;
} networks[LW_N_NETS] = {
    [LW_NET_UNET] = {"unet", "model.diffusion_model."},
    [LW_NET_CONTROL] = {"control", "control_model."},
    [LW_NET_VAE] = {"vae", "first_stage_model."},
    [LW_NET_CLIP] = {"clip", "cond_stage_model.transformer."},
};

const char *lw_network_name(lw_network network) { return networks[network].name; }

lw_network lw_ldm_network(const char *key, const char **rest) {
    for (int i = 0; i < LW_N_NETS; i++) {
        size_t n = strlen(networks[i].ldm_prefix);
        if (strncmp(key, networks[i].ldm_prefix, n) == 0) {
            *rest = key + n;
            return (lw_network)i;
        }
    }
    return LW_NET_NONE;
}

char *lw_canonical_name(lw_arena *arena, lw_network network, const char *rest) {
    /* transformers 5 saves a CLIPTextModel without this prefix, every earlier one with it. */
    const char *inner = network == LW_NET_CLIP && strncmp(rest, "text_model.", 11) != 0 ? "text_model." : "";
    size_t n = strlen(networks[network].name) + 1 + strlen(inner) + strlen(rest) + 1;
    char *name = lw_arena_alloc(arena, n, 1);
    if (name) snprintf(name, n, "%s.%s%s", networks[network].name, inner, rest);
    return name;
}
