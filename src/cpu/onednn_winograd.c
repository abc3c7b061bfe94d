/* SPDX-License-Identifier: MIT
 * 3x3 convolution of stride 1 by oneDNN's Winograd: fewer multiplications for transformed weights that take more memory
 * (F(4x4,3x3) 4 times as much, F(2x2,3x3) 1.8). oneDNN has it for AVX-512 alone, in nChw16c alone, with no epilogue but
 * bias: the op copies its input into blocks of 16 channels, and the copy back out of them does the epilogue on the way.
 *
 * oneDNN itself picks one of the two by shape and thread count, and their sums differ. So each is a tactic of its own,
 * found by its name: a tactic then gives the same bits for every thread count that has it. */
#include "cpu/onednn.h"

#include <string.h>

#include "cpu/kernels.h"

enum { BLOCK = 16, MAX_ARGS = 5 };

typedef struct winograd {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[MAX_ARGS];
    int n_args;
    size_t dst_off, scratch_off; /* in the workspace; the source is at its beginning */
    int32_t weights, bias;
} winograd;

/* ---- what can run */

/* Channels into the product, before or after the planner has made its prologue an op of its own. */
static int32_t channels_in(const lw_product_args *p) { return p->in.a.c + (lw_view_is(p->in.b) ? p->in.b.c : 0); }

static dnnl_status_t make_op_desc(dnnl_convolution_desc_t *desc, const lw_product_args *p) {
    int64_t batch = (int64_t)p->out.g * p->out.n, ci = channels_in(p);
    dnnl_dims_t in = {batch, ci, p->out.h, p->out.w}, out = {batch, p->out.c, p->out.h, p->out.w},
                window = {p->out.c, ci, 3, 3}, c = {p->out.c}, one = {1, 1};
    dnnl_memory_desc_t src, weights, bias, dst;
    DNN(dnnl_memory_desc_init_by_tag(&src, 4, in, dnnl_f32, dnnl_nChw16c));
    DNN(dnnl_memory_desc_init_by_tag(&weights, 4, window, dnnl_f32, dnnl_format_tag_any));
    DNN(dnnl_memory_desc_init_by_tag(&bias, 1, c, dnnl_f32, dnnl_a));
    DNN(dnnl_memory_desc_init_by_tag(&dst, 4, out, dnnl_f32, dnnl_nChw16c));
    return dnnl_convolution_forward_desc_init(desc, dnnl_forward_inference, dnnl_convolution_winograd, &src, &weights,
                                              lw_param_is(p->bias) ? &bias : NULL, &dst, one, one, one);
}

/* The implementation whose name holds `kind`; anything but success: there is none for this shape and CPU. */
static dnnl_status_t find(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const lw_product_args *p,
                          const char *kind) {
    dnnl_convolution_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_iterator_t all = NULL;
    dnnl_status_t s = make_op_desc(&desc, p);
    if (s == dnnl_success) s = dnnl_primitive_attr_create(&attr);
    if (s == dnnl_success) s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success) s = dnnl_primitive_desc_iterator_create(&all, &desc, attr, engine, NULL);
    while (s == dnnl_success) {
        const char *name = "";
        dnnl_primitive_desc_t pd = dnnl_primitive_desc_iterator_fetch(all);
        if (!pd) s = dnnl_out_of_memory;
        else if (dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name) == dnnl_success &&
                 strstr(name, kind)) {
            *out = pd;
            break;
        } else {
            dnnl_primitive_desc_destroy(pd);
            s = dnnl_primitive_desc_iterator_next(all);
        }
    }
    if (all) dnnl_primitive_desc_iterator_destroy(all);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return s;
}

/* Only asking oneDNN is exact; what can't be is sorted out before, so that asking stays rare. */
static bool supports(const lw_backend *backend, const lw_op *op, const char *kind) {
    const lw_product_args *p = &op->m->product;
    const lw_epilogue *e = &p->epi;
    int32_t up = p->in.up2 ? 2 : 1;
    if (op->n_member != 1 || p->kh != 3 || p->kw != 3 || p->stride != 1 || p->pad_top != 1 || p->pad_left != 1)
        return false;
    if (p->out.h != p->in.a.h * up || p->out.w != p->in.a.w * up || channels_in(p) % BLOCK || p->out.c % BLOCK)
        return false;
    if (p->out.dtype != LW_F32 || p->in.a.dtype != LW_F32 || e->act == LW_ACT_GEGLU) return false;
    if ((lw_view_is(e->addend) && e->addend.dtype != LW_F32) || (lw_view_is(e->scale) && e->scale.dtype != LW_F32) ||
        (lw_view_is(e->residual) && e->residual.dtype != LW_F32))
        return false;
    dnnl_engine_t engine = NULL;
    dnnl_primitive_desc_t pd = NULL;
    int before = lw_onednn_enter(backend->threads);
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) == dnnl_success) find(&pd, engine, p, kind);
    lw_onednn_leave(before);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (engine) dnnl_engine_destroy(engine);
    return pd != NULL;
}

/* ---- planning */

static void release(void *state) {
    winograd *s = state;
    for (int i = 0; i < s->n_args; i++)
        if (s->args[i].memory) dnnl_memory_destroy(s->args[i].memory);
    if (s->primitive) dnnl_primitive_destroy(s->primitive);
    if (s->stream) dnnl_stream_destroy(s->stream);
    if (s->engine) dnnl_engine_destroy(s->engine);
    lw_free(s);
}

static dnnl_status_t add_arg(winograd *s, int arg, const dnnl_memory_desc_t *md) {
    s->args[s->n_args] = (dnnl_exec_arg_t){.arg = arg};
    return dnnl_memory_create(&s->args[s->n_args++].memory, md, s->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t make(winograd *s, const lw_product_args *p, dnnl_primitive_desc_t pd, size_t *bytes) {
    const dnnl_memory_desc_t *src = dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0),
                             *dst = dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0),
                             *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    DNN(dnnl_stream_create(&s->stream, s->engine, dnnl_stream_default_flags));
    DNN(dnnl_primitive_create(&s->primitive, pd));
    DNN(add_arg(s, DNNL_ARG_SRC, src));
    DNN(add_arg(s, DNNL_ARG_DST, dst));
    DNN(add_arg(s, DNNL_ARG_SCRATCHPAD, scratch));
    DNN(add_arg(s, DNNL_ARG_WEIGHTS, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0)));
    if (lw_param_is(p->bias))
        DNN(add_arg(s, DNNL_ARG_BIAS, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1)));
    s->dst_off = lw_round_up(dnnl_memory_desc_get_size(src), 64);
    s->scratch_off = s->dst_off + lw_round_up(dnnl_memory_desc_get_size(dst), 64);
    *bytes = s->scratch_off + dnnl_memory_desc_get_size(scratch);
    return dnnl_success;
}

static lw_status prepare_with(winograd *s, lw_params *params, const lw_op *op, const char *kind,
                              dnnl_primitive_desc_t *pd, size_t *workspace_bytes, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    dnnl_status_t e = dnnl_engine_create(&s->engine, dnnl_cpu, 0);
    if (e == dnnl_success) e = find(pd, s->engine, p, kind);
    if (e == dnnl_success) e = make(s, p, *pd, workspace_bytes);
    if (e != dnnl_success) return lw_onednn_fail(op, e, err);
    LW_TRY(lw_onednn_weights(params, p->w, dnnl_primitive_desc_query_md(*pd, dnnl_query_weights_md, 0), &s->weights,
                             err));
    return lw_param_is(p->bias) ? lw_pack_plain(params, p->bias, &s->bias, err) : LW_OK;
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, const char *kind, void **state,
                         size_t *workspace_bytes, lw_error *err) {
    winograd *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    s->weights = s->bias = -1;
    *state = s;
    dnnl_primitive_desc_t pd = NULL;
    int before = lw_onednn_enter(backend->threads);
    lw_status status = prepare_with(s, params, op, kind, &pd, workspace_bytes, err);
    lw_onednn_leave(before);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return status;
}

/* ---- running: into blocks, the primitive, out of them */

typedef struct job {
    const lw_product_args *p;
    const lw_run *run;
    const lw_kernels *k;
    float *blocked;
} job;

/* Where row i of all (g, n, h) begins in blocks; the next block of channels is h * w * 16 further. */
static float *blocked_row(const job *j, int64_t i, int32_t c) {
    const lw_view *out = &j->p->out;
    int64_t image = i / out->h, y = i % out->h;
    return j->blocked + (image * c * out->h + y * BLOCK) * out->w;
}

static void to_blocks(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_view *a = &j->p->in.a;
    const float *src = lw_at(j->run, *a);
    int64_t plane = (int64_t)a->h * a->w * BLOCK;
    for (int64_t i = begin; i < end; i++) {
        int64_t image = i / a->h;
        const float *row = src + lw_view_index(a, image / a->n, image % a->n, i % a->h, 0);
        float *to = blocked_row(j, i, a->c);
        for (int32_t w = 0; w < a->w; w++)
            for (int32_t c = 0; c < a->c; c += BLOCK)
                memcpy(to + c / BLOCK * plane + w * BLOCK, row + w * a->sw + c, BLOCK * sizeof *to);
    }
}

static void from_blocks(void *user, int64_t begin, int64_t end) {
    const job *j = user;
    const lw_view *out = &j->p->out;
    const lw_epilogue *e = &j->p->epi;
    const float *addend = lw_at(j->run, e->addend), *residual = lw_at(j->run, e->residual),
                *scale = lw_at(j->run, e->scale);
    bool plain = !addend && !residual && !scale && e->act == LW_ACT_NONE;
    int64_t plane = (int64_t)out->h * out->w * BLOCK;
    for (int64_t i = begin; i < end; i++) {
        int64_t g = i / out->h / out->n, n = i / out->h % out->n, h = i % out->h;
        const float *from = blocked_row(j, i, out->c);
        const float *add = addend ? addend + lw_view_index(&e->addend, g, n, 0, 0) : NULL;
        const float *res = residual ? residual + lw_view_index(&e->residual, g, n, h, 0) : NULL;
        float *row = (float *)lw_at(j->run, *out) + lw_view_index(out, g, n, h, 0);
        float s = scale ? scale[lw_view_index(&e->scale, g, n, 0, 0)] : 1;
        for (int32_t w = 0; w < out->w; w++)
            for (int32_t c = 0; c < out->c; c += BLOCK) {
                const float *x = from + c / BLOCK * plane + w * BLOCK;
                float *y = row + w * out->sw + c;
                if (plain) memcpy(y, x, BLOCK * sizeof *y);
                else
                    j->k->combine(x, add ? add + c : NULL, e->act, s, res ? res + w * e->residual.sw + c : NULL, BLOCK,
                                  y);
            }
    }
}

static dnnl_status_t execute(const winograd *s, const void *const addresses[MAX_ARGS]) {
    for (int i = 0; i < s->n_args; i++) {
        union {
            const void *c;
            void *m;
        } at = {addresses[i]};
        DNN(dnnl_memory_set_data_handle(s->args[i].memory, at.m));
    }
    DNN(dnnl_primitive_execute(s->primitive, s->stream, s->n_args, s->args));
    return dnnl_stream_wait(s->stream);
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    const winograd *s = state;
    const lw_view *out = &op->m->product.out;
    char *space = r->workspace;
    const void *const addresses[MAX_ARGS] = {space, space + s->dst_off, space + s->scratch_off,
                                             lw_pack_data(params, s->weights), lw_pack_data(params, s->bias)};
    job j = {.p = &op->m->product, .run = r, .k = lw_cpu_kernels(), .blocked = (float *)r->workspace};
    int64_t rows = (int64_t)out->g * out->n * out->h, each = 1 + 64 / out->w;
    lw_parallel_for(backend->pool, backend->threads, rows, each, to_blocks, &j);
    int before = lw_onednn_enter(backend->threads);
    dnnl_status_t e = execute(s, addresses);
    lw_onednn_leave(before);
    if (e != dnnl_success) return lw_onednn_fail(op, e, err);
    j.blocked = (float *)(void *)(space + s->dst_off);
    lw_parallel_for(backend->pool, backend->threads, rows, each, from_blocks, &j);
    return LW_OK;
}

#define TACTIC(n)                                                                                                      \
    static bool supports##n(const lw_backend *backend, const lw_params *params, const lw_op *op) {                     \
        (void)params;                                                                                                  \
        return supports(backend, op, "wino_" #n "x3");                                                                 \
    }                                                                                                                  \
    static lw_status prepare##n(lw_backend *backend, lw_params *params, const lw_op *op, void **state,                 \
                                size_t *workspace_bytes, lw_error *err) {                                              \
        return prepare(backend, params, op, "wino_" #n "x3", state, workspace_bytes, err);                             \
    }                                                                                                                  \
    const lw_tactic lw_onednn_winograd##n = {                                                                          \
        "conv2d_winograd" #n "_onednn", LW_OP_CONV2D, TAKES, supports##n, prepare##n, run, release};

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_SCALE | LW_TAKES_RESIDUAL };

TACTIC(4)
TACTIC(2)
