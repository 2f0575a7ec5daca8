/*
 * Gradients of batch norm of a matrix [rows][channels] (NHWC: rows = n*h*w = n), float or bf16.
 *
 * dz = (dy1 + dy2) where y > 0, else 0 (without ReLU: everywhere), rounded to the io type; dbeta =
 * sum(dz); dgamma = inverse * sum(dz * (x - mean)); dx = gamma * inverse * (dz - dbeta/n -
 * (x - mean) * inverse * dgamma/n).
 *
 * Tensors moved: dy1, dy2, x and the mask (a bit an element, or y) are read, dz is written; then dz
 * and x are read, dx is written: 7 with two gradients, 6 with one; one more with y as mask. The
 * second pass goes from the end backwards: the L2 cache still holds the end.
 *
 * No pointer is restricted: dz may be dy1, and dx may be x or dy2, since a thread reads what it
 * needs of a row before it writes that row, and no other thread reads it.
 */
#include "kernels/cuda/bn_device.cuh"

/* What says where y > 0. */
enum bn_masking {
    BN_UNMASKED,
    BN_MASK_BITS,
    BN_MASK_OUTPUT
};

template <typename T> struct bn_sources {
    const T *x, *dy1, *dy2, *y;
    const uint8_t *mask;
    const float *mean;
    T *dz;
};

/* One row of a thread, as read. */
template <int V> struct bn_row {
    float x[V], dy1[V], dy2[V], y[V];
    unsigned mask;
};

template <typename T, int V, bool TWO, int MASKING>
static __device__ __forceinline__ void load_row(const bn_sources<T> &s, int64_t at, bn_row<V> &r)
{
    load<V>(s.dy1 + at, r.dy1);
    if (TWO)
        load<V>(s.dy2 + at, r.dy2);
    load<V>(s.x + at, r.x);
    if (MASKING == BN_MASK_BITS)
        r.mask = s.mask[at / V];
    if (MASKING == BN_MASK_OUTPUT)
        load<V>(s.y + at, r.y);
}

/* Writes dz and adds it to the sums. */
template <typename T, int V, bool TWO, int MASKING>
static __device__ __forceinline__ void mask_row(const bn_sources<T> &s, int64_t at,
                                                const float mean[V], const bn_row<V> &r,
                                                float sum[BN_SUMS][V])
{
    float dz[V];
    for (int i = 0; i < V; i++) {
        float g = TWO ? r.dy1[i] + r.dy2[i] : r.dy1[i];
        if (MASKING == BN_MASK_BITS)
            g = r.mask >> i & 1 ? g : 0.0f;
        if (MASKING == BN_MASK_OUTPUT)
            g = r.y[i] > 0 ? g : 0.0f;
        dz[i] = to_float(from_float<T>(g));
        sum[0][i] += dz[i];
        sum[1][i] = fmaf(dz[i], r.x[i] - mean[i], sum[1][i]);
    }
    store<V>(s.dz + at, dz);
}

/* One block owns one chunk of one tile, one thread V channels of some of its rows. */
template <typename T, int V, bool TWO, int MASKING>
static __global__ void bn_mask_kernel(bn_layout l, bn_sources<T> s, float *partial)
{
    SHARED(float, scratch, BN_SCRATCH);
    const bn_place p = place_of<V>(l, false);
    const int64_t step = (int64_t)l.lines * l.channels;
    int64_t at = p.at;
    float mean[V], sum[BN_SUMS][V];
    for (int i = 0; i < V; i++) {
        mean[i] = s.mean[p.channel + i];
        sum[0][i] = sum[1][i] = 0;
    }
    int left = p.count;
    for (; left >= BN_BATCH; left -= BN_BATCH, at += BN_BATCH * step) {
        bn_row<V> r[BN_BATCH];
        for (int b = 0; b < BN_BATCH; b++)
            load_row<T, V, TWO, MASKING>(s, at + b * step, r[b]);
        for (int b = 0; b < BN_BATCH; b++)
            mask_row<T, V, TWO, MASKING>(s, at + b * step, mean, r[b], sum);
    }
    for (; left > 0; left--, at += step) {
        bn_row<V> r;
        load_row<T, V, TWO, MASKING>(s, at, r);
        mask_row<T, V, TWO, MASKING>(s, at, mean, r, sum);
    }
    reduce_block<V>(l, sum, scratch, partial);
}

/* One block owns one channel. */
static __global__ void bn_parameters_kernel(bn_layout l, const float *partial, const float *saved,
                                            float *dgamma, float *dbeta)
{
    SHARED(double, scratch, BN_SUMS *WARP);
    const int c = (int)blockIdx.x;
    const double sum = chunk_sum(l, partial, 0, c, scratch);
    const double product = chunk_sum(l, partial, 1, c, scratch + WARP);
    if (threadIdx.x > 0)
        return;
    dbeta[c] = (float)sum;
    dgamma[c] = (float)(product * (double)saved[l.channels + c]);
}

template <typename T> struct bn_input {
    const T *x, *dz;
    const float *gamma, *saved, *dgamma, *dbeta;
    T *dx;
};

/* dx = (dz - shift - (x - mean) * slope) * scale: the sum of one dz is the dz itself, and dx 0. */
template <int V> struct bn_slopes {
    float mean[V], scale[V], slope[V], shift[V];
};

template <typename T, int V>
static __device__ __forceinline__ void load_slopes(const bn_layout &l, const bn_input<T> &a,
                                                   int channel, bn_slopes<V> &s)
{
    const float each = 1.0f / (float)l.rows;
    for (int i = 0; i < V; i++) {
        const int c = channel + i;
        const float inverse = a.saved[l.channels + c];
        s.mean[i] = a.saved[c];
        s.scale[i] = a.gamma[c] * inverse;
        s.slope[i] = inverse * (a.dgamma[c] * each);
        s.shift[i] = a.dbeta[c] * each;
    }
}

/* dz becomes dx. */
template <int V>
static __device__ __forceinline__ void input_gradient(const bn_slopes<V> &s, const float x[V],
                                                      float v[V])
{
    for (int i = 0; i < V; i++)
        v[i] = fmaf(s.mean[i] - x[i], s.slope[i], v[i] - s.shift[i]) * s.scale[i];
}

/* One block owns one chunk of one tile, one thread V channels of some of its rows. */
template <typename T, int V> static __global__ void bn_input_kernel(bn_layout l, bn_input<T> a)
{
    const bn_place p = place_of<V>(l, true);
    const int64_t step = (int64_t)l.lines * l.channels;
    int64_t at = p.at;
    bn_slopes<V> s;
    load_slopes<T, V>(l, a, p.channel, s);
    int left = p.count;
    for (; left >= BN_BATCH; left -= BN_BATCH, at += BN_BATCH * step) {
        float x[BN_BATCH][V], v[BN_BATCH][V];
        for (int b = 0; b < BN_BATCH; b++) {
            load<V>(a.dz + at + b * step, v[b]);
            load<V>(a.x + at + b * step, x[b]);
        }
        for (int b = 0; b < BN_BATCH; b++) {
            input_gradient<V>(s, x[b], v[b]);
            store<V>(a.dx + at + b * step, v[b]);
        }
    }
    for (; left > 0; left--, at += step) {
        float x[V], v[V];
        load<V>(a.dz + at, v);
        load<V>(a.x + at, x);
        input_gradient<V>(s, x, v);
        store<V>(a.dx + at, v);
    }
}

/* ---- launching ---- */

template <typename T, int V, bool TWO>
static auto choose_mask_kernel(enum bn_masking m) -> void (*)(bn_layout, bn_sources<T>, float *)
{
    if (m == BN_MASK_BITS)
        return bn_mask_kernel<T, V, TWO, BN_MASK_BITS>;
    return m == BN_MASK_OUTPUT ? bn_mask_kernel<T, V, TWO, BN_MASK_OUTPUT>
                               : bn_mask_kernel<T, V, TWO, BN_UNMASKED>;
}

template <typename T, int V>
static status run_backward(cuda_backend *be, const bn_layout *l, const bn_gradient *g)
{
    const enum bn_masking m = !g->relu ? BN_UNMASKED : g->mask ? BN_MASK_BITS : BN_MASK_OUTPUT;
    const bn_sources<T> from = {(const T *)g->x, (const T *)g->dy1, (const T *)g->dy2,
                                (const T *)g->y, g->mask,           g->saved,
                                (T *)g->dz};
    const bn_input<T> to = {(const T *)g->x, (const T *)g->dz, g->gamma,  g->saved,
                            g->dgamma,       g->dbeta,         (T *)g->dx};
    const auto mask_kernel =
        g->dy2 ? choose_mask_kernel<T, V, true>(m) : choose_mask_kernel<T, V, false>(m);
    TRY(cuda_launch(be, "bn_mask", mask_kernel, pieces_grid(l), dim3(BN_BLOCK), 0, *l, from,
                    g->partial));
    TRY(cuda_launch(be, "bn_parameters", bn_parameters_kernel, channels_grid(l),
                    dim3(BN_CHANNEL_BLOCK), 0, *l, g->partial, g->saved, g->dgamma, g->dbeta));
    return cuda_launch(be, "bn_input", bn_input_kernel<T, V>, pieces_grid(l), dim3(BN_BLOCK), 0, *l,
                       to);
}

status bn_run_backward(cuda_backend *be, const bn_layout *l, const bn_gradient *g)
{
    const bool wide = l->vector == BN_VECTOR;
    if (cuda_is_bf16(be))
        return wide ? run_backward<bf16, BN_VECTOR>(be, l, g) : run_backward<bf16, 1>(be, l, g);
    return wide ? run_backward<float, BN_VECTOR>(be, l, g) : run_backward<float, 1>(be, l, g);
}
