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
    void *data; /* in one of the params' memories, once it is filled */
} pack;

typedef struct memory { /* of the device, for packs that were filled together */
    struct memory *next;
    void *at;
} memory;

enum {
    BLOCK = 1024,
    N_BLOCKS = 256,
    PACK_ALIGN = 256,
    MEMORY_BYTES = 128 << 20, /* or as much as is left: allocations cost a device more than filling them does */
    SLICE = 512 << 10         /* values that a thread takes at a time: they stay in its L2 */
};

struct lw_params {
    pthread_mutex_t lock;
    lw_arena *arena;
    lw_tensor_source source;
    int32_t n_nodes, n_packs, n_filled;
    node *nodes[N_BLOCKS];
    pack *packs[N_BLOCKS];
    memory *memories;
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
    for (memory *m = params->memories; m; m = m->next) backend->free(backend, m->at);
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

lw_status lw_param_fold(lw_params *params, lw_param w, lw_param bias, lw_param gamma, lw_param beta, lw_param *out,
                        lw_error *err) {
    int32_t ids[4] = {w.id, gamma.id, beta.id, bias.id};
    const node *of = node_at(params, w.id);
    const bool has_bias = lw_param_is(bias);
    char key[1024];
    node n = {.kind = NODE_FOLD,
              .n_parts = 3 + has_bias,
              .parts = ids,
              .key = key,
              .dims = {of->dims[0], of->dims[1] + 1, 1, 1}};
    if (snprintf(key, sizeof key, "fold(%s,%s,%s%s%s)", of->key, node_at(params, gamma.id)->key,
                 node_at(params, beta.id)->key, has_bias ? "," : "",
                 has_bias ? node_at(params, bias.id)->key : "") >= (int)sizeof key)
        return lw_fail(err, LW_EINTERNAL, "parameters: name of %s is too long", of->key);
    for (int k = 1; k < n.n_parts; k++)
        if (node_at(params, ids[k])->dims[0] != of->dims[k < 3] || of->dims[2] != 1 || of->dims[3] != 1)
            return lw_fail(err, LW_EINTERNAL, "parameters: %s has %s that %s does not fit", of->key,
                           k < 3 ? "columns" : "rows", node_at(params, ids[k])->key);
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

/* ---- values: rows [row, row + n) of an expression, so that no more than those need memory */

static lw_status eval_rows(const lw_params *params, int32_t id, int64_t row, int64_t n, float *dst, lw_error *err);

static size_t row_values(const node *n) { return (size_t)(n->dims[1] * n->dims[2] * n->dims[3]); }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static lw_status eval_concat(const lw_params *params, const node *n, int64_t row, int64_t rows, float *dst,
                             lw_error *err) {
    for (int32_t i = 0; i < n->n_parts && rows > 0; i++) {
        int64_t there = node_at(params, n->parts[i])->dims[0], take = smaller(rows, there - row);
        if (take > 0) {
            LW_TRY(eval_rows(params, n->parts[i], row, take, dst, err));
            dst += (size_t)take * row_values(n);
            rows -= take;
            row += take;
        }
        row -= there;
    }
    return LW_OK;
}

/* The narrower rows come into the end of dst and move forward, each to its place, where none that is still to move
 * lies. */
static lw_status eval_pad(const lw_params *params, const node *n, int64_t row, int64_t rows, float *dst,
                          lw_error *err) {
    const node *of = node_at(params, n->parts[0]);
    size_t wide = row_values(n), narrow = row_values(of);
    int64_t real = smaller(rows, of->dims[0] - row);
    if (real < 0) real = 0;
    float *inner = dst + (size_t)real * (wide - narrow);
    if (real > 0) LW_TRY(eval_rows(params, n->parts[0], row, real, inner, err));
    for (size_t o = 0; o < (size_t)real; o++) {
        memmove(dst + o * wide, inner + o * narrow, narrow * sizeof *dst);
        memset(dst + o * wide + narrow, 0, (wide - narrow) * sizeof *dst);
    }
    memset(dst + (size_t)real * wide, 0, (size_t)(rows - real) * wide * sizeof *dst);
    return LW_OK;
}

/* The columns of w times gamma, less their mean, and w . beta + bias behind them. */
static lw_status eval_fold(const lw_params *params, const node *n, int64_t row, int64_t rows, float *dst,
                           lw_error *err) {
    const size_t wide = (size_t)n->dims[1], narrow = wide - 1;
    float *gamma = lw_alloc(2 * narrow + (size_t)rows, sizeof *gamma), *inner = dst + rows;
    if (!gamma) return lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", n->key, wide + narrow);
    float *beta = gamma + narrow, *bias = beta + narrow;
    lw_status status = LW_OK;
    LW_GO(eval_rows(params, n->parts[1], 0, (int64_t)narrow, gamma, err));
    LW_GO(eval_rows(params, n->parts[2], 0, (int64_t)narrow, beta, err));
    memset(bias, 0, (size_t)rows * sizeof *bias);
    if (n->n_parts > 3) LW_GO(eval_rows(params, n->parts[3], row, rows, bias, err));
    LW_GO(eval_rows(params, n->parts[0], row, rows, inner, err));
    for (size_t o = 0; o < (size_t)rows; o++) { /* forward, as in eval_pad */
        double offset = (double)bias[o], mean = 0;
        for (size_t i = 0; i < narrow; i++) {
            const float w = inner[o * narrow + i];
            offset += (double)w * beta[i];
            dst[o * wide + i] = w * gamma[i];
            mean += (double)dst[o * wide + i];
        }
        mean /= (double)narrow;
        for (size_t i = 0; i < narrow; i++) dst[o * wide + i] = (float)((double)dst[o * wide + i] - mean);
        dst[o * wide + narrow] = (float)offset;
    }
out:
    lw_free(gamma);
    return status;
}

static lw_status eval_rows(const lw_params *params, int32_t id, int64_t row, int64_t n, float *dst, lw_error *err) {
    const node *of = node_at(params, id);
    switch (of->kind) {
    case NODE_TAKE: return params->source.read(params->source.user, of->key, row, n, dst, err);
    case NODE_CONCAT: return eval_concat(params, of, row, n, dst, err);
    case NODE_PAD: return eval_pad(params, of, row, n, dst, err);
    case NODE_FOLD: return eval_fold(params, of, row, n, dst, err);
    case NODE_SCALE:
        LW_TRY(eval_rows(params, of->parts[0], row, n, dst, err));
        for (size_t i = 0; i < (size_t)n * row_values(of); i++) dst[i] = (float)((double)dst[i] * of->factor);
        return LW_OK;
    }
    return LW_OK;
}

lw_status lw_param_eval(const lw_params *params, lw_param p, float *dst, lw_error *err) {
    return eval_rows(params, p.id, 0, node_at(params, p.id)->dims[0], dst, err);
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
    lw_form form = {.key = "plain",
                    .bytes = volume(node_at(params, p.id)->dims) * sizeof(float),
                    .by_rows = true,
                    .fill = fill_plain};
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

/* ---- filling: slices of rows by the backend's threads. A slice is read, made floats, packed and sent while it is in a
 * core's cache, and no more host memory is needed than a slice a thread. A form that needs all rows at once is filled
 * by one thread from a whole parameter, whose slices the others read. */

typedef struct slice {
    const pack *pack;
    int64_t row, n;
    float *to; /* only its values are wanted, here; NULL: its part of the pack */
} slice;

typedef struct scratch {
    struct scratch *next;
    float *values;
    void *packed;
} scratch;

typedef struct filling {
    const lw_params *params;
    lw_backend *backend;
    const slice *slices;
    size_t most_values, most_bytes; /* of a slice; bytes 0: packed where it stays */
    pthread_mutex_t lock;           /* of all below */
    scratch *idle;
    int64_t failed; /* the first slice that did, n for none: the same one whatever thread is first */
    lw_status status;
    lw_error err;
} filling;

static int64_t slice_rows(const node *n) { return (int64_t)row_values(n) < SLICE ? SLICE / (int64_t)row_values(n) : 1; }

static size_t row_bytes(const lw_params *params, const pack *k) {
    return k->form.bytes / (size_t)node_at(params, k->param)->dims[0];
}

static void drop_scratch(scratch *k) {
    if (!k) return;
    lw_free(k->values);
    lw_free(k->packed);
    lw_free(k);
}

static scratch *take_scratch(filling *f) {
    pthread_mutex_lock(&f->lock);
    scratch *k = f->idle;
    if (k) f->idle = k->next;
    pthread_mutex_unlock(&f->lock);
    if (k) return k;
    k = lw_alloc(1, sizeof *k);
    if (!k) return NULL;
    k->values = lw_alloc_aligned(f->most_values * sizeof *k->values);
    if (f->most_bytes) k->packed = lw_alloc_aligned(f->most_bytes);
    if (k->values && (k->packed || !f->most_bytes)) return k;
    drop_scratch(k);
    return NULL;
}

static lw_status fill_slice(filling *f, const slice *s, lw_error *err) {
    const pack *k = s->pack;
    const node *n = node_at(f->params, k->param);
    const int64_t d[4] = {s->n, n->dims[1], n->dims[2], n->dims[3]};
    if (s->to) return eval_rows(f->params, k->param, s->row, s->n, s->to, err);
    size_t each = row_bytes(f->params, k);
    char *device = (char *)k->data + (size_t)s->row * each;
    bool host = f->most_bytes == 0;
    scratch *mine = take_scratch(f);
    if (!mine) return lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", n->key, f->most_values);
    lw_status status = eval_rows(f->params, k->param, s->row, s->n, mine->values, err);
    if (status == LW_OK) status = k->form.fill(k->user, mine->values, d, host ? device : mine->packed, err);
    if (status == LW_OK && !host)
        status = f->backend->upload(f->backend, device, mine->packed, (size_t)s->n * each, err);
    pthread_mutex_lock(&f->lock);
    mine->next = f->idle;
    f->idle = mine;
    pthread_mutex_unlock(&f->lock);
    return status;
}

static void fill_range(void *user, int64_t begin, int64_t end) {
    filling *f = user;
    for (int64_t i = begin; i < end; i++) {
        lw_error err;
        pthread_mutex_lock(&f->lock);
        bool wanted = i < f->failed;
        pthread_mutex_unlock(&f->lock);
        if (!wanted) return;
        lw_status status = fill_slice(f, &f->slices[i], &err);
        pthread_mutex_lock(&f->lock);
        if (status != LW_OK && i < f->failed) f->failed = i, f->status = status, f->err = err;
        pthread_mutex_unlock(&f->lock);
    }
}

static lw_status run_slices(const lw_params *params, lw_backend *backend, const slice *slices, int64_t n,
                            lw_error *err) {
    filling f = {.params = params, .backend = backend, .slices = slices, .failed = n};
    bool host = backend->device == LW_DEVICE_CPU;
    for (int64_t i = 0; i < n; i++) {
        size_t values = (size_t)slices[i].n * row_values(node_at(params, slices[i].pack->param)),
               bytes = host || slices[i].to ? 0 : (size_t)slices[i].n * row_bytes(params, slices[i].pack);
        if (values > f.most_values) f.most_values = values;
        if (bytes > f.most_bytes) f.most_bytes = bytes;
    }
    pthread_mutex_init(&f.lock, NULL);
    lw_parallel_for(backend->pool, backend->threads, n, 1, fill_range, &f);
    for (scratch *k = f.idle, *next; k; k = next) {
        next = k->next;
        drop_scratch(k);
    }
    pthread_mutex_destroy(&f.lock);
    if (f.status != LW_OK && err) *err = f.err;
    return f.status;
}

/* The slices of a pack, after those that are there; to: as in a slice. */
static void cut(const lw_params *params, const pack *k, float *to, slice *slices, int64_t *n) {
    const node *of = node_at(params, k->param);
    int64_t rows = slice_rows(of);
    for (int64_t row = 0; row < of->dims[0]; row += rows)
        slices[(*n)++] = (slice){.pack = k,
                                 .row = row,
                                 .n = smaller(rows, of->dims[0] - row),
                                 .to = to ? to + (size_t)row * row_values(of) : NULL};
}

static int64_t count_slices(const lw_params *params, const pack *k) {
    const node *of = node_at(params, k->param);
    return (of->dims[0] - 1) / slice_rows(of) + 1;
}

static lw_status fill_whole(lw_params *params, lw_backend *backend, const pack *k, slice *slices, lw_error *err) {
    const node *n = node_at(params, k->param);
    lw_status status = LW_OK;
    void *staged = NULL;
    int64_t n_slices = 0;
    bool host = backend->device == LW_DEVICE_CPU;
    float *values = lw_alloc_aligned(volume(n->dims) * sizeof *values);
    if (!host) staged = lw_alloc_aligned(k->form.bytes);
    if (!values || (!host && !staged)) {
        status = lw_fail(err, LW_ENOMEM, "parameter %s: no memory for %zu values", n->key, volume(n->dims));
        goto out;
    }
    cut(params, k, values, slices, &n_slices);
    LW_GO(run_slices(params, backend, slices, n_slices, err));
    LW_GO(k->form.fill(k->user, values, n->dims, host ? k->data : staged, err));
    if (!host) LW_GO(backend->upload(backend, k->data, staged, k->form.bytes, err));
out:
    lw_free(staged);
    lw_free(values);
    return status;
}

/* The packs from n_filled up to end, in one memory of so many bytes: all of them, or none. */
static lw_status fill_memory(lw_params *params, lw_backend *backend, int32_t end, size_t bytes, lw_error *err) {
    lw_status status = LW_OK;
    int64_t n = 0, room = 0;
    slice *slices = NULL;
    void *at = NULL;
    memory *m = lw_arena_alloc(params->arena, 1, sizeof *m);
    for (int32_t i = params->n_filled; i < end; i++) room += count_slices(params, pack_at(params, i));
    slices = m ? lw_alloc((size_t)room, sizeof *slices) : NULL;
    if (!slices) LW_GO(lw_fail(err, LW_ENOMEM, "parameters: no memory for a list of %lld slices", (long long)room));
    LW_GO(backend->alloc(backend, bytes, &at, err));
    char *to = at;
    for (int32_t i = params->n_filled; i < end; i++) {
        pack *k = pack_at(params, i);
        k->data = to;
        to += lw_round_up(k->form.bytes, PACK_ALIGN);
        if (k->form.by_rows) cut(params, k, NULL, slices, &n);
    }
    LW_GO(run_slices(params, backend, slices, n, err));
    for (int32_t i = params->n_filled; i < end; i++)
        if (!pack_at(params, i)->form.by_rows) LW_GO(fill_whole(params, backend, pack_at(params, i), slices, err));
    *m = (memory){params->memories, at};
    params->memories = m;
    params->n_filled = end;
    at = NULL;
out:
    if (at) {
        for (int32_t i = params->n_filled; i < end; i++) pack_at(params, i)->data = NULL;
        backend->free(backend, at);
    }
    lw_free(slices);
    return status;
}

lw_status lw_params_fill(lw_params *params, lw_backend *backend, lw_error *err) {
    lw_status status = LW_OK;
    pthread_mutex_lock(&params->lock);
    while (params->n_filled < params->n_packs && status == LW_OK) {
        size_t bytes = 0;
        int32_t end = params->n_filled;
        do bytes += lw_round_up(pack_at(params, end++)->form.bytes, PACK_ALIGN);
        while (end < params->n_packs && bytes < MEMORY_BYTES);
        status = fill_memory(params, backend, end, bytes, err);
    }
    pthread_mutex_unlock(&params->lock);
    return status;
}
