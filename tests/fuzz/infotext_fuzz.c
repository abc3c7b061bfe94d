/* SPDX-License-Identifier: MIT
 * Any bytes as a picture's text field; the first picks which. What is read must be in range, and what is made of it
 * must read the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linework.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "infotext: %s\n", what);
    abort();
}

static void check(const lw_infotext *t) {
    const lw_request *r = t->request;
    require(r->steps >= 1 && r->steps <= 1000, "steps");
    require(r->cfg_scale >= 0 && r->cfg_scale <= 100, "cfg scale");
    require(r->eta >= 0 && r->eta <= 1, "eta");
    require(r->seed >= -1 && r->seed <= 4294967295, "seed");
    require(r->samples >= 1 && r->samples <= 12, "samples");
    require(r->canny_low >= 0 && r->canny_low <= 10000 && r->canny_high >= 0 && r->canny_high <= 10000, "canny");
    require((r->width == 0) == (r->height == 0), "width without height");
    require(lw_sampler_name(r->sampler) && lw_scheduler_name(r->scheduler) && lw_rng_name(r->rng), "names");
    require(r->prompt && t->remarks, "a text is missing");
    require(t->n_controls == r->n_controls && t->n_controls <= 16, "controls");
    for (uint32_t i = 0; i < r->n_controls; i++)
        require(r->controls[i].strength >= 0 && r->controls[i].strength <= 2 && !r->controls[i].map, "a control");
}

static void again(const lw_infotext *t) {
    lw_engine_info engine = {.size = sizeof engine,
                             .name = "fuzz",
                             .added_prompt = "added",
                             .resolution = 512,
                             .n_control_nets = 1,
                             .device = LW_DEVICE_CPU,
                             .precision = LW_PRECISION_FP32};
    lw_result result = {
        .size = sizeof result, .width = 512, .height = 512, .seed = t->request->seed < 0 ? 5 : t->request->seed};
    lw_fields fields = {.size = sizeof fields};
    lw_infotext back = {.size = sizeof back};
    lw_infotext_extra extra;
    lw_infotext_extra_init(&extra);
    extra.index = t->index < t->request->samples ? t->index : 0;
    lw_status made = lw_infotext_make(&engine, t->request, &result, &extra, &fields, NULL);
    require(made == LW_OK || made == LW_EINPUT, "making fails");
    if (made == LW_OK) {
        require(lw_infotext_read(&fields, &back, NULL) == LW_OK, "what was made does not read");
        check(&back);
        require(!strcmp(back.request->prompt, t->request->prompt), "the prompt changed");
        require(back.request->steps == t->request->steps && back.request->seed == result.seed, "a number changed");
        lw_infotext_free(&back);
        fields.items[1].key[0] = 'x'; /* "parameters" alone */
        require(lw_infotext_read(&fields, &back, NULL) == LW_OK, "the A1111 text that was made does not read");
        check(&back);
        lw_infotext_free(&back);
    }
    lw_fields_free(&fields);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char keys[2][16] = {"linework", "parameters"};
    if (size < 1 || size > 1 << 16) return 0;
    char *text = calloc(size, 1);
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    lw_field item = {.key = keys[data[0] & 1], .value = text};
    lw_fields fields = {.size = sizeof fields, .n = 1, .items = &item};
    lw_infotext read = {.size = sizeof read};
    lw_error err = {0};
    lw_status status = lw_infotext_read(&fields, &read, &err);
    if (status == LW_OK) {
        check(&read);
        again(&read);
    } else {
        require(status == LW_EINPUT && err.message[0], "a failure without a reason");
    }
    lw_infotext_free(&read);
    free(text);
    return 0;
}
