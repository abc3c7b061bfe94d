/* SPDX-License-Identifier: MIT
 * The fp32 inner loops, one table an instruction set: kernels_NAME.c compile kernels.inc with their flags; cpu.c picks
 * the widest the CPU has. All pointers are to floats; c counts channels, any number. */
#ifndef LW_KERNELS_H
#define LW_KERNELS_H

#include "ops/ops.h"

typedef struct lw_kernels {
    const char *name;
    int32_t width, attention_rows; /* floats in a vector; queries of one attention_block */
    /* mean[c] and squares[c] of `rows` rows, `stride` apart */
    void (*stats)(const float *x, int64_t stride, int32_t rows, int32_t c, float *mean, float *squares);
    /* y = act(x * a[c] + b[c]); a NULL: act(x). Not GEGLU. */
    void (*affine_act)(const float *x, const float *a, const float *b, lw_act act, int32_t c, float *y);
    void (*layer_norm)(const float *x, const float *gamma, const float *beta, float eps, lw_act act, int32_t c,
                       float *y);
    /* y = residual + scale * act(x + addend); addend, residual may be NULL; for GEGLU x holds 2c: values, then gates */
    void (*combine)(const float *x, const float *addend, lw_act act, float scale, const float *residual, int32_t c,
                    float *y);
    /* Packs len rows of d floats: k transposed to [d][len_padded], v to [len_padded][d_padded], zeros in the padding
     * (both to `width`). */
    void (*pack_kv)(const float *k, int64_t k_stride, const float *v, int64_t v_stride, int32_t len, int32_t d,
                    float *kt, float *vp);
    /* rows <= attention_rows queries against all keys; first_row is theirs for the causal mask (< 0: none). */
    void (*attention_block)(const float *q, int64_t q_stride, int32_t rows, const float *kt, const float *vp,
                            int32_t len, int32_t d, float scale, int32_t first_row, float *out, int64_t out_stride);
} lw_kernels;

enum { LW_ATTENTION_MAX_D = 512 };

extern const lw_kernels lw_kernels_baseline;
#if defined(__x86_64__)
extern const lw_kernels lw_kernels_avx2, lw_kernels_avx512;
#endif

const lw_kernels *lw_cpu_kernels(void);

#endif
