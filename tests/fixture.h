/* SPDX-License-Identifier: MIT
 * Reads tensors of tests/data/NAME.safetensors for the tests. Not the product's reader, which is tested itself: no
 * checks beyond what a wrong fixture path needs. */
#ifndef LW_TESTS_FIXTURE_H
#define LW_TESTS_FIXTURE_H

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct fixture {
    unsigned char *bytes;
    size_t data; /* offset of the tensors */
    json_t *header;
} fixture;

static inline void fixture_die(const char *file, const char *what) {
    fprintf(stderr, "fixture %s: %s\n", file, what);
    abort();
}

static inline fixture fixture_open_file(const char *path) {
    fixture f = {0};
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

/* tests/data/NAME.safetensors */
static inline fixture fixture_open(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.safetensors", LW_TEST_DATA, name);
    return fixture_open_file(path);
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

/* The tensor's elements as the file has them; *n (may be NULL) is how many. Borrowed until the fixture is closed. */
static inline const void *fixture_data(const fixture *f, const char *tensor, size_t *n) {
    json_t *entry = json_object_get(f->header, tensor), *d;
    if (!entry) fixture_die(tensor, "no such tensor");
    size_t count = 1, i;
    json_array_foreach(json_object_get(entry, "shape"), i, d) count *= (size_t)json_integer_value(d);
    if (n) *n = count;
    return f->bytes + f->data + json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
}

/* max |got - want| must be at most tolerance times the largest |want|. Prints the measured figure. */
static inline void assert_close(const char *what, const float *got, const float *want, size_t n, double tolerance) {
    double worst = fixture_max_diff(got, want, n), scale = 0;
    for (size_t i = 0; i < n; i++) scale = fmax(scale, fabs((double)want[i]));
    print_message("%-28s max error %.2e of scale %.3g\n", what, worst / scale, scale);
    if (!(worst <= tolerance * scale))
        fail_msg("%s: max error %g of scale %g, at most %g", what, worst / scale, scale, tolerance);
}

/* At most 1 byte in 1000 may differ by more than 1. */
static inline void assert_bytes_close(const char *what, const uint8_t *got, const uint8_t *want, size_t n) {
    size_t far = 0, other = 0;
    for (size_t i = 0; i < n; i++) {
        int d = abs((int)got[i] - (int)want[i]);
        far += d > 1;
        other += d > 0;
    }
    print_message("%-28s %zu of %zu bytes differ, %zu by more than 1\n", what, other, n, far);
    if (far * 1000 > n) fail_msg("%s: %zu of %zu bytes differ by more than 1", what, far, n);
}

#endif
