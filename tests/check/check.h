/* SPDX-License-Identifier: MIT
 * lw_check: every tactic of every op of a backend against the reference in double, in the manner of dav1d's checkasm
 * and ggml's test-backend-ops.
 *
 *   cases      each op's file lists cases by hand and by seeded chance; walk.c takes those of recorded networks
 *   fill       inputs already rounded to their storage type, NaN everywhere else: padding, guards, outputs, workspace
 *   run        the case as a program of one op, planned with the tactic under test and run with 1, 2 and 3 threads
 *   compare    with the references (half types: and with the references rounding after every plain op)
 *
 * A case is an op whose views index the case's own buffers and whose parameters index its own table, so that it does
 * not matter where it came from. */
#ifndef LW_CHECK_H
#define LW_CHECK_H

#include "ops/backend.h"

enum { CK_MAX_BUFFERS = 16, CK_MAX_PARAMS = 8, CK_MAX_OUTPUTS = 8 };

typedef enum ck_regime {
    CK_NORMAL,   /* N(0, 1) */
    CK_UNIFORM,  /* U(-1, 1) */
    CK_LARGE,    /* N(0, 1) times 1e4, for F16 4e3 */
    CK_CONSTANT, /* all values equal: variances are zero */
    CK_TINY,     /* N(0, 1) times 0.003: where a wrong eps shows */
    CK_DENORMAL, /* -0, 0, denormal numbers of both signs */
    CK_NAN,      /* normal with one NaN in each view */
    CK_EQUAL,    /* attention: all keys the same */
    CK_EXTREME,  /* attention: logits of some hundreds */
    CK_N_REGIMES
} ck_regime;
#define CK_IN(regime) (1u << (regime))
enum { CK_ALL_VALUES = 0x7f }; /* all that any op takes: NORMAL to NAN */

typedef struct ck_param {
    char role; /* w: weights, b: bias or beta, g: gamma, t: table of embeddings */
    int64_t dims[4];
} ck_param;

typedef struct ck_case {
    lw_op_kind kind;
    lw_dtype dtype;
    lw_args m;
    int32_t n_buffers, n_params;
    int64_t bytes[CK_MAX_BUFFERS];
    ck_param params[CK_MAX_PARAMS];
    uint32_t regimes; /* bits */
    const char *from; /* "list", "chance", or the model it was recorded from */
    char shape[224];
    double flop;
} ck_case;

typedef struct ck_list {
    ck_case *at;
    int32_t n, cap;
    int32_t duplicates, too_large, broken;
    bool gpu; /* the backend is a GPU's: with the cases that the host's are spared */
    double flop_cap;
    int64_t param_cap; /* values */
    uint64_t seed;
} ck_list;

/* ---- random numbers: a counter, so that value i does not depend on who asked before */
uint64_t ck_mix(uint64_t x);
uint64_t ck_hash(const char *text, uint64_t seed);
typedef struct ck_rng {
    uint64_t state;
} ck_rng;
uint64_t ck_next(ck_rng *rng);
int32_t ck_below(ck_rng *rng, int32_t n); /* 0 .. n - 1 */
double ck_normal(ck_rng *rng);
double ck_uniform(ck_rng *rng); /* -1 .. 1 */

/* ---- the image of a case: each buffer's bytes between guards */
enum { CK_GUARD = 4096 };
typedef struct ck_image {
    int32_t n;
    uint64_t seed; /* of the parameters that go with it */
    int64_t bytes[CK_MAX_BUFFERS];
    char *buffer[CK_MAX_BUFFERS]; /* CK_GUARD + bytes + CK_GUARD */
} ck_image;
bool ck_image_make(ck_image *image, const int64_t *bytes, int32_t n);
void ck_image_free(ck_image *image);
static inline char *ck_at(const ck_image *image, lw_view v) { return image->buffer[v.buf] + CK_GUARD + v.off; }
double ck_load(const void *p, lw_dtype dtype, int64_t i);
void ck_store(void *p, lw_dtype dtype, int64_t i, double v);

/* What fills a case's inputs. */
typedef struct ck_fill {
    const ck_case *c;
    ck_image *image;
    ck_regime regime;
    ck_rng rng;
} ck_fill;
double ck_value(ck_fill *f, ck_regime regime, lw_dtype dtype);
void ck_fill_view(ck_fill *f, const lw_view *v, ck_regime regime); /* none: nothing */
/* Statistics as norm_stats would leave them of `of`. */
void ck_fill_stats(ck_fill *f, const lw_view *stats, const lw_view *of, int32_t rows_per_part);

/* ---- what an op's file gives; one for each op, or the program does not link */
typedef struct ck_outputs {
    int32_t n;
    lw_view view[CK_MAX_OUTPUTS];
    int64_t count[CK_MAX_OUTPUTS];
    double *value[CK_MAX_OUTPUTS];
} ck_outputs;

typedef struct ck_op {
    void (*cases)(ck_list *list, lw_dtype dtype, int32_t chance); /* chance: how many by chance */
    void (*fill)(ck_fill *f);
    /* What the outputs should be, from the inputs, in double; NULL: what the reference tactic gives. */
    void (*truth)(const ck_case *c, const ck_image *in, ck_outputs *out);
    double nmse_f32, nmse_half; /* bounds; half: on top of twice the naive reference's own */
    bool exact;                 /* integer results: any difference fails */
} ck_op;

#define X(kind, name) extern const ck_op ck_op_##name;
LW_OPS(X)
#undef X
const ck_op *ck_op_of(lw_op_kind kind);

/* ---- building cases by hand */
void ck_begin(ck_case *c, lw_op_kind kind, lw_dtype dtype); /* all views and parameters none */
enum { CK_SLICE = 1, CK_SHARED_G = 2, CK_SHARED_N = 4, CK_PADDED = 8 };
/* A view of a new buffer; CK_SLICE: 8 channels before and 16 after, CK_PADDED: rows and pictures do not touch. */
lw_view ck_view(ck_case *c, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w, int32_t ch, int32_t how);
lw_param ck_param_of(ck_case *c, char role, int64_t o, int64_t i, int64_t kh, int64_t kw);
/* Adds the case if it is new and not over the caps. */
void ck_add(ck_list *list, ck_case *c, uint32_t regimes, const char *from);
void ck_describe(ck_case *c); /* fills shape from the args */
typedef void (*ck_param_fn)(void *user, lw_param *p, char role);
void ck_op_params(lw_op_kind kind, lw_args *m, ck_param_fn fn, void *user);

/* Prologues: shared by products and apply. */
typedef struct ck_in {
    int32_t g, n, h, w, c, c2; /* c2: channels of b, 0: none */
    lw_norm_kind norm;
    int32_t groups;
    lw_act act;
    bool up2;
    int32_t how, how2; /* of the views */
    bool row_stats;    /* layer norm: c is a multiple of LW_ROW_PART */
} ck_in;
lw_prologue ck_prologue(ck_case *c, const ck_in *in);
ck_in ck_chance_in(ck_rng *rng);
void ck_fill_prologue(ck_fill *f, const lw_prologue *in);
void ck_fill_epilogue(ck_fill *f, const lw_epilogue *epi);
/* Residual kinds of chance: 0 none, 1 dense, 2 shared in g, 3 sliced, 4 shared in g and n. */
lw_view ck_residual(ck_case *c, int32_t kind, const lw_view *out);

/* ---- cases of recorded networks */
/* path NULL: the shapes of SD1.5. h, w: of the latents. False, with a line on stderr: it can't be recorded. */
bool ck_walk(ck_list *list, const char *path, const char *from, lw_dtype act, int32_t h, int32_t w);

/* ---- running */
typedef struct ck_machine {
    lw_backend *backend;   /* under test */
    lw_backend *reference; /* the references on the host */
    uint64_t seed;
    const char *tactic; /* only tactics whose name contains it; NULL: all */
    bool verbose;
    double worst_share; /* of all, of its bound */
    int64_t passed, failed, unsupported;
} ck_machine;

/* Worst case of one tactic and dtype, for the table at the end. */
typedef struct ck_worst {
    const char *tactic;
    lw_dtype dtype;
    int64_t cases, failed;
    double nmse, bound, max_share; /* max_share: largest error over what is allowed (half types) */
    char shape[224];
    ck_regime regime;
} ck_worst;

void ck_check_case(ck_machine *machine, const ck_case *c);
void ck_print_worst(void);
const char *ck_regime_name(ck_regime regime);

/* ---- one op as a program of its own */
typedef struct ck_planned {
    lw_backend *backend;
    lw_program *program;
    lw_plan *plan;
    lw_params *params; /* borrowed */
    int32_t n_buffers;
    int64_t bytes[CK_MAX_BUFFERS], temp_bytes;
    void *device[CK_MAX_BUFFERS], *temp;
    /* the backend's own */
    const lw_tactic *const *tactics;
    int32_t n_tactics, threads;
    const lw_tactic *list[136];
} ck_planned;
lw_tensor_source ck_source(uint64_t *seed);                          /* values from a tensor's name */
float *ck_param_values(const ck_case *c, int32_t id, uint64_t seed); /* the same by the case's index; for free */
void ck_param_name(const ck_case *c, int32_t id, char name[96]);
/* first: tried before the others; NULL: as the backend is. whole: what is split off may use all of the backend, not the
 * references alone. threads 0: as the backend is. The backend is changed until ck_unplan. */
lw_status ck_plan(ck_planned *p, lw_backend *backend, lw_params *params, const ck_case *c, const lw_args *m,
                  const int64_t *bytes, const lw_tactic *first, bool whole, int32_t threads, lw_error *err);
bool ck_uses(const ck_planned *p, const lw_tactic *t);
/* Uploads the image, runs, downloads into it. junk fills the workspace before. */
lw_status ck_run(ck_planned *p, ck_image *image, unsigned char junk, lw_error *err);
void ck_unplan(ck_planned *p);
void ck_make_inputs(ck_image *image, const ck_case *c, ck_regime regime, uint64_t seed);

/* ---- bench */
typedef struct ck_roof {
    double gflops, gbs; /* 0: not measured */
} ck_roof;
ck_roof ck_measure_roof(int32_t threads);
void ck_bench_case(ck_machine *machine, const ck_case *c, const ck_roof *roof, int32_t repeat);

#endif
