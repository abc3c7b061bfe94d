/* SPDX-License-Identifier: MIT
 * Matrix products on Hopper (sm_90a) where there are many tiles and short sums: linears and 1x1 convolutions of large
 * pictures. In wgmma.cu a block is one tile, and the matrix unit rests while it begins and while its sums are written,
 * which for 320 channels takes longer than to multiply. Here a block stays on its multiprocessor and takes one tile
 * after the other, by two groups of four warps in turn: while one writes its tile and prepares the next, the other
 * multiplies. The ring of stages goes on through all tiles, so that no tile waits for its first copies.
 *
 * Sums begin with bias and residual, which are read while the other group multiplies: after the sums there is nothing
 * left to read. A GEGLU's values and gates are the same thread's sums, half a tile apart. Where rows are layer-normed
 * (wgmma.cu), sums begin with bias times the row's deviation, by which they are divided in the end. */
#include "cuda/gelu.h"
#include "cuda/hopper.cuh"

namespace {

struct member {
    CUtensorMap input, weights;
    const float *bias, *stats; /* stats: of the input's rows, or NULL */
    const __half *residual;
    __half *out;
};

/* Members have the same sizes; their tiles follow each other. */
struct launch_args {
    int32_t tiles, steps, rows, columns; /* of the output */
    int32_t gates;                       /* GEGLU: columns, else 0 */
    int32_t input_bytes;                 /* of a step */
    int32_t channels;                    /* of the input, read where there are statistics, as: */
    float eps;
    int64_t out_stride, residual_stride;
    cu_divider by_member, by_row; /* tiles of a member; of a row of tiles */
    member of[CU_MAX_MEMBERS];
};

/* What a tile's sums begin or end with. */
enum epilogue { PLAIN, RESIDUAL, GATED };

enum { GROUPS = 2, THREADS = (GROUPS + 1) * 128, REGISTERS = 240, COPIER_REGISTERS = 24 };
static_assert(128 * (GROUPS * REGISTERS + COPIER_REGISTERS) <= 65536, "of a multiprocessor");

/* A tile is a group's: HEIGHT x 64 rows, BN columns. */
template <int HEIGHT, int BN> struct ring {
    static const int BM = HEIGHT * 64;
    static const int A_BYTES = BM * CU_CHUNK_BYTES, B_BYTES = BN * CU_CHUNK_BYTES, STAGE = A_BYTES + B_BYTES;
    /* A warp's 16 rows of results on their way out: 16 bytes more than they have, so that no two of eight rows meet in
     * a bank. */
    static const int STAGED_ROW = BN * 2 + 16, STAGED = 16 * STAGED_ROW;
    static const int LIMIT = 227 * 1024 - 256; /* the rest: barriers */
    static const int FIT = (LIMIT - 1024 - GROUPS * 4 * STAGED) / STAGE, STAGES = FIT < 8 ? FIT : 8;
    static const int BYTES = 1024 + STAGES * STAGE + GROUPS * 4 * STAGED;
    static_assert(STAGES >= 4, "a ring of four stages or more");
    static_assert(A_BYTES % 1024 == 0 && BN / 2 * CU_CHUNK_BYTES % 1024 == 0, "operands begin at the swizzle's period");
};

#if !defined(__CUDA_ARCH__) || defined(CU_SM90A)
/* Read in place of what there is not, without a branch. */
__device__ const float4 nothing = {};
#endif

#ifdef CU_SM90A

struct tile_place {
    const member *m;
    int row, tile; /* first row; number of the tile of columns */
};

CU_DEVICE tile_place place_of(const launch_args &a, int tile, int bm) {
    int column = tile;
    const int m = cu_divide_rest(&a.by_member, &column), row = cu_divide_rest(&a.by_row, &column);
    return {&a.of[m], row * bm, column};
}

/* The warp that copies, all its lanes along. Weights of the first round come while the launch before still runs. */
template <typename R> CU_DEVICE void produce(const launch_args &a, uint32_t stages, uint32_t full, uint32_t empty) {
    const bool acts = elect_one();
    auto weights_of = [&](const tile_place &p, int step, uint32_t at) {
        const uint32_t to = stages + at * R::STAGE + R::A_BYTES, bar = full + at * 8;
        const int rows = R::B_BYTES / CU_CHUNK_BYTES;
        barrier_expect(bar, a.input_bytes + R::B_BYTES);
        copy_weights(to, &p.m->weights, bar, step * CU_CHUNK, 0, cu_weight_row(p.tile, rows, a.gates, 0));
        if (a.gates)
            copy_weights(to + R::B_BYTES / 2, &p.m->weights, bar, step * CU_CHUNK, 0,
                         cu_weight_row(p.tile, rows, a.gates, 1));
    };
    auto input_of = [&](const tile_place &p, int step, uint32_t at) {
        copy_box(stages + at * R::STAGE, &p.m->input, full + at * 8, step * CU_CHUNK, p.row, 0, 0);
    };
    int tile = blockIdx.x, step = 0;
    tile_place p = place_of(a, tile, R::BM);
    if (acts) {
        prefetch_map(&p.m->weights);
        prefetch_map(&p.m->input);
        for (int i = 0; i < R::STAGES; i++) {
            barrier_init(full + i * 8, 1);
            barrier_init(empty + i * 8, 4);
        }
        barriers_made();
    }
    __syncwarp();
    const int first = a.steps < R::STAGES ? a.steps : R::STAGES;
    for (int i = 0; i < first; i++)
        if (acts) weights_of(p, i, i);
    __syncthreads();
    previous_launch_wait();
    for (; step < first; step++)
        if (acts) input_of(p, step, step);
    position k;
    k.skip(first, R::STAGES);
    uint32_t used = first; /* stages that were asked for: from the second round on they have to be free */
    for (;;) {
        for (; step < a.steps; step++) {
            if (used < R::STAGES) used++;
            else barrier_wait(empty + k.at * 8, k.parity ^ 1);
            if (acts) {
                weights_of(p, step, k.at);
                input_of(p, step, k.at);
            }
            k.next(R::STAGES);
        }
        tile += gridDim.x;
        if (tile >= a.tiles) return;
        p = place_of(a, tile, R::BM);
        step = 0;
    }
}

/* ---- a group's tile */

/* Where the j-th vector of 8 columns of this warp's rows of a piece is, row by row: of the tile, of the warp's staged
 * rows, and whether there is one. */
template <typename R, int WIDE> struct vector_place {
    int row, c;
    unsigned staged;
    bool real;
    __device__ __forceinline__ vector_place(const launch_args &a, const tile_place &p, int piece, int j) {
        const int i = j * 32 + threadIdx.x % 32, r = i / (WIDE / 8), at = i % (WIDE / 8) * 8;
        row = p.row + piece * 64 + threadIdx.x % 128 / 32 * 16 + r, c = p.tile * WIDE + at;
        staged = r * R::STAGED_ROW + at * 2, real = row < a.rows && c < a.columns;
    }
};

/* Sums = residual, through the warp's own rows of shared memory, so that reads are 16 bytes. */
template <typename R, int HEIGHT, int BN>
CU_DEVICE void take_residual(const launch_args &a, const tile_place &p, float (&d)[HEIGHT][BN / 2],
                             unsigned char *staged) {
    uint4 r[HEIGHT][BN / 16]; /* all on their way at once */
#pragma unroll
    for (int i = 0; i < HEIGHT; i++)
#pragma unroll
        for (int j = 0; j < BN / 16; j++) {
            const vector_place<R, BN> at(a, p, i, j);
            const void *from =
                at.real ? static_cast<const void *>(p.m->residual + at.row * a.residual_stride + at.c) : &nothing;
            r[i][j] = *static_cast<const uint4 *>(from);
        }
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < BN / 16; j++)
            *reinterpret_cast<uint4 *>(staged + vector_place<R, BN>(a, p, i, j).staged) = r[i][j];
        __syncwarp();
#pragma unroll
        for (int v = 0; v < BN / 2; v += 2) {
            const int lane = threadIdx.x % 32;
            const float2 f = __half22float2(*reinterpret_cast<const __half2 *>(
                staged + cu_sum_row(lane, v) * R::STAGED_ROW + cu_sum_column(lane, v) * 2));
            d[i][v] = f.x, d[i][v + 1] = f.y;
        }
    }
}

/* Of the rows of a thread's sums: cu_sum_row gives 2 for each 64. */
template <int HEIGHT> struct deviations {
    float of[HEIGHT][2], over[HEIGHT][2]; /* over: 1 / of */

    /* 1 where rows are not normed. Each lane does one of its warp's rows, and hands it to those that have its sums. */
    __device__ __forceinline__ void load(const launch_args &a, const tile_place &p) {
        static_assert(HEIGHT * 16 == 32, "a row for each lane");
        float mine = 1, over_mine = 1;
        const int lane = threadIdx.x % 32;
        if (p.m->stats) {
            const int parts = a.channels / CU_ROW_PART,
                      row = min(p.row + lane / 16 * 64 + threadIdx.x % 128 / 32 * 16 + lane % 16, a.rows - 1);
            const float2 *part = reinterpret_cast<const float2 *>(p.m->stats) + static_cast<int64_t>(row) * parts;
            const float about = part->x; /* means of the parts are as far from this as they are from each other */
            float sum = 0, between = 0, within = 0;
#pragma unroll 5
            for (int i = 0; i < parts; i++) {
                const float d = part[i].x - about;
                sum += d, between += d * d, within += part[i].y;
            }
            between = fmaxf(between - __fdividef(sum * sum, static_cast<float>(parts)), 0.0f);
            const float variance = __fdividef(within + CU_ROW_PART * between, static_cast<float>(a.channels)) + a.eps;
            over_mine = rsqrtf(variance);
            mine = variance * over_mine;
        }
#pragma unroll
        for (int i = 0; i < HEIGHT; i++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int from = i * 16 + cu_sum_row(lane, 2 * k);
                of[i][k] = __shfl_sync(CU_ALL_LANES, mine, from);
                over[i][k] = __shfl_sync(CU_ALL_LANES, over_mine, from);
            }
    }
};

/* Sums = bias, or += bias to a residual. */
template <int HEIGHT, int BN, epilogue E>
CU_DEVICE void add_bias(const launch_args &a, const tile_place &p, const deviations<HEIGHT> &s,
                        float (&d)[HEIGHT][BN / 2]) {
    const int wide = E == GATED ? BN / 2 : BN, first = p.tile * wide;
    const float *bias = p.m->bias;
#pragma unroll
    for (int v = 0; v < BN / 2; v += 4) {
        const int column = cu_sum_column(threadIdx.x % 128, v), gate = E == GATED && column >= wide,
                  c = first + column - gate * wide;
        const void *at = bias && c < a.columns ? static_cast<const void *>(bias + c + gate * a.gates) : &nothing;
        const float2 b = *static_cast<const float2 *>(at);
#pragma unroll
        for (int i = 0; i < HEIGHT; i++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                d[i][v + k] = E == RESIDUAL ? d[i][v + k] + (k % 2 ? b.y : b.x) : (k % 2 ? b.y : b.x) * s.of[i][k / 2];
    }
}

/* What the sums begin with. The residual before the bias: the other way round ptxas finds that the matrix unit had to
 * wait for each of its instructions (C7515). */
template <typename R, int HEIGHT, int BN, epilogue E>
CU_DEVICE void begin_sums(const launch_args &a, const tile_place &p, deviations<HEIGHT> &s, float (&d)[HEIGHT][BN / 2],
                          unsigned char *staged) {
    if (E == RESIDUAL) take_residual<R, HEIGHT, BN>(a, p, d, staged);
    else s.load(a, p);
    add_bias<HEIGHT, BN, E>(a, p, s, d);
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) sums_pin(d[i]); /* all are there before the matrix unit is asked */
}

/* Groups multiply in turn. */
CU_DEVICE void take_turn(int group) { warps_meet(1 + group, 256); }
CU_DEVICE void give_turn(int group) { warps_pass(1 + group, 256); }

/* All steps of a tile; `more`: the other group has another. */
template <typename R, int HEIGHT, int BN>
CU_DEVICE void multiply(float (&d)[HEIGHT][BN / 2], position &k, int steps, int group, bool more, uint32_t stages,
                        uint32_t full, uint32_t empty) {
    const bool tells = threadIdx.x % 32 == 0;
    uint32_t before = 0;
    take_turn(group);
    for (int i = 0; i < steps; i++) {
        barrier_wait(full + k.at * 8, k.parity);
        const uint64_t pa = cu_operand(stages + k.at * R::STAGE),
                       pb = cu_operand(stages + k.at * R::STAGE + R::A_BYTES);
        ask_step<HEIGHT, BN>(d, pa, pb);
        sums_wait<1>(); /* all but this step's: the stage before is free */
        if (i > 0 && tells) barrier_arrive(empty + before * 8);
        before = k.at;
        k.next(R::STAGES);
    }
    if (more) give_turn(group ^ 1);
    sums_wait<0>();
#pragma unroll
    for (int p = 0; p < HEIGHT; p++) sums_pin(d[p]);
    if (tells) barrier_arrive(empty + before * 8);
}

/* Sums to halfs, through the warp's own rows of shared memory, so that stores are 16 bytes. */
template <typename R, int HEIGHT, int BN, epilogue E>
CU_DEVICE void write(const launch_args &a, const tile_place &p, const deviations<HEIGHT> &s, float (&d)[HEIGHT][BN / 2],
                     unsigned char *staged) {
    const int wide = E == GATED ? BN / 2 : BN, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
        __syncwarp();
#pragma unroll
        for (int v = 0; v < wide / 2; v += 2) {
            const float by = E == RESIDUAL ? 1.0f : s.over[i][v / 2 % 2];
            float x = d[i][v] * by, y = d[i][v + 1] * by;
            if (E == GATED) x *= cu_gelu(d[i][v + BN / 4] * by), y *= cu_gelu(d[i][v + BN / 4 + 1] * by);
            *reinterpret_cast<__half2 *>(staged + cu_sum_row(lane, v) * R::STAGED_ROW + cu_sum_column(lane, v) * 2) =
                __floats2half2_rn(x, y);
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < wide / 16; j++) {
            const vector_place<R, wide> at(a, p, i, j);
            if (at.real)
                *reinterpret_cast<uint4 *>(p.m->out + at.row * a.out_stride + at.c) =
                    *reinterpret_cast<const uint4 *>(staged + at.staged);
        }
    }
}

#endif

/* Grid: blocks, as many as there are multiprocessors; block b has tiles b, b + blocks, …, and of these its
 * first group the first, third, … */
template <int HEIGHT, int BN, epilogue E>
__global__ void __launch_bounds__(THREADS, 1) turns_kernel(const __grid_constant__ launch_args a) {
#ifdef CU_SM90A
    typedef ring<HEIGHT, BN> R;
    CU_SHARED_REST(16, unsigned char, shared_bytes);
    CU_SHARED(uint64_t, barriers, [2 * R::STAGES]);
    const uint32_t unaligned = shared_address(shared_bytes), stages = (unaligned + 1023u) & ~1023u;
    const uint32_t full = shared_address(barriers), empty = full + R::STAGES * 8;
    const int warp = threadIdx.x / 32, blocks = gridDim.x;
    next_launch_may_start();
    if (warp >= GROUPS * 4) {
        give_registers<COPIER_REGISTERS>();
        if (warp == GROUPS * 4) produce<R>(a, stages, full, empty);
        else __syncthreads();
        return;
    }
    take_registers<REGISTERS>();
    __syncthreads();
    previous_launch_wait();
    unsigned char *staged = shared_bytes + (stages - unaligned) + R::STAGES * R::STAGE + warp * R::STAGED;
    position k;
    const int group = uniform(warp / 4); /* so that operands come from uniform registers */
    if (group) {
        k.skip(a.steps, R::STAGES);
        give_turn(0); /* the first */
    }
    float d[HEIGHT][BN / 2];
    for (int tile = blockIdx.x + group * blocks; tile < a.tiles; tile += GROUPS * blocks) {
        const tile_place p = place_of(a, tile, R::BM);
        deviations<HEIGHT> s;
        begin_sums<R, HEIGHT, BN, E>(a, p, s, d, staged);
        multiply<R, HEIGHT, BN>(d, k, a.steps, group, tile + blocks < a.tiles, stages, full, empty);
        k.skip(a.steps, R::STAGES); /* the other group's */
        write<R, HEIGHT, BN, E>(a, p, s, d, staged);
    }
#endif
}

/* ---- launching */

template <int HEIGHT, int BN, epilogue E>
cudaError_t launch(cu_order order, const cu_product_args *of, int n, void *encode_map) {
    typedef ring<HEIGHT, BN> R;
    const cu_product_args &first = of[0];
    const encoder make = reinterpret_cast<encoder>(encode_map);
    cu_tiling t = {};
    launch_args args = {};
    int device = 0, n_sm = 0;
    if (!cu_wgmma_tiling(&t, &first, R::BM)) return cudaErrorInvalidValue;
    args.steps = t.steps;
    args.rows = t.w;
    args.columns = first.out.c;
    args.gates = E == GATED ? first.out.c : 0;
    args.channels = first.in.c;
    args.eps = first.eps;
    args.input_bytes = t.box_rows * CU_CHUNK_BYTES;
    args.out_stride = first.out.sw;
    args.residual_stride = first.epi.residual.sw;
    const int columns = cu_ceil_div(first.out.c, E == GATED ? BN / 2 : BN), each = columns * t.tiles;
    args.by_row = cu_divider_of(columns);
    args.by_member = cu_divider_of(each);
    args.tiles = each * n;
    for (int i = 0; i < n; i++) {
        member &m = args.of[i];
        if (!encode_pixels(make, &m.input, of[i].in, t, 1, true) ||
            !encode_weights(make, &m.weights, of[i].weights, first.in.c, 1, first.n_rows, E == GATED ? BN / 2 : BN))
            return cudaErrorInvalidValue;
        m.bias = of[i].epi.bias;
        m.stats = of[i].stats;
        m.residual = static_cast<const __half *>(of[i].epi.residual.p);
        m.out = static_cast<__half *>(of[i].out.p);
    }
    void (*kernel)(const launch_args) = turns_kernel<HEIGHT, BN, E>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, R::BYTES);
    if (e == cudaSuccess) e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    if (e != cudaSuccess) return e;
    return start(order, kernel, args.tiles < n_sm ? args.tiles : n_sm, THREADS, R::BYTES, args);
}

template <int HEIGHT, int BN>
cudaError_t launch_any(cu_order order, const cu_product_args *args, int n, void *encode_map) {
    if (args->epi.act == CU_ACT_GEGLU) return launch<HEIGHT, BN, GATED>(order, args, n, encode_map);
    return args->epi.residual.p ? launch<HEIGHT, BN, RESIDUAL>(order, args, n, encode_map)
                                : launch<HEIGHT, BN, PLAIN>(order, args, n, encode_map);
}

} // namespace

cudaError_t cu_turns(cu_order order, const cu_product_args *args, int32_t n, void *encode_map) {
    for (int i = 0; i < n; i++)
        if (!cu_turns_fit(&args[i])) return cudaErrorInvalidValue;
    switch (args->tile) {
#define X(index, rows, columns)                                                                                        \
    case index: return launch_any<(rows) / 64, columns>(order, args, n, encode_map);
        CU_TURNS_TILES(X)
#undef X
    default: return cudaErrorInvalidValue;
    }
}
