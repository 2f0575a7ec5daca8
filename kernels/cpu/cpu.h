/*
 * What the files of the cpu backend share: its state, lanes, work sharing and small helpers.
 *
 * Native tensors are [n][channel block][h][w][block]: block is the SIMD width that the backend was
 * opened with (8, or 16 with AVX-512), channels are padded with zeros to whole blocks. A lane owns
 * a oneDNN stream and one scratch area; an op reserves what it needs of the area when it is created
 * and may use all of it while it runs. Ops share work out through OpenMP with cpu_threads(be)
 * threads, which is one inside run_lanes; what they compute never depends on that number.
 */
#ifndef RINGMASTER_KERNELS_CPU_CPU_H
#define RINGMASTER_KERNELS_CPU_CPU_H

#include <omp.h>

#include "kernels/backend.h"
#include "kernels/cpu/onednn_conv.h"
#include "kernels/cpu/simd_kernels.h"

#define CPU_ALIGN 64 /* bytes: a cache line, and a vector of AVX-512 */

/* Outputs larger than this are written past the caches: they would be evicted before their use. */
#define CPU_STREAM_BYTES (16 << 20)

typedef struct cpu_lane {
    onednn_stream *stream;
    char *scratch;
    size_t scratch_bytes;
    char error[256]; /* of the last op that failed here */
} cpu_lane;

typedef struct cpu_backend {
    backend base;
    const simd_kernels *simd;
    onednn *dnn;
    cpu_lane *lane;           /* [options.lanes] */
    struct cJSON *plan_given; /* conv part of the plan to follow: shape -> pass -> algorithm */
    struct cJSON *plan_made;  /* the same, of the convs created so far */
} cpu_backend;

static inline cpu_backend *cpu_of(backend *be)
{
    return (cpu_backend *)be;
}

/* Threads that an op may use where it is called. */
static inline int cpu_threads(const cpu_backend *cpu)
{
    return cpu->base.options.lanes > 1 && omp_in_parallel() ? 1 : cpu->base.options.threads;
}

static inline int64_t round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline int64_t min_int64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t max_int64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* 64-byte aligned and zeroed, in huge pages where it is large; NULL when there is no memory. Free
 * with free. */
void *cpu_memory(size_t bytes);

/* Makes sure that the lane's scratch area has at least `bytes`. Not while the lane runs. */
CHECK_RESULT status cpu_reserve_scratch(cpu_backend *cpu, int lane, size_t bytes, errbuf *err);

/* Keeps the line of an op that failed, for backend_last_error, and returns `code`. */
status cpu_fail(cpu_backend *cpu, int lane, status code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

CHECK_RESULT status cpu_check_lane(const cpu_backend *cpu, int lane, errbuf *err);
CHECK_RESULT status cpu_check_shape(shape s, const char *what, errbuf *err);

/* Channel blocks of a native tensor, and its floats. */
static inline int cpu_blocks(const cpu_backend *cpu, int channels)
{
    return (channels + cpu->simd->block - 1) / cpu->simd->block;
}

static inline int64_t cpu_native_elements(const cpu_backend *cpu, shape s)
{
    return (int64_t)s.n * cpu_blocks(cpu, s.c) * cpu->simd->block * s.h * s.w;
}

/* Moves a tensor between native and plain NCHW, with `threads` threads. */
void cpu_to_native(const cpu_backend *cpu, shape s, float *to, const float *nchw, int threads);
void cpu_from_native(const cpu_backend *cpu, shape s, float *nchw, const float *from, int threads);

/* ---- the vtable's functions, by file ---- */

/* weights.c */
status cpu_weights_create(backend *be, const kernel_shape *kernels, int count,
                          backend_weights **ret, errbuf *err);
void cpu_weights_destroy(backend_weights **w);
status cpu_weights_commit(backend_weights *w, const weight_source *sources, int64_t params,
                          errbuf *err);
size_t cpu_weights_bytes(const backend_weights *w);
status cpu_weights_read(backend_weights *w, int kernel, float *oihw);
status cpu_weights_read_grad(backend_weights *w, int lane, int kernel, float *oihw);
/* weights_expand.c, weights_reduce.c */
status cpu_weights_expand(backend_weights *w, const float *params);
status cpu_weights_reduce(backend_weights *w, int lane, float *grad);

/* conv.c */
status cpu_conv_create(backend_weights *w, int kernel, int lane, const conv_desc *desc,
                       backend_conv **ret, errbuf *err);
void cpu_conv_destroy(backend_conv **c);
status cpu_conv_forward(backend_conv *c, const float *x, const float *bias, float *y);
status cpu_conv_backward_data(backend_conv *c, const float *dy, float *dx);
status cpu_conv_backward_weights(backend_conv *c, const float *x, const float *dy, float *dbias);

/* norm.c */
status cpu_bn_create(backend *be, int lane, const bn_desc *desc, backend_bn **ret, errbuf *err);
void cpu_bn_destroy(backend_bn **b);
status cpu_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                            const float *gamma, const float *beta, float *y, float *saved,
                            float *stats);
status cpu_bn_forward_eval(backend_bn *b, const float *x, const float *residual, const float *gamma,
                           const float *beta, const float *running, float *y);
status cpu_bn_backward(backend_bn *b, const float *x, const float *y, const float *gamma,
                       const float *saved, const float *dy1, const float *dy2, float *dz, float *dx,
                       float *dgamma, float *dbeta);

/* pool.c */
status cpu_pool_create(backend *be, int lane, const pool_desc *desc, backend_pool **ret,
                       errbuf *err);
void cpu_pool_destroy(backend_pool **p);
size_t cpu_pool_workspace(const backend_pool *p);
status cpu_pool_forward(backend_pool *p, const float *x, float *y, void *ws);
status cpu_pool_backward(backend_pool *p, const float *dy1, const float *dy2, const void *ws,
                         float *dx);

/* fc_loss.c */
status cpu_fc_create(backend *be, int lane, const fc_desc *desc, backend_fc **ret, errbuf *err);
void cpu_fc_destroy(backend_fc **f);
status cpu_fc_forward(backend_fc *f, const float *x, const float *w, const float *b, float *y);
status cpu_fc_backward(backend_fc *f, const float *x, const float *w, const float *dy, float *dx,
                       float *dw, float *db);
status cpu_loss_create(backend *be, int lane, const loss_desc *desc, backend_loss **ret,
                       errbuf *err);
void cpu_loss_destroy(backend_loss **l);
status cpu_loss_run(backend_loss *l, const float *logits, const int32_t *labels, int valid,
                    float scale, float *dlogits, loss_sums *ret_sums);

/* update.c */
status cpu_add(backend *be, int64_t n, const float *a, const float *b, float *y);
status cpu_add_native(backend *be, size_t bytes, const float *a, const float *b, float *y);
status cpu_blend(backend *be, int64_t n, float *y, float keep, const float *x, float take,
                 const step_control *c);
status cpu_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
               const sgd_params *params, const step_control *c);
status cpu_all_finite(backend *be, int64_t n, const float *x, step_control *c);
status cpu_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc, step_control *c);
status cpu_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g);

#endif
