/* The executor's schedule; see exec_schedule.h. */
#include "trainer/net/exec_schedule.h"

#include <stdlib.h>
#include <string.h>

/* Most gradients that can meet at one tensor: as many as it has readers, plus one as an output. */
#define MAX_CONTRIBUTIONS 64

/* Gradients that have reached a tensor so far, last reader first. */
typedef struct contributions {
    int item[MAX_CONTRIBUTIONS];
    int count;
} contributions;

typedef struct planner {
    const net *net;
    const exec_sizes *sizes;
    exec_schedule *s;
    int item_room, add_room;
    bool *shared;         /* by item: read by more than one consumer, so nobody may write over it */
    contributions *grads; /* by tensor */
    int *readers;         /* by tensor */
    bool *is_output;      /* by tensor */
    bool in_place;        /* BN's backward may write over what it reads */
} planner;

static status out_of_memory(errbuf *err)
{
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory planning the network's buffers");
}

static size_t tensor_bytes(const planner *p, int tensor)
{
    const net_tensor *t = &p->net->tensor[tensor];
    shape s = t->shape;
    s.n = p->sizes->batch;
    if (p->sizes->be)
        return p->sizes->be->ops->tensor_bytes(p->sizes->be, s, t->layout);
    return (size_t)shape_elements(s) * sizeof(float);
}

static status new_item(planner *p, size_t bytes, int time, int *ret_item, errbuf *err)
{
    exec_schedule *s = p->s;
    if (s->item_count == p->item_room) {
        int room = p->item_room ? 2 * p->item_room : 64;
        memory_item *items = realloc(s->items, (size_t)room * sizeof *items);
        if (!items)
            return out_of_memory(err);
        s->items = items;
        bool *shared = realloc(p->shared, (size_t)room * sizeof *shared);
        if (!shared)
            return out_of_memory(err);
        p->shared = shared;
        p->item_room = room;
    }
    s->items[s->item_count] = (memory_item){.bytes = bytes, .first = time, .last = time};
    p->shared[s->item_count] = false;
    *ret_item = s->item_count++;
    return STATUS_OK;
}

static void touch(planner *p, int item, int time)
{
    if (item == NO_ITEM)
        return;
    ASSERT(p->s->items != NULL); /* `item` is one of them */
    memory_item *i = &p->s->items[item];
    if (time < i->first)
        i->first = time;
    if (time > i->last)
        i->last = time;
}

static status new_add(planner *p, exec_add add, errbuf *err)
{
    exec_schedule *s = p->s;
    if (s->add_count == p->add_room) {
        int room = p->add_room ? 2 * p->add_room : 8;
        exec_add *adds = realloc(s->adds, (size_t)room * sizeof *adds);
        if (!adds)
            return out_of_memory(err);
        s->adds = adds;
        p->add_room = room;
    }
    s->adds[s->add_count++] = add;
    return STATUS_OK;
}

static status contribute(planner *p, int tensor, int item, errbuf *err)
{
    contributions *c = &p->grads[tensor];
    if (c->count == MAX_CONTRIBUTIONS)
        return errbuf_set(err, STATUS_BAD_INPUT, "tensor %d has more than %d readers", tensor,
                          MAX_CONTRIBUTIONS);
    c->item[c->count++] = item;
    return STATUS_OK;
}

static bool wants_gradient(const planner *p, int tensor)
{
    return p->net->tensor[tensor].producer >= 0;
}

/* Sums gradients pairwise until at most `most` are left. */
static status merge_contributions(planner *p, int node, int tensor, int most, errbuf *err)
{
    contributions *c = &p->grads[tensor];
    int time = 2 * p->net->nodes - node;
    while (c->count > most) {
        int a = c->item[0], b = c->item[1], to = a;
        if (p->shared[a] && !p->shared[b])
            to = b;
        else if (p->shared[a])
            TRY(new_item(p, tensor_bytes(p, tensor), time, &to, err));
        TRY(new_add(p, (exec_add){node, a, b, to, tensor}, err));
        touch(p, a, time);
        touch(p, b, time);
        touch(p, to, time);
        c->item[0] = to;
        c->count--;
        memmove(&c->item[1], &c->item[2], (size_t)(c->count - 1) * sizeof c->item[0]);
    }
    return STATUS_OK;
}

/* A BN may leave dx in its input's buffer when nothing else will read that buffer again. */
static bool may_overwrite_input(const planner *p, int tensor)
{
    if (!p->in_place)
        return false;
    int producer = p->net->tensor[tensor].producer;
    if (producer < 0 || p->readers[tensor] != 1 || p->is_output[tensor])
        return false;
    const net_node *n = &p->net->node[producer];
    return n->kind != NODE_BN || !n->bn.relu; /* a ReLU's mask is its output */
}

static status backward_bn(planner *p, int i, errbuf *err)
{
    const net_node *n = &p->net->node[i];
    exec_step *s = &p->s->steps[i];
    int time = 2 * p->net->nodes - i;
    /* NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Branch): new_item sets its element */
    if (p->shared[s->dy1] && s->dy2 != NO_ITEM && !p->shared[s->dy2]) {
        int swap = s->dy1;
        s->dy1 = s->dy2;
        s->dy2 = swap;
    }
    s->dz = s->dy1;
    if (!p->in_place && n->inputs == 1)
        s->dz = NO_ITEM; /* nobody reads it */
    else if (p->shared[s->dy1] || !p->in_place)
        TRY(new_item(p, tensor_bytes(p, n->output), time, &s->dz, err));
    touch(p, s->x, time);
    if (n->bn.relu)
        touch(p, s->y, time);
    touch(p, s->dz, time);
    if (may_overwrite_input(p, n->input[0]))
        s->dx = s->x;
    else
        TRY(new_item(p, tensor_bytes(p, n->input[0]), time, &s->dx, err));
    if (wants_gradient(p, n->input[0]))
        TRY(contribute(p, n->input[0], s->dx, err));
    if (n->inputs == 2 && wants_gradient(p, n->input[1]))
        TRY(contribute(p, n->input[1], s->dz, err));
    return STATUS_OK;
}

static status backward_add(planner *p, int i, errbuf *err)
{
    const net_node *n = &p->net->node[i];
    exec_step *s = &p->s->steps[i];
    bool first = wants_gradient(p, n->input[0]), second = wants_gradient(p, n->input[1]);
    if (first)
        TRY(contribute(p, n->input[0], s->dy1, err));
    if (second)
        TRY(contribute(p, n->input[1], s->dy1, err));
    if (first && second)
        p->shared[s->dy1] = true;
    return STATUS_OK;
}

static status backward_node(planner *p, int i, errbuf *err)
{
    const net_node *n = &p->net->node[i];
    exec_step *s = &p->s->steps[i];
    contributions *c = &p->grads[n->output];
    int time = 2 * p->net->nodes - i;
    bool pair = n->kind == NODE_BN || n->kind == NODE_POOL;
    TRY(merge_contributions(p, i, n->output, pair ? 2 : 1, err));
    s->dy1 = c->item[0];
    s->dy2 = c->count == 2 ? c->item[1] : NO_ITEM;
    touch(p, s->dy1, time);
    touch(p, s->dy2, time);
    if (n->kind == NODE_BN)
        return backward_bn(p, i, err);
    if (n->kind == NODE_ADD)
        return backward_add(p, i, err);
    if (n->kind == NODE_CONV || n->kind == NODE_FC)
        touch(p, s->x, time);
    touch(p, s->ws, time);
    if (wants_gradient(p, n->input[0])) {
        TRY(new_item(p, tensor_bytes(p, n->input[0]), time, &s->dx, err));
        TRY(contribute(p, n->input[0], s->dx, err));
    }
    return STATUS_OK;
}

/* Activations, in forward order. */
static status plan_forward(planner *p, errbuf *err)
{
    const net *n = p->net;
    for (int i = 0; i < n->inputs; i++)
        TRY(new_item(p, tensor_bytes(p, n->input[i]), 0, &p->s->tensor_item[n->input[i]], err));
    for (int i = 0; i < n->nodes; i++) {
        const net_node *node = &n->node[i];
        exec_step *s = &p->s->steps[i];
        *s = (exec_step){NO_ITEM, NO_ITEM, NO_ITEM, NO_ITEM, NO_ITEM,
                         NO_ITEM, NO_ITEM, NO_ITEM, NO_ITEM, 0};
        s->x = p->s->tensor_item[node->input[0]];
        if (node->inputs == 2)
            s->residual = p->s->tensor_item[node->input[1]];
        TRY(new_item(p, tensor_bytes(p, node->output), i, &s->y, err));
        p->s->tensor_item[node->output] = s->y;
        touch(p, s->x, i);
        touch(p, s->residual, i);
        if (node->kind == NODE_POOL && p->sizes->pool_workspace && p->sizes->pool_workspace[i])
            TRY(new_item(p, p->sizes->pool_workspace[i], i, &s->ws, err));
        if (node->kind == NODE_BN) {
            s->saved = (int)p->s->saved_elements;
            p->s->saved_elements += 2 * (int64_t)node->bn.x.c;
        }
    }
    for (int i = 0; i < n->outputs; i++)
        touch(p, p->s->tensor_item[n->output[i]], n->nodes);
    return STATUS_OK;
}

static status plan_backward(planner *p, errbuf *err)
{
    const net *n = p->net;
    for (int i = 0; i < n->outputs; i++) {
        TRY(new_item(p, tensor_bytes(p, n->output[i]), n->nodes, &p->s->output_grad[i], err));
        TRY(contribute(p, n->output[i], p->s->output_grad[i], err));
    }
    for (int i = n->nodes - 1; i >= 0; i--) {
        if (p->grads[n->node[i].output].count == 0)
            return errbuf_set(err, STATUS_BAD_INPUT, "no output of net %s depends on node %s",
                              n->name, n->node[i].name);
        TRY(backward_node(p, i, err));
    }
    return STATUS_OK;
}

static void count_readers(planner *p)
{
    const net *n = p->net;
    for (int i = 0; i < n->nodes; i++)
        for (int k = 0; k < n->node[i].inputs; k++)
            p->readers[n->node[i].input[k]]++;
    for (int i = 0; i < n->outputs; i++)
        p->is_output[n->output[i]] = true;
}

status exec_schedule_create(const net *n, const exec_sizes *sizes, bool training,
                            exec_schedule *ret, errbuf *err)
{
    exec_schedule s = {0};
    planner p = {.net = n, .sizes = sizes, .s = &s};
    p.in_place = !sizes->be || sizes->be->ops->bn_in_place;
    size_t tensors = (size_t)n->tensors;
    s.steps = calloc((size_t)n->nodes, sizeof *s.steps);
    s.tensor_item = calloc(tensors, sizeof *s.tensor_item);
    s.output_grad = calloc((size_t)n->outputs, sizeof *s.output_grad);
    p.grads = calloc(tensors, sizeof *p.grads);
    p.readers = calloc(tensors, sizeof *p.readers);
    p.is_output = calloc(tensors, sizeof *p.is_output);
    status st = STATUS_OK;
    if (!s.steps || !s.tensor_item || !s.output_grad || !p.grads || !p.readers || !p.is_output) {
        st = out_of_memory(err);
        goto cleanup;
    }
    count_readers(&p);
    TRY_GOTO(plan_forward(&p, err), st, cleanup);
    if (training)
        TRY_GOTO(plan_backward(&p, err), st, cleanup);
    TRY_GOTO(memory_plan(s.items, s.item_count, &s.arena_bytes, err), st, cleanup);
    *ret = s;
    memset(&s, 0, sizeof s);
cleanup:
    exec_schedule_fini(&s);
    free(p.shared);
    free(p.grads);
    free(p.readers);
    free(p.is_output);
    return st;
}

void exec_schedule_fini(exec_schedule *s)
{
    if (!s)
        return;
    free(s->items);
    free(s->steps);
    free(s->adds);
    free(s->tensor_item);
    free(s->output_grad);
    memset(s, 0, sizeof *s);
}
