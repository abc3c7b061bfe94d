/* SPDX-License-Identifier: MIT
 * Reads the tensors of a fixture file (safetensors, trusted: our own script wrote it) and compares with them. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct fixture {
    char *bytes;
    json_t *header;
    const char *data;
} fixture;

static inline fixture fixture_open(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", LW_TEST_DATA, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s can't be opened", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    fixture x = {.bytes = malloc((size_t)n)};
    assert_true(x.bytes && fread(x.bytes, 1, (size_t)n, f) == (size_t)n);
    fclose(f);
    uint64_t length;
    memcpy(&length, x.bytes, 8);
    x.header = json_loadb(x.bytes + 8, (size_t)length, 0, NULL);
    assert_non_null(x.header);
    x.data = x.bytes + 8 + length;
    return x;
}

static inline void fixture_close(fixture *x) {
    json_decref(x->header);
    free(x->bytes);
}

/* The tensor's elements; *n (may be NULL) is how many. Floats, int32 or bytes as the file has them. */
static inline const void *fixture_data(const fixture *x, const char *name, size_t *n) {
    json_t *t = json_object_get(x->header, name);
    if (!t) fail_msg("the fixture has no tensor %s", name);
    size_t count = 1, i;
    json_t *d;
    json_array_foreach(json_object_get(t, "shape"), i, d) count *= (size_t)json_integer_value(d);
    if (n) *n = count;
    return x->data + json_integer_value(json_array_get(json_object_get(t, "data_offsets"), 0));
}

static inline int64_t fixture_dim(const fixture *x, const char *name, size_t i) {
    return json_integer_value(json_array_get(json_object_get(json_object_get(x->header, name), "shape"), i));
}

/* max |got - want| must be at most tolerance times the largest |want|. Prints the measured figure. */
static inline void assert_close(const char *what, const float *got, const float *want, size_t n, double tolerance) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        if (!(d <= worst)) worst = d; /* a NaN becomes the worst */
        if (fabs((double)want[i]) > scale) scale = fabs((double)want[i]);
    }
    print_message("%-28s max error %.2e of scale %.3g\n", what, worst / scale, scale);
    if (!(worst <= tolerance * scale))
        fail_msg("%s: max error %g of scale %g, at most %g", what, worst / scale, scale, tolerance);
}

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
