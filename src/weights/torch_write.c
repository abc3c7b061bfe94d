/* SPDX-License-Identifier: MIT
 * torch.save's zip, written: stored entries whose data begins at multiples of 64, ZIP64's end records always, a pickle
 * of protocol 2 that holds an OrderedDict of tensors. No name of the file is in it: equal models are equal files. */
#include "weights/format.h"

#include <stdio.h>
#include <string.h>

enum { ALIGNMENT = 64, LOCAL_BYTES = 30, DATE = 1 << 5 | 1 /* 1980-01-01 */, UTF8 = 0x800, VERSION = 45 };

typedef struct archive {
    lw_sink *sink;
    lw_text directory;
    uint64_t n;
    uint32_t crc[8][256];
} archive;

/* ---- zip */

static void make_crc(archive *a) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        a->crc[0][i] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t i = 0; i < 256; i++) a->crc[k][i] = a->crc[k - 1][i] >> 8 ^ a->crc[0][a->crc[k - 1][i] & 255];
}

/* Eight bytes at a time: of a checkpoint of gigabytes each byte passes here. */
static uint32_t crc_of(const archive *a, const uint8_t *p, size_t n) {
    uint32_t c = UINT32_MAX;
    for (; n >= 8; n -= 8, p += 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = a->crc[7][c & 255] ^ a->crc[6][c >> 8 & 255] ^ a->crc[5][c >> 16 & 255] ^ a->crc[4][c >> 24] ^
            a->crc[3][p[4]] ^ a->crc[2][p[5]] ^ a->crc[1][p[6]] ^ a->crc[0][p[7]];
    }
    while (n-- > 0) c = c >> 8 ^ a->crc[0][(c ^ *p++) & 255];
    return ~c;
}

/* value's low `bytes` bytes, little endian */
static void number(lw_text *t, uint64_t value, int bytes) {
    uint8_t b[8];
    for (int i = 0; i < bytes; i++) b[i] = (uint8_t)(value >> (8 * i));
    lw_text_add(t, b, (size_t)bytes);
}

/* What local header and directory say alike, from "version needed" to the length of the extra field. */
static void entry_fields(lw_text *t, uint32_t crc, size_t n, size_t n_name, size_t n_extra) {
    number(t, VERSION, 2);
    number(t, UTF8, 2);
    number(t, 0, 2); /* stored */
    number(t, 0, 2);
    number(t, DATE, 2);
    number(t, crc, 4);
    number(t, n, 4);
    number(t, n, 4);
    number(t, n_name, 2);
    number(t, n_extra, 2);
}

static lw_status put_entry(archive *a, const char *inner, const void *data, size_t n, lw_error *err) {
    char name[64];
    static const char filler[ALIGNMENT] = "ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ";
    size_t n_name = (size_t)snprintf(name, sizeof name, "archive/%s", inner);
    uint64_t at = a->sink->at, data_at = lw_round_up((size_t)at + LOCAL_BYTES + n_name + 4, ALIGNMENT);
    size_t n_fill = (size_t)(data_at - at) - LOCAL_BYTES - n_name - 4;
    uint32_t crc = crc_of(a, data, n);
    bool far = at >= UINT32_MAX;
    if (n >= UINT32_MAX)
        return lw_fail(err, LW_EINVAL, "%s: an entry of %zu bytes is too large for it", a->sink->path, n);
    lw_text local = {0};
    number(&local, 0x04034b50, 4);
    entry_fields(&local, crc, n, n_name, 4 + n_fill);
    lw_text_add(&local, name, n_name);
    lw_text_add(&local, "FB", 2); /* the field that torch aligns with */
    number(&local, n_fill, 2);
    lw_text_add(&local, filler, n_fill);
    lw_status status = local.failed ? lw_fail(err, LW_ENOMEM, "%s: no memory to write it", a->sink->path)
                                    : lw_sink_put(a->sink, local.data, local.n, err);
    lw_free(local.data);
    if (status == LW_OK) status = lw_sink_put(a->sink, data, n, err);

    lw_text *d = &a->directory;
    number(d, 0x02014b50, 4);
    number(d, VERSION, 2);
    entry_fields(d, crc, n, n_name, far ? 12 : 0);
    number(d, 0, 6); /* comment, disk, attributes */
    number(d, 0, 4);
    number(d, far ? UINT32_MAX : at, 4);
    lw_text_add(d, name, n_name);
    if (far) {
        number(d, 1, 2);
        number(d, 8, 2);
        number(d, at, 8);
    }
    a->n++;
    return status;
}

static lw_status put_directory(archive *a, lw_error *err) {
    lw_text *d = &a->directory;
    uint64_t at = a->sink->at, bytes = d->n, n = a->n;
    number(d, 0x06064b50, 4);
    number(d, 44, 8); /* bytes of this record that follow */
    number(d, VERSION, 2);
    number(d, VERSION, 2);
    number(d, 0, 8); /* disks */
    number(d, n, 8);
    number(d, n, 8);
    number(d, bytes, 8);
    number(d, at, 8);
    number(d, 0x07064b50, 4);
    number(d, 0, 4);
    number(d, at + bytes, 8);
    number(d, 1, 4);
    number(d, 0x06054b50, 4);
    number(d, 0, 4);
    number(d, n < UINT16_MAX ? n : UINT16_MAX, 2);
    number(d, n < UINT16_MAX ? n : UINT16_MAX, 2);
    number(d, bytes < UINT32_MAX ? bytes : UINT32_MAX, 4);
    number(d, at < UINT32_MAX ? at : UINT32_MAX, 4);
    number(d, 0, 2);
    if (d->failed) return lw_fail(err, LW_ENOMEM, "%s: no memory for its directory", a->sink->path);
    return lw_sink_put(a->sink, d->data, d->n, err);
}

/* ---- pickle */

static void code(lw_text *t, const char *opcodes) { lw_text_add(t, opcodes, strlen(opcodes)); }

static void unicode(lw_text *t, const char *s) {
    code(t, "X");
    number(t, strlen(s), 4);
    code(t, s);
}

static void integer(lw_text *t, int64_t v) {
    if (v >= 0 && v <= INT32_MAX) {
        code(t, "J");
        number(t, (uint64_t)v, 4);
    } else {
        code(t, "\x8a\x08"); /* LONG1 of 8 bytes */
        number(t, (uint64_t)v, 8);
    }
}

static const char *storage_class(lw_dtype dtype) {
    switch (dtype) {
    case LW_F32: return "FloatStorage";
    case LW_F16: return "HalfStorage";
    case LW_BF16: return "BFloat16Storage";
    case LW_F64: return "DoubleStorage";
    case LW_U8: return "ByteStorage";
    case LW_I8: return "CharStorage";
    case LW_I16: return "ShortStorage";
    case LW_I32: return "IntStorage";
    case LW_I64: return "LongStorage";
    case LW_BOOL: return "BoolStorage";
    case LW_N_DTYPES: break;
    }
    return "UntypedStorage";
}

/* _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()) */
static void tensor(lw_text *t, const lw_save_tensor *save, size_t key) {
    char text[32];
    int64_t strides[LW_MAX_RANK];
    size_t n = 0;
    lw_shape_count(save->dims, save->rank, strides, &n);
    code(t, "ctorch._utils\n_rebuild_tensor_v2\n((");
    unicode(t, "storage");
    code(t, "ctorch\n");
    code(t, storage_class(save->dtype));
    code(t, "\n");
    snprintf(text, sizeof text, "%zu", key);
    unicode(t, text);
    unicode(t, "cpu");
    integer(t, (int64_t)n);
    code(t, "tQK");
    number(t, 0, 1);
    code(t, "(");
    for (int32_t i = 0; i < save->rank; i++) integer(t, save->dims[i]);
    code(t, "t(");
    for (int32_t i = 0; i < save->rank; i++) integer(t, strides[i]);
    code(t, "t\x89"
            "ccollections\nOrderedDict\n)RtR");
}

static void state_dict(lw_text *t, const lw_save *save, bool wrapped) {
    code(t, "\x80\x02");
    if (wrapped) {
        code(t, "}(");
        unicode(t, "global_step");
        integer(t, 0);
        unicode(t, "state_dict");
    }
    code(t, "ccollections\nOrderedDict\n)R(");
    for (size_t i = 0; i < save->n; i++) {
        unicode(t, save->tensors[i].name);
        tensor(t, &save->tensors[i], i);
    }
    code(t, wrapped ? "uu." : "u.");
}

/* ---- the file */

static lw_status put_all(archive *a, const lw_save *save, bool wrapped, lw_error *err) {
    lw_status status = LW_OK;
    lw_text pickle = {0};
    void *buffer = NULL;
    const void *data;
    size_t bytes;
    state_dict(&pickle, save, wrapped);
    if (pickle.failed) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for its pickle", a->sink->path);
        goto out;
    }
    LW_GO(put_entry(a, "data.pkl", pickle.data, pickle.n, err));
    LW_GO(put_entry(a, "byteorder", "little", 6, err));
    for (size_t i = 0; i < save->n; i++) {
        char name[40];
        snprintf(name, sizeof name, "data/%zu", i);
        LW_GO(lw_save_bytes(a->sink->path, save, i, &buffer, &data, &bytes, err));
        LW_GO(put_entry(a, name, data, bytes, err));
        lw_free(buffer);
        buffer = NULL;
    }
    LW_GO(put_entry(a, "version", "3\n", 2, err));
    status = put_directory(a, err);
out:
    lw_free(buffer);
    lw_free(pickle.data);
    return status;
}

lw_status lw_torch_write(const char *path, const lw_save *save, bool wrapped, lw_error *err) {
    lw_sink sink;
    archive *a = lw_alloc(1, sizeof *a);
    if (!a) return lw_fail(err, LW_ENOMEM, "%s: no memory to write it", path);
    a->sink = &sink;
    make_crc(a);
    lw_status status = lw_sink_open(&sink, path, err);
    if (status == LW_OK) status = lw_sink_close(&sink, put_all(a, save, wrapped, err), err);
    lw_free(a->directory.data);
    lw_free(a);
    return status;
}
