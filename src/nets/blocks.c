/* SPDX-License-Identifier: MIT */
#include "nets/blocks.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int32_t lw_max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

const char *lw_net_name(const lw_net *net, const char *format, ...) {
    char text[256];
    int n = snprintf(text, sizeof text, "%s", net->prefix);
    va_list args;
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    char *copy = lw_arena_strdup(net->p->arena, text);
    if (!copy) lw_program_fail(net->p, LW_ENOMEM, "no memory to record %s", text);
    return copy ? copy : "";
}

static lw_view channels_of(lw_prologue in) {
    lw_view v = in.a;
    if (lw_view_is(in.b)) v.c += in.b.c, v.g = lw_max_i32(v.g, in.b.g), v.n = lw_max_i32(v.n, in.b.n);
    if (in.up2) v.h *= 2, v.w *= 2;
    return v;
}

/* cat needs both on the same g and n: shared ones are spread. */
lw_prologue lw_cat(lw_view a, lw_view b) {
    lw_prologue in = lw_plain(a);
    if (lw_view_is(b)) {
        int32_t g = lw_max_i32(a.g, b.g), n = lw_max_i32(a.n, b.n);
        in.a = lw_view_samples(lw_view_guidance(a, g), n);
        in.b = lw_view_samples(lw_view_guidance(b, g), n);
    }
    return in;
}

lw_epilogue lw_no_epilogue(void) {
    return (lw_epilogue){.addend = LW_NO_VIEW, .scale = LW_NO_VIEW, .residual = LW_NO_VIEW};
}

lw_prologue lw_group_norm(const lw_net *net, const char *name, lw_view a, lw_view b, float eps, lw_act act) {
    lw_prologue in = lw_cat(a, b);
    int32_t c = channels_of(in).c;
    if (c % net->groups)
        lw_program_fail(net->p, LW_EMODEL, "%s: %d channels can't be split into %d groups (metadata norm_groups)", name,
                        c, net->groups);
    in.act = act;
    in.norm = (lw_norm){.kind = LW_NORM_GROUP,
                        .groups = net->groups,
                        .eps = eps,
                        .gamma = lw_rec_take(net->p, lw_net_name(net, "%s.weight", name), c, 1, 1, 1),
                        .beta = lw_rec_take(net->p, lw_net_name(net, "%s.bias", name), c, 1, 1, 1),
                        .stats_a = lw_rec_stats(net->p, in.a),
                        .stats_b = lw_view_is(in.b) ? lw_rec_stats(net->p, in.b) : LW_NO_VIEW,
                        .rows_per_part = lw_rows_per_part((int64_t)in.a.h * in.a.w)};
    return in;
}

lw_prologue lw_layer_norm(const lw_net *net, const char *name, lw_view a) {
    lw_prologue in = lw_plain(a);
    in.norm.kind = LW_NORM_LAYER;
    in.norm.eps = 1e-5f;
    in.norm.gamma = lw_rec_take(net->p, lw_net_name(net, "%s.weight", name), a.c, 1, 1, 1);
    in.norm.beta = lw_rec_take(net->p, lw_net_name(net, "%s.bias", name), a.c, 1, 1, 1);
    return in;
}

/* Channels padded to 8: a tensor of 3 or 4 channels becomes a view of 8. */
static int64_t padded(int64_t c) { return (c + 7) / 8 * 8; }

/* Everything an epilogue reads, shared over g passes and n samples where it is one. */
static void spread_epilogue(lw_epilogue *epi, int32_t g, int32_t n) {
    lw_view *const views[] = {&epi->addend, &epi->scale, &epi->residual};
    for (int i = 0; i < 3; i++)
        if (lw_view_is(*views[i])) *views[i] = lw_view_samples(lw_view_guidance(*views[i], g), n);
}

lw_view lw_net_conv(const lw_net *net, const char *name, const lw_conv *conv) {
    lw_program *p = net->p;
    lw_view in = channels_of(conv->in);
    lw_param w = lw_rec_take(p, lw_net_name(net, "%s.weight", name), 0, 0, conv->kernel, conv->kernel);
    lw_param bias = lw_rec_take(p, lw_net_name(net, "%s.bias", name), 0, 1, 1, 1);
    if (p->status != LW_OK) return in;
    int64_t d[4], b[4];
    lw_param_dims(p->params, w, d);
    lw_param_dims(p->params, bias, b);
    if (padded(d[1]) != in.c || b[0] != d[0]) {
        lw_program_fail(
            p, LW_EMODEL,
            "tensor %s%s.weight has shape [%lld,%lld,%lld,%lld] and %lld biases, expected %d input channels",
            net->prefix, name, (long long)d[0], (long long)d[1], (long long)d[2], (long long)d[3], (long long)b[0],
            in.c);
        return in;
    }
    if (conv->weight_scale != 0) w = lw_rec_scale(p, w, conv->weight_scale);
    int32_t c = (int32_t)padded(d[0]), stride = conv->stride ? conv->stride : 1;
    lw_args *m = lw_rec_op(p, LW_OP_CONV2D, lw_net_name(net, "%s", name));
    if (!m) return in;
    lw_epilogue epi = conv->epi;
    int32_t g = lw_max_i32(in.g, lw_view_is(epi.residual) ? epi.residual.g : 1);
    if (lw_view_is(epi.scale)) g = lw_max_i32(g, epi.scale.g);
    if (conv->shortcut) g = lw_max_i32(g, conv->shortcut_a.g);
    int32_t n = lw_max_i32(in.n, lw_view_is(epi.residual) ? epi.residual.n : 1);
    lw_product_args *a = &m->product;
    a->in = conv->in;
    a->in.a = lw_view_samples(lw_view_guidance(a->in.a, g), n);
    if (lw_view_is(a->in.b)) a->in.b = lw_view_samples(lw_view_guidance(a->in.b, g), n);
    if (a->in.norm.kind == LW_NORM_GROUP) {
        a->in.norm.stats_a = lw_view_samples(lw_view_guidance(a->in.norm.stats_a, g), n);
        if (lw_view_is(a->in.norm.stats_b))
            a->in.norm.stats_b = lw_view_samples(lw_view_guidance(a->in.norm.stats_b, g), n);
    }
    a->w = lw_rec_pad(p, w, c, in.c);
    a->bias = lw_rec_pad(p, bias, c, 1);
    a->kh = a->kw = conv->kernel;
    a->stride = stride;
    a->pad_top = a->pad_left = conv->kernel / 2;
    a->epi = epi;
    spread_epilogue(&a->epi, g, n);
    if (conv->shortcut) {
        int32_t c_in = conv->shortcut_a.c + (lw_view_is(conv->shortcut_b) ? conv->shortcut_b.c : 0);
        lw_prologue both = lw_cat(conv->shortcut_a, conv->shortcut_b);
        a->shortcut_a = lw_view_guidance(both.a, g);
        a->shortcut_b = lw_view_is(both.b) ? lw_view_guidance(both.b, g) : LW_NO_VIEW;
        a->shortcut_w = lw_rec_take(p, lw_net_name(net, "%s.weight", conv->shortcut), d[0], c_in, 1, 1);
        a->shortcut_bias = lw_rec_take(p, lw_net_name(net, "%s.bias", conv->shortcut), d[0], 1, 1, 1);
    }
    a->out = lw_rec_temp(p, in.dtype, g, n, (in.h + stride - 1) / stride, (in.w + stride - 1) / stride, c);
    return a->out;
}

lw_view lw_net_linear(const lw_net *net, const char *const *names, int32_t n_names, bool bias, lw_prologue in,
                      lw_epilogue epi, lw_view out) {
    lw_program *p = net->p;
    lw_param w[3], b[3];
    for (int32_t i = 0; i < n_names; i++) {
        w[i] = lw_rec_take(p, lw_net_name(net, "%s.weight", names[i]), 0, in.a.c, 1, 1);
        if (!bias || p->status != LW_OK) continue;
        int64_t d[4];
        lw_param_dims(p->params, w[i], d);
        b[i] = lw_rec_take(p, lw_net_name(net, "%s.bias", names[i]), d[0], 1, 1, 1);
    }
    lw_args *m = lw_rec_op(p, LW_OP_LINEAR, lw_net_name(net, "%s", names[0]));
    if (!m || p->status != LW_OK) return in.a;
    lw_product_args *a = &m->product;
    a->w = n_names > 1 ? lw_rec_concat(p, w, n_names) : w[0];
    if (bias) a->bias = n_names > 1 ? lw_rec_concat(p, b, n_names) : b[0];
    if (p->status != LW_OK) return in.a;
    int64_t d[4];
    lw_param_dims(p->params, a->w, d);
    int32_t c = (int32_t)d[0];
    if (epi.act == LW_ACT_GEGLU) c /= 2;
    if (c % 8 || d[0] % 8)
        lw_program_fail(p, LW_EMODEL, "tensor %s%s.weight: %lld rows are not a multiple of 8", net->prefix, names[0],
                        (long long)d[0]);
    if (lw_view_is(epi.residual) && epi.residual.c != c)
        lw_program_fail(p, LW_EMODEL, "tensor %s%s.weight: %d outputs, expected %d", net->prefix, names[0], c,
                        epi.residual.c);
    int32_t g = lw_max_i32(in.a.g, lw_view_is(epi.residual) ? epi.residual.g : 1);
    a->in = in;
    a->in.a = lw_view_guidance(in.a, g);
    a->epi = epi;
    spread_epilogue(&a->epi, g, in.a.n);
    if (!lw_view_is(out)) out = lw_rec_temp(p, in.a.dtype, g, in.a.n, in.a.h, in.a.w, c);
    if (out.c != c)
        lw_program_fail(p, LW_EMODEL, "tensor %s%s.weight: %d outputs, expected %d", net->prefix, names[0], c, out.c);
    a->out = out;
    return out;
}

lw_view lw_net_attention(const lw_net *net, const char *name, lw_view q, lw_view k, lw_view v, int32_t heads,
                         bool causal) {
    lw_program *p = net->p;
    if (heads < 1 || q.c % heads || (q.c / heads) % 4) {
        lw_program_fail(p, LW_EMODEL, "%s%s: %d channels can't be split into %d heads of a multiple of 4", net->prefix,
                        name, q.c, heads);
        return q;
    }
    if (k.c != q.c || v.c != q.c)
        lw_program_fail(p, LW_EMODEL, "%s%s: q, k and v have %d, %d and %d channels", net->prefix, name, q.c, k.c, v.c);
    int32_t g = lw_max_i32(q.g, k.g);
    lw_args *m = lw_rec_op(p, LW_OP_ATTENTION, lw_net_name(net, "%s", name));
    if (!m) return q;
    lw_view out = lw_rec_temp(p, q.dtype, g, q.n, 1, q.w, q.c);
    m->attention = (lw_attention_args){.q = lw_view_guidance(q, g),
                                       .k = lw_view_samples(lw_view_guidance(k, g), q.n),
                                       .v = lw_view_samples(lw_view_guidance(v, g), q.n),
                                       .out = out,
                                       .heads = heads,
                                       .scale = 1.0f / sqrtf((float)(q.c / heads)),
                                       .causal = causal};
    return out;
}

lw_view lw_net_res_block(const lw_net *net, const char *name, lw_view a, lw_view b, lw_view addend) {
    char norm[96], conv[96], skip[96];
    snprintf(norm, sizeof norm, "%s.in_layers.0", name);
    snprintf(conv, sizeof conv, "%s.in_layers.2", name);
    lw_epilogue epi = lw_no_epilogue();
    epi.addend = addend;
    lw_view h = lw_net_conv(
        net, conv, &(lw_conv){.in = lw_group_norm(net, norm, a, b, 1e-5f, LW_ACT_SILU), .epi = epi, .kernel = 3});
    snprintf(norm, sizeof norm, "%s.out_layers.0", name);
    snprintf(conv, sizeof conv, "%s.out_layers.3", name);
    snprintf(skip, sizeof skip, "%s.skip_connection", name);
    lw_conv second = {
        .in = lw_group_norm(net, norm, h, LW_NO_VIEW, 1e-5f, LW_ACT_SILU), .epi = lw_no_epilogue(), .kernel = 3};
    if (lw_model_has(net->model, "%s%s.", net->prefix, skip)) {
        second.shortcut = skip;
        second.shortcut_a = a;
        second.shortcut_b = b;
    } else {
        if (lw_view_is(b) || a.c != h.c)
            lw_program_fail(net->p, LW_EMODEL, "tensor %s%s.weight is missing: the block changes its channels",
                            net->prefix, skip);
        second.epi.residual = a;
    }
    return lw_net_conv(net, conv, &second);
}

lw_view lw_net_transformer(const lw_net *net, const char *name, lw_view x, lw_view k, lw_view v) {
    char base[64], n0[96], n1[96], n2[96], norm[96];
    snprintf(base, sizeof base, "%s.transformer_blocks.0", name);
    snprintf(norm, sizeof norm, "%s.norm", name);
    snprintf(n0, sizeof n0, "%s.proj_in", name);
    lw_view h = lw_net_conv(net, n0,
                            &(lw_conv){.in = lw_group_norm(net, norm, x, LW_NO_VIEW, 1e-6f, LW_ACT_NONE),
                                       .epi = lw_no_epilogue(),
                                       .kernel = 1});
    h = lw_view_tokens(h);
    lw_epilogue epi = lw_no_epilogue();

    snprintf(norm, sizeof norm, "%s.norm1", base);
    snprintf(n0, sizeof n0, "%s.attn1.to_q", base);
    snprintf(n1, sizeof n1, "%s.attn1.to_k", base);
    snprintf(n2, sizeof n2, "%s.attn1.to_v", base);
    lw_view qkv =
        lw_net_linear(net, (const char *[]){n0, n1, n2}, 3, false, lw_layer_norm(net, norm, h), epi, LW_NO_VIEW);
    snprintf(n0, sizeof n0, "%s.attn1", base);
    lw_view att = lw_net_attention(net, n0, lw_view_channels(qkv, 0, h.c), lw_view_channels(qkv, h.c, h.c),
                                   lw_view_channels(qkv, 2 * h.c, h.c), net->heads, false);
    snprintf(n0, sizeof n0, "%s.attn1.to_out.0", base);
    epi.residual = h;
    h = lw_net_linear(net, (const char *[]){n0}, 1, true, lw_plain(att), epi, LW_NO_VIEW);

    snprintf(norm, sizeof norm, "%s.norm2", base);
    snprintf(n0, sizeof n0, "%s.attn2.to_q", base);
    lw_view q =
        lw_net_linear(net, (const char *[]){n0}, 1, false, lw_layer_norm(net, norm, h), lw_no_epilogue(), LW_NO_VIEW);
    snprintf(n0, sizeof n0, "%s.attn2", base);
    att = lw_net_attention(net, n0, q, k, v, net->heads, false);
    snprintf(n0, sizeof n0, "%s.attn2.to_out.0", base);
    epi.residual = h;
    h = lw_net_linear(net, (const char *[]){n0}, 1, true, lw_plain(att), epi, LW_NO_VIEW);

    snprintf(norm, sizeof norm, "%s.norm3", base);
    snprintf(n0, sizeof n0, "%s.ff.net.0.proj", base);
    lw_epilogue geglu = lw_no_epilogue();
    geglu.act = LW_ACT_GEGLU;
    lw_view ff = lw_net_linear(net, (const char *[]){n0}, 1, true, lw_layer_norm(net, norm, h), geglu, LW_NO_VIEW);
    snprintf(n0, sizeof n0, "%s.ff.net.2", base);
    epi.residual = h;
    h = lw_net_linear(net, (const char *[]){n0}, 1, true, lw_plain(ff), epi, LW_NO_VIEW);

    snprintf(n0, sizeof n0, "%s.proj_out", name);
    epi.residual = x;
    return lw_net_conv(net, n0, &(lw_conv){.in = lw_plain(lw_view_picture(h, x.h, x.w)), .epi = epi, .kernel = 1});
}
