/* SPDX-License-Identifier: MIT
 * Recipes: whatever is taken back of the known improvements, the picture is the same within rounding as with the
 * plainest recipe; and ops joined as members of one launch give the same bits as one by one. */
#include "fixture.h"

#include "cpu/cpu.h"
#include "cpu/ref/ref.h"
#include "ops/pass.h"
#include "pipe/recipe.h"

static const char model[] = LW_TEST_DATA "/tiny/model.safetensors";

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

/* ---- a backend of references that take all members of an op in one call; counted */

static int n_joined;

typedef struct group_state {
    const lw_tactic *inner;
    size_t workspace;
    void *state[LW_MAX_MEMBERS];
} group_state;

static const lw_tactic *inner_of(lw_op_kind kind) {
    static const lw_tactic *const refs[] = {
#define X(kind, name) &lw_ref_##name,
        LW_OPS(X)
#undef X
    };
    return refs[kind];
}

static lw_op member(const lw_op *op, int32_t k) {
    return (lw_op){.kind = op->kind, .n_member = 1, .name = op->name, .m = &op->m[k]};
}

static bool group_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_op one = member(op, k);
        if (!inner_of(op->kind)->supports(b, params, &one)) return false;
    }
    return true;
}

static lw_status group_prepare(lw_backend *b, lw_params *params, const lw_op *op, void **state, size_t *workspace,
                               lw_error *err) {
    group_state *s = lw_alloc(1, sizeof *s);
    *state = s;
    s->inner = inner_of(op->kind);
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_op one = member(op, k);
        size_t bytes = 0;
        LW_TRY(s->inner->prepare(b, params, &one, &s->state[k], &bytes, err));
        if (bytes > s->workspace) s->workspace = bytes;
    }
    *workspace = s->workspace;
    n_joined += op->n_member > 1;
    return LW_OK;
}

static lw_status group_run(lw_backend *b, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                           lw_error *err) {
    const group_state *s = state;
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_op one = member(op, k);
        LW_TRY(s->inner->run(b, params, &one, s->state[k], run, err));
    }
    return LW_OK;
}

static void group_release(void *state) {
    group_state *s = state;
    for (int32_t k = 0; k < LW_MAX_MEMBERS; k++)
        if (s->state[k]) s->inner->release(s->state[k]);
    lw_free(s);
}

static lw_tactic groups[LW_N_OPS];
static const lw_tactic *group_list[LW_N_OPS];

/* takes: what the products' tactics take beside members. */
static lw_engine *open_engine(bool members, uint32_t takes) {
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_backend *backend = NULL;
    lw_error err = {0};
    ok(lw_cpu_open(&backend, &(lw_cpu_params){.threads = 2}, &err), &err);
    for (int32_t i = 0; members && i < LW_N_OPS; i++) {
        uint32_t fields = i == LW_OP_CONV2D || i == LW_OP_LINEAR ? takes : LW_TAKES_ALL;
        groups[i] = (lw_tactic){"group",       (lw_op_kind)i, fields | LW_TAKES_MEMBERS, group_supports,
                                group_prepare, group_run,     group_release};
        group_list[i] = &groups[i];
    }
    if (members) backend->tactics = group_list, backend->n_tactics = LW_N_OPS;
    lw_engine_params_init(&params);
    params.model = model;
    ok(lw_engine_make(&engine, backend, &params, &err), &err);
    return engine;
}

/* ---- jobs */

static const char *reuse_steps; /* of the next jobs */

static uint8_t edges[64 * 128];

static lw_image edge_map(void) {
    for (int i = 0; i < 64; i++) edges[i * 128 + i] = edges[20 * 128 + i] = edges[i * 128 + 70] = 255;
    return (lw_image){.size = sizeof(lw_image), .width = 128, .height = 64, .channels = 1, .stride = 128, .data = edges};
}

static lw_result run(lw_engine *engine, const lw_recipe *recipe, double cfg_scale, lw_sampler sampler, double start) {
    lw_session *session = NULL;
    lw_error err = {0};
    lw_image map = edge_map();
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = start, .end = 1};
    lw_request r;
    lw_result result;
    lw_request_init(&r);
    r.prompt = "a red house and a yellow moon";
    r.seed = 7;
    r.steps = 4;
    r.cfg_scale = cfg_scale;
    r.sampler = sampler;
    r.scheduler = sampler == LW_SAMPLER_DDIM ? LW_SCHEDULER_REFERENCE : LW_SCHEDULER_DISCRETE;
    r.controls = &control;
    r.n_controls = 1;
    r.want_latents = 1;
    r.reuse_steps = reuse_steps;
    ok(lw_session_open(&session, engine, &err), &err);
    lw_session_set_recipe(session, recipe);
    ok(lw_session_generate(session, &r, &result, &err), &err);
    lw_result again; /* what a recipe does each step and what it keeps must be the same in a second job */
    ok(lw_session_generate(session, &r, &again, &err), &err);
    size_t n = (size_t)result.width * (size_t)result.height * 3;
    assert_memory_equal(result.images[0].data, again.images[0].data, n);
    lw_result_free(&again);
    lw_session_close(&session);
    return result;
}

static double distance(const lw_result *a, const lw_result *b) {
    size_t n = (size_t)a->width * (size_t)a->height / 16;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a->latents[i] - (double)b->latents[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static const lw_recipe plainest = {.passes_apart = true,
                                   .hint_each_step = true,
                                   .text_each_step = true,
                                   .time_each_step = true,
                                   .prefix = LW_PREFIX_NONE,
                                   .update = LW_UPDATE_HOST,
                                   .unfused = true,
                                   .no_graph = true,
                                   .unzipped = true};

static void all_recipes_agree(void **state) {
    (void)state;
    static const struct {
        const char *name;
        lw_recipe recipe;
    } recipes[] = {
        {"default", {.no_graph = false}},
        {"apart", {.passes_apart = true}},
        {"hint", {.hint_each_step = true}},
        {"text", {.text_each_step = true}},
        {"time", {.time_each_step = true}},
        {"time, host", {.time_each_step = true, .update = LW_UPDATE_HOST}},
        {"short prefix", {.prefix = LW_PREFIX_SHORT}},
        {"no prefix", {.prefix = LW_PREFIX_NONE}},
        {"no prefix, text", {.prefix = LW_PREFIX_NONE, .text_each_step = true, .hint_each_step = true}},
        {"update program", {.update = LW_UPDATE_PROGRAM}},
        {"host", {.update = LW_UPDATE_HOST}},
        {"unfused", {.unfused = true}},
        {"a ladder's rung", {.text_each_step = true, .time_each_step = true, .prefix = LW_PREFIX_SHORT}},
        {"all but apart",
         {.hint_each_step = true,
          .text_each_step = true,
          .time_each_step = true,
          .prefix = LW_PREFIX_NONE,
          .update = LW_UPDATE_PROGRAM,
          .unfused = true,
          .no_graph = true}},
    };
    static const struct {
        double cfg_scale, start;
        lw_sampler sampler;
    } jobs[] = {{9, 0, LW_SAMPLER_DDIM}, {1, 0, LW_SAMPLER_DDIM}, {4, 0.4, LW_SAMPLER_UNIPC}};
    lw_engine *engine = open_engine(false, 0);
    for (size_t k = 0; k < sizeof jobs / sizeof *jobs; k++) {
        lw_result want = run(engine, &plainest, jobs[k].cfg_scale, jobs[k].sampler, jobs[k].start);
        for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
            lw_result got = run(engine, &recipes[i].recipe, jobs[k].cfg_scale, jobs[k].sampler, jobs[k].start);
            double d = distance(&got, &want);
            print_message("guidance %g: %-16s %.1e\n", jobs[k].cfg_scale, recipes[i].name, d);
            if (!(d <= 1e-3)) fail_msg("%s: latents are %g from the plainest recipe's", recipes[i].name, d);
            assert_bytes_close(recipes[i].name, got.images[0].data, want.images[0].data,
                               (size_t)got.width * (size_t)got.height * 3);
            lw_result_free(&got);
        }
        lw_result_free(&want);
    }
    lw_engine_close(&engine);
}

/* A step that runs no network is updated with the last eps: the host, which reads that eps itself, agrees. */
static void reused_steps(void **state) {
    (void)state;
    lw_engine *engine = open_engine(false, 0);
    const lw_recipe host = {.update = LW_UPDATE_HOST}, in_step = {.update = LW_UPDATE_IN_STEP};
    lw_result all = run(engine, &in_step, 9, LW_SAMPLER_DPMPP_2M, 0);
    reuse_steps = "2,4-4";
    lw_result want = run(engine, &host, 9, LW_SAMPLER_DPMPP_2M, 0), got = run(engine, &in_step, 9, LW_SAMPLER_DPMPP_2M, 0);
    print_message("host %.1e, all steps %.1e\n", distance(&got, &want), distance(&got, &all));
    assert_true(distance(&got, &want) <= 1e-4);
    assert_true(distance(&got, &all) > 1e-2);
    lw_image map = edge_map();
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .end = 1};
    lw_request r;
    lw_error err = {0};
    lw_plan_info info = {.size = sizeof info};
    lw_request_init(&r);
    r.steps = 20;
    r.controls = &control;
    r.n_controls = 1;
    ok(lw_estimate(engine, &r, &info, &err), &err);
    double gflop = info.gflop;
    r.reuse_steps = "11-20";
    ok(lw_estimate(engine, &r, &info, &err), &err);
    assert_true(info.gflop < 0.7 * gflop && info.gflop > 0.4 * gflop);
    static const char *const bad[] = {"1", "0", "21", "5-4", "3,", ",3", "3-", "-3", "2-21", "3 4", "a", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        r.reuse_steps = bad[i];
        assert_int_equal(lw_estimate(engine, &r, &info, &err), LW_EINVAL);
        assert_non_null(strstr(err.message, bad[i]));
    }
    reuse_steps = NULL;
    lw_result_free(&all);
    lw_result_free(&want);
    lw_result_free(&got);
    lw_engine_close(&engine);
}

/* Work of one step, in GFLOP, and its ops. */
static double work(lw_engine *engine, const lw_recipe *recipe, int32_t *n_ops) {
    const lw_step_shape shape = {
        .g = 2, .n = 1, .h = 8, .w = 8, .n_controls = 1, .rows = 4, .n_noise = 1, .controls = 1};
    lw_program *p = lw_program_new("step", engine->params, LW_F32);
    lw_recipe_record_step(p, &engine->model, recipe, &shape, LW_TAKES_MEMBERS);
    ok(p->status, &p->error);
    double flop = 0;
    for (int32_t i = 0; i < p->n_ops; i++) flop += lw_op_cost(p->params, &p->ops[i]).flop;
    *n_ops = p->n_ops;
    lw_program_free(p);
    return flop * 1e-9;
}

/* A recipe that changed nothing would agree too. */
static void recipes_change_the_step(void **state) {
    (void)state;
    lw_engine *engine = open_engine(false, 0);
    int32_t ops, other;
    double best = work(engine, &(lw_recipe){.unzipped = true}, &ops),
           brief = work(engine, &(lw_recipe){.unzipped = true, .prefix = LW_PREFIX_SHORT}, &other);
    assert_int_equal(ops, other);
    assert_true(brief > 1.01 * best);
    double none = work(engine, &(lw_recipe){.unzipped = true, .prefix = LW_PREFIX_NONE}, &other);
    assert_int_equal(ops, other);
    assert_true(none > 1.01 * brief);
    assert_true(work(engine, &(lw_recipe){.unzipped = true, .hint_each_step = true}, &other) > best);
    assert_int_equal(other, ops + 10); /* bytes, eight convolutions, a copy */
    assert_true(work(engine, &(lw_recipe){.unzipped = true, .text_each_step = true}, &other) > best);
    assert_true(other > ops);
    assert_true(work(engine, &(lw_recipe){.unzipped = true, .time_each_step = true}, &other) > best);
    assert_true(other > ops);
    assert_true(work(engine, &(lw_recipe){.unzipped = true, .update = LW_UPDATE_PROGRAM}, &other) < best);
    assert_int_equal(other, ops - 1);
    assert_true(fabs(work(engine, &(lw_recipe){.passes_apart = true}, &other) - best) < 1e-6 * best);
    assert_true(other > ops * 3 / 2);
    assert_true(fabs(work(engine, &(lw_recipe){.unzipped = false}, &other) - best) < 1e-6 * best);
    assert_true(other < ops * 3 / 4);
    lw_engine_close(&engine);
}

static void joined_gives_the_same_bits(void **state) {
    (void)state;
    static const uint32_t takes[] = {LW_TAKES_ALL, LW_TAKES_ADDEND | LW_TAKES_ACT, 0};
    for (int i = 0; i < 3; i++) {
        lw_engine *engine = open_engine(true, takes[i]);
        n_joined = 0;
        lw_result want = run(engine, &(lw_recipe){.unzipped = true}, 9, LW_SAMPLER_DDIM, 0);
        assert_int_equal(n_joined, 0);
        lw_result got = run(engine, &(lw_recipe){.unzipped = false}, 9, LW_SAMPLER_DDIM, 0);
        print_message("%d launches of several members\n", n_joined);
        assert_true(n_joined > 60);
        assert_memory_equal(got.latents, want.latents, (size_t)(got.width * got.height / 16) * sizeof(float));
        lw_result_free(&want);
        lw_result_free(&got);
        lw_engine_close(&engine);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_recipes_agree), cmocka_unit_test(recipes_change_the_step), cmocka_unit_test(reused_steps),
                                       cmocka_unit_test(joined_gives_the_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
