/*
 * A keyed bijection of [0, size) for any size up to 2^31: an alternating Feistel network on
 * bits = max(6, ceil(log2 size)) bits with cycle walking (a value outside [0, size) is sent through
 * again until it falls inside: for size > 32 fewer than two passes on average).
 *
 * Map version 1, exactly: x = high * 2^L + low with L = ceil(bits / 2) low bits and
 * H = floor(bits / 2) high bits. FEISTEL_ROUNDS = 8 rounds, r = 0..7, with round keys K_r:
 *     even r:  low  ^= F(high, K_r) >> (32 - L)
 *     odd r:   high ^= F(low,  K_r) >> (32 - H)
 *     F(v, K) = (h ^ (h >> 15)) * 0x85EBCA77,  h = (v ^ K) * 0x9E3779B1       (mod 2^32)
 * K_0..K_3 are block 0 and K_4..K_7 block 1 of philox_subseed(seed, ring, purpose, instance).
 * Six bits at least, so that a tiny set, too, is permuted by one of many permutations.
 *
 * Test vectors, seed 1, ring 0, purpose 1, instance 0, images of 0..7 (tests/kernels/
 * test_feistel.c; tests/golden/ring_map.py makes them on its own):
 *     size 10       : 9 1 0 2 8 7 3 6
 *     size 2048     : 1832 1212 1717 35 1099 1466 1522 1995
 *     size 11157504 : 3439894 98632 6157299 1616239 6815459 10891676 6033706 2549979
 */
#ifndef RINGMASTER_KERNELS_FEISTEL_H
#define RINGMASTER_KERNELS_FEISTEL_H

#include <stdint.h>

#include "kernels/philox.h"

#define FEISTEL_ROUNDS   8
#define FEISTEL_MIN_BITS 6

typedef struct feistel {
    uint32_t size;
    uint32_t low_bits, high_bits;
    uint32_t key[FEISTEL_ROUNDS];
} feistel;

/* The bijection of [0, size), 1 <= size <= 2^31, of a sub-seed. Instances of one purpose are
 * independent bijections. */
RING_INLINE feistel feistel_make(uint32_t size, uint64_t seed, uint32_t ring, uint32_t purpose,
                                 uint32_t instance)
{
    feistel f;
    uint32_t bits = FEISTEL_MIN_BITS;
    while (bits < 31 && ((uint32_t)1 << bits) < size)
        bits++;
    f.size = size;
    f.low_bits = (bits + 1) / 2;
    f.high_bits = bits / 2;
    for (uint32_t b = 0; b < FEISTEL_ROUNDS / 4; b++) {
        philox_block block = philox_subseed(seed, ring, purpose, instance, b);
        for (int i = 0; i < 4; i++)
            f.key[4 * b + i] = block.word[i];
    }
    return f;
}

RING_INLINE uint32_t feistel_mix(uint32_t value, uint32_t key)
{
    uint32_t h = (value ^ key) * 0x9E3779B1u;
    return (h ^ (h >> 15)) * 0x85EBCA77u;
}

/* One pass through the network, without walking: a bijection of [0, 2^bits). */
RING_INLINE uint32_t feistel_pass(const feistel *f, uint32_t x)
{
    uint32_t low = x & (((uint32_t)1 << f->low_bits) - 1);
    uint32_t high = x >> f->low_bits;
    for (int r = 0; r < FEISTEL_ROUNDS; r += 2) {
        low ^= feistel_mix(high, f->key[r]) >> (32 - f->low_bits);
        high ^= feistel_mix(low, f->key[r + 1]) >> (32 - f->high_bits);
    }
    return high << f->low_bits | low;
}

RING_INLINE uint32_t feistel_pass_back(const feistel *f, uint32_t y)
{
    uint32_t low = y & (((uint32_t)1 << f->low_bits) - 1);
    uint32_t high = y >> f->low_bits;
    for (int r = FEISTEL_ROUNDS - 2; r >= 0; r -= 2) {
        high ^= feistel_mix(low, f->key[r + 1]) >> (32 - f->high_bits);
        low ^= feistel_mix(high, f->key[r]) >> (32 - f->low_bits);
    }
    return high << f->low_bits | low;
}

/* Image of x < size. */
RING_INLINE uint32_t feistel_apply(const feistel *f, uint32_t x)
{
    do
        x = feistel_pass(f, x);
    while (x >= f->size);
    return x;
}

/* The x that feistel_apply sends to y < size. */
RING_INLINE uint32_t feistel_invert(const feistel *f, uint32_t y)
{
    do
        y = feistel_pass_back(f, y);
    while (y >= f->size);
    return y;
}

#endif
