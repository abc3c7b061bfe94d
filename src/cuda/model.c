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
                          .cache = 11400,
                          .zero_row = 1.44,
                          .latency = 790,
                          .launch = 910,
                          .ends = 1831,
                          .finish = 7.29,
                          .across = 6.43,
                          .beside = 0.99,
                          .turn = 6.85,
                          .stay = 1169,
                          .stream = 533,
                          .meet = 5.08};

/* Clusters of 4 and 8 do not fill the device: its multiprocessors are in clusters of their own, of 16 or 18 less the
 * faulty ones. 120 of 132 could be used where this was measured. */
static int32_t places(const cu_model *m, int32_t splits) { return splits < 4 ? m->n_sm : m->n_sm - m->n_sm / 11; }

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
    return (m->launch + m->stay + sqrt(tiles * steps * tiles * steps + cache * cache + read * read) + finish) * 1e-3;
}

double cu_product_us(const cu_model *m, const cu_tiling *t, int32_t n_rows, int32_t members, int32_t tile,
                     int32_t splits, bool pairs) {
    const cu_tile_size *s = &cu_product_tiles[tile];
    if (tile >= CU_N_WGMMA_TILES) return turns_us(m, t, n_rows, members, s);
    const cu_ring ring = cu_ring_of(t, s->rows, s->columns, s->blocks, splits);
    const int32_t columns = cu_ceil_div(n_rows, s->columns), here = places(m, pairs ? 2 * splits : splits),
                  empty = columns * s->columns - n_rows, /* rows of the last tile of columns */
        steps_each = cu_ceil_div(t->steps, splits), again = steps_each > ring.weights ? steps_each - ring.weights : 0,
                  boxes_each = t->patch ? cu_ceil_div(steps_each, (int32_t)t->by_taps.by) : steps_each;
    const double blocks = (double)members * t->tiles * columns * splits, waves = ceil(blocks / (here * s->blocks)),
                 beside = blocks > here ? s->blocks : 1, steps = waves * steps_each,
                 sums = (double)s->rows * s->columns, weights = s->columns - empty,
                 bytes = (boxes_each * t->box_rows + steps_each * weights) * CU_CHUNK_BYTES,
                 spared = pairs ? again * weights / 2 * CU_CHUNK_BYTES : 0;
    const double multiply = steps * beside * sums * CU_CHUNK / m->multiply,
                 cache = blocks * (bytes - spared) / m->cache + steps * beside * empty * m->zero_row,
                 wait = steps * m->latency / (ring.weights - 1), meet = pairs ? waves * again * m->meet : 0,
                 read = (double)members * n_rows * t->steps * CU_CHUNK_BYTES / m->memory,
                 finish = (1 + (beside - 1) * m->beside) * sums / 64 * (m->finish + (splits - 1) * m->across) / splits;
    return (m->launch + waves * (m->ends + finish) + meet +
            sqrt(multiply * multiply + cache * cache + wait * wait + read * read)) *
           1e-3;
}

/* A part of two steps or more: of one alone the ring is for nothing. Gates are not split (wgmma.cu). */
cu_choice cu_product_splits(const cu_model *m, const cu_product_args *a, int32_t members, int32_t tile) {
    cu_tiling t;
    cu_wgmma_tiling(&t, a, cu_product_tiles[tile].rows);
    t.steps += cu_shortcut_steps(a);
    cu_choice best = {.tile = tile, .splits = 1, .us = cu_product_us(m, &t, a->n_rows, members, tile, 1, 0)};
    const int32_t most = tile < CU_N_WGMMA_TILES && a->epi.act != CU_ACT_GEGLU ? CU_WGMMA_MAX_SPLITS : 1;
    for (int32_t s = 1; s <= most && tile < CU_N_WGMMA_TILES; s *= 2) {
        if (s > 1 && t.steps < 2 * s) break;
        for (int pairs = 0; pairs <= cu_can_pair(&t, s); pairs++) {
            const double us = cu_product_us(m, &t, a->n_rows, members, tile, s, pairs);
            if (us < best.us) best = (cu_choice){tile, s, pairs, us};
        }
    }
    return best;
}

/* Of equals the last: higher tiles read weights less often. */
cu_choice cu_product_choose(const cu_model *m, const cu_product_args *a, int32_t members, bool turns) {
    cu_choice best = cu_product_splits(m, a, members, 0);
    for (int32_t tile = 1; tile < (turns ? CU_N_PRODUCT_TILES : CU_N_WGMMA_TILES); tile++) {
        if (a->row_stats && cu_product_tiles[tile].columns % CU_ROW_PART) continue;
        const cu_choice c = cu_product_splits(m, a, members, tile);
        if (c.us <= best.us) best = c;
    }
    return best;
}

bool cu_wgmma_fills(int32_t channels) { return 2 * channels > cu_ceil_div(channels, CU_CHUNK) * CU_CHUNK; }
