/* SPDX-License-Identifier: MIT
 * Statistics of channels, and the prologue as a pass of its own: out = up2(act(norm(cat(a, b)))).
 *
 * All of it is bound by bytes: a tensor of 32x48x320 halfs for two passes is 2 MB, under 1 us of L2 traffic, so what
 * counts is enough blocks and 16-byte accesses. Group norm's readers merge the statistics themselves: a block works on
 * a slab of whole groups whose channels are whole 16-byte vectors, and merges only those groups' parts. */
#include "cuda/common.cuh"

namespace {

enum { THREADS = 256, MIN_BLOCKS = 132 };

int divide_up(int a, int b) { return (a + b - 1) / b; }

/* A pixel of the input, or the four that it becomes. */
template <typename T> CU_DEVICE void store_pixel(T *to, const cu_apply_args &a, const float v[8]) {
    store8(to, v);
    if (!a.up2) return;
    store8(to + a.out.sw, v);
    store8(to + a.out.sh, v);
    store8(to + a.out.sh + a.out.sw, v);
}

/* ---- norm_stats: one pass. Each thread sums its rows shifted by the first of them (no cancellation where the mean is
 * large), then a thread a channel merges the threads' means and deviations in order. Block: (vectors, row lanes). */

template <typename T> __global__ void stats_kernel(cu_stats_args a, int n_vec) {
    launches_meet();
    extern __shared__ __align__(16) float shared[];
    const int part = blockIdx.x, gn = blockIdx.z, g = gn / a.in.n, n = gn % a.in.n;
    const int vec = blockIdx.y * blockDim.x + threadIdx.x, lanes = blockDim.y, width = blockDim.x * 8;
    const int first = part * a.rows_per_part, all = a.in.h * a.in.w;
    const int rows = min(a.rows_per_part, all - first);
    float *means = shared, *squares = shared + lanes * width;
    if (vec < n_vec) {
        const T *in = static_cast<const T *>(a.in.p) + g * a.in.sg + n * a.in.sn + vec * 8;
        float shift[8] = {}, sum[8] = {}, sum2[8] = {};
        int count = 0;
        for (int r = threadIdx.y; r < rows; r += lanes, count++) {
            const int at = first + r, h = at / a.in.w, w = at - h * a.in.w;
            float v[8];
            load8(in + h * a.in.sh + w * a.in.sw, v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (count == 0) shift[i] = v[i];
                const float d = v[i] - shift[i];
                sum[i] += d;
                sum2[i] += d * d;
            }
        }
        const float inverse = count ? 1.0f / count : 0.0f;
        const int at = threadIdx.y * width + threadIdx.x * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            means[at + i] = shift[i] + sum[i] * inverse;
            squares[at + i] = sum2[i] - sum[i] * sum[i] * inverse;
        }
    }
    __syncthreads();
    const int n_c = min(width, (n_vec - static_cast<int>(blockIdx.y * blockDim.x)) * 8);
    float *out = static_cast<float *>(a.out.p) + g * a.out.sg + n * a.out.sn + part * a.out.sw;
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < n_c; c += blockDim.x * blockDim.y) {
        float mean = 0, m2 = 0;
        for (int l = 0; l < lanes; l++) mean += means[l * width + c] * ((rows - l + lanes - 1) / lanes);
        mean /= rows;
        for (int l = 0; l < lanes && l < rows; l++) {
            const float d = means[l * width + c] - mean;
            m2 += fmaxf(squares[l * width + c], 0.0f) + d * d * ((rows - l + lanes - 1) / lanes);
        }
        const int channel = blockIdx.y * width + c;
        out[channel] = mean;
        out[a.in.c + channel] = m2;
    }
}

/* ---- group norm: grid (chunks of rows, slabs, g * n), block (vectors of a slab, row lanes) */

/* Mean and 1/deviation of one group by one warp: the mean of all parts first, then deviations from it. Lanes take the
 * parts in a fixed order and meet in a fixed tree, so that the bits never change. */
CU_DEVICE void merge_group(const cu_apply_args &a, const float *sa, const float *sb, int group, int per, int rows,
                           int lane, float *mean_out, float *rstd_out) {
    const int pairs = per * a.stats_a.w;
    const float total = static_cast<float>(rows) * per;
    float mean = 0, m2 = 0;
    for (int pass = 0; pass < 2; pass++) {
        float sum = 0;
        for (int i = lane; i < pairs; i += 32) {
            const int part = i / per, c = group * per + i - part * per;
            const bool in_a = c < a.a.c;
            const float *p = in_a ? sa + part * a.stats_a.sw + c : sb + part * a.stats_b.sw + c - a.a.c;
            const float count = min(a.rows_per_part, rows - part * a.rows_per_part);
            if (pass == 0) sum += p[0] * count;
            else sum += p[(in_a ? a.stats_a.c : a.stats_b.c) / 2] + (p[0] - mean) * (p[0] - mean) * count;
        }
        sum = warp_sum(sum);
        if (pass == 0) mean = sum / total;
        else m2 = sum;
    }
    *mean_out = mean;
    *rstd_out = rsqrtf(m2 / total + a.eps);
}

template <typename TI, typename TO> __global__ void group_kernel(cu_apply_args a, int chunk) {
    launches_meet();
    extern __shared__ __align__(16) float shared[]; /* per channel of the slab: factor, then offset */
    const int slab_c = blockDim.x * 8, first_c = blockIdx.y * slab_c, c_all = a.a.c + (a.b.p ? a.b.c : 0);
    const int gn = blockIdx.z, g = gn / a.out.n, n = gn % a.out.n, rows = a.a.h * a.a.w;
    const int tid = threadIdx.y * blockDim.x + threadIdx.x, n_warps = blockDim.x * blockDim.y / 32;
    const int per = c_all / a.groups, first_group = first_c / per, n_groups = slab_c / per;
    const float *sa = static_cast<const float *>(a.stats_a.p) + g * a.stats_a.sg + n * a.stats_a.sn;
    const float *sb = a.b.p ? static_cast<const float *>(a.stats_b.p) + g * a.stats_b.sg + n * a.stats_b.sn : nullptr;
    __shared__ float moments[2][THREADS];
    if (tid / 32 < n_warps) /* a last part of a warp takes no group: shuffles want whole warps */
        for (int k = tid / 32; k < n_groups; k += n_warps) {
            float mean, rstd;
            merge_group(a, sa, sb, first_group + k, per, rows, tid & 31, &mean, &rstd);
            if ((tid & 31) == 0) moments[0][k] = mean, moments[1][k] = rstd;
        }
    __syncthreads();
    float *factor = shared, *offset = shared + slab_c;
    for (int c = tid; c < slab_c; c += blockDim.x * blockDim.y) {
        const float f = moments[1][c / per] * a.gamma[first_c + c];
        factor[c] = f;
        offset[c] = a.beta[first_c + c] - moments[0][c / per] * f;
    }
    __syncthreads();
    const int c = first_c + threadIdx.x * 8;
    const bool in_a = c < a.a.c;
    const cu_view &in = in_a ? a.a : a.b;
    const TI *src = static_cast<const TI *>(in.p) + g * in.sg + n * in.sn + (in_a ? c : c - a.a.c);
    TO *dst = static_cast<TO *>(a.out.p) + g * a.out.sg + n * a.out.sn + c;
    float f[8], o[8], v[8];
    load8(factor + threadIdx.x * 8, f);
    load8(offset + threadIdx.x * 8, o);
    const int last = min(rows, static_cast<int>(blockIdx.x + 1) * chunk), up = a.up2 ? 2 : 1;
    for (int r = blockIdx.x * chunk + threadIdx.y; r < last; r += blockDim.y) {
        const int h = r / a.a.w, w = r - h * a.a.w;
        load8(src + h * in.sh + w * in.sw, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * f[i] + o[i];
        act8(a.act, v);
        store_pixel(dst + up * h * a.out.sh + up * w * a.out.sw, a, v);
    }
}

/* ---- layer norm: a warp a row; up to KEEP vectors a lane stay in registers, wider rows are read again */

enum { KEEP = 5, LAYER_WARPS = 4 };

template <typename TI, typename TO> __global__ void layer_kernel(cu_apply_args a) {
    launches_meet();
    const int lane = threadIdx.x, rows = a.a.h * a.a.w, n_vec = a.a.c / 8, up = a.up2 ? 2 : 1;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * LAYER_WARPS + threadIdx.y;
    if (row >= static_cast<int64_t>(rows) * a.out.g * a.out.n) return;
    const int gn = static_cast<int>(row / rows), r = static_cast<int>(row % rows), g = gn / a.out.n, n = gn % a.out.n;
    const int h = r / a.a.w, w = r - h * a.a.w;
    const TI *in = static_cast<const TI *>(a.a.p) + view_at(a.a, g, n, h, w);
    TO *out = static_cast<TO *>(a.out.p) + view_at(a.out, g, n, up * h, up * w);
    float v[KEEP][8], extra[8], mean = 0, m2 = 0;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        if (lane + 32 * k < n_vec) load8(in + (lane + 32 * k) * 8, v[k]);
        for (int i = 0; i < 8; i++) {
            if (lane + 32 * k >= n_vec) v[k][i] = 0;
            mean += v[k][i];
        }
    }
    for (int k = lane + 32 * KEEP; k < n_vec; k += 32) {
        load8(in + k * 8, extra);
        for (int i = 0; i < 8; i++) mean += extra[i];
    }
    mean = warp_sum(mean) / a.a.c;
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        if (lane + 32 * k < n_vec)
            for (int i = 0; i < 8; i++) m2 += (v[k][i] - mean) * (v[k][i] - mean);
    for (int k = lane + 32 * KEEP; k < n_vec; k += 32) {
        load8(in + k * 8, extra);
        for (int i = 0; i < 8; i++) m2 += (extra[i] - mean) * (extra[i] - mean);
    }
    const float rstd = rsqrtf(warp_sum(m2) / a.a.c + a.eps);
    auto finish = [&](float x[8], int vec) {
        float gamma[8], beta[8];
        load8(a.gamma + vec * 8, gamma);
        load8(a.beta + vec * 8, beta);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = (x[i] - mean) * rstd * gamma[i] + beta[i];
        act8(a.act, x);
        store_pixel(out + vec * 8, a, x);
    };
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        if (lane + 32 * k < n_vec) finish(v[k], lane + 32 * k);
    for (int k = lane + 32 * KEEP; k < n_vec; k += 32) {
        load8(in + k * 8, extra);
        finish(extra, k);
    }
}

/* ---- no norm: grid (vectors of an input row, input rows, g * n) */

template <typename TI, typename TO> __global__ void map_kernel(cu_apply_args a) {
    launches_meet();
    const int c_all = a.a.c + (a.b.p ? a.b.c : 0), n_vec = c_all / 8;
    const int i = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, gn = blockIdx.z, g = gn / a.out.n,
              n = gn % a.out.n;
    if (i >= a.a.w * n_vec) return;
    const int w = i / n_vec, c = (i - w * n_vec) * 8;
    const bool in_a = c < a.a.c;
    const cu_view &in = in_a ? a.a : a.b;
    float v[8];
    load8(static_cast<const TI *>(in.p) + view_at(in, g, n, h, w) + (in_a ? c : c - a.a.c), v);
    act8(a.act, v);
    const int up = a.up2 ? 2 : 1;
    store_pixel(static_cast<TO *>(a.out.p) + view_at(a.out, g, n, up * h, up * w) + c, a, v);
}

/* Smallest number of vectors that holds whole groups of `per` channels. */
int slab_unit(int per) {
    int unit = 1;
    while (unit * 8 % per) unit++;
    return unit;
}

template <typename TI, typename TO> cudaError_t launch_apply(cu_order order, const cu_apply_args &a) {
    const int n_vec = (a.a.c + (a.b.p ? a.b.c : 0)) / 8, pictures = a.out.g * a.out.n, rows = a.a.h * a.a.w;
    if (a.norm == CU_NORM_LAYER) {
        const int64_t all = static_cast<int64_t>(rows) * pictures;
        return start(order, layer_kernel<TI, TO>, static_cast<unsigned>((all + LAYER_WARPS - 1) / LAYER_WARPS),
                     dim3(32, LAYER_WARPS), 0, a);
    }
    if (a.norm == CU_NORM_GROUP) {
        const int unit = slab_unit(n_vec * 8 / a.groups);
        int slab = unit;
        while (slab * 2 <= 20 && n_vec % (slab * 2) == 0) slab *= 2;
        const int lanes = slab >= THREADS ? 1 : THREADS / slab, slabs = n_vec / slab;
        int chunk = 4 * lanes;
        while (chunk < rows && divide_up(rows, chunk) * slabs * pictures > 8 * MIN_BLOCKS) chunk *= 2;
        return start(order, group_kernel<TI, TO>, dim3(divide_up(rows, chunk), slabs, pictures), dim3(slab, lanes),
                     slab * 16 * sizeof(float), a, chunk);
    }
    return start(order, map_kernel<TI, TO>, dim3(divide_up(a.a.w * n_vec, THREADS), a.a.h, pictures), THREADS, 0, a);
}

} // namespace

cudaError_t cu_norm_stats(cu_order order, const cu_stats_args *args) {
    const int n_vec = args->in.c / 8, parts = args->out.w, pictures = args->in.g * args->in.n;
    int width = n_vec < 40 ? n_vec : 40;
    while (width > 8 && width % 2 == 0 && parts * divide_up(n_vec, width) * pictures < MIN_BLOCKS) width /= 2;
    const int lanes = THREADS / width;
    const dim3 grid(parts, divide_up(n_vec, width), pictures), block(width, lanes);
    const size_t shared = static_cast<size_t>(lanes) * width * 16 * sizeof(float);
    if (args->in.half) return start(order, stats_kernel<__half>, grid, block, shared, *args, n_vec);
    return start(order, stats_kernel<float>, grid, block, shared, *args, n_vec);
}

cudaError_t cu_apply(cu_order order, const cu_apply_args *args) {
    if (args->a.half)
        return args->out.half ? launch_apply<__half, __half>(order, *args)
                              : launch_apply<__half, float>(order, *args);
    return args->out.half ? launch_apply<float, __half>(order, *args) : launch_apply<float, float>(order, *args);
}

cudaError_t cu_probe(void) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(map_kernel<__half, __half>));
}
