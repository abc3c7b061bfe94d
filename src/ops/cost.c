/* SPDX-License-Identifier: MIT
 * The cost model: what an op must compute and move, whatever its tactic. A multiply-add counts 2. Shared views count
 * once. */
#include "ops/ops.h"

static double extent(const lw_view *v) {
    if (!lw_view_is(*v)) return 0;
    return (double)(v->sg ? v->g : 1) * (v->sn ? v->n : 1) * v->h * v->w * v->c;
}

static double full(const lw_view *v) { return (double)v->g * v->n * v->h * v->w * v->c; }

static void add_bytes(void *user, lw_view *v, bool written) {
    (void)written;
    *(double *)user += extent(v) * (double)lw_dtype_bytes(v->dtype);
}

static double product_flop(const lw_params *params, const lw_product_args *p, size_t weight_bytes, double *weights) {
    int64_t d[4];
    lw_param_dims(params, p->w, d);
    double rows = (double)p->out.g * p->out.n * p->out.h * p->out.w, each = (double)(d[0] * d[1] * d[2] * d[3]),
           flop = 2 * rows * each;
    *weights += each * (double)weight_bytes;
    if (lw_param_is(p->shortcut_w)) {
        lw_param_dims(params, p->shortcut_w, d);
        flop += 2 * rows * (double)(d[0] * d[1]);
        *weights += (double)(d[0] * d[1]) * (double)weight_bytes;
    }
    return flop;
}

static lw_cost cost_product(const lw_params *params, const lw_args *m) {
    lw_cost c = {0};
    c.flop = product_flop(params, &m->product, lw_dtype_bytes(m->product.out.dtype), &c.bytes);
    return c;
}

#define lw_cost_conv2d cost_product
#define lw_cost_linear cost_product

static lw_cost lw_cost_attention(const lw_params *params, const lw_args *m) {
    (void)params;
    const lw_attention_args *a = &m->attention;
    return (lw_cost){.flop = 4.0 * a->out.g * a->out.n * a->q.w * a->k.w * a->q.c};
}

static lw_cost lw_cost_norm_stats(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 4 * full(&m->norm_stats.in)};
}
static lw_cost lw_cost_apply(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 4 * full(&m->apply.out)};
}
static lw_cost lw_cost_combine(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 3 * full(&m->combine.out)};
}
static lw_cost lw_cost_embed_tokens(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = full(&m->embed_tokens.out)};
}
static lw_cost lw_cost_embed_time(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 2 * full(&m->embed_time.out)};
}
static lw_cost lw_cost_pack_u8(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 2 * full(&m->pack.out)};
}
static lw_cost lw_cost_unpack_u8(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = full(&m->pack.out)};
}
static lw_cost lw_cost_advance(const lw_params *params, const lw_args *m) {
    return (void)params, (lw_cost){.flop = 24 * full(&m->advance.x)};
}

lw_cost lw_op_cost(const lw_params *params, const lw_op *op) {
    lw_cost sum = {0};
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_cost c = {0};
        switch (op->kind) {
#define X(kind, name)                                                                                                  \
    case LW_OP_##kind: c = lw_cost_##name(params, &op->m[k]); break;
            LW_OPS(X)
#undef X
        case LW_N_OPS: break;
        }
        lw_args copy = op->m[k];
        lw_op_views(op->kind, &copy, add_bytes, &c.bytes);
        sum.flop += c.flop;
        sum.bytes += c.bytes;
    }
    return sum;
}
