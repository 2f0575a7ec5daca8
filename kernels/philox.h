/*
 * Philox4x32-10: the counter-based random number generator from which everything about a ring is
 * drawn (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011).
 *
 * A block of four 32-bit words is a function of (counter, key) alone: no state, so any thread of
 * any device makes the number it needs. Test vectors, counter / key -> block, all hexadecimal:
 *   00000000 x 4                        / 00000000 00000000 -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8
 *   ffffffff x 4                        / ffffffff ffffffff -> 408f276d 41c83b0e a20bc7c6 6d5451fd
 *   243f6a88 85a308d3 13198a2e 03707344 / a4093822 299f31d0 -> d16cfe09 94fdcceb 5001e420 24126ea1
 */
#ifndef RINGMASTER_KERNELS_PHILOX_H
#define RINGMASTER_KERNELS_PHILOX_H

#include <stdint.h>

/* Functions that are compiled for the CPU and, under nvcc, for the GPU: C11 and C++17. */
#ifdef __CUDACC__
#define RING_INLINE static inline __host__ __device__
#else
#define RING_INLINE static inline
#endif

#define PHILOX_ROUNDS 10

typedef struct philox_block {
    uint32_t word[4];
} philox_block;

RING_INLINE philox_block philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                    uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)p0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    philox_block block;
    block.word[0] = c0;
    block.word[1] = c1;
    block.word[2] = c2;
    block.word[3] = c3;
    return block;
}

/* Block `block` of instance `instance` of a sub-seed: f(seed, ring number, purpose). Map version 1:
 *   counter = { block, instance, 0x52494E00 | purpose, ring }, key = { seed low, seed high }.
 * The constant ("RIN") keeps rings apart from other users of the same seed. */
RING_INLINE philox_block philox_subseed(uint64_t seed, uint32_t ring, uint32_t purpose,
                                        uint32_t instance, uint32_t block)
{
    return philox4x32(block, instance, 0x52494E00u | purpose, ring, (uint32_t)seed,
                      (uint32_t)(seed >> 32));
}

#endif
