/* SPDX-License-Identifier: MIT
 * What the kernels share: 8 values at a time in and out of memory, activations, the epilogue's formula, and the PTX
 * that has no intrinsic. */
#ifndef LW_CUDA_COMMON_CUH
#define LW_CUDA_COMMON_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/gelu.h"
#include "cuda/tiles.h"

#define CU_DEVICE static __device__ __forceinline__
#define CU_ALL_LANES 0xffffffffu

/* ---- launches. Each kernel of ours lets the next one in as soon as all its own blocks run, and waits for the one
 * before: where a launch is programmatic, blocks are then in their places when the one before ends. Elsewhere both are
 * nothing. Waiting waits for all that the launch before waited for, so a chain of them is in order. */
CU_DEVICE void next_launch_may_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
CU_DEVICE void previous_launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
CU_DEVICE void launches_meet() {
    next_launch_may_start();
    previous_launch_wait();
}

/* ---- clusters. All threads of all blocks; what they wrote to their shared memory before is there for the others
 * after. A plain release would order writes to all of memory: some hundred ns for the device to confirm what nobody
 * waits for. */
#if __CUDA_ARCH__ >= 900
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
/* Before a block ends whose shared memory others read: they have. */
CU_DEVICE void cluster_leave() {
    cluster_arrive();
    cluster_wait();
}
#endif

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
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = order.stream;
    config.attrs = attributes;
    config.numAttrs = n;
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

#endif
