/* Rows without a label: a loss that meets some is the loss without those rows. */
#include "ops/harness.h"

/* What one run of the loss makes. */
typedef struct loss_result {
    loss_sums sums;
    float *dz;
} loss_result;

static loss_result run_loss(const backend_ops *ops, loss_desc d, const float *z,
                            const int32_t *labels, int valid)
{
    backend *be = open_ops(ops, 1, 1);
    shape s = {d.n, d.classes, 1, 1};
    backend_loss *l = NULL;
    loss_result r = {{-1, -1, -1, -1}, NULL};
    errbuf err = {0};
    ck_assert_msg(ops->loss_create(be, 0, &d, &l, &err) == STATUS_OK, "%s", err.text);
    tensor logits = tensor_new(be, s, LAYOUT_PLAIN, z), dz = tensor_new(be, s, LAYOUT_PLAIN, NULL);
    tensor on = tensor_bytes_new(be, (size_t)d.n * sizeof *labels, labels);
    tensor sums = tensor_bytes_new(be, sizeof r.sums, &r.sums);
    MUST(ops->loss_run(l, logits.data, (const int32_t *)(const void *)on.data, valid, 0.5f, dz.data,
                       (loss_sums *)(void *)sums.data));
    MUST(ops->download(be, &r.sums, sums.data, sizeof r.sums));
    r.dz = tensor_take(&dz);
    tensor_free(&logits);
    tensor_free(&on);
    tensor_free(&sums);
    ops->loss_destroy(&l);
    ops->close(be);
    return r;
}

typedef struct row_case {
    loss_desc d;
    int valid, every; /* every how many-th row has no label */
} row_case;

static const row_case cases[] = {
    {{1, 10}, 1, 1},     {{8, 10}, 8, 2},   {{37, 100}, 30, 3},
    {{300, 10}, 300, 7}, {{5, 1000}, 5, 5}, {{16, 3}, 0, 2},
};

START_TEST(rows_without_a_label_do_not_count)
{
    const row_case *c = &cases[_i % COUNT(cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(cases));
    if (!ops)
        return;
    int classes = c->d.classes, kept = 0;
    int64_t n = (int64_t)c->d.n * classes;
    float *z = host_random(6, n), *dense = host_new(n);
    int32_t *labels = calloc((size_t)c->d.n, sizeof *labels);
    int32_t *dense_labels = calloc((size_t)c->d.n, sizeof *labels);
    ck_assert(labels && dense_labels);
    for (int i = 0; i < c->d.n; i++) {
        labels[i] = i % c->every == c->every - 1 ? -1 - i : (int32_t)(host_unit(7, i) * classes);
        if (labels[i] < 0) {
            z[(int64_t)i * classes] = NAN; /* nor does what stands there */
        } else if (i < c->valid) {
            memcpy(dense + (int64_t)kept * classes, z + (int64_t)i * classes,
                   (size_t)classes * sizeof *z);
            dense_labels[kept++] = labels[i];
        }
    }
    loss_result got = run_loss(ops, c->d, z, labels, c->valid);
    loss_result expect = run_loss(ops, c->d, dense, dense_labels, kept);
    ck_assert_int_eq(got.sums.count, kept);
    ck_assert_int_eq(got.sums.top1, expect.sums.top1);
    ck_assert_int_eq(got.sums.top5, expect.sums.top5);
    ck_assert_double_le(fabs(got.sums.loss - expect.sums.loss), 1e-12 * fabs(expect.sums.loss));
    for (int i = 0, at = 0; i < c->d.n; i++) {
        const float *row = got.dz + (int64_t)i * classes;
        if (labels[i] >= 0 && i < c->valid)
            check_same_bits("a row's gradient", classes, row, expect.dz + (int64_t)at++ * classes);
        else
            for (int k = 0; k < classes; k++)
                ck_assert_float_eq(row[k], 0);
    }
    free(z);
    free(dense);
    free(labels);
    free(dense_labels);
    free(got.dz);
    free(expect.dz);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loss");
    TCase *tc = tcase_create("loss");
    ADD_CASES(tc, rows_without_a_label_do_not_count, COUNT(cases));
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
