/* SPDX-License-Identifier: MIT
 * schedule: samplers as tables (ARCHITECTURE.md, "Samplers are tables"). Pure host arithmetic; knows no networks and no
 * device. */
#ifndef LW_SCHEDULE_H
#define LW_SCHEDULE_H

#include "base/base.h"
#include "ops/row.h"

typedef struct lw_schedule_params {
    lw_sampler sampler;
    lw_scheduler scheduler;
    int32_t steps; /* asked for */
    double eta;    /* DDIM only */
} lw_schedule_params;

typedef struct lw_schedule {
    int32_t n_rows;    /* evaluations of the networks, in order of running */
    lw_row *rows;      /* coefficients filled; guidance, variant and control scales are the session's */
    double *timesteps; /* n_rows, given to the time embedding (karras: not whole numbers) */
    float init_scale;  /* the first x (variance preserving) = init_scale * noise */
    int32_t n_noise;   /* noise tensors used after the first draw */
} lw_schedule;

/* The alphas_cumprod of SD1.x: beta_i = linspace(sqrt(0.00085), sqrt(0.012), 1000)^2 in double, cumprod in double,
 * stored as float. */
void lw_alphas_cumprod(float out[1000]);

/* LW_EINVAL where the reference's spacing fails. Freed with lw_schedule_free. */
lw_status lw_schedule_make(lw_schedule *out, const lw_schedule_params *params, lw_error *err);
void lw_schedule_free(lw_schedule *schedule);

#endif
