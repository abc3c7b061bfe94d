/* SPDX-License-Identifier: MIT
 * --bench: the time of each tactic on each case beside what the machine can do. Between runs a buffer larger than the
 * caches is written, as a network's other weights would be. The median of the runs counts; its spread and the best run
 * stand at the end of the line, for machines that others use too. */
#include "check.h"

#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- what the machine can do */

enum { CHAINS = 12, TURNS = 4000000 };

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_avx512(void) {
    __m512 x = _mm512_set1_ps(0.999f), a[CHAINS];
    for (int k = 0; k < CHAINS; k++) a[k] = _mm512_set1_ps((float)k);
    for (int i = 0; i < TURNS; i++)
        for (int k = 0; k < CHAINS; k++) a[k] = _mm512_fmadd_ps(a[k], x, x);
    for (int k = 1; k < CHAINS; k++) a[0] = _mm512_add_ps(a[0], a[k]);
    volatile float kept = _mm512_reduce_add_ps(a[0]);
    (void)kept;
    return 2.0 * 16 * CHAINS * TURNS;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(void) {
    __m256 x = _mm256_set1_ps(0.999f), a[CHAINS];
    for (int k = 0; k < CHAINS; k++) a[k] = _mm256_set1_ps((float)k);
    for (int i = 0; i < TURNS; i++)
        for (int k = 0; k < CHAINS; k++) a[k] = _mm256_fmadd_ps(a[k], x, x);
    for (int k = 1; k < CHAINS; k++) a[0] = _mm256_add_ps(a[0], a[k]);
    volatile float kept = _mm256_cvtss_f32(a[0]);
    (void)kept;
    return 2.0 * 8 * CHAINS * TURNS;
}
#endif

static double fma_plain(void) {
    typedef float four __attribute__((vector_size(16)));
    four x = {0.999f, 0.999f, 0.999f, 0.999f}, a[CHAINS];
    for (int k = 0; k < CHAINS; k++) a[k] = x * (float)k;
    for (int i = 0; i < TURNS; i++)
        for (int k = 0; k < CHAINS; k++) a[k] = a[k] * x + x;
    for (int k = 1; k < CHAINS; k++) a[0] += a[k];
    volatile float kept = a[0][0];
    (void)kept;
    return 2.0 * 4 * CHAINS * TURNS;
}

static void burn(void *user, int64_t begin, int64_t end) {
    double *flop = user;
    for (int64_t i = begin; i < end; i++) {
#if defined(__x86_64__)
        flop[i] = __builtin_cpu_supports("avx512f") ? fma_avx512()
                  : __builtin_cpu_supports("fma")   ? fma_avx2()
                                                    : fma_plain();
#else
        flop[i] = fma_plain();
#endif
    }
}

typedef struct copy {
    char *to, *from;
    int64_t each;
} copy;

static void copy_part(void *user, int64_t begin, int64_t end) {
    const copy *c = user;
    memcpy(c->to + begin * c->each, c->from + begin * c->each, (size_t)((end - begin) * c->each));
}

ck_roof ck_measure_roof(int32_t threads) {
    ck_roof roof = {0};
    double flop[64] = {0};
    int32_t n = threads < 64 ? threads : 64;
    copy c = {.each = 4 << 20};
    c.to = malloc((size_t)(64 * c.each));
    c.from = malloc((size_t)(64 * c.each));
    if (c.to && c.from) memset(c.from, 1, (size_t)(64 * c.each)), memset(c.to, 1, (size_t)(64 * c.each));
    lw_pool *pool = lw_pool_new();
    for (int turn = 0; turn < 3; turn++) { /* the best: others may be using the machine */
        double begin = lw_now_ms(), sum = 0;
        lw_parallel_for(pool, n, n, 1, burn, flop);
        double ms = lw_now_ms() - begin;
        for (int32_t i = 0; i < n; i++) sum += flop[i];
        if (sum / ms * 1e-6 > roof.gflops) roof.gflops = sum / ms * 1e-6;
        if (!c.to || !c.from) continue;
        begin = lw_now_ms();
        lw_parallel_for(pool, n, 64, 1, copy_part, &c);
        ms = lw_now_ms() - begin;
        double gbs = 2 * 64 * (double)c.each / ms * 1e-6; /* read and written */
        if (gbs > roof.gbs) roof.gbs = gbs;
    }
    free(c.to);
    free(c.from);
    lw_pool_free(pool);
    return roof;
}

/* ---- timing */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void flush_caches(void) {
    static char *buffer;
    enum { BYTES = 64 << 20 };
    if (!buffer) buffer = malloc(BYTES);
    if (buffer) memset(buffer, (int)lw_now_ms(), BYTES);
}

enum { MAX_RUNS = 101 };

typedef struct timing {       /* milliseconds */
    double median, best, mad; /* mad: the median distance from the median */
} timing;

/* `repeat` runs, or as many as two seconds hold. Runs that are short count several
 * at once, so that the clock and a device's queue do not show. */
static lw_status time_plan(ck_planned *p, int32_t repeat, timing *out, lw_error *err) {
    lw_backend *b = p->backend;
    double ms[MAX_RUNS], word;
    LW_TRY(lw_plan_run(p->plan, err));
    LW_TRY(b->download(b, &word, p->device[0], sizeof word, err));
    double begin = lw_now_ms();
    LW_TRY(lw_plan_run(p->plan, err));
    LW_TRY(b->download(b, &word, p->device[0], sizeof word, err));
    double once = lw_now_ms() - begin;
    int32_t times = once > 0.2 ? 1 : once > 0.002 ? (int32_t)(0.2 / once) + 1 : 100, runs = 0;
    for (; runs < repeat && (runs < 3 || once * runs < 2000); runs++) {
        if (b->device == LW_DEVICE_CPU && times == 1) flush_caches();
        begin = lw_now_ms();
        for (int32_t k = 0; k < times; k++) LW_TRY(lw_plan_run(p->plan, err));
        LW_TRY(b->download(b, &word, p->device[0], sizeof word, err));
        ms[runs] = (lw_now_ms() - begin) / times;
    }
    qsort(ms, (size_t)runs, sizeof *ms, by_value);
    *out = (timing){.median = ms[runs / 2], .best = ms[0]};
    for (int32_t i = 0; i < runs; i++) ms[i] = ms[i] > out->median ? ms[i] - out->median : out->median - ms[i];
    qsort(ms, (size_t)runs, sizeof *ms, by_value);
    out->mad = ms[runs / 2];
    return LW_OK;
}

static lw_status time_case(ck_machine *machine, lw_backend *b, lw_params *params, const ck_case *c, const ck_image *in,
                           const lw_tactic *t, bool whole, int32_t repeat, lw_cost *cost, timing *out) {
    ck_planned p;
    lw_error err = {.message = ""};
    lw_status status = ck_plan(&p, b, params, c, &c->m, c->bytes, t, whole, 0, &err);
    *out = (timing){0};
    if (status == LW_OK && (!t || ck_uses(&p, t))) {
        for (int32_t i = 0; i < p.n_buffers && status == LW_OK; i++)
            status = b->upload(b, p.device[i], in->buffer[i], (size_t)p.bytes[i] + 2 * CK_GUARD, &err);
        if (status == LW_OK) status = time_plan(&p, repeat, out, &err);
        *cost = lw_op_cost(params, &p.program->ops[0]);
    }
    ck_unplan(&p);
    if (status == LW_OK) return status;
    machine->failed++;
    printf("# FAIL %s [%s]: %s\n", t ? t->name : "reference", c->shape, err.message);
    return status;
}

static bool is_reference(const lw_tactic *t) {
    size_t n = strlen(t->name);
    return n > 4 && !strcmp(t->name + n - 4, "_ref");
}

void ck_bench_case(ck_machine *machine, const ck_case *c, const ck_roof *roof, int32_t repeat) {
    lw_backend *b = machine->backend;
    lw_tensor_source source = ck_source(&machine->seed);
    lw_params *params = NULL, *host = NULL;
    ck_image in = {0};
    lw_cost cost = {0};
    timing ref = {0};
    lw_error err;
    bool fine = lw_params_new(&params, &source, &err) == LW_OK && lw_params_new(&host, &source, &err) == LW_OK &&
                ck_image_make(&in, c->bytes, c->n_buffers);
    if (repeat > MAX_RUNS) repeat = MAX_RUNS;
    if (fine) ck_make_inputs(&in, c, CK_NORMAL, machine->seed);
    for (int32_t i = 0; i < b->n_tactics && fine; i++) {
        const lw_tactic *t = b->tactics[i];
        timing mine;
        if (t->kind != c->kind || (machine->tactic && !strstr(t->name, machine->tactic))) continue;
        if (time_case(machine, b, params, c, &in, t, true, repeat, &cost, &mine) != LW_OK) continue;
        if (mine.median == 0) continue; /* not taken */
        double ms = mine.median;
        if (ref.median == 0) time_case(machine, machine->reference, host, c, &in, NULL, false, 1, &cost, &ref);
        machine->passed++;
        double gflops = cost.flop / ms * 1e-6, gbs = cost.bytes / ms * 1e-6;
        printf("%s\t%s\t%s\t%s\t%.0f\t%.2f\t%.2f\t", lw_op_name(c->kind), c->shape, t->name, lw_dtype_name(c->dtype),
               ms * 1e6, gflops, gbs);
        if (roof->gflops > 0 && roof->gbs > 0) { /* the time the nearer roof asks for, over the time taken */
            double compute = gflops / roof->gflops, traffic = gbs / roof->gbs;
            printf("%.1f\t", 100 * (compute > traffic ? compute : traffic));
        } else printf("-\t");
        printf("%.1f\t%.1f\t%.0f\n", is_reference(t) ? 1.0 : ref.median / ms, 100 * mine.mad / ms, mine.best * 1e6);
        fflush(stdout);
    }
    ck_image_free(&in);
    lw_params_free(params, b);
    lw_params_free(host, machine->reference);
}
