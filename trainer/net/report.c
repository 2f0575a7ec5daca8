/* Counts, memory estimate and JSON report of a net; see report.h. */
#include "trainer/net/report.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/exec_schedule.h"

/* ---- counts ---- */

int64_t net_node_macs(const net *n, int node)
{
    const net_node *d = &n->node[node];
    if (d->kind == NODE_CONV)
        return shape_elements(conv_output(&d->conv)) *
               (kernel_elements(n->kernel[d->kernel].shape) / d->conv.out);
    if (d->kind == NODE_FC)
        return (int64_t)d->fc.in * d->fc.out;
    return 0;
}

/* Whether a kernel reads a net input: such a direct kernel is a stem. */
static bool is_stem(const net *n, int kernel)
{
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_CONV && n->node[i].kernel == kernel &&
            n->tensor[n->node[i].input[0]].producer < 0)
            return true;
    return false;
}

/* Fc and conv biases are both PARAM_BIAS; the node tells them apart. */
static void count_node_params(const net *n, const net_node *d, net_counts *c)
{
    if (d->kind == NODE_FC)
        c->fc += n->param[d->weight].elements + n->param[d->bias].elements;
    if (d->kind == NODE_CONV && d->bias >= 0)
        c->direct_conv += n->param[d->bias].elements;
}

void net_count(const net *n, net_counts *ret)
{
    net_counts c = {0};
    for (int i = 0; i < n->rings; i++) {
        c.generated += n->ring[i].m;
        c.ring += n->ring[i].n;
        c.ring_used += n->ring[i].n < n->ring[i].m ? n->ring[i].n : n->ring[i].m;
    }
    for (int i = 0; i < n->kernels; i++) {
        if (n->kernel[i].ring >= 0)
            continue;
        int64_t elements = kernel_elements(n->kernel[i].shape);
        *(is_stem(n, i) ? &c.stem : &c.direct_conv) += elements;
    }
    for (int i = 0; i < n->norms; i++)
        c.bn += 2 * (int64_t)n->norm[i].channels;
    for (int i = 0; i < n->nodes; i++) {
        count_node_params(n, &n->node[i], &c);
        c.macs += net_node_macs(n, i);
    }
    c.dof = c.ring_used + c.direct_conv + c.bn + c.stem;
    c.dof_total = c.dof + c.fc;
    c.statistics = n->running_elements;
    c.wire = n->param_elements + n->running_elements;
    c.dense_total = n->param_elements - c.ring + c.generated;
    c.wire_dense = c.dense_total + n->running_elements;
    *ret = c;
}

/* ---- memory ---- */

/* A max pool remembers which place of its window won: a byte an output. */
static void pool_workspaces(const net *n, int shard, size_t *ret_bytes)
{
    for (int i = 0; i < n->nodes; i++) {
        const net_node *d = &n->node[i];
        ret_bytes[i] = 0;
        if (d->kind == NODE_POOL && d->pool.kind == POOL_MAX)
            ret_bytes[i] = (size_t)shape_elements(pool_output(&d->pool)) * (size_t)shard;
    }
}

/* The cpu backend's tables: 6 bytes a weight for the reduction, 4 more for the expansion into each
 * of two layouts, unless it goes by the reduction's, as that of large rings does. */
#define NEAR_RING 262144

status net_estimate_memory(const net *n, int shard, int lanes, net_memory *ret, errbuf *err)
{
    size_t *workspace = calloc((size_t)n->nodes + 1, sizeof *workspace);
    exec_schedule schedule;
    net_memory m = {0};
    net_counts c;
    if (!workspace)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
    pool_workspaces(n, shard, workspace);
    exec_sizes sizes = {.be = NULL, .batch = shard, .pool_workspace = workspace};
    status st = exec_schedule_create(n, &sizes, true, &schedule, err);
    free(workspace);
    if (st != STATUS_OK)
        return st;
    net_count(n, &c);
    int64_t kernels = 0;
    for (int i = 0; i < n->kernels; i++) {
        const net_kernel *k = &n->kernel[i];
        const bool is_far = k->ring >= 0 && n->ring[k->ring].n > NEAR_RING;
        kernels += kernel_elements(k->shape);
        m.tables += (is_far ? 6 : 14) * kernel_elements(k->shape);
    }
    m.params = m.momentum = 4 * n->param_elements;
    m.gradient = 4 * (c.wire + 2); /* and the control word */
    m.weights = 8 * kernels;
    m.weight_gradients = 4 * kernels * lanes;
    m.activations = (int64_t)(schedule.arena_bytes + 4 * (size_t)schedule.saved_elements) * lanes;
    m.total = m.params + m.momentum + m.gradient + m.tables + m.weights + m.weight_gradients +
              m.activations;
    exec_schedule_fini(&schedule);
    *ret = m;
    return STATUS_OK;
}

/* ---- JSON ---- */

/* Adds `item` (NULL: an allocation failed) to an object under `name`, or to an array; owns it. */
static bool attach(cJSON *to, const char *name, cJSON *item)
{
    if (item && (name ? cJSON_AddItemToObject(to, name, item) : cJSON_AddItemToArray(to, item)))
        return true;
    cJSON_Delete(item);
    return false;
}

typedef struct named_count {
    const char *name;
    int64_t value;
} named_count;

/* Counts stay far below 2^53, so that a double holds them exactly. */
static bool attach_counts(cJSON *to, const named_count *list, size_t count)
{
    bool done = true;
    for (size_t i = 0; i < count && done; i++)
        done = attach(to, list[i].name, cJSON_CreateNumber((double)list[i].value));
    return done;
}

#define ATTACH_COUNTS(to, list) attach_counts(to, list, sizeof(list) / sizeof(list)[0])

static bool attach_shape(cJSON *to, const char *name, const int *dim, int dims)
{
    return attach(to, name, cJSON_CreateIntArray(dim, dims));
}

/* An object that was filled, or what to say where it was not. */
static status finish_object(cJSON *object, bool done, cJSON **ret, errbuf *err)
{
    if (object && done) {
        *ret = object;
        return STATUS_OK;
    }
    cJSON_Delete(object);
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
}

static cJSON *ring_json(const net *n, int ring)
{
    const net_ring *r = &n->ring[ring];
    int slots = 0;
    for (int i = 0; i < n->kernels; i++)
        slots += n->kernel[i].ring == ring;
    named_count list[] = {
        {"n", r->n}, {"m", r->m}, {"slots", slots}, {"copies", r->m / r->n}, {"rest", r->m % r->n}};
    cJSON *object = cJSON_CreateObject();
    bool done = object && attach(object, "name", cJSON_CreateString(r->name)) &&
                ATTACH_COUNTS(object, list) &&
                attach(object, "sigma", cJSON_CreateNumber(r->sigma));
    if (done)
        return object;
    cJSON_Delete(object);
    return NULL;
}

static bool attach_rings(cJSON *to, const net *n)
{
    cJSON *array = cJSON_CreateArray();
    bool done = attach(to, "rings", array);
    for (int i = 0; i < n->rings && done; i++)
        done = attach(array, NULL, ring_json(n, i));
    return done;
}

status net_summary_json(const net *n, cJSON **ret, errbuf *err)
{
    net_counts c;
    net_count(n, &c);
    named_count list[] = {{"generated", c.generated},
                          {"ring", c.ring},
                          {"ring_used", c.ring_used},
                          {"stem", c.stem},
                          {"bn", c.bn},
                          {"fc", c.fc},
                          {"direct_conv", c.direct_conv},
                          {"dof", c.dof},
                          {"dof_total", c.dof_total},
                          {"dense_total", c.dense_total},
                          {"macs", c.macs},
                          {"statistics", c.statistics},
                          {"wire", c.wire},
                          {"wire_dense", c.wire_dense},
                          {"wire_bytes", 4 * c.wire},
                          {"wire_bytes_dense", 4 * c.wire_dense}};
    cJSON *object = cJSON_CreateObject();
    bool done =
        object && attach(object, "net", cJSON_CreateString(n->name)) &&
        ATTACH_COUNTS(object, list) &&
        attach(object, "wire_ratio", cJSON_CreateNumber((double)c.wire_dense / (double)c.wire)) &&
        attach_rings(object, n);
    return finish_object(object, done, ret, err);
}

static cJSON *kernel_json(const net *n, int kernel)
{
    const net_kernel *k = &n->kernel[kernel];
    int64_t macs = 0, elements = kernel_elements(k->shape);
    int uses = 0, dim[4] = {k->shape.out, k->shape.in, k->shape.kh, k->shape.kw};
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_CONV && n->node[i].kernel == kernel) {
            macs += net_node_macs(n, i);
            uses++;
        }
    named_count common[] = {{"elements", elements}, {"macs", macs}, {"uses", uses}};
    cJSON *object = cJSON_CreateObject();
    bool done = object && attach(object, "name", cJSON_CreateString(k->name)) &&
                attach_shape(object, "shape", dim, 4) && ATTACH_COUNTS(object, common);
    if (done && k->ring >= 0)
        done = attach(object, "ring", cJSON_CreateString(n->ring[k->ring].name)) &&
               attach(object, "first", cJSON_CreateNumber((double)k->first)) &&
               attach(object, "share",
                      cJSON_CreateNumber((double)elements / (double)n->ring[k->ring].m)) &&
               attach(object, "alpha", cJSON_CreateNumber((double)k->alpha));
    else if (done)
        done = attach(object, "ring", cJSON_CreateNull());
    if (done)
        return object;
    cJSON_Delete(object);
    return NULL;
}

status net_report_json(const net *n, cJSON **ret, errbuf *err)
{
    cJSON *object = NULL;
    int distinct;
    TRY(net_count_distinct_kernels(n, &distinct, err));
    TRY(net_summary_json(n, &object, err));
    cJSON *array = cJSON_CreateArray();
    bool done = attach(object, "distinct_kernels", cJSON_CreateNumber(distinct)) &&
                attach(object, "kernels", array);
    for (int i = 0; i < n->kernels && done; i++)
        done = attach(array, NULL, kernel_json(n, i));
    return finish_object(object, done, ret, err);
}

status net_memory_json(const net_memory *m, cJSON **ret, errbuf *err)
{
    named_count list[] = {
        {"params", m->params},           {"momentum", m->momentum},
        {"gradient", m->gradient},       {"tables", m->tables},
        {"weights", m->weights},         {"weight_gradients", m->weight_gradients},
        {"activations", m->activations}, {"total", m->total}};
    cJSON *object = cJSON_CreateObject();
    return finish_object(object, object && ATTACH_COUNTS(object, list), ret, err);
}
