/* SPDX-License-Identifier: MIT */
#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        lw_status try_status = (call);                                                                                 \
        if (try_status != LW_OK) return try_status;                                                                    \
    } while (0)

/* Reading a gigabyte takes seconds, and a hash is a remark: files above are hashed by `linework info --hash`. */
static const uint64_t max_hashed = (uint64_t)1 << 30;

void cli_job_init(cli_job *job, cli_volume volume) {
    *job = (cli_job){.volume = volume, .output = "out.png"};
    lw_engine_params_init(&job->engine);
    lw_request_init(&job->request);
    job->engine.log = cli_log;
    job->picture.size = sizeof job->picture;
    job->info.size = sizeof job->info;
    job->plan.size = sizeof job->plan;
    job->result.size = sizeof job->result;
}

void cli_job_free(cli_job *job) {
    lw_session_close(&job->session);
    lw_engine_close(&job->lw);
    lw_result_free(&job->result);
    lw_image_free(&job->picture);
    for (size_t i = 0; i < job->n_controls; i++) lw_image_free(&job->controls[i].map);
    for (int32_t i = 0; job->outputs && i < job->request.samples; i++) free(job->outputs[i]);
    free(job->outputs);
    free(job->controls);
    free(job->request_controls);
    free(job->latents);
    free(job->cache_dir);
}

lw_status cli_job_set_device(cli_job *job, const char *text, lw_error *err) {
    static const char *const names[] = {"auto", "cpu", "cuda", NULL};
    char shown[64];
    opt_quote(shown, sizeof shown, text);
    job->engine.device_index = 0;
    if (!strncmp(text, "cuda:", 5)) {
        size_t digits = strspn(text + 5, "0123456789");
        if (!digits || digits > 3 || text[5 + digits])
            return cli_fail(err, LW_EINVAL, "--device: \"%s\": what follows cuda: is not a number from 0 to 999",
                            shown);
        job->engine.device = LW_DEVICE_CUDA;
        job->engine.device_index = atoi(text + 5);
        return LW_OK;
    }
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i])) return job->engine.device = (lw_device)i, LW_OK;
    const char *near = opt_nearest(text, names);
    return cli_fail(err, LW_EINVAL, "--device: \"%s\" is none of: auto, cpu, cuda, cuda:N%s%s%s", shown,
                    near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

/* ---- outputs */

/* out.png, or out-1.png, out-2.png, ... A device takes all of them. */
static char *output_name(const char *output, int32_t i, int32_t samples) {
    struct stat st;
    bool special = stat(output, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
    const char *slash = strrchr(output, '/'), *dot = strrchr(slash ? slash : output, '.');
    if (samples == 1 || special) return cli_format("%s", output);
    if (!dot) dot = output + strlen(output);
    return cli_format("%.*s-%d%s", (int)(dot - output), output, i + 1, dot);
}

static bool same_file(const char *a, const char *b) {
    struct stat sa, sb;
    if (!a || !b) return false;
    if (stat(a, &sa) == 0 && stat(b, &sb) == 0)
        return S_ISREG(sa.st_mode) && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
    return !strcmp(a, b);
}

static lw_status check_outputs(cli_job *job, lw_error *err) {
    int32_t n = job->request.samples;
    if (!(job->outputs = calloc((size_t)n, sizeof *job->outputs))) return cli_no_memory(err);
    for (int32_t i = 0; i < n; i++)
        if (!(job->outputs[i] = output_name(job->output, i, n))) return cli_no_memory(err);
    for (int32_t i = 0; i < n; i++) {
        const char *others[] = {job->save_control, job->save_latents, job->preview};
        TRY(cli_check_picture_output(job->outputs[i], err));
        for (size_t k = 0; k < 3; k++)
            if (same_file(job->outputs[i], others[k]))
                return cli_fail(err, LW_EINVAL, "%s: is named for two outputs", others[k]);
    }
    if (same_file(job->save_control, job->save_latents) || same_file(job->save_control, job->preview))
        return cli_fail(err, LW_EINVAL, "%s: is named for two outputs", job->save_control);
    if (same_file(job->save_latents, job->preview))
        return cli_fail(err, LW_EINVAL, "%s: is named for two outputs", job->preview);
    if (job->save_control) TRY(cli_check_picture_output(job->save_control, err));
    if (job->preview) TRY(cli_check_picture_output(job->preview, err));
    return job->save_latents ? cli_check_output(job->save_latents, err) : LW_OK;
}

/* ---- inputs */

static void note_other_input(const cli_job *job) {
    const lw_infotext *replay = job->replay;
    if (!replay || job->volume == CLI_QUIET) return;
    if (replay->image_sha256 && job->image && job->picture_sha256[0] &&
        strcmp(replay->image_sha256, job->picture_sha256) != 0)
        cli_note("%s: is not the picture that the parameters were used with (SHA-256 %.10s, not %.10s)", job->image,
                 job->picture_sha256, replay->image_sha256);
    for (size_t i = 0; i < job->n_controls && i < replay->n_controls; i++) {
        const char *then = replay->control_sha256[i], *now = job->controls[i].sha256;
        if (then && *then && job->controls[i].image && *now && strcmp(then, now) != 0)
            cli_note("%s: is not the edge map that the parameters were used with (SHA-256 %.10s, not %.10s)",
                     job->controls[i].image, now, then);
    }
    if (replay->init_latents_sha256 && !job->init_latents)
        cli_note("the parameters were used with starting noise from a file: give it with --init-latents");
}

static lw_status read_inputs(cli_job *job, lw_error *err) {
    lw_request *r = &job->request;
    if (job->image) {
        TRY(cli_read_picture(job->image, &job->picture, NULL, job->picture_sha256, err));
        r->image = &job->picture;
    }
    if (!(job->request_controls = calloc(job->n_controls + 1, sizeof *job->request_controls)))
        return cli_no_memory(err);
    for (size_t i = 0; i < job->n_controls; i++) {
        cli_control *c = &job->controls[i];
        c->map.size = sizeof c->map;
        if (c->image) TRY(cli_read_picture(c->image, &c->map, NULL, c->sha256, err));
        job->request_controls[i] = (lw_control){.size = sizeof(lw_control),
                                                .map = c->image ? &c->map : NULL,
                                                .strength = c->strength,
                                                .start = c->start,
                                                .end = c->end};
    }
    r->controls = job->request_controls;
    r->n_controls = (uint32_t)job->n_controls;
    note_other_input(job);
    return LW_OK;
}

/* Needs the plan, which knows the size that is wanted. */
static lw_status read_latents(cli_job *job, lw_error *err) {
    size_t n_bytes = 0;
    int64_t shape[4];
    const float *data = NULL;
    TRY(cli_read_file(job->init_latents, LW_EINPUT, &job->latents, &n_bytes, err));
    TRY(cli_npy_parse(job->latents, n_bytes, job->init_latents, shape, &data, err));
    const int64_t want[4] = {job->request.samples, 4, job->plan.height / 8, job->plan.width / 8};
    if (memcmp(shape, want, sizeof want) != 0)
        return cli_fail(err, LW_EINPUT,
                        "%s: its shape is (%lld, %lld, %lld, %lld), the job needs (%lld, 4, %lld, %lld)",
                        job->init_latents, (long long)shape[0], (long long)shape[1], (long long)shape[2],
                        (long long)shape[3], (long long)want[0], (long long)want[2], (long long)want[3]);
    TRY(lw_sha256(job->latents, n_bytes, job->latents_sha256, err));
    job->request.init_latents = data;
    return LW_OK;
}

/* ---- the engine */

/* A first run has no model yet, and its name alone does not say where one is. */
static lw_status check_model(const char *path, lw_error *err) {
    struct stat st;
    if (stat(path, &st) == 0 || errno != ENOENT) return LW_OK; /* what else may be wrong is the library's to say */
    return cli_fail(
        err, LW_EMODEL,
        "%s: no such file or folder; Stable Diffusion 1.5 (v1-5-pruned-emaonly.safetensors) is at "
        "huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, its ControlNet (control_v11p_sd15_canny) "
        "at huggingface.co/lllyasviel/ControlNet-v1-1; without -m the embedded model draws",
        path);
}

static lw_status open_engine(cli_job *job, lw_error *err) {
    TRY(check_model(job->engine.model, err));
    for (size_t i = 0; i < job->n_controls; i++)
        if (job->controls[i].net) TRY(check_model(job->controls[i].net, err));
    const char **nets = calloc(job->n_controls + 1, sizeof *nets);
    if (!nets) return cli_no_memory(err);
    for (size_t i = 0; i < job->n_controls; i++)
        if (job->controls[i].net) nets[job->engine.n_control_nets++] = job->controls[i].net;
    job->engine.control_nets = job->engine.n_control_nets ? nets : NULL;
    job->engine.cache_dir = job->cache_dir = cli_cache_dir();
    job->engine.user = &job->volume;
    lw_status status = lw_engine_open(&job->lw, &job->engine, err); /* copies what it keeps */
    job->engine.control_nets = NULL;
    free(nets);
    if (status == LW_OK) status = lw_engine_get_info(job->lw, &job->info, err);
    return status;
}

static const char *precision_word(const cli_job *job) {
    const char *name = lw_precision_name(job->info.precision);
    return name ? name : "?";
}

static void note_other_engine(const cli_job *job) {
    const lw_infotext *replay = job->replay;
    if (!replay || job->volume == CLI_QUIET) return;
    if (replay->model_hash && job->model_sha256[0] && strncmp(replay->model_hash, job->model_sha256, 10) != 0)
        cli_note("%s: is not the model that the parameters were used with (hash %.10s, not %.10s)", job->engine.model,
                 job->model_sha256, replay->model_hash);
    bool device = replay->device && strcmp(replay->device, lw_device_name(job->info.device)) != 0;
    bool precision = replay->precision && strcmp(replay->precision, precision_word(job)) != 0;
    if (device || precision)
        cli_note("the parameters were used on %s at %s, this is %s at %s: the result will be close, not the same",
                 replay->device ? replay->device : "?", replay->precision ? replay->precision : "?",
                 lw_device_name(job->info.device), precision_word(job));
}

/* ---- computing and writing */

static int on_progress(void *user, lw_stage stage, int32_t step, int32_t n_steps) {
    cli_job *job = user;
    if (stage == LW_STAGE_STEPS) job->step = step, job->n_steps = n_steps;
    return cli_progress_show(&job->progress, stage, step, n_steps);
}

/* The library's preview has an eighth of the picture's size. A preview that can't be written does not end the job. */
static void on_preview(void *user, int32_t step, const lw_image *preview) {
    cli_job *job = user;
    lw_image whole = {.size = sizeof whole};
    lw_error err = {0};
    (void)step;
    lw_status status = lw_image_resize_to(preview, preview->width * 8, preview->height * 8, &whole, &err);
    if (status == LW_OK) status = cli_write_picture(job->preview, &whole, NULL, &err);
    lw_image_free(&whole);
    if (status != LW_OK && !job->preview_failed && job->volume != CLI_QUIET) cli_note("preview: %s", err.message);
    job->preview_failed = status != LW_OK;
}

/* A window may be narrower than a step. */
static void note_idle_controls(const cli_job *job) {
    int32_t n = job->result.steps;
    for (uint32_t k = 0; k < job->request.n_controls; k++) {
        const lw_control *c = &job->request.controls[k];
        int32_t i = 0;
        while (i < n && ((double)i / n < c->start || (double)(i + 1) / n > c->end)) i++;
        if (i == n)
            cli_note("ControlNet %u is used in none of the %d steps: its part is %g to %g", k, n, c->start, c->end);
    }
}

static lw_status compute(cli_job *job, lw_error *err) {
    lw_request *r = &job->request;
    r->user = job;
    r->progress = on_progress;
    r->preview = job->preview ? on_preview : NULL;
    r->want_latents = job->save_latents != NULL;
    TRY(lw_session_open(&job->session, job->lw, err));
    cli_progress_init(&job->progress, job->volume, job->stage_times || job->volume == CLI_VERBOSE);
    lw_status status = lw_session_generate(job->session, r, &job->result, err);
    cli_progress_end(&job->progress);
    if (status == LW_OK && cli_interrupted()) status = LW_ECANCEL;
    if (status == LW_ECANCEL)
        return cli_fail(err, LW_ECANCEL, "generate: cancelled after step %d of %d", job->step, job->n_steps);
    if (status != LW_OK) return status;
    if (job->volume != CLI_QUIET && job->result.cut)
        cli_note("the text is longer than %d tokens; this was cut off: %s", LW_N_TOKENS, job->result.cut);
    if (job->volume != CLI_QUIET && job->result.steps != r->steps)
        cli_note("%d steps were asked for; the reference's spacing runs %d", r->steps, job->result.steps);
    if (job->volume != CLI_QUIET) note_idle_controls(job);
    /* The choices in effect are known once the job's plans are made. */
    return lw_engine_get_info(job->lw, &job->info, err);
}

/* A file's name without its folders: what a picture may say of the files it was made with. */
static const char *base_name(const char *path) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash && slash[1] ? slash + 1 : path;
}

static lw_status write_picture(cli_job *job, int32_t i, const char *const *nets, const char *const *hashes,
                               lw_error *err) {
    lw_infotext_extra extra;
    lw_fields fields = {.size = sizeof fields};
    lw_infotext_extra_init(&extra);
    extra.index = i;
    extra.model_hash = job->model_sha256[0] ? job->model_sha256 : NULL;
    extra.vae = base_name(job->engine.vae);
    extra.control_nets = nets;
    extra.image_sha256 = job->picture_sha256[0] ? job->picture_sha256 : NULL;
    extra.control_sha256 = hashes;
    extra.init_latents_sha256 = job->latents_sha256[0] ? job->latents_sha256 : NULL;
    lw_status status = lw_infotext_make(&job->info, &job->request, &job->result, &extra, &fields, err);
    if (status == LW_OK) status = cli_write_picture(job->outputs[i], &job->result.images[i], &fields, err);
    lw_fields_free(&fields);
    return status;
}

static lw_status write_latents(const cli_job *job, lw_error *err) {
    const lw_result *r = &job->result;
    const int64_t shape[4] = {r->n_images, 4, r->height / 8, r->width / 8};
    void *bytes = NULL;
    size_t n_bytes = 0;
    TRY(cli_npy_make(r->latents, shape, &bytes, &n_bytes, err));
    cli_hold_signals(true);
    lw_status status = lw_file_write(job->save_latents, bytes, n_bytes, err);
    cli_hold_signals(false);
    free(bytes);
    return status;
}

static lw_status write_outputs(cli_job *job, lw_error *err) {
    double begin = cli_now_ms();
    /* The pictures go last: standard output stays empty where one of the others fails, and a picture that is there
     * says that all of the job is. */
    if (job->save_control) TRY(cli_write_picture(job->save_control, &job->result.control, NULL, err));
    if (job->save_latents) TRY(write_latents(job, err));
    const char **names = calloc(2 * job->n_controls + 1, sizeof *names);
    if (!names) return cli_no_memory(err);
    const char **hashes = names + job->n_controls;
    for (size_t i = 0; i < job->n_controls; i++) {
        names[i] = base_name(job->controls[i].net);
        hashes[i] = job->controls[i].sha256[0] ? job->controls[i].sha256 : NULL;
    }
    lw_status status = LW_OK;
    for (int32_t i = 0; i < job->request.samples && status == LW_OK; i++)
        status = write_picture(job, i, names, hashes, err);
    free(names);
    job->encode_ms = cli_now_ms() - begin;
    return status;
}

lw_status cli_job_run(cli_job *job, lw_error *err) {
    double begin = cli_now_ms();
    TRY(check_outputs(job, err));
    TRY(read_inputs(job, err));
    TRY(open_engine(job, err));
    if (job->default_model && job->replay && job->replay->model && job->info.name &&
        strcmp(job->replay->model, job->info.name) != 0)
        return cli_fail(err, LW_EMODEL,
                        "--from-image: its parameters are of model \"%s\", not of the embedded \"%s\": "
                        "give that model with -m",
                        job->replay->model, job->info.name);
    if (job->dry_run || job->init_latents) TRY(lw_estimate(job->lw, &job->request, &job->plan, err));
    if (job->init_latents) TRY(read_latents(job, err));
    if (job->dry_run) return LW_OK;
    cli_file_hash(job->engine.model, job->cache_dir, max_hashed, job->model_sha256);
    note_other_engine(job);
    TRY(compute(job, err));
    TRY(write_outputs(job, err));
    job->total_ms = cli_now_ms() - begin;
    return LW_OK;
}

/* ---- telling */

static json_t *model_json(const cli_job *job) {
    json_t *hash = job->model_sha256[0] ? json_stringn(job->model_sha256, 10) : json_null();
    return json_pack("{s:s?, s:o}", "path", job->engine.model, "hash", hash);
}

static lw_status tell_json(const cli_job *job, lw_error *err) {
    const lw_result *r = &job->result;
    json_t *images = json_array(), *steps = json_array();
    for (int32_t i = 0; i < job->request.samples; i++) json_array_append_new(images, json_string(job->outputs[i]));
    for (int32_t i = 0; i < r->steps; i++) json_array_append_new(steps, json_real(r->step_ms[i]));
    json_t *times = json_pack("{s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:f}", "load", r->load_ms, "canny", r->canny_ms,
                              "text", r->text_ms, "hint", r->hint_ms, "steps", steps, "decode", r->decode_ms, "encode",
                              job->encode_ms, "total", job->total_ms);
    json_t *peak =
        json_pack("{s:I, s:I}", "host", (json_int_t)r->peak_host_bytes, "device", (json_int_t)r->peak_device_bytes);
    json_t *o = json_pack("{s:o, s:s?, s:I, s:i, s:i, s:i, s:s, s:s, s:o, s:o, s:o}", "images", images, "control",
                          job->save_control, "seed", (json_int_t)r->seed, "width", r->width, "height", r->height,
                          "steps", r->steps, "device", lw_device_name(job->info.device), "precision",
                          precision_word(job), "model", model_json(job), "timings_ms", times, "peak_bytes", peak);
    lw_status status = o ? cli_print_json(o, err) : cli_fail(err, LW_EINPUT, "--json: a path is not UTF-8");
    json_decref(o);
    return status;
}

static lw_status tell_plan_json(const cli_job *job, lw_error *err) {
    const lw_plan_info *p = &job->plan;
    const lw_request *r = &job->request;
    json_t *bytes = json_pack("{s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)p->weights_bytes, "activations",
                              (json_int_t)p->activations_bytes, "tables", (json_int_t)p->tables_bytes, "total",
                              (json_int_t)p->total_bytes, "host", (json_int_t)p->host_bytes);
    json_t *o = json_pack("{s:b, s:i, s:i, s:i, s:i, s:I, s:s, s:s, s:s, s:s, s:o, s:o, s:f}", "dry_run", 1, "width",
                          p->width, "height", p->height, "samples", r->samples, "steps", p->steps, "seed",
                          (json_int_t)r->seed, "sampling_method", lw_sampler_name(r->sampler), "scheduler",
                          lw_scheduler_name(r->scheduler), "device", lw_device_name(job->info.device), "precision",
                          precision_word(job), "model", model_json(job), "bytes", bytes, "gflop", p->gflop);
    lw_status status = o ? cli_print_json(o, err) : cli_fail(err, LW_EINPUT, "--json: a path is not UTF-8");
    json_decref(o);
    return status;
}

static lw_status tell_plan(const cli_job *job, lw_error *err) {
    const lw_plan_info *p = &job->plan;
    const lw_request *r = &job->request;
    const char *added = r->added_prompt ? r->added_prompt : job->info.added_prompt;
    const char *negative = r->negative_prompt ? r->negative_prompt : job->info.negative_prompt;
    char seed[40] = "drawn when it runs";
    if (r->seed >= 0) snprintf(seed, sizeof seed, "%lld", (long long)r->seed);
    const double mib = 1024 * 1024;
    char *text = cli_format(
        "prompt       %s, %s\nnegative     %s\npictures     %d of %dx%d\nsteps        %d (%s, %s)\ncfg scale    %g\n"
        "seed         %s\nnoise        %s\nmodel        %s\ndevice       %s, %s\n"
        "memory       weights %.1f MiB + activations %.1f MiB + tables %.1f MiB = %.1f MiB; host beside it %.1f MiB\n"
        "arithmetic   %.1f GFLOP\n",
        r->prompt, added ? added : "", negative ? negative : "", r->samples, p->width, p->height, p->steps,
        lw_sampler_name(r->sampler), lw_scheduler_name(r->scheduler), r->cfg_scale, seed, lw_rng_name(r->rng),
        job->info.name ? job->info.name : job->engine.model, job->info.device_name ? job->info.device_name : "",
        precision_word(job), (double)p->weights_bytes / mib, (double)p->activations_bytes / mib,
        (double)p->tables_bytes / mib, (double)p->total_bytes / mib, (double)p->host_bytes / mib, p->gflop);
    lw_status status = text ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

static double sum_of_steps(const lw_result *r) {
    double ms = 0;
    for (int32_t i = 0; i < r->steps; i++) ms += r->step_ms[i];
    return ms;
}

static lw_status tell_text(const cli_job *job, lw_error *err) {
    const lw_result *r = &job->result;
    /* With the picture itself on standard output, what is said of it goes beside it. */
    bool beside = !strcmp(job->output, "-");
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return cli_no_memory(err);
    for (int32_t i = 0; i < job->request.samples; i++)
        fprintf(out, "%s: %dx%d, seed %lld, %d steps, %.2f s on %s at %s\n", beside ? "picture" : job->outputs[i],
                r->width, r->height, (long long)r->seed, r->steps, r->total_ms / 1e3, lw_device_name(job->info.device),
                precision_word(job));
    if (job->save_control) fprintf(out, "%s: the edges\n", job->save_control);
    if (job->save_latents) fprintf(out, "%s: the latents\n", job->save_latents);
    if (job->volume == CLI_VERBOSE)
        fprintf(out,
                "device %s\nms: load %.1f, edges %.1f, text %.1f, hint %.1f, steps %.1f, decode %.1f, encode %.1f, in "
                "all %.1f\npeak MiB: host %.1f, device %.1f\nmodel %s, hash %.10s; tactics %s\n",
                job->info.device_name ? job->info.device_name : lw_device_name(job->info.device), r->load_ms,
                r->canny_ms, r->text_ms, r->hint_ms, sum_of_steps(r), r->decode_ms, job->encode_ms, job->total_ms,
                (double)r->peak_host_bytes / 1048576, (double)r->peak_device_bytes / 1048576, job->engine.model,
                job->model_sha256[0] ? job->model_sha256 : "unknown",
                job->info.tactics_hash ? job->info.tactics_hash : "none");
    lw_status status = LW_OK;
    if (fclose(out) != 0) status = cli_no_memory(err);
    else if (beside && job->volume != CLI_QUIET) fputs(text, stderr);
    else if (!beside) status = cli_print(text, err);
    free(text);
    return status;
}

lw_status cli_job_tell(const cli_job *job, lw_error *err) {
    if (job->dry_run) return job->json ? tell_plan_json(job, err) : tell_plan(job, err);
    return job->json ? tell_json(job, err) : tell_text(job, err);
}
