/* SPDX-License-Identifier: MIT
 * linework-bench: measures what the library does on this machine. Unlike the command it sees the library's inside:
 * plans op by op, and models of SD1.5's shape with random weights, so that no download is needed. */
#ifndef LW_BENCH_H
#define LW_BENCH_H

#include "nets/model.h"
#include "ops/backend.h"
#include "ops/pass.h"
#include "ops/tune.h"

/* ---- models (sd15.c) */

/* A sparse file in memory with the header of an SD1.5 + ControlNet checkpoint; its path is written to path. The file
 * descriptor, or -1 with *err filled. */
int bench_sd15_file(char path[64], lw_error *err);
/* The tensors of model, their values drawn from their names: uniform with variance 1 / inputs, norms 1 and 0. */
lw_tensor_source bench_random_source(lw_model *model);

/* ---- what every command is told (main.c) */

typedef struct bench_shape {
    int32_t width, height, samples, steps;
    bool guidance; /* two passes */
    bool unzipped; /* ops of the step that do not wait for each other stay apart */
    bool bare;     /* a step leaves in x what the networks predict */
} bench_shape;

typedef struct bench_options {
    const char *command, *model, *device, *program, *write, *compare, *choices;
    bench_shape shape;
    lw_precision precision;
    int32_t repeat, threads;
    bool tune, no_overlap, processor_time;
    const char *without, *vocab;
    double most, budget; /* relative L2 of outputs; milliseconds of tuning for a tactic of an op */
    double tflops, gbs;  /* ceilings of the roofline */
} bench_options;

lw_status bench_open_backend(lw_backend **out, const bench_options *o, lw_precision precision, lw_error *err);
double bench_median(double *v, int32_t n); /* sorts v */

/* ---- ladder.c */
lw_status bench_ladder(const bench_options *o, lw_error *err);

/* ---- a job without pictures (job.c): all programs of one shape, planned and bound to memory of random inputs */

enum { BENCH_TEXT, BENCH_HINT, BENCH_TIME, BENCH_BEGIN, BENCH_STEP, BENCH_DECODE, BENCH_N_PROGRAMS };
extern const char *const bench_programs[BENCH_N_PROGRAMS];

enum { BENCH_MAX_BUFFERS = 64 };
typedef struct bench_job {
    bench_shape shape;
    lw_backend *backend; /* owned */
    lw_model model;
    int file; /* of a random model, else -1 */
    lw_params *params;
    lw_program *programs[BENCH_N_PROGRAMS];
    lw_plan *plans[BENCH_N_PROGRAMS];
    struct {
        const char *name;
        void *at;
    } buffers[BENCH_MAX_BUFFERS];
    int32_t n_buffers;
    void *temp;
    uint64_t device_bytes, free_bytes; /* planned; of the device before anything was, 0: it has no memory of its own */
    double tune_ms, plan_ms, pack_ms,
        bind_ms;         /* plan: with the model's file; bind: with the first runs but the step's */
    lw_choices *choices; /* owned; of tuning, or those that were given; may be NULL */
} bench_job;

/* path NULL: SD1.5's shape with random weights. programs: a bit for each that is wanted; weights of no other are
 * packed. tune: the plans' tactics are timed first; NULL: not. Takes over backend. Closed also after a failure. */
enum { BENCH_ALL = (1 << BENCH_N_PROGRAMS) - 1 };
lw_status bench_job_open(bench_job *job, lw_backend *backend, const char *path, const bench_shape *shape,
                         uint32_t programs, lw_choices *choices, const lw_tune_hooks *tune, lw_error *err);
void bench_job_close(bench_job *job);
/* Where an extern buffer of the programs is; NULL: there is none of that name. */
void *bench_job_buffer(const bench_job *job, const char *name);
/* Puts the state before the first step. */
lw_status bench_job_reset(bench_job *job, lw_error *err);
/* Draws the first latents again, so that the same picture comes out. */
lw_status bench_job_restart(bench_job *job, lw_error *err);
/* FNV-1a of the decoded pictures. Waits for the device. */
lw_status bench_job_hash(bench_job *job, uint64_t *hash, lw_error *err);
/* Runs every program once, the step from random latents, and writes what they give to a file as floats (name, number of
 * values, values), or compares with such a file: relative L2 of each at most `most`. */
lw_status bench_job_outputs(bench_job *job, const char *path, bool compare, double most, lw_error *err);
/* Waits for the device. *finite: no NaN came out. */
lw_status bench_job_finish(bench_job *job, bool *finite, lw_error *err);

#endif
