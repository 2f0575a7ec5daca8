/*
 * kernels/cuda/dnn.h without cuDNN. By default it has no engine for anything, so that the backend's
 * own kernels run. With RINGMASTER_TEST_DNN=1 it computes convolutions and batch norms in plain
 * loops, for the shapes that cuDNN would take (channels by eight, no groups), in the stream's order
 * and recorded like kernels: then what surrounds cuDNN in the backend runs too. It asks for the
 * alignment that real plans are compiled for.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "kernels/cuda/dnn.h"
#include "kernels/cuda/portable.cuh"

#define ALIGNMENT    16
#define MAX_POINTERS 12

struct dnn {
    cudaStream_t stream;
    char error[200];
};

struct dnn_op {
    dnn *d;
    bool is_conv;
    dnn_conv_kind conv_kind;
    dnn_bn_kind bn_kind;
    conv_desc conv;
    bn_desc bn;
    int channels; /* conv: of x in memory */
    bool two, is_bf16;
};

/* ---- elements ---- */

static float at(const void *memory, int64_t i, bool is_bf16)
{
    return is_bf16 ? to_float(((const bf16 *)memory)[i]) : ((const float *)memory)[i];
}

static void put(void *memory, int64_t i, double value, bool is_bf16)
{
    if (is_bf16)
        ((bf16 *)memory)[i] = from_float<bf16>((float)value);
    else
        ((float *)memory)[i] = (float)value;
}

/* ---- convolutions ---- */

/* Calls use(x index, w index, y index) for every product of the convolution; x and y NHWC, w KRSC.
 */
template <typename F> static void each_product(const dnn_op *op, F use)
{
    const conv_desc *d = &op->conv;
    const shape y = conv_output(d);
    for (int n = 0; n < y.n; n++)
        for (int a = 0; a < y.h; a++)
            for (int b = 0; b < y.w; b++)
                for (int r = 0; r < d->kh; r++)
                    for (int s = 0; s < d->kw; s++) {
                        const int h = a * d->stride_h - d->pad_h + r * d->dilation;
                        const int w = b * d->stride_w - d->pad_w + s * d->dilation;
                        if (h < 0 || h >= d->x.h || w < 0 || w >= d->x.w)
                            continue;
                        const int64_t from =
                            (((int64_t)n * d->x.h + h) * d->x.w + w) * op->channels;
                        const int64_t to = (((int64_t)n * y.h + a) * y.w + b) * d->out;
                        for (int k = 0; k < d->out; k++)
                            for (int c = 0; c < op->channels; c++)
                                use(from + c,
                                    (((int64_t)k * d->kh + r) * d->kw + s) * op->channels + c,
                                    to + k);
                    }
}

static void run_conv(const dnn_op *op, void *const *p)
{
    const conv_desc *d = &op->conv;
    const bool half = op->is_bf16;
    shape x = d->x;
    x.c = op->channels;
    const int64_t sizes[] = {shape_elements(conv_output(d)), shape_elements(x),
                             (int64_t)d->out * d->kh * d->kw * op->channels};
    std::vector<double> sum((size_t)sizes[op->conv_kind]);
    each_product(op, [&](int64_t i, int64_t j, int64_t o) {
        if (op->conv_kind == DNN_CONV_FORWARD)
            sum[(size_t)o] += (double)at(p[0], i, half) * at(p[1], j, half);
        else if (op->conv_kind == DNN_CONV_BACKWARD_DATA)
            sum[(size_t)i] += (double)at(p[0], o, half) * at(p[1], j, half);
        else
            sum[(size_t)j] += (double)at(p[0], i, half) * at(p[1], o, half);
    });
    for (size_t i = 0; i < sum.size(); i++)
        put(p[2], (int64_t)i, sum[i], half);
}

/* ---- batch norm ---- */

static void forward_channel(const dnn_op *op, int c, void *const *p)
{
    const bn_desc *d = &op->bn;
    const int64_t channels = d->x.c, rows = shape_elements(d->x) / channels;
    const bool half = op->is_bf16;
    int next = 3;
    const void *residual = d->residual ? p[next++] : nullptr;
    void *y = p[next++];
    float *mean = (float *)p[next++], *inverse = (float *)p[next++];
    uint8_t *mask = d->relu ? (uint8_t *)p[next++] : nullptr;
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < rows; r++)
        sum += at(p[0], r * channels + c, half);
    sum /= (double)rows;
    for (int64_t r = 0; r < rows; r++) {
        const double from = at(p[0], r * channels + c, half) - sum;
        squares += from * from;
    }
    mean[c] = (float)sum;
    inverse[c] = (float)(1 / sqrt(squares / (double)rows + (double)d->eps));
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = r * channels + c;
        double v = (at(p[0], i, half) - sum) * inverse[c] * ((const float *)p[1])[c] +
                   ((const float *)p[2])[c];
        if (residual)
            v += at(residual, i, half);
        put(y, i, d->relu && v < 0 ? 0 : v, half);
        if (mask)
            mask[i / 8] = (uint8_t)((mask[i / 8] & ~(1u << i % 8)) | (unsigned)(v > 0) << i % 8);
    }
}

static void backward_channel(const dnn_op *op, int c, void *const *p)
{
    const bn_desc *d = &op->bn;
    const int64_t channels = d->x.c, rows = shape_elements(d->x) / channels;
    const bool half = op->is_bf16;
    const float mean = ((const float *)p[2])[c], inverse = ((const float *)p[3])[c];
    int next = 5;
    const void *dy2 = op->two ? p[next++] : nullptr;
    const uint8_t *mask = d->relu ? (const uint8_t *)p[next++] : nullptr;
    void *dz = d->residual && (d->relu || op->two) ? p[next++] : nullptr;
    void *dx = p[next++];
    float *dgamma = (float *)p[next++], *dbeta = (float *)p[next++];
    std::vector<double> g((size_t)rows);
    double sum = 0, product = 0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = r * channels + c;
        const bool on = !mask || (mask[i / 8] >> i % 8 & 1);
        g[(size_t)r] = on ? (double)at(p[4], i, half) + (dy2 ? (double)at(dy2, i, half) : 0) : 0;
        sum += g[(size_t)r];
        product += g[(size_t)r] * ((double)at(p[0], i, half) - mean) * inverse;
        if (dz)
            put(dz, i, g[(size_t)r], half);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = r * channels + c;
        const double hat = ((double)at(p[0], i, half) - mean) * inverse;
        put(dx, i,
            ((const float *)p[1])[c] * (double)inverse *
                (g[(size_t)r] - (sum + hat * product) / (double)rows),
            half);
    }
    dgamma[c] = (float)product;
    dbeta[c] = (float)sum;
}

/* ---- dnn.h ---- */

static bool is_on(void)
{
    const char *word = getenv("RINGMASTER_TEST_DNN");
    return word && strcmp(word, "1") == 0;
}

extern "C" {

status dnn_open(const dnn_options *options, dnn **ret, errbuf *err)
{
    dnn *d = (dnn *)calloc(1, sizeof *d);
    if (!d)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory");
    d->stream = options->stream;
    *ret = d;
    return STATUS_OK;
}

void dnn_close(dnn **d)
{
    if (!d)
        return;
    free(*d);
    *d = nullptr;
}

status dnn_describe(const dnn *d, cJSON **ret, errbuf *err)
{
    (void)d;
    cJSON *plan = cJSON_CreateObject();
    if (!plan || !cJSON_AddStringToObject(plan, "version", dnn_version()) ||
        !cJSON_AddObjectToObject(plan, "engines")) {
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the plan");
    }
    *ret = plan;
    return STATUS_OK;
}

const char *dnn_version(void)
{
    return "0.0.0";
}

const char *dnn_missing(const dnn *d)
{
    (void)d;
    return is_on() ? "the stand-in has no engine for it" : "built without cuDNN";
}

const char *dnn_last_error(const dnn *d)
{
    return d->error;
}

status dnn_conv_create(dnn *d, dnn_conv_kind kind, const conv_desc *desc, int channels,
                       dnn_type type, dnn_op **ret, errbuf *err)
{
    *ret = nullptr;
    const bool fits = type == DNN_FP32 || (channels % 8 == 0 && desc->out % 8 == 0);
    if (!is_on() || !fits || desc->groups != 1 || kind > DNN_CONV_BACKWARD_WEIGHTS)
        return STATUS_OK;
    dnn_op *op = (dnn_op *)calloc(1, sizeof *op);
    if (!op)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory");
    op->d = d;
    op->is_conv = true;
    op->conv_kind = kind;
    op->conv = *desc;
    op->channels = channels;
    op->is_bf16 = type == DNN_BF16;
    *ret = op;
    return STATUS_OK;
}

status dnn_bn_create(dnn *d, dnn_bn_kind kind, const bn_desc *desc, bool two_gradients,
                     dnn_type type, dnn_op **ret, errbuf *err)
{
    *ret = nullptr;
    const bool fits = desc->x.c % (type == DNN_FP32 ? 4 : 8) == 0;
    if (!is_on() || !fits || (kind == DNN_BN_BACKWARD && two_gradients && !desc->relu))
        return STATUS_OK;
    dnn_op *op = (dnn_op *)calloc(1, sizeof *op);
    if (!op)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory");
    op->d = d;
    op->bn_kind = kind;
    op->bn = *desc;
    op->two = two_gradients;
    op->is_bf16 = type == DNN_BF16;
    *ret = op;
    return STATUS_OK;
}

size_t dnn_mask_bytes(shape x)
{
    return (size_t)(shape_elements(x) + 7) / 8;
}

void dnn_op_destroy(dnn_op **op)
{
    if (!op)
        return;
    free(*op);
    *op = nullptr;
}

float dnn_op_ms(const dnn_op *op)
{
    (void)op;
    return 0;
}

static int pointers_of(const dnn_op *op)
{
    const bn_desc *d = &op->bn;
    if (op->is_conv)
        return 3;
    if (op->bn_kind == DNN_BN_FORWARD)
        return 6 + d->residual + d->relu;
    return 8 + op->two + d->relu + (d->residual && (d->relu || op->two));
}

status dnn_run(dnn_op *op, void *const *pointers)
{
    const dnn_op now = *op;
    const int count = pointers_of(op);
    std::vector<void *> p(pointers, pointers + count);
    for (int i = 0; i < count; i++)
        if (!p[(size_t)i] || (uintptr_t)p[(size_t)i] % ALIGNMENT != 0) {
            snprintf(op->d->error, sizeof op->d->error, "tensor %d of %d is at %p", i, count,
                     p[(size_t)i]);
            return STATUS_ENVIRONMENT;
        }
    simt_launch(op->d->stream, dim3(1), dim3(1), 0, [=]() {
        void *const *at_p = p.data();
        if (now.is_conv)
            run_conv(&now, at_p);
        for (int c = 0; !now.is_conv && c < now.bn.x.c; c++)
            if (now.bn_kind == DNN_BN_FORWARD)
                forward_channel(&now, c, at_p);
            else
                backward_channel(&now, c, at_p);
    });
    return STATUS_OK;
}
}
