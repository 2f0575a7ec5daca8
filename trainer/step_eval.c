/* Evaluation on the step's executor; see step.h. */
#include <stdlib.h>

#include "trainer/step_internal.h"

static status evaluate_shard(void *ctx, int lane)
{
    stepper *s = ctx;
    lane_job *job = &s->job[lane];
    net_exec *e = s->exec;
    const int32_t *labels = NULL;
    int valid = 0;
    if (job->shard < 0)
        return STATUS_OK;
    TRY(feed_input(s->feed, e, lane, job->shard, s->control, &labels, &valid));
    TRY(net_exec_forward_eval(e, lane, s->param, s->running));
    return s->o.be->ops->loss_run(s->loss[lane], net_exec_output(e, lane, 0), labels, valid, 0,
                                  NULL, job->sums);
}

/* One round of lanes; with one lane, one shard. */
status step_evaluate_segment(void *ctx, errbuf *err)
{
    stepper *s = ctx;
    backend *be = s->o.be;
    step_program *p = &s->eval;
    TRY(step_device_status(s, be->ops->step_begin(be, p->control, p->in, STEP_SLOTS), err));
    for (int lane = 0; lane < s->o.lanes; lane++) {
        s->job[lane].shard = lane < s->eval_lanes ? lane : -1;
        s->job[lane].sums = p->sums + lane;
    }
    TRY(step_device_status(s, be->ops->run_lanes(be, s->eval_lanes, evaluate_shard, s), err));
    return step_device_status(
        s, be->ops->step_end(be, p->control, p->sums, p->shards, p->out, p->out_sums, STEP_SLOTS),
        err);
}

/* Brings the shards of one round and launches it. */
static status evaluate_round(stepper *s, int64_t first, int lanes, int64_t *skipped, errbuf *err)
{
    step_program *p = &s->eval;
    const uint64_t depth = (uint64_t)step_program_depth(p);
    if (p->launched >= depth)
        TRY(step_program_wait(p, p->launched + 1 - depth, err));
    step_input *in = step_program_input(p);
    s->eval_lanes = lanes;
    if (!s->o.be->ops->host_memory)
        TRY(feed_bring(s->feed, p->launched, in, skipped + first, err));
    status st = STATUS_OK;
    for (int lane = 0; lane < lanes && s->o.be->ops->host_memory && st == STATUS_OK; lane++)
        st = feed_fetch(s->feed, lane, &skipped[first + lane], err);
    if (st == STATUS_OK)
        st = step_program_run(p, err);
    step_release_round(s);
    return st;
}

/* Sums of rounds that are done and not read yet; round r holds shards r * lanes, ... */
static status read_rounds(stepper *s, uint64_t base, uint64_t *read, int64_t shards,
                          const int64_t *skipped, sample_sums *sums, errbuf *err)
{
    TRY(step_program_wait(&s->eval, s->eval.launched, err));
    for (; *read < s->eval.launched; ++*read) {
        const loss_sums *round = step_program_sums(&s->eval, *read);
        const int64_t first = (int64_t)(*read - base) * s->o.lanes;
        for (int lane = 0; lane < s->o.lanes && first + lane < shards; lane++)
            sums[first + lane] = step_sums_of(&round[lane], skipped[first + lane]);
    }
    return STATUS_OK;
}

/* This rank's shards into `sums`, one each, in order. */
static status evaluate_local(stepper *s, feed *f, sample_sums *sums, int64_t *skipped,
                             void (*report)(void *, int64_t, int64_t), void *ctx, errbuf *err)
{
    const int64_t shards = feed_shards(f);
    const uint64_t base = s->eval.launched;
    uint64_t read = base;
    TRY(step_wait(s, s->train.launched, err));
    s->feed = f;
    s->control = s->eval.control;
    if (s->eval_feed != f) /* recorded with the feed's addresses */
        step_program_drop_graphs(&s->eval);
    s->eval_feed = f;
    TRY(feed_start(f, 0, 0, err));
    TRY(step_device_status(s, net_exec_expand(s->exec, s->param), err));
    for (int64_t first = 0; first < shards; first += s->o.lanes) {
        int lanes = (int)(shards - first < s->o.lanes ? shards - first : s->o.lanes);
        TRY(evaluate_round(s, first, lanes, skipped, err));
        if (s->eval.launched - read == STEP_SLOTS || first + lanes == shards)
            TRY(read_rounds(s, base, &read, shards, skipped, sums, err));
        if (report)
            report(ctx, first + lanes, shards);
    }
    return STATUS_OK;
}

status stepper_evaluate(stepper *s, feed *f, sample_sums *ret_sums,
                        void (*report)(void *ctx, int64_t done, int64_t total), void *ctx,
                        errbuf *err)
{
    comm *c = s->o.comm;
    /* Ranks may differ by one shard: gather as many as the busiest has. Rank 0 is one. */
    int64_t most = feed_shards(f);
    TRY(c->ops->broadcast(c, &most, sizeof most, 0, err));
    size_t slots = (size_t)(most ? most : 1);
    sample_sums *mine = calloc(slots, sizeof *mine);
    sample_sums *all = calloc(slots * (size_t)c->size, sizeof *all);
    int64_t *skipped = calloc(slots, sizeof *skipped);
    status st = STATUS_OK;
    if (!mine || !all || !skipped)
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory evaluating");
    else
        st = evaluate_local(s, f, mine, skipped, report, ctx, err);
    TRY_GOTO(comm_agree(c, st, err), st, cleanup);
    ASSERT(mine && all); /* or comm_agree had said so */
    TRY_GOTO(c->ops->all_gather(c, mine, most * (int64_t)sizeof *mine, all, err), st, cleanup);
    sample_sums total = {0};
    for (int64_t k = 0; k < most; k++) /* shard k * size + rank: in shard order */
        for (int rank = 0; rank < c->size; rank++)
            sample_sums_add(&total, &all[(int64_t)rank * most + k]);
    *ret_sums = total;
cleanup:
    free(mine);
    free(all);
    free(skipped);
    return st;
}
