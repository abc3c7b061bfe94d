/* SPDX-License-Identifier: MIT */
#include "cpu_time.h"
#include "text/bpe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#ifdef LW_HAVE_ZLIB
#include <zlib.h>
#endif

#define MERGES LW_TEST_DATA "/text/merges.txt"

static lw_tokenizer *open_or_fail(const char *path, int32_t n_vocab) {
    lw_tokenizer *t;
    lw_error err;
    if (lw_tokenizer_open(&t, path, n_vocab, &err) != LW_OK) fail_msg("%s", err.message);
    return t;
}

/* transformers' ids for strings over all blocks: tools/check_tokenizer.py --fixture wrote them. */
static void test_fixture(void **state) {
    (void)state;
    lw_tokenizer *t = open_or_fail(MERGES, 0);
    FILE *f = fopen(LW_TEST_DATA "/text/tokens.jsonl", "r");
    char line[8192];
    int n = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *row = json_loads(line, 0, NULL), *want = json_array_get(row, 1);
        assert_non_null(row);
        const char *text = json_string_value(json_array_get(row, 0));
        int32_t ids[LW_N_TOKENS], end = lw_tokenizer_n_vocab(t) - 1;
        assert_int_equal(lw_tokenize(t, text, ids, NULL, NULL), LW_OK);
        for (size_t i = 0; i < LW_N_TOKENS; i++) {
            int32_t id = i < json_array_size(want) ? (int32_t)json_integer_value(json_array_get(want, i)) : end;
            if (ids[i] != id) fail_msg("line %d, \"%s\": id %zu is %d, want %d", n + 1, text, i, ids[i], id);
        }
        json_decref(row);
        n++;
    }
    fclose(f);
    assert_true(n >= 2000);
    lw_tokenizer_close(&t);
    assert_null(t);
}

static void test_vocabulary_size(void **state) {
    (void)state;
    lw_error err;
    lw_tokenizer *t = open_or_fail(MERGES, 514);
    int32_t ids[LW_N_TOKENS];
    assert_int_equal(lw_tokenize(t, "ab", ids, NULL, &err), LW_OK);
    assert_int_equal(ids[0], 512);
    assert_int_equal(ids[1], 64);       /* 'a' is the 65th printable byte */
    assert_int_equal(ids[2], 65 + 256); /* 'b' at its word's end */
    assert_int_equal(ids[3], 513);
    assert_int_equal(ids[76], 513);
    lw_tokenizer_close(&t);
    assert_int_equal(lw_tokenizer_open(&t, MERGES, 513, &err), LW_EMODEL);
    assert_int_equal(lw_tokenizer_open(&t, MERGES, 49408, &err), LW_EMODEL);
    assert_null(t);
    assert_non_null(strstr(err.message, "49408"));
    assert_int_equal(lw_tokenizer_open(&t, LW_TEST_DATA "/text/nothing", 0, &err), LW_EMODEL);
    assert_int_equal(lw_tokenizer_open(&t, LW_TEST_DATA, 0, &err), LW_EMODEL);
}

static void test_cut(void **state) {
    (void)state;
    lw_tokenizer *t = open_or_fail(MERGES, 514); /* no merges: a token a letter */
    int32_t ids[LW_N_TOKENS];
    char text[200] = "", *cut = text;
    for (int i = 0; i < 75; i++) strcat(text, "x");
    assert_int_equal(lw_tokenize(t, text, ids, &cut, NULL), LW_OK);
    assert_null(cut);
    assert_int_equal(ids[76], 513);
    strcat(text, " E\u0301nd");
    assert_int_equal(lw_tokenize(t, text, ids, &cut, NULL), LW_OK);
    assert_string_equal(cut, "E\u0301nd");
    assert_int_equal(ids[75], 87 + 256);
    assert_int_equal(ids[76], 513);
    lw_free(cut);
    lw_tokenizer_close(&t);
}

static void test_bad_text(void **state) {
    (void)state;
    lw_tokenizer *t = open_or_fail(MERGES, 0);
    int32_t ids[LW_N_TOKENS];
    lw_error err;
    assert_int_equal(lw_tokenize(t, "a\xc3", ids, NULL, &err), LW_EINPUT);
    assert_non_null(strstr(err.message, "byte 1 of 2"));
    size_t n = (1 << 20) + 1; /* one word of a megabyte is no trouble, one byte more is refused */
    char *big = lw_alloc(n + 1, 1), *cut;
    memset(big, 'a', n);
    assert_int_equal(lw_tokenize(t, big, ids, NULL, &err), LW_EINPUT);
    big[n - 1] = 0;
    double begin = cpu_ms();
    assert_int_equal(lw_tokenize(t, big, ids, &cut, &err), LW_OK);
    assert_true(cpu_ms() - begin < 20e3);
    assert_non_null(cut);
    lw_free(cut);
    for (size_t i = 0; i + 2 < n; i += 2) memcpy(big + i, i % 4 ? "\u0316" : "\u0301", 2); /* all marks */
    assert_int_equal(lw_tokenize(t, big, ids, &cut, &err), LW_OK);
    lw_free(cut);
    lw_free(big);
    lw_tokenizer_close(&t);
}

static void test_bad_vocabularies(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {{"h\na\n", "line 2 is not two tokens"},
                 {"h\na b c\n", "line 2"},
                 {"h\na  b\n", "line 2"},
                 {"h\n b\n", "line 2"},
                 {"h\na b</w>\na zz</w>\n", "line 3 merges zz</w>, which is no token"},
                 {"h\n\u4e00 b\n", "line 2 merges \u4e00"},
                 {"h\n\xff b\n", "line 2"},
                 {"", "no merge"},
                 {"h", "no merge"},
                 {"h\n", "no merge"}};
    lw_tokenizer *t;
    lw_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(lw_tokenizer_open_memory(&t, cases[i].text, strlen(cases[i].text), "v", 0, &err), LW_EMODEL);
        assert_null(t);
        if (!strstr(err.message, cases[i].says)) fail_msg("%s, want %s", err.message, cases[i].says);
    }
    static const char *const good[] = {"h\na b", "h\r\na b\r\n", "h\na b\n\n", "h\na b\na b\n"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(lw_tokenizer_open_memory(&t, good[i], strlen(good[i]), "v", 0, &err), LW_OK);
        lw_tokenizer_close(&t);
    }
}

#ifdef LW_HAVE_ZLIB
static size_t compress_gz(const void *in, size_t n, uint8_t *out, size_t room) {
    z_stream z = {
        .next_in = (z_const Bytef *)(uintptr_t)in, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)room};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out;
}

static void test_compressed(void **state) {
    (void)state;
    const char *text = "#version\na b\nab c</w>\n";
    uint8_t packed[256];
    int32_t ids[LW_N_TOKENS];
    lw_tokenizer *t;
    lw_error err;
    size_t n = compress_gz(text, strlen(text), packed, sizeof packed);
    assert_int_equal(lw_tokenizer_open_memory(&t, packed, n, "v.gz", 0, &err), LW_OK);
    assert_int_equal(lw_tokenize(t, "ABC", ids, NULL, &err), LW_OK);
    assert_int_equal(ids[1], 513);
    lw_tokenizer_close(&t);
    for (size_t cut = 0; cut < n; cut++) /* too short a file is not gzip, or a text without merges, or damaged */
        if (lw_tokenizer_open_memory(&t, packed, cut, "v.gz", 516, &err) == LW_OK) fail_msg("%zu bytes opened", cut);
    size_t bomb_bytes = 17 << 20, room = 1 << 20;
    char *zeros = lw_alloc(bomb_bytes, 1);
    uint8_t *bomb = lw_alloc(room, 1);
    n = compress_gz(zeros, bomb_bytes, bomb, room);
    assert_int_equal(lw_tokenizer_open_memory(&t, bomb, n, "bomb.gz", 0, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "more than 16777216 bytes"));
    lw_free(zeros);
    lw_free(bomb);
}
#endif

/* Every allocation and read fails in turn: an error, nothing leaked, and the next try works. */
static void test_faults(void **state) {
    (void)state;
    lw_error err;
    for (int again = 0; again < 2; again++) {
        for (long nth = 1;; nth++) {
            lw_tokenizer *t = NULL;
            int32_t ids[LW_N_TOKENS];
            char *cut = NULL;
            lw_fault_arm(nth, again);
            lw_status status = lw_tokenizer_open(&t, MERGES, 600, &err);
            if (status == LW_OK)
                status = lw_tokenize(
                    t,
                    "a long text of \u00c9 words that is cut, surely, by and by, "
                    "when it has gone on for so many more words than fit in it, xqzj wkvb zzqx jjkk vvww qqpp",
                    ids, &cut, &err);
            bool reached = lw_fault_count() >= nth;
            lw_fault_arm(0, false);
            assert_int_equal(status == LW_OK, !reached);
            if (status == LW_OK) assert_non_null(cut);
            lw_free(cut);
            lw_tokenizer_close(&t);
            if (!reached) break;
            assert_true(err.message[0] != 0);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixture),    cmocka_unit_test(test_vocabulary_size),  cmocka_unit_test(test_cut),
        cmocka_unit_test(test_bad_text),   cmocka_unit_test(test_bad_vocabularies),
#ifdef LW_HAVE_ZLIB
        cmocka_unit_test(test_compressed),
#endif
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
