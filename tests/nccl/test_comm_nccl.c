/*
 * comm_device `nccl` without a GPU: the same source over fake_nccl.c, ranks as threads. How it
 * starts, waits, records, names a lost rank, gives up and ends.
 */
#include <check.h>
#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "fake_nccl.h"
#include "kernels/cuda/comm_nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "thread_world.h"

const char *dnn_version(void)
{
    return fake_me == 2 ? "9.18.0" : "9.19.0";
}

/* ---- a backend whose memory is the host's ---- */

struct backend_event {
    cudaStream_t stream;
    int mark;
};

static status fake_alloc(backend *be, size_t bytes, void **ret, errbuf *err)
{
    (void)be, (void)err;
    *ret = calloc(1, bytes);
    return *ret ? STATUS_OK : STATUS_OUT_OF_MEMORY;
}

static void fake_release(backend *be, void *memory)
{
    (void)be;
    free(memory);
}

static status fake_move(backend *be, void *to, const void *from, size_t bytes)
{
    (void)be;
    memcpy(to, from, bytes);
    return STATUS_OK;
}

static status fake_event_create(backend *be, backend_event **ret, errbuf *err)
{
    (void)err;
    *ret = calloc(1, sizeof **ret);
    (*ret)->stream = cuda_of(be)->stream;
    return STATUS_OK;
}

static void fake_event_destroy(backend_event **e)
{
    free(*e);
    *e = NULL;
}

static status fake_event_record(backend_event *e)
{
    e->mark = e->stream->issued;
    return STATUS_OK;
}

static status fake_event_done(backend_event *e, bool *ret_done)
{
    *ret_done = e->stream->done >= e->mark;
    return STATUS_OK;
}

static const char *fake_error(const backend *be)
{
    (void)be;
    return "the fake device failed";
}

static const backend_ops fake_ops = {
    .name = "cuda",
    .alloc = fake_alloc,
    .release = fake_release,
    .upload = fake_move,
    .download = fake_move,
    .copy = fake_move,
    .alloc_shared = fake_alloc,
    .release_shared = fake_release,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_done = fake_event_done,
    .last_error = fake_error,
};

/* ---- ranks ---- */

typedef struct rank {
    thread_world *world;
    int number;
    void (*body)(struct rank *);
    world_comm host;
    struct CUstream_st stream;
    cuda_backend be;
    comm_device_options options;
    comm_device *c;
    /* what came of it */
    status st;
    errbuf err;
    bool is_free; /* of abandon */
    double seconds;
    char said[200]; /* what a body found wrong */
} rank;

static thread_world world;
static rank ranks[WORLD_RANKS];
static bool exact = true; /* not exact: settings go into the environment, which threads share */

static void *run_rank(void *arg)
{
    rank *r = arg;
    fake_me = r->number;
    r->host = world_join(r->world, r->number);
    r->be.base.ops = &fake_ops;
    r->be.stream = &r->stream;
    r->options = (comm_device_options){
        .host = &r->host.base, .be = &r->be.base, .exact = exact, .elements = 1000};
    const double begin = world_seconds();
    r->body(r);
    r->seconds = world_seconds() - begin;
    return NULL;
}

static void run_world(int size, void (*body)(rank *))
{
    pthread_t thread[WORLD_RANKS];
    world_init(&world, size);
    memset(ranks, 0, sizeof ranks);
    for (int r = 0; r < size; r++) {
        ranks[r].world = &world;
        ranks[r].number = r;
        ranks[r].body = body;
        ck_assert_int_eq(pthread_create(&thread[r], NULL, run_rank, &ranks[r]), 0);
    }
    for (int r = 0; r < size; r++)
        pthread_join(thread[r], NULL);
    for (int r = 0; r < size; r++)
        ck_assert_msg(!ranks[r].said[0], "rank %d: %s", r, ranks[r].said);
}

/* Bodies run on threads, where Check's assertions may not fail. */
#define EXPECT(r, condition)                                                                  \
    do {                                                                                      \
        if (!(condition))                                                                     \
            snprintf((r)->said, sizeof(r)->said, "line %d: %s; %.100s", __LINE__, #condition, \
                     (r)->err.text);                                                          \
    } while (0)

static void open_rank(rank *r)
{
    r->st = comm_nccl_open(&r->options, &r->c, &r->err);
}

static void close_rank(rank *r)
{
    if (r->c)
        comm_device_close(&r->c);
}

static void assert_line(const rank *r, status st, const char *part, ...)
{
    char expected[300];
    va_list arguments;
    va_start(arguments, part);
    vsnprintf(expected, sizeof expected, part, arguments);
    va_end(arguments);
    ck_assert_int_eq(r->st, st);
    ck_assert_msg(strstr(r->err.text, expected), "rank %d: '%s' is not in: %s", r->number, expected,
                  r->err.text);
}

static void wait_for_stream(const rank *r)
{
    for (double begin = world_seconds();
         r->stream.done < r->stream.issued && world_seconds() - begin < 10;)
        nanosleep(&(struct timespec){0, 100000}, NULL);
}

static void setup(void)
{
    fake_reset();
    exact = true;
    static const char *const names[] = {"NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE",
                                        "NCCL_MAX_CTAS"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unsetenv(names[i]);
    setenv("RINGMASTER_PEER_TIMEOUT", "1", 1);
}

/* ---- what works ---- */

static void sum_and_gather(rank *r)
{
    open_rank(r);
    if (r->st != STATUS_OK)
        return;
    const comm_device_ops *ops = r->c->ops;
    const int size = r->world->size, me = r->number;
    float floats[5], all[5 * WORLD_RANKS];
    int64_t whole[3] = {me, -me, INT64_C(1) << 40};
    for (int i = 0; i < 5; i++)
        floats[i] = (float)(me + i);
    EXPECT(r, ops->use_buffer(r->c, floats, sizeof floats, &r->err) == STATUS_OK);
    EXPECT(r, ops->all_gather(r->c, floats, sizeof floats, all, &r->err) == STATUS_OK);
    EXPECT(r, ops->all_reduce_int64(r->c, whole, 3, &r->err) == STATUS_OK);
    wait_for_stream(r);
    EXPECT(r, ops->all_reduce_float(r->c, floats, 5, &r->err) == STATUS_OK);
    EXPECT(r, ops->check(r->c, 1, &r->err) == STATUS_OK);
    wait_for_stream(r);
    const int ranks_sum = size * (size - 1) / 2;
    for (int i = 0; i < 5; i++)
        EXPECT(r, floats[i] == (float)(ranks_sum + size * i));
    for (int q = 0; q < size; q++)
        EXPECT(r, all[5 * q + 4] == (float)(q + 4));
    EXPECT(r, whole[0] == ranks_sum && whole[1] == -ranks_sum && whole[2] == (int64_t)size << 40);
    close_rank(r);
}

/* However long NCCL takes over each call. */
START_TEST(collectives)
{
    const int size = _i + 1;
    for (int r = 0; r < size; r++) {
        fake[r].init_polls = 3 * r;
        fake[r].call_polls = 5 * r;
        fake[r].finalize_polls = 2;
    }
    run_world(size, sum_and_gather);
    for (int r = 0; r < size; r++) {
        ck_assert_msg(ranks[r].st == STATUS_OK, "%s", ranks[r].err.text);
        ck_assert_str_eq(fake[r].log, "init reduce register gather reduce reduce deregister "
                                      "finalize finalized destroy");
        ck_assert_int_eq(fake[r].comms, 0);
        ck_assert_int_eq(fake[r].config.blocking, 0);
        ck_assert_str_eq(fake[r].env[0], "(none)"); /* exact: NCCL's own choice */
        ck_assert_int_eq(fake[r].config.maxCTAs, INT_MIN);
    }
}
END_TEST

static void record(rank *r)
{
    open_rank(r);
    if (r->st != STATUS_OK)
        return;
    float data[4] = {0};
    fake[r->number].call_polls = 50;
    r->stream.recording = true;
    EXPECT(r, r->c->ops->records);
    EXPECT(r, r->c->ops->all_reduce_float(r->c, data, 4, &r->err) == STATUS_OK);
    /* the next op would be recorded after it: NCCL has to have taken it by now */
    EXPECT(r, strstr(fake[r->number].log, "reduce recorded") != NULL);
    EXPECT(r, r->c->ops->settle(r->c, &r->err) == STATUS_OK);
    r->stream.recording = false;
    fake[r->number].graphs = 0; /* destroyed */
    close_rank(r);
}

START_TEST(a_recorded_call_is_taken_at_once)
{
    run_world(2, record);
    for (int r = 0; r < 2; r++)
        ck_assert_str_eq(fake[r].log, "init reduce reduce recorded finalize finalized destroy");
}
END_TEST

/* ---- settings ---- */

static char described[200];

static void describe(rank *r)
{
    cJSON *plan = NULL;
    open_rank(r);
    EXPECT(r, r->st == STATUS_OK && r->c->ops->describe(r->c, &plan, &r->err) == STATUS_OK);
    cJSON_PrintPreallocated(plan, described, (int)sizeof described, false);
    cJSON_Delete(plan);
    close_rank(r);
}

static void large(rank *r)
{
    r->options.elements = 1 << 20;
    describe(r);
}

static void several_hosts(rank *r)
{
    r->host.base.local_size = 0;
    describe(r);
}

START_TEST(settings_of_the_sum)
{
    exact = false;
    run_world(1, describe);
    ck_assert_str_eq(described, "{\"all_reduce\":\"nccl-ring-ll-16\"}");
    ck_assert_str_eq(fake[0].env[0], "Ring");
    ck_assert_str_eq(fake[0].env[1], "LL");
    ck_assert_str_eq(fake[0].env[2], "0");
    ck_assert_int_eq(fake[0].config.minCTAs, 16);
    ck_assert_int_eq(fake[0].config.maxCTAs, 16);
    fake_reset();
    run_world(1, large);
    ck_assert_str_eq(described, "{\"all_reduce\":\"nccl-ring-simple-16\"}");
    fake_reset();
    run_world(1, several_hosts);
    ck_assert_str_eq(described, "{\"all_reduce\":\"nccl-ring;allreduce:tree-ll-16\"}");
    fake_reset();
    exact = true;
    run_world(1, describe);
    ck_assert_str_eq(described, "{}");
    /* nothing stays behind in the environment */
    ck_assert_ptr_null(getenv("NCCL_ALGO"));
    ck_assert_ptr_null(getenv("NCCL_PROTO"));
    ck_assert_ptr_null(getenv("NCCL_NVLS_ENABLE"));
}
END_TEST

START_TEST(what_the_user_set_stays)
{
    exact = false;
    setenv("NCCL_ALGO", "Tree", 1);
    setenv("NCCL_MAX_CTAS", "4", 1);
    run_world(1, describe);
    ck_assert_str_eq(described, "{\"all_reduce\":\"nccl-tree-ll-user\"}");
    ck_assert_str_eq(fake[0].env[0], "Tree");
    ck_assert_int_eq(fake[0].config.maxCTAs, INT_MIN);
    ck_assert_str_eq(getenv("NCCL_ALGO"), "Tree");
}
END_TEST

START_TEST(deadline_is_a_number)
{
    setenv("RINGMASTER_PEER_TIMEOUT", "soon", 1);
    run_world(2, open_rank);
    for (int r = 0; r < 2; r++)
        assert_line(&ranks[r], STATUS_BAD_INPUT, "RINGMASTER_PEER_TIMEOUT=soon");
}
END_TEST

/* ---- what fails at the start ---- */

START_TEST(no_unique_id)
{
    fake[0].id_result = ncclSystemError;
    run_world(3, open_rank);
    for (int r = 0; r < 3; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "NCCL cannot start: unhandled system error: the fake's detail");
}
END_TEST

/* All ranks hear the line of the one that failed, at once. */
START_TEST(init_fails_on_one_rank)
{
    fake[1].init_result = ncclUnhandledCudaError;
    setenv("RINGMASTER_PEER_TIMEOUT", "60", 1);
    run_world(3, open_rank);
    for (int r = 0; r < 3; r++) {
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "rank 1: connecting the GPUs: NCCL: unhandled cuda error: the fake's detail");
        ck_assert_ptr_null(ranks[r].c);
        ck_assert_int_eq(fake[r].comms, 0);
        ck_assert_double_lt(ranks[r].seconds, 10);
    }
}
END_TEST

START_TEST(links_that_do_not_work)
{
    fake[0].wrong_sums = true;
    run_world(2, open_rank);
    for (int r = 0; r < 2; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "sum of ones over 2 ranks is");
}
END_TEST

/* One rank takes part in what the hosts say to each other, but never comes to NCCL. */
static void open_without_last(rank *r)
{
    errbuf err = {0};
    char invitation[WORLD_BYTES] = "";
    if (r->number < r->world->size - 1) {
        open_rank(r);
        return;
    }
    r->st = comm_agree(&r->host.base, STATUS_OK, &err);
    r->st = world_broadcast(&r->host.base, invitation, sizeof invitation, 0, &err);
}

START_TEST(peer_never_comes)
{
    run_world(3, open_without_last);
    for (int r = 0; r < 2; r++) {
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "connecting the GPUs: rank 2 is lost");
        ck_assert(ranks[r].host.base.lost);
        ck_assert_int_eq(fake[r].comms, 0);
        ck_assert_double_ge(ranks[r].seconds, 1);
        ck_assert_double_lt(ranks[r].seconds, 5);
    }
}
END_TEST

/* ---- what fails later ---- */

static void destroy_graphs(void *ctx)
{
    rank *r = ctx;
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    EXPECT(r, !strstr(fake[r->number].log, "aborted")); /* it waits for us */
    fake[r->number].graphs = 0;
}

/* As a training step does: records, launches, waits. */
static void wait_in_step(rank *r, uint64_t step)
{
    float data[4] = {0};
    open_rank(r);
    if (r->st != STATUS_OK)
        return;
    r->stream.recording = true;
    r->st = r->c->ops->all_reduce_float(r->c, data, 4, &r->err);
    r->stream.recording = false;
    for (double begin = world_seconds(); r->st == STATUS_OK && world_seconds() - begin < 10;) {
        r->st = r->c->ops->check(r->c, step, &r->err);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    EXPECT(r, r->host.base.lost);
    const double begin = world_seconds();
    r->is_free = r->c->ops->abandon(r->c, destroy_graphs, r);
    close_rank(r);
    r->seconds = world_seconds() - begin;
}

static void stop_last(rank *r)
{
    if (r->number < r->world->size - 1)
        wait_in_step(r, 41);
    else
        open_rank(r); /* and is never heard again */
}

START_TEST(peer_stops)
{
    run_world(3, stop_last);
    for (int r = 0; r < 2; r++) {
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "training step: rank 2 is lost");
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "after step 41");
        ck_assert(ranks[r].host.base.lost && ranks[r].is_free);
        ck_assert_str_eq(fake[r].log, "init reduce reduce recorded aborted");
        ck_assert_int_eq(fake[r].comms, 0);
    }
    comm_device_close(&ranks[2].c);
}
END_TEST

static void last_behind(rank *r)
{
    wait_in_step(r, r->number < r->world->size - 1 ? 41 : 40);
}

START_TEST(peer_stays_behind)
{
    run_world(3, last_behind);
    for (int r = 0; r < 2; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "rank 2 stays behind after step 40");
    assert_line(&ranks[2], STATUS_ENVIRONMENT, "no other rank is silent or behind");
}
END_TEST

static void all_wait(rank *r)
{
    wait_in_step(r, 7);
}

START_TEST(everybody_waits)
{
    run_world(2, all_wait);
    for (int r = 0; r < 2; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT, "after step 7, and no other rank is silent");
}
END_TEST

/* Looks that lie far apart are of different waits; so are those of different steps. */
static void wait_often(rank *r)
{
    open_rank(r);
    for (uint64_t step = 0; step < 15 && r->st == STATUS_OK; step++) {
        r->st = r->c->ops->check(r->c, step, &r->err);
        nanosleep(&(struct timespec){0, 100000000}, NULL);
    }
    close_rank(r);
}

START_TEST(steps_that_go_on_are_no_wait)
{
    run_world(2, wait_often);
    for (int r = 0; r < 2; r++)
        ck_assert_msg(ranks[r].st == STATUS_OK, "%s", ranks[r].err.text);
}
END_TEST

/* NCCL's own error on one rank: it says so, and so do all. */
START_TEST(error_of_one_rank)
{
    setenv("RINGMASTER_PEER_TIMEOUT", "60", 1);
    fake[1].step_result = ncclUnhandledCudaError;
    run_world(3, all_wait);
    for (int r = 0; r < 3; r++) {
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "%straining step: NCCL: unhandled cuda error: the "
                    "fake's detail",
                    r == 1 ? "" : "rank 1: ");
        ck_assert(ranks[r].is_free);
        ck_assert_int_eq(fake[r].comms, 0);
    }
}
END_TEST

/* A network error tells nothing of whose fault it is: the rank that is not heard of then. */
static void break_network(rank *r)
{
    if (r->number == 2) {
        open_rank(r);
        return;
    }
    fake[r->number].step_result = ncclRemoteError;
    wait_in_step(r, 12);
}

START_TEST(network_error)
{
    run_world(3, break_network);
    for (int r = 0; r < 2; r++) {
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "rank 2 is lost: not heard of since NCCL's remote process exited");
        ck_assert(ranks[r].host.base.lost);
    }
    comm_device_close(&ranks[2].c);
}
END_TEST

/* A rank that leaves for a reason of its own; it says why, or does not. */
static bool says_why;

static void leave(rank *r)
{
    if (r->number == 0) {
        wait_in_step(r, 5);
        return;
    }
    open_rank(r);
    if (says_why) {
        errbuf_set(&r->err, STATUS_DATA, "a bad image");
        r->host.base.ops->give_up(&r->host.base, &r->err);
    }
    r->is_free = r->c->ops->abandon(r->c, NULL, NULL);
    EXPECT(r, r->host.base.lost);
    close_rank(r);
}

START_TEST(peer_gives_up)
{
    setenv("RINGMASTER_PEER_TIMEOUT", "60", 1);
    says_why = _i;
    run_world(2, leave);
    if (says_why)
        assert_line(&ranks[0], STATUS_DATA, "rank 1: a bad image");
    else
        assert_line(&ranks[0], STATUS_ENVIRONMENT, "rank 1: gave up the training");
    ck_assert_double_lt(ranks[0].seconds, 10);
}
END_TEST

/* ---- the end ---- */

static void abort_sticks(rank *r)
{
    open_rank(r);
    fake[0].graphs = 1;
    fake[0].abort_sticks = true;
    const double begin = world_seconds();
    r->is_free = r->c->ops->abandon(r->c, destroy_graphs, r);
    EXPECT(r, r->c->ops->check(r->c, 1, &r->err) == STATUS_ENVIRONMENT);
    close_rank(r); /* does not wait either */
    r->seconds = world_seconds() - begin;
}

START_TEST(abort_that_never_ends)
{
    run_world(1, abort_sticks);
    ck_assert(!ranks[0].is_free);
    ck_assert_double_ge(ranks[0].seconds, 1);
    ck_assert_double_lt(ranks[0].seconds, 5);
    fake[0].abort_sticks = false; /* lets the thread go */
    for (double begin = world_seconds(); fake[0].comms && world_seconds() - begin < 10;)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    ck_assert_int_eq(fake[0].comms, 0);
}
END_TEST

static void close_sticks(rank *r)
{
    open_rank(r);
    fake[0].finalize_sticks = true;
    close_rank(r);
}

START_TEST(finalize_that_never_ends)
{
    run_world(1, close_sticks);
    ck_assert_str_eq(fake[0].log, "init reduce finalize aborted");
    ck_assert_int_eq(fake[0].comms, 0);
    ck_assert_double_lt(ranks[0].seconds, 5);
}
END_TEST

/* ---- the choice ---- */

static char kind[WORLD_RANKS][10];

static void choose(rank *r)
{
    r->st = comm_device_open(&r->options, &r->c, &r->err);
    if (r->st == STATUS_OK)
        snprintf(kind[r->number], sizeof kind[r->number], "%s", r->c->ops->name);
    close_rank(r);
}

START_TEST(kinds)
{
    run_world(1, choose);
    ck_assert_str_eq(kind[0], "self");
    run_world(2, choose);
    ck_assert_str_eq(kind[0], "nccl");
    ck_assert_str_eq(kind[1], "nccl");
    fake_reset();
    strcpy(fake[1].device, fake[0].device);
    run_world(2, choose);
    ck_assert_str_eq(kind[0], "host");
    ck_assert_str_eq(kind[1], "host");
}
END_TEST

START_TEST(versions_differ)
{
    fake[1].version = 22707;
    run_world(2, choose);
    for (int r = 0; r < 2; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "rank 1 runs NCCL 2.27.7, CUDA 13.0, cuDNN 9.19.0, rank 0 runs NCCL 2.28.9, "
                    "CUDA 13.0, cuDNN 9.19.0");
    fake_reset();
    run_world(3, choose);
    for (int r = 0; r < 3; r++)
        assert_line(&ranks[r], STATUS_ENVIRONMENT,
                    "rank 2 runs NCCL 2.28.9, CUDA 13.0, cuDNN 9.18");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("comm_nccl");
    TCase *tcase = tcase_create("nccl");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_loop_test(tcase, collectives, 0, 4);
    tcase_add_test(tcase, a_recorded_call_is_taken_at_once);
    tcase_add_test(tcase, settings_of_the_sum);
    tcase_add_test(tcase, what_the_user_set_stays);
    tcase_add_test(tcase, deadline_is_a_number);
    tcase_add_test(tcase, no_unique_id);
    tcase_add_test(tcase, init_fails_on_one_rank);
    tcase_add_test(tcase, links_that_do_not_work);
    tcase_add_test(tcase, peer_never_comes);
    tcase_add_test(tcase, peer_stops);
    tcase_add_test(tcase, peer_stays_behind);
    tcase_add_test(tcase, everybody_waits);
    tcase_add_test(tcase, steps_that_go_on_are_no_wait);
    tcase_add_test(tcase, error_of_one_rank);
    tcase_add_test(tcase, network_error);
    tcase_add_loop_test(tcase, peer_gives_up, 0, 2);
    tcase_add_test(tcase, abort_that_never_ends);
    tcase_add_test(tcase, finalize_that_never_ends);
    tcase_add_test(tcase, kinds);
    tcase_add_test(tcase, versions_differ);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
