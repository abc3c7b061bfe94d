/* SPDX-License-Identifier: MIT
 * Group norm in one pass over memory (sm_90): out = act(norm(cat(a, b))), without statistics made before.
 *
 * A block takes a slab of whole groups, some vectors of 8 channels wide, of some rows of one picture, and keeps it in
 * shared memory. It sums twice, means first and then deviations from them; where a picture has more rows than a block
 * should take, a cluster of up to 8 shares them, and each block merges all their moments in the cluster's order. Against
 * statistics and application as two launches this reads the tensor once, and there is one launch fewer to wait for, which
 * on the lower levels is all of the time. */
#include <cooperative_groups.h>

#include "cuda/common.cuh"

namespace {

enum { THREADS = 256, MAX_SPLITS = 8, MAX_GROUPS = 64, WANT_BLOCKS = 132, LIMIT = 200 * 1024 };

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
    int unit = 1;
    while (unit * 8 % per) unit++;
    int slab = unit;
    while (slab < 4 && n_vec % (slab * 2) == 0) slab *= 2; /* 64 bytes of a row together, as memory likes */
    for (;; slab /= 2) {
        if (slab > THREADS || slab * 8 / per > MAX_GROUPS) return false;
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

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/* Sums of a group over the lanes' sums [lane][slab_c] by one warp, in a fixed order. */
CU_DEVICE float group_sum(const float *part, int lanes, int slab_c, int first, int per, int lane) {
    float sum = 0;
    for (int l = lane; l < lanes; l += 32)
        for (int c = 0; c < per; c++) sum += part[l * slab_c + first + c];
    return warp_sum(sum);
}

/* Grid: (splits, slabs, members x pictures); block: (vectors of the slab, lanes). */
template <typename TI, typename TO>
__global__ void __launch_bounds__(THREADS) group_norm_kernel(const __grid_constant__ launch_args all, int kept) {
    namespace cg = cooperative_groups;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float part[THREADS * 8], moments[2][MAX_GROUPS], merged[2][MAX_GROUPS];
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
    float factor[8], offset[8];
    load8(a.gamma + c, factor);
    load8(a.beta + c, offset);
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

    const float share = static_cast<float>(end - begin) * per;
    for (int pass = 0; pass < 2; pass++) {
        float sum[8] = {}, v[8], mean[8];
#pragma unroll
        for (int i = 0; i < 8; i++) mean[i] = pass ? moments[0][(mine + i) / per] : 0.0f;
        for (int k = 0; k < kept; k++) {
            if (begin + k * lanes + static_cast<int>(threadIdx.y) >= end) break;
            load8(keep + k * threads * 8, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += pass ? (v[i] - mean[i]) * (v[i] - mean[i]) : v[i];
        }
        store8(part + tid * 8, sum);
        __syncthreads();
        if (tid / 32 < n_warps) /* a last part of a warp takes no group: shuffles want whole warps */
            for (int k = tid / 32; k < n_groups; k += n_warps) {
                const float all_rows = group_sum(part, lanes, slab_c, k * per, per, lane);
                if (lane == 0) moments[pass][k] = pass ? all_rows : share > 0 ? all_rows / share : 0.0f;
            }
        __syncthreads();
    }

    cg::cluster_group cluster = cg::this_cluster();
    if (splits > 1) cluster.sync();
    for (int k = tid; k < n_groups; k += threads) {
        float means[MAX_SPLITS], squares[MAX_SPLITS], counts[MAX_SPLITS], mean = 0, m2 = 0;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++) {
            if (i >= splits) break;
            const float *from = splits > 1 ? cluster.map_shared_rank(&moments[0][0], i) : &moments[0][0];
            means[i] = from[k], squares[i] = from[MAX_GROUPS + k];
            counts[i] = static_cast<float>(static_cast<int64_t>(rows) * (i + 1) / splits -
                                           static_cast<int64_t>(rows) * i / splits) * per;
        }
        const float total = static_cast<float>(rows) * per;
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) mean += means[i] * (counts[i] / total);
#pragma unroll
        for (int i = 0; i < MAX_SPLITS; i++)
            if (i < splits) m2 += squares[i] + (means[i] - mean) * (means[i] - mean) * counts[i];
        merged[0][k] = mean, merged[1][k] = rsqrtf(m2 / total + a.eps);
    }
    __syncthreads();
    if (splits > 1) asm volatile("barrier.cluster.arrive.release;\n" ::: "memory");
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int k = (mine + i) / per;
        factor[i] *= merged[1][k];
        offset[i] -= merged[0][k] * factor[i];
    }
    TO *dst = static_cast<TO *>(a.out.p) + g * a.out.sg + n * a.out.sn + c;
    for (int k = 0; k < kept; k++) {
        const int r = begin + k * lanes + threadIdx.y;
        if (r >= end) break;
        const int h = r / a.a.w, w = r - h * a.a.w;
        float v[8];
        load8(keep + k * threads * 8, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] * factor[i] + offset[i];
        act8(a.act, v);
        store8(dst + h * a.out.sh + w * a.out.sw, v);
    }
    /* no block ends while another reads its moments */
    if (splits > 1) asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory");
}

#else
template <typename TI, typename TO> __global__ void group_norm_kernel(const __grid_constant__ launch_args, int) {}
#endif

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
    return args->out.half ? launch<float, __half>(order, all, members, g) : launch<float, float>(order, all, members, g);
}
