/*
 * Convolutions: cuDNN's three passes; a pass that cuDNN has no engine for is done by the direct
 * kernels, which is logged once a shape. Biases and the sums of gradients over the convs of one
 * kernel are our own kernels on either path.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/conv_direct.h"
#include "kernels/cuda/cuda_backend.h"
#include "protocol/log.h"

struct backend_conv {
    cuda_backend *be;
    backend_weights *weights;
    int kernel;
    conv_desc d;
    bool adds;          /* to the weight gradient that an earlier conv makes */
    direct_conv direct; /* of the passes without an op */
    dnn_op *op[3];      /* by dnn_conv_kind; NULL: direct, or not asked for */
    int64_t gradient;   /* elements of dw, padding counted */
    void *added;        /* dw of cuDNN, where it adds */
    float *parts;       /* scratch of the direct dw */
    double *bias_parts; /* scratch of dbias */
};

static const unsigned pass_of[3] = {
    [DNN_CONV_FORWARD] = CONV_FORWARD,
    [DNN_CONV_BACKWARD_DATA] = CONV_BACKWARD_DATA,
    [DNN_CONV_BACKWARD_WEIGHTS] = CONV_BACKWARD_WEIGHTS,
};
static const char *const pass_names[3] = {
    [DNN_CONV_FORWARD] = "forward",
    [DNN_CONV_BACKWARD_DATA] = "backward data",
    [DNN_CONV_BACKWARD_WEIGHTS] = "backward weights",
};

/* ---- creating ---- */

/* Channels a group of the weights in memory. */
static int weight_channels(const conv_desc *d)
{
    if (d->groups > 1)
        return d->x.c / d->groups;
    return d->x_layout == LAYOUT_IMAGE ? cuda_image_channels(d->x.c) : d->x.c;
}

static status check_desc(backend_weights *w, int kernel, const conv_desc *d, errbuf *err)
{
    bool unused;
    if (d->groups < 1 || d->x.c % d->groups != 0 || d->out % d->groups != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%d groups do not divide a conv's %d input and %d output channels",
                          d->groups, d->x.c, d->out);
    /* without passes: is there such a kernel, and may it still be used? */
    TRY(cuda_weights_claim(w, kernel, weight_channels(d), 0, &unused, err));
    const kernel_shape k = cuda_weights_shape(w, kernel);
    if (k.out != d->out || k.in != d->x.c / d->groups || k.kh != d->kh || k.kw != d->kw)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv %dx%dx%dx%d does not fit kernel %d, which is %dx%dx%dx%d", d->out,
                          d->x.c / d->groups, d->kh, d->kw, kernel, k.out, k.in, k.kh, k.kw);
    if (d->stride_h < 1 || d->stride_w < 1 || d->dilation < 1 || conv_output(d).h < 1 ||
        conv_output(d).w < 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a %dx%d conv (stride %d, dilation %d) has no output on a %dx%d input",
                          d->kh, d->kw, d->stride_h, d->dilation, d->x.h, d->x.w);
    return STATUS_OK;
}

/* Whether this is the first time that the backend meets the line. */
static bool is_new_line(cuda_backend *be, const char *line)
{
    const size_t count = sizeof be->noted / sizeof *be->noted;
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *line; line++)
        hash = (hash ^ (unsigned char)*line) * 16777619u;
    hash += hash == 0;
    for (size_t i = 0; i < count; i++) {
        if (be->noted[i] == hash)
            return false;
        if (be->noted[i] == 0) {
            be->noted[i] = hash;
            return true;
        }
    }
    return false; /* enough was said */
}

static void log_slower_path(cuda_backend *be, const conv_desc *d, int kind, const char *why)
{
    char line[600];
    struct log log;
    snprintf(line, sizeof line,
             "conv %s of %dx%dx%dx%d (NCHW), %d channels out, %dx%d, stride %d, dilation %d, "
             "%d groups, is done by the slower direct kernels: %s",
             pass_names[kind], d->x.n, d->x.c, d->x.h, d->x.w, d->out, d->kh, d->kw, d->stride_h,
             d->dilation, d->groups, why);
    if (!is_new_line(be, line))
        return;
    if (log_init(&log, -1, NULL) == STATUS_OK)
        log_write(&log, LOG_LEVEL_WARN, "%s", line);
}

/* cuDNN's op, or the scratch of the direct kernels. */
static status create_pass(backend_conv *c, int kind, errbuf *err)
{
    backend *be = &c->be->base;
    const bool is_gradient = kind == DNN_CONV_BACKWARD_WEIGHTS;
    /* cuDNN knows padding channels of whole convs only */
    const bool may_dnn = c->be->dnn && (c->d.groups == 1 || c->direct.x_pitch == c->d.x.c);
    if (may_dnn) {
        TRY(dnn_conv_create(c->be->dnn, (dnn_conv_kind)kind, &c->d, c->direct.x_pitch,
                            cuda_io_type(c->be), &c->op[kind], err));
        if (!c->op[kind])
            log_slower_path(c->be, &c->d, kind, dnn_missing(c->be->dnn));
    }
    if (is_gradient && !c->op[kind])
        return cuda_alloc(be, direct_conv_scratch(&c->direct), (void **)&c->parts, err);
    if (is_gradient && c->adds)
        return cuda_alloc(be, (size_t)c->gradient * cuda_element(c->be), &c->added, err);
    return STATUS_OK;
}

static status create_passes(backend_conv *c, errbuf *err)
{
    const shape y = c->direct.y;
    for (int kind = 0; kind < 3; kind++)
        if (c->d.passes & pass_of[kind])
            TRY(create_pass(c, kind, err));
    if (c->d.bias && (c->d.passes & CONV_BACKWARD_WEIGHTS))
        return cuda_alloc(&c->be->base, direct_bias_scratch((int64_t)y.n * y.h * y.w, y.c),
                          (void **)&c->bias_parts, err);
    return STATUS_OK;
}

status cuda_conv_create(backend_weights *w, int kernel, int lane, const conv_desc *desc,
                        backend_conv **ret, errbuf *err)
{
    status st = STATUS_OK;
    cuda_backend *be = cuda_of(cuda_weights_backend(w));
    TRY(cuda_check_lane(&be->base, lane, err));
    TRY(check_desc(w, kernel, desc, err));
    const bool image = desc->x_layout == LAYOUT_IMAGE;
    const int x_pitch = image ? cuda_image_channels(desc->x.c) : desc->x.c;
    const int w_pitch = weight_channels(desc);
    bool first = true;
    backend_conv *c = calloc(1, sizeof *c);
    if (!c)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a conv");
    c->be = be;
    c->weights = w;
    c->kernel = kernel;
    c->d = *desc;
    c->gradient = (int64_t)desc->out * desc->kh * desc->kw * w_pitch;
    TRY_GOTO(direct_conv_init(&c->direct, desc, x_pitch, w_pitch, cuda_is_bf16(be), err), st,
             cleanup);
    TRY_GOTO(cuda_weights_claim(w, kernel, w_pitch, desc->passes, &first, err), st, cleanup);
    c->adds = !first;
    TRY_GOTO(create_passes(c, err), st, cleanup);
    *ret = c;
    c = NULL;
cleanup:
    cuda_conv_destroy(&c);
    return st;
}

void cuda_conv_destroy(backend_conv **c)
{
    if (!c || !*c)
        return;
    backend *be = &(*c)->be->base;
    for (int kind = 0; kind < 3; kind++)
        dnn_op_destroy(&(*c)->op[kind]);
    cuda_release(be, (*c)->added);
    cuda_release(be, (*c)->parts);
    cuda_release(be, (*c)->bias_parts);
    free(*c);
    *c = NULL;
}

/* ---- running ---- */

static int64_t output_rows(const backend_conv *c)
{
    const shape y = c->direct.y;
    return (int64_t)y.n * y.h * y.w;
}

static status run_op(backend_conv *c, int kind, const void *first, const void *second,
                     const void *third)
{
    void *const pointers[] = {(void *)first, (void *)second, (void *)third};
    const status st = dnn_run(c->op[kind], pointers);
    if (st != STATUS_OK)
        return cuda_fail(c->be, st, "conv %s: %s", pass_names[kind], dnn_last_error(c->be->dnn));
    return cuda_launched(c->be, "conv");
}

status cuda_conv_forward(backend_conv *c, const float *x, const float *bias, float *y)
{
    const void *w = cuda_weights_value(c->weights, c->kernel);
    if (c->op[DNN_CONV_FORWARD])
        TRY(run_op(c, DNN_CONV_FORWARD, x, w, y));
    else
        TRY(direct_conv_forward(c->be, &c->direct, x, w, y));
    if (!c->d.bias)
        return STATUS_OK;
    return direct_add_bias(c->be, output_rows(c), c->d.out, cuda_is_bf16(c->be), bias, y);
}

status cuda_conv_backward_data(backend_conv *c, const float *dy, float *dx)
{
    const void *w = cuda_weights_value(c->weights, c->kernel);
    if (c->op[DNN_CONV_BACKWARD_DATA])
        return run_op(c, DNN_CONV_BACKWARD_DATA, dy, w, dx);
    return direct_conv_backward_data(c->be, &c->direct, dy, w, dx);
}

static status weight_gradient(backend_conv *c, const float *x, const float *dy)
{
    void *dw = cuda_weights_grad(c->weights, c->kernel);
    if (!c->op[DNN_CONV_BACKWARD_WEIGHTS])
        return direct_conv_backward_weights(c->be, &c->direct, x, dy, dw, c->parts, c->adds);
    TRY(run_op(c, DNN_CONV_BACKWARD_WEIGHTS, x, dy, c->adds ? c->added : dw));
    if (!c->adds)
        return STATUS_OK;
    return direct_add(c->be, c->gradient, cuda_is_bf16(c->be), c->added, dw);
}

status cuda_conv_backward_weights(backend_conv *c, const float *x, const float *dy, float *dbias)
{
    TRY(weight_gradient(c, x, dy));
    if (!dbias)
        return STATUS_OK;
    return direct_bias_gradient(c->be, output_rows(c), c->d.out, cuda_is_bf16(c->be), dy,
                                c->bias_parts, dbias);
}
