/* SPDX-License-Identifier: MIT
 * Blocks that several networks are made of. */
#ifndef LW_BLOCKS_H
#define LW_BLOCKS_H

#include "nets/model.h"

/* What is being recorded: a program and the network whose tensors are taken. */
typedef struct lw_net {
    lw_program *p;
    const lw_model *model;
    const char *prefix; /* of every tensor name */
    int32_t groups, heads;
} lw_net;

/* prefix + the formatted rest; in net_names' arena of the program. Never NULL. */
const char *lw_net_name(const lw_net *net, const char *format, ...) __attribute__((format(printf, 2, 3)));

lw_prologue lw_cat(lw_view a, lw_view b); /* b may be none */
/* GroupNorm and act of cat(a, b); name: of the norm, without ".weight". */
lw_prologue lw_group_norm(const lw_net *net, const char *name, lw_view a, lw_view b, float eps, lw_act act);
lw_prologue lw_layer_norm(const lw_net *net, const char *name, lw_view a);
lw_epilogue lw_no_epilogue(void);

/* A convolution with bias, name without ".weight"; kernel 1 or 3, "same" padding. Its output is given an own buffer
 * unless out is a view. */
typedef struct lw_conv {
    lw_prologue in;
    lw_epilogue epi;
    int32_t kernel, stride;
    const char *shortcut; /* a 1x1 product of shortcut_a|b, by this name; NULL: none */
    lw_view shortcut_a, shortcut_b;
    double weight_scale; /* 0: as it is */
} lw_conv;
lw_view lw_net_conv(const lw_net *net, const char *name, const lw_conv *conv);

/* W.in + bias over rows; names: 1 to 3 weights stacked (q, k, v). out: LW_NO_VIEW for an own buffer. */
lw_view lw_net_linear(const lw_net *net, const char *const *names, int32_t n_names, bool bias, lw_prologue in,
                      lw_epilogue epi, lw_view out);
lw_view lw_net_attention(const lw_net *net, const char *name, lw_view q, lw_view k, lw_view v, int32_t heads,
                         bool causal);

/* The UNet's ResBlock on cat(a, b); addend [1,1,1,1,c]. */
lw_view lw_net_res_block(const lw_net *net, const char *name, lw_view a, lw_view b, lw_view addend);
/* The SpatialTransformer; k, v: [g,1,1,77,c]. */
lw_view lw_net_transformer(const lw_net *net, const char *name, lw_view x, lw_view k, lw_view v);

int32_t lw_max_i32(int32_t a, int32_t b);

#endif
