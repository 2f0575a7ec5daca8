/* Error lines: the first failure wins, context goes in front, nothing overflows. */
#include "suite.h"

START_TEST(first_failure_wins)
{
    errbuf err = {0};
    ck_assert_int_eq(errbuf_set(&err, STATUS_DATA, "file %d", 3), STATUS_DATA);
    ck_assert_int_eq(errbuf_set(&err, STATUS_ENVIRONMENT, "second"), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text, "file 3");
    ck_assert_int_eq(err.code, STATUS_DATA);
    errbuf_clear(&err);
    ck_assert_str_eq(err.text, "");
    ck_assert_int_eq(err.code, STATUS_OK);
    ck_assert_int_eq(errbuf_set(NULL, STATUS_NUMERICAL, "nobody listens"), STATUS_NUMERICAL);
    errbuf_clear(NULL);
}
END_TEST

START_TEST(prefix_goes_in_front)
{
    errbuf err = {0};
    errbuf_prefix(&err, "nothing is set");
    ck_assert_str_eq(err.text, "");
    (void)errbuf_set(&err, STATUS_DATA, "cut short");
    errbuf_prefix(&err, "%s", "a.png");
    errbuf_prefix(&err, "class %d", 7);
    ck_assert_str_eq(err.text, "class 7: a.png: cut short");
    ck_assert_int_eq(err.code, STATUS_DATA);
    errbuf_prefix(NULL, "nobody listens");
}
END_TEST

START_TEST(long_lines_are_cut)
{
    errbuf err = {0};
    char words[3000];
    memset(words, 'x', sizeof words - 1);
    words[sizeof words - 1] = '\0';
    (void)errbuf_set(&err, STATUS_DATA, "%s", words);
    ck_assert_uint_eq(strlen(err.text), sizeof err.text - 1);
    errbuf_prefix(&err, "context");
    ck_assert_uint_eq(strlen(err.text), sizeof err.text - 1);
    ck_assert_int_eq(strncmp(err.text, "context: xxx", 12), 0);
    errbuf_prefix(&err, "%s", words);
    ck_assert_uint_lt(strlen(err.text), sizeof err.text);
}
END_TEST

START_TEST(names)
{
    ck_assert_str_eq(status_name(STATUS_OK), "done");
    ck_assert_str_eq(status_name(STATUS_OUT_OF_MEMORY), "out of memory");
    ck_assert_str_eq(status_name((status)77), "unknown status");
    /* Exit codes are a contract with schedulers (FORMATS 5). */
    ck_assert_int_eq(STATUS_BAD_INPUT, 2);
    ck_assert_int_eq(STATUS_TERMINATED, 143);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("status");
    TCase *tc = tcase_create("errbuf");
    tcase_add_test(tc, first_failure_wins);
    tcase_add_test(tc, prefix_goes_in_front);
    tcase_add_test(tc, long_lines_are_cut);
    tcase_add_test(tc, names);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
