/* SPDX-License-Identifier: MIT
 * linework: finds the command, parses its flags, turns its status into the exit code and one line on standard error. */
#include "cli.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef lw_status (*command_fn)(const opt_parsed *options, lw_error *err);

static const struct {
    const opt_command *command;
    command_fn run;
} commands[] = {
    {&cli_generate, cmd_generate}, {&cli_canny, cmd_canny},
    {&cli_demo, cmd_demo},         {&cli_info, cmd_info},
    {&cli_tokenize, cmd_tokenize}, {&cli_make_model, cmd_make_model},
    {&cli_convert, cmd_convert},   {&cli_doctor, cmd_doctor},
    {&cli_tune, cmd_tune},         {&cli_fetch_vocab, cmd_fetch_vocab},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int exit_code(lw_status status) {
    switch (status) {
    case LW_OK: return 0;
    case LW_EINVAL: return 2;
    case LW_EMODEL: return 3;
    case LW_EINPUT: return 4;
    case LW_ENOMEM: return 5;
    case LW_EDEVICE: return 6;
    case LW_EOUTPUT: return 7;
    case LW_ECANCEL: return 130;
    case LW_EINTERNAL: break;
    }
    return 1;
}

static int finish(lw_status status, const lw_error *err) {
    if (status == LW_EINTERNAL) fprintf(stderr, "linework: %s (this is a bug: please report it)\n", err->message);
    else if (status != LW_OK) fprintf(stderr, "linework: %s\n", err->message);
    return exit_code(status);
}

/* *text is where open_memstream puts what was written, once it is closed. */
static lw_status print_stream(char *const *text, FILE *out, lw_error *err) {
    return fclose(out) == 0 ? cli_print(*text, err) : cli_no_memory(err);
}

static const char short_help[] =
    "linework draws a new picture along the edges of another\n"
    "\n"
    "  linework demo                                   a first picture, from a shipped drawing\n"
    "  linework generate -i photo.png -p \"a red house\"  your own picture and prompt\n"
    "  linework help generate                          every flag\n";

static void long_help(FILE *out) {
    fputs("linework draws a new picture along the edges of another\n\nusage: linework COMMAND [options]\n\n", out);
    for (size_t i = 0; i < cli_n_commands; i++)
        fprintf(out, "  %-12s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fputs("\n  help COMMAND          the flags of a command\n"
          "  help --man            the manual page (mdoc)\n"
          "  help --completion     completion for bash\n"
          "  --version             version, build, libraries and devices\n"
          "\nexit codes: 0 done, 2 usage, 3 model, 4 input, 5 memory, 6 device, 7 output, 130 cancelled\n",
          out);
}

/* The joined strings of an array, or of an object's "name version" pairs. */
static void print_list(FILE *out, const char *title, json_t *list) {
    const char *key;
    json_t *value;
    size_t i;
    fprintf(out, "%-11s%s", title, json_is_string(list) ? json_string_value(list) : "");
    if (json_is_object(list)) {
        bool first = true;
        json_object_foreach(list, key, value) {
            fprintf(out, "%s%s %s", first ? "" : ", ", key, json_is_string(value) ? json_string_value(value) : "");
            first = false;
        }
    }
    json_array_foreach(list, i, value) {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        fprintf(out, "%s%s", i ? ", " : "", text ? text : json_string_value(value));
        free(text);
    }
    fputc('\n', out);
}

static lw_status version(bool as_json, lw_error *err) {
    char *text = NULL, *info = lw_build_info();
    size_t size = 0;
    json_t *json = info ? json_loads(info, 0, NULL) : NULL;
    FILE *out = NULL;
    lw_status status = LW_OK;
    lw_free(info);
    if (!json) return cli_no_memory(err);
    if (as_json) {
        status = cli_print_json(json, err);
    } else if (!(out = open_memstream(&text, &size))) {
        status = cli_no_memory(err);
    } else {
        const char *compiler = json_string_value(json_object_get(json, "compiler"));
        fprintf(out, "linework %s\n%-11s%s\n", lw_version(), "compiler", compiler ? compiler : "?");
        print_list(out, "CPU", json_object_get(json, "cpu"));
        print_list(out, "libraries", json_object_get(json, "libraries"));
        print_list(out, "devices", json_object_get(json, "devices"));
        status = print_stream(&text, out, err);
    }
    free(text);
    json_decref(json);
    return status;
}

static lw_status unknown_command(const char *name, lw_error *err) {
    const char *names[N_COMMANDS + 2] = {"help"};
    char shown[64];
    opt_quote(shown, sizeof shown, name);
    for (size_t i = 0; i < N_COMMANDS; i++) names[i + 1] = commands[i].command->name;
    for (size_t i = 0; cli_reserved[i]; i++)
        if (!strcmp(cli_reserved[i], name))
            return cli_fail(err, LW_EINVAL, "%s: the name is reserved for a command that this version does not have",
                            shown);
    const char *near = opt_nearest(name, names);
    if (near) return cli_fail(err, LW_EINVAL, "%s: no such command; did you mean %s?", shown, near);
    return cli_fail(err, LW_EINVAL, "%s: no such command; see linework help", shown);
}

static size_t find_command(const char *name) {
    size_t i = 0;
    while (i < N_COMMANDS && strcmp(commands[i].command->name, name) != 0) i++;
    return i;
}

static lw_status help(const char *topic, lw_error *err) {
    char *text = NULL;
    size_t size = 0, command = topic ? find_command(topic) : N_COMMANDS;
    FILE *out = open_memstream(&text, &size);
    lw_status status = LW_OK;
    if (!out) return cli_no_memory(err);
    if (!topic) long_help(out);
    else if (!strcmp(topic, "--man")) opt_man(out, cli_commands, cli_n_commands, lw_version());
    else if (!strcmp(topic, "--completion")) opt_completion(out, cli_commands, cli_n_commands);
    else if (command < N_COMMANDS) opt_help(out, commands[command].command);
    else status = unknown_command(topic, err);
    if (status == LW_OK) status = print_stream(&text, out, err);
    else fclose(out);
    free(text);
    return status;
}

static lw_status run(size_t command, int argc, char **argv, lw_error *err) {
    char message[OPT_MESSAGE];
    opt_parsed options;
    const opt_command *c = commands[command].command;
    lw_status status;
    if (!opt_parse(c, argc, argv, &options, message)) status = cli_fail(err, LW_EINVAL, "%s", message);
    else if (opt_get(&options, ALL_HELP)->at) status = help(c->name, err);
    else if (opt_get(&options, ALL_VERSION)->at) status = version(opt_get(&options, ALL_JSON)->at, err);
    else if (options.n_args < c->min_args) status = cli_fail(err, LW_EINVAL, "%s: needs %s", c->name, c->arguments);
    else status = commands[command].run(&options, err);
    opt_free(&options);
    return status;
}

/* A file that is opened while standard output is closed would be printed into. What stands in for a closed descriptor
 * fails when it is used, as the closed one would. */
static void hold_standard_descriptors(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) return;
}

int main(int argc, char **argv) {
    lw_error err = {0};
    hold_standard_descriptors();
    cli_catch_signals();
    if (argc < 2) return finish(cli_print(short_help, &err), &err);
    const char *name = argv[1];
    if (!strcmp(name, "help")) return finish(help(argc > 2 ? argv[2] : NULL, &err), &err);
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) return finish(help(NULL, &err), &err);
    if (!strcmp(name, "--version")) return finish(version(argc > 2 && !strcmp(argv[2], "--json"), &err), &err);
    size_t command = find_command(name);
    if (command == N_COMMANDS) return finish(unknown_command(name, &err), &err);
    return finish(run(command, argc - 2, argv + 2, &err), &err);
}
