/*
 * Max pooling and the average over the whole plane, by our own kernels (pool_kernels.cu). Between
 * forward and backward, max pooling keeps where in its window each output's maximum lay: a byte an
 * output, in the caller's workspace.
 */
#include <stdlib.h>

#include "kernels/cuda/pool_kernels.h"

struct backend_pool {
    cuda_backend *be;
    pool_desc d;
};

static status check_desc(const pool_desc *d, errbuf *err)
{
    const shape x = d->x;
    if (x.n < 1 || x.c < 1 || x.h < 1 || x.w < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "pooling of %dx%dx%dx%d (NCHW)", x.n, x.c, x.h,
                          x.w);
    if (d->kind != POOL_MAX)
        return STATUS_OK;
    if (d->kernel > POOL_MAX_KERNEL)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "max pooling %d: backend cuda does kernels of 1 to %d", d->kernel,
                          POOL_MAX_KERNEL);
    if (d->kernel < 1 || d->stride < 1 || d->pad < 0 || 2 * d->pad > d->kernel ||
        x.h + 2 * d->pad < d->kernel || x.w + 2 * d->pad < d->kernel)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "max pooling %d with stride %d and padding %d does not fit a %dx%d input",
                          d->kernel, d->stride, d->pad, x.h, x.w);
    return STATUS_OK;
}

status cuda_pool_create(backend *be, int lane, const pool_desc *desc, backend_pool **ret,
                        errbuf *err)
{
    TRY(cuda_check_lane(be, lane, err));
    TRY(check_desc(desc, err));
    backend_pool *p = calloc(1, sizeof *p);
    if (!p)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a pooling");
    p->be = cuda_of(be);
    p->d = *desc;
    *ret = p;
    return STATUS_OK;
}

void cuda_pool_destroy(backend_pool **p)
{
    if (!p)
        return;
    free(*p);
    *p = NULL;
}

size_t cuda_pool_workspace(const backend_pool *p)
{
    return p->d.kind == POOL_MAX ? (size_t)shape_elements(pool_output(&p->d)) : 0;
}

status cuda_pool_forward(backend_pool *p, const float *x, float *y, void *ws)
{
    return p->d.kind == POOL_MAX ? pool_run_max(p->be, &p->d, x, y, ws)
                                 : pool_run_average(p->be, &p->d, x, y);
}

status cuda_pool_backward(backend_pool *p, const float *dy1, const float *dy2, const void *ws,
                          float *dx)
{
    return p->d.kind == POOL_MAX ? pool_run_max_backward(p->be, &p->d, dy1, dy2, ws, dx)
                                 : pool_run_average_backward(p->be, &p->d, dy1, dy2, dx);
}
