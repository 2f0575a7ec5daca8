/*
 * The stand-in CUDA runtime: memory, streams, events, captures and graphs on the CPU. See
 * include/cuda_runtime_api.h.
 *
 * Memory is filled with 0xff when it is made (floats that nobody wrote are NaN) and lies between
 * guards that are looked at when it is freed. Ranges given to copies are checked.
 */
#include "simt_runtime.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <map>
#include <mutex>
#include <vector>

#include "simt_testing.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size)   ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

struct CUgraph_st {
    std::vector<std::function<void()>> work;
};

struct CUgraphExec_st {
    std::vector<std::function<void()>> work;
};

struct CUstream_st {
    CUgraph_st *capture; /* NULL: none */
    bool broken;         /* a call was made that a capture forbids */
};

struct CUevent_st {
    bool captured; /* last recorded in a capture */
    timespec at;
};

namespace
{

const size_t GUARD_BYTES = 256, DEVICE_BYTES = (size_t)8 << 30;
const unsigned char GUARD = 0xc3, JUNK = 0xff;

struct allocation {
    size_t bytes;
    bool host;
};

struct runtime {
    std::mutex lock;
    std::map<char *, allocation> live;
    size_t used;
    long allocations, fail_in;
    simt_device device = {1, 9, 0, cudaSuccess};
};

runtime r;
thread_local cudaError_t last_error = cudaSuccess;
thread_local CUstream_st *capturing; /* by this thread; a capture of another does not concern it */

/* A call that may not be made while this thread captures: ends the capture's luck. */
bool forbidden(void)
{
    if (!capturing)
        return false;
    capturing->broken = true;
    return true;
}

#define REFUSE_IN_CAPTURE()                                       \
    do {                                                          \
        if (forbidden())                                          \
            return simt_error(cudaErrorStreamCaptureUnsupported); \
    } while (0)

/* Whether the bytes lie within one allocation. */
bool is_ours(const void *memory, size_t bytes)
{
    std::lock_guard<std::mutex> guard(r.lock);
    char *at = static_cast<char *>(const_cast<void *>(memory));
    auto next = r.live.upper_bound(at);
    if (next == r.live.begin())
        return false;
    --next;
    const size_t offset = static_cast<size_t>(at - next->first);
    return offset <= next->second.bytes && bytes <= next->second.bytes - offset;
}

/* Whether both ranges are what `kind` says. */
bool is_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    if (bytes == 0)
        return true;
    if ((kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) && !is_ours(to, bytes))
        return false;
    return (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice) ||
           is_ours(from, bytes);
}

cudaError_t allocate(void **ret, size_t bytes, bool host)
{
    REFUSE_IN_CAPTURE();
    std::lock_guard<std::mutex> guard(r.lock);
    void *memory = nullptr;
    if (r.fail_in > 0 && --r.fail_in == 0)
        return simt_error(cudaErrorMemoryAllocation);
    if (bytes > DEVICE_BYTES - r.used ||
        posix_memalign(&memory, GUARD_BYTES, bytes + 2 * GUARD_BYTES) != 0)
        return simt_error(cudaErrorMemoryAllocation);
    char *at = static_cast<char *>(memory) + GUARD_BYTES;
    memset(memory, GUARD, GUARD_BYTES);
    memset(at, JUNK, bytes);
    memset(at + bytes, GUARD, GUARD_BYTES);
    ASAN_POISON_MEMORY_REGION(memory, GUARD_BYTES);
    ASAN_POISON_MEMORY_REGION(at + bytes, GUARD_BYTES);
    r.live[at] = {bytes, host};
    r.used += bytes;
    r.allocations++;
    *ret = at;
    return cudaSuccess;
}

cudaError_t release(void *memory, bool host)
{
    if (!memory)
        return cudaSuccess;
    REFUSE_IN_CAPTURE();
    std::lock_guard<std::mutex> guard(r.lock);
    char *at = static_cast<char *>(memory);
    auto found = r.live.find(at);
    if (found == r.live.end() || found->second.host != host)
        return simt_error(cudaErrorInvalidValue);
    const size_t bytes = found->second.bytes;
    char *whole = at - GUARD_BYTES;
    ASAN_UNPOISON_MEMORY_REGION(whole, GUARD_BYTES);
    ASAN_UNPOISON_MEMORY_REGION(at + bytes, GUARD_BYTES);
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (static_cast<unsigned char>(whole[i]) != GUARD ||
            static_cast<unsigned char>(at[bytes + i]) != GUARD) {
            fprintf(stderr, "kernel misuse: something wrote outside %zu bytes of device memory\n",
                    bytes);
            abort();
        }
    }
    r.used -= bytes;
    r.live.erase(found);
    free(whole);
    return cudaSuccess;
}

} // namespace

/* ---- shared with simt.cpp and with tests ---- */

cudaError_t simt_error(cudaError_t error)
{
    if (last_error == cudaSuccess)
        last_error = error;
    return error;
}

cudaError_t simt_submit(cudaStream_t stream, std::function<void()> work)
{
    if (stream && stream->capture) {
        if (stream->broken)
            return simt_error(cudaErrorStreamCaptureInvalidated);
        stream->capture->work.push_back(std::move(work));
        return cudaSuccess;
    }
    if (!stream && capturing) { /* the default stream would wait for the one that captures */
        capturing->broken = true;
        return simt_error(cudaErrorStreamCaptureImplicit);
    }
    work();
    return cudaSuccess;
}

long simt_allocations(void)
{
    return r.allocations;
}

long simt_live_allocations(void)
{
    return static_cast<long>(r.live.size());
}

void simt_fail_allocation(long n)
{
    r.fail_in = n;
}

void simt_set_device(simt_device device)
{
    r.device = device;
}

/* ---- errors ---- */

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define NAME(x) \
    case x:     \
        return #x
        NAME(cudaSuccess);
        NAME(cudaErrorInvalidValue);
        NAME(cudaErrorMemoryAllocation);
        NAME(cudaErrorInitializationError);
        NAME(cudaErrorInvalidConfiguration);
        NAME(cudaErrorInsufficientDriver);
        NAME(cudaErrorNoDevice);
        NAME(cudaErrorInvalidDevice);
        NAME(cudaErrorNoKernelImageForDevice);
        NAME(cudaErrorInvalidResourceHandle);
        NAME(cudaErrorNotReady);
        NAME(cudaErrorIllegalAddress);
        NAME(cudaErrorLaunchFailure);
        NAME(cudaErrorNotSupported);
        NAME(cudaErrorSystemDriverMismatch);
        NAME(cudaErrorStreamCaptureUnsupported);
        NAME(cudaErrorStreamCaptureInvalidated);
        NAME(cudaErrorStreamCaptureUnmatched);
        NAME(cudaErrorStreamCaptureIsolation);
        NAME(cudaErrorStreamCaptureImplicit);
        NAME(cudaErrorCapturedEvent);
        NAME(cudaErrorUnknown);
#undef NAME
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return cudaGetErrorName(error);
    }
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible && visible[0] == '\0')
        return simt_error(cudaErrorNoDevice);
    if (r.device.error != cudaSuccess)
        return simt_error(r.device.error);
    *count = r.device.count;
    return r.device.count > 0 ? cudaSuccess : simt_error(cudaErrorNoDevice);
}

static cudaError_t check_device(int device)
{
    if (r.device.error != cudaSuccess)
        return simt_error(r.device.error);
    return device >= 0 && device < r.device.count ? cudaSuccess
                                                  : simt_error(cudaErrorInvalidDevice);
}

cudaError_t cudaSetDevice(int device)
{
    return check_device(device);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    const cudaError_t error = check_device(device);
    if (error != cudaSuccess)
        return error;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "SIMT shim on the CPU");
    p->totalGlobalMem = DEVICE_BYTES;
    p->sharedMemPerBlock = 48 << 10;
    p->major = r.device.major;
    p->minor = r.device.minor;
    p->multiProcessorCount = 4; /* few, so that kernels which stride over a grid do stride */
    p->l2CacheSize = 4 << 20;
    p->unifiedAddressing = p->canMapHostMemory = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp p;
    const cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess)
        return error;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrCanMapHostMemory:
        *value = p.canMapHostMemory;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        return cudaSuccess;
    case cudaDevAttrUnifiedAddressing:
        *value = p.unifiedAddressing;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    }
    return simt_error(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device)
{
    snprintf(id, static_cast<size_t>(size), "0000:%02X:00.0", static_cast<unsigned int>(device));
    return check_device(device);
}

cudaError_t cudaDeviceSynchronize(void)
{
    REFUSE_IN_CAPTURE();
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = r.device.error == cudaErrorInsufficientDriver ? 11040 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    return allocate(memory, bytes, false);
}

cudaError_t cudaFree(void *memory)
{
    return release(memory, false);
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned int flags)
{
    (void)flags;
    return allocate(memory, bytes, true);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags)
{
    if (flags != 0 || !is_ours(host, 1))
        return simt_error(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    return release(memory, true);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = DEVICE_BYTES;
    *available = DEVICE_BYTES - r.used;
    return cudaSuccess;
}

static void copy_bytes(void *to, const void *from, size_t bytes)
{
    if (bytes > 0)
        memcpy(to, from, bytes);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    if (capturing) {
        capturing->broken = true;
        return simt_error(cudaErrorStreamCaptureImplicit);
    }
    if (!is_copy(to, from, bytes, kind))
        return simt_error(cudaErrorInvalidValue);
    copy_bytes(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    if (!is_copy(to, from, bytes, kind))
        return simt_error(cudaErrorInvalidValue);
    return simt_submit(stream, [=]() { copy_bytes(to, from, bytes); });
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    if (bytes > 0 && !is_ours(memory, bytes))
        return simt_error(cudaErrorInvalidValue);
    return simt_submit(stream, [=]() {
        if (bytes > 0)
            memset(memory, value, bytes);
    });
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    (void)flags;
    *stream = new CUstream_st();
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (!stream)
        return simt_error(cudaErrorInvalidResourceHandle);
    if (capturing == stream)
        capturing = nullptr;
    delete stream->capture;
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    (void)stream;
    REFUSE_IN_CAPTURE();
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    (void)stream;
    REFUSE_IN_CAPTURE();
    return cudaSuccess;
}

/* A stream that captures may only wait for what it captured; two streams in one capture are not
 * done here. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    (void)flags;
    if (!event)
        return simt_error(cudaErrorInvalidResourceHandle);
    const bool captures = stream && stream->capture;
    if (captures == event->captured)
        return cudaSuccess;
    forbidden();
    return simt_error(captures ? cudaErrorStreamCaptureIsolation
                               : cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    (void)flags;
    *event = new CUevent_st();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (!event)
        return simt_error(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (!event)
        return simt_error(cudaErrorInvalidResourceHandle);
    event->captured = stream && stream->capture;
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (!event)
        return simt_error(cudaErrorInvalidResourceHandle);
    if (event->captured)
        return simt_error(cudaErrorCapturedEvent);
    REFUSE_IN_CAPTURE();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return cudaEventQuery(event);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    if (!start || !end)
        return simt_error(cudaErrorInvalidResourceHandle);
    *milliseconds =
        static_cast<float>(static_cast<double>(end->at.tv_sec - start->at.tv_sec) * 1e3 +
                           static_cast<double>(end->at.tv_nsec - start->at.tv_nsec) / 1e6);
    return cudaSuccess;
}

/* ---- capture and graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    (void)mode;
    if (!stream || stream->capture || capturing)
        return simt_error(cudaErrorStreamCaptureUnsupported);
    stream->capture = new CUgraph_st();
    stream->broken = false;
    capturing = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (!stream || !stream->capture || capturing != stream)
        return simt_error(cudaErrorStreamCaptureUnmatched);
    CUgraph_st *made = stream->capture;
    stream->capture = nullptr;
    capturing = nullptr;
    *graph = stream->broken ? nullptr : made;
    if (!stream->broken)
        return cudaSuccess;
    delete made;
    return simt_error(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    *status = !stream || !stream->capture ? cudaStreamCaptureStatusNone
              : stream->broken            ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    if (!graph)
        return simt_error(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    if (!graph || flags != 0)
        return simt_error(cudaErrorInvalidValue);
    REFUSE_IN_CAPTURE();
    *exec = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    (void)stream;
    return exec ? cudaSuccess : simt_error(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    if (!exec)
        return simt_error(cudaErrorInvalidValue);
    return simt_submit(stream, [exec]() {
        for (const std::function<void()> &work : exec->work)
            work();
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    if (!exec)
        return simt_error(cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}
