/* Learning-rate schedules; see schedule.h. */
#include "trainer/schedule.h"

#include <math.h>

static int milestones_passed(const spec_milestones *m, int64_t epoch)
{
    int passed = 0;
    while (passed < m->count && (double)epoch >= m->epoch[passed])
        passed++;
    return passed;
}

double schedule_lr(const spec *s, int64_t step, int64_t steps_per_epoch)
{
    int64_t epoch = step / steps_per_epoch;
    double warm_steps = floor(s->train.warmup * (double)steps_per_epoch);
    double total = (double)(s->train.epochs * steps_per_epoch);
    double warm = (double)step < warm_steps ? ((double)step + 1) / warm_steps : 1;
    switch (s->train.schedule) {
    case SCHEDULE_MULTISTEP:
        return warm * s->train.lr *
               pow(s->train.gamma, milestones_passed(&s->train.milestones, epoch));
    case SCHEDULE_EXP:
        return warm * s->train.lr * pow(s->train.gamma, (double)epoch / s->train.decay_epochs);
    default: {
        if ((double)step < warm_steps || total <= warm_steps)
            return warm * s->train.lr;
        double t = ((double)step - warm_steps) / (total - warm_steps);
        return s->train.lr * 0.5 * (1 + cos(3.14159265358979323846 * t));
    }
    }
}
