/* SPDX-License-Identifier: MIT
 * What the Hopper kernels share: barriers, the copy engine, the matrix unit. */
#ifndef LW_CUDA_HOPPER_CUH
#define LW_CUDA_HOPPER_CUH

#include <cuda.h>

#include "cuda/common.cuh"
#include "cuda/tiles.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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

/* ---- a ring of stages: where it stands, and how often round it went */

struct position {
    uint32_t at = 0, parity = 0;
    __device__ __forceinline__ void next(uint32_t stages) {
        if (++at == stages) at = 0, parity ^= 1;
    }
    __device__ __forceinline__ void skip(uint32_t steps, uint32_t stages) {
        const uint32_t to = at + steps, rounds = to / stages;
        at = to - rounds * stages, parity ^= rounds & 1;
    }
};

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

/* An operand that begins `bytes` further on: shared memory ends below 2^18, so that nothing is carried. */
CU_DEVICE uint64_t further(uint64_t operand, uint32_t bytes) {
    return operand >> 32 << 32 | (static_cast<uint32_t>(operand) + (bytes >> 4));
}

/* Asks for a step of 64 channels: HEIGHT x 64 rows by BN columns, from operands as they lie in a stage. */
template <int HEIGHT, int BN>
CU_DEVICE void ask_step(float (&d)[HEIGHT][BN / 2], const uint64_t &a, const uint64_t &b) {
#pragma unroll
    for (int p = 0; p < HEIGHT; p++) sums_pin(d[p]);
    sums_begin();
#pragma unroll
    for (int part = 0; part < CU_CHUNK / 16; part++)
#pragma unroll
        for (int p = 0; p < HEIGHT; p++)
            multiplier<BN>::add(d[p], further(a, p * 64 * CU_CHUNK_BYTES + 32 * part), further(b, 32 * part));
    sums_commit();
#pragma unroll
    for (int p = 0; p < HEIGHT; p++) sums_pin(d[p]);
}

#endif

/* ---- on the host */

typedef decltype(&cuTensorMapEncodeTiled) encoder;

static inline bool encode(encoder make, CUtensorMap *map, const void *address, int rank, const cuuint64_t *dims,
                          const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *every) {
    return make(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, static_cast<cuuint32_t>(rank), const_cast<void *>(address), dims,
                strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Pixels in boxes of the tile's input, every stride-th of both axes; axes: channels, x, y, n, or for patches channels,
 * x, n, y. flat: as one row. */
static inline bool encode_pixels(encoder make, CUtensorMap *map, const cu_view &v, const cu_tiling &t, int stride,
                                 bool flat) {
    const cuuint64_t sw = 2 * v.sw, w = flat ? t.w : v.w, h = flat ? 1 : v.h,
                     sh = h > 1 ? 2 * static_cast<cuuint64_t>(v.sh) : sw * w,
                     sn = t.n > 1 ? 2 * static_cast<cuuint64_t>(v.n > 1 ? v.sn : v.sg) : sh * h;
    const cuuint32_t each = static_cast<cuuint32_t>(stride);
    const cuuint64_t dims[4] = {static_cast<cuuint64_t>(v.c), w, h, static_cast<cuuint64_t>(t.n)},
                     strides[3] = {sw, sh, sn};
    const cuuint32_t box[4] = {CU_CHUNK, t.box_w * each, t.box_h * each, static_cast<cuuint32_t>(t.bn)},
                     every[4] = {1, each, each, 1};
    if (!t.patch) return encode(make, map, v.p, 4, dims, strides, box, every);
    const cuuint64_t patch_dims[4] = {dims[0], dims[1], dims[3], dims[2]},
                     patch_strides[3] = {strides[0], strides[2], strides[1]};
    const cuuint32_t patch_box[4] = {box[0], box[1], box[3], box[2]};
    return encode(make, map, v.p, 4, patch_dims, patch_strides, patch_box, every);
}

/* [rows][taps][c] */
static inline bool encode_weights(encoder make, CUtensorMap *map, const void *weights, cuuint64_t c, cuuint64_t taps,
                                  int rows, uint32_t box_rows) {
    const cuuint64_t dims[3] = {c, taps, static_cast<cuuint64_t>(rows)}, strides[2] = {c * 2, c * taps * 2};
    const cuuint32_t box[3] = {CU_CHUNK, 1, box_rows}, every[3] = {1, 1, 1};
    return encode(make, map, weights, 3, dims, strides, box, every);
}

#endif
