/*
 * Where a rank runs: how many threads it has and on which cores.
 *
 * Alone the ranks of a host that have one affinity mask in common cut it into equal stretches
 * (`--bind-to none` inherits the caller's mask: SERVICE 4.1); a rank whose mask no other has, say
 * because the launcher has given each its own cores, keeps it. Under an agent the cores are given.
 */
#ifndef RINGMASTER_TRAINER_PLACEMENT_H
#define RINGMASTER_TRAINER_PLACEMENT_H

#include <sched.h>
#include <stdint.h>

#include "kernels/comm.h"
#include "protocol/status.h"

/* `asked` threads (0 = as many as cores there are for this rank), the same on every rank. Pins the
 * process to its cores where they are enough for its threads. Collective; before any thread is
 * created. */
CHECK_RESULT status placement_settle(comm *c, int64_t asked, int *ret_threads, errbuf *err);

/* Pins to exactly these cores. */
CHECK_RESULT status placement_pin(const int *cores, int count, errbuf *err);

/* -- parts, for tests -- */

/* What a rank tells the others. */
typedef struct rank_place {
    char host[64];
    cpu_set_t mask;
} rank_place;

/* The cores of `rank` among `size` ranks: its stretch of the mask that it has in common with others
 * of its host. Empty where these are more ranks than cores. */
void placement_choose(const rank_place *all, int size, int rank, cpu_set_t *ret_cores);

#endif
