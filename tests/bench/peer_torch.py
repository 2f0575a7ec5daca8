#!/usr/bin/env python3
"""The peer that Ringmaster's CPU figures are measured against: the paper's construction in PyTorch.

Every ring-backed convolution holds an int64 index into one shared ring and a float mask of signs,
and builds its weight in each forward pass as ring[index] * mask * alpha; autograd does the rest.
ResNet-18 with the CIFAR stem, SGD with momentum 0.9 and weight decay 5e-4, fp32. The data is one
batch that is in memory already. Prints one JSON object; every time is the median of the timed steps.

    peer_torch.py --mode contiguous|channels_last|compile [--threads 2] [--steps 5]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 peer_torch.py ...     held to AVX2
"""
import argparse
import json
import math
import resource
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Ring(nn.Module):
    """One vector of free parameters; the convolutions that draw from it register in order."""

    def __init__(self, size, out_max):
        super().__init__()
        self.sigma = math.sqrt(2.0 / (9 * out_max))
        self.weight = nn.Parameter(torch.randn(size) * self.sigma)
        self.convs = []

    def finalize(self, generator):
        """Even use: whole copies of 0..N-1, the rest without replacement, all shuffled."""
        total = sum(conv.elements for conv in self.convs)
        size = self.weight.numel()
        uses = [torch.arange(size)] * (total // size)
        uses.append(torch.randperm(size, generator=generator)[: total % size])
        uses = torch.cat(uses)[torch.randperm(total, generator=generator)]
        start = 0
        for conv in self.convs:
            conv.index = uses[start : start + conv.elements].clone()
            signs = torch.randint(0, 2, (conv.elements,), generator=generator)
            conv.mask = (2 * signs - 1).float()
            start += conv.elements


class RingConv2d(nn.Module):
    """A convolution without weights of its own."""

    def __init__(self, ring, inputs, outputs, kernel, stride):
        super().__init__()
        self.shape = (outputs, inputs, kernel, kernel)
        self.elements = outputs * inputs * kernel * kernel
        self.stride, self.padding = stride, kernel // 2
        self.alpha = math.sqrt(2.0 / (outputs * kernel * kernel)) / ring.sigma
        self.register_buffer("index", torch.empty(0, dtype=torch.int64))
        self.register_buffer("mask", torch.empty(0))
        ring.convs.append(self)
        object.__setattr__(self, "ring", ring)  # shared: no submodule of each

    def kernel(self):
        return (self.ring.weight[self.index] * self.mask * self.alpha).view(self.shape)

    def forward(self, x):
        return F.conv2d(x, self.kernel(), stride=self.stride, padding=self.padding)


class Block(nn.Module):
    def __init__(self, ring, inputs, outputs, stride):
        super().__init__()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                RingConv2d(ring, inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.conv1 = RingConv2d(ring, inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = RingConv2d(ring, outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, width, size, classes, seed):
        super().__init__()
        self.ring = Ring(size, 8 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width << stage
            blocks.append(Block(self.ring, inputs, outputs, 1 if stage == 0 else 2))
            blocks.append(Block(self.ring, outputs, outputs, 1))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)
        self.ring.finalize(torch.Generator().manual_seed(seed))

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


def milliseconds(work, warm_up, repeats):
    times = []
    for i in range(warm_up + repeats):
        start = time.perf_counter()
        work()
        if i >= warm_up:
            times.append(1000 * (time.perf_counter() - start))
    return times


def time_chain(net, repeats):
    """The ring's own operations alone: all kernels from the ring, and their gradients back to it."""
    ring = net.ring
    with torch.no_grad():
        expand = milliseconds(lambda: [conv.kernel() for conv in ring.convs], 2, repeats)
    gradients = [torch.randn(conv.shape) for conv in ring.convs]

    def reduce_once():
        kernels = [conv.kernel() for conv in ring.convs]
        start = time.perf_counter()
        torch.autograd.backward(kernels, gradients)
        taken = 1000 * (time.perf_counter() - start)
        ring.weight.grad = None
        return taken

    reduce = [reduce_once() for _ in range(repeats + 2)][2:]
    return statistics.median(expand), statistics.median(reduce)


def main():
    parser = argparse.ArgumentParser(description="PyTorch peer of Ringmaster's CPU figures")
    parser.add_argument("--mode", choices=["contiguous", "channels_last", "compile"], required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ring", type=int, default=2359296)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--chain", action="store_true", help="time the ring's operations alone too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    net = ResNet18(options.width, options.ring, 10, seed=1)
    images = torch.randn(options.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (options.batch,))
    if options.mode == "channels_last":
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(net) if options.mode == "compile" else net
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step():
        sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(run(images), labels)
        loss.backward()
        sgd.step()
        return loss

    loss = step().item()
    times = milliseconds(step, options.warm_up, options.steps)
    if not math.isfinite(step().item()):
        sys.exit("the peer's loss is not finite")
    result = {
        "program": "torch " + torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "mode": options.mode,
        "threads": options.threads,
        "batch": options.batch,
        "width": options.width,
        "ring": options.ring,
        "parameters": sum(p.numel() for p in net.parameters()),
        "first_loss": loss,
        "step_ms": statistics.median(times),
        "steps_ms": times,
        "images_per_second": 1000 * options.batch / statistics.median(times),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    if options.chain:
        result["expand_ms"], result["reduce_ms"] = time_chain(net, max(5, options.steps))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
