/*
 * The metric log of a run folder (run_folder.h, FORMATS 3): appending records to this attempt's
 * metrics.jsonl, and reading the attempts' logs as one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/json.h"
#include "protocol/metrics.h"
#include "protocol/strbuf.h"
#include "trainer/run_folder.h"

/* ---- appending ---- */

/* All of the line or nothing: readers skip a torn last line, not one in the middle. */
static status append_line(run_folder *f, const char *line, size_t length, errbuf *err)
{
    struct stat before;
    size_t done = 0;
    if (fstat(f->metrics, &before) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s/metrics.jsonl: %s", f->attempt_path,
                          strerror(errno));
    while (done < length) { /* more than once only where the disk fills up or a signal comes */
        const ssize_t n = write(f->metrics, line + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            const int error = errno;
            const bool is_undone = done == 0 || ftruncate(f->metrics, before.st_size) == 0;
            return errbuf_set(err, STATUS_ENVIRONMENT, "%s/metrics.jsonl: cannot append: %s%s",
                              f->attempt_path, strerror(error),
                              is_undone ? "" : " (and its last line is torn)");
        }
        done += (size_t)n;
    }
    return STATUS_OK;
}

status run_folder_record(run_folder *f, const char *kind, int64_t epoch, int64_t step,
                         cJSON *fields, errbuf *err)
{
    const metrics_head head = {.job = f->job,
                               .attempt = f->attempt,
                               .seq = f->next_seq,
                               .kind = kind,
                               .epoch = epoch,
                               .step = step};
    char *line = NULL;
    status st = metrics_line(&head, fields, &line, err);
    cJSON_Delete(fields);
    TRY(st);
    st = append_line(f, line, strlen(line), err);
    free(line);
    if (st == STATUS_OK)
        f->next_seq++;
    return st;
}

status run_folder_sync(run_folder *f, errbuf *err)
{
    if (f->metrics >= 0 && fsync(f->metrics) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s/metrics.jsonl: cannot sync: %s",
                          f->attempt_path, strerror(errno));
    return STATUS_OK;
}

/* ---- merging ---- */

/* Attempts that the newest one descends from, newest first, each with the first of its records
 * that no longer counts. */
typedef struct chain {
    struct {
        int64_t attempt, end;
    } * link;
    size_t count;
} chain;

/* The parent's number and the first of its records to drop; 0 = began at zero. */
static status read_parent(const cJSON *run, const char *path, int64_t attempt, int64_t *ret_parent,
                          int64_t *ret_end, errbuf *err)
{
    const cJSON *from = cJSON_GetObjectItemCaseSensitive(run, "resumed_from");
    int64_t parent = 0, end = 0;
    if (cJSON_IsObject(from)) {
        status st = json_read_int(from, "attempt", 1, attempt - 1, "resumed_from.", &parent, err);
        if (st == STATUS_OK)
            st = json_read_int(from, "next_seq", 0, JSON_MAX_EXACT, "resumed_from.", &end, err);
        if (st != STATUS_OK) {
            errbuf_prefix(err, "%s/attempt-%" PRId64 "/run.json", path, attempt);
            return st;
        }
    }
    *ret_parent = parent;
    *ret_end = end;
    return STATUS_OK;
}

/* Puts `attempt` and all that it descends from behind the chain. */
static status follow(const char *path, int64_t attempt, cJSON *run, chain *c, errbuf *err)
{
    status st = STATUS_OK;
    int64_t end = INT64_MAX;
    while (attempt > 0) {
        c->link[c->count].attempt = attempt;
        c->link[c->count++].end = end;
        st = read_parent(run, path, attempt, &attempt, &end, err);
        cJSON_Delete(run);
        run = NULL;
        if (st == STATUS_OK && attempt > 0)
            st = run_folder_read_run(path, attempt, &run, err);
        if (st == STATUS_OK && attempt > 0 && run == NULL)
            st = errbuf_set(err, STATUS_BAD_INPUT,
                            "%s/attempt-%" PRId64 "/run.json is missing, and a later attempt "
                            "resumed from it",
                            path, attempt);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

static status make_chain(const char *path, chain *ret_chain, errbuf *err)
{
    status st = STATUS_OK;
    int64_t *attempts = NULL;
    size_t count = 0;
    cJSON *run = NULL;
    chain c = {0};
    TRY(run_folder_attempts(path, &attempts, &count, err));
    c.link = calloc(count + 1, sizeof *c.link);
    if (c.link == NULL) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %zu attempts", count);
        goto cleanup;
    }
    while (count > 0 && run == NULL) /* one without run.json died before it began */
        TRY_GOTO(run_folder_read_run(path, attempts[--count], &run, err), st, cleanup);
    if (run == NULL) {
        st = errbuf_set(err, STATUS_BAD_INPUT,
                        "%s: holds no attempt that has begun; is it a run folder (`out`)?", path);
        goto cleanup;
    }
    TRY_GOTO(follow(path, attempts[count], run, &c, err), st, cleanup);
    *ret_chain = c;
    c.link = NULL;
cleanup:
    free(c.link);
    free(attempts);
    return st;
}

/* Where a log is being read. */
typedef struct log_reader {
    const char *path;
    FILE *from;
    char *line;
    size_t capacity;
    int64_t number; /* of the line, from 1 */
    int64_t seq;    /* of the record before; -1 = none */
} log_reader;

/* A record's seq, which counts up by one from line to line. */
static status check_record(log_reader *r, size_t length, errbuf *err)
{
    char where[32];
    cJSON *record = NULL;
    int64_t seq = 0;
    snprintf(where, sizeof where, "line %" PRId64, r->number);
    status st = json_parse(r->line, length, where, &record, err);
    if (st == STATUS_OK)
        st = json_read_int(record, "seq", 0, JSON_MAX_EXACT, "", &seq, err);
    cJSON_Delete(record);
    if (st == STATUS_OK && r->seq >= 0 && seq != r->seq + 1)
        st = errbuf_set(err, STATUS_BAD_INPUT, "seq %" PRId64 " follows %" PRId64, seq, r->seq);
    if (st != STATUS_OK) {
        errbuf_prefix(err, "%s:%" PRId64, r->path, r->number);
        return st;
    }
    r->seq = seq;
    return STATUS_OK;
}

/* Copies the records below `end`. The last line is left out where it is torn. */
static status copy_records(log_reader *r, int64_t end, FILE *to, errbuf *err)
{
    for (;;) {
        const ssize_t length = getline(&r->line, &r->capacity, r->from);
        if (length <= 0)
            break;
        r->number++;
        errbuf why = {0};
        const status st =
            r->line[length - 1] == '\n' ? check_record(r, (size_t)length, &why) : STATUS_BAD_INPUT;
        const int next = getc(r->from);
        if (next == EOF && st == STATUS_BAD_INPUT)
            break;
        if (st != STATUS_OK)
            return errbuf_set(err, st, "%s", why.text);
        ungetc(next, r->from);
        if (r->seq >= end)
            break;
        if (fwrite(r->line, 1, (size_t)length, to) != (size_t)length)
            return errbuf_set(err, STATUS_ENVIRONMENT, "cannot write the log: %s", strerror(errno));
    }
    if (ferror(r->from))
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot read: %s", r->path, strerror(errno));
    return STATUS_OK;
}

static status print_attempt(const char *path, int64_t attempt, int64_t end, FILE *to, errbuf *err)
{
    status st = STATUS_OK;
    char *name = NULL;
    strbuf joined = {0};
    log_reader r = {.seq = -1};
    strbuf_add_format(&joined, "%s/attempt-%" PRId64 "/metrics.jsonl", path, attempt);
    TRY(strbuf_take(&joined, &name, err));
    r.path = name;
    r.from = fopen(name, "re");
    if (r.from == NULL)
        st = errbuf_set(err, STATUS_BAD_INPUT, "%s: cannot open: %s", name, strerror(errno));
    else
        st = copy_records(&r, end, to, err);
    if (r.from != NULL)
        fclose(r.from);
    free(r.line);
    free(name);
    return st;
}

status run_folder_print_metrics(const char *path, void *file, errbuf *err)
{
    status st = STATUS_OK;
    chain c = {0};
    TRY(make_chain(path, &c, err));
    for (size_t i = c.count; i-- > 0 && st == STATUS_OK;)
        st = print_attempt(path, c.link[i].attempt, c.link[i].end, file, err);
    if (st == STATUS_OK && fflush(file) != 0)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "cannot write the log: %s", strerror(errno));
    free(c.link);
    return st;
}
