/* SPDX-License-Identifier: MIT
 * The report grows from what needs least to what needs most: headers, shapes, every value, the networks' own check, a
 * plan. Each step that fails is a sentence in it; only memory, and the caller's cancelling, end it. */
#include "pipe/doctor.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

void lw_doctor_params_init(lw_doctor_params *params) { *params = (lw_doctor_params){.size = sizeof *params}; }

typedef struct doctor {
    const char *path;
    const lw_doctor_params *params;
    lw_open_fn open;
    json_t *report, *problems, *remarks;
    bool unet, control, vae, clip; /* networks that are in the file */
    bool opened;                   /* the headers could be read */
    bool failed;                   /* a sentence had no memory: the report would be wrong */
} doctor;

static void say(doctor *d, json_t *list, const char *text) {
    json_t *line = json_string(text);
    if (!line) line = json_string("(a sentence with a name that is not UTF-8)");
    if (json_array_append_new(list, line) != 0) d->failed = true;
}

/* What a step says is a problem of the file, but where this process is to blame. */
static lw_status blame(doctor *d, lw_status status, const lw_error *why, lw_error *err) {
    if (status == LW_ENOMEM || status == LW_ECANCEL) return lw_fail(err, status, "%s", why->message);
    say(d, d->problems, why->message);
    return LW_OK;
}

static size_t count(const doctor *d, const char *key) { return json_array_size(json_object_get(d->report, key)); }

static bool has(const doctor *d, const char *network) {
    return json_object_get(json_object_get(d->report, "networks"), network) != NULL;
}

/* What lw_model_info says, and the name of another family. */
static lw_status read_headers(doctor *d, lw_error *err) {
    const char *name = NULL, *advice;
    char *text = NULL, line[600];
    lw_error why;
    lw_status status = lw_weights_other_release(d->path, &name, &advice, &why);
    if (status == LW_ENOMEM) return blame(d, status, &why, err);
    if (name) { /* the first problem: what else is wrong follows from it */
        snprintf(line, sizeof line, "it is of %s, which linework does not have: %s", name, advice);
        say(d, d->problems, line);
        json_object_set_new(d->report, "release", json_string(name));
    }
    status = lw_weights_describe(d->path, &text, &why);
    if (status != LW_OK) return blame(d, status, &why, err);
    json_t *info = json_loads(text, 0, NULL);
    if (json_object_update(d->report, info) != 0) d->failed = true;
    json_decref(info);
    lw_free(text);
    d->opened = true;
    d->unet = has(d, "unet");
    d->control = has(d, "control");
    d->vae = has(d, "vae");
    d->clip = has(d, "clip");
    return LW_OK;
}

static void sum_up(doctor *d, const char *key, const char *what, bool harmless) {
    char line[600];
    size_t n = count(d, key);
    if (n == 0) return;
    const char *first = json_string_value(json_array_get(json_object_get(d->report, key), 0));
    snprintf(line, sizeof line, "%zu tensor%s %s: %s%s", n, n == 1 ? "" : "s", what, first ? first : "?",
             n > 1 ? ", ..." : "");
    say(d, harmless ? d->remarks : d->problems, line);
}

static lw_status audit(doctor *d, lw_error *err) {
    lw_weights *w;
    lw_error why;
    lw_status status = lw_weights_open(&w, d->path, &why);
    if (status != LW_OK) return blame(d, status, &why, err);
    status = lw_weights_audit_shapes(w, d->report, &why);
    if (status == LW_OK) status = lw_weights_audit_values(w, d->params->progress, d->params->user, d->report, &why);
    lw_weights_close(&w);
    if (status != LW_OK) return blame(d, status, &why, err);
    sum_up(d, "missing", "missing", false);
    sum_up(d, "extra", "of no block that there is", false);
    sum_up(d, "misshaped", "of another shape", false);
    sum_up(d, "damaged", "damaged", false);
    sum_up(d, "unused", "that nothing needs", true);
    return LW_OK;
}

static void name_release(doctor *d) {
    enum { OTHER, SD15, SMALL };
    int is[3];
    static const char *const networks[] = {"unet", "control", "vae"};
    for (int i = 0; i < 3; i++) {
        const char *widths = json_string_value(json_object_get(json_object_get(d->report, "widths"), networks[i]));
        is[i] = !widths ? OTHER : !strcmp(widths, "sd15") ? SD15 : SMALL;
    }
    const char *name = NULL;
    if (is[0] == SD15 && is[1] == SD15)
        name = "Stable Diffusion 1.x with a ControlNet 1.0 or 1.1 (as control_sd15_canny.pth)";
    else if (is[0] == SD15) name = "Stable Diffusion 1.x (as v1-5-pruned-emaonly.safetensors)";
    else if (is[0] == SMALL || is[1] == SMALL) name = "a small random model of make-model";
    else if (d->unet) return;
    else if (is[1] == SD15) name = "a ControlNet 1.0 or 1.1 for Stable Diffusion 1.x (as control_v11p_sd15_canny.pth)";
    else if (is[2] == SD15) name = "a VAE of Stable Diffusion 1.x (as vae-ft-mse-840000-ema-pruned.safetensors)";
    if (name && !json_object_get(d->report, "release")) json_object_set_new(d->report, "release", json_string(name));
}

/* Memory of a job of one picture at two sizes. */
static void plan(doctor *d, lw_engine *engine, const char *device) {
    static const int32_t sizes[][2] = {{512, 512}, {384, 256}};
    uint8_t black = 0;
    lw_image picture = {.size = sizeof picture, .width = 1, .height = 1, .channels = 1, .stride = 1, .data = &black};
    json_t *memory = json_object_get(d->report, "memory_bytes"), *of = json_object();
    lw_error why = {0};
    char text[1200];
    for (int i = 0; i < 2; i++) {
        lw_request request;
        lw_plan_info info = {.size = sizeof info};
        lw_request_init(&request);
        request.image = &picture;
        request.prompt = "";
        request.width = sizes[i][0];
        request.height = sizes[i][1];
        if (lw_estimate(engine, &request, &info, &why) != LW_OK) continue;
        snprintf(text, sizeof text, "%dx%d", sizes[i][0], sizes[i][1]);
        json_object_set_new(
            of, text,
            json_pack("{s:I, s:I}", "device", (json_int_t)info.total_bytes, "host", (json_int_t)info.host_bytes));
    }
    if (json_object_size(of) > 0) {
        json_object_set(memory, device, of);
    } else {
        snprintf(text, sizeof text, "%s: no job can be planned: %s", device, why.message);
        say(d, d->remarks, text);
    }
    json_decref(of);
}

/* The networks' own check, and memory on each device where there is a ControlNet to plan with. */
static lw_status try_engines(doctor *d, lw_error *err) {
    static const struct {
        lw_device device;
        lw_precision precision;
    } runs[] = {{LW_DEVICE_CPU, LW_PRECISION_FP32},  {LW_DEVICE_CPU, LW_PRECISION_BF16},
                {LW_DEVICE_CPU, LW_PRECISION_FP16},  {LW_DEVICE_CUDA, LW_PRECISION_FP16},
                {LW_DEVICE_CUDA, LW_PRECISION_BF16}, {LW_DEVICE_CUDA, LW_PRECISION_FP32}};
    lw_engine_params params;
    lw_engine_params_init(&params);
    params.model = d->path;
    params.control_nets = d->params->control_nets;
    params.n_control_nets = d->params->n_control_nets;
    params.vae = d->params->vae;
    params.cache_dir = d->params->cache_dir;
    json_object_set_new(d->report, "memory_bytes", json_object());
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        lw_backend *backend;
        lw_engine *engine;
        lw_error why;
        lw_status status = d->open(&backend, runs[i].device, runs[i].precision, &why);
        if (status == LW_ENOMEM) return blame(d, status, &why, err);
        if (status != LW_OK) continue; /* there is none such on this machine */
        status = lw_engine_make_textless(&engine, backend, &params, &why);
        if (status != LW_OK) return blame(d, status, &why, err);
        if (i == 0 && lw_engine_add_vocab(engine, &params, &why) != LW_OK) say(d, d->remarks, why.message);
        char name[32];
        snprintf(name, sizeof name, "%s %s", lw_device_name(runs[i].device), lw_precision_name(runs[i].precision));
        if (engine->model.n_controls > 0) plan(d, engine, name);
        lw_engine_close(&engine);
    }
    return LW_OK;
}

static void say_use(doctor *d) {
    const char *use;
    bool usable = json_array_size(d->problems) == 0;
    if (d->unet && d->clip && (d->vae || d->params->vae))
        use = d->control || d->params->n_control_nets > 0 ? "canny2image, as -m"
                                                          : "canny2image, as -m together with --control-net FILE";
    else if (d->control && !d->unet) use = "a ControlNet, as --control-net";
    else if (d->vae && !d->unet && !d->clip) use = "a VAE, as --vae";
    else use = NULL;
    if (usable && !use) {
        say(d, d->problems,
            "it is no whole model: UNet, text encoder and VAE are needed, or a ControlNet or VAE alone");
        usable = false;
    }
    if (usable) json_object_set_new(d->report, "use", json_string(use));
    json_object_set_new(d->report, "usable", json_boolean(usable));
}

static void add_remarks(doctor *d) {
    char text[200];
    json_int_t ignored = json_integer_value(json_object_get(d->report, "ignored"));
    if (ignored > 0) {
        snprintf(text, sizeof text, "%lld tensor%s of no network %s ignored (schedule, EMA, an optimizer's state)",
                 (long long)ignored, ignored == 1 ? "" : "s", ignored == 1 ? "is" : "are");
        say(d, d->remarks, text);
    }
    if (d->unet && !d->control) say(d, d->remarks, "there is no ControlNet in it");
}

static lw_status examine(doctor *d, lw_error *err) {
    json_t *where = json_string(d->path); /* a path need not be UTF-8, JSON has to be */
    json_object_set_new(d->report, "path", where ? where : json_null());
    LW_TRY(read_headers(d, err));
    if (d->opened) LW_TRY(audit(d, err));
    name_release(d);
    if (d->unet && d->clip && (d->vae || d->params->vae)) LW_TRY(try_engines(d, err));
    if (d->opened) add_remarks(d);
    say_use(d);
    json_object_set(d->report, "problems", d->problems);
    json_object_set(d->report, "remarks", d->remarks);
    return LW_OK;
}

lw_status lw_doctor(const char *path, const lw_doctor_params *params, lw_open_fn open, char **json, lw_error *err) {
    doctor d = {.path = path, .params = params, .open = open, .failed = lw_fault_hit()};
    *json = NULL;
    d.report = json_object();
    d.problems = json_array();
    d.remarks = json_array();
    lw_status status = d.report && d.problems && d.remarks ? examine(&d, err) : LW_OK;
    if (status == LW_OK && !d.failed) *json = json_dumps(d.report, JSON_COMPACT); /* from malloc, as lw_free wants it */
    if (status == LW_OK && !*json) status = lw_fail(err, LW_ENOMEM, "%s: no memory for the report", path);
    json_decref(d.problems);
    json_decref(d.remarks);
    json_decref(d.report);
    return status;
}
