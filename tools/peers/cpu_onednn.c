/* SPDX-License-Identifier: MIT
 * oneDNN's own best time for each product of a list: what an engine that calls it, and does nothing else, would take.
 * fp32, direct algorithms, its own threading; weights packed as it likes, and as many copies of them in turn as push
 * each other out of the caches; activations channels last.
 *
 * usage: cpu_onednn SECONDS [processor-time] < shapes    (OMP_NUM_THREADS set)
 * in:    conv COUNT BATCH IN HEIGHT WIDTH OUT KERNEL STRIDE   or   product COUNT BATCH ROWS DEPTH COLUMNS TRANSPOSED
 * out:   the same line, then milliseconds of one and the implementation's name
 * build: cc -O2 -fopenmp -w cpu_onednn.c -ldnnl    (2.6 or 2.7; its header makes gcc warn of over-reading) */
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_COPIES = 32, COLD_BYTES = 96 << 20 };

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static void must(dnnl_status_t s, const char *what) {
    if (s == dnnl_success) return;
    fprintf(stderr, "cpu_onednn: %s: status %d\n", what, (int)s);
    exit(1);
}

static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static dnnl_memory_t memory(const dnnl_memory_desc_t *md) {
    size_t bytes = dnnl_memory_desc_get_size(md);
    float *data = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    dnnl_memory_t m;
    if (!data) must(dnnl_out_of_memory, "memory");
    for (size_t i = 0; i < bytes / sizeof *data; i++) data[i] = (float)(i % 17) * 0.1f - 0.8f;
    must(dnnl_memory_create(&m, md, engine, data), "memory");
    return m;
}

static void drop(dnnl_memory_t m) {
    void *data;
    dnnl_memory_get_data_handle(m, &data);
    dnnl_memory_destroy(m);
    free(data);
}

static double best_ms(dnnl_primitive_desc_t pd, double seconds, const char **name) {
    dnnl_primitive_t primitive;
    dnnl_memory_t weights[MOST_COPIES], src = memory(dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0)),
                                        dst = memory(dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0));
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    int n = (int)(COLD_BYTES / (dnnl_memory_desc_get_size(md) + 1)) + 1;
    if (n > MOST_COPIES) n = MOST_COPIES;
    for (int i = 0; i < n; i++) weights[i] = memory(md);
    must(dnnl_primitive_create(&primitive, pd), "primitive");
    must(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, name), "name");
    double best = 1e30, begin = now_ms();
    for (int i = 0; i < 5 || now_ms() - begin < seconds * 1e3; i++) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, src}, {DNNL_ARG_WEIGHTS, weights[i % n]}, {DNNL_ARG_DST, dst}};
        double from = now_ms();
        must(dnnl_primitive_execute(primitive, stream, 3, args), "run");
        must(dnnl_stream_wait(stream), "run");
        double ms = now_ms() - from;
        if (i > 1 && ms < best) best = ms;
    }
    for (int i = 0; i < n; i++) drop(weights[i]);
    drop(src), drop(dst);
    dnnl_primitive_destroy(primitive);
    return best;
}

static dnnl_primitive_desc_t convolution(const long long v[7]) {
    dnnl_dim_t pad = v[5] / 2, down = v[6];
    dnnl_dims_t in = {v[0], v[1], v[2], v[3]}, window = {v[4], v[1], v[5], v[5]},
                out = {v[0], v[4], (v[2] + down - 1) / down, (v[3] + down - 1) / down}, strides = {down, down},
                before = {pad, pad},
                after = {(out[2] - 1) * down + v[5] - pad - v[2], (out[3] - 1) * down + v[5] - pad - v[3]};
    dnnl_memory_desc_t src, weights, dst;
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t pd;
    must(dnnl_memory_desc_init_by_tag(&src, 4, in, dnnl_f32, dnnl_nhwc), "src");
    must(dnnl_memory_desc_init_by_tag(&weights, 4, window, dnnl_f32, dnnl_format_tag_any), "weights");
    must(dnnl_memory_desc_init_by_tag(&dst, 4, out, dnnl_f32, dnnl_nhwc), "dst");
    must(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src, &weights, NULL,
                                            &dst, strides, before, after),
         "convolution");
    must(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL), "convolution");
    return pd;
}

static dnnl_primitive_desc_t product(const long long v[5]) {
    int batched = v[0] > 1;
    dnnl_dims_t a = {v[0], v[1], v[2]}, b = {v[0], v[2], v[3]}, c = {v[0], v[1], v[3]};
    dnnl_memory_desc_t src, weights, dst;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_format_tag_t rows = batched ? dnnl_abc : dnnl_ab;
    int skip = batched ? 0 : 1, rank = batched ? 3 : 2;
    must(dnnl_memory_desc_init_by_tag(&src, rank, a + skip, dnnl_f32, rows), "src");
    must(dnnl_memory_desc_init_by_tag(&weights, rank, b + skip, dnnl_f32,
                                      !batched ? dnnl_format_tag_any
                                      : v[4]   ? dnnl_acb
                                               : dnnl_abc),
         "weights");
    must(dnnl_memory_desc_init_by_tag(&dst, rank, c + skip, dnnl_f32, rows), "dst");
    must(dnnl_matmul_desc_init(&desc, &src, &weights, NULL, &dst), "product");
    must(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL), "product");
    return pd;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0.2;
    char line[256], kind[16];
    if (argc > 2) clock_id = CLOCK_PROCESS_CPUTIME_ID;
    must(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
    must(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
    while (fgets(line, sizeof line, stdin)) {
        long long count, v[7];
        const char *name;
        line[strcspn(line, "\n")] = 0;
        int n = sscanf(line, "%15s %lld %lld %lld %lld %lld %lld %lld %lld", kind, &count, v, v + 1, v + 2, v + 3, v + 4,
                       v + 5, v + 6);
        dnnl_primitive_desc_t pd = NULL;
        if (n == 9 && !strcmp(kind, "conv")) pd = convolution(v);
        else if (n == 7 && !strcmp(kind, "product")) pd = product(v);
        else must(dnnl_invalid_arguments, line);
        double ms = best_ms(pd, seconds, &name);
        printf("%s %.4f %s\n", line, ms, name);
        fflush(stdout);
        dnnl_primitive_desc_destroy(pd);
    }
    return 0;
}
