/*
 * The tables of expand: a word for every weight in memory, in the order of memory, and what each
 * chunk of them has in common. Made on the host at commit.
 */
#include "kernels/cuda/weights.h"

#include <stdlib.h>
#include <string.h>

static status out_of_memory(errbuf *err)
{
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory (host): tables of the weights");
}

/* From O,I,H,W to KRSC; padding is zero weights. */
static void fill_table(const backend_weights *w, const uint32_t *entries, uint32_t *table)
{
    for (int n = 0; n < w->kernels; n++) {
        const cuda_kernel *k = &w->kernel[n];
        const int64_t spots = (int64_t)k->shape.kh * k->shape.kw, in = k->shape.in;
        const uint32_t *from = entries + k->first_entry;
        uint32_t *to = table + k->at;
#pragma omp parallel for num_threads(w->be->base.options.threads) schedule(static)
        for (int64_t row = 0; row < k->shape.out * spots; row++) {
            const uint32_t *entry = from + row / spots * in * spots + row % spots;
            for (int64_t i = 0; i < k->channels; i++)
                to[row * k->channels + i] = i < in ? entry[i * spots] : RING_ZERO_WEIGHT;
        }
        for (int64_t i = k->elements; i < round_up(k->elements, RING_CHUNK); i++)
            to[i] = RING_ZERO_WEIGHT;
    }
}

static status upload_table(backend_weights *w, const uint32_t *entries, errbuf *err)
{
    const size_t bytes = (size_t)w->value_elements * sizeof(uint32_t);
    uint32_t *table = malloc(bytes + 1);
    if (!table)
        return out_of_memory(err);
    fill_table(w, entries, table);
    status st = ring_upload(w, table, bytes, &w->table, err);
    free(table);
    return st;
}

/* ---- the bf16 shadow ---- */

/* The shadow of a ring, or NULL where expand reads it as it is. */
static const ring_shadow *find_shadow(const backend_weights *w, const weight_source *s)
{
    for (int i = 0; s->map && i < w->shadow_count; i++)
        if (w->shadows[i].source == s->source && w->shadows[i].elements == s->map->n)
            return &w->shadows[i];
    return NULL;
}

static status make_shadows(backend_weights *w, const weight_source *sources, errbuf *err)
{
    int64_t elements = 0;
    w->shadows = calloc((size_t)w->kernels + 1, sizeof *w->shadows);
    if (!w->shadows)
        return out_of_memory(err);
    for (int k = 0; cuda_is_bf16(w->be) && k < w->kernels; k++) {
        const weight_source *s = &sources[k];
        if (!s->map || (int64_t)s->map->n * 4 <= RING_SHADOW_BYTES || find_shadow(w, s))
            continue;
        w->shadows[w->shadow_count++] = (ring_shadow){s->source, s->map->n, elements};
        elements += s->map->n;
    }
    return ring_upload(w, NULL, (size_t)elements * 2, &w->shadow, err);
}

/* ---- chunks ---- */

static bool all_equal(const float *scale, int count)
{
    for (int o = 1; o < count; o++)
        if (scale[o] != scale[0])
            return false;
    return true;
}

/* Chunks of kernel `k`; *scales counts the scales so far, which are put at `to`. */
static void add_chunks(const backend_weights *w, const weight_source *s, const cuda_kernel *k,
                       float *to, int64_t *scales, expand_chunk *chunk)
{
    const ring_shadow *shadow = find_shadow(w, s);
    expand_chunk base = {.source = shadow ? shadow->at : s->source,
                         .scale = s->scale ? s->scale[0] : 1.0f,
                         .scales = -1,
                         .row = (uint32_t)(k->elements / k->shape.out),
                         .shadow = shadow != NULL};
    if (s->scale && !all_equal(s->scale, k->shape.out)) {
        memcpy(to + *scales, s->scale, (size_t)k->shape.out * sizeof *to);
        base.scales = (int32_t)*scales;
        *scales += k->shape.out;
    }
    for (int64_t first = 0; first < k->elements; first += RING_CHUNK) {
        base.first = (uint32_t)first;
        chunk[(k->at + first) / RING_CHUNK] = base;
    }
}

static status make_chunks(backend_weights *w, const weight_source *sources, errbuf *err)
{
    int64_t outs = 0, scales = 0;
    for (int k = 0; k < w->kernels; k++)
        outs += w->kernel[k].shape.out;
    w->chunks = w->value_elements / RING_CHUNK;
    expand_chunk *chunk = calloc((size_t)w->chunks + 1, sizeof *chunk);
    float *scale = malloc(((size_t)outs + 1) * sizeof *scale);
    status st = STATUS_OK;
    if (!chunk || !scale) {
        st = out_of_memory(err);
        goto done;
    }
    for (int k = 0; k < w->kernels; k++)
        add_chunks(w, &sources[k], &w->kernel[k], scale, &scales, chunk);
    TRY_GOTO(ring_upload(w, chunk, (size_t)w->chunks * sizeof *chunk, &w->chunk, err), st, done);
    st = ring_upload(w, scale, (size_t)scales * sizeof *scale, &w->scales, err);
done:
    free(scale);
    free(chunk);
    return st;
}

status ring_table_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                        errbuf *err)
{
    TRY(make_shadows(w, sources, err));
    TRY(make_chunks(w, sources, err));
    return upload_table(w, entries, err);
}
