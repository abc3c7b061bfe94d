/* SPDX-License-Identifier: MIT
 * Opening a device; its memory, copies, marks and graphs. */
#include "cuda/cuda.h"

#include <stdio.h>
#include <string.h>

#include <nvtx3/nvToolsExt.h>

#include "cuda/device.h"

void lw_cuda_version(char *text, size_t n) {
    snprintf(text, n, "%d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

/* ---- errors */

static int32_t index_of(const lw_backend *backend) { return ((const cu_backend *)backend)->index; }

lw_status cu_fail(const lw_backend *backend, lw_error *err, cudaError_t e, const char *call) {
    return lw_fail(err, e == cudaErrorMemoryAllocation ? LW_ENOMEM : LW_EDEVICE, "cuda:%d: %s: %s (%s)",
                   index_of(backend), call, cudaGetErrorString(e), cudaGetErrorName(e));
}

lw_status cu_fail_blas(const lw_backend *backend, lw_error *err, cublasStatus_t e, const char *call) {
    return lw_fail(err, LW_EDEVICE, "cuda:%d: %s: cuBLASLt status %d", index_of(backend), call, (int)e);
}

lw_status cu_fail_dnn(const lw_backend *backend, lw_error *err, cudnnStatus_t e, const char *call) {
    return lw_fail(err, LW_EDEVICE, "cuda:%d: %s: %s", index_of(backend), call,
                   ((const cu_backend *)backend)->dn.GetErrorString(e));
}

lw_status cu_enter(lw_backend *backend, lw_error *err) {
    CU_TRY(backend, err, cudaSetDevice(cu_of(backend)->index));
    return LW_OK;
}

lw_status cu_launched(lw_backend *backend, const lw_op *op, cudaError_t e, lw_error *err) {
    if (lw_fault_hit()) e = cudaErrorUnknown;
    if (e == cudaSuccess) return LW_OK;
    return lw_fail(err, LW_EDEVICE, "cuda:%d: op %s (%s): launch: %s (%s)", index_of(backend), op->name,
                   lw_op_name(op->kind), cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---- memory and copies */

static lw_status gpu_alloc(lw_backend *backend, size_t bytes, void **out, lw_error *err) {
    void *p = NULL;
    LW_TRY(cu_enter(backend, err));
    cudaError_t e = lw_fault_hit() ? cudaErrorMemoryAllocation : cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        cudaGetLastError(); /* it is not sticky: the device works on */
        cudaMemGetInfo(&left, &total);
        return lw_fail(err, LW_ENOMEM, "cuda:%d: no memory for %zu bytes, %zu of %zu are free", index_of(backend),
                       bytes, left, total);
    }
    if (e != cudaSuccess) return cu_fail(backend, err, e, "cudaMalloc");
    e = cudaMemsetAsync(p, 0, bytes, cu_of(backend)->queue.stream);
    if (e != cudaSuccess) {
        cudaFree(p);
        return cu_fail(backend, err, e, "cudaMemsetAsync");
    }
    *out = p;
    return LW_OK;
}

static void gpu_free(lw_backend *backend, void *p) {
    if (!p || cu_enter(backend, NULL) != LW_OK) return;
    cudaFree(p);
}

/* Under the stage's lock: the host waits only for the copy that used this stage before. */
static lw_status send_piece(lw_backend *backend, cu_stage *stage, char *dst, const char *src, size_t bytes,
                            lw_error *err) {
    cudaStream_t stream = cu_of(backend)->queue.stream;
    CU_TRY(backend, err, cudaEventSynchronize(stage->sent));
    memcpy(stage->memory, src, bytes);
    CU_TRY(backend, err, cudaMemcpyAsync(dst, stage->memory, bytes, cudaMemcpyHostToDevice, stream));
    CU_TRY(backend, err, cudaEventRecord(stage->sent, stream));
    return LW_OK;
}

static cu_stage *next_stage(cu_backend *b) {
    pthread_mutex_lock(&b->lock);
    cu_stage *stage = &b->stages[b->next_stage];
    b->next_stage = (b->next_stage + 1) % CU_STAGES;
    pthread_mutex_unlock(&b->lock);
    return stage;
}

static lw_status gpu_upload(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    lw_status status = LW_OK;
    for (size_t at = 0; at < bytes && status == LW_OK; at += CU_STAGE_BYTES) {
        size_t n = bytes - at < CU_STAGE_BYTES ? bytes - at : CU_STAGE_BYTES;
        cu_stage *stage = next_stage(cu_of(backend));
        pthread_mutex_lock(&stage->lock);
        status = send_piece(backend, stage, (char *)dst + at, (const char *)src + at, n, err);
        pthread_mutex_unlock(&stage->lock);
    }
    return status;
}

static lw_status gpu_download(lw_backend *backend, void *dst, const void *src, size_t bytes, lw_error *err) {
    cudaStream_t stream = cu_of(backend)->queue.stream;
    LW_TRY(cu_enter(backend, err));
    CU_TRY(backend, err, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, stream));
    CU_TRY(backend, err, cudaStreamSynchronize(stream));
    return LW_OK;
}

static lw_status gpu_alloc_host(lw_backend *backend, size_t bytes, void **out, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    CU_TRY(backend, err, cudaMallocHost(out, bytes ? bytes : 1));
    return LW_OK;
}

static void gpu_free_host(lw_backend *backend, void *p) {
    if (cu_enter(backend, NULL) == LW_OK) cudaFreeHost(p);
}

static lw_status gpu_fetch(lw_backend *backend, void *host, const void *src, size_t bytes, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    CU_TRY(backend, err, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, cu_of(backend)->queue.stream));
    return LW_OK;
}

/* Nsight's tools read these; without one attached each is a load and a branch. */
static void gpu_range(lw_backend *backend, const char *name) {
    (void)backend;
    if (name) nvtxRangePushA(name);
    else nvtxRangePop();
}

static uint64_t gpu_free_bytes(lw_backend *backend) {
    size_t left = 0, total = 0;
    if (cu_enter(backend, NULL) != LW_OK || cudaMemGetInfo(&left, &total) != cudaSuccess) return 0;
    return left;
}

/* ---- marks are events. In a capture they become nodes of the graph, timed each time it runs. */

static lw_status gpu_mark(lw_backend *backend, void *queue, void **mark, lw_error *err) {
    const cu_queue *q = queue ? queue : &cu_of(backend)->queue;
    LW_TRY(cu_enter(backend, err));
    if (!*mark) {
        cudaEvent_t event;
        CU_TRY(backend, err, cudaEventCreate(&event));
        *mark = event;
    }
    CU_TRY(backend, err,
           cudaEventRecordWithFlags(*mark, q->stream, q->captures ? cudaEventRecordExternal : cudaEventRecordDefault));
    return LW_OK;
}

static lw_status gpu_wait(lw_backend *backend, void *mark, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    CU_TRY(backend, err, cudaEventSynchronize(mark));
    return LW_OK;
}

static double gpu_between_ms(lw_backend *backend, void *from, void *to) {
    float ms = 0;
    return cu_enter(backend, NULL) == LW_OK && cudaEventElapsedTime(&ms, from, to) == cudaSuccess ? (double)ms : 0;
}

static void gpu_free_mark(lw_backend *backend, void *mark) {
    if (cu_enter(backend, NULL) == LW_OK) cudaEventDestroy(mark);
}

/* ---- graphs. A capture has a stream of its own: what other threads launch meanwhile is not caught by it. */

static void free_queue(cu_queue *q) {
    if (q->stream) cudaStreamDestroy(q->stream);
    lw_free(q);
}

static lw_status gpu_begin_capture(lw_backend *backend, void **queue, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    cu_queue *q = lw_alloc(1, sizeof *q);
    if (!q) return lw_fail(err, LW_ENOMEM, "no memory for a capture");
    q->captures = true;
    cudaError_t e = lw_fault_hit() ? cudaErrorUnknown : cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaStreamBeginCapture(q->stream, cudaStreamCaptureModeThreadLocal);
    if (e != cudaSuccess) {
        free_queue(q);
        return cu_fail(backend, err, e, "cudaStreamBeginCapture");
    }
    *queue = q;
    return LW_OK;
}

static lw_status gpu_end_capture(lw_backend *backend, void *queue, void **graph, lw_error *err) {
    cu_queue *q = queue;
    cudaGraph_t captured = NULL;
    cudaGraphExec_t ready = NULL;
    cudaError_t e = cudaStreamEndCapture(q->stream, &captured);
    if (e == cudaSuccess && graph) e = cudaGraphInstantiate(&ready, captured, 0);
    if (captured) cudaGraphDestroy(captured);
    free_queue(q);
    if (!graph) {
        cudaGetLastError(); /* of the op that failed: it has been reported */
        return LW_OK;
    }
    if (e != cudaSuccess) return cu_fail(backend, err, e, "cudaStreamEndCapture and cudaGraphInstantiate");
    *graph = ready;
    return LW_OK;
}

static lw_status gpu_replay(lw_backend *backend, void *graph, lw_error *err) {
    LW_TRY(cu_enter(backend, err));
    CU_TRY(backend, err, cudaGraphLaunch(graph, cu_of(backend)->queue.stream));
    return LW_OK;
}

static void gpu_free_graph(lw_backend *backend, void *graph) {
    if (cu_enter(backend, NULL) == LW_OK) cudaGraphExecDestroy(graph);
}

static const lw_behind behind = {.alloc_host = gpu_alloc_host,
                                 .free_host = gpu_free_host,
                                 .fetch = gpu_fetch,
                                 .mark = gpu_mark,
                                 .wait = gpu_wait,
                                 .between_ms = gpu_between_ms,
                                 .free_mark = gpu_free_mark,
                                 .begin_capture = gpu_begin_capture,
                                 .end_capture = gpu_end_capture,
                                 .replay = gpu_replay,
                                 .free_graph = gpu_free_graph,
                                 .free_bytes = gpu_free_bytes,
                                 .range = gpu_range};

/* ---- opening */

static void gpu_close(lw_backend *backend) {
    cu_backend *b = cu_of(backend);
    if (cu_enter(backend, NULL) == LW_OK) {
        if (b->queue.stream) cudaStreamSynchronize(b->queue.stream);
        cu_free_conv_plans(&b->dn, b->conv_plans);
        if (b->dnn) b->dn.Destroy(b->dnn);
        if (b->blas) b->lt.Destroy(b->blas);
        for (int32_t i = 0; i < CU_STAGES; i++)
            if (b->stages[i].sent) cudaEventDestroy(b->stages[i].sent);
        if (b->staging) cudaFreeHost(b->staging);
        if (b->queue.stream) cudaStreamDestroy(b->queue.stream);
    }
    for (int32_t i = 0; i < CU_STAGES; i++) pthread_mutex_destroy(&b->stages[i].lock);
    pthread_mutex_destroy(&b->lock);
    lw_pool_free(b->base.pool);
    lw_free(b);
}

lw_status cu_need_blas(lw_backend *backend, lw_error *err) {
    cu_backend *b = cu_of(backend);
    LW_TRY(cu_enter(backend, err));
    pthread_mutex_lock(&b->lock);
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    if (!b->blas) e = lw_fault_hit() ? CUBLAS_STATUS_INTERNAL_ERROR : b->lt.Create(&b->blas);
    pthread_mutex_unlock(&b->lock);
    return e == CUBLAS_STATUS_SUCCESS ? LW_OK : cu_fail_blas(backend, err, e, "cublasLtCreate");
}

lw_status cu_need_dnn(lw_backend *backend, lw_error *err) {
    cu_backend *b = cu_of(backend);
    LW_TRY(cu_enter(backend, err));
    pthread_mutex_lock(&b->lock);
    cudnnStatus_t e = CUDNN_STATUS_SUCCESS;
    if (!b->dnn) e = lw_fault_hit() ? CUDNN_STATUS_INTERNAL_ERROR : b->dn.Create(&b->dnn);
    pthread_mutex_unlock(&b->lock);
    return e == CUDNN_STATUS_SUCCESS ? LW_OK : cu_fail_dnn(backend, err, e, "cudnnCreate");
}

/* Whether one of the parts, with commas between them, is in name. */
static bool has_part(const char *name, const char *parts) {
    char part[64];
    for (size_t n; parts && *parts; parts += n + (parts[n] == ',')) {
        n = strcspn(parts, ",");
        snprintf(part, sizeof part, "%.*s", (int)n, parts);
        if (n && n < sizeof part && strstr(name, part)) return true;
    }
    return false;
}

static void add_tactics(cu_backend *b, const lw_tactic *const *list, const char *without) {
    for (; *list && b->base.n_tactics < CU_MAX_TACTICS; list++)
        if (!has_part((*list)->name, without)) b->tactics[b->base.n_tactics++] = *list;
}

bool lw_cuda_expected(void) {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
}

static lw_status check_driver(int32_t index, lw_error *err) {
    int n = 0, driver = 0;
    char version[16];
    lw_cuda_version(version, sizeof version);
    cudaError_t e = lw_fault_hit() ? cudaErrorUnknown : cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        cudaDriverGetVersion(&driver);
        if (driver)
            return lw_fail(err, LW_EDEVICE, "cuda:%d: the driver is for CUDA %d.%d, this build needs %s", index,
                           driver / 1000, driver % 1000 / 10, version);
        return lw_fail(err, LW_EDEVICE, "cuda:%d: there is no NVIDIA driver on this machine", index);
    }
    if (e != cudaSuccess && e != cudaErrorNoDevice)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: cudaGetDeviceCount: %s (%s)", index, cudaGetErrorString(e),
                       cudaGetErrorName(e));
    if (e == cudaErrorNoDevice || n == 0)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: there is no NVIDIA GPU on this machine", index);
    if (index < 0 || index >= n)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: there is no such device, the machine has cuda:0 to cuda:%d", index,
                       n - 1);
    return LW_OK;
}

static lw_status open_device(cu_backend *b, lw_error *err) {
    struct cudaDeviceProp p;
    CU_TRY(&b->base, err, cudaGetDeviceProperties(&p, b->index));
    snprintf(b->name, sizeof b->name, "%.63s", p.name);
    b->major = p.major;
    b->minor = p.minor;
    b->n_sm = p.multiProcessorCount;
    b->overlap &= p.major >= 9;
    b->model = cu_h200;
    b->model.n_sm = p.multiProcessorCount;
    int khz = 0; /* not in the properties since CUDA 13; two transfers a clock */
    CU_TRY(&b->base, err, cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, b->index));
    if (khz > 0 && p.memoryBusWidth > 0) b->model.memory = 2e-6 * khz * p.memoryBusWidth / 8;
    b->base.cache_bytes = p.l2CacheSize;
    if (p.major < 8)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: %s has compute capability %d.%d, 8.0 or newer is needed", b->index,
                       p.name, p.major, p.minor);
    LW_TRY(cu_enter(&b->base, err));
    cudaError_t e = lw_fault_hit() ? cudaErrorNoKernelImageForDevice : cu_probe();
    if (e == cudaErrorNoKernelImageForDevice)
        return lw_fail(err, LW_EDEVICE, "cuda:%d: this build has no kernels for %s (compute capability %d.%d)",
                       b->index, p.name, p.major, p.minor);
    if (e != cudaSuccess) return cu_fail(&b->base, err, e, "loading the kernels");
    CU_TRY(&b->base, err, cudaStreamCreateWithFlags(&b->queue.stream, cudaStreamNonBlocking));
    CU_TRY(&b->base, err, cudaMallocHost(&b->staging, (size_t)CU_STAGES * CU_STAGE_BYTES));
    for (int32_t i = 0; i < CU_STAGES; i++) {
        b->stages[i].memory = (char *)b->staging + (size_t)i * CU_STAGE_BYTES;
        CU_TRY(&b->base, err, cudaEventCreateWithFlags(&b->stages[i].sent, cudaEventDisableTiming));
    }
    enum cudaDriverEntryPointQueryResult found;
    CU_TRY(&b->base, err,
           cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &b->encode, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) b->encode = NULL;
    LW_TRY(cu_load_blas(&b->lt, err));
    LW_TRY(cu_load_dnn(&b->dn, err));
    size_t dnn = b->dn.GetVersion(), blas = b->lt.GetVersion();
    char version[16];
    lw_cuda_version(version, sizeof version);
    snprintf(b->base.description, sizeof b->base.description,
             "%s (CUDA %s, cuBLASLt %zu.%zu.%zu, cuDNN %zu.%zu.%zu), cuda:%d", b->name, version, blas / 10000,
             blas % 10000 / 100, blas % 100, dnn / 10000, dnn % 10000 / 100, dnn % 100, b->index);
    return LW_OK;
}

void cu_list_tactics(cu_backend *b, const char *without) {
    const lw_tactic *const *const lists[] = {
        cu_wgmma_tactics,           cu_blas_tactics,   cu_dnn_tactics,  cu_product_tactics,
        cu_wgmma_attention_tactics, cu_kernel_tactics, cu_wide_tactics, cu_wgmma_tile_tactics,
    };
    b->base.tactics = b->tactics;
    b->base.n_tactics = 0;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) add_tactics(b, lists[i], without);
    b->pairs = !has_part("pairs", without); /* no tactics: ways that some run */
    b->turns = !has_part("turns", without);
}

lw_status lw_cuda_open(lw_backend **out, const lw_cuda_params *params, lw_error *err) {
    if (params->precision == LW_PRECISION_BF16)
        return lw_fail(err, LW_EINVAL, "precision bf16: cuda runs fp16 or fp32");
    LW_TRY(check_driver(params->device_index, err));
    cu_backend *b = lw_alloc(1, sizeof *b);
    if (!b) return lw_fail(err, LW_ENOMEM, "no memory for the CUDA backend");
    bool exact = params->precision == LW_PRECISION_FP32;
    b->index = params->device_index;
    b->overlap = !params->no_overlap;
    b->base = (lw_backend){.name = "cuda",
                           .device = LW_DEVICE_CUDA,
                           .precision = exact ? LW_PRECISION_FP32 : LW_PRECISION_FP16,
                           .act = exact ? LW_F32 : LW_F16,
                           .threads = lw_cpu_count(),
                           .pool = lw_pool_new(),
                           .alloc = gpu_alloc,
                           .free = gpu_free,
                           .upload = gpu_upload,
                           .download = gpu_download,
                           .close = gpu_close,
                           .behind = &behind};
    pthread_mutex_init(&b->lock, NULL);
    for (int32_t i = 0; i < CU_STAGES; i++) pthread_mutex_init(&b->stages[i].lock, NULL);
    lw_status status = b->base.pool ? LW_OK : lw_fail(err, LW_ENOMEM, "no memory for the CUDA backend");
    if (status == LW_OK) status = open_device(b, err);
    if (status != LW_OK) {
        gpu_close(&b->base);
        return status;
    }
    cu_list_tactics(b, params->without);
    *out = &b->base;
    return LW_OK;
}
