/*
 * comm_device: nothing to do alone, memory of the host as it is, other memory through a shared
 * buffer, and what ranks compare before they choose. The backend is played, and so are the other
 * ranks: each brings what this one does, times two, three... (real ranks: dist; NCCL: nccl.comm).
 */
#include <check.h>
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm_device.h"

#define RANKS 3

/* ---- a backend ---- */

typedef struct played_backend {
    backend base;
    backend_ops ops;
    bool fails;
    int64_t moved, most; /* bytes through upload and download; the largest at once */
    size_t shared;       /* bytes of the shared buffer */
} played_backend;

static status played_alloc(backend *be, size_t bytes, void **ret, errbuf *err)
{
    (void)err;
    ((played_backend *)(void *)be)->shared = bytes;
    *ret = calloc(1, bytes);
    return STATUS_OK;
}

static void played_release(backend *be, void *memory)
{
    (void)be;
    free(memory);
}

static status played_move(backend *be, void *to, const void *from, size_t bytes)
{
    played_backend *p = (played_backend *)(void *)be;
    if (p->fails)
        return STATUS_ENVIRONMENT;
    p->moved += (int64_t)bytes;
    p->most = (int64_t)bytes > p->most ? (int64_t)bytes : p->most;
    memcpy(to, from, bytes);
    return STATUS_OK;
}

static const char *played_error(const backend *be)
{
    (void)be;
    return "the device is gone";
}

static played_backend play_backend(bool host_memory)
{
    return (played_backend){.ops = {.name = "played",
                                    .host_memory = host_memory,
                                    .alloc_shared = played_alloc,
                                    .release_shared = played_release,
                                    .upload = played_move,
                                    .download = played_move,
                                    .copy = played_move,
                                    .last_error = played_error}};
}

/* ---- the other ranks ---- */

static comm_device_identity others[RANKS];

static status sum_floats(comm *c, float *data, int64_t count, errbuf *err)
{
    (void)err;
    for (int64_t i = 0; i < count; i++)
        data[i] *= (float)(c->size * (c->size + 1) / 2);
    return STATUS_OK;
}

static status sum_whole(comm *c, int64_t *data, int64_t count, errbuf *err)
{
    (void)err;
    for (int64_t i = 0; i < count; i++)
        data[i] *= c->size * (c->size + 1) / 2;
    return STATUS_OK;
}

static status gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    (void)err;
    if (bytes == (int64_t)sizeof *others) {
        memcpy(all, others, sizeof others);
        return STATUS_OK;
    }
    if (bytes == (int64_t)sizeof(errbuf)) { /* comm_agree */
        memset(all, 0, (size_t)(bytes * c->size));
        return STATUS_OK;
    }
    for (int r = 0; r < c->size; r++)
        for (int64_t i = 0; i < bytes; i++)
            ((char *)all)[r * bytes + i] = (char)(((const char *)mine)[i] * (r + 1));
    return STATUS_OK;
}

static const comm_ops played_ops = {.name = "played",
                                    .all_reduce_float = sum_floats,
                                    .all_reduce_int64 = sum_whole,
                                    .all_gather = gather};

static comm play_world(int size)
{
    return (comm){.ops = &played_ops, .size = size, .local_size = size};
}

static comm_device *open_with(comm *host, played_backend *be, int64_t elements, bool exact)
{
    comm_device *c = NULL;
    errbuf err = {0};
    be->base.ops = &be->ops;
    const comm_device_options o = {
        .host = host, .be = &be->base, .exact = exact, .elements = elements};
    ck_assert_int_eq(comm_device_open(&o, &c, &err), STATUS_OK);
    return c;
}

static void assert_described(comm_device *c, const char *expected)
{
    cJSON *plan = NULL;
    errbuf err = {0};
    char text[100];
    ck_assert_int_eq(c->ops->describe(c, &plan, &err), STATUS_OK);
    cJSON_PrintPreallocated(plan, text, (int)sizeof text, false);
    ck_assert_str_eq(text, expected);
    cJSON_Delete(plan);
}

/* Three ranks' sums and gathering of `count` elements each. */
static void check_collectives(comm_device *c, int count)
{
    errbuf err = {0};
    float *floats = malloc((size_t)count * sizeof *floats);
    int64_t *whole = malloc((size_t)count * sizeof *whole);
    char *mine = malloc((size_t)count), *all = malloc((size_t)count * RANKS);
    for (int i = 0; i < count; i++) {
        floats[i] = (float)i;
        whole[i] = -((int64_t)i << 33);
        mine[i] = (char)(i % 40);
    }
    ck_assert_int_eq(c->ops->all_reduce_float(c, floats, count, &err), STATUS_OK);
    ck_assert_int_eq(c->ops->all_reduce_int64(c, whole, count, &err), STATUS_OK);
    ck_assert_int_eq(c->ops->all_gather(c, mine, count, all, &err), STATUS_OK);
    for (int i = 0; i < count; i++) {
        ck_assert(floats[i] == 6 * (float)i && whole[i] == -6 * ((int64_t)i << 33));
        for (int r = 0; r < RANKS; r++)
            ck_assert_int_eq(all[(size_t)r * (size_t)count + (size_t)i], (i % 40) * (r + 1));
    }
    free(floats);
    free(whole);
    free(mine);
    free(all);
}

/* ---- tests ---- */

static int dropped;
static void drop_graphs(void *ctx)
{
    dropped += *(int *)ctx;
}

START_TEST(alone)
{
    comm host = play_world(1);
    played_backend be = play_backend(_i);
    comm_device *c = open_with(&host, &be, 10, false);
    errbuf err = {0};
    ck_assert_str_eq(c->ops->name, "self");
    ck_assert(c->ops->records);
    float one = 1.5f;
    int64_t two = 2, all = 0;
    int by = 1;
    ck_assert_int_eq(c->ops->all_reduce_float(c, &one, 1, &err), STATUS_OK);
    ck_assert_int_eq(c->ops->all_reduce_int64(c, &two, 1, &err), STATUS_OK);
    ck_assert(one == 1.5f && two == 2 && be.moved == 0);
    ck_assert_int_eq(c->ops->all_gather(c, &two, sizeof two, &all, &err), STATUS_OK);
    ck_assert_int_eq(all, 2);
    ck_assert_int_eq(c->ops->all_gather(c, &two, sizeof two, &two, &err), STATUS_OK);
    ck_assert_int_eq(be.moved, sizeof two); /* the second had nothing to copy */
    ck_assert_int_eq(c->ops->settle(c, &err), STATUS_OK);
    ck_assert_int_eq(c->ops->check(c, 3, &err), STATUS_OK);
    assert_described(c, "{\"all_reduce\":\"self\"}");
    dropped = 0;
    ck_assert(c->ops->abandon(c, drop_graphs, &by));
    ck_assert_int_eq(dropped, 1);
    ck_assert(c->ops->abandon(c, NULL, NULL));
    comm_device_close(&c);
    ck_assert_ptr_null(c);
    comm_device_close(&c);
}
END_TEST

START_TEST(memory_of_the_host)
{
    comm host = play_world(RANKS);
    played_backend be = play_backend(true);
    comm_device *c = open_with(&host, &be, 10, false);
    ck_assert_str_eq(c->ops->name, "host");
    ck_assert(!c->ops->records);
    check_collectives(c, 1000);
    ck_assert_int_eq(be.moved, 0);
    ck_assert_uint_eq(be.shared, 0);
    assert_described(c, "{\"all_reduce\":\"played-tree-1\"}");
    comm_device_close(&c);
}
END_TEST

/* In one piece, and in many. */
START_TEST(memory_of_a_device)
{
    static const int counts[] = {0, 1, 333, 100001};
    comm host = play_world(RANKS);
    played_backend be = play_backend(false);
    comm_device *c = open_with(&host, &be, 100, true);
    ck_assert_str_eq(c->ops->name, "host");
    ck_assert(!c->ops->records);
    const int64_t count = counts[_i];
    check_collectives(c, (int)count);
    /* down and up; a gathering goes up as often as there are ranks */
    ck_assert_int_eq(be.moved, 2 * count * 4 + 2 * count * 8 + (1 + RANKS) * count);
    ck_assert_int_le(be.most, (int64_t)be.shared);
    ck_assert_int_lt(be.shared, 100000);
    comm_device_close(&c);
}
END_TEST

START_TEST(shared_buffer_is_bounded)
{
    comm host = play_world(RANKS);
    played_backend be = play_backend(false);
    comm_device *c = open_with(&host, &be, 1000000, false);
    ck_assert_uint_eq(be.shared, 4000000);
    comm_device_close(&c);
    c = open_with(&host, &be, 1000000, true);
    ck_assert_uint_eq(be.shared, 8000000);
    comm_device_close(&c);
    c = open_with(&host, &be, INT64_C(1) << 33, false);
    ck_assert_uint_eq(be.shared, 32 << 20);
    comm_device_close(&c);
}
END_TEST

START_TEST(device_fails)
{
    comm host = play_world(RANKS);
    played_backend be = play_backend(false);
    comm_device *c = open_with(&host, &be, 10, false);
    float data[2] = {0};
    errbuf err = {0};
    be.fails = true;
    ck_assert_int_eq(c->ops->all_reduce_float(c, data, 2, &err), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text, "backend played: the device is gone");
    comm_device_close(&c);
}
END_TEST

START_TEST(comparison)
{
    comm host = play_world(RANKS);
    errbuf err = {0};
    bool shared = true;
    for (int r = 0; r < RANKS; r++) {
        memset(&others[r], 0, sizeof others[r]);
        snprintf(others[r].host, sizeof others[r].host, "h%d", r / 2);
        snprintf(others[r].device, sizeof others[r].device, "d%d", r % 2);
        strcpy(others[r].versions, "A 1");
    }
    ck_assert_int_eq(comm_device_compare(&host, &others[0], &shared, &err), STATUS_OK);
    ck_assert(!shared); /* the same number, but of another host */
    strcpy(others[1].device, "d0");
    ck_assert_int_eq(comm_device_compare(&host, &others[0], &shared, &err), STATUS_OK);
    ck_assert(shared);
    strcpy(others[2].versions, "A 2");
    ck_assert_int_eq(comm_device_compare(&host, &others[0], &shared, &err), STATUS_ENVIRONMENT);
    ck_assert_str_eq(err.text,
                     "rank 2 runs A 2, rank 0 runs A 1: install the same versions on all hosts");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("comm_device");
    TCase *tcase = tcase_create("comm_device");
    tcase_add_loop_test(tcase, alone, 0, 2);
    tcase_add_test(tcase, memory_of_the_host);
    tcase_add_loop_test(tcase, memory_of_a_device, 0, 4);
    tcase_add_test(tcase, shared_buffer_is_bounded);
    tcase_add_test(tcase, device_fails);
    tcase_add_test(tcase, comparison);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
