/* SPDX-License-Identifier: MIT
 * PNG over libpng. Only the chunks that make pixels are looked at, and text where it is asked for: a profile or a
 * preview can neither cost memory nor refuse a picture. A wrong checksum anywhere refuses it. */
#include "image/image.h"

#ifdef LW_HAVE_PNG
#include <png.h>
#include <setjmp.h>
#include <string.h>

enum {
    TEXT_CHUNKS = 32,           /* more are dropped */
    TEXT_CHUNK_BYTES = 1 << 20, /* of one, decompressed */
    TEXT_TOTAL_BYTES = 4 << 20, /* of all, as UTF-8 */
};

typedef struct reader {
    const uint8_t *bytes;
    size_t n, at;
    const char *name;
    lw_image *out;
    lw_fields *fields; /* or NULL */
    png_structp png;
    png_infop info;
    bool no_memory;
    lw_status status; /* what our own checks found, with its sentence in err */
    lw_error *err;
    char message[160]; /* libpng's */
} reader;

/* ---- libpng's callbacks; `flag` is the reader's or writer's no_memory */

static png_voidp allocate(png_structp png, png_alloc_size_t n) {
    void *p = lw_alloc(n, 1);
    if (!p) *(bool *)png_get_mem_ptr(png) = true;
    return p;
}

static void release(png_structp png, png_voidp p) {
    (void)png;
    lw_free(p);
}

static void on_error(png_structp png, png_const_charp message) {
    char *to = png_get_error_ptr(png);
    if (to) { /* always 160 bytes */
        strncpy(to, message, 159);
        to[159] = 0;
    }
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}

static void give_bytes(png_structp png, png_bytep to, size_t n) {
    reader *r = png_get_io_ptr(png);
    if (r->n - r->at < n) png_error(png, "the file is cut short");
    memcpy(to, r->bytes + r->at, n);
    r->at += n;
}

/* ---- reading */

static uint32_t u32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Walks the chunks before libpng does. It allocates what a chunk's length says before it knows that the file ends, and
 * it ignores an APNG's later frames or, patched, reads them: neither should be left to it. */
static lw_status check_chunks(const uint8_t *bytes, size_t n, const char *name, lw_error *err) {
    for (size_t at = 8; n - at >= 12;) {
        const uint8_t *type = bytes + at + 4;
        uint32_t length = u32(bytes + at);
        if (length > n - at - 12)
            return lw_fail(err, LW_EINPUT,
                           "%s: the PNG is damaged or cut short: the chunk at byte %zu says %u bytes, the file has %zu",
                           name, at, length, n - at - 12);
        if (memcmp(type, "acTL", 4) == 0)
            return lw_fail(err, LW_EINPUT, "%s: is an animated PNG, want one picture", name);
        if (memcmp(type, "IEND", 4) == 0) return LW_OK;
        at += 12 + (size_t)length;
    }
    return lw_fail(err, LW_EINPUT, "%s: the PNG is cut short: it has no IEND within its %zu bytes", name, n);
}

/* Asks libpng for rows of 8-bit gray, RGB or RGBA; palette indices stay indices. */
static int choose_channels(reader *r, int colour, int depth) {
    bool transparent = png_get_valid(r->png, r->info, PNG_INFO_tRNS) != 0;
    if (depth == 16) png_set_strip_16(r->png);
    if (depth < 8) png_set_packing(r->png);
    if (colour == PNG_COLOR_TYPE_PALETTE) return transparent ? 4 : 3;
    if (colour == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(r->png);
    if (transparent) png_set_tRNS_to_alpha(r->png);
    bool alpha = transparent || (colour & PNG_COLOR_MASK_ALPHA);
    if (alpha && !(colour & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(r->png);
    return alpha ? 4 : colour & PNG_COLOR_MASK_COLOR ? 3 : 1;
}

/* Indices at the front of each row become colours, from the last pixel on so that none is overwritten unread. */
static void expand_palette(reader *r) {
    png_colorp palette = NULL;
    png_bytep alpha = NULL;
    int n_palette = 0, n_alpha = 0, channels = r->out->channels;
    png_get_PLTE(r->png, r->info, &palette, &n_palette);
    if (channels == 4) png_get_tRNS(r->png, r->info, &alpha, &n_alpha, NULL);
    for (int32_t y = 0; y < r->out->height; y++) {
        uint8_t *row = lw_image_row(r->out, y);
        for (int32_t x = r->out->width - 1; x >= 0; x--) {
            int i = row[x];
            if (i >= n_palette) {
                r->status = lw_fail(r->err, LW_EINPUT, "%s: pixel (%d, %d) has colour %d, the palette has %d", r->name,
                                    x, y, i, n_palette);
                return;
            }
            uint8_t *to = row + (ptrdiff_t)x * channels;
            to[0] = palette[i].red, to[1] = palette[i].green, to[2] = palette[i].blue;
            if (channels == 4) to[3] = i < n_alpha ? alpha[i] : 255;
        }
    }
}

static void take_texts(reader *r) {
    png_textp texts = NULL;
    int n = 0;
    size_t total = 0;
    png_get_text(r->png, r->info, &texts, &n);
    for (int i = 0; i < n; i++) {
        bool international = texts[i].compression >= PNG_ITXT_COMPRESSION_NONE;
        const char *text = texts[i].text ? texts[i].text : "";
        size_t length = strlen(text);
        total += strlen(texts[i].key) + length;
        if (total > TEXT_TOTAL_BYTES) {
            r->status = lw_fail(r->err, LW_EINPUT, "%s: has over %d bytes of text", r->name, TEXT_TOTAL_BYTES);
            return;
        }
        bool latin1 = !international || !lw_utf8_valid(text, length);
        if (!lw_fields_add(r->fields, texts[i].key, text, length, latin1)) {
            r->no_memory = true;
            return;
        }
    }
}

static void read_pixels(reader *r) {
    int depth, colour, interlace;
    png_uint_32 width, height;
    png_read_info(r->png, r->info);
    png_get_IHDR(r->png, r->info, &width, &height, &depth, &colour, &interlace, NULL, NULL);
    int channels = choose_channels(r, colour, depth);
    int passes = png_set_interlace_handling(r->png);
    png_read_update_info(r->png, r->info);
    r->status = lw_image_new(r->out, width, height, channels, r->name, r->err);
    if (r->status != LW_OK) return;
    if (png_get_rowbytes(r->png, r->info) > r->out->stride) png_error(r->png, "a row is longer than its pixels");
    if (passes > 1) {
        for (int pass = 0; pass < passes; pass++)
            for (int32_t y = 0; y < r->out->height; y++) png_read_row(r->png, lw_image_row(r->out, y), NULL);
    } else {
        for (int32_t y = 0; y < r->out->height; y++) png_read_row(r->png, lw_image_row(r->out, y), NULL);
    }
    png_read_end(r->png, r->info);
    if (colour == PNG_COLOR_TYPE_PALETTE) expand_palette(r);
    if (r->status == LW_OK && r->fields) take_texts(r);
}

/* The function that libpng's errors come back to: false. It has no variables that could be lost on the way. */
static bool read_guarded(reader *r) {
    if (setjmp(png_jmpbuf(r->png))) return false;
    static const png_byte texts[] = "tEXt\0zTXt\0iTXt";
    png_set_user_limits(r->png, LW_MAX_SIDE, LW_MAX_SIDE);
    png_set_chunk_cache_max(r->png, TEXT_CHUNKS);
    png_set_chunk_malloc_max(r->png, TEXT_CHUNK_BYTES);
    png_set_crc_action(r->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    if (r->fields) png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_AS_DEFAULT, texts, 3);
    png_set_read_fn(r->png, r, give_bytes);
    read_pixels(r);
    return true;
}

lw_status lw_png_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_fields *fields,
                        lw_error *err) {
    reader r = {.bytes = bytes, .n = n, .name = name, .out = out, .fields = fields, .err = err};
    if (n < 33 || memcmp(bytes + 8, "\0\0\0\rIHDR", 8) != 0)
        return lw_fail(err, LW_EINPUT, "%s: the PNG's header is damaged or cut short (%zu bytes)", name, n);
    /* Before libpng, whose own refusal would not name the numbers. */
    LW_TRY(lw_image_check_sides(u32(bytes + 16), u32(bytes + 20), name, err));
    LW_TRY(check_chunks(bytes, n, name, err));
    bool ok = false;
    r.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, r.message, on_error, on_warning, &r.no_memory, allocate,
                                     release);
    r.info = r.png ? png_create_info_struct(r.png) : NULL;
    if (r.info) ok = read_guarded(&r);
    else r.no_memory = true;
    png_destroy_read_struct(&r.png, &r.info, NULL);
    if (ok && r.status == LW_OK && !r.no_memory) return LW_OK;
    lw_image_free(out);
    if (fields) {
        lw_fields_free(fields);
        fields->size = sizeof *fields;
    }
    if (r.status != LW_OK) return r.status;
    if (r.no_memory) return lw_fail(err, LW_ENOMEM, "%s: no memory to read the PNG", name);
    return lw_fail(err, LW_EINPUT, "%s: the PNG is damaged: %s", name, r.message);
}

/* ---- writing */

typedef struct writer {
    const lw_image *image;
    lw_buffer *out;
    png_structp png;
    png_infop info;
    png_text *texts; /* with Latin-1 keys and values of their own, or values borrowed from the fields */
    char **owned;
    uint32_t n_texts;
    bool no_memory;
    char message[160];
} writer;

static void take_bytes(png_structp png, png_bytep bytes, size_t n) {
    writer *w = png_get_io_ptr(png);
    if (lw_buffer_add(w->out, bytes, n)) return;
    w->no_memory = true;
    png_error(png, "out of memory");
}

static void flush(png_structp png) { (void)png; }

/* 1..79 printable Latin-1 characters, single spaces only inside: libpng would silently change anything else. */
static bool valid_key(const char *key) {
    size_t n = strlen(key);
    if (n < 1 || n > 79 || key[0] == ' ' || key[n - 1] == ' ') return false;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)key[i];
        if (c < 32 || (c > 126 && c < 161) || (c == ' ' && key[i + 1] == ' ')) return false;
    }
    return true;
}

/* Checks the fields and says how each is stored. The value of a Latin-1 field is converted, any other is borrowed. */
static lw_status prepare_texts(writer *w, const lw_fields *fields, lw_error *err) {
    uint32_t n = fields ? fields->n : 0;
    if (n == 0) return LW_OK;
    w->texts = lw_alloc(n, sizeof *w->texts);
    w->owned = lw_alloc(2 * (size_t)n, sizeof *w->owned);
    if (!w->texts || !w->owned) goto no_memory;
    for (uint32_t i = 0; i < n; i++) {
        const lw_field *f = &fields->items[i];
        char *key = NULL, *value = NULL;
        if (!f->key || !f->value) return lw_fail(err, LW_EINVAL, "lw_image_encode: field %u is NULL", i);
        if (!lw_utf8_valid(f->value, strlen(f->value)))
            return lw_fail(err, LW_EINVAL, "lw_image_encode: the text of field %u is not UTF-8", i);
        if (!lw_utf8_to_latin1(f->key, &key)) goto no_memory;
        w->owned[2 * i] = key;
        if (!key || !valid_key(key))
            return lw_fail(err, LW_EINVAL,
                           "lw_image_encode: the key of field %u is '%.80s', want 1 to 79 printable Latin-1 letters", i,
                           f->key);
        if (!lw_utf8_to_latin1(f->value, &value)) goto no_memory;
        w->owned[2 * i + 1] = value;
        png_text *t = &w->texts[i];
        t->compression = value ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
        t->key = key;
        t->text = value ? value : f->value;
        *(value ? &t->text_length : &t->itxt_length) = strlen(t->text);
        w->n_texts++;
    }
    return LW_OK;
no_memory:
    return lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory for %u text fields", n);
}

static bool write_guarded(writer *w) {
    if (setjmp(png_jmpbuf(w->png))) return false;
    const lw_image *image = w->image;
    int colour = image->channels == 1   ? PNG_COLOR_TYPE_GRAY
                 : image->channels == 3 ? PNG_COLOR_TYPE_RGB
                                        : PNG_COLOR_TYPE_RGB_ALPHA;
    png_set_write_fn(w->png, w, take_bytes, flush);
    png_set_IHDR(w->png, w->info, (png_uint_32)image->width, (png_uint_32)image->height, 8, colour, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_BASE, PNG_FILTER_TYPE_BASE);
    if (w->n_texts) png_set_text(w->png, w->info, w->texts, (int)w->n_texts);
    png_write_info(w->png, w->info);
    for (int32_t y = 0; y < image->height; y++) png_write_row(w->png, lw_image_row(image, y));
    png_write_end(w->png, w->info);
    return true;
}

lw_status lw_png_encode(const lw_image *image, const lw_fields *fields, lw_buffer *out, lw_error *err) {
    writer w = {.image = image, .out = out};
    bool ok = false;
    lw_status status = prepare_texts(&w, fields, err);
    if (status == LW_OK) {
        w.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, w.message, on_error, on_warning, &w.no_memory,
                                          allocate, release);
        w.info = w.png ? png_create_info_struct(w.png) : NULL;
        if (w.info) ok = write_guarded(&w);
        else w.no_memory = true;
        png_destroy_write_struct(&w.png, &w.info);
        if (w.no_memory)
            status = lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory to write a PNG of %d x %d pixels",
                             image->width, image->height);
        else if (!ok) status = lw_fail(err, LW_EINTERNAL, "lw_image_encode: libpng: %s", w.message);
    }
    for (uint32_t i = 0; w.owned && fields && i < 2 * fields->n; i++) lw_free(w.owned[i]);
    lw_free(w.owned);
    lw_free(w.texts);
    return status;
}
#endif
