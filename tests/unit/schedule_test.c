/* SPDX-License-Identifier: MIT
 * Rows of every sampler: DDIM against the reference's table, all of them against diffusers' schedulers step by step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fixture.h"
#include "pipe/schedule.h"

static lw_schedule make(lw_sampler sampler, lw_scheduler scheduler, int32_t steps, double eta) {
    lw_schedule s;
    lw_error err = {0};
    lw_schedule_params p = {sampler, scheduler, steps, eta};
    if (lw_schedule_make(&s, &p, &err) != LW_OK) fail_msg("%s", err.message);
    return s;
}

static void refused(lw_sampler sampler, lw_scheduler scheduler, int32_t steps, double eta, const char *says) {
    lw_schedule s;
    lw_error err = {0};
    lw_schedule_params p = {sampler, scheduler, steps, eta};
    assert_int_equal(lw_schedule_make(&s, &p, &err), LW_EINVAL);
    assert_null(s.rows);
    assert_null(s.timesteps);
    if (!strstr(err.message, says)) fail_msg("\"%s\" lacks \"%s\"", err.message, says);
}

/* ---- DDIM */

typedef struct golden {
    int t;
    float a, k0, k1, sigma;
} golden;

/* S = 20, smallest timestep first; a: alphas_cumprod[t]; k0, k1 at eta 0; sigma at eta 1. */
static const golden table[20] = {
    {1, 0.998296022f, 1.0004276f, -0.0121418f, 0.020648f},    {51, 0.95052433f, 1.0248211f, -0.1866730f, 0.040597f},
    {101, 0.892980516f, 1.0317171f, -0.1150829f, 0.167295f},  {151, 0.826399267f, 1.0395037f, -0.1059753f, 0.214393f},
    {201, 0.752143383f, 1.0482012f, -0.1051948f, 0.250868f},  {251, 0.672151446f, 1.0578321f, -0.1078422f, 0.283554f},
    {301, 0.588818729f, 1.0684218f, -0.1125280f, 0.314408f},  {351, 0.504818559f, 1.0799985f, -0.1187514f, 0.344179f},
    {401, 0.422881514f, 1.0925927f, -0.1263330f, 0.373183f},  {451, 0.345558226f, 1.1062384f, -0.1352369f, 0.401553f},
    {501, 0.274999052f, 1.1209727f, -0.1454987f, 0.429321f},  {551, 0.212782517f, 1.1368355f, -0.1571906f, 0.456467f},
    {601, 0.159816444f, 1.1538709f, -0.1704030f, 0.482938f},  {651, 0.116324849f, 1.1721265f, -0.1852305f, 0.508666f},
    {701, 0.0819167122f, 1.1916535f, -0.2017626f, 0.533580f}, {751, 0.0557190292f, 1.2125076f, -0.2200770f, 0.557616f},
    {801, 0.0365465246f, 1.2347491f, -0.2402350f, 0.580728f}, {851, 0.0230769869f, 1.2584428f, -0.2622809f, 0.602891f},
    {901, 0.0140048983f, 1.2836587f, -0.2862441f, 0.624104f}, {951, 0.00815500412f, 1.3104724f, -0.3121452f, 0.644391f},
};

static void ddim_table(void **state) {
    (void)state;
    float alphas[1000];
    lw_alphas_cumprod(alphas);
    assert_float_equal(alphas[0], 0.999149978f, 6e-8);
    assert_float_equal(alphas[999], 0.0046601f, 1e-7);
    lw_schedule plain = make(LW_SAMPLER_DDIM, LW_SCHEDULER_REFERENCE, 20, 0);
    lw_schedule noisy = make(LW_SAMPLER_DDIM, LW_SCHEDULER_REFERENCE, 20, 1);
    assert_int_equal(plain.n_rows, 20);
    assert_int_equal(plain.n_noise, 0);
    assert_int_equal(noisy.n_noise, 20);
    assert_true(plain.init_scale == 1);
    for (int i = 0; i < 20; i++) {
        const golden *g = &table[19 - i];
        const lw_row *row = &plain.rows[i];
        assert_true(plain.timesteps[i] == g->t);
        assert_true(alphas[g->t] == g->a);
        assert_float_equal(row->x_x, g->k0, 1.2e-7);
        assert_float_equal(row->x_e, g->k1, 6e-8);
        assert_float_equal(noisy.rows[i].x_n, g->sigma, 6e-7);
        assert_int_equal(row->noise, -1);
        assert_int_equal(noisy.rows[i].noise, i);
        assert_float_equal(row->h_x, 1 / sqrt(g->a), 1e-6);
        for (int k = 0; k < 3; k++) assert_true(row->x_h[k] == 0 && row->y_h[k] == 0);
        assert_true(row->x_n == 0 && row->x_y == 0 && row->y_x == 0 && row->y_y == 0 && row->y_e == 0);
    }
    lw_schedule_free(&plain);
    lw_schedule_free(&noisy);
}

static void reference_counts(void **state) {
    (void)state;
    for (int32_t steps = 1; steps <= 1000; steps++) {
        int32_t c = 1000 / steps, n = 0, last = 0, actual = -1;
        lw_error err = {0};
        for (int32_t t = 0; t < 1000; t += c) n++, last = t + 1;
        bool works = last < 1000; /* else alphas_cumprod[1000] is asked for */
        lw_status status = lw_reference_steps(steps, &actual, &err);
        assert_int_equal(status, works ? LW_OK : LW_EINVAL);
        assert_int_equal(actual, works ? n : 0);
        bool listed = steps == 3 || steps == 9 || steps == 27 || steps == 36 || steps == 37 ||
                      (steps >= 101 && steps <= 111) || (steps >= 251 && steps <= 333) || steps >= 501;
        assert_int_equal(works, !listed);
        if (works && steps % 7 == 0) {
            lw_schedule s = make(LW_SAMPLER_DDIM, LW_SCHEDULER_REFERENCE, steps, 0);
            assert_int_equal(s.n_rows, n);
            assert_true(s.timesteps[0] == last && s.timesteps[n - 1] == 1);
            lw_schedule_free(&s);
        }
    }
    const int32_t pairs[][2] = {{1, 1},   {6, 7},   {15, 16}, {20, 20}, {30, 31},
                                {42, 44}, {60, 63}, {50, 50}, {46, 48}, {99, 100}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        int32_t actual;
        assert_int_equal(lw_reference_steps(pairs[i][0], &actual, NULL), LW_OK);
        assert_int_equal(actual, pairs[i][1]);
    }
}

static void refusals(void **state) {
    (void)state;
    const lw_scheduler reference = LW_SCHEDULER_REFERENCE, discrete = LW_SCHEDULER_DISCRETE,
                       karras = LW_SCHEDULER_KARRAS;
    refused(LW_SAMPLER_DDIM, reference, 3, 0, "are 2 and 4");
    refused(LW_SAMPLER_EULER, reference, 9, 0, "are 8 and 10");
    refused(LW_SAMPLER_DDIM, reference, 36, 0, "are 35 and 38");
    refused(LW_SAMPLER_DDIM, reference, 105, 0, "are 100 and 112");
    refused(LW_SAMPLER_DDIM, reference, 300, 0, "are 250 and 334");
    refused(LW_SAMPLER_DDIM, reference, 1000, 0, "is 500");
    refused(LW_SAMPLER_DDIM, discrete, 0, 0, "0 is not in 1..1000");
    refused(LW_SAMPLER_DDIM, discrete, 1001, 0, "1001 is not in 1..1000");
    refused(LW_SAMPLER_DDIM, reference, -5, 0, "-5 is not in 1..1000");
    refused(LW_SAMPLER_DDIM, reference, 20, 1.5, "1.5 is not in 0..1");
    refused(LW_SAMPLER_DDIM, reference, 20, NAN, "nan is not in 0..1");
    refused(LW_SAMPLER_EULER, reference, 20, 0.5, "the sampler is euler");
    refused(LW_SAMPLER_DDIM, karras, 20, 0, "karras has no meaning for ddim");
    refused(LW_SAMPLER_LCM, karras, 8, 0, "karras has no meaning for lcm");
    refused(LW_SAMPLER_LCM, discrete, 51, 0, "51 is more than the 50");
    refused(LW_SAMPLER_UNIPC, discrete, 1000, 0, "1000 is more than the 999");
    refused((lw_sampler)17, discrete, 20, 0, "sampler: 17");
    refused(LW_SAMPLER_DDIM, (lw_scheduler)-1, 20, 0, "scheduler: -1");
}

/* ---- all samplers against diffusers */

enum { N = 24 };

static void eps_of(const float *x, double t, float *e) {
    for (int j = 0; j < N; j++) e[j] = (float)(0.3 * x[j] + 0.5 * sin(0.01 * t + 0.7 * j));
}

/* What `advance` does, over N values; h1, h2 and y start at 0. */
typedef struct latent {
    float x[N], h1[N], h2[N], y[N];
} latent;

static void advance(latent *l, const lw_row *r, const float *e, const float *noise) {
    for (int j = 0; j < N; j++) {
        float x = l->x[j], y = l->y[j], h = r->h_x * x + r->h_e * e[j];
        l->x[j] = r->x_x * x + r->x_e * e[j] + r->x_h[0] * h + r->x_h[1] * l->h1[j] + r->x_h[2] * l->h2[j] +
                  r->x_y * y + (r->noise >= 0 ? r->x_n * noise[r->noise * N + j] : 0);
        l->y[j] = r->y_x * x + r->y_e * e[j] + r->y_h[0] * h + r->y_h[1] * l->h1[j] + r->y_h[2] * l->h2[j] + r->y_y * y;
        l->h2[j] = l->h1[j];
        l->h1[j] = h;
    }
}

static double compare(const fixture *f, const char *name, lw_schedule *s) {
    char t_name[80];
    size_t n_rows;
    snprintf(t_name, sizeof t_name, "%s.t", name);
    float *want = fixture_get(f, name, NULL), *t = fixture_get(f, t_name, &n_rows);
    float *x_T = fixture_get(f, "x_T", NULL), *noise = fixture_get(f, "noise", NULL);
    assert_int_equal(s->n_rows, n_rows);
    latent l = {0};
    double worst = 0;
    for (int j = 0; j < N; j++) l.x[j] = s->init_scale * x_T[j];
    for (int32_t i = 0; i < s->n_rows; i++) {
        float e[N];
        if (fabs(s->timesteps[i] - (double)t[i]) > 2e-3)
            fail_msg("%s: timestep %d is %.6f, diffusers has %.6f", name, i, s->timesteps[i], (double)t[i]);
        eps_of(l.x, s->timesteps[i], e);
        advance(&l, &s->rows[i], e, noise);
        double d = fixture_max_diff(l.x, want + (size_t)i * N, N);
        if (!(d <= 1e-4)) fail_msg("%s: after step %d of %d the latent differs by %g", name, i + 1, s->n_rows, d);
        if (d > worst) worst = d;
        assert_true(s->rows[i].noise < s->n_noise);
    }
    free(want);
    free(t);
    free(x_T);
    free(noise);
    return worst;
}

static void against_diffusers(void **state) {
    (void)state;
    const char *const samplers[] = {"ddim", "euler", "euler_a", "dpm++2m", "unipc", "lcm"};
    const char *const schedulers[] = {"reference", "discrete", "karras"};
    const int32_t steps[] = {1, 2, 5, 10, 20, 30};
    fixture f = fixture_open("schedule");
    int compared = 0;
    for (int sampler = 0; sampler < 6; sampler++) {
        for (int scheduler = 0; scheduler < 3; scheduler++) {
            double worst = 0;
            for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
                for (int noisy = 0; noisy < 2; noisy++) {
                    char name[64];
                    snprintf(name, sizeof name, "%s.%s.%d%s", samplers[sampler], schedulers[scheduler], steps[i],
                             noisy ? ".eta" : "");
                    if (!json_object_get(f.header, name)) continue;
                    lw_schedule s = make((lw_sampler)sampler, (lw_scheduler)scheduler, steps[i], noisy ? 0.7 : 0);
                    double d = compare(&f, name, &s);
                    if (d > worst) worst = d;
                    lw_schedule_free(&s);
                    compared++;
                }
            }
            printf("%-8s %-10s worst %.2g\n", samplers[sampler], schedulers[scheduler], worst);
        }
    }
    assert_int_equal(compared, 16 * 6 + 2 * 6); /* every pair that is allowed, and DDIM's with eta */
    fixture_close(&f);
}

/* Whatever is not refused is finite, goes down, and ends at a clean latent. */
static void every_count(void **state) {
    (void)state;
    for (int sampler = 0; sampler < 6; sampler++)
        for (int scheduler = 0; scheduler < 3; scheduler++)
            for (int32_t steps = 1; steps <= 1000; steps += steps < 60 ? 1 : 47) {
                lw_schedule s;
                lw_schedule_params p = {(lw_sampler)sampler, (lw_scheduler)scheduler, steps, 0};
                if (lw_schedule_make(&s, &p, NULL) != LW_OK) continue;
                assert_true(s.n_rows >= steps && s.n_noise <= s.n_rows);
                for (int32_t i = 0; i < s.n_rows; i++) {
                    const lw_row *r = &s.rows[i];
                    float words[sizeof *r / sizeof(float)];
                    memcpy(words, r, sizeof words);
                    for (size_t k = 2; k < sizeof words / sizeof *words; k++) assert_true(isfinite(words[k]));
                    assert_true(s.timesteps[i] >= 0 && s.timesteps[i] <= 999);
                    if (i) assert_true(s.timesteps[i] <= s.timesteps[i - 1]);
                }
                lw_schedule_free(&s);
            }
}

static void faults(void **state) {
    (void)state;
    lw_schedule_params p = {LW_SAMPLER_UNIPC, LW_SCHEDULER_KARRAS, 20, 0};
    for (long nth = 1; nth <= 4; nth++) {
        lw_schedule s;
        lw_error err = {0};
        lw_fault_arm(nth, false);
        lw_status status = lw_schedule_make(&s, &p, &err);
        lw_fault_arm(0, false);
        assert_int_equal(status, LW_ENOMEM);
        assert_null(s.rows);
    }
    lw_schedule_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ddim_table),        cmocka_unit_test(reference_counts), cmocka_unit_test(refusals),
        cmocka_unit_test(against_diffusers), cmocka_unit_test(every_count),      cmocka_unit_test(faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
