/* Stand-in for the CUDA runtime's header: what comm_nccl.c needs of it, for fake_nccl.c. */
#ifndef RINGMASTER_TESTS_NCCL_CUDA_RUNTIME_API_H
#define RINGMASTER_TESTS_NCCL_CUDA_RUNTIME_API_H

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidDevice = 101
} cudaError_t;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device);
cudaError_t cudaRuntimeGetVersion(int *version);

#endif
