/*
 * What a person sees while a run goes on: a live bar on a terminal, a line an epoch elsewhere.
 * Rank 0 only; other ranks hold a silent one. Times shown here decide nothing.
 */
#ifndef RINGMASTER_TRAINER_PROGRESS_H
#define RINGMASTER_TRAINER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    bool is_silent, is_live; /* live: stderr is a terminal */
    char label[48];          /* the job's name */
    int64_t epochs, steps;   /* of the run; steps an epoch */
    int64_t images_per_step;
    double began, last_drawn;
    int64_t first_step; /* where this attempt began */
} progress;

void progress_init(progress *p, bool is_silent, const char *label);
/* A line of its own above the bar: resumed from …, best so far, … */
void progress_say(progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Before training: "reading images 1200/50000". */
void progress_phase(progress *p, const char *what, int64_t done, int64_t total);
void progress_start(progress *p, int64_t epochs, int64_t steps, int64_t images_per_step,
                    int64_t first_step);
/* After global step `step` (counted from 0 over the run): at most ten redraws a second. `loss` is
 * the last known mean loss, NaN where none is. */
void progress_step(progress *p, int64_t step, double loss);
void progress_end(progress *p); /* clears the bar */

#endif
