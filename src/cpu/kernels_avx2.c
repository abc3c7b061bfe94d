/* SPDX-License-Identifier: MIT
 * The fp32 loops for avx2: built with its own flags (CMakeLists.txt). */
#define W 8
#define ROWS 6
#define TABLE lw_kernels_avx2
#define ISA_NAME "avx2"
#include "cpu/kernels.inc"
