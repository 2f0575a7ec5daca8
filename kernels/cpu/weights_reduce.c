/*
 * Gathering weight gradients into ring elements.
 *
 * grad[e] is a sum over the uses of element e in ascending position. The uses of a ring (or of a
 * direct kernel) are sorted at commit into units: a span of elements small enough for the nearest
 * caches, times a segment of the positions. A unit is summed by one thread into its own span, so
 * nothing is atomic and the sums are those of the definition. Where elements have many uses, or
 * spans are few, positions are cut into several segments whose vectors are added in a fixed binary
 * tree. How a ring is cut depends on M and N alone.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/weights.h"

#define SPAN_BITS     15
#define SPAN_ELEMENTS (1 << SPAN_BITS) /* what fits beside a sign in 16 bits */
#define SEGMENT_USES  256              /* of an element within a segment, about */
#define WANTED_UNITS  16               /* so that several threads have work */
#define SMALL_SEGMENT 16384            /* uses below which no segment is cut for threads' sake */
#define TREE_COLUMNS  2048             /* elements a thread adds over all segments at a time */

void reduce_plan_fini(reduce_plan *plan, int lanes)
{
    for (int l = 0; plan->segments && l < lanes; l++)
        free(plan->segments[l]);
    free(plan->segments);
    free(plan->from);
    free(plan->local);
    free(plan->run);
    free(plan->unit);
    free(plan->group);
    *plan = (reduce_plan){0};
}

size_t reduce_plan_bytes(const reduce_plan *plan, int lanes)
{
    return (size_t)plan->uses * (sizeof *plan->from + sizeof *plan->local) +
           (size_t)plan->runs * sizeof *plan->run + (size_t)plan->units * sizeof *plan->unit +
           (size_t)plan->groups * sizeof *plan->group +
           (size_t)plan->segment_floats * sizeof(float) * (size_t)lanes;
}

/* ---- building ---- */

/* A kernel's place in the order of uses. */
typedef struct ordered_kernel {
    int64_t source, elements; /* of its ring, or of itself */
    int64_t first;            /* position in the ring */
    int kernel;
} ordered_kernel;

static int compare_kernels(const void *left, const void *right)
{
    const ordered_kernel *a = left, *b = right;
    if (a->source != b->source)
        return a->source < b->source ? -1 : 1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a->kernel < b->kernel ? -1 : a->kernel > b->kernel;
}

/* Kernels by ring and position; rings and direct kernels must not overlap. Caller frees. */
static status order_kernels(const backend_weights *w, const weight_source *sources,
                            ordered_kernel **ret, errbuf *err)
{
    ordered_kernel *order = calloc((size_t)w->kernels + 1, sizeof *order);
    if (!order)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
    for (int k = 0; k < w->kernels; k++) {
        const weight_source *s = &sources[k];
        order[k] =
            (ordered_kernel){s->source, s->map ? s->map->n : kernel_elements(w->kernel[k].shape),
                             s->map ? s->first : 0, k};
    }
    qsort(order, (size_t)w->kernels, sizeof *order, compare_kernels);
    for (int i = 1; i < w->kernels; i++) {
        const ordered_kernel *a = &order[i - 1], *b = &order[i];
        bool same = a->source == b->source && a->elements == b->elements;
        if (!same && b->source < a->source + a->elements) {
            status st = errbuf_set(err, STATUS_BAD_INPUT,
                                   "kernels %d and %d share some of their parameters, not all",
                                   a->kernel, b->kernel);
            free(order);
            return st;
        }
    }
    *ret = order;
    return STATUS_OK;
}

static bool has_gradient(const backend_weights *w, int kernel)
{
    return w->kernel[kernel].layout[ONEDNN_BACKWARD_WEIGHTS].elements > 0;
}

/* How a ring of `n` elements with `uses` uses is cut. */
static void cut_group(reduce_group *g)
{
    g->partitions = (g->elements + SPAN_ELEMENTS - 1) / SPAN_ELEMENTS;
    int64_t for_sums = (g->uses + SEGMENT_USES * g->elements - 1) / (SEGMENT_USES * g->elements);
    int64_t for_threads = (WANTED_UNITS + g->partitions - 1) / g->partitions;
    for_threads = min_int64(for_threads, (g->uses + SMALL_SEGMENT - 1) / SMALL_SEGMENT);
    g->segments = max_int64(1, max_int64(for_sums, for_threads));
    g->segment = max_int64(1, (g->uses + g->segments - 1) / g->segments);
}

static status make_groups(backend_weights *w, const ordered_kernel *order, errbuf *err)
{
    reduce_plan *plan = &w->reduce;
    plan->group = calloc((size_t)w->kernels + 1, sizeof *plan->group);
    if (!plan->group)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
    for (int i = 0; i < w->kernels; i++) {
        const ordered_kernel *o = &order[i];
        if (i == 0 || order[i - 1].source != o->source)
            plan->group[plan->groups++] =
                (reduce_group){.source = o->source, .elements = o->elements};
        if (has_gradient(w, o->kernel))
            plan->group[plan->groups - 1].uses += kernel_elements(w->kernel[o->kernel].shape);
    }
    for (int i = 0; i < plan->groups; i++) {
        reduce_group *g = &plan->group[i];
        cut_group(g);
        g->first_unit = plan->units;
        g->at = plan->segment_floats;
        plan->units += g->partitions * g->segments;
        if (g->segments > 1)
            plan->segment_floats += round_up(g->elements * g->segments, 16);
    }
    return STATUS_OK;
}

static status make_units(backend_weights *w, errbuf *err)
{
    reduce_plan *plan = &w->reduce;
    plan->unit = calloc((size_t)plan->units + 1, sizeof *plan->unit);
    if (!plan->unit)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
    for (int i = 0; i < plan->groups; i++) {
        const reduce_group *g = &plan->group[i];
        for (int64_t n = 0; n < g->partitions * g->segments; n++) {
            reduce_unit *u = &plan->unit[g->first_unit + n];
            int64_t first = n / g->segments * SPAN_ELEMENTS, segment = n % g->segments;
            u->elements = (int)min_int64(SPAN_ELEMENTS, g->elements - first);
            u->segmented = g->segments > 1;
            u->to = first + (u->segmented ? g->at + segment * g->elements : g->source);
        }
    }
    return STATUS_OK;
}

/* Where the lists of each unit have got to while they are counted or written. */
typedef struct list_cursor {
    int64_t uses, runs;
    float scale;
} list_cursor;

/* A walk over all uses in order of position: the first counts, the second writes. */
typedef struct walk {
    reduce_plan *plan;
    const reduce_group *group;
    list_cursor *cursor;
    int64_t use; /* within the group */
    bool write;
} walk;

/* Hands use `entry`, which reads float `from` of the gradients, to its unit. */
static inline void take_use(walk *k, int64_t segment, uint32_t entry, float scale, int64_t from)
{
    const reduce_group *g = k->group;
    uint32_t element = (entry & ~RING_SIGN_BIT) - (uint32_t)g->source;
    list_cursor *c = &k->cursor[g->first_unit + (element >> SPAN_BITS) * g->segments + segment];
    bool new_run = !(c->scale == scale);
    c->scale = scale;
    c->runs += new_run;
    if (k->write) {
        reduce_run *run = &k->plan->run[c->runs - 1];
        if (new_run)
            *run = (reduce_run){scale, 0};
        run->count++;
        k->plan->from[c->uses] = (uint32_t)from;
        k->plan->local[c->uses] = (uint16_t)((element & (SPAN_ELEMENTS - 1)) |
                                             (entry & RING_SIGN_BIT ? SPAN_ELEMENTS : 0));
    }
    c->uses++;
}

static status walk_kernel(walk *k, const weights_kernel *kernel, const float *scales,
                          const uint32_t *entry, errbuf *err)
{
    const weight_layout *form = &kernel->layout[ONEDNN_BACKWARD_WEIGHTS];
    const kernel_shape *s = &kernel->shape;
    const int spots = s->kh * s->kw;
    int64_t segment = k->use / k->group->segment, end = (segment + 1) * k->group->segment;
    int64_t *spatial = weights_spatial(form);
    if (!spatial)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
    for (int o = 0; o < s->out; o++) {
        float scale = scales ? scales[o] : 1.0f;
        int64_t at_out = kernel->at[ONEDNN_BACKWARD_WEIGHTS] + weights_offset(form, o, 0, 0, 0);
        for (int i = 0; i < s->in; i++) {
            int64_t at = at_out + weight_layout_part(form, DIM_IN, i);
            for (int x = 0; x < spots; x++, entry++, k->use++) {
                if (k->use == end) {
                    segment++;
                    end += k->group->segment;
                }
                if ((*entry & ~RING_SIGN_BIT) != RING_ZERO_WEIGHT)
                    take_use(k, segment, *entry, scale, at + spatial[x]);
            }
        }
    }
    free(spatial);
    return STATUS_OK;
}

static status walk_uses(backend_weights *w, const ordered_kernel *order,
                        const weight_source *sources, const uint32_t *entries, list_cursor *cursor,
                        bool write, errbuf *err)
{
    walk k = {.plan = &w->reduce, .group = w->reduce.group, .cursor = cursor, .write = write};
    for (int n = 0; n < w->kernels; n++) {
        const weights_kernel *kernel = &w->kernel[order[n].kernel];
        if (n > 0 && order[n - 1].source != order[n].source) {
            k.group++;
            k.use = 0;
        }
        if (has_gradient(w, order[n].kernel))
            TRY(walk_kernel(&k, kernel, sources[order[n].kernel].scale,
                            entries + kernel->first_entry, err));
    }
    return STATUS_OK;
}

/* Turns counts into places, and sets the cursors to them. */
static void place_lists(reduce_plan *plan, list_cursor *cursor)
{
    for (int64_t n = 0; n < plan->units; n++) {
        reduce_unit *u = &plan->unit[n];
        u->first_use = plan->uses;
        u->first_run = plan->runs;
        u->runs = cursor[n].runs;
        plan->uses += cursor[n].uses;
        plan->runs += cursor[n].runs;
        cursor[n] = (list_cursor){u->first_use, u->first_run, NAN};
    }
}

static status allocate_lists(reduce_plan *plan, int lanes, errbuf *err)
{
    plan->from = cpu_memory((size_t)plan->uses * sizeof *plan->from);
    plan->local = cpu_memory((size_t)plan->uses * sizeof *plan->local);
    plan->run = cpu_memory((size_t)plan->runs * sizeof *plan->run);
    plan->segments = calloc((size_t)lanes, sizeof *plan->segments);
    bool ok = plan->from && plan->local && plan->run && plan->segments;
    for (int l = 0; ok && plan->segment_floats > 0 && l < lanes; l++) {
        plan->segments[l] = cpu_memory((size_t)plan->segment_floats * sizeof(float));
        ok = plan->segments[l] != NULL;
    }
    if (ok)
        return STATUS_OK;
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: reduction lists of %lld uses",
                      (long long)plan->uses);
}

status reduce_plan_build(backend_weights *w, const weight_source *sources, const uint32_t *entries,
                         errbuf *err)
{
    reduce_plan *plan = &w->reduce;
    ordered_kernel *order = NULL;
    list_cursor *cursor = NULL;
    status st = order_kernels(w, sources, &order, err);
    if (st != STATUS_OK)
        return st;
    TRY_GOTO(make_groups(w, order, err), st, done);
    TRY_GOTO(make_units(w, err), st, done);
    cursor = calloc((size_t)plan->units + 1, sizeof *cursor);
    if (!cursor) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
        goto done;
    }
    for (int64_t u = 0; u < plan->units; u++)
        cursor[u].scale = NAN;
    TRY_GOTO(walk_uses(w, order, sources, entries, cursor, false, err), st, done);
    place_lists(plan, cursor);
    TRY_GOTO(allocate_lists(plan, w->cpu->base.options.lanes, err), st, done);
    st = walk_uses(w, order, sources, entries, cursor, true, err);
done:
    free(cursor);
    free(order);
    return st;
}

/* ---- running ---- */

static void sum_unit(const reduce_plan *plan, const reduce_unit *u, const float *dw, float *to)
{
    const uint32_t *from = plan->from + u->first_use;
    const uint16_t *local = plan->local + u->first_use;
    memset(to, 0, (size_t)u->elements * sizeof *to);
    for (int64_t r = 0; r < u->runs; r++) {
        const reduce_run *run = &plan->run[u->first_run + r];
        const float scales[2] = {run->scale, -run->scale};
        for (uint32_t k = 0; k < run->count; k++)
            to[local[k] & (SPAN_ELEMENTS - 1)] += scales[local[k] >> SPAN_BITS] * dw[from[k]];
        from += run->count;
        local += run->count;
    }
}

/* Adds the segments of elements first .. end-1 in a binary tree. */
static void add_segments(const reduce_group *g, float *segments, int64_t first, int64_t end,
                         float *grad)
{
    for (int64_t step = 1; step < g->segments; step *= 2) {
        for (int64_t s = 0; s + step < g->segments; s += 2 * step) {
            float *to = segments + s * g->elements;
            const float *from = to + step * g->elements;
            for (int64_t e = first; e < end; e++)
                to[e] += from[e];
        }
    }
    memcpy(grad + first, segments + first, (size_t)(end - first) * sizeof *grad);
}

status cpu_weights_reduce(backend_weights *w, int lane, float *grad)
{
    const reduce_plan *plan = &w->reduce;
    if (!w->committed || lane < 0 || lane >= w->cpu->base.options.lanes)
        return cpu_fail(w->cpu, 0, STATUS_BAD_INPUT, "weights cannot be reduced %s",
                        w->committed ? "in a lane that is not there" : "before commit");
    const float *dw = w->grads[lane];
    float *segments = plan->segments[lane];
#pragma omp parallel num_threads(cpu_threads(w->cpu))
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < plan->units; n++) {
            const reduce_unit *u = &plan->unit[n];
            sum_unit(plan, u, dw, (u->segmented ? segments : grad) + u->to);
        }
        for (int i = 0; i < plan->groups; i++) {
            const reduce_group *g = &plan->group[i];
            if (g->segments == 1)
                continue;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t first = 0; first < g->elements; first += TREE_COLUMNS)
                add_segments(g, segments + g->at, first,
                             min_int64(first + TREE_COLUMNS, g->elements), grad + g->source);
        }
    }
    return STATUS_OK;
}
