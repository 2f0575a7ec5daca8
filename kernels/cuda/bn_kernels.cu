/*
 * Batch norm of a matrix [rows][channels] (NHWC: rows = n*h*w), in float or bf16: statistics, y,
 * and what goes with cuDNN's batch norm. bn_backward.cu has the gradients.
 *
 * With k a pivot near the mean of its channel (the mean of four elements spread over the batch),
 * S1 = sum(x - k) and S2 = sum((x - k)^2) give mean = k + S1/n, n var = S2 - S1^2/n, without
 * cancellation wherever the mean lies; y = max(0, (x - mean) * inverse * gamma + beta + residual).
 *
 * Tensors moved: x is read, then x and the residual, and y and one bit an element, the mask, are
 * written (4 with a residual, 3 without); in evaluation one read of x less. The second pass goes
 * from the end backwards: the L2 cache still holds the end.
 *
 * A NaN or infinity in a channel makes the channel's statistics not finite.
 */
#include "kernels/cuda/bn_device.cuh"

enum {
    BN_BLOCKS = 1024, /* of a pass, about: some for each multiprocessor, on any device */
    BN_PIVOTS = 4,
    BN_COPY_BLOCK = 128
};

bn_layout bn_layout_of(shape x)
{
    bn_layout l;
    l.rows = (int64_t)x.n * x.h * x.w;
    l.channels = x.c;
    l.vector = x.c % BN_VECTOR == 0 ? BN_VECTOR : 1;
    l.groups = x.c / l.vector;
    l.lanes = 1;
    while (l.lanes < WARP && l.lanes < l.groups)
        l.lanes *= 2;
    l.lines = BN_BLOCK / l.lanes;
    l.tiles = (l.groups + l.lanes - 1) / l.lanes;
    const int64_t steps = (l.rows + l.lines - 1) / l.lines;
    const int64_t most = l.tiles < BN_BLOCKS ? BN_BLOCKS / l.tiles : 1;
    int64_t each = (steps + most - 1) / most;
    if (each < BN_BATCH)
        each = BN_BATCH;
    l.chunk_rows = (int)(each * l.lines);
    l.chunks = (int)((l.rows + l.chunk_rows - 1) / l.chunk_rows);
    return l;
}

size_t bn_partial_bytes(const bn_layout *l)
{
    return BN_SUMS * sizeof(float) * (size_t)l->channels * (size_t)l->chunks;
}

size_t bn_mask_bytes(const bn_layout *l)
{
    return l->vector == BN_VECTOR ? (size_t)l->rows * (size_t)l->groups : 0;
}

/* ---- forward ---- */

/* The same bits for every thread that asks for a channel. */
template <int V, typename T>
static __device__ __forceinline__ void pivots(const bn_layout &l, const T *x, int channel,
                                              float pivot[V])
{
    float v[BN_PIVOTS][V];
    for (int k = 0; k < BN_PIVOTS; k++)
        load<V>(x + l.rows * k / BN_PIVOTS * l.channels + channel, v[k]);
    for (int i = 0; i < V; i++)
        pivot[i] = ((v[0][i] + v[1][i]) + (v[2][i] + v[3][i])) * 0.25f;
}

template <int V>
static __device__ __forceinline__ void add_moments(const float v[V], const float pivot[V],
                                                   float sum[BN_SUMS][V])
{
    for (int i = 0; i < V; i++) {
        const float d = v[i] - pivot[i];
        sum[0][i] += d;
        sum[1][i] = fmaf(d, d, sum[1][i]);
    }
}

/* One block owns one chunk of one tile, one thread V channels of some of its rows. */
template <typename T, int V>
static __global__ void bn_moments_kernel(bn_layout l, const T *x, float *partial)
{
    SHARED(float, scratch, BN_SCRATCH);
    const bn_place p = place_of<V>(l, false);
    const int64_t step = (int64_t)l.lines * l.channels;
    const T *from = x + p.at;
    float pivot[V], sum[BN_SUMS][V];
    for (int i = 0; i < V; i++)
        sum[0][i] = sum[1][i] = 0;
    pivots<V>(l, x, p.channel, pivot);
    int left = p.count;
    for (; left >= BN_BATCH; left -= BN_BATCH, from += BN_BATCH * step) {
        float v[BN_BATCH][V];
        for (int b = 0; b < BN_BATCH; b++)
            load<V>(from + b * step, v[b]);
        for (int b = 0; b < BN_BATCH; b++)
            add_moments<V>(v[b], pivot, sum);
    }
    for (; left > 0; left--, from += step) {
        float v[V];
        load<V>(from, v);
        add_moments<V>(v, pivot, sum);
    }
    reduce_block<V>(l, sum, scratch, partial);
}

/* From the biased variance of n elements. */
static __device__ __forceinline__ double unbiased(double variance, double n)
{
    return n > 1 ? variance * (n / (n - 1)) : variance;
}

/* One block owns one channel. */
template <typename T>
static __global__ void bn_statistics_kernel(bn_layout l, float eps, const T *x,
                                            const float *partial, float *saved, float *stats)
{
    SHARED(double, scratch, BN_SUMS *WARP);
    const int c = (int)blockIdx.x;
    float pivot[1];
    pivots<1>(l, x, c, pivot);
    const double sum = chunk_sum(l, partial, 0, c, scratch);
    const double squares = chunk_sum(l, partial, 1, c, scratch + WARP);
    if (threadIdx.x > 0)
        return;
    const double n = (double)l.rows;
    double variance = (squares - sum * (sum / n)) / n;
    if (variance < 0)
        variance = 0;
    const float mean = (float)((double)pivot[0] + sum / n);
    saved[c] = stats[c] = mean;
    saved[l.channels + c] = (float)(1 / sqrt(variance + (double)eps));
    stats[l.channels + c] = (float)unbiased(variance, n);
}

template <typename T, int V>
static status run_statistics(cuda_backend *be, const bn_layout *l, float eps, const T *x,
                             float *partial, float *saved, float *stats)
{
    TRY(cuda_launch(be, "bn_moments", bn_moments_kernel<T, V>, pieces_grid(l), dim3(BN_BLOCK), 0,
                    *l, x, partial));
    return cuda_launch(be, "bn_statistics", bn_statistics_kernel<T>, channels_grid(l),
                       dim3(BN_CHANNEL_BLOCK), 0, *l, eps, x, partial, saved, stats);
}

status bn_run_statistics(cuda_backend *be, const bn_layout *l, float eps, const void *x,
                         float *partial, float *saved, float *stats)
{
    const bool wide = l->vector == BN_VECTOR;
    if (cuda_is_bf16(be))
        return (wide ? run_statistics<bf16, BN_VECTOR>
                     : run_statistics<bf16, 1>)(be, l, eps, (const bf16 *)x, partial, saved, stats);
    return (wide ? run_statistics<float, BN_VECTOR>
                 : run_statistics<float, 1>)(be, l, eps, (const float *)x, partial, saved, stats);
}

/* ---- y ---- */

/* What becomes of V channels. */
template <int V> struct bn_scaling {
    float mean[V], scale[V], shift[V];
};

template <int V>
static __device__ __forceinline__ void load_scaling(const bn_apply &a, int channel,
                                                    bn_scaling<V> &s)
{
    for (int i = 0; i < V; i++) {
        const int c = channel + i;
        const float d = a.deviation[c];
        const float inverse = a.variance ? rsqrtf(d + a.eps) : d;
        s.mean[i] = a.mean[c];
        s.scale[i] = inverse * a.gamma[c];
        s.shift[i] = a.beta[c];
    }
}

/* v becomes y; returns its mask. A NaN stays one, and is masked. */
template <int V, bool RESIDUAL>
static __device__ __forceinline__ unsigned apply_row(const bn_scaling<V> &s, bool relu,
                                                     const float residual[V], float v[V])
{
    unsigned bits = 0;
    for (int i = 0; i < V; i++) {
        float y = fmaf(v[i] - s.mean[i], s.scale[i], s.shift[i]);
        if (RESIDUAL)
            y += residual[i];
        v[i] = relu && y < 0 ? 0.0f : y;
        bits |= (y > 0 ? 1u : 0u) << i;
    }
    return bits;
}

/* One block owns one chunk of one tile, one thread V channels of some of its rows, and the byte of
 * the mask that belongs to them. */
template <typename T, int V, bool RESIDUAL>
static __global__ void bn_apply_kernel(bn_layout l, bn_apply a, const T *x, const T *residual, T *y)
{
    const bn_place p = place_of<V>(l, true);
    const int64_t step = (int64_t)l.lines * l.channels;
    int64_t at = p.at;
    bn_scaling<V> s;
    load_scaling<V>(a, p.channel, s);
    int left = p.count;
    for (; left >= BN_BATCH; left -= BN_BATCH, at += BN_BATCH * step) {
        float v[BN_BATCH][V], r[BN_BATCH][V];
        for (int b = 0; b < BN_BATCH; b++) {
            load<V>(x + at + b * step, v[b]);
            if (RESIDUAL)
                load<V>(residual + at + b * step, r[b]);
        }
        for (int b = 0; b < BN_BATCH; b++) {
            const unsigned bits = apply_row<V, RESIDUAL>(s, a.relu, r[b], v[b]);
            store<V>(y + at + b * step, v[b]);
            if (a.mask)
                a.mask[(at + b * step) / V] = (uint8_t)bits;
        }
    }
    for (; left > 0; left--, at += step) {
        float v[V], r[V];
        load<V>(x + at, v);
        if (RESIDUAL)
            load<V>(residual + at, r);
        const unsigned bits = apply_row<V, RESIDUAL>(s, a.relu, r, v);
        store<V>(y + at, v);
        if (a.mask)
            a.mask[at / V] = (uint8_t)bits;
    }
}

template <typename T>
static status run_apply(cuda_backend *be, const bn_layout *l, const bn_apply *a, const T *x,
                        const T *residual, T *y)
{
    const bool wide = l->vector == BN_VECTOR;
    const auto kernel =
        wide ? (a->residual ? bn_apply_kernel<T, BN_VECTOR, true>
                            : bn_apply_kernel<T, BN_VECTOR, false>)
             : (a->residual ? bn_apply_kernel<T, 1, true> : bn_apply_kernel<T, 1, false>);
    return cuda_launch(be, "bn_apply", kernel, pieces_grid(l), dim3(BN_BLOCK), 0, *l, *a, x,
                       residual, y);
}

status bn_run_apply(cuda_backend *be, const bn_layout *l, const bn_apply *a, const void *x,
                    const void *residual, void *y)
{
    if (cuda_is_bf16(be))
        return run_apply(be, l, a, (const bf16 *)x, (const bf16 *)residual, (bf16 *)y);
    return run_apply(be, l, a, (const float *)x, (const float *)residual, (float *)y);
}

/* ---- beside cuDNN's batch norm ---- */

/* One thread owns one channel. `mean` and `inverse` may lie in `saved`. */
static __global__ void bn_finish_kernel(bn_layout l, float eps, const float *mean,
                                        const float *inverse, float *saved, float *stats)
{
    const int64_t c = grid_index();
    if (c >= l.channels)
        return;
    const float m = mean[c], i = inverse[c];
    double variance = 1 / ((double)i * (double)i) - (double)eps;
    if (variance < 0)
        variance = 0;
    saved[c] = stats[c] = m;
    saved[l.channels + c] = i;
    stats[l.channels + c] = (float)unbiased(variance, (double)l.rows);
}

status bn_run_finish(cuda_backend *be, const bn_layout *l, float eps, const float *mean,
                     const float *inverse, float *saved, float *stats)
{
    return cuda_launch(be, "bn_finish", bn_finish_kernel,
                       dim3(blocks_for(l->channels, BN_COPY_BLOCK)), dim3(BN_COPY_BLOCK), 0, *l,
                       eps, mean, inverse, saved, stats);
}

/* One thread owns one channel. */
static __global__ void bn_copies_kernel(int channels, bn_copies copies)
{
    const int64_t c = grid_index();
    if (c >= channels)
        return;
    for (int k = 0; k < BN_COPIES; k++)
        if (copies.to[k])
            copies.to[k][c] = copies.from[k][c];
}

status bn_run_copies(cuda_backend *be, const bn_layout *l, const bn_copies *c)
{
    return cuda_launch(be, "bn_copies", bn_copies_kernel,
                       dim3(blocks_for(l->channels, BN_COPY_BLOCK)), dim3(BN_COPY_BLOCK), 0,
                       l->channels, *c);
}
