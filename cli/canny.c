/* SPDX-License-Identifier: MIT
 * linework canny: the edge map alone, as the reference's annotator makes it. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static lw_status tell(const opt_parsed *o, const lw_image *edges, double low, double high, lw_error *err) {
    const char *output = opt_get(o, CANNY_OUTPUT)->text, *resized = opt_get(o, CANNY_SAVE_RESIZED)->text;
    lw_status status;
    if (opt_get(o, ALL_JSON)->at) {
        json_t *json = json_pack("{s:s, s:s?, s:i, s:i, s:f, s:f}", "output", output, "resized", resized, "width",
                                 edges->width, "height", edges->height, "canny_low", low, "canny_high", high);
        status = json ? cli_print_json(json, err) : cli_fail(err, LW_EINPUT, "--json: a path is not UTF-8");
        json_decref(json);
        return status;
    }
    if (!strcmp(output, "-")) return LW_OK;
    char *text = cli_format("%s: %dx%d, thresholds %g and %g\n", output, edges->width, edges->height, low, high);
    status = text ? cli_print(text, err) : cli_no_memory(err);
    free(text);
    return status;
}

static lw_status check(const opt_parsed *o, lw_error *err) {
    const char *output = opt_get(o, CANNY_OUTPUT)->text, *resized = opt_get(o, CANNY_SAVE_RESIZED)->text;
    if (!opt_get(o, CANNY_INPUT)->at) return cli_fail(err, LW_EINVAL, "canny: no picture: give -i FILE");
    if (!output) return cli_fail(err, LW_EINVAL, "canny: no output: give -o FILE");
    if (resized && !strcmp(resized, "-"))
        return cli_fail(err, LW_EINVAL, "--save-resized: only -o can be standard output");
    if (resized && !strcmp(resized, output)) return cli_fail(err, LW_EINVAL, "%s: is named for two outputs", resized);
    if (!strcmp(output, "-") && opt_get(o, ALL_JSON)->at)
        return cli_fail(err, LW_EINVAL, "--output -: standard output can't be both the picture and --json's object");
    lw_status status = cli_check_picture_output(output, err);
    return status == LW_OK && resized ? cli_check_picture_output(resized, err) : status;
}

lw_status cmd_canny(const opt_parsed *o, lw_error *err) {
    const opt_value *low_value = opt_get(o, CANNY_LOW), *high_value = opt_get(o, CANNY_HIGH);
    const opt_value *side = opt_get(o, CANNY_RESOLUTION), *resized = opt_get(o, CANNY_SAVE_RESIZED);
    double low = low_value->at ? low_value->number : 100, high = high_value->at ? high_value->number : 200;
    lw_image picture = {.size = sizeof picture}, rgb = picture, sized = picture, edges = picture;
    const lw_image *in = &rgb;

    lw_status status = check(o, err);
    if (status == LW_OK) status = cli_read_picture(opt_get(o, CANNY_INPUT)->text, &picture, NULL, NULL, err);
    if (status == LW_OK) status = lw_image_to_rgb(&picture, &rgb, err);
    if (status == LW_OK && side->at) {
        status = lw_image_resize(&rgb, (int32_t)side->integer, &sized, err);
        in = &sized;
    }
    if (status == LW_OK) status = lw_canny(in, low, high, &edges, err);
    if (status == LW_OK && cli_interrupted()) status = cli_fail(err, LW_ECANCEL, "canny: cancelled");
    if (status == LW_OK && resized->at) status = cli_write_picture(resized->text, in, NULL, err);
    if (status == LW_OK) status = cli_write_picture(opt_get(o, CANNY_OUTPUT)->text, &edges, NULL, err);
    if (status == LW_OK) status = tell(o, &edges, low, high, err);
    lw_image_free(&picture);
    lw_image_free(&rgb);
    lw_image_free(&sized);
    lw_image_free(&edges);
    return status;
}
