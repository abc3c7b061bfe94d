/* SPDX-License-Identifier: MIT
 * The steps of a launch are bound by four things: the matrix unit, what the level-2 cache gives to all multiprocessors,
 * how many copies are under way at once, and the device's memory, of which no two are quite hidden behind each other:
 * their times add up as squares. Before and after the steps come the launch, the first copies, and the epilogue. */
#include "cuda/model.h"

#include <math.h>

const cu_tile_size cu_product_tiles[CU_N_PRODUCT_TILES] = {
#define X(index, rows, columns, blocks) [index] = {#rows "x" #columns, rows, columns, blocks},
    CU_WGMMA_TILES(X)
#undef X
#define X(index, rows, columns) [index] = {"t" #rows "x" #columns, rows, columns, 1},
        CU_TURNS_TILES(X)
#undef X
};

/* multiply is the device's: 2048 a cycle at 1.98 GHz; memory: the data sheet's; launch: `linework-gpu-micro gaps`. The
 * others: `model_test --fit` on docs/perf/products-h200.tsv. */
const cu_model cu_h200 = {.n_sm = 132,
                          .memory = 4800,
                          .multiply = 4055,
                          .cache = 14790,
                          .zero_row = 1.56,
                          .latency = 842,
                          .launch = 910,
                          .ends = 2005,
                          .finish = 9.76,
                          .across = 14.7,
                          .beside = 0.6,
                          .useful = 0.76,
                          .normed = 1.35,
                          .turn = 2.88,
                          .stream = 114};

/* Clusters of 4 and 8 do not fill the device: its multiprocessors are in clusters of their own, of 16 or 18 less the
 * faulty ones. 120 of 132 could be used where this was measured. */
static int32_t places(const cu_model *m, int32_t splits) { return splits < 4 ? m->n_sm : m->n_sm - m->n_sm / 11; }

/* As wgmma.cu divides shared memory. */
static int32_t stages(const cu_tile_size *s) {
    const int32_t fit = (228 / s->blocks - 8) * 1024 / ((s->rows + s->columns) * CU_CHUNK_BYTES);
    return fit < 8 ? fit : 8;
}

/* A block that stays: its tiles' steps in a row, as many tiles as the block with the most has; the results of each but
 * the last leave beside the next one's steps, unless these are fewer. */
static double turns_us(const cu_model *m, const cu_tiling *t, int32_t n_rows, int32_t members, const cu_tile_size *s) {
    const double sums = (double)s->rows * s->columns,
                 bytes = t->steps * (double)(s->rows + s->columns) * CU_CHUNK_BYTES,
                 all = (double)members * t->tiles * cu_ceil_div(n_rows, s->columns), tiles = ceil(all / m->n_sm),
                 multiply = t->steps * sums * CU_CHUNK / m->multiply, copy = bytes / m->stream,
                 finish = sums / 64 * m->turn, steps = fmax(sqrt(multiply * multiply + copy * copy), finish),
                 cache = all * bytes / m->cache,
                 read = (double)members * n_rows * t->steps * CU_CHUNK_BYTES / m->memory;
    return (m->launch + m->ends + sqrt(tiles * steps * tiles * steps + cache * cache + read * read) + finish) * 1e-3;
}

double cu_product_us(const cu_model *m, const cu_tiling *t, int32_t n_rows, int32_t members, int32_t tile,
                     int32_t splits) {
    const cu_tile_size *s = &cu_product_tiles[tile];
    if (tile >= CU_N_WGMMA_TILES) return turns_us(m, t, n_rows, members, s);
    const int32_t columns = cu_ceil_div(n_rows, s->columns), here = places(m, splits),
                  empty = columns * s->columns - n_rows; /* rows of the last tile of columns */
    const double blocks = (double)members * t->tiles * columns * splits, waves = ceil(blocks / (here * s->blocks)),
                 shared = blocks > here ? s->blocks : 1, steps = waves * cu_ceil_div(t->steps, splits),
                 sums = (double)s->rows * s->columns, rows = t->bw * t->bh * t->bn + s->columns - empty;
    const double multiply = steps * shared * sums * CU_CHUNK / m->multiply,
                 copy = blocks * cu_ceil_div(t->steps, splits) * rows * CU_CHUNK_BYTES / m->cache +
                        steps * shared * empty * m->zero_row,
                 wait = steps * m->latency / (stages(s) - 1),
                 read = (double)members * n_rows * t->steps * CU_CHUNK_BYTES / m->memory,
                 finish = (1 + (shared - 1) * m->beside) * sums / 64 * (m->finish + (splits - 1) * m->across) / splits;
    return (m->launch + waves * (m->ends + finish) +
            sqrt(multiply * multiply + copy * copy + wait * wait + read * read)) *
           1e-3;
}

/* Sharing begins with the ring's second round. Where measured, pairs took 0.87 to 1.04 of the time at 4 splits, as
 * little of low tiles, which read more weights, at 2; elsewhere waiting for each other cost as much as was saved. */
static bool pairs_pay(const cu_tiling *t, int32_t tile, int32_t splits) {
    const cu_tile_size *s = &cu_product_tiles[tile];
    return tile < CU_N_WGMMA_TILES && cu_can_pair(t, splits) && (splits == 4 || (splits == 2 && s->rows == 64)) &&
           t->steps / splits > stages(s);
}

double cu_layer_norm_us(const cu_model *m, int64_t values) {
    return (m->launch + 2300 + 4.0 * (double)values / (m->memory * m->useful)) * 1e-3;
}

/* A part of two steps or more: of one alone the ring is for nothing. */
cu_choice cu_product_splits(const cu_model *m, const cu_product_args *a, int32_t members, int32_t tile) {
    cu_tiling t;
    cu_wgmma_tiling(&t, a, cu_product_tiles[tile].rows);
    t.steps += cu_shortcut_steps(a);
    cu_choice best = {.tile = tile, .splits = 1, .us = cu_product_us(m, &t, a->n_rows, members, tile, 1)};
    for (int32_t s = 2; tile < CU_N_WGMMA_TILES && s <= CU_WGMMA_MAX_SPLITS && t.steps >= 2 * s; s *= 2) {
        const double us = cu_product_us(m, &t, a->n_rows, members, tile, s);
        if (us < best.us) best.splits = s, best.us = us;
    }
    best.pairs = pairs_pay(&t, tile, best.splits);
    return best;
}

/* Of equals the last: higher tiles read weights less often. */
cu_choice cu_product_choose(const cu_model *m, const cu_product_args *a, int32_t members, bool turns) {
    cu_choice best = cu_product_splits(m, a, members, 0);
    for (int32_t tile = 1; tile < (turns ? CU_N_PRODUCT_TILES : CU_N_WGMMA_TILES); tile++) {
        const cu_choice c = cu_product_splits(m, a, members, tile);
        if (c.us <= best.us) best = c;
    }
    return best;
}

bool cu_wgmma_fills(int32_t channels) { return 2 * channels > cu_ceil_div(channels, CU_CHUNK) * CU_CHUNK; }
