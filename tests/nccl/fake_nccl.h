/*
 * A NCCL without GPUs: ranks are threads of this process, streams are two counters, and what the
 * real one does rarely or late happens when the script of a rank says so.
 */
#ifndef RINGMASTER_TESTS_NCCL_FAKE_NCCL_H
#define RINGMASTER_TESTS_NCCL_FAKE_NCCL_H

#include <nccl.h>
#include <stdatomic.h>
#include <stdbool.h>

#define FAKE_RANKS 8

struct CUstream_st {
    atomic_int issued, done; /* collectives */
    atomic_bool recording;   /* they then become part of a graph and are not run */
};

/* What goes on at one rank, and what was seen there. Set to zero by fake_reset. */
typedef struct fake_rank {
    /* the script */
    int init_polls, call_polls, finalize_polls; /* answers "in progress" before it is done */
    ncclResult_t id_result, init_result, call_result;
    ncclResult_t step_result; /* shows once a graph holds the communicator */
    bool never_joins;         /* init is never done on any rank */
    bool never_runs;          /* its collectives are taken and do not run on any rank */
    bool wrong_sums;
    bool finalize_sticks;
    atomic_bool abort_sticks;
    char device[32]; /* "PCI bus id" */
    int version;     /* of NCCL; 0 = 22809 */

    /* what was seen */
    atomic_int graphs; /* that hold the communicator: an abort waits for them */
    atomic_int comms;  /* alive */
    char log[512];     /* calls, in order */
    char env[3][64];   /* NCCL_ALGO, NCCL_PROTO, NCCL_NVLS_ENABLE at init */
    ncclConfig_t config;
} fake_rank;

extern fake_rank fake[FAKE_RANKS];
extern _Thread_local int fake_me; /* rank of this thread */

void fake_reset(void);

#endif
