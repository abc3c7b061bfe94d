/* SPDX-License-Identifier: MIT
 * SHA-256 of bytes and of files. What a file's was is remembered in the cache folder's hashes.json by path, size and time of change. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef LW_HAVE_MD
#include <sys/types.h>
#include <sha2.h>
#endif

#include "base/base.h"

#ifdef LW_HAVE_MD
static void hex(const uint8_t digest[32], char out[65]) {
    for (size_t i = 0; i < 32; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

lw_status lw_sha256(const void *bytes, size_t n_bytes, char out[65], lw_error *err) {
    SHA2_CTX context;
    uint8_t digest[32];
    out[0] = 0;
    if (!bytes && n_bytes) return lw_fail(err, LW_EINVAL, "lw_sha256: %zu bytes at NULL", n_bytes);
    SHA256Init(&context);
    SHA256Update(&context, bytes, n_bytes);
    SHA256Final(digest, &context);
    hex(digest, out);
    return LW_OK;
}

static lw_status hash_file(int fd, const char *path, uint64_t size, lw_bytes_fn progress, void *user, char out[65],
                           lw_error *err) {
    enum { CHUNK = 1 << 20 };
    SHA2_CTX context;
    uint8_t digest[32], *chunk = lw_alloc(CHUNK, 1);
    lw_status status = LW_OK;
    if (!chunk) return lw_fail(err, LW_ENOMEM, "%s: no memory to hash it", path);
    SHA256Init(&context);
    for (uint64_t done = 0; status == LW_OK;) {
        ssize_t got = lw_fault_hit() ? (errno = EIO, -1) : read(fd, chunk, CHUNK);
        if (got == 0) break;
        if (got < 0 && errno == EINTR) got = 0;
        if (got < 0) status = lw_fail(err, LW_EMODEL, "%s: can't be read: %s", path, strerror(errno));
        else SHA256Update(&context, chunk, (size_t)got);
        done += got > 0 ? (uint64_t)got : 0;
        if (status == LW_OK && progress && progress(user, done, size) != 0)
            status = lw_fail(err, LW_ECANCEL, "%s: hashing was cancelled", path);
    }
    lw_free(chunk);
    if (status != LW_OK) return status;
    SHA256Final(digest, &context);
    hex(digest, out);
    return LW_OK;
}
#else
lw_status lw_sha256(const void *bytes, size_t n_bytes, char out[65], lw_error *err) {
    (void)bytes, (void)n_bytes, (void)err;
    out[0] = 0;
    return LW_OK;
}

static lw_status hash_file(int fd, const char *path, uint64_t size, lw_bytes_fn progress, void *user, char out[65],
                           lw_error *err) {
    (void)fd, (void)path, (void)size, (void)progress, (void)user, (void)out, (void)err;
    return LW_OK;
}
#endif

/* ---- what is remembered */

enum { MAX_REMEMBERED = 256 };

static bool is_hash(const char *text) {
    return text && strlen(text) == 64 && text[strspn(text, "0123456789abcdef")] == 0;
}

static bool is_entry(const json_t *e) {
    return json_is_string(json_object_get(e, "path")) && json_is_integer(json_object_get(e, "size")) &&
           json_is_integer(json_object_get(e, "mtime_ns")) && is_hash(json_string_value(json_object_get(e, "sha256")));
}

/* The array of what is remembered; an empty one where the file is missing or not ours. NULL: no memory. */
static json_t *remembered(const char *file) {
    json_t *root = json_load_file(file, JSON_REJECT_DUPLICATES, NULL), *list = json_array();
    bool ours = json_is_object(root) && json_integer_value(json_object_get(root, "version")) == 1;
    size_t i;
    json_t *entry;
    json_array_foreach(ours ? json_object_get(root, "files") : NULL, i, entry) {
        if (is_entry(entry)) json_array_append(list, entry);
    }
    json_decref(root);
    return list;
}

static bool is_of(const json_t *entry, const char *path) {
    return strcmp(json_string_value(json_object_get(entry, "path")), path) == 0;
}

/* A cache that can't be written costs time alone: no failure is told. */
static void remember(json_t *list, const char *file, const char *path, json_int_t size, json_int_t mtime_ns,
                     const char *hash) {
    for (size_t i = json_array_size(list); i-- > 0;)
        if (is_of(json_array_get(list, i), path)) json_array_remove(list, i);
    while (json_array_size(list) >= MAX_REMEMBERED) json_array_remove(list, 0);
    json_t *entry =
        json_pack("{s:s, s:I, s:I, s:s}", "path", path, "size", size, "mtime_ns", mtime_ns, "sha256", hash);
    if (entry) json_array_append_new(list, entry); /* a path that is not UTF-8 is not remembered */
    json_t *root = json_pack("{s:i, s:O}", "version", 1, "files", list);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (text) lw_file_write(file, text, strlen(text), NULL);
    free(text);
    json_decref(root);
}

lw_status lw_file_sha256(const char *path, const char *cache_dir, uint64_t max_bytes, lw_bytes_fn progress, void *user,
                         char out[65], lw_error *err) {
    struct stat st;
    lw_status status = LW_OK;
    out[0] = 0;
    int fd = lw_fault_hit() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return lw_fail(err, LW_EMODEL, "%s: can't be opened: %s", path, strerror(errno));
    char *whole = NULL, *file = NULL;
    json_t *list = NULL;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) goto out;
    whole = realpath(path, NULL);
    file = cache_dir ? lw_format("%s/hashes.json", cache_dir) : NULL;
    list = file && whole ? remembered(file) : NULL;
    json_int_t mtime_ns = (json_int_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) {
        if (is_of(entry, whole) && json_integer_value(json_object_get(entry, "size")) == st.st_size &&
            json_integer_value(json_object_get(entry, "mtime_ns")) == mtime_ns)
            snprintf(out, 65, "%s", json_string_value(json_object_get(entry, "sha256")));
    }
    if (out[0] || (max_bytes && (uint64_t)st.st_size > max_bytes)) goto out;
    status = hash_file(fd, path, (uint64_t)st.st_size, progress, user, out, err);
    if (status == LW_OK && out[0] && list) remember(list, file, whole, (json_int_t)st.st_size, mtime_ns, out);
out:
    json_decref(list);
    lw_free(file);
    free(whole);
    close(fd);
    return status;
}
