/* SPDX-License-Identifier: MIT
 * linework info: what a file is. Pictures are told from models by their first bytes, so that a model of gigabytes is
 * never read whole. */
#include "cli.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool looks_like_picture(const char *path) {
    uint8_t b[12] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO without a writer must not hold us */
    ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof b);
    if (fd >= 0) close(fd);
    if (n < 3) return false;
    if (!memcmp(b, "\x89PN", 3) || !memcmp(b, "\xff\xd8\xff", 3)) return true;
    if (n == 12 && !memcmp(b, "RIFF", 4) && !memcmp(b + 8, "WEBP", 4)) return true;
    return b[0] == 'P' && b[1] >= '1' && b[1] <= '7' && (strchr(" \t\r\n#", b[2]) != NULL);
}

/* Any JSON as indented "key  value" lines: what the library says of a model may grow without a change here. */
static void print_value(FILE *out, const char *key, json_t *value, int depth) {
    const char *name;
    json_t *member;
    size_t i;
    fprintf(out, "%*s%s", 2 * depth, "", key);
    if (json_is_object(value) || (json_is_array(value) && json_is_object(json_array_get(value, 0)))) {
        fputc('\n', out);
        json_object_foreach(value, name, member) { print_value(out, name, member, depth + 1); }
        json_array_foreach(value, i, member) { print_value(out, "-", member, depth + 1); }
        return;
    }
    int width = 18 - 2 * depth - (int)strlen(key);
    fprintf(out, "%*s ", width > 0 ? width : 0, "");
    if (json_is_string(value)) {
        fputs(json_string_value(value), out);
    } else {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        fputs(text ? text : "?", out);
        free(text);
    }
    fputc('\n', out);
}

/* The members of o as text, or o itself. */
static lw_status tell(const opt_parsed *o, json_t *json, lw_error *err) {
    if (!json) return cli_no_memory(err);
    if (opt_get(o, ALL_JSON)->at) return cli_print_json(json, err);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return cli_no_memory(err);
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value) { print_value(out, key, value, 0); }
    lw_status status = fclose(out) == 0 ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

static const char *field(const lw_fields *fields, const char *key) {
    for (uint32_t i = 0; i < fields->n; i++)
        if (!strcmp(fields->items[i].key, key)) return fields->items[i].value;
    return NULL;
}

static lw_status picture_json(const opt_parsed *o, const char *path, const lw_image *image, const lw_fields *fields,
                              lw_error *err) {
    const char *own = field(fields, "linework");
    json_t *parameters = own ? json_loads(own, 0, NULL) : NULL, *text = json_object();
    for (uint32_t i = 0; i < fields->n; i++)
        json_object_set_new(text, fields->items[i].key, json_string(fields->items[i].value));
    json_t *json =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:o?, s:o}", "kind", "picture", "path", path, "width", image->width,
                  "height", image->height, "channels", image->channels, "parameters", parameters, "text", text);
    lw_status status = tell(o, json, err);
    json_decref(json);
    return status;
}

static lw_status picture_text(const opt_parsed *o, const char *path, const lw_image *image, const lw_fields *fields,
                              lw_error *err) {
    const char *parameters = field(fields, "parameters");
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return cli_no_memory(err);
    fprintf(out, "%s: a picture, %dx%d, %s\n", path, image->width, image->height,
            image->channels == 1   ? "gray"
            : image->channels == 4 ? "RGBA"
                                   : "RGB");
    if (parameters) fprintf(out, "%s\n", parameters);
    else if (!field(fields, "linework")) fputs("it holds no parameters\n", out);
    for (uint32_t i = 0; i < fields->n; i++) {
        bool shown = !strcmp(fields->items[i].key, "parameters");
        if (!shown && (opt_get(o, ALL_VERBOSE)->at || !parameters))
            fprintf(out, "%s: %s\n", fields->items[i].key, fields->items[i].value);
    }
    lw_status status = fclose(out) == 0 ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

static lw_status picture(const opt_parsed *o, const char *path, lw_error *err) {
    lw_image image = {.size = sizeof image};
    lw_fields fields = {.size = sizeof fields};
    lw_status status = cli_read_picture(path, &image, &fields, NULL, err);
    if (status == LW_OK)
        status = opt_get(o, ALL_JSON)->at ? picture_json(o, path, &image, &fields, err)
                                          : picture_text(o, path, &image, &fields, err);
    lw_image_free(&image);
    lw_fields_free(&fields);
    return status;
}

static lw_status model(const opt_parsed *o, const char *path, lw_error *err) {
    char *text = NULL, hash[65];
    lw_status status = lw_model_info(path, &text, err);
    if (status != LW_OK) return status;
    json_error_t why;
    json_t *found = json_loads(text, 0, &why);
    lw_free(text);
    if (!json_is_object(found)) {
        json_decref(found);
        return cli_fail(err, LW_EINTERNAL, "%s: lw_model_info gave no object: %s", path, why.text);
    }
    char *cache = cli_cache_dir();
    cli_file_hash(path, cache, opt_get(o, INFO_HASH)->at ? 0 : (uint64_t)1 << 30, hash);
    free(cache);
    json_t *json = json_pack("{s:s, s:s?}", "kind", "model", "sha256", hash[0] ? hash : NULL);
    if (json) json_object_update(json, found);
    status = cli_interrupted() ? cli_fail(err, LW_ECANCEL, "info: cancelled") : tell(o, json, err);
    json_decref(found);
    json_decref(json);
    return status;
}

lw_status cmd_info(const opt_parsed *options, lw_error *err) {
    const char *path = options->args[0];
    return looks_like_picture(path) ? picture(options, path, err) : model(options, path, err);
}
