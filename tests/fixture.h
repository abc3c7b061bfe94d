/* SPDX-License-Identifier: MIT
 * Reads tensors of tests/data/NAME.safetensors for the tests. Not the product's reader, which is tested itself: no
 * checks beyond what a wrong fixture path needs. */
#ifndef LW_TESTS_FIXTURE_H
#define LW_TESTS_FIXTURE_H

#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fixture {
    unsigned char *bytes;
    size_t data; /* offset of the tensors */
    json_t *header;
} fixture;

static inline void fixture_die(const char *file, const char *what) {
    fprintf(stderr, "fixture %s: %s\n", file, what);
    abort();
}

static inline fixture fixture_open(const char *name) {
    fixture f = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.safetensors", LW_TEST_DATA, name);
    FILE *in = fopen(path, "rb");
    if (!in) fixture_die(path, "can't be opened");
    fseek(in, 0, SEEK_END);
    size_t size = (size_t)ftell(in);
    rewind(in);
    f.bytes = malloc(size);
    if (!f.bytes || fread(f.bytes, 1, size, in) != size) fixture_die(path, "can't be read");
    fclose(in);
    uint64_t header;
    memcpy(&header, f.bytes, 8);
    f.data = 8 + header;
    f.header = json_loadb((const char *)f.bytes + 8, header, 0, NULL);
    if (!f.header) fixture_die(path, "bad header");
    return f;
}

static inline void fixture_close(fixture *f) {
    json_decref(f->header);
    free(f->bytes);
}

/* All values of a tensor as floats (F32, I32, U8); freed by the caller. *n may be NULL. */
static inline float *fixture_get(const fixture *f, const char *tensor, size_t *n) {
    json_t *entry = json_object_get(f->header, tensor);
    if (!entry) fixture_die(tensor, "no such tensor");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    json_t *range = json_object_get(entry, "data_offsets");
    size_t begin = (size_t)json_integer_value(json_array_get(range, 0));
    size_t bytes = (size_t)json_integer_value(json_array_get(range, 1)) - begin;
    size_t each = strcmp(dtype, "U8") ? 4 : 1, count = bytes / each;
    float *out = malloc((count ? count : 1) * sizeof *out);
    if (!out) fixture_die(tensor, "no memory");
    const unsigned char *src = f->bytes + f->data + begin;
    if (!strcmp(dtype, "F32")) {
        memcpy(out, src, bytes);
    } else if (!strcmp(dtype, "I32")) {
        for (size_t i = 0; i < count; i++) {
            int32_t v;
            memcpy(&v, src + 4 * i, 4);
            out[i] = (float)v;
        }
    } else if (!strcmp(dtype, "U8")) {
        for (size_t i = 0; i < count; i++) out[i] = src[i];
    } else {
        fixture_die(tensor, "dtype is none of F32, I32, U8");
    }
    if (n) *n = count;
    return out;
}

static inline int64_t fixture_dim(const fixture *f, const char *tensor, size_t axis) {
    return json_integer_value(json_array_get(json_object_get(json_object_get(f->header, tensor), "shape"), axis));
}

/* Largest |a - b|; NaN anywhere counts as infinity. */
static inline double fixture_max_diff(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= most)) most = isnan(d) ? INFINITY : d;
    }
    return most;
}

#endif
