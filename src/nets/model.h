/* SPDX-License-Identifier: MIT
 * nets: the networks, each written once as straight-line recordings over ops. Every width, depth and presence of a
 * block is read off the tensors; what shapes can't say comes from the file's metadata. Knows weights and ops; must not
 * know backends, requests or samplers. */
#ifndef LW_MODEL_H
#define LW_MODEL_H

#include "ops/backend.h"
#include "weights/weights.h"

enum { LW_MAX_BLOCKS = 64, LW_MAX_CONTROLS = 8, LW_MAX_LEVELS = 8 };

/* What checkpoint shapes can't say: the metadata key `linework` (docs/model-files.md), SD1.5's values as defaults. */
typedef struct lw_model_config {
    int32_t unet_heads, norm_groups, clip_heads, resolution;
    bool clip_gelu; /* else quick_gelu */
    double scale_factor;
    char *added_prompt, *negative_prompt, *name;
    double latent_rgb[15]; /* rgb = M[3][4] . z + b[3], in 0..1 */
} lw_model_config;

/* One block of a UNet or ControlNet as its tensors show it. */
typedef struct lw_block {
    char name[32]; /* "input_blocks.4" */
    bool res, down, transformer, up;
    int32_t c_in, c_out; /* of the ResBlock (or of the conv) */
    int32_t up_index;    /* output_blocks.j.up_index.conv */
    int32_t addend;      /* first channel of its time addend */
    int32_t kv;          /* channels of k and v of the blocks before it */
} lw_block;

typedef struct lw_unet_layout {
    char prefix[16]; /* "unet.", "control.", "control1." … */
    int32_t width;   /* model_channels */
    int32_t context; /* width of the text features, as the middle block's cross-attention takes them */
    int32_t n_in, n_out;
    lw_block in[LW_MAX_BLOCKS], mid[3], out[LW_MAX_BLOCKS];
    int32_t n_levels;
    int32_t n_addends, n_kv; /* channels in all */
} lw_unet_layout;

typedef struct lw_model {
    lw_weights *base, *vae, *controls[LW_MAX_CONTROLS]; /* vae and controls[i] NULL: they are in base; owned */
    int32_t n_controls;
    lw_model_config config;
    lw_unet_layout unet, control[LW_MAX_CONTROLS];
    int32_t n_tokens, text_width, n_text_layers;
    int32_t vae_levels;
} lw_model;

/* Opens the files and reads the layout. control_nets replaces the model's own. LW_EMODEL: a file can't be used, a
 * network is missing or has parts that are not a network of this family. */
lw_status lw_model_open(lw_model *out, const char *path, const char *const *control_nets, int32_t n_control_nets,
                        const char *vae, lw_error *err);
/* Reads only the UNet's layout of an open base file; for tests of a UNet by itself. */
lw_status lw_model_read_unet(lw_model *model, lw_error *err);
void lw_model_close(lw_model *model);
lw_tensor_source lw_model_source(lw_model *model); /* borrows model */
bool lw_model_has(const lw_model *model, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* any tensor whose name begins so */

/* Records every program once at a small size, which checks every tensor's presence and shape, then that no network has
 * a tensor that nothing used. */
lw_status lw_model_check(lw_model *model, lw_params *params, lw_error *err);

/* ---- programs. g: guidance passes (1 or 2), n: samples, h and w: of the latents */

/* Both of the next two. */
void lw_record_text(lw_program *p, const lw_model *model, int32_t g, int32_t n_controls, int32_t clip_skip);
/* CLIP: "ids" [g,1,1,77] -> "context" [g,1,1,77,text_width] */
void lw_record_clip(lw_program *p, const lw_model *model, int32_t g, int32_t clip_skip);
/* "context" -> "<prefix>kv" of the UNet and of the first n_controls ControlNets: k and v of each of its blocks,
 * [g,1,1,77,2*c_out], behind each other */
void lw_record_kv(lw_program *p, const lw_model *model, int32_t g, int32_t n_controls);
/* "edges<k>" u8 [1,1,8h,8w,3] -> "hint<k>" */
void lw_record_hint(lw_program *p, const lw_model *model, int32_t k, int32_t h, int32_t w);
/* `from` f32 [rows] timesteps -> `to` [rows, sum of the layouts' n_addends]: UNet first, then the ControlNets. */
void lw_record_time(lw_program *p, const lw_model *model, int32_t n_controls, int32_t rows, const char *from,
                    const char *to);
/* One evaluation and its update. controls: bit k = ControlNet k takes part. */
typedef struct lw_step_shape {
    int32_t g, n, h, w, n_controls, rows, n_noise;
    uint32_t controls;
} lw_step_shape;
void lw_record_step(lw_program *p, const lw_model *model, const lw_step_shape *shape);
/* Only the advance op: the one before the first step, or one that reads "eps" [g,n,h,w,8]. */
void lw_record_advance(lw_program *p, const lw_model *model, const lw_step_shape *shape, bool first);
/* "x" f32 [n,h,w,8] -> "image" u8 [n,8h,8w,3] */
void lw_record_decode(lw_program *p, const lw_model *model, int32_t n, int32_t h, int32_t w);

int32_t lw_model_addends(const lw_model *model, int32_t n_controls);
/* Floats in a row of the scale table, and where the scale of control k, tap i, guidance g stands in it. */
int32_t lw_scales_row(int32_t n_controls, int32_t g);
int32_t lw_scale_at(int32_t k, int32_t tap, int32_t guidance, int32_t g);
enum { LW_MAX_TAPS = 64 }; /* taps of a ControlNet: its input blocks and the middle one */

#endif
