/*
 * The parts of ResNet: BasicBlock, as torchvision names and orders it (METHODS 1.1, 2). Private to
 * net/ and its tests.
 *
 * A block's kernels, its norms and its nodes are made by three calls, so that a block can be used
 * again with the same kernels and its own norms, or with its own of both.
 */
#ifndef RINGMASTER_TRAINER_NET_RESNET_H
#define RINGMASTER_TRAINER_NET_RESNET_H

#include "protocol/spec.h"
#include "trainer/net/graph.h"

typedef struct basic_block_shape {
    int in, out; /* channels */
    int stride;  /* of the first conv and of the shortcut */
} basic_block_shape;

/* Numbers of kernels or norms; `downsample` -1 where the shortcut is the identity. */
typedef struct basic_block_parts {
    int conv1, conv2, downsample;
} basic_block_parts;

static inline bool basic_block_has_downsample(basic_block_shape s)
{
    return s.stride != 1 || s.in != s.out;
}

/* Slots in the paper's order: the shortcut's 1x1 conv, conv1, conv2. `prefix` = "layer2.0". */
CHECK_RESULT status basic_block_add_kernels(net *n, const char *prefix, basic_block_shape s,
                                            int ring, basic_block_parts *ret, errbuf *err);
CHECK_RESULT status basic_block_add_norms(net *n, const char *prefix, basic_block_shape s,
                                          basic_block_parts *ret, errbuf *err);
/* conv-BN-ReLU-conv-BN, plus shortcut, ReLU; the sum and the last ReLU are the second BN's own. */
CHECK_RESULT status basic_block_add_nodes(net *n, const char *prefix, basic_block_shape s,
                                          int input, const basic_block_parts *kernels,
                                          const basic_block_parts *norms, int *ret_tensor,
                                          errbuf *err);

/* Adds rings, nodes and output of the ResNet that the spec names; the caller finishes the net. For
 * block scope, ring "layer<s>" serves all convs of stage s, and a ring-backed stem is the first
 * slot of "layer1". */
CHECK_RESULT status resnet_build(net *n, const spec *s, errbuf *err);

#endif
