/*
 * The executor: gradients of whole networks against finite differences on the reference backend,
 * the same numbers from the other backends, buffers that never overlap in time, nets that are
 * refused.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/philox.h"
#include "trainer/net/exec.h"
#include "trainer/net/exec_schedule.h"

#define OK(call)                                          \
    do {                                                  \
        errbuf oops = {0};                                \
        status st_ = (call);                              \
        ck_assert_msg(st_ == STATUS_OK, "%s", oops.text); \
    } while (0)

#define BATCH 3

static float noise(uint32_t seed, uint32_t i)
{
    return (float)(philox4x32(i, 0, 0, 0, seed, 5).word[0] * 0x1p-31 - 1);
}

/* ---- networks ---- */

typedef struct builder {
    net *net;
    int ring, x; /* x: the tensor built last */
} builder;

static builder begin(int inputs[], int count)
{
    builder b = {0};
    OK(net_create("test", &b.net, &oops));
    OK(net_add_ring(b.net, "global", &b.ring, &oops));
    for (int i = 0; i < count; i++)
        OK(net_add_input(b.net, 3, 6, 6, &inputs[i], &oops));
    b.x = inputs[0];
    return b;
}

static net *finish(builder *b)
{
    const int64_t size = 37;
    const net_rings rings = {
        .index = RING_INDEX_EVEN, .permute = true, .reflect = true, .seed = 3, .size = &size};
    OK(net_finish(b->net, &rings, &oops));
    return b->net;
}

static int kernel(builder *b, const char *name, int out, int in, int side, bool is_ring)
{
    int k;
    kernel_shape s = {out, in, side, side};
    OK(net_add_kernel(b->net, name, s, is_ring ? b->ring : -1, &k, &oops));
    return k;
}

static int conv(builder *b, const char *name, int x, int k, int side, int stride, bool bias)
{
    int y;
    conv_desc d = {.stride_h = stride,
                   .stride_w = stride,
                   .pad_h = side / 2,
                   .pad_w = side / 2,
                   .dilation = 1,
                   .groups = 1,
                   .bias = bias};
    OK(net_add_conv(b->net, name, x, k, &d, &y, &oops));
    return y;
}

static int bn(builder *b, const char *name, int x, bool relu, int residual)
{
    int norm, y;
    OK(net_add_norm(b->net, name, b->net->tensor[x].shape.c, &norm, &oops));
    OK(net_add_bn(b->net, name, x, norm, relu, residual, &y, &oops));
    return y;
}

static int head(builder *b, const char *name, int x)
{
    int pooled, y;
    OK(net_add_global_avg_pool(b->net, "pool", x, &pooled, &oops));
    OK(net_add_fc(b->net, name, pooled, 3, &y, &oops));
    OK(net_add_output(b->net, y, &oops));
    return y;
}

/* A residual block with a projection, max pooling before it: ResNet's parts. */
static net *residual_net(void)
{
    int in[1], y, skip;
    builder b = begin(in, 1);
    y = conv(&b, "stem", in[0], kernel(&b, "stem.weight", 4, 3, 3, false), 3, 1, true);
    y = bn(&b, "bn0", y, true, -1);
    OK(net_add_max_pool(b.net, "maxpool", y, 3, 2, 1, &y, &oops));
    skip = conv(&b, "down", y, kernel(&b, "down.weight", 5, 4, 1, true), 1, 1, false);
    skip = bn(&b, "bnd", skip, false, -1);
    y = conv(&b, "c1", y, kernel(&b, "c1.weight", 4, 4, 3, true), 3, 1, false);
    y = bn(&b, "bn1", y, true, -1);
    y = conv(&b, "c2", y, kernel(&b, "c2.weight", 5, 4, 3, true), 3, 1, false);
    y = bn(&b, "bn2", y, true, skip);
    y = bn(&b, "bn3", y, true, -1); /* over a ReLU whose output is its mask */
    head(&b, "fc", y);
    return finish(&b);
}

/* One kernel used three times, each with its own norm; its middle tensor read four times; two
 * inputs; two outputs, one of which is read by others too; sums of sums. */
static net *stacked_net(void)
{
    int in[2], a, c, d, shared, pooled;
    builder b = begin(in, 2);
    a = conv(&b, "in0", in[0], kernel(&b, "in0.weight", 4, 3, 1, true), 1, 1, false);
    c = conv(&b, "in1", in[1], kernel(&b, "in1.weight", 4, 3, 3, false), 3, 1, false);
    OK(net_add_add(b.net, "join", a, c, &a, &oops));
    shared = kernel(&b, "shared.weight", 4, 4, 3, true);
    a = bn(&b, "n1", conv(&b, "use1", a, shared, 3, 1, false), true, -1);
    c = bn(&b, "n2", conv(&b, "use2", a, shared, 3, 1, false), true, a);
    d = bn(&b, "n3", conv(&b, "use3", c, shared, 3, 1, false), false, -1);
    OK(net_add_add(b.net, "sum1", d, a, &d, &oops));
    OK(net_add_add(b.net, "sum2", d, c, &d, &oops));
    OK(net_add_add(b.net, "twice", d, d, &d, &oops));
    d = bn(&b, "n4", d, true, a);
    OK(net_add_global_avg_pool(b.net, "pool0", c, &pooled, &oops));
    OK(net_add_output(b.net, pooled, &oops));
    head(&b, "fc", d);
    return finish(&b);
}

/* A tensor that goes straight into three convs, one of them behind a ReLU, summed again. */
static net *fan_net(void)
{
    int in[1], x, y, z;
    builder b = begin(in, 1);
    x = conv(&b, "stem", in[0], kernel(&b, "stem.weight", 3, 3, 3, true), 3, 2, false);
    y = conv(&b, "left", x, kernel(&b, "left.weight", 3, 3, 3, true), 3, 1, true);
    z = bn(&b, "n1", x, true, -1);
    z = conv(&b, "right", z, kernel(&b, "right.weight", 3, 3, 1, false), 1, 1, false);
    OK(net_add_add(b.net, "sum", y, z, &y, &oops));
    y = bn(&b, "n2", y, true, x);
    OK(net_add_add(b.net, "again", y, x, &y, &oops));
    head(&b, "fc", y);
    return finish(&b);
}

static net *(*const nets[])(void) = {residual_net, stacked_net, fan_net};
#define NETS ((int)(sizeof nets / sizeof *nets))

/* ---- one pass ---- */

typedef struct pass {
    net *net;
    backend *be;
    net_exec *e;
    float *params, *stats, *grad, *weight[4]; /* weight: of each output's elements in the loss */
    size_t elements[4];
} pass;

static pass open_pass(net *n, const char *name)
{
    pass p = {.net = n};
    backend_options options = {.threads = 1, .lanes = 1};
    net_exec_options exec = {.batch = BATCH, .lanes = 1, .training = true};
    OK(backend_open(name, &options, &p.be, &oops));
    OK(net_exec_create(n, p.be, &exec, &p.e, &oops));
    p.params = calloc((size_t)n->param_elements, sizeof(float));
    p.stats = calloc((size_t)n->running_elements + 1, sizeof(float));
    p.grad = calloc((size_t)n->param_elements, sizeof(float));
    net_init_params(n, 5, p.params, p.stats);
    for (int64_t i = 0; i < n->param_elements; i++) /* no gamma stays 1, no beta 0 */
        p.params[i] += 0.1f * noise(1, (uint32_t)i);
    for (int o = 0; o < n->outputs; o++) {
        shape s = n->tensor[n->output[o]].shape;
        s.n = BATCH;
        p.elements[o] = (size_t)shape_elements(s);
        p.weight[o] = calloc(p.elements[o], sizeof(float));
        for (size_t i = 0; i < p.elements[o]; i++)
            p.weight[o][i] = noise(20 + (uint32_t)o, (uint32_t)i);
    }
    for (int in = 0; in < n->inputs; in++) {
        float images[BATCH * 3 * 6 * 6];
        for (size_t i = 0; i < sizeof images / sizeof *images; i++)
            images[i] = noise(10 + (uint32_t)in, (uint32_t)i);
        ck_assert_int_eq(net_exec_set_input(p.e, 0, in, images), STATUS_OK);
    }
    return p;
}

static void close_pass(pass *p)
{
    net_exec_destroy(&p->e);
    p->be->ops->close(p->be);
    free(p->params);
    free(p->stats);
    free(p->grad);
    for (int o = 0; o < p->net->outputs; o++)
        free(p->weight[o]);
    net_destroy(&p->net);
}

/* Sum over all outputs of weight * output; inputs lie in buffers that later ops may reuse, so they
 * are set anew. */
static double loss_of(pass *p, const float *params)
{
    double loss = 0;
    for (int in = 0; in < p->net->inputs; in++) {
        float images[BATCH * 3 * 6 * 6];
        for (size_t i = 0; i < sizeof images / sizeof *images; i++)
            images[i] = noise(10 + (uint32_t)in, (uint32_t)i);
        ck_assert_int_eq(net_exec_set_input(p->e, 0, in, images), STATUS_OK);
    }
    ck_assert_int_eq(net_exec_expand(p->e, params), STATUS_OK);
    ck_assert_int_eq(net_exec_forward_train(p->e, 0, params, p->stats), STATUS_OK);
    for (int o = 0; o < p->net->outputs; o++)
        for (size_t i = 0; i < p->elements[o]; i++)
            loss += (double)p->weight[o][i] * net_exec_output(p->e, 0, o)[i];
    return loss;
}

static void backward(pass *p)
{
    for (int64_t i = 0; i < p->net->param_elements; i++)
        p->grad[i] = 12345; /* every element must be written */
    for (int o = 0; o < p->net->outputs; o++)
        memcpy(net_exec_output_grad(p->e, 0, o), p->weight[o], p->elements[o] * sizeof(float));
    ck_assert_int_eq(net_exec_backward(p->e, 0, p->params, p->grad), STATUS_OK);
    ck_assert_int_eq(net_exec_reduce(p->e, 0, p->grad), STATUS_OK);
}

/* ---- tests ---- */

/* Central differences of a loss in fp32: one ReLU or maximum that changes sides spoils a single
 * parameter's difference, so that the bulk is held to a close bound and each to a wide one. */
START_TEST(gradients_are_differences)
{
    pass p = open_pass(nets[_i](), "reference");
    loss_of(&p, p.params);
    backward(&p);
    double off = 0, norm = 0;
    for (int64_t i = 0; i < p.net->param_elements; i++) {
        const float step = 1e-4f, at = p.params[i];
        double loss[2];
        for (int side = 0; side < 2; side++) {
            p.params[i] = side ? at + step : at - step;
            loss[side] = loss_of(&p, p.params);
        }
        double width = (double)(at + step) - (double)(at - step);
        p.params[i] = at;
        double expected = (loss[1] - loss[0]) / width, error = fabs(p.grad[i] - expected);
        off += error * error;
        norm += expected * expected;
        ck_assert_msg(error < 0.03 + 0.1 * fabs(expected), "parameter %d: %g, differences say %g",
                      (int)i, (double)p.grad[i], expected);
    }
    ck_assert_msg(off < 1e-4 * norm, "gradients are off by %g", sqrt(off / norm));
    close_pass(&p);
}
END_TEST

START_TEST(backends_agree)
{
    for (const backend_ops *const *ops = backend_list(); *ops; ops++) {
        if (!(*ops)->available() || !(*ops)->host_memory)
            continue;
        pass a = open_pass(nets[_i](), "reference"), b = open_pass(nets[_i](), (*ops)->name);
        double loss = loss_of(&a, a.params), other = loss_of(&b, b.params);
        ck_assert_double_eq_tol(loss, other, 1e-4 * (1 + fabs(loss)));
        backward(&a);
        backward(&b);
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < a.net->param_elements; i++) {
            difference += pow((double)a.grad[i] - b.grad[i], 2);
            norm += pow((double)a.grad[i], 2);
        }
        ck_assert_msg(difference <= 1e-8 * norm, "%s: gradients differ by %g", (*ops)->name,
                      sqrt(difference / norm));
        close_pass(&a);
        close_pass(&b);
    }
}
END_TEST

/* A second pass over the same buffers gives the same bits: nothing is left over from the first. */
START_TEST(passes_repeat)
{
    pass p = open_pass(nets[_i](), "auto");
    size_t bytes = (size_t)p.net->param_elements * sizeof(float);
    double first = loss_of(&p, p.params);
    backward(&p);
    float *grad = malloc(bytes);
    ck_assert_ptr_nonnull(grad);
    memcpy(grad, p.grad, bytes);
    ck_assert(loss_of(&p, p.params) == first);
    backward(&p);
    ck_assert_mem_eq(grad, p.grad, bytes);
    free(grad);
    close_pass(&p);
}
END_TEST

/* Evaluation with the statistics of the batch is training's forward pass but for the variance's
 * n / (n - 1). */
START_TEST(evaluation_uses_running_statistics)
{
    pass p = open_pass(residual_net(), "reference");
    double trained = loss_of(&p, p.params);
    float *running = malloc((size_t)p.net->running_elements * sizeof *running);
    ck_assert_ptr_nonnull(running);
    memcpy(running, p.stats, (size_t)p.net->running_elements * sizeof *running);
    for (int i = 0; i < p.net->nodes; i++) {
        const net_node *node = &p.net->node[i];
        if (node->kind != NODE_BN)
            continue;
        float *variance = running + p.net->norm[node->norm].running + node->bn.x.c;
        double count = (double)BATCH * node->bn.x.h * node->bn.x.w;
        for (int c = 0; c < node->bn.x.c; c++)
            variance[c] *= (float)((count - 1) / count);
    }
    ck_assert_int_eq(net_exec_forward_eval(p.e, 0, p.params, running), STATUS_OK);
    double evaluated = 0;
    for (size_t i = 0; i < p.elements[0]; i++)
        evaluated += (double)p.weight[0][i] * net_exec_output(p.e, 0, 0)[i];
    ck_assert_double_eq_tol(evaluated, trained, 1e-4 * (1 + fabs(trained)));
    free(running);
    close_pass(&p);
}
END_TEST

/* ---- schedules ---- */

START_TEST(buffers_never_overlap)
{
    for (int training = 0; training < 2; training++) {
        net *n = nets[_i]();
        exec_schedule s = {0};
        size_t *workspace = calloc((size_t)n->nodes, sizeof *workspace), whole = 0;
        for (int i = 0; i < n->nodes; i++)
            workspace[i] = n->node[i].kind == NODE_POOL ? 1000 : 0;
        exec_sizes sizes = {.batch = BATCH, .pool_workspace = workspace};
        OK(exec_schedule_create(n, &sizes, training, &s, &oops));
        for (int i = 0; i < s.item_count; i++) {
            const memory_item *a = &s.items[i];
            ck_assert_uint_le(a->offset + a->bytes, s.arena_bytes);
            ck_assert_int_le(a->first, a->last);
            whole += a->bytes;
            for (int j = 0; j < i; j++) {
                const memory_item *b = &s.items[j];
                bool in_time = a->first <= b->last && b->first <= a->last;
                bool in_space =
                    a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
                ck_assert_msg(!in_time || !in_space, "buffers %d and %d", i, j);
            }
        }
        ck_assert_uint_lt(s.arena_bytes, whole); /* some are shared */
        exec_schedule_fini(&s);
        free(workspace);
        net_destroy(&n);
    }
}
END_TEST

/* What a backward op reads was alive from the time it was written. */
START_TEST(reads_are_within_lifetimes)
{
    net *n = nets[_i]();
    exec_schedule s = {0};
    size_t *workspace = calloc((size_t)n->nodes, sizeof *workspace);
    exec_sizes sizes = {.batch = BATCH, .pool_workspace = workspace};
    OK(exec_schedule_create(n, &sizes, true, &s, &oops));
    for (int i = 0; i < n->nodes; i++) {
        const exec_step *step = &s.steps[i];
        const int forward[] = {step->x, step->residual, step->y};
        const int back[] = {step->dy1, step->dy2, step->dz, step->dx};
        for (size_t k = 0; k < sizeof forward / sizeof *forward; k++)
            if (forward[k] != NO_ITEM) {
                ck_assert_int_le(s.items[forward[k]].first, i);
                ck_assert_int_ge(s.items[forward[k]].last, i);
            }
        for (size_t k = 0; k < sizeof back / sizeof *back; k++)
            if (back[k] != NO_ITEM) {
                ck_assert_int_le(s.items[back[k]].first, 2 * n->nodes - i);
                ck_assert_int_ge(s.items[back[k]].last, 2 * n->nodes - i);
            }
        bool keeps_input = n->node[i].kind == NODE_CONV || n->node[i].kind == NODE_BN ||
                           n->node[i].kind == NODE_FC;
        if (keeps_input)
            ck_assert_int_ge(s.items[step->x].last, 2 * n->nodes - i);
    }
    exec_schedule_fini(&s);
    free(workspace);
    net_destroy(&n);
}
END_TEST

/* ---- refusals ---- */

static void assert_refused(net *n, const char *part, const char *other)
{
    backend *be = NULL;
    net_exec *e = NULL;
    errbuf err = {0};
    backend_options options = {.threads = 1, .lanes = 1};
    net_exec_options exec = {.batch = BATCH, .lanes = 1, .training = true};
    OK(backend_open("reference", &options, &be, &oops));
    ck_assert_int_eq(net_exec_create(n, be, &exec, &e, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_null(e);
    ck_assert_msg(strstr(err.text, part) && strstr(err.text, other), "%s", err.text);
    be->ops->close(be);
    net_destroy(&n);
}

START_TEST(unused_node_is_refused)
{
    int in[1], y;
    builder b = begin(in, 1);
    y = conv(&b, "stem", in[0], kernel(&b, "stem.weight", 3, 3, 3, true), 3, 1, false);
    conv(&b, "astray", y, kernel(&b, "astray.weight", 3, 3, 3, true), 3, 1, false);
    head(&b, "fc", y);
    const int64_t size = 37;
    const net_rings rings = {
        .index = RING_INDEX_EVEN, .permute = true, .reflect = true, .seed = 3, .size = &size};
    errbuf err = {0};
    ck_assert_int_eq(net_finish(b.net, &rings, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "astray"), "%s", err.text);
    net_destroy(&b.net);
}
END_TEST

START_TEST(shared_norm_is_refused)
{
    int in[1], x, norm;
    builder b = begin(in, 1);
    OK(net_add_norm(b.net, "n", 3, &norm, &oops));
    x = conv(&b, "stem", in[0], kernel(&b, "stem.weight", 3, 3, 3, true), 3, 1, false);
    OK(net_add_bn(b.net, "first", x, norm, true, -1, &x, &oops));
    OK(net_add_bn(b.net, "second", x, norm, true, -1, &x, &oops));
    head(&b, "fc", x);
    assert_refused(finish(&b), "first", "second");
}
END_TEST

/* A backend without an op is named, and the op. */
START_TEST(missing_op_is_refused)
{
    backend *be = NULL;
    net_exec *e = NULL;
    errbuf err = {0};
    backend_options options = {.threads = 1, .lanes = 1};
    net_exec_options exec = {.batch = BATCH, .lanes = 1, .training = true};
    net *n = residual_net();
    OK(backend_open("reference", &options, &be, &oops));
    backend_ops poor = *be->ops;
    const backend_ops *rich = be->ops;
    poor.pool_create = NULL;
    poor.name = "poor";
    be->ops = &poor;
    ck_assert_int_eq(net_exec_create(n, be, &exec, &e, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "poor") && strstr(err.text, "pool"), "%s", err.text);
    be->ops = rich;
    be->ops->close(be);
    net_destroy(&n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exec");
    TCase *tcase = tcase_create("passes");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, gradients_are_differences, 0, NETS);
    tcase_add_loop_test(tcase, backends_agree, 0, NETS);
    tcase_add_loop_test(tcase, passes_repeat, 0, NETS);
    tcase_add_test(tcase, evaluation_uses_running_statistics);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("schedule");
    tcase_add_loop_test(tcase, buffers_never_overlap, 0, NETS);
    tcase_add_loop_test(tcase, reads_are_within_lifetimes, 0, NETS);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("refusals");
    tcase_add_test(tcase, unused_node_is_refused);
    tcase_add_test(tcase, shared_norm_is_refused);
    tcase_add_test(tcase, missing_op_is_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
