/*
 * Where a rank runs: how many threads it has and on which cores.
 *
 * Alone the ranks of a host share its affinity mask: where the launcher has already given each its
 * own cores a rank keeps them, else they cut the common mask into equal stretches (`--bind-to none`
 * inherits the caller's mask: SERVICE 4.1). Under an agent the cores are given.
 */
#ifndef RINGMASTER_TRAINER_PLACEMENT_H
#define RINGMASTER_TRAINER_PLACEMENT_H

#include <stdint.h>

#include "kernels/comm.h"
#include "protocol/status.h"

/* `asked` threads (0 = as many as cores there are for this rank), the same on every rank. Pins the
 * process to its cores where they are enough for its threads. Collective; before any thread is
 * created. */
CHECK_RESULT status placement_settle(comm *c, int64_t asked, int *ret_threads, errbuf *err);

/* Pins to exactly these cores. */
CHECK_RESULT status placement_pin(const int *cores, int count, errbuf *err);

#endif
