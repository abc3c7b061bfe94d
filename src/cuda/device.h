/* SPDX-License-Identifier: MIT
 * What the host files of cuda share: the backend's own struct, errors, packs, and views with addresses. */
#ifndef LW_CUDA_DEVICE_H
#define LW_CUDA_DEVICE_H

#include <pthread.h>

#include "cuda/cuda.h"
#include "cuda/kernels.h"
#include "cuda/libraries.h"
#include "cuda/model.h"

/* Where work goes: a stream. The backend has one; a session's own or one that captures takes its place by lw_run. */
typedef struct cu_queue {
    cudaStream_t stream;
    bool captures;
} cu_queue;

enum { CU_STAGES = 8, CU_STAGE_BYTES = 2 << 20, CU_MAX_TACTICS = 48 };

/* Pinned memory that uploads go through: threads fill some while the device empties others. */
typedef struct cu_stage {
    pthread_mutex_t lock; /* of the two below */
    char *memory;
    cudaEvent_t sent;
} cu_stage;

typedef struct cu_conv_plan cu_conv_plan; /* cudnn.c */

typedef struct cu_backend {
    lw_backend base;
    int32_t index, major, minor, n_sm;
    cu_model model; /* of Hopper products on this device */
    char name[64]; /* of the device */
    cu_queue queue;
    cu_blas_functions lt;
    cu_dnn_functions dn;
    void *encode;          /* the driver's cuTensorMapEncodeTiled, NULL where it has none */
    bool overlap;          /* our products begin while the launch before ends */
    bool pairs;            /* tiles of Hopper products may share weights */
    bool turns;            /* Hopper's matrix products may be turns.cu's */
    cublasLtHandle_t blas; /* NULL until cu_need_blas */
    cudnnHandle_t dnn;     /* NULL until cu_need_dnn */
    cu_stage stages[CU_STAGES];
    void *staging;        /* the memory of all of them */
    pthread_mutex_t lock; /* of all below, and of dnn */
    int32_t next_stage;
    cu_conv_plan *conv_plans; /* by shape, kept until the backend is closed */
    const lw_tactic *tactics[CU_MAX_TACTICS];
} cu_backend;

static inline cu_backend *cu_of(lw_backend *backend) { return (cu_backend *)backend; }

/* ---- errors: every failing call becomes LW_EDEVICE (LW_ENOMEM for memory) with its text */
lw_status cu_fail(const lw_backend *backend, lw_error *err, cudaError_t e, const char *call);
lw_status cu_fail_blas(const lw_backend *backend, lw_error *err, cublasStatus_t e, const char *call);
lw_status cu_fail_dnn(const lw_backend *backend, lw_error *err, cudnnStatus_t e, const char *call);

/* Run a fallible call; the test hook can make it fail. */
#define CU_TRY(backend, err, call)                                                                                     \
    do {                                                                                                               \
        cudaError_t cu_e = lw_fault_hit() ? cudaErrorUnknown : (call);                                                 \
        if (cu_e != cudaSuccess) return cu_fail(backend, err, cu_e, #call);                                            \
    } while (0)
/* CU_TRY_BLAS(backend, err, Create(&handle)): the call without its prefix */
#define CU_TRY_BLAS(backend, err, call)                                                                                \
    do {                                                                                                               \
        cublasStatus_t cu_e = lw_fault_hit() ? CUBLAS_STATUS_INTERNAL_ERROR : cu_of(backend)->lt.call;                 \
        if (cu_e != CUBLAS_STATUS_SUCCESS) return cu_fail_blas(backend, err, cu_e, "cublasLt" #call);                  \
    } while (0)

/* Makes the backend's device the calling thread's. */
lw_status cu_enter(lw_backend *backend, lw_error *err);
/* Enters the device and makes the library's handle where there is none yet: cuDNN's loads some 400 MB of engines, which
 * a job whose products are all our own does not wait for. */
lw_status cu_need_blas(lw_backend *backend, lw_error *err);
lw_status cu_need_dnn(lw_backend *backend, lw_error *err);
static inline cudaStream_t cu_stream(lw_backend *backend, const lw_run *run) {
    return run->queue ? ((const cu_queue *)run->queue)->stream : cu_of(backend)->queue.stream;
}
static inline cu_order cu_order_of(lw_backend *backend, const lw_run *run) {
    return (cu_order){cu_stream(backend, run), cu_of(backend)->overlap};
}
/* Enters the device and reports a launch: `return cu_launched(backend, op, cu_apply(order, &args), err)`. */
lw_status cu_launched(lw_backend *backend, const lw_op *op, cudaError_t e, lw_error *err);

/* ---- views and packs */

/* Sizes and strides. One along g or n is the same for all of them. */
static inline cu_view cu_view_of(lw_view v) {
    return (cu_view){.half = v.dtype == LW_F16,
                     .g = v.g,
                     .n = v.n,
                     .h = v.h,
                     .w = v.w,
                     .c = v.c,
                     .sg = v.g == 1 ? 0 : v.sg,
                     .sn = v.n == 1 ? 0 : v.sn,
                     .sh = v.sh,
                     .sw = v.sw};
}
/* With the address. */
static inline cu_view cu_view_at(const lw_run *run, lw_view v) {
    cu_view at = cu_view_of(v);
    at.p = lw_at(run, v);
    return at;
}

static inline bool cu_is_float(const lw_view *v) { return v->dtype == LW_F16 || v->dtype == LW_F32; }
/* Whether the members can be of one launch: few, and alike. */
bool cu_members_fit(const lw_params *params, const lw_op *op);
/* Rows of 8 channels each, that 16-byte accesses can walk. */
bool cu_is_vectors(const lw_view *v);
/* Rows of (g, n, h, w) at one stride. */
bool cu_rows_uniform(const lw_view *v);

/* A matrix as every product reads it: [O][kh][kw][I] of dtype. */
lw_status cu_want_matrix(lw_params *params, lw_param p, lw_dtype dtype, int32_t *index, lw_error *err);
/* Matrix and bias of a linear that takes a layer norm into them (lw_param_fold): [O][I] half and [O] floats. */
lw_status cu_want_folded(lw_params *params, lw_param w, lw_param bias, const lw_norm *norm, int32_t *matrix,
                         int32_t *offsets, lw_error *err);
/* Plain floats, or index -1 for no parameter. */
lw_status cu_want_vector(lw_params *params, lw_param p, int32_t *index, lw_error *err);

/* The epilogue with addresses; bias: a plain pack or -1. */
cu_epilogue cu_epilogue_at(const lw_params *params, const lw_run *run, const lw_epilogue *epi, int32_t bias);
bool cu_epilogue_fits(const lw_epilogue *epi);
/* A product's sizes and window. */
cu_product_args cu_product_of(const lw_params *params, const lw_product_args *p);
/* The same with addresses and epilogue, but for tile and splits; weights and bias: packs, bias or -1. */
cu_product_args cu_product_at(const lw_params *params, const lw_product_args *p, const lw_run *run, int32_t weights,
                              int32_t bias);

cu_attention_args cu_attention_at(const lw_attention_args *m, const lw_run *run);

/* Workspaces are 64-byte aligned, libraries want 256: ask for CU_ALIGN more. */
enum { CU_ALIGN = 256 };
static inline void *cu_align(void *p) { return (void *)(((uintptr_t)p + CU_ALIGN - 1) & ~(uintptr_t)(CU_ALIGN - 1)); }

void cu_release(void *state); /* lw_free */

/* All tactics into the backend, by preference; without: lw_cuda_params. */
void cu_list_tactics(cu_backend *b, const char *without);

/* ---- tactics of each file, NULL-terminated, by preference */
extern const lw_tactic *const cu_blas_tactics[];
extern const lw_tactic *const cu_dnn_tactics[];
extern const lw_tactic *const cu_product_tactics[];
extern const lw_tactic cu_conv2d_mma; /* one of them: where cuDNN has no engine */
extern const lw_tactic *const cu_wgmma_tactics[];      /* by the model's choice */
extern const lw_tactic *const cu_wgmma_tile_tactics[]; /* of one tile each */
extern const lw_tactic *const cu_wgmma_attention_tactics[];
extern const lw_tactic *const cu_kernel_tactics[];
extern const lw_tactic *const cu_wide_tactics[]; /* attention that cu_kernel_tactics does not take */

void cu_free_conv_plans(const cu_dnn_functions *dn, cu_conv_plan *plans);

#endif
