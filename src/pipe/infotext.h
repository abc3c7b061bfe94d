/* SPDX-License-Identifier: MIT
 * infotext: the text fields of a picture (linework.h: lw_infotext_*). infotext.c writes them and reads "linework";
 * infotext_a1111.c reads A1111's "parameters". Knows no networks and no files. */
#ifndef LW_INFOTEXT_H
#define LW_INFOTEXT_H

#include "base/base.h"

/* What both readers fill; everything lies in the arena. controls, nets and hashes have room for n_controls. */
typedef struct lw_infotext_builder {
    lw_arena *arena;
    lw_infotext text;
    lw_control *controls;
    const char **nets, **hashes;
} lw_infotext_builder;

enum { LW_INFOTEXT_MAX_CONTROLS = 16 };

/* Room for n controls of strength 1 over all steps. */
lw_status lw_infotext_set_controls(lw_infotext_builder *b, uint32_t n, lw_error *err);
/* Adds a line to the remarks. */
lw_status lw_infotext_remark(lw_infotext_builder *b, lw_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A copy in the arena, or LW_ENOMEM. */
lw_status lw_infotext_copy(lw_infotext_builder *b, const char *from, const char **to, lw_error *err);

/* Reads text of A1111's form; lenient: only memory can fail it. */
lw_status lw_infotext_read_a1111(lw_infotext_builder *b, const char *text, lw_error *err);

/* A1111's names of our values, index by enum. */
#define LW_INFOTEXT_SAMPLERS                                                                                           \
    { "DDIM", "Euler", "Euler a", "DPM++ 2M", "UniPC", "LCM" }
#define LW_INFOTEXT_SCHEDULERS                                                                                         \
    { "Reference", "Discrete", "Karras" }
#define LW_INFOTEXT_MODES                                                                                              \
    { "Balanced", "My prompt is more important", "ControlNet is more important" }

#endif
