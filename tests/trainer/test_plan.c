/* Plans: what stands in them, reading and sharing them. */
#include <check.h>
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/plan.h"

static backend *open_reference(void)
{
    backend *be = NULL;
    errbuf err = {0};
    backend_options options = {.threads = 2, .lanes = 2};
    ck_assert_int_eq(backend_open("reference", &options, &be, &err), STATUS_OK);
    return be;
}

static cJSON *fake_plan(void)
{
    return cJSON_Parse(
        "{\"threads\":2,\"lanes\":2,\"backend\":\"fake\",\"conv\":{\"b\":1,\"a\":2}}");
}

static status fake_describe(backend *be, cJSON **ret_plan, errbuf *err)
{
    (void)be, (void)err;
    *ret_plan = fake_plan();
    return STATUS_OK;
}

static char *describe(int world, int local, bool exact)
{
    backend *be = open_reference();
    backend_ops ops = *be->ops;
    const backend_ops *real = be->ops;
    comm c = {.size = world, .local_size = local};
    errbuf err = {0};
    char *text = NULL;
    ops.describe = fake_describe;
    be->ops = &ops;
    ck_assert_int_eq(plan_describe(be, &c, NULL, exact, &text, &err), STATUS_OK);
    be->ops = real;
    be->ops->close(be);
    return text;
}

/* Canonical: sorted keys, no blanks. */
START_TEST(plan_of_a_world)
{
    char *text = describe(1, 1, false);
    ck_assert_str_eq(text,
                     "{\"all_reduce\":\"self\",\"backend\":\"fake\",\"conv\":{\"a\":2,\"b\":1},"
                     "\"lanes\":2,\"ranks_per_host\":1,\"threads\":2}");
    free(text);
    text = describe(4, 2, false);
    ck_assert_ptr_nonnull(strstr(text, "\"ranks_per_host\":2"));
    ck_assert_ptr_null(strstr(text, "\"all_reduce\":\"self\""));
    free(text);
}
END_TEST

/* What exact bits do not depend on is left out: any world has the same plan. */
START_TEST(plan_of_exact_mode)
{
    char *one = describe(1, 1, true), *four = describe(4, 2, true);
    ck_assert_str_eq(one, four);
    ck_assert_str_eq(one, "{\"backend\":\"fake\",\"conv\":{\"a\":2,\"b\":1},\"threads\":1}");
    free(one);
    free(four);
}
END_TEST

static const char *write_plan(const char *text)
{
    static char path[256];
    const char *root = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/plan-XXXXXX", root ? root : "/tmp");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    return path;
}

START_TEST(plan_files)
{
    static const char *const bad[] = {"", "[]", "3", "{\"threads\":", "{\"a\":1,\"a\":2}"};
    char *text = NULL;
    errbuf err = {0};
    const char *path = write_plan("{\"threads\": 1}\n");
    ck_assert_int_eq(plan_load(path, &text, &err), STATUS_OK);
    ck_assert_str_eq(text, "{\"threads\": 1}\n");
    free(text);
    text = NULL;
    unlink(path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        path = write_plan(bad[i]);
        errbuf why = {0};
        ck_assert_msg(plan_load(path, &text, &why) == STATUS_BAD_INPUT, "'%s'", bad[i]);
        ck_assert_msg(strstr(why.text, path), "%s", why.text);
        ck_assert_ptr_null(text);
        unlink(path);
    }
    errbuf why = {0};
    ck_assert_int_ne(plan_load("/no/such/plan", &text, &why), STATUS_OK);
    ck_assert_ptr_nonnull(strstr(why.text, "/no/such/plan"));
}
END_TEST

/* ---- sharing: rank 1 of two, rank 0 played by the test ---- */

static const char *sent; /* rank 0's text, NULL = none */
static int broadcasts;

static status played_broadcast(comm *c, void *data, int64_t bytes, int root, errbuf *err)
{
    (void)c, (void)err;
    ck_assert_int_eq(root, 0);
    if (broadcasts++ == 0) {
        int64_t length = sent ? (int64_t)strlen(sent) : -1;
        memcpy(data, &length, sizeof length);
    } else {
        ck_assert_int_eq(bytes, (int64_t)strlen(sent));
        memcpy(data, sent, (size_t)bytes);
    }
    return STATUS_OK;
}

static status played_gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    (void)c, (void)err;
    memset(all, 0, 2 * (size_t)bytes);
    memcpy((char *)all + bytes, mine, (size_t)bytes);
    return STATUS_OK;
}

START_TEST(cache_folders)
{
    static const struct {
        const char *given, *xdg, *home, *expect;
    } rows[] = {
        {"/a/b", "/x", "/h", "/a/b"},
        {"", "/x", "/h", ""},
        {NULL, "/x", "/h", "/x/ringmaster/plans"},
        {NULL, "x", "/h", "/h/.cache/ringmaster/plans"},
        {NULL, NULL, "/h", "/h/.cache/ringmaster/plans"},
        {NULL, NULL, NULL, ""},
    };
    static const char *const names[] = {"RINGMASTER_CACHE", "XDG_CACHE_HOME", "HOME"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *values[] = {rows[i].given, rows[i].xdg, rows[i].home};
        char path[40];
        for (int k = 0; k < 3; k++)
            if (values[k])
                setenv(names[k], values[k], 1);
            else
                unsetenv(names[k]);
        plan_cache_folder(path, sizeof path);
        ck_assert_str_eq(path, rows[i].expect);
    }
    char small[8];
    setenv("RINGMASTER_CACHE", "/too/long", 1);
    plan_cache_folder(small, sizeof small);
    ck_assert_str_eq(small, "");
}
END_TEST

START_TEST(sharing)
{
    static const comm_ops ops = {.broadcast = played_broadcast, .all_gather = played_gather};
    comm c = {.ops = &ops, .rank = 1, .size = 2};
    char *text = strdup("mine");
    errbuf err = {0};
    sent = "{\"threads\":1}";
    ck_assert_int_eq(plan_share(&c, &text, &err), STATUS_OK);
    ck_assert_str_eq(text, sent);
    free(text);
    text = NULL;
    sent = NULL;
    broadcasts = 0;
    ck_assert_int_eq(plan_share(&c, &text, &err), STATUS_OK);
    ck_assert_ptr_null(text);
    c.size = 1; /* alone nothing is sent */
    broadcasts = 0;
    ck_assert_int_eq(plan_share(&c, &text, &err), STATUS_OK);
    ck_assert_int_eq(broadcasts, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tcase = tcase_create("plan");
    tcase_add_test(tcase, plan_of_a_world);
    tcase_add_test(tcase, plan_of_exact_mode);
    tcase_add_test(tcase, plan_files);
    tcase_add_test(tcase, sharing);
    tcase_add_test(tcase, cache_folders);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
