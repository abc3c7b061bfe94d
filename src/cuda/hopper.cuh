/* SPDX-License-Identifier: MIT
 * What the Hopper kernels share: rings of boxes, steps of a sum, and the maps that the copy engine reads by. */
#ifndef LW_CUDA_HOPPER_CUH
#define LW_CUDA_HOPPER_CUH

#include "cuda/common.cuh"
#include "cuda/tiles.h"

#ifdef CU_SM90A

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
