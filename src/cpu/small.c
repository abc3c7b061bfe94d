/* SPDX-License-Identifier: MIT
 * Own fp32 tactics for the ops that no library does well: norm_stats, apply, combine, attention. Work is split by rows,
 * so the thread count never changes a sum. */
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/kernels.h"

static bool one_fp32(const lw_op *op, const lw_view *a, const lw_view *b) {
    return op->n_member == 1 && a->dtype == LW_F32 && b->dtype == LW_F32;
}

static lw_status no_state(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                          size_t *workspace_bytes, lw_error *err) {
    (void)backend, (void)params, (void)op, (void)err;
    *state = NULL;
    *workspace_bytes = 0;
    return LW_OK;
}

static void release(void *state) { lw_free(state); }

typedef struct job {
    const lw_args *m;
    const lw_run *run;
    const lw_kernels *k;
    const float *gamma, *beta;
    float *affine; /* [g,n][2][c] */
} job;

static void split_row(int64_t i, const lw_view *out, int32_t *g, int32_t *n, int32_t *h) {
    *h = (int32_t)(i % out->h);
    *n = (int32_t)(i / out->h % out->n);
    *g = (int32_t)(i / out->h / out->n);
}

/* ---- norm_stats */

static bool stats_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_view *in = &op->m->norm_stats.in;
    return one_fp32(op, in, in) && (in->h == 1 || in->sh == in->w * in->sw);
}

static void stats_parts(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_norm_stats_args *m = &j->m->norm_stats;
    for (int64_t i = begin; i < end; i++) {
        int32_t part = (int32_t)(i % m->out.w), n = (int32_t)(i / m->out.w % m->in.n),
                g = (int32_t)(i / m->out.w / m->in.n);
        int32_t first = part * m->rows_per_part, rows = m->in.h * m->in.w - first;
        if (rows > m->rows_per_part) rows = m->rows_per_part;
        float *out = (float *)lw_at(j->run, m->out) + lw_view_index(&m->out, g, n, 0, part);
        const float *in = (const float *)lw_at(j->run, m->in) + lw_view_index(&m->in, g, n, 0, 0) + first * m->in.sw;
        j->k->stats(in, m->in.sw, rows, m->in.c, out, out + m->in.c);
    }
}

static lw_status run_stats(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    (void)params, (void)state, (void)err;
    job j = {.m = op->m, .run = run, .k = lw_cpu_kernels()};
    const lw_view *out = &op->m->norm_stats.out;
    lw_parallel_for(b->pool, b->threads, (int64_t)out->g * out->n * out->w, 1, stats_parts, &j);
    return LW_OK;
}

/* ---- apply */

typedef struct norm_packs {
    int32_t gamma, beta;
} norm_packs;

static bool apply_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_apply_args *m = &op->m->apply;
    if (m->in.norm.kind == LW_NORM_LAYER && lw_view_is(m->in.b)) return false;
    return one_fp32(op, &m->in.a, &m->out) && m->in.act != LW_ACT_GEGLU;
}

static lw_status apply_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                               lw_error *err) {
    (void)b;
    const lw_apply_args *m = &op->m->apply;
    norm_packs *k = lw_alloc(1, sizeof *k);
    if (!k) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = k;
    *k = (norm_packs){-1, -1};
    if (m->in.norm.kind == LW_NORM_NONE) return LW_OK;
    if (m->in.norm.kind == LW_NORM_GROUP)
        *workspace_bytes = (size_t)((int64_t)m->out.g * m->out.n * 2 * m->out.c) * sizeof(float);
    LW_TRY(lw_pack_plain(params, m->in.norm.gamma, &k->gamma, err));
    return lw_pack_plain(params, m->in.norm.beta, &k->beta, err);
}

/* Adds channel c's parts to the moments of its group (Chan's update), in order of the parts. */
static void merge_parts(const float *p, int64_t stride, int32_t parts, int32_t squares_at, int32_t rows, int32_t each,
                        double *mu, double *m2, double *total) {
    for (int32_t part = 0; part < parts; part++, rows -= each) {
        double n = rows < each ? rows : each, d = (double)p[part * stride] - *mu;
        *m2 += (double)p[part * stride + squares_at] + d * d * *total * n / (*total + n);
        *mu += d * n / (*total + n);
        *total += n;
    }
}

static void make_affine(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_apply_args *m = &j->m->apply;
    const lw_norm *norm = &m->in.norm;
    int32_t per = m->out.c / norm->groups, rows = m->in.a.h * m->in.a.w;
    for (int64_t i = begin; i < end; i++) {
        int32_t group = (int32_t)(i % norm->groups), gn = (int32_t)(i / norm->groups), g = gn / m->out.n,
                n = gn % m->out.n;
        double mu = 0, m2 = 0, total = 0;
        for (int32_t c = group * per; c < (group + 1) * per; c++) {
            bool in_a = c < m->in.a.c;
            const lw_view *s = in_a ? &norm->stats_a : &norm->stats_b;
            const float *p =
                (const float *)lw_at(j->run, *s) + lw_view_index(s, g, n, 0, 0) + (in_a ? c : c - m->in.a.c);
            merge_parts(p, s->sw, s->w, s->c / 2, rows, norm->rows_per_part, &mu, &m2, &total);
        }
        double rstd = 1 / sqrt(m2 / total + (double)norm->eps);
        float *a = j->affine + (int64_t)gn * 2 * m->out.c;
        for (int32_t c = group * per; c < (group + 1) * per; c++) {
            a[c] = (float)(rstd * (double)j->gamma[c]);
            a[m->out.c + c] = (float)((double)j->beta[c] - mu * rstd * (double)j->gamma[c]);
        }
    }
}

static void apply_pixel(const job *j, const lw_apply_args *m, int32_t g, int32_t n, int32_t h, int32_t w, float *y) {
    const lw_prologue *in = &m->in;
    const float *affine =
        in->norm.kind == LW_NORM_GROUP ? j->affine + (int64_t)(g * m->out.n + n) * 2 * m->out.c : NULL;
    const float *a = (const float *)lw_at(j->run, in->a) + lw_view_index(&in->a, g, n, h, w);
    if (in->norm.kind == LW_NORM_LAYER) {
        j->k->layer_norm(a, j->gamma, j->beta, in->norm.eps, in->act, in->a.c, y);
        return;
    }
    j->k->affine_act(a, affine, affine ? affine + m->out.c : NULL, in->act, in->a.c, y);
    if (!lw_view_is(in->b)) return;
    const float *b = (const float *)lw_at(j->run, in->b) + lw_view_index(&in->b, g, n, h, w);
    if (affine) affine += in->a.c;
    j->k->affine_act(b, affine, affine ? affine + m->out.c : NULL, in->act, in->b.c, y + in->a.c);
}

static void apply_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_apply_args *m = &j->m->apply;
    int32_t g, n, h, shift = m->in.up2 ? 1 : 0;
    for (int64_t i = begin; i < end; i++) {
        split_row(i, &m->out, &g, &n, &h);
        float *row = (float *)lw_at(j->run, m->out) + lw_view_index(&m->out, g, n, h, 0);
        for (int32_t w = 0; w < m->out.w; w++) {
            if (shift && (w & 1))
                memcpy(row + w * m->out.sw, row + (w - 1) * m->out.sw, (size_t)m->out.c * sizeof *row);
            else apply_pixel(j, m, g, n, h >> shift, w >> shift, row + w * m->out.sw);
        }
    }
}

static lw_status run_apply(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    (void)err;
    const lw_apply_args *m = &op->m->apply;
    const norm_packs *k = state;
    job j = {.m = op->m,
             .run = run,
             .k = lw_cpu_kernels(),
             .gamma = lw_pack_data(params, k->gamma),
             .beta = lw_pack_data(params, k->beta),
             .affine = run->workspace};
    if (m->in.norm.kind == LW_NORM_GROUP)
        lw_parallel_for(b->pool, b->threads, (int64_t)m->out.g * m->out.n * m->in.norm.groups, 4, make_affine, &j);
    lw_parallel_for(b->pool, b->threads, (int64_t)m->out.g * m->out.n * m->out.h, 1 + 64 / m->out.w, apply_rows, &j);
    return LW_OK;
}

/* ---- combine */

static bool combine_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_combine_args *m = &op->m->combine;
    if (lw_view_is(m->epi.addend) && m->epi.addend.dtype != LW_F32) return false;
    if (lw_view_is(m->epi.residual) && m->epi.residual.dtype != LW_F32) return false;
    return one_fp32(op, &m->in, &m->out);
}

static void combine_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_combine_args *m = &j->m->combine;
    const lw_epilogue *e = &m->epi;
    const float *addend = lw_at(j->run, e->addend), *residual = lw_at(j->run, e->residual),
                *scale = lw_at(j->run, e->scale);
    int32_t g, n, h;
    for (int64_t i = begin; i < end; i++) {
        split_row(i, &m->out, &g, &n, &h);
        float s = scale ? scale[lw_view_index(&e->scale, g, n, 0, 0)] : 1;
        const float *a = addend ? addend + lw_view_index(&e->addend, g, n, 0, 0) : NULL;
        for (int32_t w = 0; w < m->out.w; w++)
            j->k->combine((const float *)lw_at(j->run, m->in) + lw_view_index(&m->in, g, n, h, w), a, e->act, s,
                          residual ? residual + lw_view_index(&e->residual, g, n, h, w) : NULL, m->out.c,
                          (float *)lw_at(j->run, m->out) + lw_view_index(&m->out, g, n, h, w));
    }
}

static lw_status run_combine(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                             lw_error *err) {
    (void)params, (void)state, (void)err;
    job j = {.m = op->m, .run = run, .k = lw_cpu_kernels()};
    const lw_view *out = &op->m->combine.out;
    lw_parallel_for(b->pool, b->threads, (int64_t)out->g * out->n * out->h, 1 + 64 / out->w, combine_rows, &j);
    return LW_OK;
}

/* ---- attention: K and V of every head are packed first, then blocks of queries run by themselves */

static bool attention_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_attention_args *m = &op->m->attention;
    return one_fp32(op, &m->q, &m->out) && m->k.dtype == LW_F32 && m->v.dtype == LW_F32 &&
           m->q.c / m->heads <= LW_ATTENTION_MAX_D;
}

static int64_t padded(int64_t v, int64_t to) { return (v + to - 1) / to * to; }

/* Distinct (g, n) of K and V: what both share is packed once. */
static int32_t kv_g(const lw_attention_args *m) { return m->k.sg || m->v.sg ? m->k.g : 1; }
static int32_t kv_n(const lw_attention_args *m) { return m->k.sn || m->v.sn ? m->k.n : 1; }

static int64_t key_floats(const lw_attention_args *m, const lw_kernels *k) {
    return m->q.c / m->heads / k->pair * padded(m->k.w, 2 * k->width);
}

static int64_t head_floats(const lw_attention_args *m, const lw_kernels *k) {
    return padded(key_floats(m, k) + padded(m->k.w, k->pair) / k->pair * padded(m->q.c / m->heads, k->width), 16);
}

static size_t attention_space(const lw_attention_args *m, const lw_kernels *k) {
    return (size_t)(kv_g(m) * kv_n(m) * m->heads * head_floats(m, k)) * sizeof(float);
}

static lw_status attention_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state,
                                   size_t *workspace_bytes, lw_error *err) {
    (void)b, (void)params, (void)err;
    *state = NULL;
    *workspace_bytes = attention_space(&op->m->attention, lw_cpu_kernels());
    return LW_OK;
}

static bool attention_supports_bf16(const lw_backend *b, const lw_params *params, const lw_op *op) {
    const lw_attention_args *m = &op->m->attention;
    return attention_supports(b, params, op) && m->q.c / m->heads % 2 == 0;
}

static lw_status attention_prepare_bf16(lw_backend *b, lw_params *params, const lw_op *op, void **state,
                                        size_t *workspace_bytes, lw_error *err) {
    (void)b, (void)params, (void)err;
    *state = NULL;
    *workspace_bytes = attention_space(&op->m->attention, lw_cpu_kernels_bf16());
    return LW_OK;
}

static void pack_heads(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_attention_args *m = &j->m->attention;
    int32_t d = m->q.c / m->heads;
    for (int64_t i = begin; i < end; i++) { /* (g, n, head) */
        int32_t head = (int32_t)(i % m->heads), n = (int32_t)(i / m->heads % kv_n(m)),
                g = (int32_t)(i / m->heads / kv_n(m));
        float *kt = j->affine + i * head_floats(m, j->k);
        const float *k = (const float *)lw_at(j->run, m->k) + lw_view_index(&m->k, g, n, 0, 0) + head * d;
        const float *v = (const float *)lw_at(j->run, m->v) + lw_view_index(&m->v, g, n, 0, 0) + head * d;
        j->k->pack_kv(k, m->k.sw, v, m->v.sw, m->k.w, d, kt, kt + key_floats(m, j->k));
    }
}

static void attend(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_attention_args *m = &j->m->attention;
    int32_t d = m->q.c / m->heads, each = j->k->attention_rows, blocks = (m->q.w + each - 1) / each;
    for (int64_t i = begin; i < end; i++) { /* (g, n, head, block of queries) */
        int32_t block = (int32_t)(i % blocks), head = (int32_t)(i / blocks % m->heads);
        int32_t n = (int32_t)(i / blocks / m->heads % m->out.n), g = (int32_t)(i / blocks / m->heads / m->out.n),
                first = block * each;
        int64_t kv = ((int64_t)(kv_g(m) > 1 ? g : 0) * kv_n(m) + (kv_n(m) > 1 ? n : 0)) * m->heads + head;
        const float *kt = j->affine + kv * head_floats(m, j->k);
        const float *q = (const float *)lw_at(j->run, m->q) + lw_view_index(&m->q, g, n, 0, first) + head * d;
        float *out = (float *)lw_at(j->run, m->out) + lw_view_index(&m->out, g, n, 0, first) + head * d;
        j->k->attention_block(q, m->q.sw, m->q.w - first < each ? m->q.w - first : each, kt, kt + key_floats(m, j->k),
                              m->k.w, d, m->scale, m->causal ? first : -1, out, m->out.sw);
    }
}

static lw_status attend_with(const lw_kernels *k, lw_backend *b, const lw_op *op, const lw_run *run) {
    const lw_attention_args *m = &op->m->attention;
    job j = {.m = op->m, .run = run, .k = k, .affine = run->workspace};
    int32_t each = j.k->attention_rows, blocks = (m->q.w + each - 1) / each;
    lw_parallel_for(b->pool, b->threads, (int64_t)kv_g(m) * kv_n(m) * m->heads, 1, pack_heads, &j);
    lw_parallel_for(b->pool, b->threads, (int64_t)m->out.g * m->out.n * m->heads * blocks, 1, attend, &j);
    return LW_OK;
}

static lw_status run_attention(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                               lw_error *err) {
    (void)params, (void)state, (void)err;
    return attend_with(lw_cpu_kernels(), b, op, run);
}

static lw_status run_attention_bf16(lw_backend *b, const lw_params *params, const lw_op *op, void *state,
                                    const lw_run *run, lw_error *err) {
    (void)params, (void)state, (void)err;
    return attend_with(lw_cpu_kernels_bf16(), b, op, run);
}

static const lw_tactic stats = {"norm_stats_fp32", LW_OP_NORM_STATS, LW_TAKES_ALL, stats_supports,
                                no_state,          run_stats,        release};
static const lw_tactic apply = {"apply_fp32",  LW_OP_APPLY, LW_TAKES_ALL, apply_supports,
                                apply_prepare, run_apply,   release};
static const lw_tactic combine = {"combine_fp32", LW_OP_COMBINE, LW_TAKES_ALL, combine_supports,
                                  no_state,       run_combine,   release};
static const lw_tactic attention = {"attention_fp32",  LW_OP_ATTENTION, LW_TAKES_ALL, attention_supports,
                                    attention_prepare, run_attention,   release};
const lw_tactic lw_cpu_attention_bf16 = {"attention_bf16",
                                         LW_OP_ATTENTION,
                                         LW_TAKES_ALL | LW_TAKES_ROUNDING,
                                         attention_supports_bf16,
                                         attention_prepare_bf16,
                                         run_attention_bf16,
                                         release};
const lw_tactic *const lw_cpu_small_tactics[] = {&stats, &apply, &combine, &attention, NULL};
