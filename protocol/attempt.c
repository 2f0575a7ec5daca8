/* The attempt file, the tag and the control file; see attempt.h. */
#include "protocol/attempt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/json.h"

#define MAX_ATTEMPT_BYTES ((size_t)64 << 20)
#define MAX_CONTROL_BYTES 64
#define MAX_WHERE         400

static const char *const control_words[] = {"stop", "checkpoint"};

static bool is_job_id(const char *text, size_t length)
{
    return length == ATTEMPT_JOB_SIZE - 1 && strspn(text, "0123456789abcdef") >= length;
}

/* -- the attempt file -- */

static int int_compare(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static status read_cores(const cJSON *object, const char *where, attempt_rank *rank, errbuf *err)
{
    const cJSON *cores = cJSON_GetObjectItemCaseSensitive(object, "cores");
    if (!cJSON_IsArray(cores))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%scores: expected an array of core numbers, not "
                          "%s",
                          where, json_kind(cores));
    int count = cJSON_GetArraySize(cores);
    if (count == 0)
        return STATUS_OK;
    rank->core = calloc((size_t)count, sizeof *rank->core);
    if (!rank->core)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading the attempt file");
    const cJSON *core;
    cJSON_ArrayForEach (core, cores) {
        double number = cJSON_IsNumber(core) ? core->valuedouble : -1;
        if (!(number >= 0 && number < ATTEMPT_MAX_CORES) || number != (int)number)
            return errbuf_set(err, STATUS_BAD_INPUT, "%scores[%d]: expected an integer in [0, %d]",
                              where, rank->cores, ATTEMPT_MAX_CORES - 1);
        rank->core[rank->cores++] = (int)number;
    }
    qsort(rank->core, (size_t)count, sizeof *rank->core, int_compare);
    for (int i = 1; i < count; i++)
        if (rank->core[i] == rank->core[i - 1])
            return errbuf_set(err, STATUS_BAD_INPUT, "%scores: core %d stands there twice", where,
                              rank->core[i]);
    return STATUS_OK;
}

static status read_rank(const cJSON *object, int number, const char *source, attempt_rank *rank,
                        errbuf *err)
{
    char where[MAX_WHERE];
    const char *host;
    int64_t value;
    snprintf(where, sizeof where, "%s: ranks[%d].", source, number);
    if (!cJSON_IsObject(object))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: ranks[%d]: expected an object, not %s",
                          source, number, json_kind(object));
    TRY(json_read_string(object, "host", where, &host, err));
    if (!host[0])
        return errbuf_set(err, STATUS_BAD_INPUT, "%shost is empty", where);
    TRY(string_copy(host, &rank->host, err));
    TRY(json_read_int(object, "local_rank", 0, ATTEMPT_MAX_RANKS - 1, where, &value, err));
    rank->local_rank = (int)value;
    TRY(read_cores(object, where, rank, err));
    const cJSON *device = cJSON_GetObjectItemCaseSensitive(object, "device");
    rank->device = -1;
    if (device && !cJSON_IsNull(device)) {
        TRY(json_read_int(object, "device", 0, 65535, where, &value, err));
        rank->device = (int)value;
    }
    return STATUS_OK;
}

static int rank_compare(const void *a, const void *b)
{
    const attempt_rank *x = *(const attempt_rank *const *)a, *y = *(const attempt_rank *const *)b;
    int order = strcmp(x->host, y->host);
    return order ? order : (x->local_rank > y->local_rank) - (x->local_rank < y->local_rank);
}

/* Two ranks of one place would write one progress record and pin to one device. */
static status check_local_ranks(const attempt_file *a, const char *source, errbuf *err)
{
    const attempt_rank **sorted = calloc((size_t)a->ranks, sizeof(*sorted));
    if (!sorted)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading the attempt file");
    for (int i = 0; i < a->ranks; i++)
        sorted[i] = &a->rank[i];
    qsort(sorted, (size_t)a->ranks, sizeof(*sorted), rank_compare);
    status st = STATUS_OK;
    int expected = 0;
    for (int i = 0; i < a->ranks && st == STATUS_OK; i++) {
        if (i > 0 && strcmp(sorted[i]->host, sorted[i - 1]->host) != 0)
            expected = 0;
        if (sorted[i]->local_rank != expected++)
            st = errbuf_set(err, STATUS_BAD_INPUT,
                            "%s: host %.80s: local ranks are not 0, 1, 2, … (%d where %d is due)",
                            source, sorted[i]->host, sorted[i]->local_rank, expected - 1);
    }
    free(sorted);
    return st;
}

static status read_folder(const cJSON *json, const char *name, const char *where, char **folder,
                          errbuf *err)
{
    const char *text;
    TRY(json_read_string(json, name, where, &text, err));
    if (text[0] != '/')
        return errbuf_set(err, STATUS_BAD_INPUT, "%s%s: expected an absolute path, not \"%.200s\"",
                          where, name, text);
    return string_copy(text, folder, err);
}

static status read_attempt(const cJSON *json, const char *source, attempt_file *a, errbuf *err)
{
    char where[MAX_WHERE];
    const char *job;
    snprintf(where, sizeof where, "%s: ", source);
    if (!cJSON_IsObject(json))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected a JSON object, not %s", source,
                          json_kind(json));
    TRY(json_read_string(json, "job", where, &job, err));
    if (!is_job_id(job, strlen(job)))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%sjob: expected 32 lower-case hex digits, not \"%.80s\"", where, job);
    memcpy(a->job, job, sizeof a->job);
    TRY(json_read_int(json, "attempt", 1, JSON_MAX_EXACT, where, &a->number, err));
    TRY(json_read_int(json, "fence", 0, JSON_MAX_EXACT, where, &a->fence, err));
    TRY(read_folder(json, "attempt_dir", where, &a->folder, err));
    TRY(read_folder(json, "host_dir", where, &a->host_folder, err));
    const cJSON *ranks = cJSON_GetObjectItemCaseSensitive(json, "ranks");
    int count = cJSON_IsArray(ranks) ? cJSON_GetArraySize(ranks) : 0;
    if (count < 1 || count > ATTEMPT_MAX_RANKS)
        return errbuf_set(err, STATUS_BAD_INPUT, "%sranks: expected an array of 1 to %d ranks",
                          where, ATTEMPT_MAX_RANKS);
    a->rank = calloc((size_t)count, sizeof *a->rank);
    if (!a->rank)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading %s", source);
    a->ranks = count;
    int n = 0;
    const cJSON *rank;
    cJSON_ArrayForEach (rank, ranks) {
        TRY(read_rank(rank, n, source, &a->rank[n], err));
        n++;
    }
    return check_local_ranks(a, source, err);
}

status attempt_parse(const char *text, size_t length, const char *source, attempt_file *ret_attempt,
                     errbuf *err)
{
    cJSON *json = NULL;
    TRY(json_parse(text, length, source, &json, err));
    attempt_file a = {0};
    status st = read_attempt(json, source, &a, err);
    cJSON_Delete(json);
    if (st != STATUS_OK) {
        attempt_fini(&a);
        return st;
    }
    *ret_attempt = a;
    return STATUS_OK;
}

status attempt_load(const char *path, attempt_file *ret_attempt, errbuf *err)
{
    char *text = NULL;
    size_t length = 0;
    TRY(file_read_all(path, MAX_ATTEMPT_BYTES, &text, &length, err));
    status st = attempt_parse(text, length, path, ret_attempt, err);
    free(text);
    return st;
}

void attempt_fini(attempt_file *a)
{
    if (!a)
        return;
    for (int i = 0; i < a->ranks; i++) {
        free(a->rank[i].host);
        free(a->rank[i].core);
    }
    free(a->rank);
    free(a->folder);
    free(a->host_folder);
    memset(a, 0, sizeof *a);
}

int attempt_local_ranks(const attempt_file *a, int rank)
{
    ASSERT(rank >= 0 && rank < a->ranks);
    int count = 0;
    for (int i = 0; i < a->ranks; i++)
        count += strcmp(a->rank[i].host, a->rank[rank].host) == 0;
    return count;
}

/* -- the tag -- */

void attempt_format_tag(const char *job, int64_t number, int64_t fence, char ret[ATTEMPT_TAG_SIZE])
{
    snprintf(ret, ATTEMPT_TAG_SIZE, "%.32s.%" PRId64 ".%" PRId64, job, number, fence);
}

/* One non-negative number in decimal that ends at `end`. */
static bool read_number(const char *text, char end, int64_t *ret, const char **ret_behind)
{
    char *behind;
    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    long long value = strtoll(text, &behind, 10);
    if (errno != 0 || *behind != end)
        return false;
    *ret = value;
    *ret_behind = behind;
    return true;
}

bool attempt_parse_tag(const char *tag, char ret_job[ATTEMPT_JOB_SIZE], int64_t *ret_number,
                       int64_t *ret_fence)
{
    const char *dot = strchr(tag, '.');
    const char *behind;
    int64_t number, fence;
    if (!dot || !is_job_id(tag, (size_t)(dot - tag)))
        return false;
    if (!read_number(dot + 1, '.', &number, &behind) ||
        !read_number(behind + 1, '\0', &fence, &behind))
        return false;
    memcpy(ret_job, tag, ATTEMPT_JOB_SIZE - 1);
    ret_job[ATTEMPT_JOB_SIZE - 1] = '\0';
    *ret_number = number;
    *ret_fence = fence;
    return true;
}

/* -- host_dir/control -- */

static status control_path(const char *host_folder, char **ret_path, errbuf *err)
{
    strbuf b = {0};
    strbuf_add_format(&b, "%s/control", host_folder);
    return strbuf_take(&b, ret_path, err);
}

static status control_parse(char *text, const char *path, attempt_control *ret_control, errbuf *err)
{
    text[strcspn(text, "\r\n")] = '\0';
    for (int i = 0; i < 2; i++) {
        if (strcmp(text, control_words[i]) == 0) {
            *ret_control = (attempt_control)i;
            return STATUS_OK;
        }
    }
    return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected stop or checkpoint, not \"%.40s\"", path,
                      text);
}

status attempt_control_read(const char *host_folder, attempt_control *ret_control, errbuf *err)
{
    char *path = NULL, *text = NULL;
    size_t length = 0;
    TRY(control_path(host_folder, &path, err));
    status st = STATUS_OK;
    if (access(path, F_OK) < 0 && errno == ENOENT) {
        *ret_control = ATTEMPT_STOP;
    } else {
        st = file_read_all(path, MAX_CONTROL_BYTES, &text, &length, err);
        if (st == STATUS_OK)
            st = control_parse(text, path, ret_control, err);
    }
    free(text);
    free(path);
    return st;
}

status attempt_control_write(const char *host_folder, attempt_control control, errbuf *err)
{
    char *path = NULL, line[16];
    ASSERT(control == ATTEMPT_STOP || control == ATTEMPT_CHECKPOINT);
    TRY(control_path(host_folder, &path, err));
    int length = snprintf(line, sizeof line, "%s\n", control_words[control]);
    status st = file_write_atomic(path, line, (size_t)length, err);
    free(path);
    return st;
}
