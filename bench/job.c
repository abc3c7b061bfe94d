/* SPDX-License-Identifier: MIT
 * The programs of one shape, planned and bound. What the session does with pictures and text is left out: inputs are
 * random, and the buffers' names are the programs' own. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *const bench_programs[BENCH_N_PROGRAMS] = {"text", "hint", "time", "begin", "step", "decode"};

static lw_step_shape step_shape(const bench_job *job) {
    const bench_shape *s = &job->shape;
    return (lw_step_shape){.g = s->guidance ? 2 : 1,
                           .n = s->samples,
                           .h = s->height / 8,
                           .w = s->width / 8,
                           .n_controls = job->model.n_controls,
                           .rows = s->steps,
                           .n_noise = 1,
                           .controls = (1u << job->model.n_controls) - 1};
}

static void record(bench_job *job, int i) {
    lw_program *p = job->programs[i];
    lw_step_shape t = step_shape(job);
    const lw_model *m = &job->model;
    switch (i) {
    case BENCH_TEXT: lw_record_text(p, m, t.g, t.n_controls, 0); break;
    case BENCH_HINT:
        if (t.n_controls) lw_record_hint(p, m, 0, t.h, t.w);
        break;
    case BENCH_TIME:
        p->exact = true;
        lw_record_time(p, m, t.n_controls, t.rows, "t", "addend_table");
        break;
    case BENCH_BEGIN: lw_record_advance(p, m, &t, true); break;
    case BENCH_STEP: lw_record_step(p, m, &t); break;
    default: lw_record_decode(p, m, t.n, t.h, t.w); break;
    }
    lw_pass_fit(p, lw_backend_takes(job->backend) & ~(uint32_t)(job->shape.unzipped ? LW_TAKES_MEMBERS : 0));
}

void *bench_job_buffer(const bench_job *job, const char *name) {
    for (int32_t i = 0; i < job->n_buffers; i++)
        if (!strcmp(job->buffers[i].name, name)) return job->buffers[i].at;
    return NULL;
}

/* Random bytes that are harmless as any input: small positive floats, or their bytes; a status and rows that advance.
 */
static lw_status fill(bench_job *job, const lw_buffer *b, void *at, lw_error *err) {
    size_t bytes = (size_t)b->bytes;
    bool words = !strcmp(b->name, "ids") || !strcmp(b->name, "edges0");
    if (strcmp(b->name, "x") && strcmp(b->name, "scale_table") && !words) return LW_OK;
    unsigned char *host = lw_alloc_aligned(bytes);
    if (!host) return lw_fail(err, LW_ENOMEM, "no memory for %zu bytes of input", bytes);
    uint32_t state = 1;
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
        state = state * 1664525u + 1013904223u;
        float value = (float)(state >> 8) * 0x1p-23f - 1;
        int32_t id = (int32_t)(state >> 16) % 512;
        memcpy(host + i, !strcmp(b->name, "ids") ? (void *)&id : (void *)&value, 4);
    }
    lw_status status = job->backend->upload(job->backend, at, host, bytes, err);
    lw_free(host);
    return status;
}

static lw_status bind(bench_job *job, int i, lw_error *err) {
    const lw_program *p = job->programs[i];
    for (int32_t k = 0; k < p->n_buffers; k++) {
        const lw_buffer *b = &p->buffers[k];
        if (b->kind != LW_BUFFER_EXTERN) continue;
        void *at = bench_job_buffer(job, b->name);
        if (!at) {
            if (job->n_buffers == BENCH_MAX_BUFFERS) return lw_fail(err, LW_EINTERNAL, "too many buffers");
            LW_TRY(job->backend->alloc(job->backend, (size_t)b->bytes, &at, err));
            job->buffers[job->n_buffers].name = b->name;
            job->buffers[job->n_buffers++].at = at;
            job->device_bytes += (uint64_t)b->bytes;
            LW_TRY(fill(job, b, at, err));
        }
        LW_TRY(lw_plan_bind(job->plans[i], b->name, at, err));
    }
    lw_plan_bind_temp(job->plans[i], job->temp);
    return LW_OK;
}

static lw_status tune(bench_job *job, const lw_tune_hooks *hooks, lw_error *err) {
    double begin = lw_now_ms();
    if (!job->choices) job->choices = lw_choices_new();
    if (!job->choices) return lw_fail(err, LW_ENOMEM, "no memory for choices");
    const lw_program *programs[BENCH_N_PROGRAMS];
    int32_t n = 0;
    for (int i = 0; i < BENCH_N_PROGRAMS; i++)
        if (job->programs[i]) programs[n++] = job->programs[i];
    LW_TRY(lw_tune(job->choices, job->backend, programs, n, hooks, err));
    job->tune_ms = lw_now_ms() - begin;
    return LW_OK;
}

lw_status bench_job_open(bench_job *job, lw_backend *backend, const char *path, const bench_shape *shape,
                         uint32_t wanted, lw_choices *choices, const lw_tune_hooks *hooks, lw_error *err) {
    char random[64];
    uint64_t temp = 0;
    *job = (bench_job){.backend = backend, .shape = *shape, .choices = choices, .file = -1};
    if (backend->behind) job->free_bytes = backend->behind->free_bytes(backend);
    if (!path) {
        job->file = bench_sd15_file(random, err);
        if (job->file < 0) return err->code;
    }
    double begin = lw_now_ms();
    LW_TRY(lw_model_open(&job->model, path ? path : random, NULL, 0, NULL, err));
    lw_tensor_source source = path ? lw_model_source(&job->model) : bench_random_source(&job->model);
    LW_TRY(lw_params_new(&job->params, &source, err));
    for (int i = 0; i < BENCH_N_PROGRAMS; i++) {
        if (!(wanted >> i & 1)) continue;
        job->programs[i] = lw_program_new(bench_programs[i], job->params, backend->act);
        if (!job->programs[i]) return lw_fail(err, LW_ENOMEM, "no memory for a program");
        record(job, i);
    }
    if (hooks) LW_TRY(tune(job, hooks, err));
    for (int i = 0; i < BENCH_N_PROGRAMS; i++) {
        if (!job->programs[i]) continue;
        LW_TRY(lw_plan_make_with(&job->plans[i], backend, &(lw_plan_options){.choices = job->choices}, job->programs[i],
                                 err));
        if (lw_plan_temp_bytes(job->plans[i]) > temp) temp = lw_plan_temp_bytes(job->plans[i]);
    }
    LW_TRY(backend->alloc(backend, temp, &job->temp, err));
    job->device_bytes = temp + lw_params_bytes(job->params);
    job->plan_ms = lw_now_ms() - begin - job->tune_ms;
    begin = lw_now_ms();
    LW_TRY(lw_params_fill(job->params, backend, err));
    job->pack_ms = lw_now_ms() - begin;
    begin = lw_now_ms();
    for (int i = 0; i < BENCH_N_PROGRAMS; i++)
        if (job->plans[i]) LW_TRY(bind(job, i, err));
    if (job->plans[BENCH_STEP]) LW_TRY(bench_job_reset(job, err));
    for (int i = 0; i < BENCH_STEP; i++)
        if (job->plans[i]) LW_TRY(lw_plan_run(job->plans[i], err));
    job->bind_ms = lw_now_ms() - begin;
    return LW_OK;
}

lw_status bench_job_reset(bench_job *job, lw_error *err) {
    lw_backend *b = job->backend;
    int32_t status[4] = {-1, job->shape.steps, 0, 0};
    lw_row *rows = lw_alloc((size_t)job->shape.steps, sizeof *rows);
    if (!rows) return lw_fail(err, LW_ENOMEM, "no memory for a schedule");
    for (int32_t i = 0; i < job->shape.steps; i++) /* keeps the latents of one size */
        rows[i] = job->shape.bare ? (lw_row){.noise = -1, .guidance = 2, .x_e = 1}
                                  : (lw_row){.noise = -1, .guidance = 9, .x_x = 0.99f, .x_e = -0.01f};
    lw_status done = b->upload(b, bench_job_buffer(job, "rows"), rows, (size_t)job->shape.steps * sizeof *rows, err);
    lw_free(rows);
    LW_TRY(done);
    return b->upload(b, bench_job_buffer(job, "status"), status, sizeof status, err);
}

lw_status bench_job_restart(bench_job *job, lw_error *err) {
    const lw_program *p = job->programs[BENCH_DECODE];
    for (int32_t i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].kind == LW_BUFFER_EXTERN && !strcmp(p->buffers[i].name, "x"))
            LW_TRY(fill(job, &p->buffers[i], bench_job_buffer(job, "x"), err));
    return LW_OK;
}

lw_status bench_job_hash(bench_job *job, uint64_t *hash, lw_error *err) {
    size_t bytes = (size_t)lw_plan_extern_bytes(job->plans[BENCH_DECODE], "image");
    unsigned char *host = lw_alloc(bytes, 1);
    if (!host) return lw_fail(err, LW_ENOMEM, "no memory for %zu bytes of pictures", bytes);
    lw_status status = job->backend->download(job->backend, host, bench_job_buffer(job, "image"), bytes, err);
    *hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) *hash = (*hash ^ host[i]) * 0x100000001b3u;
    lw_free(host);
    return status;
}

/* ---- outputs */

/* What a program gives, as floats: activations are half on some devices, pictures are bytes. Of many values every k-th,
 * so that the file stays small. */
enum { MAX_VALUES = 100000 };

static lw_status fetch_floats(bench_job *job, int program, const char *name, float **out, size_t *n, lw_error *err) {
    size_t bytes = (size_t)lw_plan_extern_bytes(job->plans[program], name);
    bool byte = !strcmp(name, "image"), half = !byte && strcmp(name, "x") && job->backend->act == LW_F16;
    *n = bytes / (byte ? 1 : half ? 2 : 4);
    char *raw = lw_alloc(bytes, 1);
    float *values = lw_alloc(*n, sizeof *values);
    lw_status status = raw && values
                           ? job->backend->download(job->backend, raw, bench_job_buffer(job, name), bytes, err)
                           : lw_fail(err, LW_ENOMEM, "no memory for %zu values of %s", *n, name);
    for (size_t i = 0; status == LW_OK && i < *n; i++) {
        uint16_t h;
        if (byte) values[i] = (float)(unsigned char)raw[i];
        else if (half) memcpy(&h, raw + 2 * i, 2), values[i] = lw_f16_to_f32(h);
        else memcpy(&values[i], raw + 4 * i, 4);
    }
    lw_free(raw);
    size_t every = *n / MAX_VALUES + 1, kept = 0;
    for (size_t i = 0; status == LW_OK && i < *n; i += every) values[kept++] = values[i];
    *n = kept;
    if (status != LW_OK) lw_free(values);
    else *out = values;
    return status;
}

static lw_status compare_floats(const char *name, const float *got, size_t n, FILE *file, double most, lw_error *err) {
    char there[32];
    uint64_t count = 0;
    if (fread(there, sizeof there, 1, file) != 1 || fread(&count, sizeof count, 1, file) != 1 || strcmp(there, name) ||
        count != n)
        return lw_fail(err, LW_EINVAL, "the file has not %zu values of %s where they should be", n, name);
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        float want;
        if (fread(&want, sizeof want, 1, file) != 1) return lw_fail(err, LW_EINVAL, "the file ends in %s", name);
        double d = (double)got[i] - (double)want;
        error += d * d, norm += (double)want * (double)want;
    }
    double relative = norm > 0 ? sqrt(error / norm) : error > 0;
    printf("%s\t%zu values\trelative L2 %.2e\n", name, n, relative);
    return relative <= most ? LW_OK : lw_fail(err, LW_EINTERNAL, "%s differs by %.2e, over %g", name, relative, most);
}

lw_status bench_job_outputs(bench_job *job, const char *path, bool compare, double most, lw_error *err) {
    static const struct {
        int program;
        const char *names[3];
    } runs[] = {{BENCH_TEXT, {"context", "unet.kv", "control.kv"}},
                {BENCH_HINT, {"hint0"}},
                {BENCH_STEP, {"x"}},
                {BENCH_DECODE, {"image"}}};
    FILE *file = fopen(path, compare ? "rb" : "wb");
    if (!file) return lw_fail(err, LW_EINVAL, "%s can't be opened", path);
    lw_status status = LW_OK, first = LW_OK;
    LW_GO(bench_job_restart(job, err));
    LW_GO(bench_job_reset(job, err));
    LW_GO(lw_plan_run(job->plans[BENCH_BEGIN], err));
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        LW_GO(lw_plan_run(job->plans[runs[i].program], err));
        for (int k = 0; k < 3 && runs[i].names[k]; k++) {
            char name[32] = {0};
            float *values = NULL;
            size_t n = 0;
            snprintf(name, sizeof name, "%s", runs[i].names[k]);
            if (!bench_job_buffer(job, name)) continue;
            LW_GO(fetch_floats(job, runs[i].program, name, &values, &n, err));
            uint64_t count = n;
            if (compare) status = compare_floats(name, values, n, file, most, err);
            else if (fwrite(name, sizeof name, 1, file) != 1 || fwrite(&count, sizeof count, 1, file) != 1 ||
                     fwrite(values, sizeof *values, n, file) != n)
                status = lw_fail(err, LW_EINVAL, "%s can't be written", path);
            lw_free(values);
            if (status != LW_OK && !compare) goto out;
            if (first == LW_OK) first = status; /* the other outputs are told too */
        }
        /* the decoder's own input, so that the step's error is not in it */
        if (runs[i].program == BENCH_STEP) LW_GO(bench_job_restart(job, err));
    }
    status = first;
out:
    fclose(file);
    return status;
}

lw_status bench_job_finish(bench_job *job, bool *finite, lw_error *err) {
    int32_t status[4];
    LW_TRY(job->backend->download(job->backend, status, bench_job_buffer(job, "status"), sizeof status, err));
    *finite = status[2] == 0;
    return LW_OK;
}

void bench_job_close(bench_job *job) {
    lw_backend *b = job->backend;
    for (int i = 0; i < BENCH_N_PROGRAMS; i++) lw_plan_free(job->plans[i]);
    for (int32_t i = 0; i < job->n_buffers; i++) b->free(b, job->buffers[i].at);
    if (job->temp) b->free(b, job->temp);
    for (int i = 0; i < BENCH_N_PROGRAMS; i++) lw_program_free(job->programs[i]);
    lw_params_free(job->params, b);
    lw_choices_free(job->choices);
    lw_model_close(&job->model);
    if (job->file >= 0) close(job->file);
    b->close(b);
}
