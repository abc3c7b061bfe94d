/* SPDX-License-Identifier: MIT
 * Passes: recorded programs rewritten before they are planned. Networks are recorded in one way, the best known; these
 * take an improvement back (for the benchmark's ladder and the tests, pipe/recipe.h) or join what a device can do at
 * once. An error goes to the program. */
#ifndef LW_PASS_H
#define LW_PASS_H

#include "ops/ops.h"

/* An extern becomes a temp: the program makes it and nobody else reads it. Nothing if there is none of that name. */
void lw_pass_keep_inside(lw_program *p, const char *name);
/* The temp that v lies in becomes an extern. */
void lw_pass_give_out(lw_program *p, lw_view v, const char *name);

/* Of a program of two guidance passes: an op that computes one temp for both computes it for each of them, but where
 * shared(op's name) and all that it reads is the same for both. Time embeddings and bytes are always shared. */
void lw_pass_unshare(lw_program *p, bool (*shared)(const char *op));

/* Every op that computes two guidance passes becomes two ops: all of the first pass, then all of the second, then
 * `advance`. */
void lw_pass_apart(lw_program *p);

/* Ops that do not wait for each other become members of one op: those at the same place of adjacent LW_RANGE_PARALLEL
 * ranges where they are alike in all but names, addresses and weights, and all of a LW_RANGE_INDEPENDENT range. The
 * ranges are used up. */
void lw_pass_zip(lw_program *p);

/* Where a linear norms the rows that the product before it makes: that one leaves their statistics, and the linear may
 * read them instead of all values once more. */
void lw_pass_row_stats(lw_program *p);

/* The last two, as far as some tactic has use for them; takes: lw_backend_takes (backend.h). */
void lw_pass_fit(lw_program *p, uint32_t takes);

/* Whether one launch may take both: the same sizes and attributes. */
bool lw_ops_alike(const lw_params *params, const lw_op *a, const lw_op *b);

#endif
