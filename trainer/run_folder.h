/*
 * The run folder (FORMATS 3): job.json, attempt-<n>/, links last and best; the metric log.
 * Used by rank 0 only.
 */
#ifndef RINGMASTER_TRAINER_RUN_FOLDER_H
#define RINGMASTER_TRAINER_RUN_FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"
#include "trainer/checkpoint.h"

struct cJSON;

#define RUN_LOCK_SECONDS 5

typedef struct run_folder {
    char *path; /* absolute */
    char job[33];
    int64_t attempt;
    char *attempt_path; /* path/attempt-<n> */
    int metrics;        /* fd of metrics.jsonl, -1 = not open */
    int lock;           /* fd of the locked folder of a run alone, -1 = not locked */
    int64_t next_seq;
} run_folder;

/* Creates `out` and job.json (there already with another id: STATUS_BAD_INPUT naming what differs),
 * then attempt-<n> with the next free number by exclusive mkdir; metrics.jsonl opened. The folder
 * stays locked until it is closed or the process ends; in use by another run for longer than
 * RUN_LOCK_SECONDS: STATUS_BAD_INPUT. (Ranks whose mpirun was killed live on for a moment.) */
CHECK_RESULT status run_folder_open(run_folder *f, const char *out, const char *job_id,
                                    const char *job_json, errbuf *err);
/* The same in a folder that the agent made (train --attempt). */
CHECK_RESULT status run_folder_open_attempt(run_folder *f, const char *attempt_dir,
                                            const char *job_id, int64_t attempt,
                                            const char *job_json, errbuf *err);
void run_folder_close(run_folder *f); /* NULL-safe; syncs and closes metrics */

/* The newest valid checkpoint of any earlier attempt, *ret_path NULL where there is none. A
 * damaged one is passed over with one line in ret_notes (caller frees both; NULL = no notes); one
 * that is whole but of another format or map version is STATUS_BAD_INPUT.
 * ret_attempt: whose it is. */
CHECK_RESULT status run_folder_find_checkpoint(const run_folder *f, char **ret_path,
                                               int64_t *ret_attempt, checkpoint_head *ret_head,
                                               char **ret_notes, errbuf *err);

/* run.json; result.json; both atomically, job and attempt put in front. Takes nothing: the caller
 * deletes `json`. result.json comes last: it syncs metrics.jsonl first. */
CHECK_RESULT status run_folder_write_run(run_folder *f, const struct cJSON *json, errbuf *err);
CHECK_RESULT status run_folder_write_result(run_folder *f, const struct cJSON *json, errbuf *err);

/* Appends one record {job, attempt, seq, time, kind, epoch, step, fields…}; consumes `fields`
 * (may be NULL), also on failure. next_seq counts up. One write(2) a record. */
CHECK_RESULT status run_folder_record(run_folder *f, const char *kind, int64_t epoch, int64_t step,
                                      struct cJSON *fields, errbuf *err);
CHECK_RESULT status run_folder_sync(run_folder *f, errbuf *err); /* fsync of metrics.jsonl */

/* attempt_path/ckpt-<step>.safetensors; caller frees. */
CHECK_RESULT status run_folder_checkpoint_path(const run_folder *f, int64_t step, char **ret_path,
                                               errbuf *err);
/* Keeps the newest two checkpoints of this attempt and the one of best_step; removes the rest. */
CHECK_RESULT status run_folder_prune(const run_folder *f, int64_t best_step, errbuf *err);
/* Sets links last.safetensors and best.safetensors (each atomically) to files of any attempt;
 * NULL leaves a link alone. */
CHECK_RESULT status run_folder_link(const run_folder *f, const char *last, const char *best,
                                    errbuf *err);

/* The merged log of a run folder to a stream: attempts in order, following resumed_from
 * (ringtrain metrics). The newest attempt that has a run.json and those that it descends from;
 * what an attempt wrote after the checkpoint that the next one resumed from is left out, and so is
 * a torn last line. Any other damage: STATUS_BAD_INPUT naming file:line. */
CHECK_RESULT status run_folder_print_metrics(const char *path, void *file, errbuf *err);

/* Where the best checkpoint so far lies, over all attempts; NULL = none. Caller frees. */
CHECK_RESULT status run_folder_find_step(const run_folder *f, int64_t step, char **ret_path,
                                         errbuf *err);

/* Numbers of the attempts in a run folder, ascending; the caller frees. */
CHECK_RESULT status run_folder_attempts(const char *path, int64_t **ret_attempts, size_t *ret_count,
                                        errbuf *err);
/* An attempt's run.json; NULL where there is none. The caller deletes it. */
CHECK_RESULT status run_folder_read_run(const char *path, int64_t attempt, struct cJSON **ret_run,
                                        errbuf *err);
#endif
