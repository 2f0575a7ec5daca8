/*
 * Two ranks: the same bits across kills and orderly stops. SIGUSR1 to mpirun stops all ranks at the
 * same step; a killed mpirun takes its ranks along; a killed rank takes the others along.
 */
#include "interrupt_testing.h"

START_TEST(kill_resume)
{
    int seeds = is_long() ? 10 : 1;
    for (int seed = 0; seed < seeds; seed++)
        check_kill_resume(2, test_backend(_i), 500u * (uint32_t)_i + (uint32_t)seed,
                          "train.seed=1");
}
END_TEST

START_TEST(stop_resume)
{
    check_stop_resume(2, test_backend(0), SIGUSR1, 143);
}
END_TEST

/* Ranks of the world that mpirun started: processes of our job file. */
static int find_ranks(pid_t ret[8])
{
    int count = 0;
    const char *job = in_folder("job.json");
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d)) && count < 8;) {
        size_t length = 0;
        char *line = read_file(text("/proc/%s/cmdline", e->d_name), &length);
        bool is_ours = false;
        if (atoi(e->d_name) > 0 && line && strcmp(line, RINGTRAIN) == 0)
            for (size_t at = 0; at < length; at += strlen(line + at) + 1)
                is_ours = is_ours || strcmp(line + at, job) == 0;
        if (is_ours)
            ret[count++] = atoi(e->d_name);
        free(line);
    }
    if (d)
        closedir(d);
    return count;
}

/* Until none is left, or 10 s are over. */
static int ranks_after_a_while(void)
{
    pid_t ranks[8];
    int count = find_ranks(ranks);
    for (double begin = seconds_now(); count > 0 && seconds_now() - begin < 10;) {
        nap(0.02);
        count = find_ranks(ranks);
    }
    return count;
}

START_TEST(rank_dies)
{
    const char *out = in_folder("out");
    pid_t ranks[8];
    process p = start_run(3, test_backend(0), out, "train.batch=48");
    wait_for_step(&p, out, 1, 4);
    ck_assert_int_eq(find_ranks(ranks), 3);
    ck_assert_int_eq(kill(ranks[_i], SIGKILL), 0);
    process_wait(&p, 10);
    ck_assert_int_ne(p.code, 0);
    ck_assert_int_eq(ranks_after_a_while(), 0);
    p = run_whole(3, test_backend(0), out, "train.batch=48");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.err, "resumed from"));
}
END_TEST

START_TEST(launcher_dies)
{
    const char *out = in_folder("out");
    process p = start_run(2, test_backend(0), out, "train.epochs=100000");
    wait_for_step(&p, out, 1, 4);
    process_signal(&p, SIGKILL);
    process_wait(&p, 10);
    ck_assert_int_eq(ranks_after_a_while(), 0);
}
END_TEST

/* The second of two stops in a row comes while the first is being obeyed, or after. */
START_TEST(stopped_twice)
{
    const char *out = in_folder("out");
    process p = start_run(2, test_backend(0), out, "train.epochs=100000");
    wait_for_step(&p, out, 1, 4);
    for (int i = 0; i < 40 && !process_has_ended(&p); i++) {
        process_signal(&p, SIGUSR1);
        nap(0.005);
    }
    process_wait(&p, PROCESS_LIMIT);
    ck_assert(p.code == 143 || p.code == 128 + SIGUSR1); /* mpirun itself, at its very end */
    assert_result(out, "stopped", 143);
}
END_TEST

START_TEST(done_is_done)
{
    const char *out = in_folder("out");
    process p = run_whole(2, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    p = run_whole(2, test_backend(0), out, "train.seed=1");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "done already"));
    ck_assert_int_eq(last_attempt(out), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("resume");
    TCase *tcase = process_case("ranks", setup_job);
    tcase_add_loop_test(tcase, kill_resume, 0, test_backend_count());
    tcase_add_test(tcase, stop_resume);
    tcase_add_loop_test(tcase, rank_dies, 0, 2);
    tcase_add_test(tcase, launcher_dies);
    tcase_add_test(tcase, stopped_twice);
    tcase_add_test(tcase, done_is_done);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
