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

void lw_cpu_features(char *text, size_t n) {
    snprintf(text, n, "%s", lw_cpu_kernels()->name);
#if defined(__x86_64__)
    static const char vnni[] = " vnni";
    if (__builtin_cpu_supports("avx512vnni") && strlen(text) + sizeof vnni <= n) strcat(text, vnni);
#endif
}
