/* SPDX-License-Identifier: MIT
 * Our own products (linear and convolutions of any window but Winograd's), fp32 or bf16: panels of columns against
 * bands of rows, gathered where there is a window, the whole epilogue on the sums while they are in the first-level
 * cache. Cut by the shape alone; each row's bits do not depend on what is computed beside it. */
#include "cpu/product.h"

#include <stdio.h>
#include <string.h>

/* ---- packs */

typedef struct panels {
    int32_t width;
    lw_panels kind;
    lw_panel_values values;
} panels;

static int64_t panels_of(const panels *u, int64_t outputs) { return (outputs + 2 * u->width - 1) / (2 * u->width); }

/* The output that column l of panel j is; -1: none. */
static int64_t output_of(const panels *u, int64_t outputs, int64_t j, int32_t l) {
    bool geglu = u->kind == LW_PANELS_GEGLU;
    int64_t o = geglu ? j * u->width + l % u->width : j * 2 * u->width + l, n = geglu ? outputs / 2 : outputs;
    if (o >= n) return -1;
    return geglu && l >= u->width ? n + o : o;
}

static lw_status fill(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    const panels *u = user;
    int64_t taps = d[2] * d[3], each = d[1] * taps, wide = 2 * u->width, outputs[LW_MAX_PANEL];
    bool windows = u->kind == LW_PANELS_WINDOWS;
    int32_t pair = u->values == LW_PANELS_BF16_PAIRS ? 2 : 1;
    float row[LW_MAX_PANEL];
    (void)err;
    for (int64_t j = 0; j < panels_of(u, d[0]); j++) {
        for (int32_t l = 0; l < wide; l++) outputs[l] = output_of(u, d[0], j, l);
        for (int64_t k = 0; k < each; k++) {
            int64_t at = windows ? k : k % d[1] * taps + k / d[1], to = (j * each + k / pair * pair) * wide + k % pair;
            for (int32_t l = 0; l < wide; l++) row[l] = outputs[l] < 0 ? 0 : logical[outputs[l] * each + at];
            if (u->values == LW_PANELS_F32) memcpy((float *)dst + to, row, (size_t)wide * sizeof *row);
            else
                for (int32_t l = 0; l < wide; l++) ((uint16_t *)dst)[to + l * pair] = lw_f32_to_bf16(row[l]);
        }
    }
    return LW_OK;
}

lw_status lw_panels_request(lw_params *params, lw_param w, lw_panels kind, lw_panel_values values, int32_t *pack,
                            lw_error *err) {
    static const char *const names[] = {"windows", "channels", "geglu"}, *const suffixes[] = {"", "_bf16",
                                                                                              "_bf16_pairs"};
    panels user = {.width = lw_cpu_kernels()->width, .kind = kind, .values = values};
    int64_t d[4];
    lw_param_dims(params, w, d);
    size_t n = (size_t)(panels_of(&user, d[0]) * 2 * user.width * d[1] * d[2] * d[3]);
    lw_form form = {.bytes = n * (values == LW_PANELS_F32 ? sizeof(float) : sizeof(uint16_t)),
                    .fill = fill,
                    .user = &user,
                    .user_bytes = sizeof user};
    snprintf(form.key, sizeof form.key, "panels_%d_%s%s", 2 * user.width, names[kind], suffixes[values]);
    return lw_pack_request(params, w, &form, pack, err);
}

/* ---- slots */

int32_t lw_slots_count(const lw_backend *backend, int64_t chunks) {
    int64_t n = backend->threads < chunks ? backend->threads : chunks;
    return (int32_t)(n < LW_MAX_SLOTS ? n : LW_MAX_SLOTS);
}

void lw_slots_init(lw_slots *s, int32_t n) {
    s->n = n;
    for (int32_t i = 0; i < n; i++) atomic_flag_clear(&s->taken[i]);
}

int32_t lw_slot_take(lw_slots *s) {
    int32_t i = 0;
    while (atomic_flag_test_and_set(&s->taken[i])) i = (i + 1) % s->n;
    return i;
}

void lw_slot_give(lw_slots *s, int32_t slot) { atomic_flag_clear(&s->taken[slot]); }

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
    if (more) more += lw_view_index(&p->epi.addend, g, 0, 0, 0) + first;
    for (int32_t l = 0; l < panel; l++)
        addend[l] = (e->bias ? e->bias[j * panel + l] : 0) + (more && l < f->c ? more[l] : 0);
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
    int32_t depth;    /* words of a row, see kernels.h */
    bool window;      /* rows are gathered, for n_slots chunks at once */
    int32_t n_rounds; /* else passes whose rows are rounded before */
    int32_t n_slots;
} cuts;

typedef struct product {
    const lw_kernels *k;
    cuts cut;
    int32_t weights, bias;
} product;

static bool rows_uniform(const lw_view *v) {
    return v->sw != 0 && (v->h == 1 || v->sh == v->w * v->sw) && (v->n == 1 || v->sn == v->h * v->w * v->sw);
}

static bool is_window(const lw_product_args *p) {
    return p->kh != 1 || p->kw != 1 || p->stride != 1 || p->pad_top || p->pad_left;
}

static bool can_run(const lw_op *op, bool window) {
    const lw_product_args *p = &op->m->product;
    return op->n_member == 1 && is_window(p) == window && lw_panel_supports(p) && rows_uniform(&p->out) &&
           !(window && is_geglu(p));
}

static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return can_run(op, false);
}

/* Rows of few values, or panels that are half empty, are better left to oneDNN where it is there. */
static bool is_worth(const lw_product_args *p) { return lw_prologue_channels(&p->in) >= 64 && p->out.c >= 32; }

static bool supports_window(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return can_run(op, true) && is_worth(&op->m->product);
}

static bool supports_window_rest(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return can_run(op, true) && !is_worth(&op->m->product);
}

/* What rounds its products to bf16 takes them where there are enough to be summed: never the few channels of the first
 * and the last convolution. */
static bool supports_bf16(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    const lw_product_args *p = &op->m->product;
    return can_run(op, is_window(p)) && is_worth(p) && p->in.a.c % 2 == 0;
}

/* Chunks of some 20 MFLOP, a tenth of a millisecond: bands first, then columns, so that many threads have work too.
 * Where rows are gathered, by each chunk for itself, they are larger. */
static cuts choose_cuts(const lw_backend *backend, const lw_product_args *p, const lw_kernels *k) {
    int32_t rows = p->out.n * p->out.h * p->out.w, tile = k->rows;
    cuts c = {.rows = rows, .panels = lw_panel_count(p, k), .window = is_window(p)};
    c.depth = p->in.a.c * p->kh * p->kw / k->pair;
    int32_t most = BAND_BYTES / (c.depth * (int32_t)sizeof(float));
    most = (most > BAND ? BAND : most < MIN_BAND ? MIN_BAND : most) / tile * tile;
    c.band = lw_parts(lw_parts(rows, lw_parts(rows, most)), tile) * tile;
    c.n_bands = lw_parts(rows, c.band);
    double each = 2.0 * c.band * 2 * k->width * c.depth, flop = c.window ? 100e6 : 20e6;
    c.each = each < flop ? (int32_t)(flop / each) : 1;
    c.n_groups = lw_parts(c.panels, c.each);
    c.each = lw_parts(c.panels, c.n_groups);
    c.n_groups = lw_parts(c.panels, c.each);
    if (!c.window && k->pair > 1) c.n_rounds = p->in.a.sg ? p->out.g : 1;
    if (c.window) c.n_slots = lw_slots_count(backend, (int64_t)c.n_groups * c.n_bands * p->out.g);
    return c;
}

static void release(void *state) { lw_free(state); }

static lw_status prepare_with(const lw_kernels *k, lw_backend *backend, lw_params *params, const lw_op *op,
                              void **state, size_t *workspace_bytes, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    product *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    lw_panels kind = is_geglu(p) ? LW_PANELS_GEGLU : LW_PANELS_CHANNELS;
    s->k = k;
    s->cut = choose_cuts(backend, p, k);
    s->bias = -1;
    int64_t rows = (int64_t)s->cut.n_slots * s->cut.band + (int64_t)s->cut.n_rounds * s->cut.rows;
    *workspace_bytes = (size_t)rows * (size_t)s->cut.depth * sizeof(float);
    LW_TRY(lw_panels_request(params, p->w, kind, k->pair > 1 ? LW_PANELS_BF16_PAIRS : LW_PANELS_F32, &s->weights, err));
    return lw_param_is(p->bias) ? lw_panels_request(params, p->bias, kind, LW_PANELS_F32, &s->bias, err) : LW_OK;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    return prepare_with(lw_cpu_kernels(), backend, params, op, state, workspace_bytes, err);
}

static lw_status prepare_bf16(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                              size_t *workspace_bytes, lw_error *err) {
    return prepare_with(lw_cpu_kernels_bf16(), backend, params, op, state, workspace_bytes, err);
}

typedef struct job {
    lw_panel_epilogue e;
    cuts cut;
    const float *weights;
    lw_slots slots;
} job;

/* The words of the windows of `count` rows from `first` on, [kh * kw][channels] each, zeros outside of the picture. */
static void gather(const job *j, int32_t g, int32_t first, int32_t count, float *to) {
    const lw_product_args *p = j->e.p;
    const lw_view *a = &p->in.a;
    const float *from = lw_at(j->e.run, *a);
    int32_t words = a->c / j->e.k->pair;
    for (int32_t r = first; r < first + count; r++) {
        int32_t x = r % p->out.w * p->stride - p->pad_left, y = r / p->out.w % p->out.h * p->stride - p->pad_top;
        int64_t picture = lw_view_index(a, g, r / p->out.w / p->out.h, 0, 0);
        for (int32_t t = 0; t < p->kh * p->kw; t++, to += words) {
            int32_t py = y + t / p->kw, px = x + t % p->kw;
            if (py < 0 || py >= a->h || px < 0 || px >= a->w) memset(to, 0, (size_t)words * sizeof *to);
            else j->e.k->round_words(from + picture + py * a->sh + px * a->sw, a->c, to);
        }
    }
}

/* The lines that will be read and written once the sums are there: they come in meanwhile. */
static void fetch(const lw_finish *f, int32_t rows) {
    enum { LINE = 16 }; /* floats */
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < f->c; c += LINE) {
            __builtin_prefetch(f->out + r * f->sw + c, 1);
            if (f->residual) __builtin_prefetch(f->residual + r * f->residual_sw + c, 0);
        }
}

/* a: the band's rows, `stride` apart. */
static void run_panel(const job *j, const float *a, int64_t stride, int32_t g, int32_t first, int32_t rows,
                      int32_t panel) {
    const lw_product_args *p = j->e.p;
    const lw_kernels *k = j->e.k;
    const lw_view *res = &p->epi.residual;
    float sums[BAND * LW_MAX_PANEL], addend[LW_MAX_PANEL];
    int32_t wide = 2 * k->width, tile = k->rows, depth = j->cut.depth, last = (depth - 1) / DEPTH * DEPTH,
            left = depth - last;
    const float *b = j->weights + (int64_t)panel * depth * wide, *next = b + (int64_t)depth * wide;
    for (int32_t t = 0; t < last; t += DEPTH)
        k->multiply(a + t, stride, rows, b + t * wide, DEPTH, t > 0, sums, wide, b + (t + DEPTH) * wide);
    lw_finish f;
    lw_panel_finish(&j->e, g, panel, addend, &f);
    int32_t c = lw_panel_first(&j->e, panel);
    f.out = (float *)lw_at(j->e.run, p->out) + g * p->out.sg + first * p->out.sw + c;
    if (lw_view_is(*res)) f.residual = (const float *)lw_at(j->e.run, *res) + g * res->sg + first * res->sw + c;
    for (int32_t r = 0; r < rows; r += tile) {
        int32_t n = rows - r < tile ? rows - r : tile;
        fetch(&f, n);
        k->multiply(a + r * stride + last, stride, n, b + last * wide, left, last > 0, sums + r * wide, wide,
                    next + (int64_t)r / tile * left * 8);
        k->finish(sums + r * wide, 0, 1, n, &f);
        f.out += n * f.sw;
        if (f.residual) f.residual += n * f.residual_sw;
    }
}

/* Rows of all passes to words, once: the chunks of all panels read them. */
static void round_rows(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_view *in = &j->e.p->in.a;
    const float *from = lw_at(j->e.run, *in);
    float *to = j->e.run->workspace;
    for (int64_t i = begin; i < end; i++)
        j->e.k->round_words(from + i / j->cut.rows * in->sg + i % j->cut.rows * in->sw, in->c, to + i * j->cut.depth);
}

static void run_chunk(job *j, int32_t g, int32_t first, int32_t rows, int32_t group) {
    const cuts *c = &j->cut;
    const lw_view *in = &j->e.p->in.a;
    const float *a = (const float *)lw_at(j->e.run, *in) + g * in->sg + first * in->sw;
    int64_t stride = in->sw;
    int32_t slot = 0;
    if (c->n_rounds) {
        a = (const float *)j->e.run->workspace + ((int64_t)(g % c->n_rounds) * c->rows + first) * c->depth;
        stride = c->depth;
    }
    if (c->window) {
        slot = lw_slot_take(&j->slots);
        float *rows_at = (float *)j->e.run->workspace + (int64_t)slot * c->band * c->depth;
        gather(j, g, first, rows, rows_at);
        a = rows_at;
        stride = c->depth;
    }
    for (int32_t panel = group * c->each; panel < (group + 1) * c->each && panel < c->panels; panel++)
        run_panel(j, a, stride, g, first, rows, panel);
    if (c->window) lw_slot_give(&j->slots, slot);
}

/* The bands of a group of panels follow each other, so that they find its weights in the cache. */
static void run_chunks(void *user, int64_t begin, int64_t end) {
    job *j = user;
    const cuts *c = &j->cut;
    for (int64_t i = begin; i < end; i++) {
        int32_t band = (int32_t)(i % c->n_bands), g = (int32_t)(i / c->n_bands % j->e.p->out.g),
                group = (int32_t)(i / c->n_bands / j->e.p->out.g), first = band * c->band;
        run_chunk(j, g, first, c->rows - first < c->band ? c->rows - first : c->band, group);
    }
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const product *s = state;
    const lw_product_args *p = &op->m->product;
    job j = {.e = {.p = p, .run = r, .k = s->k, .bias = lw_pack_data(params, s->bias)},
             .cut = s->cut,
             .weights = lw_pack_data(params, s->weights)};
    (void)err;
    lw_slots_init(&j.slots, s->cut.n_slots);
    enum { ROUND_ROWS = 32 };
    if (s->cut.n_rounds)
        lw_parallel_for(backend->pool, backend->threads, (int64_t)s->cut.n_rounds * s->cut.rows, ROUND_ROWS, round_rows,
                        &j);
    lw_parallel_for(backend->pool, backend->threads, (int64_t)s->cut.n_groups * p->out.g * s->cut.n_bands, 1,
                    run_chunks, &j);
    return LW_OK;
}

enum {
    TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_GEGLU | LW_TAKES_SCALE | LW_TAKES_RESIDUAL,
};

/* The same in two places of the backend's order: before oneDNN's, and behind them. */
#define WINDOW(name, supports_it)                                                                                      \
    static const lw_tactic name = {"conv2d_fp32", LW_OP_CONV2D, TAKES, supports_it, prepare, run, release}
WINDOW(window, supports_window);
WINDOW(window_rest, supports_window_rest);
static const lw_tactic linear = {"linear_fp32", LW_OP_LINEAR, TAKES, supports, prepare, run, release},
                       conv1x1 = {"conv2d_1x1_fp32", LW_OP_CONV2D, TAKES, supports, prepare, run, release};
static const lw_tactic linear_bf16 = {"linear_bf16", LW_OP_LINEAR, TAKES | LW_TAKES_ROUNDING,
                                      supports_bf16, prepare_bf16, run,
                                      release},
                       conv_bf16 = {"conv2d_bf16", LW_OP_CONV2D, TAKES | LW_TAKES_ROUNDING, supports_bf16, prepare_bf16,
                                    run,           release};
const lw_tactic *const lw_cpu_bf16_tactics[] = {&linear_bf16, &lw_cpu_winograd_bf16, &conv_bf16, &lw_cpu_attention_bf16,
                                                NULL};
const lw_tactic *const lw_cpu_product_tactics[] = {&linear, &conv1x1, &lw_cpu_winograd, &window, NULL};
const lw_tactic *const lw_cpu_last_tactics[] = {&window_rest, &lw_cpu_winograd_rest, NULL};
