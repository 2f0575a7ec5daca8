/*
 * What kernels are written in: the few things that differ between a GPU and the CPU on which the
 * tests run the same sources (tests/simt, RINGMASTER_SIMT): memory spaces, barriers, shuffles,
 * atomics, bf16. Everything else in a .cu file is plain C++17 with threadIdx, blockIdx, blockDim
 * and gridDim.
 *
 * Shuffles, block_sum and block_sync are reached by all threads of the warp or block. Sums here are
 * fixed trees over thread numbers: the same bits every time.
 */
#ifndef RINGMASTER_KERNELS_CUDA_PORTABLE_CUH
#define RINGMASTER_KERNELS_CUDA_PORTABLE_CUH

#include <stdint.h>

#ifdef RINGMASTER_SIMT
#include "simt.h" /* the build adds tests/simt to the include path */
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* A block's shared array; one in a kernel may be sized at launch. */
#define SHARED(type, name, count) __shared__ type name[count]
#define SHARED_AT_LAUNCH(type, name)                \
    extern __shared__ __align__(16) char shared_[]; \
    type *const name = (type *)(void *)shared_

static __device__ __forceinline__ void block_sync(void)
{
    __syncthreads();
}

/* The value of the thread `by` lanes further on (within the warp of 32). */
template <typename T> static __device__ __forceinline__ T shuffle_down(T value, int by)
{
    return __shfl_down_sync(0xffffffffu, value, by);
}

/* The value of the thread whose lane number differs in the bits of `mask`. */
template <typename T> static __device__ __forceinline__ T shuffle_xor(T value, int mask)
{
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

/* Only integers are ever combined atomically: their order does not matter. */
static __device__ __forceinline__ void atomic_or(uint32_t *to, uint32_t bits)
{
    atomicOr(to, bits);
}
#endif

enum {
    WARP = 32
};

/* ---- bf16: the upper half of a float, rounded to nearest even; NaN stays NaN ---- */

struct bf16 {
    uint16_t bits;
};

static __host__ __device__ __forceinline__ float to_float(bf16 x)
{
    union {
        uint32_t u;
        float f;
    } v;
    v.u = (uint32_t)x.bits << 16;
    return v.f;
}

static __host__ __device__ __forceinline__ float to_float(float x)
{
    return x;
}

template <typename T> static __host__ __device__ __forceinline__ T from_float(float x);

template <> __host__ __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}

template <> __host__ __device__ __forceinline__ bf16 from_float<bf16>(float x)
{
#ifdef __CUDA_ARCH__
    bf16 rounded;
    rounded.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); /* one instruction */
    return rounded;
#else
    union {
        float f;
        uint32_t u;
    } v;
    v.f = x;
    bf16 r;
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        r.bits = (uint16_t)(v.u >> 16 | 0x40);
    else
        r.bits = (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16);
    return r;
#endif
}

/* ---- eight elements at once: 16 bytes of bf16, 32 of float; addresses aligned to that ---- */

template <typename T> struct alignas(8 * sizeof(T) < 16 ? 8 * sizeof(T) : 16) eight {
    T at[8];
};

template <typename T> static __device__ __forceinline__ void load8(const T *from, float to[8])
{
    const eight<T> e = *(const eight<T> *)(const void *)from;
    for (int i = 0; i < 8; i++)
        to[i] = to_float(e.at[i]);
}

template <typename T> static __device__ __forceinline__ void store8(T *to, const float from[8])
{
    eight<T> e;
    for (int i = 0; i < 8; i++)
        e.at[i] = from_float<T>(from[i]);
    *(eight<T> *)(void *)to = e;
}

/* V elements, 8 or 1: for kernels that are made for both. */
template <int V, typename T> static __device__ __forceinline__ void load(const T *from, float *to)
{
    if (V == 8)
        load8(from, to);
    else
        to[0] = to_float(from[0]);
}

template <int V, typename T> static __device__ __forceinline__ void store(T *to, const float *from)
{
    if (V == 8)
        store8(to, from);
    else
        to[0] = from_float<T>(from[0]);
}

/* ---- sums ---- */

/* Lane 0 gets the sum of the warp's values. */
template <typename T> static __device__ __forceinline__ T warp_sum(T value)
{
    for (int by = WARP / 2; by > 0; by /= 2)
        value += shuffle_down(value, by);
    return value;
}

/* Thread 0 gets the sum of the block's values; blockDim.x a multiple of 32, one-dimensional.
 * `scratch`: shared, 32 elements, free for other use after the next block_sync. */
template <typename T> static __device__ __forceinline__ T block_sum(T value, T *scratch)
{
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    value = warp_sum(value);
    if (lane == 0)
        scratch[warp] = value;
    block_sync();
    value = (int)threadIdx.x < (int)blockDim.x / WARP ? scratch[lane] : T(0);
    return warp == 0 ? warp_sum(value) : value;
}

/* ---- indices ---- */

/* Number of this thread in a one-dimensional grid, and of all its threads. */
static __device__ __forceinline__ int64_t grid_index(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t grid_threads(void)
{
    return (int64_t)gridDim.x * blockDim.x;
}

#endif
