/* SPDX-License-Identifier: MIT */
#include "ops/pass.h"

#include <string.h>

#include "ops/tune.h"

/* ---- buffers */

void lw_pass_keep_inside(lw_program *p, const char *name) {
    for (int32_t i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].kind == LW_BUFFER_EXTERN && !strcmp(p->buffers[i].name, name))
            p->buffers[i].kind = LW_BUFFER_TEMP;
}

void lw_pass_give_out(lw_program *p, lw_view v, const char *name) {
    if (p->status != LW_OK) return;
    char *copy = lw_arena_strdup(p->arena, name);
    if (!copy) lw_program_no_memory(p);
    p->buffers[v.buf].kind = LW_BUFFER_EXTERN;
    p->buffers[v.buf].name = copy;
}

/* ---- unshare */

typedef struct unsharing {
    lw_program *p;
    int64_t *stride;                    /* by buffer: elements of one pass, 0: shared as before */
    bool *once;                         /* by buffer: an op that stays shared wrote into it */
    bool reads_apart, writes_one, temp; /* what was seen of an op */
} unsharing;

static void look(void *user, lw_view *v, bool written) {
    unsharing *u = user;
    if (!lw_view_is(*v)) return;
    if (!written) u->reads_apart |= u->stride[v->buf] != 0;
    else if (v->g == 1) u->writes_one = true, u->temp &= u->p->buffers[v->buf].kind == LW_BUFFER_TEMP;
}

static void grow(void *user, lw_view *v, bool written) {
    unsharing *u = user;
    if (!written || !lw_view_is(*v) || v->g != 1 || u->stride[v->buf]) return;
    lw_buffer *b = &u->p->buffers[v->buf];
    u->stride[v->buf] = b->bytes / (int64_t)lw_dtype_bytes(v->dtype);
    b->bytes *= 2;
}

/* A buffer is of one kind: readers of a slice could not tell. */
static void check(void *user, lw_view *v, bool written) {
    unsharing *u = user;
    if (written && lw_view_is(*v) && u->once[v->buf] && u->stride[v->buf])
        lw_program_fail(u->p, LW_EINTERNAL, "program %s: a buffer is written for one guidance pass and for both",
                        u->p->name);
}

static void note_once(void *user, lw_view *v, bool written) {
    unsharing *u = user;
    if (written && lw_view_is(*v) && v->g == 1) u->once[v->buf] = true;
}

static void widen(void *user, lw_view *v, bool written) {
    const unsharing *u = user;
    (void)written;
    if (!lw_view_is(*v)) return;
    if (v->g == 1) v->g = 2, v->sg = 0;
    if (u->stride[v->buf]) v->sg = u->stride[v->buf];
}

static void follow(void *user, lw_view *v, bool written) {
    const unsharing *u = user;
    (void)written;
    if (lw_view_is(*v) && v->g == 2 && u->stride[v->buf]) v->sg = u->stride[v->buf];
}

/* The others' outputs are the same for both passes in every network. */
static bool has_guidance(lw_op_kind kind) {
    return kind == LW_OP_CONV2D || kind == LW_OP_LINEAR || kind == LW_OP_ATTENTION || kind == LW_OP_NORM_STATS ||
           kind == LW_OP_APPLY || kind == LW_OP_COMBINE;
}

void lw_pass_unshare(lw_program *p, bool (*shared)(const char *op)) {
    if (p->status != LW_OK) return;
    size_t n = (size_t)p->n_buffers + 1;
    unsharing u = {.p = p, .stride = lw_alloc(n, sizeof *u.stride), .once = lw_alloc(n, sizeof *u.once)};
    if (!u.stride || !u.once) lw_program_no_memory(p);
    for (int32_t i = 0; i < p->n_ops && p->status == LW_OK; i++) {
        lw_op *op = &p->ops[i];
        u.reads_apart = u.writes_one = false;
        u.temp = true;
        for (int32_t k = 0; k < op->n_member; k++) lw_op_views(op->kind, &op->m[k], look, &u);
        bool apart = has_guidance(op->kind) && u.writes_one && u.temp && (u.reads_apart || !shared(op->name));
        for (int32_t k = 0; k < op->n_member; k++) {
            lw_op_views(op->kind, &op->m[k], apart ? grow : note_once, &u);
            lw_op_views(op->kind, &op->m[k], check, &u);
            lw_op_views(op->kind, &op->m[k], apart ? widen : follow, &u);
        }
    }
    lw_free(u.stride);
    lw_free(u.once);
}

/* The ranges were of the ops before. */
static void replace_ops(lw_program *p, lw_op *ops, int32_t n) {
    lw_free(p->ops);
    p->ops = ops;
    p->n_ops = p->cap_ops = n;
    p->n_ranges = 0;
}

/* ---- apart */

static void find_both(void *user, lw_view *v, bool written) {
    if (written && lw_view_is(*v) && v->g == 2) *(bool *)user = true;
}

static void take_pass(void *user, lw_view *v, bool written) {
    (void)written;
    if (!lw_view_is(*v) || v->g != 2) return;
    v->off += *(const int32_t *)user * v->sg * (int64_t)lw_dtype_bytes(v->dtype);
    v->g = 1;
}

static bool of_both(const lw_op *op) {
    bool both = false;
    if (op->kind != LW_OP_ADVANCE)
        for (int32_t k = 0; k < op->n_member; k++) lw_op_views(op->kind, &op->m[k], find_both, &both);
    return both;
}

static lw_op of_pass(lw_program *p, const lw_op *op, int32_t pass) {
    lw_op one = *op;
    one.m = lw_arena_alloc(p->arena, (size_t)op->n_member, sizeof *one.m);
    if (!one.m) return lw_program_no_memory(p), *op;
    memcpy(one.m, op->m, (size_t)op->n_member * sizeof *one.m);
    for (int32_t k = 0; k < op->n_member; k++) lw_op_views(op->kind, &one.m[k], take_pass, &pass);
    return one;
}

void lw_pass_apart(lw_program *p) {
    if (p->status != LW_OK) return;
    lw_op *ops = lw_alloc(2 * (size_t)p->n_ops + 1, sizeof *ops);
    if (!ops) {
        lw_program_no_memory(p);
        return;
    }
    int32_t n = 0, last = p->n_ops;
    while (last > 0 && p->ops[last - 1].kind == LW_OP_ADVANCE) last--;
    for (int32_t i = 0; i < last; i++) ops[n++] = of_both(&p->ops[i]) ? of_pass(p, &p->ops[i], 0) : p->ops[i];
    for (int32_t i = 0; i < last; i++)
        if (of_both(&p->ops[i])) ops[n++] = of_pass(p, &p->ops[i], 1);
    for (int32_t i = last; i < p->n_ops; i++) ops[n++] = p->ops[i];
    replace_ops(p, ops, n);
}

/* ---- zip */

/* What a signature leaves out because no tactic's time hangs on it. */
static bool same_numbers(const lw_op *a, const lw_op *b) {
    const lw_args *x = a->m, *y = b->m;
    switch (a->kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR: return x->product.in.norm.eps == y->product.in.norm.eps;
    case LW_OP_APPLY: return x->apply.in.norm.eps == y->apply.in.norm.eps;
    case LW_OP_ATTENTION: return x->attention.scale == y->attention.scale;
    default: return true;
    }
}

bool lw_ops_alike(const lw_params *params, const lw_op *a, const lw_op *b) {
    return a->kind == b->kind && lw_op_signature(params, a) == lw_op_signature(params, b) && same_numbers(a, b);
}

static lw_op join(lw_program *p, const lw_op *const *ops, int32_t n) {
    lw_op all = *ops[0];
    if (n == 1) return all;
    all.m = lw_arena_alloc(p->arena, (size_t)n, sizeof *all.m);
    if (!all.m) return lw_program_no_memory(p), *ops[0];
    for (int32_t k = 0; k < n; k++) all.m[k] = *ops[k]->m;
    all.n_member = n;
    return all;
}

/* Ops at place `at` of ranges [r, r + n): those like the first of them together, until none is left. */
static int32_t zip_place(lw_program *p, const lw_range *r, int32_t n, int32_t at, lw_op *out) {
    bool done[LW_MAX_RANGES] = {false};
    int32_t n_out = 0;
    for (int32_t i = 0; i < n; i++) {
        if (done[i] || r[i].first + at >= r[i].end) continue;
        const lw_op *together[LW_MAX_MEMBERS];
        int32_t n_together = 0;
        for (int32_t k = i; k < n && n_together < LW_MAX_MEMBERS; k++) {
            if (done[k] || r[k].first + at >= r[k].end) continue;
            const lw_op *op = &p->ops[r[k].first + at];
            if (k > i && (op->n_member != 1 || !lw_ops_alike(p->params, together[0], op))) continue;
            together[n_together++] = op;
            done[k] = true;
            if (op->n_member != 1) break;
        }
        out[n_out++] = join(p, together, n_together);
    }
    return n_out;
}

static int32_t zip_ranges(lw_program *p, const lw_range *r, int32_t n, lw_op *out) {
    int32_t longest = 0, n_out = 0;
    for (int32_t k = 0; k < n; k++)
        if (r[k].end - r[k].first > longest) longest = r[k].end - r[k].first;
    for (int32_t at = 0; at < longest; at++) n_out += zip_place(p, r, n, at, out + n_out);
    return n_out;
}

static int32_t join_range(lw_program *p, const lw_range *r, lw_op *out) {
    int32_t n_out = 0;
    for (int32_t i = r->first; i < r->end;) {
        const lw_op *together[LW_MAX_MEMBERS];
        int32_t n = 0;
        while (i < r->end && n < LW_MAX_MEMBERS && p->ops[i].n_member == 1 &&
               (n == 0 || p->ops[i].kind == together[0]->kind))
            together[n++] = &p->ops[i++];
        if (n == 0) together[n++] = &p->ops[i++];
        out[n_out++] = join(p, together, n);
    }
    return n_out;
}

void lw_pass_zip(lw_program *p) {
    if (p->status != LW_OK || p->n_ranges == 0) return;
    lw_op *ops = lw_alloc((size_t)p->n_ops + 1, sizeof *ops);
    if (!ops) {
        lw_program_no_memory(p);
        return;
    }
    int32_t n = 0, i = 0;
    for (int32_t r = 0; r < p->n_ranges;) {
        const lw_range *range = &p->ranges[r];
        while (i < range->first) ops[n++] = p->ops[i++];
        int32_t adjacent = 1;
        while (range->kind == LW_RANGE_PARALLEL && r + adjacent < p->n_ranges &&
               range[adjacent].kind == LW_RANGE_PARALLEL && range[adjacent].first == range[adjacent - 1].end)
            adjacent++;
        n += range->kind == LW_RANGE_PARALLEL ? zip_ranges(p, range, adjacent, ops + n) : join_range(p, range, ops + n);
        i = range[adjacent - 1].end;
        r += adjacent;
    }
    while (i < p->n_ops) ops[n++] = p->ops[i++];
    replace_ops(p, ops, n);
}

/* ---- row statistics */

static bool same_rows(const lw_view *a, const lw_view *b) {
    return a->buf == b->buf && a->off == b->off && a->g == b->g && a->n == b->n && a->h * a->w == b->h * b->w &&
           a->c == b->c && lw_view_dense(a) && lw_view_dense(b);
}

void lw_pass_row_stats(lw_program *p) {
    for (int32_t i = 1; i < p->n_ops && p->status == LW_OK; i++) {
        const lw_op *first = &p->ops[i - 1], *second = &p->ops[i];
        if ((first->kind != LW_OP_CONV2D && first->kind != LW_OP_LINEAR) || second->kind != LW_OP_LINEAR ||
            first->n_member != 1 || second->n_member != 1)
            continue;
        lw_product_args *made = &first->m->product, *normed = &second->m->product;
        const lw_view *out = &made->out;
        if (normed->in.norm.kind != LW_NORM_LAYER || lw_view_is(normed->in.b) || !same_rows(out, &normed->in.a) ||
            !lw_row_stats_fit(out))
            continue;
        made->row_stats = lw_rec_temp(p, LW_F32, out->g, out->n, 1, 1, lw_row_stats_channels(out));
        normed->in.norm.stats_a = made->row_stats;
    }
}

void lw_pass_fit(lw_program *p, uint32_t takes) {
    if (takes & LW_TAKES_ROW_STATS) lw_pass_row_stats(p);
    if (takes & LW_TAKES_MEMBERS) lw_pass_zip(p);
}
