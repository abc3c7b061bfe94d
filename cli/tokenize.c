/* SPDX-License-Identifier: MIT
 * linework tokenize: texts to CLIP's ids. Nothing is printed before the last text has been read, so that a failure
 * leaves standard output empty. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The tokenizer and what keeps it alive. */
typedef struct source {
    lw_engine *engine;
    lw_tokenizer *own;
    const lw_tokenizer *tokenizer;
} source;

static lw_status open_source(const opt_parsed *o, source *s, cli_volume *volume, lw_error *err) {
    const char *vocab = opt_get(o, TOKENIZE_VOCAB)->text, *model = opt_get(o, TOKENIZE_MODEL)->text;
    if (vocab && model)
        return cli_fail(err, LW_EINVAL, "--model and --vocab: two ways to say the vocabulary: give one");
    if (vocab) {
        lw_status status = lw_tokenizer_open(&s->own, vocab, 0, err);
        s->tokenizer = s->own;
        return status;
    }
    char *demo = model ? NULL : cli_demo_file("model.safetensors", err), *cache = cli_cache_dir();
    lw_engine_params params;
    lw_engine_params_init(&params);
    params.model = model ? model : demo;
    params.cache_dir = cache;
    params.device = LW_DEVICE_CPU; /* text needs no other */
    params.log = cli_log;
    params.user = volume;
    lw_status status = params.model ? lw_engine_open(&s->engine, &params, err) : LW_EMODEL;
    if (status == LW_OK) s->tokenizer = lw_engine_tokenizer(s->engine);
    free(cache);
    free(demo);
    return status;
}

/* The lines wanted, as text or as an array of arrays. */
typedef struct lines {
    FILE *out;
    json_t *ids; /* NULL: text */
    cli_volume volume;
    size_t n;
} lines;

static lw_status add(lines *l, const source *s, const char *text, lw_error *err) {
    int32_t ids[LW_N_TOKENS];
    char *cut = NULL;
    lw_status status = lw_tokenize(s->tokenizer, text, ids, &cut, err);
    if (status != LW_OK) return status;
    l->n++;
    if (cut && l->volume != CLI_QUIET)
        cli_note("text %zu is longer than %d tokens; this was cut off: %s", l->n, LW_N_TOKENS, cut);
    lw_free(cut);
    json_t *row = l->ids ? json_array() : NULL;
    for (int i = 0; i < LW_N_TOKENS; i++) {
        if (row) json_array_append_new(row, json_integer(ids[i]));
        else fprintf(l->out, "%s%d", i ? " " : "", ids[i]);
    }
    if (row) json_array_append_new(l->ids, row);
    else fputc('\n', l->out);
    return LW_OK;
}

static lw_status add_input(lines *l, const source *s, lw_error *err) {
    char *line = NULL;
    size_t room = 0;
    lw_status status = LW_OK;
    errno = 0;
    for (ssize_t n; status == LW_OK && (n = getline(&line, &room, stdin)) >= 0;) {
        if (n > 0 && line[n - 1] == '\n') line[--n] = 0;
        if (strlen(line) != (size_t)n)
            status = cli_fail(err, LW_EINPUT, "standard input: line %zu holds a zero byte", l->n + 1);
        else status = add(l, s, line, err);
    }
    free(line);
    if (status == LW_OK && cli_interrupted()) return cli_fail(err, LW_ECANCEL, "tokenize: cancelled");
    if (status == LW_OK && ferror(stdin))
        return cli_fail(err, LW_EINPUT, "standard input: can't be read: %s", strerror(errno));
    return status;
}

lw_status cmd_tokenize(const opt_parsed *o, lw_error *err) {
    char *text = NULL;
    size_t size = 0;
    source s = {0};
    lines l = {.volume = cli_volume_of(o), .ids = opt_get(o, ALL_JSON)->at ? json_array() : NULL};
    cli_volume volume = l.volume;
    lw_status status = open_source(o, &s, &volume, err);
    if (status == LW_OK && !(l.out = open_memstream(&text, &size))) status = cli_no_memory(err);
    for (size_t i = 0; i < o->n_args && status == LW_OK; i++) status = add(&l, &s, o->args[i], err);
    if (status == LW_OK && o->n_args == 0) status = add_input(&l, &s, err);
    if (l.out && fclose(l.out) != 0 && status == LW_OK) status = cli_no_memory(err);
    if (status == LW_OK && l.ids) {
        json_t *json = json_pack("{s:O}", "ids", l.ids);
        status = json ? cli_print_json(json, err) : cli_no_memory(err);
        json_decref(json);
    } else if (status == LW_OK) {
        status = cli_print_bytes(text, size, err);
    }
    free(text);
    json_decref(l.ids);
    lw_tokenizer_close(&s.own);
    lw_engine_close(&s.engine);
    return status;
}
