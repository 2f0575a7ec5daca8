/*
 * Biases of convolutions and fully connected layers, and sums of gradients: y[i][c] += bias[c];
 * dbias[c] = sum over i of dy[i][c]; to += from. Tensors are rows x channels, float or bf16.
 *
 * Bytes: y is read and written once; dy is read once. dbias has two stages: PARTS partial sums a
 * channel (fewer where rows are few), then their sum; both in double, in an order that depends on
 * the shape alone.
 */
#include "kernels/cuda/conv_direct.h"

#include "kernels/cuda/launch.cuh"

enum {
    THREADS = 256,
    TALL = THREADS / WARP, /* rows that a block of dbias takes at a time */
    PARTS = 64,
    PART_ROWS = 64 /* at least */
};

/* One thread owns an element at a time. */
template <typename T>
static __global__ void add_bias_kernel(int64_t n, int channels, const float *bias, T *y)
{
    for (int64_t i = grid_index(); i < n; i += grid_threads())
        y[i] = from_float<T>(to_float(y[i]) + bias[i % channels]);
}

template <typename T>
static status add_bias(cuda_backend *be, int64_t rows, int channels, const float *bias, T *y)
{
    const int64_t n = rows * channels;
    return cuda_launch(be, "bias", add_bias_kernel<T>,
                       dim3(blocks_up_to(n, THREADS, 32 * (int64_t)be->sms)), dim3(THREADS), 0, n,
                       channels, bias, y);
}

extern "C" status direct_add_bias(cuda_backend *be, int64_t rows, int channels, bool is_bf16,
                                  const float *bias, void *y)
{
    if (is_bf16)
        return add_bias(be, rows, channels, bias, (bf16 *)y);
    return add_bias(be, rows, channels, bias, (float *)y);
}

/* One block owns WARP channels of one part of the rows, a warp every TALL-th row of it. */
template <typename T>
static __global__ void bias_parts_kernel(int64_t rows, int channels, int64_t part_rows, const T *dy,
                                         double *parts)
{
    SHARED(double, sums, THREADS);
    const int lane = (int)threadIdx.x % WARP, tall = (int)threadIdx.x / WARP;
    const int64_t channel = (int64_t)blockIdx.x * WARP + lane;
    const int64_t from = (int64_t)blockIdx.y * part_rows;
    const int64_t to = from + part_rows < rows ? from + part_rows : rows;
    double sum = 0;
    if (channel < channels)
        for (int64_t row = from + tall; row < to; row += TALL)
            sum += to_float(dy[row * channels + channel]);
    sums[threadIdx.x] = sum;
    block_sync();
    if (tall > 0 || channel >= channels)
        return;
    for (int i = 1; i < TALL; i++)
        sum += sums[i * WARP + lane];
    parts[(int64_t)blockIdx.y * channels + channel] = sum;
}

/* One thread owns a channel. */
static __global__ void bias_join_kernel(int parts_count, int channels, const double *parts,
                                        float *dbias)
{
    const int64_t channel = grid_index();
    if (channel >= channels)
        return;
    double sum = 0;
    for (int i = 0; i < parts_count; i++)
        sum += parts[(int64_t)i * channels + channel];
    dbias[channel] = (float)sum;
}

/* Rows of each part, a multiple of TALL. */
static int64_t part_rows_of(int64_t rows)
{
    const int64_t even = ((rows + PARTS - 1) / PARTS + TALL - 1) / TALL * TALL;
    return even > PART_ROWS ? even : (int64_t)PART_ROWS;
}

static unsigned int parts_of(int64_t rows)
{
    const int64_t part_rows = part_rows_of(rows);
    return (unsigned int)((rows + part_rows - 1) / part_rows);
}

extern "C" size_t direct_bias_scratch(int64_t rows, int channels)
{
    return (size_t)parts_of(rows) * (size_t)channels * sizeof(double);
}

template <typename T>
static status bias_gradient(cuda_backend *be, int64_t rows, int channels, const T *dy,
                            double *scratch, float *dbias)
{
    const unsigned int parts = parts_of(rows);
    TRY(cuda_launch(be, "bias gradient", bias_parts_kernel<T>,
                    dim3(blocks_for(channels, WARP), parts), dim3(THREADS), 0, rows, channels,
                    part_rows_of(rows), dy, scratch));
    return cuda_launch(be, "bias gradient", bias_join_kernel, dim3(blocks_for(channels, THREADS)),
                       dim3(THREADS), 0, (int)parts, channels, scratch, dbias);
}

extern "C" status direct_bias_gradient(cuda_backend *be, int64_t rows, int channels, bool is_bf16,
                                       const void *dy, double *scratch, float *dbias)
{
    if (is_bf16)
        return bias_gradient(be, rows, channels, (const bf16 *)dy, scratch, dbias);
    return bias_gradient(be, rows, channels, (const float *)dy, scratch, dbias);
}

/* One thread owns an element at a time. */
template <typename T> static __global__ void add_kernel(int64_t n, const T *from, T *to)
{
    for (int64_t i = grid_index(); i < n; i += grid_threads())
        to[i] = from_float<T>(to_float(to[i]) + to_float(from[i]));
}

template <typename T> static status add(cuda_backend *be, int64_t n, const T *from, T *to)
{
    return cuda_launch(be, "gradient sum", add_kernel<T>,
                       dim3(blocks_up_to(n, THREADS, 32 * (int64_t)be->sms)), dim3(THREADS), 0, n,
                       from, to);
}

extern "C" status direct_add(cuda_backend *be, int64_t n, bool is_bf16, const void *from, void *to)
{
    if (is_bf16)
        return add(be, n, (const bf16 *)from, (bf16 *)to);
    return add(be, n, (const float *)from, (float *)to);
}
