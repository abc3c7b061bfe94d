/* SPDX-License-Identifier: MIT
 * What our own products share: the packs of their weights and how their epilogues begin. Of no use to any other file.
 */
#ifndef LW_CPU_PRODUCT_H
#define LW_CPU_PRODUCT_H

#include <stdatomic.h>

#include "cpu/cpu.h"
#include "cpu/kernels.h"

/* The pack of w, [O][I][kh][kw], as panels of 2 * width outputs, zeros behind the last one: [panel][kh * kw][I][2 *
 * width], or [panel][I][kh * kw][2 * width], or a panel is `width` values and their gates. A vector is of I = 1. Values
 * are floats, bf16 one by one, or the words of a multiply of bf16: [2 * width][2] of every two that follow each other.
 */
typedef enum lw_panels { LW_PANELS_WINDOWS, LW_PANELS_CHANNELS, LW_PANELS_GEGLU } lw_panels;
typedef enum lw_panel_values { LW_PANELS_F32, LW_PANELS_BF16, LW_PANELS_BF16_PAIRS } lw_panel_values;
lw_status lw_panels_request(lw_params *params, lw_param w, lw_panels kind, lw_panel_values values, int32_t *pack,
                            lw_error *err);

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

/* Scratch memory for as many chunks as run at once: a chunk takes a slot and gives it back. Which one it gets is
 * chance. */
enum { LW_MAX_SLOTS = 1024 };
typedef struct lw_slots {
    int32_t n;
    atomic_flag taken[LW_MAX_SLOTS];
} lw_slots;
int32_t lw_slots_count(const lw_backend *backend, int64_t chunks);
void lw_slots_init(lw_slots *slots, int32_t n);
int32_t lw_slot_take(lw_slots *slots);
void lw_slot_give(lw_slots *slots, int32_t slot);

extern const lw_tactic lw_cpu_winograd, lw_cpu_winograd_rest, lw_cpu_winograd_bf16;

#endif
