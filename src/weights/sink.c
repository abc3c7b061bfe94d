/* SPDX-License-Identifier: MIT
 * A file that is written whole or not at all, in pieces: made beside its name and renamed. */
#include "weights/format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

lw_status lw_sink_open(lw_sink *sink, const char *path, lw_error *err) {
    struct stat st;
    bool direct = stat(path, &st) == 0 && !S_ISREG(st.st_mode); /* a device or FIFO is not replaced */
    *sink = (lw_sink){.path = path};
    sink->fd = direct ? open(path, O_WRONLY | O_CLOEXEC) : open_beside(path, &sink->beside);
    return sink->fd >= 0 ? LW_OK : lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", path, strerror(errno));
}

lw_status lw_sink_put(lw_sink *sink, const void *bytes, size_t n, lw_error *err) {
    for (size_t done = 0; done < n;) {
        size_t want = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30;
        ssize_t r = lw_fault_hit() ? (errno = EIO, -1) : write(sink->fd, (const char *)bytes + done, want);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0)
            return lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", sink->path, strerror(r ? errno : ENOSPC));
        done += (size_t)r;
        sink->at += (size_t)r;
    }
    return LW_OK;
}

lw_status lw_sink_close(lw_sink *sink, lw_status status, lw_error *err) {
    if (close(sink->fd) != 0 && status == LW_OK)
        status = lw_fail(err, LW_EOUTPUT, "%s: can't be written: %s", sink->path, strerror(errno));
    if (sink->beside && status == LW_OK && rename(sink->beside, sink->path) != 0)
        status = lw_fail(err, LW_EOUTPUT, "%s: can't be put in place: %s", sink->path, strerror(errno));
    if (sink->beside && status != LW_OK) unlink(sink->beside);
    lw_free(sink->beside);
    *sink = (lw_sink){.fd = -1};
    return status;
}

void lw_text_add(lw_text *t, const void *bytes, size_t n) {
    if (!t->failed && t->n + n > t->room) {
        size_t room = (t->n + n) * 2 + 4096;
        char *grown = lw_realloc(t->data, room, 1);
        if (grown) t->data = grown, t->room = room;
        else t->failed = true;
    }
    if (t->failed) return;
    memcpy(t->data + t->n, bytes, n);
    t->n += n;
}
