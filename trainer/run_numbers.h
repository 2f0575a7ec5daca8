/*
 * Paths, and numbered names in a folder ("attempt-7", "ckpt-100.safetensors"): what the parts of
 * the run folder share.
 */
#ifndef RINGMASTER_TRAINER_RUN_NUMBERS_H
#define RINGMASTER_TRAINER_RUN_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

#define RUN_ATTEMPT_PREFIX "attempt-"

typedef struct run_numbers {
    int64_t *number; /* ascending */
    size_t count;
} run_numbers;

/* The numbers of all `<prefix><n><suffix>` in a folder; one that is not there has none. */
CHECK_RESULT status run_numbers_list(const char *folder, const char *prefix, const char *suffix,
                                     run_numbers *ret_list, errbuf *err);
void run_numbers_fini(run_numbers *l); /* idempotent */

/* "ckpt-100.safetensors" -> 100; false for any other spelling ("ckpt-0100…", "ckpt-1.tmp"). */
bool run_numbers_parse(const char *name, const char *prefix, const char *suffix, int64_t *ret);

/* asprintf that reports; the caller frees. */
CHECK_RESULT status run_path(char **ret_path, errbuf *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
