/* SPDX-License-Identifier: MIT
 * The engine: a device, a model and its packed weights; counted by its sessions. */
#include "pipe/session.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "pipe/choices.h"
#include "text/bpe.h"

enum { CLIP_VOCAB = 49408 };

void lw_engine_params_init(lw_engine_params *params) { *params = (lw_engine_params){.size = sizeof *params}; }

static bool is_file(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

/* A file in the model's folder: MODEL/sub where the model is a folder, else beside it. */
static bool beside(const char *model, const char *sub_of_dir, const char *name, char path[PATH_MAX]) {
    struct stat st;
    const char *slash = strrchr(model, '/');
    if (stat(model, &st) == 0 && S_ISDIR(st.st_mode)) snprintf(path, PATH_MAX, "%s/%s%s", model, sub_of_dir, name);
    else snprintf(path, PATH_MAX, "%.*s%s", slash ? (int)(slash + 1 - model) : 0, model, name);
    return is_file(path);
}

/* Where the vocabulary is: given, the folder's tokenizer/, beside the file, the cache. */
lw_status lw_engine_add_vocab(lw_engine *e, const lw_engine_params *params, lw_error *err) {
    static const char *const names[] = {"merges.txt", "bpe_simple_vocab_16e6.txt.gz"};
    int32_t n = e->model.n_tokens;
    if (params->vocab) return lw_tokenizer_open(&e->tokenizer, params->vocab, n, err);
    char path[PATH_MAX];
    for (int i = 0; i < 2; i++) {
        if (!beside(params->model, "tokenizer/", names[i], path)) continue;
        lw_error mine;
        if (lw_tokenizer_open(&e->tokenizer, path, n, &mine) == LW_OK)
            return LW_OK; /* another model's vocabulary may lie beside a file */
    }
    for (int i = 0; i < 2 && params->cache_dir; i++) {
        snprintf(path, sizeof path, "%s/%s", params->cache_dir, names[i]);
        if (is_file(path)) return lw_tokenizer_open(&e->tokenizer, path, n, err);
    }
    return lw_fail(err, LW_EMODEL,
                   "%s: no vocabulary of %d entries: none beside the model and none in the cache %s; give merges.txt "
                   "or bpe_simple_vocab_16e6.txt.gz%s",
                   params->model, n, params->cache_dir ? params->cache_dir : "(no folder)",
                   n == CLIP_VOCAB ? ", or fill the cache with linework fetch-vocab" : "");
}

static lw_status open_parts(lw_engine *e, const lw_engine_params *params, lw_error *err) {
    LW_TRY(lw_model_open(&e->model, params->model, params->control_nets, (int32_t)params->n_control_nets, params->vae,
                         err));
    lw_tensor_source source = lw_model_source(&e->model);
    LW_TRY(lw_params_new(&e->params, &source, err));
    return lw_model_check(&e->model, e->params, err);
}

/* What was tuned before. A file that can't be used is worth a remark, not a failure. */
static lw_status open_choices(lw_engine *e, const lw_engine_params *params, lw_error *err) {
    char *remark = NULL;
    e->choices = lw_choices_new();
    if (params->cache_dir) e->cache_dir = lw_strdup(params->cache_dir);
    if (!e->choices || (params->cache_dir && !e->cache_dir)) return lw_fail(err, LW_ENOMEM, "no memory for an engine");
    if (!e->cache_dir) return LW_OK;
    lw_status status = lw_choices_load(e->choices, e->backend, e->cache_dir, &remark, err);
    if (remark && e->log) e->log(e->user, LW_LOG_NOTE, remark);
    lw_free(remark);
    return status;
}

lw_status lw_engine_make_textless(lw_engine **out, lw_backend *backend, const lw_engine_params *params, lw_error *err) {
    double begin = lw_now_ms();
    lw_engine *e = lw_alloc(1, sizeof *e);
    if (!e) {
        backend->close(backend);
        return lw_fail(err, LW_ENOMEM, "no memory for an engine");
    }
    e->backend = backend;
    e->max_memory = params->max_memory;
    e->log = params->log;
    e->user = params->user;
    atomic_init(&e->refs, 1);
    pthread_mutex_init(&e->lock, NULL);
    snprintf(e->tactics_hash, sizeof e->tactics_hash, "0");
    lw_status status = open_parts(e, params, err);
    if (status == LW_OK) status = open_choices(e, params, err);
    e->load_ms = lw_now_ms() - begin;
    if (status == LW_OK) *out = e;
    else lw_engine_unref(e);
    return status;
}

lw_status lw_engine_make(lw_engine **out, lw_backend *backend, const lw_engine_params *params, lw_error *err) {
    LW_TRY(lw_engine_make_textless(out, backend, params, err));
    double begin = lw_now_ms();
    lw_status status = lw_engine_add_vocab(*out, params, err);
    (*out)->load_ms += lw_now_ms() - begin;
    if (status != LW_OK) lw_engine_close(out);
    return status;
}

void lw_engine_unref(lw_engine *e) {
    if (!e || atomic_fetch_sub(&e->refs, 1) != 1) return;
    lw_params_free(e->params, e->backend);
    lw_model_close(&e->model);
    lw_tokenizer_close(&e->tokenizer);
    lw_choices_free(e->choices);
    lw_free(e->cache_dir);
    e->backend->close(e->backend);
    pthread_mutex_destroy(&e->lock);
    lw_free(e);
}

void lw_engine_close(lw_engine **engine) {
    if (!engine) return;
    lw_engine_unref(*engine);
    *engine = NULL;
}

lw_status lw_engine_get_info(const lw_engine *e, lw_engine_info *info, lw_error *err) {
    if (info->size && info->size < sizeof *info)
        return lw_fail(err, LW_EINVAL, "engine info has size %u, at least %zu is needed", info->size, sizeof *info);
    const lw_model_config *c = &e->model.config;
    *info = (lw_engine_info){.size = sizeof *info,
                             .name = c->name,
                             .added_prompt = c->added_prompt,
                             .negative_prompt = c->negative_prompt,
                             .resolution = c->resolution,
                             .size_multiple = 8 << (e->model.unet.n_levels - 1),
                             .n_control_nets = e->model.n_controls,
                             .device = e->backend->device,
                             .precision = e->backend->precision,
                             .device_name = e->backend->description,
                             .tactics_hash = e->tactics_hash};
    return LW_OK;
}

const lw_tokenizer *lw_engine_tokenizer(const lw_engine *e) { return e->tokenizer; }
