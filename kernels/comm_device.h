/*
 * Collectives on a backend's memory, in the order of its ops. Three kinds: `host` works on the
 * memory itself where it is the host's, else through a staging copy; `nccl` among GPUs; and for a
 * world of one nothing is done.
 *
 * `records` tells whether its calls may stand between graph_begin and graph_end: then a whole step
 * is one graph. Otherwise a call waits for the ops before it and is complete when it returns.
 *
 * Counts are elements. The same bits on every rank; fixed order as comm.h promises, but for
 * all_reduce_float of nccl, whose algorithm and protocol are part of the plan.
 *
 * A lost peer. While the host waits it calls `check` now and then: STATUS_ENVIRONMENT
 * with a line that names the silent rank once it has been silent too long (RINGMASTER_PEER_TIMEOUT
 * seconds, 300 by default) or the line of a rank that gave up, or the library reports an error.
 * After that only abandon and close are allowed, and host->lost is set: the ranks cannot meet any
 * more, each leaves with the line that it has. A rank that leaves for a reason of its own says why
 * with host->ops->give_up, then abandons.
 */
#ifndef RINGMASTER_KERNELS_COMM_DEVICE_H
#define RINGMASTER_KERNELS_COMM_DEVICE_H

#include "kernels/backend.h"
#include "kernels/comm.h"

typedef struct comm_device comm_device;

typedef struct comm_device_options {
    comm *host;       /* borrowed; collective */
    backend *be;      /* borrowed */
    bool exact;       /* sums are integers: any algorithm gives the same bits */
    int64_t elements; /* of the largest buffer that will be reduced (staging is made once) */
} comm_device_options;

typedef struct comm_device_ops {
    const char *name; /* "self", "host", "nccl" */
    bool records;
    CHECK_RESULT status (*all_reduce_float)(comm_device *c, float *data, int64_t count,
                                            errbuf *err);
    CHECK_RESULT status (*all_reduce_int64)(comm_device *c, int64_t *data, int64_t count,
                                            errbuf *err);
    /* all[r * bytes ..] = mine of rank r; device memory */
    CHECK_RESULT status (*all_gather)(comm_device *c, const void *mine, int64_t bytes, void *all,
                                      errbuf *err);
    /* Before the graph that recorded calls is ended: polls until they all are taken. */
    CHECK_RESULT status (*settle)(comm_device *c, errbuf *err);
    /* This rank has done `step` steps and waits; see "A lost peer". */
    CHECK_RESULT status (*check)(comm_device *c, uint64_t step, errbuf *err);
    /* (optional) Tells of memory that will be reduced often: before its first use, outside graphs;
     * it stays until close. */
    CHECK_RESULT status (*use_buffer)(comm_device *c, void *data, int64_t bytes, errbuf *err);
    /* Gives up what is under way, so that graphs can be destroyed and the process can leave; what
     * waits meanwhile runs on a thread of its own. Bounded in time. `destroy_graphs(ctx)` (may be
     * NULL) is called once, on this thread. False: the device is still busy with it: leave the
     * process without touching the device again. */
    bool (*abandon)(comm_device *c, void (*destroy_graphs)(void *ctx), void *ctx);
    void (*close)(comm_device *c); /* after the graphs that recorded its calls */
    /* The plan's words for it: {"all_reduce": "nccl-ring-simple-8"…}; caller deletes. */
    CHECK_RESULT status (*describe)(const comm_device *c, struct cJSON **ret, errbuf *err);
} comm_device_ops;

struct comm_device {
    const comm_device_ops *ops;
    comm_device_options options;
};

/* What ranks compare before they choose. */
typedef struct comm_device_identity {
    char host[64];      /* the same on all ranks of a host */
    char device[32];    /* the same on all ranks of a host that share a device */
    char versions[128]; /* of the libraries that must be the same everywhere */
} comm_device_identity;

/* Collective. STATUS_ENVIRONMENT, with one line on all ranks, where versions differ. */
CHECK_RESULT status comm_device_compare(comm *host, const comm_device_identity *mine,
                                        bool *ret_shared, errbuf *err);

/* Collective. Chooses by the backend's name and memory and by whether ranks share a device. */
CHECK_RESULT status comm_device_open(const comm_device_options *options, comm_device **ret,
                                     errbuf *err);
void comm_device_close(comm_device **c); /* NULL-safe */

#endif
