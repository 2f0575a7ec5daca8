/* Feeding a backend with images; see feed.h. */
#include "trainer/feed.h"

#include <stdlib.h>
#include <string.h>

#define STAGED_STEPS 2                   /* of shards that the loader makes ahead */
#define RESIDENT_MAX ((int64_t)16 << 30) /* bytes of a set that is kept on the device */

typedef enum kind {
    PACKED,
    STAGED,
    RESIDENT
} kind;

struct feed {
    feed_options o;
    kind kind;
    bool is_training;
    int shards;                 /* brought at a time */
    int64_t rows;               /* of those shards together */
    size_t image_bytes;         /* of one, as bytes */
    int64_t count;              /* images of the set */
    loader *loader;             /* packed, staged; resident: NULL */
    loader_shard *held;         /* packed: [lanes] */
    int64_t epoch, step, steps; /* the next one to be brought; of an epoch */

    /* staged: [FEED_SLOTS][rows]; on the host in shared memory */
    uint8_t *staging, *staged;
    int32_t *staging_labels, *staged_labels;
    /* device */
    uint8_t *pixels; /* resident: the set */
    int32_t *set_labels;
    float *level;    /* [3][256] */
    int32_t *labels; /* [rows] of the step */
};

/* ---- creation ---- */

static status device_alloc(feed *f, size_t bytes, void *ret_memory, errbuf *err)
{
    void *memory = NULL;
    TRY(f->o.be->ops->alloc(f->o.be, bytes, &memory, err));
    memcpy(ret_memory, &memory, sizeof memory);
    return STATUS_OK;
}

static status shared_alloc(feed *f, size_t bytes, void *ret_memory, errbuf *err)
{
    void *memory = NULL;
    TRY(f->o.be->ops->alloc_shared(f->o.be, bytes, &memory, err));
    memcpy(ret_memory, &memory, sizeof memory);
    return STATUS_OK;
}

static status device_upload(feed *f, void *to, const void *from, size_t bytes, errbuf *err)
{
    backend *be = f->o.be;
    status st = be->ops->upload(be, to, from, bytes);
    return st == STATUS_OK ? st : errbuf_set(err, st, "%s", be->ops->last_error(be));
}

static kind choose_kind(const feed_options *o, const dataset_info *info)
{
    if (o->be->ops->host_memory)
        return PACKED;
    const char *given = getenv("RINGMASTER_FEED"); /* to compare the two */
    const int size = o->loader.size;
    if (given && strcmp(given, "staged") == 0)
        return STAGED;
    const bool whole = info->w == size && info->h == size && o->loader.augment != AUGMENT_RRC;
    const int64_t bytes = info->count * IMAGE_CHANNELS * (int64_t)size * size;
    return info->is_resident && whole && bytes <= RESIDENT_MAX ? RESIDENT : STAGED;
}

static status upload_levels(feed *f, errbuf *err)
{
    float level[IMAGE_CHANNELS][256];
    loader_levels(&f->o.loader, level);
    TRY(device_alloc(f, sizeof level, &f->level, err));
    return device_upload(f, f->level, level, sizeof level, err);
}

static status read_image(feed *f, int64_t i, image *im, int32_t *ret_label, errbuf *err)
{
    TRY(dataset_read(f->o.loader.set, i, f->o.loader.size, im, ret_label, err));
    if (im->w != f->o.loader.size || im->h != f->o.loader.size)
        return errbuf_set(err, STATUS_DATA, "sample %lld is %d x %d, the others are %d x %d",
                          (long long)i, im->w, im->h, f->o.loader.size, f->o.loader.size);
    return STATUS_OK;
}

static status upload_set(feed *f, errbuf *err)
{
    enum {
        CHUNK = 512
    };
    status st = STATUS_OK;
    image im = {0};
    uint8_t *bytes = malloc(CHUNK * f->image_bytes);
    int32_t *labels = calloc((size_t)f->count + 1, sizeof *labels);
    if (!bytes || !labels) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory bringing the set to the device");
        goto cleanup;
    }
    TRY_GOTO(device_alloc(f, (size_t)f->count * f->image_bytes, &f->pixels, err), st, cleanup);
    TRY_GOTO(device_alloc(f, (size_t)f->count * sizeof *labels, &f->set_labels, err), st, cleanup);
    for (int64_t first = 0; first < f->count; first += CHUNK) {
        int64_t n = f->count - first < CHUNK ? f->count - first : CHUNK;
        for (int64_t i = 0; i < n; i++) {
            TRY_GOTO(read_image(f, first + i, &im, &labels[first + i], err), st, cleanup);
            memcpy(bytes + (size_t)i * f->image_bytes, im.pixels, f->image_bytes);
        }
        TRY_GOTO(device_upload(f, f->pixels + (size_t)first * f->image_bytes, bytes,
                               (size_t)n * f->image_bytes, err),
                 st, cleanup);
    }
    st = device_upload(f, f->set_labels, labels, (size_t)f->count * sizeof *labels, err);
cleanup:
    image_fini(&im);
    free(bytes);
    free(labels);
    return st;
}

static void release_set(feed *f)
{
    f->o.be->ops->release(f->o.be, f->pixels);
    f->o.be->ops->release(f->o.be, f->set_labels);
    f->pixels = NULL;
    f->set_labels = NULL;
}

static status make_staging(feed *f, errbuf *err)
{
    const size_t images = FEED_SLOTS * (size_t)f->rows * f->image_bytes;
    const size_t labels = FEED_SLOTS * (size_t)f->rows * sizeof(int32_t);
    TRY(shared_alloc(f, images, &f->staging, err));
    TRY(shared_alloc(f, labels, &f->staging_labels, err));
    TRY(device_alloc(f, images, &f->staged, err));
    return device_alloc(f, labels, &f->staged_labels, err);
}

static status make_loader(feed *f, errbuf *err)
{
    loader_options o = f->o.loader;
    o.bytes = f->kind == STAGED;
    o.depth = f->kind == STAGED ? STAGED_STEPS * f->shards : 2 * f->o.lanes;
    if (o.depth < FEED_MIN_DEPTH)
        o.depth = FEED_MIN_DEPTH;
    return loader_create(&o, &f->loader, err);
}

static status build(feed *f, errbuf *err)
{
    const loader_options *o = &f->o.loader;
    if (f->kind == PACKED) {
        f->held = calloc((size_t)f->o.lanes, sizeof *f->held);
        if (!f->held)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a feed");
        return make_loader(f, err);
    }
    TRY(upload_levels(f, err));
    TRY(device_alloc(f, (size_t)f->rows * sizeof *f->labels, &f->labels, err));
    f->steps = loader_count(o).steps;
    if (f->kind == RESIDENT) {
        errbuf full = {0};
        status st = upload_set(f, &full);
        if (st != STATUS_OUT_OF_MEMORY)
            return st == STATUS_OK ? st : errbuf_set(err, st, "%s", full.text);
        release_set(f); /* the same images can be brought step by step */
        f->kind = STAGED;
    }
    TRY(make_staging(f, err));
    return make_loader(f, err);
}

status feed_create(const feed_options *options, feed **ret_feed, errbuf *err)
{
    const loader_options *o = &options->loader;
    dataset_info info;
    dataset_describe(o->set, &info);
    TRY(loader_check(o, err));
    feed *f = calloc(1, sizeof *f);
    if (!f)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a feed");
    f->o = *options;
    f->kind = choose_kind(options, &info);
    f->count = info.count;
    f->is_training = o->split == SPLIT_TRAIN && !o->clean;
    f->shards = f->is_training ? (int)(o->batch / o->shard / o->world) : 1;
    f->rows = f->shards * o->shard;
    f->image_bytes = IMAGE_CHANNELS * (size_t)o->size * (size_t)o->size;
    status st = build(f, err);
    if (st == STATUS_OK)
        *ret_feed = f;
    else
        feed_destroy(&f);
    return st;
}

void feed_destroy(feed **feed_p)
{
    if (!feed_p || !*feed_p)
        return;
    feed *f = *feed_p;
    backend *be = f->o.be;
    void *device[] = {f->staged, f->staged_labels, f->pixels, f->set_labels, f->level, f->labels};
    if (f->loader)
        loader_destroy(&f->loader);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        be->ops->release(be, device[i]);
    be->ops->release_shared(be, f->staging);
    be->ops->release_shared(be, f->staging_labels);
    free(f->held);
    free(f);
    *feed_p = NULL;
}

/* ---- what it is ---- */

const char *feed_kind(const feed *f)
{
    static const char *const names[] = {"packed", "staged", "resident"};
    return names[f->kind];
}

int64_t feed_shards(const feed *f)
{
    return f->loader ? loader_shards(f->loader) : loader_count(&f->o.loader).shards;
}

double feed_waited(const feed *f)
{
    return f->loader ? loader_waited(f->loader) : 0;
}

/* ---- feeding ---- */

status feed_start(feed *f, int64_t epoch, int64_t first_step, errbuf *err)
{
    f->epoch = epoch;
    f->step = first_step;
    if (f->loader)
        return loader_start(f->loader, epoch, first_step, err);
    if (epoch < 0 || first_step < 0 || first_step > f->steps)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "epoch %lld, step %lld: epochs have %lld steps; the checkpoint does not "
                          "belong to this data",
                          (long long)epoch, (long long)first_step, (long long)f->steps);
    return STATUS_OK;
}

status feed_fetch(feed *f, int lane, int64_t *ret_skipped, errbuf *err)
{
    ASSERT(f->kind == PACKED && lane >= 0 && lane < f->o.lanes && !f->held[lane].slot);
    TRY(loader_next(f->loader, &f->held[lane], err));
    *ret_skipped = f->held[lane].skipped;
    return STATUS_OK;
}

void feed_release(feed *f, int lane)
{
    if (f->kind == PACKED && f->held[lane].slot)
        loader_release(f->loader, &f->held[lane]);
}

/* Copies the loader's next shard to rows [first, first + shard) of the staging memory. */
static status stage_shard(feed *f, int64_t first, int64_t *ret_skipped, errbuf *err)
{
    const int64_t shard = f->o.loader.shard;
    loader_shard s;
    TRY(loader_next(f->loader, &s, err));
    memcpy(f->staging + (size_t)first * f->image_bytes, s.bytes, (size_t)shard * f->image_bytes);
    for (int64_t row = 0; row < shard; row++)
        f->staging_labels[first + row] = row < s.valid ? s.labels[row] : -1;
    *ret_skipped = s.skipped;
    loader_release(f->loader, &s);
    return STATUS_OK;
}

static status stage_step(feed *f, uint64_t step, int64_t *skipped, errbuf *err)
{
    backend *be = f->o.be;
    const int64_t first = (int64_t)(step % FEED_SLOTS) * f->rows;
    for (int k = 0; k < f->shards; k++)
        TRY(stage_shard(f, first + k * f->o.loader.shard, &skipped[k], err));
    const size_t at = (size_t)first * f->image_bytes;
    status st =
        be->ops->feed(be, f->staged + at, f->staging + at, (size_t)f->rows * f->image_bytes, NULL);
    if (st == STATUS_OK)
        st = be->ops->feed(be, f->staged_labels + first, f->staging_labels + first,
                           (size_t)f->rows * sizeof(int32_t), NULL);
    return st == STATUS_OK ? st : errbuf_set(err, st, "%s", be->ops->last_error(be));
}

status feed_bring(feed *f, uint64_t step, step_input *in, int64_t *skipped, errbuf *err)
{
    const loader_options *o = &f->o.loader;
    ASSERT(f->kind != PACKED);
    memset(skipped, 0, (size_t)f->shards * sizeof *skipped);
    const int64_t now = f->step++;
    if (f->kind == STAGED)
        return stage_step(f, step, skipped, err);
    in->epoch = (uint32_t)f->epoch;
    in->first = (uint64_t)(f->is_training ? now * o->batch + o->rank * f->rows
                                          : (now * o->world + o->rank) * o->shard);
    return STATUS_OK;
}

status feed_input(feed *f, net_exec *e, int lane, int k, const step_control *c,
                  const int32_t **ret_labels, int *ret_valid)
{
    const loader_options *o = &f->o.loader;
    backend *be = f->o.be;
    if (f->kind == PACKED) {
        *ret_labels = f->held[lane].labels;
        *ret_valid = f->held[lane].valid;
        return net_exec_set_input(e, lane, 0, f->held[lane].images);
    }
    const int64_t row = k * o->shard;
    int32_t *labels = f->labels + row;
    *ret_labels = labels;
    *ret_valid = (int)o->shard;
    if (f->kind == STAGED)
        return be->ops->images_from_bytes(be, f->staged, f->staged_labels, FEED_SLOTS, f->rows,
                                          f->level, c, row, (int)o->shard, o->size,
                                          net_exec_input(e, lane, 0), labels);
    const image_set set = {
        .pixels = f->pixels,
        .labels = f->set_labels,
        .level = f->level,
        .count = f->count,
        .size = o->size,
        .shuffled = f->is_training,
        .cropped = f->is_training && o->augment == AUGMENT_CROP,
        .seed = o->seed,
    };
    return be->ops->images_from_set(be, &set, c, row, f->count, (int)o->shard,
                                    net_exec_input(e, lane, 0), labels);
}
