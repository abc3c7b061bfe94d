/* SPDX-License-Identifier: MIT
 * The whole job through linework.h against PyTorch's on the same small random weights
 * (tests/data/tiny/job.safetensors): final latents at most 1e-3 away after 20 steps, 99.9 % of the bytes within 1. Then
 * what must not change them: threads, places in a batch, earlier jobs, cancels. */
#include "fixture.h"

#include "base/rng.h"
#include "cpu/kernels.h"
#include "linework.h"

static fixture job;

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

static lw_engine *open_precise(const char *model, int threads, lw_precision precision) {
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_error err = {0};
    lw_engine_params_init(&params);
    params.model = model;
    params.device = LW_DEVICE_CPU;
    params.threads = threads;
    params.precision = precision;
    ok(lw_engine_open(&engine, &params, &err), &err);
    return engine;
}

static lw_engine *open_model(const char *model, int threads) { return open_precise(model, threads, LW_PRECISION_AUTO); }

static const char tiny_model[] = LW_TEST_DATA "/tiny/model.safetensors",
                  demo_model[] = LW_SOURCE_DIR "/models/demo/model.safetensors";
static lw_engine *open_engine(int threads) { return open_model(tiny_model, threads); }

static lw_image map_of(const fixture *f, const char *edges) {
    union {
        const void *c;
        void *m;
    } pixels = {fixture_data(f, edges, NULL)};
    int32_t width = (int32_t)fixture_dim(f, edges, 1);
    return (lw_image){.size = sizeof(lw_image),
                      .width = width,
                      .height = (int32_t)fixture_dim(f, edges, 0),
                      .channels = 1,
                      .stride = (size_t)width,
                      .data = pixels.m};
}

/* The request that the fixture's jobs share; map must outlive it. */
static lw_request base_request(lw_image *map, lw_control *control) {
    *map = map_of(&job, "edges");
    *control = (lw_control){.size = sizeof(lw_control), .map = map, .strength = 1, .start = 0, .end = 1};
    lw_request r;
    lw_request_init(&r);
    r.prompt = "a red house and a yellow moon";
    r.seed = 7;
    r.controls = control;
    r.n_controls = 1;
    r.want_latents = 1;
    return r;
}

static void generate(lw_session *session, const lw_request *r, lw_result *result) {
    lw_error err = {0};
    ok(lw_session_generate(session, r, result, &err), &err);
}

static void compare_latents(const char *name, const lw_result *result, const fixture *f, const char *key) {
    size_t n;
    const float *latents = fixture_data(f, key, &n);
    double worst = fixture_max_diff(result->latents, latents, n);
    print_message("%-18s latents max abs error %.2e\n", name, worst);
    if (!(worst <= 1e-3)) fail_msg("%s: latents are %g away, at most 1e-3", name, worst);
}

static void compare(const char *name, const lw_result *result) {
    char key[64];
    size_t n;
    snprintf(key, sizeof key, "%s.latents", name);
    compare_latents(name, result, &job, key);
    snprintf(key, sizeof key, "%s.bytes", name);
    if (!json_object_get(job.header, key)) return;
    const uint8_t *bytes = fixture_data(&job, key, &n);
    assert_int_equal(n, (size_t)result->width * (size_t)result->height * 3);
    assert_bytes_close(name, result->images[0].data, bytes, n);
}

static void same_as_pytorch(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double cfg, strength, eta, start, end;
        lw_control_mode mode;
        int steps, samples;
    } cases[] = {
        {"ddim", 9, 1, 0, 0, 1, LW_CONTROL_BALANCED, 20, 1},
        {"scale1", 1, 1, 0, 0, 1, LW_CONTROL_BALANCED, 20, 1},
        {"guess", 4, 1, 0, 0, 1, LW_CONTROL_CONTROL, 20, 1},
        {"prompt_mode", 9, 1, 0, 0, 1, LW_CONTROL_PROMPT, 20, 1},
        {"eta1", 9, 1, 1, 0, 1, LW_CONTROL_BALANCED, 20, 1},
        {"strength05", 9, 0.5, 0, 0, 1, LW_CONTROL_BALANCED, 20, 1},
        {"strength0", 9, 0, 0, 0, 1, LW_CONTROL_BALANCED, 20, 1},
        {"window", 9, 1, 0, 0.25, 0.75, LW_CONTROL_BALANCED, 20, 1},
        {"steps15", 9, 1, 0, 0, 1, LW_CONTROL_BALANCED, 15, 1},
        {"batch2", 9, 1, 0, 0, 1, LW_CONTROL_BALANCED, 20, 2},
    };
    lw_engine *engine = open_engine(2);
    lw_session *session = NULL;
    lw_error err = {0};
    ok(lw_session_open(&session, engine, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lw_image map;
        lw_control control;
        lw_request r = base_request(&map, &control);
        lw_result result;
        r.cfg_scale = cases[i].cfg;
        r.eta = cases[i].eta;
        r.steps = cases[i].steps;
        r.samples = cases[i].samples;
        r.control_mode = cases[i].mode;
        control.strength = cases[i].strength;
        control.start = cases[i].start;
        control.end = cases[i].end;
        generate(session, &r, &result);
        assert_int_equal(result.steps, cases[i].steps == 15 ? 16 : 20); /* the reference's spacing */
        compare(cases[i].name, &result);
        lw_result_free(&result);
    }
    lw_session_close(&session);
    lw_engine_close(&engine);
}

/* The embedded model. Trained anew it makes other pictures, and the fixture has to be made anew
 * (tools/reference/README.md). */
static void demo_as_pytorch(void **state) {
    (void)state;
    lw_engine *engine = open_model(demo_model, 2);
    lw_session *session = NULL;
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_result result;
    lw_error err = {0};
    fixture f = fixture_open("demo/job");
    size_t n;
    map = map_of(&f, "edges");
    r.prompt = json_string_value(json_object_get(json_object_get(f.header, "__metadata__"), "prompt"));
    ok(lw_session_open(&session, engine, &err), &err);
    generate(session, &r, &result);
    compare_latents("demo", &result, &f, "latents");
    const uint8_t *bytes = fixture_data(&f, "bytes", &n);
    assert_bytes_close("demo", result.images[0].data, bytes, n);
    lw_result_free(&result);
    lw_session_close(&session);
    lw_engine_close(&engine);
    fixture_close(&f);
}

/* Every sampler through the networks, in several sizes and batches, against diffusers' schedulers. */
static void samplers_as_diffusers(void **state) {
    (void)state;
    static const struct {
        const char *name;
        lw_sampler sampler;
        lw_scheduler scheduler;
        int steps;
        double cfg;
    } cases[] = {
        {"ddim.discrete", LW_SAMPLER_DDIM, LW_SCHEDULER_DISCRETE, 10, 9},
        {"euler.karras", LW_SAMPLER_EULER, LW_SCHEDULER_KARRAS, 10, 5},
        {"euler_a.discrete", LW_SAMPLER_EULER_A, LW_SCHEDULER_DISCRETE, 10, 5},
        {"euler_a.reference", LW_SAMPLER_EULER_A, LW_SCHEDULER_REFERENCE, 15, 5},
        {"dpm++2m.karras", LW_SAMPLER_DPMPP_2M, LW_SCHEDULER_KARRAS, 10, 5},
        {"dpm++2m.discrete", LW_SAMPLER_DPMPP_2M, LW_SCHEDULER_DISCRETE, 10, 5},
        {"unipc.discrete", LW_SAMPLER_UNIPC, LW_SCHEDULER_DISCRETE, 10, 5},
        {"unipc.karras", LW_SAMPLER_UNIPC, LW_SCHEDULER_KARRAS, 10, 5},
        {"lcm.discrete", LW_SAMPLER_LCM, LW_SCHEDULER_DISCRETE, 4, 1},
    };
    fixture f = fixture_open("tiny/samplers");
    lw_engine *engine = open_engine(2);
    lw_session *session = NULL;
    lw_error err = {0};
    ok(lw_session_open(&session, engine, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char edges[64], latents[64];
        snprintf(edges, sizeof edges, "%s.edges", cases[i].name);
        snprintf(latents, sizeof latents, "%s.latents", cases[i].name);
        lw_image map;
        lw_control control;
        lw_result result;
        lw_request r = base_request(&map, &control);
        map = map_of(&f, edges);
        r.sampler = cases[i].sampler;
        r.scheduler = cases[i].scheduler;
        r.steps = cases[i].steps;
        r.cfg_scale = cases[i].cfg;
        r.samples = (int32_t)fixture_dim(&f, latents, 0);
        generate(session, &r, &result);
        compare_latents(cases[i].name, &result, &f, latents);
        lw_result_free(&result);
    }
    lw_session_close(&session);
    lw_engine_close(&engine);
    fixture_close(&f);
}

static void assert_same_picture(const lw_result *a, uint32_t i, const lw_result *b, uint32_t k) {
    size_t n = (size_t)a->width * (size_t)a->height * 3, latents = (size_t)a->width * (size_t)a->height / 16;
    assert_memory_equal(a->images[i].data, b->images[k].data, n);
    assert_memory_equal(a->latents + i * latents, b->latents + k * latents, latents * sizeof(float));
}

/* 1, 2 and 3 threads, and every place in a batch: the same bits. */
static void same_bits_of(const char *model, lw_precision precision) {
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_result results[4];
    lw_error err = {0};
    float *same = NULL;
    r.steps = 4;
    for (int threads = 1; threads <= 3; threads++) {
        lw_engine *engine = open_precise(model, threads, precision);
        lw_session *session = NULL;
        ok(lw_session_open(&session, engine, &err), &err);
        generate(session, &r, &results[threads]);
        if (threads == 3) { /* three samples that begin with the same noise */
            size_t n = (size_t)map.width * (size_t)map.height / 16;
            same = malloc(3 * n * sizeof *same);
            for (size_t i = 0; i < 3 * n; i++) same[i] = ((const float *)fixture_data(&job, "x_T", NULL))[i % n];
            r.samples = 3;
            r.init_latents = same;
            generate(session, &r, &results[0]);
        }
        lw_session_close(&session);
        lw_engine_close(&engine);
    }
    assert_same_picture(&results[1], 0, &results[2], 0);
    assert_same_picture(&results[1], 0, &results[3], 0);
    assert_same_picture(&results[0], 0, &results[0], 1);
    assert_same_picture(&results[0], 0, &results[0], 2);
    for (int i = 0; i < 4; i++) lw_result_free(&results[i]);
    free(same);
}

static void same_bits(void **state) {
    (void)state;
    same_bits_of(tiny_model, LW_PRECISION_FP32);
}

/* Where the CPU has no products of bf16: one error that says so. */
static void need_bf16(void) {
    if (lw_cpu_kernels_bf16()) return;
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_error err = {0};
    lw_engine_params_init(&params);
    params.model = tiny_model;
    params.device = LW_DEVICE_CPU;
    params.precision = LW_PRECISION_BF16;
    assert_int_equal(lw_engine_open(&engine, &params, &err), LW_EINVAL);
    assert_non_null(strstr(err.message, "avx512_bf16"));
    print_message("SKIPPED: %s\n", err.message);
    skip();
}

static void same_bits_in_bf16(void **state) {
    (void)state;
    need_bf16();
    same_bits_of(tiny_model, LW_PRECISION_BF16);
    same_bits_of(demo_model, LW_PRECISION_BF16);
}

/* The whole demo job in bf16: the picture of fp32 but for what nobody sees, and not the same one. */
static void bf16_is_near(void **state) {
    (void)state;
    need_bf16();
    static const lw_precision precisions[] = {LW_PRECISION_FP32, LW_PRECISION_BF16};
    fixture f = fixture_open("demo/job");
    lw_result results[2];
    lw_plan_info plans[2] = {{.size = sizeof plans[0]}, {.size = sizeof plans[1]}};
    for (int i = 0; i < 2; i++) {
        lw_engine *engine = open_precise(demo_model, 2, precisions[i]);
        lw_session *session = NULL;
        lw_image map;
        lw_control control;
        lw_request r = base_request(&map, &control);
        lw_error err = {0};
        map = map_of(&f, "edges");
        r.prompt = json_string_value(json_object_get(json_object_get(f.header, "__metadata__"), "prompt"));
        ok(lw_estimate(engine, &r, &plans[i], &err), &err);
        ok(lw_session_open(&session, engine, &err), &err);
        generate(session, &r, &results[i]);
        lw_session_close(&session);
        lw_engine_close(&engine);
    }
    size_t n = (size_t)results[0].width * (size_t)results[0].height * 3;
    double squares = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)results[0].images[0].data[i] - (double)results[1].images[0].data[i];
        squares += d * d;
    }
    double psnr = 10 * log10(255.0 * 255 * (double)n / squares),
           share = (double)plans[1].weights_bytes / (double)plans[0].weights_bytes;
    print_message("bf16: %.1f dB from fp32, %.0f %% of its weights' bytes\n", psnr, 100 * share);
    if (!(psnr >= 35 && squares > 0)) fail_msg("the picture is %.1f dB from that of fp32, at least 35", psnr);
    if (!(share < 0.8)) fail_msg("weights take %.2f of those of fp32", share);
    for (int i = 0; i < 2; i++) lw_result_free(&results[i]);
    fixture_close(&f);
}

/* A job's noise is the generator's first draw, then one draw a step; giving the first one changes nothing. */
static void noise_is_the_generators(void **state) {
    (void)state;
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_engine *engine = open_engine(2);
    lw_session *session = NULL;
    lw_result drawn[2], given;
    lw_error err = {0};
    size_t n = 2 * (size_t)map.width * (size_t)map.height / 16;
    float *first = malloc(n * sizeof *first);
    ok(lw_session_open(&session, engine, &err), &err);
    r.steps = 4;
    r.samples = 2;
    r.eta = 1;
    for (int kind = LW_RNG_CUDA; kind <= LW_RNG_CPU; kind++) {
        lw_noise noise;
        lw_noise_init(&noise, kind, (uint64_t)r.seed);
        lw_noise_draw(&noise, first, n);
        r.rng = (lw_rng)kind;
        r.init_latents = NULL;
        generate(session, &r, &drawn[kind]);
        r.init_latents = first;
        generate(session, &r, &given);
        assert_same_picture(&drawn[kind], 0, &given, 0);
        assert_same_picture(&drawn[kind], 1, &given, 1);
        lw_result_free(&given);
    }
    assert_true(fixture_max_diff(drawn[0].latents, drawn[1].latents, n) > 1);
    lw_result_free(&drawn[0]);
    lw_result_free(&drawn[1]);
    free(first);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

/* "prompt, added": where the two are cut does not matter, and an empty one leaves its comma. */
static void prompts_are_joined(void **state) {
    (void)state;
    static const char *const texts[][2] = {
        {"a red house, a moon", "best"}, {"a red house", "a moon, best"}, {"a red house", ""}, {"", "a red house"}};
    enum { N = sizeof texts / sizeof *texts };
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_engine *engine = open_engine(2);
    lw_session *session = NULL;
    lw_result results[N];
    lw_error err = {0};
    r.steps = 2;
    ok(lw_session_open(&session, engine, &err), &err);
    for (int i = 0; i < N; i++) {
        r.prompt = texts[i][0];
        r.added_prompt = texts[i][1];
        generate(session, &r, &results[i]);
    }
    assert_same_picture(&results[0], 0, &results[1], 0);
    size_t n = (size_t)map.width * (size_t)map.height / 16;
    for (int i = 2; i < N; i++)
        for (int k = 0; k < i; k++)
            if (fixture_max_diff(results[i].latents, results[k].latents, n) < 1e-2)
                fail_msg("prompts %d and %d make the same picture", i, k);
    for (int i = 0; i < N; i++) lw_result_free(&results[i]);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

typedef struct stopper {
    lw_stage stage;
    int step, calls;
} stopper;

static int stop_at(void *user, lw_stage stage, int32_t step, int32_t n) {
    stopper *s = user;
    (void)n;
    s->calls++;
    return stage == s->stage && step == s->step;
}

/* A cancel at any step ends the job; the next one on the same session is as if nothing had been. Other shapes in
 * between do not matter either. */
static void cancels_leave_no_trace(void **state) {
    (void)state;
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_engine *engine = open_engine(2);
    lw_session *session = NULL;
    lw_result first, again;
    lw_error err = {0};
    r.steps = 5;
    ok(lw_session_open(&session, engine, &err), &err);
    generate(session, &r, &first);
    for (int step = 0; step <= 5; step++) {
        stopper s = {.stage = LW_STAGE_STEPS, .step = step};
        r.progress = stop_at;
        r.user = &s;
        assert_int_equal(lw_session_generate(session, &r, &again, &err), LW_ECANCEL);
        assert_null(again.images);
        assert_true(s.calls > 0);
        r.progress = NULL;
        if (step % 2) { /* another shape, another number of passes */
            lw_request other = r;
            other.width = other.height = 64;
            other.cfg_scale = 1;
            generate(session, &other, &again);
            lw_result_free(&again);
        }
        generate(session, &r, &again);
        assert_same_picture(&first, 0, &again, 0);
        lw_result_free(&again);
    }
    lw_result_free(&first);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

static void refuses(lw_session *session, const lw_request *r, lw_status want, const char *word) {
    lw_error err = {0};
    lw_result result;
    assert_int_equal(lw_session_generate(session, r, &result, &err), want);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not name %s", err.message, word);
    assert_int_equal(result.n_images, 0);
}

static void bad_requests(void **state) {
    (void)state;
    lw_image map;
    lw_control control;
    const lw_request good = base_request(&map, &control);
    lw_engine *engine = open_engine(1);
    lw_session *session = NULL;
    lw_error err = {0};
    ok(lw_session_open(&session, engine, &err), &err);
#define BAD(field, value, status, word)                                                                                \
    do {                                                                                                               \
        lw_request r = good;                                                                                           \
        r.field = (value);                                                                                             \
        refuses(session, &r, status, word);                                                                            \
    } while (0)
    BAD(steps, 0, LW_EINVAL, "steps");
    BAD(steps, 1000000000, LW_EINVAL, "steps");
    BAD(steps, 3, LW_EINVAL, "3");
    BAD(cfg_scale, NAN, LW_EINVAL, "cfg");
    BAD(cfg_scale, INFINITY, LW_EINVAL, "cfg");
    BAD(eta, -0.1, LW_EINVAL, "eta");
    BAD(samples, 13, LW_EINVAL, "samples");
    BAD(seed, -2, LW_EINVAL, "seed");
    BAD(canny_low, NAN, LW_EINVAL, "canny");
    BAD(width, 64, LW_EINVAL, "height");
    BAD(prompt, NULL, LW_EINVAL, "prompt");
    BAD(prompt, "\xff", LW_EINPUT, "UTF-8");
    BAD(n_controls, 2, LW_EINVAL, "control");
    BAD(n_controls, 0, LW_EINVAL, "map");
    BAD(resolution, 63, LW_EINVAL, "resolution");
#undef BAD
    control.strength = NAN;
    refuses(session, &good, LW_EINVAL, "strength");
    control.strength = 1;
    lw_request r = good;
    r.width = 72;
    r.height = 64;
    refuses(session, &r, LW_EINVAL, "72x64");
    lw_session_close(&session);
    lw_engine_close(&engine);
}

static void estimate_is_right(void **state) {
    (void)state;
    lw_image map;
    lw_control control;
    lw_request r = base_request(&map, &control);
    lw_engine *engine = open_engine(1);
    lw_plan_info info = {.size = sizeof info};
    lw_error err = {0};
    ok(lw_estimate(engine, &r, &info, &err), &err);
    assert_int_equal(info.width, 128);
    assert_int_equal(info.height, 64);
    assert_int_equal(info.steps, 20);
    assert_true(info.weights_bytes > 1 << 20 && info.activations_bytes > 0 && info.gflop > 0.1);
    assert_int_equal(info.total_bytes, info.weights_bytes + info.activations_bytes + info.tables_bytes);
    double both = info.gflop;
    r.cfg_scale = 1; /* one pass a step; text, time, hint and decode stay what they were */
    ok(lw_estimate(engine, &r, &info, &err), &err);
    assert_true(info.gflop < 0.7 * both);
    lw_engine_close(&engine);
}

static int open_fixture(void **state) {
    (void)state;
    job = fixture_open("tiny/job");
    return 0;
}

static int close_fixture(void **state) {
    (void)state;
    fixture_close(&job);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_pytorch),        cmocka_unit_test(demo_as_pytorch),
        cmocka_unit_test(samplers_as_diffusers),  cmocka_unit_test(noise_is_the_generators),
        cmocka_unit_test(prompts_are_joined),     cmocka_unit_test(same_bits),
        cmocka_unit_test(same_bits_in_bf16),      cmocka_unit_test(bf16_is_near),
        cmocka_unit_test(cancels_leave_no_trace), cmocka_unit_test(bad_requests),
        cmocka_unit_test(estimate_is_right),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
