/* SPDX-License-Identifier: MIT
 * The names and shapes of control_sd15_canny.pth, from the constructors' rules (openaimodel, cldm, AutoencoderKL,
 * CLIPTextModel). tests/unit/make_test.c holds them against the released file's. */
#include "weights/shapes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const lw_widths lw_widths_sd15 = {.unet = 320,
                                  .unet_mult = {1, 2, 4, 4},
                                  .vae = 128,
                                  .vae_mult = {1, 2, 4, 4},
                                  .clip = 768,
                                  .clip_layers = 12,
                                  .tokens = 49408,
                                  .hint = {16, 16, 32, 32, 96, 96, 256}};
/* 514 tokens: the bytes alone, so that any vocabulary fits. */
const lw_widths lw_widths_small = {.unet = 32,
                                   .unet_mult = {1, 2, 2, 2},
                                   .vae = 32,
                                   .vae_mult = {1, 1, 2, 2},
                                   .clip = 64,
                                   .clip_layers = 2,
                                   .tokens = 514,
                                   .hint = {8, 8, 16, 16, 24, 24, 32}};

enum { MAX_SHAPES = 2048, RES_BLOCKS = 2, LEVELS = 4, ATTENTION_LEVELS = 3, TIMESTEPS = 1000 };

typedef struct list {
    lw_arena *arena;
    lw_shape *shapes;
    size_t n;
    lw_network network;
    bool failed;
} list;

static void add(list *l, lw_role role, const char *name, const char *ending, int32_t rank, const int64_t *dims) {
    size_t room = strlen(name) + strlen(ending) + 1;
    char *whole = l->n < MAX_SHAPES ? lw_arena_alloc(l->arena, room, 1) : NULL;
    if (!whole) {
        l->failed = true;
        return;
    }
    snprintf(whole, room, "%s%s", name, ending);
    lw_shape *s = &l->shapes[l->n++];
    *s = (lw_shape){.network = l->network, .role = role, .name = whole, .rank = rank};
    for (int32_t i = 0; i < rank; i++) s->dims[i] = dims[i];
}

static void norm(list *l, const char *name, int64_t c) {
    add(l, LW_ROLE_SCALE, name, ".weight", 1, &c);
    add(l, LW_ROLE_SHIFT, name, ".bias", 1, &c);
}

static void conv(list *l, lw_role role, const char *name, int64_t out, int64_t in, int64_t kernel) {
    add(l, role, name, ".weight", 4, (int64_t[]){out, in, kernel, kernel});
    add(l, LW_ROLE_BIAS, name, ".bias", 1, &out);
}

static void product(list *l, lw_role role, const char *name, int64_t out, int64_t in, bool bias) {
    add(l, role, name, ".weight", 2, (int64_t[]){out, in});
    if (bias) add(l, LW_ROLE_BIAS, name, ".bias", 1, &out);
}

/* name of a part: only good until the next call's use of the same buffer */
typedef struct part {
    char text[LW_NAME_CAP];
} part;

static const char *in(part *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *in(part *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(p->text, sizeof p->text, format, args);
    va_end(args);
    return p->text;
}

/* ---- UNet and ControlNet */

static void res_block(list *l, const char *name, int64_t c_in, int64_t c_out, int64_t embedding) {
    part p;
    norm(l, in(&p, "%s.in_layers.0", name), c_in);
    conv(l, LW_ROLE_WEIGHT, in(&p, "%s.in_layers.2", name), c_out, c_in, 3);
    product(l, LW_ROLE_WEIGHT, in(&p, "%s.emb_layers.1", name), c_out, embedding, true);
    norm(l, in(&p, "%s.out_layers.0", name), c_out);
    conv(l, LW_ROLE_RESIDUAL, in(&p, "%s.out_layers.3", name), c_out, c_out, 3);
    if (c_in != c_out) conv(l, LW_ROLE_WEIGHT, in(&p, "%s.skip_connection", name), c_out, c_in, 1);
}

static void transformer(list *l, const char *name, int64_t c, int64_t context) {
    part p;
    norm(l, in(&p, "%s.norm", name), c);
    conv(l, LW_ROLE_WEIGHT, in(&p, "%s.proj_in", name), c, c, 1);
    for (int a = 1; a <= 2; a++) {
        int64_t from = a == 1 ? c : context;
        if (a == 2) {
            product(l, LW_ROLE_WEIGHT, in(&p, "%s.transformer_blocks.0.ff.net.0.proj", name), 8 * c, c, true);
            product(l, LW_ROLE_RESIDUAL, in(&p, "%s.transformer_blocks.0.ff.net.2", name), c, 4 * c, true);
        }
        product(l, LW_ROLE_WEIGHT, in(&p, "%s.transformer_blocks.0.attn%d.to_q", name, a), c, c, false);
        product(l, LW_ROLE_WEIGHT, in(&p, "%s.transformer_blocks.0.attn%d.to_k", name, a), c, from, false);
        product(l, LW_ROLE_WEIGHT, in(&p, "%s.transformer_blocks.0.attn%d.to_v", name, a), c, from, false);
        product(l, LW_ROLE_RESIDUAL, in(&p, "%s.transformer_blocks.0.attn%d.to_out.0", name, a), c, c, true);
    }
    for (int i = 1; i <= 3; i++) norm(l, in(&p, "%s.transformer_blocks.0.norm%d", name, i), c);
    conv(l, LW_ROLE_RESIDUAL, in(&p, "%s.proj_out", name), c, c, 1);
}

/* The half that UNet and ControlNet share. widths[i]: channels after input block i. */
static int encoder(list *l, const lw_widths *w, int64_t widths[16]) {
    part p;
    int64_t c = w->unet, embedding = 4 * c;
    int n = 0;
    product(l, LW_ROLE_WEIGHT, "time_embed.0", embedding, c, true);
    product(l, LW_ROLE_WEIGHT, "time_embed.2", embedding, embedding, true);
    conv(l, LW_ROLE_WEIGHT, "input_blocks.0.0", c, 4, 3);
    widths[n++] = c;
    for (int level = 0; level < LEVELS; level++) {
        for (int j = 0; j < RES_BLOCKS; j++) {
            int64_t c_out = (int64_t)w->unet * w->unet_mult[level];
            res_block(l, in(&p, "input_blocks.%d.0", n), c, c_out, embedding);
            c = c_out;
            if (level < ATTENTION_LEVELS) transformer(l, in(&p, "input_blocks.%d.1", n), c, w->clip);
            widths[n++] = c;
        }
        if (level == LEVELS - 1) break;
        conv(l, LW_ROLE_WEIGHT, in(&p, "input_blocks.%d.0.op", n), c, c, 3);
        widths[n++] = c;
    }
    res_block(l, "middle_block.0", c, c, embedding);
    transformer(l, "middle_block.1", c, w->clip);
    res_block(l, "middle_block.2", c, c, embedding);
    return n;
}

static void unet(list *l, const lw_widths *w) {
    part p;
    int64_t widths[16];
    l->network = LW_NET_UNET;
    int n = encoder(l, w, widths), i = 0;
    int64_t c = widths[n - 1];
    for (int level = LEVELS - 1; level >= 0; level--)
        for (int j = 0; j <= RES_BLOCKS; j++, i++) {
            int64_t c_out = (int64_t)w->unet * w->unet_mult[level];
            bool attention = level < ATTENTION_LEVELS;
            res_block(l, in(&p, "output_blocks.%d.0", i), c + widths[--n], c_out, 4 * (int64_t)w->unet);
            c = c_out;
            if (attention) transformer(l, in(&p, "output_blocks.%d.1", i), c, w->clip);
            if (level > 0 && j == RES_BLOCKS)
                conv(l, LW_ROLE_WEIGHT, in(&p, "output_blocks.%d.%d.conv", i, attention ? 2 : 1), c, c, 3);
        }
    norm(l, "out.0", c);
    conv(l, LW_ROLE_WEIGHT, "out.2", 4, c, 3);
}

static void control(list *l, const lw_widths *w) {
    part p;
    int64_t widths[16], c = 3;
    l->network = LW_NET_CONTROL;
    int n = encoder(l, w, widths);
    for (int i = 0; i < n; i++) conv(l, LW_ROLE_RESIDUAL, in(&p, "zero_convs.%d.0", i), widths[i], widths[i], 1);
    for (int i = 0; i < 8; i++) {
        int64_t c_out = i < 7 ? w->hint[i] : w->unet;
        conv(l, LW_ROLE_WEIGHT, in(&p, "input_hint_block.%d", 2 * i), c_out, c, 3);
        c = c_out;
    }
    conv(l, LW_ROLE_RESIDUAL, "middle_block_out.0", widths[n - 1], widths[n - 1], 1);
}

/* ---- VAE */

static void vae_block(list *l, const char *name, int64_t c_in, int64_t c_out) {
    part p;
    norm(l, in(&p, "%s.norm1", name), c_in);
    conv(l, LW_ROLE_WEIGHT, in(&p, "%s.conv1", name), c_out, c_in, 3);
    norm(l, in(&p, "%s.norm2", name), c_out);
    conv(l, LW_ROLE_RESIDUAL, in(&p, "%s.conv2", name), c_out, c_out, 3);
    if (c_in != c_out) conv(l, LW_ROLE_WEIGHT, in(&p, "%s.nin_shortcut", name), c_out, c_in, 1);
}

static void vae_middle(list *l, const char *side, int64_t c) {
    static const char *const products[] = {"q", "k", "v", "proj_out"};
    part p;
    vae_block(l, in(&p, "%s.mid.block_1", side), c, c);
    norm(l, in(&p, "%s.mid.attn_1.norm", side), c);
    for (int i = 0; i < 4; i++)
        conv(l, i == 3 ? LW_ROLE_RESIDUAL : LW_ROLE_WEIGHT, in(&p, "%s.mid.attn_1.%s", side, products[i]), c, c, 1);
    vae_block(l, in(&p, "%s.mid.block_2", side), c, c);
}

static void vae(list *l, const lw_widths *w) {
    part p;
    int64_t c = w->vae, c_out;
    l->network = LW_NET_VAE;
    conv(l, LW_ROLE_WEIGHT, "encoder.conv_in", c, 3, 3);
    for (int level = 0; level < LEVELS; level++) {
        c_out = (int64_t)w->vae * w->vae_mult[level];
        for (int j = 0; j < RES_BLOCKS; j++, c = c_out)
            vae_block(l, in(&p, "encoder.down.%d.block.%d", level, j), c, c_out);
        if (level < LEVELS - 1) conv(l, LW_ROLE_WEIGHT, in(&p, "encoder.down.%d.downsample.conv", level), c, c, 3);
    }
    vae_middle(l, "encoder", c);
    norm(l, "encoder.norm_out", c);
    conv(l, LW_ROLE_WEIGHT, "encoder.conv_out", 8, c, 3);
    conv(l, LW_ROLE_WEIGHT, "decoder.conv_in", c, 4, 3);
    vae_middle(l, "decoder", c);
    for (int level = LEVELS - 1; level >= 0; level--) {
        c_out = (int64_t)w->vae * w->vae_mult[level];
        for (int j = 0; j <= RES_BLOCKS; j++, c = c_out)
            vae_block(l, in(&p, "decoder.up.%d.block.%d", level, j), c, c_out);
        if (level > 0) conv(l, LW_ROLE_WEIGHT, in(&p, "decoder.up.%d.upsample.conv", level), c, c, 3);
    }
    norm(l, "decoder.norm_out", c);
    conv(l, LW_ROLE_WEIGHT, "decoder.conv_out", 3, c, 3);
    conv(l, LW_ROLE_WEIGHT, "quant_conv", 8, 8, 1);
    conv(l, LW_ROLE_WEIGHT, "post_quant_conv", 4, 4, 1);
}

/* ---- CLIP */

static void clip(list *l, const lw_widths *w) {
    static const char *const products[] = {"k_proj", "v_proj", "q_proj", "out_proj"};
    part p;
    int64_t c = w->clip;
    l->network = LW_NET_CLIP;
    add(l, LW_ROLE_IDS, "text_model.embeddings.position_ids", "", 2, (int64_t[]){1, LW_N_TOKENS});
    add(l, LW_ROLE_EMBEDDING, "text_model.embeddings.token_embedding.weight", "", 2, (int64_t[]){w->tokens, c});
    add(l, LW_ROLE_EMBEDDING, "text_model.embeddings.position_embedding.weight", "", 2, (int64_t[]){LW_N_TOKENS, c});
    for (int i = 0; i < w->clip_layers; i++) {
        for (int k = 0; k < 4; k++)
            product(l, k == 3 ? LW_ROLE_RESIDUAL : LW_ROLE_WEIGHT,
                    in(&p, "text_model.encoder.layers.%d.self_attn.%s", i, products[k]), c, c, true);
        norm(l, in(&p, "text_model.encoder.layers.%d.layer_norm1", i), c);
        product(l, LW_ROLE_WEIGHT, in(&p, "text_model.encoder.layers.%d.mlp.fc1", i), 4 * c, c, true);
        product(l, LW_ROLE_RESIDUAL, in(&p, "text_model.encoder.layers.%d.mlp.fc2", i), c, 4 * c, true);
        norm(l, in(&p, "text_model.encoder.layers.%d.layer_norm2", i), c);
    }
    norm(l, "text_model.final_layer_norm", c);
}

lw_status lw_shapes_make(const lw_widths *widths, lw_arena *arena, lw_shape **shapes, size_t *n, lw_error *err) {
    static const char *const schedule[] = {"betas",
                                           "alphas_cumprod",
                                           "alphas_cumprod_prev",
                                           "sqrt_alphas_cumprod",
                                           "sqrt_one_minus_alphas_cumprod",
                                           "log_one_minus_alphas_cumprod",
                                           "sqrt_recip_alphas_cumprod",
                                           "sqrt_recipm1_alphas_cumprod",
                                           "posterior_variance",
                                           "posterior_log_variance_clipped",
                                           "posterior_mean_coef1",
                                           "posterior_mean_coef2",
                                           "logvar"};
    list l = {.arena = arena, .network = LW_NET_NONE};
    l.shapes = lw_arena_alloc(arena, MAX_SHAPES, sizeof *l.shapes);
    if (!l.shapes) return lw_fail(err, LW_ENOMEM, "no memory for a model's shapes");
    for (size_t i = 0; i < sizeof schedule / sizeof *schedule; i++)
        add(&l, LW_ROLE_SCHEDULE, schedule[i], "", 1, (int64_t[]){TIMESTEPS});
    unet(&l, widths);
    vae(&l, widths);
    clip(&l, widths);
    control(&l, widths);
    if (l.failed) return lw_fail(err, LW_ENOMEM, "no memory for a model's shapes");
    *shapes = l.shapes;
    *n = l.n;
    return LW_OK;
}
