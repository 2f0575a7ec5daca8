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
    tcase_add_test(tcase, alone);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
