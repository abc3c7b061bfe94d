/* SPDX-License-Identifier: MIT
 * What all tactics read: weights in their one form, vectors, epilogues with addresses; and what views kernels can walk.
 */
#include "cuda/device.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/pass.h"

void cu_release(void *state) { lw_free(state); }

bool cu_members_fit(const lw_params *params, const lw_op *op) {
    lw_op first = {.kind = op->kind, .n_member = 1, .name = op->name, .m = op->m}, other = first;
    if (op->n_member > CU_MAX_MEMBERS) return false;
    for (int32_t i = 1; i < op->n_member; i++) {
        other.m = &op->m[i];
        if (!lw_ops_alike(params, &first, &other)) return false;
    }
    return true;
}

bool cu_is_vectors(const lw_view *v) {
    int64_t unit = 16 / (int64_t)lw_dtype_bytes(v->dtype);
    return v->c % 8 == 0 && v->off % 16 == 0 && v->sw % unit == 0 && v->sh % unit == 0 && v->sn % unit == 0 &&
           v->sg % unit == 0;
}

bool cu_rows_uniform(const lw_view *v) {
    return v->sw != 0 && (v->h == 1 || v->sh == v->w * v->sw) && (v->n == 1 || v->sn == v->h * v->w * v->sw) &&
           (v->g == 1 || v->sg == (int64_t)v->n * v->h * v->w * v->sw);
}

/* ---- matrices: [O][I][kh][kw] to [O][kh][kw][I]. A window's values lie together in the file and apart in the pack:
 * they are rounded as they lie, which takes vectors, and then spread. */

static lw_status fill_half(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    enum { TILE = 2048 };
    uint16_t *to = dst, rounded[TILE];
    int64_t window = d[2] * d[3], row = d[1] * window;
    if (window == 1) return lw_to_f16(logical, to, (size_t)(d[0] * row)), LW_OK;
    for (int64_t o = 0; o < d[0]; o++, logical += row, to += row)
        for (int64_t at = 0, i = 0, k = 0; at < row; at += TILE) {
            int64_t n = row - at < TILE ? row - at : TILE;
            lw_to_f16(logical + at, rounded, (size_t)n);
            for (int64_t j = 0; j < n; j++) {
                to[k * d[1] + i] = rounded[j];
                if (++k == window) k = 0, i++;
            }
        }
    return LW_OK;
}

static lw_status fill_float(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    float *to = dst;
    int64_t window = d[2] * d[3];
    for (int64_t o = 0; o < d[0]; o++, to += d[1] * window)
        for (int64_t i = 0; i < d[1]; i++)
            for (int64_t k = 0; k < window; k++) to[k * d[1] + i] = *logical++;
    return LW_OK;
}

lw_status cu_want_matrix(lw_params *params, lw_param p, lw_dtype dtype, int32_t *index, lw_error *err) {
    int64_t d[4];
    lw_param_dims(params, p, d);
    bool half = dtype == LW_F16;
    lw_form form = {.bytes = (size_t)(d[0] * d[1] * d[2] * d[3]) * lw_dtype_bytes(dtype),
                    .by_rows = true,
                    .fill = half ? fill_half : fill_float};
    snprintf(form.key, sizeof form.key, half ? "okki_f16" : "okki_f32");
    return lw_pack_request(params, p, &form, index, err);
}

/* ---- a matrix with a layer norm in it */

static double sum_of_halves(const uint16_t *of, size_t n) {
    enum { TILE = 512 };
    float values[TILE];
    double sum = 0;
    for (size_t at = 0; at < n; at += TILE) {
        const size_t count = n - at < TILE ? n - at : TILE;
        lw_to_f32(LW_F16, of + at, values, count);
        for (size_t i = 0; i < count; i++) sum += (double)values[i];
    }
    return sum;
}

/* A row sums up to 0, and its halves should: what they sum up to is multiplied by the mean of what is normed. So some
 * of those that were rounded to the side of the sum are rounded to the other one, the nearly even first, until next to
 * nothing is left of it. */
static void round_to_no_sum(const float *from, uint16_t *to, size_t n) {
    lw_to_f16(from, to, n);
    double sum = sum_of_halves(to, n);
    const double little = fabs(sum) / 128;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n && fabs(sum) > little; i++) {
            const bool up = sum < 0, away = up == !(to[i] >> 15);
            if (!(to[i] & 0x7fff) || (to[i] & 0x7fff) >= 0x7bff) continue; /* 0 and the largest stay */
            const uint16_t other = (uint16_t)(away ? to[i] + 1 : to[i] - 1);
            const double now = (double)lw_f16_to_f32(to[i]), step = (double)lw_f16_to_f32(other) - now,
                         share = ((double)from[i] - now) / step; /* of the step: over 0 on the other side */
            if (share < (pass ? 0 : 0.25) || fabs(sum + step) >= fabs(sum)) continue;
            sum += step;
            to[i] = other;
        }
}

/* Rows of a folded parameter (lw_param_fold), without the offset behind each. */
static lw_status fill_folded(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    const size_t columns = (size_t)d[1] - 1;
    uint16_t *to = dst;
    (void)user, (void)err;
    for (int64_t r = 0; r < d[0]; r++, logical += columns + 1, to += columns) round_to_no_sum(logical, to, columns);
    return LW_OK;
}

/* The offset of each row. */
static lw_status fill_offsets(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    float *to = dst;
    (void)user, (void)err;
    for (int64_t r = 0; r < d[0]; r++) to[r] = logical[(r + 1) * d[1] - 1];
    return LW_OK;
}

lw_status cu_want_folded(lw_params *params, lw_param w, lw_param bias, const lw_norm *norm, int32_t *matrix,
                         int32_t *offsets, lw_error *err) {
    lw_param folded;
    int64_t d[4];
    LW_TRY(lw_param_fold(params, w, bias, norm->gamma, norm->beta, &folded, err));
    lw_param_dims(params, folded, d);
    const lw_form rows = {.key = "folded_f16",
                          .bytes = (size_t)(d[0] * (d[1] - 1)) * sizeof(uint16_t),
                          .by_rows = true,
                          .fill = fill_folded},
                  behind = {.key = "folded_offsets",
                            .bytes = (size_t)d[0] * sizeof(float),
                            .by_rows = true,
                            .fill = fill_offsets};
    LW_TRY(lw_pack_request(params, folded, &rows, matrix, err));
    return lw_pack_request(params, folded, &behind, offsets, err);
}

lw_status cu_want_vector(lw_params *params, lw_param p, int32_t *index, lw_error *err) {
    *index = -1;
    return lw_param_is(p) ? lw_pack_plain(params, p, index, err) : LW_OK;
}

/* ---- epilogues */

cu_epilogue cu_epilogue_at(const lw_params *params, const lw_run *run, const lw_epilogue *epi, int32_t bias) {
    return (cu_epilogue){.bias = lw_pack_data(params, bias),
                         .addend = cu_view_at(run, epi->addend),
                         .act = (int32_t)epi->act, /* the same order in both lists */
                         .scale = lw_at(run, epi->scale),
                         .scale_sg = epi->scale.g == 1 ? 0 : epi->scale.sg,
                         .scale_sn = epi->scale.n == 1 ? 0 : epi->scale.sn,
                         .residual = cu_view_at(run, epi->residual)};
}

_Static_assert((int)LW_ACT_NONE == CU_ACT_NONE && (int)LW_ACT_SILU == CU_ACT_SILU && (int)LW_ACT_GELU == CU_ACT_GELU &&
                   (int)LW_ACT_QUICK_GELU == CU_ACT_QUICK_GELU && (int)LW_ACT_GEGLU == CU_ACT_GEGLU,
               "activations are numbered alike");

bool cu_epilogue_fits(const lw_epilogue *epi) {
    if (lw_view_is(epi->addend) && !(cu_is_float(&epi->addend) && cu_is_vectors(&epi->addend))) return false;
    if (lw_view_is(epi->residual) && !(cu_is_float(&epi->residual) && cu_is_vectors(&epi->residual))) return false;
    return !lw_view_is(epi->scale) || epi->scale.dtype == LW_F32;
}
