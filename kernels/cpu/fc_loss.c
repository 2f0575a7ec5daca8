/*
 * The fully connected layer (oneDNN's matrix product) and softmax cross-entropy. Row results are
 * made side by side and added in row order in double.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

struct backend_fc {
    cpu_backend *cpu;
    int lane;
    fc_desc desc;
};

status cpu_fc_create(backend *be, int lane, const fc_desc *desc, backend_fc **ret, errbuf *err)
{
    TRY(cpu_check_lane(cpu_of(be), lane, err));
    if (desc->n < 1 || desc->in < 1 || desc->out < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "fc: %d rows of %d to %d", desc->n, desc->in,
                          desc->out);
    backend_fc *f = calloc(1, sizeof *f);
    if (!f)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for an fc layer");
    f->cpu = cpu_of(be);
    f->lane = lane;
    f->desc = *desc;
    *ret = f;
    return STATUS_OK;
}

void cpu_fc_destroy(backend_fc **f)
{
    if (!f || !*f)
        return;
    free(*f);
    *f = NULL;
}

/* C = op(A) op(B) + beta C with the threads that a lane has, the same wherever it is called. */
static status product(backend_fc *f, bool turn_a, bool turn_b, int m, int n, int k, const float *a,
                      const float *b, float beta, float *c)
{
    const int threads = omp_get_max_threads();
    omp_set_num_threads(f->cpu->base.options.lanes > 1 ? 1 : f->cpu->base.options.threads);
    int failed =
        onednn_matmul(turn_a, turn_b, m, n, k, a, turn_a ? m : k, b, turn_b ? k : n, beta, c, n);
    omp_set_num_threads(threads);
    if (failed)
        return cpu_fail(f->cpu, f->lane, STATUS_ENVIRONMENT,
                        "oneDNN failed in an fc layer (status %d)", failed);
    return STATUS_OK;
}

status cpu_fc_forward(backend_fc *f, const float *x, const float *w, const float *b, float *y)
{
    const fc_desc *d = &f->desc;
    for (int n = 0; n < d->n; n++)
        memcpy(y + (int64_t)n * d->out, b, (size_t)d->out * sizeof *y);
    return product(f, false, true, d->n, d->out, d->in, x, w, 1.0f, y);
}

status cpu_fc_backward(backend_fc *f, const float *x, const float *w, const float *dy, float *dx,
                       float *dw, float *db)
{
    const fc_desc *d = &f->desc;
    TRY(product(f, false, false, d->n, d->in, d->out, dy, w, 0.0f, dx));
    TRY(product(f, true, false, d->out, d->in, d->n, dy, x, 0.0f, dw));
    memset(db, 0, (size_t)d->out * sizeof *db);
    for (int n = 0; n < d->n; n++) {
        for (int o = 0; o < d->out; o++)
            db[o] += dy[(int64_t)n * d->out + o];
    }
    return STATUS_OK;
}

/* ---- loss ---- */

struct backend_loss {
    cpu_backend *cpu;
    loss_desc desc;
    double *loss; /* [n] of each row */
    int *rank;    /* [n] of each row's label; `classes` where a logit is not finite */
};

status cpu_loss_create(backend *be, int lane, const loss_desc *desc, backend_loss **ret,
                       errbuf *err)
{
    TRY(cpu_check_lane(cpu_of(be), lane, err));
    if (desc->n < 1 || desc->classes < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "loss: %d rows of %d classes", desc->n,
                          desc->classes);
    backend_loss *l = calloc(1, sizeof *l);
    if (!l)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a loss");
    l->cpu = cpu_of(be);
    l->desc = *desc;
    l->loss = calloc((size_t)desc->n, sizeof *l->loss);
    l->rank = calloc((size_t)desc->n, sizeof *l->rank);
    if (!l->loss || !l->rank) {
        cpu_loss_destroy(&l);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a loss");
    }
    *ret = l;
    return STATUS_OK;
}

void cpu_loss_destroy(backend_loss **l)
{
    if (!l || !*l)
        return;
    free((*l)->loss);
    free((*l)->rank);
    free(*l);
    *l = NULL;
}

/* Classes that rank above the label, or all of them where a logit is not finite. */
static int label_rank(int classes, const float *logit, int label)
{
    int rank = 0;
    for (int c = 0; c < classes; c++) {
        if (!isfinite(logit[c]))
            return classes;
        rank += logit[c] > logit[label] || (logit[c] == logit[label] && c < label);
    }
    return rank;
}

static void loss_row(backend_loss *l, int row, const float *logit, int label, float scale,
                     float *dlogit)
{
    const int classes = l->desc.classes;
    float top = logit[0];
    double sum = 0;
    for (int c = 1; c < classes; c++)
        top = logit[c] > top ? logit[c] : top;
    for (int c = 0; c < classes; c++)
        sum += (double)expf(logit[c] - top);
    l->loss[row] = log(sum) - ((double)logit[label] - (double)top);
    l->rank[row] = label_rank(classes, logit, label);
    for (int c = 0; dlogit && c < classes; c++)
        dlogit[c] = (float)((double)expf(logit[c] - top) / sum - (c == label)) * scale;
}

status cpu_loss_run(backend_loss *l, const float *logits, const int32_t *labels, int valid,
                    float scale, float *dlogits, loss_sums *sums)
{
    const int classes = l->desc.classes;
    loss_sums total = {0};
#pragma omp parallel for num_threads(cpu_threads(l->cpu)) schedule(static)
    for (int n = 0; n < l->desc.n; n++) {
        int64_t at = (int64_t)n * classes;
        if (n < valid && labels[n] >= 0)
            loss_row(l, n, logits + at, labels[n], scale, dlogits ? dlogits + at : NULL);
        else if (dlogits)
            memset(dlogits + at, 0, (size_t)classes * sizeof *dlogits);
    }
    for (int n = 0; n < valid; n++) {
        bool finite = l->rank[n] < classes;
        if (labels[n] < 0)
            continue;
        total.count++;
        total.loss += l->loss[n];
        total.top1 += finite && l->rank[n] < 1;
        total.top5 += finite && l->rank[n] < 5;
    }
    *sums = total;
    return STATUS_OK;
}
