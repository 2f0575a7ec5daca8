/*
 * The executor's schedule: which buffer every activation and gradient of a net lies in, worked out
 * from the graph alone. Private to net/ (and its tests).
 *
 * Time. Forward op of node i happens at i, the loss at `nodes`, the backward of node i at
 * 2 * nodes - i. An item is one buffer with the first and last time at which it is touched.
 */
#ifndef RINGMASTER_TRAINER_NET_EXEC_SCHEDULE_H
#define RINGMASTER_TRAINER_NET_EXEC_SCHEDULE_H

#include <stdbool.h>

#include "kernels/backend.h"
#include "trainer/net/graph.h"
#include "trainer/net/memory_plan.h"

#define NO_ITEM (-1)

/* One `add` that must run before a node's backward: to = a + b (to may be a). */
typedef struct exec_add {
    int node; /* before the backward of this node */
    int a, b, to;
    int tensor; /* whose size they have */
} exec_add;

/* Buffers (item numbers) of one node. */
typedef struct exec_step {
    int x, residual, y;
    int dy1, dy2; /* gradient of y, as one or two buffers to be summed */
    int dz;       /* BN: masked gradient, also the residual's */
    int dx, dx2;  /* gradient of input 0 and (ADD) input 1; NO_ITEM: not needed */
    int ws;       /* pooling workspace */
    int saved;    /* BN: offset of its [2C] saved values in the lane's saved vector */
} exec_step;

typedef struct exec_schedule {
    memory_item *items; /* bytes, lifetimes and, after planning, offsets */
    int item_count;
    exec_step *steps; /* one a node */
    exec_add *adds;   /* in backward order */
    int add_count;
    int *tensor_item;   /* activation of each tensor */
    int *output_grad;   /* item of each output's gradient */
    size_t arena_bytes; /* of one lane */
    int64_t saved_elements;
} exec_schedule;

/* Bytes that a backend needs for one tensor (backend->tensor_bytes, or plain floats). */
typedef struct exec_sizes {
    const backend *be;
    int batch;
    const size_t *pool_workspace; /* bytes, by node */
} exec_sizes;

CHECK_RESULT status exec_schedule_create(const net *n, const exec_sizes *sizes, bool training,
                                         exec_schedule *ret, errbuf *err);
void exec_schedule_fini(exec_schedule *s); /* NULL-safe */

#endif
