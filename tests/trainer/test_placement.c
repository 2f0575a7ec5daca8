/* Threads and cores of a rank, with the other ranks of the host played by the test. */
#include <check.h>
#include <sched.h>
#include <stdio.h>
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

/* A world of ranks by name of host and mask, "h:0-3 h:0-3 …": what each gets, as "0,1" and so on.
 */
static void assert_cores(const char *ranks, const char *const cores[])
{
    rank_place all[8];
    int size = 0, used = 0;
    memset(all, 0, sizeof all);
    for (int first, last;
         sscanf(ranks, " %63[^:]:%d-%d%n", all[size].host, &first, &last, &used) == 3;
         ranks += used, size++)
        for (int core = first; core <= last; core++)
            CPU_SET(core, &all[size].mask);
    for (int rank = 0; rank < size; rank++) {
        cpu_set_t mine;
        char text[256] = "";
        placement_choose(all, size, rank, &mine);
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (CPU_ISSET(core, &mine))
                snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d",
                         text[0] ? "," : "", core);
        ck_assert_msg(strcmp(text, cores[rank]) == 0, "rank %d has %s, not %s", rank, text,
                      cores[rank]);
    }
}
#define ASSERT_CORES(world, ...) assert_cores(world, (const char *const[]){__VA_ARGS__})

START_TEST(only_equal_masks_are_cut)
{
    ASSERT_CORES("h:0-3 h:0-3", "0,1", "2,3");
    ASSERT_CORES("h:0-1 h:2-3", "0,1", "2,3"); /* given out by the launcher */
    /* {A,A,B,B}, and one rank that stands apart does not keep the others from sharing */
    ASSERT_CORES("h:0-3 h:0-3 h:4-7 h:4-7", "0,1", "2,3", "4,5", "6,7");
    ASSERT_CORES("h:0-3 h:4-7 h:0-3 h:4-7", "0,1", "4,5", "2,3", "6,7");
    ASSERT_CORES("h:0-3 h:0-3 h:4-7", "0,1", "2,3", "4,5,6,7");
    /* masks that overlap in part are kept */
    ASSERT_CORES("h:0-3 h:2-5", "0,1,2,3", "2,3,4,5");
    ASSERT_CORES("h:0-3 h:0-3 h:0-7", "0,1", "2,3", "0,1,2,3,4,5,6,7");
    /* the same numbers on another host are other cores */
    ASSERT_CORES("h:0-1 h:0-1 g:0-1", "0", "1", "0,1");
    /* what cannot be divided is left over; more ranks than cores have none of their own */
    ASSERT_CORES("h:0-2 h:0-2", "0", "1");
    ASSERT_CORES("h:0-1 h:0-1 h:0-1 h:5-5", "", "", "", "5");
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
    tcase_add_test(tcase, only_equal_masks_are_cut);
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
