/* SPDX-License-Identifier: MIT
 * Products on Hopper (sm_90a): what product.cu computes, with the two things that chip has for it. The copy engine
 * (TMA) brings boxes of input and weights into shared memory by itself, zeros for padding included; the matrix unit
 * (wgmma) multiplies straight from there. tiles.h has all of the index arithmetic.
 *
 * A block is one tile of output: one warp that only starts copies, and 1 to 3 groups of four warps that multiply. They
 * meet at a ring of stages, each with a barrier "full" (its bytes have come) and "empty" (its sums are done). A step of
 * the sum is 64 channels of one tap: A [pixels][64], B [output channels][64], both with the 128-byte swizzle.
 *
 * Where there are too few tiles for the device (levels 2 and 3: 48 to 192 pixels, where reading the weights is all the
 * work), a cluster of 2 to 8 blocks splits the sum of one tile. Each leaves its part in its own shared memory; then
 * each adds up a share of the rows over all of them, in order, so that the bits are always the same, and finishes it.
 *
 * Where the sum is long, two tiles of pixels below each other are a pair in one cluster and share their weights: each
 * block copies one half of them into both. What the level-2 cache has to deliver is what large products wait for.
 * The first round of the ring is copied by each block for itself, before the other may have begun.
 *
 * Weights do not depend on the kernel before: where the launch is programmatic, the ring is filled with them while that
 * kernel still runs, and only then is it waited for.
 *
 * A residual block's shortcut is further steps of the sum: of other inputs, by other weights, into the same registers.
 *
 * A layer norm before a linear costs no launch: with W' = W gamma (by columns), W (norm(x)) is (W' x - mean W' 1) /
 * deviation + W beta. The groups that multiply sum each row and its squares out of the stages as they come, about the
 * row's first value, and each block merges the parts of its cluster in order. */
#include "cuda/gelu.h"
#include "cuda/hopper.cuh"

/* Marks a moment of a block, by the thread that is `mine`: for bench/gpu/phases.cu, which is this file once more. */
#ifndef CU_PHASE
#define CU_PHASE(name, mine)
#endif

namespace {

struct member {
    CUtensorMap input, weights;
    CUtensorMap shortcut[2], shortcut_weights;
    const float *shortcut_bias; /* NULL: none */
    const float *folded;        /* layer norm: sum and offset of each weight row; else NULL */
    cu_view out;
    cu_epilogue epi;
};

/* Members have the same sizes; each block works for one. */
struct launch_args {
    cu_tiling t;
    int32_t splits_bits;                 /* 2^splits_bits blocks have a part of the sum each */
    int32_t pair;                        /* 1: tiles of pixels y and y ^ 1 share weights; else 0 */
    int32_t steps;                       /* t.steps, and those of the shortcut: */
    int32_t shortcut_chunks, shortcut_c; /* of its first input */
    int32_t gates;                       /* GEGLU: out.c, else 0 */
    int32_t input_bytes;                 /* of a step */
    int32_t channels;                    /* of the input; read where the rows are normed, as: */
    float eps;
    cu_divider by_picture, by_w, by_n; /* of the output: pixels, pixels of a row, n */
    member of[CU_MAX_MEMBERS];
};

template <int M, int BN, int BLOCKS> struct ring {
    static const int BM = M, GROUPS = BM / 64;
    static const int THREADS = GROUPS * 128 + 32;
    static const int ALLOCATED = GROUPS * 128 + 128; /* registers are given to four warps at a time */
    static const int A_BYTES = BM * CU_CHUNK_BYTES, B_BYTES = BN * CU_CHUNK_BYTES, STAGE = A_BYTES + B_BYTES;
    /* floats of a row of sums: rows of a warp's accesses fall into different banks. Behind the sums of a normed row:
     * this block's mean and squares, then the row's mean and 1 / deviation. */
    static const int ROW = BN + 8;
    static const int SUMS = BM * ROW * 4;
    static const int ROWS = BM * 16;                                  /* the table of pixels */
    static const int LIMIT = 228 * 1024 / BLOCKS - 1024 - ROWS - 128; /* 1 KB is the system's, 128 are barriers */
    static const int FIT = (LIMIT - 1024) / STAGE;
    static const int STAGES = FIT < 8 ? FIT : 8;
    static const int REGISTERS = 65536 / (ALLOCATED * BLOCKS); /* of a thread, at most */
    static const int BYTES = 1024 + (STAGES * STAGE > SUMS ? STAGES * STAGE : SUMS);
    static_assert(STAGES >= 3 && BYTES <= LIMIT, "a ring of three stages or more");
    static_assert(REGISTERS >= 80, "the epilogue takes two rows at a time");
    static_assert(A_BYTES % 1024 == 0 && BN / 2 * CU_CHUNK_BYTES % 1024 == 0, "operands begin at the swizzle's period");
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* Read in place of vectors that there are not: no branch, so that several reads are under way at once. (Reads under a
 * predicate of inline PTX came out with another's predicate in one kernel of CUDA 13.0.) */
__device__ const float no_columns[8] = {};
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- clusters */

/* Which part of its tile's sum this block has, and the first of the blocks of this cluster that have its tile. */
CU_DEVICE int my_part(const launch_args &a) { return blockIdx.x & ((1 << a.splits_bits) - 1); }
CU_DEVICE int first_part(const launch_args &a) { return (blockIdx.y & a.pair) << a.splits_bits; }

/* Threads of the epilogue, as the columns of a tile divide them: each keeps to 8. Two beside each other have the same
 * columns of two rows. */
template <typename R, int BN, bool GATED> struct lanes {
    static const int WIDE = GATED ? BN / 2 : BN, VECTORS = WIDE / 8, LANES = R::THREADS / (2 * VECTORS) * 2;
    CU_DEVICE int vector() { return threadIdx.x / 2 % VECTORS; }
    CU_DEVICE int lane() { return threadIdx.x / (2 * VECTORS) * 2 + threadIdx.x % 2; }
};

/* 8 sums at `from` of this block. Of two threads beside each other, whose rows are, one begins with the second half: so
 * no two of eight need the same bank. */
CU_DEVICE void own_sums(const float *from, float v[8]) {
    const int turn = threadIdx.x % 2 * 4;
    const float4 first = *reinterpret_cast<const float4 *>(from + turn),
                 second = *reinterpret_cast<const float4 *>(from + (turn ^ 4)), low = turn ? second : first,
                 high = turn ? first : second;
    spread8(low, high, v);
}

/* The same, added up over the SPLITS blocks from `block` on in order; this one is number `rank` of them. The way
 * between blocks is narrow, and whole lines get through it best: two threads read half of the one's row each, then of
 * the other's, `apart` floats behind it, and give each other what is not theirs; those that want nothing (!wants) read
 * at home. All lanes of a warp. */
template <int SPLITS> CU_DEVICE void gather(const float *from, int apart, bool wants, int block, int rank, float v[8]) {
    if (SPLITS == 1) return own_sums(from, v);
    const bool odd = threadIdx.x & 1;
    const float *mine = odd ? from - apart + 4 : from;
    float4 half[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float4 part[SPLITS];
#pragma unroll
        for (int i = 0; i < SPLITS; i++) {
            const float *there =
                i == rank || !wants
                    ? mine
                    : static_cast<const float *>(__cluster_map_shared_rank(const_cast<float *>(mine), block + i));
            part[i] = *reinterpret_cast<const float4 *>(there + j * apart);
        }
        half[j] = part[0];
#pragma unroll
        for (int i = 1; i < SPLITS; i++)
            half[j].x += part[i].x, half[j].y += part[i].y, half[j].z += part[i].z, half[j].w += part[i].w;
    }
    const float4 give = odd ? half[0] : half[1], keep = odd ? half[1] : half[0],
                 got = make_float4(__shfl_xor_sync(CU_ALL_LANES, give.x, 1), __shfl_xor_sync(CU_ALL_LANES, give.y, 1),
                                   __shfl_xor_sync(CU_ALL_LANES, give.z, 1), __shfl_xor_sync(CU_ALL_LANES, give.w, 1)),
                 low = odd ? got : keep, high = odd ? keep : got;
    spread8(low, high, v);
}

/* ---- layer norm */

/* What a thread knows of its half of a row: sums about the first value. */
struct row_sum {
    float shift, sum, squares;
};

/* A row's half of 64 channels, from channel c on, as the copy engine left it. */
CU_DEVICE void add_values(row_sum &s, uint32_t stage, int row, int half, int c, int channels, bool first) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int at = half * 4 + j;
        const bool real = c + at * 8 < channels; /* no branch here: the compiler would wait for the matrix unit */
        uint32_t u[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(u[0]), "=r"(u[1]), "=r"(u[2]), "=r"(u[3])
                     : "r"(stage + row * CU_CHUNK_BYTES + ((at ^ (row & 7)) << 4))
                     : "memory");
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 v = __half22float2(*reinterpret_cast<const __half2 *>(&u[i]));
            if (j == 0 && i == 0) s.shift = first ? v.x : s.shift;
            const float x = real ? v.x - s.shift : 0.0f, y = real ? v.y - s.shift : 0.0f;
            s.sum += x + y;
            s.squares += x * x + y * y;
        }
    }
}

/* Two threads share a row of their group. */
CU_DEVICE int norm_row() { return threadIdx.x / 2; }

/* Mean and squares about it of count values, merged with another's. */
CU_DEVICE void merge(float &mean, float &squares, float &count, float mean2, float squares2, float count2) {
    const float all = count + count2, d = mean2 - mean;
    if (count2 > 0) {
        const float share = __fdividef(count2, all);
        mean += d * share;
        squares += squares2 + d * d * (count * share);
        count = all;
    }
}

/* Channels of 64 a part of the sum has. */
CU_DEVICE float part_channels(const launch_args &a, int begin, int end) {
    return static_cast<float>(min(end * CU_CHUNK, a.channels) - min(begin * CU_CHUNK, a.channels));
}

/* The row's moments in this block, from its two threads. */
CU_DEVICE void leave_moments(const launch_args &a, const row_sum &s, float *at, int half, int begin, int end) {
    float count = 0;
    for (int step = begin; step < end; step++)
        count += static_cast<float>(max(0, min(CU_CHUNK / 2, a.channels - step * CU_CHUNK - half * (CU_CHUNK / 2))));
    const float d = count > 0 ? s.sum / count : 0.0f;
    float mean = s.shift + d, squares = fmaxf(s.squares - s.sum * d, 0.0f);
    const float mean2 = __shfl_xor_sync(CU_ALL_LANES, mean, 1), squares2 = __shfl_xor_sync(CU_ALL_LANES, squares, 1),
                count2 = __shfl_xor_sync(CU_ALL_LANES, count, 1);
    merge(mean, squares, count, mean2, squares2, count2);
    if (half == 0) at[0] = mean, at[1] = squares; /* the first half has channels if the row has any */
}

/* Moments of rows rank, rank + SPLITS, … from all blocks of the cluster, in order; all read at once. */
template <typename R, int BN, int SPLITS> CU_DEVICE void merge_rows(const launch_args &a, float *sums, int rank) {
    const int row = threadIdx.x * SPLITS + rank;
    static_assert(R::THREADS >= R::BM, "a thread for each row");
    if (row < R::BM) {
        float *at = sums + row * R::ROW + BN;
        float2 part[SPLITS];
#pragma unroll
        for (int i = 0; i < SPLITS; i++)
            part[i] = SPLITS == 1 ? *reinterpret_cast<const float2 *>(at)
                                  : *static_cast<const float2 *>(
                                        static_cast<const void *>(__cluster_map_shared_rank(at, first_part(a) + i)));
        float mean = part[0].x, squares = part[0].y,
              count = part_channels(a, 0, cu_part_begin(a.steps, 1, a.splits_bits));
#pragma unroll
        for (int i = 1; i < SPLITS; i++)
            merge(mean, squares, count, part[i].x, part[i].y,
                  part_channels(a, cu_part_begin(a.steps, i, a.splits_bits),
                                cu_part_begin(a.steps, i + 1, a.splits_bits)));
        at[2] = mean;
        at[3] = rsqrtf(__fdividef(squares, count) + a.eps);
    }
    __syncthreads();
}

/* ---- output */

/* Where a row of the tile goes: g (-1: nowhere), n, and its vectors of 8 channels in the output and the residual. */
CU_DEVICE int4 row_place(const launch_args &a, const member &m, cu_place origin, int row) {
    const int pixel = cu_tile_pixel(&a.t, origin, row);
    if (pixel < 0) return make_int4(-1, 0, 0, 0);
    int w = pixel, n = cu_divide_rest(&a.by_picture, &w);
    const int g = cu_divide_rest(&a.by_n, &n), h = cu_divide_rest(&a.by_w, &w);
    return make_int4(g, n, static_cast<int>(view_at(m.out, g, n, h, w) / 8),
                     static_cast<int>(view_at(m.epi.residual, g, n, h, w) / 8));
}

CU_DEVICE void load8_if(const float *p, int c, float v[8]) { load8(p ? p + c : no_columns, v); }

/* The epilogue's vectors are read once a step of the sampler and lie in the device's memory: on their way to the
 * level-2 cache while the sums are made. A thread for each 8 columns. */
template <int BN> CU_DEVICE void prefetch_columns(const member &a, int gates, int tile) {
    const int wide = gates ? BN / 2 : BN, at = threadIdx.x * 8, gate = at >= wide, own = tile * wide + at - gate * wide;
    if (at >= BN || own >= a.out.c) return;
    const int c = own + gate * gates;
    if (a.epi.bias) prefetch(a.epi.bias + c);
    if (a.shortcut_bias) prefetch(a.shortcut_bias + c);
    if (a.folded) {
        prefetch(a.folded + 2 * c);
        prefetch(a.folded + 2 * c + 8);
    }
}

/* What the epilogue adds to 8 channels from c on of pixels of (g, n), and the sums of weight rows that a norm's mean is
 * taken off by. */
CU_DEVICE void load_columns(const member &a, int c, int g, int n, float add[8], float sums[8]) {
    const cu_view &addend = a.epi.addend;
    float t[8], shortcut[8];
    load8_if(a.epi.bias, c, add);
    load8_if(a.shortcut_bias, c, shortcut);
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = 0;
    if (addend.p) {
        load8_as(addend, g * addend.sg + n * addend.sn + c, t);
#pragma unroll
        for (int i = 0; i < 8; i++) add[i] += t[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) add[i] += shortcut[i];
    if (a.folded)
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            load8(a.folded + 2 * (c + half), t);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[half + i] = t[2 * i], add[half + i] += t[2 * i + 1];
        }
}

/* What the epilogue adds to a thread's 8 columns of pixels of (g, n), and multiplies them by. */
template <bool GATED> struct columns {
    int g = -1, n = -1;
    float add[8], minus[8], gate_add[8], gate_minus[8], scale = 1;

    __device__ __forceinline__ void load(const member &a, int gates, int c, int4 place) {
        if (place.x == g && place.y == n) return; /* a tile has pixels of few (g, n) */
        g = place.x, n = place.y;
        load_columns(a, c, g, n, add, minus);
        if (GATED) load_columns(a, gates + c, g, n, gate_add, gate_minus);
        if (a.epi.scale) scale = a.epi.scale[g * a.epi.scale_sg + n * a.epi.scale_sn];
    }
};

/* Rows that a thread takes at a time: as many as it has registers for, of as few rounds. */
template <typename R, typename L, int SPLITS, bool GATED> struct batch {
    static const int ROWS = R::BM / SPLITS, EACH = (ROWS + L::LANES - 1) / L::LANES,
                     MOST = R::REGISTERS / (GATED ? 80 : 32), ROUNDS = (EACH + MOST - 1) / MOST,
                     SIZE = (EACH + ROUNDS - 1) / ROUNDS;
};

/* Rows rank, rank + SPLITS, … of the tile: sums, epilogue, output. A thread takes some rows at a time, so that what it
 * reads of memory is under way at once. */
template <typename R, int BN, int SPLITS, bool GATED>
CU_DEVICE void finish_rows(const launch_args &all, const member &a, float *sums, const int4 *places, int tile, int rank,
                           columns<GATED> &vectors) {
    typedef lanes<R, BN, GATED> L;
    typedef batch<R, L, SPLITS, GATED> B;
    const int ROWS = B::ROWS, BATCH = B::SIZE, col = L::vector() * 8, c = tile * L::WIDE + col, lane = L::lane(),
              block = first_part(all);
    if (a.folded) merge_rows<R, BN, SPLITS>(all, sums, rank);
    const bool mine = lane < L::LANES && c < a.out.c;
    if (SPLITS == 1 && !mine) return; /* else they go along: a warp reads sums of other blocks together */
    const __half *residual = static_cast<const __half *>(a.epi.residual.p);
    for (int begin = 0; begin < ROWS; begin += L::LANES * BATCH) {
        int4 at[BATCH];
        uint4 more[BATCH];
        int row[BATCH];
        float v[BATCH][8], gate[BATCH][8];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int r = begin + lane + k * L::LANES;
            row[k] = (r < ROWS ? r : r % 2) * SPLITS + rank;
            at[k] = mine && r < ROWS ? places[row[k]] : make_int4(-1, 0, 0, 0);
            if (residual && at[k].x >= 0)
                more[k] = *reinterpret_cast<const uint4 *>(residual + static_cast<int64_t>(at[k].w) * 8 + c);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const bool wants = lane < L::LANES && begin + lane + k * L::LANES < ROWS; /* alike for both of two rows */
            if (SPLITS == 1 && at[k].x < 0) continue;
            const float *from = sums + row[k] * R::ROW + col;
            gather<SPLITS>(from, SPLITS * R::ROW, wants, block, rank, v[k]);
            if (GATED) gather<SPLITS>(from + L::WIDE, SPLITS * R::ROW, wants, block, rank, gate[k]);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (at[k].x < 0) continue;
            vectors.load(a, all.gates, c, at[k]);
            float mean = 0, rstd = 1;
            if (a.folded) {
                const float *moments = sums + row[k] * R::ROW + BN + 2;
                mean = moments[0], rstd = moments[1];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[k][i] = (v[k][i] - mean * vectors.minus[i]) * rstd + vectors.add[i];
                if (GATED) v[k][i] *= cu_gelu((gate[k][i] - mean * vectors.gate_minus[i]) * rstd + vectors.gate_add[i]);
            }
            if (!GATED) act8(a.epi.act, v[k]);
            if (a.epi.scale)
#pragma unroll
                for (int i = 0; i < 8; i++) v[k][i] *= vectors.scale;
            if (residual) {
                const __half2 *halves = reinterpret_cast<const __half2 *>(&more[k]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 f = __half22float2(halves[i]);
                    v[k][2 * i] += f.x, v[k][2 * i + 1] += f.y;
                }
            }
            store8(static_cast<__half *>(a.out.p) + static_cast<int64_t>(at[k].z) * 8 + c, v[k]);
        }
    }
}

/* All threads, when this block's sums are in its shared memory: what is read of memory for a thread's first row is
 * under way while the other blocks come. */
template <typename R, int BN, bool GATED>
CU_DEVICE void finish(const launch_args &all, const member &a, float *sums, const int4 *places, int tile, int rank) {
    typedef lanes<R, BN, GATED> L;
    const int c = tile * L::WIDE + L::vector() * 8, row = (L::lane() << all.splits_bits) + rank;
    columns<GATED> vectors;
    if (L::lane() < L::LANES && row < R::BM && c < a.out.c && places[row].x >= 0)
        vectors.load(a, all.gates, c, places[row]);
    if (all.splits_bits == 0) {
        __syncthreads();
        CU_PHASE(MET, threadIdx.x == 0);
        finish_rows<R, BN, 1, GATED>(all, a, sums, places, tile, rank, vectors);
        CU_PHASE(FINISHED, threadIdx.x == 0);
        return;
    }
    cluster_meet();
    CU_PHASE(MET, threadIdx.x == 0);
    if (all.splits_bits == 1) finish_rows<R, BN, 2, GATED>(all, a, sums, places, tile, rank, vectors);
    else if (all.splits_bits == 2) finish_rows<R, BN, 4, GATED>(all, a, sums, places, tile, rank, vectors);
    else finish_rows<R, BN, 8, GATED>(all, a, sums, places, tile, rank, vectors);
    CU_PHASE(FINISHED, threadIdx.x == 0);
    cluster_leave(); /* no block ends while another reads its sums */
    CU_PHASE(LEFT, threadIdx.x == 0);
}

/* Where a step's operands come from. */
struct operands {
    const CUtensorMap *input, *weights;
    cu_step in; /* the input's box; its tap is the weights', too */
    int column; /* of the weights */
};

CU_DEVICE operands shortcut_operands(const launch_args &a, const member &m, cu_place origin, int step) {
    const int chunk = step - a.t.steps, second = chunk >= a.shortcut_chunks,
              c = (second ? chunk - a.shortcut_chunks : chunk) * CU_CHUNK;
    return {&m.shortcut[second], &m.shortcut_weights, {0, 0, c, origin.x, origin.y}, second ? a.shortcut_c + c : c};
}

CU_DEVICE operands first_operands(const launch_args &a, const member &m, cu_place origin, int step) {
    if (step >= a.t.steps) return shortcut_operands(a, m, origin, step);
    const cu_step in = cu_step_at(&a.t, origin, step);
    return {&m.input, &m.weights, in, in.c};
}

/* Those of `step`, which follows s. */
CU_DEVICE void next_operands(const launch_args &a, const member &m, cu_place origin, int step, operands &s) {
    if (step < a.t.steps) {
        cu_step_next(&a.t, &s.in);
        s.column = s.in.c;
    } else s = shortcut_operands(a, m, origin, step);
}

/* The warp that copies: makes the barriers, then starts the copies of weights for the first round of the ring before
 * the others are there, and all else when the launch before is over. All its lanes go along, so that what they know is
 * uniform, and one acts. */
template <typename R>
CU_DEVICE void produce(const launch_args &a, const member &m, uint32_t stages, uint32_t full, uint32_t empty,
                       cu_place origin, int tile, int begin, int n_steps) {
    const int row0 = cu_weight_row(tile, R::B_BYTES / CU_CHUNK_BYTES, a.gates, 0),
              row1 = cu_weight_row(tile, R::B_BYTES / CU_CHUNK_BYTES, a.gates, 1);
    const int first = n_steps < R::STAGES ? n_steps : R::STAGES, bytes = a.input_bytes + R::B_BYTES;
    const bool acts = elect_one();
    const int half = blockIdx.y & a.pair, my_row = half ? row1 : row0, rank = my_part(a);
    const uint16_t both = static_cast<uint16_t>((1 << rank) | (1 << rank << (1 << a.splits_bits)));
    auto weights_of = [&](const operands &s, uint32_t at, uint32_t bar) {
        barrier_expect(bar, bytes);
        copy_weights(at + R::A_BYTES, s.weights, bar, s.column, s.in.tap, row0);
        if (a.gates || a.pair) copy_weights(at + R::A_BYTES + R::B_BYTES / 2, s.weights, bar, s.column, s.in.tap, row1);
    };
    auto shared_weights_of = [&](const operands &s, uint32_t at, uint32_t bar) {
        barrier_expect(bar, bytes);
        copy_weights_to(at + R::A_BYTES + half * (R::B_BYTES / 2), s.weights, bar, s.column, s.in.tap, my_row, both);
    };
    auto input_of = [&](const operands &s, uint32_t at, uint32_t bar) {
        copy_box(at, s.input, bar, s.in.c, s.in.x, s.in.y, origin.n);
    };
    if (acts) {
        prefetch_map(&m.weights);
        prefetch_map(&m.input);
        for (int i = 0; i < R::STAGES; i++) {
            barrier_init(full + i * 8, 1);
            barrier_init(empty + i * 8, R::GROUPS * 4 << a.pair);
        }
        barriers_made();
    }
    __syncwarp();
    if (a.pair) cluster_arrive();
    CU_PHASE(BARRIERS, acts);
    const operands begins = first_operands(a, m, origin, begin);
    operands s = begins;
    for (int i = 0; i < first; i++) {
        if (i) next_operands(a, m, origin, begin + i, s);
        if (acts) weights_of(s, stages + i * R::STAGE, full + i * 8);
    }
    CU_PHASE(WEIGHTS, acts);
    __syncthreads();
    next_launch_may_start();
    previous_launch_wait();
    CU_PHASE(PREVIOUS, acts);
    s = begins;
    for (int i = 0; i < first; i++) {
        if (i) next_operands(a, m, origin, begin + i, s);
        if (acts) input_of(s, stages + i * R::STAGE, full + i * 8);
    }
    CU_PHASE(INPUTS, acts);
    if (a.pair) cluster_wait(); /* the other block's barriers are there */
    position<R::STAGES> k;
    for (int i = first; i < n_steps; i++, k.next()) {
        const uint32_t at = stages + k.at * R::STAGE, bar = full + k.at * 8;
        next_operands(a, m, origin, begin + i, s);
        barrier_wait(empty + k.at * 8, k.parity);
        if (acts) {
            if (a.pair) shared_weights_of(s, at, bar);
            else weights_of(s, at, bar);
            input_of(s, at, bar);
        }
    }
    CU_PHASE(ASKED, acts);
}

/* What a group of four warps does: its rows' sums, and if they are normed the rows' values too. */
template <typename R, int BN, bool NORMED>
CU_DEVICE void multiply(const launch_args &a, float (&d)[1][BN / 2], row_sum &sum, uint32_t stages, uint32_t full,
                        uint32_t empty, int begin, int n_steps) {
    const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
#pragma unroll
    for (int v = 0; v < BN / 2; v++) d[0][v] = 0;
    CU_PHASE(FULL, (barrier_wait(full, 0), threadIdx.x == 0)); /* waits twice there, which changes nothing */
    const int sharer[2] = {my_part(a), 1 << a.splits_bits};
    if (a.pair) cluster_wait(); /* the other block's barriers are there */
    position<R::STAGES> k;
    uint32_t before = 0;
    for (int i = 0; i < n_steps; i++) {
        barrier_wait(full + k.at * 8, k.parity);
        ask_step<1, BN>(d, cu_operand(stages + k.at * R::STAGE + group * 64 * CU_CHUNK_BYTES),
                        cu_operand(stages + k.at * R::STAGE + R::A_BYTES));
        if (NORMED)
            add_values(sum, stages + k.at * R::STAGE, norm_row(), threadIdx.x % 2, (begin + i) * CU_CHUNK, a.channels,
                       i == 0);
        sums_wait<1>();                          /* all but this step's: the stage before is free */
        if (i > 0 && i + R::STAGES <= n_steps) { /* it is filled again */
            if (a.pair) {
                if (lane < 2) barrier_arrive_at(empty + before * 8, sharer[0] + lane * sharer[1]);
            } else if (lane == 0) barrier_arrive(empty + before * 8);
        }
        before = k.at;
        k.next();
    }
    sums_wait<0>();
    sums_pin(d[0]);
    CU_PHASE(MULTIPLIED, threadIdx.x == 0);
}

#endif

/* Grid: (splits x tiles of columns, tiles of pixels, members); the splits of a tile, or of a pair's two, are a cluster.
 * A block of a pair may end while the other works: nothing comes to it any more, for a stage is given back only where
 * it is filled again, and filled only where it is waited for. */
template <int BM, int BN, int BLOCKS>
__global__ void __launch_bounds__(ring<BM, BN, BLOCKS>::ALLOCATED, BLOCKS)
    wgmma_kernel(const __grid_constant__ launch_args a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef ring<BM, BN, BLOCKS> R;
    extern __shared__ unsigned char shared_bytes[];
    __shared__ __align__(8) uint64_t barriers[2 * R::STAGES];
    __shared__ int4 places[R::BM];
    const uint32_t unaligned = shared_address(shared_bytes), stages = (unaligned + 1023u) & ~1023u;
    float *sums = reinterpret_cast<float *>(shared_bytes + (stages - unaligned));
    const uint32_t full = shared_address(barriers), empty = full + R::STAGES * 8;
    const int warp = threadIdx.x / 32, rank = my_part(a), tile = blockIdx.x >> a.splits_bits;
    const member &m = a.of[blockIdx.z];
    const cu_place origin = cu_tile_origin(&a.t, blockIdx.y);
    const int begin = cu_part_begin(a.steps, rank, a.splits_bits),
              n_steps = cu_part_begin(a.steps, rank + 1, a.splits_bits) - begin;

    CU_PHASE(BEGIN, threadIdx.x == 0);
    if (warp == R::GROUPS * 4) {
        produce<R>(a, m, stages, full, empty, origin, tile, begin, n_steps);
        __syncwarp();
        __syncthreads();
    } else {
        row_sum sum = {};
        if (a.pair) cluster_arrive();
        prefetch_columns<BN>(m, a.gates, tile);
        if (threadIdx.x < R::BM) places[threadIdx.x] = row_place(a, m, origin, threadIdx.x);
        __syncthreads();
        next_launch_may_start();
        CU_PHASE(TOGETHER, threadIdx.x == 0);
        float d[1][BN / 2];
        if (m.folded) multiply<R, BN, true>(a, d, sum, stages, full, empty, begin, n_steps);
        else multiply<R, BN, false>(a, d, sum, stages, full, empty, begin, n_steps);
        previous_launch_wait();
        __syncthreads(); /* nobody reads the stages any more: sums take their place */
#pragma unroll
        for (int v = 0; v < BN / 2; v += 2) {
            const int row = warp / 4 * 64 + cu_sum_row(threadIdx.x % 128, v), col = cu_sum_column(threadIdx.x % 128, v);
            *reinterpret_cast<float2 *>(sums + row * R::ROW + col) = make_float2(d[0][v], d[0][v + 1]);
        }
        if (m.folded) leave_moments(a, sum, sums + norm_row() * R::ROW + BN, threadIdx.x % 2, begin, begin + n_steps);
    }
    CU_PHASE(STORED, threadIdx.x == 0);
    if (a.gates) finish<R, BN, true>(a, m, sums, places, tile, rank);
    else finish<R, BN, false>(a, m, sums, places, tile, rank);
#endif
}

/* ---- launching */

template <int BM, int BN, int BLOCKS>
cudaError_t launch(cu_order order, const cu_product_args *of, int n, void *encode_map) {
    typedef ring<BM, BN, BLOCKS> R;
    const cu_product_args &first = of[0];
    const encoder make = reinterpret_cast<encoder>(encode_map);
    launch_args args = {};
    const bool flat = cu_wgmma_tiling(&args.t, &first, R::BM);
    args.gates = first.epi.act == CU_ACT_GEGLU ? first.out.c : 0;
    args.input_bytes = args.t.bw * args.t.bh * args.t.bn * CU_CHUNK_BYTES;
    args.steps = args.t.steps;
    if (first.shortcut_weights) {
        args.shortcut_c = first.shortcut_a.c;
        args.shortcut_chunks = cu_ceil_div(first.shortcut_a.c, CU_CHUNK);
        args.steps += cu_shortcut_steps(&first);
    }
    args.channels = first.in.c;
    args.eps = first.eps;
    while (1 << args.splits_bits < first.splits) args.splits_bits++;
    args.pair = first.pairs && cu_can_pair(&args.t, first.splits);
    const uint32_t box_rows = args.gates || args.pair ? BN / 2 : BN;
    args.by_picture = cu_divider_of(first.out.h * first.out.w);
    args.by_w = cu_divider_of(first.out.w);
    args.by_n = cu_divider_of(first.out.n);
    for (int i = 0; i < n; i++) {
        member &m = args.of[i];
        if (!encode_pixels(make, &m.input, of[i].in, args.t, args.t.stride, flat) ||
            !encode_weights(make, &m.weights, of[i].weights, first.in.c, first.kh * first.kw, first.n_rows, box_rows))
            return cudaErrorInvalidValue;
        if (first.shortcut_weights) {
            const cu_view &a = of[i].shortcut_a, &b = of[i].shortcut_b;
            if (!encode_pixels(make, &m.shortcut[0], a, args.t, 1, false) ||
                (b.c && !encode_pixels(make, &m.shortcut[1], b, args.t, 1, false)) ||
                !encode_weights(make, &m.shortcut_weights, of[i].shortcut_weights, a.c + b.c, 1, first.n_rows,
                                box_rows))
                return cudaErrorInvalidValue;
            m.shortcut_bias = of[i].shortcut_bias;
        }
        m.folded = of[i].folded;
        m.out = of[i].out;
        m.epi = of[i].epi;
    }
    void (*kernel)(const launch_args) = wgmma_kernel<BM, BN, BLOCKS>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, R::BYTES);
    if (e != cudaSuccess) return e;
    const int wide = args.gates ? BN / 2 : BN, tiles = cu_ceil_div(first.out.c, wide);
    return start_clusters(order, kernel, dim3(tiles * first.splits, args.t.tiles, n), dim3(first.splits, 1 + args.pair),
                          R::THREADS, R::BYTES, args);
}

} // namespace

cudaError_t cu_wgmma(cu_order order, const cu_product_args *args, int32_t n, void *encode_map) {
    switch (args->tile) {
#define X(index, rows, columns, blocks)                                                                                \
    case index: return launch<rows, columns, blocks>(order, args, n, encode_map);
        CU_WGMMA_TILES(X)
#undef X
    default: return cu_turns(order, args, n, encode_map);
    }
}
