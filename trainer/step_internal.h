/*
 * What the files of the training step share: step.c (creation, state), step_run.c (the ops of a
 * step, launching and judging it), step_eval.c (evaluation).
 */
#ifndef RINGMASTER_TRAINER_STEP_INTERNAL_H
#define RINGMASTER_TRAINER_STEP_INTERNAL_H

#include "trainer/step.h"
#include "trainer/step_program.h"

/* Steps whose outputs are kept: those not yet collected, and those under way. */
#define STEP_SLOTS (STEP_MAX_PENDING + STEP_PROGRAM_DEPTH)

/* A stretch of the parameter vector with one weight decay. */
typedef struct decay_span {
    int64_t offset, elements;
    float weight_decay;
} decay_span;

/* What one lane works on in a round. */
typedef struct lane_job {
    int shard;       /* of the step's, on this rank; -1 = none */
    loss_sums *sums; /* device: where its sums go */
    float *grad;     /* param_elements */
    float *stats;    /* running_elements */
} lane_job;

struct stepper {
    stepper_options o;
    net_exec *exec;
    int shard, shards_local, shards_total;
    int64_t params, stats; /* elements */
    backend_loss **loss;   /* by lane */
    lane_job *job;         /* by lane */
    comm_device *reduce;   /* training */
    feed *feed;            /* of the step that is being run or recorded */

    /* device */
    float *param, *momentum, *running;
    float *flat;        /* [params | stats | 2]: sums of this rank, after the all-reduce of all */
    float *lane_grad;   /* [lanes][params + stats], or NULL where one lane writes into flat */
    int64_t *exact;     /* [params | 2], exact mode */
    float *shard_stats; /* exact: [shards_local][stats] of this rank */
    float *all_stats;   /* exact: [shards_total][stats] */

    decay_span *span;
    int spans;

    step_program train, eval;
    step_segment train_segment[3], eval_segment[1];
    const step_control *control;  /* of the program that runs */
    feed *train_feed, *eval_feed; /* whose addresses the graphs hold */
    int eval_lanes;               /* of the round that runs */
    int64_t number;               /* of the step that was launched first, within the run */
    uint64_t judged;              /* training steps whose outcome was looked at */
    bool has_stop;
    uint64_t stop_step; /* the first one whose word asks to stop */
    bool lost;          /* a peer or the device: nothing can be waited for */
    errbuf mine;        /* what this rank could not do */
    int64_t *skipped;   /* [STEP_SLOTS][shards_local] */

    /* sums not collected yet: [STEP_MAX_PENDING][shards_local] */
    sample_sums *pending, *gathered;
    int pending_steps;
    step_times times;
};

/* The last error of the backend as `st`'s line. */
CHECK_RESULT status step_device_status(stepper *s, status st, errbuf *err);
/* Waits until `steps` training steps in all are done. */
CHECK_RESULT status step_wait(stepper *s, uint64_t steps, errbuf *err);
/* Gives back the shards that lanes hold. */
void step_release_round(stepper *s);
sample_sums step_sums_of(const loss_sums *sums, int64_t skipped);

/* The segments of the programs. */
CHECK_RESULT status step_gradient_segment(void *stepper, errbuf *err);
CHECK_RESULT status step_reduce_segment(void *stepper, errbuf *err);
CHECK_RESULT status step_update_segment(void *stepper, errbuf *err);
CHECK_RESULT status step_evaluate_segment(void *stepper, errbuf *err);

#endif
