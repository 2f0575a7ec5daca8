/* ringtrain info as a program's caller sees it: --json, --stdin, --signature, refusals. */
#include <check.h>
#include <cjson/cJSON.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/command.h"

static char folder[256];
static errbuf err;

static void make_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/info-XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    memset(&err, 0, sizeof err);
}

static void remove_folder(void)
{
    char line[300];
    snprintf(line, sizeof line, "rm -r '%s'", folder);
    ck_assert_int_eq(system(line), 0);
}

static void put(const char *name, const char *text, char ret_path[300])
{
    char *path = ret_path;
    snprintf(path, 300, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

/* Runs the command with `input` as its stdin (NULL: none); its stdout, which the caller frees. */
static char *run(const command_options *o, const char *input, status expected)
{
    char in_path[300], out_path[300];
    put("stdin", input ? input : "", in_path);
    put("stdout", "", out_path);
    int saved_in = dup(0), saved_out = dup(1);
    int in = open(in_path, O_RDONLY), out = open(out_path, O_RDWR | O_TRUNC);
    ck_assert(saved_in >= 0 && saved_out >= 0 && in >= 0 && out >= 0);
    fflush(stdout);
    clearerr(stdin);
    dup2(in, 0);
    dup2(out, 1);
    status st = command_info.run(o, &err);
    fflush(stdout);
    dup2(saved_in, 0);
    dup2(saved_out, 1);
    off_t length = lseek(out, 0, SEEK_END);
    char *text = calloc((size_t)length + 1, 1);
    ck_assert_ptr_nonnull(text);
    ck_assert_int_eq(pread(out, text, (size_t)length, 0), length);
    close(in);
    close(out);
    close(saved_in);
    close(saved_out);
    ck_assert_msg(st == expected, "status %d: %s", st, err.text);
    return text;
}

static cJSON *run_json(const command_options *o, const char *input)
{
    char *text = run(o, input, STATUS_OK);
    cJSON *json = cJSON_Parse(text);
    ck_assert_msg(json != NULL, "%s", text);
    free(text);
    return json;
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    ck_assert_msg(cJSON_IsNumber(item), "%s", name);
    return item->valuedouble;
}

static const char job[] = "{\"name\": \"one\", \"data\": {\"kind\": \"synthetic\"},"
                          " \"model\": {\"width\": 8},"
                          " \"train\": {\"batch\": 64, \"shard\": 32},"
                          " \"rpg\": {\"scope\": \"global\", \"share\": 0.5}}";

START_TEST(a_job_is_reported)
{
    char path[300];
    put("job.json", job, path);
    command_options o = {.json = true, .args = 1, .arg = {path}};
    cJSON *json = run_json(&o, NULL);
    ck_assert(number(json, "generated") == 174336);
    ck_assert(number(json, "ring") == 87168);
    ck_assert(number(json, "shard") == 32);
    const cJSON *memory = cJSON_GetObjectItem(json, "memory");
    ck_assert(number(memory, "total") > number(memory, "activations"));
    cJSON_Delete(json);

    o.json = false;
    char *text = run(&o, NULL, STATUS_OK);
    ck_assert_ptr_nonnull(strstr(text, "174,336"));
    ck_assert_ptr_nonnull(strstr(text, "layer4.1.conv2.weight"));
    free(text);
}
END_TEST

START_TEST(settings_apply)
{
    char path[300];
    put("job.json", job, path);
    command_options o = {.json = true, .args = 1, .arg = {path}};
    o.set[o.sets++] = "rpg.share=0";
    o.set[o.sets++] = "rpg.size=1000";
    o.set[o.sets++] = "model.arch=resnet34";
    cJSON *json = run_json(&o, NULL);
    ck_assert_str_eq(cJSON_GetObjectItem(json, "net")->valuestring, "resnet34");
    ck_assert(number(json, "ring") == 1000);
    cJSON_Delete(json);
}
END_TEST

/* A ring of 8 GB counts, whatever this machine has. */
START_TEST(cells_are_answered_in_order)
{
    command_options o = {.extra = {{"stdin", NULL}}, .extras = 1};
    cJSON *json = run_json(
        &o, "[{\"rpg\": {\"scope\": \"global\", \"size\": 10}, \"model\": {\"width\": 8}},\n"
            " {\"rpg\": {\"scope\": \"none\"}, \"model\": {\"width\": 8}},\n"
            " {\"rpg\": {\"scope\": \"global\", \"size\": 2147483647}}]");
    ck_assert_int_eq(cJSON_GetArraySize(json), 3);
    ck_assert(number(cJSON_GetArrayItem(json, 0), "ring") == 10);
    ck_assert(number(cJSON_GetArrayItem(json, 1), "generated") == 0);
    ck_assert(number(cJSON_GetArrayItem(json, 2), "ring") == 2147483647);
    ck_assert(number(cJSON_GetArrayItem(json, 2), "ring_used") == 11157504);
    ck_assert_ptr_null(cJSON_GetObjectItem(cJSON_GetArrayItem(json, 0), "kernels"));
    cJSON_Delete(json);
    json = run_json(&o, job); /* one object: an array of one */
    ck_assert_int_eq(cJSON_GetArraySize(json), 1);
    cJSON_Delete(json);
    json = run_json(&o, "[]");
    ck_assert_int_eq(cJSON_GetArraySize(json), 0);
    cJSON_Delete(json);
}
END_TEST

/* One bad cell: its number, and nothing on stdout. */
START_TEST(a_bad_cell_is_named)
{
    command_options o = {.extra = {{"stdin", NULL}}, .extras = 1};
    static const struct {
        const char *input, *text;
    } cases[] = {
        {"[{\"rpg\": {\"scope\": \"none\"}}, {\"rgp\": {}}]", "stdin[1]"},
        {"[{\"rpg\": {\"scope\": \"none\"}}, {\"rgp\": {}}]", "rpg"},
        {"[{\"rpg\": {\"scope\": \"none\"}}, 7]", "stdin[1]"},
        {"7", "a spec or an array"},
        {"[{\"rpg\": ", "stdin:1"},
        {"", "stdin"},
    };
    char *text = run(&o, cases[_i].input, STATUS_BAD_INPUT);
    ck_assert_str_eq(text, "");
    ck_assert_msg(strstr(err.text, cases[_i].text) != NULL, "%s", err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
    free(text);
}
END_TEST

START_TEST(the_signature_depends_on_backend_and_threads)
{
    command_options o = {.json = true, .extra = {{"signature", NULL}}, .extras = 1};
    char first[65], other[65];
    o.set[o.sets++] = "backend.name=reference";
    cJSON *json = run_json(&o, NULL);
    ck_assert_str_eq(cJSON_GetObjectItem(json, "backend")->valuestring, "reference");
    ck_assert(number(json, "threads") == 1);
    ck_assert_ptr_null(cJSON_GetObjectItem(json, "lanes"));
    snprintf(first, sizeof first, "%s", cJSON_GetObjectItem(json, "signature")->valuestring);
    ck_assert_uint_eq(strlen(first), 64);
    cJSON_Delete(json);
    json = run_json(&o, NULL);
    ck_assert_str_eq(cJSON_GetObjectItem(json, "signature")->valuestring, first);
    cJSON_Delete(json);
    o.set[o.sets++] = "resources.threads=2";
    json = run_json(&o, NULL);
    snprintf(other, sizeof other, "%s", cJSON_GetObjectItem(json, "signature")->valuestring);
    ck_assert_str_ne(first, other);
    cJSON_Delete(json);
}
END_TEST

START_TEST(wrong_use_is_refused)
{
    command_options none = {0};
    command_options both = {.extra = {{"stdin", NULL}, {"signature", NULL}}, .extras = 2};
    command_options file = {.extra = {{"stdin", NULL}}, .extras = 1, .args = 1, .arg = {"x"}};
    const command_options *cases[] = {&none, &both, &file};
    static const char *const texts[] = {"one SPEC.json", "exclude each other", "takes no file"};
    free(run(cases[_i], NULL, STATUS_BAD_INPUT));
    ck_assert_ptr_nonnull(strstr(err.text, texts[_i]));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("command_info");
    TCase *tc = tcase_create("info");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, a_job_is_reported);
    tcase_add_test(tc, settings_apply);
    tcase_add_test(tc, cells_are_answered_in_order);
    tcase_add_loop_test(tc, a_bad_cell_is_named, 0, 6);
    tcase_add_test(tc, the_signature_depends_on_backend_and_threads);
    tcase_add_loop_test(tc, wrong_use_is_refused, 0, 3);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
