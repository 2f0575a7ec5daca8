/*
 * The per-weight functions of the ring map (kernels/ring_map.h); included at its end. They allocate
 * nothing and call no library, so that the same code serves the CPU and the GPU.
 *
 * Map version 1, exactly; sub(p, i) = philox_subseed(seed, ring number, purpose p, instance i):
 * - even: t = P_shuffle(j); index = t < copies * N ? t mod N : P_rest(t - copies * N).
 *   P_shuffle = feistel(M, SHUFFLE, 0), P_rest = feistel(N, REST, 0).
 * - not permuted: j mod N.
 * - random: (w1, w0) = the two words at 2 (j mod 2) of Philox block {j / 2, 0, 0, 0} under the key
 *   of RANDOM, index = floor(N * (w1 * 2^32 + w0) / 2^64).
 * - tile: below, at struct ring_tiles.
 * - sign: bit j mod 128 (word by word, lowest first) of Philox block {j / 128, 0, 0, 0} under the
 *   key of SIGN; set = minus. Not reflected: +1.
 * The key of RANDOM or SIGN is the first two words of block 0 of its sub-seed, instance 0.
 */
#ifndef RINGMASTER_KERNELS_RING_MAP_INLINE_H
#define RINGMASTER_KERNELS_RING_MAP_INLINE_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Tile maps. A ring is cut into `count` tiles of RING_TILE elements; the last may be short. Span
 * s < copies * count is tile s mod count of copy s / count. The remainder takes whole tiles
 * Q(0), Q(1), ..., Q = feistel(count, TILE_REST, 0), as spans copies * count, ... until `rest`
 * elements are taken: the last of them gives only the `tail` that is still missing. Slot p of the
 * M positions holds span P(p), P = feistel(spans, SPAN, 0), and starts where slot p - 1 ends.
 * Inside, offset i is element i' of the span's tile, i' = feistel(the tile's length, TILE, s)(i):
 * a span that is cut short takes the first `tail` images, a random part of its tile.
 */
struct ring_tiles {
    uint64_t seed;
    uint32_t ring;
    uint32_t n;
    uint32_t count; /* tiles of one ring */
    uint32_t whole; /* copies * count: spans that are not of the remainder */
    uint32_t spans;
    uint32_t tail;     /* length of span spans - 1 where the remainder is not empty */
    feistel place;     /* P */
    feistel order;     /* Q */
    uint32_t odd_slot; /* count == 1: the slot of the remainder's span, or `spans` without one */
    uint32_t *starts;  /* count > 1: [spans + 1] first position of each slot; else NULL */
};

/* What one span draws from. */
typedef struct ring_span {
    uint32_t id;
    uint32_t tile;   /* its tile's number; first element = tile * RING_TILE */
    uint32_t size;   /* elements of the tile */
    uint32_t length; /* positions of the span, <= size */
} ring_span;

RING_INLINE ring_span ring_tiles_span(const struct ring_tiles *t, uint32_t id)
{
    ring_span s;
    s.id = id;
    s.tile = id < t->whole ? id % t->count : feistel_apply(&t->order, id - t->whole);
    s.size = s.tile + 1 < t->count ? RING_TILE : t->n - s.tile * RING_TILE;
    s.length = id >= t->whole && id + 1 == t->spans ? t->tail : s.size;
    return s;
}

/* First position of a slot. With one tile a ring, all spans but the remainder's have n weights. */
RING_INLINE uint32_t ring_tiles_start(const struct ring_tiles *t, uint32_t slot)
{
    if (t->starts)
        return t->starts[slot];
    return slot > t->odd_slot ? (slot - 1) * t->n + t->tail : slot * t->n;
}

/* The slot that position j lies in. */
RING_INLINE uint32_t ring_tiles_slot(const struct ring_tiles *t, uint32_t j)
{
    if (!t->starts) {
        uint64_t odd = (uint64_t)t->odd_slot * t->n;
        if (j < odd)
            return j / t->n;
        if (j < odd + t->tail)
            return t->odd_slot;
        return t->odd_slot + 1 + (uint32_t)(j - odd - t->tail) / t->n;
    }
    uint32_t low = j / RING_TILE, high = t->spans; /* no span is longer than a tile */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (t->starts[middle] <= j)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The bijection inside a span. */
RING_INLINE feistel ring_tiles_inside(const struct ring_tiles *t, ring_span s)
{
    return feistel_make(s.size, t->seed, t->ring, RING_PURPOSE_TILE, s.id);
}

RING_INLINE uint32_t ring_tiles_index(const struct ring_tiles *t, uint32_t j)
{
    uint32_t slot = ring_tiles_slot(t, j);
    ring_span s = ring_tiles_span(t, feistel_apply(&t->place, slot));
    feistel inside = ring_tiles_inside(t, s);
    return s.tile * RING_TILE + feistel_apply(&inside, j - ring_tiles_start(t, slot));
}

/* floor(N * (w1 * 2^32 + w0) / 2^64), exactly, without a 128-bit product. */
RING_INLINE uint32_t ring_map_random(const ring_map *map, uint32_t j)
{
    philox_block b = philox4x32(j / 2, 0, 0, 0, map->random_key[0], map->random_key[1]);
    uint64_t w1 = b.word[2 * (j & 1)], w0 = b.word[2 * (j & 1) + 1];
    return (uint32_t)((w1 * map->n + (w0 * map->n >> 32)) >> 32);
}

/* Index of the weight whose shuffled position is t. */
RING_INLINE uint32_t ring_map_deal(const ring_map *map, uint32_t t)
{
    uint32_t dealt = map->m - map->rest; /* copies * N */
    return t < dealt ? t % map->n : feistel_apply(&map->remainder, t - dealt);
}

RING_INLINE uint32_t ring_map_index(const ring_map *map, uint32_t j)
{
    if (!map->permute)
        return j % map->n;
    if (map->index == RING_INDEX_RANDOM)
        return ring_map_random(map, j);
    if (map->index == RING_INDEX_TILE)
        return ring_tiles_index(map->tile, j);
    return ring_map_deal(map, feistel_apply(&map->shuffle, j));
}

/* The signs of positions 128 * block .. 128 * block + 127, one bit each. */
RING_INLINE philox_block ring_map_sign_block(const ring_map *map, uint32_t block)
{
    return philox4x32(block, 0, 0, 0, map->sign_key[0], map->sign_key[1]);
}

RING_INLINE uint32_t ring_map_minus(philox_block signs, uint32_t j)
{
    return signs.word[j / 32 % 4] >> (j % 32) & 1;
}

RING_INLINE float ring_map_sign(const ring_map *map, uint32_t j)
{
    if (!map->reflect)
        return 1.0f;
    return ring_map_minus(ring_map_sign_block(map, j / 128), j) ? -1.0f : 1.0f;
}

RING_INLINE uint32_t ring_map_entry(const ring_map *map, uint32_t j)
{
    uint32_t index = ring_map_index(map, j);
    return ring_map_sign(map, j) < 0 ? index | RING_SIGN_BIT : index;
}

#ifdef __cplusplus
}
#endif

#endif
