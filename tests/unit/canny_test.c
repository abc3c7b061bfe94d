/* SPDX-License-Identifier: MIT
 * lw_canny against edge maps of cv2.Canny (tests/data/image/canny.txt, made by tools/image_fixtures.py). */
#include "pictures.h"

#include <inttypes.h>
#include <math.h>

static void test_equals_opencv(void **state) {
    (void)state;
    FILE *f = fopen(LW_TEST_DATA "/image/canny.txt", "r");
    assert_non_null(f);
    char line[256];
    int n = 0, kind, w, h, channels, n_edges;
    uint64_t seed, hash;
    double low, high;
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%d %" SCNu64 " %d %d %d %lf %lf %d %" SCNx64, &kind, &seed, &w, &h, &channels,
                                &low, &high, &n_edges, &hash),
                         9);
        lw_image in = make_picture(kind, seed, w, h, channels), out;
        lw_error err;
        assert_int_equal(lw_canny(&in, low, high, &out, &err), LW_OK);
        int found = 0;
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) found += lw_image_row(&out, y)[x] != 0;
        if (found != n_edges || hash_picture(&out) != hash)
            fail_msg("%d edge pixels, OpenCV has %d, in: %s", found, n_edges, line);
        lw_image_free(&in);
        lw_image_free(&out);
        n++;
    }
    fclose(f);
    assert_true(n >= 50);
}

/* Rows may have bytes between them that are not the picture's. */
static void test_stride(void **state) {
    (void)state;
    lw_image wide = make_picture(NOISE, 3, 60, 40, 3), cut = wide, packed = make_picture(NOISE, 3, 60, 40, 3), a, b;
    cut.width = 33;
    packed.width = 33;
    packed.stride = 99;
    for (int y = 1; y < 40; y++) memmove(packed.data + (size_t)y * 99, packed.data + (size_t)y * 180, 99);
    assert_int_equal(lw_canny(&cut, 100, 200, &a, NULL), LW_OK);
    assert_int_equal(lw_canny(&packed, 100, 200, &b, NULL), LW_OK);
    assert_same_picture(&a, &b);
    lw_image_free(&a);
    lw_image_free(&b);
    lw_image_free(&wide);
    lw_image_free(&packed);
}

static void test_refuses(void **state) {
    (void)state;
    lw_image rgba = make_picture(NOISE, 1, 4, 4, 4), gray = make_picture(NOISE, 1, 4, 4, 1), out;
    lw_error err;
    assert_int_equal(lw_canny(&rgba, 100, 200, &out, &err), LW_EINVAL);
    assert_sentence(&err, LW_EINVAL, "4 channels");
    assert_int_equal(lw_canny(&gray, NAN, 200, &out, &err), LW_EINVAL);
    assert_int_equal(lw_canny(&gray, 100, INFINITY, &out, &err), LW_EINVAL);
    assert_int_equal(lw_canny(NULL, 100, 200, &out, &err), LW_EINVAL);
    assert_int_equal(lw_canny(&gray, 100, 200, NULL, &err), LW_EINVAL);
    assert_int_equal(lw_canny(&gray, 100, 200, &gray, &err), LW_EINVAL);
    assert_non_null(gray.data);
    assert_int_equal(lw_canny(&gray, -1e300, 1e300, &out, &err), LW_OK);
    lw_image_free(&out);
    lw_image broken[] = {gray, gray, gray, gray, gray};
    broken[0].size = 0;
    broken[1].width = 0;
    broken[2].channels = 2;
    broken[3].stride = 3;
    broken[4].data = NULL;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(lw_canny(&broken[i], 100, 200, &out, &err), LW_EINVAL);
        assert_sentence(&err, LW_EINVAL, "lw_canny");
        assert_empty(&out);
    }
    lw_image_free(&rgba);
    lw_image_free(&gray);
}

static void test_faults(void **state) {
    (void)state;
    lw_image in = make_picture(NOISE, 1, 100, 100, 3), out;
    for (long n = 1;; n++) {
        lw_error err;
        lw_fault_arm(n, false);
        lw_status status = lw_canny(&in, 0, 0, &out, &err); /* thousands of strong pixels: the stack grows */
        lw_fault_arm(0, false);
        if (status == LW_OK) {
            assert_true(n > 14);
            break;
        }
        assert_sentence(&err, LW_ENOMEM, "100");
        assert_empty(&out);
    }
    lw_image_free(&out);
    lw_image_free(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equals_opencv), cmocka_unit_test(test_stride),
                                       cmocka_unit_test(test_refuses), cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
