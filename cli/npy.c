/* SPDX-License-Identifier: MIT
 * NumPy's .npy, versions 1 to 3, for latents alone: float32, little-endian, C order, four axes. The header is a Python
 * dictionary literal; only the spellings that numpy.save writes are taken. */
#include "cli.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char magic[6] = {(char)0x93, 'N', 'U', 'M', 'P', 'Y'};

/* What follows "'key':" in the header, blanks skipped; NULL where the key is not there once. */
static const char *value_of(const char *header, const char *key) {
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(header, quoted);
    if (!at || strstr(at + 1, quoted)) return NULL;
    at += strlen(quoted);
    return at + strspn(at, " ");
}

static bool parse_shape(const char *at, int64_t shape[4]) {
    if (!at || *at++ != '(') return false;
    for (int axis = 0; axis < 4; axis++) {
        at += strspn(at, " ");
        size_t digits = strspn(at, "0123456789");
        if (digits == 0 || digits > 9) return false;
        shape[axis] = strtoll(at, NULL, 10);
        at += digits;
        at += strspn(at, " ");
        if (axis < 3 && *at++ != ',') return false;
    }
    at += *at == ',';
    at += strspn(at, " ");
    return *at == ')';
}

lw_status cli_npy_parse(const void *bytes, size_t n_bytes, const char *name, int64_t shape[4], const float **data,
                        lw_error *err) {
    const uint8_t *b = bytes;
    if (n_bytes < 12 || memcmp(b, magic, 6) != 0) return cli_fail(err, LW_EINPUT, "%s: is not a .npy file", name);
    if (b[6] < 1 || b[6] > 3) return cli_fail(err, LW_EINPUT, "%s: is .npy version %d, not 1 to 3", name, b[6]);
    size_t at = b[6] == 1 ? 10 : 12;
    size_t length = b[8] | (size_t)b[9] << 8;
    if (b[6] > 1) length |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (length > 65536 || length > n_bytes - at)
        return cli_fail(err, LW_EINPUT, "%s: its header of %zu bytes does not fit into %zu", name, length,
                        n_bytes - at);

    char *header = malloc(length + 1);
    if (!header) return cli_no_memory(err);
    memcpy(header, b + at, length);
    header[length] = 0;
    const char *descr = value_of(header, "descr"), *order = value_of(header, "fortran_order");
    lw_status status = LW_OK;
    if (!descr || strncmp(descr, "'<f4'", 5) != 0)
        status = cli_fail(err, LW_EINPUT, "%s: its numbers are not float32, little-endian ('<f4')", name);
    else if (!order || strncmp(order, "False", 5) != 0)
        status = cli_fail(err, LW_EINPUT, "%s: is not in C order", name);
    else if (!parse_shape(value_of(header, "shape"), shape))
        status = cli_fail(err, LW_EINPUT, "%s: its shape is not of the form (n, 4, h, w)", name);
    free(header);
    if (status != LW_OK) return status;

    size_t n = 1, have = n_bytes - at - length;
    for (int axis = 0; axis < 4; axis++)
        if (__builtin_mul_overflow(n, (size_t)shape[axis], &n) || n > SIZE_MAX / 8) n = SIZE_MAX / 8;
    if (n * sizeof(float) != have)
        return cli_fail(err, LW_EINPUT, "%s: holds %zu bytes of numbers, its shape asks for %zu", name, have,
                        n * sizeof(float));
    /* Headers are padded so that the numbers are aligned; a file that is not needs a copy that nobody has asked for. */
    if ((uintptr_t)(b + at + length) % sizeof(float) != 0)
        return cli_fail(err, LW_EINPUT, "%s: its header has %zu bytes, not a multiple of 4", name, at + length);
    *data = (const float *)(const void *)(b + at + length);
    for (size_t i = 0; i < n; i++)
        if (!isfinite((*data)[i])) return cli_fail(err, LW_EINPUT, "%s: number %zu is %g", name, i, (double)(*data)[i]);
    return LW_OK;
}

lw_status cli_npy_make(const float *data, const int64_t shape[4], void **bytes, size_t *n_bytes, lw_error *err) {
    char header[256];
    size_t n = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof(float);
    int length =
        snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld, %lld, %lld), }",
                 (long long)shape[0], (long long)shape[1], (long long)shape[2], (long long)shape[3]);
    size_t whole = (10 + (size_t)length + 1 + 63) / 64 * 64; /* the numbers begin at a multiple of 64 */
    uint8_t *b = malloc(whole + n);
    if (!b) return cli_no_memory(err);
    memcpy(b, magic, 6);
    b[6] = 1, b[7] = 0;
    b[8] = (uint8_t)((whole - 10) & 255), b[9] = (uint8_t)((whole - 10) >> 8);
    memcpy(b + 10, header, (size_t)length);
    memset(b + 10 + length, ' ', whole - 10 - (size_t)length);
    b[whole - 1] = '\n';
    memcpy(b + whole, data, n);
    *bytes = b;
    *n_bytes = whole + n;
    return LW_OK;
}
