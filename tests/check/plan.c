/* SPDX-License-Identifier: MIT
 * One op as a program of its own: recorded with one extern buffer for each of the case's, planned with the tactic under
 * test first, run between guards. */
#include "check.h"

#include <stdio.h>
#include <string.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, n) ((void)(at), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(at, n) ((void)(at), (void)(n))
#endif

#include "cpu/ref/ref.h"

static const lw_tactic *const references[] = {
#define X(kind, name) &lw_ref_##name,
    LW_OPS(X)
#undef X
};
enum { N_REFERENCES = sizeof references / sizeof *references };

typedef struct taker {
    lw_program *p;
    const ck_case *c;
} taker;

static void take_param(void *user, lw_param *p, char role) {
    const taker *t = user;
    if (!lw_param_is(*p)) return;
    char name[96];
    (void)role;
    ck_param_name(t->c, p->id, name);
    *p = lw_rec_take(t->p, name, 0, 0, 0, 0);
}

static lw_program *record(lw_params *params, const ck_case *c, const lw_args *m, const int64_t *bytes) {
    lw_program *p = lw_program_new("check", params, c->dtype);
    if (!p) return NULL;
    for (int32_t i = 0; i < c->n_buffers; i++) {
        char name[16];
        snprintf(name, sizeof name, "b%d", i);
        lw_rec_extern(p, name, LW_U8, 1, 1, 1, 1, (int32_t)bytes[i]);
    }
    lw_args *op = lw_rec_op(p, c->kind, lw_op_name(c->kind));
    if (!op) return p;
    *op = *m;
    ck_op_params(c->kind, op, take_param, &(taker){p, c});
    return p;
}

/* The tactics this plan may use, in the backend itself: a backend may be part of a larger struct, so it is not copied.
 */
static void restrict_tactics(ck_planned *p, const lw_tactic *first, bool whole) {
    int32_t n = 0;
    if (first) p->list[n++] = first;
    if (whole || p->backend->device != LW_DEVICE_CPU)
        for (int32_t i = 0; i < p->n_tactics && n < 120; i++) p->list[n++] = p->tactics[i];
    else
        for (int32_t i = 0; i < N_REFERENCES; i++) p->list[n++] = references[i];
    p->backend->tactics = p->list;
    p->backend->n_tactics = n;
}

static lw_status allocate(ck_planned *p, lw_error *err) {
    for (int32_t i = 0; i < p->n_buffers; i++) {
        char name[16];
        snprintf(name, sizeof name, "b%d", i);
        LW_TRY(p->backend->alloc(p->backend, (size_t)p->bytes[i] + 2 * CK_GUARD, &p->device[i], err));
        LW_TRY(lw_plan_bind(p->plan, name, (char *)p->device[i] + CK_GUARD, err));
    }
    p->temp_bytes = (int64_t)lw_plan_temp_bytes(p->plan);
    LW_TRY(p->backend->alloc(p->backend, (size_t)p->temp_bytes + 2 * CK_GUARD, &p->temp, err));
    lw_plan_bind_temp(p->plan, (char *)p->temp + CK_GUARD);
    return LW_OK;
}

lw_status ck_plan(ck_planned *p, lw_backend *backend, lw_params *params, const ck_case *c, const lw_args *m,
                  const int64_t *bytes, const lw_tactic *first, bool whole, int32_t threads, lw_error *err) {
    *p = (ck_planned){.backend = backend,
                      .params = params,
                      .n_buffers = c->n_buffers,
                      .tactics = backend->tactics,
                      .n_tactics = backend->n_tactics,
                      .threads = backend->threads};
    memcpy(p->bytes, bytes, (size_t)c->n_buffers * sizeof *bytes);
    restrict_tactics(p, first, whole);
    if (threads) backend->threads = threads;
    p->program = record(params, c, m, bytes);
    if (!p->program) return lw_fail(err, LW_ENOMEM, "no memory to record a case");
    LW_TRY(lw_plan_make(&p->plan, backend, p->program, err));
    LW_TRY(lw_params_fill(params, backend, err));
    return allocate(p, err);
}

bool ck_uses(const ck_planned *p, const lw_tactic *t) {
    for (int32_t i = 0; i < lw_plan_n_ops(p->plan); i++)
        if (lw_plan_op(p->plan, i).tactic == t) return true;
    return false;
}

/* Fills the workspace and its guards with junk; afterwards the guards must hold it still. */
static lw_status fill_temp(ck_planned *p, unsigned char junk, bool check, lw_error *err) {
    size_t all = (size_t)p->temp_bytes + 2 * CK_GUARD;
    char *host = malloc(all);
    if (!host) return lw_fail(err, LW_ENOMEM, "no memory for %zu bytes", all);
    lw_status status = LW_OK;
    if (!check) {
        memset(host, junk, all);
        status = p->backend->upload(p->backend, p->temp, host, all, err);
    } else {
        status = p->backend->download(p->backend, host, p->temp, all, err);
        for (size_t i = 0; i < CK_GUARD && status == LW_OK; i++)
            if ((unsigned char)host[i] != junk || (unsigned char)host[all - 1 - i] != junk)
                status = lw_fail(err, LW_EINTERNAL, "writes outside its workspace");
    }
    free(host);
    return status;
}

/* Under AddressSanitizer our own code may not even read the guards. */
static void poison(const ck_planned *p, bool on) {
    if (p->backend->device != LW_DEVICE_CPU) return;
    for (int32_t i = 0; i <= p->n_buffers; i++) {
        char *at = i < p->n_buffers ? p->device[i] : p->temp;
        size_t bytes = (size_t)(i < p->n_buffers ? p->bytes[i] : p->temp_bytes);
        if (on) {
            ASAN_POISON_MEMORY_REGION(at, CK_GUARD);
            ASAN_POISON_MEMORY_REGION(at + CK_GUARD + bytes, CK_GUARD);
        } else {
            ASAN_UNPOISON_MEMORY_REGION(at, CK_GUARD);
            ASAN_UNPOISON_MEMORY_REGION(at + CK_GUARD + bytes, CK_GUARD);
        }
    }
}

lw_status ck_run(ck_planned *p, ck_image *image, unsigned char junk, lw_error *err) {
    lw_backend *b = p->backend;
    for (int32_t i = 0; i < p->n_buffers; i++)
        LW_TRY(b->upload(b, p->device[i], image->buffer[i], (size_t)p->bytes[i] + 2 * CK_GUARD, err));
    LW_TRY(fill_temp(p, junk, false, err));
    poison(p, true);
    lw_fault_arm(INT32_MAX, false); /* counts; nothing fails */
    lw_status status = lw_plan_run(p->plan, err);
    long calls = lw_fault_count();
    lw_fault_arm(0, false);
    poison(p, false);
    if (status != LW_OK) return status;
    if (calls && b->device == LW_DEVICE_CPU)
        return lw_fail(err, LW_EINTERNAL, "makes %ld allocations while it runs", calls);
    for (int32_t i = 0; i < p->n_buffers; i++)
        LW_TRY(b->download(b, image->buffer[i], p->device[i], (size_t)p->bytes[i] + 2 * CK_GUARD, err));
    return fill_temp(p, junk, true, err);
}

void ck_unplan(ck_planned *p) {
    for (int32_t i = 0; i < p->n_buffers; i++)
        if (p->device[i]) p->backend->free(p->backend, p->device[i]);
    if (p->temp) p->backend->free(p->backend, p->temp);
    lw_plan_free(p->plan);
    lw_program_free(p->program);
    if (p->backend) {
        p->backend->tactics = p->tactics;
        p->backend->n_tactics = p->n_tactics;
        p->backend->threads = p->threads;
    }
    *p = (ck_planned){0};
}
