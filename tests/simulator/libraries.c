/* SPDX-License-Identifier: MIT
 * In place of libraries.c and cudnn.c: what the backend calls of cuBLASLt, by plain loops on the host, and a cuDNN that
 * has no tactic. Attributes that cublas.c does not set are not known. */
#include <stdlib.h>
#include <string.h>

#include "cuda/device.h"
#include "stream.h"

const lw_tactic *const cu_dnn_tactics[] = {NULL};
void cu_free_conv_plans(const cu_dnn_functions *dn, cu_conv_plan *plans) { (void)dn, (void)plans; }

/* ---- cuBLASLt: column-major, d = op(a) . b + beta * c + bias of each row, rounded once */

typedef struct description {
    int32_t transpose_a, epilogue;
    const void *bias;
} description;

typedef struct layout {
    uint64_t rows, cols;
    int64_t ld, stride;
    cudaDataType type;
    int32_t batch;
} layout;

typedef struct job {
    description how;
    layout la, lb, lc, ld;
    const char *a, *b, *c;
    char *d;
    float beta;
} job;

static size_t version(void) { return 0; }

#define DESTROY(name, type)                                                                                            \
    static cublasStatus_t name(type object) {                                                                          \
        free(object);                                                                                                  \
        return CUBLAS_STATUS_SUCCESS;                                                                                  \
    }
DESTROY(destroy, cublasLtHandle_t)
DESTROY(destroy_description, cublasLtMatmulDesc_t)
DESTROY(destroy_layout, cublasLtMatrixLayout_t)
DESTROY(destroy_preference, cublasLtMatmulPreference_t)
#undef DESTROY

static cublasStatus_t create(cublasLtHandle_t *out) {
    return (*out = malloc(1)) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t create_description(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t type) {
    *out = (cublasLtMatmulDesc_t)calloc(1, sizeof(description));
    return compute == CUBLAS_COMPUTE_32F && type == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
static cublasStatus_t describe(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, const void *value,
                               size_t bytes) {
    description *d = (description *)desc;
    switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA: memcpy(&d->transpose_a, value, bytes); return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: memcpy(&d->epilogue, value, bytes); return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: memcpy(&d->bias, value, bytes); return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return CUBLAS_STATUS_SUCCESS; /* the output's */
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

static cublasStatus_t create_layout(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols,
                                    int64_t ld) {
    layout *l = calloc(1, sizeof *l);
    if (!l) return CUBLAS_STATUS_ALLOC_FAILED;
    *l = (layout){rows, cols, ld, 0, type, 1};
    *out = (cublasLtMatrixLayout_t)l;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t set_layout(cublasLtMatrixLayout_t to, cublasLtMatrixLayoutAttribute_t name, const void *value,
                                 size_t bytes) {
    layout *l = (layout *)to;
    if (name == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) memcpy(&l->batch, value, bytes);
    else if (name == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) memcpy(&l->stride, value, bytes);
    else return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t create_preference(cublasLtMatmulPreference_t *out) {
    return (*out = malloc(1)) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
static cublasStatus_t set_preference(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name,
                                     const void *value, size_t bytes) {
    (void)p, (void)name, (void)value, (void)bytes;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t choose(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                             cublasLtMatmulPreference_t preference, int wanted,
                             cublasLtMatmulHeuristicResult_t results[], int *found) {
    (void)handle, (void)desc, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted;
    memset(results, 0, sizeof *results);
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static float load(const char *p, const layout *l, int64_t batch, uint64_t row, uint64_t col) {
    int64_t at = batch * l->stride + (int64_t)col * l->ld + (int64_t)row;
    uint16_t half;
    float f;
    if (l->type == CUDA_R_16F) {
        memcpy(&half, p + 2 * at, sizeof half);
        return lw_f16_to_f32(half);
    }
    memcpy(&f, p + 4 * at, sizeof f);
    return f;
}

static void store(char *p, const layout *l, int64_t batch, uint64_t row, uint64_t col, float v) {
    int64_t at = batch * l->stride + (int64_t)col * l->ld + (int64_t)row;
    uint16_t half = lw_f32_to_f16(v);
    if (l->type == CUDA_R_16F) memcpy(p + 2 * at, &half, sizeof half);
    else memcpy(p + 4 * at, &v, sizeof v);
}

static void multiply(const void *args) {
    const job *j = args;
    for (int32_t batch = 0; batch < j->ld.batch; batch++)
        for (uint64_t col = 0; col < j->ld.cols; col++)
            for (uint64_t row = 0; row < j->ld.rows; row++) {
                float sum = 0;
                for (uint64_t k = 0; k < j->lb.rows; k++)
                    sum += load(j->a, &j->la, batch, j->how.transpose_a ? k : row, j->how.transpose_a ? row : k) *
                           load(j->b, &j->lb, batch, k, col);
                if (j->beta != 0) sum += j->beta * load(j->c, &j->lc, batch, row, col);
                if (j->how.epilogue == CUBLASLT_EPILOGUE_BIAS) {
                    const layout bias = {j->ld.rows, 1, 0, 0, j->ld.type, 1};
                    sum += load(j->how.bias, &bias, 0, row, 0);
                }
                store(j->d, &j->ld, batch, row, col, sum);
            }
}

static cublasStatus_t matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                             cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                             const void *c, cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                             const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                             cudaStream_t stream) {
    (void)handle, (void)alpha, (void)algo, (void)workspace, (void)workspace_bytes;
    const job j = {*(const description *)desc,
                   *(const layout *)la,
                   *(const layout *)lb,
                   *(const layout *)lc,
                   *(const layout *)ld,
                   a,
                   b,
                   c,
                   d,
                   *(const float *)beta};
    return simulator_do(stream, multiply, &j, sizeof j) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                       : CUBLAS_STATUS_EXECUTION_FAILED;
}

lw_status cu_load_blas(cu_blas_functions *out, lw_error *err) {
    (void)err;
    *out = (cu_blas_functions){.Create = create,
                               .Destroy = destroy,
                               .GetVersion = version,
                               .Matmul = matmul,
                               .MatmulAlgoGetHeuristic = choose,
                               .MatmulDescCreate = create_description,
                               .MatmulDescDestroy = destroy_description,
                               .MatmulDescSetAttribute = describe,
                               .MatmulPreferenceCreate = create_preference,
                               .MatmulPreferenceDestroy = destroy_preference,
                               .MatmulPreferenceSetAttribute = set_preference,
                               .MatrixLayoutCreate = create_layout,
                               .MatrixLayoutDestroy = destroy_layout,
                               .MatrixLayoutSetAttribute = set_layout};
    return LW_OK;
}

lw_status cu_load_dnn(cu_dnn_functions *out, lw_error *err) {
    (void)err;
    *out = (cu_dnn_functions){.GetVersion = version};
    return LW_OK;
}
