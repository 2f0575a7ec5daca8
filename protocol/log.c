/* The log of a program; see log.h. */
#include "protocol/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/metrics.h"

/* Below PIPE_BUF, so that lines of several ranks on one pipe do not mix. */
#define MAX_LINE 2048

static const char *const level_names[] = {"error", "warn", "info", "debug"};

status log_init(struct log *l, int rank, errbuf *err)
{
    memset(l, 0, sizeof *l);
    l->level = LOG_LEVEL_INFO;
    l->fd = STDERR_FILENO;
    l->rank = rank;
    l->pid = (long)getpid();
    if (gethostname(l->host, sizeof l->host) < 0)
        strcpy(l->host, "unknown");
    l->host[sizeof l->host - 1] = '\0';
    const char *word = getenv(LOG_ENVIRONMENT);
    if (!word || !word[0])
        return STATUS_OK;
    for (int i = 0; i < 4; i++) {
        if (strcmp(word, level_names[i]) == 0) {
            l->level = (log_level)i;
            return STATUS_OK;
        }
    }
    return errbuf_set(err, STATUS_BAD_INPUT,
                      LOG_ENVIRONMENT ": expected error, warn, info or debug, not \"%.40s\"", word);
}

void log_set_job(struct log *l, const char *job)
{
    snprintf(l->job, sizeof l->job, "%s", job);
}

bool log_is_on(const struct log *l, log_level level)
{
    return l && level <= l->level;
}

static size_t format_head(const struct log *l, log_level level, char *line, size_t size)
{
    char time[METRICS_TIME_SIZE], rank[24] = "";
    metrics_now(time);
    if (l->rank >= 0)
        snprintf(rank, sizeof rank, " rank %d", l->rank);
    int n = snprintf(line, size, "%s %s[%ld]%s%s%s %s: ", time, l->host, l->pid, rank,
                     l->job[0] ? " job " : "", l->job, level_names[level]);
    return n < 0 ? 0 : (size_t)n;
}

void log_write(const struct log *l, log_level level, const char *format, ...)
{
    char line[MAX_LINE];
    if (!log_is_on(l, level))
        return;
    size_t begin = format_head(l, level, line, sizeof line), room = sizeof line - begin - 1;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line + begin, room, format, args);
    va_end(args);
    size_t length = n < 0 ? 0 : (size_t)n;
    if (length >= room) {
        length = room - 1;
        /* Not into the middle of a character. */
        size_t end = begin + length - strlen("…");
        while (end > begin && ((unsigned char)line[end] & 0xc0) == 0x80)
            end--;
        length = end - begin + (size_t)snprintf(line + end, sizeof line - end, "…");
    }
    for (size_t i = begin; i < begin + length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[begin + length] = '\n';
    /* There is nowhere to report that the log itself cannot be written. */
    status ignored = file_write_fd(l->fd, "the log", line, begin + length + 1, NULL);
    (void)ignored;
}
