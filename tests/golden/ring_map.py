#!/usr/bin/env python3
"""The ring map, version 1, written a second time from its description (kernels/philox.h,
feistel.h, ring_map_inline.h) and not from the C code: prints the test vectors that the C tests
hold as literal numbers. Needs nothing but Python 3."""

import math

MASK = 0xFFFFFFFF
TILE = 2048
SHUFFLE, REST, SIGN, RANDOM, SPAN, TILE_INSIDE, TILE_REST, INIT = range(1, 9)


def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def subseed(seed, ring, purpose, instance=0, block=0):
    return philox([block, instance, 0x52494E00 | purpose, ring], [seed & MASK, seed >> 32])


class Feistel:
    def __init__(self, size, seed, ring, purpose, instance=0):
        self.size = size
        self.bits = max(6, (size - 1).bit_length())
        self.low, self.high = (self.bits + 1) // 2, self.bits // 2
        self.keys = subseed(seed, ring, purpose, instance, 0) + subseed(
            seed, ring, purpose, instance, 1
        )

    @staticmethod
    def mix(v, key):
        h = (v ^ key) * 0x9E3779B1 & MASK
        return (h ^ h >> 15) * 0x85EBCA77 & MASK

    def __call__(self, x):
        while True:
            high, low = x >> self.low, x & (1 << self.low) - 1
            for r, key in enumerate(self.keys):
                if r % 2 == 0:
                    low ^= self.mix(high, key) >> 32 - self.low
                else:
                    high ^= self.mix(low, key) >> 32 - self.high
            x = high << self.low | low
            if x < self.size:
                return x


class RingMap:
    def __init__(self, kind, m, n, seed, ring=0):
        self.kind, self.m, self.n, self.seed, self.ring = kind, m, n, seed, ring
        self.copies, self.rest = divmod(m, n)
        if kind == "tile":
            self.make_spans()
        self.shuffle = Feistel(m, seed, ring, SHUFFLE)
        self.remainder = Feistel(n, seed, ring, REST)

    def make_spans(self):
        tiles = [min(TILE, self.n - t) for t in range(0, self.n, TILE)]
        spans = [(tile, size) for _ in range(self.copies) for tile, size in enumerate(tiles)]
        order = Feistel(len(tiles), self.seed, self.ring, TILE_REST)
        left, taken = self.rest, 0
        while left:
            tile = order(taken)
            spans.append((tile, min(left, tiles[tile])))
            left, taken = left - spans[-1][1], taken + 1
        place = Feistel(len(spans), self.seed, self.ring, SPAN)
        self.slots, start = [], 0
        for slot in range(len(spans)):
            span = place(slot)
            tile, length = spans[span]
            self.slots.append((start, length, tile, span, tiles[tile]))
            start += length
        assert start == self.m

    def index(self, j):
        if self.kind == "none":
            return j % self.n
        if self.kind == "random":
            key = subseed(self.seed, self.ring, RANDOM)[:2]
            block = philox([j // 2, 0, 0, 0], key)
            return self.n * (block[2 * (j % 2)] << 32 | block[2 * (j % 2) + 1]) >> 64
        if self.kind == "tile":
            start, _, tile, span, size = next(s for s in self.slots if s[0] <= j < s[0] + s[1])
            inside = Feistel(size, self.seed, self.ring, TILE_INSIDE, span)
            return tile * TILE + inside(j - start)
        t = self.shuffle(j)
        whole = self.copies * self.n
        return t % self.n if t < whole else self.remainder(t - whole)

    def sign(self, j):
        key = subseed(self.seed, self.ring, SIGN)[:2]
        word = philox([j // 128, 0, 0, 0], key)[j % 128 // 32]
        return -1 if word >> j % 32 & 1 else 1

    def entry(self, j):
        return self.index(j) | (0x80000000 if self.sign(j) < 0 else 0)


def init_values(seed, ring, n):
    """W / sigma, in double."""
    key, values = subseed(seed, ring, INIT)[:2], []
    for k in range((n + 1) // 2):
        b = philox([k, 0, 0, 0], key)
        u = (((b[0] << 32 | b[1]) >> 11) + 1) / 2**53
        angle = 2 * math.pi * ((b[2] << 32 | b[3]) >> 11) / 2**53
        radius = math.sqrt(-2 * math.log(u))
        values += [radius * math.cos(angle), radius * math.sin(angle)]
    return values[:n]


def main():
    print("feistel: seed 1, ring 0, purpose 1, instance 0, images of 0..7")
    for size in (1, 10, 64, 65, 2048, 11157504, 2**31 - 1):
        f = Feistel(size, 1, 0, SHUFFLE)
        print(f"    {{{size}u, {{{', '.join(str(f(x)) + 'u' for x in range(min(8, size)))}}}}},")
    print("maps: entries of eight positions spread evenly over 0..m-1")
    cases = [
        ("even", 1000, 300, 7, 0),
        ("even", 11157504, 2359296, 0xFEDCBA9876543210, 3),
        ("even", 2147483647, 36864, 1, 0),
        ("even", 100, 1000, 7, 1),
        ("none", 1000, 300, 7, 0),
        ("random", 1000, 300, 7, 0),
        ("random", 2147483647, 2147483646, 7, 0),
        ("tile", 20000, 5000, 7, 0),
        ("tile", 23456, 5000, 7, 2),
        ("tile", 5000, 300, 7, 0),
        ("tile", 3000, 10000, 7, 0),
    ]
    for kind, m, n, seed, ring in cases:
        ring_map = RingMap(kind, m, n, seed, ring)
        entries = ", ".join(f"{ring_map.entry(i * (m - 1) // 7):#010x}" for i in range(8))
        print(f'    {kind}, m {m}, n {n}, seed {seed:#x}, ring {ring}:\n        {entries}')
    print("initial values: sigma 1, seed 5, ring 2, elements 0..6")
    print("    " + ", ".join(f"{v:.9f}" for v in init_values(5, 2, 7)))


if __name__ == "__main__":
    main()
