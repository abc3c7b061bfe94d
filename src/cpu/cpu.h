/* SPDX-License-Identifier: MIT
 * cpu: the backend for any CPU. Own loops, oneDNN for windows of few channels where it is built in, the references
 * under all of it. Knows ops; must not know networks. */
#ifndef LW_CPU_H
#define LW_CPU_H

#include "ops/backend.h"

typedef struct lw_cpu_params {
    int32_t threads;        /* 0: as many as there are processors */
    lw_precision precision; /* AUTO: FP32 */
    bool references_only;   /* for tests and checks */
} lw_cpu_params;

/* LW_EINVAL: a precision this CPU or build can't run. */
lw_status lw_cpu_open(lw_backend **out, const lw_cpu_params *params, lw_error *err);

/* Names of the features in use, "avx2 avx512f …"; at most n bytes. */
void lw_cpu_features(char *text, size_t n);

/* Lots of `each` that n is cut into. */
static inline int32_t lw_parts(int32_t n, int32_t each) { return (n + each - 1) / each; }

/* Tactics of each file, NULL-terminated, by preference. Our own are fp32, AVX2 and AVX-512 by dispatch. */
extern const lw_tactic *const lw_cpu_bf16_tactics[];    /* first where products are of bf16 */
extern const lw_tactic *const lw_cpu_small_tactics[];   /* norms, apply, combine, attention */
extern const lw_tactic *const lw_cpu_product_tactics[]; /* linear, 1x1 and 3x3 convolution */
extern const lw_tactic *const lw_cpu_last_tactics[];    /* where oneDNN is better, or is not there */
extern const lw_tactic lw_cpu_attention_bf16;
#ifdef LW_HAVE_ONEDNN
extern const lw_tactic *const lw_cpu_onednn_tactics[];
const char *lw_cpu_onednn_version(void);
#endif

#endif
