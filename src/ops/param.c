/* SPDX-License-Identifier: MIT
 * Parameters: expressions over checkpoint tensors, and their packs. Both tables only grow and never move what they
 * handed out: blocks of entries under a fixed directory, so that a running plan reads them without the lock. */
#include "ops/backend.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef enum node_kind { NODE_TAKE, NODE_CONCAT, NODE_PAD, NODE_SCALE, NODE_FOLD } node_kind;

typedef struct node {
    node_kind kind;
    int32_t n_parts;
    int32_t *parts; /* CONCAT, PAD, SCALE; FOLD: weights, gamma, beta */
    char *key;      /* TAKE: the tensor's name; else the expression in text: "cat(a,b)" */
    int64_t dims[4];
    double factor; /* SCALE */
} node;

typedef struct pack {
    int32_t param;
    lw_form form;
    void *user;
    void *data; /* device memory once filled */
} pack;

enum { BLOCK = 1024, N_BLOCKS = 256 };

struct lw_params {
    pthread_mutex_t lock;
    lw_arena *arena;
    lw_tensor_source source;
    int32_t n_nodes, n_packs, n_filled;
    node *nodes[N_BLOCKS];
    pack *packs[N_BLOCKS];
};

static node *node_at(const lw_params *params, int32_t i) { return &params->nodes[i / BLOCK][i % BLOCK]; }
static pack *pack_at(const lw_params *params, int32_t i) { return &params->packs[i / BLOCK][i % BLOCK]; }
static size_t volume(const int64_t d[4]) { return (size_t)(d[0] * d[1] * d[2] * d[3]); }

lw_status lw_params_new(lw_params **out, const lw_tensor_source *source, lw_error *err) {
    lw_params *params = lw_alloc(1, sizeof *params);
    lw_arena *arena = lw_arena_new();
    if (!params || !arena) {
        lw_free(params);
        lw_arena_free(arena);
        return lw_fail(err, LW_ENOMEM, "parameters: no memory for their table");
    }
    params->arena = arena;
    params->source = *source;
    pthread_mutex_init(&params->lock, NULL);
    *out = params;
    return LW_OK;
}

void lw_params_free(lw_params *params, lw_backend *backend) {
    if (!params) return;
    for (int32_t i = 0; i < params->n_packs; i++)
        if (pack_at(params, i)->data) backend->free(backend, pack_at(params, i)->data);
    pthread_mutex_destroy(&params->lock);
    lw_arena_free(params->arena);
    lw_free(params);
}

/* ---- nodes */

/* Under the lock. The node with this key, or a new one; -1: no memory. */
static int32_t intern(lw_params *params, const node *proto) {
    for (int32_t i = 0; i < params->n_nodes; i++)
        if (!strcmp(node_at(params, i)->key, proto->key)) return i;
    if (params->n_nodes == BLOCK * N_BLOCKS) return -1;
    int32_t b = params->n_nodes / BLOCK;
    if (!params->nodes[b]) params->nodes[b] = lw_arena_alloc(params->arena, BLOCK, sizeof(node));
    char *key = lw_arena_strdup(params->arena, proto->key);
    int32_t *parts = lw_arena_alloc(params->arena, (size_t)proto->n_parts + 1, sizeof *parts);
    if (!params->nodes[b] || !key || !parts) return -1;
    if (proto->n_parts) memcpy(parts, proto->parts, (size_t)proto->n_parts * sizeof *parts);
    node *n = node_at(params, params->n_nodes);
    *n = *proto;
    n->key = key;
    n->parts = parts;
    return params->n_nodes++;
}

static lw_param intern_locked(lw_program *p, const node *proto) {
    pthread_mutex_lock(&p->params->lock);
    int32_t id = intern(p->params, proto);
    pthread_mutex_unlock(&p->params->lock);
    if (id < 0) lw_program_fail(p, LW_ENOMEM, "parameters: no memory for %s", proto->key);
    return (lw_param){id};
}

lw_param lw_rec_take(lw_program *p, const char *name, int64_t o, int64_t i, int64_t kh, int64_t kw) {
    if (p->status != LW_OK) return LW_NO_PARAM;
    union {
        const char *c;
        char *m;
    } key = {name};
    node n = {.kind = NODE_TAKE, .key = key.m};
    lw_error err;
    lw_status status = p->params->source.dims(p->params->source.user, name, n.dims, &err);
    if (status != LW_OK) return lw_program_fail(p, status, "%s", err.message), LW_NO_PARAM;
    const int64_t want[4] = {o, i, kh, kw};
    for (int d = 0; d < 4; d++)
        if (want[d] && n.dims[d] != want[d])
            return lw_program_fail(p, LW_EMODEL,
                                   "tensor %s has shape [%lld,%lld,%lld,%lld], expected [%lld,%lld,%lld,%lld]", name,
                                   (long long)n.dims[0], (long long)n.dims[1], (long long)n.dims[2],
                                   (long long)n.dims[3], (long long)(o ? o : n.dims[0]), (long long)(i ? i : n.dims[1]),
                                   (long long)(kh ? kh : n.dims[2]), (long long)(kw ? kw : n.dims[3])),
                   LW_NO_PARAM;
    return intern_locked(p, &n);
}

lw_param lw_rec_concat(lw_program *p, const lw_param *parts, int32_t n_parts) {
    int32_t ids[8];
    char key[1024] = "cat(";
    size_t used = 4;
    node n = {.kind = NODE_CONCAT, .n_parts = n_parts, .parts = ids, .key = key};
    if (p->status != LW_OK) return LW_NO_PARAM;
    for (int32_t i = 0; i < n_parts; i++) {
        const node *part = node_at(p->params, parts[i].id);
        ids[i] = parts[i].id;
        used += (size_t)snprintf(key + used, sizeof key - used, "%s%s", part->key, i + 1 < n_parts ? "," : ")");
        if (used >= sizeof key)
            return lw_program_fail(p, LW_EINTERNAL, "parameters: name of %s… is too long", key), LW_NO_PARAM;
        if (i && memcmp(part->dims + 1, n.dims + 1, 3 * sizeof n.dims[0]))
            return lw_program_fail(p, LW_EMODEL, "tensors of %s differ in their rows' size", key), LW_NO_PARAM;
        memcpy(n.dims + 1, part->dims + 1, 3 * sizeof n.dims[0]);
        n.dims[0] += part->dims[0];
    }
    return intern_locked(p, &n);
}

lw_param lw_rec_pad(lw_program *p, lw_param w, int64_t o, int64_t i) {
    if (p->status != LW_OK) return LW_NO_PARAM;
    const node *of = node_at(p->params, w.id);
    if (of->dims[0] == o && of->dims[1] == i) return w;
    char key[1024];
    if (snprintf(key, sizeof key, "pad(%s,%lld,%lld)", of->key, (long long)o, (long long)i) >= (int)sizeof key)
        return lw_program_fail(p, LW_EINTERNAL, "parameters: name of %s is too long", of->key), LW_NO_PARAM;
    node n = {.kind = NODE_PAD, .n_parts = 1, .parts = &w.id, .key = key, .dims = {o, i, of->dims[2], of->dims[3]}};
    return intern_locked(p, &n);
}

lw_param lw_rec_scale(lw_program *p, lw_param w, double factor) {
    if (p->status != LW_OK) return LW_NO_PARAM;
    const node *of = node_at(p->params, w.id);
    char key[1024];
    if (snprintf(key, sizeof key, "scale(%s,%.17g)", of->key, factor) >= (int)sizeof key)
        return lw_program_fail(p, LW_EINTERNAL, "parameters: name of %s is too long", of->key), LW_NO_PARAM;
    node n = {.kind = NODE_SCALE, .n_parts = 1, .parts = &w.id, .key = key, .factor = factor};
    memcpy(n.dims, of->dims, sizeof n.dims);
    return intern_locked(p, &n);
}

lw_status lw_param_fold(lw_params *params, lw_param w, lw_param gamma, lw_param beta, lw_param *out, lw_error *err) {
    int32_t ids[3] = {w.id, gamma.id, beta.id};
    const node *of = node_at(params, w.id);
    char key[1024];
    node n = {.kind = NODE_FOLD, .n_parts = 3, .parts = ids, .key = key, .dims = {of->dims[0], of->dims[1] + 1, 1, 1}};
    if (snprintf(key, sizeof key, "fold(%s,%s,%s)", of->key, node_at(params, gamma.id)->key,
                 node_at(params, beta.id)->key) >= (int)sizeof key)
        return lw_fail(err, LW_EINTERNAL, "parameters: name of %s is too long", of->key);
    for (int k = 1; k < 3; k++)
        if (node_at(params, ids[k])->dims[0] != of->dims[1] || of->dims[2] != 1 || of->dims[3] != 1)
            return lw_fail(err, LW_EINTERNAL, "parameters: %s has columns that %s does not fit", of->key,
                           node_at(params, ids[k])->key);
    pthread_mutex_lock(&params->lock);
    out->id = intern(params, &n);
    pthread_mutex_unlock(&params->lock);
    return out->id < 0 ? lw_fail(err, LW_ENOMEM, "parameters: no memory for %s", key) : LW_OK;
}

void lw_param_dims(const lw_params *params, lw_param p, int64_t dims[4]) {
    memcpy(dims, node_at(params, p.id)->dims, 4 * sizeof *dims);
}
bool lw_params_took(lw_params *params, const char *name) {
    bool took = false;
    pthread_mutex_lock(&params->lock);
    for (int32_t i = 0; i < params->n_nodes && !took; i++) took = !strcmp(node_at(params, i)->key, name);
    pthread_mutex_unlock(&params->lock);
    return took;
}

const char *lw_param_key(const lw_params *params, lw_param p) { return node_at(params, p.id)->key; }

static lw_status eval_pad(const lw_params *params, const node *n, float *dst, lw_error *err) {
    const node *of = node_at(params, n->parts[0]);
    float *inner = lw_alloc(volume(of->dims), sizeof *inner);
    if (!inner) return lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", of->key, volume(of->dims));
    lw_status status = lw_param_eval(params, (lw_param){n->parts[0]}, inner, err);
    size_t row = (size_t)(of->dims[1] * of->dims[2] * of->dims[3]),
           padded = (size_t)(n->dims[1] * n->dims[2] * n->dims[3]);
    memset(dst, 0, volume(n->dims) * sizeof *dst);
    for (int64_t o = 0; o < of->dims[0]; o++)
        memcpy(dst + (size_t)o * padded, inner + (size_t)o * row, row * sizeof *dst);
    lw_free(inner);
    return status;
}

static lw_status eval_fold(const lw_params *params, const node *n, float *dst, lw_error *err) {
    const size_t o = (size_t)n->dims[0], i = (size_t)n->dims[1] - 1;
    float *parts = lw_alloc(o * i + 2 * i, sizeof *parts), *gamma = parts + o * i, *beta = gamma + i;
    if (!parts) return lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", n->key, o * i + 2 * i);
    lw_status status = LW_OK;
    LW_GO(lw_param_eval(params, (lw_param){n->parts[0]}, parts, err));
    LW_GO(lw_param_eval(params, (lw_param){n->parts[1]}, gamma, err));
    LW_GO(lw_param_eval(params, (lw_param){n->parts[2]}, beta, err));
    for (size_t r = 0; r < o; r++) {
        double offset = 0;
        for (size_t c = 0; c < i; c++) {
            dst[r * (i + 1) + c] = parts[r * i + c] * gamma[c];
            offset += (double)parts[r * i + c] * beta[c];
        }
        dst[r * (i + 1) + i] = (float)offset;
    }
out:
    lw_free(parts);
    return status;
}

lw_status lw_param_eval(const lw_params *params, lw_param p, float *dst, lw_error *err) {
    const node *n = node_at(params, p.id);
    switch (n->kind) {
    case NODE_TAKE: return params->source.read(params->source.user, n->key, dst, err);
    case NODE_CONCAT:
        for (int32_t i = 0; i < n->n_parts; i++) {
            LW_TRY(lw_param_eval(params, (lw_param){n->parts[i]}, dst, err));
            dst += volume(node_at(params, n->parts[i])->dims);
        }
        return LW_OK;
    case NODE_PAD: return eval_pad(params, n, dst, err);
    case NODE_FOLD: return eval_fold(params, n, dst, err);
    case NODE_SCALE:
        LW_TRY(lw_param_eval(params, (lw_param){n->parts[0]}, dst, err));
        for (size_t i = 0; i < volume(n->dims); i++) dst[i] = (float)((double)dst[i] * n->factor);
        return LW_OK;
    }
    return LW_OK;
}

/* ---- packs */

lw_status lw_pack_request(lw_params *params, lw_param p, const lw_form *form, int32_t *index, lw_error *err) {
    lw_status status = LW_OK;
    pthread_mutex_lock(&params->lock);
    int32_t i = 0;
    while (i < params->n_packs &&
           (pack_at(params, i)->param != p.id || strcmp(pack_at(params, i)->form.key, form->key)))
        i++;
    if (i == params->n_packs) {
        int32_t b = i / BLOCK;
        if (b < N_BLOCKS && !params->packs[b]) params->packs[b] = lw_arena_alloc(params->arena, BLOCK, sizeof(pack));
        void *user = form->user_bytes ? lw_arena_alloc(params->arena, form->user_bytes, 1) : NULL;
        if (b == N_BLOCKS || !params->packs[b] || (form->user_bytes && !user)) {
            status = lw_fail(err, LW_ENOMEM, "parameters: no memory for pack %d", i);
            goto out;
        }
        if (user) memcpy(user, form->user, form->user_bytes);
        *pack_at(params, i) = (pack){.param = p.id, .form = *form, .user = user};
        params->n_packs++;
    }
    *index = i;
out:
    pthread_mutex_unlock(&params->lock);
    return status;
}

static lw_status fill_plain(const void *user, const float *logical, const int64_t dims[4], void *dst, lw_error *err) {
    (void)user, (void)err;
    memcpy(dst, logical, volume(dims) * sizeof(float));
    return LW_OK;
}

lw_status lw_pack_plain(lw_params *params, lw_param p, int32_t *index, lw_error *err) {
    lw_form form = {.key = "plain", .bytes = volume(node_at(params, p.id)->dims) * sizeof(float), .fill = fill_plain};
    return lw_pack_request(params, p, &form, index, err);
}

const void *lw_pack_data(const lw_params *params, int32_t index) {
    return index < 0 ? NULL : pack_at(params, index)->data;
}

static uint64_t sum_bytes(const lw_params *params, bool filled) {
    union {
        const lw_params *c;
        lw_params *m;
    } self = {params};
    uint64_t sum = 0;
    pthread_mutex_lock(&self.m->lock);
    for (int32_t i = 0; i < (filled ? params->n_filled : params->n_packs); i++) sum += pack_at(params, i)->form.bytes;
    pthread_mutex_unlock(&self.m->lock);
    return sum;
}

uint64_t lw_params_bytes(const lw_params *params) { return sum_bytes(params, false); }
uint64_t lw_params_filled_bytes(const lw_params *params) { return sum_bytes(params, true); }

static lw_status fill_one(lw_params *params, lw_backend *backend, pack *k, lw_error *err) {
    const node *n = node_at(params, k->param);
    lw_status status = LW_OK;
    void *device = NULL, *staged = NULL;
    float *logical = lw_alloc(volume(n->dims), sizeof *logical);
    bool host = backend->device == LW_DEVICE_CPU;
    if (!logical) return lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", n->key, volume(n->dims));
    LW_GO(lw_param_eval(params, (lw_param){k->param}, logical, err));
    LW_GO(backend->alloc(backend, k->form.bytes, &device, err));
    if (!host) staged = lw_alloc_aligned(k->form.bytes);
    if (!host && !staged) {
        status = lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu bytes", n->key, k->form.bytes);
        goto out;
    }
    LW_GO(k->form.fill(k->user, logical, n->dims, host ? device : staged, err));
    if (!host) LW_GO(backend->upload(backend, device, staged, k->form.bytes, err));
    k->data = device;
    device = NULL;
out:
    if (device) backend->free(backend, device);
    lw_free(staged);
    lw_free(logical);
    return status;
}

lw_status lw_params_fill(lw_params *params, lw_backend *backend, lw_error *err) {
    lw_status status = LW_OK;
    pthread_mutex_lock(&params->lock);
    for (; params->n_filled < params->n_packs && status == LW_OK;) {
        status = fill_one(params, backend, pack_at(params, params->n_filled), err);
        if (status == LW_OK) params->n_filled++;
    }
    pthread_mutex_unlock(&params->lock);
    return status;
}
