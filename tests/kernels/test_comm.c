/* comm: a world of one, the choice of the comm, and agreement among ranks (with ranks played by the
 * test; real ones: tests/dist/test_collectives.c). */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm.h"

static comm *open_alone(void)
{
    comm *c = NULL;
    errbuf err = {0};
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("PMIX_RANK");
    ck_assert_int_eq(comm_open(&c, &err), STATUS_OK);
    return c;
}

START_TEST(alone)
{
    comm *c = open_alone();
    errbuf err = {0};
    ck_assert_str_eq(c->ops->name, "self");
    ck_assert_int_eq(c->rank, 0);
    ck_assert_int_eq(c->size, 1);
    ck_assert_int_eq(c->local_rank, 0);
    ck_assert_int_eq(c->local_size, 1);
    float floats[3] = {1.5f, -0.0f, 3};
    int64_t whole[2] = {INT64_MIN, 7};
    ck_assert_int_eq(c->ops->all_reduce_float(c, floats, 3, &err), STATUS_OK);
    ck_assert_int_eq(c->ops->all_reduce_int64(c, whole, 2, &err), STATUS_OK);
    ck_assert(floats[0] == 1.5f && floats[1] == 0 && floats[2] == 3);
    ck_assert(whole[0] == INT64_MIN && whole[1] == 7);
    char mine[4] = "abc", all[4] = "";
    ck_assert_int_eq(c->ops->all_gather(c, mine, 4, all, &err), STATUS_OK);
    ck_assert_str_eq(all, "abc");
    ck_assert_int_eq(c->ops->all_gather(c, all, 4, all, &err), STATUS_OK); /* in place */
    ck_assert_int_eq(c->ops->broadcast(c, mine, 4, 0, &err), STATUS_OK);
    ck_assert_str_eq(mine, "abc");
    ck_assert_int_eq(c->ops->barrier(c, &err), STATUS_OK);
    comm_peer peer = {0};
    c->ops->publish(c, 7);
    c->ops->give_up(c, &err);
    c->ops->silent(c, 0, &peer);
    ck_assert_int_eq(peer.rank, -1);
    ck_assert(!peer.farewell && !c->lost);
    comm_close(&c);
    ck_assert_ptr_null(c);
    comm_close(&c);
    comm_close(NULL);
}
END_TEST

/* mpirun -np 1 starts no MPI either. */
START_TEST(launched_as_one)
{
    comm *c = NULL;
    errbuf err = {0};
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    ck_assert_int_eq(comm_open(&c, &err), STATUS_OK);
    ck_assert_str_eq(c->ops->name, "self");
    comm_close(&c);
}
END_TEST

START_TEST(abort_ends_with_the_code)
{
    comm *c = open_alone();
    c->ops->abort(c, 5);
}
END_TEST

START_TEST(alone_agrees_with_itself)
{
    comm *c = open_alone();
    errbuf err = {0};
    ck_assert_int_eq(comm_agree(c, STATUS_OK, &err), STATUS_OK);
    status st = comm_agree(c, errbuf_set(&err, STATUS_DATA, "no image"), &err);
    ck_assert_int_eq(st, STATUS_DATA);
    ck_assert_str_eq(err.text, "no image");
    comm_close(&c);
}
END_TEST

/* ---- a world of three, of which the test plays the others ---- */

typedef struct played {
    comm base;
    errbuf others[3]; /* what each rank brings; that of base.rank is replaced */
    status fails;     /* what all_gather returns */
} played;

static status played_gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    played *p = (played *)c;
    if (p->fails != STATUS_OK)
        return errbuf_set(err, p->fails, "peer lost");
    ck_assert_int_eq(bytes, (int64_t)sizeof(errbuf));
    memcpy(&p->others[c->rank], mine, sizeof(errbuf));
    memcpy(all, p->others, sizeof p->others);
    return STATUS_OK;
}

static const comm_ops played_ops = {.name = "played", .all_gather = played_gather};

static status agree(played *p, int rank, status mine, errbuf *err)
{
    p->base = (comm){.ops = &played_ops, .rank = rank, .size = 3};
    return comm_agree(&p->base, mine, err);
}

START_TEST(lowest_rank_is_heard)
{
    played p = {0};
    errbuf err = {0};
    errbuf_set(&p.others[1], STATUS_DATA, "damaged");
    errbuf_set(&p.others[2], STATUS_OUT_OF_MEMORY, "full");
    ck_assert_int_eq(agree(&p, 0, STATUS_OK, &err), STATUS_DATA);
    ck_assert_str_eq(err.text, "rank 1: damaged");
    ck_assert_int_eq(err.code, STATUS_DATA);
    /* a rank with an error of its own hears the lower rank's too */
    errbuf own = {0};
    errbuf_clear(&p.others[2]);
    ck_assert_int_eq(agree(&p, 2, errbuf_set(&own, STATUS_NUMERICAL, "mine"), &own), STATUS_DATA);
    ck_assert_str_eq(own.text, "rank 1: damaged");
}
END_TEST

START_TEST(common_error_names_no_rank)
{
    played p = {0};
    errbuf err = {0};
    errbuf_set(&p.others[1], STATUS_BAD_INPUT, "same");
    errbuf_set(&p.others[2], STATUS_BAD_INPUT, "same");
    ck_assert_int_eq(agree(&p, 0, errbuf_set(&err, STATUS_BAD_INPUT, "same"), &err),
                     STATUS_BAD_INPUT);
    ck_assert_str_eq(err.text, "same");
}
END_TEST

START_TEST(all_well)
{
    played p = {0};
    errbuf err = {0};
    ck_assert_int_eq(agree(&p, 1, STATUS_OK, &err), STATUS_OK);
    ck_assert_str_eq(err.text, "");
    ck_assert_int_eq(agree(&p, 1, STATUS_OK, NULL), STATUS_OK);
}
END_TEST

/* A status without a line still says something. */
START_TEST(error_without_a_line)
{
    played p = {0};
    errbuf err = {0};
    ck_assert_int_eq(agree(&p, 1, STATUS_ENVIRONMENT, &err), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text, "rank 1: environment error");
}
END_TEST

START_TEST(comm_breaks)
{
    played p = {.fails = STATUS_ENVIRONMENT};
    errbuf err = {0}, own = {0};
    ck_assert_int_eq(agree(&p, 0, STATUS_OK, &err), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text, "peer lost");
    ck_assert_int_eq(agree(&p, 0, errbuf_set(&own, STATUS_DATA, "mine"), &own), STATUS_DATA);
    ck_assert_str_eq(own.text, "mine");
}
END_TEST

/* Where a rank is lost nobody waits for it. */
START_TEST(lost_rank)
{
    comm c = {.ops = &(const comm_ops){.name = "none"}, .size = 3, .lost = true};
    errbuf err = {0}, own = {0};
    ck_assert_int_eq(comm_agree(&c, STATUS_OK, &err), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text, "a rank of this world is lost");
    status st = errbuf_set(&own, STATUS_DATA, "mine");
    ck_assert_int_eq(comm_agree(&c, st, &own), STATUS_DATA);
    ck_assert_str_eq(own.text, "mine");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("comm");
    TCase *tcase = tcase_create("comm");
    tcase_add_test(tcase, alone);
    tcase_add_test(tcase, launched_as_one);
    tcase_add_exit_test(tcase, abort_ends_with_the_code, 5);
    tcase_add_test(tcase, alone_agrees_with_itself);
    tcase_add_test(tcase, lowest_rank_is_heard);
    tcase_add_test(tcase, common_error_names_no_rank);
    tcase_add_test(tcase, all_well);
    tcase_add_test(tcase, error_without_a_line);
    tcase_add_test(tcase, comm_breaks);
    tcase_add_test(tcase, lost_rank);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
