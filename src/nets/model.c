/* SPDX-License-Identifier: MIT
 * Opening a model: files, metadata, and the layout of each network as its tensors show it. */
#include "nets/blocks.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- tensors under the model's names: "control<k>." is "control." in the k-th control file */

static const lw_weights *store_of(const lw_model *m, const char *name, const char **inner, char buffer[256]) {
    *inner = name;
    if (!strncmp(name, "vae.", 4)) return m->vae ? m->vae : m->base;
    if (strncmp(name, "control", 7)) return m->base;
    int k = 0;
    const char *rest = name + 7;
    while (*rest >= '0' && *rest <= '9' && k < LW_MAX_CONTROLS) k = k * 10 + (*rest++ - '0');
    if (k >= LW_MAX_CONTROLS) return NULL;
    snprintf(buffer, 256, "control%s", rest);
    *inner = buffer;
    return m->controls[k] ? m->controls[k] : m->base;
}

/* Of the file that a network of this prefix is in. */
static const char *path_of(const lw_model *m, const char *prefix) {
    char buffer[256];
    const char *inner;
    const lw_weights *store = store_of(m, prefix, &inner, buffer);
    return lw_weights_path(store ? store : m->base);
}

static const lw_tensor *find(const lw_model *m, const char *name, const lw_weights **store) {
    char buffer[256];
    const char *inner;
    *store = store_of(m, name, &inner, buffer);
    return *store ? lw_weights_find(*store, inner) : NULL;
}

static lw_status source_dims(void *user, const char *name, int64_t dims[4], lw_error *err) {
    const lw_model *m = user;
    const lw_weights *store;
    const lw_tensor *t = find(m, name, &store);
    if (!t)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s is missing",
                       store ? lw_weights_path(store) : lw_weights_path(m->base), name);
    if (t->rank > 4)
        return lw_fail(err, LW_EMODEL, "%s: tensor %s has rank %d, at most 4 was expected", lw_weights_path(store),
                       name, t->rank);
    for (int d = 0; d < 4; d++) dims[d] = d < t->rank ? t->dims[d] : 1;
    for (int d = 0; d < 4; d++)
        if (dims[d] < 1 || dims[d] > 1 << 20)
            return lw_fail(err, LW_EMODEL, "%s: tensor %s has a dimension of %lld, 1 to 1048576 was expected",
                           lw_weights_path(store), name, (long long)dims[d]);
    return LW_OK;
}

static lw_status source_read(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    const lw_weights *store;
    const lw_tensor *t = find(user, name, &store);
    if (!t) return lw_fail(err, LW_EINTERNAL, "tensor %s was there and is not", name);
    return lw_tensor_read_rows(store, t, row, n, dst, err);
}

lw_tensor_source lw_model_source(lw_model *model) { return (lw_tensor_source){model, source_dims, source_read}; }

/* The first tensor of store whose name is not below prefix; they are sorted. */
static size_t lower_bound(const lw_weights *store, const char *prefix) {
    size_t low = 0, high = lw_weights_count(store);
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(lw_weights_at(store, mid)->name, prefix) < 0) low = mid + 1;
        else high = mid;
    }
    return low;
}

static bool has_prefix(const lw_model *m, const char *name) {
    char buffer[256];
    const char *inner;
    const lw_weights *store = store_of(m, name, &inner, buffer);
    if (!store) return false;
    size_t i = lower_bound(store, inner);
    return i < lw_weights_count(store) && !strncmp(lw_weights_at(store, i)->name, inner, strlen(inner));
}

bool lw_model_has(const lw_model *m, const char *format, ...) {
    char name[200];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return has_prefix(m, name);
}

static int64_t dim(const lw_model *m, int d, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int64_t dim(const lw_model *m, int d, const char *format, ...) {
    char name[200];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const lw_weights *store;
    const lw_tensor *t = find(m, name, &store);
    return t && d < t->rank && t->dims[d] > 0 && t->dims[d] < INT32_MAX ? t->dims[d] : 0;
}

/* ---- metadata */

typedef struct meta {
    const char *path;
    json_t *object;
    lw_error *err;
} meta;

static lw_status meta_int(const meta *m, const char *key, int32_t low, int32_t high, int32_t *out) {
    json_t *v = json_object_get(m->object, key);
    if (!v) return LW_OK;
    if (!json_is_integer(v) || json_integer_value(v) < low || json_integer_value(v) > high)
        return lw_fail(m->err, LW_EMODEL, "%s: metadata %s is not a whole number from %d to %d", m->path, key, low,
                       high);
    *out = (int32_t)json_integer_value(v);
    return LW_OK;
}

static lw_status meta_text(const meta *m, const char *key, const char *otherwise, char **out) {
    json_t *v = json_object_get(m->object, key);
    if (v && !json_is_string(v)) return lw_fail(m->err, LW_EMODEL, "%s: metadata %s is not a string", m->path, key);
    *out = lw_strdup(v ? json_string_value(v) : otherwise);
    return *out ? LW_OK : lw_fail(m->err, LW_ENOMEM, "%s: no memory for its metadata", m->path);
}

static lw_status meta_rgb(const meta *m, double rgb[15]) {
    /* Fitted to SD1.5's latents: what each channel adds to red, green and blue around mid gray. */
    static const double sd15[15] = {0.1490, 0.1035, -0.1040, -0.1000, 0.1035, 0.0865, 0.0860, -0.1130,
                                    0.1020, 0.0470, 0.0350,  -0.2300, 0.5,    0.5,    0.5};
    memcpy(rgb, sd15, sizeof sd15);
    json_t *v = json_object_get(m->object, "latent_rgb");
    if (!v) return LW_OK;
    if (!json_is_array(v) || json_array_size(v) != 15)
        return lw_fail(m->err, LW_EMODEL, "%s: metadata latent_rgb is not a list of 15 numbers", m->path);
    for (size_t i = 0; i < 15; i++) {
        json_t *number = json_array_get(v, i);
        if (!json_is_number(number))
            return lw_fail(m->err, LW_EMODEL, "%s: metadata latent_rgb is not a list of 15 numbers", m->path);
        rgb[i] = json_number_value(number);
    }
    return LW_OK;
}

static lw_status read_config(const meta *m, int32_t text_width, lw_model_config *c) {
    c->unet_heads = 8;
    c->norm_groups = 32;
    c->clip_heads = text_width >= 64 ? text_width / 64 : 1;
    c->resolution = 512;
    c->scale_factor = 0.18215;
    LW_TRY(meta_int(m, "unet_heads", 1, 1024, &c->unet_heads));
    LW_TRY(meta_int(m, "norm_groups", 1, 1024, &c->norm_groups));
    LW_TRY(meta_int(m, "clip_heads", 1, 1024, &c->clip_heads));
    LW_TRY(meta_int(m, "resolution", 64, 8192, &c->resolution));
    json_t *act = json_object_get(m->object, "clip_act"), *factor = json_object_get(m->object, "scale_factor");
    if (act && (!json_is_string(act) ||
                (strcmp(json_string_value(act), "gelu") && strcmp(json_string_value(act), "quick_gelu"))))
        return lw_fail(m->err, LW_EMODEL, "%s: metadata clip_act is neither \"quick_gelu\" nor \"gelu\"", m->path);
    c->clip_gelu = act && !strcmp(json_string_value(act), "gelu");
    if (factor && (!json_is_number(factor) || !(json_number_value(factor) > 0) || !isfinite(json_number_value(factor))))
        return lw_fail(m->err, LW_EMODEL, "%s: metadata scale_factor is not a number above 0", m->path);
    if (factor) c->scale_factor = json_number_value(factor);
    const char *slash = strrchr(m->path, '/');
    char name[256];
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : m->path);
    char *dot = strrchr(name, '.');
    if (dot && dot != name) *dot = 0;
    LW_TRY(meta_text(m, "name", name, &c->name));
    LW_TRY(meta_text(m, "added_prompt", "best quality, extremely detailed", &c->added_prompt));
    LW_TRY(meta_text(m, "negative_prompt",
                     "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
                     "worst quality, low quality",
                     &c->negative_prompt));
    return meta_rgb(m, c->latent_rgb);
}

static lw_status open_config(lw_model *model, lw_error *err) {
    const char *text = lw_weights_metadata(model->base, "linework"), *path = lw_weights_path(model->base);
    meta m = {.path = path, .err = err};
    if (text) {
        json_error_t json;
        m.object = json_loads(text, JSON_REJECT_DUPLICATES, &json);
        if (!json_is_object(m.object)) {
            json_decref(m.object);
            return lw_fail(err, LW_EMODEL, "%s: metadata linework is not a JSON object: %s", path, json.text);
        }
    }
    lw_status status = read_config(&m, model->text_width, &model->config);
    json_decref(m.object);
    return status;
}

/* ---- layout */

/* Blocks "<prefix><list>.i" for i = 0, 1, …; *n: one more than the largest i that has a tensor. */
static lw_status count_blocks(const lw_model *m, const char *prefix, const char *list, int32_t *n, lw_error *err) {
    *n = 0;
    for (int32_t i = 0; i < LW_MAX_BLOCKS; i++)
        if (lw_model_has(m, "%s%s.%d.", prefix, list, i)) *n = i + 1;
    if (*n == 0 || lw_model_has(m, "%s%s.%d.", prefix, list, LW_MAX_BLOCKS))
        return lw_fail(err, LW_EMODEL, "%s: network %s has %s %s blocks, 1 to %d can be used", path_of(m, prefix),
                       prefix, *n ? "over 64" : "no", list, LW_MAX_BLOCKS);
    return LW_OK;
}

static void read_block(const lw_model *m, lw_unet_layout *u, lw_block *b, const char *list, int32_t i, bool output) {
    snprintf(b->name, sizeof b->name, "%s.%d", list, i);
    b->down = lw_model_has(m, "%s%s.0.op.", u->prefix, b->name);
    b->res = !b->down && (output || i > 0);
    if (b->res) {
        b->c_out = (int32_t)dim(m, 0, "%s%s.0.in_layers.2.weight", u->prefix, b->name);
        b->c_in = (int32_t)dim(m, 1, "%s%s.0.in_layers.2.weight", u->prefix, b->name);
        b->transformer = lw_model_has(m, "%s%s.1.norm.", u->prefix, b->name);
        b->addend = u->n_addends;
        u->n_addends += b->c_out;
        if (b->transformer) {
            b->kv = u->n_kv;
            u->n_kv += 2 * b->c_out;
        }
        for (int32_t k = 1; k <= 2 && output; k++)
            if (lw_model_has(m, "%s%s.%d.conv.", u->prefix, b->name, k)) b->up = true, b->up_index = k;
    } else {
        b->c_out = (int32_t)(b->down ? dim(m, 0, "%s%s.0.op.weight", u->prefix, b->name)
                                     : dim(m, 0, "%s%s.0.weight", u->prefix, b->name));
        u->n_levels += b->down;
    }
}

static void read_middle(const lw_model *m, lw_unet_layout *u) {
    for (int32_t i = 0; i < 3; i += 2) {
        lw_block *b = &u->mid[i];
        snprintf(b->name, sizeof b->name, "middle_block.%d", i);
        b->res = true;
        b->c_out = (int32_t)dim(m, 0, "%s%s.in_layers.2.weight", u->prefix, b->name);
        b->addend = u->n_addends;
        u->n_addends += b->c_out;
    }
    snprintf(u->mid[1].name, sizeof u->mid[1].name, "middle_block.1");
    u->mid[1].transformer = true;
    u->context = (int32_t)dim(m, 1, "%s%s.transformer_blocks.0.attn2.to_k.weight", u->prefix, u->mid[1].name);
    u->mid[1].c_out = u->mid[0].c_out;
    u->mid[1].kv = u->n_kv;
    u->n_kv += 2 * u->mid[1].c_out;
}

static lw_status read_layout(const lw_model *m, lw_unet_layout *u, const char *prefix, bool decoder, lw_error *err) {
    snprintf(u->prefix, sizeof u->prefix, "%s", prefix);
    u->n_levels = 1;
    u->width = (int32_t)dim(m, 1, "%stime_embed.0.weight", prefix);
    if (u->width < 8 || u->width % 8)
        return lw_fail(err, LW_EMODEL, "%s: tensor %stime_embed.0.weight has %d columns, a multiple of 8 was expected",
                       path_of(m, prefix), prefix, u->width);
    LW_TRY(count_blocks(m, prefix, "input_blocks", &u->n_in, err));
    for (int32_t i = 0; i < u->n_in; i++) read_block(m, u, &u->in[i], "input_blocks", i, false);
    read_middle(m, u);
    if (decoder) {
        LW_TRY(count_blocks(m, prefix, "output_blocks", &u->n_out, err));
        for (int32_t i = 0; i < u->n_out; i++) read_block(m, u, &u->out[i], "output_blocks", i, true);
        if (u->n_out != u->n_in)
            return lw_fail(err, LW_EMODEL,
                           "%s: network %s has %d input blocks and %d output blocks, as many were expected",
                           path_of(m, prefix), prefix, u->n_in, u->n_out);
    }
    for (int32_t i = 0; i < u->n_in + 3 + u->n_out; i++) {
        const lw_block *b = i < u->n_in ? &u->in[i] : i < u->n_in + 3 ? &u->mid[i - u->n_in] : &u->out[i - u->n_in - 3];
        if (b->c_out < 8 || b->c_out % 8)
            return lw_fail(
                err, LW_EMODEL,
                "%s: block %s%s has %d channels (its convolution is missing or odd), a multiple of 8 was expected",
                path_of(m, prefix), prefix, b->name, b->c_out);
    }
    if (u->n_levels > LW_MAX_LEVELS)
        return lw_fail(err, LW_EMODEL, "%s: network %s has %d levels, at most %d can be used", path_of(m, prefix),
                       prefix, u->n_levels, LW_MAX_LEVELS);
    return LW_OK;
}

static lw_status read_controls(lw_model *m, lw_error *err) {
    for (int32_t k = 0; k < m->n_controls; k++) {
        char prefix[24] = "control.";
        if (k) snprintf(prefix, sizeof prefix, "control%d.", k);
        LW_TRY(read_layout(m, &m->control[k], prefix, false, err));
        if (m->control[k].n_in != m->unet.n_in)
            return lw_fail(err, LW_EMODEL, "%s: ControlNet %d has %d input blocks, the UNet has %d", path_of(m, prefix),
                           k, m->control[k].n_in, m->unet.n_in);
        for (int32_t i = 0; i < m->unet.n_in; i++)
            if (m->control[k].in[i].c_out != m->unet.in[i].c_out || m->control[k].in[i].down != m->unet.in[i].down)
                return lw_fail(
                    err, LW_EMODEL,
                    "%s: ControlNet %d is not of the UNet's shape: input block %d has %d channels, the UNet's %d",
                    path_of(m, prefix), k, i, m->control[k].in[i].c_out, m->unet.in[i].c_out);
    }
    return LW_OK;
}

static lw_status read_text_and_vae(lw_model *m, lw_error *err) {
    static const char *const embedding = "clip.text_model.embeddings.token_embedding.weight";
    m->n_tokens = (int32_t)dim(m, 0, "%s", embedding);
    m->text_width = (int32_t)dim(m, 1, "%s", embedding);
    if (m->n_tokens < 514 || m->text_width < 8 || m->text_width % 8)
        return lw_fail(err, LW_EMODEL,
                       "%s: tensor %s is missing or [%d,%d]; at least 514 rows of a multiple of 8 were expected",
                       lw_weights_path(m->base), embedding, m->n_tokens, m->text_width);
    while (lw_model_has(m, "clip.text_model.encoder.layers.%d.", m->n_text_layers) && m->n_text_layers < 256)
        m->n_text_layers++;
    while (lw_model_has(m, "vae.decoder.up.%d.", m->vae_levels) && m->vae_levels < 16) m->vae_levels++;
    if (m->vae_levels != 4)
        return lw_fail(err, LW_EMODEL, "%s: the VAE's decoder has %d levels, 4 (a factor of 8) were expected",
                       lw_weights_path(m->vae ? m->vae : m->base), m->vae_levels);
    return LW_OK;
}

static lw_status open_files(lw_model *m, const char *path, const char *const *control_nets, int32_t n_control_nets,
                            const char *vae, lw_error *err) {
    if (n_control_nets > LW_MAX_CONTROLS)
        return lw_fail(err, LW_EINVAL, "%d ControlNets, at most %d can be used", n_control_nets, LW_MAX_CONTROLS);
    LW_TRY(lw_weights_open(&m->base, path, err));
    if (vae) LW_TRY(lw_weights_open_part(&m->vae, vae, "vae", err));
    for (int32_t k = 0; k < n_control_nets; k++)
        LW_TRY(lw_weights_open_part(&m->controls[k], control_nets[k], "control", err));
    m->n_controls = n_control_nets ? n_control_nets : lw_model_has(m, "control.") ? 1 : 0;
    static const char *const networks[] = {"unet.", "clip.", "vae.decoder."};
    static const char *const names[] = {"UNet", "text encoder", "VAE decoder"};
    for (int i = 0; i < 3; i++)
        if (!has_prefix(m, networks[i]))
            return lw_fail(err, LW_EMODEL, "%s: no %s in it (layout %s)", path, names[i], lw_weights_layout(m->base));
    return LW_OK;
}

lw_status lw_model_open(lw_model *out, const char *path, const char *const *control_nets, int32_t n_control_nets,
                        const char *vae, lw_error *err) {
    lw_status status = LW_OK;
    *out = (lw_model){0};
    LW_GO(open_files(out, path, control_nets, n_control_nets, vae, err));
    LW_GO(read_text_and_vae(out, err));
    LW_GO(open_config(out, err));
    LW_GO(lw_model_read_unet(out, err));
    LW_GO(read_controls(out, err));
out:
    if (status != LW_OK) lw_model_close(out);
    return status;
}

lw_status lw_model_read_unet(lw_model *m, lw_error *err) { return read_layout(m, &m->unet, "unet.", true, err); }

void lw_model_close(lw_model *m) {
    lw_weights_close(&m->base);
    lw_weights_close(&m->vae);
    for (int32_t k = 0; k < LW_MAX_CONTROLS; k++) lw_weights_close(&m->controls[k]);
    lw_free(m->config.name);
    lw_free(m->config.added_prompt);
    lw_free(m->config.negative_prompt);
    *m = (lw_model){0};
}

/* ---- check */

static lw_status finish(lw_program *p, lw_error *err) {
    if (!p) return lw_fail(err, LW_ENOMEM, "no memory to check the model");
    lw_status status = p->status;
    if (status != LW_OK) lw_fail(err, status, "%s", p->error.message);
    lw_program_free(p);
    return status;
}

static lw_status check_unused(const lw_model *m, lw_params *params, const lw_weights *store, const char *network,
                              const char *as, lw_error *err) {
    size_t n = strlen(network);
    for (size_t i = lower_bound(store, network);
         i < lw_weights_count(store) && !strncmp(lw_weights_at(store, i)->name, network, n); i++) {
        char name[256];
        snprintf(name, sizeof name, "%s%s", as, lw_weights_at(store, i)->name + n);
        if (!lw_params_took(params, name))
            return lw_fail(err, LW_EMODEL, "%s: tensor %s belongs to no block of this network", lw_weights_path(store),
                           name);
    }
    (void)m;
    return LW_OK;
}

lw_status lw_model_check(lw_model *m, lw_params *params, lw_error *err) {
    int32_t side = 1 << (m->unet.n_levels - 1);
    lw_step_shape shape = {.g = 2,
                           .n = 1,
                           .h = side,
                           .w = side,
                           .n_controls = m->n_controls,
                           .rows = 1,
                           .n_noise = 1,
                           .controls = (1u << m->n_controls) - 1};
    lw_program *p;
    if ((p = lw_program_new("text", params, LW_F32))) lw_record_text(p, m, 2, m->n_controls, 0);
    LW_TRY(finish(p, err));
    if ((p = lw_program_new("time", params, LW_F32))) lw_record_time(p, m, m->n_controls, 1, "t", "addend_table");
    LW_TRY(finish(p, err));
    for (int32_t k = 0; k < m->n_controls; k++) {
        if ((p = lw_program_new("hint", params, LW_F32))) lw_record_hint(p, m, k, side, side);
        LW_TRY(finish(p, err));
    }
    if ((p = lw_program_new("step", params, LW_F32))) lw_record_step(p, m, &shape);
    LW_TRY(finish(p, err));
    if ((p = lw_program_new("decode", params, LW_F32))) lw_record_decode(p, m, 1, side, side);
    LW_TRY(finish(p, err));
    LW_TRY(check_unused(m, params, m->base, "unet.", "unet.", err));
    for (int32_t k = 0; k < m->n_controls; k++)
        LW_TRY(
            check_unused(m, params, m->controls[k] ? m->controls[k] : m->base, "control.", m->control[k].prefix, err));
    return LW_OK;
}
