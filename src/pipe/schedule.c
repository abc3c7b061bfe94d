/* SPDX-License-Identifier: MIT
 * Every sampler here is known as an update of a latent from noise level to noise level. A level is one number, sigma =
 * sqrt((1 - ac) / ac); the variance-preserving latent at it is x = a * x0 + s * noise with a = 1 / sqrt(1 + sigma^2)
 * and s = sigma * a, and the "exploding" latent of k-diffusion is x / a. All arithmetic is in double, from the float
 * alphas_cumprod that checkpoints hold.
 *
 * Two schedulers of timesteps are diffusers', as its SD1.5 configurations have them (beta scaled_linear, linspace
 * spacing, final sigma zero, set_alpha_to_one false, lower_order_final true): where two samplers space the same
 * thing differently there, so they do here. */
#include "pipe/schedule.h"

#include <math.h>
#include <string.h>

enum { TRAIN_STEPS = 1000, LCM_ORIGINAL_STEPS = 50 };

void lw_alphas_cumprod(float out[1000]) {
    double first = sqrt(0.00085), last = sqrt(0.012), product = 1;
    for (int i = 0; i < TRAIN_STEPS; i++) {
        double root = first + (last - first) * i / (TRAIN_STEPS - 1);
        product *= 1 - root * root;
        out[i] = (float)product;
    }
}

/* ---- timesteps */

/* The levels of a job: row i runs at timestep t[i] and level sigma[i] and ends at sigma[i + 1]. */
typedef struct levels {
    int32_t n;
    double *t;              /* n, the schedule's own array */
    double *sigma;          /* n + 1 */
    double of[TRAIN_STEPS]; /* sigma of each training step */
    float alphas[TRAIN_STEPS];
} levels;

static const char *const sampler_names[] = {"ddim", "euler", "euler_a", "dpm++2m", "unipc", "lcm"};

/* range(0, 1000, c) + 1 must stay below 1000, the length of alphas_cumprod. */
static bool reference_works(int32_t steps) { return (TRAIN_STEPS - 1) % (TRAIN_STEPS / steps) != 0; }

lw_status lw_reference_steps(int32_t steps, int32_t *actual, lw_error *err) {
    *actual = 0;
    if (steps < 1 || steps > TRAIN_STEPS)
        return lw_fail(err, LW_EINVAL, "steps: %d is not in 1..%d", steps, TRAIN_STEPS);
    if (!reference_works(steps)) {
        int32_t below = steps, above = steps;
        while (!reference_works(below)) below--; /* 1 works */
        while (above <= TRAIN_STEPS && !reference_works(above)) above++;
        if (above > TRAIN_STEPS)
            return lw_fail(err, LW_EINVAL,
                           "steps: %d leads the reference's spacing past its last time step; the nearest count that "
                           "works is %d",
                           steps, below);
        return lw_fail(err, LW_EINVAL,
                       "steps: %d leads the reference's spacing past its last time step; the nearest counts that work "
                       "are %d and %d",
                       steps, below, above);
    }
    int32_t spacing = TRAIN_STEPS / steps;
    *actual = (TRAIN_STEPS - 1) / spacing + 1;
    return LW_OK;
}

/* The sigma at a timestep between two training steps: straight between theirs (Euler's linspace has such). */
static double sigma_at(const levels *l, double t) {
    int low = (int)t;
    if (low >= TRAIN_STEPS - 1) return l->of[TRAIN_STEPS - 1];
    return l->of[low] + (t - low) * (l->of[low + 1] - l->of[low]);
}

/* The timestep at a sigma: straight in log sigma between training steps, held at the ends. */
static double timestep_of(const levels *l, double sigma) {
    int low = 0;
    while (low + 1 < TRAIN_STEPS - 1 && l->of[low + 1] <= sigma) low++;
    double w = log(sigma / l->of[low]) / log(l->of[low + 1] / l->of[low]);
    return low + fmin(fmax(w, 0), 1);
}

/* Is the sampler of the family that keeps the exploding latent in diffusers? It spaces timesteps otherwise. */
static bool is_euler(lw_sampler sampler) { return sampler == LW_SAMPLER_EULER || sampler == LW_SAMPLER_EULER_A; }

/* numpy's linspace(0, last, count), element i, with its rounding. */
static double linspace(double last, int32_t count, int32_t i) {
    if (i == count - 1 && count > 1) return last;
    return count > 1 ? i * (last / (count - 1)) : 0;
}

/* Timesteps of `discrete`, largest first. */
static void discrete_timesteps(levels *l, lw_sampler sampler) {
    const double last = TRAIN_STEPS - 1;
    int32_t n = l->n;
    for (int32_t i = 0; i < n; i++) {
        if (is_euler(sampler)) {
            l->t[i] = (double)(float)linspace(last, n, n - 1 - i); /* fractions stay, as floats */
        } else if (sampler == LW_SAMPLER_DDIM) {
            l->t[i] = rint(linspace(last, n, n - 1 - i)); /* half to even, as numpy */
        } else if (sampler == LW_SAMPLER_LCM) {
            /* Of the 50 steps that LCMs were distilled on (19, 39, … 999), n evenly spaced from the top. */
            int32_t skipped = (int32_t)floor(i * ((double)LCM_ORIGINAL_STEPS / n));
            l->t[i] = (LCM_ORIGINAL_STEPS - skipped) * (TRAIN_STEPS / LCM_ORIGINAL_STEPS) - 1;
        } else {
            l->t[i] = rint(linspace(last, n + 1, n - i)); /* 0 itself is left out */
        }
    }
}

/* Karras et al. 2022 (arXiv 2206.00364), eq. 5, rho 7, between the ends of the training schedule. Multistep samplers
 * round the timesteps that belong to it; Euler doesn't, and its single step is the lowest one (its linspace's). */
static void karras_levels(levels *l, lw_sampler sampler) {
    const double rho = 7;
    double low = l->of[0], high = l->of[l->n == 1 && is_euler(sampler) ? 0 : TRAIN_STEPS - 1];
    double a = pow(high, 1 / rho), b = pow(low, 1 / rho);
    for (int32_t i = 0; i < l->n; i++) {
        l->sigma[i] = pow(a + linspace(1, l->n, i) * (b - a), rho);
        double t = timestep_of(l, l->sigma[i]);
        l->t[i] = is_euler(sampler) ? t : rint(t);
    }
}

static lw_status check_params(const lw_schedule_params *p, lw_error *err) {
    if ((unsigned)p->sampler > LW_SAMPLER_LCM)
        return lw_fail(err, LW_EINVAL, "sampler: %d is none of the %d there are", (int)p->sampler, LW_SAMPLER_LCM + 1);
    if ((unsigned)p->scheduler > LW_SCHEDULER_KARRAS)
        return lw_fail(err, LW_EINVAL, "scheduler: %d is none of the %d there are", (int)p->scheduler,
                       LW_SCHEDULER_KARRAS + 1);
    if (p->steps < 1 || p->steps > TRAIN_STEPS)
        return lw_fail(err, LW_EINVAL, "steps: %d is not in 1..%d", p->steps, TRAIN_STEPS);
    if (!(p->eta >= 0 && p->eta <= 1)) return lw_fail(err, LW_EINVAL, "eta: %g is not in 0..1", p->eta);
    if (p->eta > 0 && p->sampler != LW_SAMPLER_DDIM)
        return lw_fail(err, LW_EINVAL, "eta: %g goes with ddim only, the sampler is %s", p->eta,
                       sampler_names[p->sampler]);
    if (p->scheduler == LW_SCHEDULER_KARRAS && p->sampler == LW_SAMPLER_DDIM)
        return lw_fail(err, LW_EINVAL,
                       "scheduler: karras has no meaning for ddim, which steps on training steps; euler with karras is "
                       "the same update at eta 0");
    if (p->scheduler == LW_SCHEDULER_KARRAS && p->sampler == LW_SAMPLER_LCM)
        return lw_fail(
            err, LW_EINVAL,
            "scheduler: karras has no meaning for lcm, whose model knows only the steps it was distilled on; "
            "use discrete or reference");
    if (p->scheduler == LW_SCHEDULER_DISCRETE && p->sampler == LW_SAMPLER_LCM && p->steps > LCM_ORIGINAL_STEPS)
        return lw_fail(err, LW_EINVAL, "steps: %d is more than the %d that lcm chooses its steps from", p->steps,
                       LCM_ORIGINAL_STEPS);
    /* n + 1 whole numbers of 0..999 that differ: a multistep update divides by the distance of two levels. */
    if (p->scheduler == LW_SCHEDULER_DISCRETE && p->steps >= TRAIN_STEPS &&
        (p->sampler == LW_SAMPLER_DPMPP_2M || p->sampler == LW_SAMPLER_UNIPC))
        return lw_fail(err, LW_EINVAL, "steps: %d is more than the %d that %s with discrete has", p->steps,
                       TRAIN_STEPS - 1, sampler_names[p->sampler]);
    return LW_OK;
}

static void fill_levels(levels *l, const lw_schedule_params *p) {
    if (p->scheduler == LW_SCHEDULER_KARRAS) {
        karras_levels(l, p->sampler);
    } else {
        if (p->scheduler == LW_SCHEDULER_DISCRETE) discrete_timesteps(l, p->sampler);
        else
            for (int32_t i = 0; i < l->n; i++) l->t[i] = (l->n - 1 - i) * (TRAIN_STEPS / p->steps) + 1;
        for (int32_t i = 0; i < l->n; i++) l->sigma[i] = sigma_at(l, l->t[i]);
    }
    l->sigma[l->n] = 0;
}

/* ---- rows */

static double scale_of(double sigma) { return 1 / sqrt(1 + sigma * sigma); } /* a */

/* The x0 that belongs to eps: (x - s e) / a. Kept by every row: multistep samplers use it, previews may. */
static void keep_x0(lw_row *row, double sigma) {
    row->h_x = (float)(1 / scale_of(sigma));
    row->h_e = (float)-sigma;
}

static void use_noise(lw_row *row, int32_t i, double amount) {
    row->x_n = (float)amount;
    row->noise = amount != 0 ? i : -1; /* the draw after x_T's belongs to row 0, used or not */
}

/* Song et al. 2020 (arXiv 2010.02502), eq. 12 with eq. 16's sigma:
 *   x' = sqrt(b) (x - sqrt(1 - a) e) / sqrt(a) + sqrt(1 - b - sigma^2) e + sigma noise,   a, b: ac of this and the next
 * The reference's next one is the next timestep's, and ac[0] at the end. diffusers with linspace counts 1000 / steps
 * down from this timestep, whatever the next one is. */
static void ddim_rows(lw_schedule *s, const levels *l, const lw_schedule_params *p) {
    for (int32_t i = 0; i < l->n; i++) {
        int32_t t = (int32_t)l->t[i], next = i + 1 < l->n ? (int32_t)l->t[i + 1] : 0;
        if (p->scheduler == LW_SCHEDULER_DISCRETE) next = t - TRAIN_STEPS / p->steps;
        double a = l->alphas[t], b = l->alphas[next > 0 ? next : 0];
        double sigma = p->eta * sqrt((1 - b) / (1 - a) * (1 - a / b));
        lw_row *row = &s->rows[i];
        row->x_x = (float)sqrt(b / a);
        row->x_e = (float)(sqrt(1 - b - sigma * sigma) - sqrt(b * (1 - a) / a));
        use_noise(row, i, sigma);
    }
}

/* Karras et al. 2022, alg. 1 without churn, on the exploding latent: X' = X + (sigma' - sigma) e. With X = x / a:
 *   x' = (a' / a) x + a' (sigma' - sigma) e
 * Ancestral (k-diffusion): the step goes down to sigma_down only, and noise of sigma_up is added, where
 *   sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2,   sigma_down^2 = sigma'^2 - sigma_up^2 = (sigma'^2 / sigma)^2
 */
static void euler_rows(lw_schedule *s, const levels *l, bool ancestral) {
    for (int32_t i = 0; i < l->n; i++) {
        double sigma = l->sigma[i], next = l->sigma[i + 1], down = next, up = 0;
        if (ancestral) {
            down = next * next / sigma;
            up = next * sqrt(1 - next / sigma * (next / sigma));
        }
        lw_row *row = &s->rows[i];
        row->x_x = (float)(scale_of(next) / scale_of(sigma));
        row->x_e = (float)(scale_of(next) * (down - sigma));
        use_noise(row, i, scale_of(next) * up);
    }
}

/* Lu et al. 2022 (arXiv 2211.01095), alg. 2 (2M) with the midpoint form of the second difference. With lambda =
 * log(a / s) = -log sigma and h = lambda' - lambda, exp(-h) is sigma' / sigma:
 *   x' = (s' / s) x + c (m + (m - m1) / (2 r)),   c = a' (1 - sigma' / sigma),   r = h of the row before / h
 * First order (no m1) in the first row, and in the last, where sigma' = 0 makes h infinite and x' = m. */
static void dpmpp_rows(lw_schedule *s, const levels *l) {
    for (int32_t i = 0; i < l->n; i++) {
        double sigma = l->sigma[i], next = l->sigma[i + 1];
        double c = scale_of(next) * (1 - next / sigma), half = 0;
        if (i > 0 && i + 1 < l->n) half = log(sigma / next) / log(l->sigma[i - 1] / sigma) / 2;
        lw_row *row = &s->rows[i];
        row->x_x = (float)(scale_of(next) * next / (scale_of(sigma) * sigma));
        row->x_h[0] = (float)(c * (1 + half));
        row->x_h[1] = (float)(-c * half);
    }
}

/* Zhao et al. 2023 (arXiv 2302.04867), UniPC-2 with B(h) = exp(h) - 1 on x0 predictions. In a step from level (a, s) to
 * (a', s') with h = lambda' - lambda, f = exp(-h) - 1 = sigma' / sigma - 1:
 *   predictor: x' = (s' / s) c - a' f m - a' f / 2 * (m1 - m) / r              order 1: without the last term
 *   corrector: c' = (s' / s) c - a' f m - a' f (rho1 (m1 - m) / r + rho2 (m' - m))     order 1: rho2 = 1/2, no rho1
 * where c is the corrected latent at the level, m the x0 predicted there, m1 the one before it, m' the one at the end,
 * r = (lambda1 - lambda) / h, and rho solves  rho1 + rho2 = b1,  r rho1 + rho2 = b2  with, for g = -h,
 *   b1 = (f / g - 1) / f,   b2 = 2 ((f / g - 1) / g - 1/2) / f.
 * A row has seen e at the predicted x, so m' = its h: it first corrects, y' = c' (y is c, h[0] is m', h[1] m, h[2] m1),
 * then predicts from that, which is linear in the same things. */
typedef struct unipc_step {
    double c, m, m1, end; /* factors of c, m, m1 and m' */
} unipc_step;

static unipc_step unipc(const levels *l, int32_t from, int order, bool correct) {
    double sigma = l->sigma[from], next = l->sigma[from + 1], a = scale_of(next);
    double f = next / sigma - 1;
    unipc_step k = {.c = a * next / (scale_of(sigma) * sigma), .m = -a * f};
    if (order == 1) {
        if (correct) k.end = -a * f / 2, k.m += a * f / 2;
        return k;
    }
    double g = log(next / sigma), r = log(sigma / l->sigma[from - 1]) / -g; /* g = -h */
    double rho1 = 0.5, rho2 = 0;
    if (correct) {
        double b1 = (f / g - 1) / f, b2 = 2 * ((f / g - 1) / g - 0.5) / f;
        rho1 = (b1 - b2) / (1 - r);
        rho2 = b1 - rho1;
    }
    k.m1 = -a * f * rho1 / r;
    k.end = -a * f * rho2;
    k.m -= k.m1 + k.end;
    return k;
}

static void unipc_rows(lw_schedule *s, const levels *l) {
    int order = 0; /* of the row before */
    for (int32_t i = 0; i < l->n; i++) {
        lw_row *row = &s->rows[i];
        unipc_step correct = {0};
        if (i == 0) {
            row->y_x = 1;
        } else {
            correct = unipc(l, i - 1, order, true);
            row->y_y = (float)correct.c;
            row->y_h[0] = (float)correct.end;
            row->y_h[1] = (float)correct.m;
            row->y_h[2] = (float)correct.m1;
        }
        order = i > 0 && i + 1 < l->n ? 2 : 1;
        unipc_step predict = unipc(l, i, order, false);
        row->x_x = (float)(i == 0 ? predict.c : 0);
        row->x_y = (float)(predict.c * correct.c);
        row->x_h[0] = (float)(predict.c * correct.end + predict.m);
        row->x_h[1] = (float)(predict.c * correct.m + predict.m1);
        row->x_h[2] = (float)(predict.c * correct.m1);
    }
}

/* Luo et al. 2023 (arXiv 2310.04378): the consistency function with boundary scalings at 10 t and sigma_data 0.5,
 *   d = c_out x0 + c_skip x,   c_skip = 0.25 / ((10 t)^2 + 0.25),   c_out = 10 t / sqrt((10 t)^2 + 0.25),
 * then noise up to the next level: x' = a' d + s' noise; the last row ends at d. */
static void lcm_rows(lw_schedule *s, const levels *l) {
    for (int32_t i = 0; i < l->n; i++) {
        double sigma = l->sigma[i], t10 = 10 * l->t[i];
        double skip = 0.25 / (t10 * t10 + 0.25), out = t10 / sqrt(t10 * t10 + 0.25);
        double next = l->sigma[i + 1], a = scale_of(next); /* the last is sigma 0: a = 1, no noise */
        lw_row *row = &s->rows[i];
        row->x_x = (float)(a * (skip + out / scale_of(sigma)));
        row->x_e = (float)(-a * out * sigma);
        use_noise(row, i, a * next);
    }
}

lw_status lw_schedule_make(lw_schedule *out, const lw_schedule_params *params, lw_error *err) {
    lw_status status = LW_OK;
    lw_schedule s = {.n_rows = params->steps, .init_scale = 1};
    levels *l = NULL;
    memset(out, 0, sizeof *out);
    LW_TRY(check_params(params, err));
    if (params->scheduler == LW_SCHEDULER_REFERENCE) LW_TRY(lw_reference_steps(params->steps, &s.n_rows, err));

    l = lw_alloc(1, sizeof *l);
    s.rows = lw_alloc((size_t)s.n_rows, sizeof *s.rows);
    s.timesteps = lw_alloc((size_t)s.n_rows, sizeof *s.timesteps);
    if (l) l->sigma = lw_alloc((size_t)s.n_rows + 1, sizeof *l->sigma);
    if (!l || !s.rows || !s.timesteps || !l->sigma)
        LW_GO(lw_fail(err, LW_ENOMEM, "schedule: no memory for %d rows", s.n_rows));

    l->n = s.n_rows;
    l->t = s.timesteps;
    lw_alphas_cumprod(l->alphas);
    for (int i = 0; i < TRAIN_STEPS; i++) l->of[i] = sqrt((1 - (double)l->alphas[i]) / (double)l->alphas[i]);
    fill_levels(l, params);
    for (int32_t i = 0; i < s.n_rows; i++) {
        s.rows[i].noise = -1;
        keep_x0(&s.rows[i], l->sigma[i]);
    }
    switch (params->sampler) {
    case LW_SAMPLER_DDIM: ddim_rows(&s, l, params); break;
    case LW_SAMPLER_EULER: euler_rows(&s, l, false); break;
    case LW_SAMPLER_EULER_A: euler_rows(&s, l, true); break;
    case LW_SAMPLER_DPMPP_2M: dpmpp_rows(&s, l); break;
    case LW_SAMPLER_UNIPC: unipc_rows(&s, l); break;
    case LW_SAMPLER_LCM: lcm_rows(&s, l); break;
    }
    /* diffusers starts Euler's exploding latent at sigma_max * noise for linspace, at sqrt(1 + sigma_max^2) * noise for
     * its "leading" spacing, of which the reference's is one. */
    if (is_euler(params->sampler) && params->scheduler != LW_SCHEDULER_REFERENCE)
        s.init_scale = (float)(l->sigma[0] * scale_of(l->sigma[0]));
    for (int32_t i = 0; i < s.n_rows; i++)
        if (s.rows[i].noise >= 0) s.n_noise = i + 1;
    *out = s;
    memset(&s, 0, sizeof s);
out:
    if (l) lw_free(l->sigma);
    lw_free(l);
    lw_schedule_free(&s);
    return status;
}

void lw_schedule_free(lw_schedule *schedule) {
    if (!schedule) return;
    lw_free(schedule->rows);
    lw_free(schedule->timesteps);
    memset(schedule, 0, sizeof *schedule);
}
