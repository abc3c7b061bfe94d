/* SPDX-License-Identifier: MIT
 * Hopper's products by themselves, on the simulator: each tile with every number of splits, in pairs and not, one
 * member and two, against sums in double; what lw_check leaves to the model's choice. bench/gpu/product.cu does so on a
 * device. */
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cmath>
#include <cuda_fp16.h>

#include "cuda/kernels.h"
#include "cuda/tiles.h"
#include "simulator.h"

extern "C" {
#include "cuda/model.h"
#include <cmocka.h>
}

namespace {

struct shape {
    int n, h, w, c, o, k, stride, pad; /* of the input; o: of the output */
    bool gated, bias, addend, residual, stats, row_stats;
    int shortcut_a, shortcut_b; /* channels, 0: none */
};

/* Memory of the device whose values are known; freed with the job. */
struct job {
    cu_product_args a = {};
    std::vector<double> want;
    std::vector<void *> owned;
    job() = default;
    job(job &&) = default;
    ~job() {
        for (void *p : owned) cudaFree(p);
    }
};

double number(uint32_t i) { return static_cast<int>(i * 2654435761u >> 19 & 1023) / 512.0 - 1; }

template <typename T> T *filled(job &j, size_t n, double scale, uint32_t seed) {
    void *p = nullptr;
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        static_cast<T *>(p)[i] = static_cast<T>(static_cast<float>(number(static_cast<uint32_t>(i) + seed) * scale));
    j.owned.push_back(p);
    return static_cast<T *>(p);
}

cu_view dense(void *p, int g, int h, int w, int c) {
    const int64_t sh = static_cast<int64_t>(w) * c;
    return {p, 1, g, 1, h, w, c, g == 1 ? 0 : sh * h, 0, sh, c};
}

double half_at(const void *p, int64_t i) {
    return static_cast<double>(__half2float(static_cast<const __half *>(p)[i]));
}

/* Sum of a window, without epilogue. */
double sum_of(const cu_product_args &a, int g, int y, int x, int o) {
    double sum = 0;
    for (int ky = 0; ky < a.kh; ky++)
        for (int kx = 0; kx < a.kw; kx++) {
            const int iy = y * a.stride - a.pad_top + ky, ix = x * a.stride - a.pad_left + kx;
            if (iy < 0 || iy >= a.in.h || ix < 0 || ix >= a.in.w) continue;
            for (int c = 0; c < a.in.c; c++)
                sum += half_at(a.in.p, g * a.in.sg + iy * a.in.sh + ix * a.in.sw + c) *
                       half_at(a.weights, ((static_cast<int64_t>(o) * a.kh + ky) * a.kw + kx) * a.in.c + c);
        }
    for (int c = 0; a.shortcut_weights && c < a.shortcut_a.c + a.shortcut_b.c; c++) {
        const cu_view &v = c < a.shortcut_a.c ? a.shortcut_a : a.shortcut_b;
        sum += half_at(v.p, g * v.sg + y * v.sh + x * v.sw + (c < a.shortcut_a.c ? c : c - a.shortcut_a.c)) *
               half_at(a.shortcut_weights, static_cast<int64_t>(o) * (a.shortcut_a.c + a.shortcut_b.c) + c);
    }
    if (a.shortcut_bias) sum += static_cast<double>(a.shortcut_bias[o]);
    if (a.stats) {
        const int parts = a.in.c / CU_ROW_PART;
        const float *s = a.stats + ((static_cast<int64_t>(g) * a.in.h + y) * a.in.w + x) * parts * 2;
        double mean = 0, squares = 0;
        for (int i = 0; i < parts; i++) mean += static_cast<double>(s[2 * i]) / parts;
        for (int i = 0; i < parts; i++) {
            const double d = static_cast<double>(s[2 * i]) - mean;
            squares += static_cast<double>(s[2 * i + 1]) + CU_ROW_PART * d * d;
        }
        sum /= std::sqrt(squares / a.in.c + static_cast<double>(a.eps));
    }
    if (a.epi.bias) sum += static_cast<double>(a.epi.bias[o]);
    if (a.epi.addend.p) sum += half_at(a.epi.addend.p, g * a.epi.addend.sg + o);
    return sum;
}

job make_job(const shape &s, uint32_t seed) {
    job j;
    cu_product_args &a = j.a;
    const int oh = (s.h + 2 * s.pad - s.k) / s.stride + 1, ow = (s.w + 2 * s.pad - s.k) / s.stride + 1,
              rows = s.gated ? 2 * s.o : s.o;
    const size_t pixels = static_cast<size_t>(s.n) * oh * ow, inputs = static_cast<size_t>(s.n) * s.h * s.w;
    const double scale = 1.7 / std::sqrt(s.k * s.k * s.c);
    a.in = dense(filled<__half>(j, inputs * s.c, 1, seed), s.n, s.h, s.w, s.c);
    a.out = dense(filled<__half>(j, pixels * s.o, 0, 0), s.n, oh, ow, s.o);
    a.weights = filled<__half>(j, static_cast<size_t>(rows) * s.k * s.k * s.c, scale, seed + 1);
    a.n_rows = rows, a.kh = a.kw = s.k, a.stride = s.stride, a.pad_top = a.pad_left = s.pad;
    if (s.bias) a.epi.bias = filled<float>(j, rows, 1, seed + 2);
    if (s.addend)
        a.epi.addend = dense(filled<__half>(j, static_cast<size_t>(s.n) * rows, 1, seed + 3), s.n, 1, 1, rows);
    if (s.residual) a.epi.residual = dense(filled<__half>(j, pixels * s.o, 1, seed + 4), s.n, oh, ow, s.o);
    if (s.gated) a.epi.act = CU_ACT_GEGLU;
    if (s.stats) {
        float *stats = filled<float>(j, inputs * (s.c / CU_ROW_PART) * 2, 1, seed + 5);
        for (size_t i = 1; i < inputs * (s.c / CU_ROW_PART) * 2; i += 2) stats[i] = 64 + 40 * stats[i];
        a.stats = stats, a.eps = 1e-5f;
    }
    if (s.row_stats) a.row_stats = filled<float>(j, pixels * (s.o / CU_ROW_PART) * 2, 0, 0);
    if (s.shortcut_a) {
        a.shortcut_a = dense(filled<__half>(j, pixels * s.shortcut_a, 1, seed + 6), s.n, oh, ow, s.shortcut_a);
        if (s.shortcut_b)
            a.shortcut_b = dense(filled<__half>(j, pixels * s.shortcut_b, 1, seed + 7), s.n, oh, ow, s.shortcut_b);
        a.shortcut_weights =
            filled<__half>(j, static_cast<size_t>(rows) * (s.shortcut_a + s.shortcut_b), scale, seed + 8);
        a.shortcut_bias = filled<float>(j, rows, 1, seed + 9);
    }
    for (int g = 0; g < s.n; g++)
        for (int y = 0; y < oh; y++)
            for (int x = 0; x < ow; x++)
                for (int o = 0; o < s.o; o++) {
                    double v = sum_of(a, g, y, x, o);
                    if (s.gated) {
                        const double gate = sum_of(a, g, y, x, s.o + o);
                        v *= 0.5 * gate * (1 + std::erf(gate * std::sqrt(0.5)));
                    }
                    if (s.residual)
                        v += half_at(a.epi.residual.p,
                                     g * a.epi.residual.sg + y * a.epi.residual.sh + x * a.epi.residual.sw + o);
                    j.want.push_back(v);
                }
    return j;
}

void check_values(const job &j, const char *variant) {
    for (size_t i = 0; i < j.want.size(); i++)
        if (!(std::fabs(half_at(j.a.out.p, static_cast<int64_t>(i)) - j.want[i]) <= 0.02 * (1 + std::fabs(j.want[i]))))
            fail_msg("%s: value %zu is %g and not %g", variant, i, half_at(j.a.out.p, static_cast<int64_t>(i)),
                     j.want[i]);
    for (size_t part = 0; j.a.row_stats && part < j.want.size() / CU_ROW_PART; part++) {
        double mean = 0, squares = 0;
        for (int i = 0; i < CU_ROW_PART; i++) mean += j.want[part * CU_ROW_PART + i] / CU_ROW_PART;
        for (int i = 0; i < CU_ROW_PART; i++)
            squares += (j.want[part * CU_ROW_PART + i] - mean) * (j.want[part * CU_ROW_PART + i] - mean);
        const double m = static_cast<double>(j.a.row_stats[2 * part]),
                     s = static_cast<double>(j.a.row_stats[2 * part + 1]);
        if (!(std::fabs(m - mean) <= 2e-3 * (1 + std::fabs(mean)) && std::fabs(s - squares) <= 1e-2 * (1 + squares)))
            fail_msg("%s: statistics of part %zu are %g, %g and not %g, %g", variant, part, m, s, mean, squares);
    }
}

/* All ways of a shape; some twice, for what comes in another order gives the same bits. */
void check_shape(const shape &s) {
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    job jobs[2] = {make_job(s, 1), make_job(s, 1000)};
    const size_t bytes = jobs[0].want.size() * sizeof(__half);
    int n = 0, n_pairs = 0;
    for (int tile = 0; tile < CU_N_PRODUCT_TILES; tile++) {
        const bool stays = tile >= CU_N_WGMMA_TILES;
        cu_tiling t;
        if ((stays && !cu_turns_fit(&jobs[0].a)) || (s.row_stats && cu_product_tiles[tile].columns % CU_ROW_PART))
            continue;
        cu_wgmma_tiling(&t, &jobs[0].a, cu_product_tiles[tile].rows);
        for (int splits = 1; splits <= (stays || s.gated ? 1 : static_cast<int>(CU_WGMMA_MAX_SPLITS)); splits *= 2)
            for (int pairs = 0; pairs <= (!stays && cu_can_pair(&t, splits)); pairs++, n++) {
                const int members = 1 + (n + tile) % 2;
                char variant[64];
                snprintf(variant, sizeof variant, "tile %s, %d splits%s, %d members", cu_product_tiles[tile].name,
                         splits, pairs ? ", pairs" : "", members);
                cu_product_args args[2] = {jobs[0].a, jobs[1].a};
                std::vector<char> first(bytes);
                n_pairs += pairs;
                args[0].tile = tile, args[0].splits = splits, args[0].pairs = pairs != 0;
                for (int again = 0; again <= (n % 3 == 0); again++) {
                    for (const job &j : jobs) memset(j.a.out.p, 0xff, bytes);
                    cudaError_t e = cu_wgmma({stream, 1}, args, members, reinterpret_cast<void *>(sim::encode_map));
                    if (e == cudaSuccess) e = cudaStreamSynchronize(stream);
                    if (e != cudaSuccess) fail_msg("%s: %s", variant, sim::last_mistake());
                    for (int m = 0; m < members; m++) check_values(jobs[m], variant);
                    if (again && memcmp(first.data(), jobs[0].a.out.p, bytes))
                        fail_msg("%s: other bits the second time", variant);
                    memcpy(first.data(), jobs[0].a.out.p, bytes);
                }
            }
    }
    print_message("%d ways, %d in pairs\n", n, n_pairs);
    assert_true(n >= 10);
    cudaStreamDestroy(stream);
}

void patches(void **) { check_shape({2, 16, 8, 136, 72, 3, 1, 1, false, true, true, false, false, false, 0, 0}); }
void windows(void **) { check_shape({1, 5, 33, 72, 40, 3, 1, 1, false, true, false, true, false, false, 0, 0}); }
void strides(void **) { check_shape({2, 16, 16, 72, 64, 3, 2, 1, false, false, true, false, false, true, 0, 0}); }
void matrices(void **) { check_shape({1, 1, 256, 600, 64, 1, 1, 0, false, true, false, true, false, false, 0, 0}); }
void gates(void **) { check_shape({1, 1, 200, 200, 104, 1, 1, 0, true, true, false, false, false, false, 0, 0}); }
void norms(void **) { check_shape({1, 1, 150, 320, 136, 1, 1, 0, false, true, false, false, true, false, 0, 0}); }
void normed_gates(void **) { check_shape({1, 1, 130, 128, 72, 1, 1, 0, true, true, false, false, true, false, 0, 0}); }
void statistics(void **) { check_shape({1, 1, 150, 200, 192, 1, 1, 0, false, true, false, true, false, true, 0, 0}); }
void shortcuts(void **) { check_shape({2, 8, 8, 72, 64, 3, 1, 1, false, true, false, false, false, false, 136, 40}); }

} // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(patches),      cmocka_unit_test(windows),    cmocka_unit_test(strides),
        cmocka_unit_test(matrices),     cmocka_unit_test(gates),      cmocka_unit_test(norms),
        cmocka_unit_test(normed_gates), cmocka_unit_test(statistics), cmocka_unit_test(shortcuts)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
