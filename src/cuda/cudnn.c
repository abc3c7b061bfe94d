/* SPDX-License-Identifier: MIT
 * Convolutions by cuDNN's graph API (C descriptors): one convolution node, engines asked of its heuristics, the first
 * that gives the same bits every time and needs no compiler at run time (that costs a second a shape; taken only where
 * nothing else is left). In fp16 the bias belongs to the graph where an engine takes it, so that the sum is rounded
 * once. Everything after it is one pass of our own in place (cu_combine). Plans are shared by shape: a UNet has a
 * hundred convolutions of thirty shapes. */
#include <string.h>

#include "cuda/device.h"

enum { MAX_ENGINES = 64, MAX_WORKSPACE = 256 << 20 };
enum { ID_X = 1, ID_W, ID_Y, ID_BIAS, ID_SIDE, N_IDS = ID_SIDE, ID_SUM, ID_SIDED }; /* the last two are in no memory */

/* The graph: of the two with a bias, one as the heuristics of today take it, and one as
 * cudnnConvolutionBiasActivation's engines do, which add a second tensor: the output, times 0. */
typedef enum conv_kind { CONV_ALONE, CONV_BIAS, CONV_SIDE_BIAS } conv_kind;

typedef struct conv_shape {
    int64_t x[4], x_strides[4], w[4], w_strides[4], y[4], y_strides[4], pad[2], post[2], stride[2];
    int64_t dtype, bias; /* int64, so that there is no padding to compare; bias: to be added, where an engine can */
} conv_shape;

struct cu_conv_plan {
    cu_conv_plan *next;
    conv_shape shape;
    conv_kind kind;
    cudnnBackendDescriptor_t plan;
    size_t workspace_bytes;
};

#define DNN(call)                                                                                                      \
    do {                                                                                                               \
        cudnnStatus_t dnn_e = (call);                                                                                  \
        if (dnn_e != CUDNN_STATUS_SUCCESS) return dnn_e;                                                               \
    } while (0)

/* ---- descriptors */

static cudnnStatus_t set(const cu_dnn_functions *dn, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t n, const void *values) {
    return dn->BackendSetAttribute(d, name, type, n, values);
}

static cudnnStatus_t make(const cu_dnn_functions *dn, cudnnBackendDescriptor_t *out,
                          cudnnBackendDescriptorType_t type) {
    return dn->BackendCreateDescriptor(type, out);
}

static void drop(const cu_dnn_functions *dn, cudnnBackendDescriptor_t *d) {
    if (*d) dn->BackendDestroyDescriptor(*d);
    *d = NULL;
}

static cudnnStatus_t make_tensor(const cu_dnn_functions *dn, cudnnBackendDescriptor_t *out, int64_t id, int64_t dtype,
                                 const int64_t dims[4], const int64_t strides[4]) {
    cudnnDataType_t type = dtype == LW_F16 ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT;
    int64_t alignment = 16;
    bool nowhere = id > N_IDS;
    DNN(make(dn, out, CUDNN_BACKEND_TENSOR_DESCRIPTOR));
    DNN(set(dn, *out, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
    DNN(set(dn, *out, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims));
    DNN(set(dn, *out, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides));
    DNN(set(dn, *out, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id));
    DNN(set(dn, *out, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment));
    if (nowhere) DNN(set(dn, *out, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &nowhere));
    return dn->BackendFinalize(*out);
}

typedef struct graph { /* all descriptors that a plan is made from */
    cudnnBackendDescriptor_t x, w, y, bias, side, sum, sided, conv, add, ops[3], graph, heuristics;
    int64_t n_ops;
} graph;

static void drop_graph(const cu_dnn_functions *dn, graph *g) {
    drop(dn, &g->heuristics);
    drop(dn, &g->graph);
    for (int i = 0; i < 3; i++) drop(dn, &g->ops[i]);
    drop(dn, &g->add);
    drop(dn, &g->conv);
    drop(dn, &g->sided);
    drop(dn, &g->sum);
    drop(dn, &g->side);
    drop(dn, &g->bias);
    drop(dn, &g->y);
    drop(dn, &g->w);
    drop(dn, &g->x);
    *g = (graph){0};
}

static cudnnStatus_t make_tensors(const cu_dnn_functions *dn, graph *g, const conv_shape *s, conv_kind kind) {
    const int64_t c[4] = {1, s->y[1], 1, 1}, c_strides[4] = {s->y[1], 1, s->y[1], s->y[1]};
    DNN(make_tensor(dn, &g->x, ID_X, s->dtype, s->x, s->x_strides));
    DNN(make_tensor(dn, &g->w, ID_W, s->dtype, s->w, s->w_strides));
    DNN(make_tensor(dn, &g->y, ID_Y, s->dtype, s->y, s->y_strides));
    if (kind == CONV_ALONE) return CUDNN_STATUS_SUCCESS;
    DNN(make_tensor(dn, &g->bias, ID_BIAS, s->dtype, c, c_strides));
    DNN(make_tensor(dn, &g->sum, ID_SUM, LW_F32, s->y, s->y_strides));
    if (kind == CONV_BIAS) return CUDNN_STATUS_SUCCESS;
    DNN(make_tensor(dn, &g->side, ID_SIDE, s->dtype, s->y, s->y_strides));
    return make_tensor(dn, &g->sided, ID_SIDED, LW_F32, s->y, s->y_strides);
}

static cudnnStatus_t make_conv(const cu_dnn_functions *dn, graph *g, const conv_shape *s) {
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    int64_t spatial = 2, dilation[2] = {1, 1};
    float one = 1, zero = 0;
    cudnnBackendDescriptor_t *op = &g->ops[g->n_ops++], *out = g->sum ? &g->sum : &g->y;
    DNN(make(dn, &g->conv, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, s->pad));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, s->post));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation));
    DNN(set(dn, g->conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, s->stride));
    DNN(dn->BackendFinalize(g->conv));
    DNN(make(dn, op, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->conv));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->x));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->w));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, out));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero));
    return dn->BackendFinalize(*op);
}

/* out = a + times * b, in float */
static cudnnStatus_t make_add(const cu_dnn_functions *dn, graph *g, cudnnBackendDescriptor_t *a,
                              cudnnBackendDescriptor_t *b, float times, cudnnBackendDescriptor_t *out) {
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
    float one = 1;
    cudnnBackendDescriptor_t *op = &g->ops[g->n_ops++];
    if (!g->add) {
        DNN(make(dn, &g->add, CUDNN_BACKEND_POINTWISE_DESCRIPTOR));
        DNN(set(dn, g->add, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode));
        DNN(set(dn, g->add, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute));
        DNN(dn->BackendFinalize(g->add));
    }
    DNN(make(dn, op, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->add));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, a));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, b));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, out));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, 1, &one));
    DNN(set(dn, *op, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, 1, &times));
    return dn->BackendFinalize(*op);
}

static cudnnStatus_t make_ops(const cu_dnn_functions *dn, graph *g, const conv_shape *s, conv_kind kind) {
    DNN(make_tensors(dn, g, s, kind));
    DNN(make_conv(dn, g, s));
    if (kind == CONV_SIDE_BIAS) DNN(make_add(dn, g, &g->sum, &g->side, 0, &g->sided));
    if (kind != CONV_ALONE) DNN(make_add(dn, g, g->sided ? &g->sided : &g->sum, &g->bias, 1, &g->y));
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t make_graph(const cu_dnn_functions *dn, graph *g, cudnnHandle_t handle) {
    DNN(make(dn, &g->graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
    DNN(set(dn, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle));
    DNN(set(dn, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops));
    return dn->BackendFinalize(g->graph);
}

/* ---- engines */

static bool has_note(const cu_dnn_functions *dn, cudnnBackendDescriptor_t engine, cudnnBackendAttributeName_t attribute,
                     cudnnBackendAttributeType_t type, int note) {
    int notes[32]; /* both kinds of note are enums of an int's size */
    int64_t n = 0;
    if (dn->BackendGetAttribute(engine, attribute, type, 32, &n, notes) != CUDNN_STATUS_SUCCESS) return false;
    for (int64_t i = 0; i < n && i < 32; i++)
        if (notes[i] == note) return true;
    return false;
}

static bool has_numerical(const cu_dnn_functions *dn, cudnnBackendDescriptor_t engine,
                          cudnnBackendNumericalNote_t note) {
    return has_note(dn, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, (int)note);
}

/* Whether an engine may run: the same bits each time, and for floats no rounding of the inputs. */
static bool engine_fits(const cu_dnn_functions *dn, cudnnBackendDescriptor_t engine, const conv_shape *s,
                        bool compile) {
    if (has_numerical(dn, engine, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ||
        has_numerical(dn, engine, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) ||
        has_numerical(dn, engine, CUDNN_NUMERICAL_NOTE_WINOGRAD))
        return false;
    if (s->dtype == LW_F32 && (has_numerical(dn, engine, CUDNN_NUMERICAL_NOTE_TENSOR_CORE) ||
                               has_numerical(dn, engine, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)))
        return false;
    return compile || !has_note(dn, engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION);
}

static bool acceptable(const cu_dnn_functions *dn, cudnnBackendDescriptor_t config, const conv_shape *s, bool compile) {
    int64_t n = 0;
    cudnnBackendDescriptor_t engine = NULL;
    bool fits = make(dn, &engine, CUDNN_BACKEND_ENGINE_DESCRIPTOR) == CUDNN_STATUS_SUCCESS &&
                dn->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n,
                                        &engine) == CUDNN_STATUS_SUCCESS &&
                engine_fits(dn, engine, s, compile);
    drop(dn, &engine);
    return fits;
}

static cudnnStatus_t make_plan(const cu_dnn_functions *dn, cu_conv_plan *out, cudnnHandle_t handle,
                               cudnnBackendDescriptor_t config) {
    int64_t n = 0, bytes = 0;
    DNN(make(dn, &out->plan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR));
    cudnnStatus_t e = set(dn, out->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    if (e == CUDNN_STATUS_SUCCESS)
        e = set(dn, out->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (e == CUDNN_STATUS_SUCCESS) e = dn->BackendFinalize(out->plan);
    if (e == CUDNN_STATUS_SUCCESS)
        e = dn->BackendGetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                                    &bytes);
    if (e == CUDNN_STATUS_SUCCESS && bytes > MAX_WORKSPACE) e = CUDNN_STATUS_NOT_SUPPORTED;
    out->workspace_bytes = (size_t)bytes;
    if (e != CUDNN_STATUS_SUCCESS) drop(dn, &out->plan);
    return e;
}

/* The first config of one heuristic mode that gives a plan. */
static cudnnStatus_t try_mode(const cu_dnn_functions *dn, cu_conv_plan *out, graph *g, cudnnHandle_t handle,
                              cudnnBackendHeurMode_t mode, bool compile) {
    cudnnBackendDescriptor_t configs[MAX_ENGINES] = {0};
    int64_t n = 0;
    drop(dn, &g->heuristics);
    DNN(make(dn, &g->heuristics, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR));
    DNN(set(dn, g->heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->graph));
    DNN(set(dn, g->heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode));
    DNN(dn->BackendFinalize(g->heuristics));
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    for (int i = 0; i < MAX_ENGINES && e == CUDNN_STATUS_SUCCESS; i++)
        e = make(dn, &configs[i], CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (e == CUDNN_STATUS_SUCCESS)
        e = dn->BackendGetAttribute(g->heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                    MAX_ENGINES, &n, configs);
    if (e == CUDNN_STATUS_SUCCESS) {
        e = CUDNN_STATUS_NOT_SUPPORTED;
        for (int64_t i = 0; i < n && i < MAX_ENGINES && e != CUDNN_STATUS_SUCCESS; i++)
            if (acceptable(dn, configs[i], &out->shape, compile)) e = make_plan(dn, out, handle, configs[i]);
    }
    for (int i = 0; i < MAX_ENGINES; i++) drop(dn, &configs[i]);
    return e;
}

static cudnnStatus_t build_kind(const cu_dnn_functions *dn, cu_conv_plan *out, cudnnHandle_t handle, conv_kind kind,
                                bool compile) {
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    graph g = {0};
    out->kind = kind;
    cudnnStatus_t e = make_ops(dn, &g, &out->shape, kind);
    if (e == CUDNN_STATUS_SUCCESS) e = make_graph(dn, &g, handle);
    if (e == CUDNN_STATUS_SUCCESS) {
        e = CUDNN_STATUS_NOT_SUPPORTED;
        for (int i = 0; i < 2 && e != CUDNN_STATUS_SUCCESS; i++) e = try_mode(dn, out, &g, handle, modes[i], compile);
    }
    drop_graph(dn, &g);
    return e;
}

static cudnnStatus_t build(const cu_dnn_functions *dn, cu_conv_plan *out, cudnnHandle_t handle) {
    if (out->shape.bias && build_kind(dn, out, handle, CONV_BIAS, false) == CUDNN_STATUS_SUCCESS)
        return CUDNN_STATUS_SUCCESS;
    if (out->shape.bias && build_kind(dn, out, handle, CONV_SIDE_BIAS, false) == CUDNN_STATUS_SUCCESS)
        return CUDNN_STATUS_SUCCESS;
    if (build_kind(dn, out, handle, CONV_ALONE, false) == CUDNN_STATUS_SUCCESS) return CUDNN_STATUS_SUCCESS;
    return build_kind(dn, out, handle, CONV_ALONE, true);
}

void cu_free_conv_plans(const cu_dnn_functions *dn, cu_conv_plan *plans) {
    for (cu_conv_plan *p = plans, *next; p; p = next) {
        next = p->next;
        drop(dn, &p->plan);
        lw_free(p);
    }
}

/* Under the lock. The plan of this shape, made where there is none; one without a descriptor where cuDNN has no engine
 * for it (asked once only). */
static lw_status find_plan(lw_backend *backend, const conv_shape *shape, cu_conv_plan **out, lw_error *err) {
    cu_backend *b = cu_of(backend);
    for (cu_conv_plan *p = b->conv_plans; p; p = p->next)
        if (!memcmp(&p->shape, shape, sizeof *shape)) return *out = p, LW_OK;
    cu_conv_plan *p = lw_alloc(1, sizeof *p);
    if (!p) return lw_fail(err, LW_ENOMEM, "cuda:%d: no memory for a convolution's plan", b->index);
    p->shape = *shape;
    if (lw_fault_hit() || build(&b->dn, p, b->dnn) != CUDNN_STATUS_SUCCESS) p->plan = NULL;
    p->next = b->conv_plans;
    b->conv_plans = p;
    *out = p;
    return LW_OK;
}

/* ---- the tactic */

typedef struct conv_state {
    cu_conv_plan *plan;
    int32_t weights, bias;
    void *own; /* where cuDNN has no engine: the state of cu_conv2d_mma, which runs instead */
} conv_state;

/* (g, n) as one axis: pictures at one stride. */
static bool pictures(const lw_view *v, int64_t dims[4], int64_t strides[4]) {
    if (v->g > 1 && v->n > 1 && v->sg != v->n * v->sn) return false;
    int64_t stride = v->n > 1 ? v->sn : v->g > 1 ? v->sg : (int64_t)v->h * v->sh;
    if (stride == 0 || v->sw == 0 || v->sh == 0) return false;
    dims[0] = (int64_t)v->g * v->n, dims[1] = v->c, dims[2] = v->h, dims[3] = v->w;
    strides[0] = stride, strides[1] = 1, strides[2] = v->sh, strides[3] = v->sw;
    return true;
}

static bool shape_of(const lw_product_args *p, conv_shape *s) {
    const lw_view *in = &p->in.a, *out = &p->out;
    memset(s, 0, sizeof *s);
    if (!pictures(in, s->x, s->x_strides) || !pictures(out, s->y, s->y_strides)) return false;
    const int64_t w[4] = {out->c, in->c, p->kh, p->kw},
                  strides[4] = {(int64_t)p->kh * p->kw * in->c, 1, (int64_t)p->kw * in->c, in->c};
    memcpy(s->w, w, sizeof w);
    memcpy(s->w_strides, strides, sizeof strides);
    s->pad[0] = p->pad_top, s->pad[1] = p->pad_left;
    s->post[0] = (int64_t)(out->h - 1) * p->stride + p->kh - p->pad_top - in->h;
    s->post[1] = (int64_t)(out->w - 1) * p->stride + p->kw - p->pad_left - in->w;
    s->stride[0] = s->stride[1] = p->stride;
    for (int i = 0; i < 2; i++) /* rows that no window reaches: as if not padded */
        if (s->post[i] < 0) s->post[i] = 0;
    s->dtype = in->dtype;
    s->bias = lw_param_is(p->bias) && in->dtype == LW_F16;
    return true;
}

static bool supports(const lw_backend *b, const lw_params *params, const lw_op *op) {
    (void)b, (void)params;
    const lw_product_args *p = &op->m->product;
    if (op->n_member != 1 || !cu_is_float(&p->in.a) || p->in.a.dtype != p->out.dtype) return false;
    return cu_is_vectors(&p->in.a) && cu_is_vectors(&p->out) && cu_epilogue_fits(&p->epi);
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    const lw_product_args *p = &op->m->product;
    conv_shape shape;
    conv_state *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    if (!shape_of(p, &shape)) return lw_fail(err, LW_EINTERNAL, "op %s: pictures at several strides", op->name);
    LW_TRY(cu_need_dnn(backend, err));
    pthread_mutex_lock(&cu_of(backend)->lock);
    lw_status status = find_plan(backend, &shape, &s->plan, err);
    pthread_mutex_unlock(&cu_of(backend)->lock);
    LW_TRY(status);
    if (!s->plan->plan) return cu_conv2d_mma.prepare(backend, params, op, &s->own, workspace_bytes, err);
    *workspace_bytes = s->plan->workspace_bytes ? s->plan->workspace_bytes + CU_ALIGN : 0;
    LW_TRY(cu_want_matrix(params, p->w, p->in.a.dtype, &s->weights, err));
    if (s->plan->kind != CONV_ALONE) return cu_want_matrix(params, p->bias, p->in.a.dtype, &s->bias, err);
    return cu_want_vector(params, p->bias, &s->bias, err);
}

/* Under the lock: a handle has one stream. */
static cudnnStatus_t execute(const cu_dnn_functions *dn, cudnnHandle_t handle, cudaStream_t stream,
                             const cu_conv_plan *plan, void *const pointers[N_IDS], void *workspace) {
    static const int64_t ids[N_IDS] = {ID_X, ID_W, ID_Y, ID_BIAS, ID_SIDE};
    int64_t n = plan->kind == CONV_ALONE ? 3 : plan->kind == CONV_BIAS ? 4 : 5;
    cudnnBackendDescriptor_t pack = NULL;
    DNN(dn->SetStream(handle, stream));
    DNN(make(dn, &pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR));
    cudnnStatus_t e = set(dn, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, ids);
    if (e == CUDNN_STATUS_SUCCESS)
        e = set(dn, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, pointers);
    if (e == CUDNN_STATUS_SUCCESS)
        e = set(dn, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (e == CUDNN_STATUS_SUCCESS) e = dn->BackendFinalize(pack);
    if (e == CUDNN_STATUS_SUCCESS) e = dn->BackendExecute(handle, plan->plan, pack);
    drop(dn, &pack);
    return e;
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const lw_product_args *p = &op->m->product;
    const conv_state *s = state;
    if (s->own) return cu_conv2d_mma.run(backend, params, op, s->own, r, err);
    union {
        const void *c;
        void *m;
    } weights = {lw_pack_data(params, s->weights)}, bias = {lw_pack_data(params, s->bias)};
    void *out = lw_at(r, p->out), *const pointers[N_IDS] = {lw_at(r, p->in.a), weights.m, out, bias.m, out};
    cudaStream_t stream = cu_stream(backend, r);
    LW_TRY(cu_enter(backend, err));
    pthread_mutex_lock(&cu_of(backend)->lock);
    cudnnStatus_t e = lw_fault_hit() ? CUDNN_STATUS_INTERNAL_ERROR
                                     : execute(&cu_of(backend)->dn, cu_of(backend)->dnn, stream, s->plan, pointers,
                                               cu_align(r->workspace));
    pthread_mutex_unlock(&cu_of(backend)->lock);
    if (e != CUDNN_STATUS_SUCCESS) return cu_fail_dnn(backend, err, e, op->name);
    cu_epilogue epi = cu_epilogue_at(params, r, &p->epi, s->plan->kind == CONV_ALONE ? s->bias : -1);
    if (!epi.bias && !epi.addend.p && !epi.act && !epi.scale && !epi.residual.p) return LW_OK;
    cu_combine_args finish = {.in = cu_view_at(r, p->out), .out = cu_view_at(r, p->out), .splits = 1, .epi = epi};
    return cu_launched(backend, op, cu_combine(cu_order_of(backend, r), &finish), err);
}

static void release(void *state) {
    conv_state *s = state;
    if (s->own) cu_conv2d_mma.release(s->own);
    lw_free(s);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

static const lw_tactic conv2d = {"conv2d_cudnn", LW_OP_CONV2D, TAKES, supports, prepare, run, release};

const lw_tactic *const cu_dnn_tactics[] = {&conv2d, NULL};
