/* Expand and reduce in bf16 of every backend that knows it, against the reference in fp32: weights
 * are rounded at most twice (a large ring, then the scaled weight); gradients that are small
 * integers, which bf16 holds, are summed exactly. */
#include "ops/harness.h"

enum {
    KERNELS = 4,
    IMAGES = 2,
    SOURCE = 5 /* where the ring starts in the parameter vector */
};

typedef struct ring_case {
    const char *name;
    int index; /* enum ring_index */
    int64_t n;
    bool same_scales; /* one a kernel, as nets have; else one an output channel */
} ring_case;

static const ring_case cases[] = {
    {"even", RING_INDEX_EVEN, 2500, false},
    {"even, a scale a kernel", RING_INDEX_EVEN, 2500, true},
    {"tile", RING_INDEX_TILE, 5000, true},
    {"random", RING_INDEX_RANDOM, 2500, false},
    {"36 elements", RING_INDEX_EVEN, 36, true},
    {"random, 50 elements", RING_INDEX_RANDOM, 50, false},
    {"one element", RING_INDEX_EVEN, 1, true},
    {"a ring larger than caches", RING_INDEX_EVEN, 4300000, true},
};

/* The first from a net's input, whose channels are padded in memory. */
static const kernel_shape shapes[KERNELS] = {
    {16, 3, 3, 3}, {32, 16, 3, 3}, {32, 16, 1, 1}, {17, 31, 3, 3}};

/* One case on one backend. */
typedef struct bench {
    backend *be;
    backend_weights *w;
    backend_conv *convs[KERNELS];
    float *scale[KERNELS];
} bench;

/* A conv whose single output pixel makes dW the sum over images of dy x patch. */
static conv_desc conv_for(int k)
{
    const kernel_shape s = shapes[k];
    conv_desc d = {.x = {IMAGES, s.in, s.kh, s.kw},
                   .out = s.out,
                   .kh = s.kh,
                   .kw = s.kw,
                   .stride_h = 1,
                   .stride_w = 1,
                   .dilation = 1,
                   .groups = 1,
                   .x_layout = s.in == 3 ? LAYOUT_IMAGE : LAYOUT_NATIVE,
                   .passes = CONV_FORWARD | CONV_BACKWARD_WEIGHTS};
    return d;
}

/* Powers of two: gradients stay exact. */
static float scale_for(const ring_case *c, int k, int o)
{
    return ldexpf(1.0f, c->same_scales ? k % 3 - 1 : (o * 7 + k) % 5 - 2);
}

static void commit(bench *b, const ring_case *c)
{
    ring_map_params params = {c->index, true, true, 0, c->n, 3, 0};
    weight_source sources[KERNELS] = {{0}};
    ring_map map;
    errbuf err = {0};
    for (int k = 0; k < KERNELS; k++) {
        b->scale[k] = host_new(shapes[k].out);
        for (int o = 0; o < shapes[k].out; o++)
            b->scale[k][o] = scale_for(c, k, o);
        sources[k] = (weight_source){&map, params.m, SOURCE, b->scale[k]};
        params.m += kernel_elements(shapes[k]);
    }
    MUST(ring_map_init(&map, &params, NULL));
    ck_assert_msg(b->be->ops->weights_commit(b->w, sources, c->n + SOURCE, &err) == STATUS_OK, "%s",
                  err.text);
    ring_map_fini(&map);
}

static bench bench_open(const ring_case *c, const backend_ops *ops, compute_type compute)
{
    backend_options options = {.threads = 2, .lanes = 1, .compute = compute};
    bench b = {0};
    errbuf err = {0};
    ck_assert_msg(ops->open(&options, &b.be, &err) == STATUS_OK, "%s", err.text);
    MUST(ops->weights_create(b.be, shapes, KERNELS, &b.w, &err));
    for (int k = 0; k < KERNELS; k++) {
        conv_desc d = conv_for(k);
        ck_assert_msg(ops->conv_create(b.w, k, 0, &d, &b.convs[k], &err) == STATUS_OK, "%s",
                      err.text);
    }
    commit(&b, c);
    return b;
}

static void bench_close(bench *b)
{
    const backend_ops *ops = b->be->ops;
    for (int k = 0; k < KERNELS; k++) {
        ops->conv_destroy(&b->convs[k]);
        free(b->scale[k]);
    }
    ops->weights_destroy(&b->w);
    ops->close(b->be);
}

/* The weights of kernel k, after an expansion. */
static float *weights_of(const bench *b, int k)
{
    float *w = host_new(kernel_elements(shapes[k]));
    MUST(b->be->ops->weights_read(b->w, k, w));
    return w;
}

/* NULL where this machine or backend cannot. */
static const backend_ops *bf16_backend(int i)
{
    const backend_ops *ops = loop_backend(i, COUNT(cases));
    return ops && (ops->computes >> COMPUTE_BF16 & 1) ? ops : NULL;
}

/* Each weight is right to 2^-8 of itself. */
START_TEST(expands_and_rounds)
{
    const ring_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = bf16_backend(_i);
    if (!ops)
        return;
    bench got = bench_open(c, ops, COMPUTE_BF16);
    bench expect = bench_open(c, backend_find("reference"), COMPUTE_FP32);
    float *params = host_random(5, c->n + SOURCE);
    tensor p = vector_new(got.be, c->n + SOURCE, params);
    MUST(ops->weights_expand(got.w, p.data));
    MUST(expect.be->ops->weights_expand(expect.w, params));
    for (int k = 0; k < KERNELS; k++) {
        float *w = weights_of(&got, k), *r = weights_of(&expect, k);
        int64_t wrong = 0, elements = kernel_elements(shapes[k]);
        for (int64_t j = 0; j < elements; j++)
            wrong += !(fabsf(w[j] - r[j]) <= fabsf(r[j]) * 0x1p-8f);
        ck_assert_msg(wrong == 0, "%s: %lld of %lld weights of kernel %d are not right", c->name,
                      (long long)wrong, (long long)elements, k);
        free(w);
        free(r);
    }
    tensor_free(&p);
    free(params);
    bench_close(&expect);
    bench_close(&got);
}
END_TEST

/* Leaves small integers as the gradient of kernel k. */
static void leave_gradient(bench *b, int k)
{
    const backend_ops *ops = b->be->ops;
    conv_desc d = conv_for(k);
    shape ys = conv_output(&d);
    float *x = host_integers(2 * (uint32_t)k, shape_elements(d.x), 3);
    float *dy = host_integers(2 * (uint32_t)k + 1, shape_elements(ys), 3);
    tensor xt = tensor_new(b->be, d.x, d.x_layout, x);
    tensor dyt = tensor_new(b->be, ys, LAYOUT_NATIVE, dy);
    MUST(ops->conv_backward_weights(b->convs[k], xt.data, dyt.data, NULL));
    tensor_free(&xt);
    tensor_free(&dyt);
    free(x);
    free(dy);
}

static float *reduced(bench *b, int64_t n)
{
    for (int k = 0; k < KERNELS; k++)
        leave_gradient(b, k);
    tensor grad = vector_new(b->be, n, NULL);
    MUST(b->be->ops->weights_reduce(b->w, 0, grad.data));
    return tensor_take(&grad);
}

START_TEST(reduces_exactly)
{
    const ring_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = bf16_backend(_i);
    if (!ops)
        return;
    bench got = bench_open(c, ops, COMPUTE_BF16);
    bench expect = bench_open(c, backend_find("reference"), COMPUTE_FP32);
    float *g = reduced(&got, c->n + SOURCE), *r = reduced(&expect, c->n + SOURCE);
    for (int64_t e = 0; e < c->n + SOURCE; e++) /* as numbers: 0 is -0 */
        ck_assert_msg(g[e] == r[e], "%s: element %lld: %g, not %g", c->name, (long long)e,
                      (double)g[e], (double)r[e]);
    free(g);
    free(r);
    bench_close(&expect);
    bench_close(&got);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("weights_bf16");
    TCase *tc = tcase_create("weights_bf16");
    ADD_CASES(tc, expands_and_rounds, COUNT(cases));
    ADD_CASES(tc, reduces_exactly, COUNT(cases));
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
