/* Stop requests: what is held, what is read, what ends the process. */
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "trainer/signals.h"

static signals open_signals(void)
{
    signals s = {.fd = -1};
    errbuf err = {0};
    ck_assert_int_eq(signals_open(&s, &err), STATUS_OK);
    return s;
}

START_TEST(each_is_read_once)
{
    static const int each[] = {SIGINT, SIGTERM, SIGUSR1};
    signals s = open_signals();
    ck_assert_int_eq(signals_poll(&s), 0);
    for (int i = 0; i < 3; i++) {
        kill(getpid(), each[i]);
        ck_assert_int_eq(signals_poll(&s), each[i]);
        ck_assert_int_eq(signals_poll(&s), 0);
    }
    signals_close(&s);
    signals_close(&s);
    signals_close(NULL);
}
END_TEST

/* A request for a checkpoint is no reason to let a later SIGTERM end the process. */
START_TEST(held_until_let_through)
{
    signals s = open_signals();
    kill(getpid(), SIGUSR1);
    ck_assert_int_eq(signals_poll(&s), SIGUSR1);
    kill(getpid(), SIGTERM);
    ck_assert_int_eq(signals_poll(&s), SIGTERM);
    signals_close(&s);
}
END_TEST

START_TEST(second_interrupt_ends)
{
    signal(SIGINT, SIG_DFL); /* Check has a handler */
    signals s = open_signals();
    kill(getpid(), SIGINT);
    ck_assert_int_eq(signals_poll(&s), SIGINT);
    signals_let_through(&s);
    kill(getpid(), SIGINT);
    pause();
}
END_TEST

/* mpirun may forward several: they never end the process. */
START_TEST(user_signals_never_end)
{
    signals s = open_signals();
    for (int i = 0; i < 3; i++) {
        kill(getpid(), SIGUSR1);
        ck_assert_int_eq(signals_poll(&s), SIGUSR1);
        signals_let_through(&s);
    }
    signals_close(&s);
    kill(getpid(), SIGUSR1); /* after the work is over */
}
END_TEST

START_TEST(late_ones_are_forgotten)
{
    signals s = open_signals();
    kill(getpid(), SIGTERM);
    signals_close(&s);
    s = open_signals();
    ck_assert_int_eq(signals_poll(&s), 0);
    signals_close(&s);
    ck_assert_int_eq(signals_poll(&s), 0);
}
END_TEST

START_TEST(codes)
{
    ck_assert_int_eq(signals_status(SIGINT), 130);
    ck_assert_int_eq(signals_status(SIGTERM), 143);
    ck_assert_int_eq(signals_status(SIGUSR1), 143);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("signals");
    TCase *tcase = tcase_create("signals");
    tcase_add_test(tcase, each_is_read_once);
    tcase_add_test(tcase, held_until_let_through);
    tcase_add_test_raise_signal(tcase, second_interrupt_ends, SIGINT);
    tcase_add_test(tcase, user_signals_never_end);
    tcase_add_test(tcase, late_ones_are_forgotten);
    tcase_add_test(tcase, codes);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
