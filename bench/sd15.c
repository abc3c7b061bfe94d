/* SPDX-License-Identifier: MIT
 * A model of SD1.5's shape out of nothing: the names and sizes of its tensors, written as a safetensors header. */
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct writer {
    FILE *out; /* the JSON */
    int64_t at;
    const char *prefix;
    int n;
} writer;

static void tensor(writer *w, const char *name, const char *suffix, const int64_t *dims, int rank) {
    int64_t bytes = 2;
    fprintf(w->out, "%s\"%s%s%s\":{\"dtype\":\"F16\",\"shape\":[", w->n++ ? "," : "", w->prefix, name, suffix);
    for (int i = 0; i < rank; i++) {
        fprintf(w->out, "%s%lld", i ? "," : "", (long long)dims[i]);
        bytes *= dims[i];
    }
    fprintf(w->out, "],\"data_offsets\":[%lld,%lld]}", (long long)w->at, (long long)(w->at + bytes));
    w->at += bytes;
}

typedef struct name {
    char text[128];
} name;

static name named(const char *format, ...) __attribute__((format(printf, 1, 2)));
static name named(const char *format, ...) {
    name n;
    va_list args;
    va_start(args, format);
    vsnprintf(n.text, sizeof n.text, format, args);
    va_end(args);
    return n;
}

static void conv(writer *w, name n, int64_t o, int64_t i, int64_t k) {
    tensor(w, n.text, ".weight", (int64_t[]){o, i, k, k}, 4);
    tensor(w, n.text, ".bias", &o, 1);
}

static void linear(writer *w, name n, int64_t o, int64_t i, bool bias) {
    tensor(w, n.text, ".weight", (int64_t[]){o, i}, 2);
    if (bias) tensor(w, n.text, ".bias", &o, 1);
}

static void norm(writer *w, name n, int64_t c) {
    tensor(w, n.text, ".weight", &c, 1);
    tensor(w, n.text, ".bias", &c, 1);
}

static void res_block(writer *w, const char *at, int64_t c_in, int64_t c) {
    norm(w, named("%s.in_layers.0", at), c_in);
    conv(w, named("%s.in_layers.2", at), c, c_in, 3);
    linear(w, named("%s.emb_layers.1", at), c, 1280, true);
    norm(w, named("%s.out_layers.0", at), c);
    conv(w, named("%s.out_layers.3", at), c, c, 3);
    if (c_in != c) conv(w, named("%s.skip_connection", at), c, c_in, 1);
}

static void transformer(writer *w, const char *at, int64_t c) {
    norm(w, named("%s.norm", at), c);
    conv(w, named("%s.proj_in", at), c, c, 1);
    for (int k = 1; k <= 2; k++) {
        name attention = named("%s.transformer_blocks.0.attn%d", at, k);
        int64_t context = k == 1 ? c : 768;
        linear(w, named("%s.to_q", attention.text), c, c, false);
        linear(w, named("%s.to_k", attention.text), c, context, false);
        linear(w, named("%s.to_v", attention.text), c, context, false);
        linear(w, named("%s.to_out.0", attention.text), c, c, true);
    }
    linear(w, named("%s.transformer_blocks.0.ff.net.0.proj", at), 8 * c, c, true);
    linear(w, named("%s.transformer_blocks.0.ff.net.2", at), c, 4 * c, true);
    for (int k = 1; k <= 3; k++) norm(w, named("%s.transformer_blocks.0.norm%d", at, k), c);
    conv(w, named("%s.proj_out", at), c, c, 1);
}

enum { LEVELS = 4 };
static const int64_t widths[LEVELS] = {320, 640, 1280, 1280};

/* Input blocks and the middle; skips: channels of each input block. */
static int encoder(writer *w, int64_t skips[16]) {
    int n = 0;
    int64_t c = widths[0];
    linear(w, named("time_embed.0"), 1280, 320, true);
    linear(w, named("time_embed.2"), 1280, 1280, true);
    conv(w, named("input_blocks.0.0"), c, 4, 3);
    skips[n++] = c;
    for (int level = 0; level < LEVELS; level++) {
        for (int i = 0; i < 2; i++, n++) {
            res_block(w, named("input_blocks.%d.0", n).text, c, widths[level]);
            c = widths[level];
            if (level < 3) transformer(w, named("input_blocks.%d.1", n).text, c);
            skips[n] = c;
        }
        if (level == LEVELS - 1) break;
        conv(w, named("input_blocks.%d.0.op", n), c, c, 3);
        skips[n++] = c;
    }
    res_block(w, "middle_block.0", c, c);
    transformer(w, "middle_block.1", c);
    res_block(w, "middle_block.2", c, c);
    return n;
}

static void decoder(writer *w, const int64_t *skips, int n_skips) {
    int64_t c = widths[LEVELS - 1];
    int n = 0;
    for (int level = LEVELS - 1; level >= 0; level--)
        for (int i = 0; i < 3; i++, n++) {
            res_block(w, named("output_blocks.%d.0", n).text, c + skips[--n_skips], widths[level]);
            c = widths[level];
            if (level < 3) transformer(w, named("output_blocks.%d.1", n).text, c);
            if (i == 2 && level > 0) conv(w, named("output_blocks.%d.%d.conv", n, level < 3 ? 2 : 1), c, c, 3);
        }
    norm(w, named("out.0"), c);
    conv(w, named("out.2"), 4, c, 3);
}

static void control(writer *w) {
    static const int64_t hint[9] = {3, 16, 16, 32, 32, 96, 96, 256, 320};
    int64_t skips[16];
    int n = encoder(w, skips);
    for (int i = 0; i < 8; i++) conv(w, named("input_hint_block.%d", 2 * i), hint[i + 1], hint[i], 3);
    for (int i = 0; i < n; i++) conv(w, named("zero_convs.%d.0", i), skips[i], skips[i], 1);
    conv(w, named("middle_block_out.0"), 1280, 1280, 1);
}

static void vae_block(writer *w, const char *at, int64_t c_in, int64_t c) {
    norm(w, named("%s.norm1", at), c_in);
    conv(w, named("%s.conv1", at), c, c_in, 3);
    norm(w, named("%s.norm2", at), c);
    conv(w, named("%s.conv2", at), c, c, 3);
    if (c_in != c) conv(w, named("%s.nin_shortcut", at), c, c_in, 1);
}

static void vae(writer *w) {
    static const int64_t c_of[LEVELS] = {128, 256, 512, 512};
    static const char *const parts[] = {"q", "k", "v", "proj_out"};
    int64_t c = 512;
    conv(w, named("post_quant_conv"), 4, 4, 1);
    conv(w, named("decoder.conv_in"), c, 4, 3);
    vae_block(w, "decoder.mid.block_1", c, c);
    norm(w, named("decoder.mid.attn_1.norm"), c);
    for (int i = 0; i < 4; i++) conv(w, named("decoder.mid.attn_1.%s", parts[i]), c, c, 1);
    vae_block(w, "decoder.mid.block_2", c, c);
    for (int level = LEVELS - 1; level >= 0; level--) {
        for (int i = 0; i < 3; i++) {
            vae_block(w, named("decoder.up.%d.block.%d", level, i).text, c, c_of[level]);
            c = c_of[level];
        }
        if (level > 0) conv(w, named("decoder.up.%d.upsample.conv", level), c, c, 3);
    }
    norm(w, named("decoder.norm_out"), c);
    conv(w, named("decoder.conv_out"), 3, c, 3);
}

static void clip(writer *w) {
    static const char *const parts[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
    tensor(w, "embeddings.token_embedding", ".weight", (int64_t[]){49408, 768}, 2);
    tensor(w, "embeddings.position_embedding", ".weight", (int64_t[]){77, 768}, 2);
    for (int i = 0; i < 12; i++) {
        for (int k = 1; k <= 2; k++) norm(w, named("encoder.layers.%d.layer_norm%d", i, k), 768);
        for (int k = 0; k < 4; k++) linear(w, named("encoder.layers.%d.self_attn.%s", i, parts[k]), 768, 768, true);
        linear(w, named("encoder.layers.%d.mlp.fc1", i), 3072, 768, true);
        linear(w, named("encoder.layers.%d.mlp.fc2", i), 768, 3072, true);
    }
    norm(w, named("final_layer_norm"), 768);
}

static char *write_header(int64_t *data_bytes) {
    char *json = NULL;
    size_t bytes = 0;
    int64_t skips[16];
    writer w = {.out = open_memstream(&json, &bytes)};
    if (!w.out) return NULL;
    fputc('{', w.out);
    w.prefix = "model.diffusion_model.";
    int n = encoder(&w, skips);
    decoder(&w, skips, n);
    w.prefix = "control_model.";
    control(&w);
    w.prefix = "first_stage_model.";
    vae(&w);
    w.prefix = "cond_stage_model.transformer.text_model.";
    clip(&w);
    fputc('}', w.out);
    *data_bytes = w.at;
    return fclose(w.out) == 0 ? json : NULL;
}

int bench_sd15_file(char path[64], lw_error *err) {
    int64_t data_bytes = 0;
    char *json = write_header(&data_bytes);
    uint64_t n = json ? strlen(json) : 0;
    int file = memfd_create("sd15.safetensors", MFD_CLOEXEC);
    bool good = json && file >= 0 && write(file, &n, 8) == 8 && write(file, json, n) == (ssize_t)n &&
                ftruncate(file, (off_t)(8 + n) + data_bytes) == 0;
    free(json);
    if (!good) {
        if (file >= 0) close(file);
        lw_fail(err, LW_ENOMEM, "no memory for a random model's header");
        return -1;
    }
    snprintf(path, 64, "/proc/self/fd/%d", file);
    return file;
}

/* ---- values */

typedef struct draw {
    uint64_t seed;
    float range;
    float *dst;
} draw;

static void draw_range(void *user, int64_t begin, int64_t end) {
    const draw *d = user;
    for (int64_t i = begin; i < end; i++) { /* splitmix64 of the index */
        uint64_t z = d->seed + (uint64_t)i * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        d->dst[i] = ((float)(z >> 40) * 0x1p-23f - 1) * d->range;
    }
}

static lw_status read_random(void *user, const char *tensor_name, float *dst, lw_error *err) {
    lw_tensor_source real = lw_model_source(user);
    int64_t d[4];
    LW_TRY(real.dims(real.user, tensor_name, d, err));
    int64_t inputs = d[1] * d[2] * d[3], n = d[0] * inputs;
    size_t length = strlen(tensor_name);
    bool weight = length > 7 && !strcmp(tensor_name + length - 7, ".weight");
    draw job = {.seed = 0xcbf29ce484222325u, .dst = dst};
    for (const char *c = tensor_name; *c; c++) job.seed = (job.seed ^ (unsigned char)*c) * 0x100000001b3u;
    for (job.range = 1; job.range * job.range * (float)inputs > 3;) job.range *= 0.99f; /* variance 1 / inputs */
    if (!weight || inputs == 1) {
        for (int64_t i = 0; i < n; i++) dst[i] = weight ? 1 : 0;
        return LW_OK;
    }
    lw_parallel_for(lw_cpu_count(), n, 1 << 16, draw_range, &job);
    return LW_OK;
}

lw_tensor_source bench_random_source(lw_model *model) {
    lw_tensor_source source = lw_model_source(model);
    source.read = read_random;
    return source;
}
