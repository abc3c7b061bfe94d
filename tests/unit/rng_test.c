/* SPDX-License-Identifier: MIT
 * The two generators against PyTorch's numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/rng.h"
#include "fixture.h"

#define TOLERANCE 2e-6

/* torch.randn(…, device="cuda") on an H200, torch 2.11. */
typedef struct golden {
    uint64_t seed;
    int draw;
    size_t total, at, n;
    float value[8];
} golden;

static const golden goldens[] = {
    {0,
     0,
     6144,
     0,
     8,
     {-0.9246624f, -0.4253442f, -2.6438458f, 0.1451839f, -0.1208664f, -0.5797257f, -0.6228510f, -0.3283869f}},
    {0, 1, 6144, 0, 4, {0.1808258f, -0.5522628f, 0.9238133f, -0.7349705f}},
    {1, 0, 6144, 0, 4, {-0.2962780f, 2.6764481f, -0.1408462f, -0.8440952f}},
    {2946901,
     0,
     6144,
     0,
     8,
     {0.4865468f, -0.6768517f, 0.3761314f, -1.1024978f, -0.6175041f, 0.9684269f, -0.8985500f, 0.2971398f}},
    {2946901, 1, 6144, 0, 4, {-1.6420621f, 0.9957102f, 0.7235194f, -1.8190039f}},
    {7, 0, 196608, 0, 2, {-0.3048470f, 1.0453334f}},
    {7, 0, 196608, 196606, 2, {-0.0626543f, -0.7679438f}},
};

static void cuda_numbers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++) {
        const golden *g = &goldens[i];
        lw_noise noise;
        float *out = malloc(g->total * sizeof *out);
        assert_non_null(out);
        lw_noise_init(&noise, LW_RNG_CUDA, g->seed);
        for (int draw = 0; draw <= g->draw; draw++) lw_noise_draw(&noise, out, g->total);
        double d = fixture_max_diff(out + g->at, g->value, g->n);
        if (d > TOLERANCE) fail_msg("golden %zu differs by %g", i, d);
        free(out);
    }
}

/* Past the grid's threads, values are the other components of the same counters; past four times that, new counters,
 * and the next draw goes on after them. */
static void cuda_beyond_the_grid(void **state) {
    (void)state;
    enum { GRID = 270336, N = 4 * GRID + 10 };
    lw_noise noise;
    float *big = malloc(N * sizeof *big), *small = malloc(GRID * sizeof *small);
    assert_non_null(big);
    assert_non_null(small);
    lw_noise_init(&noise, LW_RNG_CUDA, 3);
    lw_noise_draw(&noise, big, N);
    assert_int_equal(noise.philox_offset, 8);
    lw_noise_init(&noise, LW_RNG_CUDA, 3);
    lw_noise_draw(&noise, small, GRID);
    assert_memory_equal(big, small, GRID * sizeof *small);
    lw_noise_draw(&noise, small, GRID); /* offset 4 */
    assert_memory_equal(big + 4 * GRID, small, 10 * sizeof *small);
    double sum = 0, square = 0;
    for (size_t i = 0; i < N; i++) sum += big[i], square += (double)big[i] * big[i];
    assert_true(fabs(sum / N) < 5e-3 && fabs(square / N - 1) < 5e-3);
    free(small);
    free(big);
}

/* x_T and the 20 draws after it of the reference job, from another program of the same generator. */
static void cuda_draws_of_a_job(void **state) {
    (void)state;
    enum { N = 4 * 8 * 16 };
    fixture f = fixture_open("tiny/job");
    float *first = fixture_get(&f, "x_T", NULL), *later = fixture_get(&f, "eta1.noise", NULL), out[N];
    lw_noise noise;
    lw_noise_init(&noise, LW_RNG_CUDA, 7);
    lw_noise_draw(&noise, out, N);
    assert_true(fixture_max_diff(out, first, N) <= TOLERANCE);
    for (size_t k = 0; k < 20; k++) {
        lw_noise_draw(&noise, out, N);
        assert_true(fixture_max_diff(out, later + k * N, N) <= TOLERANCE);
    }
    free(first);
    free(later);
    fixture_close(&f);
}

static void cpu_numbers(void **state) {
    (void)state;
    const int sizes[] = {5, 16, 17, 100, 6144};
    fixture f = fixture_open("rng");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        lw_noise noise;
        lw_noise_init(&noise, LW_RNG_CPU, 42);
        for (int draw = 0; draw < 2; draw++) {
            char name[32];
            float out[6144];
            snprintf(name, sizeof name, "n%d.%d", sizes[i], draw);
            float *want = fixture_get(&f, name, NULL);
            lw_noise_draw(&noise, out, (size_t)sizes[i]);
            double d = fixture_max_diff(out, want, (size_t)sizes[i]);
            if (d > TOLERANCE) fail_msg("%s differs by %g", name, d);
            free(want);
        }
    }
    fixture_close(&f);
}

static void cpu_mixed_sizes(void **state) {
    (void)state;
    const size_t sizes[] = {5, 20, 4, 16, 3};
    fixture f = fixture_open("rng");
    float *want = fixture_get(&f, "mixed", NULL), out[48];
    lw_noise noise;
    lw_noise_init(&noise, LW_RNG_CPU, 4294967295u);
    size_t at = 0;
    for (size_t i = 0; i < 5; at += sizes[i++]) lw_noise_draw(&noise, out + at, sizes[i]);
    assert_true(fixture_max_diff(out, want, at) <= TOLERANCE);
    free(want);
    fixture_close(&f);
}

static void random_seeds(void **state) {
    (void)state;
    int64_t first = -1, seed = -1;
    bool differs = false;
    lw_error err;
    assert_int_equal(lw_random_seed(&first, &err), LW_OK);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(lw_random_seed(&seed, &err), LW_OK);
        assert_in_range(seed, 0, 65535);
        differs |= seed != first;
    }
    assert_true(differs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuda_numbers), cmocka_unit_test(cuda_draws_of_a_job), cmocka_unit_test(cuda_beyond_the_grid),
        cmocka_unit_test(cpu_numbers),  cmocka_unit_test(cpu_mixed_sizes),     cmocka_unit_test(random_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
