/* SPDX-License-Identifier: MIT
 * linework convert: any model as safetensors. */
#include "cli.h"

#include <stdlib.h>

lw_status cmd_convert(const opt_parsed *o, lw_error *err) {
    const char *in = o->args[0], *out = o->args[1], *dtype = opt_get(o, CONVERT_DTYPE)->text;
    lw_convert_params params;
    lw_convert_params_init(&params);
    params.base = opt_get(o, CONVERT_TRANSFER)->text;
    params.community = opt_get(o, CONVERT_COMMUNITY)->text;
    if (!params.base != !params.community)
        return cli_fail(err, LW_EINVAL, "--transfer and --community: give both, or none");
    lw_status status = dtype ? lw_precision_from_name(dtype, &params.dtype, err) : LW_OK;
    if (status == LW_OK) status = cli_check_output(out, err);
    if (status != LW_OK) return status;
    cli_bytes progress;
    cli_bytes_init(&progress, cli_volume_of(o), out);
    params.progress = cli_bytes_show;
    params.user = &progress;
    status = lw_model_convert(in, out, &params, err);
    cli_bytes_end(&progress);
    if (status != LW_OK) return status;
    if (opt_get(o, ALL_JSON)->at) {
        json_t *json = json_pack("{s:s, s:s, s:s?, s:b, s:I}", "input", in, "output", out, "dtype", dtype,
                                 "transferred", params.base != NULL, "bytes", (json_int_t)progress.total);
        status = json ? cli_print_json(json, err) : cli_no_memory(err);
        json_decref(json);
        return status;
    }
    char *line = cli_format("%s: safetensors, %s, %.1f MB\n", out, dtype ? dtype : "types as they were",
                            (double)progress.total / 1e6);
    status = line ? cli_print(line, err) : cli_no_memory(err);
    free(line);
    return status;
}
