/*
 * A rank of test_collectives.c: does each collective of kernels/comm.h on values that every rank
 * can work out for all, and compares the bits with sums made here. Prints "ok" on rank 0.
 *
 * comm_probe words: what ranks that wait tell each other. comm_probe stops, comm_probe leaves: what
 * the last rank does; the others name it and leave.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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

/* ---- words of ranks that wait ---- */

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void nap(double seconds)
{
    nanosleep(&(struct timespec){(time_t)seconds, (long)(1e9 * (seconds - (time_t)seconds))}, NULL);
}

/* Says `step` for a while, as a rank that waits does; *ret = who is to blame then. */
static void wait_at(comm *c, uint64_t step, double during, double silence, comm_peer *ret)
{
    for (double begin = seconds_now(); seconds_now() - begin < during; nap(0.01)) {
        c->ops->publish(c, step);
        c->ops->silent(c, silence, ret);
    }
}

static status check_silence(comm *c, errbuf *err)
{
    comm_peer p = {.rank = -1};
    if (c->rank == c->size - 1)
        nap(0.8);
    else
        wait_at(c, 10, 0.6, 0.4, &p);
    REQUIRE(p.rank == (c->rank == c->size - 1 ? -1 : c->size - 1) && p.step == 0 && !p.farewell,
            "silent: rank %d at %" PRIu64, p.rank, p.step);
    REQUIRE(p.rank < 0 || (p.silence >= 0.4 && p.silence < 60), "silent for %g s", p.silence);
    return c->ops->barrier(c, err);
}

/* All are heard; the first rank has done fewer steps. */
static status check_behind(comm *c, errbuf *err)
{
    comm_peer p = {.rank = -1};
    wait_at(c, c->rank == 0 ? 11 : 12, 0.5, 30, &p);
    REQUIRE(p.rank == (c->rank == 0 ? -1 : 0) && (c->rank == 0 || p.step == 11) && !p.farewell,
            "behind: rank %d at %" PRIu64, p.rank, p.step);
    return c->ops->barrier(c, err);
}

/* A rank that looks away is not buried in words, and collectives go on between them. */
static status check_flood(comm *c, errbuf *err)
{
    if (c->rank == 0)
        for (int i = 0; i < 20000; i++)
            c->ops->publish(c, 13);
    return check_copies(c, err);
}

static status check_farewell(comm *c, errbuf *err)
{
    comm_peer p = {.rank = -1};
    errbuf why = {0};
    errbuf_set(&why, STATUS_DATA, "a bad image");
    if (c->rank == 1) {
        c->ops->give_up(c, &why);
        errbuf_clear(&why);
        errbuf_set(&why, STATUS_DATA, "another one");
        c->ops->give_up(c, &why); /* the first counts */
    } else {
        wait_at(c, 14, 0.4, 30, &p);
        REQUIRE(p.rank == 1 && p.farewell && p.step == 12, "gave up: rank %d at %" PRIu64, p.rank,
                p.step);
        REQUIRE(p.farewell->code == STATUS_DATA && strcmp(p.farewell->text, "a bad image") == 0,
                "farewell '%s'", p.farewell->text);
    }
    return c->ops->barrier(c, err);
}

static status check_words(comm *c, errbuf *err)
{
    TRY(check_silence(c, err));
    TRY(check_behind(c, err));
    TRY(check_flood(c, err));
    return check_farewell(c, err); /* words are on their way when the comm is closed */
}

/* Collectives with patience. The last rank comes late, then not at all, or says why it leaves. */
static status lose_last(comm *c, const char *how, errbuf *err)
{
    const bool is_last = c->rank == c->size - 1;
    errbuf none = {0};
    c->patience = 2;
    TRY(check_copies(c, err));
    if (is_last)
        nap(0.7);
    TRY(check_float(c, 1000, err));
    if (is_last && strcmp(how, "leaves") == 0) {
        c->ops->give_up(c, &(errbuf){STATUS_DATA, "a bad image"});
        c->lost = true;
        return errbuf_set(err, STATUS_DATA, "a bad image");
    }
    while (is_last)
        pause();
    const status st = check_float(c, 1000, err);
    REQUIRE(st != STATUS_OK && c->lost, "summed without the last rank");
    REQUIRE(c->ops->barrier(c, &none) == STATUS_ENVIRONMENT, "a barrier without the last rank");
    REQUIRE(comm_agree(c, st, err) == st, "agreed without the last rank");
    if (c->rank == 0) {
        printf("%s\n", err->text);
        fflush(stdout);
    }
    return st;
}

static status check(comm *c, const char *what, errbuf *err)
{
    if (strcmp(what, "words") == 0)
        return check_words(c, err);
    return what[0] ? lose_last(c, what, err) : check_all(c, err);
}

int main(int argc, char **argv)
{
    comm *c = NULL;
    errbuf err = {0};
    status st = comm_open(&c, &err);
    if (st == STATUS_OK) {
        st = check(c, argc > 1 ? argv[1] : "", &err);
        if (st == STATUS_OK && c->rank == 0)
            printf("ok %s %d\n", c->ops->name, c->size);
    }
    if (st != STATUS_OK)
        fprintf(stderr, "comm_probe: %s\n", err.text);
    if (st != STATUS_OK && c && !c->lost)
        c->ops->abort(c, (int)st);
    comm_close(&c);
    return (int)st;
}
