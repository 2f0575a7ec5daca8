/*
 * comm_device `self` and `host`; see comm_device_host.h.
 *
 * `host` hands memory that is the host's to the host's collectives as it is. Other memory goes
 * through one shared buffer, piece by piece: down, collective, up. The sum of an element does not
 * depend on the piece that it travels in (comm.h).
 */
#include "kernels/comm_device_host.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the shared buffer: larger pieces would not be faster, and pinned memory is scarce. */
#define STAGING_MOST  ((int64_t)32 << 20)
#define STAGING_LEAST ((int64_t)64 << 10)

typedef struct comm_host {
    comm_device base;
    char *staging; /* shared memory, or NULL where the host's collectives work on the memory */
    int64_t bytes; /* of it */
} comm_host;

static status backend_status(const comm_device *c, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    backend *be = c->options.be;
    return errbuf_set(err, st, "backend %s: %s", be->ops->name, be->ops->last_error(be));
}

/* ---- what both share ---- */

static status nothing_to_settle(comm_device *c, errbuf *err)
{
    (void)c, (void)err;
    return STATUS_OK;
}

static status nothing_to_check(comm_device *c, uint64_t step, errbuf *err)
{
    (void)c, (void)step, (void)err;
    return STATUS_OK;
}

static bool nothing_to_abandon(comm_device *c, void (*destroy_graphs)(void *ctx), void *ctx)
{
    (void)c;
    if (destroy_graphs)
        destroy_graphs(ctx);
    return true;
}

static status describe_as(const char *name, cJSON **ret, errbuf *err)
{
    cJSON *plan = cJSON_CreateObject();
    if (!plan || !cJSON_AddStringToObject(plan, "all_reduce", name)) {
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory describing the collectives");
    }
    *ret = plan;
    return STATUS_OK;
}

/* ---- self ---- */

static status self_all_reduce_float(comm_device *c, float *data, int64_t count, errbuf *err)
{
    (void)c, (void)data, (void)count, (void)err;
    return STATUS_OK;
}

static status self_all_reduce_int64(comm_device *c, int64_t *data, int64_t count, errbuf *err)
{
    (void)c, (void)data, (void)count, (void)err;
    return STATUS_OK;
}

static status self_all_gather(comm_device *c, const void *mine, int64_t bytes, void *all,
                              errbuf *err)
{
    backend *be = c->options.be;
    if (all == mine || bytes == 0)
        return STATUS_OK;
    return backend_status(c, be->ops->copy(be, all, mine, (size_t)bytes), err);
}

static void self_close(comm_device *c)
{
    free(c);
}

static status self_describe(const comm_device *c, cJSON **ret, errbuf *err)
{
    (void)c;
    return describe_as("self", ret, err);
}

static const comm_device_ops self_ops = {
    .name = "self",
    .records = true,
    .all_reduce_float = self_all_reduce_float,
    .all_reduce_int64 = self_all_reduce_int64,
    .all_gather = self_all_gather,
    .settle = nothing_to_settle,
    .check = nothing_to_check,
    .abandon = nothing_to_abandon,
    .close = self_close,
    .describe = self_describe,
};

status comm_device_self_open(const comm_device_options *options, comm_device **ret, errbuf *err)
{
    comm_device *c = calloc(1, sizeof *c);
    if (!c)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the collectives");
    c->ops = &self_ops;
    c->options = *options;
    *ret = c;
    return STATUS_OK;
}

/* ---- host ---- */

static status fetch(comm_host *h, const void *from, int64_t bytes, errbuf *err)
{
    backend *be = h->base.options.be;
    return backend_status(&h->base, be->ops->download(be, h->staging, from, (size_t)bytes), err);
}

static status bring(comm_host *h, void *to, const void *from, int64_t bytes, errbuf *err)
{
    backend *be = h->base.options.be;
    return backend_status(&h->base, be->ops->upload(be, to, from, (size_t)bytes), err);
}

/* Elements of `size` bytes that fit into the staging buffer, or as many as are left. */
static int64_t piece_of(const comm_host *h, int64_t left, size_t size)
{
    const int64_t most = h->bytes / (int64_t)size;
    return left < most ? left : most;
}

static status host_all_reduce_float(comm_device *c, float *data, int64_t count, errbuf *err)
{
    comm_host *h = (comm_host *)(void *)c;
    comm *host = c->options.host;
    if (!h->staging)
        return host->ops->all_reduce_float(host, data, count, err);
    float *staged = (float *)(void *)h->staging;
    for (int64_t done = 0, n = 0; done < count; done += n) {
        n = piece_of(h, count - done, sizeof *data);
        const int64_t bytes = n * (int64_t)sizeof *data;
        TRY(fetch(h, data + done, bytes, err));
        TRY(host->ops->all_reduce_float(host, staged, n, err));
        TRY(bring(h, data + done, staged, bytes, err));
    }
    return STATUS_OK;
}

static status host_all_reduce_int64(comm_device *c, int64_t *data, int64_t count, errbuf *err)
{
    comm_host *h = (comm_host *)(void *)c;
    comm *host = c->options.host;
    if (!h->staging)
        return host->ops->all_reduce_int64(host, data, count, err);
    int64_t *staged = (int64_t *)(void *)h->staging;
    for (int64_t done = 0, n = 0; done < count; done += n) {
        n = piece_of(h, count - done, sizeof *data);
        const int64_t bytes = n * (int64_t)sizeof *data;
        TRY(fetch(h, data + done, bytes, err));
        TRY(host->ops->all_reduce_int64(host, staged, n, err));
        TRY(bring(h, data + done, staged, bytes, err));
    }
    return STATUS_OK;
}

static status host_all_gather(comm_device *c, const void *mine, int64_t bytes, void *all,
                              errbuf *err)
{
    comm_host *h = (comm_host *)(void *)c;
    comm *host = c->options.host;
    if (!h->staging)
        return host->ops->all_gather(host, mine, bytes, all, err);
    const int64_t most = h->bytes / (host->size + 1); /* mine, then all of a piece */
    for (int64_t done = 0, n = 0; done < bytes; done += n) {
        n = bytes - done < most ? bytes - done : most;
        char *gathered = h->staging + n;
        TRY(fetch(h, (const char *)mine + done, n, err));
        TRY(host->ops->all_gather(host, h->staging, n, gathered, err));
        for (int r = 0; r < host->size; r++)
            TRY(bring(h, (char *)all + r * bytes + done, gathered + r * n, n, err));
    }
    return STATUS_OK;
}

static void host_close(comm_device *c)
{
    comm_host *h = (comm_host *)(void *)c;
    if (h->staging)
        c->options.be->ops->release_shared(c->options.be, h->staging);
    free(h);
}

static status host_describe(const comm_device *c, cJSON **ret, errbuf *err)
{
    char name[32];
    snprintf(name, sizeof name, "%s-tree-1", c->options.host->ops->name);
    return describe_as(name, ret, err);
}

static const comm_device_ops host_ops = {
    .name = "host",
    .records = false,
    .all_reduce_float = host_all_reduce_float,
    .all_reduce_int64 = host_all_reduce_int64,
    .all_gather = host_all_gather,
    .settle = nothing_to_settle,
    .check = nothing_to_check,
    .abandon = nothing_to_abandon,
    .close = host_close,
    .describe = host_describe,
};

static int64_t staging_bytes(const comm_device_options *o)
{
    const int64_t wanted = o->elements * (int64_t)(o->exact ? sizeof(int64_t) : sizeof(float));
    /* of each rank at least one cache line of an all_gather */
    const int64_t least = STAGING_LEAST + 64 * (int64_t)o->host->size;
    return wanted < least ? least : wanted < STAGING_MOST ? wanted : STAGING_MOST;
}

status comm_device_host_open(const comm_device_options *options, comm_device **ret, errbuf *err)
{
    comm_host *h = calloc(1, sizeof *h);
    if (!h)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the collectives");
    h->base.ops = &host_ops;
    h->base.options = *options;
    backend *be = options->be;
    if (!be->ops->host_memory) {
        void *memory = NULL;
        h->bytes = staging_bytes(options);
        status st = be->ops->alloc_shared(be, (size_t)h->bytes, &memory, err);
        if (st != STATUS_OK) {
            free(h);
            return st;
        }
        h->staging = memory;
    }
    *ret = &h->base;
    return STATUS_OK;
}
