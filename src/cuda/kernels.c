/* SPDX-License-Identifier: MIT
 * Tactics of our own kernels for everything but products: each checks what its kernel can walk and hands addresses
 * over. The attention of head widths that the kernel does not take keeps its scores in memory: cublas.c. */
#include <stdio.h>

#include "cuda/device.h"

static lw_status no_state(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                          size_t *workspace_bytes, lw_error *err) {
    (void)backend, (void)params, (void)op, (void)err;
    *state = NULL;
    *workspace_bytes = 0;
    return LW_OK;
}

static bool vectors(const lw_view *v) { return cu_is_float(v) && cu_is_vectors(v); }

/* ---- norm_stats */

static bool stats_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_norm_stats_args *m = &op->m->norm_stats;
    return op->n_member == 1 && vectors(&m->in) && m->out.dtype == LW_F32;
}

static lw_status stats_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    (void)params, (void)state;
    const lw_norm_stats_args *m = &op->m->norm_stats;
    cu_stats_args a = {.in = cu_view_at(run, m->in), .out = cu_view_at(run, m->out), .rows_per_part = m->rows_per_part};
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_norm_stats(cu_order_of(b, run), &a), err);
}

/* ---- apply */

typedef struct norm_packs {
    int32_t gamma, beta;
} norm_packs;

static bool apply_fits(const lw_apply_args *m) {
    const lw_prologue *in = &m->in;
    if (!vectors(&in->a) || !vectors(&m->out) || in->act == LW_ACT_GEGLU) return false;
    if (lw_view_is(in->b) && (!vectors(&in->b) || in->b.dtype != in->a.dtype)) return false;
    if (in->norm.kind == LW_NORM_LAYER) return !lw_view_is(in->b) && in->a.c <= CU_LAYER_CHANNELS;
    if (in->norm.kind == LW_NORM_NONE) return true;
    int32_t c = m->out.c, per = c / in->norm.groups, slab = per; /* a slab: whole groups of whole vectors */
    while (slab % 8) slab += per;
    return c % in->norm.groups == 0 && slab <= 64 * 8;
}

static bool all_fit(const lw_params *params, const lw_op *op, lw_norm_kind kind) {
    if (!cu_members_fit(params, op)) return false;
    for (int32_t i = 0; i < op->n_member; i++)
        if (op->m[i].apply.in.norm.kind != kind || !apply_fits(&op->m[i].apply)) return false;
    return true;
}

static bool apply_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b;
    return op->n_member == 1 ? apply_fits(&op->m->apply) : all_fit(params, op, LW_NORM_LAYER);
}

static lw_status apply_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                               lw_error *err) {
    (void)b, (void)workspace_bytes;
    norm_packs *k = lw_alloc(CU_MAX_MEMBERS, sizeof *k);
    if (!k) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = k;
    for (int32_t i = 0; i < op->n_member; i++) {
        const lw_norm *norm = &op->m[i].apply.in.norm;
        k[i] = (norm_packs){-1, -1};
        if (norm->kind == LW_NORM_NONE) continue;
        LW_TRY(cu_want_vector(params, norm->gamma, &k[i].gamma, err));
        LW_TRY(cu_want_vector(params, norm->beta, &k[i].beta, err));
    }
    return LW_OK;
}

/* Sizes and attributes. */
static cu_apply_args apply_of(const lw_apply_args *m) {
    const lw_norm *norm = &m->in.norm;
    return (cu_apply_args){.a = cu_view_of(m->in.a),
                           .b = cu_view_of(m->in.b),
                           .out = cu_view_of(m->out),
                           .norm = (int32_t)norm->kind,
                           .act = (int32_t)m->in.act,
                           .up2 = m->in.up2,
                           .groups = norm->groups,
                           .rows_per_part = norm->rows_per_part,
                           .eps = norm->eps};
}

/* With addresses, but for the statistics. */
static cu_apply_args apply_at(const lw_params *params, const lw_run *run, const lw_apply_args *m, const norm_packs *k) {
    cu_apply_args a = apply_of(m);
    a.a.p = lw_at(run, m->in.a);
    a.b.p = lw_at(run, m->in.b);
    a.out.p = lw_at(run, m->out);
    a.gamma = lw_pack_data(params, k->gamma);
    a.beta = lw_pack_data(params, k->beta);
    return a;
}

static lw_status apply_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    const norm_packs *k = state;
    const lw_norm *norm = &op->m->apply.in.norm;
    cu_apply_args a[CU_MAX_MEMBERS];
    for (int32_t i = 0; i < op->n_member; i++) a[i] = apply_at(params, run, &op->m[i].apply, &k[i]);
    if (norm->kind == LW_NORM_GROUP) {
        a->stats_a = cu_view_at(run, norm->stats_a);
        a->stats_b = cu_view_at(run, norm->stats_b);
    }
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_apply(cu_order_of(b, run), a, op->n_member), err);
}

/* ---- group norm with its statistics */

static bool group_norm_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    if (((const cu_backend *)b)->major < 9 || !all_fit(params, op, LW_NORM_GROUP)) return false;
    cu_apply_args a = apply_of(&op->m->apply);
    return cu_group_norm_fits(&a, op->n_member);
}

static lw_status group_norm_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                                lw_error *err) {
    const norm_packs *k = state;
    cu_apply_args a[CU_MAX_MEMBERS];
    for (int32_t i = 0; i < op->n_member; i++) a[i] = apply_at(params, run, &op->m[i].apply, &k[i]);
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_group_norm(cu_order_of(b, run), a, op->n_member), err);
}

_Static_assert((int)LW_NORM_NONE == CU_NORM_NONE && (int)LW_NORM_GROUP == CU_NORM_GROUP &&
                   (int)LW_NORM_LAYER == CU_NORM_LAYER,
               "norms are numbered alike");

/* ---- combine */

static bool combine_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_combine_args *m = &op->m->combine;
    return op->n_member == 1 && vectors(&m->in) && vectors(&m->out) && cu_epilogue_fits(&m->epi);
}

static lw_status combine_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                             lw_error *err) {
    (void)state;
    const lw_combine_args *m = &op->m->combine;
    cu_combine_args a = {.in = cu_view_at(run, m->in),
                         .out = cu_view_at(run, m->out),
                         .splits = 1,
                         .epi = cu_epilogue_at(params, run, &m->epi, -1)};
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_combine(cu_order_of(b, run), &a), err);
}

/* ---- attention */

static bool attention_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_attention_args *m = &op->m->attention;
    const lw_view *views[4] = {&m->q, &m->k, &m->v, &m->out};
    for (int i = 0; i < 4; i++)
        if (views[i]->dtype != LW_F16 || !cu_is_vectors(views[i]) || views[i]->h != 1) return false;
    int32_t d = m->q.c / m->heads;
    return op->n_member == 1 && d * m->heads == m->q.c && d % 8 == 0 && d <= CU_ATTENTION_MAX_D;
}

cu_attention_args cu_attention_at(const lw_attention_args *m, const lw_run *run) {
    return (cu_attention_args){.q = cu_view_at(run, m->q),
                               .k = cu_view_at(run, m->k),
                               .v = cu_view_at(run, m->v),
                               .out = cu_view_at(run, m->out),
                               .heads = m->heads,
                               .scale = m->scale,
                               .causal = m->causal};
}

static lw_status attention_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                               lw_error *err) {
    (void)params, (void)state;
    cu_attention_args a = cu_attention_at(&op->m->attention, run);
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_attention(cu_order_of(b, run), &a), err);
}

/* ---- embeddings */

typedef struct tables {
    int32_t tokens, positions;
} tables;

static bool tokens_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_embed_tokens_args *m = &op->m->embed_tokens;
    return op->n_member == 1 && cu_is_float(&m->out) && m->ids.dtype == LW_I32;
}

static lw_status tokens_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state,
                                size_t *workspace_bytes, lw_error *err) {
    (void)b, (void)workspace_bytes;
    const lw_embed_tokens_args *m = &op->m->embed_tokens;
    tables *t = lw_alloc(1, sizeof *t);
    if (!t) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = t;
    LW_TRY(cu_want_matrix(params, m->tokens, m->out.dtype, &t->tokens, err));
    return cu_want_matrix(params, m->positions, m->out.dtype, &t->positions, err);
}

static lw_status tokens_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                            lw_error *err) {
    const lw_embed_tokens_args *m = &op->m->embed_tokens;
    const tables *t = state;
    int64_t d[4];
    lw_param_dims(params, m->tokens, d);
    cu_embed_tokens_args a = {.ids = cu_view_at(run, m->ids),
                              .out = cu_view_at(run, m->out),
                              .tokens = lw_pack_data(params, t->tokens),
                              .positions = lw_pack_data(params, t->positions),
                              .n_tokens = (int32_t)d[0]};
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_embed_tokens(cu_order_of(b, run), &a), err);
}

static bool time_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_embed_time_args *m = &op->m->embed_time;
    return op->n_member == 1 && cu_is_float(&m->out) && m->t.dtype == LW_F32;
}

static lw_status time_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                          lw_error *err) {
    (void)params, (void)state;
    const lw_embed_time_args *m = &op->m->embed_time;
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_embed_time(cu_order_of(b, run), cu_view_at(run, m->t), cu_view_at(run, m->out)), err);
}

/* ---- bytes */

static bool pack_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_pack_args *m = &op->m->pack;
    return op->n_member == 1 && cu_is_float(&m->in) && m->out.dtype == LW_U8;
}

static lw_status pack_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                          lw_error *err) {
    (void)params, (void)state;
    const lw_pack_args *m = &op->m->pack;
    LW_TRY(cu_enter(b, err));
    cudaError_t e =
        cu_pack_u8(cu_order_of(b, run), cu_view_at(run, m->in), cu_view_at(run, m->out), lw_at(run, m->status));
    return cu_launched(b, op, e, err);
}

static bool unpack_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_pack_args *m = &op->m->pack;
    return op->n_member == 1 && cu_is_float(&m->out) && m->in.dtype == LW_U8;
}

static lw_status unpack_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                            lw_error *err) {
    (void)params, (void)state;
    const lw_pack_args *m = &op->m->pack;
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_unpack_u8(cu_order_of(b, run), cu_view_at(run, m->in), cu_view_at(run, m->out)), err);
}

/* ---- advance */

static bool advance_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_advance_args *m = &op->m->advance;
    const lw_view *states[4] = {&m->x, &m->h1, &m->h2, &m->y};
    for (int i = 0; i < 4; i++)
        if (states[i]->dtype != LW_F32 || states[i]->c != 8 || !lw_view_dense(states[i])) return false;
    if (lw_view_is(m->eps) && !cu_is_float(&m->eps)) return false;
    return op->n_member == 1 && cu_is_float(&m->net_in) && m->addends.dtype == LW_F32 && lw_view_dense(&m->noise);
}

static lw_status advance_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                             lw_error *err) {
    (void)params, (void)state;
    const lw_advance_args *m = &op->m->advance;
    bool scales = lw_view_is(m->scales);
    cu_advance_args a = {.eps = cu_view_at(run, m->eps),
                         .net_in = cu_view_at(run, m->net_in),
                         .x = lw_at(run, m->x),
                         .h1 = lw_at(run, m->h1),
                         .h2 = lw_at(run, m->h2),
                         .y = lw_at(run, m->y),
                         .rows = lw_at(run, m->rows),
                         .noise = lw_at(run, m->noise),
                         .addend_table = lw_at(run, m->addend_table),
                         .addends = lw_at(run, m->addends),
                         .n_addends = m->addends.c,
                         .addend_stride = m->addend_table.sw,
                         .status = lw_at(run, m->status)};
    if (scales) {
        a.scale_table = lw_at(run, m->scale_table);
        a.scales = lw_at(run, m->scales);
        a.n_scales = m->scales.c;
        a.scale_stride = m->scale_table.sw;
    }
    LW_TRY(cu_enter(b, err));
    return cu_launched(b, op, cu_advance(cu_order_of(b, run), &a), err);
}

#define TACTIC(symbol, text, kind, supports, prepare, run)                                                             \
    static const lw_tactic symbol = {text, kind, LW_TAKES_ALL, supports, prepare, run, cu_release}
TACTIC(stats, "norm_stats_cuda", LW_OP_NORM_STATS, stats_supports, no_state, stats_run);
static const lw_tactic apply = {
    "apply_cuda", LW_OP_APPLY, LW_TAKES_ALL | LW_TAKES_MEMBERS, apply_supports, apply_prepare, apply_run, cu_release};
static const lw_tactic group_norm = {
    "group_norm_cuda",   LW_OP_APPLY,   LW_TAKES_ALL | LW_TAKES_MEMBERS | LW_TAKES_STATS,
    group_norm_supports, apply_prepare, group_norm_run,
    cu_release};
TACTIC(combine, "combine_cuda", LW_OP_COMBINE, combine_supports, no_state, combine_run);
TACTIC(attention, "attention_mma", LW_OP_ATTENTION, attention_supports, no_state, attention_run);
TACTIC(tokens, "embed_tokens_cuda", LW_OP_EMBED_TOKENS, tokens_supports, tokens_prepare, tokens_run);
TACTIC(times, "embed_time_cuda", LW_OP_EMBED_TIME, time_supports, no_state, time_run);
TACTIC(pack, "pack_u8_cuda", LW_OP_PACK_U8, pack_supports, no_state, pack_run);
TACTIC(unpack, "unpack_u8_cuda", LW_OP_UNPACK_U8, unpack_supports, no_state, unpack_run);
TACTIC(advance, "advance_cuda", LW_OP_ADVANCE, advance_supports, no_state, advance_run);

const lw_tactic *const cu_kernel_tactics[] = {&stats, &group_norm, &apply,  &combine, &attention, &tokens,
                                              &times, &pack,       &unpack, &advance, NULL};
