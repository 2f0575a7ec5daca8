/* A stand-in for NVIDIA's header of this name; see cuda_runtime_api.h. */
#ifndef RINGMASTER_TESTS_SIMT_CUDA_RUNTIME_H
#define RINGMASTER_TESTS_SIMT_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#endif
