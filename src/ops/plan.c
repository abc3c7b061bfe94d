/* SPDX-License-Identifier: MIT
 * Planning: a recorded program becomes a list of single launches with tactics, workspaces and addresses.
 *
 *   lower   each op gets the tactic that was chosen for it by tuning, else the first that supports it; what the tactic
 *           does not take is split off into apply and combine ops; statistics that no tactic reads are left out
 *   place   each temporary gets an offset: largest first, at the lowest place free over its whole life
 *   run     walks the list; nothing is allocated and nothing decided */
#include "ops/backend.h"

#include <string.h>

#include "ops/pass.h"
#include "ops/tune.h"

typedef struct step {
    lw_op op; /* n_member is 1 but for tactics that take all members */
    const lw_tactic *tactic;
    void *state;
    size_t workspace_bytes;
    int32_t workspace; /* buffer, -1: none */
    double ms;
} step;

typedef struct place {
    int64_t bytes, off;
    int32_t first, last; /* steps of first and last use; first < 0: never used */
    bool temp;
} place;

struct lw_plan {
    lw_backend *backend;
    lw_plan_options options;
    const lw_program *program;
    lw_arena *arena;
    lw_program *lowered; /* buffers and ops added by lowering live here */
    bool *unmade;        /* by buffer of the program: row statistics that no tactic writes */
    step *steps;
    int32_t n_steps, cap_steps;
    place *places; /* by buffer, workspaces after the program's */
    int32_t n_places;
    int64_t temp_bytes;
    char **bases;
    double flop;
    int32_t n_runs; /* since something was bound */
    void *graph;
};

/* ---- lowering */

static lw_status no_memory(const lw_plan *plan, lw_error *err) {
    return lw_fail(err, LW_ENOMEM, "no memory to plan program %s", plan->program->name);
}

static lw_status add_step(lw_plan *plan, const lw_op *op, const lw_tactic *tactic, lw_error *err) {
    if (plan->n_steps == plan->cap_steps) {
        int32_t cap = plan->cap_steps ? plan->cap_steps * 2 : 128;
        step *grown = lw_realloc(plan->steps, (size_t)cap, sizeof *grown);
        if (!grown) return no_memory(plan, err);
        plan->steps = grown;
        plan->cap_steps = cap;
    }
    plan->steps[plan->n_steps++] = (step){.op = *op, .tactic = tactic, .workspace = -1};
    return LW_OK;
}

static lw_status lower(lw_plan *plan, const lw_op *op, lw_error *err);

/* What a tactic may take in this plan. */
static uint32_t takes(const lw_plan *plan, const lw_tactic *t) {
    return plan->options.unfused ? t->takes & LW_TAKES_MEMBERS : t->takes;
}

static bool prologue_plain(const lw_prologue *in, const lw_view *out) {
    return !lw_view_is(in->b) && in->norm.kind == LW_NORM_NONE && in->act == LW_ACT_NONE && !in->up2 &&
           lw_view_dense(&in->a) && in->a.g == out->g && in->a.n == out->n;
}

/* The number of channels and rows that a prologue gives. */
static lw_view prologue_temp(lw_plan *plan, const lw_prologue *in, const lw_view *out) {
    int32_t up = in->up2 ? 2 : 1;
    return lw_rec_temp(plan->lowered, in->a.dtype, out->g, out->n, in->a.h * up, in->a.w * up,
                       lw_prologue_channels(in));
}

/* An op of n members; their args are zero. */
static lw_args *new_args(lw_plan *plan, lw_op *op, lw_op_kind kind, const char *name, int32_t n) {
    lw_args *m = lw_arena_alloc(plan->arena, (size_t)n, sizeof *m);
    *op = (lw_op){.kind = kind, .n_member = n, .name = name, .m = m};
    return m;
}

static lw_status lower_prologue(lw_plan *plan, lw_op *product, lw_error *err) {
    lw_op apply;
    lw_args *m = new_args(plan, &apply, LW_OP_APPLY, product->name, product->n_member);
    if (!m) return no_memory(plan, err);
    for (int32_t k = 0; k < product->n_member; k++) {
        lw_product_args *p = &product->m[k].product;
        lw_view made = prologue_temp(plan, &p->in, &p->out);
        m[k].apply = (lw_apply_args){.in = p->in, .out = made};
        if (p->in.norm.kind == LW_NORM_LAYER) m[k].apply.in.norm.stats_a = LW_NO_VIEW; /* it makes its own */
        p->in = lw_plain(made);
    }
    return lower(plan, &apply, err);
}

/* The shortcut as a product of its own, whose output becomes the residual. */
static lw_status lower_shortcut(lw_plan *plan, lw_op *op, lw_error *err) {
    lw_op product;
    lw_args *m = new_args(plan, &product, LW_OP_CONV2D, op->name, op->n_member);
    if (!m) return no_memory(plan, err);
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_product_args *p = &op->m[k].product;
        lw_view made = lw_rec_temp(plan->lowered, p->out.dtype, p->out.g, p->out.n, p->out.h, p->out.w, p->out.c);
        m[k].product = (lw_product_args){
            .in = lw_plain(p->shortcut_a),
            .w = p->shortcut_w,
            .bias = p->shortcut_bias,
            .kh = 1,
            .kw = 1,
            .stride = 1,
            .epi = {.addend = LW_NO_VIEW, .scale = LW_NO_VIEW, .residual = LW_NO_VIEW},
            .shortcut_a = LW_NO_VIEW,
            .shortcut_b = LW_NO_VIEW,
            .shortcut_w = LW_NO_PARAM,
            .shortcut_bias = LW_NO_PARAM,
            .out = made,
            .row_stats = LW_NO_VIEW};
        m[k].product.in.b = p->shortcut_b;
        p->epi.residual = made;
        p->shortcut_a = p->shortcut_b = LW_NO_VIEW;
        p->shortcut_w = p->shortcut_bias = LW_NO_PARAM;
    }
    return lower(plan, &product, err);
}

/* Takes off what the tactic does not take, from the first such field on. True if something was taken off; *rest then
 * holds it. */
static bool split_epilogue(uint32_t takes, lw_epilogue *epi, lw_epilogue *rest) {
    *rest = (lw_epilogue){.addend = LW_NO_VIEW, .scale = LW_NO_VIEW, .residual = LW_NO_VIEW};
    bool split = false;
    if (lw_view_is(epi->addend) && !(takes & LW_TAKES_ADDEND)) split = true;
    if (split) rest->addend = epi->addend, epi->addend = LW_NO_VIEW;
    if (epi->act != LW_ACT_NONE && !(takes & (epi->act == LW_ACT_GEGLU ? LW_TAKES_GEGLU : LW_TAKES_ACT)))
        split = true;
    if (split) rest->act = epi->act, epi->act = LW_ACT_NONE;
    if (lw_view_is(epi->scale) && !(takes & LW_TAKES_SCALE)) split = true;
    if (split) rest->scale = epi->scale, epi->scale = LW_NO_VIEW;
    if (lw_view_is(epi->residual) && (!(takes & LW_TAKES_RESIDUAL) ||
                                      (!(takes & LW_TAKES_ANY_RESIDUAL) && !lw_view_dense(&epi->residual))))
        split = true;
    if (split) rest->residual = epi->residual, epi->residual = LW_NO_VIEW;
    return split;
}

/* What is split off a product before (shortcut, prologue) and after (rest) the tactic's own op. */
typedef struct halves {
    bool shortcut, prologue, epilogue;
    lw_epilogue rest;
} halves;

static halves split_product(uint32_t takes, const lw_product_args *p) {
    lw_epilogue epi = p->epi;
    halves h = {.prologue = !(takes & LW_TAKES_PROLOGUE) && !prologue_plain(&p->in, &p->out)};
    h.epilogue = split_epilogue(takes, &epi, &h.rest);
    /* A shortcut is added last: it can't stay before something that is split off. */
    h.shortcut = lw_view_is(p->shortcut_a) && (!(takes & LW_TAKES_SHORTCUT) || h.epilogue);
    return h;
}

/* Members stay together only if the same is split off each. */
static bool split_alike(uint32_t takes, const lw_op *op) {
    halves a = split_product(takes, &op->m[0].product);
    for (int32_t k = 1; k < op->n_member; k++) {
        halves b = split_product(takes, &op->m[k].product);
        if (a.shortcut != b.shortcut || a.prologue != b.prologue || a.epilogue != b.epilogue ||
            a.rest.act != b.rest.act || lw_view_is(a.rest.addend) != lw_view_is(b.rest.addend) ||
            lw_view_is(a.rest.scale) != lw_view_is(b.rest.scale) ||
            lw_view_is(a.rest.residual) != lw_view_is(b.rest.residual))
            return false;
    }
    return true;
}

static lw_status lower_product(lw_plan *plan, const lw_op *op, const lw_tactic *t, lw_error *err) {
    lw_op mine, combine;
    lw_args *m = new_args(plan, &mine, op->kind, op->name, op->n_member);
    if (!m) return no_memory(plan, err);
    memcpy(m, op->m, (size_t)op->n_member * sizeof *m);
    const halves h = split_product(takes(plan, t), &m->product);
    if (h.shortcut) LW_TRY(lower_shortcut(plan, &mine, err));
    if (h.prologue) LW_TRY(lower_prologue(plan, &mine, err));
    lw_args *c = new_args(plan, &combine, LW_OP_COMBINE, op->name, op->n_member);
    if (!c) return no_memory(plan, err);
    bool split = false;
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_product_args *p = &m[k].product;
        lw_view final = p->out;
        lw_epilogue rest;
        if (!split_epilogue(takes(plan, t), &p->epi, &rest)) continue;
        split = true;
        p->out = lw_rec_temp(plan->lowered, final.dtype, final.g, final.n, final.h, final.w,
                             rest.act == LW_ACT_GEGLU ? final.c * 2 : final.c);
        c[k].combine = (lw_combine_args){.in = p->out, .epi = rest, .out = final};
    }
    /* A tactic may exist for the very thing that is now apart (a norm in its linear): what is left is then another's. */
    if (t->supports(plan->backend, plan->program->params, &mine)) LW_TRY(add_step(plan, &mine, t, err));
    else LW_TRY(lower(plan, &mine, err));
    return split ? lower(plan, &combine, err) : LW_OK;
}

static bool is_product(const lw_op *op) { return op->kind == LW_OP_CONV2D || op->kind == LW_OP_LINEAR; }

static bool takes_all_fields(const lw_plan *plan, const lw_tactic *t, const lw_op *op) {
    return !is_product(op) || (takes(plan, t) & LW_TAKES_ALL) == LW_TAKES_ALL;
}

static bool wants_row_stats(const lw_op *op) { return is_product(op) && lw_view_is(op->m->product.row_stats); }

static bool can_run(const lw_plan *plan, const lw_tactic *t, const lw_op *op) {
    if (t->kind != op->kind || (wants_row_stats(op) && !(t->takes & LW_TAKES_ROW_STATS))) return false;
    if (plan->program->exact && t->takes & LW_TAKES_ROUNDING) return false;
    if (plan->options.unfused && t->takes & LW_TAKES_STATS) return false;
    if (op->n_member > 1 && (!(t->takes & LW_TAKES_MEMBERS) ||
                             (!takes_all_fields(plan, t, op) && !split_alike(takes(plan, t), op))))
        return false;
    return t->supports(plan->backend, plan->program->params, op);
}

static bool is_tuned(const lw_plan *plan, const lw_op *op, lw_choice *choice) {
    return plan->options.choices &&
           lw_choices_get(plan->options.choices, lw_op_signature(plan->program->params, op), choice);
}

/* Tuning found each member by itself faster. */
static bool tuned_apart(const lw_plan *plan, const lw_op *op) {
    lw_choice choice;
    return op->n_member > 1 && is_tuned(plan, op, &choice) && !strcmp(choice.tactic, LW_APART);
}

/* What tuning chose, else the first by the backend's order; NULL: none, or each member by itself. */
static const lw_tactic *choose(const lw_plan *plan, const lw_op *op) {
    const lw_backend *b = plan->backend;
    lw_choice choice;
    const bool chosen = is_tuned(plan, op, &choice);
    if (tuned_apart(plan, op)) return NULL;
    for (int32_t i = 0; chosen && i < b->n_tactics; i++)
        if (!strcmp(b->tactics[i]->name, choice.tactic) && can_run(plan, b->tactics[i], op)) return b->tactics[i];
    for (int32_t i = 0; i < b->n_tactics; i++)
        if (can_run(plan, b->tactics[i], op)) return b->tactics[i];
    return NULL;
}

/* Of members that are alike, but too many for one launch, as many as some tactic takes. */
static int32_t most_together(const lw_plan *plan, const lw_op *op) {
    if (plan->options.unfused || tuned_apart(plan, op)) return 1;
    lw_op some = *op;
    for (some.n_member = (op->n_member + 1) / 2; some.n_member > 1; some.n_member = (some.n_member + 1) / 2)
        if (choose(plan, &some)) return some.n_member;
    return 1;
}

/* Members that no tactic takes in one: each lot of members that are alike by itself, then as many of them as one takes,
 * then each member. */
static lw_status lower_apart(lw_plan *plan, const lw_op *op, lw_error *err) {
    bool done[LW_MAX_MEMBERS] = {false}, mixed = false;
    lw_op one = {.kind = op->kind, .n_member = 1, .name = op->name, .m = op->m};
    for (int32_t k = 1; k < op->n_member; k++) {
        lw_op other = one;
        other.m = &op->m[k];
        mixed |= !lw_ops_alike(plan->program->params, &one, &other);
    }
    const int32_t most = mixed ? op->n_member : most_together(plan, op);
    for (int32_t i = 0; i < op->n_member; i++) {
        if (done[i]) continue;
        lw_op lot;
        if (!new_args(plan, &lot, op->kind, op->name, op->n_member)) return no_memory(plan, err);
        lot.n_member = 0;
        one.m = &op->m[i];
        for (int32_t k = i; k < op->n_member; k++) {
            lw_op other = one;
            other.m = &op->m[k];
            if (done[k] || lot.n_member == most || (mixed && !lw_ops_alike(plan->program->params, &one, &other)))
                continue;
            lot.m[lot.n_member++] = op->m[k];
            done[k] = true;
        }
        LW_TRY(lower(plan, &lot, err));
    }
    return LW_OK;
}

/* The halves of products one thing at a time, as an eager framework runs them: cat and norm, act, up; addend, act, scale
 * with residual. True if op was more than one of them, and is now in the plan. */
static lw_status lower_unfused(lw_plan *plan, const lw_op *op, bool *lowered, lw_error *err) {
    lw_op part;
    lw_args *m = new_args(plan, &part, op->kind, op->name, 1);
    if (!m) return no_memory(plan, err);
    *lowered = false;
    *m = *op->m;
    if (op->kind == LW_OP_APPLY) {
        lw_prologue *in = &m->apply.in, rest = lw_plain(LW_NO_VIEW);
        bool norm = in->norm.kind != LW_NORM_NONE || lw_view_is(in->b), act = in->act != LW_ACT_NONE;
        if (norm + act + in->up2 < 2) return LW_OK;
        rest.up2 = in->up2;
        in->up2 = false;
        if (norm && act) rest.act = in->act, in->act = LW_ACT_NONE;
        lw_op after;
        lw_args *am = new_args(plan, &after, op->kind, op->name, 1);
        if (!am) return no_memory(plan, err);
        rest.a = m->apply.out = prologue_temp(plan, in, &op->m->apply.out);
        am->apply = (lw_apply_args){.in = rest, .out = op->m->apply.out};
        *lowered = true;
        LW_TRY(lower(plan, &part, err));
        return lower(plan, &after, err);
    }
    if (op->kind == LW_OP_COMBINE) {
        lw_epilogue *epi = &m->combine.epi, rest = *epi;
        bool addend = lw_view_is(epi->addend), act = epi->act != LW_ACT_NONE,
             sum = lw_view_is(epi->scale) || lw_view_is(epi->residual);
        if (addend + act + sum < 2) return LW_OK;
        epi->scale = epi->residual = LW_NO_VIEW;
        if (addend) epi->act = LW_ACT_NONE, rest.addend = LW_NO_VIEW;
        else rest.act = LW_ACT_NONE;
        lw_op after;
        lw_args *am = new_args(plan, &after, op->kind, op->name, 1);
        if (!am) return no_memory(plan, err);
        const lw_view *out = &op->m->combine.out;
        m->combine.out = lw_rec_temp(plan->lowered, out->dtype, out->g, out->n, out->h, out->w,
                                     rest.act == LW_ACT_GEGLU ? 2 * out->c : out->c);
        am->combine = (lw_combine_args){.in = m->combine.out, .epi = rest, .out = *out};
        *lowered = true;
        LW_TRY(lower(plan, &part, err));
        return lower(plan, &after, err);
    }
    return LW_OK;
}

/* For a tactic that makes the statistics itself: without those that were recorded. */
static lw_status add_without_stats(lw_plan *plan, const lw_op *op, const lw_tactic *t, lw_error *err) {
    lw_op apply;
    lw_args *m = new_args(plan, &apply, op->kind, op->name, op->n_member);
    if (!m) return no_memory(plan, err);
    memcpy(m, op->m, (size_t)op->n_member * sizeof *m);
    for (int32_t k = 0; k < op->n_member; k++) m[k].apply.in.norm.stats_a = m[k].apply.in.norm.stats_b = LW_NO_VIEW;
    return add_step(plan, &apply, t, err);
}

/* Again, without the statistics of rows that it should leave, since no tactic does or its rows are made behind it; or
 * without those that it should read, since nobody left them. */
static lw_status lower_without_row_stats(lw_plan *plan, const lw_op *op, bool leaves, lw_error *err) {
    lw_op product;
    lw_args *m = new_args(plan, &product, op->kind, op->name, op->n_member);
    if (!m) return no_memory(plan, err);
    memcpy(m, op->m, (size_t)op->n_member * sizeof *m);
    for (int32_t k = 0; k < op->n_member; k++) {
        lw_view *stats = leaves ? &m[k].product.row_stats : &m[k].product.in.norm.stats_a;
        if (leaves) plan->unmade[stats->buf] = true;
        *stats = LW_NO_VIEW;
    }
    return lower(plan, &product, err);
}

static bool splits_epilogue(const lw_plan *plan, const lw_tactic *t, const lw_op *op) {
    return !takes_all_fields(plan, t, op) && split_product(takes(plan, t), &op->m->product).epilogue;
}

static bool reads_unmade(const lw_plan *plan, const lw_op *op) {
    for (int32_t k = 0; is_product(op) && k < op->n_member; k++) {
        const lw_norm *norm = &op->m[k].product.in.norm;
        if (norm->kind == LW_NORM_LAYER && lw_view_is(norm->stats_a) && plan->unmade[norm->stats_a.buf]) return true;
    }
    return false;
}

static lw_status lower(lw_plan *plan, const lw_op *op, lw_error *err) {
    if (reads_unmade(plan, op)) return lower_without_row_stats(plan, op, false, err);
    if (plan->options.unfused) {
        if (op->n_member > 1) return lower_apart(plan, op, err);
        bool lowered;
        LW_TRY(lower_unfused(plan, op, &lowered, err));
        if (lowered) return LW_OK;
    }
    const lw_tactic *t = choose(plan, op);
    if (t && t->takes & LW_TAKES_STATS) return add_without_stats(plan, op, t, err);
    if (t && wants_row_stats(op) && splits_epilogue(plan, t, op)) return lower_without_row_stats(plan, op, true, err);
    if (t) return takes_all_fields(plan, t, op) ? add_step(plan, op, t, err) : lower_product(plan, op, t, err);
    if (op->n_member > 1) return lower_apart(plan, op, err);
    if (wants_row_stats(op)) return lower_without_row_stats(plan, op, true, err);
    return lw_fail(err, LW_EINTERNAL, "op %s (%s): backend %s has no tactic for it", op->name, lw_op_name(op->kind),
                   plan->backend->name);
}

static void note_read(void *user, lw_view *v, bool written) {
    if (!written && lw_view_is(*v)) ((bool *)user)[v->buf] = true;
}

static bool is_needed(const lw_plan *plan, const lw_op *op, const bool *read) {
    if (op->kind != LW_OP_NORM_STATS) return true;
    for (int32_t k = 0; k < op->n_member; k++) {
        int32_t buf = op->m[k].norm_stats.out.buf;
        if (read[buf] || plan->lowered->buffers[buf].kind != LW_BUFFER_TEMP) return true;
    }
    return false;
}

/* Statistics that no tactic reads. */
static lw_status drop_unread(lw_plan *plan, lw_error *err) {
    bool *read = lw_alloc((size_t)plan->lowered->n_buffers + 1, sizeof *read);
    if (!read) return no_memory(plan, err);
    for (int32_t i = 0; i < plan->n_steps; i++) {
        lw_op *op = &plan->steps[i].op;
        for (int32_t k = 0; k < op->n_member; k++) lw_op_views(op->kind, &op->m[k], note_read, read);
    }
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_steps; i++)
        if (is_needed(plan, &plan->steps[i].op, read)) plan->steps[n++] = plan->steps[i];
    plan->n_steps = n;
    lw_free(read);
    return LW_OK;
}

/* ---- placing */

typedef struct touch {
    lw_plan *plan;
    int32_t at;
} touch;

static void note_use(void *user, lw_view *v, bool written) {
    touch *t = user;
    (void)written;
    if (!lw_view_is(*v)) return;
    place *p = &t->plan->places[v->buf];
    if (p->first < 0) p->first = t->at;
    p->last = t->at;
}

static bool lives_overlap(const place *a, const place *b) { return a->first <= b->last && b->first <= a->last; }

/* Lowest offset at which p overlaps none of the placed ones that live at the same time. order[0..n) are placed, sorted
 * by offset. */
static int64_t find_gap(const place *places, const int32_t *order, int32_t n, const place *p) {
    int64_t off = 0;
    for (int32_t i = 0; i < n; i++) {
        const place *q = &places[order[i]];
        if (!lives_overlap(p, q)) continue;
        if (q->off >= off + p->bytes) break;
        if (q->off + q->bytes > off) off = q->off + q->bytes;
    }
    return off;
}

static lw_status place_all(lw_plan *plan, lw_error *err) {
    int32_t n = plan->n_places, n_placed = 0;
    int32_t *todo = lw_alloc((size_t)n, sizeof *todo), *order = lw_alloc((size_t)n, sizeof *order);
    lw_status status = todo && order ? LW_OK : no_memory(plan, err);
    int32_t n_todo = 0;
    for (int32_t i = 0; status == LW_OK && i < n; i++)
        if (plan->places[i].temp && plan->places[i].first >= 0) todo[n_todo++] = i;
    while (n_todo > 0 && status == LW_OK) {
        int32_t best = 0;
        for (int32_t i = 1; i < n_todo; i++)
            if (plan->places[todo[i]].bytes > plan->places[todo[best]].bytes) best = i;
        int32_t id = todo[best];
        todo[best] = todo[--n_todo];
        place *p = &plan->places[id];
        p->off = find_gap(plan->places, order, n_placed, p);
        if (p->off + p->bytes > plan->temp_bytes) plan->temp_bytes = p->off + p->bytes;
        int32_t k = n_placed++;
        for (; k > 0 && plan->places[order[k - 1]].off > p->off; k--) order[k] = order[k - 1];
        order[k] = id;
    }
    lw_free(todo);
    lw_free(order);
    return status;
}

static lw_status lay_out(lw_plan *plan, lw_error *err) {
    const lw_program *low = plan->lowered;
    int32_t n_workspaces = 0;
    for (int32_t i = 0; i < plan->n_steps; i++)
        if (plan->steps[i].workspace_bytes) plan->steps[i].workspace = low->n_buffers + n_workspaces++;
    plan->n_places = low->n_buffers + n_workspaces;
    plan->places = lw_alloc((size_t)plan->n_places, sizeof *plan->places);
    plan->bases = lw_alloc((size_t)plan->n_places, sizeof *plan->bases);
    if (!plan->places || !plan->bases) return no_memory(plan, err);
    for (int32_t i = 0; i < plan->n_places; i++) {
        bool own = i < low->n_buffers;
        plan->places[i] = (place){.first = -1,
                                  .temp = !own || low->buffers[i].kind == LW_BUFFER_TEMP,
                                  .bytes = own ? (int64_t)lw_round_up((size_t)low->buffers[i].bytes, 64) : 0};
    }
    for (int32_t i = 0; i < plan->n_steps; i++) {
        step *s = &plan->steps[i];
        touch t = {plan, i};
        for (int32_t k = 0; k < s->op.n_member; k++) lw_op_views(s->op.kind, &s->op.m[k], note_use, &t);
        if (s->workspace >= 0)
            plan->places[s->workspace] =
                (place){.temp = true, .bytes = (int64_t)lw_round_up(s->workspace_bytes, 64), .first = i, .last = i};
    }
    return place_all(plan, err);
}

/* ---- the plan */

/* The lowered program begins with the recorded one's buffers, so that views keep their numbers. */
static lw_status copy_buffers(lw_plan *plan, lw_error *err) {
    const lw_program *from = plan->program;
    lw_program *to = lw_program_new(from->name, from->params, from->act);
    plan->lowered = to;
    if (!to) return no_memory(plan, err);
    to->buffers = lw_alloc((size_t)from->n_buffers, sizeof *to->buffers);
    if (!to->buffers) return no_memory(plan, err);
    if (from->n_buffers) memcpy(to->buffers, from->buffers, (size_t)from->n_buffers * sizeof *to->buffers);
    to->n_buffers = to->cap_buffers = from->n_buffers;
    plan->unmade = lw_alloc((size_t)from->n_buffers + 1, sizeof *plan->unmade);
    return plan->unmade ? LW_OK : no_memory(plan, err);
}

lw_status lw_plan_make(lw_plan **out, lw_backend *backend, const lw_program *program, lw_error *err) {
    return lw_plan_make_with(out, backend, &(lw_plan_options){0}, program, err);
}

lw_status lw_plan_make_with(lw_plan **out, lw_backend *backend, const lw_plan_options *options,
                            const lw_program *program, lw_error *err) {
    if (program->status != LW_OK) return lw_fail(err, program->status, "%s", program->error.message);
    lw_status status = LW_OK;
    lw_plan *plan = lw_alloc(1, sizeof *plan);
    if (!plan) return lw_fail(err, LW_ENOMEM, "no memory to plan program %s", program->name);
    *plan = (lw_plan){.backend = backend, .options = *options, .program = program, .arena = lw_arena_new()};
    if (!plan->arena) {
        status = no_memory(plan, err);
        goto out;
    }
    LW_GO(copy_buffers(plan, err));
    for (int32_t i = 0; i < program->n_ops; i++) {
        plan->flop += lw_op_cost(program->params, &program->ops[i]).flop;
        LW_GO(lower(plan, &program->ops[i], err));
    }
    if (plan->lowered->status != LW_OK) {
        status = lw_fail(err, plan->lowered->status, "%s", plan->lowered->error.message);
        goto out;
    }
    LW_GO(drop_unread(plan, err));
    for (int32_t i = 0; i < plan->n_steps; i++) {
        step *s = &plan->steps[i];
        LW_GO(s->tactic->prepare(backend, program->params, &s->op, &s->state, &s->workspace_bytes, err));
    }
    LW_GO(lay_out(plan, err));
out:
    if (status == LW_OK) *out = plan;
    else lw_plan_free(plan);
    return status;
}

static void drop_graph(lw_plan *plan) {
    if (plan->graph) plan->backend->behind->free_graph(plan->backend, plan->graph);
    plan->graph = NULL;
    plan->n_runs = 0;
}

void lw_plan_free(lw_plan *plan) {
    if (!plan) return;
    drop_graph(plan);
    for (int32_t i = 0; i < plan->n_steps; i++)
        if (plan->steps[i].state) plan->steps[i].tactic->release(plan->steps[i].state);
    lw_free(plan->steps);
    lw_free(plan->places);
    lw_free(plan->bases);
    lw_free(plan->unmade);
    lw_program_free(plan->lowered);
    lw_arena_free(plan->arena);
    lw_free(plan);
}

uint64_t lw_plan_temp_bytes(const lw_plan *plan) { return (uint64_t)plan->temp_bytes; }
double lw_plan_flop(const lw_plan *plan) { return plan->flop; }

static int32_t find_extern(const lw_plan *plan, const char *name) {
    const lw_program *low = plan->lowered;
    for (int32_t i = 0; i < low->n_buffers; i++)
        if (low->buffers[i].kind == LW_BUFFER_EXTERN && !strcmp(low->buffers[i].name, name)) return i;
    return -1;
}

int64_t lw_plan_extern_bytes(const lw_plan *plan, const char *name) {
    int32_t i = find_extern(plan, name);
    return i < 0 ? 0 : plan->lowered->buffers[i].bytes;
}

lw_status lw_plan_bind(lw_plan *plan, const char *name, void *address, lw_error *err) {
    int32_t i = find_extern(plan, name);
    if (i < 0) return lw_fail(err, LW_EINTERNAL, "program %s has no buffer named %s", plan->program->name, name);
    if (plan->bases[i] != address) drop_graph(plan);
    plan->bases[i] = address;
    return LW_OK;
}

void lw_plan_bind_temp(lw_plan *plan, void *temp) {
    for (int32_t i = 0; i < plan->n_places; i++) {
        if (!plan->places[i].temp) continue;
        if (plan->bases[i] != (char *)temp + plan->places[i].off) drop_graph(plan);
        plan->bases[i] = (char *)temp + plan->places[i].off;
    }
}

/* ---- running */

static void range(const lw_plan *plan, const char *name) {
    if (plan->backend->behind) plan->backend->behind->range(plan->backend, name);
}

static lw_status run_step(lw_plan *plan, step *s, void *queue, lw_error *err) {
    lw_run run = {
        .bases = plan->bases, .workspace = s->workspace < 0 ? NULL : plan->bases[s->workspace], .queue = queue};
    range(plan, s->op.name);
    lw_status status = s->tactic->run(plan->backend, plan->program->params, &s->op, s->state, &run, err);
    range(plan, NULL);
    return status;
}

/* Runs all ops into a graph; marks, where given, holds n_steps + 1 marks: before each op and after the last. */
static lw_status capture(lw_plan *plan, void **marks, void **graph, lw_error *err) {
    lw_backend *b = plan->backend;
    void *queue = NULL;
    LW_TRY(b->behind->begin_capture(b, &queue, err));
    lw_status status = marks ? b->behind->mark(b, queue, &marks[0], err) : LW_OK;
    for (int32_t i = 0; i < plan->n_steps && status == LW_OK; i++) {
        status = run_step(plan, &plan->steps[i], queue, err);
        if (marks && status == LW_OK) status = b->behind->mark(b, queue, &marks[i + 1], err);
    }
    lw_status ended = b->behind->end_capture(b, queue, status == LW_OK ? graph : NULL, status == LW_OK ? err : NULL);
    return status == LW_OK ? ended : status;
}

static lw_status run_or_replay(lw_plan *plan, lw_error *err) {
    if (plan->backend->behind && !plan->options.no_graph && plan->n_runs > 0) {
        if (!plan->graph) LW_TRY(capture(plan, NULL, &plan->graph, err));
        return plan->backend->behind->replay(plan->backend, plan->graph, err);
    }
    for (int32_t i = 0; i < plan->n_steps; i++) LW_TRY(run_step(plan, &plan->steps[i], NULL, err));
    plan->n_runs++;
    return LW_OK;
}

lw_status lw_plan_run(lw_plan *plan, lw_error *err) {
    range(plan, plan->program->name);
    lw_status status = run_or_replay(plan, err);
    range(plan, NULL);
    return status;
}

/* On a device: one graph with a mark between ops, so that no gap of the host's is timed with them. */
static lw_status run_marked(lw_plan *plan, lw_error *err) {
    lw_backend *b = plan->backend;
    void *graph = NULL, **marks = lw_alloc((size_t)plan->n_steps + 1, sizeof *marks);
    if (!marks) return no_memory(plan, err);
    lw_status status = LW_OK;
    if (plan->n_runs == 0) LW_GO(lw_plan_run(plan, err));
    LW_GO(capture(plan, marks, &graph, err));
    LW_GO(b->behind->replay(b, graph, err));
    LW_GO(b->behind->replay(b, graph, err)); /* the first one loads the graph */
    LW_GO(b->behind->wait(b, marks[plan->n_steps], err));
    for (int32_t i = 0; i < plan->n_steps; i++) plan->steps[i].ms = b->behind->between_ms(b, marks[i], marks[i + 1]);
out:
    for (int32_t i = 0; i <= plan->n_steps; i++)
        if (marks[i]) b->behind->free_mark(b, marks[i]);
    if (graph) b->behind->free_graph(b, graph);
    lw_free(marks);
    return status;
}

lw_status lw_plan_run_timed(lw_plan *plan, lw_error *err) {
    if (plan->backend->behind) return run_marked(plan, err);
    for (int32_t i = 0; i < plan->n_steps; i++) {
        double begin = lw_now_ms();
        LW_TRY(run_step(plan, &plan->steps[i], NULL, err));
        plan->steps[i].ms = lw_now_ms() - begin;
    }
    return LW_OK;
}

/* ---- host memory and marks of any backend */

lw_status lw_alloc_host(lw_backend *b, size_t bytes, void **out, lw_error *err) {
    if (b->behind) return b->behind->alloc_host(b, bytes, out, err);
    *out = lw_alloc_aligned(bytes);
    return *out ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory for %zu bytes of staging", bytes);
}

void lw_free_host(lw_backend *b, void *p) {
    if (!p) return;
    if (b->behind) b->behind->free_host(b, p);
    else lw_free(p);
}

lw_status lw_fetch(lw_backend *b, void *host, const void *src, size_t bytes, lw_error *err) {
    return b->behind ? b->behind->fetch(b, host, src, bytes, err) : b->download(b, host, src, bytes, err);
}

lw_status lw_mark(lw_backend *b, void **mark, lw_error *err) {
    return b->behind ? b->behind->mark(b, NULL, mark, err) : LW_OK;
}

lw_status lw_wait(lw_backend *b, void *mark, lw_error *err) {
    return b->behind && mark ? b->behind->wait(b, mark, err) : LW_OK;
}

void lw_free_mark(lw_backend *b, void *mark) {
    if (b->behind && mark) b->behind->free_mark(b, mark);
}

uint32_t lw_backend_takes(const lw_backend *b) {
    uint32_t takes = 0;
    for (int32_t i = 0; i < b->n_tactics; i++) takes |= b->tactics[i]->takes;
    return takes;
}

int32_t lw_plan_n_ops(const lw_plan *plan) { return plan->n_steps; }

lw_planned lw_plan_op(const lw_plan *plan, int32_t i) {
    const step *s = &plan->steps[i];
    return (lw_planned){.op = &s->op,
                        .tactic = s->tactic,
                        .workspace_bytes = s->workspace_bytes,
                        .cost = lw_op_cost(plan->program->params, &s->op),
                        .ms = s->ms};
}

uint64_t lw_plan_hash(const lw_plan *plan) {
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (int32_t i = 0; i < plan->n_steps; i++)
        for (const char *c = plan->steps[i].tactic->name;; c++) {
            h = (h ^ (unsigned char)*c) * 0x100000001b3u;
            if (!*c) break;
        }
    return h;
}
