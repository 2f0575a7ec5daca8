/*
 * The fully connected layer, on fp32 memory (products in TF32 where the backend may): a 1x1
 * convolution on 1x1 images, through cuDNN straight on the parameter vector; where cuDNN has no
 * engine, through the direct kernels.
 *
 * cuDNN's plans rely on 16-byte alignment. Matrices of a step have it; the weights and their
 * gradient lie at any element of the parameter vector, so where they are not aligned they go
 * through a copy that is. Which way is taken depends on addresses only, so it is the same in every
 * step; the results are the same bits either way.
 */
#include <stdlib.h>

#include "kernels/cuda/conv_direct.h"
#include "kernels/cuda/cuda_backend.h"

#define DNN_ALIGNMENT 16

struct backend_fc {
    cuda_backend *be;
    fc_desc d;
    direct_conv direct;
    dnn_op *op[3]; /* by dnn_conv_kind; all or none */
    float *matrix; /* an aligned w or dw, for cuDNN */
    float *parts;  /* scratch of the direct dw */
    double *bias_parts;
};

static conv_desc conv_of(const fc_desc *d)
{
    return (conv_desc){
        .x = {d->n, d->in, 1, 1},
        .out = d->out,
        .kh = 1,
        .kw = 1,
        .stride_h = 1,
        .stride_w = 1,
        .dilation = 1,
        .groups = 1,
        .x_layout = LAYOUT_NATIVE,
        .passes = CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS,
    };
}

static size_t matrix_bytes(const backend_fc *f)
{
    return (size_t)f->d.out * (size_t)f->d.in * sizeof(float);
}

/* cuDNN's three ops, or none where one is missing. */
static status create_ops(backend_fc *f, const conv_desc *conv, errbuf *err)
{
    bool all = f->be->dnn != NULL;
    for (int kind = 0; kind < 3 && all; kind++) {
        TRY(dnn_conv_create(f->be->dnn, (dnn_conv_kind)kind, conv, conv->x.c, DNN_FP32,
                            &f->op[kind], err));
        all = f->op[kind] != NULL;
    }
    for (int kind = 0; kind < 3 && !all; kind++)
        dnn_op_destroy(&f->op[kind]);
    if (all)
        return cuda_alloc(&f->be->base, matrix_bytes(f), (void **)&f->matrix, err);
    return STATUS_OK;
}

status cuda_fc_create(backend *be, int lane, const fc_desc *desc, backend_fc **ret, errbuf *err)
{
    status st = STATUS_OK;
    TRY(cuda_check_lane(be, lane, err));
    if (desc->n < 1 || desc->in < 1 || desc->out < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "fc: %d rows of %d to %d", desc->n, desc->in,
                          desc->out);
    const conv_desc conv = conv_of(desc);
    backend_fc *f = calloc(1, sizeof *f);
    if (!f)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for an fc layer");
    f->be = cuda_of(be);
    f->d = *desc;
    TRY_GOTO(direct_conv_init(&f->direct, &conv, desc->in, desc->in, false, err), st, cleanup);
    TRY_GOTO(create_ops(f, &conv, err), st, cleanup);
    TRY_GOTO(cuda_alloc(be, direct_conv_scratch(&f->direct), (void **)&f->parts, err), st, cleanup);
    TRY_GOTO(cuda_alloc(be, direct_bias_scratch(desc->n, desc->out), (void **)&f->bias_parts, err),
             st, cleanup);
    *ret = f;
    f = NULL;
cleanup:
    cuda_fc_destroy(&f);
    return st;
}

void cuda_fc_destroy(backend_fc **f)
{
    if (!f || !*f)
        return;
    backend *be = &(*f)->be->base;
    for (int kind = 0; kind < 3; kind++)
        dnn_op_destroy(&(*f)->op[kind]);
    cuda_release(be, (*f)->matrix);
    cuda_release(be, (*f)->parts);
    cuda_release(be, (*f)->bias_parts);
    free(*f);
    *f = NULL;
}

static bool is_aligned(const void *memory)
{
    return (uintptr_t)memory % DNN_ALIGNMENT == 0;
}

static status run_op(backend_fc *f, int kind, const void *first, const void *second,
                     const void *third)
{
    void *const pointers[] = {(void *)first, (void *)second, (void *)third};
    const status st = dnn_run(f->op[kind], pointers);
    if (st != STATUS_OK)
        return cuda_fail(f->be, st, "fc: %s", dnn_last_error(f->be->dnn));
    return cuda_launched(f->be, "fc");
}

/* The weights where cuDNN may read them. */
static status aligned_weights(backend_fc *f, const float **w)
{
    if (is_aligned(*w))
        return STATUS_OK;
    TRY(cuda_copy(&f->be->base, f->matrix, *w, matrix_bytes(f)));
    *w = f->matrix;
    return STATUS_OK;
}

status cuda_fc_forward(backend_fc *f, const float *x, const float *w, const float *b, float *y)
{
    if (f->op[DNN_CONV_FORWARD] && is_aligned(x) && is_aligned(y)) {
        TRY(aligned_weights(f, &w));
        TRY(run_op(f, DNN_CONV_FORWARD, x, w, y));
    } else {
        TRY(direct_conv_forward(f->be, &f->direct, x, w, y));
    }
    return direct_add_bias(f->be, f->d.n, f->d.out, false, b, y);
}

/* By cuDNN; x, dy and dx are aligned. */
static status backward_ops(backend_fc *f, const float *x, const float *w, const float *dy,
                           float *dx, float *dw)
{
    TRY(aligned_weights(f, &w));
    TRY(run_op(f, DNN_CONV_BACKWARD_DATA, dy, w, dx));
    if (is_aligned(dw))
        return run_op(f, DNN_CONV_BACKWARD_WEIGHTS, x, dy, dw);
    TRY(run_op(f, DNN_CONV_BACKWARD_WEIGHTS, x, dy, f->matrix));
    return cuda_copy(&f->be->base, dw, f->matrix, matrix_bytes(f));
}

status cuda_fc_backward(backend_fc *f, const float *x, const float *w, const float *dy, float *dx,
                        float *dw, float *db)
{
    if (f->op[DNN_CONV_FORWARD] && is_aligned(x) && is_aligned(dy) && is_aligned(dx)) {
        TRY(backward_ops(f, x, w, dy, dx, dw));
    } else {
        TRY(direct_conv_backward_data(f->be, &f->direct, dy, w, dx));
        TRY(direct_conv_backward_weights(f->be, &f->direct, x, dy, dw, f->parts, false));
    }
    return direct_bias_gradient(f->be, f->d.n, f->d.out, false, dy, f->bias_parts, db);
}
