/*
 * Resizing 8-bit planes. Integer arithmetic with rounding, so that every machine makes the same
 * bytes; the bilinear filter with support for shrinking agrees to the bit with Pillow's, across
 * first, then down.
 */
#ifndef RINGMASTER_TRAINER_DATA_RESAMPLE_H
#define RINGMASTER_TRAINER_DATA_RESAMPLE_H

#include "trainer/data/dataset.h"

/* Working memory, grown as needed; one a thread. Zero-initialise. */
typedef struct resample_scratch {
    uint8_t *rows; /* between the two passes */
    size_t rows_capacity;
    int32_t *weights; /* fixed-point filters of one axis */
    size_t weights_capacity;
    int32_t *bounds; /* [out][2]: first input, count */
    size_t bounds_capacity;
} resample_scratch;

void resample_scratch_fini(resample_scratch *s);

/* A rectangle of an image. */
typedef struct image_region {
    int x, y, w, h;
} image_region;

/* Region of `from` into `to` at w x h: bilinear, antialiased where it shrinks. Only the region's
 * own pixels count. `to` must not be `from`. */
CHECK_RESULT status resample_bilinear(const image *from, image_region region, int w, int h,
                                      resample_scratch *scratch, image *to, errbuf *err);
/* All of `from` at a k-th of its size: rounded averages of k x k pixels. */
CHECK_RESULT status resample_box(const image *from, int k, image *to, errbuf *err);

#endif
