/* SPDX-License-Identifier: MIT
 * A picture's text: what is made reads back, A1111's form in and out, and what other programs write. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/base.h"

static const lw_engine_info engine = {.size = sizeof engine,
                                      .name = "demo",
                                      .added_prompt = "best quality",
                                      .negative_prompt = "lowres, bad",
                                      .resolution = 256,
                                      .n_control_nets = 1,
                                      .device = LW_DEVICE_CPU,
                                      .precision = LW_PRECISION_FP32,
                                      .tactics_hash = "582a1bac4a"};

static lw_request base_request(void) {
    lw_request r;
    lw_request_init(&r);
    r.prompt = "a red house";
    r.seed = 7;
    return r;
}

static lw_fields make(const lw_request *r, const lw_infotext_extra *extra) {
    lw_result result = {.size = sizeof result, .width = 384, .height = 256, .seed = 7};
    lw_fields fields = {.size = sizeof fields};
    lw_error err = {0};
    if (lw_infotext_make(&engine, r, &result, extra, &fields, &err) != LW_OK) fail_msg("%s", err.message);
    assert_int_equal(fields.n, 2);
    return fields;
}

static lw_infotext read_fields(const lw_fields *fields) {
    lw_infotext t = {.size = sizeof t};
    lw_error err = {0};
    if (lw_infotext_read(fields, &t, &err) != LW_OK) fail_msg("%s", err.message);
    return t;
}

static lw_infotext read_parameters(const char *text) {
    char key[] = "parameters", value[2000];
    snprintf(value, sizeof value, "%s", text);
    lw_field item = {key, value};
    lw_fields fields = {sizeof fields, 1, &item};
    return read_fields(&fields);
}

static void text_is_a1111s(void **state) {
    (void)state;
    lw_request r = base_request();
    lw_infotext_extra extra;
    lw_infotext_extra_init(&extra);
    extra.model_hash = "52dd4177b6aa";
    lw_fields fields = make(&r, &extra);
    assert_string_equal(fields.items[0].key, "parameters");
    assert_string_equal(
        fields.items[0].value,
        "a red house, best quality\nNegative prompt: lowres, bad\nSteps: 20, Sampler: DDIM, Schedule type: Reference, "
        "CFG scale: 9.0, Seed: 7, Size: 384x256, Model hash: 52dd4177b6, Model: demo, Eta: 0.0, RNG: NV, ControlNet 0: "
        "\"Module: canny, Model: demo, Weight: 1.0, Resize Mode: Just Resize, Processor Res: 256, Threshold A: 100.0, "
        "Threshold B: 200.0, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: False, Control Mode: Balanced\", "
        "Version: linework 0.1.0");
    lw_fields_free(&fields);
}

static void made_reads_back(void **state) {
    (void)state;
    uint8_t pixel = 0;
    lw_image map = {sizeof map, 1, 1, 1, 1, &pixel};
    const lw_control controls[2] = {{.size = sizeof(lw_control), .strength = 0.1, .start = 0.25, .end = 0.75},
                                    {.size = sizeof(lw_control), .map = &map, .strength = 2, .end = 1}};
    const char *nets[2] = {"canny, \"1\".safetensors", NULL}, *hashes[2] = {NULL, "cd"};
    lw_request r = base_request();
    r.prompt = "ein rotes Haus \xe2\x80\x94 \"h\xc3\xbc"
               "bsch\"";
    r.added_prompt = "";
    r.negative_prompt = "a\nb";
    r.width = 384, r.height = 256;
    r.samples = 3, r.steps = 30;
    r.cfg_scale = 7.1, r.eta = 0.3, r.canny_low = 33.25, r.canny_high = 10000;
    r.control_mode = LW_CONTROL_PROMPT, r.sampler = LW_SAMPLER_DDIM, r.scheduler = LW_SCHEDULER_KARRAS;
    r.rng = LW_RNG_CPU, r.clip_skip = 2, r.reuse_steps = "9,11-13";
    r.controls = controls, r.n_controls = 2;
    lw_infotext_extra extra;
    lw_infotext_extra_init(&extra);
    extra.index = 2, extra.vae = "vae.safetensors", extra.control_nets = nets, extra.control_sha256 = hashes;
    extra.image_sha256 = "ab", extra.init_latents_sha256 = "ef";
    lw_fields fields = make(&r, &extra);
    for (int form = 0; form < 2; form++) { /* linework, then A1111's alone */
        if (form == 1) fields.items[1].key[0] = '-';
        lw_infotext t = read_fields(&fields);
        const lw_request *b = t.request;
        assert_string_equal(b->prompt, r.prompt);
        assert_string_equal(b->added_prompt, "");
        assert_string_equal(b->negative_prompt, "a\nb");
        assert_int_equal(b->width, 384);
        assert_int_equal(b->height, 256);
        assert_int_equal(b->resolution, 0);
        assert_int_equal(b->samples, 3);
        assert_int_equal(t.index, 2);
        assert_int_equal(b->steps, 30);
        assert_int_equal(b->seed, 7);
        assert_true(b->cfg_scale == 7.1 && b->eta == 0.3 && b->canny_low == 33.25 && b->canny_high == 10000);
        assert_int_equal(b->control_mode, LW_CONTROL_PROMPT);
        assert_int_equal(b->scheduler, LW_SCHEDULER_KARRAS);
        assert_int_equal(b->rng, LW_RNG_CPU);
        assert_int_equal(b->clip_skip, 2);
        assert_string_equal(b->reuse_steps, "9,11-13");
        assert_int_equal(t.n_controls, 2);
        assert_true(b->controls[0].strength == 0.1 && b->controls[0].start == 0.25 && b->controls[0].end == 0.75);
        assert_null(b->controls[1].map);
        assert_null(t.control_sha256[0]);
        assert_string_equal(t.control_sha256[1], form ? "" : "cd"); /* a ready map, of unknown hash */
        assert_string_equal(t.vae, "vae.safetensors");
        assert_string_equal(t.model, "demo");
        assert_string_equal(t.version, "linework 0.1.0");
        assert_string_equal(t.remarks, "");
        assert_int_equal(t.foreign, form);
        if (!form) assert_string_equal(t.image_sha256, "ab");
        lw_infotext_free(&t);
    }
    lw_fields_free(&fields);
}

static void left_to_the_model_is_filled_in(void **state) {
    (void)state;
    lw_request r = base_request();
    lw_fields fields = make(&r, NULL);
    lw_infotext t = read_fields(&fields);
    assert_string_equal(t.request->added_prompt, "best quality");
    assert_string_equal(t.request->negative_prompt, "lowres, bad");
    assert_int_equal(t.request->resolution, 256);
    assert_int_equal(t.request->width, 0);
    assert_int_equal(t.n_controls, 1);
    assert_null(t.model_hash);
    assert_null(t.image_sha256);
    assert_string_equal(t.device, "cpu");
    assert_string_equal(t.precision, "fp32");
    assert_string_equal(t.tactics_hash, "582a1bac4a");
    lw_infotext_free(&t);
    lw_fields_free(&fields);
}

static void other_programs(void **state) {
    (void)state;
    lw_infotext t = read_parameters(
        "masterpiece, (best quality:1.2),\nSteps: many, 1girl\r\nNegative prompt: bad hands,\r\nextra "
        "digits\r\nSteps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3000000000, Size: 512x768, "
        "Model hash: e6415c4892, Model: \"real, istic\", Denoising strength: 0.35, Clip skip: 2, ENSD: 31337");
    assert_string_equal(t.request->prompt, "masterpiece, (best quality:1.2),\nSteps: many");
    assert_string_equal(t.request->added_prompt, "1girl");
    assert_int_equal(t.request->sampler, LW_SAMPLER_DPMPP_2M);
    assert_int_equal(t.request->scheduler, LW_SCHEDULER_KARRAS);
    assert_int_equal(t.request->seed, 3000000000);
    assert_int_equal(t.request->height, 768);
    assert_string_equal(t.model, "real, istic");
    assert_non_null(strstr(t.remarks, "Denoising strength"));
    lw_infotext_free(&t);

    t = read_parameters("x\nSteps: 9999, Sampler: DPM++ SDE, CFG scale: nan, Seed: -1, Size: 32x32");
    assert_int_equal(t.request->steps, 20);
    assert_int_equal(t.request->seed, -1);
    assert_int_equal(t.request->width, 0);
    assert_true(t.request->cfg_scale == 9);
    assert_non_null(strstr(t.remarks, "DPM++ SDE"));
    lw_infotext_free(&t);

    t = read_parameters("only a prompt, of two parts");
    assert_string_equal(t.request->prompt, "only a prompt");
    assert_string_equal(t.request->added_prompt, "of two parts");
    assert_string_equal(t.request->negative_prompt, "");
    lw_infotext_free(&t);
}

static void refuse(const char *json, const char *says) {
    char key[] = "linework", value[400];
    snprintf(value, sizeof value, "%s", json);
    lw_field item = {key, value};
    lw_fields fields = {sizeof fields, 1, &item};
    lw_infotext t = {.size = sizeof t};
    lw_error err = {0};
    assert_int_equal(lw_infotext_read(&fields, &t, &err), LW_EINPUT);
    assert_non_null(strstr(err.message, says));
    assert_null(t.request);
    lw_infotext_free(&t);
}

static void damaged(void **state) {
    (void)state;
    refuse("", "not JSON");
    refuse("[]", "not a JSON object");
    refuse("{\"steps\":0}", "steps is 0, outside 1..1000");
    refuse("{\"steps\":2.5}", "steps");
    refuse("{\"seed\":4294967296}", "seed");
    refuse("{\"seed\":-1}", "seed");
    refuse("{\"cfg_scale\":1e9}", "cfg_scale");
    refuse("{\"prompt\":[]}", "prompt");
    refuse("{\"width\":64}", "height");
    refuse("{\"scheduler\":\"x\"}", "scheduler");
    refuse("{\"controls\":[1]}", "control 0");
    refuse("{\"controls\":[{\"strength\":3}]}", "strength");
    refuse("{\"samples\":2,\"index\":2}", "index");
    lw_fields none = {.size = sizeof none};
    lw_infotext t = {.size = sizeof t};
    lw_error err = {0};
    assert_int_equal(lw_infotext_read(&none, &t, &err), LW_EINPUT);
    t.size = 0;
    assert_int_equal(lw_infotext_read(&none, &t, &err), LW_EINVAL);
}

static void not_utf8(void **state) {
    (void)state;
    lw_request r = base_request();
    r.prompt = "\xff";
    lw_result result = {.size = sizeof result};
    lw_fields fields = {.size = sizeof fields};
    assert_int_equal(lw_infotext_make(&engine, &r, &result, NULL, &fields, NULL), LW_EINPUT);
    assert_int_equal(fields.n, 0);
}

/* Every allocation made to fail in turn: an error each time, and nothing half made. */
static void no_memory(void **state) {
    (void)state;
    lw_request r = base_request();
    lw_result result = {.size = sizeof result, .width = 64, .height = 64};
    for (int form = 0; form < 2; form++) {
        lw_status status = LW_ENOMEM;
        for (long nth = 1; status != LW_OK; nth++) {
            lw_fields fields = {.size = sizeof fields};
            lw_infotext t = {.size = sizeof t};
            assert_true(nth < 200);
            lw_fault_arm(nth, false);
            status = lw_infotext_make(&engine, &r, &result, NULL, &fields, NULL);
            if (status == LW_OK && form) fields.items[1].key[0] = '-';
            if (status == LW_OK) status = lw_infotext_read(&fields, &t, NULL);
            lw_fault_arm(0, false);
            assert_true(status == LW_OK || status == LW_ENOMEM);
            lw_infotext_free(&t);
            lw_fields_free(&fields);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_a1111s),
        cmocka_unit_test(made_reads_back),
        cmocka_unit_test(left_to_the_model_is_filled_in),
        cmocka_unit_test(other_programs),
        cmocka_unit_test(damaged),
        cmocka_unit_test(not_utf8),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
