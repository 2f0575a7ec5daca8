/*
 * What only the cpu backend has: large rings, which it generates through sorted uses and cuts into
 * many spans, and plans of convolution algorithms.
 */
#include <check.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"

#define MUST(expr) ck_assert_int_eq((expr), STATUS_OK)

static float unit_value(uint32_t seed, int64_t i)
{
    uint32_t x = (uint32_t)i * 2654435761u + seed * 40503u + 12345u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return (float)(x >> 8) * 0x1p-23f - 1.0f;
}

static float *random_floats(uint32_t seed, int64_t n)
{
    float *x = malloc(sizeof *x * (size_t)n);
    ck_assert_ptr_nonnull(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = unit_value(seed, i);
    return x;
}

static backend *open_cpu(int threads, int lanes, const cJSON *plan, status expect, errbuf *err)
{
    backend_options options = {.threads = threads, .lanes = lanes, .plan = plan};
    backend *be = NULL;
    ck_assert_int_eq(backend_find("cpu")->open(&options, &be, err), expect);
    return be;
}

/* ---- large rings ---- */

/* Three convs of one ring: whole blocks, and channels that leave holes in blocks of any size. */
enum {
    KERNELS = 3,
    WEIGHTS = 256 * 128 * 9 + 256 * 256 * 9 + 20 * 250,
    BEFORE = 7, /* parameters before and behind the ring */
    BEHIND = 5
};
static const kernel_shape kernels[KERNELS] = {{256, 128, 3, 3}, {256, 256, 3, 3}, {20, 250, 1, 1}};

static const struct {
    int index, permute;
    int64_t n;
} rings[] = {
    {RING_INDEX_EVEN, 1, 300001},   {RING_INDEX_EVEN, 1, 1000000}, {RING_INDEX_TILE, 1, 600000},
    {RING_INDEX_RANDOM, 1, 524288}, {RING_INDEX_EVEN, 0, 270000},  {RING_INDEX_EVEN, 1, 100},
};

typedef struct net {
    backend *be;
    const backend_ops *ops;
    backend_weights *weights;
    backend_conv *conv[2][KERNELS];
    ring_map map;
    float *scale[KERNELS], *params, *grad;
    int64_t floats;
} net;

static conv_desc conv_of(int kernel)
{
    const kernel_shape *k = &kernels[kernel];
    return (conv_desc){.x = {2, k->in, 4, 3},
                       .out = k->out,
                       .kh = k->kh,
                       .kw = k->kw,
                       .stride_h = 1,
                       .stride_w = 1,
                       .pad_h = k->kh / 2,
                       .pad_w = k->kw / 2,
                       .dilation = 1,
                       .groups = 1,
                       .x_layout = LAYOUT_NATIVE,
                       .passes = CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS};
}

static net net_new(int ring, int threads, int lanes)
{
    net t = {.be = open_cpu(threads, lanes, NULL, STATUS_OK, NULL)};
    weight_source sources[KERNELS];
    int64_t first = 0;
    ring_map_params params = {
        rings[ring].index, rings[ring].permute, true, WEIGHTS, rings[ring].n, 77, 0};
    t.ops = t.be->ops;
    t.floats = BEFORE + rings[ring].n + BEHIND;
    MUST(ring_map_init(&t.map, &params, NULL));
    MUST(t.ops->weights_create(t.be, kernels, KERNELS, &t.weights, NULL));
    for (int k = 0; k < KERNELS; k++) {
        conv_desc d = conv_of(k);
        t.scale[k] = random_floats(100 + (uint32_t)k, kernels[k].out);
        sources[k] = (weight_source){&t.map, first, BEFORE, t.scale[k]};
        first += kernel_elements(kernels[k]);
        for (int l = 0; l < lanes; l++)
            MUST(t.ops->conv_create(t.weights, k, l, &d, &t.conv[l][k], NULL));
    }
    MUST(t.ops->weights_commit(t.weights, sources, t.floats, NULL));
    t.params = random_floats(1, t.floats);
    t.grad = random_floats(2, t.floats);
    return t;
}

static void net_free(net *t)
{
    for (int k = 0; k < KERNELS; k++) {
        for (int l = 0; l < 2; l++)
            t->ops->conv_destroy(&t->conv[l][k]);
        free(t->scale[k]);
    }
    t->ops->weights_destroy(&t->weights);
    ring_map_fini(&t->map);
    t->ops->close(t->be);
    free(t->params);
    free(t->grad);
}

/* The element of a ring and the sign that weight j has, by the map's own functions. */
static float weight_of(const net *t, int kernel, int64_t j, int64_t first, int64_t *ret_element)
{
    const kernel_shape *k = &kernels[kernel];
    uint32_t entry = ring_map_entry(&t->map, (uint32_t)(first + j));
    *ret_element = BEFORE + (entry & ~RING_SIGN_BIT);
    return t->scale[kernel][j / (k->in * k->kh * k->kw)] * (entry & RING_SIGN_BIT ? -1.0f : 1.0f);
}

START_TEST(large_rings_expand_as_defined)
{
    for (int threads = 1; threads <= 3; threads++) {
        net t = net_new(_i, threads, 1);
        int64_t first = 0, element;
        MUST(t.ops->weights_expand(t.weights, t.params));
        for (int k = 0; k < KERNELS; k++) {
            const int64_t count = kernel_elements(kernels[k]);
            float *got = random_floats(3, count);
            int64_t wrong = 0;
            MUST(t.ops->weights_read(t.weights, k, got));
            for (int64_t j = 0; j < count; j++) {
                float factor = weight_of(&t, k, j, first, &element);
                wrong += got[j] != factor * t.params[element];
            }
            ck_assert_msg(wrong == 0, "kernel %d: %lld of %lld weights are wrong", k,
                          (long long)wrong, (long long)count);
            first += count;
            free(got);
        }
        net_free(&t);
    }
}
END_TEST

/* What backward data computes with: with dy one at one output pixel and channel, dx is a filter. */
START_TEST(backward_data_has_the_same_weights)
{
    net t = net_new(_i, 2, 1);
    conv_desc d = conv_of(1);
    const shape y = conv_output(&d);
    const int64_t nx = shape_elements(d.x), ny = shape_elements(y);
    float *weights = random_floats(3, kernel_elements(kernels[1])), *dx = random_floats(4, nx);
    float *dy = calloc((size_t)ny, sizeof *dy);
    void *device_dy = NULL, *device_dx = NULL;
    ck_assert_ptr_nonnull(dy);
    MUST(t.ops->alloc(t.be, t.ops->tensor_bytes(t.be, y, LAYOUT_NATIVE), &device_dy, NULL));
    MUST(t.ops->alloc(t.be, t.ops->tensor_bytes(t.be, d.x, LAYOUT_NATIVE), &device_dx, NULL));
    MUST(t.ops->weights_expand(t.weights, t.params));
    MUST(t.ops->weights_read(t.weights, 1, weights));
    for (int o = 3; o < d.out; o += 83) {
        int64_t wrong = 0;
        memset(dy, 0, sizeof *dy * (size_t)ny);
        dy[((int64_t)o * y.h + 1) * y.w + 1] = 1; /* image 0, pixel (1, 1) */
        MUST(t.ops->pack(t.be, y, LAYOUT_NATIVE, device_dy, dy));
        MUST(t.ops->conv_backward_data(t.conv[0][1], device_dy, device_dx));
        MUST(t.ops->unpack(t.be, d.x, LAYOUT_NATIVE, dx, device_dx));
        for (int i = 0; i < d.x.c; i++) {
            for (int k = 0; k < 9; k++) {
                float got = dx[((int64_t)i * d.x.h + k / 3) * d.x.w + k % 3];
                float expect = weights[((int64_t)o * d.x.c + i) * 9 + k];
                wrong += fabsf(got - expect) > 1e-5f * fmaxf(1.0f, fabsf(expect));
            }
        }
        ck_assert_msg(wrong == 0, "channel %d: %lld weights are wrong", o, (long long)wrong);
    }
    t.ops->release(t.be, device_dy);
    t.ops->release(t.be, device_dx);
    free(weights);
    free(dx);
    free(dy);
    net_free(&t);
}
END_TEST

/* Leaves gradients in a lane. */
static void run_backward(net *t, int lane)
{
    for (int k = 0; k < KERNELS; k++) {
        conv_desc d = conv_of(k);
        const shape y = conv_output(&d);
        float *x = random_floats(10 + (uint32_t)k, shape_elements(d.x));
        float *dy = random_floats(20 + (uint32_t)k, shape_elements(y));
        void *device_x = NULL, *device_dy = NULL;
        MUST(
            t->ops->alloc(t->be, t->ops->tensor_bytes(t->be, d.x, LAYOUT_NATIVE), &device_x, NULL));
        MUST(t->ops->alloc(t->be, t->ops->tensor_bytes(t->be, y, LAYOUT_NATIVE), &device_dy, NULL));
        MUST(t->ops->pack(t->be, d.x, LAYOUT_NATIVE, device_x, x));
        MUST(t->ops->pack(t->be, y, LAYOUT_NATIVE, device_dy, dy));
        MUST(t->ops->conv_backward_weights(t->conv[lane][k], device_x, device_dy, NULL));
        t->ops->release(t->be, device_x);
        t->ops->release(t->be, device_dy);
        free(x);
        free(dy);
    }
}

/* The definition, in double, from the gradients as the backend reads them back. */
static double *expected_gradient(const net *t)
{
    double *sum = calloc((size_t)t->floats, sizeof *sum);
    int64_t first = 0, element;
    ck_assert_ptr_nonnull(sum);
    for (int k = 0; k < KERNELS; k++) {
        const int64_t count = kernel_elements(kernels[k]);
        float *dw = random_floats(3, count);
        MUST(t->ops->weights_read_grad(t->weights, 0, k, dw));
        for (int64_t j = 0; j < count; j++) {
            float factor = weight_of(t, k, j, first, &element);
            sum[element] += (double)factor * dw[j];
        }
        first += count;
        free(dw);
    }
    return sum;
}

START_TEST(large_rings_reduce_as_defined)
{
    net t = net_new(_i, 2, 1);
    float *before = random_floats(2, t.floats);
    double difference = 0, norm = 0;
    run_backward(&t, 0);
    double *expect = expected_gradient(&t);
    MUST(t.ops->weights_reduce(t.weights, 0, t.grad));
    for (int64_t e = 0; e < t.floats; e++) {
        bool inside = e >= BEFORE && e < t.floats - BEHIND;
        ck_assert_msg(inside || t.grad[e] == before[e], "element %lld was touched", (long long)e);
        difference += inside ? pow(t.grad[e] - expect[e], 2) : 0;
        norm += inside ? pow(expect[e], 2) : 0;
    }
    ck_assert_double_gt(norm, 0);
    ck_assert_double_lt(sqrt(difference / norm), 1e-6);
    free(before);
    free(expect);
    net_free(&t);
}
END_TEST

static status reduce_in_lane(void *ctx, int lane)
{
    net *t = ctx;
    return lane == 0 ? t->ops->weights_reduce(t->weights, 0, t->grad) : STATUS_OK;
}

/* One thread per conv everywhere (lanes), so that the gradients have the same bits; then reductions
 * by one thread, by three, and inside a lane. */
START_TEST(large_rings_reduce_to_the_same_bits)
{
    net one = net_new(_i, 1, 1), three = net_new(_i, 3, 2);
    run_backward(&one, 0);
    run_backward(&three, 0);
    MUST(one.ops->weights_reduce(one.weights, 0, one.grad));
    MUST(three.ops->weights_reduce(three.weights, 0, three.grad));
    ck_assert_int_eq(memcmp(one.grad, three.grad, sizeof *one.grad * (size_t)one.floats), 0);
    memset(three.grad + BEFORE, 1, sizeof *three.grad * (size_t)rings[_i].n);
    MUST(three.ops->run_lanes(three.be, 2, reduce_in_lane, &three));
    ck_assert_int_eq(memcmp(one.grad, three.grad, sizeof *one.grad * (size_t)one.floats), 0);
    net_free(&one);
    net_free(&three);
}
END_TEST

/* ---- plans ---- */

/* Creates one small conv on a backend. */
static status try_conv(backend *be, errbuf *err)
{
    kernel_shape kernel = {8, 8, 3, 3};
    conv_desc d = {.x = {1, 8, 5, 5},
                   .out = 8,
                   .kh = 3,
                   .kw = 3,
                   .stride_h = 2,
                   .stride_w = 2,
                   .pad_h = 1,
                   .pad_w = 1,
                   .dilation = 1,
                   .groups = 1,
                   .x_layout = LAYOUT_NATIVE,
                   .passes = CONV_FORWARD};
    backend_weights *weights = NULL;
    backend_conv *conv = NULL;
    MUST(be->ops->weights_create(be, &kernel, 1, &weights, NULL));
    status st = be->ops->conv_create(weights, 0, 0, &d, &conv, err);
    be->ops->conv_destroy(&conv);
    be->ops->weights_destroy(&weights);
    return st;
}

START_TEST(a_plan_can_be_given_back)
{
    cJSON *plan = NULL, *again = NULL;
    backend *be = open_cpu(2, 1, NULL, STATUS_OK, NULL);
    MUST(try_conv(be, NULL));
    MUST(be->ops->describe(be, &plan, NULL));
    be->ops->close(be);
    ck_assert_str_eq(cJSON_GetObjectItem(plan, "backend")->valuestring, "cpu");
    ck_assert_int_eq(cJSON_GetObjectItem(plan, "threads")->valueint, 2);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(plan, "conv")), 1);
    be = open_cpu(2, 1, plan, STATUS_OK, NULL);
    MUST(try_conv(be, NULL));
    MUST(be->ops->describe(be, &again, NULL));
    ck_assert(cJSON_Compare(plan, again, true));
    be->ops->close(be);
    cJSON_Delete(plan);
    cJSON_Delete(again);
}
END_TEST

static const struct {
    const char *plan, *message;
} bad_plans[] = {
    {"[]", "plan"},
    {"{\"conv\": 3}", "plan"},
    {"{}", "conv"},
    {"{\"backend\": \"cuda\", \"conv\": {}}", "cuda"},
    {"{\"conv\": {\"n1 c2\": 1}}", "n1 c2"},
    {"{\"conv\": {\"n1 c2\": {\"sideways\": \"direct\"}}}", "sideways"},
    {"{\"conv\": {\"n1 c2\": {\"forward\": \"fft\"}}}", "fft"},
    {"{\"conv\": {\"n1 c2\": {\"forward\": 1}}}", "forward"},
};

START_TEST(bad_plans_are_refused)
{
    errbuf err = {0};
    cJSON *plan = cJSON_Parse(bad_plans[_i].plan);
    ck_assert_ptr_nonnull(plan);
    ck_assert_ptr_null(open_cpu(1, 1, plan, STATUS_BAD_INPUT, &err));
    ck_assert_msg(strstr(err.text, bad_plans[_i].message), "%s", err.text);
    cJSON_Delete(plan);
}
END_TEST

/* Winograd with a stride: no library has it. */
START_TEST(an_impossible_algorithm_is_refused_by_name)
{
    errbuf err = {0};
    cJSON *plan = NULL;
    backend *be = open_cpu(1, 1, NULL, STATUS_OK, NULL);
    MUST(try_conv(be, NULL));
    MUST(be->ops->describe(be, &plan, NULL));
    be->ops->close(be);
    cJSON *conv = cJSON_GetObjectItem(plan, "conv")->child;
    ck_assert(cJSON_ReplaceItemInObject(conv, "forward", cJSON_CreateString("winograd")));
    be = open_cpu(1, 1, plan, STATUS_OK, NULL);
    ck_assert_int_eq(try_conv(be, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, conv->string) && strstr(err.text, "forward"), "%s", err.text);
    be->ops->close(be);
    cJSON_Delete(plan);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cpu");
    TCase *tc = tcase_create("cpu");
    const int ring_count = sizeof rings / sizeof *rings;
    tcase_set_timeout(tc, 120);
    if (backend_find("cpu")) {
        tcase_add_loop_test(tc, large_rings_expand_as_defined, 0, ring_count);
        tcase_add_loop_test(tc, backward_data_has_the_same_weights, 0, ring_count);
        tcase_add_loop_test(tc, large_rings_reduce_as_defined, 0, ring_count);
        tcase_add_loop_test(tc, large_rings_reduce_to_the_same_bits, 0, ring_count);
        tcase_add_test(tc, a_plan_can_be_given_back);
        tcase_add_loop_test(tc, bad_plans_are_refused, 0, sizeof bad_plans / sizeof *bad_plans);
        tcase_add_test(tc, an_impossible_algorithm_is_refused_by_name);
    }
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
