/*
 * The log of a program: one line an event to stderr (or another descriptor), each with UTC time,
 * host, pid, rank and job, so that lines of many processes can be merged. A `struct log` (no
 * typedef: math.h has the name) is passed to whoever may write to it; there is no global one.
 * Library layers return errors and do not log.
 */
#ifndef RINGMASTER_PROTOCOL_LOG_H
#define RINGMASTER_PROTOCOL_LOG_H

#include <stdbool.h>

#include "protocol/status.h"

#define LOG_ENVIRONMENT "RINGMASTER_LOG"

typedef enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
} log_level;

struct log {
    log_level level; /* what is less urgent is not written */
    int fd;
    int rank; /* -1 = not shown */
    long pid;
    char host[64];
    char job[33]; /* "" = not shown */
};

/* Level from RINGMASTER_LOG (error, warn, info, debug; info where unset; another word is
 * STATUS_BAD_INPUT, and the log is usable at info), host and pid from the system, to stderr. */
CHECK_RESULT status log_init(struct log *l, int rank, errbuf *err);
void log_set_job(struct log *l, const char *job);
bool log_is_on(const struct log *l, log_level level);

/* One line, written by one write(2); control characters become spaces, an overlong line is cut
 * with "…". NULL-safe. */
void log_write(const struct log *l, log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
