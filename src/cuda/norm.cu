/* SPDX-License-Identifier: MIT
 * Statistics of channels, and the prologue as a pass of its own: out = up2(act(norm(cat(a, b)))).
 *
 * All of it is bound by bytes: what counts is 16-byte accesses and enough of them under way. Memory answers after some
 * 0.7 us, so 3 TB/s want 16 KB under way on each multiprocessor; two blocks of 512 threads with RING copies each have
 * 64. A group norm's readers merge the statistics themselves: a block works on a slab of whole groups whose channels
 * are whole 16-byte vectors, and merges only those groups' parts, while its first rows are on their way. */
#include "cuda/common.cuh"
#include "cuda/tiles.h"

namespace {

enum { THREADS = 512, BLOCKS = 264, RING = 4, MAP_THREADS = 256 }; /* BLOCKS: two on each of 132 multiprocessors */

/* A pixel of the input, or the four that it becomes. */
template <typename T> CU_DEVICE void store_pixel(T *to, const cu_apply_args &a, const float v[8]) {
    store8(to, v);
    if (!a.up2) return;
    store8(to + a.out.sw, v);
    store8(to + a.out.sh, v);
    store8(to + a.out.sh + a.out.sw, v);
}

/* ---- what statistics and group norm share: blocks of (vectors of a slab, lanes), each lane every `lanes`-th row */

/* A multiple of 8, so that the threads are whole rows of the slab's channels too. */
int lanes_of(int slab, int rows) {
    const int most = THREADS / slab / 8 * 8, enough = cu_ceil_div(rows, 8) * 8;
    return most < enough ? most : enough;
}

/* 8 channels of every `by`-th row from `row` to `last`, by a thread through its own RING slots of 16 bytes in shared
 * memory, where copies take no registers. */
template <typename T> struct row_reader {
    enum { AHEAD = RING * 2 / sizeof(T) };
    const T *from;
    T *slots;
    row_walk walk;
    int row, last, by, apart;
    __device__ row_reader(const cu_view &v, int64_t at, uint4 *ring, int row, int last)
        : from(static_cast<const T *>(v.p) + at),
          slots(reinterpret_cast<T *>(ring) + (threadIdx.y * blockDim.x + threadIdx.x) * 8),
          walk(v.sh, v.sw, v.w, row, blockDim.y), row(row), last(last), by(blockDim.y), apart(blockDim.x * by * 8) {}
    __device__ void fetch(int k, int r) {
        if (r < last)
            for (int i = 0; i < 8; i += 16 / sizeof(T)) copy16(slots + k * apart + i, from + walk.at + i, true);
        copy_commit();
        walk.next();
    }
    __device__ void start() {
        for (int k = 0; k < AHEAD; k++) fetch(k, row + k * by);
    }
    template <typename F> __device__ void each(F use) {
        for (unsigned k = 0; row < last; row += by, k = (k + 1) % AHEAD) {
            float v[8];
            copy_wait<AHEAD - 1>();
            load8(slots + k * apart, v);
            fetch(k, row + AHEAD * by);
            use(v);
        }
    }
};

/* Mean and sum of squared deviations of channel c of a slab, to thread c, from the sums about `shift` of all threads t
 * with t % width == c, always in the same order; n: values of a channel. Not a number stays so. */
CU_DEVICE void channel_moments(float shift, float sum, float sum2, int width, int n, float *mean, float *m2) {
    CU_SHARED(float, sums, [2][THREADS]);
    const int threads = blockDim.x * blockDim.y, tid = threadIdx.y * blockDim.x + threadIdx.x;
    sums[0][tid] = sum, sums[1][tid] = sum2;
    __syncthreads();
    if (tid >= width) return;
    for (int i = tid + width; i < threads; i += width) sum += sums[0][i], sum2 += sums[1][i];
    sum2 -= sum * (sum / n);
    *mean = shift + sum / n;
    *m2 = sum2 < 0 ? 0 : sum2;
}

/* ---- norm_stats: one pass, sums about the part's first row (no cancellation where the mean is large). Grid: (parts,
 * slabs, g * n). */

template <typename T> __global__ void __launch_bounds__(THREADS, 2) stats_kernel(cu_stats_args a) {
    next_launch_may_start();
    CU_SHARED(uint4, ring, [RING * THREADS]);
    const int part = blockIdx.x, gn = blockIdx.z, g = gn / a.in.n, n = gn % a.in.n, width = blockDim.x * 8;
    const int first = part * a.rows_per_part, last = min(first + a.rows_per_part, a.in.h * a.in.w);
    const int threads = blockDim.x * blockDim.y, tid = threadIdx.y * blockDim.x + threadIdx.x;
    const int c = blockIdx.y * width + threadIdx.x * 8, channel = blockIdx.y * width + tid % width, end = a.in.c;
    const int64_t at = g * a.in.sg + n * a.in.sn; /* where the last slab is wider than what is left: that again */
    row_reader<T> in(a.in, at + min(c, end - 8), ring, first + threadIdx.y, last);
    const T *row = static_cast<const T *>(a.in.p) + at + first / a.in.w * a.in.sh + first % a.in.w * a.in.sw;
    float shift[8], sum[8] = {}, sum2[8] = {}, mean, m2;
    previous_launch_wait();
    in.start();
    load8(row + min(c, end - 8), shift);
    const float my_shift = static_cast<float>(row[min(channel, end - 1)]);
    in.each([&](const float v[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float d = v[i] - shift[i];
            sum[i] += d;
            sum2[i] += d * d;
        }
    });
    /* [lanes][width] sums, of which each thread adds up eight of one column */
    float *sums = reinterpret_cast<float *>(ring), *squares = sums + threads * 8, s = 0, s2 = 0;
    __syncthreads();
    store8(sums + tid * 8, sum);
    store8(squares + tid * 8, sum2);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 8; k++) s += sums[tid + k * threads], s2 += squares[tid + k * threads];
    channel_moments(my_shift, s, s2, width, last - first, &mean, &m2);
    if (tid >= width || channel >= end) return;
    float *out = static_cast<float *>(a.out.p) + g * a.out.sg + n * a.out.sn + part * a.out.sw + channel;
    out[0] = mean;
    out[end] = m2;
}

/* ---- group norm: grid (chunks of rows, slabs, g * n) */

template <typename TI, typename TO>
__global__ void __launch_bounds__(THREADS, 2) group_kernel(cu_apply_args a, int chunk) {
    next_launch_may_start();
    CU_SHARED(uint4, ring, [RING * THREADS]);
    CU_SHARED(float, means, [THREADS]);
    CU_SHARED(float, squares, [THREADS]);
    CU_SHARED(float, factors, [THREADS]);
    CU_SHARED(float, offsets, [THREADS]);
    const int slab_c = blockDim.x * 8, first_c = blockIdx.y * slab_c, per = (a.a.c + (a.b.p ? a.b.c : 0)) / a.groups;
    const int gn = blockIdx.z, g = gn / a.out.n, n = gn % a.out.n, rows = a.a.h * a.a.w, up = a.up2 ? 2 : 1;
    const int threads = blockDim.x * blockDim.y, tid = threadIdx.y * blockDim.x + threadIdx.x;
    const int first = blockIdx.x * chunk + threadIdx.y, last = min(rows, static_cast<int>(blockIdx.x + 1) * chunk);
    const int c = first_c + threadIdx.x * 8, channel = first_c + tid % slab_c;
    const bool in_a = c < a.a.c;
    const cu_view in = in_a ? a.a : a.b;
    row_reader<TI> reader(in, g * in.sg + n * in.sn + (in_a ? c : c - a.a.c), ring, first, last);
    TO *out = static_cast<TO *>(a.out.p) + g * a.out.sg + n * a.out.sn + c;
    const float gamma = a.gamma[channel], beta = a.beta[channel];
    previous_launch_wait();
    reader.start();

    const bool of_a = channel < a.a.c;
    const cu_view stats = of_a ? a.stats_a : a.stats_b;
    const float *part =
        static_cast<const float *>(stats.p) + g * stats.sg + n * stats.sn + channel - (of_a ? 0 : a.a.c);
    const float shift = part[0];
    float sum = 0, sum2 = 0, mean, m2, f[8], o[8];
#pragma unroll 8
    for (int p = tid / slab_c; p < stats.w; p += threads / slab_c) {
        const float count = min(a.rows_per_part, rows - p * a.rows_per_part), d = part[p * stats.sw] - shift;
        sum += d * count;
        sum2 += part[p * stats.sw + stats.c / 2] + d * d * count;
    }
    channel_moments(shift, sum, sum2, slab_c, rows, &mean, &m2);
    if (tid < slab_c) means[tid] = mean, squares[tid] = m2;
    __syncthreads();
    if (tid < slab_c) { /* of its group: the mean about the first channel's, then deviations from it */
        const int k = tid / per * per;
        float d = 0, s2 = 0;
        for (int i = k; i < k + per; i++) d += means[i] - means[k];
        mean = means[k] + d / per;
        for (int i = k; i < k + per; i++) s2 += squares[i] + (means[i] - mean) * (means[i] - mean) * rows;
        factors[tid] = rsqrtf(s2 / (static_cast<float>(rows) * per) + a.eps) * gamma;
        offsets[tid] = beta - mean * factors[tid];
    }
    __syncthreads();
    load8(factors + threadIdx.x * 8, f);
    load8(offsets + threadIdx.x * 8, o);
    row_walk to(up * a.out.sh, up * a.out.sw, a.a.w, first, blockDim.y);
    reader.each([&](float v[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * f[i] + o[i];
        act8(a.act, v);
        store_pixel(out + to.at, a, v);
        to.next();
    });
}

/* ---- layer norm: 8, 16 or 32 lanes a row, each with every lanes-th of its vectors in shared memory, as they are
 * stored, where loops that are not unrolled find them: this kernel comes between all others, and its instructions have
 * to be fetched each time. Grid: (blocks of rows, members); block: (lanes, rows). */

/* The limit is below what any device gives a block: sm_86 and sm_89 99 KB. */
enum { LAYER_THREADS = 256, LAYER_LIMIT = 98 * 1024 };
static_assert(CU_LAYER_CHANNELS * 3 * sizeof(float) <= LAYER_LIMIT, "factors, offsets and the row of a warp");

struct layer_args {
    cu_apply_args any; /* sizes, strides and attributes of all members */
    cu_members of;
};

/* Of the lanes of a row, which are neighbours in a warp. */
CU_DEVICE float lanes_sum(float v, int lanes) {
    for (int d = lanes / 2; d; d /= 2) v += __shfl_xor_sync(CU_ALL_LANES, v, d);
    return v;
}

template <typename TI, typename TO>
__global__ void __launch_bounds__(LAYER_THREADS) layer_kernel(const __grid_constant__ layer_args all) {
    next_launch_may_start();
    CU_SHARED_REST(16, unsigned char, layer_shared);
    const cu_apply_args &a = all.any;
    const int member = blockIdx.y, lanes = blockDim.x, lane = threadIdx.x, threads = lanes * blockDim.y,
              tid = threadIdx.y * lanes + lane, n_vec = a.a.c / 8, rows = a.a.h * a.a.w, up = a.up2 ? 2 : 1;
    const unsigned n_rows = static_cast<unsigned>(rows) * a.out.g * a.out.n,
                   row = blockIdx.x * blockDim.y + threadIdx.y;
    float *gamma = reinterpret_cast<float *>(layer_shared), *beta = gamma + a.a.c;
    TI *mine = reinterpret_cast<TI *>(beta + a.a.c) + tid * 8; /* the k-th vector: mine[k * threads * 8] */
#pragma unroll 1
    for (int i = tid; i < 2 * n_vec; i += threads) {
        copy16(gamma + i * 4, all.of.gamma[member] + i * 4, true);
        copy16(beta + i * 4, all.of.beta[member] + i * 4, true);
    }
    const int at = row < n_rows ? row : n_rows - 1; /* whole warps add up */
    const int gn = at / rows, r = at - gn * rows, g = gn / a.out.n, n = gn - g * a.out.n, h = r / a.a.w,
              w = r - h * a.a.w;
    const TI *in = static_cast<const TI *>(all.of.a[member]) + view_at(a.a, g, n, h, w);
    TO *out = static_cast<TO *>(all.of.out[member]) + view_at(a.out, g, n, up * h, up * w);
    float x[8], mean = 0, squares = 0; /* about the mean, since one channel may lie far from it */
    previous_launch_wait();
    TI *to = mine;
#pragma unroll 1
    for (int vec = lane; vec < n_vec; vec += lanes, to += threads * 8)
        for (int i = 0; i < 8; i += 16 / sizeof(TI)) copy16(to + i, in + vec * 8 + i, true);
    copy_commit();
    copy_wait<0>();
    __syncthreads(); /* others bring factors and offsets, too */
    const TI *from = mine;
#pragma unroll 1
    for (int vec = lane; vec < n_vec; vec += lanes, from += threads * 8) {
        load8(from, x);
#pragma unroll
        for (int i = 0; i < 8; i++) mean += x[i];
    }
    mean = lanes_sum(mean, lanes) / a.a.c;
    from = mine;
#pragma unroll 1
    for (int vec = lane; vec < n_vec; vec += lanes, from += threads * 8) {
        load8(from, x);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += (x[i] - mean) * (x[i] - mean);
    }
    const float rstd = rsqrtf(lanes_sum(squares, lanes) / a.a.c + a.eps);
    if (row >= n_rows) return;
    auto write = [&](auto act) {
        from = mine;
#pragma unroll 1
        for (int vec = lane; vec < n_vec; vec += lanes, from += threads * 8) {
            float factor[8], offset[8];
            load8(from, x);
            load8(gamma + vec * 8, factor);
            load8(beta + vec * 8, offset);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = (x[i] - mean) * rstd * factor[i] + offset[i];
            act(x);
            store_pixel(out + vec * 8, a, x);
        }
    };
    if (a.act == CU_ACT_NONE) write([](float *) {});
    else write([&](float *v) { act8(a.act, v); });
}

template <typename TI, typename TO> cudaError_t launch_layer(cu_order order, const cu_apply_args *args, int members) {
    enum { MULTIPROCESSORS = 132 };
    const layer_args all = {*args, members_of(args, members)};
    /* five vectors a lane at 40, 80 and 160 */
    const int n_vec = args->a.c / 8, lanes = n_vec <= 40 ? 8 : n_vec <= 80 ? 16 : 32, kept = cu_ceil_div(n_vec, lanes);
    const int64_t rows = static_cast<int64_t>(args->a.h) * args->a.w * args->out.g * args->out.n;
    auto bytes = [&](int threads) { return 2 * sizeof(float) * args->a.c + sizeof(TI) * 8 * kept * threads; };
    /* A block for each multiprocessor or fewer, as large as that takes: those of the next launch, which come while this
     * one runs, are then spread as evenly. */
    int threads = LAYER_THREADS;
    while (threads > 64 && rows * members * lanes < threads * MULTIPROCESSORS) threads /= 2;
    while (threads > 32 && bytes(threads) > LAYER_LIMIT) threads /= 2;
    void (*kernel)(const layer_args) = layer_kernel<TI, TO>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, LAYER_LIMIT);
    if (e != cudaSuccess) return e;
    const dim3 block(lanes, threads / lanes);
    return start(order, kernel, dim3(static_cast<unsigned>((rows + block.y - 1) / block.y), members), block,
                 bytes(threads), all);
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

template <typename TI, typename TO> cudaError_t launch_apply(cu_order order, const cu_apply_args *args, int members) {
    const cu_apply_args &a = *args;
    if (a.norm == CU_NORM_LAYER) return launch_layer<TI, TO>(order, args, members);
    const int n_vec = (a.a.c + (a.b.p ? a.b.c : 0)) / 8, pictures = a.out.g * a.out.n, rows = a.a.h * a.a.w;
    if (a.norm == CU_NORM_GROUP) {
        int slab = slab_unit(n_vec * 8 / a.groups);
        while (slab * 2 <= 10 && n_vec % (slab * 2) == 0) slab *= 2; /* 128 bytes of a row together */
        const int lanes = lanes_of(slab, rows), slabs = n_vec / slab,
                  share = cu_ceil_div(rows * slabs * pictures, BLOCKS), chunk = share > lanes ? share : lanes;
        return start(order, group_kernel<TI, TO>, dim3(cu_ceil_div(rows, chunk), slabs, pictures), dim3(slab, lanes), 0,
                     a, chunk);
    }
    return start(order, map_kernel<TI, TO>, dim3(cu_ceil_div(a.a.w * n_vec, MAP_THREADS), a.a.h, pictures), MAP_THREADS,
                 0, a);
}

} // namespace

cudaError_t cu_norm_stats(cu_order order, const cu_stats_args *args) {
    const int n_vec = args->in.c / 8, parts = args->out.w, pictures = args->in.g * args->in.n;
    int slab = n_vec < 8 ? n_vec : 8;
    if (slab == 8 && parts * cu_ceil_div(n_vec, slab) * pictures * 2 <= BLOCKS) slab = 4;
    const dim3 grid(parts, cu_ceil_div(n_vec, slab), pictures), block(slab, lanes_of(slab, args->rows_per_part));
    if (args->in.half) return start(order, stats_kernel<__half>, grid, block, 0, *args);
    return start(order, stats_kernel<float>, grid, block, 0, *args);
}

cudaError_t cu_apply(cu_order order, const cu_apply_args *args, int32_t n) {
    if (n > (args->norm == CU_NORM_LAYER ? CU_MAX_MEMBERS : 1)) return cudaErrorInvalidValue;
    if (args->a.half)
        return args->out.half ? launch_apply<__half, __half>(order, args, n)
                              : launch_apply<__half, float>(order, args, n);
    return args->out.half ? launch_apply<float, __half>(order, args, n) : launch_apply<float, float>(order, args, n);
}

cudaError_t cu_probe(void) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(map_kernel<__half, __half>));
}
