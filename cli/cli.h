/* SPDX-License-Identifier: MIT
 * cli: what the commands share. The program knows the library through linework.h alone. Every function that can fail
 * returns lw_status and leaves one sentence in *err; main.c turns the two into the exit code and the line on standard
 * error. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "linework.h"
#include "tables.h"

/* ---- the commands; each owns nothing afterwards and has printed what it has to say on success */
lw_status cmd_generate(const opt_parsed *options, lw_error *err);
lw_status cmd_canny(const opt_parsed *options, lw_error *err);
lw_status cmd_info(const opt_parsed *options, lw_error *err);
lw_status cmd_tokenize(const opt_parsed *options, lw_error *err);
lw_status cmd_demo(const opt_parsed *options, lw_error *err);
lw_status cmd_tune(const opt_parsed *options, lw_error *err);
lw_status cmd_make_model(const opt_parsed *options, lw_error *err);
lw_status cmd_convert(const opt_parsed *options, lw_error *err);
lw_status cmd_doctor(const opt_parsed *options, lw_error *err);
lw_status cmd_fetch_vocab(const opt_parsed *options, lw_error *err);

/* ---- common.c: failing, saying */
lw_status cli_fail(lw_error *err, lw_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#ifdef LW_ANALYZE /* as for lw_fail */
#define cli_fail(err, code, ...) ((void)cli_fail(err, code, __VA_ARGS__), (code))
#endif
lw_status cli_no_memory(lw_error *err);
char *cli_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* NULL: no memory; free() */

/* "linework: note: ..." on standard error. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether the flags say -q, -v or neither: the last given counts. */
typedef enum cli_volume { CLI_QUIET = -1, CLI_NORMAL = 0, CLI_VERBOSE = 1 } cli_volume;
cli_volume cli_volume_of(const opt_parsed *options);

/* LW_LOG_NOTE and worse as notes; user is a cli_volume *. */
void cli_log(void *user, lw_log_level level, const char *text);

/* Writes a line of JSON, or text as it is, to standard output and flushes it. LW_EOUTPUT. */
lw_status cli_print_json(const json_t *json, lw_error *err);
lw_status cli_print(const char *text, lw_error *err);
lw_status cli_print_bytes(const void *bytes, size_t n_bytes, lw_error *err);

double cli_now_ms(void); /* monotonic */

/* ---- files.c */

/* The whole file ("-": standard input) in memory, freed with free(). code is what failing is called: LW_EINPUT... */
lw_status cli_read_file(const char *path, lw_status code, void **bytes, size_t *n_bytes, lw_error *err);

/* Reads and decodes a picture; sha256 (may be NULL) gets the hex digits of the file's hash, or "" in a build without
 * libmd. */
lw_status cli_read_picture(const char *path, lw_image *out, lw_fields *fields, char sha256[65], lw_error *err);

/* Whether path can be written, asked before the work starts: LW_EOUTPUT. Of a picture also whether its extension names
 * a format of this build (devices and FIFOs are written as PNG): LW_EINVAL. "-" is fine. */
lw_status cli_check_output(const char *path, lw_error *err);
lw_status cli_check_picture_output(const char *path, lw_error *err);

/* Encodes by path's extension and writes whole or not at all; "-" is standard output. */
lw_status cli_write_picture(const char *path, const lw_image *image, const lw_fields *fields, lw_error *err);

/* ${XDG_CACHE_HOME:-~/.cache}/linework, or NULL where neither is known. Made with cli_make_cache_dir. */
char *cli_cache_dir(void);
void cli_make_cache_dir(const char *dir);

/* lw_file_sha256 with the cache's folder made; "" also where it fails. cache_dir may be NULL. */
void cli_file_hash(const char *path, const char *cache_dir, uint64_t max_bytes, char out[65]);

/* A file of the embedded model's folder (models/demo), or NULL with *err where there is none. free(). */
char *cli_demo_file(const char *name, lw_error *err);

/* ---- npy.c: float32, little-endian, C order, four axes */
lw_status cli_npy_parse(const void *bytes, size_t n_bytes, const char *name, int64_t shape[4], const float **data,
                        lw_error *err);
/* *bytes is freed with free(). */
lw_status cli_npy_make(const float *data, const int64_t shape[4], void **bytes, size_t *n_bytes, lw_error *err);

/* ---- progress.c */
typedef struct cli_progress {
    cli_volume volume;
    bool stage_times; /* a line for each stage, kept on the screen */
    bool terminal, colour;
    lw_stage stage;
    bool begun;
    double stage_ms, steps_ms, said_ms; /* when stage and rate began, and when a line was last said */
    int32_t first_step;
} cli_progress;

void cli_progress_init(cli_progress *progress, cli_volume volume, bool stage_times);
/* An lw_progress_fn: shows, and returns non-zero once a signal asked to stop. */
int cli_progress_show(cli_progress *progress, lw_stage stage, int32_t step, int32_t n_steps);
void cli_progress_end(cli_progress *progress); /* takes the bar away; done once before any other line */

/* Progress of a model file that is read or written: on a terminal alone. */
typedef struct cli_bytes {
    const char *what; /* borrowed */
    bool terminal, shown;
    double said_ms;
    uint64_t total; /* as last told */
} cli_bytes;

void cli_bytes_init(cli_bytes *progress, cli_volume volume, const char *what);
int cli_bytes_show(void *progress, uint64_t done, uint64_t total); /* an lw_bytes_fn */
void cli_bytes_end(cli_bytes *progress);

/* SIGINT and SIGTERM set a flag; a second one kills. SIGPIPE and SIGXFSZ become errors of the write. */
void cli_catch_signals(void);
bool cli_interrupted(void);
/* Holds the signals back while a file is written and renamed. */
void cli_hold_signals(bool hold);

#endif
