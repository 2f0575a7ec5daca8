/*
 * The graphs of dnn.h as cuDNN's descriptors.
 *
 * Tensors are NHWC, filters KRSC; a per-channel tensor is 1 x C x 1 x 1 in fp32. What one operation
 * hands to the next without memory (a virtual tensor) has the type of the activations: with fp32
 * there the heuristics list batch norms for bf16 of which none builds. Sums are fp32 throughout,
 * and the scaled weight gradient stays fp32 from the sum on.
 *
 * A NaN stays one in y: the compiled ReLU asks for "greater or unordered" (read in its code; the
 * attribute that asks for it changes nothing).
 */
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/dnn_internal.h"

typedef cudnnBackendDescriptor_t descriptor;

/* ---- building, with the first failure kept ---- */

static void note_failure(dnn_graph *g, cudnnStatus_t failed, const char *what)
{
    if (failed == CUDNN_STATUS_SUCCESS || g->failed != CUDNN_STATUS_SUCCESS)
        return;
    char text[DNN_WHY_SIZE - 60];
    g->failed = failed;
    dnn_explain(failed, text, sizeof text);
    snprintf(g->why, sizeof g->why, "%.40s: %s", what, text);
}

static descriptor create(dnn_graph *g, cudnnBackendDescriptorType_t type)
{
    descriptor made = NULL;
    if (g->failed != CUDNN_STATUS_SUCCESS)
        return NULL;
    ASSERT(g->descriptors < DNN_MAX_DESCRIPTORS);
    cudnnStatus_t st = cudnnBackendCreateDescriptor(type, &made);
    if (st == CUDNN_STATUS_SUCCESS)
        g->owned[g->descriptors++] = made;
    note_failure(g, st, "a descriptor");
    return made;
}

static void set(dnn_graph *g, descriptor to, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *value)
{
    if (g->failed == CUDNN_STATUS_SUCCESS)
        note_failure(g, dnn_set(to, name, type, count, value), "an attribute");
}

static void link_to(dnn_graph *g, descriptor to, cudnnBackendAttributeName_t name, descriptor what)
{
    set(g, to, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &what);
}

static void finish(dnn_graph *g, descriptor what, const char *name)
{
    if (g->failed == CUDNN_STATUS_SUCCESS)
        note_failure(g, cudnnBackendFinalize(what), name);
}

/* ---- tensors ---- */

enum tensor_role {
    GIVEN,   /* memory of dnn_run, in the order of the calls */
    VIRTUAL, /* between two operations, without memory */
    SCALAR   /* one value on the host */
};

static cudnnDataType_t data_type(dnn_type type)
{
    return type == DNN_BF16   ? CUDNN_DATA_BFLOAT16
           : type == DNN_FP16 ? CUDNN_DATA_HALF
                              : CUDNN_DATA_FLOAT;
}

static size_t tensor_bytes(shape s, cudnnDataType_t type)
{
    size_t n = (size_t)shape_elements(s);
    return type == CUDNN_DATA_BOOLEAN ? (n + 7) / 8 : type == CUDNN_DATA_FLOAT ? 4 * n : 2 * n;
}

static descriptor tensor(dnn_graph *g, shape s, cudnnDataType_t type, enum tensor_role role)
{
    int64_t dims[] = {s.n, s.c, s.h, s.w};
    int64_t strides[] = {(int64_t)s.c * s.h * s.w, 1, (int64_t)s.w * s.c, s.c};
    int64_t alignment = role == SCALAR ? (int64_t)sizeof(float) : DNN_ALIGNMENT, id;
    bool yes = true;
    dnn_binding *b = &g->binding;
    if (role == GIVEN) {
        ASSERT(b->pointers < DNN_MAX_POINTERS);
        b->bytes[b->pointers++] = tensor_bytes(s, type);
        id = b->pointers;
    } else {
        id = DNN_MAX_POINTERS + ++g->last_id;
    }
    descriptor t = create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (role == VIRTUAL)
        set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (role == SCALAR)
        set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    finish(g, t, "a tensor");
    return t;
}

static descriptor scalar(dnn_graph *g, float value)
{
    dnn_binding *b = &g->binding;
    ASSERT(b->scalars < DNN_MAX_SCALARS);
    descriptor t = tensor(g, (shape){1, 1, 1, 1}, CUDNN_DATA_FLOAT, SCALAR);
    b->scalar_id[b->scalars] = DNN_MAX_POINTERS + g->last_id;
    b->scalar[b->scalars++] = value;
    return t;
}

/* ---- operations ---- */

static void add_operation(dnn_graph *g, descriptor op, const char *name)
{
    finish(g, op, name);
    ASSERT(g->operations < DNN_MAX_OPERATIONS);
    g->operation[g->operations++] = op;
}

/* y = mode(x, b); b NULL where the mode takes one input. */
static void pointwise(dnn_graph *g, cudnnPointwiseMode_t mode, descriptor x, descriptor b,
                      descriptor y)
{
    cudnnDataType_t math = CUDNN_DATA_FLOAT;
    descriptor how = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finish(g, how, "a pointwise mode");
    descriptor op = create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    link_to(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    link_to(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b)
        link_to(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    link_to(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_operation(g, op, "a pointwise operation");
}

/* The graph of what was added. */
static status close_graph(const dnn *d, dnn_graph *g, errbuf *err)
{
    descriptor graph = create(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operations,
        g->operation);
    if (d->handle)
        set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &d->handle);
    finish(g, graph, "the graph");
    if (g->failed == CUDNN_STATUS_SUCCESS)
        g->graph = graph;
    else if (!dnn_is_unsupported(g->failed))
        return errbuf_set(err, STATUS_ENVIRONMENT, "cuDNN refuses %s: %s", g->key, g->why);
    return STATUS_OK;
}

void dnn_graph_fini(dnn_graph *g)
{
    while (g->descriptors > 0)
        cudnnBackendDestroyDescriptor(g->owned[--g->descriptors]);
    g->graph = NULL;
}

/* ---- convolution ---- */

static const char *type_name(const dnn *d, dnn_type type)
{
    return type == DNN_BF16   ? "bf16"
           : type == DNN_FP16 ? "fp16"
           : d->options.tf32  ? "tf32"
                              : "fp32";
}

static descriptor convolution(dnn_graph *g, const conv_desc *c)
{
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    int64_t dims = 2, stride[] = {c->stride_h, c->stride_w}, pad[] = {c->pad_h, c->pad_w};
    int64_t dilation[] = {c->dilation, c->dilation};
    descriptor conv = create(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    finish(g, conv, "a convolution");
    return conv;
}

static void conv_operation(dnn_graph *g, dnn_conv_kind kind, descriptor conv, descriptor x,
                           descriptor w, descriptor y)
{
    static const struct {
        cudnnBackendDescriptorType_t operation;
        cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
    } names[] = {
        [DNN_CONV_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
        [DNN_CONV_BACKWARD_DATA] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                                    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
        [DNN_CONV_BACKWARD_WEIGHTS] =
            {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
    };
    float one = 1, zero = 0;
    descriptor op = create(g, names[kind].operation);
    link_to(g, op, names[kind].conv, conv);
    link_to(g, op, names[kind].x, x);
    link_to(g, op, names[kind].w, w);
    link_to(g, op, names[kind].y, y);
    set(g, op, names[kind].alpha, CUDNN_TYPE_FLOAT, 1, &one);
    set(g, op, names[kind].beta, CUDNN_TYPE_FLOAT, 1, &zero);
    add_operation(g, op, "the convolution");
}

/* The convolution's own pass, and what follows it in the same graph. Tensors are made in the order
 * of dnn_run's pointers. */
static void conv_graph(dnn_graph *g, dnn_conv_kind kind, const conv_desc *c, shape x, shape w,
                       cudnnDataType_t t)
{
    const shape y = conv_output(c), one = {1, 1, 1, 1};
    descriptor conv = convolution(g, c), tensor_x, tensor_w, tensor_y, other, out;
    switch (kind) {
    case DNN_CONV_FORWARD:
        tensor_x = tensor(g, x, t, GIVEN);
        tensor_w = tensor(g, w, t, GIVEN);
        tensor_y = tensor(g, y, t, GIVEN);
        conv_operation(g, kind, conv, tensor_x, tensor_w, tensor_y);
        break;
    case DNN_CONV_BACKWARD_DATA:
    case DNN_CONV_BACKWARD_DATA_ADD:
        tensor_y = tensor(g, y, t, GIVEN);
        tensor_w = tensor(g, w, t, GIVEN);
        other = kind == DNN_CONV_BACKWARD_DATA_ADD ? tensor(g, x, t, GIVEN) : NULL;
        out = tensor(g, x, t, GIVEN);
        tensor_x = other ? tensor(g, x, t, VIRTUAL) : out;
        conv_operation(g, DNN_CONV_BACKWARD_DATA, conv, tensor_x, tensor_w, tensor_y);
        if (other)
            pointwise(g, CUDNN_POINTWISE_ADD, tensor_x, other, out);
        break;
    case DNN_CONV_BACKWARD_WEIGHTS:
        tensor_x = tensor(g, x, t, GIVEN);
        tensor_y = tensor(g, y, t, GIVEN);
        tensor_w = tensor(g, w, t, GIVEN);
        conv_operation(g, kind, conv, tensor_x, tensor_w, tensor_y);
        break;
    case DNN_CONV_BACKWARD_WEIGHTS_SCALED:
        tensor_x = tensor(g, x, t, GIVEN);
        tensor_y = tensor(g, y, t, GIVEN);
        other = tensor(g, one, CUDNN_DATA_FLOAT, GIVEN);
        out = tensor(g, w, CUDNN_DATA_FLOAT, GIVEN);
        tensor_w = tensor(g, w, CUDNN_DATA_FLOAT, VIRTUAL);
        conv_operation(g, DNN_CONV_BACKWARD_WEIGHTS, conv, tensor_x, tensor_w, tensor_y);
        pointwise(g, CUDNN_POINTWISE_MUL, tensor_w, other, out);
        break;
    }
}

status dnn_graph_conv(const dnn *d, dnn_conv_kind kind, const conv_desc *c, int channels,
                      dnn_type type, dnn_graph *g, errbuf *err)
{
    static const char *const kinds[] = {"forward", "backward_data", "backward_weights",
                                        "backward_data+add", "backward_weights*scale"};
    const shape x = {c->x.n, channels, c->x.h, c->x.w};
    const shape w = {c->out, channels / c->groups, c->kh, c->kw};
    *g = (dnn_graph){.strict = type == DNN_FP32 && !d->options.tf32};
    snprintf(g->key, sizeof g->key, "conv.%s %s n%d c%d h%d w%d k%d r%dx%d s%dx%d p%dx%d d%d g%d",
             kinds[kind], type_name(d, type), x.n, x.c, x.h, x.w, c->out, c->kh, c->kw, c->stride_h,
             c->stride_w, c->pad_h, c->pad_w, c->dilation, c->groups);
    conv_graph(g, kind, c, x, w, data_type(type));
    return close_graph(d, g, err);
}

/* ---- batch norm ---- */

static void bn_key(const dnn *d, const char *kind, const bn_desc *b, bool two, dnn_type type,
                   dnn_graph *g)
{
    snprintf(g->key, sizeof g->key, "bn.%s%s%s%s %s n%d c%d h%d w%d", kind,
             b->residual ? "+add" : "", two ? "+two" : "", b->relu ? "+relu" : "",
             type_name(d, type), b->x.n, b->x.c, b->x.h, b->x.w);
}

/* x, gamma, beta, [residual,] y, mean, inverse deviation, [mask] */
static void bn_forward(dnn_graph *g, const bn_desc *b, cudnnDataType_t t)
{
    cudnnBackendNormMode_t mode = CUDNN_BATCH_NORM;
    cudnnBackendNormFwdPhase_t phase = CUDNN_NORM_FWD_TRAINING;
    const shape per_channel = {1, b->x.c, 1, 1};
    descriptor op = create(g, CUDNN_BACKEND_OPERATION_NORM_FORWARD_DESCRIPTOR);
    set(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_MODE, CUDNN_TYPE_NORM_MODE, 1, &mode);
    set(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_PHASE, CUDNN_TYPE_NORM_FWD_PHASE, 1, &phase);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_XDESC, tensor(g, b->x, t, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_SCALE_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_BIAS_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_EPSILON_DESC, scalar(g, b->eps));
    descriptor residual = b->residual ? tensor(g, b->x, t, GIVEN) : NULL;
    descriptor y = tensor(g, b->x, t, GIVEN);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_MEAN_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_INV_VARIANCE_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    descriptor normal = residual || b->relu ? tensor(g, b->x, t, VIRTUAL) : y;
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_FWD_YDESC, normal);
    add_operation(g, op, "the batch norm");
    if (residual) {
        descriptor sum = b->relu ? tensor(g, b->x, t, VIRTUAL) : y;
        pointwise(g, CUDNN_POINTWISE_ADD, normal, residual, sum);
        normal = sum;
    }
    if (b->relu) {
        pointwise(g, CUDNN_POINTWISE_RELU_FWD, normal, NULL, y);
        /* of y, not of what comes before: the engines want one reader of each virtual tensor */
        pointwise(g, CUDNN_POINTWISE_CMP_GT, y, scalar(g, 0),
                  tensor(g, b->x, CUDNN_DATA_BOOLEAN, GIVEN));
    }
}

/* x, gamma, mean, inverse deviation, dy1, [dy2,] [mask,] [dz,] dx, dgamma, dbeta */
static void bn_backward(dnn_graph *g, const bn_desc *b, bool two, cudnnDataType_t t)
{
    cudnnBackendNormMode_t mode = CUDNN_BATCH_NORM;
    const shape per_channel = {1, b->x.c, 1, 1};
    descriptor x = tensor(g, b->x, t, GIVEN);
    descriptor gamma = tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN);
    descriptor mean = tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN);
    descriptor inverse = tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN);
    descriptor dz = tensor(g, b->x, t, GIVEN); /* dy1 so far */
    descriptor second = two ? tensor(g, b->x, t, GIVEN) : NULL;
    descriptor mask = b->relu ? tensor(g, b->x, CUDNN_DATA_BOOLEAN, GIVEN) : NULL;
    descriptor out = two || mask ? tensor(g, b->x, t, b->residual ? GIVEN : VIRTUAL) : NULL;
    if (two) {
        descriptor sum = mask ? tensor(g, b->x, t, VIRTUAL) : out;
        pointwise(g, CUDNN_POINTWISE_ADD, dz, second, sum);
        dz = sum;
    }
    if (mask) {
        pointwise(g, CUDNN_POINTWISE_MUL, dz, mask, out);
        dz = out;
    }
    descriptor op = create(g, CUDNN_BACKEND_OPERATION_NORM_BACKWARD_DESCRIPTOR);
    set(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_MODE, CUDNN_TYPE_NORM_MODE, 1, &mode);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_XDESC, x);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_SCALE_DESC, gamma);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_MEAN_DESC, mean);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_INV_VARIANCE_DESC, inverse);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_DYDESC, dz);
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_DXDESC, tensor(g, b->x, t, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_DSCALE_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    link_to(g, op, CUDNN_ATTR_OPERATION_NORM_BWD_DBIAS_DESC,
            tensor(g, per_channel, CUDNN_DATA_FLOAT, GIVEN));
    add_operation(g, op, "the batch norm");
}

status dnn_graph_bn(const dnn *d, dnn_bn_kind kind, const bn_desc *desc, bool two_gradients,
                    dnn_type type, dnn_graph *g, errbuf *err)
{
    *g = (dnn_graph){.strict = type == DNN_FP32 && !d->options.tf32};
    bn_desc b = *desc;
    if (kind == DNN_BN_FORWARD) {
        bn_key(d, "forward", &b, false, type, g);
        bn_forward(g, &b, data_type(type));
    } else {
        bn_key(d, "backward", &b, two_gradients, type, g);
        bn_backward(g, &b, two_gradients, data_type(type));
    }
    return close_graph(d, g, err);
}
