/* SPDX-License-Identifier: MIT
 * Inputs: images of a case's buffers, all NaN but for the elements of what the op reads, which hold values of the
 * regime rounded to the storage type. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- random numbers */

uint64_t ck_mix(uint64_t x) { /* splitmix64's output function */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t ck_hash(const char *text, uint64_t seed) {
    uint64_t h = ck_mix(seed);
    for (; *text; text++) h = ck_mix(h ^ (unsigned char)*text);
    return h;
}

uint64_t ck_next(ck_rng *rng) { return ck_mix(rng->state++); }
int32_t ck_below(ck_rng *rng, int32_t n) { return (int32_t)((ck_next(rng) >> 33) % (uint64_t)n); }

/* The sum of four 16-bit numbers: near enough to a normal, and fast enough for the weights of a whole network. */
static double normal_of(uint64_t u) {
    double sum = (double)(u & 0xffff) + (double)(u >> 16 & 0xffff) + (double)(u >> 32 & 0xffff) + (double)(u >> 48);
    return (sum - 2 * 65535.0) * (1 / 37837.0); /* deviation of the sum: 65536 / sqrt(3) */
}

double ck_normal(ck_rng *rng) { return normal_of(ck_next(rng)); }
double ck_uniform(ck_rng *rng) { return (double)(ck_next(rng) >> 11) * 0x1p-52 - 1; }

/* ---- images */

bool ck_image_make(ck_image *image, const int64_t *bytes, int32_t n) {
    *image = (ck_image){.n = n};
    for (int32_t i = 0; i < n; i++) {
        image->bytes[i] = bytes[i];
        image->buffer[i] = malloc((size_t)bytes[i] + 2 * CK_GUARD);
        if (!image->buffer[i]) return false;
        memset(image->buffer[i], 0xff, (size_t)bytes[i] + 2 * CK_GUARD); /* NaN in each of the float types */
    }
    return true;
}

void ck_image_free(ck_image *image) {
    for (int32_t i = 0; i < image->n; i++) free(image->buffer[i]);
    *image = (ck_image){0};
}

double ck_load(const void *p, lw_dtype dtype, int64_t i) {
    switch (dtype) {
    case LW_F16: return (double)lw_f16_to_f32(((const uint16_t *)p)[i]);
    case LW_BF16: return (double)lw_bf16_to_f32(((const uint16_t *)p)[i]);
    case LW_U8: return ((const uint8_t *)p)[i];
    case LW_I32: return ((const int32_t *)p)[i];
    default: return (double)((const float *)p)[i];
    }
}

void ck_store(void *p, lw_dtype dtype, int64_t i, double v) {
    switch (dtype) {
    case LW_F16: ((uint16_t *)p)[i] = lw_f32_to_f16((float)v); break;
    case LW_BF16: ((uint16_t *)p)[i] = lw_f32_to_bf16((float)v); break;
    case LW_U8: ((uint8_t *)p)[i] = (uint8_t)v; break;
    case LW_I32: ((int32_t *)p)[i] = (int32_t)v; break;
    default: ((float *)p)[i] = (float)v; break;
    }
}

/* ---- values */

const char *ck_regime_name(ck_regime regime) {
    static const char *const names[] = {"normal",   "uniform", "large",      "constant", "tiny",
                                        "denormal", "nan",     "equal-keys", "extreme"};
    return names[regime];
}

double ck_value(ck_fill *f, ck_regime regime, lw_dtype dtype) {
    switch (regime) {
    case CK_UNIFORM: return ck_uniform(&f->rng);
    case CK_LARGE: return ck_normal(&f->rng) * (dtype == LW_F16 ? 4e3 : 1e4);
    case CK_CONSTANT: return 0.0071; /* small beside sqrt(eps): x * a + b must not cancel beyond the bound */
    case CK_TINY: return ck_normal(&f->rng) * 0.003;
    case CK_DENORMAL: {
        double v = ck_uniform(&f->rng), low = dtype == LW_F16 ? 6e-5 : 1e-38;
        return v > 0.5 ? 0.0 : v < -0.5 ? -0.0 : v * low;
    }
    default: return ck_normal(&f->rng);
    }
}

void ck_fill_view(ck_fill *f, const lw_view *v, ck_regime regime) {
    if (!lw_view_is(*v)) return;
    char *base = ck_at(f->image, *v);
    int32_t g_all = v->sg ? v->g : 1, n_all = v->sn ? v->n : 1;
    int64_t rows = (int64_t)g_all * n_all * v->h * v->w, bad = -1;
    if (regime == CK_NAN) bad = (int64_t)(ck_next(&f->rng) % (uint64_t)(rows * v->c));
    for (int64_t r = 0; r < rows; r++) {
        int32_t w = (int32_t)(r % v->w), h = (int32_t)(r / v->w % v->h), n = (int32_t)(r / v->w / v->h % n_all),
                g = (int32_t)(r / v->w / v->h / n_all);
        int64_t at = lw_view_index(v, g, n, h, w);
        for (int32_t c = 0; c < v->c; c++)
            ck_store(base, v->dtype, at + c, r * v->c + c == bad ? (double)NAN : ck_value(f, regime, v->dtype));
    }
}

void ck_fill_stats(ck_fill *f, const lw_view *stats, const lw_view *of, int32_t rows_per_part) {
    if (!lw_view_is(*stats)) return;
    const char *in = ck_at(f->image, *of);
    float *out = (float *)(void *)ck_at(f->image, *stats);
    int32_t rows = of->h * of->w;
    for (int32_t g = 0; g < (stats->sg ? stats->g : 1); g++)
        for (int32_t n = 0; n < (stats->sn ? stats->n : 1); n++)
            for (int32_t part = 0; part < stats->w; part++)
                for (int32_t c = 0; c < of->c; c++) {
                    int32_t first = part * rows_per_part,
                            last = first + rows_per_part < rows ? first + rows_per_part : rows;
                    double mean = 0, squares = 0;
                    for (int32_t r = first; r < last; r++)
                        mean += ck_load(in, of->dtype, lw_view_index(of, g, n, r / of->w, r % of->w) + c);
                    mean /= last - first;
                    for (int32_t r = first; r < last; r++) {
                        double d = ck_load(in, of->dtype, lw_view_index(of, g, n, r / of->w, r % of->w) + c) - mean;
                        squares += d * d;
                    }
                    int64_t at = lw_view_index(stats, g, n, 0, part) + c;
                    out[at] = (float)mean;
                    out[at + of->c] = (float)squares;
                }
}

/* As a product's row_stats would be for `of`. */
static void fill_row_stats(ck_fill *f, const lw_view *stats, const lw_view *of) {
    const char *in = ck_at(f->image, *of);
    float *out = (float *)(void *)ck_at(f->image, *stats);
    for (int64_t r = 0; r < (int64_t)of->g * of->n * of->h * of->w; r++) {
        const int64_t w = r % of->w, h = r / of->w % of->h, n = r / of->w / of->h % of->n,
                      g = r / of->w / of->h / of->n;
        const int64_t from = lw_view_index(of, g, n, h, w),
                      at = lw_view_index(stats, g, n, 0, 0) + (h * of->w + w) * (of->c / LW_ROW_PART) * 2;
        for (int32_t first = 0; first < of->c; first += LW_ROW_PART) {
            double mean = 0, squares = 0;
            for (int32_t c = first; c < first + LW_ROW_PART; c++)
                mean += ck_load(in, of->dtype, from + c) / LW_ROW_PART;
            for (int32_t c = first; c < first + LW_ROW_PART; c++) {
                const double d = ck_load(in, of->dtype, from + c) - mean;
                squares += d * d;
            }
            out[at + 2 * (first / LW_ROW_PART)] = (float)mean;
            out[at + 2 * (first / LW_ROW_PART) + 1] = (float)squares;
        }
    }
}

void ck_fill_prologue(ck_fill *f, const lw_prologue *in) {
    ck_fill_view(f, &in->a, f->regime);
    ck_fill_view(f, &in->b, f->regime);
    if (in->norm.kind == LW_NORM_LAYER && lw_view_is(in->norm.stats_a)) fill_row_stats(f, &in->norm.stats_a, &in->a);
    if (in->norm.kind != LW_NORM_GROUP) return;
    ck_fill_stats(f, &in->norm.stats_a, &in->a, in->norm.rows_per_part);
    if (lw_view_is(in->b)) ck_fill_stats(f, &in->norm.stats_b, &in->b, in->norm.rows_per_part);
}

void ck_fill_epilogue(ck_fill *f, const lw_epilogue *epi) {
    ck_fill_view(f, &epi->addend, f->regime);
    ck_fill_view(f, &epi->scale, CK_UNIFORM);
    ck_fill_view(f, &epi->residual, f->regime);
}

void ck_make_inputs(ck_image *image, const ck_case *c, ck_regime regime, uint64_t seed) {
    ck_fill f = {.c = c, .image = image, .regime = regime};
    image->seed = seed;
    f.rng.state = ck_hash(c->shape, seed ^ (uint64_t)regime << 32 ^ (uint64_t)c->kind << 40);
    ck_op_of(c->kind)->fill(&f);
}

/* ---- parameters: a tensor's name tells its role and shape, "w0.320.320.3.3" */

static lw_status source_dims(void *user, const char *name, int64_t dims[4], lw_error *err) {
    long long d[4];
    (void)user;
    if (sscanf(name + 1, "%*d.%lld.%lld.%lld.%lld", &d[0], &d[1], &d[2], &d[3]) != 4)
        return lw_fail(err, LW_EINTERNAL, "tensor %s: its name is no shape", name);
    for (int i = 0; i < 4; i++) dims[i] = d[i];
    return LW_OK;
}

static lw_status source_read(void *user, const char *name, int64_t row, int64_t n, float *dst, lw_error *err) {
    int64_t d[4];
    LW_TRY(source_dims(user, name, d, err));
    uint64_t state = ck_hash(name, *(const uint64_t *)user);
    double mean = *name == 'g' ? 1 : 0, deviation = *name == 'g' || *name == 'b' ? 0.1 : 1;
    if (*name == 'w') deviation = 1 / sqrt((double)(d[1] * d[2] * d[3])); /* outputs as large as inputs */
    int64_t each = d[1] * d[2] * d[3];
    for (int64_t i = row * each; i < (row + n) * each; i++) { /* rounded as a device stores them */
        float value = (float)(mean + deviation * normal_of(ck_mix(state + (uint64_t)i)));
        *dst++ = lw_f16_to_f32(lw_f32_to_f16(value));
    }
    return LW_OK;
}

lw_tensor_source ck_source(uint64_t *seed) { return (lw_tensor_source){seed, source_dims, source_read}; }

void ck_param_name(const ck_case *c, int32_t id, char name[96]) {
    const ck_param *p = &c->params[id];
    snprintf(name, 96, "%c%d.%lld.%lld.%lld.%lld", p->role, id, (long long)p->dims[0], (long long)p->dims[1],
             (long long)p->dims[2], (long long)p->dims[3]);
}

float *ck_param_values(const ck_case *c, int32_t id, uint64_t seed) {
    const int64_t *d = c->params[id].dims;
    float *values = calloc((size_t)(d[0] * d[1] * d[2] * d[3]), sizeof *values);
    char name[96];
    ck_param_name(c, id, name);
    if (values) source_read(&seed, name, 0, d[0], values, NULL);
    return values;
}
