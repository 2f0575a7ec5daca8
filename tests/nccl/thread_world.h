/*
 * A world whose ranks are threads of a test: comm.h's collectives by rendezvous, and words of ranks
 * that wait. A rank that is missing makes the others wait, so a test that loses one has it do its
 * part in the host's collectives.
 */
#ifndef RINGMASTER_TESTS_NCCL_THREAD_WORLD_H
#define RINGMASTER_TESTS_NCCL_THREAD_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "kernels/comm.h"

#define WORLD_RANKS 8
#define WORLD_BYTES 4096 /* of a rank in a collective */

typedef struct thread_world {
    int size;
    pthread_barrier_t barrier;
    char data[WORLD_RANKS][WORLD_BYTES];
    _Atomic uint64_t step[WORLD_RANKS];
    _Atomic double heard[WORLD_RANKS];
    errbuf farewell[WORLD_RANKS];
    atomic_bool gave_up[WORLD_RANKS];
} thread_world;

typedef struct world_comm {
    comm base;
    thread_world *world;
} world_comm;

static inline double world_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline thread_world *world_of(comm *c)
{
    return ((world_comm *)(void *)c)->world;
}

static inline status world_gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    thread_world *w = world_of(c);
    ASSERT(bytes <= WORLD_BYTES);
    (void)err;
    memcpy(w->data[c->rank], mine, (size_t)bytes);
    pthread_barrier_wait(&w->barrier);
    for (int r = 0; r < c->size; r++)
        memcpy((char *)all + r * bytes, w->data[r], (size_t)bytes);
    pthread_barrier_wait(&w->barrier);
    return STATUS_OK;
}

static inline status world_broadcast(comm *c, void *data, int64_t bytes, int root, errbuf *err)
{
    thread_world *w = world_of(c);
    ASSERT(bytes <= WORLD_BYTES);
    (void)err;
    if (c->rank == root)
        memcpy(w->data[root], data, (size_t)bytes);
    pthread_barrier_wait(&w->barrier);
    memcpy(data, w->data[root], (size_t)bytes);
    pthread_barrier_wait(&w->barrier);
    return STATUS_OK;
}

static inline void world_publish(comm *c, uint64_t step)
{
    thread_world *w = world_of(c);
    w->step[c->rank] = step;
    w->heard[c->rank] = world_seconds();
}

static inline void world_give_up(comm *c, const errbuf *why)
{
    thread_world *w = world_of(c);
    if (w->gave_up[c->rank])
        return;
    w->farewell[c->rank] = *why;
    w->gave_up[c->rank] = true;
}

static inline void world_silent(comm *c, double seconds, comm_peer *ret)
{
    thread_world *w = world_of(c);
    const double now = world_seconds();
    *ret = (comm_peer){.rank = -1};
    for (int r = 0; r < c->size && ret->rank < 0; r++)
        if (r != c->rank &&
            (w->gave_up[r] || now - w->heard[r] >= seconds || w->step[r] < w->step[c->rank]))
            *ret = (comm_peer){r, w->step[r], now - w->heard[r],
                               w->gave_up[r] ? &w->farewell[r] : NULL};
}

static const comm_ops world_ops = {
    .name = "world",
    .all_gather = world_gather,
    .broadcast = world_broadcast,
    .publish = world_publish,
    .give_up = world_give_up,
    .silent = world_silent,
};

static inline void world_init(thread_world *w, int size)
{
    memset(w, 0, sizeof *w);
    w->size = size;
    pthread_barrier_init(&w->barrier, NULL, (unsigned int)size);
    for (int r = 0; r < size; r++)
        w->heard[r] = world_seconds();
}

static inline world_comm world_join(thread_world *w, int rank)
{
    return (world_comm){
        .base = {.ops = &world_ops,
                 .rank = rank,
                 .size = w->size,
                 .local_rank = rank,
                 .local_size = w->size},
        .world = w,
    };
}

#endif
