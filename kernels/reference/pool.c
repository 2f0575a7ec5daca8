/*
 * Max pooling and the average over the whole plane. Between forward and backward, max pooling keeps
 * where in its plane each output's maximum lay (int32).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/reference/reference.h"

struct backend_pool {
    pool_desc d;
    shape y;
    double *plane; /* one plane of the input's gradient */
};

status reference_pool_create(backend *be, int lane, const pool_desc *desc, backend_pool **ret,
                             errbuf *err)
{
    TRY(reference_check_lane(be, lane, err));
    bool max = desc->kind == POOL_MAX;
    if (max &&
        (desc->kernel < 1 || desc->stride < 1 || desc->pad < 0 || 2 * desc->pad > desc->kernel ||
         desc->x.h + 2 * desc->pad < desc->kernel || desc->x.w + 2 * desc->pad < desc->kernel))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "max pooling %d with stride %d and padding %d does not fit a %dx%d input",
                          desc->kernel, desc->stride, desc->pad, desc->x.h, desc->x.w);
    backend_pool *p = calloc(1, sizeof *p);
    if (!p)
        return reference_out_of_memory("a pooling", err);
    p->d = *desc;
    p->y = pool_output(desc);
    p->plane = calloc((size_t)desc->x.h * (size_t)desc->x.w, sizeof *p->plane);
    if (!p->plane) {
        free(p);
        return reference_out_of_memory("a pooling", err);
    }
    *ret = p;
    return STATUS_OK;
}

void reference_pool_destroy(backend_pool **p)
{
    if (!p || !*p)
        return;
    free((*p)->plane);
    free(*p);
    *p = NULL;
}

size_t reference_pool_workspace(const backend_pool *p)
{
    return p->d.kind == POOL_MAX ? (size_t)shape_elements(p->y) * sizeof(int32_t) : 0;
}

/* Where the window of output (a, b) has its maximum: the first of several; a NaN is larger than
 * anything, so that it is not lost. */
static int32_t find_maximum(const pool_desc *d, const float *x, int a, int b)
{
    int32_t best = -1;
    for (int r = 0; r < d->kernel; r++)
        for (int s = 0; s < d->kernel; s++) {
            int h = a * d->stride - d->pad + r, w = b * d->stride - d->pad + s;
            if (h < 0 || h >= d->x.h || w < 0 || w >= d->x.w)
                continue;
            int32_t at = h * d->x.w + w;
            if (best < 0 || x[at] > x[best] || (isnan(x[at]) && !isnan(x[best])))
                best = at;
        }
    return best;
}

static void max_forward(const backend_pool *p, const float *x, float *y, int32_t *maximum)
{
    int64_t planes = (int64_t)p->d.x.n * p->d.x.c;
    for (int64_t i = 0; i < planes; i++, x += (int64_t)p->d.x.h * p->d.x.w)
        for (int a = 0; a < p->y.h; a++)
            for (int b = 0; b < p->y.w; b++) {
                *maximum = find_maximum(&p->d, x, a, b);
                *y++ = x[*maximum++];
            }
}

static void average_forward(const backend_pool *p, const float *x, float *y)
{
    int64_t planes = (int64_t)p->d.x.n * p->d.x.c, size = (int64_t)p->d.x.h * p->d.x.w;
    for (int64_t i = 0; i < planes; i++) {
        double sum = 0;
        for (int64_t k = 0; k < size; k++)
            sum += x[i * size + k];
        y[i] = (float)(sum / (double)size);
    }
}

status reference_pool_forward(backend_pool *p, const float *x, float *y, void *ws)
{
    if (p->d.kind == POOL_MAX)
        max_forward(p, x, y, ws);
    else
        average_forward(p, x, y);
    return STATUS_OK;
}

status reference_pool_backward(backend_pool *p, const float *dy1, const float *dy2, const void *ws,
                               float *dx)
{
    const int32_t *maximum = ws;
    int64_t planes = (int64_t)p->d.x.n * p->d.x.c;
    int size = p->d.x.h * p->d.x.w, outputs = p->y.h * p->y.w;
    for (int64_t i = 0; i < planes; i++) {
        memset(p->plane, 0, sizeof *p->plane * (size_t)size);
        for (int64_t o = i * outputs; o < (i + 1) * outputs; o++) {
            double g = dy2 ? (double)dy1[o] + dy2[o] : dy1[o];
            if (p->d.kind == POOL_MAX)
                p->plane[maximum[o]] += g;
            else
                for (int k = 0; k < size; k++)
                    p->plane[k] = g / size;
        }
        for (int k = 0; k < size; k++)
            *dx++ = (float)p->plane[k];
    }
    return STATUS_OK;
}
