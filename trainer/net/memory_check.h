/*
 * Whether the host has room for a run (FORMATS 5): judged from net and spec alone, before anything
 * large is allocated.
 */
#ifndef RINGMASTER_TRAINER_NET_MEMORY_CHECK_H
#define RINGMASTER_TRAINER_NET_MEMORY_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/spec.h"
#include "protocol/status.h"
#include "trainer/net/graph.h"

/* What the need depends on besides the net. */
typedef struct memory_run {
    const spec *spec; /* resolved */
    bool training;    /* false: evaluation, with neither gradients nor optimiser state */
    bool on_device;   /* weights and activations lie in a device's own memory */
    bool is_rank_0;   /* keeps host copies of what a checkpoint holds */
    int ranks;        /* of the run on this host */
    /* shards that a loader makes ahead at least, and images of the sets that there are loaders for;
     * 0 = no loader */
    int loader_depth;
    int64_t train_images, eval_images;
} memory_run;

/* What the memory goes to, each with the field that drives it. */
typedef enum memory_part {
    MEMORY_PARAMS,  /* parameters, their gradient, optimiser state, exact sums, host copies */
    MEMORY_WEIGHTS, /* generated weights, their gradients in one lane, tables of the ring maps */
    MEMORY_LANES,   /* gradients of lanes side by side */
    MEMORY_ACTIVATIONS, /* and their gradients */
    MEMORY_LOADERS,     /* shards made ahead */
    MEMORY_PARTS
} memory_part;

/* Bytes, of all ranks of the host. Doubles: products of the largest fields have no room in 64
 * bits. */
typedef struct memory_need {
    double part[MEMORY_PARTS], total;
    bool is_ring; /* most of the parameters are rings' */
} memory_need;

/* What the run surely takes: channels that a backend pads, its libraries and scratch memory are
 * left out, of an evaluation also the activations, so that no run is refused that fits. */
CHECK_RESULT status memory_estimate(const net *n, const memory_run *run, memory_need *ret,
                                    errbuf *err);

/* STATUS_BAD_INPUT where the estimate is more than `available` bytes, naming the largest part and
 * the field that lowers it. */
CHECK_RESULT status memory_judge(const memory_need *need, const memory_run *run, uint64_t available,
                                 errbuf *err);

/* Both, with what this host has. */
CHECK_RESULT status memory_check_net(const net *n, const memory_run *run, errbuf *err);

/* Bytes that this process can still take: MemAvailable, or what the tightest control group (v1 or
 * v2) around it leaves, page cache that can be dropped counted as free. UINT64_MAX where the
 * system does not say. `root` is "" or, for tests, a folder that holds proc/ and sys/. */
uint64_t memory_available(const char *root);

/* Shards of a rank that run side by side (DESIGN, Determinism 2): on the CPU only. */
int memory_lanes(const spec *s, bool on_device);

#endif
