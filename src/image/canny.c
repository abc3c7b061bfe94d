/* SPDX-License-Identifier: MIT
 * Canny's edges as cv2.Canny(picture, low, high) finds them: aperture 3, L1 gradient, and of several channels the one
 * with the largest gradient at each pixel. One pass over the rows marks strong and weak maxima, then the strong ones
 * take every weak one that they reach. */
#include "image/image.h"

#include <limits.h>
#include <math.h>
#include <string.h>

enum { NONE = 0, WEAK = 1, STRONG = 2 };
enum { TAN_22 = 13573 }; /* tan(22.5 degrees) * 2^15; tan(67.5) is that + 2 */

typedef struct edges {
    int32_t width, height, channels;
    int low, high;
    int16_t *columns;                     /* smoothed, then differentiated columns of the three rows at hand, padded */
    int16_t *raw;                         /* dx, dy of each channel */
    int16_t *dx[3], *dy[3], *strength[3]; /* rows y-1, y, y+1, in a ring; strength has a zero at both ends */
    uint8_t *map;                         /* (width + 2) * (height + 2), the border is NONE */
    uint32_t *stack;                      /* strong pixels whose neighbours are to be seen */
    size_t n_stack, room;
} edges;

static bool push(edges *e, uint32_t at) {
    if (e->n_stack == e->room) {
        size_t room = e->room ? 2 * e->room : 4096;
        uint32_t *grown = lw_realloc(e->stack, room, sizeof *grown);
        if (!grown) return false;
        e->stack = grown;
        e->room = room;
    }
    e->stack[e->n_stack++] = at;
    return true;
}

/* Sobel of row y, the picture's border repeated; then the channel with the largest |dx| + |dy|, the first of equals. */
static void gradient_row(edges *e, const lw_image *in, int32_t y) {
    size_t c = (size_t)e->channels, n = (size_t)e->width * c;
    const uint8_t *above = lw_image_row(in, y > 0 ? y - 1 : 0), *row = lw_image_row(in, y),
                  *below = lw_image_row(in, y + 1 < e->height ? y + 1 : y);
    int16_t *smooth = e->columns, *step = e->columns + n + 2 * c, *raw_x = e->raw, *raw_y = e->raw + n;
    for (size_t i = 0; i < n; i++) {
        smooth[c + i] = (int16_t)(above[i] + 2 * row[i] + below[i]);
        step[c + i] = (int16_t)(below[i] - above[i]);
    }
    for (size_t i = 0; i < c; i++) {
        smooth[i] = smooth[c + i], step[i] = step[c + i];
        smooth[n + c + i] = smooth[n + i], step[n + c + i] = step[n + i];
    }
    int16_t *dx = e->dx[y % 3], *dy = e->dy[y % 3], *strength = e->strength[y % 3] + 1;
    if (c == 1) raw_x = dx, raw_y = dy;
    for (size_t i = 0; i < n; i++) {
        raw_x[i] = (int16_t)(smooth[i + 2 * c] - smooth[i]);
        raw_y[i] = (int16_t)(step[i] + 2 * step[i + c] + step[i + 2 * c]);
    }
    if (c == 1) {
        for (size_t i = 0; i < n; i++) strength[i] = (int16_t)(abs(dx[i]) + abs(dy[i]));
        return;
    }
    for (int32_t x = 0; x < e->width; x++, raw_x += 3, raw_y += 3) {
        int best_x = raw_x[0], best_y = raw_y[0], best = abs(best_x) + abs(best_y);
        for (int k = 1; k < 3; k++) {
            int s = abs(raw_x[k]) + abs(raw_y[k]);
            bool more = s > best;
            best = more ? s : best;
            best_x = more ? raw_x[k] : best_x;
            best_y = more ? raw_y[k] : best_y;
        }
        dx[x] = (int16_t)best_x, dy[x] = (int16_t)best_y, strength[x] = (int16_t)best;
    }
}

/* Is pixel x a maximum across its edge? Ties go to the left and the upper of two, on a diagonal to neither. */
static bool is_maximum(const int16_t *above, const int16_t *row, const int16_t *below, int32_t x, int dx, int dy) {
    int m = row[x], ax = abs(dx), ay = abs(dy) << 15, flat = ax * TAN_22;
    if (ay < flat) return m > row[x - 1] && m >= row[x + 1];
    if (ay > flat + (ax << 16)) return m > above[x] && m >= below[x];
    int side = (dx ^ dy) < 0 ? -1 : 1;
    return m > above[x - side] && m > below[x + side];
}

static bool mark_row(edges *e, int32_t y) {
    const int16_t *above = e->strength[(y + 2) % 3] + 1, *row = e->strength[y % 3] + 1,
                  *below = e->strength[(y + 1) % 3] + 1, *dx = e->dx[y % 3], *dy = e->dy[y % 3];
    size_t base = ((size_t)y + 1) * ((size_t)e->width + 2) + 1;
    for (int32_t x = 0; x < e->width; x++) {
        if (row[x] <= e->low || !is_maximum(above, row, below, x, dx[x], dy[x])) continue;
        e->map[base + (size_t)x] = row[x] > e->high ? STRONG : WEAK;
        if (row[x] > e->high && !push(e, (uint32_t)(base + (size_t)x))) return false;
    }
    return true;
}

static bool follow(edges *e) {
    uint32_t w = (uint32_t)e->width + 2;
    while (e->n_stack > 0) {
        uint32_t at = e->stack[--e->n_stack];
        const uint32_t near[8] = {at - w - 1, at - w, at - w + 1, at - 1, at + 1, at + w - 1, at + w, at + w + 1};
        for (int i = 0; i < 8; i++) {
            if (e->map[near[i]] != WEAK) continue;
            e->map[near[i]] = STRONG;
            if (!push(e, near[i])) return false;
        }
    }
    return true;
}

static bool find(edges *e, const lw_image *in) {
    size_t w = (size_t)e->width, c = (size_t)e->channels;
    e->columns = lw_alloc(2 * (w + 2) * c, sizeof *e->columns);
    e->raw = lw_alloc(2 * w * c, sizeof *e->raw);
    e->map = lw_alloc(w + 2, (size_t)e->height + 2);
    bool all = e->columns && e->raw && e->map;
    for (int i = 0; i < 3 && all; i++) {
        e->dx[i] = lw_alloc(w, sizeof *e->dx[i]);
        e->dy[i] = lw_alloc(w, sizeof *e->dy[i]);
        e->strength[i] = lw_alloc(w + 2, sizeof *e->strength[i]);
        all = e->dx[i] && e->dy[i] && e->strength[i];
    }
    if (!all) return false;
    gradient_row(e, in, 0);
    for (int32_t y = 0; y < e->height; y++) {
        if (y + 1 < e->height) gradient_row(e, in, y + 1);
        else memset(e->strength[(y + 1) % 3], 0, (w + 2) * sizeof(int16_t)); /* outside: no gradient */
        if (!mark_row(e, y)) return false;
    }
    return follow(e);
}

/* floor() as an int, whatever the size of v. */
static int threshold(double v) { return v >= INT_MAX ? INT_MAX : v <= INT_MIN ? INT_MIN : (int)floor(v); }

lw_status lw_canny(const lw_image *in, double low, double high, lw_image *out, lw_error *err) {
    if (!out || out == in) return lw_fail(err, LW_EINVAL, "lw_canny: out is %s", out ? "in itself" : "NULL");
    memset(out, 0, sizeof *out);
    LW_TRY(lw_image_check(in, "lw_canny", err));
    if (in->channels == 4) return lw_fail(err, LW_EINVAL, "lw_canny: the picture has 4 channels, want 1 or 3");
    if (!isfinite(low) || !isfinite(high))
        return lw_fail(err, LW_EINVAL, "lw_canny: the thresholds are %g and %g, want numbers", low, high);
    LW_TRY(lw_image_new(out, (uint64_t)in->width, (uint64_t)in->height, 1, "lw_canny", err));
    edges e = {.width = in->width,
               .height = in->height,
               .channels = in->channels,
               .low = threshold(fmin(low, high)),
               .high = threshold(fmax(low, high))};
    lw_status status = LW_OK;
    if (find(&e, in)) {
        for (int32_t y = 0; y < in->height; y++) {
            const uint8_t *from = e.map + ((size_t)y + 1) * ((size_t)in->width + 2) + 1;
            uint8_t *to = lw_image_row(out, y);
            for (int32_t x = 0; x < in->width; x++) to[x] = from[x] == STRONG ? 255 : 0;
        }
    } else {
        status = lw_fail(err, LW_ENOMEM, "lw_canny: no memory for the edges of %d x %d pixels", in->width, in->height);
        lw_image_free(out);
    }
    lw_free(e.columns);
    lw_free(e.raw);
    lw_free(e.map);
    lw_free(e.stack);
    for (int i = 0; i < 3; i++) {
        lw_free(e.dx[i]);
        lw_free(e.dy[i]);
        lw_free(e.strength[i]);
    }
    return status;
}
