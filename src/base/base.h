/* SPDX-License-Identifier: MIT
 * base: what every folder may use: failing with a sentence, checked arithmetic, memory with a fault counter, an arena,
 * parallel_for, half floats. Must not know any other folder of ours. */
#ifndef LW_BASE_H
#define LW_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "linework.h"

/* ---- errors */

/* Sets *err (if not NULL) and returns code, so that `return lw_fail(err, LW_EMODEL, "weight %s: dim %d is %d, want %d",
 * …)` is one line. */
lw_status lw_fail(lw_error *err, lw_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#ifdef LW_ANALYZE /* tools/analyze: what sees one file at a time can't know that the code comes back */
#define lw_fail(err, code, ...) ((void)lw_fail(err, code, __VA_ARGS__), (code))
#endif

#define LW_TRY(call)                                                                                                   \
    do {                                                                                                               \
        lw_status lw_try_status = (call);                                                                              \
        if (lw_try_status != LW_OK) return lw_try_status;                                                              \
    } while (0)

/* The same inside a function that has one cleanup label `out` and a variable `status`. */
#define LW_GO(call)                                                                                                    \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != LW_OK) goto out;                                                                                 \
    } while (0)

/* The closest of n names by edit distance, or NULL when none is near. For "did you mean". */
const char *lw_nearest(const char *word, const char *const *names, size_t n);

/* ---- checked arithmetic: false on overflow, *out is then unspecified */
static inline bool lw_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool lw_add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline size_t lw_round_up(size_t v, size_t to) { return (v + to - 1) / to * to; } /* v + to must not overflow */

/* ---- memory
 * All of the library's allocations go through these, so that tests can count them and make the n-th fail. Sizes are
 * checked products. */
void *lw_alloc(size_t n, size_t each);            /* zeroed; NULL on overflow or want of memory */
void *lw_realloc(void *p, size_t n, size_t each); /* contents kept, growth not zeroed */
void *lw_alloc_aligned(size_t bytes);             /* 64-byte aligned, not zeroed; freed with lw_free */
char *lw_strdup(const char *text);
char *lw_strndup(const char *text, size_t n);
char *lw_format(const char *format, ...)
    __attribute__((format(printf, 1, 2))); /* NULL: no memory; freed with lw_free */

/* Test hook: the n-th fallible call from now on fails (1 = the next), 0 = none; again = every later one fails too.
 * Counts calls as well. */
void lw_fault_arm(long nth, bool again);
long lw_fault_count(void);
bool lw_fault_hit(void); /* for other fallible calls (reads, device calls): true when this one is to fail */

/* ---- arena: many small things with one owner and one end */
typedef struct lw_arena lw_arena;
lw_arena *lw_arena_new(void);                                 /* NULL: no memory */
void *lw_arena_alloc(lw_arena *arena, size_t n, size_t each); /* zeroed, 16-byte aligned; NULL: no memory */
char *lw_arena_strdup(lw_arena *arena, const char *text);
void lw_arena_free(lw_arena *arena);

/* ---- threads
 * A pool of workers that take chunks of a loop from the thread that runs it. Workers are started when first needed. A
 * worker that is not there in time (the machine is busy) is not waited for; one that holds a chunk is. A pool that is
 * busy with another thread's loop, or with the loop that this call is nested in, leaves this one to its caller alone:
 * so any number of sessions may share a pool. */
typedef struct lw_pool lw_pool;
lw_pool *lw_pool_new(void);       /* NULL: no memory */
void lw_pool_free(lw_pool *pool); /* no loop may be running; NULL is fine */

/* Runs fn over [0, n) in ranges [begin, end) of at most chunk, on up to `threads` threads, this one among them; a NULL
 * pool: on this one. Which thread runs which range is not fixed, so fn must give the same bits whoever runs it. */
typedef void (*lw_range_fn)(void *user, int64_t begin, int64_t end);
void lw_parallel_for(lw_pool *pool, int threads, int64_t n, int64_t chunk, lw_range_fn fn, void *user);
int lw_cpu_count(void); /* processors this process may run on */

double lw_now_ms(void); /* monotonic */

/* ---- half floats: IEEE binary16 and bfloat16, round to nearest even */
float lw_f16_to_f32(uint16_t h);
uint16_t lw_f32_to_f16(float f);
static inline float lw_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t lw_f32_to_bf16(float f);

/* ---- element types of weights and views */
typedef enum lw_dtype {
    LW_F32 = 0,
    LW_F16,
    LW_BF16,
    LW_F64,
    LW_U8,
    LW_I8,
    LW_I16,
    LW_I32,
    LW_I64,
    LW_BOOL,
    LW_N_DTYPES
} lw_dtype;
size_t lw_dtype_bytes(lw_dtype dtype);
const char *lw_dtype_name(lw_dtype dtype); /* "F32", as safetensors spells it */
/* n values of dtype at src (any alignment) to floats. Integers are converted by value. */
void lw_to_f32(lw_dtype dtype, const void *src, float *dst, size_t n);
void lw_to_f16(const float *src, uint16_t *dst, size_t n);

#endif
