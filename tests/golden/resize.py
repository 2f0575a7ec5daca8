#!/usr/bin/env python3
"""Golden numbers of tests/trainer/test_augment.c: Pillow's antialiased bilinear resizing.

Run in a throw-away environment: pip install pillow numpy && python3 tests/golden/resize.py
Prints, a row per case, the image's sides, the region, the output's sides, FNV-1a of the output's
planes and the first four bytes of each plane.
"""
import numpy as np
from PIL import Image

CASES = [  # w, h, region (x, y, w, h), output (w, h)
    (61, 37, (0, 0, 61, 37), (24, 19)),
    (61, 37, (5, 3, 31, 30), (16, 16)),
    (13, 11, (0, 0, 13, 11), (32, 40)),
    (40, 30, (7, 2, 9, 28), (20, 20)),
    (200, 150, (11, 20, 160, 120), (32, 32)),
    (64, 64, (0, 0, 64, 64), (64, 20)),
    (300, 1, (0, 0, 300, 1), (7, 3)),
]


def pattern(w, h):
    x, y, c = np.arange(w), np.arange(h)[:, None], np.arange(3)[:, None, None]
    return ((x * 7 + y * 13 + c * 57 + x * y % 11) % 256).astype(np.uint8)


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


for w, h, (x, y, rw, rh), (ow, oh) in CASES:
    planes = []
    for plane in pattern(w, h):
        part = Image.fromarray(plane).crop((x, y, x + rw, y + rh))
        # Across first, then down: Pillow 13 on its own takes the order that costs less.
        part = part.resize((ow, rh), Image.BILINEAR).resize((ow, oh), Image.BILINEAR)
        planes.append(np.asarray(part))
    first = ", ".join("{%s}" % ", ".join(str(v) for v in p.ravel()[:4]) for p in planes)
    code = fnv1a(np.stack(planes).tobytes())
    print(f"    {{{w}, {h}, {{{x}, {y}, {rw}, {rh}}}, {ow}, {oh}, 0x{code:016x}, {{{first}}}}},")
