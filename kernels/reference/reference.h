/*
 * What the files of the reference backend share. Every tensor is plain NCHW in host memory, every
 * sum is taken in double in the order in which the elements lie; the ops cannot fail, so
 * last_error is always empty.
 *
 * The files: backend_reference.c (table of ops, memory, layouts), weights.c, conv.c, norm.c,
 * pool.c, fc_loss.c, update.c.
 */
#ifndef RINGMASTER_KERNELS_REFERENCE_REFERENCE_H
#define RINGMASTER_KERNELS_REFERENCE_REFERENCE_H

#include "kernels/backend.h"

/* One kernel of a net. */
typedef struct reference_kernel {
    kernel_shape shape;
    int64_t at;         /* of its first weight in `value`, `grad` and `entry` */
    int64_t source;     /* after commit: where its ring or its parameters start */
    const float *scale; /* after commit: [out], or NULL = 1; owned by the weights */
} reference_kernel;

/* A span of the parameter vector that one ring or direct kernel owns. */
typedef struct reference_span {
    int64_t start, count;
} reference_span;

struct backend_weights {
    backend *be;
    int count, lanes;
    int64_t elements; /* weights of all kernels */
    reference_kernel *kernels;
    bool *claimed; /* [lane][kernel]: a conv of the lane writes its gradient; others add */
    bool committed;
    /* after commit */
    float *value;    /* [elements] */
    float *grad;     /* [lane][elements] */
    uint32_t *entry; /* [elements]: element relative to the kernel's source, sign in bit 31 */
    float *scales;
    double *sum;           /* [params] */
    reference_span *spans; /* [count]: covered by each kernel's source */
    int *order;            /* [count]: kernels in the order in which reduce adds them */
    size_t bytes;
};

static inline float *reference_weights_value(const backend_weights *w, int kernel)
{
    return w->value + w->kernels[kernel].at;
}

static inline float *reference_weights_grad(const backend_weights *w, int lane, int kernel)
{
    return w->grad + lane * w->elements + w->kernels[kernel].at;
}

/* "out of memory for <what>" */
status reference_out_of_memory(const char *what, errbuf *err);

/* Refuses a lane that the backend was not opened with. */
CHECK_RESULT status reference_check_lane(const backend *be, int lane, errbuf *err);

CHECK_RESULT status reference_weights_create(backend *be, const kernel_shape *kernels, int count,
                                             backend_weights **ret, errbuf *err);
void reference_weights_destroy(backend_weights **w);
CHECK_RESULT status reference_weights_commit(backend_weights *w, const weight_source *sources,
                                             int64_t params, errbuf *err);
size_t reference_weights_bytes(const backend_weights *w);
CHECK_RESULT status reference_weights_expand(backend_weights *w, const float *params);
CHECK_RESULT status reference_weights_reduce(backend_weights *w, int lane, float *grad);
CHECK_RESULT status reference_weights_read(backend_weights *w, int kernel, float *oihw);
CHECK_RESULT status reference_weights_read_grad(backend_weights *w, int lane, int kernel,
                                                float *oihw);

CHECK_RESULT status reference_conv_create(backend_weights *w, int kernel, int lane,
                                          const conv_desc *desc, backend_conv **ret, errbuf *err);
void reference_conv_destroy(backend_conv **c);
CHECK_RESULT status reference_conv_forward(backend_conv *c, const float *x, const float *bias,
                                           float *y);
CHECK_RESULT status reference_conv_backward_data(backend_conv *c, const float *dy, float *dx);
CHECK_RESULT status reference_conv_backward_weights(backend_conv *c, const float *x,
                                                    const float *dy, float *dbias);

CHECK_RESULT status reference_bn_create(backend *be, int lane, const bn_desc *desc,
                                        backend_bn **ret, errbuf *err);
void reference_bn_destroy(backend_bn **b);
CHECK_RESULT status reference_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                                               const float *gamma, const float *beta, float *y,
                                               float *saved, float *stats);
CHECK_RESULT status reference_bn_forward_eval(backend_bn *b, const float *x, const float *residual,
                                              const float *gamma, const float *beta,
                                              const float *running, float *y);
CHECK_RESULT status reference_bn_backward(backend_bn *b, const float *x, const float *y,
                                          const float *gamma, const float *saved, const float *dy1,
                                          const float *dy2, float *dz, float *dx, float *dgamma,
                                          float *dbeta);

CHECK_RESULT status reference_pool_create(backend *be, int lane, const pool_desc *desc,
                                          backend_pool **ret, errbuf *err);
void reference_pool_destroy(backend_pool **p);
size_t reference_pool_workspace(const backend_pool *p);
CHECK_RESULT status reference_pool_forward(backend_pool *p, const float *x, float *y, void *ws);
CHECK_RESULT status reference_pool_backward(backend_pool *p, const float *dy1, const float *dy2,
                                            const void *ws, float *dx);

CHECK_RESULT status reference_fc_create(backend *be, int lane, const fc_desc *desc,
                                        backend_fc **ret, errbuf *err);
void reference_fc_destroy(backend_fc **f);
CHECK_RESULT status reference_fc_forward(backend_fc *f, const float *x, const float *w,
                                         const float *b, float *y);
CHECK_RESULT status reference_fc_backward(backend_fc *f, const float *x, const float *w,
                                          const float *dy, float *dx, float *dw, float *db);

CHECK_RESULT status reference_loss_create(backend *be, int lane, const loss_desc *desc,
                                          backend_loss **ret, errbuf *err);
void reference_loss_destroy(backend_loss **l);
CHECK_RESULT status reference_loss_run(backend_loss *l, const float *logits, const int32_t *labels,
                                       int valid, float scale, float *dlogits, loss_sums *sums);

CHECK_RESULT status reference_add(backend *be, int64_t n, const float *a, const float *b, float *y);
CHECK_RESULT status reference_add_native(backend *be, size_t bytes, const float *a, const float *b,
                                         float *y);
CHECK_RESULT status reference_blend(backend *be, int64_t n, float *y, float keep, const float *x,
                                    float take, const step_control *c);
CHECK_RESULT status reference_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
                                  const sgd_params *params, const step_control *c);
CHECK_RESULT status reference_all_finite(backend *be, int64_t n, const float *x, step_control *c);
CHECK_RESULT status reference_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc,
                                               step_control *c);
CHECK_RESULT status reference_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g);

#endif
