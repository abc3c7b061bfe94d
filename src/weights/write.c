/* SPDX-License-Identifier: MIT
 * Writing safetensors, the same bytes as the format's own library: a model can be compared by its hash. */
#include "weights/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* A growing text; `failed` stays set once memory was short. */
typedef struct text {
    char *data;
    size_t n, room;
    bool failed;
} text;

static void append(text *t, const char *s, size_t n) {
    if (!t->failed && t->n + n > t->room) {
        size_t room = (t->n + n) * 2 + 4096;
        char *grown = lw_realloc(t->data, room, 1);
        if (grown) t->data = grown, t->room = room;
        else t->failed = true;
    }
    if (t->failed) return;
    memcpy(t->data + t->n, s, n);
    t->n += n;
}

static void append_text(text *t, const char *s) { append(t, s, strlen(s)); }

static void append_string(text *t, const char *s) {
    json_t *value = json_string(s); /* NULL where s is not UTF-8 */
    char *quoted = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    if (quoted) append_text(t, quoted);
    else t->failed = true;
    free(quoted);
    json_decref(value);
}

static void append_tensor(text *t, const lw_save_tensor *tensor, size_t begin, size_t end) {
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

static lw_status make_header(const char *path, const lw_save *save, const lw_save_tensor *const *order, text *t,
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

static lw_status put(int fd, const char *path, const void *bytes, size_t n, lw_error *err) {
    for (size_t done = 0; done < n;) {
        size_t want = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30;
        ssize_t r = lw_fault_hit() ? (errno = EIO, -1) : write(fd, (const char *)bytes + done, want);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(r ? errno : ENOSPC));
        done += (size_t)r;
    }
    return LW_OK;
}

static lw_status put_all(int fd, const char *path, const lw_save *save, const lw_save_tensor *const *order,
                         lw_error *err) {
    lw_status status = LW_OK;
    text header = {0};
    void *buffer = NULL;
    uint8_t length[8];
    size_t bytes;
    LW_GO(make_header(path, save, order, &header, err));
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(header.n >> (8 * i));
    LW_GO(put(fd, path, length, 8, err));
    LW_GO(put(fd, path, header.data, header.n, err));
    for (size_t i = 0; i < save->n; i++) {
        const void *data = order[i]->data;
        LW_GO(tensor_bytes(path, order[i], &bytes, err));
        if (!data) {
            buffer = lw_alloc_aligned(bytes);
            if (!buffer) {
                status = lw_fail(err, LW_ENOMEM, "%s: no memory for the %zu bytes of %s", path, bytes, order[i]->name);
                goto out;
            }
            LW_GO(save->load(save->user, (size_t)(order[i] - save->tensors), buffer, err));
            data = buffer;
        }
        LW_GO(put(fd, path, data, bytes, err));
        lw_free(buffer);
        buffer = NULL;
    }
out:
    lw_free(buffer);
    lw_free(header.data);
    return status;
}

/* A new file beside path, with the mode that the process's umask gives (mkstemp's is 0600, and reading the umask is a
 * race between threads). *name is freed with lw_free. */
static int open_beside(const char *path, char **name) {
    for (int i = 0; i < 100; i++) {
        *name = lw_format("%s.tmp-%ld-%d", path, (long)getpid(), i);
        if (!*name) return errno = ENOMEM, -1;
        int fd = lw_fault_hit() ? (errno = EIO, -1) : open(*name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) return fd;
        lw_free(*name);
        *name = NULL;
        if (errno != EEXIST) break;
    }
    return -1;
}

lw_status lw_safetensors_write(const char *path, const lw_save *save, lw_error *err) {
    lw_status status = LW_OK;
    struct stat st;
    bool direct = stat(path, &st) == 0 && !S_ISREG(st.st_mode); /* a device or FIFO is not replaced */
    char *beside = NULL;
    int fd = -1;
    const lw_save_tensor **order = lw_alloc(save->n, sizeof *order);
    if (!order) return lw_fail(err, LW_ENOMEM, "%s: no memory to write it", path);
    for (size_t i = 0; i < save->n; i++) order[i] = &save->tensors[i];
    qsort(order, save->n, sizeof *order, by_type_and_name);
    fd = direct ? open(path, O_WRONLY | O_CLOEXEC) : open_beside(path, &beside);
    if (fd < 0) {
        status = lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(errno));
        goto out;
    }
    status = put_all(fd, path, save, order, err);
    if (close(fd) != 0 && status == LW_OK)
        status = lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(errno));
    if (beside && status == LW_OK && rename(beside, path) != 0)
        status = lw_fail(err, LW_EOUTPUT, "%s: can't be put in place: %s", path, strerror(errno));
    if (beside && status != LW_OK) unlink(beside);
out:
    lw_free(order);
    lw_free(beside);
    return status;
}
