/*
 * What the suites of whole processes share (dist/, e2e/): a scratch folder and files in it,
 * commands with their environment, captured output, exit code, time limit and signals, and what
 * ringtrain leaves in a run folder. Header-only, as every suite is a program of its own.
 *
 * RINGTRAIN and MPIRUN are paths that CMake defines. A rank never outlives the suite: commands die
 * with their parent, ranks with mpirun.
 */
#ifndef RINGMASTER_TESTS_PROCESS_TESTING_H
#define RINGMASTER_TESTS_PROCESS_TESTING_H

#include <check.h>
#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels/backend.h"

#define MAX_ARGUMENTS 96

/* ---- the scratch folder ---- */

static char folder[256];

static inline void make_folder(void)
{
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/ringmaster-XXXXXX", root ? root : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static inline int remove_entry(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info, (void)type, (void)at;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void remove_folder(void)
{
    remove_tree(folder);
}

/* A formatted string that lives as long as the test's process. */
__attribute__((format(printf, 1, 2))) static inline const char *text(const char *format, ...)
{
    char *made = NULL;
    va_list args;
    va_start(args, format);
    ck_assert_int_ge(vasprintf(&made, format, args), 0);
    va_end(args);
    return made;
}

/* <folder>/<name> */
static inline const char *in_folder(const char *name)
{
    return text("%s/%s", folder, name);
}

static inline bool exists(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0;
}

/* A whole file, NUL-ended; NULL where it is not there. Lives as long as the test's process. */
static inline char *read_file(const char *path, size_t *ret_length)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    char *bytes = NULL;
    size_t length = 0, got = 0;
    do {
        bytes = realloc(bytes, length + 65537);
        ck_assert_ptr_nonnull(bytes);
        got = fread(bytes + length, 1, 65536, f);
        length += got;
    } while (got > 0);
    fclose(f);
    bytes[length] = '\0';
    if (ret_length)
        *ret_length = length;
    return bytes;
}

/* Writes a file; makes the folders above it. */
static inline void write_file(const char *path, const void *bytes, size_t length)
{
    char parents[1024];
    snprintf(parents, sizeof parents, "%s", path);
    for (char *slash = strchr(parents + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(parents, 0777);
        *slash = '/';
    }
    FILE *f = fopen(path, "wb");
    ck_assert_msg(f != NULL, "%s: %s", path, strerror(errno));
    ck_assert_uint_eq(fwrite(bytes, 1, length, f), length);
    ck_assert_int_eq(fclose(f), 0);
}

static inline void write_text(const char *path, const char *content)
{
    write_file(path, content, strlen(content));
}

static inline void assert_same_file(const char *a, const char *b)
{
    size_t length_a = 0, length_b = 0;
    char *bytes_a = read_file(a, &length_a), *bytes_b = read_file(b, &length_b);
    ck_assert_msg(bytes_a != NULL, "%s is not there", a);
    ck_assert_msg(bytes_b != NULL, "%s is not there", b);
    bool is_same = length_a == length_b && memcmp(bytes_a, bytes_b, length_a) == 0;
    size_t at = 0;
    while (at < length_a && at < length_b && bytes_a[at] == bytes_b[at])
        at++;
    ck_assert_msg(is_same, "%s and %s differ from byte %zu (%zu and %zu bytes)", a, b, at, length_a,
                  length_b);
    free(bytes_a);
    free(bytes_b);
}

static inline bool is_same_file(const char *a, const char *b)
{
    size_t length_a = 0, length_b = 0;
    char *bytes_a = read_file(a, &length_a), *bytes_b = read_file(b, &length_b);
    bool is_same =
        bytes_a && bytes_b && length_a == length_b && memcmp(bytes_a, bytes_b, length_a) == 0;
    free(bytes_a);
    free(bytes_b);
    return is_same;
}

/* ---- time ---- */

static inline double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

/* ---- processes ---- */

typedef struct launch {
    int ranks;                      /* under mpirun; 0 = alone */
    const char *const *environment; /* "NAME=value", NULL-ended; may be NULL */
    int64_t file_limit;             /* largest file in bytes; 0 = no limit */
    const char *input;              /* file for standard input; NULL = /dev/null */
} launch;

typedef struct process {
    pid_t pid;
    const char *out_path, *err_path;
    int code;        /* exit code, or 128 + signal */
    char *out, *err; /* once it has ended */
} process;

static inline void enter_child(const launch *l, const process *p, char *const argv[])
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    int in = open(l->input ? l->input : "/dev/null", O_RDONLY);
    int out = open(p->out_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int err = open(p->err_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (in < 0 || out < 0 || err < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(127);
    /* of root's mpirun in a container */
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    for (const char *const *e = l->environment; e && *e; e++)
        putenv((char *)*e);
    if (l->file_limit > 0) {
        struct rlimit limit = {(rlim_t)l->file_limit, (rlim_t)l->file_limit};
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    execvp(argv[0], argv);
    _exit(127);
}

/* Starts a command, under mpirun where l->ranks > 0. */
static inline process process_start(launch l, const char *const command[])
{
    static int number;
    const char *argv[MAX_ARGUMENTS];
    int argc = 0;
    number++;
    process p = {.out_path = in_folder(text("out-%d", number)),
                 .err_path = in_folder(text("err-%d", number))};
#ifdef MPIRUN
    if (l.ranks > 0) {
        const char *const mpirun[] = {MPIRUN, "--oversubscribe", "--bind-to", "none", "--mca",
                                      "odls_base_sigkill_timeout", "0", "--mca",
                                      /* what killed ranks leave behind goes with the folder */
                                      "orte_tmpdir_base", folder, "--mca",
                                      "btl_vader_backing_directory", folder, "-np",
                                      text("%d", l.ranks), NULL};
        while (mpirun[argc]) {
            argv[argc] = mpirun[argc];
            argc++;
        }
    }
#else
    ck_assert_int_eq(l.ranks, 0);
#endif
    for (int i = 0; command[i]; i++) {
        ck_assert_int_lt(argc, MAX_ARGUMENTS - 1);
        argv[argc++] = command[i];
    }
    argv[argc] = NULL;
    p.pid = fork();
    ck_assert_int_ge(p.pid, 0);
    if (p.pid == 0)
        enter_child(&l, &p, (char *const *)argv);
    return p;
}

/* Whether it has ended; then its code and output are set. */
static inline bool process_has_ended(process *p)
{
    int state = 0;
    if (p->pid == 0)
        return true;
    pid_t got = waitpid(p->pid, &state, WNOHANG);
    ck_assert_int_ge(got, 0);
    if (got == 0)
        return false;
    p->code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    p->pid = 0;
    p->out = read_file(p->out_path, NULL);
    p->err = read_file(p->err_path, NULL);
    return true;
}

/* Waits for its end; one that takes longer than `limit` seconds fails the test. */
static inline void process_wait(process *p, double limit)
{
    double begin = seconds_now();
    while (!process_has_ended(p)) {
        if (seconds_now() - begin > limit) {
            kill(-p->pid, SIGKILL);
            ck_abort_msg("a command did not end within %g s; it said: %s", limit,
                         read_file(p->err_path, NULL));
        }
        nap(0.002);
    }
}

static inline void process_signal(process *p, int signal)
{
    ck_assert_int_eq(kill(p->pid, signal), 0);
}

#define PROCESS_LIMIT 60.0

static inline process run_command(launch l, const char *const command[])
{
    process p = process_start(l, command);
    process_wait(&p, PROCESS_LIMIT);
    return p;
}

/* ringtrain with these arguments, to its end; RINGTRAIN_WITH on `launch` options. */
#define RUN_RINGTRAIN(...) \
    run_command((launch){0}, (const char *const[]){RINGTRAIN, __VA_ARGS__, NULL})
#define RUN_RINGTRAIN_WITH(l, ...) \
    run_command(l, (const char *const[]){RINGTRAIN, __VA_ARGS__, NULL})
#define START_RINGTRAIN(l, ...) \
    process_start(l, (const char *const[]){RINGTRAIN, __VA_ARGS__, NULL})

static inline void assert_code(const process *p, int code)
{
    ck_assert_msg(p->code == code, "exit code %d instead of %d; out: %s err: %s", p->code, code,
                  p->out, p->err);
}

/* Exactly one line on stderr, of ringtrain itself, that holds each of the parts (NULL-ended). What
 * mpirun adds about exit codes stands between dashes and does not count. */
static inline void assert_error(const process *p, int code, const char *const parts[])
{
    assert_code(p, code);
    int lines = 0;
    const char *line = p->err;
    const char *own = NULL;
    while ((line = strstr(line, "ringtrain "))) {
        if (line == p->err || line[-1] == '\n') {
            lines++;
            own = line;
        }
        line++;
    }
    ck_assert_msg(lines == 1, "not one error line: %s", p->err);
    const char *end = strchr(own, '\n');
    ck_assert_msg(end != NULL, "no end of line: %s", p->err);
    char *said = strndup(own, (size_t)(end - own));
    for (int i = 0; parts[i]; i++)
        ck_assert_msg(strstr(said, parts[i]), "'%s' is not in: %s", parts[i], said);
    free(said);
}
#define ASSERT_ERROR(p, code, ...) assert_error(p, code, (const char *const[]){__VA_ARGS__, NULL})

/* Lines of a text. */
static inline int count_lines(const char *t)
{
    int lines = 0;
    for (; *t; t++)
        lines += *t == '\n';
    return lines;
}

/* ---- backends and jobs ---- */

/* The backends that suites run on, the fast one first. */
static inline int test_backends(const char *names[2])
{
    int count = 0;
    const backend_ops *cpu = backend_find("cpu");
    if (cpu && cpu->available())
        names[count++] = "cpu";
    names[count++] = "reference";
    return count;
}

static inline int test_backend_count(void)
{
    const char *names[2];
    return test_backends(names);
}

/* Backend number i of a loop test. */
static inline const char *test_backend(int i)
{
    const char *names[2];
    ck_assert_int_lt(i, test_backends(names));
    return names[i];
}

/* Writes <folder>/job.json: 20 steps of a small network on procedural images, everything of which
 * tests may change with --set. */
static inline const char *write_job(void)
{
    const char *path = in_folder("job.json");
    write_text(path,
               text("{\n"
                    "  \"name\": \"small\",\n"
                    "  \"model\": {\"width\": 4, \"classes\": 4},\n"
                    "  \"rpg\": {\"size\": 500},\n"
                    "  \"data\": {\"kind\": \"synthetic\", \"size\": 8, \"train_count\": 64,\n"
                    "           \"eval_count\": 24},\n"
                    "  \"resources\": {\"threads\": 1},\n"
                    "  \"train\": {\"epochs\": 5, \"batch\": 16, \"lr\": 0.05, \"log_every\": 1,\n"
                    "            \"milestones\": [3], \"checkpoint_every\": 3},\n"
                    "  \"backend\": {\"name\": \"%s\"},\n"
                    "  \"out\": \"%s/run\"\n"
                    "}\n",
                    test_backend(0), folder));
    return path;
}
#define JOB_STEPS 20

static inline void setup_job(void)
{
    make_folder();
    write_job();
}

/* ---- run folders ---- */

/* Number of the last attempt of a run folder; 0 = none. */
static inline int last_attempt(const char *run)
{
    int last = 0, number = 0;
    DIR *d = opendir(run);
    for (struct dirent *e; d && (e = readdir(d));)
        if (sscanf(e->d_name, "attempt-%d", &number) == 1 && number > last)
            last = number;
    if (d)
        closedir(d);
    return last;
}

static inline cJSON *read_json(const char *path)
{
    char *bytes = read_file(path, NULL);
    ck_assert_msg(bytes != NULL, "%s is not there", path);
    cJSON *json = cJSON_Parse(bytes);
    ck_assert_msg(json != NULL, "%s is not JSON: %s", path, bytes);
    free(bytes);
    return json;
}

/* result.json or run.json of an attempt. */
static inline cJSON *read_attempt(const char *run, int attempt, const char *name)
{
    return read_json(text("%s/attempt-%d/%s", run, attempt, name));
}

static inline double json_number(const cJSON *o, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, name);
    ck_assert_msg(cJSON_IsNumber(item), "no number '%s'", name);
    return item->valuedouble;
}

static inline const char *json_string(const cJSON *o, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, name);
    ck_assert_msg(cJSON_IsString(item), "no string '%s'", name);
    return item->valuestring;
}

/* What result.json of the last attempt says. */
static inline void assert_result(const char *run, const char *outcome, int code)
{
    cJSON *result = read_attempt(run, last_attempt(run), "result.json");
    ck_assert_str_eq(json_string(result, "outcome"), outcome);
    ck_assert_int_eq((int)json_number(result, "exit_code"), code);
    cJSON_Delete(result);
}

/* Temporary names that a write left behind, anywhere below `path`. */
static int leftovers;
static inline int count_leftover(const char *path, const struct stat *info, int type,
                                 struct FTW *at)
{
    (void)info, (void)type;
    const char *name = path + at->base;
    leftovers += strstr(name, ".tmp") != NULL || strstr(name, ".new") != NULL;
    return 0;
}
static inline int count_leftovers(const char *path)
{
    leftovers = 0;
    nftw(path, count_leftover, 16, FTW_PHYS);
    return leftovers;
}

/* ---- metrics ---- */

typedef struct records {
    cJSON *all; /* array */
    int count;
} records;

static inline records parse_records(const char *lines)
{
    records r = {.all = cJSON_CreateArray()};
    const char *rest = lines;
    while (*rest) {
        const char *end = NULL;
        cJSON *record = cJSON_ParseWithOpts(rest, &end, false);
        ck_assert_msg(record != NULL, "not a record: %s", rest);
        cJSON_AddItemToArray(r.all, record);
        r.count++;
        ck_assert_int_eq(*end, '\n');
        rest = end + 1;
    }
    return r;
}

/* The merged log, as `ringtrain metrics` prints it. */
static inline records merged_records(const char *run)
{
    process p = RUN_RINGTRAIN("metrics", run);
    assert_code(&p, 0);
    return parse_records(p.out);
}

/* Whether a field may differ between a run and the same run interrupted. */
static inline bool is_of_attempt(const char *name)
{
    static const char *const names[] = {"attempt", "time", "seconds", "images_per_second",
                                        "loader_waited"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

/* The log without what time and interruptions change, as text. */
static inline char *log_essence(records r)
{
    cJSON *record = NULL, *field = NULL;
    cJSON *all = cJSON_CreateArray();
    cJSON_ArrayForEach (record, r.all) {
        cJSON *kept = cJSON_CreateObject();
        cJSON_ArrayForEach (field, record) {
            if (!is_of_attempt(field->string))
                cJSON_AddItemToObject(kept, field->string, cJSON_Duplicate(field, true));
        }
        cJSON_AddItemToArray(all, kept);
    }
    char *essence = cJSON_Print(all);
    cJSON_Delete(all);
    return essence;
}

/* Both runs have the same log: kind, epoch, step, seq and every figure. */
static inline void assert_same_log(const char *run_a, const char *run_b)
{
    char *a = log_essence(merged_records(run_a)), *b = log_essence(merged_records(run_b));
    size_t at = 0;
    while (a[at] && a[at] == b[at])
        at++;
    ck_assert_msg(strcmp(a, b) == 0, "the logs of %s and %s differ: ...%.200s... and ...%.200s...",
                  run_a, run_b, a + (at > 100 ? at - 100 : 0), b + (at > 100 ? at - 100 : 0));
    free(a);
    free(b);
}

/* seq counts 0, 1, 2, … without holes; steps never go back. */
static inline void assert_whole_log(const char *run)
{
    records r = merged_records(run);
    double step = 0;
    int seq = 0;
    cJSON *record = NULL;
    cJSON_ArrayForEach (record, r.all) {
        ck_assert_int_eq((int)json_number(record, "seq"), seq++);
        ck_assert_double_ge(json_number(record, "step"), step);
        step = json_number(record, "step");
    }
}

/* Waits until the last attempt's log holds a step record of at least `step`, or the process ends.
 */
static inline void wait_for_step(process *p, const char *run, int attempt, int step)
{
    const char *path = text("%s/attempt-%d/metrics.jsonl", run, attempt);
    double begin = seconds_now();
    while (!process_has_ended(p) && seconds_now() - begin < PROCESS_LIMIT) {
        char *lines = read_file(path, NULL);
        int last = -1;
        for (char *at = lines; at && (at = strstr(at, "\"step\":")); at++)
            if (at[7] != '"')
                last = atoi(at + 7);
        free(lines);
        if (last >= step)
            return;
        nap(0.001);
    }
}

/* ---- suites ---- */

/* A test case whose tests each begin with `setup` and may take a while on a busy machine. */
static inline TCase *process_case(const char *name, void (*setup)(void))
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 240);
    tcase_add_checked_fixture(tcase, setup, remove_folder);
    return tcase;
}

static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif
