/* SPDX-License-Identifier: MIT
 * base: half floats on every bit pattern, element types, arena, checked sums, nearest names, faults, parallel_for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/base.h"

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* ---- half floats */

/* The value of a binary16 by its definition. */
static double f16_value(uint16_t h) {
    int exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -v : v;
}

static void test_f16_values(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = lw_f16_to_f32((uint16_t)h);
        bool nan = (h & 0x7c00) == 0x7c00 && h & 0x3ff;
        if (nan) {
            assert_true(isnan(f));
            assert_true(isnan(lw_f16_to_f32(lw_f32_to_f16(f))));
            continue;
        }
        if ((h & 0x7c00) == 0x7c00) assert_true(isinf(f) && !signbit(f) == !(h >> 15));
        else assert_true((double)f == f16_value((uint16_t)h) && !signbit(f) == !(h >> 15));
        assert_int_equal(lw_f32_to_f16(f), h);
    }
}

/* The loop over many, which is vectorised, gives what one by one does. */
static void test_f16_arrays(void **state) {
    (void)state;
    enum { N = 1 << 16 };
    static float from[N];
    static uint16_t got[N];
    for (uint32_t high = 0; high < 256; high++) { /* every 257th float, from every alignment */
        size_t offset = high % 8, n = 0;
        for (uint32_t i = 0; i < N; i++) from[i] = float_of((high << 24) + i * 256 + (i & 255));
        lw_to_f16(from + offset, got, N - offset);
        while (n < N - offset && got[n] == lw_f32_to_f16(from[n + offset])) n++;
        assert_int_equal(n, N - offset);
    }
}

/* Between each two neighbours: the middle goes to the even one, the floats beside it to the nearer one. */
static void test_f16_rounding(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = f16_value((uint16_t)h), high = h + 1 < 0x7c00 ? f16_value((uint16_t)(h + 1)) : 65536;
        float middle = (float)((low + high) / 2); /* exact: one more bit */
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        assert_int_equal(lw_f32_to_f16(middle), even);
        assert_int_equal(lw_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(lw_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(lw_f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(lw_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(lw_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(lw_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(lw_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(lw_f32_to_f16(float_of(1)), 0);
    assert_true(
        isnan(lw_f16_to_f32(lw_f32_to_f16(float_of(0x7f800001))))); /* NaN whose high bits are those of infinity */
}

static void test_bf16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = lw_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits_of(f), h << 16);
        if (isnan(f)) {
            assert_true(isnan(lw_bf16_to_f32(lw_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(lw_f32_to_bf16(f), h);
        if ((h & 0x7f80) == 0x7f80) continue;
        assert_int_equal(lw_f32_to_bf16(float_of(h << 16 | 0x7fff)), h);
        assert_int_equal(lw_f32_to_bf16(float_of(h << 16 | 0x8000)), h & 1 ? h + 1 : h); /* the middle goes to even */
        assert_int_equal(lw_f32_to_bf16(float_of(h << 16 | 0x8001)), h + 1);
    }
    assert_true(isnan(lw_bf16_to_f32(lw_f32_to_bf16(float_of(0x7f800001)))));
}

/* ---- element types */

#define EXPECT_CONVERTED(type, dtype, ...)                                                                             \
    do {                                                                                                               \
        const type in[] = {__VA_ARGS__};                                                                               \
        enum { N = sizeof in / sizeof *in };                                                                           \
        char odd[sizeof in + 1]; /* any alignment */                                                                   \
        float out[N + 1];                                                                                              \
        memcpy(odd + 1, in, sizeof in);                                                                                \
        out[N] = 42;                                                                                                   \
        lw_to_f32(dtype, odd + 1, out, N);                                                                             \
        for (int i = 0; i < N; i++) assert_true(out[i] == (float)in[i]);                                               \
        assert_true(out[N] == 42.0f);                                                                                  \
        assert_int_equal(lw_dtype_bytes(dtype), sizeof(type));                                                         \
    } while (0)

static void test_dtypes(void **state) {
    (void)state;
    EXPECT_CONVERTED(float, LW_F32, 1.5f, -0.0f, 3e38f);
    EXPECT_CONVERTED(double, LW_F64, 0.1, -1e300, 1e-300);
    EXPECT_CONVERTED(uint8_t, LW_U8, 0, 1, 255);
    EXPECT_CONVERTED(uint8_t, LW_BOOL, 0, 1);
    EXPECT_CONVERTED(int8_t, LW_I8, -128, 127);
    EXPECT_CONVERTED(int16_t, LW_I16, -32768, 32767);
    EXPECT_CONVERTED(int32_t, LW_I32, INT32_MIN, 16777217, -1);
    EXPECT_CONVERTED(int64_t, LW_I64, INT64_MIN, INT64_MAX, 7);
    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001};
    float out[3];
    lw_to_f32(LW_F16, halves, out, 3);
    assert_true(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0x1p-24f);
    lw_to_f32(LW_BF16, halves, out, 3);
    assert_int_equal(bits_of(out[0]), 0x3c000000);
    static const char *const names[] = {"F32", "F16", "BF16", "F64", "U8", "I8", "I16", "I32", "I64", "BOOL"};
    for (int i = 0; i < LW_N_DTYPES; i++) assert_string_equal(lw_dtype_name((lw_dtype)i), names[i]);
}

/* ---- errors, names, arithmetic */

static void test_fail(void **state) {
    (void)state;
    lw_error err;
    assert_int_equal(lw_fail(NULL, LW_EMODEL, "%d", 1), LW_EMODEL);
    assert_int_equal(lw_fail(&err, LW_EINPUT, "%s: line\nbreak\t%d", "x", 7), LW_EINPUT);
    assert_int_equal(err.code, LW_EINPUT);
    assert_string_equal(err.message, "x: line break 7");
    char text[3000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 0;
    lw_fail(&err, LW_EINPUT, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
}

static void test_nearest(void **state) {
    (void)state;
    static const char *const names[] = {"--steps", "--seed", "--strength", "--size"};
    assert_string_equal(lw_nearest("--step", names, 4), "--steps");
    assert_string_equal(lw_nearest("--sede", names, 4), "--seed");
    assert_string_equal(lw_nearest("--sise", names, 4), "--size");
    assert_string_equal(lw_nearest("--seed", names, 4), "--seed");
    assert_null(lw_nearest("xyz", names, 4));
    assert_null(lw_nearest("", names, 4));
    assert_null(lw_nearest("--seed", names, 0));
    char longer[200];
    memset(longer, 's', sizeof longer);
    longer[sizeof longer - 1] = 0;
    assert_true(!lw_nearest(longer, names, 4) || strlen(lw_nearest(longer, names, 4)) > 0);
}

static void test_arithmetic(void **state) {
    (void)state;
    size_t v;
    assert_true(lw_mul_size(3, 5, &v) && v == 15);
    assert_true(lw_mul_size(SIZE_MAX, 1, &v) && v == SIZE_MAX);
    assert_false(lw_mul_size(SIZE_MAX / 2 + 1, 2, &v));
    assert_true(lw_add_size(SIZE_MAX - 1, 1, &v) && v == SIZE_MAX);
    assert_false(lw_add_size(SIZE_MAX, 1, &v));
    assert_int_equal(lw_round_up(0, 16), 0);
    assert_int_equal(lw_round_up(1, 16), 16);
    assert_int_equal(lw_round_up(16, 16), 16);
    assert_int_equal(lw_round_up(17, 16), 32);
}

/* ---- memory */

static void test_alloc(void **state) {
    (void)state;
    assert_null(lw_alloc(SIZE_MAX / 2, 4));
    assert_null(lw_realloc(NULL, SIZE_MAX / 2, 4));
    assert_null(lw_alloc_aligned(SIZE_MAX - 8));
    unsigned char *p = lw_alloc(10, 10);
    for (int i = 0; i < 100; i++) assert_int_equal(p[i], 0);
    memset(p, 7, 100);
    p = lw_realloc(p, 1000, 1);
    for (int i = 0; i < 100; i++) assert_int_equal(p[i], 7);
    lw_free(p);
    for (size_t n = 0; n < 200; n += 7) {
        p = lw_alloc_aligned(n);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(p, 1, n);
        lw_free(p);
    }
    p = lw_alloc(0, 0);
    assert_non_null(p);
    lw_free(p);
    char *text = lw_strndup("prompt", 3);
    assert_string_equal(text, "pro");
    lw_free(text);
    text = lw_format("%s-%04d", "x", 42);
    assert_string_equal(text, "x-0042");
    lw_free(text);
    lw_free(NULL);
}

static void test_faults(void **state) {
    (void)state;
    lw_fault_arm(2, false);
    void *a = lw_alloc(1, 1), *b = lw_alloc(1, 1), *c = lw_alloc(1, 1);
    assert_true(a && !b && c);
    assert_int_equal(lw_fault_count(), 3);
    lw_free(a);
    lw_free(c);
    lw_fault_arm(2, true);
    a = lw_strdup("x");
    assert_non_null(a);
    assert_null(lw_alloc_aligned(8));
    assert_null(lw_realloc(NULL, 8, 1));
    assert_null(lw_format("x"));
    assert_null(lw_arena_new());
    assert_true(lw_fault_hit());
    lw_free(a);
    lw_fault_arm(0, false);
    assert_false(lw_fault_hit());
    assert_int_equal(lw_fault_count(), 0);
}

static void test_arena(void **state) {
    (void)state;
    lw_arena *arena = lw_arena_new();
    unsigned char *at[400];
    size_t size[400];
    for (int i = 0; i < 400; i++) { /* over a block's size now and then */
        size[i] = (size_t)(i * 37 % 501) * (i % 50 == 49 ? 200 : 1);
        at[i] = lw_arena_alloc(arena, size[i], 1);
        assert_non_null(at[i]);
        assert_int_equal((uintptr_t)at[i] % 16, 0);
        for (size_t k = 0; k < size[i]; k++) assert_int_equal(at[i][k], 0);
        memset(at[i], i & 255, size[i]);
    }
    for (int i = 0; i < 400; i++)
        for (size_t k = 0; k < size[i]; k++) assert_int_equal(at[i][k], i & 255);
    assert_null(lw_arena_alloc(arena, SIZE_MAX / 2, 4));
    assert_null(lw_arena_alloc(arena, SIZE_MAX - 3, 1));
    assert_string_equal(lw_arena_strdup(arena, "name"), "name");
    lw_fault_arm(1, true);
    assert_null(lw_arena_alloc(arena, 1 << 20, 1)); /* a block of its own is not to be had */
    lw_fault_arm(0, false);
    lw_arena_free(arena);
    lw_arena_free(NULL);
}

/* ---- threads */

enum { MANY = 10007 };
static atomic_int seen[MANY];
static int64_t limit;
static atomic_int too_long;
static lw_pool *pool;

static void see(void *user, int64_t begin, int64_t end) {
    if (user != &limit || end - begin > limit || end <= begin) atomic_fetch_add(&too_long, 1);
    for (int64_t i = begin; i < end; i++) atomic_fetch_add(&seen[i], 1);
}

static void test_parallel_for(void **state) {
    (void)state;
    pool = lw_pool_new();
    assert_non_null(pool);
    static const int64_t counts[] = {0, 1, 2, 63, 64, 65, MANY}, chunks[] = {-1, 0, 1, 7, 64, 1000, 20000};
    for (int threads = 0; threads < 5; threads++)
        for (size_t n = 0; n < sizeof counts / sizeof *counts; n++)
            for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
                for (int i = 0; i < MANY; i++) atomic_store(&seen[i], 0);
                limit = chunks[c] < 1 ? 1 : chunks[c];
                lw_parallel_for(pool, threads, counts[n], chunks[c], see, &limit);
                for (int64_t i = 0; i < MANY; i++) assert_int_equal(atomic_load(&seen[i]), i < counts[n]);
            }
    assert_int_equal(atomic_load(&too_long), 0);
    lw_parallel_for(pool, 2, -5, 1, see, &limit);
    assert_int_equal(atomic_load(&seen[0]), 1);
    assert_true(lw_cpu_count() >= 1);
    lw_pool_free(pool);
    pool = NULL; /* and without a pool */
    lw_parallel_for(pool, 4, 10, 3, see, &limit);
    assert_int_equal(atomic_load(&seen[9]), 2);
}

static void nest(void *user, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) lw_parallel_for(pool, 4, 100, 3, see, user);
}

static void test_nested(void **state) {
    (void)state;
    pool = lw_pool_new();
    for (int i = 0; i < MANY; i++) atomic_store(&seen[i], 0);
    limit = 3;
    lw_parallel_for(pool, 4, 8, 1, nest, &limit);
    for (int i = 0; i < 100; i++) assert_int_equal(atomic_load(&seen[i]), 8);
    lw_pool_free(pool);
    assert_int_equal(atomic_load(&too_long), 0);
}

static void test_clock(void **state) {
    (void)state;
    double before = lw_now_ms();
    for (int i = 0; i < 1000; i++) {
        double now = lw_now_ms();
        assert_true(now >= before);
        before = now;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_values), cmocka_unit_test(test_f16_rounding), cmocka_unit_test(test_f16_arrays),
        cmocka_unit_test(test_bf16),       cmocka_unit_test(test_dtypes),       cmocka_unit_test(test_fail),
        cmocka_unit_test(test_nearest),    cmocka_unit_test(test_arithmetic),   cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_faults),     cmocka_unit_test(test_arena),        cmocka_unit_test(test_parallel_for),
        cmocka_unit_test(test_nested),     cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
