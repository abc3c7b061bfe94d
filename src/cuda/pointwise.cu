/* SPDX-License-Identifier: MIT
 * The epilogue as a pass of its own, and the small ops. All bound by bytes or by their launch. */
#include "cuda/common.cuh"
#include "ops/row.h"

namespace {

enum { THREADS = 256 };

unsigned blocks_for(int64_t n) { return static_cast<unsigned>((n + THREADS - 1) / THREADS); }

/* ---- combine: y = residual + scale[g] * act(sum of splits + bias + addend). Grid (vectors of a row, rows, g * n). The
 * splits of a sum are added in order: the result does not depend on which was ready first. */

template <typename TI, typename TO> __global__ void combine_kernel(cu_combine_args a) {
    launches_meet();
    const int n_vec = a.out.c / 8, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.out.w * n_vec) return;
    const int w = i / n_vec, c = (i - w * n_vec) * 8, h = blockIdx.y, gn = blockIdx.z, g = gn / a.out.n,
              n = gn % a.out.n;
    const TI *in = static_cast<const TI *>(a.in.p) + view_at(a.in, g, n, h, w) + c;
    float v[8], gate[8] = {}, more[8];
    load8(in, v);
    for (int s = 1; s < a.splits; s++) {
        load8(in + s * a.split_stride, more);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] += more[k];
    }
    if (a.epi.act == CU_ACT_GEGLU) {
        load8(in + a.out.c, gate);
        for (int s = 1; s < a.splits; s++) {
            load8(in + s * a.split_stride + a.out.c, more);
#pragma unroll
            for (int k = 0; k < 8; k++) gate[k] += more[k];
        }
    }
    epilogue8<TO>(a.epi, g, n, h, w, c, a.out.c, v, gate);
    store8(static_cast<TO *>(a.out.p) + view_at(a.out, g, n, h, w) + c, v);
}

/* ---- embeddings */

CU_DEVICE float to_float(__half v) { return __half2float(v); }
CU_DEVICE float to_float(float v) { return v; }
CU_DEVICE void put(__half *p, float v) { *p = __float2half_rn(v); }
CU_DEVICE void put(float *p, float v) { *p = v; }

/* A block a token. */
template <typename T> __global__ void tokens_kernel(cu_embed_tokens_args a) {
    launches_meet();
    const int w = blockIdx.x, n = blockIdx.y, g = blockIdx.z;
    const int id = static_cast<const int32_t *>(a.ids.p)[view_at(a.ids, g, n, 0, w)];
    const bool known = id >= 0 && id < a.n_tokens;
    const T *token = static_cast<const T *>(a.tokens) + static_cast<int64_t>(known ? id : 0) * a.out.c;
    const T *position = static_cast<const T *>(a.positions) + static_cast<int64_t>(w) * a.out.c;
    T *out = static_cast<T *>(a.out.p) + view_at(a.out, g, n, 0, w);
    for (int c = threadIdx.x; c < a.out.c; c += blockDim.x)
        put(out + c, known ? to_float(token[c]) + to_float(position[c]) : __int_as_float(0x7fc00000));
}

/* A block a row; double, since the arguments reach 1000 and this runs once a schedule. */
template <typename T> __global__ void time_kernel(cu_view t, cu_view out) {
    launches_meet();
    const int row = blockIdx.x, half = out.c / 2;
    const double at = static_cast<double>(static_cast<const float *>(t.p)[row * t.sw]);
    T *y = static_cast<T *>(out.p) + row * out.sw;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const double arg = at * exp(-9.210340371976184 * i / half); /* ln 10000 */
        put(y + i, static_cast<float>(cos(arg)));
        put(y + half + i, static_cast<float>(sin(arg)));
    }
}

/* ---- bytes: grid (pixels of a row, rows, g * n) */

template <typename T> __global__ void pack_kernel(cu_view in, cu_view out, int32_t *status) {
    launches_meet();
    const int w = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, g = blockIdx.z / out.n, n = blockIdx.z % out.n;
    if (w >= out.w) return;
    const T *x = static_cast<const T *>(in.p) + view_at(in, g, n, h, w);
    uint8_t *y = static_cast<uint8_t *>(out.p) + view_at(out, g, n, h, w);
    bool finite = true;
    for (int c = 0; c < out.c; c++) {
        const float f =
            __fadd_rn(__fmul_rn(c < in.c ? to_float(x[c]) : 0.0f, 127.5f), 127.5f); /* as the reference: no FMA */
        finite = finite && isfinite(f);
        y[c] = f > 255 ? 255 : f > 0 ? static_cast<uint8_t>(f) : 0;
    }
    if (!finite && status) *status = 1;
}

template <typename T> __global__ void unpack_kernel(cu_view in, cu_view out) {
    launches_meet();
    const int w = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, g = blockIdx.z / out.n, n = blockIdx.z % out.n;
    if (w >= out.w) return;
    const uint8_t *x = static_cast<const uint8_t *>(in.p) + view_at(in, g, n, h, w);
    T *y = static_cast<T *>(out.p) + view_at(out, g, n, h, w);
    for (int c = 0; c < out.c; c++) put(y + c, c < in.c ? x[c] / 255.0f : 0.0f);
}

/* ---- advance: one value a thread; also the next row's addends and scales. Every block reads the row counter when it
 * begins and takes a ticket (status[3]) when it is done; the last one moves the counter, so all have read it by then.
 */

CU_DEVICE void advance_value(const cu_advance_args &a, const lw_row &r, bool update, int64_t i) {
    const int64_t plane = static_cast<int64_t>(a.net_in.h) * a.net_in.w * 8;
    const int c = static_cast<int>(i % 8), n = static_cast<int>(i / plane);
    const int at = static_cast<int>(i % plane) / 8, h = at / a.net_in.w, w = at % a.net_in.w;
    float x = a.x[i];
    if (update) {
        const int64_t e_at = view_at(a.eps, 0, n, h, w) + c;
        float e = a.eps.half ? to_float(static_cast<const __half *>(a.eps.p)[e_at])
                             : static_cast<const float *>(a.eps.p)[e_at];
        if (a.eps.g == 2) {
            const int64_t u_at = e_at + a.eps.sg;
            const float u = a.eps.half ? to_float(static_cast<const __half *>(a.eps.p)[u_at])
                                       : static_cast<const float *>(a.eps.p)[u_at];
            e = u + r.guidance * (e - u);
        }
        const float h1 = a.h1[i], h2 = a.h2[i], y = a.y[i], h0 = r.h_x * x + r.h_e * e;
        float next = r.x_x * x + r.x_e * e + r.x_h[0] * h0 + r.x_h[1] * h1 + r.x_h[2] * h2 + r.x_y * y;
        if (r.noise >= 0) next += r.x_n * a.noise[r.noise * plane * a.net_in.n + i];
        a.y[i] = r.y_x * x + r.y_e * e + r.y_h[0] * h0 + r.y_h[1] * h1 + r.y_h[2] * h2 + r.y_y * y;
        a.h2[i] = h1;
        a.h1[i] = h0;
        a.x[i] = x = next;
        if (!isfinite(next)) a.status[2] = 1;
    }
    const int64_t to = view_at(a.net_in, 0, n, h, w) + c;
    if (a.net_in.half) put(static_cast<__half *>(a.net_in.p) + to, x);
    else put(static_cast<float *>(a.net_in.p) + to, x);
}

__global__ void advance_kernel(cu_advance_args a) {
    launches_meet();
    const int row = *reinterpret_cast<volatile int32_t *>(a.status), n_rows = a.status[1];
    const int64_t values = static_cast<int64_t>(a.net_in.n) * a.net_in.h * a.net_in.w * 8;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool update = row >= 0 && a.eps.p;
    lw_row r = {};
    if (update) r = static_cast<const lw_row *>(a.rows)[row];
    for (int64_t i = first; i < values; i += stride) advance_value(a, r, update, i);
    if (row + 1 < n_rows) {
        for (int64_t i = first; i < a.n_addends; i += stride)
            a.addends[i] = a.addend_table[(row + 1) * a.addend_stride + i];
        for (int64_t i = first; i < a.n_scales; i += stride)
            a.scales[i] = a.scale_table[(row + 1) * a.scale_stride + i];
    }
    __syncthreads();
    if (threadIdx.x) return;
    __threadfence();
    if (atomicAdd(&a.status[3], 1) != static_cast<int>(gridDim.x) - 1) return;
    a.status[3] = 0;
    a.status[0] = row + 1;
}

template <typename TI> cudaError_t launch_combine(cu_order order, const cu_combine_args &a) {
    const dim3 grid(blocks_for(static_cast<int64_t>(a.out.w) * (a.out.c / 8)), a.out.h, a.out.g * a.out.n);
    if (a.out.half) return start(order, combine_kernel<TI, __half>, grid, THREADS, 0, a);
    return start(order, combine_kernel<TI, float>, grid, THREADS, 0, a);
}

} // namespace

cudaError_t cu_combine(cu_order order, const cu_combine_args *args) {
    return args->in.half ? launch_combine<__half>(order, *args) : launch_combine<float>(order, *args);
}

cudaError_t cu_embed_tokens(cu_order order, const cu_embed_tokens_args *args) {
    const dim3 grid(args->out.w, args->out.n, args->out.g);
    if (args->out.half) return start(order, tokens_kernel<__half>, grid, 128, 0, *args);
    return start(order, tokens_kernel<float>, grid, 128, 0, *args);
}

cudaError_t cu_embed_time(cu_order order, cu_view t, cu_view out) {
    if (out.half) return start(order, time_kernel<__half>, out.w, 128, 0, t, out);
    return start(order, time_kernel<float>, out.w, 128, 0, t, out);
}

cudaError_t cu_pack_u8(cu_order order, cu_view in, cu_view out, int32_t *status) {
    const dim3 grid(blocks_for(out.w), out.h, out.g * out.n);
    if (in.half) return start(order, pack_kernel<__half>, grid, THREADS, 0, in, out, status);
    return start(order, pack_kernel<float>, grid, THREADS, 0, in, out, status);
}

cudaError_t cu_unpack_u8(cu_order order, cu_view in, cu_view out) {
    const dim3 grid(blocks_for(out.w), out.h, out.g * out.n);
    if (out.half) return start(order, unpack_kernel<__half>, grid, THREADS, 0, in, out);
    return start(order, unpack_kernel<float>, grid, THREADS, 0, in, out);
}

cudaError_t cu_advance(cu_order order, const cu_advance_args *args) {
    const int64_t values = static_cast<int64_t>(args->net_in.n) * args->net_in.h * args->net_in.w * 8;
    unsigned blocks = blocks_for(values > args->n_addends ? values : args->n_addends);
    if (blocks > 512) blocks = 512;
    return start(order, advance_kernel, blocks, THREADS, 0, *args);
}
