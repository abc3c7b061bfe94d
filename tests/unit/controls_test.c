/* SPDX-License-Identifier: MIT
 * Several ControlNets, their windows, another VAE and clip skip: whole jobs against PyTorch's on make-model's small
 * models (tests/data/controls.safetensors, made by tools/reference/make_controls.py), what must hold among jobs of the
 * embedded model, and what is refused. */
#include "fixture.h"

#include <unistd.h>

#include "linework.h"

enum { WIDTH = 128, HEIGHT = 64, LATENTS = WIDTH * HEIGHT / 16, MAX_MODELS = 5, DEMO_STEPS = 5 };

static fixture data;
static char folder[] = "/tmp/lw_controls_XXXXXX", path[MAX_MODELS][64];
static const char demo[] = LW_SOURCE_DIR "/models/demo/model.safetensors";
static const char tiny[] = LW_TEST_DATA "/tiny/model.safetensors";
static lw_image maps[2];

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

/* Models by the seed of their weights: 1 UNet, CLIP and VAE; 2 and 3 ControlNets; 4 as 1. */
static int make_models(void **state) {
    (void)state;
    static const char *const layouts[MAX_MODELS] = {NULL, "sd", "control", "control", "sd"};
    lw_error err = {0};
    if (!mkdtemp(folder)) return -1;
    for (uint64_t seed = 1; seed < MAX_MODELS; seed++) {
        lw_make_params params;
        lw_make_params_init(&params);
        params.layout = layouts[seed];
        params.dtype = LW_PRECISION_FP16;
        params.seed = seed;
        params.small = 1;
        snprintf(path[seed], sizeof path[seed], "%s/%d", folder, (int)seed);
        if (lw_model_make(path[seed], &params, &err) != LW_OK) {
            print_error("%s\n", err.message);
            return -1;
        }
    }
    data = fixture_open("controls");
    for (int i = 0; i < 2; i++) {
        union {
            const void *c;
            void *m;
        } edges = {fixture_data(&data, i ? "edges.1" : "edges.0", NULL)};
        maps[i] = (lw_image){
            .size = sizeof *maps, .width = WIDTH, .height = HEIGHT, .channels = 1, .stride = WIDTH, .data = edges.m};
    }
    return 0;
}

static int remove_models(void **state) {
    (void)state;
    fixture_close(&data);
    for (int seed = 1; seed < MAX_MODELS; seed++) unlink(path[seed]);
    return rmdir(folder);
}

/* ---- one job */

typedef struct setup {
    const char *model, *vae;
    const char *nets[9];
    uint32_t n_nets;
} setup;

static lw_status open_engine(lw_engine **engine, const setup *s, lw_error *err) {
    lw_engine_params params;
    lw_engine_params_init(&params);
    params.model = s->model;
    params.vae = s->vae;
    params.control_nets = s->nets;
    params.n_control_nets = s->n_nets;
    params.device = LW_DEVICE_CPU;
    params.threads = 2;
    if (s->model != demo) params.vocab = LW_TEST_DATA "/tiny/merges.txt";
    *engine = NULL;
    return lw_engine_open(engine, &params, err);
}

static lw_request request_of(const lw_control *controls, uint32_t n) {
    lw_request r;
    lw_request_init(&r);
    r.prompt = "a red house";
    r.added_prompt = "best quality";
    r.negative_prompt = "lowres";
    r.seed = 7;
    r.steps = 10;
    r.cfg_scale = 5;
    r.controls = controls;
    r.n_controls = n;
    r.want_latents = 1;
    return r;
}

static lw_result generate(lw_session *session, const lw_request *r) {
    lw_result result = {.size = sizeof result};
    lw_error err = {0};
    ok(lw_session_generate(session, r, &result, &err), &err);
    return result;
}

static lw_control control(int map, double strength, double start, double end) {
    return (lw_control){
        .size = sizeof(lw_control), .map = &maps[map], .strength = strength, .start = start, .end = end};
}

/* On an engine of its own, which is closed with it. */
static lw_session *session_of(const setup *s) {
    lw_engine *engine;
    lw_session *session = NULL;
    lw_error err = {0};
    ok(open_engine(&engine, s, &err), &err);
    ok(lw_session_open(&session, engine, &err), &err);
    lw_engine_close(&engine);
    return session;
}

/* ---- against PyTorch */

/* Frees the result. */
static void compare(const char *name, lw_result result) {
    char key[64];
    size_t n;
    snprintf(key, sizeof key, "%s.latents", name);
    const float *want = fixture_data(&data, key, &n);
    double worst = fixture_max_diff(result.latents, want, n);
    print_message("%-12s latents max abs error %.2e\n", name, worst);
    if (!(worst <= 1e-3)) fail_msg("%s: latents are %g away, at most 1e-3", name, worst);
    lw_result_free(&result);
}

/* Of 10 steps the first takes 0 to 5 and the second 3 to 9: 0.6 and 0.3 are ends that are met exactly. */
static void two_control_nets(void **state) {
    (void)state;
    lw_session *session = session_of(&(setup){.model = path[1], .nets = {path[2], path[3]}, .n_nets = 2});
    const lw_control both[2] = {control(0, 0.8, 0, 0.6), control(1, 0.5, 0.3, 1)};
    lw_request r = request_of(both, 2);
    lw_result result = generate(session, &r);
    assert_bytes_close("own VAE", result.images[0].data, fixture_data(&data, "own_vae.bytes", NULL),
                       WIDTH * HEIGHT * 3);
    compare("two", result);
    r.control_mode = LW_CONTROL_PROMPT;
    compare("two_prompt", generate(session, &r));
    r.control_mode = LW_CONTROL_CONTROL;
    compare("two_guess", generate(session, &r));
    r.control_mode = LW_CONTROL_BALANCED;
    r.cfg_scale = 1;
    compare("two_scale1", generate(session, &r));
    r.cfg_scale = 5;
    r.samples = 2;
    compare("two_batch", generate(session, &r));
    lw_session_close(&session);

    session = session_of(&(setup){.model = path[1], .vae = path[4], .nets = {path[2], path[3]}, .n_nets = 2});
    r = request_of(both, 2);
    result = generate(session, &r);
    assert_bytes_close("another VAE", result.images[0].data, fixture_data(&data, "other_vae.bytes", NULL),
                       WIDTH * HEIGHT * 3);
    compare("two", result);
    lw_session_close(&session);
}

static void clip_skip(void **state) {
    (void)state;
    lw_session *session = session_of(&(setup){.model = path[1], .nets = {path[2]}, .n_nets = 1});
    const lw_control one = control(0, 1, 0, 1);
    lw_request r = request_of(&one, 1);
    r.clip_skip = 2;
    compare("clip_skip", generate(session, &r));
    lw_session_close(&session);
}

/* ---- laws, on the embedded model */

static void same_pictures(const char *what, const lw_result *a, const lw_result *b) {
    if (memcmp(a->latents, b->latents, LATENTS * sizeof(float)) != 0) fail_msg("%s: other latents", what);
    if (memcmp(a->images[0].data, b->images[0].data, WIDTH * HEIGHT * 3) != 0) fail_msg("%s: another picture", what);
}

static void close_latents(const char *what, const lw_result *a, const lw_result *b) {
    double d = fixture_max_diff(a->latents, b->latents, LATENTS);
    print_message("%-44s %.2e apart\n", what, d);
    if (!(d <= 1e-3)) fail_msg("%s: latents are %g apart, at most 1e-3", what, d);
}

static void other_latents(const char *what, const lw_result *a, const lw_result *b) {
    double d = fixture_max_diff(a->latents, b->latents, LATENTS);
    print_message("%-44s %.2e apart\n", what, d);
    if (!(d > 0.05)) fail_msg("%s: latents are only %g apart", what, d);
}

/* The job with each of n controls on the map of the first. */
static lw_result demo_job(lw_session *session, const lw_control *controls, uint32_t n, lw_control_mode mode) {
    lw_request r = request_of(controls, n);
    r.steps = DEMO_STEPS;
    r.control_mode = mode;
    return generate(session, &r);
}

static void windows(lw_session *session) {
    const struct {
        const char *what;
        lw_control control;
        int as; /* the job before it that is the same; -1: of none */
    } jobs[] = {
        {"all steps", control(0, 1, 0, 1), -1},
        {"none", control(0, 0, 0, 1), -1},
        {"ends before the first does", control(0, 1, 0, 0.19), 1},
        {"begins after the last does", control(0, 1, 0.81, 1), 1},
        {"ends before it begins", control(0, 1, 0.6, 0.4), 1},
        {"the second and third of five", control(0, 1, 0.2, 0.6), -1},
        {"the same, less than a step wider", control(0, 1, 0.01, 0.79), 5},
        {"the third alone", control(0, 1, 0.21, 0.6), -1},
        {"the third alone, exactly", control(0, 1, 0.4, 0.6), 7},
        {"the first", control(0, 1, 0, 0.2), -1},
    };
    enum { N = sizeof jobs / sizeof *jobs };
    lw_result results[N];
    for (int i = 0; i < N; i++) {
        results[i] = demo_job(session, &jobs[i].control, 1, LW_CONTROL_BALANCED);
        for (int k = 0; k < i; k++) {
            if (jobs[i].as == k) same_pictures(jobs[i].what, &results[i], &results[k]);
            else if (jobs[i].as < 0 && jobs[k].as < 0) other_latents(jobs[i].what, &results[i], &results[k]);
        }
    }
    for (int i = 0; i < N; i++) lw_result_free(&results[i]);
}

/* The model's own ControlNet given twice is one of both strengths together, and of both windows together. */
static void sums(lw_session *session, const lw_result *plain) {
    lw_session *two = session_of(&(setup){.model = demo, .nets = {demo, demo}, .n_nets = 2});
    const lw_control whole = control(0, 1, 0, 1);
    lw_result guess = demo_job(session, &whole, 1, LW_CONTROL_CONTROL),
              prompt = demo_job(session, &whole, 1, LW_CONTROL_PROMPT);
    other_latents("guess mode, balanced", &guess, plain);
    other_latents("prompt, balanced", &prompt, plain);
    other_latents("prompt, guess mode", &prompt, &guess);
    const struct {
        const char *what;
        lw_control controls[2];
        lw_control_mode mode;
        const lw_result *as;
    } jobs[] = {
        {"halves", {control(0, 0.5, 0, 1), control(0, 0.5, 0, 1)}, LW_CONTROL_BALANCED, plain},
        {"halves, guess mode", {control(0, 0.5, 0, 1), control(0, 0.5, 0, 1)}, LW_CONTROL_CONTROL, &guess},
        {"halves, prompt", {control(0, 0.5, 0, 1), control(0, 0.5, 0, 1)}, LW_CONTROL_PROMPT, &prompt},
        {"windows that meet", {control(0, 1, 0, 0.4), control(0, 1, 0.4, 1)}, LW_CONTROL_BALANCED, plain},
        {"the first without strength", {control(1, 0, 0, 1), control(0, 1, 0, 1)}, LW_CONTROL_BALANCED, plain},
    };
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        lw_result r = demo_job(two, jobs[i].controls, 2, jobs[i].mode);
        close_latents(jobs[i].what, &r, jobs[i].as);
        lw_result_free(&r);
    }
    lw_result_free(&guess);
    lw_result_free(&prompt);
    lw_session_close(&two);
}

static void clip_skips(lw_session *session, const lw_result *plain) {
    const lw_control whole = control(0, 1, 0, 1);
    lw_request r = request_of(&whole, 1);
    r.steps = DEMO_STEPS;
    for (r.clip_skip = 1; r.clip_skip <= 2; r.clip_skip++) {
        lw_result result = generate(session, &r);
        if (r.clip_skip == 1) same_pictures("clip skip 1", &result, plain);
        else other_latents("clip skip 2", &result, plain);
        lw_result_free(&result);
    }
}

static void laws_of_the_demo_model(void **state) {
    (void)state;
    if (access(demo, R_OK) != 0) skip();
    lw_session *session = session_of(&(setup){.model = demo});
    const lw_control whole = control(0, 1, 0, 1);
    lw_result plain = demo_job(session, &whole, 1, LW_CONTROL_BALANCED);
    windows(session);
    sums(session, &plain);
    clip_skips(session, &plain);
    lw_session_close(&session);
    session = session_of(&(setup){.model = demo, .vae = demo});
    lw_result again = demo_job(session, &whole, 1, LW_CONTROL_BALANCED);
    same_pictures("its own VAE as another", &again, &plain);
    lw_result_free(&again);
    lw_result_free(&plain);
    lw_session_close(&session);
}

/* ---- what is refused */

static void no_engine(const setup *s, lw_status want, const char *const *words) {
    lw_engine *engine;
    lw_error err = {0};
    assert_int_equal(open_engine(&engine, s, &err), want);
    assert_null(engine);
    for (int i = 0; words[i]; i++)
        if (!strstr(err.message, words[i])) fail_msg("\"%s\" does not name %s", err.message, words[i]);
}

static void models_that_do_not_fit(void **state) {
    (void)state;
    no_engine(&(setup){.model = path[1], .nets = {path[2], tiny}, .n_nets = 2}, LW_EMODEL,
              (const char *const[]){tiny, "16 channels", "32", NULL});
    no_engine(&(setup){.model = path[1], .nets = {path[4]}, .n_nets = 1}, LW_EMODEL,
              (const char *const[]){path[4], "control", NULL});
    no_engine(&(setup){.model = path[1], .vae = path[2], .nets = {path[2]}, .n_nets = 1}, LW_EMODEL,
              (const char *const[]){path[2], "vae", NULL});
    setup nine = {.model = path[1], .n_nets = 9};
    for (int i = 0; i < 9; i++) nine.nets[i] = path[2];
    no_engine(&nine, LW_EINVAL, (const char *const[]){"9", "8", NULL});
}

static void refuses(lw_session *session, const lw_request *r, lw_status want, const char *const *words) {
    lw_result result;
    lw_error err = {0};
    assert_int_equal(lw_session_generate(session, r, &result, &err), want);
    for (int i = 0; words[i]; i++)
        if (!strstr(err.message, words[i])) fail_msg("\"%s\" does not name %s", err.message, words[i]);
}

static void requests_that_do_not_fit(void **state) {
    (void)state;
    lw_control controls[3] = {control(0, 1, 0, 1), control(1, 1, 0, 1), control(1, 1, 0, 1)};
    lw_image narrow = maps[1], odd = maps[0];
    narrow.width = 64;
    odd.width = 100;
    lw_session *session = session_of(&(setup){.model = path[1]});
    lw_request r = request_of(controls, 1);
    refuses(session, &r, LW_EMODEL, (const char *const[]){"no ControlNet", NULL});
    lw_session_close(&session);
    session = session_of(&(setup){.model = path[1], .nets = {path[2], path[3]}, .n_nets = 2});
    r = request_of(controls, 3);
    refuses(session, &r, LW_EINVAL, (const char *const[]){"3 controls", "2 ControlNets", NULL});
    r = request_of(controls, 1);
    refuses(session, &r, LW_EINVAL, (const char *const[]){"control 1", "neither a map nor a picture", NULL});
    r = request_of(controls, 2);
    controls[1].map = &narrow;
    refuses(session, &r, LW_EINPUT, (const char *const[]){"control 1 is 64x64", "control 0 128x64", NULL});
    controls[1].map = NULL;
    controls[0].map = &odd;
    r.image = &maps[0];
    refuses(session, &r, LW_EINPUT, (const char *const[]){"control 0 is 100x64", "64", NULL});
    controls[0].map = &maps[0];
    controls[1].end = 1.5;
    refuses(session, &r, LW_EINVAL, (const char *const[]){"control end", "1.5", NULL});
    controls[1].end = 1;
    r.clip_skip = 13;
    refuses(session, &r, LW_EINVAL, (const char *const[]){"clip skip", "13", "12", NULL});
    r.clip_skip = 3;
    refuses(session, &r, LW_EINVAL, (const char *const[]){"clip skip 3", "2 layers", NULL});
    lw_session_close(&session);
}

/* A size that is given makes the maps that size; without one they keep theirs, whatever size the picture has. */
static void sizes_of_maps(void **state) {
    (void)state;
    const setup two = {.model = path[1], .nets = {path[2], path[3]}, .n_nets = 2};
    lw_engine *engine;
    lw_error err = {0};
    lw_plan_info plan = {.size = sizeof plan};
    lw_control controls[2] = {control(0, 1, 0, 1), control(1, 1, 0, 1)};
    lw_image narrow = maps[1];
    ok(open_engine(&engine, &two, &err), &err);
    lw_request r = request_of(controls, 2);
    r.image = &narrow;
    narrow.width = 64;
    controls[0].map = NULL;
    ok(lw_estimate(engine, &r, &plan, &err), &err);
    assert_int_equal(plan.width, WIDTH);
    assert_int_equal(plan.height, HEIGHT);
    controls[0].map = &narrow;
    r.width = r.height = 192;
    ok(lw_estimate(engine, &r, &plan, &err), &err);
    assert_int_equal(plan.width, 192);
    r.width = r.height = 0;
    r.resolution = 64;
    ok(lw_estimate(engine, &r, &plan, &err), &err);
    assert_int_equal(plan.width, 64);
    lw_engine_close(&engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_control_nets),         cmocka_unit_test(clip_skip),
        cmocka_unit_test(laws_of_the_demo_model),   cmocka_unit_test(models_that_do_not_fit),
        cmocka_unit_test(requests_that_do_not_fit), cmocka_unit_test(sizes_of_maps),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
