/* SPDX-License-Identifier: MIT
 * Pictures in memory: allocation, checks, text fields, orientation, HWC3, and which codec takes what. */
#include "image/image.h"

#include <string.h>

/* ---- memory */

bool lw_buffer_add(lw_buffer *buffer, const void *bytes, size_t n) {
    size_t need;
    if (!lw_add_size(buffer->n, n, &need)) return false;
    if (need > buffer->room) {
        size_t room = buffer->room < 4096 ? 4096 : buffer->room;
        while (room < need) {
            if (!lw_mul_size(room, 2, &room)) return false;
        }
        uint8_t *grown = lw_realloc(buffer->bytes, room, 1);
        if (!grown) return false;
        buffer->bytes = grown;
        buffer->room = room;
    }
    if (n) memcpy(buffer->bytes + buffer->n, bytes, n);
    buffer->n = need;
    return true;
}

lw_status lw_image_check_sides(uint64_t width, uint64_t height, const char *name, lw_error *err) {
    unsigned long long w = width, h = height;
    if (w == 0 || h == 0)
        return lw_fail(err, LW_EINPUT, "%s: the picture is %llu x %llu pixels, want at least 1 x 1", name, w, h);
    if (w > LW_MAX_SIDE || h > LW_MAX_SIDE)
        return lw_fail(err, LW_EINPUT, "%s: the picture is %llu x %llu pixels, the limit of a side is %d", name, w, h,
                       LW_MAX_SIDE);
    if (w * h > LW_MAX_PIXELS)
        return lw_fail(err, LW_EINPUT, "%s: the picture is %llu x %llu = %llu pixels, the limit is 64 Mpx (%llu)", name,
                       w, h, w * h, (unsigned long long)LW_MAX_PIXELS);
    return LW_OK;
}

lw_status lw_image_new(lw_image *out, uint64_t width, uint64_t height, int channels, const char *name, lw_error *err) {
    memset(out, 0, sizeof *out);
    LW_TRY(lw_image_check_sides(width, height, name, err));
    size_t stride = (size_t)width * (size_t)channels, bytes = stride * (size_t)height; /* at most 256 MiB */
    uint8_t *data = lw_alloc_aligned(bytes);
    if (!data)
        return lw_fail(err, LW_ENOMEM, "%s: no memory for %llu x %llu pixels of %d channels (%zu bytes)", name,
                       (unsigned long long)width, (unsigned long long)height, channels, bytes);
    *out = (lw_image){.size = sizeof *out,
                      .width = (int32_t)width,
                      .height = (int32_t)height,
                      .channels = channels,
                      .stride = stride,
                      .data = data};
    return LW_OK;
}

void lw_image_free(lw_image *image) {
    if (!image) return;
    lw_free(image->data);
    memset(image, 0, sizeof *image);
}

lw_status lw_image_check(const lw_image *image, const char *what, lw_error *err) {
    if (!image) return lw_fail(err, LW_EINVAL, "%s: the picture is NULL", what);
    if (image->size < sizeof *image)
        return lw_fail(err, LW_EINVAL, "%s: lw_image.size is %u, want %zu", what, image->size, sizeof *image);
    if (!image->data) return lw_fail(err, LW_EINVAL, "%s: the picture has no pixels (data is NULL)", what);
    if (image->width < 1 || image->height < 1 || image->width > LW_MAX_SIDE || image->height > LW_MAX_SIDE ||
        (uint64_t)image->width * (uint64_t)image->height > LW_MAX_PIXELS)
        return lw_fail(err, LW_EINVAL, "%s: the picture is %d x %d pixels, want sides of 1 to %d and at most 64 Mpx",
                       what, image->width, image->height, LW_MAX_SIDE);
    if (image->channels != 1 && image->channels != 3 && image->channels != 4)
        return lw_fail(err, LW_EINVAL, "%s: the picture has %d channels, want 1, 3 or 4", what, image->channels);
    if (image->stride < (size_t)image->width * (size_t)image->channels)
        return lw_fail(err, LW_EINVAL, "%s: the stride is %zu bytes, a row of %d pixels has %zu", what, image->stride,
                       image->width, (size_t)image->width * (size_t)image->channels);
    return LW_OK;
}

/* ---- text */

/* The length of the UTF-8 character at p (of n bytes) and its code point, or 0 for what is none: overlong forms,
 * surrogates, beyond U+10FFFF, cut short. */
static size_t utf8_char(const unsigned char *p, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = p[0] < 0x80             ? 1
                    : (p[0] & 0xe0) == 0xc0 ? 2
                    : (p[0] & 0xf0) == 0xe0 ? 3
                    : (p[0] & 0xf8) == 0xf0 ? 4
                                            : 0;
    if (length == 0 || length > n) return 0;
    uint32_t v = length == 1 ? p[0] : p[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        v = v << 6 | (p[i] & 0x3fu);
    }
    if (v < least[length] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return 0;
    *code = v;
    return length;
}

bool lw_utf8_valid(const char *text, size_t n) {
    uint32_t code;
    for (size_t i = 0; i < n;) {
        size_t length = utf8_char((const unsigned char *)text + i, n - i, &code);
        if (length == 0) return false;
        i += length;
    }
    return true;
}

char *lw_latin1_to_utf8(const char *text, size_t n) {
    char *out = lw_alloc(2 * n + 1, 1), *p = out;
    if (!out) return NULL;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x80) *p++ = (char)c;
        else *p++ = (char)(0xc0 | c >> 6), *p++ = (char)(0x80 | (c & 0x3f));
    }
    return out;
}

bool lw_utf8_to_latin1(const char *text, char **latin1) {
    size_t n = strlen(text);
    uint32_t code = 0;
    char *out = lw_alloc(n + 1, 1), *p = out;
    *latin1 = NULL;
    if (!out) return false;
    for (size_t i = 0; i < n;) {
        size_t length = utf8_char((const unsigned char *)text + i, n - i, &code);
        if (length == 0 || code > 0xff) {
            lw_free(out);
            return true;
        }
        *p++ = (char)code;
        i += length;
    }
    *latin1 = out;
    return true;
}

bool lw_fields_add(lw_fields *fields, const char *key, const char *value, size_t n_value, bool latin1) {
    lw_field *grown = lw_realloc(fields->items, (size_t)fields->n + 1, sizeof *grown);
    if (!grown) return false;
    fields->items = grown;
    lw_field *f = &grown[fields->n];
    f->key = lw_latin1_to_utf8(key, strlen(key));
    f->value = latin1 ? lw_latin1_to_utf8(value, n_value) : lw_strndup(value, n_value);
    if (!f->key || !f->value) {
        lw_free(f->key);
        lw_free(f->value);
        return false;
    }
    fields->n++;
    return true;
}

void lw_fields_free(lw_fields *fields) {
    if (!fields) return;
    for (uint32_t i = 0; i < fields->n; i++) {
        lw_free(fields->items[i].key);
        lw_free(fields->items[i].value);
    }
    lw_free(fields->items);
    memset(fields, 0, sizeof *fields);
}

/* ---- which codec */

typedef enum format { NO_FORMAT = 0, PNM, PNG, JPEG, WEBP } format;

static format format_of_bytes(const uint8_t *p, size_t n) {
    if (n >= 8 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0) return PNG;
    if (n >= 3 && memcmp(p, "\xff\xd8\xff", 3) == 0) return JPEG;
    if (n >= 12 && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0) return WEBP;
    if (n >= 3 && p[0] == 'P' && (p[1] == '5' || p[1] == '6') &&
        (p[2] == '#' || (p[2] >= 9 && p[2] <= 13) || p[2] == ' '))
        return PNM;
    return NO_FORMAT;
}

/* What a file that is no picture of ours looks like, for the message. */
static const char *other_format(const uint8_t *p, size_t n) {
    static const struct {
        const char *magic;
        unsigned char at, length;
        const char *name;
    } others[] = {
        {"GIF8", 0, 4, "a GIF"},
        {"BM", 0, 2, "a BMP"},
        {"II*\0", 0, 4, "a TIFF"},
        {"MM\0*", 0, 4, "a TIFF"},
        {"ftypavif", 4, 8, "an AVIF"},
        {"ftypheic", 4, 8, "a HEIC"},
        {"\xff\x0a", 0, 2, "a JPEG XL"},
        {"%PDF", 0, 4, "a PDF"},
        {"P1", 0, 2, "an ASCII PBM"},
        {"P2", 0, 2, "an ASCII PGM"},
        {"P3", 0, 2, "an ASCII PPM"},
        {"P4", 0, 2, "a PBM"},
        {"P7", 0, 2, "a PAM"},
        {"<svg", 0, 4, "an SVG"},
        {"\x89PNG", 0, 4, "a damaged PNG"},
        {"\x93NUMPY", 0, 6, "a NumPy array"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (n >= (size_t)others[i].at + others[i].length &&
            memcmp(p + others[i].at, others[i].magic, others[i].length) == 0)
            return others[i].name;
    return NULL;
}

static lw_status not_in_build(format which, const char *name, lw_status code, lw_error *err) {
    return lw_fail(err, code, "%s: %s is not in this build of linework", name,
                   which == PNG    ? "PNG"
                   : which == JPEG ? "JPEG"
                                   : "WebP");
}

lw_status lw_image_decode(const void *bytes, size_t n_bytes, const char *name, lw_image *out, lw_fields *fields,
                          lw_error *err) {
    if (!out || (!bytes && n_bytes)) return lw_fail(err, LW_EINVAL, "lw_image_decode: an argument is NULL");
    if (!name) name = "picture";
    memset(out, 0, sizeof *out);
    if (fields) *fields = (lw_fields){.size = sizeof *fields};
    if (n_bytes == 0) return lw_fail(err, LW_EINPUT, "%s: is empty (0 bytes)", name);
    const uint8_t *p = bytes;
    format which = format_of_bytes(p, n_bytes);
    const char *other = which == NO_FORMAT ? other_format(p, n_bytes) : NULL;
    switch (which) {
    case PNM: return lw_pnm_decode(p, n_bytes, name, out, err);
#ifdef LW_HAVE_PNG
    case PNG: return lw_png_decode(p, n_bytes, name, out, fields, err);
#endif
#ifdef LW_HAVE_JPEG
    case JPEG: return lw_jpeg_decode(p, n_bytes, name, out, err);
#endif
#ifdef LW_HAVE_WEBP
    case WEBP: return lw_webp_decode(p, n_bytes, name, out, err);
#endif
    case NO_FORMAT:
        if (other) return lw_fail(err, LW_EINPUT, "%s: is %s, want PNG, JPEG, WebP or PPM", name, other);
        return lw_fail(err, LW_EINPUT, "%s: is not a picture: begins with %02x %02x, want PNG, JPEG, WebP or PPM", name,
                       p[0], n_bytes > 1 ? p[1] : 0);
    default: return not_in_build(which, name, LW_EINPUT, err);
    }
}

static lw_status encode_as(format which, const lw_image *image, const lw_fields *fields, lw_buffer *out,
                           lw_error *err) {
    (void)fields;
    switch (which) {
    case PNM: return lw_pnm_encode(image, out, err);
#ifdef LW_HAVE_PNG
    case PNG: return lw_png_encode(image, fields, out, err);
#endif
#ifdef LW_HAVE_JPEG
    case JPEG: return lw_jpeg_encode(image, out, err);
#endif
#ifdef LW_HAVE_WEBP
    case WEBP: return lw_webp_encode(image, out, err);
#endif
    default: return not_in_build(which, "lw_image_encode", LW_EINVAL, err);
    }
}

lw_status lw_image_encode(const lw_image *image, const char *format_name, const lw_fields *fields, void **bytes,
                          size_t *n_bytes, lw_error *err) {
    static const char *const names[] = {"ppm", "png", "jpeg", "webp"};
    static const format formats[] = {PNM, PNG, JPEG, WEBP};
    if (!bytes || !n_bytes || !format_name) return lw_fail(err, LW_EINVAL, "lw_image_encode: an argument is NULL");
    *bytes = NULL;
    *n_bytes = 0;
    LW_TRY(lw_image_check(image, "lw_image_encode", err));
    format which = NO_FORMAT;
    for (int i = 0; i < 4; i++)
        if (strcmp(format_name, names[i]) == 0) which = formats[i];
    if (which == NO_FORMAT)
        return lw_fail(err, LW_EINVAL, "lw_image_encode: format '%s', want png, jpeg, webp or ppm", format_name);
    /* Only PNG and WebP hold alpha, and WebP holds no gray: the others get what they can hold. */
    lw_image rgb = {0};
    bool convert = (image->channels == 4 && which != PNG && which != WEBP) || (image->channels == 1 && which == WEBP);
    if (convert) LW_TRY(lw_image_to_rgb(image, &rgb, err));
    lw_buffer out = {0};
    lw_status status = encode_as(which, convert ? &rgb : image, fields, &out, err);
    lw_image_free(&rgb);
    if (status != LW_OK) {
        lw_free(out.bytes);
        return status;
    }
    *bytes = out.bytes;
    *n_bytes = out.n;
    return LW_OK;
}

/* ---- orientation and HWC3 */

lw_status lw_image_orient(lw_image *image, int orientation, const char *name, lw_error *err) {
    if (orientation < 2 || orientation > 8) return LW_OK;
    bool swapped = orientation >= 5; /* rows of the stored picture are columns of the one that is meant */
    lw_image out;
    LW_TRY(lw_image_new(&out, (uint64_t)(swapped ? image->height : image->width),
                        (uint64_t)(swapped ? image->width : image->height), image->channels, name, err));
    /* The stored pixel that lands at (0, 0), and the steps through the stored picture for a step right and down. */
    bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    ptrdiff_t step_x = image->channels, step_y = (ptrdiff_t)image->stride;
    const uint8_t *origin =
        image->data + (from_right ? (image->width - 1) * step_x : 0) + (from_bottom ? (image->height - 1) * step_y : 0);
    if (from_right) step_x = -step_x;
    if (from_bottom) step_y = -step_y;
    ptrdiff_t right = swapped ? step_y : step_x, down = swapped ? step_x : step_y;
    for (int32_t y = 0; y < out.height; y++) {
        const uint8_t *from = origin + y * down;
        uint8_t *to = lw_image_row(&out, y);
        for (int32_t x = 0; x < out.width; x++, to += out.channels)
            for (int c = 0; c < out.channels; c++) to[c] = from[x * right + c];
    }
    lw_image_free(image);
    *image = out;
    return LW_OK;
}

/* The reference's arithmetic in float32, cut to a byte: colour * a + 255 * (1 - a). */
static uint8_t over_white(uint8_t colour, uint8_t alpha) {
    float a = (float)alpha / 255.0f, v = (float)colour * a + 255.0f * (1.0f - a);
    return v >= 255.0f ? 255 : v <= 0.0f ? 0 : (uint8_t)v;
}

lw_status lw_image_to_rgb(const lw_image *in, lw_image *out, lw_error *err) {
    if (!out || out == in) return lw_fail(err, LW_EINVAL, "lw_image_to_rgb: out is %s", out ? "in itself" : "NULL");
    memset(out, 0, sizeof *out);
    LW_TRY(lw_image_check(in, "lw_image_to_rgb", err));
    LW_TRY(lw_image_new(out, (uint64_t)in->width, (uint64_t)in->height, 3, "lw_image_to_rgb", err));
    for (int32_t y = 0; y < in->height; y++) {
        const uint8_t *from = lw_image_row(in, y);
        uint8_t *to = lw_image_row(out, y);
        if (in->channels == 3) memcpy(to, from, out->stride);
        for (int32_t x = 0; x < in->width && in->channels != 3; x++, to += 3, from += in->channels)
            for (int c = 0; c < 3; c++) to[c] = in->channels == 1 ? from[0] : over_white(from[c], from[3]);
    }
    return LW_OK;
}
