/* Max pooling and global average pooling on native tensors. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define MAX_KERNEL 15 /* its positions fit in a byte */

struct backend_pool {
    cpu_backend *cpu;
    pool_desc desc;
    shape y;
    int block, blocks;
    float *row; /* global average: [n][blocks * block] */
};

status cpu_pool_create(backend *be, int lane, const pool_desc *desc, backend_pool **ret,
                       errbuf *err)
{
    cpu_backend *cpu = cpu_of(be);
    TRY(cpu_check_lane(cpu, lane, err));
    TRY(cpu_check_shape(desc->x, "pool", err));
    if (desc->kind == POOL_MAX) {
        if (desc->kernel < 1 || desc->kernel > MAX_KERNEL || desc->stride < 1 || desc->pad < 0 ||
            2 * desc->pad > desc->kernel)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "max pool: kernel %d, stride %d, padding %d (kernel 1 to %d, padding "
                              "at most half of it)",
                              desc->kernel, desc->stride, desc->pad, MAX_KERNEL);
        TRY(cpu_check_shape(pool_output(desc), "max pool's output", err));
    }
    backend_pool *p = calloc(1, sizeof *p);
    if (!p)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a pool");
    p->cpu = cpu;
    p->desc = *desc;
    p->y = pool_output(desc);
    p->block = cpu->simd->block;
    p->blocks = cpu_blocks(cpu, desc->x.c);
    p->row = cpu_memory((size_t)desc->x.n * (size_t)p->blocks * (size_t)p->block * sizeof(float));
    if (!p->row) {
        cpu_pool_destroy(&p);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a pool");
    }
    *ret = p;
    return STATUS_OK;
}

void cpu_pool_destroy(backend_pool **p)
{
    if (!p || !*p)
        return;
    free((*p)->row);
    free(*p);
    *p = NULL;
}

size_t cpu_pool_workspace(const backend_pool *p)
{
    return p->desc.kind == POOL_MAX ? (size_t)cpu_native_elements(p->cpu, p->y) : 0;
}

static pool_window window_of(const backend_pool *p)
{
    return (pool_window){p->desc.x.h,    p->desc.x.w,    p->y.h,     p->y.w,
                         p->desc.kernel, p->desc.stride, p->desc.pad};
}

static void average_forward(backend_pool *p, const float *x, float *y)
{
    const int pixels = p->desc.x.h * p->desc.x.w, channels = p->desc.x.c;
#pragma omp parallel for num_threads(cpu_threads(p->cpu)) schedule(static)
    for (int n = 0; n < p->desc.x.n; n++) {
        float *row = p->row + (int64_t)n * p->blocks * p->block;
        const float *image = x + (int64_t)n * p->blocks * pixels * p->block;
        for (int cb = 0; cb < p->blocks; cb++)
            p->cpu->simd->pixel_mean(pixels, image + (int64_t)cb * pixels * p->block,
                                     row + cb * p->block);
        memcpy(y + (int64_t)n * channels, row, (size_t)channels * sizeof *y);
    }
}

static void average_backward(backend_pool *p, const float *dy1, const float *dy2, float *dx)
{
    const int pixels = p->desc.x.h * p->desc.x.w, channels = p->desc.x.c;
#pragma omp parallel for num_threads(cpu_threads(p->cpu)) schedule(static)
    for (int n = 0; n < p->desc.x.n; n++) {
        float *row = p->row + (int64_t)n * p->blocks * p->block;
        float *image = dx + (int64_t)n * p->blocks * pixels * p->block;
        for (int c = 0; c < p->blocks * p->block; c++) {
            int64_t at = (int64_t)n * channels + c;
            row[c] = c < channels ? (dy1[at] + (dy2 ? dy2[at] : 0.0f)) / (float)pixels : 0.0f;
        }
        for (int cb = 0; cb < p->blocks; cb++)
            p->cpu->simd->pixel_fill(pixels, row + cb * p->block,
                                     image + (int64_t)cb * pixels * p->block);
    }
}

status cpu_pool_forward(backend_pool *p, const float *x, float *y, void *ws)
{
    if (p->desc.kind == POOL_GLOBAL_AVG) {
        average_forward(p, x, y);
        return STATUS_OK;
    }
    const pool_window w = window_of(p);
    const int64_t in = (int64_t)w.h * w.w * p->block, out = (int64_t)w.oh * w.ow * p->block;
#pragma omp parallel for num_threads(cpu_threads(p->cpu)) schedule(static)
    for (int64_t i = 0; i < (int64_t)p->desc.x.n * p->blocks; i++)
        p->cpu->simd->max_pool(&w, x + i * in, y + i * out, (uint8_t *)ws + i * out);
    return STATUS_OK;
}

status cpu_pool_backward(backend_pool *p, const float *dy1, const float *dy2, const void *ws,
                         float *dx)
{
    if (p->desc.kind == POOL_GLOBAL_AVG) {
        average_backward(p, dy1, dy2, dx);
        return STATUS_OK;
    }
    const pool_window w = window_of(p);
    const int64_t in = (int64_t)w.h * w.w * p->block, out = (int64_t)w.oh * w.ow * p->block;
#pragma omp parallel for num_threads(cpu_threads(p->cpu)) schedule(static)
    for (int64_t i = 0; i < (int64_t)p->desc.x.n * p->blocks; i++)
        p->cpu->simd->max_pool_backward(&w, dy1 + i * out, dy2 ? dy2 + i * out : NULL,
                                        (const uint8_t *)ws + i * out, dx + i * in);
    return STATUS_OK;
}
