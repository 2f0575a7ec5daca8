/* Packing by lifetime; see memory_plan.h. */
#include "trainer/net/memory_plan.h"

#include <stdbool.h>
#include <stdlib.h>

static size_t align_up(size_t bytes)
{
    return (bytes + MEMORY_ALIGNMENT - 1) / MEMORY_ALIGNMENT * MEMORY_ALIGNMENT;
}

static bool live_together(const memory_item *a, const memory_item *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* An item's number with what it is sorted by. */
typedef struct ranked {
    size_t key;
    int first, number;
} ranked;

/* Largest first; equal ones by start, then by number: a total order, so that qsort is stable. */
static int by_size(const void *pa, const void *pb)
{
    const ranked *a = pa, *b = pb;
    if (a->key != b->key)
        return a->key < b->key ? 1 : -1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return (a->number > b->number) - (a->number < b->number);
}

/* By offset. */
static int by_key(const void *pa, const void *pb)
{
    const ranked *a = pa, *b = pb;
    if (a->key != b->key)
        return a->key < b->key ? -1 : 1;
    return (a->number > b->number) - (a->number < b->number);
}

/* The offset for items[item] among the `placed` items whose offsets are set: the smallest gap
 * between those that live with it, else behind them all. `near` is scratch. */
static size_t best_offset(const memory_item *items, const size_t *offset, const int *placed,
                          int placed_count, int item, ranked *near)
{
    size_t bytes = align_up(items[item].bytes), end = 0, best = 0, best_gap = SIZE_MAX;
    int count = 0;
    for (int i = 0; i < placed_count; i++)
        if (live_together(&items[placed[i]], &items[item]))
            near[count++] = (ranked){.key = offset[placed[i]], .number = placed[i]};
    qsort(near, (size_t)count, sizeof *near, by_key);
    for (int i = 0; i < count; i++) {
        size_t gap = near[i].key > end ? near[i].key - end : 0;
        size_t item_end = near[i].key + align_up(items[near[i].number].bytes);
        if (gap >= bytes && gap < best_gap) {
            best = end;
            best_gap = gap;
        }
        if (item_end > end)
            end = item_end;
    }
    return best_gap == SIZE_MAX ? end : best;
}

status memory_plan(memory_item *items, int count, size_t *ret_total, errbuf *err)
{
    size_t room = (size_t)count + 1, total = 0;
    ranked *order = malloc(room * sizeof *order), *near = malloc(room * sizeof *near);
    int *placed = malloc(room * sizeof *placed);
    size_t *offset = malloc(room * sizeof *offset);
    if (!order || !near || !placed || !offset) {
        free(order);
        free(near);
        free(placed);
        free(offset);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory to plan %d buffers", count);
    }
    for (int i = 0; i < count; i++) {
        ASSERT(items[i].first <= items[i].last);
        order[i] = (ranked){items[i].bytes, items[i].first, i};
    }
    qsort(order, (size_t)count, sizeof *order, by_size);
    for (int i = 0; i < count; i++) {
        int item = order[i].number;
        offset[item] = best_offset(items, offset, placed, i, item, near);
        placed[i] = item;
        size_t end = offset[item] + align_up(items[item].bytes);
        if (end > total)
            total = end;
    }
    for (int i = 0; i < count; i++)
        items[i].offset = offset[i];
    *ret_total = total;
    free(order);
    free(near);
    free(placed);
    free(offset);
    return STATUS_OK;
}

size_t memory_plan_bound(const memory_item *items, int count)
{
    size_t bound = 0;
    for (int i = 0; i < count; i++) { /* the most live at the start of some item */
        size_t live = 0;
        for (int k = 0; k < count; k++)
            if (items[k].first <= items[i].first && items[i].first <= items[k].last)
                live += align_up(items[k].bytes);
        if (live > bound)
            bound = live;
    }
    return bound;
}
