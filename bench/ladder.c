/* SPDX-License-Identifier: MIT
 * The ladder: whole images by one recipe after another, from the plainest (fp32, an eager framework's order, the passes
 * of guidance apart) to the one every job runs with. A row takes one improvement more; its picture is held against the
 * first row's. A time is from tokens and edge map to bytes, with nothing of an earlier image kept. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "pipe/recipe.h"

typedef struct rung {
    const char *name;
    lw_precision precision;
    bool tuned, other_sampler;
    lw_recipe recipe;
} rung;

/* Everything as a framework does it without being asked for anything. */
#define EAGER                                                                                                          \
    .hint_each_step = true, .text_each_step = true, .time_each_step = true, .prefix = LW_PREFIX_NONE,                  \
    .update = LW_UPDATE_HOST, .unfused = true, .no_graph = true, .unzipped = true
/* What the seed's last step still does that ours hoists. */
#define SEED .text_each_step = true, .time_each_step = true, .prefix = LW_PREFIX_SHORT

static const rung rungs[] = {
    {"fp32, eager order, passes apart", LW_PRECISION_FP32, false, false, {EAGER, .passes_apart = true}},
    {"fp16", LW_PRECISION_FP16, false, false, {EAGER, .passes_apart = true}},
    {"both passes in one batch", LW_PRECISION_FP16, false, false, {EAGER}},
    {"hint once, shared prefix",
     LW_PRECISION_FP16,
     false,
     false,
     {SEED, .update = LW_UPDATE_HOST, .unfused = true, .no_graph = true, .unzipped = true}},
    {"update on the device",
     LW_PRECISION_FP16,
     false,
     false,
     {SEED, .update = LW_UPDATE_PROGRAM, .unfused = true, .no_graph = true, .unzipped = true}},
    {"one plan", LW_PRECISION_FP16, false, false, {SEED, .unfused = true, .no_graph = true, .unzipped = true}},
    {"graph", LW_PRECISION_FP16, false, false, {SEED, .unfused = true, .unzipped = true}},
    {"fused norms", LW_PRECISION_FP16, false, false, {SEED, .unzipped = true}},
    {"ControlNet beside the encoder", LW_PRECISION_FP16, false, false, {SEED}},
    {"tuned", LW_PRECISION_FP16, true, false, {SEED}},
    {"sampler as a table: dpm++2m", LW_PRECISION_FP16, true, true, {SEED}},
    {"time table", LW_PRECISION_FP16, true, false, {.text_each_step = true, .prefix = LW_PREFIX_SHORT}},
    {"cached K and V", LW_PRECISION_FP16, true, false, {.prefix = LW_PREFIX_SHORT}},
    {"long prefix", LW_PRECISION_FP16, true, false, {.prefix = LW_PREFIX_LONG}},
};

typedef struct ladder {
    const bench_options *o;
    lw_engine *engine;
    bool tuned;
    lw_image map;
    lw_result first; /* the first row's picture */
} ladder;

/* A circle, a horizon and a gable: edges of one pixel. */
static lw_status draw_map(lw_image *map, int32_t w, int32_t h, lw_error *err) {
    *map = (lw_image){.size = sizeof *map,
                      .width = w,
                      .height = h,
                      .channels = 1,
                      .stride = (size_t)w,
                      .data = lw_alloc((size_t)w, (size_t)h)};
    if (!map->data) return lw_fail(err, LW_ENOMEM, "no memory for an edge map");
    for (int32_t x = 0; x < w; x++) {
        int32_t roof = h / 2 - h / 6 + (x > w / 2 ? x - w / 2 : w / 2 - x) / 2;
        map->data[(size_t)(h * 2 / 3) * map->stride + (size_t)x] = 255;
        if (roof < h * 2 / 3) map->data[(size_t)roof * map->stride + (size_t)x] = 255;
    }
    for (int i = 0; i < 4 * w; i++) {
        double a = i * 6.283185307179586 / (4 * w);
        int32_t x = w / 5 + (int32_t)(w / 10.0 * cos(a)), y = h / 5 + (int32_t)(w / 10.0 * sin(a));
        map->data[(size_t)y * map->stride + (size_t)x] = 255;
    }
    return LW_OK;
}

static lw_request request_of(const ladder *l, const rung *r, lw_control *control) {
    *control = (lw_control){.size = sizeof *control, .map = &l->map, .strength = 1, .end = 1};
    lw_request q;
    lw_request_init(&q);
    q.prompt = "a red house and a yellow moon";
    q.seed = 2946901; /* the task's */
    q.steps = l->o->shape.steps;
    q.samples = l->o->shape.samples;
    q.sampler = r->other_sampler ? LW_SAMPLER_DPMPP_2M : LW_SAMPLER_DDIM;
    q.scheduler = r->other_sampler ? LW_SCHEDULER_DISCRETE : LW_SCHEDULER_REFERENCE;
    q.controls = control;
    q.n_controls = 1;
    return q;
}

/* dB over all samples; 99 for the same bytes. */
static double psnr(const lw_result *a, const lw_result *b) {
    double sum = 0;
    size_t n = (size_t)a->width * (size_t)a->height * 3;
    for (uint32_t i = 0; i < a->n_images; i++)
        for (size_t k = 0; k < n; k++) {
            double d = (double)a->images[i].data[k] - (double)b->images[i].data[k];
            sum += d * d;
        }
    return sum > 0 ? 10 * log10(255.0 * 255.0 * (double)n * a->n_images / sum) : 99;
}

static lw_status open_engine(ladder *l, lw_precision precision, lw_error *err) {
    lw_backend *backend = NULL;
    lw_engine_params params;
    lw_engine_params_init(&params);
    params.model = l->o->model;
    params.vocab = l->o->vocab;
    LW_TRY(bench_open_backend(&backend, l->o, precision, err));
    return lw_engine_make(&l->engine, backend, &params, err);
}

/* The engine the rung needs: another precision opens another, and tuning is done once. */
static lw_status make_ready(ladder *l, const rung *r, lw_error *err) {
    lw_engine_info info = {.size = sizeof info};
    if (l->engine) LW_TRY(lw_engine_get_info(l->engine, &info, err));
    if (l->engine && info.precision != r->precision) lw_engine_close(&l->engine);
    if (!l->engine) LW_TRY(open_engine(l, r->precision, err));
    if (!r->tuned || l->tuned) return LW_OK;
    lw_control control;
    lw_request q = request_of(l, r, &control);
    l->tuned = true;
    return lw_engine_tune(l->engine, &q, NULL, NULL, err);
}

/* Medians over repeat jobs after two that warm up; *out keeps the last one's picture. */
static lw_status time_rung(ladder *l, const rung *r, double *ms, lw_result *out, lw_error *err) {
    lw_control control;
    lw_request q = request_of(l, r, &control);
    lw_session *session = NULL;
    double *times = lw_alloc((size_t)l->o->repeat, sizeof *times);
    lw_status status = times ? lw_session_open(&session, l->engine, err) : lw_fail(err, LW_ENOMEM, "no memory");
    if (status == LW_OK) lw_session_set_recipe(session, &r->recipe);
    if (status == LW_OK && r->other_sampler) { /* plans made for one sampler run another */
        rung ddim = *r;
        ddim.other_sampler = false;
        lw_request first = request_of(l, &ddim, &control);
        status = lw_session_generate(session, &first, out, err);
        if (status == LW_OK) lw_result_free(out);
    }
    for (int32_t i = -2; i < l->o->repeat && status == LW_OK; i++) {
        lw_session_forget_results(session);
        status = lw_session_generate(session, &q, out, err);
        if (status != LW_OK) break;
        if (i >= 0) times[i] = out->total_ms - out->canny_ms;
        if (i + 1 < l->o->repeat) lw_result_free(out);
    }
    if (status == LW_OK) *ms = bench_median(times, l->o->repeat);
    lw_session_close(&session);
    lw_free(times);
    return status;
}

static lw_status climb(ladder *l, const rung *r, double *before, lw_error *err) {
    lw_result result = {0};
    double ms = 0;
    LW_TRY(make_ready(l, r, err));
    LW_TRY(time_rung(l, r, &ms, &result, err));
    bool first = !l->first.n_images;
    printf("%-32s %9.1f", r->name, ms);
    if (*before > 0 && !r->other_sampler) printf("  %6.2fx", *before / ms);
    else printf("  %7s", "");
    if (!first && !r->other_sampler) printf("  %5.1f", psnr(&l->first, &result));
    printf("\n");
    fflush(stdout);
    if (!r->other_sampler) *before = ms;
    if (first) l->first = result;
    else lw_result_free(&result);
    return LW_OK;
}

lw_status bench_ladder(const bench_options *o, lw_error *err) {
    ladder l = {.o = o};
    double before = 0;
    lw_backend *fp16 = NULL;
    lw_status status = LW_OK;
    if (!o->model) return lw_fail(err, LW_EINVAL, "ladder needs --model: linework make-model writes one");
    /* A device without fp16 climbs in fp32. */
    bool has_fp16 = bench_open_backend(&fp16, o, LW_PRECISION_FP16, err) == LW_OK;
    if (has_fp16) fp16->close(fp16);
    LW_GO(draw_map(&l.map, o->shape.width, o->shape.height, err));
    printf("%-32s %9s  %7s  %s\n", "", "ms/image", "gain", "PSNR dB");
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        rung r = rungs[i];
        if (!has_fp16 && i == 1) continue;
        if (!has_fp16) r.precision = LW_PRECISION_FP32;
        LW_GO(climb(&l, &r, &before, err));
    }
out:
    lw_engine_close(&l.engine);
    lw_result_free(&l.first);
    lw_free(l.map.data);
    return status;
}
