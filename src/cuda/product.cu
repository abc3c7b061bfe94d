/* SPDX-License-Identifier: MIT
 * Products of our own: y = epilogue(W . window(x)), window 1x1 or kh x kw with stride and zero padding.
 *
 * An implicit matrix product: rows are output pixels (g, n, y, x), columns output channels, and the sum runs over
 * (ky, kx, c), which is how the weights [O][kh][kw][I] lie. Both operands are contiguous along the sum, in vectors of 8
 * channels (16 bytes) that never cross a tap, so each vector of the input is one predicated 16-byte copy: the window is
 * never written to memory.
 *
 *   half   tiles of T x T, sums in steps of 64, three or four steps of cp.async in flight, ldmatrix + mma m16n8k16
 *          shared: per step A [T][64], B [T][64]; the 16-byte chunk j of row i lies at chunk j ^ (i % 8), so that the 8
 *          rows that one ldmatrix reads fall into 8 different groups of banks
 *   float  tiles of 64 x 64, sums in steps of 16, one multiply-add at a time: the exact mode, not a fast one
 *
 * The sums go through shared memory so that the epilogue works on 8 channels of a pixel at a time. For GEGLU a tile's
 * first half are values and its second half their gates. With few rows (levels 2 and 3: 48 to 192) the weights bound
 * the product: the sum is split over blocks to get all of memory's bandwidth, and the parts are added in order by
 * cu_combine. */
#include "cuda/common.cuh"

namespace {

/* A row of the tile: where its window begins in the input, and where that is in the picture. */
struct window {
    int64_t base; /* of the picture, elements */
    int y, x;     /* may be outside; y is far outside for rows that are not there */
};

CU_DEVICE window window_of(const cu_product_args &a, int row, int n_rows) {
    window at = {0, -(1 << 28), 0};
    if (row >= n_rows) return at;
    const int picture = a.out.h * a.out.w, gn = row / picture, r = row - gn * picture, g = gn / a.out.n,
              n = gn - g * a.out.n;
    at.base = g * a.in.sg + n * a.in.sn;
    at.y = r / a.out.w * a.stride - a.pad_top;
    at.x = r % a.out.w * a.stride - a.pad_left;
    return at;
}

/* A place in the sum, in vectors that advance by a fixed step. */
struct place {
    int k, ky, kx, c; /* k: of the whole sum */
};

CU_DEVICE place place_of(const cu_product_args &a, int k) {
    const int tap = k / a.in.c;
    return place{k, tap / a.kw, tap % a.kw, k - tap * a.in.c};
}

CU_DEVICE void advance(const cu_product_args &a, place &p, int step) {
    p.k += step;
    p.c += step;
    while (p.c >= a.in.c) {
        p.c -= a.in.c;
        if (++p.kx == a.kw) p.kx = 0, p.ky++;
    }
}

/* Row of the weights that column `col` of tile `tile` stands for; -1: none. */
template <int T> CU_DEVICE int weight_row(const cu_product_args &a, int tile, int col) {
    if (a.epi.act != CU_ACT_GEGLU || a.splits > 1) {
        const int row = tile * T + col;
        return row < a.n_rows ? row : -1;
    }
    const int half = T / 2, row = tile * half + col % half;
    return row < a.out.c ? row + (col < half ? 0 : a.out.c) : -1;
}

/* Sums of a tile in shared memory [T][T + 4] to the output, or to this split's part. */
template <typename T_OUT, int T, int N_THREADS>
CU_DEVICE void finish_tile(const cu_product_args &a, const float *sums, int n_rows, int first_row, int tile) {
    const int row_stride = T + 4, picture = a.out.h * a.out.w;
    const bool geglu = a.epi.act == CU_ACT_GEGLU && a.splits == 1;
    const int n_vec = (geglu ? T / 2 : T) / 8, limit = a.splits > 1 ? a.n_rows : a.out.c;
    for (int i = threadIdx.x; i < T * n_vec; i += N_THREADS) {
        const int r = i / n_vec, col = i % n_vec * 8, row = first_row + r, c = tile * n_vec * 8 + col;
        if (row >= n_rows || c >= limit) continue;
        float v[8], gate[8];
        load8(sums + r * row_stride + col, v);
        if (a.splits > 1) {
            store8(a.partials + (static_cast<int64_t>(blockIdx.z) * n_rows + row) * a.n_rows + c, v);
            continue;
        }
        if (geglu) load8(sums + r * row_stride + T / 2 + col, gate);
        const int gn = row / picture, p = row - gn * picture, g = gn / a.out.n, n = gn - g * a.out.n, h = p / a.out.w,
                  w = p - h * a.out.w;
        epilogue8<T_OUT>(a.epi, g, n, h, w, c, a.out.c, v, gate);
        store8(static_cast<T_OUT *>(a.out.p) + view_at(a.out, g, n, h, w) + c, v);
    }
}

/* ---- half */

template <int T> struct tile_shape;
template <> struct tile_shape<64> { /* a warp: 32 x 32 */
    static const int WARPS_M = 2, WARPS_N = 2, STAGES = 4, BLOCKS = 2;
};
template <> struct tile_shape<128> { /* a warp: 64 x 32 */
    static const int WARPS_M = 2, WARPS_N = 4, STAGES = 3, BLOCKS = 1;
};

enum { STEP = CU_PRODUCT_STEP, CHUNKS = STEP / 8 };

CU_DEVICE __half *chunk_at(__half *tile, int row, int chunk) { return tile + row * STEP + ((chunk ^ (row & 7)) * 8); }

template <int T> struct block {
    static const int N_THREADS = tile_shape<T>::WARPS_M * tile_shape<T>::WARPS_N * 32;
    static const int LOADS = T * CHUNKS / N_THREADS; /* of each operand by each thread, one chunk column */
    static const int M_TILES = T / tile_shape<T>::WARPS_M / 16, N_TILES = T / tile_shape<T>::WARPS_N / 8;
    static const size_t STAGE = static_cast<size_t>(T) * STEP * 2; /* halfs: A, then B */
    static const size_t SUMS = static_cast<size_t>(T) * (T + 4) * sizeof(float);
    static const size_t COPIES = tile_shape<T>::STAGES * STAGE * sizeof(__half);
    static const size_t BYTES = COPIES > SUMS ? COPIES : SUMS;
};

/* One step of both operands into stage memory. */
template <int T>
CU_DEVICE void load_step(const cu_product_args &a, __half *stage, const window at[block<T>::LOADS],
                         const int rows[block<T>::LOADS], const place &p, int end) {
    typedef block<T> B;
    const int chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
    const __half *in = static_cast<const __half *>(a.in.p), *weights = static_cast<const __half *>(a.weights);
    const int64_t k_all = static_cast<int64_t>(a.kh) * a.kw * a.in.c;
#pragma unroll
    for (int i = 0; i < B::LOADS; i++) {
        const int row = first + i * (B::N_THREADS / CHUNKS), y = at[i].y + p.ky, x = at[i].x + p.kx;
        const bool real = p.k < end && static_cast<unsigned>(y) < static_cast<unsigned>(a.in.h) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(a.in.w);
        copy16(chunk_at(stage, row, chunk), real ? in + at[i].base + y * a.in.sh + x * a.in.sw + p.c : in, real);
    }
#pragma unroll
    for (int i = 0; i < B::LOADS; i++) {
        const int row = first + i * (B::N_THREADS / CHUNKS);
        const bool real = p.k < end && rows[i] >= 0;
        copy16(chunk_at(stage + T * STEP, row, chunk), real ? weights + rows[i] * k_all + p.k : weights, real);
    }
}

template <int T>
CU_DEVICE void multiply_step(__half *stage, float sums[block<T>::M_TILES][block<T>::N_TILES][4], int warp_m,
                             int warp_n) {
    typedef block<T> B;
    const int lane = threadIdx.x % 32;
    __half *sa = stage, *sb = stage + T * STEP;
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        uint32_t fa[B::M_TILES][4], fb[B::N_TILES / 2][4];
#pragma unroll
        for (int i = 0; i < B::M_TILES; i++)
            load_matrices(fa[i], chunk_at(sa, (warp_m * B::M_TILES + i) * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int j = 0; j < B::N_TILES / 2; j++)
            load_matrices(fb[j], chunk_at(sb, (warp_n * B::N_TILES + 2 * j) * 8 + lane % 8 + lane / 16 * 8,
                                          2 * k + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < B::M_TILES; i++)
#pragma unroll
            for (int j = 0; j < B::N_TILES; j++)
                multiply(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
}

/* Grid: (tiles of columns, tiles of rows, splits). */
template <int T>
__global__ void __launch_bounds__(block<T>::N_THREADS, tile_shape<T>::BLOCKS) half_kernel(cu_product_args a) {
    launches_meet();
    typedef block<T> B;
    const int STAGES = tile_shape<T>::STAGES;
    CU_SHARED_REST(128, unsigned char, shared_bytes);
    __half *stages = reinterpret_cast<__half *>(shared_bytes);
    const int n_rows = a.out.g * a.out.n * a.out.h * a.out.w, first_row = blockIdx.y * T;
    const int k_all = a.kh * a.kw * a.in.c, steps_all = (k_all + STEP - 1) / STEP;
    const int each = (steps_all + a.splits - 1) / a.splits, begin = blockIdx.z * each;
    const int n_steps = max(0, min(each, steps_all - begin)), end = min(k_all, (begin + n_steps) * STEP);
    const int warp = threadIdx.x / 32, warp_m = warp / tile_shape<T>::WARPS_N, warp_n = warp % tile_shape<T>::WARPS_N;

    window at[B::LOADS];
    int rows[B::LOADS];
#pragma unroll
    for (int i = 0; i < B::LOADS; i++) {
        const int row = threadIdx.x / CHUNKS + i * (B::N_THREADS / CHUNKS);
        at[i] = window_of(a, first_row + row, n_rows);
        rows[i] = weight_row<T>(a, blockIdx.x, row);
    }
    place p = place_of(a, begin * STEP + threadIdx.x % CHUNKS * 8);
    float sums[B::M_TILES][B::N_TILES][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < n_steps) {
            load_step<T>(a, stages + s * B::STAGE, at, rows, p, end);
            advance(a, p, STEP);
        }
        copy_commit();
    }
    for (int s = 0; s < n_steps; s++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < n_steps) {
            load_step<T>(a, stages + (s + STAGES - 1) % STAGES * B::STAGE, at, rows, p, end);
            advance(a, p, STEP);
        }
        copy_commit();
        multiply_step<T>(stages + s % STAGES * B::STAGE, sums, warp_m, warp_n);
    }
    copy_wait<0>();
    __syncthreads();
    float *staged = reinterpret_cast<float *>(shared_bytes);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < B::M_TILES; i++)
#pragma unroll
        for (int j = 0; j < B::N_TILES; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = (warp_m * B::M_TILES + i) * 16 + lane / 4 + 8 * half;
                const int col = (warp_n * B::N_TILES + j) * 8 + lane % 4 * 2;
                *reinterpret_cast<float2 *>(staged + row * (T + 4) + col) =
                    make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            }
    __syncthreads();
    finish_tile<__half, T, B::N_THREADS>(a, staged, n_rows, first_row, blockIdx.x);
}

/* ---- float: 256 threads, each 4 x 4 of a 64 x 64 tile */

enum { F32_TILE = 64, F32_STEP = 16, F32_THREADS = 256 };

CU_DEVICE float4 load_window(const cu_product_args &a, const window &at, const place &p, int k_all) {
    const int y = at.y + p.ky, x = at.x + p.kx;
    const bool real = p.k < k_all && static_cast<unsigned>(y) < static_cast<unsigned>(a.in.h) &&
                      static_cast<unsigned>(x) < static_cast<unsigned>(a.in.w);
    if (!real) return make_float4(0, 0, 0, 0);
    return *reinterpret_cast<const float4 *>(static_cast<const float *>(a.in.p) + at.base + y * a.in.sh + x * a.in.sw +
                                             p.c);
}

__global__ void __launch_bounds__(F32_THREADS) float_kernel(cu_product_args a) {
    launches_meet();
    CU_SHARED(float, shared, [F32_TILE * (F32_TILE + 4)]);
    float(*sa)[F32_TILE + 4] = reinterpret_cast<float(*)[F32_TILE + 4]>(shared), (*sb)[F32_TILE + 4] = sa + F32_STEP;
    const int n_rows = a.out.g * a.out.n * a.out.h * a.out.w, first_row = blockIdx.y * F32_TILE;
    const int k_all = a.kh * a.kw * a.in.c, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int row = threadIdx.x / 4, k4 = threadIdx.x % 4 * 4;
    const window at = window_of(a, first_row + row, n_rows);
    const int w_row = weight_row<F32_TILE>(a, blockIdx.x, row);
    const float *weights = static_cast<const float *>(a.weights) + static_cast<int64_t>(max(w_row, 0)) * k_all;
    place p = place_of(a, k4);
    float sums[4][4] = {};
    for (int k = 0; k < k_all; k += F32_STEP) {
        const float4 va = load_window(a, at, p, k_all);
        const float4 vb =
            w_row >= 0 && p.k < k_all ? *reinterpret_cast<const float4 *>(weights + p.k) : make_float4(0, 0, 0, 0);
        advance(a, p, F32_STEP);
        __syncthreads();
        sa[k4][row] = va.x, sa[k4 + 1][row] = va.y, sa[k4 + 2][row] = va.z, sa[k4 + 3][row] = va.w;
        sb[k4][row] = vb.x, sb[k4 + 1][row] = vb.y, sb[k4 + 2][row] = vb.z, sb[k4 + 3][row] = vb.w;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < F32_STEP; i++) {
            const float4 fa = *reinterpret_cast<const float4 *>(&sa[i][ty * 4]),
                         fb = *reinterpret_cast<const float4 *>(&sb[i][tx * 4]);
            const float ra[4] = {fa.x, fa.y, fa.z, fa.w}, rb[4] = {fb.x, fb.y, fb.z, fb.w};
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 4; n++) sums[m][n] += ra[m] * rb[n];
        }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 4; m++)
        *reinterpret_cast<float4 *>(shared + (ty * 4 + m) * (F32_TILE + 4) + tx * 4) =
            make_float4(sums[m][0], sums[m][1], sums[m][2], sums[m][3]);
    __syncthreads();
    finish_tile<float, F32_TILE, F32_THREADS>(a, shared, n_rows, first_row, blockIdx.x);
}

/* ---- launching */

template <int T> cudaError_t launch_half(cu_order order, const cu_product_args &a, dim3 grid) {
    cudaError_t e = cudaFuncSetAttribute(half_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(block<T>::BYTES));
    if (e != cudaSuccess) return e;
    return start(order, half_kernel<T>, grid, block<T>::N_THREADS, block<T>::BYTES, a);
}

/* The parts of a split sum as one dense float tensor a split. */
cudaError_t finish_splits(cu_order order, const cu_product_args &a) {
    const int64_t c = a.n_rows, w = a.out.w, h = a.out.h, n = a.out.n;
    cu_combine_args combine = {};
    combine.in = a.out;
    combine.in.p = a.partials;
    combine.in.half = 0;
    combine.in.c = a.n_rows;
    combine.in.sw = c;
    combine.in.sh = c * w;
    combine.in.sn = c * w * h;
    combine.in.sg = c * w * h * n;
    combine.out = a.out;
    combine.splits = a.splits;
    combine.split_stride = c * w * h * n * a.out.g;
    combine.epi = a.epi;
    return cu_combine(order, &combine);
}

} // namespace

cudaError_t cu_product(cu_order order, const cu_product_args *args) {
    const int rows = args->out.g * args->out.n * args->out.h * args->out.w, tile = args->tile == CU_TILE_128 ? 128 : 64;
    const int columns = args->epi.act == CU_ACT_GEGLU && args->splits == 1 ? tile / 2 : tile,
              wide = args->splits > 1 ? args->n_rows : args->out.c;
    const dim3 grid((wide + columns - 1) / columns, (rows + tile - 1) / tile, args->splits);
    cudaError_t e;
    if (args->tile == CU_TILE_F32) e = start(order, float_kernel, grid, F32_THREADS, 0, *args);
    else e = tile == 128 ? launch_half<128>(order, *args, grid) : launch_half<64>(order, *args, grid);
    if (e == cudaSuccess && args->splits > 1) e = finish_splits(order, *args);
    return e;
}
