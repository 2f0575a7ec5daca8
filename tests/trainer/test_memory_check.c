/* What a run needs of its host, part by part, and what is said where that is not there. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/net/builders.h"
#include "trainer/net/memory_check.h"
#include "trainer/net/report.h"

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

/* ---- what a run needs ---- */

#define R18_CONVS 11159232.0 /* stem included */
#define R18_M     11157504.0
#define RING      100000.0
#define PARAMS    (RING + 16458) /* stem, BN, fc of 10 classes */
#define STATS     9600.0

static spec job;
static memory_run run;
static net *network;

/* ResNet-18 of width 64 for CIFAR: 128 images on one rank and one thread, no loaders. */
static void make_job(void)
{
    memset(&job, 0, sizeof job);
    job.model.width = 64;
    job.model.classes = 10;
    job.data.size = 32;
    job.rpg.scope = SCOPE_GLOBAL;
    job.rpg.size = (int64_t)RING;
    job.rpg.permute = job.rpg.reflect = true;
    job.train.batch = job.train.shard = 128;
    job.resources.workers = job.resources.threads = 1;
    job.backend.name = BACKEND_CPU;
    run = (memory_run){
        .spec = &job, .training = true, .is_rank_0 = true, .ranks = 1, .loader_depth = 4};
    network = NULL;
}

static void free_job(void)
{
    net_destroy(&network);
}

static memory_need estimate(void)
{
    errbuf err = {0};
    memory_need need;
    net_destroy(&network);
    ck_assert_msg(net_build(&job, &network, &err) == STATUS_OK, "%s", err.text);
    ck_assert_msg(memory_estimate(network, &run, &need, &err) == STATUS_OK, "%s", err.text);
    double sum = 0;
    for (int i = 0; i < MEMORY_PARTS; i++)
        sum += need.part[i];
    ck_assert_double_eq(need.total, sum);
    return need;
}

/* Nothing that `ringtrain info` counts is missing, and every part has its own arithmetic. */
START_TEST(a_run_is_what_info_says_and_more)
{
    errbuf err = {0};
    net_memory m;
    memory_need need = estimate();
    ck_assert_int_eq(net_estimate_memory(network, 128, 1, &m, &err), STATUS_OK);
    ck_assert_double_ge(need.total, (double)m.total - 8); /* its control word */
    /* parameters, momentum, flat buffer, running statistics; host copies, with rank 0's momentum */
    ck_assert_double_eq(need.part[MEMORY_PARAMS], 4 * (5 * PARAMS + 3 * STATS));
    ck_assert_double_eq(need.part[MEMORY_WEIGHTS], 3 * 4 * R18_CONVS + (double)m.tables);
    ck_assert_double_eq(need.part[MEMORY_LANES], 0);
    ck_assert_double_eq(need.part[MEMORY_ACTIVATIONS], (double)m.activations);
    ck_assert_double_eq(need.part[MEMORY_LOADERS], 0);
    job.backend.name = BACKEND_REFERENCE; /* one copy of the weights, one table */
    ck_assert_double_eq(estimate().part[MEMORY_WEIGHTS], 2 * 4 * R18_CONVS + 4 * R18_M);
}
END_TEST

/* Of a run on a device the host keeps copies for checkpoints, and bytes of images. */
START_TEST(a_device_takes_little_of_the_host)
{
    run.train_images = 50000;
    memory_need host = estimate();
    run.on_device = true;
    memory_need need = estimate();
    ck_assert_double_eq(need.part[MEMORY_WEIGHTS] + need.part[MEMORY_ACTIVATIONS], 0);
    ck_assert_double_eq(need.part[MEMORY_PARAMS], 8 * (PARAMS + STATS) + 4 * PARAMS);
    ck_assert_double_eq(need.part[MEMORY_LOADERS], 3.0 * 32 * 32 * 4 * 128);
    ck_assert_double_lt(need.total, host.total / 4);
    job.train.exact = true;
    job.resources.threads = 8;
    job.train.shard = 32;
    ck_assert_int_eq(memory_lanes(&job, true), 1);
    ck_assert_int_eq(memory_lanes(&job, false), 4);
}
END_TEST

/* A job that has run: bench's peak was 927 MB, cifar10's with its images 1.1 GB. */
START_TEST(the_default_job_fits_into_what_it_took)
{
    errbuf err = {0};
    job.rpg.size = 2359296;
    run.train_images = run.eval_images = 1000;
    memory_need need = estimate();
    ck_assert_double_gt(need.total, 800e6);
    ck_assert_int_eq(memory_judge(&need, &run, 940000000, &err), STATUS_OK);
    ck_assert_int_eq(memory_judge(&need, &run, 700000000, &err), STATUS_BAD_INPUT);
}
END_TEST

START_TEST(ranks_of_the_host_count_together)
{
    job.train.batch = 256;
    job.resources.workers = run.ranks = 2;
    memory_need both = estimate(), one;
    job.train.batch = 128;
    job.resources.workers = run.ranks = 1;
    one = estimate();
    double momentum = 4 * PARAMS; /* on rank 0's host alone */
    ck_assert_double_eq(both.total, 2 * (one.total - momentum) + momentum);
    run.is_rank_0 = false;
    ck_assert_double_eq(estimate().total, one.total - momentum);
}
END_TEST

/* Shards one after another share everything but a second gradient; side by side they share no
 * gradient and no activation. Exact sums are twice as wide. */
START_TEST(shards_lanes_and_exact_sums)
{
    const memory_need whole = estimate();
    const double vector = 4 * (PARAMS + STATS);
    job.train.shard = 32;
    memory_need need = estimate();
    ck_assert_double_eq(need.part[MEMORY_PARAMS], whole.part[MEMORY_PARAMS] + vector);
    ck_assert_double_lt(need.part[MEMORY_ACTIVATIONS], 0.26 * whole.part[MEMORY_ACTIVATIONS]);
    const double activations = need.part[MEMORY_ACTIVATIONS];
    job.train.exact = true;
    job.resources.threads = 3;
    need = estimate();
    ck_assert_double_eq(need.part[MEMORY_PARAMS],
                        whole.part[MEMORY_PARAMS] + 8 * PARAMS + (4 + 4) * 4 * STATS);
    ck_assert_double_eq(need.part[MEMORY_LANES], 3 * vector + 2 * 4 * R18_CONVS);
    ck_assert_double_eq(need.part[MEMORY_ACTIVATIONS], 3 * activations);
    job.resources.threads = 16; /* no more lanes than shards */
    ck_assert_double_eq(estimate().part[MEMORY_ACTIVATIONS], 4 * activations);
}
END_TEST

/* Shards made ahead, but no more than there are. */
START_TEST(loaders)
{
    const double shard = 4.0 * 128 * 3 * 32 * 32;
    run.train_images = 50000;
    run.eval_images = 300;
    ck_assert_double_eq(estimate().part[MEMORY_LOADERS], (4 + 2) * shard);
    job.train.exact = true;
    job.train.shard = 16;
    job.resources.threads = 8;
    run.eval_images = 0;
    ck_assert_double_eq(estimate().part[MEMORY_LOADERS], 16 * shard / 8);
}
END_TEST

START_TEST(evaluation_holds_less)
{
    run.training = false;
    memory_need need = estimate();
    ck_assert_double_eq(need.part[MEMORY_PARAMS], 4 * (3 * PARAMS + 2 * STATS));
    ck_assert_double_eq(need.part[MEMORY_WEIGHTS], 4 * R18_CONVS + 4 * R18_M);
    ck_assert_double_eq(need.part[MEMORY_ACTIVATIONS], 0);
    errbuf err = {0};
    ck_assert_int_eq(memory_judge(&need, &run, 1000, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "evaluation needs"));
}
END_TEST

/* ---- what is said ---- */

static void assert_says(const char *what, const char *field)
{
    errbuf err = {0};
    memory_need need = estimate();
    ck_assert_int_eq(memory_judge(&need, &run, (uint64_t)need.total + 1, &err), STATUS_OK);
    ck_assert_int_eq(memory_judge(&need, &run, (uint64_t)(0.99 * need.total), &err),
                     STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, what) && strstr(err.text, field), "%s", err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(the_largest_part_is_named)
{
    assert_says("activations of shards of 128", "lower train.batch or train.shard");
    job.train.shard = 64;
    assert_says("activations of shards of 64", "lower train.shard");
    job.train.exact = true;
    job.resources.threads = 2;
    assert_says("activations", "lower train.shard or resources.threads");
    job.train.exact = false;
    job.train.batch = job.train.shard = 1;
    assert_says("generated weights", "lower model.width");
    job.train.exact = true;
    job.train.batch = job.resources.threads = 64;
    assert_says("gradients of 64 shards side by side", "lower resources.threads");
    job.train.exact = false;
    job.train.batch = job.train.shard = 1;
    job.rpg.size = 2000000000;
    run.ranks = 2;
    assert_says("for 2 ranks",
                "the ring with gradient, optimiser state and copies: lower rpg.size");
    job.rpg.scope = SCOPE_BLOCK;
    assert_says("the ring", "lower rpg.size or rpg.sizes");
    job.rpg.scope = SCOPE_NONE;
    job.rpg.size = 0;
    assert_says("the network's weights with gradients and tables", "lower model.width");
    job.rpg.scope = SCOPE_GLOBAL; /* a small ring does not make a wide fc smaller */
    job.rpg.size = 1000;
    job.model.classes = 1000000;
    assert_says("the network's parameters", "lower model.width");
    job.model.classes = 10;
    run.train_images = 1000000;
    run.loader_depth = 1000000;
    assert_says("images made ahead", "data.size");
}
END_TEST

/* What 64 bits cannot count is more than there is, not less. */
START_TEST(sizes_beyond_counting)
{
    errbuf err = {0};
    job.rpg.scope = SCOPE_NONE;
    job.rpg.size = 0;
    job.model.width = 1024;
    job.data.size = 4096;
    job.train.batch = job.train.shard = 1 << 24;
    memory_need need = estimate();
    ck_assert_double_ge(need.part[MEMORY_ACTIVATIONS], 0x1p60);
    ck_assert_int_eq(memory_judge(&need, &run, UINT64_C(1) << 50, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "activations"));
}
END_TEST

/* Against this host. */
START_TEST(what_does_not_fit_is_refused)
{
    errbuf err = {0};
    job.model.width = 4;
    job.rpg.size = 500;
    job.train.batch = job.train.shard = 16;
    estimate();
    ck_assert_msg(memory_check_net(network, &run, &err) == STATUS_OK, "%s", err.text);
    run.ranks = 1 << 30;
    ck_assert_int_eq(memory_check_net(network, &run, &err), STATUS_BAD_INPUT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory_check");
    TCase *host = tcase_create("host"), *need = tcase_create("need");
    tcase_add_checked_fixture(host, make_root, remove_root);
    tcase_add_test(host, available_memory_is_the_tightest_limit);
    tcase_add_test(host, old_control_groups_are_read_too);
    tcase_add_checked_fixture(need, make_job, free_job);
    tcase_add_test(need, a_run_is_what_info_says_and_more);
    tcase_add_test(need, a_device_takes_little_of_the_host);
    tcase_add_test(need, the_default_job_fits_into_what_it_took);
    tcase_add_test(need, ranks_of_the_host_count_together);
    tcase_add_test(need, shards_lanes_and_exact_sums);
    tcase_add_test(need, loaders);
    tcase_add_test(need, evaluation_holds_less);
    tcase_add_test(need, the_largest_part_is_named);
    tcase_add_test(need, sizes_beyond_counting);
    tcase_add_test(need, what_does_not_fit_is_refused);
    suite_add_tcase(suite, host);
    suite_add_tcase(suite, need);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
