/* Learning-rate schedules (METHODS 1.6, 2), in double on the host. */
#ifndef RINGMASTER_TRAINER_SCHEDULE_H
#define RINGMASTER_TRAINER_SCHEDULE_H

#include "protocol/spec.h"

/* Learning rate of step `step` (0, 1, …) of a run with `steps_per_epoch` steps an epoch.
 *   multistep: lr * gamma^(milestones passed), by the epoch
 *   exp:       lr * gamma^(epoch / decay_epochs), by the epoch, true division
 *   cosine:    lr * (1 + cos(pi * t)) / 2, t = fraction of the run after warm-up, by the step
 * Linear warm-up over `warmup` epochs, by the step, multiplies multistep and exp and precedes
 * cosine: step i of k gets (i + 1) / k. */
double schedule_lr(const spec *s, int64_t step, int64_t steps_per_epoch);

#endif
