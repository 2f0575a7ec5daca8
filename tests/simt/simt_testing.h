/*
 * What tests can ask of the stand-in CUDA runtime, and tell it. C and C++.
 */
#ifndef RINGMASTER_TESTS_SIMT_TESTING_H
#define RINGMASTER_TESTS_SIMT_TESTING_H

#include <stddef.h>

#include "cuda_runtime_api.h"

/* As GCC says it. */
#if !defined(__SANITIZE_ADDRESS__) && defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Successful cudaMalloc and cudaHostAlloc calls so far; and those that were not freed yet. */
long simt_allocations(void);
long simt_live_allocations(void);

/* The n-th allocation from now (1 = the next) fails; 0 = none. */
void simt_fail_allocation(long n);

/* Every kernel from now on fails at its launch with this error; cudaSuccess: none. */
void simt_fail_launches(cudaError_t error);

/* Kernels that have run. */
long simt_kernels(void);

/* The device that programs find. By default 1, 9.0, cudaSuccess. */
typedef struct simt_device {
    int count;
    int major, minor;
    cudaError_t error; /* what cudaGetDeviceCount returns */
} simt_device;
void simt_set_device(simt_device device);

#ifdef __cplusplus
}
#endif

#endif
