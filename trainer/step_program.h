/*
 * A sequence of ops that is run step after step: recorded once where the backend can replay it, run
 * as it is called otherwise.
 *
 * What changes from step to step goes in through one slot of `in`, and what the host wants to know
 * comes out through one slot of `out` and `out_sums`, all in shared memory; the step_control on the
 * device counts the steps. A program is cut into segments; neighbours that can be recorded become
 * one graph (a step over NCCL is one graph, over MPI two with the host's collective between). The
 * first step is run as it is called, so that libraries load what they need; the second is
 * recorded. Where recording is refused (a library that cannot be captured) that is logged, and
 * steps go on as they are called.
 *
 * At most step_program_depth steps are under way: 1 where ops run as they are called, else 2. The
 * host waits for events, with a check for lost peers, never inside a launch.
 */
#ifndef RINGMASTER_TRAINER_STEP_PROGRAM_H
#define RINGMASTER_TRAINER_STEP_PROGRAM_H

#include "kernels/backend.h"
#include "kernels/comm_device.h"

#define STEP_PROGRAM_DEPTH 2 /* with graphs */
#define STEP_PROGRAM_MAX   4 /* segments */

typedef struct step_segment {
    status (*run)(void *ctx, errbuf *err);
    bool records; /* may stand between graph_begin and graph_end */
} step_segment;

/* Zero-initialise. */
typedef struct step_program {
    backend *be;
    comm_device *comm; /* whose calls the segments make; NULL = none */
    const step_segment *segment;
    int segments;
    void *ctx;
    int shards, slots;     /* sums a step; steps whose output is kept */
    double timeout;        /* seconds that the host waits for a step */
    bool replays;          /* false: run as called (no graphs, or RINGMASTER_CUDA_SYNC) */
    step_control *control; /* device */
    loss_sums *sums;       /* device: [shards] */
    step_input *in;        /* shared, as the next two: [slots] */
    step_output *out;
    loss_sums *out_sums; /* [slots][shards] */
    backend_event *done[STEP_PROGRAM_DEPTH];
    backend_graph *graph[STEP_PROGRAM_MAX]; /* by its first segment */
    uint64_t launched;                      /* steps */
    uint64_t waited;                        /* steps known to be done */
} step_program;

/* What is set before: be, comm, segment, segments, ctx, shards, slots. On failure step_program_fini
 * frees what there is. */
CHECK_RESULT status step_program_init(step_program *p, errbuf *err);
void step_program_fini(step_program *p);

/* Steps that may be under way when the next one is launched. */
int step_program_depth(const step_program *p);
/* Where the next step's input goes; zeroed. */
step_input *step_program_input(step_program *p);
/* Launches the next step. The step `depth` before it must be done (step_program_wait). */
CHECK_RESULT status step_program_run(step_program *p, errbuf *err);
/* Waits until `steps` steps in all are done. */
CHECK_RESULT status step_program_wait(step_program *p, uint64_t steps, errbuf *err);
/* Of step number `step` (0, 1, …), which is done and not older than `slots`. */
const step_output *step_program_output(const step_program *p, uint64_t step);
const loss_sums *step_program_sums(const step_program *p, uint64_t step);
/* Forgets the graphs: recorded anew at the next step. */
void step_program_drop_graphs(void *program);

#endif
