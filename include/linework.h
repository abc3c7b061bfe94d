/* SPDX-License-Identifier: MIT
 *
 * linework: Stable Diffusion 1.5 + ControlNet canny2image as a C library.
 *
 * The whole public interface. Rules that hold everywhere:
 *  - Every struct that may grow begins with `uint32_t size`; its *_init() fills it. A caller built against an older
 * header keeps working.
 *  - Every function that can fail returns lw_status (0 = LW_OK, else negative) and, where it takes `lw_error *err` (may
 * be NULL), leaves one sentence there that names the object and both values. On failure, outputs are left empty, never
 * half filled.
 *  - Ownership words: the callee *owns*, *borrows until X*, or *copies*.
 *  - The library never prints, exits, aborts or reads the environment. It keeps no globals.
 *  - Text is UTF-8. Pictures are 8 bit a channel, rows from the top, channels interleaved (RGB order).
 */
#ifndef LINEWORK_H
#define LINEWORK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(LW_STATIC) || !defined(__GNUC__)
#define LW_API
#else
#define LW_API __attribute__((visibility("default")))
#endif

#define LW_VERSION_MAJOR 0
#define LW_VERSION_MINOR 1
#define LW_VERSION_PATCH 0

/* ------------------------------------------------------------------ errors ---- */

typedef enum lw_status {
    LW_OK = 0,
    LW_EINVAL = -1,   /* an argument is out of its range, or two do not go together */
    LW_EMODEL = -2,   /* a model, vocabulary or weight file can't be used */
    LW_EINPUT = -3,   /* an input picture, latents file or text can't be used */
    LW_ENOMEM = -4,   /* memory: what was asked for and what there is are in the message */
    LW_EDEVICE = -5,  /* the device or its driver failed, or there is none */
    LW_EOUTPUT = -6,  /* an output can't be written */
    LW_ECANCEL = -7,  /* a cancel callback asked to stop */
    LW_EINTERNAL = -8 /* a promise inside the library was broken: a bug worth reporting */
} lw_status;

typedef struct lw_error {
    lw_status code;
    char message[1000]; /* one sentence, no newline, always terminated */
} lw_error;

/* A short fixed name: "LW_EINVAL". Never NULL. */
LW_API const char *lw_status_name(lw_status status);

/* "0.1.0". */
LW_API const char *lw_version(void);

/* One JSON object, {"version","compiler","cpu":[features used],"libraries":{name:version},"devices":[…]}. Free with
 * lw_free. NULL: no memory. */
LW_API char *lw_build_info(void);

/* Frees what this header says is freed with lw_free. NULL is fine. */
LW_API void lw_free(void *p);

/* ---------------------------------------------------------------- pictures ---- */

typedef struct lw_image {
    uint32_t size;         /* sizeof(lw_image) */
    int32_t width, height; /* pixels */
    int32_t channels;      /* 1 gray, 3 RGB, 4 RGBA */
    size_t stride;         /* bytes from a row to the next, >= width * channels */
    uint8_t *data;         /* height rows; owned by the library when a function below filled it */
} lw_image;

typedef struct lw_field {
    char *key, *value; /* UTF-8 */
} lw_field;

/* A picture's text fields, in file order. */
typedef struct lw_fields {
    uint32_t size;
    uint32_t n;
    lw_field *items;
} lw_fields;

/* Decodes PNG, JPEG (EXIF orientation applied), WebP or PPM/PGM, whichever of them this build has. `name` stands in
 * messages. 16-bit samples are cut to their high byte, palettes expanded, tRNS becomes alpha. Limits: 64 Mpx, checked
 * before allocation. `fields` may be NULL. LW_EINPUT: not a picture, damaged, over the limit, CMYK or animated. Free
 * with lw_image_free and lw_fields_free. */
LW_API lw_status lw_image_decode(const void *bytes, size_t n_bytes, const char *name, lw_image *out, lw_fields *fields,
                                 lw_error *err);

/* lw_image_decode of a file. */
LW_API lw_status lw_image_read(const char *path, lw_image *out, lw_fields *fields, lw_error *err);

/* Encodes as "png", "jpeg", "webp" (lossless) or "ppm". Text fields are stored in PNG only (tEXt, or iTXt if not
 * Latin-1). The same picture and fields give the same bytes. *bytes is freed with lw_free. */
LW_API lw_status lw_image_encode(const lw_image *image, const char *format, const lw_fields *fields, void **bytes,
                                 size_t *n_bytes, lw_error *err);

/* Encodes by the extension of path (png, jpg, jpeg, webp, ppm, pgm; none of these is LW_EINVAL) into a temporary file
 * beside it that is renamed when whole. A path that is a device or a FIFO is written directly. LW_EOUTPUT on failure,
 * and nothing half-written stays. */
LW_API lw_status lw_image_write(const lw_image *image, const char *path, const lw_fields *fields, lw_error *err);

/* Writes n_bytes to path with the same rules as lw_image_write. */
LW_API lw_status lw_file_write(const char *path, const void *bytes, size_t n_bytes, lw_error *err);

LW_API void lw_image_free(lw_image *image); /* frees data, zeroes the struct; NULL and empty are fine */
LW_API void lw_fields_free(lw_fields *fields);

/* ControlNet's HWC3: gray is replicated, RGBA is laid over white (float, truncated). */
LW_API lw_status lw_image_to_rgb(const lw_image *in, lw_image *out, lw_error *err);

/* ControlNet's resize_image: the short side becomes short_side, both sides rounded (half to even) to 64; Lanczos-4 when
 * growing, area else. */
LW_API lw_status lw_image_resize(const lw_image *in, int32_t short_side, lw_image *out, lw_error *err);

/* The size that lw_image_resize gives for a width x height picture. LW_EINPUT if a side rounds to 0 or to more than
 * 8192. */
LW_API lw_status lw_resize_target(int32_t width, int32_t height, int32_t short_side, int32_t *out_width,
                                  int32_t *out_height, lw_error *err);

/* To an exact size, with the rule of lw_image_resize for the filter (Lanczos-4 where the short side grows). */
LW_API lw_status lw_image_resize_to(const lw_image *in, int32_t width, int32_t height, lw_image *out, lw_error *err);

/* cv2.Canny(in, low, high), aperture 3, L1 gradient: bit-equal to OpenCV. in: 1 or 3 channels; out: 1 channel, 0 or
 * 255. */
LW_API lw_status lw_canny(const lw_image *in, double low, double high, lw_image *out, lw_error *err);

/* --------------------------------------------------------------- tokenizer ---- */

typedef struct lw_tokenizer lw_tokenizer;

#define LW_N_TOKENS 77

/* Opens merges.txt or bpe_simple_vocab_16e6.txt.gz. n_vocab: rows of the model's token embedding, or 0 for "whatever
 * the file holds" (at most 48,894 merges). LW_EMODEL: unreadable, malformed, or fewer merges than n_vocab needs. Safe
 * to share between threads. */
LW_API lw_status lw_tokenizer_open(lw_tokenizer **out, const char *path, int32_t n_vocab, lw_error *err);
LW_API void lw_tokenizer_close(lw_tokenizer **tokenizer);

/* CLIP's byte-level BPE: ids[77] = start, tokens, end, padded with end. *cut (may be NULL) is the part of the text that
 * did not fit, freed with lw_free, or NULL. LW_EINPUT: text is not UTF-8. */
LW_API lw_status lw_tokenize(const lw_tokenizer *tokenizer, const char *text, int32_t ids[LW_N_TOKENS], char **cut,
                             lw_error *err);

/* ------------------------------------------------------------------ engine ---- */

typedef struct lw_engine lw_engine;   /* a device, a model and its packed weights; shared by threads */
typedef struct lw_session lw_session; /* one job at a time: plans, activations, stream; used by one thread at a time */

typedef enum lw_device { LW_DEVICE_AUTO = 0, LW_DEVICE_CPU = 1, LW_DEVICE_CUDA = 2 } lw_device;
typedef enum lw_precision {
    LW_PRECISION_AUTO = 0,
    LW_PRECISION_FP32 = 1,
    LW_PRECISION_FP16 = 2,
    LW_PRECISION_BF16 = 3
} lw_precision;
typedef enum lw_sampler {
    LW_SAMPLER_DDIM = 0,
    LW_SAMPLER_EULER,
    LW_SAMPLER_EULER_A,
    LW_SAMPLER_DPMPP_2M,
    LW_SAMPLER_UNIPC,
    LW_SAMPLER_LCM
} lw_sampler;
typedef enum lw_scheduler { LW_SCHEDULER_REFERENCE = 0, LW_SCHEDULER_DISCRETE, LW_SCHEDULER_KARRAS } lw_scheduler;
typedef enum lw_rng { LW_RNG_CUDA = 0, LW_RNG_CPU = 1 } lw_rng;
typedef enum lw_control_mode { LW_CONTROL_BALANCED = 0, LW_CONTROL_PROMPT, LW_CONTROL_CONTROL } lw_control_mode;

/* Lowest level first; text has no newline. Called from the thread that called the library. */
typedef enum lw_log_level { LW_LOG_NOTE = 0, LW_LOG_WARNING = 1 } lw_log_level;
typedef void (*lw_log_fn)(void *user, lw_log_level level, const char *text);

typedef struct lw_engine_params {
    uint32_t size;
    const char *model;               /* file or folder; required */
    const char *const *control_nets; /* replaces the model's own; may be NULL */
    uint32_t n_control_nets;
    const char *vae; /* replaces the model's own; may be NULL */
    const char
        *vocab; /* merges file; NULL: the folder's own, or merges.txt beside a model file of its size, or the cache */
    const char *cache_dir; /* folder for vocabulary, tuning and hashes; NULL: none is read or written */
    lw_device device;
    int32_t device_index;
    lw_precision precision; /* AUTO: fp16 on CUDA, fp32 on a CPU; BF16 too where the CPU has avx512_bf16 */
    int32_t threads;        /* CPU threads; 0: as many as the machine has */
    uint64_t max_memory;    /* bytes; 0: no limit of our own */
    lw_log_fn log;          /* may be NULL */
    void *user;
} lw_engine_params;

LW_API void lw_engine_params_init(lw_engine_params *params);

/* Opens and checks the model's files (their headers; weights are read when a session packs them). Copies params. */
LW_API lw_status lw_engine_open(lw_engine **out, const lw_engine_params *params, lw_error *err);
/* Frees the engine when its last session is closed too. Nulls *engine. */
LW_API void lw_engine_close(lw_engine **engine);

typedef struct lw_engine_info {
    uint32_t size;
    const char *name;         /* the model's name; all strings are borrowed until the engine is closed */
    const char *added_prompt; /* the model's default for lw_request.added_prompt */
    const char *negative_prompt;
    int32_t resolution;     /* default short side */
    int32_t size_multiple;  /* sides must be multiples of this: 8 * 2^(levels-1) */
    int32_t n_control_nets; /* 0: the model has no ControlNet */
    lw_device device;
    lw_precision precision;
    const char *device_name;  /* "CPU (oneDNN 2.6.3, avx512_vnni), 2 threads" */
    const char *tactics_hash; /* names the tactic choices in effect */
} lw_engine_info;

LW_API lw_status lw_engine_get_info(const lw_engine *engine, lw_engine_info *info, lw_error *err);

/* The tokenizer of the engine's text encoder; borrowed until the engine is closed. */
LW_API const lw_tokenizer *lw_engine_tokenizer(const lw_engine *engine);

/* done of total bytes are read or written. Non-zero return cancels: the call returns LW_ECANCEL and leaves nothing. */
typedef int (*lw_bytes_fn)(void *user, uint64_t done, uint64_t total);

/* The SHA-256 of n_bytes as 64 hex digits, as lw_infotext_extra has it; "" in a build without libmd. */
LW_API lw_status lw_sha256(const void *bytes, size_t n_bytes, char out[65], lw_error *err);

/* The same of a file. With a cache_dir (NULL: none) it is remembered there in hashes.json, by path, size and time of
 * change. "" and LW_OK where it is unknown: not remembered and larger than max_bytes (0: no limit), or not a file but a
 * folder. LW_EMODEL: it can't be read. */
LW_API lw_status lw_file_sha256(const char *path, const char *cache_dir, uint64_t max_bytes, lw_bytes_fn progress,
                                void *user, char out[65], lw_error *err);

/* What a model file or folder is, as one JSON object (layout, networks, tensors, dtypes, bytes, metadata), read from
 * its headers alone. *json is freed with lw_free. LW_EMODEL: not a model, or it holds no known network. */
LW_API lw_status lw_model_info(const char *path, char **json, lw_error *err);

/* ------------------------------------------------------------- model files ---- */

typedef struct lw_make_params {
    uint32_t size;
    const char *like;   /* whose shapes: "sd15", with ControlNet */
    const char *layout; /* "ldm": one safetensors file of all networks; "sd" and "control": one without the ControlNet,
                           and the ControlNet alone; "control-bare": its keys without prefix; "combined-pth", "sd-pth",
                           "control-pth": the same as torch.save writes them; "diffusers": a folder */
    lw_precision dtype; /* AUTO: fp32 */
    uint64_t seed;
    int32_t small; /* non-zero: the same networks with narrow layers, for tests */
    lw_bytes_fn progress;
    void *user;
} lw_make_params;

LW_API void lw_make_params_init(lw_make_params *params); /* sd15, ldm, fp32, seed 1 */

/* Writes a model of random weights, a tensor at a time. A seed's values are the same in every layout and on every
 * machine (docs/model-files.md says how they are made). LW_EOUTPUT; nothing half-written stays. A folder must not be
 * there before. */
LW_API lw_status lw_model_make(const char *path, const lw_make_params *params, lw_error *err);

typedef struct lw_convert_params {
    uint32_t size;
    lw_precision dtype;    /* of the real tensors; AUTO: as they are (float64 becomes float32) */
    const char *base;      /* with community: ControlNet's transfer, w = control + (community - base) for each of the */
    const char *community; /* ControlNet's tensors with a twin in the UNet; UNet, VAE and CLIP become community's */
    lw_bytes_fn progress;
    void *user;
} lw_convert_params;

LW_API void lw_convert_params_init(lw_convert_params *params);

/* Writes the model at path, of any layout that opens, as safetensors in the LDM naming, a tensor at a time; metadata is
 * kept, tensors of no network are left out. LW_EMODEL: NaN or infinity too, also where dtype is too narrow; LW_EINVAL:
 * out is one of the files read. */
LW_API lw_status lw_model_convert(const char *path, const char *out, const lw_convert_params *params, lw_error *err);

typedef struct lw_doctor_params {
    uint32_t size;
    const char *const *control_nets; /* to be used with it; may be NULL */
    uint32_t n_control_nets;
    const char *vae;       /* may be NULL */
    const char *cache_dir; /* as lw_engine_params.cache_dir */
    lw_bytes_fn progress;
    void *user;
} lw_doctor_params;

LW_API void lw_doctor_params_init(lw_doctor_params *params);

/* Checks a model's files as far as that goes without a job, every value of them read. *json becomes one object:
 *   "path", "layout", "file_bytes", "networks", "metadata" and so on: as lw_model_info
 *   "release": what it is or looks like; "usable": whether it can be used; "use": what for
 *   "problems", "remarks": sentences; a file with a problem is not usable
 *   "missing": canonical names; "extra", "unused": keys of the file; "misshaped", "damaged" (NaN, infinity): sentences
 *   "memory_bytes": {"cpu fp32": {"512x512": {"device", "host"}, "384x256": ...}}, for each device that there is
 * What could not be found out is left out. LW_OK also where the file can't be used. *json is freed with lw_free. */
LW_API lw_status lw_model_doctor(const char *path, const lw_doctor_params *params, char **json, lw_error *err);

/* ----------------------------------------------------------------- request ---- */

typedef struct lw_control {
    uint32_t size;       /* sizeof(lw_control); also the stride of an array of them */
    const lw_image *map; /* a ready edge map, white on black; NULL: the edges of lw_request.image */
    double strength;     /* 0..2 */
    double start, end;   /* step i of n uses it when i/n >= start and (i+1)/n <= end */
} lw_control;

/* Strength 1 over all steps, no map. */
LW_API void lw_control_init(lw_control *control);

typedef enum lw_stage {
    LW_STAGE_LOAD = 0,
    LW_STAGE_CANNY,
    LW_STAGE_TEXT,
    LW_STAGE_HINT,
    LW_STAGE_STEPS,
    LW_STAGE_DECODE,
    LW_STAGE_DONE
} lw_stage;

/* step of n_steps are done (both 0 outside LW_STAGE_STEPS). Non-zero return cancels: generate returns LW_ECANCEL within
 * one step. */
typedef int (*lw_progress_fn)(void *user, lw_stage stage, int32_t step, int32_t n_steps);
/* A coarse picture of the latents after a step (1/8 size, RGB); borrowed until it returns. */
typedef void (*lw_preview_fn)(void *user, int32_t step, const lw_image *preview);

typedef struct lw_request {
    uint32_t size;
    const lw_image *image; /* picture whose edges guide; NULL where every control has a map */
    const char *prompt;
    const char *added_prompt;     /* NULL: the model's; joined "prompt, added" even where one is empty */
    const char *negative_prompt;  /* NULL: the model's */
    int32_t resolution;           /* short side; 0: the maps' own size, which must be one, or else the model's */
    int32_t width, height;        /* exact size instead; 0: by resolution */
    int32_t samples;              /* 1..12, one true batch */
    int32_t steps;                /* 1..1000 */
    double cfg_scale;             /* 0..100; 1 runs one pass */
    double eta;                   /* 0..1, DDIM only */
    int64_t seed;                 /* -1: one of 0..65535 is drawn; else 0..4294967295 */
    double canny_low, canny_high; /* 0..10000 */
    lw_control_mode control_mode;
    lw_sampler sampler;
    lw_scheduler scheduler;
    lw_rng rng;
    const lw_control *controls; /* one for each of the engine's ControlNets; NULL: one of strength 1 on image's edges */
    uint32_t n_controls;
    const float *init_latents; /* [samples,4,h/8,w/8] instead of the first draw (which is still made); NULL: drawn */
    int32_t want_latents;      /* non-zero: result.latents is filled */
    int32_t clip_skip;         /* 0..12. 0 or 1: last layer; k: the k-th from the end, under the last layer's norm */
    const char *reuse_steps;   /* "9,11-13": those of the steps, 1 the first, take the last step's guided eps again and run no
                                  network; faster, and another picture. Never step 1. NULL or empty: none */
    lw_progress_fn progress;   /* may be NULL */
    lw_preview_fn preview;     /* may be NULL */
    void *user;
} lw_request;

/* The reference app's defaults: 20 steps, cfg 9, eta 0, Canny 100/200, DDIM, reference spacing, CUDA noise, seed -1, 1
 * sample. */
LW_API void lw_request_init(lw_request *request);

typedef struct lw_plan_info {
    uint32_t size;
    int32_t width, height; /* of the pictures */
    int32_t steps;         /* that will run; differs from the request's where the reference's spacing does */
    uint64_t weights_bytes, activations_bytes, tables_bytes, total_bytes; /* on the device of the engine */
    uint64_t host_bytes;                                                  /* beside that, in host memory */
    double gflop;                                                         /* arithmetic of the whole job */
} lw_plan_info;

/* Checks a request and plans it: sizes, steps and memory before anything of it is allocated. Errors as
 * lw_session_generate. */
LW_API lw_status lw_estimate(lw_engine *engine, const lw_request *request, lw_plan_info *info, lw_error *err);

/* ------------------------------------------------------------------ tuning ---- */

/* One op that several tactics can run, as it was timed. Texts are borrowed until the callback returns. */
typedef struct lw_tuned {
    uint32_t size;
    const char *op;     /* "conv2d 2x32x48x320 -> 320, 3x3" */
    const char *tactic; /* what was chosen, and microseconds of one run */
    double us;
    const char *heuristic; /* what is taken without tuning */
    double heuristic_us;
    int32_t uses;     /* times that such an op stands in the job's programs; 0: only in launches of several like it */
    int32_t index, n; /* done so far with this one, of all */
} lw_tuned;

/* Non-zero return cancels: lw_engine_tune returns LW_ECANCEL. */
typedef int (*lw_tuned_fn)(void *user, const lw_tuned *tuned);

/* Times, for every op of the request's job that can be run in several ways, each of them, and keeps the fastest: for
 * all jobs that this engine plans from now on, and in the cache folder's tactics-DEVICE.json (where there is a folder)
 * for engines opened later with the same device, libraries, thread count and version. A chosen tactic may take more
 * memory; with max_memory, jobs that do not fit with the choices go without them. No job ever tunes by itself. One that
 * is cancelled changes neither the engine nor the file. tuned may be NULL. Errors as lw_estimate, and
 * LW_EOUTPUT. */
LW_API lw_status lw_engine_tune(lw_engine *engine, const lw_request *request, lw_tuned_fn tuned, void *user,
                                lw_error *err);

/* ------------------------------------------------------------------ result ---- */

typedef struct lw_result {
    uint32_t size;
    uint32_t n_images;
    lw_image *images; /* RGB */
    lw_image control; /* the edge map used by control 0, 1 channel; empty where there is none */
    float *latents;   /* [n,4,h/8,w/8] before decoding, or NULL */
    int32_t width, height, steps;
    int64_t seed; /* the one used */
    double load_ms, canny_ms, text_ms, hint_ms, decode_ms, total_ms;
    double *step_ms; /* steps of them */
    uint64_t peak_host_bytes, peak_device_bytes;
    char *cut; /* what was cut of the prompts, or NULL */
} lw_result;

LW_API void lw_result_free(lw_result *result);

LW_API lw_status lw_session_open(lw_session **out, lw_engine *engine, lw_error *err);
LW_API void lw_session_close(lw_session **session);

/* Runs one job. Plans and buffers are kept for the next request of the same shape; another shape replaces them. After
 * any failure the session can be used again, but after LW_EDEVICE, which closes it for work. *result is freed with
 * lw_result_free. LW_EINVAL: a value out of range; LW_EINPUT: picture or text; LW_EMODEL: NaN or infinity came out of
 * the networks; LW_ECANCEL. */
LW_API lw_status lw_session_generate(lw_session *session, const lw_request *request, lw_result *result, lw_error *err);

/* The number of steps that the reference's spacing runs for a request of `steps`. LW_EINVAL where the reference itself
 * fails, naming the nearest that work. */
LW_API lw_status lw_reference_steps(int32_t steps, int32_t *actual, lw_error *err);

/* ------------------------------------------------------- a picture's text ---- */

/* What a picture's text says beside the request and the engine; only the caller knows it. No path is ever stored. */
typedef struct lw_infotext_extra {
    uint32_t size;
    int32_t index;                     /* which of the request's samples, from 0 */
    const char *model_hash;            /* SHA-256 of the model file, hex; NULL: unknown */
    const char *vae;                   /* names of files that replace the model's own; NULL: none does */
    const char *const *control_nets;   /* one for each control; NULL: the model's own */
    const char *image_sha256;          /* of the input picture's file; NULL: none or unknown */
    const char *const *control_sha256; /* of each control's map; NULL: none; entries may be NULL */
    const char *init_latents_sha256;   /* NULL: the seed's own noise was used */
} lw_infotext_extra;

LW_API void lw_infotext_extra_init(lw_infotext_extra *extra);

/* Makes the two text fields of a picture: "parameters" in A1111's form and "linework", a JSON object of every
 * parameter. result: seed and size of what was made; request: as it was given. extra may be NULL. Free *fields with
 * lw_fields_free. */
LW_API lw_status lw_infotext_make(const lw_engine_info *engine, const lw_request *request, const lw_result *result,
                                  const lw_infotext_extra *extra, lw_fields *fields, lw_error *err);

typedef struct lw_infotext {
    uint32_t size;                     /* the caller's sizeof(lw_infotext) */
    void *storage;                     /* the library's */
    lw_request *request;               /* ready to run but for its picture; everything here is owned by the struct */
    uint32_t n_controls;               /* of the names and hashes, as in the request */
    const char *const *control_nets;   /* a name or NULL (the model's own) each */
    const char *const *control_sha256; /* a hash or NULL (edges of the picture) each */
    const char *model, *model_hash;    /* here and below NULL: not said */
    const char *vae;
    const char *image_sha256, *init_latents_sha256;
    const char *device, *precision; /* "cpu", "fp32" */
    const char *tactics_hash;
    const char *version;   /* "linework 0.1.0" */
    int32_t width, height; /* of the picture; 0: not said */
    int32_t index;
    int32_t foreign;     /* non-zero: read from "parameters", whose prompt is split at its last ", " */
    const char *remarks; /* a line for everything that could not be taken up; "" */
} lw_infotext;

/* Reads a picture's parameters: "linework" if it is there, else "parameters", of linework or of any program that
 * writes A1111's form. What the second does not say keeps lw_request_init's value. LW_EINPUT: there is neither, or
 * "linework" is damaged or holds a value out of its range. Free with lw_infotext_free. */
LW_API lw_status lw_infotext_read(const lw_fields *fields, lw_infotext *out, lw_error *err);
LW_API void lw_infotext_free(lw_infotext *infotext);

/* ------------------------------------------------------------- names ---- */

/* The command's spellings ("dpm++2m", "karras", "cuda", "balanced", …) to values and back. LW_EINVAL names the nearest;
 * NULL for no such value. */
LW_API lw_status lw_sampler_from_name(const char *name, lw_sampler *out, lw_error *err);
LW_API lw_status lw_scheduler_from_name(const char *name, lw_scheduler *out, lw_error *err);
LW_API lw_status lw_rng_from_name(const char *name, lw_rng *out, lw_error *err);
LW_API lw_status lw_control_mode_from_name(const char *name, lw_control_mode *out, lw_error *err);
LW_API lw_status lw_precision_from_name(const char *name, lw_precision *out, lw_error *err);
LW_API const char *lw_sampler_name(lw_sampler v);
LW_API const char *lw_scheduler_name(lw_scheduler v);
LW_API const char *lw_rng_name(lw_rng v);
LW_API const char *lw_control_mode_name(lw_control_mode v);
LW_API const char *lw_precision_name(lw_precision v);
LW_API const char *lw_device_name(lw_device v); /* "auto", "cpu", "cuda" */

#ifdef __cplusplus
}
#endif
#endif
