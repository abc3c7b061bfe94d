/* SPDX-License-Identifier: MIT */
#include "cuda/libraries.h"

#include <dlfcn.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

/* The file names carry the major versions, within which functions are only added. */
static const char blas_file[] = "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR);
static const char dnn_file[] = "libcudnn.so." TEXT(CUDNN_MAJOR);
static const char blas_needs[] = "cuBLASLt " TEXT(CUBLAS_VER_MAJOR) "." TEXT(CUBLAS_VER_MINOR);
static const char dnn_needs[] = "cuDNN " TEXT(CUDNN_MAJOR) "." TEXT(CUDNN_MINOR);

lw_status cu_load_library(const char *file, const char *needs, const char *const *names, int32_t n, void **out,
                          lw_error *err) {
    void *library = lw_fault_hit() ? NULL : dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        return lw_fail(err, LW_EDEVICE, "cuda: this build needs %s (%s), which can't be loaded: %s", file, needs,
                       why ? why : "no reason is given");
    }
    for (int32_t i = 0; i < n; i++)
        if (!(out[i] = dlsym(library, names[i])))
            return lw_fail(err, LW_EDEVICE, "cuda: %s is there but has no function %s: it is older than %s", file,
                           names[i], needs);
    return LW_OK;
}

#define COUNT(array) ((int32_t)(sizeof(array) / sizeof *(array)))

lw_status cu_load_blas(cu_blas_functions *out, lw_error *err) {
#define X(name) "cublasLt" #name,
    static const char *const names[] = {CU_BLAS_FUNCTIONS(X)};
#undef X
    void *found[COUNT(names)];
    _Static_assert(sizeof found == sizeof *out, "a pointer for each function");
    LW_TRY(cu_load_library(blas_file, blas_needs, names, COUNT(names), found, err));
    memcpy(out, found, sizeof found); /* data pointers to function pointers, as dlsym means it */
    return LW_OK;
}

lw_status cu_load_dnn(cu_dnn_functions *out, lw_error *err) {
#define X(name) "cudnn" #name,
    static const char *const names[] = {CU_DNN_FUNCTIONS(X)};
#undef X
    void *found[COUNT(names)];
    _Static_assert(sizeof found == sizeof *out, "a pointer for each function");
    LW_TRY(cu_load_library(dnn_file, dnn_needs, names, COUNT(names), found, err));
    memcpy(out, found, sizeof found);
    return LW_OK;
}
