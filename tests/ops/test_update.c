/* Memory, layouts and elementwise ops of every backend: addition, SGD, the check for non-finite
 * values, exact mode's fixed point; and the registry. */
#include "ops/harness.h"

#include <cjson/cJSON.h>

static const int64_t sizes[] = {1, 7, 8, 63, 64, 1000, 4097, 100003};

/* ---- memory and layouts ---- */

static const shape shapes[] = {{1, 1, 1, 1},  {2, 3, 5, 7},  {1, 4, 3, 3},
                               {3, 5, 2, 2},  {2, 8, 4, 4},  {1, 16, 7, 1},
                               {5, 17, 3, 2}, {2, 31, 1, 1}, {1, 64, 2, 2}};

START_TEST(pack_and_unpack)
{
    const backend_ops *ops = loop_backend(_i, COUNT(shapes));
    shape s = shapes[_i % COUNT(shapes)];
    if (!ops)
        return;
    backend *be = open_ops(ops, 2, 1);
    int64_t n = shape_elements(s);
    float *values = host_random(1, n);
    shape flat = {s.n, s.c * s.h * s.w, 1, 1};
    const struct {
        shape s;
        layout l;
    } ways[] = {{s, LAYOUT_NATIVE}, {s, LAYOUT_IMAGE}, {flat, LAYOUT_PLAIN}};
    for (int i = 0; i < COUNT(ways); i++) {
        ck_assert_uint_ge(ops->tensor_bytes(be, ways[i].s, ways[i].l), sizeof(float) * (size_t)n);
        tensor t = tensor_new(be, ways[i].s, ways[i].l, values);
        float *back = tensor_take(&t);
        check_same_bits("there and back", n, back, values);
        free(back);
    }
    /* a matrix lies as it is read, on the host an image too */
    float *raw = host_new(n);
    for (int i = ops->host_memory ? 1 : 2; i < COUNT(ways); i++) {
        tensor t = tensor_new(be, ways[i].s, ways[i].l, values);
        ck_assert_uint_eq(t.bytes, sizeof(float) * (size_t)n);
        MUST(ops->download(be, raw, t.data, t.bytes));
        check_same_bits("as it is read", n, raw, values);
        tensor_free(&t);
    }
    free(raw);
    free(values);
    ops->close(be);
}
END_TEST

/* How many of the bytes differ from `value`. */
static size_t other_bytes(const unsigned char *bytes, size_t count, unsigned char value)
{
    size_t other = 0;
    for (size_t i = 0; i < count; i++)
        other += bytes[i] != value;
    return other;
}

START_TEST(memory_is_aligned_and_zero)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    static const size_t bytes[] = {1, 63, 64, 1000, 1 << 20};
    for (int i = 0; i < COUNT(bytes); i++) {
        void *memory = NULL;
        size_t half = bytes[i] / 2;
        unsigned char *host = malloc(bytes[i]);
        ck_assert_ptr_nonnull(host);
        memset(host, 1, bytes[i]);
        MUST(ops->alloc(be, bytes[i], &memory, NULL));
        ck_assert_uint_eq((uintptr_t)memory % 64, 0);
        MUST(ops->download(be, host, memory, bytes[i]));
        ck_assert_uint_eq(other_bytes(host, bytes[i], 0), 0);
        memset(host, 7, bytes[i]);
        MUST(ops->upload(be, memory, host, bytes[i]));
        MUST(ops->zero(be, memory, half));
        MUST(ops->download(be, host, memory, bytes[i]));
        ck_assert_uint_eq(other_bytes(host, half, 0), 0);
        ck_assert_uint_eq(other_bytes(host + half, bytes[i] - half, 7), 0);
        ops->release(be, memory);
        free(host);
    }
    ops->release(be, NULL);
    ops->close(be);
}
END_TEST

#ifndef __SANITIZE_ADDRESS__ /* which ends the program when asked for that much */
START_TEST(memory_that_is_not_there)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    void *untouched = &untouched;
    errbuf err = {0};
    ck_assert_int_eq(ops->alloc(be, SIZE_MAX / 2, &untouched, &err), STATUS_OUT_OF_MEMORY);
    ck_assert_ptr_eq(untouched, &untouched);
    ck_assert_str_ne(err.text, "");
    ops->close(be);
}
END_TEST
#endif

/* ---- elementwise ---- */

START_TEST(add_is_exact)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    backend *be = open_ops(ops, 2, 1);
    float *a = host_random(1, n), *b = host_random(2, n), *expect = host_new(n);
    a[n / 2] = NAN;
    for (int64_t i = 0; i < n; i++)
        expect[i] = a[i] + b[i];
    tensor at = vector_new(be, n, a), bt = vector_new(be, n, b), y = vector_new(be, n, NULL);
    MUST(ops->add(be, n, at.data, bt.data, y.data));
    float *got = tensor_take(&y);
    ck_assert(isnan(got[n / 2]));
    got[n / 2] = expect[n / 2] = 0;
    check_same_bits("a + b", n, got, expect);
    free(got);
    MUST(ops->add(be, n, at.data, bt.data, at.data)); /* in place */
    got = tensor_take(&at);
    got[n / 2] = 0;
    check_same_bits("a += b", n, got, expect);
    tensor_free(&bt);
    free(got);
    free(a);
    free(b);
    free(expect);
    ops->close(be);
}
END_TEST

/* y = keep * y + take * x, rounded once or twice. */
START_TEST(blend_agrees)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    static const float parts[][2] = {{0.9f, 0.025f}, {0, 1}, {1, 0}, {-0.5f, 3}};
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    backend *be = open_ops(ops, 2, 1);
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        float *x = host_random(1, n), *y = host_random(2, n), *expect = host_new(n);
        for (int64_t i = 0; i < n; i++)
            expect[i] = (float)((double)parts[k][0] * y[i] + (double)parts[k][1] * x[i]);
        y[n / 2] = NAN;
        tensor xt = vector_new(be, n, x), yt = vector_new(be, n, y);
        MUST(ops->blend(be, n, yt.data, parts[k][0], xt.data, parts[k][1], NULL));
        float *got = tensor_take(&yt);
        ck_assert(isnan(got[n / 2]));
        got[n / 2] = expect[n / 2];
        check_close("blend", n, got, expect, 1e-6);
        tensor_free(&xt);
        free(got);
        free(x);
        free(y);
        free(expect);
    }
    ops->close(be);
}
END_TEST

static const sgd_params steps[] = {
    {0.1f, 0.9f, 5e-4f, 1, false}, {0.1f, 0.9f, 5e-4f, 1, true}, {0.05f, 0, 0, 0.25f, false},
    {1, 0.5f, 0.1f, 0.125f, true}, {0, 0.9f, 0.1f, 1, false},    {0.3f, 0.99f, 0, 2, true},
};

/* Five steps, against the formula in double. */
static void check_sgd(backend *be, int64_t n, const sgd_params *s)
{
    float *p = host_random(1, n), *v = host_random(2, n), *g = host_random(3, n);
    double *pd = calloc((size_t)n, sizeof *pd), *vd = calloc((size_t)n, sizeof *vd);
    ck_assert(pd && vd);
    for (int64_t i = 0; i < n; i++) {
        pd[i] = p[i];
        vd[i] = v[i];
    }
    tensor pt = vector_new(be, n, p), vt = vector_new(be, n, v), gt = vector_new(be, n, g);
    for (int step = 0; step < 5; step++) {
        MUST(be->ops->sgd(be, n, pt.data, gt.data, vt.data, s, NULL));
        for (int64_t i = 0; i < n; i++) {
            double grad = (double)g[i] * s->grad_scale + (double)s->weight_decay * pd[i];
            vd[i] = (double)s->momentum * vd[i] + grad;
            pd[i] -= (double)s->lr * (s->nesterov ? grad + s->momentum * vd[i] : vd[i]);
        }
    }
    float *got_p = tensor_take(&pt), *got_v = tensor_take(&vt), *got_g = tensor_take(&gt);
    for (int64_t i = 0; i < n; i++) {
        p[i] = (float)pd[i];
        v[i] = (float)vd[i];
    }
    check_close("p", n, got_p, p, 2e-6);
    check_close("v", n, got_v, v, 2e-6);
    check_same_bits("the gradient is only read", n, got_g, g);
    float *all[] = {p, v, g, got_p, got_v, got_g};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
    free(pd);
    free(vd);
}

START_TEST(sgd_agrees)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    backend *be = open_ops(ops, 2, 1);
    for (int i = 0; i < COUNT(steps); i++)
        check_sgd(be, n, &steps[i]);
    ops->close(be);
}
END_TEST

/* The same element gives the same bits wherever it lies: a span's update does not depend on where
 * the span begins, or on threads. */
START_TEST(sgd_is_elementwise)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    enum {
        N = 20011,
        OFFSET = 13
    };
    float *p = host_random(1, N), *v = host_random(2, N), *g = host_random(3, N);
    float *results[2];
    for (int threads = 1; threads <= 2; threads++) {
        backend *be = open_ops(ops, threads, 1);
        tensor pt = vector_new(be, N, p), vt = vector_new(be, N, v), gt = vector_new(be, N, g);
        if (threads == 1) {
            MUST(ops->sgd(be, N, pt.data, gt.data, vt.data, &steps[1], NULL));
        } else {
            MUST(ops->sgd(be, OFFSET, pt.data, gt.data, vt.data, &steps[1], NULL));
            MUST(ops->sgd(be, N - OFFSET, pt.data + OFFSET, gt.data + OFFSET, vt.data + OFFSET,
                          &steps[1], NULL));
        }
        results[threads - 1] = tensor_take(&pt);
        tensor_free(&vt);
        tensor_free(&gt);
        ops->close(be);
    }
    check_same_bits("p", N, results[0], results[1]);
    free(results[0]);
    free(results[1]);
    free(p);
    free(v);
    free(g);
}
END_TEST

/* What an op does to a control that was zero. */
static step_control control_after(backend *be, status (*run)(void *ctx, step_control *c), void *ctx)
{
    step_control c = {0};
    tensor t = tensor_bytes_new(be, sizeof c, &c);
    MUST(run(ctx, (step_control *)(void *)t.data));
    MUST(be->ops->download(be, &c, t.data, sizeof c));
    tensor_free(&t);
    return c;
}

typedef struct vector_op {
    backend *be;
    int64_t n;
    const float *x;
    int64_t *acc;
} vector_op;

static status run_all_finite(void *ctx, step_control *c)
{
    vector_op *o = ctx;
    return o->be->ops->all_finite(o->be, o->n, o->x, c);
}

static status run_exact(void *ctx, step_control *c)
{
    vector_op *o = ctx;
    return o->be->ops->exact_accumulate(o->be, o->n, o->x, o->acc, c);
}

static bool finds_all_finite(backend *be, int64_t n, const float *x)
{
    vector_op o = {be, n, x, NULL};
    step_control c = control_after(be, run_all_finite, &o);
    ck_assert_uint_eq(c.failures, c.halted ? STEP_GRADIENT : 0);
    return !c.halted;
}

START_TEST(all_finite_finds_one)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    backend *be = open_ops(ops, 2, 1);
    float *x = host_random(1, n);
    x[0] = 3.4e38f; /* large is finite, and a sum of large ones is still found to be */
    x[n - 1] = 3.4e38f;
    tensor t = vector_new(be, n, x);
    ck_assert(finds_all_finite(be, n, t.data));
    tensor_free(&t);
    for (int i = 0; i < 9; i++) {
        int64_t at = i / 3 == 0 ? 0 : i / 3 == 1 ? n / 2 : n - 1;
        float before = x[at];
        x[at] = bad[i % 3];
        t = vector_new(be, n, x);
        ck_assert_msg(!finds_all_finite(be, n, t.data), "n %lld: %g at %lld was not seen",
                      (long long)n, (double)x[at], (long long)at);
        tensor_free(&t);
        x[at] = before;
    }
    free(x);
    ops->close(be);
}
END_TEST

/* ---- exact mode ---- */

static bool accumulate(backend *be, int64_t n, const float *g, int64_t *acc)
{
    tensor gt = vector_new(be, n, g);
    tensor at = tensor_bytes_new(be, sizeof *acc * (size_t)n, acc);
    vector_op o = {be, n, gt.data, (int64_t *)(void *)at.data};
    step_control c = control_after(be, run_exact, &o);
    ck_assert_uint_eq(c.failures & ~(uint32_t)STEP_REFUSED, 0);
    const bool ok = c.failures == 0;
    tensor_check_guards(&at);
    MUST(be->ops->download(be, acc, at.data, sizeof *acc * (size_t)n));
    tensor_free(&gt);
    tensor_free(&at);
    return ok;
}

START_TEST(exact_rounds_to_even_and_adds)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    static const struct {
        float g;
        int64_t expect;
    } rows[] = {
        {0, 0},
        {-0.0f, 0},
        {1, INT64_C(1) << 44},
        {-1, -(INT64_C(1) << 44)},
        {0x1p-44f, 1},
        {0x1p-45f, 0}, /* a half goes to the even neighbour */
        {0x3p-45f, 2},
        {0x5p-45f, 2},
        {-0x1p-45f, 0},
        {-0x3p-45f, -2},
        {0x1.000002p-45f, 1},
        {-0x1.8p-46f, 0},
        {0x1p-149f, 0},
        {0x1.fffffep11f, INT64_C(0xffffff) << 32}, /* the largest below 4096 */
        {-0x1.fffffep11f, -(INT64_C(0xffffff) << 32)},
        {0.1f, INT64_C(1759218630656)},
    };
    enum {
        N = COUNT(rows)
    };
    float g[N];
    int64_t acc[N];
    backend *be = open_ops(ops, 2, 1);
    for (int i = 0; i < N; i++) {
        g[i] = rows[i].g;
        acc[i] = 1000 - i;
    }
    for (int times = 1; times <= 2; times++) {
        ck_assert(accumulate(be, N, g, acc));
        for (int i = 0; i < N; i++)
            ck_assert_int_eq(acc[i], 1000 - i + times * rows[i].expect);
    }
    ops->close(be);
}
END_TEST

START_TEST(exact_refuses_what_does_not_fit)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    static const float bad[] = {4096, -4096, 1e30f, INFINITY, -INFINITY, NAN, -NAN};
    backend *be = open_ops(ops, 2, 1);
    float *g = host_random(1, n);
    int64_t *acc = calloc((size_t)n, sizeof *acc);
    ck_assert_ptr_nonnull(acc);
    ck_assert(accumulate(be, n, g, acc));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++)
        wrong += acc[i] != llrint((double)g[i] * EXACT_SCALE);
    ck_assert_int_eq(wrong, 0);
    for (int i = 0; i < COUNT(bad); i++)
        for (int where = 0; where < 3; where++) {
            int64_t at = where == 0 ? 0 : where == 1 ? n / 2 : n - 1;
            float before = g[at];
            g[at] = bad[i];
            ck_assert_msg(!accumulate(be, n, g, acc), "%g at %lld of %lld was taken",
                          (double)bad[i], (long long)at, (long long)n);
            g[at] = before;
        }
    free(acc);
    free(g);
    ops->close(be);
}
END_TEST

START_TEST(exact_goes_back_to_float)
{
    const backend_ops *ops = loop_backend(_i, COUNT(sizes));
    int64_t n = sizes[_i % COUNT(sizes)];
    if (!ops)
        return;
    static const int64_t edges[] = {0,
                                    1,
                                    -1,
                                    INT64_MAX,
                                    INT64_MIN,
                                    (INT64_C(1) << 53) + 1,
                                    INT64_C(1) << 44,
                                    -(INT64_C(3) << 43),
                                    (INT64_C(1) << 24) + 1};
    backend *be = open_ops(ops, 2, 1);
    int64_t *acc = calloc((size_t)n, sizeof *acc);
    float *expect = host_new(n);
    ck_assert_ptr_nonnull(acc);
    for (int64_t i = 0; i < n; i++) {
        acc[i] = i < COUNT(edges) ? edges[i] : (int64_t)((host_unit(1, i) - 0.5) * 0x1p62);
        expect[i] = (float)((double)acc[i] / EXACT_SCALE);
    }
    tensor at = tensor_bytes_new(be, sizeof *acc * (size_t)n, acc), g = vector_new(be, n, NULL);
    MUST(ops->exact_to_float(be, n, (const int64_t *)at.data, g.data));
    float *got = tensor_take(&g);
    check_same_bits("acc / 2^44", n, got, expect);
    tensor_free(&at);
    free(got);
    free(expect);
    free(acc);
    ops->close(be);
}
END_TEST

/* ---- registry and plan ---- */

START_TEST(registry)
{
    backend_options options = {.threads = 1, .lanes = 1};
    backend *be = NULL;
    errbuf err = {0};
    const backend_ops *best = NULL;
    for (const backend_ops *const *b = backend_list(); *b; b++) {
        ck_assert_ptr_eq(backend_find((*b)->name), *b);
        ck_assert_str_ne((*b)->help, "");
        if (!best && (*b)->available())
            best = *b;
    }
    ck_assert_ptr_nonnull(backend_find("reference"));
    ck_assert_ptr_null(backend_find("no such backend"));
    MUST(backend_open("auto", &options, &be, &err));
    ck_assert_ptr_eq(be->ops, best);
    be->ops->close(be);
    be = NULL;
    ck_assert_int_eq(backend_open("cpuu", &options, &be, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_null(be);
    ck_assert_ptr_nonnull(strstr(err.text, "cpuu"));
    ck_assert_ptr_nonnull(strstr(err.text, "reference"));
}
END_TEST

START_TEST(describes_itself)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    cJSON *plan = NULL;
    MUST(ops->describe(be, &plan, NULL));
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(plan, "backend");
    ck_assert(cJSON_IsString(name));
    ck_assert_str_eq(name->valuestring, ops->name);
    ck_assert_ptr_nonnull(ops->last_error(be));
    ops->close(be);
    /* and takes its own plan */
    backend_options options = {.threads = 1, .lanes = 1, .plan = plan};
    errbuf err = {0};
    ck_assert_msg(ops->open(&options, &be, &err) == STATUS_OK, "%s", err.text);
    cJSON_Delete(plan);
    ck_assert_ptr_null(be->options.plan);
    ck_assert_int_eq(be->options.threads, 1);
    ck_assert_ptr_eq(be->ops, ops);
    ops->close(be);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("update");
    TCase *tc = tcase_create("update");
    ADD_CASES(tc, pack_and_unpack, COUNT(shapes));
    ADD_CASES(tc, memory_is_aligned_and_zero, 1);
#ifndef __SANITIZE_ADDRESS__
    ADD_CASES(tc, memory_that_is_not_there, 1);
#endif
    ADD_CASES(tc, add_is_exact, COUNT(sizes));
    ADD_CASES(tc, blend_agrees, COUNT(sizes));
    ADD_CASES(tc, sgd_agrees, COUNT(sizes));
    ADD_CASES(tc, sgd_is_elementwise, 1);
    ADD_CASES(tc, all_finite_finds_one, COUNT(sizes));
    ADD_CASES(tc, exact_rounds_to_even_and_adds, 1);
    ADD_CASES(tc, exact_refuses_what_does_not_fit, COUNT(sizes));
    ADD_CASES(tc, exact_goes_back_to_float, COUNT(sizes));
    tcase_add_test(tc, registry);
    ADD_CASES(tc, describes_itself, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
