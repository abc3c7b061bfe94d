/* SPDX-License-Identifier: MIT
 * The loops of every instruction set that this CPU has, each against the formulas in double: lw_check sees only
 * the widest. Lengths run over every vector tail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cpu/kernels.h"
#include "cpu/ref/ref.h"

enum { MAX = 600 };

static const lw_kernels *table(int i) {
    if (i == 0) return &lw_kernels_baseline;
#if defined(__x86_64__)
    if (i == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &lw_kernels_avx2;
    if (i == 2 && lw_cpu_kernels() == &lw_kernels_avx512) return &lw_kernels_avx512;
    if (i == 3) return lw_cpu_kernels_bf16();
#endif
    return NULL;
}

static uint32_t state32 = 1;
static float draw(void) {
    state32 = state32 * 1664525u + 1013904223u;
    return (float)(state32 >> 8) / (float)(1 << 22) - 2;
}
static void draw_all(float *v, int n) {
    for (int i = 0; i < n; i++) v[i] = draw();
}

static void expect_within(double nmse, const lw_kernels *k, const char *what, int32_t c, const float *got,
                          const double *want, int n) {
    double diff = 0, sum = 1e-30;
    for (int i = 0; i < n; i++) {
        diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        sum += want[i] * want[i];
    }
    if (!(diff <= nmse * sum)) fail_msg("%s: %s of %d: NMSE %g", k->name, what, c, diff / sum);
    assert_true(isnan(got[n])); /* nothing is written behind the last */
}

static void expect_near(const lw_kernels *k, const char *what, int32_t c, const float *got, const double *want, int n) {
    expect_within(1e-10, k, what, c, got, want, n);
}

/* What an operand keeps of a value. */
static double operand(const lw_kernels *k, float x) {
    return (double)(k->pair > 1 ? lw_bf16_to_f32(lw_f32_to_bf16(x)) : x);
}

/* round_words keeps every value's nearest, and writes no more than its words. */
static void check_words(const lw_kernels *k, int32_t n) {
    static float x[MAX], y[MAX + 1];
    uint16_t half[2];
    draw_all(x, n);
    y[n / k->pair] = NAN;
    k->round_words(x, n, y);
    assert_true(isnan(y[n / k->pair]));
    for (int i = 0; i < n; i++) {
        memcpy(half, &y[i / k->pair], sizeof half);
        double got = (double)(k->pair > 1 ? lw_bf16_to_f32(half[i % 2]) : y[i]);
        assert_true(got == operand(k, x[i]));
    }
}

static const lw_act acts[] = {LW_ACT_NONE, LW_ACT_SILU, LW_ACT_GELU, LW_ACT_QUICK_GELU};

static void check_rows(const lw_kernels *k, int32_t c) {
    static float x[2 * MAX], a[2 * MAX], b[2 * MAX], got[2 * MAX + 1];
    static double want[2 * MAX];
    draw_all(x, 2 * c);
    draw_all(a, 2 * c);
    draw_all(b, 2 * c);
    for (int t = 0; t < 4; t++)
        for (int affine = 0; affine < 2; affine++) {
            got[c] = NAN;
            k->affine_act(x, affine ? a : NULL, affine ? b : NULL, acts[t], c, got);
            for (int i = 0; i < c; i++)
                want[i] = ref_act(acts[t], affine ? (double)x[i] * (double)a[i] + (double)b[i] : (double)x[i]);
            expect_near(k, "affine_act", c, got, want, c);
        }
    double mean = 0, squares = 0;
    for (int i = 0; i < c; i++) mean += (double)x[i] / c;
    for (int i = 0; i < c; i++) squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    for (int i = 0; i < c; i++)
        want[i] = ref_act(LW_ACT_SILU, ((double)x[i] - mean) / sqrt(squares / c + 1e-5) * (double)a[i] + (double)b[i]);
    got[c] = NAN;
    k->layer_norm(x, a, b, 1e-5f, LW_ACT_SILU, c, got);
    expect_near(k, "layer_norm", c, got, want, c);
    for (int t = 0; t < 5; t++)
        for (int fields = 0; fields < 4; fields++) {
            lw_act act = t < 4 ? acts[t] : LW_ACT_GEGLU;
            const float *addend = fields & 1 ? a : NULL, *residual = fields & 2 ? b : NULL;
            got[c] = NAN;
            k->combine(x, addend, act, 0.75f, residual, c, got);
            for (int i = 0; i < c; i++) {
                double v = (double)x[i] + (addend ? (double)a[i] : 0),
                       gate = (double)x[c + i] + (addend ? (double)a[c + i] : 0);
                v = act == LW_ACT_GEGLU ? v * ref_act(LW_ACT_GELU, gate) : ref_act(act, v);
                want[i] = 0.75 * v + (residual ? (double)b[i] : 0);
            }
            expect_near(k, "combine", c, got, want, c);
        }
}

static void check_stats(const lw_kernels *k, int32_t rows, int32_t c) {
    static float x[64 * 40], mean[41], squares[41];
    double want_mean[40], want_squares[40];
    int64_t stride = c + 3;
    draw_all(x, (int)(rows * stride));
    mean[c] = squares[c] = NAN;
    k->stats(x, stride, rows, c, mean, squares);
    for (int i = 0; i < c; i++) {
        want_mean[i] = want_squares[i] = 0;
        for (int r = 0; r < rows; r++) want_mean[i] += (double)x[r * stride + i] / rows;
        for (int r = 0; r < rows; r++) want_squares[i] += pow((double)x[r * stride + i] - want_mean[i], 2);
    }
    expect_near(k, "mean", c, mean, want_mean, c);
    expect_near(k, "squares", c, squares, want_squares, c);
}

static void check_attention(const lw_kernels *k, int32_t len, int32_t d, int32_t rows, int32_t first_row) {
    d = (d + k->pair - 1) / k->pair * k->pair;
    int32_t lp = (len + 2 * k->width - 1) / (2 * k->width) * (2 * k->width),
            dp = (d + k->width - 1) / k->width * k->width;
    float *q = lw_alloc((size_t)(rows * d), 4), *key = lw_alloc((size_t)(len * d), 4),
          *v = lw_alloc((size_t)(len * d), 4);
    float *kt = lw_alloc_aligned((size_t)(d * lp) * 4), *vp = lw_alloc_aligned((size_t)((len + 1) * dp) * 4);
    float *got = lw_alloc((size_t)(rows * d + 1), 4);
    double *want = lw_alloc((size_t)(rows * d), 8), scale = 1 / sqrt((double)d);
    draw_all(q, rows * d);
    draw_all(key, len * d);
    draw_all(v, len * d);
    got[rows * d] = NAN;
    k->pack_kv(key, d, v, d, len, d, kt, vp);
    k->attention_block(q, d, rows, kt, vp, len, d, (float)scale, first_row, got, d);
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int t = 0; t < len && (first_row < 0 || t <= first_row + r); t++) {
            double logit = 0;
            for (int i = 0; i < d; i++) logit += (double)q[r * d + i] * operand(k, key[t * d + i]);
            double e = exp(logit * scale);
            sum += e;
            for (int i = 0; i < d; i++) want[r * d + i] += e * operand(k, v[t * d + i]);
        }
        for (int i = 0; i < d; i++) want[r * d + i] /= sum;
    }
    /* Scaled queries and weights are rounded too: a query's rounding is one of its logits', of some units here. */
    expect_within(k->pair > 1 ? 2e-5 : 1e-10, k, "attention_block", d, got, want, rows * d);
    lw_free(q), lw_free(key), lw_free(v), lw_free(kt), lw_free(vp), lw_free(got), lw_free(want);
}

static void check_multiply(const lw_kernels *k, int32_t rows, int32_t n, bool add) {
    int32_t wide = 2 * k->width, stride = n + 3, c_stride = wide + 5, pair = k->pair;
    float *a = lw_alloc((size_t)(rows * stride), 4), *b = lw_alloc_aligned((size_t)(n * wide) * 4),
          *av = lw_alloc((size_t)(rows * stride * pair), 4), *bv = lw_alloc((size_t)(n * wide * pair), 4),
          *c = lw_alloc((size_t)(rows * c_stride + 1), 4), *last = lw_alloc((size_t)wide, 4);
    double *want = lw_alloc((size_t)(rows * c_stride), 8);
    draw_all(av, rows * stride * pair);
    draw_all(bv, n * wide * pair); /* the values of a word follow each other */
    draw_all(c, rows * c_stride);
    k->round_words(av, rows * stride * pair, a);
    k->round_words(bv, n * wide * pair, b);
    memcpy(last, c + (rows - 1) * c_stride, (size_t)wide * 4);
    for (int i = 0; i < rows * c_stride; i++) {
        want[i] = add || i % c_stride >= wide ? (double)c[i] : 0;
        for (int t = 0; t < n * pair && i % c_stride < wide; t++)
            want[i] += operand(k, av[i / c_stride * stride * pair + t]) *
                       operand(k, bv[(t / pair * wide + i % c_stride) * pair + t % pair]);
    }
    c[rows * c_stride] = NAN;
    k->multiply(a, stride, rows, b, n, add, c, c_stride, b);
    expect_near(k, "multiply", rows, c, want, rows * c_stride);
    k->multiply(a + (rows - 1) * stride, stride, 1, b, n, add, last, wide,
                b); /* alone or beside others: the same bits */
    assert_memory_equal(last, c + (rows - 1) * c_stride, (size_t)wide * 4);
    lw_free(a), lw_free(b), lw_free(av), lw_free(bv), lw_free(c), lw_free(last), lw_free(want);
}

static void check_finish(const lw_kernels *k, lw_act act, int32_t c, bool residual) {
    enum { H = 2, W = 3, MOST = 32 };
    static float x[H * W * MOST], addend[MOST], res[H * W * (MOST + 1)], got[H * W * (MOST + 1) + 1];
    double want[H * W * (MOST + 1)];
    int32_t wide = 2 * k->width, n = H * W * (c + 1);
    draw_all(x, H * W * wide);
    draw_all(addend, wide);
    draw_all(res, n);
    for (int i = 0; i < n; i++) got[i] = (float)(want[i] = 7);
    got[n] = NAN;
    for (int i = 0; i < H * W; i++)
        for (int l = 0; l < c; l++) {
            const float *from = x + i * wide;
            double v = (double)from[l] + (double)addend[l];
            if (act == LW_ACT_GEGLU)
                v *= ref_act(LW_ACT_GELU, (double)from[k->width + l] + (double)addend[k->width + l]);
            else v = ref_act(act, v);
            want[i * (c + 1) + l] = 0.5 * v + (residual ? (double)res[i * (c + 1) + l] : 0);
        }
    const lw_finish f = {.addend = addend,
                         .act = act,
                         .scale = 0.5f,
                         .c = c,
                         .residual = residual ? res : NULL,
                         .residual_sh = W * (c + 1),
                         .residual_sw = c + 1,
                         .out = got,
                         .sh = W * (c + 1),
                         .sw = c + 1};
    k->finish(x, W * wide, H, W, &f);
    expect_near(k, "finish", c, got, want, n);
}

/* One tile by Winograd against the sum it stands for. */
static void check_winograd(const lw_kernels *k) {
    enum { MOST = 32, C = 2 * MOST, STRIDE = C * MOST };
    static float in[36 * C], g[C * 9 * MOST], v[36 * STRIDE], u[36 * STRIDE], m[36 * STRIDE], got[16 * MOST + 1],
        rounded[C * 9 * MOST];
    static uint16_t half[C * 9 * MOST];
    double want[16 * MOST] = {0};
    const float *d[36];
    int32_t wide = 2 * k->width;
    draw_all(in, 36 * C);
    draw_all(g, C * 9 * wide);
    for (int i = 0; i < 36; i++) d[i] = in + i * C;
    for (int i = 0; i < 16 * wide; i++)
        for (int t = 0; t < 9 * C; t++)
            want[i] += (double)in[((i / wide / 4 + t % 9 / 3) * 6 + i / wide % 4 + t % 3) * C + t / 9] *
                       (double)g[t * wide + i % wide];
    k->wino_input(d, C, v, STRIDE);
    for (int i = 0; i < C * 9 * wide; i++) {
        half[i] = lw_f32_to_bf16(g[i]);
        rounded[i] = lw_bf16_to_f32(half[i]);
    }
    k->wino_weights(half, true, C, u, STRIDE);
    k->wino_weights(rounded, false, C, m, STRIDE);
    for (int i = 0; i < 36; i++) assert_memory_equal(u + i * STRIDE, m + i * STRIDE, (size_t)(C * wide) * 4);
    if (k->pair > 1) return; /* its products are not of what the transforms give */
    k->wino_weights(g, false, C, u, STRIDE);
    for (int i = 0; i < 36; i++) k->multiply(v + i * STRIDE, C, 1, u + i * STRIDE, C, false, m + i * STRIDE, wide, u);
    got[16 * wide] = NAN;
    k->wino_output(m, STRIDE, got);
    expect_near(k, "winograd", C, got, want, 16 * wide);
}

static void check_products(const lw_kernels *k) {
    for (int32_t rows = 1; rows <= 2 * k->rows + 1; rows++) check_multiply(k, rows, 1 + rows * 7 % 40, rows % 2);
    check_multiply(k, 3 * k->rows, 130, true);
    for (int t = 0; t < 5; t++)
        for (int32_t c = 1; c <= (t < 4 ? 2 : 1) * k->width; c++)
            check_finish(k, t < 4 ? acts[t] : LW_ACT_GEGLU, c, c % 2);
    check_winograd(k);
}

static void test_every_table(void **state) {
    int checked = 0;
    (void)state;
    for (int i = 0; i < 4; i++) {
        const lw_kernels *k = table(i);
        if (!k) continue;
        checked++;
        for (int32_t c = 1; c <= 70; c++) check_rows(k, c);
        for (int32_t n = k->pair; n <= 70; n += k->pair) check_words(k, n);
        check_rows(k, 320);
        check_rows(k, MAX);
        for (int32_t c = 1; c < 37; c++) check_stats(k, 1 + c % 64, c);
        check_stats(k, 64, 32);
        check_products(k);
        for (int32_t rows = 1; rows <= k->attention_rows; rows++) check_attention(k, 77, 40, rows, -1);
        for (int32_t len = 1; len < 40; len++) check_attention(k, len, 1 + len % 21, 1 + len % k->attention_rows, -1);
        for (int32_t len = 510; len < 516; len++) check_attention(k, len, 8, k->attention_rows, -1);
        for (int32_t first = 0; first < 77; first += k->attention_rows)
            check_attention(k, 77, 24, 77 - first < k->attention_rows ? 77 - first : k->attention_rows, first);
        check_attention(k, 1100, 12, k->attention_rows, 511);
        check_attention(k, 33, LW_ATTENTION_MAX_D, 2, -1);
    }
    print_message("%d instruction sets, the widest is %s; %s\n", checked, lw_cpu_kernels()->name,
                  lw_cpu_kernels_bf16() ? "products of bf16 too" : "none has products of bf16: they are not tested");
    assert_true(checked > 0);
}

/* Where exp overflows or is lost, and where NaN goes in. */
static void test_extremes(void **state) {
    (void)state;
    static const float x[] = {-1000, -100, -88, -30, -1e-30f, 0, 1e-30f, 30, 88, 100, 1000, 1e30f, -1e30f};
    enum { N = sizeof x / sizeof *x };
    for (int i = 0; i < 4; i++) {
        const lw_kernels *k = table(i);
        if (!k) continue;
        for (int t = 1; t < 4; t++) {
            float got[N], nan[3] = {1, NAN, 2}, out[3];
            k->affine_act(x, NULL, NULL, acts[t], N, got);
            for (int n = 0; n < N; n++) {
                double want = ref_act(acts[t], (double)x[n]);
                if (!(fabs((double)got[n] - want) <= 1e-5 * fabs(want) + 1e-4))
                    fail_msg("%s: act %d of %g is %g, expected %g", k->name, acts[t], (double)x[n], (double)got[n],
                             want);
            }
            k->affine_act(nan, NULL, NULL, acts[t], 3, out);
            assert_true(isfinite(out[0]) && isnan(out[1]) && isfinite(out[2]));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_table), cmocka_unit_test(test_extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
