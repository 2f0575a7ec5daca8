/*
 * The cuda backend where things go wrong, which a real device rarely does on demand: no device, an
 * old one or an old driver, memory that runs out at any allocation, launches that fail; and that
 * ops do not allocate. On the stand-in runtime (simt_testing.h).
 */
#include <cjson/cJSON.h>

#include "ops/harness.h"
#include "simt_testing.h"

static const backend_ops *cuda(void)
{
    const backend_ops *ops = backend_find("cuda");
    ck_assert_ptr_nonnull(ops);
    return ops;
}

/* ---- opening ---- */

/* Opening fails with this status and a line that has these words. */
static void check_refused(const backend_options *options, status expect, const char *words)
{
    backend *be = NULL;
    errbuf err = {0};
    ck_assert_int_eq(cuda()->open(options, &be, &err), expect);
    ck_assert_ptr_null(be);
    ck_assert_msg(strstr(err.text, words), "\"%s\" is not in \"%s\"", words, err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
    ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
}

static const backend_options plain = {.threads = 1, .lanes = 1};

START_TEST(devices_that_will_not_do)
{
    static const struct {
        simt_device device;
        int ordinal;
        const char *words;
    } rows[] = {
        {{0, 0, 0, cudaSuccess}, 0, "no CUDA device was found"},
        {{0, 0, 0, cudaErrorNoDevice}, 0, "no CUDA device was found"},
        {{0, 0, 0, cudaErrorInsufficientDriver}, 0, "driver is too old"},
        {{0, 0, 0, cudaErrorSystemDriverMismatch}, 0, "cannot be listed"},
        {{1, 7, 5, cudaSuccess}, 0, "compute capability 7.5, 8.0"},
        {{2, 9, 0, cudaSuccess}, 2, "device 2 was asked for, 2 are visible"},
        {{1, 9, 0, cudaSuccess}, -1, "device -1 was asked for, 1 is visible"},
    };
    backend_options options = plain;
    options.device = rows[_i].ordinal;
    simt_set_device(rows[_i].device);
    ck_assert_int_eq(cuda()->available(), rows[_i].device.major >= 8);
    ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    check_refused(&options, STATUS_ENVIRONMENT, rows[_i].words);
}
END_TEST

/* More ranks than devices, each alone: they share; NCCL asks for the device that it became. */
START_TEST(devices_are_shared)
{
    backend_options options = plain;
    backend *be = NULL;
    errbuf err = {0};
    options.device = 5;
    options.share_devices = true;
    simt_set_device((simt_device){2, 9, 0, cudaSuccess});
    ck_assert_msg(cuda()->open(&options, &be, &err) == STATUS_OK, "%s", err.text);
    ck_assert_int_eq(be->options.device, 1);
    cuda()->close(be);
}
END_TEST

START_TEST(options_that_will_not_do)
{
    backend_options options = plain;
    options.lanes = 2;
    options.threads = 2;
    check_refused(&options, STATUS_BAD_INPUT, "lane");
    static const struct {
        const char *plan, *words;
    } rows[] = {
        {"[]", "an object"},
        {"{\"cudnn\": 3}", "\"cudnn\""},
        {"{\"backend\": \"cpu\", \"cudnn\": {}}", "backend \"cpu\""},
    };
    for (int i = 0; i < COUNT(rows); i++) {
        cJSON *plan = cJSON_Parse(rows[i].plan);
        ck_assert_ptr_nonnull(plan);
        options = plain;
        options.plan = plan;
        check_refused(&options, STATUS_BAD_INPUT, rows[i].words);
        cJSON_Delete(plan);
    }
}
END_TEST

/* What is described can be given as a plan. */
START_TEST(plan_there_and_back)
{
    static const struct {
        compute_type compute;
        const char *name;
    } rows[] = {{COMPUTE_FP32, "fp32"}, {COMPUTE_TF32, "tf32"}, {COMPUTE_BF16, "bf16"}};
    backend_options options = plain;
    options.compute = rows[_i].compute;
    backend *be = NULL;
    cJSON *plan = NULL, *again = NULL;
    MUST(cuda()->open(&options, &be, NULL));
    MUST(cuda()->describe(be, &plan, NULL));
    cuda()->close(be);
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(plan, "backend")), "cuda");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(plan, "capability")), "9.0");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(plan, "compute")), rows[_i].name);
    ck_assert(cJSON_IsObject(cJSON_GetObjectItem(plan, "cudnn")));
    options.plan = plan;
    MUST(cuda()->open(&options, &be, NULL));
    MUST(cuda()->describe(be, &again, NULL));
    ck_assert(cJSON_Compare(plan, again, true));
    cuda()->close(be);
    cJSON_Delete(plan);
    cJSON_Delete(again);
}
END_TEST

/* ---- memory ---- */

START_TEST(memory_that_runs_out)
{
    backend *be = open_ops(cuda(), 1, 1);
    void *memory = NULL;
    errbuf err = {0};
    ck_assert_int_eq(cuda()->alloc(be, (size_t)1 << 40, &memory, &err), STATUS_OUT_OF_MEMORY);
    ck_assert_ptr_null(memory);
    static const char *const words[] = {"1024.00 GiB were asked for", "of 8.00 GiB are free",
                                        "train.batch", "train.shard", "model.width"};
    for (int i = 0; i < COUNT(words); i++)
        ck_assert_msg(strstr(err.text, words[i]), "\"%s\" is not in \"%s\"", words[i], err.text);
    ck_assert_str_eq(cuda()->last_error(be), err.text);
    errbuf_clear(&err);
    ck_assert_int_eq(cuda()->alloc_shared(be, (size_t)1 << 40, &memory, &err),
                     STATUS_OUT_OF_MEMORY);
    ck_assert_ptr_null(memory);
    MUST(cuda()->alloc(be, 1000, &memory, NULL)); /* afterwards all is well */
    ck_assert_uint_eq((uintptr_t)memory % 256, 0);
    cuda()->release(be, memory);
    cuda()->close(be);
}
END_TEST

/* One small layer of each kind, and what it works on. */
typedef struct layers {
    backend *be;
    backend_weights *weights;
    backend_conv *conv;
    backend_bn *bn;
    backend_pool *pool, *average;
    backend_fc *fc;
    backend_loss *loss;
} layers;

static const shape input = {2, 8, 6, 6};
static const conv_desc conv = {.x = {2, 8, 6, 6},
                               .out = 8,
                               .kh = 3,
                               .kw = 3,
                               .stride_h = 1,
                               .stride_w = 1,
                               .pad_h = 1,
                               .pad_w = 1,
                               .dilation = 1,
                               .groups = 1,
                               .x_layout = LAYOUT_NATIVE,
                               .passes = CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS};

enum {
    RING = 100
};

/* What is made of the objects, up to the first that fails. */
static status layers_create(layers *l, const ring_map *map, errbuf *err)
{
    const backend_ops *ops = l->be->ops;
    const kernel_shape kernel = {8, 8, 3, 3};
    const weight_source source = {.map = map};
    const bn_desc bn = {input, 1e-5f, true, true, 0};
    const pool_desc pool = {.kind = POOL_MAX, .x = input, .kernel = 3, .stride = 2, .pad = 1};
    const pool_desc average = {.kind = POOL_GLOBAL_AVG, .x = input};
    const fc_desc fc = {2, 8, 10};
    const loss_desc loss = {2, 10};
    TRY(ops->weights_create(l->be, &kernel, 1, &l->weights, err));
    TRY(ops->conv_create(l->weights, 0, 0, &conv, &l->conv, err));
    TRY(ops->weights_commit(l->weights, &source, RING, err));
    TRY(ops->bn_create(l->be, 0, &bn, &l->bn, err));
    TRY(ops->pool_create(l->be, 0, &pool, &l->pool, err));
    TRY(ops->pool_create(l->be, 0, &average, &l->average, err));
    TRY(ops->fc_create(l->be, 0, &fc, &l->fc, err));
    return ops->loss_create(l->be, 0, &loss, &l->loss, err);
}

static void layers_destroy(layers *l)
{
    const backend_ops *ops = l->be->ops;
    ops->loss_destroy(&l->loss);
    ops->fc_destroy(&l->fc);
    ops->pool_destroy(&l->average);
    ops->pool_destroy(&l->pool);
    ops->bn_destroy(&l->bn);
    ops->conv_destroy(&l->conv);
    ops->weights_destroy(&l->weights);
}

static ring_map small_map(void)
{
    const ring_map_params params = {
        .index = RING_INDEX_EVEN, .permute = true, .reflect = true, .m = 8 * 8 * 9, .n = RING};
    ring_map map;
    MUST(ring_map_init(&map, &params, NULL));
    return map;
}

/* Whichever allocation fails: a clear line, nothing left behind, and the next try works. */
START_TEST(creating_fails_cleanly)
{
    static const compute_type computes[] = {COMPUTE_FP32, COMPUTE_BF16};
    backend_options options = plain;
    options.compute = computes[_i];
    layers l = {0};
    ring_map map = small_map();
    MUST(cuda()->open(&options, &l.be, NULL));
    const long live = simt_live_allocations();
    status st = STATUS_OUT_OF_MEMORY;
    for (long n = 1; st != STATUS_OK; n++) {
        errbuf err = {0};
        ck_assert_int_lt(n, 1000);
        simt_fail_allocation(n);
        st = layers_create(&l, &map, &err);
        simt_fail_allocation(0);
        if (st != STATUS_OK) {
            ck_assert_int_eq(st, STATUS_OUT_OF_MEMORY);
            ck_assert_str_ne(err.text, "");
        }
        layers_destroy(&l);
        ck_assert_int_eq(simt_live_allocations(), live);
        ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    }
    ring_map_fini(&map);
    cuda()->close(l.be);
}
END_TEST

/* ---- ops ---- */

/* A span of zeros for anything that an op of the layers above reads or writes. */
enum {
    SPANS = 8,
    SPAN_BYTES = 1 << 16,
};

typedef struct bench {
    layers l;
    float *at[SPANS];
    step_control *control;
    void *shared;
} bench;

/* Each op once; the first status that is not OK, and how many were OK. */
static status each_op(bench *b, int from, int *ret_done)
{
    backend *be = b->l.be;
    const backend_ops *ops = be->ops;
    float **at = b->at;
    const sgd_params sgd = {0.1f, 0.9f, 1e-4f, 1, true};
    int k = 0;
#define OP(call)           \
    do {                   \
        if (k++ >= from) { \
            TRY(call);     \
            *ret_done = k; \
        }                  \
    } while (0)
    OP(ops->step_begin(be, b->control, b->shared, 2));
    OP(ops->weights_expand(b->l.weights, at[0]));
    OP(ops->conv_forward(b->l.conv, at[0], NULL, at[1]));
    OP(ops->bn_forward_train(b->l.bn, at[0], at[1], at[2], at[3], at[4], at[5], at[6]));
    OP(ops->bn_forward_eval(b->l.bn, at[0], at[1], at[2], at[3], at[4], at[5]));
    OP(ops->pool_forward(b->l.pool, at[0], at[1], at[7] + 1000));
    OP(ops->pool_forward(b->l.average, at[0], at[1], at[7] + 2000));
    OP(ops->fc_forward(b->l.fc, at[0], at[1], at[2], at[3]));
    OP(ops->loss_run(b->l.loss, at[0], (const int32_t *)(const void *)at[7], 2, 1, at[1],
                     (loss_sums *)(void *)at[2]));
    OP(ops->fc_backward(b->l.fc, at[0], at[1], at[2], at[3], at[4], at[5]));
    OP(ops->pool_backward(b->l.average, at[0], NULL, at[7] + 2000, at[2]));
    OP(ops->pool_backward(b->l.pool, at[0], at[3], at[7] + 1000, at[2]));
    OP(ops->bn_backward(b->l.bn, at[0], at[1], at[2], at[3], at[4], NULL, at[5], at[6],
                        at[5] + 8000, at[6] + 8000));
    OP(ops->conv_backward_data(b->l.conv, at[0], at[1]));
    OP(ops->conv_backward_weights(b->l.conv, at[0], at[1], NULL));
    OP(ops->weights_reduce(b->l.weights, 0, at[0]));
    OP(ops->add(be, 1000, at[0], at[1], at[2]));
    OP(ops->add_native(be, 1000, at[0], at[1], at[2]));
    OP(ops->exact_accumulate(be, 1000, at[0], (int64_t *)(void *)at[1], b->control));
    OP(ops->exact_to_float(be, 1000, (const int64_t *)(const void *)at[1], at[0]));
    OP(ops->step_word(be, b->control, (const loss_sums *)(const void *)at[2], 1, false, at[3]));
    OP(ops->step_judge(be, b->control, false, at[3]));
    OP(ops->all_finite(be, 1000, at[0], b->control));
    OP(ops->blend(be, 1000, at[0], 0.9f, at[1], 0.1f, b->control));
    OP(ops->sgd(be, 1000, at[0], at[1], at[2], &sgd, b->control));
    OP(ops->step_end(be, b->control, (const loss_sums *)(const void *)at[2], 1, b->shared,
                     (loss_sums *)b->shared + 8, 2));
#undef OP
    return STATUS_OK;
}

static bench bench_new(const ring_map *map, compute_type compute)
{
    backend_options options = plain;
    bench b = {0};
    errbuf err = {0};
    options.compute = compute;
    MUST(cuda()->open(&options, &b.l.be, NULL));
    ck_assert_msg(layers_create(&b.l, map, &err) == STATUS_OK, "%s", err.text);
    for (int i = 0; i < SPANS; i++)
        MUST(cuda()->alloc(b.l.be, SPAN_BYTES, (void **)&b.at[i], NULL));
    MUST(cuda()->alloc(b.l.be, sizeof *b.control, (void **)&b.control, NULL));
    MUST(cuda()->alloc_shared(b.l.be, 4096, &b.shared, NULL));
    return b;
}

static void bench_free(bench *b)
{
    layers_destroy(&b->l);
    for (int i = 0; i < SPANS; i++)
        cuda()->release(b->l.be, b->at[i]);
    cuda()->release(b->l.be, b->control);
    cuda()->release_shared(b->l.be, b->shared);
    cuda()->close(b->l.be);
}

static const compute_type both_types[] = {COMPUTE_FP32, COMPUTE_BF16};

/* A step can be recorded, whole, and neither recording nor launching allocates. */
START_TEST(ops_record_and_do_not_allocate)
{
    ring_map map = small_map();
    bench b = bench_new(&map, both_types[_i]);
    backend_graph *g = NULL;
    int done = 0;
    MUST(each_op(&b, 0, &done));
    const long before = simt_allocations(), kernels = simt_kernels();
    MUST(cuda()->graph_begin(b.l.be));
    MUST(each_op(&b, 0, &done));
    ck_assert_int_eq(simt_kernels(), kernels);
    ck_assert_msg(cuda()->graph_end(b.l.be, &g) == STATUS_OK, "%s", cuda()->last_error(b.l.be));
    for (int i = 0; i < 3; i++)
        MUST(cuda()->graph_launch(g));
    ck_assert_int_ge(simt_kernels() - kernels, 3 * done);
    ck_assert_int_eq(simt_allocations(), before);
    step_control c;
    MUST(cuda()->download(b.l.be, &c, b.control, sizeof c));
    ck_assert_uint_eq(c.step, 4);
    cuda()->graph_destroy(&g);
    bench_free(&b);
    ring_map_fini(&map);
}
END_TEST

/* A launch that fails is seen by the op itself, and its line names the kernel and the device. */
START_TEST(launches_that_fail)
{
    ring_map map = small_map();
    bench b = bench_new(&map, both_types[_i]);
    int all = 0;
    MUST(each_op(&b, 0, &all));
    simt_fail_launches(cudaErrorLaunchFailure);
    for (int k = 0; k < all; k++) {
        int done = -1;
        ck_assert_msg(each_op(&b, k, &done) == STATUS_ENVIRONMENT, "op %d", k);
        ck_assert_msg(done == -1, "op %d did not see that it failed", k);
        const char *line = cuda()->last_error(b.l.be);
        ck_assert_msg(strstr(line, "cudaErrorLaunchFailure") && strstr(line, "SIMT"), "%s", line);
        ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    }
    simt_fail_launches(cudaErrorMemoryAllocation);
    int done = 0;
    ck_assert_int_eq(each_op(&b, 0, &done), STATUS_OUT_OF_MEMORY);
    simt_fail_launches(cudaSuccess);
    MUST(each_op(&b, 0, &done));
    bench_free(&b);
    ring_map_fini(&map);
}
END_TEST

/* A graph of which an op failed is not made. */
START_TEST(recording_that_fails)
{
    ring_map map = small_map();
    bench b = bench_new(&map, COMPUTE_FP32);
    backend_graph *g = NULL;
    MUST(cuda()->graph_begin(b.l.be));
    MUST(cuda()->add(b.l.be, 10, b.at[0], b.at[1], b.at[2]));
    simt_fail_launches(cudaErrorLaunchFailure);
    ck_assert_int_ne(cuda()->add(b.l.be, 10, b.at[0], b.at[1], b.at[2]), STATUS_OK);
    simt_fail_launches(cudaSuccess);
    MUST(cuda()->add(b.l.be, 10, b.at[0], b.at[1], b.at[2]));
    ck_assert_int_ne(cuda()->graph_end(b.l.be, &g), STATUS_OK);
    ck_assert_ptr_null(g);
    ck_assert_ptr_nonnull(strstr(cuda()->last_error(b.l.be), "cudaErrorLaunchFailure"));
    bench_free(&b);
    ring_map_fini(&map);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device");
    TCase *tc = tcase_create("device");
    tcase_add_loop_test(tc, devices_that_will_not_do, 0, 7);
    tcase_add_test(tc, devices_are_shared);
    tcase_add_test(tc, options_that_will_not_do);
    tcase_add_loop_test(tc, plan_there_and_back, 0, 3);
    tcase_add_test(tc, memory_that_runs_out);
    tcase_add_loop_test(tc, creating_fails_cleanly, 0, 2);
    tcase_add_loop_test(tc, ops_record_and_do_not_allocate, 0, 2);
    tcase_add_loop_test(tc, launches_that_fail, 0, 2);
    tcase_add_test(tc, recording_that_fails);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
