/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static bool fail(char message[OPT_MESSAGE], const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool fail(char message[OPT_MESSAGE], const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, OPT_MESSAGE, format, args);
    va_end(args);
    return false;
}

void opt_quote(char *out, size_t size, const char *text) {
    size_t n = 0;
    for (; text[n] && n + 4 < size; n++) out[n] = (unsigned char)text[n] < 0x20 || text[n] == 0x7f ? '?' : text[n];
    /* A cut must not leave the first half of a UTF-8 character. */
    if (text[n])
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
    snprintf(out + n, size - n, "%s", text[n] ? "..." : "");
}

/* Row by row over a table of one line: words longer than it are near nothing. */
static size_t edit_distance(const char *a, const char *b) {
    size_t row[48], n = strlen(b);
    if (n >= 48 || strlen(a) >= 48) return SIZE_MAX;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t corner = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = corner + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            corner = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[n];
}

const char *opt_nearest(const char *word, const char *const *names) {
    const char *best = NULL;
    size_t nearest = strlen(word) / 2 + 1;
    for (; *names; names++) {
        size_t d = edit_distance(word, *names);
        if (d < nearest) nearest = d, best = *names;
    }
    return best;
}

/* Digits with at most one minus before them: no blanks, no plus, no other base. */
static bool parse_int(const char *text, int64_t *out) {
    const char *digits = text + (*text == '-');
    if (!*digits || digits[strspn(digits, "0123456789")]) return false;
    errno = 0;
    *out = strtoll(text, NULL, 10);
    if (errno == ERANGE) *out = *text == '-' ? INT64_MIN : INT64_MAX; /* outside every range of ours */
    return true;
}

/* Decimal numbers alone: strtod would take "nan", "inf", "0x1p3" and leading blanks too. */
static bool parse_number(const char *text, double *out) {
    char *end;
    if (!*text || text[strspn(text, "0123456789+-.eE")]) return false;
    *out = strtod(text, &end);
    return !*end;
}

static bool set_choice(const opt_spec *spec, const char *text, opt_value *value, char message[OPT_MESSAGE]) {
    char shown[64], list[160] = "";
    for (size_t i = 0; spec->choices[i]; i++) {
        if (!strcmp(spec->choices[i], text)) return value->choice = i, true;
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? " " : "", spec->choices[i]);
    }
    opt_quote(shown, sizeof shown, text);
    const char *near = opt_nearest(text, spec->choices);
    if (near) return fail(message, "--%s: \"%s\" is none of: %s; did you mean %s?", spec->name, shown, list, near);
    return fail(message, "--%s: \"%s\" is none of: %s", spec->name, shown, list);
}

static bool set_value(const opt_spec *spec, const char *text, opt_value *value, char message[OPT_MESSAGE]) {
    char shown[64];
    opt_quote(shown, sizeof shown, text);
    value->text = text;
    switch (spec->kind) {
    case OPT_INT:
        if (!parse_int(text, &value->integer))
            return fail(message, "--%s: \"%s\" is not a whole number (%.0f..%.0f)", spec->name, shown, spec->min,
                        spec->max);
        if ((double)value->integer < spec->min || (double)value->integer > spec->max)
            return fail(message, "--%s: %s is outside %.0f..%.0f", spec->name, shown, spec->min, spec->max);
        return true;
    case OPT_NUMBER:
        if (!parse_number(text, &value->number))
            return fail(message, "--%s: \"%s\" is not a number (%g..%g)", spec->name, shown, spec->min, spec->max);
        if (!(value->number >= spec->min && value->number <= spec->max))
            return fail(message, "--%s: %s is outside %g..%g", spec->name, shown, spec->min, spec->max);
        return true;
    case OPT_CHOICE: return set_choice(spec, text, value, message);
    case OPT_TEXT:
    case OPT_FLAG: break;
    }
    return true;
}

static bool unknown(const opt_command *command, const char *name, char message[OPT_MESSAGE]) {
    char shown[64];
    const char **names = calloc(command->n_specs + 1, sizeof *names);
    const char *near = NULL;
    opt_quote(shown, sizeof shown, name);
    for (size_t i = 0; names && i < command->n_specs; i++) names[i] = command->specs[i].name;
    if (names) near = opt_nearest(name, names);
    free(names);
    if (near) return fail(message, "--%s: %s has no such flag; did you mean --%s?", shown, command->name, near);
    return fail(message, "--%s: %s has no such flag; see linework help %s", shown, command->name, command->name);
}

/* The slot of a spec: a grouped flag belongs to the group opened last. */
static opt_value *slot(opt_parsed *p, size_t spec) {
    if (p->command->specs[spec].group == OPT_OPENS_GROUP) p->n_groups++;
    size_t row = p->command->specs[spec].group == OPT_ALONE ? 0 : p->n_groups;
    return &p->values[row * p->command->n_specs + spec];
}

/* --name, --name=value, --name value. *i is the argument's place, moved on where the value is the next one. */
static bool parse_long(opt_parsed *p, int argc, char *const *argv, int *i, char message[OPT_MESSAGE]) {
    char name[64];
    const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
    int at = *i + 1;
    size_t n = equals ? (size_t)(equals - arg) : strlen(arg), spec = 0;
    if (n >= sizeof name) return unknown(p->command, arg, message);
    memcpy(name, arg, n);
    name[n] = 0;
    while (spec < p->command->n_specs && strcmp(p->command->specs[spec].name, name)) spec++;
    if (spec == p->command->n_specs) return unknown(p->command, name, message);

    const opt_spec *s = &p->command->specs[spec];
    const char *text = equals ? equals + 1 : NULL;
    if (s->kind == OPT_FLAG && text) return fail(message, "--%s: takes no value", name);
    if (s->kind != OPT_FLAG && !text) {
        if (*i + 1 >= argc) return fail(message, "--%s: needs a value (%s)", name, s->value);
        text = argv[++*i];
    }
    opt_value *value = slot(p, spec);
    value->at = at;
    return s->kind == OPT_FLAG || set_value(s, text, value, message);
}

/* -q, -qv, -b4, -b 4, -qb4. */
static bool parse_short(opt_parsed *p, int argc, char *const *argv, int *i, char message[OPT_MESSAGE]) {
    int at = *i + 1;
    for (const char *c = argv[*i] + 1; *c; c++) {
        size_t spec = 0;
        while (spec < p->command->n_specs && p->command->specs[spec].letter != *c) spec++;
        if (spec == p->command->n_specs) {
            char shown[64];
            opt_quote(shown, sizeof shown, argv[at - 1]);
            return fail(message, "-%c (in %s): %s has no such flag; see linework help %s",
                        (unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e ? '?' : *c, shown, p->command->name,
                        p->command->name);
        }
        const opt_spec *s = &p->command->specs[spec];
        const char *text = NULL;
        if (s->kind != OPT_FLAG && c[1]) text = c + 1;
        if (s->kind != OPT_FLAG && !text) {
            if (*i + 1 >= argc) return fail(message, "-%c: needs a value (%s)", *c, s->value);
            text = argv[++*i];
        }
        opt_value *value = slot(p, spec);
        value->at = at;
        if (s->kind == OPT_FLAG) continue;
        return set_value(s, text, value, message);
    }
    return true;
}

bool opt_parse(const opt_command *command, int argc, char *const *argv, opt_parsed *out, char message[OPT_MESSAGE]) {
    /* No command line opens more groups than it has words that begin with a dash. */
    size_t rows = 1;
    for (size_t s = 0; s < command->n_specs; s++)
        if (command->specs[s].group == OPT_OPENS_GROUP)
            for (int i = 0; i < argc; i++) rows += argv[i][0] == '-';
    *out = (opt_parsed){.command = command};
    out->values = calloc(rows * (command->n_specs + 1), sizeof *out->values);
    out->args = calloc((size_t)argc + 1, sizeof *out->args);
    if (!out->values || !out->args) return fail(message, "memory: none for a command line of %d words", argc);

    bool plain = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (plain || arg[0] != '-' || !arg[1]) {
            out->args[out->n_args++] = arg;
        } else if (!strcmp(arg, "--")) {
            plain = true;
        } else if (!(arg[1] == '-' ? parse_long(out, argc, argv, &i, message)
                                   : parse_short(out, argc, argv, &i, message))) {
            return false;
        }
    }
    char shown[64];
    if (out->n_args > command->max_args) {
        opt_quote(shown, sizeof shown, out->args[command->max_args]);
        if (!command->max_args) return fail(message, "\"%s\": %s takes flags alone", shown, command->name);
        return fail(message, "\"%s\": %s takes %s", shown, command->name, command->arguments);
    }
    return true;
}

void opt_free(opt_parsed *parsed) {
    free(parsed->values);
    free(parsed->args);
    *parsed = (opt_parsed){0};
}

const opt_value *opt_get(const opt_parsed *parsed, size_t spec) { return &parsed->values[spec]; }

const opt_value *opt_get_in(const opt_parsed *parsed, size_t g, size_t spec) {
    const opt_value *own = NULL;
    if (g < parsed->n_groups) own = &parsed->values[(g + 1) * parsed->command->n_specs + spec];
    return own && own->at ? own : &parsed->values[spec];
}
