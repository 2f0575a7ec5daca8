/*
 * backend.plan: tuning writes a plan, a plan that is given is followed to the bit, and one that
 * cannot be followed is refused by name. On machines without AVX-512 every plan says direct.
 */
#include "process_testing.h"

#define TRAIN(world, out, plan)                                                                   \
    RUN_RINGTRAIN_WITH(((launch){.ranks = (world)}), "train", in_folder("job.json"), "--backend", \
                       "cpu", "--set", text("out=%s", out), "--set",                              \
                       text("backend.plan=%s", plan), "--set", "train.epochs=2", "--set",         \
                       "train.shard=8", "--set", "data.size=16", "--set", "model.width=16",       \
                       "--set", "rpg.size=4000")

static void replace_all(char *text_, const char *from, const char *to)
{
    ck_assert_uint_eq(strlen(from), strlen(to));
    for (char *at = text_; (at = strstr(at, from));)
        memcpy(at, to, strlen(to));
}

static const char *plan_of(const char *run)
{
    cJSON *json = read_attempt(run, 1, "run.json");
    return cJSON_PrintUnformatted(cJSON_GetObjectItem(json, "plan"));
}

/* Tuned, then given: the same choices, so the same bytes; ranks share the choice of rank 0. */
START_TEST(tuned_then_given)
{
    const int ranks = _i == 0 ? 0 : 2;
    const char *tuned = in_folder("tuned"), *given = in_folder("given");
    const char *plan = text("%s/attempt-1/plan.json", tuned);
    process p = TRAIN(ranks, tuned, "tune");
    assert_code(&p, 0);
    ck_assert(exists(plan));
    p = TRAIN(ranks, given, plan);
    assert_code(&p, 0);
    ck_assert(!exists(text("%s/attempt-1/plan.json", given)));
    ck_assert_str_eq(plan_of(tuned), plan_of(given));
    assert_same_file(text("%s/last.safetensors", tuned), text("%s/last.safetensors", given));
}
END_TEST

/* What a plan says is what runs. */
START_TEST(a_plan_is_followed)
{
    const char *usual = in_folder("usual"), *direct = in_folder("direct");
    const char *path = in_folder("plan.json");
    process p = TRAIN(0, usual, "default");
    assert_code(&p, 0);
    char *plan = strdup(plan_of(usual));
    const bool has_winograd = strstr(plan, "\"winograd\"") != NULL;
    replace_all(plan, "\"winograd\"", "\"direct\"  ");
    write_text(path, plan);
    p = TRAIN(0, direct, path);
    assert_code(&p, 0);
    ck_assert_ptr_null(strstr(plan_of(direct), "winograd"));
    ck_assert_ptr_nonnull(strstr(plan_of(direct), "direct"));
    const char *a = text("%s/last.safetensors", usual), *b = text("%s/last.safetensors", direct);
    size_t bytes_a = 0, bytes_b = 0;
    const char *file_a = read_file(a, &bytes_a), *file_b = read_file(b, &bytes_b);
    const bool same = bytes_a == bytes_b && memcmp(file_a, file_b, bytes_a) == 0;
    ck_assert_int_eq(same, !has_winograd);
}
END_TEST

/* A 1x1 convolution has no Winograd form anywhere. */
START_TEST(an_impossible_plan)
{
    const char *usual = in_folder("usual"), *path = in_folder("plan.json");
    process p = TRAIN(0, usual, "default");
    assert_code(&p, 0);
    char *plan = strdup(plan_of(usual));
    char *conv = strstr(plan, "r1x1");
    ck_assert_ptr_nonnull(conv);
    char *word = strstr(conv, "\"direct\"");
    ck_assert_ptr_nonnull(word);
    write_text(path,
               text("%.*s\"winograd\"%s", (int)(word - plan), plan, word + strlen("\"direct\"")));
    const char *out = in_folder("impossible");
    p = TRAIN(0, out, path);
    ASSERT_ERROR(&p, 2, "r1x1", "winograd");
    ck_assert(!exists(text("%s/last.safetensors", out)));
}
END_TEST

/* A plan for other threads, for another batch, or for nothing at all. */
START_TEST(a_plan_of_something_else)
{
    static const struct {
        const char *set, *says;
    } ways[] = {{"resources.threads=2", "threads"}, {"train.batch=8", "not in it"}};
    const char *usual = in_folder("usual"), *path = in_folder("plan.json");
    process p = TRAIN(0, usual, "default");
    assert_code(&p, 0);
    write_text(path, plan_of(usual));
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        p = RUN_RINGTRAIN("train", in_folder("job.json"), "--backend", "cpu", "--set",
                          text("out=%s/other-%zu", folder, i), "--set",
                          text("backend.plan=%s", path), "--set", "train.shard=8", "--set",
                          "data.size=16", "--set", "model.width=16", "--set", "rpg.size=4000",
                          "--set", ways[i].set, "--set", i == 0 ? "train.seed=1" : "train.shard=4");
        ASSERT_ERROR(&p, 2, ways[i].says);
    }
    write_text(path, "{}");
    p = TRAIN(0, in_folder("empty"), path);
    ASSERT_ERROR(&p, 2, "conv");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tcase = process_case("plan", setup_job);
    if (test_backend_count() > 1) { /* the cpu backend is there */
        tcase_add_loop_test(tcase, tuned_then_given, 0, 2);
        tcase_add_test(tcase, a_plan_is_followed);
        tcase_add_test(tcase, an_impossible_plan);
        tcase_add_test(tcase, a_plan_of_something_else);
    }
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
