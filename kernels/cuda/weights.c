/* Kernels of a net on the device: declaring, claiming and placing them, reading them back. */
#include "kernels/cuda/weights.h"

#include <stdlib.h>
#include <string.h>

static status out_of_memory(const char *what, errbuf *err)
{
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory (host): %s", what);
}

status cuda_weights_create(backend *be, const kernel_shape *kernels, int count,
                           backend_weights **ret, errbuf *err)
{
    for (int k = 0; k < count; k++) {
        const kernel_shape *s = &kernels[k];
        if (s->out < 1 || s->in < 1 || s->kh < 1 || s->kw < 1)
            return errbuf_set(err, STATUS_BAD_INPUT, "kernel %d: shape %d x %d x %d x %d is empty",
                              k, s->out, s->in, s->kh, s->kw);
    }
    backend_weights *w = calloc(1, sizeof *w);
    if (!w)
        return out_of_memory("weights", err);
    w->be = cuda_of(be);
    w->kernels = count;
    w->kernel = calloc((size_t)count + 1, sizeof *w->kernel);
    if (!w->kernel) {
        cuda_weights_destroy(&w);
        return out_of_memory("kernels", err);
    }
    for (int k = 0; k < count; k++) {
        w->kernel[k].shape = kernels[k];
        w->kernel[k].grad_at = -1;
    }
    *ret = w;
    return STATUS_OK;
}

void cuda_weights_destroy(backend_weights **weights)
{
    if (!weights || !*weights)
        return;
    backend_weights *w = *weights;
    void *const device[] = {w->values,  w->grads,      w->table,       w->chunk,         w->scales,
                            w->shadow,  w->words.word, w->words.scale, w->words.palette, w->slice,
                            w->segment, w->few,        w->many,        w->partial};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        cuda_release(&w->be->base, device[i]);
    free(w->shadows);
    free(w->kernel);
    free(w);
    *weights = NULL;
}

status cuda_weights_claim(backend_weights *w, int kernel, int channels, unsigned passes,
                          bool *ret_first, errbuf *err)
{
    if (kernel < 0 || kernel >= w->kernels)
        return errbuf_set(err, STATUS_BAD_INPUT, "there is no kernel %d among %d", kernel,
                          w->kernels);
    cuda_kernel *k = &w->kernel[kernel];
    if (w->committed)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "kernel %d: convs are created before the weights are committed", kernel);
    if (channels < k->shape.in || (k->channels > 0 && k->channels != channels))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "kernel %d: a conv with %d input channels a group in memory, not %d",
                          kernel, channels, k->channels > 0 ? k->channels : k->shape.in);
    const bool writes = (passes & CONV_BACKWARD_WEIGHTS) != 0;
    *ret_first = writes && !k->has_grad;
    k->channels = channels;
    k->has_grad |= writes;
    return STATUS_OK;
}

backend *cuda_weights_backend(const backend_weights *w)
{
    return &w->be->base;
}

kernel_shape cuda_weights_shape(const backend_weights *w, int kernel)
{
    return w->kernel[kernel].shape;
}

static void *element_at(const backend_weights *w, void *memory, int64_t at)
{
    return (char *)memory + (size_t)at * cuda_element(w->be);
}

const void *cuda_weights_value(const backend_weights *w, int kernel)
{
    return element_at(w, w->values, w->kernel[kernel].at);
}

void *cuda_weights_grad(const backend_weights *w, int kernel)
{
    const cuda_kernel *k = &w->kernel[kernel];
    return k->grad_at < 0 ? NULL : element_at(w, w->grads, k->grad_at);
}

size_t cuda_weights_bytes(const backend_weights *w)
{
    return w->bytes;
}

/* ---- commit ---- */

status ring_upload(backend_weights *w, const void *from, size_t bytes, void *ret, errbuf *err)
{
    void *memory = NULL;
    if (bytes == 0)
        return STATUS_OK;
    TRY(cuda_alloc(&w->be->base, bytes, &memory, err));
    memcpy(ret, &memory, sizeof memory); /* the weights own it from here on */
    w->bytes += bytes;
    if (!from)
        return STATUS_OK;
    status st = cuda_upload(&w->be->base, memory, from, bytes);
    return st == STATUS_OK ? st : cuda_report(w->be, st, err);
}

static status check_sources(const backend_weights *w, const weight_source *sources, int64_t params,
                            errbuf *err)
{
    for (int k = 0; k < w->kernels; k++) {
        const weight_source *s = &sources[k];
        const int64_t elements = kernel_elements(w->kernel[k].shape);
        const int64_t needed = s->map ? s->map->n : elements;
        if (s->source < 0 || s->source > params - needed)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernel %d draws from parameters %lld to %lld of a vector of %lld", k,
                              (long long)s->source, (long long)(s->source + needed - 1),
                              (long long)params);
        if (s->map && (s->first < 0 || s->first > (int64_t)s->map->m - elements))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernel %d takes weights %lld to %lld of a ring that generates %u", k,
                              (long long)s->first, (long long)(s->first + elements - 1), s->map->m);
    }
    return STATUS_OK;
}

/* Every kernel from a chunk on; a kernel that no conv uses as it is, to be read. */
static status place_kernels(backend_weights *w, errbuf *err)
{
    int64_t entries = 0;
    for (int k = 0; k < w->kernels; k++) {
        cuda_kernel *kernel = &w->kernel[k];
        const kernel_shape s = kernel->shape;
        if (kernel->channels == 0)
            kernel->channels = s.in;
        kernel->elements = (int64_t)s.out * s.kh * s.kw * kernel->channels;
        const int64_t room = round_up(kernel->elements, RING_CHUNK);
        kernel->at = w->value_elements;
        w->value_elements += room;
        if (kernel->has_grad) {
            kernel->grad_at = w->grad_elements;
            w->grad_elements += room;
        }
        kernel->first_entry = entries;
        entries += kernel_elements(s);
    }
    if (w->value_elements >= INT32_MAX) /* tables, and the words of uses, have 31 bits */
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%lld weights: the cuda backend holds fewer than %d; use a narrower net",
                          (long long)w->value_elements, INT32_MAX);
    return STATUS_OK;
}

/* Table entries of all kernels, elements counted from their sources. Caller frees. */
static uint32_t *make_entries(const backend_weights *w, const weight_source *sources)
{
    const int last = w->kernels - 1;
    const int64_t total =
        last < 0 ? 0 : w->kernel[last].first_entry + kernel_elements(w->kernel[last].shape);
    uint32_t *entries = malloc(sizeof *entries * ((size_t)total + 1));
    for (int k = 0; entries && k < w->kernels; k++) {
        const int64_t count = kernel_elements(w->kernel[k].shape);
        uint32_t *entry = entries + w->kernel[k].first_entry;
        if (sources[k].map)
            ring_map_table(sources[k].map, sources[k].first, count, entry);
        for (int64_t j = 0; !sources[k].map && j < count; j++)
            entry[j] = (uint32_t)j;
    }
    return entries;
}

status cuda_weights_commit(backend_weights *w, const weight_source *sources, int64_t params,
                           errbuf *err)
{
    if (w->committed)
        return errbuf_set(err, STATUS_BAD_INPUT, "these weights were committed before");
    TRY(check_sources(w, sources, params, err));
    w->committed = true; /* a failed commit leaves weights that can only be destroyed */
    TRY(place_kernels(w, err));
    const size_t element = cuda_element(w->be);
    TRY(ring_upload(w, NULL, (size_t)w->value_elements * element, &w->values, err));
    TRY(ring_upload(w, NULL, (size_t)w->grad_elements * element, &w->grads, err));
    uint32_t *entries = make_entries(w, sources);
    if (!entries)
        return out_of_memory("tables of the weights", err);
    status st = ring_table_build(w, sources, entries, err);
    if (st == STATUS_OK)
        st = ring_uses_build(w, sources, entries, err);
    free(entries);
    w->ready = st == STATUS_OK;
    return st;
}

/* ---- reading ---- */

static float host_float(const backend_weights *w, const void *memory, int64_t i)
{
    float value;
    if (cuda_is_bf16(w->be)) {
        uint16_t half;
        memcpy(&half, (const char *)memory + 2 * i, sizeof half);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, (const char *)memory + 4 * i, sizeof value);
    }
    return value;
}

/* From KRSC device memory to O,I,H,W. */
static status read_kernel(backend_weights *w, const cuda_kernel *k, const void *from, float *oihw)
{
    const size_t bytes = (size_t)k->elements * cuda_element(w->be);
    const int64_t spots = (int64_t)k->shape.kh * k->shape.kw;
    void *krsc = malloc(bytes);
    if (!krsc)
        return cuda_fail(w->be, STATUS_OUT_OF_MEMORY, "out of memory (host): reading a kernel");
    status st = cuda_download(&w->be->base, krsc, from, bytes);
    for (int64_t o = 0; st == STATUS_OK && o < k->shape.out; o++)
        for (int64_t i = 0; i < k->shape.in; i++)
            for (int64_t x = 0; x < spots; x++)
                *oihw++ = host_float(w, krsc, (o * spots + x) * k->channels + i);
    free(krsc);
    return st;
}

static status check_read(backend_weights *w, int kernel)
{
    if (w->ready && kernel >= 0 && kernel < w->kernels)
        return STATUS_OK;
    return cuda_fail(w->be, STATUS_BAD_INPUT, "kernel %d of %d cannot be read%s", kernel,
                     w->kernels, w->ready ? "" : " before commit");
}

status cuda_weights_read(backend_weights *w, int kernel, float *oihw)
{
    TRY(check_read(w, kernel));
    return read_kernel(w, &w->kernel[kernel], cuda_weights_value(w, kernel), oihw);
}

status cuda_weights_read_grad(backend_weights *w, int lane, int kernel, float *oihw)
{
    TRY(check_read(w, kernel));
    if (lane != 0)
        return cuda_fail(w->be, STATUS_BAD_INPUT, "there is no lane %d", lane);
    const cuda_kernel *k = &w->kernel[kernel];
    if (k->grad_at >= 0)
        return read_kernel(w, k, cuda_weights_grad(w, kernel), oihw);
    memset(oihw, 0, (size_t)kernel_elements(k->shape) * sizeof *oihw);
    return STATUS_OK;
}
