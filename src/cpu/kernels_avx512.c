/* SPDX-License-Identifier: MIT
 * The fp32 loops for avx512: built with its own flags (CMakeLists.txt). */
#define W 16
#define ROWS 12
#define TABLE lw_kernels_avx512
#define ISA_NAME "avx512"
#include "cpu/kernels.inc"
