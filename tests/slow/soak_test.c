/* SPDX-License-Identifier: MIT
 * 1,000 pictures in one process, of several shapes: resident memory and open descriptors stay flat, and the last picture of a request is its first. */
#include "fixture.h"

#include <dirent.h>
#include <unistd.h>

#include "linework.h"

enum { PICTURES = 1000, WARM = 100 };

static long resident_kib(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    long total = 0, resident = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &total, &resident), 2);
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int open_descriptors(void) {
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

static void flat(void **state) {
    (void)state;
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_error err;
    static uint8_t edges[64 * 128], first[4][64 * 128 * 3];
    lw_image map = {.size = sizeof map, .height = 64, .channels = 1, .stride = 128, .data = edges};
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = 0, .end = 1};
    long warm = 0;
    int descriptors = 0;
    for (int i = 0; i < 64; i++) edges[i * 128 + i] = 255;
    lw_engine_params_init(&params);
    params.model = LW_TEST_DATA "/tiny/model.safetensors";
    params.device = LW_DEVICE_CPU;
    assert_int_equal(lw_engine_open(&engine, &params, &err), LW_OK);
    assert_int_equal(lw_session_open(&session, engine, &err), LW_OK);
    for (int i = 0; i < PICTURES; i++) {
        lw_request r;
        lw_result result;
        int kind = i % 4;
        lw_request_init(&r);
        map.width = kind < 2 ? 64 : 128;
        r.prompt = kind % 2 ? "a boat" : "a red house";
        r.cfg_scale = kind == 3 ? 1 : 9;
        r.steps = 2;
        r.seed = kind;
        r.controls = &control;
        r.n_controls = 1;
        if (lw_session_generate(session, &r, &result, &err) != LW_OK) fail_msg("picture %d: %s", i, err.message);
        size_t n = (size_t)map.width * 64 * 3;
        if (i < 4) memcpy(first[kind], result.images[0].data, n);
        assert_memory_equal(result.images[0].data, first[kind], n);
        lw_result_free(&result);
        if (i == WARM) warm = resident_kib(), descriptors = open_descriptors();
    }
    long end = resident_kib();
    print_message("resident %ld KiB after %d pictures, %ld KiB after %d\n", warm, WARM, end, PICTURES);
    if (end > warm + warm / 100 + 1024) fail_msg("resident memory grew from %ld to %ld KiB", warm, end);
    assert_int_equal(open_descriptors(), descriptors);
    lw_session_close(&session);
    lw_engine_close(&engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(flat)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
