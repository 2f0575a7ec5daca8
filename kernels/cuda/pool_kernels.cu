/*
 * Max pooling and the average over the whole plane, NHWC, in float or bf16.
 *
 * Max: y[n,a,b,c] = max of x[n, a*stride - pad + r, b*stride - pad + s, c] over the window; the
 * first of equal ones counts, and a NaN is larger than anything. Its place r*kernel + s is kept in
 * a byte. Backward gathers: dx[n,h,w,c] = the sum of dy1 + dy2 over the windows, in the order of
 * their outputs, whose maximum it was. Average: y[n,c] = sum over the plane / (h*w), summed in
 * double.
 *
 * Tensors moved: max reads x (overlapping windows from the caches) and writes y and a byte an
 * output; its backward reads those places and dy1, dy2 and writes dx; the average reads x, its
 * backward writes dx; the rest is small.
 *
 * A thread works on 8 channels where they divide the channels, else on one. No atomics.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pool_kernels.h"

enum {
    POOL_BLOCK = 256,
    POOL_VECTOR = 8
};

/* V places, moved at once. */
template <int V> struct alignas(V) pool_places {
    uint8_t at[V];
};

/* What the kernels need of a pool_desc. */
struct pool_geometry {
    int64_t threads; /* that have work */
    int groups;      /* of V channels */
    int channels, h, w;
    int out_h, out_w, kernel, stride, pad;
};

/* Pixel and channels of a thread's number; channels fastest. */
struct pool_pixel {
    int64_t n;
    int h, w, channel;
};

template <int V>
static __device__ __forceinline__ pool_pixel pixel_of(int64_t i, int groups, int h, int w)
{
    pool_pixel p;
    const int64_t pixel = i / groups, row = pixel / w;
    p.channel = (int)(i - pixel * groups) * V;
    p.w = (int)(pixel - row * w);
    p.n = row / h;
    p.h = (int)(row - p.n * h);
    return p;
}

/* ---- max ---- */

/* One thread owns V channels of one output pixel. */
template <typename T, int V>
static __global__ void pool_max_kernel(pool_geometry g, const T *x, T *y, uint8_t *place)
{
    const int64_t i = grid_index();
    if (i >= g.threads)
        return;
    const pool_pixel p = pixel_of<V>(i, g.groups, g.out_h, g.out_w);
    const int top = p.h * g.stride - g.pad, left = p.w * g.stride - g.pad;
    const int r0 = top < 0 ? -top : 0, s0 = left < 0 ? -left : 0;
    const int r1 = g.h - top < g.kernel ? g.h - top : g.kernel;
    const int s1 = g.w - left < g.kernel ? g.w - left : g.kernel;
    const T *from = x + ((p.n * g.h + top) * g.w + left) * g.channels + p.channel;
    float best[V], v[V];
    pool_places<V> at;
    for (int k = 0; k < V; k++) {
        best[k] = 0;
        at.at[k] = 0;
    }
    for (int r = r0; r < r1; r++)
        for (int s = s0; s < s1; s++) {
            const bool first = r == r0 && s == s0;
            load<V>(from + ((int64_t)r * g.w + s) * g.channels, v);
            for (int k = 0; k < V; k++)
                /* v > best, or v is the first NaN */
                if (first || (!(v[k] <= best[k]) && best[k] == best[k])) {
                    best[k] = v[k];
                    at.at[k] = (uint8_t)(r * g.kernel + s);
                }
        }
    store<V>(y + i * V, best);
    *(pool_places<V> *)(void *)(place + i * V) = at;
}

/* One thread owns V channels of one input pixel. */
template <typename T, int V, bool TWO>
static __global__ void pool_max_backward_kernel(pool_geometry g, const T *dy1, const T *dy2,
                                                const uint8_t *place, T *dx)
{
    const int64_t i = grid_index();
    if (i >= g.threads)
        return;
    const pool_pixel p = pixel_of<V>(i, g.groups, g.h, g.w);
    const int h = p.h + g.pad, w = p.w + g.pad;
    /* the outputs whose windows cover the pixel */
    const int a0 = h < g.kernel ? 0 : (h - g.kernel) / g.stride + 1;
    const int b0 = w < g.kernel ? 0 : (w - g.kernel) / g.stride + 1;
    const int a1 = h / g.stride < g.out_h ? h / g.stride + 1 : g.out_h;
    const int b1 = w / g.stride < g.out_w ? w / g.stride + 1 : g.out_w;
    float sum[V];
    for (int k = 0; k < V; k++)
        sum[k] = 0;
    for (int a = a0; a < a1; a++)
        for (int b = b0; b < b1; b++) {
            const int64_t at = ((p.n * g.out_h + a) * g.out_w + b) * g.channels + p.channel;
            const int mine = (h - a * g.stride) * g.kernel + (w - b * g.stride);
            const pool_places<V> won = *(const pool_places<V> *)(const void *)(place + at);
            float d1[V], d2[V];
            load<V>(dy1 + at, d1);
            if (TWO)
                load<V>(dy2 + at, d2);
            for (int k = 0; k < V; k++)
                sum[k] += won.at[k] == mine ? (TWO ? d1[k] + d2[k] : d1[k]) : 0.0f;
        }
    store<V>(dx + i * V, sum);
}

/* ---- average ---- */

/* One thread owns V channels of one image. */
template <typename T, int V>
static __global__ void pool_average_kernel(pool_geometry g, const T *x, float *y)
{
    const int64_t i = grid_index();
    if (i >= g.threads)
        return;
    const int64_t n = i / g.groups, pixels = (int64_t)g.h * g.w;
    const T *from = x + n * pixels * g.channels + (i - n * g.groups) * V;
    double sum[V];
    float v[V];
    for (int k = 0; k < V; k++)
        sum[k] = 0;
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        load<V>(from + pixel * g.channels, v);
        for (int k = 0; k < V; k++)
            sum[k] += (double)v[k];
    }
    for (int k = 0; k < V; k++)
        v[k] = (float)(sum[k] / (double)pixels);
    store<V>(y + i * V, v);
}

/* One thread owns V channels of one input pixel. */
template <typename T, int V>
static __global__ void pool_average_backward_kernel(pool_geometry g, const float *dy1,
                                                    const float *dy2, T *dx)
{
    const int64_t i = grid_index();
    if (i >= g.threads)
        return;
    const int64_t pixel = i / g.groups, pixels = (int64_t)g.h * g.w;
    const int64_t at = pixel / pixels * g.channels + (i - pixel * g.groups) * V;
    float d[V];
    load<V>(dy1 + at, d);
    if (dy2) {
        float d2[V];
        load<V>(dy2 + at, d2);
        for (int k = 0; k < V; k++)
            d[k] += d2[k];
    }
    for (int k = 0; k < V; k++)
        d[k] /= (float)pixels;
    store<V>(dx + i * V, d);
}

/* ---- launching ---- */

/* A thread for each V channels of `pixels` pixels. */
template <int V> static pool_geometry geometry_of(const pool_desc *d, int64_t pixels)
{
    const shape y = pool_output(d);
    const int groups = d->x.c / V;
    return {pixels * groups, groups,    d->x.c, d->x.h, d->x.w, y.h, y.w,
            d->kernel,       d->stride, d->pad};
}

static dim3 grid_of(const pool_geometry &g)
{
    return dim3(blocks_for(g.threads, POOL_BLOCK));
}

static int64_t pixels_of(shape s)
{
    return (int64_t)s.n * s.h * s.w;
}

static bool is_wide(const pool_desc *d)
{
    return d->x.c % POOL_VECTOR == 0;
}

template <typename T, int V>
static status run_max(cuda_backend *be, const pool_desc *d, const void *x, void *y, uint8_t *place)
{
    const pool_geometry g = geometry_of<V>(d, pixels_of(pool_output(d)));
    return cuda_launch(be, "pool_max", pool_max_kernel<T, V>, grid_of(g), dim3(POOL_BLOCK), 0, g,
                       (const T *)x, (T *)y, place);
}

status pool_run_max(cuda_backend *be, const pool_desc *d, const void *x, void *y, uint8_t *place)
{
    if (cuda_is_bf16(be))
        return (is_wide(d) ? run_max<bf16, POOL_VECTOR> : run_max<bf16, 1>)(be, d, x, y, place);
    return (is_wide(d) ? run_max<float, POOL_VECTOR> : run_max<float, 1>)(be, d, x, y, place);
}

template <typename T, int V>
static status run_max_backward(cuda_backend *be, const pool_desc *d, const void *dy1,
                               const void *dy2, const uint8_t *place, void *dx)
{
    const pool_geometry g = geometry_of<V>(d, pixels_of(d->x));
    return cuda_launch(
        be, "pool_max_backward",
        dy2 ? pool_max_backward_kernel<T, V, true> : pool_max_backward_kernel<T, V, false>,
        grid_of(g), dim3(POOL_BLOCK), 0, g, (const T *)dy1, (const T *)dy2, place, (T *)dx);
}

status pool_run_max_backward(cuda_backend *be, const pool_desc *d, const void *dy1, const void *dy2,
                             const uint8_t *place, void *dx)
{
    if (cuda_is_bf16(be))
        return (is_wide(d) ? run_max_backward<bf16, POOL_VECTOR>
                           : run_max_backward<bf16, 1>)(be, d, dy1, dy2, place, dx);
    return (is_wide(d) ? run_max_backward<float, POOL_VECTOR>
                       : run_max_backward<float, 1>)(be, d, dy1, dy2, place, dx);
}

template <typename T, int V>
static status run_average(cuda_backend *be, const pool_desc *d, const void *x, float *y)
{
    const pool_geometry g = geometry_of<V>(d, d->x.n);
    return cuda_launch(be, "pool_average", pool_average_kernel<T, V>, grid_of(g), dim3(POOL_BLOCK),
                       0, g, (const T *)x, y);
}

status pool_run_average(cuda_backend *be, const pool_desc *d, const void *x, float *y)
{
    if (cuda_is_bf16(be))
        return (is_wide(d) ? run_average<bf16, POOL_VECTOR> : run_average<bf16, 1>)(be, d, x, y);
    return (is_wide(d) ? run_average<float, POOL_VECTOR> : run_average<float, 1>)(be, d, x, y);
}

template <typename T, int V>
static status run_average_backward(cuda_backend *be, const pool_desc *d, const float *dy1,
                                   const float *dy2, void *dx)
{
    const pool_geometry g = geometry_of<V>(d, pixels_of(d->x));
    return cuda_launch(be, "pool_average_backward", pool_average_backward_kernel<T, V>, grid_of(g),
                       dim3(POOL_BLOCK), 0, g, dy1, dy2, (T *)dx);
}

status pool_run_average_backward(cuda_backend *be, const pool_desc *d, const float *dy1,
                                 const float *dy2, void *dx)
{
    if (cuda_is_bf16(be))
        return (is_wide(d) ? run_average_backward<bf16, POOL_VECTOR>
                           : run_average_backward<bf16, 1>)(be, d, dy1, dy2, dx);
    return (is_wide(d) ? run_average_backward<float, POOL_VECTOR>
                       : run_average_backward<float, 1>)(be, d, dy1, dy2, dx);
}
