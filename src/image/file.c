/* SPDX-License-Identifier: MIT
 * Pictures on disk. What is read is read to its end before it is looked at, with a bound; what is written appears under
 * its name only when it is whole. */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_PIECE = 1 << 16 };
#define MAX_FILE ((size_t)512 << 20) /* the largest picture that is allowed, as a 16-bit PPM, has 384 MiB */

/* ---- reading */

static lw_status read_error(const char *path, int error, lw_error *err) {
    return lw_fail(err, LW_EINPUT, "%s: can't be read: %s", path, strerror(error));
}

/* Could these first bytes begin a picture? Keeps an endless device from being read to the bound. */
static bool maybe_picture(const lw_buffer *b) {
    if (b->n < 2) return true;
    return b->bytes[0] == 0x89 || b->bytes[0] == 0xff || b->bytes[0] == 'R' || b->bytes[0] == 'P';
}

static lw_status read_all(int fd, const char *path, lw_buffer *out, lw_error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return read_error(path, errno, err);
    if (S_ISDIR(st.st_mode)) return lw_fail(err, LW_EINPUT, "%s: is a folder, want a picture", path);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > MAX_FILE)
        return lw_fail(err, LW_EINPUT, "%s: has %lld bytes, the limit of a picture's file is %zu", path,
                       (long long)st.st_size, MAX_FILE);
    size_t piece = S_ISREG(st.st_mode) && st.st_size > READ_PIECE ? (size_t)st.st_size + 1 : READ_PIECE;
    for (;;) {
        if (out->room - out->n < READ_PIECE) { /* for a file of known size: once */
            size_t room = out->room + (out->room > piece ? out->room : piece);
            uint8_t *grown = lw_realloc(out->bytes, room, 1);
            if (!grown) return lw_fail(err, LW_ENOMEM, "%s: no memory for %zu bytes of file", path, room);
            out->bytes = grown;
            out->room = room;
        }
        ssize_t got = lw_fault_hit() ? (errno = EIO, -1) : read(fd, out->bytes + out->n, out->room - out->n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return read_error(path, errno, err);
        if (got == 0) break;
        out->n += (size_t)got;
        if (!maybe_picture(out)) break; /* lw_image_decode says what it is */
        if (out->n > MAX_FILE)
            return lw_fail(err, LW_EINPUT, "%s: has over %zu bytes, the limit of a picture's file", path, MAX_FILE);
    }
    if (out->n == 0)
        return lw_fail(err, LW_EINPUT, "%s: is empty (0 bytes)%s", path,
                       S_ISFIFO(st.st_mode) ? ": it is a pipe that nothing writes to" : "");
    return LW_OK;
}

lw_status lw_image_read(const char *path, lw_image *out, lw_fields *fields, lw_error *err) {
    if (!path || !out) return lw_fail(err, LW_EINVAL, "lw_image_read: an argument is NULL");
    memset(out, 0, sizeof *out);
    if (fields) *fields = (lw_fields){.size = sizeof *fields};
    /* Not blocking in open(), so that a FIFO without a writer is an error and not a wait for ever. */
    int fd = lw_fault_hit() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return read_error(path, errno, err);
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0) (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK); /* reading waits for a writer that is there */
    lw_buffer file = {0};
    lw_status status = read_all(fd, path, &file, err);
    close(fd);
    if (status == LW_OK) status = lw_image_decode(file.bytes, file.n, path, out, fields, err);
    lw_free(file.bytes);
    return status;
}

/* ---- writing */

static lw_status write_error(const char *path, int error, lw_error *err) {
    return lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(error));
}

/* 0 or errno. */
static int write_all(int fd, const uint8_t *bytes, size_t n) {
    while (n > 0) {
        ssize_t done = lw_fault_hit() ? (errno = EIO, -1) : write(fd, bytes, n < (1u << 30) ? n : (1u << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return errno;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* A device or a FIFO: in place. A reader that goes away must not end our process with SIGPIPE, nor may a handler of the
 * program see one that we caused: it is blocked in this thread and taken from the queue. */
static int write_through(const char *path, const uint8_t *bytes, size_t n) {
    sigset_t pipe_set, before, waiting;
    int fd = lw_fault_hit() ? (errno = EIO, -1) : open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return errno;
    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    sigpending(&waiting);
    bool blocked = pthread_sigmask(SIG_BLOCK, &pipe_set, &before) == 0;
    int error = write_all(fd, bytes, n);
    if (blocked) {
        const struct timespec now = {0, 0};
        if (error == EPIPE && !sigismember(&waiting, SIGPIPE)) (void)sigtimedwait(&pipe_set, NULL, &now);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (close(fd) != 0 && !error) error = errno;
    return error;
}

/* Creates a file of a name of its own in path's folder. -1 and errno where it can't. */
static int create_beside(const char *path, char *temporary, size_t room) {
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    for (unsigned i = 0; i < 1000; i++) {
        /* The address differs between threads, the id between processes: the first try nearly always fits. */
        int n = snprintf(temporary, room, "%.*s.linework-%ld-%lx-%u.tmp", folder, path, (long)getpid(),
                         (unsigned long)(uintptr_t)temporary & 0xffffffffffUL, i);
        if (n < 0 || (size_t)n >= room) return errno = ENAMETOOLONG, -1;
        int fd = lw_fault_hit() ? (errno = EIO, -1) : open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

/* A file: written beside its name, then renamed. `old` is what has the name now, or NULL. */
static int write_beside(const char *path, const struct stat *old, const uint8_t *bytes, size_t n) {
    char temporary[PATH_MAX];
    if (old && access(path, W_OK) != 0) return errno; /* a rename would go round its write protection */
    int fd = create_beside(path, temporary, sizeof temporary);
    if (fd < 0) return errno;
    if (old) (void)fchmod(fd, old->st_mode & 0777); /* what is replaced keeps its rights, where we may give them */
    int error = write_all(fd, bytes, n);
    if (close(fd) != 0 && !error) error = errno; /* quotas and network disks may tell only now */
    if (!error && (lw_fault_hit() ? (errno = EIO, -1) : rename(temporary, path)) != 0) error = errno;
    if (error) (void)unlink(temporary);
    return error;
}

lw_status lw_file_write(const char *path, const void *bytes, size_t n_bytes, lw_error *err) {
    struct stat st, link;
    char target[PATH_MAX];
    if (!path || (!bytes && n_bytes)) return lw_fail(err, LW_EINVAL, "lw_file_write: an argument is NULL");
    if (!*path) return lw_fail(err, LW_EOUTPUT, "the output's name is empty");
    bool exists = stat(path, &st) == 0;
    if (!exists && errno != ENOENT) return write_error(path, errno, err);
    if (exists && S_ISDIR(st.st_mode)) return lw_fail(err, LW_EOUTPUT, "%s: can't be written: it is a folder", path);
    int error;
    if (exists && !S_ISREG(st.st_mode)) {
        error = write_through(path, bytes, n_bytes);
    } else {
        const char *final = path;
        if (lstat(path, &link) == 0 && S_ISLNK(link.st_mode)) { /* a link stays a link: its target is replaced */
            final = realpath(path, target);
            if (!final) return write_error(path, errno, err);
        }
        error = write_beside(final, exists ? &st : NULL, bytes, n_bytes);
    }
    return error ? write_error(path, error, err) : LW_OK;
}

lw_status lw_image_write(const lw_image *image, const char *path, const lw_fields *fields, lw_error *err) {
    static const struct {
        const char *extension, *format;
    } known[] = {{"png", "png"}, {"jpg", "jpeg"}, {"jpeg", "jpeg"}, {"webp", "webp"}, {"ppm", "ppm"}, {"pgm", "ppm"}};
    if (!path) return lw_fail(err, LW_EINVAL, "lw_image_write: the path is NULL");
    LW_TRY(lw_image_check(image, "lw_image_write", err));
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.'), *format = NULL;
    for (size_t i = 0; dot && i < sizeof known / sizeof *known; i++)
        if (strcasecmp(dot + 1, known[i].extension) == 0) format = known[i].format;
    if (!format)
        return lw_fail(err, LW_EINVAL, "%s: the extension is '%s', want png, jpg, jpeg, webp, ppm or pgm", path,
                       dot ? dot + 1 : "");
    if (strcasecmp(dot + 1, "pgm") == 0 && image->channels != 1)
        return lw_fail(err, LW_EINVAL, "%s: a PGM holds 1 channel, the picture has %d", path, image->channels);
    void *bytes;
    size_t n_bytes;
    LW_TRY(lw_image_encode(image, format, fields, &bytes, &n_bytes, err));
    lw_status status = lw_file_write(path, bytes, n_bytes, err);
    lw_free(bytes);
    return status;
}
