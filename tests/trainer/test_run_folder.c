/*
 * Run folders: who may use one, attempts, what is kept and found, links, and the merged log.
 */
#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/trainer/tiny_run.h"
#include "trainer/run_folder.h"

#define JOB   "0123456789abcdef0123456789abcdef"
#define OTHER "fedcba9876543210fedcba9876543210"

static char root[200], out[256], text[65536];

static void make_root(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/run-folder-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(root));
    snprintf(out, sizeof out, "%s/runs/a", root);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static void remove_root(void)
{
    ck_assert_int_eq(nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* The text of a file below `out`. */
static const char *slurp(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", out, name);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "no %s", path);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

static void spill(const char *name, const char *mode, const char *content)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", out, name);
    FILE *f = fopen(path, mode);
    ck_assert_ptr_nonnull(f);
    fputs(content, f);
    fclose(f);
}

static bool exists(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", out, name);
    return access(path, F_OK) == 0;
}

/* A job's spec as job.json has it. */
static char *job_json(const char *assignment)
{
    spec s;
    char *json = NULL;
    TINY_OK(spec_init(&s, &oops));
    if (assignment != NULL)
        TINY_OK(spec_set(&s, assignment, &oops));
    TINY_OK(spec_dump(&s, true, &json, &oops));
    spec_fini(&s);
    return json;
}

static status try_open(run_folder *f, const char *id, const char *assignment, errbuf *err)
{
    char *json = job_json(assignment);
    const status st = run_folder_open(f, out, id, json, err);
    free(json);
    return st;
}

/* An attempt whose process is gone, as far as the lock tells: most tests look at several. */
static run_folder begin(void)
{
    run_folder f;
    TINY_OK(try_open(&f, JOB, NULL, &oops));
    close(f.lock);
    f.lock = -1;
    return f;
}

static void write_run(run_folder *f, int64_t parent, int64_t next_seq)
{
    cJSON *run = cJSON_CreateObject();
    if (parent > 0) {
        cJSON *from = cJSON_AddObjectToObject(run, "resumed_from");
        cJSON_AddNumberToObject(from, "attempt", (double)parent);
        cJSON_AddNumberToObject(from, "step", 1);
        cJSON_AddNumberToObject(from, "next_seq", (double)next_seq);
    } else
        cJSON_AddNullToObject(run, "resumed_from");
    TINY_OK(run_folder_write_run(f, run, &oops));
    cJSON_Delete(run);
}

static void record(run_folder *f, int64_t step)
{
    cJSON *fields = cJSON_CreateObject();
    cJSON_AddNumberToObject(fields, "loss", 0.1);
    TINY_OK(run_folder_record(f, "step", 0, step, fields, &oops));
}

/* Puts a checkpoint of `step` into the attempt; the path is the caller's to free. */
static char *save(const run_folder *f, int64_t step)
{
    tiny_run t = tiny_begin((tiny_options){0}, (uint32_t)step);
    char *path = NULL;
    t.c.state.step = step;
    TINY_OK(run_folder_checkpoint_path(f, step, &path, &oops));
    TINY_OK(tiny_write(&t, path, &oops));
    tiny_end(&t);
    return path;
}

/* ---- opening ---- */

START_TEST(open_makes_job_and_attempts)
{
    char *json = job_json(NULL);
    for (int i = 1; i <= 11; i++) {
        run_folder f = begin();
        char name[64];
        ck_assert_int_eq(f.attempt, i);
        ck_assert_int_eq(f.next_seq, 0);
        ck_assert_str_eq(f.job, JOB);
        snprintf(name, sizeof name, "attempt-%d/metrics.jsonl", i);
        ck_assert(exists(name));
        run_folder_close(&f);
        run_folder_close(&f);
    }
    ck_assert_str_eq(slurp("job.json"), json);
    free(json);
}
END_TEST

START_TEST(gaps_and_strange_names_do_not_confuse_numbers)
{
    run_folder f = begin();
    char path[600];
    run_folder_close(&f);
    const char *names[] = {"attempt-20", "attempt-0100", "attempt-", "attempt-7x", "attempt-1e9"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", out, names[i]);
        ck_assert_int_eq(mkdir(path, 0777), 0);
    }
    f = begin();
    ck_assert_int_eq(f.attempt, 21);
    run_folder_close(&f);
}
END_TEST

START_TEST(another_job_is_refused_and_leaves_no_trace)
{
    run_folder f = begin(), g;
    errbuf err = {0};
    run_folder_close(&f);
    ck_assert_int_eq(try_open(&g, OTHER, "train.lr=0.25", &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "train.lr: 0.25 here") != NULL, "%s", err.text);
    ck_assert(!exists("attempt-2"));
}
END_TEST

START_TEST(another_label_is_the_same_job)
{
    run_folder f = begin();
    run_folder_close(&f);
    TINY_OK(try_open(&f, JOB, "name=other", &oops));
    ck_assert_int_eq(f.attempt, 2);
    run_folder_close(&f);
}
END_TEST

START_TEST(same_spec_on_other_data_is_refused)
{
    run_folder f = begin(), g;
    errbuf err = {0};
    write_run(&f, 0, 0);
    run_folder_close(&f);
    ck_assert_int_eq(try_open(&g, OTHER, NULL, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, JOB) != NULL && strstr(err.text, OTHER) != NULL, "%s", err.text);
    ck_assert(!exists("attempt-2"));
}
END_TEST

START_TEST(damaged_job_json_is_named)
{
    run_folder f = begin(), g;
    errbuf err = {0};
    run_folder_close(&f);
    spill("job.json", "w", "{\"train\":");
    ck_assert_int_eq(try_open(&g, JOB, NULL, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "job.json") != NULL, "%s", err.text);
}
END_TEST

START_TEST(out_that_is_a_file_is_refused)
{
    run_folder f;
    errbuf err = {0};
    snprintf(out, sizeof out, "%s/file", root);
    ck_assert_int_eq(close(open(out, O_CREAT | O_WRONLY, 0666)), 0);
    ck_assert_int_ne(try_open(&f, JOB, NULL, &err), STATUS_OK);
    ck_assert_msg(strstr(err.text, out) != NULL, "%s", err.text);
}
END_TEST

START_TEST(agents_attempt_is_used_once_and_only_under_its_name)
{
    run_folder f = begin();
    char dir[600], *json = job_json(NULL);
    errbuf err = {0};
    run_folder_close(&f);
    snprintf(dir, sizeof dir, "%s/attempt-9", out);
    ck_assert_int_eq(run_folder_open_attempt(&f, dir, JOB, 9, json, &err), STATUS_BAD_INPUT);
    ck_assert_int_eq(mkdir(dir, 0777), 0);
    errbuf_clear(&err);
    ck_assert_int_eq(run_folder_open_attempt(&f, dir, JOB, 8, json, &err), STATUS_BAD_INPUT);
    TINY_OK(run_folder_open_attempt(&f, dir, JOB, 9, json, &oops));
    ck_assert_int_eq(f.attempt, 9);
    ck_assert_str_eq(strrchr(f.path, '/'), "/a");
    record(&f, 1);
    run_folder_close(&f);
    errbuf_clear(&err);
    ck_assert_int_eq(run_folder_open_attempt(&f, dir, JOB, 9, json, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "attempt runs once") != NULL, "%s", err.text);
    free(json);
}
END_TEST

/* Several processes open the same fresh folder at once: every one has its own number. */
START_TEST(racing_processes_get_different_attempts)
{
    enum {
        racers = 8,
        rounds = 6
    };
    for (int i = 0; i < racers; i++)
        if (fork() == 0) {
            for (int round = 0; round < rounds; round++) {
                run_folder f;
                errbuf err = {0};
                if (try_open(&f, JOB, NULL, &err) != STATUS_OK)
                    _exit(1);
                run_folder_close(&f);
            }
            _exit(0);
        }
    for (int i = 0; i < racers; i++) {
        int how = 0;
        wait(&how);
        ck_assert(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    }
    int64_t *attempts = NULL;
    size_t count = 0;
    TINY_OK(run_folder_attempts(out, &attempts, &count, &oops));
    ck_assert_uint_eq(count, racers * rounds); /* exclusive metrics.jsonl: none was shared */
    ck_assert_int_eq(attempts[count - 1], racers * rounds);
    free(attempts);
}
END_TEST

/* Two jobs at once in one fresh folder: one of them has it. */
START_TEST(racing_jobs_do_not_share_a_folder)
{
    for (int round = 0; round < 10; round++) {
        int winners = 0;
        snprintf(out, sizeof out, "%s/race-%d", root, round);
        for (int i = 0; i < 4; i++)
            if (fork() == 0) {
                run_folder f;
                char assignment[40];
                snprintf(assignment, sizeof assignment, "train.seed=%d", i);
                _exit(try_open(&f, JOB, assignment, NULL) == STATUS_OK ? 0 : 1);
            }
        for (int i = 0; i < 4; i++) {
            int how = 0;
            wait(&how);
            winners += WIFEXITED(how) && WEXITSTATUS(how) == 0;
        }
        ck_assert_int_eq(winners, 1);
    }
}
END_TEST

/* ---- checkpoints and links ---- */

START_TEST(newest_valid_checkpoint_of_earlier_attempts)
{
    run_folder a = begin(), b = begin(), c = begin();
    char *path = NULL, *notes = NULL;
    int64_t attempt = -5;
    checkpoint_head head = {0};
    TINY_OK(run_folder_find_checkpoint(&c, &path, &attempt, &head, &notes, &oops));
    ck_assert_ptr_null(path);
    ck_assert_ptr_null(notes);
    ck_assert_int_eq(attempt, -5);
    free(save(&a, 9));
    free(save(&a, 100));
    free(save(&b, 20));
    free(save(&b, 110));
    free(save(&c, 500)); /* its own do not count */
    TINY_OK(run_folder_find_checkpoint(&c, &path, &attempt, &head, &notes, &oops));
    ck_assert_str_eq(strrchr(path, '/'), "/ckpt-110.safetensors");
    ck_assert_int_eq(attempt, 2);
    ck_assert_int_eq(head.state.step, 110);
    ck_assert_ptr_null(notes);
    ck_assert_int_eq(truncate(path, 200), 0);
    free(path);
    checkpoint_head_fini(&head);
    TINY_OK(run_folder_find_checkpoint(&c, &path, &attempt, &head, &notes, &oops));
    ck_assert_str_eq(strrchr(path, '/'), "/ckpt-20.safetensors");
    ck_assert_msg(strstr(notes, "ckpt-110.safetensors") != NULL, "%s", notes);
    ck_assert_int_eq(truncate(path, 0), 0);
    free(path);
    free(notes);
    checkpoint_head_fini(&head);
    TINY_OK(run_folder_find_checkpoint(&c, &path, &attempt, &head, &notes, &oops));
    ck_assert_str_eq(strrchr(path, '/'), "/ckpt-100.safetensors");
    ck_assert_int_eq(attempt, 1);
    ck_assert_ptr_nonnull(strchr(notes, '\n')); /* one line each */
    free(path);
    free(notes);
    checkpoint_head_fini(&head);
    run_folder_close(&a);
    run_folder_close(&b);
    run_folder_close(&c);
}
END_TEST

START_TEST(whole_checkpoint_of_another_version_is_not_passed_over)
{
    run_folder a = begin(), b = begin();
    char *path = NULL, *notes = NULL, *newest = save(&a, 2);
    int64_t attempt = 0;
    checkpoint_head head = {0};
    errbuf err = {0};
    free(save(&a, 1));
    tiny_rewrite(newest, "map_version", "2");
    ck_assert_int_eq(run_folder_find_checkpoint(&b, &path, &attempt, &head, &notes, &err),
                     STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "ring map version 2") != NULL, "%s", err.text);
    ck_assert(path == NULL && notes == NULL);
    free(newest);
    run_folder_close(&a);
    run_folder_close(&b);
}
END_TEST

/* An owner that has lost its lease may still prune while another attempt looks. */
START_TEST(checkpoints_that_vanish_are_listed_again)
{
    run_folder a = begin(), b = begin();
    char *kept = save(&a, 1);
    const pid_t child = fork();
    if (child == 0)
        for (int64_t step = 2;; step++) {
            free(save(&a, step));
            if (run_folder_prune(&a, -1, NULL) != STATUS_OK)
                _exit(1);
        }
    for (int i = 0; i < 100; i++) {
        char *path = NULL, *notes = NULL;
        int64_t attempt = 0;
        checkpoint_head head = {0};
        TINY_OK(run_folder_find_checkpoint(&b, &path, &attempt, &head, &notes, &oops));
        ck_assert_ptr_nonnull(path);
        ck_assert_msg(notes == NULL, "%s", notes);
        free(path);
        checkpoint_head_fini(&head);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    free(kept);
    run_folder_close(&a);
    run_folder_close(&b);
}
END_TEST

START_TEST(prune_keeps_the_newest_two_and_the_best)
{
    run_folder a = begin(), f = begin();
    const int64_t steps[] = {9, 10, 11, 100, 99};
    free(save(&a, 1));
    for (size_t i = 0; i < 5; i++)
        free(save(&f, steps[i]));
    spill("attempt-2/ckpt-3.safetensors.note", "w", "not a checkpoint");
    TINY_OK(run_folder_prune(&f, 10, &oops));
    ck_assert(exists("attempt-2/ckpt-100.safetensors"));
    ck_assert(exists("attempt-2/ckpt-99.safetensors"));
    ck_assert(exists("attempt-2/ckpt-10.safetensors"));
    ck_assert(!exists("attempt-2/ckpt-11.safetensors"));
    ck_assert(!exists("attempt-2/ckpt-9.safetensors"));
    ck_assert(exists("attempt-2/ckpt-3.safetensors.note"));
    ck_assert(exists("attempt-1/ckpt-1.safetensors"));
    run_folder_close(&a);
    run_folder_close(&f);
}
END_TEST

static const char *target(const char *name)
{
    static char to[300];
    char path[600];
    snprintf(path, sizeof path, "%s/%s", out, name);
    const ssize_t n = readlink(path, to, sizeof to - 1);
    ck_assert_int_gt(n, 0);
    to[n] = '\0';
    return to;
}

START_TEST(links_are_relative_and_replaced)
{
    run_folder a = begin(), b = begin();
    char *one = save(&a, 10), *two = save(&b, 20), *found = NULL;
    checkpoint_head head = {0};
    char path[600];
    TINY_OK(run_folder_link(&b, one, one, &oops));
    ck_assert_str_eq(target("last.safetensors"), "attempt-1/ckpt-10.safetensors");
    TINY_OK(run_folder_link(&b, two, NULL, &oops));
    ck_assert_str_eq(target("last.safetensors"), "attempt-2/ckpt-20.safetensors");
    ck_assert_str_eq(target("best.safetensors"), "attempt-1/ckpt-10.safetensors");
    snprintf(path, sizeof path, "%s/last.safetensors", out);
    TINY_OK(checkpoint_verify(path, &head, &oops));
    ck_assert_int_eq(head.state.step, 20);
    checkpoint_head_fini(&head);
    TINY_OK(run_folder_find_step(&b, 10, &found, &oops));
    ck_assert_str_eq(found, one);
    free(found);
    TINY_OK(run_folder_find_step(&b, 11, &found, &oops));
    ck_assert_ptr_null(found);
    free(one);
    free(two);
    run_folder_close(&a);
    run_folder_close(&b);
}
END_TEST

/* ---- the log ---- */

/* "attempt.seq.step" of every record of the merged log; the status. */
static status merged(char *ret, size_t size, errbuf *err)
{
    char *log = NULL;
    size_t length = 0;
    FILE *to = open_memstream(&log, &length);
    const status st = run_folder_print_metrics(out, to, err);
    fclose(to);
    ret[0] = '\0';
    for (char *line = strtok(log, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        cJSON *r = cJSON_Parse(line);
        ck_assert_msg(r != NULL, "%s", line);
        const size_t at = strlen(ret);
        snprintf(ret + at, size - at, "%s%d.%d.%d", at > 0 ? " " : "",
                 cJSON_GetObjectItem(r, "attempt")->valueint,
                 cJSON_GetObjectItem(r, "seq")->valueint, cJSON_GetObjectItem(r, "step")->valueint);
        cJSON_Delete(r);
    }
    free(log);
    return st;
}

START_TEST(record_has_the_formats_members)
{
    run_folder f = begin();
    record(&f, 7);
    TINY_OK(run_folder_record(&f, "end", 1, 8, NULL, &oops));
    TINY_OK(run_folder_sync(&f, &oops));
    ck_assert_int_eq(f.next_seq, 2);
    run_folder_close(&f);
    const char *log = slurp("attempt-1/metrics.jsonl");
    ck_assert_int_eq(strncmp(log, "{\"job\":\"" JOB "\",\"attempt\":1,\"seq\":0,\"time\":\"", 66),
                     0);
    ck_assert_ptr_nonnull(
        strstr(log, "Z\",\"kind\":\"step\",\"epoch\":0,\"step\":7,\"loss\":0.1}\n"));
    ck_assert_ptr_nonnull(strstr(log, "\"kind\":\"end\",\"epoch\":1,\"step\":8}\n"));
}
END_TEST

/* 1 (seq 0..4) -> 3 resumed from 1 at 3 -> 4 resumed from 3 at 2; 2 led nowhere, 5 did not begin.
 */
START_TEST(merged_log_follows_the_resumes)
{
    char got[2000];
    run_folder f[6];
    for (int i = 1; i <= 5; i++)
        f[i] = begin();
    write_run(&f[1], 0, 0);
    for (int i = 0; i < 5; i++)
        record(&f[1], i);
    write_run(&f[2], 1, 3);
    record(&f[2], 77);
    write_run(&f[3], 1, 3);
    for (int i = 0; i < 4; i++)
        record(&f[3], 3 + i);
    TINY_OK(merged(got, sizeof got, &oops));
    ck_assert_str_eq(got, "1.0.0 1.1.1 1.2.2 3.0.3 3.1.4 3.2.5 3.3.6");
    write_run(&f[4], 3, 2);
    record(&f[4], 5);
    TINY_OK(merged(got, sizeof got, &oops));
    ck_assert_str_eq(got, "1.0.0 1.1.1 1.2.2 3.0.3 3.1.4 4.0.5");
    for (int i = 1; i <= 5; i++)
        run_folder_close(&f[i]);
}
END_TEST

START_TEST(attempt_from_zero_stands_alone)
{
    char got[200];
    run_folder a = begin(), b = begin();
    write_run(&a, 0, 0);
    record(&a, 1);
    write_run(&b, 0, 0);
    record(&b, 2);
    TINY_OK(merged(got, sizeof got, &oops));
    ck_assert_str_eq(got, "2.0.2");
    run_folder_close(&a);
    run_folder_close(&b);
}
END_TEST

START_TEST(torn_last_line_is_left_out)
{
    char got[200];
    const char *torn[] = {"{\"job\":\"x\",\"se", "{\"job\":\"x\",\"attempt\":1,\"seq\":1}",
                          "{\"job\":\"x\",\"se\n"};
    for (size_t i = 0; i < 3; i++) {
        run_folder f = begin();
        char name[64];
        write_run(&f, 0, 0);
        record(&f, 1);
        snprintf(name, sizeof name, "attempt-%zu/metrics.jsonl", i + 1);
        spill(name, "a", torn[i]);
        TINY_OK(merged(got, sizeof got, &oops));
        ck_assert_msg(strlen(got) == 5 && strstr(got, ".0.1") != NULL, "%s", got);
        run_folder_close(&f);
    }
}
END_TEST

START_TEST(damage_in_the_middle_is_named)
{
    char got[200];
    const char *damage[] = {"garbage\n", "{}\n", "{\"seq\":5}\n"};
    for (size_t i = 0; i < 3; i++) {
        run_folder f = begin();
        char name[64], where[80];
        errbuf err = {0};
        write_run(&f, 0, 0);
        record(&f, 1);
        snprintf(name, sizeof name, "attempt-%zu/metrics.jsonl", i + 1);
        snprintf(where, sizeof where, "%s:2: ", name);
        spill(name, "a", damage[i]);
        record(&f, 2);
        ck_assert_int_eq(merged(got, sizeof got, &err), STATUS_BAD_INPUT);
        ck_assert_msg(strstr(err.text, where) != NULL, "%s", err.text);
        run_folder_close(&f);
    }
}
END_TEST

START_TEST(folder_without_attempts_has_no_log)
{
    char got[200];
    errbuf err = {0};
    ck_assert_int_eq(merged(got, sizeof got, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, out) != NULL, "%s", err.text);
}
END_TEST

START_TEST(resumed_from_a_later_attempt_is_refused)
{
    char got[200];
    errbuf err = {0};
    run_folder f = begin();
    write_run(&f, 1, 0);
    ck_assert_int_eq(merged(got, sizeof got, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "resumed_from") != NULL, "%s", err.text);
    run_folder_close(&f);
}
END_TEST

/* A full disk takes back what it has written of a record: the next one fits behind the last. */
START_TEST(full_disk_tears_no_record)
{
    char got[200];
    struct rlimit old, tight;
    errbuf err = {0};
    run_folder f = begin();
    write_run(&f, 0, 0);
    record(&f, 1);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    tight = old;
    tight.rlim_cur = strlen(slurp("attempt-1/metrics.jsonl")) + 20;
    setrlimit(RLIMIT_FSIZE, &tight);
    const status st = run_folder_record(&f, "step", 0, 2, NULL, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    ck_assert_int_eq(st, STATUS_ENVIRONMENT);
    ck_assert_msg(strstr(err.text, "metrics.jsonl") != NULL, "%s", err.text);
    ck_assert_int_eq(f.next_seq, 1);
    record(&f, 3);
    TINY_OK(merged(got, sizeof got, &oops));
    ck_assert_str_eq(got, "1.0.1 1.1.3");
    run_folder_close(&f);
}
END_TEST

START_TEST(run_and_result_name_job_and_attempt)
{
    run_folder f = begin();
    cJSON *json = cJSON_CreateObject(), *run = NULL;
    cJSON_AddNumberToObject(json, "attempt", 55); /* ours is right */
    cJSON_AddStringToObject(json, "outcome", "done");
    TINY_OK(run_folder_read_run(out, 1, &run, &oops));
    ck_assert_ptr_null(run);
    TINY_OK(run_folder_write_run(&f, json, &oops));
    TINY_OK(run_folder_write_result(&f, json, &oops));
    TINY_OK(run_folder_read_run(out, 1, &run, &oops));
    ck_assert_str_eq(cJSON_GetObjectItem(run, "job")->valuestring, JOB);
    ck_assert_int_eq(cJSON_GetObjectItem(run, "attempt")->valueint, 1);
    ck_assert_int_eq(cJSON_GetArraySize(run), 3);
    ck_assert_ptr_nonnull(strstr(slurp("attempt-1/result.json"), "\"done\""));
    cJSON_Delete(run);
    cJSON_Delete(json);
    run_folder_close(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("run_folder");
    TCase *tc = tcase_create("run_folder");
    tcase_add_checked_fixture(tc, make_root, remove_root);
    tcase_add_test(tc, open_makes_job_and_attempts);
    tcase_add_test(tc, gaps_and_strange_names_do_not_confuse_numbers);
    tcase_add_test(tc, another_job_is_refused_and_leaves_no_trace);
    tcase_add_test(tc, another_label_is_the_same_job);
    tcase_add_test(tc, same_spec_on_other_data_is_refused);
    tcase_add_test(tc, damaged_job_json_is_named);
    tcase_add_test(tc, out_that_is_a_file_is_refused);
    tcase_add_test(tc, agents_attempt_is_used_once_and_only_under_its_name);
    tcase_add_test(tc, racing_processes_get_different_attempts);
    tcase_add_test(tc, racing_jobs_do_not_share_a_folder);
    tcase_add_test(tc, newest_valid_checkpoint_of_earlier_attempts);
    tcase_add_test(tc, whole_checkpoint_of_another_version_is_not_passed_over);
    tcase_add_test(tc, checkpoints_that_vanish_are_listed_again);
    tcase_add_test(tc, prune_keeps_the_newest_two_and_the_best);
    tcase_add_test(tc, links_are_relative_and_replaced);
    tcase_add_test(tc, record_has_the_formats_members);
    tcase_add_test(tc, merged_log_follows_the_resumes);
    tcase_add_test(tc, attempt_from_zero_stands_alone);
    tcase_add_test(tc, torn_last_line_is_left_out);
    tcase_add_test(tc, damage_in_the_middle_is_named);
    tcase_add_test(tc, folder_without_attempts_has_no_log);
    tcase_add_test(tc, resumed_from_a_later_attempt_is_refused);
    tcase_add_test(tc, full_disk_tears_no_record);
    tcase_add_test(tc, run_and_result_name_job_and_attempt);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
