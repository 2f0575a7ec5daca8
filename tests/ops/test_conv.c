/* Convolution of every backend against the reference: shapes, layouts, non-finite values, shared
 * kernels, lanes, bits. */
#include "ops/harness.h"

/* Winograd is allowed for; direct sums are ten times nearer. */
#define TOLERANCE    5e-5

#define FORWARD_ONLY (CONV_FORWARD)
#define ALL          (CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS)
#define STEM         (CONV_FORWARD | CONV_BACKWARD_WEIGHTS)

/* x, out, kernel h w, stride h w, pad h w, dilation, groups, bias, layout, passes */
static const conv_desc cases[] = {
    {{1, 1, 1, 1}, 1, 1, 1, 1, 1, 0, 0, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 8, 9, 7}, 8, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 8, 8}, 16, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{3, 16, 9, 9}, 32, 3, 3, 2, 2, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 8, 8}, 32, 3, 3, 2, 2, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 64, 8, 8}, 64, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{5, 64, 4, 4}, 128, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 64, 8, 8}, 128, 1, 1, 2, 2, 0, 0, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 7, 5}, 32, 1, 1, 2, 2, 0, 0, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 31, 7, 9}, 17, 1, 1, 1, 1, 0, 0, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{3, 3, 7, 5}, 5, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 4, 6, 6}, 31, 3, 3, 1, 1, 1, 1, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{1, 5, 9, 8}, 4, 3, 3, 2, 2, 1, 1, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{3, 17, 5, 5}, 1, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 1, 12, 11}, 17, 5, 5, 1, 1, 2, 2, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{2, 31, 6, 6}, 31, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 8, 9, 9}, 16, 3, 3, 3, 2, 0, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 5, 8, 10}, 8, 1, 5, 1, 1, 0, 2, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 8, 10, 6}, 5, 3, 1, 2, 1, 1, 0, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{2, 8, 9, 9}, 8, 3, 3, 1, 1, 2, 2, 2, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 16, 13, 11}, 17, 3, 3, 2, 2, 3, 3, 3, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 3, 7, 7}, 8, 3, 3, 1, 1, 0, 0, 2, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 7, 7}, 16, 3, 3, 1, 1, 1, 1, 1, 2, false, LAYOUT_NATIVE, ALL},
    {{1, 64, 5, 5}, 32, 3, 3, 1, 1, 1, 1, 1, 4, true, LAYOUT_NATIVE, ALL},
    {{2, 8, 6, 6}, 8, 3, 3, 1, 1, 1, 1, 1, 8, false, LAYOUT_NATIVE, ALL},
    {{2, 6, 6, 6}, 9, 3, 3, 2, 2, 1, 1, 1, 3, true, LAYOUT_NATIVE, ALL},
    {{1, 17, 5, 5}, 17, 3, 3, 1, 1, 1, 1, 1, 17, false, LAYOUT_NATIVE, ALL},
    {{2, 3, 32, 32}, 8, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{3, 3, 16, 15}, 64, 3, 3, 1, 1, 1, 1, 1, 1, true, LAYOUT_IMAGE, STEM},
    {{1, 3, 33, 29}, 16, 7, 7, 2, 2, 3, 3, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{2, 3, 32, 32}, 64, 7, 7, 2, 2, 3, 3, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{3, 1, 9, 9}, 5, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{2, 4, 9, 9}, 31, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{4, 16, 8, 8}, 16, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, FORWARD_ONLY},
    {{1, 3, 24, 24}, 8, 7, 7, 2, 2, 3, 3, 1, 1, true, LAYOUT_IMAGE, FORWARD_ONLY},
};

/* What a conv is given and what it makes; host memory, NCHW and OIHW. */
typedef struct conv_data {
    float *x, *w, *bias, *dy;
} conv_data;
typedef struct conv_result {
    float *y, *dx, *dw, *dbias;
} conv_result;

static kernel_shape kernel_of(const conv_desc *d)
{
    kernel_shape k = {d->out, d->x.c / d->groups, d->kh, d->kw};
    return k;
}

static conv_data make_data(const conv_desc *d, uint32_t seed)
{
    conv_data in = {host_random(seed, shape_elements(d->x)),
                    host_random(seed + 1, kernel_elements(kernel_of(d))),
                    host_random(seed + 2, d->out),
                    host_random(seed + 3, shape_elements(conv_output(d)))};
    return in;
}

static void free_data(conv_data *in)
{
    free(in->x);
    free(in->w);
    free(in->bias);
    free(in->dy);
}

static void free_result(conv_result *r)
{
    free(r->y);
    free(r->dx);
    free(r->dw);
    free(r->dbias);
}

/* Weights of one kernel with its own parameters; not committed. */
static backend_weights *one_kernel(backend *be, const conv_desc *d)
{
    kernel_shape k = kernel_of(d);
    backend_weights *w = NULL;
    errbuf err = {0};
    ck_assert_msg(be->ops->weights_create(be, &k, 1, &w, &err) == STATUS_OK, "%s", err.text);
    return w;
}

static backend_conv *new_conv(backend_weights *w, backend *be, int lane, const conv_desc *d)
{
    backend_conv *c = NULL;
    errbuf err = {0};
    ck_assert_msg(be->ops->conv_create(w, 0, lane, d, &c, &err) == STATUS_OK, "%s", err.text);
    return c;
}

static void commit_and_expand(backend *be, backend_weights *w, const conv_desc *d,
                              const float *oihw)
{
    int64_t elements = kernel_elements(kernel_of(d));
    weight_source source = {0};
    errbuf err = {0};
    ck_assert_msg(be->ops->weights_commit(w, &source, elements, &err) == STATUS_OK, "%s", err.text);
    tensor params = vector_new(be, elements, oihw);
    MUST(be->ops->weights_expand(w, params.data));
    tensor_free(&params);
}

/* The three passes of one conv object; dw stays in the weights. */
static conv_result pass_conv(backend *be, backend_conv *c, const conv_desc *d, const conv_data *in)
{
    conv_result r = {0};
    shape ys = conv_output(d);
    tensor x = tensor_new(be, d->x, d->x_layout, in->x);
    tensor y = tensor_new(be, ys, LAYOUT_NATIVE, NULL);
    tensor dy = tensor_new(be, ys, LAYOUT_NATIVE, in->dy);
    tensor bias = vector_new(be, d->out, in->bias);
    MUST(be->ops->conv_forward(c, x.data, d->bias ? bias.data : NULL, y.data));
    r.y = tensor_take(&y);
    if (d->passes & CONV_BACKWARD_DATA) {
        tensor dx = tensor_new(be, d->x, d->x_layout, NULL);
        MUST(be->ops->conv_backward_data(c, dy.data, dx.data));
        r.dx = tensor_take(&dx);
    }
    if (d->passes & CONV_BACKWARD_WEIGHTS) {
        tensor dbias = vector_new(be, d->out, NULL);
        MUST(be->ops->conv_backward_weights(c, x.data, dy.data, d->bias ? dbias.data : NULL));
        r.dbias = tensor_take(&dbias);
    }
    tensor_free(&x);
    tensor_free(&dy);
    tensor_free(&bias);
    return r;
}

static conv_result run_conv(backend *be, const conv_desc *d, const conv_data *in)
{
    backend_weights *w = one_kernel(be, d);
    backend_conv *c = new_conv(w, be, 0, d);
    commit_and_expand(be, w, d, in->w);
    conv_result r = pass_conv(be, c, d, in);
    if (d->passes & CONV_BACKWARD_WEIGHTS) {
        r.dw = host_new(kernel_elements(kernel_of(d)));
        MUST(be->ops->weights_read_grad(w, 0, 0, r.dw));
    }
    be->ops->conv_destroy(&c);
    ck_assert_ptr_null(c);
    be->ops->weights_destroy(&w);
    ck_assert_ptr_null(w);
    return r;
}

static conv_result run_fresh(const backend_ops *ops, int threads, const conv_desc *d,
                             const conv_data *in)
{
    backend *be = open_ops(ops, threads, 1);
    conv_result r = run_conv(be, d, in);
    ops->close(be);
    return r;
}

START_TEST(agrees_with_the_reference)
{
    const conv_desc *d = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    conv_data in = make_data(d, 10);
    conv_result expect = run_fresh(backend_find("reference"), 1, d, &in);
    conv_result got = run_fresh(ops, 2, d, &in);
    check_close("y", shape_elements(conv_output(d)), got.y, expect.y, TOLERANCE);
    if (d->passes & CONV_BACKWARD_DATA)
        check_close("dx", shape_elements(d->x), got.dx, expect.dx, TOLERANCE);
    if (d->passes & CONV_BACKWARD_WEIGHTS)
        check_close("dw", kernel_elements(kernel_of(d)), got.dw, expect.dw, TOLERANCE);
    if ((d->passes & CONV_BACKWARD_WEIGHTS) && d->bias)
        check_close("dbias", d->out, got.dbias, expect.dbias, TOLERANCE);
    free_result(&expect);
    free_result(&got);
    free_data(&in);
}
END_TEST

/* Run to run all, and for one and two threads the forward pass. */
START_TEST(same_bits_again)
{
    const conv_desc *d = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    conv_data in = make_data(d, 20);
    conv_result first = run_fresh(ops, 2, d, &in), again = run_fresh(ops, 2, d, &in);
    conv_result alone = run_fresh(ops, 1, d, &in);
    check_same_bits("y of 1 and 2 threads", shape_elements(conv_output(d)), first.y, alone.y);
    check_same_bits("y", shape_elements(conv_output(d)), first.y, again.y);
    if (first.dx)
        check_same_bits("dx", shape_elements(d->x), first.dx, again.dx);
    if (first.dw)
        check_same_bits("dw", kernel_elements(kernel_of(d)), first.dw, again.dw);
    if (first.dbias && d->bias)
        check_same_bits("dbias", d->out, first.dbias, again.dbias);
    free_result(&first);
    free_result(&again);
    free_result(&alone);
    free_data(&in);
}
END_TEST

/* A NaN, an infinity in turn in x, w and dy. */
START_TEST(not_finite_stays_not_finite)
{
    const conv_desc *d = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    int64_t nx = shape_elements(d->x), nw = kernel_elements(kernel_of(d));
    int64_t ny = shape_elements(conv_output(d));
    for (int round = 0; round < 3; round++) {
        conv_data in = make_data(d, 30);
        float bad = round == 1 ? INFINITY : NAN;
        float *into[] = {in.x, in.w, in.dy};
        int64_t sizes[] = {nx, nw, ny};
        into[round][sizes[round] / 2] = bad;
        conv_result expect = run_fresh(backend_find("reference"), 1, d, &in);
        conv_result got = run_fresh(ops, 2, d, &in);
        if (round == 1) /* x and w both reach y (padding and strides may skip an x) */
            check_not_finite("y", ny, got.y, expect.y);
        if (expect.dx)
            check_keeps_not_finite("dx", nx, got.dx, expect.dx);
        if (round > 0 && expect.dx && d->stride_h == 1)
            check_not_finite("dx", nx, got.dx, expect.dx);
        if (round == 2 && expect.dw && d->kh > 1)
            check_not_finite("dw", nw, got.dw, expect.dw);
        check_keeps_not_finite("y", ny, got.y, expect.y);
        if (expect.dw)
            check_keeps_not_finite("dw", nw, got.dw, expect.dw);
        free_result(&expect);
        free_result(&got);
        free_data(&in);
    }
}
END_TEST

/* ---- one kernel, several convs ---- */

static const conv_desc shared[] = {
    {{2, 16, 8, 8}, 16, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{3, 16, 5, 7}, 16, 3, 3, 2, 2, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 16, 9, 9}, 16, 3, 3, 1, 1, 2, 2, 2, 1, true, LAYOUT_NATIVE, ALL},
};

/* Gradient of the kernel that three convs use, run twice over: the second backward pass starts
 * afresh. */
static float *run_shared(backend *be, conv_result results[3])
{
    int64_t elements = kernel_elements(kernel_of(&shared[0]));
    backend_weights *w = one_kernel(be, &shared[0]);
    backend_conv *convs[3];
    for (int i = 0; i < 3; i++)
        convs[i] = new_conv(w, be, 0, &shared[i]);
    float *oihw = host_random(77, elements);
    commit_and_expand(be, w, &shared[0], oihw);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 3; i++) {
            conv_data in = make_data(&shared[i], 40 + 10 * (uint32_t)i);
            if (round)
                free_result(&results[i]);
            results[i] = pass_conv(be, convs[i], &shared[i], &in);
            free_data(&in);
        }
    float *dw = host_new(elements);
    MUST(be->ops->weights_read_grad(w, 0, 0, dw));
    for (int i = 0; i < 3; i++)
        be->ops->conv_destroy(&convs[i]);
    be->ops->weights_destroy(&w);
    free(oihw);
    return dw;
}

START_TEST(convs_that_share_a_kernel_add_their_gradients)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 2, 1), *reference = open_reference();
    conv_result got[3], expect[3];
    float *dw = run_shared(be, got), *expected = run_shared(reference, expect);
    check_close("dw", kernel_elements(kernel_of(&shared[0])), dw, expected, TOLERANCE);
    for (int i = 0; i < 3; i++) {
        check_close("y", shape_elements(conv_output(&shared[i])), got[i].y, expect[i].y, TOLERANCE);
        check_close("dx", shape_elements(shared[i].x), got[i].dx, expect[i].dx, TOLERANCE);
        free_result(&got[i]);
        free_result(&expect[i]);
    }
    /* the reference itself: the sum of the three convs one by one */
    double *sum = calloc((size_t)kernel_elements(kernel_of(&shared[0])), sizeof *sum);
    ck_assert_ptr_nonnull(sum);
    for (int i = 0; i < 3; i++) {
        conv_data in = make_data(&shared[i], 40 + 10 * (uint32_t)i);
        conv_result one = run_conv(reference, &shared[i], &in);
        for (int64_t k = 0; k < kernel_elements(kernel_of(&shared[0])); k++)
            sum[k] += one.dw[k];
        free_result(&one);
        free_data(&in);
    }
    for (int64_t k = 0; k < kernel_elements(kernel_of(&shared[0])); k++)
        ck_assert_double_eq_tol(expected[k], sum[k], 1e-4);
    free(sum);
    free(dw);
    free(expected);
    ops->close(be);
    reference->ops->close(reference);
}
END_TEST

/* ---- lanes ---- */

enum {
    LANES = 2
};

typedef struct lanes_context {
    backend *be;
    backend_conv *convs[LANES];
    tensor x, dy, bias; /* read by both */
    tensor y[LANES], dx[LANES], dbias[LANES];
} lanes_context;

static status run_lane(void *ctx, int lane)
{
    lanes_context *l = ctx;
    const backend_ops *ops = l->be->ops;
    TRY(ops->conv_forward(l->convs[lane], l->x.data, l->bias.data, l->y[lane].data));
    TRY(ops->conv_backward_data(l->convs[lane], l->dy.data, l->dx[lane].data));
    return ops->conv_backward_weights(l->convs[lane], l->x.data, l->dy.data, l->dbias[lane].data);
}

static void check_lanes(lanes_context *l, backend_weights *w, const conv_desc *d,
                        const conv_data *in)
{
    int64_t elements = kernel_elements(kernel_of(d));
    backend *reference = open_reference();
    conv_result expect = run_conv(reference, d, in);
    float *dw[LANES], *y[LANES], *dx[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        dw[lane] = host_new(elements);
        MUST(l->be->ops->weights_read_grad(w, lane, 0, dw[lane]));
        y[lane] = tensor_take(&l->y[lane]);
        dx[lane] = tensor_take(&l->dx[lane]);
        tensor_free(&l->dbias[lane]);
    }
    check_same_bits("y of lanes 0 and 1", shape_elements(conv_output(d)), y[0], y[1]);
    check_same_bits("dx of lanes 0 and 1", shape_elements(d->x), dx[0], dx[1]);
    check_same_bits("dw of lanes 0 and 1", elements, dw[0], dw[1]);
    check_close("dw", elements, dw[1], expect.dw, TOLERANCE);
    check_close("y", shape_elements(conv_output(d)), y[1], expect.y, TOLERANCE);
    for (int lane = 0; lane < LANES; lane++) {
        free(dw[lane]);
        free(y[lane]);
        free(dx[lane]);
    }
    free_result(&expect);
    reference->ops->close(reference);
}

START_TEST(lanes_do_the_same)
{
    const backend_ops *ops = loop_backend(_i, 1);
    const conv_desc *d = &shared[2];
    if (!ops || !ops->host_memory) /* a device has one lane */
        return;
    lanes_context l = {.be = open_ops(ops, LANES, LANES)};
    conv_data in = make_data(d, 50);
    backend_weights *w = one_kernel(l.be, d);
    for (int lane = 0; lane < LANES; lane++)
        l.convs[lane] = new_conv(w, l.be, lane, d);
    commit_and_expand(l.be, w, d, in.w);
    l.x = tensor_new(l.be, d->x, LAYOUT_NATIVE, in.x);
    l.dy = tensor_new(l.be, conv_output(d), LAYOUT_NATIVE, in.dy);
    l.bias = vector_new(l.be, d->out, in.bias);
    for (int lane = 0; lane < LANES; lane++) {
        l.y[lane] = tensor_new(l.be, conv_output(d), LAYOUT_NATIVE, NULL);
        l.dx[lane] = tensor_new(l.be, d->x, LAYOUT_NATIVE, NULL);
        l.dbias[lane] = vector_new(l.be, d->out, NULL);
    }
    for (int round = 0; round < 3; round++)
        MUST(ops->run_lanes(l.be, LANES, run_lane, &l));
    check_lanes(&l, w, d, &in);
    tensor_free(&l.x);
    tensor_free(&l.dy);
    tensor_free(&l.bias);
    for (int lane = 0; lane < LANES; lane++)
        ops->conv_destroy(&l.convs[lane]);
    ops->weights_destroy(&w);
    ops->close(l.be);
    free_data(&in);
}
END_TEST

/* run_lanes runs each lane once and reports the lowest one that failed. */
static status failing_lane(void *ctx, int lane)
{
    int *ran = ctx;
    ran[lane]++;
    return lane == 0 ? STATUS_OK : lane == 1 ? STATUS_NUMERICAL : STATUS_DATA;
}

START_TEST(run_lanes_reports_the_lowest_failure)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops || !ops->host_memory) /* a device has one lane */
        return;
    backend *be = open_ops(ops, 4, 4);
    int ran[4] = {0};
    ck_assert_int_eq(ops->run_lanes(be, 4, failing_lane, ran), STATUS_NUMERICAL);
    for (int lane = 0; lane < 4; lane++)
        ck_assert_int_eq(ran[lane], 1);
    ck_assert_int_eq(ops->run_lanes(be, 1, failing_lane, ran), STATUS_OK);
    ck_assert_int_eq(ran[0], 2);
    ops->close(be);
}
END_TEST

START_TEST(misuse_is_refused)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    backend_weights *w = one_kernel(be, &shared[0]);
    backend_conv *c = NULL, *late = NULL;
    conv_desc wrong = shared[0];
    wrong.kh = 5;
    errbuf err = {0};
    ck_assert_int_ne(ops->conv_create(w, 0, 0, &wrong, &late, &err), STATUS_OK);
    ck_assert_ptr_null(late);
    ck_assert_str_ne(err.text, "");
    ck_assert_int_ne(ops->conv_create(w, 0, 1, &shared[0], &late, NULL), STATUS_OK);
    ck_assert_int_ne(ops->conv_create(w, 1, 0, &shared[0], &late, NULL), STATUS_OK);
    c = new_conv(w, be, 0, &shared[0]);
    float *oihw = host_random(1, kernel_elements(kernel_of(&shared[0])));
    commit_and_expand(be, w, &shared[0], oihw);
    ck_assert_int_ne(ops->conv_create(w, 0, 0, &shared[0], &late, NULL), STATUS_OK);
    ck_assert_ptr_null(late);
    ops->conv_destroy(&c);
    ops->conv_destroy(&c);
    ops->weights_destroy(&w);
    ops->weights_destroy(&w);
    ops->close(be);
    free(oihw);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("conv");
    TCase *tc = tcase_create("conv");
    ADD_CASES(tc, agrees_with_the_reference, COUNT(cases));
    ADD_CASES(tc, same_bits_again, COUNT(cases));
    ADD_CASES(tc, not_finite_stays_not_finite, COUNT(cases));
    ADD_CASES(tc, convs_that_share_a_kernel_add_their_gradients, 1);
    ADD_CASES(tc, lanes_do_the_same, 1);
    ADD_CASES(tc, run_lanes_reports_the_lowest_failure, 1);
    ADD_CASES(tc, misuse_is_refused, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
