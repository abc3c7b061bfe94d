/* SPDX-License-Identifier: MIT
 * A session: one shape's plans and buffers, and the job that runs on them.
 *
 *   resolve -> plans (kept while the shape stays) -> maps -> noise -> text, hint, time (each cached by what it depends
 * on) -> loop -> decode */
#include "pipe/session.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "pipe/choices.h"
#include "pipe/recipe.h"
#include "pipe/request.h"

typedef struct shape {
    int32_t g, n, h, w, n_controls, rows, n_noise, clip_skip;
} shape;

typedef struct buffer { /* an extern of one or more programs */
    const char *name;
    int64_t bytes;
    void *device;
} buffer;

typedef struct planned {
    lw_program *program;
    lw_plan *plan;
} planned;

/* What the host learns of a step, in memory that the device writes behind it: two, since on a device that runs behind
 * the host one step is always queued while the one before is waited for. */
typedef struct step_news {
    void *mark;
    int32_t *status; /* [4] */
    float *x;        /* latents of the first sample [h,w,8], where a preview is wanted */
} step_news;

enum { MAX_BUFFERS = 64, MAX_VARIANTS = 1 << LW_MAX_CONTROLS, N_NEWS = 2 };

struct lw_session {
    lw_engine *engine;
    lw_params *params;         /* the engine's, or those of a dry session */
    const lw_choices *choices; /* what its plans were made with; NULL: the backend's order */
    bool dry;                  /* plans only, with params of its own: leaves nothing in the engine */
    bool dead;                 /* a device failure: no more work */
    uint32_t takes;            /* lw_backend_takes */
    lw_recipe recipe;
    bool has_shape;
    shape shape;
    planned text, hint[LW_MAX_CONTROLS], time, begin, decode;
    planned update; /* by itself: for rows that reuse an eps, and where the recipe has it outside the step */
    planned *step; /* by variant (bit k: ControlNet k takes part), recorded when first needed */
    buffer buffers[MAX_BUFFERS];
    int32_t n_buffers;
    void *temp;
    uint64_t temp_bytes;
    /* what the cached results were made from */
    int32_t *ids;                    /* [2][77], NULL: text is not valid */
    uint8_t *edges[LW_MAX_CONTROLS]; /* NULL: hint k is not valid */
    float *timesteps;                /* [rows], NULL: the time table is not valid */
    float *host;                     /* staging: the largest of noise, latents, tables */
    size_t host_bytes;
    step_news news[N_NEWS];
};

/* ---- plans */

static lw_backend *backend_of(const lw_session *s) { return s->engine->backend; }

static void free_planned(planned *p) {
    lw_plan_free(p->plan);
    lw_program_free(p->program);
    *p = (planned){0};
}

void lw_session_forget_results(lw_session *s) {
    lw_free(s->ids);
    s->ids = NULL;
    lw_free(s->timesteps);
    s->timesteps = NULL;
    for (int32_t k = 0; k < LW_MAX_CONTROLS; k++) {
        lw_free(s->edges[k]);
        s->edges[k] = NULL;
    }
}

static void forget_shape(lw_session *s) {
    free_planned(&s->text);
    free_planned(&s->time);
    free_planned(&s->begin);
    free_planned(&s->update);
    free_planned(&s->decode);
    for (int32_t k = 0; k < LW_MAX_CONTROLS; k++) free_planned(&s->hint[k]);
    for (int32_t v = 0; s->step && v < MAX_VARIANTS; v++) free_planned(&s->step[v]);
    for (int32_t i = 0; i < s->n_buffers; i++)
        if (s->buffers[i].device) backend_of(s)->free(backend_of(s), s->buffers[i].device);
    if (s->temp) backend_of(s)->free(backend_of(s), s->temp);
    for (int32_t i = 0; i < N_NEWS; i++) {
        lw_free_mark(backend_of(s), s->news[i].mark);
        lw_free_host(backend_of(s), s->news[i].status);
        lw_free_host(backend_of(s), s->news[i].x);
        s->news[i] = (step_news){0};
    }
    lw_free_host(backend_of(s), s->host);
    lw_session_forget_results(s);
    s->n_buffers = 0;
    s->temp = s->host = NULL;
    s->temp_bytes = s->host_bytes = 0;
    s->has_shape = false;
}

/* Notes the externs of a plan, by name. */
static lw_status note_buffers(lw_session *s, const planned *p, lw_error *err) {
    for (int32_t i = 0; i < p->program->n_buffers; i++) {
        const lw_buffer *b = &p->program->buffers[i];
        if (b->kind != LW_BUFFER_EXTERN) continue;
        int32_t k = 0;
        while (k < s->n_buffers && strcmp(s->buffers[k].name, b->name)) k++;
        if (k == MAX_BUFFERS) return lw_fail(err, LW_EINTERNAL, "over %d buffers in a session", MAX_BUFFERS);
        if (k == s->n_buffers) s->buffers[s->n_buffers++] = (buffer){.name = b->name, .bytes = b->bytes};
        if (s->buffers[k].bytes != b->bytes)
            return lw_fail(err, LW_EINTERNAL, "buffer %s has %lld bytes in one program and %lld in %s", b->name,
                           (long long)s->buffers[k].bytes, (long long)b->bytes, p->program->name);
    }
    return LW_OK;
}

static lw_status finish_plan(lw_session *s, planned *p, lw_error *err) {
    const lw_plan_options options = {
        .choices = s->choices, .unfused = s->recipe.unfused, .no_graph = s->recipe.no_graph};
    LW_TRY(lw_plan_make_with(&p->plan, backend_of(s), &options, p->program, err));
    if (lw_plan_temp_bytes(p->plan) > s->temp_bytes) s->temp_bytes = lw_plan_temp_bytes(p->plan);
    return note_buffers(s, p, err);
}

static lw_status new_program(lw_session *s, planned *p, const char *name, lw_error *err) {
    p->program = lw_program_new(name, s->params, backend_of(s)->act);
    return p->program ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory for program %s", name);
}

static lw_step_shape step_shape(const lw_session *s, uint32_t controls) {
    const shape *t = &s->shape;
    return (lw_step_shape){.g = t->g,
                           .n = t->n,
                           .h = t->h,
                           .w = t->w,
                           .n_controls = t->n_controls,
                           .rows = t->rows,
                           .n_noise = t->n_noise,
                           .controls = controls};
}

static lw_status plan_step(lw_session *s, uint32_t controls, lw_error *err) {
    planned *p = &s->step[controls];
    if (p->plan) return LW_OK;
    lw_step_shape t = step_shape(s, controls);
    LW_TRY(new_program(s, p, "step", err));
    lw_recipe_record_step(p->program, &s->engine->model, &s->recipe, &t, s->takes);
    return finish_plan(s, p, err);
}

static lw_status plan_update(lw_session *s, lw_error *err) {
    const lw_step_shape t = step_shape(s, 0);
    LW_TRY(new_program(s, &s->update, "update", err));
    lw_recipe_record_update(s->update.program, &s->engine->model, &s->recipe, &t, false);
    return finish_plan(s, &s->update, err);
}

static lw_status plan_shape(lw_session *s, const shape *want, lw_error *err) {
    const lw_model *m = &s->engine->model;
    s->shape = *want;
    if (!s->step) s->step = lw_alloc(MAX_VARIANTS, sizeof *s->step);
    if (!s->step) return lw_fail(err, LW_ENOMEM, "no memory for a session's plans");
    const lw_recipe *r = &s->recipe;
    const lw_step_shape t = step_shape(s, 0);
    LW_TRY(new_program(s, &s->text, "text", err));
    lw_recipe_record_text(s->text.program, m, r, &t, want->clip_skip, s->takes);
    LW_TRY(finish_plan(s, &s->text, err));
    for (int32_t k = 0; k < want->n_controls && !r->hint_each_step; k++) {
        LW_TRY(new_program(s, &s->hint[k], "hint", err));
        lw_record_hint(s->hint[k].program, m, k, want->h, want->w);
        LW_TRY(finish_plan(s, &s->hint[k], err));
    }
    if (!r->time_each_step) {
        LW_TRY(new_program(s, &s->time, "time", err));
        s->time.program->exact = true;
        lw_record_time(s->time.program, m, want->n_controls, want->rows, "t", "addend_table");
        LW_TRY(finish_plan(s, &s->time, err));
    }
    LW_TRY(new_program(s, &s->begin, "begin", err));
    lw_recipe_record_update(s->begin.program, m, r, &t, true);
    LW_TRY(finish_plan(s, &s->begin, err));
    LW_TRY(new_program(s, &s->decode, "decode", err));
    lw_record_decode(s->decode.program, m, want->n, want->h, want->w);
    return finish_plan(s, &s->decode, err);
}

/* ---- memory */

static uint64_t buffers_bytes(const lw_session *s) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < s->n_buffers; i++) sum += (uint64_t)s->buffers[i].bytes;
    return sum;
}

static uint64_t total_bytes(const lw_session *s) {
    return buffers_bytes(s) + s->temp_bytes + lw_params_bytes(s->params);
}

static lw_status check_memory(const lw_session *s, lw_error *err) {
    uint64_t total = total_bytes(s);
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (s->engine->max_memory && total > s->engine->max_memory)
        return lw_fail(err, LW_ENOMEM, "the job needs %llu bytes, the limit is %llu", (unsigned long long)total,
                       (unsigned long long)s->engine->max_memory);
    if (backend_of(s)->device == LW_DEVICE_CPU && total > machine)
        return lw_fail(err, LW_ENOMEM, "the job needs %llu bytes, the machine has %llu", (unsigned long long)total,
                       (unsigned long long)machine);
    if (!backend_of(s)->behind) return LW_OK;
    uint64_t filled = lw_params_filled_bytes(s->engine->params), more = total > filled ? total - filled : 0,
             left = backend_of(s)->behind->free_bytes(backend_of(s));
    if (more > left)
        return lw_fail(err, LW_ENOMEM, "the job needs %llu bytes on the device, %llu are free",
                       (unsigned long long)more, (unsigned long long)left);
    return LW_OK;
}

static void bind(const lw_session *s, const planned *p) {
    if (!p->plan) return;
    for (int32_t i = 0; i < s->n_buffers; i++)
        if (lw_plan_extern_bytes(p->plan, s->buffers[i].name))
            lw_plan_bind(p->plan, s->buffers[i].name, s->buffers[i].device, NULL);
    lw_plan_bind_temp(p->plan, s->temp);
}

static lw_status allocate_news(lw_session *s, lw_error *err) {
    lw_backend *b = backend_of(s);
    for (int32_t i = 0; i < N_NEWS; i++) {
        step_news *k = &s->news[i];
        void *status = NULL, *x = NULL;
        if (!k->status) LW_TRY(lw_alloc_host(b, 4 * sizeof *k->status, &status, err));
        if (!k->status) k->status = status;
        if (!k->x) LW_TRY(lw_alloc_host(b, (size_t)s->shape.h * (size_t)s->shape.w * 8 * sizeof *k->x, &x, err));
        if (!k->x) k->x = x;
    }
    return LW_OK;
}

/* Allocates what the plans need beyond what is there, packs the weights, and binds all plans. */
static lw_status allocate(lw_session *s, lw_error *err) {
    lw_backend *b = backend_of(s);
    LW_TRY(check_memory(s, err));
    size_t host = 0;
    for (int32_t i = 0; i < s->n_buffers; i++) {
        if (!s->buffers[i].device) LW_TRY(b->alloc(b, (size_t)s->buffers[i].bytes, &s->buffers[i].device, err));
        if ((size_t)s->buffers[i].bytes > host) host = (size_t)s->buffers[i].bytes;
    }
    if (host > s->host_bytes) {
        void *more = NULL;
        LW_TRY(lw_alloc_host(b, host, &more, err));
        lw_free_host(b, s->host);
        s->host = more;
        s->host_bytes = host;
    }
    LW_TRY(allocate_news(s, err));
    if (s->temp) b->free(b, s->temp);
    s->temp = NULL;
    LW_TRY(b->alloc(b, s->temp_bytes, &s->temp, err));
    LW_TRY(lw_params_fill(s->engine->params, b, err));
    bind(s, &s->text);
    bind(s, &s->time);
    bind(s, &s->begin);
    bind(s, &s->update);
    bind(s, &s->decode);
    for (int32_t k = 0; k < s->shape.n_controls; k++) bind(s, &s->hint[k]);
    for (int32_t v = 0; v < MAX_VARIANTS; v++) bind(s, &s->step[v]);
    return LW_OK;
}

static void *device_of(const lw_session *s, const char *name) {
    for (int32_t i = 0; i < s->n_buffers; i++)
        if (!strcmp(s->buffers[i].name, name)) return s->buffers[i].device;
    return NULL;
}

static lw_status put(const lw_session *s, const char *name, const void *src, size_t bytes, lw_error *err) {
    return backend_of(s)->upload(backend_of(s), device_of(s, name), src, bytes, err);
}

/* ---- the schedule's tables */

static bool control_runs(const lw_control *c, int32_t i, int32_t n) {
    return c->strength != 0 && (double)i / n >= c->start && (double)(i + 1) / n <= c->end;
}

static uint32_t row_controls(const lw_job *job, int32_t i) {
    uint32_t bits = 0;
    for (int32_t k = 0; k < job->n_controls; k++)
        if (control_runs(&job->controls[k], i, job->schedule.n_rows)) bits |= 1u << k;
    return bits;
}

static bool reuses(const lw_job *job, int32_t i) { return job->reuse && job->reuse[i]; }

static void fill_scales(const lw_session *s, const lw_job *job, float *row) {
    int32_t n_taps = s->engine->model.unet.n_in + 1;
    for (int32_t k = 0; k < job->n_controls; k++)
        for (int32_t i = 0; i < n_taps; i++)
            for (int32_t g = 0; g < job->g; g++) {
                double scale = job->controls[k].strength;
                if (job->mode != LW_CONTROL_BALANCED)
                    scale *= pow(0.825, n_taps - 1 - i); /* ControlNet's guess mode: later taps count more */
                if (job->mode == LW_CONTROL_CONTROL && g == 1)
                    scale = 0; /* and the unconditional pass has no control */
                row[lw_scale_at(k, i, g, job->g)] = (float)scale;
            }
}

static lw_status put_tables(lw_session *s, const lw_job *job, double cfg_scale, lw_error *err) {
    const lw_schedule *t = &job->schedule;
    lw_row *rows = (lw_row *)s->host;
    memset(s->host, 0, s->host_bytes);
    for (int32_t i = 0; i < t->n_rows; i++) {
        rows[i] = t->rows[i];
        rows[i].guidance = (float)cfg_scale;
        rows[i].variant = (int32_t)row_controls(job, i);
    }
    LW_TRY(put(s, "rows", rows, (size_t)t->n_rows * sizeof *rows, err));
    int32_t each = lw_scales_row(s->shape.n_controls, s->shape.g);
    memset(s->host, 0, s->host_bytes);
    for (int32_t i = 0; i < t->n_rows; i++) fill_scales(s, job, s->host + (size_t)i * (size_t)each);
    return put(s, "scale_table", s->host, (size_t)t->n_rows * (size_t)each * sizeof(float), err);
}

/* [n,4,h,w] as PyTorch draws it to [n,h,w,8] with zeros, times factor. */
static void to_view(const shape *t, const float *nchw, double factor, float *nhwc) {
    size_t plane = (size_t)t->h * (size_t)t->w;
    for (size_t n = 0; n < (size_t)t->n; n++)
        for (size_t i = 0; i < plane; i++)
            for (size_t c = 0; c < 8; c++)
                nhwc[(n * plane + i) * 8 + c] = c < 4 ? (float)((double)nchw[(n * 4 + c) * plane + i] * factor) : 0;
}

static lw_status put_noise(lw_session *s, const lw_job *job, const lw_request *r, int64_t seed, lw_error *err) {
    const shape *t = &s->shape;
    size_t each = (size_t)t->n * 4 * (size_t)t->h * (size_t)t->w;
    lw_noise noise;
    lw_noise_init(&noise, r->rng, (uint64_t)seed);
    float *draw = lw_alloc(each, sizeof *draw);
    lw_status status = draw ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory for %zu noise values", each);
    if (status != LW_OK) return status;
    lw_noise_draw(&noise, draw, each); /* made even where it is replaced, so that later draws stay the same */
    to_view(t, r->init_latents ? r->init_latents : draw, r->init_latents ? 1 : (double)job->schedule.init_scale,
            s->host);
    LW_GO(put(s, "x", s->host, each * 2 * sizeof(float), err));
    for (int32_t k = 0; k < job->schedule.n_noise; k++) {
        lw_noise_draw(&noise, draw, each);
        to_view(t, draw, 1, s->host);
        LW_GO(backend_of(s)->upload(backend_of(s), (float *)device_of(s, "noise") + (size_t)k * each * 2, s->host,
                                    each * 2 * sizeof(float), err));
    }
    memset(s->host, 0, each * 2 * sizeof(float));
    LW_GO(put(s, "h1", s->host, each * 2 * sizeof(float), err));
    LW_GO(put(s, "h2", s->host, each * 2 * sizeof(float), err));
    LW_GO(put(s, "y", s->host, each * 2 * sizeof(float), err));
out:
    lw_free(draw);
    return status;
}

/* ---- text, hint, time */

static lw_status add_cut(char **cut, char *more, lw_error *err) {
    if (!more) return LW_OK;
    char *both = *cut ? lw_format("%s … %s", *cut, more) : lw_strdup(more);
    lw_free(more);
    if (!both) return lw_fail(err, LW_ENOMEM, "no memory for the prompt's rest");
    lw_free(*cut);
    *cut = both;
    return LW_OK;
}

static lw_status run_text(lw_session *s, const lw_job *job, const lw_request *r, lw_result *out, lw_error *err) {
    int32_t ids[2 * LW_N_TOKENS];
    char *cut = NULL, *joined = lw_format("%s, %s", r->prompt, job->added);
    if (!joined) return lw_fail(err, LW_ENOMEM, "no memory for the prompt");
    lw_status status = lw_tokenize(s->engine->tokenizer, joined, ids, &cut, err);
    lw_free(joined);
    LW_TRY(status);
    LW_TRY(add_cut(&out->cut, cut, err));
    cut = NULL;
    LW_TRY(lw_tokenize(s->engine->tokenizer, job->negative, ids + LW_N_TOKENS, &cut, err));
    LW_TRY(add_cut(&out->cut, cut, err));
    size_t bytes = (size_t)s->shape.g * LW_N_TOKENS * sizeof *ids;
    if (s->ids && !memcmp(s->ids, ids, bytes)) return LW_OK;
    lw_free(s->ids);
    s->ids = NULL;
    LW_TRY(put(s, "ids", ids, bytes, err));
    LW_TRY(lw_plan_run(s->text.plan, err));
    s->ids = lw_alloc(2 * LW_N_TOKENS, sizeof *ids);
    if (s->ids) memcpy(s->ids, ids, sizeof ids); /* without memory it is only not cached */
    return LW_OK;
}

static lw_status run_hint(lw_session *s, int32_t k, const lw_image *map, lw_error *err) {
    size_t row = (size_t)map->width * 3, bytes = row * (size_t)map->height;
    uint8_t *tight = lw_alloc(bytes, 1);
    if (!tight) return lw_fail(err, LW_ENOMEM, "no memory for an edge map of %zu bytes", bytes);
    for (int32_t y = 0; y < map->height; y++) memcpy(tight + (size_t)y * row, map->data + (size_t)y * map->stride, row);
    lw_status status = LW_OK;
    if (!s->edges[k] || memcmp(s->edges[k], tight, bytes)) {
        lw_free(s->edges[k]);
        s->edges[k] = NULL;
        char name[16];
        snprintf(name, sizeof name, "edges%d", k);
        if (device_of(s, name)) LW_GO(put(s, name, tight, bytes, err));
        if (s->hint[k].plan) LW_GO(lw_plan_run(s->hint[k].plan, err));
        s->edges[k] = tight;
        tight = NULL;
    }
out:
    lw_free(tight);
    return status;
}

static lw_status run_time(lw_session *s, const lw_job *job, lw_error *err) {
    size_t rows = (size_t)s->shape.rows;
    float *t = lw_alloc(rows, 4 * sizeof *t); /* a timestep takes 16 bytes, as every row of a view */
    if (!t) return lw_fail(err, LW_ENOMEM, "no memory for %zu timesteps", rows);
    for (int32_t i = 0; i < job->schedule.n_rows; i++) t[4 * i] = (float)job->schedule.timesteps[i];
    lw_status status = LW_OK;
    if (!s->timesteps || memcmp(s->timesteps, t, rows * 4 * sizeof *t)) {
        lw_free(s->timesteps);
        s->timesteps = NULL;
        LW_GO(put(s, "t", t, rows * 4 * sizeof *t, err));
        if (s->time.plan) LW_GO(lw_plan_run(s->time.plan, err));
        s->timesteps = t;
        t = NULL;
    }
out:
    lw_free(t);
    return status;
}

/* ---- the loop */

static void latents_to_host(const shape *t, const float *nhwc, float *nchw) {
    size_t plane = (size_t)t->h * (size_t)t->w;
    for (size_t n = 0; n < (size_t)t->n; n++)
        for (size_t i = 0; i < plane; i++)
            for (size_t c = 0; c < 4; c++) nchw[(n * 4 + c) * plane + i] = nhwc[(n * plane + i) * 8 + c];
}

static lw_status show_preview(const lw_session *s, const lw_request *r, int32_t step, const float *x, lw_error *err) {
    const shape *t = &s->shape;
    const double *m = s->engine->model.config.latent_rgb;
    size_t n = (size_t)t->h * (size_t)t->w;
    lw_image image = {.size = sizeof image,
                      .width = t->w,
                      .height = t->h,
                      .channels = 3,
                      .stride = (size_t)t->w * 3,
                      .data = lw_alloc(n, 3)};
    if (!image.data) return lw_fail(err, LW_ENOMEM, "no memory for a preview");
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++) {
            double v = m[12 + c];
            for (size_t k = 0; k < 4; k++) v += m[c * 4 + k] * (double)x[i * 8 + k];
            image.data[i * 3 + c] = (uint8_t)(v <= 0 ? 0 : v >= 1 ? 255 : v * 255);
        }
    r->preview(r->user, step, &image);
    lw_free(image.data);
    return LW_OK;
}

static lw_status report(const lw_request *r, lw_stage stage, int32_t step, int32_t n, lw_error *err) {
    if (r->progress && r->progress(r->user, stage, step, n) != 0) return lw_fail(err, LW_ECANCEL, "cancelled");
    return LW_OK;
}

static lw_status check_finite(const lw_session *s, const char *name, int32_t at, const char *what, lw_error *err) {
    int32_t status[4];
    LW_TRY(backend_of(s)->download(backend_of(s), status, device_of(s, name), sizeof status, err));
    if (status[at])
        return lw_fail(err, LW_EMODEL, "%s: NaN or infinity came out of %s", s->engine->model.config.name, what);
    return LW_OK;
}

/* The update where the recipe has it outside the step: it waits for the networks. */
static lw_status update(lw_session *s, lw_error *err) {
    lw_backend *b = backend_of(s);
    const lw_step_shape t = step_shape(s, 0);
    int32_t status[4];
    if (s->recipe.update == LW_UPDATE_PROGRAM) {
        LW_TRY(b->download(b, status, device_of(s, "status"), sizeof status, err));
        return lw_plan_run(s->update.plan, err);
    }
    bool addends = !s->recipe.time_each_step;
    const char *row = addends ? "addends" : "t_row";
    const lw_update_buffers at = {.eps = device_of(s, "eps"),
                                  .x = device_of(s, "x"),
                                  .h1 = device_of(s, "h1"),
                                  .h2 = device_of(s, "h2"),
                                  .y = device_of(s, "y"),
                                  .net_in = device_of(s, "net_in"),
                                  .rows = device_of(s, "rows"),
                                  .noise = device_of(s, "noise"),
                                  .table = device_of(s, addends ? "addend_table" : "t"),
                                  .row = device_of(s, row),
                                  .row_bytes = lw_plan_extern_bytes(s->update.plan, row),
                                  .scale_table = device_of(s, "scale_table"),
                                  .scales = device_of(s, "scales"),
                                  .scales_bytes = lw_plan_extern_bytes(s->update.plan, "scales"),
                                  .status = device_of(s, "status")};
    return lw_recipe_update_on_host(b, &at, &t, err);
}

/* Queues step i and the news of it. */
static lw_status queue_step(lw_session *s, const lw_job *job, const lw_request *r, int32_t i, lw_error *err) {
    lw_backend *b = backend_of(s);
    step_news *k = &s->news[i % N_NEWS];
    size_t latents = (size_t)s->shape.h * (size_t)s->shape.w * 8 * sizeof *k->x;
    if (!reuses(job, i)) LW_TRY(lw_plan_run(s->step[row_controls(job, i)].plan, err));
    if (s->recipe.update != LW_UPDATE_IN_STEP) LW_TRY(update(s, err));
    else if (reuses(job, i)) LW_TRY(lw_plan_run(s->update.plan, err));
    LW_TRY(lw_fetch(b, k->status, device_of(s, "status"), 4 * sizeof *k->status, err));
    if (r->preview) LW_TRY(lw_fetch(b, k->x, device_of(s, "x"), latents, err));
    return lw_mark(b, &k->mark, err);
}

/* Waits for step i and tells the caller. */
static lw_status end_step(lw_session *s, const lw_request *r, int32_t i, int32_t n, lw_error *err) {
    step_news *k = &s->news[i % N_NEWS];
    LW_TRY(lw_wait(backend_of(s), k->mark, err));
    if (k->status[2])
        return lw_fail(err, LW_EMODEL, "%s: NaN or infinity came out of the networks at step %d of %d",
                       s->engine->model.config.name, i + 1, n);
    if (r->preview) LW_TRY(show_preview(s, r, i + 1, k->x, err));
    return report(r, LW_STAGE_STEPS, i + 1, n, err);
}

/* On a device that runs behind the host the next step is queued before one is waited for: it never idles. */
static lw_status run_loop(lw_session *s, const lw_job *job, const lw_request *r, lw_result *out, lw_error *err) {
    int32_t n = job->schedule.n_rows, status[4] = {-1, n, 0, 0}, lag = backend_of(s)->behind ? N_NEWS - 1 : 0;
    LW_TRY(put(s, "status", status, sizeof status, err));
    LW_TRY(lw_plan_run(s->begin.plan, err));
    double last = lw_now_ms();
    for (int32_t i = 0; i < n + lag; i++) {
        if (i < n) LW_TRY(queue_step(s, job, r, i, err));
        if (i < lag) continue;
        LW_TRY(end_step(s, r, i - lag, n, err));
        out->step_ms[i - lag] = lw_now_ms() - last;
        last += out->step_ms[i - lag];
    }
    return LW_OK;
}

static lw_status decode(lw_session *s, const lw_request *r, lw_result *out, lw_error *err) {
    const shape *t = &s->shape;
    lw_backend *b = backend_of(s);
    size_t latents = (size_t)t->n * 4 * (size_t)t->h * (size_t)t->w,
           bytes = (size_t)out->width * (size_t)out->height * 3;
    int32_t status[4] = {0};
    if (r->want_latents) {
        out->latents = lw_alloc(latents, sizeof(float));
        if (!out->latents) return lw_fail(err, LW_ENOMEM, "no memory for %zu latents", latents);
        LW_TRY(b->download(b, s->host, device_of(s, "x"), latents * 2 * sizeof(float), err));
        latents_to_host(t, s->host, out->latents);
    }
    LW_TRY(put(s, "decode_status", status, sizeof status, err));
    LW_TRY(lw_plan_run(s->decode.plan, err));
    LW_TRY(check_finite(s, "decode_status", 0, "the VAE", err));
    out->images = lw_alloc((size_t)t->n, sizeof *out->images);
    if (!out->images) return lw_fail(err, LW_ENOMEM, "no memory for %d pictures", t->n);
    for (int32_t i = 0; i < t->n; i++) {
        lw_image *image = &out->images[i];
        *image = (lw_image){.size = sizeof *image,
                            .width = out->width,
                            .height = out->height,
                            .channels = 3,
                            .stride = (size_t)out->width * 3,
                            .data = lw_alloc(bytes, 1)};
        out->n_images++;
        if (!image->data) return lw_fail(err, LW_ENOMEM, "no memory for a picture of %zu bytes", bytes);
        LW_TRY(b->download(b, image->data, (uint8_t *)device_of(s, "image") + (size_t)i * bytes, bytes, err));
    }
    return LW_OK;
}

/* ---- the job */

static int32_t rows_capacity(int32_t n) { return (n + 31) / 32 * 32; }

static lw_status settle_choices(lw_session *s, const lw_job *job, lw_error *err);

/* Plans for the job's shape, and for the step variants that its rows use. */
static lw_status plan_job(lw_session *s, const lw_job *job, bool *grew, lw_error *err) {
    shape want = {.g = job->g,
                  .n = job->n,
                  .h = job->height / 8,
                  .w = job->width / 8,
                  .n_controls = job->n_controls,
                  .rows = rows_capacity(job->schedule.n_rows),
                  .n_noise = job->schedule.n_noise ? rows_capacity(job->schedule.n_noise) : 1,
                  .clip_skip = job->clip_skip};
    if (!s->has_shape || memcmp(&want, &s->shape, sizeof want)) {
        forget_shape(s);
        *grew = true;
        LW_TRY(settle_choices(s, job, err));
        LW_TRY(plan_shape(s, &want, err));
    }
    for (int32_t i = 0; i < job->schedule.n_rows; i++) {
        uint32_t controls = row_controls(job, i);
        if (reuses(job, i) || s->step[controls].plan) continue;
        *grew = true;
        LW_TRY(plan_step(s, controls, err));
    }
    if ((job->reuse || s->recipe.update != LW_UPDATE_IN_STEP) && !s->update.plan) {
        *grew = true;
        LW_TRY(plan_update(s, err));
    }
    return LW_OK;
}

/* A session with params of its own over the same tensors, closed with close_dry. */
static lw_status open_dry(lw_session **out, lw_engine *engine, lw_error *err) {
    lw_tensor_source source = lw_model_source(&engine->model);
    LW_TRY(lw_session_open(out, engine, err));
    (*out)->dry = true;
    (*out)->params = NULL;
    return lw_params_new(&(*out)->params, &source, err);
}

static void close_dry(lw_session **s) {
    lw_params *params = *s ? (*s)->params : NULL;
    lw_backend *backend = *s ? backend_of(*s) : NULL;
    lw_engine *engine = *s ? (*s)->engine : NULL;
    if (!engine) return;
    atomic_fetch_add(&engine->refs, 1); /* the backend is needed for the params after the session */
    lw_session_close(s);
    lw_params_free(params, backend);
    lw_engine_unref(engine);
}

/* Tuned tactics may take more memory than the others. Under a limit, whether the job fits with them is planned aside
 * first: what a plan has once asked of the engine's params stays there. */
static lw_status pick_choices(lw_engine *e, const lw_job *job, const lw_choices **out, lw_error *err) {
    lw_session *dry = NULL;
    bool grew = false;
    *out = e->choices;
    if (!e->max_memory || !lw_choices_count(e->choices)) return LW_OK;
    lw_status status = open_dry(&dry, e, err);
    if (status == LW_OK) {
        dry->choices = e->choices;
        status = plan_job(dry, job, &grew, err);
    }
    if (status == LW_OK && total_bytes(dry) > e->max_memory) {
        *out = NULL;
        if (e->log)
            e->log(e->user, LW_LOG_NOTE, "the tuned tactics do not fit into the memory limit: the job goes without");
    }
    close_dry(&dry);
    return status;
}

/* A dry session has been told. */
static lw_status settle_choices(lw_session *s, const lw_job *job, lw_error *err) {
    return s->dry ? LW_OK : pick_choices(s->engine, job, &s->choices, err);
}

static void note_tactics(lw_session *s) {
    uint64_t h = lw_plan_hash(s->text.plan) * 31 + lw_plan_hash(s->decode.plan);
    for (int32_t v = 0; v < MAX_VARIANTS; v++)
        if (s->step[v].plan) h = h * 31 + lw_plan_hash(s->step[v].plan);
    pthread_mutex_lock(&s->engine->lock);
    snprintf(s->engine->tactics_hash, sizeof s->engine->tactics_hash, "%010llx",
             (unsigned long long)(h & 0xffffffffffull));
    pthread_mutex_unlock(&s->engine->lock);
}

static lw_status make_ready(lw_session *s, const lw_job *job, lw_error *err) {
    bool grew = false;
    lw_status status = plan_job(s, job, &grew, err);
    if (status == LW_OK && grew) {
        lw_session_forget_results(s);
        status = allocate(s, err);
    }
    if (status != LW_OK) {
        forget_shape(s);
        return status;
    }
    s->has_shape = true;
    if (grew) note_tactics(s);
    return LW_OK;
}

static lw_status make_maps(const lw_job *job, const lw_request *r, lw_image maps[LW_MAX_CONTROLS], lw_result *out,
                           lw_error *err) {
    for (int32_t k = 0; k < job->n_controls; k++) LW_TRY(lw_job_map(job, r, k, &maps[k], err));
    const lw_image *m = &maps[0]; /* the result's edge map has one channel */
    lw_image *c = &out->control;
    *c = (lw_image){.size = sizeof *c,
                    .width = m->width,
                    .height = m->height,
                    .channels = 1,
                    .stride = (size_t)m->width,
                    .data = lw_alloc((size_t)m->width, (size_t)m->height)};
    if (!c->data) return lw_fail(err, LW_ENOMEM, "no memory for an edge map");
    for (int32_t y = 0; y < m->height; y++)
        for (int32_t x = 0; x < m->width; x++)
            c->data[(size_t)y * c->stride + (size_t)x] = m->data[(size_t)y * m->stride + (size_t)x * 3];
    return LW_OK;
}

static lw_status run_job(lw_session *s, const lw_job *job, const lw_request *r, lw_result *out, lw_error *err) {
    lw_image maps[LW_MAX_CONTROLS] = {{0}};
    lw_status status = LW_OK;
    double t0 = lw_now_ms();
    LW_GO(report(r, LW_STAGE_CANNY, 0, 0, err));
    LW_GO(make_maps(job, r, maps, out, err));
    double t1 = lw_now_ms();
    out->canny_ms = t1 - t0;
    out->seed = r->seed;
    if (r->seed == -1) LW_GO(lw_random_seed(&out->seed, err));
    LW_GO(report(r, LW_STAGE_LOAD, 0, 0, err));
    LW_GO(make_ready(s, job, err));
    LW_GO(put_tables(s, job, r->cfg_scale, err));
    LW_GO(put_noise(s, job, r, out->seed, err));
    LW_GO(run_time(s, job, err));
    double t2 = lw_now_ms();
    out->load_ms = s->engine->load_ms + t2 - t1;
    LW_GO(report(r, LW_STAGE_TEXT, 0, 0, err));
    LW_GO(run_text(s, job, r, out, err));
    double t3 = lw_now_ms();
    out->text_ms = t3 - t2;
    LW_GO(report(r, LW_STAGE_HINT, 0, 0, err));
    for (int32_t k = 0; k < job->n_controls; k++) LW_GO(run_hint(s, k, &maps[k], err));
    out->hint_ms = lw_now_ms() - t3;
    LW_GO(report(r, LW_STAGE_STEPS, 0, job->schedule.n_rows, err));
    LW_GO(run_loop(s, job, r, out, err));
    LW_GO(report(r, LW_STAGE_DECODE, 0, 0, err));
    double t4 = lw_now_ms();
    LW_GO(decode(s, r, out, err));
    out->decode_ms = lw_now_ms() - t4;
    out->total_ms = lw_now_ms() - t0;
    LW_GO(report(r, LW_STAGE_DONE, 0, 0, err));
out:
    for (int32_t k = 0; k < LW_MAX_CONTROLS; k++) lw_image_free(&maps[k]);
    return status;
}

/* Of this program: getrusage's begins with the peak of the process that started it. 0 where it can't be known. */
static uint64_t peak_host_bytes(void) {
    char line[128];
    unsigned long long kib = 0;
    FILE *status = fopen("/proc/self/status", "re");
    if (!status) return 0;
    while (fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %llu kB", &kib) != 1) {}
    fclose(status);
    return kib * 1024;
}

lw_status lw_session_generate(lw_session *s, const lw_request *r, lw_result *out, lw_error *err) {
    lw_job job;
    *out = (lw_result){.size = sizeof *out};
    if (s->dead) return lw_fail(err, LW_EDEVICE, "this session's device failed before: open another");
    lw_status status = lw_job_resolve(&job, s->engine, r, err);
    if (status == LW_OK) {
        out->width = job.width;
        out->height = job.height;
        out->steps = job.schedule.n_rows;
        out->step_ms = lw_alloc((size_t)job.schedule.n_rows, sizeof *out->step_ms);
        status = out->step_ms ? run_job(s, &job, r, out, err) : lw_fail(err, LW_ENOMEM, "no memory for a result");
    }
    out->peak_host_bytes = peak_host_bytes();
    if (backend_of(s)->device != LW_DEVICE_CPU)
        out->peak_device_bytes = buffers_bytes(s) + s->temp_bytes + lw_params_bytes(s->engine->params);
    lw_job_free(&job);
    if (status == LW_EDEVICE) s->dead = true;
    if (status != LW_OK) lw_result_free(out);
    return status;
}

void lw_session_set_recipe(lw_session *s, const lw_recipe *recipe) {
    forget_shape(s);
    s->recipe = *recipe;
}

void lw_result_free(lw_result *result) {
    if (!result) return;
    for (uint32_t i = 0; i < result->n_images; i++) lw_image_free(&result->images[i]);
    lw_free(result->images);
    lw_image_free(&result->control);
    lw_free(result->latents);
    lw_free(result->step_ms);
    lw_free(result->cut);
    *result = (lw_result){.size = sizeof *result};
}

lw_status lw_session_open(lw_session **out, lw_engine *engine, lw_error *err) {
    lw_session *s = lw_alloc(1, sizeof *s);
    if (!s) return lw_fail(err, LW_ENOMEM, "no memory for a session");
    atomic_fetch_add(&engine->refs, 1);
    s->engine = engine;
    s->params = engine->params;
    s->takes = lw_backend_takes(engine->backend);
    *out = s;
    return LW_OK;
}

void lw_session_close(lw_session **session) {
    if (!session || !*session) return;
    lw_session *s = *session;
    forget_shape(s);
    lw_free(s->step);
    lw_engine_unref(s->engine);
    lw_free(s);
    *session = NULL;
}

static double job_flop(const lw_session *s, const lw_job *job) {
    double flop =
        lw_plan_flop(s->text.plan) + (s->time.plan ? lw_plan_flop(s->time.plan) : 0) + lw_plan_flop(s->decode.plan);
    for (int32_t k = 0; k < job->n_controls; k++) flop += lw_plan_flop(s->hint[k].plan);
    for (int32_t i = 0; i < job->schedule.n_rows; i++)
        if (!reuses(job, i)) flop += lw_plan_flop(s->step[row_controls(job, i)].plan);
    return flop;
}

lw_status lw_estimate(lw_engine *engine, const lw_request *request, lw_plan_info *info, lw_error *err) {
    if (info->size && info->size < sizeof *info)
        return lw_fail(err, LW_EINVAL, "plan info has size %u, at least %zu is needed", info->size, sizeof *info);
    lw_session *s = NULL;
    lw_job job;
    bool grew = false;
    lw_status status = lw_job_resolve(&job, engine, request, err);
    if (status == LW_OK) status = open_dry(&s, engine, err);
    if (status == LW_OK) status = pick_choices(engine, &job, &s->choices, err);
    if (status == LW_OK) status = plan_job(s, &job, &grew, err);
    if (status == LW_OK) status = check_memory(s, err);
    if (status == LW_OK) {
        *info = (lw_plan_info){.size = sizeof *info,
                               .width = job.width,
                               .height = job.height,
                               .steps = job.schedule.n_rows,
                               .weights_bytes = lw_params_bytes(s->params),
                               .activations_bytes = s->temp_bytes,
                               .tables_bytes = buffers_bytes(s),
                               .gflop = job_flop(s, &job) * 1e-9};
        info->total_bytes = info->weights_bytes + info->activations_bytes + info->tables_bytes;
        info->host_bytes = (uint64_t)job.width * (uint64_t)job.height * 3 * (uint64_t)(job.n + 2);
    }
    close_dry(&s);
    lw_job_free(&job);
    return status;
}

/* ---- tuning */

typedef struct tuner {
    lw_tuned_fn tuned;
    void *user;
} tuner;

static int tell_tuned(void *user, const lw_tune_op *op) {
    const tuner *t = user;
    const lw_tuned tuned = {.size = sizeof tuned,
                            .op = op->choice.op,
                            .tactic = op->choice.tactic,
                            .us = op->choice.us,
                            .heuristic = op->heuristic,
                            .heuristic_us = op->heuristic_us,
                            .uses = op->uses,
                            .index = op->index,
                            .n = op->n};
    return t->tuned ? t->tuned(t->user, &tuned) : 0;
}

static int32_t all_programs(const lw_session *s, const lw_program *out[MAX_VARIANTS + LW_MAX_CONTROLS + 4]) {
    int32_t n = 0;
    out[n++] = s->text.program;
    out[n++] = s->time.program;
    out[n++] = s->begin.program;
    out[n++] = s->decode.program;
    for (int32_t k = 0; k < s->shape.n_controls; k++) out[n++] = s->hint[k].program;
    for (int32_t v = 0; v < MAX_VARIANTS; v++)
        if (s->step[v].program) out[n++] = s->step[v].program;
    return n;
}

/* New choices go to a table of their own first: a tuning that fails or is cancelled leaves nothing behind. */
static lw_status keep_choices(lw_engine *e, const lw_choices *tuned, lw_error *err) {
    lw_choice c;
    for (int32_t i = 0; lw_choices_at(tuned, i, &c); i++) LW_TRY(lw_choices_put(e->choices, &c, err));
    return e->cache_dir ? lw_choices_save(e->choices, e->backend, e->cache_dir, err) : LW_OK;
}

lw_status lw_engine_tune(lw_engine *engine, const lw_request *request, lw_tuned_fn tuned, void *user, lw_error *err) {
    const lw_program *programs[MAX_VARIANTS + LW_MAX_CONTROLS + 4];
    tuner t = {tuned, user};
    lw_tune_hooks hooks = {.tuned = tell_tuned, .user = &t};
    lw_session *s = NULL;
    lw_job job;
    bool grew = false;
    lw_choices *found = lw_choices_new();
    lw_status status = lw_job_resolve(&job, engine, request, err);
    if (status == LW_OK && !found) status = lw_fail(err, LW_ENOMEM, "no memory for tuning");
    if (status == LW_OK) status = open_dry(&s, engine, err);
    if (status == LW_OK) status = plan_job(s, &job, &grew, err);
    if (status == LW_OK) status = check_memory(s, err);
    if (status == LW_OK) status = lw_tune(found, engine->backend, programs, all_programs(s, programs), &hooks, err);
    if (status == LW_OK) status = keep_choices(engine, found, err);
    close_dry(&s);
    lw_choices_free(found);
    lw_job_free(&job);
    return status;
}
