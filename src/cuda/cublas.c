/* SPDX-License-Identifier: MIT
 * Products by cuBLASLt: linear and 1x1 convolution as one matrix product with bias, and the residual as its C; and
 * attention of wide heads (the VAE's: one of 512) as two products around a softmax, scores in memory.
 *
 * cuBLASLt counts in columns: our out [rows][O] = in [rows][I] . W [O][I]^T is its D (O x rows) = op_T(W: I x O) . in
 * (I x rows), leading dimensions being our row strides. The algorithm is the heuristic's first, asked for once a plan;
 * reductions across blocks must go through the workspace in a fixed order, so that the same bits come every time. */
#include <string.h>

#include "cuda/device.h"

enum { MAX_WORKSPACE = 32 << 20 };

typedef struct matrix { /* as cuBLASLt counts */
    uint64_t rows, cols;
    int64_t ld, stride; /* stride: from one of a batch to the next */
    cudaDataType type;
} matrix;

typedef struct product {
    const cu_blas_functions *lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c, d;
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes;
} product;

static void free_product(product *p) {
    if (p->desc) p->lt->MatmulDescDestroy(p->desc);
    if (p->a) p->lt->MatrixLayoutDestroy(p->a);
    if (p->b) p->lt->MatrixLayoutDestroy(p->b);
    if (p->c) p->lt->MatrixLayoutDestroy(p->c);
    if (p->d) p->lt->MatrixLayoutDestroy(p->d);
    *p = (product){0};
}

static lw_status make_layout(lw_backend *backend, cublasLtMatrixLayout_t *out, const matrix *m, int32_t batch,
                             lw_error *err) {
    CU_TRY_BLAS(backend, err, MatrixLayoutCreate(out, m->type, m->rows, m->cols, m->ld));
    if (batch == 1) return LW_OK;
    CU_TRY_BLAS(backend, err, MatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
    CU_TRY_BLAS(
        backend, err,
        MatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m->stride, sizeof m->stride));
    return LW_OK;
}

static lw_status set_desc(lw_backend *backend, cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                          int32_t value, lw_error *err) {
    CU_TRY_BLAS(backend, err, MatmulDescSetAttribute(desc, attribute, &value, sizeof value));
    return LW_OK;
}

static lw_status set_preference(lw_backend *backend, cublasLtMatmulPreference_t preference,
                                cublasLtMatmulPreferenceAttributes_t attribute, uint32_t value, lw_error *err) {
    CU_TRY_BLAS(backend, err, MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    return LW_OK;
}

static lw_status choose(lw_backend *backend, product *p, cublasLtMatmulPreference_t preference, uint32_t alignment,
                        int *found, lw_error *err) {
    uint64_t workspace = MAX_WORKSPACE;
    cublasLtMatmulHeuristicResult_t result;
    CU_TRY_BLAS(backend, err,
                MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace));
    LW_TRY(set_preference(backend, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                          CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, err));
    LW_TRY(set_preference(backend, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment, err));
    LW_TRY(set_preference(backend, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment, err));
    LW_TRY(set_preference(backend, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment, err));
    LW_TRY(set_preference(backend, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment, err));
    *found = 0;
    cublasStatus_t e = p->lt->MatmulAlgoGetHeuristic(cu_of(backend)->blas, p->desc, p->a, p->b, p->c, p->d, preference,
                                                     1, &result, found);
    if (e == CUBLAS_STATUS_NOT_SUPPORTED) *found = 0;
    else if (e != CUBLAS_STATUS_SUCCESS) return cu_fail_blas(backend, err, e, "cublasLtMatmulAlgoGetHeuristic");
    if (*found) p->algo = result.algo, p->workspace_bytes = result.workspaceSize;
    return LW_OK;
}

/* d = op(a) . b + beta * c (+ bias by rows of d); alignment in bytes, of every address that will be given. */
static lw_status make_product(lw_backend *backend, product *p, const char *name, bool transpose_a, bool bias,
                              const matrix *a, const matrix *b, const matrix *c, const matrix *d, int32_t batch,
                              uint32_t alignment, lw_error *err) {
    LW_TRY(cu_need_blas(backend, err));
    p->lt = &cu_of(backend)->lt;
    CU_TRY_BLAS(backend, err, MatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    if (transpose_a) LW_TRY(set_desc(backend, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T, err));
    if (bias) {
        LW_TRY(set_desc(backend, p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, err));
        LW_TRY(set_desc(backend, p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)d->type, err));
    }
    LW_TRY(make_layout(backend, &p->a, a, batch, err));
    LW_TRY(make_layout(backend, &p->b, b, batch, err));
    LW_TRY(make_layout(backend, &p->c, c, batch, err));
    LW_TRY(make_layout(backend, &p->d, d, batch, err));
    cublasLtMatmulPreference_t preference = NULL;
    int found = 0;
    CU_TRY_BLAS(backend, err, MatmulPreferenceCreate(&preference));
    lw_status status = choose(backend, p, preference, alignment, &found, err);
    p->lt->MatmulPreferenceDestroy(preference);
    if (status == LW_OK && !found)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: op %s: cuBLASLt has no algorithm for %llu x %llu x %llu",
                       cu_of(backend)->index, name, (unsigned long long)d->rows, (unsigned long long)d->cols,
                       (unsigned long long)b->rows);
    return status;
}

/* bias NULL: none. The descriptor is changed, so a product belongs to one plan (whose runs do not overlap). */
static lw_status run_product(lw_backend *backend, product *p, const void *a, const void *b, const void *c, void *d,
                             const void *bias, void *workspace, cudaStream_t stream, lw_error *err) {
    const float one = 1, beta = c ? 1 : 0;
    if (bias)
        CU_TRY_BLAS(backend, err,
                    MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    CU_TRY_BLAS(backend, err,
                Matmul(cu_of(backend)->blas, p->desc, &one, a, p->a, b, p->b, &beta, c ? c : d, c ? p->c : p->d, d,
                       p->d, &p->algo, cu_align(workspace), p->workspace_bytes, stream));
    return LW_OK;
}

static cudaDataType type_of(lw_dtype dtype) { return dtype == LW_F16 ? CUDA_R_16F : CUDA_R_32F; }

/* ---- linear and conv2d */

typedef struct linear_state {
    product product;
    int32_t weights, bias;
} linear_state;

static bool linear_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_product_args *p = &op->m->product;
    const lw_view *a = &p->in.a, *out = &p->out, *residual = &p->epi.residual;
    if (op->n_member != 1 || p->kh != 1 || p->kw != 1 || p->stride != 1 || p->pad_top || p->pad_left) return false;
    if (!cu_is_float(a) || a->dtype != out->dtype || a->c % 8 || out->c % 8 || !cu_rows_uniform(out)) return false;
    return !lw_view_is(*residual) || residual->dtype == out->dtype;
}

static lw_status linear_prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                size_t *workspace_bytes, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    linear_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    s->bias = -1;
    uint64_t rows = (uint64_t)p->out.g * (uint64_t)p->out.n * (uint64_t)p->out.h * (uint64_t)p->out.w,
             o = (uint64_t)p->out.c, i = (uint64_t)p->in.a.c;
    cudaDataType type = type_of(p->out.dtype);
    const lw_view *residual = lw_view_is(p->epi.residual) ? &p->epi.residual : &p->out;
    matrix w = {i, o, (int64_t)i, 0, type}, in = {i, rows, (int64_t)i, 0, type}, c = {o, rows, residual->sw, 0, type},
           d = {o, rows, p->out.sw, 0, type};
    LW_TRY(make_product(backend, &s->product, op->name, true, lw_param_is(p->bias), &w, &in, &c, &d, 1, 16, err));
    *workspace_bytes = s->product.workspace_bytes ? s->product.workspace_bytes + CU_ALIGN : 0;
    LW_TRY(cu_want_matrix(params, p->w, p->out.dtype, &s->weights, err));
    return lw_param_is(p->bias) ? cu_want_matrix(params, p->bias, p->out.dtype, &s->bias, err) : LW_OK;
}

static lw_status linear_run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                            const lw_run *run, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    linear_state *s = state;
    LW_TRY(cu_enter(backend, err));
    return run_product(backend, &s->product, lw_pack_data(params, s->weights), lw_at(run, p->in.a),
                       lw_at(run, p->epi.residual), lw_at(run, p->out), lw_pack_data(params, s->bias), run->workspace,
                       cu_stream(backend, run), err);
}

static void linear_release(void *state) {
    linear_state *s = state;
    free_product(&s->product);
    lw_free(s);
}

/* ---- attention: for each (g, n), heads as a batch
 *   S^T (keys x queries) = K . Q^T       float, in the workspace
 *   P^T                  = softmax(S^T)  in the activations' dtype, in the workspace
 *   out^T (d x queries)  = V^T . P^T */

typedef struct attention_state {
    product scores, values;
    int64_t stride; /* of a row of S, keys rounded up to 8 */
    size_t s_bytes, p_bytes;
} attention_state;

static bool attention_supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_attention_args *m = &op->m->attention;
    const lw_view *views[4] = {&m->q, &m->k, &m->v, &m->out};
    for (int i = 0; i < 4; i++)
        if (!cu_is_float(views[i]) || views[i]->dtype != m->q.dtype || views[i]->h != 1) return false;
    if (op->n_member != 1 || m->q.c % m->heads) return false;
    /* rounding the weights to half costs accuracy where there are few keys: only for heads that the kernel can't take
     */
    int32_t d = m->q.c / m->heads;
    return m->q.dtype == LW_F32 || d > CU_ATTENTION_MAX_D || d % 8;
}

static lw_status attention_prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state,
                                   size_t *workspace_bytes, lw_error *err) {
    (void)params;
    const lw_attention_args *m = &op->m->attention;
    attention_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    uint64_t keys = (uint64_t)m->k.w, queries = (uint64_t)m->q.w, d = (uint64_t)(m->q.c / m->heads);
    cudaDataType type = type_of(m->q.dtype);
    size_t each = lw_dtype_bytes(m->q.dtype);
    uint32_t alignment = (uint32_t)(d * each % 16 ? 4 : 16); /* heads of a batch begin d values apart */
    s->stride = (int64_t)lw_round_up(keys, 8);
    size_t scores = (size_t)m->heads * queries * (size_t)s->stride;
    s->s_bytes = lw_round_up(scores * sizeof(float), CU_ALIGN);
    s->p_bytes = lw_round_up(scores * each, CU_ALIGN);
    int64_t batch = (int64_t)queries * s->stride;
    matrix q = {d, queries, m->q.sw, (int64_t)d, type}, k = {d, keys, m->k.sw, (int64_t)d, type},
           v = {d, keys, m->v.sw, (int64_t)d, type}, out = {d, queries, m->out.sw, (int64_t)d, type},
           st = {keys, queries, s->stride, batch, CUDA_R_32F}, pt = {keys, queries, s->stride, batch, type};
    LW_TRY(make_product(backend, &s->scores, op->name, true, false, &k, &q, &st, &st, m->heads, alignment, err));
    LW_TRY(make_product(backend, &s->values, op->name, false, false, &v, &pt, &out, &out, m->heads, alignment, err));
    size_t more =
        s->scores.workspace_bytes > s->values.workspace_bytes ? s->scores.workspace_bytes : s->values.workspace_bytes;
    *workspace_bytes = CU_ALIGN + s->s_bytes + s->p_bytes + more;
    return LW_OK;
}

static lw_status attention_run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state,
                               const lw_run *run, lw_error *err) {
    (void)params;
    const lw_attention_args *m = &op->m->attention;
    attention_state *s = state;
    cudaStream_t stream = cu_stream(backend, run);
    char *base = cu_align(run->workspace), *probabilities = base + s->s_bytes, *rest = probabilities + s->p_bytes;
    cu_view q = cu_view_at(run, m->q), k = cu_view_at(run, m->k), v = cu_view_at(run, m->v),
            out = cu_view_at(run, m->out);
    int64_t each = (int64_t)lw_dtype_bytes(m->q.dtype);
    cu_softmax_args softmax = {.s = (const float *)(void *)base,
                               .p = probabilities,
                               .half = m->q.dtype == LW_F16,
                               .rows = m->heads * m->q.w,
                               .n = m->k.w,
                               .stride = (int32_t)s->stride,
                               .queries = m->q.w,
                               .causal = m->causal,
                               .scale = m->scale};
    LW_TRY(cu_enter(backend, err));
    for (int32_t g = 0; g < m->out.g; g++)
        for (int32_t n = 0; n < m->out.n; n++) {
            const char *qp = (const char *)q.p + (g * q.sg + n * q.sn) * each,
                       *kp = (const char *)k.p + (g * k.sg + n * k.sn) * each,
                       *vp = (const char *)v.p + (g * v.sg + n * v.sn) * each;
            char *op_out = (char *)out.p + (g * out.sg + n * out.sn) * each;
            LW_TRY(run_product(backend, &s->scores, kp, qp, NULL, base, NULL, rest, stream, err));
            LW_TRY(cu_launched(backend, op, cu_softmax(cu_order_of(backend, run), &softmax), err));
            LW_TRY(run_product(backend, &s->values, vp, probabilities, NULL, op_out, NULL, rest, stream, err));
        }
    return LW_OK;
}

static void attention_release(void *state) {
    attention_state *s = state;
    free_product(&s->scores);
    free_product(&s->values);
    lw_free(s);
}

static const lw_tactic linear = {"linear_cublaslt", LW_OP_LINEAR, LW_TAKES_RESIDUAL, linear_supports,
                                 linear_prepare,    linear_run,   linear_release};
static const lw_tactic conv2d = {"conv2d_cublaslt", LW_OP_CONV2D, LW_TAKES_RESIDUAL, linear_supports,
                                 linear_prepare,    linear_run,   linear_release};
static const lw_tactic attention = {"attention_cublaslt", LW_OP_ATTENTION, LW_TAKES_ALL,     attention_supports,
                                    attention_prepare,    attention_run,   attention_release};

const lw_tactic *const cu_blas_tactics[] = {&linear, &conv2d, NULL};
const lw_tactic *const cu_wide_tactics[] = {&attention, NULL};
