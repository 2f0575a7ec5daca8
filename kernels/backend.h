/*
 * The line between "what" and "where": an op-level vtable of one compute device.
 *
 * Everything above this header compiles without a CUDA, cuDNN, oneDNN or MPI header. A backend
 * fills backend_ops (designated initialisers); an op that it lacks is NULL, and a net that needs
 * it is refused by name (backend_has_op). Memory that a backend hands out (backend_alloc) is an
 * address on its device: pass it to ops, offset it, never read it; use upload and download.
 *
 * Lanes. A lane is one independent stream of forward and backward passes: it has its own
 * activations, its own weight gradients and its own op objects, and shares the expanded weights.
 * A backend that is opened with `lanes` > 1 runs them side by side (`run_lanes`), each on one
 * thread (exact mode, DESIGN Determinism 2); with one lane all threads work on it. Op objects are
 * created for one lane and used by one lane at a time.
 *
 * Determinism. Every op gives the same bits for the same inputs, shapes and plan, run to run. BN
 * and loss sums do not depend on the thread count. No float atomics.
 *
 * "=" and "+=": every output is overwritten unless its comment says +=. No op allocates: memory
 * is taken when objects are created. Padding lanes of blocked tensors are zero on entry and are
 * left zero.
 *
 * Order. Ops run in the order in which they are called. A device backend may return before an op
 * has run; download, and an event that has happened (event_done), say that all before it has. Ops
 * between graph_begin and graph_end are recorded, not run; graph_launch runs them as often as
 * wanted. What changes from step to step is therefore no argument: it lies in a step_control on
 * the device. A backend without graphs (graph_begin NULL) runs every op as it is called.
 *
 * Errors: a status with one line in `err`; ops that run inside a step have no errbuf and return a
 * status whose cause backend_last_error describes.
 */
#ifndef RINGMASTER_KERNELS_BACKEND_H
#define RINGMASTER_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/ring_map.h"
#include "kernels/tensor.h"
#include "protocol/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cJSON;
typedef struct backend backend;
typedef struct backend_weights backend_weights; /* all conv kernels of a net, expanded */
typedef struct backend_conv backend_conv;
typedef struct backend_bn backend_bn;
typedef struct backend_pool backend_pool;
typedef struct backend_fc backend_fc;
typedef struct backend_loss backend_loss;
typedef struct backend_graph backend_graph; /* a recorded sequence of ops */
typedef struct backend_event backend_event; /* a mark in the order of ops */

/* What activations are kept and multiplied in; parameters, sums and their gradients are fp32. */
typedef enum compute_type {
    COMPUTE_FP32, /* products in fp32 */
    COMPUTE_TF32, /* fp32 storage, products in TF32 */
    COMPUTE_BF16, /* bf16 storage and products, fp32 accumulation */
} compute_type;

/* How a backend is opened. */
typedef struct backend_options {
    int threads;              /* of this rank, >= 1 */
    int lanes;                /* 1, or (exact mode) up to `threads`, one thread each */
    int device;               /* ordinal among the visible devices; CPU: ignored */
    bool share_devices;       /* beyond the last device, ordinals count from 0 again */
    compute_type compute;     /* the CPU backends know COMPUTE_FP32 only */
    const char *cache;        /* folder for compiled plans, or NULL; borrowed during open */
    bool tune;                /* time the algorithms per shape and record the fastest in the plan */
    const struct cJSON *plan; /* a plan to follow (FORMATS 7), or NULL; borrowed during open */
} backend_options;

/* ---- convolution ---- */

/* Shape of one conv kernel's weights: `out` x `in` (channels a group) x `kh` x `kw`. */
typedef struct kernel_shape {
    int out, in, kh, kw;
} kernel_shape;

static inline int64_t kernel_elements(kernel_shape k)
{
    return (int64_t)k.out * k.in * k.kh * k.kw;
}

enum conv_passes {
    CONV_FORWARD = 1,
    CONV_BACKWARD_DATA = 2,
    CONV_BACKWARD_WEIGHTS = 4
};

typedef struct conv_desc {
    shape x;    /* input; output follows */
    int out;    /* K */
    int kh, kw; /* R, S */
    int stride_h, stride_w, pad_h, pad_w;
    int dilation; /* 1 = dense */
    int groups;   /* divides x.c and out */
    bool bias;
    layout x_layout; /* LAYOUT_NATIVE, or LAYOUT_IMAGE for a net input */
    unsigned passes; /* of enum conv_passes: what will be asked for */
} conv_desc;

static inline shape conv_output(const conv_desc *d)
{
    shape y = {d->x.n, d->out,
               (d->x.h + 2 * d->pad_h - ((d->kh - 1) * d->dilation + 1)) / d->stride_h + 1,
               (d->x.w + 2 * d->pad_w - ((d->kw - 1) * d->dilation + 1)) / d->stride_w + 1};
    return y;
}

/* Where a conv kernel's weights come from: a span of generated weights of a ring, or its own
 * direct parameters (map == NULL). Weight j of the kernel, in O,I,H,W order, is
 *     scale[o] * sign(first + j) * params[source + index(first + j)]     (ring)
 *     scale[o] * params[source + j]                                      (direct)
 * `scale` NULL = 1. */
typedef struct weight_source {
    const ring_map *map; /* borrowed until weights_commit returns */
    int64_t first;       /* position of the slot's first weight in its ring, 0..M-1 */
    int64_t source;      /* element of the parameter vector where ring or kernel starts */
    const float *scale;  /* [out], host memory, copied */
} weight_source;

/* ---- batch norm ---- */
typedef struct bn_desc {
    shape x;
    float eps;
    bool relu;     /* y = max(0, .) */
    bool residual; /* y = relu(bn(x) + residual) */
    int gradients; /* that backward will be given: 1, 2 (dy2), -1 = no backward, 0 = not known */
} bn_desc;

/* ---- pooling ---- */
typedef enum pool_kind {
    POOL_MAX,        /* NATIVE -> NATIVE; padding counts as minus infinity; first maximum wins */
    POOL_GLOBAL_AVG, /* NATIVE -> PLAIN [n][c] */
} pool_kind;
typedef struct pool_desc {
    pool_kind kind;
    shape x;
    int kernel, stride, pad; /* POOL_MAX */
} pool_desc;

static inline shape pool_output(const pool_desc *d)
{
    shape y = {d->x.n, d->x.c, 1, 1};
    if (d->kind == POOL_MAX) {
        y.h = (d->x.h + 2 * d->pad - d->kernel) / d->stride + 1;
        y.w = (d->x.w + 2 * d->pad - d->kernel) / d->stride + 1;
    }
    return y;
}

/* ---- fully connected: y[n][out] = x[n][in] * w[out][in]^T + b[out] ---- */
typedef struct fc_desc {
    int n, in, out;
} fc_desc;

/* ---- softmax cross-entropy over [n][classes] ---- */
typedef struct loss_desc {
    int n, classes;
} loss_desc;

/* Sums over the valid rows of one call. Fixed order. */
typedef struct loss_sums {
    double loss;
    int64_t count, top1, top5; /* top-k: the label's logit ranks among the k largest; ties count
                                  as ranked below (a larger or equal logit of a smaller class
                                  index wins); a row with a non-finite logit counts as wrong */
} loss_sums;

/* ---- SGD over a span of the parameter vector, all fp32:
 *     g = grad * grad_scale + weight_decay * p;  v = momentum * v + g;
 *     p -= lr * (nesterov ? g + momentum * v : v)                                            ----
 */
typedef struct sgd_params {
    float lr, momentum, weight_decay, grad_scale;
    bool nesterov;
} sgd_params;

/* ---- the control of a step: what its ops read and write where they run ---- */

/* Why a step failed. */
enum step_failure {
    STEP_LOSS = 1,     /* a loss is not finite */
    STEP_REFUSED = 2,  /* exact mode: a gradient is not finite or too large */
    STEP_GRADIENT = 4, /* a summed gradient is not finite */
    STEP_TOLD = 8      /* the host said so (step_input.error) */
};

/* One slot a step, in shared memory; written by the host before it launches the step. */
typedef struct step_input {
    float lr;
    float stop, error; /* of this rank: asks to stop after it; has no data for it, say */
    uint32_t epoch;
    uint64_t first; /* place in the epoch of this rank's first sample of the step */
} step_input;

/* Device memory, zeroed before the first step. */
typedef struct step_control {
    uint64_t step;       /* steps done; advanced by step_end */
    step_input in;       /* of this step */
    uint32_t failures;   /* of this rank in this step: enum step_failure */
    uint32_t halted;     /* some step failed on some rank: nothing is updated any more */
    float stops, errors; /* of this step, summed over ranks */
} step_control;

/* One slot a step, in shared memory; written by step_end. */
typedef struct step_output {
    uint64_t step;
    float stops, errors;
    uint32_t failures, halted;
} step_output;

/* ---- images on the device ---- */

#define IMAGE_CHANNELS 3

/* A set of square images: planes R, G, B a image, and their labels; device memory. `level`: the
 * normalised value of each byte of each channel, float [3][256]. */
typedef struct image_set {
    const uint8_t *pixels; /* [count][3][size][size] */
    const int32_t *labels;
    const float *level;
    int64_t count;
    int size;
    bool shuffled; /* places of an epoch are dealt by sample_order (kernels/random.h), else in order
                    */
    bool cropped;  /* cut where choose_crop says; black around the image */
    uint64_t seed; /* of both */
} image_set;

/* Fixed point of exact mode: llrint(g * 2^44); a g that is not finite or |g| >= 4096 is refused. */
#define EXACT_SCALE 17592186044416.0
#define EXACT_LIMIT 4096.0f

typedef struct backend_ops {
    const char *name;  /* "reference", "cpu", "cuda" */
    const char *help;  /* one line */
    bool host_memory;  /* its addresses are host addresses: collectives may work on them */
    unsigned computes; /* 1 << compute_type of each that it knows */
    bool bn_in_place;  /* bn_backward may be given dy1 as dz, and dy2 or x as dx */

    /* Tells whether the machine can run it (ISA, device present). */
    bool (*available)(void);
    CHECK_RESULT status (*open)(const backend_options *options, backend **ret_be, errbuf *err);
    void (*close)(backend *be); /* after all its objects are destroyed */

    /* ISA or device, library versions, algorithm per shape so far: the backend's part of the plan
     * (FORMATS 7). Caller deletes. */
    CHECK_RESULT status (*describe)(backend *be, struct cJSON **ret_plan, errbuf *err);
    const char *(*last_error)(const backend *be);

    /* -- memory: 64-byte aligned, zeroed -- */
    CHECK_RESULT status (*alloc)(backend *be, size_t bytes, void **ret, errbuf *err);
    void (*release)(backend *be, void *memory); /* NULL-safe */
    /* Host to device and back; complete when they return; never recorded. */
    CHECK_RESULT status (*upload)(backend *be, void *to, const void *from, size_t bytes);
    CHECK_RESULT status (*download)(backend *be, void *to, const void *from, size_t bytes);
    /* Device to device, not overlapping; and zero bytes. */
    CHECK_RESULT status (*copy)(backend *be, void *to, const void *from, size_t bytes);
    CHECK_RESULT status (*zero)(backend *be, void *memory, size_t bytes);
    /* Memory that host and ops address alike, zeroed (CUDA: pinned and mapped). The host reads what
     * ops wrote once an event after them is done. */
    CHECK_RESULT status (*alloc_shared)(backend *be, size_t bytes, void **ret, errbuf *err);
    void (*release_shared)(backend *be, void *memory); /* NULL-safe */

    /* -- order (all NULL where host_memory: ops run as they are called) -- */
    CHECK_RESULT status (*graph_begin)(backend *be);
    /* Ends recording also where an op failed meanwhile; then nothing is made. */
    CHECK_RESULT status (*graph_end)(backend *be, backend_graph **ret);
    CHECK_RESULT status (*graph_launch)(backend_graph *g);
    void (*graph_destroy)(backend_graph **g);
    CHECK_RESULT status (*event_create)(backend *be, backend_event **ret, errbuf *err);
    void (*event_destroy)(backend_event **e);
    CHECK_RESULT status (*event_record)(backend_event *e); /* after all ops so far */
    /* Whether all ops before the mark have run; never waits. An event never recorded is done. */
    CHECK_RESULT status (*event_done)(backend_event *e, bool *ret_done);
    /* Copies from shared memory beside the ops: begins when `after` (may be NULL) is done, and ops
     * called later run after it. */
    CHECK_RESULT status (*feed)(backend *be, void *to, const void *from, size_t bytes,
                                backend_event *after);

    /* Bytes of a float tensor in a layout; pack and unpack move it from and to host NCHW. */
    size_t (*tensor_bytes)(const backend *be, shape s, layout l);
    CHECK_RESULT status (*pack)(backend *be, shape s, layout l, void *to, const float *nchw);
    CHECK_RESULT status (*unpack)(backend *be, shape s, layout l, float *nchw, const void *from);

    /* Runs fn(ctx, lane) for lane 0..count-1 side by side, count <= options.lanes; returns the
     * status of the lowest lane that failed. With one lane: calls fn directly. */
    CHECK_RESULT status (*run_lanes)(backend *be, int count, status (*fn)(void *ctx, int lane),
                                     void *ctx);

    /* -- weights: create with all kernel shapes, create every conv, then commit -- */
    CHECK_RESULT status (*weights_create)(backend *be, const kernel_shape *kernels, int count,
                                          backend_weights **ret, errbuf *err);
    void (*weights_destroy)(backend_weights **w); /* after its convs */
    /* Binds every kernel to its source, builds tables, allocates weights and the gradients of
     * every lane. `params` and `count` describe the parameter vector that expand will read.
     * Afterwards no conv can be created on it. */
    CHECK_RESULT status (*weights_commit)(backend_weights *w, const weight_source *sources,
                                          int64_t params, errbuf *err);
    /* Bytes that commit takes: tables, weights, gradients of all lanes. Valid after commit. */
    size_t (*weights_bytes)(const backend_weights *w);
    /* Generates all kernels from the parameter vector, every layout its convs need. Called outside
     * run_lanes; uses all threads. */
    CHECK_RESULT status (*weights_expand)(backend_weights *w, const float *params);
    /* grad[e] = sum over all uses of element e, in ascending position, of scale * sign * dW, for
     * every e that a ring or direct kernel covers (a ring covers all its N elements: one that no
     * weight uses gets 0); other elements are not touched. From the gradients that lane `lane`'s
     * convs left. */
    CHECK_RESULT status (*weights_reduce)(backend_weights *w, int lane, float *grad);
    /* For tests, filters and export: kernel's weights (or lane's gradient) in O,I,H,W order. */
    CHECK_RESULT status (*weights_read)(backend_weights *w, int kernel, float *oihw);
    CHECK_RESULT status (*weights_read_grad)(backend_weights *w, int lane, int kernel, float *oihw);

    /* -- convolution through kernel `kernel` of w. The first conv of a lane that uses a kernel
     * writes its weight gradient, the ones created later for the same lane and kernel add to it:
     * run them in creation order in the backward pass. -- */
    CHECK_RESULT status (*conv_create)(backend_weights *w, int kernel, int lane,
                                       const conv_desc *desc, backend_conv **ret, errbuf *err);
    void (*conv_destroy)(backend_conv **c);
    /* y = conv(x) [+ bias] */
    CHECK_RESULT status (*conv_forward)(backend_conv *c, const float *x, const float *bias,
                                        float *y);
    CHECK_RESULT status (*conv_backward_data)(backend_conv *c, const float *dy, float *dx);
    /* dbias [out] may be NULL where the conv has none */
    CHECK_RESULT status (*conv_backward_weights)(backend_conv *c, const float *x, const float *dy,
                                                 float *dbias);

    /* -- batch norm (eps 1e-5; biased variance normalises, unbiased in stats) -- */
    CHECK_RESULT status (*bn_create)(backend *be, int lane, const bn_desc *desc, backend_bn **ret,
                                     errbuf *err);
    void (*bn_destroy)(backend_bn **b);
    /* saved: [2C] mean and 1/sqrt(var + eps), for backward. stats: [2C] mean and unbiased
     * variance (n*h*w == 1: the biased one), for the running statistics. */
    CHECK_RESULT status (*bn_forward_train)(backend_bn *b, const float *x, const float *residual,
                                            const float *gamma, const float *beta, float *y,
                                            float *saved, float *stats);
    /* running: [2C] mean and variance */
    CHECK_RESULT status (*bn_forward_eval)(backend_bn *b, const float *x, const float *residual,
                                           const float *gamma, const float *beta,
                                           const float *running, float *y);
    /* dz = (dy1 + dy2) masked by y > 0 where relu (dy2 may be NULL). dz is written: it is the
     * gradient of the residual input, and may be dy1 itself. dx = BN backward of dz; dx may be dy2
     * or x, never dz. dgamma, dbeta: [C]. Without bn_in_place no two of them overlap, the mask is
     * the one of the object's last bn_forward_train, and where there is no residual nobody needs
     * dz: it may be NULL, else it is left undefined. */
    CHECK_RESULT status (*bn_backward)(backend_bn *b, const float *x, const float *y,
                                       const float *gamma, const float *saved, const float *dy1,
                                       const float *dy2, float *dz, float *dx, float *dgamma,
                                       float *dbeta);

    /* -- pooling -- */
    CHECK_RESULT status (*pool_create)(backend *be, int lane, const pool_desc *desc,
                                       backend_pool **ret, errbuf *err);
    void (*pool_destroy)(backend_pool **p);
    size_t (*pool_workspace)(const backend_pool *p); /* bytes between forward and backward */
    CHECK_RESULT status (*pool_forward)(backend_pool *p, const float *x, float *y, void *ws);
    /* dx from dy1 + dy2 (dy2 may be NULL) */
    CHECK_RESULT status (*pool_backward)(backend_pool *p, const float *dy1, const float *dy2,
                                         const void *ws, float *dx);

    /* -- fully connected, LAYOUT_PLAIN -- */
    CHECK_RESULT status (*fc_create)(backend *be, int lane, const fc_desc *desc, backend_fc **ret,
                                     errbuf *err);
    void (*fc_destroy)(backend_fc **f);
    CHECK_RESULT status (*fc_forward)(backend_fc *f, const float *x, const float *w, const float *b,
                                      float *y);
    CHECK_RESULT status (*fc_backward)(backend_fc *f, const float *x, const float *w,
                                       const float *dy, float *dx, float *dw, float *db);

    /* -- loss: dlogits = (softmax - onehot) * scale for rows < valid, 0 for the rest; dlogits may
     * be NULL (evaluation). labels: device memory, each in [0, classes), or negative: such a row
     * counts as not valid. sums: device memory, overwritten. -- */
    CHECK_RESULT status (*loss_create)(backend *be, int lane, const loss_desc *desc,
                                       backend_loss **ret, errbuf *err);
    void (*loss_destroy)(backend_loss **l);
    CHECK_RESULT status (*loss_run)(backend_loss *l, const float *logits, const int32_t *labels,
                                    int valid, float scale, float *dlogits, loss_sums *sums);

    /* -- images (NULL where host_memory: images come packed) -- */
    /* Both leave images and labels alone where c->halted: those of the failed step can be looked
     * at. */
    /* `rows` images of a set into `to` (LAYOUT_IMAGE, tensor_bytes of {rows, 3, size, size}) and
     * their labels: places in.first + row + i of epoch in.epoch; places at or after `end` become
     * zeros with label -1. */
    CHECK_RESULT status (*images_from_set)(backend *be, const image_set *set, const step_control *c,
                                           int64_t row, int64_t end, int rows, void *to,
                                           int32_t *labels);
    /* The same from staged bytes [slots][slot_rows][3][size][size] and labels [slots][slot_rows]:
     * rows row .. row + rows - 1 of slot c->step mod slots; a negative label makes zeros. */
    CHECK_RESULT status (*images_from_bytes)(backend *be, const uint8_t *bytes,
                                             const int32_t *staged_labels, int slots,
                                             int64_t slot_rows, const float *level,
                                             const step_control *c, int64_t row, int rows, int size,
                                             void *to, int32_t *labels);

    /* -- a step's control; see step_control. Called in this order, once a step -- */
    /* c->in = in[c->step mod slots]; failures = in.error ? STEP_TOLD : 0; stops = errors = 0 */
    CHECK_RESULT status (*step_begin)(backend *be, step_control *c, const step_input *in,
                                      int slots);
    /* failures |= STEP_LOSS where one of `shards` losses is not finite; word = {in.stop, failures
     * ? 1 : 0}: two float or (exact) two int64. */
    CHECK_RESULT status (*step_word)(backend *be, step_control *c, const loss_sums *sums,
                                     int shards, bool exact, void *word);
    /* stops, errors = word, summed over ranks by now; halted |= errors > 0 */
    CHECK_RESULT status (*step_judge)(backend *be, step_control *c, bool exact, const void *word);
    /* out[step mod slots] and out_sums[step mod slots][shards] are written, then ++step. */
    CHECK_RESULT status (*step_end)(backend *be, step_control *c, const loss_sums *sums, int shards,
                                    step_output *out, loss_sums *out_sums, int slots);

    /* -- elementwise; n in elements. With c: sgd takes c->in.lr for params->lr, and blend and sgd
     * do nothing where c->halted -- */
    CHECK_RESULT status (*add)(backend *be, int64_t n, const float *a, const float *b, float *y);
    /* y = a + b over native tensors of `bytes`; y may be a */
    CHECK_RESULT status (*add_native)(backend *be, size_t bytes, const float *a, const float *b,
                                      float *y);
    /* y = keep * y + take * x */
    CHECK_RESULT status (*blend)(backend *be, int64_t n, float *y, float keep, const float *x,
                                 float take, const step_control *c);
    CHECK_RESULT status (*sgd)(backend *be, int64_t n, float *p, const float *grad, float *v,
                               const sgd_params *params, const step_control *c);
    /* Where one of n values is not finite: failures |= STEP_GRADIENT, halted = 1. */
    CHECK_RESULT status (*all_finite)(backend *be, int64_t n, const float *x, step_control *c);
    /* acc += llrint(g * 2^44); where a g is refused: failures |= STEP_REFUSED, acc undefined */
    CHECK_RESULT status (*exact_accumulate)(backend *be, int64_t n, const float *g, int64_t *acc,
                                            step_control *c);
    /* g = acc / 2^44 in double, rounded once */
    CHECK_RESULT status (*exact_to_float)(backend *be, int64_t n, const int64_t *acc, float *g);
} backend_ops;

/* What every backend's own struct begins with. */
struct backend {
    const backend_ops *ops;
    bool dead; /* set by who finds that the device cannot be waited for any more: what is freed is
                  left to the end of the process */
    backend_options options; /* `plan` is NULL here */
};

/* -- registry (backend_registry.c: the one file that knows which backends were built) -- */
const backend_ops *backend_find(const char *name); /* NULL = not built in */
const backend_ops *const *backend_list(void);      /* NULL-ended, best first */
/* The backend that a name means here: "auto" = the first available one. */
CHECK_RESULT status backend_choose(const char *name, const backend_ops **ret_ops, errbuf *err);
/* STATUS_BAD_INPUT, naming train.precision, where the backend does not know it. */
CHECK_RESULT status backend_check_compute(const backend_ops *ops, compute_type compute,
                                          errbuf *err);
/* Name "auto" = the first available one. Opens it, or says which there are. */
CHECK_RESULT status backend_open(const char *name, const backend_options *options, backend **ret_be,
                                 errbuf *err);

#ifdef __cplusplus
}
#endif
#endif
