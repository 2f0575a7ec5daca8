/* Expand and reduce of every backend: against the definition itself, computed here, with gradients
 * that are small integers so that most comparisons are of bits. */
#include "ops/harness.h"

enum {
    MAX_KERNELS = 8,
    MAX_RINGS = 3,
    GUARD = 5,
    IMAGES = 2,
    OWN_SCALES = 2
};

/* A kernel's place: ring -1 = direct, `at` = position in the ring or element of the parameters. */
typedef struct kernel_case {
    kernel_shape shape;
    int ring;
    int64_t at;
} kernel_case;

typedef struct ring_case {
    ring_map_params map;
    int64_t source; /* where it starts in the parameter vector */
} ring_case;

typedef struct weights_case {
    const char *name;
    int64_t params;
    int scaled; /* OWN_SCALES: every output channel of a kernel has another scale */
    ring_case rings[MAX_RINGS];
    int kernels;
    kernel_case kernel[MAX_KERNELS];
} weights_case;

#define EVEN   RING_INDEX_EVEN, true, true
#define TILE   RING_INDEX_TILE, true, true
#define RANDOM RING_INDEX_RANDOM, true, true
/* 16x8x3x3 = 1152, 32x16x3x3 = 4608, 32x16x1x1 = 512, 17x31x3x3 = 4743: 11015 weights */
#define FOUR_KERNELS                                                             \
    {{16, 8, 3, 3}, 0, 0}, {{32, 16, 3, 3}, 0, 1152}, {{32, 16, 1, 1}, 0, 5760}, \
    {                                                                            \
        {17, 31, 3, 3}, 0, 6272                                                  \
    }

static const weights_case cases[] = {
    {"even", 2500, true, {{{EVEN, 11015, 2500, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"even, no scale", 2500, false, {{{EVEN, 11015, 2500, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"tile", 5000, true, {{{TILE, 11015, 5000, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"tile, smaller than a tile", 700, true, {{{TILE, 11015, 700, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"random", 2500, true, {{{RANDOM, 11015, 2500, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"no permutation",
     2304,
     true,
     {{{RING_INDEX_EVEN, false, true, 11015, 2304, 1, 0}, 0}},
     4,
     {FOUR_KERNELS}},
    {"no reflection",
     2500,
     true,
     {{{RING_INDEX_EVEN, true, false, 11015, 2500, 1, 0}, 0}},
     4,
     {FOUR_KERNELS}},
    {"one element", 1, true, {{{EVEN, 11015, 1, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"nine elements", 12, true, {{{EVEN, 11015, 9, 1, 0}, 2}}, 4, {FOUR_KERNELS}},
    {"tile, one element", 3, true, {{{TILE, 11015, 1, 1, 0}, 2}}, 4, {FOUR_KERNELS}},
    {"a ring that is not used up",
     20000,
     true,
     {{{EVEN, 11015, 20000, 1, 0}, 0}},
     4,
     {FOUR_KERNELS}},
    {"tile that is not used up", 20000, true, {{{TILE, 11015, 20000, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"direct",
     8000,
     false,
     {{{0}, 0}},
     3,
     {{{8, 3, 7, 7}, -1, 100}, {{17, 31, 3, 3}, -1, 1500}, {{5, 4, 1, 1}, -1, 7000}}},
    {"direct, scaled", 2000, true, {{{0}, 0}}, 1, {{{8, 3, 7, 7}, -1, 100}}},
    {"two rings and direct kernels",
     9000,
     true,
     {{{EVEN, 5760, 1000, 1, 0}, 300}, {{TILE, 5255, 3000, 1, 1}, 4000}},
     6,
     {{{4, 3, 3, 3}, -1, 0},
      {{16, 8, 3, 3}, 0, 0},
      {{32, 16, 3, 3}, 0, 1152},
      {{32, 16, 1, 1}, 1, 0},
      {{17, 31, 3, 3}, 1, 512},
      {{31, 8, 1, 1}, -1, 8000}}},
    {"one ring through two maps",
     3000,
     true,
     {{{EVEN, 4608, 3000, 1, 0}, 0}, {{EVEN, 5760, 3000, 1, 1}, 0}},
     3,
     {{{32, 16, 3, 3}, 0, 0}, {{16, 8, 3, 3}, 1, 0}, {{32, 16, 3, 3}, 1, 1152}}},
    {"kernels not in the order of positions",
     1500,
     true,
     {{{EVEN, 11015, 1500, 9, 0}, 0}},
     4,
     {{{17, 31, 3, 3}, 0, 6272},
      {{32, 16, 1, 1}, 0, 5760},
      {{16, 8, 3, 3}, 0, 0},
      {{32, 16, 3, 3}, 0, 1152}}},
    {"part of a ring's positions",
     1500,
     true,
     {{{EVEN, 50000, 1500, 9, 0}, 0}},
     2,
     {{{16, 8, 3, 3}, 0, 30000}, {{32, 16, 1, 1}, 0, 49488}}},
    {"ends of the parameter vector",
     1152 + 64,
     true,
     {{{EVEN, 1152, 64, 2, 0}, 0}},
     2,
     {{{16, 8, 3, 3}, 0, 0}, {{16, 8, 3, 3}, -1, 64}}},
    {"306 uses an element", 40, true, {{{EVEN, 11015, 36, 1, 0}, 3}}, 4, {FOUR_KERNELS}},
    {"random, about 220 uses", 50, true, {{{RANDOM, 11015, 50, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"random, about 1200 uses", 9, true, {{{RANDOM, 11015, 9, 1, 0}, 0}}, 4, {FOUR_KERNELS}},
    {"random, used less than once",
     30000,
     true,
     {{{RANDOM, 11015, 30000, 1, 0}, 0}},
     4,
     {FOUR_KERNELS}},
    {"one weight", 3, true, {{{EVEN, 1, 1, 1, 0}, 1}}, 1, {{{1, 1, 1, 1}, 0, 0}}},
    {"one element, 18432 uses",
     1,
     true,
     {{{EVEN, 18432, 1, 1, 0}, 0}},
     1,
     {{{64, 32, 3, 3}, 0, 0}}},
    {"rings of many elements, of few and of one",
     5000,
     true,
     {{{EVEN, 5760, 1000, 1, 0}, 300},
      {{RANDOM, 512, 3, 1, 1}, 2000},
      {{TILE, 4743, 1, 1, 2}, 2003}},
     5,
     {{{17, 31, 3, 3}, 2, 0},
      {{32, 16, 1, 1}, 1, 0},
      {{16, 8, 3, 3}, 0, 0},
      {{5, 4, 1, 1}, -1, 4000},
      {{32, 16, 3, 3}, 0, 1152}}},
    {"300 different scales",
     500,
     OWN_SCALES,
     {{{EVEN, 3600, 500, 1, 0}, 0}},
     2,
     {{{300, 4, 1, 1}, 0, 0}, {{300, 8, 1, 1}, 0, 1200}}},
    {"300 different scales, many uses",
     5,
     OWN_SCALES,
     {{{EVEN, 3600, 5, 1, 0}, 0}},
     2,
     {{{300, 4, 1, 1}, 0, 0}, {{300, 8, 1, 1}, 0, 1200}}},
};

/* A case on its way through one backend. */
typedef struct bench {
    const weights_case *c;
    int stride; /* of its convs */
    backend *be;
    backend_weights *w;
    backend_conv *convs[2][MAX_KERNELS]; /* [lane][kernel] */
    ring_map maps[MAX_RINGS];
    weight_source sources[MAX_KERNELS];
    float *scales[MAX_KERNELS];
} bench;

/* A conv whose single output pixel makes dW the sum over images of dy x patch. Its stride moves
 * nothing: 2 keeps it off Winograd, which rounds where direct sums of small integers do not. */
static conv_desc conv_for(const weights_case *c, int k, int stride)
{
    kernel_shape s = c->kernel[k].shape;
    conv_desc d = {.x = {IMAGES, s.in, s.kh, s.kw},
                   .out = s.out,
                   .kh = s.kh,
                   .kw = s.kw,
                   .stride_h = stride,
                   .stride_w = stride,
                   .dilation = 1,
                   .groups = 1,
                   .x_layout = s.in == 3 ? LAYOUT_IMAGE : LAYOUT_NATIVE,
                   .passes = CONV_FORWARD | CONV_BACKWARD_WEIGHTS};
    return d;
}

static void make_sources(bench *b)
{
    const weights_case *c = b->c;
    for (int r = 0; r < MAX_RINGS; r++)
        if (c->rings[r].map.m > 0)
            MUST(ring_map_init(&b->maps[r], &c->rings[r].map, NULL));
    for (int k = 0; k < c->kernels; k++) {
        const kernel_case *kc = &c->kernel[k];
        weight_source *s = &b->sources[k];
        s->map = kc->ring < 0 ? NULL : &b->maps[kc->ring];
        s->first = kc->ring < 0 ? 0 : kc->at;
        s->source = kc->ring < 0 ? kc->at : c->rings[kc->ring].source;
        b->scales[k] = host_new(kc->shape.out);
        for (int o = 0; o < kc->shape.out; o++) /* powers of two, integers: sums stay exact */
            b->scales[k][o] =
                c->scaled == OWN_SCALES ? (float)(o + 1) : ldexpf(1.0f, (o * 7 + k) % 5 - 2);
        s->scale = c->scaled ? b->scales[k] : NULL;
    }
}

static bench bench_open_at(const weights_case *c, int stride, const backend_ops *ops, int threads,
                           int lanes)
{
    bench b = {.c = c, .stride = stride, .be = open_ops(ops, threads, lanes)};
    kernel_shape shapes[MAX_KERNELS];
    errbuf err = {0};
    for (int k = 0; k < c->kernels; k++)
        shapes[k] = c->kernel[k].shape;
    MUST(ops->weights_create(b.be, shapes, c->kernels, &b.w, &err));
    for (int lane = 0; lane < lanes; lane++)
        for (int k = 0; k < c->kernels; k++) {
            conv_desc d = conv_for(c, k, stride);
            ck_assert_msg(ops->conv_create(b.w, k, lane, &d, &b.convs[lane][k], &err) == STATUS_OK,
                          "%s", err.text);
        }
    make_sources(&b);
    ck_assert_msg(ops->weights_commit(b.w, b.sources, c->params, &err) == STATUS_OK, "%s",
                  err.text);
    ck_assert_uint_gt(ops->weights_bytes(b.w), 0);
    for (int r = 0; r < MAX_RINGS; r++) /* borrowed until commit returns, no longer */
        if (c->rings[r].map.m > 0) {
            ring_map_fini(&b.maps[r]);
            memset(&b.maps[r], 0xee, sizeof b.maps[r]);
        }
    return b;
}

static bench bench_open(const weights_case *c, const backend_ops *ops, int threads, int lanes)
{
    return bench_open_at(c, 2, ops, threads, lanes);
}

static void bench_close(bench *b)
{
    const backend_ops *ops = b->be->ops;
    for (int lane = 0; lane < 2; lane++)
        for (int k = 0; k < b->c->kernels; k++)
            if (b->convs[lane][k])
                ops->conv_destroy(&b->convs[lane][k]);
    ops->weights_destroy(&b->w);
    ops->close(b->be);
    for (int k = 0; k < b->c->kernels; k++)
        free(b->scales[k]);
}

/* Element of the parameter vector, and factor, of weight j of kernel k: straight from the map. */
static int64_t element_of(const weights_case *c, const ring_map *maps, int k, int64_t j,
                          const float *scale, float *ret_factor)
{
    const kernel_case *kc = &c->kernel[k];
    int64_t o = j / (kernel_elements(kc->shape) / kc->shape.out);
    *ret_factor = c->scaled ? scale[o] : 1.0f;
    if (kc->ring < 0)
        return kc->at + j;
    uint32_t position = (uint32_t)(kc->at + j);
    *ret_factor *= ring_map_sign(&maps[kc->ring], position);
    return c->rings[kc->ring].source + ring_map_index(&maps[kc->ring], position);
}

/* Fresh maps for the expectation; the bench's own are gone by then. */
static void expectation_maps(const weights_case *c, ring_map maps[MAX_RINGS])
{
    for (int r = 0; r < MAX_RINGS; r++)
        if (c->rings[r].map.m > 0)
            MUST(ring_map_init(&maps[r], &c->rings[r].map, NULL));
        else
            maps[r] = (ring_map){0};
}

/* As numbers: 0 and -0 are the same weight. */
static void check_equal(const char *what, int64_t n, const float *got, const float *expect)
{
    int64_t different = 0, first = -1;
    for (int64_t i = 0; i < n; i++)
        if (got[i] != expect[i]) {
            different++;
            first = first < 0 ? i : first;
        }
    ck_assert_msg(different == 0, "%s: %lld of %lld differ, the first at %lld: %g, not %g", what,
                  (long long)different, (long long)n, (long long)first, (double)got[first],
                  (double)expect[first]);
}

static void check_expand(bench *b, const float *params)
{
    const weights_case *c = b->c;
    ring_map maps[MAX_RINGS];
    tensor p = vector_new(b->be, c->params, params);
    MUST(b->be->ops->weights_expand(b->w, p.data));
    expectation_maps(c, maps);
    for (int k = 0; k < c->kernels; k++) {
        int64_t elements = kernel_elements(c->kernel[k].shape);
        float *got = host_new(elements), *expect = host_new(elements);
        for (int64_t j = 0; j < elements; j++) {
            float factor;
            int64_t e = element_of(c, maps, k, j, b->scales[k], &factor);
            expect[j] = factor * params[e];
        }
        MUST(b->be->ops->weights_read(b->w, k, got));
        check_equal(c->name, elements, got, expect);
        free(got);
        free(expect);
    }
    for (int r = 0; r < MAX_RINGS; r++)
        ring_map_fini(&maps[r]);
    tensor_free(&p);
}

/* Expanded weights are what forward convolves with: dot products of small integers are exact. */
static void check_forward(bench *b, int k)
{
    const backend_ops *ops = b->be->ops;
    conv_desc d = conv_for(b->c, k, b->stride);
    int64_t patch = (int64_t)d.x.c * d.kh * d.kw;
    float *x = host_integers(60 + (uint32_t)k, shape_elements(d.x), 2);
    float *w = host_new(kernel_elements(b->c->kernel[k].shape));
    tensor xt = tensor_new(b->be, d.x, d.x_layout, x);
    tensor yt = tensor_new(b->be, conv_output(&d), LAYOUT_NATIVE, NULL);
    MUST(ops->weights_read(b->w, k, w));
    MUST(ops->conv_forward(b->convs[0][k], xt.data, NULL, yt.data));
    float *y = tensor_take(&yt), *expect = host_new(IMAGES * d.out);
    for (int n = 0; n < IMAGES; n++)
        for (int o = 0; o < d.out; o++)
            for (int64_t i = 0; i < patch; i++)
                expect[n * d.out + o] += x[n * patch + i] * w[o * patch + i];
    if (d.stride_h > 1)
        check_same_bits("forward with expanded weights", IMAGES * d.out, y, expect);
    check_close("forward with expanded weights", IMAGES * d.out, y, expect, 1e-5);
    tensor_free(&xt);
    free(x);
    free(w);
    free(y);
    free(expect);
}

START_TEST(expands_as_defined)
{
    const weights_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    bench b = bench_open(c, ops, 2, 1);
    float *params = host_random(5, c->params), *whole = host_integers(6, c->params, 3);
    check_expand(&b, params);
    check_expand(&b, whole);
    for (int k = 0; k < c->kernels; k++)
        check_forward(&b, k);
    for (int64_t i = 0; i < c->params; i++) /* a second time, other values */
        params[i] = -2 * params[i];
    check_expand(&b, params);
    free(params);
    free(whole);
    bench_close(&b);
}
END_TEST

/* Leaves dW in one lane of every kernel; dW[k] in host memory. */
static void leave_gradients(bench *b, int lane, uint32_t seed, bool integers,
                            float *dw[MAX_KERNELS])
{
    const backend_ops *ops = b->be->ops;
    for (int k = 0; k < b->c->kernels; k++) {
        conv_desc d = conv_for(b->c, k, b->stride);
        int64_t nx = shape_elements(d.x), ny = shape_elements(conv_output(&d));
        uint32_t s = seed + 2 * (uint32_t)k;
        float *x = integers ? host_integers(s, nx, 3) : host_random(s, nx);
        float *dy = integers ? host_integers(s + 1, ny, 3) : host_random(s + 1, ny);
        tensor xt = tensor_new(b->be, d.x, d.x_layout, x);
        tensor dyt = tensor_new(b->be, conv_output(&d), LAYOUT_NATIVE, dy);
        MUST(ops->conv_backward_weights(b->convs[lane][k], xt.data, dyt.data, NULL));
        dw[k] = host_new(kernel_elements(b->c->kernel[k].shape));
        MUST(ops->weights_read_grad(b->w, lane, k, dw[k]));
        tensor_free(&xt);
        tensor_free(&dyt);
        free(x);
        free(dy);
    }
}

/* The definition of reduce. covered: what it has to write. */
static double *expected_sums(bench *b, float *dw[MAX_KERNELS], bool *covered)
{
    const weights_case *c = b->c;
    ring_map maps[MAX_RINGS];
    double *sum = calloc((size_t)c->params, sizeof *sum);
    ck_assert_ptr_nonnull(sum);
    expectation_maps(c, maps);
    for (int k = 0; k < c->kernels; k++) {
        const kernel_case *kc = &c->kernel[k];
        int64_t elements = kernel_elements(kc->shape);
        int64_t start = kc->ring < 0 ? kc->at : c->rings[kc->ring].source;
        int64_t count = kc->ring < 0 ? elements : c->rings[kc->ring].map.n;
        for (int64_t e = start; e < start + count; e++)
            covered[e] = true;
        for (int64_t j = 0; j < elements; j++) {
            float factor;
            int64_t e = element_of(c, maps, k, j, b->scales[k], &factor);
            sum[e] += (double)factor * dw[k][j];
        }
    }
    for (int r = 0; r < MAX_RINGS; r++)
        ring_map_fini(&maps[r]);
    return sum;
}

/* Reduces lane `lane` and compares: the bits where all is integer, else relatively. */
static void check_reduce(bench *b, int lane, bool exact, float *dw[MAX_KERNELS])
{
    int64_t n = b->c->params, touched = 0;
    bool *covered = calloc((size_t)n, sizeof *covered);
    ck_assert_ptr_nonnull(covered);
    double *sum = expected_sums(b, dw, covered);
    tensor grad = vector_new(b->be, n, NULL);
    MUST(b->be->ops->weights_reduce(b->w, lane, grad.data));
    float *got = tensor_take(&grad), *expect = host_new(n);
    for (int64_t e = 0; e < n; e++)
        expect[e] = covered[e] ? (float)sum[e] : JUNK;
    for (int64_t e = 0; e < n; e++)
        touched += !covered[e] && got[e] != JUNK;
    ck_assert_msg(touched == 0, "%s: %lld other elements were touched", b->c->name,
                  (long long)touched);
    if (exact)
        check_equal(b->c->name, n, got, expect);
    check_close(b->c->name, n, got, expect, 1e-5);
    free(covered);
    free(sum);
    free(got);
    free(expect);
}

static void free_gradients(const bench *b, float *dw[MAX_KERNELS])
{
    for (int k = 0; k < b->c->kernels; k++)
        free(dw[k]);
}

START_TEST(reduces_as_defined)
{
    const weights_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    bench b = bench_open(c, ops, 2, 1);
    float *dw[MAX_KERNELS], *params = host_random(5, c->params);
    tensor p = vector_new(b.be, c->params, params);
    MUST(ops->weights_expand(b.w, p.data));
    for (int round = 0; round < 3; round++) {
        leave_gradients(&b, 0, 100 + 50 * (uint32_t)round, round != 1, dw);
        check_reduce(&b, 0, round != 1, dw);
        check_reduce(&b, 0, round != 1, dw); /* reducing does not use the gradients up */
        free_gradients(&b, dw);
    }
    tensor_free(&p);
    free(params);
    bench_close(&b);
}
END_TEST

/* Weights and gradients in the layouts of stride 1: Winograd's, where a backend has it. */
START_TEST(at_stride_one)
{
    const weights_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    bench b = bench_open_at(c, 1, ops, 2, 1);
    float *dw[MAX_KERNELS], *params = host_integers(6, c->params, 3);
    check_expand(&b, params);
    for (int k = 0; k < c->kernels; k++)
        check_forward(&b, k);
    leave_gradients(&b, 0, 500, false, dw);
    check_reduce(&b, 0, false, dw);
    free_gradients(&b, dw);
    free(params);
    bench_close(&b);
}
END_TEST

/* The gradients of two lanes are kept apart. */
START_TEST(lanes_have_their_own_gradients)
{
    const weights_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops || !ops->host_memory) /* a device has one lane */
        return;
    bench b = bench_open(c, ops, 2, 2);
    float *zero[MAX_KERNELS], *one[MAX_KERNELS], *params = host_random(5, c->params);
    tensor p = vector_new(b.be, c->params, params);
    MUST(ops->weights_expand(b.w, p.data));
    leave_gradients(&b, 0, 300, true, zero);
    leave_gradients(&b, 1, 400, true, one);
    check_reduce(&b, 1, true, one);
    check_reduce(&b, 0, true, zero);
    free_gradients(&b, zero);
    free_gradients(&b, one);
    tensor_free(&p);
    free(params);
    bench_close(&b);
}
END_TEST

/* The ring gradient from values that do round; the kernels' gradients are left in dw. */
static float *reduce_once(const weights_case *c, const backend_ops *ops, int threads,
                          float *dw[MAX_KERNELS])
{
    bench b = bench_open(c, ops, threads, 1);
    float *params = host_random(5, c->params);
    tensor p = vector_new(b.be, c->params, params), grad = vector_new(b.be, c->params, NULL);
    MUST(ops->weights_expand(b.w, p.data));
    leave_gradients(&b, 0, 700, false, dw);
    MUST(ops->weights_reduce(b.w, 0, grad.data));
    float *got = tensor_take(&grad);
    tensor_free(&p);
    free(params);
    bench_close(&b);
    return got;
}

static bool same_gradients(const weights_case *c, float *a[MAX_KERNELS], float *b[MAX_KERNELS])
{
    bool same = true;
    for (int k = 0; k < c->kernels; k++) {
        size_t bytes = sizeof(float) * (size_t)kernel_elements(c->kernel[k].shape);
        same &= memcmp(a[k], b[k], bytes) == 0;
    }
    return same;
}

/* Run to run; and reduce adds in ascending position, so that threads do not matter where the convs
 * gave it the same gradients. */
START_TEST(reduce_gives_the_same_bits)
{
    const weights_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    float *dw[3][MAX_KERNELS];
    float *first = reduce_once(c, ops, 2, dw[0]), *again = reduce_once(c, ops, 2, dw[1]);
    float *alone = reduce_once(c, ops, 1, dw[2]);
    check_same_bits(c->name, c->params, first, again);
    if (same_gradients(c, dw[0], dw[2]))
        check_same_bits(c->name, c->params, first, alone);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < c->kernels; k++)
            free(dw[i][k]);
    free(first);
    free(again);
    free(alone);
}
END_TEST

START_TEST(not_finite_reaches_every_use)
{
    const backend_ops *ops = loop_backend(_i, 1);
    const weights_case *c = &cases[0];
    if (!ops)
        return;
    bench b = bench_open(c, ops, 2, 1);
    float *params = host_random(5, c->params), *dw[MAX_KERNELS];
    params[7] = NAN;
    tensor p = vector_new(b.be, c->params, params), grad = vector_new(b.be, c->params, NULL);
    int64_t bad = 0;
    MUST(ops->weights_expand(b.w, p.data));
    for (int k = 0; k < c->kernels; k++) {
        int64_t elements = kernel_elements(c->kernel[k].shape);
        float *w = host_new(elements);
        MUST(ops->weights_read(b.w, k, w));
        for (int64_t j = 0; j < elements; j++)
            bad += isnan(w[j]) != 0;
        free(w);
    }
    ck_assert(bad == 4 || bad == 5); /* 11015 / 2500 */
    leave_gradients(&b, 0, 1, true, dw);
    conv_desc d = conv_for(c, 1, b.stride);
    float *x = host_fill(shape_elements(d.x), 1), *dy = host_new(shape_elements(conv_output(&d)));
    dy[3] = INFINITY;
    tensor xt = tensor_new(b.be, d.x, d.x_layout, x);
    tensor dyt = tensor_new(b.be, conv_output(&d), LAYOUT_NATIVE, dy);
    MUST(ops->conv_backward_weights(b.convs[0][1], xt.data, dyt.data, NULL));
    MUST(ops->weights_reduce(b.w, 0, grad.data));
    float *got = tensor_take(&grad);
    bad = 0;
    for (int64_t e = 0; e < c->params; e++)
        bad += !isfinite(got[e]);
    ck_assert_int_ge(bad, 130); /* one filter of 144 weights, few of which meet */
    tensor_free(&p);
    tensor_free(&xt);
    tensor_free(&dyt);
    free_gradients(&b, dw);
    free(x);
    free(dy);
    free(got);
    free(params);
    bench_close(&b);
}
END_TEST

START_TEST(sources_out_of_range_are_refused)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    ring_map_params params = {EVEN, 1152, 100, 1, 0};
    ring_map map;
    MUST(ring_map_init(&map, &params, NULL));
    const kernel_shape shape_of = {16, 8, 3, 3};
    const weight_source bad[] = {
        {NULL, 0, 0, NULL}, {NULL, 0, -1, NULL}, {&map, 1, 0, NULL}, {&map, 0, 901, NULL}};
    for (int i = 0; i < COUNT(bad); i++) {
        backend_weights *w = NULL;
        errbuf err = {0};
        MUST(ops->weights_create(be, &shape_of, 1, &w, NULL));
        ck_assert_int_ne(ops->weights_commit(w, &bad[i], 1000, &err), STATUS_OK);
        ck_assert_str_ne(err.text, "");
        ops->weights_destroy(&w);
    }
    ops->close(be);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("weights");
    TCase *tc = tcase_create("weights");
    ADD_CASES(tc, expands_as_defined, COUNT(cases));
    ADD_CASES(tc, reduces_as_defined, COUNT(cases));
    ADD_CASES(tc, at_stride_one, COUNT(cases));
    ADD_CASES(tc, lanes_have_their_own_gradients, COUNT(cases));
    ADD_CASES(tc, reduce_gives_the_same_bits, COUNT(cases));
    ADD_CASES(tc, not_finite_reaches_every_use, 1);
    ADD_CASES(tc, sources_out_of_range_are_refused, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
