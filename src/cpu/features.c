/* SPDX-License-Identifier: MIT
 * What this CPU can do, and the loops that use it. */
#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/kernels.h"

const lw_kernels *lw_cpu_kernels(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &lw_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &lw_kernels_avx2;
#endif
    return &lw_kernels_baseline;
}

const lw_kernels *lw_cpu_kernels_bf16(void) {
#if defined(__x86_64__)
    if (lw_cpu_kernels() == &lw_kernels_avx512 && __builtin_cpu_supports("avx512bf16")) return &lw_kernels_avx512_bf16;
#endif
    return NULL;
}

void lw_cpu_features(char *text, size_t n) {
    bool vnni = false;
#if defined(__x86_64__)
    vnni = __builtin_cpu_supports("avx512vnni");
#endif
    snprintf(text, n, "%s%s", lw_cpu_kernels()->name, vnni ? " vnni" : "");
}
