/* SPDX-License-Identifier: MIT
 * SHA-256 of inputs and model files. A model's hash costs a read of the whole file, so it is remembered by path, size
 * and time of change in hashes.json of the cache; what does not read as that is thrown away and made again. */
#include "cli.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef LW_HAVE_MD
#include <sha2.h>
#include <sys/types.h>

static void hex(const uint8_t digest[32], char out[65]) {
    for (int i = 0; i < 32; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

void cli_sha256(const void *bytes, size_t n_bytes, char out[65]) {
    SHA2_CTX context;
    uint8_t digest[32];
    SHA256Init(&context);
    SHA256Update(&context, bytes, n_bytes);
    SHA256Final(digest, &context);
    hex(digest, out);
}

static bool hash_file(int fd, char out[65]) {
    enum { CHUNK = 1 << 20 };
    SHA2_CTX context;
    uint8_t digest[32], *chunk = malloc(CHUNK);
    ssize_t got = -1;
    SHA256Init(&context);
    while (chunk && !cli_interrupted() && (got = read(fd, chunk, CHUNK)) > 0)
        SHA256Update(&context, chunk, (size_t)got);
    free(chunk);
    if (got != 0) return false;
    SHA256Final(digest, &context);
    hex(digest, out);
    return true;
}
#else
void cli_sha256(const void *bytes, size_t n_bytes, char out[65]) {
    (void)bytes;
    (void)n_bytes;
    out[0] = 0;
}

static bool hash_file(int fd, char out[65]) {
    (void)fd;
    (void)out;
    return false;
}
#endif

enum { MAX_REMEMBERED = 256 };

static bool is_hash(const char *text) {
    return text && strlen(text) == 64 && text[strspn(text, "0123456789abcdef")] == 0;
}

/* The array of what is remembered; an empty one where the file is missing or not ours. */
static json_t *remembered(const char *file) {
    json_t *root = json_load_file(file, JSON_REJECT_DUPLICATES, NULL);
    json_t *files = json_is_object(root) && json_integer_value(json_object_get(root, "version")) == 1
                        ? json_object_get(root, "files")
                        : NULL;
    json_t *list = json_array();
    size_t i;
    json_t *entry;
    json_array_foreach(files, i, entry) {
        if (json_is_string(json_object_get(entry, "path")) && json_is_integer(json_object_get(entry, "size")) &&
            json_is_integer(json_object_get(entry, "mtime_ns")) &&
            is_hash(json_string_value(json_object_get(entry, "sha256"))))
            json_array_append(list, entry);
    }
    json_decref(root);
    return list;
}

static bool is_of(const json_t *entry, const char *path) {
    return !strcmp(json_string_value(json_object_get(entry, "path")), path);
}

static void remember(json_t *list, const char *cache_dir, const char *file, const char *path, const struct stat *st,
                     int64_t mtime_ns, const char *hash) {
    for (size_t i = json_array_size(list); i-- > 0;)
        if (is_of(json_array_get(list, i), path)) json_array_remove(list, i);
    while (json_array_size(list) >= MAX_REMEMBERED) json_array_remove(list, 0);
    json_t *entry = json_pack("{s:s, s:I, s:I, s:s}", "path", path, "size", (json_int_t)st->st_size, "mtime_ns",
                              (json_int_t)mtime_ns, "sha256", hash);
    if (entry) json_array_append_new(list, entry); /* a path that is not UTF-8 is not remembered */
    json_t *root = json_pack("{s:i, s:O}", "version", 1, "files", list);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    cli_make_cache_dir(cache_dir);
    cli_hold_signals(true);
    if (text) lw_file_write(file, text, strlen(text), NULL); /* a cache that can't be written costs time alone */
    cli_hold_signals(false);
    free(text);
    json_decref(root);
}

void cli_file_hash(const char *path, const char *cache_dir, uint64_t max_bytes, char out[65]) {
    struct stat st;
    out[0] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    char *whole = realpath(path, NULL), *file = cache_dir ? cli_format("%s/hashes.json", cache_dir) : NULL;
    if (whole && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        int64_t mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        json_t *list = file ? remembered(file) : json_array();
        size_t i;
        json_t *entry;
        json_array_foreach(list, i, entry) {
            if (is_of(entry, whole) && json_integer_value(json_object_get(entry, "size")) == st.st_size &&
                json_integer_value(json_object_get(entry, "mtime_ns")) == mtime_ns)
                snprintf(out, 65, "%s", json_string_value(json_object_get(entry, "sha256")));
        }
        if (!out[0] && (uint64_t)st.st_size <= max_bytes && hash_file(fd, out) && file)
            remember(list, cache_dir, file, whole, &st, mtime_ns, out);
        json_decref(list);
    }
    free(whole);
    free(file);
    close(fd);
}
