/* Threads and cores of a rank, with the other ranks of the host played by the test. */
#include <check.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/placement.h"

/* A world of `size` on this host, in which every rank has this process's mask. */
typedef struct world {
    comm base;
    int fewest; /* threads of the poorest rank; 0 = as this one */
} world;

static status same_for_all(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    (void)err;
    for (int r = 0; r < c->size; r++)
        memcpy((char *)all + r * bytes, mine, (size_t)bytes);
    if (bytes == sizeof(int) && ((world *)c)->fewest > 0)
        memcpy((char *)all + (c->size - 1) * bytes, &((world *)c)->fewest, sizeof(int));
    return STATUS_OK;
}

static const comm_ops ops = {.all_gather = same_for_all};

static int settle(int rank, int size, int64_t asked, int fewest)
{
    world w = {.base = {.ops = &ops, .rank = rank, .size = size}, .fewest = fewest};
    int threads = 0;
    errbuf err = {0};
    ck_assert_int_eq(placement_settle(&w.base, asked, &threads, &err), STATUS_OK);
    return threads;
}

static cpu_set_t mask_now(void)
{
    cpu_set_t mask;
    ck_assert_int_eq(sched_getaffinity(0, sizeof mask, &mask), 0);
    return mask;
}

START_TEST(alone_takes_all)
{
    cpu_set_t before = mask_now();
    ck_assert_int_eq(settle(0, 1, 0, 0), CPU_COUNT(&before));
    ck_assert_int_eq(settle(0, 1, 3, 0), 3);
    cpu_set_t after = mask_now();
    ck_assert(CPU_EQUAL(&before, &after));
}
END_TEST

/* Ranks with one mask cut it into equal stretches that do not meet. */
START_TEST(ranks_share_the_mask)
{
    cpu_set_t whole = mask_now(), taken;
    int cores = CPU_COUNT(&whole);
    CPU_ZERO(&taken);
    if (cores < 2)
        return;
    for (int rank = 0; rank < 2; rank++) {
        ck_assert_int_eq(sched_setaffinity(0, sizeof whole, &whole), 0);
        ck_assert_int_eq(settle(rank, 2, 0, 0), cores / 2);
        cpu_set_t mine = mask_now(), both;
        ck_assert_int_eq(CPU_COUNT(&mine), cores / 2);
        CPU_AND(&both, &mine, &taken);
        ck_assert_int_eq(CPU_COUNT(&both), 0);
        CPU_OR(&taken, &mine, &taken);
        CPU_AND(&both, &mine, &whole);
        ck_assert(CPU_EQUAL(&both, &mine));
    }
}
END_TEST

/* More ranks or threads than cores: one thread each, and the system places them. */
START_TEST(too_few_cores)
{
    cpu_set_t before = mask_now();
    int cores = CPU_COUNT(&before);
    ck_assert_int_eq(settle(1, cores + 1, 0, 0), 1);
    ck_assert_int_eq(settle(0, 2, cores + 1, 0), cores + 1);
    cpu_set_t after = mask_now();
    ck_assert(CPU_EQUAL(&before, &after));
}
END_TEST

/* The threads are part of the plan: all ranks take what the poorest has. */
START_TEST(all_take_the_fewest)
{
    ck_assert_int_eq(settle(0, 2, 4, 3), 3);
}
END_TEST

START_TEST(pinning)
{
    cpu_set_t whole = mask_now();
    int core = 0;
    errbuf err = {0};
    while (!CPU_ISSET(core, &whole))
        core++;
    ck_assert_int_eq(placement_pin(&core, 1, &err), STATUS_OK);
    cpu_set_t mine = mask_now();
    ck_assert_int_eq(CPU_COUNT(&mine), 1);
    ck_assert(CPU_ISSET(core, &mine));
    const int nowhere = CPU_SETSIZE - 1;
    if (!CPU_ISSET(nowhere, &whole)) {
        ck_assert_int_eq(placement_pin(&nowhere, 1, &err), STATUS_ENVIRONMENT);
        ck_assert_ptr_nonnull(strstr(err.text, "cores"));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("placement");
    TCase *tcase = tcase_create("placement");
    tcase_add_test(tcase, alone_takes_all);
    tcase_add_test(tcase, ranks_share_the_mask);
    tcase_add_test(tcase, too_few_cores);
    tcase_add_test(tcase, all_take_the_fewest);
    tcase_add_test(tcase, pinning);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
