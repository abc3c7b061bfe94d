/* SPDX-License-Identifier: MIT
 * PPM and PGM (P6, P5): the codec that every build has. Samples over maxval and missing pixels are refused. */
#include "image/image.h"

#include <stdio.h>
#include <string.h>

/* Skips white space and comments, then reads a number of at most 7 digits. false: there is none. */
static bool header_number(const uint8_t *p, size_t n, size_t *at, uint32_t *out) {
    while (*at < n && (p[*at] == '#' || p[*at] == ' ' || (p[*at] >= 9 && p[*at] <= 13))) {
        if (p[*at] == '#')
            while (*at < n && p[*at] != '\n' && p[*at] != '\r') ++*at;
        else ++*at;
    }
    size_t begin = *at;
    uint32_t v = 0;
    while (*at < n && p[*at] >= '0' && p[*at] <= '9' && *at - begin < 8) v = v * 10 + (uint32_t)(p[(*at)++] - '0');
    *out = v;
    return *at > begin && *at - begin < 8;
}

/* One row of 8-bit or big-endian 16-bit samples to bytes. false: a sample is over maxval, left in *bad. */
static bool convert_row(const uint8_t *from, uint8_t *to, size_t n, uint32_t maxval, uint32_t *bad) {
    uint32_t over = 0;
    if (maxval == 255) {
        memcpy(to, from, n);
    } else if (maxval == 65535) {
        for (size_t i = 0; i < n; i++) to[i] = from[2 * i];
    } else {
        for (size_t i = 0; i < n; i++) {
            uint32_t v = maxval < 256 ? from[i] : (uint32_t)from[2 * i] << 8 | from[2 * i + 1];
            if (v > maxval) over = v;
            to[i] = (uint8_t)((v * 255 + maxval / 2) / maxval);
        }
    }
    *bad = over;
    return over == 0;
}

lw_status lw_pnm_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err) {
    uint32_t width, height, maxval;
    size_t at = 2;
    if (!header_number(bytes, n, &at, &width) || !header_number(bytes, n, &at, &height) ||
        !header_number(bytes, n, &at, &maxval) || at >= n)
        return lw_fail(err, LW_EINPUT, "%s: the PPM's header is damaged or cut at byte %zu of %zu", name, at, n);
    if (maxval < 1 || maxval > 65535)
        return lw_fail(err, LW_EINPUT, "%s: the PPM's maxval is %u, want 1 to 65535", name, maxval);
    if (bytes[at] != ' ' && (bytes[at] < 9 || bytes[at] > 13))
        return lw_fail(err, LW_EINPUT, "%s: the PPM's header ends in byte %02x, want white space", name, bytes[at]);
    at++;
    LW_TRY(lw_image_check_sides(width, height, name, err));
    int channels = bytes[1] == '6' ? 3 : 1;
    size_t row = (size_t)width * (size_t)channels * (maxval > 255 ? 2 : 1), need = row * height;
    if (n - at < need)
        return lw_fail(err, LW_EINPUT, "%s: the PPM is cut short: %u x %u pixels are %zu bytes, the file has %zu", name,
                       width, height, need, n - at);
    LW_TRY(lw_image_new(out, width, height, channels, name, err));
    for (int32_t y = 0; y < out->height; y++) {
        uint32_t bad;
        if (convert_row(bytes + at + (size_t)y * row, lw_image_row(out, y), out->stride, maxval, &bad)) continue;
        lw_image_free(out);
        return lw_fail(err, LW_EINPUT, "%s: row %d of the PPM holds %u, its maxval is %u", name, y, bad, maxval);
    }
    return LW_OK;
}

lw_status lw_pnm_encode(const lw_image *image, lw_buffer *out, lw_error *err) {
    char header[64];
    int n = snprintf(header, sizeof header, "P%c\n%d %d\n255\n", image->channels == 1 ? '5' : '6', image->width,
                     image->height);
    size_t row = (size_t)image->width * (size_t)image->channels, total = row * (size_t)image->height + (size_t)n;
    out->bytes = lw_alloc(total, 1);
    if (!out->bytes) return lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory for %zu bytes of PPM", total);
    out->room = total;
    lw_buffer_add(out, header, (size_t)n); /* fits: the room is there */
    for (int32_t y = 0; y < image->height; y++) lw_buffer_add(out, lw_image_row(image, y), row);
    return LW_OK;
}
