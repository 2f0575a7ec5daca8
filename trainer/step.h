/*
 * The training step of one rank (DESIGN "Training step"):
 *
 *   expand -> per shard: forward, loss, backward, reduce -> one all-reduce of the flat buffer
 *   [ring(s) | direct gradients | BN statistics | control word] -> SGD
 *
 * Shards of a rank run one after another on all its threads, or (exact mode) side by side, one
 * thread each; their gradients are added in shard order. In exact mode gradients are summed as
 * int64 and BN statistics are gathered and summed in shard order, so that the bits do not depend
 * on the world's size nor on threads.
 *
 * Errors of one rank travel in the control word: every rank leaves at the same step, nothing is
 * updated, and all return the status of the lowest rank that has one.
 *
 * On a backend that records ops a step is replayed (step_program.h): it is launched and runs on
 * while the host prepares the next.
 */
#ifndef RINGMASTER_TRAINER_STEP_H
#define RINGMASTER_TRAINER_STEP_H

#include "kernels/comm_device.h"
#include "protocol/spec.h"
#include "trainer/feed.h"
#include "trainer/net/exec.h"
#include "trainer/sample_sums.h"

/* Steps whose sums are kept before they must be collected. */
#define STEP_MAX_PENDING 256

/* Running statistics take this share of a step's (METHODS 2: momentum 0.1). */
#define BN_MOMENTUM 0.1

typedef struct stepper stepper;

typedef struct stepper_options {
    const spec *spec; /* resolved; borrowed */
    const net *net;   /* borrowed, as the others */
    backend *be;
    comm *comm;
    int lanes;     /* as the backend was opened with */
    bool training; /* false: evaluation only, no gradients */
} stepper_options;

/* Where the host keeps what a checkpoint holds. */
typedef struct stepper_state {
    float *params, *running, *momentum; /* momentum NULL where not training */
} stepper_state;

CHECK_RESULT status stepper_create(const stepper_options *options, stepper **ret_stepper,
                                   errbuf *err);
/* Opens the collectives of training steps: collective, so all ranks have a stepper by then. Before
 * the first step; nothing to do where not training. */
CHECK_RESULT status stepper_connect(stepper *s, errbuf *err);
void stepper_destroy(stepper **s);

/* The number of the next step within the run, for messages; 0 where it is not told. */
void stepper_count_from(stepper *s, int64_t step);

/* Copies the state from or to host arrays (param_elements, running_elements, param_elements). */
CHECK_RESULT status stepper_upload(stepper *s, const stepper_state *state, errbuf *err);
CHECK_RESULT status stepper_download(stepper *s, const stepper_state *state, errbuf *err);

/* Waits until another step may be launched: where the backend replays steps two are under way at
 * most, else the last one is done. Fails where the step that made room failed on some rank;
 * *ret_stop where its control word asks all ranks to leave. Collective in what it says: before
 * step s every rank gets the word of step s - 2 (replayed) or s - 1. */
CHECK_RESULT status stepper_ready(stepper *s, bool *ret_stop, errbuf *err);

/* Launches one step on the next shards of `f`, after stepper_ready. `stop` asks all ranks to leave.
 * Where steps are not replayed it is done, and judged, when this returns. From a step that failed
 * on, nothing is updated, on any rank. */
CHECK_RESULT status stepper_run(stepper *s, feed *f, double lr, bool stop, errbuf *err);

/* Waits for all steps launched so far, then collects the sums of those since the last call from all
 * ranks: collective. Adds them, in
 * step and shard order, to *sums; *ret_last (may be NULL) is the last step's mean loss. Must be
 * called before STEP_MAX_PENDING steps are pending. */
CHECK_RESULT status stepper_collect(stepper *s, sample_sums *sums, double *ret_last, errbuf *err);
int stepper_pending(const stepper *s);

/* Evaluates all shards of `f` (in evaluation mode) with running statistics: collective;
 * every rank gets the sums over all samples, added in shard order. `report` may be NULL. */
CHECK_RESULT status stepper_evaluate(stepper *s, feed *f, sample_sums *ret_sums,
                                     void (*report)(void *ctx, int64_t done, int64_t total),
                                     void *ctx, errbuf *err);

/* Whether steps are replayed from graphs. */
bool stepper_is_replayed(const stepper *s);
/* Floats that a step all-reduces, the control word left out (FORMATS 8). */
int64_t stepper_wire_floats(const stepper *s);
net_exec *stepper_exec(stepper *s);
/* The collectives, for the plan; NULL before stepper_connect or where not training. */
const comm_device *stepper_comm(const stepper *s);
/* The reduced gradient of the last step (param_elements, device), for tests. */
const float *stepper_gradient(const stepper *s);

/* Seconds spent so far in each phase of stepper_run, for `ringtrain bench`. */
typedef struct step_times {
    double expand, data, compute, reduce, communicate, update;
} step_times;
step_times stepper_times(const stepper *s);

#endif
