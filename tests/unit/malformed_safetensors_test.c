/* SPDX-License-Identifier: MIT
 * Damaged safetensors, each put together here: refused, in under 100 ms, with a sentence that names the file and, where
 * one is to blame, the tensor. tests/unit/safetensors_test.c has the good ones. */
#include "cpu_time.h"
#include "weights/weights.h"
#include "weight_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <cmocka.h>

#define K "model.diffusion_model.out.2.bias"
#define T(key, dtype, shape, offsets)                                                                                  \
    "\"" key "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{" T(K, dtype, shape, offsets) "}"
#define OWN UINT64_MAX /* the header's own length */

typedef struct bad_file {
    const char *header;
    size_t n_data;
    const char *says; /* in the message */
    uint64_t length;
} bad_file;

static const bad_file files[] = {
    /* the length */
    {"{}", 0, "header of 3 bytes in a file of 10", 3},
    {"{}", 0, "header of 0 bytes", 0},
    {"{}", 0, "header of 1 bytes", 1},
    {"{}", 0, "header of 18446744073709551614 bytes", UINT64_MAX - 1},
    {"{}", 0, "header of 9223372036854775807 bytes", INT64_MAX},
    {"{}", 0, "header of 9223372036854775808 bytes", (uint64_t)INT64_MAX + 1},
    {"{}", 0, "header of 100000001 bytes, at most 100000000", 100000001},
    {"{}", 0, "header of 100000000 bytes in a file", 100000000},
    {"{}", 0, "header of 4294967298 bytes", 4294967298},
    {ONE("F32", "[1]", "[0,4]"), 4, "not JSON", 20},
    {ONE("F32", "[1]", "[0,4]"), 4, "not JSON", 87},
    /* the JSON */
    {"  ", 0, "does not begin with '{'", OWN},
    {" {}", 0, "does not begin with '{'", OWN},
    {"[]", 0, "does not begin with '{'", OWN},
    {"\"a\"", 0, "does not begin with '{'", OWN},
    {"null", 0, "does not begin with '{'", OWN},
    {"{ ", 0, "not JSON", OWN},
    {"{{", 0, "not JSON", OWN},
    {"{}x", 0, "not JSON", OWN},
    {"{}{}", 0, "not JSON", OWN},
    {"{},", 0, "not JSON", OWN},
    {"{\"a\"}", 0, "not JSON", OWN},
    {"{\"a\":}", 0, "not JSON", OWN},
    {"{\"a\":1,}", 0, "not JSON", OWN},
    {"{'a':1}", 0, "not JSON", OWN},
    {"{\"a\":NaN}", 0, "not JSON", OWN},
    {"{\"a\":1e999}", 0, "not JSON", OWN},
    {"{\"a\":\"\\u0000\"}", 0, "not JSON", OWN},
    {"{\"\\u0000\":1}", 0, "not JSON", OWN},
    {"{\"\\ud800\":1}", 0, "not JSON", OWN},
    {"{\"\xff\":1}", 0, "not JSON", OWN},
    {"{\"\xc0\x80\":1}", 0, "not JSON", OWN},
    {"{\"\xed\xa0\x80\":1}", 0, "not JSON", OWN},
    {"{\"a\n\":1}", 0, "not JSON", OWN},
    {"{// comment\n}", 0, "not JSON", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T(K, "F32", "[1]", "[0,4]") "}", 4, "duplicate", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T(K, "F32", "[1]", "[4,8]") "}", 8, "duplicate", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T("model.diffusion_model.out.2.bia\\u0073", "F32", "[1]", "[4,8]") "}", 8,
     "duplicate", OWN},
    {"{\"" K "\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "duplicate", OWN},
    {"{\"" K "\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "duplicate", OWN},
    {"{\"" K "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"data_offsets\":[0,4]}}", 4, "duplicate",
     OWN},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate", OWN},
    {"{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, "duplicate", OWN},
    /* the metadata */
    {"{\"__metadata__\":1}", 0, "__metadata__ is not an object", OWN},
    {"{\"__metadata__\":null}", 0, "__metadata__ is not an object", OWN},
    {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object", OWN},
    {"{\"__metadata__\":\"a\"}", 0, "__metadata__ is not an object", OWN},
    {"{\"__metadata__\":{\"linework\":1}}", 0, "__metadata__ linework is not a string", OWN},
    {"{\"__metadata__\":{\"linework\":{}}}", 0, "__metadata__ linework is not a string", OWN},
    {"{\"__metadata__\":{\"a\":null}}", 0, "__metadata__ a is not a string", OWN},
    {"{\"__metadata__\":{\"a\":\"b\",\"c\":[\"d\"]}}", 0, "__metadata__ c is not a string", OWN},
    /* an entry */
    {"{\"" K "\":1}", 0, "tensor " K " is not an object", OWN},
    {"{\"" K "\":null}", 0, "tensor " K " is not an object", OWN},
    {"{\"" K "\":[]}", 0, "tensor " K " is not an object", OWN},
    {"{\"" K "\":\"F32\"}", 0, "tensor " K " is not an object", OWN},
    {"{\"" K "\":{}}", 0, "tensor " K " has no dtype", OWN},
    {"{\"" K "\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor " K " has no dtype", OWN},
    {"{\"" K "\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor " K " has no shape", OWN},
    {"{\"" K "\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor " K ": data_offsets", OWN},
    {"{\"" K "\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor " K " has no dtype", OWN},
    {"{\"" K "\":{\"dtype\":null,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor " K " has no dtype", OWN},
    {ONE("", "[1]", "[0,4]"), 4, "unknown dtype", OWN},
    {ONE("f32", "[1]", "[0,4]"), 4, "unknown dtype f32", OWN},
    {ONE("F33", "[1]", "[0,4]"), 4, "unknown dtype F33", OWN},
    {ONE("F3", "[1]", "[0,4]"), 4, "unknown dtype F3", OWN},
    {ONE("F322", "[1]", "[0,4]"), 4, "unknown dtype F322", OWN},
    {ONE("Float", "[1]", "[0,4]"), 4, "unknown dtype", OWN},
    {ONE("F8_E4M3", "[4]", "[0,4]"), 4, "tensor " K " is F8_E4M3, which is not read", OWN},
    {ONE("F8_E5M2", "[4]", "[0,4]"), 4, "is F8_E5M2", OWN},
    {ONE("U16", "[2]", "[0,4]"), 4, "is U16", OWN},
    {ONE("U64", "[1]", "[0,8]"), 8, "is U64", OWN},
    {ONE("C64", "[1]", "[0,8]"), 8, "is C64", OWN},
    {ONE("F4", "[3]", "[0,1]"), 1, "3 values of F4", OWN},
    /* the shape */
    {ONE("F32", "1", "[0,4]"), 4, "tensor " K " has no shape", OWN},
    {ONE("F32", "null", "[0,4]"), 4, "tensor " K " has no shape", OWN},
    {ONE("F32", "{}", "[0,4]"), 4, "tensor " K " has no shape", OWN},
    {ONE("F32", "\"1\"", "[0,4]"), 4, "tensor " K " has no shape", OWN},
    {ONE("F32", "[-1]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[1,-1]", "[0,4]"), 4, "dimension 1", OWN},
    {ONE("F32", "[-1,-1]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[1.0]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[1e0]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[\"1\"]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[null]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[true]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[[1]]", "[0,4]"), 4, "dimension 0", OWN},
    {ONE("F32", "[01]", "[0,4]"), 4, "not JSON", OWN},
    {ONE("F32", "[9223372036854775808]", "[0,4]"), 4, "not JSON", OWN},
    {ONE("F32", "[99999999999999999999999]", "[0,4]"), 4, "not JSON", OWN},
    {ONE("F32", "[9223372036854775807]", "[0,4]"), 4, "tensor " K, OWN},
    {ONE("F32", "[9223372036854775807,2]", "[0,4]"), 4, "overflows", OWN},
    {ONE("F32", "[4294967296,4294967296]", "[0,4]"), 4, "overflows", OWN},
    {ONE("F32", "[4611686018427387905]", "[0,4]"), 4, "do not make", OWN}, /* times 4 is 4 in 64 bits */
    {ONE("F32", "[2305843009213693953]", "[0,4]"), 4, "do not make", OWN}, /* times 32 is 32 */
    {ONE("F16", "[9223372036854775807]", "[0,4]"), 4, "do not make", OWN},
    {ONE("U8", "[2305843009213693952]", "[0,0]"), 0, "do not make", OWN}, /* times 8 bits is 0 */
    {ONE("F32", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), 0, "overflows", OWN},
    {ONE("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "tensor " K " has 9 dimensions", OWN},
    {ONE("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "has 20 dimensions", OWN},
    {ONE("F32", "[2]", "[0,4]"), 4, "2 values of F32 do not make 4 bytes", OWN},
    {ONE("F32", "[0]", "[0,4]"), 4, "0 values of F32 do not make 4 bytes", OWN},
    {ONE("F32", "[]", "[0,0]"), 0, "1 values of F32 do not make 0 bytes", OWN},
    {ONE("F32", "[1]", "[0,3]"), 4, "do not make 3 bytes", OWN},
    {ONE("F64", "[1]", "[0,4]"), 4, "do not make 4 bytes", OWN},
    {ONE("BOOL", "[5]", "[0,4]"), 4, "do not make 4 bytes", OWN},
    /* the offsets */
    {ONE("F32", "[1]", "4"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[0]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[0,4,8]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[\"0\",\"4\"]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[0.0,4.0]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[null,4]"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "{\"0\":0,\"1\":4}"), 4, "tensor " K ": data_offsets", OWN},
    {ONE("F32", "[1]", "[-4,0]"), 4, "bytes [-4, 0)", OWN},
    {ONE("F32", "[1]", "[0,-4]"), 4, "bytes [0, -4)", OWN},
    {ONE("F32", "[1]", "[4,0]"), 4, "bytes [4, 0)", OWN},
    {ONE("F32", "[1]", "[0,4]"), 3, "are not in the file's 3 bytes", OWN},
    {ONE("F32", "[1]", "[0,4]"), 0, "are not in the file's 0 bytes", OWN},
    {ONE("F32", "[1]", "[4,8]"), 4, "are not in the file's 4 bytes", OWN},
    {ONE("F32", "[1]", "[9223372036854775803,9223372036854775807]"), 4, "are not in the file's 4 bytes", OWN},
    {ONE("F32", "[1]", "[18446744073709551612,0]"), 4, "not JSON", OWN},
    {ONE("F32", "[1]", "[1,5]"), 5, "begins at byte 1, but the header ends at 0", OWN},
    {ONE("F32", "[1]", "[4,8]"), 8, "tensor " K " begins at byte 4", OWN},
    {ONE("F32", "[1]", "[0,4]"), 5, "ends at byte 4 of 5", OWN},
    {ONE("F32", "[1]", "[0,4]"), 8, "ends at byte 4 of 8", OWN},
    {"{}", 1, "ends at byte 0 of 1", OWN},
    {"{}", 0, "none of them of a network", OWN},
    {"{" T("a", "F32", "[1]", "[0,4]") "}", 4, "1 tensors, none of them of a network", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T("y", "F32", "[1]", "[0,4]") "}", 4, "begins at byte 0", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T("y", "F32", "[1]", "[2,6]") "}", 6, "tensor y begins at byte 2", OWN},
    {"{" T(K, "F32", "[1]", "[0,4]") "," T("y", "F32", "[1]", "[8,12]") "}", 12,
     "tensor y begins at byte 8, but " K " ends at 4", OWN},
    {"{" T(K, "F32", "[2]", "[0,8]") "," T("y", "F32", "[1]", "[4,8]") "}", 8, "tensor y begins at byte 4", OWN},
    {"{" T(K, "F32", "[1]", "[4,8]") "," T("y", "F32", "[0]", "[2,2]") "," T("z", "F32", "[1]", "[0,4]") "}", 8,
     "byte 2", OWN},
    {"{" T("cond_stage_model.transformer.final_layer_norm.bias", "F32", "[0]",
           "[0,0]") "," T("cond_stage_model.transformer.text_model.final_layer_norm.bias", "F32", "[0]", "[0,0]") "}",
     0, "are both clip.text_model.final_layer_norm.bias", OWN},
};

static void test_files(void **state) {
    (void)state;
    const char *name = "dir/bad.safetensors";
    size_t n = sizeof files / sizeof *files, wrong = 0;
    assert_true(n >= 120);
    for (size_t i = 0; i < n; i++) {
        file_bytes f = make_safetensors(files[i].header, strlen(files[i].header), files[i].length, files[i].n_data);
        lw_weights *w;
        lw_error err = {0};
        double begin = cpu_ms();
        lw_status status = lw_weights_open_memory(&w, f.data, f.n, name, &err);
        assert_true(cpu_ms() - begin < 100);
        if (status != LW_EMODEL) print_error("case %zu (%s): status %d\n", i, files[i].header, status), wrong++;
        lw_weights_close(&w);
        if (strncmp(err.message, name, strlen(name)) != 0 || !strstr(err.message, files[i].says))
            print_error("case %zu (%s): %s, want %s\n", i, files[i].header, err.message, files[i].says), wrong++;
        free(f.data);
    }
    assert_int_equal(wrong, 0);
    print_message("%zu files\n", n);
}

/* A good file cut at every byte, and with every byte changed: refused, or still right in every number. */
static void test_cuts_and_flips(void **state) {
    (void)state;
    const char *header = "{" T(K, "F32", "[2,3]", "[0,24]") "," T("y", "I64", "[2]", "[24,40]") "}";
    file_bytes f = make_safetensors(header, strlen(header), OWN, 40);
    lw_weights *w;
    lw_error err;
    float values[6];
    for (size_t n = 0; n < f.n; n++) assert_int_equal(lw_weights_open_memory(&w, f.data, n, "cut", &err), LW_EMODEL);
    for (size_t at = 0; at < f.n; at++) {
        for (int v = 0; v < 256; v++) {
            uint8_t old = f.data[at];
            f.data[at] = (uint8_t)v;
            if (lw_weights_open_memory(&w, f.data, f.n, "flip", &err) == LW_OK) {
                const lw_tensor *t = lw_weights_at(w, 0);
                assert_true(t->n == 6 && t->offset == f.n - 40); /* that it is still the network's is part of "open" */
                (void)lw_tensor_read(w, t, values, &err);
            }
            lw_weights_close(&w);
            f.data[at] = old;
        }
    }
    free(f.data);
}

/* Depth and length that a recursive or a quadratic reader would not like. */
static void test_large(void **state) {
    (void)state;
    size_t n = 2 << 20;
    char *header = malloc(n);
    lw_weights *w;
    lw_error err;
    for (int kind = 0; kind < 4; kind++) {
        size_t length = 0;
        if (kind == 0) length = 1000000, memset(header, '[', length), memcpy(header, "{\"a\":", 5);
        if (kind == 1) length = 500000, memset(header, '{', length);
        if (kind == 2)
            length = 1000000, memset(header, 'k', length), memcpy(header, "{\"", 2),
            memcpy(header + length - 4, "\":1}", 4);
        if (kind == 3) /* a dimension for every four bytes */
            for (length = (size_t)sprintf(header, "{\"" K "\":{\"dtype\":\"F32\",\"shape\":[1"); length < 200000;
                 length += 2)
                memcpy(header + length, ",1", 2);
        file_bytes f = make_safetensors(header, length, OWN, 0);
        double begin = cpu_ms();
        assert_int_equal(lw_weights_open_memory(&w, f.data, f.n, "large", &err), LW_EMODEL);
#if !defined(__SANITIZE_ADDRESS__)
        assert_true(cpu_ms() - begin < 100);
#endif
        (void)begin;
        free(f.data);
    }
    free(header);
}

static long at_start; /* KiB, of the process before the tests */

static void test_memory(void **state) {
    (void)state;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    assert_true(usage.ru_maxrss - at_start < 64 * 1024); /* what all of the above added: libraries are mapped before */
#endif
}

int main(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    at_start = usage.ru_maxrss;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_files), cmocka_unit_test(test_cuts_and_flips),
                                       cmocka_unit_test(test_large), cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
