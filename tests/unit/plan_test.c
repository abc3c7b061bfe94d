/* SPDX-License-Identifier: MIT
 * Recording and planning: memory is laid out without overlaps, what a tactic does not take is split off and computes
 * the same, parameters are what their expressions say, a run allocates nothing, and no allocation that fails leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/ref/ref.h"
#include "ops/pass.h"
#include "ops/tune.h"
#include "tactics.h"

/* ---- a source whose tensors are named by their shape: "a.O.I.kh.kw", values by name and index */

static atomic_int reads;

static lw_status source_dims(void *user, const char *name, int64_t dims[4], lw_error *err) {
    long long d[4];
    (void)user;
    if (sscanf(name, "%*[^.].%lld.%lld.%lld.%lld", &d[0], &d[1], &d[2], &d[3]) != 4)
        return lw_fail(err, LW_EMODEL, "tensor %s is missing", name);
    for (int i = 0; i < 4; i++) dims[i] = d[i];
    return LW_OK;
}

static float value_of(const char *name, int64_t i) {
    uint32_t h = 2166136261u;
    for (const char *c = name; *c; c++) h = (h ^ (unsigned char)*c) * 16777619u;
    h = (h ^ (uint32_t)i) * 2654435761u;
    return (float)(h >> 8) / (float)(1 << 23) - 1;
}

static lw_status source_read(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    int64_t d[4];
    LW_TRY(source_dims(user, name, d, err));
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t i = row * each; i < (row + n) * each; i++) *dst++ = value_of(name, i);
    reads++;
    return LW_OK;
}

static const lw_tensor_source source = {NULL, source_dims, source_read};

static lw_params *new_params(void) {
    lw_params *params = NULL;
    assert_int_equal(lw_params_new(&params, &source, NULL), LW_OK);
    return params;
}

static void free_all(lw_plan *plan, lw_program *p, lw_params *params, lw_backend *b) {
    lw_plan_free(plan);
    lw_program_free(p);
    lw_params_free(params, b);
}

static lw_backend *open_cpu(bool references_only) {
    lw_backend *b = NULL;
    assert_int_equal(lw_cpu_open(&b, &(lw_cpu_params){.threads = 2, .references_only = references_only}, NULL), LW_OK);
    return b;
}

static uint32_t random_state;
static int32_t below(int32_t n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int32_t)((random_state >> 8) % (uint32_t)n);
}

/* ---- parameters */

static void expect_values(const lw_params *params, lw_param p, const float *want, int64_t n) {
    int64_t d[4];
    float got[4096];
    lw_param_dims(params, p, d);
    assert_int_equal(d[0] * d[1] * d[2] * d[3], n);
    assert_int_equal(lw_param_eval(params, p, got, NULL), LW_OK);
    for (int64_t i = 0; i < n; i++) assert_true(got[i] == want[i]);
}

static void test_expressions(void **state) {
    (void)state;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_param a = lw_rec_take(p, "a.4.3.1.1", 4, 3, 1, 1), b = lw_rec_take(p, "b.2.3.1.1", 0, 3, 0, 0);
    float want[64] = {0};

    assert_int_equal(lw_rec_take(p, "a.4.3.1.1", 4, 3, 1, 1).id, a.id);
    assert_int_not_equal(b.id, a.id);
    assert_true(lw_params_took(params, "a.4.3.1.1"));
    assert_false(lw_params_took(params, "a.4.3.1.2"));

    lw_param cat = lw_rec_concat(p, (lw_param[]){a, b, a}, 3);
    assert_int_equal(lw_rec_concat(p, (lw_param[]){a, b, a}, 3).id, cat.id);
    assert_int_not_equal(lw_rec_concat(p, (lw_param[]){a, a, b}, 3).id, cat.id);
    for (int i = 0; i < 12; i++) want[i] = want[18 + i] = value_of("a.4.3.1.1", i);
    for (int i = 0; i < 6; i++) want[12 + i] = value_of("b.2.3.1.1", i);
    expect_values(params, cat, want, 30);

    assert_int_equal(lw_rec_pad(p, a, 4, 3).id, a.id); /* nothing to add */
    lw_param padded = lw_rec_pad(p, b, 8, 4);
    memset(want, 0, sizeof want);
    for (int o = 0; o < 2; o++)
        for (int i = 0; i < 3; i++) want[o * 4 + i] = value_of("b.2.3.1.1", o * 3 + i);
    expect_values(params, padded, want, 32);

    lw_param window = lw_rec_pad(p, lw_rec_take(p, "w.2.1.2.2", 0, 0, 2, 2), 2, 2);
    memset(want, 0, sizeof want);
    for (int o = 0; o < 2; o++)
        for (int i = 0; i < 4; i++) want[o * 8 + i] = value_of("w.2.1.2.2", o * 4 + i);
    expect_values(params, window, want, 16);

    lw_param scaled = lw_rec_scale(p, lw_rec_pad(p, a, 4, 4), -0.5);
    memset(want, 0, sizeof want);
    for (int o = 0; o < 4; o++)
        for (int i = 0; i < 3; i++) want[o * 4 + i] = (float)((double)value_of("a.4.3.1.1", o * 3 + i) * -0.5);
    for (int o = 0; o < 4; o++) want[o * 4 + 3] = -0.0f;
    expect_values(params, scaled, want, 16);
    assert_string_equal(lw_param_key(params, scaled), "scale(pad(a.4.3.1.1,4,4),-0.5)");

    lw_param gamma = lw_rec_take(p, "gamma.3.1.1.1", 0, 0, 0, 0), beta = lw_rec_take(p, "beta.3.1.1.1", 0, 0, 0, 0),
             folded;
    lw_error err;
    lw_param bias = lw_rec_take(p, "bias.4.1.1.1", 0, 0, 0, 0);
    for (int with = 0; with < 2; with++) {
        for (int o = 0; o < 4; o++) {
            double offset = with ? (double)value_of("bias.4.1.1.1", o) : 0, mean = 0, row[3];
            for (int i = 0; i < 3; i++) {
                row[i] = (double)(value_of("a.4.3.1.1", o * 3 + i) * value_of("gamma.3.1.1.1", i));
                mean += row[i];
                offset += (double)value_of("a.4.3.1.1", o * 3 + i) * (double)value_of("beta.3.1.1.1", i);
            }
            for (int i = 0; i < 3; i++) want[o * 4 + i] = (float)(row[i] - mean / 3);
            want[o * 4 + 3] = (float)offset;
        }
        assert_int_equal(lw_param_fold(params, a, with ? bias : LW_NO_PARAM, gamma, beta, &folded, &err), LW_OK);
        expect_values(params, folded, want, 16);
    }
    assert_int_equal(lw_param_fold(params, a, LW_NO_PARAM, gamma, a, &folded, &err),
                     LW_EINTERNAL); /* 4 offsets for 3 columns */
    assert_int_equal(lw_param_fold(params, a, gamma, gamma, beta, &folded, &err),
                     LW_EINTERNAL); /* a bias of 3 for 4 rows */
    assert_int_equal(p->status, LW_OK);
    lw_program_free(p);
    lw_params_free(params, NULL);
}

static void test_bad_parameters(void **state) {
    (void)state;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_rec_take(p, "a.4.3.1.1", 4, 5, 1, 1);
    assert_int_equal(p->status, LW_EMODEL);
    assert_non_null(strstr(p->error.message, "a.4.3.1.1"));
    assert_non_null(strstr(p->error.message, "[4,3,1,1]"));
    assert_non_null(strstr(p->error.message, "[4,5,1,1]"));
    assert_false(lw_param_is(lw_rec_take(p, "b.2.3.1.1", 0, 0, 0, 0))); /* and nothing more is recorded */
    lw_program_free(p);

    p = lw_program_new("test", params, LW_F32);
    lw_param a = lw_rec_take(p, "a.4.3.1.1", 0, 0, 0, 0), c = lw_rec_take(p, "c.4.2.1.1", 0, 0, 0, 0);
    lw_rec_concat(p, (lw_param[]){a, c}, 2);
    assert_int_equal(p->status, LW_EMODEL);
    lw_program_free(p);

    p = lw_program_new("test", params, LW_F32);
    lw_rec_take(p, "missing", 0, 0, 0, 0);
    assert_int_equal(p->status, LW_EMODEL);
    assert_string_equal(p->error.message, "tensor missing is missing");
    lw_program_free(p);
    lw_params_free(params, NULL);
}

static void test_packs(void **state) {
    (void)state;
    lw_params *params = new_params();
    lw_backend *b = open_cpu(true);
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_param a = lw_rec_take(p, "a.4.3.1.1", 0, 0, 0, 0), half = lw_rec_scale(p, a, 0.5);
    int32_t first, again, other;
    assert_int_equal(lw_pack_plain(params, a, &first, NULL), LW_OK);
    assert_int_equal(lw_pack_plain(params, a, &again, NULL), LW_OK);
    assert_int_equal(lw_pack_plain(params, half, &other, NULL), LW_OK);
    assert_int_equal(first, again);
    assert_int_not_equal(first, other);
    assert_int_equal(lw_params_bytes(params), 2 * 12 * 4);
    reads = 0;
    assert_int_equal(lw_params_fill(params, b, NULL), LW_OK);
    assert_int_equal(lw_params_fill(params, b, NULL), LW_OK);
    assert_int_equal(reads, 2);
    const float *v = lw_pack_data(params, first);
    assert_true(v[5] == value_of("a.4.3.1.1", 5));
    lw_program_free(p);
    lw_params_free(params, b);
    b->close(b);
}

/* A source that fails from a row of a tensor on, whoever asks first. */
static lw_status read_until(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    const int64_t *last = user;
    if (*name == 'f' && row + n > *last)
        return lw_fail(err, LW_EMODEL, "%s: row %lld", name, (long long)(row > *last ? row : *last));
    int64_t d[4];
    LW_TRY(source_dims(NULL, name, d, err));
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t i = row * each; i < (row + n) * each; i++) *dst++ = value_of(name, i);
    return LW_OK;
}

/* Parameters of many slices: each expression's rows are those of the whole, whichever threads read them, and what fails
 * in the middle leaves nothing behind. */
static void test_slices(void **state) {
    (void)state;
    enum { O = 1400, I = 1000, WIDE = 1009 };
    int64_t last = INT64_MAX;
    lw_tensor_source slow = {&last, source_dims, read_until};
    lw_params *params = NULL;
    lw_error err;
    assert_int_equal(lw_params_new(&params, &slow, &err), LW_OK);
    lw_backend *b = open_cpu(true);
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_param a = lw_rec_take(p, "a.1400.1000.1.1", 0, 0, 0, 0), f = lw_rec_take(p, "f.600.1000.1.1", 0, 0, 0, 0),
             tail = lw_rec_take(p, "b.3.1000.1.1", 0, 0, 0, 0),
             all = lw_rec_scale(p, lw_rec_pad(p, lw_rec_concat(p, (lw_param[]){tail, a, f}, 3), 2100, WIDE), 2),
             gamma = lw_rec_take(p, "gamma.1000.1.1.1", 0, 0, 0, 0),
             beta = lw_rec_take(p, "beta.1000.1.1.1", 0, 0, 0, 0), fold;
    int32_t plain, whole, folded;
    assert_int_equal(p->status, LW_OK);
    assert_int_equal(lw_pack_plain(params, a, &plain, &err), LW_OK);
    assert_int_equal(lw_pack_plain(params, all, &whole, &err), LW_OK);
    assert_int_equal(lw_param_fold(params, a, LW_NO_PARAM, gamma, beta, &fold, &err), LW_OK);
    assert_int_equal(lw_pack_plain(params, fold, &folded, &err), LW_OK);

    last = 530; /* in the second slice of f, and in the middle of one of all */
    assert_int_equal(lw_params_fill(params, b, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "f.600.1000.1.1: row 530"));
    assert_null(lw_pack_data(params, plain));
    assert_int_equal(lw_params_filled_bytes(params), 0);
    last = INT64_MAX;
    long calls = 0;
    for (lw_status status = LW_ENOMEM; status != LW_OK; calls++) {
        lw_fault_arm(calls + 1, false);
        status = lw_params_fill(params, b, &err);
        lw_fault_arm(0, false);
        assert_true(status == LW_OK || status == LW_ENOMEM);
        assert_int_equal(lw_params_filled_bytes(params), status == LW_OK ? lw_params_bytes(params) : 0);
    }
    assert_true(calls > 4);
    const float *v = lw_pack_data(params, plain), *w = lw_pack_data(params, whole), *u = lw_pack_data(params, folded);
    for (int64_t o = 0; o < O; o++) {
        double offset = 0, sum = 0;
        for (int64_t i = 0; i < I; i++) {
            offset += (double)v[o * I + i] * (double)value_of("beta.1000.1.1.1", i);
            sum += (double)(v[o * I + i] * value_of("gamma.1000.1.1.1", i));
        }
        for (int64_t i = 0; i < I; i++)
            assert_true(*u++ == (float)((double)(v[o * I + i] * value_of("gamma.1000.1.1.1", i)) - sum / (double)I));
        assert_true(*u++ == (float)offset);
    }
    for (int64_t i = 0; i < (int64_t)O * I; i++) assert_true(v[i] == value_of("a.1400.1000.1.1", i));
    for (int64_t o = 0; o < 2100; o++)
        for (int64_t i = 0; i < WIDE; i++) {
            float want = o >= 3 + O + 600 || i >= I ? 0
                         : o < 3                    ? value_of("b.3.1000.1.1", o * I + i)
                         : o < 3 + O                ? value_of("a.1400.1000.1.1", (o - 3) * I + i)
                                                    : value_of("f.600.1000.1.1", (o - 3 - O) * I + i);
            assert_true(*w++ == 2 * want);
        }
    lw_program_free(p);
    lw_params_free(params, b);
    b->close(b);
}

/* ---- recording */

static void test_statistics_once(void **state) {
    (void)state;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_view v = lw_rec_temp(p, LW_F32, 1, 2, 9, 9, 24);
    lw_view s = lw_rec_stats(p, v), again = lw_rec_stats(p, v);
    assert_int_equal(p->n_ops, 1);
    assert_int_equal(s.buf, again.buf);
    assert_int_equal(s.w, 2); /* 81 rows in parts of 64 */
    lw_view wide = lw_view_guidance(v, 2);
    s = lw_rec_stats(p, wide);
    assert_int_equal(s.g, 2);
    assert_int_equal(s.sg, 0);
    again = lw_rec_stats(p, wide);
    assert_int_equal(s.buf, again.buf);
    int32_t n = p->n_ops;
    s = lw_rec_stats(p, lw_view_channels(v, 8, 8));
    assert_int_equal(p->n_ops, n + 1);
    assert_int_not_equal(s.buf, again.buf);
    assert_int_equal(p->status, LW_OK);
    lw_program_free(p);
    lw_params_free(params, NULL);
}

static void test_externs(void **state) {
    (void)state;
    lw_params *params = new_params();
    lw_backend *b = open_cpu(true);
    lw_program *p = lw_program_new("test", params, LW_F32);
    lw_view x = lw_rec_extern(p, "x", LW_F32, 1, 1, 2, 2, 8), y = lw_rec_extern(p, "y", LW_U8, 1, 1, 2, 2, 3);
    assert_int_equal(lw_rec_extern(p, "x", LW_F32, 1, 1, 2, 2, 8).buf, x.buf);
    lw_args *m = lw_rec_op(p, LW_OP_PACK_U8, "pack");
    m->pack = (lw_pack_args){.in = x, .out = y, .status = LW_NO_VIEW};
    lw_plan *plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_extern_bytes(plan, "x"), 2 * 2 * 8 * 4);
    assert_int_equal(lw_plan_extern_bytes(plan, "y"), 2 * 2 * 3);
    assert_int_equal(lw_plan_extern_bytes(plan, "z"), 0);
    assert_int_equal(lw_plan_bind(plan, "z", NULL, NULL), LW_EINTERNAL);
    assert_int_equal(lw_plan_temp_bytes(plan), 0);
    lw_plan_free(plan);
    lw_rec_extern(p, "x", LW_F32, 1, 1, 2, 3, 8);
    assert_int_equal(p->status, LW_EINTERNAL);
    plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_EINTERNAL);
    assert_null(plan);
    lw_program_free(p);
    lw_params_free(params, NULL);
    b->close(b);
}

/* ---- placing: a backend that computes nothing, but knows which buffer every byte of the workspace belongs to */

typedef struct owner {
    char *temp;
    int64_t bytes;
    int32_t *of; /* by byte: the buffer that wrote it last, -1 nobody, -2 a workspace */
    size_t workspace;
} owner;

static owner own;

static bool watch_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    return (void)b, (void)params, op->n_member == 1;
}

static lw_status watch_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                               lw_error *err) {
    (void)b, (void)params, (void)op, (void)err;
    *state = NULL;
    *workspace_bytes = own.workspace = below(3) ? (size_t)below(700) : 0;
    size_t *kept = lw_alloc(1, sizeof *kept);
    *kept = own.workspace;
    *state = kept;
    return LW_OK;
}

typedef struct use {
    const lw_run *run;
    bool write;
} use;

static void hull(const lw_run *run, const lw_view *v, char **begin, int64_t *bytes) {
    *begin = run->bases[v->buf] + v->off;
    *bytes = ((v->g - 1) * v->sg + (v->n - 1) * v->sn + (v->h - 1) * v->sh + (v->w - 1) * v->sw + v->c) *
             (int64_t)lw_dtype_bytes(v->dtype);
}

static void touch_view(void *user, lw_view *v, bool written) {
    const use *u = user;
    char *begin;
    int64_t bytes;
    if (!lw_view_is(*v) || written != u->write) return;
    hull(u->run, v, &begin, &bytes);
    if (begin < own.temp || begin >= own.temp + own.bytes) return; /* an extern: not in the workspace */
    assert_true(begin + bytes <= own.temp + own.bytes);
    int64_t first = begin - own.temp;
    assert_int_equal((first - v->off) % 64, 0);
    for (int64_t i = first; i < first + bytes; i++) {
        if (u->write) own.of[i] = v->buf;
        else assert_int_equal(own.of[i], v->buf);
    }
}

static lw_status watch_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    (void)b, (void)params, (void)err;
    lw_args copy = *op->m;
    use reading = {run, false}, writing = {run, true};
    size_t workspace = *(size_t *)state;
    lw_op_views(op->kind, &copy, touch_view, &reading);
    if (workspace) {
        char *begin = run->workspace;
        assert_true(begin >= own.temp && begin + workspace <= own.temp + own.bytes);
        assert_int_equal((begin - own.temp) % 64, 0);
        for (size_t i = 0; i < workspace; i++) own.of[begin - own.temp + (int64_t)i] = -2;
    }
    lw_op_views(op->kind, &copy, touch_view, &writing);
    lw_op_views(op->kind, &copy, touch_view, &reading); /* neither hurt the inputs, nor the outputs the workspace */
    for (size_t i = 0; i < workspace; i++) assert_int_equal(own.of[(char *)run->workspace - own.temp + (int64_t)i], -2);
    return LW_OK;
}

static lw_tactic watch(lw_op_kind kind, uint32_t takes) {
    return (lw_tactic){"watch", kind, takes, watch_supports, watch_prepare, watch_run, ref_release};
}

/* A chain of random ops over any of the tensors made so far, slices among them. */
static void record_random(lw_program *p, int32_t n_ops) {
    lw_view made[64];
    int32_t n = 0;
    made[n++] = lw_rec_extern(p, "in", LW_F32, 1, 1, 4, 4, 16);
    for (int32_t i = 0; i < n_ops; i++) {
        lw_view a = made[below(n)];
        int32_t c = 8 * (1 + below(6));
        switch (below(4)) {
        case 0: {
            lw_args *m = lw_rec_op(p, LW_OP_APPLY, "apply");
            lw_view out = lw_rec_temp(p, LW_F32, 1, 1, 4, 4, a.c);
            m->apply.in = (lw_prologue){
                .a = a, .b = LW_NO_VIEW, .act = LW_ACT_SILU, .norm = {.stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW}};
            m->apply.out = out;
            made[n++] = out;
            break;
        }
        case 1: lw_rec_stats(p, a); break;
        case 2: made[n++] = a.c > 8 ? lw_view_channels(a, 8, a.c - 8) : a; break;
        default: {
            char name[32];
            lw_args *m = lw_rec_op(p, LW_OP_CONV2D, "conv");
            snprintf(name, sizeof name, "w.%d.%d.1.1", c, a.c);
            lw_product_args *q = &m->product;
            q->in = (lw_prologue){.a = a,
                                  .b = LW_NO_VIEW,
                                  .act = below(2) ? LW_ACT_SILU : LW_ACT_NONE,
                                  .norm = {.stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW}};
            q->w = lw_rec_take(p, name, 0, 0, 0, 0);
            q->epi.act = below(2) ? LW_ACT_GELU : LW_ACT_NONE;
            q->out = lw_rec_temp(p, LW_F32, 1, 1, 4, 4, c);
            for (int32_t k = n - 1; k > 0; k--)
                if (made[k].c == c) q->epi.residual = made[k];
            made[n++] = q->out;
        }
        }
    }
    lw_args *m = lw_rec_op(p, LW_OP_APPLY, "out");
    lw_view last = made[n - 1];
    m->apply.in = (lw_prologue){.a = last, .b = LW_NO_VIEW, .norm = {.stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW}};
    m->apply.out = lw_rec_extern(p, "out", LW_F32, 1, 1, 4, 4, last.c);
}

static void test_no_overlaps(void **state) {
    (void)state;
    lw_backend *b = open_cpu(true);
    const lw_tactic *const *tactics = b->tactics;
    int32_t n_tactics = b->n_tactics;
    static char externs[2][65536];
    for (uint32_t seed = 1; seed <= 300; seed++) {
        random_state = seed;
        lw_tactic apply = watch(LW_OP_APPLY, LW_TAKES_ALL), combine = watch(LW_OP_COMBINE, LW_TAKES_ALL),
                  stats = watch(LW_OP_NORM_STATS, LW_TAKES_ALL),
                  conv = watch(LW_OP_CONV2D, seed % 3 ? (uint32_t)below(256) : (uint32_t)LW_TAKES_ALL);
        b->tactics = (const lw_tactic *const[]){&apply, &combine, &stats, &conv};
        b->n_tactics = 4;
        lw_params *params = new_params();
        lw_program *p = lw_program_new("random", params, LW_F32);
        lw_plan *plan = NULL;
        record_random(p, 5 + below(45));
        assert_int_equal(p->status, LW_OK);
        assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
        int64_t sum = 0;
        for (int32_t i = 0; i < lw_plan_n_ops(plan); i++) sum += (int64_t)lw_plan_op(plan, i).workspace_bytes + 128;
        for (int32_t i = 0; i < p->n_buffers; i++) sum += p->buffers[i].bytes + 64;
        own = (owner){.bytes = (int64_t)lw_plan_temp_bytes(plan)};
        if (seed % 3 == 0) assert_true(own.bytes <= sum); /* nothing was added by lowering */
        own.temp = lw_alloc_aligned((size_t)own.bytes + 64);
        own.of = lw_alloc((size_t)own.bytes + 1, sizeof *own.of);
        for (int64_t i = 0; i < own.bytes; i++) own.of[i] = -1;
        lw_plan_bind(plan, "in", externs[0], NULL);
        lw_plan_bind(plan, "out", externs[1], NULL);
        lw_plan_bind_temp(plan, own.temp);
        assert_int_equal(lw_plan_run(plan, NULL), LW_OK);
        lw_free(own.temp);
        lw_free(own.of);
        free_all(plan, p, params, b);
    }
    b->tactics = tactics;
    b->n_tactics = n_tactics;
    b->close(b);
}

/* ---- lowering: a reference that takes only some fields must be given no others, and the whole must stay the same */

typedef struct variant {
    bool prologue, addend, scale, shortcut;
    int residual; /* 1 dense, 2 shared in g */
    lw_act act;
} variant;

enum { G = 2, H = 4, C = 16, O = 24 };

static lw_view input(lw_program *p, const char *name, int32_t g, int32_t h, int32_t c) {
    return lw_rec_extern(p, name, LW_F32, g, 1, h, h, c);
}

static void record_product(lw_program *p, const variant *v) {
    int32_t wide = v->act == LW_ACT_GEGLU ? 2 * O : O;
    char name[32];
    lw_view a = input(p, "a", v->prologue ? 1 : G, v->prologue ? H / 2 : H, C);
    lw_view stats = v->prologue ? lw_rec_stats(p, a) : LW_NO_VIEW;
    lw_args *m = lw_rec_op(p, LW_OP_CONV2D, "product");
    if (!m) return;
    lw_product_args *q = &m->product;
    q->in = (lw_prologue){
        .a = a,
        .b = LW_NO_VIEW,
        .norm = {.gamma = LW_NO_PARAM, .beta = LW_NO_PARAM, .stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW}};
    if (v->prologue) {
        q->in.a = lw_view_guidance(a, G);
        q->in.act = LW_ACT_SILU;
        q->in.up2 = true;
        q->in.norm = (lw_norm){.kind = LW_NORM_GROUP,
                               .groups = 4,
                               .eps = 1e-5f,
                               .stats_b = LW_NO_VIEW,
                               .stats_a = lw_view_guidance(stats, G),
                               .rows_per_part = lw_rows_per_part(H * H / 4),
                               .gamma = lw_rec_take(p, "gamma.16.1.1.1", 0, 0, 0, 0),
                               .beta = lw_rec_take(p, "beta.16.1.1.1", 0, 0, 0, 0)};
    }
    snprintf(name, sizeof name, "w.%d.%d.3.3", wide, C);
    q->w = lw_rec_take(p, name, 0, 0, 0, 0);
    snprintf(name, sizeof name, "bias.%d.1.1.1", wide);
    q->bias = lw_rec_take(p, name, 0, 0, 0, 0);
    q->kh = q->kw = 3;
    q->pad_top = q->pad_left = 1;
    q->epi.act = v->act;
    if (v->addend) q->epi.addend = lw_view_guidance(lw_rec_extern(p, "addend", LW_F32, 1, 1, 1, 1, wide), G);
    if (v->scale) q->epi.scale = lw_rec_extern(p, "scale", LW_F32, G, 1, 1, 1, 4);
    if (v->residual) q->epi.residual = lw_view_guidance(input(p, "residual", v->residual == 1 ? G : 1, H, O), G);
    if (v->shortcut) {
        q->shortcut_a = input(p, "sa", G, H, C);
        q->shortcut_b = lw_view_guidance(input(p, "sb", 1, H, 8), G);
        q->shortcut_w = lw_rec_take(p, "sw.24.24.1.1", 0, 0, 0, 0);
        q->shortcut_bias = lw_rec_take(p, "sbias.24.1.1.1", 0, 0, 0, 0);
    }
    q->out = input(p, "out", G, H, O);
}

static const lw_tactic *limited;

/* The tactic under test was given nothing that it does not take. */
static void expect_taken(const lw_op *op) {
    const lw_product_args *q = &op->m->product;
    uint32_t takes = limited->takes;
    assert_true(takes & LW_TAKES_PROLOGUE || (q->in.norm.kind == LW_NORM_NONE && !q->in.up2 && !q->in.act));
    assert_true(takes & LW_TAKES_PROLOGUE || (lw_view_dense(&q->in.a) && !lw_view_is(q->in.b)));
    assert_true(takes & LW_TAKES_ADDEND || !lw_view_is(q->epi.addend));
    assert_true(takes & LW_TAKES_GEGLU || q->epi.act != LW_ACT_GEGLU);
    assert_true(takes & LW_TAKES_ACT || q->epi.act == LW_ACT_NONE || q->epi.act == LW_ACT_GEGLU);
    assert_true(takes & LW_TAKES_SCALE || !lw_view_is(q->epi.scale));
    assert_true(takes & LW_TAKES_RESIDUAL || !lw_view_is(q->epi.residual));
    assert_true(takes & LW_TAKES_ANY_RESIDUAL || !lw_view_is(q->epi.residual) || lw_view_dense(&q->epi.residual));
    assert_true(takes & LW_TAKES_SHORTCUT || !lw_view_is(q->shortcut_a));
}

/* Runs the variant with first before the references; out: G * H * H * O floats. */
static int32_t run_variant(lw_backend *b, const variant *v, const lw_tactic *first, float *out) {
    tactic_list list;
    int32_t steps;
    put_first(&list, b, first);
    lw_params *params = new_params();
    lw_program *p = lw_program_new("variant", params, LW_F32);
    lw_plan *plan = NULL;
    lw_error err = {.message = ""};
    record_product(p, v);
    if (lw_plan_make(&plan, b, p, &err) != LW_OK) fail_msg("%s", err.message);
    assert_int_equal(lw_params_fill(params, b, NULL), LW_OK);
    float *bound[8] = {0};
    void *temp = lw_alloc_aligned((size_t)lw_plan_temp_bytes(plan));
    memset(temp, 0xff, (size_t)lw_plan_temp_bytes(plan));
    for (int32_t i = 0; i < p->n_buffers && i < 8; i++) {
        if (p->buffers[i].kind != LW_BUFFER_EXTERN) continue;
        bound[i] = lw_alloc_aligned((size_t)p->buffers[i].bytes);
        for (int64_t k = 0; k < p->buffers[i].bytes / 4; k++) bound[i][k] = value_of(p->buffers[i].name, k);
        lw_plan_bind(plan, p->buffers[i].name, bound[i], NULL);
    }
    lw_plan_bind_temp(plan, temp);
    assert_int_equal(lw_plan_run(plan, NULL), LW_OK);
    steps = lw_plan_n_ops(plan);
    for (int32_t i = 0; i < steps && first; i++)
        if (lw_plan_op(plan, i).tactic == first) expect_taken(lw_plan_op(plan, i).op);
    for (int32_t i = 0; i < p->n_buffers && i < 8; i++) {
        if (bound[i] && !strcmp(p->buffers[i].name, "out")) memcpy(out, bound[i], G * H * H * O * sizeof *out);
        lw_free(bound[i]);
    }
    lw_free(temp);
    free_all(plan, p, params, b);
    put_back(&list, b);
    return steps;
}

/* A tactic that is there for a norm before the product, and for nothing else. */
static bool wants_norm(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    return op->m->product.in.norm.kind != LW_NORM_NONE;
}

static void test_lowering(void **state) {
    (void)state;
    static const variant variants[] = {
        {.act = LW_ACT_NONE},
        {.prologue = true, .act = LW_ACT_SILU},
        {.addend = true, .act = LW_ACT_GELU, .scale = true, .residual = 1},
        {.addend = true, .act = LW_ACT_GEGLU, .scale = true, .residual = 2},
        {.prologue = true, .addend = true, .act = LW_ACT_QUICK_GELU, .scale = true, .shortcut = true},
        {.shortcut = true, .act = LW_ACT_NONE},
        {.scale = true, .residual = 1},
        {.prologue = true, .residual = 2},
    };
    static float want[G * H * H * O], got[G * H * H * O];
    lw_backend *b = open_cpu(true);
    for (size_t k = 0; k < sizeof variants / sizeof *variants; k++) {
        run_variant(b, &variants[k], NULL, want);
        for (uint32_t takes = 0; takes < 512; takes++) {
            lw_tactic t = lw_ref_conv2d;
            t.name = "limited";
            t.takes = takes % 256;
            if (takes >= 256) t.supports = wants_norm; /* what is left, once the norm is apart, is another's */
            limited = &t;
            run_variant(b, &variants[k], &t, got);
            double diff = 0, sum = 0;
            for (size_t i = 0; i < sizeof got / sizeof *got; i++) {
                diff += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
                sum += (double)want[i] * (double)want[i];
            }
            if (!(diff <= 1e-12 * sum))
                fail_msg("variant %zu, takes 0x%x%s: NMSE %g", k, t.takes, takes >= 256 ? " with a norm" : "",
                         diff / sum);
        }
    }
    b->close(b);
}

/* ---- statistics of rows from the product that makes them */

enum { ROWS = 6, WIDE_ROW = 128 };
static int32_t with_stats, without_stats; /* normed linears that ran */

/* The statistics are there and right, or there are none. */
static lw_status reading_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                             lw_error *err) {
    const lw_prologue *in = &op->m->product.in;
    if (in->norm.kind == LW_NORM_LAYER && !lw_view_is(in->norm.stats_a)) without_stats++;
    if (in->norm.kind == LW_NORM_LAYER && lw_view_is(in->norm.stats_a)) {
        const float *x = lw_at(run, in->a), *stats = lw_at(run, in->norm.stats_a);
        with_stats++;
        for (int part = 0; part < G * ROWS * WIDE_ROW / LW_ROW_PART; part++) {
            double mean = 0, squares = 0;
            for (int i = 0; i < LW_ROW_PART; i++) mean += (double)x[part * LW_ROW_PART + i] / LW_ROW_PART;
            for (int i = 0; i < LW_ROW_PART; i++) {
                const double d = (double)x[part * LW_ROW_PART + i] - mean;
                squares += d * d;
            }
            assert_true(fabs((double)stats[2 * part] - mean) <= 1e-5 * (1 + fabs(mean)));
            assert_true(fabs((double)stats[2 * part + 1] - squares) <= 1e-5 * (1 + squares));
        }
    }
    return lw_ref_linear.run(b, params, op, state, run, err);
}

/* A linear with a residual, another that norms its rows; takes: of both. */
static void run_rows(uint32_t takes, bool unfused, float *out) {
    lw_backend *b = open_cpu(true), own_backend = *b;
    lw_tactic t = lw_ref_linear;
    t.name = "reading", t.run = reading_run, t.takes = takes;
    const lw_tactic *all[64] = {&t};
    int32_t n = 1;
    for (int32_t i = 0; i < b->n_tactics; i++)
        if (b->tactics[i]->kind != LW_OP_LINEAR) all[n++] = b->tactics[i];
    own_backend.tactics = all, own_backend.n_tactics = n;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("rows", params, LW_F32);
    lw_plan *plan = NULL;
    lw_error err = {.message = ""};
    lw_view x = lw_rec_extern(p, "x", LW_F32, G, 1, 1, ROWS, 16);
    lw_args *m = lw_rec_op(p, LW_OP_LINEAR, "first");
    lw_view h = lw_rec_temp(p, LW_F32, G, 1, 1, ROWS, WIDE_ROW);
    m->product.in = lw_plain(x);
    m->product.w = lw_rec_take(p, "w.128.16.1.1", 0, 0, 0, 0);
    m->product.epi.residual = lw_rec_extern(p, "residual", LW_F32, G, 1, 1, ROWS, WIDE_ROW);
    m->product.out = h;
    m = lw_rec_op(p, LW_OP_LINEAR, "second");
    m->product.in = lw_plain(h);
    m->product.in.norm.kind = LW_NORM_LAYER;
    m->product.in.norm.eps = 1e-5f;
    m->product.in.norm.gamma = lw_rec_take(p, "gamma.128.1.1.1", 0, 0, 0, 0);
    m->product.in.norm.beta = lw_rec_take(p, "beta.128.1.1.1", 0, 0, 0, 0);
    m->product.w = lw_rec_take(p, "w.24.128.1.1", 0, 0, 0, 0);
    m->product.out = lw_rec_extern(p, "out", LW_F32, G, 1, 1, ROWS, O);
    lw_pass_row_stats(p);
    assert_int_equal(p->status, LW_OK);
    assert_true(lw_view_is(p->ops[0].m->product.row_stats));
    if (lw_plan_make_with(&plan, &own_backend, &(lw_plan_options){.unfused = unfused}, p, &err) != LW_OK)
        fail_msg("%s", err.message);
    assert_int_equal(lw_params_fill(params, b, NULL), LW_OK);
    void *bound[3] = {0}, *temp = lw_alloc_aligned((size_t)lw_plan_temp_bytes(plan));
    static const char *const names[] = {"x", "residual", "out"};
    memset(temp, 0xff, (size_t)lw_plan_temp_bytes(plan));
    for (int i = 0; i < 3; i++) {
        const int64_t bytes = lw_plan_extern_bytes(plan, names[i]);
        float *at = bound[i] = lw_alloc_aligned((size_t)bytes);
        for (int64_t k = 0; k < bytes / 4; k++) at[k] = value_of(names[i], k);
        lw_plan_bind(plan, names[i], at, NULL);
    }
    lw_plan_bind_temp(plan, temp);
    with_stats = without_stats = 0;
    assert_int_equal(lw_plan_run(plan, NULL), LW_OK);
    memcpy(out, bound[2], G * ROWS * O * sizeof *out);
    for (int i = 0; i < 3; i++) lw_free(bound[i]);
    lw_free(temp);
    free_all(plan, p, params, b);
    b->close(b);
}

static void expect_near(const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        assert_true(fabs((double)got[i] - (double)want[i]) <= 1e-4 * (1 + fabs((double)want[i])));
}

static void test_row_statistics(void **state) {
    (void)state;
    const uint32_t all = LW_TAKES_ALL | LW_TAKES_ROW_STATS;
    float want[G * ROWS * O], got[G * ROWS * O];
    run_rows(LW_TAKES_ALL, false, want); /* nobody writes them */
    assert_true(with_stats == 0 && without_stats == 1);
    run_rows(all, false, got);
    assert_true(with_stats == 1 && without_stats == 0);
    assert_memory_equal(got, want, sizeof got);
    run_rows(all & ~(uint32_t)LW_TAKES_RESIDUAL, false, got); /* the rows are made by a sum behind the product */
    assert_true(with_stats == 0 && without_stats == 1);
    expect_near(got, want, sizeof got / sizeof *got);
    run_rows(all & ~(uint32_t)LW_TAKES_PROLOGUE, false, got); /* the norm is an op of its own */
    assert_true(with_stats == 0 && without_stats == 0);
    run_rows(all, true, got);
    assert_true(with_stats == 0 && without_stats == 0);
    expect_near(got, want, sizeof got / sizeof *got);
}

/* ---- a tactic that makes a norm's statistics itself */

static bool own_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    return op->m->apply.in.norm.kind == LW_NORM_GROUP && op->m->apply.in.a.g == 1;
}

static lw_status own_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                         lw_error *err) {
    const lw_apply_args *m = &op->m->apply;
    const lw_norm *norm = &m->in.norm;
    const int32_t c = m->out.c, per = c / norm->groups, rows = m->out.h * m->out.w;
    const float *in = lw_at(run, m->in.a);
    float *out = lw_at(run, m->out), gamma[C], beta[C];
    (void)b, (void)state;
    assert_false(lw_view_is(norm->stats_a));
    LW_TRY(lw_param_eval(params, norm->gamma, gamma, err));
    LW_TRY(lw_param_eval(params, norm->beta, beta, err));
    for (int32_t k = 0; k < norm->groups; k++) {
        double mean = 0, m2 = 0;
        for (int32_t i = 0; i < rows * per; i++) mean += (double)in[i / per * c + k * per + i % per];
        mean /= rows * per;
        for (int32_t i = 0; i < rows * per; i++) {
            double d = (double)in[i / per * c + k * per + i % per] - mean;
            m2 += d * d;
        }
        for (int32_t i = 0; i < rows * per; i++) {
            int32_t ch = k * per + i % per, at = i / per * c + ch;
            out[at] =
                (float)(((double)in[at] - mean) / sqrt(m2 / (rows * per) + (double)norm->eps)) * gamma[ch] + beta[ch];
        }
    }
    return LW_OK;
}

static lw_status own_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                             lw_error *err) {
    (void)b, (void)params, (void)op, (void)workspace_bytes, (void)err;
    *state = NULL;
    return LW_OK;
}

/* A group norm of "a" into "out"; where `reader`, into "more" too, in a way that the tactic does not take. */
static int32_t run_norm(lw_backend *b, const lw_tactic *first, bool reader, bool unfused, float *out) {
    tactic_list list;
    put_first(&list, b, first);
    lw_params *params = new_params();
    lw_program *p = lw_program_new("norm", params, LW_F32);
    lw_view a = input(p, "a", 1, H, C), stats = lw_rec_stats(p, a);
    lw_norm norm = {.kind = LW_NORM_GROUP,
                    .groups = 4,
                    .eps = 1e-5f,
                    .stats_a = stats,
                    .stats_b = LW_NO_VIEW,
                    .rows_per_part = lw_rows_per_part(H * H),
                    .gamma = lw_rec_take(p, "gamma.16.1.1.1", 0, 0, 0, 0),
                    .beta = lw_rec_take(p, "beta.16.1.1.1", 0, 0, 0, 0)};
    lw_rec_op(p, LW_OP_APPLY, "norm")->apply =
        (lw_apply_args){.in = {.a = a, .b = LW_NO_VIEW, .norm = norm}, .out = input(p, "out", 1, H, C)};
    if (reader) {
        norm.stats_a = lw_view_guidance(stats, G);
        lw_rec_op(p, LW_OP_APPLY, "more")->apply = (lw_apply_args){
            .in = {.a = lw_view_guidance(a, G), .b = LW_NO_VIEW, .norm = norm}, .out = input(p, "more", G, H, C)};
    }
    lw_plan *plan = NULL;
    lw_error err = {.message = ""};
    if (lw_plan_make_with(&plan, b, &(lw_plan_options){.unfused = unfused}, p, &err) != LW_OK)
        fail_msg("%s", err.message);
    assert_int_equal(lw_params_fill(params, b, NULL), LW_OK);
    static float in[H * H * C], more[G * H * H * C];
    for (int i = 0; i < H * H * C; i++) in[i] = value_of("a", i);
    lw_plan_bind(plan, "a", in, NULL);
    lw_plan_bind(plan, "out", out, NULL);
    if (reader) lw_plan_bind(plan, "more", more, NULL);
    void *temp = lw_alloc_aligned((size_t)lw_plan_temp_bytes(plan) + 1);
    lw_plan_bind_temp(plan, temp);
    assert_int_equal(lw_plan_run(plan, NULL), LW_OK);
    int32_t steps = lw_plan_n_ops(plan);
    lw_free(temp);
    free_all(plan, p, params, b);
    put_back(&list, b);
    return steps;
}

static void test_own_statistics(void **state) {
    (void)state;
    static const lw_tactic first = {"own",   LW_OP_APPLY, LW_TAKES_ALL | LW_TAKES_STATS, own_supports, own_prepare,
                                    own_run, NULL};
    static float want[H * H * C], got[H * H * C];
    lw_backend *b = open_cpu(true);
    assert_int_equal(run_norm(b, NULL, false, false, want), 2); /* statistics, norm */
    for (int reader = 0; reader < 2; reader++) {
        memset(got, 0, sizeof got);
        assert_int_equal(run_norm(b, &first, reader != 0, false, got), reader ? 3 : 1); /* what is read is made */
        for (int i = 0; i < H * H * C; i++) assert_true(fabsf(got[i] - want[i]) < 1e-4f);
    }
    assert_int_equal(run_norm(b, &first, false, true, got), 2); /* one thing an op: not this tactic */
    b->close(b);
}

/* Several members: one step each, or one step in all for a tactic that takes them. */
static void test_members(void **state) {
    (void)state;
    lw_backend *b = open_cpu(true);
    tactic_list list;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("members", params, LW_F32);
    lw_args members[3];
    for (int32_t i = 0; i < 3; i++) {
        variant v = {.act = LW_ACT_SILU, .addend = true};
        record_product(p, &v);
        members[i] = *p->ops[p->n_ops - 1].m;
        p->n_ops--;
    }
    p->ops[p->n_ops++] = (lw_op){.kind = LW_OP_CONV2D, .n_member = 3, .name = "three", .m = members};
    lw_plan *plan = NULL;
    int32_t others = p->n_ops - 1;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), others + 3);
    for (int32_t i = others; i < others + 3; i++) assert_int_equal(lw_plan_op(plan, i).op->n_member, 1);
    lw_plan_free(plan);

    lw_tactic all = watch(LW_OP_CONV2D, LW_TAKES_ALL | LW_TAKES_MEMBERS);
    all.supports = lw_ref_conv2d.supports; /* one member alone: not the three */
    put_first(&list, b, &all);
    plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), others + 3);
    free_all(plan, p, params, b);
    put_back(&list, b);
    b->close(b);
}

static bool any_members(const lw_backend *b, const lw_params *params, const lw_op *op) {
    return (void)b, (void)params, op->n_member >= 1;
}

static bool up_to_four(const lw_backend *b, const lw_params *params, const lw_op *op) {
    return (void)b, (void)params, op->n_member <= 4;
}

/* Nine members for a tactic that takes four. */
static void test_many_members(void **state) {
    (void)state;
    lw_backend *b = open_cpu(true);
    tactic_list list;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("members", params, LW_F32);
    variant v = {.act = LW_ACT_SILU, .addend = true};
    lw_args members[9];
    record_product(p, &v);
    const int32_t others = p->n_ops - 1;
    for (int i = 0; i < 9; i++) members[i] = *p->ops[others].m;
    p->ops[others] = (lw_op){.kind = LW_OP_CONV2D, .n_member = 9, .name = "nine", .m = members};
    lw_tactic t = watch(LW_OP_CONV2D, LW_TAKES_ALL | LW_TAKES_MEMBERS);
    t.supports = up_to_four;
    put_first(&list, b, &t);
    lw_plan *plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), others + 3);
    for (int i = 0; i < 3; i++) assert_int_equal(lw_plan_op(plan, others + i).op->n_member, 3);
    lw_plan_free(plan);

    plan = NULL;
    assert_int_equal(lw_plan_make_with(&plan, b, &(lw_plan_options){.unfused = true}, p, NULL), LW_OK);
    for (int i = 0; i < lw_plan_n_ops(plan); i++) assert_int_equal(lw_plan_op(plan, i).op->n_member, 1);
    free_all(plan, p, params, b);
    put_back(&list, b);
    b->close(b);
}

static void test_members_at_once(void **state) {
    (void)state;
    lw_backend *b = open_cpu(true);
    tactic_list list;
    lw_params *params = new_params();
    lw_program *p = lw_program_new("members", params, LW_F32);
    variant v = {.act = LW_ACT_SILU, .addend = true};
    lw_args members[2];
    record_product(p, &v);
    members[0] = members[1] = *p->ops[p->n_ops - 1].m;
    p->ops[p->n_ops - 1] = (lw_op){.kind = LW_OP_CONV2D, .n_member = 2, .name = "two", .m = members};
    lw_tactic t = watch(LW_OP_CONV2D, LW_TAKES_ALL | LW_TAKES_MEMBERS);
    t.supports = any_members;
    put_first(&list, b, &t);
    lw_plan *plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), p->n_ops);
    assert_int_equal(lw_plan_op(plan, p->n_ops - 1).op->n_member, 2);
    lw_plan_free(plan);

    lw_choices *choices = lw_choices_new();
    lw_choice choice = {.signature = lw_op_signature(params, &p->ops[p->n_ops - 1]), .tactic = LW_APART};
    plan = NULL;
    assert_int_equal(lw_choices_put(choices, &choice, NULL), LW_OK);
    assert_int_equal(lw_plan_make_with(&plan, b, &(lw_plan_options){.choices = choices}, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), p->n_ops + 1);
    lw_plan_free(plan);
    lw_choices_free(choices);

    /* Taking members but not every field: what must be split off is split off all of them in one op, which the
     * references run one by one. */
    t.takes = LW_TAKES_MEMBERS | LW_TAKES_ADDEND;
    plan = NULL;
    assert_int_equal(lw_plan_make(&plan, b, p, NULL), LW_OK);
    assert_int_equal(lw_plan_n_ops(plan), p->n_ops - 1 + 1 + 2);
    free_all(plan, p, params, b);
    put_back(&list, b);
    b->close(b);
}

/* ---- running, and memory that is not there */

static const variant everything = {
    .prologue = true, .addend = true, .act = LW_ACT_SILU, .scale = true, .shortcut = true};

static lw_status make_all(lw_backend *b, bool run, long *calls, lw_error *err) {
    lw_params *params = NULL;
    lw_program *p = NULL;
    lw_plan *plan = NULL;
    void *temp = NULL, *bound[8] = {0};
    lw_status status = lw_params_new(&params, &source, err);
    if (status == LW_OK && !(p = lw_program_new("faults", params, LW_F32))) status = lw_fail(err, LW_ENOMEM, "none");
    if (status == LW_OK) {
        record_product(p, &everything);
        status = lw_plan_make(&plan, b, p, err);
    }
    if (status == LW_OK) status = lw_params_fill(params, b, err);
    if (status == LW_OK) status = b->alloc(b, (size_t)lw_plan_temp_bytes(plan), &temp, err);
    for (int32_t i = 0; status == LW_OK && i < p->n_buffers && i < 8; i++) {
        if (p->buffers[i].kind != LW_BUFFER_EXTERN) continue;
        status = b->alloc(b, (size_t)p->buffers[i].bytes, &bound[i], err);
        if (status == LW_OK) status = lw_plan_bind(plan, p->buffers[i].name, bound[i], err);
    }
    if (status == LW_OK && run) {
        lw_plan_bind_temp(plan, temp);
        lw_fault_arm(INT32_MAX, false);
        status = lw_plan_run(plan, err);
        *calls = lw_fault_count();
        lw_fault_arm(0, false);
    }
    for (int i = 0; i < 8; i++) b->free(b, bound[i]);
    b->free(b, temp);
    free_all(plan, p, params, b);
    return status;
}

static void test_run_allocates_nothing(void **state) {
    (void)state;
    for (int references = 0; references < 2; references++) {
        lw_backend *b = open_cpu(references);
        long calls = -1;
        assert_int_equal(make_all(b, true, &calls, NULL), LW_OK);
        assert_int_equal(calls, 0);
        b->close(b);
    }
}

static void test_faults(void **state) {
    (void)state;
    for (int way = 0; way < 4; way++) { /* references or all tactics; one failure, or from then on */
        lw_backend *b = open_cpu(way & 1);
        lw_status status = LW_ENOMEM;
        long nth = 1;
        for (; status != LW_OK && nth < 10000; nth++) {
            lw_error err = {.message = ""};
            lw_fault_arm(nth, way & 2);
            status = make_all(b, false, NULL, &err);
            lw_fault_arm(0, false);
            if (status == LW_OK) break;
            assert_int_equal(status, LW_ENOMEM);
            assert_true(err.message[0] != 0);
        }
        assert_int_equal(status, LW_OK);
        assert_true(nth > 10);
        b->close(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),     cmocka_unit_test(test_bad_parameters),
        cmocka_unit_test(test_packs),           cmocka_unit_test(test_slices),
        cmocka_unit_test(test_statistics_once), cmocka_unit_test(test_externs),
        cmocka_unit_test(test_no_overlaps),     cmocka_unit_test(test_lowering),
        cmocka_unit_test(test_own_statistics),  cmocka_unit_test(test_members),
        cmocka_unit_test(test_members_at_once), cmocka_unit_test(test_run_allocates_nothing),
        cmocka_unit_test(test_faults),          cmocka_unit_test(test_row_statistics),
        cmocka_unit_test(test_many_members),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
