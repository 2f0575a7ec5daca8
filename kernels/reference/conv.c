/*
 * Convolution, directly from its definition: padding is skipped, not multiplied. One row of sums in
 * double at a time, so that the innermost loop runs along a row.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/reference/reference.h"

struct backend_conv {
    backend_weights *w;
    int kernel, lane;
    conv_desc d;
    shape y;
    int in, out; /* channels of one group */
    bool adds;   /* to the weight gradient that an earlier conv wrote */
    double *row; /* one row of sums, of x or y, whichever is longer */
};

static status check_conv(const backend_weights *w, int kernel, const conv_desc *d, errbuf *err)
{
    if (w->committed)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a conv was created after its weights were committed");
    if (kernel < 0 || kernel >= w->count)
        return errbuf_set(err, STATUS_BAD_INPUT, "conv uses kernel %d of %d", kernel, w->count);
    if (d->groups < 1 || d->x.c % d->groups != 0 || d->out % d->groups != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%d groups do not divide a conv's %d input and %d output channels",
                          d->groups, d->x.c, d->out);
    kernel_shape k = w->kernels[kernel].shape;
    if (k.out != d->out || k.in != d->x.c / d->groups || k.kh != d->kh || k.kw != d->kw)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv %dx%dx%dx%d does not fit kernel %d, which is %dx%dx%dx%d", d->out,
                          d->x.c / d->groups, d->kh, d->kw, kernel, k.out, k.in, k.kh, k.kw);
    shape y = conv_output(d);
    if (d->stride_h < 1 || d->stride_w < 1 || d->dilation < 1 || y.h < 1 || y.w < 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a %dx%d conv (stride %d, dilation %d) has no output on a %dx%d input",
                          d->kh, d->kw, d->stride_h, d->dilation, d->x.h, d->x.w);
    return STATUS_OK;
}

status reference_conv_create(backend_weights *w, int kernel, int lane, const conv_desc *desc,
                             backend_conv **ret, errbuf *err)
{
    TRY(reference_check_lane(w->be, lane, err));
    TRY(check_conv(w, kernel, desc, err));
    backend_conv *c = calloc(1, sizeof *c);
    if (!c)
        return reference_out_of_memory("a conv", err);
    c->w = w;
    c->kernel = kernel;
    c->lane = lane;
    c->d = *desc;
    c->y = conv_output(desc);
    c->in = desc->x.c / desc->groups;
    c->out = desc->out / desc->groups;
    size_t longest = (size_t)(desc->x.w > c->y.w ? desc->x.w : c->y.w);
    c->row = calloc(longest, sizeof *c->row);
    if (!c->row) {
        reference_conv_destroy(&c);
        return reference_out_of_memory("a conv", err);
    }
    if (desc->passes & CONV_BACKWARD_WEIGHTS) {
        bool *claimed = &w->claimed[lane * w->count + kernel];
        c->adds = *claimed;
        *claimed = true;
    }
    *ret = c;
    return STATUS_OK;
}

void reference_conv_destroy(backend_conv **c)
{
    if (!c || !*c)
        return;
    free((*c)->row);
    free(*c);
    *c = NULL;
}

/* The range of outputs q, 0 <= q < ny, whose input q * stride + at lies in [0, nx). */
static void inside(int at, int stride, int nx, int ny, int *ret_from, int *ret_to)
{
    int from = at < 0 ? (-at + stride - 1) / stride : 0;
    int to = at >= nx ? 0 : (nx - 1 - at) / stride + 1;
    *ret_from = from;
    *ret_to = to < ny ? to : ny;
}

/* Sums of one output row: image n, channel k, row p. */
static void forward_row(backend_conv *c, const float *x, int n, int k, int p)
{
    const conv_desc *d = &c->d;
    const float *w = reference_weights_value(c->w, c->kernel) + (int64_t)k * c->in * d->kh * d->kw;
    for (int i = 0; i < c->in; i++) {
        int channel = k / c->out * c->in + i;
        for (int r = 0; r < d->kh; r++) {
            int h = p * d->stride_h - d->pad_h + r * d->dilation;
            if (h < 0 || h >= d->x.h)
                continue;
            const float *line = x + (((int64_t)n * d->x.c + channel) * d->x.h + h) * d->x.w;
            for (int s = 0; s < d->kw; s++) {
                int at = s * d->dilation - d->pad_w, from, to;
                double weight = w[(i * d->kh + r) * d->kw + s];
                inside(at, d->stride_w, d->x.w, c->y.w, &from, &to);
                for (int q = from; q < to; q++)
                    c->row[q] += weight * line[q * d->stride_w + at];
            }
        }
    }
}

status reference_conv_forward(backend_conv *c, const float *x, const float *bias, float *y)
{
    for (int n = 0; n < c->y.n; n++)
        for (int k = 0; k < c->y.c; k++)
            for (int p = 0; p < c->y.h; p++) {
                for (int q = 0; q < c->y.w; q++)
                    c->row[q] = c->d.bias ? bias[k] : 0.0;
                forward_row(c, x, n, k, p);
                for (int q = 0; q < c->y.w; q++)
                    *y++ = (float)c->row[q];
            }
    return STATUS_OK;
}

/* Sums of one input row's gradient: image n, channel `channel`, row h. */
static void backward_row(backend_conv *c, const float *dy, int n, int channel, int h)
{
    const conv_desc *d = &c->d;
    const float *w = reference_weights_value(c->w, c->kernel);
    int group = channel / c->in, i = channel % c->in;
    for (int k = group * c->out; k < (group + 1) * c->out; k++)
        for (int r = 0; r < d->kh; r++) {
            int reach = h + d->pad_h - r * d->dilation;
            if (reach < 0 || reach % d->stride_h != 0 || reach / d->stride_h >= c->y.h)
                continue;
            const float *line =
                dy + (((int64_t)n * c->y.c + k) * c->y.h + reach / d->stride_h) * c->y.w;
            for (int s = 0; s < d->kw; s++) {
                int at = s * d->dilation - d->pad_w, from, to;
                double weight = w[(((int64_t)k * c->in + i) * d->kh + r) * d->kw + s];
                inside(at, d->stride_w, d->x.w, c->y.w, &from, &to);
                for (int q = from; q < to; q++)
                    c->row[q * d->stride_w + at] += weight * line[q];
            }
        }
}

status reference_conv_backward_data(backend_conv *c, const float *dy, float *dx)
{
    const shape *x = &c->d.x;
    for (int n = 0; n < x->n; n++)
        for (int channel = 0; channel < x->c; channel++)
            for (int h = 0; h < x->h; h++) {
                memset(c->row, 0, sizeof *c->row * (size_t)x->w);
                backward_row(c, dy, n, channel, h);
                for (int w = 0; w < x->w; w++)
                    *dx++ = (float)c->row[w];
            }
    return STATUS_OK;
}

/* Gradient of one weight: output channel k, input channel i of its group, tap (r, s). */
static double weight_gradient(const backend_conv *c, const float *x, const float *dy, int k, int i,
                              int r, int s)
{
    const conv_desc *d = &c->d;
    int channel = k / c->out * c->in + i;
    int at = s * d->dilation - d->pad_w, from, to;
    double sum = 0;
    inside(at, d->stride_w, d->x.w, c->y.w, &from, &to);
    for (int n = 0; n < c->y.n; n++)
        for (int p = 0; p < c->y.h; p++) {
            int h = p * d->stride_h - d->pad_h + r * d->dilation;
            if (h < 0 || h >= d->x.h)
                continue;
            const float *line = x + (((int64_t)n * d->x.c + channel) * d->x.h + h) * d->x.w;
            const float *out = dy + (((int64_t)n * c->y.c + k) * c->y.h + p) * c->y.w;
            for (int q = from; q < to; q++)
                sum += (double)out[q] * line[q * d->stride_w + at];
        }
    return sum;
}

static void bias_gradient(const backend_conv *c, const float *dy, float *dbias)
{
    int64_t plane = (int64_t)c->y.h * c->y.w;
    for (int k = 0; k < c->y.c; k++) {
        double sum = 0;
        for (int n = 0; n < c->y.n; n++)
            for (int64_t i = 0; i < plane; i++)
                sum += dy[((int64_t)n * c->y.c + k) * plane + i];
        dbias[k] = (float)sum;
    }
}

status reference_conv_backward_weights(backend_conv *c, const float *x, const float *dy,
                                       float *dbias)
{
    const conv_desc *d = &c->d;
    float *dw = reference_weights_grad(c->w, c->lane, c->kernel);
    for (int k = 0; k < d->out; k++)
        for (int i = 0; i < c->in; i++)
            for (int r = 0; r < d->kh; r++)
                for (int s = 0; s < d->kw; s++, dw++) {
                    double sum = weight_gradient(c, x, dy, k, i, r, s);
                    *dw = (float)(c->adds ? *dw + sum : sum);
                }
    if (dbias)
        bias_gradient(c, dy, dbias);
    return STATUS_OK;
}
