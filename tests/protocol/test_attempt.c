/* The contract between agent and trainer, the log, and metric lines. */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>

#include "protocol/attempt.h"
#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/log.h"
#include "protocol/metrics.h"
#include "suite.h"

#define JOB  "00112233445566778899aabbccddeeff"
#define HEAD "{\"job\": \"" JOB "\", \"attempt\": 2, \"fence\": 9, "
#define DIRS "\"attempt_dir\": \"/r/attempt-2\", \"host_dir\": \"/tmp/h\", "
#define RANK "{\"host\": \"a\", \"local_rank\": 0, \"cores\": [3, 1], \"device\": 0}"

static char *folder;
static errbuf err;

static void setup(void)
{
    memset(&err, 0, sizeof err);
    folder = suite_folder();
}

static void teardown(void)
{
    suite_remove(folder);
}

static void write_file(const char *name, const char *text)
{
    char *path = suite_path(folder, name);
    ck_assert_ok(file_write_atomic(path, text, strlen(text), &err));
    free(path);
}

START_TEST(attempt_file_is_read)
{
    attempt_file a;
    char *path = suite_path(folder, "attempt.json");
    write_file("attempt.json", HEAD DIRS
               "\"later\": {}, \"ranks\": [" RANK
               ", {\"host\": \"b\", \"local_rank\": 0, \"cores\": []}"
               ", {\"host\": \"a\", \"local_rank\": 1, \"cores\": [0], \"device\": null}]}");
    ck_assert_ok(attempt_load(path, &a, &err));
    ck_assert_str_eq(a.job, JOB);
    ck_assert_int_eq(a.number, 2);
    ck_assert_int_eq(a.fence, 9);
    ck_assert_str_eq(a.folder, "/r/attempt-2");
    ck_assert_str_eq(a.host_folder, "/tmp/h");
    ck_assert_int_eq(a.ranks, 3);
    ck_assert_int_eq(a.rank[0].cores, 2);
    ck_assert_int_eq(a.rank[0].core[0], 1);
    ck_assert_int_eq(a.rank[0].core[1], 3);
    ck_assert_int_eq(a.rank[0].device, 0);
    ck_assert_str_eq(a.rank[1].host, "b");
    ck_assert_int_eq(a.rank[1].cores, 0);
    ck_assert_int_eq(a.rank[1].device, -1);
    ck_assert_int_eq(a.rank[2].local_rank, 1);
    ck_assert_int_eq(a.rank[2].device, -1);
    ck_assert_int_eq(attempt_local_ranks(&a, 0), 2);
    ck_assert_int_eq(attempt_local_ranks(&a, 1), 1);
    attempt_fini(&a);
    attempt_fini(&a);
    attempt_fini(NULL);
    free(path);
}
END_TEST

static const struct {
    const char *text, *part;
} refused[] = {
    {"", "a.json is empty"},
    {"[]", "a.json: expected a JSON object"},
    {"{}", "a.json: job: expected a string, not nothing"},
    {"{\"job\": \"xyz\"}", "a.json: job: expected 32 lower-case hex digits, not \"xyz\""},
    {"{\"job\": \"" JOB "\"}", "a.json: attempt: expected an integer"},
    {"{\"job\": \"" JOB "\", \"attempt\": 0}", "a.json: attempt: 0 is not in [1,"},
    {"{\"job\": \"" JOB "\", \"attempt\": 1, \"fence\": 1.5}", "a.json: fence: expected"},
    {HEAD "\"attempt_dir\": \"r\"}", "attempt_dir: expected an absolute path, not \"r\""},
    {HEAD "\"attempt_dir\": \"/r\", \"host_dir\": 3}", "host_dir: expected a string"},
    {HEAD DIRS "\"ranks\": []}", "a.json: ranks: expected an array of 1 to"},
    {HEAD DIRS "\"ranks\": [7]}", "ranks[0]: expected an object, not a number"},
    {HEAD DIRS "\"ranks\": [" RANK ", {}]}", "a.json: ranks[1].host: expected a string"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"\"}]}", "ranks[0].host is empty"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\"}]}", "ranks[0].local_rank: expected an integer"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\", \"local_rank\": 0}]}", "ranks[0].cores: expected"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\", \"local_rank\": 0, \"cores\": [1, -1]}]}",
     "ranks[0].cores[1]: expected an integer in [0, 4095]"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\", \"local_rank\": 0, \"cores\": [5, 2, 5]}]}",
     "ranks[0].cores: core 5 stands there twice"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\", \"local_rank\": 0, \"cores\": [], "
               "\"device\": \"gpu\"}]}",
     "ranks[0].device: expected an integer, not a string"},
    {HEAD DIRS "\"ranks\": [" RANK ", " RANK "]}", "host a: local ranks are not 0, 1, 2"},
    {HEAD DIRS "\"ranks\": [{\"host\": \"a\", \"local_rank\": 1, \"cores\": []}]}",
     "host a: local ranks are not 0, 1, 2, … (1 where 0 is due)"},
};

START_TEST(attempt_file_refused)
{
    attempt_file a;
    memset(&a, 0x5a, sizeof a);
    const char *text = refused[_i].text;
    ck_assert_fails(attempt_parse(text, strlen(text), "a.json", &a, &err), STATUS_BAD_INPUT,
                    refused[_i].part);
    ck_assert_int_eq(a.ranks, 0x5a5a5a5a);
}
END_TEST

START_TEST(tags)
{
    char tag[ATTEMPT_TAG_SIZE], job[ATTEMPT_JOB_SIZE] = "untouched";
    int64_t number = 0, fence = 0;
    attempt_format_tag(JOB, 12, 9007199254740992, tag);
    ck_assert_str_eq(tag, JOB ".12.9007199254740992");
    static const char *const wrong[] = {
        "",           "x.1.2",     JOB,         JOB ".1",    JOB ".1.",
        JOB ".1.2.3", JOB ".-1.2", JOB ".1.2x", JOB "0.1.2", JOB ".1.99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        ck_assert_msg(!attempt_parse_tag(wrong[i], job, &number, &fence), "%s", wrong[i]);
    ck_assert_str_eq(job, "untouched");
    ck_assert(attempt_parse_tag(tag, job, &number, &fence));
    ck_assert_str_eq(job, JOB);
    ck_assert_int_eq(number, 12);
    ck_assert_int_eq(fence, 9007199254740992);
}
END_TEST

START_TEST(control)
{
    attempt_control word = ATTEMPT_CHECKPOINT;
    ck_assert_ok(attempt_control_read(folder, &word, &err));
    ck_assert_int_eq(word, ATTEMPT_STOP); /* absent */
    ck_assert_ok(attempt_control_write(folder, ATTEMPT_CHECKPOINT, &err));
    ck_assert_ok(attempt_control_read(folder, &word, &err));
    ck_assert_int_eq(word, ATTEMPT_CHECKPOINT);
    ck_assert_ok(attempt_control_write(folder, ATTEMPT_STOP, &err));
    ck_assert_ok(attempt_control_read(folder, &word, &err));
    ck_assert_int_eq(word, ATTEMPT_STOP);
    write_file("control", "checkpoint"); /* without a line feed */
    ck_assert_ok(attempt_control_read(folder, &word, &err));
    ck_assert_int_eq(word, ATTEMPT_CHECKPOINT);
    write_file("control", "halt\n");
    ck_assert_fails(attempt_control_read(folder, &word, &err), STATUS_BAD_INPUT,
                    "expected stop or checkpoint, not \"halt\"");
    write_file("control", "");
    ck_assert_fails(attempt_control_read(folder, &word, &err), STATUS_BAD_INPUT, "control");
}
END_TEST

START_TEST(progress_layout)
{
    attempt_progress p = {0};
    attempt_progress_view view;
    char *path = suite_path(folder, "progress"), *bytes = NULL;
    size_t length;
    attempt_progress_update(&p, 1, ATTEMPT_LOADING); /* closed: goes nowhere */
    ck_assert_fails(attempt_progress_read(folder, 0, &view, &err), STATUS_ENVIRONMENT,
                    "No such file");
    ck_assert_ok(attempt_progress_open(&p, folder, 1, 3, &err));
    ck_assert_ok(attempt_progress_read(folder, 1, &view, &err));
    ck_assert_int_eq(view.phase, ATTEMPT_NOT_STARTED);
    attempt_progress_update(&p, 0x0102030405060708, ATTEMPT_EVALUATING);
    ck_assert_ok(file_read_all(path, 1000, &bytes, &length, &err));
    ck_assert_uint_eq(length, 3 * ATTEMPT_PROGRESS_RECORD);
    static const unsigned char expected[16] = {8, 7, 6, 5, 4, 3, 2, 1, 4, 0, 0, 0, 2, 0, 0, 0};
    ck_assert_int_eq(memcmp(bytes + 64, expected, sizeof expected), 0);
    ck_assert_int_ne(memcmp(bytes + 80, "\0\0\0\0\0\0\0", 8), 0);
    for (int i = 0; i < 64; i++)
        ck_assert_int_eq(bytes[i] | bytes[128 + i], 0);
    ck_assert_ok(attempt_progress_read(folder, 1, &view, &err));
    ck_assert_uint_eq(view.step, 0x0102030405060708);
    ck_assert_int_eq(view.phase, ATTEMPT_EVALUATING);
    ck_assert_str_eq(attempt_phase_name(view.phase), "evaluating");
    ck_assert_fails(attempt_progress_read(folder, 3, &view, &err), STATUS_ENVIRONMENT, "record 3");
    attempt_progress_close(&p);
    attempt_progress_close(&p);
    free(bytes);
    free(path);
}
END_TEST

START_TEST(progress_survives_a_dead_writer)
{
    attempt_progress p = {0};
    attempt_progress_view view;
    uint32_t odd = 7;
    char *path = suite_path(folder, "progress");
    ck_assert_ok(attempt_progress_open(&p, folder, 0, 1, &err));
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, &odd, 4, ATTEMPT_PROGRESS_VERSION), 4);
    close(fd);
    ck_assert_fails(attempt_progress_read(folder, 0, &view, &err), STATUS_ENVIRONMENT,
                    "half-written");
    attempt_progress_update(&p, 5, ATTEMPT_TRAINING);
    ck_assert_ok(attempt_progress_read(folder, 0, &view, &err));
    ck_assert_uint_eq(view.step, 5);
    attempt_progress_close(&p);
    /* Opened again by a second rank, the first rank's record stays. */
    ck_assert_ok(attempt_progress_open(&p, folder, 0, 1, &err));
    ck_assert_ok(attempt_progress_read(folder, 0, &view, &err));
    ck_assert_uint_eq(view.step, 5);
    attempt_progress_close(&p);
    free(path);
}
END_TEST

typedef struct writer {
    attempt_progress progress;
    int stop;
} writer;

/* Step and phase always agree; a torn record would not. */
static void *write_records(void *argument)
{
    writer *w = argument;
    for (uint64_t step = 1; !__atomic_load_n(&w->stop, __ATOMIC_RELAXED); step++)
        attempt_progress_update(&w->progress, step, (attempt_phase)(step % 6 + 1));
    return NULL;
}

START_TEST(progress_is_not_torn)
{
    writer w = {0};
    pthread_t thread;
    uint64_t last = 0;
    int seen = 0;
    ck_assert_ok(attempt_progress_open(&w.progress, folder, 0, 1, &err));
    attempt_progress_update(&w.progress, 0, (attempt_phase)1);
    ck_assert_int_eq(pthread_create(&thread, NULL, write_records, &w), 0);
    for (int i = 0; i < 2000; i++) {
        attempt_progress_view view;
        errbuf_clear(&err);
        if (attempt_progress_read(folder, 0, &view, &err) != STATUS_OK)
            continue; /* the writer is always writing here */
        ck_assert_uint_eq((uint64_t)view.phase, view.step % 6 + 1);
        ck_assert_uint_ge(view.step, last);
        last = view.step;
        seen++;
    }
    __atomic_store_n(&w.stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    ck_assert_int_gt(seen, 0);
    attempt_progress_close(&w.progress);
}
END_TEST

START_TEST(log_lines)
{
    struct log l;
    char *path = suite_path(folder, "log"), *text = NULL, words[5000];
    size_t length;
    unsetenv(LOG_ENVIRONMENT);
    ck_assert_ok(log_init(&l, 3, &err));
    ck_assert_int_eq(l.level, LOG_LEVEL_INFO);
    l.fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    log_write(&l, LOG_LEVEL_DEBUG, "not this");
    log_set_job(&l, JOB);
    log_write(&l, LOG_LEVEL_WARN, "epoch %d\nof many", 4);
    memset(words, 'w', sizeof words - 1);
    words[sizeof words - 1] = '\0';
    log_write(&l, LOG_LEVEL_ERROR, "%s", words);
    log_write(NULL, LOG_LEVEL_ERROR, "nobody listens");
    close(l.fd);
    ck_assert_ok(file_read_all(path, 10000, &text, &length, &err));
    ck_assert_ptr_null(strstr(text, "not this"));
    char tail[200];
    snprintf(tail, sizeof tail, " %s[%ld] rank 3 job %s warn: epoch 4 of many\n", l.host,
             (long)getpid(), JOB);
    ck_assert_ptr_nonnull(strstr(text, tail));
    ck_assert_int_eq(text[4], '-');
    const char *second = strchr(text, '\n') + 1;
    ck_assert_ptr_eq(strchr(second, '\n'), text + length - 1);
    ck_assert_int_eq(strcmp(text + length - strlen("w…\n"), "w…\n"), 0);
    free(text);
    free(path);
}
END_TEST

START_TEST(log_levels)
{
    struct log l;
    setenv(LOG_ENVIRONMENT, "debug", 1);
    ck_assert_ok(log_init(&l, -1, &err));
    ck_assert(log_is_on(&l, LOG_LEVEL_DEBUG));
    setenv(LOG_ENVIRONMENT, "error", 1);
    ck_assert_ok(log_init(&l, -1, &err));
    ck_assert(!log_is_on(&l, LOG_LEVEL_WARN));
    setenv(LOG_ENVIRONMENT, "loud", 1);
    ck_assert_fails(log_init(&l, -1, &err), STATUS_BAD_INPUT, "not \"loud\"");
    ck_assert(log_is_on(&l, LOG_LEVEL_INFO) && !log_is_on(&l, LOG_LEVEL_DEBUG));
}
END_TEST

START_TEST(times)
{
    char text[METRICS_TIME_SIZE];
    metrics_format_time(&(struct timespec){951827696, 7999999}, text);
    ck_assert_str_eq(text, "2000-02-29T12:34:56.007Z");
    metrics_format_time(&(struct timespec){0, 999999999}, text);
    ck_assert_str_eq(text, "1970-01-01T00:00:00.999Z");
}
END_TEST

START_TEST(metric_lines)
{
    char *line = NULL;
    metrics_head head = {.job = JOB,
                         .attempt = 1,
                         .seq = 9007199254740993,
                         .kind = "step",
                         .epoch = 2,
                         .step = 30,
                         .time = "T"};
    cJSON *fields = cJSON_CreateObject();
    cJSON_AddNumberToObject(fields, "loss", 1.0 / 3);
    cJSON_AddNumberToObject(fields, "bad", NAN);
    cJSON_AddNumberToObject(fields, "worse", -INFINITY);
    cJSON_AddNumberToObject(fields, "f", 0.1f);
    ck_assert_ok(metrics_line(&head, fields, &line, &err));
    ck_assert_str_eq(line, "{\"job\":\"" JOB "\",\"attempt\":1,\"seq\":9007199254740993,"
                           "\"time\":\"T\",\"kind\":\"step\",\"epoch\":2,\"step\":30,"
                           "\"loss\":0.3333333333333333,\"bad\":null,\"worse\":null,"
                           "\"f\":0.10000000149011612}\n");
    free(line);
    head.time = NULL;
    ck_assert_ok(metrics_line(&head, NULL, &line, &err));
    cJSON *json = NULL;
    ck_assert_ok(json_parse(line, strlen(line), "line", &json, &err));
    ck_assert_uint_eq(strlen(cJSON_GetObjectItem(json, "time")->valuestring), 24);
    ck_assert_int_eq(cJSON_GetArraySize(json), 7);
    cJSON_Delete(json);
    cJSON_Delete(fields);
    free(line);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("attempt");
    TCase *tc = tcase_create("attempt");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, attempt_file_is_read);
    tcase_add_loop_test(tc, attempt_file_refused, 0, sizeof refused / sizeof refused[0]);
    tcase_add_test(tc, tags);
    tcase_add_test(tc, control);
    tcase_add_test(tc, progress_layout);
    tcase_add_test(tc, progress_survives_a_dead_writer);
    tcase_add_test(tc, progress_is_not_torn);
    tcase_add_test(tc, log_lines);
    tcase_add_test(tc, log_levels);
    tcase_add_test(tc, times);
    tcase_add_test(tc, metric_lines);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
