/* SPDX-License-Identifier: MIT */
#include "pipe/recipe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/pass.h"

static bool nothing_shared(const char *op) { return (void)op, false; }

/* Up to the first ResBlock of UNet and ControlNet, and whatever has no guidance at all. */
static bool first_block_shared(const char *op) {
    const char *block = strstr(op, "input_blocks.");
    if (strstr(op, "emb_layers")) return true;
    if (block) return !strncmp(block, "input_blocks.0.", 15) || !strncmp(block, "input_blocks.1.0.", 17);
    return !strstr(op, "middle_block") && !strstr(op, "zero_convs") && !strstr(op, "output_blocks") &&
           !strstr(op, "unet.out.");
}

static void take_back(lw_program *p, const lw_recipe *r, int32_t g) {
    if (g == 2 && r->prefix != LW_PREFIX_LONG)
        lw_pass_unshare(p, r->prefix == LW_PREFIX_SHORT ? first_block_shared : nothing_shared);
    if (g == 2 && r->passes_apart) lw_pass_apart(p);
}

static void fit(lw_program *p, const lw_recipe *r, uint32_t takes) {
    if (r->unfused) takes &= ~(uint32_t)LW_TAKES_ROW_STATS;
    if (r->unzipped || r->passes_apart) takes &= ~(uint32_t)LW_TAKES_MEMBERS;
    lw_pass_fit(p, takes);
}

void lw_recipe_record_text(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *s,
                           int32_t clip_skip, uint32_t takes) {
    lw_record_clip(p, m, s->g, clip_skip);
    if (!r->text_each_step) lw_record_kv(p, m, s->g, s->n_controls);
    if (s->g == 2 && r->passes_apart) lw_pass_apart(p);
    fit(p, r, takes);
}

/* The K and V of one network are made and read within the step. */
static void keep_kv(lw_program *p, const lw_unet_layout *u) {
    char name[48];
    snprintf(name, sizeof name, "%skv", u->prefix);
    lw_pass_keep_inside(p, name);
}

static void keep_hint(lw_program *p, int32_t k) {
    char name[16];
    snprintf(name, sizeof name, "hint%d", k);
    lw_pass_keep_inside(p, name);
}

/* The step's table is then of timesteps: the update hands out the row's timestep, and the step makes its addends. */
static void read_timesteps(lw_program *p, const lw_step_shape *s) {
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (p->ops[i].kind != LW_OP_ADVANCE) continue;
        lw_advance_args *a = &p->ops[i].m->advance;
        a->addend_table = lw_rec_extern(p, "t", LW_F32, 1, 1, 1, s->rows, 1);
        a->addends = lw_rec_extern(p, "t_row", LW_F32, 1, 1, 1, 1, 1);
    }
}

/* eps outlives the step: an update outside it reads it, and so does a row that uses it again. */
static void give_eps(lw_program *p, bool cut_update) {
    if (p->status != LW_OK || p->n_ops == 0 || p->ops[p->n_ops - 1].kind != LW_OP_ADVANCE) return;
    lw_pass_give_out(p, p->ops[p->n_ops - 1].m->advance.eps, "eps");
    p->n_ops -= cut_update;
}

void lw_recipe_record_step(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *s,
                           uint32_t takes) {
    for (int32_t k = 0; k < s->n_controls && r->hint_each_step; k++)
        if (s->controls >> k & 1) lw_record_hint(p, m, k, s->h, s->w);
    if (r->text_each_step) lw_record_kv(p, m, s->g, s->n_controls);
    if (r->time_each_step) lw_record_time(p, m, s->n_controls, 1, "t_row", "addends");
    lw_record_step(p, m, s);
    if (p->status != LW_OK) return;
    for (int32_t k = 0; k < s->n_controls && r->hint_each_step; k++) keep_hint(p, k);
    if (r->text_each_step) {
        keep_kv(p, &m->unet);
        for (int32_t k = 0; k < s->n_controls; k++) keep_kv(p, &m->control[k]);
    }
    if (r->time_each_step) {
        read_timesteps(p, s);
        lw_pass_keep_inside(p, "addends");
    }
    give_eps(p, r->update != LW_UPDATE_IN_STEP);
    take_back(p, r, s->g);
    fit(p, r, takes);
}

void lw_recipe_record_update(lw_program *p, const lw_model *m, const lw_recipe *r, const lw_step_shape *s, bool first) {
    lw_record_advance(p, m, s, first);
    if (r->time_each_step) read_timesteps(p, s);
}

/* ---- the update on the host */

static float load(lw_dtype dtype, const void *p, size_t i) {
    const uint16_t *half = p;
    return dtype == LW_F16 ? lw_f16_to_f32(half[i]) : dtype == LW_BF16 ? lw_bf16_to_f32(half[i]) : ((const float *)p)[i];
}

static void store(lw_dtype dtype, void *p, size_t i, float v) {
    uint16_t *half = p;
    if (dtype == LW_F16) half[i] = lw_f32_to_f16(v);
    else if (dtype == LW_BF16) half[i] = lw_f32_to_bf16(v);
    else ((float *)p)[i] = v;
}

/* Row r's update of n values: row.h. False if one is not finite. */
static bool update_values(const lw_row *r, lw_dtype dtype, const void *eps, int32_t g, const float *noise, size_t n,
                          float *x, float *h1, float *h2, float *y) {
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        float e = load(dtype, eps, i), u = g == 2 ? load(dtype, eps, n + i) : e;
        e = u + r->guidance * (e - u);
        float h = r->h_x * x[i] + r->h_e * e;
        float next = r->x_x * x[i] + r->x_e * e + r->x_h[0] * h + r->x_h[1] * h1[i] + r->x_h[2] * h2[i] + r->x_y * y[i];
        if (noise) next += r->x_n * noise[i];
        y[i] = r->y_x * x[i] + r->y_e * e + r->y_h[0] * h + r->y_h[1] * h1[i] + r->y_h[2] * h2[i] + r->y_y * y[i];
        h2[i] = h1[i];
        h1[i] = h;
        x[i] = next;
        finite &= isfinite(next) != 0;
    }
    return finite;
}

static lw_status copy(lw_backend *b, void *to, const void *from, size_t bytes, void *host, lw_error *err) {
    LW_TRY(b->download(b, host, from, bytes, err));
    return b->upload(b, to, host, bytes, err);
}

lw_status lw_recipe_update_on_host(lw_backend *b, const lw_update_buffers *at, const lw_step_shape *s, lw_error *err) {
    size_t n = (size_t)s->n * (size_t)s->h * (size_t)s->w * 8, bytes = n * sizeof(float),
           each = lw_dtype_bytes(b->act), room = (size_t)(at->row_bytes + at->scales_bytes);
    void *const state[4] = {at->x, at->h1, at->h2, at->y};
    float *v = lw_alloc(5 * n, sizeof *v), *values[4] = {v, v + n, v + 2 * n, v + 3 * n}, *noise = v + 4 * n;
    char *eps = lw_alloc(2 * n, each), *host = lw_alloc(room, 1);
    lw_status status = v && eps && host ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory to update %zu values", n);
    int32_t news[4];
    lw_row row;
    if (status != LW_OK) goto out;
    LW_GO(b->download(b, news, at->status, sizeof news, err));
    LW_GO(b->download(b, &row, (const lw_row *)at->rows + news[0], sizeof row, err));
    LW_GO(b->download(b, eps, at->eps, n * each * (size_t)s->g, err));
    for (int i = 0; i < 4; i++) LW_GO(b->download(b, values[i], state[i], bytes, err));
    if (row.noise >= 0) LW_GO(b->download(b, noise, (const float *)at->noise + (size_t)row.noise * n, bytes, err));
    if (!update_values(&row, b->act, eps, s->g, row.noise >= 0 ? noise : NULL, n, values[0], values[1], values[2],
                       values[3]))
        news[2] = 1;
    for (int i = 0; i < 4; i++) LW_GO(b->upload(b, state[i], values[i], bytes, err));
    for (size_t i = 0; i < n; i++) store(b->act, eps, i, values[0][i]);
    LW_GO(b->upload(b, at->net_in, eps, n * each, err));
    if (++news[0] < news[1]) {
        LW_GO(copy(b, at->row, (const char *)at->table + news[0] * at->row_bytes, (size_t)at->row_bytes, host, err));
        LW_GO(copy(b, at->scales, (const char *)at->scale_table + news[0] * at->scales_bytes,
                   (size_t)at->scales_bytes, host, err));
    }
    LW_GO(b->upload(b, at->status, news, sizeof news, err));
out:
    lw_free(v);
    lw_free(eps);
    lw_free(host);
    return status;
}
