/* The cuda backend: cuDNN's convolutions and batch norm, our own kernels for the rest. */
#ifndef RINGMASTER_KERNELS_CUDA_BACKEND_CUDA_H
#define RINGMASTER_KERNELS_CUDA_BACKEND_CUDA_H

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const backend_ops backend_cuda;

#ifdef __cplusplus
}
#endif

#endif
