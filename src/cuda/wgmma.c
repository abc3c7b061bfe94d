/* SPDX-License-Identifier: MIT
 * Tactics over the Hopper product kernels (wgmma.cu, turns.cu), in half on sm_90 alone, with the whole epilogue. The
 * first of all, linear_wgmma and conv2d_wgmma, take the tile that the model says (model.h). Those of one tile each
 * stand behind the libraries: which of them is faster yet for a shape is the tuner's to find. */
#include "cuda/device.h"
#include "cuda/model.h"

typedef struct wgmma_state {
    int32_t weights[CU_MAX_MEMBERS], bias[CU_MAX_MEMBERS];
    cu_choice choice;
    bool normed;                                                             /* a layer norm is in weights and bias */
    int32_t shortcut_weights[CU_MAX_MEMBERS], shortcut_bias[CU_MAX_MEMBERS]; /* -1: none */
} wgmma_state;

enum { ANY_TILE = -1 };
_Static_assert((int)CU_ROW_PART == (int)LW_ROW_PART, "one layout of statistics");

/* Of a product whose prologue is still in it, too: what it leaves for the tactic is dense, of the size of out. */
static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op, int32_t tile) {
    const cu_backend *b = (const cu_backend *)backend;
    if (b->major != 9 || b->minor != 0 || !b->encode || !cu_members_fit(params, op)) return false;
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        const lw_view *in = &p->in.a, *out = &p->out;
        if (in->dtype != LW_F16 || out->dtype != LW_F16 || p->stride < 1 || p->stride > 2) return false;
        if (!cu_is_vectors(in) || !cu_is_vectors(out) || !cu_epilogue_fits(&p->epi)) return false;
        if (lw_view_is(p->epi.residual) && p->epi.residual.dtype != LW_F16) return false;
        int64_t d[4], rows = (int64_t)out->g * out->n * out->h * out->w;
        lw_param_dims(params, p->w, d);
        if (rows >= 1 << 21 || d[1] * d[2] * d[3] >= 1 << 30) return false;
        if (lw_view_is(p->row_stats) && (p->epi.act != LW_ACT_NONE || !lw_row_stats_fit(out) || !lw_view_dense(out) ||
                                         !lw_view_dense(&p->row_stats)))
            return false;
        if (tile == ANY_TILE) {
            if (!cu_wgmma_fills((int32_t)d[1])) return false;
            continue;
        }
        /* a tile of twice what there is only wastes */
        const cu_tile_size *t = &cu_product_tiles[tile];
        if (lw_view_is(p->row_stats) && t->columns % CU_ROW_PART) return false;
        if ((t->rows > 64 && t->rows >= 2 * rows) || (t->columns > 64 && t->columns >= 2 * d[0])) return false;
    }
    return true;
}

/* A view's sizes; its address is not known yet, but whether there will be one. */
static cu_view shape_of(lw_view v) {
    cu_view shape = cu_view_of(v);
    shape.p = lw_view_is(v) ? (void *)1 : NULL;
    return shape;
}

/* A member as far as it is known before it runs: sizes, and what there is. */
static cu_product_args sizes_of(const lw_params *params, const lw_product_args *p, bool normed) {
    cu_product_args a = cu_product_of(params, p);
    a.stats = normed ? shape_of(p->in.norm.stats_a).p : NULL;
    a.row_stats = shape_of(p->row_stats).p;
    a.shortcut_weights = shape_of(p->shortcut_a).p;
    a.epi = (cu_epilogue){.act = (int32_t)p->epi.act,
                          .addend = shape_of(p->epi.addend),
                          .scale = shape_of(p->epi.scale).p,
                          .residual = shape_of(p->epi.residual)};
    return a;
}

static bool turns_fit(const cu_backend *b, const lw_params *params, const lw_op *op, bool normed) {
    for (int32_t i = 0; i < op->n_member; i++) {
        const cu_product_args a = sizes_of(params, &op->m[i].product, normed);
        if (!cu_turns_fit(&a)) return false;
    }
    return b->turns;
}

static cu_choice choose(const cu_backend *b, const lw_params *params, const lw_op *op, int32_t tile, bool normed) {
    const cu_product_args a = sizes_of(params, &op->m->product, normed);
    return tile == ANY_TILE ? cu_product_choose(&b->model, &a, op->n_member, turns_fit(b, params, op, normed))
                            : cu_product_splits(&b->model, &a, op->n_member, tile);
}

/* ---- a tactic's three functions, for a tile or for the model's choice (ANY_TILE) */

/* normed: with the layer norm in weights and bias. */
static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, int32_t tile,
                         bool normed, lw_error *err) {
    wgmma_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    s->choice = choose(cu_of(backend), params, op, tile, normed);
    s->normed = normed;
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        if (normed) {
            LW_TRY(cu_want_folded(params, p->w, p->bias, &p->in.norm, &s->weights[i], &s->bias[i], err));
            continue;
        }
        LW_TRY(cu_want_matrix(params, p->w, LW_F16, &s->weights[i], err));
        LW_TRY(cu_want_vector(params, p->bias, &s->bias[i], err));
    }
    return LW_OK;
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const wgmma_state *s = state;
    cu_product_args a[CU_MAX_MEMBERS];
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        a[i] = cu_product_at(params, p, r, s->weights[i], s->bias[i]);
        a[i].tile = s->choice.tile;
        a[i].splits = s->choice.splits;
        a[i].pairs = s->choice.pairs && cu_of(backend)->pairs;
        a[i].row_stats = lw_at(r, p->row_stats);
        if (s->normed) {
            a[i].stats = lw_at(r, p->in.norm.stats_a);
            a[i].eps = p->in.norm.eps;
        }
        if (lw_view_is(p->shortcut_a)) {
            a[i].shortcut_a = cu_view_at(r, p->shortcut_a);
            a[i].shortcut_b = cu_view_at(r, p->shortcut_b);
            a[i].shortcut_weights = lw_pack_data(params, s->shortcut_weights[i]);
            a[i].shortcut_bias = lw_pack_data(params, s->shortcut_bias[i]);
        }
    }
    LW_TRY(cu_enter(backend, err));
    return cu_launched(backend, op, cu_wgmma(cu_order_of(backend, r), a, op->n_member, cu_of(backend)->encode), err);
}

enum {
    TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL |
            LW_TAKES_ANY_RESIDUAL | LW_TAKES_MEMBERS | LW_TAKES_ROW_STATS
};

/* A tactic has no data of its own: each tile has functions that name it. */
#define TILE_TACTICS(index, name)                                                                                      \
    static lw_status prepare_##index(lw_backend *b, lw_params *params, const lw_op *op, void **state,                  \
                                     size_t *workspace_bytes, lw_error *err) {                                         \
        (void)workspace_bytes;                                                                                         \
        return prepare(b, params, op, state, index, false, err);                                                       \
    }                                                                                                                  \
    static const lw_tactic linear_##index = {"linear_wgmma_" name, LW_OP_LINEAR, TAKES,     supports_##index,          \
                                             prepare_##index,      run,          cu_release},                          \
                           conv2d_##index = {"conv2d_wgmma_" name, LW_OP_CONV2D, TAKES,     supports_##index,          \
                                             prepare_##index,      run,          cu_release};

#define X(index, rows, columns, blocks)                                                                                \
    static bool supports_##index(const lw_backend *b, const lw_params *params, const lw_op *op) {                      \
        return supports(b, params, op, index);                                                                         \
    }                                                                                                                  \
    TILE_TACTICS(index, #rows "x" #columns)
CU_WGMMA_TILES(X)
#undef X

#define X(index, rows, columns)                                                                                        \
    static bool supports_##index(const lw_backend *b, const lw_params *params, const lw_op *op) {                      \
        return supports(b, params, op, index) && turns_fit((const cu_backend *)b, params, op, false);                  \
    }                                                                                                                  \
    TILE_TACTICS(index, "t" #rows "x" #columns)
CU_TURNS_TILES(X)
#undef X

const lw_tactic *const cu_wgmma_tile_tactics[] = {
#define X(index, ...) &linear_##index, &conv2d_##index,
    CU_WGMMA_TILES(X) CU_TURNS_TILES(X)
#undef X
        NULL};

/* ---- by the model's choice: for one product, or for several members in one launch */

static bool supports_any(const lw_backend *b, const lw_params *params, const lw_op *op) {
    return supports(b, params, op, ANY_TILE);
}

static lw_status prepare_any(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                             lw_error *err) {
    (void)workspace_bytes;
    return prepare(b, params, op, state, ANY_TILE, false, err);
}

static const lw_tactic linear_any = {"linear_wgmma", LW_OP_LINEAR, TAKES, supports_any, prepare_any, run, cu_release};
static const lw_tactic conv2d_any = {"conv2d_wgmma", LW_OP_CONV2D, TAKES, supports_any, prepare_any, run, cu_release};

/* ---- a layer norm in its linear, where the statistics of its rows are there */

static bool supports_normed(const lw_backend *b, const lw_params *params, const lw_op *op) {
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        const lw_prologue *in = &p->in;
        if (in->norm.kind != LW_NORM_LAYER || !lw_view_is(in->norm.stats_a) || lw_view_is(in->b) ||
            in->act != LW_ACT_NONE || in->up2 || !lw_view_dense(&in->a) || !lw_view_dense(&in->norm.stats_a) ||
            in->a.g != p->out.g || in->a.n != p->out.n || !lw_row_stats_fit(&in->a) || p->kh * p->kw != 1)
            return false;
    }
    return supports_any(b, params, op);
}

static lw_status prepare_normed(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                size_t *workspace_bytes, lw_error *err) {
    (void)workspace_bytes;
    return prepare(backend, params, op, state, ANY_TILE, true, err);
}

static const lw_tactic linear_normed = {
    "linear_wgmma_normed", LW_OP_LINEAR, TAKES | LW_TAKES_PROLOGUE, supports_normed, prepare_normed, run, cu_release};

/* ---- a residual block's last convolution with its shortcut in the same sum */

/* One view of a shortcut, as the copy engine walks it. */
static bool shortcut_view(const lw_view *v, const lw_view *out) {
    if (!lw_view_is(*v)) return true;
    int64_t pictures = v->n > 1 ? v->sn : v->sg; /* from one to the next */
    return v->dtype == LW_F16 && cu_is_vectors(v) && v->g == out->g && v->n == out->n && v->h == out->h &&
           v->w == out->w && v->sw > 0 && v->sh > 0 && (v->g * v->n == 1 || pictures > 0) &&
           (v->g == 1 || v->n == 1 || v->sg == v->n * v->sn);
}

static bool supports_shortcut(const lw_backend *b, const lw_params *params, const lw_op *op) {
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_product_args *p = &op->m[i].product;
        if (!lw_view_is(p->shortcut_a) || p->kh * p->kw == 1 || p->stride != 1 || p->epi.act != LW_ACT_NONE ||
            lw_view_is(p->epi.scale) || !shortcut_view(&p->shortcut_a, &p->out) ||
            !shortcut_view(&p->shortcut_b, &p->out))
            return false;
    }
    return supports_any(b, params, op);
}

static lw_status prepare_shortcut(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                  size_t *workspace_bytes, lw_error *err) {
    (void)workspace_bytes;
    LW_TRY(prepare(backend, params, op, state, ANY_TILE, false, err));
    wgmma_state *s = *state;
    for (int32_t i = 0; i < op->n_member; i++) {
        LW_TRY(cu_want_matrix(params, op->m[i].product.shortcut_w, LW_F16, &s->shortcut_weights[i], err));
        LW_TRY(cu_want_vector(params, op->m[i].product.shortcut_bias, &s->shortcut_bias[i], err));
    }
    return LW_OK;
}

static const lw_tactic conv2d_shortcut = {"conv2d_wgmma_shortcut",
                                          LW_OP_CONV2D,
                                          TAKES | LW_TAKES_SHORTCUT,
                                          supports_shortcut,
                                          prepare_shortcut,
                                          run,
                                          cu_release};

const lw_tactic *const cu_wgmma_tactics[] = {&linear_normed, &linear_any, &conv2d_shortcut, &conv2d_any, NULL};

/* ---- attention */

static lw_status attention_prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                   size_t *workspace_bytes, lw_error *err) {
    (void)backend, (void)params, (void)op, (void)workspace_bytes, (void)err;
    *state = NULL;
    return LW_OK;
}

static bool attention_supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    const cu_backend *b = (const cu_backend *)backend;
    if (b->major != 9 || b->minor != 0 || !b->encode || !cu_members_fit(params, op)) return false;
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_attention_args *m = &op->m[i].attention;
        const lw_view *views[4] = {&m->q, &m->k, &m->v, &m->out};
        int32_t d = m->q.c / m->heads;
        if (m->causal || d * m->heads != m->q.c || (d != 40 && d != 80 && d != 160)) return false;
        for (int k = 0; k < 4; k++)
            if (views[k]->dtype != LW_F16 || !cu_is_vectors(views[k]) || views[k]->h != 1 || views[k]->sw <= 0)
                return false;
    }
    return true;
}

static lw_status attention_run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                               const lw_run *r, lw_error *err) {
    (void)params, (void)state;
    const cu_backend *b = cu_of(backend);
    cu_attention_args a[CU_MAX_MEMBERS];
    for (int32_t i = 0; i < op->n_member; i++) a[i] = cu_attention_at(&op->m[i].attention, r);
    LW_TRY(cu_enter(backend, err));
    return cu_launched(backend, op, cu_wgmma_attention(cu_order_of(backend, r), a, op->n_member, b->n_sm, b->encode),
                       err);
}

static const lw_tactic attention = {"attention_wgmma",  LW_OP_ATTENTION,   LW_TAKES_ALL | LW_TAKES_MEMBERS,
                                    attention_supports, attention_prepare, attention_run,
                                    cu_release};

const lw_tactic *const cu_wgmma_attention_tactics[] = {&attention, NULL};
