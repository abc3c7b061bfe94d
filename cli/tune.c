/* SPDX-License-Identifier: MIT
 * linework tune: times the ways in which a job's convolutions and products can be run on this machine and keeps the
 * fastest in the cache, where later jobs find them. Makes no picture. */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        lw_status try_status = (call);                                                                                 \
        if (try_status != LW_OK) return try_status;                                                                    \
    } while (0)

typedef struct tuning {
    cli_job job; /* engine, request, picture */
    FILE *table;
    json_t *ops;
    double heuristic_us, us; /* of all ops, each as often as it stands in the job's programs */
    int32_t n, changed;
    char *file;
} tuning;

static bool given(const opt_parsed *o, size_t spec) { return opt_get(o, spec)->at != 0; }

static lw_status check_size(const opt_parsed *o, lw_error *err) {
    bool w = given(o, TUNE_WIDTH), h = given(o, TUNE_HEIGHT);
    if (w != h)
        return cli_fail(err, LW_EINVAL, "--width and --height: only --%s is given: give both, or neither",
                        w ? "width" : "height");
    if (w && given(o, TUNE_RESOLUTION))
        return cli_fail(err, LW_EINVAL, "--resolution and --width: two ways to say the size: give one");
    return LW_OK;
}

static lw_status set_job(cli_job *job, const opt_parsed *o, lw_error *err) {
    lw_engine_params *e = &job->engine;
    lw_request *r = &job->request;
    e->model = opt_get(o, TUNE_MODEL)->text;
    e->vae = opt_get(o, TUNE_VAE)->text;
    e->vocab = opt_get(o, TUNE_VOCAB)->text;
    e->threads = (int32_t)opt_get(o, TUNE_THREADS)->integer;
    if (given(o, TUNE_DEVICE)) TRY(cli_job_set_device(job, opt_get(o, TUNE_DEVICE)->text, err));
    if (given(o, TUNE_PRECISION)) TRY(lw_precision_from_name(opt_get(o, TUNE_PRECISION)->text, &e->precision, err));
    r->resolution = (int32_t)opt_get(o, TUNE_RESOLUTION)->integer;
    r->width = (int32_t)opt_get(o, TUNE_WIDTH)->integer;
    r->height = (int32_t)opt_get(o, TUNE_HEIGHT)->integer;
    if (given(o, TUNE_SAMPLES)) r->samples = (int32_t)opt_get(o, TUNE_SAMPLES)->integer;
    if (given(o, TUNE_CFG_SCALE)) r->cfg_scale = opt_get(o, TUNE_CFG_SCALE)->number;
    return LW_OK;
}

static lw_status open_engine(tuning *t, const opt_parsed *o, lw_error *err) {
    cli_job *job = &t->job;
    const char **nets = calloc(o->n_groups + 1, sizeof *nets);
    if (!nets) return cli_no_memory(err);
    for (size_t i = 0; i < o->n_groups; i++) nets[i] = opt_get_in(o, i, TUNE_CONTROL_NET)->text;
    job->engine.control_nets = o->n_groups ? nets : NULL;
    job->engine.n_control_nets = (uint32_t)o->n_groups;
    job->engine.cache_dir = job->cache_dir;
    job->engine.user = &job->volume;
    lw_status status = lw_engine_open(&job->lw, &job->engine, err);
    job->engine.control_nets = NULL;
    free(nets);
    if (status == LW_OK) status = lw_engine_get_info(job->lw, &job->info, err);
    return status;
}

/* Nobody reads a pixel: without a picture, a black one stands for its size. */
static lw_status take_picture(cli_job *job, const char *path, lw_error *err) {
    if (path) return cli_read_picture(path, &job->picture, NULL, job->picture_sha256, err);
    int32_t side = job->request.resolution ? job->request.resolution : job->info.resolution;
    int32_t w = job->request.width ? job->request.width : side, h = job->request.height ? job->request.height : side;
    const lw_image black = {
        .size = sizeof black, .width = 1, .height = 1, .channels = 3, .stride = 3, .data = (uint8_t[3]){0}};
    return lw_image_resize_to(&black, w, h, &job->picture, err);
}

static const char *bare(const char *tactic) {
    const char *cut = strchr(tactic, '_'); /* the op's name is in the row already */
    return cut ? cut + 1 : tactic;
}

static int on_tuned(void *user, const lw_tuned *tuned) {
    tuning *t = user;
    bool other = strcmp(tuned->tactic, tuned->heuristic) != 0;
    t->us += tuned->us * tuned->uses;
    t->heuristic_us += tuned->heuristic_us * tuned->uses;
    t->n = tuned->n;
    t->changed += other;
    fprintf(t->table, "%-52s %4d  %-18s %10.1f  %-18s %10.1f  %5.2f\n", tuned->op, tuned->uses, bare(tuned->tactic),
            tuned->us, bare(tuned->heuristic), tuned->heuristic_us,
            tuned->us > 0 ? tuned->heuristic_us / tuned->us : 1.0);
    json_array_append_new(t->ops, json_pack("{s:s, s:i, s:s, s:f, s:s, s:f}", "op", tuned->op, "uses", tuned->uses,
                                            "tactic", tuned->tactic, "us", tuned->us, "heuristic", tuned->heuristic,
                                            "heuristic_us", tuned->heuristic_us));
    if (t->job.volume != CLI_QUIET)
        fprintf(stderr, "tuned %d of %d: %s: %s\n", tuned->index, tuned->n, tuned->op, bare(tuned->tactic));
    return cli_interrupted();
}

static lw_status tell(tuning *t, bool as_json, const char *table, lw_error *err) {
    char *text = NULL;
    if (as_json) {
        json_t *o = json_pack("{s:s, s:s?, s:f, s:f, s:O}", "device", t->job.info.device_name, "file", t->file, "us",
                              t->us, "heuristic_us", t->heuristic_us, "ops", t->ops);
        lw_status status = o ? cli_print_json(o, err) : cli_fail(err, LW_EINPUT, "--json: a path is not UTF-8");
        json_decref(o);
        return status;
    }
    const char *kept = t->file ? "kept in " : "", *file = t->file ? t->file : "", *end = t->file ? "\n" : "";
    if (!t->n)
        text = cli_format("%s: no op of this job can be run in more than one way\n%s%s%s", t->job.info.device_name,
                          kept, file, end);
    else
        text = cli_format("%-52s %4s  %-18s %10s  %-18s %10s  %5s\n%s%d of %d kinds of op get another tactic; in all "
                          "%.1f ms instead of %.1f ms\n%s%s%s",
                          "op", "uses", "chosen", "us", "without tuning", "us", "times", table, t->changed, t->n,
                          t->us / 1e3, t->heuristic_us / 1e3, kept, file, end);
    lw_status status = text ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

static lw_status run(tuning *t, const opt_parsed *o, char **table, size_t *size, char **demo, lw_error *err) {
    cli_job *job = &t->job;
    TRY(check_size(o, err));
    TRY(set_job(job, o, err));
    if (!job->engine.model) {
        if (!(*demo = cli_demo_file("model.safetensors", err))) return LW_EMODEL;
        job->engine.model = *demo;
    }
    if ((job->cache_dir = cli_cache_dir())) {
        cli_make_cache_dir(job->cache_dir);
    } else if (job->volume != CLI_QUIET) {
        cli_note("there is no cache folder (neither XDG_CACHE_HOME nor HOME is set): nothing will be kept");
    }
    TRY(open_engine(t, o, err));
    if (job->cache_dir) {
        const char *device = lw_device_name(job->info.device);
        if (!(t->file = cli_format("%s/tactics-%s.json", job->cache_dir, device))) return cli_no_memory(err);
        TRY(cli_check_output(t->file, err));
    }
    TRY(take_picture(job, opt_get(o, TUNE_IMAGE)->text, err));
    job->request.image = &job->picture;
    t->ops = json_array();
    t->table = open_memstream(table, size);
    if (!t->ops || !t->table) return cli_no_memory(err);
    lw_status status = lw_engine_tune(job->lw, &job->request, on_tuned, t, err);
    fflush(t->table);
    return status == LW_OK ? tell(t, given(o, ALL_JSON), *table, err) : status;
}

lw_status cmd_tune(const opt_parsed *options, lw_error *err) {
    tuning t = {.file = NULL};
    char *demo = NULL, *table = NULL;
    size_t size = 0;
    cli_job_init(&t.job, cli_volume_of(options));
    lw_status status = run(&t, options, &table, &size, &demo, err);
    if (t.table) fclose(t.table);
    json_decref(t.ops);
    free(table);
    free(t.file);
    cli_job_free(&t.job);
    free(demo);
    return status;
}
