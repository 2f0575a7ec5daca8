/* Batch norm, pooling, fully connected layer and loss of every backend against the reference. */
#include "ops/harness.h"

/* ---- batch norm ---- */

typedef struct bn_case {
    shape x;
    bool relu, residual;
    float mean; /* of x: sums of squares must not cancel */
    double tolerance;
} bn_case;

static const bn_case bn_cases[] = {
    {{2, 16, 8, 8}, false, false, 0, 1e-5},   {{2, 16, 8, 8}, true, false, 0, 1e-5},
    {{2, 16, 8, 8}, true, true, 0, 1e-5},     {{2, 16, 8, 8}, false, true, 0, 1e-5},
    {{1, 1, 1, 1}, false, false, 1, 1e-5},    {{5, 3, 1, 1}, true, true, 0, 1e-5},
    {{3, 17, 5, 7}, true, true, 0, 1e-5},     {{1, 31, 9, 1}, true, false, 0, 1e-5},
    {{7, 64, 4, 4}, true, true, 0, 1e-5},     {{1, 4, 33, 31}, false, false, 0, 1e-5},
    {{16, 5, 16, 16}, true, false, 0, 1e-5},  {{33, 8, 3, 3}, true, true, 0, 1e-5},
    {{4, 8, 8, 8}, true, false, 100, 2e-4},   {{3, 9, 16, 16}, false, true, -30, 1e-4},
    {{64, 16, 8, 8}, true, true, 0.5f, 1e-5},
};

typedef struct bn_result {
    float *y, *saved, *stats, *eval, *dz, *dx, *dgamma, *dbeta;
} bn_result;

typedef struct bn_data {
    float *x, *residual, *gamma, *beta, *running, *dy1, *dy2;
    float *y, *saved; /* what backward is given: the reference's */
} bn_data;

static bn_data make_bn_data(const bn_case *c, uint32_t seed)
{
    int64_t n = shape_elements(c->x);
    bn_data d = {.x = host_random(seed, n),
                 .residual = host_random(seed + 1, n),
                 .gamma = host_random(seed + 2, c->x.c),
                 .beta = host_random(seed + 3, c->x.c),
                 .running = host_random(seed + 4, 2 * (int64_t)c->x.c),
                 .dy1 = host_random(seed + 5, n),
                 .dy2 = host_random(seed + 6, n)};
    for (int64_t i = 0; i < n; i++)
        d.x[i] += c->mean;
    for (int i = c->x.c; i < 2 * c->x.c; i++)
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

static backend_bn *new_bn(backend *be, const bn_case *c)
{
    bn_desc desc = {c->x, 1e-5f, c->relu, c->residual, 0};
    backend_bn *b = NULL;
    errbuf err = {0};
    ck_assert_msg(be->ops->bn_create(be, 0, &desc, &b, &err) == STATUS_OK, "%s", err.text);
    return b;
}

static void run_bn_forward(backend *be, backend_bn *b, const bn_case *c, const bn_data *d,
                           bn_result *r)
{
    const backend_ops *ops = be->ops;
    int channels = c->x.c;
    tensor x = tensor_new(be, c->x, LAYOUT_NATIVE, d->x);
    tensor residual = tensor_new(be, c->x, LAYOUT_NATIVE, d->residual);
    tensor gamma = vector_new(be, channels, d->gamma), beta = vector_new(be, channels, d->beta);
    tensor running = vector_new(be, 2 * (int64_t)channels, d->running);
    tensor y = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor eval = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor saved = vector_new(be, 2 * (int64_t)channels, NULL);
    tensor stats = vector_new(be, 2 * (int64_t)channels, NULL);
    const float *added = c->residual ? residual.data : NULL;
    MUST(ops->bn_forward_train(b, x.data, added, gamma.data, beta.data, y.data, saved.data,
                               stats.data));
    MUST(ops->bn_forward_eval(b, x.data, added, gamma.data, beta.data, running.data, eval.data));
    r->y = tensor_take(&y);
    r->eval = tensor_take(&eval);
    r->saved = tensor_take(&saved);
    r->stats = tensor_take(&stats);
    tensor_free(&x);
    tensor_free(&residual);
    tensor_free(&gamma);
    tensor_free(&beta);
    tensor_free(&running);
}

/* Where the outputs of backward lie. */
enum bn_alias {
    APART,
    ONE_GRADIENT, /* dy2 NULL */
    DZ_ON_DY1_DX_ON_DY2,
    DX_ON_X,
    ALIASES
};

static void run_bn_backward(backend *be, backend_bn *b, const bn_case *c, const bn_data *d,
                            enum bn_alias alias, bn_result *r)
{
    int channels = c->x.c;
    tensor x = tensor_new(be, c->x, LAYOUT_NATIVE, d->x);
    tensor y = tensor_new(be, c->x, LAYOUT_NATIVE, d->y);
    tensor dy1 = tensor_new(be, c->x, LAYOUT_NATIVE, d->dy1);
    tensor dy2 = tensor_new(be, c->x, LAYOUT_NATIVE, d->dy2);
    tensor dz = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor dx = tensor_new(be, c->x, LAYOUT_NATIVE, NULL);
    tensor gamma = vector_new(be, channels, d->gamma);
    tensor saved = vector_new(be, 2 * (int64_t)channels, d->saved);
    tensor dgamma = vector_new(be, channels, NULL), dbeta = vector_new(be, channels, NULL);
    tensor *to_dz = alias == DZ_ON_DY1_DX_ON_DY2 ? &dy1 : &dz;
    tensor *to_dx = alias == DZ_ON_DY1_DX_ON_DY2 ? &dy2 : alias == DX_ON_X ? &x : &dx;
    const bool has_dz = be->ops->bn_in_place || c->residual; /* or nobody needs it */
    MUST(be->ops->bn_backward(b, x.data, y.data, gamma.data, saved.data, dy1.data,
                              alias == ONE_GRADIENT ? NULL : dy2.data, has_dz ? to_dz->data : NULL,
                              to_dx->data, dgamma.data, dbeta.data));
    r->dz = has_dz ? tensor_read(to_dz) : NULL;
    r->dx = tensor_read(to_dx);
    r->dgamma = tensor_take(&dgamma);
    r->dbeta = tensor_take(&dbeta);
    tensor *all[] = {&x, &y, &dy1, &dy2, &dz, &dx, &gamma, &saved};
    for (int i = 0; i < COUNT(all); i++)
        tensor_free(all[i]);
}

static bn_result run_bn(const backend_ops *ops, int threads, const bn_case *c, const bn_data *d,
                        enum bn_alias alias)
{
    bn_result r = {0};
    backend *be = open_ops(ops, threads, 1);
    backend_bn *b = new_bn(be, c);
    run_bn_forward(be, b, c, d, &r);
    if (d->y)
        run_bn_backward(be, b, c, d, alias, &r);
    be->ops->bn_destroy(&b);
    ck_assert_ptr_null(b);
    be->ops->close(be);
    return r;
}

/* The reference's results; its y and saved become backward's input. */
static bn_result reference_bn(const bn_case *c, bn_data *d, enum bn_alias alias)
{
    const backend_ops *reference = backend_find("reference");
    bn_result forward = run_bn(reference, 1, c, d, alias);
    d->y = forward.y;
    d->saved = forward.saved;
    forward.y = forward.saved = NULL;
    free_bn_result(&forward);
    return run_bn(reference, 1, c, d, alias);
}

static void check_bn(const bn_case *c, const bn_result *got, const bn_result *expect)
{
    int64_t n = shape_elements(c->x), channels = c->x.c;
    /* a single element per channel has no variance: dx is 0 up to what x - mean rounds to */
    check_close("y", n, got->y, expect->y, c->tolerance);
    check_close("eval", n, got->eval, expect->eval, 1e-5);
    check_close("mean", channels, got->saved, expect->saved, 1e-5);
    check_close("1 / deviation", channels, got->saved + channels, expect->saved + channels,
                c->tolerance);
    check_close("mean for running", channels, got->stats, expect->stats, 1e-5);
    check_close("variance", channels, got->stats + channels, expect->stats + channels,
                c->tolerance);
    if (got->dz)
        check_same_bits("dz", n, got->dz, expect->dz);
    check_close("dgamma", channels, got->dgamma, expect->dgamma, c->tolerance);
    check_close("dbeta", channels, got->dbeta, expect->dbeta, 1e-5);
    check_close("dx", n, got->dx, expect->dx, c->tolerance);
}

START_TEST(bn_agrees)
{
    const bn_case *c = &bn_cases[_i % COUNT(bn_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(bn_cases));
    if (!ops)
        return;
    for (int alias = 0; alias < ALIASES; alias++) {
        if (!ops->bn_in_place && (alias == DZ_ON_DY1_DX_ON_DY2 || alias == DX_ON_X))
            continue;
        bn_data d = make_bn_data(c, 10);
        bn_result expect = reference_bn(c, &d, alias == ONE_GRADIENT ? ONE_GRADIENT : APART);
        bn_result got = run_bn(ops, 2, c, &d, (enum bn_alias)alias);
        check_bn(c, &got, &expect);
        free_bn_result(&got);
        free_bn_result(&expect);
        free_bn_data(&d);
    }
}
END_TEST

START_TEST(bn_has_the_same_bits_for_any_threads)
{
    const bn_case *c = &bn_cases[_i % COUNT(bn_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(bn_cases));
    if (!ops)
        return;
    int64_t n = shape_elements(c->x), channels = c->x.c;
    bn_data d = make_bn_data(c, 20);
    bn_result unused = reference_bn(c, &d, APART);
    bn_result two = run_bn(ops, 2, c, &d, APART);
    for (int threads = 1; threads <= 3; threads += 2) {
        bn_result other = run_bn(ops, threads, c, &d, APART);
        check_same_bits("y", n, two.y, other.y);
        check_same_bits("saved", 2 * channels, two.saved, other.saved);
        check_same_bits("stats", 2 * channels, two.stats, other.stats);
        check_same_bits("dgamma", channels, two.dgamma, other.dgamma);
        check_same_bits("dbeta", channels, two.dbeta, other.dbeta);
        check_same_bits("dx", n, two.dx, other.dx);
        free_bn_result(&other);
    }
    free_bn_result(&two);
    free_bn_result(&unused);
    free_bn_data(&d);
}
END_TEST

START_TEST(bn_keeps_what_is_not_finite)
{
    const bn_case *c = &bn_cases[_i % COUNT(bn_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(bn_cases));
    if (!ops)
        return;
    int64_t n = shape_elements(c->x), channels = c->x.c;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int round = 0; round < 3; round++) {
        bn_data d = make_bn_data(c, 30);
        d.x[n / 2] = bad[round];
        d.dy1[0] = bad[round];
        bn_result expect = reference_bn(c, &d, APART);
        bn_result got = run_bn(ops, 2, c, &d, APART);
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
    {POOL_MAX, {5, 4, 9, 2}, 2, 1, 0},         {POOL_GLOBAL_AVG, {2, 16, 4, 4}, 0, 0, 0},
    {POOL_GLOBAL_AVG, {1, 1, 1, 1}, 0, 0, 0},  {POOL_GLOBAL_AVG, {3, 17, 7, 5}, 0, 0, 0},
    {POOL_GLOBAL_AVG, {5, 64, 1, 1}, 0, 0, 0},
};

typedef struct pool_result {
    float *y, *dx;
} pool_result;

static layout pool_output_layout(const pool_desc *d)
{
    return d->kind == POOL_MAX ? LAYOUT_NATIVE : LAYOUT_PLAIN;
}

static pool_result run_pool(const backend_ops *ops, const pool_desc *d, const float *x,
                            const float *dy1, const float *dy2)
{
    backend *be = open_ops(ops, 2, 1);
    shape ys = pool_output(d);
    layout yl = pool_output_layout(d);
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
    pool_result r = {tensor_take(&yt), tensor_take(&dx)};
    tensor_free(&xt);
    tensor_free(&g1);
    tensor_free(&g2);
    tensor_free(&ws);
    ops->pool_destroy(&p);
    ck_assert_ptr_null(p);
    ops->close(be);
    return r;
}

/* Once with one gradient, once with two; the third input is all ties, the last not finite. */
START_TEST(pool_agrees)
{
    const pool_desc *d = &pool_cases[_i % COUNT(pool_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(pool_cases));
    if (!ops)
        return;
    int64_t nx = shape_elements(d->x), ny = shape_elements(pool_output(d));
    float *dy1 = host_random(2, ny), *dy2 = host_random(3, ny);
    for (int round = 0; round < 4; round++) {
        float *x = round == 2 ? host_integers(1, nx, 1) : host_random(1, nx);
        if (round == 3) {
            x[nx / 2] = NAN;
            x[0] = d->x.n > 1 ? -INFINITY : NAN;
        }
        const float *second = round == 1 ? dy2 : NULL;
        pool_result expect = run_pool(backend_find("reference"), d, x, dy1, second);
        pool_result got = run_pool(ops, d, x, dy1, second);
        if (round == 3)
            check_not_finite("y", ny, got.y, expect.y);
        else if (d->kind == POOL_MAX)
            check_same_bits("y", ny, got.y, expect.y);
        else
            check_close("y", ny, got.y, expect.y, 1e-6);
        if (round < 3)
            check_close("dx", nx, got.dx, expect.dx, 1e-6);
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

/* ---- fully connected ---- */

static const fc_desc fc_cases[] = {
    {1, 1, 1}, {2, 64, 10}, {5, 31, 17}, {128, 64, 10}, {3, 512, 100}, {7, 5, 1}, {1, 17, 1000},
};

typedef struct fc_result {
    float *y, *dx, *dw, *db;
} fc_result;

static fc_result run_fc(const backend_ops *ops, int threads, const fc_desc *d, const float *x,
                        const float *w, const float *b, const float *dy)
{
    backend *be = open_ops(ops, threads, 1);
    shape xs = {d->n, d->in, 1, 1}, ys = {d->n, d->out, 1, 1};
    backend_fc *f = NULL;
    errbuf err = {0};
    ck_assert_msg(ops->fc_create(be, 0, d, &f, &err) == STATUS_OK, "%s", err.text);
    tensor xt = tensor_new(be, xs, LAYOUT_PLAIN, x), dyt = tensor_new(be, ys, LAYOUT_PLAIN, dy);
    tensor yt = tensor_new(be, ys, LAYOUT_PLAIN, NULL), dx = tensor_new(be, xs, LAYOUT_PLAIN, NULL);
    tensor wt = vector_new(be, (int64_t)d->in * d->out, w), bt = vector_new(be, d->out, b);
    tensor dw = vector_new(be, (int64_t)d->in * d->out, NULL), db = vector_new(be, d->out, NULL);
    MUST(ops->fc_forward(f, xt.data, wt.data, bt.data, yt.data));
    MUST(ops->fc_backward(f, xt.data, wt.data, dyt.data, dx.data, dw.data, db.data));
    fc_result r = {tensor_take(&yt), tensor_take(&dx), tensor_take(&dw), tensor_take(&db)};
    tensor_free(&xt);
    tensor_free(&dyt);
    tensor_free(&wt);
    tensor_free(&bt);
    ops->fc_destroy(&f);
    ck_assert_ptr_null(f);
    ops->close(be);
    return r;
}

static void free_fc_result(fc_result *r)
{
    free(r->y);
    free(r->dx);
    free(r->dw);
    free(r->db);
}

START_TEST(fc_agrees)
{
    const fc_desc *d = &fc_cases[_i % COUNT(fc_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(fc_cases));
    if (!ops)
        return;
    int64_t nx = (int64_t)d->n * d->in, ny = (int64_t)d->n * d->out, nw = (int64_t)d->in * d->out;
    float *x = host_random(1, nx), *w = host_random(2, nw), *b = host_random(3, d->out);
    float *dy = host_random(4, ny);
    fc_result expect = run_fc(backend_find("reference"), 1, d, x, w, b, dy);
    fc_result got = run_fc(ops, 2, d, x, w, b, dy), again = run_fc(ops, 2, d, x, w, b, dy);
    check_close("y", ny, got.y, expect.y, 1e-5);
    check_close("dx", nx, got.dx, expect.dx, 1e-5);
    check_close("dw", nw, got.dw, expect.dw, 1e-5);
    check_close("db", d->out, got.db, expect.db, 1e-5);
    check_same_bits("y", ny, got.y, again.y);
    check_same_bits("dw", nw, got.dw, again.dw);
    check_same_bits("db", d->out, got.db, again.db);
    free_fc_result(&expect);
    free_fc_result(&got);
    x[nx / 2] = NAN;
    dy[ny / 2] = INFINITY;
    expect = run_fc(backend_find("reference"), 1, d, x, w, b, dy);
    got = run_fc(ops, 2, d, x, w, b, dy);
    check_not_finite("y", ny, got.y, expect.y);
    check_not_finite("dx", nx, got.dx, expect.dx);
    check_not_finite("dw", nw, got.dw, expect.dw);
    check_not_finite("db", d->out, got.db, expect.db);
    free_fc_result(&expect);
    free_fc_result(&got);
    free_fc_result(&again);
    free(x);
    free(w);
    free(b);
    free(dy);
}
END_TEST

/* ---- loss ---- */

typedef struct loss_case {
    loss_desc d;
    int valid;
    float spread; /* of the logits */
    bool ties;
} loss_case;

static const loss_case loss_cases[] = {
    {{1, 2}, 1, 1, false},       {{7, 10}, 7, 1, false},      {{8, 10}, 5, 1, false},
    {{128, 100}, 128, 3, false}, {{5, 1000}, 4, 1, false},    {{33, 3}, 33, 1, true},
    {{64, 10}, 64, 0, true},     {{64, 10}, 63, 1, true},     {{9, 17}, 9, 1000, false},
    {{9, 4}, 0, 1, false},       {{300, 10}, 300, 10, false}, {{6, 1}, 6, 1, false},
};

static loss_sums run_loss(const backend_ops *ops, int threads, const loss_case *c, const float *z,
                          const int32_t *labels, bool backward, float **ret_dz)
{
    backend *be = open_ops(ops, threads, 1);
    shape s = {c->d.n, c->d.classes, 1, 1};
    backend_loss *l = NULL;
    loss_sums sums = {-1, -1, -1, -1};
    errbuf err = {0};
    ck_assert_msg(ops->loss_create(be, 0, &c->d, &l, &err) == STATUS_OK, "%s", err.text);
    tensor zt = tensor_new(be, s, LAYOUT_PLAIN, z), dz = tensor_new(be, s, LAYOUT_PLAIN, NULL);
    tensor lt = tensor_bytes_new(be, (size_t)c->d.n * sizeof *labels, labels);
    tensor st = tensor_bytes_new(be, sizeof sums, &sums);
    MUST(ops->loss_run(l, zt.data, (const int32_t *)(const void *)lt.data, c->valid, 0.25f,
                       backward ? dz.data : NULL, (loss_sums *)(void *)st.data));
    MUST(ops->download(be, &sums, st.data, sizeof sums));
    tensor_free(&lt);
    tensor_free(&st);
    float *got = tensor_take(&dz);
    if (ret_dz)
        *ret_dz = got;
    else
        free(got);
    tensor_free(&zt);
    ops->loss_destroy(&l);
    ck_assert_ptr_null(l);
    ops->close(be);
    return sums;
}

static int32_t *make_labels(const loss_case *c)
{
    int32_t *labels = calloc((size_t)c->d.n, sizeof *labels);
    ck_assert_ptr_nonnull(labels);
    for (int i = 0; i < c->d.n; i++)
        labels[i] = (int32_t)(host_unit(9, i) * c->d.classes);
    return labels;
}

static void check_counts(const loss_sums *got, const loss_sums *expect)
{
    ck_assert_int_eq(got->count, expect->count);
    ck_assert_int_eq(got->top1, expect->top1);
    ck_assert_int_eq(got->top5, expect->top5);
}

START_TEST(loss_agrees)
{
    const loss_case *c = &loss_cases[_i % COUNT(loss_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(loss_cases));
    if (!ops)
        return;
    int64_t n = (int64_t)c->d.n * c->d.classes;
    float *z = c->ties ? host_integers(4, n, 2) : host_random(4, n), *dz, *expected;
    int32_t *labels = make_labels(c);
    for (int64_t i = 0; i < n; i++)
        z[i] *= c->spread;
    loss_sums expect = run_loss(backend_find("reference"), 1, c, z, labels, true, &expected);
    loss_sums got = run_loss(ops, 2, c, z, labels, true, &dz);
    loss_sums alone = run_loss(ops, 1, c, z, labels, false, NULL);
    ck_assert_int_eq(expect.count, c->valid);
    check_counts(&got, &expect);
    check_counts(&alone, &expect);
    ck_assert_double_le(fabs(got.loss - expect.loss), 1e-5 * (1 + fabs(expect.loss)));
    ck_assert_msg(memcmp(&got.loss, &alone.loss, sizeof got.loss) == 0,
                  "the loss of 1 and 2 threads: %.17g and %.17g", alone.loss, got.loss);
    check_close("dlogits", n, dz, expected, 1e-5);
    for (int64_t i = (int64_t)c->valid * c->d.classes; i < n; i++)
        ck_assert_float_eq(dz[i], 0);
    free(z);
    free(dz);
    free(expected);
    free(labels);
}
END_TEST

START_TEST(loss_ranks_by_hand)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    /* label: last of the tied, first of the tied, alone on top, sixth, fifth, NaN, +inf, -inf */
    static const loss_case c = {{8, 6}, 8, 1, false};
    static const float z[] = {1, 1,   1, 1, 1, 1, /**/ 1, 1, 1, 1,         1, 1, /**/
                              0, 3,   1, 1, 1, 1, /**/ 9, 8, 7, 6,         5, 4, /**/
                              9, 8,   7, 6, 5, 4, /**/ 0, 9, 0, NAN,       0, 0, /**/
                              0, 999, 0, 0, 0, 0, /**/ 0, 9, 0, -INFINITY, 0, 0};
    float bad[48];
    static const int32_t labels[] = {5, 0, 1, 5, 4, 1, 1, 1};
    memcpy(bad, z, sizeof bad);
    bad[37] = INFINITY;
    static const int top1[] = {0, 1, 2, 2, 2, 2, 2, 2}, top5[] = {0, 1, 2, 2, 3, 3, 3, 3};
    for (int rows = 1; rows <= 8; rows++) {
        loss_case some = c;
        some.valid = rows;
        loss_sums got = run_loss(ops, 2, &some, bad, labels, rows % 2 == 0, NULL);
        ck_assert_int_eq(got.count, rows);
        ck_assert_int_eq(got.top1, top1[rows - 1]);
        ck_assert_int_eq(got.top5, top5[rows - 1]);
        ck_assert(isfinite(got.loss) == (rows <= 5));
    }
}
END_TEST

START_TEST(loss_gradient_keeps_what_is_not_finite)
{
    const loss_case *c = &loss_cases[_i % COUNT(loss_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(loss_cases));
    if (!ops || c->valid == 0)
        return;
    int64_t n = (int64_t)c->d.n * c->d.classes;
    int32_t *labels = make_labels(c);
    for (int round = 0; round < 2; round++) {
        float *z = host_random(4, n), *dz, *expected;
        z[0] = round ? INFINITY : NAN;
        loss_sums expect = run_loss(backend_find("reference"), 1, c, z, labels, true, &expected);
        loss_sums got = run_loss(ops, 2, c, z, labels, true, &dz);
        check_not_finite("dlogits", n, dz, expected);
        check_counts(&got, &expect);
        ck_assert(!isfinite(got.loss));
        free(z);
        free(dz);
        free(expected);
    }
    free(labels);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layers");
    TCase *tc = tcase_create("layers");
    ADD_CASES(tc, bn_agrees, COUNT(bn_cases));
    ADD_CASES(tc, bn_has_the_same_bits_for_any_threads, COUNT(bn_cases));
    ADD_CASES(tc, bn_keeps_what_is_not_finite, COUNT(bn_cases));
    ADD_CASES(tc, pool_agrees, COUNT(pool_cases));
    ADD_CASES(tc, fc_agrees, COUNT(fc_cases));
    ADD_CASES(tc, loss_agrees, COUNT(loss_cases));
    ADD_CASES(tc, loss_ranks_by_hand, 1);
    ADD_CASES(tc, loss_gradient_keeps_what_is_not_finite, COUNT(loss_cases));
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
