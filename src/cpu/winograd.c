/* SPDX-License-Identifier: MIT
 * 3x3 convolution of stride 1 by Winograd's F(4x4,3x3): a quarter of the multiplications. Weights are kept as they are
 * and transformed by the chunk that uses them, for little of its time: kept transformed they would take four times the
 * memory and, where pictures are small, more time to read than to make.
 *
 * The pictures' tiles are done in turns of so many that their transformed inputs stay in the last cache. A turn is two
 * loops: tiles to points; then, for each panel of output channels, products at every point and points to pixels. */
#include <string.h>

#include "cpu/product.h"

enum {
    MAX_DEPTH = 128, /* input channels transformed at a time at most */
    DEPTH = 96,      /* where there are more: a chunk's weights and sums stay in the second cache */
    TILES = 96,      /* tiles of a chunk at most */
    SPACER = 16      /* floats between points, so that they do not fall into one set of a cache */
};
static const int64_t turn_bytes = 4 << 20;

typedef struct sizes {
    int32_t across, rows, n_rows; /* tiles in a row; rows of tiles in a picture and in all of them */
    int32_t turn, n_tiles;        /* rows of tiles of a turn, and their tiles */
    int32_t depth, n_depths, n_slots;
    int64_t v_point, v_depth; /* floats of a point's tiles, of all points */
    int64_t u_point, m_point, slot;
    int64_t zeros; /* where `depth` zeros lie in the workspace, for the border */
} sizes;

typedef struct winograd {
    sizes s;
    int32_t weights, bias;
    bool bf16; /* the weights */
} winograd;

static bool can_run(const lw_op *op) {
    const lw_product_args *p = &op->m->product;
    int32_t up = p->in.up2 ? 2 : 1, c = lw_prologue_channels(&p->in);
    if (op->n_member != 1 || p->kh != 3 || p->kw != 3 || p->stride != 1 || p->pad_top != 1 || p->pad_left != 1)
        return false;
    if (p->out.h != p->in.a.h * up || p->out.w != p->in.a.w * up || c % lw_cpu_kernels()->width) return false;
    return p->epi.act != LW_ACT_GEGLU && lw_panel_supports(p);
}

/* Where channels are few, what they save does not pay for the transforms. */
static bool is_worth(const lw_product_args *p) { return lw_prologue_channels(&p->in) >= 32 && p->out.c >= 32; }

static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return can_run(op) && is_worth(&op->m->product);
}

static bool supports_rest(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    return can_run(op) && !is_worth(&op->m->product);
}

static sizes choose_sizes(const lw_backend *backend, const lw_product_args *p, const lw_kernels *k) {
    int32_t c = p->in.a.c, wide = 2 * k->width, n_panels = lw_panel_count(p, k);
    sizes s = {.across = lw_parts(p->out.w, LW_WINO_OUT), .rows = lw_parts(p->out.h, LW_WINO_OUT)};
    s.n_rows = p->out.g * p->out.n * s.rows; /* the bits of a tile do not depend on its turn */
    int64_t tile_bytes = (int64_t)c * LW_WINO_POINTS * (int64_t)sizeof(float), most = turn_bytes / tile_bytes,
            least = (int64_t)TILES * lw_parts(4 * backend->threads, n_panels); /* work for all threads */
    int64_t turn = (most > least ? most : least) / s.across;
    s.turn = turn < 1 ? 1 : turn > s.n_rows ? s.n_rows : (int32_t)turn;
    s.turn = lw_parts(s.n_rows, lw_parts(s.n_rows, s.turn));
    s.n_tiles = s.turn * s.across;
    s.depth = c <= MAX_DEPTH ? c : lw_parts(lw_parts(c, lw_parts(c, DEPTH)), k->width) * k->width;
    s.n_depths = lw_parts(c, s.depth);
    s.v_point = (int64_t)s.n_tiles * s.depth + SPACER;
    s.v_depth = s.v_point * LW_WINO_POINTS;
    s.u_point = s.depth * wide + SPACER;
    s.m_point = (s.n_tiles < TILES ? s.n_tiles : TILES) * wide + SPACER;
    s.slot = (s.u_point + s.m_point) * LW_WINO_POINTS;
    s.n_slots = lw_slots_count(backend, (int64_t)n_panels * lw_parts(s.n_tiles, TILES));
    s.zeros = s.v_depth * s.n_depths + s.slot * s.n_slots;
    return s;
}

static void release(void *state) { lw_free(state); }

static lw_status prepare_with(bool bf16, lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                              size_t *workspace_bytes, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    winograd *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    s->s = choose_sizes(backend, p, lw_cpu_kernels());
    s->bias = -1;
    s->bf16 = bf16;
    *workspace_bytes = (size_t)(s->s.zeros + s->s.depth) * sizeof(float);
    LW_TRY(lw_panels_request(params, p->w, LW_PANELS_WINDOWS, bf16 ? LW_PANELS_BF16 : LW_PANELS_F32, &s->weights, err));
    return lw_param_is(p->bias) ? lw_panels_request(params, p->bias, LW_PANELS_CHANNELS, LW_PANELS_F32, &s->bias, err)
                                : LW_OK;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    return prepare_with(false, backend, params, op, state, workspace_bytes, err);
}

static lw_status prepare_bf16(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                              size_t *workspace_bytes, lw_error *err) {
    return prepare_with(true, backend, params, op, state, workspace_bytes, err);
}

typedef struct job {
    lw_panel_epilogue e;
    sizes s;
    const char *weights;
    int32_t weight_bytes; /* of one */
    float *space;
    int32_t first_row, n_rows; /* of tiles, in this turn */
    lw_slots slots;
} job;

/* Rows of tiles are numbered through all pictures. */
static void split_row(const job *j, int32_t row, int32_t *g, int32_t *n, int32_t *y) {
    *y = row % j->s.rows * LW_WINO_OUT;
    *n = row / j->s.rows % j->e.p->out.n;
    *g = row / j->s.rows / j->e.p->out.n;
}

/* The pixels of the next tile come in while this one is worked on: strides that no processor guesses. */
static void fetch(const float *pixels, int64_t sh, int64_t sw, int32_t h, int32_t w, int32_t c, int write) {
    enum { LINE = 16 }; /* floats */
    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++)
            for (int32_t i = 0; i < c; i += LINE)
                if (write) __builtin_prefetch(pixels + y * sh + x * sw + i, 1);
                else __builtin_prefetch(pixels + y * sh + x * sw + i, 0);
}

static void transform_tile(const job *j, int32_t row, int32_t tile) {
    const lw_view *a = &j->e.p->in.a;
    int32_t g, n, y, x = tile * LW_WINO_OUT - 1;
    split_row(j, j->first_row + row, &g, &n, &y);
    y--;
    const float *picture = (const float *)lw_at(j->e.run, *a) + lw_view_index(a, g, n, 0, 0),
                *zeros = j->space + j->s.zeros, *d[LW_WINO_POINTS];
    for (int32_t t = 0, at = row * j->s.across + tile; t < j->s.n_depths; t++) {
        int32_t first = t * j->s.depth, depth = a->c - first < j->s.depth ? a->c - first : j->s.depth;
        for (int32_t i = 0; i < LW_WINO_POINTS; i++) {
            int32_t py = y + i / LW_WINO_IN, px = x + i % LW_WINO_IN;
            bool inside = py >= 0 && py < a->h && px >= 0 && px < a->w;
            d[i] = inside ? picture + py * a->sh + px * a->sw + first : zeros;
        }
        if (y >= 0 && y + LW_WINO_IN <= a->h && x + LW_WINO_IN + LW_WINO_OUT <= a->w)
            fetch(d[0] + LW_WINO_IN * a->sw, a->sh, a->sw, LW_WINO_IN, LW_WINO_OUT, depth, 0);
        j->e.k->wino_input(d, depth, j->space + t * j->s.v_depth + (int64_t)at * j->s.depth, j->s.v_point);
    }
}

static void to_points(void *user, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const job *j = user;
        for (int32_t tile = 0; tile < j->s.across; tile++) transform_tile(j, (int32_t)i, tile);
    }
}

/* m = the products of `count` tiles, from tile `first` of the turn on, with a panel, at every point. */
static void multiply(const job *j, int32_t panel, int32_t first, int32_t count, float *u, float *m) {
    const lw_kernels *k = j->e.k;
    int32_t c = j->e.p->in.a.c, wide = 2 * k->width;
    int64_t window_bytes = (int64_t)9 * wide * j->weight_bytes;
    const char *w = j->weights + (int64_t)panel * c * window_bytes;
    for (int32_t t = 0; t < j->s.n_depths; t++) {
        int32_t most = j->s.depth, depth = c - t * most < most ? c - t * most : most;
        const float *v = j->space + t * j->s.v_depth + (int64_t)first * most;
        k->wino_weights(w, j->weight_bytes == 2, depth, u, j->s.u_point);
        w += depth * window_bytes;
        for (int32_t i = 0; i < LW_WINO_POINTS; i++) /* the next weights come in: 9 windows over 36 points */
            k->multiply(v + i * j->s.v_point, most, count, u + i * j->s.u_point, depth, t > 0, m + i * j->s.m_point,
                        wide, (const float *)(const void *)(w + i * depth * window_bytes / LW_WINO_POINTS / 4 * 4));
    }
}

static void store_tiles(const job *j, int32_t panel, int32_t first, int32_t count, const float *m) {
    const lw_product_args *p = j->e.p;
    const lw_view *out = &p->out, *res = &p->epi.residual;
    int32_t wide = 2 * j->e.k->width, c = lw_panel_first(&j->e, panel), last_g = -1;
    float pixels[LW_WINO_OUT * LW_WINO_OUT * LW_MAX_PANEL], addend[LW_MAX_PANEL];
    lw_finish f = {0};
    for (int32_t i = 0; i < count; i++) {
        int32_t g, n, y, x = (first + i) % j->s.across * LW_WINO_OUT;
        split_row(j, j->first_row + (first + i) / j->s.across, &g, &n, &y);
        if (g != last_g) lw_panel_finish(&j->e, last_g = g, panel, addend, &f);
        f.out = (float *)lw_at(j->e.run, *out) + lw_view_index(out, g, n, y, x) + c;
        if (lw_view_is(*res)) f.residual = (const float *)lw_at(j->e.run, *res) + lw_view_index(res, g, n, y, x) + c;
        if (y + LW_WINO_OUT <= out->h && x + 2 * LW_WINO_OUT <= out->w) {
            fetch(f.out + LW_WINO_OUT * out->sw, out->sh, out->sw, LW_WINO_OUT, LW_WINO_OUT, f.c, 1);
            if (f.residual)
                fetch(f.residual + LW_WINO_OUT * res->sw, res->sh, res->sw, LW_WINO_OUT, LW_WINO_OUT, f.c, 0);
        }
        j->e.k->wino_output(m + i * wide, j->s.m_point, pixels);
        j->e.k->finish(pixels, LW_WINO_OUT * wide, out->h - y < LW_WINO_OUT ? out->h - y : LW_WINO_OUT,
                       out->w - x < LW_WINO_OUT ? out->w - x : LW_WINO_OUT, &f);
    }
}

static void to_pixels(void *user, int64_t begin, int64_t end) {
    job *j = user;
    int32_t slot = lw_slot_take(&j->slots), n_tiles = j->n_rows * j->s.across, groups = lw_parts(n_tiles, TILES),
            each = lw_parts(n_tiles, groups);
    float *u = j->space + j->s.v_depth * j->s.n_depths + slot * j->s.slot, *m = u + j->s.u_point * LW_WINO_POINTS;
    for (int64_t i = begin; i < end; i++) {
        int32_t panel = (int32_t)(i / groups), first = (int32_t)(i % groups) * each;
        int32_t count = n_tiles - first < each ? n_tiles - first : each;
        if (count <= 0) continue;
        multiply(j, panel, first, count, u, m);
        store_tiles(j, panel, first, count, m);
    }
    lw_slot_give(&j->slots, slot);
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const winograd *s = state;
    const lw_product_args *p = &op->m->product;
    job j = {.e = {.p = p, .run = r, .k = lw_cpu_kernels(), .bias = lw_pack_data(params, s->bias)},
             .s = s->s,
             .weights = lw_pack_data(params, s->weights),
             .weight_bytes = s->bf16 ? sizeof(uint16_t) : sizeof(float),
             .space = r->workspace};
    (void)err;
    lw_slots_init(&j.slots, s->s.n_slots);
    memset(j.space + s->s.zeros, 0, (size_t)s->s.depth * sizeof *j.space);
    for (j.first_row = 0; j.first_row < s->s.n_rows; j.first_row += s->s.turn) {
        int32_t left = s->s.n_rows - j.first_row;
        j.n_rows = left < s->s.turn ? left : s->s.turn;
        lw_parallel_for(backend->pool, backend->threads, j.n_rows, 1, to_points, &j);
        int32_t groups = lw_parts(j.n_rows * s->s.across, TILES);
        lw_parallel_for(backend->pool, s->s.n_slots, (int64_t)lw_panel_count(p, j.e.k) * groups, 1, to_pixels, &j);
    }
    return LW_OK;
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

/* One tactic in two places of the backend's order: before other direct convolutions, and behind them. */
#define NAME "conv2d_winograd_fp32"
const lw_tactic lw_cpu_winograd = {NAME, LW_OP_CONV2D, TAKES, supports, prepare, run, release},
                lw_cpu_winograd_rest = {NAME, LW_OP_CONV2D, TAKES, supports_rest, prepare, run, release},
                /* Its weights are bf16, its products fp32: their rounding at the points would be ten times as large. */
    lw_cpu_winograd_bf16 = {
        "conv2d_winograd_bf16", LW_OP_CONV2D, TAKES | LW_TAKES_ROUNDING, supports, prepare_bf16, run, release};
