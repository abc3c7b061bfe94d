/* SPDX-License-Identifier: MIT
 * Writing safetensors, the same bytes as the format's own library: a model can be compared by its hash. */
#include "weights/format.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Where the library sorts by type first, its order of the types; larger elements come first, so all are aligned. */
static int type_order(lw_dtype dtype) {
    static const lw_dtype order[] = {LW_BOOL, LW_U8, LW_I8, LW_I16, LW_F16, LW_BF16, LW_I32, LW_F32, LW_F64, LW_I64};
    int i = 0;
    while (i < LW_N_DTYPES && order[i] != dtype) i++;
    return i;
}

static int by_type_and_name(const void *a, const void *b) {
    const lw_save_tensor *x = *(const lw_save_tensor *const *)a, *y = *(const lw_save_tensor *const *)b;
    int p = type_order(x->dtype), q = type_order(y->dtype);
    return p != q ? q - p : strcmp(x->name, y->name);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const lw_field *)a)->key, ((const lw_field *)b)->key);
}

static lw_status tensor_bytes(const char *path, const lw_save_tensor *t, size_t *bytes, lw_error *err) {
    size_t n = lw_dtype_bytes(t->dtype);
    *bytes = 0;
    bool fits = t->rank >= 0 && t->rank <= LW_MAX_RANK;
    for (int32_t i = 0; fits && i < t->rank; i++) fits = t->dims[i] >= 0 && lw_mul_size(n, (size_t)t->dims[i], &n);
    if (!fits || n > INT64_MAX) return lw_fail(err, LW_EINVAL, "%s: the shape of %s can't be stored", path, t->name);
    *bytes = n;
    return LW_OK;
}

static void append_text(lw_text *t, const char *s) { lw_text_add(t, s, strlen(s)); }

static void append_string(lw_text *t, const char *s) {
    json_t *value = json_string(s); /* NULL where s is not UTF-8 */
    char *quoted = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    if (quoted) append_text(t, quoted);
    else t->failed = true;
    free(quoted);
    json_decref(value);
}

static void append_tensor(lw_text *t, const lw_save_tensor *tensor, size_t begin, size_t end) {
    char number[80];
    append_string(t, tensor->name);
    append_text(t, ":{\"dtype\":\"");
    append_text(t, lw_dtype_name(tensor->dtype));
    append_text(t, "\",\"shape\":[");
    for (int32_t i = 0; i < tensor->rank; i++) {
        snprintf(number, sizeof number, "%s%lld", i ? "," : "", (long long)tensor->dims[i]);
        append_text(t, number);
    }
    snprintf(number, sizeof number, "],\"data_offsets\":[%zu,%zu]}", begin, end);
    append_text(t, number);
}

static lw_status make_header(const char *path, const lw_save *save, const lw_save_tensor *const *order, lw_text *t,
                             lw_error *err) {
    size_t at = 0, bytes;
    append_text(t, "{");
    if (save->n_metadata > 0) {
        lw_field *fields = lw_alloc(save->n_metadata, sizeof *fields);
        if (!fields) return lw_fail(err, LW_ENOMEM, "%s: no memory for its metadata", path);
        memcpy(fields, save->metadata, save->n_metadata * sizeof *fields);
        qsort(fields, save->n_metadata, sizeof *fields, by_key);
        for (size_t i = 0; i < save->n_metadata; i++) {
            append_text(t, i ? "," : "\"__metadata__\":{");
            append_string(t, fields[i].key);
            append_text(t, ":");
            append_string(t, fields[i].value);
        }
        append_text(t, "}");
        lw_free(fields);
    }
    for (size_t i = 0; i < save->n; i++) {
        LW_TRY(tensor_bytes(path, order[i], &bytes, err));
        if (i > 0 && strcmp(order[i - 1]->name, order[i]->name) == 0)
            return lw_fail(err, LW_EINVAL, "%s: two tensors are called %s", path, order[i]->name);
        if (i > 0 || save->n_metadata > 0) append_text(t, ",");
        append_tensor(t, order[i], at, at + bytes);
        if (!lw_add_size(at, bytes, &at)) return lw_fail(err, LW_EINVAL, "%s: too large to be stored", path);
    }
    append_text(t, "}");
    while (!t->failed && t->n % 8 != 0) append_text(t, " "); /* the data begins aligned */
    if (t->failed) return lw_fail(err, LW_ENOMEM, "%s: no memory for its header, or a name is not UTF-8", path);
    return LW_OK;
}

void lw_from_f32(lw_dtype dtype, const float *src, void *dst, size_t n) {
    if (dtype == LW_F16) lw_to_f16(src, dst, n);
    for (size_t i = 0; i < n; i++) {
        if (dtype == LW_F32) ((float *)dst)[i] = src[i];
        else if (dtype == LW_BF16) ((uint16_t *)dst)[i] = lw_f32_to_bf16(src[i]);
        else if (dtype == LW_F64) ((double *)dst)[i] = (double)src[i];
        else if (dtype == LW_I64) ((int64_t *)dst)[i] = (int64_t)src[i];
    }
}

/* The bytes of tensors[i]: its own, or those that load makes in a new *buffer. */
lw_status lw_save_bytes(const char *path, const lw_save *save, size_t i, void **buffer, const void **data,
                        size_t *bytes, lw_error *err) {
    const lw_save_tensor *t = &save->tensors[i];
    *buffer = NULL;
    *data = t->data;
    LW_TRY(tensor_bytes(path, t, bytes, err));
    if (*data) return LW_OK;
    *buffer = lw_alloc_aligned(*bytes);
    if (!*buffer) return lw_fail(err, LW_ENOMEM, "%s: no memory for the %zu bytes of %s", path, *bytes, t->name);
    *data = *buffer;
    lw_status status = save->load(save->user, i, *buffer, err);
    if (status != LW_OK) {
        lw_free(*buffer);
        *buffer = NULL;
    }
    return status;
}

static lw_status put_all(lw_sink *sink, const lw_save *save, const lw_save_tensor *const *order, lw_error *err) {
    lw_status status = LW_OK;
    lw_text header = {0};
    void *buffer = NULL;
    const void *data;
    uint8_t length[8];
    size_t bytes;
    LW_GO(make_header(sink->path, save, order, &header, err));
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(header.n >> (8 * i));
    LW_GO(lw_sink_put(sink, length, 8, err));
    LW_GO(lw_sink_put(sink, header.data, header.n, err));
    for (size_t i = 0; i < save->n; i++) {
        LW_GO(lw_save_bytes(sink->path, save, (size_t)(order[i] - save->tensors), &buffer, &data, &bytes, err));
        LW_GO(lw_sink_put(sink, data, bytes, err));
        lw_free(buffer);
        buffer = NULL;
    }
out:
    lw_free(buffer);
    lw_free(header.data);
    return status;
}

lw_status lw_safetensors_write(const char *path, const lw_save *save, lw_error *err) {
    lw_sink sink;
    const lw_save_tensor **order = lw_alloc(save->n, sizeof *order);
    if (!order) return lw_fail(err, LW_ENOMEM, "%s: no memory to write it", path);
    for (size_t i = 0; i < save->n; i++) order[i] = &save->tensors[i];
    qsort(order, save->n, sizeof *order, by_type_and_name);
    lw_status status = lw_sink_open(&sink, path, err);
    if (status == LW_OK) status = lw_sink_close(&sink, put_all(&sink, save, order, err), err);
    lw_free(order);
    return status;
}
