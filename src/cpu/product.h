/* SPDX-License-Identifier: MIT
 * What our own products share: the packs of their weights and how their epilogues begin. Of no use to any other file.
 */
#ifndef LW_CPU_PRODUCT_H
#define LW_CPU_PRODUCT_H

#include "cpu/cpu.h"
#include "cpu/kernels.h"

/* The pack of w, [O][I][kh][kw], as panels of 2 * width outputs: [panel][I][kh * kw][2 * width], zeros behind the last
 * output. geglu: a panel is `width` values and their gates. A vector of biases is one of I = 1. */
lw_status lw_panels_request(lw_params *params, lw_param w, bool geglu, int32_t *pack, lw_error *err);

/* What a product's fields are for one guidance pass: the whole epilogue but for the views' addresses. */
typedef struct lw_panel_epilogue {
    const lw_product_args *p;
    const lw_run *run;
    const lw_kernels *k;
    const float *bias; /* as panels; NULL: none */
} lw_panel_epilogue;

enum { LW_MAX_PANEL = 32 };

/* Columns that panel j writes begin here, and their number. */
int32_t lw_panel_first(const lw_panel_epilogue *e, int32_t j);
int32_t lw_panel_count(const lw_product_args *p, const lw_kernels *k);
/* Everything of f but residual and out. addend: LW_MAX_PANEL floats that f borrows. */
void lw_panel_finish(const lw_panel_epilogue *e, int32_t g, int32_t j, float *addend, lw_finish *f);
/* Whether the epilogue's views are what lw_panel_finish takes. */
bool lw_panel_supports(const lw_product_args *p);

extern const lw_tactic lw_cpu_winograd, lw_cpu_winograd_rest;

#endif
