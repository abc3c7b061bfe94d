/* SPDX-License-Identifier: MIT
 * Cases of norm_stats, apply and combine. norm_stats is held against its own formula, the other two against their
 * references. */
#include "check.h"

#include <math.h>

enum { MANY = CK_IN(CK_NORMAL) | CK_IN(CK_UNIFORM) | CK_IN(CK_LARGE) | CK_IN(CK_CONSTANT) | CK_IN(CK_TINY) };

/* ---- norm_stats */

static void add_stats(ck_list *list, lw_dtype dtype, const ck_in *in, uint32_t regimes, const char *from) {
    ck_case c;
    ck_begin(&c, LW_OP_NORM_STATS, dtype);
    int32_t rows = in->h * in->w, each = lw_rows_per_part(rows);
    c.m.norm_stats = (lw_norm_stats_args){
        .in = ck_view(&c, dtype, in->g, in->n, in->h, in->w, in->c, in->how & (CK_SLICE | CK_PADDED)),
        .rows_per_part = each};
    c.m.norm_stats.out = ck_view(&c, LW_F32, in->g, in->n, 1, (rows + each - 1) / each, 2 * in->c, 0);
    ck_add(list, &c, regimes, from);
}

static void stats_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const int32_t sides[][2] = {{1, 1}, {1, 13}, {8, 8}, {5, 13}, {7, 11}, {64, 64}, {61, 71}};
    ck_rng rng = {ck_hash("norm_stats", list->seed)};
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        for (int32_t how = 0; how < 3; how++) {
            ck_in in = {.g = 1 + how % 2, .n = 2, .h = sides[i][0], .w = sides[i][1], .c = how == 1 ? 40 : 8};
            in.how = how == 1 ? CK_SLICE : how == 2 ? CK_PADDED : 0;
            add_stats(list, dtype, &in, MANY | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN), "list");
        }
    ck_in large = {.g = 1, .n = 1, .h = 173, .w = 181, .c = 40, .how = CK_PADDED}; /* many rows a part */
    add_stats(list, dtype, &large, CK_IN(CK_LARGE) | CK_IN(CK_CONSTANT), "list");
    ck_in wide = {.g = 1, .n = 1, .h = 61, .w = 71, .c = 64};
    add_stats(list, dtype, &wide, CK_IN(CK_NORMAL), "list");
    for (int32_t i = 0; i < chance; i++) {
        ck_in in = ck_chance_in(&rng);
        add_stats(list, dtype, &in, CK_IN(ck_below(&rng, CK_CONSTANT)), "chance");
    }
}

static void fill_stats(ck_fill *f) { ck_fill_view(f, &f->c->m.norm_stats.in, f->regime); }

static void truth_stats(const ck_case *c, const ck_image *in, ck_outputs *out) {
    const lw_norm_stats_args *m = &c->m.norm_stats;
    const char *base = ck_at(in, m->in);
    int32_t rows = m->in.h * m->in.w, parts = m->out.w;
    for (int32_t i = 0; i < m->in.g * m->in.n * parts; i++)
        for (int32_t ch = 0; ch < m->in.c; ch++) {
            int32_t first = i % parts * m->rows_per_part, count = 0;
            double sum = 0, squares = 0, *to = out->value[0] + (int64_t)i * 2 * m->in.c + ch;
            for (int pass = 0; pass < 2; pass++)
                for (int32_t r = first; r < first + m->rows_per_part && r < rows; r++) {
                    double v = ck_load(
                        base, m->in.dtype,
                        lw_view_index(&m->in, i / parts / m->in.n, i / parts % m->in.n, r / m->in.w, r % m->in.w) + ch);
                    if (pass == 0) sum += v, count++;
                    else squares += (v - sum / count) * (v - sum / count);
                }
            to[0] = sum / count;
            to[m->in.c] = squares;
        }
}

/* ---- apply */

static void add_apply(ck_list *list, lw_dtype dtype, const ck_in *in, int32_t out_how, uint32_t regimes,
                      const char *from) {
    ck_case c;
    ck_begin(&c, LW_OP_APPLY, dtype);
    int32_t up = in->up2 ? 2 : 1;
    c.m.apply.in = ck_prologue(&c, in);
    c.m.apply.out = ck_view(&c, dtype, in->g, in->n, in->h * up, in->w * up, in->c + in->c2, out_how);
    ck_add(list, &c, regimes, from);
}

static void apply_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const lw_act acts[] = {LW_ACT_NONE, LW_ACT_SILU, LW_ACT_GELU, LW_ACT_QUICK_GELU};
    ck_rng rng = {ck_hash("apply", list->seed)};
    for (int32_t i = 0; i < 4 * 3; i++) {
        ck_in in = {
            .g = 2, .n = 1, .h = 11, .w = 7, .c = 24, .norm = (lw_norm_kind)(i % 3), .groups = 4, .act = acts[i / 3]};
        add_apply(list, dtype, &in, 0, MANY | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN), "list");
        in.how = CK_SHARED_G;
        in.up2 = true;
        add_apply(list, dtype, &in, CK_SLICE, CK_IN(CK_NORMAL), "list");
        if (in.norm == LW_NORM_LAYER) continue;
        in.c2 = 40;
        in.how2 = CK_SLICE;
        add_apply(list, dtype, &in, CK_PADDED, CK_IN(CK_NORMAL), "list");
    }
    for (int32_t c = 4; c <= 72; c += 4) { /* vector tails */
        ck_in in = {.g = 1, .n = 1, .h = 1, .w = 3, .c = c, .norm = LW_NORM_LAYER, .act = LW_ACT_GELU};
        if (dtype == LW_F32 || c % 8 == 0) add_apply(list, dtype, &in, 0, CK_IN(CK_NORMAL), "list");
        in.norm = LW_NORM_GROUP;
        in.groups = c / 4;
        in.h = 67; /* two parts of statistics */
        if (dtype == LW_F32 || c % 8 == 0) add_apply(list, dtype, &in, 0, CK_IN(CK_NORMAL), "list");
    }
    ck_in large = {.g = 1, /* many parts of many rows */
                   .n = 1,
                   .h = 103,
                   .w = 107,
                   .c = 200,
                   .c2 = 120,
                   .norm = LW_NORM_GROUP,
                   .groups = 1,
                   .act = LW_ACT_SILU,
                   .how = CK_PADDED};
    add_apply(list, dtype, &large, CK_SLICE, CK_IN(CK_NORMAL) | CK_IN(CK_LARGE), "list");
    for (int32_t i = 0; i < chance; i++) {
        ck_in in = ck_chance_in(&rng);
        add_apply(list, dtype, &in, ck_below(&rng, 2) ? 0 : CK_SLICE, CK_IN(ck_below(&rng, CK_CONSTANT)), "chance");
    }
}

static void fill_apply(ck_fill *f) { ck_fill_prologue(f, &f->c->m.apply.in); }

/* ---- combine */

typedef struct combined {
    ck_in in;
    bool addend, scale;
    int32_t addend_how, residual, out_how;
    lw_act act;
} combined;

static void add_combine(ck_list *list, lw_dtype dtype, const combined *d, uint32_t regimes, const char *from) {
    ck_case c;
    ck_begin(&c, LW_OP_COMBINE, dtype);
    lw_combine_args *m = &c.m.combine;
    const ck_in *in = &d->in;
    int32_t wide = d->act == LW_ACT_GEGLU ? 2 * in->c : in->c;
    m->in = ck_view(&c, dtype, in->g, in->n, in->h, in->w, wide, in->how & (CK_SLICE | CK_PADDED));
    m->out = ck_view(&c, dtype, in->g, in->n, in->h, in->w, in->c, d->out_how);
    m->epi.act = d->act;
    if (d->addend) m->epi.addend = ck_view(&c, LW_F32, in->g, in->n, 1, 1, wide, d->addend_how);
    if (d->scale) m->epi.scale = ck_view(&c, LW_F32, in->g, in->n, 1, 1, 4, CK_SHARED_N), m->epi.scale.c = 1;
    m->epi.residual = ck_residual(&c, d->residual, &m->out);
    ck_add(list, &c, regimes, from);
}

static void combine_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    ck_rng rng = {ck_hash("combine", list->seed)};
    for (int32_t act = LW_ACT_NONE; act <= LW_ACT_GEGLU; act++)
        for (int32_t residual = 0; residual < 5; residual++) {
            combined d = {.in = {.g = 2, .n = 2, .h = 5, .w = 7, .c = 8 + 8 * residual},
                          .act = (lw_act)act,
                          .residual = residual,
                          .addend = residual % 2,
                          .scale = residual > 1,
                          .out_how = residual == 3 ? CK_SLICE : 0};
            d.addend_how = residual == 1 ? CK_SHARED_G | CK_SHARED_N : 0;
            add_combine(list, dtype, &d, residual == 1 ? MANY | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN) : CK_IN(CK_NORMAL),
                        "list");
        }
    for (int32_t i = 0; i < chance; i++) {
        combined d = {.in = ck_chance_in(&rng),
                      .addend = ck_below(&rng, 2),
                      .scale = ck_below(&rng, 2),
                      .residual = ck_below(&rng, 5),
                      .act = (lw_act)ck_below(&rng, 5)};
        d.addend_how = ck_below(&rng, 4) * CK_SHARED_G;
        d.out_how = ck_below(&rng, 2) ? 0 : CK_PADDED;
        add_combine(list, dtype, &d, CK_IN(ck_below(&rng, CK_CONSTANT)), "chance");
    }
}

static void fill_combine(ck_fill *f) {
    ck_fill_view(f, &f->c->m.combine.in, f->regime);
    ck_fill_epilogue(f, &f->c->m.combine.epi);
}

const ck_op ck_op_norm_stats = {
    .cases = stats_cases, .fill = fill_stats, .truth = truth_stats, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_apply = {.cases = apply_cases, .fill = fill_apply, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_combine = {.cases = combine_cases, .fill = fill_combine, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
