/*
 * Softmax cross-entropy in two kernels: rows, and their sums.
 */
#ifndef RINGMASTER_KERNELS_CUDA_LOSS_KERNELS_H
#define RINGMASTER_KERNELS_CUDA_LOSS_KERNELS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of each row: its gradient (dlogits may be NULL), its loss, and its label's rank: how many classes
 * come before it; more than 5 where a logit is not finite; -1: the row is not valid. */
CHECK_RESULT status loss_rows(cuda_backend *be, const loss_desc *d, const float *logits,
                              const int32_t *labels, int valid, float scale, float *dlogits,
                              double *losses, int32_t *ranks);
/* Of all n rows, in a fixed order. */
CHECK_RESULT status loss_join(cuda_backend *be, int n, const double *losses, const int32_t *ranks,
                              loss_sums *sums);

#ifdef __cplusplus
}
#endif

#endif
