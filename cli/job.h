/* SPDX-License-Identifier: MIT
 * job: one generation, from named files to written pictures. generate.c fills it from flags, demo.c by itself. */
#ifndef CLI_JOB_H
#define CLI_JOB_H

#include "cli.h"

typedef struct cli_control {
    const char *net;   /* NULL: the model's own */
    const char *image; /* a ready map; NULL: the edges of the job's picture */
    double strength, start, end;
    lw_image map;
    char sha256[65];
} cli_control;

typedef struct cli_job {
    /* What is asked for; texts are borrowed. request's image, controls and callbacks are the job's to fill. */
    lw_engine_params engine;
    lw_request request;
    const char *image; /* NULL: every control has its own map */
    cli_control *controls;
    size_t n_controls;
    const char *output, *save_control, *save_latents, *init_latents, *preview;
    const lw_infotext *replay; /* the picture that the parameters came from, or NULL */
    bool json, dry_run, stage_times, default_model;
    cli_volume volume;

    /* What is made on the way; cli_job_free frees it. */
    char *cache_dir;
    lw_engine *lw;
    lw_session *session;
    lw_engine_info info;
    lw_image picture;
    char picture_sha256[65], latents_sha256[65], model_sha256[65];
    lw_control *request_controls;
    void *latents; /* the file, whose numbers the request borrows */
    lw_plan_info plan;
    lw_result result;
    char **outputs; /* request.samples names */
    cli_progress progress;
    int32_t step, n_steps; /* done so far, for the message of a cancel */
    bool preview_failed;
    double encode_ms, total_ms;
} cli_job;

void cli_job_init(cli_job *job, cli_volume volume);
void cli_job_free(cli_job *job);

/* Fills device and device_index from "auto", "cpu", "cuda", "cuda:N". */
lw_status cli_job_set_device(cli_job *job, const char *text, lw_error *err);

/* Everything but telling of it: outputs checked, inputs read, engine opened; with dry_run planned, else computed and
 * written. */
lw_status cli_job_run(cli_job *job, lw_error *err);

/* Prints the result (or the plan) as text or JSON. */
lw_status cli_job_tell(const cli_job *job, lw_error *err);

#endif
