/*
 * Softmax cross-entropy over [n][classes], fp32. With m = max z and S = sum of exp(z - m), a row's
 *     loss    = log S + m - z[label]
 *     dz[i]   = exp(z[i] - m) / S * scale,  dz[label] = -(S - exp(z[label] - m)) / S * scale
 * where the last difference is summed without its label's term, so that it keeps its digits when
 * the network is sure. A row that is not valid has no loss and zeros as gradient.
 *
 * Bytes: the logits are read twice (the second time from cache), dlogits written once. The sums
 * over rows are one block's, in double, row by row in a fixed order.
 */
#include "kernels/cuda/loss_kernels.h"

#include <math.h>

#include "kernels/cuda/launch.cuh"

enum {
    ROWS_THREADS = 128,
    JOIN_THREADS = 256,
    TOP = 5
};

/* All lanes get the sum of the warp's values: the same bits, as each step adds two values. */
template <typename T> static __device__ __forceinline__ T warp_sum_all(T value)
{
    for (int mask = WARP / 2; mask > 0; mask /= 2)
        value += shuffle_xor(value, mask);
    return value;
}

/* The largest of the values that are numbers. */
static __device__ __forceinline__ float warp_max_all(float value)
{
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        const float other = shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

/* How many classes come before the label; too many where a logit is not finite. All lanes. */
static __device__ int rank_of(const float *z, int classes, int label, int lane)
{
    const float own = z[label];
    int before = 0, bad = 0;
    for (int i = lane; i < classes; i += WARP) {
        before += z[i] > own || (z[i] == own && i < label);
        bad += !isfinite(z[i]);
    }
    before = warp_sum_all(before);
    return warp_sum_all(bad) > 0 ? classes + TOP : before;
}

/* One warp owns a row. */
static __global__ void rows_kernel(int n, int classes, const float *logits, const int32_t *labels,
                                   int valid, float scale, float *dlogits, double *losses,
                                   int32_t *ranks)
{
    const int64_t row = grid_index() / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (row >= n)
        return;
    const float *const z = logits + row * classes;
    float *const dz = dlogits ? dlogits + row * classes : nullptr;
    const int label = row < valid ? labels[row] : -1;
    if (label < 0) {
        for (int i = lane; dz && i < classes; i += WARP)
            dz[i] = 0;
        if (lane == 0)
            ranks[row] = -1;
        return;
    }
    float largest = -INFINITY, others = 0;
    for (int i = lane; i < classes; i += WARP)
        largest = z[i] > largest ? z[i] : largest;
    largest = warp_max_all(largest);
    for (int i = lane; i < classes; i += WARP)
        others += i == label ? 0 : expf(z[i] - largest);
    others = warp_sum_all(others);
    const float own = expf(z[label] - largest), sum = others + own;
    for (int i = lane; dz && i < classes; i += WARP)
        dz[i] = (i == label ? 0 - others : expf(z[i] - largest)) / sum * scale;
    const int rank = rank_of(z, classes, label, lane);
    if (lane == 0) {
        losses[row] = log((double)others + own) + largest - z[label];
        ranks[row] = rank;
    }
}

extern "C" status loss_rows(cuda_backend *be, const loss_desc *d, const float *logits,
                            const int32_t *labels, int valid, float scale, float *dlogits,
                            double *losses, int32_t *ranks)
{
    return cuda_launch(be, "loss", rows_kernel,
                       dim3(blocks_for((int64_t)d->n * WARP, ROWS_THREADS)), dim3(ROWS_THREADS), 0,
                       d->n, d->classes, logits, labels, valid, scale, dlogits, losses, ranks);
}

/* One block owns all rows, a thread every JOIN_THREADS-th of them. */
static __global__ void join_kernel(int n, const double *losses, const int32_t *ranks,
                                   loss_sums *sums)
{
    SHARED(double, loss_scratch, WARP);
    SHARED(int64_t, count_scratch, 3 * WARP);
    double loss = 0;
    int64_t count = 0, top1 = 0, top5 = 0;
    for (int row = (int)threadIdx.x; row < n; row += JOIN_THREADS) {
        if (ranks[row] < 0)
            continue;
        loss += losses[row];
        count++;
        top1 += ranks[row] < 1;
        top5 += ranks[row] < TOP;
    }
    loss = block_sum(loss, loss_scratch);
    count = block_sum(count, count_scratch);
    top1 = block_sum(top1, count_scratch + WARP);
    top5 = block_sum(top5, count_scratch + 2 * WARP);
    if (threadIdx.x > 0)
        return;
    sums->loss = loss;
    sums->count = count;
    sums->top1 = top1;
    sums->top5 = top5;
}

extern "C" status loss_join(cuda_backend *be, int n, const double *losses, const int32_t *ranks,
                            loss_sums *sums)
{
    return cuda_launch(be, "loss sums", join_kernel, dim3(1), dim3(JOIN_THREADS), 0, n, losses,
                       ranks, sums);
}
