/*
 * Image sets: where samples come from, as uint8 RGB planes and a label.
 *
 * A dataset is opened once a rank; reading a sample is thread-safe and depends on nothing but its
 * number. Kinds, and what data.path may hold:
 *
 *   cifar10     data_batch_1.bin … data_batch_5.bin, test_batch.bin; or an image folder of 10
 *               classes; here or in cifar-10-batches-bin/ or cifar10/ below
 *   cifar100    train.bin, test.bin; or an image folder of 100 classes; here or in
 *               cifar-100-binary/ or cifar100/ below
 *   folder      train/<class>/<image> and the first of val/, validation/, test/ with the same
 *               classes; .jpg, .jpeg, .png in any case; classes and images in order of their names
 *   synthetic   nothing: images are drawn (synthetic.c)
 *
 * CIFAR binaries and the procedural set lie in memory from the start; of an image folder decoded
 * images are kept where the whole split would fit into 1 GiB.
 */
#ifndef RINGMASTER_TRAINER_DATA_DATASET_H
#define RINGMASTER_TRAINER_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/spec.h"
#include "protocol/status.h"

typedef enum data_split {
    SPLIT_TRAIN,
    SPLIT_EVAL
} data_split;

/* A decoded image: planes R, G, B of h rows of w bytes, owned by whoever holds the struct. */
typedef struct image {
    uint8_t *pixels;
    size_t capacity;
    int w, h;
} image;

void image_fini(image *im); /* NULL-safe */
/* Makes room for w x h, growing only; w * h above 2^28 is refused. */
CHECK_RESULT status image_reserve(image *im, int w, int h, errbuf *err);

/* Decodes JPEG or PNG by its first bytes. Where the short side is at least 2, 4 or 8 times
 * `short_side`, JPEG is decoded at that power of two less (0 = full size). Grey becomes RGB,
 * alpha is dropped, CMYK is refused. One line on failure, no file name in it. */
CHECK_RESULT status image_decode(const uint8_t *bytes, size_t length, int short_side, image *im,
                                 errbuf *err);

typedef struct dataset dataset;

/* What a set holds. */
typedef struct dataset_info {
    int64_t count;
    int classes;
    int w, h;         /* of every image, or 0 where they differ */
    bool is_resident; /* decoded pixels are in memory: reading never touches the disk */
} dataset_info;

/* Opens one split of the set that spec.data names; layouts accepted are in docs of data.path.
 * STATUS_BAD_INPUT for a path that is missing, STATUS_DATA for files that are damaged; the line
 * names the path, what was found, what was expected. subset / eval_subset choose a fixed,
 * seed-independent part. `report(done, total)` may be NULL; called now and then while loading. */
CHECK_RESULT status dataset_open(const spec *s, data_split split,
                                 void (*report)(void *ctx, int64_t done, int64_t total), void *ctx,
                                 dataset **ret_set, errbuf *err);
void dataset_close(dataset **set);
void dataset_describe(const dataset *set, dataset_info *ret);
const char *dataset_class_name(const dataset *set, int label); /* never NULL */

/* Sample i of 0..count-1. `short_side` as image_decode. Thread-safe. A file that cannot be decoded
 * is STATUS_DATA with its path (the caller applies data.on_error). */
CHECK_RESULT status dataset_read(dataset *set, int64_t i, int short_side, image *im,
                                 int32_t *ret_label, errbuf *err);

/* Classes that the set has without reading all of it (resolving model.classes = 0). */
CHECK_RESULT status dataset_classes(const spec *s, int *ret_classes, errbuf *err);

/* Content hash of both splits (FORMATS 2), 64 hex digits and NUL. */
CHECK_RESULT status dataset_hash(const spec *s, char ret_hex[65], errbuf *err);

/* Fills data.size, augment, normalise and model.classes where they are 0 or auto. */
CHECK_RESULT status spec_resolve_data(spec *s, errbuf *err);

#endif
