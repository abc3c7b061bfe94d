/* SPDX-License-Identifier: MIT
 * The pool of parallel_for. Not OpenMP's: its threads spin on each other's barriers, which on a busy machine multiplied
 * a job's time by ten, and they wait for all of a team where ours go on without the ones that are late. */
#include "base/base.h"

#include <pthread.h>
#include <stdatomic.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    MAX_WORKERS = 1023,
    SPINS = 4000 /* some 50 us: the next op of a plan comes sooner than that */
};

struct lw_pool {
    pthread_mutex_t busy; /* held by the thread whose loop runs */
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t wake, done;
    atomic_uint loops; /* counts loops: a worker waits for it to change */
    atomic_int joined; /* workers inside the loop */
    bool open, stop;   /* open: workers may still join */
    int room;          /* workers that the loop takes */
    int n_workers, asleep;
    pthread_t workers[MAX_WORKERS];
    lw_range_fn fn;
    void *user;
    int64_t n, chunk;
    _Atomic int64_t next;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_chunks(lw_pool *p) {
    for (;;) {
        int64_t begin = atomic_fetch_add(&p->next, p->chunk);
        if (begin >= p->n) return;
        p->fn(p->user, begin, begin + p->chunk < p->n ? begin + p->chunk : p->n);
    }
}

/* Waits for a loop after the one numbered seen; false: the pool ends. Afterwards the lock is held. */
static bool await_loop(lw_pool *p, unsigned *seen) {
    for (int i = 0; i < SPINS && atomic_load(&p->loops) == *seen; i++) pause_cpu();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->loops) == *seen && !p->stop) {
        p->asleep++;
        pthread_cond_wait(&p->wake, &p->lock);
        p->asleep--;
    }
    *seen = atomic_load(&p->loops);
    return !p->stop;
}

static void *work(void *user) {
    lw_pool *p = user;
    unsigned seen = 0;
#ifdef _OPENMP
    omp_set_num_threads(1); /* what a chunk calls must not start a team of its own */
#endif
    while (await_loop(p, &seen)) {
        bool join = p->open && p->room > 0;
        if (join) p->room--, atomic_fetch_add(&p->joined, 1);
        pthread_mutex_unlock(&p->lock);
        if (!join) continue;
        take_chunks(p);
        pthread_mutex_lock(&p->lock);
        if (atomic_fetch_sub(&p->joined, 1) == 1) pthread_cond_signal(&p->done);
        pthread_mutex_unlock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

lw_pool *lw_pool_new(void) {
    lw_pool *p = lw_alloc(1, sizeof *p);
    if (!p) return NULL;
    pthread_mutex_init(&p->busy, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    return p;
}

void lw_pool_free(lw_pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    atomic_fetch_add(&p->loops, 1); /* ends the spin of those awake */
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_workers; i++) pthread_join(p->workers[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->busy);
    lw_free(p);
}

/* A worker that can't be started is done without. */
static void start_workers(lw_pool *p, int n) {
    while (p->n_workers < n && p->n_workers < MAX_WORKERS &&
           pthread_create(&p->workers[p->n_workers], NULL, work, p) == 0)
        p->n_workers++;
}

static void run_loop(lw_pool *p, int helpers) {
    pthread_mutex_lock(&p->lock);
    p->open = true;
    p->room = helpers;
    atomic_fetch_add(&p->loops, 1);
    if (p->asleep > 0) pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    take_chunks(p);
    pthread_mutex_lock(&p->lock);
    p->open = false; /* who has not come by now is late */
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < SPINS && atomic_load(&p->joined) > 0; i++) pause_cpu();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->joined) > 0) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void lw_parallel_for(lw_pool *p, int threads, int64_t n, int64_t chunk, lw_range_fn fn, void *user) {
    if (n <= 0) return;
    if (chunk < 1) chunk = 1;
    int64_t n_chunks = (n - 1) / chunk + 1;
    int helpers = (int)(threads < n_chunks ? threads : n_chunks) - 1;
    if (!p || helpers < 1 || pthread_mutex_trylock(&p->busy) != 0) {
        for (int64_t begin = 0; begin < n; begin += chunk) fn(user, begin, begin + chunk < n ? begin + chunk : n);
        return;
    }
    p->fn = fn;
    p->user = user;
    p->n = n;
    p->chunk = chunk;
    atomic_store(&p->next, 0);
    start_workers(p, helpers);
    run_loop(p, helpers);
    pthread_mutex_unlock(&p->busy);
}
