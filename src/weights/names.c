/* SPDX-License-Identifier: MIT
 * The tables. A row is a piece of a name in both namings; {x} is a number, and the pieces of `inner` follow. What is
 * left at the end is "weight" or "bias". The letters:
 *
 *   b j n m   level, block in it, and plain counters: the same number in both namings
 *   d D u U   LDM's count of input and output blocks: d a block, D the level's downsampler; u a block, U its last one
 *   k         where LDM puts the upsampler in its block: after the attention, if there is one
 *   h H       LDM's index of a hint convolution (every second is a SiLU): h in between, H the last
 *   r         LDM counts the VAE decoder's levels from the last one */
#include "weights/names.h"

#include <stdio.h>
#include <string.h>

typedef struct row {
    const char *ldm, *diffusers; /* diffusers NULL: as ldm */
    const struct row *inner;
} row;

static const row resnet[] = {{"in_layers.0.", "norm1.", NULL},
                             {"in_layers.2.", "conv1.", NULL},
                             {"emb_layers.1.", "time_emb_proj.", NULL},
                             {"out_layers.0.", "norm2.", NULL},
                             {"out_layers.3.", "conv2.", NULL},
                             {"skip_connection.", "conv_shortcut.", NULL},
                             {0}};

static const row transformer[] = {{"norm.", NULL, NULL},
                                  {"proj_in.", NULL, NULL},
                                  {"proj_out.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn1.to_q.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn1.to_k.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn1.to_v.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn1.to_out.0.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn2.to_q.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn2.to_k.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn2.to_v.", NULL, NULL},
                                  {"transformer_blocks.{n}.attn2.to_out.0.", NULL, NULL},
                                  {"transformer_blocks.{n}.ff.net.0.proj.", NULL, NULL},
                                  {"transformer_blocks.{n}.ff.net.2.", NULL, NULL},
                                  {"transformer_blocks.{n}.norm1.", NULL, NULL},
                                  {"transformer_blocks.{n}.norm2.", NULL, NULL},
                                  {"transformer_blocks.{n}.norm3.", NULL, NULL},
                                  {0}};

#define ENCODER                                                                                                        \
    {"time_embed.0.", "time_embedding.linear_1.", NULL}, {"time_embed.2.", "time_embedding.linear_2.", NULL},          \
        {"input_blocks.0.0.", "conv_in.", NULL},                                                                       \
        {"input_blocks.{D}.0.op.", "down_blocks.{b}.downsamplers.0.conv.", NULL},                                      \
        {"input_blocks.{d}.0.", "down_blocks.{b}.resnets.{j}.", resnet},                                               \
        {"input_blocks.{d}.1.", "down_blocks.{b}.attentions.{j}.", transformer},                                       \
        {"middle_block.0.", "mid_block.resnets.0.", resnet},                                                           \
        {"middle_block.1.", "mid_block.attentions.0.", transformer}, {                                                 \
        "middle_block.2.", "mid_block.resnets.1.", resnet                                                              \
    }

static const row unet[] = {ENCODER,
                           {"output_blocks.{U}.{k}.conv.", "up_blocks.{b}.upsamplers.0.conv.", NULL},
                           {"output_blocks.{u}.0.", "up_blocks.{b}.resnets.{j}.", resnet},
                           {"output_blocks.{u}.1.", "up_blocks.{b}.attentions.{j}.", transformer},
                           {"out.0.", "conv_norm_out.", NULL},
                           {"out.2.", "conv_out.", NULL},
                           {0}};

static const row control[] = {ENCODER,
                              {"input_hint_block.0.", "controlnet_cond_embedding.conv_in.", NULL},
                              {"input_hint_block.{H}.", "controlnet_cond_embedding.conv_out.", NULL},
                              {"input_hint_block.{h}.", "controlnet_cond_embedding.blocks.{n}.", NULL},
                              {"zero_convs.{n}.0.", "controlnet_down_blocks.{n}.", NULL},
                              {"middle_block_out.0.", "controlnet_mid_block.", NULL},
                              {0}};

static const row vae_resnet[] = {{"norm1.", NULL, NULL},
                                 {"conv1.", NULL, NULL},
                                 {"norm2.", NULL, NULL},
                                 {"conv2.", NULL, NULL},
                                 {"nin_shortcut.", "conv_shortcut.", NULL},
                                 {0}};

/* The first row of a piece is what is written today; older files have the others. */
static const row vae_attention[] = {{"norm.", "group_norm.", NULL},
                                    {"q.", "to_q.", NULL},
                                    {"k.", "to_k.", NULL},
                                    {"v.", "to_v.", NULL},
                                    {"proj_out.", "to_out.0.", NULL},
                                    {"q.", "query.", NULL},
                                    {"k.", "key.", NULL},
                                    {"v.", "value.", NULL},
                                    {"proj_out.", "proj_attn.", NULL},
                                    {0}};

#define ENDS(side)                                                                                                     \
    {side ".conv_in.", NULL, NULL}, {side ".conv_out.", NULL, NULL},                                                   \
        {side ".norm_out.", side ".conv_norm_out.", NULL},                                                             \
        {side ".mid.block_1.", side ".mid_block.resnets.0.", vae_resnet},                                              \
        {side ".mid.block_2.", side ".mid_block.resnets.1.", vae_resnet}, {                                            \
        side ".mid.attn_1.", side ".mid_block.attentions.0.", vae_attention                                            \
    }

static const row vae[] = {ENDS("encoder"),
                          ENDS("decoder"),
                          {"encoder.down.{b}.block.{j}.", "encoder.down_blocks.{b}.resnets.{j}.", vae_resnet},
                          {"encoder.down.{b}.downsample.conv.", "encoder.down_blocks.{b}.downsamplers.0.conv.", NULL},
                          {"decoder.up.{r}.block.{j}.", "decoder.up_blocks.{b}.resnets.{j}.", vae_resnet},
                          {"decoder.up.{r}.upsample.conv.", "decoder.up_blocks.{b}.upsamplers.0.conv.", NULL},
                          {"quant_conv.", NULL, NULL},
                          {"post_quant_conv.", NULL, NULL},
                          {0}};

static const row clip[] = {{"text_model.embeddings.token_embedding.", NULL, NULL},
                           {"text_model.embeddings.position_embedding.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.self_attn.q_proj.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.self_attn.k_proj.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.self_attn.v_proj.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.self_attn.out_proj.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.layer_norm1.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.layer_norm2.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.mlp.fc1.", NULL, NULL},
                           {"text_model.encoder.layers.{n}.mlp.fc2.", NULL, NULL},
                           {"text_model.final_layer_norm.", NULL, NULL},
                           {0}};

static const struct {
    const char *name, *ldm_prefix;
    const row *rows;
} networks[LW_N_NETS] = {
    [LW_NET_UNET] = {"unet", "model.diffusion_model.", unet},
    [LW_NET_CONTROL] = {"control", "control_model.", control},
    [LW_NET_VAE] = {"vae", "first_stage_model.", vae},
    [LW_NET_CLIP] = {"clip", "cond_stage_model.transformer.", clip},
};

const lw_signature lw_signatures[] = {
    {"input_hint_block.0.weight", LW_NET_CONTROL, LW_NAMING_LDM},
    {"controlnet_cond_embedding.conv_in.weight", LW_NET_CONTROL, LW_NAMING_DIFFUSERS},
    {"output_blocks.0.0.in_layers.0.weight", LW_NET_UNET, LW_NAMING_LDM},
    {"up_blocks.0.resnets.0.norm1.weight", LW_NET_UNET, LW_NAMING_DIFFUSERS},
    {"decoder.up.0.block.0.norm1.weight", LW_NET_VAE, LW_NAMING_LDM},
    {"decoder.up_blocks.0.resnets.0.norm1.weight", LW_NET_VAE, LW_NAMING_DIFFUSERS},
    {"text_model.embeddings.token_embedding.weight", LW_NET_CLIP, LW_NAMING_LDM}, /* the same in both */
    {"embeddings.token_embedding.weight", LW_NET_CLIP, LW_NAMING_LDM},
    {NULL, LW_NET_NONE, LW_NAMING_LDM},
};

const char *lw_network_name(lw_network network) { return networks[network].name; }

const char *lw_network_prefix(lw_network network) { return networks[network].ldm_prefix; }

lw_network lw_canonical_network(const char *name, const char **rest) {
    for (int i = 0; i < LW_N_NETS; i++) {
        size_t n = strlen(networks[i].name);
        if (strncmp(name, networks[i].name, n) != 0 || name[n] != '.') continue;
        *rest = name + n + 1;
        return (lw_network)i;
    }
    return LW_NET_NONE;
}

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

/* ---- pieces: numbers by letter */

typedef struct numbers {
    int of['z' + 1];
} numbers;

/* Takes the piece off the front of *name and its numbers into v. */
static bool take(const char **name, const char *piece, numbers *v) {
    const char *s = *name;
    for (const char *p = piece; *p; p++) {
        if (*p != '{') {
            if (*s++ != *p) return false;
            continue;
        }
        int n = 0, digits = 0;
        while (*s >= '0' && *s <= '9' && digits < 4) n = n * 10 + (*s++ - '0'), digits++;
        if (digits == 0 || digits == 4 || (digits > 1 && s[-digits] == '0')) return false;
        v->of[(unsigned char)p[1]] = n;
        p += 2;
    }
    *name = s;
    return true;
}

static size_t put(char *out, size_t at, const char *piece, const numbers *v) {
    for (const char *p = piece; *p && at < LW_NAME_CAP; p++) {
        if (*p != '{') {
            out[at++] = *p;
            continue;
        }
        int n = snprintf(out + at, LW_NAME_CAP - at, "%d", v->of[(unsigned char)p[1]]);
        at += n > 0 ? (size_t)n : 0;
        p += 2;
    }
    return at;
}

/* diffusers' numbers to LDM's. */
static bool to_ldm_numbers(const lw_geometry *g, numbers *v) {
    int b = v->of['b'], j = v->of['j'], period = g->res_blocks + 1;
    v->of['d'] = b * period + j + 1;
    v->of['D'] = (b + 1) * period;
    v->of['u'] = b * period + j;
    v->of['U'] = b * period + g->res_blocks;
    v->of['k'] = b < LW_NAME_LEVELS && g->up_attention[b] ? 2 : 1;
    v->of['h'] = 2 * v->of['n'] + 2;
    v->of['H'] = 2 * g->hint_blocks + 2;
    v->of['r'] = g->levels - 1 - b;
    return v->of['r'] >= 0 || g->levels == 0;
}

/* And back, for the letters that this piece has; false where the piece is of another row (a block's index where only
 * a downsampler can be). */
static bool to_diffusers_numbers(const lw_geometry *g, const char *piece, numbers *v) {
    int period = g->res_blocks + 1;
    if (strstr(piece, "{d}")) {
        v->of['b'] = (v->of['d'] - 1) / period;
        v->of['j'] = (v->of['d'] - 1) % period;
        if (v->of['d'] == 0 || v->of['j'] == g->res_blocks) return false;
    }
    if (strstr(piece, "{D}")) {
        v->of['b'] = v->of['D'] / period - 1;
        if (v->of['D'] == 0 || v->of['D'] % period != 0) return false;
    }
    if (strstr(piece, "{u}")) v->of['b'] = v->of['u'] / period, v->of['j'] = v->of['u'] % period;
    if (strstr(piece, "{U}")) {
        v->of['b'] = v->of['U'] / period;
        if (v->of['U'] % period != g->res_blocks) return false;
    }
    if (strstr(piece, "{H}") && v->of['H'] != 2 * g->hint_blocks + 2) return false;
    if (strstr(piece, "{h}")) {
        v->of['n'] = v->of['h'] / 2 - 1;
        if (v->of['h'] < 2 || v->of['h'] % 2 != 0) return false;
    }
    if (strstr(piece, "{r}")) v->of['b'] = g->levels - 1 - v->of['r'];
    return v->of['b'] >= 0;
}

/* ---- names */

typedef enum direction { LDM_ONLY, TO_LDM, TO_DIFFUSERS } direction;

static bool is_ending(const char *s) { return strcmp(s, "weight") == 0 || strcmp(s, "bias") == 0; }

static bool translate(const row *rows, const lw_geometry *g, direction way, const char *name, char *out, size_t at) {
    for (const row *r = rows; r->ldm; r++) {
        const char *ldm = r->ldm, *diffusers = r->diffusers ? r->diffusers : r->ldm, *rest = name;
        numbers v = {{0}};
        if (!take(&rest, way == TO_LDM ? diffusers : ldm, &v)) continue;
        if (way == TO_LDM && !to_ldm_numbers(g, &v)) continue;
        if (way == TO_DIFFUSERS && !to_diffusers_numbers(g, ldm, &v)) continue;
        size_t end = put(out, at, way == TO_DIFFUSERS ? diffusers : ldm, &v);
        if (end >= LW_NAME_CAP - 16) return false;
        if (r->inner) {
            if (translate(r->inner, g, way, rest, out, end)) return true;
        } else if (is_ending(rest)) {
            snprintf(out + end, LW_NAME_CAP - end, "%s", rest);
            return true;
        }
    }
    return false;
}

static const char *with_text_model(lw_network network, const char *name, char buffer[LW_NAME_CAP]) {
    if (network != LW_NET_CLIP || strncmp(name, "text_model.", 11) == 0) return name;
    snprintf(buffer, LW_NAME_CAP, "text_model.%s", name);
    return buffer;
}

bool lw_name_is_ldm(lw_network network, const char *name) {
    char full[LW_NAME_CAP], out[LW_NAME_CAP];
    lw_geometry any = {0};
    name = with_text_model(network, name, full);
    if (network == LW_NET_CLIP && strcmp(name, "text_model.embeddings.position_ids") == 0) return true;
    return translate(networks[network].rows, &any, LDM_ONLY, name, out, 0);
}

bool lw_name_to_ldm(lw_network network, const lw_geometry *g, const char *name, char out[LW_NAME_CAP]) {
    if (network == LW_NET_CLIP) {
        if (!lw_name_is_ldm(network, name)) return false;
        const char *full = with_text_model(network, name, out);
        if (full != out) snprintf(out, LW_NAME_CAP, "%s", full);
        return true;
    }
    return translate(networks[network].rows, g, TO_LDM, name, out, 0);
}

bool lw_name_to_diffusers(lw_network network, const lw_geometry *g, const char *name, char out[LW_NAME_CAP]) {
    if (network == LW_NET_CLIP) return lw_name_to_ldm(network, g, name, out);
    return translate(networks[network].rows, g, TO_DIFFUSERS, name, out, 0);
}

static void at_least(int *value, int n) {
    if (n > *value) *value = n;
}

static void see_diffusers(lw_geometry *g, lw_network network, const char *name) {
    numbers v = {{0}};
    const char *s = name;
    if (network == LW_NET_VAE) {
        if (take(&s, "decoder.up_blocks.{b}.", &v) || take(&s, "encoder.down_blocks.{b}.", &v))
            at_least(&g->levels, v.of['b'] + 1);
        return;
    }
    if (take(&s, "down_blocks.0.resnets.{j}.", &v)) at_least(&g->res_blocks, v.of['j'] + 1);
    if (take(&s, "controlnet_cond_embedding.blocks.{n}.", &v)) at_least(&g->hint_blocks, v.of['n'] + 1);
    if (take(&s, "up_blocks.{b}.attentions.", &v) && v.of['b'] < LW_NAME_LEVELS) g->up_attention[v.of['b']] = true;
}

void lw_geometry_see(lw_geometry *g, lw_network network, lw_naming naming, const char *name) {
    numbers v = {{0}};
    const char *s = name;
    if (naming == LW_NAMING_DIFFUSERS) {
        see_diffusers(g, network, name);
    } else if (network == LW_NET_VAE) {
        if (take(&s, "decoder.up.{r}.", &v) || take(&s, "encoder.down.{r}.", &v)) at_least(&g->levels, v.of['r'] + 1);
    } else if (take(&s, "input_blocks.{D}.0.op.", &v)) { /* the first downsampler ends the first level */
        if (v.of['D'] > 1 && (g->res_blocks == 0 || v.of['D'] - 1 < g->res_blocks)) g->res_blocks = v.of['D'] - 1;
    } else if (take(&s, "input_hint_block.{H}.", &v)) {
        at_least(&g->hint_blocks, v.of['H'] / 2 - 1);
    }
}

bool lw_name_is_1x1(lw_network network, const char *name) {
    size_t n = strlen(name);
    if (network == LW_NET_VAE) return strstr(name, ".mid.attn_1.") && n > 7 && strcmp(name + n - 7, ".weight") == 0;
    if (network == LW_NET_CLIP) return false;
    return (n > 15 && strcmp(name + n - 15, ".proj_in.weight") == 0) ||
           (n > 16 && strcmp(name + n - 16, ".proj_out.weight") == 0 && !strstr(name, "attn"));
}

char *lw_canonical_name(lw_arena *arena, lw_network network, const char *ldm_name) {
    char full[LW_NAME_CAP];
    const char *inner = with_text_model(network, ldm_name, full);
    size_t n = strlen(networks[network].name) + 1 + strlen(inner) + 1;
    char *name = lw_arena_alloc(arena, n, 1);
    if (name) snprintf(name, n, "%s.%s", networks[network].name, inner);
    return name;
}
