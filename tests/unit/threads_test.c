/* SPDX-License-Identifier: MIT
 * 8 threads with 8 sessions of one engine: the same bits as one after the other. Run under ThreadSanitizer by tools/tsan_test. */
#include "fixture.h"

#include <pthread.h>

#include "linework.h"

enum { THREADS = 8, JOBS = 3 };

typedef struct worker {
    lw_engine *engine;
    int first;
    uint8_t pictures[JOBS][64 * 64 * 3];
    lw_status status;
} worker;

static void make(worker *w, lw_session *session, int job) {
    uint8_t edges[64 * 64] = {0};
    lw_image map = {.size = sizeof map, .width = 64, .height = 64, .channels = 1, .stride = 64, .data = edges};
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = 0, .end = 1};
    lw_request r;
    lw_result result;
    lw_error err;
    for (int i = 0; i < 64; i++) edges[i * 64 + (w->first + job + i) % 64] = 255;
    lw_request_init(&r);
    r.prompt = job % 2 ? "a red house" : "a boat";
    r.steps = 2;
    r.seed = w->first * JOBS + job;
    r.cfg_scale = job == 2 ? 1 : 9; /* another shape now and then */
    r.controls = &control;
    r.n_controls = 1;
    lw_status status = lw_session_generate(session, &r, &result, &err);
    if (status == LW_OK) memcpy(w->pictures[job], result.images[0].data, sizeof w->pictures[job]);
    if (status != LW_OK) w->status = status;
    lw_result_free(&result);
}

static void *work(void *user) {
    worker *w = user;
    lw_session *session = NULL;
    lw_error err;
    w->status = lw_session_open(&session, w->engine, &err);
    for (int job = 0; job < JOBS && w->status == LW_OK; job++) make(w, session, job);
    lw_session_close(&session);
    return NULL;
}

static void same_as_serial(void **state) {
    (void)state;
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_error err;
    static worker serial[THREADS], parallel[THREADS];
    pthread_t threads[THREADS];
    lw_engine_params_init(&params);
    params.model = LW_TEST_DATA "/tiny/model.safetensors";
    params.threads = 1;
    params.device = LW_DEVICE_CPU;
    assert_int_equal(lw_engine_open(&engine, &params, &err), LW_OK);
    for (int i = 0; i < THREADS; i++) serial[i] = parallel[i] = (worker){.engine = engine, .first = i};
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, &parallel[i]), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        work(&serial[i]);
        assert_int_equal(parallel[i].status, LW_OK);
        assert_int_equal(serial[i].status, LW_OK);
        assert_memory_equal(parallel[i].pictures, serial[i].pictures, sizeof serial[i].pictures);
    }
    lw_engine_close(&engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_as_serial)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
