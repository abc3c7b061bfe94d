/* SPDX-License-Identifier: MIT
 * The rule of a case. With `truth` the references in double, storing floats whatever the dtype, and `naive` the
 * references with a plain op, and so a rounding to the storage type, for each part of a fused one:
 *
 *   all types    NMSE <= the op's bound (half types: + 2 NMSE(naive), as BF16 alone rounds more than 5e-7);
 *                NaN where truth has NaN and nowhere else; infinity is off by what its smallest value is off by
 *                tactics that round the operands of their products to bf16 (LW_TAKES_ROUNDING): + 2e-5, twice
 *                what two roundings of each term give, 2 (2^-8)^2 / 3; attention, whose powers enlarge what its logits
 *                have, against the references on rounded operands
 *   half types   max|new - truth| <= 2 max|naive - truth| + half an ulp of max|truth| + atol  (flash-attention's rule;
 *                the ulp, since a result is rounded once, and naive is lucky where there are few)
 *   all bytes that are no element of an output are as they were: guards, row padding, inputs
 *   the same bits again, with other workspace contents, and for 1, 2 and 3 threads */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cpu/ref/ref.h"

enum { MAX_WORST = 160 };
static ck_worst worst[MAX_WORST];
static int32_t n_worst;

/* ---- outputs */

static void note_written(void *user, lw_view *v, bool written) {
    ck_outputs *o = user;
    if (written && lw_view_is(*v)) o->view[o->n++] = *v;
}

static void outputs_of(const ck_case *c, const lw_args *m, ck_outputs *o) {
    lw_args copy = *m;
    *o = (ck_outputs){0};
    lw_op_views(c->kind, &copy, note_written, o);
}

static bool outputs_read(ck_outputs *o, const ck_image *image) {
    for (int32_t i = 0; i < o->n; i++) {
        const lw_view *v = &o->view[i];
        o->count[i] = (int64_t)v->g * v->n * v->h * v->w * v->c;
        double *to = o->value[i] = malloc((size_t)o->count[i] * sizeof *to);
        if (!to) return false;
        const char *base = ck_at(image, *v);
        for (int64_t r = 0; r < o->count[i] / v->c; r++) {
            int32_t w = (int32_t)(r % v->w), h = (int32_t)(r / v->w % v->h), n = (int32_t)(r / v->w / v->h % v->n),
                    g = (int32_t)(r / v->w / v->h / v->n);
            int64_t at = lw_view_index(v, g, n, h, w);
            for (int32_t c = 0; c < v->c; c++) *to++ = ck_load(base, v->dtype, at + c);
        }
    }
    return true;
}

static void outputs_free(ck_outputs *o) {
    for (int32_t i = 0; i < o->n; i++) free(o->value[i]);
    *o = (ck_outputs){0};
}

/* Puts the elements of the outputs back, so that what else differs shows. */
static void scrub(const ck_outputs *o, ck_image *image, const ck_image *before) {
    for (int32_t i = 0; i < o->n; i++) {
        const lw_view *v = &o->view[i];
        size_t size = lw_dtype_bytes(v->dtype);
        for (int64_t r = 0; r < o->count[i] / v->c; r++) {
            int32_t w = (int32_t)(r % v->w), h = (int32_t)(r / v->w % v->h), n = (int32_t)(r / v->w / v->h % v->n),
                    g = (int32_t)(r / v->w / v->h / v->n);
            size_t at = (size_t)lw_view_index(v, g, n, h, w) * size;
            memcpy(ck_at(image, *v) + at, ck_at(before, *v) + at, (size_t)v->c * size);
        }
    }
}

static lw_status check_untouched(const ck_outputs *o, ck_image *image, const ck_image *before, lw_error *err) {
    scrub(o, image, before);
    for (int32_t b = 0; b < image->n; b++) {
        int64_t all = image->bytes[b] + 2 * CK_GUARD;
        if (!memcmp(image->buffer[b], before->buffer[b], (size_t)all)) continue;
        int64_t at = 0;
        while (image->buffer[b][at] == before->buffer[b][at]) at++;
        return lw_fail(err, LW_EINTERNAL, "writes byte %lld of buffer %d (%lld bytes), which is no output",
                       (long long)(at - CK_GUARD), b, (long long)image->bytes[b]);
    }
    return LW_OK;
}

/* ---- errors */

static bool is_half(lw_dtype dtype) { return dtype == LW_F16 || dtype == LW_BF16; }

/* The smallest value that rounds to infinity. */
static double beyond(lw_dtype dtype) { return dtype == LW_F16 ? 65520 : 3.4e38; }
/* Half an ulp of 1. */
static double rounding(lw_dtype dtype) { return dtype == LW_F16 ? 0x1p-11 : 0x1p-8; }

typedef struct errors {
    double nmse, max, largest; /* largest: of truth */
} errors;

/* False: NaN where there should be none, the wrong infinity, or none where there should be one; *at says where. */
static bool measure(const double *truth, const double *v, int64_t n, lw_dtype dtype, errors *e, int64_t *at) {
    /* Below this a value is noise: denormal numbers may be flushed. */
    double floor = dtype == LW_F16 ? 1e-4 : 1e-33, square = 0, diff = 0;
    *e = (errors){0};
    for (int64_t i = 0; i < n; i++) {
        bool over = isinf(v[i]) && isfinite(truth[i]);
        if (isnan(truth[i]) != isnan(v[i]) || (isinf(truth[i]) && isfinite(v[i])) || (over && v[i] * truth[i] < 0))
            return *at = i, false;
        if (!isfinite(truth[i])) continue;
        double d = over ? fmax(beyond(dtype) - fabs(truth[i]), 0) : v[i] - truth[i];
        diff += d * d;
        square += truth[i] * truth[i] + floor * floor;
        if (fabs(d) > e->max) e->max = fabs(d);
        if (fabs(truth[i]) > e->largest) e->largest = fabs(truth[i]);
    }
    e->nmse = square > 0 ? diff / square : 0;
    return true;
}

static const double rounding_nmse = 2e-5;

typedef struct verdict {
    double nmse, bound, max_share;
    lw_status status;
    lw_error err;
} verdict;

static void judge(const ck_op *op, const lw_tactic *t, const ck_outputs *truth, const ck_outputs *naive,
                  const ck_outputs *v, verdict *out) {
    for (int32_t i = 0; i < v->n && out->status == LW_OK; i++) {
        /* A product's statistics are of rows that are rounded. */
        const bool product = op == &ck_op_conv2d || op == &ck_op_linear;
        lw_dtype dtype = v->view[product ? 0 : i].dtype;
        errors e, base = {0};
        int64_t at = 0;
        if (!measure(truth->value[i], v->value[i], v->count[i], dtype, &e, &at)) {
            out->status = lw_fail(&out->err, LW_EINTERNAL, "output %d value %lld is %g, expected %g", i, (long long)at,
                                  v->value[i][at], truth->value[i][at]);
            return;
        }
        bool integer = dtype == LW_U8 || dtype == LW_I32, half = is_half(dtype);
        double bound = op->exact || integer ? 0 : half ? op->nmse_half : op->nmse_f32;
        if (t->takes & LW_TAKES_ROUNDING) bound += rounding_nmse;
        if (half) {
            if (!measure(truth->value[i], naive->value[i], v->count[i], dtype, &base, &at)) base = (errors){0};
            bound += 2 * base.nmse;
            double atol = (dtype == LW_F16 ? 1e-5 : 1e-6) + rounding(dtype) * fmin(e.largest, beyond(dtype)),
                   share = e.max / (2 * base.max + atol);
            if (share > out->max_share) out->max_share = share;
            if (share > 1)
                out->status =
                    lw_fail(&out->err, LW_EINTERNAL, "output %d: largest error %.3g, naive %.3g", i, e.max, base.max);
        }
        if (bound == 0 ? e.max > out->nmse : e.nmse * out->bound >= out->nmse * bound || out->bound == 0)
            out->nmse = bound == 0 ? e.max : e.nmse, out->bound = bound;
        if (bound == 0 ? e.max > 0 : e.nmse > bound)
            out->status = lw_fail(&out->err, LW_EINTERNAL, "output %d: NMSE %.3g over %.3g, largest error %.3g", i,
                                  e.nmse, bound, e.max);
    }
}

/* ---- truth and naive */

static void widen_view(void *user, lw_view *v, bool written) {
    int64_t *bytes = user;
    if (!written || !lw_view_is(*v) || !is_half(v->dtype)) return;
    v->dtype = LW_F32;
    v->off *= 2;
    bytes[v->buf] *= 2;
}

/* Runs m on the references; out gets the values. first: a tactic to try before them. */
static lw_status run_reference(ck_machine *machine, lw_params *params, const ck_case *c, const lw_args *m,
                               const int64_t *bytes, const ck_image *in, const lw_tactic *first, ck_outputs *out,
                               lw_error *err) {
    ck_planned p = {0};
    ck_image image;
    lw_status status = LW_OK;
    bool made = ck_image_make(&image, bytes, c->n_buffers);
    for (int32_t i = 0; i < c->n_buffers && made; i++)
        if (bytes[i] == c->bytes[i]) memcpy(image.buffer[i], in->buffer[i], (size_t)bytes[i] + 2 * CK_GUARD);
    if (!made) status = lw_fail(err, LW_ENOMEM, "no memory for a case");
    if (status == LW_OK) status = ck_plan(&p, machine->reference, params, c, m, bytes, first, false, 0, err);
    if (status == LW_OK) status = ck_run(&p, &image, 0x55, err);
    outputs_of(c, m, out);
    if (status == LW_OK && !outputs_read(out, &image)) status = lw_fail(err, LW_ENOMEM, "no memory for a case");
    ck_unplan(&p);
    ck_image_free(&image);
    return status;
}

static lw_status get_truth(ck_machine *machine, lw_params *params, const ck_case *c, const ck_image *in,
                           ck_outputs *out, lw_error *err) {
    lw_args wide = c->m;
    int64_t bytes[CK_MAX_BUFFERS];
    memcpy(bytes, c->bytes, sizeof bytes);
    lw_op_views(c->kind, &wide, widen_view, bytes);
    if (!ck_op_of(c->kind)->truth) return run_reference(machine, params, c, &wide, bytes, in, NULL, out, err);
    outputs_of(c, &wide, out);
    for (int32_t i = 0; i < out->n; i++) {
        const lw_view *v = &out->view[i];
        out->count[i] = (int64_t)v->g * v->n * v->h * v->w * v->c;
        out->value[i] = calloc((size_t)out->count[i], sizeof(double));
        if (!out->value[i]) return lw_fail(err, LW_ENOMEM, "no memory for a case");
    }
    ck_op_of(c->kind)->truth(c, in, out);
    return LW_OK;
}

/* The references that take nothing: the planner splits a product into its plain ops, each rounding what it stores. */
static const lw_tactic *split_tactic(lw_op_kind kind) {
    static lw_tactic conv2d, linear;
    lw_tactic *t = kind == LW_OP_CONV2D ? &conv2d : kind == LW_OP_LINEAR ? &linear : NULL;
    if (!t) return NULL;
    *t = kind == LW_OP_CONV2D ? lw_ref_conv2d : lw_ref_linear;
    t->name = kind == LW_OP_CONV2D ? "conv2d_ref_split" : "linear_ref_split";
    t->takes = 0;
    return t;
}

/* ---- a tactic */

static lw_status same_values(const ck_outputs *a, const ck_outputs *b, const char *when, lw_error *err) {
    for (int32_t i = 0; i < a->n; i++)
        for (int64_t k = 0; k < a->count[i]; k++)
            if (memcmp(&a->value[i][k], &b->value[i][k], sizeof(double)) &&
                !(isnan(a->value[i][k]) && isnan(b->value[i][k])))
                return lw_fail(err, LW_EINTERNAL, "output %d value %lld is %.9g, %s %.9g", i, (long long)k,
                               a->value[i][k], when, b->value[i][k]);
    return LW_OK;
}

static lw_status copy_image(ck_image *to, const ck_image *from, lw_error *err) {
    if (!ck_image_make(to, from->bytes, from->n)) return lw_fail(err, LW_ENOMEM, "no memory for a case");
    for (int32_t i = 0; i < from->n; i++) memcpy(to->buffer[i], from->buffer[i], (size_t)from->bytes[i] + 2 * CK_GUARD);
    return LW_OK;
}

/* One run of p into out. */
static lw_status run_into(ck_planned *p, const ck_case *c, const ck_image *in, unsigned char junk, ck_outputs *out,
                          lw_error *err) {
    ck_image image = {0};
    lw_status status = LW_OK;
    LW_GO(copy_image(&image, in, err));
    LW_GO(ck_run(p, &image, junk, err));
    outputs_of(c, &c->m, out);
    if (!outputs_read(out, &image)) LW_GO(lw_fail(err, LW_ENOMEM, "no memory for a case"));
    LW_GO(check_untouched(out, &image, in, err));
out:
    ck_image_free(&image);
    return status;
}

static bool wants_row_stats(const ck_case *c) {
    return (c->kind == LW_OP_CONV2D || c->kind == LW_OP_LINEAR) && lw_view_is(c->m.product.row_stats);
}

/* Runs with 1 thread twice, then with 2 and 3; *used: the tactic takes the case. */
static lw_status run_tactic(ck_machine *machine, lw_params *params, const ck_case *c, const ck_image *in,
                            const lw_tactic *t, ck_outputs *out, bool *used, lw_error *err) {
    static const int32_t threads[] = {1, 1, 2, 3};
    static const char *const when[] = {"", "and then", "with 2 threads", "with 3 threads"};
    ck_planned p = {0};
    ck_outputs again = {0};
    lw_status status = LW_OK;
    int32_t runs = machine->backend->device == LW_DEVICE_CPU ? 4 : 2;
    for (int32_t i = 0; i < runs; i++) {
        if (i != 1) {
            ck_unplan(&p);
            LW_GO(ck_plan(&p, machine->backend, params, c, &c->m, c->bytes, t, false, threads[i], err));
            *used = ck_uses(&p, t) && (t->takes & LW_TAKES_ROW_STATS || !wants_row_stats(c));
            if (!*used) goto out;
        }
        LW_GO(run_into(&p, c, in, i == 1 ? 0xff : 0x3c, i ? &again : out, err));
        if (i) LW_GO(same_values(out, &again, when[i], err));
        outputs_free(&again);
    }
out:
    outputs_free(&again);
    ck_unplan(&p);
    return status;
}

static ck_worst *worst_of(const lw_tactic *t, lw_dtype dtype) {
    for (int32_t i = 0; i < n_worst; i++)
        if (worst[i].dtype == dtype && !strcmp(worst[i].tactic, t->name)) return &worst[i];
    if (n_worst == MAX_WORST) return &worst[MAX_WORST - 1];
    worst[n_worst] = (ck_worst){.tactic = t->name, .dtype = dtype};
    return &worst[n_worst++];
}

static void note(ck_machine *machine, const lw_tactic *t, const ck_case *c, ck_regime regime, const verdict *v) {
    ck_worst *w = worst_of(t, c->dtype);
    double share = v->bound > 0 ? v->nmse / v->bound : v->nmse, most = w->bound > 0 ? w->nmse / w->bound : w->nmse;
    w->cases++;
    if (w->cases == 1 || share > most) {
        w->nmse = v->nmse;
        w->bound = v->bound;
        w->regime = regime;
        memcpy(w->shape, c->shape, sizeof w->shape);
    }
    if (v->max_share > w->max_share) w->max_share = v->max_share;
    if (v->status == LW_OK) machine->passed++;
    else machine->failed++, w->failed++;
    if (v->status != LW_OK || machine->verbose)
        printf("%s %s %s [%s] %s (%s): nmse %.3g of %.3g%s%s\n", v->status == LW_OK ? "ok  " : "FAIL", t->name,
               lw_dtype_name(c->dtype), c->shape, ck_regime_name(regime), c->from, v->nmse, v->bound,
               v->status == LW_OK ? "" : ": ", v->status == LW_OK ? "" : v->err.message);
}

/* A GPU's backend has no references under its tactics: a case that none of them takes (channels that are no whole
 * 16-byte vectors) is one that no network records. */
static bool not_taken(const ck_machine *machine, const verdict *v) {
    return machine->backend->device != LW_DEVICE_CPU && v->status == LW_EINTERNAL &&
           strstr(v->err.message, "has no tactic for it");
}

static void check_tactic(ck_machine *machine, lw_params *params, const ck_case *c, ck_regime regime, const ck_image *in,
                         const lw_tactic *t, const ck_outputs *truth, const ck_outputs *naive) {
    ck_outputs out = {0};
    verdict v = {0};
    bool used = true;
    if (machine->tactic && !strstr(t->name, machine->tactic)) return;
    v.status = run_tactic(machine, params, c, in, t, &out, &used, &v.err);
    if (!used || not_taken(machine, &v)) machine->unsupported++;
    else {
        if (v.status == LW_OK)
            judge(ck_op_of(c->kind), t, t->takes & LW_TAKES_ROUNDING ? naive : truth, naive, &out, &v);
        note(machine, t, c, regime, &v);
    }
    outputs_free(&out);
}

static void round_view(ck_image *image, const lw_view *v, float factor) {
    float *at = (float *)(void *)ck_at(image, *v);
    for (int32_t g = 0; g < v->g; g++)
        for (int32_t n = 0; n < v->n; n++)
            for (int64_t i = 0; i < (int64_t)v->w * v->c; i++) {
                float *x = at + lw_view_index(v, g, n, 0, i / v->c) + i % v->c;
                *x = lw_bf16_to_f32(lw_f32_to_bf16(*x * factor)) / factor;
            }
}

/* What attention in bf16 multiplies: its queries are scaled, for powers of two, before they are rounded. */
static void round_operands(const lw_attention_args *m, ck_image *image) {
    round_view(image, &m->q, m->scale * 1.44269504088896341f);
    round_view(image, &m->k, 1);
    round_view(image, &m->v, 1);
}

/* The guards are NaN: a reference that reads them would agree with a tactic that does. */
static lw_status expect_finite(const ck_outputs *truth, lw_error *err) {
    for (int32_t i = 0; i < truth->n; i++)
        for (int64_t k = 0; k < truth->count[i]; k++)
            if (!isfinite(truth->value[i][k]))
                return lw_fail(err, LW_EINTERNAL, "the truth itself is %g at value %lld of output %d",
                               truth->value[i][k], (long long)k, i);
    return LW_OK;
}

static void check_regime(ck_machine *machine, const ck_case *c, ck_regime regime) {
    lw_backend *b = machine->backend;
    lw_tensor_source source = ck_source(&machine->seed);
    lw_params *host = NULL, *mine = NULL;
    ck_image in = {0}, rounded = {0};
    ck_outputs truth = {0}, naive = {0};
    const lw_tactic *split = split_tactic(c->kind);
    lw_error err = {.message = ""};
    lw_status status = LW_OK;
    LW_GO(lw_params_new(&host, &source, &err));
    if (b->device != LW_DEVICE_CPU) LW_GO(lw_params_new(&mine, &source, &err));
    if (!ck_image_make(&in, c->bytes, c->n_buffers)) LW_GO(lw_fail(&err, LW_ENOMEM, "no memory for a case"));
    ck_make_inputs(&in, c, regime, machine->seed);
    LW_GO(get_truth(machine, host, c, &in, &truth, &err));
    if (regime != CK_NAN) LW_GO(expect_finite(&truth, &err));
    if (is_half(c->dtype)) LW_GO(run_reference(machine, host, c, &c->m, c->bytes, &in, split, &naive, &err));
    if (c->kind == LW_OP_ATTENTION && c->dtype == LW_F32 && b->precision == LW_PRECISION_BF16) {
        LW_GO(copy_image(&rounded, &in, &err));
        round_operands(&c->m.attention, &rounded);
        LW_GO(run_reference(machine, host, c, &c->m, c->bytes, &rounded, NULL, &naive, &err));
    }
    if (!naive.n) naive = truth;
    for (int32_t i = 0; i < b->n_tactics; i++)
        if (b->tactics[i]->kind == c->kind)
            check_tactic(machine, mine ? mine : host, c, regime, &in, b->tactics[i], &truth, &naive);
    if (split && b->device == LW_DEVICE_CPU) check_tactic(machine, host, c, regime, &in, split, &truth, &naive);
out:
    if (status != LW_OK) {
        machine->failed++;
        printf("FAIL %s %s [%s] %s (%s): %s\n", lw_op_name(c->kind), lw_dtype_name(c->dtype), c->shape,
               ck_regime_name(regime), c->from, err.message);
    }
    if (naive.n && naive.value[0] != truth.value[0]) outputs_free(&naive);
    outputs_free(&truth);
    ck_image_free(&in);
    ck_image_free(&rounded);
    lw_params_free(host, machine->reference);
    lw_params_free(mine, b);
}

/* On a GPU masked keys are multiplied by zero, not left out: a NaN among them reaches every query. */
static bool spreads_nan(const ck_machine *machine, const ck_case *c) {
    return machine->backend->device != LW_DEVICE_CPU && c->kind == LW_OP_ATTENTION && c->m.attention.causal;
}

void ck_check_case(ck_machine *machine, const ck_case *c) {
    for (int r = 0; r < CK_N_REGIMES; r++)
        if (c->regimes & CK_IN(r) && !(r == CK_NAN && spreads_nan(machine, c))) check_regime(machine, c, (ck_regime)r);
}

void ck_print_worst(void) {
    printf("%-20s %-5s %7s %6s %10s %10s %6s  worst at\n", "tactic", "dtype", "cases", "failed", "nmse", "bound",
           "max");
    for (int32_t i = 0; i < n_worst; i++) {
        const ck_worst *w = &worst[i];
        printf("%-20s %-5s %7lld %6lld %10.2g %10.2g ", w->tactic, lw_dtype_name(w->dtype), (long long)w->cases,
               (long long)w->failed, w->nmse, w->bound);
        if (is_half(w->dtype)) printf("%5.0f%%", w->max_share * 100);
        else printf("%6s", "-");
        printf("  %s (%s)\n", w->shape, ck_regime_name(w->regime));
    }
}
