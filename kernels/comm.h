/*
 * Collectives among the ranks of a gang: `self` (a world of one, no library called), `mpi` (host
 * buffers). For memory of a device: comm_device.h.
 *
 * Counts are elements. Every call is collective: all ranks, same order, same counts. Reductions
 * are deterministic: the sum of rank contributions is taken in a fixed binary tree over ranks,
 * whatever the timing, and every rank gets the same bits.
 */
#ifndef RINGMASTER_KERNELS_COMM_H
#define RINGMASTER_KERNELS_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/status.h"

typedef struct comm comm;

/* What is known of a peer; see comm_ops.silent. */
typedef struct comm_peer {
    int rank;               /* -1 = nobody is to blame */
    uint64_t step;          /* its last word; 0 = none yet */
    double silence;         /* seconds since its last word, or since the comm was opened */
    const errbuf *farewell; /* why it gave up, or NULL; valid until the comm is closed */
} comm_peer;

typedef struct comm_ops {
    const char *name;       /* "self", "mpi" */
    void (*close)(comm *c); /* collective, but where a rank is lost */
    CHECK_RESULT status (*all_reduce_float)(comm *c, float *data, int64_t count, errbuf *err);
    CHECK_RESULT status (*all_reduce_int64)(comm *c, int64_t *data, int64_t count, errbuf *err);
    /* all[r * bytes ..] = mine of rank r */
    CHECK_RESULT status (*all_gather)(comm *c, const void *mine, int64_t bytes, void *all,
                                      errbuf *err);
    CHECK_RESULT status (*broadcast)(comm *c, void *data, int64_t bytes, int root, errbuf *err);
    CHECK_RESULT status (*barrier)(comm *c, errbuf *err);
    /* -- beside the collectives: not collective, never wait (comm_wait.h uses them) -- */
    /* A rank that waits tells the others how many steps it has done, about once a second. A word
     * that a rank has not yet taken is not repeated. */
    void (*publish)(comm *c, uint64_t step);
    /* Tells the others that this rank leaves because of an error that they do not see. The first
     * call counts. */
    void (*give_up)(comm *c, const errbuf *why);
    /* Who is to blame for a wait, by the others' words: a rank that gave up; else the one silent
     * for longest and at least `seconds`; else the one whose step lies furthest behind the step
     * published here. */
    void (*silent)(comm *c, double seconds, comm_peer *ret);
    /* Ends the whole world at once with this exit code; for errors that one rank cannot share. */
    void (*abort)(comm *c, int exit_code) __attribute__((noreturn));
} comm_ops;

struct comm {
    const comm_ops *ops;
    int rank, size;             /* in the gang */
    int local_rank, local_size; /* among the gang's ranks on this host */
    /* Set by who finds that a rank does not come any more: collectives and comm_agree then fail at
     * once, and closing waits for nobody. */
    bool lost;
    /* Seconds that a collective waits for the others before one is lost, the same on all ranks; 0 =
     * for ever, as at the start, when a rank may have much to do alone. */
    double patience;
};

/* `self` where this process was not launched as one of several, else `mpi` (comm_registry.c). A
 * launcher without support built in is STATUS_ENVIRONMENT and says what to install. */
CHECK_RESULT status comm_open(comm **ret_comm, errbuf *err);
void comm_close(comm **c); /* NULL-safe */

/* Ranks of the world that a launcher put this process into, before any comm is open; 1 = none did.
 */
long comm_launched_size(void);

/* Agrees on one status: every rank gets the status and line of the lowest rank that has one, with
 * "rank r: " in front where size > 1. For start-up; a step uses the control word. */
CHECK_RESULT status comm_agree(comm *c, status mine, errbuf *err);

#endif
