/* SPDX-License-Identifier: MIT
 * The inner loops, one table an instruction set: kernels_NAME.c compile kernels.inc with their flags; features.c picks
 * the widest the CPU has. All pointers are to floats; c counts channels, any number.
 *
 * What products multiply are words of 4 bytes: a float, or two bf16 that follow each other along the axis that is
 * summed. Sums are floats. */
#ifndef LW_KERNELS_H
#define LW_KERNELS_H

#include "ops/ops.h"

/* What is done to sums before they are stored: y = residual + scale * act(x + addend). A panel is 2 * width columns;
 * for GEGLU its first half are values, its second their gates. */
typedef struct lw_finish {
    const float *addend; /* [2 * width] */
    lw_act act;
    float scale;
    int32_t c;             /* columns that are there; for GEGLU: that come out */
    const float *residual; /* at the first pixel; may be NULL */
    float *out;
    int64_t residual_sh, residual_sw, sh, sw;
} lw_finish;

/* Winograd F(4x4,3x3): tiles of 4x4 outputs from 6x6 inputs, as products at 36 points. */
enum { LW_WINO_OUT = 4, LW_WINO_IN = 6, LW_WINO_POINTS = 36 };

typedef struct lw_kernels {
    const char *name;
    int32_t width;                /* floats in a vector */
    int32_t pair;                 /* values in a word of multiply's operands: 1, or 2 as bf16 */
    int32_t rows, attention_rows; /* rows that multiply does at once; queries of one attention_block */
    /* mean[c] and squares[c] of `rows` rows, `stride` apart */
    void (*stats)(const float *x, int64_t stride, int32_t rows, int32_t c, float *mean, float *squares);
    /* y = act(x * a[c] + b[c]); a NULL: act(x). Not GEGLU. */
    void (*affine_act)(const float *x, const float *a, const float *b, lw_act act, int32_t c, float *y);
    void (*layer_norm)(const float *x, const float *gamma, const float *beta, float eps, lw_act act, int32_t c,
                       float *y);
    /* y = residual + scale * act(x + addend); addend, residual may be NULL; for GEGLU x holds 2c: values, then gates */
    void (*combine)(const float *x, const float *addend, lw_act act, float scale, const float *residual, int32_t c,
                    float *y);
    /* n floats, n a multiple of pair, to words; y may be x. */
    void (*round_words)(const float *x, int32_t n, float *y);
    /* Packs len rows of d floats, d a multiple of pair, as words: k transposed to panels of 2 * width keys, [panel][d /
     * pair][2 * width]; v to panels of channels, [panel][len / pair, rounded up][2 * width], the last `width` wide
     * where that is enough. Zeros in the padding. */
    void (*pack_kv)(const float *k, int64_t k_stride, const float *v, int64_t v_stride, int32_t len, int32_t d,
                    float *kt, float *vp);
    /* rows <= attention_rows queries against all keys; first_row is theirs for the causal mask (< 0: none). */
    void (*attention_block)(const float *q, int64_t q_stride, int32_t rows, const float *kt, const float *vp,
                            int32_t len, int32_t d, float scale, int32_t first_row, float *out, int64_t out_stride);
    /* c[r][..] = (add ? c : 0) + sum over words t < n of a[r][t] * b[t][..], a panel of columns; each row's bits are
     * the same whatever rows are beside it. ahead: some 32 * n bytes from there on are wanted next. */
    void (*multiply)(const float *a, int64_t a_stride, int32_t rows, const float *b, int32_t n, bool add, float *c,
                     int64_t c_stride, const float *ahead);
    /* x: h rows, x_sh apart, of w pixels of a panel. */
    void (*finish)(const float *x, int64_t x_sh, int32_t h, int32_t w, const lw_finish *f);
    /* One tile's n channels (a multiple of width) at 36 addresses, to v[point * stride + channel]. */
    void (*wino_input)(const float *const d[LW_WINO_POINTS], int32_t n, float *v, int64_t stride);
    /* n windows [9] of a panel each, floats or single bf16, to floats u[point * stride + window * panel]. */
    void (*wino_weights)(const void *g, bool bf16, int32_t n, float *u, int64_t stride);
    /* One tile of a panel, m[point * stride], to y[16] pixels. */
    void (*wino_output)(const float *m, int64_t stride, float *y);
} lw_kernels;

enum { LW_ATTENTION_MAX_D = 512 };

extern const lw_kernels lw_kernels_baseline;
#if defined(__x86_64__)
extern const lw_kernels lw_kernels_avx2, lw_kernels_avx512, lw_kernels_avx512_bf16;
#endif

const lw_kernels *lw_cpu_kernels(void);
/* The same with products of bf16; NULL: this CPU has no instruction for them. */
const lw_kernels *lw_cpu_kernels_bf16(void);

#endif
