/* SPDX-License-Identifier: MIT
 * The same tiny model in every layout (tools/weight_fixtures.py wrote them with torch's and diffusers' own writers),
 * and the released checkpoint's names in both namings. */
#include "weights/names.h"
#include "weights/weights.h"
#include "weight_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define FILES LW_TEST_DATA "/weights/"

static lw_weights *open_or_fail(const char *path, const char *part) {
    lw_weights *w;
    lw_error err;
    lw_status status = part ? lw_weights_open_part(&w, path, part, &err) : lw_weights_open(&w, path, &err);
    if (status != LW_OK) fail_msg("%s", err.message);
    return w;
}

/* Every tensor of w is in the LDM file under the same name, with the same shape and values. */
static void expect_same(const lw_weights *w, const lw_weights *ldm) {
    static float got[4096], want[4096];
    lw_error err;
    for (size_t i = 0; i < lw_weights_count(w); i++) {
        const lw_tensor *t = lw_weights_at(w, i), *o = lw_weights_find(ldm, t->name);
        if (!o) fail_msg("%s is not in the LDM file", t->name);
        if (t->rank != o->rank || memcmp(t->dims, o->dims, (size_t)t->rank * sizeof *t->dims) != 0)
            fail_msg("%s has another shape", t->name);
        assert_true(t->n <= 4096);
        if (lw_tensor_read(w, t, got, &err) != LW_OK || lw_tensor_read(ldm, o, want, &err) != LW_OK)
            fail_msg("%s", err.message);
        if (memcmp(got, want, t->n * sizeof *got) != 0) fail_msg("%s has other values", t->name);
    }
}

static size_t count_of(const lw_weights *w, const char *network) {
    size_t n = 0;
    for (size_t i = 0; i < lw_weights_count(w); i++)
        n += strncmp(lw_weights_at(w, i)->name, network, strlen(network)) == 0;
    return n;
}

static void test_folder(void **state) {
    (void)state;
    lw_weights *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL), *w = open_or_fail(FILES "diffusers", NULL);
    assert_string_equal(lw_weights_layout(w), "diffusers-folder");
    assert_string_equal(lw_weights_layout(ldm), "safetensors-ldm");
    assert_int_equal(lw_weights_count(w) + 1, lw_weights_count(ldm)); /* position_ids is only in the LDM file */
    assert_int_equal(lw_weights_ignored(w), 0);
    expect_same(w, ldm);
    assert_non_null(strstr(lw_weights_metadata(w, "linework"), "\"unet_heads\":1"));
    assert_non_null(strstr(lw_weights_metadata(w, "linework"), "\"norm_groups\":1"));
    lw_weights_close(&w);
    static const struct {
        const char *path, *part;
    } parts[] = {{FILES "diffusers", "vae"},
                 {FILES "diffusers/vae", "vae"},
                 {FILES "diffusers/vae", NULL},
                 {FILES "diffusers", "control"},
                 {FILES "diffusers/controlnet", "control"},
                 {FILES "diffusers/controlnet", NULL},
                 {FILES "diffusers/unet", NULL},
                 {FILES "diffusers/text_encoder", NULL},
                 {FILES "diffusers/unet/diffusion_pytorch_model.safetensors", NULL},
                 {FILES "diffusers/controlnet/diffusion_pytorch_model.bin", "control"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        w = open_or_fail(parts[i].path, parts[i].part);
        assert_true(lw_weights_count(w) > 20);
        if (parts[i].part) assert_int_equal(count_of(w, parts[i].part), lw_weights_count(w));
        expect_same(w, ldm);
        lw_weights_close(&w);
    }
    lw_weights_close(&ldm);
}

static void test_torch(void **state) {
    (void)state;
    lw_weights *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL), *w = open_or_fail(FILES "lightning.ckpt", NULL);
    assert_string_equal(lw_weights_layout(w), "torch-zip-ldm");
    assert_int_equal(lw_weights_ignored(w), 2); /* the EMA's */
    assert_int_equal(count_of(w, "unet.") + count_of(w, "vae."), lw_weights_count(w));
    assert_int_equal(count_of(w, "unet."), count_of(ldm, "unet."));
    const lw_tensor *turned = lw_weights_find(w, "unet.time_embed.0.weight");
    assert_true(turned->strides[0] == 1 && turned->strides[1] == turned->dims[0]);
    expect_same(w, ldm);
    lw_weights_close(&w);
    lw_weights_close(&ldm);
}

/* A ControlNet or a VAE by itself: with and without prefix, out of a whole model, and old names. */
static void test_parts(void **state) {
    (void)state;
    lw_weights *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL), *w;
    static const struct {
        const char *path, *part, *layout;
    } parts[] = {{FILES "control-bare.pth", "control", "torch-zip-ldm"},
                 {FILES "control-bare.pth", NULL, "torch-zip-ldm"},
                 {FILES "tiny-ldm.safetensors", "control", "safetensors-ldm"},
                 {FILES "tiny-ldm.safetensors", "vae", "safetensors-ldm"},
                 {FILES "vae-old.safetensors", "vae", "safetensors-diffusers"},
                 {FILES "vae-old.safetensors", NULL, "safetensors-diffusers"},
                 {FILES "lightning.ckpt", "vae", "torch-zip-ldm"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        w = open_or_fail(parts[i].path, parts[i].part);
        assert_string_equal(lw_weights_layout(w), parts[i].layout);
        const char *network = parts[i].part ? parts[i].part : strstr(parts[i].path, "vae") ? "vae" : "control";
        assert_int_equal(count_of(w, network), lw_weights_count(w));
        assert_int_equal(lw_weights_count(w), count_of(ldm, network));
        expect_same(w, ldm);
        lw_weights_close(&w);
    }
    lw_error err;
    assert_int_equal(lw_weights_open_part(&w, FILES "vae-old.safetensors", "control", &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "none of them of a control"));
    assert_int_equal(lw_weights_open_part(&w, FILES "lightning.ckpt", "control", &err), LW_EMODEL);
    lw_weights_close(&ldm);
}

static void test_bad_folders(void **state) {
    (void)state;
    lw_weights *w;
    lw_error err;
    assert_int_equal(lw_weights_open(&w, LW_TEST_DATA, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "is a folder without unet/diffusion_pytorch_model.safetensors"));
    assert_int_equal(lw_weights_open_part(&w, LW_TEST_DATA, "vae", &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "without vae/"));
    mkdir("layouts_test.tmp", 0755);
    assert_true(write_whole("layouts_test.tmp/diffusion_pytorch_model.safetensors.index.json", "{}", 2));
    assert_int_equal(lw_weights_open(&w, "layouts_test.tmp", &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "several files"));
    unlink("layouts_test.tmp/diffusion_pytorch_model.safetensors.index.json");
    rmdir("layouts_test.tmp");
}

/* names.tsv: what diffusers' own converters make of each key of the released checkpoint. */
static void test_names(void **state) {
    (void)state;
    lw_geometry ldm[LW_N_NETS] = {{0}}, diffusers[LW_N_NETS] = {{0}};
    for (int pass = 0; pass < 2; pass++) {
        FILE *f = fopen(FILES "names.tsv", "r");
        char line[512], network[16], a[200], b[200], out[LW_NAME_CAP];
        int n = 0;
        assert_non_null(f);
        while (fgets(line, sizeof line, f)) {
            assert_int_equal(sscanf(line, "%15s %199s %199s", network, a, b), 3);
            strcat(a, ".weight");
            strcat(b, ".weight");
            lw_network net = LW_NET_UNET;
            while (strcmp(lw_network_name(net), network) != 0) net++;
            n++;
            if (pass == 0) {
                lw_geometry_see(&ldm[net], net, LW_NAMING_LDM, a);
                lw_geometry_see(&diffusers[net], net, LW_NAMING_DIFFUSERS, b);
                continue;
            }
            assert_true(lw_name_is_ldm(net, a));
            assert_false(lw_name_is_ldm(net, line));
            if (!lw_name_to_ldm(net, &diffusers[net], b, out) || strcmp(out, a) != 0)
                fail_msg("%s: %s, want %s", b, out, a);
            if (!lw_name_to_diffusers(net, &ldm[net], a, out) || strcmp(out, b) != 0)
                fail_msg("%s: %s, want %s", a, out, b);
        }
        fclose(f);
        assert_true(n > 700);
    }
}

static void test_odd_names(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "weight",
                                      "out.2",
                                      "out.2.",
                                      "out.2.weights",
                                      "out.2.weight.bias",
                                      "out.02.weight",
                                      "input_blocks.01.0.in_layers.0.weight",
                                      "input_blocks.-1.0.in_layers.0.weight",
                                      "input_blocks.9999999999.0.in_layers.0.weight",
                                      "input_blocks.1.0.in_layers.1.weight",
                                      "input_blocks.1.1.transformer_blocks.0.attn3.to_q.weight",
                                      "label_emb.0.0.weight",
                                      "down_blocks.0.resnets.0.norm1.weight"};
    lw_geometry g = {.res_blocks = 2};
    char out[LW_NAME_CAP], name[2 * LW_NAME_CAP];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(lw_name_is_ldm(LW_NET_UNET, bad[i]));
        assert_false(lw_name_to_diffusers(LW_NET_UNET, &g, bad[i], out));
    }
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    for (int net = 0; net < LW_N_NETS; net++) {
        assert_false(lw_name_is_ldm((lw_network)net, name));
        assert_false(lw_name_to_ldm((lw_network)net, &g, name, out));
        assert_false(lw_name_to_diffusers((lw_network)net, &g, name, out));
    }
    assert_true(lw_name_to_ldm(LW_NET_CLIP, &g, "final_layer_norm.bias", out));
    assert_string_equal(out, "text_model.final_layer_norm.bias");
}

static void test_faults(void **state) {
    (void)state;
    lw_error err;
    static float values[4096];
    for (long nth = 1;; nth++) {
        lw_weights *w;
        lw_fault_arm(nth, false);
        lw_status status = lw_weights_open(&w, FILES "diffusers", &err);
        if (status == LW_OK) status = lw_tensor_read(w, lw_weights_at(w, 9), values, &err);
        bool reached = lw_fault_count() >= nth;
        lw_fault_arm(0, false);
        lw_weights_close(&w);
        assert_int_equal(status == LW_OK, !reached);
        if (!reached) break;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folder), cmocka_unit_test(test_torch),
                                       cmocka_unit_test(test_parts),  cmocka_unit_test(test_bad_folders),
                                       cmocka_unit_test(test_names),  cmocka_unit_test(test_odd_names),
                                       cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
