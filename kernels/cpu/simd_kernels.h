/*
 * The cpu backend's own inner loops, one source compiled for several instruction sets.
 *
 * Every function works on one piece of work in one thread. A `vector` is `block` floats: the
 * channels of one pixel of one channel block. A `slab` is a channel block of consecutive images:
 * `images` runs of `pixels` vectors, image_stride floats apart. Per-channel arguments are `block`
 * floats. `stream` writes past the caches.
 */
#ifndef RINGMASTER_KERNELS_CPU_SIMD_KERNELS_H
#define RINGMASTER_KERNELS_CPU_SIMD_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"

typedef struct slab {
    int64_t image_stride;
    int images, pixels;
} slab;

/* One output image (a channel block of it) of a max pool. */
typedef struct pool_window {
    int h, w, oh, ow, kernel, stride, pad;
} pool_window;

/* to[k] = scale[k % period] * sign * params[index], of table[k]. `turned`, where not NULL: the same
 * with every tile of block x block transposed (then length and period are whole tiles). */
typedef struct expand_args {
    const uint32_t *table;
    const float *params, *scale;
    int64_t length;
    int period; /* a multiple of 16 */
    bool holes; /* entries of zero weights occur; they are written as zeros */
    bool stream;
    float *to, *turned;
} expand_args;

/* to[index] = scale[k % period] * sign * from[k], of table[k]. */
typedef struct scatter_args {
    const uint32_t *table;
    const float *from, *scale;
    int64_t length;
    int period;
    bool holes; /* entries of zero weights occur; they are left out */
    float *to;
} scatter_args;

typedef struct simd_kernels {
    const char *name;
    int block;

    /* Mean of a slab as float, then sums of (x - mean) and of its square: the true mean is
     * mean + sum / count. */
    void (*bn_moments)(const slab *s, const float *x, float *mean, float *sum, float *square);
    /* y = (x - mean) * scale + shift [+ residual], max(0, .) where relu; NaN stays NaN */
    void (*bn_apply)(const slab *s, const float *x, const float *residual, const float *mean,
                     const float *scale, const float *shift, bool relu, bool stream, float *y);
    /* dz = (dy1 + dy2) where y > 0 (y NULL: everywhere); sums of dz and of dz * (x - mean) */
    void (*bn_backward_sums)(const slab *s, const float *x, const float *y, const float *dy1,
                             const float *dy2, const float *mean, float *dz, float *sum,
                             float *product);
    /* dx = dz * scale - (x - mean) * slope - shift */
    void (*bn_backward_apply)(const slab *s, const float *x, const float *dz, const float *mean,
                              const float *scale, const float *slope, const float *shift,
                              bool stream, float *dx);

    void (*expand)(const expand_args *args);
    void (*scatter)(const scatter_args *args);

    void (*max_pool)(const pool_window *w, const float *x, float *y, uint8_t *choice);
    void (*max_pool_backward)(const pool_window *w, const float *dy1, const float *dy2,
                              const uint8_t *choice, float *dx);
    void (*pixel_mean)(int pixels, const float *x, float *mean);
    void (*pixel_fill)(int pixels, const float *value, float *x);

    void (*add)(int64_t n, const float *a, const float *b, float *y);
    void (*sgd)(int64_t n, float *p, const float *grad, float *v, const sgd_params *params);
    bool (*all_finite)(int64_t n, const float *x);
    bool (*exact_accumulate)(int64_t n, const float *g, int64_t *acc); /* false: one is refused */
    void (*exact_to_float)(int64_t n, const int64_t *acc, float *g);
} simd_kernels;

extern const simd_kernels simd_kernels_base;
#ifdef RINGMASTER_SIMD_X86
extern const simd_kernels simd_kernels_avx2, simd_kernels_avx512;
#endif

#endif
