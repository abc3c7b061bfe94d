/* SPDX-License-Identifier: MIT */
#include "cpu/cpu.h"

#include <stdio.h>
#include <string.h>

#include "cpu/kernels.h"
#include "cpu/ref/ref.h"

static lw_status cpu_alloc(lw_backend *backend, size_t bytes, void **out, lw_error *err) {
    (void)backend;
    *out = lw_alloc_aligned(bytes);
    if (!*out) return lw_fail(err, LW_ENOMEM, "no memory for %zu bytes", bytes);
    memset(*out, 0, lw_round_up(bytes, 64));
    return LW_OK;
}

static void cpu_free(lw_backend *backend, void *p) {
    (void)backend;
    lw_free(p);
}

static lw_status cpu_copy(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err) {
    (void)backend, (void)err;
    memcpy(dst, src, bytes);
    return LW_OK;
}

typedef struct cpu_backend {
    lw_backend base;
    const lw_tactic *tactics[64];
} cpu_backend;

static void cpu_close(lw_backend *backend) {
    lw_pool_free(backend->pool);
    lw_free(backend);
}

static void add_tactics(cpu_backend *b, const lw_tactic *const *list) {
    for (; *list; list++) b->tactics[b->base.n_tactics++] = *list;
}

static void describe(lw_backend *b, bool references_only) {
    char features[80];
    lw_cpu_features(features, sizeof features);
#ifdef LW_HAVE_ONEDNN
    const char *library = references_only ? "references" : lw_cpu_onednn_version();
#else
    const char *library = "references";
    (void)references_only;
#endif
    snprintf(b->description, sizeof b->description, "CPU (%s, %s)%s, %d thread%s", library, features,
             b->precision == LW_PRECISION_BF16 ? ", bf16" : "", b->threads, b->threads == 1 ? "" : "s");
}

lw_status lw_cpu_open(lw_backend **out, const lw_cpu_params *params, lw_error *err) {
    static const lw_tactic *const references[] = {
#define X(kind, name) &lw_ref_##name,
        LW_OPS(X)
#undef X
            NULL};
    lw_precision precision = params->precision == LW_PRECISION_AUTO ? LW_PRECISION_FP32 : params->precision;
    if (precision != LW_PRECISION_FP32 && precision != LW_PRECISION_BF16)
        return lw_fail(err, LW_EINVAL, "precision %s: a CPU runs fp32, or bf16 where it has avx512_bf16",
                       lw_precision_name(precision));
    if (precision == LW_PRECISION_BF16 && !lw_cpu_kernels_bf16())
        return lw_fail(err, LW_EINVAL, "precision bf16: this CPU has no avx512_bf16; fp32 is what it runs");
    cpu_backend *b = lw_alloc(1, sizeof *b);
    if (!b) return lw_fail(err, LW_ENOMEM, "no memory for the CPU backend");
    b->base = (lw_backend){.name = "cpu",
                           .device = LW_DEVICE_CPU,
                           .precision = precision,
                           .act = LW_F32,
                           .threads = params->threads > 0 ? params->threads : lw_cpu_count(),
                           .tactics = b->tactics,
                           .alloc = cpu_alloc,
                           .free = cpu_free,
                           .upload = cpu_copy,
                           .download = cpu_copy,
                           .close = cpu_close};
    b->base.pool = lw_pool_new();
    if (!b->base.pool) {
        cpu_close(&b->base);
        return lw_fail(err, LW_ENOMEM, "no memory for the CPU backend's threads");
    }
    if (!params->references_only) {
        if (precision == LW_PRECISION_BF16) add_tactics(b, lw_cpu_bf16_tactics);
        add_tactics(b, lw_cpu_product_tactics);
#ifdef LW_HAVE_ONEDNN
        add_tactics(b, lw_cpu_onednn_tactics);
#endif
        add_tactics(b, lw_cpu_last_tactics);
        add_tactics(b, lw_cpu_small_tactics);
    }
    add_tactics(b, references);
    describe(&b->base, params->references_only);
    *out = &b->base;
    return LW_OK;
}
