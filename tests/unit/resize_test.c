/* SPDX-License-Identifier: MIT
 * Resizing against cv2.resize (tests/data/image/resize.txt, made by tools/image_fixtures.py), sizes against numpy's
 * arithmetic, and HWC3. */
#include "pictures.h"

#include <inttypes.h>

static void test_equals_opencv(void **state) {
    (void)state;
    FILE *f = fopen(LW_TEST_DATA "/image/resize.txt", "r");
    assert_non_null(f);
    char line[256];
    int n = 0, kind, w, h, channels, to_w, to_h;
    uint64_t seed, hash;
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%d %" SCNu64 " %d %d %d %d %d %" SCNx64, &kind, &seed, &w, &h, &channels, &to_w,
                                &to_h, &hash),
                         8);
        lw_image in = make_picture(kind, seed, w, h, channels), out;
        lw_error err;
        assert_int_equal(lw_image_resize_to(&in, to_w, to_h, &out, &err), LW_OK);
        assert_int_equal(out.width, to_w);
        assert_int_equal(out.height, to_h);
        assert_int_equal(out.channels, channels);
        if (hash_picture(&out) != hash) fail_msg("pixels differ from OpenCV's in: %s", line);
        lw_image_free(&in);
        lw_image_free(&out);
        n++;
    }
    fclose(f);
    assert_true(n >= 60);
}

static void test_targets(void **state) {
    (void)state;
    static const int32_t cases[][5] = {
        /* width, height, resolution, to width, to height */
        {512, 512, 512, 512, 512},      {384, 256, 256, 384, 256},  {608, 512, 512, 640, 512}, /* 9.5 goes to 10 */
        {544, 512, 512, 512, 512},                                                             /* 8.5 goes to 8 */
        {1, 1, 512, 512, 512},          {1000, 750, 512, 704, 512}, {640, 480, 500, 640, 512},
        {8192, 8192, 8192, 8192, 8192}, {96, 64, 33, 64, 64},       {1, 16, 512, 512, 8192},
    };
    int32_t w, h;
    lw_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(lw_resize_target(cases[i][0], cases[i][1], cases[i][2], &w, &h, &err), LW_OK);
        assert_int_equal(w, cases[i][3]);
        assert_int_equal(h, cases[i][4]);
    }
    assert_int_equal(lw_resize_target(10, 10, 32, &w, &h, &err), LW_EINPUT); /* 0.5 goes to 0 */
    assert_sentence(&err, LW_EINPUT, "0 x 0");
    assert_int_equal(lw_resize_target(17, 1, 512, &w, &h, &err), LW_EINPUT);
    assert_sentence(&err, LW_EINPUT, "8704 x 512");
    assert_int_equal(lw_resize_target(1000000, 1, 2147483647, &w, &h, &err), LW_EINPUT);
    assert_int_equal(w, 0);
    assert_int_equal(lw_resize_target(0, 5, 512, &w, &h, &err), LW_EINVAL);
    assert_int_equal(lw_resize_target(5, 5, 0, &w, &h, &err), LW_EINVAL);
    assert_int_equal(lw_resize_target(5, 5, -64, &w, &h, &err), LW_EINVAL);
}

/* By resolution the filter follows from the resolution, not from the rounded side: 505 at 500 becomes 512, by area. */
static void test_by_resolution(void **state) {
    (void)state;
    lw_image in = make_picture(NOISE, 1, 600, 505, 3), area, same, out;
    assert_int_equal(lw_image_resize(&in, 500, &area, NULL), LW_OK);
    assert_int_equal(area.width, 576);
    assert_int_equal(area.height, 512);
    lw_image_free(&area);
    lw_image_free(&in);
    in = make_picture(NOISE, 2, 128, 64, 3);
    assert_int_equal(lw_image_resize(&in, 64, &same, NULL), LW_OK);
    assert_same_picture(&in, &same);
    lw_image_free(&same);
    lw_error err;
    assert_int_equal(lw_image_resize(&in, 31, &out, &err), LW_EINPUT);
    assert_empty(&out);
    assert_int_equal(lw_image_resize_to(&in, 0, 64, &out, &err), LW_EINVAL);
    assert_int_equal(lw_image_resize_to(&in, 9000, 9000, &out, &err), LW_EINVAL);
    assert_int_equal(lw_image_resize_to(&in, 64, 64, &in, &err), LW_EINVAL);
    lw_image_free(&in);
}

static void test_rgb(void **state) {
    (void)state;
    uint8_t rgba[] = {0, 100, 255, 255, 0, 100, 255, 0, 0, 100, 255, 128, 10, 20, 30, 1};
    lw_image in = {.size = sizeof in, .width = 4, .height = 1, .channels = 4, .stride = 16, .data = rgba}, out;
    /* Cut in float32: 255 * (1 - 128 / 255) is just under 127, 100 * (128 / 255) more is 177.19. */
    const uint8_t want[] = {0, 100, 255, 255, 255, 255, 126, 177, 255, 254, 254, 254};
    assert_int_equal(lw_image_to_rgb(&in, &out, NULL), LW_OK);
    assert_int_equal(out.channels, 3);
    assert_memory_equal(out.data, want, sizeof want);
    lw_image_free(&out);
    in.channels = 1;
    in.width = 16;
    assert_int_equal(lw_image_to_rgb(&in, &out, NULL), LW_OK);
    for (int i = 0; i < 48; i++) assert_int_equal(out.data[i], rgba[i / 3]);
    lw_image_free(&out);
    lw_error err;
    in.channels = 2;
    assert_int_equal(lw_image_to_rgb(&in, &out, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "2 channels");
}

static void test_faults(void **state) {
    (void)state;
    static const int sizes[][4] = {{20, 20, 40, 40}, {64, 64, 32, 32}, {50, 50, 30, 30}, {60, 50, 70, 50}};
    for (size_t i = 0; i < 4; i++) {
        lw_image in = make_picture(NOISE, 1, sizes[i][0], sizes[i][1], 3), out;
        long n = 1;
        for (;; n++) {
            lw_error err;
            lw_fault_arm(n, false);
            lw_status status = lw_image_resize_to(&in, sizes[i][2], sizes[i][3], &out, &err);
            lw_fault_arm(0, false);
            if (status == LW_OK) break;
            assert_sentence(&err, LW_ENOMEM, "bytes");
            assert_empty(&out);
        }
        assert_true(n >= 3);
        lw_image_free(&out);
        lw_image_free(&in);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equals_opencv), cmocka_unit_test(test_targets),
                                       cmocka_unit_test(test_by_resolution), cmocka_unit_test(test_rgb),
                                       cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
