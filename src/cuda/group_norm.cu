/* SPDX-License-Identifier: MIT
 * Group norm in one pass over memory (sm_90): out = act(norm(cat(a, b))), without statistics made before.
 *
 * A block takes a slab of whole groups, some vectors of 8 channels wide, of some rows of one picture, and keeps it in
 * shared memory. Where a picture has more rows than a block should take, a cluster of up to 8 shares them, and each
 * block merges all their moments in the cluster's order. Against statistics and application as two launches this reads
 * the tensor once, and there is one launch fewer to wait for, which on the lower levels is all of the time. Pictures
 * over MOST bytes are norm.cu's, whose loads are longer and whose blocks are not bound to each other. */
#include "cuda/common.cuh"

namespace {

enum { THREADS = 256, MAX_SPLITS = 8, MAX_GROUPS = 64, WANT_BLOCKS = 96, LIMIT = 200 * 1024, MOST = 8 << 20 };

struct launch_args {
    cu_apply_args of[CU_MAX_MEMBERS];
};

/* slab: vectors of 8 channels; lanes: rows at a time; splits: blocks of a cluster; kept: rows of a lane */
struct geometry {
    int slab, lanes, splits, kept;
    size_t bytes;
};

int divide_up(int a, int b) { return (a + b - 1) / b; }

int n_vectors(const cu_apply_args &a) { return (a.a.c + a.b.c) / 8; }

/* False: no such slab, or it is too large to keep. */
bool lay_out(const cu_apply_args &a, int members, geometry *g) {
    const int n_vec = n_vectors(a), per = n_vec * 8 / a.groups, rows = a.a.h * a.a.w,
              pictures = a.out.g * a.out.n * members;
    const size_t vector = a.a.half ? 16 : 32;
    if (vector * rows * n_vec > MOST) return false;
    int unit = 1;
    while (unit * 8 % per) unit++;
    int slab = unit;
    while (slab < 4 && n_vec % (slab * 2) == 0) slab *= 2; /* 64 bytes of a row together, as memory likes */
    for (;; slab /= 2) {
        if (slab * 8 > THREADS || slab * 8 / per > MAX_GROUPS) return false;
        const int blocks = pictures * (n_vec / slab);
        int splits = 1;
        while (splits < MAX_SPLITS && ((blocks * splits < WANT_BLOCKS && rows * slab > THREADS * splits) ||
                                       vector * rows * slab > static_cast<size_t>(splits) * LIMIT))
            splits *= 2;
        const int mine = divide_up(rows, splits), all = THREADS / slab, whole = divide_up(32, slab);
        int lanes = mine < all ? mine : all;
        if (lanes < whole) lanes = whole; /* a warp at least: it merges */
        g->slab = slab, g->lanes = lanes, g->splits = splits, g->kept = divide_up(mine, lanes);
        g->bytes = vector * g->kept * lanes * slab;
        if (g->bytes <= LIMIT) return true;
        if (slab == unit || slab % 2 || slab / 2 * vector < 32) return false; /* memory is read 32 bytes at a time */
    }
}

#if __CUDA_ARCH__ >= 900

/* What a block is, and what its threads tell each other. */
struct block {
    int threads, tid, lanes, channels, per, n_groups; /* channels: of the slab; per: of a group */
};
struct scratch {
    float sums[THREADS * 8], squares[THREADS * 8]; /* [lane][channel], about the group's first value */
    float few[2][THREADS], moments[2][MAX_GROUPS], merged[2][MAX_GROUPS];
};

/* The lanes' sums to this block's means and squares: columns by all threads, then groups by a warp each, always in the
 * same order. first_row: the values that the sums are about; count: values of a group. */
template <typename T> CU_DEVICE void sum_groups(scratch &s, const block &b, const T *first_row, float count) {
    const int parts = b.threads / b.channels > 0 ? b.threads / b.channels : 1, lane = b.tid % 32,
              n_warps = b.threads / 32;
    for (int i = b.tid; i < b.channels * parts; i += b.threads) {
        const int column = i % b.channels;
        float sum = 0, sum2 = 0;
        for (int l = i / b.channels; l < b.lanes; l += parts)
            sum += s.sums[l * b.channels + column], sum2 += s.squares[l * b.channels + column];
        s.few[0][i] = sum, s.few[1][i] = sum2;
    }
    __syncthreads();
    if (b.tid / 32 >= n_warps) return; /* a last part of a warp takes no group: shuffles want whole warps */
    for (int k = b.tid / 32; k < b.n_groups; k += n_warps) {
        float sum = 0, sum2 = 0;
        for (int i = lane; i < parts * b.per; i += 32) {
            const int at = i / b.per * b.channels + k * b.per + i % b.per;
            sum += s.few[0][at], sum2 += s.few[1][at];
        }
        sum = warp_sum(sum), sum2 = warp_sum(sum2);
        if (lane == 0) {
            s.moments[0][k] = static_cast<float>(first_row[k * b.per]) + sum / count;
            s.moments[1][k] = fmaxf(sum2 - sum * (sum / count), 0.0f);
        }
    }
}

/* The first row of part i of the picture's rows. */
CU_DEVICE int part_begin(int rows, int i, int splits) {
    return static_cast<int>(static_cast<int64_t>(rows) * i / splits);
}

/* The moments of all blocks of the cluster, in order, to means and 1 / deviations. */
CU_DEVICE void merge_groups(scratch &s, const block &b, int rows, int splits, float eps) {
    const float total = static_cast<float>(rows) * b.per;
    for (int k = b.tid; k < b.n_groups; k += b.threads) {
        float means[MAX_SPLITS], squares[MAX_SPLITS], counts[MAX_SPLITS], mean = 0, m2 = 0;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++) {
            if (i >= splits) break;
            const float *from =
                splits > 1 ? static_cast<const float *>(__cluster_map_shared_rank(&s.moments[0][0], i)) : s.moments[0];
            means[i] = from[k], squares[i] = from[MAX_GROUPS + k];
            counts[i] = static_cast<float>(part_begin(rows, i + 1, splits) - part_begin(rows, i, splits)) * b.per;
        }
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) mean += means[i] * (counts[i] / total);
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) m2 += squares[i] + (means[i] - mean) * (means[i] - mean) * counts[i];
        s.merged[0][k] = mean, s.merged[1][k] = rsqrtf(m2 / total + eps);
    }
}

#endif

/* Grid: (splits, slabs, members x pictures); block: (vectors of the slab, lanes). */
template <typename TI, typename TO>
__global__ void __launch_bounds__(THREADS) group_norm_kernel(const __grid_constant__ launch_args all, int kept) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ scratch s;
    const int pictures = all.of[0].out.g * all.of[0].out.n;
    const cu_apply_args &a = all.of[blockIdx.z / pictures];
    const int gn = blockIdx.z % pictures, g = gn / a.out.n, n = gn % a.out.n, splits = gridDim.x, rank = blockIdx.x,
              rows = a.a.h * a.a.w, end = part_begin(rows, rank + 1, splits);
    const int channels = blockDim.x * 8, per = (a.a.c + a.b.c) / a.groups, mine = threadIdx.x * 8,
              c = blockIdx.y * channels + mine, begin = part_begin(rows, rank, splits);
    const block b = {static_cast<int>(blockDim.x * blockDim.y),
                     static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x),
                     static_cast<int>(blockDim.y),
                     channels,
                     per,
                     channels / per};
    const bool in_a = c < a.a.c;
    const cu_view &in = in_a ? a.a : a.b;
    TI *keep = reinterpret_cast<TI *>(shared) + b.tid * 8; /* the k-th row's vector: keep[k * threads * 8] */

    next_launch_may_start();
    float factor[8], offset[8], v[8];
    load8(a.gamma + c, factor);
    load8(a.beta + c, offset);
    int of[8]; /* my channels' groups of the slab */
#pragma unroll
    for (int i = 0; i < 8; i++) of[i] = (mine + i) / per;
    previous_launch_wait();
    const TI *src = static_cast<const TI *>(in.p) + g * in.sg + n * in.sn + (in_a ? c : c - a.a.c);
    for (int k = 0; k < kept; k++) {
        const int r = begin + k * b.lanes + threadIdx.y;
        if (r >= end) break;
        const int h = r / a.a.w, w = r - h * a.a.w;
        const TI *from = src + h * in.sh + w * in.sw;
        for (int i = 0; i < 8; i += 16 / sizeof(TI)) copy16(keep + k * b.threads * 8 + i, from + i, true);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();

    /* Sums about the first value of each group, so that nothing cancels where means are large. */
    const TI *first_row = reinterpret_cast<const TI *>(shared);
    float shift[8], sum[8] = {}, sum2[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) shift[i] = static_cast<float>(first_row[of[i] * per]);
    for (int k = 0; k < kept; k++) {
        if (begin + k * b.lanes + static_cast<int>(threadIdx.y) >= end) break;
        load8(keep + k * b.threads * 8, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float d = v[i] - shift[i];
            sum[i] += d;
            sum2[i] += d * d;
        }
    }
    store8(s.sums + b.tid * 8, sum);
    store8(s.squares + b.tid * 8, sum2);
    __syncthreads();
    sum_groups(s, b, first_row, static_cast<float>(end - begin) * per);
    if (splits > 1) cluster_meet();
    else __syncthreads();
    merge_groups(s, b, rows, splits, a.eps);
    __syncthreads();
    if (splits > 1) asm volatile("barrier.cluster.arrive.relaxed;\n" ::: "memory");
#pragma unroll
    for (int i = 0; i < 8; i++) {
        factor[i] *= s.merged[1][of[i]];
        offset[i] -= s.merged[0][of[i]] * factor[i];
    }
    TO *dst = static_cast<TO *>(a.out.p) + g * a.out.sg + n * a.out.sn + c;
    for (int k = 0; k < kept; k++) {
        const int r = begin + k * b.lanes + threadIdx.y;
        if (r >= end) break;
        const int h = r / a.a.w, w = r - h * a.a.w;
        load8(keep + k * b.threads * 8, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * factor[i] + offset[i];
        act8(a.act, v);
        store8(dst + h * a.out.sh + w * a.out.sw, v);
    }
    /* no block ends while another reads its moments, which are in registers of all that have arrived */
    if (splits > 1) asm volatile("barrier.cluster.wait;\n" ::: "memory");
#endif
}

template <typename TI, typename TO>
cudaError_t launch(cu_order order, const launch_args &args, int members, const geometry &g) {
    const cu_apply_args &a = args.of[0];
    void (*kernel)(const launch_args, int) = group_norm_kernel<TI, TO>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, LIMIT);
    if (e != cudaSuccess) return e;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = g.splits;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(g.splits, n_vectors(a) / g.slab, members * a.out.g * a.out.n);
    config.blockDim = dim3(g.slab, g.lanes);
    config.dynamicSmemBytes = g.bytes;
    config.stream = order.stream;
    config.attrs = attributes;
    config.numAttrs = order.overlap ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, args, g.kept);
}

} // namespace

bool cu_group_norm_fits(const cu_apply_args *args, int32_t members) {
    geometry g;
    return args->norm == CU_NORM_GROUP && !args->up2 && members <= CU_MAX_MEMBERS && lay_out(*args, members, &g);
}

cudaError_t cu_group_norm(cu_order order, const cu_apply_args *args, int32_t members) {
    geometry g;
    launch_args all = {};
    if (members > CU_MAX_MEMBERS || !lay_out(*args, members, &g)) return cudaErrorInvalidValue;
    for (int i = 0; i < members; i++) all.of[i] = args[i];
    if (args->a.half)
        return args->out.half ? launch<__half, __half>(order, all, members, g)
                              : launch<__half, float>(order, all, members, g);
    return args->out.half ? launch<float, __half>(order, all, members, g)
                          : launch<float, float>(order, all, members, g);
}
