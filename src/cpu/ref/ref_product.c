/* SPDX-License-Identifier: MIT
 * References of conv2d, linear, apply and combine: the fused formula of ops.h, spelled out.
 *   workspace: per-channel affine of a group norm (2 doubles a channel of each g, n), then the prologue's output as
 * doubles weights:   [kh][kw][I][O] floats, so that the inner loop runs over outputs and no sum is reordered */
#include "cpu/ref/ref.h"

#include <math.h>
#include <string.h>

double ref_act(lw_act act, double x) {
    switch (act) {
    case LW_ACT_SILU: return x / (1 + exp(-x));
    case LW_ACT_GELU: return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case LW_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    default: return x;
    }
}

typedef struct packs {
    int32_t w, bias, gamma, beta, shortcut_w, shortcut_bias;
} packs;

typedef struct job {
    const lw_params *params;
    const packs *k;
    const lw_run *run;
    const lw_prologue *in;
    const lw_product_args *product;
    const lw_combine_args *combine;
    const lw_view *out;
    double *affine, *made; /* made: dense [g,n,h,w,c] */
    int32_t g, n, h, w, c; /* of made */
} job;

static const float *data(const job *j, int32_t pack) { return lw_pack_data(j->params, pack); }

/* ---- prologue */

/* Mean and 1/deviation of channels [first, first + count) of cat(a, b), by merging the parts of each channel in order.
 */
static void group_moments(const job *j, int32_t g, int32_t n, int32_t first, int32_t count, double *mean,
                          double *rstd) {
    const lw_norm *norm = &j->in->norm;
    double rows = (double)j->in->a.h * j->in->a.w, total = 0, mu = 0, m2 = 0;
    for (int32_t c = first; c < first + count; c++) {
        bool in_a = c < j->in->a.c;
        const lw_view *s = in_a ? &norm->stats_a : &norm->stats_b;
        const float *p = (const float *)lw_at(j->run, *s) + lw_view_index(s, g, n, 0, 0);
        int32_t k = in_a ? c : c - j->in->a.c, channels = s->c / 2;
        double left = rows, each = norm->rows_per_part;
        for (int32_t part = 0; part < s->w; part++) {
            double cnt = left < each ? left : each, m = p[part * s->sw + k], q = p[part * s->sw + channels + k],
                   d = m - mu;
            left -= cnt;
            m2 += q + d * d * total * cnt / (total + cnt);
            mu += d * cnt / (total + cnt);
            total += cnt;
        }
    }
    *mean = mu;
    *rstd = 1 / sqrt(m2 / total + norm->eps);
}

static void make_affine(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_norm *norm = &j->in->norm;
    const float *gamma = data(j, j->k->gamma), *beta = data(j, j->k->beta);
    int32_t per = j->c / norm->groups;
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, group) */
        int32_t group = (int32_t)(i % norm->groups), gn = (int32_t)(i / norm->groups);
        double mean, rstd, *affine = j->affine + (int64_t)gn * 2 * j->c;
        group_moments(j, gn / j->n, gn % j->n, group * per, per, &mean, &rstd);
        for (int32_t c = group * per; c < (group + 1) * per; c++) {
            affine[c] = rstd * gamma[c];
            affine[j->c + c] = beta[c] - mean * affine[c];
        }
    }
}

static void layer_norm(const job *j, double *row) {
    const float *gamma = data(j, j->k->gamma), *beta = data(j, j->k->beta);
    double mean = 0, m2 = 0;
    for (int32_t c = 0; c < j->c; c++) mean += row[c];
    mean /= j->c;
    for (int32_t c = 0; c < j->c; c++) m2 += (row[c] - mean) * (row[c] - mean);
    double rstd = 1 / sqrt(m2 / j->c + j->in->norm.eps);
    for (int32_t c = 0; c < j->c; c++) row[c] = (row[c] - mean) * rstd * gamma[c] + beta[c];
}

static void make_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_prologue *in = j->in;
    const void *a = lw_at(j->run, in->a), *b = lw_at(j->run, in->b);
    int32_t shift = in->up2 ? 1 : 0;
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, h) */
        int32_t h = (int32_t)(i % j->h), n = (int32_t)(i / j->h % j->n), g = (int32_t)(i / j->h / j->n);
        const double *affine = j->affine + (int64_t)(g * j->n + n) * 2 * j->c;
        for (int32_t w = 0; w < j->w; w++) {
            double *row = j->made + (i * j->w + w) * j->c;
            int64_t ia = lw_view_index(&in->a, g, n, h >> shift, w >> shift);
            int64_t ib = b ? lw_view_index(&in->b, g, n, h >> shift, w >> shift) : 0;
            for (int32_t c = 0; c < in->a.c; c++) row[c] = ref_load(a, in->a.dtype, ia + c);
            for (int32_t c = in->a.c; c < j->c; c++) row[c] = ref_load(b, in->b.dtype, ib + c - in->a.c);
            if (in->norm.kind == LW_NORM_LAYER) layer_norm(j, row);
            for (int32_t c = 0; c < j->c; c++) {
                if (in->norm.kind == LW_NORM_GROUP) row[c] = row[c] * affine[c] + affine[j->c + c];
                row[c] = ref_act(in->act, row[c]);
            }
        }
    }
}

static void make_input(job *j, const lw_backend *backend) {
    if (j->in->norm.kind == LW_NORM_GROUP)
        lw_parallel_for(backend->pool, backend->threads, (int64_t)j->g * j->n * j->in->norm.groups, 1, make_affine, j);
    lw_parallel_for(backend->pool, backend->threads, (int64_t)j->g * j->n * j->h, 1, make_rows, j);
}

static void begin_job(job *j, const lw_params *params, const packs *k, const lw_run *run, const lw_prologue *in,
                      const lw_view *out) {
    int32_t up = in->up2 ? 2 : 1;
    *j = (job){.params = params,
               .k = k,
               .run = run,
               .in = in,
               .out = out,
               .g = out->g,
               .n = out->n,
               .h = in->a.h * up,
               .w = in->a.w * up,
               .c = lw_prologue_channels(in)};
    j->affine = run->workspace;
    j->made = j->affine + (int64_t)j->g * j->n * 2 * j->c;
}

static size_t prologue_bytes(const lw_prologue *in, const lw_view *out) {
    int64_t up = in->up2 ? 2 : 1, c = lw_prologue_channels(in);
    return (size_t)((int64_t)out->g * out->n * c * (2 + in->a.h * up * in->a.w * up)) * sizeof(double);
}

/* ---- epilogue of one pixel's outputs [first, first + count); y: W.in + bias, gate: the same of the other half for
 * GEGLU */

static void finish(const job *j, const lw_epilogue *epi, const double *y, const double *gate, int32_t g, int32_t n,
                   int32_t h, int32_t w, int32_t first, int32_t count) {
    const void *residual = lw_at(j->run, epi->residual), *addend = lw_at(j->run, epi->addend);
    const float *scale = lw_at(j->run, epi->scale);
    int32_t half = j->out->c; /* the gate's channels begin here */
    double s = scale ? scale[lw_view_index(&epi->scale, g, n, 0, 0)] : 1;
    int64_t io = lw_view_index(j->out, g, n, h, w), ia = addend ? lw_view_index(&epi->addend, g, n, 0, 0) : 0;
    int64_t ir = residual ? lw_view_index(&epi->residual, g, n, h, w) : 0;
    for (int32_t k = 0; k < count; k++) {
        int32_t c = first + k;
        double v = y[k], t = gate ? gate[k] : 0;
        if (addend) {
            v += ref_load(addend, epi->addend.dtype, ia + c);
            if (gate) t += ref_load(addend, epi->addend.dtype, ia + half + c);
        }
        v = epi->act == LW_ACT_GEGLU ? v * ref_act(LW_ACT_GELU, t) : ref_act(epi->act, v);
        v *= s;
        if (residual) v += ref_load(residual, epi->residual.dtype, ir + c);
        ref_store(lw_at(j->run, *j->out), j->out->dtype, io + c, v);
    }
}

/* ---- product */

enum { OUTPUTS = 64 }; /* accumulators at once */

static void window_sum(const job *j, double *acc, int32_t gn, int32_t oy, int32_t ox, int32_t first, int32_t count,
                       int32_t n_out) {
    const lw_product_args *p = j->product;
    const float *weights = data(j, j->k->w);
    for (int32_t ky = 0; ky < p->kh; ky++)
        for (int32_t kx = 0; kx < p->kw; kx++) {
            int32_t y = oy * p->stride + ky - p->pad_top, x = ox * p->stride + kx - p->pad_left;
            if (y < 0 || y >= j->h || x < 0 || x >= j->w) continue;
            const double *in = j->made + (((int64_t)gn * j->h + y) * j->w + x) * j->c;
            const float *wk = weights + (int64_t)(ky * p->kw + kx) * j->c * n_out + first;
            for (int32_t i = 0; i < j->c; i++, wk += n_out)
                for (int32_t o = 0; o < count; o++) acc[o] += in[i] * (double)wk[o];
        }
}

static void shortcut_sum(const job *j, double *acc, int32_t g, int32_t n, int32_t h, int32_t w, int32_t first,
                         int32_t count) {
    const lw_product_args *p = j->product;
    const float *weights = data(j, j->k->shortcut_w), *bias = data(j, j->k->shortcut_bias);
    const lw_view *views[2] = {&p->shortcut_a, &p->shortcut_b};
    for (int32_t o = 0; o < count && bias; o++) acc[o] += (double)bias[first + o];
    for (int v = 0; v < 2 && lw_view_is(*views[v]); v++) {
        const void *in = lw_at(j->run, *views[v]);
        int64_t at = lw_view_index(views[v], g, n, h, w);
        for (int32_t i = 0; i < views[v]->c; i++, weights += p->out.c)
            for (int32_t o = 0; o < count; o++)
                acc[o] += ref_load(in, views[v]->dtype, at + i) * (double)weights[first + o];
    }
}

static void product_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_product_args *p = j->product;
    const float *bias = data(j, j->k->bias);
    bool geglu = p->epi.act == LW_ACT_GEGLU;
    int32_t n_out = geglu ? p->out.c * 2 : p->out.c;
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, h) */
        int32_t h = (int32_t)(i % p->out.h), gn = (int32_t)(i / p->out.h), n = gn % p->out.n, g = gn / p->out.n;
        for (int32_t w = 0; w < p->out.w; w++)
            for (int32_t first = 0; first < p->out.c; first += OUTPUTS) {
                int32_t count = p->out.c - first < OUTPUTS ? p->out.c - first : OUTPUTS;
                double acc[OUTPUTS], gate[OUTPUTS];
                for (int32_t o = 0; o < count; o++) {
                    acc[o] = bias ? (double)bias[first + o] : 0;
                    gate[o] = bias && geglu ? (double)bias[p->out.c + first + o] : 0;
                }
                window_sum(j, acc, gn, h, w, first, count, n_out);
                if (geglu) window_sum(j, gate, gn, h, w, p->out.c + first, count, n_out);
                lw_epilogue epi = p->epi;
                if (lw_view_is(p->shortcut_a)) { /* residual + scale * act(acc), and the residual is a product: finish
                                                    by hand */
                    double shortcut[OUTPUTS] = {0};
                    shortcut_sum(j, shortcut, g, n, h, w, first, count);
                    const float *scale = lw_at(j->run, epi.scale);
                    double s = scale ? scale[lw_view_index(&epi.scale, g, n, 0, 0)] : 1;
                    const void *addend = lw_at(j->run, epi.addend);
                    int64_t ia = addend ? lw_view_index(&epi.addend, g, n, 0, 0) + first : 0;
                    for (int32_t o = 0; o < count; o++) {
                        double v = acc[o] + (addend ? ref_load(addend, epi.addend.dtype, ia + o) : 0);
                        acc[o] = shortcut[o] + s * ref_act(epi.act, v);
                    }
                    epi = (lw_epilogue){.addend = LW_NO_VIEW, .scale = LW_NO_VIEW, .residual = LW_NO_VIEW};
                }
                finish(j, &epi, acc, geglu ? gate : NULL, g, n, h, w, first, count);
            }
    }
}

static void leave_row_stats(const job *j) {
    const lw_view *out = &j->product->out, *stats = &j->product->row_stats;
    const void *values = lw_at(j->run, *out);
    float *to = lw_at(j->run, *stats);
    for (int64_t i = 0; i < (int64_t)out->g * out->n * out->h * out->w; i++) {
        const int64_t w = i % out->w, h = i / out->w % out->h, n = i / out->w / out->h % out->n,
                      g = i / out->w / out->h / out->n, from = lw_view_index(out, g, n, h, w),
                      at = lw_view_index(stats, g, n, 0, 0) + (h * out->w + w) * (out->c / LW_ROW_PART) * 2;
        for (int32_t first = 0; first < out->c; first += LW_ROW_PART) {
            double mean = 0, squares = 0;
            for (int32_t c = first; c < first + LW_ROW_PART; c++) mean += ref_load(values, out->dtype, from + c);
            mean /= LW_ROW_PART;
            for (int32_t c = first; c < first + LW_ROW_PART; c++) {
                const double d = ref_load(values, out->dtype, from + c) - mean;
                squares += d * d;
            }
            to[at + 2 * (first / LW_ROW_PART)] = (float)mean;
            to[at + 2 * (first / LW_ROW_PART) + 1] = (float)squares;
        }
    }
}

static lw_status fill_ref(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    float *out = dst;
    int64_t window = d[2] * d[3];
    for (int64_t o = 0; o < d[0]; o++)
        for (int64_t i = 0; i < d[1]; i++)
            for (int64_t k = 0; k < window; k++) out[(k * d[1] + i) * d[0] + o] = logical[(o * d[1] + i) * window + k];
    return LW_OK;
}

static lw_status want_matrix(lw_params *params, lw_param p, int32_t *index, lw_error *err) {
    *index = -1;
    if (!lw_param_is(p)) return LW_OK;
    int64_t d[4];
    lw_param_dims(params, p, d);
    lw_form form = {
        .key = "ref_kkio_f32", .bytes = (size_t)(d[0] * d[1] * d[2] * d[3]) * sizeof(float), .fill = fill_ref};
    return lw_pack_request(params, p, &form, index, err);
}

static lw_status want_vector(lw_params *params, lw_param p, int32_t *index, lw_error *err) {
    *index = -1;
    return lw_param_is(p) ? lw_pack_plain(params, p, index, err) : LW_OK;
}

static lw_status want_norm(lw_params *params, const lw_norm *norm, packs *k, lw_error *err) {
    k->gamma = k->beta = -1;
    if (norm->kind == LW_NORM_NONE) return LW_OK;
    LW_TRY(want_vector(params, norm->gamma, &k->gamma, err));
    return want_vector(params, norm->beta, &k->beta, err);
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    (void)backend;
    packs *k = lw_alloc(1, sizeof *k);
    if (!k) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = k;
    *k = (packs){-1, -1, -1, -1, -1, -1};
    if (op->kind == LW_OP_APPLY) {
        *workspace_bytes = prologue_bytes(&op->m->apply.in, &op->m->apply.out);
        return want_norm(params, &op->m->apply.in.norm, k, err);
    }
    const lw_product_args *p = &op->m->product;
    *workspace_bytes = prologue_bytes(&p->in, &p->out);
    LW_TRY(want_norm(params, &p->in.norm, k, err));
    LW_TRY(want_matrix(params, p->w, &k->w, err));
    LW_TRY(want_vector(params, p->bias, &k->bias, err));
    LW_TRY(want_matrix(params, p->shortcut_w, &k->shortcut_w, err));
    return want_vector(params, p->shortcut_bias, &k->shortcut_bias, err);
}

static lw_status run_product(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                             const lw_run *run, lw_error *err) {
    (void)err;
    job j;
    begin_job(&j, params, state, run, &op->m->product.in, &op->m->product.out);
    j.product = &op->m->product;
    make_input(&j, backend);
    lw_parallel_for(backend->pool, backend->threads, (int64_t)j.out->g * j.out->n * j.out->h, 1, product_rows, &j);
    if (lw_view_is(j.product->row_stats)) leave_row_stats(&j);
    return LW_OK;
}

/* ---- apply, combine */

static lw_status run_apply(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                           const lw_run *run, lw_error *err) {
    (void)err;
    job j;
    begin_job(&j, params, state, run, &op->m->apply.in, &op->m->apply.out);
    make_input(&j, backend);
    const lw_view *out = j.out;
    const double *v = j.made;
    for (int32_t g = 0; g < out->g; g++)
        for (int32_t n = 0; n < out->n; n++)
            for (int32_t h = 0; h < out->h; h++)
                for (int32_t w = 0; w < out->w; w++)
                    for (int32_t c = 0; c < out->c; c++)
                        ref_store(lw_at(run, *out), out->dtype, lw_view_index(out, g, n, h, w) + c, *v++);
    return LW_OK;
}

static void combine_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_combine_args *m = j->combine;
    const void *in = lw_at(j->run, m->in);
    for (int64_t i = begin; i < end; i++) { /* i: (g, n, h) */
        int32_t h = (int32_t)(i % m->out.h), n = (int32_t)(i / m->out.h % m->out.n),
                g = (int32_t)(i / m->out.h / m->out.n);
        for (int32_t w = 0; w < m->out.w; w++)
            for (int32_t c = 0; c < m->out.c; c++) {
                int64_t at = lw_view_index(&m->in, g, n, h, w) + c;
                double y = ref_load(in, m->in.dtype, at), gate = 0;
                if (m->epi.act == LW_ACT_GEGLU) gate = ref_load(in, m->in.dtype, at + m->out.c);
                finish(j, &m->epi, &y, m->epi.act == LW_ACT_GEGLU ? &gate : NULL, g, n, h, w, c, 1);
            }
    }
}

static lw_status run_combine(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                             const lw_run *run, lw_error *err) {
    (void)state, (void)err;
    const lw_combine_args *m = &op->m->combine;
    job j = {.params = params, .run = run, .combine = m, .out = &m->out};
    lw_parallel_for(backend->pool, backend->threads, (int64_t)m->out.g * m->out.n * m->out.h, 1, combine_rows, &j);
    return LW_OK;
}

const lw_tactic lw_ref_conv2d = {"conv2d_ref", LW_OP_CONV2D, LW_TAKES_ALL | LW_TAKES_ROW_STATS, ref_supports, prepare,
                                 run_product,  ref_release};
const lw_tactic lw_ref_linear = {"linear_ref", LW_OP_LINEAR, LW_TAKES_ALL | LW_TAKES_ROW_STATS, ref_supports, prepare,
                                 run_product,  ref_release};
const lw_tactic lw_ref_apply = {"apply_ref", LW_OP_APPLY, LW_TAKES_ALL, ref_supports, prepare, run_apply, ref_release};
const lw_tactic lw_ref_combine = {"combine_ref", LW_OP_COMBINE, LW_TAKES_ALL, ref_supports,
                                  ref_no_state,  run_combine,   ref_release};
