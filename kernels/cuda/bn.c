/*
 * Batch norm: cuDNN's fused graphs where it has an engine, else our own kernels (bn_kernels.cu,
 * bn_backward.cu), for any number of channels. Evaluation always uses ours.
 *
 * cuDNN makes mean and 1/sqrt(var + eps); the statistics of the step are made of them by a small
 * kernel of ours. Its plans rely on 16-byte alignment: activations have it, but gamma, beta and
 * their gradients lie at any element of the parameter vector, so where they are not aligned they go
 * through a copy that is. Which way is taken depends on addresses only, so it is the same in every
 * step; the results are the same bits either way.
 *
 * bn_choice.c says which of both runs; evaluation is not part of it.
 *
 * The mask of the ReLU stays in the object from forward to backward: bits that only the side that
 * made them, cuDNN or our kernels, can read. Where backward is ours and forward is cuDNN's, y > 0
 * is the mask.
 */
#include <stdlib.h>

#include "kernels/cuda/bn_object.h"
#include "protocol/log.h"

#define DNN_ALIGNMENT    16
#define DNN_MAX_POINTERS 12

/* Aligned vectors of C floats each. */
enum bn_vector {
    BN_GAMMA,
    BN_BETA,
    BN_MEAN,
    BN_INVERSE,
    BN_DGAMMA,
    BN_DBETA,
    BN_VECTORS
};

/* ---- creating ---- */

/* Once a shape. */
static void log_own_kernels(const backend_bn *b)
{
    struct log log;
    if (bn_is_new(b) && log_init(&log, -1, NULL) == STATUS_OK)
        log_write(&log, LOG_LEVEL_WARN, "a batch norm is done by our own kernels: %s",
                  dnn_missing(b->be->dnn));
}

static status create_op(backend_bn *b, dnn_bn_kind kind, bool two, dnn_op **ret, errbuf *err)
{
    TRY(dnn_bn_create(b->be->dnn, kind, &b->d, two, cuda_io_type(b->be), ret, err));
    if (!*ret)
        log_own_kernels(b);
    return STATUS_OK;
}

/* All that there are, also where the plan has others: a plan that is followed is described with the
 * same engines as when it was made. */
static status create_ops(backend_bn *b, errbuf *err)
{
    if (!b->be->dnn)
        return STATUS_OK;
    TRY(create_op(b, DNN_BN_FORWARD, false, &b->forward, err));
    if (b->d.gradients < 0 || (b->d.relu && !b->forward))
        return STATUS_OK;
    if (b->d.gradients != 2)
        TRY(create_op(b, DNN_BN_BACKWARD, false, &b->backward[0], err));
    if (b->d.gradients != 1)
        TRY(create_op(b, DNN_BN_BACKWARD, true, &b->backward[1], err));
    return STATUS_OK;
}

static size_t vector_pitch(const backend_bn *b)
{
    const size_t floats = DNN_ALIGNMENT / sizeof(float);
    return ((size_t)b->d.x.c + floats - 1) / floats * floats;
}

static status create_memory(backend_bn *b, errbuf *err)
{
    backend *be = &b->be->base;
    const size_t bits = bn_mask_bytes(&b->layout);
    const size_t mask = b->forward ? dnn_mask_bytes(b->d.x) : bits;
    if (b->d.relu && mask > 0)
        TRY(cuda_alloc(be, mask > bits ? mask : bits, &b->mask, err));
    if (b->forward || b->backward[0] || b->backward[1])
        TRY(cuda_alloc(be, BN_VECTORS * vector_pitch(b) * sizeof(float), (void **)&b->aligned,
                       err));
    return cuda_alloc(be, bn_partial_bytes(&b->layout), (void **)&b->partial, err);
}

/* What the choice leaves without use. */
static void release_rest(backend_bn *b)
{
    if (b->sides == BN_OWN)
        dnn_op_destroy(&b->forward);
    for (int two = 0; two < 2 && b->sides != BN_CUDNN; two++)
        dnn_op_destroy(&b->backward[two]);
    const bool has_one = b->backward[0] || b->d.gradients == 2 || b->d.gradients < 0;
    const bool has_two = b->backward[1] || b->d.gradients == 1 || b->d.gradients < 0;
    if (b->forward && has_one && has_two) {
        cuda_release(&b->be->base, b->partial);
        b->partial = NULL;
    }
}

static status create_parts(backend_bn *b, errbuf *err)
{
    const bool chosen = bn_chosen(b, &b->sides);
    TRY(create_ops(b, err));
    TRY(create_memory(b, err));
    const bool has_dnn = b->forward || b->backward[0] || b->backward[1];
    if (!chosen && !has_dnn)
        b->sides = BN_OWN;
    else if (!chosen && b->be->base.options.tune)
        b->sides = bn_fastest(b);
    release_rest(b);
    return bn_choose(b, err);
}

status cuda_bn_create(backend *be, int lane, const bn_desc *desc, backend_bn **ret, errbuf *err)
{
    status st = STATUS_OK;
    TRY(cuda_check_lane(be, lane, err));
    const shape x = desc->x;
    if (x.n < 1 || x.c < 1 || x.h < 1 || x.w < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "batch norm of %dx%dx%dx%d (NCHW)", x.n, x.c, x.h,
                          x.w);
    backend_bn *b = calloc(1, sizeof *b);
    if (!b)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a batch norm");
    b->be = cuda_of(be);
    b->d = *desc;
    b->layout = bn_layout_of(x);
    TRY_GOTO(create_parts(b, err), st, cleanup);
    *ret = b;
    b = NULL;
cleanup:
    cuda_bn_destroy(&b);
    return st;
}

void cuda_bn_destroy(backend_bn **b)
{
    if (!b || !*b)
        return;
    backend *be = &(*b)->be->base;
    dnn_op_destroy(&(*b)->forward);
    dnn_op_destroy(&(*b)->backward[0]);
    dnn_op_destroy(&(*b)->backward[1]);
    cuda_release(be, (*b)->mask);
    cuda_release(be, (*b)->aligned);
    cuda_release(be, (*b)->partial);
    free(*b);
    *b = NULL;
}

/* ---- cuDNN ---- */

typedef struct pointer_list {
    void *at[DNN_MAX_POINTERS];
    int count;
} pointer_list;

static void push(pointer_list *l, const void *pointer)
{
    ASSERT(l->count < DNN_MAX_POINTERS);
    l->at[l->count++] = (void *)pointer;
}

static status run_op(backend_bn *b, dnn_op *op, const pointer_list *l, const char *what)
{
    const status st = dnn_run(op, l->at);
    if (st != STATUS_OK)
        return cuda_fail(b->be, st, "%s: %s", what, dnn_last_error(b->be->dnn));
    return cuda_launched(b->be, what);
}

static bool is_aligned(const float *p)
{
    return (uintptr_t)p % DNN_ALIGNMENT == 0;
}

/* The vector itself where it is aligned, else the object's own. */
static float *aligned(const backend_bn *b, const float *p, enum bn_vector which)
{
    return is_aligned(p) ? (float *)p : b->aligned + (size_t)which * vector_pitch(b);
}

/* Copies are made where the two differ. */
static bool add_copy(bn_copies *c, int place, const float *from, float *to)
{
    c->from[place] = from;
    c->to[place] = from == to ? NULL : to;
    return from != to;
}

static status forward_dnn(backend_bn *b, const float *x, const float *residual, const float *gamma,
                          const float *beta, float *y, float *saved, float *stats)
{
    float *g = aligned(b, gamma, BN_GAMMA), *bias = aligned(b, beta, BN_BETA);
    float *mean = aligned(b, saved, BN_MEAN);
    float *inverse = aligned(b, saved + b->d.x.c, BN_INVERSE);
    bn_copies in = {0};
    pointer_list l = {0};
    bool copies = add_copy(&in, 0, gamma, g);
    copies |= add_copy(&in, 1, beta, bias);
    if (copies)
        TRY(bn_run_copies(b->be, &b->layout, &in));
    push(&l, x);
    push(&l, g);
    push(&l, bias);
    if (b->d.residual)
        push(&l, residual);
    push(&l, y);
    push(&l, mean);
    push(&l, inverse);
    if (b->d.relu)
        push(&l, b->mask);
    TRY(run_op(b, b->forward, &l, "batch norm"));
    return bn_run_finish(b->be, &b->layout, b->d.eps, mean, inverse, saved, stats);
}

static status backward_dnn(backend_bn *b, dnn_op *op, const bn_gradient *a)
{
    const float *inverse_saved = a->saved + b->d.x.c;
    float *gamma = aligned(b, a->gamma, BN_GAMMA), *mean = aligned(b, a->saved, BN_MEAN);
    float *inverse = aligned(b, inverse_saved, BN_INVERSE);
    float *dgamma = aligned(b, a->dgamma, BN_DGAMMA), *dbeta = aligned(b, a->dbeta, BN_DBETA);
    const bool writes_dz = b->d.residual && (b->d.relu || a->dy2);
    bn_copies in = {0}, out = {0};
    pointer_list l = {0};
    bool copies = add_copy(&in, 0, a->gamma, gamma);
    copies |= add_copy(&in, 1, a->saved, mean);
    copies |= add_copy(&in, 2, inverse_saved, inverse);
    if (copies)
        TRY(bn_run_copies(b->be, &b->layout, &in));
    push(&l, a->x);
    push(&l, gamma);
    push(&l, mean);
    push(&l, inverse);
    push(&l, a->dy1);
    if (a->dy2)
        push(&l, a->dy2);
    if (b->d.relu)
        push(&l, b->mask);
    if (writes_dz)
        push(&l, a->dz);
    push(&l, a->dx);
    push(&l, dgamma);
    push(&l, dbeta);
    TRY(run_op(b, op, &l, "batch norm backward"));
    copies = add_copy(&out, 0, dgamma, a->dgamma);
    copies |= add_copy(&out, 1, dbeta, a->dbeta);
    if (copies)
        TRY(bn_run_copies(b->be, &b->layout, &out));
    if (writes_dz || !b->d.residual || a->dz == a->dy1)
        return STATUS_OK;
    return cuda_copy(&b->be->base, a->dz, a->dy1,
                     (size_t)shape_elements(b->d.x) * cuda_element(b->be));
}

/* ---- the ops ---- */

/* While a batch norm is timed it has ops that it does not use. */
static dnn_op *forward_op(const backend_bn *b)
{
    return b->sides == BN_OWN ? NULL : b->forward;
}

/* The bits that our forward writes and our backward reads; NULL: y is the mask. */
static uint8_t *own_mask(const backend_bn *b)
{
    return forward_op(b) || bn_mask_bytes(&b->layout) == 0 ? NULL : b->mask;
}

status cuda_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                             const float *gamma, const float *beta, float *y, float *saved,
                             float *stats)
{
    if (forward_op(b))
        return forward_dnn(b, x, residual, gamma, beta, y, saved, stats);
    TRY(bn_run_statistics(b->be, &b->layout, b->d.eps, x, b->partial, saved, stats));
    const bn_apply a = {.relu = b->d.relu,
                        .residual = b->d.residual,
                        .gamma = gamma,
                        .beta = beta,
                        .mean = saved,
                        .deviation = saved + b->d.x.c,
                        .mask = own_mask(b)};
    return bn_run_apply(b->be, &b->layout, &a, x, residual, y);
}

status cuda_bn_forward_eval(backend_bn *b, const float *x, const float *residual,
                            const float *gamma, const float *beta, const float *running, float *y)
{
    const bn_apply a = {.relu = b->d.relu,
                        .residual = b->d.residual,
                        .variance = true,
                        .eps = b->d.eps,
                        .gamma = gamma,
                        .beta = beta,
                        .mean = running,
                        .deviation = running + b->d.x.c};
    return bn_run_apply(b->be, &b->layout, &a, x, residual, y);
}

status cuda_bn_backward(backend_bn *b, const float *x, const float *y, const float *gamma,
                        const float *saved, const float *dy1, const float *dy2, float *dz,
                        float *dx, float *dgamma, float *dbeta)
{
    dnn_op *op = b->sides == BN_CUDNN ? b->backward[dy2 ? 1 : 0] : NULL;
    const bn_gradient a = {.x = x,
                           .dy1 = dy1,
                           .dy2 = dy2,
                           .y = y,
                           .mask = own_mask(b),
                           .relu = b->d.relu,
                           .gamma = gamma,
                           .saved = saved,
                           .dz = dz ? dz : dx, /* read again only by who writes dx there */
                           .dx = dx,
                           .dgamma = dgamma,
                           .dbeta = dbeta,
                           .partial = b->partial};
    ASSERT(dz || !b->d.residual);
    return op ? backward_dnn(b, op, &a) : bn_run_backward(b->be, &b->layout, &a);
}
