/* SPDX-License-Identifier: MIT
 * Random models of a real model's shapes, for loading, parity and speed without its weights.
 *
 * Values, so that any program can make the same (tools/make_model.py does): all arithmetic is modulo 2^64 or in double.
 *   mix(z): z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31
 *   stream = mix(FNV-1a-64(the tensor's LDM key, prefix and all) + seed * 0x9e3779b97f4a7c15)
 *   z      = mix(stream + (i + 1) * 0x9e3779b97f4a7c15)          for element i, row major
 *   m      = the sum of z's four 16-bit fields - 131070          near normal, variance (2^32 - 1) / 3
 *   value  = float(m * (std / sqrt((2^32 - 1) / 3)) + mean)      then rounded to the type, to nearest even
 * with std and mean of the tensor's role: see fill_of. What adds to its input is damped, so that activations keep
 * their scale over a whole network; zero convolutions are not zero. */
#include "weights/format.h"
#include "weights/shapes.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDEN 0x9e3779b97f4a7c15u

enum { CHUNK = 8192, TIMESTEPS = 1000 };

void lw_make_params_init(lw_make_params *params) {
    *params = (lw_make_params){.size = sizeof *params, .like = "sd15", .layout = "ldm", .seed = 1};
}

/* ---- values */

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t add_hash(uint64_t h, const char *text) {
    for (; *text; text++) h = (h ^ (uint8_t)*text) * 0x100000001b3u;
    return h;
}

static void fill_of(const lw_shape *s, double *mean, double *std) {
    double fan_in = 1;
    for (int32_t i = 1; i < s->rank; i++) fan_in *= (double)s->dims[i];
    *mean = s->role == LW_ROLE_SCALE ? 1 : 0;
    *std = 0;
    switch (s->role) {
    case LW_ROLE_WEIGHT: *std = 1 / sqrt(fan_in); break;
    case LW_ROLE_RESIDUAL: *std = 0.3 / sqrt(fan_in); break;
    case LW_ROLE_BIAS: *std = 0.02; break;
    case LW_ROLE_SCALE: *std = 0.1; break;
    case LW_ROLE_SHIFT: *std = 0.05; break;
    case LW_ROLE_EMBEDDING: *std = 0.02; break;
    case LW_ROLE_IDS:
    case LW_ROLE_SCHEDULE: break;
    }
}

/* LDM's register_schedule for SD1.5 (linear in the root, 0.00085 to 0.012). */
static void fill_schedule(const char *name, float *out) {
    double low = sqrt(0.00085), high = sqrt(0.012), product = 1;
    for (int i = 0; i < TIMESTEPS; i++) {
        double root = low + (high - low) * i / (TIMESTEPS - 1), beta = root * root, before = product;
        product *= 1 - beta;
        double a = product, posterior = beta * (1 - before) / (1 - a), v = 0; /* logvar is 0 */
        if (!strcmp(name, "betas")) v = beta;
        else if (!strcmp(name, "alphas_cumprod")) v = a;
        else if (!strcmp(name, "alphas_cumprod_prev")) v = before;
        else if (!strcmp(name, "sqrt_alphas_cumprod")) v = sqrt(a);
        else if (!strcmp(name, "sqrt_one_minus_alphas_cumprod")) v = sqrt(1 - a);
        else if (!strcmp(name, "log_one_minus_alphas_cumprod")) v = log(1 - a);
        else if (!strcmp(name, "sqrt_recip_alphas_cumprod")) v = sqrt(1 / a);
        else if (!strcmp(name, "sqrt_recipm1_alphas_cumprod")) v = sqrt(1 / a - 1);
        else if (!strcmp(name, "posterior_variance")) v = posterior;
        else if (!strcmp(name, "posterior_log_variance_clipped")) v = log(posterior > 1e-20 ? posterior : 1e-20);
        else if (!strcmp(name, "posterior_mean_coef1")) v = beta * sqrt(before) / (1 - a);
        else if (!strcmp(name, "posterior_mean_coef2")) v = (1 - before) * sqrt(1 - beta) / (1 - a);
        out[i] = (float)v;
    }
}

/* Elements [first, first + n) of a tensor. */
static void fill(const lw_shape *s, uint64_t seed, size_t first, size_t n, float *out) {
    double mean, std;
    uint64_t hash = add_hash(0xcbf29ce484222325u, s->network == LW_NET_NONE ? "" : lw_network_prefix(s->network));
    uint64_t stream = mix(add_hash(hash, s->name) + seed * GOLDEN);
    fill_of(s, &mean, &std);
    double unit = std / sqrt(4294967295.0 / 3);
    for (size_t i = 0; i < n; i++) {
        uint64_t z = mix(stream + (first + i + 1) * GOLDEN);
        int32_t m = (int32_t)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48)) - 131070;
        double v = m * unit;
        v += mean; /* a statement of its own: never fused with the product */
        out[i] = (float)v;
    }
    if (s->role == LW_ROLE_IDS)
        for (size_t i = 0; i < n; i++) out[i] = (float)(first + i);
}

/* ---- files */

typedef enum form { SAFETENSORS, TORCH, TORCH_WRAPPED, FOLDER } form;

enum {
    SD = 1 << LW_NET_UNET | 1 << LW_NET_VAE | 1 << LW_NET_CLIP,
    CONTROL = 1 << LW_NET_CONTROL,
    TABLES = 1 << LW_N_NETS /* what is of no network */
};

static const struct layout {
    const char *name;
    form form;
    int networks;
    bool bare;
} layouts[] = {{"ldm", SAFETENSORS, SD | CONTROL | TABLES, false},
               {"sd", SAFETENSORS, SD | TABLES, false},
               {"control", SAFETENSORS, CONTROL, false},
               {"control-bare", SAFETENSORS, CONTROL, true},
               {"combined-pth", TORCH, SD | CONTROL | TABLES, false},
               {"sd-pth", TORCH_WRAPPED, SD | TABLES, false},
               {"control-pth", TORCH, CONTROL, false},
               {"diffusers", FOLDER, SD | CONTROL, false}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

typedef struct maker {
    const lw_make_params *params;
    const lw_widths *widths;
    lw_arena *arena;
    lw_shape *shapes;
    size_t n;
    const struct layout *layout;
    const lw_shape **of; /* of each tensor of the file being written */
    const lw_save_tensor *tensors;
    uint64_t done, total;
} maker;

static bool is_in(const lw_shape *s, int networks) {
    return networks >> (s->network == LW_NET_NONE ? (int)LW_N_NETS : (int)s->network) & 1;
}

static lw_dtype dtype_of(const maker *m, const lw_shape *s) {
    if (s->role == LW_ROLE_IDS) return LW_I64;
    if (s->role == LW_ROLE_SCHEDULE) return LW_F32;
    return m->params->dtype == LW_PRECISION_FP16 ? LW_F16 : m->params->dtype == LW_PRECISION_BF16 ? LW_BF16 : LW_F32;
}

static lw_status load(void *user, size_t i, void *dst, lw_error *err) {
    maker *m = user;
    const lw_shape *s = m->of[i];
    lw_dtype dtype = m->tensors[i].dtype;
    float values[CHUNK];
    size_t n = 1, each = lw_dtype_bytes(dtype);
    for (int32_t d = 0; d < s->rank; d++) n *= (size_t)s->dims[d];
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t part = n - at < CHUNK ? n - at : CHUNK;
        if (s->role == LW_ROLE_SCHEDULE) fill_schedule(s->name, values);
        else fill(s, m->params->seed, at, part, values);
        lw_from_f32(dtype, values, (uint8_t *)dst + at * each, part);
    }
    m->done += n * each;
    if (m->params->progress && m->params->progress(m->params->user, m->done, m->total))
        return lw_fail(err, LW_ECANCEL, "cancelled while making a model");
    return LW_OK;
}

/* The name in the file; diffusers' attention of the VAE has matrices where LDM has 1x1 convolutions. NULL: no memory,
 * or none in this layout. */
static const char *spell(const maker *m, const lw_shape *s, const lw_geometry *g, int32_t *rank) {
    char name[LW_NAME_CAP], key[2 * LW_NAME_CAP];
    *rank = s->rank;
    if (m->layout->form == FOLDER) {
        if (s->role == LW_ROLE_IDS || !lw_name_to_diffusers(s->network, g, s->name, name)) return NULL;
        if (s->network == LW_NET_VAE && s->rank == 4 && lw_name_is_1x1(s->network, s->name)) *rank = 2;
        return lw_arena_strdup(m->arena, name);
    }
    bool bare = m->layout->bare || s->network == LW_NET_NONE;
    snprintf(key, sizeof key, "%s%s", bare ? "" : lw_network_prefix(s->network), s->name);
    return lw_arena_strdup(m->arena, key);
}

/* One file of the networks in the mask. */
static lw_status write_file(maker *m, const char *path, int networks, lw_error *err) {
    lw_field format[] = {{(char[]){"format"}, (char[]){"pt"}}};
    lw_save_tensor *tensors = lw_arena_alloc(m->arena, m->n, sizeof *tensors);
    m->of = lw_arena_alloc(m->arena, m->n, sizeof *m->of);
    if (!tensors || !m->of) return lw_fail(err, LW_ENOMEM, "%s: no memory to make it", path);
    lw_geometry geometry[LW_N_NETS] = {0};
    for (size_t i = 0; i < m->n; i++)
        if (m->shapes[i].network != LW_NET_NONE)
            lw_geometry_see(&geometry[m->shapes[i].network], m->shapes[i].network, LW_NAMING_LDM, m->shapes[i].name);
    lw_save save = {.tensors = tensors, .metadata = format, .n_metadata = 1, .load = load, .user = m};
    for (size_t i = 0; i < m->n; i++) {
        const lw_shape *s = &m->shapes[i];
        if (!is_in(s, networks) || (m->layout->form == FOLDER && s->role == LW_ROLE_IDS)) continue;
        lw_save_tensor *t = &tensors[save.n];
        t->name = spell(m, s, &geometry[s->network == LW_NET_NONE ? 0 : s->network], &t->rank);
        if (!t->name) return lw_fail(err, LW_ENOMEM, "%s: no memory for the name of %s", path, s->name);
        t->dtype = dtype_of(m, s);
        for (int32_t d = 0; d < t->rank; d++) t->dims[d] = s->dims[d];
        m->of[save.n++] = s;
    }
    m->tensors = tensors;
    if (m->layout->form == TORCH || m->layout->form == TORCH_WRAPPED)
        return lw_torch_write(path, &save, m->layout->form == TORCH_WRAPPED, err);
    return lw_safetensors_write(path, &save, err);
}

/* ---- the diffusers folder */

static const struct {
    const char *path;
    int networks; /* 0: text */
} members[] = {{"unet/diffusion_pytorch_model.safetensors", 1 << LW_NET_UNET},
               {"vae/diffusion_pytorch_model.safetensors", 1 << LW_NET_VAE},
               {"text_encoder/model.safetensors", 1 << LW_NET_CLIP},
               {"controlnet/diffusion_pytorch_model.safetensors", 1 << LW_NET_CONTROL},
               {"unet/config.json", 0},
               {"vae/config.json", 0},
               {"text_encoder/config.json", 0},
               {"controlnet/config.json", 0},
               {"scheduler/scheduler_config.json", 0},
               {"model_index.json", 0}};
static const char *const folders[] = {"unet", "vae", "text_encoder", "controlnet", "scheduler"};
enum { N_MEMBERS = sizeof members / sizeof *members, N_FOLDERS = sizeof folders / sizeof *folders };

static json_t *widths_json(int32_t width, const int32_t mult[4]) {
    return json_pack("[i,i,i,i]", width * mult[0], width * mult[1], width * mult[2], width * mult[3]);
}

static json_t *unet_json(const lw_widths *w, bool control) {
    json_t *j = json_pack("{s:s, s:i, s:i, s:o, s:i, s:i, s:i, s:s, s:f, s:b, s:i, s:i, s:i, s:[s,s,s,s]}",
                          "_class_name", control ? "ControlNetModel" : "UNet2DConditionModel", "in_channels", 4,
                          "layers_per_block", 2, "block_out_channels", widths_json(w->unet, w->unet_mult),
                          "attention_head_dim", 8, "cross_attention_dim", w->clip, "norm_num_groups", 32, "act_fn",
                          "silu", "norm_eps", 1e-5, "flip_sin_to_cos", 1, "freq_shift", 0, "downsample_padding", 1,
                          "mid_block_scale_factor", 1, "down_block_types", "CrossAttnDownBlock2D",
                          "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D");
    if (control) {
        json_object_set_new(j, "conditioning_embedding_out_channels",
                            json_pack("[i,i,i,i]", w->hint[0], w->hint[2], w->hint[4], w->hint[6]));
        json_object_set_new(j, "controlnet_conditioning_channel_order", json_string("rgb"));
    } else {
        json_object_set_new(j, "out_channels", json_integer(4));
        json_object_set_new(j, "sample_size", json_integer(64));
        json_object_set_new(
            j, "up_block_types",
            json_pack("[s,s,s,s]", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"));
    }
    return j;
}

static json_t *member_json(const char *path, const lw_widths *w) {
    if (!strcmp(path, "unet/config.json")) return unet_json(w, false);
    if (!strcmp(path, "controlnet/config.json")) return unet_json(w, true);
    if (!strcmp(path, "vae/config.json"))
        return json_pack("{s:s, s:i, s:i, s:i, s:i, s:o, s:i, s:f, s:s, s:i, s:[s,s,s,s], s:[s,s,s,s]}", "_class_name",
                         "AutoencoderKL", "in_channels", 3, "out_channels", 3, "latent_channels", 4, "layers_per_block",
                         2, "block_out_channels", widths_json(w->vae, w->vae_mult), "norm_num_groups", 32,
                         "scaling_factor", 0.18215, "act_fn", "silu", "sample_size", 512, "down_block_types",
                         "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D",
                         "up_block_types", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
                         "UpDecoderBlock2D");
    if (!strcmp(path, "text_encoder/config.json"))
        return json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f}", "architectures", "CLIPTextModel",
                         "model_type", "clip_text_model", "hidden_size", w->clip, "intermediate_size", 4 * w->clip,
                         "num_hidden_layers", w->clip_layers, "num_attention_heads", w->clip / 64,
                         "max_position_embeddings", LW_N_TOKENS, "vocab_size", w->tokens, "projection_dim", w->clip,
                         "hidden_act", "quick_gelu", "layer_norm_eps", 1e-5);
    if (!strcmp(path, "model_index.json"))
        return json_pack("{s:s, s:[s,s], s:[s,s], s:[s,s], s:[s,s], s:[s,s]}", "_class_name",
                         "StableDiffusionControlNetPipeline", "unet", "diffusers", "UNet2DConditionModel", "vae",
                         "diffusers", "AutoencoderKL", "text_encoder", "transformers", "CLIPTextModel", "controlnet",
                         "diffusers", "ControlNetModel", "scheduler", "diffusers", "DDIMScheduler");
    return json_pack("{s:s, s:s, s:f, s:f, s:i, s:b, s:b, s:i}", "_class_name", "DDIMScheduler", "beta_schedule",
                     "scaled_linear", "beta_start", 0.00085, "beta_end", 0.012, "num_train_timesteps", TIMESTEPS,
                     "clip_sample", 0, "set_alpha_to_one", 0, "steps_offset", 1);
}

static lw_status write_json(const char *path, json_t *json, lw_error *err) {
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(json);
    if (!text) return lw_fail(err, LW_ENOMEM, "%s: no memory to make it", path);
    lw_sink sink;
    lw_status status = lw_sink_open(&sink, path, err);
    if (status == LW_OK) status = lw_sink_close(&sink, lw_sink_put(&sink, text, strlen(text), err), err);
    free(text);
    return status;
}

/* Everything that write_members may have left. */
static void remove_members(const char *folder) {
    for (int i = 0; i < N_MEMBERS + N_FOLDERS; i++) {
        char *path = lw_format("%s/%s", folder, i < N_MEMBERS ? members[i].path : folders[i - N_MEMBERS]);
        if (path && i < N_MEMBERS) unlink(path);
        else if (path) rmdir(path);
        lw_free(path);
    }
    rmdir(folder);
}

static lw_status write_members(maker *m, const char *folder, lw_error *err) {
    for (int i = 0; i < N_FOLDERS + N_MEMBERS; i++) {
        int k = i - N_FOLDERS;
        char *path = lw_format("%s/%s", folder, k < 0 ? folders[i] : members[k].path);
        lw_status status = LW_OK;
        if (!path) return lw_fail(err, LW_ENOMEM, "%s: no memory to make it", folder);
        if (k < 0) status = mkdir(path, 0777) ? lw_fail(err, LW_EOUTPUT, "%s: can't be made", path) : LW_OK;
        else if (members[k].networks) status = write_file(m, path, members[k].networks, err);
        else status = write_json(path, member_json(members[k].path, m->widths), err);
        lw_free(path);
        LW_TRY(status);
    }
    return LW_OK;
}

/* As with a file: made beside its name, then renamed. */
static lw_status write_folder(maker *m, const char *path, lw_error *err) {
    struct stat st;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    if (stat(path, &st) == 0) return lw_fail(err, LW_EOUTPUT, "%s: is there already", path);
    char *beside = lw_format("%.*s.tmp-%ld", (int)n, path, (long)getpid());
    if (!beside) return lw_fail(err, LW_ENOMEM, "%s: no memory to make it", path);
    lw_status status = mkdir(beside, 0777) ? lw_fail(err, LW_EOUTPUT, "%s: can't be made", beside) : LW_OK;
    if (status == LW_OK) {
        status = write_members(m, beside, err);
        if (status == LW_OK && rename(beside, path) != 0)
            status = lw_fail(err, LW_EOUTPUT, "%s: can't be put in place", path);
        if (status != LW_OK) remove_members(beside);
    }
    lw_free(beside);
    return status;
}

/* ---- the call */

static lw_status find_layout(maker *m, lw_error *err) {
    const char *names[N_LAYOUTS], *layout = m->params->layout;
    char list[160] = "";
    for (int i = 0; i < N_LAYOUTS; i++) {
        names[i] = layouts[i].name;
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
        if (layout && !strcmp(layout, names[i])) m->layout = &layouts[i];
    }
    if (m->layout) return LW_OK;
    const char *near = layout ? lw_nearest(layout, names, N_LAYOUTS) : NULL;
    return lw_fail(err, LW_EINVAL, "layout \"%s\" is none of %s%s%s%s", layout ? layout : "", list,
                   near ? ": did you mean " : "", near ? near : "", near ? "?" : "");
}

lw_status lw_model_make(const char *path, const lw_make_params *params, lw_error *err) {
    lw_status status = LW_OK;
    if (params->size < sizeof *params)
        return lw_fail(err, LW_EINVAL, "make parameters have size %u, at least %zu is needed", params->size,
                       sizeof *params);
    if (!params->like || strcmp(params->like, "sd15") != 0)
        return lw_fail(err, LW_EINVAL, "like \"%s\": only sd15 can be made", params->like ? params->like : "");
    if ((unsigned)params->dtype > LW_PRECISION_BF16)
        return lw_fail(err, LW_EINVAL, "dtype %d is none of fp32, fp16, bf16", (int)params->dtype);
    maker m = {.params = params, .widths = params->small ? &lw_widths_small : &lw_widths_sd15};
    LW_TRY(find_layout(&m, err));
    m.arena = lw_arena_new();
    if (!m.arena) return lw_fail(err, LW_ENOMEM, "%s: no memory to make it", path);
    LW_GO(lw_shapes_make(m.widths, m.arena, &m.shapes, &m.n, err));
    for (size_t i = 0; i < m.n; i++) {
        uint64_t bytes = lw_dtype_bytes(dtype_of(&m, &m.shapes[i]));
        for (int32_t d = 0; d < m.shapes[i].rank; d++) bytes *= (uint64_t)m.shapes[i].dims[d];
        bool left_out = m.layout->form == FOLDER && m.shapes[i].role == LW_ROLE_IDS;
        if (is_in(&m.shapes[i], m.layout->networks) && !left_out) m.total += bytes;
    }
    status = m.layout->form == FOLDER ? write_folder(&m, path, err) : write_file(&m, path, m.layout->networks, err);
out:
    lw_arena_free(m.arena);
    return status;
}
