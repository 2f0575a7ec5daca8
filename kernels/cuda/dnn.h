/*
 * cuDNN's graph API behind a few typed ops: convolutions and batch norm as compiled graphs.
 *
 * A dnn_op is one graph (PERFORMANCE 2: the kinds below) for one shape, with the engine and knobs
 * that the plan says: by default the first configuration of heuristic mode A (then B, then
 * FALLBACK) that carries no NONDETERMINISTIC note and finalises; with `tune` the fastest of them,
 * timed; or the one that a given plan names. Compiled plans are kept in a folder, by cuDNN version,
 * device and shape. Where cuDNN has no engine, *ret is NULL and the status OK: the caller has a
 * slower kernel, and dnn_missing says the line to log.
 *
 * Tensors are NHWC, filters KRSC. Ops are created at start-up, run on the backend's stream, share
 * one workspace and never allocate when run. One thread.
 */
#ifndef RINGMASTER_KERNELS_CUDA_DNN_H
#define RINGMASTER_KERNELS_CUDA_DNN_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cJSON;
struct CUstream_st;
typedef struct dnn dnn;
typedef struct dnn_op dnn_op;

typedef enum dnn_type {
    DNN_FP32,
    DNN_BF16,
    DNN_FP16
} dnn_type;

typedef struct dnn_options {
    struct CUstream_st *stream; /* ops run here */
    const char *device_json;    /* tests: build for these device properties; no stream, no runs */
    const char *device_name;    /* for keys of the cache and the plan */
    bool tf32;                  /* fp32 products may be TF32; false: engines with a TENSOR_CORE or
                                   DOWN_CONVERT note are left out for fp32 */
    bool tune;                  /* time the candidates */
    const struct cJSON *plan;   /* "cudnn" object of a plan to follow, or NULL; borrowed for the
                                   life of the dnn */
    const char *cache;          /* folder of compiled plans, or NULL; copied */
} dnn_options;

/* On failure nothing is left. STATUS_ENVIRONMENT: no usable cuDNN (what was found, what is needed).
 */
CHECK_RESULT status dnn_open(const dnn_options *options, dnn **ret, errbuf *err);
void dnn_close(dnn **d); /* NULL-safe; after its ops */
/* {"version": "9.19.0", "engines": {"<key of shape>": {"engine": 3, "knobs": {…}}, …}}, of all ops
 * created so far. Caller deletes. */
CHECK_RESULT status dnn_describe(const dnn *d, struct cJSON **ret, errbuf *err);
/* cuDNN's version, "9.19.0"; never NULL. */
const char *dnn_version(void);
/* Why the last create found no engine: one line, naming the shape. Never NULL. */
const char *dnn_missing(const dnn *d);
/* What went wrong in the last dnn_run. Never NULL. */
const char *dnn_last_error(const dnn *d);

/* ---- kinds of graphs; `pointers` of dnn_run in the order given ---- */

typedef enum dnn_conv_kind {
    DNN_CONV_FORWARD,          /* x, w, y */
    DNN_CONV_BACKWARD_DATA,    /* dy, w, dx */
    DNN_CONV_BACKWARD_WEIGHTS, /* x, dy, dw */
    /* fused, for races under `tune`; not in fp32 without TF32 */
    DNN_CONV_BACKWARD_DATA_ADD,       /* dy, w, other, dx : dx = ... + other */
    DNN_CONV_BACKWARD_WEIGHTS_SCALED, /* x, dy, scale, dw : dw = ... * scale[0]; both fp32 */
} dnn_conv_kind;

/* `channels`: of x in memory (>= desc->x.c; desc->groups == 1 where it is more). All tensors of
 * `type`; for fp32, TF32 as the options say. */
CHECK_RESULT status dnn_conv_create(dnn *d, dnn_conv_kind kind, const conv_desc *desc, int channels,
                                    dnn_type type, dnn_op **ret, errbuf *err);

typedef enum dnn_bn_kind {
    /* x, gamma, beta, [residual,] y, mean, inverse deviation, [mask] : training statistics;
     * the mask (1 bit an element, dnn_mask_bytes) where desc->relu */
    DNN_BN_FORWARD,
    /* x, gamma, mean, inverse deviation, dy1, [dy2,] [mask,] [dz,] dx, dgamma, dbeta : dz =
     * (dy1 + dy2) * mask is written where desc->residual, and desc->relu or there is a dy2 */
    DNN_BN_BACKWARD,
} dnn_bn_kind;

/* Parameters and statistics fp32, x, y, dy, dx, dz, residual of `type`. */
CHECK_RESULT status dnn_bn_create(dnn *d, dnn_bn_kind kind, const bn_desc *desc, bool two_gradients,
                                  dnn_type type, dnn_op **ret, errbuf *err);
size_t dnn_mask_bytes(shape x);

void dnn_op_destroy(dnn_op **op); /* NULL-safe */
/* Milliseconds of one run as tuning timed it; 0 where it did not. */
float dnn_op_ms(const dnn_op *op);
CHECK_RESULT status dnn_run(dnn_op *op, void *const *pointers);

#ifdef __cplusplus
}
#endif

#endif
