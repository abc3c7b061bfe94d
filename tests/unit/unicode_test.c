/* SPDX-License-Identifier: MIT */
#include "text/unicode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void expect_nfc(const char *in, const char *want) {
    lw_char *chars;
    size_t n, k = 0;
    char got[64];
    assert_int_equal(lw_unicode_nfc(in, strlen(in), &chars, &n, NULL), LW_OK);
    for (size_t i = 0; i < n; i++) k += lw_utf8_put(chars[i].code, (uint8_t *)got + k);
    got[k] = 0;
    assert_string_equal(got, want);
    lw_free(chars);
}

static void test_nfc(void **state) {
    (void)state;
    expect_nfc("", "");
    expect_nfc("e\u0301", "\u00e9");
    expect_nfc("\u212b", "\u00c5");               /* a singleton does not come back */
    expect_nfc("q\u0307\u0323", "q\u0323\u0307"); /* marks are ordered */
    expect_nfc("\u1e0b\u0323", "\u1e0d\u0307");   /* decomposed, ordered, composed otherwise */
    expect_nfc("a\u0345\u0301", "\u00e1\u0345");
    expect_nfc("a\u0301\u0301", "\u00e1\u0301"); /* the second is blocked by its own class */
    expect_nfc("\u0928\u093c", "\u0929");
    expect_nfc("\u0915\u093c", "\u0915\u093c"); /* excluded from composition */
    expect_nfc("\u1100\u1161\u11a8", "\uac01");
    expect_nfc("\uac00\u11a8", "\uac01");
    expect_nfc("\uac01\u11a8", "\uac01\u11a8"); /* has its final consonant */
    expect_nfc("\u0301a", "\u0301a");
    expect_nfc("\u01d5", "\u01d5"); /* two levels down and up */
}

static void test_nfc_offsets(void **state) {
    (void)state;
    lw_char *chars;
    size_t n;
    assert_int_equal(lw_unicode_nfc("xe\u0301y", 5, &chars, &n, NULL), LW_OK);
    assert_int_equal(n, 3);
    assert_int_equal(chars[1].code, 0xe9);
    assert_int_equal(chars[1].at, 1);
    assert_int_equal(chars[2].at, 4);
    lw_free(chars);
}

static void test_utf8(void **state) {
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xe2\x82",
                                      "\xe2(\xa1",
                                      "\xf0\x9f\x98"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size_t at = 0;
        uint32_t code;
        assert_false(lw_utf8_next(bad[i], strlen(bad[i]), &at, &code));
        assert_int_equal(at, 0);
    }
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        uint8_t bytes[4];
        size_t at = 0, n = lw_utf8_put(c, bytes);
        uint32_t back = 0;
        bool good = lw_utf8_next((const char *)bytes, n, &at, &back);
        assert_int_equal(good, c < 0xD800 || c >= 0xE000);
        if (good) assert_true(back == c && at == n);
    }
    lw_error err;
    lw_char *chars;
    size_t n;
    assert_int_equal(lw_unicode_nfc("ab\xff", 3, &chars, &n, &err), LW_EINPUT);
    assert_string_equal(err.message, "the text is not UTF-8 at byte 2 of 3 (0xFF)");
}

static void test_lower(void **state) {
    (void)state;
    static const uint32_t pairs[][2] = {{'A', 'a'},         {'Z', 'z'},          {'[', '['},       {0xC9, 0xE9},
                                        {0x100, 0x101},     {0x101, 0x101},      {0x178, 0xFF},    {0x3A3, 0x3C3},
                                        {0x410, 0x430},     {0x1E9E, 0xDF},      {0x2126, 0x3C9},  {0x212A, 'k'},
                                        {0x13A0, 0xAB70},   {0x10400, 0x10428},  {0x1C89, 0x1C8A}, {0xD7, 0xD7},
                                        {0x1E921, 0x1E943}, {0x10FFFF, 0x10FFFF}};
    uint32_t out[2];
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        assert_int_equal(lw_unicode_lower(pairs[i][0], out), 1);
        assert_int_equal(out[0], pairs[i][1]);
    }
    assert_int_equal(lw_unicode_lower(0x130, out), 2);
    assert_true(out[0] == 'i' && out[1] == 0x307);
}

static void test_classes(void **state) {
    (void)state;
    static const struct {
        uint32_t code;
        lw_char_class want;
    } cases[] = {
        {'a', LW_CHAR_LETTER},    {'5', LW_CHAR_NUMBER},     {'_', LW_CHAR_OTHER},     {' ', LW_CHAR_SPACE},
        {0x1C, LW_CHAR_OTHER},    {0x85, LW_CHAR_SPACE},     {0xA0, LW_CHAR_SPACE},    {0x200B, LW_CHAR_OTHER},
        {0x3000, LW_CHAR_SPACE},  {0x301, LW_CHAR_OTHER},    {0xB2, LW_CHAR_NUMBER},   {0x2163, LW_CHAR_NUMBER},
        {0x3042, LW_CHAR_LETTER}, {0x4E00, LW_CHAR_LETTER},  {0x9FFF, LW_CHAR_LETTER}, {0x1F600, LW_CHAR_OTHER},
        {0x180E, LW_CHAR_OTHER},  {0x105C0, LW_CHAR_LETTER}, {0x10FFFF, LW_CHAR_OTHER}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(lw_unicode_class(cases[i].code), cases[i].want);
}

static int depth(uint32_t code) {
    for (size_t i = 0; i < lw_unicode_decompositions_n; i++) {
        const lw_unicode_decomposition *d = &lw_unicode_decompositions[i];
        if (d->code != code) continue;
        int a = depth(d->first), b = depth(d->second);
        return 1 + (a > b ? a : b);
    }
    return 0;
}

/* What the searches rely on. */
static void test_tables(void **state) {
    (void)state;
    for (size_t i = 0; i < lw_unicode_decompositions_n; i++) {
        assert_true(depth(lw_unicode_decompositions[i].code) <= 4);
        if (i) assert_true(lw_unicode_decompositions[i - 1].code < lw_unicode_decompositions[i].code);
    }
    for (size_t i = 1; i < lw_unicode_classes_n; i++)
        assert_true(lw_unicode_classes[i - 1].last < lw_unicode_classes[i].first);
    for (size_t i = 1; i < lw_unicode_combining_n; i++)
        assert_true(lw_unicode_combining[i - 1].last < lw_unicode_combining[i].first);
    for (size_t i = 1; i < lw_unicode_lower_runs_n; i++)
        assert_true(lw_unicode_lower_runs[i - 1].last < lw_unicode_lower_runs[i].first);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nfc),     cmocka_unit_test(test_nfc_offsets),
                                       cmocka_unit_test(test_utf8),    cmocka_unit_test(test_lower),
                                       cmocka_unit_test(test_classes), cmocka_unit_test(test_tables)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
