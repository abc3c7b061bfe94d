/* SPDX-License-Identifier: MIT
 * Any model as one safetensors file in the LDM naming, a tensor at a time, and ControlNet's transfer of a ControlNet to
 * another UNet (tool_transfer_control.py). */
#include "weights/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { INPUT, BASE, COMMUNITY, N_STORES };

void lw_convert_params_init(lw_convert_params *params) { *params = (lw_convert_params){.size = sizeof *params}; }

typedef struct converter {
    const lw_convert_params *params;
    const char *out;
    lw_weights *stores[N_STORES];
    lw_save_tensor *tensors;
    uint64_t done, total;
} converter;

static bool is_real(lw_dtype dtype) {
    return dtype == LW_F32 || dtype == LW_F16 || dtype == LW_BF16 || dtype == LW_F64;
}

static lw_dtype dtype_of(const converter *c, const lw_tensor *t) {
    if (!is_real(t->dtype)) return LW_I64; /* CLIP's position_ids are the only ones */
    if (c->params->dtype == LW_PRECISION_FP16) return LW_F16;
    if (c->params->dtype == LW_PRECISION_BF16) return LW_BF16;
    return c->params->dtype == LW_PRECISION_FP32 || t->dtype == LW_F64 ? LW_F32 : t->dtype;
}

/* Adds factor times the tensor of that name, or does nothing if the store has none. */
static lw_status add(const lw_weights *store, const char *name, const lw_tensor *like, float factor, float *values,
                     lw_error *err) {
    const lw_tensor *t = lw_weights_find(store, name);
    if (!t) return LW_OK;
    if (t->rank != like->rank || memcmp(t->dims, like->dims, sizeof t->dims[0] * (size_t)t->rank) != 0)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s has another shape than %s in the model to convert",
                       lw_weights_path(store), t->key, like->key);
    float *other = lw_alloc_aligned(t->n * sizeof *other);
    if (!other) return lw_fail(err, LW_ENOMEM, "%s: no memory to read %s", lw_weights_path(store), t->key);
    lw_status status = lw_tensor_read(store, t, other, err);
    for (size_t i = 0; status == LW_OK && i < t->n; i++) values[i] += factor * other[i];
    lw_free(other);
    return status;
}

/* The reference's order: the tensor, plus community's, minus the base's. VAE and CLIP are community's own. */
static lw_status transfer(const converter *c, const lw_tensor *t, float *values, lw_error *err) {
    const char *rest;
    char twin[300];
    lw_network network = lw_canonical_network(t->name, &rest);
    if (network == LW_NET_VAE || network == LW_NET_CLIP) {
        if (!lw_weights_find(c->stores[COMMUNITY], t->name)) return LW_OK;
        memset(values, 0, t->n * sizeof *values);
        return add(c->stores[COMMUNITY], t->name, t, 1, values, err);
    }
    snprintf(twin, sizeof twin, "unet.%s", rest);
    if (!lw_weights_find(c->stores[BASE], twin) || !lw_weights_find(c->stores[COMMUNITY], twin)) return LW_OK;
    LW_TRY(add(c->stores[COMMUNITY], twin, t, 1, values, err));
    return add(c->stores[BASE], twin, t, -1, values, err);
}

/* A number that its new type can't hold must not become infinity unseen. */
static lw_status check_range(const converter *c, const lw_tensor *t, lw_dtype dtype, const float *values,
                             lw_error *err) {
    float limit = dtype == LW_F16 ? 65519.99609375f : dtype == LW_BF16 ? 3.3961775e38f : INFINITY;
    for (size_t i = 0; i < t->n; i++)
        if (!(fabsf(values[i]) <= limit) || isinf(values[i]))
            return lw_fail(err, LW_EMODEL, "%s: tensor %s: value %zu of %zu is %g, which %s can't hold",
                           lw_weights_path(c->stores[INPUT]), t->key, i, t->n, (double)values[i], lw_dtype_name(dtype));
    return LW_OK;
}

static lw_status load(void *user, size_t i, void *dst, lw_error *err) {
    converter *c = user;
    const lw_tensor *t = lw_weights_at(c->stores[INPUT], i);
    lw_dtype dtype = c->tensors[i].dtype;
    float *values = lw_alloc_aligned(t->n * sizeof *values);
    if (!values) return lw_fail(err, LW_ENOMEM, "%s: no memory to convert %s", c->out, t->key);
    lw_status status = lw_tensor_read(c->stores[INPUT], t, values, err);
    if (status == LW_OK && c->params->base && is_real(t->dtype)) status = transfer(c, t, values, err);
    if (status == LW_OK) status = check_range(c, t, dtype, values, err);
    if (status == LW_OK) lw_from_f32(dtype, values, dst, t->n);
    lw_free(values);
    c->done += t->n * lw_dtype_bytes(dtype);
    if (status == LW_OK && c->params->progress && c->params->progress(c->params->user, c->done, c->total))
        return lw_fail(err, LW_ECANCEL, "cancelled while converting a model");
    return status;
}

static lw_status open_stores(converter *c, const char *path, lw_error *err) {
    const char *paths[N_STORES] = {path, c->params->base, c->params->community};
    for (int i = 0; i < N_STORES; i++) {
        if (!paths[i]) continue;
        LW_TRY(lw_weights_open(&c->stores[i], paths[i], err));
        if (lw_weights_reads(c->stores[i], c->out))
            return lw_fail(err, LW_EINVAL, "%s: is a file of %s, which is read: name another output", c->out, paths[i]);
        if (i > INPUT && !lw_weights_find(c->stores[i], "unet.out.2.weight"))
            return lw_fail(err, LW_EMODEL, "%s: has no UNet to transfer %s", paths[i], i == BASE ? "from" : "to");
    }
    if (c->stores[BASE] && !lw_weights_find(c->stores[INPUT], "control.input_hint_block.0.weight"))
        return lw_fail(err, LW_EMODEL, "%s: has no ControlNet to transfer", path);
    return LW_OK;
}

/* A folder's files may each say the same ("format"): the first counts, as it does when the model is used. */
static lw_status keep_metadata(const lw_weights *in, lw_arena *arena, lw_save *save, lw_error *err) {
    size_t n, kept = 0;
    const lw_field *fields = lw_weights_fields(in, &n);
    lw_field *own = lw_arena_alloc(arena, n, sizeof *own);
    if (!own) return lw_fail(err, LW_ENOMEM, "%s: no memory for its metadata", lw_weights_path(in));
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < kept && strcmp(own[k].key, fields[i].key) != 0) k++;
        if (k == kept) own[kept++] = fields[i];
    }
    save->metadata = own;
    save->n_metadata = kept;
    return LW_OK;
}

static lw_status convert(converter *c, lw_arena *arena, lw_error *err) {
    const lw_weights *in = c->stores[INPUT];
    lw_save save = {.n = lw_weights_count(in), .load = load, .user = c};
    LW_TRY(keep_metadata(in, arena, &save, err));
    save.tensors = c->tensors = lw_arena_alloc(arena, save.n, sizeof *c->tensors);
    if (!c->tensors) return lw_fail(err, LW_ENOMEM, "%s: no memory to write it", c->out);
    for (size_t i = 0; i < save.n; i++) {
        const lw_tensor *t = lw_weights_at(in, i);
        const char *rest;
        lw_network network = lw_canonical_network(t->name, &rest);
        size_t room = strlen(lw_network_prefix(network)) + strlen(rest) + 1;
        char *key = lw_arena_alloc(arena, room, 1);
        if (!key) return lw_fail(err, LW_ENOMEM, "%s: no memory to write it", c->out);
        snprintf(key, room, "%s%s", lw_network_prefix(network), rest);
        lw_save_tensor *s = &c->tensors[i];
        *s = (lw_save_tensor){.name = key, .dtype = dtype_of(c, t), .rank = t->rank};
        memcpy(s->dims, t->dims, sizeof s->dims);
        c->total += t->n * lw_dtype_bytes(s->dtype);
    }
    return lw_safetensors_write(c->out, &save, err);
}

lw_status lw_model_convert(const char *path, const char *out, const lw_convert_params *params, lw_error *err) {
    if (params->size < sizeof *params)
        return lw_fail(err, LW_EINVAL, "convert parameters have size %u, at least %zu is needed", params->size,
                       sizeof *params);
    if ((unsigned)params->dtype > LW_PRECISION_BF16)
        return lw_fail(err, LW_EINVAL, "dtype %d is none of fp32, fp16, bf16", (int)params->dtype);
    if (!params->base != !params->community)
        return lw_fail(err, LW_EINVAL, "a transfer needs both models: the %s is missing",
                       params->base ? "community's" : "base");
    converter c = {.params = params, .out = out};
    lw_arena *arena = lw_arena_new();
    lw_status status =
        arena ? open_stores(&c, path, err) : lw_fail(err, LW_ENOMEM, "%s: no memory to convert it", path);
    if (status == LW_OK) status = convert(&c, arena, err);
    for (int i = 0; i < N_STORES; i++) lw_weights_close(&c.stores[i]);
    lw_arena_free(arena);
    return status;
}
