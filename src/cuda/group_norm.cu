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

/* Grid: (splits, slabs, members x pictures); block: (vectors of the slab, lanes). */
template <typename TI, typename TO>
__global__ void __launch_bounds__(THREADS) group_norm_kernel(const __grid_constant__ launch_args all, int kept) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float sums[THREADS * 8], squares[THREADS * 8], few[2][THREADS], moments[2][MAX_GROUPS],
        merged[2][MAX_GROUPS];
    const int pictures = all.of[0].out.g * all.of[0].out.n;
    const cu_apply_args &a = all.of[blockIdx.z / pictures];
    const int gn = blockIdx.z % pictures, g = gn / a.out.n, n = gn % a.out.n;
    const int splits = gridDim.x, rank = blockIdx.x, rows = a.a.h * a.a.w;
    const int begin = static_cast<int>(static_cast<int64_t>(rows) * rank / splits),
              end = static_cast<int>(static_cast<int64_t>(rows) * (rank + 1) / splits);
    const int threads = blockDim.x * blockDim.y, tid = threadIdx.y * blockDim.x + threadIdx.x, lane = tid % 32,
              n_warps = threads / 32, lanes = blockDim.y;
    const int slab_c = blockDim.x * 8, per = (a.a.c + a.b.c) / a.groups, n_groups = slab_c / per,
              mine = threadIdx.x * 8, c = blockIdx.y * slab_c + mine;
    const bool in_a = c < a.a.c;
    const cu_view &in = in_a ? a.a : a.b;
    TI *keep = reinterpret_cast<TI *>(shared) + tid * 8; /* the k-th row's vector: keep[k * threads * 8] */

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
        const int r = begin + k * lanes + threadIdx.y;
        if (r >= end) break;
        const int h = r / a.a.w, w = r - h * a.a.w;
        const TI *from = src + h * in.sh + w * in.sw;
        for (int i = 0; i < 8; i += 16 / sizeof(TI)) copy16(keep + k * threads * 8 + i, from + i, true);
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
        if (begin + k * lanes + static_cast<int>(threadIdx.y) >= end) break;
        load8(keep + k * threads * 8, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float d = v[i] - shift[i];
            sum[i] += d;
            sum2[i] += d * d;
        }
    }
    store8(sums + tid * 8, sum);
    store8(squares + tid * 8, sum2);
    __syncthreads();
    /* Columns of the lanes' sums by all threads, then groups by a warp each: always the same order. */
    const int parts = threads / slab_c > 0 ? threads / slab_c : 1;
    for (int i = tid; i < slab_c * parts; i += threads) {
        const int column = i % slab_c;
        float s = 0, s2 = 0;
        for (int l = i / slab_c; l < lanes; l += parts)
            s += sums[l * slab_c + column], s2 += squares[l * slab_c + column];
        few[0][i] = s, few[1][i] = s2;
    }
    __syncthreads();
    const float share = static_cast<float>(end - begin) * per;
    if (tid / 32 < n_warps) /* a last part of a warp takes no group: shuffles want whole warps */
        for (int k = tid / 32; k < n_groups; k += n_warps) {
            float s = 0, s2 = 0;
            for (int i = lane; i < parts * per; i += 32) {
                const int at = i / per * slab_c + k * per + i % per;
                s += few[0][at], s2 += few[1][at];
            }
            s = warp_sum(s), s2 = warp_sum(s2);
            if (lane == 0) {
                moments[0][k] = static_cast<float>(first_row[k * per]) + s / share;
                moments[1][k] = fmaxf(s2 - s * (s / share), 0.0f);
            }
        }

    if (splits > 1) cluster_meet();
    else __syncthreads();
    for (int k = tid; k < n_groups; k += threads) {
        float means[MAX_SPLITS], parts_m2[MAX_SPLITS], counts[MAX_SPLITS], mean = 0, m2 = 0;
        const float total = static_cast<float>(rows) * per;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++) {
            if (i >= splits) break;
            const float *from =
                splits > 1 ? static_cast<const float *>(__cluster_map_shared_rank(&moments[0][0], i)) : moments[0];
            means[i] = from[k], parts_m2[i] = from[MAX_GROUPS + k];
            counts[i] = static_cast<float>(static_cast<int64_t>(rows) * (i + 1) / splits -
                                           static_cast<int64_t>(rows) * i / splits) *
                        per;
        }
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) mean += means[i] * (counts[i] / total);
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) m2 += parts_m2[i] + (means[i] - mean) * (means[i] - mean) * counts[i];
        merged[0][k] = mean, merged[1][k] = rsqrtf(m2 / total + a.eps);
    }
    __syncthreads();
    if (splits > 1) asm volatile("barrier.cluster.arrive.relaxed;\n" ::: "memory");
#pragma unroll
    for (int i = 0; i < 8; i++) {
        factor[i] *= merged[1][of[i]];
        offset[i] -= merged[0][of[i]] * factor[i];
    }
    TO *dst = static_cast<TO *>(a.out.p) + g * a.out.sg + n * a.out.sn + c;
    for (int k = 0; k < kept; k++) {
        const int r = begin + k * lanes + threadIdx.y;
        if (r >= end) break;
        const int h = r / a.a.w, w = r - h * a.a.w;
        load8(keep + k * threads * 8, v);
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
