/* SPDX-License-Identifier: MIT
 * A zip of torch.save: whatever opens has to be readable or refused. */
#include "weights/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lw_weights *w;
    lw_error err;
    if (lw_weights_open_memory(&w, data, size, "fuzz", &err) != LW_OK) return 0;
    for (size_t i = 0; i < lw_weights_count(w) && i < 8; i++) {
        const lw_tensor *t = lw_weights_at(w, i);
        if (lw_weights_find(w, t->name) != t || t->n > size) __builtin_trap();
        float *values = lw_alloc(t->n, sizeof *values);
        if (values) (void)lw_tensor_read(w, t, values, &err);
        lw_free(values);
    }
    (void)lw_weights_metadata(w, "linework");
    lw_weights_close(&w);
    return 0;
}
