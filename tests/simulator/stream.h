/* SPDX-License-Identifier: MIT */
#ifndef LW_SIMULATOR_STREAM_H
#define LW_SIMULATOR_STREAM_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
/* Has `what` done with a copy of its arguments, in the stream's order or in that of the graph that it captures. */
cudaError_t simulator_do(cudaStream_t stream, void (*what)(const void *args), const void *args, size_t bytes);
#ifdef __cplusplus
}
#endif
#endif
