/* SPDX-License-Identifier: MIT
 * Progress on standard error: on a terminal one line that is drawn again, with rate and time left; elsewhere a line a
 * stage, and a line a second of the steps. Also the signals, which end a job through the progress callback. */
#include "cli.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;
static volatile int64_t interrupted_ms; /* of the first signal; read and written by the handler alone */

/* The first signal asks to stop at the next step, a later one stops at once. Both of a pair do as one: timeout(1) sends
 * its signal to the process and to its group. */
static void on_signal(int number) {
    struct timespec now; /* clock_gettime may be called here, as signal and raise may */
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (!interrupted) interrupted_ms = ms;
    interrupted = 1;
    if (ms - interrupted_ms < 500) return;
    signal(number, SIG_DFL);
    raise(number);
}

void cli_catch_signals(void) {
    /* No SA_RESTART: a read of standard input has to return. Neither signal may come into the other's handler. */
    struct sigaction stop = {.sa_handler = on_signal};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&stop.sa_mask);
    sigaddset(&stop.sa_mask, SIGINT);
    sigaddset(&stop.sa_mask, SIGTERM);
    sigemptyset(&ignore.sa_mask);
    struct sigaction before;
    /* A job started in the background by a shell has SIGINT ignored, and is not to be stopped by it. */
    if (sigaction(SIGINT, NULL, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGXFSZ, &ignore, NULL);
}

bool cli_interrupted(void) { return interrupted != 0; }

void cli_hold_signals(bool hold) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

static const char *const stage_names[] = {
    [LW_STAGE_LOAD] = "load",   [LW_STAGE_CANNY] = "edges",   [LW_STAGE_TEXT] = "text", [LW_STAGE_HINT] = "hint",
    [LW_STAGE_STEPS] = "steps", [LW_STAGE_DECODE] = "decode", [LW_STAGE_DONE] = "done",
};

void cli_progress_init(cli_progress *progress, cli_volume volume, bool stage_times) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    *progress = (cli_progress){.volume = volume, .stage_times = stage_times};
    progress->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    progress->colour = progress->terminal && !(no_color && *no_color);
}

static void time_left(double seconds, char *out, size_t size) {
    if (seconds < 60) snprintf(out, size, "%.0f s", seconds);
    else if (seconds < 3600)
        snprintf(out, size, "%.0f min %02.0f s", (double)(long)(seconds / 60),
                 seconds - 60.0 * (double)(long)(seconds / 60));
    else snprintf(out, size, "%.1f h", seconds / 3600);
}

/* "12/20  3.14 steps/s  3 s left"; the rate leaves out the first step, which also pays for what is made once. */
static void describe_steps(const cli_progress *p, int32_t step, int32_t n_steps, char *out, size_t size) {
    double seconds = (cli_now_ms() - p->steps_ms) / 1e3;
    int32_t done = step - p->first_step;
    if (done <= 0 || seconds <= 0) {
        snprintf(out, size, "%d/%d", step, n_steps);
        return;
    }
    char left[32], rate[32];
    double each = seconds / done;
    time_left(each * (n_steps - step), left, sizeof left);
    if (each < 1) snprintf(rate, sizeof rate, "%.2f steps/s", 1 / each);
    else snprintf(rate, sizeof rate, "%.2f s a step", each);
    snprintf(out, size, "%d/%d  %s  %s left", step, n_steps, rate, left);
}

static void draw_bar(const cli_progress *p, int32_t step, int32_t n_steps, const char *text) {
    struct winsize window = {0};
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
    int width = columns - 10 - (int)strlen(text) - 4;
    if (width > 40) width = 40;
    fputs("\r\033[K", stderr);
    if (width < 5) {
        fprintf(stderr, "steps %s", text);
    } else {
        int full = (int)((int64_t)width * step / n_steps);
        fprintf(stderr, "steps   [%s", p->colour ? "\033[32m" : "");
        for (int i = 0; i < width; i++) fputc(i < full ? '#' : '.', stderr);
        fprintf(stderr, "%s] %s", p->colour ? "\033[0m" : "", text);
    }
    fflush(stderr);
}

static void end_stage(cli_progress *p) {
    if (!p->begun || p->volume == CLI_QUIET || p->stage == LW_STAGE_DONE) return;
    if (p->terminal) fputs("\r\033[K", stderr);
    double ms = cli_now_ms() - p->stage_ms;
    if (p->stage_times || !p->terminal)
        fprintf(stderr, "%-7s %.*f s\n", stage_names[p->stage], ms < 1e4 ? 3 : 1, ms / 1e3);
    fflush(stderr);
}

int cli_progress_show(cli_progress *p, lw_stage stage, int32_t step, int32_t n_steps) {
    char text[96];
    if ((size_t)stage >= sizeof stage_names / sizeof *stage_names) return cli_interrupted();
    if (!p->begun || stage != p->stage) {
        end_stage(p);
        p->begun = true;
        p->stage = stage;
        p->stage_ms = p->steps_ms = cli_now_ms();
        p->first_step = step;
        p->said_ms = p->stage_ms;
        if (p->volume != CLI_QUIET && p->terminal && stage != LW_STAGE_STEPS && stage != LW_STAGE_DONE) {
            fprintf(stderr, "\r\033[K%s...", stage_names[stage]);
            fflush(stderr);
        }
    }
    if (stage == LW_STAGE_STEPS && n_steps > 0) {
        if (step == 1 && n_steps > 1) p->first_step = 1, p->steps_ms = cli_now_ms();
        describe_steps(p, step, n_steps, text, sizeof text);
        if (p->volume == CLI_QUIET) {
        } else if (p->terminal) {
            draw_bar(p, step, n_steps, text);
        } else if (step > 0 && cli_now_ms() - p->said_ms >= 1000) {
            fprintf(stderr, "step    %s\n", text);
            p->said_ms = cli_now_ms();
        }
    }
    return cli_interrupted();
}

void cli_progress_end(cli_progress *p) {
    end_stage(p);
    p->begun = false;
}

void cli_bytes_init(cli_bytes *p, cli_volume volume, const char *what) {
    const char *term = getenv("TERM");
    *p = (cli_bytes){.what = what};
    p->terminal = volume != CLI_QUIET && isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
}

int cli_bytes_show(void *progress, uint64_t done, uint64_t total) {
    cli_bytes *p = progress;
    p->total = total;
    if (p->terminal && cli_now_ms() - p->said_ms >= 100) {
        fprintf(stderr, "\r\033[K%s: %.0f of %.0f MB", p->what, (double)done / 1e6, (double)total / 1e6);
        fflush(stderr);
        p->said_ms = cli_now_ms();
        p->shown = true;
    }
    return cli_interrupted();
}

void cli_bytes_end(cli_bytes *p) {
    if (p->shown) fputs("\r\033[K", stderr);
    p->shown = false;
}
