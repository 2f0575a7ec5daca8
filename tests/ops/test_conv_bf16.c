/* Convolution in bf16 of every backend that knows it, against the reference in fp32 on the same
 * inputs, which bf16 holds exactly: what is allowed for is the rounding of the results, 2^-9 of
 * each at most. */
#include "ops/bf16.h"

#define ROUNDED      2e-3 /* once, to bf16 */
#define ROUNDED_MORE 4e-3 /* a sum of two or three rounded ones */
#define EXACT_SUM    1e-5 /* fp32 sums of bf16 values */

#define ALL          (CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS)
#define STEM         (CONV_FORWARD | CONV_BACKWARD_WEIGHTS)

/* x, out, kernel h w, stride h w, pad h w, dilation, groups, bias, layout, passes */
static const conv_desc cases[] = {
    {{1, 1, 1, 1}, 1, 1, 1, 1, 1, 0, 0, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 8, 8}, 16, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 16, 9, 8}, 32, 3, 3, 2, 2, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 64, 8, 8}, 64, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{2, 64, 8, 8}, 128, 1, 1, 2, 2, 0, 0, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 31, 7, 9}, 17, 1, 1, 1, 1, 0, 0, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{3, 3, 7, 5}, 5, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 1, 12, 11}, 17, 5, 5, 1, 1, 2, 2, 1, 1, true, LAYOUT_NATIVE, ALL},
    {{2, 8, 9, 9}, 8, 3, 3, 1, 1, 2, 2, 2, 1, false, LAYOUT_NATIVE, ALL},
    {{1, 64, 5, 5}, 32, 3, 3, 1, 1, 1, 1, 1, 4, true, LAYOUT_NATIVE, ALL},
    {{2, 3, 32, 32}, 64, 3, 3, 1, 1, 1, 1, 1, 1, false, LAYOUT_IMAGE, STEM},
    {{2, 3, 32, 32}, 16, 7, 7, 2, 2, 3, 3, 1, 1, true, LAYOUT_IMAGE, STEM},
};

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
    conv_data in = {rounded_random(seed, shape_elements(d->x)),
                    rounded_random(seed + 1, kernel_elements(kernel_of(d))),
                    host_random(seed + 2, d->out),
                    rounded_random(seed + 3, shape_elements(conv_output(d)))};
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

static float *take(tensor *t)
{
    return t->be->options.compute == COMPUTE_BF16 ? take16(t) : tensor_take(t);
}

static void pass_conv(backend *be, backend_conv *c, const conv_desc *d, const conv_data *in,
                      conv_result *r)
{
    shape ys = conv_output(d);
    tensor x = tensor_new(be, d->x, d->x_layout, in->x);
    tensor y = tensor_new(be, ys, LAYOUT_NATIVE, NULL);
    tensor dy = tensor_new(be, ys, LAYOUT_NATIVE, in->dy);
    tensor bias = vector_new(be, d->out, in->bias), dbias = vector_new(be, d->out, NULL);
    MUST(be->ops->conv_forward(c, x.data, d->bias ? bias.data : NULL, y.data));
    r->y = take(&y);
    if (d->passes & CONV_BACKWARD_DATA) {
        tensor dx = tensor_new(be, d->x, d->x_layout, NULL);
        MUST(be->ops->conv_backward_data(c, dy.data, dx.data));
        r->dx = take(&dx);
    }
    MUST(be->ops->conv_backward_weights(c, x.data, dy.data, d->bias ? dbias.data : NULL));
    r->dbias = tensor_take(&dbias);
    tensor_free(&x);
    tensor_free(&dy);
    tensor_free(&bias);
}

/* `count` convs of one kernel; results of the last, dw of all. */
static conv_result run_conv(backend *be, const conv_desc *d, int count, const conv_data *in)
{
    kernel_shape k = kernel_of(d);
    weight_source source = {0};
    backend_weights *w = NULL;
    backend_conv *c[2] = {NULL};
    conv_result r = {0};
    errbuf err = {0};
    MUST(be->ops->weights_create(be, &k, 1, &w, &err));
    for (int i = 0; i < count; i++)
        ck_assert_msg(be->ops->conv_create(w, 0, 0, d, &c[i], &err) == STATUS_OK, "%s", err.text);
    MUST(be->ops->weights_commit(w, &source, kernel_elements(k), &err));
    tensor params = vector_new(be, kernel_elements(k), in->w);
    MUST(be->ops->weights_expand(w, params.data));
    for (int i = 0; i < count; i++) {
        free_result(&r);
        pass_conv(be, c[i], d, in, &r);
    }
    r.dw = host_new(kernel_elements(k));
    MUST(be->ops->weights_read_grad(w, 0, 0, r.dw));
    for (int i = 0; i < count; i++)
        be->ops->conv_destroy(&c[i]);
    be->ops->weights_destroy(&w);
    tensor_free(&params);
    return r;
}

static conv_result run_reference(const conv_desc *d, int count, const conv_data *in)
{
    backend *be = open_reference();
    conv_result r = run_conv(be, d, count, in);
    be->ops->close(be);
    return r;
}

START_TEST(agrees_with_the_reference)
{
    const conv_desc *d = &cases[_i % COUNT(cases)];
    backend *be = open_bf16(loop_backend(_i, COUNT(cases)));
    if (!be)
        return;
    conv_data in = make_data(d, 10);
    for (int count = 1; count <= 2; count++) {
        conv_result expect = run_reference(d, count, &in), got = run_conv(be, d, count, &in);
        conv_result again = run_conv(be, d, count, &in);
        check_close("y", shape_elements(conv_output(d)), got.y, expect.y,
                    d->bias ? ROUNDED_MORE : ROUNDED);
        check_same_bits("y", shape_elements(conv_output(d)), got.y, again.y);
        if (expect.dx) {
            check_close("dx", shape_elements(d->x), got.dx, expect.dx, ROUNDED);
            check_same_bits("dx", shape_elements(d->x), got.dx, again.dx);
        }
        check_close("dw", kernel_elements(kernel_of(d)), got.dw, expect.dw,
                    count > 1 ? ROUNDED_MORE : ROUNDED);
        check_same_bits("dw", kernel_elements(kernel_of(d)), got.dw, again.dw);
        if (d->bias)
            check_close("dbias", d->out, got.dbias, expect.dbias, EXACT_SUM);
        free_result(&expect);
        free_result(&got);
        free_result(&again);
    }
    free_data(&in);
    be->ops->close(be);
}
END_TEST

/* A NaN and an infinity in turn in x, w and dy. */
START_TEST(not_finite_stays_not_finite)
{
    const conv_desc *d = &cases[_i % COUNT(cases)];
    backend *be = open_bf16(loop_backend(_i, COUNT(cases)));
    if (!be)
        return;
    int64_t nx = shape_elements(d->x), nw = kernel_elements(kernel_of(d));
    int64_t ny = shape_elements(conv_output(d));
    for (int round = 0; round < 3; round++) {
        conv_data in = make_data(d, 30);
        float *into[] = {in.x, in.w, in.dy};
        int64_t sizes[] = {nx, nw, ny};
        into[round][sizes[round] / 2] = round == 1 ? INFINITY : NAN;
        conv_result expect = run_reference(d, 1, &in), got = run_conv(be, d, 1, &in);
        check_keeps_not_finite("y", ny, got.y, expect.y);
        if (expect.dx)
            check_keeps_not_finite("dx", nx, got.dx, expect.dx);
        check_keeps_not_finite("dw", nw, got.dw, expect.dw);
        free_result(&expect);
        free_result(&got);
        free_data(&in);
    }
    be->ops->close(be);
}
END_TEST

/* pack and unpack lose nothing but what bf16 does not hold. */
START_TEST(packing_rounds_once)
{
    backend *be = open_bf16(loop_backend(_i, 1));
    if (!be)
        return;
    static const shape s = {2, 5, 3, 7};
    static const layout layouts[] = {LAYOUT_NATIVE, LAYOUT_IMAGE};
    int64_t n = shape_elements(s);
    for (int l = 0; l < COUNT(layouts); l++) {
        float *x = rounded_random(3, n), *fine = host_random(3, n);
        x[0] = NAN;
        x[1] = -INFINITY;
        tensor exact = tensor_new(be, s, layouts[l], x), near = tensor_new(be, s, layouts[l], fine);
        float *got = take16(&exact), *nearest = take16(&near);
        check_same_bits("values of bf16", n - 1, got + 1, x + 1);
        ck_assert(isnan(got[0]));
        check_same_bits("rounded values", n - 2, nearest + 2, x + 2);
        free(x);
        free(fine);
        free(got);
        free(nearest);
    }
    be->ops->close(be);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("conv_bf16");
    TCase *tc = tcase_create("conv_bf16");
    ADD_CASES(tc, agrees_with_the_reference, COUNT(cases));
    ADD_CASES(tc, not_finite_stays_not_finite, COUNT(cases));
    ADD_CASES(tc, packing_rounds_once, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
