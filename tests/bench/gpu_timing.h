/*
 * How gpu_ops times an op of a backend: recorded many times into one graph where the backend has
 * graphs, launched, and waited for; memory that is given back in one go; rows of JSON.
 */
#ifndef RINGMASTER_TESTS_BENCH_GPU_TIMING_H
#define RINGMASTER_TESTS_BENCH_GPU_TIMING_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"

enum {
    MAX_ROUNDS = 99,
    MAX_REPEATS = 4000,
    MAX_MEMORY = 64
};

typedef struct bench {
    const char *backend, *what, *plan, *cache, *write_plan;
    compute_type compute;
    int batch, width, rounds;
    double target; /* seconds that a timed launch takes at least */
    backend *be;
    backend_event *event;
    float *noise; /* host values, many enough for every tensor */
    cJSON *rows;
    void *memory[MAX_MEMORY]; /* what is taken, in order */
    int memories;
} bench;

typedef status (*op)(void *ctx);

static inline void must(status st, const errbuf *err)
{
    if (st == STATUS_OK)
        return;
    fprintf(stderr, "gpu_ops: %s\n", err && err->text[0] ? err->text : status_name(st));
    exit((int)st);
}

/* For ops, whose cause the backend keeps. */
static inline void must_op(const bench *b, status st)
{
    errbuf err = {0};
    if (st != STATUS_OK)
        must(errbuf_set(&err, st, "%s", b->be->ops->last_error(b->be)), &err);
}

static inline bool wanted(const bench *b, const char *what)
{
    return strcmp(b->what, "all") == 0 || strcmp(b->what, what) == 0;
}

static inline size_t element(const bench *b)
{
    return b->compute == COMPUTE_BF16 ? 2 : 4;
}

/* ---- timing ---- */

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void wait_for_ops(bench *b)
{
    bool done = !b->event;
    if (b->event)
        must_op(b, b->be->ops->event_record(b->event));
    while (!done)
        must_op(b, b->be->ops->event_done(b->event, &done));
}

/* Seconds of one run of `repeats` calls. */
static inline double run_once(bench *b, backend_graph *graph, op fn, void *ctx, int repeats)
{
    double start = now();
    if (graph)
        must_op(b, b->be->ops->graph_launch(graph));
    for (int i = 0; !graph && i < repeats; i++)
        must_op(b, fn(ctx));
    wait_for_ops(b);
    return now() - start;
}

static inline backend_graph *record(bench *b, op fn, void *ctx, int repeats)
{
    backend_graph *graph = NULL;
    if (!b->be->ops->graph_begin)
        return NULL;
    must_op(b, b->be->ops->graph_begin(b->be));
    for (int i = 0; i < repeats; i++)
        must_op(b, fn(ctx));
    must_op(b, b->be->ops->graph_end(b->be, &graph));
    return graph;
}

static inline int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median microseconds of one call: enough calls to a launch that its own cost does not count. */
static inline double time_op(bench *b, op fn, void *ctx)
{
    double seconds[MAX_ROUNDS];
    int repeats = 4;
    must_op(b, fn(ctx)); /* what is loaded when first used */
    wait_for_ops(b);
    backend_graph *graph = record(b, fn, ctx, repeats);
    run_once(b, graph, fn, ctx, repeats);
    double each = run_once(b, graph, fn, ctx, repeats) / repeats;
    double enough = b->target / (each > 1e-9 ? each : 1e-9) + 1;
    repeats = enough > MAX_REPEATS ? MAX_REPEATS : (int)enough;
    if (graph)
        b->be->ops->graph_destroy(&graph);
    graph = record(b, fn, ctx, repeats);
    for (int i = -1; i < b->rounds; i++) {
        double taken = run_once(b, graph, fn, ctx, repeats);
        if (i >= 0)
            seconds[i] = taken / repeats;
    }
    if (graph)
        b->be->ops->graph_destroy(&graph);
    qsort(seconds, (size_t)b->rounds, sizeof *seconds, compare_doubles);
    return 1e6 * seconds[b->rounds / 2];
}

/* `count`: how often the op runs in a step. */
static inline void add_row(bench *b, const char *what, const char *name, int count, double us,
                           double bytes, double flops)
{
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "what", what);
    cJSON_AddStringToObject(row, "name", name);
    cJSON_AddNumberToObject(row, "count", count);
    cJSON_AddNumberToObject(row, "us", us);
    if (bytes > 0)
        cJSON_AddNumberToObject(row, "gigabytes_per_second", bytes / us / 1e3);
    if (flops > 0)
        cJSON_AddNumberToObject(row, "teraflops", flops / us / 1e6);
    cJSON_AddItemToArray(b->rows, row);
}

/* ---- memory ---- */

static inline void *new_memory(bench *b, size_t bytes)
{
    void *memory = NULL;
    errbuf err = {0};
    ASSERT(b->memories < MAX_MEMORY);
    must(b->be->ops->alloc(b->be, bytes, &memory, &err), &err);
    b->memory[b->memories++] = memory;
    return memory;
}

static inline float *new_floats(bench *b, int64_t n)
{
    void *memory = new_memory(b, (size_t)n * sizeof(float));
    must_op(b, b->be->ops->upload(b->be, memory, b->noise, (size_t)n * sizeof(float)));
    return memory;
}

static inline float *new_tensor(bench *b, shape s, layout l)
{
    void *memory = new_memory(b, b->be->ops->tensor_bytes(b->be, s, l));
    must_op(b, b->be->ops->pack(b->be, s, l, memory, b->noise));
    return memory;
}

/* Gives back all that was taken since there were `before`. */
static inline void release_since(bench *b, int before)
{
    while (b->memories > before)
        b->be->ops->release(b->be, b->memory[--b->memories]);
}

/* Values around zero; as many as the largest tensor or the largest parameter vector has. */
static inline void make_noise(bench *b)
{
    size_t n = (size_t)b->batch * (size_t)b->width * 1024, least = (size_t)12 << 20;
    n = n > least ? n : least;
    b->noise = malloc(n * sizeof *b->noise);
    if (!b->noise)
        must(STATUS_OUT_OF_MEMORY, NULL);
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        b->noise[i] = (float)(state >> 8) * 0x1p-23f - 1.0f;
    }
}

#endif
