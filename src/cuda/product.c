/* SPDX-License-Identifier: MIT
 * Tactics over our own product kernels (product.cu): every convolution and linear in half or float, on any
 * architecture, with the whole epilogue in it (GEGLU, the time addend, ControlNet's scale, the residual). */
#include "cuda/device.h"

typedef struct product_state {
    int32_t weights, bias, tile, splits;
} product_state;

static bool supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b;
    const lw_product_args *p = &op->m->product;
    const lw_view *in = &p->in.a, *out = &p->out;
    if (op->n_member != 1 || !cu_is_float(in) || in->dtype != out->dtype) return false;
    if (!cu_is_vectors(in) || !cu_is_vectors(out) || !cu_epilogue_fits(&p->epi)) return false;
    int64_t d[4], rows = (int64_t)out->g * out->n * out->h * out->w;
    lw_param_dims(params, p->w, d);
    return rows < 1 << 30 && d[1] * d[2] * d[3] < 1 << 30;
}

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Tiles of 128 where they fill the device, else of 64; and where those do not fill it either, the sum is split so that
 * two blocks a multiprocessor have work, while each keeps some steps to amortise its beginning and end. */
static void choose(const cu_backend *b, const lw_product_args *p, int64_t rows, int64_t columns, int64_t sum,
                   product_state *s) {
    enum { MIN_STEPS = 4, MAX_SPLITS = 16 };
    s->splits = 1;
    s->tile = CU_TILE_F32;
    if (p->in.a.dtype == LW_F32) return;
    s->tile = CU_TILE_128;
    if (divide_up(rows, 128) * divide_up(columns, 128) * 4 >= (int64_t)b->n_sm * 3) return;
    s->tile = CU_TILE_64;
    int64_t tiles = divide_up(rows, 64) * divide_up(columns, 64), steps = divide_up(sum, CU_PRODUCT_STEP);
    int64_t splits = 2 * b->n_sm / tiles;
    if (splits > steps / MIN_STEPS) splits = steps / MIN_STEPS;
    if (splits > MAX_SPLITS) splits = MAX_SPLITS;
    if (splits > 1) s->splits = (int32_t)splits;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    const lw_product_args *p = &op->m->product;
    product_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    int64_t d[4], rows = (int64_t)p->out.g * p->out.n * p->out.h * p->out.w;
    lw_param_dims(params, p->w, d);
    choose(cu_of(backend), p, rows, d[0], d[1] * d[2] * d[3], s);
    if (s->splits > 1) *workspace_bytes = (size_t)(s->splits * rows * d[0]) * sizeof(float);
    LW_TRY(cu_want_matrix(params, p->w, p->in.a.dtype, &s->weights, err));
    return cu_want_vector(params, p->bias, &s->bias, err);
}

cu_product_args cu_product_of(const lw_params *params, const lw_product_args *p) {
    int64_t d[4];
    lw_param_dims(params, p->w, d);
    return (cu_product_args){.in = cu_view_of(p->in.a),
                             .out = cu_view_of(p->out),
                             .n_rows = (int32_t)d[0],
                             .kh = p->kh,
                             .kw = p->kw,
                             .stride = p->stride,
                             .pad_top = p->pad_top,
                             .pad_left = p->pad_left};
}

cu_product_args cu_product_at(const lw_params *params, const lw_product_args *p, const lw_run *run, int32_t weights,
                              int32_t bias) {
    cu_product_args a = cu_product_of(params, p);
    a.in.p = lw_at(run, p->in.a);
    a.out.p = lw_at(run, p->out);
    a.weights = lw_pack_data(params, weights);
    a.epi = cu_epilogue_at(params, run, &p->epi, bias);
    return a;
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const product_state *s = state;
    cu_product_args a = cu_product_at(params, &op->m->product, r, s->weights, s->bias);
    a.tile = s->tile;
    a.splits = s->splits;
    a.partials = r->workspace;
    LW_TRY(cu_enter(backend, err));
    return cu_launched(backend, op, cu_product(cu_order_of(backend, r), &a), err);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

static const lw_tactic linear = {"linear_mma", LW_OP_LINEAR, TAKES, supports, prepare, run, cu_release};
const lw_tactic cu_conv2d_mma = {"conv2d_mma", LW_OP_CONV2D, TAKES, supports, prepare, run, cu_release};

const lw_tactic *const cu_product_tactics[] = {&linear, &cu_conv2d_mma, NULL};
