/* SPDX-License-Identifier: MIT
 * The loops for avx512 with products of bf16 pairs: built with its own flags (CMakeLists.txt). */
#define W 16
#define ROWS 12
#define BF16
#define TABLE lw_kernels_avx512_bf16
#define ISA_NAME "avx512 bf16"
#include "cpu/kernels.inc"
