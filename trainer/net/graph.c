/*
 * Building a net: tensors, kernels, norms, parameters and nodes. graph_finish.c ends it.
 *
 * Every array grows by doubling and has no capacity of its own: the room that `count` objects have
 * is a function of `count`. A call that adds several objects reserves room for all of them before
 * it writes the first, so that a failure leaves the net as it was.
 *
 * An object number that does not exist is a mistake of the builder's programmer and aborts; shapes
 * that do not fit together follow from the user's spec and are reported.
 */
#include "trainer/net/graph.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CAPACITY 16
#define MAX_CHANNELS (1 << 20)
#define MAX_SIDE     (1 << 16) /* rows, columns, kernel side, padding, stride */
#define BN_EPS       1e-5f     /* METHODS 2 */

static size_t capacity_of(int count)
{
    size_t capacity = MIN_CAPACITY;
    while (capacity < (size_t)count)
        capacity *= 2;
    return count == 0 ? 0 : capacity;
}

/* Makes room for `extra` more of the `count` objects of `size` bytes in *array. */
static status reserve(void *array, int count, int extra, size_t size, errbuf *err)
{
    void *old, *grown;
    memcpy(&old, array, sizeof old);
    size_t needed = capacity_of(count + extra);
    if (needed == capacity_of(count))
        return STATUS_OK;
    ASSERT(needed > 0);
    grown = realloc(old, needed * size);
    if (!grown)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %zu bytes of the network graph",
                          needed * size);
    memcpy(array, &grown, sizeof grown);
    return STATUS_OK;
}

#define RESERVE(n, array, count, extra, err) \
    reserve(&(n)->array, (n)->count, (extra), sizeof *(n)->array, (err))

/* Writes "<name><suffix>", refusing what does not fit. */
static status set_name(char to[NET_NAME_MAX], const char *name, const char *suffix, errbuf *err)
{
    int length = snprintf(to, NET_NAME_MAX, "%s%s", name, suffix);
    if (length <= 0 || length >= NET_NAME_MAX)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "name '%.32s…%s' in a network has %d letters, expected 1 to %d", name,
                          suffix, length, NET_NAME_MAX - 1);
    return STATUS_OK;
}

/* Checkpoints and reports find objects by name, so that a name must mean one thing. */
static status check_unique(const void *first_name, size_t stride, int count, const char *name,
                           const char *what, errbuf *err)
{
    for (int i = 0; i < count; i++)
        if (strcmp((const char *)first_name + (size_t)i * stride, name) == 0)
            return errbuf_set(err, STATUS_BAD_INPUT, "%s '%s' is already in the network", what,
                              name);
    return STATUS_OK;
}

#define CHECK_UNIQUE(n, array, count, object, what, err)                               \
    ((n)->count > 0 ? check_unique((n)->array[0].name, sizeof *(n)->array, (n)->count, \
                                   (object)->name, (what), (err))                      \
                    : STATUS_OK)

/* ---- parameters ---- */

/* Fills a parameter record; nothing is added yet. */
static status make_param(const net *n, const char *owner, const char *suffix, param_kind kind,
                         net_param *ret, errbuf *err)
{
    memset(ret, 0, sizeof *ret);
    TRY(set_name(ret->name, owner, suffix, err));
    TRY(CHECK_UNIQUE(n, param, params, ret, "parameter", err));
    ret->kind = kind;
    ret->offset = -1; /* placed by net_finish */
    return STATUS_OK;
}

static void set_vector(net_param *p, int length, init_kind init, double bound)
{
    p->dims = 1;
    p->dim[0] = length;
    p->elements = length;
    p->init = init;
    p->bound = bound;
}

/* Adds a record for which there is room. */
static int push_param(net *n, const net_param *p)
{
    n->param[n->params] = *p;
    return n->params++;
}

/* ---- the net and what nodes refer to ---- */

status net_create(const char *name, net **ret_net, errbuf *err)
{
    net *n = calloc(1, sizeof *n);
    if (!n)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a network graph");
    status st = set_name(n->name, name, "", err);
    if (st != STATUS_OK) {
        net_destroy(&n);
        return st;
    }
    *ret_net = n;
    return STATUS_OK;
}

void net_destroy(net **n)
{
    if (!n || !*n)
        return;
    for (int i = 0; i < (*n)->rings; i++)
        ring_map_fini(&(*n)->ring[i].map);
    free((*n)->tensor);
    free((*n)->node);
    free((*n)->kernel);
    free((*n)->ring);
    free((*n)->norm);
    free((*n)->param);
    free((*n)->input);
    free((*n)->output);
    free(*n);
    *n = NULL;
}

static const net_tensor *tensor_at(const net *n, int tensor)
{
    ASSERT(tensor >= 0 && tensor < n->tensors);
    return &n->tensor[tensor];
}

status net_add_input(net *n, int c, int h, int w, int *ret_tensor, errbuf *err)
{
    if (c < 1 || c > MAX_CHANNELS || h < 1 || h > MAX_SIDE || w < 1 || w > MAX_SIDE)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "network input of %d x %d x %d, expected 1 to %d channels and sides of 1 "
                          "to %d",
                          c, h, w, MAX_CHANNELS, MAX_SIDE);
    TRY(RESERVE(n, tensor, tensors, 1, err));
    TRY(RESERVE(n, input, inputs, 1, err));
    n->tensor[n->tensors] =
        (net_tensor){.shape = {1, c, h, w}, .layout = LAYOUT_IMAGE, .producer = -1};
    n->input[n->inputs++] = n->tensors;
    *ret_tensor = n->tensors++;
    return STATUS_OK;
}

status net_add_ring(net *n, const char *name, int *ret_ring, errbuf *err)
{
    net_ring r = {.m = 0};
    net_param p;
    TRY(set_name(r.name, name, "", err));
    TRY(CHECK_UNIQUE(n, ring, rings, &r, "ring", err));
    TRY(make_param(n, "ring.", name, PARAM_RING, &p, err));
    p.dims = 1; /* its length is set with the ring's size */
    p.init = INIT_RING;
    TRY(RESERVE(n, ring, rings, 1, err));
    TRY(RESERVE(n, param, params, 1, err));
    r.param = push_param(n, &p);
    n->ring[n->rings] = r;
    *ret_ring = n->rings++;
    return STATUS_OK;
}

/* The direct parameters of a kernel: Kaiming normal, fan_out (DESIGN "Nets"). */
static status make_conv_param(const net *n, const char *name, kernel_shape s, net_param *ret,
                              errbuf *err)
{
    TRY(make_param(n, name, "", PARAM_CONV, ret, err));
    ret->dims = 4;
    ret->dim[0] = s.out;
    ret->dim[1] = s.in;
    ret->dim[2] = s.kh;
    ret->dim[3] = s.kw;
    ret->elements = kernel_elements(s);
    ret->init = INIT_NORMAL;
    ret->bound = sqrt(2.0 / ((double)s.out * s.kh * s.kw));
    return STATUS_OK;
}

static status check_kernel_shape(const char *name, kernel_shape s, errbuf *err)
{
    if (s.out < 1 || s.out > MAX_CHANNELS || s.in < 1 || s.in > MAX_CHANNELS)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "kernel '%s' has %d output and %d input channels, expected 1 to %d", name,
                          s.out, s.in, MAX_CHANNELS);
    if (s.kh < 1 || s.kh > 255 || s.kw < 1 || s.kw > 255)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "kernel '%s' is %d x %d, expected sides of 1 to 255", name, s.kh, s.kw);
    if (kernel_elements(s) > RING_MAX_M)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "kernel '%s' has %lld weights, more than %d; lower model.width", name,
                          (long long)kernel_elements(s), RING_MAX_M);
    return STATUS_OK;
}

status net_add_kernel(net *n, const char *name, kernel_shape s, int ring, int *ret_kernel,
                      errbuf *err)
{
    ASSERT(ring >= -1 && ring < n->rings);
    net_kernel k = {.shape = s, .ring = ring, .first = 0, .param = -1, .alpha = 1};
    net_param p;
    TRY(set_name(k.name, name, "", err));
    TRY(CHECK_UNIQUE(n, kernel, kernels, &k, "kernel", err));
    TRY(check_kernel_shape(name, s, err));
    TRY(make_conv_param(n, name, s, &p, err)); /* also keeps the name of a slot out of params */
    TRY(RESERVE(n, kernel, kernels, 1, err));
    if (ring >= 0) {
        int64_t m = n->ring[ring].m + kernel_elements(s);
        if (m > RING_MAX_M)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "ring '%s' would generate %lld weights (M), more than %d; lower "
                              "model.width or use a smaller rpg.scope",
                              n->ring[ring].name, (long long)m, RING_MAX_M);
        k.first = n->ring[ring].m;
        n->ring[ring].m = m;
    } else {
        TRY(RESERVE(n, param, params, 1, err));
        k.param = push_param(n, &p);
    }
    n->kernel[n->kernels] = k;
    *ret_kernel = n->kernels++;
    return STATUS_OK;
}

status net_add_norm(net *n, const char *name, int channels, int *ret_norm, errbuf *err)
{
    ASSERT(channels >= 1 && channels <= MAX_CHANNELS);
    net_norm norm = {.channels = channels, .running = n->running_elements};
    net_param gamma, beta;
    TRY(set_name(norm.name, name, "", err));
    TRY(CHECK_UNIQUE(n, norm, norms, &norm, "norm", err));
    TRY(make_param(n, name, ".weight", PARAM_GAMMA, &gamma, err));
    TRY(make_param(n, name, ".bias", PARAM_BETA, &beta, err));
    set_vector(&gamma, channels, INIT_ONE, 0);
    set_vector(&beta, channels, INIT_ZERO, 0);
    TRY(RESERVE(n, norm, norms, 1, err));
    TRY(RESERVE(n, param, params, 2, err));
    norm.gamma = push_param(n, &gamma);
    norm.beta = push_param(n, &beta);
    n->norm[n->norms] = norm;
    n->running_elements += 2 * (int64_t)channels;
    *ret_norm = n->norms++;
    return STATUS_OK;
}

/* ---- nodes ---- */

static status make_node(const char *name, node_kind kind, int input, net_node *ret, errbuf *err)
{
    memset(ret, 0, sizeof *ret);
    TRY(set_name(ret->name, name, "", err));
    ret->kind = kind;
    ret->input[0] = input;
    ret->inputs = 1;
    ret->kernel = ret->norm = ret->weight = ret->bias = -1;
    return STATUS_OK;
}

/* Adds a node and the tensor that it makes; the last step of every net_add_<node>. */
static status push_node(net *n, net_node *node, shape out, layout l, int *ret_tensor, errbuf *err)
{
    TRY(RESERVE(n, node, nodes, 1, err));
    TRY(RESERVE(n, tensor, tensors, 1, err));
    node->output = n->tensors;
    n->tensor[n->tensors++] = (net_tensor){.shape = out, .layout = l, .producer = n->nodes};
    n->node[n->nodes++] = *node;
    *ret_tensor = node->output;
    return STATUS_OK;
}

static status check_native(const net *n, const char *name, int tensor, errbuf *err)
{
    layout l = tensor_at(n, tensor)->layout;
    if (l == LAYOUT_NATIVE)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "node '%s' cannot read %s: only the output of another node that keeps rows "
                      "and columns",
                      name, l == LAYOUT_IMAGE ? "a network input" : "a matrix");
}

/* A window of `span` rows or columns over `side` of them with padding on both ends. */
static status check_window(const char *name, const char *dimension, int side, int pad, int span,
                           errbuf *err)
{
    if (side + 2 * pad >= span)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "input is too small for '%s': %d %s with padding %d are less than its window "
                      "of %d; raise data.size",
                      name, side, dimension, pad, span);
}

static status check_conv(const char *name, const conv_desc *d, const kernel_shape *k, errbuf *err)
{
    ASSERT(d->stride_h >= 1 && d->stride_w >= 1 && d->pad_h >= 0 && d->pad_w >= 0);
    ASSERT(d->stride_h <= MAX_SIDE && d->stride_w <= MAX_SIDE && d->pad_h <= 255 &&
           d->pad_w <= 255 && d->dilation <= 255);
    ASSERT(d->dilation >= 1 && d->groups >= 1);
    if (d->x_layout == LAYOUT_PLAIN)
        return errbuf_set(err, STATUS_BAD_INPUT, "conv '%s' cannot read a matrix", name);
    if (d->x.c % d->groups != 0 || k->out % d->groups != 0 || d->x.c / d->groups != k->in)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv '%s': a kernel of %d x %d channels does not fit an input of %d "
                          "channels in %d groups",
                          name, k->out, k->in, d->x.c, d->groups);
    TRY(check_window(name, "rows", d->x.h, d->pad_h, (d->kh - 1) * d->dilation + 1, err));
    return check_window(name, "columns", d->x.w, d->pad_w, (d->kw - 1) * d->dilation + 1, err);
}

status net_add_conv(net *n, const char *name, int input, int kernel, const conv_desc *geometry,
                    int *ret_tensor, errbuf *err)
{
    ASSERT(kernel >= 0 && kernel < n->kernels);
    const net_tensor *x = tensor_at(n, input);
    const kernel_shape *k = &n->kernel[kernel].shape;
    net_node node;
    net_param bias;
    TRY(make_node(name, NODE_CONV, input, &node, err));
    node.kernel = kernel;
    node.conv = *geometry;
    node.conv.x = x->shape;
    node.conv.x_layout = x->layout;
    node.conv.out = k->out;
    node.conv.kh = k->kh;
    node.conv.kw = k->kw;
    node.conv.passes = 0;
    TRY(check_conv(name, &node.conv, k, err));
    if (geometry->bias) {
        TRY(make_param(n, name, ".bias", PARAM_BIAS, &bias, err));
        set_vector(&bias, k->out, INIT_ZERO, 0);
        TRY(RESERVE(n, param, params, 1, err));
        node.bias = n->params;
    }
    TRY(push_node(n, &node, conv_output(&node.conv), LAYOUT_NATIVE, ret_tensor, err));
    if (geometry->bias)
        push_param(n, &bias);
    return STATUS_OK;
}

static bool same_shape(shape a, shape b)
{
    return a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w;
}

static status check_same_shape(const net *n, const char *name, int a, int b, errbuf *err)
{
    shape x = tensor_at(n, a)->shape, y = tensor_at(n, b)->shape;
    if (same_shape(x, y))
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "node '%s' cannot add %d x %d x %d to %d x %d x %d (channels x rows x "
                      "columns)",
                      name, y.c, y.h, y.w, x.c, x.h, x.w);
}

status net_add_bn(net *n, const char *name, int input, int norm, bool relu, int residual,
                  int *ret_tensor, errbuf *err)
{
    ASSERT(norm >= 0 && norm < n->norms);
    net_node node;
    TRY(make_node(name, NODE_BN, input, &node, err));
    TRY(check_native(n, name, input, err));
    shape s = tensor_at(n, input)->shape;
    if (s.c != n->norm[norm].channels)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "node '%s' reads %d channels, its norm '%s' has %d", name, s.c,
                          n->norm[norm].name, n->norm[norm].channels);
    if (residual >= 0) {
        TRY(check_native(n, name, residual, err));
        TRY(check_same_shape(n, name, input, residual, err));
        node.input[node.inputs++] = residual;
    }
    node.norm = norm;
    node.bn = (bn_desc){.x = s, .eps = BN_EPS, .relu = relu, .residual = residual >= 0};
    return push_node(n, &node, s, LAYOUT_NATIVE, ret_tensor, err);
}

status net_add_max_pool(net *n, const char *name, int input, int kernel, int stride, int pad,
                        int *ret_tensor, errbuf *err)
{
    /* padding beyond half a window would let a window see nothing but padding */
    ASSERT(kernel >= 1 && kernel <= 255 && stride >= 1 && pad >= 0 && 2 * pad <= kernel);
    net_node node;
    TRY(make_node(name, NODE_POOL, input, &node, err));
    TRY(check_native(n, name, input, err));
    shape s = tensor_at(n, input)->shape;
    TRY(check_window(name, "rows", s.h, pad, kernel, err));
    TRY(check_window(name, "columns", s.w, pad, kernel, err));
    node.pool =
        (pool_desc){.kind = POOL_MAX, .x = s, .kernel = kernel, .stride = stride, .pad = pad};
    return push_node(n, &node, pool_output(&node.pool), LAYOUT_NATIVE, ret_tensor, err);
}

status net_add_global_avg_pool(net *n, const char *name, int input, int *ret_tensor, errbuf *err)
{
    net_node node;
    TRY(make_node(name, NODE_POOL, input, &node, err));
    TRY(check_native(n, name, input, err));
    node.pool = (pool_desc){.kind = POOL_GLOBAL_AVG, .x = tensor_at(n, input)->shape};
    return push_node(n, &node, pool_output(&node.pool), LAYOUT_PLAIN, ret_tensor, err);
}

status net_add_fc(net *n, const char *name, int input, int out, int *ret_tensor, errbuf *err)
{
    if (out < 1 || out > MAX_CHANNELS)
        return errbuf_set(err, STATUS_BAD_INPUT, "fc '%s' has %d outputs, expected 1 to %d", name,
                          out, MAX_CHANNELS);
    const net_tensor *x = tensor_at(n, input);
    if (x->layout != LAYOUT_PLAIN)
        return errbuf_set(err, STATUS_BAD_INPUT, "fc '%s' reads a matrix: pool its input first",
                          name);
    int in = x->shape.c;
    double bound = 1 / sqrt(in);
    net_node node;
    net_param weight, bias;
    TRY(make_node(name, NODE_FC, input, &node, err));
    TRY(make_param(n, name, ".weight", PARAM_FC, &weight, err));
    TRY(make_param(n, name, ".bias", PARAM_BIAS, &bias, err));
    weight.dims = 2;
    weight.dim[0] = out;
    weight.dim[1] = in;
    weight.elements = (int64_t)out * in;
    weight.init = INIT_UNIFORM;
    weight.bound = bound;
    set_vector(&bias, out, INIT_UNIFORM, bound);
    TRY(RESERVE(n, param, params, 2, err));
    node.weight = n->params;
    node.bias = n->params + 1;
    node.fc = (fc_desc){.n = 1, .in = in, .out = out};
    TRY(push_node(n, &node, (shape){1, out, 1, 1}, LAYOUT_PLAIN, ret_tensor, err));
    push_param(n, &weight);
    push_param(n, &bias);
    return STATUS_OK;
}

status net_add_add(net *n, const char *name, int a, int b, int *ret_tensor, errbuf *err)
{
    net_node node;
    TRY(make_node(name, NODE_ADD, a, &node, err));
    TRY(check_native(n, name, a, err));
    TRY(check_native(n, name, b, err));
    TRY(check_same_shape(n, name, a, b, err));
    node.input[node.inputs++] = b;
    return push_node(n, &node, tensor_at(n, a)->shape, LAYOUT_NATIVE, ret_tensor, err);
}

status net_add_output(net *n, int tensor, errbuf *err)
{
    ASSERT(tensor_at(n, tensor)->producer >= 0);
    for (int i = 0; i < n->outputs; i++)
        ASSERT(n->output[i] != tensor);
    TRY(RESERVE(n, output, outputs, 1, err));
    n->output[n->outputs++] = tensor;
    return STATUS_OK;
}
