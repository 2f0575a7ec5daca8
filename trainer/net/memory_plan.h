/*
 * Memory: packing buffers by lifetime into one arena. Whether the host has room: memory_check.h.
 */
#ifndef RINGMASTER_TRAINER_NET_MEMORY_PLAN_H
#define RINGMASTER_TRAINER_NET_MEMORY_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

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

#endif
