/* SPDX-License-Identifier: MIT
 * What the GPU's bench programs share: calls that must not fail, and the time of a graph. */
#ifndef LW_BENCH_GPU_CUH
#define LW_BENCH_GPU_CUH

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        const cudaError_t must_e = (call);                                                                             \
        if (must_e != cudaSuccess) {                                                                                   \
            std::fflush(stdout);                                                                                       \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(must_e));            \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

/* Records what `body` launches on the stream it is given. */
template <typename F> cudaGraphExec_t record(F body) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body(stream);
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&ready, graph, 0));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaStreamDestroy(stream));
    return ready;
}

/* Microseconds of one replay: the median of `turns`, after two that warm up. */
inline double replay_us(cudaGraphExec_t graph, int turns) {
    cudaStream_t stream;
    cudaEvent_t from, to;
    std::vector<double> us;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaEventCreate(&from));
    MUST(cudaEventCreate(&to));
    for (int i = -2; i < turns; i++) {
        float ms = 0;
        MUST(cudaEventRecord(from, stream));
        MUST(cudaGraphLaunch(graph, stream));
        MUST(cudaEventRecord(to, stream));
        MUST(cudaEventSynchronize(to));
        MUST(cudaEventElapsedTime(&ms, from, to));
        if (i >= 0) us.push_back(1e3 * ms);
    }
    std::sort(us.begin(), us.end());
    MUST(cudaEventDestroy(from));
    MUST(cudaEventDestroy(to));
    MUST(cudaStreamDestroy(stream));
    return us[us.size() / 2];
}

/* The same of what `body` launches. */
template <typename F> double graph_us(F body, int turns = 7) {
    const cudaGraphExec_t graph = record(body);
    const double us = replay_us(graph, turns);
    MUST(cudaGraphExecDestroy(graph));
    return us;
}

/* Halfs of both signs, uniform in [-scale, scale), different for each seed. */
[[maybe_unused]] static __global__ void fill_halfs(__half *p, size_t n, float scale, uint32_t seed) {
    for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
         i += static_cast<size_t>(gridDim.x) * blockDim.x) {
        uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u + 12345u;
        x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
        p[i] = __float2half_rn((static_cast<float>(x >> 8) * 0x1p-23f - 1) * scale);
    }
}

inline __half *new_halfs(size_t n, float scale, uint32_t seed) {
    void *p = nullptr;
    MUST(cudaMalloc(&p, n * sizeof(__half) + 256));
    fill_halfs<<<1024, 256>>>(static_cast<__half *>(p), n, scale, seed);
    MUST(cudaGetLastError());
    return static_cast<__half *>(p);
}

inline void *tensor_map_encoder() {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    MUST(cudaFree(nullptr));
    MUST(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
    return found == cudaDriverEntryPointSuccess ? f : nullptr;
}

#endif
