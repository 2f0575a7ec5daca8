/*
 * Memory: packing buffers by lifetime into one arena, and whether the host has room for a net.
 */
#ifndef RINGMASTER_TRAINER_NET_MEMORY_PLAN_H
#define RINGMASTER_TRAINER_NET_MEMORY_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"
#include "trainer/net/graph.h"

#define MEMORY_ALIGNMENT 64 /* of every offset: a cache line, and a vector of AVX-512 */

/* A buffer that is touched from time `first` to time `last`, both included. */
typedef struct memory_item {
    size_t bytes;
    int first, last;
    size_t offset; /* result */
} memory_item;

/* Gives every item an offset such that no two that live at one time overlap; *ret_total is the size
 * of the arena. Greedy by size, each item into the smallest gap that holds it; the same list gives
 * the same offsets. On failure nothing is written. */
CHECK_RESULT status memory_plan(memory_item *items, int count, size_t *ret_total, errbuf *err);

/* Most bytes that live at one time, alignment included: no packing needs less. */
size_t memory_plan_bound(const memory_item *items, int count);

/* Bytes that this process can still take: MemAvailable, or what the tightest control group (v1 or
 * v2) around it leaves, page cache that can be dropped counted as free. UINT64_MAX where the
 * system does not say. `root` is "" or, for tests, a folder that holds proc/ and sys/. */
uint64_t memory_available(const char *root);

/* STATUS_BAD_INPUT, "<what> needs … bytes, … are available; lower <field>", where they do not
 * fit into memory_available(""). */
CHECK_RESULT status memory_check(uint64_t needed, const char *what, const char *field, errbuf *err);

/* memory_check for what every rank holds of a net before the first step, whatever the backend:
 * parameters, gradients and `states` optimiser states, of `ranks` ranks on this host. Names the
 * ring's size or the net's width, whichever weighs more. */
CHECK_RESULT status memory_check_net(const net *n, int states, int ranks, errbuf *err);

#endif
