/* SPDX-License-Identifier: MIT
 * What the kernels share: launches, 8 values at a time in and out of memory, activations, the epilogue's formula. */
#ifndef LW_CUDA_COMMON_CUH
#define LW_CUDA_COMMON_CUH

#include "cuda/gelu.h"
#include "cuda/ptx.cuh"
#include "cuda/tiles.h"

/* ---- launches */

CU_DEVICE void launches_meet() {
    next_launch_may_start();
    previous_launch_wait();
}

/* cluster: of that many blocks; one alone is none. */
template <typename... P, typename... A>
static cudaError_t start_clusters(cu_order order, void (*kernel)(P...), dim3 grid, dim3 cluster, dim3 block,
                                  size_t shared, const A &...args) {
    cudaLaunchAttribute attributes[2] = {};
    unsigned n = 0;
    if (order.overlap) {
        attributes[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[n++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster.x * cluster.y * cluster.z > 1) {
        attributes[n].id = cudaLaunchAttributeClusterDimension;
        attributes[n].val.clusterDim.x = cluster.x;
        attributes[n].val.clusterDim.y = cluster.y;
        attributes[n++].val.clusterDim.z = cluster.z;
    }
    const cudaLaunchConfig_t config = {grid, block, shared, order.stream, attributes, n};
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

template <typename... P, typename... A>
static cudaError_t start(cu_order order, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const A &...args) {
    return start_clusters(order, kernel, grid, 1, block, shared, args...);
}

/* ---- sizes of launches */
/* Smallest number of vectors of 8 channels that holds whole groups of `per`. */
static inline int slab_unit(int per) {
    int unit = 1;
    while (unit * 8 % per) unit++;
    return unit;
}

/* ---- members of one launch: where each begins; sizes, strides and attributes are those of the first */
struct cu_members {
    const void *a[CU_MAX_MEMBERS], *b[CU_MAX_MEMBERS];
    void *out[CU_MAX_MEMBERS];
    const float *gamma[CU_MAX_MEMBERS], *beta[CU_MAX_MEMBERS];
};

static inline cu_members members_of(const cu_apply_args *args, int members) {
    cu_members m = {};
    for (int i = 0; i < members; i++) {
        m.a[i] = args[i].a.p, m.b[i] = args[i].b.p, m.out[i] = args[i].out.p;
        m.gamma[i] = args[i].gamma, m.beta[i] = args[i].beta;
    }
    return m;
}

/* A value that is the same in all lanes, which are here: the compiler then knows that it is, and keeps it, instead of
 * loading or computing it again each time. */
template <typename T> CU_DEVICE T uniform(T x) { return __shfl_sync(CU_ALL_LANES, x, 0); }

/* ---- 8 values */

/* Two halves, a first. */
CU_DEVICE uint32_t pack(float a, float b) {
    __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<uint32_t *>(&h);
}

CU_DEVICE void load8(const __half *p, float v[8]) {
    union {
        uint4 u;
        __half2 h[4];
    } r;
    r.u = *reinterpret_cast<const uint4 *>(p);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __half22float2(r.h[i]);
        v[2 * i] = f.x;
        v[2 * i + 1] = f.y;
    }
}

CU_DEVICE void spread8(const float4 &low, const float4 &high, float v[8]) {
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

CU_DEVICE void load8(const float *p, float v[8]) {
    spread8(reinterpret_cast<const float4 *>(p)[0], reinterpret_cast<const float4 *>(p)[1], v);
}

CU_DEVICE void store8(__half *p, const float v[8]) {
    union {
        uint4 u;
        __half2 h[4];
    } r;
#pragma unroll
    for (int i = 0; i < 4; i++) r.h[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<uint4 *>(p) = r.u;
}

CU_DEVICE void store8(float *p, const float v[8]) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

CU_DEVICE void load8_as(const cu_view &v, int64_t at, float out[8]) {
    if (v.half) load8(static_cast<const __half *>(v.p) + at, out);
    else load8(static_cast<const float *>(v.p) + at, out);
}

CU_DEVICE int64_t view_at(const cu_view &v, int g, int n, int h, int w) {
    return g * v.sg + n * v.sn + h * v.sh + w * v.sw;
}

/* ---- activations */

/* x / (1 + exp(-k x)) of two values to some 1e-6. A true division would be most of what a norm executes, and a branch a
 * value; ex2 and rcp run at an eighth of the other instructions' rate, so one rcp serves both. The bound keeps the
 * product in range: beyond it x 2^-62 stands for a smaller value. It is a number where x is none, so that the other
 * value stays what it is, and x NaN gives NaN. */
CU_DEVICE void swish2(float v[2], float k) {
    const float minus = k * -1.4426950408889634f, a = 1.0f + exp2_fast(fminf(v[0] * minus, 62.0f)),
                b = 1.0f + exp2_fast(fminf(v[1] * minus, 62.0f)), both = reciprocal_fast(a * b);
    v[0] *= both * b;
    v[1] *= both * a;
}

CU_DEVICE float act_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

CU_DEVICE void swish8(float v[8], float k) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) swish2(v + i, k);
}

CU_DEVICE void act8(int act, float v[8]) {
    if (act == CU_ACT_SILU || act == CU_ACT_QUICK_GELU) swish8(v, act == CU_ACT_SILU ? 1.0f : 1.702f);
    else if (act == CU_ACT_GELU)
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = act_gelu(v[i]);
}

/* ---- epilogue of channels [c, c + 8) of pixel (g, n, h, w): v becomes residual + scale * act(v + bias + addend), with
 * gate the other half's values for GEGLU (whose channels begin at half_c); TO: what v is rounded to. */
CU_DEVICE void add_vectors(const cu_epilogue &e, int g, int n, int c, float v[8]) {
    float t[8];
    if (e.bias) {
        load8(e.bias + c, t);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += t[i];
    }
    if (e.addend.p) {
        load8_as(e.addend, g * e.addend.sg + n * e.addend.sn + c, t);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += t[i];
    }
}

template <typename TO>
CU_DEVICE void epilogue8(const cu_epilogue &e, int g, int n, int h, int w, int c, int half_c, float v[8],
                         float gate[8]) {
    add_vectors(e, g, n, c, v);
    if (e.act == CU_ACT_GEGLU) {
        add_vectors(e, g, n, half_c + c, gate);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= sizeof(TO) == 2 ? cu_gelu(gate[i]) : act_gelu(gate[i]);
    } else act8(e.act, v);
    if (e.scale) {
        float s = e.scale[g * e.scale_sg + n * e.scale_sn];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= s;
    }
    if (e.residual.p) {
        float r[8];
        load8_as(e.residual, view_at(e.residual, g, n, h, w) + c, r);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += r[i];
    }
}

/* ---- rows of a picture */

/* Where every `by`-th row of a picture lies, without a division a row. */
struct row_walk {
    int64_t at, step, wrap;
    int w, step_w, width;
    __device__ row_walk(int64_t sh, int64_t sw, int width, int row, int by)
        : row_walk(sh, sw, width, row / width, row, by / width, by) {}
    __device__ row_walk(int64_t sh, int64_t sw, const cu_divider &width, int row, int by)
        : row_walk(sh, sw, static_cast<int>(width.by), cu_divide(&width, row), row, cu_divide(&width, by), by) {}
    __device__ void next() {
        at += step, w += step_w;
        if (w >= width) w -= width, at += wrap;
    }

  private: /* down, step_down: row and by divided by the width */
    __device__ row_walk(int64_t sh, int64_t sw, int width, int down, int row, int step_down, int by)
        : at(down * sh + (row - down * width) * sw), step(step_down * sh + (by - step_down * width) * sw),
          wrap(sh - width * sw), w(row - down * width), step_w(by - step_down * width), width(width) {}
};

/* ---- warps */

CU_DEVICE float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(CU_ALL_LANES, v, d);
    return v;
}

CU_DEVICE float warp_max(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(CU_ALL_LANES, v, d));
    return v;
}

#endif
