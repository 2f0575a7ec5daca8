/* Kernels of a net: declaring them, placing them, reading them back. */
#include "kernels/cpu/weights.h"

#include <stdlib.h>
#include <string.h>

status cpu_weights_create(backend *be, const kernel_shape *kernels, int count,
                          backend_weights **ret, errbuf *err)
{
    cpu_backend *cpu = cpu_of(be);
    const size_t lanes = (size_t)be->options.lanes;
    backend_weights *w = calloc(1, sizeof *w);
    if (!w)
        goto no_memory;
    w->cpu = cpu;
    w->kernel = calloc((size_t)(count > 0 ? count : 1), sizeof *w->kernel);
    w->grads = calloc(lanes, sizeof *w->grads);
    if (!w->kernel || !w->grads)
        goto no_memory;
    w->kernels = count;
    for (int k = 0; k < count; k++) {
        const kernel_shape *s = &kernels[k];
        if (s->out < 1 || s->in < 1 || s->kh < 1 || s->kw < 1) {
            cpu_weights_destroy(&w);
            return errbuf_set(err, STATUS_BAD_INPUT, "kernel %d: shape %d x %d x %d x %d is empty",
                              k, s->out, s->in, s->kh, s->kw);
        }
        w->kernel[k].shape = *s;
        w->kernel[k].writers = calloc(lanes, sizeof *w->kernel[k].writers);
        if (!w->kernel[k].writers)
            goto no_memory;
    }
    *ret = w;
    return STATUS_OK;
no_memory:
    cpu_weights_destroy(&w);
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for %d kernels", count);
}

void cpu_weights_destroy(backend_weights **weights)
{
    if (!weights || !*weights)
        return;
    backend_weights *w = *weights;
    const int lanes = w->cpu->base.options.lanes;
    for (int k = 0; k < w->kernels; k++)
        free(w->kernel[k].writers);
    for (int l = 0; w->grads && l < lanes; l++)
        free(w->grads[l]);
    weight_table_fini(&w->direct);
    free(w->sorted);
    reduce_plan_fini(&w->reduce, lanes);
    free(w->values);
    free(w->grads);
    free(w->kernel);
    free(w);
    *weights = NULL;
}

int64_t weights_offset(const weight_layout *form, int o, int i, int h, int w)
{
    const int out = form->dim[DIM_OUT];
    return weight_layout_part(form, DIM_GROUP, o / out) +
           weight_layout_part(form, DIM_OUT, o % out) + weight_layout_part(form, DIM_IN, i) +
           weight_layout_part(form, DIM_KH, h) + weight_layout_part(form, DIM_KW, w);
}

/* ---- commit ---- */

/* Places every kernel's layouts; a kernel that no conv uses gets a plain one, to be read. */
static void place_kernels(backend_weights *w)
{
    const int64_t unit = CPU_ALIGN / (int64_t)sizeof(float);
    for (int k = 0; k < w->kernels; k++) {
        weights_kernel *kernel = &w->kernel[k];
        weight_layout *forward = &kernel->layout[ONEDNN_FORWARD];
        weight_layout *data = &kernel->layout[ONEDNN_BACKWARD_DATA];
        const kernel_shape *s = &kernel->shape;
        if (!forward->elements && !data->elements)
            *forward = weight_layout_plain(1, s->out, s->in, s->kh, s->kw);
        kernel->at[ONEDNN_FORWARD] = w->value_floats;
        w->value_floats += round_up(forward->elements, unit);
        kernel->at[ONEDNN_BACKWARD_DATA] = w->value_floats;
        if (weight_layout_equal(forward, data))
            kernel->at[ONEDNN_BACKWARD_DATA] = kernel->at[ONEDNN_FORWARD];
        else
            w->value_floats += round_up(data->elements, unit);
        kernel->at[ONEDNN_BACKWARD_WEIGHTS] = w->grad_floats;
        w->grad_floats += round_up(kernel->layout[ONEDNN_BACKWARD_WEIGHTS].elements, unit);
    }
}

static status check_sources(const backend_weights *w, const weight_source *sources, int64_t params,
                            errbuf *err)
{
    if (params < 0 || params > RING_ZERO_WEIGHT)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%lld parameters: the cpu backend addresses at most %u",
                          (long long)params, RING_ZERO_WEIGHT);
    for (int k = 0; k < w->kernels; k++) {
        const weight_source *s = &sources[k];
        int64_t elements = kernel_elements(w->kernel[k].shape);
        int64_t span = s->map ? s->map->n : elements;
        if (s->source < 0 || s->source > params - span)
            return errbuf_set(
                err, STATUS_BAD_INPUT, "kernel %d: elements %lld to %lld of %lld parameters", k,
                (long long)s->source, (long long)(s->source + span), (long long)params);
        if (s->map && (s->first < 0 || s->first > (int64_t)s->map->m - elements))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernel %d: weights %lld to %lld of a ring of %u", k,
                              (long long)s->first, (long long)(s->first + elements), s->map->m);
    }
    return STATUS_OK;
}

/* Entries of all kernels, counting elements of the whole parameter vector. Caller frees. */
static uint32_t *make_entries(backend_weights *w, const weight_source *sources)
{
    int64_t total = 0;
    for (int k = 0; k < w->kernels; k++) {
        w->kernel[k].first_entry = total;
        total += kernel_elements(w->kernel[k].shape);
    }
    uint32_t *entries = malloc(sizeof *entries * (size_t)max_int64(total, 1));
    for (int k = 0; entries && k < w->kernels; k++) {
        const weight_source *s = &sources[k];
        const int64_t count = kernel_elements(w->kernel[k].shape);
        const uint32_t source = (uint32_t)s->source;
        uint32_t *entry = entries + w->kernel[k].first_entry;
        if (s->map)
            ring_map_table(s->map, s->first, count, entry);
#pragma omp parallel for num_threads(w->cpu->base.options.threads) schedule(static)
        for (int64_t j = 0; j < count; j++) {
            if (!s->map)
                entry[j] = source + (uint32_t)j;
            else if ((entry[j] & ~RING_SIGN_BIT) != RING_ZERO_WEIGHT)
                entry[j] += source; /* never carries into the sign: checked above */
        }
    }
    return entries;
}

static status allocate_values(backend_weights *w, errbuf *err)
{
    const int lanes = w->cpu->base.options.lanes;
    w->values = cpu_memory((size_t)w->value_floats * sizeof(float));
    bool ok = w->values != NULL;
    for (int l = 0; ok && l < lanes; l++) {
        w->grads[l] = cpu_memory((size_t)w->grad_floats * sizeof(float));
        ok = w->grads[l] != NULL;
    }
    if (ok)
        return STATUS_OK;
    return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                      "out of memory for %lld weights and their gradients in %d lanes",
                      (long long)w->value_floats, lanes);
}

status cpu_weights_commit(backend_weights *w, const weight_source *sources, int64_t params,
                          errbuf *err)
{
    if (w->committed)
        return errbuf_set(err, STATUS_BAD_INPUT, "these weights were committed before");
    TRY(check_sources(w, sources, params, err));
    w->committed = true; /* a failed commit leaves weights that can only be destroyed */
    w->params = params;
    place_kernels(w);
    TRY(allocate_values(w, err));
    uint32_t *entries = make_entries(w, sources);
    if (!entries)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building weight tables");
    status st = expand_build(w, sources, entries, err);
    if (st == STATUS_OK)
        st = reduce_plan_build(w, sources, entries, err);
    free(entries);
    return st;
}

size_t cpu_weights_bytes(const backend_weights *w)
{
    const int lanes = w->cpu->base.options.lanes;
    size_t floats = (size_t)w->value_floats + (size_t)w->grad_floats * (size_t)lanes;
    return floats * sizeof(float) + weight_table_bytes(&w->direct) +
           (size_t)w->sorted_chunks * sizeof *w->sorted + reduce_plan_bytes(&w->reduce, lanes);
}

/* ---- reading ---- */

static void read_plain(const kernel_shape *s, const weight_layout *form, const float *from,
                       float *oihw)
{
    for (int o = 0; o < s->out; o++) {
        for (int i = 0; i < s->in; i++) {
            for (int h = 0; h < s->kh; h++) {
                for (int x = 0; x < s->kw; x++)
                    *oihw++ = from[weights_offset(form, o, i, h, x)];
            }
        }
    }
}

static status check_read(backend_weights *w, int kernel)
{
    if (w->committed && kernel >= 0 && kernel < w->kernels)
        return STATUS_OK;
    return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "kernel %d of %d cannot be read%s", kernel,
                    w->kernels, w->committed ? "" : " before commit");
}

status cpu_weights_read(backend_weights *w, int kernel, float *oihw)
{
    TRY(check_read(w, kernel));
    const weights_kernel *k = &w->kernel[kernel];
    int pass = k->layout[ONEDNN_FORWARD].elements ? ONEDNN_FORWARD : ONEDNN_BACKWARD_DATA;
    read_plain(&k->shape, &k->layout[pass], w->values + k->at[pass], oihw);
    return STATUS_OK;
}

status cpu_weights_read_grad(backend_weights *w, int lane, int kernel, float *oihw)
{
    TRY(check_read(w, kernel));
    const weights_kernel *k = &w->kernel[kernel];
    const int pass = ONEDNN_BACKWARD_WEIGHTS;
    if (lane < 0 || lane >= w->cpu->base.options.lanes)
        return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "there is no lane %d", lane);
    if (k->layout[pass].elements)
        read_plain(&k->shape, &k->layout[pass], w->grads[lane] + k->at[pass], oihw);
    else
        memset(oihw, 0, (size_t)kernel_elements(k->shape) * sizeof(float));
    return STATUS_OK;
}
