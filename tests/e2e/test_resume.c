/*
 * One process: the same bits from run to run, across kills at any moment and orderly stops; what
 * happens when a job that is done, or another one, meets a run folder.
 */
#include "interrupt_testing.h"

#define BACKENDS test_backend_count()

START_TEST(same_bits)
{
    const char *backend_name = test_backend(_i);
    for (int run = 0; run < 2; run++) {
        process p = run_whole(0, backend_name, in_folder(run ? "b" : "a"), "train.seed=3");
        assert_code(&p, 0);
    }
    assert_same_run(in_folder("a"), in_folder("b"));
    process p = run_whole(0, backend_name, in_folder("c"), "train.seed=4");
    assert_code(&p, 0);
    ck_assert(!is_same_file(in_folder("a/last.safetensors"), in_folder("c/last.safetensors")));
}
END_TEST

START_TEST(kill_resume)
{
    int seeds = is_long() ? 20 : 2;
    for (int seed = 0; seed < seeds; seed++)
        check_kill_resume(0, test_backend(_i), 1000u * (uint32_t)_i + (uint32_t)seed,
                          "train.seed=1");
}
END_TEST

START_TEST(kill_resume_without_regular_checkpoints)
{
    /* checkpoints at evaluations, evaluations every second epoch, records every third step */
    check_kill_resume(0, test_backend(0), 77, "train.checkpoint_every=0");
    check_kill_resume(0, test_backend(0), 78, "train.eval_every=2");
    check_kill_resume(0, test_backend(0), 79, "train.train_eval=true");
}
END_TEST

START_TEST(stop_resume)
{
    check_stop_resume(0, test_backend(0),
                      _i == 0   ? SIGINT
                      : _i == 1 ? SIGTERM
                                : SIGUSR1,
                      _i == 0 ? 130 : 143);
}
END_TEST

START_TEST(second_signal_ends_at_once)
{
    const char *out = in_folder("out");
    /* steps of seconds: the second signal finds the last one still running */
    process p = START_RINGTRAIN((launch){0}, "train", in_folder("job.json"), "--backend",
                                "reference", "--set", text("out=%s", out), "--set", "data.size=32",
                                "--set", "model.width=16", "--set", "rpg.size=4000", "--set",
                                "train.batch=64", "--set", "train.epochs=1000");
    const char *said = "";
    bool sent = false;
    for (double begin = seconds_now(); seconds_now() - begin < PROCESS_LIMIT; nap(0.02)) {
        said = read_file(p.err_path, NULL);
        said = said ? said : ""; /* it has not begun to write */
        if (strstr(said, "stopping after this step"))
            break;
        if (!sent && exists(text("%s/attempt-1/run.json", out))) {
            process_signal(&p, SIGINT);
            sent = true;
        }
    }
    ck_assert_msg(strstr(said, "stopping after this step") != NULL, "not acknowledged: %s", said);
    process_signal(&p, SIGINT);
    process_wait(&p, PROCESS_LIMIT);
    ck_assert_int_eq(p.code, 130);
    ck_assert(!exists(text("%s/attempt-1/result.json", out))); /* it did not wait */
}
END_TEST

/* Two runs in one folder would resume from each other's files. */
START_TEST(one_run_at_a_time)
{
    const char *out = in_folder("out");
    process first = start_run(0, "reference", out, "train.epochs=100000");
    wait_for_step(&first, out, 1, 2);
    process p = run_whole(0, "reference", out, "train.epochs=100000");
    ASSERT_ERROR(&p, 2, "another run", out);
    ck_assert_int_eq(last_attempt(out), 1);
    ck_assert(!process_has_ended(&first));
    process_signal(&first, SIGKILL);
    process_wait(&first, PROCESS_LIMIT);
}
END_TEST

/* Killed between the last checkpoint and the result: nothing is left to train, and yet the next
 * run ends the job. */
START_TEST(killed_after_last_step)
{
    const char *whole = in_folder("whole"), *out = in_folder("out");
    process p = run_whole(0, test_backend(0), whole, "train.seed=1");
    assert_code(&p, 0);
    p = run_whole(0, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    unlink(text("%s/attempt-1/result.json", out));
    if (_i == 0) { /* before the links were set */
        unlink(text("%s/last.safetensors", out));
        unlink(text("%s/best.safetensors", out));
    }
    p = run_whole(0, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    assert_same_run(whole, out);
    cJSON *first = read_attempt(whole, 1, "result.json");
    cJSON *second = read_attempt(out, 2, "result.json");
    ck_assert(cJSON_Compare(cJSON_GetObjectItem(first, "final"),
                            cJSON_GetObjectItem(second, "final"), true));
    ck_assert(cJSON_Compare(cJSON_GetObjectItem(first, "best"), cJSON_GetObjectItem(second, "best"),
                            true));
    p = run_whole(0, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "done already"));
    ck_assert_int_eq(last_attempt(out), 2);
}
END_TEST

START_TEST(done_is_done)
{
    const char *out = in_folder("out");
    process p = run_whole(0, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    process again = run_whole(0, test_backend(0), out, "train.seed=1");
    assert_code(&again, 0);
    ck_assert_ptr_nonnull(strstr(again.out, "done already"));
    ck_assert_int_eq(last_attempt(out), 1);
    /* what does not affect results may change; --json prints the result that is there */
    process json =
        RUN_RINGTRAIN("train", in_folder("job.json"), "--set", "data.train_count=128", "--set",
                      text("out=%s", out), "--set", "train.log_every=7", "--json");
    assert_code(&json, 0);
    cJSON *said = cJSON_Parse(json.out), *kept = read_attempt(out, 1, "result.json");
    ck_assert_ptr_nonnull(said);
    ck_assert(cJSON_Compare(said, kept, true));
    cJSON_Delete(said);
    cJSON_Delete(kept);
}
END_TEST

START_TEST(folder_of_another_job)
{
    const char *out = in_folder("out");
    process p = run_whole(0, test_backend(0), out, "train.lr=0.05");
    assert_code(&p, 0);
    p = run_whole(0, test_backend(0), out, "train.lr=0.04");
    ASSERT_ERROR(&p, 2, out, "train.lr", "0.05", "0.04", "out=");
    ck_assert_int_eq(last_attempt(out), 1);
    ck_assert_int_eq(count_leftovers(out), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("resume");
    TCase *tcase = process_case("alone", setup_job);
    tcase_add_loop_test(tcase, same_bits, 0, BACKENDS);
    tcase_add_loop_test(tcase, kill_resume, 0, BACKENDS);
    tcase_add_test(tcase, kill_resume_without_regular_checkpoints);
    tcase_add_loop_test(tcase, stop_resume, 0, 3);
    tcase_add_test(tcase, second_signal_ends_at_once);
    tcase_add_test(tcase, one_run_at_a_time);
    tcase_add_loop_test(tcase, killed_after_last_step, 0, 2);
    tcase_add_test(tcase, done_is_done);
    tcase_add_test(tcase, folder_of_another_job);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
