/* SPDX-License-Identifier: MIT
 * lw_model_doctor always ends in a report or in one sentence: with every fallible call made to fail in turn, and on
 * files with damaged headers. tests/cli/models.sh has what the reports say. */
#include "base/base.h"
#include "weight_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

/* The report of path, which has to be one, or NULL and the status. */
static json_t *examine(const char *path, lw_status *status) {
    lw_doctor_params params;
    lw_error err = {0};
    char *text = NULL;
    lw_doctor_params_init(&params);
    *status = lw_model_doctor(path, &params, &text, &err);
    assert_true((*status == LW_OK) == (text != NULL));
    if (!text) assert_true(err.code == *status && err.message[0]);
    json_t *report = text ? json_loads(text, 0, NULL) : NULL;
    assert_true((report != NULL) == (text != NULL));
    lw_free(text);
    if (!report) return NULL;
    assert_true(json_is_boolean(json_object_get(report, "usable")));
    assert_true(json_is_array(json_object_get(report, "remarks")));
    bool usable = json_is_true(json_object_get(report, "usable"));
    assert_int_equal(usable, json_array_size(json_object_get(report, "problems")) == 0);
    assert_int_equal(usable, json_object_get(report, "use") != NULL);
    return report;
}

static void every_call_fails_in_turn(void **state) {
    (void)state;
    lw_status status;
    const char *path = LW_TEST_DATA "/tiny/model.safetensors";
    lw_fault_arm(1L << 60, false);
    json_t *report = examine(path, &status);
    long n = lw_fault_count(), failed = 0, unusable = 0;
    lw_fault_arm(0, false);
    assert_int_equal(status, LW_OK);
    assert_true(json_is_true(json_object_get(report, "usable")));
    json_decref(report);
    assert_true(n > 500);
    for (long at = 1; at <= n; at += n / 80 | 1) {
        lw_fault_arm(at, false);
        report = examine(path, &status);
        lw_fault_arm(0, false);
        if (status != LW_OK) assert_int_equal(status, LW_ENOMEM);
        failed += status != LW_OK;
        unusable += report && json_is_false(json_object_get(report, "usable"));
        json_decref(report);
    }
    print_message("%ld fallible calls, %ld runs without a report, %ld that found the file damaged\n", n, failed,
                  unusable);
    assert_true(failed > 0 && unusable > 10); /* memory, and reads */
}

static void damaged_headers(void **state) {
    (void)state;
    const char *path = "doctor_test.tmp";
    file_bytes f = read_whole(LW_TEST_DATA "/weights/tiny-ldm.safetensors");
    size_t header = 8 + ((size_t)f.data[0] | (size_t)f.data[1] << 8 | (size_t)f.data[2] << 16);
    long unusable = 0, runs = 0;
    assert_true(f.n > header);
    for (size_t at = 0; at < header; at += at < 16 ? 1 : header / 120) {
        lw_status status;
        uint8_t old = f.data[at];
        f.data[at] ^= 1 << at % 8;
        assert_true(write_whole(path, f.data, f.n));
        json_t *report = examine(path, &status);
        assert_int_equal(status, LW_OK);
        unusable += json_is_false(json_object_get(report, "usable"));
        runs++;
        json_decref(report);
        f.data[at] = old;
    }
    assert_true(runs > 100 && unusable > runs / 2);
    unlink(path);
    free(f.data);
}

static int stop(void *user, uint64_t done, uint64_t total) {
    assert_true(done <= total);
    return ++*(int *)user == 3;
}

static void cancelled(void **state) {
    (void)state;
    lw_doctor_params params;
    lw_error err;
    char *text;
    int calls = 0;
    lw_doctor_params_init(&params);
    params.progress = stop;
    params.user = &calls;
    assert_int_equal(lw_model_doctor(LW_TEST_DATA "/tiny/model.safetensors", &params, &text, &err), LW_ECANCEL);
    assert_null(text);
    assert_int_equal(calls, 3);
    params.size = 8;
    assert_int_equal(lw_model_doctor("x", &params, &text, &err), LW_EINVAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_call_fails_in_turn), cmocka_unit_test(damaged_headers),
                                       cmocka_unit_test(cancelled)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
