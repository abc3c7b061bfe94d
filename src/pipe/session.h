/* SPDX-License-Identifier: MIT
 * pipe: one job from request to pictures: engine, session, schedules. Knows nets, image, text, base; must not name a
 * backend (src/api.c opens one and hands it in). */
#ifndef LW_SESSION_H
#define LW_SESSION_H

#include <pthread.h>
#include <stdatomic.h>

#include "nets/model.h"
#include "ops/tune.h"

struct lw_engine {
    atomic_int refs;     /* the caller's and one for each session */
    lw_backend *backend; /* owned */
    lw_model model;
    lw_params *params;
    lw_choices *choices; /* of tactics, by tuning */
    char *cache_dir;     /* NULL: none */
    lw_tokenizer *tokenizer;
    uint64_t max_memory;
    double load_ms;
    lw_log_fn log;
    void *user;
    char tactics_hash[20]; /* of the last plan made */
    pthread_mutex_t lock;  /* of tactics_hash */
};

typedef struct lw_recipe lw_recipe; /* recipe.h */

/* Takes over backend, also on failure. */
lw_status lw_engine_make(lw_engine **out, lw_backend *backend, const lw_engine_params *params, lw_error *err);
/* The same without a vocabulary, which is enough for estimates; and finding it: LW_EMODEL says where it was sought. */
lw_status lw_engine_make_textless(lw_engine **out, lw_backend *backend, const lw_engine_params *params, lw_error *err);
lw_status lw_engine_add_vocab(lw_engine *engine, const lw_engine_params *params, lw_error *err);
void lw_engine_unref(lw_engine *engine);

#endif
