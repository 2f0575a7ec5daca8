/*
 * What the files of the cuda backend share. C11 and C++17: .c files and kernels include it.
 *
 * Device memory: activations (LAYOUT_NATIVE) are NHWC in the io type (bf16, or float), without
 * padding; a net's input (LAYOUT_IMAGE) is NHWC in the io type with channels padded with zeros to a
 * multiple of 8; matrices (LAYOUT_PLAIN) are float [n][c]; parameters, their gradients and BN's
 * saved values are float. Expanded weights and their gradients are KRSC in the io type, C padded as
 * the conv's input is.
 *
 * One stream carries all ops; a second one carries `feed`. Lanes: 1.
 *
 * The files: backend_cuda.c (table of ops), device.c (device, memory, errors, graphs, events),
 * elementwise.cu, control.cu, images.cu, weights.c with ring_expand.cu and ring_reduce.cu, conv.c
 * with conv_direct.cu, bn.c with bn_choice.c, bn_kernels.cu and bn_backward.cu, pool.c with
 * pool_kernels.cu, fc.c with fc_kernels.cu, loss.c with loss_kernels.cu, dnn_*.c (cuDNN behind
 * dnn.h), comm_nccl.c.
 */
#ifndef RINGMASTER_KERNELS_CUDA_CUDA_BACKEND_H
#define RINGMASTER_KERNELS_CUDA_CUDA_BACKEND_H

#include <cuda_runtime_api.h>

#include "kernels/backend.h"
#include "kernels/cuda/dnn.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_IMAGE_CHANNELS 8 /* channels of a net's input are padded to a multiple of it */

typedef struct cuda_backend {
    backend base;
    cudaStream_t stream, feed_stream;
    cudaEvent_t fed; /* the last feed */
    bool recording;  /* between graph_begin and graph_end */
    bool spoilt;     /* something failed since graph_begin */
    bool sync_each;  /* RINGMASTER_CUDA_SYNC=1: wait after every op, to find the one that fails */
    dnn *dnn;        /* NULL: built without cuDNN */
    struct cJSON *dnn_plan;           /* what dnn follows, or NULL */
    struct cJSON *bn_plan, *bn_sides; /* bn_choice.c: what to follow, or NULL; what was chosen */
    int sms;                          /* multiprocessors */
    int capability;                   /* 90 = 9.0 */
    char device_name[256];
    char error[600];    /* what backend_ops.last_error returns */
    uint32_t noted[32]; /* conv.c: hashes of the slower paths that were logged; 0 = free */
} cuda_backend;

static inline cuda_backend *cuda_of(backend *be)
{
    return (cuda_backend *)(void *)be;
}

static inline bool cuda_is_bf16(const cuda_backend *be)
{
    return be->base.options.compute == COMPUTE_BF16;
}

/* Bytes of one element of an activation. */
static inline size_t cuda_element(const cuda_backend *be)
{
    return cuda_is_bf16(be) ? 2 : 4;
}

static inline dnn_type cuda_io_type(const cuda_backend *be)
{
    return cuda_is_bf16(be) ? DNN_BF16 : DNN_FP32;
}

/* Channels of a net's input in memory. */
static inline int cuda_image_channels(int c)
{
    return (c + CUDA_IMAGE_CHANNELS - 1) / CUDA_IMAGE_CHANNELS * CUDA_IMAGE_CHANNELS;
}

/* ---- device.c: errors. Each remembers the line for last_error and returns its status. ---- */

status cuda_fail(cuda_backend *be, status st, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A CUDA error where `what` was tried; clears it. Out of memory is STATUS_OUT_OF_MEMORY, anything
 * else STATUS_ENVIRONMENT. */
status cuda_failed(cuda_backend *be, cudaError_t error, const char *what);
/* After every launch: asks for launch errors and, with sync_each, waits. */
status cuda_launched(cuda_backend *be, const char *what);
/* cudaSuccess is STATUS_OK. */
static inline status cuda_check(cuda_backend *be, cudaError_t error, const char *what)
{
    return error == cudaSuccess ? STATUS_OK : cuda_failed(be, error, what);
}
/* The line of last_error into err. */
status cuda_report(cuda_backend *be, status st, errbuf *err);

/* ---- the ops, by file (backend.h says what they do) ---- */

/* device.c */
bool cuda_available(void);
CHECK_RESULT status cuda_open(const backend_options *options, backend **ret_be, errbuf *err);
void cuda_close(backend *base);
CHECK_RESULT status cuda_describe(backend *be, struct cJSON **ret_plan, errbuf *err);
const char *cuda_last_error(const backend *be);
CHECK_RESULT status cuda_alloc(backend *be, size_t bytes, void **ret, errbuf *err);
void cuda_release(backend *base, void *memory);
CHECK_RESULT status cuda_upload(backend *be, void *to, const void *from, size_t bytes);
CHECK_RESULT status cuda_download(backend *be, void *to, const void *from, size_t bytes);
CHECK_RESULT status cuda_copy(backend *be, void *to, const void *from, size_t bytes);
CHECK_RESULT status cuda_zero(backend *be, void *memory, size_t bytes);
CHECK_RESULT status cuda_alloc_shared(backend *be, size_t bytes, void **ret, errbuf *err);
void cuda_release_shared(backend *base, void *memory);
CHECK_RESULT status cuda_run_lanes(backend *be, int count, status (*fn)(void *ctx, int lane),
                                   void *ctx);
CHECK_RESULT status cuda_graph_begin(backend *be);
CHECK_RESULT status cuda_graph_end(backend *be, backend_graph **ret);
CHECK_RESULT status cuda_graph_launch(backend_graph *g);
void cuda_graph_destroy(backend_graph **g);
CHECK_RESULT status cuda_event_create(backend *be, backend_event **ret, errbuf *err);
void cuda_event_destroy(backend_event **e);
CHECK_RESULT status cuda_event_record(backend_event *e);
CHECK_RESULT status cuda_event_done(backend_event *e, bool *ret_done);
CHECK_RESULT status cuda_feed(backend *be, void *to, const void *from, size_t bytes,
                              backend_event *after);
/* Device memory of an op object: zeroed; NULL-safe release with cuda_release. */
CHECK_RESULT status cuda_check_lane(backend *be, int lane, errbuf *err);

/* elementwise.cu */
CHECK_RESULT status cuda_add(backend *be, int64_t n, const float *a, const float *b, float *y);
CHECK_RESULT status cuda_add_native(backend *be, size_t bytes, const float *a, const float *b,
                                    float *y);
CHECK_RESULT status cuda_blend(backend *be, int64_t n, float *y, float keep, const float *x,
                               float take, const step_control *c);
CHECK_RESULT status cuda_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
                             const sgd_params *params, const step_control *c);
CHECK_RESULT status cuda_all_finite(backend *be, int64_t n, const float *x, step_control *c);
CHECK_RESULT status cuda_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc,
                                          step_control *c);
CHECK_RESULT status cuda_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g);

/* control.cu */
CHECK_RESULT status cuda_step_begin(backend *be, step_control *c, const step_input *in, int slots);
CHECK_RESULT status cuda_step_word(backend *be, step_control *c, const loss_sums *sums, int shards,
                                   bool exact, void *word);
CHECK_RESULT status cuda_step_judge(backend *be, step_control *c, bool exact, const void *word);
CHECK_RESULT status cuda_step_end(backend *be, step_control *c, const loss_sums *sums, int shards,
                                  step_output *out, loss_sums *out_sums, int slots);

/* images.cu */
size_t cuda_tensor_bytes(const backend *be, shape s, layout l);
CHECK_RESULT status cuda_pack(backend *be, shape s, layout l, void *to, const float *nchw);
CHECK_RESULT status cuda_unpack(backend *be, shape s, layout l, float *nchw, const void *from);
CHECK_RESULT status cuda_images_from_set(backend *be, const image_set *set, const step_control *c,
                                         int64_t row, int64_t end, int rows, void *to,
                                         int32_t *labels);
CHECK_RESULT status cuda_images_from_bytes(backend *be, const uint8_t *bytes,
                                           const int32_t *staged_labels, int slots,
                                           int64_t slot_rows, const float *level,
                                           const step_control *c, int64_t row, int rows, int size,
                                           void *to, int32_t *labels);

/* weights.c */
CHECK_RESULT status cuda_weights_create(backend *be, const kernel_shape *kernels, int count,
                                        backend_weights **ret, errbuf *err);
void cuda_weights_destroy(backend_weights **w);
CHECK_RESULT status cuda_weights_commit(backend_weights *w, const weight_source *sources,
                                        int64_t params, errbuf *err);
size_t cuda_weights_bytes(const backend_weights *w);
CHECK_RESULT status cuda_weights_expand(backend_weights *w, const float *params);
CHECK_RESULT status cuda_weights_reduce(backend_weights *w, int lane, float *grad);
CHECK_RESULT status cuda_weights_read(backend_weights *w, int kernel, float *oihw);
CHECK_RESULT status cuda_weights_read_grad(backend_weights *w, int lane, int kernel, float *oihw);
/* What a conv needs of its kernel. A conv that is created claims it, before commit; `channels` =
 * input channels a group in memory (all convs of one kernel: the same; else STATUS_BAD_INPUT).
 * *ret_first: it is the first of its lane to write the gradient, others add. */
CHECK_RESULT status cuda_weights_claim(backend_weights *w, int kernel, int channels,
                                       unsigned passes, bool *ret_first, errbuf *err);
backend *cuda_weights_backend(const backend_weights *w);
kernel_shape cuda_weights_shape(const backend_weights *w, int kernel);
/* After commit: KRSC in the io type, channels as claimed. */
const void *cuda_weights_value(const backend_weights *w, int kernel);
void *cuda_weights_grad(const backend_weights *w, int kernel);

/* conv.c */
CHECK_RESULT status cuda_conv_create(backend_weights *w, int kernel, int lane,
                                     const conv_desc *desc, backend_conv **ret, errbuf *err);
void cuda_conv_destroy(backend_conv **c);
CHECK_RESULT status cuda_conv_forward(backend_conv *c, const float *x, const float *bias, float *y);
CHECK_RESULT status cuda_conv_backward_data(backend_conv *c, const float *dy, float *dx);
CHECK_RESULT status cuda_conv_backward_weights(backend_conv *c, const float *x, const float *dy,
                                               float *dbias);

/* bn.c */
CHECK_RESULT status cuda_bn_create(backend *be, int lane, const bn_desc *desc, backend_bn **ret,
                                   errbuf *err);
void cuda_bn_destroy(backend_bn **b);
CHECK_RESULT status cuda_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                                          const float *gamma, const float *beta, float *y,
                                          float *saved, float *stats);
CHECK_RESULT status cuda_bn_forward_eval(backend_bn *b, const float *x, const float *residual,
                                         const float *gamma, const float *beta,
                                         const float *running, float *y);
CHECK_RESULT status cuda_bn_backward(backend_bn *b, const float *x, const float *y,
                                     const float *gamma, const float *saved, const float *dy1,
                                     const float *dy2, float *dz, float *dx, float *dgamma,
                                     float *dbeta);

/* bn_choice.c: "batch_norm" of the plan: read at open (plan may be NULL), written into `plan` by
 * describe (false: out of memory), dropped at close */
CHECK_RESULT status cuda_bn_take_plan(cuda_backend *be, const struct cJSON *plan, errbuf *err);
bool cuda_bn_describe(const cuda_backend *be, struct cJSON *plan);
void cuda_bn_forget_plan(cuda_backend *be);

/* pool.c */
CHECK_RESULT status cuda_pool_create(backend *be, int lane, const pool_desc *desc,
                                     backend_pool **ret, errbuf *err);
void cuda_pool_destroy(backend_pool **p);
size_t cuda_pool_workspace(const backend_pool *p);
CHECK_RESULT status cuda_pool_forward(backend_pool *p, const float *x, float *y, void *ws);
CHECK_RESULT status cuda_pool_backward(backend_pool *p, const float *dy1, const float *dy2,
                                       const void *ws, float *dx);

/* fc.c */
CHECK_RESULT status cuda_fc_create(backend *be, int lane, const fc_desc *desc, backend_fc **ret,
                                   errbuf *err);
void cuda_fc_destroy(backend_fc **f);
CHECK_RESULT status cuda_fc_forward(backend_fc *f, const float *x, const float *w, const float *b,
                                    float *y);
CHECK_RESULT status cuda_fc_backward(backend_fc *f, const float *x, const float *w, const float *dy,
                                     float *dx, float *dw, float *db);

/* loss.c */
CHECK_RESULT status cuda_loss_create(backend *be, int lane, const loss_desc *desc,
                                     backend_loss **ret, errbuf *err);
void cuda_loss_destroy(backend_loss **l);
CHECK_RESULT status cuda_loss_run(backend_loss *l, const float *logits, const int32_t *labels,
                                  int valid, float scale, float *dlogits, loss_sums *sums);

#ifdef __cplusplus
}
#endif

#endif
