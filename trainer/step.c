/* The training step of one rank: creation, state; see step.h. */
#include <stdlib.h>
#include <string.h>

#include "kernels/comm_wait.h"
#include "trainer/step_internal.h"

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
    size_t lanes = (size_t)s->o.lanes, local = (size_t)s->shards_local;
    s->loss = calloc(lanes, sizeof *s->loss);
    s->job = calloc(lanes, sizeof *s->job);
    s->span = calloc((size_t)s->o.net->params, sizeof *s->span);
    s->skipped = calloc(STEP_SLOTS * local, sizeof *s->skipped);
    s->pending = calloc(STEP_MAX_PENDING * local, sizeof *s->pending);
    s->gathered = calloc(STEP_MAX_PENDING * local * (size_t)s->o.comm->size, sizeof *s->gathered);
    if (!s->loss || !s->job || !s->span || !s->skipped || !s->pending || !s->gathered)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory preparing the training step");
    return STATUS_OK;
}

static status open_reduce(stepper *s, errbuf *err)
{
    const comm_device_options o = {
        .host = s->o.comm,
        .be = s->o.be,
        .exact = s->o.spec->train.exact,
        .elements = s->params + s->stats + 2,
    };
    return comm_device_open(&o, &s->reduce, err);
}

static status open_evaluation(stepper *s, errbuf *err)
{
    s->eval_segment[0] = (step_segment){step_evaluate_segment, true};
    s->eval = (step_program){
        .be = s->o.be,
        .segment = s->eval_segment,
        .segments = 1,
        .ctx = s,
        .shards = s->o.lanes,
        .slots = STEP_SLOTS,
    };
    return step_program_init(&s->eval, err);
}

status stepper_connect(stepper *s, errbuf *err)
{
    if (!s->o.training)
        return STATUS_OK;
    TRY(comm_agree(s->o.comm, open_reduce(s, err), err));
    s->train_segment[0] = (step_segment){step_gradient_segment, true};
    s->train_segment[1] = (step_segment){step_reduce_segment, s->reduce->ops->records};
    s->train_segment[2] = (step_segment){step_update_segment, true};
    s->train = (step_program){
        .be = s->o.be,
        .comm = s->reduce,
        .segment = s->train_segment,
        .segments = 3,
        .ctx = s,
        .shards = s->shards_local,
        .slots = STEP_SLOTS,
    };
    status st = step_program_init(&s->train, err);
    void *reduced = s->exact ? (void *)s->exact : (void *)s->flat;
    const size_t element = s->exact ? sizeof *s->exact : sizeof *s->flat;
    const int64_t count = s->params + 2 + (s->exact ? 0 : s->stats);
    if (st == STATUS_OK && s->reduce->ops->use_buffer)
        st = s->reduce->ops->use_buffer(s->reduce, reduced, count * (int64_t)element, err);
    TRY(comm_agree(s->o.comm, st, err));
    if (s->o.be->ops->host_memory)
        return STATUS_OK;
    /* From here on ranks work in step: one that does not come any more is found out. */
    double patience = 0;
    TRY(comm_agree(s->o.comm, comm_wait_timeout(&patience, err), err));
    s->o.comm->patience = patience;
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
    TRY(open_evaluation(s, err));
    for (int l = 0; l < o->lanes && o->training; l++) {
        float *grad = s->lane_grad ? s->lane_grad + l * (s->params + s->stats) : s->flat;
        s->job[l].grad = grad;
        s->job[l].stats = grad + s->params;
    }
    return STATUS_OK;
}

status stepper_create(const stepper_options *options, stepper **ret_stepper, errbuf *err)
{
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

static void drop_graphs(void *ctx)
{
    stepper *s = ctx;
    step_program_drop_graphs(&s->train);
    step_program_drop_graphs(&s->eval);
}

/* Graphs, then what they used, the communicator among it. */
static void close_programs(stepper *s)
{
    errbuf ignored = {0};
    if (!s->lost && s->train.be)
        s->lost = step_program_wait(&s->train, s->train.launched, &ignored) != STATUS_OK;
    if (!s->lost && s->eval.be)
        s->lost = step_program_wait(&s->eval, s->eval.launched, &ignored) != STATUS_OK;
    s->lost |= s->o.comm->lost;
    if (s->lost && s->reduce)
        s->o.be->dead |= !s->reduce->ops->abandon(s->reduce, drop_graphs, s);
    step_program_fini(&s->train);
    step_program_fini(&s->eval);
    comm_device_close(&s->reduce);
}

void stepper_destroy(stepper **stepper_p)
{
    if (!stepper_p || !*stepper_p)
        return;
    stepper *s = *stepper_p;
    backend *be = s->o.be;
    close_programs(s);
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
    free(s->skipped);
    free(s->pending);
    free(s->gathered);
    free(s);
    *stepper_p = NULL;
}

/* ---- state ---- */

status step_device_status(stepper *s, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    return errbuf_set(err, st, "backend %s: %s", s->o.be->ops->name,
                      s->o.be->ops->last_error(s->o.be));
}

static status copy_floats(stepper *s, bool up, float *device, float *host, int64_t count,
                          errbuf *err)
{
    if (!device || !host || count == 0)
        return STATUS_OK;
    size_t bytes = (size_t)count * sizeof(float);
    return step_device_status(s,
                              up ? s->o.be->ops->upload(s->o.be, device, host, bytes)
                                 : s->o.be->ops->download(s->o.be, host, device, bytes),
                              err);
}

/* All steps that were launched are done before the host reads or writes what they work on. */
static status copy_state(stepper *s, bool up, const stepper_state *state, errbuf *err)
{
    TRY(step_wait(s, s->train.launched, err));
    TRY(copy_floats(s, up, s->param, state->params, s->params, err));
    TRY(copy_floats(s, up, s->running, state->running, s->stats, err));
    return copy_floats(s, up, s->momentum, state->momentum, s->params, err);
}

void stepper_count_from(stepper *s, int64_t step)
{
    s->number = step - (int64_t)s->train.launched;
}

status stepper_upload(stepper *s, const stepper_state *state, errbuf *err)
{
    return copy_state(s, true, state, err);
}

status stepper_download(stepper *s, const stepper_state *state, errbuf *err)
{
    return copy_state(s, false, state, err);
}

/* ---- what others ask ---- */

bool stepper_is_replayed(const stepper *s)
{
    return s->train.replays;
}

int64_t stepper_wire_floats(const stepper *s)
{
    return s->params + s->stats;
}

net_exec *stepper_exec(stepper *s)
{
    return s->exec;
}

const comm_device *stepper_comm(const stepper *s)
{
    return s->reduce;
}

const float *stepper_gradient(const stepper *s)
{
    return s->flat;
}

step_times stepper_times(const stepper *s)
{
    return s->times;
}
