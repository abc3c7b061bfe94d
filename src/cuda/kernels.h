/* SPDX-License-Identifier: MIT
 * The launchers: what the host code (C11) calls and the .cu files define. Plain structs, passed by value to the
 * kernels. A launcher checks nothing but the launch: what a kernel can take is decided by the tactic's supports().
 * Nothing here allocates, copies or waits. Element types: float16 ("half") and float. */
#ifndef LW_CUDA_KERNELS_H
#define LW_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where a launch goes. overlap: its blocks may take their places while the launch before ends (programmatic dependent
 * launch, sm_90 and newer). */
typedef struct cu_order {
    cudaStream_t stream;
    int32_t overlap;
} cu_order;

/* lw_view with its address. Strides in elements; p is NULL where there is no view. */
typedef struct cu_view {
    void *p;
    int32_t half; /* float16, else float (bytes and words are known to their kernels) */
    int32_t g, n, h, w, c;
    int64_t sg, sn, sh, sw;
} cu_view;

/* As lw_act. */
enum { CU_ACT_NONE, CU_ACT_SILU, CU_ACT_GELU, CU_ACT_QUICK_GELU, CU_ACT_GEGLU };

/* y = residual + scale[g,n] * act(x + bias + addend[g,n]); bias is float [c], or [2c] before GEGLU */
typedef struct cu_epilogue {
    const float *bias;
    cu_view addend;
    int32_t act;
    const float *scale;
    int64_t scale_sg, scale_sn;
    cu_view residual;
} cu_epilogue;

/* ---- norms and prologues (norm.cu) */

/* out [g,n,1,parts,2c] float: means, then sums of squared deviations, of each part of rows_per_part rows */
typedef struct cu_stats_args {
    cu_view in, out;
    int32_t rows_per_part;
} cu_stats_args;
cudaError_t cu_norm_stats(cu_order order, const cu_stats_args *args);

enum { CU_NORM_NONE, CU_NORM_GROUP, CU_NORM_LAYER };

/* out = up2(act(norm(cat(a, b)))) */
typedef struct cu_apply_args {
    cu_view a, b, out;
    int32_t norm, act, up2;
    int32_t groups, rows_per_part;
    float eps;
    cu_view stats_a, stats_b; /* as cu_stats_args.out */
    const float *gamma, *beta;
} cu_apply_args;
enum { CU_MAX_MEMBERS = 4 }; /* of one launch: products or norms of the same sizes and strides */

enum { CU_LAYER_CHANNELS = 8192 }; /* the most of a layer norm: a row is in shared memory */

/* args[0..n) in one launch; n is 1 but for layer norms */
cudaError_t cu_apply(cu_order order, const cu_apply_args *args, int32_t n);

/* cu_apply of group norms without up2, args[0..n) in one launch, which makes the statistics itself: stats_a and stats_b
 * are not read (group_norm.cu; sm_90). Where cu_group_norm_fits, which reads sizes alone. */
bool cu_group_norm_fits(const cu_apply_args *args, int32_t n);
cudaError_t cu_group_norm(cu_order order, const cu_apply_args *args, int32_t n);

/* The parts of cu_group_norm, for who compares layouts: the default one (false: does not fit), and a launch of any. */
typedef struct cu_group_norm_layout {
    int32_t slab;    /* vectors of 8 channels of a block: whole groups */
    int32_t splits;  /* blocks that share a slab's rows: 1, 2, 4 or 8 */
    int32_t threads; /* of a block, at most */
} cu_group_norm_layout;
bool cu_group_norm_lay_out(const cu_apply_args *args, int32_t n, cu_group_norm_layout *layout);
cudaError_t cu_group_norm_with(cu_order order, const cu_apply_args *args, int32_t n,
                               const cu_group_norm_layout *layout);

/* ---- epilogues and small ops (pointwise.cu) */

/* out = epilogue(sum of `splits` tensors at in + i * split_stride); in may be out where splits is 1 */
typedef struct cu_combine_args {
    cu_view in, out;
    int32_t splits;
    int64_t split_stride; /* elements */
    cu_epilogue epi;
} cu_combine_args;
cudaError_t cu_combine(cu_order order, const cu_combine_args *args);

/* tokens [n_tokens][c], positions [w][c], of the dtype of out; an id outside the vocabulary gives NaN */
typedef struct cu_embed_tokens_args {
    cu_view ids, out;
    const void *tokens, *positions;
    int32_t n_tokens;
} cu_embed_tokens_args;
cudaError_t cu_embed_tokens(cu_order order, const cu_embed_tokens_args *args);
cudaError_t cu_embed_time(cu_order order, cu_view t, cu_view out);
cudaError_t cu_pack_u8(cu_order order, cu_view in, cu_view out, int32_t *status);
cudaError_t cu_unpack_u8(cu_order order, cu_view in, cu_view out);

/* lw_advance_args with addresses; rows points to lw_row's words */
typedef struct cu_advance_args {
    cu_view eps, net_in;
    float *x, *h1, *h2, *y; /* dense [n,h,w,8], as noise [k,n,h,w,8] */
    const void *rows;
    const float *noise;
    const float *addend_table, *scale_table;
    float *addends, *scales;
    int32_t n_addends, n_scales;
    int64_t addend_stride, scale_stride;
    int32_t *status;
} cu_advance_args;
cudaError_t cu_advance(cu_order order, const cu_advance_args *args);

/* ---- attention (attention.cu) */

typedef struct cu_attention_args {
    cu_view q, k, v, out;
    int32_t heads;
    float scale;
    int32_t causal;
} cu_attention_args;
enum { CU_ATTENTION_MAX_D = 160 };
/* half only, d a multiple of 8 up to CU_ATTENTION_MAX_D */
cudaError_t cu_attention(cu_order order, const cu_attention_args *args);

/* p[row][0..n) = softmax(scale * s[row][0..n)), zero up to stride; query i sees keys 0..i where causal */
typedef struct cu_softmax_args {
    const float *s;
    void *p;
    int32_t half, rows, n, stride, queries, causal; /* row r is query r % queries */
    float scale;
} cu_softmax_args;
cudaError_t cu_softmax(cu_order order, const cu_softmax_args *args);

/* ---- products (product.cu): implicit matrix product over a window, weights [n_rows][kh][kw][c] */

typedef struct cu_product_args {
    cu_view in, out; /* out.c is half of n_rows for GEGLU */
    const void *weights;
    int32_t n_rows, kh, kw, stride, pad_top, pad_left;
    float *row_stats; /* wgmma.cu alone, NULL: not wanted; written for dense out, no activation,
                         tiles of whole parts (CU_ROW_PART) */
    /* wgmma.cu and turns.cu alone, NULL: none. Of a linear whose weights and bias hold a layer norm (lw_param_fold):
     * the input's row statistics, as in lw_product_args, dense: each row's sums are divided by its deviation. */
    const float *stats;
    float eps;
    bool pairs; /* wgmma.cu alone: two tiles of pixels share the copies of weights, where they can (cu_can_pair) */
    /* wgmma.cu alone, shortcut_weights NULL: none. A 1x1 product of cat(shortcut_a, shortcut_b), as large as the
     * output, that is added to the sum: weights [n_rows][c of both], its bias or NULL; epi has no act and no scale
     * then. */
    cu_view shortcut_a, shortcut_b;
    const void *shortcut_weights;
    const float *shortcut_bias;
    cu_epilogue epi;
    int32_t tile;    /* CU_TILE_… */
    int32_t splits;  /* of the sum; over 1: */
    float *partials; /* [splits][rows][n_rows] sums, and a second launch that finishes them */
} cu_product_args;
enum { CU_TILE_64, CU_TILE_128, CU_TILE_F32, CU_N_TILES };
enum { CU_PRODUCT_STEP = 64 }; /* values of the sum in one pipeline step of the half kernels */
cudaError_t cu_product(cu_order order, const cu_product_args *args);

/* ---- products on Hopper (wgmma.cu): half only, out.c is half of n_rows for GEGLU, splits 1, 2, 4 or 8, but 1 for
 * GEGLU */

/* X(index, rows, columns, blocks a multiprocessor); 64 rows are a group of four warps. */
#define CU_WGMMA_TILES(X)                                                                                              \
    X(0, 64, 64, 2)                                                                                                    \
    X(1, 64, 96, 1)                                                                                                    \
    X(2, 64, 128, 2)                                                                                                   \
    X(3, 128, 96, 1)                                                                                                   \
    X(4, 128, 128, 1)                                                                                                  \
    X(5, 128, 160, 1)                                                                                                  \
    X(6, 128, 256, 1)                                                                                                  \
    X(7, 192, 96, 1)                                                                                                   \
    X(8, 192, 128, 1)                                                                                                  \
    X(9, 192, 160, 1)
enum { CU_N_WGMMA_TILES = 10, CU_WGMMA_MAX_SPLITS = 8 };

/* Where cu_turns_fit (tiles.h), also these, by blocks that stay and take tile after tile (turns.cu): splits 1, no
 * pairs. X(index, rows, columns) */
#define CU_TURNS_TILES(X)                                                                                              \
    X(10, 128, 128)                                                                                                    \
    X(11, 128, 160)
enum { CU_N_TURNS_TILES = 2, CU_N_PRODUCT_TILES = CU_N_WGMMA_TILES + CU_N_TURNS_TILES };

/* args[0..n): products of the same sizes, in one launch; tile, splits and pairs of the first. encode_map: the driver's
 * cuTensorMapEncodeTiled */
cudaError_t cu_wgmma(cu_order order, const cu_product_args *args, int32_t n, void *encode_map);

/* The same for CU_TURNS_TILES alone; cu_wgmma calls it. */
cudaError_t cu_turns(cu_order order, const cu_product_args *args, int32_t n, void *encode_map);

/* half only, head width 40, 80 or 160, not causal: args[0..n) of the same sizes, in one launch (wgmma_attention.cu) */
cudaError_t cu_wgmma_attention(cu_order order, const cu_attention_args *args, int32_t n, int32_t n_sm,
                               void *encode_map);

/* Whether this build has kernels for the current device. */
cudaError_t cu_probe(void);

#ifdef __cplusplus
}
#endif
#endif
