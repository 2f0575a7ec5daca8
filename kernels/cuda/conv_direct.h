/*
 * Convolution, its gradients and biases by our own kernels: for any stride, padding, dilation,
 * groups and channels. The slower path where cuDNN has no engine; fully connected layers use it as
 * a 1x1 convolution.
 */
#ifndef RINGMASTER_KERNELS_CUDA_CONV_DIRECT_H
#define RINGMASTER_KERNELS_CUDA_CONV_DIRECT_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct direct_conv {
    conv_desc d;
    shape y;
    int in, out; /* channels of one group */
    int x_pitch; /* channels of an input pixel in memory, >= d.x.c */
    int w_pitch; /* channels of a tap of the weights in memory, >= in */
    int splits;  /* parts of a weight gradient's sum over pixels */
    bool bf16;   /* else float: x, w, y and their gradients */
} direct_conv;

/* STATUS_BAD_INPUT where a tensor has more pixels than an int counts. */
CHECK_RESULT status direct_conv_init(direct_conv *c, const conv_desc *desc, int x_pitch,
                                     int w_pitch, bool bf16, errbuf *err);
/* y = conv(x) */
CHECK_RESULT status direct_conv_forward(cuda_backend *be, const direct_conv *c, const void *x,
                                        const void *w, void *y);
/* dx, its padding channels too (zeros) */
CHECK_RESULT status direct_conv_backward_data(cuda_backend *be, const direct_conv *c,
                                              const void *dy, const void *w, void *dx);
/* dw = or += ; its padding channels are not touched. scratch: direct_conv_scratch bytes. */
CHECK_RESULT status direct_conv_backward_weights(cuda_backend *be, const direct_conv *c,
                                                 const void *x, const void *dy, void *dw,
                                                 float *scratch, bool adds);
size_t direct_conv_scratch(const direct_conv *c);

/* to += from, n elements of bf16 or float, in fp32 and rounded */
CHECK_RESULT status direct_add(cuda_backend *be, int64_t n, bool bf16, const void *from, void *to);

/* y += bias by channel; y: rows x channels */
CHECK_RESULT status direct_add_bias(cuda_backend *be, int64_t rows, int channels, bool bf16,
                                    const float *bias, void *y);
/* dbias[channel] = sum of dy over the rows. scratch: direct_bias_scratch bytes. */
CHECK_RESULT status direct_bias_gradient(cuda_backend *be, int64_t rows, int channels, bool bf16,
                                         const void *dy, double *scratch, float *dbias);
size_t direct_bias_scratch(int64_t rows, int channels);

#ifdef __cplusplus
}
#endif

#endif
