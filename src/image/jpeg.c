/* SPDX-License-Identifier: MIT
 * JPEG over libjpeg-turbo. Its warnings of damaged data are errors here: it would go on and paint the rest gray. */
#include "image/image.h"

#ifdef LW_HAVE_JPEG
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum {
    MAX_SCANS = 100,      /* a progressive file of many empty scans costs a pass over the picture for each */
    QUALITY = 95,         /* OpenCV's default, that published scores are measured through */
    MAX_JPEG_SIDE = 65500 /* of the library */
};

/* What reading and writing share: the way back from an error, and the memory manager's own functions, which ours stand
 * before so that a test can make them fail. */
typedef struct guard {
    struct jpeg_error_mgr errors;
    jmp_buf back;
    char message[JMSG_LENGTH_MAX];
    bool no_memory;
    void *(*alloc_small)(j_common_ptr, int, size_t);
    void *(*alloc_large)(j_common_ptr, int, size_t);
    JSAMPARRAY (*alloc_sarray)(j_common_ptr, int, JDIMENSION, JDIMENSION);
    JBLOCKARRAY (*alloc_barray)(j_common_ptr, int, JDIMENSION, JDIMENSION);
    void (*realize_virt_arrays)(j_common_ptr);
} guard;

static guard *guard_of(j_common_ptr jpeg) { return (guard *)(void *)jpeg->err; }

static void on_error(j_common_ptr jpeg) {
    guard *g = guard_of(jpeg);
    if (jpeg->err->msg_code == JERR_OUT_OF_MEMORY) g->no_memory = true;
    jpeg->err->format_message(jpeg, g->message);
    longjmp(g->back, 1);
}

/* level -1 is a warning of damaged data. These mean that pixels were lost; the others (letters between markers, an
 * unknown Adobe transform, a newer JFIF version) do not, and cameras write such files. */
static void on_message(j_common_ptr jpeg, int level) {
    static const int losses[] = {JWRN_BOGUS_PROGRESSION, JWRN_HIT_MARKER,     JWRN_HUFF_BAD_CODE,  JWRN_JPEG_EOF,
                                 JWRN_MUST_RESYNC,       JWRN_NOT_SEQUENTIAL, JWRN_ARITH_BAD_CODE, JWRN_TOO_MUCH_DATA};
    if (level >= 0) return;
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++)
        if (jpeg->err->msg_code == losses[i]) on_error(jpeg);
}

static void on_output(j_common_ptr jpeg) { (void)jpeg; }

static void fail_if_told(j_common_ptr jpeg) {
    if (lw_fault_hit()) ERREXIT1(jpeg, JERR_OUT_OF_MEMORY, 0);
}

static void *alloc_small(j_common_ptr jpeg, int pool, size_t n) {
    fail_if_told(jpeg);
    return guard_of(jpeg)->alloc_small(jpeg, pool, n);
}

static void *alloc_large(j_common_ptr jpeg, int pool, size_t n) {
    fail_if_told(jpeg);
    return guard_of(jpeg)->alloc_large(jpeg, pool, n);
}

static JSAMPARRAY alloc_sarray(j_common_ptr jpeg, int pool, JDIMENSION width, JDIMENSION rows) {
    fail_if_told(jpeg);
    return guard_of(jpeg)->alloc_sarray(jpeg, pool, width, rows);
}

static JBLOCKARRAY alloc_barray(j_common_ptr jpeg, int pool, JDIMENSION width, JDIMENSION rows) {
    fail_if_told(jpeg);
    return guard_of(jpeg)->alloc_barray(jpeg, pool, width, rows);
}

static void realize_virt_arrays(j_common_ptr jpeg) {
    fail_if_told(jpeg);
    guard_of(jpeg)->realize_virt_arrays(jpeg);
}

static struct jpeg_error_mgr *set_errors(guard *g) {
    jpeg_std_error(&g->errors);
    g->errors.error_exit = on_error;
    g->errors.emit_message = on_message;
    g->errors.output_message = on_output;
    return &g->errors;
}

static void set_memory(guard *g, struct jpeg_memory_mgr *mem) {
    g->alloc_small = mem->alloc_small, mem->alloc_small = alloc_small;
    g->alloc_large = mem->alloc_large, mem->alloc_large = alloc_large;
    g->alloc_sarray = mem->alloc_sarray, mem->alloc_sarray = alloc_sarray;
    g->alloc_barray = mem->alloc_barray, mem->alloc_barray = alloc_barray;
    g->realize_virt_arrays = mem->realize_virt_arrays, mem->realize_virt_arrays = realize_virt_arrays;
}

/* ---- EXIF */

static uint32_t exif_number(const uint8_t *p, int bytes, bool little) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint32_t)p[i] << 8 * (little ? i : bytes - 1 - i);
    return v;
}

/* Orientation 1..8 of the first directory of an EXIF marker; 1 for whatever is not well formed. */
static int exif_orientation(const uint8_t *p, size_t n) {
    if (n < 14 || memcmp(p, "Exif\0", 6) != 0) return 1;
    p += 6, n -= 6;
    bool little = p[0] == 'I';
    if (memcmp(p, little ? "II" : "MM", 2) != 0 || exif_number(p + 2, 2, little) != 42) return 1;
    size_t at = exif_number(p + 4, 4, little);
    if (at > n || n - at < 2) return 1;
    size_t entries = exif_number(p + at, 2, little);
    for (at += 2; entries > 0 && n - at >= 12; entries--, at += 12) {
        if (exif_number(p + at, 2, little) != 0x0112) continue;
        uint32_t type = exif_number(p + at + 2, 2, little), count = exif_number(p + at + 4, 4, little);
        uint32_t v = exif_number(p + at + 8, type == 4 ? 4 : 2, little);
        return (type == 3 || type == 4) && count == 1 && v >= 1 && v <= 8 ? (int)v : 1;
    }
    return 1;
}

/* ---- reading */

typedef struct reader {
    guard guard;
    struct jpeg_decompress_struct jpeg;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    const uint8_t *bytes;
    size_t n;
    const char *name;
    lw_image *out;
    int orientation;
    bool too_many_scans;
    lw_status status;
    lw_error *err;
} reader;

static void source_start(j_decompress_ptr jpeg) { (void)jpeg; }

static boolean source_more(j_decompress_ptr jpeg) {
    ERREXIT(jpeg, JERR_INPUT_EOF); /* all bytes were given at once */
    return FALSE;
}

static void source_skip(j_decompress_ptr jpeg, long n) {
    if (n <= 0) return;
    if ((size_t)n > jpeg->src->bytes_in_buffer) ERREXIT(jpeg, JERR_INPUT_EOF);
    jpeg->src->next_input_byte += n;
    jpeg->src->bytes_in_buffer -= (size_t)n;
}

static void on_progress(j_common_ptr jpeg) {
    j_decompress_ptr d = (j_decompress_ptr)jpeg;
    if (d->input_scan_number <= MAX_SCANS) return;
    ((reader *)d->client_data)->too_many_scans = true;
    ERREXIT(jpeg, JERR_INPUT_EOF);
}

static void read_pixels(reader *r) {
    j_decompress_ptr jpeg = &r->jpeg;
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(jpeg, TRUE);
    bool gray = jpeg->jpeg_color_space == JCS_GRAYSCALE && jpeg->num_components == 1;
    bool colour =
        (jpeg->jpeg_color_space == JCS_YCbCr || jpeg->jpeg_color_space == JCS_RGB) && jpeg->num_components == 3;
    if (!gray && !colour) {
        bool cmyk = jpeg->jpeg_color_space == JCS_CMYK || jpeg->jpeg_color_space == JCS_YCCK;
        r->status = lw_fail(r->err, LW_EINPUT, "%s: the JPEG has %d components%s, want gray or RGB", r->name,
                            jpeg->num_components, cmyk ? " (CMYK)" : "");
        return;
    }
    r->orientation = 1;
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length >= 6 && memcmp(m->data, "Exif\0", 6) == 0) {
            r->orientation = exif_orientation(m->data, m->data_length);
            break;
        }
    r->status = lw_image_new(r->out, jpeg->image_width, jpeg->image_height, gray ? 1 : 3, r->name, r->err);
    if (r->status != LW_OK) return;
    jpeg->out_color_space = gray ? JCS_GRAYSCALE : JCS_RGB;
    jpeg->progress = &r->progress;
    jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = lw_image_row(r->out, (int32_t)jpeg->output_scanline);
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_decompress(jpeg);
}

static bool read_guarded(reader *r) {
    if (setjmp(r->guard.back)) return false;
    r->jpeg.err = set_errors(&r->guard);
    if (lw_fault_hit()) {
        r->guard.no_memory = true;
        return false;
    }
    jpeg_create_decompress(&r->jpeg);
    r->jpeg.client_data = r;
    set_memory(&r->guard, r->jpeg.mem);
    r->source = (struct jpeg_source_mgr){.next_input_byte = r->bytes,
                                         .bytes_in_buffer = r->n,
                                         .init_source = source_start,
                                         .fill_input_buffer = source_more,
                                         .skip_input_data = source_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = source_start};
    r->jpeg.src = &r->source;
    r->progress.progress_monitor = on_progress;
    read_pixels(r);
    return true;
}

lw_status lw_jpeg_decode(const uint8_t *bytes, size_t n, const char *name, lw_image *out, lw_error *err) {
    reader *r = lw_alloc(1, sizeof *r); /* too large for the stack of a small thread */
    if (!r) return lw_fail(err, LW_ENOMEM, "%s: no memory to read the JPEG", name);
    r->bytes = bytes, r->n = n, r->name = name, r->out = out, r->err = err;
    bool ok = read_guarded(r);
    lw_status status = r->status;
    if (status == LW_OK && !ok) {
        if (r->guard.no_memory) status = lw_fail(err, LW_ENOMEM, "%s: no memory to read the JPEG", name);
        else if (r->too_many_scans) status = lw_fail(err, LW_EINPUT, "%s: the JPEG has over %d scans", name, MAX_SCANS);
        else status = lw_fail(err, LW_EINPUT, "%s: the JPEG is damaged: %s", name, r->guard.message);
    }
    jpeg_destroy_decompress(&r->jpeg);
    if (status == LW_OK) status = lw_image_orient(out, r->orientation, name, err);
    if (status != LW_OK) lw_image_free(out);
    lw_free(r);
    return status;
}

/* ---- writing */

typedef struct writer {
    guard guard;
    struct jpeg_compress_struct jpeg;
    struct jpeg_destination_mgr target;
    const lw_image *image;
    lw_buffer *out;
    uint8_t piece[4096];
} writer;

static void target_start(j_compress_ptr jpeg) {
    writer *w = jpeg->client_data;
    w->target.next_output_byte = w->piece;
    w->target.free_in_buffer = sizeof w->piece;
}

static boolean target_full(j_compress_ptr jpeg) {
    writer *w = jpeg->client_data;
    if (!lw_buffer_add(w->out, w->piece, sizeof w->piece)) ERREXIT1(jpeg, JERR_OUT_OF_MEMORY, 0);
    target_start(jpeg);
    return TRUE;
}

static void target_end(j_compress_ptr jpeg) {
    writer *w = jpeg->client_data;
    if (!lw_buffer_add(w->out, w->piece, sizeof w->piece - w->target.free_in_buffer))
        ERREXIT1(jpeg, JERR_OUT_OF_MEMORY, 0);
}

static bool write_guarded(writer *w) {
    j_compress_ptr jpeg = &w->jpeg;
    if (setjmp(w->guard.back)) return false;
    jpeg->err = set_errors(&w->guard);
    if (lw_fault_hit()) {
        w->guard.no_memory = true;
        return false;
    }
    jpeg_create_compress(jpeg);
    jpeg->client_data = w;
    set_memory(&w->guard, jpeg->mem);
    w->target = (struct jpeg_destination_mgr){
        .init_destination = target_start, .empty_output_buffer = target_full, .term_destination = target_end};
    jpeg->dest = &w->target;
    jpeg->image_width = (JDIMENSION)w->image->width;
    jpeg->image_height = (JDIMENSION)w->image->height;
    jpeg->input_components = w->image->channels;
    jpeg->in_color_space = w->image->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(jpeg);
    jpeg_set_quality(jpeg, QUALITY, TRUE);
    jpeg_start_compress(jpeg, TRUE);
    while (jpeg->next_scanline < jpeg->image_height) {
        JSAMPROW row = lw_image_row(w->image, (int32_t)jpeg->next_scanline);
        jpeg_write_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_compress(jpeg);
    return true;
}

lw_status lw_jpeg_encode(const lw_image *image, lw_buffer *out, lw_error *err) {
    if (image->width > MAX_JPEG_SIDE || image->height > MAX_JPEG_SIDE)
        return lw_fail(err, LW_EINVAL, "lw_image_encode: a JPEG's sides are at most %d, the picture is %d x %d",
                       MAX_JPEG_SIDE, image->width, image->height);
    writer *w = lw_alloc(1, sizeof *w);
    if (!w) return lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory to write a JPEG");
    w->image = image, w->out = out;
    lw_status status = LW_OK;
    if (!write_guarded(w)) {
        if (w->guard.no_memory)
            status = lw_fail(err, LW_ENOMEM, "lw_image_encode: no memory to write a JPEG of %d x %d pixels",
                             image->width, image->height);
        else status = lw_fail(err, LW_EINTERNAL, "lw_image_encode: libjpeg: %s", w->guard.message);
    }
    jpeg_destroy_compress(&w->jpeg);
    lw_free(w);
    return status;
}
#endif
