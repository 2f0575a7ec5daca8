/*
 * Generating weights straight into the layouts of the convolutions.
 *
 * At commit every layout gets a table of entries in physical order, cut into chunks in which the
 * scales of the output channels repeat. Where the layout of backward data is the forward one with
 * its inner tiles transposed, both are made from one table: each tile is gathered once and written
 * twice.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/weights.h"

#define SCALE_UNIT 16 /* periods are multiples of the widest vector */

/* Weights beyond this are written past the caches. */
#define STREAM_FLOATS (CPU_STREAM_BYTES / (int64_t)sizeof(float))

void expand_plan_fini(expand_plan *plan)
{
    free(plan->table);
    free(plan->scales);
    free(plan->chunk);
    *plan = (expand_plan){0};
}

/* ---- layouts ---- */

/* Product of the inner blocks of dimension d (all of them: d < 0). */
static int64_t inner(const weight_layout *form, int d)
{
    int64_t product = 1;
    for (int b = 0; b < form->blocks; b++) {
        if (d < 0 || form->block_dim[b] == d)
            product *= form->block[b];
    }
    return product;
}

static int64_t outer(const weight_layout *form, int d)
{
    return form->dim[d] / inner(form, d);
}

/* Output channel of a physical position within its inner tile, given the tile's own indices. */
static int64_t channel_of(const weight_layout *form, int64_t group, int64_t out, int64_t at)
{
    int64_t index[2] = {0, 0}, unit[2] = {1, 1};
    for (int b = form->blocks - 1; b >= 0; b--) {
        int d = form->block_dim[b];
        if (d <= DIM_OUT) {
            index[d] += at % form->block[b] * unit[d];
            unit[d] *= form->block[b];
        }
        at /= form->block[b];
    }
    return (group * unit[0] + index[0]) * form->dim[DIM_OUT] + out * unit[1] + index[1];
}

/* True where groups and output channels are outermost: then a (group, out) pair of outer indices is
 * one contiguous stretch. */
static bool channels_outermost(const weight_layout *form)
{
    int64_t length = form->elements / (outer(form, DIM_GROUP) * outer(form, DIM_OUT));
    for (int d = DIM_IN; d <= DIM_KW; d++) {
        if (outer(form, d) > 1 && form->stride[d] * outer(form, d) > length)
            return false;
    }
    return (outer(form, DIM_OUT) == 1 || form->stride[DIM_OUT] % length == 0) &&
           (outer(form, DIM_GROUP) == 1 || form->stride[DIM_GROUP] % length == 0);
}

/* b is a with its two inner blocks, block x block, exchanged, and tiles are scaled alike. */
static bool is_transposed(const weight_layout *a, const weight_layout *b, int block)
{
    if (a->blocks != 2 || b->blocks != 2 || a->elements != b->elements)
        return false;
    weight_layout turned = *b;
    turned.block_dim[0] = b->block_dim[1];
    turned.block_dim[1] = b->block_dim[0];
    return a->block[0] == block && a->block[1] == block && a->block_dim[0] != a->block_dim[1] &&
           weight_layout_equal(a, &turned) && channels_outermost(a);
}

/* ---- building ---- */

static float *take_scales(expand_plan *plan, int64_t count)
{
    if (plan->scale_count + count > plan->scale_room) {
        int64_t room = max_int64(2 * plan->scale_room, plan->scale_count + count);
        float *grown = realloc(plan->scales, (size_t)room * sizeof *grown);
        if (!grown)
            return NULL;
        plan->scales = grown;
        plan->scale_room = room;
    }
    plan->scale_count += count;
    return plan->scales + plan->scale_count - count;
}

static expand_chunk *take_chunk(expand_plan *plan)
{
    if (plan->chunks == plan->chunk_room) {
        int room = plan->chunk_room ? 2 * plan->chunk_room : 64;
        expand_chunk *grown = realloc(plan->chunk, (size_t)room * sizeof *grown);
        if (!grown)
            return NULL;
        plan->chunk = grown;
        plan->chunk_room = room;
    }
    return &plan->chunk[plan->chunks++];
}

static float scale_of(const kernel_shape *s, const float *scale, int64_t channel)
{
    return !scale ? 1.0f : channel < s->out ? scale[channel] : 0.0f;
}

/* The usual case: one chunk for each outer (group, out), scales repeating with the inner tile. */
static bool add_chunks(expand_plan *plan, const weights_kernel *k, const weight_layout *form,
                       const float *scale, expand_chunk base)
{
    const int64_t outs = outer(form, DIM_OUT), count = outer(form, DIM_GROUP) * outs;
    const int64_t tile = inner(form, -1);
    base.length = form->elements / count;
    base.period = (int)(tile % SCALE_UNIT == 0   ? tile
                        : SCALE_UNIT % tile == 0 ? SCALE_UNIT
                                                 : tile * SCALE_UNIT);
    for (int64_t n = 0; n < count; n++) {
        int64_t group = n / outs, out = n % outs;
        int64_t at = group * form->stride[DIM_GROUP] + out * form->stride[DIM_OUT];
        float *scales = take_scales(plan, base.period);
        expand_chunk *chunk = scales ? take_chunk(plan) : NULL;
        if (!chunk)
            return false;
        *chunk = base;
        chunk->table += at;
        chunk->to += at;
        chunk->turned += base.turned < 0 ? 0 : at;
        chunk->scale = scales - plan->scales;
        chunk->stream =
            base.stream && chunk->to % SCALE_UNIT == 0 && chunk->length % SCALE_UNIT == 0;
        for (int p = 0; p < base.period; p++)
            scales[p] = scale_of(&k->shape, scale, channel_of(form, group, out, p % tile));
    }
    return true;
}

/* Any other layout: one chunk with a scale for every weight. */
static bool add_whole(expand_plan *plan, const weights_kernel *k, const weight_layout *form,
                      const float *scale, expand_chunk base)
{
    const kernel_shape *s = &k->shape;
    int64_t room = round_up(form->elements, SCALE_UNIT);
    float *scales = take_scales(plan, room);
    expand_chunk *chunk = scales ? take_chunk(plan) : NULL;
    if (!chunk || room > INT32_MAX)
        return false;
    *chunk = base;
    chunk->length = form->elements;
    chunk->period = (int)room;
    chunk->scale = scales - plan->scales;
    chunk->stream = false;
    memset(scales, 0, (size_t)room * sizeof *scales);
    for (int o = 0; o < s->out; o++) {
        for (int i = 0; i < s->in; i++) {
            for (int h = 0; h < s->kh; h++) {
                for (int x = 0; x < s->kw; x++)
                    scales[weights_offset(form, o, i, h, x)] = scale_of(s, scale, o);
            }
        }
    }
    return true;
}

/* Scatters a kernel's entries into physical order; what has no weight stays a zero weight. */
static bool fill_table(const backend_weights *w, const weights_kernel *k, const weight_layout *form,
                       const uint32_t *entries, uint32_t *table)
{
    const kernel_shape *s = &k->shape;
    const int unit = 16; /* channels a thread: whole cache lines of blocked layouts */
    const int spots = s->kh * s->kw;
    int64_t *spatial = weights_spatial(form);
    if (!spatial)
        return false;
#pragma omp parallel num_threads(w->cpu->base.options.threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < form->elements; t++)
            table[t] = RING_ZERO_WEIGHT;
#pragma omp for schedule(static)
        for (int first = 0; first < s->out; first += unit) {
            for (int o = first; o < s->out && o < first + unit; o++) {
                const uint32_t *entry = entries + (int64_t)o * s->in * spots;
                int64_t at_out = weights_offset(form, o, 0, 0, 0);
                for (int i = 0; i < s->in; i++) {
                    int64_t at = at_out + weight_layout_part(form, DIM_IN, i);
                    for (int x = 0; x < spots; x++)
                        table[at + spatial[x]] = *entry++;
                }
            }
        }
    }
    free(spatial);
    return true;
}

/* Tables that a kernel needs: none where backward data uses the forward weights as they are, or
 * where they are made together. */
static bool needs_table(const backend_weights *w, const weights_kernel *k, int pass)
{
    const weight_layout *forward = &k->layout[ONEDNN_FORWARD], *own = &k->layout[pass];
    return own->elements > 0 &&
           (pass == ONEDNN_FORWARD || (!weight_layout_equal(forward, own) &&
                                       !is_transposed(forward, own, w->cpu->simd->block)));
}

static status build_kernel(backend_weights *w, const weights_kernel *k, const weight_source *source,
                           const uint32_t *entries, int64_t *table_at, errbuf *err)
{
    expand_plan *plan = &w->expand;
    const weight_layout *data = &k->layout[ONEDNN_BACKWARD_DATA];
    for (int pass = ONEDNN_FORWARD; pass <= ONEDNN_BACKWARD_DATA; pass++) {
        const weight_layout *form = &k->layout[pass];
        if (!needs_table(w, k, pass))
            continue;
        bool whole = channels_outermost(form);
        bool paired = pass == ONEDNN_FORWARD && is_transposed(form, data, w->cpu->simd->block);
        expand_chunk base = {.table = *table_at,
                             .to = k->at[pass],
                             .turned = paired ? k->at[ONEDNN_BACKWARD_DATA] : -1,
                             .stream = w->value_floats >= STREAM_FLOATS};
        if (!fill_table(w, k, form, entries + k->first_entry, plan->table + *table_at) ||
            !(whole ? add_chunks : add_whole)(plan, k, form, source->scale, base))
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building weight tables");
        *table_at += round_up(form->elements, SCALE_UNIT);
    }
    return STATUS_OK;
}

status expand_plan_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                         errbuf *err)
{
    expand_plan *plan = &w->expand;
    int64_t at = 0;
    for (int k = 0; k < w->kernels; k++) {
        for (int pass = ONEDNN_FORWARD; pass <= ONEDNN_BACKWARD_DATA; pass++) {
            if (needs_table(w, &w->kernel[k], pass))
                plan->entries += round_up(w->kernel[k].layout[pass].elements, SCALE_UNIT);
        }
    }
    plan->table = cpu_memory((size_t)plan->entries * sizeof *plan->table);
    if (!plan->table)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: a table of %lld weights",
                          (long long)plan->entries);
    for (int k = 0; k < w->kernels; k++)
        TRY(build_kernel(w, &w->kernel[k], &sources[k], entries, &at, err));
    return STATUS_OK;
}

/* ---- running ---- */

status cpu_weights_expand(backend_weights *w, const float *params)
{
    const expand_plan *plan = &w->expand;
    const simd_kernels *simd = w->cpu->simd;
    if (!w->committed)
        return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "weights cannot be expanded before commit");
#pragma omp parallel for num_threads(cpu_threads(w->cpu)) schedule(dynamic, 1)
    for (int c = 0; c < plan->chunks; c++) {
        const expand_chunk *chunk = &plan->chunk[c];
        const uint32_t *table = plan->table + chunk->table;
        const float *scale = plan->scales + chunk->scale;
        float *to = w->values + chunk->to;
        if (chunk->turned >= 0)
            simd->expand_pair(table, params, scale, chunk->length, chunk->stream, to,
                              w->values + chunk->turned);
        else
            simd->expand(table, params, scale, chunk->period, chunk->length, chunk->stream, to);
    }
    return STATUS_OK;
}
