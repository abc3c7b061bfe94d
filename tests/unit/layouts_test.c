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

/* ---- other spellings, written here from the LDM file */

typedef struct variant {
    const char *only, *strip, *prefix; /* keys that begin with `only`, `prefix` in place of `strip` */
    lw_dtype dtype;
    bool zip, wrapped, flat; /* flat: 1x1 convolutions as matrices */
    int part, parts;         /* every parts-th tensor, from `part` on; 0: all */
} variant;

static void write_variant(const char *path, const lw_weights *w, const variant *v) {
    static lw_save_tensor tensors[2048];
    static float values[4096];
    lw_arena *arena = lw_arena_new();
    lw_save save = {.tensors = tensors};
    lw_error err;
    for (size_t i = 0; i < lw_weights_count(w); i++) {
        const lw_tensor *t = lw_weights_at(w, i);
        size_t n_strip = v->strip ? strlen(v->strip) : 0;
        if (v->only && strncmp(t->key, v->only, strlen(v->only)) != 0) continue;
        if (v->parts && (int)i % v->parts != v->part) continue;
        const char *key = t->key + (v->strip && !strncmp(t->key, v->strip, n_strip) ? n_strip : 0);
        size_t n = strlen(key) + 32;
        char *name = lw_arena_alloc(arena, n, 1);
        void *data = lw_arena_alloc(arena, t->n, 8);
        assert_non_null(name);
        assert_non_null(data);
        snprintf(name, n, "%s%s", v->prefix ? v->prefix : "", key);
        lw_save_tensor *s = &tensors[save.n++];
        *s = (lw_save_tensor){
            .name = name, .dtype = t->dtype == LW_I64 ? LW_I64 : v->dtype, .rank = t->rank, .data = data};
        memcpy(s->dims, t->dims, sizeof s->dims);
        if (v->flat && t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1 &&
            (strstr(key, "proj_") || strstr(key, "attn_1.")))
            s->rank = 2;
        assert_int_equal(lw_tensor_read(w, t, values, &err), LW_OK);
        if (s->dtype == LW_F64)
            for (size_t k = 0; k < t->n; k++) ((double *)data)[k] = (double)values[k];
        else lw_from_f32(s->dtype, values, data, t->n);
    }
    lw_status status = v->zip ? lw_torch_write(path, &save, v->wrapped, &err) : lw_safetensors_write(path, &save, &err);
    if (status != LW_OK) fail_msg("%s", err.message);
    lw_arena_free(arena);
}

#define CONTROL "control_model."
#define VAE "first_stage_model."

/* Every type in both containers, the wrappers' prefix, matrices for 1x1 convolutions; whole models and parts. */
static void test_variants(void **state) {
    (void)state;
    static const struct {
        variant v;
        const char *part;
    } cases[] = {
        {{.dtype = LW_F32}, NULL},
        {{.dtype = LW_F64}, NULL},
        {{.dtype = LW_BF16}, NULL},
        {{.dtype = LW_F16, .zip = true}, NULL},
        {{.dtype = LW_BF16, .zip = true, .wrapped = true}, NULL},
        {{.dtype = LW_F64, .zip = true, .wrapped = true}, NULL},
        {{.dtype = LW_F32, .prefix = "module."}, NULL},
        {{.dtype = LW_F32, .prefix = "module.", .zip = true, .wrapped = true}, NULL},
        {{.dtype = LW_F16, .flat = true}, NULL},
        {{.dtype = LW_F16, .flat = true, .zip = true}, NULL},
        {{.dtype = LW_F32, .only = CONTROL}, "control"},
        {{.dtype = LW_F64, .only = CONTROL, .zip = true}, "control"},
        {{.dtype = LW_F16, .only = CONTROL, .strip = CONTROL}, "control"},
        {{.dtype = LW_F16, .only = CONTROL, .prefix = "module."}, "control"},
        {{.dtype = LW_F16, .only = CONTROL, .strip = CONTROL, .prefix = "module."}, "control"},
        {{.dtype = LW_F16, .only = CONTROL, .strip = CONTROL, .prefix = "module.", .zip = true}, "control"},
        {{.dtype = LW_F32, .only = VAE}, "vae"},
        {{.dtype = LW_F32, .only = VAE, .strip = VAE, .flat = true}, "vae"},
        {{.dtype = LW_BF16, .only = VAE, .strip = VAE, .zip = true, .wrapped = true}, "vae"},
    };
    const char *path = "layouts_test.tmp-file";
    lw_weights *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_variant(path, ldm, &cases[i].v);
        for (int as_part = 0; as_part < (cases[i].part ? 2 : 1); as_part++) { /* what it is shows in its keys too */
            lw_weights *w = open_or_fail(path, as_part ? cases[i].part : NULL);
            assert_int_equal(lw_weights_count(w), cases[i].part ? count_of(ldm, cases[i].part) : lw_weights_count(ldm));
            assert_int_equal(lw_weights_ignored(w), 0);
            expect_same(w, ldm);
            lw_weights_close(&w);
        }
    }
    unlink(path);
    lw_weights_close(&ldm);
}

#define DIR_PATH "layouts_test.tmp-dir"

/* An index and its files, in each of the names that they have; then the same through links, as in a download cache. */
static void test_shards(void **state) {
    (void)state;
    static const struct {
        const char *source, *index, *file;
        bool zip;
        int parts;
    } cases[] = {
        {"unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
         "d-%d-of-2.safetensors", false, 2},
        {"unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json",
         "d.fp16-%d.safetensors", false, 60},
        {"controlnet/diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json", "d-%d.bin", true, 3},
        {"text_encoder/model.safetensors", "model.safetensors.index.json", "m-%d.safetensors", false, 3},
    };
    lw_weights *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL);
    mkdir(DIR_PATH, 0755);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[300], name[64], index[300];
        snprintf(path, sizeof path, FILES "diffusers/%s", cases[i].source);
        lw_weights *whole = open_or_fail(path, NULL), *w;
        lw_error err;
        snprintf(index, sizeof index, DIR_PATH "/%s", cases[i].index);
        FILE *out = fopen(index, "w");
        fputs("{\"metadata\":{\"total_size\":1},\"weight_map\":{", out);
        for (size_t k = 0; k < lw_weights_count(whole); k++) {
            snprintf(name, sizeof name, cases[i].file, (int)k % cases[i].parts);
            fprintf(out, "%s\"%s\":\"%s\"", k ? "," : "", lw_weights_at(whole, k)->key, name);
        }
        fputs("}}", out);
        fclose(out);
        for (int part = 0; part < cases[i].parts; part++) {
            variant v = {.dtype = LW_F32, .zip = cases[i].zip, .part = part, .parts = cases[i].parts};
            snprintf(name, sizeof name, cases[i].file, part);
            snprintf(path, sizeof path, DIR_PATH "/%s", name);
            write_variant(path, whole, &v);
        }
        w = open_or_fail(DIR_PATH, NULL);
        assert_string_equal(lw_weights_layout(w), "diffusers-folder");
        assert_int_equal(lw_weights_count(w), lw_weights_count(whole));
        expect_same(w, ldm);
        lw_weights_close(&w);
        snprintf(path, sizeof path, DIR_PATH "/%s", name);
        unlink(path); /* the last file */
        assert_int_equal(lw_weights_open(&w, DIR_PATH, &err), LW_EMODEL);
        assert_non_null(strstr(err.message, name));
        for (int part = 0; part < cases[i].parts; part++) {
            snprintf(name, sizeof name, cases[i].file, part);
            snprintf(path, sizeof path, DIR_PATH "/%s", name);
            unlink(path);
        }
        unlink(index);
        lw_weights_close(&whole);
    }
    assert_int_equal(rmdir(DIR_PATH), 0);
    lw_weights_close(&ldm);
}

static void test_links(void **state) {
    (void)state;
    static const char *const files[] = {"unet/diffusion_pytorch_model.safetensors", "unet/config.json",
                                        "vae/diffusion_pytorch_model.fp16.safetensors",
                                        "text_encoder/model.safetensors", "controlnet/diffusion_pytorch_model.bin"};
    static const char *const folders[] = {"unet", "vae", "text_encoder", "controlnet"};
    char target[300], path[300];
    lw_weights *whole = open_or_fail(FILES "diffusers", NULL), *ldm = open_or_fail(FILES "tiny-ldm.safetensors", NULL);
    mkdir(DIR_PATH, 0755);
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, DIR_PATH "/%s", folders[i]);
        mkdir(path, 0755);
    }
    for (size_t i = 0; i < 5; i++) {
        snprintf(target, sizeof target, FILES "diffusers/%s", files[i]);
        snprintf(path, sizeof path, DIR_PATH "/%s", files[i]);
        assert_int_equal(symlink(target, path), 0);
    }
    assert_int_equal(symlink(DIR_PATH, DIR_PATH "-link"), 0);
    lw_weights *w = open_or_fail(DIR_PATH "-link", NULL);
    assert_int_equal(lw_weights_count(w), lw_weights_count(whole));
    assert_true(lw_weights_reads(w, FILES "diffusers/unet/diffusion_pytorch_model.safetensors"));
    expect_same(w, ldm);
    lw_weights_close(&w);
    unlink(DIR_PATH "-link");
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, DIR_PATH "/%s", files[i]);
        unlink(path);
    }
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, DIR_PATH "/%s", folders[i]);
        rmdir(path);
    }
    assert_int_equal(rmdir(DIR_PATH), 0);
    lw_weights_close(&ldm);
    lw_weights_close(&whole);
}

static void test_bad_folders(void **state) {
    (void)state;
    lw_weights *w;
    lw_error err;
    assert_int_equal(lw_weights_open(&w, LW_TEST_DATA, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "is a folder without unet/diffusion_pytorch_model.safetensors"));
    assert_int_equal(lw_weights_open_part(&w, LW_TEST_DATA, "vae", &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "without vae/"));
#define INDEX "layouts_test.tmp/diffusion_pytorch_model.safetensors.index.json"
    static const char *const bad[][2] = {
        {"{}", "its weight_map is empty"},
        {"[]", "is not a JSON object"},
        {"{\"weight_map\":{}}", "its weight_map is empty"},
        {"{\"weight_map\":[\"a\"]}", "its weight_map is empty"},
        {"{\"weight_map\":{\"k\":1}}", "k of its weight_map is in no file"},
        {"{\"weight_map\":{\"k\":\"\"}}", "k of its weight_map is in no file"},
        {"{\"weight_map\":{\"k\":\"../a\"}}", "k of its weight_map is in no file"},
        {"{\"weight_map\":{\"k\":\"..\"}}", "is not a regular file"},
        {"{\"weight_map\":{\"k\":\"a.safetensors\"}}", "a.safetensors: can't be opened"}};
    mkdir("layouts_test.tmp", 0755);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(write_whole(INDEX, bad[i][0], strlen(bad[i][0])));
        assert_int_equal(lw_weights_open(&w, "layouts_test.tmp", &err), LW_EMODEL);
        if (!strstr(err.message, bad[i][1])) fail_msg("%s: %s", bad[i][0], err.message);
    }
    char many[8192] = "{\"weight_map\":{", *end = many + strlen(many);
    for (int i = 0; i < 65; i++) end += sprintf(end, "%s\"k%d\":\"file%d\"", i ? "," : "", i, i);
    strcpy(end, "}}");
    assert_true(write_whole(INDEX, many, strlen(many)));
    assert_int_equal(lw_weights_open(&w, "layouts_test.tmp", &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "more than the 64 files"));
    unlink(INDEX);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folder),      cmocka_unit_test(test_torch),
                                       cmocka_unit_test(test_parts),       cmocka_unit_test(test_variants),
                                       cmocka_unit_test(test_shards),      cmocka_unit_test(test_links),
                                       cmocka_unit_test(test_bad_folders), cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_odd_names),   cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
