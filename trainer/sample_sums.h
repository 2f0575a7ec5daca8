/* Sums over images that a network was run on: of a shard, a step, an epoch, an evaluation. */
#ifndef RINGMASTER_TRAINER_SAMPLE_SUMS_H
#define RINGMASTER_TRAINER_SAMPLE_SUMS_H

#include <stdint.h>

typedef struct sample_sums {
    double loss;
    int64_t count, top1, top5; /* images; how many of them were right (loss_sums of backend.h) */
    int64_t skipped;           /* images replaced by another because of data.on_error = skip */
} sample_sums;

static inline void sample_sums_add(sample_sums *to, const sample_sums *from)
{
    to->loss += from->loss;
    to->count += from->count;
    to->top1 += from->top1;
    to->top5 += from->top5;
    to->skipped += from->skipped;
}

#endif
