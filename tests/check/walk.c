/* SPDX-License-Identifier: MIT
 * Cases from recorded networks: every program of a model is recorded as the library records it, and each of its ops
 * becomes a case, with its views moved to buffers of its own. A product's prologue and epilogue become apply and
 * combine cases as well, as the planner makes them where a tactic does not take them. */
#include "check.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

typedef struct mapping { /* of the recorded program's buffers to the case's */
    ck_case *c;
    const lw_params *params;
    int32_t from[CK_MAX_BUFFERS];
    int64_t low[CK_MAX_BUFFERS], high[CK_MAX_BUFFERS];
    bool failed;
} mapping;

static int32_t find_buffer(mapping *m, int32_t buf) {
    int32_t i = 0;
    while (i < m->c->n_buffers && m->from[i] != buf) i++;
    if (i < m->c->n_buffers) return i;
    if (i == CK_MAX_BUFFERS) return m->failed = true, 0;
    m->from[i] = buf;
    m->low[i] = INT64_MAX;
    m->c->n_buffers++;
    return i;
}

static void note_extent(void *user, lw_view *v, bool written) {
    mapping *m = user;
    (void)written;
    if (!lw_view_is(*v)) return;
    int32_t i = find_buffer(m, v->buf);
    int64_t last = (v->g - 1) * v->sg + (v->n - 1) * v->sn + (v->h - 1) * v->sh + (v->w - 1) * v->sw;
    int64_t end = v->off + (last + v->c) * (int64_t)lw_dtype_bytes(v->dtype);
    if (v->off < m->low[i]) m->low[i] = v->off;
    if (end > m->high[i]) m->high[i] = end;
}

static void move_view(void *user, lw_view *v, bool written) {
    mapping *m = user;
    (void)written;
    if (!lw_view_is(*v)) return;
    v->buf = find_buffer(m, v->buf);
    v->off -= m->low[v->buf];
}

static void move_param(void *user, lw_param *p, char role) {
    mapping *m = user;
    if (!lw_param_is(*p)) return;
    int64_t d[4];
    lw_param_dims(m->params, *p, d);
    *p = ck_param_of(m->c, role, d[0], d[1], d[2], d[3]);
}

static void add_op(ck_list *list, const lw_params *params, lw_op_kind kind, const lw_args *args, lw_dtype dtype,
                   const char *from) {
    ck_case c = {.kind = kind, .dtype = dtype, .m = *args};
    mapping m = {.c = &c, .params = params};
    lw_op_views(kind, &c.m, note_extent, &m);
    lw_op_views(kind, &c.m, move_view, &m);
    for (int32_t i = 0; i < c.n_buffers; i++) {
        c.bytes[i] = (int64_t)lw_round_up((size_t)(m.high[i] - m.low[i]), 16);
        if (c.bytes[i] > INT32_MAX) m.failed = true;
    }
    ck_op_params(kind, &c.m, move_param, &m);
    if (m.failed) list->too_large++;
    else ck_add(list, &c, CK_IN(CK_NORMAL), from);
}

/* The plain ops beside a product. */
static void add_parts(ck_list *list, const lw_params *params, const lw_product_args *p, lw_dtype dtype,
                      const char *from) {
    const lw_prologue *in = &p->in;
    lw_args part = {0};
    int32_t up = in->up2 ? 2 : 1, c = in->a.c + (lw_view_is(in->b) ? in->b.c : 0), free_buffer = 1 << 20;
    lw_view made = {.buf = free_buffer,
                    .dtype = in->a.dtype,
                    .g = p->out.g,
                    .n = p->out.n,
                    .h = in->a.h * up,
                    .w = in->a.w * up,
                    .c = c,
                    .sw = c};
    made.sh = made.sw * made.w, made.sn = made.sh * made.h, made.sg = made.sn * made.n;
    if (lw_view_is(in->b) || in->norm.kind || in->act || in->up2) {
        part.apply = (lw_apply_args){.in = *in, .out = made};
        add_op(list, params, LW_OP_APPLY, &part, dtype, from);
    }
    if (!p->epi.act && !lw_view_is(p->epi.addend) && !lw_view_is(p->epi.residual) && !lw_view_is(p->epi.scale)) return;
    lw_view raw = p->out;
    raw.buf = free_buffer;
    raw.off = 0;
    raw.c = p->epi.act == LW_ACT_GEGLU ? 2 * raw.c : raw.c;
    raw.sw = raw.c, raw.sh = raw.sw * raw.w, raw.sn = raw.sh * raw.h, raw.sg = raw.sn * raw.n;
    part.combine = (lw_combine_args){.in = raw, .epi = p->epi, .out = p->out};
    add_op(list, params, LW_OP_COMBINE, &part, dtype, from);
}

static bool add_program(ck_list *list, lw_program *p, const char *from) {
    if (p->status != LW_OK) fprintf(stderr, "lw_check: %s: program %s: %s\n", from, p->name, p->error.message);
    bool fine = p->status == LW_OK;
    for (int32_t i = 0; i < p->n_ops && fine; i++) {
        const lw_op *op = &p->ops[i];
        for (int32_t k = 0; k < op->n_member; k++) {
            add_op(list, p->params, op->kind, &op->m[k], p->act, from);
            if (op->kind == LW_OP_CONV2D || op->kind == LW_OP_LINEAR)
                add_parts(list, p->params, &op->m[k].product, p->act, from);
        }
    }
    lw_program_free(p);
    return fine;
}

static bool add_model(ck_list *list, lw_model *model, const char *from, lw_dtype act, int32_t h, int32_t w) {
    lw_tensor_source source = lw_model_source(model);
    lw_params *params = NULL;
    lw_program *p;
    bool fine = true;
    lw_step_shape shape = {.g = 2,
                           .n = 1,
                           .h = h,
                           .w = w,
                           .n_controls = model->n_controls,
                           .rows = 20,
                           .n_noise = 1,
                           .controls = (1u << model->n_controls) - 1};
    if (lw_params_new(&params, &source, NULL) != LW_OK) return false;
    if ((p = lw_program_new("text", params, act))) {
        lw_record_text(p, model, 2, model->n_controls, 0);
        fine = add_program(list, p, from) && fine;
    }
    if (model->n_controls && (p = lw_program_new("hint", params, act))) {
        lw_record_hint(p, model, 0, h, w);
        fine = add_program(list, p, from) && fine;
    }
    if ((p = lw_program_new("time", params, act))) {
        lw_record_time(p, model, model->n_controls, shape.rows, "t", "addend_table");
        fine = add_program(list, p, from) && fine;
    }
    if ((p = lw_program_new("step", params, act))) {
        lw_record_step(p, model, &shape);
        fine = add_program(list, p, from) && fine;
    }
    if ((p = lw_program_new("decode", params, act))) {
        lw_record_decode(p, model, 1, h, w);
        fine = add_program(list, p, from) && fine;
    }
    lw_params_free(params, NULL); /* nothing was packed */
    return fine;
}

bool ck_walk(ck_list *list, const char *path, const char *from, lw_dtype act, int32_t h, int32_t w) {
    char made[64];
    int fd = -1;
    if (!path) {
        lw_error why;
        fd = bench_sd15_file(made, &why);
        if (fd < 0) {
            fprintf(stderr, "lw_check: %s: %s\n", from, why.message);
            return false;
        }
        path = made;
    }
    lw_model model;
    lw_error err;
    bool fine = lw_model_open(&model, path, NULL, 0, NULL, &err) == LW_OK;
    if (!fine) fprintf(stderr, "lw_check: %s: %s\n", from, err.message);
    else {
        fine = add_model(list, &model, from, act, h, w);
        lw_model_close(&model);
    }
    if (fd >= 0) close(fd);
    return fine;
}
