/* SPDX-License-Identifier: MIT
 * In place of src/cuda/ptx.cuh: the same names for a compiler for the host, by the simulator. */
#ifndef LW_CUDA_PTX_CUH
#define LW_CUDA_PTX_CUH

#include <cmath>
#include <cstring>
#include <type_traits>

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "simulator.h"

#define CU_SM90 1
#define CU_SM90A 1

/* ---- CUDA's words */

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define CU_DEVICE static inline
#define CU_ALL_LANES 0xffffffffu

#define threadIdx (sim::now->index)
#define blockIdx (sim::block_index())
#define blockDim (sim::block_size())
#define gridDim (sim::grid_size())

#define CU_SHARED(type, name, dims)                                                                                    \
    type(&name) dims = *reinterpret_cast<type(*) dims>(sim::shared_object(__LINE__, sizeof(type dims)))
#define CU_SHARED_REST(align, type, name) type *const name = static_cast<type *>(sim::shared_rest(align))

#define cudaLaunchKernelEx simulator_launch
template <typename... P, typename... A>
static cudaError_t simulator_launch(const cudaLaunchConfig_t *config, void (*kernel)(P...), A... args) {
    return sim::start(*config, reinterpret_cast<const void *>(kernel), [=] { kernel(args...); });
}

template <typename... P>
static cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute which, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), which, value);
}

/* ---- CUDA's functions */

using std::isfinite;
template <typename A, typename B> static inline std::common_type_t<A, B> min(A a, B b) {
    const std::common_type_t<A, B> x = a, y = b;
    return y < x ? y : x;
}
template <typename A, typename B> static inline std::common_type_t<A, B> max(A a, B b) {
    const std::common_type_t<A, B> x = a, y = b;
    return x < y ? y : x;
}

static inline void __syncthreads() { sim::meet(0, 0, true); }
static inline void __syncwarp() { sim::warp_sync(); }
static inline void __threadfence() {}

template <typename T> static inline T __shfl_sync(uint32_t, T v, int from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle's value");
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    bits = sim::shuffle(bits, from & 31);
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_xor_sync(uint32_t lanes, T v, int apart) {
    return __shfl_sync(lanes, v, sim::now->lane ^ apart);
}
static inline int atomicAdd(int *at, int v) {
    const int old = *at;
    *at += v;
    return old;
}
static inline void *__cluster_map_shared_rank(void *p, int block) {
    return sim::shared_pointer(sim::there_of(sim::shared_address(p), static_cast<uint32_t>(block)), 1);
}
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __int_as_float(int x) {
    float f;
    std::memcpy(&f, &x, sizeof f);
    return f;
}
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

/* ---- launches and clusters. To let the next one in is nothing: it may begin at any time before. */

CU_DEVICE void next_launch_may_start() {}
CU_DEVICE void previous_launch_wait() { sim::launch_wait(); }
CU_DEVICE void cluster_arrive() { sim::cluster_arrive(); }
CU_DEVICE void cluster_wait() { sim::cluster_wait(); }
CU_DEVICE void cluster_meet() {
    sim::cluster_arrive();
    sim::cluster_wait();
}

/* ---- arithmetic: results are flushed to zero, as there */

CU_DEVICE float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
CU_DEVICE float exp2_fast(float x) { return flushed(std::exp2(flushed(x))); }
CU_DEVICE float reciprocal_fast(float x) { return flushed(1.0f / flushed(x)); }

/* ---- copies by threads, and the matrix unit of warps */

CU_DEVICE uint32_t shared_address(const void *p) { return sim::shared_address(p); }
CU_DEVICE void copy16(void *shared, const void *global, bool real) { sim::copy_in(shared, global, 16, real); }
template <int BYTES> CU_DEVICE void copy_some(void *shared, const void *global, bool real) {
    sim::copy_in(shared, global, BYTES, real);
}
CU_DEVICE void copy_commit() { sim::copy_commit(); }
template <int left> CU_DEVICE void copy_wait() { sim::copy_wait(left); }

CU_DEVICE void load_matrices(uint32_t r[4], const void *row) { sim::load_matrices(r, row, false); }
CU_DEVICE void load_matrices_transposed(uint32_t r[4], const void *row) { sim::load_matrices(r, row, true); }
CU_DEVICE void multiply(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) { sim::multiply(d, a, b0, b1); }

/* ---- barriers */

CU_DEVICE void barrier_init(uint32_t bar, uint32_t count) { sim::barrier_init(bar, count); }
CU_DEVICE void barrier_arrive(uint32_t bar) { sim::barrier_arrive(bar, 0); }
CU_DEVICE void barrier_arrive_at(uint32_t bar, uint32_t block) { sim::barrier_arrive(sim::there_of(bar, block), 0); }
CU_DEVICE void barrier_expect(uint32_t bar, uint32_t bytes) { sim::barrier_arrive(bar, bytes); }
CU_DEVICE void barrier_wait(uint32_t bar, uint32_t parity) { sim::barrier_wait(bar, parity); }
CU_DEVICE void barriers_made() { sim::barriers_made(); }
CU_DEVICE bool elect_one() { return sim::elect(); }
CU_DEVICE void warps_meet(int number, int threads) { sim::meet(number, threads, true); }
CU_DEVICE void warps_pass(int number, int threads) { sim::meet(number, threads, false); }

template <int N> CU_DEVICE void give_registers() { sim::registers(N, false); }
template <int N> CU_DEVICE void take_registers() { sim::registers(N, true); }

/* ---- the copy engine */

CU_DEVICE void prefetch_map(const CUtensorMap *) {}
CU_DEVICE void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int x, int y, int n) {
    const int at[] = {c, x, y, n};
    sim::copy_box(to, map, bar, at, 4, 0);
}
CU_DEVICE void copy_weights(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int tap, int row) {
    const int at[] = {c, tap, row};
    sim::copy_box(to, map, bar, at, 3, 0);
}
CU_DEVICE void copy_weights_to(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int tap, int row,
                               uint16_t blocks) {
    const int at[] = {c, tap, row};
    sim::copy_box(to, map, bar, at, 3, blocks);
}
CU_DEVICE void copy_heads(uint32_t to, const CUtensorMap *map, uint32_t bar, const int32_t (&at)[5]) {
    sim::copy_box(to, map, bar, at, 5, 0);
}
CU_DEVICE uint32_t there_of(uint32_t address, int block) {
    return sim::there_of(address, static_cast<uint32_t>(block));
}
CU_DEVICE void shared_written() { sim::shared_written(); }
CU_DEVICE void send_bytes(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar) {
    sim::send_bytes(to, from, bytes, bar);
}

/* ---- Hopper's matrix unit */

template <int BN> struct multiplier {
    static void add(float (&d)[BN / 2], uint64_t a, uint64_t b) { sim::ask(d, BN, a, nullptr, b); }
};
template <int N> struct value_multiplier {
    static void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) { sim::ask(d, N, 0, a, b); }
};
CU_DEVICE void sums_begin() {}
CU_DEVICE void sums_commit() { sim::sums_commit(); }
template <int left> CU_DEVICE void sums_wait() { sim::sums_wait(left); }
template <int N> CU_DEVICE void sums_pin(float (&)[N]) {}

#endif
