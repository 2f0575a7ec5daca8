/*
 * Generating weights straight into the layouts of the convolutions: each weight is looked up in the
 * parameter vector through a table in physical order. Where the layout of backward data is the
 * forward one with its inner tiles transposed, both come from one table: each tile is gathered once
 * and written twice.
 */
#include "kernels/cpu/weights.h"

/* Weights beyond this are written past the caches. */
#define STREAM_FLOATS (CPU_STREAM_BYTES / (int64_t)sizeof(float))

static bool paired(const backend_weights *w, const weights_kernel *k)
{
    return weight_table_pairs(&k->layout[ONEDNN_FORWARD], &k->layout[ONEDNN_BACKWARD_DATA],
                              w->cpu->simd->block);
}

/* Backward data needs no table where it uses the forward weights, or is made beside them. */
static bool needs_table(const backend_weights *w, const weights_kernel *k, int pass)
{
    return k->layout[pass].elements > 0 &&
           (pass == ONEDNN_FORWARD || (k->at[pass] != k->at[ONEDNN_FORWARD] && !paired(w, k)));
}

status expand_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                    errbuf *err)
{
    int64_t room = 0;
    for (int i = 0; i < 2 * w->kernels; i++) {
        const weights_kernel *k = &w->kernel[i / 2];
        if (needs_table(w, k, i % 2))
            room += round_up(k->layout[i % 2].elements, CPU_ALIGN);
    }
    TRY(weight_table_init(&w->expand, room, err));
    for (int i = 0; i < 2 * w->kernels; i++) {
        const weights_kernel *k = &w->kernel[i / 2];
        const int pass = i % 2;
        int64_t turned = pass == ONEDNN_FORWARD && paired(w, k) ? k->at[ONEDNN_BACKWARD_DATA] : -1;
        if (needs_table(w, k, pass))
            TRY(weight_table_add(&w->expand, &k->shape, &k->layout[pass], k->at[pass], turned,
                                 entries + k->first_entry, sources[i / 2].scale,
                                 w->cpu->base.options.threads, err));
    }
    return STATUS_OK;
}

status cpu_weights_expand(backend_weights *w, const float *params)
{
    const weight_table *t = &w->expand;
    const simd_kernels *simd = w->cpu->simd;
    const bool stream = w->value_floats >= STREAM_FLOATS;
    if (!w->committed)
        return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "weights cannot be expanded before commit");
#pragma omp parallel for num_threads(cpu_threads(w->cpu)) schedule(dynamic, 1)
    for (int n = 0; n < t->chunks; n++) {
        const weight_chunk *c = &t->chunk[n];
        const expand_args args = {.table = t->entry + c->table,
                                  .params = params,
                                  .scale = t->scales + c->scale,
                                  .period = c->period,
                                  .length = c->length,
                                  .holes = c->holes,
                                  .stream = stream,
                                  .to = w->values + c->at,
                                  .turned = c->turned < 0 ? NULL : w->values + c->turned};
        simd->expand(&args);
    }
    return STATUS_OK;
}
