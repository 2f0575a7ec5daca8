/*
 * All conv kernels of a net: generated from rings or copied from direct parameters, and the way
 * back, their gradients summed into the parameter vector's.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/reference/reference.h"

status reference_weights_create(backend *be, const kernel_shape *kernels, int count,
                                backend_weights **ret, errbuf *err)
{
    size_t n = count > 0 ? (size_t)count : 1, lanes = (size_t)be->options.lanes;
    backend_weights *w = calloc(1, sizeof *w);
    if (!w)
        return reference_out_of_memory("weights", err);
    w->be = be;
    w->count = count;
    w->lanes = be->options.lanes;
    w->kernels = calloc(n, sizeof *w->kernels);
    w->claimed = calloc(n * lanes, sizeof *w->claimed);
    if (!w->kernels || !w->claimed) {
        reference_weights_destroy(&w);
        return reference_out_of_memory("kernels", err);
    }
    for (int k = 0; k < count; k++) {
        w->kernels[k].shape = kernels[k];
        w->kernels[k].at = w->elements;
        w->elements += kernel_elements(kernels[k]);
    }
    *ret = w;
    return STATUS_OK;
}

static void release_tables(backend_weights *w)
{
    free(w->value);
    free(w->grad);
    free(w->entry);
    free(w->scales);
    free(w->sum);
    free(w->spans);
    free(w->order);
    w->value = w->grad = w->scales = NULL;
    w->entry = NULL;
    w->sum = NULL;
    w->spans = NULL;
    w->order = NULL;
}

void reference_weights_destroy(backend_weights **w)
{
    if (!w || !*w)
        return;
    release_tables(*w);
    free((*w)->kernels);
    free((*w)->claimed);
    free(*w);
    *w = NULL;
}

static status check_sources(const backend_weights *w, const weight_source *sources, int64_t params,
                            errbuf *err)
{
    for (int k = 0; k < w->count; k++) {
        const weight_source *s = &sources[k];
        int64_t elements = kernel_elements(w->kernels[k].shape);
        int64_t needed = s->map ? s->map->n : elements;
        if (s->source < 0 || s->source + needed > params)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernel %d draws from parameters %lld to %lld of a vector of %lld", k,
                              (long long)s->source, (long long)(s->source + needed - 1),
                              (long long)params);
        if (s->map && (s->first < 0 || s->first + elements > s->map->m))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernel %d takes weights %lld to %lld of a ring that generates %lld",
                              k, (long long)s->first, (long long)(s->first + elements - 1),
                              (long long)s->map->m);
    }
    return STATUS_OK;
}

/* Zeroed, and counted; never of nothing, so that NULL means out of memory. */
static void *allocate(backend_weights *w, int64_t count, size_t size)
{
    w->bytes += (size_t)count * size;
    return calloc(count > 0 ? (size_t)count : 1, size);
}

static status allocate_tables(backend_weights *w, const weight_source *sources, int64_t params,
                              errbuf *err)
{
    int64_t scales = 0;
    for (int k = 0; k < w->count; k++)
        scales += sources[k].scale ? w->kernels[k].shape.out : 0;
    w->bytes = 0;
    w->value = allocate(w, w->elements, sizeof *w->value);
    w->grad = allocate(w, w->elements * w->lanes, sizeof *w->grad);
    w->entry = allocate(w, w->elements, sizeof *w->entry);
    w->scales = allocate(w, scales, sizeof *w->scales);
    w->sum = allocate(w, params, sizeof *w->sum);
    w->spans = allocate(w, w->count, sizeof *w->spans);
    w->order = allocate(w, w->count, sizeof *w->order);
    if (!w->value || !w->grad || !w->entry || !w->scales || !w->sum || !w->spans || !w->order)
        return reference_out_of_memory("the weights' tables", err);
    return STATUS_OK;
}

/* The first kernel that draws from the same ring through the same map as kernel k. */
static int first_of_map(const weight_source *sources, int k)
{
    int first = 0;
    while (sources[first].map != sources[k].map || sources[first].source != sources[k].source)
        first++;
    return first;
}

static bool comes_after(const weight_source *sources, int a, int b)
{
    int map_a = first_of_map(sources, a), map_b = first_of_map(sources, b);
    return map_a > map_b || (map_a == map_b && sources[a].first > sources[b].first);
}

/* Kernels in the order in which an element's uses are summed: map after map, by position within
 * one. An insertion sort: nets have tens of kernels. */
static void order_kernels(backend_weights *w, const weight_source *sources)
{
    for (int k = 0; k < w->count; k++) {
        int at = k;
        for (; at > 0 && comes_after(sources, w->order[at - 1], k); at--)
            w->order[at] = w->order[at - 1];
        w->order[at] = k;
    }
}

static void fill_tables(backend_weights *w, const weight_source *sources)
{
    float *scale = w->scales;
    for (int k = 0; k < w->count; k++) {
        reference_kernel *kernel = &w->kernels[k];
        const weight_source *s = &sources[k];
        int64_t elements = kernel_elements(kernel->shape);
        kernel->source = s->source;
        w->spans[k] = (reference_span){s->source, s->map ? s->map->n : elements};
        if (s->scale) {
            memcpy(scale, s->scale, sizeof *scale * (size_t)kernel->shape.out);
            kernel->scale = scale;
            scale += kernel->shape.out;
        }
        for (int64_t j = 0; j < elements; j++)
            w->entry[kernel->at + j] =
                s->map ? ring_map_entry(s->map, (uint32_t)(s->first + j)) : (uint32_t)j;
    }
}

status reference_weights_commit(backend_weights *w, const weight_source *sources, int64_t params,
                                errbuf *err)
{
    ASSERT(!w->committed);
    TRY(check_sources(w, sources, params, err));
    status st = allocate_tables(w, sources, params, err);
    if (st != STATUS_OK) {
        release_tables(w);
        return st;
    }
    fill_tables(w, sources);
    order_kernels(w, sources);
    w->committed = true;
    return STATUS_OK;
}

size_t reference_weights_bytes(const backend_weights *w)
{
    return w->bytes;
}

static float scale_of(const reference_kernel *k, int64_t j)
{
    return k->scale ? k->scale[j / (kernel_elements(k->shape) / k->shape.out)] : 1.0f;
}

status reference_weights_expand(backend_weights *w, const float *params)
{
    for (int k = 0; k < w->count; k++) {
        const reference_kernel *kernel = &w->kernels[k];
        const uint32_t *entry = w->entry + kernel->at;
        float *value = reference_weights_value(w, k);
        int64_t elements = kernel_elements(kernel->shape);
        for (int64_t j = 0; j < elements; j++) {
            float p = params[kernel->source + (entry[j] & ~RING_SIGN_BIT)];
            value[j] = scale_of(kernel, j) * (entry[j] & RING_SIGN_BIT ? -p : p);
        }
    }
    return STATUS_OK;
}

static void add_kernel(backend_weights *w, int lane, int k)
{
    const reference_kernel *kernel = &w->kernels[k];
    const uint32_t *entry = w->entry + kernel->at;
    const float *grad = reference_weights_grad(w, lane, k);
    int64_t elements = kernel_elements(kernel->shape);
    for (int64_t j = 0; j < elements; j++) {
        double g = (double)scale_of(kernel, j) * grad[j];
        w->sum[kernel->source + (entry[j] & ~RING_SIGN_BIT)] += entry[j] & RING_SIGN_BIT ? -g : g;
    }
}

status reference_weights_reduce(backend_weights *w, int lane, float *grad)
{
    for (int k = 0; k < w->count; k++)
        memset(w->sum + w->spans[k].start, 0, sizeof *w->sum * (size_t)w->spans[k].count);
    for (int i = 0; i < w->count; i++)
        add_kernel(w, lane, w->order[i]);
    for (int k = 0; k < w->count; k++) {
        const reference_span *s = &w->spans[k];
        for (int64_t e = s->start; e < s->start + s->count; e++)
            grad[e] = (float)w->sum[e];
    }
    return STATUS_OK;
}

status reference_weights_read(backend_weights *w, int kernel, float *oihw)
{
    memcpy(oihw, reference_weights_value(w, kernel),
           sizeof *oihw * (size_t)kernel_elements(w->kernels[kernel].shape));
    return STATUS_OK;
}

status reference_weights_read_grad(backend_weights *w, int lane, int kernel, float *oihw)
{
    memcpy(oihw, reference_weights_grad(w, lane, kernel),
           sizeof *oihw * (size_t)kernel_elements(w->kernels[kernel].shape));
    return STATUS_OK;
}
