/*
 * A rank of test_collectives.c: does each collective of kernels/comm.h on values that every rank
 * can work out for all, and compares the bits with sums made here. Prints "ok" on rank 0.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm.h"

/* Contribution of a rank: magnitudes far apart, so that the order of a sum shows in its bits. */
static float value_of(int rank, int64_t i)
{
    uint64_t x = (uint64_t)i * 0x9e3779b97f4a7c15ull + (uint64_t)(rank + 1) * 0xbf58476d1ce4e5b9ull;
    x ^= x >> 31;
    x *= 0x94d049bb133111ebull;
    x ^= x >> 29;
    float mantissa = (float)((int)(x & 0xffffff) - 0x800000) / 8388608.0f;
    static const float scales[] = {1.0f, 1e-3f, 1e4f, 1e-7f};
    return mantissa * scales[(x >> 40) & 3];
}

static int64_t whole_of(int rank, int64_t i)
{
    return (int64_t)(rank + 1) * 1000003 - (i << 33) * (rank % 2 ? 1 : -1);
}

/* Neighbours first, then pairs of pairs: the tree that comm.h promises. */
static float tree_sum(int size, int64_t i)
{
    float part[64];
    for (int r = 0; r < size; r++)
        part[r] = value_of(r, i);
    for (int count = size; count > 1; count = (count + 1) / 2)
        for (int r = 0; r < count; r += 2)
            part[r / 2] = r + 1 < count ? part[r] + part[r + 1] : part[r];
    return part[0];
}

#define REQUIRE(condition, ...)                                    \
    do {                                                           \
        if (!(condition))                                          \
            return errbuf_set(err, STATUS_NUMERICAL, __VA_ARGS__); \
    } while (0)

static status check_float(comm *c, int64_t count, errbuf *err)
{
    float *data = malloc((size_t)(count + 1) * sizeof *data);
    if (!data)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory");
    for (int64_t i = 0; i < count; i++)
        data[i] = value_of(c->rank, i);
    data[count] = 77; /* behind the end */
    status st = c->ops->all_reduce_float(c, data, count, err);
    for (int64_t i = 0; i < count && st == STATUS_OK; i++) {
        float expected = tree_sum(c->size, i);
        if (memcmp(&data[i], &expected, sizeof expected) != 0)
            st = errbuf_set(err, STATUS_NUMERICAL, "float %" PRId64 " of %" PRId64 ": %a, not %a",
                            i, count, (double)data[i], (double)expected);
    }
    if (st == STATUS_OK && data[count] != 77)
        st = errbuf_set(err, STATUS_NUMERICAL, "written behind %" PRId64 " floats", count);
    free(data);
    return st;
}

static status check_whole(comm *c, int64_t count, errbuf *err)
{
    int64_t *data = malloc((size_t)(count + 1) * sizeof *data);
    if (!data)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory");
    for (int64_t i = 0; i < count; i++)
        data[i] = whole_of(c->rank, i);
    data[count] = 77;
    status st = c->ops->all_reduce_int64(c, data, count, err);
    for (int64_t i = 0; i < count && st == STATUS_OK; i++) {
        int64_t expected = 0;
        for (int r = 0; r < c->size; r++)
            expected += whole_of(r, i);
        if (data[i] != expected)
            st = errbuf_set(err, STATUS_NUMERICAL, "int64 %" PRId64 " of %" PRId64, i, count);
    }
    if (st == STATUS_OK && data[count] != 77)
        st = errbuf_set(err, STATUS_NUMERICAL, "written behind %" PRId64 " int64", count);
    free(data);
    return st;
}

static status check_copies(comm *c, errbuf *err)
{
    unsigned char mine[13], all[64 * sizeof mine];
    for (size_t i = 0; i < sizeof mine; i++)
        mine[i] = (unsigned char)(c->rank * 31 + (int)i);
    TRY(c->ops->all_gather(c, mine, sizeof mine, all, err));
    for (int r = 0; r < c->size; r++)
        for (size_t i = 0; i < sizeof mine; i++)
            REQUIRE(all[(size_t)r * sizeof mine + i] == (unsigned char)(r * 31 + (int)i),
                    "all_gather: byte %zu of rank %d", i, r);
    TRY(c->ops->all_gather(c, mine, 0, all, err));
    for (int root = 0; root < c->size; root++) {
        int64_t word[3] = {c->rank, 100 * c->rank, -1};
        TRY(c->ops->broadcast(c, word, 2 * (int64_t)sizeof word[0], root, err));
        REQUIRE(word[0] == root && word[1] == 100 * root && word[2] == -1, "broadcast from %d",
                root);
    }
    return c->ops->barrier(c, err);
}

/* Every rank gets the status and the line of the lowest that has one. */
static status check_agreement(comm *c, errbuf *err)
{
    errbuf none = {0};
    REQUIRE(comm_agree(c, STATUS_OK, &none) == STATUS_OK && none.text[0] == '\0', "all well");
    for (int first = 0; first < c->size; first++) {
        errbuf mine = {0};
        char expected[100];
        status st = STATUS_OK;
        if (c->rank >= first) /* ranks above have other troubles */
            st = errbuf_set(&mine, c->rank == first ? STATUS_DATA : STATUS_NUMERICAL,
                            "trouble of %d", c->rank);
        st = comm_agree(c, st, &mine);
        snprintf(expected, sizeof expected, c->size > 1 ? "rank %d: trouble of %d" : "trouble of 0",
                 first, first);
        REQUIRE(st == STATUS_DATA && strcmp(mine.text, expected) == 0, "agreed on %d, '%s'",
                (int)st, mine.text);
    }
    errbuf common = {0};
    status st = comm_agree(c, errbuf_set(&common, STATUS_BAD_INPUT, "all the same"), &common);
    REQUIRE(st == STATUS_BAD_INPUT && strcmp(common.text, "all the same") == 0, "common: '%s'",
            common.text);
    return STATUS_OK;
}

static status check_all(comm *c, errbuf *err)
{
    static const int64_t counts[] = {0, 1, 7, 64, (1 << 20) + 3};
    REQUIRE(c->rank >= 0 && c->rank < c->size && c->size <= 64, "rank %d of %d", c->rank, c->size);
    REQUIRE(c->local_rank == c->rank && c->local_size == c->size, "one host: %d of %d",
            c->local_rank, c->local_size);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        TRY(check_float(c, counts[i], err));
        TRY(check_whole(c, counts[i], err));
    }
    TRY(check_copies(c, err));
    return check_agreement(c, err);
}

int main(void)
{
    comm *c = NULL;
    errbuf err = {0};
    status st = comm_open(&c, &err);
    if (st == STATUS_OK) {
        st = check_all(c, &err);
        if (st == STATUS_OK && c->rank == 0)
            printf("ok %s %d\n", c->ops->name, c->size);
    }
    if (st != STATUS_OK)
        fprintf(stderr, "comm_probe: %s\n", err.text);
    if (st != STATUS_OK && c)
        c->ops->abort(c, (int)st);
    comm_close(&c);
    return (int)st;
}
