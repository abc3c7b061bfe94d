/* SPDX-License-Identifier: MIT
 * Tuning: which tactic an op is given where several can run it, found by timing them. What was found is a table
 * {signature of the op -> tactic} that plan making asks before it goes by the backend's order. No job tunes by itself.
 * Knows no file: pipe keeps the table between runs. */
#ifndef LW_TUNE_H
#define LW_TUNE_H

#include "ops/backend.h"

/* What an op is, but for its names, addresses and weights: kind, sizes and strides of every view, fields present,
 * types, and whatever else a tactic's time depends on. Two ops of one signature get the same tactic. */
uint64_t lw_op_signature(const lw_params *params, const lw_op *op);

/* The op in words for people: "conv2d 2x32x48x320 -> 320, 3x3". */
enum { LW_OP_TEXT = 96 };
void lw_op_describe(const lw_op *op, char text[LW_OP_TEXT]);

enum { LW_TACTIC_NAME = 48 };
#define LW_APART "apart" /* in place of a tactic: each member is an op of its own, chosen as one */
typedef struct lw_choice {
    uint64_t signature;
    char tactic[LW_TACTIC_NAME];
    double us; /* of one run, with the plain ops that the tactic leaves over */
    char op[LW_OP_TEXT];
} lw_choice;

/* ---- the table; safe to share between threads */
lw_choices *lw_choices_new(void); /* NULL: no memory */
void lw_choices_free(lw_choices *choices);
/* Replaces the choice of the same signature. LW_ENOMEM. */
lw_status lw_choices_put(lw_choices *choices, const lw_choice *choice, lw_error *err);
bool lw_choices_get(const lw_choices *choices, uint64_t signature, lw_choice *out); /* choices may be NULL */
int32_t lw_choices_count(const lw_choices *choices);
/* In the order they were first put. */
bool lw_choices_at(const lw_choices *choices, int32_t i, lw_choice *out);

/* ---- timing */

typedef struct lw_tune_time {
    const char *tactic;
    double us;
} lw_tune_time;

typedef struct lw_tune_op {
    const lw_op *op;
    lw_cost cost;
    const lw_tune_time *times; /* of every tactic, by the backend's preference; gone after the call */
    int32_t n_times;
    lw_choice choice;
    const char *heuristic; /* what the backend's order gives, and its time */
    double heuristic_us;
    int32_t uses;     /* ops of this signature in the programs; 0: only members of ops of several */
    int32_t index, n; /* done so far with this one, of all */
} lw_tune_op;

typedef struct lw_tune_hooks {
    double budget_ms; /* for timing one tactic of one op; what is begun is finished. 0: a default */
    /* After each op; non-zero return stops with LW_ECANCEL. May be NULL. */
    int (*tuned)(void *user, const lw_tune_op *op);
    void *user;
} lw_tune_hooks;

/* Times every op of the recorded programs that more than one tactic can run (the references not counted, which are
 * never the fastest) and puts the choices into the table. Weights are numbers of its own: the model's are not read and
 * nothing is packed into the programs' params. Memory: some weights, inputs and outputs of one op at a time. */
lw_status lw_tune(lw_choices *choices, lw_backend *backend, const lw_program *const *programs, int32_t n_programs,
                  const lw_tune_hooks *hooks, lw_error *err);

#endif
