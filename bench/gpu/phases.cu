/* SPDX-License-Identifier: MIT
 * wgmma.cu with its phases marked. The marks are stores that nobody waits for, and one more wait for a stage that the
 * next line waits for anyway. */
#include "gpu/phases.cuh"

#include <cuda_runtime.h>

namespace {

__device__ block_phases blocks_seen[MAX_PHASE_BLOCKS];

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void mark_phase(phase p) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (block >= MAX_PHASE_BLOCKS) return;
    block_phases &b = blocks_seen[block];
    unsigned long long cycles, ns;
    unsigned sm;
    asm volatile("mov.u64 %0, %%clock64;\n" : "=l"(cycles)::"memory");
    b.at[p] = cycles;
    if (p == PHASE_BEGIN) {
        asm volatile("mov.u64 %0, %%globaltimer;\nmov.u32 %1, %%smid;\n" : "=l"(ns), "=r"(sm)::"memory");
        b.began = ns, b.sm = sm + 1;
    } else if (p == PHASE_FINISHED) {
        asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(ns)::"memory");
        b.ended = ns;
    }
}
#endif

} // namespace

#define CU_PHASE(name, mine)                                                                                           \
    do {                                                                                                               \
        if (mine) mark_phase(PHASE_##name);                                                                            \
    } while (0)
#define cu_wgmma phases_wgmma
#include "cuda/wgmma.cu"

cudaError_t phases_read(std::vector<block_phases> &blocks) {
    std::vector<block_phases> all(MAX_PHASE_BLOCKS);
    const size_t bytes = all.size() * sizeof all[0];
    cudaError_t e = cudaMemcpyFromSymbol(all.data(), blocks_seen, bytes);
    blocks.clear();
    for (const block_phases &b : all)
        if (b.sm) blocks.push_back(b);
    all.assign(all.size(), block_phases());
    return e == cudaSuccess ? cudaMemcpyToSymbol(blocks_seen, all.data(), bytes) : e;
}
