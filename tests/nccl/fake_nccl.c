/* See fake_nccl.h. */
#include "fake_nccl.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_CALLS 256

fake_rank fake[FAKE_RANKS];
_Thread_local int fake_me;

typedef enum phase {
    JOINING,
    READY,
    CALLING,
    FINALIZING,
    FINALIZED
} phase;

/* A rank's part in a collective. */
typedef struct part {
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    bool gathers;
    cudaStream_t stream;
} part;

struct ncclComm {
    int rank, size;
    phase phase;
    int polls;
    ncclResult_t result; /* of what is in progress */
    part part;           /* of the call in progress */
    atomic_bool aborted;
    int registered;
};

/* The world that all communicators of a test are of. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int joined, arrived[MOST_CALLS], begun[FAKE_RANKS];
static part parts[MOST_CALLS][FAKE_RANKS];

void fake_reset(void)
{
    memset(fake, 0, sizeof fake);
    memset(arrived, 0, sizeof arrived);
    memset(begun, 0, sizeof begun);
    joined = 0;
    for (int r = 0; r < FAKE_RANKS; r++)
        snprintf(fake[r].device, sizeof fake[r].device, "0000:%02x:00.0", r);
}

static void note(int rank, const char *what)
{
    char *log = fake[rank].log;
    const size_t used = strlen(log);
    snprintf(log + used, sizeof fake[rank].log - used, "%s%s", used ? " " : "", what);
}

/* ---- CUDA ---- */

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "invalid device ordinal";
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device)
{
    snprintf(id, (size_t)length, "%s", fake[fake_me].device);
    return cudaSetDevice(device);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

/* ---- collectives ---- */

static void add(const part *from, const part *to)
{
    for (size_t i = 0; i < to->count; i++)
        if (to->type == ncclFloat)
            ((float *)to->to)[i] += ((const float *)from->from)[i];
        else
            ((int64_t *)to->to)[i] += ((const int64_t *)from->from)[i];
}

/* All parts are there: in rank order into the first rank's place, then to all. */
static void run_collective(const part *p, int size)
{
    const size_t bytes = p->count * (p->type == ncclFloat ? 4 : p->type == ncclInt64 ? 8 : 1);
    for (int r = 0; r < size; r++)
        for (int q = 0; q < size && p->gathers; q++)
            memcpy((char *)p[r].to + (size_t)q * bytes, p[q].from, bytes);
    if (!p->gathers) {
        for (int r = 1; r < size; r++)
            add(&p[r], &p[0]);
        if (fake[0].wrong_sums)
            ((char *)p[0].to)[0] ^= 1;
        for (int r = 1; r < size; r++)
            memcpy(p[r].to, p[0].to, bytes);
    }
    for (int r = 0; r < size; r++)
        p[r].stream->done++;
}

/* NCCL has taken a call: it is in the stream, or in the graph that the stream records. */
static void take_call(ncclComm_t c)
{
    cudaStream_t stream = c->part.stream;
    if (stream->recording) {
        fake[c->rank].graphs = 1;
        note(c->rank, "recorded");
        return;
    }
    pthread_mutex_lock(&lock);
    stream->issued++;
    const int call = begun[c->rank]++;
    parts[call][c->rank] = c->part;
    if (!fake[c->rank].never_runs && ++arrived[call] == c->size)
        run_collective(parts[call], c->size);
    pthread_mutex_unlock(&lock);
}

static ncclResult_t call_begin(ncclComm_t c, part p, const char *what)
{
    note(c->rank, what);
    if (c->phase != READY)
        return ncclInvalidUsage; /* the call before was not polled to its end */
    c->part = p;
    c->phase = CALLING;
    c->polls = fake[c->rank].call_polls;
    c->result = fake[c->rank].call_result;
    ncclResult_t state;
    return ncclCommGetAsyncError(c, &state) == ncclSuccess ? state : ncclInternalError;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    (void)op;
    const part p = {.from = from, .to = to, .count = count, .type = type, .stream = stream};
    return from == to ? call_begin(comm, p, "reduce") : ncclInvalidArgument;
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    const part p = {from, to, count, type, true, stream};
    return call_begin(comm, p, "gather");
}

/* ---- communicators ---- */

ncclResult_t ncclGetVersion(int *version)
{
    *version = fake[fake_me].version ? fake[fake_me].version : 22809;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    snprintf(id->internal, sizeof id->internal, "the fake world");
    return fake[fake_me].id_result;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    static const char *const names[] = {"NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE"};
    fake_rank *me = &fake[rank];
    note(rank, "init");
    if (strcmp(id.internal, "the fake world") != 0 || config->magic != 0xcafebeef ||
        config->blocking != 0)
        return ncclInvalidArgument;
    me->config = *config;
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        snprintf(me->env[i], sizeof me->env[i], "%s", value ? value : "(none)");
    }
    if (me->init_result != ncclSuccess)
        return me->init_result;
    ncclComm_t c = calloc(1, sizeof *c);
    if (!c)
        return ncclSystemError;
    c->rank = rank;
    c->size = ranks;
    c->polls = me->init_polls;
    me->comms++;
    *comm = c;
    pthread_mutex_lock(&lock);
    joined += !me->never_joins;
    pthread_mutex_unlock(&lock);
    return ncclInProgress;
}

static ncclResult_t go_on(ncclComm_t c)
{
    pthread_mutex_lock(&lock);
    const bool all_joined = joined == c->size;
    pthread_mutex_unlock(&lock);
    if (c->phase == READY || c->phase == FINALIZED)
        return fake[c->rank].graphs ? fake[c->rank].step_result : ncclSuccess;
    if (c->polls-- > 0 || (c->phase == JOINING && !all_joined))
        return ncclInProgress;
    if (c->phase == FINALIZING) {
        if (fake[c->rank].finalize_sticks || fake[c->rank].graphs)
            return ncclInProgress;
        note(c->rank, "finalized");
        c->phase = FINALIZED;
        return ncclSuccess;
    }
    if (c->phase == CALLING && c->result != ncclSuccess)
        return c->result;
    if (c->phase == CALLING)
        take_call(c);
    c->phase = READY;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    *state = go_on(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const names[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return names[result];
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "the fake's detail";
}

ncclResult_t ncclCommRegister(ncclComm_t comm, void *memory, size_t bytes, void **handle)
{
    note(comm->rank, "register");
    if (comm->phase != READY || bytes == 0)
        return ncclInvalidUsage;
    comm->registered++;
    *handle = memory;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(ncclComm_t comm, void *handle)
{
    note(comm->rank, "deregister");
    comm->registered--;
    return handle ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    note(comm->rank, "finalize");
    if (comm->phase != READY)
        return ncclInvalidUsage;
    comm->phase = FINALIZING;
    comm->polls = fake[comm->rank].finalize_polls;
    return go_on(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    note(comm->rank, "destroy");
    if (comm->phase != FINALIZED)
        return ncclInvalidUsage;
    fake[comm->rank].comms--;
    free(comm);
    return ncclSuccess;
}

/* What runs on the device ends at once; then it waits for the graphs. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    const int rank = comm->rank;
    if (comm->part.stream)
        comm->part.stream->done = atomic_load(&comm->part.stream->issued);
    while (fake[rank].graphs || fake[rank].abort_sticks)
        usleep(1000);
    note(rank, "aborted");
    free(comm);
    fake[rank].comms--;
    return ncclSuccess;
}
