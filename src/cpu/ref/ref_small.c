/* SPDX-License-Identifier: MIT
 * References of the other ops. */
#include "cpu/ref/ref.h"

#include <math.h>
#include <string.h>

bool ref_supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return op->n_member == 1;
}

void ref_release(void *state) { lw_free(state); }

lw_status ref_no_state(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                       lw_error *err) {
    (void)backend, (void)params, (void)op, (void)err;
    *state = NULL;
    *workspace_bytes = 0;
    return LW_OK;
}

typedef struct job {
    const lw_args *m;
    const lw_run *run;
} job;

/* ---- attention: for each query the largest logit first, then weights and their sum; nothing is kept, logits are
 * computed twice */

enum { MAX_HEAD = 1024 };

static double logit(const lw_attention_args *a, const void *q, int64_t iq, const void *k, int64_t ik, int32_t d) {
    double s = 0;
    for (int32_t c = 0; c < d; c++) s += ref_load(q, a->q.dtype, iq + c) * ref_load(k, a->k.dtype, ik + c);
    return s * (double)a->scale;
}

static void attention_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_attention_args *a = &j->m->attention;
    int32_t d = a->q.c / a->heads;
    void *q = lw_at(j->run, a->q), *k = lw_at(j->run, a->k), *v = lw_at(j->run, a->v), *out = lw_at(j->run, a->out);
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, head, query) */
        int32_t row = (int32_t)(i % a->q.w), head = (int32_t)(i / a->q.w % a->heads);
        int32_t n = (int32_t)(i / a->q.w / a->heads % a->out.n), g = (int32_t)(i / a->q.w / a->heads / a->out.n);
        int32_t len = a->causal ? row + 1 : a->k.w;
        int64_t iq = lw_view_index(&a->q, g, n, 0, row) + head * d;
        double top = -INFINITY, sum = 0, acc[MAX_HEAD] = {0};
        for (int32_t t = 0; t < len; t++)
            top = fmax(top, logit(a, q, iq, k, lw_view_index(&a->k, g, n, 0, t) + head * d, d));
        for (int32_t t = 0; t < len; t++) {
            double e = exp(logit(a, q, iq, k, lw_view_index(&a->k, g, n, 0, t) + head * d, d) - top);
            int64_t iv = lw_view_index(&a->v, g, n, 0, t) + head * d;
            sum += e;
            for (int32_t c = 0; c < d; c++) acc[c] += e * ref_load(v, a->v.dtype, iv + c);
        }
        int64_t io = lw_view_index(&a->out, g, n, 0, row) + head * d;
        for (int32_t c = 0; c < d; c++) ref_store(out, a->out.dtype, io + c, acc[c] / sum);
    }
}

static bool attention_supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    return ref_supports(backend, params, op) && op->m->attention.q.c / op->m->attention.heads <= MAX_HEAD;
}

static lw_status run_attention(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                               const lw_run *run, lw_error *err) {
    (void)params, (void)state, (void)err;
    const lw_attention_args *a = &op->m->attention;
    job j = {op->m, run};
    lw_parallel_for(backend->pool, backend->threads, (int64_t)a->out.g * a->out.n * a->heads * a->q.w, 16, attention_rows, &j);
    return LW_OK;
}

/* ---- norm_stats */

static void stats_parts(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_norm_stats_args *m = &j->m->norm_stats;
    const void *in = lw_at(j->run, m->in);
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, part) */
        int32_t part = (int32_t)(i % m->out.w), n = (int32_t)(i / m->out.w % m->in.n),
                g = (int32_t)(i / m->out.w / m->in.n);
        int32_t first = part * m->rows_per_part, last = first + m->rows_per_part, rows = m->in.h * m->in.w;
        float *out = (float *)lw_at(j->run, m->out) + lw_view_index(&m->out, g, n, 0, part);
        if (last > rows) last = rows;
        for (int32_t c = 0; c < m->in.c; c++) {
            double mean = 0, m2 = 0;
            for (int32_t r = first; r < last; r++)
                mean += ref_load(in, m->in.dtype, lw_view_index(&m->in, g, n, r / m->in.w, r % m->in.w) + c);
            mean /= last - first;
            for (int32_t r = first; r < last; r++) {
                double d = ref_load(in, m->in.dtype, lw_view_index(&m->in, g, n, r / m->in.w, r % m->in.w) + c) - mean;
                m2 += d * d;
            }
            out[c] = (float)mean;
            out[m->in.c + c] = (float)m2;
        }
    }
}

static lw_status run_norm_stats(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                                const lw_run *run, lw_error *err) {
    (void)params, (void)state, (void)err;
    job j = {op->m, run};
    const lw_view *out = &op->m->norm_stats.out;
    lw_parallel_for(backend->pool, backend->threads, (int64_t)out->g * out->n * out->w, 1, stats_parts, &j);
    return LW_OK;
}

/* ---- embeddings */

typedef struct tables {
    int32_t tokens, positions;
} tables;

static lw_status prepare_embed(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                               size_t *workspace_bytes, lw_error *err) {
    (void)backend, (void)workspace_bytes;
    tables *t = lw_alloc(1, sizeof *t);
    if (!t) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = t;
    LW_TRY(lw_pack_plain(params, op->m->embed_tokens.tokens, &t->tokens, err));
    return lw_pack_plain(params, op->m->embed_tokens.positions, &t->positions, err);
}

static lw_status run_embed_tokens(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                                  const lw_run *run, lw_error *err) {
    (void)backend;
    const lw_embed_tokens_args *m = &op->m->embed_tokens;
    const tables *t = state;
    const float *tokens = lw_pack_data(params, t->tokens), *positions = lw_pack_data(params, t->positions);
    const int32_t *ids = lw_at(run, m->ids);
    int64_t d[4];
    lw_param_dims(params, m->tokens, d);
    for (int32_t g = 0; g < m->out.g; g++)
        for (int32_t n = 0; n < m->out.n; n++)
            for (int32_t w = 0; w < m->out.w; w++) {
                int32_t id = ids[lw_view_index(&m->ids, g, n, 0, w)];
                if (id < 0 || id >= d[0])
                    return lw_fail(err, LW_EINPUT, "token %d is outside the vocabulary of %lld", id, (long long)d[0]);
                int64_t io = lw_view_index(&m->out, g, n, 0, w);
                for (int32_t c = 0; c < m->out.c; c++)
                    ref_store(lw_at(run, m->out), m->out.dtype, io + c,
                              (double)tokens[(int64_t)id * m->out.c + c] +
                                  (double)positions[(int64_t)w * m->out.c + c]);
            }
    return LW_OK;
}

static lw_status run_embed_time(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                                const lw_run *run, lw_error *err) {
    (void)backend, (void)params, (void)state, (void)err;
    const lw_embed_time_args *m = &op->m->embed_time;
    const float *t = lw_at(run, m->t);
    int32_t half = m->out.c / 2;
    for (int32_t row = 0; row < m->out.w; row++)
        for (int32_t i = 0; i < half; i++) {
            double arg = (double)t[lw_view_index(&m->t, 0, 0, 0, row)] * exp(-log(10000.0) * i / half);
            int64_t io = lw_view_index(&m->out, 0, 0, 0, row);
            ref_store(lw_at(run, m->out), m->out.dtype, io + i, cos(arg));
            ref_store(lw_at(run, m->out), m->out.dtype, io + half + i, sin(arg));
        }
    return LW_OK;
}

/* ---- bytes */

static void pack_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_view *in = &j->m->pack.in, *out = &j->m->pack.out;
    bool to_bytes = out->dtype == LW_U8;
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, h) */
        int32_t h = (int32_t)(i % out->h), n = (int32_t)(i / out->h % out->n), g = (int32_t)(i / out->h / out->n);
        for (int32_t w = 0; w < out->w; w++)
            for (int32_t c = 0; c < out->c; c++) {
                double v = c < in->c ? ref_load(lw_at(j->run, *in), in->dtype, lw_view_index(in, g, n, h, w) + c) : 0;
                if (to_bytes) { /* the reference computes in float and truncates */
                    float f = (float)v * 127.5f + 127.5f;
                    if (!isfinite(f) && lw_view_is(j->m->pack.status)) *(int32_t *)lw_at(j->run, j->m->pack.status) = 1;
                    v = f > 255 ? 255 : f > 0 ? (double)floorf(f) : 0; /* NaN gives 0: status reports it */
                } else v /= 255;
                ref_store(lw_at(j->run, *out), out->dtype, lw_view_index(out, g, n, h, w) + c, v);
            }
    }
}

static lw_status run_pack(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                          lw_error *err) {
    (void)params, (void)state, (void)err;
    job j = {op->m, run};
    const lw_view *out = &op->m->pack.out;
    lw_parallel_for(backend->pool, backend->threads, (int64_t)out->g * out->n * out->h, 1, pack_rows, &j);
    return LW_OK;
}

/* ---- advance */

typedef struct latent_ptrs {
    const void *eps;
    float *x, *h1, *h2, *y;
    const float *noise;
} latent_ptrs;

/* One value's update: row.h. Returns false if it is not finite. */
static bool update_value(const lw_row *r, const lw_advance_args *a, const latent_ptrs *p, int32_t n, int32_t h,
                         int32_t w, int32_t c) {
    int64_t i = lw_view_index(&a->x, 0, n, h, w) + c;
    float e = (float)ref_load(p->eps, a->eps.dtype, lw_view_index(&a->eps, 0, n, h, w) + c);
    if (a->eps.g == 2) {
        float u = (float)ref_load(p->eps, a->eps.dtype, lw_view_index(&a->eps, 1, n, h, w) + c);
        e = u + r->guidance * (e - u);
    }
    float x = p->x[i], h1 = p->h1[i], h2 = p->h2[i], y = p->y[i], h0 = r->h_x * x + r->h_e * e;
    float next = r->x_x * x + r->x_e * e + r->x_h[0] * h0 + r->x_h[1] * h1 + r->x_h[2] * h2 + r->x_y * y;
    if (r->noise >= 0) next += r->x_n * p->noise[lw_view_index(&a->noise, r->noise, n, h, w) + c];
    p->y[i] = r->y_x * x + r->y_e * e + r->y_h[0] * h0 + r->y_h[1] * h1 + r->y_h[2] * h2 + r->y_y * y;
    p->h2[i] = h1;
    p->h1[i] = h0;
    p->x[i] = next;
    return isfinite(next);
}

static lw_status run_advance(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                             const lw_run *run, lw_error *err) {
    (void)backend, (void)params, (void)state, (void)err;
    const lw_advance_args *a = &op->m->advance;
    int32_t *status = lw_at(run, a->status), row = status[0];
    latent_ptrs p = {lw_at(run, a->eps), lw_at(run, a->x), lw_at(run, a->h1),
                     lw_at(run, a->h2),  lw_at(run, a->y), lw_at(run, a->noise)};
    const lw_row *rows = lw_at(run, a->rows);
    for (int32_t n = 0; n < a->x.n; n++)
        for (int32_t h = 0; h < a->x.h; h++)
            for (int32_t w = 0; w < a->x.w; w++)
                for (int32_t c = 0; c < a->x.c; c++) {
                    if (row >= 0 && !update_value(&rows[row], a, &p, n, h, w, c)) status[2] = 1;
                    ref_store(lw_at(run, a->net_in), a->net_in.dtype, lw_view_index(&a->net_in, 0, n, h, w) + c,
                              (double)p.x[lw_view_index(&a->x, 0, n, h, w) + c]);
                }
    status[0] = ++row;
    if (row >= status[1]) return LW_OK;
    size_t each = lw_dtype_bytes(a->addends.dtype);
    memcpy(lw_at(run, a->addends),
           (const char *)lw_at(run, a->addend_table) + (size_t)(a->addend_table.sw * row) * each,
           (size_t)a->addends.c * each);
    if (lw_view_is(a->scales))
        memcpy(lw_at(run, a->scales), (const float *)lw_at(run, a->scale_table) + a->scale_table.sw * row,
               (size_t)a->scales.c * 4);
    return LW_OK;
}

const lw_tactic lw_ref_attention = {"attention_ref", LW_OP_ATTENTION, LW_TAKES_ALL, attention_supports,
                                    ref_no_state,    run_attention,   ref_release};
const lw_tactic lw_ref_norm_stats = {"norm_stats_ref", LW_OP_NORM_STATS, LW_TAKES_ALL, ref_supports,
                                     ref_no_state,     run_norm_stats,   ref_release};
const lw_tactic lw_ref_embed_tokens = {"embed_tokens_ref", LW_OP_EMBED_TOKENS, LW_TAKES_ALL, ref_supports,
                                       prepare_embed,      run_embed_tokens,   ref_release};
const lw_tactic lw_ref_embed_time = {"embed_time_ref", LW_OP_EMBED_TIME, LW_TAKES_ALL, ref_supports,
                                     ref_no_state,     run_embed_time,   ref_release};
const lw_tactic lw_ref_pack_u8 = {"pack_u8_ref", LW_OP_PACK_U8, LW_TAKES_ALL, ref_supports,
                                  ref_no_state,  run_pack,      ref_release};
const lw_tactic lw_ref_unpack_u8 = {"unpack_u8_ref", LW_OP_UNPACK_U8, LW_TAKES_ALL, ref_supports,
                                    ref_no_state,    run_pack,        ref_release};
const lw_tactic lw_ref_advance = {"advance_ref", LW_OP_ADVANCE, LW_TAKES_ALL, ref_supports,
                                  ref_no_state,  run_advance,   ref_release};
