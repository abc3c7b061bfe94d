/* SPDX-License-Identifier: MIT
 * What a backend gives to the planner: memory, tactics, and a way to run them. */
#ifndef LW_BACKEND_H
#define LW_BACKEND_H

#include "ops/ops.h"

typedef struct lw_backend lw_backend;
typedef struct lw_plan lw_plan;
typedef struct lw_behind lw_behind;
typedef struct lw_choices lw_choices; /* tune.h */

/* What a product's tactic can do by itself; the planner records the plain ops for the rest. Epilogue fields are taken
 * in the order of the formula: after the first one that is not taken, all later ones are split off too. */
enum {
    LW_TAKES_PROLOGUE = 1 << 0, /* cat, norm, act, up2, shared or sliced input */
    LW_TAKES_ADDEND = 1 << 1,
    LW_TAKES_ACT = 1 << 2,
    LW_TAKES_GEGLU = 1 << 3,
    LW_TAKES_SCALE = 1 << 4,
    LW_TAKES_RESIDUAL = 1 << 5,
    LW_TAKES_SHORTCUT = 1 << 6,
    LW_TAKES_ANY_RESIDUAL = 1 << 7, /* with LW_TAKES_RESIDUAL: one that is shared or sliced, too */
    LW_TAKES_ALL = 0xffff,
    LW_TAKES_MEMBERS = 1 << 16, /* all members in one launch */
    LW_TAKES_ROUNDING = 1 << 17, /* rounds below the activations' type; not for an exact program */
    LW_TAKES_STATS = 1 << 18,    /* apply: makes a group norm's statistics itself; those nobody reads are not made */
    LW_TAKES_ROW_STATS = 1 << 19 /* writes row_stats; where no tactic can, readers make what they need themselves */
};

/* Addresses of a running plan: view -> pointer. */
typedef struct lw_run {
    char *const *bases; /* by buffer */
    void *workspace;    /* as large as the op asked for, 64-byte aligned; contents undefined */
    void *queue;        /* the backend's own: where work goes; NULL: its usual place */
} lw_run;
static inline void *lw_at(const lw_run *run, lw_view v) { return lw_view_is(v) ? run->bases[v.buf] + v.off : NULL; }

/* A form is one memory layout of a parameter. key names it together with every number that the layout depends on. */
typedef struct lw_form {
    char key[96];
    size_t bytes;
    /* Rows follow each other in equally many bytes, so that fill may be given some of them: a parameter of fewer rows.
     */
    bool by_rows;
    /* logical: [O][I][kh][kw] floats; dst: host memory of `bytes`. user: user_bytes copied from what the form was
     * requested with. Called from several threads at once. */
    lw_status (*fill)(const void *user, const float *logical, const int64_t dims[4], void *dst, lw_error *err);
    const void *user;
    size_t user_bytes;
} lw_form;

/* Registers the need for a pack; filled later, once, by lw_params_fill. The index stays valid as long as the params. */
lw_status lw_pack_request(lw_params *params, lw_param p, const lw_form *form, int32_t *index, lw_error *err);
/* For a tactic that takes a layer norm into its weights [o][i]: [o][i + 1], w gamma by columns, of each row less its
 * mean, and behind it w's product with beta, plus bias, which may be none. With W' such a row: W' x is what W' (x - mean)
 * is, so that the product of a normed row is W' x / deviation + what is behind. */
lw_status lw_param_fold(lw_params *params, lw_param w, lw_param bias, lw_param gamma, lw_param beta, lw_param *out,
                        lw_error *err);
/* Device address of a filled pack. */
const void *lw_pack_data(const lw_params *params, int32_t index);
/* Plain fp32 [O][I][kh][kw], for vectors (bias, gamma): shared by all tactics of the host. */
lw_status lw_pack_plain(lw_params *params, lw_param p, int32_t *index, lw_error *err);

/* A tactic's own state for one op in one plan: made by prepare, freed by release. */
typedef struct lw_tactic {
    const char *name;
    lw_op_kind kind;
    uint32_t takes;
    /* Whether it can run this op (after the planner has taken off what it does not take). */
    bool (*supports)(const lw_backend *backend, const lw_params *params, const lw_op *op);
    lw_status (*prepare)(lw_backend *backend, lw_params *params, const lw_op *op, void **state, size_t *workspace_bytes,
                         lw_error *err);
    lw_status (*run)(lw_backend *backend, const lw_params *params, const lw_op *op, void *state, const lw_run *run,
                     lw_error *err);
    void (*release)(void *state);
} lw_tactic;

struct lw_backend {
    const char *name; /* "cpu" */
    lw_device device;
    lw_precision precision;
    lw_dtype act; /* dtype of activations */
    int32_t threads;
    lw_pool *pool; /* of the host; NULL: one thread */
    char description[160];
    int64_t cache_bytes;             /* of the last cache before memory; 0: what the host's system says */
    const lw_tactic *const *tactics; /* by preference */
    int32_t n_tactics;
    lw_status (*alloc)(lw_backend *backend, size_t bytes, void **out, lw_error *err); /* 64-byte aligned, zeroed */
    void (*free)(lw_backend *backend, void *p);
    /* From any thread; src may be used again when it returns. */
    lw_status (*upload)(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err);
    lw_status (*download)(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err);
    void (*close)(lw_backend *backend);
    const lw_behind *behind; /* NULL: work is done when a call returns */
};

/* What a device that runs behind the host has beside: work is queued, and the host learns of it by marks. queue: NULL
 * for the usual one. upload and download wait for nothing but what they must: a download for all that is queued. */
struct lw_behind {
    lw_status (*alloc_host)(lw_backend *backend, size_t bytes, void **out, lw_error *err);
    void (*free_host)(lw_backend *backend, void *p);
    /* A download into memory of alloc_host that is there once a later mark has been waited for. */
    lw_status (*fetch)(lw_backend *backend, void *host, const void *src, size_t bytes, lw_error *err);
    /* Notes this place in the queue; *mark is made where it is NULL, else used again. */
    lw_status (*mark)(lw_backend *backend, void *queue, void **mark, lw_error *err);
    lw_status (*wait)(lw_backend *backend, void *mark, lw_error *err);
    double (*between_ms)(lw_backend *backend, void *from, void *to); /* of marks that were waited for */
    void (*free_mark)(lw_backend *backend, void *mark);
    /* Ops run on *queue until end_capture are noted, not executed; replay executes them as one launch. end_capture with
     * graph NULL forgets them. */
    lw_status (*begin_capture)(lw_backend *backend, void **queue, lw_error *err);
    lw_status (*end_capture)(lw_backend *backend, void *queue, void **graph, lw_error *err);
    lw_status (*replay)(lw_backend *backend, void *graph, lw_error *err);
    void (*free_graph)(lw_backend *backend, void *graph);
    uint64_t (*free_bytes)(lw_backend *backend); /* of device memory now */
    /* For profilers: what is queued from here on belongs to this program or op; NULL ends the last that began. */
    void (*range)(lw_backend *backend, const char *name);
};

/* The same for any backend: a copy at once, no mark, where it is not behind. */
lw_status lw_alloc_host(lw_backend *backend, size_t bytes, void **out, lw_error *err);
void lw_free_host(lw_backend *backend, void *p);
lw_status lw_fetch(lw_backend *backend, void *host, const void *src, size_t bytes, lw_error *err);
lw_status lw_mark(lw_backend *backend, void **mark, lw_error *err);
lw_status lw_wait(lw_backend *backend, void *mark, lw_error *err);
void lw_free_mark(lw_backend *backend, void *mark);

/* What some tactic takes, LW_TAKES_…: what passes (pass.h) are worth making. */
uint32_t lw_backend_takes(const lw_backend *backend);

/* ---- params */
lw_status lw_params_new(lw_params **out, const lw_tensor_source *source, lw_error *err);
void lw_params_free(lw_params *params, lw_backend *backend);
/* Evaluates and packs what was requested and is not there yet. */
lw_status lw_params_fill(lw_params *params, lw_backend *backend, lw_error *err);
/* Bytes of all packs requested so far, filled or not. */
uint64_t lw_params_bytes(const lw_params *params);
/* Of those that are filled. */
uint64_t lw_params_filled_bytes(const lw_params *params);
/* The expression's value, [O][I][kh][kw]; dst holds the product of the dims. */
lw_status lw_param_eval(const lw_params *params, lw_param p, float *dst, lw_error *err);

/* ---- plans */

/* Chooses tactics and lays out memory; allocates no device memory and packs nothing. The plan keeps the program
 * (borrowed until it is freed). */
lw_status lw_plan_make(lw_plan **out, lw_backend *backend, const lw_program *program, lw_error *err);
typedef struct lw_plan_options {
    const lw_choices *choices; /* an op that has one gets that tactic if it supports the op; may be NULL */
    bool unfused;              /* one thing an op: norms, activations and sums are ops of their own beside products */
    bool no_graph;             /* ops are always run one by one */
} lw_plan_options;
lw_status lw_plan_make_with(lw_plan **out, lw_backend *backend, const lw_plan_options *options,
                            const lw_program *program, lw_error *err);
void lw_plan_free(lw_plan *plan);
uint64_t lw_plan_temp_bytes(const lw_plan *plan);
/* The bytes the program needs of an extern buffer, 0 if it has none of that name. */
int64_t lw_plan_extern_bytes(const lw_plan *plan, const char *name);
lw_status lw_plan_bind(lw_plan *plan, const char *name, void *address, lw_error *err);
/* temp: lw_plan_temp_bytes of device memory, shared by plans that do not run at once. */
void lw_plan_bind_temp(lw_plan *plan, void *temp);
/* Every extern must be bound, params filled. Allocates nothing from the third run on: where the backend can, the second
 * run captures the ops and later ones replay them, until something is bound elsewhere. */
lw_status lw_plan_run(lw_plan *plan, lw_error *err);
double lw_plan_flop(const lw_plan *plan);

/* For benchmarks and tests: the planned ops in order. */
typedef struct lw_planned {
    const lw_op *op;
    const lw_tactic *tactic;
    size_t workspace_bytes;
    lw_cost cost;
    double ms; /* of the last lw_plan_run_timed */
} lw_planned;
int32_t lw_plan_n_ops(const lw_plan *plan);
lw_planned lw_plan_op(const lw_plan *plan, int32_t i);
lw_status lw_plan_run_timed(lw_plan *plan, lw_error *err);
/* A hash of the names of the chosen tactics, in order. */
uint64_t lw_plan_hash(const lw_plan *plan);

#endif
