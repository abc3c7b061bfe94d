/* SPDX-License-Identifier: MIT
 * Cases of conv2d and linear: each field of a product by itself and with its neighbours, then combinations by chance.
 * The truth is the fused reference; the list of tactics has the same reference split into plain ops beside it, so that
 * what the planner makes of each field is checked too. */
#include "check.h"

typedef struct product {
    ck_in in;
    int32_t o, kernel, stride;
    bool no_bias, addend, scale;
    int32_t addend_how; /* CK_SHARED_G, CK_SHARED_N */
    lw_act act;
    int32_t residual;            /* see ck_residual */
    int32_t shortcut, shortcut2; /* channels */
    int32_t out_how;
    bool row_stats;
    uint32_t regimes; /* 0: normal */
} product;

enum { MANY = CK_IN(CK_NORMAL) | CK_IN(CK_UNIFORM) | CK_IN(CK_LARGE) | CK_IN(CK_TINY) | CK_IN(CK_CONSTANT) };

static void add(ck_list *list, lw_op_kind kind, lw_dtype dtype, const product *d, const char *from) {
    ck_case c;
    ck_begin(&c, kind, dtype);
    lw_product_args *p = &c.m.product;
    int32_t up = d->in.up2 ? 2 : 1, stride = d->stride ? d->stride : 1, kernel = d->kernel ? d->kernel : 1;
    int32_t h = (d->in.h * up + stride - 1) / stride, w = (d->in.w * up + stride - 1) / stride, i = d->in.c + d->in.c2;
    int32_t wide = d->act == LW_ACT_GEGLU ? 2 * d->o : d->o;
    p->in = ck_prologue(&c, &d->in);
    p->w = ck_param_of(&c, 'w', wide, i, kernel, kernel);
    if (!d->no_bias) p->bias = ck_param_of(&c, 'b', wide, 1, 1, 1);
    p->kh = p->kw = kernel;
    p->stride = stride;
    p->pad_top = p->pad_left = kernel / 2;
    p->out = ck_view(&c, dtype, d->in.g, d->in.n, h, w, d->o, d->out_how);
    if (d->row_stats) p->row_stats = ck_view(&c, LW_F32, d->in.g, d->in.n, 1, 1, lw_row_stats_channels(&p->out), 0);
    p->epi.act = d->act;
    if (d->addend) p->epi.addend = ck_view(&c, LW_F32, d->in.g, d->in.n, 1, 1, wide, d->addend_how);
    if (d->scale) p->epi.scale = ck_view(&c, LW_F32, d->in.g, d->in.n, 1, 1, 4, CK_SHARED_N);
    if (d->scale) p->epi.scale.c = 1;
    p->epi.residual = ck_residual(&c, d->residual, &p->out);
    if (d->shortcut) {
        p->shortcut_a = ck_view(&c, dtype, d->in.g, d->in.n, h, w, d->shortcut, 0);
        if (d->shortcut2) p->shortcut_b = ck_view(&c, dtype, d->in.g, d->in.n, h, w, d->shortcut2, CK_SHARED_G);
        p->shortcut_w = ck_param_of(&c, 'w', d->o, d->shortcut + d->shortcut2, 1, 1);
        p->shortcut_bias = ck_param_of(&c, 'b', d->o, 1, 1, 1);
    }
    uint32_t regimes = d->regimes ? d->regimes : CK_IN(CK_NORMAL);
    /* A large value times a large gate is beyond halves: what a residual brings back is lost where that is split off. */
    if (dtype == LW_F16 && d->act == LW_ACT_GEGLU && d->residual && regimes & CK_IN(CK_LARGE))
        regimes ^= CK_IN(CK_LARGE) | CK_IN(CK_NORMAL);
    ck_add(list, &c, regimes, from);
}

#define SHARED_ALL (CK_SHARED_G | CK_SHARED_N)

/* Kernel, stride and size: tile edges of 8 and 16, one pixel, primes. */
static void conv_shapes(ck_list *list, lw_dtype dtype) {
    static const int32_t sides[][2] = {{1, 1}, {1, 7}, {2, 2}, {5, 3}, {7, 7}, {8, 8}, {9, 15}, {16, 17}, {31, 3}};
    static const int32_t channels[][2] = {{8, 8}, {8, 16}, {40, 24}, {64, 64}, {72, 136}};
    for (size_t s = 0; s < sizeof sides / sizeof *sides; s++)
        for (size_t k = 0; k < sizeof channels / sizeof *channels; k++)
            for (int32_t way = 0; way < 4; way++) {
                product d = {.in = {.g = 1,
                                    .n = 1 + (int32_t)(s + k) % 2,
                                    .h = sides[s][0],
                                    .w = sides[s][1],
                                    .c = channels[k][0]},
                             .o = channels[k][1],
                             .kernel = way & 1 ? 3 : 1,
                             .stride = way & 2 ? 2 : 1};
                if (s == 4 && k == 2) d.regimes = MANY | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN);
                add(list, LW_OP_CONV2D, dtype, &d, "list");
            }
}

static const product fields[] = {
    {.in = {.c2 = 40}, .o = 24, .kernel = 3},
    {.in = {.c2 = 40, .how = CK_SHARED_G}, .o = 24, .kernel = 1},
    {.in = {.n = 3, .how = SHARED_ALL}, .o = 24, .kernel = 3},
    {.in = {.how = CK_SLICE}, .o = 24, .kernel = 3},
    {.in = {.how = CK_PADDED}, .o = 24, .kernel = 3},
    {.in = {.norm = LW_NORM_GROUP, .groups = 4, .act = LW_ACT_SILU},
     .o = 24,
     .kernel = 3,
     .regimes = MANY | CK_IN(CK_NAN)},
    {.in = {.c = 16, .c2 = 40, .norm = LW_NORM_GROUP, .groups = 2, .act = LW_ACT_SILU}, .o = 24, .kernel = 3},
    {.in = {.c = 32, .c2 = 32, .norm = LW_NORM_GROUP, .groups = 8, .how = CK_SHARED_G}, .o = 24, .kernel = 1},
    {.in = {.h = 37, .w = 5, .norm = LW_NORM_GROUP, .groups = 24}, .o = 8, .kernel = 1},
    {.in = {.norm = LW_NORM_LAYER}, .o = 40, .kernel = 1, .regimes = MANY | CK_IN(CK_NAN)},
    {.in = {.h = 6, .c = 64, .norm = LW_NORM_LAYER, .row_stats = true}, .o = 40, .kernel = 1, .regimes = MANY | CK_IN(CK_NAN)},
    {.in = {.h = 6, .c = 320, .norm = LW_NORM_LAYER, .row_stats = true}, .o = 136, .kernel = 1, .act = LW_ACT_GEGLU},
    {.in = {.h = 9, .w = 10, .c = 1344, .norm = LW_NORM_LAYER, .row_stats = true}, .o = 64, .kernel = 1, .residual = 1},
    {.in = {.h = 6, .c = 128, .norm = LW_NORM_LAYER, .row_stats = true}, .o = 192, .kernel = 1, .row_stats = true},
    {.in = {.n = 2, .h = 10}, .o = 64, .kernel = 1, .row_stats = true, .regimes = MANY},
    {.in = {.n = 2, .h = 8, .c = 320}, .o = 320, .kernel = 1, .residual = 1, .row_stats = true},
    {.in = {.n = 2, .h = 6, .c = 64}, .o = 128, .kernel = 3, .addend = true, .residual = 1, .row_stats = true},
    {.in = {.g = 1, .h = 2, .w = 8, .c = 200}, .o = 72, .kernel = 3}, /* sums longer than any ring of copies */
    {.in = {.g = 1, .h = 3, .w = 22, .c = 520}, .o = 72, .kernel = 1},
    {.in = {.act = LW_ACT_GELU}, .o = 24, .kernel = 1},
    {.in = {.up2 = true}, .o = 24, .kernel = 3},
    {.in = {.h = 1, .w = 1, .up2 = true}, .o = 8, .kernel = 3},
    {.in = {.up2 = true, .norm = LW_NORM_GROUP, .groups = 3, .act = LW_ACT_SILU, .how = CK_SHARED_G},
     .o = 24,
     .kernel = 3,
     .stride = 2},
    {.in = {.n = 1}, .o = 40, .kernel = 3, .addend = true},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .addend = true, .addend_how = SHARED_ALL},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .addend = true, .addend_how = CK_SHARED_G},
    {.in = {.n = 1},
     .o = 40,
     .kernel = 1,
     .addend = true,
     .addend_how = SHARED_ALL,
     .act = LW_ACT_SILU,
     .no_bias = true},
    {.in = {.n = 1}, .o = 40, .kernel = 3, .act = LW_ACT_SILU, .regimes = MANY},
    {.in = {.n = 1}, .o = 40, .kernel = 1, .act = LW_ACT_GELU, .regimes = MANY},
    {.in = {.n = 1}, .o = 40, .kernel = 1, .act = LW_ACT_QUICK_GELU, .regimes = MANY},
    {.in = {.n = 1}, .o = 40, .kernel = 1, .act = LW_ACT_GEGLU, .regimes = MANY},
    {.in = {.norm = LW_NORM_LAYER}, .o = 40, .kernel = 1, .act = LW_ACT_GEGLU, .addend = true, .residual = 1},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .scale = true},
    {.in = {.n = 2}, .o = 40, .kernel = 1, .scale = true, .residual = 1},
    {.in = {.n = 2, .how = CK_SHARED_G}, .o = 40, .kernel = 1, .scale = true, .residual = 1},
    {.in = {.n = 2}, .o = 40, .kernel = 1, .residual = 1, .regimes = MANY | CK_IN(CK_NAN)},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .residual = 2},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .residual = 3},
    {.in = {.n = 2}, .o = 40, .kernel = 1, .residual = 4, .act = LW_ACT_SILU},
    {.in = {.n = 2}, .o = 40, .kernel = 1, .out_how = CK_SLICE},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .out_how = CK_SLICE, .residual = 1},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .out_how = CK_PADDED, .addend = true, .act = LW_ACT_SILU},
    {.in = {.n = 2}, .o = 40, .kernel = 1, .out_how = CK_SLICE | CK_PADDED},
    {.in = {.norm = LW_NORM_GROUP, .groups = 4, .act = LW_ACT_SILU}, .o = 40, .kernel = 3, .shortcut = 16},
    {.in = {.norm = LW_NORM_GROUP, .groups = 4, .act = LW_ACT_SILU},
     .o = 40,
     .kernel = 3,
     .shortcut = 16,
     .shortcut2 = 24,
     .regimes = MANY},
    {.in = {.n = 2}, .o = 40, .kernel = 3, .shortcut = 24, .addend = true, .act = LW_ACT_SILU, .scale = true},
    {.in = {.c2 = 8, .norm = LW_NORM_GROUP, .groups = 4, .act = LW_ACT_SILU},
     .o = 40,
     .kernel = 3,
     .addend = true,
     .act = LW_ACT_GELU,
     .scale = true,
     .residual = 2,
     .out_how = CK_SLICE},
};

/* What a line does not say: two guidance passes of one sample, 9x7 pixels, 24 channels. */
static product field_case(size_t i) {
    product d = fields[i];
    if (!d.in.g) d.in.g = 2;
    if (!d.in.n) d.in.n = 1;
    if (!d.in.h) d.in.h = 9;
    if (!d.in.w) d.in.w = 7;
    if (!d.in.c) d.in.c = 24;
    return d;
}

static product by_chance(ck_rng *rng, bool conv) {
    static const lw_act acts[] = {LW_ACT_NONE, LW_ACT_NONE, LW_ACT_SILU, LW_ACT_GELU, LW_ACT_QUICK_GELU, LW_ACT_GEGLU};
    static const int32_t outs[] = {8, 16, 24, 40, 64, 72, 136};
    product d = {.in = ck_chance_in(rng), .o = outs[ck_below(rng, 7)], .kernel = 1, .stride = 1};
    if (conv) d.kernel = ck_below(rng, 3) ? 3 : 1, d.stride = ck_below(rng, 4) ? 1 : 2;
    else d.in.up2 = false, d.in.w *= d.in.h, d.in.h = 1;
    d.no_bias = ck_below(rng, 4) == 0;
    d.addend = ck_below(rng, 3) == 0;
    d.addend_how = ck_below(rng, 4) * CK_SHARED_G;
    d.act = acts[ck_below(rng, 6)];
    d.scale = ck_below(rng, 4) == 0;
    d.residual = ck_below(rng, 2) ? ck_below(rng, 5) : 0;
    if (!d.residual && d.act != LW_ACT_GEGLU && ck_below(rng, 4) == 0) {
        d.shortcut = outs[ck_below(rng, 6)];
        d.shortcut2 = ck_below(rng, 2) ? outs[ck_below(rng, 6)] : 0;
    }
    d.out_how = ck_below(rng, 3) ? 0 : ck_below(rng, 2) ? CK_SLICE : CK_PADDED;
    d.regimes = CK_IN(ck_below(rng, CK_CONSTANT));
    return d;
}

static void conv_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    ck_rng rng = {ck_hash("conv2d", list->seed)};
    conv_shapes(list, dtype);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        product d = field_case(i);
        add(list, LW_OP_CONV2D, dtype, &d, "list");
    }
    for (int32_t i = 0; i < chance; i++) {
        product d = by_chance(&rng, true);
        add(list, LW_OP_CONV2D, dtype, &d, "chance");
    }
}

static void linear_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const int32_t rows[] = {1, 2, 3, 15, 16, 17, 77, 154, 257},
                         io[][2] = {{8, 8}, {40, 24}, {72, 136}, {320, 64}};
    ck_rng rng = {ck_hash("linear", list->seed)};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t k = 0; k < sizeof io / sizeof *io; k++) {
            product d = {.in = {.g = 1 + (int32_t)(r + k) % 2, .n = 1, .h = 1, .w = rows[r], .c = io[k][0]},
                         .o = io[k][1],
                         .no_bias = k == 1};
            if (r == 6 && k == 2) d.regimes = MANY | CK_IN(CK_DENORMAL) | CK_IN(CK_NAN);
            add(list, LW_OP_LINEAR, dtype, &d, "list");
        }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        product d = field_case(i);
        if (d.kernel != 1) continue;
        d.in.w *= d.in.h;
        d.in.h = 1;
        add(list, LW_OP_LINEAR, dtype, &d, "list");
    }
    for (int32_t i = 0; i < chance; i++) {
        product d = by_chance(&rng, false);
        add(list, LW_OP_LINEAR, dtype, &d, "chance");
    }
}

static void fill(ck_fill *f) {
    const lw_product_args *p = &f->c->m.product;
    ck_fill_prologue(f, &p->in);
    ck_fill_epilogue(f, &p->epi);
    ck_fill_view(f, &p->shortcut_a, f->regime);
    ck_fill_view(f, &p->shortcut_b, f->regime);
}

const ck_op ck_op_conv2d = {.cases = conv_cases, .fill = fill, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
const ck_op ck_op_linear = {.cases = linear_cases, .fill = fill, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
