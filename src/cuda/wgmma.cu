/* SPDX-License-Identifier: MIT
 * Products on Hopper (sm_90a): what product.cu computes, with the two things that chip has for it. The copy engine
 * (TMA) brings boxes of input and weights into shared memory by itself, zeros for padding included; the matrix unit
 * (wgmma) multiplies straight from there. tiles.h has all of the index arithmetic.
 *
 * A block is one tile of output: 1 to 3 groups of four warps that multiply, and four warps more, of which one copies
 * weights, one the input, and two note where rows and columns of the tile are. They meet at two rings of boxes, each
 * with a barrier "full" (its bytes have come) and "empty" (its sums are done). A step of the sum is 64 channels of one
 * tap: A [pixels][64], B [output channels][64], both with the 128-byte swizzle; a box of the input is of one step, or a
 * patch that serves all taps.
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
 * A layer norm before a linear costs no launch: its factors are in the weights, of each row of which the mean is taken
 * off, so that sums do not hang on the mean of what they multiply (lw_param_fold); what is left is to divide them by
 * the deviation of their row. The product that makes the rows leaves their statistics, a part for each 64 channels. The
 * sums of gates are not split, for they would multiply what is lost in parts of halves.
 *
 * One kernel has all tiles, whose sizes it is told: what is not the sum itself is the same code for all of them. A
 * network's launches are short and of many kinds, and a multiprocessor keeps some 128 KB of instructions; what a launch
 * finds there of the one before it need not be fetched (docs/PERF.md). For the same reason loops are not unrolled but
 * where the sum is made. */
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
    const float *stats;         /* of the input's rows, for a layer norm; else NULL */
    float *row_stats;           /* of the output's; NULL: not wanted */
    cu_view out;
    cu_epilogue epi;
};

/* Members have the same sizes; each block works for one. */
struct launch_args {
    cu_tiling t;
    cu_ring ring;
    int32_t rows, columns, groups; /* of a tile; of four warps, 64 rows each */
    int32_t weights_bytes, row;    /* of a box; values from a row of sums to the next (cu_sums_row) */
    int32_t wide, lanes, rounds;   /* columns of output of a tile; rows that the epilogue takes at a time; times */
    int32_t splits_bits;           /* 2^splits_bits blocks have a part of the sum each */
    int32_t pair;                  /* 1: tiles of pixels y and y ^ 1 share weights; else 0 */
    int32_t steps;                 /* t.steps, and those of the shortcut: */
    int32_t shortcut_chunks, shortcut_c; /* of its first input */
    int32_t gates;                       /* GEGLU: out.c, else 0 */
    int32_t channels;                    /* of the input; read where there are its rows' statistics, as: */
    float eps;
    cu_divider by_picture, by_w, by_n; /* of the output: pixels, pixels of a row, n */
    cu_divider by_lanes;               /* threads of the epilogue that have two rows */
    member of[CU_MAX_MEMBERS];
};

/* The first four warps do not multiply: one copies weights, one the input, two note where the tile's rows and columns
 * are. Where the others begin is a number that the compiler knows: else it finds that lanes might part there, and has
 * the matrix unit wait for each of its instructions (C7518). Registers are given to four warps at a time. */
enum { WEIGHTS_WARP, INPUT_WARP, FIRST_NOTING_WARP, FIRST_GROUP_WARP = 4 };
constexpr int threads_of(int groups) { return FIRST_GROUP_WARP * 32 + groups * 128; }

/* NARROW: the most columns of a sum that the registers of MOST_THREADS have room for. PIECE: rows that are sent to
 * another block at once, all of which it adds up. */
enum { NARROW = 160, MOST_THREADS = 512, WIDE_THREADS = 384, MOST_SHARED = 227 * 1024, PIECE = 8 };

#ifdef CU_SM90A

/* ---- a block */

/* Its part of a sum, and its shared memory. */
struct work {
    int4 *places;        /* of each row: row_place */
    float *vectors;      /* of each column: bring_columns */
    float *factors;      /* of each row, where there are statistics: 1 / deviation */
    unsigned char *sums; /* begin where the boxes do */
    uint32_t boxes, weights;
    uint32_t full, empty, box_full, box_empty, came; /* barriers */
    cu_place origin;
    int tile, begin, n_steps, rank; /* rank: which of the sum's parts */
};

/* Of those that multiply. */
CU_DEVICE int group_thread() { return threadIdx.x - FIRST_GROUP_WARP * 32; }
CU_DEVICE bool in_cluster(const launch_args &a) { return a.pair || a.splits_bits; }
/* The first of the blocks of this cluster that have this one's tile. */
CU_DEVICE int first_part(const launch_args &a) { return (blockIdx.y & a.pair) << a.splits_bits; }

/* As cu_block_bytes counts it. */
CU_DEVICE work work_of(const launch_args &a, unsigned char *shared) {
    const uint32_t base = shared_address(shared), bars = base + a.rows * 20 + a.columns * 8,
                   boxes = (bars + CU_BARRIER_BYTES + 1023u) & ~1023u;
    const int rank = blockIdx.x & ((1 << a.splits_bits) - 1), begin = cu_part_begin(a.steps, rank, a.splits_bits);
    return {reinterpret_cast<int4 *>(shared),
            reinterpret_cast<float *>(shared + a.rows * 16),
            reinterpret_cast<float *>(shared + a.rows * 16 + a.columns * 8),
            shared + (boxes - base),
            boxes,
            boxes + a.ring.boxes * a.ring.box_bytes,
            bars,
            bars + CU_RING_LIMIT * 8,
            bars + CU_RING_LIMIT * 16,
            bars + (CU_RING_LIMIT * 2 + CU_PATCHES) * 8,
            bars + (CU_RING_LIMIT + CU_PATCHES) * 16,
            cu_tile_origin(&a.t, blockIdx.y),
            static_cast<int>(blockIdx.x >> a.splits_bits),
            begin,
            cu_part_begin(a.steps, rank + 1, a.splits_bits) - begin,
            rank};
}

/* Barriers of hardware that warps meet at; the first is __syncthreads'. */
enum meeting {
    BARRIERS = 1, /* the two warps that copy: barriers are made */
    BEGIN,        /* those that multiply: so they are */
};
enum { COPYING_THREADS = FIRST_NOTING_WARP * 32 };
/* Those that copy pass here, without waiting; those that multiply meet. */
CU_DEVICE int begin_threads(const launch_args &a) { return FIRST_GROUP_WARP * 32 + a.groups * 128; }

/* ---- layer norm: rows' statistics */

/* Of the tile's rows, by the groups that multiply, two threads a row; while the first boxes are on their way. */
CU_DEVICE void bring_factors(const launch_args &a, const member &m, const work &w) {
    enum { AT_ONCE = 10 };
    const int parts = a.channels / CU_ROW_PART, row = group_thread() / 2, half = threadIdx.x % 2;
    const float2 *from = reinterpret_cast<const float2 *>(m.stats) +
                         static_cast<int64_t>(max(cu_tile_pixel(&a.t, w.origin, row), 0)) * parts;
    const float about = from->x; /* means of the parts are as far from this as they are from each other */
    float sum = 0, between = 0, within = 0;
#pragma unroll 1
    for (int first = half; first < parts; first += 2 * AT_ONCE) {
        float2 part[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) part[i] = first + 2 * i < parts ? from[first + 2 * i] : make_float2(about, 0);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float d = part[i].x - about;
            sum += d, between += d * d, within += part[i].y;
        }
    }
    sum += __shfl_xor_sync(CU_ALL_LANES, sum, 1);
    between += __shfl_xor_sync(CU_ALL_LANES, between, 1);
    within += __shfl_xor_sync(CU_ALL_LANES, within, 1);
    between = fmaxf(between - __fdividef(sum * sum, static_cast<float>(parts)), 0.0f);
    if (half == 0)
        w.factors[row] = rsqrtf(__fdividef(within + CU_ROW_PART * between, static_cast<float>(a.channels)) + a.eps);
}

/* Mean and squared deviations of a part of a row, of which each of 8 threads, two apart, has 8 values; all lanes along,
 * for with masks of their own the rows of a warp would take turns. */
CU_DEVICE void leave_part(float *to, const float v[8], bool real) {
    static_assert(CU_ROW_PART == 8 * 8, "of 8 threads");
    float sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])), mean = sum * 0.125f, squares = 0,
          count = 8;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += (v[i] - mean) * (v[i] - mean);
#pragma unroll
    for (int apart = 2; apart < 16; apart *= 2, count *= 2) {
        const float mean2 = __shfl_xor_sync(CU_ALL_LANES, mean, apart),
                    squares2 = __shfl_xor_sync(CU_ALL_LANES, squares, apart), d = mean2 - mean;
        mean = 0.5f * (mean + mean2);
        squares += squares2 + d * d * (0.5f * count);
    }
    if (real && threadIdx.x % 16 < 2) *reinterpret_cast<float2 *>(to) = make_float2(mean, squares);
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

/* The vectors of a tile's columns are read once a step of the sampler and lie in the device's memory: on their way to
 * shared memory while sums are made. Of weight rows, so that gates are behind their values: biases, the shortcut's
 * biases. */
CU_DEVICE void bring_columns(const launch_args &a, const member &m, const work &w, int first, int threads) {
    const int n = a.columns;
#pragma unroll 1
    for (int at = first; at < n; at += threads) {
        const int gate = at >= a.wide, own = w.tile * a.wide + at - gate * a.wide, real = own < m.out.c,
                  c = real ? own + gate * a.gates : 0;
        if (m.epi.bias) copy_some<4>(w.vectors + at, m.epi.bias + c, real);
        if (m.shortcut_bias) copy_some<4>(w.vectors + n + at, m.shortcut_bias + c, real);
    }
    copy_commit();
}

CU_DEVICE void add8(float to[8], const float v[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] += v[i];
}

/* What the epilogue adds to 8 channels from c on, columns `at` of the tile, of pixels of (g, n). */
CU_DEVICE void load_columns(const float *vectors, int n_columns, const member &a, int at, int c, int g, int n,
                            float add[8]) {
    const cu_view &addend = a.epi.addend;
    float t[8];
#pragma unroll
    for (int i = 0; i < 8; i++) add[i] = 0;
    if (a.epi.bias) load8(vectors + at, add);
    if (addend.p) {
        load8_as(addend, g * addend.sg + n * addend.sn + c, t);
        add8(add, t);
    }
    if (a.shortcut_bias) {
        load8(vectors + n_columns + at, t);
        add8(add, t);
    }
}

/* What the epilogue adds to a thread's 8 columns of pixels of (g, n), and multiplies them by. */
template <bool GATED> struct columns {
    int g = -1, n = -1;
    float add[8], gate_add[8], scale = 1;

    __device__ __forceinline__ void load(const launch_args &all, const member &a, const float *vectors, int at, int c,
                                         int4 place) {
        if (place.x == g && place.y == n) return; /* a tile has pixels of few (g, n) */
        g = place.x, n = place.y;
        load_columns(vectors, all.columns, a, at, c, g, n, add);
        if (GATED) load_columns(vectors, all.columns, a, all.wide + at, all.gates + c, g, n, gate_add);
        if (a.epi.scale) scale = a.epi.scale[g * a.epi.scale_sg + n * a.epi.scale_sn];
    }
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
    float t[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0;
#pragma unroll 1
    for (int part = 0; part < parts; part++, from += apart) {
        load8(part == rank ? own : from, t);
        add8(v, t);
    }
}

/* Sums, which are this block's of all rows, to the output, through the epilogue. Threads keep to 8 columns each; two
 * beside each other have the same ones of two rows. SPLIT: of this block's share of the rows, with the other blocks'
 * parts, when they have come. ACTS: with an activation, which few products have and which is long. Residuals are on
 * their way for AHEAD rows, as many as most threads have, while the sums come. */
template <bool SPLIT, bool GATED, bool ACTS>
CU_DEVICE void finish(const launch_args &all, const member &a, const work &w) {
    enum { AHEAD = 4 };
    const int rows = all.rows >> all.splits_bits, row0 = SPLIT ? w.rank * rows : 0;
    int rest = threadIdx.x;
    const int lane = cu_divide_rest(&all.by_lanes, &rest) * 2 + threadIdx.x % 2, col = rest / 2 * 8,
              c = w.tile * all.wide + col;
    const bool mine = lane < all.lanes && c < a.out.c;
    const __half *residual = static_cast<const __half *>(a.epi.residual.p),
                 *parts = reinterpret_cast<const __half *>(w.sums + all.ring.parts);
    const int4 *places = w.places + row0;
    uint4 more[AHEAD] = {};
    columns<GATED> vectors;
    auto read = [&](uint4 &to, int row) {
        if (residual && row < rows && places[row].x >= 0)
            to = *reinterpret_cast<const uint4 *>(residual + static_cast<int64_t>(places[row].w) * 8 + c);
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (mine) read(more[i], lane + i * all.lanes);
    copy_wait<0>(); /* of columns */
    __syncthreads();
    if (SPLIT) {
        barrier_wait(w.came, 0);
        cluster_arrive();
    }
    CU_PHASE(MET, group_thread() == 0);
#pragma unroll 1
    for (int round = 0, row = lane; round < all.rounds; round++, row += all.lanes) { /* all lanes along: leave_part */
        int4 at = make_int4(-1, 0, 0, 0);
        if (mine && row < rows) at = places[row];
        const int from = row * all.row + col;
        float v[8], gate[8];
        if (at.x >= 0) {
            if (SPLIT) {
                add_parts(parts + from, rows * all.row, 1 << all.splits_bits, w.rank,
                          reinterpret_cast<const __half *>(w.sums) + row0 * all.row + from, v);
            } else {
                own_sums(reinterpret_cast<const float *>(w.sums) + from, v);
                if (GATED) own_sums(reinterpret_cast<const float *>(w.sums) + from + all.wide, gate);
            }
            vectors.load(all, a, w.vectors, col, c, at);
            const float by = a.stats ? w.factors[row0 + row] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[i] = v[i] * by + vectors.add[i];
                if (GATED) v[i] *= cu_gelu(gate[i] * by + vectors.gate_add[i]);
            }
            if (ACTS) act8(a.epi.act, v);
            if (a.epi.scale)
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] *= vectors.scale;
            if (residual) {
                float t[8];
                load8(reinterpret_cast<const __half *>(&more[0]), t);
                add8(v, t);
            }
            store8(static_cast<__half *>(a.out.p) + static_cast<int64_t>(at.z) * 8 + c, v);
        }
        if (!GATED && !ACTS && a.row_stats) /* rows are dense: 2 floats for 64 channels */
            leave_part(a.row_stats + (at.z / 4 + c / CU_ROW_PART * 2), v, at.x >= 0);
#pragma unroll
        for (int i = 0; i + 1 < AHEAD; i++) more[i] = more[i + 1];
        if (mine) read(more[AHEAD - 1], row + AHEAD * all.lanes);
    }
    CU_PHASE(FINISHED, group_thread() == 0);
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

/* The two warps that copy, all their lanes along, so that what they know is uniform; one acts. Each makes barriers.
 * What they do for a step the matrix unit may wait for. */

/* Copies weights: those of the ring's first round before the others are there. */
CU_DEVICE void bring_weights(const launch_args &a, const member &m, const work &w) {
    const bool acts = elect_one();
    if (acts) {
        prefetch_map(w.begin < a.t.steps ? &m.weights : &m.shortcut_weights);
#pragma unroll 1
        for (int i = 0; i < a.ring.weights; i++) {
            barrier_init(w.full + i * 8, a.t.patch ? 1 : 2);
            barrier_init(w.empty + i * 8, a.groups * 4 << a.pair);
        }
        barriers_made();
    }
    __syncwarp();
    warps_meet(BARRIERS, COPYING_THREADS);
    warps_pass(BEGIN, begin_threads(a));
    if (in_cluster(a)) cluster_arrive();
    CU_PHASE(BARRIERS, acts);
    const uint32_t full = uniform(w.full), to = uniform(w.weights), bytes = uniform(a.weights_bytes);
    const int row0 = uniform(cu_weight_row(w.tile, a.columns, a.gates, 0)),
              row1 = uniform(cu_weight_row(w.tile, a.columns, a.gates, 1));
    operands s = first_operands(a, m, w.origin, w.begin);
    CU_PHASE(OPERANDS, acts);
    const bool halves = a.gates || a.pair;
    auto copy = [&](int at) {
        const uint32_t bar = full + at * 8, there = to + at * bytes;
        barrier_expect(bar, bytes);
        copy_weights(there, s.weights, bar, s.column, s.in.tap, row0);
        if (halves) copy_weights(there + bytes / 2, s.weights, bar, s.column, s.in.tap, row1);
    };
    const int ring = uniform(a.ring.weights), n_steps = uniform(w.n_steps), first = min(n_steps, ring);
#pragma unroll 1
    for (int i = 0; i < first; i++) {
        if (i) next_operands(a, m, w.origin, w.begin + i, s);
        if (acts) copy(i);
        if (i == 0) CU_PHASE(FIRST, acts);
    }
    CU_PHASE(WEIGHTS, acts);
    next_launch_may_start();
    __syncwarp();
    if (in_cluster(a)) cluster_wait(); /* the other blocks' barriers are there */
    const int half = blockIdx.y & a.pair, my_row = half ? row1 : row0;
    const uint16_t both = static_cast<uint16_t>((1 << w.rank) | (1 << w.rank << (1 << a.splits_bits)));
    const uint32_t empty = uniform(w.empty);
    position k;
#pragma unroll 1
    for (int i = first; i < n_steps; i++, k.next(ring)) {
        next_operands(a, m, w.origin, w.begin + i, s);
        barrier_wait(empty + k.at * 8, k.parity);
        if (!acts) continue;
        if (!a.pair) {
            copy(k.at);
            continue;
        }
        barrier_expect(full + k.at * 8, bytes);
        copy_weights_to(to + k.at * bytes + half * (bytes / 2), s.weights, full + k.at * 8, s.column, s.in.tap, my_row,
                        both);
    }
}

/* Copies the input, which the launch before may write. A box of one step goes with the step's weights: its barriers are
 * theirs. */
CU_DEVICE void bring_input(const launch_args &a, const member &m, const work &w) {
    const bool acts = elect_one();
    if (acts) {
        prefetch_map(&m.input);
#pragma unroll
        for (int i = 0; i < CU_PATCHES; i++) {
            barrier_init(w.box_full + i * 8, 1);
            barrier_init(w.box_empty + i * 8, a.groups * 4);
        }
        barrier_init(w.came, 1);
        barriers_made();
        if (a.splits_bits)
            barrier_expect(w.came, (a.rows - (a.rows >> a.splits_bits)) * a.row * static_cast<int>(sizeof(__half)));
    }
    __syncwarp();
    warps_meet(BARRIERS, COPYING_THREADS);
    warps_pass(BEGIN, begin_threads(a));
    if (in_cluster(a)) cluster_arrive();
    const bool patch = a.t.patch;
    const uint32_t full = uniform(patch ? w.box_full : w.full), empty = uniform(patch ? w.box_empty : w.empty),
                   to = uniform(w.boxes), box_bytes = uniform(a.ring.box_bytes);
    const int bytes = uniform(a.t.box_rows * CU_CHUNK_BYTES), ring = uniform(a.ring.boxes),
              n_steps = uniform(w.n_steps);
    operands s = first_operands(a, m, w.origin, w.begin);
    next_launch_may_start();
    previous_launch_wait();
    CU_PHASE(PREVIOUS, acts);
    position k;
    int box = 0;
#pragma unroll 1
    for (int i = 0; i < n_steps; i++) {
        if (i) next_operands(a, m, w.origin, w.begin + i, s);
        if (i && !cu_begins_box(&a.t, &s.in)) continue;
        if (box == ring) {
            CU_PHASE(INPUTS, acts);
            /* Those that multiply wait for the other blocks before they give a box back, and compute-sanitizer lets
             * none pass before all wait. */
            if (in_cluster(a)) cluster_wait();
        }
        if (box++ >= ring) barrier_wait(empty + k.at * 8, k.parity ^ 1);
        if (acts) {
            const uint32_t bar = full + k.at * 8;
            barrier_expect(bar, bytes);
            copy_box(to + k.at * box_bytes, s.input, bar, s.in.c, s.in.x, patch ? w.origin.n : s.in.y,
                     patch ? s.in.y : w.origin.n);
        }
        k.next(ring);
    }
    CU_PHASE(ASKED, acts);
    __syncwarp();
    if (in_cluster(a) && box <= ring) cluster_wait();
}

/* ---- sums */

/* What a group of four warps does: its rows' sums. What comes between two steps the matrix unit waits for: where the
 * next one's operands are is known before. s: the first step, of a patch. */
template <int BN, bool PATCH>
CU_DEVICE void multiply(const launch_args &a, const work &w, cu_step s, float (&d)[1][BN / 2]) {
    static_assert(BN * CU_CHUNK_BYTES / 2 % 1024 == 0, "operands begin at the swizzle's period");
    const int WEIGHTS = BN * CU_CHUNK_BYTES;
#pragma unroll
    for (int v = 0; v < BN / 2; v++) d[0][v] = 0;
    const int lane = threadIdx.x % 32, n_steps = uniform(w.n_steps), own = uniform(a.t.steps - w.begin);
    const uint32_t full = uniform(w.full), box_full = uniform(w.box_full), box_bytes = uniform(a.ring.box_bytes),
                   ring = uniform(a.ring.weights), group_bytes = (PATCH ? a.t.group_rows : 8) * CU_CHUNK_BYTES,
                   mine = uniform(w.boxes + group_thread() / 128 * 8 * group_bytes);
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
            if (lane < 2) barrier_arrive_at(w.empty + at * 8, w.rank + (lane << a.splits_bits));
        } else if (lane == 0) barrier_arrive(w.empty + at * 8);
    };
    CU_PHASE(FULL, (barrier_wait(full, 0), PATCH ? barrier_wait(box_full, 0) : void(), group_thread() == 0));
    position k, box;
    uint32_t last = 0, before = 0, at = s.row * CU_CHUNK_BYTES; /* last: where weights of the step before are */
    bool begins = PATCH;
#pragma unroll 1
    for (int i = 0; i < n_steps; i++) {
        barrier_wait(full + k.at * 8, k.parity);
        if (begins) barrier_wait(box_full + box.at * 8, box.parity);
        ask_step<1, BN>(d, further(inputs, at), further(weights, k.at * WEIGHTS));
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
    CU_PHASE(MULTIPLIED, group_thread() == 0);
}

CU_DEVICE void store2(float *to, float x, float y) { *reinterpret_cast<float2 *>(to) = make_float2(x, y); }
CU_DEVICE void store2(__half *to, float x, float y) { *reinterpret_cast<__half2 *>(to) = __floats2half2_rn(x, y); }

/* A group's sums to shared memory. */
template <int BN, typename T> CU_DEVICE void store_sums(const float (&d)[1][BN / 2], T *sums) {
    T *to = sums + (group_thread() / 128 * 64 + cu_sum_row(threadIdx.x % 128, 0)) * cu_sums_row(BN) +
            cu_sum_column(threadIdx.x % 128, 0);
#pragma unroll
    for (int v = 0; v < BN / 2; v += 2)
        store2(to + (v / 2 % 2 * 8 * cu_sums_row(BN) + v / 4 * 8), d[0][v], d[0][v + 1]);
}

/* The tile's sums, from first to last, into shared memory. */
template <int BN> CU_DEVICE void make_sums(const launch_args &a, const work &w, const cu_step &s) {
    float d[1][BN / 2];
    if (a.t.patch) multiply<BN, true>(a, w, s, d);
    else multiply<BN, false>(a, w, s, d);
    __syncthreads(); /* no operand is read any more: sums take their place; all know the rows' places */
    if (a.splits_bits) store_sums<BN>(d, reinterpret_cast<__half *>(w.sums));
    else store_sums<BN>(d, reinterpret_cast<float *>(w.sums));
}

/* Rows of this warp's, which are in shared memory, to the other blocks that add them up. */
CU_DEVICE void send_sums(const launch_args &a, const work &w) {
    const int rows = a.rows >> a.splits_bits, row = group_thread() / 32 * 16 + threadIdx.x % 32 * PIECE,
              to = row / rows, row_bytes = a.row * static_cast<int>(sizeof(__half));
    shared_written();
    __syncwarp();
    if (threadIdx.x % 32 < 16 / PIECE && to != w.rank)
        send_bytes(there_of(w.boxes + a.ring.parts + (w.rank * rows + row - to * rows) * row_bytes, first_part(a) + to),
                   w.boxes + row * row_bytes, PIECE * row_bytes, there_of(w.came, first_part(a) + to));
}

#endif

/* Grid: (splits x tiles of columns, tiles of pixels, members); the splits of a tile, or of a pair's two, are a cluster.
 * A block of a pair may end while the other works: no weights come to it any more, for their place is given back only
 * where it is filled again, and filled only where it is waited for. MOST: columns of the widest tile. */
template <int MOST>
__global__ void __launch_bounds__(MOST > NARROW ? WIDE_THREADS : MOST_THREADS, 1)
    wgmma_kernel(const __grid_constant__ launch_args a) {
#ifdef CU_SM90A
    CU_SHARED_REST(16, unsigned char, shared_bytes);
    CU_PHASE(BEGIN, threadIdx.x == 0);
    const work w = work_of(a, shared_bytes);
    const member &m = a.of[blockIdx.z];
    const int warp = threadIdx.x / 32;
    if (warp < FIRST_GROUP_WARP) {
        if (warp == WEIGHTS_WARP) bring_weights(a, m, w);
        else if (warp == INPUT_WARP) bring_input(a, m, w);
        else {
            const int first = threadIdx.x - FIRST_NOTING_WARP * 32,
                      threads = (FIRST_GROUP_WARP - FIRST_NOTING_WARP) * 32;
            warps_meet(BEGIN, begin_threads(a));
            if (in_cluster(a)) cluster_arrive();
            bring_columns(a, m, w, first, threads);
#pragma unroll 1
            for (int row = first; row < a.rows; row += threads) w.places[row] = row_place(a, m, w.origin, row);
            next_launch_may_start();
            if (in_cluster(a)) cluster_wait();
        }
        __syncwarp();
        __syncthreads();
    } else {
        cu_step s = {};
        if (in_cluster(a)) cluster_arrive();
        if (a.t.patch)
            s = w.begin < a.t.steps ? cu_step_at(&a.t, w.origin, w.begin) : cu_shortcut_step(&a.t, w.origin, 0);
        warps_meet(BEGIN, begin_threads(a));
        next_launch_may_start();
        CU_PHASE(TOGETHER, group_thread() == 0);
        if (in_cluster(a)) cluster_wait(); /* the other blocks' barriers are there */
        if (m.stats) {
            previous_launch_wait();
            bring_factors(a, m, w);
        }
        /* No switch, nor else: with them ptxas takes what is the same in all lanes for what may differ, and the matrix
         * unit's operands come from registers, too late for it. */
        if (MOST > NARROW) make_sums<MOST>(a, w, s);
        else {
            if (a.columns == 64) make_sums<64>(a, w, s);
            if (a.columns == 96) make_sums<96>(a, w, s);
            if (a.columns == 128) make_sums<128>(a, w, s);
            if (a.columns == NARROW) make_sums<NARROW>(a, w, s);
        }
        if (a.splits_bits) send_sums(a, w);
    }
    CU_PHASE(STORED, group_thread() == 0);
    previous_launch_wait();
    const bool acts = !a.gates && m.epi.act != CU_ACT_NONE;
    if (a.splits_bits) acts ? finish<true, false, true>(a, m, w) : finish<true, false, false>(a, m, w);
    else if (a.gates) finish<false, true, false>(a, m, w);
    else acts ? finish<false, false, true>(a, m, w) : finish<false, false, false>(a, m, w);
#endif
}

/* ---- launching */

cudaError_t launch(cu_order order, const cu_product_args *of, int n, void *encode_map, int rows, int columns,
                   int blocks) {
    const cu_product_args &first = of[0];
    const encoder make = reinterpret_cast<encoder>(encode_map);
    launch_args args = {};
    const bool flat = cu_wgmma_tiling(&args.t, &first, rows);
    args.gates = first.epi.act == CU_ACT_GEGLU ? first.out.c : 0;
    args.steps = args.t.steps;
    args.ring = cu_ring_of(&args.t, rows, columns, blocks, first.splits);
    args.rows = rows, args.columns = columns, args.groups = rows / 64;
    args.weights_bytes = columns * CU_CHUNK_BYTES;
    args.row = cu_sums_row(columns);
    args.wide = args.gates ? columns / 2 : columns;
    const int threads = threads_of(args.groups), two_rows = args.wide / 8 * 2;
    args.lanes = threads / two_rows * 2;
    args.by_lanes = cu_divider_of(two_rows);
    args.rounds = cu_ceil_div(rows / first.splits, args.lanes);
    if ((first.splits > 1 && args.gates) ||
        (first.row_stats && (columns % CU_ROW_PART || first.epi.act != CU_ACT_NONE)))
        return cudaErrorInvalidValue;
    if (first.shortcut_weights) {
        args.shortcut_c = first.shortcut_a.c;
        args.shortcut_chunks = cu_ceil_div(first.shortcut_a.c, CU_CHUNK);
        args.steps += cu_shortcut_steps(&first);
    }
    args.channels = first.in.c;
    args.eps = first.eps;
    while (1 << args.splits_bits < first.splits) args.splits_bits++;
    args.pair = first.pairs && cu_can_pair(&args.t, first.splits);
    const uint32_t box_rows = args.gates || args.pair ? columns / 2 : columns;
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
        m.stats = of[i].stats;
        m.row_stats = of[i].row_stats;
        m.out = of[i].out;
        m.epi = of[i].epi;
    }
    void (*kernel)(const launch_args) = columns > NARROW ? wgmma_kernel<256> : wgmma_kernel<NARROW>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, MOST_SHARED);
    if (e != cudaSuccess) return e;
    const int tiles = cu_ceil_div(first.out.c, args.wide);
    return start_clusters(order, kernel, dim3(tiles * first.splits, args.t.tiles, n), dim3(first.splits, 1 + args.pair),
                          threads, args.ring.bytes, args);
}

#define X(index, rows, columns, blocks)                                                                                \
    static_assert(threads_of((rows) / 64) <= ((columns) <= NARROW ? MOST_THREADS : WIDE_THREADS) &&                    \
                      ((columns) <= NARROW || (columns) == 256),                                                       \
                  "wgmma_kernel has it");                                                                              \
    static_assert((rows) / CU_WGMMA_MAX_SPLITS % PIECE == 0, "a piece has one destination");                           \
    static_assert((columns) % 8 == 0, "rows of parts begin at vectors: cu_sums_row");
CU_WGMMA_TILES(X)
#undef X

} // namespace

cudaError_t cu_wgmma(cu_order order, const cu_product_args *args, int32_t n, void *encode_map) {
    switch (args->tile) {
#define X(index, rows, columns, blocks)                                                                                \
    case index: return launch(order, args, n, encode_map, rows, columns, blocks);
        CU_WGMMA_TILES(X)
#undef X
    default: return cu_turns(order, args, n, encode_map);
    }
}
