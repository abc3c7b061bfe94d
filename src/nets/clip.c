/* SPDX-License-Identifier: MIT
 * CLIP's text tower: pre-LN transformer, causal mask, no padding mask. */
#include "nets/blocks.h"

#include <stdio.h>

static lw_view record_layer(const lw_net *net, int32_t i, lw_view x) {
    char name[4][96];
    lw_epilogue epi = lw_no_epilogue();
    snprintf(name[0], 96, "encoder.layers.%d.layer_norm1", i);
    snprintf(name[1], 96, "encoder.layers.%d.self_attn.q_proj", i);
    snprintf(name[2], 96, "encoder.layers.%d.self_attn.k_proj", i);
    snprintf(name[3], 96, "encoder.layers.%d.self_attn.v_proj", i);
    lw_view qkv = lw_net_linear(net, (const char *[]){name[1], name[2], name[3]}, 3, true,
                                lw_layer_norm(net, name[0], x), epi, LW_NO_VIEW);
    snprintf(name[0], 96, "encoder.layers.%d.self_attn", i);
    lw_view att = lw_net_attention(net, name[0], lw_view_channels(qkv, 0, x.c), lw_view_channels(qkv, x.c, x.c),
                                   lw_view_channels(qkv, 2 * x.c, x.c), net->heads, true);
    snprintf(name[0], 96, "encoder.layers.%d.self_attn.out_proj", i);
    epi.residual = x;
    x = lw_net_linear(net, (const char *[]){name[0]}, 1, true, lw_plain(att), epi, LW_NO_VIEW);

    snprintf(name[0], 96, "encoder.layers.%d.layer_norm2", i);
    snprintf(name[1], 96, "encoder.layers.%d.mlp.fc1", i);
    snprintf(name[2], 96, "encoder.layers.%d.mlp.fc2", i);
    lw_epilogue act = lw_no_epilogue();
    act.act = net->model->config.clip_gelu ? LW_ACT_GELU : LW_ACT_QUICK_GELU;
    lw_view h = lw_net_linear(net, (const char *[]){name[1]}, 1, true, lw_layer_norm(net, name[0], x), act, LW_NO_VIEW);
    epi.residual = x;
    return lw_net_linear(net, (const char *[]){name[2]}, 1, true, lw_plain(h), epi, LW_NO_VIEW);
}

void lw_record_clip(lw_program *p, const lw_model *m, int32_t g, int32_t clip_skip) {
    lw_net net = {.p = p, .model = m, .prefix = "clip.text_model.", .groups = 1, .heads = m->config.clip_heads};
    p->exact = true; /* once a prompt: cheap, and every step hangs on it */
    lw_view ids = lw_rec_extern(p, "ids", LW_I32, g, 1, 1, LW_N_TOKENS, 1);
    lw_view x = lw_rec_temp(p, p->act, g, 1, 1, LW_N_TOKENS, m->text_width);
    lw_args *a = lw_rec_op(p, LW_OP_EMBED_TOKENS, "tokens");
    if (!a) return;
    a->embed_tokens = (lw_embed_tokens_args){
        .ids = ids,
        .out = x,
        .tokens = lw_rec_take(p, "clip.text_model.embeddings.token_embedding.weight", m->n_tokens, x.c, 1, 1),
        .positions = lw_rec_take(p, "clip.text_model.embeddings.position_embedding.weight", LW_N_TOKENS, x.c, 1, 1)};
    int32_t layers = m->n_text_layers - (clip_skip > 1 ? clip_skip - 1 : 0);
    if (layers < 1)
        lw_program_fail(p, LW_EINVAL, "clip skip %d leaves none of the text encoder's %d layers", clip_skip,
                        m->n_text_layers);
    for (int32_t i = 0; i < layers; i++) x = record_layer(&net, i, x);
    lw_view context = lw_rec_extern(p, "context", p->act, g, 1, 1, LW_N_TOKENS, m->text_width);
    a = lw_rec_op(p, LW_OP_APPLY, "clip.final_layer_norm");
    if (!a) return;
    a->apply = (lw_apply_args){.in = lw_layer_norm(&net, "final_layer_norm", x), .out = context};
}

void lw_record_text(lw_program *p, const lw_model *m, int32_t g, int32_t n_controls, int32_t clip_skip) {
    lw_record_clip(p, m, g, clip_skip);
    lw_record_kv(p, m, g, n_controls);
}
