/*
 * The loader: batches of images, made ahead of time by its own threads: normalised floats, or the
 * bytes that loader_levels maps to them.
 *
 * Sample order and augmentation are functions of (seed, epoch, sample) alone, never of rank,
 * thread or world size: epoch e of S samples visits a keyed bijection of [0, S); global batch b
 * takes its places b*batch .. b*batch+batch-1, shard k of it the k-th stretch of `shard` of them.
 * The last partial batch of a training epoch is dropped; evaluation goes through all samples in
 * order, shard by shard, the last one padded with zeros.
 *
 * Threads: one consumer (the training loop) and data.workers producers. Bounded: `depth` shards
 * ahead. No allocation after the first shards where the set is resident.
 */
#ifndef RINGMASTER_TRAINER_DATA_LOADER_H
#define RINGMASTER_TRAINER_DATA_LOADER_H

#include "trainer/data/dataset.h"

typedef struct loader loader;

/* One shard, owned by the loader until loader_release. */
typedef struct loader_shard {
    const float *images;  /* [shard][3][size][size], normalised; NULL where `bytes` was asked for */
    const uint8_t *bytes; /* the same before normalisation, or NULL */
    const int32_t *labels; /* [shard] */
    int valid;             /* rows that count; less than shard only in evaluation */
    int64_t index;         /* number of the shard within the epoch, over all ranks */
    int64_t skipped;       /* samples replaced because of data.on_error = skip */
    void *slot;            /* the loader's own */
} loader_shard;

typedef struct loader_options {
    dataset *set;     /* borrowed */
    data_split split; /* SPLIT_TRAIN augments and shuffles unless `clean` */
    bool clean;       /* training set in evaluation mode (clean training accuracy) */
    bool bytes;       /* make bytes instead of floats */
    int size;         /* side of the output */
    int augment, normalise, on_error; /* spec enums, resolved */
    uint64_t seed;                    /* train.seed */
    int64_t batch, shard;
    int rank, world; /* training: shards [rank*k, rank*k+k) of every batch, k = shards/world;
                        evaluation: shards s with s mod world == rank */
    int threads;     /* producers */
    int depth;       /* shards ahead; >= 2 * lanes of the backend */
} loader_options;

CHECK_RESULT status loader_create(const loader_options *options, loader **ret_loader, errbuf *err);
void loader_destroy(loader **l); /* joins its threads; NULL-safe */

/* Shards that this rank gets per epoch; batches (steps) of a training epoch. */
int64_t loader_shards(const loader *l);
int64_t loader_steps(const loader *l);

/* Begins epoch `epoch` (0, 1, …) at step `first_step` of it (resume). Evaluation: 0, 0. */
CHECK_RESULT status loader_start(loader *l, int64_t epoch, int64_t first_step, errbuf *err);
/* The next shard in order; blocks while it is being made. STATUS_DATA with the path and sample
 * where one cannot be read and on_error is fail. Not after the last shard of the epoch. */
CHECK_RESULT status loader_next(loader *l, loader_shard *ret_shard, errbuf *err);
void loader_release(loader *l, loader_shard *shard);
/* Seconds the consumer has waited in loader_next so far. */
double loader_waited(const loader *l);

/* What follows from options alone; also where no loader is made of them. */
typedef struct loader_numbers {
    int64_t steps, shards; /* as loader_steps and loader_shards */
} loader_numbers;
loader_numbers loader_count(const loader_options *options);
/* Whether the set has one whole batch, and batches divide over shards and ranks. */
CHECK_RESULT status loader_check(const loader_options *options, errbuf *err);
/* The normalised value of each byte of each channel. */
void loader_levels(const loader_options *options, float ret_level[3][256]);

/* -- parts, for tests -- */
/* Place p of epoch e of a set of n samples. */
int64_t loader_sample(uint64_t seed, int64_t epoch, int64_t n, int64_t p);
/* Augments (or, split eval / clean, resizes and crops), scales to [0,1], normalises into
 * out[3][size][size] (floats, or uint8 where o->bytes). `sample` and `epoch` key the random
 * choices. */
CHECK_RESULT status augment_image(const loader_options *o, int64_t epoch, int64_t sample,
                                  const image *im, image *scratch, void *out, errbuf *err);

#endif
