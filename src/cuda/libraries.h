/* SPDX-License-Identifier: MIT
 * cuBLASLt and cuDNN by their functions' addresses: loaded when a device is opened, so that a program that runs on the
 * CPU neither needs them nor waits for them (docs/decisions/0007-cuda-libraries-are-loaded-late.md). */
#ifndef LW_CUDA_LIBRARIES_H
#define LW_CUDA_LIBRARIES_H

#include <cublasLt.h>
#include <cudnn.h>

#include "base/base.h"

/* Every function that is called, by its name without the library's prefix. */
#define CU_BLAS_FUNCTIONS(X)                                                                                           \
    X(Create)                                                                                                          \
    X(Destroy)                                                                                                         \
    X(GetVersion)                                                                                                      \
    X(Matmul)                                                                                                          \
    X(MatmulAlgoGetHeuristic)                                                                                          \
    X(MatmulDescCreate)                                                                                                \
    X(MatmulDescDestroy)                                                                                               \
    X(MatmulDescSetAttribute)                                                                                          \
    X(MatmulPreferenceCreate)                                                                                          \
    X(MatmulPreferenceDestroy)                                                                                         \
    X(MatmulPreferenceSetAttribute)                                                                                    \
    X(MatrixLayoutCreate)                                                                                              \
    X(MatrixLayoutDestroy)                                                                                             \
    X(MatrixLayoutSetAttribute)

#define CU_DNN_FUNCTIONS(X)                                                                                            \
    X(BackendCreateDescriptor)                                                                                         \
    X(BackendDestroyDescriptor)                                                                                        \
    X(BackendExecute)                                                                                                  \
    X(BackendFinalize)                                                                                                 \
    X(BackendGetAttribute)                                                                                             \
    X(BackendSetAttribute)                                                                                             \
    X(Create)                                                                                                          \
    X(Destroy)                                                                                                         \
    X(GetErrorString)                                                                                                  \
    X(GetVersion)                                                                                                      \
    X(SetStream)

typedef struct cu_blas_functions {
#define X(name) __typeof__(cublasLt##name) *name;
    CU_BLAS_FUNCTIONS(X)
#undef X
} cu_blas_functions;

typedef struct cu_dnn_functions {
#define X(name) __typeof__(cudnn##name) *name;
    CU_DNN_FUNCTIONS(X)
#undef X
} cu_dnn_functions;

/* LW_EDEVICE with what is missing: the library, or which function of it. What was loaded stays loaded: both libraries
 * keep threads and memory that unloading does not give back. */
lw_status cu_load_blas(cu_blas_functions *out, lw_error *err);
lw_status cu_load_dnn(cu_dnn_functions *out, lw_error *err);

/* The addresses of n functions of the library `file`; needs: what the build was made for, for the error. */
lw_status cu_load_library(const char *file, const char *needs, const char *const *names, int32_t n, void **out,
                          lw_error *err);

#endif
