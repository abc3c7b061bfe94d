/* SPDX-License-Identifier: MIT
 * For the tests of src/weights: safetensors put together by hand, right or wrong. */
#ifndef LW_TEST_WEIGHT_FILES_H
#define LW_TEST_WEIGHT_FILES_H

#include "base/base.h"

#include <stdio.h>
#include <string.h>

typedef struct file_bytes {
    uint8_t *data;
    size_t n;
} file_bytes;

/* u64 length, the header, n_data zero bytes. `length` replaces the header's own where it is not UINT64_MAX. */
static inline file_bytes make_safetensors(const void *header, size_t n_header, uint64_t length, size_t n_data) {
    file_bytes f = {malloc(8 + n_header + n_data + 1), 8 + n_header + n_data};
    if (length == UINT64_MAX) length = n_header;
    for (int i = 0; i < 8; i++) f.data[i] = (uint8_t)(length >> (8 * i));
    memcpy(f.data + 8, header, n_header);
    memset(f.data + 8 + n_header, 0, n_data);
    return f;
}

static inline file_bytes read_whole(const char *path) {
    file_bytes f = {NULL, 0};
    FILE *in = fopen(path, "rb");
    if (!in) return f;
    fseek(in, 0, SEEK_END);
    f.n = (size_t)ftell(in);
    rewind(in);
    f.data = malloc(f.n + 1);
    if (fread(f.data, 1, f.n, in) != f.n) f.n = 0;
    fclose(in);
    return f;
}

static inline bool write_whole(const char *path, const void *data, size_t n) {
    FILE *out = fopen(path, "wb");
    if (!out) return false;
    bool good = fwrite(data, 1, n, out) == n;
    return fclose(out) == 0 && good;
}

#endif
