/* SPDX-License-Identifier: MIT
 * rng: PyTorch's two normal generators (spec: philox of torch.randn on CUDA, mt19937 of torch.randn on a CPU) and
 * seeds. */
#ifndef LW_RNG_H
#define LW_RNG_H

#include "base/base.h"

typedef struct lw_noise {
    lw_rng kind;
    uint64_t seed;
    uint64_t philox_offset; /* CUDA generator: 4 a draw */
    uint32_t mt[624];       /* CPU generator's state */
    int32_t mt_index;
    bool has_next; /* CPU generator: cached second normal of the scalar path (fewer than 16 values) */
    double next;
} lw_noise;

void lw_noise_init(lw_noise *noise, lw_rng kind, uint64_t seed);

/* The next torch.randn of n values: within 2e-6 of PyTorch's. As on a GPU with 270,336 resident threads (132 SMs). */
void lw_noise_draw(lw_noise *noise, float *out, size_t n);

/* A number in 0..65535 from the system's entropy, for seed -1. */
lw_status lw_random_seed(int64_t *seed, lw_error *err);

#endif
