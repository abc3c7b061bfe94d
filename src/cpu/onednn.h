/* SPDX-License-Identifier: MIT
 * What the files over oneDNN share: its threads, its packs, its failures. Of no use to any other file. */
#ifndef LW_ONEDNN_H
#define LW_ONEDNN_H

#include <dnnl.h>

#include "cpu/cpu.h"

#define DNN(call)                                                                                                      \
    do {                                                                                                               \
        dnnl_status_t dnn_status = (call);                                                                             \
        if (dnn_status != dnnl_success) return dnn_status;                                                             \
    } while (0)

/* oneDNN sizes a primitive by the OpenMP setting of the calling thread; the caller's own setting is put back. */
int lw_onednn_enter(int threads);
void lw_onednn_leave(int before);

/* The pack of w, [O][I][kh][kw], in the layout md. */
lw_status lw_onednn_weights(lw_params *params, lw_param w, const dnnl_memory_desc_t *md, int32_t *pack, lw_error *err);

lw_status lw_onednn_fail(const lw_op *op, dnnl_status_t status, lw_error *err);

extern const lw_tactic lw_onednn_winograd4, lw_onednn_winograd2;

#endif
