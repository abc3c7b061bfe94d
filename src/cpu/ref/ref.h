/* SPDX-License-Identifier: MIT
 * The plain references: one tactic an op, every field taken, double accumulation, any dtype and stride. Together they
 * are a complete, slow backend; checks compare fast tactics with them. Written to be read, not to be fast. */
#ifndef LW_REF_H
#define LW_REF_H

#include "ops/backend.h"

#define X(kind, name) extern const lw_tactic lw_ref_##name;
LW_OPS(X)
#undef X

/* ---- shared by the reference files */

static inline double ref_load(const void *p, lw_dtype dtype, int64_t i) {
    switch (dtype) {
    case LW_F16: return lw_f16_to_f32(((const uint16_t *)p)[i]);
    case LW_BF16: return lw_bf16_to_f32(((const uint16_t *)p)[i]);
    case LW_U8: return ((const uint8_t *)p)[i];
    case LW_I32: return ((const int32_t *)p)[i];
    default: return (double)((const float *)p)[i];
    }
}

static inline void ref_store(void *p, lw_dtype dtype, int64_t i, double v) {
    switch (dtype) {
    case LW_F16: ((uint16_t *)p)[i] = lw_f32_to_f16((float)v); break;
    case LW_BF16: ((uint16_t *)p)[i] = lw_f32_to_bf16((float)v); break;
    case LW_U8: ((uint8_t *)p)[i] = (uint8_t)v; break;
    case LW_I32: ((int32_t *)p)[i] = (int32_t)v; break;
    default: ((float *)p)[i] = (float)v; break;
    }
}

double ref_act(lw_act act, double x); /* all but GEGLU */
bool ref_supports(const lw_backend *backend, const lw_params *params, const lw_op *op);
void ref_release(void *state);
lw_status ref_no_state(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                       lw_error *err);

#endif
