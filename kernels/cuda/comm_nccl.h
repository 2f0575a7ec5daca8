/* comm_device `nccl`: collectives among GPUs, on the stream of a cuda backend. */
#ifndef RINGMASTER_KERNELS_CUDA_COMM_NCCL_H
#define RINGMASTER_KERNELS_CUDA_COMM_NCCL_H

#include "kernels/comm_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Host, device and library versions of this rank. */
CHECK_RESULT status comm_nccl_identity(backend *be, comm_device_identity *ret, errbuf *err);

/* Collective; options->be is a cuda backend and no two ranks share its device. Every rank gets the
 * same status and line, but where a peer is lost (comm.lost). */
CHECK_RESULT status comm_nccl_open(const comm_device_options *options, comm_device **ret,
                                   errbuf *err);

#ifdef __cplusplus
}
#endif

#endif
