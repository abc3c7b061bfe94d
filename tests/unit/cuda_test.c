/* SPDX-License-Identifier: MIT
 * What of the CUDA backend can be tested without a GPU: the libraries' table, and the errors of a machine without one.
 */
#include "fixture.h"

#ifdef LW_HAVE_CUDA
#include "cuda/cuda.h"
#include "cuda/libraries.h"

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
#endif

int main(void) {
#ifdef LW_HAVE_CUDA
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_library_is_named), cmocka_unit_test(a_missing_function_is_named),
        cmocka_unit_test(the_libraries_have_every_function), cmocka_unit_test(a_device_that_is_not_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    puts("this build has no CUDA");
    return 0;
#endif
}
