/* SPDX-License-Identifier: MIT
 * lw_check: what to check is chosen here; see check.h. */
#include "check.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cpu/cpu.h"
#ifdef LW_HAVE_CUDA
#include "cuda/cuda.h"
#endif

static const ck_op *const ops[] = {
#define X(kind, name) &ck_op_##name,
    LW_OPS(X)
#undef X
};

const ck_op *ck_op_of(lw_op_kind kind) { return ops[kind]; }

typedef struct options {
    bool all, bench, verbose, cuda, no_overlap;
    lw_precision precision;
    const char *op, *tactic, *shape, *model, *without;
    uint64_t seed;
    int32_t repeat, chance;
    double cap; /* GFLOP */
    ck_roof roof;
} options;

static const char usage[] =
    "usage: lw_check [options]\n"
    "Checks every tactic of every op of a backend against the reference in double.\n"
    "  --all            the long list: SD1.5 at 256x384 pixels, 2,000 and more shapes by chance\n"
    "  --bench          times instead of checks, as TSV\n"
    "  --backend NAME   cpu (default) or cuda\n"
    "  --precision NAME of cpu: fp32 (default) or bf16; exit 77 where the CPU cannot\n"
    "  --no-overlap     of cuda: no launch begins while the one before ends\n"
    "  --without TEXT   of cuda: without tactics whose name has it; several with commas\n"
    "  --op NAME        only this op, \"conv2d\"\n"
    "  --tactic TEXT    only tactics whose name contains TEXT\n"
    "  --shape TEXT     only shapes that contain TEXT, as they are printed\n"
    "  --model FILE     also the shapes of this model at 256x384 pixels\n"
    "  --seed N         of values and of shapes by chance (default 1)\n"
    "  --chance N       shapes by chance for each op\n"
    "  --cap GFLOP      leave out larger cases (default 0.06; with --all 200, with --bench 20)\n"
    "  --repeat N       bench: runs of each case (default 9)\n"
    "  --peak GFLOP/s, --bandwidth GB/s   bench: the roof of a device that is not measured here\n"
    "  --verbose        a line a case\n";

static bool parse(int argc, char **argv, options *o) {
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(flag, "--all")) o->all = true;
        else if (!strcmp(flag, "--bench")) o->bench = true;
        else if (!strcmp(flag, "--verbose")) o->verbose = true;
        else if (!strcmp(flag, "--no-overlap")) o->no_overlap = true;
        else if (!value) return false;
        else {
            i++;
            if (!strcmp(flag, "--backend") && !strcmp(value, "cuda")) o->cuda = true;
            else if (!strcmp(flag, "--backend") && !strcmp(value, "cpu")) o->cuda = false;
            else if (!strcmp(flag, "--precision")) {
                if (lw_precision_from_name(value, &o->precision, NULL) != LW_OK) return false;
            } else if (!strcmp(flag, "--op")) o->op = value;
            else if (!strcmp(flag, "--without")) o->without = value;
            else if (!strcmp(flag, "--tactic")) o->tactic = value;
            else if (!strcmp(flag, "--shape")) o->shape = value;
            else if (!strcmp(flag, "--model")) o->model = value;
            else if (!strcmp(flag, "--seed")) o->seed = strtoull(value, NULL, 10);
            else if (!strcmp(flag, "--chance")) o->chance = (int32_t)strtol(value, NULL, 10);
            else if (!strcmp(flag, "--cap")) o->cap = strtod(value, NULL);
            else if (!strcmp(flag, "--repeat")) o->repeat = (int32_t)strtol(value, NULL, 10);
            else if (!strcmp(flag, "--peak")) o->roof.gflops = strtod(value, NULL);
            else if (!strcmp(flag, "--bandwidth")) o->roof.gbs = strtod(value, NULL);
            else return false;
        }
    }
    return o->repeat >= 1;
}

static lw_status open_backends(const options *o, ck_machine *m, lw_error *err) {
    LW_TRY(lw_cpu_open(&m->reference, &(lw_cpu_params){.references_only = true}, err));
    if (!o->cuda) return lw_cpu_open(&m->backend, &(lw_cpu_params){.precision = o->precision}, err);
#ifdef LW_HAVE_CUDA
    return lw_cuda_open(&m->backend, &(lw_cuda_params){.no_overlap = o->no_overlap, .without = o->without}, err);
#else
    return lw_fail(err, LW_EDEVICE, "this build has no CUDA backend");
#endif
}

static bool list_cases(const options *o, const ck_machine *m, ck_list *list) {
    static const lw_dtype dtypes[] = {LW_F32, LW_F16, LW_BF16};
    lw_dtype act = m->backend->act;
    bool fine = true;
    for (int32_t i = 0; i < LW_N_OPS && !o->bench; i++)
        for (int32_t k = 0; k < (m->backend->device == LW_DEVICE_CPU ? 3 : 2); k++) /* no GPU tactic is BF16 */
            ops[i]->cases(list, dtypes[k], dtypes[k] == act ? o->chance : o->chance / 8);
    /* Small for the check, where the double reference is what takes time; the job's own size for timings. */
    bool large = o->all || o->bench;
    fine = ck_walk(list, NULL, "SD1.5", act, large ? 32 : 8, large ? 48 : 8) && fine;
    static const char tiny[] = LW_TEST_DATA "/tiny/model.safetensors";
    if (access(tiny, R_OK) == 0 && !o->bench) fine = ck_walk(list, tiny, "tiny", act, 16, 24) && fine;
    if (o->model) fine = ck_walk(list, o->model, o->model, act, 32, 48) && fine;
    return fine && !list->broken;
}

/* OpenMP's threads spin between two parallel loops. On a machine that others use, and with 3 threads on 2 processors,
 * that takes ten times as long as the checks; the runtime reads this once, when it is loaded. */
static void wait_passively(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || setenv("OMP_WAIT_POLICY", "passive", 1) != 0) return;
    execv("/proc/self/exe", argv); /* if it fails, the checks are slow */
}

int main(int argc, char **argv) {
    options o = {.seed = 1, .repeat = 9, .chance = -1};
    ck_machine m = {0};
    ck_list list = {0};
    lw_error err;
    if (!parse(argc, argv, &o)) {
        fputs(usage, stderr);
        return 2;
    }
    if (!o.bench) wait_passively(argv);
    if (open_backends(&o, &m, &err) != LW_OK) {
        fprintf(stderr, "lw_check: %s\n", err.message);
        return o.precision == LW_PRECISION_BF16 && !o.cuda ? 77 : 1;
    }
    m.seed = o.seed;
    m.tactic = o.tactic;
    m.verbose = o.verbose;
    if (o.chance < 0) o.chance = o.all ? 400 : 40;
    list.seed = o.seed;
    list.gpu = m.backend->device != LW_DEVICE_CPU;
    list.flop_cap = 1e9 * (o.cap > 0 ? o.cap : o.bench ? 20 : o.all ? 200 : 0.06);
    list.param_cap = o.all || o.bench ? INT64_MAX : 8 << 20;
    if (!list_cases(&o, &m, &list)) m.failed++;
    printf("# lw_check %s, seed %llu, backend %s: %s\n", lw_version(), (unsigned long long)o.seed, m.backend->name,
           m.backend->description);
    printf("# %d cases; %d were there already, %d are over the cap of %g GFLOP%s\n", list.n, list.duplicates,
           list.too_large, list.flop_cap * 1e-9, o.all ? "" : " (--all)");
    if (o.bench) {
        if (m.backend->device == LW_DEVICE_CPU && o.roof.gflops <= 0) o.roof = ck_measure_roof(m.backend->threads);
        printf("# roof: %.1f GFLOP/s, %.1f GB/s\n", o.roof.gflops, o.roof.gbs);
        printf("op\tshape\ttactic\tdtype\tns\tgflops\tgbs\troof_percent\tx_ref\tmad_percent\tbest_ns\n");
    }
    double begin = lw_now_ms();
    for (int32_t i = 0; i < list.n; i++) {
        const ck_case *c = &list.at[i];
        if ((o.op && strcmp(o.op, lw_op_name(c->kind))) || (o.shape && !strstr(c->shape, o.shape))) continue;
        if (o.bench) ck_bench_case(&m, c, &o.roof, o.repeat);
        else ck_check_case(&m, c);
    }
    if (!o.bench) {
        ck_print_worst();
        printf("# %lld times a tactic did not take a case; %.1f s\n", (long long)m.unsupported,
               (lw_now_ms() - begin) * 1e-3);
    }
    printf("%lld passed, %lld failed\n", (long long)m.passed, (long long)m.failed);
    free(list.at);
    m.backend->close(m.backend);
    m.reference->close(m.reference);
    return m.failed ? 1 : 0;
}
