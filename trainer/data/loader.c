/*
 * The loader's threads and its ring of shards.
 *
 * Shard j of this rank's epoch lives in slot j mod depth. Producers take rows of the oldest shard
 * that has rows left to take, in small runs, so that several work on one shard when it is waited
 * for; a slot whose last row is done becomes ready, and the consumer takes slots strictly in order.
 * A shard's bytes depend on its place alone: which thread made which row leaves no trace.
 *
 *      FREE -- opened by a producer --> FILLING -- last row done --> READY
 *       ^                                                             |
 *       +---------- loader_release -------- HELD <---- loader_next ---+
 *
 * One mutex guards everything but the rows themselves; those belong to the producer that took them
 * until it says, under the mutex, that they are done. loader_start ends an epoch early by letting
 * nobody take rows any more and waiting for those that are at work.
 */
#include "trainer/data/loader.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/feistel.h"
#include "kernels/random.h"
#include "trainer/data/augment.h"

#define RUN_ROWS    8 /* rows that a producer takes at a time */
#define MAX_THREADS 256
#define ALIGNMENT   64

enum slot_state {
    SLOT_FREE,
    SLOT_FILLING,
    SLOT_READY,
    SLOT_HELD
};

typedef struct slot {
    enum slot_state state;
    int64_t ordinal; /* which of this rank's shards of the epoch */
    void *images;    /* floats or bytes */
    int32_t *labels;
    int valid;       /* rows that hold samples; the rest is zeros */
    int taken, done; /* rows */
    int64_t skipped;
    int failed_row; /* the lowest row that failed; -1 = none */
    errbuf failure;
} slot;

struct loader {
    loader_options o;
    augmenter augmenter;
    int64_t count, steps, shards;
    bool is_training;
    pthread_mutex_t mutex;
    pthread_cond_t work, ready, idle; /* rows to take; a shard made; no producer at work */
    slot *slots;
    pthread_t *threads;
    int started, busy; /* producers that exist; that are making rows */
    bool stop;
    int64_t epoch;
    feistel order;
    int64_t oldest; /* the first shard that may have rows left to take */
    int64_t opened; /* the next shard to be given a slot */
    int64_t next;   /* the next shard that the consumer gets */
    int64_t end;    /* shards beyond it are not opened */
    double waited;
};

/* -- places -- */

static feistel order_of(uint64_t seed, int64_t epoch, int64_t n)
{
    return sample_order(seed, (uint32_t)epoch, (uint32_t)n);
}

int64_t loader_sample(uint64_t seed, int64_t epoch, int64_t n, int64_t p)
{
    feistel order = order_of(seed, epoch, n);
    return feistel_apply(&order, (uint32_t)p);
}

/* Number within the epoch, over all ranks, of this rank's j-th shard. */
static int64_t shard_number(const loader *l, int64_t j)
{
    if (!l->is_training)
        return j * l->o.world + l->o.rank;
    int64_t per_batch = l->o.batch / l->o.shard, mine = per_batch / l->o.world;
    return j / mine * per_batch + l->o.rank * mine + j % mine;
}

/* Sample at row `row` of shard `number`. Batches are whole numbers of shards, so that the places of
 * a shard follow from its number alone. */
static int64_t sample_at(const loader *l, int64_t number, int row)
{
    int64_t place = number * l->o.shard + row;
    return l->is_training ? feistel_apply(&l->order, (uint32_t)place) : place;
}

/* -- making rows -- */

/* One producer's own memory. */
typedef struct bench {
    image im;
    augment_scratch scratch;
} bench;

/* Sample i, augmented, or, where it is damaged and on_error is skip, the next one that is not. */
static status make_sample(loader *l, int64_t i, bench *b, void *out, int32_t *ret_label,
                          int64_t *skipped, errbuf *err)
{
    int short_side = augmenter_short_side(&l->augmenter);
    for (int64_t tries = 0; tries < l->count; tries++) {
        int64_t at = (i + tries) % l->count;
        errbuf_clear(err);
        status st = dataset_read(l->o.set, at, short_side, &b->im, ret_label, err);
        if (st == STATUS_OK)
            st = augmenter_apply(&l->augmenter, l->epoch, i, &b->im, &b->scratch, out, err);
        if (st == STATUS_OK) {
            *skipped += tries > 0;
            return STATUS_OK;
        }
        errbuf_prefix(err, "sample %" PRId64, at);
        if (st != STATUS_DATA || l->o.on_error != ON_ERROR_SKIP)
            return st;
    }
    errbuf_prefix(err, "not one image of the set can be read; the last one tried");
    return STATUS_DATA;
}

/* Bytes of one image as it is handed out. */
static size_t image_bytes(const loader_options *o)
{
    return 3 * (size_t)o->size * (size_t)o->size * (o->bytes ? 1 : sizeof(float));
}

static status make_row(loader *l, const slot *s, int row, bench *b, int64_t *skipped, errbuf *err)
{
    const size_t bytes = image_bytes(&l->o);
    void *out = (char *)s->images + (size_t)row * bytes;
    s->labels[row] = 0;
    if (row >= s->valid) {
        memset(out, 0, bytes);
        return STATUS_OK;
    }
    int64_t sample = sample_at(l, shard_number(l, s->ordinal), row);
    return make_sample(l, sample, b, out, &s->labels[row], skipped, err);
}

/* -- producers; these run under the mutex -- */

static slot *slot_of(loader *l, int64_t ordinal)
{
    return &l->slots[ordinal % l->o.depth];
}

static int valid_rows(const loader *l, int64_t ordinal)
{
    int64_t left = l->count - shard_number(l, ordinal) * l->o.shard;
    return left < l->o.shard ? (int)left : (int)l->o.shard;
}

/* The slot of the oldest shard with rows left to take; opens the next shard where there is none.
 * NULL: nothing to do for now. */
static slot *find_rows(loader *l)
{
    for (; l->oldest < l->opened; l->oldest++) {
        slot *s = slot_of(l, l->oldest);
        if (s->taken < l->o.shard)
            return s;
    }
    slot *s = slot_of(l, l->opened);
    if (l->opened >= l->end || s->state != SLOT_FREE)
        return NULL;
    s->state = SLOT_FILLING;
    s->ordinal = l->opened++;
    s->valid = valid_rows(l, s->ordinal);
    s->taken = s->done = 0;
    s->skipped = 0;
    s->failed_row = -1;
    return s;
}

/* The outcome of rows [first, first + n) of a slot. */
static void settle(loader *l, slot *s, int n, int64_t skipped, int failed_row, const errbuf *err)
{
    s->skipped += skipped;
    if (failed_row >= 0 && (s->failed_row < 0 || failed_row < s->failed_row)) {
        s->failed_row = failed_row;
        s->failure = *err;
    }
    s->done += n;
    if (s->done == l->o.shard) {
        s->state = SLOT_READY;
        pthread_cond_signal(&l->ready);
    }
}

static void make_rows(loader *l, slot *s, bench *b)
{
    int first = s->taken, left = (int)l->o.shard - first, n = left < RUN_ROWS ? left : RUN_ROWS;
    int failed_row = -1;
    int64_t skipped = 0;
    errbuf failure = {0};
    s->taken += n;
    l->busy++;
    pthread_mutex_unlock(&l->mutex);
    for (int row = first; row < first + n; row++) {
        errbuf err = {0};
        if (make_row(l, s, row, b, &skipped, &err) != STATUS_OK && failed_row < 0) {
            failed_row = row;
            failure = err;
        }
    }
    pthread_mutex_lock(&l->mutex);
    l->busy--;
    settle(l, s, n, skipped, failed_row, &failure);
    if (l->busy == 0)
        pthread_cond_broadcast(&l->idle);
}

static void *produce(void *ctx)
{
    loader *l = ctx;
    bench b = {0};
    pthread_mutex_lock(&l->mutex);
    while (!l->stop) {
        slot *s = find_rows(l);
        if (s)
            make_rows(l, s, &b);
        else
            pthread_cond_wait(&l->work, &l->mutex);
    }
    pthread_mutex_unlock(&l->mutex);
    image_fini(&b.im);
    augment_scratch_fini(&b.scratch);
    return NULL;
}

/* -- lifecycle -- */

status loader_check(const loader_options *o, errbuf *err)
{
    dataset_info info;
    dataset_describe(o->set, &info);
    ASSERT(o->world > 0 && o->rank >= 0 && o->rank < o->world && o->shard > 0);
    ASSERT(o->size > 0 && o->threads > 0);
    if (o->split != SPLIT_TRAIN || o->clean)
        return STATUS_OK;
    if (o->batch % o->shard || o->batch / o->shard % o->world)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a batch of %" PRId64 " in shards of %" PRId64
                          " does not divide over %d ranks",
                          o->batch, o->shard, o->world);
    if (info.count < o->batch)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.batch is %" PRId64 ", but there are %" PRId64
                          " training images: an epoch has no whole batch",
                          o->batch, info.count);
    return STATUS_OK;
}

static status make_slots(loader *l, errbuf *err)
{
    size_t bytes =
        ((size_t)l->o.shard * image_bytes(&l->o) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    l->slots = calloc((size_t)l->o.depth, sizeof *l->slots);
    bool made = l->slots;
    for (int i = 0; made && i < l->o.depth; i++) {
        l->slots[i].images = aligned_alloc(ALIGNMENT, bytes);
        l->slots[i].labels = calloc((size_t)l->o.shard, sizeof *l->slots[i].labels);
        made = l->slots[i].images && l->slots[i].labels;
    }
    if (!made)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                          "no memory for %d shards of %" PRId64 " images made ahead", l->o.depth,
                          l->o.shard);
    return STATUS_OK;
}

static status start_threads(loader *l, errbuf *err)
{
    int wanted = l->o.threads < MAX_THREADS ? l->o.threads : MAX_THREADS;
    l->threads = calloc((size_t)wanted, sizeof *l->threads);
    if (!l->threads)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %d loader threads", wanted);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the training loop */
    while (l->started < wanted && pthread_create(&l->threads[l->started], NULL, produce, l) == 0)
        l->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (l->started < wanted)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "only %d of %d loader threads can be started: lower data.workers",
                          l->started, wanted);
    return STATUS_OK;
}

loader_numbers loader_count(const loader_options *o)
{
    dataset_info info;
    loader_numbers n;
    dataset_describe(o->set, &info);
    if (o->split == SPLIT_TRAIN && !o->clean) {
        n.steps = info.count / o->batch;
        n.shards = n.steps * (o->batch / o->shard / o->world);
        return n;
    }
    int64_t all = (info.count + o->shard - 1) / o->shard;
    n.steps = (all + o->world - 1) / o->world;
    n.shards = (all - o->rank + o->world - 1) / o->world;
    return n;
}

status loader_create(const loader_options *options, loader **ret_loader, errbuf *err)
{
    TRY(loader_check(options, err));
    ASSERT(options->depth > 0);
    loader *l = calloc(1, sizeof *l);
    if (!l)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a loader");
    l->o = *options;
    l->is_training = options->split == SPLIT_TRAIN && !options->clean;
    augmenter_init(&l->augmenter, options);
    dataset_info info;
    dataset_describe(options->set, &info);
    const loader_numbers numbers = loader_count(options);
    l->count = info.count;
    l->steps = numbers.steps;
    l->shards = numbers.shards;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->ready, NULL);
    pthread_cond_init(&l->idle, NULL);
    status st = make_slots(l, err);
    if (st == STATUS_OK)
        st = start_threads(l, err);
    if (st != STATUS_OK)
        loader_destroy(&l);
    else
        *ret_loader = l;
    return st;
}

void loader_destroy(loader **loader_at)
{
    loader *l = *loader_at;
    if (!l)
        return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    for (int t = 0; t < l->started; t++)
        pthread_join(l->threads[t], NULL);
    for (int i = 0; l->slots && i < l->o.depth; i++) {
        free(l->slots[i].images);
        free(l->slots[i].labels);
    }
    pthread_cond_destroy(&l->idle);
    pthread_cond_destroy(&l->ready);
    pthread_cond_destroy(&l->work);
    pthread_mutex_destroy(&l->mutex);
    free(l->threads);
    free(l->slots);
    free(l);
    *loader_at = NULL;
}

int64_t loader_shards(const loader *l)
{
    return l->shards;
}

int64_t loader_steps(const loader *l)
{
    return l->steps;
}

/* -- the consumer -- */

status loader_start(loader *l, int64_t epoch, int64_t first_step, errbuf *err)
{
    if (epoch < 0 || first_step < 0 || first_step > l->steps)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "epoch %" PRId64 ", step %" PRId64 ": epochs have %" PRId64
                          " steps; the checkpoint does not belong to this data",
                          epoch, first_step, l->steps);
    int64_t per_step = l->is_training ? l->o.batch / l->o.shard / l->o.world : 1;
    pthread_mutex_lock(&l->mutex);
    l->oldest = l->end = l->opened; /* no rows to take: those at work come to an end */
    while (l->busy > 0)
        pthread_cond_wait(&l->idle, &l->mutex);
    for (int i = 0; i < l->o.depth; i++)
        l->slots[i].state = SLOT_FREE;
    l->epoch = epoch;
    l->order = order_of(l->o.seed, epoch, l->count);
    l->next = l->oldest = l->opened = first_step * per_step;
    l->end = l->shards;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    return STATUS_OK;
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Waits until slot s is ready; under the mutex. */
static void wait_ready(loader *l, const slot *s)
{
    if (s->state == SLOT_READY && s->ordinal == l->next)
        return;
    double since = seconds_now();
    while (!(s->state == SLOT_READY && s->ordinal == l->next))
        pthread_cond_wait(&l->ready, &l->mutex);
    l->waited += seconds_now() - since;
}

status loader_next(loader *l, loader_shard *ret_shard, errbuf *err)
{
    ASSERT(l->next < l->shards);
    pthread_mutex_lock(&l->mutex);
    slot *s = slot_of(l, l->next);
    ASSERT(l->end == l->shards);   /* started */
    ASSERT(s->state != SLOT_HELD); /* depth shards are held already: waiting would be for ever */
    wait_ready(l, s);
    l->next++;
    int64_t number = shard_number(l, s->ordinal);
    status st = STATUS_OK;
    if (s->failed_row >= 0) {
        st = errbuf_set(err, s->failure.code, "%s", s->failure.text);
        s->state = SLOT_FREE;
        pthread_cond_broadcast(&l->work);
    } else {
        s->state = SLOT_HELD;
        *ret_shard = (loader_shard){.images = l->o.bytes ? NULL : s->images,
                                    .bytes = l->o.bytes ? s->images : NULL,
                                    .labels = s->labels,
                                    .valid = s->valid,
                                    .index = number,
                                    .skipped = s->skipped,
                                    .slot = s};
    }
    pthread_mutex_unlock(&l->mutex);
    return st;
}

void loader_release(loader *l, loader_shard *shard)
{
    slot *s = shard->slot;
    if (!s)
        return;
    pthread_mutex_lock(&l->mutex);
    if (s->state == SLOT_HELD && shard_number(l, s->ordinal) == shard->index) {
        s->state = SLOT_FREE;
        pthread_cond_broadcast(&l->work);
    }
    pthread_mutex_unlock(&l->mutex);
    *shard = (loader_shard){0};
}

double loader_waited(const loader *l)
{
    return l->waited;
}
