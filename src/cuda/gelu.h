/* SPDX-License-Identifier: MIT
 * x Phi(x) for results that are rounded to half, in some 15 instructions without a branch: erff, whose two polynomials
 * a warp runs one after the other, is most of what a GEGLU's epilogue does. erf by Abramowitz and Stegun 7.1.26 (within
 * 1.5e-7), taken as erfc, so that nothing cancels at large negative x. */
#ifndef LW_CUDA_GELU_H
#define LW_CUDA_GELU_H

#include <math.h>

#include "cuda/tiles.h"
#ifdef __CUDACC__
#include "cuda/ptx.cuh"
#endif

CU_BOTH float cu_gelu(float x) {
    const float d = 1.0f + 0.3275911f * 0.70710678f * fabsf(x), power = x * x * (-0.5f * 1.44269504f);
#ifdef __CUDA_ARCH__
    const float t = reciprocal_fast(d), e = exp2_fast(power);
#else
    const float t = 1.0f / d, e = exp2f(power);
#endif
    const float p = /* half of the formula's */
        t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f))));
    return fmaxf(x, 0.0f) - fabsf(x) * (p * e);
}

#endif
