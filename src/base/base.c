/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* ---- errors */

lw_status(lw_fail)(lw_error *err, lw_status code, const char *format, ...) {
    if (!err) return code;
    va_list args;
    va_start(args, format);
    err->code = code;
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    for (char *p = err->message; *p; p++)
        if ((unsigned char)*p < 0x20) *p = ' '; /* names come from files: keep the message one line */
    return code;
}

static size_t edit_distance(const char *a, const char *b) {
    size_t n = strlen(b), row[64];
    if (n >= 64 || strlen(a) >= 64) return 64;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[n];
}

const char *lw_nearest(const char *word, const char *const *names, size_t n) {
    const char *best = NULL;
    size_t best_distance = strlen(word) / 2 + 1;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(word, names[i]);
        if (d < best_distance) best_distance = d, best = names[i];
    }
    return best;
}

const char *lw_status_name(lw_status status) {
    switch (status) {
    case LW_OK: return "LW_OK";
    case LW_EINVAL: return "LW_EINVAL";
    case LW_EMODEL: return "LW_EMODEL";
    case LW_EINPUT: return "LW_EINPUT";
    case LW_ENOMEM: return "LW_ENOMEM";
    case LW_EDEVICE: return "LW_EDEVICE";
    case LW_EOUTPUT: return "LW_EOUTPUT";
    case LW_ECANCEL: return "LW_ECANCEL";
    case LW_EINTERNAL: return "LW_EINTERNAL";
    }
    return "LW_?";
}

/* ---- memory */

/* The only mutable statics of the library: a test's counter of fallible calls. Off (0) it costs one relaxed load. */
static atomic_long fault_at, fault_calls;
static atomic_bool fault_again;

void lw_fault_arm(long nth, bool again) {
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_again, again);
    atomic_store(&fault_at, nth);
}

long lw_fault_count(void) { return atomic_load(&fault_calls); }

bool lw_fault_hit(void) {
    long at = atomic_load_explicit(&fault_at, memory_order_relaxed);
    if (at == 0) return false;
    long call = atomic_fetch_add(&fault_calls, 1) + 1;
    return call == at || (call > at && atomic_load(&fault_again));
}

void *lw_alloc(size_t n, size_t each) {
    size_t bytes;
    if (lw_fault_hit() || !lw_mul_size(n, each, &bytes)) return NULL;
    return calloc(n ? n : 1, each ? each : 1);
}

void *lw_realloc(void *p, size_t n, size_t each) {
    size_t bytes;
    if (lw_fault_hit() || !lw_mul_size(n, each, &bytes)) return NULL;
    return realloc(p, bytes ? bytes : 1);
}

/* Large blocks hold weights and pictures, which are read end to end: on pages of 2 MiB, where the system has them, so
 * that the fetching ahead of the processor, which stops at the end of a page, seldom does. Whole pages only: no more
 * memory is touched than was asked for. */
void *lw_alloc_aligned(size_t bytes) {
    enum { HUGE_PAGE = 2 << 20 };
    void *p = NULL;
    if (lw_fault_hit() || bytes > SIZE_MAX / 2) return NULL;
    bool large = bytes >= HUGE_PAGE;
    if (posix_memalign(&p, large ? HUGE_PAGE : 64, lw_round_up(bytes ? bytes : 1, 64)) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (large) madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* only advice: it may fail */
#endif
    return p;
}

void lw_free(void *p) { free(p); }

char *lw_strndup(const char *text, size_t n) {
    char *copy = lw_alloc(n + 1, 1);
    if (copy) memcpy(copy, text, n);
    return copy;
}

char *lw_strdup(const char *text) { return lw_strndup(text, strlen(text)); }

char *lw_format(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *text = n < 0 ? NULL : lw_alloc((size_t)n + 1, 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}

/* ---- arena: a list of blocks, the newest first; a request larger than a block gets a block of its own */

typedef struct arena_block {
    struct arena_block *next;
    size_t used, bytes;
} arena_block; /* data follows, 16-byte aligned */

struct lw_arena {
    arena_block *blocks;
};

enum { ARENA_BLOCK = 32 * 1024, ARENA_HEADER = 32 };

lw_arena *lw_arena_new(void) { return lw_alloc(1, sizeof(lw_arena)); }

void *lw_arena_alloc(lw_arena *arena, size_t n, size_t each) {
    size_t bytes;
    if (!lw_mul_size(n, each, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = lw_round_up(bytes ? bytes : 1, 16);
    arena_block *b = arena->blocks;
    if (!b || b->bytes - b->used < bytes) {
        size_t want = bytes > ARENA_BLOCK ? bytes : ARENA_BLOCK;
        b = lw_alloc(1, ARENA_HEADER + want);
        if (!b) return NULL;
        b->bytes = want;
        b->next = arena->blocks;
        arena->blocks = b;
    }
    void *p = (char *)b + ARENA_HEADER + b->used;
    b->used += bytes;
    return p;
}

char *lw_arena_strdup(lw_arena *arena, const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = lw_arena_alloc(arena, n, 1);
    return copy ? memcpy(copy, text, n) : NULL;
}

void lw_arena_free(lw_arena *arena) {
    if (!arena) return;
    for (arena_block *b = arena->blocks, *next; b; b = next) {
        next = b->next;
        lw_free(b);
    }
    lw_free(arena);
}

int lw_cpu_count(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

double lw_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- half floats */

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Masks instead of branches here and below, so that the loops of lw_to_f32 and lw_to_f16 are vectorised. */
float lw_f16_to_f32(uint16_t h) {
    uint32_t magnitude = h & 0x7fff, normal = (magnitude << 13) + 0x38000000;
    uint32_t subnormal = bits_of((float)(int32_t)magnitude * 0x1p-24f); /* exact: they are multiples of 2^-24 */
    uint32_t is_subnormal = 0u - (uint32_t)(magnitude < 0x0400), is_special = 0u - (uint32_t)(magnitude >= 0x7c00);
    uint32_t u = (subnormal & is_subnormal) | (normal & ~is_subnormal);
    u += is_special & 0x38000000; /* infinity and NaN: the largest exponent stays that */
    return float_of((uint32_t)(h & 0x8000) << 16 | u);
}

uint16_t lw_f32_to_f16(float f) {
    uint32_t u = bits_of(f);
    int32_t magnitude = (int32_t)(u & 0x7fffffff), odd = magnitude >> 13 & 1;
    int32_t normal = (magnitude - 0x38000000 + 0xfff + odd) >> 13;
    float rounded = float_of((uint32_t)magnitude) + 0.5f; /* the FPU rounds to a multiple of 2^-24: ulp of 0.5 */
    int32_t subnormal = (int32_t)(bits_of(rounded) - bits_of(0.5f));
    int32_t is_subnormal = -(int32_t)(magnitude < 0x38800000), is_large = -(int32_t)(magnitude >= 0x477ff000),
            is_nan = -(int32_t)(magnitude > 0x7f800000);
    int32_t h = (subnormal & is_subnormal) | (normal & ~is_subnormal);
    h = (0x7c00 & is_large) | (h & ~is_large); /* rounds to 65536 or more: infinity */
    h |= 0x7e00 & is_nan;                      /* NaN stays NaN */
    return (uint16_t)(u >> 16 & 0x8000) | (uint16_t)h;
}

uint16_t lw_f32_to_bf16(float f) {
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* ---- element types */

static const struct {
    const char *name;
    size_t bytes;
} dtypes[LW_N_DTYPES] = {
    [LW_F32] = {"F32", 4}, [LW_F16] = {"F16", 2},   [LW_BF16] = {"BF16", 2}, [LW_F64] = {"F64", 8},
    [LW_U8] = {"U8", 1},   [LW_I8] = {"I8", 1},     [LW_I16] = {"I16", 2},   [LW_I32] = {"I32", 4},
    [LW_I64] = {"I64", 8}, [LW_BOOL] = {"BOOL", 1},
};

size_t lw_dtype_bytes(lw_dtype dtype) { return dtypes[dtype].bytes; }
const char *lw_dtype_name(lw_dtype dtype) { return dtypes[dtype].name; }

#define CONVERT(type, expression)                                                                                      \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        type v;                                                                                                        \
        memcpy(&v, (const char *)src + i * sizeof v, sizeof v);                                                        \
        dst[i] = (expression);                                                                                         \
    }                                                                                                                  \
    break

void lw_to_f32(lw_dtype dtype, const void *src, float *dst, size_t n) {
    switch (dtype) {
    case LW_F32: memcpy(dst, src, n * 4); break;
    case LW_F16: CONVERT(uint16_t, lw_f16_to_f32(v));
    case LW_BF16: CONVERT(uint16_t, lw_bf16_to_f32(v));
    case LW_F64: CONVERT(double, (float)v);
    case LW_U8:
    case LW_BOOL: CONVERT(uint8_t, (float)v);
    case LW_I8: CONVERT(int8_t, (float)v);
    case LW_I16: CONVERT(int16_t, (float)v);
    case LW_I32: CONVERT(int32_t, (float)v);
    case LW_I64: CONVERT(int64_t, (float)v);
    case LW_N_DTYPES: break;
    }
}

void lw_to_f16(const float *src, uint16_t *dst, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = lw_f32_to_f16(src[i]);
}
