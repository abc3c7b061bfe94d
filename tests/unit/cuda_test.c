/* SPDX-License-Identifier: MIT
 * What of the CUDA backend can be tested without a GPU: the libraries' table, packs, and the errors of a machine
 * without one.
 */
#include "fixture.h"

#ifdef LW_HAVE_CUDA
#include <math.h>
#include <unistd.h>

#include "bench.h"
#include "cuda/device.h"

static void a_missing_library_is_named(void **state) {
    (void)state;
    static const char *const names[] = {"cosine"};
    void *found = NULL;
    lw_error err = {0};
    assert_int_equal(cu_load_library("libnowhere.so.7", "Nowhere 7.1", names, 1, &found, &err), LW_EDEVICE);
    assert_non_null(strstr(err.message, "libnowhere.so.7"));
    assert_non_null(strstr(err.message, "Nowhere 7.1"));
}

static void a_missing_function_is_named(void **state) {
    (void)state;
    static const char *const names[] = {"cos", "cosine_of_nothing"};
    void *found[2] = {NULL};
    lw_error err = {0};
    assert_int_equal(cu_load_library("libm.so.6", "libm 99", names, 1, found, &err), LW_OK);
    assert_non_null(found[0]);
    assert_int_equal(cu_load_library("libm.so.6", "libm 99", names, 2, found, &err), LW_EDEVICE);
    assert_non_null(strstr(err.message, "cosine_of_nothing"));
    assert_non_null(strstr(err.message, "libm 99"));
}

/* Where the libraries are installed (their headers were), all functions are found; else the error names the library. */
static void the_libraries_have_every_function(void **state) {
    (void)state;
    cu_blas_functions lt = {0};
    cu_dnn_functions dn = {0};
    lw_error err = {0};
    if (cu_load_blas(&lt, &err) == LW_OK) assert_int_equal(lt.GetVersion() / 10000, CUBLAS_VER_MAJOR);
    else assert_non_null(strstr(err.message, "libcublasLt.so"));
    if (cu_load_dnn(&dn, &err) == LW_OK) assert_int_equal(dn.GetVersion() / 10000, CUDNN_MAJOR);
    else assert_non_null(strstr(err.message, "libcudnn.so"));
}

/* ---- packs, by a device that is the host's memory */

static lw_status host_alloc(lw_backend *backend, size_t bytes, void **out, lw_error *err) {
    (void)backend;
    *out = lw_alloc_aligned(bytes);
    return *out ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory");
}

static void host_free(lw_backend *backend, void *p) {
    (void)backend;
    lw_free(p);
}

static lw_status host_upload(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err) {
    (void)backend, (void)err;
    memcpy(dst, src, bytes);
    return LW_OK;
}

/* Names are shapes. */
static lw_status shape_dims(void *user, const char *name, int64_t d[4], lw_error *err) {
    (void)user, (void)err;
    long long n[4];
    assert_int_equal(sscanf(name, "%lld.%lld.%lld.%lld", &n[0], &n[1], &n[2], &n[3]), 4);
    for (int i = 0; i < 4; i++) d[i] = n[i];
    return LW_OK;
}

static float value_at(int64_t i) { return (float)(i * 7919 % 100003) / 1009.0f - 50; }

static lw_status shape_read(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    int64_t d[4];
    shape_dims(user, name, d, err);
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t i = row * each; i < (row + n) * each; i++) *dst++ = value_at(i);
    return LW_OK;
}

/* Every shape and type: the window before the channels, rounded once, by one thread or four. */
static void weights_are_packed(void **state) {
    (void)state;
    static const char *const names[] = {"5.24.3.3", "3.700.3.3", "640.1280.1.1", "320.640.3.3", "2.3.70.70", "1.8.1.1"};
    enum { N = sizeof names / sizeof *names };
    const lw_tensor_source source = {NULL, shape_dims, shape_read};
    for (int32_t threads = 1; threads < 5; threads += 3) {
        lw_backend backend = {.name = "fake",
                              .device = LW_DEVICE_CUDA,
                              .threads = threads,
                              .pool = lw_pool_new(),
                              .alloc = host_alloc,
                              .free = host_free,
                              .upload = host_upload};
        lw_params *params = NULL;
        lw_error err;
        int32_t packs[N][2];
        assert_int_equal(lw_params_new(&params, &source, &err), LW_OK);
        lw_program *p = lw_program_new("test", params, LW_F16);
        for (int i = 0; i < N; i++)
            for (int half = 0; half < 2; half++)
                assert_int_equal(cu_want_matrix(params, lw_rec_take(p, names[i], 0, 0, 0, 0), half ? LW_F16 : LW_F32,
                                                &packs[i][half], &err),
                                 LW_OK);
        assert_int_equal(lw_params_fill(params, &backend, &err), LW_OK);
        for (int t = 0; t < N; t++) {
            int64_t d[4];
            shape_dims(NULL, names[t], d, &err);
            const float *exact = lw_pack_data(params, packs[t][0]);
            const uint16_t *rounded = lw_pack_data(params, packs[t][1]);
            assert_int_equal((uintptr_t)rounded % 64, 0);
            for (int64_t o = 0; o < d[0]; o++)
                for (int64_t k = 0; k < d[2] * d[3]; k++)
                    for (int64_t i = 0; i < d[1]; i++, exact++, rounded++) {
                        float want = value_at((o * d[1] + i) * d[2] * d[3] + k);
                        assert_true(*exact == want && *rounded == lw_f32_to_f16(want));
                    }
        }
        lw_program_free(p);
        lw_params_free(params, &backend);
        lw_pool_free(backend.pool);
    }
}

/* W gamma by columns as half, less the mean of the row, and of each row the product with beta and the bias. */
static void a_norm_is_folded_into_weights(void **state) {
    (void)state;
    enum { O = 96, I = 1288 }; /* a sum of several tiles and a tail */
    const lw_tensor_source source = {NULL, shape_dims, shape_read};
    lw_backend backend = {.name = "fake",
                          .device = LW_DEVICE_CUDA,
                          .threads = 3,
                          .pool = lw_pool_new(),
                          .alloc = host_alloc,
                          .free = host_free,
                          .upload = host_upload};
    lw_error err = {0};
    lw_params *params = NULL;
    int32_t matrix, offsets;
    assert_int_equal(lw_params_new(&params, &source, &err), LW_OK);
    lw_program *p = lw_program_new("test", params, LW_F16);
    const lw_param vector = lw_rec_take(p, "1288.1.1.1", 0, 0, 0, 0);
    const lw_norm norm = {.gamma = vector, .beta = vector};
    assert_int_equal(cu_want_folded(params, lw_rec_take(p, "96.1288.1.1", 0, 0, 0, 0),
                                    lw_rec_take(p, "96.1.1.1", 0, 0, 0, 0), &norm, &matrix, &offsets, &err),
                     LW_OK);
    assert_int_equal(lw_params_fill(params, &backend, &err), LW_OK);
    const uint16_t *half = lw_pack_data(params, matrix);
    const float *behind = lw_pack_data(params, offsets);
    for (int64_t o = 0; o < O; o++) {
        double sum = 0, offset = (double)value_at(o);
        for (int64_t i = 0; i < I; i++) {
            sum += (double)(value_at(o * I + i) * value_at(i));
            offset += (double)value_at(o * I + i) * (double)value_at(i);
        }
        double left = 0, rounded_left = 0;
        for (int64_t i = 0; i < I; i++, half++) {
            const float want = (float)((double)(value_at(o * I + i) * value_at(i)) - sum / I);
            const uint16_t nearest = lw_f32_to_f16(want);
            assert_true(abs((int)*half - (int)nearest) <= 1); /* one of the two that want lies between */
            left += (double)lw_f16_to_f32(*half);
            rounded_left += (double)lw_f16_to_f32(nearest);
        }
        assert_true(fabs(left) <= 1e-2 * fabs(rounded_left)); /* values of some thousand */
        assert_true(fabs((double)*behind++ - offset) <= 1e-6 * fabs(offset) + 1e-6);
    }
    lw_program_free(p);
    lw_params_free(params, &backend);
    lw_pool_free(backend.pool);
}

/* No driver, no device, or a number past the last one: one sentence that names the device. */
static void a_device_that_is_not_there(void **state) {
    (void)state;
    lw_backend *backend = NULL;
    lw_error err = {0};
    assert_int_equal(lw_cuda_open(&backend, &(lw_cuda_params){.device_index = 998}, &err), LW_EDEVICE);
    assert_non_null(strstr(err.message, "cuda:998: there is no"));
    assert_null(backend);
}

/* ---- plans for a device that is not there: nothing of it is asked while planning, but by the libraries */

static cu_backend hopper(const char *without) {
    static int encode;
    cu_backend b = {.base = {.name = "cuda", .device = LW_DEVICE_CUDA, .precision = LW_PRECISION_FP16, .act = LW_F16},
                    .major = 9,
                    .n_sm = 132,
                    .model = cu_h200,
                    .encode = &encode};
    cu_list_tactics(&b, without);
    return b;
}

typedef struct counts {
    int32_t ops, stats, norms, layers, copies, apart, normed, shortcuts;
} counts;

/* The step of SD1.5 with one ControlNet at 256x384. */
static counts plan_step(const char *without) {
    cu_backend b = hopper(without);
    b.base.tactics = b.tactics; /* the struct has moved */
    char path[64];
    lw_error err = {.message = ""};
    lw_model model;
    lw_params *params = NULL;
    lw_plan *plan = NULL;
    int file = bench_sd15_file(path, &err);
    assert_true(file >= 0);
    if (lw_model_open(&model, path, NULL, 0, NULL, &err) != LW_OK) fail_msg("%s", err.message);
    lw_tensor_source source = lw_model_source(&model);
    assert_int_equal(lw_params_new(&params, &source, &err), LW_OK);
    lw_program *p = lw_program_new("step", params, LW_F16);
    lw_record_step(
        p, &model,
        &(lw_step_shape){.g = 2, .n = 1, .h = 48, .w = 32, .n_controls = 1, .rows = 20, .n_noise = 1, .controls = 1});
    lw_pass_fit(p, lw_backend_takes(&b.base));
    if (lw_plan_make(&plan, &b.base, p, &err) != LW_OK) fail_msg("%s", err.message);
    counts n = {.ops = lw_plan_n_ops(plan)};
    for (int32_t i = 0; i < n.ops; i++) {
        const lw_planned at = lw_plan_op(plan, i);
        const lw_op *op = at.op;
        const lw_prologue *in = &op->m->apply.in;
        bool apply = op->kind == LW_OP_APPLY, norm = apply && in->norm.kind == LW_NORM_GROUP;
        n.stats += op->kind == LW_OP_NORM_STATS;
        n.norms += norm;
        n.layers += apply && in->norm.kind == LW_NORM_LAYER;
        n.copies += apply && in->norm.kind == LW_NORM_NONE;
        n.apart += op->n_member == 1;
        n.normed += !strcmp(at.tactic->name, "linear_wgmma_normed");
        n.shortcuts += !strcmp(at.tactic->name, "conv2d_wgmma_shortcut");
    }
    lw_plan_free(plan);
    lw_program_free(p);
    lw_params_free(params, &b.base);
    lw_model_close(&model);
    close(file);
    return n;
}

/* What layer norms, shortcuts and ControlNet cost in launches: none, but for group norms and upsamplings. */
static void a_step_has_few_launches(void **state) {
    (void)state;
    const counts n = plan_step("cudnn,cublas");
    printf("launches %d: statistics %d, group norms %d, layer norms %d, copies %d; %d of one network\n", n.ops, n.stats,
           n.norms, n.layers, n.copies, n.apart);
    assert_int_equal(n.stats, 0);
    assert_int_equal(n.normed, 3 * 16);
    assert_int_equal(n.layers, 0);
    assert_int_equal(n.copies, 4); /* three upsamplings, and what ControlNet's first layer gives both passes */
    assert_int_equal(n.shortcuts, 14);
    assert_int_equal(n.ops, 286);

    const counts plain = plan_step("cudnn,cublas,wgmma,group_norm");
    printf("launches %d without kernels of Hopper's\n", plain.ops);
    assert_true(plain.stats > 0 && plain.layers > 0 && plain.normed == 0 && plain.shortcuts == 0);
    assert_int_equal(plain.apart, plain.ops);
    assert_true(plain.ops > 500);
}
#endif

int main(void) {
#ifdef LW_HAVE_CUDA
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_missing_library_is_named),
                                       cmocka_unit_test(a_missing_function_is_named),
                                       cmocka_unit_test(the_libraries_have_every_function),
                                       cmocka_unit_test(weights_are_packed),
                                       cmocka_unit_test(a_norm_is_folded_into_weights),
                                       cmocka_unit_test(a_device_that_is_not_there),
                                       cmocka_unit_test(a_step_has_few_launches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    puts("this build has no CUDA");
    return 0;
#endif
}
