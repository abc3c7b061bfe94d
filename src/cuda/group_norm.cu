/* SPDX-License-Identifier: MIT
 * Group norm in one pass over memory (sm_90): out = act(norm(cat(a, b))), without statistics made before.
 *
 * A block takes a slab of whole groups, some vectors of 8 channels wide, of some rows of one picture, and keeps it in
 * shared memory: it adds up the rows that have arrived while the others are on their way. Where a picture has more rows
 * than a block should take, a cluster shares them, and each block merges all their moments in the cluster's order.
 * Against statistics and application as two launches this reads the tensor once, and there is one launch fewer to wait
 * for, which on the lower levels is all of the time. Pictures over MOST bytes are norm.cu's, whose loads are longer and
 * whose blocks are not bound to each other. */
#include "cuda/common.cuh"
#include "cuda/tiles.h"

namespace {

enum {
    FEW_THREADS = 256,
    MAX_THREADS = 512,
    MAX_SPLITS = 8, /* blocks of a cluster: what every device has room for */
    MAX_GROUPS = 64,
    PIECES = 4,
    LIMIT = 200 * 1024,
    MOST = 7 << 20
};
/* The default layout, by what was fastest of all that `linework-gpu-norm` tries: some WANT_BLOCKS, half as many as
 * there are multiprocessors, since to meet in a cluster costs more than half of them give; whole sectors of memory
 * where a block has over FEW_BYTES, and twice the threads; wider slabs where there are MANY_BLOCKS. */
enum { WANT_BLOCKS = 64, MANY_BLOCKS = 512 };
enum { FEW_BYTES = 64 * 1024, WANT_BYTES = 170 * 1024 };

/* lanes: rows at a time; kept: rows of a lane; cells: groups that a vector touches at most */
struct geometry {
    int lanes, kept, cells;
    size_t bytes;
};

struct launch_args {
    cu_apply_args any; /* sizes, strides and attributes of all members */
    cu_members of;
    int kept, cells; /* as of geometry */
    int piece, per;  /* rows of a lane that arrive together; channels of a group */
    cu_divider by_pictures, by_n, by_width, by_lanes, by_per; /* pictures: of a member */
};

int n_vectors(const cu_apply_args &a) { return (a.a.c + a.b.c) / 8; }
int group_width(const cu_apply_args &a) { return (a.a.c + a.b.c) / a.groups; }
size_t vector_bytes(const cu_apply_args &a) { return a.a.half ? 16 : 32; }

/* False: no such slab, or it is too large to keep. */
bool place(const cu_apply_args &a, const cu_group_norm_layout &l, geometry *g) {
    const int per = group_width(a), rows = a.a.h * a.a.w;
    if (l.slab < 1 || n_vectors(a) % l.slab || l.slab * 8 % per || l.slab * 8 / per > MAX_GROUPS) return false;
    if (l.splits < 1 || l.splits > MAX_SPLITS || l.splits & (l.splits - 1) || l.splits > rows) return false;
    if (l.threads < 32 || l.threads > MAX_THREADS || l.slab > l.threads) return false;
    const int mine = cu_ceil_div(rows, l.splits), all = l.threads / l.slab, whole = cu_ceil_div(32, l.slab);
    g->lanes = mine < all ? mine : all;
    if (g->lanes < whole) g->lanes = whole; /* a warp at least: it merges */
    g->kept = cu_ceil_div(mine, g->lanes);
    g->cells = per % 8 == 0 ? 1 : cu_ceil_div(7, per) + 1;
    g->bytes = static_cast<size_t>(g->lanes) * l.slab * (vector_bytes(a) * g->kept + g->cells * sizeof(float2));
    return g->bytes <= LIMIT;
}

#ifdef CU_SM90

/* What a block is, and what its threads tell each other. */
struct block {
    int threads, tid, slab, lanes, per, n_groups; /* slab: vectors; per: channels of a group */
    const cu_divider &by_per;
};
struct scratch {
    float moments[2][MAX_GROUPS], merged[2][MAX_GROUPS];
};

/* The first row of part i of 2^log_splits of the picture's rows. */
CU_DEVICE int part_begin(int rows, int i, int log_splits) {
    return static_cast<int>(static_cast<int64_t>(rows) * i >> log_splits);
}

/* The threads' sums [cell][lane][vector], about the groups' first values, to this block's means and squares: a warp a
 * group, always in the same order. count: values of a group. Where there is one block, what its threads will need. */
template <typename T>
CU_DEVICE void sum_groups(scratch &s, const block &b, const float2 *sums, const T *first_row, float count, bool alone,
                          float eps) {
    const int lane = b.tid % 32, n_warps = b.threads / 32;
    if (b.tid / 32 >= n_warps) return; /* a last part of a warp takes no group: shuffles want whole warps */
#pragma unroll 1
    for (int k = b.tid / 32; k < b.n_groups; k += n_warps) {
        const int first = k * b.per / 8, last = (k * b.per + b.per - 1) / 8;
        float sum = 0, sum2 = 0;
#pragma unroll 1
        for (int x = first; x <= last; x++) {
            const float2 *from = sums + (x == first ? k - cu_divide(&b.by_per, first * 8) : 0) * b.threads + x;
#pragma unroll 1
            for (int l = lane; l < b.lanes; l += 32) {
                const float2 part = from[l * b.slab];
                sum += part.x, sum2 += part.y;
            }
        }
        sum = warp_sum(sum), sum2 = warp_sum(sum2);
        if (lane) continue;
        const float d = __fdividef(sum, count), mean = static_cast<float>(first_row[k * b.per]) + d,
                    m2 = fmaxf(sum2 - sum * d, 0.0f);
        if (alone) s.merged[0][k] = mean, s.merged[1][k] = rsqrtf(__fdividef(m2, count) + eps);
        else s.moments[0][k] = mean, s.moments[1][k] = m2;
    }
}

/* The moments of all blocks of the cluster, each read by a lane, to means and 1 / deviations. */
CU_DEVICE void merge_groups(scratch &s, const block &b, int rows, int log_splits, float eps) {
    const int splits = 1 << log_splits, n_warps = b.threads / 32, all = b.n_groups << log_splits;
    const float total = static_cast<float>(rows) * b.per;
    if (b.tid / 32 >= n_warps) return;
#pragma unroll 1
    for (int t = b.tid; t - b.tid % 32 < all; t += n_warps * 32) {
        const int i = t & (splits - 1), k = t >> log_splits, at = k < b.n_groups ? k : b.n_groups - 1;
        const float *from = static_cast<const float *>(__cluster_map_shared_rank(&s.moments[0][0], i));
        const float my_mean = from[at], my_m2 = from[MAX_GROUPS + at],
                    count = static_cast<float>(part_begin(rows, i + 1, log_splits) - part_begin(rows, i, log_splits)) *
                            b.per;
        float mean = my_mean * __fdividef(count, total);
        for (int d = 1; d < splits; d *= 2) mean += __shfl_xor_sync(CU_ALL_LANES, mean, d);
        float m2 = my_m2 + (my_mean - mean) * (my_mean - mean) * count;
        for (int d = 1; d < splits; d *= 2) m2 += __shfl_xor_sync(CU_ALL_LANES, m2, d);
        if (i == 0 && k < b.n_groups) s.merged[0][k] = mean, s.merged[1][k] = rsqrtf(__fdividef(m2, total) + eps);
    }
}

#endif

/* Grid: (splits, slabs, members x pictures); block: (vectors of the slab, lanes). */
template <typename TI, typename TO>
__global__ void __launch_bounds__(MAX_THREADS, 2) group_norm_kernel(const __grid_constant__ launch_args all) {
#ifdef CU_SM90
    CU_SHARED_REST(16, unsigned char, shared);
    CU_SHARED(scratch, s, );
    next_launch_may_start();
    const cu_apply_args &a = all.any;
    int n = blockIdx.z;
    const int member = cu_divide_rest(&all.by_pictures, &n), g = cu_divide_rest(&all.by_n, &n), rows = a.a.h * a.a.w,
              log_splits = 31 - __clz(gridDim.x), begin = part_begin(rows, blockIdx.x, log_splits),
              end = part_begin(rows, blockIdx.x + 1, log_splits);
    const int slab = blockDim.x, lanes = blockDim.y, threads = slab * lanes, per = all.per, kept = all.kept,
              tid = threadIdx.y * slab + threadIdx.x, c = (blockIdx.y * slab + threadIdx.x) * 8;
    const block b = {threads, tid, slab, lanes, per, cu_divide(&all.by_per, slab * 8), all.by_per};
    const bool in_a = c < a.a.c;
    const cu_view &in = in_a ? a.a : a.b;
    const int row = begin + threadIdx.y, mine = row < end ? cu_divide(&all.by_lanes, end - row + lanes - 1) : 0,
              piece = all.piece;
    TI *keep = reinterpret_cast<TI *>(shared) + tid * 8; /* the k-th row's vector: keep[k * threads * 8] */
    float2 *sums = reinterpret_cast<float2 *>(reinterpret_cast<TI *>(shared) + kept * threads * 8);
    const TI *src = static_cast<const TI *>(in_a ? all.of.a[member] : all.of.b[member]) + g * in.sg + n * in.sn +
                    (in_a ? c : c - a.a.c);
    /* The group of my first channel, and by how many groups the others are after it: 4 bits each. */
    const int group = cu_divide(&all.by_per, threadIdx.x * 8);
    uint32_t after = 0;
    for (int i = 1, left = (group + 1) * per - threadIdx.x * 8 - 1, cell = 0; i < 8; i++, left--) {
        if (left == 0) cell++, left = per;
        after |= static_cast<uint32_t>(cell) << 4 * i;
    }
    {
        row_walk from(in.sh, in.sw, all.by_width, row, lanes);
        previous_launch_wait();
#pragma unroll 1
        for (int k = 0, p = 1; p <= PIECES; p++) {
#pragma unroll 1
            for (; k < mine && k < p * piece; k++, from.next())
                for (int i = 0; i < 8; i += 16 / sizeof(TI))
                    copy16(keep + k * threads * 8 + i, src + from.at + i, true);
            copy_commit();
        }
    }
    const TI *first_row = reinterpret_cast<const TI *>(shared);
    float factor[8], offset[8], v[8];
    {
        /* Sums about the first value of each group, so that nothing cancels where means are large. */
        float shift[8], sum[8] = {}, sum2[8] = {};
        copy_wait<PIECES - 1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) shift[i] = static_cast<float>(first_row[(group + (after >> 4 * i & 15)) * per]);
#pragma unroll 1
        for (int k = 0, p = 1; p <= PIECES; p++) { /* one loop: its instructions are fetched once */
            static_assert(PIECES == 4, "a wait for each piece after the first");
            if (p == PIECES - 2) copy_wait<2>();
            else if (p == PIECES - 1) copy_wait<1>();
            else if (p == PIECES) copy_wait<0>();
#pragma unroll 1
            for (; k < mine && k < p * piece; k++) {
                load8(keep + k * threads * 8, v);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float d = v[i] - shift[i];
                    sum[i] += d;
                    sum2[i] += d * d;
                }
            }
        }
#pragma unroll 1
        for (int q = 0; q < all.cells; q++) {
            float2 part = {0, 0};
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (static_cast<int>(after >> 4 * i & 15) == q) part.x += sum[i], part.y += sum2[i];
            sums[q * threads + tid] = part;
        }
    }
    load8(all.of.gamma[member] + c, factor); /* they arrive while the groups are added up */
    load8(all.of.beta[member] + c, offset);
    __syncthreads();
    sum_groups(s, b, sums, first_row, static_cast<float>(end - begin) * per, log_splits == 0, a.eps);
    if (log_splits) {
        cluster_meet();
        merge_groups(s, b, rows, log_splits, a.eps);
    }
    __syncthreads();
    if (log_splits) cluster_arrive();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int k = group + (after >> 4 * i & 15);
        factor[i] *= s.merged[1][k];
        offset[i] -= s.merged[0][k] * factor[i];
    }
    row_walk to(a.out.sh, a.out.sw, all.by_width, row, lanes);
    TO *dst = static_cast<TO *>(all.of.out[member]) + g * a.out.sg + n * a.out.sn + c;
    auto write = [&](auto act) {
#pragma unroll 1
        for (int k = 0; k < mine; k++, to.next()) {
            load8(keep + k * threads * 8, v);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = v[i] * factor[i] + offset[i];
            act(v);
            store8(dst + to.at, v);
        }
    };
    /* the usual ones in short loops of their own */
    if (a.act == CU_ACT_NONE) write([](float *) {});
    else if (a.act == CU_ACT_SILU) write([](float *x) { swish8(x, 1.0f); });
    else write([&](float *x) { act8(a.act, x); });
    /* no block ends while another reads its moments, which are in registers of all that have arrived */
    if (log_splits) cluster_wait();
#endif
}

template <typename TI, typename TO>
cudaError_t launch(cu_order order, const launch_args &args, int members, const cu_group_norm_layout &l,
                   const geometry &g) {
    const cu_apply_args &a = args.any;
    void (*kernel)(const launch_args) = group_norm_kernel<TI, TO>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, LIMIT);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
    if (e != cudaSuccess) return e;
    return start_clusters(order, kernel, dim3(l.splits, n_vectors(a) / l.slab, members * a.out.g * a.out.n), l.splits,
                          dim3(l.slab, g.lanes), g.bytes, args);
}

} // namespace

bool cu_group_norm_lay_out(const cu_apply_args *args, int32_t members, cu_group_norm_layout *l) {
    const cu_apply_args &a = *args;
    const int n_vec = n_vectors(a), per = group_width(a), rows = a.a.h * a.a.w, pictures = a.out.g * a.out.n * members;
    const size_t vector = vector_bytes(a);
    if (a.norm != CU_NORM_GROUP || a.up2 || members > CU_MAX_MEMBERS || vector * rows * n_vec > MOST) return false;
    const int unit = slab_unit(per);
    int slab = unit;
    while (n_vec % (slab * 2) == 0 && slab * vector < 64) slab *= 2;
    const int blocks = pictures * (n_vec / slab);
    if (n_vec % (slab * 2) == 0 && (blocks >= MANY_BLOCKS || (slab * vector % 32 && rows * slab * vector > FEW_BYTES &&
                                                              blocks / 2 * 4 >= WANT_BLOCKS)))
        slab *= 2;
    for (;; slab /= 2) {
        geometry g;
        const int unsplit = pictures * (n_vec / slab);
        const size_t bytes = rows * slab * vector;
        int splits = 1;
        while (splits < MAX_SPLITS && ((unsplit * splits < WANT_BLOCKS && rows * slab > FEW_THREADS * splits) ||
                                       bytes > static_cast<size_t>(splits) * WANT_BYTES))
            splits *= 2;
        *l = {slab, splits, bytes > static_cast<size_t>(splits) * FEW_BYTES ? MAX_THREADS : FEW_THREADS};
        if (place(a, *l, &g)) return true;
        if (slab == unit || slab % 2 || slab / 2 * vector < 32) return false;
    }
}

bool cu_group_norm_fits(const cu_apply_args *args, int32_t members) {
    cu_group_norm_layout l;
    return cu_group_norm_lay_out(args, members, &l);
}

cudaError_t cu_group_norm_with(cu_order order, const cu_apply_args *args, int32_t members,
                               const cu_group_norm_layout *l) {
    geometry g;
    if (members > CU_MAX_MEMBERS || !place(*args, *l, &g)) return cudaErrorInvalidValue;
    const int per = group_width(*args);
    const launch_args all = {*args,
                             members_of(args, members),
                             g.kept,
                             g.cells,
                             cu_ceil_div(g.kept, PIECES),
                             per,
                             cu_divider_of(args->out.g * args->out.n),
                             cu_divider_of(args->out.n),
                             cu_divider_of(args->a.w),
                             cu_divider_of(g.lanes),
                             cu_divider_of(per)};
    if (args->a.half)
        return args->out.half ? launch<__half, __half>(order, all, members, *l, g)
                              : launch<__half, float>(order, all, members, *l, g);
    return args->out.half ? launch<float, __half>(order, all, members, *l, g)
                          : launch<float, float>(order, all, members, *l, g);
}

cudaError_t cu_group_norm(cu_order order, const cu_apply_args *args, int32_t members) {
    cu_group_norm_layout l;
    if (!cu_group_norm_lay_out(args, members, &l)) return cudaErrorInvalidValue;
    return cu_group_norm_with(order, args, members, &l);
}
