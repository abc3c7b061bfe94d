/* SPDX-License-Identifier: MIT
 * linework-gpu-norm: SD1.5's group norms in each layout, and its layer norms: whether they are right, and microseconds
 * a launch in a chain of 40 of one graph, apart and with launches that overlap. Each launch reads what the one before
 * has written, so its input is in the second-level cache, as in the network. Then a GEGLU as a pass of its own. Exit
 * status 1: a result is wrong. */
#include "gpu/gpu.cuh"

#include <string>
#include <thread>

#include "cuda/kernels.h"

namespace {

enum { CHAIN = 40, TURNS = 5 };

/* c2: channels of a second tensor that the first is concatenated with; groups 0: a layer norm */
struct shape {
    int members, pictures, h, w, c, c2, groups;
};

const shape shapes[] = {
    /* 512x512 */
    {2, 2, 64, 64, 320, 0, 32},
    {2, 1, 64, 64, 320, 0, 32},
    {1, 1, 64, 64, 320, 0, 32},
    {2, 1, 32, 32, 640, 0, 32},
    {2, 1, 16, 16, 1280, 0, 32},
    {2, 1, 8, 8, 1280, 0, 32},
    {1, 2, 64, 64, 320, 320, 32},
    {1, 2, 64, 64, 640, 320, 32},
    {1, 2, 16, 16, 1280, 1280, 32},
    /* eight samples of 256x384 */
    {1, 16, 48, 32, 320, 0, 32},
    {1, 16, 24, 16, 640, 0, 32},
    {1, 16, 12, 8, 1280, 0, 32},
    {1, 16, 6, 4, 1280, 0, 32},
    {1, 16, 48, 32, 320, 320, 32},
    /* one of 256x384 */
    {2, 1, 48, 32, 320, 0, 32},
    {1, 2, 48, 32, 320, 0, 32},
    {2, 1, 24, 16, 640, 0, 32},
    {2, 1, 12, 8, 1280, 0, 32},
    {2, 1, 6, 4, 1280, 0, 32},
    {1, 2, 24, 16, 640, 640, 32},
    /* layer norms: two networks of 512x512 and of one, eight samples, one sample */
    {2, 2, 1, 4096, 320, 0, 0},
    {1, 2, 1, 4096, 320, 0, 0},
    {2, 2, 1, 1024, 640, 0, 0},
    {1, 2, 1, 1024, 640, 0, 0},
    {2, 2, 1, 256, 1280, 0, 0},
    {1, 2, 1, 256, 1280, 0, 0},
    {1, 16, 1, 1536, 320, 0, 0},
    {1, 16, 1, 384, 640, 0, 0},
    {1, 16, 1, 96, 1280, 0, 0},
    {2, 2, 1, 1536, 320, 0, 0},
    {2, 2, 1, 384, 640, 0, 0},
    {2, 2, 1, 96, 1280, 0, 0},
};

struct buffers {
    __half *a, *b, *out, *other; /* other: of a chain's turns */
    float *gamma, *beta, *want;  /* of all members */
    size_t n;                    /* values of the output */
};

cu_view view(__half *p, const shape &s, int c) {
    cu_view v = {};
    v.p = p;
    v.half = 1;
    v.g = 1, v.n = s.pictures, v.h = s.h, v.w = s.w, v.c = c;
    v.sw = c, v.sh = v.sw * s.w, v.sn = v.sg = v.sh * s.h;
    return v;
}

/* turn < 0: from the inputs; else from out to other, and back. The second tensor stays the input. */
void fill(const shape &s, const buffers &b, int turn, cu_apply_args args[CU_MAX_MEMBERS]) {
    const int c = s.c + s.c2;
    const size_t rows = static_cast<size_t>(s.pictures) * s.h * s.w;
    for (int m = 0; m < s.members; m++) {
        cu_apply_args &x = args[m];
        x = {};
        __half *from = (turn & 1 ? b.other : b.out) + m * rows * c, *to = (turn & 1 ? b.out : b.other) + m * rows * c;
        if (turn < 0) from = b.a + m * rows * s.c, to = b.out + m * rows * c;
        x.a = view(from, s, s.c);
        if (s.c2) x.b = view(b.b + m * rows * s.c2, s, s.c2);
        x.out = view(to, s, c);
        x.norm = s.groups ? CU_NORM_GROUP : CU_NORM_LAYER;
        x.act = s.groups ? CU_ACT_SILU : CU_ACT_NONE;
        x.groups = s.groups;
        x.eps = 1e-5f;
        x.gamma = b.gamma + m * c, x.beta = b.beta + m * c;
    }
}

/* ---- what is right, in double precision */

void norm_on_host(const shape &s, int unit, const __half *a, const __half *b, const float *gamma, const float *beta,
                  float *want) {
    const int c = s.c + s.c2, rows = s.h * s.w;
    auto value = [&](size_t row, int i) -> double {
        return __half2float(i < s.c ? a[row * s.c + i] : b[row * s.c2 + i - s.c]);
    };
    const int first = s.groups ? 0 : unit, last = s.groups ? rows : unit + 1, parts = s.groups ? s.groups : 1,
              per = c / parts;
    for (int k = 0; k < parts; k++) {
        double mean = 0, m2 = 0;
        for (int r = first; r < last; r++)
            for (int i = k * per; i < (k + 1) * per; i++) {
                const size_t row = s.groups ? static_cast<size_t>(unit) * rows + r : r;
                mean += value(row, i);
            }
        const double count = static_cast<double>(last - first) * per;
        mean /= count;
        for (int r = first; r < last; r++)
            for (int i = k * per; i < (k + 1) * per; i++) {
                const size_t row = s.groups ? static_cast<size_t>(unit) * rows + r : r;
                m2 += (value(row, i) - mean) * (value(row, i) - mean);
            }
        const double scale = 1 / std::sqrt(m2 / count + 1e-5);
        for (int r = first; r < last; r++)
            for (int i = k * per; i < (k + 1) * per; i++) {
                const size_t row = s.groups ? static_cast<size_t>(unit) * rows + r : r;
                const double y = (value(row, i) - mean) * scale * gamma[i] + beta[i];
                want[row * c + i] = static_cast<float>(s.groups ? y / (1 + std::exp(-y)) : y);
            }
    }
}

void make_wanted(const shape &s, const buffers &b) {
    const int c = s.c + s.c2;
    const size_t rows = static_cast<size_t>(s.pictures) * s.h * s.w, all = rows * s.members;
    std::vector<__half> a(all * s.c), second(all * s.c2 + 1);
    std::vector<float> gamma(s.members * c), beta(s.members * c), want(b.n);
    MUST(cudaMemcpy(a.data(), b.a, all * s.c * sizeof(__half), cudaMemcpyDeviceToHost));
    if (s.c2) MUST(cudaMemcpy(second.data(), b.b, all * s.c2 * sizeof(__half), cudaMemcpyDeviceToHost));
    for (int i = 0; i < s.members * c; i++) {
        gamma[i] = 1 + 0.25f * static_cast<float>(i * 37 % 101 - 50) / 50;
        beta[i] = 0.5f * static_cast<float>(i * 53 % 97 - 48) / 48;
    }
    MUST(cudaMemcpy(b.gamma, gamma.data(), gamma.size() * sizeof(float), cudaMemcpyHostToDevice));
    MUST(cudaMemcpy(b.beta, beta.data(), beta.size() * sizeof(float), cudaMemcpyHostToDevice));
    const int units = s.groups ? s.pictures : static_cast<int>(rows), n_threads = 8;
    std::vector<std::thread> threads;
    for (int t = 0; t < n_threads; t++)
        threads.emplace_back([&, t] {
            for (int i = t; i < units * s.members; i += n_threads) {
                const int m = i / units;
                norm_on_host(s, i % units, a.data() + m * rows * s.c, second.data() + m * rows * s.c2,
                             gamma.data() + m * c, beta.data() + m * c, want.data() + m * rows * c);
            }
        });
    for (std::thread &t : threads) t.join();
    MUST(cudaMemcpy(b.want, want.data(), b.n * sizeof(float), cudaMemcpyHostToDevice));
}

/* The largest |y - want| / (1 + |want|) as bits of a float, which are in order; NaN is above all. */
__global__ void compare(const __half *y, const float *want, size_t n, int *worst) {
    int most = 0;
    for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
         i += static_cast<size_t>(gridDim.x) * blockDim.x)
        most = max(most, __float_as_int(fabsf(__half2float(y[i]) - want[i]) / (1 + fabsf(want[i]))));
    atomicMax(worst, most);
}

float worst_of(const buffers &b) {
    static int *worst = nullptr;
    float value = 0;
    if (!worst) MUST(cudaMalloc(&worst, sizeof(int)));
    MUST(cudaMemset(worst, 0, sizeof(int)));
    compare<<<528, 256>>>(b.out, b.want, b.n, worst);
    MUST(cudaGetLastError());
    MUST(cudaMemcpy(&value, worst, sizeof value, cudaMemcpyDeviceToHost));
    return value;
}

/* ---- one layout */

struct result {
    bool ran, right;
    float worst;
    double us[2]; /* apart, overlapping */
    std::string name;
};

template <typename F> result try_layout(const shape &s, const buffers &b, const char *name, F launch) {
    result r = {false, false, 0, {1e9, 1e9}, name};
    cu_apply_args args[CU_MAX_MEMBERS];
    MUST(cudaMemset(b.out, 0xff, b.n * sizeof(__half)));
    fill(s, b, -1, args);
    if (launch(cu_order{}, args) != cudaSuccess) { /* no such layout */
        (void)cudaGetLastError();
        return r;
    }
    r.ran = true;
    MUST(cudaDeviceSynchronize());
    r.worst = worst_of(b);
    r.right = r.worst < 1e-3f;
    if (!r.right) return r;
    for (int overlap = 0; overlap < 2; overlap++)
        r.us[overlap] = graph_us(
                            [&](cudaStream_t stream) {
                                for (int i = 0; i < CHAIN; i++) {
                                    fill(s, b, i, args);
                                    if (s.c2) args->a = view(b.a, s, s.c); /* outputs are wider than inputs */
                                    MUST(launch(cu_order{stream, overlap}, args));
                                }
                            },
                            TURNS) /
                        CHAIN;
    return r;
}

void print(const char *what, const result &r, double bytes) {
    if (!r.ran) return;
    std::printf("  %-8s %-16s %7.2f %7.2f us  %5.0f GB/s  off %.1e%s\n", what, r.name.c_str(), r.us[0], r.us[1],
                bytes / r.us[0] * 1e-3, r.worst, r.right ? "" : "  WRONG");
}

/* Both orders of merit: apart, and overlapping. */
void print_best(std::vector<result> &all, double bytes) {
    for (int overlap = 0; overlap < 2; overlap++) {
        std::sort(all.begin(), all.end(),
                  [&](const result &x, const result &y) { return x.us[overlap] < y.us[overlap]; });
        for (size_t i = 0; i < all.size() && i < 3; i++) print(i ? "" : overlap ? "overlap" : "apart", all[i], bytes);
    }
}

bool time_group(const shape &s, const buffers &b, double bytes) {
    cu_apply_args args[CU_MAX_MEMBERS];
    cu_group_norm_layout chosen;
    fill(s, b, -1, args);
    if (!cu_group_norm_lay_out(args, s.members, &chosen)) {
        std::printf("  is left to two launches (norm.cu)\n");
        return true;
    }
    const int n_vec = (s.c + s.c2) / 8, per = (s.c + s.c2) / s.groups, rows = s.h * s.w;
    int unit = 1;
    while (unit * 8 % per) unit++;
    auto try_one = [&](const cu_group_norm_layout &l) {
        char name[48];
        std::snprintf(name, sizeof name, "s%d /%d t%d", l.slab, l.splits, l.threads);
        return try_layout(s, b, name, [&](cu_order order, const cu_apply_args *x) {
            return cu_group_norm_with(order, x, s.members, &l);
        });
    };
    const result now = try_one(chosen);
    std::vector<result> all;
    bool right = now.ran && now.right;
    print("default", now, bytes);
    for (int slab = unit; slab <= 4 * unit && slab <= 40; slab *= 2)
        for (int splits = 1; splits <= 8; splits *= 2) {
            const int n = s.members * s.pictures * (n_vec / slab) * splits;
            if (n_vec % slab || n < 16 || n > 2048) continue;
            if (16.0 * rows * slab / splits < 1024 && splits > 1) continue;
            for (int threads = 256; threads <= 512; threads *= 2) {
                const result r = try_one({slab, splits, threads});
                if (!r.ran) continue;
                if (!r.right) print("", r, bytes);
                right = right && r.right;
                all.push_back(r);
            }
        }
    print_best(all, bytes);
    return right;
}

bool time_layer(const shape &s, const buffers &b, double bytes) {
    cu_apply_args args[CU_MAX_MEMBERS];
    fill(s, b, -1, args);
    const result now = try_layout(
        s, b, "default", [&](cu_order order, const cu_apply_args *x) { return cu_apply(order, x, s.members); });
    print("default", now, bytes);
    return now.ran && now.right;
}

bool time_shape(const shape &s) {
    const size_t rows = static_cast<size_t>(s.members) * s.pictures * s.h * s.w, c = s.c + s.c2;
    buffers b = {};
    b.n = rows * c;
    b.a = new_halfs(rows * s.c, 3, 1);
    if (s.c2) b.b = new_halfs(rows * s.c2, 2, 2);
    b.out = new_halfs(b.n, 3, 3);
    b.other = new_halfs(b.n, 3, 4);
    MUST(cudaMalloc(&b.gamma, s.members * c * sizeof(float)));
    MUST(cudaMalloc(&b.beta, s.members * c * sizeof(float)));
    MUST(cudaMalloc(&b.want, b.n * sizeof(float)));
    make_wanted(s, b);
    std::printf("%s %d member%s of %dx%dx%dx%d", s.groups ? "group" : "layer", s.members, s.members > 1 ? "s" : "",
                s.pictures, s.h, s.w, s.c);
    std::printf(s.c2 ? "+%d\n" : "\n", s.c2);
    const double bytes = 4.0 * static_cast<double>(b.n);
    const bool right = s.groups ? time_group(s, b, bytes) : time_layer(s, b, bytes);
    std::fflush(stdout);
    for (void *p :
         {static_cast<void *>(b.a), static_cast<void *>(b.b), static_cast<void *>(b.out), static_cast<void *>(b.other),
          static_cast<void *>(b.gamma), static_cast<void *>(b.beta), static_cast<void *>(b.want)})
        MUST(cudaFree(p));
    return right;
}

/* The halves of a GEGLU as a pass of its own, at eight samples. */
bool time_geglu() {
    const int n = 16, rows = 1536, c = 1280, checked = 64; /* rows that are held against the host */
    const size_t n_out = static_cast<size_t>(n) * rows * c;
    __half *in = new_halfs(2 * n_out, 6, 5), *out = new_halfs(n_out, 1, 6);
    cu_combine_args a = {};
    const shape s = {1, n, 1, rows, c, 0, 0};
    a.in = view(in, s, 2 * c);
    a.out = view(out, s, c);
    a.splits = 1;
    a.epi.act = CU_ACT_GEGLU;
    MUST(cu_combine(cu_order{}, &a));
    std::vector<__half> x(static_cast<size_t>(checked) * 2 * c), y(static_cast<size_t>(checked) * c);
    MUST(cudaMemcpy(x.data(), in, x.size() * sizeof(__half), cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(y.data(), out, y.size() * sizeof(__half), cudaMemcpyDeviceToHost));
    double worst = 0;
    for (int r = 0; r < checked; r++)
        for (int i = 0; i < c; i++) {
            const double v = __half2float(x[r * 2 * c + i]), gate = __half2float(x[r * 2 * c + c + i]),
                         want = v * 0.5 * gate * (1 + std::erf(gate * 0.70710678118654752)),
                         d = std::fabs(__half2float(y[r * c + i]) - want) / (1 + std::fabs(want));
            if (!(d <= worst)) worst = d;
        }
    const double us = graph_us(
                          [&](cudaStream_t stream) {
                              for (int i = 0; i < CHAIN; i++) MUST(cu_combine(cu_order{stream, 0}, &a));
                          },
                          TURNS) /
                      CHAIN;
    std::printf("GEGLU of %dx%dx%d: %.2f us, %.0f GB/s  off %.1e%s\n", n, rows, 2 * c, us, 6e-3 * n_out / us, worst,
                worst < 1e-3 ? "" : "  WRONG");
    MUST(cudaFree(in));
    MUST(cudaFree(out));
    return worst < 1e-3;
}

} // namespace

int main() {
    int major = 0;
    MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 9) {
        std::fprintf(stderr, "linework-gpu-norm: a device of compute capability 9.0 is needed\n");
        return 1;
    }
    std::printf(
        "# us a launch of 40 in a graph, then with launches that overlap; GB/s apart, read and written. s: vectors "
        "of a slab; /: blocks that share its rows; t: threads; r: rows of a lane\n");
    bool right = true;
    for (const shape &s : shapes) right = time_shape(s) && right;
    right = time_geglu() && right;
    std::printf(right ? "all right\n" : "WRONG results\n");
    return right ? 0 : 1;
}
