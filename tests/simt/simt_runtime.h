/* Between simt.cpp (kernels) and simt_runtime.cpp (the stand-in CUDA runtime). */
#ifndef RINGMASTER_TESTS_SIMT_RUNTIME_H
#define RINGMASTER_TESTS_SIMT_RUNTIME_H

#include <functional>

#include "cuda_runtime_api.h"

/* Runs `work` now, or records it where the stream captures. */
cudaError_t simt_submit(cudaStream_t stream, std::function<void()> work);
/* What cudaGetLastError will return; the first error stays. */
cudaError_t simt_error(cudaError_t error);

#endif
