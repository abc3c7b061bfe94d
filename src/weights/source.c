/* SPDX-License-Identifier: MIT
 * Reading at offsets. pread instead of a mapping: a file cut under us is a short read, not a signal. */
#include "weights/format.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

lw_status lw_source_open(lw_source *source, const char *path, lw_error *err) {
    struct stat st;
    *source = (lw_source){.name = path, .fd = -1};
    /* O_NONBLOCK: opening a FIFO by mistake must not wait for its writer; regular files do not care. */
    int fd = lw_fault_hit() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return lw_fail(err, LW_EMODEL, "%s: can't be opened: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return lw_fail(err, LW_EMODEL, "%s: is not a regular file", path);
    }
    source->fd = fd;
    source->size = (uint64_t)st.st_size;
    return LW_OK;
}

void lw_source_close(lw_source *source) {
    if (source->fd >= 0) close(source->fd);
    *source = (lw_source){.fd = -1};
}

lw_status lw_source_read(const lw_source *source, uint64_t offset, void *dst, size_t n, lw_error *err) {
    if (offset > source->size || n > source->size - offset)
        return lw_fail(err, LW_EMODEL, "%s: %zu bytes are wanted at %llu of a file of %llu", source->name, n,
                       (unsigned long long)offset, (unsigned long long)source->size);
    if (source->fd < 0) {
        if (lw_fault_hit()) return lw_fail(err, LW_EMODEL, "%s: can't be read", source->name);
        memcpy(dst, source->bytes + offset, n);
        return LW_OK;
    }
    for (size_t done = 0; done < n;) {
        size_t want = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30; /* the kernel moves at most 2 GiB */
        ssize_t got =
            lw_fault_hit() ? (errno = EIO, -1) : pread(source->fd, (char *)dst + done, want, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return lw_fail(err, LW_EMODEL, "%s: can't be read: %s", source->name, strerror(errno));
        if (got == 0)
            return lw_fail(err, LW_EMODEL, "%s: was %llu bytes when opened and now ends at %llu", source->name,
                           (unsigned long long)source->size, (unsigned long long)(offset + done));
        done += (size_t)got;
    }
    return LW_OK;
}

lw_entry *lw_listing_add(lw_listing *listing) {
    if (listing->n == listing->room) {
        size_t room = listing->room ? listing->room * 2 : 256;
        lw_entry *grown = lw_realloc(listing->entries, room, sizeof *grown);
        if (!grown) return NULL;
        listing->entries = grown;
        listing->room = room;
    }
    lw_entry *e = &listing->entries[listing->n++];
    *e = (lw_entry){.tensor.source = listing->source};
    return e;
}

bool lw_shape_count(const int64_t *dims, int32_t rank, int64_t *strides, size_t *n) {
    /* A zero dimension makes the count 0, but the others must not overflow the strides either. */
    int64_t stride = 1;
    bool empty = false;
    for (int32_t i = rank; i-- > 0;) {
        strides[i] = stride;
        if (dims[i] < 0) return false;
        if (dims[i] == 0) empty = true;
        else if (__builtin_mul_overflow(stride, dims[i], &stride)) return false;
    }
    *n = empty ? 0 : (size_t)stride;
    return true;
}
