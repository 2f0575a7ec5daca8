/*
 * The network as a graph: what is computed, by which kernels and parameters, with no word about
 * where. Builders (net/builders.h) make it, net/exec.h runs it, net/report.h counts it.
 *
 * A conv node, a kernel and a slot are three things (DESIGN "Nets"): a node uses a kernel; several
 * nodes may use one kernel (its weight gradient is then summed as the backward pass meets them, the
 * last node first); a kernel is backed
 * by a ring, and then its span of generated weights is a slot, or by direct parameters. A
 * sub-network used k times is built by calling its builder k times, with the same kernels or with
 * new ones, and with norms of its own each time.
 *
 * Tensors are numbered in creation order; a node reads tensors and makes one. A tensor may be read
 * by any number of nodes (gradients are summed in node order, last reader first). Nodes are in
 * topological order by construction.
 *
 * Parameters. One flat float vector holds every trainable scalar: [ring 0 | ring 1 | … | direct
 * tensors in creation order], one flat float vector the BN running statistics: per norm [mean C |
 * variance C]. `net_param` names each stretch; that table drives initialisation, decay, the
 * checkpoint and the reports.
 */
#ifndef RINGMASTER_TRAINER_NET_GRAPH_H
#define RINGMASTER_TRAINER_NET_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/ring_map.h"
#include "protocol/status.h"

#define NET_NAME_MAX   96
#define NET_MAX_INPUTS 4

typedef enum node_kind {
    NODE_CONV, /* 1 input */
    NODE_BN,   /* 1 input, or 2 with a residual: y = act(bn(in0) + in1) */
    NODE_POOL, /* max or global average */
    NODE_FC,   /* [n][in] -> [n][out] */
    NODE_ADD,  /* 2 inputs */
} node_kind;

typedef struct net_tensor {
    shape shape; /* n = 1: an image; the executor sets n */
    layout layout;
    int producer; /* node, or -1 for a net input */
} net_tensor;

typedef struct net_node {
    node_kind kind;
    char name[NET_NAME_MAX]; /* "layer1.0.conv1" */
    int input[NET_MAX_INPUTS], inputs;
    int output;
    int kernel;       /* NODE_CONV */
    int norm;         /* NODE_BN */
    int weight, bias; /* NODE_FC: params; NODE_CONV: bias param or -1 */
    conv_desc conv;   /* shapes with n = 1, passes unset */
    bn_desc bn;
    pool_desc pool;
    fc_desc fc;
} net_node;

/* A conv kernel. Ring-backed: `ring` >= 0, `first` its slot's first position. Direct: ring -1 and
 * `param` its parameter. */
typedef struct net_kernel {
    char name[NET_NAME_MAX]; /* torchvision: "layer1.0.conv1.weight" */
    kernel_shape shape;
    int ring;
    int64_t first;
    int param;
    float alpha; /* ring-backed: the slot's constant scale, else 1 */
} net_kernel;

typedef struct net_ring {
    char name[NET_NAME_MAX]; /* "global", "layer1" */
    int64_t m, n;
    double sigma; /* W ~ N(0, sigma^2) */
    ring_map map; /* made by net_finish */
    int param;    /* its stretch of the parameter vector, named "ring.<name>" */
} net_ring;

typedef struct net_norm {
    char name[NET_NAME_MAX]; /* "layer1.0.bn1" */
    int channels;
    int gamma, beta; /* params "<name>.weight", "<name>.bias" */
    int64_t running; /* offset of [mean | variance] in the statistics vector */
} net_norm;

typedef enum param_kind {
    PARAM_RING,
    PARAM_CONV, /* direct conv weights, O,I,H,W */
    PARAM_BIAS, /* of conv or fc */
    PARAM_GAMMA,
    PARAM_BETA,
    PARAM_FC, /* [out][in] */
} param_kind;

/* How its initial values are drawn (METHODS 1.1; DESIGN "Nets"). */
typedef enum init_kind {
    INIT_ZERO,
    INIT_ONE,
    INIT_RING,    /* ring_init_values */
    INIT_NORMAL,  /* N(0, bound^2) */
    INIT_UNIFORM, /* U(-bound, bound) */
} init_kind;

typedef struct net_param {
    char name[NET_NAME_MAX];
    param_kind kind;
    int dims, dim[4];
    int64_t elements, offset; /* in the parameter vector */
    init_kind init;
    double bound;
} net_param;

typedef struct net {
    char name[NET_NAME_MAX];
    net_tensor *tensor;
    net_node *node;
    net_kernel *kernel;
    net_ring *ring;
    net_norm *norm;
    net_param *param;
    int tensors, nodes, kernels, rings, norms, params;
    int *input, inputs;       /* tensors fed from outside */
    int *output, outputs;     /* tensors that tasks read (logits, heat maps, …) */
    int64_t param_elements;   /* of the parameter vector */
    int64_t running_elements; /* of the statistics vector */
    uint64_t ring_seed;
} net;

/* ---- building: each returns the new object's number through ret_*, grows the arrays, and leaves
 * the net as it was on failure ---- */
CHECK_RESULT status net_create(const char *name, net **ret_net, errbuf *err);
void net_destroy(net **n); /* NULL-safe, frees ring maps too */

CHECK_RESULT status net_add_input(net *n, int c, int h, int w, int *ret_tensor, errbuf *err);
CHECK_RESULT status net_add_ring(net *n, const char *name, int *ret_ring, errbuf *err);
/* ring -1: direct parameters. Registration order is slot order within a ring. */
CHECK_RESULT status net_add_kernel(net *n, const char *name, kernel_shape s, int ring,
                                   int *ret_kernel, errbuf *err);
CHECK_RESULT status net_add_norm(net *n, const char *name, int channels, int *ret_norm,
                                 errbuf *err);
/* `geometry` gives stride, pad, dilation, groups, bias; shapes follow from input and kernel. */
CHECK_RESULT status net_add_conv(net *n, const char *name, int input, int kernel,
                                 const conv_desc *geometry, int *ret_tensor, errbuf *err);
/* residual -1 = none */
CHECK_RESULT status net_add_bn(net *n, const char *name, int input, int norm, bool relu,
                               int residual, int *ret_tensor, errbuf *err);
CHECK_RESULT status net_add_max_pool(net *n, const char *name, int input, int kernel, int stride,
                                     int pad, int *ret_tensor, errbuf *err);
CHECK_RESULT status net_add_global_avg_pool(net *n, const char *name, int input, int *ret_tensor,
                                            errbuf *err);
CHECK_RESULT status net_add_fc(net *n, const char *name, int input, int out, int *ret_tensor,
                               errbuf *err);
CHECK_RESULT status net_add_add(net *n, const char *name, int a, int b, int *ret_tensor,
                                errbuf *err);
CHECK_RESULT status net_add_output(net *n, int tensor, errbuf *err);

/* What net_finish needs to make the rings. */
typedef struct net_rings {
    int index; /* enum ring_index */
    bool permute, reflect;
    double init_std; /* 0 = sqrt(2 / (9 out_max)) over ring-backed kernels */
    uint64_t seed;
    const int64_t *size; /* N of each ring, in ring order */
} net_rings;

/* Ends building: places parameters, sets ring sizes and alpha, inits the ring maps (bijections
 * only, no tables). Before it, net->ring[i].m is valid, so that sizes can be made from shares. */
CHECK_RESULT status net_finish(net *n, const net_rings *rings, errbuf *err);

/* Draws all initial parameters; element values are functions of (seed, parameter number, element)
 * and, for rings, of (ring_seed, ring number, element). `ret_params` has param_elements floats,
 * `ret_running` running_elements (mean 0, variance 1). */
void net_init_params(const net *n, uint64_t seed, float *ret_params, float *ret_running);

/* Distinct kernels among the ring-backed ones of one shape, after generation with signs ignored
 * where reflect is off: 1.1's count of hidden ties. Compares table entries, not floats. */
CHECK_RESULT status net_count_distinct_kernels(const net *n, int *ret_distinct, errbuf *err);

#endif
