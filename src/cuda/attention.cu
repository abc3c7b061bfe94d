/* SPDX-License-Identifier: MIT
 * Attention: out = softmax(scale * q k^T) v per head, q [len, d], k and v [keys, d].
 *
 * One pass over the keys with a running maximum and sum, so scores never leave registers. A block takes 64 queries of a
 * head, a warp 16 of them; tiles of keys and values come in behind the arithmetic, two deep. Head width 40 is 3 steps
 * of 16 for q k^T and 5 tiles of 8 for p v: nothing is padded in memory, and 64 is never computed for 40.
 *
 *   shared: Q [64][row], K [2][KEYS][row], V [2][KEYS][row], row = d rounded up to 16, + 8 halfs: the 8 rows that one
 *   ldmatrix reads then fall into 8 different groups of banks.
 *
 * Bound by exp2 and the matrix unit at 1536 tokens (4 * 1536^2 * 640 flop and 37.7 M exp2 for the 16 heads of level 0),
 * by the launch at all smaller sizes. */
#include "cuda/common.cuh"

namespace {

enum { WARPS = 4, QUERIES = 16 * WARPS };

template <int D> struct shape {
    static const int K_STEPS = (D + 15) / 16; /* of q k^T */
    static const int TILES = D / 8;           /* of p v */
    static const int ROW = K_STEPS * 16 + 8;
    static const int CHUNKS = K_STEPS * 2; /* of 16 bytes in a row that are loaded */
    static const int KEYS = D > 80 ? 32 : 64;
    static const size_t BYTES = static_cast<size_t>(QUERIES + 4 * KEYS) * ROW * sizeof(__half);
};

/* rows x CHUNKS chunks from global rows of `stride`; zeros past n_rows and past channel d */
template <int D, int ROWS>
CU_DEVICE void load_rows(__half *shared, const __half *global, int64_t stride, int first, int n_rows, int d) {
    typedef shape<D> S;
    for (int i = threadIdx.x; i < ROWS * S::CHUNKS; i += WARPS * 32) {
        const int row = i / S::CHUNKS, c = i % S::CHUNKS * 8;
        const bool real = first + row < n_rows && c < d;
        copy16(shared + row * S::ROW + c, real ? global + (first + row) * stride + c : global, real);
    }
}

/* The state of 16 queries in a warp: thread (q, r) holds rows q and q + 8. */
template <int D> struct state {
    uint32_t q[shape<D>::K_STEPS][4];
    float out[shape<D>::TILES][4];
    float top[2], sum[2];
};

template <int D> CU_DEVICE void scores(const state<D> &st, const __half *keys, float s[shape<D>::KEYS / 8][4]) {
    typedef shape<D> S;
    const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < S::KEYS / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[2 * j][i] = s[2 * j + 1][i] = 0;
#pragma unroll
        for (int k = 0; k < S::K_STEPS; k++) {
            uint32_t b[4];
            load_matrices(b, keys + (j * 16 + row) * S::ROW + k * 16 + column);
            multiply(s[2 * j], st.q[k], b[0], b[1]);
            multiply(s[2 * j + 1], st.q[k], b[2], b[3]);
        }
    }
}

/* Turns scores into weights, and scales what was summed under the old maximum. factor = scale * log2(e). */
template <int D> CU_DEVICE void weigh(state<D> &st, float s[shape<D>::KEYS / 8][4], float factor) {
    typedef shape<D> S;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = st.top[half];
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; j++) top = fmaxf(top, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(CU_ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(CU_ALL_LANES, top, 2));
        const float old = exp2_fast((st.top[half] - top) * factor), offset = top * factor;
        st.top[half] = top;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; j++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) sum += s[j][i] = exp2_fast(s[j][i] * factor - offset);
        st.sum[half] = st.sum[half] * old + sum;
#pragma unroll
        for (int t = 0; t < S::TILES; t++) st.out[t][2 * half] *= old, st.out[t][2 * half + 1] *= old;
    }
}

template <int D> CU_DEVICE void add_values(state<D> &st, const float s[shape<D>::KEYS / 8][4], const __half *values) {
    typedef shape<D> S;
    const int lane = threadIdx.x % 32, row = lane % 16, column = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++) {
        const uint32_t p[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k][2], s[2 * k][3]),
                               pack(s[2 * k + 1][0], s[2 * k + 1][1]), pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int t = 0; t < S::TILES; t += 2) { /* a pair that ends past D reads the zeros behind it */
            uint32_t b[4];
            load_matrices_transposed(b, values + (k * 16 + row) * S::ROW + t * 8 + column);
            multiply(st.out[t], p, b[0], b[1]);
            if (t + 1 < S::TILES) multiply(st.out[t + 1], p, b[2], b[3]);
        }
    }
}

/* Keys that query row q0 + q (and + 8) must not see get -infinity. */
template <int D>
CU_DEVICE void mask(float s[shape<D>::KEYS / 8][4], int first_key, int n_keys, int query, bool causal) {
    const int r = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < shape<D>::KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = first_key + j * 8 + r + i % 2;
            if (key >= n_keys || (causal && key > query + i / 2 * 8)) s[j][i] = -INFINITY;
        }
}

/* Through the warp's own rows of shared memory, so that global stores are 16 bytes. */
template <int D>
CU_DEVICE void store_rows(const state<D> &st, const cu_attention_args &a, __half *shared, int first, __half *out,
                          int d) {
    typedef shape<D> S;
    const int lane = threadIdx.x % 32;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = st.sum[half];
        sum += __shfl_xor_sync(CU_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(CU_ALL_LANES, sum, 2);
        inverse[half] = 1.0f / sum;
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *reinterpret_cast<__half2 *>(shared + (lane / 4 + 8 * half) * S::ROW + t * 8 + lane % 4 * 2) =
                __floats2half2_rn(st.out[t][2 * half] * inverse[half], st.out[t][2 * half + 1] * inverse[half]);
    __syncwarp();
    for (int i = lane; i < 16 * S::TILES; i += 32) {
        const int row = i / S::TILES, c = i % S::TILES * 8;
        if (first + row < a.q.w && c < d)
            *reinterpret_cast<uint4 *>(out + (first + row) * a.out.sw + c) =
                *reinterpret_cast<const uint4 *>(shared + row * S::ROW + c);
    }
}

template <int D> __global__ void __launch_bounds__(WARPS * 32) attention_kernel(cu_attention_args a) {
    launches_meet();
    typedef shape<D> S;
    CU_SHARED_REST(16, __half, shared_halfs);
    __half *sq = shared_halfs, *sk = sq + QUERIES * S::ROW, *sv = sk + 2 * S::KEYS * S::ROW;
    const int g = blockIdx.z / a.out.n, n = blockIdx.z % a.out.n, head = blockIdx.y, d = a.q.c / a.heads;
    const int first = blockIdx.x * QUERIES, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const __half *q = static_cast<const __half *>(a.q.p) + view_at(a.q, g, n, 0, 0) + head * d;
    const __half *k = static_cast<const __half *>(a.k.p) + view_at(a.k, g, n, 0, 0) + head * d;
    const __half *v = static_cast<const __half *>(a.v.p) + view_at(a.v, g, n, 0, 0) + head * d;
    const int n_keys = a.causal ? min(a.k.w, first + QUERIES) : a.k.w, n_tiles = (n_keys + S::KEYS - 1) / S::KEYS;

    load_rows<D, QUERIES>(sq, q, a.q.sw, first, a.q.w, d);
    load_rows<D, S::KEYS>(sk, k, a.k.sw, 0, n_keys, d);
    load_rows<D, S::KEYS>(sv, v, a.v.sw, 0, n_keys, d);
    copy_commit();

    state<D> st;
    st.top[0] = st.top[1] = -INFINITY;
    st.sum[0] = st.sum[1] = 0;
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) st.out[t][i] = 0;
    const float factor = a.scale * 1.4426950408889634f;
    const int query = first + warp * 16 + lane / 4;
    for (int tile = 0; tile < n_tiles; tile++) {
        const int now = tile % 2, next = 1 - now;
        if (tile + 1 < n_tiles) {
            load_rows<D, S::KEYS>(sk + next * S::KEYS * S::ROW, k, a.k.sw, (tile + 1) * S::KEYS, n_keys, d);
            load_rows<D, S::KEYS>(sv + next * S::KEYS * S::ROW, v, a.v.sw, (tile + 1) * S::KEYS, n_keys, d);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        if (tile == 0)
#pragma unroll
            for (int s = 0; s < S::K_STEPS; s++)
                load_matrices(st.q[s], sq + (warp * 16 + lane % 16) * S::ROW + s * 16 + lane / 16 * 8);
        float s[S::KEYS / 8][4];
        scores<D>(st, sk + now * S::KEYS * S::ROW, s);
        if ((tile + 1) * S::KEYS > n_keys || (a.causal && (tile + 1) * S::KEYS > first))
            mask<D>(s, tile * S::KEYS, n_keys, query, a.causal);
        weigh<D>(st, s, factor);
        add_values<D>(st, s, sv + now * S::KEYS * S::ROW);
        __syncthreads(); /* the next tile but one is loaded over this one */
    }
    store_rows<D>(st, a, sq + warp * 16 * S::ROW, first + warp * 16,
                  static_cast<__half *>(a.out.p) + view_at(a.out, g, n, 0, 0) + head * d, d);
}

template <int D> cudaError_t launch(cu_order order, const cu_attention_args &a) {
    const size_t bytes = shape<D>::BYTES;
    cudaError_t e =
        cudaFuncSetAttribute(attention_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (e != cudaSuccess) return e;
    const dim3 grid((a.q.w + QUERIES - 1) / QUERIES, a.heads, a.out.g * a.out.n);
    return start(order, attention_kernel<D>, grid, WARPS * 32, bytes, a);
}

/* ---- softmax of one row a block, for the tactic that keeps its scores in memory (head widths over 160) */

enum { THREADS = 256 };

template <bool maximum> CU_DEVICE float block_reduce(float v, float *shared) {
    v = maximum ? warp_max(v) : warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
    for (int i = 1; i < THREADS / 32; i++) v = maximum ? fmaxf(v, shared[i]) : v + shared[i];
    __syncthreads();
    return v;
}

template <typename T> __global__ void softmax_kernel(cu_softmax_args a) {
    launches_meet();
    CU_SHARED(float, shared, [THREADS / 32]);
    const float *s = a.s + static_cast<int64_t>(blockIdx.x) * a.stride, factor = a.scale * 1.4426950408889634f;
    T *p = static_cast<T *>(a.p) + static_cast<int64_t>(blockIdx.x) * a.stride;
    const int n = a.causal ? min(a.n, static_cast<int>(blockIdx.x) % a.queries + 1) : a.n;
    float top = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, s[i]);
    top = block_reduce<true>(top, shared) * factor;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += exp2f(s[i] * factor - top);
    const float inverse = 1.0f / block_reduce<false>(sum, shared);
    for (int i = threadIdx.x; i < a.stride; i += THREADS)
        p[i] = static_cast<T>(i < n ? exp2f(s[i] * factor - top) * inverse : 0.0f);
}

} // namespace

cudaError_t cu_attention(cu_order order, const cu_attention_args *args) {
    const int d = args->q.c / args->heads;
    if (d <= 16) return launch<16>(order, *args);
    if (d <= 32) return launch<32>(order, *args);
    if (d <= 40) return launch<40>(order, *args);
    if (d <= 64) return launch<64>(order, *args);
    if (d <= 80) return launch<80>(order, *args);
    if (d <= 128) return launch<128>(order, *args);
    return launch<160>(order, *args);
}

cudaError_t cu_softmax(cu_order order, const cu_softmax_args *args) {
    if (args->half) return start(order, softmax_kernel<__half>, args->rows, THREADS, 0, *args);
    return start(order, softmax_kernel<float>, args->rows, THREADS, 0, *args);
}
