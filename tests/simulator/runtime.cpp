/* SPDX-License-Identifier: MIT
 * What the backend calls of the CUDA runtime, for one device that the simulator runs: memory is the host's, a stream is
 * done at once, a graph is the list of what was captured. A launch that the next one may overlap is kept, by chance,
 * until there is a next one. Calls that the backend does not make are not here. */
#include "simulator.h"
#include "stream.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include <sys/mman.h>

struct CUgraph_st {
    std::vector<std::function<cudaError_t()>> nodes;
};
struct CUgraphExec_st {
    std::vector<std::function<cudaError_t()>> nodes;
};
struct CUstream_st {
    CUgraph_st *captures;
};
struct CUevent_st {
    double ms;
};

namespace {

std::recursive_mutex lock; /* the backend is called by several threads */
typedef std::lock_guard<std::recursive_mutex> locked;

enum { PAGE = 4096 };
constexpr size_t TOTAL = 32ull << 30;
size_t used = 0;
std::map<void *, std::pair<void *, size_t>> allocated; /* by address: what was mapped */
std::map<const void *, int> most_shared;               /* by kernel: cudaFuncAttributeMaxDynamicSharedMemorySize */
sim::launch kept;
bool keeps = false;
cudaError_t failed = cudaSuccess; /* of a launch that was kept */

double ms_now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* All that was launched is done. */
cudaError_t settle() {
    if (keeps) {
        keeps = false;
        if (!sim::run(kept, nullptr)) failed = cudaErrorLaunchFailure;
    }
    const cudaError_t e = failed;
    failed = cudaSuccess;
    return e;
}

cudaError_t go(const sim::launch &what) {
    const sim::launch before = kept;
    const bool overlaps = keeps && what.overlap;
    if (!overlaps) {
        const cudaError_t e = settle();
        if (e != cudaSuccess) return e;
        if (sim::chance(2)) {
            kept = what, keeps = true;
            return cudaSuccess;
        }
    }
    keeps = false;
    return sim::run(what, overlaps ? &before : nullptr) ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t do_or_capture(cudaStream_t stream, std::function<cudaError_t()> what) {
    if (!stream->captures) return what();
    stream->captures->nodes.push_back(std::move(what));
    return cudaSuccess;
}

/* Ends at a page that nobody may touch; what nobody has written is NaN. */
void *new_memory(size_t bytes, size_t align) {
    const size_t rounded = (bytes + align - 1) / align * align, mapped = (rounded + PAGE - 1) / PAGE * PAGE + PAGE;
    void *p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    char *const end = static_cast<char *>(p) + mapped - PAGE, *const at = end - rounded;
    mprotect(end, PAGE, PROT_NONE);
    memset(p, 0xff, mapped - PAGE);
    allocated[at] = {p, mapped};
    used += mapped;
    return at;
}

cudaError_t free_memory(void *p) {
    const auto found = allocated.find(p);
    if (!p) return cudaSuccess;
    if (found == allocated.end()) return cudaErrorInvalidValue;
    munmap(found->second.first, found->second.second);
    used -= found->second.second;
    allocated.erase(found);
    return cudaSuccess;
}

} // namespace

cudaError_t sim::start(const cudaLaunchConfig_t &config, const void *kernel, std::function<void()> body) {
    locked l(lock);
    sim::launch what = {config.gridDim, config.blockDim, dim3(1), config.dynamicSmemBytes, false, std::move(body)};
    for (unsigned i = 0; i < config.numAttrs; i++) {
        const cudaLaunchAttribute &a = config.attrs[i];
        if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization)
            what.overlap = a.val.programmaticStreamSerializationAllowed;
        else if (a.id == cudaLaunchAttributeClusterDimension)
            what.cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
        else return cudaErrorInvalidValue;
    }
    const dim3 &g = what.grid, &b = what.block, &c = what.cluster;
    const auto found = most_shared.find(kernel);
    const size_t most = found == most_shared.end() ? 48 * 1024 : static_cast<size_t>(found->second);
    if (!g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535 || !b.x || !b.y || !b.z || b.x * b.y * b.z > 1024 ||
        b.z > 64 || c.x * c.y * c.z > 8 || g.x % c.x || g.y % c.y || g.z % c.z || what.shared > most)
        return cudaErrorInvalidConfiguration;
    return do_or_capture(config.stream, [what] { return go(what); });
}

extern "C" {

/* ---- the device */

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

/* SIMULATOR_SM: how many multiprocessors; few have blocks take many tiles each. */
static int n_sm() {
    const char *n = getenv("SIMULATOR_SM");
    return n ? atoi(n) : 132;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "simulated sm_90a");
    p->major = 9;
    p->multiProcessorCount = n_sm();
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 6144;
    p->totalGlobalMem = TOTAL;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
    if (which == cudaDevAttrMultiProcessorCount) *value = n_sm();
    else if (which == cudaDevAttrMemoryClockRate) *value = 3201000;
    else return cudaErrorInvalidValue;
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
    const bool known = !strcmp(name, "cuTensorMapEncodeTiled");
    *function = known ? reinterpret_cast<void *>(sim::encode_map) : nullptr;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "error"; }
const char *cudaGetErrorString(cudaError_t e) {
    static thread_local char text[32];
    snprintf(text, sizeof text, "simulated error %d", static_cast<int>(e));
    return text;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

/* ---- kernels */

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    memset(attributes, 0, sizeof *attributes);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute which, int value) {
    locked l(lock);
    if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value > static_cast<int>(sim::MOST_SHARED)) return cudaErrorInvalidValue;
        most_shared[kernel] = value;
    }
    return cudaSuccess;
}

/* ---- memory */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    locked l(lock);
    *p = used + bytes > TOTAL ? nullptr : new_memory(bytes, 256);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) {
    locked l(lock);
    const cudaError_t e = settle();
    return e != cudaSuccess ? e : free_memory(p);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaMalloc(p, bytes); }
cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    locked l(lock);
    *left = TOTAL - used, *total = TOTAL;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    locked l(lock);
    return do_or_capture(stream, [=] {
        const cudaError_t e = settle();
        memcpy(to, from, bytes);
        return e;
    });
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    locked l(lock);
    return do_or_capture(stream, [=] {
        const cudaError_t e = settle();
        memset(to, value, bytes);
        return e;
    });
}

/* ---- streams and graphs */

cudaError_t simulator_do(cudaStream_t stream, void (*what)(const void *args), const void *args, size_t bytes) {
    locked l(lock);
    const std::string copy(static_cast<const char *>(args), bytes);
    return do_or_capture(stream, [what, copy] {
        const cudaError_t e = settle();
        if (e == cudaSuccess) what(copy.data());
        return e;
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new CUstream_st{nullptr};
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    locked l(lock);
    return settle();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->captures = new CUgraph_st;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->captures;
    stream->captures = nullptr;
    return *graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long) {
    *ready = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    locked l(lock);
    for (const auto &node : graph->nodes) {
        const cudaError_t e = node();
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st{0};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    locked l(lock);
    return do_or_capture(stream, [event] {
        const cudaError_t e = settle();
        event->ms = ms_now();
        return e;
    });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = static_cast<float>(to->ms - from->ms);
    return cudaSuccess;
}

} // extern "C"
