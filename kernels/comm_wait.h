/*
 * A wait for other ranks that has a deadline: tells them how far this rank is, and finds out whose
 * fault it is when it takes too long.
 */
#ifndef RINGMASTER_KERNELS_COMM_WAIT_H
#define RINGMASTER_KERNELS_COMM_WAIT_H

#include "kernels/comm.h"

typedef struct comm_wait {
    comm *c;
    double timeout; /* seconds */
    uint64_t step;  /* done by this rank */
    double begin, said;
    bool told; /* a look failed with the line of a rank that gave up */
} comm_wait;

/* Seconds that a rank may be silent: RINGMASTER_PEER_TIMEOUT, 300 by default. */
CHECK_RESULT status comm_wait_timeout(double *ret_seconds, errbuf *err);

/* A clock for waits. */
double comm_wait_seconds(void);

void comm_wait_begin(comm_wait *w, comm *c, double timeout, uint64_t step);

/* One look while waiting for `what`; cheap. Fails where a rank gave up, with its status and line,
 * and when the time is over: then a rank is lost (comm.lost) and named. */
CHECK_RESULT status comm_wait_look(comm_wait *w, const char *what, errbuf *err);

/* Something failed and nobody said why: waits a few seconds, in which every rank that waits is
 * heard. A rank that gave up, or that is not heard, or rank = -1. */
void comm_wait_listen(comm_wait *w, comm_peer *ret);

/* The line of a rank that gave up, as comm_agree words it. */
status comm_wait_farewell(const comm_peer *p, errbuf *err);

/* Naps that grow from 20 us to 1 ms; *tries begins at 0. */
void comm_wait_nap(int *tries);

#endif
