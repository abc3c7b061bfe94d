/* SPDX-License-Identifier: MIT
 * The Hopper products with a clock in them: cu_wgmma's kernels compiled once more (phases.cu), whose blocks leave the
 * moments that wgmma.cu marks. */
#ifndef LW_BENCH_PHASES_CUH
#define LW_BENCH_PHASES_CUH

#include <vector>

#include "cuda/kernels.h"

/* In a block's order, and what has happened then. The warp that copies weights: BARRIERS to WEIGHTS; the one that copies
 * the input: PREVIOUS to ASKED; one that multiplies: the others. */
#define PHASES(X)                                                                                                      \
    X(BEGIN, "begin")           /* the block's first instructions */                                                   \
    X(BARRIERS, "barriers")     /* are made */                                                                         \
    X(OPERANDS, "operands")     /* where the first copy is from is known */                                            \
    X(FIRST, "first")           /* copy of weights is asked for */                                                     \
    X(WEIGHTS, "weights")       /* copies of the ring's first round are asked for */                                   \
    X(PREVIOUS, "previous")     /* the launch before is over */                                                        \
    X(INPUTS, "inputs")         /* of the first round are asked for */                                                 \
    X(ASKED, "asked")           /* the last copy is asked for */                                                       \
    X(TOGETHER, "together")     /* those that multiply know that barriers are made */                                  \
    X(FULL, "full")             /* the first boxes */                                                                  \
    X(MULTIPLIED, "multiplied") /* the last step's sums are done */                                                    \
    X(STORED, "stored")         /* sums are in shared memory, or sent */                                               \
    X(MET, "met")               /* all sums and parts are there */                                                     \
    X(FINISHED, "finished")     /* this thread's rows are on their way out */
enum phase {
#define X(name, text) PHASE_##name,
    PHASES(X)
#undef X
    N_PHASES
};

/* One block's: the device's clock when it began, in ns; multiprocessor; cycles of that one at each phase, 0: did not
 * come by. */
struct block_phases {
    unsigned long long began, ended, sm, at[N_PHASES];
};
enum { MAX_PHASE_BLOCKS = 4096 };

/* As cu_wgmma. */
extern "C" cudaError_t phases_wgmma(cu_order order, const cu_product_args *args, int32_t n, void *encode_map);
/* Of the launches since the last call, those of the last one; forgets them. */
cudaError_t phases_read(std::vector<block_phases> &blocks);

#endif
