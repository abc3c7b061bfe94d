/* SPDX-License-Identifier: MIT
 * Products through oneDNN's C API (2.6): 3x3 windows as direct convolution on nhwc, everything 1x1 as a matrix product.
 * Takes addend, activation and residual as post-ops; the prologue, scale, GEGLU and the shortcut are split off by the
 * planner. Weights are packed in whatever layout the primitive asks for.
 *
 * An op is cut into chunks by its shape alone: blocks of output channels, bands of rows, pictures. Every chunk is a
 * primitive for one thread, and parallel_for hands the chunks out. oneDNN's own threading would be about as fast on an
 * idle machine, but some of its convolutions add in another order with another number of threads, and its static
 * halves wait for each other where the machine is busy. Primitives, memory objects and argument lists are made when
 * planning; a run only sets addresses. */
#include "cpu/cpu.h"

#include <stdio.h>
#include <string.h>
#include <dnnl.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define DNN(call)                                                                                                      \
    do {                                                                                                               \
        dnnl_status_t dnn_status = (call);                                                                             \
        if (dnn_status != dnnl_success) return dnn_status;                                                             \
    } while (0)

#define TEXT(x) #x
#define DOTTED(a, b, c) TEXT(a) "." TEXT(b) "." TEXT(c)
#define VERSION_TEXT DOTTED(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH)

const char *lw_cpu_onednn_version(void) { return "oneDNN " VERSION_TEXT; }

enum { MAX_ARGS = 8, MAX_CHUNKS = 96, MAX_KINDS = 8 };

typedef struct bound_arg { /* what address an argument takes when run */
    lw_view view;          /* or */
    int32_t pack;
    int64_t off; /* bytes into the pack */
} bound_arg;

typedef struct chunk {
    int32_t kind; /* index of its primitive */
    int32_t n_args;
    dnnl_exec_arg_t args[MAX_ARGS];
    bound_arg bound[MAX_ARGS];
} chunk;

/* How an op is cut. Row bands are counted in output rows (of h for windows, of all rows for products). */
typedef struct cuts {
    int32_t block, n_blocks; /* output channels */
    int32_t band, n_bands;
    int32_t n_pictures; /* 1: all together */
} cuts;

typedef struct product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    cuts cut;
    int32_t n_kinds, n_chunks;
    dnnl_primitive_t primitives[MAX_KINDS];
    dnnl_primitive_desc_t descs[MAX_KINDS]; /* only while preparing */
    lw_product_args shapes[MAX_KINDS];      /* what each primitive was made for */
    int32_t weights[MAX_KINDS], bias;       /* packs */
    size_t block_bytes[MAX_KINDS], scratch_bytes;
    chunk *chunks;
} product;

/* oneDNN sizes a primitive by the OpenMP setting of the calling thread; the caller's own setting is put back. */
static int enter(int threads) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
#else
    return threads;
#endif
}

static void leave(int before) {
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
    /* The stride of a single picture, which is never used, must still be what its rows make it: else oneDNN does not
     * know the layout for nhwc and falls back on its reference. */
    int64_t batch = (int64_t)v->g * v->n, row = v->h > 1 ? v->sh : v->w * v->sw,
            stride = v->n > 1   ? v->sn
                     : v->g > 1 ? v->sg
                                : v->h * row;
    dnnl_dims_t dims = {batch, v->c, v->h, v->w}, strides = {stride, 1, row, v->sw};
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

/* ---- weights: blocks of output channels one after the other, each in the layout its primitive asks for */

typedef struct pack_user {
    dnnl_memory_desc_t md, last; /* of a whole block and of the last, which may be smaller */
    int32_t block, n_blocks;
    size_t stride;
    bool matmul;
} pack_user;

/* Logical [O][I][kh][kw] into the layout md by a reorder. */
static dnnl_status_t reorder(const dnnl_memory_desc_t *md, bool matmul, const float *logical, const int64_t d[4],
                             void *dst) {
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
        s = matmul ? dnnl_memory_desc_init_by_tag(&plain, 2, matrix, dnnl_f32, dnnl_ba)
                   : dnnl_memory_desc_init_by_tag(&plain, 4, window, dnnl_f32, dnnl_abcd);
    if (s == dnnl_success) s = dnnl_memory_create(&from, &plain, engine, src.m);
    if (s == dnnl_success) s = dnnl_memory_create(&to, md, engine, dst);
    if (s == dnnl_success) s = dnnl_reorder_primitive_desc_create(&pd, &plain, engine, md, engine, NULL);
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
    const pack_user *u = user;
    dnnl_status_t s = dnnl_success;
    int before = enter(1); /* OpenMP's threads would spin after every block, for longer than a block takes */
    for (int32_t i = 0; i < u->n_blocks && s == dnnl_success; i++) {
        int64_t left = d[0] - (int64_t)i * u->block, slice[4] = {left < u->block ? left : u->block, d[1], d[2], d[3]};
        const float *src = logical + (int64_t)i * u->block * d[1] * d[2] * d[3];
        s = reorder(i + 1 < u->n_blocks ? &u->md : &u->last, u->matmul, src, slice,
                    (char *)dst + (size_t)i * u->stride);
    }
    leave(before);
    if (s != dnnl_success)
        return lw_fail(err, s == dnnl_out_of_memory ? LW_ENOMEM : LW_EINTERNAL,
                       "oneDNN: status %d while packing weights", (int)s);
    return LW_OK;
}

static uint64_t mix(uint64_t h, int64_t v) { return (h ^ (uint64_t)v) * 0x100000001b3u; /* FNV-1a */ }

static uint64_t mix_blocking(uint64_t h, const dnnl_memory_desc_t *md) {
    const dnnl_blocking_desc_t *b = &md->format_desc.blocking;
    h = mix(h, b->inner_nblks);
    for (int i = 0; i < md->ndims; i++) h = mix(h, b->strides[i]);
    for (int i = 0; i < b->inner_nblks; i++) h = mix(mix(h, b->inner_blks[i]), b->inner_idxs[i]);
    return h;
}

/* Two layouts are the same where all of the descriptor but the padding after its fields is. */
static uint64_t desc_hash(const dnnl_memory_desc_t *md) {
    uint64_t h = 0xcbf29ce484222325u;
    const int64_t head[] = {md->ndims, md->data_type, md->offset0, md->format_kind, (int64_t)md->extra.flags};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) h = mix(h, head[i]);
    for (int i = 0; i < md->ndims; i++) h = mix(h, md->padded_dims[i]);
    return mix_blocking(h, md);
}

static lw_status request_weights(lw_params *params, lw_param w, const pack_user *user, int32_t *pack, lw_error *err) {
    lw_form form = {
        .bytes = user->stride * (size_t)user->n_blocks, .fill = fill, .user = user, .user_bytes = sizeof *user};
    snprintf(form.key, sizeof form.key, "onednn_f32_%s_%016llx_%016llx_%d", user->matmul ? "io" : "oihw",
             (unsigned long long)desc_hash(&user->md), (unsigned long long)desc_hash(&user->last), user->block);
    return lw_pack_request(params, w, &form, pack, err);
}

/* ---- cutting */

static int32_t at_most(int64_t v, int64_t most) { return (int32_t)(v > most ? most : v < 1 ? 1 : v); }
static int32_t up_to(int32_t v, int32_t multiple) { return lw_parts(v, multiple) * multiple; }

/* By the shape alone, never by the number of threads: chunks of some 5 MFLOP (tens of microseconds). Where a product's
 * weights are more than a core's cache, the output channels are cut first, so that each weight is read by one core
 * only; else the rows, so that all read the same weights. A window's output channels are never cut: oneDNN's fast
 * convolutions take nhwc without gaps alone, and for a slice of channels it falls back on its reference, which is 500
 * times slower. */
static cuts choose_cuts(const lw_product_args *p) {
    bool rows = is_matmul(p);
    int32_t pictures = p->out.g * p->out.n, n_rows = rows ? pictures * p->out.h * p->out.w : p->out.h, c = p->out.c;
    double each = 2.0 * p->in.a.c * p->kh * p->kw, flop = each * c * pictures * p->out.h * p->out.w;
    int32_t want = at_most((int64_t)(flop / 5e6), MAX_CHUNKS / 2);
    bool heavy = each * c * 2 > 512 * 1024; /* bytes of weights */
    cuts k = {.block = c, .band = n_rows, .n_pictures = rows ? 1 : pictures};
    int32_t left = want / k.n_pictures > 0 ? want / k.n_pictures : 1, shortest = rows ? 48 : 4;
    if (rows && heavy) k.block = up_to(lw_parts(c, at_most(c / 64, left)), 16);
    k.n_blocks = lw_parts(c, k.block);
    left /= k.n_blocks;
    k.band = lw_parts(n_rows, at_most(n_rows / shortest, left > 0 ? left : 1));
    k.n_bands = lw_parts(n_rows, k.band);
    left /= k.n_bands;
    if (rows && !heavy && left > 1) {
        k.block = up_to(lw_parts(c, at_most(c / 64, left)), 16);
        k.n_blocks = lw_parts(c, k.block);
    }
    return k;
}

static void shift(lw_view *v, int64_t elements) {
    if (lw_view_is(*v)) v->off += elements * (int64_t)sizeof(float);
}

/* One row of pictures as [1,1,1,rows]: products see only rows. */
static lw_view as_rows(lw_view v) {
    if (!lw_view_is(v)) return v;
    v.w = v.g * v.n * v.h * v.w;
    v.g = v.n = v.h = 1;
    v.sh = v.sn = v.sg = v.w * v.sw;
    return v;
}

/* The op that a chunk is: views narrowed to its picture, rows and channels. */
static lw_product_args narrow(const lw_product_args *whole, const cuts *k, int32_t block, int32_t band,
                              int32_t picture) {
    lw_product_args p = *whole;
    int32_t first = block * k->block, row = band * k->band;
    lw_view *const outs[] = {&p.out, &p.epi.residual};
    if (is_matmul(whole)) {
        p.in.a = as_rows(p.in.a);
        p.out = as_rows(p.out);
        p.epi.residual = as_rows(p.epi.residual);
        int32_t n = p.out.w - row < k->band ? p.out.w - row : k->band;
        shift(&p.in.a, row * p.in.a.sw);
        p.in.a.w = n;
        for (int i = 0; i < 2; i++) shift(outs[i], row * outs[i]->sw), outs[i]->w = n;
    } else {
        if (k->n_pictures > 1) {
            int32_t g = picture / p.out.n, n = picture % p.out.n;
            shift(&p.in.a, lw_view_index(&p.in.a, g, n, 0, 0));
            p.in.a.g = p.in.a.n = 1;
            for (int i = 0; i < 2; i++) {
                if (!lw_view_is(*outs[i])) continue;
                shift(outs[i], lw_view_index(outs[i], g, n, 0, 0));
                outs[i]->g = outs[i]->n = 1;
            }
        }
        int32_t n = p.out.h - row < k->band ? p.out.h - row : k->band;
        int32_t top = row * p.stride - p.pad_top,
                bottom = (row + n - 1) * p.stride - p.pad_top + p.kh; /* input rows, padding included */
        int32_t in_first = top < 0 ? 0 : top, in_end = bottom > p.in.a.h ? p.in.a.h : bottom;
        p.pad_top = in_first - top;
        shift(&p.in.a, in_first * p.in.a.sh);
        p.in.a.h = in_end - in_first;
        for (int i = 0; i < 2; i++) shift(outs[i], row * outs[i]->sh), outs[i]->h = n;
    }
    int32_t c = p.out.c - first < k->block ? p.out.c - first : k->block;
    shift(&p.out, first);
    shift(&p.epi.residual, first);
    shift(&p.epi.addend, first);
    p.out.c = p.epi.residual.c = p.epi.addend.c = c;
    return p;
}

/* Chunks of the same sizes share a primitive. */
static bool same_kind(const lw_product_args *a, const lw_product_args *b) {
    return a->out.c == b->out.c && a->out.h == b->out.h && a->out.w == b->out.w && a->out.g == b->out.g &&
           a->out.n == b->out.n && a->in.a.h == b->in.a.h && a->pad_top == b->pad_top;
}

/* ---- the tactic */

static void release(void *state) {
    product *s = state;
    for (int32_t i = 0; i < s->n_chunks; i++)
        for (int32_t k = 0; k < s->chunks[i].n_args; k++)
            if (s->chunks[i].args[k].memory) dnnl_memory_destroy(s->chunks[i].args[k].memory);
    for (int32_t i = 0; i < s->n_kinds; i++) {
        if (s->primitives[i]) dnnl_primitive_destroy(s->primitives[i]);
        if (s->descs[i]) dnnl_primitive_desc_destroy(s->descs[i]);
    }
    if (s->stream) dnnl_stream_destroy(s->stream);
    if (s->engine) dnnl_engine_destroy(s->engine);
    lw_free(s->chunks);
    lw_free(s);
}

static lw_status onednn_fail(const lw_op *op, dnnl_status_t s, lw_error *err) {
    return lw_fail(err, s == dnnl_out_of_memory ? LW_ENOMEM : LW_EINTERNAL, "op %s: oneDNN gave status %d", op->name,
                   (int)s);
}

static dnnl_status_t add_arg(product *s, chunk *c, int arg, const dnnl_memory_desc_t *md, bound_arg bound) {
    c->args[c->n_args] = (dnnl_exec_arg_t){.arg = arg};
    c->bound[c->n_args] = bound;
    return dnnl_memory_create(&c->args[c->n_args++].memory, md, s->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t add_args(product *s, chunk *c, const lw_product_args *p, int32_t block, size_t index) {
    const lw_view none = LW_NO_VIEW;
    dnnl_primitive_desc_t pd = s->descs[c->kind];
    descs d = {0};
    int post = 0;
    DNN(make_descs(&d, p));
    DNN(add_arg(s, c, DNNL_ARG_SRC, &d.src, (bound_arg){p->in.a, -1, 0}));
    DNN(add_arg(s, c, DNNL_ARG_WEIGHTS, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0),
                (bound_arg){none, s->weights[c->kind], (int64_t)block * (int64_t)s->block_bytes[c->kind]}));
    DNN(add_arg(s, c, DNNL_ARG_DST, &d.dst, (bound_arg){p->out, -1, 0}));
    if (d.has_bias)
        DNN(add_arg(s, c, DNNL_ARG_BIAS, &d.bias,
                    (bound_arg){none, s->bias, (int64_t)block * s->cut.block * (int64_t)sizeof(float)}));
    if (d.has_addend)
        DNN(add_arg(s, c, DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, &d.addend,
                    (bound_arg){p->epi.addend, -1, 0}));
    if (p->epi.act != LW_ACT_NONE) post++;
    if (d.has_residual)
        DNN(add_arg(s, c, DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, &d.residual,
                    (bound_arg){p->epi.residual, -1, 0}));
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (scratch && dnnl_memory_desc_get_size(scratch))
        DNN(add_arg(s, c, DNNL_ARG_SCRATCHPAD, scratch, (bound_arg){none, -1, (int64_t)index}));
    return dnnl_success;
}

/* The primitive for chunks of p's sizes, made at its first. */
static dnnl_status_t find_kind(product *s, const lw_product_args *p, int32_t *kind) {
    for (*kind = 0; *kind < s->n_kinds; ++*kind)
        if (same_kind(&s->shapes[*kind], p)) return dnnl_success;
    if (s->n_kinds == MAX_KINDS) return dnnl_runtime_error;
    descs d = {0};
    DNN(make_descs(&d, p));
    s->shapes[*kind] = *p;
    s->n_kinds++;
    DNN(make_primitive_desc(&s->descs[*kind], s->engine, &d, p));
    DNN(dnnl_primitive_create(&s->primitives[*kind], s->descs[*kind]));
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(s->descs[*kind], dnnl_query_scratchpad_md, 0);
    size_t bytes = scratch ? lw_round_up(dnnl_memory_desc_get_size(scratch), 64) : 0;
    if (bytes > s->scratch_bytes) s->scratch_bytes = bytes;
    return dnnl_success;
}

/* Weights of each kind: a kind of whole blocks is packed with the last block's layout of the same band. */
static lw_status request_all_weights(product *s, lw_params *params, const lw_product_args *p, lw_error *err) {
    for (int32_t i = 0; i < s->n_kinds; i++) {
        const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(s->descs[i], dnnl_query_weights_md, 0);
        pack_user user = {
            .md = *md, .last = *md, .block = s->cut.block, .n_blocks = s->cut.n_blocks, .matmul = is_matmul(p)};
        for (int32_t k = 0; k < s->n_kinds; k++) { /* the other block size in the same rows */
            lw_product_args other = s->shapes[k];
            bool last = other.out.c<s->shapes[i].out.c, whole = other.out.c> s->shapes[i].out.c;
            other.out.c = s->shapes[i].out.c;
            if (!same_kind(&other, &s->shapes[i])) continue;
            const dnnl_memory_desc_t *theirs = dnnl_primitive_desc_query_md(s->descs[k], dnnl_query_weights_md, 0);
            if (last) user.last = *theirs;
            if (whole) user.md = *theirs;
        }
        size_t a = dnnl_memory_desc_get_size(&user.md), b = dnnl_memory_desc_get_size(&user.last);
        user.stride = lw_round_up(a > b ? a : b, 64);
        s->block_bytes[i] = user.stride;
        LW_TRY(request_weights(params, p->w, &user, &s->weights[i], err));
    }
    return LW_OK;
}

static lw_status prepare_with(product *s, lw_params *params, const lw_op *op, lw_error *err) {
    const lw_product_args *p = &op->m->product;
    const cuts *k = &s->cut;
    dnnl_status_t e = dnnl_engine_create(&s->engine, dnnl_cpu, 0);
    if (e == dnnl_success) e = dnnl_stream_create(&s->stream, s->engine, dnnl_stream_default_flags);
    int32_t n = k->n_blocks * k->n_bands * k->n_pictures;
    for (int32_t i = 0; i < n && e == dnnl_success; i++) {
        lw_product_args part =
            narrow(p, k, i / k->n_pictures / k->n_bands, i / k->n_pictures % k->n_bands, i % k->n_pictures);
        e = find_kind(s, &part, &s->chunks[i].kind);
    }
    if (e != dnnl_success) return onednn_fail(op, e, err);
    if (lw_param_is(p->bias)) LW_TRY(lw_pack_plain(params, p->bias, &s->bias, err));
    LW_TRY(request_all_weights(s, params, p, err));
    for (int32_t i = 0; i < n && e == dnnl_success; i++) {
        int32_t block = i / k->n_pictures / k->n_bands;
        lw_product_args part = narrow(p, k, block, i / k->n_pictures % k->n_bands, i % k->n_pictures);
        s->n_chunks = i + 1;
        e = add_args(s, &s->chunks[i], &part, block, (size_t)i * s->scratch_bytes);
    }
    return e == dnnl_success ? LW_OK : onednn_fail(op, e, err);
}

static lw_status prepare(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err) {
    (void)backend;
    product *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its state", op->name);
    *state = s;
    s->cut = choose_cuts(&op->m->product);
    s->chunks =
        lw_alloc((size_t)s->cut.n_blocks * (size_t)s->cut.n_bands * (size_t)s->cut.n_pictures, sizeof *s->chunks);
    if (!s->chunks) return lw_fail(err, LW_ENOMEM, "op %s: no memory for its chunks", op->name);
    int before = enter(1);
    lw_status status = prepare_with(s, params, op, err);
    leave(before);
    *workspace_bytes = s->scratch_bytes * (size_t)s->n_chunks;
    for (int32_t i = 0; i < s->n_kinds; i++) {
        if (s->descs[i]) dnnl_primitive_desc_destroy(s->descs[i]);
        s->descs[i] = NULL;
    }
    return status;
}

typedef struct job {
    product *s;
    const lw_params *params;
    const lw_run *run;
    _Atomic int status; /* of the first chunk that failed */
} job;

static void *address(const job *j, const bound_arg *b) {
    if (lw_view_is(b->view)) return lw_at(j->run, b->view);
    union {
        const void *c;
        char *m;
    } pack = {b->pack < 0 ? j->run->workspace : lw_pack_data(j->params, b->pack)};
    return pack.m + b->off;
}

static void run_chunks(void *user, int64_t begin, int64_t end) {
    job *j = user;
    for (int64_t i = begin; i < end; i++) {
        chunk *c = &j->s->chunks[i];
        dnnl_status_t e = dnnl_success;
        for (int32_t k = 0; k < c->n_args && e == dnnl_success; k++)
            e = dnnl_memory_set_data_handle(c->args[k].memory, address(j, &c->bound[k]));
        if (e == dnnl_success) e = dnnl_primitive_execute(j->s->primitives[c->kind], j->s->stream, c->n_args, c->args);
        if (e != dnnl_success) j->status = (int)e;
    }
}

static lw_status run(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *r,
                     lw_error *err) {
    job j = {.s = state, .params = params, .run = r, .status = dnnl_success};
    lw_parallel_for(backend->pool, backend->threads, j.s->n_chunks, 1, run_chunks, &j);
    return j.status == dnnl_success ? LW_OK : onednn_fail(op, (dnnl_status_t)j.status, err);
}

enum { TAKES = LW_TAKES_ADDEND | LW_TAKES_ACT | LW_TAKES_RESIDUAL };

static const lw_tactic conv2d = {"conv2d_onednn", LW_OP_CONV2D, TAKES, supports, prepare, run, release};
static const lw_tactic linear = {"linear_onednn", LW_OP_LINEAR, TAKES, supports, prepare, run, release};
const lw_tactic *const lw_cpu_onednn_tactics[] = {&conv2d, &linear, NULL};
