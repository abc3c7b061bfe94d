/* SPDX-License-Identifier: MIT
 * Transcendentals are taken in double and rounded once, so that numbers do not depend on the C library's float
 * functions; PyTorch's own float approximations stay within 2e-6 of that. */
#include "base/rng.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/random.h>

#define TAU 6.283185307179586476925

void lw_noise_init(lw_noise *noise, lw_rng kind, uint64_t seed) {
    memset(noise, 0, sizeof *noise);
    noise->kind = kind;
    noise->seed = seed;
    if (kind != LW_RNG_CPU) return;
    /* PyTorch seeds its mt19937 with the low 32 bits. */
    noise->mt[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++) noise->mt[i] = 1812433253u * (noise->mt[i - 1] ^ (noise->mt[i - 1] >> 30)) + i;
    noise->mt_index = 624;
}

/* ---- Philox4x32-10, in the order in which PyTorch's CUDA normal_ hands its numbers out */

enum { BLOCK = 256, GRID_MAX = 1056 }; /* 132 SMs of 2,048 threads */

static void philox(uint64_t seed, uint64_t counter, uint64_t subsequence, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)subsequence, c3 = (uint32_t)(subsequence >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p = (uint64_t)0xD2511F53u * c0, q = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(q >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)q;
        c3 = (uint32_t)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Two normals of two words, as cuRAND's Box-Muller: the sine first. The uniforms are floats there, so here too. */
static void box_muller(uint32_t x, uint32_t y, float *sine, float *cosine) {
    const float unit = 2.3283064e-10f, turn = 2.3283064e-10f * 6.2831855f;
    float u = (float)((double)(float)x * unit + unit / 2);
    float v = (float)((double)(float)y * turn + turn / 2);
    double r = sqrt(-2 * log((double)u));
    *sine = (float)(r * sin((double)v));
    *cosine = (float)(r * cos((double)v));
}

/* Thread i of the grid makes four normals a pass and stores them a grid's width apart. */
static void draw_philox(lw_noise *noise, float *out, size_t n) {
    if (!n) return;
    size_t grid = (n - 1) / BLOCK + 1;
    if (grid > GRID_MAX) grid = GRID_MAX;
    size_t threads = grid * BLOCK, passes = (n - 1) / (threads * 4) + 1;
    for (size_t pass = 0; pass < passes; pass++) {
        size_t base = pass * threads * 4;
        for (size_t i = 0; i < threads && base + i < n; i++) {
            uint32_t w[4];
            float z[4];
            philox(noise->seed, noise->philox_offset / 4 + pass, i, w);
            box_muller(w[0], w[1], &z[0], &z[1]);
            out[base + i] = z[0];
            if (base + i + threads >= n) continue;
            box_muller(w[2], w[3], &z[2], &z[3]);
            for (size_t k = 1; k < 4 && base + i + k * threads < n; k++) out[base + i + k * threads] = z[k];
        }
    }
    noise->philox_offset += 4 * passes;
}

/* ---- mt19937, in the order of PyTorch's CPU normal_ */

static void mt_refill(lw_noise *noise) {
    uint32_t *mt = noise->mt;
    for (int i = 0; i < 624; i++) {
        uint32_t y = (mt[i] & 0x80000000u) | (mt[(i + 1) % 624] & 0x7fffffffu);
        mt[i] = mt[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    noise->mt_index = 0;
}

static uint32_t mt_next(lw_noise *noise) {
    if (noise->mt_index >= 624) mt_refill(noise);
    uint32_t y = noise->mt[noise->mt_index++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static double uniform53(lw_noise *noise) {
    uint64_t high = mt_next(noise), low = mt_next(noise);
    return (double)((high << 32 | low) & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Fewer than 16 values: one pair of doubles at a time; the second of a pair is kept, beyond this draw too. */
static float draw_scalar(lw_noise *noise) {
    if (noise->has_next) {
        noise->has_next = false;
        return (float)noise->next;
    }
    double u1 = uniform53(noise), u2 = uniform53(noise);
    double r = sqrt(-2 * log1p(-u2));
    noise->next = r * sin(TAU * u1);
    noise->has_next = true;
    return (float)(r * cos(TAU * u1));
}

/* 16 uniforms to 16 normals: j pairs with j + 8. The angle is a float in PyTorch: its rounding is most of what would
 * differ. */
static void normal_16(float *d) {
    for (int j = 0; j < 8; j++) {
        float angle = (float)TAU * d[j + 8];
        double r = sqrt(-2 * log((double)(1 - d[j]))), theta = (double)angle;
        d[j] = (float)(r * cos(theta));
        d[j + 8] = (float)(r * sin(theta));
    }
}

static void fill_uniform(lw_noise *noise, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = (float)(mt_next(noise) & 0xffffffu) * 0x1p-24f;
}

static void draw_mt(lw_noise *noise, float *out, size_t n) {
    if (n < 16) {
        for (size_t i = 0; i < n; i++) out[i] = draw_scalar(noise);
        return;
    }
    fill_uniform(noise, out, n);
    for (size_t i = 0; i + 16 <= n; i += 16) normal_16(out + i);
    if (n % 16) { /* the last 16 are drawn anew, over some that were done */
        fill_uniform(noise, out + n - 16, 16);
        normal_16(out + n - 16);
    }
}

void lw_noise_draw(lw_noise *noise, float *out, size_t n) {
    if (noise->kind == LW_RNG_CPU) draw_mt(noise, out, n);
    else draw_philox(noise, out, n);
}

lw_status lw_random_seed(int64_t *seed, lw_error *err) {
    unsigned char bytes[2];
    ssize_t got;
    do got = lw_fault_hit() ? -1 : getrandom(bytes, sizeof bytes, 0);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof bytes)
        return lw_fail(err, LW_EDEVICE, "seed: the system gave %d of %d random bytes", got < 0 ? 0 : (int)got,
                       (int)sizeof bytes);
    *seed = bytes[0] | bytes[1] << 8;
    return LW_OK;
}
