/* SPDX-License-Identifier: MIT
 * The Hopper product kernels by themselves, without the library around them.
 *   check [TILE]   each tile on small awkward shapes against a plain kernel: every split, pairs, with and without
 *                  overlap, twice for the same bits; stops at a launch that fails, and the exit status says so
 *   time [TEXT]    each tile and split, then its pairs, on SD1.5's shapes (or those whose name contains TEXT), in a
 *                  graph of as many launches as make their weights cold: docs/perf/products-h200.tsv, then the best
 *   fill           one wave of tiles with 1 to 64 steps of the sum: what a launch costs before and after its work
 *   mix            the same launches in chains of their like and in turns, as a network has them
 *   run SHAPE TILE SPLITS PAIRS   four launches, for a profiler
 *   phases [TEXT]  where a block's time goes, of the tiles that the model likes best for a shape (phases.cuh)
 * A program of its own so that a kernel that breaks the device breaks nothing else. */
#include "gpu/gpu.cuh"

#include <string>

#include "cuda/kernels.h"
#include "cuda/model.h"
#include "cuda/tiles.h"
#include "gpu/phases.cuh"

namespace {

struct shape {
    const char *name;
    int n, h, w, c, o, k, stride, pad; /* of the input; o: columns of the output */
    bool geglu;
    int members = 1; /* products of that shape in one launch, as ControlNet's and the encoder's are */
};

int out_size(int in, const shape &s) { return (in + 2 * s.pad - s.k) / s.stride + 1; }

/* Whether a tile can do a product: blocks that stay want matrices. */
bool can(int tile, const cu_product_args &a) { return tile < CU_N_WGMMA_TILES || cu_turns_fit(&a); }

/* ---- the plain kernel: one output value a thread */

__device__ float sum_of(const cu_product_args &a, int g, int y, int x, int o) {
    float sum = 0;
    for (int ky = 0; ky < a.kh; ky++)
        for (int kx = 0; kx < a.kw; kx++) {
            const int iy = y * a.stride - a.pad_top + ky, ix = x * a.stride - a.pad_left + kx;
            if (iy < 0 || iy >= a.in.h || ix < 0 || ix >= a.in.w) continue;
            const __half *in = static_cast<const __half *>(a.in.p) + g * a.in.sg + iy * a.in.sh + ix * a.in.sw;
            const __half *w = static_cast<const __half *>(a.weights) +
                              (static_cast<int64_t>(o) * a.kh * a.kw + ky * a.kw + kx) * a.in.c;
            for (int c = 0; c < a.in.c; c++) sum += __half2float(in[c]) * __half2float(w[c]);
        }
    if (!a.stats) return sum;
    const int parts = a.in.c / CU_ROW_PART;
    const float *stats = a.stats + ((static_cast<int64_t>(g) * a.in.h + y) * a.in.w + x) * parts * 2;
    float mean = 0, squares = 0;
    for (int i = 0; i < parts; i++) mean += stats[2 * i] / parts;
    for (int i = 0; i < parts; i++)
        squares += stats[2 * i + 1] + CU_ROW_PART * (stats[2 * i] - mean) * (stats[2 * i] - mean);
    return sum * rsqrtf(squares / a.in.c + a.eps);
}

__device__ float with_vectors(const cu_epilogue &e, int g, int o, float v) {
    if (e.bias) v += e.bias[o];
    if (e.addend.p) v += __half2float(static_cast<const __half *>(e.addend.p)[g * e.addend.sg + o]);
    return v;
}

__global__ void plain_kernel(cu_product_args a, float *out) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    const int64_t total = static_cast<int64_t>(a.out.g) * a.out.h * a.out.w * a.out.c;
    if (i >= total) return;
    const int o = static_cast<int>(i % a.out.c), x = static_cast<int>(i / a.out.c % a.out.w);
    const int y = static_cast<int>(i / a.out.c / a.out.w % a.out.h);
    const int g = static_cast<int>(i / a.out.c / a.out.w / a.out.h);
    float v = with_vectors(a.epi, g, o, sum_of(a, g, y, x, o));
    if (a.epi.act == CU_ACT_GEGLU) {
        const float gate = with_vectors(a.epi, g, a.out.c + o, sum_of(a, g, y, x, a.out.c + o));
        v *= 0.5f * gate * (1.0f + erff(gate * 0.70710678f));
    } else if (a.epi.act == CU_ACT_SILU) v = v / (1.0f + expf(-v));
    if (a.epi.scale) v *= a.epi.scale[g * a.epi.scale_sg];
    if (a.epi.residual.p)
        v += __half2float(static_cast<const __half *>(
            a.epi.residual.p)[g * a.epi.residual.sg + y * a.epi.residual.sh + x * a.epi.residual.sw + o]);
    out[i] = v;
}

/* ---- a product of a shape with buffers of its own; pictures along g */

struct job {
    cu_product_args a = {};
    const __half *saved = nullptr; /* the input again */
    size_t in_values = 0, out_values = 0, weight_values = 0;
    double flop = 0, bytes = 0;
    std::vector<void *> owned;
};

cu_view dense(__half *p, int g, int h, int w, int c) {
    cu_view v = {};
    v.p = p;
    v.half = 1;
    v.g = g, v.n = 1, v.h = h, v.w = w, v.c = c;
    v.sw = c, v.sh = static_cast<int64_t>(c) * w, v.sg = g == 1 ? 0 : v.sh * h;
    return v;
}

float *new_floats(job &j, size_t n, uint32_t seed) {
    std::vector<float> host(n);
    for (size_t i = 0; i < n; i++) host[i] = static_cast<float>((i * 2654435761u + seed) >> 8 & 0xffff) * 0x1p-15f - 1;
    void *p = nullptr;
    MUST(cudaMalloc(&p, n * 4));
    MUST(cudaMemcpy(p, host.data(), n * 4, cudaMemcpyHostToDevice));
    j.owned.push_back(p);
    return static_cast<float *>(p);
}

/* Statistics of so many parts of rows: means, and squared deviations that are none below 0. */
float *new_stats(job &j, size_t parts, uint32_t seed) {
    float *p = new_floats(j, 2 * parts, seed);
    std::vector<float> host(2 * parts);
    MUST(cudaMemcpy(host.data(), p, host.size() * 4, cudaMemcpyDeviceToHost));
    for (size_t i = 1; i < host.size(); i += 2) host[i] = 64 + 40 * host[i];
    MUST(cudaMemcpy(p, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
    return p;
}

enum { EXTRA_STATS = 32, EXTRA_ROW_STATS = 64 };

/* extras: bit 0 bias, 1 addend, 2 residual, 3 scale, 4 SiLU, then EXTRA_…. copies: of the weights, one after the
 * other. */
job make_job(const shape &s, int extras, int copies, uint32_t seed = 0) {
    job j;
    const int oh = out_size(s.h, s), ow = out_size(s.w, s), rows = s.geglu ? 2 * s.o : s.o;
    const size_t in_values = j.in_values = static_cast<size_t>(s.n) * s.h * s.w * s.c;
    j.weight_values = static_cast<size_t>(rows) * s.k * s.k * s.c;
    j.out_values = static_cast<size_t>(s.n) * oh * ow * s.o;
    __half *in = new_halfs(in_values, 1.0f, 1 + seed), *saved = new_halfs(in_values, 1.0f, 1 + seed),
           *weights = new_halfs(j.weight_values * copies, 1.7f / sqrtf(static_cast<float>(s.k * s.k * s.c)), 2 + seed),
           *out = new_halfs(j.out_values, 1.0f, 3 + seed),
           *addend = new_halfs(static_cast<size_t>(s.n) * rows, 1.0f, 4 + seed),
           *residual = new_halfs(j.out_values, 1.0f, 5 + seed);
    j.saved = saved;
    j.owned = {in, saved, weights, out, addend, residual};
    j.a.in = dense(in, s.n, s.h, s.w, s.c);
    j.a.out = dense(out, s.n, oh, ow, s.o);
    j.a.weights = weights;
    j.a.n_rows = rows;
    j.a.kh = j.a.kw = s.k;
    j.a.stride = s.stride;
    j.a.pad_top = j.a.pad_left = s.pad;
    j.a.splits = 1;
    if (extras & 1) j.a.epi.bias = new_floats(j, rows, 6 + seed);
    if (extras & 2) j.a.epi.addend = dense(addend, s.n, 1, 1, rows);
    if (extras & 4) j.a.epi.residual = dense(residual, s.n, oh, ow, s.o);
    if (extras & 8) j.a.epi.scale = new_floats(j, s.n, 7 + seed), j.a.epi.scale_sg = s.n == 1 ? 0 : 1;
    if (extras & EXTRA_STATS) j.a.stats = new_stats(j, in_values / CU_ROW_PART, 8 + seed), j.a.eps = 1e-5f;
    if (extras & EXTRA_ROW_STATS) j.a.row_stats = new_stats(j, j.out_values / CU_ROW_PART, 9 + seed);
    if (s.geglu) j.a.epi.act = CU_ACT_GEGLU;
    else if (extras & 16) j.a.epi.act = CU_ACT_SILU;
    j.flop = 2.0 * s.n * oh * ow * static_cast<double>(j.weight_values);
    j.bytes = 2.0 * (in_values + j.weight_values + j.out_values);
    return j;
}

void drop_job(job &j) {
    for (void *p : j.owned) MUST(cudaFree(p));
    j.owned.clear();
}

/* ---- check */

const shape awkward[] = {
    {"matrix", 1, 1, 256, 128, 128, 1, 1, 0, false},       {"cut matrix", 1, 1, 150, 136, 72, 1, 1, 0, false},
    {"gated", 1, 1, 200, 320, 320, 1, 1, 0, true},         {"cut gated", 1, 1, 70, 40, 104, 1, 1, 0, true},
    {"level 0", 2, 48, 32, 320, 320, 3, 1, 1, false},      {"level 3", 2, 6, 4, 1280, 320, 3, 1, 1, false},
    {"level 2", 2, 12, 8, 640, 192, 3, 1, 1, false},       {"odd picture", 1, 5, 33, 64, 8, 3, 1, 1, false},
    {"few channels", 2, 48, 32, 8, 320, 3, 1, 1, false},   {"stride 2", 2, 24, 16, 96, 128, 3, 2, 1, false},
    {"stride 2 late", 1, 32, 48, 64, 64, 3, 2, 0, false},  {"1x1 stride 2", 3, 8, 8, 64, 64, 1, 2, 0, false},
    {"many tiles", 1, 1, 36000, 136, 328, 1, 1, 0, false}, {"many gated", 1, 1, 20000, 320, 200, 1, 1, 0, true},
    {"pictures", 3, 20, 30, 72, 64, 1, 1, 0, false},       {"cut patches", 3, 13, 24, 136, 72, 3, 1, 1, false},
    {"21 parts", 1, 1, 200, 1344, 192, 1, 1, 0, false},    {"23 parts", 1, 1, 90, 1472, 320, 1, 1, 0, true},
};

/* The launch before: lets the next one in at once, and has its input ready only a while later. */
__global__ void late_input(__half *to, const __half *from, size_t n) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
    uint64_t begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(begin));
    do asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
    while (now - begin < 20000);
    for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
         i += static_cast<size_t>(gridDim.x) * blockDim.x)
        to[i] = from[i];
}

std::vector<float> plain_values(const job &j) {
    float *plain = nullptr;
    std::vector<float> want(j.out_values);
    MUST(cudaMalloc(&plain, j.out_values * 4));
    plain_kernel<<<static_cast<unsigned>((j.out_values + 127) / 128), 128>>>(j.a, plain);
    MUST(cudaGetLastError());
    MUST(cudaMemcpy(want.data(), plain, j.out_values * 4, cudaMemcpyDeviceToHost));
    MUST(cudaFree(plain));
    return want;
}

struct variant {
    int tile, splits, pairs, overlap, members;
};

/* One output against the plain kernel's. */
bool equals(const shape &s, const variant &v, int member, const std::vector<__half> &got,
            const std::vector<float> &want) {
    double error = 0, norm = 0;
    size_t bad = 0, first = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double w = want[i], d = static_cast<double>(__half2float(got[i])) - w;
        if (!(d * d <= 4e-4 * (1 + w * w)) && !bad++) first = i;
        error += d * d, norm += w * w;
    }
    const double relative = std::sqrt(error / norm);
    if (!bad && relative < 1e-3) return true;
    std::printf("FAIL %-14s tile %-9s splits %d pairs %d overlap %d member %d of %d: relative %.2e, %zu of %zu wrong, "
                "first (pixel %zu, channel %zu): %g not %g\n",
                s.name, cu_product_tiles[v.tile].name, v.splits, v.pairs, v.overlap, member + 1, v.members, relative,
                bad, want.size(), first / s.o, first % s.o, static_cast<double>(__half2float(got[first])),
                static_cast<double>(want[first]));
    return false;
}

/* The statistics of rows that a product left, against those of the plain kernel's output. */
bool rows_equal(const shape &s, const variant &v, int member, const job &j, const std::vector<float> &want) {
    std::vector<float> got(2 * want.size() / CU_ROW_PART);
    MUST(cudaMemcpy(got.data(), j.a.row_stats, got.size() * 4, cudaMemcpyDeviceToHost));
    for (size_t part = 0; part < got.size() / 2; part++) {
        double mean = 0, squares = 0;
        for (int i = 0; i < CU_ROW_PART; i++) mean += static_cast<double>(want[part * CU_ROW_PART + i]) / CU_ROW_PART;
        for (int i = 0; i < CU_ROW_PART; i++) {
            const double d = static_cast<double>(want[part * CU_ROW_PART + i]) - mean;
            squares += d * d;
        }
        const double apart = std::fabs(static_cast<double>(got[2 * part]) - mean),
                     off = std::fabs(static_cast<double>(got[2 * part + 1]) - squares);
        if (apart <= 2e-3 * (1 + std::fabs(mean)) && off <= 1e-2 * (1 + squares)) continue;
        std::printf("FAIL %-14s tile %-9s splits %d pairs %d overlap %d member %d of %d: statistics of part %zu: %g %g "
                    "not %g %g\n",
                    s.name, cu_product_tiles[v.tile].name, v.splits, v.pairs, v.overlap, member + 1, v.members, part,
                    static_cast<double>(got[2 * part]), static_cast<double>(got[2 * part + 1]), mean, squares);
        return false;
    }
    return true;
}

/* Runs twice over poisoned outputs, and input that is not there yet where launches overlap: errors against the plain
 * kernel, and whether both runs gave the same bits. */
bool check_one(const shape &s, std::vector<job> &jobs, const std::vector<std::vector<float>> &want, void *encode,
               const variant &v) {
    static cudaStream_t stream = nullptr;
    if (!stream) MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::vector<__half> got[2][2];
    cu_product_args args[2];
    for (auto &run : got) {
        for (int m = 0; m < v.members; m++) {
            job &j = jobs[m];
            args[m] = j.a;
            args[m].tile = v.tile, args[m].splits = v.splits, args[m].pairs = v.pairs;
            MUST(cudaMemsetAsync(j.a.out.p, 0xff, j.out_values * 2, stream));
            if (j.a.row_stats)
                MUST(cudaMemsetAsync(j.a.row_stats, 0xff, j.out_values / CU_ROW_PART * 2 * sizeof(float), stream));
            if (v.overlap) MUST(cudaMemsetAsync(j.a.in.p, 0xff, j.in_values * 2, stream));
        }
        for (int m = v.members - 1; m >= 0 && v.overlap; m--)
            late_input<<<16, 256, 0, stream>>>(static_cast<__half *>(jobs[m].a.in.p), jobs[m].saved, jobs[m].in_values);
        MUST(cudaGetLastError());
        const cudaError_t e = cu_wgmma(cu_order{stream, v.overlap}, args, v.members, encode);
        if (e != cudaSuccess) {
            std::printf("FAIL %-14s tile %-9s splits %d pairs %d overlap %d members %d: launch: %s\n", s.name,
                        cu_product_tiles[v.tile].name, v.splits, v.pairs, v.overlap, v.members, cudaGetErrorString(e));
            cudaGetLastError();
            return false;
        }
        MUST(cudaStreamSynchronize(stream));
        for (int m = 0; m < v.members; m++) {
            run[m].resize(jobs[m].out_values);
            MUST(cudaMemcpy(run[m].data(), jobs[m].a.out.p, jobs[m].out_values * 2, cudaMemcpyDeviceToHost));
        }
    }
    bool fine = true;
    for (int m = 0; m < v.members; m++) {
        fine &= equals(s, v, m, got[0][m], want[m]);
        if (jobs[m].a.row_stats) fine &= rows_equal(s, v, m, jobs[m], want[m]);
        if (std::memcmp(got[0][m].data(), got[1][m].data(), got[0][m].size() * 2)) {
            std::printf("FAIL %-14s tile %-9s splits %d pairs %d overlap %d: other bits the second time\n", s.name,
                        cu_product_tiles[v.tile].name, v.splits, v.pairs, v.overlap);
            fine = false;
        }
    }
    return fine;
}

int check(void *encode, int only) {
    int passed = 0, failed = 0;
    for (int tile = 0; tile < CU_N_PRODUCT_TILES; tile++) {
        if (only >= 0 && tile != only) continue;
        const bool stays = tile >= CU_N_WGMMA_TILES;
        for (const shape &s : awkward)
            for (int more : {0, int(EXTRA_STATS), int(EXTRA_ROW_STATS)}) {
                if (more == EXTRA_STATS && (s.k > 1 || s.stride > 1 || s.c % CU_ROW_PART)) continue;
                if (more == EXTRA_ROW_STATS &&
                    (stays || s.geglu || s.o % CU_ROW_PART || cu_product_tiles[tile].columns % CU_ROW_PART))
                    continue;
                int possible = stays ? (s.geglu ? 1 : 1 | 4) : 31; /* of make_job's extras */
                if (more == EXTRA_ROW_STATS) possible &= ~16;
                if (more == EXTRA_STATS && stays) possible = 1;
                const int before = failed, extras = (static_cast<int>(&s - awkward) * 7 % 32 & possible) | more;
                std::vector<job> jobs = {make_job(s, extras, 1), make_job(s, extras, 1, 100)};
                const std::vector<std::vector<float>> want = {plain_values(jobs[0]), plain_values(jobs[1])};
                cu_tiling t;
                cu_wgmma_tiling(&t, &jobs[0].a, cu_product_tiles[tile].rows);
                const int most = !can(tile, jobs[0].a) ? 0 : stays || s.geglu ? 1 : CU_WGMMA_MAX_SPLITS;
                for (int splits = 1; splits <= most; splits *= 2)
                    for (int pairs = 0; pairs <= (!stays && cu_can_pair(&t, splits)); pairs++)
                        for (int overlap = 0; overlap < 2; overlap++)
                            for (int members = 1; members <= 2; members++)
                                check_one(s, jobs, want, encode, {tile, splits, pairs, overlap, members}) ? passed++
                                                                                                          : failed++;
                for (job &j : jobs) drop_job(j);
                std::printf("%s %-14s tile %s, epilogue %d\n", failed == before ? "pass" : "FAIL", s.name,
                            cu_product_tiles[tile].name, extras);
                std::fflush(stdout);
            }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* ---- time */

const shape sd15[] = {
    {"c3 4x6 1280", 2, 6, 4, 1280, 1280, 3, 1, 1, false},
    {"c3 4x6 2560", 2, 6, 4, 2560, 1280, 3, 1, 1, false},
    {"c3 8x12 1280", 2, 12, 8, 1280, 1280, 3, 1, 1, false},
    {"c3 8x12 2560", 2, 12, 8, 2560, 1280, 3, 1, 1, false},
    {"c3 8x12 640", 2, 12, 8, 640, 1280, 3, 1, 1, false},
    {"c3s2 8x12 1280", 2, 12, 8, 1280, 1280, 3, 2, 1, false},
    {"c3 16x24 640", 2, 24, 16, 640, 640, 3, 1, 1, false},
    {"c3 16x24 1920", 2, 24, 16, 1920, 640, 3, 1, 1, false},
    {"c3 16x24 1280>640", 2, 24, 16, 1280, 640, 3, 1, 1, false},
    {"c3 16x24 1280", 2, 24, 16, 1280, 1280, 3, 1, 1, false},
    {"c3s2 16x24 640", 2, 24, 16, 640, 640, 3, 2, 1, false},
    {"c3 32x48 320", 2, 48, 32, 320, 320, 3, 1, 1, false},
    {"c3 32x48 640", 2, 48, 32, 640, 320, 3, 1, 1, false},
    {"c3 32x48 960", 2, 48, 32, 960, 320, 3, 1, 1, false},
    {"c3 32x48 640>640", 2, 48, 32, 640, 640, 3, 1, 1, false},
    {"c3s2 32x48 320", 2, 48, 32, 320, 320, 3, 2, 1, false},
    {"conv_in", 2, 48, 32, 8, 320, 3, 1, 1, false},
    {"conv_out", 2, 48, 32, 320, 8, 3, 1, 1, false},
    {"c1 16x24 1920", 2, 24, 16, 1920, 640, 1, 1, 0, false},
    {"c1 8x12 2560", 2, 12, 8, 2560, 1280, 1, 1, 0, false},
    {"lin 48 1280", 1, 1, 48, 1280, 1280, 1, 1, 0, false},
    {"lin 48 5120", 1, 1, 48, 5120, 1280, 1, 1, 0, false},
    {"lin 192 1280", 1, 1, 192, 1280, 1280, 1, 1, 0, false},
    {"lin 192 qkv", 1, 1, 192, 1280, 3840, 1, 1, 0, false},
    {"lin 192 5120", 1, 1, 192, 5120, 1280, 1, 1, 0, false},
    {"geglu 192", 1, 1, 192, 1280, 5120, 1, 1, 0, true},
    {"lin 768 640", 1, 1, 768, 640, 640, 1, 1, 0, false},
    {"lin 768 qkv", 1, 1, 768, 640, 1920, 1, 1, 0, false},
    {"lin 768 2560", 1, 1, 768, 2560, 640, 1, 1, 0, false},
    {"geglu 768", 1, 1, 768, 640, 2560, 1, 1, 0, true},
    {"lin 3072 320", 1, 1, 3072, 320, 320, 1, 1, 0, false},
    {"lin 3072 qkv", 1, 1, 3072, 320, 960, 1, 1, 0, false},
    {"lin 3072 1280", 1, 1, 3072, 1280, 320, 1, 1, 0, false},
    {"geglu 3072", 1, 1, 3072, 320, 1280, 1, 1, 0, true},
    {"c3 64x64 320", 2, 64, 64, 320, 320, 3, 1, 1, false},
    {"c3 32x32 640", 2, 32, 32, 640, 640, 3, 1, 1, false},
    {"c3 16x16 1280", 2, 16, 16, 1280, 1280, 3, 1, 1, false},
    {"c3 8x8 1280", 2, 8, 8, 1280, 1280, 3, 1, 1, false},
    {"lin 8192 320", 1, 1, 8192, 320, 320, 1, 1, 0, false},
    {"geglu 8192", 1, 1, 8192, 320, 1280, 1, 1, 0, true},
    {"vae 32x48 512", 1, 48, 32, 512, 512, 3, 1, 1, false},
    {"vae 64x96 512", 1, 96, 64, 512, 512, 3, 1, 1, false},
    {"vae 128x192 512", 1, 192, 128, 512, 512, 3, 1, 1, false},
    {"vae 128x192 256", 1, 192, 128, 256, 256, 3, 1, 1, false},
    {"vae 256x384 256", 1, 384, 256, 256, 256, 3, 1, 1, false},
    {"vae 256x384 128", 1, 384, 256, 128, 128, 3, 1, 1, false},
    {"lin 8192 qkv", 1, 1, 8192, 320, 960, 1, 1, 0, false},
    {"lin 8192 1280", 1, 1, 8192, 1280, 320, 1, 1, 0, false},
    {"lin 2048 640", 1, 1, 2048, 640, 640, 1, 1, 0, false},
    {"geglu 2048", 1, 1, 2048, 640, 2560, 1, 1, 0, true},
    {"geglu 512", 1, 1, 512, 1280, 5120, 1, 1, 0, true},
    {"lin 24576 320", 1, 1, 24576, 320, 320, 1, 1, 0, false},
    {"lin 24576 qkv", 1, 1, 24576, 320, 960, 1, 1, 0, false},
    {"lin 24576 1280", 1, 1, 24576, 1280, 320, 1, 1, 0, false},
    {"geglu 24576", 1, 1, 24576, 320, 1280, 1, 1, 0, true},
    {"lin 6144 640", 1, 1, 6144, 640, 640, 1, 1, 0, false},
    {"lin 6144 2560", 1, 1, 6144, 2560, 640, 1, 1, 0, false},
    {"geglu 6144", 1, 1, 6144, 640, 2560, 1, 1, 0, true},
    {"lin 1536 1280", 1, 1, 1536, 1280, 1280, 1, 1, 0, false},
    {"geglu 1536", 1, 1, 1536, 1280, 5120, 1, 1, 0, true},
    {"both c3 4x6 1280", 2, 6, 4, 1280, 1280, 3, 1, 1, false, 2},
    {"both c3 8x12 1280", 2, 12, 8, 1280, 1280, 3, 1, 1, false, 2},
    {"both c3 8x12 640", 2, 12, 8, 640, 1280, 3, 1, 1, false, 2},
    {"both c3 16x24 640", 2, 24, 16, 640, 640, 3, 1, 1, false, 2},
    {"both c3 16x24 320", 2, 24, 16, 320, 640, 3, 1, 1, false, 2},
    {"both c3 32x48 320", 2, 48, 32, 320, 320, 3, 1, 1, false, 2},
    {"both c3 16x16 1280", 2, 16, 16, 1280, 1280, 3, 1, 1, false, 2},
    {"both c3 32x32 640", 2, 32, 32, 640, 640, 3, 1, 1, false, 2},
    {"both c3 64x64 320", 2, 64, 64, 320, 320, 3, 1, 1, false, 2},
    {"both lin 48 1280", 1, 1, 48, 1280, 1280, 1, 1, 0, false, 2},
    {"both lin 192 1280", 1, 1, 192, 1280, 1280, 1, 1, 0, false, 2},
    {"both lin 192 qkv", 1, 1, 192, 1280, 3840, 1, 1, 0, false, 2},
    {"both lin 192 5120", 1, 1, 192, 5120, 1280, 1, 1, 0, false, 2},
    {"both geglu 192", 1, 1, 192, 1280, 5120, 1, 1, 0, true, 2},
    {"both lin 768 640", 1, 1, 768, 640, 640, 1, 1, 0, false, 2},
    {"both lin 768 qkv", 1, 1, 768, 640, 1920, 1, 1, 0, false, 2},
    {"both lin 768 2560", 1, 1, 768, 2560, 640, 1, 1, 0, false, 2},
    {"both geglu 768", 1, 1, 768, 640, 2560, 1, 1, 0, true, 2},
    {"both lin 3072 320", 1, 1, 3072, 320, 320, 1, 1, 0, false, 2},
    {"both lin 3072 qkv", 1, 1, 3072, 320, 960, 1, 1, 0, false, 2},
    {"both lin 3072 1280", 1, 1, 3072, 1280, 320, 1, 1, 0, false, 2},
    {"both geglu 3072", 1, 1, 3072, 320, 1280, 1, 1, 0, true, 2},
    {"8192^3", 1, 1, 8192, 8192, 8192, 1, 1, 0, false},
};

int count_copies(const shape &s) {
    const double rows = s.geglu ? 2.0 * s.o : s.o, values = rows * s.k * s.k * s.c;
    const double flop = 2.0 * s.n * out_size(s.h, s) * out_size(s.w, s) * values;
    int copies = static_cast<int>(150e6 / (2 * values)) + 1; /* three times the level-2 cache */
    while (copies > 4 && copies * flop > 3e11) copies--;
    return std::min(copies, 48);
}

/* One for each member, with as many copies of the weights; extras as in the networks. */
std::vector<job> make_jobs(const shape &s, int copies) {
    std::vector<job> jobs;
    for (int m = 0; m < s.members; m++)
        jobs.push_back(make_job(s, s.geglu || (s.k == 1 && s.o > s.c) ? 1 : 1 | 4, copies, static_cast<uint32_t>(m)));
    return jobs;
}

/* Of the launch with copy i of the weights. */
void set_args(cu_product_args *a, const std::vector<job> &jobs, int i, int tile, int splits, int pairs) {
    for (size_t m = 0; m < jobs.size(); m++) {
        a[m] = jobs[m].a;
        a[m].tile = tile, a[m].splits = splits, a[m].pairs = pairs;
        a[m].weights = static_cast<const __half *>(a[m].weights) + i * jobs[m].weight_values;
    }
}

double time_wgmma(const std::vector<job> &jobs, int copies, void *encode, int tile, int splits, int pairs,
                  int overlap) {
    return graph_us([&](cudaStream_t stream) {
               for (int i = 0; i < copies; i++) {
                   cu_product_args a[2];
                   set_args(a, jobs, i, tile, splits, pairs);
                   MUST(cu_wgmma(cu_order{stream, overlap}, a, static_cast<int>(jobs.size()), encode));
               }
           }) /
           copies;
}

double time_mma(const job &j, int copies, int tile, int splits, float *partials) {
    return graph_us([&](cudaStream_t stream) {
               for (int i = 0; i < copies; i++) {
                   cu_product_args a = j.a;
                   a.tile = tile, a.splits = splits, a.partials = partials;
                   a.weights = static_cast<const __half *>(j.a.weights) + i * j.weight_values;
                   MUST(cu_product(cu_order{stream, 0}, &a));
               }
           }) /
           copies;
}

struct best {
    double us = 1e30;
    std::string how;
};

void time_shape(const shape &s, void *encode, std::vector<std::string> &summary) {
    const int copies = count_copies(s);
    std::vector<job> jobs = make_jobs(s, copies);
    const job &j = jobs[0];
    best plain, overlapped, old;
    std::printf("shape\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", s.name, s.n, s.h, s.w, s.c, s.o, s.k, s.stride,
                s.pad, s.geglu, s.members);
    cu_tiling t;
    for (int tile = 0; tile < CU_N_PRODUCT_TILES; tile++)
        for (int splits = 1; splits <= CU_WGMMA_MAX_SPLITS; splits *= 2) {
            const bool stays = tile >= CU_N_WGMMA_TILES;
            if (!can(tile, j.a) || ((stays || s.geglu) && splits > 1)) continue;
            cu_wgmma_tiling(&t, &j.a, cu_product_tiles[tile].rows);
            const int wide = s.geglu ? cu_product_tiles[tile].columns / 2 : cu_product_tiles[tile].columns;
            const int blocks = s.members * t.tiles * cu_ceil_div(s.o, wide) * splits;
            if (splits > 1 && (t.steps < 2 * splits || blocks > 400)) continue;
            std::printf("%s\t%d", cu_product_tiles[tile].name, splits);
            for (int pairs = 0; pairs <= (!stays && cu_can_pair(&t, splits)); pairs++)
                for (int overlap = 0; overlap < 2; overlap++) {
                    char how[64];
                    const double us = time_wgmma(jobs, copies, encode, tile, splits, pairs, overlap);
                    std::snprintf(how, sizeof how, "%s/%d%s (%d)", cu_product_tiles[tile].name, splits,
                                  pairs ? "p" : "", blocks);
                    std::printf("\t%.2f", us);
                    best &b = overlap ? overlapped : plain;
                    if (us < b.us) b.us = us, b.how = how;
                }
            std::printf("\n");
        }
    float *partials = nullptr;
    MUST(cudaMalloc(&partials, 16 * sizeof(float) * static_cast<size_t>(s.n) * out_size(s.h, s) * out_size(s.w, s) *
                                   static_cast<size_t>(j.a.n_rows)));
    for (int tile = CU_TILE_64; tile <= CU_TILE_128; tile++) /* one member a launch */
        for (int splits = 1; splits <= 16 && s.members == 1; splits *= 4) {
            char how[64];
            if (splits > 1 && j.flop > 1e10) continue;
            const double us = time_mma(j, copies, tile, splits, partials);
            std::snprintf(how, sizeof how, "mma%d/%d", tile == CU_TILE_64 ? 64 : 128, splits);
            std::printf("mma%d\t%d\t%.2f\n", tile == CU_TILE_64 ? 64 : 128, splits, us);
            if (us < old.us) old.us = us, old.how = how;
        }
    MUST(cudaFree(partials));
    for (job &one : jobs) drop_job(one);
    char text[256];
    std::snprintf(text, sizeof text, "%-18s %8.2f %-20s %8.2f %-20s %8.2f %-8s %7.1f TFLOP/s %5.2f TB/s x%d", s.name,
                  plain.us, plain.how.c_str(), overlapped.us, overlapped.how.c_str(), old.how.empty() ? 0 : old.us,
                  old.how.c_str(), s.members * j.flop / plain.us * 1e-6, s.members * j.bytes / plain.us * 1e-6, copies);
    summary.push_back(text);
    std::fflush(stdout);
}

int time_all(void *encode, const char *only) {
    std::vector<std::string> summary;
    for (const shape &s : sd15)
        if (std::strstr(s.name, only)) time_shape(s, encode, summary);
    std::printf("# best of each shape, us: wgmma, wgmma with overlap, mma.sync; rates of the first\n");
    for (const std::string &line : summary) std::printf("# %s\n", line.c_str());
    return 0;
}

/* ---- fill and drain */

int fill(void *encode) {
    int n_sm = 0;
    MUST(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    std::printf("# us of a launch in a chain of 40: one tile for each of %d multiprocessors\n", n_sm);
    for (int tile = 0; tile < CU_N_PRODUCT_TILES; tile++)
        for (int overlap = 0; overlap < 2; overlap++) {
            std::printf("%-9s%s", cu_product_tiles[tile].name, overlap ? "+pdl" : "    ");
            for (int steps = 1; steps <= 64; steps *= 2) {
                const shape s = {
                    "fill", 1, 1,    cu_product_tiles[tile].rows * n_sm, 64 * steps, cu_product_tiles[tile].columns, 1,
                    1,      0, false};
                job j = make_job(s, 1, 1);
                j.weight_values = 0; /* the same weights each time */
                std::printf(" %4d: %6.2f", steps, time_wgmma({j}, 40, encode, tile, 1, 0, overlap));
                drop_job(j);
            }
            std::printf("\n");
            std::fflush(stdout);
        }
    return 0;
}

/* ---- among others */

/* The shape of that name, or the end of the program. */
const shape &shape_named(const char *name) {
    for (const shape &s : sd15)
        if (!std::strcmp(s.name, name)) return s;
    std::fprintf(stderr, "linework-gpu-product: no shape is called \"%s\"\n", name);
    std::exit(2);
}

struct launch_of {
    const char *name;
    int tile, splits, pairs;
};

/* What launches cost in turns beside what each costs in a chain of its like: what the launches between have driven out
 * of a multiprocessor's caches, of instructions above all (linework-gpu-micro instructions). */
void time_mix(void *encode, const char *what, const std::vector<launch_of> &of) {
    const int n = static_cast<int>(of.size()), copies = 12;
    std::vector<std::vector<job>> all;
    double apart = 0;
    for (const launch_of &o : of) {
        all.push_back(make_jobs(shape_named(o.name), copies));
        apart += time_wgmma(all.back(), copies, encode, o.tile, o.splits, o.pairs, 1);
    }
    auto turns = [&](int in_a_row) {
        return graph_us([&](cudaStream_t stream) {
                   for (int i = 0; i < copies; i += in_a_row)
                       for (int k = 0; k < n; k++)
                           for (int r = 0; r < in_a_row; r++) {
                               cu_product_args a;
                               set_args(&a, all[k], i + r, of[k].tile, of[k].splits, of[k].pairs);
                               MUST(cu_wgmma(cu_order{stream, 1}, &a, 1, encode));
                           }
               }) /
               copies;
    };
    const double one = turns(1), three = turns(3);
    std::printf("%-32s %2d launches: %7.2f us apart; in turns %5.2f more each, three of a kind in a row %5.2f\n", what,
                n, apart, (one - apart) / n, (three - apart) / n);
    std::fflush(stdout);
    for (auto &jobs : all)
        for (job &j : jobs) drop_job(j);
}

int mix(void *encode) {
    const char *const linears[] = {"lin 3072 320", "lin 768 640",  "lin 192 1280",  "lin 768 qkv",
                                   "lin 48 1280",  "lin 768 2560", "lin 3072 1280", "lin 192 qkv"};
    std::vector<launch_of> one, several;
    for (int i = 0; i < 8; i++) {
        one.push_back({linears[i], 0, 1, 0});
        several.push_back({linears[i], i < 6 ? i : i + 1, 1, 0});
    }
    time_mix(encode, "as a network has them",
             {{"lin 3072 320", 0, 1, 0},
              {"c3 8x12 1280", 7, 8, 0},
              {"lin 768 640", 0, 1, 1},
              {"c3 16x24 640", 4, 4, 1},
              {"geglu 3072", 11, 1, 0},
              {"c3 4x6 1280", 1, 8, 0},
              {"lin 192 1280", 0, 2, 0},
              {"lin 768 qkv", 10, 1, 0},
              {"geglu 192", 7, 1, 0},
              {"c3 32x48 320", 7, 2, 0}});
    time_mix(encode, "linears, tiles of 64x64", one);
    time_mix(encode, "linears, a tile of its own each", several);
    return 0;
}

/* ---- some launches, for a profiler */

int run(void *encode, const char *name, int tile, int splits, int pairs) {
    const int copies = 4;
    const shape &s = shape_named(name);
    std::vector<job> jobs = make_jobs(s, copies);
    for (int i = 0; i < copies; i++) {
        cu_product_args a[2];
        set_args(a, jobs, i, tile, splits, pairs);
        MUST(cu_wgmma(cu_order{nullptr, 0}, a, s.members, encode));
    }
    MUST(cudaDeviceSynchronize());
    for (job &j : jobs) drop_job(j);
    return 0;
}

/* ---- phases */

/* One of each kind; any other by its name. */
const char *const phase_shapes[] = {"c3 4x6 1280",  "c3 8x12 1280",  "c3 16x24 640", "c3 32x48 320", "lin 192 1280",
                                    "lin 192 5120", "geglu 192",     "lin 768 640",  "lin 768 2560", "geglu 768",
                                    "lin 3072 320", "lin 3072 1280", "vae 32x48 512"};

double median(std::vector<double> v) {
    if (v.empty()) return 0;
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
}

/* Of the last of some launches in a graph, each with weights of its own that are in no cache. */
void print_phases(const shape &s, const std::vector<job> &jobs, int copies, void *encode, const cu_choice &c,
                  int overlap) {
    std::vector<block_phases> blocks;
    MUST(phases_read(blocks)); /* forgets what was */
    const double us = graph_us(
                          [&](cudaStream_t stream) {
                              for (int i = 0; i < copies; i++) {
                                  cu_product_args a[2];
                                  set_args(a, jobs, i, c.tile, c.splits, c.pairs);
                                  MUST(phases_wgmma(cu_order{stream, overlap}, a, s.members, encode));
                              }
                          },
                          3) /
                      copies;
    MUST(phases_read(blocks));
    if (blocks.empty()) return;
    unsigned long long first = UINT64_MAX, last = 0, end = 0;
    double cycles = 0, ns = 0;
    for (const block_phases &b : blocks) {
        first = std::min(first, b.began), last = std::max(last, b.began), end = std::max(end, b.ended);
        cycles += static_cast<double>(b.at[PHASE_FINISHED] - b.at[PHASE_BEGIN]);
        ns += static_cast<double>(b.ended - b.began);
    }
    std::printf("%-18s %-9s/%d%c %c %5zu %8.2f %5.2f %6llu %6llu", s.name, cu_product_tiles[c.tile].name, c.splits,
                c.pairs ? 'p' : ' ', overlap ? '+' : ' ', blocks.size(), us, cycles / ns, last - first, end - first);
    for (int p = PHASE_BEGIN + 1; p < N_PHASES; p++) {
        std::vector<double> at;
        for (const block_phases &b : blocks)
            if (b.at[p]) at.push_back(static_cast<double>(b.at[p] - b.at[PHASE_BEGIN]) * ns / cycles);
        if (at.empty()) std::printf(" %10s", "-");
        else std::printf(" %10.0f", median(at));
    }
    std::printf("\n");
    std::fflush(stdout);
}

void phases_of(const shape &s, void *encode) {
    const int copies = std::min(count_copies(s), 12);
    std::vector<job> jobs = make_jobs(s, copies);
    std::vector<cu_choice> choices;
    for (int tile = 0; tile < CU_N_WGMMA_TILES; tile++)
        choices.push_back(cu_product_splits(&cu_h200, &jobs[0].a, s.members, tile));
    std::sort(choices.begin(), choices.end(), [](const cu_choice &a, const cu_choice &b) { return a.us < b.us; });
    for (int i = 0; i < 3; i++)
        for (int overlap = 0; overlap < 2; overlap++) print_phases(s, jobs, copies, encode, choices[i], overlap);
    for (job &j : jobs) drop_job(j);
}

int phases(void *encode, const char *only) {
    std::printf("# us: of a launch in a chain with cold weights (+: launches overlap); the clock. Then ns: ramp: from "
                "the first block's begin to the last's; all: to the last's end; phases: medians over the blocks, from "
                "each one's begin; - where no block comes by\n");
    std::printf("%-18s %-12s %c %5s %8s %5s %6s %6s", "# shape", "tile/splits", ' ', "blocks", "us", "GHz", "ramp",
                "all");
#define X(name, text)                                                                                                  \
    if (PHASE_##name != PHASE_BEGIN) std::printf(" %10s", text);
    PHASES(X)
#undef X
    std::printf("\n");
    for (const shape &s : sd15) {
        bool wanted = *only && std::strstr(s.name, only);
        for (const char *name : phase_shapes) wanted |= !*only && !std::strcmp(s.name, name);
        if (wanted) phases_of(s, encode);
    }
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "";
    bool known = !std::strcmp(what, "run") && argc == 6;
    for (const char *name : {"check", "time", "fill", "mix", "phases"}) known |= !std::strcmp(what, name);
    if (!known) {
        std::fprintf(stderr, "usage: linework-gpu-product check [TILE] | time [TEXT] | fill | mix | phases [TEXT] | "
                             "run SHAPE TILE SPLITS PAIRS\n");
        return 2;
    }
    void *encode = tensor_map_encoder();
    if (!encode) {
        std::fprintf(stderr, "linework-gpu-product: the driver has no cuTensorMapEncodeTiled\n");
        return 1;
    }
    if (!std::strcmp(what, "check")) return check(encode, *text ? std::atoi(text) : -1);
    if (!std::strcmp(what, "phases")) return phases(encode, text);
    if (!std::strcmp(what, "mix")) return mix(encode);
    if (!std::strcmp(what, "run")) return run(encode, text, std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]));
    return !std::strcmp(what, "time") ? time_all(encode, text) : fill(encode);
}
