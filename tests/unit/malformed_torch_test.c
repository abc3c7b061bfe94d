/* SPDX-License-Identifier: MIT
 * Damaged and hostile .pth files, each put together here: a zip around a pickle that is written as a line of opcodes.
 * Refused, in under 100 ms, with a sentence that names the file. */
#include "cpu_time.h"
#include "weights/weights.h"
#include "weight_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <cmocka.h>

/* ---- pickles: tokens with spaces between. One character is that opcode, two hex digits that byte; s:TEXT a string,
 * g:MODULE.NAME a global, i:N and l:N a number of 4 and of 8 bytes. */

#define STORAGE(type, key, numel) "( s:storage g:torch." type " s:" key " s:cpu i:" numel " t Q"
#define VIEW(storage, offset, size, stride)                                                                            \
    "g:torch._utils._rebuild_tensor_v2 ( " storage " " offset " ( " size " t ( " stride " t 89 } t R"
#define KEY "s:model.diffusion_model.out.2.bias "
#define DICT(items) "80 02 } ( " items " u ."
#define GOOD_STORAGE STORAGE("FloatStorage", "0", "16")
#define GOOD DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1"))

static size_t assemble(const char *text, uint8_t *out) {
    size_t n = 0;
    while (*text) {
        size_t length = strcspn(text, " ");
        char token[200];
        snprintf(token, sizeof token, "%.*s", (int)length, text);
        const char *value = token + 2;
        if (length == 1) {
            out[n++] = (uint8_t)token[0];
        } else if (token[1] != ':') {
            out[n++] = (uint8_t)strtoul(token, NULL, 16);
        } else if (token[0] == 's') {
            uint32_t bytes = (uint32_t)strlen(value);
            out[n++] = 'X';
            for (int i = 0; i < 4; i++) out[n++] = (uint8_t)(bytes >> (8 * i));
            memcpy(out + n, value, bytes);
            n += bytes;
        } else if (token[0] == 'g') {
            const char *dot = strrchr(value, '.');
            n += (size_t)sprintf((char *)out + n, "c%.*s\n%s\n", (int)(dot - value), value, dot + 1);
        } else {
            int64_t number = strtoll(value, NULL, 10);
            int bytes = token[0] == 'i' ? 4 : 8;
            out[n++] = bytes == 4 ? 'J' : 0x8a;
            if (bytes == 8) out[n++] = 8;
            for (int i = 0; i < bytes; i++) out[n++] = (uint8_t)((uint64_t)number >> (8 * i));
        }
        text += length + (text[length] == ' ');
    }
    return n;
}

/* ---- zips */

enum { N_ENTRIES = 4, PICKLE = 0, ORDER = 1, DATA = 2 };

typedef struct zip_file {
    uint8_t *data;
    size_t n, local[N_ENTRIES], central[N_ENTRIES], end64, locator, end;
} zip_file;

static void put(zip_file *z, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) z->data[z->n++] = i < 8 ? (uint8_t)(value >> (8 * i)) : 0;
}

/* The entry DATA as one over 4 GiB has it: 0xffffffff for its sizes and place, and those in an extra field. */
typedef struct zip64 {
    uint64_t raw, packed, moved; /* moved: by how much the place is wrong */
    int id, length;              /* of the field */
    const char *says;
} zip64;

static zip_file make_zip64(const uint8_t *pickle, size_t n_pickle, const zip64 *x) {
    static const char *const names[N_ENTRIES] = {"a/data.pkl", "a/byteorder", "a/data/0", "a/version"};
    zip_file z = {.data = calloc(1, n_pickle + 2048)};
    float numbers[16];
    for (int i = 0; i < 16; i++) numbers[i] = (float)i;
    const void *bytes[N_ENTRIES] = {pickle, "little", numbers, "3\n"};
    size_t sizes[N_ENTRIES] = {n_pickle, 6, sizeof numbers, 2};
    for (int i = 0; i < N_ENTRIES; i++) {
        z.local[i] = z.n;
        put(&z, 0x04034b50, 4), put(&z, 0, 14);
        put(&z, sizes[i], 4), put(&z, sizes[i], 4), put(&z, strlen(names[i]), 2), put(&z, 0, 2);
        memcpy(z.data + z.n, names[i], strlen(names[i]));
        z.n += strlen(names[i]);
        memcpy(z.data + z.n, bytes[i], sizes[i]);
        z.n += sizes[i];
    }
    for (int i = 0; i < N_ENTRIES; i++) {
        z.central[i] = z.n;
        bool is64 = x && i == DATA;
        put(&z, 0x02014b50, 4), put(&z, 0, 16);
        put(&z, is64 ? UINT32_MAX : sizes[i], 4), put(&z, is64 ? UINT32_MAX : sizes[i], 4);
        put(&z, strlen(names[i]), 2), put(&z, is64 ? 28 : 0, 2), put(&z, 0, 10);
        put(&z, is64 ? UINT32_MAX : z.local[i], 4);
        memcpy(z.data + z.n, names[i], strlen(names[i]));
        z.n += strlen(names[i]);
        if (is64) {
            put(&z, (uint64_t)x->id, 2), put(&z, (uint64_t)x->length, 2);
            put(&z, x->raw, 8), put(&z, x->packed, 8), put(&z, z.local[i] + x->moved, 8);
        }
    }
    z.end64 = z.n;
    put(&z, 0x06064b50, 4), put(&z, 44, 8), put(&z, 0, 4), put(&z, 0, 8);
    put(&z, N_ENTRIES, 8), put(&z, N_ENTRIES, 8), put(&z, z.end64 - z.central[0], 8), put(&z, z.central[0], 8);
    z.locator = z.n;
    put(&z, 0x07064b50, 4), put(&z, 0, 4), put(&z, z.end64, 8), put(&z, 1, 4);
    z.end = z.n;
    put(&z, 0x06054b50, 4), put(&z, 0, 4), put(&z, N_ENTRIES, 2), put(&z, N_ENTRIES, 2);
    put(&z, z.end64 - z.central[0], 4), put(&z, z.central[0], 4), put(&z, 0, 2);
    return z;
}

static zip_file make_zip(const uint8_t *pickle, size_t n_pickle) { return make_zip64(pickle, n_pickle, NULL); }

/* ---- cases */

static const struct {
    const char *pickle, *says;
} pickles[] = {
    {"", "STOP"},
    {".", "it ends with more or less than one value"},
    {"80", "it is cut"},
    {"80 02", "STOP"},
    {"80 02 }", "STOP"},
    {"80 02 } } .", "more or less than one value"},
    {"80 02 ( } .", "more or less than one value"},
    {"80 02 ff .", "no opcode 0xff"},
    {"80 02 00 .", "no opcode 0x00"},
    {"80 02 } .", "0 tensors, none"},
    {"80 02 ] .", "no state dict"},
    {"80 02 N .", "no state dict"},
    {"80 02 s:a .", "no state dict"},
    {"80 02 g:os.system s:true 85 R .", "no state dict but os system"},
    {"80 02 g:builtins.eval s:1 85 R .", "no state dict but builtins eval"},
    {"80 02 ( s:echo i o s 0a s y 0a .", "no state dict"},
    {"80 02 g:torch.nn.Module ) 81 .", "no state dict"},
    /* the stack */
    {"80 02 0 .", "its stack is empty"},
    {"80 02 1 .", "no mark"},
    {"80 02 t .", "no mark"},
    {"80 02 u .", "no mark"},
    {"80 02 2 .", "its stack is empty"},
    {"80 02 R .", "its stack is empty"},
    {"80 02 Q .", "its stack is empty"},
    {"80 02 } b .", "more or less"},
    {"80 02 b .", "its stack is empty"},
    {"80 02 s .", "its stack is empty"},
    {"80 02 } s:a s .", "its stack is empty"},
    {"80 02 a .", "its stack is empty"},
    {"80 02 85 .", "its stack is empty"},
    {"80 02 N 86 .", "its stack is empty"},
    {"80 02 N N 87 .", "its stack is empty"},
    {"80 02 N ( R .", "its stack is empty"},
    {"80 02 } ( s:a u .", "a key without a value"},
    {"80 02 ( s:a d .", "a key without a value"},
    {"80 02 N ( s:a N u .", "items for what holds none"},
    {"80 02 ] ( s:a N u .", "items for what holds none"},
    {"80 02 } s:a a .", "items for what holds none"},
    {"80 02 ( u .", "its stack is empty"},
    /* the memo */
    {"80 02 h 00 .", "never remembered"},
    {"80 02 } q 00 h 01 .", "never remembered"},
    {"80 02 j ff ff ff ff .", "never remembered"},
    {"80 02 q 00 .", "nothing to remember"},
    {"80 02 } r ff ff ff ff .", "entries in its memo"},
    {"80 02 } r ff ff ff 7f .", "entries in its memo"},
    {"80 02 94 .", "nothing to remember"},
    /* lengths */
    {"80 02 X 05 00 00 00 61 .", "it is cut"},
    {"80 02 X ff ff ff ff .", "it is cut"},
    {"80 02 8d ff ff ff ff ff ff ff ff .", "it is cut"},
    {"80 02 8d 00 00 00 00 00 00 00 80 .", "it is cut"},
    {"80 02 8c 05 61 .", "it is cut"},
    {"80 02 B ff ff ff ff .", "it is cut"},
    {"80 02 8e ff ff ff ff ff ff ff 7f .", "it is cut"},
    {"80 02 8a ff 00 .", "it is cut"},
    {"80 02 8b ff ff ff ff 00 .", "it is cut"},
    {"80 02 J 00 .", "it is cut"},
    {"80 02 G 00 .", "it is cut"},
    {"80 02 c os .", "a line without an end"},
    {"80 02 S", "a line without an end"},
    {"80 04 95 ff .", "it is cut"},
    /* storages */
    {DICT(KEY "N Q"), "no storage of torch"},
    {DICT(KEY "s:0 Q"), "no storage of torch"},
    {DICT(KEY ") Q"), "no storage of torch"},
    {DICT(KEY "( s:module g:torch.FloatStorage s:0 s:cpu i:16 t Q"), "no storage of torch"},
    {DICT(KEY "( s:storage g:torch.FloatStorage i:0 s:cpu i:16 t Q"), "no storage of torch"},
    {DICT(KEY "( s:storage g:torch.FloatStorage s:0 s:cpu s:16 t Q"), "no storage of torch"},
    {DICT(KEY "( s:storage g:torch.FloatStorage s:0 s:cpu t Q"), "no storage of torch"},
    {DICT(KEY STORAGE("FloatStorage", "0", "-1")), "no storage of torch"},
    {DICT(KEY STORAGE("FloatStorage", "0", "17")), "storage 0 should have 17 elements, its 64 bytes have 16"},
    {DICT(KEY STORAGE("DoubleStorage", "0", "16")), "should have 16 elements, its 64 bytes have 8"},
    {DICT(KEY STORAGE("FloatStorage", "1", "16")), "wants the storage 1, which is not there"},
    {DICT(KEY STORAGE("FloatStorage", "../data/0", "16")), "which is not there"},
    {DICT(KEY STORAGE("FloatStorage", "0/", "16")), "which is not there"},
    {DICT(KEY "( s:storage g:torch.FloatStorage s:0 s:cpu l:9223372036854775807 t Q"),
     "should have 9223372036854775807"},
    {DICT(KEY "( s:storage g:torch.FloatStorage s:0 s:cpu l:4611686018427387908 t Q"), "should have"},
    {DICT(KEY VIEW(STORAGE("ComplexFloatStorage", "0", "8"), "i:0", "i:4", "i:1")),
     "is a tensor of another type, which is not read"},
    {DICT(KEY VIEW(STORAGE("QInt8Storage", "0", "8"), "i:0", "i:4", "i:1")), "is a tensor of another type"},
    {DICT(KEY "g:numpy.array ) R"), "tensor model.diffusion_model.out.2.bias is numpy array, which is not read"},
    {DICT(KEY "g:os.system ( s:true t R"), "is os system, which is not read"},
    /* views */
    {DICT(KEY VIEW(GOOD_STORAGE, "i:-1", "i:4", "i:1")), "without a proper offset"},
    {DICT(KEY VIEW(GOOD_STORAGE, "s:0", "i:4", "i:1")), "without a proper offset"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:13", "i:4", "i:1")), "reaches to element 16 of a storage of 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:17", "i:0", "i:1")), "of a storage of 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "l:9223372036854775807", "i:4", "i:1")), "of a storage of 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:17", "i:1")), "reaches to element 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:6")), "reaches to element 18"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:2 i:2", "l:9223372036854775807 l:9223372036854775807")),
     "of a storage of 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:3", "l:9223372036854775807")), "of a storage of 16"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:-1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:-4", "i:1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1 i:1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4 i:1", "i:1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "s:4", "i:1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "N", "i:1")), "without a proper shape"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "l:4294967296 l:4294967296", "i:0 i:0")), "overflows"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:17", "i:0")), "a view that repeats its values"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "l:1000000000000", "i:0")), "a view that repeats its values"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:1 i:1 i:1 i:1 i:1 i:1 i:1 i:1 i:1", "i:1 i:1 i:1 i:1 i:1 i:1 i:1 i:1 i:1")),
     "9 dimensions"},
    {DICT(KEY VIEW("N", "i:0", "i:4", "i:1")), "is a tensor of another type"},
    {DICT(KEY "g:torch._utils._rebuild_tensor_v2 ) R"), "too few arguments"},
    {DICT(KEY "g:torch._utils._rebuild_tensor_v2 N R"), "which is not read"},
    {DICT(KEY "g:collections.OrderedDict ( ( N t t R"), "dictionary of what are no pairs"},
    {DICT("s:a " VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1")), "1 tensors, none"},
    {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1") " " KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1")),
     "are both unet.out.2.bias"},
    {DICT("s:control_model.what " VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1")),
     "control_model.what is none of a Stable Diffusion 1 ControlNet"},
};

typedef enum place { LOCAL, CENTRAL, END64, LOCATOR, END, CUT } place;

/* `bytes` bytes at `at` of a record become `value`; of CUT, `value` bytes of the file are left. */
static const struct {
    place place;
    int entry, at, bytes;
    uint64_t value;
    const char *says;
} zips[] = {
    {LOCAL, DATA, 0, 4, 0x04034b51, "no local header"},
    {LOCAL, DATA, 8, 2, 8, "no local header"},
    {LOCAL, DATA, 26, 2, 9, "no local header"},
    {LOCAL, DATA, 26, 2, 0, "no local header"},
    {LOCAL, DATA, 28, 2, 65535, "do not fit before the next one"},
    {LOCAL, DATA, 28, 2, 1, "do not fit before the next one"},
    {LOCAL, DATA, 30, 1, 'b', "is called b/data/0 in its local header"},
    {LOCAL, PICKLE, 30, 1, 'b', "is called b/data.pkl"},
    {LOCAL, PICKLE, 0, 1, 'Q', "header of"}, /* no zip any more */
    {LOCAL, PICKLE, 2, 1, 4, "no local header"},
    {LOCAL, ORDER, 41, 6, 0x6769623030, "another byte order"},
    {CENTRAL, PICKLE, 0, 4, 0, "its directory is cut"},
    {CENTRAL, DATA, 0, 4, 0, "its directory is cut"},
    {CENTRAL, DATA, 8, 2, 1, "compressed or encrypted"},
    {CENTRAL, DATA, 10, 2, 8, "compressed or encrypted"},
    {CENTRAL, PICKLE, 10, 2, 8, "compressed or encrypted"},
    {CENTRAL, DATA, 20, 4, 63, "compressed or encrypted"},
    {CENTRAL, DATA, 20, 8, 65 | 65ull << 32, "do not fit before the next one"},
    {CENTRAL, DATA, 20, 8, 0xfffffffefffffffeull, "do not fit before the next one"},
    {CENTRAL, DATA, 20, 8, 60 | 60ull << 32, "should have 16 elements, its 60 bytes have 15"},
    {CENTRAL, DATA, 28, 2, 0, "damaged zip"},
    {CENTRAL, DATA, 28, 2, 65535, "its directory is cut"},
    {CENTRAL, DATA, 30, 2, 65535, "its directory is cut"},
    {CENTRAL, DATA, 32, 2, 65535, "its directory is cut"},
    {CENTRAL, DATA, 42, 4, 0xfffffffe, "begins after the directory"},
    {CENTRAL, DATA, 42, 4, 0, "do not fit before"},
    {CENTRAL, DATA, 42, 4, 1, "do not fit before"},
    {CENTRAL, DATA, 42, 4, 300, "no local header"},
    {CENTRAL, DATA, 46, 1, 0, "without a proper name"},
    {CENTRAL, DATA, 46, 1, 'b', "wants the storage 0"},
    {CENTRAL, PICKLE, 46, 1, 'b', "entry b/data.pkl is called a/data.pkl"},
    {CENTRAL, PICKLE, 48, 1, 'e', "a zip without data.pkl"},
    {END64, 0, 0, 4, 0, "no ZIP64 record"},
    {END64, 0, 16, 4, 1, "several disks"},
    {END64, 0, 24, 8, 3, "several disks"},
    {END64, 0, 24, 16, 0, "more in it than entries"},
    {END64, 0, 40, 8, 1, "can hold"},
    {END64, 0, 40, 8, UINT64_MAX, "out of the file"},
    {END64, 0, 48, 8, UINT64_MAX, "out of the file"},
    {END64, 0, 48, 8, 1, "damaged zip"},
    {LOCATOR, 0, 4, 4, 1, "several disks"},
    {LOCATOR, 0, 8, 8, UINT64_MAX, "out of the file"},
    {LOCATOR, 0, 8, 8, 0, "no ZIP64 record"},
    {LOCATOR, 0, 16, 4, 2, "several disks"},
    {LOCATOR, 0, 0, 4, 0, ""}, /* the plain end record is as good */
    {END, 0, 0, 4, 0, "no directory at its end"},
    {END, 0, 20, 2, 1, "no directory at its end"},
    {CUT, 0, 0, 0, 100, "no directory at its end"},
    {CUT, 0, 0, 0, 21, "too short"},
    {CUT, 0, 0, 0, 1, "too few"},
};

static const zip64 zip64s[] = {
    {64, 64, 0, 1, 24, ""},
    {64, 64, 0, 1, 16, "ZIP64 field is cut"},
    {64, 64, 0, 1, 23, "ZIP64 field is cut"},
    {64, 64, 0, 1, 0, "ZIP64 field is cut"},
    {64, 64, 0, 1, 25, "ZIP64 field is cut"},
    {64, 64, 0, 1, 65535, "ZIP64 field is cut"},
    {64, 64, 0, 2, 24, "begins after the directory"},
    {64, 63, 0, 1, 24, "compressed or encrypted"},
    {65, 65, 0, 1, 24, "do not fit before the next one"},
    {UINT64_MAX, UINT64_MAX, 0, 1, 24, "do not fit before the next one"},
    {1ull << 32, 1ull << 32, 0, 1, 24, "do not fit before the next one"},
    {64, 64, 1, 1, 24, "no local header"},
    {64, 64, 1ull << 40, 1, 24, "begins after the directory"},
    {64, 64, 1ull << 63, 1, 24, "begins after the directory"},
};

static void patch(zip_file *z, size_t i) {
    size_t at = (size_t)zips[i].at;
    switch (zips[i].place) {
    case LOCAL: at += z->local[zips[i].entry]; break;
    case CENTRAL: at += z->central[zips[i].entry]; break;
    case END64: at += z->end64; break;
    case LOCATOR: at += z->locator; break;
    case END: at += z->end; break;
    case CUT: z->n = (size_t)zips[i].value; return;
    }
    for (int k = 0; k < zips[i].bytes; k++) z->data[at + (size_t)k] = k < 8 ? (uint8_t)(zips[i].value >> (8 * k)) : 0;
}

/* 1 if it is not refused as it should be. An empty `says` must open. */
static int try_open(const zip_file *z, const char *what, size_t i, const char *says) {
    const char *name = "dir/bad.pth";
    uint8_t *exact = malloc(z->n ? z->n : 1); /* so that ASan sees a read past the end */
    lw_weights *w;
    lw_error err = {0};
    memcpy(exact, z->data, z->n);
    double begin = cpu_ms();
    lw_status status = lw_weights_open_memory(&w, exact, z->n, name, &err);
    double took = cpu_ms() - begin;
    bool good = *says ? status == LW_EMODEL && !strncmp(err.message, name, strlen(name)) && strstr(err.message, says)
                      : status == LW_OK;
    if (!good || took > 100)
        print_error("%s %zu: %d \"%s\" in %.0f ms, want %s\n", what, i, status, err.message, took, says);
    lw_weights_close(&w);
    free(exact);
    return !good || took > 100;
}

static void test_pickles(void **state) {
    (void)state;
    size_t n = sizeof pickles / sizeof *pickles;
    uint8_t bytes[4096];
    int wrong = 0;
    for (size_t i = 0; i < n; i++) {
        zip_file z = make_zip(bytes, assemble(pickles[i].pickle, bytes));
        wrong += try_open(&z, "pickle", i, pickles[i].says);
        free(z.data);
    }
    assert_int_equal(wrong, 0);
    assert_true(n >= 80);
    print_message("%zu files\n", n);
}

static void test_zips(void **state) {
    (void)state;
    size_t n = sizeof zips / sizeof *zips;
    uint8_t bytes[4096];
    int wrong = 0;
    for (size_t i = 0; i < n; i++) {
        zip_file z = make_zip(bytes, assemble(GOOD, bytes));
        patch(&z, i);
        wrong += try_open(&z, "zip", i, zips[i].says);
        free(z.data);
    }
    for (size_t i = 0; i < sizeof zip64s / sizeof *zip64s; i++) {
        zip_file z = make_zip64(bytes, assemble(GOOD, bytes), &zip64s[i]);
        wrong += try_open(&z, "ZIP64", i, zip64s[i].says);
        free(z.data);
    }
    assert_int_equal(wrong, 0);
    print_message("%zu files\n", n + sizeof zip64s / sizeof *zip64s);
}

static void test_good(void **state) {
    (void)state;
    static const struct {
        const char *pickle;
        float want[4];
    } good[] = {
        {GOOD, {0, 1, 2, 3}},
        {DICT(KEY VIEW(GOOD_STORAGE, "i:5", "i:4", "i:1")), {5, 6, 7, 8}},
        {DICT(KEY VIEW(GOOD_STORAGE, "i:1", "i:4", "i:4")), {1, 5, 9, 13}},
        {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:2 i:2", "i:1 i:4")), {0, 4, 1, 5}},
        {DICT(KEY VIEW(GOOD_STORAGE, "i:15", "i:4", "i:0")), {15, 15, 15, 15}},
        {DICT("s:epoch i:3 s:state_dict } ( " KEY VIEW(GOOD_STORAGE, "i:0", "i:4",
                                                       "i:1") " u s:callbacks g:os.system ( s:true t R"),
         {0, 1, 2, 3}},
        {"80 02 g:collections.OrderedDict ) R ( " KEY VIEW(GOOD_STORAGE, "i:0", "i:4",
                                                           "i:1") " u } s:_metadata N s b .",
         {0, 1, 2, 3}},
        {"80 02 g:collections.OrderedDict ( ( ( " KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1") " t t t R .",
         {0, 1, 2, 3}},
        {DICT(KEY "g:torch._utils._rebuild_parameter ( " VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1") " 88 } t R"),
         {0, 1, 2, 3}},
        {DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:4", "i:1") " s:loss " VIEW(GOOD_STORAGE, "i:0", "i:99", "i:0")),
         {0, 1, 2, 3}},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint8_t bytes[4096];
        float got[4];
        lw_weights *w;
        lw_error err;
        zip_file z = make_zip(bytes, assemble(good[i].pickle, bytes));
        if (lw_weights_open_memory(&w, z.data, z.n, "good.pth", &err) != LW_OK) fail_msg("%zu: %s", i, err.message);
        assert_int_equal(lw_weights_count(w), 1);
        assert_int_equal(lw_weights_at(w, 0)->n, 4);
        assert_int_equal(lw_tensor_read(w, lw_weights_at(w, 0), got, &err), LW_OK);
        assert_memory_equal(got, good[i].want, sizeof got);
        const lw_tensor *t = lw_weights_at(w, 0);
        for (int64_t row = 0, each = 4 / t->dims[0]; row < t->dims[0]; row++) { /* and its rows by themselves */
            assert_int_equal(lw_tensor_read_rows(w, t, row, 1, got, &err), LW_OK);
            assert_memory_equal(got, good[i].want + row * each, (size_t)each * sizeof *got);
        }
        lw_weights_close(&w);
        free(z.data);
    }
}

/* Each byte of a good file changed in eight ways: never a crash, and what opens can be read or refused. */
static void test_flips(void **state) {
    (void)state;
    uint8_t bytes[4096];
    zip_file z = make_zip(bytes, assemble(GOOD, bytes));
    float got[64];
    lw_weights *w;
    lw_error err;
    for (size_t at = 0; at < z.n; at++) {
        for (int bit = 0; bit < 8; bit++) {
            z.data[at] ^= (uint8_t)(1 << bit);
            if (lw_weights_open_memory(&w, z.data, z.n, "flip.pth", &err) == LW_OK) {
                assert_true(lw_weights_at(w, 0)->n <= 64);
                (void)lw_tensor_read(w, lw_weights_at(w, 0), got, &err);
            }
            lw_weights_close(&w);
            z.data[at] ^= (uint8_t)(1 << bit);
        }
    }
    for (size_t n = z.n; n-- > 0;) assert_int_equal(lw_weights_open_memory(&w, z.data, n, "cut.pth", &err), LW_EMODEL);
    free(z.data);
}

/* Streams of one opcode: the caps hold in memory and time. */
static void test_bombs(void **state) {
    (void)state;
    static const uint8_t units[][4] = {"}", "(", "]", "N", ")", "}2", ")\x85", "]2a", "(t", "}q\0", "X\0\0\0"};
    static const size_t sizes[] = {1, 1, 1, 1, 1, 2, 2, 3, 2, 3, 4};
    size_t n = 8 << 20;
    uint8_t *bytes = malloc(n);
    int wrong = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t at = 0; at < n; at++) bytes[at] = units[i][at % sizes[i]];
        zip_file z = make_zip(bytes, n);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        lw_weights *w;
        wrong += lw_weights_open_memory(&w, z.data, z.n, "bomb", NULL) != LW_EMODEL;
#else
        wrong += try_open(&z, "bomb", i, "pickle");
#endif
        free(z.data);
    }
    free(bytes);
    assert_int_equal(wrong, 0);
}

static long at_start; /* KiB, of the process before the tests */

static void test_memory(void **state) {
    (void)state;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    print_message("%ld KiB at most\n", usage.ru_maxrss);
    assert_true(usage.ru_maxrss - at_start < 64 * 1024); /* what all of the above added, with the test's own copies */
#endif
}

static void test_faults(void **state) {
    (void)state;
    uint8_t bytes[4096];
    zip_file z = make_zip(bytes, assemble(DICT(KEY VIEW(GOOD_STORAGE, "i:0", "i:2 i:2", "i:1 i:4")), bytes));
    for (int again = 0; again < 2; again++) {
        for (long nth = 1;; nth++) {
            lw_weights *w;
            lw_error err = {0};
            float got[4];
            lw_fault_arm(nth, again);
            lw_status status = lw_weights_open_memory(&w, z.data, z.n, "f.pth", &err);
            if (status == LW_OK) status = lw_tensor_read(w, lw_weights_at(w, 0), got, &err);
            bool reached = lw_fault_count() >= nth;
            lw_fault_arm(0, false);
            lw_weights_close(&w);
            assert_int_equal(status == LW_OK, !reached);
            if (!reached) break;
            assert_true(strncmp(err.message, "f.pth", 5) == 0);
        }
    }
    free(z.data);
}

static void test_not_zips(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } cases[] = {{"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15,
                  "torch before 1.6, which is not read: convert it"},
                 {"\x80\x04}.aaaaaaaa", 12, "torch before 1.6"},
                 {"GGUF\3\0\0\0\0\0\0\0", 12, "GGUF"},
                 {"PK\5\6aaaaaaaaaaaaaaaaaaaaaaaaa", 29, "damaged zip"},
                 {"PK\3\4", 4, "too short"},
                 {"", 0, "0 bytes are too few for a model"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lw_weights *w;
        lw_error err;
        assert_int_equal(lw_weights_open_memory(&w, cases[i].bytes, cases[i].n, "x.ckpt", &err), LW_EMODEL);
        if (!strstr(err.message, cases[i].says)) fail_msg("%s, want %s", err.message, cases[i].says);
    }
}

int main(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    at_start = usage.ru_maxrss;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good),   cmocka_unit_test(test_pickles),
                                       cmocka_unit_test(test_zips),   cmocka_unit_test(test_flips),
                                       cmocka_unit_test(test_bombs),  cmocka_unit_test(test_memory),
                                       cmocka_unit_test(test_faults), cmocka_unit_test(test_not_zips)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
