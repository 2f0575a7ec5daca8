/*
 * Tables over physical weights: a word for each, in the order of a layout, and the scales of the
 * output channels, cut into chunks in which the scales repeat.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/weights.h"

#define SCALE_UNIT 16 /* periods are multiples of the widest vector */

status weight_table_init(weight_table *t, int64_t entries, errbuf *err)
{
    *t = (weight_table){.room = entries};
    t->entry = cpu_memory((size_t)entries * sizeof *t->entry);
    if (!t->entry)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: a table of %lld weights",
                          (long long)entries);
    return STATUS_OK;
}

void weight_table_fini(weight_table *t)
{
    free(t->entry);
    free(t->scales);
    free(t->chunk);
    *t = (weight_table){0};
}

size_t weight_table_bytes(const weight_table *t)
{
    return (size_t)t->room * sizeof *t->entry + (size_t)t->scale_room * sizeof *t->scales +
           (size_t)t->chunk_room * sizeof *t->chunk;
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

bool weight_table_pairs(const weight_layout *a, const weight_layout *b, int block)
{
    if (a->blocks != 2 || b->blocks != 2 || a->elements != b->elements)
        return false;
    weight_layout turned = *b;
    turned.block_dim[0] = b->block_dim[1];
    turned.block_dim[1] = b->block_dim[0];
    return a->block[0] == block && a->block[1] == block && a->block_dim[0] != a->block_dim[1] &&
           weight_layout_equal(a, &turned) && channels_outermost(a);
}

/* ---- chunks ---- */

static float *take_scales(weight_table *t, int64_t count)
{
    if (t->scale_count + count > t->scale_room) {
        int64_t room = max_int64(2 * t->scale_room, t->scale_count + count);
        float *grown = realloc(t->scales, (size_t)room * sizeof *grown);
        if (!grown)
            return NULL;
        t->scales = grown;
        t->scale_room = room;
    }
    t->scale_count += count;
    return t->scales + t->scale_count - count;
}

static weight_chunk *take_chunk(weight_table *t)
{
    if (t->chunks == t->chunk_room) {
        int room = t->chunk_room ? 2 * t->chunk_room : 64;
        weight_chunk *grown = realloc(t->chunk, (size_t)room * sizeof *grown);
        if (!grown)
            return NULL;
        t->chunk = grown;
        t->chunk_room = room;
    }
    return &t->chunk[t->chunks++];
}

static bool has_holes(const uint32_t *entry, int64_t count)
{
    bool holes = false;
    for (int64_t k = 0; k < count; k++)
        holes |= (entry[k] & ~RING_SIGN_BIT) == RING_ZERO_WEIGHT;
    return holes;
}

static float scale_of(const kernel_shape *s, const float *scale, int64_t channel)
{
    return !scale ? 1.0f : channel < s->out ? scale[channel] : 0.0f;
}

/* The usual case: one chunk for each outer (group, out), scales repeating with the inner tile. */
static bool add_chunks(weight_table *t, const kernel_shape *s, const weight_layout *form,
                       const float *scale, weight_chunk base)
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
        float *scales = take_scales(t, base.period);
        weight_chunk *chunk = scales ? take_chunk(t) : NULL;
        if (!chunk)
            return false;
        *chunk = base;
        chunk->table += at;
        chunk->at += at;
        chunk->turned += base.turned < 0 ? 0 : at;
        chunk->scale = scales - t->scales;
        chunk->holes = has_holes(t->entry + chunk->table, chunk->length);
        for (int p = 0; p < base.period; p++)
            scales[p] = scale_of(s, scale, channel_of(form, group, out, p % tile));
    }
    return true;
}

/* Any other layout: one chunk with a scale for every weight. */
static bool add_whole(weight_table *t, const kernel_shape *s, const weight_layout *form,
                      const float *scale, weight_chunk base)
{
    int64_t room = round_up(form->elements, SCALE_UNIT);
    float *scales = take_scales(t, room);
    weight_chunk *chunk = scales ? take_chunk(t) : NULL;
    if (!chunk || room > INT32_MAX)
        return false;
    *chunk = base;
    chunk->length = form->elements;
    chunk->period = (int)room;
    chunk->scale = scales - t->scales;
    chunk->holes = has_holes(t->entry + chunk->table, chunk->length);
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

/* ---- entries ---- */

/* What (h, w) adds to an offset, for all of them; NULL when out of memory. Caller frees. */
static int64_t *spatial_offsets(const weight_layout *form)
{
    const int kh = form->dim[DIM_KH], kw = form->dim[DIM_KW];
    int64_t *offset = malloc(sizeof *offset * (size_t)kh * (size_t)kw);
    for (int k = 0; offset && k < kh * kw; k++)
        offset[k] =
            weight_layout_part(form, DIM_KH, k / kw) + weight_layout_part(form, DIM_KW, k % kw);
    return offset;
}

/* Scatters a kernel's entries into physical order; what is padding becomes a zero weight. */
static bool fill_entries(const kernel_shape *s, const weight_layout *form, const uint32_t *entries,
                         int threads, uint32_t *to)
{
    const int unit = 16; /* channels a thread: whole cache lines of blocked layouts */
    const int spots = s->kh * s->kw;
    int64_t *spatial = spatial_offsets(form);
    if (!spatial)
        return false;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < form->elements; k++)
            to[k] = RING_ZERO_WEIGHT;
#pragma omp for schedule(static)
        for (int first = 0; first < s->out; first += unit) {
            for (int o = first; o < s->out && o < first + unit; o++) {
                const uint32_t *entry = entries + (int64_t)o * s->in * spots;
                int64_t at_out = weights_offset(form, o, 0, 0, 0);
                for (int i = 0; i < s->in; i++) {
                    int64_t at = at_out + weight_layout_part(form, DIM_IN, i);
                    for (int x = 0; x < spots; x++)
                        to[at + spatial[x]] = *entry++;
                }
            }
        }
    }
    free(spatial);
    return true;
}

status weight_table_add(weight_table *t, const kernel_shape *s, const weight_layout *form,
                        int64_t at, int64_t turned, const uint32_t *entries, const float *scale,
                        int threads, errbuf *err)
{
    weight_chunk base = {.table = t->entries, .at = at, .turned = turned};
    ASSERT(t->entries + form->elements <= t->room);
    if (!fill_entries(s, form, entries, threads, t->entry + t->entries) ||
        !(channels_outermost(form) ? add_chunks : add_whole)(t, s, form, scale, base))
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building weight tables");
    t->entries += round_up(form->elements, SCALE_UNIT);
    return STATUS_OK;
}
