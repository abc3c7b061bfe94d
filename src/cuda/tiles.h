/* SPDX-License-Identifier: MIT
 * The index arithmetic of the Hopper kernels (wgmma.cu, wgmma_attention.cu), for the kernels, their launchers and the
 * host's test alike: of products, which output pixels a tile has, where each step of the sum lies in the input and in
 * the weights, and where the copy engine puts it for the matrix unit to read.
 *
 * The output is pictures of h x w pixels, n of them ((g, n) as one axis); a linear or 1x1 convolution is one picture of
 * one row. A tile's rows are a box of bw x bh x bn pixels, x fastest, then y: for a tap of the window and 64 channels,
 * its operand is then one box of the input too, and the copy engine fills with zero what lies outside the picture,
 * which is the padding. The sum runs over steps: taps, and in each tap chunks of 64 channels.
 *
 * Where a window moves by one pixel over pictures whose rows are a multiple of 8, the box is 8 wide, its order is x, n,
 * y, and the input's box is a patch: with the window's rim, which serves all taps of its 64 channels. Eight pixels
 * beside each other are a group of 8 rows for the matrix unit, which finds the groups a patch's row apart, from
 * whatever row the tap begins at. What reaches a multiprocessor, not what it multiplies, is what convolutions else wait
 * for. The sum then runs over chunks, and in each chunk taps. */
#ifndef LW_CUDA_TILES_H
#define LW_CUDA_TILES_H

#include <stdbool.h>

#include "cuda/kernels.h"

#ifdef __CUDACC__
#define CU_BOTH static __host__ __device__ __forceinline__
#else
#define CU_BOTH static inline
#endif

enum {
    CU_CHUNK = 64, /* channels of a step: 128 bytes of half, the widest row that the swizzle knows */
    CU_CHUNK_BYTES = 128,
    CU_ROW_PART = 64,       /* channels of a part of a row's statistics */
    CU_ATTENTION_KEYS = 96, /* of a tile of attention */
    CU_BOX_LIMIT = 256,     /* the copy engine's boxes are no larger in any direction */
    CU_RING_LIMIT = 8,      /* boxes in a ring */
    CU_PATCHES = 2,         /* of them, where they are patches */
    CU_BARRIER_BYTES = (2 * CU_RING_LIMIT + 2 * CU_PATCHES + 1) * 8
};

/* Division of 0 <= x < 2^31 by a number that is known before the launch: a multiplication and a shift, where the device
 * takes a hundred cycles to divide. */
typedef struct cu_divider {
    uint32_t by, factor, shift;
} cu_divider;

static inline cu_divider cu_divider_of(int32_t by) {
    cu_divider d = {(uint32_t)by, 0, 0};
    while ((uint64_t)1 << d.shift < d.by) d.shift++;
    d.factor = (uint32_t)(((((uint64_t)1 << d.shift) - d.by) << 32) / d.by + 1);
    return d;
}

CU_BOTH int32_t cu_divide(const cu_divider *d, int32_t x) {
    return (int32_t)(((uint32_t)((uint64_t)(uint32_t)x * d->factor >> 32) + (uint32_t)x) >> d->shift);
}

/* x becomes the rest. */
CU_BOTH int32_t cu_divide_rest(const cu_divider *d, int32_t *x) {
    const int32_t q = cu_divide(d, *x);
    *x -= q * (int32_t)d->by;
    return q;
}

typedef struct cu_tiling {
    int32_t w, h, n;    /* output */
    int32_t bw, bh, bn; /* box of a tile */
    int32_t tiles_w, tiles_h, tiles;
    int32_t stride, pad_left, pad_top, kw;
    int32_t chunks, steps; /* of one tap; of the whole sum */
    bool patch;
    int32_t box_w, box_h, box_rows; /* of the input, as it lies in shared memory: columns, rows, and pixels in all */
    int32_t group_rows, tap_rows;   /* there, from 8 pixels to the next 8; from a tap to the one below it */
    cu_divider by_tiles_w, by_tiles_h, by_bw, by_bh, by_bn, by_chunks, by_taps, by_kw;
} cu_tiling;

CU_BOTH int32_t cu_ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

CU_BOTH int32_t cu_tiles_of(const cu_tiling *t, int32_t bw, int32_t bh, int32_t bn) {
    return cu_ceil_div(t->w, bw) * cu_ceil_div(t->h, bh) * cu_ceil_div(t->n, bn);
}

/* The patch with the fewest tiles of at most bm pixels, no more than `tiles`; among those the one with the least rim,
 * which leaves room for the rings. False: there is none. */
static inline bool cu_choose_patch(cu_tiling *t, int32_t bm, int32_t kh, int32_t tiles) {
    const int32_t most = bm * 5 / 4 + 64;
    int32_t least = most + 1;
    if (t->stride != 1 || kh * t->kw == 1 || t->w % 8) return false;
    for (int32_t bh = 1; bh <= t->h && 8 * bh <= bm && bh + kh - 1 <= CU_BOX_LIMIT; bh++) {
        int32_t bn = bm / (8 * bh);
        if (bn > t->n) bn = t->n;
        const int32_t of = cu_tiles_of(t, 8, bh, bn), rows = (8 + t->kw - 1) * bn * (bh + kh - 1);
        if (of > tiles || rows > most || (of == tiles && rows >= least)) continue;
        tiles = of, least = rows;
        t->bw = 8, t->bh = bh, t->bn = bn;
    }
    return least <= most;
}

/* The box with the fewest tiles of at most bm pixels; among those the widest, whose copies are longest. */
static inline void cu_choose_box(cu_tiling *t, int32_t bm) {
    const int32_t limit = CU_BOX_LIMIT / t->stride;
    int64_t best = INT64_MAX;
    for (int32_t bw = 1; bw <= t->w && bw <= bm && bw <= limit; bw++) {
        if (t->h * t->n > 1 && bw > 1 && cu_ceil_div(t->w, bw) == cu_ceil_div(t->w, bw - 1)) continue; /* no fewer */
        for (int32_t bh = 1; bh <= t->h && bw * bh <= bm && bh <= limit; bh++) {
            int32_t bn = bm / (bw * bh);
            if (bn > t->n) bn = t->n;
            if (bn > CU_BOX_LIMIT) bn = CU_BOX_LIMIT;
            const int64_t tiles = cu_tiles_of(t, bw, bh, bn);
            if (tiles > best || (tiles == best && bw <= t->bw)) continue;
            best = tiles;
            t->bw = bw, t->bh = bh, t->bn = bn;
        }
    }
}

/* Rows of (g, n, h, w) at one stride. */
CU_BOTH bool cu_is_flat(const cu_view *v) {
    return (v->h == 1 || v->sh == v->w * v->sw) && (v->n == 1 || v->sn == v->h * v->w * v->sw) &&
           (v->g == 1 || v->sg == (int64_t)v->n * v->h * v->w * v->sw);
}

/* The tiling of a product by tiles of bm pixels; true: as one row of pixels. */
static inline bool cu_wgmma_tiling(cu_tiling *t, const cu_product_args *a, int32_t bm) {
    const bool flat = a->kh == 1 && a->kw == 1 && a->stride == 1 && !a->pad_top && !a->pad_left && cu_is_flat(&a->in);
    const int32_t gn = a->out.g * a->out.n;
    t->w = flat ? gn * a->out.h * a->out.w : a->out.w;
    t->h = flat ? 1 : a->out.h;
    t->n = flat ? 1 : gn;
    t->stride = a->stride, t->pad_left = a->pad_left, t->pad_top = a->pad_top, t->kw = a->kw;
    t->chunks = cu_ceil_div(a->in.c, CU_CHUNK);
    t->steps = t->chunks * a->kh * a->kw;
    t->bw = t->bh = t->bn = 0;
    cu_choose_box(t, bm);
    t->patch = cu_choose_patch(t, bm, a->kh, cu_tiles_of(t, t->bw, t->bh, t->bn));
    t->tiles_w = cu_ceil_div(t->w, t->bw);
    t->tiles_h = cu_ceil_div(t->h, t->bh);
    t->tiles = cu_tiles_of(t, t->bw, t->bh, t->bn);
    t->box_w = t->patch ? t->bw + a->kw - 1 : t->bw;
    t->box_h = t->patch ? t->bh + a->kh - 1 : t->bh;
    t->box_rows = t->box_w * t->box_h * t->bn;
    t->group_rows = t->patch ? t->box_w : 8;
    t->tap_rows = t->box_w * t->bn;
    t->by_tiles_w = cu_divider_of(t->tiles_w);
    t->by_tiles_h = cu_divider_of(t->tiles_h);
    t->by_bw = cu_divider_of(t->bw);
    t->by_bh = cu_divider_of(t->bh);
    t->by_bn = cu_divider_of(t->bn);
    t->by_chunks = cu_divider_of(t->chunks);
    t->by_taps = cu_divider_of(a->kh * a->kw);
    t->by_kw = cu_divider_of(t->kw);
    return flat;
}

/* How a block divides its shared memory: what cu_block_bytes counts; at the next multiple of 1 KB boxes of the input,
 * then as many or more boxes of weights, then where the parts of a split sum come. */
typedef struct cu_ring {
    int32_t boxes, weights;   /* of each */
    int32_t box_bytes, parts; /* bytes of a box of the input, a multiple of 1024; from the first box to the parts */
    int32_t bytes;            /* in all */
} cu_ring;

/* A row of sums, or of a part, in shared memory: rows of a warp's accesses fall into different banks. */
CU_BOTH int32_t cu_sums_row(int32_t columns) { return columns + 8; }

/* What a block has before its boxes: of each row a place and a factor, of each column two floats, barriers. */
CU_BOTH int32_t cu_block_bytes(int32_t rows, int32_t columns) { return rows * 20 + columns * 8 + CU_BARRIER_BYTES; }

/* For tiles of rows x columns, `blocks` of them on a multiprocessor. */
static inline cu_ring cu_ring_of(const cu_tiling *t, int32_t rows, int32_t columns, int32_t blocks, int32_t splits) {
    /* 1 KB is the system's, one goes for what begins at multiples of 1 KB */
    const int32_t before = 1024 + cu_block_bytes(rows, columns), memory = 228 * 1024 / blocks - 1024 - before,
                  sums = rows * cu_sums_row(columns) * (splits > 1 ? 2 : 4), parts = splits > 1 ? sums : 0,
                  weights_bytes = columns * CU_CHUNK_BYTES;
    cu_ring r;
    r.box_bytes = (t->patch ? cu_ceil_div(t->box_rows, 8) * 8 : rows) * CU_CHUNK_BYTES;
    r.boxes = t->patch ? CU_PATCHES : (memory - parts) / (r.box_bytes + weights_bytes);
    if (r.boxes > CU_RING_LIMIT) r.boxes = CU_RING_LIMIT;
    r.weights = t->patch ? (memory - parts - r.boxes * r.box_bytes) / weights_bytes : r.boxes;
    if (r.weights > CU_RING_LIMIT) r.weights = CU_RING_LIMIT;
    r.parts = r.boxes * r.box_bytes + r.weights * weights_bytes;
    r.bytes = before + (parts ? r.parts + parts : r.parts > sums ? r.parts : sums);
    return r;
}

/* Whether turns.cu can do it: rows times a matrix, with a bias, and with a residual or GEGLU. */
static inline bool cu_turns_fit(const cu_product_args *a) {
    const cu_epilogue *e = &a->epi;
    const bool gated = e->act == CU_ACT_GEGLU;
    return a->kh == 1 && a->kw == 1 && a->stride == 1 && !a->pad_top && !a->pad_left && !a->shortcut_weights &&
           !a->row_stats && (!a->stats || !e->residual.p) && !e->addend.p && !e->scale &&
           (gated || e->act == CU_ACT_NONE) &&
           (!e->residual.p || (!gated && e->residual.half && cu_is_flat(&e->residual))) && cu_is_flat(&a->in) &&
           cu_is_flat(&a->out);
}

/* Whether the tiles of pixels can go in pairs that share weights, in clusters of at most 8 blocks. */
CU_BOTH bool cu_can_pair(const cu_tiling *t, int32_t splits) { return t->tiles % 2 == 0 && splits <= 4; }

/* Steps that a shortcut adds to the sum. */
CU_BOTH int32_t cu_shortcut_steps(const cu_product_args *a) {
    return cu_ceil_div(a->shortcut_a.c, CU_CHUNK) + cu_ceil_div(a->shortcut_b.c, CU_CHUNK);
}

typedef struct cu_place {
    int32_t x, y, n;
} cu_place;

/* The first pixel of a tile. */
CU_BOTH cu_place cu_tile_origin(const cu_tiling *t, int32_t tile) {
    int32_t across = tile, down = cu_divide_rest(&t->by_tiles_w, &across);
    const int32_t n = cu_divide_rest(&t->by_tiles_h, &down);
    cu_place p = {across * t->bw, down * t->bh, n * t->bn};
    return p;
}

/* The pixel of a tile's row, counted through all pictures; -1: the row has none. */
CU_BOTH int32_t cu_tile_pixel(const cu_tiling *t, cu_place origin, int32_t row) {
    int32_t dx = row, rest = cu_divide_rest(&t->by_bw, &dx);
    const int32_t above = cu_divide_rest(t->patch ? &t->by_bn : &t->by_bh, &rest), dy = t->patch ? above : rest,
                  dn = t->patch ? rest : above;
    const int32_t x = origin.x + dx, y = origin.y + dy, n = origin.n + dn;
    if (dn >= t->bn || dy >= t->bh || x >= t->w || y >= t->h || n >= t->n) return -1;
    return (n * t->h + y) * t->w + x;
}

/* What a step reads: channels [c, c + 64) of tap `tap`, in column kx of the window; the input's box begins at (x, y),
 * which may be outside, and the tap's first pixel is its row `row`. */
typedef struct cu_step {
    int32_t tap, kx, c, x, y, row;
} cu_step;

CU_BOTH cu_step cu_step_at(const cu_tiling *t, cu_place origin, int32_t step) {
    if (t->patch) {
        int32_t kx = step;
        const int32_t chunk = cu_divide_rest(&t->by_taps, &kx), tap = kx, ky = cu_divide_rest(&t->by_kw, &kx);
        cu_step s = {tap, kx, chunk * CU_CHUNK, origin.x - t->pad_left, origin.y - t->pad_top, ky * t->tap_rows + kx};
        return s;
    }
    int32_t c = step, kx = cu_divide_rest(&t->by_chunks, &c);
    const int32_t tap = kx, ky = cu_divide_rest(&t->by_kw, &kx);
    cu_step s = {tap, kx, c * CU_CHUNK, origin.x * t->stride - t->pad_left + kx, origin.y * t->stride - t->pad_top + ky,
                 0};
    return s;
}

/* The step after s. */
CU_BOTH void cu_step_next(const cu_tiling *t, cu_step *s) {
    if (t->patch) {
        s->tap++, s->kx++, s->row++;
        if (s->kx < t->kw) return;
        s->kx = 0, s->row += t->tap_rows - t->kw;
        if (s->tap < (int32_t)t->by_taps.by) return;
        s->tap = s->row = 0, s->c += CU_CHUNK;
        return;
    }
    s->c += CU_CHUNK;
    if (s->c < t->chunks * CU_CHUNK) return;
    s->c = 0, s->tap++, s->kx++, s->x++;
    if (s->kx < t->kw) return;
    s->kx = 0, s->x -= t->kw, s->y++;
}

/* A step of a shortcut, whose channels are [c, c + 64): of the window's middle where there are patches. */
CU_BOTH cu_step cu_shortcut_step(const cu_tiling *t, cu_place origin, int32_t c) {
    cu_step s = {0, 0, c, origin.x, origin.y, 0};
    if (t->patch) s.x -= t->pad_left, s.y -= t->pad_top, s.row = t->pad_top * t->tap_rows + t->pad_left;
    return s;
}

/* Whether a step that is not its part's first reads another box of the input than the one before. */
CU_BOTH bool cu_begins_box(const cu_tiling *t, const cu_step *s) { return !t->patch || s->tap == 0; }

/* Steps [begin, end) of part i of 2^n_bits: as even as can be. */
CU_BOTH int32_t cu_part_begin(int32_t steps, int32_t i, int32_t n_bits) { return steps * i >> n_bits; }

/* Weight row of the first or second half of column tile `tile`. Without GEGLU (gates = 0) a tile is bn rows; with it,
 * half a tile are values and the other half their gates, `gates` rows further down. */
CU_BOTH int32_t cu_weight_row(int32_t tile, int32_t bn, int32_t gates, int32_t half) {
    if (!gates) return tile * bn + half * (bn / 2);
    return tile * (bn / 2) + half * gates;
}

/* ---- attention: a tensor as the copy engine walks it, (channel, head, row, n, g), strides in elements. The engine
 * knows no stride of 0: an axis along which all is the same has one element, and its coordinate is multiplied by 0. */

typedef struct cu_heads {
    int64_t dims[5], strides[5];
    int32_t n_step, g_step; /* 1, or 0 where all is the same along n, along g */
} cu_heads;

static inline cu_heads cu_heads_of(const cu_view *v, int32_t heads) {
    const int32_t d = v->c / heads;
    const int64_t n = v->sn ? v->n : 1, g = v->sg ? v->g : 1, sn = v->sn ? v->sn : v->sw * v->w;
    cu_heads h = {{d, heads, v->w, n, g}, {1, d, v->sw, sn, v->sg ? v->sg : sn * n}, v->sn != 0, v->sg != 0};
    return h;
}

/* Where the box of a head's channels [c, c + 64) of rows from `row` on begins. */
typedef struct cu_heads_place {
    int32_t at[5];
} cu_heads_place;

CU_BOTH cu_heads_place cu_heads_at(int32_t n_step, int32_t g_step, int32_t c, int32_t head, int32_t row, int32_t n,
                                   int32_t g) {
    cu_heads_place p = {{c, head, row, n * n_step, g * g_step}};
    return p;
}

/* Groups of 64 queries a block, for `all` heads: they share keys and values, and while one waits another works, so that
 * three take little longer than one. As many as make the fewest waves of blocks, where a multiprocessor has room for
 * one block, and no more; the sums of wider heads leave registers for fewer. */
static inline int32_t cu_attention_groups(int32_t queries, int32_t all, int32_t d, int32_t n_sm) {
    const int32_t most = d <= 40 ? 3 : d <= 80 ? 2 : 1;
    int32_t best = 1, fewest = INT32_MAX;
    for (int32_t groups = 1; groups <= most; groups++) {
        const int32_t waves = cu_ceil_div(cu_ceil_div(queries, 64 * groups) * all, n_sm);
        if (waves < fewest) best = groups, fewest = waves;
    }
    return best;
}

/* ---- shared memory: rows of 128 bytes in groups of 8, the 16-byte chunk j of row i at chunk j ^ (i % 8). Operands
 * begin at multiples of 1024 bytes, so that a row's place in its group is also that of its address. */

CU_BOTH uint32_t cu_swizzle(uint32_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

/* The matrix unit's descriptor of an operand whose rows lie so, sum contiguous: address and distance from one group of
 * 8 rows to the next in units of 16 bytes, and the kind of swizzle (1: 128 bytes). A further 16 values of the sum begin
 * 32 bytes on: add 2. */
CU_BOTH uint64_t cu_operand_of(uint32_t shared_address, uint32_t group_bytes) {
    return (uint64_t)(shared_address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(group_bytes >> 4) << 32 |
           (uint64_t)1 << 62;
}
CU_BOTH uint64_t cu_operand(uint32_t shared_address) { return cu_operand_of(shared_address, 8 * CU_CHUNK_BYTES); }

/* Of an operand that lies the other way, 16 rows [sum][column] from a multiple of 16 on: from one chunk of 64 columns
 * to the next, and from one group of 8 rows to the next. */
CU_BOTH uint64_t cu_values_operand(uint32_t shared_address, uint32_t chunk_bytes) {
    return (uint64_t)(shared_address >> 4 & 0x3fff) | (uint64_t)(chunk_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* Column of value v of a thread's sums, and its row in the 64 of its group of four warps: m64nN's layout. */
CU_BOTH int32_t cu_sum_column(int32_t thread, int32_t v) { return v / 4 * 8 + thread % 4 * 2 + v % 2; }
CU_BOTH int32_t cu_sum_row(int32_t thread, int32_t v) { return thread / 32 * 16 + thread % 32 / 4 + v / 2 % 2 * 8; }

#endif
