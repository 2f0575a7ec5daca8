/*
 * Ops on flat vectors: y = a + b, y = keep y + take x, the SGD step, the search for non-finite
 * values, and exact mode's fixed point (acc += llrint(g 2^44), g = acc / 2^44).
 *
 * Shapes: n floats (add_native: elements of the io type); where a vector begins need not be aligned
 * to more than its elements, because spans of the parameter vector come here.
 * Bytes moved an element: add 12 (bf16 6), blend 12, sgd 20, all_finite 4, accumulate 20, to_float
 * 12; nothing is read twice. Each element is computed by one thread alone, in one and the same
 * code: the bits do not depend on alignment or on the grid.
 *
 * A thread takes the four elements of one aligned group of 16 bytes, as one access where the group
 * is whole and all vectors are aligned alike, so that a span that begins anywhere costs what one at
 * an aligned address costs.
 */
#include <math.h>

#include "kernels/cuda/launch.cuh"

static const int BLOCK = 256;

/* ---- groups of four ---- */

struct alignas(16) four {
    float at[4];
};

struct alignas(16) two_sums {
    int64_t at[2];
};

/* How n elements are dealt: thread t has those from 4 t - lead on. `aligned`: a group that is whole
 * may be moved at once. */
struct spread {
    int64_t n;
    int lead;
    bool aligned;
};

/* The group of this thread. */
struct group {
    int64_t first;
    int begin, end; /* of its four, those that are there */
    bool at_once;
};

static __device__ __forceinline__ group group_of(spread s)
{
    group g;
    g.first = 4 * grid_index() - s.lead;
    g.begin = g.first < 0 ? (int)-g.first : 0;
    g.end = s.n - g.first < 4 ? (int)(s.n - g.first) : 4;
    g.at_once = s.aligned && g.begin == 0 && g.end == 4;
    return g;
}

static __device__ __forceinline__ void load_group(group g, const float *from, float to[4])
{
    if (g.at_once) {
        const four all = *(const four *)(const void *)(from + g.first);
        for (int k = 0; k < 4; k++)
            to[k] = all.at[k];
        return;
    }
    for (int k = 0; k < 4; k++)
        to[k] = k >= g.begin && k < g.end ? from[g.first + k] : 0.0f;
}

static __device__ __forceinline__ void store_group(group g, float *to, const float from[4])
{
    if (g.at_once) {
        four all;
        for (int k = 0; k < 4; k++)
            all.at[k] = from[k];
        *(four *)(void *)(to + g.first) = all;
        return;
    }
    for (int k = 0; k < 4; k++)
        if (k >= g.begin && k < g.end)
            to[g.first + k] = from[k];
}

static __device__ __forceinline__ void load_sums(group g, const int64_t *from, int64_t to[4])
{
    if (g.at_once) {
        const two_sums *both = (const two_sums *)(const void *)(from + g.first);
        const two_sums low = both[0], high = both[1];
        to[0] = low.at[0];
        to[1] = low.at[1];
        to[2] = high.at[0];
        to[3] = high.at[1];
        return;
    }
    for (int k = 0; k < 4; k++)
        to[k] = k >= g.begin && k < g.end ? from[g.first + k] : 0;
}

static __device__ __forceinline__ void store_sums(group g, int64_t *to, const int64_t from[4])
{
    if (g.at_once) {
        two_sums *both = (two_sums *)(void *)(to + g.first);
        const two_sums low = {{from[0], from[1]}}, high = {{from[2], from[3]}};
        both[0] = low;
        both[1] = high;
        return;
    }
    for (int k = 0; k < 4; k++)
        if (k >= g.begin && k < g.end)
            to[g.first + k] = from[k];
}

/* `x` leads: groups are where it is aligned. */
static spread spread_over(int64_t n, const float *x)
{
    const spread s = {n, (int)((uintptr_t)x / sizeof *x % 4), true};
    return s;
}

/* The same for one more vector of elements of `size` bytes. */
static spread with(spread s, const void *x, int size)
{
    s.aligned = s.aligned && ((uintptr_t)x - (uintptr_t)(s.lead * size)) % 16 == 0;
    return s;
}

template <typename... P, typename... A>
static status launch(backend *be, const char *name, void (*kernel)(spread, P...), spread s,
                     A... args)
{
    if (s.n <= 0)
        return STATUS_OK;
    return cuda_launch(cuda_of(be), name, kernel, blocks_for((s.n + s.lead + 3) / 4, BLOCK), BLOCK,
                       0, s, args...);
}

/* ---- sums ---- */

/* one thread owns four elements; a and y may be the same */
static __global__ void add_kernel(spread s, const float *a, const float *b, float *y)
{
    const group g = group_of(s);
    float left[4], right[4];
    if (g.begin >= g.end)
        return;
    load_group(g, a, left);
    load_group(g, b, right);
    for (int k = 0; k < 4; k++)
        left[k] += right[k];
    store_group(g, y, left);
}

extern "C" status cuda_add(backend *be, int64_t n, const float *a, const float *b, float *y)
{
    const spread s = with(with(spread_over(n, y), a, sizeof *a), b, sizeof *b);
    return launch(be, "add", add_kernel, s, a, b, y);
}

/* one thread owns eight elements; a and y may be the same */
template <typename T>
static __global__ void add_native_kernel(int64_t n, bool aligned, const T *a, const T *b, T *y)
{
    const int64_t first = 8 * grid_index();
    if (first >= n)
        return;
    if (aligned && first + 8 <= n) {
        float left[8], right[8];
        load8(a + first, left);
        load8(b + first, right);
        for (int k = 0; k < 8; k++)
            left[k] += right[k];
        store8(y + first, left);
        return;
    }
    for (int64_t i = first; i < n && i < first + 8; i++)
        y[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

template <typename T>
static status add_native(cuda_backend *be, size_t bytes, const void *a, const void *b, void *y)
{
    const int64_t n = (int64_t)(bytes / sizeof(T));
    const bool aligned = ((uintptr_t)a | (uintptr_t)b | (uintptr_t)y) % 16 == 0;
    if (n == 0)
        return STATUS_OK;
    return cuda_launch(be, "add of activations", add_native_kernel<T>,
                       blocks_for((n + 7) / 8, BLOCK), BLOCK, 0, n, aligned, (const T *)a,
                       (const T *)b, (T *)y);
}

extern "C" status cuda_add_native(backend *be, size_t bytes, const float *a, const float *b,
                                  float *y)
{
    return cuda_is_bf16(cuda_of(be)) ? add_native<bf16>(cuda_of(be), bytes, a, b, y)
                                     : add_native<float>(cuda_of(be), bytes, a, b, y);
}

/* ---- the update ---- */

/* one thread owns four elements */
static __global__ void blend_kernel(spread s, float *y, float keep, const float *x, float take,
                                    const step_control *c)
{
    const group g = group_of(s);
    float old[4], other[4];
    if (g.begin >= g.end || (c && c->halted))
        return;
    load_group(g, y, old);
    load_group(g, x, other);
    for (int k = 0; k < 4; k++)
        old[k] = keep * old[k] + take * other[k];
    store_group(g, y, old);
}

extern "C" status cuda_blend(backend *be, int64_t n, float *y, float keep, const float *x,
                             float take, const step_control *c)
{
    const spread s = with(spread_over(n, y), x, sizeof *x);
    return launch(be, "blend", blend_kernel, s, y, keep, x, take, c);
}

/* one thread owns four elements of p, grad and v */
static __global__ void sgd_kernel(spread s, float *p, const float *grad, float *v,
                                  sgd_params params, const step_control *c)
{
    const group g = group_of(s);
    float value[4], gradient[4], velocity[4];
    if (g.begin >= g.end || (c && c->halted))
        return;
    const float lr = c ? c->in.lr : params.lr;
    load_group(g, p, value);
    load_group(g, grad, gradient);
    load_group(g, v, velocity);
    for (int k = 0; k < 4; k++) {
        const float whole = gradient[k] * params.grad_scale + params.weight_decay * value[k];
        velocity[k] = params.momentum * velocity[k] + whole;
        value[k] -= lr * (params.nesterov ? whole + params.momentum * velocity[k] : velocity[k]);
    }
    store_group(g, v, velocity);
    store_group(g, p, value);
}

extern "C" status cuda_sgd(backend *be, int64_t n, float *p, const float *grad, float *v,
                           const sgd_params *params, const step_control *c)
{
    const spread s = with(with(spread_over(n, p), grad, sizeof *grad), v, sizeof *v);
    return launch(be, "SGD step", sgd_kernel, s, p, grad, v, *params, c);
}

/* one thread looks at four elements */
static __global__ void all_finite_kernel(spread s, const float *x, step_control *c)
{
    const group g = group_of(s);
    float value[4];
    bool finite = true;
    if (g.begin >= g.end)
        return;
    load_group(g, x, value);
    for (int k = 0; k < 4; k++)
        finite = finite && isfinite(value[k]);
    if (!finite) {
        atomic_or(&c->failures, STEP_GRADIENT);
        atomic_or(&c->halted, 1);
    }
}

extern "C" status cuda_all_finite(backend *be, int64_t n, const float *x, step_control *c)
{
    return launch(be, "check for finite values", all_finite_kernel, spread_over(n, x), x, c);
}

/* ---- exact mode ---- */

/* one thread owns four elements */
static __global__ void exact_accumulate_kernel(spread s, const float *g, int64_t *acc,
                                               step_control *c)
{
    const group own = group_of(s);
    float value[4];
    int64_t sum[4];
    bool ok = true;
    if (own.begin >= own.end)
        return;
    load_group(own, g, value);
    load_sums(own, acc, sum);
    for (int k = 0; k < 4; k++) {
        const bool fits = fabsf(value[k]) < EXACT_LIMIT; /* false for a NaN, too */
        ok = ok && fits;
        sum[k] += fits ? llrint((double)value[k] * EXACT_SCALE) : 0;
    }
    store_sums(own, acc, sum);
    if (!ok)
        atomic_or(&c->failures, STEP_REFUSED);
}

extern "C" status cuda_exact_accumulate(backend *be, int64_t n, const float *g, int64_t *acc,
                                        step_control *c)
{
    const spread s = with(spread_over(n, g), acc, sizeof *acc);
    return launch(be, "exact sum", exact_accumulate_kernel, s, g, acc, c);
}

/* one thread owns four elements */
static __global__ void exact_to_float_kernel(spread s, const int64_t *acc, float *g)
{
    const group own = group_of(s);
    int64_t sum[4];
    float value[4];
    if (own.begin >= own.end)
        return;
    load_sums(own, acc, sum);
    for (int k = 0; k < 4; k++)
        value[k] = (float)((double)sum[k] * (1.0 / EXACT_SCALE)); /* a power of two: exact */
    store_group(own, g, value);
}

extern "C" status cuda_exact_to_float(backend *be, int64_t n, const int64_t *acc, float *g)
{
    const spread s = with(spread_over(n, g), acc, sizeof *acc);
    return launch(be, "exact sum to float", exact_to_float_kernel, s, acc, g);
}
