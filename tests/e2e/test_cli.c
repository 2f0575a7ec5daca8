/* The command line: train --dry-run, --set, eval, bench, info, metrics, help, and what is refused.
 */
#include "process_testing.h"

#define JOB in_folder("job.json")

/* The resolved spec, run through again, is itself. */
START_TEST(dry_run_is_a_fixed_point)
{
    process first = RUN_RINGTRAIN("train", JOB, "--dry-run", "--set", "rpg.size=0", "--set",
                                  "rpg.share=0.01", "--set", "train.seed=18446744073709551615");
    assert_code(&first, 0);
    const char *resolved = in_folder("resolved.json");
    write_text(resolved, first.out);
    process second = RUN_RINGTRAIN("train", resolved, "--dry-run");
    assert_code(&second, 0);
    ck_assert_str_eq(first.out, second.out);
    process piped = RUN_RINGTRAIN_WITH(((launch){.input = resolved}), "train", "-", "--dry-run");
    assert_code(&piped, 0);
    ck_assert_str_eq(first.out, piped.out);
    ck_assert_ptr_nonnull(strstr(first.out, "\"18446744073709551615\""));
    cJSON *spec_json = cJSON_Parse(first.out);
    const cJSON *rpg = cJSON_GetObjectItem(spec_json, "rpg");
    ck_assert_int_eq((int)json_number(rpg, "size"), 436); /* 0.01 of 43,584 */
    ck_assert_ptr_null(cJSON_GetObjectItem(rpg, "share"));
    ck_assert_int_eq((int)json_number(cJSON_GetObjectItem(spec_json, "train"), "shard"), 16);
    ck_assert(!exists(in_folder("run")));
}
END_TEST

/* A spec on stdin that only one rank would see, that is too long, or that cannot be read. */
START_TEST(stdin_is_refused)
{
    static const char *const two_ranks[] = {"OMPI_COMM_WORLD_SIZE=2", NULL};
    static const char *const commands[] = {"train", "bench"};
    for (int i = 0; i < 2; i++) {
        launch l = {.input = JOB, .environment = two_ranks};
        process p = RUN_RINGTRAIN_WITH(l, commands[i], "-");
        ASSERT_ERROR(&p, 2, "standard input", "rank 0 of 2", "file");
        ck_assert_int_eq(count_lines(p.err), 1);
    }
    size_t length = ((size_t)16 << 20) + 1;
    char *blanks = malloc(length);
    ck_assert_ptr_nonnull(blanks);
    memset(blanks, ' ', length);
    write_file(in_folder("long"), blanks, length);
    free(blanks);
    process p = RUN_RINGTRAIN_WITH(((launch){.input = in_folder("long")}), "train", "-");
    ASSERT_ERROR(&p, 2, "stdin", "16 MiB");
    p = RUN_RINGTRAIN_WITH(((launch){.input = folder}), "train", "-");
    ASSERT_ERROR(&p, 5, "stdin", "directory");
    ck_assert(!exists(in_folder("run")));
}
END_TEST

START_TEST(later_sets_win)
{
    process p = RUN_RINGTRAIN("train", JOB, "--dry-run", "--set", "train.lr=0.5",
                              "--set=train.lr=0.25", "--backend=reference");
    assert_code(&p, 0);
    cJSON *spec_json = cJSON_Parse(p.out);
    ck_assert_double_eq(json_number(cJSON_GetObjectItem(spec_json, "train"), "lr"), 0.25);
    ck_assert_str_eq(json_string(cJSON_GetObjectItem(spec_json, "backend"), "name"), "reference");
}
END_TEST

START_TEST(wrong_words)
{
    process p = RUN_RINGTRAIN("tarin", JOB);
    assert_code(&p, 2);
    ck_assert_ptr_nonnull(strstr(p.err, "tarin"));
    p = run_command((launch){0}, (const char *const[]){RINGTRAIN, NULL});
    assert_code(&p, 2);
    p = RUN_RINGTRAIN("train", JOB, "--fast");
    ASSERT_ERROR(&p, 2, "--fast");
    p = RUN_RINGTRAIN("train", JOB, "--set");
    ASSERT_ERROR(&p, 2, "--set");
    p = RUN_RINGTRAIN("train", JOB, "--dry-run=yes");
    ASSERT_ERROR(&p, 2, "--dry-run");
    p = RUN_RINGTRAIN("train");
    ASSERT_ERROR(&p, 2, "SPEC.json");
    p = RUN_RINGTRAIN("train", in_folder("none.json"));
    ASSERT_ERROR(&p, 2, "none.json");
    p = RUN_RINGTRAIN("eval", in_folder("none"));
    ASSERT_ERROR(&p, 2, "none");
    p = RUN_RINGTRAIN("metrics", folder);
    ASSERT_ERROR(&p, 2, folder);
    p = RUN_RINGTRAIN("bench", JOB, "--steps", "0");
    ASSERT_ERROR(&p, 2, "--steps");
    p = RUN_RINGTRAIN("bench", JOB, "--steps", "many");
    ASSERT_ERROR(&p, 2, "many");
    ck_assert(!exists(in_folder("run")));
}
END_TEST

START_TEST(help)
{
    static const char *const commands[] = {"train", "eval", "info", "bench", "metrics", "compare"};
    process all = RUN_RINGTRAIN("--help");
    assert_code(&all, 0);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        process p = RUN_RINGTRAIN(commands[i], "--help");
        assert_code(&p, 0);
        ck_assert_ptr_nonnull(strstr(p.out, commands[i]));
        ck_assert_ptr_nonnull(strstr(p.out, "--set"));
        ck_assert_str_eq(p.err, "");
        ck_assert_ptr_nonnull(strstr(all.out, commands[i]));
    }
    process fields = RUN_RINGTRAIN("train", "--fields");
    assert_code(&fields, 0);
    ck_assert_ptr_nonnull(strstr(fields.out, "train.lr"));
    process schema = RUN_RINGTRAIN("train", "--schema");
    assert_code(&schema, 0);
    ck_assert_ptr_nonnull(cJSON_Parse(schema.out));
}
END_TEST

/* An evaluation finds what the run recorded, wherever run and data lie by now. */
static void assert_eval(const process *p, const cJSON *figures, int images)
{
    assert_code(p, 0);
    cJSON *found = cJSON_Parse(p->out);
    ck_assert_msg(found != NULL, "not JSON: %s", p->out);
    ck_assert_double_eq(json_number(found, "top1"), json_number(figures, "top1"));
    if (cJSON_GetObjectItem(figures, "loss")) {
        double loss = json_number(figures, "loss"); /* cJSON prints 15 digits */
        ck_assert_double_eq_tol(json_number(found, "loss"), loss, 1e-14 * loss);
        ck_assert_double_eq(json_number(found, "top5"), json_number(figures, "top5"));
    }
    ck_assert_int_eq((int)json_number(found, "images"), images);
    cJSON_Delete(found);
}

START_TEST(eval_finds_what_was_recorded)
{
    process p = RUN_RINGTRAIN("train", JOB, "--set", "train.train_eval=true");
    assert_code(&p, 0);
    const char *run = in_folder("elsewhere/deep");
    mkdir(in_folder("elsewhere"), 0777);
    ck_assert_int_eq(rename(in_folder("run"), run), 0);
    cJSON *result = read_attempt(run, 1, "result.json");
    const cJSON *final = cJSON_GetObjectItem(result, "final");
    const cJSON *best = cJSON_GetObjectItem(result, "best");
    p = RUN_RINGTRAIN("eval", run, "--json");
    assert_eval(&p, best, 24);
    p = RUN_RINGTRAIN("eval", text("%s/best.safetensors", run), "--json");
    assert_eval(&p, best, 24);
    p = RUN_RINGTRAIN("eval", text("%s/last.safetensors", run), "--json");
    assert_eval(&p, final, 24);
    records r = merged_records(run);
    const cJSON *on_train = cJSON_GetArrayItem(r.all, r.count - 1);
    ck_assert_str_eq(json_string(on_train, "split"), "train");
    p = RUN_RINGTRAIN("eval", text("%s/last.safetensors", run), "--split", "train", "--json");
    assert_eval(&p, on_train, 64);
    p = RUN_RINGTRAIN("eval", run);
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "top-1"));
    p = RUN_RINGTRAIN("eval", run, "--split", "test");
    ASSERT_ERROR(&p, 2, "test", "validation");
}
END_TEST

/* CIFAR-10 files of random pixels, `images` in each. */
static void write_cifar(const char *path, int images)
{
    size_t length = (size_t)images * 3073;
    unsigned char *bytes = malloc(length);
    uint32_t state = 7;
    ck_assert_ptr_nonnull(bytes);
    for (int file = 1; file <= 6; file++) {
        for (size_t i = 0; i < length; i++) {
            state = state * 1664525u + 1013904223u;
            bytes[i] = (unsigned char)(i % 3073 == 0 ? (state >> 24) % 10 : state >> 24);
        }
        write_file(file < 6 ? text("%s/data_batch_%d.bin", path, file)
                            : text("%s/test_batch.bin", path),
                   bytes, length);
    }
    free(bytes);
}

START_TEST(eval_with_moved_data)
{
    write_cifar(in_folder("here"), 50);
    process p = RUN_RINGTRAIN("train", JOB, "--set", "data.kind=cifar10", "--set",
                              text("data.path=%s/here", folder), "--set", "data.subset=64", "--set",
                              "data.eval_subset=40", "--set", "model.classes=10", "--set",
                              "data.size=32", "--set", "train.epochs=1");
    assert_code(&p, 0);
    cJSON *result = read_attempt(in_folder("run"), 1, "result.json");
    const cJSON *final = cJSON_GetObjectItem(result, "final");
    /* a checkpoint holds no paths: its run's job.json does */
    const char *checkpoint =
        text("%s/attempt-1/%s", in_folder("run"), json_string(result, "checkpoint"));
    const char *inside[] = {in_folder("run"), in_folder("run/last.safetensors"), checkpoint};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        p = RUN_RINGTRAIN("eval", inside[i], "--json");
        assert_eval(&p, final, 40);
    }
    p = RUN_RINGTRAIN("eval", checkpoint, "--split", "train");
    assert_code(&p, 0);
    size_t length = 0;
    char *bytes = read_file(checkpoint, &length);
    write_file(in_folder("alone/last.safetensors"), bytes, length);
    p = RUN_RINGTRAIN("eval", in_folder("alone"));
    ASSERT_ERROR(&p, 2, "data.path");
    ck_assert_int_eq(rename(in_folder("here"), in_folder("there")), 0);
    p = RUN_RINGTRAIN("eval", in_folder("run"), "--set", text("data.path=%s/there", folder),
                      "--json");
    assert_eval(&p, final, 40);
    p = RUN_RINGTRAIN("eval", in_folder("run"));
    ASSERT_ERROR(&p, 2, "/here");
    write_text(in_folder("run/job.json"), "{\"data\": {");
    p = RUN_RINGTRAIN("eval", in_folder("run"));
    ASSERT_ERROR(&p, 2, "run/job.json");
    p = RUN_RINGTRAIN("eval", in_folder("run"), "--set", text("data.path=%s/there", folder),
                      "--json");
    assert_eval(&p, final, 40);
    ck_assert_int_eq(unlink(in_folder("run/job.json")), 0);
    /* the same command goes on where the data lie now */
    p = RUN_RINGTRAIN("train", JOB, "--set", "data.kind=cifar10", "--set",
                      text("data.path=%s/there", folder), "--set", "data.subset=64", "--set",
                      "data.eval_subset=40", "--set", "model.classes=10", "--set", "data.size=32",
                      "--set", "train.epochs=1");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "done already"));
}
END_TEST

START_TEST(bench_measures)
{
    process p = RUN_RINGTRAIN("bench", JOB, "--steps", "6", "--warmup", "1", "--json");
    assert_code(&p, 0);
    cJSON *found = cJSON_Parse(p.out);
    ck_assert_ptr_nonnull(found);
    ck_assert_double_gt(json_number(found, "images_per_second"), 0);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(found, "steps_ms")), 6);
    ck_assert_int_eq((int)json_number(found, "ranks"), 1);
    ck_assert_ptr_nonnull(cJSON_GetObjectItem(found, "plan"));
    p = RUN_RINGTRAIN("bench", JOB, "--steps", "1");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "images/s"));
    ck_assert(!exists(in_folder("run")));
}
END_TEST

START_TEST(info_counts)
{
    process p = RUN_RINGTRAIN("info", JOB, "--json");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(cJSON_Parse(p.out));
    p = RUN_RINGTRAIN("info", JOB);
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.out, "layer1.0.conv1"));
}
END_TEST

/* A terminal's bar never goes to a file; results go to stdout alone. */
START_TEST(streams)
{
    process p = RUN_RINGTRAIN("train", JOB, "--json");
    assert_code(&p, 0);
    cJSON *said = cJSON_Parse(p.out), *kept = read_attempt(in_folder("run"), 1, "result.json");
    ck_assert_msg(said != NULL, "not JSON: %s", p.out);
    ck_assert_msg(cJSON_Compare(said, kept, true), "stdout: %s", p.out);
    ck_assert_ptr_null(strchr(p.err, '\r'));
    ck_assert_int_eq(count_lines(p.err), 6); /* what is trained, and five epochs */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cli");
    TCase *tcase = process_case("commands", setup_job);
    tcase_add_test(tcase, dry_run_is_a_fixed_point);
    tcase_add_test(tcase, stdin_is_refused);
    tcase_add_test(tcase, later_sets_win);
    tcase_add_test(tcase, wrong_words);
    tcase_add_test(tcase, help);
    tcase_add_test(tcase, eval_finds_what_was_recorded);
    tcase_add_test(tcase, eval_with_moved_data);
    tcase_add_test(tcase, bench_measures);
    tcase_add_test(tcase, info_counts);
    tcase_add_test(tcase, streams);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
