/* SPDX-License-Identifier: MIT
 * A row of the schedule table: one evaluation of the networks and the update after it. Plain data, the same bytes on
 * host and device.
 *
 * With x the variance-preserving latent that the networks saw and e the guided eps, e = e_u + guidance * (e_c - e_u):
 *   h  = h_x*x + h_e*e                                    kept; h[1], h[2] below are those of the two rows before
 *   x' = x_x*x + x_e*e + x_h[0]*h + x_h[1]*h1 + x_h[2]*h2 + x_y*y + x_n*noise[noise]
 *   y' = y_x*x + y_e*e + y_h[0]*h + y_h[1]*h1 + y_h[2]*h2 + y_y*y     (uses the old x and the old y) */
#ifndef LW_ROW_H
#define LW_ROW_H

#include <assert.h>
#include <stdint.h>

typedef struct lw_row {
    int32_t variant; /* which recorded step program runs this row */
    int32_t noise;   /* index of the noise tensor, -1: none */
    float guidance;
    float h_x, h_e;
    float x_x, x_e, x_h[3], x_y, x_n;
    float y_x, y_e, y_h[3], y_y;
    float pad[2];
} lw_row;
static_assert(sizeof(lw_row) == 80, "rows of a table stay 16-byte aligned");

#endif
