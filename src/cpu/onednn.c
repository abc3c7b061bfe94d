/* SPDX-License-Identifier: MIT
 * Products through oneDNN's C API (2.6): 3x3 windows as direct convolution on nhwc, everything 1x1 as a matrix product.
 * Takes addend, activation and residual as post-ops; the prologue, scale, GEGLU and the shortcut are split off by the
 * planner. Weights are packed in whatever layout the primitive asks for. Primitives, memory objects and their argument
 * lists are made when planning; a run only sets addresses. */
#include <dnnl.h>
#include <stdio.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/cpu.h"

#define TEXT(x) #x
#define DOTTED(a, b, c) TEXT(a) "." TEXT(b) "." TEXT(c)
#define VERSION_TEXT DOTTED(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH)

const char *lw_cpu_onednn_version(void) { return "oneDNN " VERSION_TEXT; }

enum { MAX_ARGS = 8 };

typedef struct bound_arg { /* what address argument i takes when run */
    lw_view view;          /* or */
    int32_t pack;
} bound_arg;

typedef struct product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[MAX_ARGS];
    bound_arg bound[MAX_ARGS];
    int n_args, scratchpad; /* scratchpad: index in args, -1: none */
} product;

/* oneDNN sizes its work by the OpenMP setting of the calling thread; the caller's own setting is put back. */
static int enter_threads(int threads) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
#else
    return threads;
#endif
}

static void leave_threads(int before) {
#ifdef _OPENMP
    omp_set_num_threads(before);
#else
    (void)before;
#endif
}

/* ---- what can run */

/* Rows of (g, n, h, w) at one stride. */
static bool rows_uniform(const lw_view *v) {
    return v->sw != 0 && (v->h == 1 || v->sh == v->w * v->sw) && (v->n == 1 || v->sn == v->h * v->w * v->sw) &&
           (v->g == 1 || v->sg == (int64_t)v->n * v->h * v->w * v->sw);
}

/* Pictures of (g, n) at one stride. */
static bool pictures_uniform(const lw_view *v) {
    return v->sw != 0 && (v->h == 1 || v->sh != 0) && (v->n == 1 || v->sn != 0) &&
           (v->g == 1 || (v->sg != 0 && (v->n == 1 || v->sg == v->n * v->sn)));
}

static bool is_matmul(const lw_product_args *p) { return p->kh == 1 && p->kw == 1 && p->stride == 1; }

static bool supports(const lw_backend *backend, const lw_params *params, const lw_op *op) {
    (void)backend, (void)params;
    const lw_product_args *p = &op->m->product;
    if (op->n_member != 1 || p->out.dtype != LW_F32 || p->in.a.dtype != LW_F32) return false;
    if (!(is_matmul(p) ? rows_uniform(&p->out) : pictures_uniform(&p->out))) return false;
    const lw_view *addend = &p->epi.addend;
    bool shared = (addend->g == 1 || addend->sg == 0) && (addend->n == 1 || addend->sn == 0);
    if (lw_view_is(*addend) && (addend->dtype != LW_F32 || !shared)) return false;
    return !lw_view_is(p->epi.residual) || p->epi.residual.dtype == LW_F32;
}

/* ---- descriptors */

typedef struct descs {
    dnnl_memory_desc_t src, weights, bias, dst, addend, residual;
    bool has_bias, has_addend, has_residual;
} descs;

static dnnl_status_t picture_desc(dnnl_memory_desc_t *md, const lw_view *v) {
    int64_t batch = (int64_t)v->g * v->n, stride = v->n > 1 ? v->sn : v->g > 1 ? v->sg : (int64_t)v->h * v->w * v->c;
    dnnl_dims_t dims = {batch, v->c, v->h, v->w}, strides = {stride, 1, v->h > 1 ? v->sh : v->w * v->sw, v->sw};
    return dnnl_memory_desc_init_by_strides(md, 4, dims, dnnl_f32, strides);
}

static dnnl_status_t row_desc(dnnl_memory_desc_t *md, const lw_view *v) {
    dnnl_dims_t dims = {(int64_t)v->g * v->n * v->h * v->w, v->c}, strides = {v->sw, 1};
    return dnnl_memory_desc_init_by_strides(md, 2, dims, dnnl_f32, strides);
}

static dnnl_status_t view_desc(dnnl_memory_desc_t *md, const lw_view *v, bool rows) {
    return rows ? row_desc(md, v) : picture_desc(md, v);
}

/* A vector over channels, broadcast over the rest. */
static dnnl_status_t channel_desc(dnnl_memory_desc_t *md, int64_t c, bool rows) {
    dnnl_dims_t two = {1, c}, four = {1, c, 1, 1};
    return rows ? dnnl_memory_desc_init_by_tag(md, 2, two, dnnl_f32, dnnl_ab)
                : dnnl_memory_desc_init_by_tag(md, 4, four, dnnl_f32, dnnl_acdb);
}

#define DNN(call)                                                                                                      \
    do {                                                                                                               \
        dnnl_status_t dnn_status = (call);                                                                             \
        if (dnn_status != dnnl_success) return dnn_status;                                                             \
    } while (0)

static dnnl_status_t make_descs(descs *d, const lw_product_args *p) {
    bool rows = is_matmul(p);
    DNN(view_desc(&d->src, &p->in.a, rows));
    DNN(view_desc(&d->dst, &p->out, rows));
    dnnl_dims_t matrix = {p->in.a.c, p->out.c}, window = {p->out.c, p->in.a.c, p->kh, p->kw}, c = {p->out.c};
    DNN(rows ? dnnl_memory_desc_init_by_tag(&d->weights, 2, matrix, dnnl_f32, dnnl_format_tag_any)
             : dnnl_memory_desc_init_by_tag(&d->weights, 4, window, dnnl_f32, dnnl_format_tag_any));
    d->has_bias = lw_param_is(p->bias);
    if (d->has_bias)
        DNN(rows ? channel_desc(&d->bias, p->out.c, true)
                 : dnnl_memory_desc_init_by_tag(&d->bias, 1, c, dnnl_f32, dnnl_a));
    d->has_addend = lw_view_is(p->epi.addend);
    if (d->has_addend) DNN(channel_desc(&d->addend, p->out.c, rows));
    d->has_residual = lw_view_is(p->epi.residual);
    if (d->has_residual) DNN(view_desc(&d->residual, &p->epi.residual, rows));
    return dnnl_success;
}

static dnnl_status_t add_act(dnnl_post_ops_t ops, lw_act act) {
    switch (act) {
    case LW_ACT_SILU: return dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_swish, 1, 0);
    case LW_ACT_QUICK_GELU: return dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_swish, 1.702f, 0);
    case LW_ACT_GELU: return dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_gelu_erf, 0, 0);
    default: return dnnl_success;
    }
}

static dnnl_status_t make_attr(dnnl_primitive_attr_t attr, dnnl_post_ops_t ops, const descs *d, lw_act act) {
    DNN(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    if (d->has_addend) DNN(dnnl_post_ops_append_binary(ops, dnnl_binary_add, &d->addend));
    DNN(add_act(ops, act));
    if (d->has_residual) DNN(dnnl_post_ops_append_binary(ops, dnnl_binary_add, &d->residual));
    return dnnl_primitive_attr_set_post_ops(attr, ops);
}

static dnnl_status_t make_primitive_desc(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const descs *d,
                                         const lw_product_args *p) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(&attr);
    if (status == dnnl_success) status = dnnl_post_ops_create(&ops);
    if (status == dnnl_success) status = make_attr(attr, ops, d, p->epi.act);
    if (status == dnnl_success && is_matmul(p)) {
        dnnl_matmul_desc_t matmul;
        status = dnnl_matmul_desc_init(&matmul, &d->src, &d->weights, d->has_bias ? &d->bias : NULL, &d->dst);
        if (status == dnnl_success) status = dnnl_primitive_desc_create(out, &matmul, attr, engine, NULL);
    } else if (status == dnnl_success) {
        dnnl_convolution_desc_t conv;
        int64_t bottom = (int64_t)(p->out.h - 1) * p->stride + p->kh - p->pad_top - p->in.a.h,
                right = (int64_t)(p->out.w - 1) * p->stride + p->kw - p->pad_left - p->in.a.w;
        dnnl_dims_t strides = {p->stride, p->stride}, before = {p->pad_top, p->pad_left}, after = {bottom, right};
        status = dnnl_convolution_forward_desc_init(&conv, dnnl_forward_inference, dnnl_convolution_direct, &d->src,
                                                    &d->weights, d->has_bias ? &d->bias : NULL, &d->dst, strides,
                                                    before, after);
        if (status == dnnl_success) status = dnnl_primitive_desc_create(out, &conv, attr, engine, NULL);
    }
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return status;
}

/* ---- weights */

typedef struct pack_user {
    dnnl_memory_desc_t md;
    bool matmul;
} pack_user;

/* Logical [O][I][kh][kw] into the layout md by a reorder. */
static dnnl_status_t reorder(const pack_user *u, const float *logical, const int64_t d[4], void *dst) {
    dnnl_engine_t engine = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_memory_desc_t plain;
    dnnl_dims_t matrix = {d[1], d[0]}, window = {d[0], d[1], d[2], d[3]};
    union {
        const float *c;
        float *m;
    } src = {logical};
    dnnl_status_t s = dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (s == dnnl_success) s = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    if (s == dnnl_success)
        s = u->matmul ? dnnl_memory_desc_init_by_tag(&plain, 2, matrix, dnnl_f32, dnnl_ba)
                      : dnnl_memory_desc_init_by_tag(&plain, 4, window, dnnl_f32, dnnl_abcd);
    if (s == dnnl_success) s = dnnl_memory_create(&from, &plain, engine, src.m);
    if (s == dnnl_success) s = dnnl_memory_create(&to, &u->md, engine, dst);
    if (s == dnnl_success) s = dnnl_reorder_primitive_desc_create(&pd, &plain, engine, &u->md, engine, NULL);
    if (s == dnnl_success) s = dnnl_primitive_create(&primitive, pd);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(primitive, stream, 2, (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
    if (s == dnnl_success) s = dnnl_stream_wait(stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (to) dnnl_memory_destroy(to);
    if (from) dnnl_memory_destroy(from);
    if (stream) dnnl_stream_destroy(stream);
    if (engine) dnnl_engine_destroy(engine);
    return s;
}

static lw_status fill(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    dnnl_status_t s = reorder(user, logical, d, dst);
    return s == dnnl_success ? LW_OK
                             : lw_fail(err, s == dnnl_out_of_memory ? LW_ENOMEM : LW_EINTERNAL,
                                       "oneDNN: status %d while packing weights", (int)s);
}

/* Two layouts are the same where all of the descriptor but the padding after its fields is. */
static uint64_t desc_hash(const dnnl_memory_desc_t *md) {
    uint64_t h = 0xcbf29ce484222325u;
    const int64_t head[] = {md->ndims,
                            md->data_type,
                            md->offset0,
                            md->format_kind,
                            md->format_desc.blocking.inner_nblks,
                            (int64_t)md->extra.flags};
#define MIX(v) h = (h ^ (uint64_t)(v)) * 0x100000001b3u
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) MIX(head[i]);
    for (int i = 0; i < md->ndims; i++) {
        MIX(md->padded_dims[i]);
        MIX(md->format_desc.blocking.strides[i]);
    }
    for (int i = 0; i < md->format_desc.blocking.inner_nblks; i++) {
        MIX(md->format_desc.blocking.inner_blks[i]);
        MIX(md->format_desc.blocking.inner_idxs[i]);
    }
#undef MIX
    return h;
}

static lw_status request_weights(lw_params *params, lw_param w, const dnnl_memory_desc_t *md, bool matmul,
                                 int32_t *pack, lw_error *err) {
    pack_user user = {.md = *md, .matmul = matmul};
    lw_form form = {.bytes = dnnl_memory_desc_get_size(md), .fill = fill, .user = &user, .user_bytes = sizeof user};
    snprintf(form.key, sizeof form.key, "onednn_f32_%s_%016llx", matmul ? "io" : "oihw",
             (unsigned long long)desc_hash(md));
    return lw_pack_request(params, w, &form, pack, err);
}

/* ---- the tactic */

static void release(void *state) {
    product *p = state;
    for (int i = 0; i < p->n_args; i++)
        if (p->args[i].memory) dnnl_memory_destroy(p->args[i].memory);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->stream) dnnl_stream_destroy(p->stream);
    if (p->engine) dnnl_engine_destroy(p->engine);
    lw_free(p);
}

static dnnl_status_t add_arg(product *s, int arg, const dnnl_memory_desc_t *md, bound_arg bound) {
    s->args[s->n_args] = (dnnl_exec_arg_t){.arg = arg};
    s->bound[s->n_args] = bound;
    return dnnl_memory_create(&s->args[s->n_args++].memory, md, s->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t add_args(product *s, const descs *d, const lw_product_args *p, dnnl_primitive_desc_t pd,
                              int32_t weights, int32_t bias) {
    const lw_view none = LW_NO_VIEW;
    int post = 0;
    DNN(add_arg(s, DNNL_ARG_SRC, &d->src, (bound_arg){p->in.a, -1}));
    DNN(add_arg(s, DNNL_ARG_WEIGHTS, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0),
                (bound_arg){none, weights}));
    DNN(add_arg(s, DNNL_ARG_DST, &d->dst, (bound_arg){p->out, -1}));
    if (d->has_bias) DNN(add_arg(s, DNNL_ARG_BIAS, &d->bias, (bound_arg){none, bias}));
    if (d->has_addend)
        DNN(add_arg(s, DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, &d->addend,
                    (bound_arg){p->epi.addend, -1}));
    if (p->epi.act != LW_ACT_NONE) post++;
    if (d->has_residual)
        DNN(add_arg(s, DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, &d->residual,
                    (bound_arg){p->epi.residual, -1}));
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (scratch && dnnl_memory_desc_get_size(scratch)) {
        s->scratchpad = s->n_args;
        DNN(add_arg(s, DNNL_ARG_SCRATCHPAD, scratch, (bound_arg){none, -1}));
    }
    return dnnl_success;
}

static lw_status fail(const lw_op *op, dnnl_status_t s, lw_error *err) {
    return lw_fail(err, s == dnnl_out_of_memory ? LW_ENOMEM : LW_EINTERNAL, "op %s: oneDNN gave status %d", op->name,
                   (int)s);
}

static lw_status prepare_with(product *s, lw_params *params, const lw_op *op, dnnl_primitive_desc_t *pd,
                              size_t *workspace_bytes, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    descs d = {0};
    int32_t weights = -1, bias = -1;
    dnnl_status_t e = dnnl_engine_create(&s->engine, dnnl_cpu, 0);
    if (e == dnnl_success) e = dnnl_stream_create(&s->stream, s->engine, dnnl_stream_default_flags);
    if (e == dnnl_success) e = make_descs(&d, p);
    if (e == dnnl_success) e = make_primitive_desc(pd, s->engine, &d, p);
    if (e == dnnl_success) e = dnnl_primitive_create(&s->primitive, *pd);
    if (e != dnnl_success) return fail(op, e, err);
    LW_TRY(request_weights(params, p->w, dnnl_primitive_desc_query_md(*pd, dnnl_query_weights_md, 0), is_matmul(p),
                           &weights, err));
    if (d.has_bias) LW_TRY(lw_pack_plain(params, p->bias, &bias, err));
    e = add_args(s, &d, p, *pd, weights, bias);
    if (e != dnnl_success) return fail(op, e, err);
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(*pd, dnnl_query_scratchpad_md, 0);
    *workspace_bytes = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
    return LW_OK;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    product *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    s->scratchpad = -1;
    *state = s;
    dnnl_primitive_desc_t pd = NULL;
    int before = enter_threads(backend->threads);
    lw_status status = prepare_with(s, params, op, &pd, workspace_bytes, err);
    leave_threads(before);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return status;
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    product *s = state;
    int before = enter_threads(backend->threads);
    dnnl_status_t e = dnnl_success;
    for (int i = 0; i < s->n_args && e == dnnl_success; i++) {
        union {
            const void *c;
            void *m;
        } at = {lw_view_is(s->bound[i].view) ? lw_at(r, s->bound[i].view) : lw_pack_data(params, s->bound[i].pack)};
        e = dnnl_memory_set_data_handle(s->args[i].memory, i == s->scratchpad ? r->workspace : at.m);
    }
    if (e == dnnl_success) e = dnnl_primitive_execute(s->primitive, s->stream, s->n_args, s->args);
    if (e == dnnl_success) e = dnnl_stream_wait(s->stream);
    leave_threads(before);
    return e == dnnl_success ? LW_OK : fail(op, e, err);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_RESIDUAL };

static const lw_tactic conv2d = {"conv2d_onednn", LW_OP_CONV2D, TAKES, supports, prepare, run, release};
static const lw_tactic linear = {"linear_onednn", LW_OP_LINEAR, TAKES, supports, prepare, run, release};
const lw_tactic *const lw_cpu_onednn_tactics[] = {&conv2d, &linear, NULL};
