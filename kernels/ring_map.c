/*
 * Ring maps that are too big for a register: checking and deriving the keys, the spans of tile
 * maps, whole tables, and the ring's initial values.
 */
#include "kernels/ring_map.h"

#include <math.h>
#include <stdlib.h>

/* Positions that a thread takes at a time. */
#define BLOCK       1024
#define SIGNS_BLOCK 128

/* Compiled a second time for AVX2, which has the 32-bit products that a pass is made of; which
 * one runs is settled when the program is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR_CLONES
#endif

static status check_params(const ring_map_params *p, errbuf *err)
{
    if (p->m < 1 || p->m > RING_MAX_M)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a ring cannot generate %lld weights: give it 1 to %d", (long long)p->m,
                          RING_MAX_M);
    if (p->n < 1 || p->n > RING_MAX_M)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "ring size %lld is out of range: choose 1 to %d floats", (long long)p->n,
                          RING_MAX_M);
    if (p->index != RING_INDEX_EVEN && p->index != RING_INDEX_RANDOM && p->index != RING_INDEX_TILE)
        return errbuf_set(err, STATUS_BAD_INPUT, "ring index %d is not even, random or tile",
                          p->index);
    if (!p->permute && p->index != RING_INDEX_EVEN)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a ring without permutation has no random or tile index: use even");
    return STATUS_OK;
}

static uint32_t tile_length(const struct ring_tiles *t, uint32_t tile)
{
    return tile + 1 < t->count ? RING_TILE : t->n - tile * RING_TILE;
}

/* Takes tiles in keyed order until `rest` elements are found; sets spans and tail. */
static void take_remainder(struct ring_tiles *t, uint32_t rest)
{
    t->spans = t->whole;
    for (uint32_t left = rest; left > 0; t->spans++) {
        uint32_t tile = feistel_apply(&t->order, t->spans - t->whole);
        uint32_t length = tile_length(t, tile);
        t->tail = left < length ? left : length;
        left -= t->tail;
    }
}

static void place_spans(struct ring_tiles *t)
{
    uint32_t position = 0;
    for (uint32_t slot = 0; slot < t->spans; slot++) {
        t->starts[slot] = position;
        position += ring_tiles_span(t, feistel_apply(&t->place, slot)).length;
    }
    t->starts[t->spans] = position;
}

static status make_tiles(const ring_map_params *p, uint32_t copies, uint32_t rest,
                         struct ring_tiles **ret_tiles, errbuf *err)
{
    struct ring_tiles *t = calloc(1, sizeof *t);
    if (!t)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a tile map");
    t->seed = p->seed;
    t->ring = p->ring;
    t->n = (uint32_t)p->n;
    t->count = (t->n - 1) / RING_TILE + 1;
    t->whole = copies * t->count;
    t->order = feistel_make(t->count, p->seed, p->ring, RING_PURPOSE_TILE_REST, 0);
    take_remainder(t, rest);
    t->place = feistel_make(t->spans, p->seed, p->ring, RING_PURPOSE_SPAN, 0);
    t->odd_slot = rest > 0 ? feistel_invert(&t->place, t->spans - 1) : t->spans;
    if (t->count > 1) {
        t->starts = malloc(sizeof *t->starts * ((size_t)t->spans + 1));
        if (!t->starts) {
            free(t);
            return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                              "out of memory for the spans of a tile map of %lld weights",
                              (long long)p->m);
        }
        place_spans(t);
        ASSERT(t->starts[t->spans] == (uint32_t)p->m);
    }
    *ret_tiles = t;
    return STATUS_OK;
}

status ring_map_init(ring_map *map, const ring_map_params *p, errbuf *err)
{
    TRY(check_params(p, err));
    ring_map made = {.index = p->index,
                     .permute = p->permute,
                     .reflect = p->reflect,
                     .m = (uint32_t)p->m,
                     .n = (uint32_t)p->n,
                     .copies = (uint32_t)(p->m / p->n),
                     .rest = (uint32_t)(p->m % p->n)};
    made.shuffle = feistel_make(made.m, p->seed, p->ring, RING_PURPOSE_SHUFFLE, 0);
    made.remainder = feistel_make(made.n, p->seed, p->ring, RING_PURPOSE_REST, 0);
    philox_block random = philox_subseed(p->seed, p->ring, RING_PURPOSE_RANDOM, 0, 0);
    philox_block sign = philox_subseed(p->seed, p->ring, RING_PURPOSE_SIGN, 0, 0);
    for (int i = 0; i < 2; i++) {
        made.random_key[i] = random.word[i];
        made.sign_key[i] = sign.word[i];
    }
    if (p->index == RING_INDEX_TILE)
        TRY(make_tiles(p, made.copies, made.rest, &made.tile, err));
    *map = made;
    return STATUS_OK;
}

void ring_map_fini(ring_map *map)
{
    if (!map || !map->tile)
        return;
    free(map->tile->starts);
    free(map->tile);
    map->tile = NULL;
}

/* One pass of the network over each value. The same integers whatever the instruction set. */
VECTOR_CLONES static void pass_all(const feistel *f, int count, uint32_t *values)
{
    const feistel local = *f; /* cannot alias the values */
    for (int i = 0; i < count; i++)
        values[i] = feistel_pass(&local, values[i]);
}

/* Moves the values that are inside [0, size) to where they belong and keeps the rest together, so
 * that walking on is again a loop without branches. Returns how many are left. */
static int settle(uint32_t size, int count, uint32_t *values, uint16_t *places, uint32_t *settled)
{
    int left = 0;
    for (int i = 0; i < count; i++) {
        uint32_t value = values[i];
        uint16_t place = places[i];
        settled[place] = value; /* overwritten later where it has to walk on */
        values[left] = value;
        places[left] = place;
        left += value >= size;
    }
    return left;
}

/* Images of first .. first + count - 1, count <= BLOCK, under a bijection. */
static void apply_block(const feistel *f, uint32_t first, int count, uint32_t *images)
{
    uint32_t values[BLOCK];
    uint16_t places[BLOCK];
    if (f->size == 1) {
        images[0] = 0;
        return;
    }
    for (int i = 0; i < count; i++) {
        values[i] = first + (uint32_t)i;
        places[i] = (uint16_t)i;
    }
    for (int left = count; left > 0;) {
        pass_all(f, left, values);
        left = settle(f->size, left, values, places, images);
    }
}

static void index_blocks(const ring_map *map, int64_t first, int64_t count, uint32_t *entries)
{
    bool even = map->permute && map->index == RING_INDEX_EVEN;
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t at = b * BLOCK;
        int n = (int)(count - at < BLOCK ? count - at : BLOCK);
        if (even)
            apply_block(&map->shuffle, (uint32_t)(first + at), n, entries + at);
        for (int i = 0; i < n; i++)
            entries[at + i] = even ? ring_map_deal(map, entries[at + i])
                                   : ring_map_index(map, (uint32_t)(first + at + i));
    }
}

/* The part of one span that lies in [first, first + count). */
static void tile_slot(const struct ring_tiles *t, uint32_t slot, int64_t first, int64_t count,
                      uint32_t *entries)
{
    ring_span s = ring_tiles_span(t, feistel_apply(&t->place, slot));
    feistel inside = ring_tiles_inside(t, s);
    int64_t start = ring_tiles_start(t, slot), end = start + s.length;
    int64_t from = start > first ? start : first;
    int64_t to = end < first + count ? end : first + count;
    for (int64_t j = from; j < to; j += BLOCK) {
        int n = (int)(to - j < BLOCK ? to - j : BLOCK);
        apply_block(&inside, (uint32_t)(j - start), n, entries + (j - first));
    }
    for (int64_t j = from; j < to; j++)
        entries[j - first] += s.tile * RING_TILE;
}

static void index_tiles(const ring_map *map, int64_t first, int64_t count, uint32_t *entries)
{
    int64_t low = ring_tiles_slot(map->tile, (uint32_t)first);
    int64_t high = ring_tiles_slot(map->tile, (uint32_t)(first + count - 1));
#pragma omp parallel for schedule(static)
    for (int64_t slot = low; slot <= high; slot++)
        tile_slot(map->tile, (uint32_t)slot, first, count, entries);
}

static void set_signs(const ring_map *map, int64_t first, int64_t count, uint32_t *entries)
{
    int64_t low = first / SIGNS_BLOCK, high = (first + count - 1) / SIGNS_BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = low; b <= high; b++) {
        philox_block signs = ring_map_sign_block(map, (uint32_t)b);
        int64_t from = b * SIGNS_BLOCK > first ? b * SIGNS_BLOCK : first;
        int64_t to = (b + 1) * SIGNS_BLOCK < first + count ? (b + 1) * SIGNS_BLOCK : first + count;
        for (int64_t j = from; j < to; j++)
            entries[j - first] |= ring_map_minus(signs, (uint32_t)j) << 31;
    }
}

void ring_map_table(const ring_map *map, int64_t first, int64_t count, uint32_t *ret_entries)
{
    ASSERT(first >= 0 && count >= 0 && first + count <= map->m);
    if (count == 0)
        return;
    if (map->index == RING_INDEX_TILE)
        index_tiles(map, first, count, ret_entries);
    else
        index_blocks(map, first, count, ret_entries);
    if (map->reflect)
        set_signs(map, first, count, ret_entries);
}

/* Two independent N(0, 1) numbers from one block: Box and Muller's transform in double, of two
 * 53-bit fractions. libm's log, sin and cos may differ between C libraries in the last bit of the
 * double; after rounding to float such a difference shows about once in 10^8 elements. */
static void normal_pair(philox_block b, double *ret_even, double *ret_odd)
{
    const double two_pi = 6.283185307179586476925;
    uint64_t w = (uint64_t)b.word[0] << 32 | b.word[1];
    uint64_t v = (uint64_t)b.word[2] << 32 | b.word[3];
    double u = (double)((w >> 11) + 1) * 0x1p-53; /* (0, 1] */
    double angle = two_pi * ((double)(v >> 11) * 0x1p-53);
    double radius = sqrt(-2.0 * log(u));
    *ret_even = radius * cos(angle);
    *ret_odd = radius * sin(angle);
}

/* Elements 2k and 2k + 1 come from Philox block {k, 0, 0, 0} under the key of INIT. */
void ring_init_values(uint64_t seed, uint32_t ring, double sigma, int64_t n, float *ret_w)
{
    philox_block key = philox_subseed(seed, ring, RING_PURPOSE_INIT, 0, 0);
    int64_t pairs = (n + 1) / 2;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < pairs; k++) {
        double even, odd;
        normal_pair(philox4x32((uint32_t)k, 0, 0, 0, key.word[0], key.word[1]), &even, &odd);
        ret_w[2 * k] = (float)(sigma * even);
        if (2 * k + 1 < n)
            ret_w[2 * k + 1] = (float)(sigma * odd);
    }
}
