/*
 * Batch norm, with the residual addition and the ReLU that follow it in a ResNet.
 */
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

struct backend_bn {
    bn_desc d;
    int64_t plane; /* h * w */
};

status reference_bn_create(backend *be, int lane, const bn_desc *desc, backend_bn **ret,
                           errbuf *err)
{
    TRY(reference_check_lane(be, lane, err));
    backend_bn *b = calloc(1, sizeof *b);
    if (!b)
        return reference_out_of_memory("a batch norm", err);
    b->d = *desc;
    b->plane = (int64_t)desc->x.h * desc->x.w;
    *ret = b;
    return STATUS_OK;
}

void reference_bn_destroy(backend_bn **b)
{
    if (!b)
        return;
    free(*b);
    *b = NULL;
}

/* First element of channel c of image n. */
static int64_t plane_of(const backend_bn *b, int n, int c)
{
    return ((int64_t)n * b->d.x.c + c) * b->plane;
}

/* y = x * scale + shift, then residual and ReLU; a NaN stays one. */
static void normalise_channel(const backend_bn *b, int c, const float *x, const float *residual,
                              double mean, double inverse, double gamma, double beta, float *y)
{
    for (int n = 0; n < b->d.x.n; n++) {
        int64_t at = plane_of(b, n, c);
        for (int64_t i = at; i < at + b->plane; i++) {
            double v = (x[i] - mean) * inverse * gamma + beta;
            if (b->d.residual)
                v += residual[i];
            y[i] = (float)(b->d.relu && v < 0 ? 0.0 : v);
        }
    }
}

static void channel_moments(const backend_bn *b, int c, const float *x, double *ret_mean,
                            double *ret_squares)
{
    double count = (double)b->d.x.n * (double)b->plane, sum = 0, squares = 0;
    for (int n = 0; n < b->d.x.n; n++)
        for (int64_t i = 0, at = plane_of(b, n, c); i < b->plane; i++)
            sum += x[at + i];
    double mean = sum / count;
    for (int n = 0; n < b->d.x.n; n++)
        for (int64_t i = 0, at = plane_of(b, n, c); i < b->plane; i++)
            squares += (x[at + i] - mean) * (x[at + i] - mean);
    *ret_mean = mean;
    *ret_squares = squares;
}

status reference_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                                  const float *gamma, const float *beta, float *y, float *saved,
                                  float *stats)
{
    int channels = b->d.x.c;
    double count = (double)b->d.x.n * (double)b->plane;
    for (int c = 0; c < channels; c++) {
        double mean, squares;
        channel_moments(b, c, x, &mean, &squares);
        double inverse = 1 / sqrt(squares / count + b->d.eps);
        normalise_channel(b, c, x, residual, mean, inverse, gamma[c], beta[c], y);
        saved[c] = (float)mean;
        saved[channels + c] = (float)inverse;
        stats[c] = (float)mean;
        stats[channels + c] = (float)(squares / (count > 1 ? count - 1 : 1));
    }
    return STATUS_OK;
}

status reference_bn_forward_eval(backend_bn *b, const float *x, const float *residual,
                                 const float *gamma, const float *beta, const float *running,
                                 float *y)
{
    int channels = b->d.x.c;
    for (int c = 0; c < channels; c++)
        normalise_channel(b, c, x, residual, running[c],
                          1 / sqrt((double)running[channels + c] + b->d.eps), gamma[c], beta[c], y);
    return STATUS_OK;
}

/* Writes dz of one channel and sums what dgamma, dbeta and dx are made of. */
static void mask_channel(const backend_bn *b, int c, const float *x, const float *y,
                         const float *saved, const float *dy1, const float *dy2, float *dz,
                         double *ret_sum, double *ret_product)
{
    double mean = saved[c], inverse = saved[b->d.x.c + c], sum = 0, product = 0;
    for (int n = 0; n < b->d.x.n; n++) {
        int64_t at = plane_of(b, n, c);
        for (int64_t i = at; i < at + b->plane; i++) {
            float g = dy2 ? dy1[i] + dy2[i] : dy1[i];
            dz[i] = b->d.relu && !(y[i] > 0) ? 0 : g;
            sum += dz[i];
            product += dz[i] * ((x[i] - mean) * inverse);
        }
    }
    *ret_sum = sum;
    *ret_product = product;
}

/* Channel by channel, dz of the whole channel before its dx, which may lie on dy2 or x. */
status reference_bn_backward(backend_bn *b, const float *x, const float *y, const float *gamma,
                             const float *saved, const float *dy1, const float *dy2, float *dz,
                             float *dx, float *dgamma, float *dbeta)
{
    double count = (double)b->d.x.n * (double)b->plane;
    for (int c = 0; c < b->d.x.c; c++) {
        double mean = saved[c], inverse = saved[b->d.x.c + c], sum, product;
        mask_channel(b, c, x, y, saved, dy1, dy2, dz, &sum, &product);
        for (int n = 0; n < b->d.x.n; n++) {
            int64_t at = plane_of(b, n, c);
            for (int64_t i = at; i < at + b->plane; i++) {
                double xhat = (x[i] - mean) * inverse;
                dx[i] =
                    (float)(gamma[c] * inverse * (dz[i] - sum / count - xhat * (product / count)));
            }
        }
        dgamma[c] = (float)product;
        dbeta[c] = (float)sum;
    }
    return STATUS_OK;
}
