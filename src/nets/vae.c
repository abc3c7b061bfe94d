/* SPDX-License-Identifier: MIT
 * The VAE's decoder (AutoencoderKL): latents to bytes. All norms have eps 1e-6. */
#include "nets/blocks.h"

#include <stdio.h>

static lw_view res_block(const lw_net *net, const char *name, lw_view x) {
    char norm[96], conv[96], skip[96];
    snprintf(norm, sizeof norm, "%s.norm1", name);
    snprintf(conv, sizeof conv, "%s.conv1", name);
    lw_view h = lw_net_conv(net, conv,
                            &(lw_conv){.in = lw_group_norm(net, norm, x, LW_NO_VIEW, 1e-6f, LW_ACT_SILU),
                                       .epi = lw_no_epilogue(),
                                       .kernel = 3});
    snprintf(norm, sizeof norm, "%s.norm2", name);
    snprintf(conv, sizeof conv, "%s.conv2", name);
    snprintf(skip, sizeof skip, "%s.nin_shortcut", name);
    lw_conv second = {
        .in = lw_group_norm(net, norm, h, LW_NO_VIEW, 1e-6f, LW_ACT_SILU), .epi = lw_no_epilogue(), .kernel = 3};
    if (lw_model_has(net->model, "%s%s.", net->prefix, skip)) {
        second.shortcut = skip;
        second.shortcut_a = x;
        second.shortcut_b = LW_NO_VIEW;
    } else {
        if (x.c != h.c)
            lw_program_fail(net->p, LW_EMODEL, "tensor %s%s.weight is missing: the block changes its channels",
                            net->prefix, skip);
        second.epi.residual = x;
    }
    return lw_net_conv(net, conv, &second);
}

/* Single-head attention over all pixels; q, k and v are one product. */
static lw_view attention(const lw_net *net, const char *name, lw_view x) {
    char norm[64], q[64], k[64], v[64], out[64];
    snprintf(norm, sizeof norm, "%s.norm", name);
    snprintf(q, sizeof q, "%s.q", name);
    snprintf(k, sizeof k, "%s.k", name);
    snprintf(v, sizeof v, "%s.v", name);
    snprintf(out, sizeof out, "%s.proj_out", name);
    lw_view qkv =
        lw_net_linear(net, (const char *[]){q, k, v}, 3, true,
                      lw_group_norm(net, norm, x, LW_NO_VIEW, 1e-6f, LW_ACT_NONE), lw_no_epilogue(), LW_NO_VIEW);
    qkv = lw_view_tokens(qkv);
    lw_view att = lw_net_attention(net, name, lw_view_channels(qkv, 0, x.c), lw_view_channels(qkv, x.c, x.c),
                                   lw_view_channels(qkv, 2 * x.c, x.c), 1, false);
    lw_epilogue epi = lw_no_epilogue();
    epi.residual = lw_view_tokens(x);
    return lw_view_picture(lw_net_linear(net, (const char *[]){out}, 1, true, lw_plain(att), epi, LW_NO_VIEW), x.h,
                           x.w);
}

static int32_t count_blocks(const lw_model *m, int32_t level) {
    int32_t n = 0;
    while (n < LW_MAX_BLOCKS && lw_model_has(m, "vae.decoder.up.%d.block.%d.", level, n)) n++;
    return n;
}

void lw_record_decode(lw_program *p, const lw_model *m, int32_t n, int32_t h, int32_t w) {
    lw_net net = {.p = p, .model = m, .prefix = "vae.", .groups = m->config.norm_groups, .heads = 1};
    lw_view x = lw_rec_extern(p, "x", LW_F32, 1, n, h, w, 8);
    if (p->act != LW_F32) {
        lw_view cast = lw_rec_temp(p, p->act, 1, n, h, w, 8);
        lw_args *a = lw_rec_op(p, LW_OP_APPLY, "latents");
        if (!a) return;
        a->apply = (lw_apply_args){.in = lw_plain(x), .out = cast};
        x = cast;
    }
    x = lw_net_conv(
        &net, "post_quant_conv",
        &(lw_conv){
            .in = lw_plain(x), .epi = lw_no_epilogue(), .kernel = 1, .weight_scale = 1 / m->config.scale_factor});
    x = lw_net_conv(&net, "decoder.conv_in", &(lw_conv){.in = lw_plain(x), .epi = lw_no_epilogue(), .kernel = 3});
    x = res_block(&net, "decoder.mid.block_1", x);
    x = attention(&net, "decoder.mid.attn_1", x);
    x = res_block(&net, "decoder.mid.block_2", x);
    for (int32_t level = m->vae_levels - 1; level >= 0; level--) {
        char name[64];
        for (int32_t i = 0; i < count_blocks(m, level); i++) {
            snprintf(name, sizeof name, "decoder.up.%d.block.%d", level, i);
            x = res_block(&net, name, x);
        }
        if (level == 0) continue;
        lw_prologue up = lw_plain(x);
        up.up2 = true;
        snprintf(name, sizeof name, "decoder.up.%d.upsample.conv", level);
        x = lw_net_conv(&net, name, &(lw_conv){.in = up, .epi = lw_no_epilogue(), .kernel = 3});
    }
    x = lw_net_conv(&net, "decoder.conv_out",
                    &(lw_conv){.in = lw_group_norm(&net, "decoder.norm_out", x, LW_NO_VIEW, 1e-6f, LW_ACT_SILU),
                               .epi = lw_no_epilogue(),
                               .kernel = 3});
    lw_args *a = lw_rec_op(p, LW_OP_PACK_U8, "picture");
    if (a)
        a->pack = (lw_pack_args){.in = x,
                                 .out = lw_rec_extern(p, "image", LW_U8, 1, n, 8 * h, 8 * w, 3),
                                 .status = lw_rec_extern(p, "decode_status", LW_I32, 1, 1, 1, 1, 4)};
}
