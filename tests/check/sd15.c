/* SPDX-License-Identifier: MIT
 * A file with the header of control_sd15_canny in safetensors: every tensor that linework takes, under its LDM name and
 * with its shape, over data that is a hole. Recording reads shapes alone, so that SD1.5's programs can be recorded
 * without its weights. */
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct header {
    char *text;
    size_t used, cap;
    uint64_t data;
    bool failed;
} header;

static void tensor(header *h, int64_t o, int64_t i, int64_t k, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* i 0: a vector; k 0: a matrix; else a window of k x k */
static void tensor(header *h, int64_t o, int64_t i, int64_t k, const char *format, ...) {
    char name[160], shape[80];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (i == 0) snprintf(shape, sizeof shape, "%lld", (long long)o);
    else if (k == 0) snprintf(shape, sizeof shape, "%lld,%lld", (long long)o, (long long)i);
    else snprintf(shape, sizeof shape, "%lld,%lld,%lld,%lld", (long long)o, (long long)i, (long long)k, (long long)k);
    uint64_t bytes = 2 * (uint64_t)(o * (i ? i : 1) * (k ? k * k : 1));
    if (h->used + 512 > h->cap) {
        size_t cap = h->cap * 2 + 65536;
        char *grown = realloc(h->text, cap);
        if (!grown) {
            h->failed = true;
            return;
        }
        h->text = grown;
        h->cap = cap;
    }
    h->used += (size_t)snprintf(
        h->text + h->used, h->cap - h->used, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        h->data ? "," : "{", name, shape, (unsigned long long)h->data, (unsigned long long)(h->data + bytes));
    h->data += bytes;
}

static void weight(header *h, int64_t o, int64_t i, int64_t k, const char *name) {
    tensor(h, o, i, k, "%s.weight", name);
    tensor(h, o, 0, 0, "%s.bias", name);
}

static void sub(header *h, int64_t o, int64_t i, int64_t k, const char *block, const char *name) {
    char full[140];
    snprintf(full, sizeof full, "%s.%s", block, name);
    weight(h, o, i, k, full);
}

static void res_block(header *h, const char *name, int64_t in, int64_t out) {
    sub(h, in, 0, 0, name, "in_layers.0");
    sub(h, out, in, 3, name, "in_layers.2");
    sub(h, out, 1280, 0, name, "emb_layers.1");
    sub(h, out, 0, 0, name, "out_layers.0");
    sub(h, out, out, 3, name, "out_layers.3");
    if (in != out) sub(h, out, in, 1, name, "skip_connection");
}

static void transformer(header *h, const char *name, int64_t c) {
    char block[120];
    sub(h, c, 0, 0, name, "norm");
    sub(h, c, c, 1, name, "proj_in");
    sub(h, c, c, 1, name, "proj_out");
    snprintf(block, sizeof block, "%s.transformer_blocks.0", name);
    for (int a = 1; a <= 2; a++) {
        int64_t context = a == 1 ? c : 768;
        tensor(h, c, c, 0, "%s.attn%d.to_q.weight", block, a);
        tensor(h, c, context, 0, "%s.attn%d.to_k.weight", block, a);
        tensor(h, c, context, 0, "%s.attn%d.to_v.weight", block, a);
        sub(h, c, c, 0, block, a == 1 ? "attn1.to_out.0" : "attn2.to_out.0");
    }
    for (int n = 1; n <= 3; n++) sub(h, c, 0, 0, block, n == 1 ? "norm1" : n == 2 ? "norm2" : "norm3");
    sub(h, 8 * c, c, 0, block, "ff.net.0.proj");
    sub(h, c, 4 * c, 0, block, "ff.net.2");
}

static const int64_t widths[] = {320, 640, 1280, 1280};

/* Input blocks and the middle; taps[i]: channels that input block i gives. */
static void encoder(header *h, const char *net, int64_t taps[12]) {
    char name[96];
    int64_t c = 320;
    snprintf(name, sizeof name, "%s.time_embed", net);
    sub(h, 1280, 320, 0, name, "0");
    sub(h, 1280, 1280, 0, name, "2");
    for (int i = 0; i < 12; i++) {
        int level = i / 3;
        if (i % 3 == 0) {
            snprintf(name, sizeof name, i ? "%s.input_blocks.%d.0.op" : "%s.input_blocks.%d.0", net, i);
            weight(h, c, i ? c : 4, 3, name);
        } else {
            snprintf(name, sizeof name, "%s.input_blocks.%d.0", net, i);
            res_block(h, name, c, widths[level]);
            c = widths[level];
            snprintf(name, sizeof name, "%s.input_blocks.%d.1", net, i);
            if (level < 3) transformer(h, name, c);
        }
        taps[i] = c;
    }
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s.middle_block.%d", net, i);
        if (i == 1) transformer(h, name, c);
        else res_block(h, name, c, c);
    }
}

static void unet(header *h) {
    static const char net[] = "model.diffusion_model";
    char name[96];
    int64_t taps[12], c = 1280;
    encoder(h, net, taps);
    for (int i = 0; i < 12; i++) {
        int level = 3 - i / 3;
        snprintf(name, sizeof name, "%s.output_blocks.%d.0", net, i);
        res_block(h, name, c + taps[11 - i], widths[level]);
        c = widths[level];
        snprintf(name, sizeof name, "%s.output_blocks.%d.1", net, i);
        if (level < 3) transformer(h, name, c);
        snprintf(name, sizeof name, "%s.output_blocks.%d.%d.conv", net, i, level < 3 ? 2 : 1);
        if (i % 3 == 2 && level > 0) weight(h, c, c, 3, name);
    }
    sub(h, 320, 0, 0, net, "out.0");
    sub(h, 4, 320, 3, net, "out.2");
}

static void control(header *h) {
    static const int64_t hint[] = {3, 16, 16, 32, 32, 96, 96, 256, 320};
    char name[96];
    int64_t taps[12];
    encoder(h, "control_model", taps);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "control_model.input_hint_block.%d", 2 * i);
        weight(h, hint[i + 1], hint[i], 3, name);
    }
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "control_model.zero_convs.%d.0", i);
        weight(h, taps[i], taps[i], 1, name);
    }
    weight(h, 1280, 1280, 1, "control_model.middle_block_out.0");
}

static void vae_block(header *h, const char *name, int64_t in, int64_t out) {
    sub(h, in, 0, 0, name, "norm1");
    sub(h, out, in, 3, name, "conv1");
    sub(h, out, 0, 0, name, "norm2");
    sub(h, out, out, 3, name, "conv2");
    if (in != out) sub(h, out, in, 1, name, "nin_shortcut");
}

static void vae(header *h) {
    static const int64_t out[] = {128, 256, 512, 512};
    static const char net[] = "first_stage_model.decoder";
    char name[96];
    int64_t c = 512;
    weight(h, 4, 4, 1, "first_stage_model.post_quant_conv");
    sub(h, 512, 4, 3, net, "conv_in");
    vae_block(h, "first_stage_model.decoder.mid.block_1", 512, 512);
    vae_block(h, "first_stage_model.decoder.mid.block_2", 512, 512);
    sub(h, 512, 0, 0, net, "mid.attn_1.norm");
    sub(h, 512, 512, 1, net, "mid.attn_1.q");
    sub(h, 512, 512, 1, net, "mid.attn_1.k");
    sub(h, 512, 512, 1, net, "mid.attn_1.v");
    sub(h, 512, 512, 1, net, "mid.attn_1.proj_out");
    for (int level = 3; level >= 0; level--) {
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "%s.up.%d.block.%d", net, level, i);
            vae_block(h, name, c, out[level]);
            c = out[level];
        }
        snprintf(name, sizeof name, "%s.up.%d.upsample.conv", net, level);
        if (level) weight(h, c, c, 3, name);
    }
    sub(h, 128, 0, 0, net, "norm_out");
    sub(h, 3, 128, 3, net, "conv_out");
}

static void clip(header *h) {
    static const char net[] = "cond_stage_model.transformer.text_model";
    static const char *const products[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                           "self_attn.out_proj"};
    char name[96];
    tensor(h, 49408, 768, 0, "%s.embeddings.token_embedding.weight", net);
    tensor(h, 77, 768, 0, "%s.embeddings.position_embedding.weight", net);
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "%s.encoder.layers.%d", net, i);
        sub(h, 768, 0, 0, name, "layer_norm1");
        sub(h, 768, 0, 0, name, "layer_norm2");
        for (int k = 0; k < 4; k++) sub(h, 768, 768, 0, name, products[k]);
        sub(h, 3072, 768, 0, name, "mlp.fc1");
        sub(h, 768, 3072, 0, name, "mlp.fc2");
    }
    sub(h, 768, 0, 0, net, "final_layer_norm");
}

int ck_sd15_file(char *path, size_t n) {
    header h = {.cap = 0};
    int fd = -1;
    unet(&h);
    control(&h);
    vae(&h);
    clip(&h);
    if (!h.failed) fd = memfd_create("sd15", MFD_CLOEXEC);
    if (fd >= 0) {
        unsigned char size[8];
        h.text[h.used++] = '}';
        for (int i = 0; i < 8; i++) size[i] = (unsigned char)(h.used >> 8 * i);
        bool fine = write(fd, size, 8) == 8 && write(fd, h.text, h.used) == (ssize_t)h.used;
        if (!fine || ftruncate(fd, (off_t)(8 + h.used + h.data)) != 0) {
            close(fd);
            fd = -1;
        }
    }
    free(h.text);
    snprintf(path, n, "/proc/self/fd/%d", fd);
    return fd;
}
