/* SPDX-License-Identifier: MIT
 * Our own fp32 products over channels (linear, 1x1 convolution): panels of columns against bands of rows, the whole
 * epilogue on the sums while they are in the first-level cache. Cut by the shape alone; each row's bits do not depend
 * on what is computed beside it. */
#include "cpu/product.h"

#include <stdio.h>
#include <string.h>

/* ---- packs */

typedef struct panels {
    int32_t width;
    bool geglu;
} panels;

/* The output that column l of panel j is; -1: none. */
static int64_t output_of(const panels *u, int64_t outputs, int64_t j, int32_t l) {
    int64_t o = u->geglu ? j * u->width + l % u->width : j * 2 * u->width + l, n = u->geglu ? outputs / 2 : outputs;
    if (o >= n) return -1;
    return u->geglu && l >= u->width ? n + o : o;
}

static int64_t panels_of(const panels *u, int64_t outputs) { return (outputs + 2 * u->width - 1) / (2 * u->width); }

static lw_status fill(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    const panels *u = user;
    int64_t each = d[1] * d[2] * d[3], n = panels_of(u, d[0]);
    (void)err;
    for (int64_t j = 0; j < n; j++) {
        float *to = (float *)dst + j * each * 2 * u->width;
        for (int32_t l = 0; l < 2 * u->width; l++) {
            int64_t o = output_of(u, d[0], j, l);
            const float *from = logical + (o < 0 ? 0 : o) * each;
            for (int64_t i = 0; i < each; i++) to[i * 2 * u->width + l] = o < 0 ? 0 : from[i];
        }
    }
    return LW_OK;
}

lw_status lw_panels_request(lw_params *params, lw_param w, bool geglu, int32_t *pack, lw_error *err) {
    panels user = {.width = lw_cpu_kernels()->width, .geglu = geglu};
    int64_t d[4];
    lw_param_dims(params, w, d);
    size_t floats = (size_t)(panels_of(&user, d[0]) * 2 * user.width * d[1] * d[2] * d[3]);
    lw_form form = {.bytes = floats * sizeof(float), .fill = fill, .user = &user, .user_bytes = sizeof user};
    snprintf(form.key, sizeof form.key, "panels_%d%s", 2 * user.width, geglu ? "_geglu" : "");
    return lw_pack_request(params, w, &form, pack, err);
}

/* ---- epilogues */

static bool is_geglu(const lw_product_args *p) { return p->epi.act == LW_ACT_GEGLU; }

static int32_t columns(const lw_product_args *p, const lw_kernels *k) { return is_geglu(p) ? k->width : 2 * k->width; }

int32_t lw_panel_count(const lw_product_args *p, const lw_kernels *k) {
    return (p->out.c + columns(p, k) - 1) / columns(p, k);
}

int32_t lw_panel_first(const lw_panel_epilogue *e, int32_t j) { return j * columns(e->p, e->k); }

void lw_panel_finish(const lw_panel_epilogue *e, int32_t g, int32_t j, float *addend, lw_finish *f) {
    const lw_product_args *p = e->p;
    int32_t panel = 2 * e->k->width, first = lw_panel_first(e, j), left = p->out.c - first;
    const float *scale = lw_at(e->run, p->epi.scale), *more = lw_at(e->run, p->epi.addend);
    *f = (lw_finish){.addend = addend,
                     .act = p->epi.act,
                     .scale = scale ? scale[lw_view_index(&p->epi.scale, g, 0, 0, 0)] : 1,
                     .c = left < columns(p, e->k) ? left : columns(p, e->k),
                     .residual_sh = p->epi.residual.sh,
                     .residual_sw = p->epi.residual.sw,
                     .sh = p->out.sh,
                     .sw = p->out.sw};
    for (int32_t l = 0; l < panel; l++) addend[l] = e->bias ? e->bias[j * panel + l] : 0;
    for (int32_t l = 0; more && l < f->c; l++) addend[l] += more[lw_view_index(&p->epi.addend, g, 0, 0, 0) + first + l];
}

bool lw_panel_supports(const lw_product_args *p) {
    const lw_epilogue *e = &p->epi;
    if (p->out.dtype != LW_F32 || p->in.a.dtype != LW_F32) return false;
    if (lw_view_is(e->addend) && (e->addend.dtype != LW_F32 || is_geglu(p) || (e->addend.n > 1 && e->addend.sn != 0)))
        return false;
    if (lw_view_is(e->scale) && (e->scale.dtype != LW_F32 || (e->scale.n > 1 && e->scale.sn != 0))) return false;
    return !lw_view_is(e->residual) || e->residual.dtype == LW_F32;
}

/* ---- the tactic */

enum {
    BAND = 96,     /* rows of a chunk at most: their sums of a panel stay in the first-level cache */
    MIN_BAND = 48, /* and fewer where they are so long that a band would not stay in the second */
    BAND_BYTES = 320 << 10,
    DEPTH = 1024 /* channels added up before the next rows */
};

/* How an op is cut: bands of rows inside each guidance pass, groups of panels. */
typedef struct cuts {
    int32_t rows, band, n_bands; /* of one pass */
    int32_t panels, each, n_groups;
} cuts;

typedef struct product {
    cuts cut;
    int32_t weights, bias;
} product;

static bool rows_uniform(const lw_view *v) {
    return v->sw != 0 && (v->h == 1 || v->sh == v->w * v->sw) && (v->n == 1 || v->sn == v->h * v->w * v->sw);
}

static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    const lw_product_args *p = &op->m->product;
    if (op->n_member != 1 || p->kh != 1 || p->kw != 1 || p->stride != 1 || p->pad_top || p->pad_left) return false;
    return lw_panel_supports(p) && rows_uniform(&p->out);
}

static int32_t parts(int32_t n, int32_t each) { return (n + each - 1) / each; }

/* Chunks of some 20 MFLOP, a tenth of a millisecond: bands first, then columns, so that many threads have work too. */
static cuts choose_cuts(const lw_product_args *p, const lw_kernels *k) {
    int32_t rows = p->out.n * p->out.h * p->out.w, tile = k->rows;
    cuts c = {.rows = rows, .panels = lw_panel_count(p, k)};
    int32_t most = BAND_BYTES / (p->in.a.c * (int32_t)sizeof(float));
    most = (most > BAND ? BAND : most < MIN_BAND ? MIN_BAND : most) / tile * tile;
    c.band = parts(parts(rows, parts(rows, most)), tile) * tile;
    c.n_bands = parts(rows, c.band);
    double each = 2.0 * c.band * 2 * k->width * p->in.a.c;
    c.each = each < 20e6 ? (int32_t)(20e6 / each) : 1;
    c.n_groups = parts(c.panels, c.each);
    c.each = parts(c.panels, c.n_groups);
    c.n_groups = parts(c.panels, c.each);
    return c;
}

static void release(void *state) { lw_free(state); }

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    (void)backend;
    const lw_product_args *p = &op->m->product;
    product *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    *workspace_bytes = 0;
    s->cut = choose_cuts(p, lw_cpu_kernels());
    s->bias = -1;
    LW_TRY(lw_panels_request(params, p->w, is_geglu(p), &s->weights, err));
    return lw_param_is(p->bias) ? lw_panels_request(params, p->bias, is_geglu(p), &s->bias, err) : LW_OK;
}

typedef struct job {
    lw_panel_epilogue e;
    cuts cut;
    const float *weights;
} job;

/* The lines that will be read and written once the sums are there: they come in meanwhile. */
static void fetch(const lw_finish *f, int32_t rows) {
    enum { LINE = 16 }; /* floats */
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < f->c; c += LINE) {
            __builtin_prefetch(f->out + r * f->sw + c, 1);
            if (f->residual) __builtin_prefetch(f->residual + r * f->residual_sw + c, 0);
        }
}

static void run_panel(const job *j, int32_t g, int32_t first, int32_t rows, int32_t panel) {
    const lw_product_args *p = j->e.p;
    const lw_kernels *k = j->e.k;
    const lw_view *in = &p->in.a, *res = &p->epi.residual;
    float sums[BAND * LW_MAX_PANEL], addend[LW_MAX_PANEL];
    int32_t wide = 2 * k->width, tile = k->rows, last = (in->c - 1) / DEPTH * DEPTH, left = in->c - last;
    const float *a = (const float *)lw_at(j->e.run, *in) + g * in->sg + first * in->sw,
                *b = j->weights + (int64_t)panel * in->c * wide, *next = b + (int64_t)in->c * wide;
    for (int32_t t = 0; t < last; t += DEPTH)
        k->multiply(a + t, in->sw, rows, b + t * wide, DEPTH, t > 0, sums, wide, b + (t + DEPTH) * wide);
    lw_finish f;
    lw_panel_finish(&j->e, g, panel, addend, &f);
    int32_t c = lw_panel_first(&j->e, panel);
    f.out = (float *)lw_at(j->e.run, p->out) + g * p->out.sg + first * p->out.sw + c;
    if (lw_view_is(*res)) f.residual = (const float *)lw_at(j->e.run, *res) + g * res->sg + first * res->sw + c;
    for (int32_t r = 0; r < rows; r += tile) {
        int32_t n = rows - r < tile ? rows - r : tile;
        fetch(&f, n);
        k->multiply(a + r * in->sw + last, in->sw, n, b + last * wide, left, last > 0, sums + r * wide, wide,
                    next + (int64_t)r / tile * left * 8);
        k->finish(sums + r * wide, 0, 1, n, &f);
        f.out += n * f.sw;
        if (f.residual) f.residual += n * f.residual_sw;
    }
}

/* The bands of a group of panels follow each other, so that they find its weights in the cache. */
static void run_chunks(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const cuts *c = &j->cut;
    for (int64_t i = begin; i < end; i++) {
        int32_t band = (int32_t)(i % c->n_bands), g = (int32_t)(i / c->n_bands % j->e.p->out.g),
                group = (int32_t)(i / c->n_bands / j->e.p->out.g);
        int32_t first = band * c->band, rows = c->rows - first < c->band ? c->rows - first : c->band;
        for (int32_t panel = group * c->each; panel < (group + 1) * c->each && panel < c->panels; panel++)
            run_panel(j, g, first, rows, panel);
    }
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const product *s = state;
    const lw_product_args *p = &op->m->product;
    job j = {.e = {.p = p, .run = r, .k = lw_cpu_kernels(), .bias = lw_pack_data(params, s->bias)},
             .cut = s->cut,
             .weights = lw_pack_data(params, s->weights)};
    (void)err;
    lw_parallel_for(backend->pool, backend->threads, (int64_t)s->cut.n_groups * p->out.g * s->cut.n_bands, 1,
                    run_chunks, &j);
    return LW_OK;
}

enum {
    TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL,
};

static const lw_tactic linear = {"linear_fp32", LW_OP_LINEAR, TAKES, supports, prepare, run, release},
                       conv1x1 = {"conv2d_1x1_fp32", LW_OP_CONV2D, TAKES, supports, prepare, run, release};
const lw_tactic *const lw_cpu_product_tactics[] = {&linear, &conv1x1, &lw_cpu_winograd, NULL};
const lw_tactic *const lw_cpu_last_tactics[] = {&lw_cpu_winograd_rest, NULL};
