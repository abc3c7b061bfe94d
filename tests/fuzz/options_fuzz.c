/* SPDX-License-Identifier: MIT
 * Any bytes as a command line: the first picks the command, zeros part the words. What is taken must be in its range.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "tables.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "options: %s\n", what);
    abort();
}

static void check_value(const opt_spec *spec, const opt_value *v) {
    if (!v->at) return;
    if (spec->kind == OPT_INT)
        require((double)v->integer >= spec->min && (double)v->integer <= spec->max, "an integer is outside its range");
    if (spec->kind == OPT_NUMBER)
        require(v->number >= spec->min && v->number <= spec->max, "a number is outside its range");
    if (spec->kind == OPT_CHOICE) require(!strcmp(spec->choices[v->choice], v->text), "a choice is not the one named");
    require((spec->kind == OPT_FLAG) == (v->text == NULL), "a flag has a value, or a value is missing");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { MAX_WORDS = 64 };
    char *argv[MAX_WORDS], message[OPT_MESSAGE] = "";
    int argc = 0;
    if (size < 1 || size > 4096) return 0;
    const opt_command *command = cli_commands[data[0] % cli_n_commands];
    char *text = malloc(size);
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    for (size_t at = 0; at < size && argc < MAX_WORDS; at += strlen(text + at) + 1) argv[argc++] = text + at;

    opt_parsed parsed;
    if (opt_parse(command, argc, argv, &parsed, message)) {
        for (size_t g = 0; g <= parsed.n_groups; g++)
            for (size_t s = 0; s < command->n_specs; s++) check_value(&command->specs[s], opt_get_in(&parsed, g, s));
    } else {
        require(message[0] && strlen(message) < OPT_MESSAGE, "a refusal without a reason");
        for (const char *c = message; *c; c++) require((unsigned char)*c >= 0x20, "a control byte in a message");
    }
    opt_free(&parsed);
    free(text);
    return 0;
}
