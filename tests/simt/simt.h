/*
 * Kernels on the CPU: what kernels/cuda/portable.cuh includes instead of CUDA's header where
 * RINGMASTER_SIMT is defined, so that the very same .cu files run under the tests.
 *
 * Blocks run one after another on one core. The threads of a block run one at a time, each until it
 * ends or waits (block_sync, shuffle); only threads that wait have a stack of their own (a fibre),
 * so a kernel without barriers is a plain loop. With RINGMASTER_SIMT_REVERSE=1 in the environment
 * blocks and threads run in the opposite order: what a kernel computes must not depend on it.
 *
 * What is found, besides wrong results: threads that wait at different barriers, a barrier that
 * some threads never reach while others wait at a shuffle, a shuffle that not the whole warp
 * reaches: the program ends with a line that says "kernel misuse". Shared memory is filled with
 * 0xff (a NaN) when a block begins, so what is read before it is written shows; and writes past the
 * end of memory that is sized at launch are found. Data races are not.
 */
#ifndef RINGMASTER_TESTS_SIMT_H
#define RINGMASTER_TESTS_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
        : x(vx), y(vy), z(vz)
    {
    }
};

/* Of the thread that runs. */
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

/* Counts blocks: a shared array that was last seen in another block is filled anew. */
extern uint64_t simt_block;

/* Runs the kernel at once; or, where the stream captures, when the graph is launched. What is wrong
 * with the sizes is what cudaGetLastError then returns. */
void simt_launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared,
                 std::function<void()> body);

/* ---- shared memory ---- */

#define SHARED(type, name, count)                             \
    static type name[count];                                  \
    static uint64_t name##_of_block_;                         \
    if (name##_of_block_ != simt_block) {                     \
        name##_of_block_ = simt_block;                        \
        memset(static_cast<void *>(name), 0xff, sizeof name); \
    }
#define SHARED_AT_LAUNCH(type, name) type *const name = static_cast<type *>(simt_shared())

void *simt_shared(void);

/* ---- waiting ---- */

enum simt_shuffle_kind {
    SIMT_DOWN,
    SIMT_XOR
};

void simt_wait(const char *file, int line);
void simt_shuffle(simt_shuffle_kind kind, int by, const void *value, void *ret, size_t size,
                  const char *file, int line);

static inline void block_sync(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    simt_wait(file, line);
}

/* From lanes that are not there (block size no multiple of 32) comes junk. */
template <typename T>
static inline T shuffle_down(T value, int by, const char *file = __builtin_FILE(),
                             int line = __builtin_LINE())
{
    T got;
    simt_shuffle(SIMT_DOWN, by, &value, &got, sizeof value, file, line);
    return got;
}

template <typename T>
static inline T shuffle_xor(T value, int mask, const char *file = __builtin_FILE(),
                            int line = __builtin_LINE())
{
    T got;
    simt_shuffle(SIMT_XOR, mask, &value, &got, sizeof value, file, line);
    return got;
}

static inline void atomic_or(uint32_t *to, uint32_t bits)
{
    *to |= bits;
}

/* ---- CUDA's functions that a host does not have ---- */

static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}

template <typename T> static inline T min(T a, T b)
{
    return b < a ? b : a;
}

template <typename T> static inline T max(T a, T b)
{
    return a < b ? b : a;
}

/* As on a device: a NaN is lost. */
static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

#endif
