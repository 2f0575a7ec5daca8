/* The training step of one rank; see step.h. */
#include "trainer/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/clock.h"

/* A stretch of the parameter vector with one weight decay. */
typedef struct decay_span {
    int64_t offset, elements;
    float weight_decay;
} decay_span;

/* What one lane works on in a round. */
typedef struct lane_job {
    loader_shard shard;
    bool has_shard;
    loss_sums sums;
    float *grad;  /* param_elements */
    float *stats; /* running_elements */
} lane_job;

struct stepper {
    stepper_options o;
    net_exec *exec;
    int shard, shards_local, shards_total;
    int64_t params, stats; /* elements */
    backend_loss **loss;   /* by lane */
    lane_job *job;         /* by lane */

    /* device */
    float *param, *momentum, *running;
    float *flat;        /* [params | stats | 2]: sums of this rank, after the all-reduce of all */
    float *lane_grad;   /* [lanes][params + stats], or NULL where one lane writes into flat */
    int64_t *exact;     /* [params | 2], exact mode */
    float *shard_stats; /* exact: [shards_local][stats] of this rank */
    float *all_stats;   /* exact: [shards_total][stats] */

    decay_span *span;
    int spans;

    /* sums not collected yet: [STEP_MAX_PENDING][shards_local] */
    sample_sums *pending, *gathered;
    int pending_steps;
    step_times times;
};

/* ---- creation ---- */

static float decay_of(const spec *s, param_kind kind)
{
    bool weights = kind == PARAM_RING || kind == PARAM_CONV || kind == PARAM_FC;
    switch (s->train.decay_on) {
    case DECAY_RING:
        return kind == PARAM_RING ? (float)s->train.weight_decay : 0;
    case DECAY_WEIGHTS:
        return weights ? (float)s->train.weight_decay : 0;
    default:
        return (float)s->train.weight_decay;
    }
}

static void make_spans(stepper *s)
{
    const net *n = s->o.net;
    for (int i = 0; i < n->params; i++) {
        const net_param *p = &n->param[i];
        float decay = decay_of(s->o.spec, p->kind);
        decay_span *last = s->spans ? &s->span[s->spans - 1] : NULL;
        if (last && last->weight_decay == decay && last->offset + last->elements == p->offset)
            last->elements += p->elements;
        else
            s->span[s->spans++] = (decay_span){p->offset, p->elements, decay};
    }
}

static status alloc_floats(stepper *s, int64_t count, float **ret, errbuf *err)
{
    void *memory = NULL;
    TRY(s->o.be->ops->alloc(s->o.be, (size_t)(count + 1) * sizeof(float), &memory, err));
    *ret = memory;
    return STATUS_OK;
}

static status allocate_device(stepper *s, errbuf *err)
{
    TRY(alloc_floats(s, s->params, &s->param, err));
    TRY(alloc_floats(s, s->stats, &s->running, err));
    if (!s->o.training)
        return STATUS_OK;
    TRY(alloc_floats(s, s->params, &s->momentum, err));
    TRY(alloc_floats(s, s->params + s->stats + 2, &s->flat, err));
    bool exact = s->o.spec->train.exact;
    if (exact || s->shards_local > 1)
        TRY(alloc_floats(s, s->o.lanes * (s->params + s->stats), &s->lane_grad, err));
    if (!exact)
        return STATUS_OK;
    void *memory = NULL;
    TRY(s->o.be->ops->alloc(s->o.be, (size_t)(s->params + 2) * sizeof(int64_t), &memory, err));
    s->exact = memory;
    TRY(alloc_floats(s, s->shards_local * s->stats, &s->shard_stats, err));
    return alloc_floats(s, s->shards_total * s->stats, &s->all_stats, err);
}

static status allocate_host(stepper *s, errbuf *err)
{
    size_t lanes = (size_t)s->o.lanes;
    s->loss = calloc(lanes, sizeof *s->loss);
    s->job = calloc(lanes, sizeof *s->job);
    s->span = calloc((size_t)s->o.net->params, sizeof *s->span);
    size_t slots = STEP_MAX_PENDING * (size_t)s->shards_local;
    s->pending = calloc(slots, sizeof *s->pending);
    s->gathered = calloc(slots * (size_t)s->o.comm->size, sizeof *s->gathered);
    if (!s->loss || !s->job || !s->span || !s->pending || !s->gathered)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory preparing the training step");
    return STATUS_OK;
}

static status build_stepper(stepper *s, errbuf *err)
{
    const stepper_options *o = &s->o;
    const spec *sp = o->spec;
    s->shard = (int)sp->train.shard;
    s->shards_total = (int)(sp->train.batch / sp->train.shard);
    s->shards_local = s->shards_total / o->comm->size;
    s->params = o->net->param_elements;
    s->stats = o->net->running_elements;
    TRY(allocate_host(s, err));
    make_spans(s);
    net_exec_options exec = {.batch = s->shard, .lanes = o->lanes, .training = o->training};
    TRY(net_exec_create(o->net, o->be, &exec, &s->exec, err));
    loss_desc loss = {.n = s->shard, .classes = (int)sp->model.classes};
    for (int l = 0; l < o->lanes; l++)
        TRY(o->be->ops->loss_create(o->be, l, &loss, &s->loss[l], err));
    TRY(allocate_device(s, err));
    for (int l = 0; l < o->lanes && o->training; l++) {
        float *grad = s->lane_grad ? s->lane_grad + l * (s->params + s->stats) : s->flat;
        s->job[l].grad = grad;
        s->job[l].stats = grad + s->params;
    }
    return STATUS_OK;
}

status stepper_create(const stepper_options *options, stepper **ret_stepper, errbuf *err)
{
    if (options->comm->size > 1 && !options->be->ops->host_memory)
        return errbuf_set(err, STATUS_BAD_INPUT, "comm %s cannot work on memory of backend %s",
                          options->comm->ops->name, options->be->ops->name);
    stepper *s = calloc(1, sizeof *s);
    if (!s)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory preparing the training step");
    s->o = *options;
    status st = build_stepper(s, err);
    if (st == STATUS_OK) {
        *ret_stepper = s;
        return st;
    }
    stepper_destroy(&s);
    return st;
}

void stepper_destroy(stepper **stepper_p)
{
    if (!stepper_p || !*stepper_p)
        return;
    stepper *s = *stepper_p;
    backend *be = s->o.be;
    void *device[] = {s->param,     s->momentum, s->running,     s->flat,
                      s->lane_grad, s->exact,    s->shard_stats, s->all_stats};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        be->ops->release(be, device[i]);
    for (int l = 0; s->loss && l < s->o.lanes; l++)
        be->ops->loss_destroy(&s->loss[l]);
    net_exec_destroy(&s->exec);
    free(s->loss);
    free(s->job);
    free(s->span);
    free(s->pending);
    free(s->gathered);
    free(s);
    *stepper_p = NULL;
}

/* ---- state ---- */

static status device_status(stepper *s, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    return errbuf_set(err, st, "backend %s: %s", s->o.be->ops->name,
                      s->o.be->ops->last_error(s->o.be));
}

static status copy(stepper *s, bool up, float *device, float *host, int64_t count, errbuf *err)
{
    if (!device || !host || count == 0)
        return STATUS_OK;
    size_t bytes = (size_t)count * sizeof(float);
    return device_status(s,
                         up ? s->o.be->ops->upload(s->o.be, device, host, bytes)
                            : s->o.be->ops->download(s->o.be, host, device, bytes),
                         err);
}

static status copy_state(stepper *s, bool up, const stepper_state *state, errbuf *err)
{
    TRY(copy(s, up, s->param, state->params, s->params, err));
    TRY(copy(s, up, s->running, state->running, s->stats, err));
    return copy(s, up, s->momentum, state->momentum, s->params, err);
}

status stepper_upload(stepper *s, const stepper_state *state, errbuf *err)
{
    return copy_state(s, true, state, err);
}

status stepper_download(stepper *s, const stepper_state *state, errbuf *err)
{
    return copy_state(s, false, state, err);
}

/* ---- one step ---- */

/* Forward, loss, backward and reduce of one shard, on one lane. */
static status train_shard(void *ctx, int lane)
{
    stepper *s = ctx;
    lane_job *job = &s->job[lane];
    if (!job->has_shard)
        return STATUS_OK;
    net_exec *e = s->exec;
    TRY(net_exec_set_input(e, lane, 0, job->shard.images));
    TRY(net_exec_forward_train(e, lane, s->param, job->stats));
    float scale = (float)(1.0 / (double)s->o.spec->train.batch);
    TRY(s->o.be->ops->loss_run(s->loss[lane], net_exec_output(e, lane, 0), job->shard.labels,
                               job->shard.valid, scale, net_exec_output_grad(e, lane, 0),
                               &job->sums));
    TRY(net_exec_backward(e, lane, s->param, job->grad));
    return net_exec_reduce(e, lane, job->grad);
}

static sample_sums sums_of(const lane_job *job)
{
    return (sample_sums){.loss = job->sums.loss,
                         .count = job->sums.count,
                         .top1 = job->sums.top1,
                         .top5 = job->sums.top5,
                         .skipped = job->shard.skipped};
}

/* Adds a finished lane's shard to the rank's sums, in shard order. `index`: among this rank's. */
static status add_shard(stepper *s, lane_job *job, int index, errbuf *err)
{
    const backend_ops *ops = s->o.be->ops;
    backend *be = s->o.be;
    s->pending[(size_t)s->pending_steps * (size_t)s->shards_local + (size_t)index] = sums_of(job);
    if (!isfinite(job->sums.loss))
        return errbuf_set(err, STATUS_NUMERICAL,
                          "the loss is not finite (%g): lower train.lr or add train.warmup",
                          job->sums.loss);
    if (s->o.spec->train.exact) {
        bool ok = false;
        TRY(device_status(s, ops->exact_accumulate(be, s->params, job->grad, s->exact, &ok), err));
        if (!ok)
            return errbuf_set(err, STATUS_NUMERICAL,
                              "a gradient is not finite or at least %g: lower train.lr",
                              (double)EXACT_LIMIT);
        size_t bytes = (size_t)s->stats * sizeof(float);
        return device_status(
            s, ops->upload(be, s->shard_stats + index * s->stats, job->stats, bytes), err);
    }
    if (s->lane_grad) /* several shards on one lane: sum into flat */
        TRY(device_status(s, ops->add(be, s->params + s->stats, s->flat, job->grad, s->flat), err));
    return STATUS_OK;
}

/* Fetches the shards of one round, one a lane. */
static status fetch_round(stepper *s, loader *l, int first, int *ret_lanes, errbuf *err)
{
    double begin = clock_seconds();
    int lanes = s->shards_local - first;
    if (lanes > s->o.lanes)
        lanes = s->o.lanes;
    for (int lane = 0; lane < lanes; lane++) {
        TRY(loader_next(l, &s->job[lane].shard, err));
        s->job[lane].has_shard = true;
    }
    s->times.data += clock_seconds() - begin;
    *ret_lanes = lanes;
    return STATUS_OK;
}

static void release_round(stepper *s, loader *l)
{
    for (int lane = 0; lane < s->o.lanes; lane++) {
        if (s->job[lane].has_shard)
            loader_release(l, &s->job[lane].shard);
        s->job[lane].has_shard = false;
    }
}

static status run_round(stepper *s, loader *l, int first, errbuf *err)
{
    int lanes = 0;
    TRY(fetch_round(s, l, first, &lanes, err));
    double begin = clock_seconds();
    TRY(device_status(s, s->o.be->ops->run_lanes(s->o.be, lanes, train_shard, s), err));
    s->times.compute += clock_seconds() - begin;
    begin = clock_seconds();
    for (int lane = 0; lane < lanes; lane++)
        TRY(add_shard(s, &s->job[lane], first + lane, err));
    s->times.reduce += clock_seconds() - begin;
    return STATUS_OK;
}

/* Everything of a step that a rank does alone. */
static status local_gradient(stepper *s, loader *l, errbuf *err)
{
    backend *be = s->o.be;
    double begin = clock_seconds();
    TRY(device_status(s, net_exec_expand(s->exec, s->param), err));
    s->times.expand += clock_seconds() - begin;
    if (s->exact)
        TRY(device_status(
            s, be->ops->zero(be, s->exact, (size_t)(s->params + 2) * sizeof *s->exact), err));
    else if (s->lane_grad)
        TRY(device_status(
            s, be->ops->zero(be, s->flat, (size_t)(s->params + s->stats) * sizeof *s->flat), err));
    status st = STATUS_OK;
    for (int first = 0; first < s->shards_local && st == STATUS_OK; first += s->o.lanes) {
        st = run_round(s, l, first, err);
        release_round(s, l);
    }
    return st;
}

/* The control word: two elements that every rank adds to. */
typedef struct control {
    double stops, errors;
} control;

static status reduce_exact(stepper *s, control mine, control *ret_all, errbuf *err)
{
    int64_t *word = s->exact + s->params;
    word[0] = (int64_t)mine.stops;
    word[1] = (int64_t)mine.errors;
    TRY(s->o.comm->ops->all_reduce_int64(s->o.comm, s->exact, s->params + 2, err));
    *ret_all = (control){(double)word[0], (double)word[1]};
    int64_t bytes = s->shards_local * s->stats * (int64_t)sizeof(float);
    return s->o.comm->ops->all_gather(s->o.comm, s->shard_stats, bytes, s->all_stats, err);
}

static status reduce_float(stepper *s, control mine, control *ret_all, errbuf *err)
{
    backend *be = s->o.be;
    float word[2] = {(float)mine.stops, (float)mine.errors};
    float *place = s->flat + s->params + s->stats;
    TRY(device_status(s, be->ops->upload(be, place, word, sizeof word), err));
    TRY(s->o.comm->ops->all_reduce_float(s->o.comm, s->flat, s->params + s->stats + 2, err));
    TRY(device_status(s, be->ops->download(be, word, place, sizeof word), err));
    *ret_all = (control){word[0], word[1]};
    return STATUS_OK;
}

/* Exact mode: gradients back to float, statistics summed in shard order. */
static status finish_exact(stepper *s, errbuf *err)
{
    backend *be = s->o.be;
    TRY(device_status(s, be->ops->exact_to_float(be, s->params, s->exact, s->flat), err));
    float *stats = s->flat + s->params;
    TRY(device_status(s, be->ops->upload(be, stats, s->all_stats, (size_t)s->stats * sizeof *stats),
                      err));
    for (int k = 1; k < s->shards_total; k++)
        TRY(device_status(s, be->ops->add(be, s->stats, stats, s->all_stats + k * s->stats, stats),
                          err));
    return STATUS_OK;
}

static status update(stepper *s, double lr, errbuf *err)
{
    backend *be = s->o.be;
    const spec *sp = s->o.spec;
    bool finite = false;
    TRY(device_status(s, be->ops->all_finite(be, s->params, s->flat, &finite), err));
    if (!finite)
        return errbuf_set(err, STATUS_NUMERICAL,
                          "a gradient is not finite: lower train.lr or add train.warmup");
    for (int i = 0; i < s->spans; i++) {
        const decay_span *span = &s->span[i];
        sgd_params p = {.lr = (float)lr,
                        .momentum = (float)sp->train.momentum,
                        .weight_decay = span->weight_decay,
                        .grad_scale = 1,
                        .nesterov = sp->train.nesterov};
        TRY(device_status(s,
                          be->ops->sgd(be, span->elements, s->param + span->offset,
                                       s->flat + span->offset, s->momentum + span->offset, &p),
                          err));
    }
    float take = (float)(BN_MOMENTUM / s->shards_total);
    return device_status(s,
                         be->ops->blend(be, s->stats, s->running, (float)(1 - BN_MOMENTUM),
                                        s->flat + s->params, take),
                         err);
}

status stepper_run(stepper *s, loader *l, double lr, bool stop, bool *ret_stop, errbuf *err)
{
    ASSERT(s->pending_steps < STEP_MAX_PENDING);
    errbuf local = {0};
    status mine = local_gradient(s, l, &local);
    double begin = clock_seconds();
    control sent = {.stops = stop, .errors = mine != STATUS_OK}, all = {0};
    TRY(s->exact ? reduce_exact(s, sent, &all, err) : reduce_float(s, sent, &all, err));
    if (all.errors > 0) {
        status st = comm_agree(s->o.comm, mine, &local);
        return errbuf_set(err, st, "%s", local.text);
    }
    s->times.communicate += clock_seconds() - begin;
    begin = clock_seconds();
    if (s->exact)
        TRY(finish_exact(s, err));
    TRY(update(s, lr, err));
    s->times.update += clock_seconds() - begin;
    s->pending_steps++;
    *ret_stop = all.stops > 0;
    return STATUS_OK;
}

/* ---- sums ---- */

status stepper_collect(stepper *s, sample_sums *sums, double *ret_last, errbuf *err)
{
    size_t local = (size_t)s->shards_local;
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
    return s->pending_steps;
}

/* ---- evaluation ---- */

static status evaluate_shard(void *ctx, int lane)
{
    stepper *s = ctx;
    lane_job *job = &s->job[lane];
    if (!job->has_shard)
        return STATUS_OK;
    net_exec *e = s->exec;
    TRY(net_exec_set_input(e, lane, 0, job->shard.images));
    TRY(net_exec_forward_eval(e, lane, s->param, s->running));
    return s->o.be->ops->loss_run(s->loss[lane], net_exec_output(e, lane, 0), job->shard.labels,
                                  job->shard.valid, 0, NULL, &job->sums);
}

/* This rank's shards into `sums`, one each, in order. */
static status evaluate_local(stepper *s, loader *l, sample_sums *sums,
                             void (*report)(void *, int64_t, int64_t), void *ctx, errbuf *err)
{
    int64_t shards = loader_shards(l);
    TRY(loader_start(l, 0, 0, err));
    TRY(device_status(s, net_exec_expand(s->exec, s->param), err));
    status st = STATUS_OK;
    for (int64_t first = 0; first < shards && st == STATUS_OK; first += s->o.lanes) {
        int lanes = (int)(shards - first < s->o.lanes ? shards - first : s->o.lanes);
        for (int lane = 0; lane < lanes && st == STATUS_OK; lane++) {
            st = loader_next(l, &s->job[lane].shard, err);
            s->job[lane].has_shard = st == STATUS_OK;
        }
        if (st == STATUS_OK)
            st = device_status(s, s->o.be->ops->run_lanes(s->o.be, lanes, evaluate_shard, s), err);
        for (int lane = 0; lane < lanes && st == STATUS_OK; lane++)
            sums[first + lane] = sums_of(&s->job[lane]);
        release_round(s, l);
        if (report)
            report(ctx, first + lanes, shards);
    }
    return st;
}

status stepper_evaluate(stepper *s, loader *l, sample_sums *ret_sums,
                        void (*report)(void *ctx, int64_t done, int64_t total), void *ctx,
                        errbuf *err)
{
    comm *c = s->o.comm;
    /* Ranks may differ by one shard: gather as many as the busiest has. Rank 0 is one. */
    int64_t most = loader_shards(l);
    TRY(c->ops->broadcast(c, &most, sizeof most, 0, err));
    size_t slots = (size_t)(most ? most : 1);
    sample_sums *mine = calloc(slots, sizeof *mine);
    sample_sums *all = calloc(slots * (size_t)c->size, sizeof *all);
    status st = STATUS_OK;
    if (!mine || !all)
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory evaluating");
    else
        st = evaluate_local(s, l, mine, report, ctx, err);
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
    return st;
}

/* ---- what others ask ---- */

int64_t stepper_wire_floats(const stepper *s)
{
    return s->params + s->stats;
}

net_exec *stepper_exec(stepper *s)
{
    return s->exec;
}

const float *stepper_gradient(const stepper *s)
{
    return s->flat;
}

step_times stepper_times(const stepper *s)
{
    return s->times;
}
