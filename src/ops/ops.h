/* SPDX-License-Identifier: MIT
 * ops: THE SEAM between networks and backends. A network records ops on views; a plan gives every view its memory and
 * every op its tactic; a backend runs the plan. This header holds what both sides speak: views, parameters, one args
 * struct per op, the recorder. Knows no network and no backend by name.
 *
 * Fusion is a field of an op, never a new op. A product (conv2d, linear) is
 *     y = residual + scale[g] * act(W . in + bias + addend)          in = up2(act_in(norm(cat(a, b))))
 * with a prologue (how `in` is made) and an epilogue (what is done to W . in). Both halves exist as ops of their own,
 * `apply` and `combine`: what a tactic does not take of a product, the planner records beside it with these two. */
#ifndef LW_OPS_H
#define LW_OPS_H

#include "base/base.h"
#include "ops/row.h"

/* ---- the ops, listed once: kind, function suffix, takes a parameter matrix */
#define LW_OPS(X)                                                                                                      \
    X(CONV2D, conv2d)             /* product over a window: lw_product_args */                                         \
    X(LINEAR, linear)             /* product over channels: lw_product_args with kh = kw = 1 */                        \
    X(ATTENTION, attention)       /* softmax(q k^T * scale) v per head */                                              \
    X(NORM_STATS, norm_stats)     /* per-channel mean and squared deviation of a tensor */                             \
    X(APPLY, apply)               /* out = up2(act(norm(cat(a, b)))): a prologue by itself */                          \
    X(COMBINE, combine)           /* out = residual + scale[g] * act(in + addend): an epilogue */                      \
    X(EMBED_TOKENS, embed_tokens) /* token + position embedding rows */                                                \
    X(EMBED_TIME, embed_time)     /* sinusoidal embedding of timesteps */                                              \
    X(PACK_U8, pack_u8)           /* float picture to bytes: x * 127.5 + 127.5, clipped, cut */                        \
    X(UNPACK_U8, unpack_u8)       /* bytes to float: x / 255 */                                                        \
    X(ADVANCE, advance)           /* guidance, sampler update, next row's inputs */

typedef enum lw_op_kind {
#define X(kind, name) LW_OP_##kind,
    LW_OPS(X)
#undef X
        LW_N_OPS
} lw_op_kind;

const char *lw_op_name(lw_op_kind kind);

/* ---- views */

/* g is guidance (conditional first), n the samples, then NHWC. Strides in elements, c is contiguous. Stride 0 = shared
 * along that axis. off in bytes. Offsets and strides (in bytes) are multiples of 16: channel counts are padded to 8
 * with zeros. buf < 0: no view. */
typedef struct lw_view {
    int32_t buf;
    lw_dtype dtype;
    int64_t off;
    int32_t g, n, h, w, c;
    int64_t sg, sn, sh, sw;
} lw_view;

#define LW_NO_VIEW ((lw_view){.buf = -1})
static inline bool lw_view_is(lw_view v) { return v.buf >= 0; }
static inline int64_t lw_view_index(const lw_view *v, int64_t g, int64_t n, int64_t h, int64_t w) {
    return g * v->sg + n * v->sn + h * v->sh + w * v->sw;
}
/* Elements are laid out as one block of rows of c, none shared. */
bool lw_view_dense(const lw_view *v);
lw_view lw_view_channels(lw_view v, int32_t first, int32_t count); /* a slice of the channels */
lw_view lw_view_guidance(lw_view v, int32_t g);           /* the same values for g passes: v.g must be 1 or g */
lw_view lw_view_samples(lw_view v, int32_t n);            /* the same values for n samples: v.n must be 1 or n */
lw_view lw_view_tokens(lw_view v);                        /* [g,n,h,w,c] as [g,n,1,h*w,c]; rows must be contiguous */
lw_view lw_view_picture(lw_view v, int32_t h, int32_t w); /* and back */

/* ---- parameters: short expressions over checkpoint tensors, evaluated in fp32 when packed */

typedef struct lw_param {
    int32_t id;
} lw_param; /* index in lw_params; < 0: none */
#define LW_NO_PARAM ((lw_param){-1})
static inline bool lw_param_is(lw_param p) { return p.id >= 0; }

/* Where tensors come from. dims: at most 4, missing ones 1. read: n of the rows that dims[0] counts, from `row` on;
 * called from several threads at once. */
typedef struct lw_tensor_source {
    void *user;
    lw_status (*dims)(void *user, const char *name, int64_t dims[4],
                      lw_error *err); /* LW_EMODEL: missing, rank over 4 */
    lw_status (*read)(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err);
} lw_tensor_source;

/* The append-only table of parameters and of their packs. Shared by plans of one engine; thread-safe. */
typedef struct lw_params lw_params;

/* ---- the args of each op */

typedef enum lw_act {
    LW_ACT_NONE = 0,
    LW_ACT_SILU,
    LW_ACT_GELU,
    LW_ACT_QUICK_GELU,
    LW_ACT_GEGLU /* halves c: value * gelu(gate) */
} lw_act;
typedef enum lw_norm_kind { LW_NORM_NONE = 0, LW_NORM_GROUP, LW_NORM_LAYER } lw_norm_kind;

/* group: over h, w and c/groups channels of cat(a, b), from the statistics of both (layout: lw_norm_stats_args); layer:
 * over c of each row, whose statistics may be there already: stats_a, as lw_product_args has row_stats. */
typedef struct lw_norm {
    lw_norm_kind kind;
    int32_t groups;
    float eps;
    lw_param gamma, beta;
    lw_view stats_a, stats_b;
    int32_t rows_per_part; /* of the statistics, see lw_norm_stats_args */
} lw_norm;

typedef struct lw_prologue {
    lw_view a, b; /* b may be none */
    lw_norm norm;
    lw_act act;
    bool up2; /* nearest, both sides doubled */
} lw_prologue;

lw_prologue lw_plain(lw_view a); /* a as it is */
/* Of cat(a, b). */
static inline int32_t lw_prologue_channels(const lw_prologue *in) {
    return in->a.c + (lw_view_is(in->b) ? in->b.c : 0);
}

typedef struct lw_epilogue {
    lw_view addend; /* [g,n,1,1,c] */
    lw_act act;
    lw_view scale;    /* f32 [g,n,1,1,>=1]: its first channel is read */
    lw_view residual; /* as out */
} lw_epilogue;

typedef struct lw_product_args {
    lw_prologue in;
    lw_param w, bias; /* w: [O][I][kh][kw]; bias [O] or none */
    int32_t kh, kw, stride, pad_top,
        pad_left; /* bottom and right follow from the sizes; padding is zero after the norm */
    lw_epilogue epi;
    lw_view shortcut_a, shortcut_b; /* residual += W_s . cat(a, b) + bias_s, un-normalised; needs epi.residual none */
    lw_param shortcut_w, shortcut_bias;
    lw_view out;
    lw_view row_stats; /* written beside out, may be none: statistics of its rows */
} lw_product_args;

/* Statistics of rows of c channels, a multiple of 64: f32 [g,n,1,1,h*w*c/64*2], of each 64 channels of a row their mean
 * and the sum of squared deviations from it, before or after rounding. */
enum { LW_ROW_PART = 64 };
/* Whether rows can have such a view, whose passes and samples begin at multiples of 16 bytes. */
static inline bool lw_row_stats_fit(const lw_view *rows) {
    return rows->c % LW_ROW_PART == 0 && (int64_t)rows->h * rows->w * (rows->c / LW_ROW_PART) % 2 == 0;
}
static inline int32_t lw_row_stats_channels(const lw_view *rows) {
    return rows->h * rows->w * (rows->c / LW_ROW_PART) * 2;
}

typedef struct lw_attention_args {
    lw_view q, k, v, out; /* [g,n,1,len,heads*d]; k and v may be shared in n */
    int32_t heads;
    float scale;
    bool causal;
} lw_attention_args;

/* out: f32 [g,n,1,parts,2*c]: for each part the c means, then the c sums of squared deviations from them, over
 * rows_per_part rows (the last part has what is left). Readers merge parts in index order. */
typedef struct lw_norm_stats_args {
    lw_view in, out;
    int32_t rows_per_part;
} lw_norm_stats_args;

typedef struct lw_apply_args {
    lw_prologue in;
    lw_view out;
} lw_apply_args;
typedef struct lw_combine_args {
    lw_view in;
    lw_epilogue epi;
    lw_view out;
} lw_combine_args;
typedef struct lw_embed_tokens_args {
    lw_view ids; /* i32 [g,n,1,len,1] */
    lw_param tokens, positions;
    lw_view out;
} lw_embed_tokens_args;
typedef struct lw_embed_time_args {
    lw_view t;   /* f32 [1,1,1,rows,1] */
    lw_view out; /* cos half, then sin half */
} lw_embed_time_args;
/* pack_u8 writes out.c of the channels and sets status (i32, may be none) to 1 where a value is not finite; unpack_u8
 * fills with zero what in does not have. */
typedef struct lw_pack_args {
    lw_view in, out, status;
} lw_pack_args;

/* Row counter r (int32 at counter; -1 before the loop). If r >= 0: the update of rows[r] from eps (see row.h). Then r +
 * 1 becomes the row: its inputs are written if it exists. The only op that reads the counter. Latent-like views are f32
 * [1,n,h,w,8]. */
typedef struct lw_advance_args {
    lw_view eps;          /* [g,n,h,w,8] */
    lw_view x, h1, h2, y; /* state */
    lw_view net_in;       /* [1,n,h,w,8], network dtype */
    lw_view rows;         /* w = capacity, c = words of lw_row (as f32 bits) */
    lw_view noise;        /* f32 [k,n,h,w,8]: g indexes noise tensors */
    lw_view addend_table; /* [1,1,1,rows,total] */
    lw_view addends;      /* [1,1,1,1,total] */
    lw_view scale_table;  /* f32 [1,1,1,rows,total] */
    lw_view scales;       /* f32 [1,1,1,1,total] */
    lw_view status;       /* i32: {row counter, rows, not finite flag, reserved} */
} lw_advance_args;

typedef union lw_args {
    lw_product_args product;
    lw_attention_args attention;
    lw_norm_stats_args norm_stats;
    lw_apply_args apply;
    lw_combine_args combine;
    lw_embed_tokens_args embed_tokens;
    lw_embed_time_args embed_time;
    lw_pack_args pack;
    lw_advance_args advance;
} lw_args;

enum { LW_MAX_MEMBERS = 16 };

/* 1..16 members: the same kind and attributes, each with its own views and parameters; one launch where the tactic can.
 */
typedef struct lw_op {
    lw_op_kind kind;
    int32_t n_member;
    const char *name; /* its weight's canonical name, or what it does */
    lw_args *m;
} lw_op;

/* Calls fn for every view of a member, with whether it is written. */
typedef void (*lw_view_fn)(void *user, lw_view *view, bool written);
void lw_op_views(lw_op_kind kind, lw_args *args, lw_view_fn fn, void *user);

/* ---- cost model */
typedef struct lw_cost {
    double flop, bytes;
} lw_cost; /* arithmetic; compulsory traffic of views and parameters */
lw_cost lw_op_cost(const lw_params *params, const lw_op *op);

/* ---- recorder */

typedef enum lw_buffer_kind { LW_BUFFER_TEMP, LW_BUFFER_EXTERN } lw_buffer_kind;

typedef struct lw_buffer {
    lw_buffer_kind kind;
    int64_t bytes;
    const char *name; /* extern: what the session binds */
} lw_buffer;

/* Ops [first, end) of a program, marked by who recorded them: adjacent parallel ranges read nothing of each other; the
 * ops of an independent range read nothing of each other. */
typedef enum lw_range_kind { LW_RANGE_PARALLEL, LW_RANGE_INDEPENDENT } lw_range_kind;
typedef struct lw_range {
    lw_range_kind kind;
    int32_t first, end;
} lw_range;
enum { LW_MAX_RANGES = 32 };

/* A recorded program: a chain of ops. Recording functions note the first error and do nothing after it. */
typedef struct lw_program {
    lw_arena *arena;
    lw_params *params;
    lw_dtype act; /* dtype of activations */
    bool exact;   /* no tactic may round below it */
    const char *name;
    int32_t n_ops, cap_ops, n_buffers, cap_buffers;
    lw_op *ops;
    lw_buffer *buffers;
    struct lw_stats_note *stats; /* which views have statistics already */
    int32_t n_ranges;            /* in order, none within another; those over the limit are not noted */
    lw_range ranges[LW_MAX_RANGES];
    lw_status status;
    lw_error error;
} lw_program;

lw_program *lw_program_new(const char *name, lw_params *params, lw_dtype act);
void lw_program_free(lw_program *program);
/* Fails the recording (keeps the first error). */
void lw_program_fail(lw_program *program, lw_status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void lw_program_no_memory(lw_program *program);

lw_view lw_rec_temp(lw_program *p, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w, int32_t c);
/* A buffer that the session binds by name; the same name again gives the same buffer (which must be as large). */
lw_view lw_rec_extern(lw_program *p, const char *name, lw_dtype dtype, int32_t g, int32_t n, int32_t h, int32_t w,
                      int32_t c);
lw_args *lw_rec_op(lw_program *p, lw_op_kind kind, const char *name);

/* Marks the ops recorded since first (a value of p->n_ops) as a range. */
void lw_rec_range(lw_program *p, lw_range_kind kind, int32_t first);

/* Statistics of v: recorded once for each view, in parts of lw_rows_per_part rows. */
lw_view lw_rec_stats(lw_program *p, lw_view v);
int32_t lw_rows_per_part(int64_t rows);

/* ---- parameter expressions; each checks that the tensor has the shape given (0: any). Errors go to the program. */
lw_param lw_rec_take(lw_program *p, const char *name, int64_t o, int64_t i, int64_t kh, int64_t kw);
/* Rows of several parameters one after the other. */
lw_param lw_rec_concat(lw_program *p, const lw_param *parts, int32_t n);
/* Zero rows and input columns added up to o and i. */
lw_param lw_rec_pad(lw_program *p, lw_param w, int64_t o, int64_t i);
/* Every value times factor. */
lw_param lw_rec_scale(lw_program *p, lw_param w, double factor);
void lw_param_dims(const lw_params *params, lw_param p, int64_t dims[4]);
/* Whether some recording took this tensor. */
bool lw_params_took(lw_params *params, const char *name);
const char *lw_param_key(const lw_params *params, lw_param p);

#endif
