/*
 * The ring map: which ring element, with which sign, each generated weight is (DESIGN "The ring
 * map"; METHODS 1.1). Versioned: it is part of the file format.
 *
 * A map is a plain value with no pointers into the heap but `tile` (span starts of tile maps). The
 * per-weight functions are static inline, C11 and C++17, and the same code compiles for the CPU
 * and the GPU.
 */
#ifndef RINGMASTER_KERNELS_RING_MAP_H
#define RINGMASTER_KERNELS_RING_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/feistel.h"
#include "protocol/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RING_MAP_VERSION 1
#define RING_TILE        2048        /* T: positions of a span, elements of a tile */
#define RING_MAX_M       INT32_MAX   /* weights of one ring */
#define RING_MAX_TABLE   (1 << 27)   /* weights for which tables are made */
#define RING_SIGN_BIT    0x80000000u /* set = the weight is minus its element */
#define RING_ZERO_WEIGHT 0x7fffffffu /* a table entry that stands for a weight of zero */

enum ring_index {
    RING_INDEX_EVEN,
    RING_INDEX_RANDOM,
    RING_INDEX_TILE
};

/* Purposes for which sub-seeds are derived: f(seed, ring number, purpose), Philox4x32-10. */
enum ring_purpose {
    RING_PURPOSE_SHUFFLE = 1,
    RING_PURPOSE_REST,
    RING_PURPOSE_SIGN,
    RING_PURPOSE_RANDOM,
    RING_PURPOSE_SPAN,
    RING_PURPOSE_TILE,
    RING_PURPOSE_TILE_REST,
    RING_PURPOSE_INIT, /* W's initial values */
};

typedef struct ring_map_params {
    int index;    /* enum ring_index */
    bool permute; /* false: index(j) = j mod N; with RING_INDEX_EVEN only */
    bool reflect; /* false: every sign is +1 */
    int64_t m;    /* generated weights, 1 .. RING_MAX_M */
    int64_t n;    /* ring size, 1 .. RING_MAX_M; may exceed m */
    uint64_t seed;
    uint32_t ring; /* ring number within the job */
} ring_map_params;

typedef struct ring_map {
    int index;
    bool permute, reflect;
    uint32_t m, n, copies, rest; /* copies = m / n, rest = m mod n */
    feistel shuffle, remainder;  /* even: P_shuffle on [0, m), P_rest on [0, n) */
    uint32_t random_key[2], sign_key[2];
    struct ring_tiles *tile; /* tile maps: owned; NULL otherwise */
} ring_map;

/* Checks the ranges and derives the keys. Allocates for tile maps only. */
CHECK_RESULT status ring_map_init(ring_map *map, const ring_map_params *params, errbuf *err);
void ring_map_fini(ring_map *map); /* NULL-safe, idempotent */

/* Ring element of weight j < m, its sign (+1.0f or -1.0f), both in one table entry (index with the
 * sign in bit 31). Defined in ring_map_inline.h. */
RING_INLINE uint32_t ring_map_index(const ring_map *map, uint32_t j);
RING_INLINE float ring_map_sign(const ring_map *map, uint32_t j);
RING_INLINE uint32_t ring_map_entry(const ring_map *map, uint32_t j);

/* Entries of positions first .. first+count-1, with all OpenMP threads; same bits for any number
 * of them. */
void ring_map_table(const ring_map *map, int64_t first, int64_t count, uint32_t *ret_entries);

/* W_i ~ N(0, sigma^2), element i a function of (seed, ring, i) alone. */
void ring_init_values(uint64_t seed, uint32_t ring, double sigma, int64_t n, float *ret_w);

#ifdef __cplusplus
}
#endif

#include "kernels/ring_map_inline.h"
#endif
