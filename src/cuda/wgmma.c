/* SPDX-License-Identifier: MIT
 * Tactics over the Hopper product kernels (wgmma.cu), one for each tile: which is fastest for a shape is the tuner's to
 * find. In half on sm_90 alone, with the whole epilogue. After the libraries in the order of preference: without a
 * table of choices they run nothing that they have not been measured to win. */
#include "cuda/device.h"
#include "cuda/tiles.h"

typedef struct wgmma_state {
    int32_t weights[CU_WGMMA_MAX_MEMBERS], bias[CU_WGMMA_MAX_MEMBERS], tile, splits;
} wgmma_state;

typedef struct tile_size {
    int32_t rows, columns, blocks;
} tile_size;

static const tile_size tiles[CU_N_WGMMA_TILES] = {
#define X(index, groups, height, columns, blocks) [index] = {(groups) * (height)*64, columns, blocks},
    CU_WGMMA_TILES(X)
#undef X
};

/* Of a product whose prologue is still in it, too: what it leaves for the tactic is dense, of the size of out. */
static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op, int32_t tile) {
    const cu_backend *b = (const cu_backend *)backend;
    if (b->major != 9 || b->minor != 0 || !b->encode) return false;
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        const lw_view *in = &p->in.a, *out = &p->out;
        if (in->dtype != LW_F16 || out->dtype != LW_F16 || p->stride < 1 || p->stride > 2) return false;
        if (!cu_is_vectors(in) || !cu_is_vectors(out) || !cu_epilogue_fits(&p->epi)) return false;
        int64_t d[4], rows = (int64_t)out->g * out->n * out->h * out->w;
        lw_param_dims(params, p->w, d);
        if (rows >= 1 << 21 || d[1] * d[2] * d[3] >= 1 << 30) return false;
        /* a tile of twice what there is only wastes */
        const tile_size *t = &tiles[tile];
        if ((t->rows > 64 && t->rows >= 2 * rows) || (t->columns > 64 && t->columns >= 2 * d[0])) return false;
    }
    return true;
}

/* ---- splits and, for what is not tuned, tiles: by a plain model of a launch in cycles of a multiprocessor */

typedef struct choice {
    int32_t tile, splits;
    double cycles;
} choice;

static double launch_cycles(const cu_backend *b, const tile_size *size, int64_t blocks, int32_t steps) {
    /* dense half products a cycle; bytes a cycle out of the level-2 cache; a launch before and after its steps */
    const double products = 2048, bytes = 36, ends = 2500, sums = 16;
    double multiply = (double)size->rows * size->columns * CU_CHUNK / products,
           load = (double)(size->rows + size->columns) * CU_CHUNK_BYTES / bytes,
           step = multiply > load ? multiply : load;
    int64_t room = (int64_t)b->n_sm * size->blocks, waves = (blocks + room - 1) / room;
    double together = blocks > b->n_sm ? size->blocks : 1; /* on one multiprocessor, each slower by the other */
    return (double)waves * (together * steps * step + (double)size->rows * size->columns / sums) + ends;
}

/* The splits that the model says are best for a tile; a part of the sum has some steps to be worth its beginning. */
static choice best_splits(const cu_backend *b, const lw_product_args *p, int64_t weight_rows, int32_t members,
                          int32_t tile) {
    enum { MIN_STEPS = 4, REDUCE = 1500 };
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
    int64_t blocks = (int64_t)members * t.tiles * cu_ceil_div((int32_t)weight_rows, size->columns);
    choice best = {.tile = tile, .splits = 1, .cycles = launch_cycles(b, size, blocks, t.steps)};
    for (int32_t s = 2; s <= CU_WGMMA_MAX_SPLITS && t.steps >= s * MIN_STEPS; s *= 2) {
        double cycles = launch_cycles(b, size, blocks * s, cu_ceil_div(t.steps, s)) + REDUCE;
        if (cycles < best.cycles) best.splits = s, best.cycles = cycles;
    }
    return best;
}

static choice best_tile(const cu_backend *b, const lw_params *params, const lw_op *op) {
    int64_t d[4];
    choice best = {.tile = -1};
    lw_param_dims(params, op->m->product.w, d);
    for (int32_t tile = 0; tile < CU_N_WGMMA_TILES; tile++) {
        if (!supports(&b->base, params, op, tile)) continue;
        choice c = best_splits(b, &op->m->product, d[0], op->n_member, tile);
        if (best.tile < 0 || c.cycles < best.cycles) best = c;
    }
    return best;
}

/* ---- a tactic's three functions, for a tile or for the model's choice (ANY_TILE) */

enum { ANY_TILE = -1 };

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, int32_t tile,
                         lw_error *err) {
    wgmma_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    int64_t d[4];
    lw_param_dims(params, op->m->product.w, d);
    choice c = tile == ANY_TILE ? best_tile(cu_of(backend), params, op)
                                : best_splits(cu_of(backend), &op->m->product, d[0], op->n_member, tile);
    if (c.tile < 0) return lw_fail(err, LW_EINTERNAL, "op %s: no tile takes it", op->name);
    s->tile = c.tile;
    s->splits = c.splits;
    for (int32_t i = 0; i < op->n_member; i++) {
        LW_TRY(cu_want_matrix(params, op->m[i].product.w, LW_F16, &s->weights[i], err));
        LW_TRY(cu_want_vector(params, op->m[i].product.bias, &s->bias[i], err));
    }
    return LW_OK;
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const wgmma_state *s = state;
    cu_product_args a[CU_WGMMA_MAX_MEMBERS];
    for (int32_t i = 0; i < op->n_member; i++) {
        lw_op one = {.kind = op->kind, .n_member = 1, .name = op->name, .m = &op->m[i]};
        a[i] = cu_product_at(params, &one, r, s->weights[i], s->bias[i]);
        a[i].tile = s->tile;
        a[i].splits = s->splits;
    }
    LW_TRY(cu_enter(backend, err));
    return cu_launched(backend, op, cu_wgmma(cu_order_of(backend, r), a, op->n_member, cu_of(backend)->encode), err);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

/* A tactic has no data of its own: each tile has functions that name it. */
#define X(index, groups, height, columns, blocks)                                                                      \
    static bool supports_##index(const lw_backend *b, const lw_params *params, const lw_op *op) {                      \
        return op->n_member == 1 && supports(b, params, op, index);                                                    \
    }                                                                                                                  \
    static lw_status prepare_##index(lw_backend *b, lw_params *params, const lw_op *op, void **state,                  \
                                     size_t *workspace_bytes, lw_error *err) {                                         \
        (void)workspace_bytes;                                                                                         \
        return prepare(b, params, op, state, index, err);                                                              \
    }                                                                                                                  \
    static const lw_tactic linear_##index = {"linear_wgmma_" #groups "x" #height "x" #columns,                         \
                                             LW_OP_LINEAR,                                                             \
                                             TAKES,                                                                    \
                                             supports_##index,                                                         \
                                             prepare_##index,                                                          \
                                             run,                                                                      \
                                             cu_release},                                                              \
                           conv2d_##index = {"conv2d_wgmma_" #groups "x" #height "x" #columns,                         \
                                             LW_OP_CONV2D,                                                             \
                                             TAKES,                                                                    \
                                             supports_##index,                                                         \
                                             prepare_##index,                                                          \
                                             run,                                                                      \
                                             cu_release};
CU_WGMMA_TILES(X)
#undef X

const lw_tactic *const cu_wgmma_tactics[] = {
#define X(index, groups, height, columns, blocks) &linear_##index, &conv2d_##index,
    CU_WGMMA_TILES(X)
#undef X
        NULL};

/* ---- several members in one launch, and one by the model's choice: what a plan without tuning could take */

static bool supports_any(const lw_backend *b, const lw_params *params, const lw_op *op) {
    return op->n_member <= CU_WGMMA_MAX_MEMBERS && best_tile((const cu_backend *)b, params, op).tile >= 0;
}

static lw_status prepare_any(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                             lw_error *err) {
    (void)workspace_bytes;
    return prepare(b, params, op, state, ANY_TILE, err);
}

static const lw_tactic linear_any = {
    "linear_wgmma", LW_OP_LINEAR, TAKES | LW_TAKES_MEMBERS, supports_any, prepare_any, run, cu_release};
static const lw_tactic conv2d_any = {
    "conv2d_wgmma", LW_OP_CONV2D, TAKES | LW_TAKES_MEMBERS, supports_any, prepare_any, run, cu_release};

const lw_tactic *const cu_wgmma_group_tactics[] = {&linear_any, &conv2d_any, NULL};

/* ---- attention */

static lw_status attention_prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                   size_t *workspace_bytes, lw_error *err) {
    (void)backend, (void)params, (void)op, (void)workspace_bytes, (void)err;
    *state = NULL;
    return LW_OK;
}

static bool attention_supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    const cu_backend *b = (const cu_backend *)backend;
    const lw_attention_args *m = &op->m->attention;
    int32_t d = m->q.c / m->heads;
    (void)params;
    if (b->major != 9 || b->minor != 0 || !b->encode || op->n_member != 1 || m->causal) return false;
    const lw_view *views[4] = {&m->q, &m->k, &m->v, &m->out};
    for (int i = 0; i < 4; i++)
        if (views[i]->dtype != LW_F16 || !cu_is_vectors(views[i]) || views[i]->h != 1 || views[i]->sw <= 0)
            return false;
    return d * m->heads == m->q.c && (d == 40 || d == 80 || d == 160);
}

static lw_status attention_run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                               const lw_run *r, lw_error *err) {
    (void)params, (void)state;
    cu_attention_args a = cu_attention_at(op, r);
    LW_TRY(cu_enter(backend, err));
    const cu_backend *b = cu_of(backend);
    return cu_launched(backend, op, cu_wgmma_attention(cu_order_of(backend, r), &a, b->n_sm, b->encode), err);
}

static const lw_tactic attention = {"attention_wgmma", LW_OP_ATTENTION, LW_TAKES_ALL, attention_supports,
                                    attention_prepare, attention_run,   cu_release};

const lw_tactic *const cu_wgmma_attention_tactics[] = {&attention, NULL};
