/*
 * The executor: runs a net on a backend, one lane or several (kernels/backend.h).
 *
 * Everything is decided when it is created: the order of forward and backward ops, which buffer
 * each tensor and gradient lies in (one arena a lane, packed by lifetime), which gradients are
 * summed where. A gradient that reaches a tensor on two ways is handed to the tensor's producer as
 * a pair where the producer can take one (BN, pooling: the sum costs no pass of its own), else
 * summed by an `add`. A BN's input gradient is written over its input, which nobody needs any more.
 *
 * Nothing allocates after net_exec_create.
 */
#ifndef RINGMASTER_TRAINER_NET_EXEC_H
#define RINGMASTER_TRAINER_NET_EXEC_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/backend.h"
#include "trainer/net/graph.h"

typedef struct net_exec net_exec;

typedef struct net_exec_options {
    int batch;     /* images of a forward pass (a shard), every pass */
    int lanes;     /* as the backend was opened with */
    bool training; /* false: no backward, activations are freed as soon as they are read */
} net_exec_options;

/* Bytes on the device, all lanes. */
typedef struct net_exec_memory {
    size_t weights;     /* tables, expanded weights, their gradients */
    size_t activations; /* activations and gradients, packed */
    size_t workspace;   /* saved BN values, pooling */
} net_exec_memory;

/* `net` and `be` are borrowed and outlive the executor. A net that needs an op that the backend
 * lacks is refused with its name. */
CHECK_RESULT status net_exec_create(const net *n, backend *be, const net_exec_options *options,
                                    net_exec **ret_exec, errbuf *err);
void net_exec_destroy(net_exec **e);
net_exec_memory net_exec_usage(const net_exec *e);

/* Generates all conv weights from the parameter vector. Outside run_lanes. */
CHECK_RESULT status net_exec_expand(net_exec *e, const float *params);

/* Puts `batch` host images [batch][c][h][w] into net input `input` of a lane. */
CHECK_RESULT status net_exec_set_input(net_exec *e, int lane, int input, const float *images);

/* Where net input `input` of a lane lies on the device: tensor_bytes of {batch, c, h, w}. */
void *net_exec_input(net_exec *e, int lane, int input);

/* Forward with batch statistics; stats (running_elements, as the statistics vector: [mean |
 * unbiased variance] a norm) is overwritten. (A norm has one use: graph.h.) */
CHECK_RESULT status net_exec_forward_train(net_exec *e, int lane, const float *params,
                                           float *stats);
/* Forward with running statistics. */
CHECK_RESULT status net_exec_forward_eval(net_exec *e, int lane, const float *params,
                                          const float *running);

/* Output `output` of a lane, and where its gradient goes before backward (training only). */
const float *net_exec_output(const net_exec *e, int lane, int output);
float *net_exec_output_grad(net_exec *e, int lane, int output);

/* Backward from the output gradients. Direct gradients (BN, fc, bias) are written into `grad`
 * (param_elements); conv weight gradients stay with the lane until net_exec_reduce. */
CHECK_RESULT status net_exec_backward(net_exec *e, int lane, const float *params, float *grad);
/* Adds nothing: writes the ring and direct conv gradients of the lane's last backward into
 * `grad`. Inside run_lanes (one thread) or outside (all), same bits. */
CHECK_RESULT status net_exec_reduce(net_exec *e, int lane, float *grad);

/* After a training pass whose loss or gradient was not finite: finds where that began. A
 * parameter that holds such a value is named ("parameter fc.weight"); else the forward pass is run
 * again on the lane's input, and the first node that makes one is named ("layer1.0.bn1, forward");
 * else the last parameter in order whose gradient in `grad` holds one ("the gradient of fc.bias").
 * "" where all is finite. Slow: for the last words of a run. */
CHECK_RESULT status net_exec_blame(net_exec *e, int lane, const float *params, float *stats,
                                   float *grad, char *ret_where, size_t size, errbuf *err);

/* The weights handle, for reports and tests. */
backend_weights *net_exec_weights(net_exec *e);

#endif
