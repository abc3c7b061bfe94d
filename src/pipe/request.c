/* SPDX-License-Identifier: MIT */
#include "pipe/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void lw_request_init(lw_request *r) {
    *r = (lw_request){.size = sizeof *r,
                      .prompt = "",
                      .samples = 1,
                      .steps = 20,
                      .cfg_scale = 9,
                      .seed = -1,
                      .canny_low = 100,
                      .canny_high = 200};
}

void lw_control_init(lw_control *control) {
    *control = (lw_control){.size = sizeof *control, .strength = 1, .start = 0, .end = 1};
}

const lw_control *lw_request_control(const lw_request *r, uint32_t k) {
    return (const lw_control *)(const void *)((const char *)r->controls + (size_t)k * r->controls[0].size);
}

static lw_status in_range(const char *name, double v, double low, double high, lw_error *err) {
    if (v >= low && v <= high) return LW_OK; /* NaN fails both */
    return lw_fail(err, LW_EINVAL, "%s is %g, it must be from %g to %g", name, v, low, high);
}

static lw_status check_ranges(const lw_request *r, lw_error *err) {
    if (r->size < sizeof *r)
        return lw_fail(err, LW_EINVAL, "request has size %u, at least %zu is needed", r->size, sizeof *r);
    LW_TRY(in_range("steps", r->steps, 1, 1000, err));
    LW_TRY(in_range("cfg scale", r->cfg_scale, 0, 100, err));
    LW_TRY(in_range("eta", r->eta, 0, 1, err));
    LW_TRY(in_range("samples", r->samples, 1, 12, err));
    LW_TRY(in_range("seed", (double)r->seed, -1, 4294967295.0, err));
    LW_TRY(in_range("canny low", r->canny_low, 0, 10000, err));
    LW_TRY(in_range("canny high", r->canny_high, 0, 10000, err));
    LW_TRY(in_range("clip skip", r->clip_skip, 0, 12, err));
    LW_TRY(in_range("control mode", r->control_mode, LW_CONTROL_BALANCED, LW_CONTROL_CONTROL, err));
    LW_TRY(in_range("sampler", r->sampler, LW_SAMPLER_DDIM, LW_SAMPLER_LCM, err));
    LW_TRY(in_range("scheduler", r->scheduler, LW_SCHEDULER_REFERENCE, LW_SCHEDULER_KARRAS, err));
    LW_TRY(in_range("rng", r->rng, LW_RNG_CUDA, LW_RNG_CPU, err));
    if (r->eta != 0 && r->sampler != LW_SAMPLER_DDIM)
        return lw_fail(err, LW_EINVAL, "eta is %g, but only ddim uses it, not %s", r->eta, lw_sampler_name(r->sampler));
    if (r->resolution) LW_TRY(in_range("resolution", r->resolution, 64, 8192, err));
    if ((r->width != 0) != (r->height != 0))
        return lw_fail(err, LW_EINVAL, "width is %d and height %d: give both or none", r->width, r->height);
    if (r->width && r->resolution)
        return lw_fail(err, LW_EINVAL, "resolution %d and size %dx%d are both given", r->resolution, r->width,
                       r->height);
    return LW_OK;
}

static lw_status resolve_controls(lw_job *job, const lw_engine *engine, const lw_request *r, lw_error *err) {
    job->n_controls = engine->model.n_controls;
    if (!job->n_controls)
        return lw_fail(err, LW_EMODEL, "%s has no ControlNet: give one with --control-net", engine->model.config.name);
    if (r->n_controls > (uint32_t)job->n_controls)
        return lw_fail(err, LW_EINVAL, "%u controls are given, the model has %d ControlNets", r->n_controls,
                       job->n_controls);
    if (r->n_controls && (!r->controls || r->controls[0].size < sizeof(lw_control)))
        return lw_fail(err, LW_EINVAL, "a control has size %u, at least %zu is needed",
                       r->controls ? r->controls[0].size : 0, sizeof(lw_control));
    for (int32_t k = 0; k < job->n_controls; k++) {
        if (k < (int32_t)r->n_controls) job->controls[k] = *lw_request_control(r, (uint32_t)k);
        else lw_control_init(&job->controls[k]);
        const lw_control *c = &job->controls[k];
        LW_TRY(in_range("control strength", c->strength, 0, 2, err));
        LW_TRY(in_range("control start", c->start, 0, 1, err));
        LW_TRY(in_range("control end", c->end, 0, 1, err));
        if (!c->map && !r->image)
            return lw_fail(err, LW_EINVAL, "control %d has neither a map nor a picture to take edges from", k);
        if (c->map && !c->map->data) return lw_fail(err, LW_EINVAL, "the map of control %d is empty", k);
    }
    if (r->image && !r->image->data) return lw_fail(err, LW_EINVAL, "the picture is empty");
    return LW_OK;
}

/* Ready maps are used as they are: the first one's size is the job's, and the others have to agree. */
static lw_status size_of_maps(lw_job *job, int32_t first, lw_error *err) {
    const lw_image *own = job->controls[first].map;
    for (int32_t k = first + 1; k < job->n_controls; k++) {
        const lw_image *map = job->controls[k].map;
        if (map && (map->width != own->width || map->height != own->height))
            return lw_fail(err, LW_EINPUT,
                           "the map of control %d is %dx%d, that of control %d %dx%d: give maps of one size, or a size",
                           k, map->width, map->height, first, own->width, own->height);
    }
    job->width = own->width;
    job->height = own->height;
    return LW_OK;
}

/* Exact, else of the ready maps, else by a short side. */
static lw_status resolve_size(lw_job *job, const lw_engine *engine, const lw_request *r, lw_error *err) {
    int32_t multiple = 8 << (engine->model.unet.n_levels - 1), first = 0;
    while (first < job->n_controls && !job->controls[first].map) first++;
    bool of_maps = !r->width && !r->resolution && first < job->n_controls;
    if (r->width) {
        LW_TRY(in_range("width", r->width, 64, 8192, err));
        LW_TRY(in_range("height", r->height, 64, 8192, err));
        job->width = r->width;
        job->height = r->height;
    } else if (of_maps) {
        LW_TRY(size_of_maps(job, first, err));
    } else {
        const lw_image *from = r->image ? r->image : job->controls[0].map;
        LW_TRY(lw_resize_target(from->width, from->height,
                                r->resolution ? r->resolution : engine->model.config.resolution, &job->width,
                                &job->height, err));
    }
    if (job->width % multiple == 0 && job->height % multiple == 0 && job->width <= 8192 && job->height <= 8192)
        return LW_OK;
    if (of_maps)
        return lw_fail(
            err, LW_EINPUT,
            "the map of control %d is %dx%d: both sides must be multiples of %d up to 8192 for this model, or "
            "give a size",
            first, job->width, job->height, multiple);
    return lw_fail(err, r->width ? LW_EINVAL : LW_EINPUT,
                   "size %dx%d: both sides must be multiples of %d for this model", job->width, job->height, multiple);
}

static bool number(const char **at, long *out) {
    char *end;
    if (**at < '0' || **at > '9') return false;
    *out = strtol(*at, &end, 10);
    *at = end;
    return true;
}

/* "9,11-13": steps that reuse an eps. */
static lw_status resolve_reuse(lw_job *job, const char *list, lw_error *err) {
    if (!list || !*list) return LW_OK;
    int32_t n = job->schedule.n_rows;
    job->reuse = lw_alloc((size_t)n, sizeof *job->reuse);
    if (!job->reuse) return lw_fail(err, LW_ENOMEM, "no memory for %d steps", n);
    for (const char *at = list;; at++) {
        long first = 0, last;
        bool good = number(&at, &first);
        last = first;
        if (good && *at == '-') good = (at++, number(&at, &last));
        if (!good || (*at && *at != ','))
            return lw_fail(err, LW_EINVAL, "reuse steps \"%s\" is not a list like 9,11-13", list);
        if (first < 2 || last < first || last > n)
            return lw_fail(err, LW_EINVAL, "reuse steps \"%s\": %ld-%ld is not within steps 2 to %d, which have one before",
                           list, first, last, n);
        for (long i = first; i <= last; i++) job->reuse[i - 1] = true;
        if (!*at) return LW_OK;
    }
}

lw_status lw_job_resolve(lw_job *job, const lw_engine *engine, const lw_request *r, lw_error *err) {
    *job = (lw_job){.n = r->samples, .mode = r->control_mode, .clip_skip = r->clip_skip};
    LW_TRY(check_ranges(r, err));
    if (!r->prompt) return lw_fail(err, LW_EINVAL, "there is no prompt");
    job->g = r->cfg_scale == 1.0 ? 1 : 2;
    job->added = r->added_prompt ? r->added_prompt : engine->model.config.added_prompt;
    job->negative = r->negative_prompt ? r->negative_prompt : engine->model.config.negative_prompt;
    LW_TRY(resolve_controls(job, engine, r, err));
    LW_TRY(resolve_size(job, engine, r, err));
    lw_schedule_params params = {.sampler = r->sampler, .scheduler = r->scheduler, .steps = r->steps, .eta = r->eta};
    LW_TRY(lw_schedule_make(&job->schedule, &params, err));
    return resolve_reuse(job, r->reuse_steps, err);
}

void lw_job_free(lw_job *job) {
    lw_schedule_free(&job->schedule);
    lw_free(job->reuse);
    job->reuse = NULL;
}

/* A gray or any other picture at the job's size. */
static lw_status fit(const lw_image *in, const lw_job *job, lw_image *rgb, lw_error *err) {
    lw_image whole = {.size = sizeof whole};
    LW_TRY(lw_image_to_rgb(in, &whole, err));
    if (whole.width == job->width && whole.height == job->height) {
        *rgb = whole;
        return LW_OK;
    }
    lw_status status = lw_image_resize_to(&whole, job->width, job->height, rgb, err);
    lw_image_free(&whole);
    return status;
}

lw_status lw_job_map(const lw_job *job, const lw_request *r, int32_t k, lw_image *out, lw_error *err) {
    const lw_image *map = job->controls[k].map;
    if (map) return fit(map, job, out, err);
    lw_image resized = {.size = sizeof resized}, edges = {.size = sizeof edges};
    lw_status status = LW_OK;
    LW_GO(fit(r->image, job, &resized, err));
    LW_GO(lw_canny(&resized, r->canny_low, r->canny_high, &edges, err));
    LW_GO(lw_image_to_rgb(&edges, out, err));
out:
    lw_image_free(&resized);
    lw_image_free(&edges);
    return status;
}
