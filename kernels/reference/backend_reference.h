/*
 * The reference backend: plain NCHW loops with double accumulators, one thread. It is the oracle
 * that every other backend is tested against, and what runs where nothing faster was built.
 */
#ifndef RINGMASTER_KERNELS_REFERENCE_BACKEND_REFERENCE_H
#define RINGMASTER_KERNELS_REFERENCE_BACKEND_REFERENCE_H

#include "kernels/backend.h"

extern const backend_ops backend_reference;

#endif
