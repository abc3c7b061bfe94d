/* SPDX-License-Identifier: MIT */
#include "pipe/choices.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_FILE = 4 << 20, MAX_DEVICES = 32 };

char *lw_choices_path(const lw_backend *backend, const char *cache_dir) {
    return lw_format("%s/tactics-%s.json", cache_dir, backend->name);
}

/* The file's object, NULL where there is none. *why: what is wrong with one that is there, else "". */
static json_t *read_root(const char *path, char why[160]) {
    why[0] = 0;
    FILE *in = fopen(path, "rb");
    if (!in) return NULL;
    char *text = lw_alloc(MAX_FILE + 1, 1);
    size_t n = text ? fread(text, 1, MAX_FILE + 1, in) : 0;
    fclose(in);
    json_error_t at;
    json_t *root = NULL;
    if (n > MAX_FILE) snprintf(why, 160, "it has more than %d bytes", MAX_FILE);
    else if (text && !(root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at)))
        snprintf(why, 160, "line %d: %.100s", at.line, at.text);
    lw_free(text);
    if (root && !(json_is_object(root) && json_is_string(json_object_get(root, "linework")) &&
                  json_is_object(json_object_get(root, "devices")))) {
        snprintf(why, 160, "it is not a table of tactics");
        json_decref(root);
        root = NULL;
    }
    return root;
}

static bool same_version(const json_t *root) {
    return !strcmp(json_string_value(json_object_get(root, "linework")), lw_version());
}

static bool parse_signature(const char *key, uint64_t *out) {
    *out = 0;
    if (strlen(key) != 16 || strspn(key, "0123456789abcdef") != 16) return false;
    for (const char *c = key; *c; c++) *out = *out << 4 | (uint64_t)(*c <= '9' ? *c - '0' : *c - 'a' + 10);
    return true;
}

/* False: not what lw_choices_save writes. */
static bool parse_choice(const char *key, const json_t *value, lw_choice *out) {
    const char *tactic = json_string_value(json_object_get(value, "tactic")),
               *op = json_string_value(json_object_get(value, "op"));
    const json_t *us = json_object_get(value, "us");
    *out = (lw_choice){.us = json_number_value(us)};
    if (!parse_signature(key, &out->signature) || !tactic || !op || !json_is_number(us)) return false;
    if (strlen(tactic) >= sizeof out->tactic || strlen(op) >= sizeof out->op || !(out->us >= 0 && out->us < 1e12))
        return false;
    snprintf(out->tactic, sizeof out->tactic, "%s", tactic);
    snprintf(out->op, sizeof out->op, "%s", op);
    return true;
}

static bool known(const lw_backend *backend, const char *tactic) {
    for (int32_t i = 0; i < backend->n_tactics; i++)
        if (!strcmp(backend->tactics[i]->name, tactic)) return true;
    return false;
}

/* All of the table is looked at before any of it is taken. */
static lw_status take_table(lw_choices *choices, const lw_backend *backend, json_t *table, char why[160],
                            lw_error *err) {
    const char *key;
    json_t *value;
    lw_choice choice;
    json_object_foreach(table, key, value) {
        if (parse_choice(key, value, &choice)) continue;
        snprintf(why, 160, "entry \"%.40s\" is not a choice", key);
        return LW_OK;
    }
    json_object_foreach(table, key, value) {
        if (parse_choice(key, value, &choice) && known(backend, choice.tactic))
            LW_TRY(lw_choices_put(choices, &choice, err));
    }
    return LW_OK;
}

lw_status lw_choices_load(lw_choices *choices, const lw_backend *backend, const char *cache_dir, char **remark,
                          lw_error *err) {
    char why[160], *path = lw_choices_path(backend, cache_dir);
    *remark = NULL;
    if (!path) return lw_fail(err, LW_ENOMEM, "tactics: no memory for a path");
    lw_status status = LW_OK;
    json_t *root = read_root(path, why);
    if (root && same_version(root)) {
        json_t *table = json_object_get(json_object_get(root, "devices"), backend->description);
        if (table && !json_is_object(table)) snprintf(why, sizeof why, "its table for this device is not an object");
        else if (table) status = take_table(choices, backend, table, why, err);
    }
    if (why[0]) *remark = lw_format("%s: is damaged and not used: %s", path, why);
    json_decref(root);
    lw_free(path);
    return status;
}

static json_t *make_table(const lw_choices *choices) {
    json_t *table = json_object();
    lw_choice c;
    for (int32_t i = 0; table && lw_choices_at(choices, i, &c); i++) {
        char key[20];
        snprintf(key, sizeof key, "%016llx", (unsigned long long)c.signature);
        json_t *entry = json_pack("{s:s, s:s, s:f}", "op", c.op, "tactic", c.tactic, "us", round(c.us * 10) / 10);
        if (entry && !json_object_set_new(table, key, entry)) continue;
        json_decref(table);
        table = NULL;
    }
    return table;
}

lw_status lw_choices_save(const lw_choices *choices, const lw_backend *backend, const char *cache_dir, lw_error *err) {
    char why[160], *path = lw_choices_path(backend, cache_dir), *text = NULL;
    if (!path) return lw_fail(err, LW_ENOMEM, "tactics: no memory for a path");
    json_t *root = read_root(path, why);
    if (root && (!same_version(root) || json_object_size(json_object_get(root, "devices")) >= MAX_DEVICES)) {
        json_decref(root);
        root = NULL;
    }
    if (!root) root = json_pack("{s:s, s:{}}", "linework", lw_version(), "devices");
    json_t *table = make_table(choices);
    if (root && table && !json_object_set(json_object_get(root, "devices"), backend->description, table))
        text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9));
    lw_status status = text ? lw_file_write(path, text, strlen(text), err)
                            : lw_fail(err, LW_ENOMEM, "%s: no memory for its text", path);
    free(text);
    json_decref(table);
    json_decref(root);
    lw_free(path);
    return status;
}
