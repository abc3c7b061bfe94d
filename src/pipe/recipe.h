/* SPDX-License-Identifier: MIT
 * Recipes: which of the known improvements a session's programs are made with. Zero is what every job runs with: all of
 * them. The others are for two readers: linework-bench ladder, which takes them back one by one, and the tests, which
 * hold every recipe's picture against the plainest one's. */
#ifndef LW_RECIPE_H
#define LW_RECIPE_H

#include "pipe/session.h"

typedef enum lw_prefix {
    LW_PREFIX_LONG = 0, /* what both guidance passes share, up to the first cross-attention's softmax, is computed once */
    LW_PREFIX_SHORT,    /* up to the first ResBlock */
    LW_PREFIX_NONE
} lw_prefix;

typedef enum lw_update {
    LW_UPDATE_IN_STEP = 0, /* guidance and sampler are the last op of the step */
    LW_UPDATE_PROGRAM,     /* a program of their own, which waits for the networks' */
    LW_UPDATE_HOST
} lw_update;

struct lw_recipe {
    bool passes_apart;   /* one guidance pass after the other, not in one batch */
    bool hint_each_step; /* not once an image */
    bool text_each_step; /* the cross-attentions' K and V, not once a prompt */
    bool time_each_step; /* the time embedding and its projections, not once a schedule */
    lw_prefix prefix;
    lw_update update;
    bool unfused;  /* lw_plan_options */
    bool no_graph; /* lw_plan_options */
    bool unzipped; /* one launch for each network's op */
};

/* CLIP, and K and V if they are made once. takes: lw_backend_takes. */
void lw_recipe_record_text(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *shape,
                           int32_t clip_skip, uint32_t takes);
/* The networks' step with all that the recipe does every step, and the update if it is in the step. */
void lw_recipe_record_step(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *shape,
                           uint32_t takes);
/* The update by itself: the one before the first step, or one that reads "eps". */
void lw_recipe_record_update(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *shape,
                             bool first);

/* The update computed by the host, as `advance` does it: what it reads is downloaded, what it writes uploaded. */
typedef struct lw_update_buffers { /* device addresses of the externs */
    void *eps, *x, *h1, *h2, *y, *net_in, *rows, *noise, *table, *row, *scale_table, *scales, *status;
    int64_t row_bytes, scales_bytes; /* of one row of table, of scale_table */
} lw_update_buffers;
lw_status lw_recipe_update_on_host(lw_backend *backend, const lw_update_buffers *at, const lw_step_shape *shape,
                                   lw_error *err);

/* ---- of a session (session.c) */
/* From the next job on; plans are made anew. */
void lw_session_set_recipe(lw_session *session, const lw_recipe *recipe);
/* The next job computes text, hint and time again, as for a new prompt and picture. */
void lw_session_forget_results(lw_session *session);

#endif
