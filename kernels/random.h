/*
 * Random choices of the data path: streams of Philox words, each named by (seed, purpose, a, b)
 * and by nothing else, so that any thread of any rank, CPU or GPU, draws the same.
 *
 * counter = { block, a, b, 0x44415400 | purpose }, key = { seed low, seed high }; a stream's words
 * are those of blocks 0, 1, 2, … in order. The constant ("DAT") keeps it apart from the ring maps,
 * which draw from the same generator.
 */
#ifndef RINGMASTER_KERNELS_RANDOM_H
#define RINGMASTER_KERNELS_RANDOM_H

#include <stdint.h>

#include "kernels/feistel.h"
#include "kernels/philox.h"

enum random_purpose {
    RANDOM_AUGMENT = 1,   /* a = sample, b = epoch */
    RANDOM_SYNTHETIC = 2, /* a = index, b = split */
    RANDOM_ORDER = 0xD0,  /* of feistel_make: ring = epoch */
    RANDOM_SUBSET = 0xD1, /* of feistel_make */
};

typedef struct random_stream {
    uint32_t key[2], a, b, purpose, block;
    philox_block words;
    int left; /* words of the block not yet drawn */
} random_stream;

RING_INLINE random_stream random_open(uint64_t seed, enum random_purpose purpose, uint32_t a,
                                      uint32_t b)
{
    random_stream s;
    s.key[0] = (uint32_t)seed;
    s.key[1] = (uint32_t)(seed >> 32);
    s.a = a;
    s.b = b;
    s.purpose = 0x44415400u | (uint32_t)purpose;
    s.block = 0;
    s.left = 0;
    for (int i = 0; i < 4; i++)
        s.words.word[i] = 0;
    return s;
}

RING_INLINE uint32_t random_word(random_stream *s)
{
    if (s->left == 0) {
        s->words = philox4x32(s->block++, s->a, s->b, s->purpose, s->key[0], s->key[1]);
        s->left = 4;
    }
    return s->words.word[4 - s->left--];
}

/* Uniform in [0, n), n >= 1; the bias of n / 2^32 is of no account here. */
RING_INLINE uint32_t random_below(random_stream *s, uint32_t n)
{
    return (uint32_t)((uint64_t)random_word(s) * n >> 32);
}

/* Uniform in [low, high], integers. */
RING_INLINE int random_between(random_stream *s, int low, int high)
{
    return low + (int)random_below(s, (uint32_t)(high - low) + 1);
}

/* Uniform in [0, 1). */
RING_INLINE double random_unit(random_stream *s)
{
    return random_word(s) * 2.3283064365386963e-10; /* 2^-32 */
}

/* The order of epoch `epoch` of a set of n samples: place p holds sample feistel_apply(order, p).
 */
RING_INLINE feistel sample_order(uint64_t seed, uint32_t epoch, uint32_t n)
{
    return feistel_make(n, seed, epoch, RANDOM_ORDER, 0);
}

/* The window of a square image of side `size` that training with random crops takes: corner (x, y),
 * within size / 8 of (0, 0) either way, and whether its columns are mirrored. */
typedef struct crop_choice {
    int x, y, mirrored;
} crop_choice;

RING_INLINE crop_choice choose_crop(uint64_t seed, uint32_t sample, uint32_t epoch, int size)
{
    random_stream s = random_open(seed, RANDOM_AUGMENT, sample, epoch);
    crop_choice c;
    int pad = size / 8;
    c.mirrored = (int)random_below(&s, 2);
    c.x = random_between(&s, -pad, pad);
    c.y = random_between(&s, -pad, pad);
    return c;
}

#endif
