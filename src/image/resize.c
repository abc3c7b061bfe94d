/* SPDX-License-Identifier: MIT
 * ControlNet's resize_image and the two filters of OpenCV that it uses, on bytes, bit for bit: Lanczos-4 when the short
 * side grows, area averaging else, with its two odd cases: whole-number ratios are box sums, and where one side grows
 * the "area" is a two-tap interpolation. Roundings are part of the contract: each line that looks like it could be
 * simplified was checked against OpenCV by tools/check_opencv.py. */
#include "image/image.h"

#include <math.h>
#include <string.h>

enum { COEF_ONE = 2048 }; /* fixed-point one of the byte filters: 11 bits */

static uint8_t clamp_byte(int32_t v) { return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v; }

static int16_t fixed_coef(float v) { return (int16_t)lrintf(v * COEF_ONE); } /* half to even */

static lw_status no_memory(size_t bytes, lw_error *err) {
    return lw_fail(err, LW_ENOMEM, "lw_image_resize: no memory for %zu bytes of tables", bytes);
}

/* ---- whole-number ratios: the mean of a box */

static lw_status area_whole(const lw_image *in, lw_image *out, int kx, int ky, lw_error *err) {
    size_t n = (size_t)in->width * (size_t)in->channels;
    int channels = in->channels;
    uint32_t *sums = lw_alloc(n, sizeof *sums); /* at most 255 * LW_MAX_SIDE each */
    if (!sums) return no_memory(n * sizeof *sums, err);
    float scale = 1.0f / (float)((int64_t)kx * ky);
    for (int32_t y = 0; y < out->height; y++) {
        memset(sums, 0, n * sizeof *sums);
        for (int j = 0; j < ky; j++) {
            const uint8_t *row = lw_image_row(in, y * ky + j);
            for (size_t i = 0; i < n; i++) sums[i] += row[i];
        }
        uint8_t *to = lw_image_row(out, y);
        for (int32_t x = 0; x < out->width; x++)
            for (int c = 0; c < channels; c++) {
                const uint32_t *box = sums + (size_t)x * (size_t)(kx * channels) + c;
                uint64_t sum = 0;
                for (int i = 0; i < kx; i++) sum += box[i * channels];
                /* 2 x 2 has a rule of its own: half goes up, not to even */
                *to++ =
                    kx == 2 && ky == 2 ? (uint8_t)((sum + 2) >> 2) : clamp_byte((int32_t)lrintf((float)sum * scale));
            }
    }
    lw_free(sums);
    return LW_OK;
}

/* ---- any shrinking: weights by overlap */

typedef struct overlap {
    int32_t to, from;
    float weight;
} overlap;

/* Every (output, input, share) of one axis, by output, then input. At most 2 more than the inputs for each output. */
static size_t overlaps(overlap *table, int32_t n_in, int32_t n_out, double scale) {
    size_t n = 0;
    for (int32_t to = 0; to < n_out; to++) {
        double begin = to * scale, end = begin + scale, width = fmin(scale, n_in - begin);
        int32_t last = (int32_t)floor(end), first = (int32_t)ceil(begin);
        if (last > n_in - 1) last = n_in - 1;
        if (first > last) first = last;
        /* Slivers under a thousandth of a pixel are dropped, and the rest is not made to sum to 1 again. */
        if (first - begin > 1e-3) table[n++] = (overlap){to, first - 1, (float)((first - begin) / width)};
        for (int32_t from = first; from < last; from++) table[n++] = (overlap){to, from, (float)(1.0 / width)};
        if (end - last > 1e-3) table[n++] = (overlap){to, last, (float)(fmin(fmin(end - last, 1.0), width) / width)};
    }
    return n;
}

/* With `channels` a constant the inner loops are unrolled. */
static inline __attribute__((always_inline)) void area_row(const uint8_t *row, float *line, const overlap *table,
                                                           size_t n, int channels) {
    for (size_t k = 0; k < n; k++) {
        const uint8_t *p = row + (size_t)table[k].from * (size_t)channels;
        float *q = line + (size_t)table[k].to * (size_t)channels;
        for (int c = 0; c < channels; c++) q[c] += (float)p[c] * table[k].weight;
    }
}

static void store_line(const float *line, uint8_t *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = clamp_byte((int32_t)lrintf(line[i]));
}

static lw_status area_shares(const lw_image *in, lw_image *out, double scale_x, double scale_y, lw_error *err) {
    size_t row = (size_t)out->width * (size_t)out->channels, most_x = (size_t)in->width + 2 * (size_t)out->width,
           most_y = (size_t)in->height + 2 * (size_t)out->height;
    overlap *xs = lw_alloc(most_x, sizeof *xs), *ys = lw_alloc(most_y, sizeof *ys);
    float *line = lw_alloc(row, sizeof *line), *sum = lw_alloc(row, sizeof *sum);
    lw_status status = LW_OK;
    if (!xs || !ys || !line || !sum) {
        status = no_memory((most_x + most_y) * sizeof *xs + 2 * row * sizeof *line, err);
        goto out;
    }
    size_t n_x = overlaps(xs, in->width, out->width, scale_x), n_y = overlaps(ys, in->height, out->height, scale_y);
    int32_t have = -1; /* the input row that `line` holds: neighbours share one */
    for (size_t k = 0; k < n_y; k++) {
        if (ys[k].from != have) {
            const uint8_t *from = lw_image_row(in, ys[k].from);
            memset(line, 0, row * sizeof *line);
            if (in->channels == 1) area_row(from, line, xs, n_x, 1);
            else if (in->channels == 3) area_row(from, line, xs, n_x, 3);
            else area_row(from, line, xs, n_x, 4);
            have = ys[k].from;
        }
        float weight = ys[k].weight;
        if (k == 0 || ys[k].to != ys[k - 1].to)
            for (size_t i = 0; i < row; i++) sum[i] = weight * line[i];
        else
            for (size_t i = 0; i < row; i++) sum[i] += weight * line[i];
        if (k + 1 == n_y || ys[k + 1].to != ys[k].to) store_line(sum, lw_image_row(out, ys[k].to), row);
    }
out:
    lw_free(xs);
    lw_free(ys);
    lw_free(line);
    lw_free(sum);
    return status;
}

/* ---- area where a side grows: two taps */

typedef struct tap2 {
    int32_t at;
    int16_t w[2];
} tap2;

static void area_taps(tap2 *taps, int32_t n_in, int32_t n_out, double scale, double inverse, bool clamp) {
    for (int32_t i = 0; i < n_out; i++) {
        int32_t at = (int32_t)floor(i * scale);
        float f = (float)((i + 1) - (at + 1) * inverse);
        f = f <= 0 ? 0.0f : f - floorf(f);
        if (clamp && at >= n_in - 1) at = n_in - 1, f = 0;
        taps[i] = (tap2){at, {fixed_coef(1.0f - f), fixed_coef(f)}};
    }
}

static lw_status area_growing(const lw_image *in, lw_image *out, double scale_x, double scale_y, lw_error *err) {
    int channels = in->channels;
    size_t row = (size_t)out->width * (size_t)channels;
    tap2 *xs = lw_alloc((size_t)out->width, sizeof *xs), *ys = lw_alloc((size_t)out->height, sizeof *ys);
    int32_t *lines = lw_alloc(2 * row, sizeof *lines), *line[2] = {lines, lines ? lines + row : NULL};
    lw_status status = LW_OK;
    if (!xs || !ys || !lines) {
        status = no_memory(2 * row * sizeof *lines, err);
        goto out;
    }
    area_taps(xs, in->width, out->width, scale_x, (double)out->width / in->width, true);
    area_taps(ys, in->height, out->height, scale_y, (double)out->height / in->height, false);
    int32_t have[2] = {-1, -1};
    for (int32_t y = 0; y < out->height; y++) {
        for (int k = 0; k < 2; k++) {
            int32_t from = ys[y].at + k;
            if (from > in->height - 1) from = in->height - 1;
            if (k == 0 && from == have[1]) { /* moving down by one row */
                int32_t *swap = line[0];
                line[0] = line[1], line[1] = swap;
                have[1] = have[0], have[0] = from;
            }
            if (from == have[k]) continue;
            const uint8_t *p = lw_image_row(in, from);
            for (int32_t x = 0; x < out->width; x++) {
                const uint8_t *a = p + (size_t)xs[x].at * (size_t)channels;
                const uint8_t *b = xs[x].at < in->width - 1 ? a + channels : a;
                for (int c = 0; c < channels; c++)
                    line[k][(size_t)x * (size_t)channels + (size_t)c] = a[c] * xs[x].w[0] + b[c] * xs[x].w[1];
            }
            have[k] = from;
        }
        int32_t w0 = ys[y].w[0], w1 = ys[y].w[1];
        uint8_t *to = lw_image_row(out, y);
        for (size_t i = 0; i < row; i++) /* each product is cut, not the sum rounded */
            to[i] = clamp_byte((((w0 * (line[0][i] >> 4)) >> 16) + ((w1 * (line[1][i] >> 4)) >> 16) + 2) >> 2);
    }
out:
    lw_free(xs);
    lw_free(ys);
    lw_free(lines);
    return status;
}

/* ---- Lanczos-4 */

typedef struct tap8 {
    int32_t at; /* input of tap 3 */
    int16_t w[8];
} tap8;

/* sin(pi d) sin(pi d / 4) / d^2 at the 8 distances d = x + 3 - i, where the first sine is a sign and is left to the
 * normalisation, and the second is turned by 45 degrees from tap to tap. */
static void lanczos_weights(float x, int16_t w[8]) {
    const double h = 0.70710678118654752440084436210485, quarter = 3.1415926535897932384626433832795 * 0.25;
    const double turn[8][2] = {{1, 0}, {-h, -h}, {0, 1}, {h, -h}, {-1, 0}, {h, h}, {0, -1}, {-h, h}};
    double angle = -(double)(x + 3.0f) * quarter, s = sin(angle), c = cos(angle);
    float v[8], sum = 0;
    for (int i = 0; i < 8; i++) {
        float distance = x + 3.0f - (float)i;
        double y = -(double)distance * quarter;
        v[i] = fabsf(distance) >= 1e-6f ? (float)((turn[i][0] * s + turn[i][1] * c) / (y * y)) : 1e30f; /* the pole */
        sum += v[i];
    }
    sum = 1.0f / sum;
    for (int i = 0; i < 8; i++) w[i] = fixed_coef(v[i] * sum);
}

static void lanczos_taps(tap8 *taps, int32_t n_in, int32_t n_out, double scale) {
    for (int32_t i = 0; i < n_out; i++) {
        float f = (float)((i + 0.5) * scale - 0.5);
        int32_t at = (int32_t)floorf(f);
        lanczos_weights(f - (float)at, taps[i].w);
        taps[i].at = at > n_in - 1 ? n_in - 1 : at;
    }
}

/* `row` has 4 pixels of border on both sides. */
static inline __attribute__((always_inline)) void lanczos_row(const uint8_t *row, int32_t *line, const tap8 *taps,
                                                              int32_t n, int channels) {
    for (int32_t x = 0; x < n; x++) {
        const uint8_t *p = row + (ptrdiff_t)(taps[x].at + 1) * channels;
        for (int c = 0; c < channels; c++) {
            int32_t v = 0;
            for (int k = 0; k < 8; k++) v += p[k * channels + c] * taps[x].w[k];
            *line++ = v;
        }
    }
}

static void lanczos_fill(const lw_image *in, int32_t y, uint8_t *padded, int32_t *line, const tap8 *taps, int32_t n) {
    const uint8_t *from = lw_image_row(in, y);
    size_t channels = (size_t)in->channels, row = (size_t)in->width * channels;
    for (size_t k = 0; k < 4; k++) {
        memcpy(padded + k * channels, from, channels);
        memcpy(padded + 4 * channels + row + k * channels, from + row - channels, channels);
    }
    memcpy(padded + 4 * channels, from, row);
    if (in->channels == 1) lanczos_row(padded, line, taps, n, 1);
    else if (in->channels == 3) lanczos_row(padded, line, taps, n, 3);
    else lanczos_row(padded, line, taps, n, 4);
}

static lw_status lanczos(const lw_image *in, lw_image *out, double scale_x, double scale_y, lw_error *err) {
    size_t row = (size_t)out->width * (size_t)out->channels,
           padded_bytes = ((size_t)in->width + 8) * (size_t)in->channels;
    tap8 *xs = lw_alloc((size_t)out->width, sizeof *xs), *ys = lw_alloc((size_t)out->height, sizeof *ys);
    int32_t *lines = lw_alloc(8 * row, sizeof *lines), have[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    uint8_t *padded = lw_alloc(padded_bytes, 1);
    lw_status status = LW_OK;
    if (!xs || !ys || !lines || !padded) {
        status = no_memory(8 * row * sizeof *lines + padded_bytes, err);
        goto out;
    }
    lanczos_taps(xs, in->width, out->width, scale_x);
    lanczos_taps(ys, in->height, out->height, scale_y);
    for (int32_t y = 0; y < out->height; y++) {
        const int32_t *tap[8];
        for (int k = 0; k < 8; k++) {
            int32_t from = ys[y].at - 3 + k;
            from = from < 0 ? 0 : from > in->height - 1 ? in->height - 1 : from;
            int slot = from & 7; /* 8 rows in a run have slots of their own */
            if (have[slot] != from) lanczos_fill(in, from, padded, lines + (size_t)slot * row, xs, out->width);
            have[slot] = from;
            tap[k] = lines + (size_t)slot * row;
        }
        const int16_t *w = ys[y].w;
        uint8_t *to = lw_image_row(out, y);
        for (size_t i = 0; i < row; i++) { /* the positive products sum to 2.11e9 at most: no overflow */
            int32_t v = tap[0][i] * w[0] + tap[1][i] * w[1] + tap[2][i] * w[2] + tap[3][i] * w[3] + tap[4][i] * w[4] +
                        tap[5][i] * w[5] + tap[6][i] * w[6] + tap[7][i] * w[7];
            to[i] = clamp_byte((v + (1 << 21)) >> 22);
        }
    }
out:
    lw_free(xs);
    lw_free(ys);
    lw_free(lines);
    lw_free(padded);
    return status;
}

/* ---- the public functions */

static lw_status resize(const lw_image *in, int32_t width, int32_t height, bool grow, lw_image *out, lw_error *err) {
    LW_TRY(lw_image_new(out, (uint64_t)width, (uint64_t)height, in->channels, "lw_image_resize", err));
    if (width == in->width && height == in->height) {
        for (int32_t y = 0; y < height; y++) memcpy(lw_image_row(out, y), lw_image_row(in, y), out->stride);
        return LW_OK;
    }
    /* Not in / out: the reciprocal of the rounded ratio falls on other pixels. */
    double scale_x = 1.0 / ((double)width / in->width), scale_y = 1.0 / ((double)height / in->height);
    long whole_x = lrint(scale_x), whole_y = lrint(scale_y);
    lw_status status;
    if (grow) status = lanczos(in, out, scale_x, scale_y, err);
    else if (scale_x < 1 || scale_y < 1) status = area_growing(in, out, scale_x, scale_y, err);
    else if (fabs(scale_x - (double)whole_x) < 0x1p-52 && fabs(scale_y - (double)whole_y) < 0x1p-52)
        status = area_whole(in, out, (int)whole_x, (int)whole_y, err);
    else status = area_shares(in, out, scale_x, scale_y, err);
    if (status != LW_OK) lw_image_free(out);
    return status;
}

lw_status lw_resize_target(int32_t width, int32_t height, int32_t short_side, int32_t *out_width, int32_t *out_height,
                           lw_error *err) {
    if (!out_width || !out_height) return lw_fail(err, LW_EINVAL, "lw_resize_target: an argument is NULL");
    *out_width = *out_height = 0;
    if (width < 1 || height < 1)
        return lw_fail(err, LW_EINVAL, "lw_resize_target: the picture is %d x %d pixels, want at least 1 x 1", width,
                       height);
    if (short_side < 1)
        return lw_fail(err, LW_EINVAL, "lw_resize_target: the resolution is %d, want at least 1", short_side);
    double k = (double)short_side / (width < height ? width : height);
    double w = rint(width * k / 64.0) * 64.0, h = rint(height * k / 64.0) * 64.0; /* half to even, as numpy */
    if (w < 64 || h < 64 || w > 8192 || h > 8192)
        return lw_fail(
            err, LW_EINPUT,
            "a picture of %d x %d pixels at resolution %d would become %.0f x %.0f, want sides of 64 to 8192", width,
            height, short_side, w, h);
    *out_width = (int32_t)w;
    *out_height = (int32_t)h;
    return LW_OK;
}

lw_status lw_image_resize(const lw_image *in, int32_t short_side, lw_image *out, lw_error *err) {
    int32_t width, height;
    if (!out || out == in) return lw_fail(err, LW_EINVAL, "lw_image_resize: out is %s", out ? "in itself" : "NULL");
    memset(out, 0, sizeof *out);
    LW_TRY(lw_image_check(in, "lw_image_resize", err));
    LW_TRY(lw_resize_target(in->width, in->height, short_side, &width, &height, err));
    return resize(in, width, height, short_side > (in->width < in->height ? in->width : in->height), out, err);
}

lw_status lw_image_resize_to(const lw_image *in, int32_t width, int32_t height, lw_image *out, lw_error *err) {
    if (!out || out == in) return lw_fail(err, LW_EINVAL, "lw_image_resize_to: out is %s", out ? "in itself" : "NULL");
    memset(out, 0, sizeof *out);
    LW_TRY(lw_image_check(in, "lw_image_resize_to", err));
    if (width < 1 || height < 1 || width > LW_MAX_SIDE || height > LW_MAX_SIDE ||
        (uint64_t)width * (uint64_t)height > LW_MAX_PIXELS)
        return lw_fail(err, LW_EINVAL,
                       "lw_image_resize_to: the size is %d x %d, want at least 1 x 1 and at most 64 Mpx", width,
                       height);
    bool grow = (width < height ? width : height) > (in->width < in->height ? in->width : in->height);
    return resize(in, width, height, grow, out, err);
}
