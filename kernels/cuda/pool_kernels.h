/*
 * Pooling kernels (pool_kernels.cu) as pool.c calls them. Activations are NHWC in the io type, the
 * result of the average and its gradient are float [n][c].
 */
#ifndef RINGMASTER_KERNELS_CUDA_POOL_KERNELS_H
#define RINGMASTER_KERNELS_CUDA_POOL_KERNELS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    POOL_MAX_KERNEL = 16 /* the places of its window fit in a byte */
};

/* `place`: of each output's maximum in its window, row by row; one byte an output. */
CHECK_RESULT status pool_run_max(cuda_backend *be, const pool_desc *d, const void *x, void *y,
                                 uint8_t *place);
/* dy2 may be NULL, here and below. */
CHECK_RESULT status pool_run_max_backward(cuda_backend *be, const pool_desc *d, const void *dy1,
                                          const void *dy2, const uint8_t *place, void *dx);
CHECK_RESULT status pool_run_average(cuda_backend *be, const pool_desc *d, const void *x, float *y);
CHECK_RESULT status pool_run_average_backward(cuda_backend *be, const pool_desc *d,
                                              const float *dy1, const float *dy2, void *dx);

#ifdef __cplusplus
}
#endif

#endif
