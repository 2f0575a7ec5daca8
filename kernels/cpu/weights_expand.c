/*
 * Generating weights straight into the layouts of the convolutions, through tables in physical
 * order. Where the layout of backward data is the forward one with its inner tiles transposed, both
 * come from one table: each tile is gathered once and written twice.
 *
 * Weights of a small ring are looked up one by one. Those of a ring that outgrows the nearest
 * caches go through its sorted uses (weights_reduce.c), in the other direction: the elements of one
 * span after the other are spread over their uses, and those are then read in streams. That is more
 * work, but none of it waits for a far cache at random. The weights are the same.
 */
#include "kernels/cpu/weights.h"

#define STREAM_FLOATS (CPU_STREAM_BYTES / (int64_t)sizeof(float)) /* weights: past the caches */
#define NEAR_ELEMENTS (1 << 18) /* of a ring that is looked up: 1 MB */

static bool paired(const backend_weights *w, const weights_kernel *k)
{
    return weight_table_pairs(&k->layout[ONEDNN_FORWARD], &k->layout[ONEDNN_BACKWARD_DATA],
                              w->cpu->simd->block);
}

bool expand_is_sorted(const backend_weights *w, const weight_source *source, int k)
{
    const weight_layout *form = w->kernel[k].layout;
    return source->map && source->map->n > NEAR_ELEMENTS &&
           weight_layout_equal(&form[ONEDNN_FORWARD], &form[ONEDNN_BACKWARD_WEIGHTS]);
}

int64_t expand_turned(const backend_weights *w, const weights_kernel *k)
{
    return paired(w, k) ? k->at[ONEDNN_BACKWARD_DATA] : -1;
}

/* Whether a pass of kernel k has a table of its own: not backward data where it uses the forward
 * weights or is made beside them, and not what is sorted. */
static bool needs_table(const backend_weights *w, const weight_source *source, int k, int pass)
{
    const weights_kernel *kernel = &w->kernel[k];
    if (kernel->layout[pass].elements == 0)
        return false;
    if (pass == ONEDNN_FORWARD)
        return !expand_is_sorted(w, source, k);
    return kernel->at[pass] != kernel->at[ONEDNN_FORWARD] && !paired(w, kernel);
}

status expand_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                    errbuf *err)
{
    int64_t room = 0;
    for (int i = 0; i < 2 * w->kernels; i++) {
        if (needs_table(w, &sources[i / 2], i / 2, i % 2))
            room += round_up(w->kernel[i / 2].layout[i % 2].elements, CPU_ALIGN);
    }
    TRY(weight_table_init(&w->direct, room, err));
    for (int i = 0; i < 2 * w->kernels; i++) {
        const weights_kernel *k = &w->kernel[i / 2];
        const int pass = i % 2;
        if (needs_table(w, &sources[i / 2], i / 2, pass))
            TRY(weight_table_add(&w->direct, &k->shape, &k->layout[pass], k->at[pass],
                                 pass == ONEDNN_FORWARD ? expand_turned(w, k) : -1,
                                 entries + k->first_entry, sources[i / 2].scale,
                                 w->cpu->base.options.threads, err));
    }
    return STATUS_OK;
}

static void expand_chunk(const backend_weights *w, const weight_table *t, const weight_chunk *c,
                         const float *params)
{
    const expand_args args = {.table = t->entry + c->table,
                              .params = params,
                              .scale = t->scales + c->scale,
                              .period = c->period,
                              .length = c->length,
                              .holes = c->holes,
                              .stream = w->value_floats >= STREAM_FLOATS,
                              .to = w->values + c->at,
                              .turned = c->turned < 0 ? NULL : w->values + c->turned};
    w->cpu->simd->expand(&args);
}

/* Copies the elements of a span to all their places among the sorted uses. */
static void spread(const reduce_plan *plan, const reduce_unit *u, const float *params,
                   float *sorted)
{
    const uint16_t *local = plan->local + u->first_use;
    const float *span = params + u->source;
    float *use = sorted + u->first_use;
    for (int64_t k = 0; k < u->uses; k++)
        use[k] = span[local[k]];
}

status cpu_weights_expand(backend_weights *w, const float *params)
{
    const reduce_plan *plan = &w->reduce;
    float *sorted = (float *)(void *)w->cpu->lane[0].scratch;
    if (!w->committed)
        return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "weights cannot be expanded before commit");
#pragma omp parallel num_threads(cpu_threads(w->cpu))
    {
#pragma omp for schedule(dynamic, 1) nowait
        for (int n = 0; n < w->direct.chunks; n++)
            expand_chunk(w, &w->direct, &w->direct.chunk[n], params);
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < plan->units; n++) {
            if (plan->unit[n].spread)
                spread(plan, &plan->unit[n], params, sorted);
        }
#pragma omp for schedule(dynamic, 1)
        for (int n = 0; n < w->sorted_chunks; n++)
            expand_chunk(w, &plan->table, &w->sorted[n], sorted);
    }
    return STATUS_OK;
}
