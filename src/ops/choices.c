/* SPDX-License-Identifier: MIT
 * What an op is (its signature), and the table of what was chosen for it. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "ops/tune.h"

/* ---- signatures */

static uint64_t mix(uint64_t h, int64_t v) {
    for (int i = 0; i < 8; i++) h = (h ^ (uint64_t)(v >> 8 * i & 0xff)) * 0x100000001b3u; /* FNV-1a */
    return h;
}

static void mix_view(void *user, lw_view *v, bool written) {
    uint64_t *h = user;
    *h = mix(*h, lw_view_is(*v) ? 1 + written : 0);
    if (!lw_view_is(*v)) return;
    /* The stride of an axis of one is not looked at by any op. */
    const int64_t all[] = {v->dtype,
                           v->g,
                           v->n,
                           v->h,
                           v->w,
                           v->c,
                           v->g > 1 ? v->sg : -1,
                           v->n > 1 ? v->sn : -1,
                           v->h > 1 ? v->sh : -1,
                           v->w > 1 ? v->sw : -1};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *h = mix(*h, all[i]);
}

static uint64_t mix_param(uint64_t h, const lw_params *params, lw_param p) {
    int64_t dims[4] = {0};
    if (lw_param_is(p)) lw_param_dims(params, p, dims);
    for (int i = 0; i < 4; i++) h = mix(h, dims[i]);
    return h;
}

static uint64_t mix_prologue(uint64_t h, const lw_params *params, const lw_prologue *in) {
    h = mix(mix(mix(mix(h, in->norm.kind), in->norm.groups), in->act), in->up2);
    h = mix(h, in->norm.rows_per_part);
    return mix_param(mix_param(h, params, in->norm.gamma), params, in->norm.beta);
}

static uint64_t mix_product(uint64_t h, const lw_params *params, const lw_product_args *p) {
    const int64_t all[] = {p->kh, p->kw, p->stride, p->pad_top, p->pad_left, p->epi.act};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) h = mix(h, all[i]);
    h = mix_prologue(h, params, &p->in);
    h = mix_param(mix_param(h, params, p->w), params, p->bias);
    return mix_param(mix_param(h, params, p->shortcut_w), params, p->shortcut_bias);
}

uint64_t lw_op_signature(const lw_params *params, const lw_op *op) {
    uint64_t h = mix(mix(0xcbf29ce484222325u, op->kind), op->n_member);
    for (int32_t i = 0; i < op->n_member; i++) {
        lw_args m = op->m[i];
        lw_op_views(op->kind, &m, mix_view, &h);
        switch (op->kind) {
        case LW_OP_CONV2D:
        case LW_OP_LINEAR: h = mix_product(h, params, &m.product); break;
        case LW_OP_ATTENTION: h = mix(mix(h, m.attention.heads), m.attention.causal); break;
        case LW_OP_NORM_STATS: h = mix(h, m.norm_stats.rows_per_part); break;
        case LW_OP_APPLY: h = mix_prologue(h, params, &m.apply.in); break;
        case LW_OP_COMBINE: h = mix(h, m.combine.epi.act); break;
        default: break;
        }
    }
    return h;
}

static const lw_view *main_view(const lw_op *op) {
    switch (op->kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR: return &op->m->product.in.a;
    case LW_OP_ATTENTION: return &op->m->attention.q;
    case LW_OP_NORM_STATS: return &op->m->norm_stats.in;
    case LW_OP_APPLY: return &op->m->apply.in.a;
    case LW_OP_COMBINE: return &op->m->combine.in;
    default: return NULL;
    }
}

void lw_op_describe(const lw_op *op, char text[LW_OP_TEXT]) {
    const lw_view *v = main_view(op);
    int at = snprintf(text, LW_OP_TEXT, "%s", lw_op_name(op->kind));
    if (v) at += snprintf(text + at, LW_OP_TEXT - (size_t)at, " %dx%dx%dx%d", v->g * v->n, v->h, v->w, v->c);
    if (op->kind != LW_OP_CONV2D && op->kind != LW_OP_LINEAR) return;
    const lw_product_args *p = &op->m->product;
    if (lw_view_is(p->in.b)) at += snprintf(text + at, LW_OP_TEXT - (size_t)at, "+%d", p->in.b.c);
    snprintf(text + at, LW_OP_TEXT - (size_t)at, " -> %d, %dx%d%s%s%s%s%s%s", p->out.c, p->kh, p->kw,
             p->stride > 1 ? " /2" : "", p->in.norm.kind != LW_NORM_NONE ? " norm" : "", p->in.up2 ? " up2" : "",
             lw_view_is(p->epi.addend) ? " +addend" : "", lw_view_is(p->epi.residual) ? " +residual" : "",
             lw_view_is(p->shortcut_a) ? " +shortcut" : "");
}

/* ---- the table: some hundreds of entries, looked up while planning only */

struct lw_choices {
    pthread_mutex_t lock;
    lw_choice *all;
    int32_t n, cap;
};

lw_choices *lw_choices_new(void) {
    lw_choices *c = lw_alloc(1, sizeof *c);
    if (c) pthread_mutex_init(&c->lock, NULL);
    return c;
}

void lw_choices_free(lw_choices *c) {
    if (!c) return;
    pthread_mutex_destroy(&c->lock);
    lw_free(c->all);
    lw_free(c);
}

/* Under the lock. */
static int32_t find(const lw_choices *c, uint64_t signature) {
    int32_t i = 0;
    while (i < c->n && c->all[i].signature != signature) i++;
    return i;
}

lw_status lw_choices_put(lw_choices *c, const lw_choice *choice, lw_error *err) {
    lw_status status = LW_OK;
    pthread_mutex_lock(&c->lock);
    int32_t i = find(c, choice->signature);
    if (i == c->cap) {
        int32_t cap = c->cap ? c->cap * 2 : 64;
        lw_choice *grown = lw_realloc(c->all, (size_t)cap, sizeof *grown);
        if (grown) c->all = grown, c->cap = cap;
        else status = lw_fail(err, LW_ENOMEM, "tactics: no memory for %d choices", cap);
    }
    if (status == LW_OK) {
        c->all[i] = *choice;
        if (i == c->n) c->n++;
    }
    pthread_mutex_unlock(&c->lock);
    return status;
}

/* The lock is taken of tables that are only read, too. */
static pthread_mutex_t *lock_of(const lw_choices *c) {
    union {
        const lw_choices *c;
        lw_choices *m;
    } self = {c};
    return &self.m->lock;
}

bool lw_choices_get(const lw_choices *c, uint64_t signature, lw_choice *out) {
    if (!c) return false;
    pthread_mutex_lock(lock_of(c));
    int32_t i = find(c, signature);
    bool found = i < c->n;
    if (found) *out = c->all[i];
    pthread_mutex_unlock(lock_of(c));
    return found;
}

int32_t lw_choices_count(const lw_choices *c) {
    pthread_mutex_lock(lock_of(c));
    int32_t n = c->n;
    pthread_mutex_unlock(lock_of(c));
    return n;
}

bool lw_choices_at(const lw_choices *c, int32_t i, lw_choice *out) {
    pthread_mutex_lock(lock_of(c));
    bool there = i >= 0 && i < c->n;
    if (there) *out = c->all[i];
    pthread_mutex_unlock(lock_of(c));
    return there;
}
