/* SPDX-License-Identifier: MIT
 * A request resolved against an engine: every range checked, sizes and steps known, nothing computed yet. */
#ifndef LW_REQUEST_H
#define LW_REQUEST_H

#include "pipe/schedule.h"
#include "pipe/session.h"

typedef struct lw_job {
    int32_t width, height; /* of the pictures */
    int32_t n;             /* samples */
    int32_t g;             /* guidance passes: 1 where the scale is exactly 1 */
    int32_t clip_skip;
    int32_t n_controls;
    lw_control controls[LW_MAX_CONTROLS];
    lw_control_mode mode;
    const char *added, *negative;
    lw_schedule schedule;
    bool *reuse; /* by row: no network runs, the last eps is used again; NULL: no such row */
} lw_job;

/* Control k of a request that has it: an array's elements may be of a later header's size. */
const lw_control *lw_request_control(const lw_request *request, uint32_t k);

/* Freed with lw_job_free, also after a failure. */
lw_status lw_job_resolve(lw_job *job, const lw_engine *engine, const lw_request *request, lw_error *err);
void lw_job_free(lw_job *job);

/* The picture that gives edges or is the map of control k, at the job's size, as 3 channels; canny: whether it was made
 * from the request's image. */
lw_status lw_job_map(const lw_job *job, const lw_request *request, int32_t k, lw_image *out, lw_error *err);

#endif
