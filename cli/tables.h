/* SPDX-License-Identifier: MIT
 * tables: every command and flag of the program, once. Parser, help, manual and completion read it. */
#ifndef CLI_TABLES_H
#define CLI_TABLES_H

#include "options.h"

/* Places in the tables. Every command begins with the flags that all of them have. */
enum { ALL_HELP, ALL_VERSION, ALL_JSON, ALL_QUIET, ALL_VERBOSE, N_ALL };

enum {
    GEN_MODEL = N_ALL,
    GEN_CONTROL_NET,
    GEN_VAE,
    GEN_VOCAB,
    GEN_IMAGE,
    GEN_CONTROL_IMAGE,
    GEN_PROMPT,
    GEN_ADDED_PROMPT,
    GEN_NEGATIVE_PROMPT,
    GEN_OUTPUT,
    GEN_RESOLUTION,
    GEN_WIDTH,
    GEN_HEIGHT,
    GEN_SAMPLES,
    GEN_STEPS,
    GEN_CFG_SCALE,
    GEN_CONTROL_STRENGTH,
    GEN_ETA,
    GEN_CONTROL_MODE,
    GEN_GUESS_MODE,
    GEN_CONTROL_START,
    GEN_CONTROL_END,
    GEN_CLIP_SKIP,
    GEN_REUSE_STEPS,
    GEN_SEED,
    GEN_CANNY_LOW,
    GEN_CANNY_HIGH,
    GEN_SAMPLING_METHOD,
    GEN_SCHEDULER,
    GEN_RNG,
    GEN_DEVICE,
    GEN_PRECISION,
    GEN_THREADS,
    GEN_MAX_MEMORY,
    GEN_SAVE_CONTROL,
    GEN_SAVE_LATENTS,
    GEN_INIT_LATENTS,
    GEN_PREVIEW,
    GEN_FROM_IMAGE,
    GEN_DRY_RUN,
    N_GEN
};

enum { CANNY_INPUT = N_ALL, CANNY_OUTPUT, CANNY_LOW, CANNY_HIGH, CANNY_RESOLUTION, CANNY_SAVE_RESIZED, N_CANNY };
enum { INFO_HASH = N_ALL, N_INFO };
enum { TOKENIZE_MODEL = N_ALL, TOKENIZE_VOCAB, N_TOKENIZE };
enum {
    TUNE_MODEL = N_ALL,
    TUNE_CONTROL_NET,
    TUNE_VAE,
    TUNE_VOCAB,
    TUNE_IMAGE,
    TUNE_RESOLUTION,
    TUNE_WIDTH,
    TUNE_HEIGHT,
    TUNE_SAMPLES,
    TUNE_CFG_SCALE,
    TUNE_DEVICE,
    TUNE_PRECISION,
    TUNE_THREADS,
    N_TUNE
};
enum { DEMO_PICTURE = N_ALL, DEMO_PROMPT, DEMO_SEED, DEMO_OUTPUT, DEMO_DEVICE, DEMO_THREADS, N_DEMO };

enum { MAKE_LIKE = N_ALL, MAKE_LAYOUT, MAKE_DTYPE, MAKE_SEED, MAKE_SMALL, N_MAKE };
enum { CONVERT_DTYPE = N_ALL, CONVERT_TRANSFER, CONVERT_COMMUNITY, N_CONVERT };
enum { DOCTOR_CONTROL_NET = N_ALL, DOCTOR_VAE, N_DOCTOR };

extern const opt_command cli_generate, cli_canny, cli_info, cli_tokenize, cli_demo, cli_make_model, cli_convert;
extern const opt_command cli_doctor, cli_tune, cli_fetch_vocab;

/* All commands in the order of the help, and how many. */
extern const opt_command *const cli_commands[];
extern const size_t cli_n_commands;

/* Names that later versions will use; ends with NULL. */
extern const char *const cli_reserved[];

#endif
