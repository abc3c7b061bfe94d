/* SPDX-License-Identifier: MIT
 * options: a command line read by a table, and the help, the man page and the shell completion written from the same
 * table. Knows no command; the tables are in tables.c. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum opt_kind { OPT_FLAG, OPT_INT, OPT_NUMBER, OPT_TEXT, OPT_CHOICE } opt_kind;

/* A group is what a repeatable flag and the flags that follow it say together (--control-net and its settings). Grouped
 * flags before the first opener are kept as group 0, whose values hold for every group that has none of its own. */
typedef enum opt_group { OPT_ALONE = 0, OPT_OPENS_GROUP, OPT_IN_GROUP } opt_group;

typedef struct opt_spec {
    const char *name; /* without the dashes */
    char letter;      /* 0: there is no short form */
    opt_kind kind;
    opt_group group;
    double min, max;            /* OPT_INT, OPT_NUMBER: both ends belong to the range */
    const char *const *choices; /* OPT_CHOICE: ends with NULL */
    const char *value;          /* what the help calls the value */
    const char *fallback;       /* the default, for the help; NULL: none */
    const char *help;
} opt_spec;

typedef struct opt_command {
    const char *name;
    const char *arguments; /* of the synopsis: "[options] FILE" */
    const char *summary;   /* one line */
    const char *text;      /* paragraphs for help and manual, may be NULL */
    const opt_spec *specs;
    size_t n_specs;
    size_t min_args, max_args; /* plain arguments */
} opt_command;

typedef struct opt_value {
    int at; /* position on the command line, from 1; 0: not given */
    int64_t integer;
    double number;
    const char *text; /* borrowed from argv */
    size_t choice;
} opt_value;

typedef struct opt_parsed {
    const opt_command *command;
    opt_value *values; /* [1 + n_groups][n_specs] */
    size_t n_groups;
    const char **args; /* plain arguments, borrowed from argv */
    size_t n_args;
} opt_parsed;

enum { OPT_MESSAGE = 400 };

/* Reads argv[0..argc) (the command's name is not among them). False: message holds what is wrong. opt_free frees *out
 * in either case. */
bool opt_parse(const opt_command *command, int argc, char *const *argv, opt_parsed *out, char message[OPT_MESSAGE]);
void opt_free(opt_parsed *parsed);

/* The value of spec, outside groups (or of group 0). Never NULL. */
const opt_value *opt_get(const opt_parsed *parsed, size_t spec);
/* The value of spec for the g-th group (from 0), which falls back on what was said before the first group. */
const opt_value *opt_get_in(const opt_parsed *parsed, size_t g, size_t spec);

/* The closest of names (ends with NULL) by edit distance, or NULL when none is near. */
const char *opt_nearest(const char *word, const char *const *names);

/* Copies text for a message: control bytes become '?', what is long is cut. */
void opt_quote(char *out, size_t size, const char *text);

/* doc.c: all of them write what the tables say. */
void opt_help(FILE *out, const opt_command *command);
void opt_man(FILE *out, const opt_command *const *commands, size_t n, const char *version);
void opt_completion(FILE *out, const opt_command *const *commands, size_t n);

#endif
