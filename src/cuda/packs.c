/* SPDX-License-Identifier: MIT
 * What all tactics read: weights in their one form, vectors, epilogues with addresses; and what views kernels can walk.
 */
#include "cuda/device.h"

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

/* ---- matrices: [O][I][kh][kw] to [O][kh][kw][I], rows in parallel */

typedef struct fill_job {
    const float *from;
    void *to;
    int64_t i, window;
    bool half;
} fill_job;

static void fill_rows(void *user, int64_t begin, int64_t end) {
    const fill_job *j = user;
    for (int64_t o = begin; o < end; o++)
        for (int64_t k = 0; k < j->window; k++) {
            const float *from = j->from + o * j->i * j->window + k;
            int64_t to = (o * j->window + k) * j->i;
            if (j->half)
                for (int64_t i = 0; i < j->i; i++) ((uint16_t *)j->to)[to + i] = lw_f32_to_f16(from[i * j->window]);
            else
                for (int64_t i = 0; i < j->i; i++) ((float *)j->to)[to + i] = from[i * j->window];
        }
}

static lw_status fill(const float *logical, const int64_t d[4], void *dst, bool half) {
    fill_job j = {.from = logical, .to = dst, .i = d[1], .window = d[2] * d[3], .half = half};
    lw_pool *pool = d[0] * j.i * j.window > 1 << 20 ? lw_pool_new() : NULL; /* starting threads costs what a small one takes */
    lw_parallel_for(pool, lw_cpu_count(), d[0], 1 + (1 << 16) / (d[1] * j.window + 1), fill_rows, &j);
    lw_pool_free(pool);
    return LW_OK;
}

static lw_status fill_half(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    return fill(logical, d, dst, true);
}

static lw_status fill_float(const void *user, const float *logical, const int64_t d[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    return fill(logical, d, dst, false);
}

lw_status cu_want_matrix(lw_params *params, lw_param p, lw_dtype dtype, int32_t *index, lw_error *err) {
    int64_t d[4];
    lw_param_dims(params, p, d);
    bool half = dtype == LW_F16;
    lw_form form = {.bytes = (size_t)(d[0] * d[1] * d[2] * d[3]) * lw_dtype_bytes(dtype),
                    .fill = half ? fill_half : fill_float};
    snprintf(form.key, sizeof form.key, half ? "okki_f16" : "okki_f32");
    return lw_pack_request(params, p, &form, index, err);
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
