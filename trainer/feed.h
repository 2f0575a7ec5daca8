/*
 * How shards of images get to where a backend computes:
 *
 *   packed     the backend's memory is the host's: the loader's floats, packed lane by lane
 *   staged     the loader's bytes are copied to the device beside the ops, two steps ahead, and
 *              normalised there
 *   resident   a decoded set of square images, neither resized nor cut at random rectangles, lies
 *              on the device as bytes; order, crops and mirroring are worked out there
 *
 * All three make the same floats (rounded to the type of the backend's activations). Which one it
 * is follows from backend, set and spec; RINGMASTER_FEED=staged keeps sets off the device.
 */
#ifndef RINGMASTER_TRAINER_FEED_H
#define RINGMASTER_TRAINER_FEED_H

#include "trainer/data/loader.h"
#include "trainer/net/exec.h"

/* Steps whose staged images may be on their way or in use at a time. */
#define FEED_SLOTS 2
/* Shards that a loader makes ahead at least; on the host twice as many as there are lanes, for a
 * device those of two steps. */
#define FEED_MIN_DEPTH 4

typedef struct feed feed;

typedef struct feed_options {
    loader_options loader; /* `depth` and `bytes` are ignored */
    backend *be;           /* borrowed */
    int lanes;             /* as the backend was opened with */
} feed_options;

CHECK_RESULT status feed_create(const feed_options *options, feed **ret_feed, errbuf *err);
void feed_destroy(feed **f); /* NULL-safe */

/* As loader_start, loader_shards, loader_waited. */
CHECK_RESULT status feed_start(feed *f, int64_t epoch, int64_t first_step, errbuf *err);
int64_t feed_shards(const feed *f);
double feed_waited(const feed *f);
/* "packed", "staged", "resident" */
const char *feed_kind(const feed *f);

/* Packed: takes the next shard for a lane; *ret_skipped of its samples were replaced. Released
 * before the lane takes another. */
CHECK_RESULT status feed_fetch(feed *f, int lane, int64_t *ret_skipped, errbuf *err);
void feed_release(feed *f, int lane);

/* Staged and resident: brings the shards of the next step on their way and writes where they are
 * into *in. `step` is the step_control's at that step; step - FEED_SLOTS must be done.
 * skipped[k]: samples of shard k that were replaced. */
CHECK_RESULT status feed_bring(feed *f, uint64_t step, step_input *in, int64_t *skipped,
                               errbuf *err);

/* The images of a lane's shard (packed), or of shard k of the step (else), into net input 0, and
 * where their labels are. An op: inside run_lanes, recorded between graph_begin and graph_end. */
CHECK_RESULT status feed_input(feed *f, net_exec *e, int lane, int k, const step_control *c,
                               const int32_t **ret_labels, int *ret_valid);

#endif
