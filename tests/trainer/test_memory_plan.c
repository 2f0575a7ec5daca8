/* Packing by lifetime, against brute force and the lower bound; what the host says it has left. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* ---- memory_available in a folder that looks like a host ---- */

static char root[256];

static void make_root(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/memory-XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void remove_root(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    ck_assert_int_eq(system(command), 0);
}

/* Writes root/<path>, making its folders. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(full, 0777);
        *p = '/';
    }
    FILE *file = fopen(full, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

START_TEST(available_memory_is_the_tightest_limit)
{
    ck_assert_uint_eq(memory_available(root), UINT64_MAX); /* nothing there: no judgement */
    put("proc/meminfo", "MemTotal:  9000000 kB\nMemAvailableX: 1 kB\nMemAvailable:  5000000 kB\n");
    ck_assert_uint_eq(memory_available(root), UINT64_C(5120000000));

    put("proc/self/cgroup", "1:cpu:/\n0::/jobs/one\n"); /* v2: the outer group is the tighter */
    put("sys/fs/cgroup/jobs/one/memory.max", "max\n");
    put("sys/fs/cgroup/jobs/memory.max", "4000000000\n");
    put("sys/fs/cgroup/jobs/memory.current", "1500000000\n");
    ck_assert_uint_eq(memory_available(root), UINT64_C(2500000000));
    put("sys/fs/cgroup/jobs/memory.stat", "anon 5\ninactive_file 500000000\n"); /* page cache */
    ck_assert_uint_eq(memory_available(root), UINT64_C(3000000000));
    put("sys/fs/cgroup/memory.max", "1000\n"); /* a container sees its own group as the root */
    put("sys/fs/cgroup/memory.current", "2000\n");
    ck_assert_uint_eq(memory_available(root), 0);
}
END_TEST

START_TEST(old_control_groups_are_read_too)
{
    put("proc/meminfo", "MemAvailable:  5000000 kB\n");
    put("proc/self/cgroup", "4:memory:/a\n0::/\n");
    put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "100\n");
    ck_assert_uint_eq(memory_available(root), UINT64_C(5120000000));
    put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n");
    put("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 7\ntotal_inactive_file 40\n");
    ck_assert_uint_eq(memory_available(root), 940);
}
END_TEST

START_TEST(what_does_not_fit_is_refused)
{
    errbuf err = {0};
    ck_assert_int_eq(memory_check(1, "a byte", "rpg.size", &err), STATUS_OK);
    ck_assert_int_eq(memory_check(UINT64_C(1) << 60, "the ring", "rpg.size", &err),
                     STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "the ring needs 1152921504606846976 bytes"));
    ck_assert_ptr_nonnull(strstr(err.text, "are available; lower rpg.size"));
}
END_TEST

START_TEST(a_net_names_what_weighs_most)
{
    errbuf err = {0};
    net n = {.param_elements = 1000};
    net_ring ring = {.n = 900};
    ck_assert_int_eq(memory_check_net(&n, 1, 1, &err), STATUS_OK);
    ck_assert_int_eq(memory_check_net(&n, 1, 1 << 30, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "lower model.width"));
    ck_assert_ptr_nonnull(strstr(err.text, "12884901888000 bytes"));
    errbuf_clear(&err);
    n.ring = &ring;
    n.rings = 1;
    ck_assert_int_eq(memory_check_net(&n, 1, 1 << 30, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "lower rpg.size"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory_plan");
    TCase *plan = tcase_create("plan"), *host = tcase_create("host");
    tcase_add_loop_test(plan, random_lists_never_overlap, 0, 60);
    tcase_add_test(plan, memory_is_used_again);
    tcase_add_loop_test(plan, resnet_is_packed_close_to_the_bound, 0, 8);
    tcase_add_test(plan, what_does_not_fit_is_refused);
    tcase_add_test(plan, a_net_names_what_weighs_most);
    tcase_add_checked_fixture(host, make_root, remove_root);
    tcase_add_test(host, available_memory_is_the_tightest_limit);
    tcase_add_test(host, old_control_groups_are_read_too);
    suite_add_tcase(suite, plan);
    suite_add_tcase(suite, host);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
