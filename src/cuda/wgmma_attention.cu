/* SPDX-License-Identifier: MIT
 * Attention on Hopper (sm_90a) at head widths 40, 80 and 160, not causal: the algorithm of attention.cu, the machine of
 * wgmma.cu. A block takes 64, 128 or 192 queries of a head, 64 a group of four warps; of four warps more one only
 * starts copies.
 *
 * A tensor's map has the head as an axis of its own, so that a box of 64 channels ends with the head: zeros come where
 * the next head would, 40 is 48 for q k^T and 40 for p v, and nothing is padded in memory. Q, K and V lie in chunks of
 * 64 channels, [rows][64] each. The weights of a tile stay in registers; its p v is multiplied right behind the scores
 * of the next, and while the exponentials of those are taken, which bound the kernel at 1536 keys of 40 channels (the
 * time of a launch does at less). Groups ask the matrix unit in turn: left alone they fall into step, and it rests
 * while all take exponentials. 96 keys a tile: of 77 few are wasted, of 96, 384 and 1536 none, and scores, weights and
 * sums of three groups fit the 128 registers that each thread of 16 warps can have. */
#include "cuda/hopper.cuh"

namespace {

struct tensor {
    CUtensorMap map;
    int32_t n_step, g_step; /* as cu_heads */
};

struct attention_args {
    tensor q, k, v;
    cu_view out;
    int32_t queries, keys;
    float factor; /* scale * log2(e) */
};

/* Members have the same sizes; each block works for one. */
struct launch_args {
    int32_t groups; /* of 64 queries */
    attention_args of[CU_MAX_MEMBERS];
};

/* The first four warps do not multiply: where groups begin is a number that the compiler knows (wgmma.cu). */
enum { FIRST_GROUP_WARP = 4 };
/* Groups of a block, at most: what its threads' registers allow (cu_attention_groups). */
template <int D> struct shape {
    static const int CHUNKS = (D + CU_CHUNK - 1) / CU_CHUNK, MOST_GROUPS = D <= 40 ? 3 : D <= 80 ? 2 : 1;
    static const int KEYS = CU_ATTENTION_KEYS, STAGES = D > 80 ? 2 : 3;
    static const int CHUNK = KEYS * CU_CHUNK_BYTES, TILE = CHUNKS * CHUNK;
    static const int THREADS = FIRST_GROUP_WARP * 32 + MOST_GROUPS * 128;
};
/* Bytes of a chunk of a block's queries. */
CU_BOTH int query_chunk(int groups) { return 64 * groups * CU_CHUNK_BYTES; }

#ifdef CU_SM90A

CU_DEVICE void copy_head(uint32_t to, const tensor &t, uint32_t bar, int c, int head, int row, int n, int g) {
    const cu_heads_place p = cu_heads_at(t.n_step, t.g_step, c, head, row, n, g);
    copy_heads(to, &t.map, bar, p.at);
}

template <typename S, int D>
CU_DEVICE void begin_scores(float (&s)[S::KEYS / 2], uint64_t q, uint64_t k, uint32_t q_chunk) {
#pragma unroll
    for (int j = 0; j < S::KEYS / 2; j++) s[j] = 0;
    sums_pin(s);
    sums_begin();
#pragma unroll
    for (int step = 0; step < (D + 15) / 16; step++)
        multiplier<S::KEYS>::add(s, further(q, step / 4 * q_chunk + step % 4 * 32),
                                 further(k, step / 4 * S::CHUNK + step % 4 * 32));
    sums_commit();
}

/* Scores of one thread's two rows to weights. old: what was summed under the old maxima is to be scaled by. */
template <int N> CU_DEVICE void weigh(float (&s)[N], float (&old)[2], float (&top)[2], float (&sum)[2], float factor) {
    float highest[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        highest[half] = top[half];
#pragma unroll
        for (int i = 2 * half; i < N; i += 4) highest[half] = fmaxf(highest[half], fmaxf(s[i], s[i + 1]));
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            highest[half] = fmaxf(highest[half], __shfl_xor_sync(CU_ALL_LANES, highest[half], distance));
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float offset = highest[half] * factor;
        old[half] = exp2_fast((top[half] - highest[half]) * factor);
        top[half] = highest[half];
        float all = 0;
#pragma unroll
        for (int i = 2 * half; i < N; i += 4) {
            s[i] = exp2_fast(s[i] * factor - offset);
            s[i + 1] = exp2_fast(s[i + 1] * factor - offset);
            all += s[i] + s[i + 1];
        }
        sum[half] = sum[half] * old[half] + all;
    }
}

/* Groups ask the matrix unit one after the other, round and round: mine has its turn when the one before has passed it
 * on. Barriers of hardware, behind those of store_rows. more: there is another round. */
CU_DEVICE void take_turn(int groups, int group) {
    if (groups > 1) warps_meet(1 + groups + group, 256);
}
CU_DEVICE void pass_turn(int groups, int group, bool more) {
    if (groups > 1 && (more || group + 1 < groups)) warps_pass(1 + groups + (group + 1 < groups ? group + 1 : 0), 256);
}

/* The warp that copies; all its lanes go along, so that what they know is uniform, and one acts. */
template <typename S>
CU_DEVICE void produce(const attention_args &a, int groups, bool acts, uint32_t q, uint32_t q_full, uint32_t k_full,
                       uint32_t v_full, uint32_t empty, int head, int n, int g) {
    const int first = blockIdx.x * 64 * groups, n_tiles = cu_ceil_div(a.keys, S::KEYS), q_chunk = query_chunk(groups);
    if (acts) {
        barrier_expect(q_full, S::CHUNKS * q_chunk);
        for (int c = 0; c < S::CHUNKS; c++) copy_head(q + c * q_chunk, a.q, q_full, c * CU_CHUNK, head, first, n, g);
    }
#pragma unroll 1
    for (int i = 0; i < n_tiles; i++) {
        const int at = i % S::STAGES;
        const uint32_t k = q + S::CHUNKS * q_chunk + at * 2 * S::TILE, v = k + S::TILE;
        if (i >= S::STAGES) barrier_wait(empty + at * 8, (i / S::STAGES - 1) & 1);
        if (!acts) continue;
        barrier_expect(k_full + at * 8, S::TILE);
        for (int c = 0; c < S::CHUNKS; c++)
            copy_head(k + c * S::CHUNK, a.k, k_full + at * 8, c * CU_CHUNK, head, i * S::KEYS, n, g);
        barrier_expect(v_full + at * 8, S::TILE);
        for (int c = 0; c < S::CHUNKS; c++)
            copy_head(v + c * S::CHUNK, a.v, v_full + at * 8, c * CU_CHUNK, head, i * S::KEYS, n, g);
    }
}

/* A group's 64 rows, through its own rows of Q, so that global stores are 16 bytes. */
template <int D, int O>
CU_DEVICE void store_rows(const attention_args &a, int groups, const float (&out)[O], const float (&sum)[2],
                          unsigned char *q, int group, int head, int n, int g) {
    const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, q_chunk = query_chunk(groups);
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = sum[half];
        all += __shfl_xor_sync(CU_ALL_LANES, all, 1);
        all += __shfl_xor_sync(CU_ALL_LANES, all, 2);
        inverse[half] = 1.0f / all;
    }
    warps_meet(group + 1, 128); /* no warp of the group reads Q any more */
#pragma unroll
    for (int v = 0; v < O; v += 2) {
        const int row = group * 64 + cu_sum_row(threadIdx.x % 128, v), c = cu_sum_column(threadIdx.x % 128, v);
        *reinterpret_cast<__half2 *>(q + c / CU_CHUNK * q_chunk + cu_swizzle(row * 128 + c % CU_CHUNK * 2)) =
            __floats2half2_rn(out[v] * inverse[v / 2 % 2], out[v + 1] * inverse[v / 2 % 2]);
    }
    __syncwarp();
    __half *to = static_cast<__half *>(a.out.p) + view_at(a.out, g, n, 0, 0) + head * D;
#pragma unroll 1
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        const int row = group * 64 + warp * 16 + i / (D / 8), c = i % (D / 8) * 8,
                  query = blockIdx.x * 64 * groups + row;
        if (query < a.queries)
            *reinterpret_cast<uint4 *>(to + query * a.out.sw + c) =
                *reinterpret_cast<const uint4 *>(q + c / CU_CHUNK * q_chunk + cu_swizzle(row * 128 + c % CU_CHUNK * 2));
    }
}

#endif

/* Grid: (tiles of queries, heads, members x (g, n)). */
template <int D>
__global__ void __launch_bounds__(shape<D>::THREADS, 1) attention_kernel(const __grid_constant__ launch_args all) {
#ifdef CU_SM90A
    typedef shape<D> S;
    const int pictures = all.of[0].out.g * all.of[0].out.n, groups = all.groups, q_chunk = query_chunk(groups);
    const attention_args &a = all.of[blockIdx.z / pictures];
    CU_SHARED_REST(16, unsigned char, shared_bytes);
    CU_SHARED(uint64_t, barriers, [1 + 3 * S::STAGES]);
    const uint32_t unaligned = shared_address(shared_bytes), q = (unaligned + 1023u) & ~1023u;
    const uint32_t q_full = shared_address(barriers), k_full = q_full + 8, v_full = k_full + S::STAGES * 8,
                   empty = v_full + S::STAGES * 8, tiles = q + S::CHUNKS * q_chunk;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, picture = blockIdx.z % pictures,
              g = picture / a.out.n, n = picture - g * a.out.n;
    if (warp < FIRST_GROUP_WARP) {
        const bool acts = warp == 0 && elect_one();
        if (acts) {
            prefetch_map(&a.q.map);
            prefetch_map(&a.k.map);
            prefetch_map(&a.v.map);
            for (int i = 0; i < 1 + 2 * S::STAGES; i++) barrier_init(q_full + i * 8, 1);
            for (int i = 0; i < S::STAGES; i++) barrier_init(empty + i * 8, groups * 4);
            barriers_made();
        }
        __syncthreads();
        launches_meet();
        if (warp == 0) produce<S>(a, groups, acts, q, q_full, k_full, v_full, empty, head, n, g);
        return;
    }
    __syncthreads();
    launches_meet();
    const int group = uniform(warp / 4) - FIRST_GROUP_WARP / 4, n_tiles = cu_ceil_div(a.keys, S::KEYS);
    float s[S::KEYS / 2], out[D / 2], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int v = 0; v < D / 2; v++) out[v] = 0;
    const uint64_t q_at = cu_operand(q + group * 64 * CU_CHUNK_BYTES), k_at = cu_operand(tiles),
                   v_at = cu_values_operand(tiles + S::TILE, S::CHUNK);
    if (group == groups - 1) pass_turn(groups, group, true); /* the first has the first turn */
    barrier_wait(q_full, 0);
    barrier_wait(k_full, 0);
    take_turn(groups, group);
    begin_scores<S, D>(s, q_at, k_at, q_chunk);
    pass_turn(groups, group, n_tiles > 1);
    sums_wait<0>();
    sums_pin(s);
    uint32_t p[S::KEYS / 16][4];
    int at = 0, parity = 0; /* of the tile's stage */
    /* Scores to weights, then the p v of the tile before is waited for, which ran meanwhile. */
    auto weights = [&](bool first) {
        float old[2];
        weigh(s, old, top, sum, a.factor);
        sums_wait<0>();
        sums_pin(out);
        if (!first && lane == 0) barrier_arrive(empty + (at ? at - 1 : S::STAGES - 1) * 8);
#pragma unroll
        for (int v = 0; v < D / 2; v++) out[v] *= old[v / 2 % 2];
#pragma unroll
        for (int j = 0; j < S::KEYS / 16; j++)
#pragma unroll
            for (int x = 0; x < 4; x++) p[j][x] = pack(s[8 * j + 2 * x], s[8 * j + 2 * x + 1]);
        barrier_wait(v_full + at * 8, parity);
    };
    auto begin_values = [&](int stage) {
        const uint64_t v = further(v_at, stage * 2 * S::TILE);
        sums_pin(out);
        sums_begin();
#pragma unroll
        for (int j = 0; j < S::KEYS / 16; j++) value_multiplier<D>::add(out, p[j], further(v, j * 16 * CU_CHUNK_BYTES));
        sums_commit();
    };
    for (int i = 0; i + 1 < n_tiles; i++) {
        weights(i == 0);
        const int stage = at;
        if (++at == S::STAGES) at = 0, parity ^= 1;
        barrier_wait(k_full + at * 8, parity);
        take_turn(groups, group);
        begin_scores<S, D>(s, q_at, further(k_at, at * 2 * S::TILE), q_chunk); /* where the last ones were */
        begin_values(stage);
        pass_turn(groups, group, i + 2 < n_tiles);
        sums_wait<1>();
        sums_pin(s);
    }
    if (n_tiles * S::KEYS > a.keys)
#pragma unroll
        for (int j = 0; j < S::KEYS / 2; j++)
            if ((n_tiles - 1) * S::KEYS + cu_sum_column(lane, j) >= a.keys) s[j] = -INFINITY;
    weights(n_tiles == 1);
    begin_values(at);
    sums_wait<0>();
    sums_pin(out);
    store_rows<D>(a, groups, out, sum, shared_bytes + (q - unaligned), group, head, n, g);
#endif
}

/* ---- launching */

/* Boxes of 64 channels of a head and `rows` rows. */
bool encode_heads(encoder make, tensor *t, const cu_view &v, int heads, int rows) {
    const cu_heads h = cu_heads_of(&v, heads);
    cuuint64_t dims[5], strides[4];
    for (int i = 0; i < 5; i++) dims[i] = h.dims[i];
    for (int i = 0; i < 4; i++) strides[i] = 2 * h.strides[i + 1];
    const cuuint32_t box[5] = {CU_CHUNK, 1, static_cast<cuuint32_t>(rows), 1, 1}, every[5] = {1, 1, 1, 1, 1};
    t->n_step = h.n_step, t->g_step = h.g_step;
    return encode(make, &t->map, v.p, 5, dims, strides, box, every);
}

template <int D>
cudaError_t launch(cu_order order, const cu_attention_args *of, int members, int groups, void *encode_map) {
    typedef shape<D> S;
    const encoder make = reinterpret_cast<encoder>(encode_map);
    const cu_attention_args &a = of[0];
    launch_args args = {};
    args.groups = groups;
    for (int i = 0; i < members; i++) {
        attention_args &m = args.of[i];
        if (!encode_heads(make, &m.q, of[i].q, a.heads, 64 * groups) ||
            !encode_heads(make, &m.k, of[i].k, a.heads, S::KEYS) ||
            !encode_heads(make, &m.v, of[i].v, a.heads, S::KEYS))
            return cudaErrorInvalidValue;
        m.out = of[i].out;
        m.queries = a.q.w;
        m.keys = a.k.w;
        m.factor = of[i].scale * 1.4426950408889634f;
    }
    /* no more memory than there are tiles: another block, of the next launch too, may have the rest */
    const int tiles = cu_ceil_div(a.k.w, S::KEYS), stages = tiles < S::STAGES ? tiles : S::STAGES,
              bytes = 1024 + S::CHUNKS * query_chunk(groups) + stages * 2 * S::TILE;
    void (*kernel)(const launch_args) = attention_kernel<D>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         1024 + S::CHUNKS * query_chunk(S::MOST_GROUPS) + S::STAGES * 2 * S::TILE);
    if (e != cudaSuccess) return e;
    return start(order, kernel, dim3(cu_ceil_div(a.q.w, 64 * groups), a.heads, members * a.out.g * a.out.n),
                 FIRST_GROUP_WARP * 32 + groups * 128, bytes, args);
}

} // namespace

cudaError_t cu_wgmma_attention(cu_order order, const cu_attention_args *a, int32_t members, int32_t n_sm,
                               void *encode_map) {
    const int d = a->q.c / a->heads,
              groups = cu_attention_groups(a->q.w, members * a->heads * a->out.g * a->out.n, d, n_sm);
    if (members > CU_MAX_MEMBERS) return cudaErrorInvalidValue;
    switch (d) {
    case 40: return launch<40>(order, a, members, groups, encode_map);
    case 80: return launch<80>(order, a, members, groups, encode_map);
    case 160: return launch<160>(order, a, members, groups, encode_map);
    default: return cudaErrorInvalidValue;
    }
}
