/* SPDX-License-Identifier: MIT
 * Recording: views, buffers and ops of a program. */
#include "ops/ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct lw_stats_note {
    struct lw_stats_note *next;
    lw_view of, stats;
} lw_stats_note;

const char *lw_op_name(lw_op_kind kind) {
    static const char *const names[] = {
#define X(kind, name) #name,
        LW_OPS(X)
#undef X
    };
    return names[kind];
}

/* ---- views */

bool lw_view_dense(const lw_view *v) {
    return (v->w == 1 || v->sw == v->c) && (v->h == 1 || v->sh == (int64_t)v->w * v->c) &&
           (v->n == 1 || v->sn == (int64_t)v->h * v->w * v->c) &&
           (v->g == 1 || v->sg == (int64_t)v->n * v->h * v->w * v->c);
}

lw_view lw_view_channels(lw_view v, int32_t first, int32_t count) {
    v.off += (int64_t)first * (int64_t)lw_dtype_bytes(v.dtype);
    v.c = count;
    return v;
}

lw_view lw_view_guidance(lw_view v, int32_t g) {
    if (v.g == 1) v.g = g, v.sg = 0;
    return v;
}

lw_view lw_view_samples(lw_view v, int32_t n) {
    if (v.n == 1) v.n = n, v.sn = 0;
    return v;
}

lw_view lw_view_tokens(lw_view v) {
    v.w *= v.h;
    v.h = 1;
    v.sh = v.sw * v.w;
    return v;
}

lw_view lw_view_picture(lw_view v, int32_t h, int32_t w) {
    v.h = h;
    v.w = w;
    v.sh = v.sw * w;
    return v;
}

lw_prologue lw_plain(lw_view a) {
    return (lw_prologue){
        .a = a,
        .b = LW_NO_VIEW,
        .norm = {.gamma = LW_NO_PARAM, .beta = LW_NO_PARAM, .stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW}};
}

/* ---- programs */

lw_program *lw_program_new(const char *name, lw_params *params, lw_dtype act) {
    lw_arena *arena = lw_arena_new();
    lw_program *p = arena ? lw_alloc(1, sizeof *p) : NULL;
    if (!p) {
        lw_arena_free(arena);
        return NULL;
    }
    *p = (lw_program){.arena = arena, .params = params, .act = act, .name = name};
    return p;
}

void lw_program_free(lw_program *p) {
    if (!p) return;
    lw_arena_free(p->arena);
    lw_free(p->ops);
    lw_free(p->buffers);
    lw_free(p);
}

void lw_program_fail(lw_program *p, lw_status code, const char *format, ...) {
    if (p->status != LW_OK) return;
    va_list args;
    va_start(args, format);
    char text[sizeof p->error.message];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    p->status = lw_fail(&p->error, code, "%s", text);
}

void lw_program_no_memory(lw_program *p) { lw_program_fail(p, LW_ENOMEM, "no memory to record program %s", p->name); }

static int32_t add_buffer(lw_program *p, lw_buffer buffer) {
    if (p->status != LW_OK) return 0;
    if (p->n_buffers == p->cap_buffers) {
        int32_t cap = p->cap_buffers ? p->cap_buffers * 2 : 64;
        lw_buffer *grown = lw_realloc(p->buffers, (size_t)cap, sizeof *grown);
        if (!grown) return lw_program_no_memory(p), 0;
        p->buffers = grown;
        p->cap_buffers = cap;
    }
    p->buffers[p->n_buffers] = buffer;
    return p->n_buffers++;
}

static lw_view make_view(lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w, int32_t c) {
    int64_t sw = c, size = (int64_t)lw_dtype_bytes(dtype);
    if (dtype == LW_F32 || dtype == LW_F16 || dtype == LW_BF16)
        sw = (int64_t)lw_round_up((size_t)(c * size), 16) / size;
    return (lw_view){.dtype = dtype,
                     .g = g,
                     .n = n,
                     .h = h,
                     .w = w,
                     .c = c,
                     .sw = sw,
                     .sh = sw * w,
                     .sn = sw * w * h,
                     .sg = sw * w * h * n};
}

static int64_t view_bytes(const lw_view *v) { return v->sg * v->g * (int64_t)lw_dtype_bytes(v->dtype); }

lw_view lw_rec_temp(lw_program *p, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w, int32_t c) {
    lw_view v = make_view(dtype, g, n, h, w, c);
    v.buf = add_buffer(p, (lw_buffer){.kind = LW_BUFFER_TEMP, .bytes = view_bytes(&v)});
    return v;
}

lw_view lw_rec_extern(lw_program *p, const char *name, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w,
                      int32_t c) {
    lw_view v = make_view(dtype, g, n, h, w, c);
    for (int32_t i = 0; i < p->n_buffers; i++) {
        lw_buffer *b = &p->buffers[i];
        if (b->kind != LW_BUFFER_EXTERN || strcmp(b->name, name)) continue;
        if (b->bytes != view_bytes(&v))
            lw_program_fail(p, LW_EINTERNAL, "program %s: buffer %s has %lld bytes, another use wants %lld", p->name,
                            name, (long long)b->bytes, (long long)view_bytes(&v));
        v.buf = i;
        return v;
    }
    char *copy = lw_arena_strdup(p->arena, name);
    if (!copy) lw_program_no_memory(p);
    v.buf = add_buffer(p, (lw_buffer){.kind = LW_BUFFER_EXTERN, .bytes = view_bytes(&v), .name = copy});
    return v;
}

/* A scratch record, so that callers need no check after a failure. */
static lw_args *scrap(lw_program *p) {
    lw_args *m = lw_arena_alloc(p->arena, 1, sizeof *m);
    if (m) return m;
    lw_program_no_memory(p);
    return NULL;
}

static void clear_view(void *user, lw_view *v, bool written) {
    (void)user, (void)written;
    *v = LW_NO_VIEW;
}

lw_args *lw_rec_op(lw_program *p, lw_op_kind kind, const char *name) {
    lw_args *m = scrap(p);
    if (!m) return NULL;
    lw_op_views(kind, m, clear_view, NULL); /* zero is a buffer: none is -1 */
    if (kind == LW_OP_CONV2D || kind == LW_OP_LINEAR) {
        m->product.w = m->product.bias = m->product.shortcut_w = m->product.shortcut_bias = LW_NO_PARAM;
        m->product.kh = m->product.kw = m->product.stride = 1;
    }
    if (p->status != LW_OK) return m;
    if (p->n_ops == p->cap_ops) {
        int32_t cap = p->cap_ops ? p->cap_ops * 2 : 64;
        lw_op *grown = lw_realloc(p->ops, (size_t)cap, sizeof *grown);
        if (!grown) return lw_program_no_memory(p), m;
        p->ops = grown;
        p->cap_ops = cap;
    }
    char *copy = lw_arena_strdup(p->arena, name);
    if (!copy) return lw_program_no_memory(p), m;
    p->ops[p->n_ops++] = (lw_op){.kind = kind, .n_member = 1, .name = copy, .m = m};
    return m;
}

void lw_rec_range(lw_program *p, lw_range_kind kind, int32_t first) {
    if (p->n_ranges < LW_MAX_RANGES) p->ranges[p->n_ranges++] = (lw_range){kind, first, p->n_ops};
}

static bool same_values(const lw_view *a, const lw_view *b) {
    return a->buf == b->buf && a->off == b->off && a->g == b->g && a->n == b->n && a->h == b->h && a->w == b->w &&
           a->c == b->c && a->sg == b->sg && a->sn == b->sn && a->sh == b->sh && a->sw == b->sw;
}

/* Rows of one part: enough parts for many cores, few enough that readers merge them quickly. Fixed by the shape alone.
 */
int32_t lw_rows_per_part(int64_t rows) {
    return rows <= 64 ? (int32_t)rows : rows <= 4096 ? 64 : (int32_t)((rows + 63) / 64);
}

lw_view lw_rec_stats(lw_program *p, lw_view v) {
    lw_view once = v; /* shared values have shared statistics */
    if (once.sg == 0) once.g = 1;
    if (once.sn == 0) once.n = 1;
    lw_stats_note *note = p->stats;
    while (note && !same_values(&note->of, &once)) note = note->next;
    if (!note) {
        int64_t rows = (int64_t)v.h * v.w;
        int32_t each = lw_rows_per_part(rows);
        lw_view stats = lw_rec_temp(p, LW_F32, once.g, once.n, 1, (int32_t)((rows + each - 1) / each), 2 * v.c);
        lw_args *m = lw_rec_op(p, LW_OP_NORM_STATS, "stats");
        note = lw_arena_alloc(p->arena, 1, sizeof *note);
        if (!m || !note) return lw_program_no_memory(p), LW_NO_VIEW;
        m->norm_stats = (lw_norm_stats_args){.in = once, .out = stats, .rows_per_part = each};
        *note = (lw_stats_note){.next = p->stats, .of = once, .stats = stats};
        p->stats = note;
    }
    return lw_view_samples(lw_view_guidance(note->stats, v.g), v.n);
}

/* ---- what an op touches */

static void prologue_views(lw_prologue *in, lw_view_fn fn, void *user) {
    fn(user, &in->a, false);
    fn(user, &in->b, false);
    fn(user, &in->norm.stats_a, false);
    fn(user, &in->norm.stats_b, false);
}

static void epilogue_views(lw_epilogue *epi, lw_view_fn fn, void *user) {
    fn(user, &epi->addend, false);
    fn(user, &epi->scale, false);
    fn(user, &epi->residual, false);
}

static void advance_views(lw_advance_args *a, lw_view_fn fn, void *user) {
    fn(user, &a->eps, false);
    fn(user, &a->rows, false);
    fn(user, &a->noise, false);
    fn(user, &a->addend_table, false);
    fn(user, &a->scale_table, false);
    fn(user, &a->x, true);
    fn(user, &a->h1, true);
    fn(user, &a->h2, true);
    fn(user, &a->y, true);
    fn(user, &a->net_in, true);
    fn(user, &a->addends, true);
    fn(user, &a->scales, true);
    fn(user, &a->status, true);
}

void lw_op_views(lw_op_kind kind, lw_args *m, lw_view_fn fn, void *user) {
    switch (kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR:
        prologue_views(&m->product.in, fn, user);
        epilogue_views(&m->product.epi, fn, user);
        fn(user, &m->product.shortcut_a, false);
        fn(user, &m->product.shortcut_b, false);
        fn(user, &m->product.out, true);
        fn(user, &m->product.row_stats, true);
        break;
    case LW_OP_ATTENTION:
        fn(user, &m->attention.q, false);
        fn(user, &m->attention.k, false);
        fn(user, &m->attention.v, false);
        fn(user, &m->attention.out, true);
        break;
    case LW_OP_NORM_STATS:
        fn(user, &m->norm_stats.in, false);
        fn(user, &m->norm_stats.out, true);
        break;
    case LW_OP_APPLY:
        prologue_views(&m->apply.in, fn, user);
        fn(user, &m->apply.out, true);
        break;
    case LW_OP_COMBINE:
        fn(user, &m->combine.in, false);
        epilogue_views(&m->combine.epi, fn, user);
        fn(user, &m->combine.out, true);
        break;
    case LW_OP_EMBED_TOKENS:
        fn(user, &m->embed_tokens.ids, false);
        fn(user, &m->embed_tokens.out, true);
        break;
    case LW_OP_EMBED_TIME:
        fn(user, &m->embed_time.t, false);
        fn(user, &m->embed_time.out, true);
        break;
    case LW_OP_PACK_U8:
    case LW_OP_UNPACK_U8:
        fn(user, &m->pack.in, false);
        fn(user, &m->pack.out, true);
        fn(user, &m->pack.status, true);
        break;
    case LW_OP_ADVANCE: advance_views(&m->advance, fn, user); break;
    case LW_N_OPS: break;
    }
}
