/* SPDX-License-Identifier: MIT
 * The index arithmetic of the Hopper kernels, run on the host: for every tile, what the copy engine would put into
 * shared memory, what the matrix unit would read there by its descriptors, and where the sums end. Small whole numbers,
 * so that the result has to equal a plain convolution, or plain attention without its softmax, exactly. */
#include "fixture.h"

#ifdef LW_HAVE_CUDA
#include <math.h>

#include "base/base.h"
#include "cuda/gelu.h"
#include "cuda/model.h"

typedef struct shape {
    int32_t n, h, w, c, o, k, stride, pad; /* input; pad is above and left */
    int32_t out_h, out_w;
    bool geglu;
} shape;

/* ---- the hardware, as its manuals describe it. Memory counts in elements of 2 bytes, at the address ADDRESS. */

enum { ADDRESS = 7 * 1024 };
static const float garbage = 1e6f;

/* A box of (dc, dx, dy, dn) from (c, x, y, n) on, zeros outside the tensor; every: steps in x and y. */
static void copy_box(float *memory, uint32_t to, const float *from, const int64_t dims[4], const int64_t strides[4],
                     const int32_t at[4], const int32_t box[4], const int32_t every[4]) {
    int32_t row = 0;
    for (int32_t n = 0; n < box[3]; n++)
        for (int32_t y = 0; y < box[2]; y += every[2])
            for (int32_t x = 0; x < box[1]; x += every[1], row++)
                for (int32_t c = 0; c < box[0]; c++) {
                    int64_t p[4] = {at[0] + c, at[1] + x, at[2] + y, at[3] + n}, index = 0;
                    bool inside = true;
                    for (int i = 0; i < 4; i++) {
                        inside = inside && p[i] >= 0 && p[i] < dims[i];
                        index += p[i] * strides[i];
                    }
                    memory[(cu_swizzle(to + (uint32_t)row * 128 + (uint32_t)c * 2) - ADDRESS) / 2] =
                        inside ? from[index] : 0;
                }
}

/* Value k (0..15) of row r of an operand: address and group distance from the descriptor, then the swizzle. */
static float operand_at(const float *memory, uint64_t descriptor, int32_t r, int32_t k) {
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, group = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    assert_int_equal(descriptor >> 62, 1);
    uint32_t linear = start + (uint32_t)(r / 8) * group + (uint32_t)(r % 8) * 128 + (uint32_t)k * 2;
    return memory[(cu_swizzle(linear) - ADDRESS) / 2];
}

/* ---- the kernel's walk */

typedef struct rig {
    const shape *s;
    cu_product_args a;
    cu_tiling t;
    cu_tile_size size;
    cu_ring ring;
    bool flat;
    float *in, *weights, *memory, *sums;
    int32_t *written;
    double *out;
} rig;

/* first: of its part */
static cu_step load_step(rig *r, cu_place origin, int32_t column_tile, int32_t step, bool first) {
    const shape *s = r->s;
    const cu_tiling *t = &r->t;
    cu_step at = cu_step_at(t, origin, step);
    if (step > 0) {
        cu_step next = cu_step_at(t, origin, step - 1);
        cu_step_next(t, &next);
        assert_memory_equal(&next, &at, sizeof at);
    }
    int64_t w = r->flat ? t->w : s->w, h = r->flat ? 1 : s->h, n = t->n;
    const int64_t dims[4] = {s->c, w, h, n}, strides[4] = {1, s->c, s->c * w, s->c * w * h};
    const int32_t from[4] = {at.c, at.x, at.y, origin.n},
                  box[4] = {CU_CHUNK, t->box_w * s->stride, t->box_h * s->stride, t->bn},
                  every[4] = {1, s->stride, s->stride, 1};
    for (int32_t i = 0; i < 4; i++) assert_in_range(box[i], 1, CU_BOX_LIMIT);
    const int32_t axes[4] = {0, 1, t->patch ? 3 : 2, t->patch ? 2 : 3};
    int64_t in_dims[4], in_strides[4];
    int32_t in_from[4], in_box[4], in_every[4];
    for (int32_t i = 0; i < 4; i++) {
        in_dims[i] = dims[axes[i]], in_strides[i] = strides[axes[i]];
        in_from[i] = from[axes[i]], in_box[i] = box[axes[i]], in_every[i] = every[axes[i]];
    }
    if (first || cu_begins_box(t, &at))
        copy_box(r->memory, ADDRESS, r->in, in_dims, in_strides, in_from, in_box, in_every);
    const int64_t taps = s->k * s->k, w_dims[4] = {s->c, taps, r->a.n_rows, 1},
                  w_strides[4] = {1, s->c, s->c * taps, 0};
    /* a pair's halves come from two blocks */
    const int32_t gates = s->geglu ? s->o : 0, pieces = gates || cu_can_pair(t, 1) ? 2 : 1, ones[4] = {1, 1, 1, 1};
    for (int32_t i = 0; i < pieces; i++) {
        const int32_t w_from[4] = {at.c, at.tap, cu_weight_row(column_tile, r->size.columns, gates, i), 0},
                      w_box[4] = {CU_CHUNK, 1, r->size.columns / pieces, 1};
        copy_box(r->memory, ADDRESS + (uint32_t)r->ring.box_bytes + (uint32_t)(i * r->size.columns / 2) * 128,
                 r->weights, w_dims, w_strides, w_from, w_box, ones);
    }
    return at;
}

static void multiply_step(rig *r, cu_step at) {
    for (int32_t m = 0; m < r->size.rows / 64; m++)
        for (int32_t part = 0; part < CU_CHUNK / 16; part++) {
            const uint32_t group = (uint32_t)r->t.group_rows * CU_CHUNK_BYTES;
            uint64_t a = cu_operand_of(ADDRESS + (uint32_t)m * 8 * group + (uint32_t)at.row * CU_CHUNK_BYTES, group) +
                         2 * (uint64_t)part,
                     b = cu_operand(ADDRESS + (uint32_t)r->ring.box_bytes) + 2 * (uint64_t)part;
            for (int32_t thread = 0; thread < 128; thread++)
                for (int32_t v = 0; v < r->size.columns / 2; v++) {
                    int32_t row = cu_sum_row(thread, v), col = cu_sum_column(thread, v);
                    float *sum = &r->sums[(m * 64 + row) * r->size.columns + col];
                    for (int32_t k = 0; k < 16; k++)
                        *sum += operand_at(r->memory, a, row, k) * operand_at(r->memory, b, col, k);
                }
        }
}

static void finish(rig *r, cu_place origin, int32_t column_tile) {
    int32_t wide = r->s->geglu ? r->size.columns / 2 : r->size.columns;
    for (int32_t row = 0; row < r->size.rows; row++) {
        int32_t pixel = cu_tile_pixel(&r->t, origin, row);
        for (int32_t col = 0; col < wide && pixel >= 0; col++) {
            int32_t c = column_tile * wide + col;
            if (c >= r->s->o) continue;
            const float *sums = r->sums + row * r->size.columns + col;
            int64_t at = (int64_t)pixel * r->s->o + c;
            r->out[at] = r->s->geglu ? sums[0] * 1000.0 + sums[wide] : sums[0];
            r->written[at]++;
        }
    }
}

static double plain(const rig *r, int64_t pixel, int32_t o) {
    const shape *s = r->s;
    int64_t n = pixel / (s->out_h * s->out_w), y = pixel / s->out_w % s->out_h, x = pixel % s->out_w;
    double sum = 0;
    for (int32_t ky = 0; ky < s->k; ky++)
        for (int32_t kx = 0; kx < s->k; kx++) {
            int64_t iy = y * s->stride - s->pad + ky, ix = x * s->stride - s->pad + kx;
            if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w) continue;
            for (int32_t c = 0; c < s->c; c++)
                sum += (double)r->in[((n * s->h + iy) * s->w + ix) * s->c + c] *
                       (double)r->weights[((int64_t)o * s->k * s->k + ky * s->k + kx) * s->c + c];
        }
    return sum;
}

static float *whole_numbers(int64_t n, uint32_t seed) {
    float *v = lw_alloc((size_t)n, sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        v[i] = (float)((int32_t)(seed >> 24) % 7 - 3);
    }
    return v;
}

static int n_patches; /* of all that was checked */

static void check(const shape *s, int32_t tile, int32_t splits_bits) {
    rig r = {.s = s, .size = cu_product_tiles[tile]};
    const int32_t rows = s->geglu ? 2 * s->o : s->o;
    const int64_t pixels = (int64_t)s->n * s->out_h * s->out_w, total = pixels * s->o;
    r.a = (cu_product_args){.in = {.half = 1,
                                   .g = 1,
                                   .n = s->n,
                                   .h = s->h,
                                   .w = s->w,
                                   .c = s->c,
                                   .sw = s->c,
                                   .sh = (int64_t)s->c * s->w,
                                   .sn = (int64_t)s->c * s->w * s->h},
                            .out = {.half = 1, .g = 1, .n = s->n, .h = s->out_h, .w = s->out_w, .c = s->o},
                            .n_rows = rows,
                            .kh = s->k,
                            .kw = s->k,
                            .stride = s->stride,
                            .pad_top = s->pad,
                            .pad_left = s->pad};
    r.flat = cu_wgmma_tiling(&r.t, &r.a, r.size.rows);
    assert_int_equal(r.flat, s->k == 1 && s->stride == 1);
    assert_in_range(r.t.bw * r.t.bh * r.t.bn, 1, r.size.rows);
    if (r.t.patch) n_patches++;
    r.ring = cu_ring_of(&r.t, r.size.rows, r.size.columns, r.size.blocks, 1 << splits_bits);
    /* rows of the tile that no pixel has reach beyond the box */
    const int64_t stage = r.ring.box_bytes / 2 + (int64_t)(r.size.rows * 2 + r.size.columns) * CU_CHUNK;
    r.in = whole_numbers((int64_t)s->n * s->h * s->w * s->c, 1);
    r.weights = whole_numbers((int64_t)rows * s->k * s->k * s->c, 2);
    r.memory = lw_alloc((size_t)stage, sizeof *r.memory);
    r.sums = lw_alloc((size_t)r.size.rows * (size_t)r.size.columns, sizeof *r.sums);
    r.out = lw_alloc((size_t)total, sizeof *r.out);
    r.written = lw_alloc((size_t)total, sizeof *r.written);
    const int32_t wide = s->geglu ? r.size.columns / 2 : r.size.columns;
    for (int32_t p = 0; p < r.t.tiles; p++)
        for (int32_t c = 0; c < cu_ceil_div(s->o, wide); c++) {
            cu_place origin = cu_tile_origin(&r.t, p);
            memset(r.sums, 0, (size_t)r.size.rows * (size_t)r.size.columns * sizeof *r.sums);
            for (int64_t i = 0; i < stage; i++) r.memory[i] = garbage; /* of rows that no pixel has */
            for (int32_t part = 0; part < 1 << splits_bits; part++)
                for (int32_t begin = cu_part_begin(r.t.steps, part, splits_bits),
                             end = cu_part_begin(r.t.steps, part + 1, splits_bits), i = begin;
                     i < end; i++)
                    multiply_step(&r, load_step(&r, origin, c, i, i == begin));
            finish(&r, origin, c);
        }
    for (int64_t i = 0; i < total; i++) {
        int32_t o = (int32_t)(i % s->o);
        double want = plain(&r, i / s->o, o);
        if (s->geglu) want = want * 1000 + plain(&r, i / s->o, o + s->o);
        if (r.written[i] != 1 || r.out[i] != want)
            fail_msg("%dx%dx%dx%d k%d s%d -> %d, tile %d: pixel %lld channel %d: %g, not %g, written %d times", s->n,
                     s->h, s->w, s->c, s->k, s->stride, s->o, tile, (long long)(i / s->o), o, r.out[i], want,
                     r.written[i]);
    }
    lw_free(r.in);
    lw_free(r.weights);
    lw_free(r.memory);
    lw_free(r.sums);
    lw_free(r.out);
    lw_free(r.written);
}

static void dividers_divide(void **state) {
    (void)state;
    for (int32_t by = 1; by < 3000; by++) {
        const cu_divider d = cu_divider_of(by);
        for (int32_t x = 0; x < 4000; x++) assert_int_equal(cu_divide(&d, x), x / by);
    }
    for (int32_t i = 0; i < 31; i++)
        for (int32_t more = -1; more < 2; more++) {
            const int64_t by = ((int64_t)1 << i) + more;
            if (by < 1 || by > INT32_MAX) continue;
            const cu_divider d = cu_divider_of((int32_t)by);
            for (int64_t k = 0; k <= INT32_MAX / by && k < 4000; k++)
                for (int64_t near = -1; near < 2; near++) {
                    const int64_t low = k * by + near, high = INT32_MAX / by * by - k * by + near;
                    if (low >= 0 && low <= INT32_MAX) assert_int_equal(cu_divide(&d, (int32_t)low), low / by);
                    if (high >= 0 && high <= INT32_MAX) assert_int_equal(cu_divide(&d, (int32_t)high), high / by);
                }
            int32_t x = INT32_MAX;
            assert_int_equal(cu_divide_rest(&d, &x), INT32_MAX / by);
            assert_int_equal(x, INT32_MAX % by);
        }
}

/* Shapes like the networks', small in what does not matter: odd pictures, cut tiles, channels that are no multiple of a
 * chunk, padding above alone, both strides, matrices, and two halves. */
static void every_tile_is_a_convolution(void **state) {
    (void)state;
    static const shape shapes[] = {
        {2, 6, 4, 72, 72, 3, 1, 1, 6, 4, false},   {2, 12, 8, 8, 40, 3, 1, 1, 12, 8, false},
        {1, 5, 33, 64, 8, 3, 1, 1, 5, 33, false},  {2, 8, 12, 16, 16, 3, 2, 1, 4, 6, false},
        {1, 9, 14, 24, 16, 3, 2, 0, 4, 7, false},  {1, 1, 150, 136, 72, 1, 1, 0, 1, 150, false},
        {2, 3, 7, 64, 24, 1, 1, 0, 3, 7, false},   {1, 1, 70, 40, 104, 1, 1, 0, 1, 70, true},
        {3, 4, 4, 16, 8, 1, 2, 0, 2, 2, false},    {3, 5, 16, 136, 8, 3, 1, 1, 5, 16, false},
        {1, 30, 8, 72, 72, 3, 1, 1, 30, 8, false},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int32_t tile = 0; tile < CU_N_WGMMA_TILES; tile++) check(&shapes[i], tile, i % 2 ? 0 : 1);
    assert_in_range(n_patches, 20, 3 * CU_N_WGMMA_TILES);
}

/* What turns.cu takes is rows times a matrix, and no more of an epilogue than a bias and a residual or GEGLU. */
static void blocks_that_stay_take_matrices(void **state) {
    (void)state;
    float value = 0;
    const cu_view flat = {
        .p = &value, .half = 1, .g = 2, .n = 1, .h = 4, .w = 6, .c = 64, .sw = 64, .sh = 384, .sg = 1536};
    const cu_product_args good = {.in = flat, .out = flat, .n_rows = 64, .kh = 1, .kw = 1, .stride = 1};
    cu_product_args a = good;
    assert_true(cu_turns_fit(&a));
    a.epi = (cu_epilogue){.bias = &value, .residual = flat};
    assert_true(cu_turns_fit(&a));
    a.epi.residual.sg = 0; /* the same for both passes */
    assert_false(cu_turns_fit(&a));
    a.epi = (cu_epilogue){.act = CU_ACT_GEGLU};
    assert_true(cu_turns_fit(&a));
    a.epi.residual = flat;
    assert_false(cu_turns_fit(&a));
    a.epi = (cu_epilogue){.act = CU_ACT_SILU};
    assert_false(cu_turns_fit(&a));
    a.epi = (cu_epilogue){.addend = flat};
    assert_false(cu_turns_fit(&a));
    a.epi = (cu_epilogue){.scale = &value};
    assert_false(cu_turns_fit(&a));
    a = good, a.kh = 3;
    assert_false(cu_turns_fit(&a));
    a = good, a.stride = 2;
    assert_false(cu_turns_fit(&a));
    a = good, a.out.sh = 448; /* rows with something between them */
    assert_false(cu_turns_fit(&a));
    a = good, a.in.sw = 128, a.in.sh = 768, a.in.sg = 3072; /* a slice of wider rows */
    assert_true(cu_turns_fit(&a));
    a = good, a.shortcut_weights = &value;
    assert_false(cu_turns_fit(&a));
    a = good, a.stats = &value;
    assert_true(cu_turns_fit(&a));
    a.epi.residual = flat;
    assert_false(cu_turns_fit(&a));
    a = good, a.row_stats = &value;
    assert_false(cu_turns_fit(&a));
}

/* The boxes that the networks' pictures get fill their tiles as well as their sizes allow; and where rows are a
 * multiple of 8 they are patches. */
static void boxes_fill_tiles(void **state) {
    (void)state;
    static const struct {
        int32_t w, h, n, bm, tiles;
    } cases[] = {{32, 48, 2, 128, 24}, {32, 48, 2, 192, 16}, {16, 24, 2, 128, 6},    {16, 24, 2, 192, 4},
                 {8, 12, 2, 192, 1},   {8, 12, 2, 64, 3},    {4, 6, 2, 64, 1},       {64, 64, 2, 128, 64},
                 {64, 64, 2, 256, 32}, {8, 8, 2, 128, 1},    {256, 384, 1, 128, 768}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const cu_product_args a = {
            .in = {.half = 1, .g = 1, .n = cases[i].n, .h = cases[i].h, .w = cases[i].w, .c = 64},
            .out = {.half = 1, .g = 1, .n = cases[i].n, .h = cases[i].h, .w = cases[i].w, .c = 64},
            .n_rows = 64,
            .kh = 3,
            .kw = 3,
            .stride = 1,
            .pad_top = 1,
            .pad_left = 1};
        cu_tiling t;
        cu_wgmma_tiling(&t, &a, cases[i].bm);
        if (t.patch != (t.w % 8 == 0))
            fail_msg("%dx%dx%d by %d: %s patch", t.w, t.h, t.n, cases[i].bm, t.patch ? "a" : "no");
        if (t.tiles != cases[i].tiles)
            fail_msg("%dx%dx%d by %d: %d tiles of %dx%dx%d, not %d", t.w, t.h, t.n, cases[i].bm, t.tiles, t.bw, t.bh,
                     t.bn, cases[i].tiles);
    }
}

/* Each tile has rings of three boxes of weights or more, in what a multiprocessor has. */
static void rings_fit(void **state) {
    (void)state;
    for (int32_t tile = 0; tile < CU_N_WGMMA_TILES; tile++)
        for (int32_t n = 1; n <= 16; n++)
            for (int32_t w = 4; w <= 256; w *= 2)
                for (int32_t splits = 1; splits <= CU_WGMMA_MAX_SPLITS; splits *= 2) {
                    const cu_view v = {.half = 1, .g = 1, .n = n, .h = w * 3 / 2, .w = w, .c = 640};
                    const cu_product_args a = {
                        .in = v, .out = v, .n_rows = 640, .kh = 3, .kw = 3, .stride = 1, .pad_top = 1, .pad_left = 1};
                    const cu_tile_size *s = &cu_product_tiles[tile];
                    cu_tiling t;
                    cu_wgmma_tiling(&t, &a, s->rows);
                    const cu_ring r = cu_ring_of(&t, s->rows, s->columns, s->blocks, splits);
                    assert_in_range(t.box_rows * CU_CHUNK_BYTES, 1, r.box_bytes);
                    assert_int_equal(r.box_bytes % 1024, 0);
                    assert_in_range(r.boxes, 2, CU_RING_LIMIT);
                    assert_in_range(r.weights, 3, CU_RING_LIMIT);
                    assert_in_range((r.bytes + 1024) * s->blocks, 1, 228 * 1024);
                    /* where the last group's last row of the last tap would be */
                    const int32_t last = (s->rows / 8 - 1) * t.group_rows + 8 + 2 * t.tap_rows + 2;
                    if (t.patch)
                        assert_in_range(last * CU_CHUNK_BYTES, 1,
                                        r.box_bytes + r.weights * s->columns * CU_CHUNK_BYTES);
                }
}

/* A warp group's threads hold each of its sums once. */
static void sums_are_a_bijection(void **state) {
    (void)state;
    for (int32_t columns = 64; columns <= 256; columns += 32) {
        unsigned char seen[64 * 256] = {0};
        for (int32_t thread = 0; thread < 128; thread++)
            for (int32_t v = 0; v < columns / 2; v++) {
                int32_t row = cu_sum_row(thread, v), col = cu_sum_column(thread, v);
                assert_in_range(row, 0, 63);
                assert_in_range(col, 0, columns - 1);
                assert_int_equal(seen[row * 256 + col]++, 0);
            }
    }
}

/* ---- attention: out = (q k^T) v for a head, which is all of it that has indices */

typedef struct heads_case {
    int32_t g, n, queries, keys, heads, d;
    bool q_same_g, q_same_n, kv_same_g, kv_same_n, slices; /* slices: of rows three times as wide */
} heads_case;

static cu_view heads_view(const heads_case *s, int32_t w, bool same_g, bool same_n) {
    const int32_t c = s->heads * s->d;
    cu_view v = {.half = 1, .g = s->g, .n = s->n, .h = 1, .w = w, .c = c, .sw = s->slices ? 3 * c : c};
    v.sn = s->n == 1 || same_n ? 0 : v.sw * w;
    v.sg = s->g == 1 || same_g ? 0 : v.sn ? v.sn * s->n : v.sw * w;
    return v;
}

static void copy_head(float *memory, uint32_t to, const float *from, const cu_heads *h, cu_heads_place p,
                      int32_t rows) {
    for (int32_t row = 0; row < rows; row++)
        for (int32_t c = 0; c < CU_CHUNK; c++) {
            const int64_t at[5] = {p.at[0] + c, p.at[1], p.at[2] + row, p.at[3], p.at[4]};
            int64_t index = 0;
            bool inside = true;
            for (int i = 0; i < 5; i++) {
                inside = inside && at[i] >= 0 && at[i] < h->dims[i];
                index += at[i] * h->strides[i];
            }
            memory[(cu_swizzle(to + (uint32_t)row * 128 + (uint32_t)c * 2) - ADDRESS) / 2] = inside ? from[index] : 0;
        }
}

/* Row k (0..15) of a column of an operand that lies the other way. */
static float value_at(const float *memory, uint64_t descriptor, int32_t k, int32_t column) {
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, chunk = (uint32_t)(descriptor >> 16 & 0x3fff) << 4,
             group = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    uint32_t linear = start + (uint32_t)(column / CU_CHUNK) * chunk + (uint32_t)(k / 8) * group +
                      (uint32_t)(k % 8) * 128 + (uint32_t)(column % CU_CHUNK) * 2;
    return memory[(cu_swizzle(linear) - ADDRESS) / 2];
}

static double head_value(const float *from, const cu_view *v, const heads_case *s, int32_t g, int32_t n, int32_t row,
                         int32_t head, int32_t c) {
    return (double)from[g * v->sg + n * v->sn + row * v->sw + head * s->d + c];
}

static void check_heads(const heads_case *s) {
    enum { QUERIES = 64, KEYS = CU_ATTENTION_KEYS };
    const int32_t chunks = cu_ceil_div(s->d, CU_CHUNK);
    const uint32_t q_chunk = QUERIES * CU_CHUNK_BYTES, chunk = KEYS * CU_CHUNK_BYTES, q = ADDRESS,
                   k = q + (uint32_t)chunks * q_chunk, v = k + (uint32_t)chunks * chunk;
    const cu_view views[3] = {heads_view(s, s->queries, s->q_same_g, s->q_same_n),
                              heads_view(s, s->keys, s->kv_same_g, s->kv_same_n),
                              heads_view(s, s->keys, s->kv_same_g, s->kv_same_n)};
    cu_heads h[3];
    float *from[3], *memory = lw_alloc((v + (uint32_t)chunks * chunk - ADDRESS) / 2, sizeof *memory);
    assert_non_null(memory);
    for (int i = 0; i < 3; i++) {
        from[i] = whole_numbers(views[i].sw * views[i].w * s->g * s->n, (uint32_t)i + 1);
        h[i] = cu_heads_of(&views[i], s->heads);
    }
    for (int32_t all = 0; all < s->g * s->n * s->heads * cu_ceil_div(s->queries, QUERIES); all++) {
        const int32_t head = all % s->heads, n = all / s->heads % s->n, g = all / s->heads / s->n % s->g,
                      first = all / s->heads / s->n / s->g * QUERIES;
        double out[QUERIES][160] = {{0}};
        for (int32_t key = 0; key < s->keys; key += KEYS) {
            for (int32_t c = 0; c < chunks; c++) {
                copy_head(memory, q + (uint32_t)c * q_chunk, from[0], &h[0],
                          cu_heads_at(h[0].n_step, h[0].g_step, c * CU_CHUNK, head, first, n, g), QUERIES);
                for (int i = 1; i < 3; i++)
                    copy_head(memory, (i == 1 ? k : v) + (uint32_t)c * chunk, from[i], &h[i],
                              cu_heads_at(h[i].n_step, h[i].g_step, c * CU_CHUNK, head, key, n, g), KEYS);
            }
            for (int32_t row = 0; row < QUERIES; row++)
                for (int32_t j = 0; j < KEYS && key + j < s->keys; j++) {
                    float score = 0;
                    for (int32_t c = 0; c < cu_ceil_div(s->d, 16) * 16; c++) {
                        const uint32_t step = (uint32_t)c / 16;
                        score += operand_at(memory, cu_operand(q + step / 4 * q_chunk) + 2 * (step % 4), row, c % 16) *
                                 operand_at(memory, cu_operand(k + step / 4 * chunk) + 2 * (step % 4), j, c % 16);
                    }
                    for (int32_t c = 0; c < s->d; c++)
                        out[row][c] += (double)score *
                                       (double)value_at(
                                           memory, cu_values_operand(v + (uint32_t)j / 16 * 16 * CU_CHUNK_BYTES, chunk),
                                           j % 16, c);
                }
        }
        for (int32_t row = 0; row < QUERIES && first + row < s->queries; row++) {
            double want[160] = {0};
            for (int32_t j = 0; j < s->keys; j++) {
                double score = 0;
                for (int32_t c = 0; c < s->d; c++)
                    score += head_value(from[0], &views[0], s, g, n, first + row, head, c) *
                             head_value(from[1], &views[1], s, g, n, j, head, c);
                for (int32_t c = 0; c < s->d; c++)
                    want[c] += score * head_value(from[2], &views[2], s, g, n, j, head, c);
            }
            for (int32_t c = 0; c < s->d; c++)
                if (out[row][c] != want[c])
                    fail_msg("d%d, guidance %d, sample %d, head %d, query %d, channel %d: %g, not %g", s->d, g, n, head,
                             first + row, c, out[row][c], want[c]);
        }
    }
    for (int i = 0; i < 3; i++) lw_free(from[i]);
    lw_free(memory);
}

/* Each head width; more than a tile of keys and of queries; all that may be shared, and slices of wider rows. */
static void every_head_is_attention(void **state) {
    (void)state;
    static const heads_case cases[] = {
        {.g = 2, .n = 1, .queries = 64, .keys = 77, .heads = 2, .d = 40, .q_same_g = true, .slices = true},
        {.g = 2, .n = 2, .queries = 70, .keys = 101, .heads = 1, .d = 80, .kv_same_n = true},
        {.g = 2, .n = 2, .queries = 3, .keys = 9, .heads = 3, .d = 40, .q_same_n = true, .kv_same_g = true},
        {.g = 1, .n = 2, .queries = 5, .keys = 40, .heads = 2, .d = 160, .slices = true},
        {.g = 2,
         .n = 3,
         .queries = 2,
         .keys = 2,
         .heads = 1,
         .d = 160,
         .q_same_g = true,
         .q_same_n = true,
         .kv_same_g = true,
         .kv_same_n = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_heads(&cases[i]);
}

/* Of SD1.5 at 256x384 and 512x512 pixels, with and without guidance, on 132 multiprocessors. */
static void blocks_fill_multiprocessors(void **state) {
    (void)state;
    static const struct {
        int32_t queries, all, d, groups;
    } cases[] = {{1536, 16, 40, 3}, {1536, 8, 40, 2},  {384, 16, 80, 1},  {96, 16, 160, 1}, {24, 16, 160, 1},
                 {4096, 16, 40, 3}, {1024, 16, 80, 2}, {256, 16, 160, 1}, {1024, 8, 80, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(cu_attention_groups(cases[i].queries, cases[i].all, cases[i].d, 132), cases[i].groups);
}

/* The formula's 1.5e-7 of erf: within half a unit of fp16's last place where that is not denormal. */
static void gelu_is_exact_for_half(void **state) {
    (void)state;
    for (int i = -12000; i <= 12000; i++) {
        double x = i / 1000.0, want = 0.5 * x * erfc(-x / sqrt(2)), got = (double)cu_gelu((float)x);
        if (fabs(got - want) > 1e-7 * (1 + fabs(x)) + 1e-6 * fabs(want))
            fail_msg("gelu(%g) is %g, not %g", x, got, want);
    }
    assert_true(isnan(cu_gelu(NAN)));
    assert_true(cu_gelu(0) == 0 && cu_gelu(60000) == 60000 && fabsf(cu_gelu(-60000)) == 0);
}
#endif

int main(void) {
#ifdef LW_HAVE_CUDA
    const struct CMUnitTest tests[] = {cmocka_unit_test(dividers_divide),
                                       cmocka_unit_test(every_tile_is_a_convolution),
                                       cmocka_unit_test(blocks_that_stay_take_matrices),
                                       cmocka_unit_test(boxes_fill_tiles),
                                       cmocka_unit_test(rings_fit),
                                       cmocka_unit_test(sums_are_a_bijection),
                                       cmocka_unit_test(every_head_is_attention),
                                       cmocka_unit_test(blocks_fill_multiprocessors),
                                       cmocka_unit_test(gelu_is_exact_for_half)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    puts("this build has no CUDA");
    return 0;
#endif
}
