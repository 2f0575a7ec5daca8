/*
 * Operations on flat vectors: sums, the optimiser, checks, exact accumulation. Elementwise, so how
 * the vector is shared out makes no difference.
 */
#include "kernels/cpu/cpu.h"

#define PART 8192 /* elements that a thread takes at a time */

status cpu_add(backend *be, int64_t n, const float *a, const float *b, float *y)
{
    const simd_kernels *simd = cpu_of(be)->simd;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static)
    for (int64_t i = 0; i < n; i += PART)
        simd->add(min_int64(PART, n - i), a + i, b + i, y + i);
    return STATUS_OK;
}

status cpu_add_native(backend *be, size_t bytes, const float *a, const float *b, float *y)
{
    return cpu_add(be, (int64_t)(bytes / sizeof(float)), a, b, y);
}

status cpu_blend(backend *be, int64_t n, float *y, float keep, const float *x, float take,
                 const step_control *c)
{
    if (c && c->halted)
        return STATUS_OK;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static)
    for (int64_t i = 0; i < n; i++)
        y[i] = keep * y[i] + take * x[i];
    return STATUS_OK;
}

status cpu_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
               const sgd_params *params, const step_control *c)
{
    const simd_kernels *simd = cpu_of(be)->simd;
    sgd_params now = *params;
    if (c && c->halted)
        return STATUS_OK;
    if (c)
        now.lr = c->in.lr;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static)
    for (int64_t i = 0; i < n; i += PART)
        simd->sgd(min_int64(PART, n - i), p + i, grad + i, v + i, &now);
    return STATUS_OK;
}

status cpu_all_finite(backend *be, int64_t n, const float *x, step_control *c)
{
    const simd_kernels *simd = cpu_of(be)->simd;
    bool finite = true;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static) reduction(&& : finite)
    for (int64_t i = 0; i < n; i += PART)
        finite = finite && simd->all_finite(min_int64(PART, n - i), x + i);
    if (!finite) {
        c->failures |= STEP_GRADIENT;
        c->halted = 1;
    }
    return STATUS_OK;
}

status cpu_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc, step_control *c)
{
    const simd_kernels *simd = cpu_of(be)->simd;
    bool ok = true;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static) reduction(&& : ok)
    for (int64_t i = 0; i < n; i += PART)
        ok = simd->exact_accumulate(min_int64(PART, n - i), g + i, acc + i) && ok;
    if (!ok)
        c->failures |= STEP_REFUSED;
    return STATUS_OK;
}

status cpu_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g)
{
    const simd_kernels *simd = cpu_of(be)->simd;
#pragma omp parallel for num_threads(cpu_threads(cpu_of(be))) schedule(static)
    for (int64_t i = 0; i < n; i += PART)
        simd->exact_to_float(min_int64(PART, n - i), acc + i, g + i);
    return STATUS_OK;
}
