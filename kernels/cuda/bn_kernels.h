/*
 * Our own batch norm kernels (bn_kernels.cu) as bn.c calls them: any number of channels, float or
 * bf16. An activation is a matrix of `rows` = n*h*w rows by `channels`.
 */
#ifndef RINGMASTER_KERNELS_CUDA_BN_KERNELS_H
#define RINGMASTER_KERNELS_CUDA_BN_KERNELS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the matrix is cut: a function of the shape alone, for sums are taken in these pieces. A block
 * owns one chunk of rows of one tile of channels; in it, `lanes` threads lie along the channels,
 * `vector` channels each, and `lines` along the rows. */
typedef struct bn_layout {
    int64_t rows;
    int channels;
    int vector; /* channels a thread: 8 where they divide the channels, else 1 */
    int groups; /* channels / vector */
    int lanes;  /* power of two, at most a warp */
    int lines;
    int tiles; /* of `lanes` groups */
    int chunks;
    int chunk_rows;
} bn_layout;

bn_layout bn_layout_of(shape x);
/* Of the partial sums that a training pass leaves for its second kernel. */
size_t bn_partial_bytes(const bn_layout *l);
/* One bit an element; 0 where vector is 1: then backward looks at y. */
size_t bn_mask_bytes(const bn_layout *l);

/* saved = mean and 1/sqrt(var + eps), stats = mean and unbiased variance; [2C] each. */
CHECK_RESULT status bn_run_statistics(cuda_backend *be, const bn_layout *l, float eps,
                                      const void *x, float *partial, float *saved, float *stats);

typedef struct bn_apply {
    bool relu, residual;
    bool variance; /* `deviation` is the variance, else 1/sqrt(var + eps) */
    float eps;
    const float *gamma, *beta, *mean, *deviation;
    uint8_t *mask; /* NULL: not wanted */
} bn_apply;

/* y = (x - mean) / deviation * gamma + beta [+ residual], at least 0 where relu */
CHECK_RESULT status bn_run_apply(cuda_backend *be, const bn_layout *l, const bn_apply *a,
                                 const void *x, const void *residual, void *y);

typedef struct bn_gradient {
    const void *x, *dy1, *dy2; /* dy2 may be NULL */
    const void *y;             /* masks where relu and mask is NULL */
    const uint8_t *mask;       /* what apply wrote, or NULL */
    bool relu;
    const float *gamma, *saved;
    void *dz, *dx;
    float *dgamma, *dbeta, *partial;
} bn_gradient;

CHECK_RESULT status bn_run_backward(cuda_backend *be, const bn_layout *l, const bn_gradient *g);

/* saved and stats from the mean and 1/sqrt(var + eps) of a cuDNN forward; saved may be where they
 * already lie. */
CHECK_RESULT status bn_run_finish(cuda_backend *be, const bn_layout *l, float eps,
                                  const float *mean, const float *inverse, float *saved,
                                  float *stats);

enum {
    BN_COPIES = 3 /* gamma, mean, inverse */
};
/* Copies vectors of C floats, to and from what cuDNN wants aligned; NULL pairs are skipped. */
typedef struct bn_copies {
    const float *from[BN_COPIES];
    float *to[BN_COPIES];
} bn_copies;
CHECK_RESULT status bn_run_copies(cuda_backend *be, const bn_layout *l, const bn_copies *c);

#ifdef __cplusplus
}
#endif

#endif
