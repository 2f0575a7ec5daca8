/* The graph: general nets (a block used twice, several inputs and outputs), refusals, placement of
 * parameters, initial values. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/resnet.h"

static errbuf err;

static void clear_error(void)
{
    memset(&err, 0, sizeof err);
}

static void ok(status st)
{
    ck_assert_msg(st == STATUS_OK, "%s", err.text);
}

/* The call was refused with a line that holds `text`. */
static void refused(status st, const char *text)
{
    ck_assert_int_eq(st, STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, text) != NULL, "'%s' is not in: %s", text, err.text);
    clear_error();
}

static const conv_desc same3 = {
    .stride_h = 1, .stride_w = 1, .pad_h = 1, .pad_w = 1, .dilation = 1, .groups = 1};
static const conv_desc point = {.stride_h = 1, .stride_w = 1, .dilation = 1, .groups = 1};

/* A shared sub-network: stem, then one BasicBlock used twice with the same kernels and its own
 * norms each time; two inputs, two outputs (one of them read on). */
typedef struct twice {
    net *n;
    basic_block_parts kernels, norms[2];
    int ring, mid, end;
} twice;

static twice make_twice(void)
{
    twice t = {0};
    basic_block_shape s = {8, 8, 1};
    int a, b, ka, kb, x, y;
    ok(net_create("twice", &t.n, &err));
    ok(net_add_ring(t.n, "block", &t.ring, &err));
    ok(net_add_input(t.n, 3, 16, 16, &a, &err));
    ok(net_add_input(t.n, 1, 16, 16, &b, &err));
    ok(net_add_kernel(t.n, "image.weight", (kernel_shape){8, 3, 3, 3}, -1, &ka, &err));
    ok(net_add_kernel(t.n, "depth.weight", (kernel_shape){8, 1, 1, 1}, -1, &kb, &err));
    ok(net_add_conv(t.n, "image", a, ka, &same3, &x, &err));
    ok(net_add_conv(t.n, "depth", b, kb, &point, &y, &err));
    ok(net_add_add(t.n, "join", x, y, &x, &err));
    ok(basic_block_add_kernels(t.n, "block", s, t.ring, &t.kernels, &err));
    ok(basic_block_add_norms(t.n, "block.use0", s, &t.norms[0], &err));
    ok(basic_block_add_norms(t.n, "block.use1", s, &t.norms[1], &err));
    ok(basic_block_add_nodes(t.n, "use0", s, x, &t.kernels, &t.norms[0], &t.mid, &err));
    ok(basic_block_add_nodes(t.n, "use1", s, t.mid, &t.kernels, &t.norms[1], &t.end, &err));
    ok(net_add_output(t.n, t.mid, &err));
    ok(net_add_global_avg_pool(t.n, "pool", t.end, &x, &err));
    ok(net_add_fc(t.n, "fc", x, 5, &x, &err));
    ok(net_add_output(t.n, x, &err));
    return t;
}

static void finish(net *n, int64_t size)
{
    net_rings rings = {.permute = true, .reflect = true, .seed = 3, .size = &size};
    ok(net_finish(n, &rings, &err));
}

START_TEST(a_block_can_be_used_twice)
{
    clear_error();
    twice t = make_twice();
    net *n = t.n;
    finish(n, 100);
    ck_assert_int_eq(n->inputs, 2);
    ck_assert_int_eq(n->outputs, 2);
    ck_assert_int_eq(n->ring[0].m, 2 * 8 * 8 * 9); /* two slots, not four */
    ck_assert_int_eq(n->norms, 4);
    ck_assert_int_eq(n->running_elements, 4 * 16);
    int uses = 0, readers = 0;
    for (int i = 0; i < n->nodes; i++) {
        uses += n->node[i].kind == NODE_CONV && n->node[i].kernel == t.kernels.conv1;
        for (int k = 0; k < n->node[i].inputs; k++)
            readers += n->node[i].input[k] == t.mid;
    }
    ck_assert_int_eq(uses, 2);
    ck_assert_int_eq(readers, 2); /* conv1 and the residual of the second use */
    ck_assert_int_ne(t.norms[0].conv1, t.norms[1].conv1);
    net_destroy(&n);
}
END_TEST

START_TEST(nodes_are_in_topological_order)
{
    clear_error();
    twice t = make_twice();
    for (int i = 0; i < t.n->nodes; i++) {
        for (int k = 0; k < t.n->node[i].inputs; k++)
            ck_assert_int_lt(t.n->tensor[t.n->node[i].input[k]].producer, i);
        ck_assert_int_eq(t.n->tensor[t.n->node[i].output].producer, i);
    }
    net_destroy(&t.n);
    ck_assert_ptr_null(t.n);
    net_destroy(&t.n);
}
END_TEST

/* [rings | direct in creation order], every float exactly once. */
START_TEST(parameters_fill_the_vector_without_gaps)
{
    clear_error();
    twice t = make_twice();
    finish(t.n, 101);
    char *seen = calloc((size_t)t.n->param_elements, 1);
    ck_assert_ptr_nonnull(seen);
    int64_t before = -1, total = 0;
    for (int i = 0; i < t.n->params; i++) {
        const net_param *p = &t.n->param[i];
        int64_t dims = 1;
        for (int k = 0; k < p->dims; k++)
            dims *= p->dim[k];
        ck_assert_int_eq(dims, p->elements);
        ck_assert_int_gt(p->offset, before);
        before = p->offset;
        total += p->elements;
        for (int64_t k = 0; k < p->elements; k++)
            ck_assert_int_eq(seen[p->offset + k]++, 0);
    }
    ck_assert_int_eq(total, t.n->param_elements);
    ck_assert_int_eq(t.n->param_elements, 101 + 8 * 27 + 8 + 4 * 16 + 8 * 5 + 5);
    ck_assert_str_eq(t.n->param[t.n->ring[0].param].name, "ring.block");
    ck_assert_int_eq(t.n->param[t.n->ring[0].param].offset, 0);
    free(seen);
    net_destroy(&t.n);
}
END_TEST

/* A ring that is added last still comes first in the vector. */
START_TEST(rings_come_first_in_the_vector)
{
    clear_error();
    net *n = NULL;
    int64_t size[2] = {10, 20};
    net_rings rings = {.permute = true, .size = size};
    int x, k, ring0, ring1;
    ok(net_create("late", &n, &err));
    ok(net_add_input(n, 2, 4, 4, &x, &err));
    ok(net_add_kernel(n, "a", (kernel_shape){2, 2, 1, 1}, -1, &k, &err));
    ok(net_add_conv(n, "a", x, k, &point, &x, &err));
    ok(net_add_ring(n, "one", &ring0, &err));
    ok(net_add_ring(n, "two", &ring1, &err));
    ok(net_add_kernel(n, "b", (kernel_shape){2, 2, 3, 3}, ring1, &k, &err));
    ok(net_add_conv(n, "b", x, k, &same3, &x, &err));
    ok(net_add_kernel(n, "c", (kernel_shape){4, 2, 1, 1}, ring0, &k, &err));
    ok(net_add_conv(n, "c", x, k, &point, &x, &err));
    ok(net_add_output(n, x, &err));
    ok(net_finish(n, &rings, &err));
    ck_assert_int_eq(n->param[n->ring[ring0].param].offset, 0);
    ck_assert_int_eq(n->param[n->ring[ring1].param].offset, 10);
    ck_assert_int_eq(n->param[n->kernel[0].param].offset, 30);
    ck_assert_int_eq(n->param_elements, 34);
    ck_assert(fabs(n->ring[0].sigma - sqrt(2.0 / 36)) < 1e-15); /* one sigma: widest of both */
    ck_assert(n->ring[1].sigma == n->ring[0].sigma);
    ck_assert(fabs(n->kernel[1].alpha - sqrt(2.0 / 18) / sqrt(2.0 / 36)) < 1e-6);
    net_destroy(&n);
}
END_TEST

START_TEST(shapes_that_do_not_fit_are_refused)
{
    clear_error();
    net *n = NULL;
    int x, k, y, m, norm, out, p;
    conv_desc bare5 = point, grouped = same3;
    ok(net_create("bad", &n, &err));
    ok(net_add_input(n, 4, 3, 5, &x, &err));
    ok(net_add_kernel(n, "five", (kernel_shape){8, 4, 5, 5}, -1, &k, &err));
    int nodes = n->nodes, tensors = n->tensors, params = n->params;
    refused(net_add_conv(n, "five", x, k, &bare5, &y, &err),
            "input is too small for 'five': 3 rows with padding 0");
    bare5.pad_h = 1;
    ok(net_add_conv(n, "five", x, k, &bare5, &y, &err)); /* 3 + 2 rows, 5 columns: one place */
    ck_assert_int_eq(n->tensor[y].shape.h, 1);
    ck_assert_int_eq(n->tensor[y].shape.w, 1);
    nodes++, tensors++;
    grouped.groups = 2;
    refused(net_add_conv(n, "groups", x, k, &grouped, &out, &err), "in 2 groups");
    refused(net_add_global_avg_pool(n, "pool", x, &out, &err), "a network input");
    refused(net_add_fc(n, "fc", y, 3, &out, &err), "pool its input first");
    ok(net_add_norm(n, "norm", 7, &norm, &err));
    params += 2;
    refused(net_add_bn(n, "bn", y, norm, true, -1, &out, &err),
            "8 channels, its norm 'norm' has 7");
    ok(net_add_global_avg_pool(n, "pool", y, &m, &err));
    nodes++, tensors++;
    refused(net_add_add(n, "add", m, m, &out, &err), "a matrix");
    refused(net_add_conv(n, "matrix", m, k, &same3, &out, &err), "matrix");
    refused(net_add_max_pool(n, "max", y, 3, 2, 0, &out, &err), "too small for 'max'");
    ok(net_add_kernel(n, "one", (kernel_shape){8, 4, 1, 1}, -1, &p, &err));
    params++;
    ok(net_add_conv(n, "one", x, p, &point, &out, &err));
    nodes++, tensors++;
    refused(net_add_add(n, "add", y, out, &out, &err), "cannot add 8 x 3 x 5 to 8 x 1 x 1");
    ck_assert_int_eq(n->nodes, nodes);
    ck_assert_int_eq(n->tensors, tensors);
    ck_assert_int_eq(n->params, params);
    net_destroy(&n);
}
END_TEST

START_TEST(names_mean_one_thing)
{
    clear_error();
    net *n = NULL;
    int x, k;
    char long_name[200];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    ok(net_create("names", &n, &err));
    ok(net_add_ring(n, "r", &x, &err));
    refused(net_add_ring(n, "r", &x, &err), "ring 'r' is already");
    ok(net_add_kernel(n, "k", (kernel_shape){1, 1, 1, 1}, 0, &k, &err));
    refused(net_add_kernel(n, "k", (kernel_shape){1, 1, 1, 1}, -1, &k, &err), "kernel 'k'");
    ok(net_add_norm(n, "bn", 4, &x, &err));
    refused(net_add_norm(n, "bn", 4, &x, &err), "norm 'bn'");
    refused(net_add_kernel(n, "bn.bias", (kernel_shape){1, 1, 1, 1}, -1, &k, &err), "'bn.bias'");
    refused(net_add_norm(n, long_name, 4, &x, &err), "letters");
    ck_assert_int_eq(n->ring[0].m, 1);
    ck_assert_int_eq(n->running_elements, 8);
    ck_assert_int_eq(n->params, 3);
    net_destroy(&n);
}
END_TEST

START_TEST(what_nothing_uses_is_refused)
{
    clear_error();
    int64_t size = 10;
    net_rings rings = {.permute = true, .size = &size};
    net *n = NULL;
    int x, y, k, ring;
    ok(net_create("loose", &n, &err));
    refused(net_finish(n, &rings, &err), "no output");
    ok(net_add_ring(n, "r", &ring, &err));
    ok(net_add_input(n, 1, 4, 4, &x, &err));
    ok(net_add_kernel(n, "k", (kernel_shape){1, 1, 1, 1}, -1, &k, &err));
    ok(net_add_conv(n, "first", x, k, &point, &x, &err));
    ok(net_add_conv(n, "second", x, k, &point, &y, &err));
    ok(net_add_output(n, x, &err));
    refused(net_finish(n, &rings, &err), "nothing reads the output of 'second'");
    ok(net_add_output(n, y, &err));
    refused(net_finish(n, &rings, &err), "no kernel draws from ring 'r'");
    ok(net_add_kernel(n, "idle", (kernel_shape){1, 1, 1, 1}, ring, &k, &err));
    refused(net_finish(n, &rings, &err), "no node uses kernel 'idle'");
    ok(net_add_conv(n, "third", y, k, &point, &y, &err));
    ok(net_add_output(n, y, &err));
    size = 0;
    refused(net_finish(n, &rings, &err), "has a size of 0");
    ck_assert_int_eq(n->param_elements, 0);
    size = 5;
    ok(net_finish(n, &rings, &err));
    net_destroy(&n);
}
END_TEST

static void moments(const float *values, int64_t count, double *mean, double *std)
{
    double sum = 0, square = 0;
    for (int64_t i = 0; i < count; i++)
        sum += values[i];
    *mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++)
        square += (values[i] - *mean) * (values[i] - *mean);
    *std = sqrt(square / (double)count);
}

/* A net with large parameters of every kind. */
static net *make_wide(int64_t size)
{
    net *n = NULL;
    int x, k, norm, ring;
    conv_desc biased = same3;
    biased.bias = true;
    ok(net_create("wide", &n, &err));
    ok(net_add_ring(n, "r", &ring, &err));
    ok(net_add_input(n, 3, 4, 4, &x, &err));
    ok(net_add_kernel(n, "stem", (kernel_shape){256, 3, 7, 7}, -1, &k, &err));
    conv_desc stem = biased;
    stem.pad_h = stem.pad_w = 3;
    ok(net_add_conv(n, "stem", x, k, &stem, &x, &err));
    ok(net_add_norm(n, "bn", 256, &norm, &err));
    ok(net_add_bn(n, "bn", x, norm, true, -1, &x, &err));
    ok(net_add_kernel(n, "k", (kernel_shape){64, 256, 3, 3}, ring, &k, &err));
    ok(net_add_conv(n, "k", x, k, &same3, &x, &err));
    ok(net_add_global_avg_pool(n, "pool", x, &x, &err));
    ok(net_add_fc(n, "fc", x, 1000, &x, &err));
    ok(net_add_output(n, x, &err));
    finish(n, size);
    return n;
}

static const net_param *find_param(const net *n, const char *name)
{
    for (int i = 0; i < n->params; i++)
        if (strcmp(n->param[i].name, name) == 0)
            return &n->param[i];
    ck_abort_msg("no parameter %s", name);
    return NULL;
}

START_TEST(initial_values_have_their_distributions)
{
    clear_error();
    net *n = make_wide(50000);
    float *p = malloc((size_t)n->param_elements * sizeof *p);
    float *running = malloc((size_t)n->running_elements * sizeof *running);
    double mean, std;
    ck_assert(p && running);
    net_init_params(n, 11, p, running);

    const net_param *stem = find_param(n, "stem"), *fc = find_param(n, "fc.weight");
    double bound = sqrt(2.0 / (256 * 49)), largest = 0;
    moments(p + stem->offset, stem->elements, &mean, &std); /* 37,632 draws: 5 standard errors */
    ck_assert(fabs(mean) < 5 * bound / sqrt(37632));
    ck_assert(fabs(std / bound - 1) < 5 / sqrt(2 * 37632.0));
    moments(p + fc->offset, fc->elements, &mean, &std);
    ck_assert(fabs(mean) < 5 * 0.125 / sqrt(3 * 64000.0));
    ck_assert(fabs(std / (0.125 / sqrt(3)) - 1) < 0.01);
    for (int64_t i = 0; i < fc->elements; i++)
        largest = fmax(largest, fabsf(p[fc->offset + i]));
    ck_assert(largest <= 0.125 && largest > 0.1249);
    const net_param *bias = find_param(n, "fc.bias");
    moments(p + bias->offset, bias->elements, &mean, &std);
    ck_assert(std > 0.06 && std < 0.085);
    moments(p + find_param(n, "ring.r")->offset, 50000, &mean, &std);
    ck_assert(fabs(std / sqrt(2.0 / (9 * 64)) - 1) < 0.02);
    for (int i = 0; i < 256; i++) {
        ck_assert(p[find_param(n, "bn.weight")->offset + i] == 1);
        ck_assert(p[find_param(n, "bn.bias")->offset + i] == 0);
        ck_assert(p[find_param(n, "stem.bias")->offset + i] == 0);
        ck_assert(running[i] == 0 && running[256 + i] == 1);
    }
    free(p);
    free(running);
    net_destroy(&n);
}
END_TEST

START_TEST(initial_values_are_functions_of_seed_and_place)
{
    clear_error();
    net *small = make_wide(100), *large = make_wide(3000);
    float *a = malloc((size_t)small->param_elements * sizeof *a);
    float *b = malloc((size_t)large->param_elements * sizeof *b);
    float *c = malloc((size_t)large->param_elements * sizeof *c);
    float running[512];
    ck_assert(a && b && c);
    net_init_params(small, 11, a, running);
    net_init_params(large, 11, b, running);
    net_init_params(large, 11, c, running);
    ck_assert_mem_eq(b, c, (size_t)large->param_elements * sizeof *b);
    /* the ring's size changes neither the direct parameters nor the elements that both have */
    ck_assert_mem_eq(a, b, 100 * sizeof *a);
    ck_assert_mem_eq(a + 100, b + 3000, (size_t)(small->param_elements - 100) * sizeof *a);
    net_init_params(large, 12, c, running);
    ck_assert_mem_eq(b, c, 3000 * sizeof *b); /* the ring has a seed of its own */
    const net_param *stem = find_param(large, "stem"), *fc = find_param(large, "fc.weight");
    ck_assert(memcmp(b + stem->offset, c + stem->offset, 64) != 0);
    ck_assert(memcmp(b + fc->offset, c + fc->offset, 64) != 0);
    free(a);
    free(b);
    free(c);
    net_destroy(&small);
    net_destroy(&large);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("net_graph");
    TCase *tc = tcase_create("graph");
    tcase_add_test(tc, a_block_can_be_used_twice);
    tcase_add_test(tc, nodes_are_in_topological_order);
    tcase_add_test(tc, parameters_fill_the_vector_without_gaps);
    tcase_add_test(tc, rings_come_first_in_the_vector);
    tcase_add_test(tc, shapes_that_do_not_fit_are_refused);
    tcase_add_test(tc, names_mean_one_thing);
    tcase_add_test(tc, what_nothing_uses_is_refused);
    tcase_add_test(tc, initial_values_have_their_distributions);
    tcase_add_test(tc, initial_values_are_functions_of_seed_and_place);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
