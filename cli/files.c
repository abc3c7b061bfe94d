/* SPDX-License-Identifier: MIT */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* A picture of 64 Mpx as 16-bit RGBA is half of this: what is larger is not an input of ours. */
enum { READ_LIMIT = 1 << 30 };

static lw_status read_all(int fd, size_t expected, const char *name, lw_status code, void **bytes, size_t *n_bytes,
                          lw_error *err) {
    size_t n = 0, room = expected ? expected + 1 : 65536; /* one more, so that the end is seen without growing */
    char *data = malloc(room);
    while (data) {
        ssize_t got = read(fd, data + n, room - n);
        if (got < 0 && errno == EINTR && !cli_interrupted()) continue;
        if (got < 0) {
            free(data);
            if (cli_interrupted()) return cli_fail(err, LW_ECANCEL, "cancelled while reading %s", name);
            return cli_fail(err, code, "%s: can't be read: %s", name, strerror(errno));
        }
        if (got == 0) {
            *bytes = data;
            *n_bytes = n;
            return LW_OK;
        }
        n += (size_t)got;
        if (n < room) continue;
        if (n > READ_LIMIT) break;
        char *larger = realloc(data, room *= 2);
        if (!larger) free(data);
        data = larger;
    }
    if (!data) return cli_fail(err, LW_ENOMEM, "%s: no memory for %zu bytes of it", name, room);
    free(data);
    return cli_fail(err, code, "%s: has more than the %d bytes that are read", name, READ_LIMIT);
}

lw_status cli_read_file(const char *path, lw_status code, void **bytes, size_t *n_bytes, lw_error *err) {
    if (!strcmp(path, "-")) return read_all(STDIN_FILENO, 0, "standard input", code, bytes, n_bytes, err);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return cli_fail(err, code, "%s: can't be opened: %s", path, strerror(errno));
    struct stat st;
    lw_status status;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) status = cli_fail(err, code, "%s: is a folder, not a file", path);
    else if (S_ISREG(st.st_mode) && st.st_size > READ_LIMIT)
        status = cli_fail(err, code, "%s: has %lld bytes, more than the %d that are read", path, (long long)st.st_size,
                          READ_LIMIT);
    else status = read_all(fd, S_ISREG(st.st_mode) ? (size_t)st.st_size : 0, path, code, bytes, n_bytes, err);
    close(fd);
    return status;
}

lw_status cli_read_picture(const char *path, lw_image *out, lw_fields *fields, char sha256[65], lw_error *err) {
    void *bytes = NULL;
    size_t n_bytes = 0;
    lw_status status = cli_read_file(path, LW_EINPUT, &bytes, &n_bytes, err);
    if (status != LW_OK) return status;
    const char *name = strcmp(path, "-") ? path : "standard input";
    status = lw_image_decode(bytes, n_bytes, name, out, fields, err);
    if (status == LW_OK && sha256) status = lw_sha256(bytes, n_bytes, sha256, err);
    free(bytes);
    return status;
}

static bool is_special(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

/* Whether this build has the format is best asked of the encoder itself. */
static lw_status check_format(const char *format, lw_error *err) {
    uint8_t pixel[3] = {0};
    lw_image one = {.size = sizeof one, .width = 1, .height = 1, .channels = 3, .stride = 3, .data = pixel};
    void *bytes = NULL;
    size_t n_bytes = 0;
    lw_status status = lw_image_encode(&one, format, NULL, &bytes, &n_bytes, err);
    lw_free(bytes);
    return status;
}

/* The library's name of the format that path's extension asks for, or NULL. Streams have none and take PNG, or PPM
 * where the build has no PNG. */
static const char *format_of(const char *path) {
    static const char *const formats[][2] = {{"png", "png"},   {"jpg", "jpeg"}, {"jpeg", "jpeg"},
                                             {"webp", "webp"}, {"ppm", "ppm"},  {"pgm", "ppm"}};
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    for (size_t i = 0; dot && i < sizeof formats / sizeof *formats; i++)
        if (!strcasecmp(dot + 1, formats[i][0])) return formats[i][1];
    if (strcmp(path, "-") != 0 && !is_special(path)) return NULL;
    lw_error ignored;
    return check_format("png", &ignored) == LW_OK ? "png" : "ppm";
}

lw_status cli_check_output(const char *path, lw_error *err) {
    struct stat st;
    if (!strcmp(path, "-")) return LW_OK;
    if (!*path) return cli_fail(err, LW_EOUTPUT, "output: \"\" names no file");
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) return cli_fail(err, LW_EOUTPUT, "%s: is a folder, not a file", path);
    if (exists && access(path, W_OK) != 0)
        return cli_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(errno));
    if (exists && !S_ISREG(st.st_mode)) return LW_OK;

    /* The file is made beside its name and renamed, so the folder has to take a new file too. */
    const char *slash = strrchr(path, '/');
    char *folder = slash ? cli_format("%.*s", slash == path ? 1 : (int)(slash - path), path) : cli_format(".");
    if (!folder) return cli_no_memory(err);
    lw_status status = LW_OK;
    if (stat(folder, &st) != 0)
        status = cli_fail(err, LW_EOUTPUT, "%s: can't be written: folder %s: %s", path, folder, strerror(errno));
    else if (!S_ISDIR(st.st_mode))
        status = cli_fail(err, LW_EOUTPUT, "%s: can't be written: %s is not a folder", path, folder);
    else if (access(folder, W_OK | X_OK) != 0)
        status = cli_fail(err, LW_EOUTPUT, "%s: can't be written: folder %s: %s", path, folder, strerror(errno));
    else if (slash && !slash[1]) status = cli_fail(err, LW_EOUTPUT, "%s: names a folder, not a file", path);
    free(folder);
    return status;
}

lw_status cli_check_picture_output(const char *path, lw_error *err) {
    lw_status status = cli_check_output(path, err);
    if (status != LW_OK) return status;
    const char *format = format_of(path);
    if (!format)
        return cli_fail(err, LW_EINVAL, "%s: its extension names no picture format: png, jpg, webp, ppm", path);
    lw_error why = {0};
    status = check_format(format, &why);
    return status == LW_OK ? LW_OK : cli_fail(err, status, "%s: %s", path, why.message);
}

lw_status cli_write_picture(const char *path, const lw_image *image, const lw_fields *fields, lw_error *err) {
    const char *format = format_of(path);
    void *bytes = NULL;
    size_t n_bytes = 0;
    lw_status status = lw_image_encode(image, format ? format : "png", fields, &bytes, &n_bytes, err);
    if (status == LW_OK) {
        cli_hold_signals(true);
        status = strcmp(path, "-") ? lw_file_write(path, bytes, n_bytes, err) : cli_print_bytes(bytes, n_bytes, err);
        cli_hold_signals(false);
    }
    lw_free(bytes);
    return status;
}

char *cli_cache_dir(void) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && xdg[0] == '/') return cli_format("%s/linework", xdg); /* a relative one is to be ignored (XDG) */
    return home && *home ? cli_format("%s/.cache/linework", home) : NULL;
}

void cli_make_cache_dir(const char *dir) {
    char *path = cli_format("%s", dir);
    for (char *slash = path ? strchr(path + 1, '/') : NULL; slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700); /* there already, or the write into it says what is wrong */
        *slash = '/';
    }
    if (path) mkdir(path, 0700);
    free(path);
}

static int stopped(void *user, uint64_t done, uint64_t total) {
    (void)user, (void)done, (void)total;
    return cli_interrupted();
}

void cli_file_hash(const char *path, const char *cache_dir, uint64_t max_bytes, char out[65]) {
    if (cache_dir) cli_make_cache_dir(cache_dir);
    lw_file_sha256(path, cache_dir, max_bytes, stopped, NULL, out, NULL);
}

char *cli_demo_file(const char *name, lw_error *err) {
    static const char *const places[] = {"../share/linework/models/demo", /* installed */
                                         "../../models/demo"};            /* build/bin in the source tree */
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n < 0 ? 0 : n] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    for (size_t i = 0; i <= sizeof places / sizeof *places; i++) {
        bool last = i == sizeof places / sizeof *places;
        char *path =
            last ? cli_format("%s/models/demo/%s", LW_SOURCE_DIR, name) : cli_format("%s/%s/%s", exe, places[i], name);
        char *whole = path && access(path, R_OK) == 0 ? realpath(path, NULL) : NULL;
        free(path);
        if (whole) return whole;
    }
    cli_fail(err, LW_EMODEL,
             "demo model: no %s in ../share/linework/models/demo of %s nor in models/demo of the sources", name,
             slash ? exe : "the program");
    return NULL;
}
