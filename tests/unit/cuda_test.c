/* SPDX-License-Identifier: MIT
 * What of the CUDA backend can be tested without a GPU: the libraries' table, and the errors of a machine without one.
 */
#include "fixture.h"

#ifdef LW_HAVE_CUDA
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
                    .model = cu_h100,
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
    lw_record_step(p, &model,
                   &(lw_step_shape){
                       .g = 2, .n = 1, .h = 48, .w = 32, .n_controls = 1, .rows = 20, .n_noise = 1, .controls = 1});
    if (lw_takes_members(&b.base)) lw_pass_zip(p);
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

/* What norms, shortcuts and ControlNet cost in launches: none, but for group norms, and upsamplings. */
static void a_step_has_few_launches(void **state) {
    (void)state;
    const counts n = plan_step("cudnn,cublas");
    printf("launches %d: statistics %d, group norms %d, layer norms %d, copies %d; %d of one network\n", n.ops, n.stats,
           n.norms, n.layers, n.copies, n.apart);
    assert_int_equal(n.stats, 0);
    assert_int_equal(n.layers, 0);
    assert_int_equal(n.copies, 4); /* three upsamplings, and what ControlNet's first layer gives both passes */
    assert_int_equal(n.normed, 3 * 16);
    assert_int_equal(n.shortcuts, 14);
    assert_true(n.ops <= 300);

    const counts plain = plan_step("cudnn,cublas,wgmma,group_norm");
    printf("launches %d without kernels of Hopper's\n", plain.ops);
    assert_true(plain.stats > 0 && plain.layers > 0 && plain.normed == 0 && plain.shortcuts == 0);
    assert_int_equal(plain.apart, plain.ops);
    assert_true(plain.ops > 500);
}
#endif

int main(void) {
#ifdef LW_HAVE_CUDA
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_library_is_named), cmocka_unit_test(a_missing_function_is_named),
        cmocka_unit_test(the_libraries_have_every_function), cmocka_unit_test(a_device_that_is_not_there),
        cmocka_unit_test(a_step_has_few_launches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    puts("this build has no CUDA");
    return 0;
#endif
}
