/* SPDX-License-Identifier: MIT
 * data.pkl without the zip around it; every storage has 4 KiB. */
#include "weights/format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STORAGE_BYTES = 4096 };

static lw_status find_storage(void *user, const char *key, uint64_t *offset, uint64_t *bytes, lw_error *err) {
    (void)user;
    if (*key == 0) return lw_fail(err, LW_EMODEL, "fuzz: no storage");
    *offset = 0;
    *bytes = STORAGE_BYTES;
    return LW_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lw_listing listing = {.arena = lw_arena_new()};
    lw_error err;
    if (listing.arena && lw_pickle_list("fuzz", data, size, find_storage, NULL, &listing, &err) == LW_OK) {
        for (size_t i = 0; i < listing.n; i++) {
            const lw_tensor *t = &listing.entries[i].tensor;
            uint64_t last = t->offset / lw_dtype_bytes(t->dtype);
            if (listing.entries[i].type || t->n == 0) continue;
            for (int32_t d = 0; d < t->rank; d++) last += (uint64_t)(t->dims[d] - 1) * (uint64_t)t->strides[d];
            if ((last + 1) * lw_dtype_bytes(t->dtype) > STORAGE_BYTES)
                __builtin_trap(); /* reads would leave the storage */
        }
    }
    lw_free(listing.entries);
    lw_arena_free(listing.arena);
    return 0;
}
