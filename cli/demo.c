/* SPDX-License-Identifier: MIT
 * linework demo: a first picture. The embedded model draws along a shipped picture's edges, and the command that would
 * make the same file again is printed, as the way into `linework generate`. */
#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is shipped, as inputs.json beside the model says it: [{"image": FILE, "prompt": TEXT, "seed": N}]. */
static const char *const pictures[] = {"drawing.png", "photo.png"};

/* The prompt, which is the caller's to free, and the seed that go with a picture. */
static lw_status read_input(const char *picture, char **prompt, int64_t *seed, lw_error *err) {
    char *path = cli_demo_file("inputs.json", err);
    if (!path) return LW_EMODEL;
    json_error_t why = {.text = "it is not there"};
    json_t *list = json_load_file(path, 0, &why), *input;
    lw_status status = cli_fail(err, LW_EMODEL, "%s: says nothing of %s: %s", path, picture, why.text);
    size_t i;
    json_array_foreach(list, i, input) {
        const char *image = json_string_value(json_object_get(input, "image"));
        const char *text = json_string_value(json_object_get(input, "prompt"));
        if (!image || !text || strcmp(image, picture) != 0 || *prompt) continue;
        *prompt = cli_format("%s", text);
        *seed = json_integer_value(json_object_get(input, "seed"));
        status = *prompt ? LW_OK : cli_no_memory(err);
    }
    json_decref(list);
    free(path);
    return status;
}

/* The shipped picture's path: the PNG, or its twin in PPM where this build reads no PNG. */
static char *shipped_picture(const char *name, lw_error *err) {
    lw_image seen = {.size = sizeof seen};
    char *path = cli_demo_file(name, err);
    if (!path) return NULL;
    lw_status status = lw_image_read(path, &seen, NULL, err);
    lw_image_free(&seen);
    if (status == LW_OK) return path;
    char *twin = cli_format("%.*s.ppm", (int)(strlen(path) - strlen(".png")), path);
    free(path);
    return twin;
}

/* One word of a shell's command line: bare where it can be, else in single quotes. */
static void shell_word(FILE *out, const char *word) {
    if (*word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%")]) {
        fputs(word, out);
        return;
    }
    fputc('\'', out);
    for (; *word; word++) {
        if (*word == '\'') fputs("'\\''", out);
        else fputc(*word, out);
    }
    fputc('\'', out);
}

/* out-demo.png -> out-demo-edges.png */
static char *edges_name(const char *output) {
    const char *slash = strrchr(output, '/'), *dot = strrchr(slash ? slash : output, '.');
    if (!dot) dot = output + strlen(output);
    return cli_format("%.*s-edges%s", (int)(dot - output), output, dot);
}

static lw_status tell(const cli_job *job, const opt_parsed *o, lw_error *err) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return cli_no_memory(err);
    fprintf(out, "picture  %s (%dx%d)\nedges    %s\nseed     %lld\nagain    ", job->outputs[0], job->result.width,
            job->result.height, job->save_control, (long long)job->result.seed);
    shell_word(out, program_invocation_name);
    fputs(" generate -i ", out);
    shell_word(out, job->image);
    fputs(" -p ", out);
    shell_word(out, job->request.prompt);
    fprintf(out, " -s %lld -o ", (long long)job->result.seed);
    shell_word(out, job->output);
    fputs(" --save-control ", out);
    shell_word(out, job->save_control);
    if (opt_get(o, DEMO_DEVICE)->at) {
        fputs(" --device ", out);
        shell_word(out, opt_get(o, DEMO_DEVICE)->text);
    }
    fputc('\n', out);
    lw_status status = fclose(out) == 0 ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

lw_status cmd_demo(const opt_parsed *o, lw_error *err) {
    const opt_value *seed = opt_get(o, DEMO_SEED), *prompt = opt_get(o, DEMO_PROMPT), *device = opt_get(o, DEMO_DEVICE);
    const opt_value *output = opt_get(o, DEMO_OUTPUT);
    size_t picture = opt_get(o, DEMO_PICTURE)->choice;
    cli_job job;
    cli_job_init(&job, cli_volume_of(o));
    job.output = output->at ? output->text : "out-demo.png";
    job.json = opt_get(o, ALL_JSON)->at != 0;
    job.stage_times = true;
    job.engine.threads = (int32_t)opt_get(o, DEMO_THREADS)->integer;

    lw_status status = device->at ? cli_job_set_device(&job, device->text, err) : LW_OK;
    if (status == LW_OK && !strcmp(job.output, "-"))
        status = cli_fail(err, LW_EINVAL, "--output: demo writes two files, which need names");
    char *model = NULL, *image = NULL, *words = NULL, *edges = edges_name(job.output);
    if (status == LW_OK && !(model = cli_demo_file("model.safetensors", err))) status = LW_EMODEL;
    if (status == LW_OK && !(image = shipped_picture(pictures[picture], err))) status = LW_EMODEL;
    if (status == LW_OK) status = read_input(pictures[picture], &words, &job.request.seed, err);
    if (seed->at) job.request.seed = seed->integer;
    job.engine.model = model;
    job.image = image;
    job.request.prompt = prompt->at ? prompt->text : words;
    job.save_control = edges;
    job.controls = calloc(1, sizeof *job.controls);
    job.n_controls = job.controls != NULL;
    if (job.n_controls) job.controls[0] = (cli_control){.strength = 1, .end = 1};
    if (status == LW_OK && (!job.n_controls || !edges || !job.request.prompt)) status = cli_no_memory(err);

    if (status == LW_OK && job.volume != CLI_QUIET)
        fprintf(stderr, "drawing \"%s\" along the edges of %s\n", job.request.prompt, image);
    if (status == LW_OK) status = cli_job_run(&job, err);
    if (status == LW_OK) status = job.json ? cli_job_tell(&job, err) : tell(&job, o, err);
    cli_job_free(&job);
    free(model);
    free(image);
    free(words);
    free(edges);
    return status;
}
