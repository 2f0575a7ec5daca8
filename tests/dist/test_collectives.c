/* Collectives among real ranks: comm_probe.c under mpirun. */
#include "process_testing.h"

/* 1-5 ranks: powers of two and not, worlds that leave the last of a tree alone. */
START_TEST(collectives)
{
    process p = run_command((launch){.ranks = _i}, (const char *const[]){COMM_PROBE, NULL});
    assert_code(&p, 0);
    ck_assert_str_eq(p.out, text("ok %s %d\n", _i == 1 ? "self" : "mpi", _i));
}
END_TEST

/* Ranks that wait know who is missing, who is behind and who gave up. */
START_TEST(words_of_waiting_ranks)
{
    process p =
        run_command((launch){.ranks = _i}, (const char *const[]){COMM_PROBE, "words", NULL});
    assert_code(&p, 0);
    ck_assert_str_eq(p.out, text("ok mpi %d\n", _i));
}
END_TEST

/* A rank that has stopped for ever holds nobody up. */
START_TEST(lost_rank)
{
    process p = run_command((launch){.ranks = 3}, (const char *const[]){COMM_PROBE, "stops", NULL});
    assert_code(&p, STATUS_ENVIRONMENT);
    ck_assert_msg(strstr(p.out, "rank 2 is lost: not heard of while this rank waited for 2 s"),
                  "%s", p.out);
}
END_TEST

/* The others have the line of a rank that leaves. */
START_TEST(rank_that_leaves)
{
    process p =
        run_command((launch){.ranks = 3}, (const char *const[]){COMM_PROBE, "leaves", NULL});
    assert_code(&p, STATUS_DATA);
    ck_assert_str_eq(p.out, "rank 2: a bad image\n");
}
END_TEST

/* On the memory of each backend that is at hand, by 1, 2 and 3 ranks. */
START_TEST(on_a_backend)
{
    const char *backend_name = test_backend(_i / 3);
    const int ranks = _i % 3 + 1;
    process p = run_command((launch){.ranks = ranks},
                            (const char *const[]){DEVICE_PROBE, backend_name, "0", NULL});
    assert_code(&p, 0);
    ck_assert_str_eq(p.out, text("ok %s %d\n", ranks == 1 ? "self" : "host", ranks));
}
END_TEST

START_TEST(lost_rank_on_a_backend)
{
    const char *const environment[] = {"RINGMASTER_PEER_TIMEOUT=2", NULL};
    process p =
        run_command((launch){.ranks = 2, .environment = environment},
                    (const char *const[]){DEVICE_PROBE, test_backend(0), "0", "stops", NULL});
    assert_code(&p, STATUS_ENVIRONMENT);
    ck_assert_msg(strstr(p.out, "rank 1 is lost"), "%s", p.out);
}
END_TEST

/* Without a launcher nothing of MPI is started. */
START_TEST(alone)
{
    process p = run_command((launch){0}, (const char *const[]){COMM_PROBE, NULL});
    assert_code(&p, 0);
    ck_assert_str_eq(p.out, "ok self 1\n");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("collectives");
    TCase *tcase = process_case("mpi", make_folder);
    tcase_add_loop_test(tcase, collectives, 1, 6);
    tcase_add_loop_test(tcase, words_of_waiting_ranks, 2, 5);
    tcase_add_test(tcase, lost_rank);
    tcase_add_test(tcase, rank_that_leaves);
    tcase_add_loop_test(tcase, on_a_backend, 0, 3 * test_backend_count());
    tcase_add_test(tcase, lost_rank_on_a_backend);
    tcase_add_test(tcase, alone);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
