/*
 * The lists of reduce: for every element of a ring, or of a direct kernel, the places in memory of
 * the gradients of its uses, in ascending position. Made on the host at commit.
 *
 * A ring (or direct kernel) is a group; kernels that share a source are one, through whatever maps.
 * Where many elements have few uses each, they are listed in slices; else each by itself, in
 * segments. Which, depends on the numbers of elements and uses alone.
 *
 * A group is walked by all threads side by side: each reads all entries and lists those of its own
 * range of elements, so that the lists do not depend on the threads.
 */
#include "kernels/cuda/weights.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define FEW_USES      8         /* of an element on average: always slices */
#define MODERATE_USES 64        /* slices, where elements alone are enough work for a device */
#define MANY_ELEMENTS (1 << 17) /* 2048 warps */

/* A kernel's place in the order of uses. */
typedef struct ordered_kernel {
    int64_t source, elements; /* of its ring, or of itself */
    int64_t first;            /* position in its map */
    int map;                  /* the first kernel with the same source and map */
    int kernel;
} ordered_kernel;

typedef struct group {
    int64_t source, elements, uses;
    const ordered_kernel *first, *end;
    bool sliced;
} group;

/* What is being built. */
typedef struct lists {
    backend_weights *w;
    const weight_source *sources;
    const uint32_t *entries;
    ordered_kernel *order;
    group *groups;
    int group_count;
    float palette[RING_PALETTE];
    uint16_t *colour; /* of every output channel of every kernel, in order */
    int64_t *at;      /* per element of a group: its uses so far, or where its next word goes */
    uint32_t *word;
    float *scale; /* NULL: the palette holds them all */
    ring_slice *slice;
    ring_sum *segment, *few, *many;
    int64_t words, slices, segments, fews, manys, partials;
} lists;

static status out_of_memory(errbuf *err)
{
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory (host): lists for the reduction");
}

static void lists_fini(lists *b)
{
    free(b->order);
    free(b->groups);
    free(b->colour);
    free(b->at);
    free(b->word);
    free(b->scale);
    free(b->slice);
    free(b->segment);
    free(b->few);
    free(b->many);
}

/* ---- groups ---- */

static int compare_kernels(const void *left, const void *right)
{
    const ordered_kernel *a = left, *b = right;
    if (a->source != b->source)
        return a->source < b->source ? -1 : 1;
    if (a->map != b->map)
        return a->map < b->map ? -1 : 1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a->kernel < b->kernel ? -1 : a->kernel > b->kernel;
}

/* Kernels by source, map after map, by position; sources must not overlap. */
static status order_kernels(lists *b, errbuf *err)
{
    const int count = b->w->kernels;
    for (int k = 0; k < count; k++) {
        const weight_source *s = &b->sources[k];
        int map = 0;
        while (b->sources[map].map != s->map || b->sources[map].source != s->source)
            map++;
        b->order[k] =
            (ordered_kernel){s->source, s->map ? s->map->n : kernel_elements(b->w->kernel[k].shape),
                             s->map ? s->first : 0, map, k};
    }
    qsort(b->order, (size_t)count, sizeof *b->order, compare_kernels);
    for (int i = 1; i < count; i++) {
        const ordered_kernel *l = &b->order[i - 1], *r = &b->order[i];
        const bool same = l->source == r->source && l->elements == r->elements;
        if (!same && r->source < l->source + l->elements)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "kernels %d and %d share some of their parameters, not all",
                              l->kernel, r->kernel);
    }
    return STATUS_OK;
}

static bool in_slices(int64_t elements, int64_t uses)
{
    return uses <= FEW_USES * elements ||
           (elements >= MANY_ELEMENTS && uses <= MODERATE_USES * elements);
}

static void make_groups(lists *b)
{
    const ordered_kernel *end = b->order + b->w->kernels;
    for (const ordered_kernel *k = b->order; k < end;) {
        group *g = &b->groups[b->group_count++];
        *g = (group){.source = k->source, .elements = k->elements, .first = k};
        for (; k < end && k->source == g->source; k++)
            if (b->w->kernel[k->kernel].grad_at >= 0)
                g->uses += kernel_elements(b->w->kernel[k->kernel].shape);
        g->end = k;
        g->sliced = in_slices(g->elements, g->uses);
    }
}

/* ---- scales ---- */

static float scale_of(const lists *b, int kernel, int o)
{
    return b->sources[kernel].scale ? b->sources[kernel].scale[o] : 1.0f;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The scale's number; -1 where the palette is full. By bits: -0, or a NaN, is a scale like others.
 */
static int find_colour(lists *b, float scale, int room)
{
    int c = 0;
    while (c < b->w->words.colours && bits_of(b->palette[c]) != bits_of(scale))
        c++;
    if (c == room)
        return -1;
    if (c == b->w->words.colours)
        b->palette[b->w->words.colours++] = scale;
    return c;
}

/* Numbers the scales of all channels. Where there are too many for the bits that places leave,
 * every word gets a scale of its own. */
static status make_palette(lists *b, errbuf *err)
{
    ring_words *words = &b->w->words;
    int64_t outs = 0;
    for (int k = 0; k < b->w->kernels; k++)
        outs += b->w->kernel[k].shape.out;
    b->colour = calloc((size_t)outs + 1, sizeof *b->colour);
    if (!b->colour)
        return out_of_memory(err);
    while (((int64_t)1 << words->bits) - 1 < b->w->grad_elements)
        words->bits++;
    const int spare = 31 - words->bits, room = spare >= 8 ? RING_PALETTE : 1 << spare;
    uint16_t *colour = b->colour;
    for (int k = 0; k < b->w->kernels; k++)
        for (int o = 0; o < b->w->kernel[k].shape.out; o++) {
            const int c = find_colour(b, scale_of(b, k, o), room);
            if (c < 0) {
                memset(b->colour, 0, (size_t)outs * sizeof *b->colour);
                words->colours = 0;
                return STATUS_OK;
            }
            *colour++ = (uint16_t)c;
        }
    return STATUS_OK;
}

static const uint16_t *colours_of(const lists *b, int kernel)
{
    const uint16_t *colour = b->colour;
    for (int k = 0; k < kernel; k++)
        colour += b->w->kernel[k].shape.out;
    return colour;
}

/* ---- walking the uses of a group ---- */

/* A thread's share of a group, and what happens to an element's place with every use. */
typedef struct share {
    int64_t first, count;
    int64_t stride;
    bool place; /* words are put there; else uses are counted */
} share;

/* One output channel of a kernel: entries in I,H,W order. */
static void walk_channel(lists *b, const share *s, const cuda_kernel *k, const uint32_t *entry,
                         int64_t row, uint32_t colour, float scale)
{
    const int spots = k->shape.kh * k->shape.kw;
    for (int i = 0; i < k->shape.in; i++)
        for (int x = 0; x < spots; x++, entry++) {
            const uint32_t index = *entry & ~RING_SIGN_BIT;
            if (index - (uint64_t)s->first >= (uint64_t)s->count || index == RING_ZERO_WEIGHT)
                continue;
            if (s->place) {
                const int64_t at = b->at[index];
                const uint32_t place = (uint32_t)(row + (int64_t)x * k->channels + i);
                b->word[at] = (*entry & RING_SIGN_BIT) | colour | place;
                if (b->scale)
                    b->scale[at] = scale;
            }
            b->at[index] += s->stride;
        }
}

static void walk_share(lists *b, const group *g, const share *s)
{
    for (const ordered_kernel *o = g->first; o < g->end; o++) {
        const cuda_kernel *k = &b->w->kernel[o->kernel];
        const uint16_t *colour = colours_of(b, o->kernel);
        const int64_t length = kernel_elements(k->shape) / k->shape.out;
        const int64_t memory = k->elements / k->shape.out;
        for (int c = 0; k->grad_at >= 0 && c < k->shape.out; c++)
            walk_channel(b, s, k, b->entries + k->first_entry + c * length, k->grad_at + c * memory,
                         (uint32_t)colour[c] << b->w->words.bits, scale_of(b, o->kernel, c));
    }
}

static void walk(lists *b, const group *g, bool place)
{
#pragma omp parallel num_threads(b->w->be->base.options.threads)
    {
        const int64_t n = g->elements, of = omp_get_num_threads(), t = omp_get_thread_num();
        share s = {.first = n * t / of, .stride = place && g->sliced ? RING_SLICE : 1};
        s.count = n * (t + 1) / of - s.first;
        s.place = place;
        walk_share(b, g, &s);
    }
}

/* ---- cutting ---- */

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* From uses per element to slices; then b->at says where each element's first word goes. */
static void cut_slices(lists *b, const group *g)
{
    b->words = round_up(b->words, RING_SLICE); /* rows are read with aligned loads */
    for (int64_t first = 0; first < g->elements; first += RING_SLICE) {
        const int64_t count = min_int64(RING_SLICE, g->elements - first);
        int64_t rows = 0, *at = b->at + first;
        for (int64_t e = 0; e < count; e++) {
            rows = at[e] > rows ? at[e] : rows;
            at[e] = b->words + e % 32 * 2 + e / 32;
        }
        b->slice[b->slices++] =
            (ring_slice){g->source + first, (uint32_t)b->words, (uint32_t)rows, (uint32_t)count};
        b->words += rows * RING_SLICE;
    }
}

/* Element e's uses into segments of equal length; `alone`: each element has but one, which goes
 * straight to its gradient. */
static void cut_element(lists *b, const group *g, int64_t e, bool alone)
{
    const int64_t uses = b->at[e], to = g->source + e;
    const int64_t parts = uses > 0 ? divide_up(uses, RING_SEGMENT) : 1;
    const int64_t length = divide_up(uses, parts);
    const ring_sum sum = {to, (uint32_t)b->partials, (uint32_t)parts};
    b->at[e] = b->words;
    for (int64_t p = 0; p < parts; p++) {
        const int64_t first = p * length < uses ? p * length : uses;
        const int64_t count = min_int64(length, uses - first);
        b->segment[b->segments++] = (ring_sum){alone ? to : -1 - b->partials++,
                                               (uint32_t)(b->words + first), (uint32_t)count};
    }
    b->words += uses;
    if (alone)
        return;
    if (parts <= RING_FEW_PARTS)
        b->few[b->fews++] = sum;
    else
        b->many[b->manys++] = sum;
}

static void cut_segments(lists *b, const group *g)
{
    int64_t most = 0;
    for (int64_t e = 0; e < g->elements; e++)
        most = b->at[e] > most ? b->at[e] : most;
    for (int64_t e = 0; e < g->elements; e++)
        cut_element(b, g, e, most <= RING_SEGMENT);
}

/* ---- building ---- */

/* Grows a list to hold `count` items. */
static bool reserve(void *list, int64_t count, size_t size)
{
    void *old, *grown;
    memcpy(&old, list, sizeof old);
    grown = realloc(old, (size_t)(count + 1) * size);
    if (!grown)
        return false;
    memcpy(list, &grown, sizeof grown);
    return true;
}

/* Room for what cutting this group adds, before its uses are counted. */
static bool reserve_lists(lists *b, const group *g)
{
    const int64_t n = g->elements;
    if (!reserve(&b->at, n, sizeof *b->at))
        return false;
    memset(b->at, 0, (size_t)n * sizeof *b->at);
    if (g->sliced)
        return reserve(&b->slice, b->slices + divide_up(n, RING_SLICE), sizeof *b->slice);
    return reserve(&b->segment, b->segments + n + g->uses / RING_SEGMENT, sizeof *b->segment) &&
           reserve(&b->few, b->fews + n, sizeof *b->few) &&
           reserve(&b->many, b->manys + n, sizeof *b->many);
}

/* Counts, cuts and lists the uses of one group. */
static status list_group(lists *b, const group *g, bool scaled, errbuf *err)
{
    if (!reserve_lists(b, g))
        return out_of_memory(err);
    const int64_t before = b->words;
    walk(b, g, false);
    (g->sliced ? cut_slices : cut_segments)(b, g);
    if (b->words > UINT32_MAX)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "the lists of %lld uses of %lld elements are too long for the cuda "
                          "backend; use a narrower net or an even map",
                          (long long)g->uses, (long long)g->elements);
    if (!reserve(&b->word, b->words, sizeof *b->word) ||
        (scaled && !reserve(&b->scale, b->words, sizeof *b->scale)))
        return out_of_memory(err);
    for (int64_t i = before; i < b->words; i++)
        b->word[i] = RING_ZERO_WEIGHT;
    if (scaled)
        memset(b->scale + before, 0, (size_t)(b->words - before) * sizeof *b->scale);
    walk(b, g, true);
    return STATUS_OK;
}

static status upload_lists(lists *b, errbuf *err)
{
    backend_weights *w = b->w;
    ring_words *words = &w->words;
    words->count = b->words;
    w->slices = b->slices;
    w->segments = b->segments;
    w->fews = b->fews;
    w->manys = b->manys;
    w->partials = b->partials;
    const struct {
        const void *from;
        int64_t count;
        size_t size;
        void *to;
    } part[] = {
        {b->word, b->words, sizeof *b->word, &words->word},
        {b->scale, b->scale ? b->words : 0, sizeof *b->scale, &words->scale},
        {b->palette, words->colours, sizeof *b->palette, &words->palette},
        {b->slice, b->slices, sizeof *b->slice, &w->slice},
        {b->segment, b->segments, sizeof *b->segment, &w->segment},
        {b->few, b->fews, sizeof *b->few, &w->few},
        {b->many, b->manys, sizeof *b->many, &w->many},
        {NULL, b->partials, sizeof *w->partial, &w->partial},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        TRY(ring_upload(w, part[i].from, (size_t)part[i].count * part[i].size, part[i].to, err));
    return STATUS_OK;
}

status ring_uses_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                       errbuf *err)
{
    lists b = {.w = w, .sources = sources, .entries = entries};
    status st = STATUS_OK;
    b.order = calloc((size_t)w->kernels + 1, sizeof *b.order);
    b.groups = calloc((size_t)w->kernels + 1, sizeof *b.groups);
    if (!b.order || !b.groups) {
        st = out_of_memory(err);
        goto done;
    }
    TRY_GOTO(order_kernels(&b, err), st, done);
    TRY_GOTO(make_palette(&b, err), st, done);
    make_groups(&b);
    for (int g = 0; g < b.group_count; g++)
        TRY_GOTO(list_group(&b, &b.groups[g], w->words.colours == 0, err), st, done);
    st = upload_lists(&b, err);
done:
    lists_fini(&b);
    return st;
}
