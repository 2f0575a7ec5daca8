/*
 * The contract with an agent (FORMATS 6), played from the agent's side: attempt file, attempt
 * folder made beforehand, progress records, control file, the word in the environment.
 */
#include "process_testing.h"
#include "protocol/attempt.h"
#include "trainer/checkpoint.h"

static void setup(void)
{
    setup_job();
    mkdir(in_folder("host"), 0777);
}

/* The job's id with that many epochs, as a run alone says it in its run.json. */
static const char *find_id(const char *epochs)
{
    process p = START_RINGTRAIN(((launch){0}), "train", in_folder("job.json"), "--set",
                                text("train.epochs=%s", epochs), "--set",
                                text("out=%s/id-%s", folder, epochs));
    const char *run = text("%s/id-%s/attempt-1/run.json", folder, epochs);
    for (double begin = seconds_now(); !exists(run) && seconds_now() - begin < PROCESS_LIMIT;)
        nap(0.002);
    if (!process_has_ended(&p))
        process_signal(&p, SIGKILL);
    process_wait(&p, PROCESS_LIMIT);
    cJSON *json = read_json(run);
    const char *job = text("%s", json_string(json, "job"));
    cJSON_Delete(json);
    return job;
}

static const char *write_attempt(const char *job, int attempt, const char *attempt_folder)
{
    const char *path = in_folder(text("attempt-%d.json", attempt));
    write_text(path,
               text("{\"job\": \"%s\", \"attempt\": %d, \"fence\": 9, \"attempt_dir\": \"%s\","
                    " \"host_dir\": \"%s/host\", \"ranks\": [{\"host\": \"here\","
                    " \"local_rank\": 0, \"cores\": [0], \"device\": null}]}",
                    job, attempt, attempt_folder, folder));
    return path;
}

static process start_attempt(const char *job, int attempt, const char *epochs)
{
    static const char *environment[2];
    char tag[ATTEMPT_TAG_SIZE];
    const char *run = text("%s/pool/%s", folder, job);
    mkdir(in_folder("pool"), 0777);
    mkdir(run, 0777);
    const char *attempt_folder = text("%s/attempt-%d", run, attempt);
    ck_assert_int_eq(mkdir(attempt_folder, 0777), 0);
    attempt_format_tag(job, attempt, 9, tag);
    environment[0] = text(ATTEMPT_ENVIRONMENT "=%s", tag);
    return START_RINGTRAIN(((launch){.environment = environment}), "train", in_folder("job.json"),
                           "--attempt", write_attempt(job, attempt, attempt_folder), "--set",
                           text("train.epochs=%s", epochs), "--set", "out=/nowhere/at/all");
}

/* Until the record shows `step` steps; returns the last view. */
static attempt_progress_view wait_for_progress(process *p, uint64_t step)
{
    attempt_progress_view view = {0};
    for (double begin = seconds_now(); seconds_now() - begin < PROCESS_LIMIT;) {
        errbuf err = {0};
        bool is_read = attempt_progress_read(in_folder("host"), 0, &view, &err) == STATUS_OK;
        if (is_read && view.step >= step && view.phase >= ATTEMPT_TRAINING)
            break;
        if (process_has_ended(p))
            break;
        nap(0.002);
    }
    return view;
}

/* Newest checkpoint of an attempt; -1 = none. */
static int newest_checkpoint(const char *attempt_folder)
{
    int newest = -1, step = 0;
    DIR *d = opendir(attempt_folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (sscanf(e->d_name, "ckpt-%d.saf", &step) == 1 && step > newest)
            newest = step;
    if (d)
        closedir(d);
    return newest;
}

static void write_control(attempt_control control)
{
    errbuf err = {0};
    ck_assert_int_eq(attempt_control_write(in_folder("host"), control, &err), STATUS_OK);
}

START_TEST(to_the_end)
{
    const char *job = find_id("5"), *run = text("%s/pool/%s", folder, job);
    process p = start_attempt(job, 3, "5");
    process_wait(&p, PROCESS_LIMIT);
    assert_code(&p, 0);
    cJSON *result = read_attempt(run, 3, "result.json");
    ck_assert_str_eq(json_string(result, "job"), job);
    ck_assert_int_eq((int)json_number(result, "attempt"), 3);
    ck_assert_str_eq(json_string(result, "outcome"), "done");
    ck_assert(exists(text("%s/job.json", run)));
    ck_assert(exists(text("%s/attempt-3/ckpt-20.safetensors", run)));
    ck_assert(!exists(text("%s/last.safetensors", run))); /* the coordinator's to set */
    attempt_progress_view view = wait_for_progress(&p, 0);
    ck_assert_int_eq((int)view.step, JOB_STEPS);
    ck_assert_int_eq(view.phase, ATTEMPT_FINISHED);
}
END_TEST

START_TEST(progress_advances)
{
    const char *job = find_id("4000");
    process p = start_attempt(job, 1, "4000");
    attempt_progress_view first = wait_for_progress(&p, 1);
    attempt_progress_view second = wait_for_progress(&p, first.step + 3);
    ck_assert(!process_has_ended(&p));
    ck_assert_int_ge((int)(second.step - first.step), 3);
    ck_assert(second.time_ns > first.time_ns);
    process_signal(&p, SIGKILL);
    process_wait(&p, PROCESS_LIMIT);
}
END_TEST

/* `checkpoint` writes one and goes on; after it `stop` still is an orderly end, and so is SIGTERM.
 */
START_TEST(control)
{
    const char *job = find_id("4000");
    const char *attempt_folder = text("%s/pool/%s/attempt-1", folder, job);
    process p = start_attempt(job, 1, "4000");
    attempt_progress_view view = wait_for_progress(&p, 5);
    int before = newest_checkpoint(attempt_folder);
    write_control(ATTEMPT_CHECKPOINT);
    process_signal(&p, SIGUSR1);
    view = wait_for_progress(&p, view.step + 10);
    ck_assert(!process_has_ended(&p));
    ck_assert_int_gt(newest_checkpoint(attempt_folder), before);
    if (_i == 0)
        write_control(ATTEMPT_STOP);
    else if (_i == 1)
        unlink(in_folder("host/control"));
    else if (_i == 2)
        write_text(in_folder("host/control"), "dance\n");
    process_signal(&p, _i == 3 ? SIGTERM : SIGUSR1);
    process_wait(&p, PROCESS_LIMIT);
    ASSERT_ERROR(&p, 143, "stopped after step");
    assert_result(text("%s/pool/%s", folder, job), "stopped", 143);
    cJSON *result = read_attempt(text("%s/pool/%s", folder, job), 1, "result.json");
    ck_assert_int_eq(newest_checkpoint(attempt_folder), (int)json_number(result, "steps"));
    /* the next attempt goes on from there */
    p = start_attempt(job, 2, "4000");
    view = wait_for_progress(&p, (uint64_t)json_number(result, "steps") + 1);
    write_control(ATTEMPT_STOP);
    process_signal(&p, SIGUSR1);
    process_wait(&p, PROCESS_LIMIT);
    assert_code(&p, 143);
    ck_assert_ptr_nonnull(strstr(p.err, "resumed from"));
}
END_TEST

/* A checkpoint that is asked for in an epoch's last step holds what belongs to that step: its epoch
 * record and evaluation. All steps are the last of an epoch here, and a resume from it goes on as
 * if nothing had been asked. */
START_TEST(checkpoint_at_the_end_of_an_epoch)
{
    static const char *const sets[] = {"train.batch=64", "train.checkpoint_every=0",
                                       "train.eval_every=100000"};
    const char *out = in_folder("alone");
    process id = START_RINGTRAIN(((launch){0}), "train", in_folder("job.json"), "--set",
                                 text("out=%s", out), "--set", sets[0], "--set", sets[1], "--set",
                                 sets[2], "--set", "train.epochs=4000");
    for (double begin = seconds_now(); seconds_now() - begin < PROCESS_LIMIT; nap(0.002))
        if (exists(text("%s/attempt-1/run.json", out)))
            break;
    process_signal(&id, SIGKILL);
    process_wait(&id, PROCESS_LIMIT);
    const char *job = json_string(read_json(text("%s/attempt-1/run.json", out)), "job");
    const char *run = text("%s/pool/%s", folder, job), *attempt = text("%s/attempt-1", run);
    mkdir(in_folder("pool"), 0777);
    mkdir(run, 0777);
    mkdir(attempt, 0777);
    process p = START_RINGTRAIN(((launch){0}), "train", in_folder("job.json"), "--attempt",
                                write_attempt(job, 1, attempt), "--set", sets[0], "--set", sets[1],
                                "--set", sets[2], "--set", "train.epochs=4000");
    wait_for_progress(&p, 5);
    write_control(ATTEMPT_CHECKPOINT);
    process_signal(&p, SIGUSR1);
    for (double begin = seconds_now(); seconds_now() - begin < PROCESS_LIMIT; nap(0.002))
        if (newest_checkpoint(attempt) > 0 || process_has_ended(&p))
            break;
    int step = newest_checkpoint(attempt);
    ck_assert_int_gt(step, 0);
    checkpoint_head head = {0};
    errbuf err = {0};
    const char *file = text("%s/ckpt-%d.safetensors", attempt, step);
    ck_assert_msg(checkpoint_read_head(file, &head, &err) == STATUS_OK, "%s", err.text);
    ck_assert_int_eq((int)head.state.epoch, step); /* one step an epoch, and it is over */
    ck_assert_int_eq((int)head.state.train.count, 0);
    ck_assert_int_eq((int)head.state.next_seq, 2 * step); /* a step and an epoch record each */
    checkpoint_head_fini(&head);
    process_signal(&p, SIGKILL);
    process_wait(&p, PROCESS_LIMIT);
}
END_TEST

/* What goes wrong before the run has begun stands in the attempt's result all the same. */
START_TEST(early_failure_has_a_result)
{
    const char *job = find_id("5"), *run = text("%s/pool/%s", folder, job);
    mkdir(in_folder("pool"), 0777);
    mkdir(run, 0777);
    mkdir(text("%s/attempt-1", run), 0777);
    write_attempt(job, 1, text("%s/attempt-1", run));
    process p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt",
                              in_folder("attempt-1.json"), "--set", "data.train_count=15");
    ASSERT_ERROR(&p, 2, "train.batch");
    assert_result(run, "failed", 2);
    cJSON *result = read_attempt(run, 1, "result.json");
    ck_assert_str_eq(json_string(result, "job"), job);
    ck_assert_ptr_nonnull(strstr(json_string(result, "error"), "train.batch"));
}
END_TEST

START_TEST(refused)
{
    const char *job = find_id("5"), *run = text("%s/pool/%s", folder, job);
    process p = start_attempt(job, 1, "5");
    process_wait(&p, PROCESS_LIMIT);
    assert_code(&p, 0);
    /* the same attempt again */
    process again =
        RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("attempt-1.json"));
    ASSERT_ERROR(&again, 2, "attempt-1/metrics.jsonl");
    assert_result(run, "done", 0);
    /* a folder of another number, one that is not there, a file that is not JSON */
    write_attempt(job, 2, text("%s/attempt-1", run));
    p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("attempt-2.json"));
    ASSERT_ERROR(&p, 2, "attempt 2");
    write_attempt(job, 2, text("%s/attempt-2", run));
    p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("attempt-2.json"));
    ASSERT_ERROR(&p, 2, "attempt-2");
    ck_assert(!exists(text("%s/attempt-2", run)));
    /* an attempt of another job */
    mkdir(text("%s/attempt-2", run), 0777);
    p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("attempt-2.json"),
                      "--set", "train.lr=0.25");
    ASSERT_ERROR(&p, 2, job);
    ck_assert(!exists(text("%s/attempt-2/metrics.jsonl", run)));
    write_text(in_folder("bad.json"), "{\"job\": 3}");
    p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("bad.json"));
    ASSERT_ERROR(&p, 2, "bad.json");
    p = RUN_RINGTRAIN("train", in_folder("job.json"), "--attempt", in_folder("none.json"));
    ASSERT_ERROR(&p, 2, "none.json");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("attempt");
    TCase *tcase = process_case("agent", setup);
    tcase_add_test(tcase, to_the_end);
    tcase_add_test(tcase, progress_advances);
    tcase_add_loop_test(tcase, control, 0, 4);
    tcase_add_test(tcase, checkpoint_at_the_end_of_an_epoch);
    tcase_add_test(tcase, early_failure_has_a_result);
    tcase_add_test(tcase, refused);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
