/*
 * augment_image with what does not change from image to image made once.
 */
#ifndef RINGMASTER_TRAINER_DATA_AUGMENT_H
#define RINGMASTER_TRAINER_DATA_AUGMENT_H

#include "trainer/data/loader.h"
#include "trainer/data/resample.h"

typedef struct augmenter {
    int size, augment;
    bool is_random; /* training, not clean */
    bool bytes;     /* output is uint8: what `level` would be looked up by */
    uint64_t seed;
    float level[3][256]; /* normalised value of each byte of each channel */
} augmenter;

/* One thread's working memory. Zero-initialise. */
typedef struct augment_scratch {
    image resized;
    resample_scratch resample;
} augment_scratch;

void augmenter_init(augmenter *a, const loader_options *o);
void augment_scratch_fini(augment_scratch *s);

CHECK_RESULT status augmenter_apply(const augmenter *a, int64_t epoch, int64_t sample,
                                    const image *im, augment_scratch *scratch, void *out,
                                    errbuf *err);

/* What dataset_read is to be asked for: JPEGs are not decoded finer than is of use. */
int augmenter_short_side(const augmenter *a);

#endif
