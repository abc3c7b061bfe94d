/* SPDX-License-Identifier: MIT
 * Building cases: views of new buffers, the text that tells one shape from another, the list without duplicates. */
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void clear_view(void *user, lw_view *v, bool written) {
    (void)user, (void)written;
    *v = LW_NO_VIEW;
}

static void clear_param(void *user, lw_param *p, char role) {
    (void)user, (void)role;
    *p = LW_NO_PARAM;
}

void ck_op_params(lw_op_kind kind, lw_args *m, ck_param_fn fn, void *user) {
    switch (kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR:
        fn(user, &m->product.in.norm.gamma, 'g');
        fn(user, &m->product.in.norm.beta, 'b');
        fn(user, &m->product.w, 'w');
        fn(user, &m->product.bias, 'b');
        fn(user, &m->product.shortcut_w, 'w');
        fn(user, &m->product.shortcut_bias, 'b');
        break;
    case LW_OP_APPLY:
        fn(user, &m->apply.in.norm.gamma, 'g');
        fn(user, &m->apply.in.norm.beta, 'b');
        break;
    case LW_OP_EMBED_TOKENS:
        fn(user, &m->embed_tokens.tokens, 't');
        fn(user, &m->embed_tokens.positions, 't');
        break;
    default: break;
    }
}

void ck_begin(ck_case *c, lw_op_kind kind, lw_dtype dtype) {
    *c = (ck_case){.kind = kind, .dtype = dtype};
    lw_op_views(kind, &c->m, clear_view, NULL);
    ck_op_params(kind, &c->m, clear_param, NULL);
    if (kind == LW_OP_CONV2D || kind == LW_OP_LINEAR) c->m.product.kh = c->m.product.kw = c->m.product.stride = 1;
}

lw_view ck_view(ck_case *c, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w, int32_t ch, int32_t how) {
    int64_t size = (int64_t)lw_dtype_bytes(dtype), before = how & CK_SLICE ? 8 : 0, after = how & CK_SLICE ? 16 : 0;
    bool padded = how & CK_PADDED, words = dtype == LW_F32 || dtype == LW_F16 || dtype == LW_BF16;
    lw_view v = {.buf = c->n_buffers, .dtype = dtype, .g = g, .n = n, .h = h, .w = w, .c = ch};
    v.sw = words ? (int64_t)lw_round_up((size_t)((ch + before + after) * size), 16) / size : ch;
    if (padded) v.sw += 16 / size;
    v.sh = v.sw * w + (padded ? 32 / size : 0);
    v.sn = v.sh * h + (padded ? 64 / size : 0);
    v.sg = v.sn * n;
    v.off = before * size;
    if (how & CK_SHARED_N) v.sn = 0, v.sg = v.sh * h;
    int64_t end = (how & CK_SHARED_G ? 0 : (g - 1) * v.sg) + (n - 1) * v.sn + (h - 1) * v.sh + w * v.sw;
    if (how & CK_SHARED_G) v.sg = 0;
    c->bytes[c->n_buffers++] = (int64_t)lw_round_up((size_t)(end * size), 16);
    return v;
}

lw_param ck_param_of(ck_case *c, char role, int64_t o, int64_t i, int64_t kh, int64_t kw) {
    c->params[c->n_params] = (ck_param){role, {o, i, kh, kw}};
    return (lw_param){c->n_params++};
}

lw_view ck_residual(ck_case *c, int32_t kind, const lw_view *out) {
    static const int32_t how[] = {0, 0, CK_SHARED_G, CK_SLICE, CK_SHARED_G | CK_SHARED_N};
    return kind ? ck_view(c, c->dtype, out->g, out->n, out->h, out->w, out->c, how[kind]) : LW_NO_VIEW;
}

/* ---- prologues */

lw_prologue ck_prologue(ck_case *c, const ck_in *in) {
    lw_prologue p = {.a = ck_view(c, c->dtype, in->g, in->n, in->h, in->w, in->c, in->how),
                     .b = LW_NO_VIEW,
                     .norm = {.gamma = LW_NO_PARAM, .beta = LW_NO_PARAM, .stats_a = LW_NO_VIEW, .stats_b = LW_NO_VIEW},
                     .act = in->act,
                     .up2 = in->up2};
    if (in->c2) p.b = ck_view(c, c->dtype, in->g, in->n, in->h, in->w, in->c2, in->how2);
    if (in->norm == LW_NORM_NONE) return p;
    p.norm.kind = in->norm;
    p.norm.eps = in->norm == LW_NORM_GROUP ? 1e-6f : 1e-5f;
    p.norm.gamma = ck_param_of(c, 'g', in->c + in->c2, 1, 1, 1);
    p.norm.beta = ck_param_of(c, 'b', in->c + in->c2, 1, 1, 1);
    if (in->norm == LW_NORM_LAYER) {
        if (in->row_stats) p.norm.stats_a = ck_view(c, LW_F32, in->g, in->n, 1, 1, lw_row_stats_channels(&p.a), 0);
        return p;
    }
    int32_t rows = in->h * in->w, each = lw_rows_per_part(rows), parts = (rows + each - 1) / each;
    int32_t share = CK_SHARED_G | CK_SHARED_N;
    p.norm.groups = in->groups;
    p.norm.rows_per_part = each;
    p.norm.stats_a = ck_view(c, LW_F32, in->g, in->n, 1, parts, 2 * in->c, in->how & share);
    if (in->c2) p.norm.stats_b = ck_view(c, LW_F32, in->g, in->n, 1, parts, 2 * in->c2, in->how2 & share);
    return p;
}

ck_in ck_chance_in(ck_rng *rng) {
    static const int32_t sides[] = {1, 2, 3, 5, 7, 8, 11, 13, 16, 17}, channels[] = {8, 16, 24, 40, 64, 72, 136};
    static const lw_act acts[] = {LW_ACT_NONE, LW_ACT_NONE, LW_ACT_SILU, LW_ACT_GELU, LW_ACT_QUICK_GELU};
    ck_in in = {.g = 1 + ck_below(rng, 2),
                .n = 1 + ck_below(rng, 2),
                .h = sides[ck_below(rng, 10)],
                .w = sides[ck_below(rng, 10)],
                .c = channels[ck_below(rng, 7)],
                .act = acts[ck_below(rng, 5)]};
    if (ck_below(rng, 3) == 0) in.c2 = channels[ck_below(rng, 7)];
    in.norm = (lw_norm_kind)ck_below(rng, 3);
    if (in.norm == LW_NORM_LAYER) in.c2 = 0;
    in.groups = 1 << ck_below(rng, 4); /* 1, 2, 4, 8: a group may hold channels of both */
    in.up2 = ck_below(rng, 5) == 0;
    in.how = ck_below(rng, 16) & ~(ck_below(rng, 2) ? 0 : 15);
    in.how2 = ck_below(rng, 16) & ~(ck_below(rng, 2) ? 0 : 15);
    return in;
}

/* ---- the text of a shape */

typedef struct text {
    char *at;
    size_t left;
} text;

static void put(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->at, t->left, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : (size_t)n < t->left ? (size_t)n : t->left - 1;
    t->at += used;
    t->left -= used;
}

/* g: shared in g, n: shared in n, s: pixels are a slice, p: rows or pictures do not touch */
static void put_how(text *t, const lw_view *v) {
    char how[8] = "";
    size_t n = 0;
    if (v->g > 1 && v->sg == 0) how[n++] = 'g';
    if (v->n > 1 && v->sn == 0) how[n++] = 'n';
    if (v->sw != v->c) how[n++] = 's';
    if (v->h > 1 && v->sh != v->w * v->sw) how[n++] = 'p';
    if (n) put(t, "~%s", how);
}

static const char *act_name(lw_act act) {
    static const char *const names[] = {"", "silu", "gelu", "quickgelu", "geglu"};
    return names[act];
}

static void put_prologue(text *t, const lw_prologue *in) {
    put(t, "%dx%dx%dx%d c%d", in->a.g, in->a.n, in->a.h, in->a.w, in->a.c);
    put_how(t, &in->a);
    if (lw_view_is(in->b)) put(t, "+%d", in->b.c), put_how(t, &in->b);
    if (in->norm.kind == LW_NORM_GROUP) put(t, " group%d", in->norm.groups);
    if (in->norm.kind == LW_NORM_LAYER) put(t, lw_view_is(in->norm.stats_a) ? " layer with stats" : " layer");
    if (in->act) put(t, " %s", act_name(in->act));
    if (in->up2) put(t, " up2");
}

static void put_epilogue(text *t, const lw_epilogue *e) {
    if (lw_view_is(e->addend)) put(t, " addend"), put_how(t, &e->addend);
    if (e->act) put(t, " %s", act_name(e->act));
    if (lw_view_is(e->scale)) put(t, " scale"), put_how(t, &e->scale);
    if (lw_view_is(e->residual)) put(t, " residual"), put_how(t, &e->residual);
}

static void put_product(text *t, const ck_case *c) {
    const lw_product_args *p = &c->m.product;
    put_prologue(t, &p->in);
    put(t, " > %d", p->out.c);
    if (c->kind == LW_OP_CONV2D) put(t, " k%d s%d", p->kh, p->stride);
    if (!lw_param_is(p->bias)) put(t, " nobias");
    put_epilogue(t, &p->epi);
    if (lw_view_is(p->shortcut_a)) put(t, " shortcut%d", p->shortcut_a.c), put_how(t, &p->shortcut_a);
    if (lw_view_is(p->shortcut_b)) put(t, "+%d", p->shortcut_b.c), put_how(t, &p->shortcut_b);
    put(t, " out"), put_how(t, &p->out);
    if (lw_view_is(p->row_stats)) put(t, " row stats");
}

void ck_describe(ck_case *c) {
    text t = {c->shape, sizeof c->shape};
    const lw_args *m = &c->m;
    switch (c->kind) {
    case LW_OP_CONV2D:
    case LW_OP_LINEAR: put_product(&t, c); break;
    case LW_OP_ATTENTION:
        put(&t, "%dx%d q%d k%d heads%d d%d", m->attention.out.g, m->attention.out.n, m->attention.q.w, m->attention.k.w,
            m->attention.heads, m->attention.q.c / m->attention.heads);
        if (m->attention.causal) put(&t, " causal");
        put(&t, " q"), put_how(&t, &m->attention.q);
        put(&t, " k"), put_how(&t, &m->attention.k);
        put(&t, " v"), put_how(&t, &m->attention.v);
        put(&t, " out"), put_how(&t, &m->attention.out);
        break;
    case LW_OP_NORM_STATS:
        put(&t, "%dx%dx%dx%d c%d parts of %d", m->norm_stats.in.g, m->norm_stats.in.n, m->norm_stats.in.h,
            m->norm_stats.in.w, m->norm_stats.in.c, m->norm_stats.rows_per_part);
        put_how(&t, &m->norm_stats.in);
        break;
    case LW_OP_APPLY:
        put_prologue(&t, &m->apply.in);
        put(&t, " out"), put_how(&t, &m->apply.out);
        break;
    case LW_OP_COMBINE:
        put(&t, "%dx%dx%dx%d c%d", m->combine.out.g, m->combine.out.n, m->combine.out.h, m->combine.out.w,
            m->combine.out.c);
        put_how(&t, &m->combine.in);
        put_epilogue(&t, &m->combine.epi);
        put(&t, " out"), put_how(&t, &m->combine.out);
        break;
    case LW_OP_EMBED_TOKENS:
        put(&t, "%dx%d len%d c%d of %lld", m->embed_tokens.out.g, m->embed_tokens.out.n, m->embed_tokens.out.w,
            m->embed_tokens.out.c, (long long)c->params[m->embed_tokens.tokens.id].dims[0]);
        put_how(&t, &m->embed_tokens.out);
        break;
    case LW_OP_EMBED_TIME: put(&t, "rows%d c%d", m->embed_time.out.w, m->embed_time.out.c); break;
    case LW_OP_PACK_U8:
    case LW_OP_UNPACK_U8:
        put(&t, "%dx%dx%d c%d > c%d", m->pack.out.n, m->pack.out.h, m->pack.out.w, m->pack.in.c, m->pack.out.c);
        put_how(&t, &m->pack.in);
        break;
    case LW_OP_ADVANCE:
        put(&t, "%dx%dx%d eps %s%d rows%d noise%d addends%d scales%d", m->advance.x.n, m->advance.x.h, m->advance.x.w,
            lw_view_is(m->advance.eps) ? "g" : "none", lw_view_is(m->advance.eps) ? m->advance.eps.g : 0,
            m->advance.rows.w, lw_view_is(m->advance.noise) ? m->advance.noise.g : 0, m->advance.addends.c,
            lw_view_is(m->advance.scales) ? m->advance.scales.c : 0);
        break;
    case LW_N_OPS: break;
    }
}

/* ---- the list */

/* What the cost model counts, from the case's own parameters. */
static double product_flop(const ck_case *c) {
    const lw_product_args *p = &c->m.product;
    double rows = (double)p->out.g * p->out.n * p->out.h * p->out.w;
    const int64_t *w = c->params[p->w.id].dims;
    double flop = 2 * rows * (double)(w[0] * w[1] * w[2] * w[3]);
    if (!lw_param_is(p->shortcut_w)) return flop;
    w = c->params[p->shortcut_w.id].dims;
    return flop + 2 * rows * (double)(w[0] * w[1]);
}

static double case_flop(const ck_case *c) {
    const lw_attention_args *a = &c->m.attention;
    if (c->kind == LW_OP_CONV2D || c->kind == LW_OP_LINEAR) return product_flop(c);
    if (c->kind == LW_OP_ATTENTION) return 4.0 * a->out.g * a->out.n * a->q.w * a->k.w * a->q.c;
    double bytes = 0;
    for (int32_t i = 0; i < c->n_buffers; i++) bytes += (double)c->bytes[i];
    return bytes; /* about one operation a byte */
}

void ck_add(ck_list *list, ck_case *c, uint32_t regimes, const char *from) {
    c->regimes = regimes;
    c->from = from;
    ck_describe(c);
    for (int32_t i = 0; i < list->n; i++)
        if (list->at[i].kind == c->kind && list->at[i].dtype == c->dtype && !strcmp(list->at[i].shape, c->shape)) {
            list->at[i].regimes |= regimes;
            list->duplicates++;
            return;
        }
    int64_t values = 0;
    for (int32_t i = 0; i < c->n_params; i++) {
        const int64_t *d = c->params[i].dims;
        values += d[0] * d[1] * d[2] * d[3];
    }
    c->flop = case_flop(c);
    if (c->flop > list->flop_cap || values > list->param_cap) {
        list->too_large++;
        return;
    }
    if (list->n == list->cap) {
        int32_t cap = list->cap ? list->cap * 2 : 256;
        ck_case *grown = realloc(list->at, (size_t)cap * sizeof *grown);
        if (!grown) {
            list->broken++;
            return;
        }
        list->at = grown;
        list->cap = cap;
    }
    list->at[list->n++] = *c;
}
