/*
 * Timing the engines of one graph on scratch memory, with events on the stream.
 *
 * Rounds go over all of them in turn, so that a clock that drifts is shared; an engine's time is
 * the median of its rounds, and the earlier in the heuristic's order wins a tie. Memory holds small
 * ordinary numbers: with zeros the device draws less power and clocks higher than in training.
 */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dnn_internal.h"

enum {
    WARM_RUNS = 2,
    ROUNDS = 5,
    RUNS = 8,       /* in a round */
    FILLING = 0x3c, /* 0x3c3c: 0.0115 in bf16 and fp32, 1.06 in fp16 */
    PLACE = 256     /* alignment of a tensor in the scratch */
};

typedef struct bench {
    const dnn *d;
    char *memory, *workspace;
    void *pointers[DNN_MAX_POINTERS];
    cudaEvent_t begin, end;
    cudnnBackendDescriptor_t pack;
} bench;

static size_t place_after(size_t bytes)
{
    return (bytes + PLACE - 1) / PLACE * PLACE;
}

static bool open_bench(bench *b, const dnn_graph *g, dnn_plan *const *plans, int count)
{
    const dnn_binding *bind = &g->binding;
    size_t tensors = 0, scratch = 0;
    for (int i = 0; i < bind->pointers; i++)
        tensors += place_after(bind->bytes[i]);
    for (int i = 0; i < count; i++)
        if ((size_t)plans[i]->workspace > scratch)
            scratch = (size_t)plans[i]->workspace;
    if (cudaMalloc((void **)&b->memory, tensors + scratch) != cudaSuccess ||
        cudaMemsetAsync(b->memory, FILLING, tensors + scratch, b->d->options.stream) !=
            cudaSuccess ||
        cudaEventCreate(&b->begin) != cudaSuccess || cudaEventCreate(&b->end) != cudaSuccess)
        return false;
    char *at = b->memory;
    for (int i = 0; i < bind->pointers; i++) {
        b->pointers[i] = at;
        at += place_after(bind->bytes[i]);
    }
    b->workspace = at;
    return dnn_pack(bind, b->pointers, b->workspace, &b->pack) == CUDNN_STATUS_SUCCESS;
}

static void close_bench(bench *b)
{
    if (b->pack)
        cudnnBackendDestroyDescriptor(b->pack);
    if (b->begin)
        cudaEventDestroy(b->begin);
    if (b->end)
        cudaEventDestroy(b->end);
    cudaFree(b->memory);
    cudaGetLastError(); /* memory that did not suffice is no error of a later call */
}

/* Milliseconds of `runs` runs, or a negative number where it cannot be run. */
static float time_runs(bench *b, const dnn_plan *p, int runs)
{
    float ms = -1;
    bool ok = cudaEventRecord(b->begin, b->d->options.stream) == cudaSuccess;
    for (int i = 0; ok && i < runs; i++)
        ok = cudnnBackendExecute(b->d->handle, p->plan, b->pack) == CUDNN_STATUS_SUCCESS;
    ok = ok && cudaEventRecord(b->end, b->d->options.stream) == cudaSuccess &&
         cudaEventSynchronize(b->end) == cudaSuccess &&
         cudaEventElapsedTime(&ms, b->begin, b->end) == cudaSuccess;
    return ok ? ms : -1;
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

status dnn_fastest(const dnn *d, const dnn_graph *g, dnn_plan *const *plans, int count,
                   int *ret_place, errbuf *err)
{
    bench b = {.d = d};
    float ms[DNN_TUNE_CANDIDATES][ROUNDS];
    bool usable[DNN_TUNE_CANDIDATES];
    int best = -1;
    if (!d->handle)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cuDNN's engines cannot be timed: no device");
    /* without the memory for it, nothing is timed and the heuristic's first stays */
    if (!open_bench(&b, g, plans, count))
        goto done;
    for (int i = 0; i < count; i++)
        usable[i] = time_runs(&b, plans[i], WARM_RUNS) >= 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < count; i++) {
            if (!usable[i])
                continue;
            ms[i][round] = time_runs(&b, plans[i], RUNS);
            usable[i] = ms[i][round] >= 0;
        }
    }
    for (int i = 0; i < count; i++) {
        if (!usable[i])
            continue;
        qsort(ms[i], ROUNDS, sizeof **ms, compare_floats);
        plans[i]->ms = ms[i][ROUNDS / 2] / RUNS;
        if (best < 0 || plans[i]->ms < plans[best]->ms)
            best = i;
    }
done:
    close_bench(&b);
    *ret_place = best < 0 ? 0 : best;
    return STATUS_OK;
}
