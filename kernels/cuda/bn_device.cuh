/*
 * What our batch norm kernels share: how threads lie over the matrix [rows][channels], and sums
 * over its rows. A thread adds up rows of its chunk in float, a block its threads by shuffles and
 * then its warps in double, a second kernel the chunks of each channel in double: all in an order
 * that the shape alone fixes.
 */
#ifndef RINGMASTER_KERNELS_CUDA_BN_DEVICE_CUH
#define RINGMASTER_KERNELS_CUDA_BN_DEVICE_CUH

#include "kernels/cuda/bn_kernels.h"
#include "kernels/cuda/launch.cuh"

enum {
    BN_BLOCK = 256,
    BN_WARPS = BN_BLOCK / WARP,
    BN_VECTOR = 8,
    BN_BATCH = 4, /* rows that a thread has in flight */
    BN_SUMS = 2,
    BN_SCRATCH = BN_WARPS * BN_SUMS * WARP * BN_VECTOR,
    BN_CHANNEL_BLOCK = 128 /* threads that add up the chunks of one channel */
};

/* One block a piece; one a channel. */
static inline dim3 pieces_grid(const bn_layout *l)
{
    return dim3((unsigned)(l->tiles * l->chunks));
}

static inline dim3 channels_grid(const bn_layout *l)
{
    return dim3((unsigned)l->channels);
}

/* ---- a thread's place ---- */

/* `count` rows, `lines` apart, from element `at` of the matrix; its channels from `channel`. Where
 * a thread has no channels it has no rows, either, and `channel` is a valid one. */
struct bn_place {
    int channel, count;
    int64_t at;
};

template <int V>
static __device__ __forceinline__ bn_place place_of(const bn_layout &l, bool backwards)
{
    const int block = (int)(backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    const int chunk = block / l.tiles, tile = block % l.tiles;
    const int lane = (int)threadIdx.x % l.lanes, line = (int)threadIdx.x / l.lanes;
    const int group = tile * l.lanes + lane;
    const int64_t start = (int64_t)chunk * l.chunk_rows;
    const int rows = (int)(l.rows - start < l.chunk_rows ? l.rows - start : l.chunk_rows);
    bn_place p;
    p.channel = group < l.groups ? group * V : 0;
    p.count = group < l.groups && line < rows ? (rows - line + l.lines - 1) / l.lines : 0;
    p.at = (start + line) * l.channels + p.channel;
    return p;
}

/* ---- sums over rows ---- */

/* Sums of a block's threads to partial[sum][channel][chunk]. Reached by all threads. */
template <int V>
static __device__ __forceinline__ void reduce_block(const bn_layout &l, float sum[BN_SUMS][V],
                                                    float *scratch, float *partial)
{
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const int width = l.lanes * V; /* channels of a tile */
    for (int q = 0; q < BN_SUMS; q++)
        for (int i = 0; i < V; i++)
            for (int by = WARP / 2; by >= l.lanes; by /= 2)
                sum[q][i] += shuffle_xor(sum[q][i], by);
    if (lane < l.lanes)
        for (int q = 0; q < BN_SUMS; q++)
            for (int i = 0; i < V; i++)
                scratch[(warp * BN_SUMS + q) * width + lane * V + i] = sum[q][i];
    block_sync();
    const int chunk = (int)blockIdx.x / l.tiles, tile = (int)blockIdx.x % l.tiles;
    const int at = (int)threadIdx.x, channel = tile * width + at;
    if (at >= width || channel >= l.channels)
        return;
    for (int q = 0; q < BN_SUMS; q++) {
        double all = 0;
        for (int w = 0; w < BN_WARPS; w++)
            all += (double)scratch[(w * BN_SUMS + q) * width + at];
        partial[((int64_t)q * l.channels + channel) * l.chunks + chunk] = (float)all;
    }
}

/* Thread 0 gets the sum of a channel's chunks. */
static __device__ __forceinline__ double chunk_sum(const bn_layout &l, const float *partial,
                                                   int sum, int channel, double *scratch)
{
    const float *from = partial + ((int64_t)sum * l.channels + channel) * l.chunks;
    double all = 0;
    for (int chunk = (int)threadIdx.x; chunk < l.chunks; chunk += BN_CHANNEL_BLOCK)
        all += (double)from[chunk];
    return block_sum(all, scratch);
}

#endif
