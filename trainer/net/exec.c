/* The executor; see exec.h. */
#include "trainer/net/exec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/exec_schedule.h"

/* A node's op object; the node's kind says which. */
typedef union exec_op {
    backend_conv *conv;
    backend_bn *bn;
    backend_pool *pool;
    backend_fc *fc;
} exec_op;

typedef struct exec_lane {
    exec_op *op;  /* by node */
    char *arena;  /* device */
    float *saved; /* device: BN's saved values */
} exec_lane;

struct net_exec {
    const net *net;
    backend *be;
    net_exec_options options;
    backend_weights *weights;
    exec_schedule schedule;
    exec_lane *lane;
};

/* ---- creation ---- */

/* Norm and fc gradients are written, not added: each belongs to one node (kernels may be shared,
 * their gradients are summed). */
static status require_single_use(const net *n, errbuf *err)
{
    for (int i = 0; i < n->nodes; i++)
        for (int j = 0; j < i; j++) {
            const net_node *a = &n->node[i], *b = &n->node[j];
            bool norm = a->kind == NODE_BN && b->kind == NODE_BN && a->norm == b->norm;
            bool fc = a->kind == NODE_FC && b->kind == NODE_FC && a->weight == b->weight;
            if (norm || fc)
                return errbuf_set(err, STATUS_BAD_INPUT,
                                  "nodes %s and %s share a norm or fc: give each its own", b->name,
                                  a->name);
        }
    return STATUS_OK;
}

static status require_op(const backend *be, const void *slot, const char *op, errbuf *err)
{
    if (slot)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT, "backend %s has no op '%s', which this net needs",
                      be->ops->name, op);
}

static status require_ops(const net *n, const backend *be, errbuf *err)
{
    const backend_ops *ops = be->ops;
    for (int i = 0; i < n->nodes; i++) {
        switch (n->node[i].kind) {
        case NODE_CONV:
            TRY(require_op(be, (const void *)ops->conv_create, "conv", err));
            break;
        case NODE_BN:
            TRY(require_op(be, (const void *)ops->bn_create, "bn", err));
            break;
        case NODE_POOL:
            TRY(require_op(be, (const void *)ops->pool_create, "pool", err));
            break;
        case NODE_FC:
            TRY(require_op(be, (const void *)ops->fc_create, "fc", err));
            break;
        case NODE_ADD:
            TRY(require_op(be, (const void *)ops->add, "add", err));
            break;
        }
    }
    return STATUS_OK;
}

static status create_weights(net_exec *e, errbuf *err)
{
    const net *n = e->net;
    kernel_shape *shapes = calloc((size_t)(n->kernels ? n->kernels : 1), sizeof *shapes);
    if (!shapes)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory creating the executor");
    for (int k = 0; k < n->kernels; k++)
        shapes[k] = n->kernel[k].shape;
    status st = e->be->ops->weights_create(e->be, shapes, n->kernels, &e->weights, err);
    free(shapes);
    return st;
}

/* In how many parts the gradient of a tensor reaches its producer, if that takes two. */
static int gradients_of(const net *n, int tensor)
{
    int readers = 0;
    for (int i = 0; i < n->nodes; i++)
        for (int k = 0; k < n->node[i].inputs; k++)
            readers += n->node[i].input[k] == tensor;
    for (int i = 0; i < n->outputs; i++)
        readers += n->output[i] == tensor;
    return readers > 1 ? 2 : 1;
}

static status create_op(net_exec *e, int lane, int i, errbuf *err)
{
    const net_node *node = &e->net->node[i];
    const backend_ops *ops = e->be->ops;
    exec_op *op = &e->lane[lane].op[i];
    int batch = e->options.batch;
    switch (node->kind) {
    case NODE_CONV: {
        conv_desc d = node->conv;
        d.x.n = batch;
        d.passes = CONV_FORWARD;
        if (e->options.training) {
            d.passes |= CONV_BACKWARD_WEIGHTS;
            if (e->net->tensor[node->input[0]].producer >= 0)
                d.passes |= CONV_BACKWARD_DATA;
        }
        return ops->conv_create(e->weights, node->kernel, lane, &d, &op->conv, err);
    }
    case NODE_BN: {
        bn_desc d = node->bn;
        d.x.n = batch;
        d.gradients = e->options.training ? gradients_of(e->net, node->output) : -1;
        return ops->bn_create(e->be, lane, &d, &op->bn, err);
    }
    case NODE_POOL: {
        pool_desc d = node->pool;
        d.x.n = batch;
        return ops->pool_create(e->be, lane, &d, &op->pool, err);
    }
    case NODE_FC: {
        fc_desc d = node->fc;
        d.n = batch;
        return ops->fc_create(e->be, lane, &d, &op->fc, err);
    }
    case NODE_ADD:
        return STATUS_OK;
    }
    return STATUS_OK;
}

/* Backward order, so that the first conv created on a kernel is the first to run backward. */
static status create_ops(net_exec *e, errbuf *err)
{
    for (int lane = 0; lane < e->options.lanes; lane++)
        for (int i = e->net->nodes - 1; i >= 0; i--) {
            status st = create_op(e, lane, i, err);
            if (st != STATUS_OK) {
                errbuf_prefix(err, "creating %s", e->net->node[i].name);
                return st;
            }
        }
    return STATUS_OK;
}

static status bind_weights(net_exec *e, errbuf *err)
{
    const net *n = e->net;
    size_t kernels = (size_t)(n->kernels ? n->kernels : 1);
    int outs = 0;
    for (int k = 0; k < n->kernels; k++)
        outs += n->kernel[k].shape.out;
    weight_source *sources = calloc(kernels, sizeof *sources);
    float *scales = calloc((size_t)outs + 1, sizeof *scales);
    status st = STATUS_OUT_OF_MEMORY;
    if (!sources || !scales) {
        errbuf_set(err, st, "out of memory creating the executor");
        goto cleanup;
    }
    float *scale = scales;
    for (int k = 0; k < n->kernels; k++) {
        const net_kernel *kernel = &n->kernel[k];
        if (kernel->ring < 0) {
            sources[k] = (weight_source){NULL, 0, n->param[kernel->param].offset, NULL};
            continue;
        }
        const net_ring *ring = &n->ring[kernel->ring];
        for (int o = 0; o < kernel->shape.out; o++)
            scale[o] = kernel->alpha;
        sources[k] =
            (weight_source){&ring->map, kernel->first, n->param[ring->param].offset, scale};
        scale += kernel->shape.out;
    }
    st = e->be->ops->weights_commit(e->weights, sources, n->param_elements, err);
cleanup:
    free(sources);
    free(scales);
    return st;
}

static status plan_buffers(net_exec *e, errbuf *err)
{
    const net *n = e->net;
    size_t *workspace = calloc((size_t)n->nodes, sizeof *workspace);
    if (!workspace)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory creating the executor");
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_POOL)
            workspace[i] = e->be->ops->pool_workspace(e->lane[0].op[i].pool);
    exec_sizes sizes = {e->be, e->options.batch, workspace};
    status st = exec_schedule_create(n, &sizes, e->options.training, &e->schedule, err);
    free(workspace);
    return st;
}

static status allocate_lanes(net_exec *e, errbuf *err)
{
    for (int l = 0; l < e->options.lanes; l++) {
        exec_lane *lane = &e->lane[l];
        void *memory = NULL;
        TRY(e->be->ops->alloc(e->be, e->schedule.arena_bytes, &memory, err));
        lane->arena = memory;
        size_t saved = (size_t)(e->schedule.saved_elements + 1) * sizeof(float);
        TRY(e->be->ops->alloc(e->be, saved, &memory, err));
        lane->saved = memory;
    }
    return STATUS_OK;
}

status net_exec_create(const net *n, backend *be, const net_exec_options *options,
                       net_exec **ret_exec, errbuf *err)
{
    TRY(require_ops(n, be, err));
    TRY(require_single_use(n, err));
    status st = STATUS_OK;
    net_exec *e = calloc(1, sizeof *e);
    if (!e)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory creating the executor");
    e->net = n;
    e->be = be;
    e->options = *options;
    e->lane = calloc((size_t)options->lanes, sizeof *e->lane);
    for (int l = 0; e->lane && l < options->lanes && st == STATUS_OK; l++)
        if (!(e->lane[l].op = calloc((size_t)n->nodes, sizeof *e->lane[l].op)))
            st = STATUS_OUT_OF_MEMORY;
    if (!e->lane || st != STATUS_OK) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory creating the executor");
        goto cleanup;
    }
    TRY_GOTO(create_weights(e, err), st, cleanup);
    TRY_GOTO(create_ops(e, err), st, cleanup);
    TRY_GOTO(bind_weights(e, err), st, cleanup);
    TRY_GOTO(plan_buffers(e, err), st, cleanup);
    TRY_GOTO(allocate_lanes(e, err), st, cleanup);
    *ret_exec = e;
    e = NULL;
cleanup:
    net_exec_destroy(&e);
    return st;
}

static void destroy_op(net_exec *e, exec_lane *lane, int i)
{
    exec_op *op = &lane->op[i];
    const backend_ops *ops = e->be->ops;
    switch (e->net->node[i].kind) {
    case NODE_CONV:
        ops->conv_destroy(&op->conv);
        break;
    case NODE_BN:
        ops->bn_destroy(&op->bn);
        break;
    case NODE_POOL:
        ops->pool_destroy(&op->pool);
        break;
    case NODE_FC:
        ops->fc_destroy(&op->fc);
        break;
    case NODE_ADD:
        break;
    }
}

void net_exec_destroy(net_exec **exec)
{
    if (!exec || !*exec)
        return;
    net_exec *e = *exec;
    for (int l = 0; e->lane && l < e->options.lanes; l++) {
        exec_lane *lane = &e->lane[l];
        for (int i = 0; lane->op && i < e->net->nodes; i++)
            destroy_op(e, lane, i);
        e->be->ops->release(e->be, lane->arena);
        e->be->ops->release(e->be, lane->saved);
        free(lane->op);
    }
    if (e->weights)
        e->be->ops->weights_destroy(&e->weights);
    exec_schedule_fini(&e->schedule);
    free(e->lane);
    free(e);
    *exec = NULL;
}

net_exec_memory net_exec_usage(const net_exec *e)
{
    size_t lanes = (size_t)e->options.lanes;
    return (net_exec_memory){
        .weights = e->be->ops->weights_bytes(e->weights),
        .activations = lanes * e->schedule.arena_bytes,
        .workspace = lanes * (size_t)e->schedule.saved_elements * sizeof(float),
    };
}

backend_weights *net_exec_weights(net_exec *e)
{
    return e->weights;
}

/* ---- running ---- */

static float *item_address(const net_exec *e, int lane, int item)
{
    if (item == NO_ITEM)
        return NULL;
    return (float *)(e->lane[lane].arena + e->schedule.items[item].offset);
}

status net_exec_expand(net_exec *e, const float *params)
{
    return e->be->ops->weights_expand(e->weights, params);
}

status net_exec_reduce(net_exec *e, int lane, float *grad)
{
    return e->be->ops->weights_reduce(e->weights, lane, grad);
}

status net_exec_set_input(net_exec *e, int lane, int input, const float *images)
{
    const net_tensor *t = &e->net->tensor[e->net->input[input]];
    shape s = t->shape;
    s.n = e->options.batch;
    return e->be->ops->pack(e->be, s, t->layout,
                            item_address(e, lane, e->schedule.tensor_item[e->net->input[input]]),
                            images);
}

void *net_exec_input(net_exec *e, int lane, int input)
{
    return item_address(e, lane, e->schedule.tensor_item[e->net->input[input]]);
}

const float *net_exec_output(const net_exec *e, int lane, int output)
{
    return item_address(e, lane, e->schedule.tensor_item[e->net->output[output]]);
}

float *net_exec_output_grad(net_exec *e, int lane, int output)
{
    return item_address(e, lane, e->schedule.output_grad[output]);
}

static const float *param_at(const net_exec *e, const float *params, int param)
{
    return param < 0 ? NULL : params + e->net->param[param].offset;
}

static float *grad_at(const net_exec *e, float *grad, int param)
{
    return param < 0 ? NULL : grad + e->net->param[param].offset;
}

/* `stats` is NULL in evaluation, `running` in training. */
static status forward_bn(net_exec *e, int lane, int i, const float *params, const float *running,
                         float *stats)
{
    const net_node *node = &e->net->node[i];
    const exec_step *s = &e->schedule.steps[i];
    const net_norm *norm = &e->net->norm[node->norm];
    backend_bn *bn = e->lane[lane].op[i].bn;
    const float *x = item_address(e, lane, s->x);
    const float *residual = item_address(e, lane, s->residual);
    float *y = item_address(e, lane, s->y);
    const float *gamma = param_at(e, params, norm->gamma), *beta = param_at(e, params, norm->beta);
    if (!stats)
        return e->be->ops->bn_forward_eval(bn, x, residual, gamma, beta, running + norm->running,
                                           y);
    return e->be->ops->bn_forward_train(bn, x, residual, gamma, beta, y,
                                        e->lane[lane].saved + s->saved, stats + norm->running);
}

static status forward_node(net_exec *e, int lane, int i, const float *params, const float *running,
                           float *stats)
{
    const backend_ops *ops = e->be->ops;
    const net_node *node = &e->net->node[i];
    const exec_step *s = &e->schedule.steps[i];
    exec_op op = e->lane[lane].op[i];
    const float *x = item_address(e, lane, s->x);
    float *y = item_address(e, lane, s->y);
    switch (node->kind) {
    case NODE_CONV:
        return ops->conv_forward(op.conv, x, param_at(e, params, node->bias), y);
    case NODE_BN:
        return forward_bn(e, lane, i, params, running, stats);
    case NODE_POOL:
        return ops->pool_forward(op.pool, x, y, item_address(e, lane, s->ws));
    case NODE_FC:
        return ops->fc_forward(op.fc, x, param_at(e, params, node->weight),
                               param_at(e, params, node->bias), y);
    case NODE_ADD:
        return ops->add_native(e->be, e->schedule.items[s->y].bytes, x,
                               item_address(e, lane, s->residual), y);
    }
    return STATUS_OK;
}

static status forward(net_exec *e, int lane, const float *params, const float *running,
                      float *stats)
{
    for (int i = 0; i < e->net->nodes; i++)
        TRY(forward_node(e, lane, i, params, running, stats));
    return STATUS_OK;
}

status net_exec_forward_train(net_exec *e, int lane, const float *params, float *stats)
{
    ASSERT(stats);
    return forward(e, lane, params, NULL, stats);
}

status net_exec_forward_eval(net_exec *e, int lane, const float *params, const float *running)
{
    return forward(e, lane, params, running, NULL);
}

static status backward_bn(net_exec *e, int lane, int i, const float *params, float *grad)
{
    const net_node *node = &e->net->node[i];
    const exec_step *s = &e->schedule.steps[i];
    const net_norm *norm = &e->net->norm[node->norm];
    return e->be->ops->bn_backward(
        e->lane[lane].op[i].bn, item_address(e, lane, s->x), item_address(e, lane, s->y),
        param_at(e, params, norm->gamma), e->lane[lane].saved + s->saved,
        item_address(e, lane, s->dy1), item_address(e, lane, s->dy2), item_address(e, lane, s->dz),
        item_address(e, lane, s->dx), grad_at(e, grad, norm->gamma), grad_at(e, grad, norm->beta));
}

static status backward_node(net_exec *e, int lane, int i, const float *params, float *grad)
{
    const backend_ops *ops = e->be->ops;
    const net_node *node = &e->net->node[i];
    const exec_step *s = &e->schedule.steps[i];
    exec_op op = e->lane[lane].op[i];
    const float *x = item_address(e, lane, s->x), *dy = item_address(e, lane, s->dy1);
    float *dx = item_address(e, lane, s->dx);
    switch (node->kind) {
    case NODE_CONV:
        if (dx)
            TRY(ops->conv_backward_data(op.conv, dy, dx));
        return ops->conv_backward_weights(op.conv, x, dy, grad_at(e, grad, node->bias));
    case NODE_BN:
        return backward_bn(e, lane, i, params, grad);
    case NODE_POOL:
        if (!dx)
            return STATUS_OK;
        return ops->pool_backward(op.pool, dy, item_address(e, lane, s->dy2),
                                  item_address(e, lane, s->ws), dx);
    case NODE_FC:
        return ops->fc_backward(op.fc, x, param_at(e, params, node->weight), dy, dx,
                                grad_at(e, grad, node->weight), grad_at(e, grad, node->bias));
    case NODE_ADD:
        return STATUS_OK; /* both inputs take dy as it is */
    }
    return STATUS_OK;
}

/* The sums that node i's backward needs; *next_add: the first not yet made. */
static status backward_adds(net_exec *e, int lane, int i, int *next_add)
{
    const exec_schedule *s = &e->schedule;
    for (; *next_add < s->add_count && s->adds[*next_add].node == i; ++*next_add) {
        const exec_add *add = &s->adds[*next_add];
        TRY(e->be->ops->add_native(e->be, s->items[add->to].bytes, item_address(e, lane, add->a),
                                   item_address(e, lane, add->b), item_address(e, lane, add->to)));
    }
    return STATUS_OK;
}

status net_exec_backward(net_exec *e, int lane, const float *params, float *grad)
{
    int next_add = 0;
    for (int i = e->net->nodes - 1; i >= 0; i--) {
        TRY(backward_adds(e, lane, i, &next_add));
        TRY(backward_node(e, lane, i, params, grad));
    }
    return STATUS_OK;
}

/* ---- where a value that is not finite came from ---- */

static bool is_finite(const float *x, int64_t n)
{
    bool finite = true;
    for (int64_t i = 0; i < n; i++)
        finite = finite && isfinite(x[i]);
    return finite;
}

static status blame_failed(const net_exec *e, status st, errbuf *err)
{
    if (st == STATUS_OK)
        return st;
    return errbuf_set(err, st, "%s", e->be->ops->last_error(e->be));
}

/* The first (or, backward, last) parameter whose stretch of `vector` holds such a value. */
static status blame_params(net_exec *e, const float *vector, bool backward, float *host,
                           const char *format, char *where, size_t size, errbuf *err)
{
    const net *n = e->net;
    TRY(blame_failed(
        e, e->be->ops->download(e->be, host, vector, (size_t)n->param_elements * sizeof *host),
        err));
    for (int k = 0; k < n->params && !where[0]; k++) {
        const net_param *p = &n->param[backward ? n->params - 1 - k : k];
        if (!is_finite(host + p->offset, p->elements))
            snprintf(where, size, format, p->name);
    }
    return STATUS_OK;
}

static status blame_forward(net_exec *e, int lane, const float *params, float *stats, float *host,
                            char *where, size_t size, errbuf *err)
{
    TRY(blame_failed(e, net_exec_expand(e, params), err));
    for (int i = 0; i < e->net->nodes && !where[0]; i++) {
        const net_tensor *t = &e->net->tensor[e->net->node[i].output];
        shape s = t->shape;
        s.n = e->options.batch;
        TRY(blame_failed(e, forward_node(e, lane, i, params, NULL, stats), err));
        TRY(blame_failed(e,
                         e->be->ops->unpack(e->be, s, t->layout, host,
                                            item_address(e, lane, e->schedule.steps[i].y)),
                         err));
        if (!is_finite(host, shape_elements(s)))
            snprintf(where, size, "%s, forward", e->net->node[i].name);
    }
    return STATUS_OK;
}

status net_exec_blame(net_exec *e, int lane, const float *params, float *stats, float *grad,
                      char *ret_where, size_t size, errbuf *err)
{
    int64_t most = e->net->param_elements;
    for (int i = 0; i < e->net->tensors; i++) {
        int64_t elements = shape_elements(e->net->tensor[i].shape) * e->options.batch;
        most = elements > most ? elements : most;
    }
    float *host = calloc((size_t)most + 1, sizeof *host);
    if (!host)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory looking for the layer");
    ret_where[0] = '\0';
    status st = blame_params(e, params, false, host, "parameter %s", ret_where, size, err);
    if (st == STATUS_OK && !ret_where[0])
        st = blame_params(e, grad, true, host, "the gradient of %s", ret_where, size, err);
    char first[NET_NAME_MAX + 32] = "";
    if (st == STATUS_OK && strncmp(ret_where, "parameter", 9) != 0)
        st = blame_forward(e, lane, params, stats, host, first, sizeof first, err);
    if (first[0])
        snprintf(ret_where, size, "%s", first);
    free(host);
    return st;
}
