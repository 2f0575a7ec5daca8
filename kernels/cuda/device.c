/*
 * The device of the cuda backend: opening it, errors, memory, and the order of ops (streams,
 * graphs, events).
 *
 * All ops go to `stream`, which is what is recorded; only feed copies beside it, on `feed_stream`,
 * with events either way. Neither is the default stream, on which nothing is ever done: it would
 * wait for both. One thread per backend.
 */
#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/cuda_backend.h"

#define OLDEST_CAPABILITY 80 /* bf16 */

struct backend_graph {
    cuda_backend *be;
    cudaGraphExec_t exec;
};

struct backend_event {
    cuda_backend *be;
    cudaEvent_t event;
};

/* ---- errors ---- */

status cuda_fail(cuda_backend *be, status st, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): va_start is the line above */
    vsnprintf(be->error, sizeof be->error, format, args);
    va_end(args);
    be->spoilt = true;
    return st;
}

/* As errors of CUDA are told; `what` names an op or says what was tried. */
static status describe_error(cudaError_t error, char *line, size_t size, const char *what,
                             const char *device)
{
    snprintf(line, size, "%s failed on %s: %s (%s)", what, device, cudaGetErrorString(error),
             cudaGetErrorName(error));
    (void)cudaGetLastError(); /* or the next launch would be blamed for it */
    return error == cudaErrorMemoryAllocation ? STATUS_OUT_OF_MEMORY : STATUS_ENVIRONMENT;
}

status cuda_failed(cuda_backend *be, cudaError_t error, const char *what)
{
    be->spoilt = true;
    return describe_error(error, be->error, sizeof be->error, what, be->device_name);
}

status cuda_launched(cuda_backend *be, const char *what)
{
    TRY(cuda_check(be, cudaGetLastError(), what));
    if (be->sync_each && !be->recording)
        return cuda_check(be, cudaStreamSynchronize(be->stream), what);
    return STATUS_OK;
}

status cuda_report(cuda_backend *be, status st, errbuf *err)
{
    return errbuf_set(err, st, "%s", be->error);
}

const char *cuda_last_error(const backend *be)
{
    return ((const cuda_backend *)(const void *)be)->error;
}

/* What waits or allocates would break the recording. */
static status not_while_recording(cuda_backend *be, const char *what)
{
    if (be->recording)
        return cuda_fail(be, STATUS_BAD_INPUT, "%s cannot be part of a recorded graph", what);
    return STATUS_OK;
}

status cuda_check_lane(backend *be, int lane, errbuf *err)
{
    if (lane >= 0 && lane < be->options.lanes)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT, "lane %d: the backend was opened with %d", lane,
                      be->options.lanes);
}

/* ---- opening ---- */

static int capability_of(int device)
{
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
        return 0;
    return 10 * major + minor;
}

bool cuda_available(void)
{
    int count = 0;
    bool able = false;
    if (cudaGetDeviceCount(&count) == cudaSuccess)
        for (int device = 0; device < count && !able; device++)
            able = capability_of(device) >= OLDEST_CAPABILITY;
    (void)cudaGetLastError();
    return able;
}

static status no_device(cudaError_t error, errbuf *err)
{
    int driver = 0;
    (void)cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        (void)cudaGetLastError();
    if (error == cudaErrorInsufficientDriver && driver > 0)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "the NVIDIA driver is too old: it knows CUDA %d.%d, this build needs "
                          "%d.%d: update the driver, or use --backend cpu",
                          driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                          CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice || error == cudaSuccess)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "no CUDA device was found (%s): install NVIDIA's driver, look at "
                          "nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend cpu",
                          driver > 0 ? "the driver lists none" : "there is no driver");
    return errbuf_set(err, STATUS_ENVIRONMENT, "CUDA devices cannot be listed: %s (%s)",
                      cudaGetErrorString(error), cudaGetErrorName(error));
}

/* *ret_device: its ordinal among the visible ones. */
static status choose_device(const backend_options *options, int *ret_device, errbuf *err)
{
    int device = options->device;
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return no_device(error, err);
    if (options->share_devices && device >= count)
        device %= count;
    if (device < 0 || device >= count)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "device %d was asked for, %d %s visible (from 0): look at "
                          "CUDA_VISIBLE_DEVICES",
                          device, count, count == 1 ? "is" : "are");
    *ret_device = device;
    return STATUS_OK;
}

static status open_device(cuda_backend *be, errbuf *err)
{
    struct cudaDeviceProp p;
    int device = 0;
    TRY(choose_device(&be->base.options, &device, err));
    be->base.options.device = device; /* NCCL's threads ask for it */
    snprintf(be->device_name, sizeof be->device_name, "device %d", device);
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess)
        return cuda_report(be, cuda_failed(be, error, "reading its properties"), err);
    snprintf(be->device_name, sizeof be->device_name, "%s", p.name);
    be->sms = p.multiProcessorCount;
    be->capability = 10 * p.major + p.minor;
    if (be->capability < OLDEST_CAPABILITY)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "device %d, %s, has compute capability %d.%d, 8.0 (A100) or later is "
                          "needed: choose another device, or use --backend cpu",
                          device, p.name, p.major, p.minor);
    error = cudaSetDevice(device);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&be->feed_stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaEventCreateWithFlags(&be->fed, cudaEventDisableTiming);
    if (error != cudaSuccess)
        return cuda_report(be, cuda_failed(be, error, "opening the device"), err);
    return STATUS_OK;
}

/* Keeps what cuDNN is to follow: the plan itself is only lent to open. */
static status take_plan(cuda_backend *be, const cJSON *plan, errbuf *err)
{
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(plan, "backend");
    const cJSON *engines = cJSON_GetObjectItemCaseSensitive(plan, "cudnn");
    if (!plan)
        return STATUS_OK;
    if (!cJSON_IsObject(plan) || (engines && !cJSON_IsObject(engines)))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: an object with an object \"cudnn\" was expected");
    if (cJSON_IsString(name) && strcmp(name->valuestring, "cuda") != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: it is for backend \"%s\", this is \"cuda\": give another plan or "
                          "backend.plan default",
                          name->valuestring);
    if (!engines)
        return STATUS_OK;
    be->dnn_plan = cJSON_Duplicate(engines, true);
    if (!be->dnn_plan)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading the plan");
    return STATUS_OK;
}

void cuda_close(backend *base)
{
    if (!base)
        return;
    cuda_backend *be = cuda_of(base);
    if (base->dead) /* the process ends: nothing here may wait for the device */
        return;
    dnn_close(&be->dnn);
    cuda_bn_forget_plan(be);
    cJSON_Delete(be->dnn_plan);
    if (be->fed)
        cudaEventDestroy(be->fed);
    if (be->feed_stream)
        cudaStreamDestroy(be->feed_stream);
    if (be->stream)
        cudaStreamDestroy(be->stream);
    (void)cudaGetLastError();
    free(be);
}

status cuda_open(const backend_options *options, backend **ret_be, errbuf *err)
{
    status st = STATUS_OK;
    if (options->threads < 1 || options->lanes != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "cuda backend: %d threads with %d lanes (at least one thread and exactly "
                          "one lane)",
                          options->threads, options->lanes);
    cuda_backend *be = calloc(1, sizeof *be);
    if (!be)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the cuda backend");
    const char *sync = getenv("RINGMASTER_CUDA_SYNC");
    be->base.ops = &backend_cuda;
    be->base.options = *options;
    be->base.options.plan = NULL;
    be->base.options.cache = NULL; /* both were lent */
    be->sync_each = sync && strcmp(sync, "1") == 0;
    TRY_GOTO(take_plan(be, options->plan, err), st, fail);
    TRY_GOTO(cuda_bn_take_plan(be, options->plan, err), st, fail);
    TRY_GOTO(open_device(be, err), st, fail);
    const dnn_options d = {
        .stream = be->stream,
        .device_name = be->device_name,
        .tf32 = options->compute != COMPUTE_FP32,
        .tune = options->tune,
        .plan = be->dnn_plan,
        .cache = options->cache,
    };
    TRY_GOTO(dnn_open(&d, &be->dnn, err), st, fail);
    *ret_be = &be->base;
    return STATUS_OK;
fail:
    cuda_close(&be->base);
    return st;
}

status cuda_describe(backend *base, cJSON **ret_plan, errbuf *err)
{
    static const char *const computes[] = {
        [COMPUTE_FP32] = "fp32", [COMPUTE_TF32] = "tf32", [COMPUTE_BF16] = "bf16"};
    cuda_backend *be = cuda_of(base);
    cJSON *engines = NULL, *plan = NULL;
    char capability[16], runtime[32];
    int version = CUDART_VERSION;
    (void)cudaRuntimeGetVersion(&version);
    snprintf(capability, sizeof capability, "%d.%d", be->capability / 10, be->capability % 10);
    snprintf(runtime, sizeof runtime, "%d.%d", version / 1000, version % 1000 / 10);
    TRY(dnn_describe(be->dnn, &engines, err));
    plan = cJSON_CreateObject();
    const bool ok = plan && cJSON_AddStringToObject(plan, "backend", "cuda") &&
                    cJSON_AddStringToObject(plan, "device", be->device_name) &&
                    cJSON_AddStringToObject(plan, "capability", capability) &&
                    cJSON_AddStringToObject(plan, "compute", computes[base->options.compute]) &&
                    cJSON_AddStringToObject(plan, "cuda", runtime) && cuda_bn_describe(be, plan);
    if (!ok || !cJSON_AddItemToObject(plan, "cudnn", engines)) {
        cJSON_Delete(engines);
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory describing the plan");
    }
    *ret_plan = plan;
    return STATUS_OK;
}

/* ---- memory ---- */

/* "1.50 GiB", "300.0 MiB" or "17 bytes" */
static const char *size_text(size_t bytes, char text[32])
{
    const double mib = 1024.0 * 1024.0;
    if ((double)bytes >= 1024 * mib)
        snprintf(text, 32, "%.2f GiB", (double)bytes / (1024 * mib));
    else if ((double)bytes >= mib)
        snprintf(text, 32, "%.1f MiB", (double)bytes / mib);
    else
        snprintf(text, 32, "%zu bytes", bytes);
    return text;
}

static status device_full(cuda_backend *be, size_t bytes, errbuf *err)
{
    size_t available = 0, total = 0;
    char asked[32], left[32], all[32];
    (void)cudaGetLastError();
    if (cudaMemGetInfo(&available, &total) != cudaSuccess)
        (void)cudaGetLastError();
    (void)cuda_fail(be, STATUS_OUT_OF_MEMORY,
                    "out of device memory: %s were asked for, %s of %s are free on %s: lower "
                    "train.batch or train.shard, or model.width",
                    size_text(bytes, asked), size_text(available, left), size_text(total, all),
                    be->device_name);
    return cuda_report(be, STATUS_OUT_OF_MEMORY, err);
}

status cuda_alloc(backend *base, size_t bytes, void **ret, errbuf *err)
{
    cuda_backend *be = cuda_of(base);
    void *memory = NULL;
    const size_t size = bytes > 0 ? bytes : 1;
    status st = not_while_recording(be, "an allocation");
    if (st != STATUS_OK)
        return cuda_report(be, st, err);
    cudaError_t error = cudaMalloc(&memory, size);
    if (error == cudaErrorMemoryAllocation)
        return device_full(be, size, err);
    if (error == cudaSuccess)
        error = cudaMemsetAsync(memory, 0, size, be->stream);
    /* so that the order of ops and feeds does not matter to what is still zeroed */
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(be->stream);
    if (error != cudaSuccess) {
        st = cuda_failed(be, error, "an allocation");
        cuda_release(base, memory);
        return cuda_report(be, st, err);
    }
    *ret = memory;
    return STATUS_OK;
}

void cuda_release(backend *base, void *memory)
{
    if (!base->dead && memory && cudaFree(memory) != cudaSuccess)
        (void)cudaGetLastError(); /* an earlier failure, which was told */
}

status cuda_alloc_shared(backend *base, size_t bytes, void **ret, errbuf *err)
{
    cuda_backend *be = cuda_of(base);
    void *memory = NULL, *on_device = NULL;
    const size_t size = bytes > 0 ? bytes : 1;
    status st = not_while_recording(be, "an allocation");
    if (st != STATUS_OK)
        return cuda_report(be, st, err);
    cudaError_t error = cudaHostAlloc(&memory, size, cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                          "out of pinned host memory: %zu bytes were asked for", bytes);
    }
    if (error == cudaSuccess)
        error = cudaHostGetDevicePointer(&on_device, memory, 0);
    if (error == cudaSuccess && on_device != memory)
        error = cudaErrorNotSupported; /* no unified addresses: not on 64-bit Linux */
    if (error != cudaSuccess) {
        st = cuda_failed(be, error, "an allocation of pinned memory");
        cuda_release_shared(base, memory);
        return cuda_report(be, st, err);
    }
    memset(memory, 0, size);
    *ret = memory;
    return STATUS_OK;
}

void cuda_release_shared(backend *base, void *memory)
{
    if (!base->dead && memory && cudaFreeHost(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

/* In the order of the ops, and complete on return. */
static status copy_and_wait(cuda_backend *be, void *to, const void *from, size_t bytes,
                            enum cudaMemcpyKind kind, const char *what)
{
    TRY(not_while_recording(be, what));
    cudaError_t error = cudaSuccess;
    if (bytes > 0)
        error = cudaMemcpyAsync(to, from, bytes, kind, be->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(be->stream);
    return cuda_check(be, error, what);
}

status cuda_upload(backend *base, void *to, const void *from, size_t bytes)
{
    return copy_and_wait(cuda_of(base), to, from, bytes, cudaMemcpyHostToDevice, "an upload");
}

status cuda_download(backend *base, void *to, const void *from, size_t bytes)
{
    return copy_and_wait(cuda_of(base), to, from, bytes, cudaMemcpyDeviceToHost, "a download");
}

status cuda_copy(backend *base, void *to, const void *from, size_t bytes)
{
    cuda_backend *be = cuda_of(base);
    if (bytes == 0)
        return STATUS_OK;
    /* default: either may be shared memory */
    TRY(cuda_check(be, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, be->stream), "a copy"));
    return cuda_launched(be, "a copy");
}

status cuda_zero(backend *base, void *memory, size_t bytes)
{
    cuda_backend *be = cuda_of(base);
    if (bytes == 0)
        return STATUS_OK;
    TRY(cuda_check(be, cudaMemsetAsync(memory, 0, bytes, be->stream), "zeroing memory"));
    return cuda_launched(be, "zeroing memory");
}

status cuda_run_lanes(backend *base, int count, status (*fn)(void *ctx, int lane), void *ctx)
{
    if (count < 0 || count > base->options.lanes)
        return cuda_fail(cuda_of(base), STATUS_BAD_INPUT, "%d lanes asked for, %d were opened",
                         count, base->options.lanes);
    return count > 0 ? fn(ctx, 0) : STATUS_OK;
}

/* ---- graphs ---- */

status cuda_graph_begin(backend *base)
{
    cuda_backend *be = cuda_of(base);
    TRY(not_while_recording(be, "another graph"));
    /* thread-local: what other threads do (the loader, NCCL's own) does not end it */
    TRY(cuda_check(be, cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeThreadLocal),
                   "beginning a graph"));
    be->recording = true;
    be->spoilt = false;
    return STATUS_OK;
}

/* Ends the capture. *ret is NULL where something failed; what failed first stays the last error. */
static status end_capture(cuda_backend *be, cudaGraph_t *ret)
{
    cudaGraph_t graph = NULL;
    const bool spoilt = be->spoilt;
    const cudaError_t error = cudaStreamEndCapture(be->stream, &graph);
    be->recording = false;
    if (error == cudaSuccess && !spoilt) {
        *ret = graph;
        return STATUS_OK;
    }
    if (error == cudaSuccess)
        cudaGraphDestroy(graph);
    if (!spoilt)
        return cuda_failed(be, error, "ending a graph");
    (void)cudaGetLastError();
    return STATUS_ENVIRONMENT;
}

status cuda_graph_end(backend *base, backend_graph **ret)
{
    cuda_backend *be = cuda_of(base);
    cudaGraph_t graph = NULL;
    if (!be->recording)
        return cuda_fail(be, STATUS_BAD_INPUT, "no graph is being recorded");
    TRY(end_capture(be, &graph));
    backend_graph *g = calloc(1, sizeof *g);
    if (!g) {
        cudaGraphDestroy(graph);
        return cuda_fail(be, STATUS_OUT_OF_MEMORY, "out of memory for a graph");
    }
    g->be = be;
    cudaError_t error = cudaGraphInstantiate(&g->exec, graph, 0);
    cudaGraphDestroy(graph);
    if (error == cudaSuccess)
        error = cudaGraphUpload(g->exec, be->stream);
    if (error != cudaSuccess) {
        const status st = cuda_failed(be, error, "making a graph");
        cuda_graph_destroy(&g);
        return st;
    }
    *ret = g;
    return STATUS_OK;
}

status cuda_graph_launch(backend_graph *g)
{
    TRY(not_while_recording(g->be, "the launch of a graph"));
    TRY(cuda_check(g->be, cudaGraphLaunch(g->exec, g->be->stream), "launching a graph"));
    return cuda_launched(g->be, "a graph");
}

void cuda_graph_destroy(backend_graph **g)
{
    if (!g || !*g)
        return;
    if (!(*g)->be->base.dead && (*g)->exec && cudaGraphExecDestroy((*g)->exec) != cudaSuccess)
        (void)cudaGetLastError();
    free(*g);
    *g = NULL;
}

/* ---- events and feeds ---- */

status cuda_event_create(backend *base, backend_event **ret, errbuf *err)
{
    cuda_backend *be = cuda_of(base);
    backend_event *e = calloc(1, sizeof *e);
    if (!e)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for an event");
    e->be = be;
    const cudaError_t error = cudaEventCreateWithFlags(&e->event, cudaEventDisableTiming);
    if (error != cudaSuccess) {
        free(e);
        return cuda_report(be, cuda_failed(be, error, "making an event"), err);
    }
    *ret = e;
    return STATUS_OK;
}

void cuda_event_destroy(backend_event **e)
{
    if (!e || !*e)
        return;
    if (!(*e)->be->base.dead && cudaEventDestroy((*e)->event) != cudaSuccess)
        (void)cudaGetLastError();
    free(*e);
    *e = NULL;
}

status cuda_event_record(backend_event *e)
{
    TRY(not_while_recording(e->be, "an event"));
    return cuda_check(e->be, cudaEventRecord(e->event, e->be->stream), "recording an event");
}

status cuda_event_done(backend_event *e, bool *ret_done)
{
    TRY(not_while_recording(e->be, "a question for an event"));
    const cudaError_t error = cudaEventQuery(e->event);
    if (error == cudaErrorNotReady)
        (void)cudaGetLastError();
    else
        TRY(cuda_check(e->be, error, "an op before an event"));
    *ret_done = error == cudaSuccess;
    return STATUS_OK;
}

status cuda_feed(backend *base, void *to, const void *from, size_t bytes, backend_event *after)
{
    cuda_backend *be = cuda_of(base);
    TRY(not_while_recording(be, "a feed"));
    cudaError_t error = cudaSuccess;
    if (after)
        error = cudaStreamWaitEvent(be->feed_stream, after->event, 0);
    if (error == cudaSuccess && bytes > 0)
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, be->feed_stream);
    if (error == cudaSuccess)
        error = cudaEventRecord(be->fed, be->feed_stream);
    if (error == cudaSuccess)
        error = cudaStreamWaitEvent(be->stream, be->fed, 0);
    if (error == cudaSuccess && be->sync_each)
        error = cudaStreamSynchronize(be->feed_stream);
    return cuda_check(be, error, "a feed");
}
