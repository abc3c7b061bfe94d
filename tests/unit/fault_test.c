/* SPDX-License-Identifier: MIT
 * Every fallible call (allocation, read) of load and generate made to fail in turn: an error, no leak (seen by AddressSanitizer), and the next job
 * works and gives the same picture. Default: a spread of them; --all: every one, once and from there on. */
#include "fixture.h"

#include <time.h>
#include <unistd.h>

#include "base/base.h"

/* What it runs on, and how many of the calls fail without --all: fewer on the simulator (simulator/simulator.h). */
#ifdef LW_TEST_SIMULATED
static const lw_device device = LW_DEVICE_CUDA;
enum { TRIED = 75 };
#else
static const lw_device device = LW_DEVICE_CPU;
enum { TRIED = 150 };
#endif

static bool every;

static const char model[] = LW_TEST_DATA "/tiny/model.safetensors";

/* --all takes long: where it is, once a second on a terminal, else every 500 calls. */
static void tell_progress(const char *what, long at, long n) {
    static time_t last;
    time_t now = time(NULL);
    if (!every || (isatty(STDERR_FILENO) ? now == last : at % 500 != 0)) return;
    last = now;
    fprintf(stderr, "%s %ld of %ld\n", what, at, n);
}

/* Opens, makes a 64x64 picture in 2 steps, closes. out: the picture. */
static lw_status whole_job(uint8_t out[64 * 64 * 3], lw_error *err) {
    static uint8_t edges[64 * 64];
    for (int i = 0; i < 64; i++) edges[i * 64 + i] = edges[32 * 64 + i] = 255;
    lw_image map = {.size = sizeof map, .width = 64, .height = 64, .channels = 1, .stride = 64, .data = edges};
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = 0, .end = 1};
    lw_engine_params params;
    lw_request r;
    lw_result result = {0};
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_engine_params_init(&params);
    params.model = model;
    params.threads = 1;
    params.device = device;
    lw_request_init(&r);
    r.prompt = "a red house";
    r.steps = 2;
    r.seed = 1;
    r.controls = &control;
    r.n_controls = 1;
    r.want_latents = 1;
    lw_status status = lw_engine_open(&engine, &params, err);
    if (status == LW_OK) status = lw_session_open(&session, engine, err);
    if (status == LW_OK) status = lw_session_generate(session, &r, &result, err);
    if (status == LW_OK) memcpy(out, result.images[0].data, 64 * 64 * 3);
    lw_result_free(&result);
    lw_session_close(&session);
    lw_engine_close(&engine);
    return status;
}

static void each_call_fails_once(void **state) {
    (void)state;
    uint8_t want[64 * 64 * 3], got[64 * 64 * 3];
    lw_error err = {0};
    lw_fault_arm(1L << 60, false);
    assert_int_equal(whole_job(want, &err), LW_OK);
    long n = lw_fault_count();
    lw_fault_arm(0, false);
    print_message("%ld fallible calls\n", n);
    assert_true(n > 500);
    long stride = every ? 1 : n / TRIED | 1, failed = 0;
    for (int again = 0; again <= (every ? 1 : 0); again++)
        for (long at = 1; at <= n; at += stride) {
            err = (lw_error){0};
            tell_progress(again ? "all calls fail from" : "one call fails:", at, n);
            lw_fault_arm(at, again);
            lw_status status = whole_job(got, &err);
            lw_fault_arm(0, false);
            if (status == LW_OK) { /* only what is a mere cache may fail unseen, and then the picture is right */
                assert_memory_equal(got, want, sizeof want);
                continue;
            }
            failed++;
            if (err.code != status || !err.message[0]) fail_msg("call %ld: status %s without a sentence", at, lw_status_name(status));
        }
    print_message("%ld of them gave an error\n", failed);
    assert_true(failed > TRIED * 2 / 3);
    assert_int_equal(whole_job(got, &err), LW_OK);
    assert_memory_equal(got, want, sizeof want);
}

/* jansson's own allocations, which read the header and the metadata. Its text buffer doubles from 16 bytes, and jansson 2.14 takes no notice when
 * that fails: a character is lost, and where it was an escape's, an assertion fails. So what has such a size, tables of its objects too, is given. */
static long json_calls, json_fails_at;
static void *json_take(size_t n) {
    bool doubled = n >= 32 && (n & (n - 1)) == 0;
    return ++json_calls == json_fails_at && !doubled ? NULL : malloc(n);
}

static void each_allocation_of_json_fails_once(void **state) {
    (void)state;
    uint8_t want[64 * 64 * 3], got[64 * 64 * 3];
    lw_error err = {0};
    json_set_alloc_funcs(json_take, free);
    json_fails_at = 0;
    json_calls = 0;
    assert_int_equal(whole_job(want, &err), LW_OK);
    long n = json_calls, failed = 0;
    print_message("%ld allocations by jansson\n", n);
    assert_true(n > 1000);
    for (long at = 1; at <= n; at += every ? 1 : n / 40 | 1) {
        err = (lw_error){0};
        tell_progress("one of jansson's allocations fails:", at, n);
        json_calls = 0;
        json_fails_at = at;
        lw_status status = whole_job(got, &err);
        if (status == LW_OK) {
            assert_memory_equal(got, want, sizeof want);
            continue;
        }
        failed++;
        if (err.code != status || !err.message[0]) fail_msg("allocation %ld: status %s without a sentence", at, lw_status_name(status));
    }
    json_set_alloc_funcs(malloc, free);
    print_message("%ld of them gave an error\n", failed);
    assert_true(failed > 20);
    assert_int_equal(whole_job(got, &err), LW_OK);
    assert_memory_equal(got, want, sizeof want);
}

/* A session goes on after a failure inside it, an engine after one of its device. */
static void a_session_survives(void **state) {
    (void)state;
    uint8_t edges[64 * 64] = {255};
    lw_image map = {.size = sizeof map, .width = 64, .height = 64, .channels = 1, .stride = 64, .data = edges};
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = 0, .end = 1};
    lw_engine_params params;
    lw_request r;
    lw_result first, result;
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_error err = {0};
    lw_engine_params_init(&params);
    params.model = model;
    params.threads = 1;
    params.device = device;
    lw_request_init(&r);
    r.prompt = "a";
    r.steps = 1;
    r.scheduler = LW_SCHEDULER_DISCRETE;
    r.seed = 1;
    r.controls = &control;
    r.n_controls = 1;
    assert_int_equal(lw_engine_open(&engine, &params, &err), LW_OK);
    assert_int_equal(lw_session_open(&session, engine, &err), LW_OK);
    assert_int_equal(lw_session_generate(session, &r, &first, &err), LW_OK);
    for (long at = 1; at < 40; at++) {
        lw_fault_arm(at, false);
        lw_status status = lw_session_generate(session, &r, &result, &err);
        lw_fault_arm(0, false);
        lw_result_free(&result);
        if (status == LW_EDEVICE) { /* closes the session, and nothing else */
            lw_session_close(&session);
            assert_int_equal(lw_session_open(&session, engine, &err), LW_OK);
        }
        if (lw_session_generate(session, &r, &result, &err) != LW_OK)
            fail_msg("after a failure of call %ld: %s", at, err.message);
        assert_memory_equal(result.images[0].data, first.images[0].data, 64 * 64 * 3);
        lw_result_free(&result);
    }
    lw_result_free(&first);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

int main(int argc, char **argv) {
    every = argc > 1 && !strcmp(argv[1], "--all");
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_call_fails_once), cmocka_unit_test(each_allocation_of_json_fails_once),
                                       cmocka_unit_test(a_session_survives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
