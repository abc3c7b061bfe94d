/* SPDX-License-Identifier: MIT
 * What a launch of the Hopper products (wgmma.cu) takes, by a plain model: it chooses tile and splits of a product that
 * nobody has timed. tests/unit/model_test.c holds it against the times of a device (docs/perf/products-h200.tsv). */
#ifndef LW_CUDA_MODEL_H
#define LW_CUDA_MODEL_H

#include "cuda/tiles.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cu_tile_size {
    const char *name;              /* "128x96"; "t128x128" of a block that stays */
    int32_t rows, columns, blocks; /* blocks: on a multiprocessor at once */
} cu_tile_size;
extern const cu_tile_size cu_product_tiles[CU_N_PRODUCT_TILES];

typedef struct cu_model {
    int32_t n_sm;
    double memory;   /* bytes a ns of the device's memory, at most */
    double multiply; /* products a ns of a multiprocessor */
    double cache;    /* bytes a ns that the level-2 cache gives to all of them, were it alone */
    double zero_row; /* ns of a row of 64 channels outside the tensor, which it fills with zeros */
    double latency;  /* ns between asking for a box and having it */
    double launch;   /* ns from one launch to the next, of which none does anything */
    double ends;     /* ns of a block before and after its steps */
    double finish;   /* ns of 64 sums: their way through shared memory, and the epilogue */
    double across;   /* ns of 64 sums of another block of the cluster on their way to this one */
    double beside;   /* of a second block on a multiprocessor, the part of finish that the first does not cover */
    double stay;     /* as ends, of a block that stays */
    double turn;     /* ns of 64 sums of a block that stays, on their way out while others are made */
    double stream;   /* bytes a ns that the copy engine brings to such a block */
    double meet;     /* ns of a step whose weights two blocks give back */
} cu_model;
/* Of the H200 that the constants were fitted on; a device puts its own n_sm and memory in their place. */
extern const cu_model cu_h200;

typedef struct cu_choice {
    int32_t tile, splits;
    bool pairs;
    double us;
} cu_choice;

/* Of `members` products with tiling t by that tile and n_rows rows of weights each, in one launch. */
double cu_product_us(const cu_model *m, const cu_tiling *t, int32_t n_rows, int32_t members, int32_t tile,
                     int32_t splits, bool pairs);
/* The best splits of a tile, and whether its tiles go in pairs; of the args only the sizes count. */
cu_choice cu_product_splits(const cu_model *m, const cu_product_args *a, int32_t members, int32_t tile);
/* The best tile with its splits; turns: of turns.cu's, too. */
cu_choice cu_product_choose(const cu_model *m, const cu_product_args *a, int32_t members, bool turns);

/* Whether a product has so many channels that at most half of each step is zeros. Below that mma.sync is faster: 8
 * channels, 48x32 twice, 320 columns took 8.7 us there and 14.6 here. */
bool cu_wgmma_fills(int32_t channels);

#ifdef __cplusplus
}
#endif

#endif
