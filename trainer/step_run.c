/*
 * One training step: its ops in three segments, launching them, and judging what came of them. See
 * step.h.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "trainer/clock.h"
#include "trainer/step_internal.h"

/* ---- one step: its ops ---- */

/* Forward, loss, backward and reduce of one shard, on one lane. */
static status train_shard(void *ctx, int lane)
{
    stepper *s = ctx;
    lane_job *job = &s->job[lane];
    net_exec *e = s->exec;
    const int32_t *labels = NULL;
    int valid = 0;
    if (job->shard < 0)
        return STATUS_OK;
    TRY(feed_input(s->feed, e, lane, job->shard, s->control, &labels, &valid));
    TRY(net_exec_forward_train(e, lane, s->param, job->stats));
    float scale = (float)(1.0 / (double)s->o.spec->train.batch);
    TRY(s->o.be->ops->loss_run(s->loss[lane], net_exec_output(e, lane, 0), labels, valid, scale,
                               net_exec_output_grad(e, lane, 0), job->sums));
    TRY(net_exec_backward(e, lane, s->param, job->grad));
    return net_exec_reduce(e, lane, job->grad);
}

/* Adds a finished lane's shard to the rank's sums, in shard order. */
static status add_shard(stepper *s, const lane_job *job)
{
    const backend_ops *ops = s->o.be->ops;
    backend *be = s->o.be;
    if (s->exact) {
        TRY(ops->exact_accumulate(be, s->params, job->grad, s->exact, s->train.control));
        return ops->copy(be, s->shard_stats + job->shard * s->stats, job->stats,
                         (size_t)s->stats * sizeof(float));
    }
    if (s->lane_grad) /* several shards on one lane: sum into flat */
        return ops->add(be, s->params + s->stats, s->flat, job->grad, s->flat);
    return STATUS_OK;
}

/* Where images come packed: the shards of one round, one a lane. */
static status fetch_round(stepper *s, int first, int lanes, errbuf *err)
{
    if (!s->o.be->ops->host_memory)
        return STATUS_OK;
    double begin = clock_seconds();
    int64_t *skipped = s->skipped + s->train.launched % STEP_SLOTS * (uint64_t)s->shards_local;
    for (int lane = 0; lane < lanes; lane++)
        TRY(feed_fetch(s->feed, lane, &skipped[first + lane], err));
    s->times.data += clock_seconds() - begin;
    return STATUS_OK;
}

void step_release_round(stepper *s)
{
    for (int lane = 0; lane < s->o.lanes; lane++)
        feed_release(s->feed, lane);
}

static status run_round(stepper *s, int first, errbuf *err)
{
    int lanes = s->shards_local - first;
    if (lanes > s->o.lanes)
        lanes = s->o.lanes;
    TRY(fetch_round(s, first, lanes, err));
    double begin = clock_seconds();
    for (int lane = 0; lane < s->o.lanes; lane++)
        s->job[lane].shard = lane < lanes ? first + lane : -1;
    for (int lane = 0; lane < lanes; lane++)
        s->job[lane].sums = s->train.sums + first + lane;
    TRY(step_device_status(s, s->o.be->ops->run_lanes(s->o.be, lanes, train_shard, s), err));
    s->times.compute += clock_seconds() - begin;
    begin = clock_seconds();
    for (int lane = 0; lane < lanes; lane++)
        TRY(step_device_status(s, add_shard(s, &s->job[lane]), err));
    s->times.reduce += clock_seconds() - begin;
    return STATUS_OK;
}

/* Everything of a step that a rank does alone. */
static status local_gradient(stepper *s, errbuf *err)
{
    backend *be = s->o.be;
    double begin = clock_seconds();
    TRY(step_device_status(s, net_exec_expand(s->exec, s->param), err));
    s->times.expand += clock_seconds() - begin;
    if (s->exact)
        TRY(step_device_status(
            s, be->ops->zero(be, s->exact, (size_t)(s->params + 2) * sizeof *s->exact), err));
    else if (s->lane_grad)
        TRY(step_device_status(
            s, be->ops->zero(be, s->flat, (size_t)(s->params + s->stats) * sizeof *s->flat), err));
    status st = STATUS_OK;
    for (int first = 0; first < s->shards_local && st == STATUS_OK; first += s->o.lanes) {
        st = run_round(s, first, err);
        step_release_round(s);
    }
    return st;
}

static void *control_word(stepper *s)
{
    return s->exact ? (void *)(s->exact + s->params) : (void *)(s->flat + s->params + s->stats);
}

/* On a host backend a failure of this rank only goes into the word: all ranks leave together. Where
 * ops are recorded, or run later, there is no such moment: the failure is returned. */
status step_gradient_segment(void *ctx, errbuf *err)
{
    stepper *s = ctx;
    backend *be = s->o.be;
    step_control *c = s->train.control;
    TRY(step_device_status(s, be->ops->step_begin(be, c, s->train.in, STEP_SLOTS), err));
    if (be->ops->host_memory) {
        if (s->mine.code == STATUS_OK && local_gradient(s, &s->mine) != STATUS_OK)
            c->failures |= STEP_TOLD;
    } else {
        TRY(local_gradient(s, err));
    }
    return step_device_status(s,
                              be->ops->step_word(be, c, s->train.sums, s->shards_local,
                                                 s->exact != NULL, control_word(s)),
                              err);
}

status step_reduce_segment(void *ctx, errbuf *err)
{
    stepper *s = ctx;
    const comm_device_ops *ops = s->reduce->ops;
    double begin = clock_seconds();
    status st;
    if (s->exact) {
        st = ops->all_reduce_int64(s->reduce, s->exact, s->params + 2, err);
        if (st == STATUS_OK)
            st = ops->all_gather(s->reduce, s->shard_stats,
                                 s->shards_local * s->stats * (int64_t)sizeof(float), s->all_stats,
                                 err);
    } else {
        st = ops->all_reduce_float(s->reduce, s->flat, s->params + s->stats + 2, err);
    }
    s->times.communicate += clock_seconds() - begin;
    return st;
}

/* Exact mode: gradients back to float, statistics summed in shard order. */
static status finish_exact(stepper *s)
{
    backend *be = s->o.be;
    TRY(be->ops->exact_to_float(be, s->params, s->exact, s->flat));
    float *stats = s->flat + s->params;
    TRY(be->ops->copy(be, stats, s->all_stats, (size_t)s->stats * sizeof *stats));
    for (int k = 1; k < s->shards_total; k++)
        TRY(be->ops->add(be, s->stats, stats, s->all_stats + k * s->stats, stats));
    return STATUS_OK;
}

static status update(stepper *s)
{
    backend *be = s->o.be;
    const spec *sp = s->o.spec;
    const step_control *c = s->train.control;
    TRY(be->ops->all_finite(be, s->params, s->flat, s->train.control));
    for (int i = 0; i < s->spans; i++) {
        const decay_span *span = &s->span[i];
        sgd_params p = {.momentum = (float)sp->train.momentum,
                        .weight_decay = span->weight_decay,
                        .grad_scale = 1,
                        .nesterov = sp->train.nesterov};
        TRY(be->ops->sgd(be, span->elements, s->param + span->offset, s->flat + span->offset,
                         s->momentum + span->offset, &p, c));
    }
    float take = (float)(BN_MOMENTUM / s->shards_total);
    return be->ops->blend(be, s->stats, s->running, (float)(1 - BN_MOMENTUM), s->flat + s->params,
                          take, c);
}

status step_update_segment(void *ctx, errbuf *err)
{
    stepper *s = ctx;
    backend *be = s->o.be;
    double begin = clock_seconds();
    TRY(step_device_status(
        s, be->ops->step_judge(be, s->train.control, s->exact != NULL, control_word(s)), err));
    if (s->exact)
        TRY(step_device_status(s, finish_exact(s), err));
    TRY(step_device_status(s, update(s), err));
    TRY(step_device_status(s,
                           be->ops->step_end(be, s->train.control, s->train.sums, s->shards_local,
                                             s->train.out, s->train.out_sums, STEP_SLOTS),
                           err));
    s->times.update += clock_seconds() - begin;
    return STATUS_OK;
}

/* ---- one step: launching and judging ---- */

sample_sums step_sums_of(const loss_sums *sums, int64_t skipped)
{
    return (sample_sums){.loss = sums->loss,
                         .count = sums->count,
                         .top1 = sums->top1,
                         .top5 = sums->top5,
                         .skipped = skipped};
}

/* After a launch or a wait that failed: the device, or a peer, is lost, and no other wait can end.
 * The other ranks are told why, where they are not the reason. */
static status leave(stepper *s, status st, const errbuf *err)
{
    comm *c = s->o.comm;
    s->lost = true;
    if (!s->o.be->ops->host_memory && c->size > 1 && !c->lost) {
        c->ops->give_up(c, err);
        c->lost = true;
    }
    return st;
}

status step_wait(stepper *s, uint64_t steps, errbuf *err)
{
    errbuf own = {0};
    status st = step_program_wait(&s->train, steps, &own);
    if (st == STATUS_OK)
        return st;
    return leave(s, errbuf_set(err, st, "%s", own.text), &own);
}

/* ", first in layer1.0.bn1, forward", or nothing where that cannot be found out. */
static void name_origin(stepper *s, char *text, size_t size)
{
    char where[160] = "";
    errbuf ignored = {0};
    status st = net_exec_blame(s->exec, 0, s->param, s->job[0].stats, s->job[0].grad, where,
                               sizeof where, &ignored);
    text[0] = '\0';
    if (st == STATUS_OK && where[0])
        snprintf(text, size, ", first in %s", where);
}

/* Why this rank's part of a step failed; STATUS_OK where it did not. */
static status own_failure(stepper *s, uint64_t step, const step_output *out, errbuf *err)
{
    char origin[200];
    if (s->mine.code != STATUS_OK)
        return errbuf_set(err, s->mine.code, "%s", s->mine.text);
    /* A sum that is not finite is everybody's, where no rank has said that it is its own. */
    if (!(out->failures & (STEP_LOSS | STEP_REFUSED)) &&
        !(out->failures & STEP_GRADIENT && out->errors == 0))
        return STATUS_OK;
    name_origin(s, origin, sizeof origin);
    const loss_sums *sums = step_program_sums(&s->train, step);
    double loss = 0;
    for (int k = s->shards_local - 1; k >= 0; k--)
        if (!isfinite(sums[k].loss))
            loss = sums[k].loss;
    const long long number = s->number + (long long)step;
    if (out->failures & STEP_LOSS)
        return errbuf_set(err, STATUS_NUMERICAL,
                          "step %lld: the loss is not finite (%g)%s: lower train.lr or add "
                          "train.warmup",
                          number, loss, origin);
    if (out->failures & STEP_REFUSED)
        return errbuf_set(err, STATUS_NUMERICAL,
                          "step %lld: a gradient is not finite or at least %g%s: lower train.lr",
                          number, (double)EXACT_LIMIT, origin);
    return errbuf_set(err, STATUS_NUMERICAL,
                      "step %lld: a gradient is not finite%s: lower train.lr or add train.warmup",
                      number, origin);
}

/* Looks at the outcome of the steps before `end`, which are done. */
static status judge(stepper *s, uint64_t end, errbuf *err)
{
    for (; s->judged < end; s->judged++) {
        const step_output *out = step_program_output(&s->train, s->judged);
        if (out->halted) {
            errbuf mine = {0};
            status st = own_failure(s, s->judged, out, &mine);
            st = comm_agree(s->o.comm, st, &mine);
            ASSERT(st != STATUS_OK); /* the word said that some rank has one */
            return errbuf_set(err, st, "%s", mine.text);
        }
        if (out->stops > 0 && !s->has_stop) {
            s->has_stop = true;
            s->stop_step = s->judged;
        }
        const loss_sums *sums = step_program_sums(&s->train, s->judged);
        const size_t local = (size_t)s->shards_local;
        for (size_t k = 0; k < local; k++)
            s->pending[(size_t)s->pending_steps * local + k] =
                step_sums_of(&sums[k], s->skipped[s->judged % STEP_SLOTS * local + k]);
        s->pending_steps++;
    }
    return STATUS_OK;
}

status stepper_ready(stepper *s, bool *ret_stop, errbuf *err)
{
    const uint64_t depth = (uint64_t)step_program_depth(&s->train), launched = s->train.launched;
    const uint64_t end = launched >= depth ? launched + 1 - depth : 0;
    *ret_stop = false;
    if (end == 0)
        return STATUS_OK;
    TRY(step_wait(s, end, err));
    TRY(judge(s, end, err));
    *ret_stop = s->has_stop && s->stop_step < end;
    return STATUS_OK;
}

status stepper_run(stepper *s, feed *f, double lr, bool stop, errbuf *err)
{
    ASSERT(stepper_pending(s) < STEP_MAX_PENDING);
    step_program *p = &s->train;
    const bool waits = !s->o.be->ops->host_memory;
    step_input *in = step_program_input(p);
    int64_t *skipped = s->skipped + p->launched % STEP_SLOTS * (uint64_t)s->shards_local;
    if (s->train_feed != f) /* recorded with the feed's addresses */
        step_program_drop_graphs(p);
    s->train_feed = s->feed = f;
    s->control = p->control;
    if (waits && s->mine.code == STATUS_OK) {
        double begin = clock_seconds();
        in->error = feed_bring(f, p->launched, in, skipped, &s->mine) != STATUS_OK;
        s->times.data += clock_seconds() - begin;
    }
    in->lr = (float)lr;
    in->stop = stop;
    errbuf own = {0};
    status st = step_program_run(p, &own);
    if (st != STATUS_OK)
        return leave(s, errbuf_set(err, st, "%s", own.text), &own);
    return step_program_depth(p) == 1 ? judge(s, p->launched, err) : STATUS_OK;
}

/* ---- sums ---- */

status stepper_collect(stepper *s, sample_sums *sums, double *ret_last, errbuf *err)
{
    size_t local = (size_t)s->shards_local;
    TRY(step_wait(s, s->train.launched, err));
    TRY(judge(s, s->train.launched, err));
    int64_t bytes = (int64_t)((size_t)s->pending_steps * local * sizeof *s->pending);
    TRY(s->o.comm->ops->all_gather(s->o.comm, s->pending, bytes, s->gathered, err));
    for (int step = 0; step < s->pending_steps; step++) {
        sample_sums total = {0};
        for (int rank = 0; rank < s->o.comm->size; rank++)
            for (size_t k = 0; k < local; k++) {
                size_t at = ((size_t)rank * (size_t)s->pending_steps + (size_t)step) * local + k;
                sample_sums_add(&total, &s->gathered[at]);
            }
        sample_sums_add(sums, &total);
        if (ret_last && step == s->pending_steps - 1)
            *ret_last = total.loss / (double)total.count;
    }
    s->pending_steps = 0;
    return STATUS_OK;
}

int stepper_pending(const stepper *s)
{
    return s->pending_steps + (int)(s->train.launched - s->judged);
}
