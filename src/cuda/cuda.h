/* SPDX-License-Identifier: MIT
 * cuda: the backend for NVIDIA GPUs of compute capability 8.0 and newer. Host code is C over the runtime API; kernels
 * are in .cu files behind C launchers (kernels.h). Libraries (cuBLASLt, cuDNN) are tactics like our own kernels. Knows
 * ops; must not know networks. */
#ifndef LW_CUDA_H
#define LW_CUDA_H

#include "ops/backend.h"

typedef struct lw_cuda_params {
    int32_t device_index;
    lw_precision precision; /* AUTO is FP16; FP32 is the exact mode */
    bool no_overlap;        /* each launch begins when the one before has ended; else kernels of ours begin earlier */
    /* Parts of names, "wgmma,group_norm": without the tactics that have one; "pairs": Hopper products share no weights;
     * "turns": no block takes more than one tile. NULL: with all. */
    const char *without;
} lw_cuda_params;

/* LW_EDEVICE: no driver, no such device, or one that this build has no kernels for; LW_EINVAL: a precision it can't
 * run. */
lw_status lw_cuda_open(lw_backend **out, const lw_cuda_params *params, lw_error *err);

/* Whether the machine has an NVIDIA driver, so that a user would expect its GPU to be used. */
bool lw_cuda_expected(void);

/* "13.0": the runtime this was built with; at most n bytes. */
void lw_cuda_version(char *text, size_t n);

#endif
