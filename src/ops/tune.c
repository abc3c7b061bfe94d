/* SPDX-License-Identifier: MIT
 * Timing of tactics. Each op that has a choice becomes a program of its own: some copies of the op in a row, each with
 * weights of its own, so that a copy finds its weights no warmer than in a network, and its input as warm. The program
 * is planned once for each tactic, so that the plain ops a tactic leaves over are timed with it. Tactics take turns,
 * because a machine's speed drifts, and the best turn counts. */
#include "ops/tune.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_TACTICS = 24,
    MAX_COPIES = 4,
    MAX_DEVICE_COPIES = 64,
    WARM_DEVICE_COPIES = 16,
    MAX_BUFFERS = 64,
    MIN_ROUNDS = 3,
    STALE_ROUNDS = 25
};

static const double default_budget_ms = 100, copies_flop = 24e9;
/* A device that runs behind the host takes microseconds an op, and nobody else is on it. */
static const double device_budget_ms = 10, device_copies_flop = 1e12;
/* Another tactic has to win by so much and in so many of the rounds, of which each compares turns of the same moment:
 * what is less may be chance, and the first one needs no more memory. */
static const double clear_win = 0.97, most_rounds = 2.0 / 3;
/* A long tactic that stays so many times behind the best has no further turn. */
static const double hopeless = 3;

typedef struct found {
    const lw_program *program;
    lw_op op;
    uint64_t signature;
    int32_t uses;
} found;

/* ---- what there is to choose */

static bool is_reference(const lw_tactic *t) {
    size_t n = strlen(t->name);
    return n > 4 && !strcmp(t->name + n - 4, "_ref");
}

/* The choice of an op whose members are better off one by one. */
static const lw_tactic apart = {.name = LW_APART};

static int32_t candidates(const lw_backend *b, const lw_params *params, const lw_op *op,
                          const lw_tactic *out[MAX_TACTICS]) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_tactics && n < MAX_TACTICS; i++) {
        const lw_tactic *t = b->tactics[i];
        if (t->kind != op->kind || is_reference(t) || !t->supports(b, params, op)) continue;
        if (t->takes & LW_TAKES_STATS) return 0; /* what it spares is not timed with it */
        if (op->n_member == 1 || t->takes & LW_TAKES_MEMBERS) out[n++] = t;
    }
    if (op->n_member > 1 && n > 0 && n < MAX_TACTICS) out[n++] = &apart;
    return n;
}

/* Adds op to the n that are in all, if there is a choice. */
static int32_t add_found(const lw_backend *b, const lw_program *p, const lw_op *op, int32_t uses, found *all,
                         int32_t n) {
    const lw_tactic *tactics[MAX_TACTICS];
    uint64_t signature = lw_op_signature(p->params, op);
    int32_t at = 0;
    while (at < n && all[at].signature != signature) at++;
    if (at < n) all[at].uses += uses;
    else if (candidates(b, p->params, op, tactics) > 1)
        all[n++] = (found){.program = p, .op = *op, .signature = signature, .uses = uses};
    return n;
}

/* Single ops before those of several members, and a member of each of these too, so that it is known what they take
 * apart. */
static lw_status collect(const lw_backend *b, const lw_program *const *programs, int32_t n_programs, found **out,
                         int32_t *n_out, lw_error *err) {
    int32_t total = 0, n = 0;
    for (int32_t i = 0; i < n_programs; i++) total += programs[i]->n_ops;
    found *all = lw_alloc(2 * (size_t)total + 1, sizeof *all);
    if (!all) return lw_fail(err, LW_ENOMEM, "tuning: no memory for a list of %d ops", total);
    for (int32_t several = 0; several < 2; several++)
        for (int32_t i = 0; i < n_programs; i++)
            for (int32_t k = 0; k < programs[i]->n_ops; k++) {
                const lw_op *op = &programs[i]->ops[k];
                const lw_tactic *tactics[MAX_TACTICS];
                lw_op one = {.kind = op->kind, .n_member = 1, .name = op->name, .m = op->m};
                if (several == (op->n_member > 1)) n = add_found(b, programs[i], op, 1, all, n);
                else if (!several && candidates(b, programs[i]->params, op, tactics) > 1)
                    n = add_found(b, programs[i], &one, 0, all, n);
            }
    *out = all;
    *n_out = n;
    return LW_OK;
}

/* ---- weights of our own: tensor "COPY.ID" has the shape of parameter ID of the op's program */

static lw_status weight_dims(void *user, const char *name, int64_t dims[4], lw_error *err) {
    (void)err;
    lw_param_dims(user, (lw_param){atoi(strchr(name, '.') + 1)}, dims);
    return LW_OK;
}

/* Numbers of both signs about as large as a network's, none of them denormal. */
static lw_status weight_read(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    int64_t d[4];
    LW_TRY(weight_dims(user, name, d, err));
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t o = 0; o < n; o++) {
        uint32_t x = (uint32_t)(row + o) * 2654435761u + 1;
        for (int64_t i = 0; i < each; i++) {
            x = x * 1664525u + 1013904223u;
            *dst++ = ((float)(x >> 8) * 0x1p-23f - 1) * 0.05f;
        }
    }
    return LW_OK;
}

/* ---- one op's program */

typedef struct rig {
    lw_backend *backend;
    const found *f;
    lw_choices *choices; /* of what was tuned before */
    lw_params *params;
    lw_program *program;
    int32_t copies, n_tactics;
    const lw_tactic *tactics[MAX_TACTICS];
    lw_plan *plans[MAX_TACTICS];
    double best_ms[MAX_TACTICS];
    int32_t rounds[MAX_TACTICS],
        wins[MAX_TACTICS];        /* turns taken, and those that beat the first tactic's of the round */
    int32_t buffers[MAX_BUFFERS]; /* of the op's own program; here they are extern "bI" */
    void *memory[MAX_BUFFERS];
    lw_dtype dtypes[MAX_BUFFERS];
    int32_t n_buffers;
    void *temp;
    void *marks[2]; /* around a turn, where the backend has them */
} rig;

static void move_view(void *user, lw_view *v, bool written) {
    rig *r = user;
    (void)written;
    if (!lw_view_is(*v)) return;
    int32_t i = 0;
    while (i < r->n_buffers && r->buffers[i] != v->buf) i++;
    char name[16];
    if (i == MAX_BUFFERS) {
        lw_program_fail(r->program, LW_EINTERNAL, "tuning: op %s has over %d buffers", r->f->op.name, MAX_BUFFERS);
        return;
    }
    if (i == r->n_buffers) {
        r->buffers[r->n_buffers] = v->buf;
        r->dtypes[r->n_buffers++] = v->dtype;
    }
    snprintf(name, sizeof name, "b%d", i);
    int64_t words = (r->f->program->buffers[v->buf].bytes + 3) / 4;
    lw_view moved = lw_rec_extern(r->program, name, LW_F32, 1, 1, 1, 1, (int32_t)words);
    v->buf = moved.buf;
}

static void move_param(rig *r, int32_t copy, lw_param *p) {
    char name[32];
    if (!lw_param_is(*p)) return;
    snprintf(name, sizeof name, "%d.%d", copy, p->id);
    *p = lw_rec_take(r->program, name, 0, 0, 0, 0);
}

static void move_params(rig *r, int32_t copy, lw_op_kind kind, lw_args *m) {
    lw_prologue *in = kind == LW_OP_APPLY ? &m->apply.in : NULL;
    if (kind == LW_OP_CONV2D || kind == LW_OP_LINEAR) {
        in = &m->product.in;
        move_param(r, copy, &m->product.w);
        move_param(r, copy, &m->product.bias);
        move_param(r, copy, &m->product.shortcut_w);
        move_param(r, copy, &m->product.shortcut_bias);
    }
    if (!in || in->norm.kind == LW_NORM_NONE) return;
    move_param(r, copy, &in->norm.gamma);
    move_param(r, copy, &in->norm.beta);
}

/* Enough copies that their weights push each other out of the last cache, unless they take too long. A step's weights
 * are many times that cache, so each op of a network finds its own cold. */
static int32_t count_copies(const lw_backend *b, const found *f) {
    int64_t d[4] = {0};
    if (f->op.kind != LW_OP_CONV2D && f->op.kind != LW_OP_LINEAR) /* no weights; some, for a launch's own time */
        return b->behind ? WARM_DEVICE_COPIES : 1;
    lw_param_dims(f->program->params, f->op.m->product.w, d);
    double bytes = (double)(d[0] * d[1] * d[2] * d[3] * f->op.n_member) * (double)lw_dtype_bytes(b->act),
           flop = lw_op_cost(f->program->params, &f->op).flop, most_flop = b->behind ? device_copies_flop : copies_flop;
    int64_t cache = b->cache_bytes;
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (!cache) cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    if (cache <= 0) cache = 32 << 20;
    int32_t copies = 1, most = b->behind ? MAX_DEVICE_COPIES : MAX_COPIES;
    while (copies < most && copies * bytes < 1.5 * (double)cache && (copies + 1) * flop < most_flop) copies++;
    return copies;
}

static lw_status record(rig *r, lw_error *err) {
    const found *f = r->f;
    lw_tensor_source source = {.user = f->program->params, .dims = weight_dims, .read = weight_read};
    LW_TRY(lw_params_new(&r->params, &source, err));
    r->program = lw_program_new("tuning", r->params, f->program->act);
    if (!r->program) return lw_fail(err, LW_ENOMEM, "tuning: no memory for op %s", f->op.name);
    r->copies = count_copies(r->backend, f);
    for (int32_t c = 0; c < r->copies; c++) {
        lw_rec_op(r->program, f->op.kind, f->op.name);
        lw_args *m = lw_arena_alloc(r->program->arena, (size_t)f->op.n_member, sizeof *m);
        if (!m) {
            lw_program_no_memory(r->program);
            break;
        }
        if (r->program->status != LW_OK) break;
        lw_op *op = &r->program->ops[r->program->n_ops - 1];
        op->m = m;
        op->n_member = f->op.n_member;
        for (int32_t k = 0; k < op->n_member; k++) {
            m[k] = f->op.m[k];
            lw_op_views(op->kind, &m[k], move_view, r);
            move_params(r, c, op->kind, &m[k]);
        }
    }
    if (r->program->status != LW_OK) return lw_fail(err, r->program->status, "%s", r->program->error.message);
    return LW_OK;
}

static lw_status plan_with(rig *r, const lw_tactic *t, lw_plan **plan, lw_error *err) {
    lw_choices *forced = t == &apart ? r->choices : lw_choices_new(); /* apart: each as it was chosen by itself */
    if (!forced) return lw_fail(err, LW_ENOMEM, "tuning: no memory for op %s", r->f->op.name);
    lw_choice choice = {.signature = lw_op_signature(r->params, &r->program->ops[0])};
    snprintf(choice.tactic, sizeof choice.tactic, "%s", t->name);
    lw_status status = lw_choices_put(forced, &choice, err);
    if (status == LW_OK)
        status = lw_plan_make_with(plan, r->backend, &(lw_plan_options){.choices = forced}, r->program, err);
    if (forced != r->choices) lw_choices_free(forced);
    return status;
}

/* Positive numbers are fine inputs for every op, also where they stand for squared deviations. */
static lw_status fill_buffer(rig *r, int32_t i, lw_error *err) {
    size_t bytes = (size_t)r->f->program->buffers[r->buffers[i]].bytes, n = (bytes + 3) / 4;
    LW_TRY(r->backend->alloc(r->backend, n * 4, &r->memory[i], err));
    bool half = r->dtypes[i] == LW_F16;
    if (r->dtypes[i] != LW_F32 && !half) return LW_OK; /* zeros */
    float *values = lw_alloc(n, sizeof *values);
    if (!values) return lw_fail(err, LW_ENOMEM, "tuning: no memory for %zu values", n);
    uint32_t x = 1;
    for (size_t k = 0; k < n; k++) {
        x = x * 1664525u + 1013904223u;
        values[k] = (float)(x >> 8) * 0x1p-24f + 0.1f;
        if (half) { /* two of a word; a unit that multiplies zeros all the time runs faster than it will */
            uint16_t two[2] = {lw_f32_to_f16(values[k]), lw_f32_to_f16(1.2f - values[k])};
            memcpy(&values[k], two, sizeof two);
        }
    }
    lw_status status = r->backend->upload(r->backend, r->memory[i], values, n * 4, err);
    lw_free(values);
    return status;
}

static lw_status build(rig *r, lw_error *err) {
    uint64_t temp = 64;
    r->n_tactics = candidates(r->backend, r->f->program->params, &r->f->op, r->tactics);
    LW_TRY(record(r, err));
    for (int32_t i = 0; i < r->n_tactics; i++) {
        LW_TRY(plan_with(r, r->tactics[i], &r->plans[i], err));
        if (lw_plan_temp_bytes(r->plans[i]) > temp) temp = lw_plan_temp_bytes(r->plans[i]);
    }
    LW_TRY(lw_params_fill(r->params, r->backend, err));
    for (int32_t i = 0; i < r->n_buffers; i++) LW_TRY(fill_buffer(r, i, err));
    LW_TRY(r->backend->alloc(r->backend, (size_t)temp, &r->temp, err));
    for (int32_t i = 0; i < r->n_tactics; i++) {
        lw_plan_bind_temp(r->plans[i], r->temp);
        for (int32_t k = 0; k < r->n_buffers; k++) {
            char name[8];
            snprintf(name, sizeof name, "b%d", k);
            LW_TRY(lw_plan_bind(r->plans[i], name, r->memory[k], err));
        }
    }
    return LW_OK;
}

static void tear_down(rig *r) {
    for (int32_t i = 0; i < r->n_tactics; i++) lw_plan_free(r->plans[i]);
    for (int32_t i = 0; i < r->n_buffers; i++)
        if (r->memory[i]) r->backend->free(r->backend, r->memory[i]);
    if (r->temp) r->backend->free(r->backend, r->temp);
    for (int i = 0; i < 2; i++) lw_free_mark(r->backend, r->marks[i]);
    lw_program_free(r->program);
    lw_params_free(r->params, r->backend);
}

/* One turn of one tactic: by the device's own clock where it runs behind the host. */
static lw_status turn(rig *r, int32_t i, double *ms, lw_error *err) {
    lw_backend *b = r->backend;
    double begin = lw_now_ms();
    LW_TRY(lw_mark(b, &r->marks[0], err));
    LW_TRY(lw_plan_run(r->plans[i], err));
    LW_TRY(lw_mark(b, &r->marks[1], err));
    LW_TRY(lw_wait(b, r->marks[1], err));
    *ms = (b->behind ? b->behind->between_ms(b, r->marks[0], r->marks[1]) : lw_now_ms() - begin) / r->copies;
    return LW_OK;
}

static double best_of(const rig *r) {
    double best = r->best_ms[0];
    for (int32_t i = 1; i < r->n_tactics; i++)
        if (r->best_ms[i] < best) best = r->best_ms[i];
    return best;
}

/* Short ops get many turns: on a busy machine most of them are cut by other programs, and only the best one counts.
 * Ends when the budget is spent, or no turn of some rounds was better than what was known. */
static lw_status time_all(rig *r, double budget_ms, lw_error *err) {
    bool out[MAX_TACTICS] = {false};
    double ms, first = 0, spent = 0;
    for (int32_t warm = 0; warm < (r->backend->behind ? 2 : 1); warm++) /* pages and code come in, graphs are made */
        for (int32_t i = 0; i < r->n_tactics; i++) LW_TRY(turn(r, i, &ms, err));
    for (int32_t round = 0, stale = 0; stale < STALE_ROUNDS; round++, stale++) {
        if (round >= MIN_ROUNDS && spent >= budget_ms * r->n_tactics) break;
        for (int32_t i = 0; i < r->n_tactics; i++) {
            if (out[i]) continue;
            LW_TRY(turn(r, i, &ms, err));
            if (!i) first = ms;
            r->rounds[i]++;
            r->wins[i] += ms < first;
            spent += ms * r->copies;
            if (round && ms >= r->best_ms[i]) continue;
            if (!round || ms < r->best_ms[i] * 0.98) stale = 0;
            r->best_ms[i] = ms;
        }
        for (int32_t i = 1; round >= MIN_ROUNDS && i < r->n_tactics; i++)
            out[i] = r->best_ms[i] > best_of(r) * hopeless && r->best_ms[i] > 20;
    }
    return LW_OK;
}

static bool clearly_wins(const rig *r, int32_t i) {
    return r->best_ms[i] < r->best_ms[0] * clear_win && r->wins[i] >= r->rounds[i] * most_rounds;
}

static lw_status tune_one(lw_backend *backend, const found *f, lw_choices *choices, double budget_ms,
                          lw_tune_time times[MAX_TACTICS], lw_tune_op *out, lw_error *err) {
    rig r = {.backend = backend, .f = f, .choices = choices};
    lw_status status = build(&r, err);
    if (status == LW_OK) status = time_all(&r, budget_ms, err);
    if (status == LW_OK) {
        int32_t best = 0;
        for (int32_t i = 1; i < r.n_tactics; i++)
            if (clearly_wins(&r, i) && r.best_ms[i] < r.best_ms[best]) best = i;
        for (int32_t i = 0; i < r.n_tactics; i++) times[i] = (lw_tune_time){r.tactics[i]->name, r.best_ms[i] * 1e3};
        *out = (lw_tune_op){.op = &f->op,
                            .cost = lw_op_cost(f->program->params, &f->op),
                            .times = times,
                            .n_times = r.n_tactics,
                            .choice = {.signature = f->signature, .us = r.best_ms[best] * 1e3},
                            .heuristic = r.tactics[0]->name,
                            .heuristic_us = r.best_ms[0] * 1e3,
                            .uses = f->uses};
        snprintf(out->choice.tactic, sizeof out->choice.tactic, "%s", r.tactics[best]->name);
        lw_op_describe(&f->op, out->choice.op);
    }
    tear_down(&r);
    return status;
}

lw_status lw_tune(lw_choices *choices, lw_backend *backend, const lw_program *const *programs, int32_t n_programs,
                  const lw_tune_hooks *hooks, lw_error *err) {
    found *all = NULL;
    int32_t n = 0;
    double budget = hooks->budget_ms > 0 ? hooks->budget_ms : backend->behind ? device_budget_ms : default_budget_ms;
    for (int32_t i = 0; i < n_programs; i++)
        if (programs[i]->status != LW_OK) return lw_fail(err, programs[i]->status, "%s", programs[i]->error.message);
    lw_status status = collect(backend, programs, n_programs, &all, &n, err);
    for (int32_t i = 0; status == LW_OK && i < n; i++) {
        lw_tune_op op;
        lw_tune_time times[MAX_TACTICS];
        LW_GO(tune_one(backend, &all[i], choices, budget, times, &op, err));
        op.index = i + 1;
        op.n = n;
        LW_GO(lw_choices_put(choices, &op.choice, err));
        if (hooks->tuned && hooks->tuned(hooks->user, &op))
            status = lw_fail(err, LW_ECANCEL, "tuning was stopped after %d of %d ops", i + 1, n);
    }
out:
    lw_free(all);
    return status;
}
