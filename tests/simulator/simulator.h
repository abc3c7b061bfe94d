/* SPDX-License-Identifier: MIT
 * A functional simulator of the device that the CUDA kernels are written for (sm_90a): what their PTX does, by a CPU,
 * one thread of a block as a fiber each. cuda/ptx.cuh beside this file takes the place of src/cuda/ptx.cuh, runtime.cpp
 * that of the CUDA runtime; the rest of the backend is compiled as it is. It has no notion of time.
 *
 * What the device leaves open is decided by chance, so that a program that relies on it does not pass for long: which
 * warp goes on, in what order blocks run, when an asynchronous copy is done (at once, or when nobody can go on without
 * it), when a product is made (when it is asked for, or when it is waited for), how far a launch comes before the one
 * before it has begun. Memory that nobody has written is NaN. The environment's SIMULATOR_SEED is the seed,
 * SIMULATOR_SM the number of multiprocessors.
 *
 * A mistake ends the launch with one line that names it and the thread: warps that wait for each other, lanes that meet
 * at different places, barriers that are not made or whose counts do not agree, blocks that end while something is on
 * its way to them, addresses that are misaligned or outside of shared memory. Reads and writes past the end of device
 * memory or of a block's shared memory end the process, with the same line.
 *
 * Races in shared memory are found whether or not they did harm (races.cpp), unless SIMULATOR_RACES is 0.
 *
 * Not modelled: fences but those that the copy engine and the matrix unit need, races in device memory, registers but
 * for setmaxnreg. compute-sanitizer on a device finds some of those. */
#ifndef LW_SIMULATOR_H
#define LW_SIMULATOR_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>

namespace sim {

struct block;
struct cluster;
struct grid;
struct warp;
struct fiber;

/* What a thread waits for; its name is in the report of a deadlock. */
enum wait_kind { NOTHING, WARP, BLOCK, BARRIER, CLUSTER, LAUNCH, REGISTERS };

/* What lanes of a warp meet for: all for the same. */
enum meeting { SYNC, SHUFFLE, ELECT, LOAD_MATRICES, MULTIPLY, ASK, COMMIT, WAIT_SUMS, GIVE_REGISTERS, TAKE_REGISTERS };

/* ---- who knows of whose accesses: vector clocks. An agent is a thread, the matrix unit on behalf of a warp, or the
 * copy engine on behalf of a barrier; its epochs are what others learn of. */
typedef std::shared_ptr<const std::vector<uint32_t>> knowledge; /* by agent: up to which epoch; NULL: of nothing */

struct agent {
    uint32_t number, epoch;
    knowledge knows;
};

/* Where some arrive and others, or the same, go on: these then know what those did before. */
struct sync_point {
    std::vector<uint32_t> gathered;
    knowledge last, known, learner, learned; /* the last two: who had learned what, for the next who knows the same */
};

struct copy { /* cp.async */
    void *to;
    const void *from; /* nullptr: zeros */
    int bytes, group;
};

struct thread {
    uint3 index;
    block *in;
    warp *of;
    int lane;
    fiber *runs;
    bool over;
    wait_kind waits;
    uint32_t waits_for, waits_parity;
    /* to the others of the warp, and from them */
    union {
        uint64_t value;
        struct {
            const void *address;
            uint32_t *to;
        } matrices;
        struct {
            float *sums;
            const uint32_t *a;
            uint32_t b[2];
            uint64_t a_operand, b_operand;
        } product;
    } says;
    int reads_lane;
    uint64_t hears;
    std::vector<copy> copies;
    int copy_group;
    bool at_cluster; /* has arrived and not waited */
    uint64_t cluster_round;
    agent me;
    std::vector<uint32_t> fences; /* epochs that begin with fence.proxy.async */
};

extern thread *now; /* which runs */

/* ---- launches */

struct launch {
    dim3 grid, block, cluster;
    size_t shared;
    bool overlap;
    std::function<void()> body;
};
cudaError_t start(const cudaLaunchConfig_t &config, const void *kernel, std::function<void()> body);
/* All of a launch, and of the one before it where that is still to run. False: a mistake was reported. */
bool run(const launch &what, const launch *before);

[[noreturn]] void mistake(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *last_mistake();  /* its line */
uint32_t chance(uint32_t n); /* below n */
/* The driver's cuTensorMapEncodeTiled. */
CUresult encode_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t axes, void *address, const cuuint64_t *dims,
                    const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *every,
                    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                    CUtensorMapFloatOOBfill fill);

/* ---- what ptx.cuh calls; of the thread that runs */

const dim3 &block_index();
const dim3 &block_size();
const dim3 &grid_size();

void *shared_object(int line, size_t bytes); /* the same for all threads of a block that ask at that line */
void *shared_rest(size_t align);
uint32_t shared_address(const void *p);
void *shared_pointer(uint32_t address, size_t bytes); /* of this block or, by there_of, of another */
uint32_t there_of(uint32_t address, uint32_t block);

void launch_wait();
void cluster_arrive();
void cluster_wait();

uint64_t shuffle(uint64_t value, int from);
void warp_sync();
bool elect();
void meet(int number, int threads, bool waits); /* threads 0: all of the block */
void registers(int n, bool take);

void barrier_init(uint32_t bar, uint32_t count);
void barriers_made();
void shared_written();
void barrier_arrive(uint32_t bar, uint32_t expected_bytes);
void barrier_wait(uint32_t bar, uint32_t parity);

/* mask: blocks of the cluster, 0: this one */
void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar, const int *at, int axes, uint32_t mask);
void send_bytes(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar);

void copy_in(void *to, const void *from, int bytes, bool real);
void copy_commit();
void copy_wait(int left);

void load_matrices(uint32_t r[4], const void *row, bool transposed);
void multiply(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
/* a: NULL where the operand is in shared memory; b_operand is then [columns][16], else [16][columns] */
void ask(float *d, int columns, uint64_t a_operand, const uint32_t *a, uint64_t b_operand);
void sums_commit();
void sums_wait(int left);

/* ---- between the simulator's files */

/* A product of a warp's 16 rows, asked for and not made. */
struct product {
    int columns;
    bool values;
    uint64_t a, b;
    float *sums[32];
    uint32_t in_registers[32][4];
    agent by;
};
struct products { /* of a commit */
    std::vector<product> to_make;
    uint32_t epoch;
};

struct warp {
    block *in;
    thread *lanes[32];
    uint32_t there, over, ready, arrived; /* bits of lanes */
    bool listed;                          /* among the cluster's ready warps */
    meeting meets;
    int meets_at; /* of whatever else must agree */
    int elected;
    int registers;
    std::vector<product> open;
    std::vector<products> groups;
    sync_point together;
    uint32_t matrix_agent, matrix_epoch;
};

struct barrier {
    uint32_t address;
    int count, pending;
    int64_t bytes;
    uint32_t phase;
    std::vector<thread *> waiting;
    uint32_t made_by, made_at, agent_number;
    bool announced; /* fence.mbarrier_init */
    sync_point sync;
};

struct meeting_place {
    int arrived = 0, threads = 0;
    std::vector<thread *> waiting;
    sync_point sync;
};

struct cell; /* of shared memory: races.cpp */
enum { MAX_BARRIERS = 64 };

struct block {
    cluster *of;
    uint32_t rank;
    dim3 index;
    unsigned char *memory; /* shared; address 0 */
    cell *cells;
    uint32_t first_agent;
    uint32_t objects; /* where the next object goes */
    std::vector<std::pair<int, void *>> by_line;
    std::vector<barrier> barriers;
    meeting_place places[16];
    int alive, free_registers;
    std::vector<thread *> wants_registers;
    std::vector<thread> threads;
    std::vector<warp> warps;
};

struct cluster {
    grid *of;
    std::vector<block> blocks;
    std::vector<warp *> ready;
    std::vector<std::function<void()>> under_way; /* asynchronous copies */
    int alive, arrived;
    uint64_t round;
    std::vector<thread *> waiting, wait_for_launch;
    sync_point sync;
    std::vector<thread *> thread_of; /* by agent, NULL: none */
};

struct grid {
    const launch *what;
    const launch *before; /* NULL: done */
    int patience;         /* of 16: how likely an asynchronous thing is to wait for as long as it can */
};

/* All lanes of the warp that are not over: true in the last of them, which acts for all and then calls leave_together;
 * false in the others, when that is done. whole: the warp has to have all its 32 lanes. */
bool come_together(meeting what, int at, bool whole);
void leave_together();
bool is_patient(); /* by chance: not now */

/* ---- races.cpp */

bool finds_races();
void arrive(sync_point &s, thread &who); /* and another epoch begins for him */
void open(sync_point &s);                /* all have arrived */
void learn(sync_point &s, agent &who);
knowledge known_to(thread *const *who, int n); /* together; another epoch begins for each */
/* Of number `of` up to an epoch; memo: as of sync_point, for who knows the same. */
void learn_of(thread &who, uint32_t of, uint32_t epoch, knowledge memo[2]);
bool knows_of(const agent &who, uint32_t of, uint32_t epoch);
/* engine: by the copy engine or the matrix unit, which see what threads wrote before a fence */
void reads(block &b, uint32_t address, uint32_t bytes, const agent &who, bool engine);
/* The same of rows of A, which may be rows of nothing: a tile has more than its picture, and reads what comes behind.
 * False: what is there may be in the middle of being written, and the row's sums are NaN; and a copy may come over it
 * while it is read. */
bool rows_are_there(block &b, uint32_t address, uint32_t bytes, const agent &who);
void writes(block &b, uint32_t address, uint32_t bytes, const agent &who, bool engine);
cell *new_cells();
void free_cells(cell *cells);

enum : uint32_t {
    FIRST_SHARED = 1024, /* the system's are before */
    MOST_SHARED = 227 * 1024,
    END_SHARED = FIRST_SHARED + MOST_SHARED,
};

/* The 16 bytes of a row of 128 that lie at an address, by 128-byte swizzle. Not cu_swizzle: the simulator knows nothing
 * of the backend's arithmetic, which it tests. */
inline uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

} // namespace sim

#endif
