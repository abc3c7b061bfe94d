/* SPDX-License-Identifier: MIT
 * The diffusers folder: a folder a component, each with its weights and a config.json. */
#include "weights/format.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { JSON_CAP = 1 << 20 };

static const struct {
    const char *name;
    lw_network network;
} components[] = {
    {"unet", LW_NET_UNET}, {"vae", LW_NET_VAE}, {"text_encoder", LW_NET_CLIP}, {"controlnet", LW_NET_CONTROL}};

/* In the order of preference; the index is there instead where the weights are in several files. */
static const struct {
    const char *file, *index;
} files[] = {
    {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"},
    {"diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"},
    {"model.safetensors", "model.safetensors.index.json"},
    {"model.fp16.safetensors", "model.safetensors.index.fp16.json"},
    {"diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json"},
    {"diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin.index.fp16.json"},
    {"pytorch_model.bin", "pytorch_model.bin.index.json"},
    {"pytorch_model.fp16.bin", "pytorch_model.bin.index.fp16.json"},
};

static char *join(lw_arena *arena, const char *a, const char *b, const char *c) {
    size_t n = strlen(a) + strlen(b) + strlen(c) + 3;
    char *path = lw_arena_alloc(arena, n, 1);
    if (path) snprintf(path, n, "%s/%s%s%s", a, b, *b && *c ? "/" : "", c);
    return path;
}

/* A file that is a JSON object. */
static lw_status load_json(const char *file, json_t **root, lw_error *err) {
    *root = NULL;
    lw_source source;
    lw_status status = LW_OK;
    char *text = NULL;
    LW_TRY(lw_source_open(&source, file, err));
    if (source.size > JSON_CAP) {
        status = lw_fail(err, LW_EMODEL, "%s: %llu bytes, at most %d are read", file, (unsigned long long)source.size,
                         JSON_CAP);
        goto out;
    }
    text = lw_alloc((size_t)source.size + 1, 1);
    if (!text) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory to open it", file);
        goto out;
    }
    LW_GO(lw_source_read(&source, 0, text, (size_t)source.size, err));
    json_error_t why;
    *root = lw_fault_hit() ? NULL : json_loadb(text, (size_t)source.size, 0, &why);
    if (!json_is_object(*root)) {
        json_decref(*root);
        *root = NULL;
        status = lw_fail(err, LW_EMODEL, "%s: is not a JSON object", file);
    }
out:
    lw_free(text);
    lw_source_close(&source);
    return status;
}

/* ---- weights */

static lw_status add_file(lw_folder *folder, const char *path, lw_network network, lw_error *err) {
    if (folder->n == LW_FOLDER_FILES)
        return lw_fail(err, LW_EMODEL, "%s: is more than the %d files that a model may have", path, LW_FOLDER_FILES);
    folder->files[folder->n].path = path;
    folder->files[folder->n++].network = network;
    return LW_OK;
}

/* The files that an index names beside itself, each once. */
static lw_status add_parts(const char *index, const char *dir, lw_network network, lw_arena *arena, lw_folder *folder,
                           lw_error *err) {
    json_t *root, *file;
    const char *key;
    size_t first = folder->n;
    LW_TRY(load_json(index, &root, err));
    lw_status status = LW_OK;
    json_object_foreach(json_object_get(root, "weight_map"), key, file) {
        const char *name = json_string_value(file);
        if (!name || !*name || strchr(name, '/')) {
            status = lw_fail(err, LW_EMODEL, "%s: %s of its weight_map is in no file of this folder", index, key);
            break;
        }
        const char *path = join(arena, dir, name, "");
        size_t i = first;
        while (path && i < folder->n && strcmp(folder->files[i].path, path) != 0) i++;
        if (!path) status = lw_fail(err, LW_ENOMEM, "%s: no memory to open it", index);
        else if (i == folder->n) status = add_file(folder, path, network, err);
        if (status != LW_OK) break;
    }
    if (status == LW_OK && folder->n == first) status = lw_fail(err, LW_EMODEL, "%s: its weight_map is empty", index);
    json_decref(root);
    return status;
}

/* Adds the weights in path/inner, if there are any. */
static lw_status find_weights(const char *path, const char *inner, lw_network network, lw_arena *arena,
                              lw_folder *folder, lw_error *err) {
    const char *dir = *inner ? join(arena, path, inner, "") : path;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *file = dir ? join(arena, dir, files[i].file, "") : NULL;
        const char *index = dir ? join(arena, dir, files[i].index, "") : NULL;
        if (!file || !index) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
        if (access(file, F_OK) == 0) return add_file(folder, file, network, err);
        if (access(index, F_OK) == 0) return add_parts(index, dir, network, arena, folder, err);
    }
    return LW_OK;
}

lw_status lw_folder_find(const char *path, lw_network part, lw_arena *arena, lw_folder *folder, lw_error *err) {
    folder->n = 0;
    /* A folder of one component, such as a ControlNet's own repository; what it is shows in its keys. */
    LW_TRY(find_weights(path, "", part, arena, folder, err));
    if (folder->n > 0) return LW_OK;
    for (size_t i = 0; i < sizeof components / sizeof *components; i++) {
        lw_network network = components[i].network;
        size_t first = folder->n;
        if (part != LW_NET_NONE && part != network) continue;
        LW_TRY(find_weights(path, components[i].name, network, arena, folder, err));
        if (folder->n > first || network != LW_NET_CONTROL) continue;
        const char *single = join(arena, path, "controlnet.safetensors", ""); /* a single file instead of a folder */
        if (!single) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
        if (access(single, F_OK) == 0) LW_TRY(add_file(folder, single, network, err));
    }
    if (folder->n == 0)
        return lw_fail(err, LW_EMODEL, "%s: is a folder without %s/%s and the like", path,
                       part == LW_NET_VAE       ? "vae"
                       : part == LW_NET_CONTROL ? "controlnet"
                                                : "unet",
                       files[0].file);
    return LW_OK;
}

/* ---- what shapes can't say */

/* A component's config, or NULL in *root where there is none. */
static lw_status load_config(const char *path, const char *component, lw_arena *arena, json_t **root, lw_error *err) {
    *root = NULL;
    const char *file = join(arena, path, component, "config.json");
    if (!file) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
    return access(file, F_OK) == 0 ? load_json(file, root, err) : LW_OK;
}

/* Which key of which config is which of ours. attention_head_dim is the number of heads in every SD1 config. */
static const struct {
    const char *component, *key, *ours;
    json_type type;
} config_keys[] = {
    {"unet", "attention_head_dim", "unet_heads", JSON_INTEGER},
    {"unet", "norm_num_groups", "norm_groups", JSON_INTEGER},
    {"text_encoder", "num_attention_heads", "clip_heads", JSON_INTEGER},
    {"text_encoder", "hidden_act", "clip_act", JSON_STRING},
    {"vae", "scaling_factor", "scale_factor", JSON_REAL},
};

static lw_status gather(const char *path, lw_arena *arena, json_t *ours, lw_error *err) {
    for (size_t i = 0; i < sizeof config_keys / sizeof *config_keys; i++) {
        json_t *config;
        LW_TRY(load_config(path, config_keys[i].component, arena, &config, err));
        json_t *value = json_object_get(config, config_keys[i].key);
        if (value && json_typeof(value) == config_keys[i].type) json_object_set(ours, config_keys[i].ours, value);
        json_decref(config);
    }
    return LW_OK;
}

lw_status lw_folder_config(const char *path, lw_listing *listing, lw_error *err) {
    for (size_t i = 0; i < listing->n_metadata; i++)
        if (strcmp(listing->metadata[i].key, "linework") == 0) return LW_OK;
    json_t *ours = json_object();
    lw_status status = gather(path, listing->arena, ours, err);
    char *text = status == LW_OK && json_object_size(ours) > 0 ? json_dumps(ours, JSON_COMPACT) : NULL;
    if (text) {
        lw_field *grown = lw_arena_alloc(listing->arena, listing->n_metadata + 1, sizeof *grown);
        char *key = lw_arena_strdup(listing->arena, "linework"), *value = lw_arena_strdup(listing->arena, text);
        if (grown && key && value) {
            if (listing->n_metadata) memcpy(grown, listing->metadata, listing->n_metadata * sizeof *grown);
            grown[listing->n_metadata++] = (lw_field){key, value};
            listing->metadata = grown;
        } else {
            status = lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
        }
    }
    free(text);
    json_decref(ours);
    return status;
}
