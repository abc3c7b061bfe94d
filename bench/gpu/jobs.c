/* SPDX-License-Identifier: MIT
 * Jobs on a GPU through the public interface: MODEL [JOBS]. Each request gives the same bits in five sessions; then
 * JOBS of mixed shapes and prompts in one, whose pictures stay what they were and whose device memory stays flat;
 * between them requests that fail, after which the next one works. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linework.h"

enum { KINDS = 6, SESSIONS = 5, WARM = 4 * KINDS, EDGE = 512 };

static const struct {
    int32_t width, height, steps, samples;
    double guidance;
    const char *prompt;
} kinds[KINDS] = {/* counts of steps that the reference's spacing has: 3 leads past its end */
                  {256, 256, 4, 1, 9, "a red house"}, {256, 384, 2, 1, 9, "a boat"},
                  {384, 256, 4, 2, 7, "a tree"},      {64, 64, 5, 4, 9, "the sun"},
                  {512, 512, 2, 1, 1, "a red house"}, {256, 256, 4, 1, 9, "a blue roof"}};

static uint8_t edges[EDGE * EDGE];

static lw_status picture(lw_session *session, int kind, uint64_t *hash, lw_error *err) {
    lw_image map = {.size = sizeof map,
                    .width = kinds[kind].width,
                    .height = kinds[kind].height,
                    .channels = 1,
                    .stride = EDGE,
                    .data = edges};
    lw_control control = {.size = sizeof control, .map = &map, .strength = 1, .start = 0, .end = 1};
    lw_request r;
    lw_result result;
    lw_request_init(&r);
    r.prompt = kinds[kind].prompt;
    r.steps = kinds[kind].steps;
    r.cfg_scale = kinds[kind].guidance;
    r.samples = kinds[kind].samples;
    r.seed = 1 + kind;
    r.controls = &control;
    r.n_controls = 1;
    lw_status status = lw_session_generate(session, &r, &result, err);
    if (status != LW_OK) return status;
    *hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (uint32_t i = 0; i < result.n_images; i++) {
        size_t n = (size_t)result.images[i].width * (size_t)result.images[i].height * 3;
        for (size_t k = 0; k < n; k++) *hash = (*hash ^ result.images[i].data[k]) * 0x100000001b3u;
    }
    lw_result_free(&result);
    return LW_OK;
}

static int fail(const char *what, int n, const char *why) {
    printf("FAIL %s %d: %s\n", what, n, why);
    return 1;
}

int main(int argc, char **argv) {
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_error err;
    uint64_t first[KINDS], hash;
    size_t warm = 0, left = 0, total = 0;
    int jobs = argc > 2 ? atoi(argv[2]) : 200;
    if (argc < 2) return fputs("usage: linework-gpu-jobs MODEL [JOBS]\n", stderr), 2;
    for (int i = 0; i < EDGE; i++) edges[i * EDGE + i] = edges[i * EDGE + EDGE - 1 - i] = edges[100 * EDGE + i] = 255;
    lw_engine_params_init(&params);
    params.model = argv[1];
    params.device = LW_DEVICE_CUDA;
    if (lw_engine_open(&engine, &params, &err) != LW_OK) return fail("engine", 0, err.message);
    for (int s = 0; s < SESSIONS; s++) {
        if (lw_session_open(&session, engine, &err) != LW_OK) return fail("session", s, err.message);
        for (int kind = 0; kind < KINDS; kind++) {
            if (picture(session, kind, &hash, &err) != LW_OK) return fail("kind", kind, err.message);
            if (s && hash != first[kind]) return fail("kind", kind, "other bits in another session");
            first[kind] = hash;
        }
        lw_session_close(&session);
    }
    printf("%d kinds of job, the same bits in %d sessions\n", KINDS, SESSIONS);
    if (lw_session_open(&session, engine, &err) != LW_OK) return fail("session", 0, err.message);
    for (int i = 0; i < jobs; i++) {
        int kind = (i * 7 + i / KINDS) % KINDS;
        lw_request bad;
        if (picture(session, kind, &hash, &err) != LW_OK) return fail("job", i, err.message);
        if (hash != first[kind]) return fail("job", i, "other bits than before");
        lw_request_init(&bad);
        bad.prompt = NULL;
        lw_result none;
        if (i % 10 == 0 && lw_session_generate(session, &bad, &none, &err) == LW_OK)
            return fail("job", i, "no prompt, no error");
        if (cudaMemGetInfo(&left, &total) != cudaSuccess) return fail("job", i, "cudaMemGetInfo");
        if (i == WARM) warm = left;
    }
    printf("%d jobs; free device memory %zu MiB after %d, %zu MiB at the end\n", jobs, warm >> 20, WARM, left >> 20);
    if (jobs > WARM && left + (4 << 20) < warm) return fail("memory", jobs, "it was not flat");
    lw_session_close(&session);
    lw_engine_close(&engine);
    return 0;
}
