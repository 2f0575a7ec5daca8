/*
 * Elementwise ops: addition, the SGD step, the check for non-finite values, and exact mode's fixed
 * point.
 */
#include <math.h>

#include "kernels/reference/reference.h"

status reference_add(backend *be, int64_t n, const float *a, const float *b, float *y)
{
    (void)be;
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
    return STATUS_OK;
}

status reference_add_native(backend *be, size_t bytes, const float *a, const float *b, float *y)
{
    return reference_add(be, (int64_t)(bytes / sizeof(float)), a, b, y);
}

status reference_blend(backend *be, int64_t n, float *y, float keep, const float *x, float take,
                       const step_control *c)
{
    (void)be;
    if (c && c->halted)
        return STATUS_OK;
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)((double)keep * y[i] + (double)take * x[i]);
    return STATUS_OK;
}

status reference_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
                     const sgd_params *s, const step_control *c)
{
    (void)be;
    const double lr = (double)(c ? c->in.lr : s->lr);
    if (c && c->halted)
        return STATUS_OK;
    for (int64_t i = 0; i < n; i++) {
        double g = (double)grad[i] * s->grad_scale + (double)s->weight_decay * p[i];
        double velocity = (double)s->momentum * v[i] + g;
        double step = s->nesterov ? g + s->momentum * velocity : velocity;
        v[i] = (float)velocity;
        p[i] = (float)(p[i] - lr * step);
    }
    return STATUS_OK;
}

status reference_all_finite(backend *be, int64_t n, const float *x, step_control *c)
{
    (void)be;
    bool finite = true;
    for (int64_t i = 0; i < n; i++)
        finite &= isfinite(x[i]) != 0;
    if (!finite) {
        c->failures |= STEP_GRADIENT;
        c->halted = 1;
    }
    return STATUS_OK;
}

status reference_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc,
                                  step_control *c)
{
    (void)be;
    bool ok = true;
    for (int64_t i = 0; i < n && ok; i++) {
        ok = fabsf(g[i]) < EXACT_LIMIT; /* false for a NaN, too */
        if (ok)
            acc[i] += llrint((double)g[i] * EXACT_SCALE);
    }
    if (!ok)
        c->failures |= STEP_REFUSED;
    return STATUS_OK;
}

status reference_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g)
{
    (void)be;
    for (int64_t i = 0; i < n; i++)
        g[i] = (float)((double)acc[i] / EXACT_SCALE);
    return STATUS_OK;
}
