/* SPDX-License-Identifier: MIT */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

lw_status(cli_fail)(lw_error *err, lw_status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    err->code = code;
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    for (char *p = err->message; *p; p++)
        if ((unsigned char)*p < 0x20) *p = ' '; /* file names may hold newlines: the message is one line */
    return code;
}

lw_status cli_no_memory(lw_error *err) { return cli_fail(err, LW_ENOMEM, "memory: an allocation was refused"); }

char *cli_format(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}

void cli_note(const char *format, ...) {
    char text[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20) *p = ' ';
    fprintf(stderr, "linework: note: %s\n", text);
}

cli_volume cli_volume_of(const opt_parsed *options) {
    int quiet = opt_get(options, ALL_QUIET)->at, verbose = opt_get(options, ALL_VERBOSE)->at;
    if (quiet == verbose) return quiet ? CLI_VERBOSE : CLI_NORMAL; /* -qv: one word, v is said to win */
    return quiet > verbose ? CLI_QUIET : CLI_VERBOSE;
}

void cli_log(void *user, lw_log_level level, const char *text) {
    (void)level;
    if (*(const cli_volume *)user != CLI_QUIET) cli_note("%s", text);
}

lw_status cli_print_bytes(const void *bytes, size_t n_bytes, lw_error *err) {
    if (fwrite(bytes, 1, n_bytes, stdout) == n_bytes && fflush(stdout) == 0) return LW_OK;
    return cli_fail(err, LW_EOUTPUT, "standard output: %zu bytes can't be written: %s", n_bytes, strerror(errno));
}

lw_status cli_print(const char *text, lw_error *err) { return cli_print_bytes(text, strlen(text), err); }

lw_status cli_print_json(const json_t *json, lw_error *err) {
    /* Nine digits say a float again exactly and keep milliseconds readable. */
    char *text = json_dumps(json, JSON_REAL_PRECISION(9));
    char *line = text ? cli_format("%s\n", text) : NULL;
    lw_status status = line ? cli_print(line, err) : cli_no_memory(err);
    free(line);
    free(text);
    return status;
}

double cli_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}
