/*
 * Runs that are killed again and again, and must end as if nothing had happened: what the suites
 * e2e/test_resume.c (alone) and dist/test_resume.c (a world of ranks) share.
 */
#ifndef RINGMASTER_TESTS_INTERRUPT_TESTING_H
#define RINGMASTER_TESTS_INTERRUPT_TESTING_H

#include "process_testing.h"

/* More kills and seeds in long runs. */
static inline int is_long(void)
{
    return getenv("RINGMASTER_LONG") != NULL;
}

/* Numbers below `limit` that follow from `state`. */
static inline int draw(uint32_t *state, int limit)
{
    *state = *state * 1664525u + 1013904223u;
    return (int)((*state >> 8) % (uint32_t)limit);
}

#define INTERRUPT_STEPS 40

static inline process start_run(int ranks, const char *backend_name, const char *out,
                                const char *set)
{
    return START_RINGTRAIN(((launch){.ranks = ranks}), "train", in_folder("job.json"), "--backend",
                           backend_name, "--set", text("out=%s", out), "--set",
                           "data.train_count=128", "--set", set);
}

/* To the end. */
static inline process run_whole(int ranks, const char *backend_name, const char *out,
                                const char *set)
{
    process p = start_run(ranks, backend_name, out, set);
    process_wait(&p, PROCESS_LIMIT);
    return p;
}

/* Ends a run with SIGKILL at some moment after a step drawn from `state` beyond those that are
 * known to be done; returns whether it was in time. */
static inline bool kill_once(int ranks, const char *backend_name, const char *out, const char *set,
                             uint32_t *state, int *done)
{
    int attempt = last_attempt(out) + 1;
    process p = start_run(ranks, backend_name, out, set);
    *done += draw(state, 12);
    wait_for_step(&p, out, attempt, *done);
    nap(1e-3 * draw(state, 8));
    if (process_has_ended(&p)) {
        assert_code(&p, 0);
        return false;
    }
    process_signal(&p, SIGKILL);
    process_wait(&p, PROCESS_LIMIT);
    return true;
}

/* Same final files and the same merged log as an uninterrupted run's. */
static inline void assert_same_run(const char *whole, const char *run)
{
    assert_same_file(text("%s/last.safetensors", whole), text("%s/last.safetensors", run));
    assert_same_file(text("%s/best.safetensors", whole), text("%s/best.safetensors", run));
    assert_same_log(whole, run);
    assert_whole_log(run);
}

static inline void check_kill_resume(int ranks, const char *backend_name, uint32_t seed,
                                     const char *set)
{
    uint32_t state = seed;
    const char *whole = in_folder("whole"), *out = in_folder("killed");
    process p = run_whole(ranks, backend_name, whole, set);
    assert_code(&p, 0);
    int kills = 0, done = 0;
    while (kills < 6 && kill_once(ranks, backend_name, out, set, &state, &done))
        kills++;
    p = run_whole(ranks, backend_name, out, set);
    assert_code(&p, 0);
    ck_assert_int_ge(kills, 1);
    assert_same_run(whole, out);
    remove_tree(whole);
    remove_tree(out);
}

/* Stops a run in an orderly way after some step: `code`, a checkpoint of the step that it stopped
 * at, a line that says how to go on. The same command then ends it as if nothing had happened. */
static inline void check_stop_resume(int ranks, const char *backend_name, int signal, int code)
{
    const char *whole = in_folder("whole"), *out = in_folder("stopped");
    process p = run_whole(ranks, backend_name, whole, "train.seed=1");
    assert_code(&p, 0);
    p = start_run(ranks, backend_name, out, "train.seed=1");
    wait_for_step(&p, out, 1, 5);
    process_signal(&p, signal);
    process_wait(&p, PROCESS_LIMIT);
    ASSERT_ERROR(&p, code, "stopped after step", "of 40", "checkpoint written to", "resumes");
    assert_result(out, "stopped", code);
    cJSON *result = read_attempt(out, 1, "result.json");
    int step = (int)json_number(result, "steps");
    ck_assert_int_ge(step, 5);
    ck_assert_int_lt(step, INTERRUPT_STEPS);
    ck_assert_str_eq(json_string(result, "checkpoint"), text("ckpt-%d.safetensors", step));
    ck_assert(exists(text("%s/attempt-1/ckpt-%d.safetensors", out, step)));
    p = run_whole(ranks, backend_name, out, "train.seed=1");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.err, text("step %d of 40", step)));
    cJSON *run = read_attempt(out, 2, "run.json");
    const cJSON *from = cJSON_GetObjectItem(run, "resumed_from");
    ck_assert_int_eq((int)json_number(from, "attempt"), 1);
    ck_assert_int_eq((int)json_number(from, "step"), step);
    assert_same_run(whole, out);
    cJSON_Delete(result);
    cJSON_Delete(run);
}

#endif
