/*
 * A rank of a world that reduces on a backend's memory (comm_device.h), on any backend: what suites
 * and gpu-check run under mpirun.
 *
 * device_probe BACKEND DEVICE [stops]: DEVICE is a number, or `local` for the local rank. Sums that
 * are whole are compared with what they must be, sums that round with themselves on a second run
 * and with the other ranks'; where calls can be recorded, they are. Rank 0 prints "ok KIND RANKS".
 * `stops`: the last rank stops for ever before the collective, the others name it and leave.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/comm_device.h"
#include "kernels/comm_wait.h"

#define REQUIRE(condition, ...)                                    \
    do {                                                           \
        if (!(condition))                                          \
            return errbuf_set(err, STATUS_NUMERICAL, __VA_ARGS__); \
    } while (0)

#define MOST 300001 /* elements: more than one piece of what is staged */

typedef struct probe {
    comm *host;
    backend *be;
    comm_device *c;
    float *floats; /* device */
    int64_t *whole;
    char *gathered;
    float *mine, *again; /* host */
    int64_t *mine_whole;
    backend_graph *graph;
    backend_event *event;
    int64_t count;
} probe;

static status from_backend(probe *p, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    return errbuf_set(err, st, "backend %s: %s", p->be->ops->name, p->be->ops->last_error(p->be));
}

/* The collectives of a step. */
static status reduce_all(probe *p, errbuf *err)
{
    const comm_device_ops *ops = p->c->ops;
    TRY(ops->all_reduce_float(p->c, p->floats, p->count, err));
    TRY(ops->all_reduce_int64(p->c, p->whole, p->count, err));
    return ops->all_gather(p->c, p->whole, 8 * p->count, p->gathered, err);
}

/* Once recorded, it is launched again and again. */
static status record(probe *p, errbuf *err)
{
    const backend_ops *ops = p->be->ops;
    if (!p->c->ops->records || !ops->graph_begin || p->graph)
        return STATUS_OK;
    TRY(from_backend(p, ops->graph_begin(p->be), err));
    status st = reduce_all(p, err);
    if (st == STATUS_OK)
        st = p->c->ops->settle(p->c, err);
    const status ended = ops->graph_end(p->be, &p->graph);
    return st != STATUS_OK ? st : from_backend(p, ended, err);
}

static status wait_until_done(probe *p, errbuf *err)
{
    const backend_ops *ops = p->be->ops;
    bool is_done = ops->event_create == NULL;
    int tries = 0;
    if (!is_done && !p->event)
        TRY(ops->event_create(p->be, &p->event, err));
    if (!is_done)
        TRY(from_backend(p, ops->event_record(p->event), err));
    while (!is_done) {
        TRY(p->c->ops->check(p->c, 1, err));
        comm_wait_nap(&tries);
        TRY(from_backend(p, ops->event_done(p->event, &is_done), err));
    }
    return STATUS_OK;
}

/* Uploads what this rank has, reduces, downloads. */
static status run(probe *p, errbuf *err)
{
    const backend_ops *ops = p->be->ops;
    const size_t bytes = (size_t)p->count * sizeof *p->mine;
    TRY(record(p, err));
    TRY(from_backend(p, ops->upload(p->be, p->floats, p->mine, bytes), err));
    TRY(from_backend(p, ops->upload(p->be, p->whole, p->mine_whole, 2 * bytes), err));
    if (p->graph)
        TRY(from_backend(p, ops->graph_launch(p->graph), err));
    else
        TRY(reduce_all(p, err));
    TRY(wait_until_done(p, err));
    TRY(from_backend(p, ops->download(p->be, p->mine, p->floats, bytes), err));
    return from_backend(p, ops->download(p->be, p->mine_whole, p->whole, 2 * bytes), err);
}

static status check_whole(probe *p, errbuf *err)
{
    const int size = p->host->size;
    const int64_t ranks = (int64_t)size * (size + 1) / 2;
    for (int64_t i = 0; i < p->count; i++) {
        p->mine[i] = (float)((p->host->rank + 1) * (i % 1000));
        p->mine_whole[i] = -(p->host->rank + 1) * (i << 33);
    }
    TRY(run(p, err));
    for (int64_t i = 0; i < p->count; i++)
        REQUIRE(p->mine[i] == (float)(ranks * (i % 1000)) && p->mine_whole[i] == -ranks * (i << 33),
                "sum %" PRId64 ": %g and %" PRId64, i, (double)p->mine[i], p->mine_whole[i]);
    int64_t last[2] = {0};
    for (int r = 0; r < size; r++) {
        const char *from = p->gathered + 8 * ((r + 1) * p->count - 2);
        TRY(from_backend(p, p->be->ops->download(p->be, last, from, sizeof last), err));
        REQUIRE(last[1] == p->mine_whole[p->count - 1], "gathered of rank %d: %" PRId64, r,
                last[1]);
    }
    return STATUS_OK;
}

/* Sums that round: the same bits again, and on all ranks. */
static status check_bits(probe *p, errbuf *err)
{
    const size_t bytes = (size_t)p->count * sizeof *p->mine;
    for (int run_number = 0; run_number < 2; run_number++) {
        uint32_t x = 12345u + (uint32_t)p->host->rank;
        for (int64_t i = 0; i < p->count; i++) {
            x = x * 1664525u + 1013904223u;
            p->mine[i] = (float)(int32_t)x * (i % 2 ? 1e-6f : 1e3f);
        }
        TRY(run(p, err));
        if (run_number == 0)
            memcpy(p->again, p->mine, bytes);
    }
    REQUIRE(memcmp(p->again, p->mine, bytes) == 0, "other bits on the second run");
    TRY(p->host->ops->broadcast(p->host, p->again, (int64_t)bytes, 0, err));
    REQUIRE(memcmp(p->again, p->mine, bytes) == 0, "other bits than rank 0");
    return STATUS_OK;
}

static status check_all(probe *p, errbuf *err)
{
    static const int64_t counts[] = {2, 1000, MOST};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        p->count = counts[i];
        TRY(check_whole(p, err));
        TRY(check_bits(p, err));
        if (p->graph)
            p->be->ops->graph_destroy(&p->graph);
    }
    return STATUS_OK;
}

static void destroy_graph(void *ctx)
{
    probe *p = ctx;
    if (p->graph)
        p->be->ops->graph_destroy(&p->graph);
}

/* Of a world that works, the last rank stops. */
static status lose_last(probe *p, errbuf *err)
{
    p->count = 1000;
    TRY(check_whole(p, err));
    TRY(comm_wait_timeout(&p->host->patience, err));
    while (p->host->rank == p->host->size - 1)
        pause();
    const status st = check_whole(p, err);
    REQUIRE(st != STATUS_OK && p->host->lost, "summed without the last rank");
    if (p->host->rank == 0) {
        printf("%s\n", err->text);
        fflush(stdout);
    }
    if (!p->c->ops->abandon(p->c, destroy_graph, p))
        _exit((int)st);
    return st;
}

static status open_probe(probe *p, const char *name, const char *device, errbuf *err)
{
    const backend_options o = {.threads = 1,
                               .lanes = 1,
                               .device = strcmp(device, "local") == 0 ? p->host->local_rank
                                                                      : atoi(device)};
    status st = backend_open(name, &o, &p->be, err);
    TRY(comm_agree(p->host, st, err));
    const comm_device_options co = {.host = p->host, .be = p->be, .elements = MOST};
    TRY(comm_device_open(&co, &p->c, err));
    void *memory[3] = {NULL};
    const size_t bytes[3] = {4 * MOST, 8 * MOST, 8 * (size_t)MOST * (size_t)p->host->size};
    for (int i = 0; i < 3 && st == STATUS_OK; i++)
        st = p->be->ops->alloc(p->be, bytes[i], &memory[i], err);
    p->floats = memory[0];
    p->whole = memory[1];
    p->gathered = memory[2];
    p->mine = calloc(MOST, sizeof *p->mine);
    p->again = calloc(MOST, sizeof *p->again);
    p->mine_whole = calloc(MOST, sizeof *p->mine_whole);
    if (st == STATUS_OK && (!p->mine || !p->again || !p->mine_whole))
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory");
    if (st == STATUS_OK && p->c->ops->use_buffer)
        st = p->c->ops->use_buffer(p->c, p->floats, 4 * MOST, err);
    return st;
}

static void close_probe(probe *p)
{
    if (p->event)
        p->be->ops->event_destroy(&p->event);
    comm_device_close(&p->c);
    if (p->be) {
        p->be->ops->release(p->be, p->floats);
        p->be->ops->release(p->be, p->whole);
        p->be->ops->release(p->be, p->gathered);
        p->be->ops->close(p->be);
    }
    free(p->mine);
    free(p->again);
    free(p->mine_whole);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return STATUS_BAD_INPUT;
    probe p = {0};
    errbuf err = {0};
    status st = comm_open(&p.host, &err);
    if (st == STATUS_OK)
        st = open_probe(&p, argv[1], argv[2], &err);
    if (st == STATUS_OK)
        st = argc > 3 ? lose_last(&p, &err) : check_all(&p, &err);
    if (st == STATUS_OK && p.host->rank == 0)
        printf("ok %s %d\n", p.c->ops->name, p.host->size);
    if (st != STATUS_OK)
        fprintf(stderr, "device_probe: %s\n", err.text);
    if (st != STATUS_OK && p.host && !p.host->lost)
        p.host->ops->abort(p.host, (int)st);
    close_probe(&p);
    comm_close(&p.host);
    return (int)st;
}
