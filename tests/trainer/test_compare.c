/*
 * ringtrain compare: what is read from run folders, what the table says, and that nothing in a run
 * can reach gnuplot as a command.
 */
#include <check.h>
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/compare.h"

static char folder[256];

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/compare.XXXXXX", base ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

/* folder/run/attempt-<n>/result.json */
static void write_attempt(const char *run, int n, const char *result)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, run);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/attempt-%d", folder, run, n);
    ck_assert_int_eq(mkdir(path, 0777), 0);
    snprintf(path, sizeof path, "%s/%s/attempt-%d/result.json", folder, run, n);
    write_file(path, result);
}

static void write_name(const char *run, const char *job)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s/job.json", folder, run);
    write_file(path, job);
}

static status load(compare_table *t, errbuf *err, int count, const char *const *runs)
{
    char paths[8][400];
    const char *list[8];
    for (int i = 0; i < count; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, runs[i]);
        list[i] = paths[i];
    }
    return compare_load(list, count, t, err);
}

#define RESULT(outcome, dof, ring, generated, top1)                                   \
    "{\"outcome\":\"" outcome "\",\"epochs\":3,\"dof\":" dof ",\"ring_size\":" ring   \
    ",\"generated\":" generated ",\"wire_floats\":1000,\"images_per_second\":2500.5," \
    "\"final\":{\"top1\":" top1 "},\"best\":{\"top1\":0.75,\"epoch\":2,\"step\":20}}"

#define SIZES "\"dof\":1100,\"ring_size\":1000,\"generated\":5000,\"wire_floats\":1000,"

static const char ring_result[] = RESULT("done", "1100", "1000", "5000", "0.5");
static const char dense_result[] = RESULT("done", "5100", "0", "0", "0.625");

START_TEST(reads_the_figures)
{
    write_attempt("ring", 1, ring_result);
    write_name("ring", "{\"name\":\"small\"}");
    compare_table t = {0};
    errbuf err = {0};
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"ring"}), STATUS_OK);
    const compare_run *r = &t.run[0];
    ck_assert_str_eq(r->name, "small");
    ck_assert_int_eq(r->ring_size, 1000);
    ck_assert_int_eq(r->dof, 1100);
    ck_assert_int_eq(r->dense_dof, 5100); /* 1100 - 1000 free in the ring + 5000 generated */
    ck_assert_int_eq(r->wire_bytes, 4000);
    ck_assert_double_eq(r->top1, 0.5);
    ck_assert_double_eq(r->best_top1, 0.75);
    compare_fini(&t);
    compare_fini(&t);
}
END_TEST

/* A ring larger than what it generates has only M free parameters. */
START_TEST(large_ring_is_the_dense_size)
{
    write_attempt("large", 1, RESULT("done", "5100", "9000", "5000", "0.5"));
    compare_table t = {0};
    errbuf err = {0};
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"large"}), STATUS_OK);
    ck_assert_int_eq(t.run[0].dense_dof, 5100);
    ck_assert_str_eq(t.run[0].name, "large"); /* no job.json: the folder's name */
    compare_fini(&t);
}
END_TEST

/* attempt-10 is newer than attempt-9, and an attempt that never ended is passed over. */
START_TEST(newest_attempt_as_a_number)
{
    char path[400];
    write_attempt("run", 9, dense_result);
    write_attempt("run", 10, ring_result);
    snprintf(path, sizeof path, "%s/run/attempt-11", folder);
    ck_assert_int_eq(mkdir(path, 0777), 0);
    write_attempt("run", 2, dense_result);
    compare_table t = {0};
    errbuf err = {0};
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"run"}), STATUS_OK);
    ck_assert_int_eq(t.run[0].dof, 1100);
    compare_fini(&t);
}
END_TEST

/* An attempt that failed before it had a network does not hide what an earlier one measured. */
START_TEST(failed_attempt_is_passed_over)
{
    static const char failed[] = "{\"outcome\":\"failed\",\"error\":\"no disk\"}";
    compare_table t = {0};
    errbuf err = {0};
    write_attempt("run", 1, failed);
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"run"}), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "the run failed: no disk") != NULL, "%s", err.text);
    errbuf_clear(&err);
    write_attempt("run", 2, ring_result);
    write_attempt("run", 3, failed);
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"run"}), STATUS_OK);
    ck_assert_int_eq(t.run[0].dof, 1100);
    compare_fini(&t);
}
END_TEST

/* A resume that was refused, or stopped before it evaluated, does not hide what was measured; zeros
 * of before the first epoch are no measurement. */
START_TEST(unmeasured_attempts_hide_nothing)
{
    static const char *const later[] = {
        "{\"outcome\":\"failed\",\"error\":\"another plan\"," SIZES "\"steps\":0,\"epochs\":0,"
        "\"best\":{\"top1\":0,\"epoch\":0,\"step\":0}}",
        "{\"outcome\":\"stopped\"," SIZES "\"steps\":900,\"epochs\":3,"
        "\"best\":{\"top1\":0.75,\"epoch\":2,\"step\":20}}",
        "{\"outcome\":\"stopped\"," SIZES "\"steps\":900,\"epochs\":0,"
        "\"final\":{\"top1\":0,\"epoch\":0},\"best\":{\"top1\":-1,\"epoch\":0,\"step\":0}}",
        "{\"outcome\":\"stopped\"," SIZES "\"steps\":900,\"epochs\":3,"
        "\"final\":{\"top1\":null,\"epoch\":3}}",
    };
    compare_table t = {0};
    errbuf err = {0};
    write_attempt("run", 1, ring_result);
    write_attempt("run", 2, later[_i]);
    write_attempt("alone", 1, later[_i]);
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"run"}), STATUS_OK);
    ck_assert_double_eq(t.run[0].top1, 0.5);
    ck_assert_double_eq(t.run[0].best_top1, 0.75);
    ck_assert_str_eq(t.run[0].outcome, "done");
    compare_fini(&t);
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"alone"}), STATUS_OK);
    ck_assert_double_eq(t.run[0].top1, -1);
    ck_assert_double_eq(t.run[0].best_top1, _i == 1 ? 0.75 : -1);
    compare_fini(&t);
}
END_TEST

/* Of attempts that measured, the newest; of those that did not, the one that got furthest. */
START_TEST(newest_measured_or_furthest)
{
    compare_table t = {0};
    errbuf err = {0};
    write_attempt("run", 1, RESULT("stopped", "1100", "1000", "5000", "0.625"));
    write_attempt("run", 2, ring_result);
    write_attempt("unmeasured", 1, "{\"outcome\":\"a\"," SIZES "\"steps\":7,\"epochs\":0}");
    write_attempt("unmeasured", 2, "{\"outcome\":\"b\"," SIZES "\"steps\":9,\"epochs\":0}");
    write_attempt("unmeasured", 3, "{\"outcome\":\"c\"," SIZES "\"steps\":9,\"epochs\":0}");
    write_attempt("unmeasured", 4, "{\"outcome\":\"d\"," SIZES "\"steps\":0,\"epochs\":0}");
    ck_assert_int_eq(load(&t, &err, 2, (const char *[]){"run", "unmeasured"}), STATUS_OK);
    ck_assert_double_eq(t.run[0].top1, 0.5);
    ck_assert_str_eq(t.run[1].outcome, "c");
    compare_fini(&t);
}
END_TEST

/* Block rings of 4000 for 1000 weights and of 100 for 4000: 1100 elements are in use, which the
 * sums 4100 and 5000 cannot tell. */
START_TEST(rings_of_mixed_kind)
{
    compare_table t = {0};
    errbuf err = {0};
    write_attempt("run", 1,
                  "{\"outcome\":\"done\",\"epochs\":1,\"dof\":1200,\"ring_size\":4100,"
                  "\"ring_used\":1100,\"generated\":5000,\"wire_floats\":1000}");
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"run"}), STATUS_OK);
    ck_assert_int_eq(t.run[0].dense_dof, 5100);
    compare_fini(&t);
    write_attempt("bad", 1,
                  "{\"outcome\":\"done\",\"epochs\":1,\"dof\":1200,\"ring_size\":4100,"
                  "\"ring_used\":\"all\",\"generated\":5000,\"wire_floats\":1000}");
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"bad"}), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "ring_used"));
}
END_TEST

START_TEST(table_is_ordered_and_complete)
{
    write_attempt("dense", 1, dense_result);
    write_attempt("ring", 1, ring_result);
    write_attempt("stopped", 1, RESULT("terminated", "1200", "1100", "5000", "null"));
    compare_table t = {0};
    errbuf err = {0};
    char *text = NULL;
    ck_assert_int_eq(load(&t, &err, 3, (const char *[]){"dense", "stopped", "ring"}), STATUS_OK);
    ck_assert_int_eq(compare_text(&t, &text, &err), STATUS_OK);
    const char *ring = strstr(text, "\nring "), *stopped = strstr(text, "\nstopped "),
               *dense = strstr(text, "\ndense ");
    ck_assert(ring && stopped && dense && ring < stopped && stopped < dense);
    ck_assert_ptr_nonnull(strstr(ring, "1,100"));
    ck_assert_ptr_nonnull(strstr(ring, "21.6 %"));
    ck_assert_ptr_nonnull(strstr(ring, "50.0 %"));
    ck_assert_ptr_nonnull(strstr(stopped, "(terminated)"));
    ck_assert_ptr_nonnull(strstr(dense, "100.0 %"));
    ck_assert_ptr_null(strstr(text, "nan"));
    free(text);
    compare_fini(&t);
}
END_TEST

START_TEST(json_reads_back)
{
    write_attempt("ring", 1, ring_result);
    write_attempt("stopped", 1, RESULT("terminated", "1200", "1100", "5000", "null"));
    compare_table t = {0};
    errbuf err = {0};
    char *text = NULL;
    ck_assert_int_eq(load(&t, &err, 2, (const char *[]){"ring", "stopped"}), STATUS_OK);
    ck_assert_int_eq(compare_json(&t, &text, &err), STATUS_OK);
    cJSON *json = cJSON_Parse(text);
    ck_assert_int_eq(cJSON_GetArraySize(json), 2);
    const cJSON *first = cJSON_GetArrayItem(json, 0);
    ck_assert_double_eq(cJSON_GetObjectItem(first, "top1")->valuedouble, 0.5);
    ck_assert_double_eq(cJSON_GetObjectItem(first, "dense_dof")->valuedouble, 5100);
    ck_assert_ptr_null(cJSON_GetObjectItem(cJSON_GetArrayItem(json, 1), "top1"));
    cJSON_Delete(json);
    free(text);
    compare_fini(&t);
}
END_TEST

static const struct {
    const char *result; /* NULL: no attempt at all */
    const char *word;   /* that the message must hold */
} bad[] = {
    {NULL, "run has ended"},
    {"", "result.json"},
    {"{\"dof\":1", "result.json"},
    {"{\"outcome\":\"done\"}", "dof"},
    {RESULT("done", "-3", "0", "0", "0.5"), "dof"},
    {RESULT("done", "1e300", "0", "0", "0.5"), "dof"},
    {RESULT("done", "10", "\\\"x\\\"", "0", "0.5"), "result.json"},
    {RESULT("done", "10", "1.5", "0", "0.5"), "ring_size"},
};

START_TEST(damaged_result_is_named)
{
    compare_table t = {.runs = -1};
    errbuf err = {0};
    char path[400];
    if (bad[_i].result) {
        write_attempt("run", 1, bad[_i].result);
    } else {
        snprintf(path, sizeof path, "%s/run", folder);
        ck_assert_int_eq(mkdir(path, 0777), 0);
    }
    write_attempt("good", 1, ring_result);
    ck_assert_int_eq(load(&t, &err, 2, (const char *[]){"good", "run"}), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "/run") && strstr(err.text, bad[_i].word), "%s", err.text);
    ck_assert_int_eq(t.runs, -1);
}
END_TEST

START_TEST(missing_folder_is_named)
{
    compare_table t = {0};
    errbuf err = {0};
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"nowhere"}), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "nowhere"));
}
END_TEST

/* Quotes, backticks, new lines and macros of gnuplot in a name become underscores. */
START_TEST(names_cannot_become_commands)
{
    write_attempt("evil", 1, ring_result);
    write_name("evil", "{\"name\":\"x\\\" \\n system('id') `id` @m $d # \\\\ %s\"}");
    compare_table t = {0};
    errbuf err = {0};
    char *text = NULL;
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"evil"}), STATUS_OK);
    ck_assert_int_eq(compare_script(&t, COMPARE_SVG, &text, &err), STATUS_OK);
    const char *line = strstr(text, "1100 50.0000 ");
    ck_assert_ptr_nonnull(line);
    const char *expected = "1100 50.0000 \"x_ _ system(_id_) _id_ _m _d _ _ %s\" \"50.0 %\"\n";
    ck_assert_msg(strncmp(line, expected, strlen(expected)) == 0, "%s", line);
    ck_assert_ptr_null(strchr(text, '`'));
    free(text);
    compare_fini(&t);
}
END_TEST

START_TEST(plots_are_drawn)
{
    if (system("command -v gnuplot >/dev/null") != 0)
        return;
    write_attempt("ring", 1, ring_result);
    write_attempt("dense", 1, dense_result);
    compare_table t = {0};
    errbuf err = {0};
    char prefix[400], path[420];
    ck_assert_int_eq(load(&t, &err, 2, (const char *[]){"ring", "dense"}), STATUS_OK);
    snprintf(prefix, sizeof prefix, "%s/it's \"a\" plot", folder);
    ck_assert_msg(compare_plot(&t, prefix, &err) == STATUS_OK, "%s", err.text);
    static const char *const starts[][2] = {{"svg", "<?xml"}, {"png", "\x89PNG"}};
    for (int i = 0; i < 2; i++) {
        char head[8] = {0};
        snprintf(path, sizeof path, "%s.%s", prefix, starts[i][0]);
        FILE *f = fopen(path, "rb");
        ck_assert_ptr_nonnull(f);
        ck_assert_int_gt(fread(head, 1, 5, f), 0);
        fclose(f);
        ck_assert_int_eq(strncmp(head, starts[i][1], strlen(starts[i][1])), 0);
    }
    compare_fini(&t);
}
END_TEST

START_TEST(without_gnuplot)
{
    write_attempt("ring", 1, ring_result);
    compare_table t = {0};
    errbuf err = {0};
    char prefix[400], path[420];
    ck_assert_int_eq(load(&t, &err, 1, (const char *[]){"ring"}), STATUS_OK);
    snprintf(prefix, sizeof prefix, "%s/plot", folder);
    ck_assert_int_eq(setenv("PATH", folder, 1), 0);
    ck_assert_int_eq(compare_plot(&t, prefix, &err), STATUS_ENVIRONMENT);
    ck_assert_ptr_nonnull(strstr(err.text, "gnuplot"));
    snprintf(path, sizeof path, "%s.svg", prefix);
    ck_assert_int_ne(access(path, F_OK), 0);
    ck_assert_int_eq(setenv("PATH", "/usr/bin:/bin", 1), 0);
    compare_fini(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("compare");
    TCase *tc = tcase_create("compare");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, reads_the_figures);
    tcase_add_test(tc, large_ring_is_the_dense_size);
    tcase_add_test(tc, newest_attempt_as_a_number);
    tcase_add_test(tc, failed_attempt_is_passed_over);
    tcase_add_loop_test(tc, unmeasured_attempts_hide_nothing, 0, 4);
    tcase_add_test(tc, newest_measured_or_furthest);
    tcase_add_test(tc, rings_of_mixed_kind);
    tcase_add_test(tc, table_is_ordered_and_complete);
    tcase_add_test(tc, json_reads_back);
    tcase_add_loop_test(tc, damaged_result_is_named, 0, sizeof bad / sizeof bad[0]);
    tcase_add_test(tc, missing_folder_is_named);
    tcase_add_test(tc, names_cannot_become_commands);
    tcase_add_test(tc, plots_are_drawn);
    tcase_add_test(tc, without_gnuplot);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    const int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
