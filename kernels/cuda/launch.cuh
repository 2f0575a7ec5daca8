/*
 * The one way in which kernels start: cuda_launch. Also where a launch is refused or fails first:
 * the line names the kernel.
 */
#ifndef RINGMASTER_KERNELS_CUDA_LAUNCH_CUH
#define RINGMASTER_KERNELS_CUDA_LAUNCH_CUH

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/portable.cuh"

/* Blocks of `block` threads so that there is one thread an element of n; at most 2^31 - 1. */
static inline unsigned int blocks_for(int64_t n, int block)
{
    return (unsigned int)((n + block - 1) / block);
}

/* The same, but not more than `most`: for kernels that stride over their elements. */
static inline unsigned int blocks_up_to(int64_t n, int block, int64_t most)
{
    const int64_t blocks = (n + block - 1) / block;
    return (unsigned int)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

#ifdef RINGMASTER_SIMT

template <typename... P, typename... A>
static inline status cuda_launch(cuda_backend *be, const char *name, void (*kernel)(P...),
                                 dim3 grid, dim3 block, size_t shared, A... args)
{
    simt_launch(be->stream, grid, block, shared, [=]() { kernel(P(args)...); });
    return cuda_launched(be, name);
}

#else

template <typename T> struct launch_value {
    T value;
};

/* Addresses of the arguments, converted to the kernel's parameter types. */
template <typename... P, typename... A>
static inline status cuda_launch(cuda_backend *be, const char *name, void (*kernel)(P...),
                                 dim3 grid, dim3 block, size_t shared, A... args)
{
    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
    return [&](P... value) {
        void *addresses[] = {(void *)&value..., nullptr};
        const cudaError_t error =
            cudaLaunchKernel((const void *)kernel, grid, block, addresses, shared, be->stream);
        if (error != cudaSuccess)
            return cuda_failed(be, error, name);
        return cuda_launched(be, name);
    }(P(args)...);
}

#endif

#endif
