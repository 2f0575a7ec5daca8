/*
 * Training a job from its spec to result.json, alone or as one rank of a world.
 *
 * train.c opens everything, decides where to begin (fresh, or from the newest checkpoint of the
 * run folder) and ends the run; train_loop.c is the loop over steps and epochs. Rank 0 alone
 * writes files; whatever it does alone is followed by an agreement, so that no rank runs on when
 * another cannot.
 */
#ifndef RINGMASTER_TRAINER_TRAIN_H
#define RINGMASTER_TRAINER_TRAIN_H

#include <stdbool.h>

#include "protocol/attempt.h"
#include "trainer/checkpoint.h"
#include "trainer/run_folder.h"
#include "trainer/session.h"
#include "trainer/signals.h"

typedef struct train_options {
    const char *attempt_path; /* --attempt FILE, or NULL: alone */
    bool json;                /* print result.json to stdout at the end */
} train_options;

/* Trains to the end or to a stop request. STATUS_OK, or the exit status (a stop is
 * STATUS_INTERRUPTED or STATUS_TERMINATED, with a line that says how to resume). */
CHECK_RESULT status train_job(const spec *given, const train_options *options, errbuf *err);

/* What an evaluation found. */
typedef struct eval_figures {
    double top1, top5, loss; /* fractions; mean loss */
    int64_t images, epoch;   /* epoch: how many were done */
    int64_t skipped;         /* images replaced because of data.on_error = skip */
} eval_figures;

/* A run in progress. Shared between train.c and train_loop.c only. */
typedef struct train_run {
    const train_options *options;
    session s;
    comm *comm;
    progress progress;
    signals signals;
    attempt_file attempt; /* under an agent */
    bool has_attempt;
    attempt_progress beat; /* closed (updates go nowhere) when alone */
    run_folder folder;     /* rank 0 */
    bool has_folder;
    stepper_state host; /* host copies of what a checkpoint holds */
    train_state state;
    int64_t saved_step; /* of the last checkpoint of this attempt; 0 = none */
    int64_t total_steps, first_step;
    eval_figures final;
    bool has_begun; /* the state stands: figures mean something */
    bool has_final;
    bool checkpoint_asked; /* of this rank, by its control file */
    bool checkpoint_due;   /* all ranks know: after this step, with everything that belongs to it */
    double train_seconds, last_loss, epoch_began;
    int64_t epoch_first_step; /* first step of this epoch in this attempt */
    int stop_signal;
    char *last_checkpoint; /* rank 0: path, or NULL */
} train_run;

/* From run->state to the end of the job or a stop; *ret_stopped tells which. */
CHECK_RESULT status train_loop(train_run *run, bool *ret_stopped, errbuf *err);
/* Evaluates the validation set; collective. */
CHECK_RESULT status train_evaluate(train_run *run, feed *f, eval_figures *ret, errbuf *err);

#endif
