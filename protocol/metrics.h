/*
 * Metric records: one JSON object a line, beginning with job, attempt, seq, time, kind, epoch and
 * step (FORMATS 3), then the kind's own fields. Numbers read back equal; what is not finite is
 * null.
 */
#ifndef RINGMASTER_PROTOCOL_METRICS_H
#define RINGMASTER_PROTOCOL_METRICS_H

#include <stdint.h>
#include <time.h>

#include <cjson/cJSON.h>

#include "protocol/status.h"

#define METRICS_TIME_SIZE 40

/* "2024-02-29T12:34:56.789Z": UTC, RFC 3339, milliseconds cut off. */
void metrics_format_time(const struct timespec *time, char ret[METRICS_TIME_SIZE]);
void metrics_now(char ret[METRICS_TIME_SIZE]);

typedef struct metrics_head {
    const char *job;
    int64_t attempt, seq;
    const char *kind;
    int64_t epoch, step;
    const char *time; /* NULL = now */
} metrics_head;

/* The record with its line feed; caller frees. `fields` is an object or NULL, is not changed, and
 * must not name one of the seven itself. */
CHECK_RESULT status metrics_line(const metrics_head *head, const cJSON *fields, char **ret_line,
                                 errbuf *err);

#endif
