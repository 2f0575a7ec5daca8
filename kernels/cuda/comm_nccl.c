/*
 * comm_device `nccl`; see comm_nccl.h.
 *
 * The communicator is non-blocking: NCCL hands each call to a thread of its own, which launches on
 * the backend's stream. So a call is polled until NCCL has taken it before the next op is added to
 * the stream: only then is the order of ops the order of calls, and only then may a recording end.
 *
 * Every wait has a deadline and looks for a rank to blame (comm_wait.h), because NCCL tells of a
 * dead process on another host late or never, and never of which.
 *
 * The order of float sums is fixed by nccl_settings.h; in exact mode sums are integers and NCCL
 * chooses.
 *
 * Giving up: ncclCommAbort stops what runs on the device, then waits until no graph holds the
 * communicator. It therefore runs on a thread while this one destroys the graphs.
 */
#include "kernels/cuda/comm_nccl.h"

#include <cjson/cJSON.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/comm_wait.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/nccl_settings.h"

#define GIVE_UP_SECONDS 10.0 /* for ncclCommAbort, and for a clean end */
#define NEW_WAIT        5.0  /* seconds without a look: what comes then is another wait */
#define MOST_BUFFERS    4

/* From rank 0 to all. */
typedef struct invitation {
    ncclUniqueId id;
    nccl_settings settings;
    int32_t code; /* status */
    char text[400];
} invitation;

typedef struct comm_nccl {
    comm_device base;
    ncclComm_t nccl; /* NULL once it is ended */
    nccl_settings settings;
    double timeout;
    comm_wait wait; /* the one of now, or the last */
    double looked;  /* when check was called last */
    bool opening;   /* the ranks still meet afterwards */
    bool failed;
    errbuf failure; /* the line, once failed */
    void *handle[MOST_BUFFERS];
    int buffers;
    void *probe; /* what first_contact works on */
    backend_event *probed;
} comm_nccl;

static comm_nccl *nccl_of(comm_device *c)
{
    return (comm_nccl *)(void *)c;
}

/* ---- failing ---- */

/* The ranks cannot meet any more, but where all of them come to the end of opening. */
static status fail(comm_nccl *n, errbuf *err)
{
    n->failed = true;
    if (!n->opening)
        n->base.options.host->lost = true;
    return errbuf_set(err, n->failure.code, "%s", n->failure.text);
}

/* By an error that the others do not see. */
static status fail_alone(comm_nccl *n, errbuf *err)
{
    comm *host = n->base.options.host;
    host->ops->give_up(host, &n->failure);
    return fail(n, err);
}

/* An error that NCCL reports. It does not say whose fault the network's errors are. */
static status nccl_failed(comm_nccl *n, ncclResult_t result, const char *what, errbuf *err)
{
    const char *detail = ncclGetLastError(n->nccl); /* of this process; takes NULL too */
    comm_peer p = {.rank = -1};
    if (result == ncclRemoteError || result == ncclSystemError)
        comm_wait_listen(&n->wait, &p);
    if (p.farewell) {
        n->wait.told = true;
        comm_wait_farewell(&p, &n->failure);
        return fail(n, err);
    }
    if (p.rank >= 0) {
        n->base.options.host->lost = true;
        errbuf_set(&n->failure, STATUS_ENVIRONMENT,
                   "%s: rank %d is lost: not heard of since NCCL's %s after step %llu", what,
                   p.rank, ncclGetErrorString(result), (unsigned long long)n->wait.step);
        return fail(n, err);
    }
    errbuf_set(&n->failure, STATUS_ENVIRONMENT, "%s: NCCL: %s%s%.300s (NCCL_DEBUG=WARN says more)",
               what, ncclGetErrorString(result), detail && detail[0] ? ": " : "",
               detail ? detail : "");
    return fail_alone(n, err);
}

/* The line of the backend. */
static status backend_failed(comm_nccl *n, status st, errbuf *err)
{
    backend *be = n->base.options.be;
    errbuf_set(&n->failure, st, "backend %s: %s", be->ops->name, be->ops->last_error(be));
    return fail_alone(n, err);
}

/* ---- waiting ---- */

static void wait_begin(comm_nccl *n, uint64_t step)
{
    comm_wait_begin(&n->wait, n->base.options.host, n->timeout, step);
}

static status look(comm_nccl *n, const char *what, errbuf *err)
{
    return comm_wait_look(&n->wait, what, &n->failure) == STATUS_OK ? STATUS_OK : fail(n, err);
}

static ncclResult_t state_of(comm_nccl *n)
{
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(n->nccl, &state);
    return asked == ncclSuccess ? state : asked;
}

/* Until NCCL has taken what was called last, with the result `called`. */
static status until_taken(comm_nccl *n, ncclResult_t called, const char *what, errbuf *err)
{
    int tries = 0;
    wait_begin(n, n->wait.step);
    for (ncclResult_t state = called; state != ncclSuccess; state = state_of(n)) {
        if (state != ncclInProgress)
            return nccl_failed(n, state, what, err);
        TRY(look(n, what, err));
        comm_wait_nap(&tries);
    }
    return STATUS_OK;
}

/* ---- the ops ---- */

static status nccl_all_reduce_float(comm_device *c, float *data, int64_t count, errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    if (n->failed)
        return fail(n, err);
    return until_taken(n,
                       ncclAllReduce(data, data, (size_t)count, ncclFloat, ncclSum, n->nccl,
                                     cuda_of(c->options.be)->stream),
                       "all_reduce", err);
}

static status nccl_all_reduce_int64(comm_device *c, int64_t *data, int64_t count, errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    if (n->failed)
        return fail(n, err);
    return until_taken(n,
                       ncclAllReduce(data, data, (size_t)count, ncclInt64, ncclSum, n->nccl,
                                     cuda_of(c->options.be)->stream),
                       "all_reduce", err);
}

static status nccl_all_gather(comm_device *c, const void *mine, int64_t bytes, void *all,
                              errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    if (n->failed)
        return fail(n, err);
    return until_taken(
        n,
        ncclAllGather(mine, all, (size_t)bytes, ncclInt8, n->nccl, cuda_of(c->options.be)->stream),
        "all_gather", err);
}

static status nccl_use_buffer(comm_device *c, void *data, int64_t bytes, errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    if (n->failed)
        return fail(n, err);
    ASSERT(n->buffers < MOST_BUFFERS);
    TRY(until_taken(n, ncclCommRegister(n->nccl, data, (size_t)bytes, &n->handle[n->buffers]),
                    "registering memory", err));
    n->buffers++;
    return STATUS_OK;
}

static status nccl_settle(comm_device *c, errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    return n->failed ? fail(n, err) : until_taken(n, state_of(n), "settling a graph", err);
}

static status nccl_check(comm_device *c, uint64_t step, errbuf *err)
{
    comm_nccl *n = nccl_of(c);
    if (n->failed)
        return fail(n, err);
    /* another step, or the first look after something else: a new wait */
    const double now = comm_wait_seconds();
    if (step != n->wait.step || now - n->looked > NEW_WAIT)
        wait_begin(n, step);
    n->looked = now;
    const ncclResult_t state = state_of(n);
    if (state != ncclSuccess && state != ncclInProgress)
        return nccl_failed(n, state, "training step", err);
    return look(n, "training step", err);
}

static status nccl_describe(const comm_device *c, cJSON **ret, errbuf *err)
{
    const comm_nccl *n = (const comm_nccl *)(const void *)c;
    cJSON *plan = cJSON_CreateObject();
    bool done = plan != NULL;
    if (done && !c->options.exact) { /* else any algorithm gives the same bits */
        char name[160];
        nccl_settings_name(&n->settings, name, (int)sizeof name);
        done = cJSON_AddStringToObject(plan, "all_reduce", name) != NULL;
    }
    if (!done) {
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory describing the collectives");
    }
    *ret = plan;
    return STATUS_OK;
}

/* ---- the end ---- */

typedef struct abort_job {
    ncclComm_t nccl;
    int device;
} abort_job;

static void *run_abort(void *arg)
{
    abort_job *job = arg;
    cudaSetDevice(job->device);
    ncclCommAbort(job->nccl);
    free(job);
    return NULL;
}

static bool start_abort(comm_nccl *n, pthread_t *ret_thread)
{
    abort_job *job = malloc(sizeof *job);
    if (!job)
        return false;
    *job = (abort_job){n->nccl, n->base.options.be->options.device};
    if (pthread_create(ret_thread, NULL, run_abort, job) == 0)
        return true;
    free(job);
    return false;
}

/* Seconds for an end that should take none. */
static double patience(const comm_nccl *n)
{
    return n->timeout < GIVE_UP_SECONDS ? n->timeout : GIVE_UP_SECONDS;
}

/* Aborts the communicator; false: that has not come to an end in time. */
static bool abort_nccl(comm_nccl *n, void (*destroy_graphs)(void *ctx), void *ctx)
{
    pthread_t thread;
    const bool is_started = n->nccl && start_abort(n, &thread);
    if (destroy_graphs)
        destroy_graphs(ctx);
    if (!is_started)
        return n->nccl == NULL;
    n->nccl = NULL;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    const double end = (double)until.tv_sec + 1e-9 * (double)until.tv_nsec + patience(n);
    until.tv_sec = (time_t)end;
    until.tv_nsec = (long)(1e9 * (end - (double)until.tv_sec));
    if (pthread_timedjoin_np(thread, NULL, &until) == 0)
        return true;
    pthread_detach(thread);
    return false;
}

static bool nccl_abandon(comm_device *c, void (*destroy_graphs)(void *ctx), void *ctx)
{
    comm_nccl *n = nccl_of(c);
    if (!n->failed) {
        errbuf ignored = {0};
        errbuf_set(&n->failure, STATUS_ENVIRONMENT, "gave up the training: its own line says why");
        (void)fail_alone(n, &ignored); /* unless it has said why already */
    }
    return abort_nccl(n, destroy_graphs, ctx);
}

/* Ends a communicator that is well; false where it is not. */
static bool finalize(comm_nccl *n)
{
    for (int i = 0; i < n->buffers; i++)
        (void)ncclCommDeregister(n->nccl, n->handle[i]);
    const double begin = comm_wait_seconds();
    int tries = 0;
    ncclResult_t state = ncclCommFinalize(n->nccl);
    while (state == ncclInProgress && comm_wait_seconds() - begin < patience(n)) {
        comm_wait_nap(&tries);
        state = state_of(n);
    }
    if (state != ncclSuccess)
        return false;
    ncclCommDestroy(n->nccl);
    n->nccl = NULL;
    return true;
}

static void drop_probe(comm_nccl *n)
{
    backend *be = n->base.options.be;
    if (n->probed)
        be->ops->event_destroy(&n->probed);
    be->ops->release(be, n->probe);
    n->probe = NULL;
}

static void nccl_close(comm_device *c)
{
    comm_nccl *n = nccl_of(c);
    if (n->nccl && (n->failed || !finalize(n)))
        n->base.options.be->dead |= !abort_nccl(n, NULL, NULL);
    free(n);
}

static const comm_device_ops nccl_ops = {
    .name = "nccl",
    .records = true,
    .all_reduce_float = nccl_all_reduce_float,
    .all_reduce_int64 = nccl_all_reduce_int64,
    .all_gather = nccl_all_gather,
    .settle = nccl_settle,
    .check = nccl_check,
    .use_buffer = nccl_use_buffer,
    .abandon = nccl_abandon,
    .close = nccl_close,
    .describe = nccl_describe,
};

/* ---- the beginning ---- */

/* One host has the same on all ranks, in containers too. */
static void name_host(char *to, int size)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f || !fgets(to, size, f))
        gethostname(to, (size_t)size - 1);
    if (f)
        fclose(f);
    to[strcspn(to, "\n")] = '\0';
}

status comm_nccl_identity(backend *be, comm_device_identity *ret, errbuf *err)
{
    comm_device_identity id;
    memset(&id, 0, sizeof id);
    name_host(id.host, sizeof id.host);
    cudaError_t error = cudaDeviceGetPCIBusId(id.device, (int)sizeof id.device, be->options.device);
    int cuda = 0, nccl = 0;
    if (error == cudaSuccess)
        error = cudaRuntimeGetVersion(&cuda);
    if (error != cudaSuccess)
        return errbuf_set(err, STATUS_ENVIRONMENT, "device %d: %s", be->options.device,
                          cudaGetErrorString(error));
    const ncclResult_t result = ncclGetVersion(&nccl);
    if (result != ncclSuccess)
        return errbuf_set(err, STATUS_ENVIRONMENT, "NCCL: %s", ncclGetErrorString(result));
    snprintf(id.versions, sizeof id.versions, "NCCL %d.%d.%d, CUDA %d.%d, cuDNN %s", nccl / 10000,
             nccl / 100 % 100, nccl % 100, cuda / 1000, cuda % 1000 / 10, dnn_version());
    *ret = id;
    return STATUS_OK;
}

/* Rank 0's id and settings, or the reason why there is none. Asking for the id first lets NCCL read
 * its own configuration file into the environment. */
static status invite(comm_nccl *n, invitation *in, errbuf *err)
{
    const comm_device_options *o = &n->base.options;
    memset(in, 0, sizeof *in);
    if (o->host->rank == 0) {
        const ncclResult_t result = ncclGetUniqueId(&in->id);
        if (result != ncclSuccess) {
            in->code = STATUS_ENVIRONMENT;
            snprintf(in->text, sizeof in->text, "NCCL cannot start: %s: %.300s",
                     ncclGetErrorString(result), ncclGetLastError(NULL));
        }
        nccl_settings_choose(o, &in->settings);
    }
    TRY(o->host->ops->broadcast(o->host, in, sizeof *in, 0, err));
    n->settings = in->settings;
    return in->code ? errbuf_set(err, (status)in->code, "%s", in->text) : STATUS_OK;
}

static status join(comm_nccl *n, const invitation *in, errbuf *err)
{
    const comm_device_options *o = &n->base.options;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (n->settings.channels)
        config.minCTAs = config.maxCTAs = n->settings.channels;
    const cudaError_t error = cudaSetDevice(o->be->options.device);
    if (error != cudaSuccess) {
        errbuf_set(&n->failure, STATUS_ENVIRONMENT, "device %d: %s", o->be->options.device,
                   cudaGetErrorString(error));
        return fail_alone(n, err);
    }
    nccl_environment e;
    nccl_environment_enter(&e, &n->settings);
    status st = until_taken(
        n, ncclCommInitRankConfig(&n->nccl, o->host->size, in->id, o->host->rank, &config),
        "connecting the GPUs", err);
    nccl_environment_leave(&e);
    return st;
}

/* Sums ones: what does not work between the GPUs shows before the first step, and NCCL makes its
 * connections here, not in a recording. */
static status first_contact(comm_nccl *n, errbuf *err)
{
    backend *be = n->base.options.be;
    const backend_ops *ops = be->ops;
    const int size = n->base.options.host->size;
    int64_t whole = 1;
    float one = 1;
    const bool exact = n->base.options.exact;
    void *const mine = exact ? (void *)&whole : (void *)&one;
    const size_t bytes = exact ? sizeof whole : sizeof one;
    status st = ops->alloc(be, sizeof whole, &n->probe, &n->failure);
    if (st == STATUS_OK)
        st = ops->event_create(be, &n->probed, &n->failure);
    if (st != STATUS_OK || (st = ops->upload(be, n->probe, mine, bytes)) != STATUS_OK)
        return backend_failed(n, st, err);
    TRY(exact ? nccl_all_reduce_int64(&n->base, n->probe, 1, err)
              : nccl_all_reduce_float(&n->base, n->probe, 1, err));
    bool is_done = false;
    int tries = 0;
    wait_begin(n, 0);
    st = ops->event_record(n->probed);
    while (st == STATUS_OK && (st = ops->event_done(n->probed, &is_done)) == STATUS_OK &&
           !is_done) {
        TRY(nccl_check(&n->base, 0, err));
        comm_wait_nap(&tries);
    }
    if (st != STATUS_OK || (st = ops->download(be, mine, n->probe, bytes)) != STATUS_OK)
        return backend_failed(n, st, err);
    const double sum = exact ? (double)whole : (double)one;
    if (sum == size)
        return STATUS_OK;
    errbuf_set(&n->failure, STATUS_ENVIRONMENT,
               "NCCL's sum of ones over %d ranks is %g: the links between the GPUs do not work",
               size, sum);
    return fail(n, err);
}

/* All ranks get the line of a rank that has one of its own, unless a peer is lost. */
static status agree(comm_nccl *n, status mine, errbuf *err)
{
    comm *host = n->base.options.host;
    if (host->lost)
        return mine;
    if (!n->wait.told)
        return comm_agree(host, mine, err);
    errbuf own = {0};
    const status st = comm_agree(host, STATUS_OK, &own);
    if (st == STATUS_OK)
        return mine;
    errbuf_clear(err);
    return errbuf_set(err, st, "%s", own.text);
}

status comm_nccl_open(const comm_device_options *options, comm_device **ret, errbuf *err)
{
    invitation in;
    comm_nccl *n = calloc(1, sizeof *n);
    status st = n ? STATUS_OK
                  : errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the collectives");
    if (n) {
        n->base.ops = &nccl_ops;
        n->base.options = *options;
        n->opening = true;
        st = comm_wait_timeout(&n->timeout, err);
    }
    TRY_GOTO(comm_agree(options->host, st, err), st, failed);
    ASSERT(n); /* or comm_agree had said so */
    TRY_GOTO(invite(n, &in, err), st, failed);
    st = join(n, &in, err);
    if (st == STATUS_OK)
        st = first_contact(n, err);
    st = agree(n, st, err);
    n->opening = false;
    if (st == STATUS_OK) {
        drop_probe(n);
        *ret = &n->base;
        return st;
    }
    n->failed = true;
    if (abort_nccl(n, NULL, NULL))
        drop_probe(n);
    else
        options->be->dead = true;
failed:
    free(n);
    return st;
}
