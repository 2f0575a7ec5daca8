/*
 * The run folder (run_folder.h): who may use it, attempts, checkpoints and links. The metric log
 * is in run_log.c.
 */
#include "trainer/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/spec.h"
#include "protocol/strbuf.h"

#define CHECKPOINT_PREFIX "ckpt-"
#define CHECKPOINT_SUFFIX ".safetensors"
#define ATTEMPT_PREFIX    "attempt-"
#define KEPT_CHECKPOINTS  2
#define MAX_LISTINGS      100 /* of a folder whose files go while they are opened */
#define MAX_NUMBER_DIGITS 18
#define MAX_JSON          (16 << 20) /* bytes of job.json or run.json */

__attribute__((format(printf, 3, 4))) static status make_path(char **ret_path, errbuf *err,
                                                              const char *format, ...)
{
    char *path = NULL;
    va_list args;
    va_start(args, format);
    const int length = vasprintf(&path, format, args);
    va_end(args);
    if (length < 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a path");
    *ret_path = path;
    return STATUS_OK;
}

/* ---- numbered names ---- */

typedef struct number_list {
    int64_t *number; /* ascending */
    size_t count;
} number_list;

static void numbers_fini(number_list *l)
{
    free(l->number);
    memset(l, 0, sizeof *l);
}

/* "ckpt-100.safetensors" -> 100; false for any other spelling ("ckpt-0100…", "ckpt-1.tmp"). */
static bool parse_name(const char *name, const char *prefix, const char *suffix, int64_t *ret)
{
    const size_t skip = strlen(prefix);
    if (strncmp(name, prefix, skip) != 0)
        return false;
    const char *digits = name + skip;
    const size_t length = strspn(digits, "0123456789");
    if (length == 0 || length > MAX_NUMBER_DIGITS || (digits[0] == '0' && length > 1) ||
        strcmp(digits + length, suffix) != 0)
        return false;
    *ret = strtoll(digits, NULL, 10);
    return true;
}

static int compare_numbers(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static status add_number(number_list *l, int64_t number, errbuf *err)
{
    if ((l->count & (l->count - 1)) == 0) { /* room for a power of two: full when at one */
        int64_t *grown = realloc(l->number, (l->count > 0 ? 2 * l->count : 1) * sizeof *grown);
        if (grown == NULL)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of files");
        l->number = grown;
    }
    l->number[l->count++] = number;
    return STATUS_OK;
}

/* The numbers of all `<prefix><n><suffix>` in a folder; one that is not there has none. */
static status list_numbers(const char *folder, const char *prefix, const char *suffix,
                           number_list *ret_list, errbuf *err)
{
    status st = STATUS_OK;
    number_list list = {0};
    int64_t number = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL && errno != ENOENT)
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot list: %s", folder, strerror(errno));
    while (dir != NULL) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL)
            break;
        if (parse_name(entry->d_name, prefix, suffix, &number))
            TRY_GOTO(add_number(&list, number, err), st, cleanup);
    }
    if (dir != NULL && errno != 0) {
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot list: %s", folder, strerror(errno));
        goto cleanup;
    }
    if (list.count > 0)
        qsort(list.number, list.count, sizeof *list.number, compare_numbers);
    *ret_list = list;
    memset(&list, 0, sizeof list);
cleanup:
    numbers_fini(&list);
    if (dir != NULL)
        closedir(dir);
    return st;
}

status run_folder_attempts(const char *path, int64_t **ret_attempts, size_t *ret_count, errbuf *err)
{
    number_list list = {0};
    TRY(list_numbers(path, ATTEMPT_PREFIX, "", &list, err));
    *ret_attempts = list.number;
    *ret_count = list.count;
    return STATUS_OK;
}

static status checkpoint_path(const run_folder *f, int64_t attempt, int64_t step, char **ret_path,
                              errbuf *err)
{
    return make_path(ret_path, err,
                     "%s/" ATTEMPT_PREFIX "%lld/" CHECKPOINT_PREFIX "%lld" CHECKPOINT_SUFFIX,
                     f->path, (long long)attempt, (long long)step);
}

static status list_checkpoints(const run_folder *f, int64_t attempt, number_list *ret_list,
                               errbuf *err)
{
    char *folder = NULL;
    TRY(make_path(&folder, err, "%s/" ATTEMPT_PREFIX "%lld", f->path, (long long)attempt));
    status st = list_numbers(folder, CHECKPOINT_PREFIX, CHECKPOINT_SUFFIX, ret_list, err);
    free(folder);
    return st;
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
    number_list list = {0};
    TRY(list_numbers(f->path, ATTEMPT_PREFIX, "", &list, err));
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
    numbers_fini(&list);
    return st;
}

/* Makes `path` with `text` in one go; there already: nothing, and no error. */
static status create_once(const char *path, const char *text, errbuf *err)
{
    status st = STATUS_OK;
    char *fresh = NULL;
    TRY(make_path(&fresh, err, "%s.new-%ld", path, (long)getpid()));
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
    TRY(make_path(&path, err, "%s/job.json", f->path));
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

/* The next free attempt: whoever makes the folder has the number. */
static status claim_attempt(run_folder *f, errbuf *err)
{
    number_list list = {0};
    TRY(list_numbers(f->path, ATTEMPT_PREFIX, "", &list, err));
    int64_t attempt = list.count > 0 ? list.number[list.count - 1] + 1 : 1;
    numbers_fini(&list);
    for (;; attempt++) {
        char *path = NULL;
        TRY(make_path(&path, err, "%s/" ATTEMPT_PREFIX "%lld", f->path, (long long)attempt));
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
    TRY(make_path(&path, err, "%s/metrics.jsonl", f->attempt_path));
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
    *f = (run_folder){.metrics = -1};
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
    if (!parse_name(slash + 1, ATTEMPT_PREFIX, "", &number) || number != attempt) {
        st = errbuf_set(err, STATUS_BAD_INPUT, "attempt_dir: %s is not the folder of attempt %lld",
                        opened.attempt_path, (long long)attempt);
        goto fail;
    }
    TRY_GOTO(make_path(&opened.path, err, "%.*s", (int)(slash - opened.attempt_path),
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
    free(f->attempt_path);
    free(f->path);
    *f = (run_folder){.metrics = -1};
}

/* ---- run.json, result.json ---- */

status run_folder_read_run(const char *path, int64_t attempt, cJSON **ret_run, errbuf *err)
{
    status st = STATUS_OK;
    char *file = NULL, *text = NULL;
    size_t length = 0;
    cJSON *run = NULL;
    TRY(make_path(&file, err, "%s/" ATTEMPT_PREFIX "%lld/run.json", path, (long long)attempt));
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
    TRY_GOTO(make_path(&path, err, "%s/%s", f->attempt_path, name), st, cleanup);
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

/* ---- checkpoints ---- */

status run_folder_checkpoint_path(const run_folder *f, int64_t step, char **ret_path, errbuf *err)
{
    return checkpoint_path(f, f->attempt, step, ret_path, err);
}

/* What a search for a checkpoint has found. */
typedef struct search {
    char *path; /* NULL = nothing yet */
    int64_t attempt;
    checkpoint_head head;
    strbuf notes;
    bool is_stale; /* a listed file is gone: another attempt's owner is pruning, list again */
} search;

static void search_fini(search *s)
{
    free(s->path);
    checkpoint_head_fini(&s->head);
    strbuf_fini(&s->notes);
    memset(s, 0, sizeof *s);
}

static status try_checkpoint(const run_folder *f, int64_t attempt, int64_t step, search *s,
                             errbuf *err)
{
    char *path = NULL;
    errbuf why = {0};
    TRY(checkpoint_path(f, attempt, step, &path, err));
    status st = checkpoint_verify(path, &s->head, &why);
    if (st == STATUS_OK) {
        s->path = path;
        s->attempt = attempt;
        return STATUS_OK;
    }
    if (access(path, F_OK) != 0 && errno == ENOENT)
        s->is_stale = true;
    else if (st == STATUS_BAD_INPUT)
        strbuf_add_format(&s->notes, "%s%s; taking the one before", s->notes.length > 0 ? "\n" : "",
                          why.text);
    else {
        free(path);
        return errbuf_set(err, st, "%s", why.text);
    }
    free(path);
    return STATUS_OK;
}

/* One pass over all earlier attempts, newest attempt and step first. */
static status search_once(const run_folder *f, search *s, errbuf *err)
{
    status st = STATUS_OK;
    number_list attempts = {0};
    TRY(list_numbers(f->path, ATTEMPT_PREFIX, "", &attempts, err));
    for (size_t a = attempts.count; a-- > 0 && s->path == NULL && !s->is_stale;) {
        number_list steps = {0};
        if (attempts.number[a] >= f->attempt)
            continue;
        TRY_GOTO(list_checkpoints(f, attempts.number[a], &steps, err), st, cleanup);
        for (size_t i = steps.count; i-- > 0 && s->path == NULL && !s->is_stale && st == STATUS_OK;)
            st = try_checkpoint(f, attempts.number[a], steps.number[i], s, err);
        numbers_fini(&steps);
        if (st != STATUS_OK)
            break;
    }
cleanup:
    numbers_fini(&attempts);
    return st;
}

status run_folder_find_checkpoint(const run_folder *f, char **ret_path, int64_t *ret_attempt,
                                  checkpoint_head *ret_head, char **ret_notes, errbuf *err)
{
    status st = STATUS_OK;
    char *notes = NULL;
    search s = {0};
    for (int i = 0; i < MAX_LISTINGS; i++) {
        search_fini(&s);
        TRY_GOTO(search_once(f, &s, err), st, cleanup);
        if (!s.is_stale)
            break;
    }
    if (s.is_stale) {
        st = errbuf_set(err, STATUS_ENVIRONMENT,
                        "%s: checkpoints vanish while they are opened: is another run using it?",
                        f->path);
        goto cleanup;
    }
    if (s.notes.length > 0 || s.notes.is_failed)
        TRY_GOTO(strbuf_take(&s.notes, &notes, err), st, cleanup);
    *ret_path = s.path;
    *ret_notes = notes;
    if (s.path != NULL) {
        *ret_attempt = s.attempt;
        *ret_head = s.head;
    }
    memset(&s, 0, sizeof s);
cleanup:
    search_fini(&s);
    return st;
}

status run_folder_find_step(const run_folder *f, int64_t step, char **ret_path, errbuf *err)
{
    status st = STATUS_OK;
    number_list attempts = {0};
    char *found = NULL;
    TRY(list_numbers(f->path, ATTEMPT_PREFIX, "", &attempts, err));
    for (size_t a = attempts.count; a-- > 0 && found == NULL && st == STATUS_OK;) {
        st = checkpoint_path(f, attempts.number[a], step, &found, err);
        if (st == STATUS_OK && access(found, F_OK) != 0) {
            free(found);
            found = NULL;
        }
    }
    numbers_fini(&attempts);
    if (st == STATUS_OK)
        *ret_path = found;
    return st;
}

status run_folder_prune(const run_folder *f, int64_t best_step, errbuf *err)
{
    status st = STATUS_OK;
    number_list steps = {0};
    TRY(list_checkpoints(f, f->attempt, &steps, err));
    for (size_t i = 0; i + KEPT_CHECKPOINTS < steps.count && st == STATUS_OK; i++) {
        char *path = NULL;
        if (steps.number[i] == best_step)
            continue;
        TRY_GOTO(checkpoint_path(f, f->attempt, steps.number[i], &path, err), st, cleanup);
        if (unlink(path) != 0 && errno != ENOENT)
            st =
                errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot remove: %s", path, strerror(errno));
        free(path);
    }
cleanup:
    numbers_fini(&steps);
    return st;
}

/* ---- links ---- */

/* A link that is there is replaced in one go; its target is relative, so that the folder can be
 * moved. */
static status set_link(const run_folder *f, const char *name, const char *target, errbuf *err)
{
    status st = STATUS_OK;
    char *path = NULL, *fresh = NULL;
    const size_t root = strlen(f->path);
    if (strncmp(target, f->path, root) == 0 && target[root] == '/')
        target += root + 1;
    TRY_GOTO(make_path(&path, err, "%s/%s", f->path, name), st, cleanup);
    TRY_GOTO(make_path(&fresh, err, "%s.new-%ld", path, (long)getpid()), st, cleanup);
    unlink(fresh); /* of a process of the same number that died here */
    if (symlink(target, fresh) != 0 || rename(fresh, path) != 0) {
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot link to %s: %s", path, target,
                        strerror(errno));
        unlink(fresh);
    }
cleanup:
    free(fresh);
    free(path);
    return st;
}

status run_folder_link(const run_folder *f, const char *last, const char *best, errbuf *err)
{
    if (last != NULL)
        TRY(set_link(f, "last.safetensors", last, err));
    if (best != NULL)
        TRY(set_link(f, "best.safetensors", best, err));
    return file_sync_dir(f->path, err);
}
