/* SPDX-License-Identifier: MIT
 * canny2image in C: a picture's edges and a prompt make a new picture.
 * cc canny2image.c -llinework && ./a.out model.safetensors photo.png "a red house" out.png */
#include <linework.h>
#include <stdio.h>
#include <stdlib.h>

/* Called from lw_session_generate, between steps; a return other than 0 would cancel. */
static int progress(void *user, lw_stage stage, int32_t step, int32_t n_steps) {
    (void)user;
    if (stage == LW_STAGE_STEPS) fprintf(stderr, "step %d of %d\n", step, n_steps);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL PICTURE PROMPT OUTPUT [SEED [SHORT-SIDE]]\n", argv[0]);
        return 2;
    }
    lw_error err = {0};
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_image photo = {.size = sizeof photo};
    lw_result result = {.size = sizeof result};
    lw_engine_info info = {.size = sizeof info};
    lw_plan_info plan = {.size = sizeof plan};
    lw_fields text = {.size = sizeof text};

    lw_engine_params params;
    lw_engine_params_init(&params);
    params.model = argv[1];
    lw_status status = lw_engine_open(&engine, &params, &err);
    if (status == LW_OK) status = lw_session_open(&session, engine, &err);
    if (status == LW_OK) status = lw_image_read(argv[2], &photo, NULL, &err);

    lw_request request;
    lw_request_init(&request);
    request.image = &photo;
    request.prompt = argv[3];
    request.seed = argc > 5 ? atoll(argv[5]) : -1;
    request.resolution = argc > 6 ? atoi(argv[6]) : 0;
    request.progress = progress;
    if (status == LW_OK) status = lw_estimate(engine, &request, &plan, &err);
    if (status == LW_OK)
        fprintf(stderr, "%dx%d, %.0f MiB\n", plan.width, plan.height, (double)plan.total_bytes / 1048576);
    if (status == LW_OK) status = lw_session_generate(session, &request, &result, &err);

    /* The text fields that say how the picture was made. */
    if (status == LW_OK) status = lw_engine_get_info(engine, &info, &err);
    if (status == LW_OK) status = lw_infotext_make(&info, &request, &result, NULL, &text, &err);
    if (status == LW_OK) status = lw_image_write(&result.images[0], argv[4], &text, &err);

    if (status == LW_OK) printf("%s: seed %lld, %.0f ms\n", argv[4], (long long)result.seed, result.total_ms);
    else fprintf(stderr, "%s: %s\n", lw_status_name(status), err.message);
    lw_fields_free(&text);
    lw_result_free(&result);
    lw_image_free(&photo);
    lw_session_close(&session);
    lw_engine_close(&engine);
    return status == LW_OK ? 0 : 1;
}
