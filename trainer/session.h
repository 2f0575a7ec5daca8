/*
 * A session: everything that a command works with for one job, opened in order and closed in
 * reverse: the resolved spec, its ids, data, net, backend, training step, loaders. Every function
 * that opens is collective: all ranks succeed, or all get the lowest failing rank's line.
 */
#ifndef RINGMASTER_TRAINER_SESSION_H
#define RINGMASTER_TRAINER_SESSION_H

#include "kernels/backend.h"
#include "kernels/comm.h"
#include "protocol/attempt.h"
#include "protocol/spec.h"
#include "trainer/feed.h"
#include "trainer/progress.h"
#include "trainer/step.h"

/* Where a rank is to compute, as far as the spec leaves it open. */
typedef enum session_seat {
    SEAT_ANY,   /* alone: a device where there is one, by local rank; ranks may share it */
    SEAT_CPU,   /* an agent's seat of cores: backend.name auto is no device then */
    SEAT_DEVICE /* an agent's seat of a device */
} session_seat;

typedef struct session {
    spec spec; /* resolved */
    bool has_spec;
    comm *comm;             /* borrowed */
    progress *progress;     /* borrowed */
    attempt_progress *beat; /* borrowed: says that loading and tuning go on; NULL = nobody asks */
    int threads, lanes;
    session_seat seat;
    int device; /* SEAT_DEVICE: its ordinal among the visible devices */
    char data_hash[65], job_id[33];
    dataset *train_set, *eval_set;
    net *net;
    backend *be;
    stepper *step;
    char *plan; /* canonical JSON; rank 0's, on every rank */
    feed *train, *eval, *clean;
    int64_t steps_per_epoch;
} session;

/* Resolves a spec for this world (FORMATS 1): data, rings, workers, threads, shard, seeds, paths.
 * `world` = ranks, `threads` > 0. Needs no other rank. */
CHECK_RESULT status session_resolve_spec(spec *s, int world, int threads, errbuf *err);

/* Copies and resolves the spec, hashes the data (rank 0), makes the job id. Zero-initialise the
 * session before. */
CHECK_RESULT status session_begin(session *s, const spec *given, int threads, comm *c, progress *p,
                                  errbuf *err);
/* Opens the sets; the training set only where `training` or clean accuracy is asked for. */
CHECK_RESULT status session_open_data(session *s, bool training, errbuf *err);
/* Builds the net and checks that the hosts have room for it. */
CHECK_RESULT status session_open_net(session *s, errbuf *err);
/* Opens backend, step and feeds. `plan` (may be NULL): the plan of a checkpoint, to follow; else
 * what spec.backend.plan says. s->plan is what resulted. A rank that cannot compute as rank 0 does
 * (another instruction set, say) is STATUS_BAD_INPUT. */
CHECK_RESULT status session_open_compute(session *s, const char *plan, bool training, errbuf *err);
void session_close(session *s); /* NULL-safe, half-open sessions too */

#endif
