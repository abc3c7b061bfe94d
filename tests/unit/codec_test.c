/* SPDX-License-Identifier: MIT
 * The codecs: files of every kind against known pixels, round trips, text fields, orientation, damage and faults. */
#include "cpu_time.h"
#include "pictures.h"

#include <inttypes.h>
#include <sys/resource.h>

#if defined(LW_HAVE_PNG) || defined(LW_HAVE_JPEG) || defined(LW_HAVE_WEBP)
static lw_image decode_file(const char *file, lw_fields *fields) {
    char path[512];
    snprintf(path, sizeof path, "%s/image/%s", LW_TEST_DATA, file);
    lw_image out;
    lw_error err = {0};
    if (lw_image_read(path, &out, fields, &err) != LW_OK) fail_msg("%s", err.message);
    return out;
}
#endif

static void refuse(const void *bytes, size_t n, const char *name, lw_status want) {
    lw_image out;
    lw_fields fields;
    lw_error err = {0};
    lw_status status = lw_image_decode(bytes, n, name, &out, &fields, &err);
    if (status != want) fail_msg("%s: status %d, want %d (%s)", name, status, want, err.message);
    assert_sentence(&err, want, name);
    assert_empty(&out);
    assert_int_equal(fields.n, 0);
    assert_null(fields.items);
}

static void *encode(const lw_image *image, const char *format, const lw_fields *fields, size_t *n) {
    void *bytes;
    lw_error err = {0};
    if (lw_image_encode(image, format, fields, &bytes, n, &err) != LW_OK) fail_msg("%s", err.message);
    return bytes;
}

/* ---- PPM */

static void test_ppm(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        int w, h, channels;
        const char *pixels;
    } cases[] = {
        {"P6 1 1 255 abc", 14, 1, 1, 3, "abc"},
        {"P6\n# a comment 7\n2#x\n 1\r\n255\nabcdef and more", 45, 2, 1, 3, "abcdef"},
        {"P5\n1 3\n255\nabc", 14, 1, 3, 1, "abc"},
        {"P5\n2 1\n65535\nabcd", 17, 2, 1, 1, "ac"},
        {"P5\n2 1\n1\n\0\1", 11, 2, 1, 1, "\0\377"},
        {"P5\n3 1\n1000\n\0\0\1\364\3\350", 18, 3, 1, 1, "\0\200\377"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lw_image out;
        lw_error err = {0};
        if (lw_image_decode(cases[i].bytes, cases[i].n, "x.ppm", &out, NULL, &err) != LW_OK)
            fail_msg("%s", err.message);
        assert_int_equal(out.width, cases[i].w);
        assert_int_equal(out.height, cases[i].h);
        assert_int_equal(out.channels, cases[i].channels);
        assert_memory_equal(out.data, cases[i].pixels, out.stride * (size_t)out.height);
        lw_image_free(&out);
    }
}

static void test_round_trips(void **state) {
    (void)state;
    static const char *const formats[] = {
        "ppm",
#ifdef LW_HAVE_PNG
        "png",
#endif
#ifdef LW_HAVE_WEBP
        "webp",
#endif
    };
    static const int sizes[][2] = {{1, 1}, {3, 2}, {257, 5}, {64, 48}};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (size_t s = 0; s < 4; s++)
            for (int channels = 1; channels <= 4; channels += channels == 1 ? 2 : 1) {
                lw_image in = make_picture(channels == 4 ? SMOOTH : NOISE, 5, sizes[s][0], sizes[s][1], channels), out,
                         rgb;
                size_t n, again_n;
                void *bytes = encode(&in, formats[f], NULL, &n), *again = encode(&in, formats[f], NULL, &again_n);
                assert_int_equal(n, again_n);
                assert_memory_equal(bytes, again, n);
                assert_int_equal(lw_image_decode(bytes, n, "round", &out, NULL, NULL), LW_OK);
                bool keeps = strcmp(formats[f], "png") == 0 || channels == 3 ||
                             (strcmp(formats[f], "ppm") == 0) == (channels == 1);
                assert_int_equal(lw_image_to_rgb(&in, &rgb, NULL), LW_OK);
                assert_same_picture(&out, keeps ? &in : &rgb);
                lw_image_free(&in), lw_image_free(&out), lw_image_free(&rgb);
                lw_free(bytes), lw_free(again);
            }
}

static void test_encode_refuses(void **state) {
    (void)state;
    lw_image in = make_picture(NOISE, 5, 2, 2, 3);
    void *bytes = &in;
    size_t n = 7;
    lw_error err;
    assert_int_equal(lw_image_encode(&in, "gif", NULL, &bytes, &n, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "'gif'");
    assert_null(bytes);
    assert_int_equal(n, 0);
    in.channels = 5;
    assert_int_equal(lw_image_encode(&in, "png", NULL, &bytes, &n, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "5 channels");
    lw_image_free(&in);
#if defined(LW_HAVE_WEBP) && defined(LW_HAVE_JPEG)
    in = make_picture(RAMPS, 5, 70000, 1, 1);
    assert_int_equal(lw_image_encode(&in, "webp", NULL, &bytes, &n, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "70000 x 1");
    assert_int_equal(lw_image_encode(&in, "jpeg", NULL, &bytes, &n, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "70000 x 1");
    lw_image_free(&in);
#endif
}

/* ---- PNG */

#ifdef LW_HAVE_PNG
static void test_png_kinds(void **state) {
    (void)state;
    FILE *f = fopen(LW_TEST_DATA "/image/png.txt", "r");
    assert_non_null(f);
    char line[256], file[128], path[256];
    int n = 0, w, h, channels;
    uint64_t hash;
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%127s %d %d %d %" SCNx64, file, &w, &h, &channels, &hash), 5);
        snprintf(path, sizeof path, "png/%s", file);
        lw_image out = decode_file(path, NULL);
        if (out.width != w || out.height != h || out.channels != channels || hash_picture(&out) != hash)
            fail_msg("%s: other pixels than it was made from (%d x %d x %d)", file, out.width, out.height,
                     out.channels);
        lw_image_free(&out);
        n++;
    }
    fclose(f);
    assert_true(n >= 50);
}

static void assert_field(const lw_fields *fields, uint32_t i, const char *key, const char *value) {
    assert_true(i < fields->n);
    assert_string_equal(fields->items[i].key, key);
    assert_string_equal(fields->items[i].value, value);
}

static void test_png_texts(void **state) {
    (void)state;
    lw_fields fields;
    lw_image out = decode_file("png/text.png", &fields);
    assert_int_equal(fields.n, 6);
    assert_field(&fields, 0, "parameters", "caf\xc3\xa9 line\nnext");
    assert_string_equal(fields.items[1].key, "Long");
    assert_int_equal(strlen(fields.items[1].value), 3000);
    assert_field(&fields, 2, "Title", "\xe7\xb7\x9a \xe2\x86\x92 \xf0\x9f\x8e\xa8");
    assert_field(&fields, 3, "Packed", "\xc3\xa9t\xc3\xa9");
    assert_field(&fields, 4, "Empty", "");
    assert_field(&fields, 5, "After", "the pixels");
    lw_fields_free(&fields);
    lw_image_free(&out);
}

static bool contains(const uint8_t *bytes, size_t n, const char *what) {
    size_t m = strlen(what);
    for (size_t i = 0; i + m <= n; i++)
        if (memcmp(bytes + i, what, m) == 0) return true;
    return false;
}

static void test_png_text_round_trip(void **state) {
    (void)state;
    static char parameters[] = "a house, best\nNegative prompt: \xc3\xa9\nSteps: 20",
                unicode[] = "\xe7\xb7\x9a\xe2\x86\x92", empty[] = "";
    static char keys[][16] = {"parameters", "linework", "\xc2\xa9 owner"};
    lw_field items[] = {{keys[0], parameters}, {keys[1], unicode}, {keys[2], empty}};
    lw_fields fields = {.size = sizeof fields, .n = 3, .items = items}, back;
    lw_image in = make_picture(SMOOTH, 1, 20, 10, 3), out;
    size_t n, again_n;
    uint8_t *bytes = encode(&in, "png", &fields, &n), *again = encode(&in, "png", &fields, &again_n);
    assert_int_equal(n, again_n);
    assert_memory_equal(bytes, again, n);
    assert_true(contains(bytes, n, "tEXtparameters"));
    assert_true(contains(bytes, n, "prompt: \xe9\n")); /* Latin-1, not UTF-8 */
    assert_true(contains(bytes, n, "iTXtlinework"));
    assert_true(contains(bytes, n, unicode));
    assert_false(contains(bytes, n, "tIME"));
    assert_int_equal(lw_image_decode(bytes, n, "texts", &out, &back, NULL), LW_OK);
    assert_same_picture(&in, &out);
    assert_int_equal(back.n, 3);
    for (uint32_t i = 0; i < 3; i++) assert_field(&back, i, items[i].key, items[i].value);
    lw_fields_free(&back);
    lw_image_free(&out);

    static char bad_keys[][100] = {
        "",     " a",
        "a ",   "a  b",
        "a\nb", "\xe7\xb7\x9a",
        "\xff", "12345678901234567890123456789012345678901234567890123456789012345678901234567890"};
    void *none;
    lw_error err;
    for (size_t i = 0; i < sizeof bad_keys / sizeof *bad_keys; i++) {
        items[1].key = bad_keys[i];
        assert_int_equal(lw_image_encode(&in, "png", &fields, &none, &n, &err), LW_EINVAL);
        assert_sentence(&err, LW_EINVAL, "field 1");
        assert_null(none);
    }
    items[1].key = keys[1];
    unicode[2] = 'x';
    assert_int_equal(lw_image_encode(&in, "png", &fields, &none, &n, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "UTF-8");
    unicode[2] = (char)0x9a;
    lw_free(bytes);
    lw_free(again);
    lw_image_free(&in);
}

static void test_png_cut_anywhere(void **state) {
    (void)state;
    static const char *const files[] = {"png/text.png", "png/colour6-16i.png", "png/palette4n-trns.png"};
    for (int f = 0; f < 3; f++) {
        char path[512];
        snprintf(path, sizeof path, "%s/image/%s", LW_TEST_DATA, files[f]);
        size_t n;
        uint8_t *bytes = load_file(path, &n);
        for (size_t cut = 0; cut < n; cut++) {
            uint8_t *exact = malloc(cut ? cut : 1); /* so that a read past the end is seen by ASan */
            assert_non_null(exact);
            memcpy(exact, bytes, cut);
            refuse(exact, cut, "cut.png", LW_EINPUT);
            free(exact);
        }
        for (size_t at = 0; at < n; at++) { /* a checksum covers every byte, or the structure does */
            bytes[at] ^= 0x10;
            refuse(bytes, n, "bit.png", LW_EINPUT);
            bytes[at] ^= 0x10;
        }
        free(bytes);
    }
}
#endif

/* ---- JPEG */

#ifdef LW_HAVE_JPEG
/* An APP1 marker with an orientation of the given type, behind the SOI. Freed with free. */
static uint8_t *with_exif(const uint8_t *jpeg, size_t n, bool little, int type, int orientation, size_t *out_n) {
    static const uint8_t le[] =
        "Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\x04\0\0\0abc\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0";
    static const uint8_t be[] = "Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x02\0\0\0\x04"
                                "abc\0\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0";
    const size_t m = sizeof le - 1;
    assert_int_equal(sizeof le, sizeof be);
    uint8_t *out = malloc(n + m + 4);
    assert_non_null(out);
    memcpy(out, jpeg, 2);
    out[2] = 0xff, out[3] = 0xe1, out[4] = 0, out[5] = (uint8_t)(m + 2);
    memcpy(out + 6, little ? le : be, m);
    out[6 + 28 + (little ? 2 : 3)] = (uint8_t)type;
    out[6 + 28 + 8 + (little ? 0 : type == 4 ? 3 : 1)] = (uint8_t)orientation;
    memcpy(out + 6 + m, jpeg + 2, n - 2);
    *out_n = n + m + 4;
    return out;
}

/* The stored pixel that is shown at (x, y), from the definition: where row 0 and column 0 of the stored picture lie. */
static void stored(int orientation, int w, int h, int x, int y, int *sx, int *sy) {
    switch (orientation) {
    case 2: *sx = w - 1 - x, *sy = y; break;
    case 3: *sx = w - 1 - x, *sy = h - 1 - y; break;
    case 4: *sx = x, *sy = h - 1 - y; break;
    case 5: *sx = y, *sy = x; break;
    case 6: *sx = y, *sy = h - 1 - x; break;
    case 7: *sx = w - 1 - y, *sy = h - 1 - x; break;
    case 8: *sx = w - 1 - y, *sy = x; break;
    default: *sx = x, *sy = y;
    }
}

static void test_jpeg_orientation(void **state) {
    (void)state;
    for (int channels = 1; channels <= 3; channels += 2) {
        lw_image in = make_picture(SMOOTH, 4, 21, 10, channels), plain;
        size_t n, m;
        uint8_t *bytes = encode(&in, "jpeg", NULL, &n);
        assert_int_equal(lw_image_decode(bytes, n, "plain.jpg", &plain, NULL, NULL), LW_OK);
        for (int o = 0; o <= 10; o++)
            for (int way = 0; way < 4; way++) {
                uint8_t *turned = with_exif(bytes, n, way & 1, way & 2 ? 4 : 3, o, &m);
                lw_image out;
                assert_int_equal(lw_image_decode(turned, m, "turned.jpg", &out, NULL, NULL), LW_OK);
                bool swapped = o >= 5 && o <= 8;
                assert_int_equal(out.width, swapped ? 10 : 21);
                assert_int_equal(out.height, swapped ? 21 : 10);
                for (int y = 0; y < out.height; y++)
                    for (int x = 0; x < out.width; x++) {
                        int sx, sy;
                        stored(o, 21, 10, x, y, &sx, &sy);
                        assert_memory_equal(lw_image_row(&out, y) + x * channels,
                                            lw_image_row(&plain, sy) + sx * channels, (size_t)channels);
                    }
                lw_image_free(&out);
                for (size_t at = 6; at < 60; at++) { /* damaged EXIF is no orientation, and never a read outside */
                    uint8_t keep = turned[at];
                    turned[at] = 0xff;
                    if (lw_image_decode(turned, m, "exif.jpg", &out, NULL, NULL) == LW_OK) lw_image_free(&out);
                    turned[at] = keep;
                }
                free(turned);
            }
        lw_image_free(&plain);
        lw_image_free(&in);
        lw_free(bytes);
    }
}

static void test_jpeg_kinds(void **state) {
    (void)state;
    lw_image want = make_picture(SMOOTH, 1, 48, 32, 3);
    static const char *const files[] = {"progressive.jpg", "restarts.jpg"};
    for (int i = 0; i < 2; i++) {
        lw_image out = decode_file(files[i], NULL);
        assert_int_equal(out.channels, 3);
        double error = 0;
        for (size_t k = 0; k < 48 * 32 * 3; k++) error += (out.data[k] - want.data[k]) * (out.data[k] - want.data[k]);
        assert_true(error / (48 * 32 * 3) < 64);
        lw_image_free(&out);
    }
    lw_image gray = decode_file("gray.jpg", NULL);
    assert_int_equal(gray.channels, 1);
    lw_image_free(&gray);
    lw_image_free(&want);
    size_t n;
    uint8_t *bytes = load_file(LW_TEST_DATA "/image/cmyk.jpg", &n);
    lw_image out;
    lw_error err;
    assert_int_equal(lw_image_decode(bytes, n, "cmyk.jpg", &out, NULL, &err), LW_EINPUT);
    assert_sentence(&err, LW_EINPUT, "CMYK");
    free(bytes);
    bytes = load_file(LW_TEST_DATA "/image/progressive.jpg", &n);
    for (size_t cut = 0; cut < n; cut++) refuse(bytes, cut, "cut.jpg", LW_EINPUT);
    free(bytes);
}
#endif

/* ---- WebP */

#ifdef LW_HAVE_WEBP
static void test_webp_kinds(void **state) {
    (void)state;
    lw_image want = make_picture(SMOOTH, 2, 24, 16, 4), out = decode_file("alpha.webp", NULL);
    assert_same_picture(&out, &want);
    lw_image_free(&out);
    lw_image_free(&want);
    out = decode_file("lossy.webp", NULL);
    assert_int_equal(out.channels, 3);
    lw_image_free(&out);
    out = decode_file("alpha-lossy.webp", NULL);
    assert_int_equal(out.channels, 4);
    lw_image_free(&out);
    static const char *const files[] = {"lossy.webp", "alpha.webp", "alpha-lossy.webp"};
    for (int i = 0; i < 3; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/image/%s", LW_TEST_DATA, files[i]);
        size_t n;
        uint8_t *bytes = load_file(path, &n);
        for (size_t cut = 0; cut < n; cut++) refuse(bytes, cut, "cut.webp", LW_EINPUT);
        free(bytes);
    }
}
#endif

static void test_animations(void **state) {
    (void)state;
    static const char *const files[] = {
#ifdef LW_HAVE_WEBP
        "animated.webp",
#endif
#ifdef LW_HAVE_PNG
        "animated.png",
#endif
        NULL};
    for (int i = 0; files[i]; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/image/%s", LW_TEST_DATA, files[i]);
        lw_image out;
        lw_error err;
        assert_int_equal(lw_image_read(path, &out, NULL, &err), LW_EINPUT);
        assert_sentence(&err, LW_EINPUT, "is an animated");
    }
}

/* ---- damage */

/* Every picture of the pack is refused, soon, and within little memory. */
static void test_malformed(void **state) {
    (void)state;
    size_t n, at = 0;
    uint8_t *pack = load_file(LW_TEST_DATA "/malformed/pictures.pack", &n);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    double slowest = 0;
    int count = 0;
    while (at < n) {
        char name[64];
        unsigned size;
        int header = 0;
        assert_int_equal(sscanf((const char *)pack + at, "%63s %u%n", name, &size, &header), 2);
        at += (size_t)header + 1;
        assert_true(size <= n - at);
        uint8_t *exact = malloc(size ? size : 1);
        assert_non_null(exact);
        memcpy(exact, pack + at, size);
        double start = cpu_ms();
        refuse(exact, size, name, LW_EINPUT);
        double ms = cpu_ms() - start;
        if (ms > slowest) slowest = ms;
        free(exact);
        at += size;
        count++;
    }
    free(pack);
    getrusage(RUSAGE_SELF, &after);
    assert_true(count >= 200);
    long grown = after.ru_maxrss - before.ru_maxrss;
    print_message("%d malformed pictures refused, the slowest in %.1f ms, %ld KiB more memory\n", count, slowest,
                  grown);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(slowest < 100);
    assert_true(grown < 64 * 1024);
#endif
}

/* ---- faults */

/* Every allocation that fails in turn: LW_ENOMEM, nothing left, and the next call works. */
static void decode_faults(const uint8_t *bytes, size_t n, const char *name, long at_least) {
    lw_image want, out;
    lw_fields fields;
    lw_error err;
    assert_int_equal(lw_image_decode(bytes, n, name, &want, NULL, NULL), LW_OK);
    long i = 1;
    for (;; i++) {
        lw_fault_arm(i, false);
        lw_status status = lw_image_decode(bytes, n, name, &out, &fields, &err);
        lw_fault_arm(0, false);
        if (status == LW_OK) break;
        assert_sentence(&err, LW_ENOMEM, name);
        assert_empty(&out);
        assert_null(fields.items);
        assert_true(i < 1000);
    }
    assert_same_picture(&want, &out);
    if (i <= at_least) fail_msg("%s: only %ld calls that can fail", name, i - 1);
    lw_image_free(&want);
    lw_image_free(&out);
    lw_fields_free(&fields);
}

static void test_decode_faults(void **state) {
    (void)state;
    static const struct {
        const char *file;
        long at_least;
    } cases[] = {
#ifdef LW_HAVE_PNG
        {"png/text.png", 20},
        {"png/palette8i-trns.png", 4},
        {"png/colour6-16i.png", 4},
#endif
#ifdef LW_HAVE_JPEG
        {"progressive.jpg", 10},
        {"restarts.jpg", 10},
#endif
#ifdef LW_HAVE_WEBP
        {"alpha.webp", 2},
#endif
        {NULL, 0}};
    for (int i = 0; cases[i].file; i++) {
        char path[512];
        size_t n;
        snprintf(path, sizeof path, "%s/image/%s", LW_TEST_DATA, cases[i].file);
        uint8_t *bytes = load_file(path, &n);
        decode_faults(bytes, n, cases[i].file, cases[i].at_least);
        free(bytes);
    }
    decode_faults((const uint8_t *)"P6 1 1 255 abc", 14, "x.ppm", 1);
}

static void test_encode_faults(void **state) {
    (void)state;
    static const char *const formats[] = {
        "ppm",
#ifdef LW_HAVE_PNG
        "png",
#endif
#ifdef LW_HAVE_JPEG
        "jpeg",
#endif
#ifdef LW_HAVE_WEBP
        "webp",
#endif
    };
    static char key[] = "k", value[] = "v", other[] = "\xe2\x86\x92";
    lw_field items[] = {{key, value}, {key, other}};
    lw_fields fields = {.size = sizeof fields, .n = 2, .items = items};
    lw_image in = make_picture(NOISE, 1, 80, 80, 4);
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        size_t n, want_n;
        void *want = encode(&in, formats[f], &fields, &want_n), *bytes;
        long i = 1;
        for (;; i++) {
            lw_error err;
            lw_fault_arm(i, false);
            lw_status status = lw_image_encode(&in, formats[f], &fields, &bytes, &n, &err);
            lw_fault_arm(0, false);
            if (status == LW_OK) break;
            assert_sentence(&err, LW_ENOMEM, "lw_image");
            assert_null(bytes);
            assert_true(i < 1000);
        }
        assert_true(i >= 2);
        assert_int_equal(n, want_n);
        assert_memory_equal(bytes, want, n);
        lw_free(bytes);
        lw_free(want);
    }
    lw_image_free(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ppm),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_encode_refuses),
#ifdef LW_HAVE_PNG
        cmocka_unit_test(test_png_kinds),
        cmocka_unit_test(test_png_texts),
        cmocka_unit_test(test_png_text_round_trip),
        cmocka_unit_test(test_png_cut_anywhere),
#endif
#ifdef LW_HAVE_JPEG
        cmocka_unit_test(test_jpeg_orientation),
        cmocka_unit_test(test_jpeg_kinds),
#endif
#ifdef LW_HAVE_WEBP
        cmocka_unit_test(test_webp_kinds),
#endif
        cmocka_unit_test(test_animations),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_decode_faults),
        cmocka_unit_test(test_encode_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
