/* The cpu backend: oneDNN convolutions on blocked activations, everything else our own SIMD. */
#ifndef RINGMASTER_KERNELS_CPU_BACKEND_CPU_H
#define RINGMASTER_KERNELS_CPU_BACKEND_CPU_H

#include "kernels/backend.h"

extern const backend_ops backend_cpu;

#endif
