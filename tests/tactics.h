/* SPDX-License-Identifier: MIT
 * A tactic of the test's own before those of a backend. */
#ifndef LW_TEST_TACTICS_H
#define LW_TEST_TACTICS_H

#include <string.h>

#include "ops/backend.h"

typedef struct tactic_list {
    const lw_tactic *all[64], *const *had; /* what the backend had is put back */
    int32_t n_had;
} tactic_list;

/* first may be NULL: the list stays as it is. */
static inline void put_first(tactic_list *list, lw_backend *b, const lw_tactic *first) {
    *list = (tactic_list){.all = {first}, .had = b->tactics, .n_had = b->n_tactics};
    if (!first) return;
    memcpy(list->all + 1, b->tactics, (size_t)b->n_tactics * sizeof *list->all);
    b->tactics = list->all;
    b->n_tactics++;
}

static inline void put_back(const tactic_list *list, lw_backend *b) {
    b->tactics = list->had;
    b->n_tactics = list->n_had;
}

#endif
