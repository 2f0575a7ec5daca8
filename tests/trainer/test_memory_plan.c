/* Packing by lifetime, against brute force and the lower bound. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/builders.h"
#include "trainer/net/exec_schedule.h"
#include "trainer/net/memory_plan.h"

#define MAX_ITEMS 400

/* No two items that live at one time share a byte; all lie aligned and within the arena. */
static void check_plan(const memory_item *items, int count, size_t total)
{
    for (int i = 0; i < count; i++) {
        const memory_item *a = &items[i];
        ck_assert_uint_eq(a->offset % MEMORY_ALIGNMENT, 0);
        ck_assert_uint_le(a->offset + a->bytes, total);
        for (int k = 0; k < i; k++) {
            const memory_item *b = &items[k];
            bool meet = a->first <= b->last && b->first <= a->last;
            bool overlap = a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
            ck_assert_msg(!(meet && overlap && a->bytes && b->bytes), "items %d and %d overlap", i,
                          k);
        }
    }
}

START_TEST(random_lists_never_overlap)
{
    memory_item items[MAX_ITEMS], again[MAX_ITEMS];
    errbuf err = {0};
    size_t total, total_again;
    srand((unsigned)_i + 1);
    int count = rand() % MAX_ITEMS;
    for (int i = 0; i < count; i++) {
        int first = rand() % 100;
        items[i] = (memory_item){.bytes = (size_t)(rand() % 3 ? rand() % 5000 : 4096),
                                 .first = first,
                                 .last = first + rand() % (1 + rand() % 60)};
    }
    memcpy(again, items, sizeof items);
    ck_assert_int_eq(memory_plan(items, count, &total, &err), STATUS_OK);
    ck_assert_int_eq(memory_plan(again, count, &total_again, &err), STATUS_OK);
    check_plan(items, count, total);
    ck_assert_uint_ge(total, memory_plan_bound(items, count));
    ck_assert_uint_eq(total, total_again);
    for (int i = 0; i < count; i++)
        ck_assert_uint_eq(items[i].offset, again[i].offset);
}
END_TEST

START_TEST(memory_is_used_again)
{
    errbuf err = {0};
    size_t total;
    memory_item chain[4] = {{100, 0, 1, 0}, {100, 1, 2, 0}, {100, 2, 3, 0}, {100, 3, 4, 0}};
    ck_assert_int_eq(memory_plan(chain, 4, &total, &err), STATUS_OK);
    check_plan(chain, 4, total);
    ck_assert_uint_eq(total, 256);
    ck_assert_uint_eq(memory_plan_bound(chain, 4), 256);
    /* a small one goes into the smallest hole that holds it */
    memory_item holes[4] = {{1024, 0, 9, 0}, {512, 0, 4, 0}, {256, 0, 9, 0}, {128, 5, 9, 0}};
    ck_assert_int_eq(memory_plan(holes, 4, &total, &err), STATUS_OK);
    check_plan(holes, 4, total);
    ck_assert_uint_eq(total, 1792);
    ck_assert_int_eq(memory_plan(NULL, 0, &total, &err), STATUS_OK);
    ck_assert_uint_eq(total, 0);
}
END_TEST

/* The executor's own list of activations and gradients. */
START_TEST(resnet_is_packed_close_to_the_bound)
{
    size_t workspace[MAX_ITEMS] = {0};
    exec_sizes sizes = {.batch = 128, .pool_workspace = workspace};
    exec_schedule schedule;
    errbuf err = {0};
    net *n = NULL;
    spec s;
    memset(&s, 0, sizeof s);
    s.model.arch = _i & 1 ? ARCH_RESNET34 : ARCH_RESNET18;
    s.model.stem = _i & 2 ? STEM_IMAGENET : STEM_CIFAR;
    s.model.width = 64;
    s.model.classes = 10;
    s.data.size = _i & 2 ? 224 : 32;
    bool training = !(_i & 4);
    ck_assert_int_eq(net_build(&s, &n, &err), STATUS_OK);
    ck_assert_int_le(n->nodes, MAX_ITEMS);
    ck_assert_int_eq(exec_schedule_create(n, &sizes, training, &schedule, &err), STATUS_OK);
    check_plan(schedule.items, schedule.item_count, schedule.arena_bytes);
    size_t bound = memory_plan_bound(schedule.items, schedule.item_count);
    ck_assert_msg((double)schedule.arena_bytes <= 1.15 * (double)bound, "%zu bytes, bound %zu",
                  schedule.arena_bytes, bound);
    exec_schedule_fini(&schedule);
    net_destroy(&n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory_plan");
    TCase *plan = tcase_create("plan");
    tcase_add_loop_test(plan, random_lists_never_overlap, 0, 60);
    tcase_add_test(plan, memory_is_used_again);
    tcase_add_loop_test(plan, resnet_is_packed_close_to_the_bound, 0, 8);
    suite_add_tcase(suite, plan);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
