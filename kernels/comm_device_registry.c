/*
 * Chooses the collectives of device memory: the one file that knows whether NCCL was built in.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/comm_device.h"
#include "kernels/comm_device_host.h"
#ifdef RINGMASTER_CUDA
#include "kernels/cuda/comm_nccl.h"
#endif

static bool share_device(const comm_device_identity *a, const comm_device_identity *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->device, b->device) == 0;
}

/* `all` in rank order, as gathered. */
static status compare_all(const comm_device_identity *all, int size, bool *ret_shared, errbuf *err)
{
    bool shared = false;
    for (int r = 1; r < size; r++) {
        if (strcmp(all[r].versions, all[0].versions) != 0)
            return errbuf_set(err, STATUS_ENVIRONMENT,
                              "rank %d runs %s, rank 0 runs %s: install the same versions on all "
                              "hosts",
                              r, all[r].versions, all[0].versions);
        for (int q = 0; q < r && !shared; q++)
            shared = share_device(&all[q], &all[r]);
    }
    *ret_shared = shared;
    return STATUS_OK;
}

status comm_device_compare(comm *host, const comm_device_identity *mine, bool *ret_shared,
                           errbuf *err)
{
    comm_device_identity *all = calloc((size_t)host->size, sizeof *all);
    status st = all ? STATUS_OK
                    : errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory comparing the devices");
    TRY_GOTO(comm_agree(host, st, err), st, cleanup);
    ASSERT(all); /* or comm_agree had said so */
    TRY_GOTO(host->ops->all_gather(host, mine, sizeof *mine, all, err), st, cleanup);
    st = compare_all(all, host->size, ret_shared, err);
cleanup:
    free(all);
    return st;
}

#ifdef RINGMASTER_CUDA
/* Whether every rank has a CUDA device of its own. */
static status choose_nccl(const comm_device_options *o, bool *ret_nccl, errbuf *err)
{
    comm_device_identity mine = {0};
    bool shared = false;
    status st = comm_nccl_identity(o->be, &mine, err);
    TRY(comm_agree(o->host, st, err));
    TRY(comm_device_compare(o->host, &mine, &shared, err));
    *ret_nccl = !shared;
    return STATUS_OK;
}
#endif

status comm_device_open(const comm_device_options *options, comm_device **ret, errbuf *err)
{
    if (options->host->size == 1)
        return comm_device_self_open(options, ret, err);
#ifdef RINGMASTER_CUDA
    if (strcmp(options->be->ops->name, "cuda") == 0) {
        bool nccl = false;
        TRY(choose_nccl(options, &nccl, err));
        if (nccl)
            return comm_nccl_open(options, ret, err);
    }
#endif
    return comm_device_host_open(options, ret, err);
}

void comm_device_close(comm_device **c)
{
    if (!c || !*c)
        return;
    (*c)->ops->close(*c);
    *c = NULL;
}
