/* SPDX-License-Identifier: MIT
 * linework generate: the flags, and a picture's parameters under them, as a job. Every rule that needs no file is
 * checked before one is read. */
#include "job.h"

#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        lw_status try_status = (call);                                                                                 \
        if (try_status != LW_OK) return try_status;                                                                    \
    } while (0)

static bool given(const opt_parsed *o, size_t spec) { return opt_get(o, spec)->at != 0; }

static bool is_dash(const char *text) { return text && !strcmp(text, "-"); }

static size_t count_controls(const opt_parsed *o) { return o->n_groups ? o->n_groups : 1; }

static lw_status check_inputs(const opt_parsed *o, lw_error *err) {
    bool image = given(o, GEN_IMAGE);
    size_t n = count_controls(o), maps = 0;
    int dashes = is_dash(opt_get(o, GEN_IMAGE)->text) + is_dash(opt_get(o, GEN_FROM_IMAGE)->text) +
                 is_dash(opt_get(o, GEN_INIT_LATENTS)->text);
    for (size_t i = 0; i < n; i++) {
        const char *map = opt_get_in(o, i, GEN_CONTROL_IMAGE)->text;
        maps += map != NULL;
        dashes += is_dash(map);
    }
    if (!image && maps < n)
        return cli_fail(err, LW_EINVAL,
                        maps ? "--control-image: %zu of %zu ControlNets have one: give the others "
                               "theirs, or a picture with -i"
                             : "generate: no picture: give -i FILE or --control-image FILE",
                        maps, n);
    if (image && maps == n)
        return cli_fail(err, LW_EINVAL, "--image and --control-image: only one of them is used: give one");
    if (dashes > 1)
        return cli_fail(err, LW_EINVAL, "-: standard input is named for %d inputs, it can be read once", dashes);
    if (!given(o, GEN_PROMPT) && !given(o, GEN_FROM_IMAGE))
        return cli_fail(err, LW_EINVAL, "--prompt: is required: say what to draw with -p TEXT");
    return LW_OK;
}

static lw_status check_outputs(const opt_parsed *o, lw_error *err) {
    static const size_t files[] = {GEN_SAVE_CONTROL, GEN_SAVE_LATENTS, GEN_PREVIEW};
    for (size_t i = 0; i < 3; i++)
        if (is_dash(opt_get(o, files[i])->text))
            return cli_fail(err, LW_EINVAL, "--%s: only -o can be standard output", o->command->specs[files[i]].name);
    if (is_dash(opt_get(o, GEN_OUTPUT)->text) && given(o, ALL_JSON))
        return cli_fail(err, LW_EINVAL, "--output -: standard output can't be both the picture and --json's object");
    return LW_OK;
}

static lw_status check_size(const opt_parsed *o, lw_error *err) {
    bool w = given(o, GEN_WIDTH), h = given(o, GEN_HEIGHT);
    if (w != h)
        return cli_fail(err, LW_EINVAL, "--width and --height: only --%s is given: give both, or neither",
                        w ? "width" : "height");
    if (w && given(o, GEN_RESOLUTION))
        return cli_fail(err, LW_EINVAL, "--resolution and --width: two ways to say the size: give one");
    /* Models differ in how often they halve, but none of them goes below eighths of the picture. */
    if (w && (opt_get(o, GEN_WIDTH)->integer % 8 || opt_get(o, GEN_HEIGHT)->integer % 8))
        return cli_fail(err, LW_EINVAL, "--width and --height: %lldx%lld: both sides must be multiples of 8",
                        (long long)opt_get(o, GEN_WIDTH)->integer, (long long)opt_get(o, GEN_HEIGHT)->integer);
    return LW_OK;
}

/* What the sampler's numbers must agree on; asked again once a picture's parameters are under the flags. */
static lw_status check_schedule(const lw_request *r, lw_error *err) {
    int32_t actual;
    if (r->eta != 0 && r->sampler != LW_SAMPLER_DDIM)
        return cli_fail(err, LW_EINVAL, "--eta: %g goes with --sampling-method ddim, not with %s", r->eta,
                        lw_sampler_name(r->sampler));
    if (r->scheduler != LW_SCHEDULER_REFERENCE) return LW_OK;
    return lw_reference_steps(r->steps, &actual, err);
}

static lw_status set_names(lw_request *r, const opt_parsed *o, lw_error *err) {
    if (given(o, GEN_SAMPLING_METHOD))
        TRY(lw_sampler_from_name(opt_get(o, GEN_SAMPLING_METHOD)->text, &r->sampler, err));
    if (given(o, GEN_SCHEDULER)) TRY(lw_scheduler_from_name(opt_get(o, GEN_SCHEDULER)->text, &r->scheduler, err));
    if (given(o, GEN_RNG)) TRY(lw_rng_from_name(opt_get(o, GEN_RNG)->text, &r->rng, err));
    const opt_value *mode = opt_get(o, GEN_CONTROL_MODE);
    if (mode->at > opt_get(o, GEN_GUESS_MODE)->at) return lw_control_mode_from_name(mode->text, &r->control_mode, err);
    if (given(o, GEN_GUESS_MODE)) r->control_mode = LW_CONTROL_CONTROL;
    return LW_OK;
}

/* Flags over what the request holds already. */
static lw_status set_request(cli_job *job, const opt_parsed *o, lw_error *err) {
    lw_request *r = &job->request;
    if (given(o, GEN_PROMPT)) r->prompt = opt_get(o, GEN_PROMPT)->text;
    if (given(o, GEN_ADDED_PROMPT)) r->added_prompt = opt_get(o, GEN_ADDED_PROMPT)->text;
    if (given(o, GEN_NEGATIVE_PROMPT)) r->negative_prompt = opt_get(o, GEN_NEGATIVE_PROMPT)->text;
    if (given(o, GEN_RESOLUTION)) {
        r->resolution = (int32_t)opt_get(o, GEN_RESOLUTION)->integer;
        r->width = r->height = 0;
    }
    if (given(o, GEN_WIDTH)) {
        r->width = (int32_t)opt_get(o, GEN_WIDTH)->integer;
        r->height = (int32_t)opt_get(o, GEN_HEIGHT)->integer;
        r->resolution = 0;
    }
    if (given(o, GEN_SAMPLES)) r->samples = (int32_t)opt_get(o, GEN_SAMPLES)->integer;
    if (given(o, GEN_STEPS)) r->steps = (int32_t)opt_get(o, GEN_STEPS)->integer;
    if (given(o, GEN_CFG_SCALE)) r->cfg_scale = opt_get(o, GEN_CFG_SCALE)->number;
    if (given(o, GEN_ETA)) r->eta = opt_get(o, GEN_ETA)->number;
    if (given(o, GEN_CLIP_SKIP)) r->clip_skip = (int32_t)opt_get(o, GEN_CLIP_SKIP)->integer;
    if (given(o, GEN_REUSE_STEPS)) r->reuse_steps = opt_get(o, GEN_REUSE_STEPS)->text;
    if (given(o, GEN_SEED)) r->seed = opt_get(o, GEN_SEED)->integer;
    if (given(o, GEN_CANNY_LOW)) r->canny_low = opt_get(o, GEN_CANNY_LOW)->number;
    if (given(o, GEN_CANNY_HIGH)) r->canny_high = opt_get(o, GEN_CANNY_HIGH)->number;
    TRY(set_names(r, o, err));
    if (is_dash(job->output) && r->samples > 1)
        return cli_fail(err, LW_EINVAL, "--output -: standard output takes one picture, --samples says %d", r->samples);
    return check_schedule(r, err);
}

static lw_status set_controls(cli_job *job, const opt_parsed *o, lw_error *err) {
    const lw_infotext *replay = job->replay;
    size_t n = count_controls(o);
    if (replay && !o->n_groups && replay->n_controls > n) n = replay->n_controls;
    if (!(job->controls = calloc(n, sizeof *job->controls))) return cli_no_memory(err);
    job->n_controls = n;
    for (size_t i = 0; i < n; i++) {
        cli_control *c = &job->controls[i];
        const lw_control *then = replay && i < replay->n_controls ? &replay->request->controls[i] : NULL;
        const opt_value *strength = opt_get_in(o, i, GEN_CONTROL_STRENGTH),
                        *start = opt_get_in(o, i, GEN_CONTROL_START), *end = opt_get_in(o, i, GEN_CONTROL_END);
        c->net = opt_get_in(o, i, GEN_CONTROL_NET)->text;
        c->image = opt_get_in(o, i, GEN_CONTROL_IMAGE)->text;
        c->strength = strength->at ? strength->number : then ? then->strength : 1;
        c->start = start->at ? start->number : then ? then->start : 0;
        c->end = end->at ? end->number : then ? then->end : 1;
        if (then && replay->control_sha256[i] && !c->image && job->volume != CLI_QUIET)
            cli_note("ControlNet %zu of the parameters took a ready edge map: give it with --control-image", i);
    }
    return LW_OK;
}

static lw_status set_engine(cli_job *job, const opt_parsed *o, lw_error *err) {
    lw_engine_params *e = &job->engine;
    e->model = opt_get(o, GEN_MODEL)->text;
    e->vae = opt_get(o, GEN_VAE)->text;
    e->vocab = opt_get(o, GEN_VOCAB)->text;
    e->threads = (int32_t)opt_get(o, GEN_THREADS)->integer;
    e->max_memory = (uint64_t)opt_get(o, GEN_MAX_MEMORY)->integer;
    if (given(o, GEN_DEVICE)) TRY(cli_job_set_device(job, opt_get(o, GEN_DEVICE)->text, err));
    if (given(o, GEN_PRECISION)) TRY(lw_precision_from_name(opt_get(o, GEN_PRECISION)->text, &e->precision, err));
    return LW_OK;
}

static void set_files(cli_job *job, const opt_parsed *o) {
    job->image = opt_get(o, GEN_IMAGE)->text;
    if (given(o, GEN_OUTPUT)) job->output = opt_get(o, GEN_OUTPUT)->text;
    job->save_control = opt_get(o, GEN_SAVE_CONTROL)->text;
    job->save_latents = opt_get(o, GEN_SAVE_LATENTS)->text;
    job->init_latents = opt_get(o, GEN_INIT_LATENTS)->text;
    job->preview = opt_get(o, GEN_PREVIEW)->text;
    job->json = given(o, ALL_JSON);
    job->dry_run = given(o, GEN_DRY_RUN);
}

/* The picture's parameters, put under the flags. */
static lw_status take_up(cli_job *job, const opt_parsed *o, lw_infotext *replay, lw_error *err) {
    const char *path = opt_get(o, GEN_FROM_IMAGE)->text;
    lw_image image = {.size = sizeof image};
    lw_fields fields = {.size = sizeof fields};
    lw_error why = {0};
    TRY(cli_read_picture(path, &image, &fields, NULL, err));
    lw_status status = lw_infotext_read(&fields, replay, &why);
    lw_image_free(&image);
    lw_fields_free(&fields);
    if (status != LW_OK) return cli_fail(err, status, "%s: %s", path, why.message);

    for (const char *line = replay->remarks; *line && job->volume != CLI_QUIET;) {
        size_t n = strcspn(line, "\n");
        cli_note("%s: %.*s", path, (int)n, line);
        line += n + (line[n] == '\n');
    }
    job->replay = replay;
    job->request = *replay->request;
    /* A CPU is everywhere and gives the same bits again; which GPU there is, is the engine's to find out. */
    bool cpu = replay->device && !strcmp(replay->device, "cpu");
    if (cpu && !given(o, GEN_DEVICE)) job->engine.device = LW_DEVICE_CPU;
    if (cpu && job->engine.device == LW_DEVICE_CPU && !given(o, GEN_PRECISION) && replay->precision)
        lw_precision_from_name(replay->precision, &job->engine.precision, NULL);
    return LW_OK;
}

static lw_status run(cli_job *job, const opt_parsed *o, lw_infotext *replay, char **demo, lw_error *err) {
    TRY(check_inputs(o, err));
    TRY(check_outputs(o, err));
    TRY(check_size(o, err));
    set_files(job, o);
    TRY(set_engine(job, o, err));
    if (given(o, GEN_FROM_IMAGE)) TRY(take_up(job, o, replay, err));
    TRY(set_request(job, o, err));
    TRY(set_controls(job, o, err));
    if (!job->engine.model) {
        if (!(*demo = cli_demo_file("model.safetensors", err))) return LW_EMODEL;
        job->engine.model = *demo;
        job->default_model = true;
    }
    TRY(cli_job_run(job, err));
    return cli_job_tell(job, err);
}

lw_status cmd_generate(const opt_parsed *options, lw_error *err) {
    cli_job job;
    lw_infotext replay = {.size = sizeof replay};
    char *demo = NULL;
    cli_job_init(&job, cli_volume_of(options));
    lw_status status = run(&job, options, &replay, &demo, err);
    cli_job_free(&job);
    lw_infotext_free(&replay);
    free(demo);
    return status;
}
