/* SPDX-License-Identifier: MIT
 * The help, the manual page (mdoc) and the bash completion, written from the option tables. */
#include "options.h"

#include <ctype.h>
#include <string.h>

/* Prints text in lines of at most `width` columns, the first begun already at column `at`. */
static void wrap(FILE *out, const char *text, int indent, int at, int width) {
    for (const char *word = text; *word;) {
        int n = (int)strcspn(word, " ");
        if (at > indent && at + 1 + n > width) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            fputc(' ', out);
            at++;
        }
        fprintf(out, "%.*s", n, word);
        at += n;
        word += n;
        word += strspn(word, " ");
    }
    fputc('\n', out);
}

/* What a flag's value may be, for help and manual: "1..1000", "ddim euler ...", or nothing. */
static void value_range(const opt_spec *s, char *out, size_t size) {
    out[0] = 0;
    if (s->kind == OPT_INT && s->max < 9e15) snprintf(out, size, "%.0f..%.0f", s->min, s->max);
    if (s->kind == OPT_NUMBER) snprintf(out, size, "%g..%g", s->min, s->max);
    for (size_t i = 0; s->kind == OPT_CHOICE && s->choices[i]; i++)
        snprintf(out + strlen(out), size - strlen(out), "%s%s", i ? ", " : "", s->choices[i]);
}

void opt_help(FILE *out, const opt_command *command) {
    fprintf(out, "linework %s: %s\n\nusage: linework %s %s\n\n", command->name, command->summary, command->name,
            command->arguments);
    if (command->text) {
        wrap(out, command->text, 0, 0, 100);
        fputc('\n', out);
    }
    for (size_t i = 0; i < command->n_specs; i++) {
        const opt_spec *s = &command->specs[i];
        char head[80], range[160], text[600];
        char letter[8] = "   ";
        if (s->letter) snprintf(letter, sizeof letter, "-%c,", s->letter);
        snprintf(head, sizeof head, "  %s --%s%s%s", letter, s->name, s->value ? " " : "", s->value ? s->value : "");
        value_range(s, range, sizeof range);
        snprintf(text, sizeof text, "%s%s%s%s%s%s%s", s->help, range[0] || s->fallback ? " (" : "", range,
                 range[0] && s->fallback ? "; " : "", s->fallback ? "default " : "", s->fallback ? s->fallback : "",
                 range[0] || s->fallback ? ")" : "");
        if (strlen(head) < 32) fprintf(out, "%-32s", head);
        else fprintf(out, "%s\n%32s", head, "");
        wrap(out, text, 32, 32, 100);
    }
}

/* mdoc reads a line that begins with a dot or a quote as a request, and a backslash as an escape. */
static void man_text(FILE *out, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\\') fputs("\\e", out);
        else if (text[i] == '-') fputs("\\-", out);
        else fputc(text[i], out);
    }
}

/* Text in lines as roff wants them: below 80 columns, and a new one for each sentence. */
static void man_lines(FILE *out, const char *text) {
    size_t column = 0;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column == 0 && (*text == '.' || *text == '\'')) fputs("\\&", out);
        man_text(out, text, n);
        column += n + 1;
        bool ends = n > 0 && text[n - 1] == '.';
        text += n;
        while (*text == ' ') text++;
        if (!*text || ends || column + strcspn(text, " ") > 72) fputc('\n', out), column = 0;
        else fputc(' ', out);
    }
}

/* Inside a macro's line, where short words may be macros' names and punctuation is taken apart. */
static void man_word(FILE *out, const char *text) {
    fputs("\\&", out);
    man_text(out, text, strlen(text));
}

static void man_option(FILE *out, const opt_spec *s) {
    char range[160], text[800];
    fputs(".It", out);
    if (s->letter) fprintf(out, " Fl %c ,", s->letter);
    fprintf(out, " Fl \\-%s", s->name);
    if (s->value) {
        fputs(" Ar ", out);
        man_word(out, s->value);
    }
    fputc('\n', out);
    value_range(s, range, sizeof range);
    bool more = range[0] || s->fallback;
    snprintf(text, sizeof text, "%s%s%s%s%s%s%s.", s->help, more ? " (" : "", range, range[0] && s->fallback ? "; " : "",
             s->fallback ? "default " : "", s->fallback ? s->fallback : "", more ? ")" : "");
    man_lines(out, text);
}

static const char man_tail[] =
    ".Sh ENVIRONMENT\n"
    ".Bl -tag -width XDG_CACHE_HOME\n"
    ".It Ev XDG_CACHE_HOME\n"
    "The cache is the folder\n.Pa linework\nin it; in\n.Pa ~/.cache\nwhere it is not set.\n"
    ".It Ev NO_COLOR\n"
    "Where it is set and not empty, nothing is coloured.\n"
    ".El\n"
    ".Sh EXIT STATUS\n"
    ".Bl -tag -width 130 -compact\n"
    ".It 0\nDone.\n"
    ".It 2\nUsage: an unknown flag, or a value out of its range.\n"
    ".It 3\nA model or vocabulary can't be used.\n"
    ".It 4\nAn input picture, latents file or text can't be used.\n"
    ".It 5\nMemory.\n"
    ".It 6\nThe device failed, or there is none.\n"
    ".It 7\nAn output can't be written.\n"
    ".It 130\nCancelled with SIGINT or SIGTERM.\n"
    ".El\n"
    ".Pp\n"
    "A failure is one line on standard error; standard output then stays empty (but\nfor the report of\n.Cm doctor )\n"
    "and nothing half\\-written is left.\n"
    ".Sh EXAMPLES\n"
    ".Dl linework demo\n"
    ".Dl linework generate \\-i photo.png \\-p \\(dqa red house\\(dq \\-s 7\n"
    ".Dl linework generate \\-\\-from\\-image out.png \\-i photo.png\n"
    ".Dl linework canny \\-i photo.png \\-o edges.png\n";

void opt_man(FILE *out, const opt_command *const *commands, size_t n, const char *version) {
    /* No date: the page is part of the build, and the same sources give the same bytes. */
    fprintf(out,
            ".\\\" linework %s\n.Dd $Mdocdate$\n.Dt LINEWORK 1\n.Os\n.Sh NAME\n.Nm linework\n"
            ".Nd draw a new picture along the edges of another\n.Sh SYNOPSIS\n",
            version);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, ".Nm\n.Cm %s\n", commands[i]->name);
        man_word(out, commands[i]->arguments);
        fputc('\n', out);
    }
    fputs(".Sh DESCRIPTION\n.Nm\n", out);
    man_lines(out, "runs Stable Diffusion 1.5 with ControlNet's canny2image: a prompt says what is drawn, the edges of a "
                   "picture say where.");
    for (size_t i = 0; i < n; i++) {
        const opt_command *c = commands[i];
        fprintf(out, ".Ss linework %s\n", c->name);
        char summary[120];
        snprintf(summary, sizeof summary, "%c%s.", toupper((unsigned char)c->summary[0]), c->summary + 1);
        man_lines(out, summary);
        if (c->text) {
            fputs(".Pp\n", out);
            man_lines(out, c->text);
        }
        fputs(".Bl -tag -width Ds\n", out);
        for (size_t s = 0; s < c->n_specs; s++) man_option(out, &c->specs[s]);
        fputs(".El\n", out);
    }
    fputs(man_tail, out);
}

void opt_completion(FILE *out, const opt_command *const *commands, size_t n) {
    fputs(
        "# bash completion for linework, written from its option tables\n"
        "_linework() {\n"
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        COMPREPLY=($(compgen -W \"help --help --version",
        out);
    for (size_t i = 0; i < n; i++) fprintf(out, " %s", commands[i]->name);
    fputs("\" -- \"$word\"))\n        return\n    fi\n    case $command:$before in\n", out);
    for (size_t i = 0; i < n; i++)
        for (size_t s = 0; s < commands[i]->n_specs; s++) {
            const opt_spec *spec = &commands[i]->specs[s];
            if (spec->kind != OPT_CHOICE) continue;
            fprintf(out, "    %s:--%s) words=\"", commands[i]->name, spec->name);
            for (size_t c = 0; spec->choices[c]; c++) fprintf(out, "%s%s", c ? " " : "", spec->choices[c]);
            fputs("\" ;;\n", out);
        }
    fputs("    esac\n    if [ -z \"$words\" ] && [ \"${word#-}\" != \"$word\" ]; then\n        case $command in\n",
          out);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "        %s) words=\"", commands[i]->name);
        for (size_t s = 0; s < commands[i]->n_specs; s++)
            fprintf(out, "%s--%s", s ? " " : "", commands[i]->specs[s].name);
        fputs("\" ;;\n", out);
    }
    fputs("        help) words=\"", out);
    for (size_t i = 0; i < n; i++) fprintf(out, "%s%s", i ? " " : "", commands[i]->name);
    fputs("\" ;;\n        esac\n    fi\n"
          "    if [ -n \"$words\" ]; then COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
          "    else COMPREPLY=($(compgen -f -- \"$word\")); fi\n"
          "}\n"
          "complete -o filenames -F _linework linework\n",
          out);
}
