/* SPDX-License-Identifier: MIT
 * torch.save's zip: entries are stored as they are, so a tensor is a range of the file. Only the central directory is
 * believed, and each entry that is used is held against its local header. ZIP64 is the rule: torch writes it always. */
#include "weights/format.h"

#include <string.h>

enum {
    DIRECTORY_CAP = 16 << 20, /* bytes: 150,000 entries; an SD checkpoint has 1,500 to 5,000 */
    PICKLE_CAP = 16 << 20,    /* bytes of data.pkl; an SD checkpoint's is 0.2 MB */
    END_BYTES = 22,           /* of the end record, without its comment */
    TAIL_BYTES = END_BYTES + 65535,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30
};

typedef struct entry {
    const char *name; /* in the directory, not terminated */
    size_t n_name;
    uint64_t local, bytes; /* where its local header is; how long its data is */
    uint64_t limit;        /* its data ends before this: the next entry, or the directory */
    bool stored;           /* neither compressed nor encrypted */
} entry;

typedef struct archive {
    const lw_source *source;
    uint8_t *directory;
    uint64_t directory_at;
    size_t n_directory;
    entry *entries; /* by name */
    size_t n;
    const char *root; /* "archive/" */
    size_t n_root;
} archive;

static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t get32(const uint8_t *p) { return get16(p) | get16(p + 2) << 16; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

static lw_status damaged(const archive *a, const char *what, lw_error *err) {
    return lw_fail(err, LW_EMODEL, "%s: damaged zip: %s", a->source->name, what);
}

/* ---- the directory */

typedef struct directory_place {
    uint64_t at, bytes, entries;
} directory_place;

/* ZIP64's end record, by the locator that stands before the plain one. */
static lw_status read_end64(archive *a, uint64_t end_at, const uint8_t *locator, directory_place *d, lw_error *err) {
    uint8_t b[END64_BYTES];
    uint64_t at = get64(locator + 8);
    if (get32(locator + 4) != 0 || get32(locator + 16) > 1) return damaged(a, "it is one of several disks", err);
    if (at > end_at || end_at - at < END64_BYTES + LOCATOR_BYTES)
        return damaged(a, "ZIP64 record out of the file", err);
    LW_TRY(lw_source_read(a->source, at, b, sizeof b, err));
    if (get32(b) != 0x06064b50) return damaged(a, "no ZIP64 record where it should be", err);
    if (get32(b + 16) != 0 || get32(b + 20) != 0 || get64(b + 24) != get64(b + 32))
        return damaged(a, "it is one of several disks", err);
    *d = (directory_place){get64(b + 48), get64(b + 40), get64(b + 32)};
    return LW_OK;
}

static lw_status find_directory(archive *a, directory_place *d, lw_error *err) {
    uint64_t size = a->source->size;
    size_t n = size < TAIL_BYTES + LOCATOR_BYTES ? (size_t)size : TAIL_BYTES + LOCATOR_BYTES, i;
    if (n < END_BYTES) return damaged(a, "it is too short", err);
    uint8_t *tail = lw_alloc(n, 1);
    if (!tail) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", a->source->name);
    lw_status status = lw_source_read(a->source, size - n, tail, n, err);
    if (status != LW_OK) goto out;
    for (i = n - END_BYTES + 1; i-- > 0;)
        if (get32(tail + i) == 0x06054b50 && get16(tail + i + 20) == n - i - END_BYTES) break; /* its comment fits */
    if (i == SIZE_MAX) {
        status = damaged(a, "no directory at its end (is the file cut off?)", err);
        goto out;
    }
    const uint8_t *end = tail + i;
    if (i >= LOCATOR_BYTES && get32(end - LOCATOR_BYTES) == 0x07064b50) {
        status = read_end64(a, size - n + i, end - LOCATOR_BYTES, d, err);
        if (status != LW_OK) goto out;
    } else {
        if (get16(end + 4) != 0 || get16(end + 6) != 0 || get16(end + 8) != get16(end + 10)) {
            status = damaged(a, "it is one of several disks", err);
            goto out;
        }
        *d = (directory_place){get32(end + 16), get32(end + 12), get16(end + 10)};
    }
    if (d->at > size - END_BYTES || d->bytes > size - END_BYTES - d->at)
        status = damaged(a, "its directory is out of the file", err);
    else if (d->bytes > DIRECTORY_CAP)
        status = lw_fail(err, LW_EMODEL, "%s: a directory of %llu bytes, at most %d are read", a->source->name,
                         (unsigned long long)d->bytes, DIRECTORY_CAP);
    else if (d->entries > d->bytes / CENTRAL_BYTES)
        status = damaged(a, "more entries than its directory can hold", err);
out:
    lw_free(tail);
    return status;
}

/* ZIP64's extra field: the values that did not fit in the record, in this order. */
static bool read_extra(const uint8_t *extra, size_t n, uint64_t *raw, uint64_t *packed, uint64_t *local) {
    while (n >= 4) {
        size_t bytes = get16(extra + 2);
        if (bytes > n - 4) return false;
        if (get16(extra) == 1) {
            uint64_t *const values[] = {raw, packed, local};
            size_t at = 0;
            for (int i = 0; i < 3; i++) {
                if (*values[i] != UINT32_MAX) continue;
                if (at + 8 > bytes) return false;
                *values[i] = get64(extra + 4 + at);
                at += 8;
            }
            return true;
        }
        extra += 4 + bytes;
        n -= 4 + bytes;
    }
    return true;
}

static int by_place(const void *x, const void *y) {
    const entry *a = x, *b = y;
    return a->local < b->local ? -1 : a->local > b->local;
}

static int compare_names(const char *a, size_t n_a, const char *b, size_t n_b) {
    int c = memcmp(a, b, n_a < n_b ? n_a : n_b);
    return c ? c : n_a < n_b ? -1 : n_a > n_b;
}

static int by_entry_name(const void *x, const void *y) {
    const entry *a = x, *b = y;
    return compare_names(a->name, a->n_name, b->name, b->n_name);
}

static lw_status read_entries(archive *a, uint64_t n_entries, lw_error *err) {
    const uint8_t *p = a->directory;
    size_t left = a->n_directory;
    for (uint64_t i = 0; i < n_entries; i++) {
        if (left < CENTRAL_BYTES || get32(p) != 0x02014b50) return damaged(a, "its directory is cut", err);
        size_t n_name = get16(p + 28), n_extra = get16(p + 30), n = CENTRAL_BYTES + n_name + n_extra + get16(p + 32);
        if (n > left) return damaged(a, "its directory is cut", err);
        entry *e = &a->entries[a->n];
        uint64_t packed = get32(p + 20);
        *e = (entry){
            .name = (const char *)p + CENTRAL_BYTES, .n_name = n_name, .bytes = get32(p + 24), .local = get32(p + 42)};
        if (!read_extra(p + CENTRAL_BYTES + n_name, n_extra, &e->bytes, &packed, &e->local))
            return damaged(a, "an entry's ZIP64 field is cut", err);
        e->stored = get16(p + 10) == 0 && (get16(p + 8) & 1) == 0 && packed == e->bytes;
        if (n_name == 0 || memchr(e->name, 0, n_name)) return damaged(a, "an entry without a proper name", err);
        if (e->local > a->directory_at) return damaged(a, "an entry begins after the directory", err);
        a->n++;
        p += n;
        left -= n;
    }
    if (left != 0) return damaged(a, "its directory has more in it than entries", err);
    qsort(a->entries, a->n, sizeof *a->entries, by_place);
    for (size_t i = 0; i < a->n; i++) a->entries[i].limit = i + 1 < a->n ? a->entries[i + 1].local : a->directory_at;
    qsort(a->entries, a->n, sizeof *a->entries, by_entry_name);
    for (size_t i = 1; i < a->n; i++)
        if (by_entry_name(&a->entries[i - 1], &a->entries[i]) == 0)
            return lw_fail(err, LW_EMODEL, "%s: damaged zip: two entries are called %.*s", a->source->name,
                           (int)a->entries[i].n_name, a->entries[i].name);
    return LW_OK;
}

/* Where an entry's data is, by its local header. */
static lw_status locate(const archive *a, const entry *e, uint64_t *at, lw_error *err) {
    uint8_t b[LOCAL_BYTES];
    char name[512];
    int n = (int)(e->n_name < 200 ? e->n_name : 200);
    if (!e->stored)
        return lw_fail(err, LW_EMODEL, "%s: entry %.*s is compressed or encrypted: save the model with torch.save",
                       a->source->name, n, e->name);
    LW_TRY(lw_source_read(a->source, e->local, b, sizeof b, err));
    uint64_t begin = e->local + LOCAL_BYTES + get16(b + 26) + get16(b + 28);
    if (get32(b) != 0x04034b50 || get16(b + 26) != e->n_name || e->n_name > sizeof name || get16(b + 8) != 0)
        return lw_fail(err, LW_EMODEL, "%s: damaged zip: entry %.*s has no local header of its own", a->source->name, n,
                       e->name);
    LW_TRY(lw_source_read(a->source, e->local + LOCAL_BYTES, name, e->n_name, err));
    if (memcmp(name, e->name, e->n_name) != 0)
        return lw_fail(err, LW_EMODEL, "%s: damaged zip: entry %.*s is called %.*s in its local header",
                       a->source->name, n, e->name, n, name);
    if (begin > e->limit || e->bytes > e->limit - begin)
        return lw_fail(err, LW_EMODEL, "%s: damaged zip: %llu bytes of entry %.*s do not fit before the next one",
                       a->source->name, (unsigned long long)e->bytes, n, e->name);
    *at = begin;
    return LW_OK;
}

static const entry *find_entry(const archive *a, const char *inner) {
    char name[512];
    size_t n = strlen(inner);
    if (a->n_root + n > sizeof name) return NULL;
    memcpy(name, a->root, a->n_root);
    memcpy(name + a->n_root, inner, n);
    entry key = {.name = name, .n_name = a->n_root + n};
    return bsearch(&key, a->entries, a->n, sizeof key, by_entry_name);
}

/* ---- torch's part */

static lw_status find_root(archive *a, lw_error *err) {
    const char *tail = "/data.pkl";
    size_t n = strlen(tail);
    for (size_t i = 0; i < a->n; i++) {
        const entry *e = &a->entries[i];
        if (e->n_name <= n || memcmp(e->name + e->n_name - n, tail, n) != 0) continue;
        if (memchr(e->name, '/', e->n_name - n)) continue; /* only in a folder of the first level */
        if (a->root) return damaged(a, "it has two data.pkl", err);
        a->root = e->name;
        a->n_root = e->n_name - n + 1;
    }
    if (!a->root)
        return lw_fail(err, LW_EMODEL, "%s: is a zip without data.pkl: no file of torch.save", a->source->name);
    return LW_OK;
}

static lw_status check_byte_order(archive *a, lw_error *err) {
    const entry *e = find_entry(a, "byteorder");
    char order[6] = "";
    uint64_t at;
    if (!e) return LW_OK; /* older than torch 2.1: little */
    LW_TRY(locate(a, e, &at, err));
    if (e->bytes == 6) LW_TRY(lw_source_read(a->source, at, order, 6, err));
    if (e->bytes != 6 || memcmp(order, "little", 6) != 0)
        return lw_fail(err, LW_EMODEL, "%s: was saved in another byte order than little", a->source->name);
    return LW_OK;
}

static lw_status find_storage(void *user, const char *key, uint64_t *offset, uint64_t *bytes, lw_error *err) {
    const archive *a = user;
    char inner[300];
    size_t n = strlen(key);
    if (n > sizeof inner - 8) return damaged(a, "a storage with an endless key", err);
    memcpy(inner, "data/", 5);
    memcpy(inner + 5, key, n + 1);
    const entry *e = find_entry(a, inner);
    if (!e)
        return lw_fail(err, LW_EMODEL, "%s: its pickle wants the storage %s, which is not there", a->source->name, key);
    LW_TRY(locate(a, e, offset, err));
    *bytes = e->bytes;
    return LW_OK;
}

lw_status lw_torch_list(const lw_source *source, lw_listing *listing, lw_error *err) {
    lw_status status = LW_OK;
    archive a = {.source = source};
    directory_place d = {0};
    uint8_t *pickle = NULL;
    uint64_t at;
    LW_GO(find_directory(&a, &d, err));
    a.directory_at = d.at;
    a.n_directory = (size_t)d.bytes;
    a.directory = lw_alloc(a.n_directory, 1);
    a.entries = lw_alloc((size_t)d.entries, sizeof *a.entries);
    if (!a.directory || !a.entries) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for its directory", source->name);
        goto out;
    }
    LW_GO(lw_source_read(source, d.at, a.directory, a.n_directory, err));
    LW_GO(read_entries(&a, d.entries, err));
    LW_GO(find_root(&a, err));
    LW_GO(check_byte_order(&a, err));
    const entry *e = find_entry(&a, "data.pkl");
    if (!e) {
        status = damaged(&a, "the name of its folder is too long", err);
        goto out;
    }
    LW_GO(locate(&a, e, &at, err));
    if (e->bytes > PICKLE_CAP) {
        status = lw_fail(err, LW_EMODEL, "%s: data.pkl has %llu bytes, at most %d are read", source->name,
                         (unsigned long long)e->bytes, PICKLE_CAP);
        goto out;
    }
    pickle = lw_alloc((size_t)e->bytes, 1);
    if (!pickle) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for its pickle", source->name);
        goto out;
    }
    LW_GO(lw_source_read(source, at, pickle, (size_t)e->bytes, err));
    status = lw_pickle_list(source->name, pickle, (size_t)e->bytes, find_storage, &a, listing, err);
out:
    lw_free(pickle);
    lw_free(a.entries);
    lw_free(a.directory);
    return status;
}

/* ---- which format */

lw_status lw_container_of(const lw_source *source, lw_container *container, lw_error *err) {
    static const uint8_t legacy[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9};
    uint8_t b[9] = {0};
    LW_TRY(lw_source_read(source, 0, b, source->size < sizeof b ? (size_t)source->size : sizeof b, err));
    *container = LW_CONTAINER_SAFETENSORS;
    if (b[8] == '{') return LW_OK;
    if (memcmp(b, legacy, sizeof legacy) == 0 || (b[0] == 0x80 && b[1] >= 2 && b[1] <= 5))
        return lw_fail(err, LW_EMODEL,
                       "%s: is a pickle in the form of torch before 1.6, which is not read: convert it with python3 -c "
                       "\"import torch; torch.save(torch.load('OLD', map_location='cpu'), 'NEW')\", if you trust it",
                       source->name);
    if (memcmp(b, "GGUF", 4) == 0)
        return lw_fail(err, LW_EMODEL, "%s: is a GGUF file, which is not read", source->name);
    if (b[0] == 'P' && b[1] == 'K') *container = LW_CONTAINER_ZIP;
    return LW_OK;
}
