/* SPDX-License-Identifier: MIT
 * linework make-model: a model of random weights in a real model's shapes. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

lw_status cmd_make_model(const opt_parsed *o, lw_error *err) {
    const char *path = o->args[0];
    lw_make_params params;
    lw_make_params_init(&params);
    if (opt_get(o, MAKE_LIKE)->text) params.like = opt_get(o, MAKE_LIKE)->text;
    if (opt_get(o, MAKE_LAYOUT)->text) params.layout = opt_get(o, MAKE_LAYOUT)->text;
    if (opt_get(o, MAKE_SEED)->at) params.seed = (uint64_t)opt_get(o, MAKE_SEED)->integer;
    params.small = opt_get(o, MAKE_SMALL)->at != 0;
    const char *dtype = opt_get(o, MAKE_DTYPE)->text;
    lw_status status = dtype ? lw_precision_from_name(dtype, &params.dtype, err) : LW_OK;
    if (status == LW_OK && strcmp(params.layout, "diffusers")) status = cli_check_output(path, err);
    if (status != LW_OK) return status;
    cli_bytes progress;
    cli_bytes_init(&progress, cli_volume_of(o), path);
    params.progress = cli_bytes_show;
    params.user = &progress;
    status = lw_model_make(path, &params, err);
    cli_bytes_end(&progress);
    if (status != LW_OK) return status;
    json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:I, s:b, s:I}", "path", path, "like", params.like, "layout",
                             params.layout, "dtype", dtype ? dtype : "fp32", "seed", (json_int_t)params.seed, "small",
                             params.small, "bytes", (json_int_t)progress.total);
    if (opt_get(o, ALL_JSON)->at) {
        status = json ? cli_print_json(json, err) : cli_no_memory(err);
    } else {
        char *line = cli_format("%s: %s of %s, random weights of seed %llu, %.1f MB\n", path, params.layout,
                                params.like, (unsigned long long)params.seed, (double)progress.total / 1e6);
        status = line ? cli_print(line, err) : cli_no_memory(err);
        free(line);
    }
    json_decref(json);
    return status;
}
