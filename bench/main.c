/* SPDX-License-Identifier: MIT
 * linework-bench ops      every planned op of a program with time, rates and share of the roofline
 * linework-bench latency  the programs of an image, as the session runs them
 * linework-bench ladder   whole images, recipe by recipe
 * linework-bench outputs  what each program gives from fixed inputs, written to a file or compared with one
 * linework-bench tactics  every tactic of every op that has a choice, timed as the tuner does */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/cpu.h"
#ifdef LW_HAVE_CUDA
#include "cuda/cuda.h"
#endif

static const char usage[] =
    "usage: linework-bench ops|latency|ladder|outputs|tactics [options]\n"
    "  --model PATH       a model file or folder; SD1.5's shape with random weights without it (not ladder)\n"
    "  --device cpu|cuda[:N]    --precision auto|fp32|fp16|bf16    --threads N\n"
    "  --size WxH         256x384        --samples N  1    --steps N  20    --no-guidance\n"
    "  --program NAME     of ops: text, hint, time, begin, step or decode; step without it\n"
    "  --write FILE, --compare FILE [--most X]    of outputs; X is the relative L2 allowed, 5e-3 without it\n"
    "  --repeat N         5: medians of as many runs\n"
    "  --processor-time   latency: the processor's time instead of the clock's; with --threads 1\n"
    "  --tune             time tactics first and run the fastest    --budget MS  of timing a tactic of an op\n"
    "  --choices FILE     tactics that an earlier run wrote there; written by tactics and with --tune\n"
    "  --unzipped         ops of ControlNet and the encoder one by one    --vocab FILE  of ladder's model\n"
    "  --no-overlap       CUDA: no kernel begins while the launch before ends\n"
    "  --without TEXT     CUDA: without tactics whose name has it; several with commas: wgmma,group_norm;\n"
    "                     pairs: Hopper products share no weights; turns: no block takes more than one tile\n"
    "  --tflops N --gbs N ceilings: 800 TFLOP/s and 4200 GB/s without them\n";

static bool take(bench_options *o, const char *name, const char *value) {
    if (!strcmp(name, "--model")) o->model = value;
    else if (!strcmp(name, "--vocab")) o->vocab = value;
    else if (!strcmp(name, "--without")) o->without = value;
    else if (!strcmp(name, "--device")) o->device = value;
    else if (!strcmp(name, "--program")) o->program = value;
    else if (!strcmp(name, "--samples")) o->shape.samples = atoi(value);
    else if (!strcmp(name, "--steps")) o->shape.steps = atoi(value);
    else if (!strcmp(name, "--repeat")) o->repeat = atoi(value);
    else if (!strcmp(name, "--threads")) o->threads = atoi(value);
    else if (!strcmp(name, "--choices")) o->choices = value;
    else if (!strcmp(name, "--write")) o->write = value;
    else if (!strcmp(name, "--compare")) o->compare = value;
    else if (!strcmp(name, "--most")) o->most = atof(value);
    else if (!strcmp(name, "--budget")) o->budget = atof(value);
    else if (!strcmp(name, "--tflops")) o->tflops = atof(value);
    else if (!strcmp(name, "--gbs")) o->gbs = atof(value);
    else if (!strcmp(name, "--size")) return sscanf(value, "%dx%d", &o->shape.width, &o->shape.height) == 2;
    else if (!strcmp(name, "--precision")) return lw_precision_from_name(value, &o->precision, NULL) == LW_OK;
    else return false;
    return true;
}

static bool parse(bench_options *o, int argc, char **argv) {
    *o = (bench_options){.device = "cpu",
                         .program = "step",
                         .shape = {.width = 256, .height = 384, .samples = 1, .steps = 20, .guidance = true},
                         .repeat = 5,
                         .most = 5e-3,
                         .tflops = 800,
                         .gbs = 4200};
    if (argc < 2) return false;
    o->command = argv[1];
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--no-guidance")) o->shape.guidance = false;
        else if (!strcmp(argv[i], "--tune")) o->tune = true;
        else if (!strcmp(argv[i], "--no-overlap")) o->no_overlap = true;
        else if (!strcmp(argv[i], "--processor-time")) o->processor_time = true;
        else if (!strcmp(argv[i], "--unzipped")) o->shape.unzipped = true;
        else if (i + 1 >= argc || !take(o, argv[i], argv[i + 1])) return false;
        else i++;
    }
    const bench_shape *s = &o->shape;
    o->shape.bare = !strcmp(o->command, "outputs");
    if (o->shape.bare && !o->write == !o->compare) return false;
    return s->width >= 64 && s->height >= 64 && s->width % 64 == 0 && s->height % 64 == 0 && s->samples >= 1 &&
           s->samples <= 64 && s->steps >= 1 && s->steps <= 1000 && o->repeat >= 1 && o->repeat <= 1000;
}

lw_status bench_open_backend(lw_backend **out, const bench_options *o, lw_precision precision, lw_error *err) {
    if (!strncmp(o->device, "cuda", 4)) {
#ifdef LW_HAVE_CUDA
        lw_cuda_params cuda = {.device_index = o->device[4] == ':' ? atoi(o->device + 5) : 0,
                               .precision = precision,
                               .no_overlap = o->no_overlap,
                               .without = o->without};
        return lw_cuda_open(out, &cuda, err);
#else
        return lw_fail(err, LW_EDEVICE, "this build has no CUDA");
#endif
    }
    lw_cpu_params cpu = {.threads = o->threads, .precision = precision};
    return lw_cpu_open(out, &cpu, err);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *v, int32_t n) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

/* ---- ops */

static void shape_text(const lw_op *op, char text[64]) {
    const lw_args *m = op->m;
    switch (op->kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR: {
        const lw_product_args *p = &m->product;
        snprintf(text, 64, "%dx%dx%dx%d->%d k%ds%d%s", p->out.g * p->out.n, p->out.h, p->out.w, p->in.a.c, p->out.c,
                 p->kh, p->stride, p->epi.act == LW_ACT_GEGLU ? " geglu" : "");
        break;
    }
    case LW_OP_ATTENTION: {
        const lw_attention_args *a = &m->attention;
        snprintf(text, 64, "%dx%d q%d k%d d%d", a->out.g * a->out.n, a->heads, a->q.w, a->k.w, a->q.c / a->heads);
        break;
    }
    case LW_OP_APPLY: {
        const lw_view *v = &m->apply.out;
        const char *what = m->apply.in.norm.kind == LW_NORM_GROUP   ? "group"
                           : m->apply.in.norm.kind == LW_NORM_LAYER ? "layer"
                                                                    : "copy";
        snprintf(text, 64, "%dx%dx%dx%d %s%s", v->g * v->n, v->h, v->w, v->c, what, m->apply.in.up2 ? " up2" : "");
        break;
    }
    case LW_OP_COMBINE:
        snprintf(text, 64, "%dx%dx%dx%d", m->combine.out.g * m->combine.out.n, m->combine.out.h, m->combine.out.w,
                 m->combine.out.c);
        break;
    case LW_OP_NORM_STATS:
        snprintf(text, 64, "%dx%dx%dx%d", m->norm_stats.in.g * m->norm_stats.in.n, m->norm_stats.in.h,
                 m->norm_stats.in.w, m->norm_stats.in.c);
        break;
    default: text[0] = 0; break;
    }
}

static int find_program(const char *name) {
    int program = 0;
    while (program < BENCH_N_PROGRAMS && strcmp(bench_programs[program], name)) program++;
    return program;
}

static lw_status run_ops(bench_job *job, const bench_options *o, lw_error *err) {
    int program = find_program(o->program);
    lw_plan *plan = job->plans[program];
    int32_t n = lw_plan_n_ops(plan);
    double *ms = lw_alloc((size_t)n * (size_t)o->repeat, sizeof *ms), sum = 0, floor_sum = 0;
    if (!ms) return lw_fail(err, LW_ENOMEM, "no memory for %d times", n);
    lw_status status = LW_OK;
    for (int32_t r = 0; r < o->repeat; r++) {
        if (program == BENCH_STEP) LW_GO(bench_job_reset(job, err));
        LW_GO(lw_plan_run_timed(plan, err));
        for (int32_t i = 0; i < n; i++) ms[i * o->repeat + r] = lw_plan_op(plan, i).ms;
    }
    printf("op\ttactic\tshape\tus\tTFLOP/s\tGB/s\troof\tname\n");
    for (int32_t i = 0; i < n; i++) {
        lw_planned p = lw_plan_op(plan, i);
        char shape[64];
        shape_text(p.op, shape);
        double us = bench_median(ms + i * o->repeat, o->repeat) * 1e3;
        double by_flop = p.cost.flop / o->tflops * 1e-6, by_bytes = p.cost.bytes / o->gbs * 1e-3;
        double floor_us = by_flop > by_bytes ? by_flop : by_bytes;
        printf("%s\t%s\t%s\t%.2f\t%.1f\t%.0f\t%.0f%%\t%s\n", lw_op_name(p.op->kind), p.tactic->name, shape, us,
               p.cost.flop / us * 1e-6, p.cost.bytes / us * 1e-3, 100 * floor_us / us, p.op->name);
        sum += us;
        floor_sum += floor_us;
    }
    printf("# %s: %d ops, %.1f us in all, floor %.1f us\n", o->program, n, sum, floor_sum);
out:
    lw_free(ms);
    return status;
}

/* ---- tactics */

typedef struct tally {
    double best_us, first_us; /* of all ops, each as often as it stands in the programs */
} tally;

static int print_times(void *user, const lw_tune_op *t) {
    tally *all = user;
    for (int32_t i = 0; i < t->n_times; i++)
        printf("%s\t%d\t%s\t%.2f\t%.1f\t%.2f%s\n", t->choice.op, t->uses, t->times[i].tactic, t->times[i].us,
               t->cost.flop / t->times[i].us * 1e-6, t->cost.bytes / t->times[i].us * 1e-6,
               strcmp(t->times[i].tactic, t->choice.tactic) ? "" : "\t*");
    all->best_us += t->choice.us * t->uses;
    all->first_us += t->heuristic_us * t->uses;
    fflush(stdout);
    return 0;
}

static int count_times(void *user, const lw_tune_op *t) {
    tally *all = user;
    all->best_us += t->choice.us * t->uses;
    all->first_us += t->heuristic_us * t->uses;
    return 0;
}

/* The choices as lines: signature in hexadecimal, tactic, microseconds. */
static lw_status read_choices(lw_choices **out, const char *path, lw_error *err) {
    FILE *file = fopen(path, "r");
    if (!file) return lw_fail(err, LW_EINVAL, "%s can't be opened", path);
    lw_choice choice = {0};
    lw_status status = LW_OK;
    unsigned long long signature;
    *out = lw_choices_new();
    if (!*out) status = lw_fail(err, LW_ENOMEM, "no memory for choices");
    while (status == LW_OK && fscanf(file, "%llx %47s %lf", &signature, choice.tactic, &choice.us) == 3) {
        choice.signature = signature;
        status = lw_choices_put(*out, &choice, err);
    }
    fclose(file);
    return status;
}

static lw_status write_choices(const lw_choices *choices, const char *path, lw_error *err) {
    FILE *file = fopen(path, "w");
    lw_choice choice;
    if (!file) return lw_fail(err, LW_EINVAL, "%s can't be written", path);
    for (int32_t i = 0; lw_choices_at(choices, i, &choice); i++)
        fprintf(file, "%llx %s %.3f\n", (unsigned long long)choice.signature, choice.tactic, choice.us);
    return fclose(file) == 0 ? LW_OK : lw_fail(err, LW_EINVAL, "%s can't be written", path);
}

/* ---- latency */

/* The processor's time is what a machine that others use can tell: of one thread, for those that wait spin. */
static double now_ms(const bench_options *o) {
    struct timespec t;
    if (!o->processor_time || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0) return lw_now_ms();
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static lw_status run_image(bench_job *job, const bench_options *o, double ms[5], bool *finite, lw_error *err) {
    bool ignored;
    double t[5];
    LW_TRY(bench_job_restart(job, err));
    LW_TRY(bench_job_finish(job, &ignored, err));
    t[0] = now_ms(o);
    LW_TRY(lw_plan_run(job->plans[BENCH_TEXT], err));
    LW_TRY(bench_job_finish(job, &ignored, err));
    t[1] = now_ms(o);
    LW_TRY(lw_plan_run(job->plans[BENCH_HINT], err));
    LW_TRY(bench_job_finish(job, &ignored, err));
    t[2] = now_ms(o);
    LW_TRY(bench_job_reset(job, err));
    LW_TRY(lw_plan_run(job->plans[BENCH_BEGIN], err));
    for (int32_t i = 0; i < job->shape.steps; i++) LW_TRY(lw_plan_run(job->plans[BENCH_STEP], err));
    LW_TRY(bench_job_finish(job, finite, err));
    t[3] = now_ms(o);
    LW_TRY(lw_plan_run(job->plans[BENCH_DECODE], err));
    LW_TRY(bench_job_finish(job, &ignored, err));
    t[4] = now_ms(o);
    for (int i = 0; i < 4; i++) ms[i] = t[i + 1] - t[i];
    ms[4] = t[4] - t[0];
    return LW_OK;
}

/* What the host learns of a step, as a session does (src/pipe/session.c). */
enum { N_NEWS = 2 };
typedef struct news {
    void *mark, *status, *x; /* x: latents for a preview */
} news;
enum { TOLD_NOTHING, TOLD_STATUS, TOLD_LATENTS, N_TOLD, N_TURNS = 11 };

/* The steps, each told to the host while the next one runs. */
static lw_status run_told_steps(bench_job *job, const bench_options *o, int told, news *k, size_t latents, double *ms,
                                lw_error *err) {
    lw_backend *b = job->backend;
    bool ignored;
    LW_TRY(bench_job_restart(job, err));
    LW_TRY(bench_job_reset(job, err));
    LW_TRY(bench_job_finish(job, &ignored, err));
    double begin = now_ms(o);
    LW_TRY(lw_plan_run(job->plans[BENCH_BEGIN], err));
    for (int32_t i = 0; i < job->shape.steps + N_NEWS - 1; i++) {
        news *now = &k[i % N_NEWS];
        if (i < job->shape.steps) LW_TRY(lw_plan_run(job->plans[BENCH_STEP], err));
        if (told == TOLD_NOTHING) continue;
        if (i < job->shape.steps) {
            LW_TRY(lw_fetch(b, now->status, bench_job_buffer(job, "status"), 4 * sizeof(int32_t), err));
            if (told == TOLD_LATENTS) LW_TRY(lw_fetch(b, now->x, bench_job_buffer(job, "x"), latents, err));
            LW_TRY(lw_mark(b, &now->mark, err));
        }
        if (i >= N_NEWS - 1) LW_TRY(lw_wait(b, k[(i + 1) % N_NEWS].mark, err));
    }
    LW_TRY(bench_job_finish(job, &ignored, err));
    *ms = now_ms(o) - begin;
    return LW_OK;
}

/* What progress, cancelling and previews cost beside steps that nobody is told of: in turns, as clocks drift. */
static lw_status print_told_steps(bench_job *job, const bench_options *o, lw_error *err) {
    const size_t latents = (size_t)(o->shape.width / 8) * (size_t)(o->shape.height / 8) * 8 * sizeof(float);
    double ms[N_TOLD], over[N_TOLD][N_TURNS];
    news k[N_NEWS] = {0};
    lw_status status = LW_OK;
    for (int i = 0; i < N_NEWS && status == LW_OK; i++) {
        status = lw_alloc_host(job->backend, 4 * sizeof(int32_t), &k[i].status, err);
        if (status == LW_OK) status = lw_alloc_host(job->backend, latents, &k[i].x, err);
    }
    for (int r = 0; r < N_TURNS; r++)
        for (int told = 0; told < N_TOLD && status == LW_OK; told++) {
            status = run_told_steps(job, o, told, k, latents, &ms[told], err);
            if (status == LW_OK) over[told][r] = 100 * (ms[told] / ms[TOLD_NOTHING] - 1);
        }
    for (int i = 0; i < N_NEWS; i++) {
        lw_free_mark(job->backend, k[i].mark);
        lw_free_host(job->backend, k[i].status);
        lw_free_host(job->backend, k[i].x);
    }
    if (status == LW_OK)
        printf("# told of each step: %+.2f %% of the steps; of its latents, too: %+.2f %%\n",
               bench_median(over[TOLD_STATUS], N_TURNS), bench_median(over[TOLD_LATENTS], N_TURNS));
    return status;
}

static lw_status run_latency(bench_job *job, const bench_options *o, lw_error *err) {
    static const char *const names[5] = {"text", "hint", "steps", "decode", "image"};
    double *ms[5] = {0}, one[5];
    lw_status status = LW_OK;
    bool finite = true, same = true;
    uint64_t hash = 0, first = 0;
    for (int k = 0; k < 5; k++) {
        ms[k] = lw_alloc((size_t)o->repeat, sizeof *ms[k]);
        if (!ms[k]) status = lw_fail(err, LW_ENOMEM, "no memory for %d times", o->repeat);
    }
    if (status != LW_OK) goto out;
    for (int32_t r = -2; r < o->repeat; r++) { /* two to warm up */
        LW_GO(run_image(job, o, one, &finite, err));
        LW_GO(bench_job_hash(job, &hash, err));
        if (r == -2) first = hash;
        same &= hash == first;
        for (int k = 0; k < 5 && r >= 0; k++) ms[k][r] = one[k];
    }
    for (int k = 0; k < 5; k++) printf("%s\t%.3f ms\n", names[k], bench_median(ms[k], o->repeat));
    printf("# %.3f ms a step, %s, pictures %016llx%s\n", bench_median(ms[2], o->repeat) / job->shape.steps,
           finite ? "all values finite" : "NaN or infinity came out", (unsigned long long)first,
           same ? ", the same bits in all runs" : ", OTHER BITS in other runs");
    if (!finite || !same) LW_GO(lw_fail(err, LW_EINTERNAL, "the pictures are not finite or not always the same"));
    if (job->backend->behind) LW_GO(print_told_steps(job, o, err));
    if (job->free_bytes)
        printf("# device memory: %.0f MiB planned, %.0f taken\n", (double)job->device_bytes / 0x1p20,
               (double)(job->free_bytes - job->backend->behind->free_bytes(job->backend)) / 0x1p20);
out:
    for (int k = 0; k < 5; k++) lw_free(ms[k]);
    return status;
}

static lw_status run_command(bench_job *job, const bench_options *o, lw_error *err) {
    if (!strcmp(o->command, "ops")) return run_ops(job, o, err);
    if (!strcmp(o->command, "latency")) return run_latency(job, o, err);
    if (!strcmp(o->command, "outputs"))
        return bench_job_outputs(job, o->write ? o->write : o->compare, o->compare != NULL, o->most, err);
    return LW_OK; /* tactics were told while they were timed */
}

static lw_status run_job(const bench_options *o, lw_error *err) {
    lw_backend *backend = NULL;
    bench_job job;
    tally all = {0};
    lw_choices *choices = NULL;
    bool tactics = !strcmp(o->command, "tactics"), tune = tactics || o->tune;
    uint32_t programs = !strcmp(o->command, "ops") ? 1u << find_program(o->program) : BENCH_ALL;
    if (programs >> BENCH_STEP & 1) programs |= 1u << BENCH_BEGIN;
    lw_tune_hooks hooks = {.budget_ms = o->budget, .tuned = tactics ? print_times : count_times, .user = &all};
    double begin = lw_now_ms();
    LW_TRY(bench_open_backend(&backend, o, o->precision, err));
    double device_ms = lw_now_ms() - begin; /* opening it */
    if (o->choices && !tune) {
        lw_status read = read_choices(&choices, o->choices, err);
        if (read != LW_OK) {
            lw_choices_free(choices);
            backend->close(backend);
            return read;
        }
    }
    if (tactics) printf("op\tuses\ttactic\tus\tTFLOP/s\tTB/s\tbest\n");
    lw_status status = bench_job_open(&job, backend, o->model, &o->shape, programs, choices, tune ? &hooks : NULL, err);
    if (status == LW_OK) {
        printf(
            "# %s, %s, %dx%d, %d sample%s, %d steps; open %.0f ms: device %.0f, plans %.0f, packing %.0f, first runs "
            "%.0f; %.0f MiB\n",
            backend->description, lw_precision_name(backend->precision), o->shape.width, o->shape.height,
            o->shape.samples, o->shape.samples == 1 ? "" : "s", o->shape.steps, lw_now_ms() - begin, device_ms,
            job.plan_ms, job.pack_ms, job.bind_ms, (double)job.device_bytes / 0x1p20);
        if (tune && o->choices) status = write_choices(job.choices, o->choices, err);
        if (tune)
            printf("# tuned %d kinds of op in %.1f s: %.1f us once each, %.1f by preference\n",
                   lw_choices_count(job.choices), job.tune_ms * 1e-3, all.best_us, all.first_us);
        if (status == LW_OK) status = run_command(&job, o, err);
    }
    bench_job_close(&job);
    return status;
}

int main(int argc, char **argv) {
    static const char *const commands[] = {"ops", "latency", "ladder", "outputs", "tactics"};
    bench_options o;
    bool known = parse(&o, argc, argv), named = false;
    for (size_t i = 0; known && i < sizeof commands / sizeof *commands; i++) named |= !strcmp(o.command, commands[i]);
    if (!named || find_program(o.program) == BENCH_N_PROGRAMS) {
        fputs(usage, stderr);
        return 2;
    }
    lw_error err;
    lw_status status = !strcmp(o.command, "ladder") ? bench_ladder(&o, &err) : run_job(&o, &err);
    if (status != LW_OK) fprintf(stderr, "linework-bench: %s\n", err.message);
    return status == LW_OK ? 0 : 1;
}
