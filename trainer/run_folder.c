/*
 * The run folder (run_folder.h): who may use it, attempts, run.json and result.json.
 * run_checkpoints.c has the checkpoints and links, run_log.c the metric log.
 */
#include "trainer/run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/spec.h"
#include "protocol/strbuf.h"
#include "trainer/run_numbers.h"

#define MAX_JSON (16 << 20) /* bytes of job.json or run.json */

status run_folder_attempts(const char *path, int64_t **ret_attempts, size_t *ret_count, errbuf *err)
{
    run_numbers list = {0};
    TRY(run_numbers_list(path, RUN_ATTEMPT_PREFIX, "", &list, err));
    *ret_attempts = list.number;
    *ret_count = list.count;
    return STATUS_OK;
}

/* ---- job.json ---- */

static status dump_spec(const char *text, size_t length, const char *source, char **ret_results,
                        errbuf *err)
{
    spec s;
    TRY(spec_init(&s, err));
    status st = spec_parse(&s, text, length, source, err);
    if (st == STATUS_OK)
        st = spec_dump_results(&s, ret_results, err);
    spec_fini(&s);
    return st;
}

/* The job.json that is there is of the same job, as far as a spec can tell. */
static status compare_job(const char *path, const char *job_json, errbuf *err)
{
    status st = STATUS_OK;
    char *text = NULL, *here = NULL, *there = NULL, *lines = NULL, folded[600];
    size_t length = 0;
    TRY_GOTO(file_read_all(path, MAX_JSON, &text, &length, err), st, cleanup);
    TRY_GOTO(dump_spec(text, length, path, &there, err), st, cleanup);
    TRY_GOTO(dump_spec(job_json, strlen(job_json), "job", &here, err), st, cleanup);
    TRY_GOTO(spec_diff_results(here, there, &lines, err), st, cleanup);
    checkpoint_fold_diff(lines, folded, sizeof folded);
    if (folded[0] != '\0')
        st = errbuf_set(
            err, STATUS_BAD_INPUT,
            "%s: this folder belongs to another job: %s; choose another with --set out=FOLDER",
            path, folded);
cleanup:
    free(lines);
    free(here);
    free(there);
    free(text);
    return st;
}

/* What a spec cannot tell: its data's content. Earlier attempts' run.json name their job. */
static status compare_job_id(const run_folder *f, errbuf *err)
{
    status st = STATUS_OK;
    run_numbers list = {0};
    TRY(run_numbers_list(f->path, RUN_ATTEMPT_PREFIX, "", &list, err));
    for (size_t i = list.count; i-- > 0 && st == STATUS_OK;) {
        cJSON *run = NULL;
        st = run_folder_read_run(f->path, list.number[i], &run, err);
        const cJSON *job = cJSON_GetObjectItemCaseSensitive(run, "job");
        if (st == STATUS_OK && cJSON_IsString(job) && strcmp(job->valuestring, f->job) != 0)
            st = errbuf_set(err, STATUS_BAD_INPUT,
                            "%s: this folder belongs to job %.32s, this is %s with the same spec: "
                            "the data differ; choose another folder with --set out=FOLDER",
                            f->path, job->valuestring, f->job);
        cJSON_Delete(run);
    }
    run_numbers_fini(&list);
    return st;
}

/* Makes `path` with `text` in one go; there already: nothing, and no error. */
static status create_once(const char *path, const char *text, errbuf *err)
{
    status st = STATUS_OK;
    char *fresh = NULL;
    TRY(run_path(&fresh, err, "%s.new-%ld", path, (long)getpid()));
    TRY_GOTO(file_write_atomic(fresh, text, strlen(text), err), st, cleanup);
    /* link never replaces, which rename would; some file systems only have rename */
    if (link(fresh, path) != 0 && errno != EEXIST && rename(fresh, path) != 0)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot create: %s", path, strerror(errno));
    unlink(fresh);
cleanup:
    free(fresh);
    return st;
}

static status settle_job(const run_folder *f, const char *job_json, errbuf *err)
{
    status st = STATUS_OK;
    char *path = NULL;
    TRY(run_path(&path, err, "%s/job.json", f->path));
    if (access(path, F_OK) != 0)
        TRY_GOTO(create_once(path, job_json, err), st, cleanup);
    TRY_GOTO(compare_job(path, job_json, err), st, cleanup);
    TRY_GOTO(compare_job_id(f, err), st, cleanup);
    st = file_sync_dir(f->path, err);
cleanup:
    free(path);
    return st;
}

/* ---- opening ---- */

static status resolve_path(const char *path, char **ret_path, errbuf *err)
{
    struct stat info;
    char *absolute = realpath(path, NULL);
    if (absolute == NULL)
        return errbuf_set(err, errno == ENOMEM ? STATUS_OUT_OF_MEMORY : STATUS_BAD_INPUT, "%s: %s",
                          path, strerror(errno));
    if (stat(absolute, &info) != 0 || !S_ISDIR(info.st_mode)) {
        free(absolute);
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: not a folder", path);
    }
    *ret_path = absolute;
    return STATUS_OK;
}

/* Two runs in one folder would both set its links and resume from each other's files. The lock is
 * the kernel's, on the folder itself, so nothing is left behind; a file system without locks is
 * used without. */
static status lock_folder(run_folder *f, errbuf *err)
{
    const struct timespec nap = {.tv_nsec = 100000000};
    f->lock = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->lock < 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot be opened: %s", f->path,
                          strerror(errno));
    for (int naps = 0; flock(f->lock, LOCK_EX | LOCK_NB) != 0; naps++) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return STATUS_OK;
        if (naps == 10 * RUN_LOCK_SECONDS)
            return errbuf_set(
                err, STATUS_BAD_INPUT,
                "%s: another run is training in this folder: stop it, wait for it, or "
                "choose another with --set out=FOLDER",
                f->path);
        nanosleep(&nap, NULL);
    }
    return STATUS_OK;
}

/* The next free attempt: whoever makes the folder has the number. */
static status claim_attempt(run_folder *f, errbuf *err)
{
    run_numbers list = {0};
    TRY(run_numbers_list(f->path, RUN_ATTEMPT_PREFIX, "", &list, err));
    int64_t attempt = list.count > 0 ? list.number[list.count - 1] + 1 : 1;
    run_numbers_fini(&list);
    for (;; attempt++) {
        char *path = NULL;
        TRY(run_path(&path, err, "%s/" RUN_ATTEMPT_PREFIX "%lld", f->path, (long long)attempt));
        if (mkdir(path, 0777) == 0) {
            f->attempt = attempt;
            f->attempt_path = path;
            return file_sync_dir(f->path, err);
        }
        const int error = errno;
        free(path);
        if (error != EEXIST)
            return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot make attempt-%lld: %s", f->path,
                              (long long)attempt, strerror(error));
    }
}

static status open_metrics(run_folder *f, errbuf *err)
{
    status st = STATUS_OK;
    char *path = NULL;
    TRY(run_path(&path, err, "%s/metrics.jsonl", f->attempt_path));
    f->metrics = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (f->metrics < 0)
        st = errno == EEXIST
                 ? errbuf_set(err, STATUS_BAD_INPUT,
                              "%s: there already: an attempt runs once, take the next number", path)
                 : errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot create: %s", path,
                              strerror(errno));
    free(path);
    return st == STATUS_OK ? file_sync_dir(f->attempt_path, err) : st;
}

static void start(run_folder *f, const char *job_id)
{
    *f = (run_folder){.metrics = -1, .lock = -1};
    snprintf(f->job, sizeof f->job, "%s", job_id);
}

status run_folder_open(run_folder *f, const char *out, const char *job_id, const char *job_json,
                       errbuf *err)
{
    status st = STATUS_OK;
    run_folder opened;
    start(&opened, job_id);
    if (out[0] == '\0')
        return errbuf_set(err, STATUS_BAD_INPUT, "out: no folder is given");
    TRY_GOTO(file_make_dirs(out, err), st, fail);
    TRY_GOTO(resolve_path(out, &opened.path, err), st, fail);
    TRY_GOTO(lock_folder(&opened, err), st, fail);
    TRY_GOTO(settle_job(&opened, job_json, err), st, fail);
    TRY_GOTO(claim_attempt(&opened, err), st, fail);
    TRY_GOTO(open_metrics(&opened, err), st, fail);
    *f = opened;
    return STATUS_OK;
fail:
    run_folder_close(&opened);
    return st;
}

status run_folder_open_attempt(run_folder *f, const char *attempt_dir, const char *job_id,
                               int64_t attempt, const char *job_json, errbuf *err)
{
    status st = STATUS_OK;
    run_folder opened;
    int64_t number = 0;
    start(&opened, job_id);
    opened.attempt = attempt;
    TRY_GOTO(resolve_path(attempt_dir, &opened.attempt_path, err), st, fail);
    const char *slash = strrchr(opened.attempt_path, '/');
    if (!run_numbers_parse(slash + 1, RUN_ATTEMPT_PREFIX, "", &number) || number != attempt) {
        st = errbuf_set(err, STATUS_BAD_INPUT, "attempt_dir: %s is not the folder of attempt %lld",
                        opened.attempt_path, (long long)attempt);
        goto fail;
    }
    TRY_GOTO(run_path(&opened.path, err, "%.*s", (int)(slash - opened.attempt_path),
                      opened.attempt_path),
             st, fail);
    TRY_GOTO(settle_job(&opened, job_json, err), st, fail);
    TRY_GOTO(open_metrics(&opened, err), st, fail);
    *f = opened;
    return STATUS_OK;
fail:
    run_folder_close(&opened);
    return st;
}

void run_folder_close(run_folder *f)
{
    if (f == NULL)
        return;
    if (f->metrics >= 0 && f->path != NULL) { /* never 0 of a struct that was only zeroed */
        fsync(f->metrics);
        close(f->metrics);
    }
    if (f->lock >= 0 && f->path != NULL)
        close(f->lock);
    free(f->attempt_path);
    free(f->path);
    *f = (run_folder){.metrics = -1, .lock = -1};
}

/* ---- run.json, result.json ---- */

status run_folder_read_run(const char *path, int64_t attempt, cJSON **ret_run, errbuf *err)
{
    status st = STATUS_OK;
    char *file = NULL, *text = NULL;
    size_t length = 0;
    cJSON *run = NULL;
    TRY(run_path(&file, err, "%s/" RUN_ATTEMPT_PREFIX "%lld/run.json", path, (long long)attempt));
    if (access(file, F_OK) != 0)
        goto cleanup; /* it died before it began */
    TRY_GOTO(file_read_all(file, MAX_JSON, &text, &length, err), st, cleanup);
    TRY_GOTO(json_parse(text, length, file, &run, err), st, cleanup);
cleanup:
    free(text);
    free(file);
    if (st == STATUS_OK)
        *ret_run = run;
    return st;
}

/* {job, attempt, what `json` holds besides}. */
static status named_copy(const run_folder *f, const cJSON *json, cJSON **ret_copy, errbuf *err)
{
    const cJSON *member = NULL;
    cJSON *copy = cJSON_CreateObject();
    bool is_made = cJSON_AddStringToObject(copy, "job", f->job) != NULL &&
                   cJSON_AddNumberToObject(copy, "attempt", (double)f->attempt) != NULL;
    cJSON_ArrayForEach (member, json) {
        if (strcmp(member->string, "job") != 0 && strcmp(member->string, "attempt") != 0)
            is_made = is_made &&
                      cJSON_AddItemToObject(copy, member->string, cJSON_Duplicate(member, true));
    }
    if (!is_made) {
        cJSON_Delete(copy);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for run.json or result.json");
    }
    *ret_copy = copy;
    return STATUS_OK;
}

static status write_json(const run_folder *f, const char *name, const cJSON *json, errbuf *err)
{
    status st = STATUS_OK;
    cJSON *named = NULL;
    char *path = NULL, *text = NULL;
    TRY_GOTO(run_path(&path, err, "%s/%s", f->attempt_path, name), st, cleanup);
    TRY_GOTO(named_copy(f, json, &named, err), st, cleanup);
    text = cJSON_Print(named);
    if (text == NULL)
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %s", path);
    else
        st = file_write_atomic(path, text, strlen(text), err);
cleanup:
    cJSON_free(text);
    cJSON_Delete(named);
    free(path);
    return st;
}

status run_folder_write_run(run_folder *f, const cJSON *json, errbuf *err)
{
    return write_json(f, "run.json", json, err);
}

status run_folder_write_result(run_folder *f, const cJSON *json, errbuf *err)
{
    TRY(run_folder_sync(f, err)); /* whoever sees the result sees every record */
    return write_json(f, "result.json", json, err);
}
