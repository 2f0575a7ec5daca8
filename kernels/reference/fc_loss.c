/*
 * The head of a classifier: fully connected layer, softmax cross-entropy, top-1 and top-5.
 */
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

struct backend_fc {
    fc_desc d;
};

struct backend_loss {
    loss_desc d;
};

status reference_fc_create(backend *be, int lane, const fc_desc *desc, backend_fc **ret,
                           errbuf *err)
{
    TRY(reference_check_lane(be, lane, err));
    backend_fc *f = calloc(1, sizeof *f);
    if (!f)
        return reference_out_of_memory("a fully connected layer", err);
    f->d = *desc;
    *ret = f;
    return STATUS_OK;
}

void reference_fc_destroy(backend_fc **f)
{
    if (!f)
        return;
    free(*f);
    *f = NULL;
}

status reference_fc_forward(backend_fc *f, const float *x, const float *w, const float *b, float *y)
{
    const fc_desc *d = &f->d;
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t o = 0; o < d->out; o++) {
            double sum = b[o];
            for (int i = 0; i < d->in; i++)
                sum += (double)x[n * d->in + i] * w[o * d->in + i];
            y[n * d->out + o] = (float)sum;
        }
    return STATUS_OK;
}

status reference_fc_backward(backend_fc *f, const float *x, const float *w, const float *dy,
                             float *dx, float *dw, float *db)
{
    const fc_desc *d = &f->d;
    int64_t in = d->in, out = d->out;
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t i = 0; i < in; i++) {
            double sum = 0;
            for (int64_t o = 0; o < out; o++)
                sum += (double)dy[n * out + o] * w[o * in + i];
            dx[n * in + i] = (float)sum;
        }
    for (int64_t o = 0; o < out; o++) {
        double bias = 0;
        for (int64_t n = 0; n < d->n; n++)
            bias += dy[n * out + o];
        db[o] = (float)bias;
        for (int64_t i = 0; i < in; i++) {
            double sum = 0;
            for (int64_t n = 0; n < d->n; n++)
                sum += (double)dy[n * out + o] * x[n * in + i];
            dw[o * in + i] = (float)sum;
        }
    }
    return STATUS_OK;
}

status reference_loss_create(backend *be, int lane, const loss_desc *desc, backend_loss **ret,
                             errbuf *err)
{
    TRY(reference_check_lane(be, lane, err));
    backend_loss *l = calloc(1, sizeof *l);
    if (!l)
        return reference_out_of_memory("a loss", err);
    l->d = *desc;
    *ret = l;
    return STATUS_OK;
}

void reference_loss_destroy(backend_loss **l)
{
    if (!l)
        return;
    free(*l);
    *l = NULL;
}

/* How many classes rank before the label; all of them where a logit is not finite. */
static int rank_of(const float *z, int classes, int label)
{
    int before = 0;
    for (int i = 0; i < classes; i++) {
        if (!isfinite(z[i]))
            return classes > 5 ? classes : 5;
        before += z[i] > z[label] || (z[i] == z[label] && i < label);
    }
    return before;
}

static double row_loss(const float *z, int classes, int label, float scale, float *dz)
{
    double largest = -INFINITY, sum = 0;
    for (int i = 0; i < classes; i++)
        if (z[i] > largest)
            largest = z[i];
    for (int i = 0; i < classes; i++)
        sum += exp(z[i] - largest);
    for (int i = 0; dz && i < classes; i++)
        dz[i] = (float)((exp(z[i] - largest) / sum - (i == label)) * scale);
    return log(sum) + largest - z[label];
}

status reference_loss_run(backend_loss *l, const float *logits, const int32_t *labels, int valid,
                          float scale, float *dlogits, loss_sums *sums)
{
    loss_sums total = {0};
    int classes = l->d.classes;
    for (int n = 0; n < l->d.n; n++) {
        const float *z = logits + (int64_t)n * classes;
        float *dz = dlogits ? dlogits + (int64_t)n * classes : NULL;
        if (n >= valid || labels[n] < 0) {
            for (int i = 0; dz && i < classes; i++)
                dz[i] = 0;
            continue;
        }
        int rank = rank_of(z, classes, labels[n]);
        total.loss += row_loss(z, classes, labels[n], scale, dz);
        total.top1 += rank < 1;
        total.top5 += rank < 5;
        total.count++;
    }
    *sums = total;
    return STATUS_OK;
}
