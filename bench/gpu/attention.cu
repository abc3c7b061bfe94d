/* SPDX-License-Identifier: MIT
 * linework-gpu-attention: the attention of SD1.5's step at 256x384 pixels by the Hopper kernel and by mma.sync: whether
 * they agree, and microseconds a call in a chain of 40 of one graph, with launches that overlap and without. Queries
 * are those of one or two guidance passes, or the same for both; keys and values are slices of wider rows, as in the
 * network. */
#include "gpu/gpu.cuh"

#include "cuda/kernels.h"

namespace {

struct shape {
    int g, queries, keys, heads, d;
    bool same_queries;
    int count; /* in a step */
};

const shape shapes[] = {
    {2, 1536, 1536, 8, 40, false, 5}, {1, 1536, 1536, 8, 40, false, 2}, {2, 384, 384, 8, 80, false, 7},
    {2, 96, 96, 8, 160, false, 7},    {2, 24, 24, 8, 160, false, 2},    {2, 1536, 77, 8, 40, false, 5},
    {2, 1536, 77, 8, 40, true, 2},    {2, 384, 77, 8, 80, false, 7},    {2, 96, 77, 8, 160, false, 7},
    {2, 24, 77, 8, 160, false, 2},
};

enum { CHAIN = 40, ONE_GROUP = 1 << 20 };

cu_view view(__half *p, int g, int rows, int c, int stride, bool same) {
    cu_view v = {};
    v.p = p;
    v.half = 1;
    v.g = g, v.n = 1, v.h = 1, v.w = rows, v.c = c;
    v.sw = stride, v.sh = static_cast<int64_t>(stride) * rows, v.sg = g == 1 || same ? 0 : v.sh;
    return v;
}

std::vector<__half> read(const __half *p, size_t n) {
    std::vector<__half> values(n);
    MUST(cudaDeviceSynchronize());
    MUST(cudaMemcpy(values.data(), p, n * sizeof(__half), cudaMemcpyDeviceToHost));
    return values;
}

/* The largest difference beside the largest value. */
double difference(const std::vector<__half> &a, const std::vector<__half> &b) {
    double most = 0, largest = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double x = __half2float(a[i]), y = __half2float(b[i]), d = std::fabs(x - y);
        if (!(d <= most)) most = d; /* NaN, too */
        largest = std::max(largest, std::fabs(y));
    }
    return most / largest;
}

/* False: the two kernels do not agree. */
bool time_shape(const shape &s, void *encode, int n_sm) {
    const int c = s.heads * s.d;
    const size_t n_out = static_cast<size_t>(s.g) * s.queries * c;
    __half *q = new_halfs(3 * n_out, 2, 1), *kv = new_halfs(static_cast<size_t>(s.g) * s.keys * 3 * c, 2, 2),
           *out = new_halfs(n_out, 1, 3);
    const bool self = s.queries == s.keys;
    cu_attention_args a = {};
    a.q = view(q, s.g, s.queries, c, self ? 3 * c : c, s.same_queries);
    a.k = view(kv, s.g, s.keys, c, 3 * c, false);
    a.v = view(kv + c, s.g, s.keys, c, 3 * c, false);
    a.out = view(out, s.g, s.queries, c, c, false);
    a.heads = s.heads;
    a.scale = 1 / std::sqrt(static_cast<float>(s.d));
    const cu_order order = {};
    MUST(cu_attention(order, &a));
    const std::vector<__half> want = read(out, n_out);
    double worst = 0, us[6];
    int at = 0;
    for (int which = 0; which < 3; which++) { /* mma.sync; Hopper's; Hopper's with one group a block */
        if (which) {
            MUST(cudaMemset(out, 0xff, n_out * sizeof(__half)));
            MUST(cu_wgmma_attention(order, &a, 1, which == 1 ? n_sm : ONE_GROUP, encode));
            const double d = difference(read(out, n_out), want);
            if (!(d <= worst)) worst = d;
        }
        for (int overlap = 0; overlap < 2; overlap++)
            us[at++] = graph_us([&](cudaStream_t stream) {
                           const cu_order chained = {stream, overlap};
                           for (int i = 0; i < CHAIN; i++)
                               MUST(which ? cu_wgmma_attention(chained, &a, 1, which == 1 ? n_sm : ONE_GROUP, encode)
                                          : cu_attention(chained, &a));
                       }) /
                       CHAIN;
    }
    char name[64];
    std::snprintf(name, sizeof name, "%dx%d q%d k%d d%d%s", s.g, s.heads, s.queries, s.keys, s.d,
                  s.same_queries ? " q~g" : "");
    std::printf(
        "%-24s x%d  mma %6.2f %6.2f   wgmma %6.2f %6.2f   one group %6.2f %6.2f   %5.0f TFLOP/s  differs %.1e%s\n",
        name, s.count, us[0], us[1], us[2], us[3], us[4], us[5],
        4e-6 * s.g * s.heads * s.queries * s.keys * s.d / us[2], worst, worst < 4e-3 ? "" : "  WRONG");
    std::fflush(stdout);
    MUST(cudaFree(q));
    MUST(cudaFree(kv));
    MUST(cudaFree(out));
    return worst < 4e-3;
}

} // namespace

int main() {
    int n_sm = 0, major = 0;
    void *encode = tensor_map_encoder();
    MUST(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major != 9 || !encode) {
        std::fprintf(stderr, "linework-gpu-attention: a device of compute capability 9.0 is needed\n");
        return 1;
    }
    std::printf("# us a call of 40 in a graph, then with launches that overlap; times a step\n");
    bool right = true;
    for (const shape &s : shapes) right = time_shape(s, encode, n_sm) && right;
    return right ? 0 : 1;
}
