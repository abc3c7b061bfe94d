/* SPDX-License-Identifier: MIT
 * Cases of attention: head sizes of SD1.5 (40, 80, 160, 512 in the VAE) and of the demo model, odd lengths around tiles
 * of keys, the causal mask, queries, keys and values shared between samples or guidance passes and cut out of one
 * product. */
#include "check.h"

#include <math.h>

typedef struct attention {
    int32_t g, n, q, k, heads, d;
    bool causal;
    int32_t q_how, kv_how, v_how; /* v_how: where v differs from kv_how */
    bool one_buffer;              /* q, k and v are slices of one product */
    uint32_t regimes;
} attention;

static lw_view slice(const lw_view *v, int32_t i, int32_t ch) { return lw_view_channels(*v, i * ch, ch); }

static void add(ck_list *list, lw_dtype dtype, const attention *d, const char *from) {
    ck_case c;
    ck_begin(&c, LW_OP_ATTENTION, dtype);
    lw_attention_args *a = &c.m.attention;
    int32_t ch = d->heads * d->d;
    if (d->one_buffer) {
        lw_view all = ck_view(&c, dtype, d->g, d->n, 1, d->q, 3 * ch, 0);
        a->q = slice(&all, 0, ch), a->k = slice(&all, 1, ch), a->v = slice(&all, 2, ch);
    } else {
        a->q = ck_view(&c, dtype, d->g, d->n, 1, d->q, ch, d->q_how);
        a->k = ck_view(&c, dtype, d->g, d->n, 1, d->k, ch, d->kv_how);
        a->v = ck_view(&c, dtype, d->g, d->n, 1, d->k, ch, d->kv_how ^ d->v_how);
    }
    a->out = ck_view(&c, dtype, d->g, d->n, 1, d->q, ch, 0);
    a->heads = d->heads;
    a->scale = (float)(1 / sqrt((double)d->d));
    a->causal = d->causal;
    ck_add(list, &c, d->regimes ? d->regimes : CK_IN(CK_NORMAL), from);
}

enum {
    MANY = CK_IN(CK_NORMAL) | CK_IN(CK_UNIFORM) | CK_IN(CK_LARGE) | CK_IN(CK_CONSTANT) | CK_IN(CK_TINY) |
           CK_IN(CK_DENORMAL) | CK_IN(CK_NAN) | CK_IN(CK_EQUAL) | CK_IN(CK_EXTREME)
};

static const attention cases[] = {
    {1, 1, 1, 1, 1, 8, .regimes = MANY},
    {1, 1, 7, 13, 2, 24, .regimes = MANY},
    {2, 1, 33, 77, 8, 40, .regimes = MANY},
    {1, 2, 17, 77, 3, 80, .causal = false},
    {2, 2, 5, 31, 1, 160, .causal = false},
    {1, 1, 25, 25, 1, 512, .one_buffer = true, .regimes = CK_IN(CK_NORMAL) | CK_IN(CK_EXTREME)},
    {1, 1, 77, 77, 2, 64, .causal = true, .one_buffer = true, .regimes = MANY},
    {1, 1, 1, 1, 1, 16, .causal = true},
    {2, 1, 13, 13, 2, 8, .causal = true},
    {1, 1, 530, 530, 1, 8, .causal = true}, /* more keys than one pass of the CPU's loops holds */
    {1, 1, 13, 1031, 1, 12, .regimes = MANY},
    {2, 2, 64, 65, 2, 40, .one_buffer = false},
    {2, 3, 9, 77, 2, 40, .kv_how = CK_SHARED_N},
    {2, 1, 9, 77, 2, 40, .kv_how = CK_SHARED_G},
    {2, 3, 9, 77, 2, 40, .kv_how = CK_SHARED_G | CK_SHARED_N},
    {2, 3, 9, 19, 2, 40, .v_how = CK_SHARED_N},
    {2, 3, 9, 19, 2, 40, .v_how = CK_SHARED_G},
    {2, 3, 9, 19, 2, 40, .kv_how = CK_SHARED_N, .v_how = CK_SHARED_N},
    {2, 3, 9, 19, 2, 40, .kv_how = CK_SHARED_G, .v_how = CK_SHARED_G},
    {2, 2, 9, 77, 2, 40, .kv_how = CK_SLICE},
    {2, 3, 9, 77, 2, 40, .q_how = CK_SHARED_G},
    {2, 3, 9, 77, 2, 80, .q_how = CK_SHARED_N | CK_SLICE},
    {2, 2, 9, 77, 1, 160, .q_how = CK_SHARED_G | CK_SHARED_N, .kv_how = CK_SLICE},
    {1, 1, 512, 77, 1, 8, .causal = false},
    {1, 1, 15, 512, 2, 20, .causal = false},
    {1, 1, 15, 513, 2, 20, .causal = false},
};

/* The attention of SD1.5's step at 256x384 pixels: across, with the first of it shared between guidance passes, and to
 * itself; many queries with few and with cut tiles of keys, so that a GPU's blocks are as many and as large as there.
 * Too slow for the host's references but where a GPU's kernels depend on it. */
static const attention gpu_cases[] = {
    {2, 1, 1536, 77, 8, 40, .q_how = CK_SHARED_G, .kv_how = CK_SLICE},
    {2, 1, 1536, 77, 8, 40, .kv_how = CK_SLICE},
    {1, 1, 1536, 77, 8, 40, .kv_how = CK_SLICE},
    {2, 1, 384, 77, 8, 80, .kv_how = CK_SLICE},
    {1, 1, 384, 77, 8, 80, .kv_how = CK_SLICE},
    {2, 1, 96, 77, 8, 160, .kv_how = CK_SLICE},
    {1, 1, 96, 77, 8, 160, .kv_how = CK_SLICE},
    {2, 1, 24, 77, 8, 160, .kv_how = CK_SLICE},
    {1, 1, 24, 77, 8, 160, .kv_how = CK_SLICE},
    {1, 1, 1536, 1536, 1, 40, .one_buffer = true},
    {2, 1, 1536, 130, 8, 40, .kv_how = CK_SLICE},
    {1, 1, 1536, 130, 8, 40, .kv_how = CK_SLICE},
    {2, 1, 384, 384, 8, 80, .one_buffer = true},
    {2, 1, 600, 130, 8, 80, .kv_how = CK_SLICE},
    {2, 1, 96, 96, 8, 160, .one_buffer = true},
    {2, 1, 24, 24, 8, 160, .one_buffer = true},
    {1, 1, 70, 1000, 2, 80, .kv_how = CK_SLICE},
    {1, 1, 70, 1000, 2, 160, .kv_how = CK_SLICE},
};

static void list_cases(ck_list *list, lw_dtype dtype, int32_t chance) {
    static const int32_t sizes[] = {4, 8, 12, 16, 24, 32, 40, 64, 80, 160};
    ck_rng rng = {ck_hash("attention", list->seed)};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) add(list, dtype, &cases[i], "list");
    const double cap = list->flop_cap;
    list->flop_cap = INFINITY;
    for (size_t i = 0; i < sizeof gpu_cases / sizeof *gpu_cases && list->gpu && dtype == LW_F16; i++)
        add(list, dtype, &gpu_cases[i], "step");
    list->flop_cap = cap;
    for (int32_t i = 0; i < chance; i++) {
        attention d = {.g = 1 + ck_below(&rng, 2),
                       .n = 1 + ck_below(&rng, 2),
                       .q = 1 + ck_below(&rng, 90),
                       .k = 1 + ck_below(&rng, 600),
                       .heads = 1 + ck_below(&rng, 3),
                       .d = sizes[ck_below(&rng, 10)]};
        d.causal = ck_below(&rng, 3) == 0;
        if (d.causal) d.k = d.q;
        d.heads *= d.d % 8 ? 2 : 1; /* views begin at 16 bytes whatever the type */
        d.kv_how = ck_below(&rng, 8);
        d.q_how = ck_below(&rng, 8) & ~(ck_below(&rng, 2) ? 0 : 7);
        d.regimes = CK_IN(ck_below(&rng, CK_CONSTANT)) | CK_IN(CK_EQUAL) | CK_IN(CK_EXTREME);
        add(list, dtype, &d, "chance");
    }
}

static void fill(ck_fill *f) {
    const lw_attention_args *a = &f->c->m.attention;
    ck_regime regime = f->regime == CK_EQUAL || f->regime == CK_EXTREME ? CK_NORMAL : f->regime;
    ck_regime qk = regime == CK_LARGE ? CK_NORMAL : regime; /* logits of 1e4 are noise in fp32, whoever computes them */
    ck_fill_view(f, &a->q, qk);
    /* A masked key counts 0 times its value, which is NaN for NaN: not what the mask is for. */
    if (a->causal && regime == CK_NAN) regime = qk = CK_NORMAL;
    ck_fill_view(f, &a->v, regime);
    ck_fill_view(f, &a->k, qk);
    char *k = ck_at(f->image, a->k);
    for (int32_t g = 0; g < (a->k.sg ? a->k.g : 1); g++)
        for (int32_t n = 0; n < (a->k.sn ? a->k.n : 1); n++)
            for (int32_t t = 0; t < a->k.w; t++)
                for (int32_t c = 0; c < a->k.c; c++) {
                    int64_t at = lw_view_index(&a->k, g, n, 0, t) + c, first = lw_view_index(&a->k, g, n, 0, 0) + c;
                    double v = ck_load(k, a->k.dtype, at);
                    if (f->regime == CK_EQUAL) v = ck_load(k, a->k.dtype, first);
                    if (f->regime == CK_EXTREME) v *= 30;
                    ck_store(k, a->k.dtype, at, v);
                }
}

const ck_op ck_op_attention = {.cases = list_cases, .fill = fill, .nmse_f32 = 1e-10, .nmse_half = 5e-7};
