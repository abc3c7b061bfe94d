/* SPDX-License-Identifier: MIT
 * The fp32 loops for baseline: built with its own flags (CMakeLists.txt). */
#define W 4
#define ROWS 4
#define TABLE lw_kernels_baseline
#define ISA_NAME "baseline"
#include "cpu/kernels.inc"
