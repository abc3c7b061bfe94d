/* SPDX-License-Identifier: MIT
 * Products on Hopper (sm_90a): what product.cu computes, with the two things that chip has for it. The copy engine
 * (TMA) brings boxes of input and weights into shared memory by itself, zeros for padding included; the matrix unit
 * (wgmma) multiplies straight from there. tiles.h has all of the index arithmetic.
 *
 * A block is one tile of output: two warps that only start copies, one of the weights and one of the input, and 1 to 3
 * groups of four warps that multiply. They meet at two rings of boxes, each with a barrier "full" (its bytes have come)
 * and "empty" (its sums are done). A step of the sum is 64 channels of one tap: A [pixels][64], B [output
 * channels][64], both with the 128-byte swizzle; a box of the input is of one step, or a patch that serves all taps.
 *
 * Where there are too few tiles for the device (levels 2 and 3: 48 to 192 pixels, where reading the weights is all the
 * work), a cluster of 2 to 8 blocks splits the sum of one tile. Each sends its part, rounded to half, to where it is
 * added up: each block has a share of the rows, adds them up over all parts in order, so that the bits are always the
 * same, and finishes them.
 *
 * Where the sum is long, two tiles of pixels below each other are a pair in one cluster and share their weights: each
 * block copies one half of them into both. What the level-2 cache has to deliver is what large products wait for.
 * The first round of the ring is copied by each block for itself, before the other may have begun.
 *
 * Weights do not depend on the kernel before: where the launch is programmatic, the ring is filled with them while that
 * kernel still runs.
 *
 * A residual block's shortcut is further steps of the sum: of other inputs, by other weights, into the same registers.
 *
 * A layer norm before a linear costs no launch: with W' = W gamma (by columns), W (norm(x)) is (W' x - mean W' 1) /
 * deviation + W beta. The groups that multiply sum each row and its squares out of the boxes as they come, about the
 * row's first value. Such sums are not split, for what is taken off again would be lost in parts of halves; nor are
 * those of gates, which would multiply what is lost. */
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
    cu_ring ring;
    int32_t splits_bits;                 /* 2^splits_bits blocks have a part of the sum each */
    int32_t pair;                        /* 1: tiles of pixels y and y ^ 1 share weights; else 0 */
    int32_t steps;                       /* t.steps, and those of the shortcut: */
    int32_t shortcut_chunks, shortcut_c; /* of its first input */
    int32_t gates;                       /* GEGLU: out.c, else 0 */
    int32_t channels;                    /* of the input; read where the rows are normed, as: */
    float eps;
    cu_divider by_picture, by_w, by_n; /* of the output: pixels, pixels of a row, n */
    member of[CU_MAX_MEMBERS];
};

template <int M, int BN, int BLOCKS> struct shape {
    static const int BM = M, GROUPS = BM / 64;
    static const int THREADS = GROUPS * 128 + 64;
    static const int ALLOCATED = GROUPS * 128 + 128; /* registers are given to four warps at a time */
    static const int WEIGHTS = BN * CU_CHUNK_BYTES;  /* bytes of a box of them */
    static const int ROW = BN + 8; /* cu_sums_row; behind a normed row's: its mean and 1 / deviation */
    static const int REGISTERS = 65536 / (ALLOCATED * BLOCKS); /* of a thread, at most */
    static_assert(REGISTERS >= 80, "the epilogue takes two rows at a time");
    static_assert(WEIGHTS / 2 % 1024 == 0 && ROW * 2 % 16 == 0,
                  "operands begin at the swizzle's period, parts at vectors");
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
CU_DEVICE bool in_cluster(const launch_args &a) { return a.pair || a.splits_bits; }

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

/* The same of `parts` parts, `apart` behind each other, added up in order; that of number `rank` is this block's `own`.
 */
CU_DEVICE void add_parts(const __half *from, int apart, int parts, int rank, const __half *own, float v[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0;
    for (int part = 0; part < parts; part += 2) {
        uint4 two[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            two[i] = *reinterpret_cast<const uint4 *>(part + i == rank ? own : from + (part + i) * apart);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const __half2 *halves = reinterpret_cast<const __half2 *>(&two[i]);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float2 f = __half22float2(halves[k]);
                v[2 * k] += f.x, v[2 * k + 1] += f.y;
            }
        }
    }
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

/* The row's mean and 1 / deviation, from its two threads. */
CU_DEVICE void leave_moments(const launch_args &a, const row_sum &s, float *at, int half) {
    float count = 0;
    for (int step = 0; step < a.steps; step++)
        count += static_cast<float>(max(0, min(CU_CHUNK / 2, a.channels - step * CU_CHUNK - half * (CU_CHUNK / 2))));
    const float d = count > 0 ? s.sum / count : 0.0f;
    float mean = s.shift + d, squares = fmaxf(s.squares - s.sum * d, 0.0f);
    const float mean2 = __shfl_xor_sync(CU_ALL_LANES, mean, 1), squares2 = __shfl_xor_sync(CU_ALL_LANES, squares, 1),
                count2 = __shfl_xor_sync(CU_ALL_LANES, count, 1);
    merge(mean, squares, count, mean2, squares2, count2);
    if (half == 0)
        at[0] = mean, at[1] = rsqrtf(__fdividef(squares, count) + a.eps); /* it has channels if the row has */
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

/* Rows that a thread takes at a time: as many as it has registers for, of as few rounds where it has all of them. */
template <typename R, typename L, bool GATED> struct batch {
    static const int EACH = (R::BM + L::LANES - 1) / L::LANES, MOST = R::REGISTERS / (GATED ? 80 : 32),
                     ROUNDS = (EACH + MOST - 1) / MOST, SIZE = (EACH + ROUNDS - 1) / ROUNDS;
};

/* `rows` rows of the tile from row0 on: sums, which are this block's of all rows, epilogue, output. A thread takes some
 * rows at a time, so that what it reads of memory is under way at once; for the first ones, while the sums come. SPLIT:
 * `parts` are those of these rows from the other blocks, there when `came` says so. */
template <typename R, int BN, bool SPLIT, bool GATED>
CU_DEVICE void finish_rows(const launch_args &all, const member &a, const void *sums, const __half *parts,
                           uint32_t came, const int4 *places, int c, int row0, int rows) {
    typedef lanes<R, BN, GATED> L;
    const int BATCH = SPLIT ? 1 : batch<R, L, GATED>::SIZE, col = L::vector() * 8, lane = L::lane();
    const bool mine = lane < min(L::LANES, rows) && c < a.out.c;
    const __half *residual = static_cast<const __half *>(a.epi.residual.p);
    int4 at[BATCH];
    uint4 more[BATCH];
    columns<GATED> vectors;
    auto read = [&](int begin) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int row = begin + k * L::LANES;
            at[k] = row < rows ? places[row0 + row] : make_int4(-1, 0, 0, 0);
            if (residual && at[k].x >= 0)
                more[k] = *reinterpret_cast<const uint4 *>(residual + static_cast<int64_t>(at[k].w) * 8 + c);
        }
    };
    if (mine) {
        read(lane);
        if (at[0].x >= 0) vectors.load(a, all.gates, c, at[0]);
    }
    __syncthreads();
    if (SPLIT) {
        barrier_wait(came, 0);
        cluster_arrive();
    }
    CU_PHASE(MET, threadIdx.x == 0);
    if (!mine) return;
    for (int begin = lane; begin < rows; begin += L::LANES * BATCH) {
        float v[BATCH][8], gate[BATCH][8];
        if (begin > lane) read(begin);
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (at[k].x < 0) continue;
            const int from = (begin + k * L::LANES) * R::ROW + col;
            if (SPLIT) {
                add_parts(parts + from, rows * R::ROW, 1 << all.splits_bits, my_part(all),
                          static_cast<const __half *>(sums) + row0 * R::ROW + from, v[k]);
            } else {
                own_sums(static_cast<const float *>(sums) + from, v[k]);
                if (GATED) own_sums(static_cast<const float *>(sums) + from + L::WIDE, gate[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (at[k].x < 0) continue;
            vectors.load(a, all.gates, c, at[k]);
            float mean = 0, rstd = 1;
            if (!SPLIT && a.folded) {
                const float *moments = static_cast<const float *>(sums) + (begin + k * L::LANES) * R::ROW + BN;
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

/* All threads, when this block's sums are in its shared memory, or on their way to where they are added up. */
template <typename R, int BN, bool SPLIT, bool GATED>
CU_DEVICE void finish(const launch_args &all, const member &a, const unsigned char *sums, uint32_t came,
                      const int4 *places, int tile) {
    typedef lanes<R, BN, GATED> L;
    const int c = tile * L::WIDE + L::vector() * 8, rows = SPLIT ? R::BM >> all.splits_bits : R::BM;
    finish_rows<R, BN, SPLIT, GATED>(all, a, sums, reinterpret_cast<const __half *>(sums + all.ring.parts), came,
                                     places, c, SPLIT ? my_part(all) * rows : 0, rows);
    CU_PHASE(FINISHED, threadIdx.x == 0);
    if (SPLIT) cluster_wait(); /* no block ends while its parts are on their way */
}

/* ---- copies */

/* Where a step's operands come from. */
struct operands {
    const CUtensorMap *input, *weights;
    cu_step in; /* its tap is the weights', too */
    int column; /* of the weights */
};

CU_DEVICE operands shortcut_operands(const launch_args &a, const member &m, cu_place origin, int step) {
    const int chunk = step - a.t.steps, second = chunk >= a.shortcut_chunks,
              c = (second ? chunk - a.shortcut_chunks : chunk) * CU_CHUNK;
    return {&m.shortcut[second], &m.shortcut_weights, cu_shortcut_step(&a.t, origin, c), second ? a.shortcut_c + c : c};
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

/* A block's part of the sum, and its shared memory. */
struct work {
    uint32_t boxes, weights;
    uint32_t full, empty, box_full, box_empty, came; /* barriers */
    cu_place origin;
    int tile, begin, n_steps;
};

/* Barriers of hardware that warps meet at; the first is __syncthreads'. */
enum meeting {
    BARRIERS = 1, /* the two warps that copy: barriers are made */
    BEGIN,        /* those that multiply: so they are */
};

/* The two warps that copy, all their lanes along, so that what they know is uniform; one acts. Each makes barriers. */

/* Copies weights: those of the ring's first round before the others are there. */
template <typename R> CU_DEVICE void bring_weights(const launch_args &a, const member &m, const work &w) {
    const bool acts = elect_one();
    if (acts) {
#pragma unroll
        for (int i = 0; i < CU_RING_LIMIT; i++) {
            barrier_init(w.full + i * 8, a.t.patch ? 1 : 2);
            barrier_init(w.empty + i * 8, R::GROUPS * 4 << a.pair);
        }
        barriers_made();
    }
    __syncwarp();
    warps_meet(BARRIERS, 64);
    warps_pass(BEGIN, R::THREADS);
    if (in_cluster(a)) cluster_arrive();
    CU_PHASE(BARRIERS, acts);
    const int row0 = cu_weight_row(w.tile, R::WEIGHTS / CU_CHUNK_BYTES, a.gates, 0),
              row1 = cu_weight_row(w.tile, R::WEIGHTS / CU_CHUNK_BYTES, a.gates, 1);
    const uint32_t full = uniform(w.full), to = uniform(w.weights);
    operands s = first_operands(a, m, w.origin, w.begin);
    CU_PHASE(OPERANDS, acts);
    const bool halves = a.gates || a.pair;
    auto copy = [&](int at) {
        const uint32_t bar = full + at * 8;
        barrier_expect(bar, R::WEIGHTS);
        copy_weights(to + at * R::WEIGHTS, s.weights, bar, s.column, s.in.tap, row0);
        if (halves) copy_weights(to + at * R::WEIGHTS + R::WEIGHTS / 2, s.weights, bar, s.column, s.in.tap, row1);
    };
    const int ring = uniform(a.ring.weights), n_steps = uniform(w.n_steps), first = min(n_steps, ring);
    for (int i = 0; i < first; i++) {
        if (i) next_operands(a, m, w.origin, w.begin + i, s);
        if (acts) copy(i);
        if (i == 0) CU_PHASE(FIRST, acts);
    }
    CU_PHASE(WEIGHTS, acts);
    next_launch_may_start();
    __syncwarp();
    if (in_cluster(a)) cluster_wait(); /* the other blocks' barriers are there */
    const int half = blockIdx.y & a.pair, my_row = half ? row1 : row0, rank = my_part(a);
    const uint16_t both = static_cast<uint16_t>((1 << rank) | (1 << rank << (1 << a.splits_bits)));
    const uint32_t empty = uniform(w.empty);
    position k;
    for (int i = first; i < n_steps; i++, k.next(ring)) {
        next_operands(a, m, w.origin, w.begin + i, s);
        barrier_wait(empty + k.at * 8, k.parity);
        if (!acts) continue;
        if (!a.pair) {
            copy(k.at);
            continue;
        }
        barrier_expect(full + k.at * 8, R::WEIGHTS);
        copy_weights_to(to + k.at * R::WEIGHTS + half * (R::WEIGHTS / 2), s.weights, full + k.at * 8, s.column,
                        s.in.tap, my_row, both);
    }
}

/* Copies the input, which the launch before may write. A box of one step goes with the step's weights: its barriers are
 * theirs. */
template <typename R> CU_DEVICE void bring_input(const launch_args &a, const member &m, const work &w) {
    const bool acts = elect_one();
    if (acts) {
        prefetch_map(&m.input);
#pragma unroll
        for (int i = 0; i < CU_PATCHES; i++) {
            barrier_init(w.box_full + i * 8, 1);
            barrier_init(w.box_empty + i * 8, R::GROUPS * 4);
        }
        barrier_init(w.came, 1);
        barriers_made();
        if (a.splits_bits) barrier_expect(w.came, (R::BM - (R::BM >> a.splits_bits)) * R::ROW * 2);
    }
    __syncwarp();
    warps_pass(BEGIN, R::THREADS);
    if (in_cluster(a)) cluster_arrive();
    const uint32_t full = uniform(a.t.patch ? w.box_full : w.full), empty = uniform(a.t.patch ? w.box_empty : w.empty),
                   to = uniform(w.boxes), box_bytes = uniform(a.ring.box_bytes);
    const int bytes = uniform(a.t.box_rows * CU_CHUNK_BYTES), ring = uniform(a.ring.boxes),
              n_steps = uniform(w.n_steps);
    operands s = first_operands(a, m, w.origin, w.begin);
    warps_meet(BARRIERS, 64);
    next_launch_may_start();
    previous_launch_wait();
    CU_PHASE(PREVIOUS, acts);
    position k;
    int box = 0;
    for (int i = 0; i < n_steps; i++) {
        if (i) next_operands(a, m, w.origin, w.begin + i, s);
        if (i && !cu_begins_box(&a.t, &s.in)) continue;
        if (box == ring) CU_PHASE(INPUTS, acts);
        if (box++ >= ring) barrier_wait(empty + k.at * 8, k.parity ^ 1);
        if (acts) {
            const uint32_t bar = full + k.at * 8;
            barrier_expect(bar, bytes);
            copy_box(to + k.at * box_bytes, s.input, bar, s.in.c, s.in.x, a.t.patch ? w.origin.n : s.in.y,
                     a.t.patch ? s.in.y : w.origin.n);
        }
        k.next(ring);
    }
    CU_PHASE(ASKED, acts);
    __syncwarp();
    if (in_cluster(a)) cluster_wait();
}

/* ---- sums */

/* What a group of four warps does: its rows' sums, and if they are normed the rows' values too. What comes between two
 * steps the matrix unit waits for: where the next one's operands are is known before. */
template <typename R, int BN, bool PATCH, bool NORMED>
CU_DEVICE void multiply(const launch_args &a, const work &w, float (&d)[1][BN / 2], row_sum &sum) {
#pragma unroll
    for (int v = 0; v < BN / 2; v++) d[0][v] = 0;
    const int lane = threadIdx.x % 32, n_steps = uniform(w.n_steps), own = uniform(a.t.steps - w.begin);
    const uint32_t full = uniform(w.full), box_full = uniform(w.box_full), box_bytes = uniform(a.ring.box_bytes),
                   ring = uniform(a.ring.weights), group_bytes = (PATCH ? a.t.group_rows : 8) * CU_CHUNK_BYTES,
                   mine = uniform(w.boxes + threadIdx.x / 128 * 8 * group_bytes);
    const uint64_t first = cu_operand_of(mine, group_bytes), weights = cu_operand(uniform(w.weights)),
                   inputs = static_cast<uint64_t>(uniform(static_cast<uint32_t>(first >> 32))) << 32 |
                            uniform(static_cast<uint32_t>(first));
    const int kw = uniform(a.t.kw), below = uniform(a.t.tap_rows - a.t.kw), taps = uniform(a.t.by_taps.by),
              middle = uniform(a.t.pad_top * a.t.tap_rows + a.t.pad_left);
    /* Weights are copied again to where those of a step were, if there are as many steps more; the two blocks of a pair
     * copy them together. */
    auto give_back = [&](int step, uint32_t at) {
        if (step < 0 || step + static_cast<int>(ring) >= n_steps) return;
        if (a.pair) {
            if (lane < 2) barrier_arrive_at(w.empty + at * 8, my_part(a) + (lane << a.splits_bits));
        } else if (lane == 0) barrier_arrive(w.empty + at * 8);
    };
    cu_step s = {};
    if (PATCH) s = w.begin < a.t.steps ? cu_step_at(&a.t, w.origin, w.begin) : cu_shortcut_step(&a.t, w.origin, 0);
    if (in_cluster(a)) cluster_wait(); /* the other blocks' barriers are there */
    CU_PHASE(FULL, (barrier_wait(full, 0), PATCH ? barrier_wait(box_full, 0) : void(), threadIdx.x == 0));
    position k, box;
    uint32_t last = 0, before = 0, at = s.row * CU_CHUNK_BYTES; /* last: where weights of the step before are */
    bool begins = PATCH;
    for (int i = 0; i < n_steps; i++) {
        barrier_wait(full + k.at * 8, k.parity);
        if (begins) barrier_wait(box_full + box.at * 8, box.parity);
        ask_step<1, BN>(d, further(inputs, at), further(weights, k.at * R::WEIGHTS));
        if (NORMED)
            add_values(sum, mine + at, norm_row() % 64, threadIdx.x % 2, (w.begin + i) * CU_CHUNK, a.channels, i == 0);
        const bool began = begins && i;
        const uint32_t last_box = box.at ^ 1, free = before;
        before = last, last = k.at;
        k.next(ring);
        if (PATCH) {
            s.tap++, s.kx++, s.row++;
            if (s.kx == kw) s.kx = 0, s.row += below;
            if (s.tap == taps) s.tap = s.row = 0;
            if (i + 1 >= own) s.tap = 0, s.row = middle; /* a shortcut's */
            begins = s.tap == 0;
            if (begins) box.next(CU_PATCHES);
            at = box.at * box_bytes + s.row * CU_CHUNK_BYTES;
        } else at = k.at * box_bytes;
        give_back(i - 2, free);
        sums_wait<1>(); /* all but this step's: what the step before read is free */
        if (began && lane == 0) barrier_arrive(w.box_empty + last_box * 8);
    }
    sums_wait<0>();
    sums_pin(d[0]);
    CU_PHASE(MULTIPLIED, threadIdx.x == 0);
}

CU_DEVICE void store2(float *to, float x, float y) { *reinterpret_cast<float2 *>(to) = make_float2(x, y); }
CU_DEVICE void store2(__half *to, float x, float y) { *reinterpret_cast<__half2 *>(to) = __floats2half2_rn(x, y); }

/* A group's sums to shared memory. */
template <typename R, int BN, typename T> CU_DEVICE void store_sums(const float (&d)[1][BN / 2], T *sums) {
#pragma unroll
    for (int v = 0; v < BN / 2; v += 2) {
        const int row = threadIdx.x / 128 * 64 + cu_sum_row(threadIdx.x % 128, v);
        store2(sums + row * R::ROW + cu_sum_column(threadIdx.x % 128, v), d[0][v], d[0][v + 1]);
    }
}

/* Rows of this warp's, which are in shared memory, to the other blocks that add them up. */
template <typename R> CU_DEVICE void send_sums(const launch_args &a, const work &w) {
    enum { PIECE = 8, PIECE_BYTES = PIECE * R::ROW * 2 }; /* rows, all of which have the same destination */
    const int rows = R::BM >> a.splits_bits, row = threadIdx.x / 32 * 16 + threadIdx.x % 32 * PIECE, to = row / rows;
    static_assert(R::BM / CU_WGMMA_MAX_SPLITS % PIECE == 0, "a piece has one destination");
    shared_written();
    __syncwarp();
    if (threadIdx.x % 32 < 16 / PIECE && to != my_part(a))
        send_bytes(there_of(w.boxes + a.ring.parts + (my_part(a) * rows + row % rows) * R::ROW * 2, first_part(a) + to),
                   w.boxes + row * R::ROW * 2, PIECE_BYTES, there_of(w.came, first_part(a) + to));
}

#endif

/* Grid: (splits x tiles of columns, tiles of pixels, members); the splits of a tile, or of a pair's two, are a cluster.
 * A block of a pair may end while the other works: no weights come to it any more, for their place is given back only
 * where it is filled again, and filled only where it is waited for. */
template <int BM, int BN, int BLOCKS>
__global__ void __launch_bounds__(shape<BM, BN, BLOCKS>::ALLOCATED, BLOCKS)
    wgmma_kernel(const __grid_constant__ launch_args a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef shape<BM, BN, BLOCKS> R;
    extern __shared__ unsigned char shared_bytes[];
    __shared__ __align__(8) unsigned char barriers[CU_BARRIER_BYTES];
    __shared__ int4 places[R::BM];
    const uint32_t unaligned = shared_address(shared_bytes), boxes = (unaligned + 1023u) & ~1023u,
                   bars = shared_address(barriers);
    const int warp = threadIdx.x / 32, rank = my_part(a), begin = cu_part_begin(a.steps, rank, a.splits_bits);
    const member &m = a.of[blockIdx.z];
    const work w = {boxes,
                    boxes + a.ring.boxes * a.ring.box_bytes,
                    bars,
                    bars + CU_RING_LIMIT * 8,
                    bars + CU_RING_LIMIT * 16,
                    bars + (CU_RING_LIMIT * 2 + CU_PATCHES) * 8,
                    bars + (CU_RING_LIMIT + CU_PATCHES) * 16,
                    cu_tile_origin(&a.t, blockIdx.y),
                    static_cast<int>(blockIdx.x >> a.splits_bits),
                    begin,
                    cu_part_begin(a.steps, rank + 1, a.splits_bits) - begin};
    unsigned char *sums = shared_bytes + (boxes - unaligned);

    CU_PHASE(BEGIN, threadIdx.x == 0);
    if (warp >= R::GROUPS * 4) {
        if (warp == R::GROUPS * 4) bring_weights<R>(a, m, w);
        else bring_input<R>(a, m, w);
        __syncwarp();
        __syncthreads();
    } else {
        row_sum sum = {};
        if (in_cluster(a)) cluster_arrive();
        prefetch_columns<BN>(m, a.gates, w.tile);
        if (threadIdx.x < R::BM) places[threadIdx.x] = row_place(a, m, w.origin, threadIdx.x);
        CU_PHASE(ROWS, threadIdx.x == 0);
        warps_meet(BEGIN, R::THREADS);
        next_launch_may_start();
        CU_PHASE(TOGETHER, threadIdx.x == 0);
        float d[1][BN / 2];
        if (m.folded) multiply<R, BN, false, true>(a, w, d, sum);
        else if (a.t.patch) multiply<R, BN, true, false>(a, w, d, sum);
        else multiply<R, BN, false, false>(a, w, d, sum);
        __syncthreads(); /* no operand is read any more: sums take their place; all know the rows' places */
        if (a.splits_bits) {
            store_sums<R, BN>(d, reinterpret_cast<__half *>(sums));
            send_sums<R>(a, w);
        } else {
            store_sums<R, BN>(d, reinterpret_cast<float *>(sums));
            if (m.folded)
                leave_moments(a, sum, reinterpret_cast<float *>(sums) + norm_row() * R::ROW + BN, threadIdx.x % 2);
        }
    }
    CU_PHASE(STORED, threadIdx.x == 0);
    previous_launch_wait();
    if (a.splits_bits) finish<R, BN, true, false>(a, m, sums, w.came, places, w.tile);
    else if (a.gates) finish<R, BN, false, true>(a, m, sums, w.came, places, w.tile);
    else finish<R, BN, false, false>(a, m, sums, w.came, places, w.tile);
#endif
}

/* ---- launching */

template <int BM, int BN, int BLOCKS>
cudaError_t launch(cu_order order, const cu_product_args *of, int n, void *encode_map) {
    typedef shape<BM, BN, BLOCKS> R;
    const cu_product_args &first = of[0];
    const encoder make = reinterpret_cast<encoder>(encode_map);
    launch_args args = {};
    const bool flat = cu_wgmma_tiling(&args.t, &first, R::BM);
    args.gates = first.epi.act == CU_ACT_GEGLU ? first.out.c : 0;
    args.steps = args.t.steps;
    args.ring = cu_ring_of(&args.t, BM, BN, BLOCKS, first.splits);
    if (first.splits > 1 && (first.folded || args.gates)) return cudaErrorInvalidValue;
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
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, args.ring.bytes);
    if (e != cudaSuccess) return e;
    const int wide = args.gates ? BN / 2 : BN, tiles = cu_ceil_div(first.out.c, wide);
    return start_clusters(order, kernel, dim3(tiles * first.splits, args.t.tiles, n), dim3(first.splits, 1 + args.pair),
                          R::THREADS, args.ring.bytes, args);
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
