/* SPDX-License-Identifier: MIT
 * Pictures made from a seed, the same bytes as tools/image_pictures.py makes, and what the picture tests share.
 * Includes cmocka. */
#ifndef LW_TEST_PICTURES_H
#define LW_TEST_PICTURES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "image/image.h"

enum { NOISE, BLOCKS, RAMPS, RINGS, TIES, SMOOTH, N_KINDS };

/* splitmix64's finaliser, one integer more. */
static inline uint64_t mix1(uint64_t v, uint64_t x) {
    v ^= x + 0x9E3779B97F4A7C15;
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9;
    v = (v ^ v >> 27) * 0x94D049BB133111EB;
    return v ^ v >> 31;
}
static inline uint64_t mix2(uint64_t a, uint64_t b) { return mix1(mix1(0, a), b); }
static inline uint64_t mix3(uint64_t a, uint64_t b, uint64_t c) { return mix1(mix2(a, b), c); }
static inline uint64_t mix4(uint64_t a, uint64_t b, uint64_t c, uint64_t d) { return mix1(mix3(a, b, c), d); }

static inline uint8_t picture_byte(int kind, uint64_t seed, int64_t w, int64_t h, int64_t x, int64_t y, int64_t c) {
    uint64_t ux = (uint64_t)x, uy = (uint64_t)y, uc = (uint64_t)c;
    switch (kind) {
    case NOISE: return (uint8_t)mix4(seed, ux, uy, uc);
    case BLOCKS: return (uint8_t)mix4(seed, ux >> 3, uy >> 3, uc);
    case RAMPS: return (uint8_t)(ux * (1 + seed % 5) + uy * (1 + seed % 3) + uc * 40 + (mix4(seed, ux, uy, uc) & 7));
    case RINGS: {
        int64_t dx = x - (int64_t)(mix2(seed, 0) % (uint64_t)w), dy = y - (int64_t)(mix2(seed, 1) % (uint64_t)h);
        return (uint8_t)(((dx * dx + dy * dy) >> (2 + seed % 4)) + c * 60);
    }
    case TIES: return (uint8_t)((mix3(seed, ux >> 2, uy >> 2) & 3) * 64);
    default: { /* a lattice of 16 pixels, interpolated */
        uint64_t fx = ux & 15, fy = uy & 15, x0 = ux >> 4, y0 = uy >> 4;
        uint64_t top = (mix4(seed, x0, y0, uc) & 255) * (16 - fx) + (mix4(seed, x0 + 1, y0, uc) & 255) * fx;
        uint64_t end = (mix4(seed, x0, y0 + 1, uc) & 255) * (16 - fx) + (mix4(seed, x0 + 1, y0 + 1, uc) & 255) * fx;
        return (uint8_t)((top * (16 - fy) + end * fy) >> 8);
    }
    }
}

static inline lw_image make_picture(int kind, uint64_t seed, int w, int h, int channels) {
    lw_image image;
    assert_int_equal(lw_image_new(&image, (uint64_t)w, (uint64_t)h, channels, "made", NULL), LW_OK);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < channels; c++)
                lw_image_row(&image, y)[x * channels + c] = picture_byte(kind, seed, w, h, x, y, c);
    return image;
}

/* FNV-1a of the pixels. */
static inline uint64_t hash_picture(const lw_image *image) {
    uint64_t v = 0xCBF29CE484222325;
    for (int y = 0; y < image->height; y++)
        for (int i = 0; i < image->width * image->channels; i++) v = (v ^ lw_image_row(image, y)[i]) * 0x100000001B3;
    return v;
}

static inline void assert_same_picture(const lw_image *a, const lw_image *b) {
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_int_equal(a->channels, b->channels);
    for (int y = 0; y < a->height; y++)
        assert_memory_equal(lw_image_row(a, y), lw_image_row(b, y), (size_t)(a->width * a->channels));
}

/* A whole file; freed with lw_free. */
static inline uint8_t *load_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s can't be opened", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*n ? *n : 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

/* Names what is needed to find the cause, and is one line. */
static inline void assert_sentence(const lw_error *err, lw_status status, const char *name) {
    assert_int_equal(err->code, status);
    assert_true(err->message[0] != 0);
    assert_null(strchr(err->message, '\n'));
    if (name && !strstr(err->message, name)) fail_msg("'%s' does not name %s", err->message, name);
}

static inline void assert_empty(const lw_image *image) {
    const lw_image empty = {0};
    assert_memory_equal(image, &empty, sizeof empty);
}

#endif
