/*
 * The same training from different worlds (DESIGN Determinism): in exact mode bit for bit, whatever
 * the ranks and threads, also when a run moves from one world to another; else, with the same
 * shards, up to the order of summation. And across backends within a tolerance.
 */
#include <math.h>

#include "process_testing.h"

static process train(int ranks, const char *backend_name, const char *out, const char *threads,
                     const char *epochs)
{
    return RUN_RINGTRAIN_WITH(((launch){.ranks = ranks}), "train", in_folder("job.json"),
                              "--backend", backend_name, "--set", text("out=%s", out), "--set",
                              text("resources.threads=%s", threads), "--set", "train.exact=true",
                              "--set", "train.shard=2", "--set", text("train.epochs=%s", epochs),
                              "--set", "train.momentum=0.9");
}

/* ---- exact mode ---- */

/* What a run left as run-`number` is what run-0 left. */
static void assert_same_as_first(size_t number)
{
    assert_same_file(in_folder("run-0/last.safetensors"),
                     text("%s/run-%zu/last.safetensors", folder, number));
}

START_TEST(exact_any_world)
{
    static const struct {
        int ranks;
        const char *threads;
    } worlds[] = {{0, "1"}, {0, "2"}, {0, "3"}, {2, "1"}, {2, "2"}, {4, "1"}};
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++) {
        const char *out = in_folder(text("run-%zu", i));
        process p = train(worlds[i].ranks, test_backend(_i), out, worlds[i].threads, "3");
        assert_code(&p, 0);
        assert_same_as_first(i);
    }
    assert_same_log(in_folder("run-0"), in_folder("run-5"));
}
END_TEST

/* A shard is one thread's, also where a rank has more threads than shards. */
START_TEST(exact_with_idle_threads)
{
    static const struct {
        int ranks;
        const char *threads;
    } worlds[] = {{0, "1"}, {0, "3"}, {2, "1"}, {2, "2"}};
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++) {
        const char *out = in_folder(text("run-%zu", i));
        process p = RUN_RINGTRAIN_WITH(
            ((launch){.ranks = worlds[i].ranks}), "train", in_folder("job.json"), "--backend",
            test_backend(_i), "--set", text("out=%s", out), "--set",
            text("resources.threads=%s", worlds[i].threads), "--set", "train.exact=true", "--set",
            "train.batch=32", "--set", "train.shard=16", "--set", "train.epochs=2", "--set",
            "model.width=16", "--set", "rpg.size=4000", "--set", "data.size=16");
        assert_code(&p, 0);
        assert_same_as_first(i);
    }
}
END_TEST

/* Stopped again and again, each time resumed in another world. */
START_TEST(exact_moves_between_worlds)
{
    static const struct {
        int ranks, stop_at;
        const char *threads;
    } stages[] = {{0, 3, "1"}, {2, 6, "1"}, {4, 9, "1"}, {0, 0, "2"}};
    const char *whole = in_folder("whole"), *out = in_folder("moved");
    process p = train(0, test_backend(_i), whole, "1", "5");
    assert_code(&p, 0);
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        launch l = {.ranks = stages[i].ranks};
        p = START_RINGTRAIN(
            l, "train", in_folder("job.json"), "--backend", test_backend(_i), "--set",
            text("out=%s", out), "--set", text("resources.threads=%s", stages[i].threads), "--set",
            "train.exact=true", "--set", "train.shard=2", "--set", "train.momentum=0.9");
        if (stages[i].stop_at > 0) {
            wait_for_step(&p, out, (int)i + 1, stages[i].stop_at);
            if (!process_has_ended(&p))
                process_signal(&p, SIGUSR1);
        }
        process_wait(&p, PROCESS_LIMIT);
        ck_assert_msg(p.code == 0 || (stages[i].stop_at && p.code == 143), "%d: %s", p.code, p.err);
    }
    ck_assert_int_ge(last_attempt(out), 2);
    assert_same_file(text("%s/last.safetensors", whole), text("%s/last.safetensors", out));
    assert_same_log(whole, out);
}
END_TEST

/* ---- not exact ---- */

typedef struct traced {
    float *gradient;
    size_t elements;
    double loss[10];
} traced;

/* Ten steps from a world. Wide statistics (64 values a channel at the least) and a small rate: what
 * is compared is the order of summation, not how fast a network forgets its past (at three times
 * this rate a ReLU that flips makes 1e-4 of 1e-7 within ten steps where Winograd rounds). */
static traced trace(int ranks, const char *backend_name, const char *shard)
{
    static int number;
    const char *gradient = in_folder(text("gradient-%d", ++number));
    const char *losses = in_folder(text("losses-%d", number));
    process p = run_command((launch){.ranks = ranks},
                            (const char *const[]){STEP_PROBE, in_folder("job.json"), gradient,
                                                  losses, text("backend.name=%s", backend_name),
                                                  "data.size=16", "data.train_count=128",
                                                  "train.batch=64", "train.lr=0.001", shard, NULL});
    assert_code(&p, 0);
    size_t bytes = 0;
    traced t = {.gradient = (float *)(void *)read_file(gradient, &bytes)};
    t.elements = bytes / sizeof(float);
    char *rest = read_file(losses, NULL);
    ck_assert_int_eq(count_lines(rest), 10);
    for (int i = 0; i < 10; i++)
        t.loss[i] = strtod(rest, &rest);
    return t;
}

static void assert_close(const traced *a, const traced *b, double gradient, double loss, int steps)
{
    double difference = 0, norm = 0;
    ck_assert_uint_gt(a->elements, 100);
    ck_assert_uint_eq(a->elements, b->elements);
    for (size_t i = 0; i < a->elements; i++) {
        double d = (double)a->gradient[i] - b->gradient[i];
        difference += d * d;
        norm += (double)a->gradient[i] * a->gradient[i];
    }
    ck_assert_double_gt(norm, 0);
    ck_assert_msg(sqrt(difference / norm) <= gradient, "gradients differ by %g",
                  sqrt(difference / norm));
    for (int i = 0; i < steps; i++)
        ck_assert_msg(fabs(a->loss[i] - b->loss[i]) <= loss * fabs(a->loss[i]),
                      "loss of step %d: %.9g and %.9g", i, a->loss[i], b->loss[i]);
}

START_TEST(same_shards)
{
    traced one = trace(0, test_backend(_i), "train.shard=16"),
           two = trace(2, test_backend(_i), "train.shard=16"),
           four = trace(4, test_backend(_i), "train.shard=16");
    assert_close(&one, &two, 1e-5, 1e-4, 10);
    assert_close(&one, &four, 1e-5, 1e-4, 10);
}
END_TEST

/* Other shards are other BN statistics: a test of the test. */
START_TEST(other_shards_differ)
{
    traced a = trace(0, test_backend(0), "train.shard=16"),
           b = trace(0, test_backend(0), "train.shard=32");
    ck_assert(fabs(a.loss[0] - b.loss[0]) > 1e-4 * fabs(a.loss[0]));
}
END_TEST

START_TEST(backends_agree)
{
    if (test_backend_count() < 2)
        return;
    traced a = trace(0, test_backend(0), "train.shard=16"),
           b = trace(2, test_backend(1), "train.shard=16");
    assert_close(&a, &b, 1e-4, 1e-3, 2);
}
END_TEST

/* Running twice: the same bits, from two ranks too. */
START_TEST(same_world_same_bits)
{
    const char *last[2];
    for (int run = 0; run < 2; run++) {
        const char *out = in_folder(run ? "b" : "a");
        process p = RUN_RINGTRAIN_WITH(((launch){.ranks = 2}), "train", in_folder("job.json"),
                                       "--backend", test_backend(_i), "--set", text("out=%s", out));
        assert_code(&p, 0);
        last[run] = text("%s/last.safetensors", out);
    }
    assert_same_file(last[0], last[1]);
    assert_same_log(in_folder("a"), in_folder("b"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("equality");
    TCase *tcase = process_case("worlds", setup_job);
    int backends = test_backend_count();
    tcase_add_loop_test(tcase, exact_any_world, 0, backends);
    tcase_add_loop_test(tcase, exact_with_idle_threads, 0, backends - 1);
    tcase_add_loop_test(tcase, exact_moves_between_worlds, 0, backends);
    tcase_add_loop_test(tcase, same_shards, 0, backends);
    tcase_add_test(tcase, other_shards_differ);
    tcase_add_test(tcase, backends_agree);
    tcase_add_loop_test(tcase, same_world_same_bits, 0, backends);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
