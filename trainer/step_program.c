/* Programs of a step; see step_program.h. */
#include "trainer/step_program.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/comm_wait.h"
#include "protocol/log.h"
#include "trainer/clock.h"

#define EAGER_POLLS    2000  /* of an event before the host sleeps between them */
#define SLEEP_NS       20000 /* between two polls after that */
#define CHECK_SECONDS  1.0   /* between two checks for lost peers */
#define RECORD_AT_STEP 1     /* the first one runs as it is called */

static status failed(const step_program *p, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    return errbuf_set(err, st, "backend %s: %s", p->be->ops->name, p->be->ops->last_error(p->be));
}

static bool has_graphs(const step_program *p)
{
    return p->be->ops->graph_begin != NULL;
}

static status allocate(step_program *p, errbuf *err)
{
    const backend_ops *ops = p->be->ops;
    const size_t sums = (size_t)p->shards * sizeof(loss_sums);
    const size_t slots = (size_t)p->slots;
    void *memory[5] = {0};
    TRY(ops->alloc(p->be, sizeof *p->control, &memory[0], err));
    p->control = memory[0];
    TRY(ops->alloc(p->be, sums, &memory[1], err));
    p->sums = memory[1];
    TRY(ops->alloc_shared(p->be, slots * sizeof *p->in, &memory[2], err));
    p->in = memory[2];
    TRY(ops->alloc_shared(p->be, slots * sizeof *p->out, &memory[3], err));
    p->out = memory[3];
    TRY(ops->alloc_shared(p->be, slots * sums, &memory[4], err));
    p->out_sums = memory[4];
    return STATUS_OK;
}

status step_program_init(step_program *p, errbuf *err)
{
    const char *sync = getenv("RINGMASTER_CUDA_SYNC");
    ASSERT(p->segments <= STEP_PROGRAM_MAX && p->slots > STEP_PROGRAM_DEPTH);
    p->replays = has_graphs(p) && !(sync && strcmp(sync, "1") == 0);
    TRY(comm_wait_timeout(&p->timeout, err));
    TRY(allocate(p, err));
    for (int i = 0; i < STEP_PROGRAM_DEPTH && p->be->ops->event_create; i++)
        TRY(p->be->ops->event_create(p->be, &p->done[i], err));
    return STATUS_OK;
}

void step_program_drop_graphs(void *program)
{
    step_program *p = program;
    for (int i = 0; i < STEP_PROGRAM_MAX; i++)
        if (p->graph[i])
            p->be->ops->graph_destroy(&p->graph[i]);
}

void step_program_fini(step_program *p)
{
    if (!p->be)
        return;
    const backend_ops *ops = p->be->ops;
    step_program_drop_graphs(p);
    for (int i = 0; i < STEP_PROGRAM_DEPTH; i++)
        if (p->done[i])
            ops->event_destroy(&p->done[i]);
    ops->release(p->be, p->control);
    ops->release(p->be, p->sums);
    ops->release_shared(p->be, p->in);
    ops->release_shared(p->be, p->out);
    ops->release_shared(p->be, p->out_sums);
    memset(p, 0, sizeof *p);
}

int step_program_depth(const step_program *p)
{
    return has_graphs(p) ? STEP_PROGRAM_DEPTH : 1;
}

step_input *step_program_input(step_program *p)
{
    step_input *in = &p->in[p->launched % (uint64_t)p->slots];
    memset(in, 0, sizeof *in);
    return in;
}

/* ---- launching ---- */

/* Segments first .. end - 1 as one graph. */
static status record(step_program *p, int first, int end, errbuf *err)
{
    const backend_ops *ops = p->be->ops;
    backend_graph *graph = NULL;
    TRY(failed(p, ops->graph_begin(p->be), err));
    status st = STATUS_OK;
    for (int i = first; i < end && st == STATUS_OK; i++)
        st = p->segment[i].run(p->ctx, err);
    if (st == STATUS_OK && p->comm)
        st = p->comm->ops->settle(p->comm, err);
    status ended = ops->graph_end(p->be, &graph);
    if (st == STATUS_OK)
        st = failed(p, ended, err);
    if (st != STATUS_OK && graph) /* an aborted communicator would wait for it */
        ops->graph_destroy(&graph);
    TRY(st);
    p->graph[first] = graph;
    return STATUS_OK;
}

/* The end of the run of recordable segments that begins at `first`. */
static int graph_end_of(const step_program *p, int first)
{
    int end = first;
    while (end < p->segments && p->segment[end].records)
        end++;
    return end;
}

static void log_refusal(const errbuf *why)
{
    struct log log;
    if (log_init(&log, -1, NULL) == STATUS_OK)
        log_write(&log, LOG_LEVEL_WARN, "steps cannot be replayed and run slower: %s", why->text);
}

/* No other rank has recorded what this one could not. */
static bool is_alone(const step_program *p)
{
    return !p->comm || strcmp(p->comm->ops->name, "nccl") != 0;
}

static status run_from(step_program *p, int first, errbuf *err)
{
    for (int i = first; i < p->segments; i++)
        TRY(p->segment[i].run(p->ctx, err));
    return STATUS_OK;
}

static status run_segments(step_program *p, errbuf *err)
{
    const bool replay = p->replays && p->launched >= RECORD_AT_STEP;
    for (int i = 0; i < p->segments;) {
        const int end = replay ? graph_end_of(p, i) : i;
        if (end == i) {
            TRY(p->segment[i].run(p->ctx, err));
            i++;
            continue;
        }
        if (!p->graph[i]) {
            errbuf refused = {0};
            status st = record(p, i, end, &refused);
            if (st != STATUS_OK && is_alone(p)) { /* nothing has run: run it as it is called */
                p->replays = false;
                log_refusal(&refused);
                return run_from(p, i, err);
            }
            if (st != STATUS_OK)
                return errbuf_set(err, st, "%s", refused.text);
        }
        TRY(failed(p, p->be->ops->graph_launch(p->graph[i]), err));
        i = end;
    }
    return STATUS_OK;
}

status step_program_run(step_program *p, errbuf *err)
{
    ASSERT(p->launched - p->waited < (uint64_t)step_program_depth(p));
    TRY(run_segments(p, err));
    backend_event *done = p->done[p->launched % STEP_PROGRAM_DEPTH];
    if (done)
        TRY(failed(p, p->be->ops->event_record(done), err));
    p->launched++;
    if (!done)
        p->waited = p->launched;
    return STATUS_OK;
}

/* ---- waiting ---- */

static status wait_event(step_program *p, backend_event *event, errbuf *err)
{
    const double begin = clock_seconds();
    double checked = begin;
    for (int64_t polls = 0;; polls++) {
        bool is_done = false;
        TRY(failed(p, p->be->ops->event_done(event, &is_done), err));
        if (is_done)
            return STATUS_OK;
        if (polls < EAGER_POLLS) {
            sched_yield();
            continue;
        }
        const struct timespec pause = {0, SLEEP_NS};
        nanosleep(&pause, NULL);
        const double now = clock_seconds();
        if (now - checked < CHECK_SECONDS)
            continue;
        checked = now;
        if (p->comm)
            TRY(p->comm->ops->check(p->comm, p->waited, err));
        if (now - begin > p->timeout)
            return errbuf_set(err, STATUS_ENVIRONMENT,
                              "the device has not finished step %llu within %g s: it is stuck or "
                              "lost (nvidia-smi, dmesg), or RINGMASTER_PEER_TIMEOUT is too short",
                              (unsigned long long)p->waited, p->timeout);
    }
}

status step_program_wait(step_program *p, uint64_t steps, errbuf *err)
{
    ASSERT(steps <= p->launched);
    while (p->waited < steps) {
        TRY(wait_event(p, p->done[p->waited % STEP_PROGRAM_DEPTH], err));
        p->waited++;
    }
    return STATUS_OK;
}

const step_output *step_program_output(const step_program *p, uint64_t step)
{
    ASSERT(step < p->waited && p->waited - step <= (uint64_t)p->slots);
    return &p->out[step % (uint64_t)p->slots];
}

const loss_sums *step_program_sums(const step_program *p, uint64_t step)
{
    ASSERT(step < p->waited && p->waited - step <= (uint64_t)p->slots);
    return p->out_sums + step % (uint64_t)p->slots * (uint64_t)p->shards;
}
