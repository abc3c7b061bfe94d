/* SPDX-License-Identifier: MIT
 * WebP over libwebp. Read lossy and lossless, written lossless. Its memory is its own: only our part is counted. */
#include "image/image.h"

#ifdef LW_HAVE_WEBP
#include <limits.h>

#include <webp/decode.h>
#include <webp/encode.h>

static const char *status_text(VP8StatusCode status) {
    switch (status) {
    case VP8_STATUS_BITSTREAM_ERROR: return "the bitstream is wrong";
    case VP8_STATUS_UNSUPPORTED_FEATURE: return "it uses a feature that libwebp does not know";
    case VP8_STATUS_NOT_ENOUGH_DATA: return "the file is cut short";
    default: return "it can't be decoded";
    }
}

lw_status lw_webp_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err) {
    WebPDecoderConfig config;
    uint64_t held = (uint64_t)bytes[4] | (uint64_t)bytes[5] << 8 | (uint64_t)bytes[6] << 16 | (uint64_t)bytes[7] << 24;
    if (held + 8 > n) /* libwebp decodes a lossy picture that lacks its last rows' data */
        return lw_fail(err, LW_EINPUT, "%s: the WebP is cut short: its header says %llu bytes, the file has %zu", name,
                       (unsigned long long)held + 8, n);
    if (lw_fault_hit() || !WebPInitDecoderConfig(&config))
        return lw_fail(err, LW_ENOMEM, "%s: no memory to read the WebP", name);
    VP8StatusCode code = WebPGetFeatures(bytes, n, &config.input);
    if (code != VP8_STATUS_OK) return lw_fail(err, LW_EINPUT, "%s: the WebP is damaged: %s", name, status_text(code));
    if (config.input.has_animation) return lw_fail(err, LW_EINPUT, "%s: is an animated WebP, want one picture", name);
    int channels = config.input.has_alpha ? 4 : 3;
    LW_TRY(lw_image_new(out, (uint64_t)config.input.width, (uint64_t)config.input.height, channels, name, err));
    config.output.colorspace = channels == 4 ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = out->data;
    config.output.u.RGBA.stride = (int)out->stride;
    config.output.u.RGBA.size = out->stride * (size_t)out->height;
    code = WebPDecode(bytes, n, &config);
    WebPFreeDecBuffer(&config.output);
    if (code == VP8_STATUS_OK) return LW_OK;
    lw_image_free(out);
    if (code == VP8_STATUS_OUT_OF_MEMORY) return lw_fail(err, LW_ENOMEM, "%s: no memory to read the WebP", name);
    return lw_fail(err, LW_EINPUT, "%s: the WebP is damaged: %s", name, status_text(code));
}

static int take_bytes(const uint8_t *bytes, size_t n, const WebPPicture *picture) {
    return lw_buffer_add(picture->custom_ptr, bytes, n);
}

lw_status lw_webp_encode(const lw_image *image, lw_buffer *out, lw_error *err) {
    WebPConfig config;
    WebPPicture picture;
    if (image->width > WEBP_MAX_DIMENSION || image->height > WEBP_MAX_DIMENSION)
        return lw_fail(err, LW_EINVAL, "lw_image_encode: a WebP's sides are at most %d, the picture is %d x %d",
                       WEBP_MAX_DIMENSION, image->width, image->height);
    if (image->stride > INT_MAX)
        return lw_fail(err, LW_EINVAL, "lw_image_encode: the stride is %zu bytes, a WebP is made of at most %d",
                       image->stride, INT_MAX);
    if (!WebPConfigInit(&config) || !WebPConfigLosslessPreset(&config, 4) || !WebPPictureInit(&picture))
        return lw_fail(err, LW_EINTERNAL, "lw_image_encode: libwebp is of another version than its header");
    config.exact = 1; /* keeps the colours under full transparency */
    picture.use_argb = 1;
    picture.width = image->width;
    picture.height = image->height;
    picture.writer = take_bytes;
    picture.custom_ptr = out;
    int stride = (int)image->stride;
    bool ok = !lw_fault_hit() && (image->channels == 4 ? WebPPictureImportRGBA(&picture, image->data, stride)
                                                       : WebPPictureImportRGB(&picture, image->data, stride));
    if (ok) ok = WebPEncode(&config, &picture);
    WebPEncodingError code = picture.error_code;
    WebPPictureFree(&picture);
    if (ok) return LW_OK;
    /* an import or a write can fail for memory only */
    if (code == VP8_ENC_OK || code == VP8_ENC_ERROR_OUT_OF_MEMORY || code == VP8_ENC_ERROR_BITSTREAM_OUT_OF_MEMORY ||
        code == VP8_ENC_ERROR_BAD_WRITE)
        return lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory to write a WebP of %d x %d pixels", image->width,
                       image->height);
    return lw_fail(err, LW_EINTERNAL, "lw_image_encode: libwebp's error %d", (int)code);
}
#endif
