/* SPDX-License-Identifier: MIT
 * Models of SD1.5's shape without a file on disk: a header over a hole, and values drawn when they are asked for. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "weights/shapes.h"

/* ---- the file */

static char *write_header(const lw_shape *shapes, size_t n, int64_t *data_bytes) {
    char *json = NULL;
    size_t bytes = 0, n_written = 0;
    FILE *out = open_memstream(&json, &bytes);
    if (!out) return NULL;
    *data_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const lw_shape *s = &shapes[i];
        int64_t size = (int64_t)sizeof(float);
        if (s->network == LW_NET_NONE || s->role == LW_ROLE_IDS) continue;
        fprintf(out, "%s\"%s%s\":{\"dtype\":\"F32\",\"shape\":[", n_written++ ? "," : "{",
                lw_network_prefix(s->network), s->name);
        for (int32_t d = 0; d < s->rank; d++) {
            fprintf(out, d ? ",%lld" : "%lld", (long long)s->dims[d]);
            size *= s->dims[d];
        }
        fprintf(out, "],\"data_offsets\":[%lld,%lld]}", (long long)*data_bytes, (long long)(*data_bytes + size));
        *data_bytes += size;
    }
    fputc('}', out);
    return fclose(out) == 0 ? json : NULL;
}

int bench_sd15_file(char path[64], lw_error *err) {
    lw_arena *arena = lw_arena_new();
    lw_shape *shapes = NULL;
    size_t n_shapes = 0;
    int64_t data_bytes = 0;
    lw_status made = arena ? lw_shapes_make(&lw_widths_sd15, arena, &shapes, &n_shapes, err) : LW_ENOMEM;
    char *json = made == LW_OK ? write_header(shapes, n_shapes, &data_bytes) : NULL;
    lw_arena_free(arena);
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

static lw_status read_random(void *user, const char *tensor_name, int64_t row, int64_t n, float *dst, lw_error *err) {
    lw_tensor_source real = lw_model_source(user);
    int64_t d[4];
    LW_TRY(real.dims(real.user, tensor_name, d, err));
    int64_t inputs = d[1] * d[2] * d[3];
    size_t length = strlen(tensor_name);
    bool weight = length > 7 && !strcmp(tensor_name + length - 7, ".weight");
    uint64_t seed = 0xcbf29ce484222325u;
    float range = 1; /* variance 1 / inputs */
    for (const char *c = tensor_name; *c; c++) seed = (seed ^ (unsigned char)*c) * 0x100000001b3u;
    while (range * range * (float)inputs > 3) range *= 0.99f;
    for (int64_t i = row * inputs; i < (row + n) * inputs; i++) {
        uint64_t z = seed + (uint64_t)i * 0x9e3779b97f4a7c15u; /* splitmix64 of the index */
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        if (weight && inputs > 1) *dst++ = ((float)(z >> 40) * 0x1p-23f - 1) * range;
        else *dst++ = weight ? 1 : 0;
    }
    return LW_OK;
}

lw_tensor_source bench_random_source(lw_model *model) {
    lw_tensor_source source = lw_model_source(model);
    source.read = read_random;
    return source;
}
