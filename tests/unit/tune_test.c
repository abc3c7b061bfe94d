/* SPDX-License-Identifier: MIT
 * Tuning: the table, its file, what plans make of it, and that a job with other tactics is the same job within
 * rounding. */
#include "fixture.h"

#include <sys/stat.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "linework.h"
#include "pipe/choices.h"
#include "pipe/session.h"
#include "tactics.h"

static const char winograd[] = "conv2d_winograd_fp32";

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

static lw_choice choice(uint64_t signature, const char *tactic) {
    lw_choice c = {.signature = signature, .us = 12.5};
    snprintf(c.tactic, sizeof c.tactic, "%s", tactic);
    snprintf(c.op, sizeof c.op, "op %d", (int)signature);
    return c;
}

static void table(void **state) {
    (void)state;
    lw_error err;
    lw_choice c;
    lw_choices *t = lw_choices_new();
    assert_non_null(t);
    assert_false(lw_choices_get(NULL, 1, &c));
    for (uint64_t i = 0; i < 200; i++) {
        c = choice(i, i % 2 ? "odd" : "even");
        ok(lw_choices_put(t, &c, &err), &err);
    }
    c = choice(7, "again");
    ok(lw_choices_put(t, &c, &err), &err);
    assert_int_equal(lw_choices_count(t), 200);
    assert_true(lw_choices_get(t, 7, &c));
    assert_string_equal(c.tactic, "again");
    assert_true(lw_choices_at(t, 8, &c));
    assert_string_equal(c.tactic, "even");
    assert_false(lw_choices_get(t, 200, &c));
    assert_false(lw_choices_at(t, 200, &c));
    lw_choices_free(t);
}

/* ---- the file */

static char folder[64] = "/tmp/lw_tune_XXXXXX", file[96];

static lw_backend *open_backend(int32_t threads) {
    const lw_cpu_params params = {.threads = threads};
    lw_backend *backend = NULL;
    lw_error err;
    ok(lw_cpu_open(&backend, &params, &err), &err);
    return backend;
}

/* How many choices the file gives; damaged: whether a remark is wanted. */
static int32_t loaded(const lw_backend *backend, bool damaged) {
    lw_error err;
    char *remark = NULL;
    lw_choices *t = lw_choices_new();
    ok(lw_choices_load(t, backend, folder, &remark, &err), &err);
    if (damaged != (remark != NULL)) fail_msg("remark: %s", remark ? remark : "none");
    if (remark) assert_non_null(strstr(remark, file));
    int32_t n = lw_choices_count(t);
    lw_free(remark);
    lw_choices_free(t);
    return n;
}

static void write_file(const char *text) {
    lw_error err;
    ok(lw_file_write(file, text, strlen(text), &err), &err);
}

static void round_trip(void **state) {
    (void)state;
    lw_error err;
    lw_choice c;
    char *remark;
    lw_backend *one = open_backend(1), *two = open_backend(2);
    lw_choices *t = lw_choices_new(), *back = lw_choices_new();
    unlink(file);
    assert_int_equal(loaded(one, false), 0);
    c = choice(0xfedcba9876543210u, "conv2d_ref");
    ok(lw_choices_put(t, &c, &err), &err);
    c = choice(3, "of_another_build");
    ok(lw_choices_put(t, &c, &err), &err);
    ok(lw_choices_save(t, one, folder, &err), &err);
    assert_int_equal(loaded(two, false), 0); /* another thread count is another device */
    c = choice(4, "linear_ref");
    ok(lw_choices_put(t, &c, &err), &err);
    ok(lw_choices_save(t, two, folder, &err), &err);
    assert_int_equal(loaded(one, false), 1); /* the tactic that there is */
    assert_int_equal(loaded(two, false), 2);
    ok(lw_choices_load(back, one, folder, &remark, &err), &err);
    assert_true(lw_choices_get(back, 0xfedcba9876543210u, &c));
    assert_string_equal(c.tactic, "conv2d_ref");
    assert_float_equal(c.us, 12.5, 1e-9);
    assert_int_equal(lw_choices_save(t, one, "/nowhere/at/all", &err), LW_EOUTPUT);
    lw_choices_free(t);
    lw_choices_free(back);
    one->close(one);
    two->close(two);
}

static void other_files(void **state) {
    (void)state;
    static const struct {
        const char *version, *entries;
        int32_t n;
        bool damaged;
    } cases[] = {
        {NULL, "\"00000000000000ff\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":1}", 1, false},
        {"0.0.0", "\"00000000000000ff\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":1}", 0, false},
        {NULL, "\"ff\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":1}", 0, true},
        {NULL, "\"00000000000000fF\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":1}", 0, true},
        {NULL, "\"00000000000000ff\":{\"op\":\"o\",\"tactic\":1,\"us\":1}", 0, true},
        {NULL, "\"00000000000000ff\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":\"1\"}", 0, true},
        {NULL, "\"00000000000000ff\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":-1}", 0, true},
        {NULL, "\"00000000000000ff\":{\"tactic\":\"conv2d_ref\",\"us\":1}", 0, true},
        {NULL, "\"00000000000000ff\":7", 0, true},
        {NULL,
         "\"00000000000000fe\":{\"op\":\"o\",\"tactic\":\"conv2d_ref\",\"us\":1},\"00000000000000ff\":{\"op\":\"o\","
         "\"tactic\":\"a_name_that_is_longer_than_any_tactic_of_ours_can_be_at_all\",\"us\":1}",
         0, true},
    };
    static const char *const broken[] = {"",
                                         "{",
                                         "[]",
                                         "{}",
                                         "\"x\"",
                                         "{\"linework\":1,\"devices\":{}}",
                                         "{\"linework\":\"0.1.0\",\"devices\":[]}",
                                         "\xff\xfe"};
    lw_backend *backend = open_backend(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[600];
        snprintf(text, sizeof text, "{\"linework\":\"%s\",\"devices\":{\"%s\":{%s}}}",
                 cases[i].version ? cases[i].version : lw_version(), backend->description, cases[i].entries);
        write_file(text);
        if (loaded(backend, cases[i].damaged) != cases[i].n) fail_msg("case %zu", i);
    }
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        write_file(broken[i]);
        assert_int_equal(loaded(backend, true), 0);
    }
    char text[300];
    snprintf(text, sizeof text, "{\"linework\":\"%s\",\"devices\":{\"%s\":7}}", lw_version(), backend->description);
    write_file(text);
    assert_int_equal(loaded(backend, true), 0);
    backend->close(backend);
    unlink(file);
}

/* ---- plans */

static lw_status dims(void *user, const char *name, int64_t d[4], lw_error *err) {
    (void)user, (void)err;
    d[0] = 32;
    d[1] = *name == 'w' ? 16 : 1;
    d[2] = d[3] = *name == 'w' ? 3 : 1;
    return LW_OK;
}

static lw_status values(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    int64_t d[4];
    dims(user, name, d, err);
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t i = row * each; i < (row + n) * each; i++) *dst++ = (float)(i * 37 % 101) / 101 - 0.5f;
    return LW_OK;
}

static void record_conv(lw_program *p, int32_t h) {
    lw_args *m = lw_rec_op(p, LW_OP_CONV2D, "conv");
    m->product.in.a = lw_rec_temp(p, LW_F32, 1, 2, h, 8, 16);
    m->product.out = lw_rec_temp(p, LW_F32, 1, 2, h, 8, 32);
    m->product.w = lw_rec_take(p, "w", 32, 16, 3, 3);
    m->product.bias = lw_rec_take(p, "b", 32, 1, 1, 1);
    m->product.kh = m->product.kw = 3;
    m->product.pad_top = m->product.pad_left = 1;
    m->product.epi.act = LW_ACT_SILU;
}

static bool has_winograd(const lw_backend *b, const lw_program *p) {
    for (int32_t i = 0; i < b->n_tactics; i++)
        if (!strcmp(b->tactics[i]->name, winograd)) return b->tactics[i]->supports(b, p->params, &p->ops[0]);
    return false;
}

static int count_tuned(void *user, const lw_tune_op *op) {
    int *n = user;
    assert_int_equal(op->index, ++*n);
    assert_int_equal(op->n, 2);
    assert_true(op->choice.us > 0 && op->choice.us <= op->heuristic_us);
    assert_string_equal(op->heuristic, "conv2d_onednn");
    return 0;
}

static int stop(void *user, const lw_tune_op *op) {
    (void)user, (void)op;
    return 1;
}

static void plans(void **state) {
    (void)state;
    lw_error err;
    lw_backend *backend = open_backend(2);
    lw_tensor_source source = {.dims = dims, .read = values};
    lw_params *params = NULL;
    ok(lw_params_new(&params, &source, &err), &err);
    lw_program *p = lw_program_new("a", params, LW_F32), *q = lw_program_new("b", params, LW_F32);
    record_conv(p, 8);
    record_conv(q, 8);
    record_conv(q, 12);
    assert_int_equal(p->status, LW_OK);
    assert_true(lw_op_signature(params, &p->ops[0]) == lw_op_signature(params, &q->ops[0]));
    assert_true(lw_op_signature(params, &q->ops[1]) != lw_op_signature(params, &q->ops[0]));
    lw_choices *t = lw_choices_new();
    lw_plan *plan = NULL, *plain = NULL;
    if (has_winograd(backend, p)) {
        lw_choice c = choice(lw_op_signature(params, &p->ops[0]), winograd);
        ok(lw_choices_put(t, &c, &err), &err);
        ok(lw_plan_make_with(&plan, backend, &(lw_plan_options){.choices = t}, q, &err), &err);
        ok(lw_plan_make(&plain, backend, q, &err), &err);
        assert_string_equal(lw_plan_op(plan, 0).tactic->name, winograd);
        assert_string_equal(lw_plan_op(plan, 1).tactic->name, "conv2d_onednn");
        assert_string_equal(lw_plan_op(plain, 0).tactic->name, "conv2d_onednn");
        assert_true(lw_plan_hash(plan) != lw_plan_hash(plain));
        const lw_program *both[] = {p, q};
        int n = 0;
        lw_tune_hooks hooks = {.budget_ms = 5, .tuned = count_tuned, .user = &n};
        ok(lw_tune(t, backend, both, 2, &hooks, &err), &err);
        assert_int_equal(n, 2);
        assert_int_equal(lw_choices_count(t), 2);
        hooks.tuned = stop;
        assert_int_equal(lw_tune(t, backend, both, 2, &hooks, &err), LW_ECANCEL);
        lw_plan_free(plan);
        lw_plan_free(plain);
    }
    /* A choice that can't run the op is passed over. */
    lw_choice wrong = choice(lw_op_signature(params, &p->ops[0]), "linear_ref");
    ok(lw_choices_put(t, &wrong, &err), &err);
    ok(lw_plan_make_with(&plan, backend, &(lw_plan_options){.choices = t}, p, &err), &err);
    assert_int_equal(lw_plan_op(plan, 0).op->kind, LW_OP_CONV2D);
    lw_plan_free(plan);
    lw_choices_free(t);
    lw_program_free(p);
    lw_program_free(q);
    lw_params_free(params, backend);
    backend->close(backend);
}

/* ---- members: one launch against each by itself */

static int delay_ms;

static bool together_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    return op->n_member > 1;
}

static lw_status together_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state,
                                  size_t *workspace_bytes, lw_error *err) {
    (void)b, (void)params, (void)op, (void)workspace_bytes, (void)err;
    *state = NULL;
    return LW_OK;
}

static lw_status together_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                              lw_error *err) {
    (void)b, (void)params, (void)op, (void)state, (void)r, (void)err;
    for (double end = lw_now_ms() + delay_ms; lw_now_ms() < end;) continue;
    return LW_OK;
}

static int note_choice(void *user, const lw_tune_op *op) {
    lw_choice *c = user;
    if (op->op->n_member == 2) *c = op->choice;
    else assert_int_equal(op->uses, 0); /* tuned for the sake of the two */
    return 0;
}

static void members(void **state) {
    (void)state;
    static const lw_tactic together = {
        "conv2d_together", LW_OP_CONV2D, LW_TAKES_ALL | LW_TAKES_MEMBERS, together_supports, together_prepare,
        together_run,      NULL};
    lw_error err;
    lw_backend *backend = open_backend(1);
    tactic_list list;
    put_first(&list, backend, &together);
    for (delay_ms = 0; delay_ms <= 20; delay_ms += 20) {
        lw_tensor_source source = {.dims = dims, .read = values};
        lw_params *params = NULL;
        lw_plan *plan = NULL;
        ok(lw_params_new(&params, &source, &err), &err);
        lw_program *p = lw_program_new("two", params, LW_F32);
        record_conv(p, 8);
        lw_args two[2] = {*p->ops[0].m, *p->ops[0].m};
        two[1].product.out = lw_rec_temp(p, LW_F32, 1, 2, 8, 8, 32);
        p->ops[0].m = two;
        p->ops[0].n_member = 2;
        lw_choices *t = lw_choices_new();
        lw_choice c = {.tactic = ""};
        const lw_program *programs[] = {p};
        ok(lw_tune(t, backend, programs, 1, &(lw_tune_hooks){.budget_ms = 5, .tuned = note_choice, .user = &c}, &err),
           &err);
        assert_string_equal(c.tactic, delay_ms ? LW_APART : together.name);
        ok(lw_plan_make_with(&plan, backend, &(lw_plan_options){.choices = t}, p, &err), &err);
        assert_int_equal(lw_plan_n_ops(plan), delay_ms ? 2 : 1);
        lw_plan_free(plan);
        lw_choices_free(t);
        lw_program_free(p);
        lw_params_free(params, backend);
    }
    put_back(&list, backend);
    backend->close(backend);
}

/* ---- jobs */

typedef struct run {
    lw_result result;
    char hash[24];
    int remarks;
} run;

static void count_remarks(void *user, lw_log_level level, const char *text) {
    (void)level, (void)text;
    ++*(int *)user;
}

static int nothing(void *user, const lw_tuned *tuned) {
    assert_true(tuned->uses > 0 && tuned->index <= tuned->n);
    ++*(int *)user;
    return 0;
}

static int at_once(void *user, const lw_tuned *tuned) {
    (void)user, (void)tuned;
    return 1;
}

/* A short job on the tiny model; forced: every op that was tuned gets Winograd. */
static void generate(int threads, bool forced, uint64_t max_memory, lw_plan_info *plan, run *out) {
    static const char model[] = LW_TEST_DATA "/tiny/model.safetensors";
    uint8_t pixels[64 * 64];
    for (int i = 0; i < 64 * 64; i++) pixels[i] = (uint8_t)(i / 64 > 20 && i % 64 > 30 ? 255 : 0);
    const lw_image image = {
        .size = sizeof image, .width = 64, .height = 64, .channels = 1, .stride = 64, .data = pixels};
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_engine_info info = {.size = sizeof info};
    lw_request r;
    lw_error err = {0};
    int tuned = 0;
    *out = (run){.remarks = 0};
    lw_engine_params_init(&params);
    params.model = model;
    params.device = LW_DEVICE_CPU;
    params.threads = threads;
    params.max_memory = max_memory;
    params.log = count_remarks;
    params.user = &out->remarks;
    ok(lw_engine_open(&engine, &params, &err), &err);
    lw_request_init(&r);
    r.image = &image;
    r.width = r.height = 64;
    r.prompt = "a house";
    r.seed = 5;
    r.steps = 4;
    r.want_latents = 1;
    if (forced) {
        lw_choice c;
        assert_int_equal(lw_engine_tune(engine, &r, at_once, NULL, &err), LW_ECANCEL);
        assert_int_equal(lw_choices_count(engine->choices), 0);
        ok(lw_engine_tune(engine, &r, nothing, &tuned, &err), &err);
        assert_int_equal(lw_choices_count(engine->choices), tuned);
        for (int32_t i = 0; lw_choices_at(engine->choices, i, &c); i++) {
            snprintf(c.tactic, sizeof c.tactic, "%s", winograd);
            ok(lw_choices_put(engine->choices, &c, &err), &err);
        }
    }
    if (plan) {
        ok(lw_estimate(engine, &r, plan, &err), &err);
        assert_int_equal(lw_params_bytes(engine->params), 0); /* nothing is left for a job to fill */
    }
    ok(lw_session_open(&session, engine, &err), &err);
    ok(lw_session_generate(session, &r, &out->result, &err), &err);
    ok(lw_engine_get_info(engine, &info, &err), &err);
    snprintf(out->hash, sizeof out->hash, "%s", info.tactics_hash);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

static double distance(const lw_result *a, const lw_result *b) {
    double worst = 0;
    for (int i = 0; i < 4 * 8 * 8; i++) {
        double d = fabs((double)a->latents[i] - (double)b->latents[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void jobs(void **state) {
    (void)state;
    run plain, one, two, limited;
    lw_plan_info small = {.size = sizeof small}, large = {.size = sizeof large};
    lw_backend *backend = open_backend(2);
    bool choice_there = strstr(backend->description, "oneDNN");
    backend->close(backend);
    if (!choice_there) skip();
    generate(2, false, 0, &small, &plain);
    generate(1, true, 0, NULL, &one);
    generate(2, true, 0, &large, &two);
    assert_string_not_equal(plain.hash, two.hash);
    assert_string_equal(one.hash, two.hash);
    print_message("latents of tuned and untuned job: %.2e apart\n", distance(&plain.result, &two.result));
    assert_true(distance(&plain.result, &two.result) <= 1e-4);
    assert_true(distance(&plain.result, &two.result) > 0); /* it was another tactic */
    assert_memory_equal(one.result.latents, two.result.latents, 4 * 8 * 8 * sizeof(float));
    /* Under a limit that only the plain tactics keep, the job runs with them and says so. */
    assert_true(large.total_bytes > small.total_bytes);
    generate(2, true, small.total_bytes, NULL, &limited);
    assert_string_equal(limited.hash, plain.hash);
    assert_true(limited.remarks > 0);
    assert_memory_equal(limited.result.latents, plain.result.latents, 4 * 8 * 8 * sizeof(float));
    lw_result_free(&plain.result);
    lw_result_free(&one.result);
    lw_result_free(&two.result);
    lw_result_free(&limited.result);
}

int main(void) {
    if (!mkdtemp(folder)) return 1;
    snprintf(file, sizeof file, "%s/tactics-cpu.json", folder);
    const struct CMUnitTest tests[] = {cmocka_unit_test(table),       cmocka_unit_test(round_trip),
                                       cmocka_unit_test(other_files), cmocka_unit_test(plans),
                                       cmocka_unit_test(members),     cmocka_unit_test(jobs)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(folder);
    return failed;
}
