/* SPDX-License-Identifier: MIT
 * Good safetensors: read, described, written again; and the faults of the machine under them. */
#include "weights/weights.h"
#include "weight_files.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>

#define OFFICIAL LW_TEST_DATA "/weights/official.safetensors" /* tools/weight_fixtures.py wrote it */

static lw_weights *open_or_fail(const char *path) {
    lw_weights *w;
    lw_error err;
    if (lw_weights_open(&w, path, &err) != LW_OK) fail_msg("%s", err.message);
    return w;
}

static void test_official(void **state) {
    (void)state;
    static const struct {
        const char *name;
        lw_dtype dtype;
        int32_t rank;
        size_t n;
    } want[] = {{"clip.text_model.embeddings.position_ids", LW_I64, 2, 7},
                {"clip.text_model.final_layer_norm.bias", LW_F32, 1, 3},
                {"control.zero_convs.0.0.bias", LW_F64, 1, 3},
                {"unet.out.2.weight", LW_BF16, 4, 6},
                {"unet.time_embed.0.bias", LW_F16, 1, 4},
                {"unet.time_embed.0.weight", LW_F32, 2, 8},
                {"vae.quant_conv.bias", LW_F16, 1, 5}};
    lw_weights *w = open_or_fail(OFFICIAL);
    assert_int_equal(lw_weights_count(w), 7);
    assert_int_equal(lw_weights_ignored(w), 8);
    assert_string_equal(lw_weights_layout(w), "safetensors-ldm");
    assert_string_equal(lw_weights_metadata(w, "linework"), "{\"name\":\"t\u00e9st \\\"q\\\"\"}");
    assert_null(lw_weights_metadata(w, "other"));
    assert_null(lw_weights_find(w, "unet.time_embed.0"));
    assert_null(lw_weights_find(w, "betas"));
    for (size_t i = 0; i < 7; i++) {
        const lw_tensor *t = lw_weights_find(w, want[i].name);
        float values[8];
        assert_ptr_equal(t, lw_weights_at(w, i));
        assert_int_equal(t->dtype, want[i].dtype);
        assert_int_equal(t->rank, want[i].rank);
        assert_int_equal(t->n, want[i].n);
        assert_int_equal(lw_tensor_read(w, t, values, NULL), LW_OK);
        for (size_t k = 0; k < t->n; k++) assert_true(values[k] == (float)k);
    }
    lw_weights_close(&w);
    assert_null(w);
    lw_weights_close(&w);
}

static void test_describe(void **state) {
    (void)state;
    char *text;
    lw_error err;
    assert_int_equal(lw_weights_describe(OFFICIAL, &text, &err), LW_OK);
    json_t *root = json_loads(text, 0, NULL), *networks = json_object_get(root, "networks");
    const json_t *unet = json_object_get(networks, "unet"), *clip = json_object_get(networks, "clip");
    assert_int_equal(json_object_size(networks), 4);
    assert_int_equal(json_integer_value(json_object_get(unet, "tensors")), 3);
    assert_int_equal(json_integer_value(json_object_get(unet, "parameters")), 18);
    assert_int_equal(json_integer_value(json_object_get(unet, "bytes")), 32 + 8 + 12);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(unet, "dtypes"), "BF16")), 1);
    assert_int_equal(json_integer_value(json_object_get(clip, "parameters")), 3); /* position_ids are none */
    assert_int_equal(json_integer_value(json_object_get(root, "ignored")), 8);
    assert_non_null(json_object_get(json_object_get(root, "metadata"), "linework"));
    json_decref(root);
    lw_free(text);
    assert_int_equal(lw_weights_describe("/nothing/here", &text, &err), LW_EMODEL);
    assert_null(text);
    assert_int_equal(lw_weights_describe(LW_TEST_DATA "/text/merges.txt", &text, &err), LW_EMODEL);
}

static lw_status load_counted(void *user, size_t i, void *dst, lw_error *err) {
    const lw_save_tensor *tensors = user;
    size_t n = 1;
    (void)err;
    for (int32_t k = 0; k < tensors[i].rank; k++) n *= (size_t)tensors[i].dims[k];
    for (size_t k = 0; k < n; k++) ((float *)dst)[k] = (float)k;
    return LW_OK;
}

/* Every type of the official file in another order: the bytes are the official writer's. */
static void test_write(void **state) {
    (void)state;
    static const float f[8] = {0, 1, 2, 3, 4, 5, 6, 7}, seven = 7;
    static const double d[3] = {0, 1, 2};
    static const uint16_t half[5] = {0, 0x3c00, 0x4000, 0x4200, 0x4400},
                          brain[6] = {0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0};
    static const int64_t i64[7] = {0, 1, 2, 3, 4, 5, 6};
    static const int32_t i32[3] = {0, 1, 2};
    static const int16_t i16[3] = {0, 1, 2};
    static const uint8_t u8[3] = {0, 1, 2}, flags[3] = {1, 0, 1};
    lw_save_tensor tensors[] = {
        {"some.bool", LW_BOOL, 1, {3}, flags},
        {"some.i8", LW_I8, 1, {3}, u8},
        {"some.u8", LW_U8, 1, {3}, u8},
        {"some.i16", LW_I16, 1, {3}, i16},
        {"some.i32", LW_I32, 1, {3}, i32},
        {"some.empty", LW_F32, 2, {0, 4}, f},
        {"some.scalar", LW_F32, 0, {0}, &seven},
        {"betas", LW_F32, 1, {2}, f},
        {"cond_stage_model.transformer.text_model.final_layer_norm.bias", LW_F32, 1, {3}, f},
        {"cond_stage_model.transformer.text_model.embeddings.position_ids", LW_I64, 2, {1, 7}, i64},
        {"first_stage_model.quant_conv.bias", LW_F16, 1, {5}, half},
        {"control_model.zero_convs.0.0.bias", LW_F64, 1, {3}, d},
        {"model.diffusion_model.out.2.weight", LW_BF16, 4, {2, 3, 1, 1}, brain},
        {"model.diffusion_model.time_embed.0.bias", LW_F16, 1, {4}, half},
        {"model.diffusion_model.time_embed.0.weight", LW_F32, 2, {4, 2}, NULL},
    };
    char key[] = "linework", value[] = "{\"name\":\"t\u00e9st \\\"q\\\"\"}",
         path[] = "safetensors_test.tmp.safetensors";
    lw_field field = {key, value};
    lw_save save = {tensors, sizeof tensors / sizeof *tensors, &field, 1, load_counted, tensors};
    lw_error err;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    file_bytes got = read_whole(path), want = read_whole(OFFICIAL);
    assert_int_equal(got.n, want.n);
    assert_memory_equal(got.data, want.data, want.n);
    free(got.data);
    free(want.data);
    unlink(path);
    for (long nth = 1;; nth++) { /* every fallible call fails in turn: nothing is left behind */
        lw_fault_arm(nth, false);
        lw_status status = lw_safetensors_write(path, &save, &err);
        bool reached = lw_fault_count() >= nth;
        lw_fault_arm(0, false);
        assert_int_equal(status == LW_OK, !reached);
        if (!reached) break;
        assert_int_equal(access(path, F_OK), -1);
    }
    unlink(path);
    assert_int_equal(lw_safetensors_write("/nothing/here/x", &save, &err), LW_EOUTPUT);
    assert_int_equal(lw_safetensors_write("/dev/full", &save, &err), LW_EOUTPUT);
    tensors[0].name = "some.u8";
    tensors[0].dtype = LW_U8;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_EINVAL);
    assert_int_equal(access(path, F_OK), -1);
}

/* A large tensor of each type, so that reading takes more than one chunk. */
static void test_chunks(void **state) {
    (void)state;
    enum { N = 100003 };
    uint16_t *half = malloc(N * 2);
    float *got = malloc(N * 4);
    for (int i = 0; i < N; i++) half[i] = lw_f32_to_f16((float)(i % 2048));
    lw_save_tensor t = {"control_model.time_embed.0.weight", LW_F16, 1, {N}, half};
    lw_save save = {.tensors = &t, .n = 1};
    const char *path = "safetensors_test.tmp.chunks";
    lw_error err;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    lw_weights *w = open_or_fail(path);
    assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_OK);
    for (int i = 0; i < N; i++) assert_true(got[i] == (float)(i % 2048));
    lw_weights_close(&w);

    half[70001] = 0x7e00;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    w = open_or_fail(path);
    assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "control_model.time_embed.0.weight: value 70001 of 100003 is NaN"));
    half[70001] = 0;
    half[3] = 0xfc00;
    lw_weights_close(&w);
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    w = open_or_fail(path);
    assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "infinite"));

    assert_int_equal(truncate(path, 100000), 0); /* cut while it is open */
    assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_EMODEL);
    lw_weights_close(&w);
    half[3] = 0;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    w = open_or_fail(path);
    assert_int_equal(truncate(path, 100000), 0);
    assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "now ends at 100000"));
    lw_weights_close(&w);
    unlink(path);
    free(half);
    free(got);
}

/* Rows are those of the whole tensor; what is wrong in one is told by its place in the tensor. */
static void test_rows(void **state) {
    (void)state;
    enum { ROWS = 61, EACH = 700 };
    static uint16_t half[ROWS * EACH];
    static float all[ROWS * EACH], got[ROWS * EACH];
    for (int i = 0; i < ROWS * EACH; i++) half[i] = lw_f32_to_f16((float)(i % 2039));
    half[40 * EACH + 7] = 0x7e00;
    lw_save_tensor t = {"control_model.time_embed.0.weight", LW_F16, 2, {ROWS, EACH}, half};
    lw_save save = {.tensors = &t, .n = 1};
    const char *path = "safetensors_test.tmp.rows";
    lw_error err;
    assert_int_equal(lw_safetensors_write(path, &save, &err), LW_OK);
    lw_weights *w = open_or_fail(path);
    const lw_tensor *weight = lw_weights_at(w, 0);
    for (int i = 0; i < ROWS * EACH; i++) all[i] = (float)(i % 2039);
    for (int64_t row = 0; row < 40; row += 9) {
        memset(got, 0xff, sizeof got);
        assert_int_equal(lw_tensor_read_rows(w, weight, row, 4, got, &err), LW_OK);
        assert_memory_equal(got, all + row * EACH, 4 * EACH * sizeof *got);
        assert_true(isnan(got[4 * EACH]));
    }
    assert_int_equal(lw_tensor_read_rows(w, weight, ROWS, 0, got, &err), LW_OK);
    assert_int_equal(lw_tensor_read_rows(w, weight, 39, 5, got, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "value 28007 of 42700 is NaN"));
    assert_int_equal(lw_tensor_read_rows(w, weight, 60, 2, got, &err), LW_EINTERNAL);
    assert_non_null(strstr(err.message, "rows 60 to 62 are wanted of the 61"));
    assert_int_equal(lw_tensor_read_rows(w, weight, -1, 1, got, &err), LW_EINTERNAL);
    lw_weights_close(&w);
    unlink(path);
}

static void test_parts(void **state) {
    (void)state;
    lw_weights *w;
    lw_error err;
    assert_int_equal(lw_weights_open_part(&w, OFFICIAL, "control", &err), LW_OK);
    assert_int_equal(lw_weights_count(w), 1);
    assert_int_equal(lw_weights_ignored(w), 14);
    lw_weights_close(&w);
    assert_int_equal(lw_weights_open_part(&w, OFFICIAL, "lora", &err), LW_EINVAL);
    assert_null(w);
}

static void test_not_models(void **state) {
    (void)state;
    static const char *const paths[] = {"/nothing/here", "/dev/null", "/dev/zero", LW_TEST_DATA "/text/words.txt", ""};
    lw_weights *w;
    lw_error err;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        assert_int_equal(lw_weights_open(&w, paths[i], &err), LW_EMODEL);
        assert_null(w);
        assert_memory_equal(err.message, paths[i], strlen(paths[i]));
    }
    const char *fifo = "safetensors_test.tmp.fifo"; /* must not wait for a writer */
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(lw_weights_open(&w, fifo, &err), LW_EMODEL);
    unlink(fifo);
}

static void *read_all(void *user) {
    const lw_weights *w = user;
    float values[8];
    for (int round = 0; round < 200; round++)
        for (size_t i = 0; i < lw_weights_count(w); i++)
            if (lw_tensor_read(w, lw_weights_at(w, i), values, NULL) != LW_OK || values[1] != 1) return user;
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    lw_weights *w = open_or_fail(OFFICIAL);
    pthread_t threads[8];
    void *wrong;
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&threads[i], NULL, read_all, w), 0);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
    }
    lw_weights_close(&w);
}

static void test_faults(void **state) {
    (void)state;
    lw_error err;
    for (int again = 0; again < 2; again++) {
        for (long nth = 1;; nth++) {
            lw_weights *w = NULL;
            float values[8];
            char *text = NULL;
            lw_fault_arm(nth, again);
            lw_status status = lw_weights_open(&w, OFFICIAL, &err);
            if (status == LW_OK) status = lw_tensor_read(w, lw_weights_at(w, 3), values, &err);
            if (status == LW_OK) status = lw_weights_describe(OFFICIAL, &text, &err);
            bool reached = lw_fault_count() >= nth;
            lw_fault_arm(0, false);
            assert_int_equal(status == LW_OK, !reached);
            lw_free(text);
            lw_weights_close(&w);
            if (!reached) break;
            assert_true(strncmp(err.message, OFFICIAL, strlen(OFFICIAL)) == 0);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_official),   cmocka_unit_test(test_describe), cmocka_unit_test(test_write),
        cmocka_unit_test(test_chunks),     cmocka_unit_test(test_rows),     cmocka_unit_test(test_parts),
        cmocka_unit_test(test_not_models), cmocka_unit_test(test_threads),  cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
