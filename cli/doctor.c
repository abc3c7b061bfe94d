/* SPDX-License-Identifier: MIT
 * linework doctor: the library's reports as text. They are printed also where they say that a file can't be used. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN = 20 }; /* of a long list, as text; JSON has all */

static const char *text_of(const json_t *report, const char *key) {
    const char *text = json_string_value(json_object_get(report, key));
    return text ? text : "?";
}

static void print_list(FILE *out, const char *title, json_t *list, size_t most) {
    size_t i;
    json_t *line;
    json_array_foreach(list, i, line) {
        if (i == most) {
            fprintf(out, "  %-10s and %zu more\n", "", json_array_size(list) - i);
            break;
        }
        fprintf(out, "  %-10s %s\n", i ? "" : title, json_string_value(line));
    }
}

static double mib(const json_t *of, const char *key) {
    return (double)json_integer_value(json_object_get(of, key)) / 1048576;
}

static void print_report(FILE *out, json_t *report) {
    const char *name, *size;
    json_t *network, *bytes, *of;
    bool usable = json_is_true(json_object_get(report, "usable"));
    fprintf(out, "%s: %s%s\n", text_of(report, "path"), usable ? "usable: " : "not usable",
            usable ? text_of(report, "use") : "");
    if (json_object_get(report, "release")) fprintf(out, "  %-10s %s\n", "release", text_of(report, "release"));
    if (json_object_get(report, "layout"))
        fprintf(out, "  %-10s %s, %.1f MB\n", "layout", text_of(report, "layout"),
                (double)json_integer_value(json_object_get(report, "file_bytes")) / 1e6);
    json_object_foreach(json_object_get(report, "networks"), name, network) {
        fprintf(out, "  %-10s %lld tensors, %.1f M parameters", name,
                (long long)json_integer_value(json_object_get(network, "tensors")),
                (double)json_integer_value(json_object_get(network, "parameters")) / 1e6);
        json_object_foreach(json_object_get(network, "dtypes"), size, bytes) { fprintf(out, ", %s", size); }
        fputc('\n', out);
    }
    json_object_foreach(json_object_get(report, "memory_bytes"), name, of) {
        fprintf(out, "  %-10s %s", "memory", name);
        json_object_foreach(of, size, bytes) {
            if (!strncmp(name, "cpu", 3))
                fprintf(out, ", %s: %.0f MiB", size, mib(bytes, "device") + mib(bytes, "host"));
            else
                fprintf(out, ", %s: %.0f MiB and %.0f MiB of the host's", size, mib(bytes, "device"),
                        mib(bytes, "host"));
        }
        fputc('\n', out);
    }
    print_list(out, "problem", json_object_get(report, "problems"), SIZE_MAX);
    print_list(out, "remark", json_object_get(report, "remarks"), SIZE_MAX);
    print_list(out, "missing", json_object_get(report, "missing"), SHOWN);
    print_list(out, "extra", json_object_get(report, "extra"), SHOWN);
    print_list(out, "misshaped", json_object_get(report, "misshaped"), SHOWN);
    print_list(out, "damaged", json_object_get(report, "damaged"), SHOWN);
    print_list(out, "unused", json_object_get(report, "unused"), SHOWN);
}

static lw_status examine(const opt_parsed *o, const char *path, bool part, json_t *reports, lw_error *err) {
    const char *control = opt_get(o, DOCTOR_CONTROL_NET)->text;
    lw_doctor_params params;
    lw_doctor_params_init(&params);
    cli_bytes progress;
    cli_bytes_init(&progress, cli_volume_of(o), path);
    params.control_nets = &control;
    params.n_control_nets = !part && control ? 1 : 0;
    params.vae = part ? NULL : opt_get(o, DOCTOR_VAE)->text;
    params.progress = cli_bytes_show;
    params.user = &progress;
    char *text = NULL, *cache = cli_cache_dir();
    params.cache_dir = cache;
    lw_status status = lw_model_doctor(path, &params, &text, err);
    cli_bytes_end(&progress);
    free(cache);
    if (status != LW_OK) return status;
    json_t *report = json_loads(text, 0, NULL);
    lw_free(text);
    if (json_array_append_new(reports, report) != 0) return cli_no_memory(err);
    return LW_OK;
}

/* The first problem of the first report that has one. */
static lw_status verdict(const json_t *reports, lw_error *err) {
    size_t i;
    json_t *report;
    json_array_foreach(reports, i, report) {
        if (json_is_true(json_object_get(report, "usable"))) continue;
        const char *why = json_string_value(json_array_get(json_object_get(report, "problems"), 0));
        return cli_fail(err, LW_EMODEL, "%s: can't be used: %s", text_of(report, "path"), why ? why : "?");
    }
    return LW_OK;
}

lw_status cmd_doctor(const opt_parsed *o, lw_error *err) {
    const char *parts[] = {opt_get(o, DOCTOR_CONTROL_NET)->text, opt_get(o, DOCTOR_VAE)->text};
    json_t *reports = json_array(), *report;
    lw_status status = reports ? LW_OK : cli_no_memory(err);
    char *text = NULL;
    size_t size = 0, i;
    for (i = 0; i < o->n_args && status == LW_OK; i++) status = examine(o, o->args[i], false, reports, err);
    for (i = 0; i < 2 && status == LW_OK; i++)
        if (parts[i]) status = examine(o, parts[i], true, reports, err);
    if (status == LW_OK && opt_get(o, ALL_JSON)->at) {
        json_t *json = json_pack("{s:O}", "reports", reports);
        status = json ? cli_print_json(json, err) : cli_no_memory(err);
        json_decref(json);
    } else if (status == LW_OK) {
        FILE *out = open_memstream(&text, &size);
        json_array_foreach(reports, i, report) {
            if (out) print_report(out, report);
        }
        status = out && fclose(out) == 0 ? cli_print(text, err) : cli_no_memory(err);
        free(text);
    }
    if (status == LW_OK) status = verdict(reports, err);
    json_decref(reports);
    return status;
}
