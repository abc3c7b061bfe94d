/* SPDX-License-Identifier: MIT
 * Blocks, networks and the whole job against what PyTorch computes with the same small random weights in double
 * precision (tests/data/tiny, made by tools/reference/make_tiny.py). fp32: at most 1e-4 of the tensor's scale.
 *
 * parity_test MODEL FOLDER LIMIT: the networks of another model against the fixtures in a folder, within LIMIT of their
 * scale (tools/reference/full_size.py). */
#include "fixture.h"

#include "cpu/cpu.h"
#include "nets/blocks.h"
#include "nets/model.h"

enum { MAX_BOUND = 40 };

/* One program at a time on one backend, with externs in plain memory. */
typedef struct bench {
    lw_backend *backend;
    lw_model model;
    lw_params *params;
    lw_program *program;
    lw_plan *plan;
    struct {
        char name[32];
        void *data;
    } bound[MAX_BOUND];
    int n_bound;
    void *temp;
} bench;

static const char *model = LW_TEST_DATA "/tiny/model.safetensors", *folder = LW_TEST_DATA "/tiny";
static double limit = 1e-4;

static fixture open_topic(const char *topic) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, topic);
    return fixture_open_file(path);
}

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

static void open_bench(bench *b, bool references) {
    lw_error err;
    lw_cpu_params params = {.threads = 2, .references_only = references};
    *b = (bench){0};
    ok(lw_cpu_open(&b->backend, &params, &err), &err);
}

static void open_model(bench *b, bool references) {
    lw_error err;
    open_bench(b, references);
    ok(lw_model_open(&b->model, model, NULL, 0, NULL, &err), &err);
    lw_tensor_source source = lw_model_source(&b->model);
    ok(lw_params_new(&b->params, &source, &err), &err);
}

static void close_program(bench *b) {
    for (int i = 0; i < b->n_bound; i++) lw_free(b->bound[i].data);
    lw_free(b->temp);
    lw_plan_free(b->plan);
    lw_program_free(b->program);
    b->n_bound = 0;
    b->temp = b->plan = NULL;
    b->program = NULL;
}

static void close_bench(bench *b) {
    close_program(b);
    lw_params_free(b->params, b->backend);
    lw_model_close(&b->model);
    b->backend->close(b->backend);
}

static lw_program *record(bench *b, const char *name) {
    close_program(b);
    b->program = lw_program_new(name, b->params, LW_F32);
    assert_non_null(b->program);
    return b->program;
}

static void *bound(bench *b, const char *name) {
    for (int i = 0; i < b->n_bound; i++)
        if (!strcmp(b->bound[i].name, name)) return b->bound[i].data;
    fail_msg("no buffer %s", name);
    return NULL;
}

static void make_plan(bench *b) {
    lw_error err;
    ok(lw_plan_make(&b->plan, b->backend, b->program, &err), &err);
    for (int32_t i = 0; i < b->program->n_buffers; i++) {
        const lw_buffer *buffer = &b->program->buffers[i];
        if (buffer->kind != LW_BUFFER_EXTERN) continue;
        assert_true(b->n_bound < MAX_BOUND);
        snprintf(b->bound[b->n_bound].name, sizeof b->bound[0].name, "%s", buffer->name);
        void *data = lw_alloc((size_t)buffer->bytes, 1);
        assert_non_null(data);
        b->bound[b->n_bound++].data = data;
        ok(lw_plan_bind(b->plan, buffer->name, data, &err), &err);
    }
    b->temp = lw_alloc_aligned(lw_plan_temp_bytes(b->plan));
    lw_plan_bind_temp(b->plan, b->temp);
    ok(lw_params_fill(b->params, b->backend, &err), &err);
}

static void run(bench *b) {
    lw_error err;
    ok(lw_plan_run(b->plan, &err), &err);
}

/* NCHW of c channels from or to NHWC of `width` channels (the rest zero). */
static void to_nhwc(const float *nchw, int n, int c, int hw, int width, float *nhwc) {
    memset(nhwc, 0, (size_t)n * (size_t)hw * (size_t)width * sizeof *nhwc);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < hw; p++) nhwc[(i * hw + p) * width + k] = nchw[(i * c + k) * hw + p];
}

static float *to_nchw(const float *nhwc, int n, int c, int hw, int width) {
    float *nchw = malloc((size_t)n * (size_t)c * (size_t)hw * sizeof *nchw);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < hw; p++) nchw[(i * c + k) * hw + p] = nhwc[(i * hw + p) * width + k];
    return nchw;
}

static void copy_out(lw_program *p, lw_view v, const char *name) {
    lw_args *m = lw_rec_op(p, LW_OP_APPLY, name);
    m->apply = (lw_apply_args){.in = lw_plain(v), .out = lw_rec_extern(p, name, LW_F32, v.g, v.n, v.h, v.w, v.c)};
}

/* ---- text and hint */

static void check_text(bench *b, const fixture *x, int32_t skip, const char *want) {
    size_t n;
    const float *hidden = fixture_data(x, want, &n);
    lw_record_text(record(b, "text"), &b->model, 2, 1, skip);
    make_plan(b);
    memcpy(bound(b, "ids"), fixture_data(x, "ids", NULL), 2 * LW_N_TOKENS * sizeof(int32_t));
    run(b);
    assert_close(want, bound(b, "context"), hidden, n, limit);
}

static void check_hint(bench *b) {
    fixture x = open_topic("hint");
    int h = (int)fixture_dim(&x, "hint", 2), w = (int)fixture_dim(&x, "hint", 3), c = (int)fixture_dim(&x, "out", 1);
    const float *hint = fixture_data(&x, "hint", NULL);
    lw_record_hint(record(b, "hint"), &b->model, 0, h / 8, w / 8);
    make_plan(b);
    uint8_t *edges = bound(b, "edges0");
    for (int i = 0; i < h * w; i++)
        for (int k = 0; k < 3; k++) edges[i * 3 + k] = hint[i] > 0 ? 255 : 0;
    run(b);
    float *got = to_nchw(bound(b, "hint0"), 1, c, h * w / 64, c);
    assert_close("hint", got, fixture_data(&x, "out", NULL), (size_t)(c * h * w / 64), limit);
    free(got);
    fixture_close(&x);
}

/* The time embedding as the ResBlocks take it: what is recorded of it goes through their SiLU at once. */
static void check_time(bench *b) {
    fixture x = open_topic("time");
    static const char *const ops[] = {"time", "unet.time_embed.2", "control.time_embed.2"};
    static const char *const names[] = {"sinusoid", "temb", "temb_control"};
    int rows = (int)fixture_dim(&x, "t", 0);
    const float *t = fixture_data(&x, "t", NULL);
    lw_program *p = record(b, "time");
    lw_record_time(p, &b->model, 1, rows, "t", "addend_table");
    for (int k = 0; k < 3; k++)
        for (int32_t i = 0, found = 0; i < p->n_ops && !found; i++) {
            if (strcmp(p->ops[i].name, ops[k]) != 0) continue;
            found = 1;
            copy_out(p, k ? p->ops[i].m->product.out : p->ops[i].m->embed_time.out, names[k]);
        }
    make_plan(b);
    for (int i = 0; i < rows; i++) ((float *)bound(b, "t"))[4 * i] = t[i]; /* each takes 16 bytes */
    run(b);
    for (int k = 0; k < 3; k++) {
        size_t n;
        const float *want = fixture_data(&x, names[k], &n);
        float *silu = malloc(n * sizeof *silu);
        for (size_t i = 0; i < n; i++) silu[i] = k ? want[i] / (1 + expf(-want[i])) : want[i];
        assert_close(names[k], bound(b, names[k]), silu, n, limit);
        free(silu);
    }
    fixture_close(&x);
}

/* ---- blocks */

static lw_net unet_net(bench *b) {
    return (lw_net){.p = b->program,
                    .model = &b->model,
                    .prefix = "unet.",
                    .groups = b->model.config.norm_groups,
                    .heads = b->model.config.unet_heads};
}

/* first: channels of the first of two inputs (0: one input), so that the concatenation is seen. */
static void check_res_block(bench *b, const fixture *x, const char *name, int first) {
    char in[64], out[64];
    snprintf(in, sizeof in, "%s.x", name);
    snprintf(out, sizeof out, "%s.y", name);
    int c = (int)fixture_dim(x, in, 1), h = (int)fixture_dim(x, in, 2), w = (int)fixture_dim(x, in, 3),
        c_out = (int)fixture_dim(x, out, 1);
    int width = (int)fixture_dim(x, "temb", 1);
    lw_program *p = record(b, name);
    lw_net net = unet_net(b);
    lw_view a = lw_rec_extern(p, "x", LW_F32, 1, 2, h, w, c), second = LW_NO_VIEW;
    if (first) second = lw_view_channels(a, first, c - first), a = lw_view_channels(a, 0, first);
    lw_view temb = lw_rec_extern(p, "temb", LW_F32, 1, 1, 1, 1, width),
            silu = lw_rec_temp(p, LW_F32, 1, 1, 1, 1, width);
    lw_args *m = lw_rec_op(p, LW_OP_APPLY, "silu");
    m->apply = (lw_apply_args){.in = lw_plain(temb), .out = silu};
    m->apply.in.act = LW_ACT_SILU;
    char emb[64];
    snprintf(emb, sizeof emb, "%s.emb_layers.1", name);
    lw_view addend = lw_net_linear(&net, (const char *[]){emb}, 1, true, lw_plain(silu), lw_no_epilogue(), LW_NO_VIEW);
    copy_out(p, lw_net_res_block(&net, name, a, second, addend), "y");
    make_plan(b);
    memcpy(bound(b, "temb"), fixture_data(x, "temb", NULL),
           (size_t)width * sizeof(float)); /* both rows are of one timestep */
    to_nhwc(fixture_data(x, in, NULL), 2, c, h * w, c, bound(b, "x"));
    run(b);
    float *got = to_nchw(bound(b, "y"), 2, c_out, h * w, c_out);
    assert_close(name, got, fixture_data(x, out, NULL), (size_t)(2 * c_out * h * w), limit);
    free(got);
}

static void check_transformer(bench *b, const fixture *x, const char *name) {
    char in[64], out[64], k[96], v[96];
    snprintf(in, sizeof in, "%s.x", name);
    snprintf(out, sizeof out, "%s.y", name);
    snprintf(k, sizeof k, "%s.transformer_blocks.0.attn2.to_k", name);
    snprintf(v, sizeof v, "%s.transformer_blocks.0.attn2.to_v", name);
    int c = (int)fixture_dim(x, in, 1), h = (int)fixture_dim(x, in, 2), w = (int)fixture_dim(x, in, 3),
        width = (int)fixture_dim(x, "context", 2);
    lw_program *p = record(b, name);
    lw_net net = unet_net(b);
    /* The two samples of the fixture have texts of their own: they are our guidance passes. */
    lw_view a = lw_rec_extern(p, "x", LW_F32, 2, 1, h, w, c),
            context = lw_rec_extern(p, "context", LW_F32, 2, 1, 1, LW_N_TOKENS, width);
    lw_view kv = lw_net_linear(&net, (const char *[]){k, v}, 2, false, lw_plain(context), lw_no_epilogue(), LW_NO_VIEW);
    copy_out(p, lw_net_transformer(&net, name, a, lw_view_channels(kv, 0, c), lw_view_channels(kv, c, c)), "y");
    make_plan(b);
    memcpy(bound(b, "context"), fixture_data(x, "context", NULL), (size_t)(2 * LW_N_TOKENS * width) * sizeof(float));
    to_nhwc(fixture_data(x, in, NULL), 2, c, h * w, c, bound(b, "x"));
    run(b);
    float *got = to_nchw(bound(b, "y"), 2, c, h * w, c);
    assert_close(name, got, fixture_data(x, out, NULL), (size_t)(2 * c * h * w), limit);
    free(got);
}

/* ---- networks */

/* Copies the text features in and makes the K and V of UNet and ControlNet from them; kv[0] the UNet's, kv[1] the
 * ControlNet's. */
static void make_kv(bench *b, const fixture *x, bool control, float *kv[2]) {
    lw_program *p = record(b, "kv");
    int width = (int)fixture_dim(x, "context", 2);
    lw_record_kv(p, &b->model, 2, control);
    make_plan(b);
    memcpy(bound(b, "context"), fixture_data(x, "context", NULL), (size_t)(2 * LW_N_TOKENS * width) * sizeof(float));
    run(b);
    for (int i = 0; i <= control; i++) {
        size_t n = (size_t)(2 * LW_N_TOKENS * (i ? b->model.control[0].n_kv : b->model.unet.n_kv)) * sizeof(float);
        kv[i] = malloc(n);
        memcpy(kv[i], bound(b, i ? "control.kv" : "unet.kv"), n);
    }
}

static float *make_addends(bench *b, int n_controls, float t) {
    lw_record_time(record(b, "time"), &b->model, n_controls, 1, "t", "addend_table");
    make_plan(b);
    *(float *)bound(b, "t") = t;
    run(b);
    size_t n = (size_t)lw_model_addends(&b->model, n_controls) * sizeof(float);
    return memcpy(malloc(n), bound(b, "addend_table"), n);
}

static float *make_hint(bench *b, const fixture *x, int h, int w) {
    const float *hint = fixture_data(x, "hint", NULL);
    lw_record_hint(record(b, "hint"), &b->model, 0, h, w);
    make_plan(b);
    uint8_t *edges = bound(b, "edges0");
    for (int i = 0; i < 64 * h * w * 3; i++) edges[i] = hint[i / 3] > 0 ? 255 : 0;
    run(b);
    size_t n = (size_t)(h * w * b->model.control[0].in[0].c_out) * sizeof(float);
    return memcpy(malloc(n), bound(b, "hint0"), n);
}

/* Records the ControlNet's outputs as well, unscaled and by themselves: its last convolutions without the epilogue that
 * adds them to the UNet's. Returns how many. */
static int tap_controls(lw_program *p) {
    int n = 0;
    for (int32_t i = 0, n_ops = p->n_ops; i < n_ops; i++) {
        const char *op = p->ops[i].name;
        if (strncmp(op, "control.zero_convs.", 19) != 0 && strcmp(op, "control.middle_block_out.0") != 0) continue;
        lw_product_args a = p->ops[i].m->product;
        char name[32];
        snprintf(name, sizeof name, "control.%d", n++);
        a.epi = lw_no_epilogue();
        a.out = lw_rec_extern(p, name, LW_F32, a.out.g, a.out.n, a.out.h, a.out.w, a.out.c);
        lw_args *m = lw_rec_op(p, LW_OP_CONV2D, name);
        assert_non_null(m);
        m->product = a;
    }
    return n;
}

/* Sample s of the fixture is the one of guidance pass s. */
static void check_controls(bench *b, const fixture *want, int n) {
    for (int i = 0; i < n; i++) {
        char name[32];
        size_t count;
        snprintf(name, sizeof name, "control.%d", i);
        const float *expected = fixture_data(want, name, &count), *all = bound(b, name);
        int c = (int)fixture_dim(want, name, 1), hw = (int)(fixture_dim(want, name, 2) * fixture_dim(want, name, 3));
        float *got = malloc(count * sizeof *got);
        for (int s = 0; s < 2; s++) {
            float *one = to_nchw(all + (size_t)(s * 2 + s) * (size_t)(c * hw), 1, c, hw, c);
            memcpy(got + (size_t)s * (size_t)(c * hw), one, (size_t)(c * hw) * sizeof *got);
            free(one);
        }
        assert_close(name, got, expected, count, limit);
        free(got);
    }
}

/* eps of guidance pass g for the sample g of the fixture, by a row that makes x' = eps of that pass. */
static void check_step(bench *b, const fixture *x, bool control, const char *want, const fixture *hint) {
    int h = (int)fixture_dim(x, "x", 2), w = (int)fixture_dim(x, "x", 3), n = h * w;
    float *kv[2] = {0}, *addends, *hinted = NULL;
    int n_controls = b->model.n_controls;
    make_kv(b, x, n_controls > 0, kv);
    addends = make_addends(b, n_controls, *(const float *)fixture_data(x, "t", NULL));
    if (control) hinted = make_hint(b, hint, h, w);
    lw_step_shape shape = {
        .g = 2, .n = 2, .h = h, .w = w, .n_controls = n_controls, .rows = 1, .n_noise = 1, .controls = control ? 1 : 0};
    lw_record_step(record(b, "step"), &b->model, &shape);
    int n_taps = tap_controls(b->program);
    assert_int_equal(n_taps, control ? b->model.unet.n_in + 1 : 0);
    make_plan(b);
    memcpy(bound(b, "unet.kv"), kv[0], (size_t)(2 * LW_N_TOKENS * b->model.unet.n_kv) * sizeof(float));
    if (control)
        memcpy(bound(b, "control.kv"), kv[1], (size_t)(2 * LW_N_TOKENS * b->model.control[0].n_kv) * sizeof(float));
    if (control) memcpy(bound(b, "hint0"), hinted, (size_t)(n * b->model.control[0].in[0].c_out) * sizeof(float));
    memcpy(bound(b, "addends"), addends, (size_t)lw_model_addends(&b->model, n_controls) * sizeof(float));
    float *scales = bound(b, "scales"), *got = malloc((size_t)(2 * 4 * n) * sizeof *got);
    for (int i = 0; i < lw_scales_row(n_controls, 2); i++) scales[i] = 1;
    for (int g = 0; g < 2; g++) {
        to_nhwc(fixture_data(x, "x", NULL), 2, 4, n, 8, bound(b, "net_in"));
        memset(bound(b, "x"), 0, (size_t)(2 * n * 8) * sizeof(float));
        int32_t *status = bound(b, "status");
        status[0] = 0, status[1] = 1, status[2] = 0;
        lw_row *row = bound(b, "rows");
        *row = (lw_row){.noise = -1, .guidance = g ? 0 : 1, .x_e = 1};
        run(b);
        assert_int_equal(status[2], 0);
        float *both = to_nchw(bound(b, "x"), 2, 4, n, 8);
        memcpy(got + g * 4 * n, both + g * 4 * n, (size_t)(4 * n) * sizeof *got);
        free(both);
    }
    if (control) check_controls(b, hint, n_taps);
    assert_close(want, got, fixture_data(x, want, NULL), (size_t)(8 * n), limit);
    free(got), free(kv[0]), free(kv[1]), free(addends), free(hinted);
}

static void check_vae(bench *b) {
    fixture x = open_topic("vae");
    int h = (int)fixture_dim(&x, "latent", 2), w = (int)fixture_dim(&x, "latent", 3);
    lw_program *p = record(b, "decode");
    lw_record_decode(p, &b->model, 1, h, w);
    lw_view picture = p->ops[p->n_ops - 1].m->pack.in;
    copy_out(p, picture, "float_image");
    make_plan(b);
    to_nhwc(fixture_data(&x, "latent", NULL), 1, 4, h * w, 8, bound(b, "x"));
    run(b);
    float *got = to_nchw(bound(b, "float_image"), 1, 3, 64 * h * w, picture.c);
    assert_close("vae", got, fixture_data(&x, "image", NULL), (size_t)(3 * 64 * h * w), limit);
    assert_bytes_close("vae bytes", bound(b, "image"), fixture_data(&x, "bytes", NULL), (size_t)(3 * 64 * h * w));
    free(got);
    fixture_close(&x);
}

static void check_blocks(bench *b) {
    fixture res = open_topic("resblock"), tr = open_topic("transformer");
    check_res_block(b, &res, "input_blocks.1.0", 0);
    check_res_block(b, &res, "input_blocks.7.0", 0);
    check_res_block(b, &res, "output_blocks.5.0", 32);
    check_res_block(b, &res, "output_blocks.6.0", 32);
    check_transformer(b, &tr, "input_blocks.1.1");
    check_transformer(b, &tr, "middle_block.1");
    check_transformer(b, &tr, "output_blocks.5.1");
    fixture_close(&res), fixture_close(&tr);
}

static void check_networks(bench *b) {
    fixture clip = open_topic("clip"), unet = open_topic("unet"), control = open_topic("control");
    check_text(b, &clip, 0, "hidden");
    check_text(b, &clip, 2, "hidden_skip2");
    check_hint(b);
    check_time(b);
    check_step(b, &unet, false, "eps_no_control", NULL);
    check_step(b, &unet, true, "eps", &control);
    check_vae(b);
    fixture_close(&clip), fixture_close(&unet), fixture_close(&control);
}

static void check_tiny(bool references) {
    bench b;
    lw_error err;
    open_model(&b, references);
    ok(lw_model_check(&b.model, b.params, &err), &err);
    check_blocks(&b);
    check_networks(&b);
    close_bench(&b);
}

static void networks_with_references(void **state) {
    (void)state;
    check_tiny(true);
}

static void networks_with_tactics(void **state) {
    (void)state;
    check_tiny(false);
}

static void networks_of_files(void **state) {
    (void)state;
    bench b;
    open_model(&b, false);
    check_networks(&b);
    close_bench(&b);
}

/* A residual stream of 0.003: an eps of 1e-5 for 1e-6 in a norm would move the output by half its size. */
static void small_residual_stream(void **state) {
    (void)state;
    for (int references = 0; references < 2; references++) {
        bench b;
        lw_error err;
        open_bench(&b, references);
        ok(lw_weights_open(&b.model.base, LW_TEST_DATA "/tiny/small_model.safetensors", &err), &err);
        b.model.config = (lw_model_config){.unet_heads = 1, .norm_groups = 4, .scale_factor = 1};
        ok(lw_model_read_unet(&b.model, &err), &err);
        lw_tensor_source source = lw_model_source(&b.model);
        ok(lw_params_new(&b.params, &source, &err), &err);
        fixture x = open_topic("small");
        check_step(&b, &x, false, "eps", NULL);
        fixture_close(&x);
        close_bench(&b);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(networks_with_references),
        cmocka_unit_test(networks_with_tactics),
        cmocka_unit_test(small_residual_stream),
    };
    const struct CMUnitTest of_files[] = {cmocka_unit_test(networks_of_files)};
    if (argc == 4) {
        model = argv[1];
        folder = argv[2];
        limit = strtod(argv[3], NULL);
        return cmocka_run_group_tests(of_files, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
