/*
 * The contract between an agent and the trainer that it starts (FORMATS 6): the attempt file, the
 * control file, the progress records, and the word in the environment that marks every process of
 * an attempt.
 */
#ifndef RINGMASTER_PROTOCOL_ATTEMPT_H
#define RINGMASTER_PROTOCOL_ATTEMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

#define ATTEMPT_ENVIRONMENT "RINGMASTER_ATTEMPT"
#define ATTEMPT_JOB_SIZE    33 /* 32 hex digits and the NUL */
#define ATTEMPT_TAG_SIZE    80
#define ATTEMPT_MAX_RANKS   65536
#define ATTEMPT_MAX_CORES   4096

/* -- the attempt file -- */

typedef struct attempt_rank {
    char *host;
    int local_rank; /* 0, 1, … within its host */
    int *core;      /* cores to be pinned to, ascending; none = not pinned */
    int cores;
    int device; /* ordinal among those that the rank sees: the host's, unless
                   CUDA_VISIBLE_DEVICES narrows them; -1 = a CPU seat (absent or null in the file)
                 */
} attempt_rank;

typedef struct attempt_file {
    char job[ATTEMPT_JOB_SIZE];
    int64_t number; /* 1, 2, … within the job: "attempt" in the file */
    int64_t fence;
    char *folder;      /* attempt_dir, absolute */
    char *host_folder; /* host_dir, absolute, host-local */
    attempt_rank *rank;
    int ranks;
} attempt_file;

/* Reads {job, attempt, fence, attempt_dir, host_dir, ranks: [{host, local_rank, cores, device}]}.
 * Checked: every field, absolute folders, and that the local ranks of each host are 0, 1, 2, …
 * without holes or doubles. Unknown members are left alone: a newer agent may say more. */
CHECK_RESULT status attempt_load(const char *path, attempt_file *ret_attempt, errbuf *err);
CHECK_RESULT status attempt_parse(const char *text, size_t length, const char *source,
                                  attempt_file *ret_attempt, errbuf *err);
void attempt_fini(attempt_file *a); /* NULL-safe, idempotent */
/* Ranks on the host of rank `rank`. */
int attempt_local_ranks(const attempt_file *a, int rank);

/* "<job>.<attempt>.<fence>": the value of RINGMASTER_ATTEMPT, and its reading. */
void attempt_format_tag(const char *job, int64_t number, int64_t fence, char ret[ATTEMPT_TAG_SIZE]);
bool attempt_parse_tag(const char *tag, char ret_job[ATTEMPT_JOB_SIZE], int64_t *ret_number,
                       int64_t *ret_fence);

/* -- host_dir/control -- */

typedef enum attempt_control {
    ATTEMPT_STOP,       /* write a checkpoint and leave; also where the file is absent */
    ATTEMPT_CHECKPOINT, /* write a checkpoint and go on */
} attempt_control;

/* To be called on SIGUSR1. Anything but one of the two words is an error, on which the caller had
 * better stop too: that loses nothing. */
CHECK_RESULT status attempt_control_read(const char *host_folder, attempt_control *ret_control,
                                         errbuf *err);
/* The agent's side. */
CHECK_RESULT status attempt_control_write(const char *host_folder, attempt_control control,
                                          errbuf *err);

/* -- host_dir/progress -- */

/*
 * One record of 64 bytes a local rank, at 64 * local_rank, little endian:
 *   0  u64  step
 *   8  u32  phase (enum attempt_phase)
 *   12 u32  version: odd while the record is being written, counts up by two an update
 *   16 u64  CLOCK_MONOTONIC of the update, ns
 *   24      zero
 * One writer a record, no lock: an update is five stores. A reader takes the version, the fields,
 * and the version again, and tries again where they differ or it is odd; every field is aligned
 * and so never torn by itself. The file is mapped by its writers, so it must lie on a file system
 * of the host.
 */
#define ATTEMPT_PROGRESS_RECORD  64
#define ATTEMPT_PROGRESS_STEP    0
#define ATTEMPT_PROGRESS_PHASE   8
#define ATTEMPT_PROGRESS_VERSION 12
#define ATTEMPT_PROGRESS_TIME    16

typedef enum attempt_phase {
    ATTEMPT_NOT_STARTED, /* the record is still all zero */
    ATTEMPT_LOADING,
    ATTEMPT_TUNING,
    ATTEMPT_TRAINING,
    ATTEMPT_EVALUATING,
    ATTEMPT_CHECKPOINTING,
    ATTEMPT_FINISHED,
} attempt_phase;

/* The rank's own record, mapped. Zero-initialised it is closed, and updates go nowhere, so that a
 * run without an agent needs no special case. */
typedef struct attempt_progress {
    void *map;
    size_t size;
    unsigned char *record;
} attempt_progress;

/* Makes the file with `local_ranks` records where it is not there. */
CHECK_RESULT status attempt_progress_open(attempt_progress *p, const char *host_folder,
                                          int local_rank, int local_ranks, errbuf *err);
/* A reading of the clock and five stores; no system call. */
void attempt_progress_update(attempt_progress *p, uint64_t step, attempt_phase phase);
void attempt_progress_close(attempt_progress *p); /* NULL-safe, idempotent */

typedef struct attempt_progress_view {
    uint64_t step;
    attempt_phase phase;
    uint64_t time_ns;
} attempt_progress_view;

/* The agent's side: one record of the file. STATUS_ENVIRONMENT where it is not there or keeps
 * changing under the reader. */
CHECK_RESULT status attempt_progress_read(const char *host_folder, int local_rank,
                                          attempt_progress_view *ret, errbuf *err);
const char *attempt_phase_name(attempt_phase phase);

#endif
