/*
 * What decides the order of NCCL's float sums, so that it is the same from run to run: algorithm,
 * protocol, channels. Chosen by rank 0 from the spec and the shape of the world; what the user's
 * environment says comes first.
 */
#ifndef RINGMASTER_KERNELS_CUDA_NCCL_SETTINGS_H
#define RINGMASTER_KERNELS_CUDA_NCCL_SETTINGS_H

#include "kernels/comm_device.h"

enum nccl_setting {
    NCCL_SET_ALGO,
    NCCL_SET_PROTO,
    NCCL_SET_NVLS,
    NCCL_SETTINGS
};

/* One piece of memory: it is sent to the other ranks as it is. */
typedef struct nccl_settings {
    char value[NCCL_SETTINGS][64]; /* of the environment; "" = NCCL's own */
    int channels;                  /* 0 = NCCL's own, or as the user's environment says */
} nccl_settings;

/* Exact mode: nothing is set, any order gives the same bits. */
void nccl_settings_choose(const comm_device_options *o, nccl_settings *ret);

/* The plan's word: "nccl-ring-simple-16". */
void nccl_settings_name(const nccl_settings *s, char *name, int size);

/* Values of the environment that are put aside while a communicator is made: NCCL takes its
 * settings from there and nowhere else. */
typedef struct nccl_environment {
    char *old[NCCL_SETTINGS];
    bool set[NCCL_SETTINGS];
} nccl_environment;

void nccl_environment_enter(nccl_environment *e, const nccl_settings *s);
void nccl_environment_leave(nccl_environment *e);

#endif
