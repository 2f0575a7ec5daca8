/*
 * A batch norm as bn.c and bn_choice.c see it.
 */
#ifndef RINGMASTER_KERNELS_CUDA_BN_OBJECT_H
#define RINGMASTER_KERNELS_CUDA_BN_OBJECT_H

#include "kernels/cuda/bn_kernels.h"
#include "kernels/cuda/cuda_backend.h"

/* Whose kernels run. cuDNN's backward needs the mask of cuDNN's forward. */
typedef enum bn_sides {
    BN_CUDNN, /* cuDNN's, ours where it has no engine */
    BN_MIXED, /* forward as BN_CUDNN, backward ours, with y as mask */
    BN_OWN,   /* ours */
    BN_SIDES
} bn_sides;

struct backend_bn {
    cuda_backend *be;
    bn_desc d;
    bn_layout layout;
    bn_sides sides;
    dnn_op *forward;     /* NULL: ours */
    dnn_op *backward[2]; /* with one and with two gradients; NULL: ours */
    void *mask;          /* NULL without ReLU, or where y is the mask */
    float *aligned;      /* [BN_VECTORS][pitch], with cuDNN only */
    float *partial;      /* scratch of our own kernels */
};

/* ---- bn_choice.c ---- */

/* Whether it is the first of its kind and shape. */
bool bn_is_new(const backend_bn *b);
/* What the plan that is followed says of such a batch norm, or what was chosen for one before;
 * false: nothing yet, then *ret is the default. */
bool bn_chosen(const backend_bn *b, bn_sides *ret);
/* The fastest, timed on scratch memory; the default where there is not enough of it. All ops and
 * memory are there. */
bn_sides bn_fastest(backend_bn *b);
/* Remembers b->sides for the next of such batch norms, and for cuda_describe. */
CHECK_RESULT status bn_choose(const backend_bn *b, errbuf *err);

#endif
