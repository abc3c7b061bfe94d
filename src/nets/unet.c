/* SPDX-License-Identifier: MIT
 * UNet and ControlNet of SD1.x (openaimodel.UNetModel, cldm.ControlNet): the programs text (its K and V), hint, time
 * and step. Everything before the first cross-attention is the same for both guidance passes and recorded one wide. */
#include "nets/blocks.h"

#include <stdio.h>
#include <string.h>

/* ---- where things stand in the fixed buffers */

int32_t lw_model_addends(const lw_model *m, int32_t n_controls) {
    int32_t sum = m->unet.n_addends;
    for (int32_t k = 0; k < n_controls; k++) sum += m->control[k].n_addends;
    return sum;
}

/* A scale takes 4 floats, so that each view begins at 16 bytes. */
int32_t lw_scale_at(int32_t k, int32_t tap, int32_t guidance, int32_t g) {
    return ((k * LW_MAX_TAPS + tap) * g + guidance) * 4;
}
int32_t lw_scales_row(int32_t n_controls, int32_t g) { return lw_scale_at(n_controls > 0 ? n_controls : 1, 0, 0, g); }

static lw_net net_of(lw_program *p, const lw_model *m, const lw_unet_layout *u) {
    return (lw_net){
        .p = p, .model = m, .prefix = u->prefix, .groups = m->config.norm_groups, .heads = m->config.unet_heads};
}

/* ---- text: the K and V of every cross-attention */

/* K, then V of one block. Each block has a place of its own in the buffer, so that blocks of the same width, of
 * different networks too, have the same strides and go in one launch. */
static lw_view kv_of_block(lw_program *p, const lw_unet_layout *u, const lw_block *b, int32_t g) {
    char name[48];
    snprintf(name, sizeof name, "%skv", u->prefix);
    lw_view kv = lw_rec_extern(p, name, p->act, g, 1, 1, LW_N_TOKENS, u->n_kv);
    kv.off += (int64_t)g * LW_N_TOKENS * b->kv * (int64_t)lw_dtype_bytes(kv.dtype);
    kv.c = 2 * b->c_out;
    kv.sw = kv.c;
    kv.sh = kv.sn = kv.sg = LW_N_TOKENS * kv.sw;
    return kv;
}

static void record_kv_of(const lw_net *net, const lw_unet_layout *u, const lw_block *b, const char *transformer,
                         lw_view context) {
    char k[96], v[96];
    snprintf(k, sizeof k, "%s.transformer_blocks.0.attn2.to_k", transformer);
    snprintf(v, sizeof v, "%s.transformer_blocks.0.attn2.to_v", transformer);
    lw_net_linear(net, (const char *[]){k, v}, 2, false, lw_plain(context), lw_no_epilogue(),
                  kv_of_block(net->p, u, b, context.g));
}

static void record_kv(lw_program *p, const lw_model *m, const lw_unet_layout *u, lw_view context) {
    lw_net net = net_of(p, m, u);
    char name[48];
    for (int32_t i = 0; i < u->n_in; i++) {
        snprintf(name, sizeof name, "%s.1", u->in[i].name);
        if (u->in[i].transformer) record_kv_of(&net, u, &u->in[i], name, context);
    }
    record_kv_of(&net, u, &u->mid[1], u->mid[1].name, context);
    for (int32_t i = 0; i < u->n_out; i++) {
        snprintf(name, sizeof name, "%s.1", u->out[i].name);
        if (u->out[i].transformer) record_kv_of(&net, u, &u->out[i], name, context);
    }
}

void lw_record_kv(lw_program *p, const lw_model *m, int32_t g, int32_t n_controls) {
    int32_t width = m->text_width ? m->text_width : m->unet.context; /* 0: a UNet by itself, for tests */
    lw_view context = lw_rec_extern(p, "context", p->act, g, 1, 1, LW_N_TOKENS, width);
    const int32_t first = p->n_ops;
    record_kv(p, m, &m->unet, context);
    for (int32_t k = 0; k < n_controls; k++) record_kv(p, m, &m->control[k], context);
    lw_rec_range(p, LW_RANGE_INDEPENDENT, first);
}

/* ---- hint */

void lw_record_hint(lw_program *p, const lw_model *m, int32_t k, int32_t h, int32_t w) {
    lw_net net = net_of(p, m, &m->control[k]);
    char name[48];
    snprintf(name, sizeof name, "edges%d", k);
    lw_view edges = lw_rec_extern(p, name, LW_U8, 1, 1, 8 * h, 8 * w, 3);
    lw_view x = lw_rec_temp(p, p->act, 1, 1, 8 * h, 8 * w, 8);
    lw_args *a = lw_rec_op(p, LW_OP_UNPACK_U8, "edges");
    if (!a) return;
    a->pack = (lw_pack_args){.in = edges, .out = x, .status = LW_NO_VIEW};
    static const int32_t strides[] = {1, 1, 2, 1, 2, 1, 2, 1}; /* cldm.ControlNet: down by 8 in all */
    for (int32_t i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "input_hint_block.%d", 2 * i);
        lw_epilogue epi = lw_no_epilogue();
        if (i < 7) epi.act = LW_ACT_SILU;
        x = lw_net_conv(&net, name, &(lw_conv){.in = lw_plain(x), .epi = epi, .kernel = 3, .stride = strides[i]});
    }
    if (p->status == LW_OK && x.c != m->control[k].in[0].c_out)
        lw_program_fail(p, LW_EMODEL, "tensor %sinput_hint_block.14.weight: %d outputs, expected %d", net.prefix, x.c,
                        m->control[k].in[0].c_out);
    snprintf(name, sizeof name, "hint%d", k);
    a = lw_rec_op(p, LW_OP_APPLY, name);
    if (a) a->apply = (lw_apply_args){.in = lw_plain(x), .out = lw_rec_extern(p, name, p->act, 1, 1, h, w, x.c)};
}

/* ---- time: the embedding and every ResBlock's projection of it, a row a step */

static void record_addend(const lw_net *net, const lw_block *b, const char *block, lw_view embedding, lw_view table) {
    char name[64];
    snprintf(name, sizeof name, "%s.emb_layers.1", block);
    lw_net_linear(net, (const char *[]){name}, 1, true, lw_plain(embedding), lw_no_epilogue(),
                  lw_view_channels(table, b->addend, b->c_out));
}

static void record_time_of(lw_program *p, const lw_model *m, const lw_unet_layout *u, lw_view t, lw_view table) {
    lw_net net = net_of(p, m, u);
    lw_view e = lw_rec_temp(p, LW_F32, 1, 1, 1, t.w, u->width);
    lw_args *a = lw_rec_op(p, LW_OP_EMBED_TIME, "time");
    if (!a) return;
    a->embed_time = (lw_embed_time_args){.t = t, .out = e};
    lw_epilogue silu = lw_no_epilogue();
    silu.act = LW_ACT_SILU;
    e = lw_net_linear(&net, (const char *[]){"time_embed.0"}, 1, true, lw_plain(e), silu, LW_NO_VIEW);
    e = lw_net_linear(&net, (const char *[]){"time_embed.2"}, 1, true, lw_plain(e), silu,
                      LW_NO_VIEW); /* emb_layers.0 is a SiLU: once for all */
    char name[48];
    for (int32_t i = 0; i < u->n_in; i++) {
        snprintf(name, sizeof name, "%s.0", u->in[i].name);
        if (u->in[i].res) record_addend(&net, &u->in[i], name, e, table);
    }
    record_addend(&net, &u->mid[0], u->mid[0].name, e, table);
    record_addend(&net, &u->mid[2], u->mid[2].name, e, table);
    for (int32_t i = 0; i < u->n_out; i++) {
        snprintf(name, sizeof name, "%s.0", u->out[i].name);
        record_addend(&net, &u->out[i], name, e, table);
    }
}

/* Addends stay fp32 whatever the activations are: they are small, and the sum they go into is fp32 in every tactic. */
void lw_record_time(lw_program *p, const lw_model *m, int32_t n_controls, int32_t rows, const char *from,
                    const char *to) {
    lw_view t = lw_rec_extern(p, from, LW_F32, 1, 1, 1, rows, 1);
    lw_view table = lw_rec_extern(p, to, LW_F32, 1, 1, 1, rows, lw_model_addends(m, n_controls));
    int32_t at = 0;
    record_time_of(p, m, &m->unet, t, lw_view_channels(table, at, m->unet.n_addends));
    at += m->unet.n_addends;
    for (int32_t k = 0; k < n_controls; k++) {
        record_time_of(p, m, &m->control[k], t, lw_view_channels(table, at, m->control[k].n_addends));
        at += m->control[k].n_addends;
    }
}

/* ---- step */

typedef struct step {
    lw_program *p;
    const lw_model *m;
    const lw_step_shape *s;
    lw_view net_in, addends, scales;
} step;

typedef struct taps {
    int32_t n;
    lw_view at[LW_MAX_TAPS];
} taps;

static lw_view kv_of(const step *s, const lw_unet_layout *u, const lw_block *b, bool v) {
    return lw_view_channels(kv_of_block(s->p, u, b, s->s->g), v ? b->c_out : 0, b->c_out);
}

static lw_view transform(const step *s, const lw_net *net, const lw_unet_layout *u, const lw_block *b, const char *name,
                         lw_view x) {
    return lw_net_transformer(net, name, x, kv_of(s, u, b, false), kv_of(s, u, b, true));
}

/* Input blocks and the middle; out: what each input block gives, then the middle. hint: added after the first
 * convolution, or none. */
static void record_encoder(const step *s, const lw_unet_layout *u, lw_view addends, lw_view hint, taps *out) {
    lw_net net = net_of(s->p, s->m, u);
    lw_view h = s->net_in;
    int32_t first = s->p->n_ops;
    char name[48];
    for (int32_t i = 0; i < u->n_in; i++) {
        const lw_block *b = &u->in[i];
        if (b->res) {
            snprintf(name, sizeof name, "%s.0", b->name);
            h = lw_net_res_block(&net, name, h, LW_NO_VIEW, lw_view_channels(addends, b->addend, b->c_out));
            snprintf(name, sizeof name, "%s.1", b->name);
            if (b->transformer) h = transform(s, &net, u, b, name, h);
        } else {
            lw_epilogue epi = lw_no_epilogue();
            if (!b->down) epi.residual = hint;
            snprintf(name, sizeof name, b->down ? "%s.0.op" : "%s.0", b->name);
            h = lw_net_conv(&net, name,
                            &(lw_conv){.in = lw_plain(h), .epi = epi, .kernel = 3, .stride = b->down ? 2 : 1});
        }
        out->at[out->n++] = h;
    }
    h = lw_net_res_block(&net, u->mid[0].name, h, LW_NO_VIEW,
                         lw_view_channels(addends, u->mid[0].addend, u->mid[0].c_out));
    h = transform(s, &net, u, &u->mid[1], u->mid[1].name, h);
    h = lw_net_res_block(&net, u->mid[2].name, h, LW_NO_VIEW,
                         lw_view_channels(addends, u->mid[2].addend, u->mid[2].c_out));
    out->at[out->n++] = h;
    lw_rec_range(s->p, LW_RANGE_PARALLEL, first);
}

/* tap i += scale * zero_conv_i(control tap i) */
static void record_zero_convs(const step *s, int32_t k, const taps *control, taps *unet) {
    const lw_unet_layout *u = &s->m->control[k];
    lw_net net = net_of(s->p, s->m, u);
    int32_t first = s->p->n_ops;
    for (int32_t i = 0; i < control->n; i++) {
        char name[48];
        if (i < u->n_in) snprintf(name, sizeof name, "zero_convs.%d.0", i);
        else snprintf(name, sizeof name, "middle_block_out.0");
        lw_epilogue epi = lw_no_epilogue();
        epi.residual = unet->at[i];
        epi.scale = s->scales;
        epi.scale.off += lw_scale_at(k, i, 0, s->s->g) * (int64_t)sizeof(float);
        epi.scale.g = s->s->g;
        epi.scale.sg = 4;
        epi.scale.c = 1;
        unet->at[i] = lw_net_conv(&net, name, &(lw_conv){.in = lw_plain(control->at[i]), .epi = epi, .kernel = 1});
    }
    lw_rec_range(s->p, LW_RANGE_INDEPENDENT, first);
}

static lw_view record_decoder(const step *s, const taps *skips) {
    const lw_unet_layout *u = &s->m->unet;
    lw_net net = net_of(s->p, s->m, u);
    lw_view addends = lw_view_channels(s->addends, 0, u->n_addends), h = skips->at[u->n_in];
    char name[48];
    for (int32_t i = 0; i < u->n_out; i++) {
        const lw_block *b = &u->out[i];
        lw_view skip = skips->at[u->n_in - 1 - i];
        if (s->p->status == LW_OK && (skip.h != h.h || skip.w != h.w)) {
            lw_program_fail(s->p, LW_EMODEL,
                            "network unet.: output block %d is %dx%d, its skip %dx%d: ups and downs do not match", i,
                            h.w, h.h, skip.w, skip.h);
            return h;
        }
        snprintf(name, sizeof name, "%s.0", b->name);
        h = lw_net_res_block(&net, name, h, skip, lw_view_channels(addends, b->addend, b->c_out));
        snprintf(name, sizeof name, "%s.1", b->name);
        if (b->transformer) h = transform(s, &net, u, b, name, h);
        if (b->up) {
            lw_prologue up = lw_plain(h);
            up.up2 = true;
            snprintf(name, sizeof name, "%s.%d.conv", b->name, b->up_index);
            h = lw_net_conv(&net, name, &(lw_conv){.in = up, .epi = lw_no_epilogue(), .kernel = 3});
        }
    }
    return lw_net_conv(&net, "out.2",
                       &(lw_conv){.in = lw_group_norm(&net, "out.0", h, LW_NO_VIEW, 1e-5f, LW_ACT_SILU),
                                  .epi = lw_no_epilogue(),
                                  .kernel = 3});
}

static void record_advance(const step *s, lw_view eps) {
    lw_program *p = s->p;
    const lw_step_shape *t = s->s;
    int32_t n_addends = lw_model_addends(s->m, t->n_controls), n_scales = lw_scales_row(t->n_controls, t->g);
    lw_args *m = lw_rec_op(p, LW_OP_ADVANCE, "advance");
    if (!m) return;
    m->advance = (lw_advance_args){
        .eps = eps,
        .x = lw_rec_extern(p, "x", LW_F32, 1, t->n, t->h, t->w, 8),
        .h1 = lw_rec_extern(p, "h1", LW_F32, 1, t->n, t->h, t->w, 8),
        .h2 = lw_rec_extern(p, "h2", LW_F32, 1, t->n, t->h, t->w, 8),
        .y = lw_rec_extern(p, "y", LW_F32, 1, t->n, t->h, t->w, 8),
        .net_in = s->net_in,
        .rows = lw_rec_extern(p, "rows", LW_F32, 1, 1, 1, t->rows, (int32_t)(sizeof(lw_row) / sizeof(float))),
        .noise = lw_rec_extern(p, "noise", LW_F32, t->n_noise, t->n, t->h, t->w, 8),
        .addend_table = lw_rec_extern(p, "addend_table", LW_F32, 1, 1, 1, t->rows, n_addends),
        .addends = s->addends,
        .scale_table = lw_rec_extern(p, "scale_table", LW_F32, 1, 1, 1, t->rows, n_scales),
        .scales = s->scales,
        .status = lw_rec_extern(p, "status", LW_I32, 1, 1, 1, 1, 4),
    };
}

static step begin(lw_program *p, const lw_model *m, const lw_step_shape *t) {
    return (step){.p = p,
                  .m = m,
                  .s = t,
                  .net_in = lw_rec_extern(p, "net_in", p->act, 1, t->n, t->h, t->w, 8),
                  .addends = lw_rec_extern(p, "addends", LW_F32, 1, 1, 1, 1, lw_model_addends(m, t->n_controls)),
                  .scales = lw_rec_extern(p, "scales", LW_F32, 1, 1, 1, 1, lw_scales_row(t->n_controls, t->g))};
}

void lw_record_advance(lw_program *p, const lw_model *m, const lw_step_shape *t, bool first) {
    step s = begin(p, m, t);
    record_advance(&s, first ? LW_NO_VIEW : lw_rec_extern(p, "eps", p->act, t->g, t->n, t->h, t->w, 8));
}

void lw_record_step(lw_program *p, const lw_model *m, const lw_step_shape *shape) {
    step s = begin(p, m, shape);
    taps unet = {0}, control[LW_MAX_CONTROLS] = {{0}};
    int32_t at = m->unet.n_addends;
    for (int32_t k = 0; k < shape->n_controls; k++) {
        const lw_unet_layout *u = &m->control[k];
        lw_view addends = lw_view_channels(s.addends, at, u->n_addends);
        at += u->n_addends;
        if (!(shape->controls >> k & 1)) continue;
        char name[16];
        snprintf(name, sizeof name, "hint%d", k);
        lw_view hint = lw_rec_extern(p, name, p->act, 1, 1, shape->h, shape->w, u->in[0].c_out);
        record_encoder(&s, u, addends, hint, &control[k]);
    }
    record_encoder(&s, &m->unet, lw_view_channels(s.addends, 0, m->unet.n_addends), LW_NO_VIEW, &unet);
    for (int32_t k = 0; k < shape->n_controls; k++)
        if (shape->controls >> k & 1) record_zero_convs(&s, k, &control[k], &unet);
    record_advance(&s, record_decoder(&s, &unet));
}
