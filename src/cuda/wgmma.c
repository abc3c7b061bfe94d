/* SPDX-License-Identifier: MIT
 * Tactics over the Hopper product kernels (wgmma.cu), one for each tile: which is fastest for a shape is the tuner's to
 * find. In half on sm_90 alone, with the whole epilogue. After the libraries in the order of preference: without a
 * table of choices they run nothing that they have not been measured to win. */
#include "cuda/device.h"
#include "cuda/tiles.h"

typedef struct wgmma_state {
    int32_t weights, bias, splits;
} wgmma_state;

typedef struct tile_size {
    int32_t rows, columns, blocks;
} tile_size;

static const tile_size tiles[CU_N_WGMMA_TILES] = {
#define X(index, groups, height, columns, blocks) [index] = {(groups) * (height)*64, columns, blocks},
    CU_WGMMA_TILES(X)
#undef X
};

/* The copy engine walks pictures at strides that are multiples of each other, (g, n) as one axis. */
static bool has_map(const lw_view *v) {
    if (v->sw <= 0 || (v->h > 1 && (v->sh <= 0 || v->sh % v->sw))) return false;
    int64_t row = v->h > 1 ? v->sh : v->sw;
    if (v->n > 1 && (v->sn <= 0 || v->sn % row)) return false;
    if (v->g > 1 && (v->sg <= 0 || v->sg % row)) return false;
    return v->g == 1 || v->n == 1 || v->sg == v->n * v->sn;
}

static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op, int32_t tile) {
    const cu_backend *b = (const cu_backend *)backend;
    const lw_product_args *p = &op->m->product;
    const lw_view *in = &p->in.a, *out = &p->out;
    if (b->major != 9 || b->minor != 0 || !b->encode || op->n_member != 1) return false;
    if (in->dtype != LW_F16 || out->dtype != LW_F16 || p->stride < 1 || p->stride > 2) return false;
    if (!cu_is_vectors(in) || !cu_is_vectors(out) || !has_map(in) || !cu_epilogue_fits(&p->epi)) return false;
    int64_t d[4], rows = (int64_t)out->g * out->n * out->h * out->w;
    lw_param_dims(params, p->w, d);
    if (rows >= 1 << 24 || d[1] * d[2] * d[3] >= 1 << 30 || d[1] != in->c) return false;
    /* a tile of twice what there is only wastes */
    const tile_size *t = &tiles[tile];
    return (t->rows == 64 || t->rows < 2 * rows) && (t->columns == 64 || t->columns < 2 * d[0]);
}

/* Parts of the sum: as many as the device has room for, each of some steps to be worth its beginning and end. */
static int32_t choose_splits(const cu_backend *b, const lw_product_args *p, int64_t columns, int32_t tile) {
    enum { MIN_STEPS = 4 };
    const tile_size *size = &tiles[tile];
    cu_tiling t;
    cu_product_args a = {.in = cu_view_of(p->in.a),
                         .out = cu_view_of(p->out),
                         .kh = p->kh,
                         .kw = p->kw,
                         .stride = p->stride,
                         .pad_top = p->pad_top,
                         .pad_left = p->pad_left};
    cu_wgmma_tiling(&t, &a, size->rows);
    int64_t room = (int64_t)b->n_sm * size->blocks,
            blocks = (int64_t)t.tiles * cu_ceil_div((int32_t)columns, size->columns);
    int32_t splits = 1;
    while (splits < CU_WGMMA_MAX_SPLITS && blocks * splits * 2 <= room && t.steps >= splits * 2 * MIN_STEPS)
        splits *= 2;
    return splits;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         int32_t tile, lw_error *err) {
    (void)workspace_bytes;
    const lw_product_args *p = &op->m->product;
    wgmma_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    int64_t d[4];
    lw_param_dims(params, p->w, d);
    s->splits = choose_splits(cu_of(backend), p, d[0], tile);
    LW_TRY(cu_want_matrix(params, p->w, LW_F16, &s->weights, err));
    return cu_want_vector(params, p->bias, &s->bias, err);
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     int32_t tile, lw_error *err) {
    const wgmma_state *s = state;
    cu_product_args a = cu_product_at(params, op, r, s->weights, s->bias);
    a.tile = tile;
    a.splits = s->splits;
    LW_TRY(cu_enter(backend, err));
    return cu_launched(backend, op, cu_wgmma(cu_order_of(backend, r), &a, cu_of(backend)->encode), err);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

/* A tactic has no data of its own: each tile has functions that name it. */
#define X(index, groups, height, columns, blocks)                                                                      \
    static bool supports_##index(const lw_backend *b, const lw_params *params, const lw_op *op) {                      \
        return supports(b, params, op, index);                                                                         \
    }                                                                                                                  \
    static lw_status prepare_##index(lw_backend *b, lw_params *params, const lw_op *op, void **state,                  \
                                     size_t *workspace_bytes, lw_error *err) {                                         \
        return prepare(b, params, op, state, workspace_bytes, index, err);                                             \
    }                                                                                                                  \
    static lw_status run_##index(lw_backend *b, const lw_params *params, const lw_op *op, void *state,                 \
                                 const lw_run *r, lw_error *err) {                                                     \
        return run(b, params, op, state, r, index, err);                                                               \
    }                                                                                                                  \
    static const lw_tactic linear_##index = {"linear_wgmma_" #groups "x" #height "x" #columns,                         \
                                             LW_OP_LINEAR,                                                             \
                                             TAKES,                                                                    \
                                             supports_##index,                                                         \
                                             prepare_##index,                                                          \
                                             run_##index,                                                              \
                                             cu_release},                                                              \
                           conv2d_##index = {"conv2d_wgmma_" #groups "x" #height "x" #columns,                         \
                                             LW_OP_CONV2D,                                                             \
                                             TAKES,                                                                    \
                                             supports_##index,                                                         \
                                             prepare_##index,                                                          \
                                             run_##index,                                                              \
                                             cu_release};
CU_WGMMA_TILES(X)
#undef X

const lw_tactic *const cu_wgmma_tactics[] = {
#define X(index, groups, height, columns, blocks) &linear_##index, &conv2d_##index,
    CU_WGMMA_TILES(X)
#undef X
        NULL};
