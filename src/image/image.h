/* SPDX-License-Identifier: MIT
 * image: pictures. Owns the codecs (PPM always; PNG, JPEG, WebP where their libraries are found), reading and writing
 * of files, ControlNet's HWC3 and resize_image, OpenCV's two resize filters and Canny, bit for bit. Must not know
 * networks, devices, prompts or the command; sees base only.
 *
 * A decoder gets bytes whose magic is already its own, checks the header's sides with lw_image_new before it allocates
 * a pixel, and leaves *out empty when it fails. Anything damaged is refused: half a picture is never returned. */
#ifndef LW_IMAGE_H
#define LW_IMAGE_H

#include "base/base.h"

#define LW_MAX_PIXELS ((uint64_t)64 << 20) /* 64 Mpx: 8192 x 8192 is the largest square */
#define LW_MAX_SIDE 1000000                /* of any picture: keeps coordinates exact in float arithmetic */

/* Bytes that grow. Empty is all zeros; freed with lw_free(bytes). */
typedef struct lw_buffer {
    uint8_t *bytes;
    size_t n, room;
} lw_buffer;

bool lw_buffer_add(lw_buffer *buffer, const void *bytes, size_t n); /* false: no memory, the buffer is as it was */

/* Is w x h a picture that may be held? LW_EINPUT, naming both sides and the limit. */
lw_status lw_image_check_sides(uint64_t width, uint64_t height, const char *name, lw_error *err);

/* Checks the sides and allocates rows without gaps between them. The pixels are not cleared. */
lw_status lw_image_new(lw_image *out, uint64_t width, uint64_t height, int channels, const char *name, lw_error *err);

/* Is *image what a caller may pass in? LW_EINVAL. what: "lw_canny" */
lw_status lw_image_check(const lw_image *image, const char *what, lw_error *err);

static inline uint8_t *lw_image_row(const lw_image *image, int32_t y) {
    return image->data + (size_t)y * image->stride;
}

/* Turns a decoded picture as EXIF orientation 1..8 says. In place; on failure *image is as it was. */
lw_status lw_image_orient(lw_image *image, int orientation, const char *name, lw_error *err);

/* Appends a field, both texts Latin-1 or UTF-8 as told (key: Latin-1 always). false: no memory. */
bool lw_fields_add(lw_fields *fields, const char *key, const char *value, size_t n_value, bool latin1);

bool lw_utf8_valid(const char *text, size_t n);
char *lw_latin1_to_utf8(const char *text, size_t n); /* NULL: no memory */
/* *latin1 is NULL where the text holds a character beyond U+00FF. false: no memory. */
bool lw_utf8_to_latin1(const char *text, char **latin1);

/* The codecs. Decoders are given bytes with their magic; encoders checked pictures; w/o the library both don't exist.
 */
lw_status lw_pnm_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err);
lw_status lw_pnm_encode(const lw_image *image, lw_buffer *out, lw_error *err);
#ifdef LW_HAVE_PNG
lw_status lw_png_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_fields *fields,
                        lw_error *err);
lw_status lw_png_encode(const lw_image *image, const lw_fields *fields, lw_buffer *out, lw_error *err);
#endif
#ifdef LW_HAVE_JPEG
lw_status lw_jpeg_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err);
lw_status lw_jpeg_encode(const lw_image *image, lw_buffer *out, lw_error *err);
#endif
#ifdef LW_HAVE_WEBP
lw_status lw_webp_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err);
lw_status lw_webp_encode(const lw_image *image, lw_buffer *out, lw_error *err);
#endif

#endif
