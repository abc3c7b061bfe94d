/* SPDX-License-Identifier: MIT
 * All that kernels say to the device in PTX, and what of CUDA's C++ a compiler for the host has no word for. Only this
 * file has inline assembly: tests/simulator has another one of this name, by which all kernels run on a CPU. */
#ifndef LW_CUDA_PTX_CUH
#define LW_CUDA_PTX_CUH

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* CU_SM90: clusters and programmatic launches. CU_SM90A: the copy engine and Hopper's matrix unit, too. */
#if __CUDA_ARCH__ >= 900
#define CU_SM90 1
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CU_SM90A 1
#endif

#define CU_DEVICE static __device__ __forceinline__
#define CU_ALL_LANES 0xffffffffu

/* ---- shared memory: an object of the block's, and what the launch asks for besides, `align` bytes aligned */
#define CU_SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define CU_SHARED_REST(align, type, name)                                                                              \
    extern __shared__ __align__(align)                                                                                 \
    type name[]

/* ---- launches. Each kernel of ours lets the next one in as soon as all its own blocks run, and waits for the one
 * before: where a launch is programmatic, blocks are then in their places when the one before ends. Elsewhere both are
 * nothing. Waiting waits for all that the launch before waited for, so a chain of them is in order. */
CU_DEVICE void next_launch_may_start() {
#ifdef CU_SM90
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
CU_DEVICE void previous_launch_wait() {
#ifdef CU_SM90
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

/* ---- clusters. All threads of all blocks; what they wrote to their shared memory before is there for the others
 * after. A plain release would order writes to all of memory: some hundred ns for the device to confirm what nobody
 * waits for. */
#ifdef CU_SM90
/* The halves of a meeting that orders nothing but what a fence of its own does. */
CU_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;\n" ::: "memory"); }
CU_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory"); }
CU_DEVICE void cluster_meet() {
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;\nbarrier.cluster.arrive.relaxed;\n" ::: "memory");
#else
    asm volatile("barrier.cluster.arrive.release;\n" ::: "memory");
#endif
    cluster_wait();
}
#endif

/* ---- arithmetic */

CU_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

CU_DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- asynchronous copies of 16 bytes into shared memory; zeros where !real (the address must still be valid) */

CU_DEVICE uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

CU_DEVICE void copy16(void *shared, const void *global, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(real ? 16 : 0)
                 : "memory");
}
/* The same of 4 or 8 bytes. */
template <int BYTES> CU_DEVICE void copy_some(void *shared, const void *global, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                 "n"(BYTES), "r"(real ? BYTES : 0)
                 : "memory");
}
CU_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/* Waits until at most `left` of the newest groups are under way. */
template <int left> CU_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory"); }

/* ---- matrix unit: m16n8k16, half in, float out. Fragments as the PTX manual lays them out: with q = lane / 4 and
 * r = lane % 4, a[0..3] hold rows q, q+8, q, q+8 and columns 2r, 2r, 2r+8, 2r+8; d[0..3] hold (q,2r) (q,2r+1) (q+8,2r)
 * (q+8,2r+1). */

/* Four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8. */
CU_DEVICE void load_matrices(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
CU_DEVICE void load_matrices_transposed(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

CU_DEVICE void multiply(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef CU_SM90A

/* ---- barriers in shared memory */

CU_DEVICE void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(bar), "r"(count) : "memory");
}
CU_DEVICE void barrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(bar) : "memory");
}
/* The barrier at that place in another block of the cluster. */
CU_DEVICE void barrier_arrive_at(uint32_t bar, uint32_t block) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(bar),
                 "r"(block)
                 : "memory");
}
CU_DEVICE void barrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(bar), "r"(bytes) : "memory");
}
CU_DEVICE bool barrier_try(uint32_t bar, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done != 0;
}
/* A copy that never comes is an error of the launch, not a hang. */
CU_DEVICE void barrier_wait(uint32_t bar, uint32_t parity) {
    if (barrier_try(bar, parity)) return;
    uint64_t begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(begin));
    while (!barrier_try(bar, parity)) {
        asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
        if (now - begin > 20000000000ull) __trap();
    }
}

/* After barrier_init: the copy engine and the cluster see them. */
CU_DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

/* True in one lane of a warp whose lanes all are here. */
CU_DEVICE bool elect_one() {
    uint32_t one;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(one));
    return one != 0;
}

/* Barriers of hardware by number, 0 is __syncthreads': whole warps that meet there, or pass without waiting. */
CU_DEVICE void warps_meet(int number, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}
CU_DEVICE void warps_pass(int number, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

/* ---- registers of a thread, of groups of four warps: others can only take what some have given */
template <int N> CU_DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N)); }
template <int N> CU_DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N)); }

/* ---- copies */

CU_DEVICE void prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
CU_DEVICE void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int x, int y, int n) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
                 "%6}], [%2];\n" ::"r"(to),
                 "l"(map), "r"(bar), "r"(c), "r"(x), "r"(y), "r"(n)
                 : "memory");
}
CU_DEVICE void copy_weights(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int tap, int row) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
                 "%5}], [%2];\n" ::"r"(to),
                 "l"(map), "r"(bar), "r"(c), "r"(tap), "r"(row)
                 : "memory");
}

/* Of a tensor of five axes (cu_heads). */
CU_DEVICE void copy_heads(uint32_t to, const CUtensorMap *map, uint32_t bar, const int32_t (&at)[5]) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
                 "%6, %7}], [%2];\n" ::"r"(to),
                 "l"(map), "r"(bar), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                 : "memory");
}

/* To the same place of each block of the cluster that has a bit in `blocks`, and with a word to its barrier there. */
CU_DEVICE void copy_weights_to(uint32_t to, const CUtensorMap *map, uint32_t bar, int c, int tap, int row,
                               uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%3, %4, %5}], [%2], %6;\n" ::"r"(to),
                 "l"(map), "r"(bar), "r"(c), "r"(tap), "r"(row), "h"(blocks)
                 : "memory");
}

/* ---- between the blocks of a cluster */

CU_DEVICE uint32_t there_of(uint32_t address, int block) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(block));
    return there;
}
/* What this thread has written of shared memory is there for the copy engine. */
CU_DEVICE void shared_written() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
/* Bytes of shared memory to another block's, and word of them to the barrier there; both multiples of 16. */
CU_DEVICE void send_bytes(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to),
        "r"(from), "r"(bytes), "r"(bar)
        : "memory");
}

/* ---- the matrix unit: 64 x BN sums of a group of four warps += A [64][16] . B [BN][16]^T */

#define R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define R80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define R96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define R112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define D4(b) "+f"(d[b]), "+f"(d[b + 1]), "+f"(d[b + 2]), "+f"(d[b + 3])
#define D16(b) D4(b), D4(b + 4), D4(b + 8), D4(b + 12)
#define D64(b) D16(b), D16(b + 16), D16(b + 32), D16(b + 48)
#define MULTIPLY(columns, registers, a_at, b_at, ...)                                                                  \
    template <> struct multiplier<columns> {                                                                           \
        CU_DEVICE void add(float (&d)[columns / 2], uint64_t a, uint64_t b) {                                          \
            asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" registers "}, " a_at         \
                         ", " b_at ", p, 1, 1, 0, 0;\n}\n"                                                             \
                         : __VA_ARGS__                                                                                 \
                         : "l"(a), "l"(b));                                                                            \
        }                                                                                                              \
    }
template <int BN> struct multiplier;
MULTIPLY(64, R0 R16, "%32", "%33", D16(0), D16(16));
MULTIPLY(96, R0 R16 R32, "%48", "%49", D16(0), D16(16), D16(32));
MULTIPLY(128, R0 R16 R32 R48, "%64", "%65", D64(0));
MULTIPLY(160, R0 R16 R32 R48 R64, "%80", "%81", D64(0), D16(64));
MULTIPLY(256, R0 R16 R32 R48 R64 R80 R96 R112, "%128", "%129", D64(0), D64(64));

/* The same with A [64][16] in registers, as m16n8k16 has it for each warp, and B [16][N] as its columns lie: the sum's
 * index is the slow one (chunks of 64 columns behind each other). */
#define MULTIPLY_VALUES(columns, registers, a_at, b_at, ...)                                                           \
    template <> struct value_multiplier<columns> {                                                                     \
        CU_DEVICE void add(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b) {                              \
            asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" registers "}, {" a_at        \
                         "}, " b_at ", p, 1, 1, 1;\n}\n"                                                               \
                         : __VA_ARGS__                                                                                 \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                        \
        }                                                                                                              \
    }
template <int N> struct value_multiplier;
MULTIPLY_VALUES(40, R0 ", %16, %17, %18, %19", "%20, %21, %22, %23", "%24", D16(0), D4(16));
MULTIPLY_VALUES(80, R0 R16 ", %32, %33, %34, %35, %36, %37, %38, %39", "%40, %41, %42, %43", "%44", D16(0), D16(16),
                D4(32), D4(36));
MULTIPLY_VALUES(160, R0 R16 R32 R48 R64, "%80, %81, %82, %83", "%84", D64(0), D16(64));

CU_DEVICE void sums_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
CU_DEVICE void sums_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int left> CU_DEVICE void sums_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(left) : "memory");
}
/* Keeps the compiler from moving reads or writes of sums over this place. */
template <int N> CU_DEVICE void sums_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#endif

#endif
