/* Every gradient of the reference backend against central finite differences of its own forward
 * pass: the oracle's backward pass is not taken on trust. The objective is the sum of y * r for
 * fixed random r, so that dy = r. */
#include "ops/harness.h"

/* An objective and what it is a function of. */
typedef struct objective {
    double (*value)(void *ctx);
    void *ctx;
} objective;

static double slope(const objective *f, float *x, float h)
{
    float at = *x, above = at + h, below = at - h;
    *x = above;
    double high = f->value(f->ctx);
    *x = below;
    double low = f->value(f->ctx);
    *x = at;
    return (high - low) / ((double)above - below);
}

/* Some coordinates of `x`, spread over it. Where two step lengths disagree there is a kink of a
 * ReLU or a maximum between them: such a coordinate says nothing, and has to be rare. */
static void check_gradient(const char *what, const objective *f, float *x, int64_t n,
                           const float *gradient, float h, double tolerance)
{
    enum {
        TRIES = 48
    };
    int64_t tries = n < TRIES ? n : TRIES;
    int kinks = 0;
    double norm = 0;
    for (int64_t i = 0; i < n; i++)
        norm += (double)gradient[i] * gradient[i];
    double scale = sqrt(norm / (double)n);
    ck_assert_msg(scale > 0, "%s: the gradient is zero everywhere", what);
    for (int64_t t = 0; t < tries; t++) {
        int64_t i = n <= TRIES ? t : (int64_t)(host_unit(123, t) * (double)n);
        double one = slope(f, &x[i], h), half = slope(f, &x[i], h / 2);
        double allowed = tolerance * (fabs((double)gradient[i]) + scale);
        if (fabs(one - half) > allowed) {
            kinks++;
            continue;
        }
        ck_assert_msg(fabs(half - gradient[i]) <= allowed, "%s[%lld]: %.7g, by differences %.7g",
                      what, (long long)i, (double)gradient[i], half);
    }
    ck_assert_msg(kinks <= tries / 4, "%s: %d kinks in %lld tries", what, kinks, (long long)tries);
}

static double dot(int64_t n, const float *y, const float *r)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)y[i] * r[i];
    return sum;
}

/* ---- convolution, its weights from a ring ---- */

typedef struct conv_gradient {
    backend *be;
    backend_weights *w;
    backend_conv *c;
    conv_desc d;
    int64_t params;
    float *ring, *x, *bias, *r, *y;
} conv_gradient;

static double conv_value(void *ctx)
{
    conv_gradient *g = ctx;
    MUST(g->be->ops->weights_expand(g->w, g->ring));
    MUST(g->be->ops->conv_forward(g->c, g->x, g->bias, g->y));
    return dot(shape_elements(conv_output(&g->d)), g->y, g->r);
}

#define PASSES (CONV_FORWARD | CONV_BACKWARD_DATA | CONV_BACKWARD_WEIGHTS)

static const conv_desc convs[] = {
    {{2, 3, 6, 5}, 4, 3, 3, 1, 1, 1, 1, 1, 1, true, LAYOUT_NATIVE, PASSES},
    {{2, 4, 7, 8}, 5, 3, 3, 2, 2, 1, 1, 1, 1, true, LAYOUT_NATIVE, PASSES},
    {{1, 4, 9, 9}, 6, 3, 3, 1, 1, 2, 2, 2, 2, false, LAYOUT_NATIVE, PASSES},
    {{2, 6, 5, 5}, 6, 1, 1, 2, 1, 0, 0, 1, 1, true, LAYOUT_NATIVE, PASSES},
    {{1, 3, 15, 13}, 4, 7, 7, 2, 2, 3, 3, 1, 1, false, LAYOUT_IMAGE, PASSES},
    {{2, 4, 6, 7}, 4, 3, 5, 1, 2, 0, 2, 1, 4, true, LAYOUT_NATIVE, PASSES},
};

/* One kernel, from a ring of `n` elements (even), or from its own parameters (n = 0). */
static conv_gradient conv_open(const conv_desc *d, int index, int64_t n)
{
    conv_gradient g = {.be = open_reference(), .d = *d};
    kernel_shape k = {d->out, d->x.c / d->groups, d->kh, d->kw};
    float *scale = host_random(8, d->out);
    ring_map map = {0};
    MUST(g.be->ops->weights_create(g.be, &k, 1, &g.w, NULL));
    MUST(g.be->ops->conv_create(g.w, 0, 0, d, &g.c, NULL));
    if (n > 0) {
        ring_map_params p = {index, true, true, kernel_elements(k) + 10, n, 4, 0};
        MUST(ring_map_init(&map, &p, NULL));
    }
    weight_source source = {n > 0 ? &map : NULL, n > 0 ? 10 : 0, 0, scale};
    g.params = n > 0 ? n : kernel_elements(k);
    MUST(g.be->ops->weights_commit(g.w, &source, g.params, NULL));
    ring_map_fini(&map);
    free(scale);
    g.ring = host_random(1, g.params);
    g.x = host_random(2, shape_elements(d->x));
    g.bias = host_random(3, d->out);
    g.r = host_random(4, shape_elements(conv_output(d)));
    g.y = host_new(shape_elements(conv_output(d)));
    return g;
}

static void conv_close(conv_gradient *g)
{
    g->be->ops->conv_destroy(&g->c);
    g->be->ops->weights_destroy(&g->w);
    g->be->ops->close(g->be);
    float *all[] = {g->ring, g->x, g->bias, g->r, g->y};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}

static void check_conv(conv_gradient *g)
{
    objective f = {conv_value, g};
    int64_t nx = shape_elements(g->d.x);
    float *dx = host_fill(nx, JUNK), *dbias = host_fill(g->d.out, JUNK);
    float *dring = host_fill(g->params, JUNK);
    f.value(g);
    MUST(g->be->ops->conv_backward_data(g->c, g->r, dx));
    MUST(g->be->ops->conv_backward_weights(g->c, g->x, g->r, g->d.bias ? dbias : NULL));
    MUST(g->be->ops->weights_reduce(g->w, 0, dring));
    check_gradient("dx", &f, g->x, nx, dx, 0x1p-5f, 1e-4);
    check_gradient("dring", &f, g->ring, g->params, dring, 0x1p-5f, 1e-4);
    if (g->d.bias)
        check_gradient("dbias", &f, g->bias, g->d.out, dbias, 0x1p-5f, 1e-4);
    free(dx);
    free(dbias);
    free(dring);
}

START_TEST(conv_gradients)
{
    conv_gradient g = conv_open(&convs[_i], RING_INDEX_EVEN, 0);
    check_conv(&g);
    conv_close(&g);
}
END_TEST

START_TEST(ring_gradients)
{
    static const int64_t sizes[] = {1, 9, 50, 1000};
    for (int index = RING_INDEX_EVEN; index <= RING_INDEX_TILE; index++)
        for (int i = 0; i < COUNT(sizes); i++) {
            conv_gradient g = conv_open(&convs[_i], index, sizes[i]);
            check_conv(&g);
            conv_close(&g);
        }
}
END_TEST

/* ---- batch norm ---- */

typedef struct bn_gradient {
    backend *be;
    backend_bn *b;
    float *x, *residual, *gamma, *beta, *r, *y, *saved, *stats;
    int64_t n;
} bn_gradient;

static double bn_value(void *ctx)
{
    bn_gradient *g = ctx;
    MUST(g->be->ops->bn_forward_train(g->b, g->x, g->residual, g->gamma, g->beta, g->y, g->saved,
                                      g->stats));
    return dot(g->n, g->y, g->r);
}

static const bn_desc norms[] = {
    {{4, 3, 5, 5}, 1e-5f, false, false, 0}, {{4, 3, 5, 5}, 1e-5f, true, false, 0},
    {{4, 3, 5, 5}, 1e-5f, true, true, 0},   {{3, 5, 4, 3}, 1e-5f, false, true, 0},
    {{9, 2, 1, 1}, 1e-5f, true, true, 0},
};

/* dy1 + dy2 = r; r is split where `split`. */
static void check_bn(bn_gradient *g, const bn_desc *d, bool split)
{
    objective f = {bn_value, g};
    int64_t channels = d->x.c;
    float *dy1 = host_copy(g->r, g->n), *dy2 = host_new(g->n);
    float *dz = host_new(g->n), *dx = host_new(g->n);
    float *dgamma = host_new(channels), *dbeta = host_new(channels);
    for (int64_t i = 0; split && i < g->n; i++) {
        dy2[i] = 0.25f * dy1[i];
        dy1[i] -= dy2[i];
    }
    f.value(g);
    MUST(g->be->ops->bn_backward(g->b, g->x, g->y, g->gamma, g->saved, dy1, split ? dy2 : NULL, dz,
                                 dx, dgamma, dbeta));
    check_gradient("dx", &f, g->x, g->n, dx, 0x1p-8f, 2e-3);
    check_gradient("dgamma", &f, g->gamma, channels, dgamma, 0x1p-11f, 2e-3);
    check_gradient("dbeta", &f, g->beta, channels, dbeta, 0x1p-11f, 2e-3);
    if (d->residual)
        check_gradient("dz", &f, g->residual, g->n, dz, 0x1p-8f, 2e-3);
    float *all[] = {dy1, dy2, dz, dx, dgamma, dbeta};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}

START_TEST(bn_gradients)
{
    const bn_desc *d = &norms[_i];
    int64_t n = shape_elements(d->x), channels = d->x.c;
    bn_gradient g = {.be = open_reference(),
                     .n = n,
                     .x = host_random(1, n),
                     .residual = host_random(2, n),
                     .gamma = host_random(3, channels),
                     .beta = host_random(4, channels),
                     .r = host_random(5, n),
                     .y = host_new(n),
                     .saved = host_new(2 * channels),
                     .stats = host_new(2 * channels)};
    MUST(g.be->ops->bn_create(g.be, 0, d, &g.b, NULL));
    check_bn(&g, d, false);
    check_bn(&g, d, true);
    g.be->ops->bn_destroy(&g.b);
    g.be->ops->close(g.be);
    float *all[] = {g.x, g.residual, g.gamma, g.beta, g.r, g.y, g.saved, g.stats};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}
END_TEST

/* ---- pooling ---- */

typedef struct pool_gradient {
    backend *be;
    backend_pool *p;
    float *x, *y, *r;
    void *ws;
    int64_t outputs;
} pool_gradient;

static double pool_value(void *ctx)
{
    pool_gradient *g = ctx;
    MUST(g->be->ops->pool_forward(g->p, g->x, g->y, g->ws));
    return dot(g->outputs, g->y, g->r);
}

static const pool_desc pools[] = {
    {POOL_MAX, {2, 3, 8, 7}, 3, 2, 1},
    {POOL_MAX, {2, 3, 6, 6}, 2, 2, 0},
    {POOL_MAX, {1, 2, 9, 9}, 3, 1, 1},
    {POOL_GLOBAL_AVG, {3, 4, 5, 4}, 0, 0, 0},
};

START_TEST(pool_gradients)
{
    const pool_desc *d = &pools[_i];
    int64_t n = shape_elements(d->x), outputs = shape_elements(pool_output(d));
    pool_gradient g = {.be = open_reference(),
                       .outputs = outputs,
                       .x = host_random(1, n),
                       .y = host_new(outputs),
                       .r = host_random(2, outputs)};
    MUST(g.be->ops->pool_create(g.be, 0, d, &g.p, NULL));
    MUST(g.be->ops->alloc(g.be, g.be->ops->pool_workspace(g.p), &g.ws, NULL));
    objective f = {pool_value, &g};
    float *dx = host_new(n), *dy2 = host_new(outputs), *dy1 = host_copy(g.r, outputs);
    f.value(&g);
    MUST(g.be->ops->pool_backward(g.p, dy1, NULL, g.ws, dx));
    check_gradient("dx", &f, g.x, n, dx, 0x1p-9f, 1e-3);
    for (int64_t i = 0; i < outputs; i++) {
        dy2[i] = 0.5f * dy1[i];
        dy1[i] -= dy2[i];
    }
    f.value(&g);
    MUST(g.be->ops->pool_backward(g.p, dy1, dy2, g.ws, dx));
    check_gradient("dx of two", &f, g.x, n, dx, 0x1p-9f, 1e-3);
    g.be->ops->release(g.be, g.ws);
    g.be->ops->pool_destroy(&g.p);
    g.be->ops->close(g.be);
    float *all[] = {g.x, g.y, g.r, dx, dy1, dy2};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}
END_TEST

/* ---- fully connected ---- */

typedef struct fc_gradient {
    backend *be;
    backend_fc *f;
    fc_desc d;
    float *x, *w, *b, *r, *y;
} fc_gradient;

static double fc_value(void *ctx)
{
    fc_gradient *g = ctx;
    MUST(g->be->ops->fc_forward(g->f, g->x, g->w, g->b, g->y));
    return dot((int64_t)g->d.n * g->d.out, g->y, g->r);
}

START_TEST(fc_gradients)
{
    fc_desc d = {5, 7, 4};
    fc_gradient g = {.be = open_reference(),
                     .d = d,
                     .x = host_random(1, 5 * 7),
                     .w = host_random(2, 4 * 7),
                     .b = host_random(3, 4),
                     .r = host_random(4, 5 * 4),
                     .y = host_new(5 * 4)};
    float dx[35], dw[28], db[4];
    objective f = {fc_value, &g};
    MUST(g.be->ops->fc_create(g.be, 0, &d, &g.f, NULL));
    MUST(g.be->ops->fc_backward(g.f, g.x, g.w, g.r, dx, dw, db));
    check_gradient("dx", &f, g.x, 35, dx, 0x1p-5f, 1e-4);
    check_gradient("dw", &f, g.w, 28, dw, 0x1p-5f, 1e-4);
    check_gradient("db", &f, g.b, 4, db, 0x1p-5f, 1e-4);
    g.be->ops->fc_destroy(&g.f);
    g.be->ops->close(g.be);
    float *all[] = {g.x, g.w, g.b, g.r, g.y};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
}
END_TEST

/* ---- loss ---- */

typedef struct loss_gradient {
    backend *be;
    backend_loss *l;
    float *z;
    const int32_t *labels;
    int valid;
} loss_gradient;

#define LOSS_SCALE 0.125f

static double loss_value(void *ctx)
{
    loss_gradient *g = ctx;
    loss_sums sums;
    MUST(g->be->ops->loss_run(g->l, g->z, g->labels, g->valid, LOSS_SCALE, NULL, &sums));
    return sums.loss * LOSS_SCALE;
}

START_TEST(loss_gradients)
{
    static const int32_t labels[] = {0, 3, 6, 2, 2};
    loss_desc d = {5, 7};
    loss_gradient g = {
        .be = open_reference(), .z = host_random(1, 35), .labels = labels, .valid = 4};
    float dz[35];
    loss_sums sums;
    objective f = {loss_value, &g};
    MUST(g.be->ops->loss_create(g.be, 0, &d, &g.l, NULL));
    MUST(g.be->ops->loss_run(g.l, g.z, labels, g.valid, LOSS_SCALE, dz, &sums));
    check_gradient("dlogits", &f, g.z, 35, dz, 0x1p-8f, 1e-4);
    for (int i = 28; i < 35; i++)
        ck_assert_float_eq(dz[i], 0);
    g.be->ops->loss_destroy(&g.l);
    g.be->ops->close(g.be);
    free(g.z);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradients");
    TCase *tc = tcase_create("gradients");
    tcase_add_loop_test(tc, conv_gradients, 0, COUNT(convs));
    tcase_add_loop_test(tc, ring_gradients, 0, COUNT(convs));
    tcase_add_loop_test(tc, bn_gradients, 0, COUNT(norms));
    tcase_add_loop_test(tc, pool_gradients, 0, COUNT(pools));
    tcase_add_test(tc, fc_gradients);
    tcase_add_test(tc, loss_gradients);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
