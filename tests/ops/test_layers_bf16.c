/*
 * Batch norm and pooling in bf16 of every backend that knows it, against the reference in fp32 on
 * the same inputs, which bf16 holds exactly. Parameters, statistics and their gradients are fp32,
 * and sums of what is exact are; the rest is rounded to bf16, by 2^-8 of each element at most.
 */
#include "ops/bf16.h"

#define ROUNDED      3e-3 /* once */
#define ROUNDED_MORE 8e-3 /* made of what was rounded before */

/* ---- batch norm ---- */

typedef struct bn_case {
    shape x;
    bool relu, residual;
    float mean;       /* of x: sums of squares must not cancel */
    double tolerance; /* of what stays fp32 */
} bn_case;

static const bn_case bn_cases[] = {
    {{2, 16, 8, 8}, false, false, 0, 1e-5},  {{2, 16, 8, 8}, true, false, 0, 1e-5},
    {{2, 16, 8, 8}, true, true, 0, 1e-5},    {{2, 16, 8, 8}, false, true, 0, 1e-5},
    {{1, 1, 1, 1}, false, false, 1, 1e-5},   {{1, 8, 1, 1}, true, true, 1, 1e-5},
    {{5, 3, 1, 1}, true, true, 0, 1e-5},     {{3, 17, 5, 7}, true, true, 0, 1e-5},
    {{1, 31, 9, 1}, true, false, 0, 1e-5},   {{7, 64, 4, 4}, true, true, 0, 1e-5},
    {{1, 4, 33, 31}, false, false, 0, 1e-5}, {{10, 8, 19, 16}, true, false, 0.5f, 1e-5},
    {{2, 264, 9, 7}, true, true, 0, 1e-5},   {{1, 67, 5, 5}, true, true, 0, 1e-5},
    {{4, 24, 8, 8}, true, false, 100, 2e-4}, {{3, 9, 16, 16}, false, true, -30, 1e-4},
};

typedef struct bn_data {
    float *x, *residual, *gamma, *beta, *running, *dy1, *dy2;
    float *y, *saved; /* what backward is given: the reference's, y rounded */
} bn_data;

typedef struct bn_result {
    float *y, *saved, *stats, *eval, *dz, *dx, *dgamma, *dbeta;
} bn_result;

static bn_data make_bn_data(const bn_case *c, uint32_t seed, bool two)
{
    int64_t n = shape_elements(c->x), channels = c->x.c;
    bn_data d = {.x = host_random(seed, n),
                 .residual = rounded_random(seed + 1, n),
                 .gamma = host_random(seed + 2, channels),
                 .beta = host_random(seed + 3, channels),
                 .running = host_random(seed + 4, 2 * channels),
                 .dy1 = rounded_random(seed + 5, n),
                 .dy2 = two ? rounded_random(seed + 6, n) : NULL};
    for (int64_t i = 0; i < n; i++)
        d.x[i] += c->mean;
    round_all(d.x, n);
    for (int64_t i = channels; i < 2 * channels; i++)
        d.running[i] = fabsf(d.running[i]) + 0.1f;
    return d;
}

static void free_bn_data(bn_data *d)
{
    float *all[] = {d->x,   d->residual, d->gamma, d->beta, d->running,
                    d->dy1, d->dy2,      d->y,     d->saved};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}

static void free_bn_result(bn_result *r)
{
    float *all[] = {r->y, r->saved, r->stats, r->eval, r->dz, r->dx, r->dgamma, r->dbeta};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}

/* The reference keeps fp32, the others bf16. */
static float *take_native(tensor *t)
{
    return t->be->options.compute == COMPUTE_BF16 ? take16(t) : tensor_take(t);
}

static void run_bn_forward(backend_bn *b, backend *be, const bn_case *c, const bn_data *d,
                           bn_result *r)
{
    int64_t channels = c->x.c;
    tensor x = tensor_new(be, c->x, LAYOUT_NATIVE, d->x);
    tensor residual = tensor_new(be, c->x, LAYOUT_NATIVE, d->residual);
    tensor gamma = vector_new(be, channels, d->gamma), beta = vector_new(be, channels, d->beta);
    tensor running = vector_new(be, 2 * channels, d->running);
    tensor y = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor eval = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor saved = vector_new(be, 2 * channels, NULL), stats = vector_new(be, 2 * channels, NULL);
    const float *added = c->residual ? residual.data : NULL;
    MUST(be->ops->bn_forward_train(b, x.data, added, gamma.data, beta.data, y.data, saved.data,
                                   stats.data));
    MUST(
        be->ops->bn_forward_eval(b, x.data, added, gamma.data, beta.data, running.data, eval.data));
    r->y = take_native(&y);
    r->eval = take_native(&eval);
    r->saved = tensor_take(&saved);
    r->stats = tensor_take(&stats);
    tensor *all[] = {&x, &residual, &gamma, &beta, &running};
    for (int i = 0; i < COUNT(all); i++)
        tensor_free(all[i]);
}

static void run_bn_backward(backend_bn *b, backend *be, const bn_case *c, const bn_data *d,
                            bn_result *r)
{
    int64_t channels = c->x.c;
    tensor x = tensor_new(be, c->x, LAYOUT_NATIVE, d->x);
    tensor y = tensor_new(be, c->x, LAYOUT_NATIVE, d->y);
    tensor dy1 = tensor_new(be, c->x, LAYOUT_NATIVE, d->dy1), dy2 = {0};
    tensor dz = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor dx = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor gamma = vector_new(be, channels, d->gamma);
    tensor saved = vector_new(be, 2 * channels, d->saved);
    tensor dgamma = vector_new(be, channels, NULL), dbeta = vector_new(be, channels, NULL);
    if (d->dy2)
        dy2 = tensor_new(be, c->x, LAYOUT_NATIVE, d->dy2);
    const bool has_dz = be->ops->bn_in_place || c->residual; /* or nobody needs it */
    MUST(be->ops->bn_backward(b, x.data, y.data, gamma.data, saved.data, dy1.data, dy2.data,
                              has_dz ? dz.data : NULL, dx.data, dgamma.data, dbeta.data));
    r->dz = has_dz ? take_native(&dz) : NULL;
    r->dx = take_native(&dx);
    r->dgamma = tensor_take(&dgamma);
    r->dbeta = tensor_take(&dbeta);
    tensor *all[] = {&x, &y, &dy1, &dy2, &dz, &gamma, &saved};
    for (int i = 0; i < COUNT(all); i++)
        tensor_free(all[i]);
}

/* Takes the backend. Without y there is no backward pass. */
static bn_result run_bn(backend *be, const bn_case *c, const bn_data *d)
{
    bn_desc desc = {c->x, 1e-5f, c->relu, c->residual, 0};
    bn_result r = {0};
    backend_bn *b = NULL;
    errbuf err = {0};
    ck_assert_msg(be->ops->bn_create(be, 0, &desc, &b, &err) == STATUS_OK, "%s", err.text);
    run_bn_forward(b, be, c, d, &r);
    if (d->y)
        run_bn_backward(b, be, c, d, &r);
    be->ops->bn_destroy(&b);
    be->ops->close(be);
    return r;
}

static bn_result reference_bn(const bn_case *c, bn_data *d)
{
    bn_result forward = run_bn(open_reference(), c, d);
    d->y = forward.y;
    d->saved = forward.saved;
    round_all(d->y, shape_elements(c->x));
    forward.y = forward.saved = NULL;
    free_bn_result(&forward);
    return run_bn(open_reference(), c, d);
}

static void check_bn(const bn_case *c, bool two, const bn_result *got, const bn_result *expect)
{
    int64_t n = shape_elements(c->x), channels = c->x.c;
    double sums = two ? ROUNDED_MORE : c->tolerance;
    check_close("y", n, got->y, expect->y, c->residual ? ROUNDED_MORE : ROUNDED);
    check_close("eval", n, got->eval, expect->eval, ROUNDED);
    check_close("mean", channels, got->saved, expect->saved, 1e-5);
    check_close("1 / deviation", channels, got->saved + channels, expect->saved + channels,
                c->tolerance);
    check_close("mean for running", channels, got->stats, expect->stats, 1e-5);
    check_close("variance", channels, got->stats + channels, expect->stats + channels,
                c->tolerance);
    if (got->dz && two)
        check_close("dz", n, got->dz, expect->dz, ROUNDED);
    else if (got->dz)
        check_same_bits("dz", n, got->dz, expect->dz);
    check_close("dgamma", channels, got->dgamma, expect->dgamma, sums);
    check_close("dbeta", channels, got->dbeta, expect->dbeta, sums);
    check_close("dx", n, got->dx, expect->dx, ROUNDED_MORE);
}

static void check_same_bn(const bn_case *c, const bn_result *a, const bn_result *b)
{
    int64_t n = shape_elements(c->x), channels = c->x.c;
    check_same_bits("y", n, a->y, b->y);
    check_same_bits("saved", 2 * channels, a->saved, b->saved);
    check_same_bits("stats", 2 * channels, a->stats, b->stats);
    if (a->dz)
        check_same_bits("dz", n, a->dz, b->dz);
    check_same_bits("dx", n, a->dx, b->dx);
    check_same_bits("dgamma", channels, a->dgamma, b->dgamma);
    check_same_bits("dbeta", channels, a->dbeta, b->dbeta);
}

START_TEST(bn_agrees)
{
    const bn_case *c = &bn_cases[_i % COUNT(bn_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(bn_cases));
    for (int two = 0; two < 2; two++) {
        backend *be = open_bf16(ops);
        if (!be)
            return;
        bn_data d = make_bn_data(c, 10, two);
        bn_result expect = reference_bn(c, &d);
        bn_result got = run_bn(be, c, &d), again = run_bn(open_bf16(ops), c, &d);
        check_bn(c, two, &got, &expect);
        check_same_bn(c, &got, &again);
        free_bn_result(&got);
        free_bn_result(&again);
        free_bn_result(&expect);
        free_bn_data(&d);
    }
}
END_TEST

START_TEST(bn_keeps_what_is_not_finite)
{
    const bn_case *c = &bn_cases[_i % COUNT(bn_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(bn_cases));
    int64_t n = shape_elements(c->x), channels = c->x.c;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int round = 0; round < COUNT(bad); round++) {
        backend *be = open_bf16(ops);
        if (!be)
            return;
        bn_data d = make_bn_data(c, 30, true);
        d.x[n / 2] = bad[round];
        d.dy1[0] = bad[round];
        bn_result expect = reference_bn(c, &d);
        bn_result got = run_bn(be, c, &d);
        check_not_finite("y", n, got.y, expect.y);
        check_not_finite("stats", 2 * channels, got.stats, expect.stats);
        check_not_finite("dx", n, got.dx, expect.dx);
        check_not_finite("dgamma", channels, got.dgamma, expect.dgamma);
        check_keeps_not_finite("eval", n, got.eval, expect.eval);
        if (got.dz)
            check_keeps_not_finite("dz", n, got.dz, expect.dz);
        free_bn_result(&got);
        free_bn_result(&expect);
        free_bn_data(&d);
    }
}
END_TEST

/* ---- pooling ---- */

static const pool_desc pool_cases[] = {
    {POOL_MAX, {2, 16, 8, 8}, 3, 2, 1},        {POOL_MAX, {1, 3, 7, 9}, 3, 2, 1},
    {POOL_MAX, {3, 17, 6, 6}, 2, 2, 0},        {POOL_MAX, {1, 1, 1, 1}, 3, 2, 1},
    {POOL_MAX, {2, 64, 13, 5}, 3, 1, 1},       {POOL_MAX, {1, 31, 5, 5}, 5, 3, 2},
    {POOL_MAX, {5, 8, 9, 2}, 2, 1, 0},         {POOL_MAX, {1, 24, 17, 16}, 16, 1, 8},
    {POOL_GLOBAL_AVG, {2, 16, 4, 4}, 0, 0, 0}, {POOL_GLOBAL_AVG, {1, 1, 1, 1}, 0, 0, 0},
    {POOL_GLOBAL_AVG, {3, 17, 7, 5}, 0, 0, 0}, {POOL_GLOBAL_AVG, {5, 64, 1, 1}, 0, 0, 0},
};

typedef struct pool_result {
    float *y, *dx;
} pool_result;

/* Takes the backend. */
static pool_result run_pool(backend *be, const pool_desc *d, const float *x, const float *dy1,
                            const float *dy2)
{
    const backend_ops *ops = be->ops;
    shape ys = pool_output(d);
    layout yl = d->kind == POOL_MAX ? LAYOUT_NATIVE : LAYOUT_PLAIN;
    backend_pool *p = NULL;
    errbuf err = {0};
    ck_assert_msg(ops->pool_create(be, 0, d, &p, &err) == STATUS_OK, "%s", err.text);
    tensor xt = tensor_new(be, d->x, LAYOUT_NATIVE, x), yt = tensor_new(be, ys, yl, NULL);
    tensor g1 = tensor_new(be, ys, yl, dy1), g2 = {0};
    tensor dx = tensor_new(be, d->x, LAYOUT_NATIVE, NULL);
    tensor ws = tensor_bytes_new(be, ops->pool_workspace(p), NULL);
    if (dy2)
        g2 = tensor_new(be, ys, yl, dy2);
    MUST(ops->pool_forward(p, xt.data, yt.data, ws.data));
    MUST(ops->pool_backward(p, g1.data, g2.data, ws.data, dx.data));
    pool_result r = {yl == LAYOUT_NATIVE ? take_native(&yt) : tensor_take(&yt), take_native(&dx)};
    tensor *all[] = {&xt, &g1, &g2, &ws};
    for (int i = 0; i < COUNT(all); i++)
        tensor_free(all[i]);
    ops->pool_destroy(&p);
    ops->close(be);
    return r;
}

static void check_pool(const pool_desc *d, const pool_result *got, const pool_result *expect,
                       bool finite)
{
    int64_t nx = shape_elements(d->x), ny = shape_elements(pool_output(d));
    if (!finite)
        check_not_finite("y", ny, got->y, expect->y);
    else if (d->kind == POOL_MAX)
        check_same_bits("y", ny, got->y, expect->y);
    else
        check_close("y", ny, got->y, expect->y, 1e-6);
    if (finite)
        check_close("dx", nx, got->dx, expect->dx, ROUNDED);
}

/* Once with one gradient, once with two; the third input is all ties, the last not finite. */
START_TEST(pool_agrees)
{
    const pool_desc *d = &pool_cases[_i % COUNT(pool_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(pool_cases));
    int64_t nx = shape_elements(d->x), ny = shape_elements(pool_output(d));
    float *dy1 = rounded_random(2, ny), *dy2 = rounded_random(3, ny);
    for (int round = 0; round < 4; round++) {
        backend *be = open_bf16(ops);
        if (!be)
            break;
        float *x = round == 2 ? host_integers(1, nx, 1) : rounded_random(1, nx);
        if (round == 3) {
            x[nx / 2] = NAN;
            x[0] = d->x.n > 1 ? -INFINITY : NAN;
        }
        const float *second = round == 1 ? dy2 : NULL;
        pool_result expect = run_pool(open_reference(), d, x, dy1, second);
        pool_result got = run_pool(be, d, x, dy1, second);
        check_pool(d, &got, &expect, round < 3);
        free(got.y);
        free(got.dx);
        free(expect.y);
        free(expect.dx);
        free(x);
    }
    free(dy1);
    free(dy2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layers_bf16");
    TCase *tc = tcase_create("layers_bf16");
    ADD_CASES(tc, bn_agrees, COUNT(bn_cases));
    ADD_CASES(tc, bn_keeps_what_is_not_finite, COUNT(bn_cases));
    ADD_CASES(tc, pool_agrees, COUNT(pool_cases));
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
