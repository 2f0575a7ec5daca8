/*
 * Gathering weight gradients into ring elements.
 *
 * grad[e] is a sum over the uses of element e in ascending position. The uses of a ring (or of a
 * direct kernel) are sorted at commit into units: a span of elements small enough for the nearest
 * caches, times a segment of the positions. A reduction streams through the gradients once and
 * puts each, scaled and signed, at its place among the sorted uses; these are so few streams that
 * the caches hold the end of each. Then every unit is summed by one thread into its own span. So
 * nothing is atomic, nothing waits for memory at random, and the sums are those of the definition.
 * Where elements have many uses, or spans are few, positions are cut into several segments whose
 * vectors are added in a fixed binary tree. How a ring is cut depends on M and N alone.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/weights.h"

#define SPAN_BITS     16
#define SPAN_ELEMENTS (1 << SPAN_BITS) /* 256 KB, and what 16 bits can tell apart */
#define SEGMENT_USES  256              /* of an element within a segment, about */
#define WANTED_UNITS  16               /* so that several threads have work */
#define SMALL_SEGMENT 16384            /* uses below which no segment is cut for threads' sake */
#define TREE_COLUMNS  2048             /* elements a thread adds over all segments at a time */

void reduce_plan_fini(reduce_plan *plan, int lanes)
{
    for (int l = 0; plan->segments && l < lanes; l++)
        free(plan->segments[l]);
    weight_table_fini(&plan->table);
    free(plan->segments);
    free(plan->local);
    free(plan->unit);
    free(plan->group);
    *plan = (reduce_plan){0};
}

size_t reduce_plan_bytes(const reduce_plan *plan, int lanes)
{
    return weight_table_bytes(&plan->table) + (size_t)plan->uses * sizeof *plan->local +
           (size_t)plan->units * sizeof *plan->unit + (size_t)plan->groups * sizeof *plan->group +
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
    ASSERT(g->elements > 0);
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
            u->source = g->source + first;
            u->to = first + (u->segmented ? g->at + segment * g->elements : g->source);
        }
    }
    return STATUS_OK;
}

/* Walks all uses in order of position. Counting: next[unit] counts the unit's uses. Sorting:
 * next[unit] is where the unit's next use goes, and the use's entry becomes that place. */
static void walk_uses(backend_weights *w, const ordered_kernel *order, uint32_t *entries,
                      int64_t *next, bool sort)
{
    reduce_plan *plan = &w->reduce;
    const reduce_group *g = plan->group;
    int64_t use = 0; /* within the group */
    for (int n = 0; n < w->kernels; n++) {
        const weights_kernel *kernel = &w->kernel[order[n].kernel];
        if (n > 0 && order[n - 1].source != order[n].source) {
            g++;
            use = 0;
        }
        if (!has_gradient(w, order[n].kernel))
            continue;
        uint32_t *entry = entries + kernel->first_entry;
        const uint32_t *end = entry + kernel_elements(kernel->shape);
        int64_t segment = use / g->segment, left = (segment + 1) * g->segment - use;
        use += end - entry;
        for (; entry < end; entry++, left--) {
            if (left == 0) {
                segment++;
                left = g->segment;
            }
            uint32_t element = (*entry & ~RING_SIGN_BIT) - (uint32_t)g->source;
            if ((*entry & ~RING_SIGN_BIT) == RING_ZERO_WEIGHT)
                continue;
            int64_t place = next[g->first_unit + (element >> SPAN_BITS) * g->segments + segment]++;
            if (sort) {
                plan->local[place] = (uint16_t)element;
                *entry = (*entry & RING_SIGN_BIT) | (uint32_t)place;
            }
        }
    }
}

/* Turns counts into places. */
static status place_uses(backend_weights *w, int64_t *next, errbuf *err)
{
    reduce_plan *plan = &w->reduce;
    const int lanes = w->cpu->base.options.lanes;
    for (int64_t n = 0; n < plan->units; n++) {
        plan->unit[n].first_use = plan->uses;
        plan->unit[n].uses = next[n];
        plan->uses += next[n];
        next[n] = plan->unit[n].first_use;
    }
    if (plan->uses >= RING_ZERO_WEIGHT)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%lld weights: the cpu backend reduces fewer "
                          "than %u",
                          (long long)plan->uses, RING_ZERO_WEIGHT);
    plan->local = cpu_memory((size_t)plan->uses * sizeof *plan->local);
    plan->segments = calloc((size_t)lanes, sizeof *plan->segments);
    bool ok = plan->local && plan->segments;
    for (int l = 0; ok && plan->segment_floats > 0 && l < lanes; l++) {
        plan->segments[l] = cpu_memory((size_t)plan->segment_floats * sizeof(float));
        ok = plan->segments[l] != NULL;
    }
    if (!ok)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: reduction lists of %lld uses",
                          (long long)plan->uses);
    for (int l = 0; l < lanes; l++) /* the sorted uses of a lane */
        TRY(cpu_reserve_scratch(w->cpu, l, (size_t)plan->uses * sizeof(float), err));
    return STATUS_OK;
}

/* Expand reads the uses of kernel k where they are sorted: it borrows the chunks from `first` on.
 */
static status lend_chunks(backend_weights *w, const weight_source *source, int k, int first,
                          errbuf *err)
{
    const weight_table *table = &w->reduce.table;
    const weights_kernel *kernel = &w->kernel[k];
    const int64_t turned = expand_turned(w, kernel);
    size_t count = (size_t)(w->sorted_chunks + table->chunks - first);
    weight_chunk *grown = realloc(w->sorted, count * sizeof *grown);
    if (!grown)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building weight tables");
    w->sorted = grown;
    for (int n = first; n < table->chunks; n++) {
        weight_chunk *c = &w->sorted[w->sorted_chunks++];
        *c = table->chunk[n];
        int64_t within = c->at - kernel->at[ONEDNN_BACKWARD_WEIGHTS];
        c->at = kernel->at[ONEDNN_FORWARD] + within;
        c->turned = turned < 0 ? -1 : turned + within;
    }
    for (int64_t n = 0; n < w->reduce.units; n++) {
        reduce_unit *u = &w->reduce.unit[n];
        u->spread |= u->source >= source->source && u->source < source->source + source->map->n;
    }
    return STATUS_OK;
}

/* The table of places, in the order of the gradients. */
static status make_table(backend_weights *w, const weight_source *sources, const uint32_t *places,
                         errbuf *err)
{
    weight_table *table = &w->reduce.table;
    const int pass = ONEDNN_BACKWARD_WEIGHTS;
    TRY(weight_table_init(table, w->grad_floats, err));
    for (int k = 0; k < w->kernels; k++) {
        const weights_kernel *kernel = &w->kernel[k];
        int first = table->chunks;
        if (!has_gradient(w, k))
            continue;
        TRY(weight_table_add(table, &kernel->shape, &kernel->layout[pass], kernel->at[pass], -1,
                             places + kernel->first_entry, sources[k].scale,
                             w->cpu->base.options.threads, err));
        if (expand_is_sorted(w, &sources[k], k))
            TRY(lend_chunks(w, &sources[k], k, first, err));
    }
    return STATUS_OK;
}

status reduce_plan_build(backend_weights *w, const weight_source *sources, uint32_t *entries,
                         errbuf *err)
{
    reduce_plan *plan = &w->reduce;
    ordered_kernel *order = NULL;
    int64_t *next = NULL;
    status st = order_kernels(w, sources, &order, err);
    if (st != STATUS_OK)
        return st;
    TRY_GOTO(make_groups(w, order, err), st, done);
    TRY_GOTO(make_units(w, err), st, done);
    next = calloc((size_t)plan->units + 1, sizeof *next);
    if (!next) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building reduction lists");
        goto done;
    }
    walk_uses(w, order, entries, next, false);
    TRY_GOTO(place_uses(w, next, err), st, done);
    walk_uses(w, order, entries, next, true);
    st = make_table(w, sources, entries, err);
done:
    free(next);
    free(order);
    return st;
}

/* ---- running ---- */

static void sum_unit(const reduce_plan *plan, const reduce_unit *u, const float *sorted, float *to)
{
    const uint16_t *local = plan->local + u->first_use;
    const float *use = sorted + u->first_use;
    memset(to, 0, (size_t)u->elements * sizeof *to);
    for (int64_t k = 0; k < u->uses; k++)
        to[local[k]] += use[k];
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
    const weight_table *t = &plan->table;
    float *sorted = (float *)(void *)w->cpu->lane[lane].scratch;
    float *segments = plan->segments[lane];
#pragma omp parallel num_threads(cpu_threads(w->cpu))
    {
#pragma omp for schedule(dynamic, 1)
        for (int n = 0; n < t->chunks; n++) {
            const weight_chunk *c = &t->chunk[n];
            const scatter_args args = {.table = t->entry + c->table,
                                       .from = w->grads[lane] + c->at,
                                       .scale = t->scales + c->scale,
                                       .period = c->period,
                                       .length = c->length,
                                       .holes = c->holes,
                                       .to = sorted};
            w->cpu->simd->scatter(&args);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < plan->units; n++) {
            const reduce_unit *u = &plan->unit[n];
            sum_unit(plan, u, sorted, (u->segmented ? segments : grad) + u->to);
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
