/* SPDX-License-Identifier: MIT
 * linework.h over pipe: opens the backend that the parameters ask for. The only file that names the backends. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#ifdef LW_HAVE_CUDA
#include "cuda/cuda.h"
#endif
#include "pipe/doctor.h"
#include "pipe/session.h"

#define STRING(x) #x
#define NUMBER(x) STRING(x)

const char *lw_version(void) {
    return NUMBER(LW_VERSION_MAJOR) "." NUMBER(LW_VERSION_MINOR) "." NUMBER(LW_VERSION_PATCH);
}

static lw_status open_cuda(lw_backend **out, const lw_engine_params *params, lw_error *err) {
#ifdef LW_HAVE_CUDA
    lw_cuda_params cuda = {.device_index = params->device_index, .precision = params->precision};
    return lw_cuda_open(out, &cuda, err);
#else
    (void)out;
    return lw_fail(err, LW_EDEVICE, "device cuda:%d: this build has no CUDA", params->device_index);
#endif
}

static void note(const lw_engine_params *params, const char *format, const char *detail) {
    char text[1100];
    snprintf(text, sizeof text, format, detail);
    if (params->log) params->log(params->user, LW_LOG_NOTE, text);
}

static bool cuda_expected(void) {
#ifdef LW_HAVE_CUDA
    return lw_cuda_expected();
#else
    return false;
#endif
}

/* auto: the GPU where there is one that works, else the CPU; the log says why where a GPU was to be expected. */
static lw_status open_backend(lw_backend **out, const lw_engine_params *params, lw_error *err) {
    lw_cpu_params cpu = {.threads = params->threads, .precision = params->precision};
    if (params->device == LW_DEVICE_CUDA) return open_cuda(out, params, err);
    if (params->device == LW_DEVICE_AUTO) {
        lw_error why;
        if (open_cuda(out, params, &why) == LW_OK) return LW_OK;
        if (cuda_expected()) note(params, "running on the CPU: %s", why.message);
    }
    LW_TRY(lw_cpu_open(out, &cpu, err));
    return LW_OK;
}

lw_status lw_engine_open(lw_engine **out, const lw_engine_params *params, lw_error *err) {
    *out = NULL;
    if (params->size < sizeof *params)
        return lw_fail(err, LW_EINVAL, "engine parameters have size %u, at least %zu is needed", params->size,
                       sizeof *params);
    if (!params->model) return lw_fail(err, LW_EINVAL, "no model is named");
    if (params->threads < 0 || params->threads > 1024)
        return lw_fail(err, LW_EINVAL, "threads is %d, it must be from 1 to 1024, or 0 for all", params->threads);
    lw_backend *backend;
    LW_TRY(open_backend(&backend, params, err));
    return lw_engine_make(out, backend, params, err);
}

lw_status lw_model_info(const char *path, char **json, lw_error *err) { return lw_weights_describe(path, json, err); }

static lw_status open_for_doctor(lw_backend **out, lw_device device, lw_precision precision, lw_error *err) {
    lw_engine_params params;
    lw_engine_params_init(&params);
    params.device = device;
    params.precision = precision;
    return open_backend(out, &params, err);
}

lw_status lw_model_doctor(const char *path, const lw_doctor_params *params, char **json, lw_error *err) {
    *json = NULL;
    if (params->size < sizeof *params)
        return lw_fail(err, LW_EINVAL, "doctor parameters have size %u, at least %zu is needed", params->size,
                       sizeof *params);
    return lw_doctor(path, params, open_for_doctor, json, err);
}

char *lw_build_info(void) {
    char features[80];
    lw_cpu_features(features, sizeof features);
    json_t *libraries = json_object(), *info = NULL;
    json_object_set_new(libraries, "jansson", json_string(JANSSON_VERSION));
#ifdef LW_HAVE_ONEDNN
    json_object_set_new(libraries, "oneDNN", json_string(strchr(lw_cpu_onednn_version(), ' ') + 1));
#endif
    json_t *cpu = json_array(), *devices = json_pack("[s]", "cpu");
    for (char *save = NULL, *word = strtok_r(features, " ", &save); word; word = strtok_r(NULL, " ", &save))
        json_array_append_new(cpu, json_string(word));
#ifdef LW_HAVE_CUDA
    char cuda[16];
    lw_cuda_version(cuda, sizeof cuda);
    json_object_set_new(libraries, "CUDA", json_string(cuda));
    json_array_append_new(devices, json_string("cuda"));
#endif
    info = json_pack("{s:s, s:s, s:o, s:o, s:o}", "version", lw_version(), "compiler", __VERSION__, "cpu", cpu,
                     "libraries", libraries, "devices", devices);
    char *text = info ? json_dumps(info, JSON_COMPACT) : NULL;
    json_decref(info);
    return text;
}

/* ---- names */

static const char *const samplers[] = {"ddim", "euler", "euler_a", "dpm++2m", "unipc", "lcm"};
static const char *const schedulers[] = {"reference", "discrete", "karras"};
static const char *const rngs[] = {"cuda", "cpu"};
static const char *const modes[] = {"balanced", "prompt", "control"};
static const char *const device_names[] = {"auto", "cpu", "cuda"};
static const char *const precisions[] = {"auto", "fp32", "fp16", "bf16"};

#define N(array) (sizeof(array) / sizeof *(array))

static lw_status from_name(const char *what, const char *const *names, size_t n, const char *name, int *out,
                           lw_error *err) {
    char list[160] = "";
    for (size_t i = 0; i < n; i++) {
        if (!strcmp(names[i], name)) return *out = (int)i, LW_OK;
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = lw_nearest(name, names, n);
    return near ? lw_fail(err, LW_EINVAL, "%s \"%s\" is none of %s: did you mean %s?", what, name, list, near)
                : lw_fail(err, LW_EINVAL, "%s \"%s\" is none of %s", what, name, list);
}

#define NAMES(type, what, array)                                                                                       \
    lw_status lw_##type##_from_name(const char *name, lw_##type *out, lw_error *err) {                                 \
        int v = 0;                                                                                                     \
        LW_TRY(from_name(what, array, N(array), name, &v, err));                                                       \
        *out = (lw_##type)v;                                                                                           \
        return LW_OK;                                                                                                  \
    }                                                                                                                  \
    const char *lw_##type##_name(lw_##type v) { return (size_t)v < N(array) ? array[v] : NULL; }

NAMES(sampler, "sampling method", samplers)
NAMES(scheduler, "scheduler", schedulers)
NAMES(rng, "rng", rngs)
NAMES(control_mode, "control mode", modes)
NAMES(precision, "precision", precisions)

const char *lw_device_name(lw_device v) { return (size_t)v < N(device_names) ? device_names[v] : NULL; }
