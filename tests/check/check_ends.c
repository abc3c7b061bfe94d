/* SPDX-License-Identifier: MIT
 * Cases of the ops at the ends of the programs: embeddings, bytes in and out, advance. Each is held against its own
 * formula, written out here once more. */
#include "check.h"

#include <math.h>
#include <string.h>

/* ---- embed_tokens: out = tokens[id] + positions[place] */

static void tokens_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const int32_t shapes[][4] = {{1, 1, 1, 8}, {2, 1, 77, 32}, {2, 3, 13, 40}}; /* g, n, length, channels */
    (void)chance;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int32_t *s = shapes[i];
        ck_case c;
        ck_begin(&c, LW_OP_EMBED_TOKENS, dtype);
        lw_embed_tokens_args *m = &c.m.embed_tokens;
        m->ids = ck_view(&c, LW_I32, s[0], s[1], 1, s[2], 1, 0);
        m->out = ck_view(&c, dtype, s[0], s[1], 1, s[2], s[3], i == 2 ? CK_SLICE : 0);
        m->tokens = ck_param_of(&c, 't', 131, s[3], 1, 1);
        m->positions = ck_param_of(&c, 't', s[2], s[3], 1, 1);
        ck_add(list, &c, CK_IN(CK_NORMAL), "list");
    }
}

static void fill_tokens(ck_fill *f) {
    const lw_embed_tokens_args *m = &f->c->m.embed_tokens;
    int32_t *ids = (int32_t *)(void *)ck_at(f->image, m->ids), n = (int32_t)f->c->params[m->tokens.id].dims[0];
    for (int32_t i = 0; i < m->ids.g * m->ids.n * m->ids.w; i++) ids[i] = i < 2 ? (n - 1) * i : ck_below(&f->rng, n);
}

static void truth_tokens(const ck_case *c, const ck_image *in, ck_outputs *out) {
    const lw_embed_tokens_args *m = &c->m.embed_tokens;
    const int32_t *ids = (const int32_t *)(const void *)ck_at(in, m->ids);
    float *tokens = ck_param_values(c, m->tokens.id, in->seed);
    float *positions = ck_param_values(c, m->positions.id, in->seed);
    for (int64_t i = 0; i < out->count[0] && tokens && positions; i++) {
        int64_t row = i / m->out.c, ch = i % m->out.c;
        out->value[0][i] = (double)tokens[ids[row] * m->out.c + ch] + (double)positions[row % m->out.w * m->out.c + ch];
    }
    free(tokens);
    free(positions);
}

/* ---- embed_time: cos, then sin, of t * 10000^(-i / half) */

static void time_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const int32_t shapes[][2] = {{1, 8}, {20, 320}, {1000, 32}};
    (void)chance;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        ck_case c;
        ck_begin(&c, LW_OP_EMBED_TIME, dtype);
        c.m.embed_time.t = ck_view(&c, LW_F32, 1, 1, 1, shapes[i][0], 1, 0);
        c.m.embed_time.out = ck_view(&c, dtype, 1, 1, 1, shapes[i][0], shapes[i][1], 0);
        ck_add(list, &c, CK_IN(CK_NORMAL), "list");
    }
}

static void fill_time(ck_fill *f) {
    const lw_view *t = &f->c->m.embed_time.t;
    float *at = (float *)(void *)ck_at(f->image, *t);
    for (int32_t i = 0; i < t->w; i++) /* whole steps, and Karras's between them */
        at[i * t->sw] = i % 3 ? (float)ck_below(&f->rng, 1000) : (float)(499.5 * (ck_uniform(&f->rng) + 1));
}

static void truth_time(const ck_case *c, const ck_image *in, ck_outputs *out) {
    const lw_embed_time_args *m = &c->m.embed_time;
    const float *t = (const float *)(const void *)ck_at(in, m->t);
    int32_t half = m->out.c / 2;
    for (int32_t row = 0; row < m->out.w; row++)
        for (int32_t i = 0; i < half; i++) {
            double angle = (double)t[row * m->t.sw] / pow(10000, (double)i / half);
            out->value[0][row * m->out.c + i] = cos(angle);
            out->value[0][row * m->out.c + half + i] = sin(angle);
        }
}

/* ---- pack_u8, unpack_u8 */

static void add_pack(ck_list *list, lw_op_kind kind, lw_dtype dtype, const int32_t s[4], bool status,
                     uint32_t regimes) {
    ck_case c;
    bool pack = kind == LW_OP_PACK_U8;
    ck_begin(&c, kind, dtype);
    c.m.pack.in = ck_view(&c, pack ? dtype : LW_U8, 1, s[0], s[1], s[2], pack ? s[3] : 3, 0);
    c.m.pack.out = ck_view(&c, pack ? LW_U8 : dtype, 1, s[0], s[1], s[2], pack ? 3 : s[3], 0);
    if (status) c.m.pack.status = ck_view(&c, LW_I32, 1, 1, 1, 1, 4, 0);
    ck_add(list, &c, regimes, "list");
}

static const int32_t pictures[][4] = {{1, 1, 1, 8}, {2, 7, 13, 8}, {1, 64, 40, 8}};

static void pack_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    (void)chance;
    for (size_t i = 0; i < 3; i++)
        add_pack(list, LW_OP_PACK_U8, dtype, pictures[i], i != 1,
                 CK_IN(CK_NORMAL) | CK_IN(CK_UNIFORM) | CK_IN(CK_LARGE) | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN));
}

static void unpack_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    (void)chance;
    for (size_t i = 0; i < 3; i++) add_pack(list, LW_OP_UNPACK_U8, dtype, pictures[i], false, CK_IN(CK_NORMAL));
}

static void fill_pack(ck_fill *f) {
    const lw_pack_args *m = &f->c->m.pack;
    ck_fill_view(f, &m->in, f->regime);
    if (lw_view_is(m->status)) memset(ck_at(f->image, m->status), 0, 16);
    if (f->c->kind != LW_OP_UNPACK_U8) return;
    uint8_t *at = (uint8_t *)ck_at(f->image, m->in);
    for (int64_t i = 0; i < f->image->bytes[m->in.buf]; i++) at[i] = (uint8_t)(i < 256 ? i : ck_below(&f->rng, 256));
}

static void truth_pack(const ck_case *c, const ck_image *in, ck_outputs *out) {
    const lw_pack_args *m = &c->m.pack;
    const char *base = ck_at(in, m->in);
    bool pack = c->kind == LW_OP_PACK_U8;
    for (int64_t i = 0; i < out->count[0]; i++) {
        int64_t row = i / m->out.c, ch = i % m->out.c;
        double v = ch < m->in.c ? ck_load(base, m->in.dtype, row * m->in.sw + ch) : 0;
        if (pack) { /* the reference program computes in float: so does the truth */
            volatile float f = (float)v * 127.5f;
            f = f + 127.5f;
            v = isnan(f) ? 0 : (double)floorf(fminf(fmaxf(f, 0), 255));
            if (!isfinite(f) && out->n > 1) out->value[1][0] = 1;
        } else v /= 255;
        out->value[0][i] = v;
    }
}

/* ---- advance */

typedef struct advanced {
    int32_t g, n, h, w, rows, noise, addends, scales; /* g 0: no eps, as before the loop */
} advanced;

static void add_advance(ck_list *list, lw_dtype dtype, const advanced *d) {
    ck_case c;
    ck_begin(&c, LW_OP_ADVANCE, dtype);
    lw_advance_args *m = &c.m.advance;
    if (d->g) m->eps = ck_view(&c, dtype, d->g, d->n, d->h, d->w, 8, 0);
    m->x = ck_view(&c, LW_F32, 1, d->n, d->h, d->w, 8, 0);
    m->h1 = ck_view(&c, LW_F32, 1, d->n, d->h, d->w, 8, 0);
    m->h2 = ck_view(&c, LW_F32, 1, d->n, d->h, d->w, 8, 0);
    m->y = ck_view(&c, LW_F32, 1, d->n, d->h, d->w, 8, 0);
    m->net_in = ck_view(&c, dtype, 1, d->n, d->h, d->w, 8, 0);
    m->rows = ck_view(&c, LW_F32, 1, 1, 1, d->rows, (int32_t)(sizeof(lw_row) / sizeof(float)), 0);
    if (d->noise) m->noise = ck_view(&c, LW_F32, d->noise, d->n, d->h, d->w, 8, 0);
    m->addend_table = ck_view(&c, LW_F32, 1, 1, 1, d->rows, d->addends, 0);
    m->addends = ck_view(&c, LW_F32, 1, 1, 1, 1, d->addends, 0);
    if (d->scales) {
        m->scale_table = ck_view(&c, LW_F32, 1, 1, 1, d->rows, d->scales, 0);
        m->scales = ck_view(&c, LW_F32, 1, 1, 1, 1, d->scales, 0);
    }
    m->status = ck_view(&c, LW_I32, 1, 1, 1, 1, 4, 0);
    ck_add(list, &c, CK_IN(CK_NORMAL) | CK_IN(CK_TINY) | CK_IN(CK_UNIFORM) | CK_IN(CK_NAN), "list");
}

static void advance_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const advanced cases[] = {
        {2, 1, 8, 8, 5, 2, 64, 32}, {1, 2, 3, 5, 3, 3, 8, 8}, {0, 1, 4, 4, 2, 0, 16, 8},
        {2, 3, 7, 5, 1, 1, 40, 16}, {1, 1, 1, 1, 4, 1, 8, 0},
    };
    (void)chance;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) add_advance(list, dtype, &cases[i]);
}

static void fill_advance(ck_fill *f) {
    const lw_advance_args *m = &f->c->m.advance;
    ck_regime finite = f->regime == CK_NAN ? CK_NORMAL : f->regime;
    ck_fill_view(f, &m->eps, f->regime);
    ck_fill_view(f, &m->x, finite);
    ck_fill_view(f, &m->h1, finite);
    ck_fill_view(f, &m->h2, finite);
    ck_fill_view(f, &m->y, finite);
    ck_fill_view(f, &m->noise, finite);
    ck_fill_view(f, &m->addend_table, finite);
    ck_fill_view(f, &m->scale_table, finite);
    ck_fill_view(f, &m->addends, finite); /* stays where there is no next row */
    ck_fill_view(f, &m->scales, finite);
    lw_row *rows = (lw_row *)(void *)ck_at(f->image, m->rows);
    for (int32_t i = 0; i < m->rows.w; i++) {
        float *word = (float *)(void *)&rows[i];
        for (size_t k = 2; k < sizeof *rows / sizeof *word; k++) word[k] = (float)ck_uniform(&f->rng);
        rows[i].variant = 0;
        rows[i].guidance = 7.5f;
        rows[i].noise = lw_view_is(m->noise) ? ck_below(&f->rng, m->noise.g + 1) - 1 : -1;
    }
    int32_t *status = (int32_t *)(void *)ck_at(f->image, m->status);
    status[0] = lw_view_is(m->eps) ? ck_below(&f->rng, m->rows.w) : -1;
    status[1] = m->rows.w;
    status[2] = status[3] = 0;
}

/* Outputs in the order of lw_op_views: x, h1, h2, y, net_in, addends, scales, status. */
static void truth_advance(const ck_case *c, const ck_image *in, ck_outputs *out) {
    const lw_advance_args *m = &c->m.advance;
    const int32_t *status = (const int32_t *)(const void *)ck_at(in, m->status);
    const float *x = (const float *)(const void *)ck_at(in, m->x), *h1 = (const float *)(const void *)ck_at(in, m->h1);
    const float *h2 = (const float *)(const void *)ck_at(in, m->h2), *y = (const float *)(const void *)ck_at(in, m->y);
    int32_t row = status[0], last = out->n - 1;
    bool bad = false, next = row + 1 < status[1];
    int64_t n = out->count[0];
    for (int64_t i = 0; i < n; i++) {
        double v[4] = {(double)x[i], (double)h1[i], (double)h2[i], (double)y[i]};
        if (row >= 0) {
            const lw_row *r = (const lw_row *)(const void *)ck_at(in, m->rows) + row;
            double e = ck_load(ck_at(in, m->eps), m->eps.dtype, i);
            if (m->eps.g == 2) {
                double u = ck_load(ck_at(in, m->eps), m->eps.dtype, n + i);
                e = u + (double)r->guidance * (e - u);
            }
            double h = (double)r->h_x * v[0] + (double)r->h_e * e;
            double to = (double)r->x_x * v[0] + (double)r->x_e * e + (double)r->x_h[0] * h + (double)r->x_h[1] * v[1] +
                        (double)r->x_h[2] * v[2] + (double)r->x_y * v[3];
            if (r->noise >= 0) to += (double)r->x_n * ck_load(ck_at(in, m->noise), LW_F32, (int64_t)r->noise * n + i);
            double carry = (double)r->y_x * v[0] + (double)r->y_e * e + (double)r->y_h[0] * h +
                           (double)r->y_h[1] * v[1] + (double)r->y_h[2] * v[2] + (double)r->y_y * v[3];
            v[2] = v[1], v[1] = h, v[0] = to, v[3] = carry;
            bad = bad || !isfinite(to);
        }
        for (int k = 0; k < 4; k++) out->value[k][i] = v[k];
        out->value[4][i] = v[0];
    }
    const float *addends = (const float *)(const void *)ck_at(in, next ? m->addend_table : m->addends);
    for (int64_t i = 0; i < out->count[5]; i++)
        out->value[5][i] = (double)addends[(next ? (row + 1) * m->addend_table.sw : 0) + i];
    if (lw_view_is(m->scales)) {
        const float *scales = (const float *)(const void *)ck_at(in, next ? m->scale_table : m->scales);
        for (int64_t i = 0; i < out->count[6]; i++)
            out->value[6][i] = (double)scales[(next ? (row + 1) * m->scale_table.sw : 0) + i];
    }
    out->value[last][0] = row + 1;
    out->value[last][1] = status[1];
    out->value[last][2] = bad;
    out->value[last][3] = status[3];
}

const ck_op ck_op_embed_tokens = {
    .cases = tokens_cases, .fill = fill_tokens, .truth = truth_tokens, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_embed_time = {
    .cases = time_cases, .fill = fill_time, .truth = truth_time, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_pack_u8 = {.cases = pack_cases, .fill = fill_pack, .truth = truth_pack, .exact = true};
const ck_op ck_op_unpack_u8 = {
    .cases = unpack_cases, .fill = fill_pack, .truth = truth_pack, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_advance = {
    .cases = advance_cases, .fill = fill_advance, .truth = truth_advance, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
