#!/usr/bin/env python3
"""The peers that Ringmaster's figures are measured against: the paper's construction in PyTorch.

Every ring-backed convolution holds an int64 index into one shared ring and a float mask of signs,
and builds its weight in each forward pass as ring[index] * mask * alpha; autograd does the rest.
ResNet-18 with the CIFAR stem, SGD with momentum 0.9 and weight decay 5e-4. Prints one JSON object;
every time is a median.

On the CPU, fp32, the data one batch that is in memory already:

    peer_torch.py --mode contiguous|channels_last|compile [--threads 2] [--steps 5]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 peer_torch.py ...     held to AVX2

On a GPU, one of these, with what each may use switched on (cudnn.benchmark everywhere):

    peer_torch.py --peer P1     the authors' modules as they are: fp32 with TF32 convolutions, NCHW,
                                the loss read after every step, as their main.py does
    peer_torch.py --peer P2     the same modules: channels_last, bf16 autocast, fused SGD
    peer_torch.py --peer P3     P2 under torch.compile (max-autotune, which captures CUDA graphs);
                                int32 indices through an embedding, already in the order that
                                channels_last convolutions want, signs and scale as one bf16 factor
    peer_torch.py --peer P4     the dense network under P3's settings
    peer_torch.py --peer P5     the ring's operations of P1 alone, forward and backward
    peer_torch.py --peer ops    single convolutions, norms and a copy, as P2 runs them

P1 to P4 train on a set of bytes that lies in the device's memory, cut, mirrored and normalised
there once an epoch; a measured window is --steps steps between two waits. --serve: says when it is
ready and measures a window for each line on stdin, so that a benchmark can interleave peers whose
compilation takes minutes. --cache keeps what TorchInductor and Triton compile. --smoke: a tiny
network; with --device cpu it runs anywhere.
"""
import argparse
import json
import math
import os
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


class EmbeddedConv2d(RingConv2d):
    """The same, in the form that compiles best: the index as int32, in the order O, kh, kw, I, so
    that the kernel is channels_last as it is made, and sign and scale in one factor."""

    def prepare(self):
        outputs, inputs, kernel, _ = self.shape

        def reorder(values):
            return values.view(self.shape).permute(0, 2, 3, 1).contiguous().view(-1)

        self.ordered = (outputs, kernel, kernel, inputs)
        self.index = reorder(self.index).to(torch.int32)
        self.mask = (reorder(self.mask) * self.alpha).to(torch.bfloat16)

    def kernel(self):
        values = F.embedding(self.index, self.ring.weight.view(-1, 1)).view(-1)
        return (values * self.mask).view(self.ordered).permute(0, 3, 1, 2)


class DenseConv2d(nn.Conv2d):
    """A convolution with weights of its own, called as RingConv2d is."""

    def __init__(self, _ring, inputs, outputs, kernel, stride):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    def __init__(self, conv, ring, inputs, outputs, stride):
        super().__init__()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                conv(ring, inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.conv1 = conv(ring, inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(ring, outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, width, size, classes, seed, conv=RingConv2d):
        super().__init__()
        self.ring = None if conv is DenseConv2d else Ring(size, 8 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width << stage
            blocks.append(Block(conv, self.ring, inputs, outputs, 1 if stage == 0 else 2))
            blocks.append(Block(conv, self.ring, outputs, outputs, 1))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)
        if self.ring:
            self.ring.finalize(torch.Generator().manual_seed(seed))
            for ring_conv in self.ring.convs:
                if isinstance(ring_conv, EmbeddedConv2d):
                    ring_conv.prepare()

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


# ---- the peers of the GPU figures ----


class Device:
    """Where a peer runs, and how to wait for it and to time it there."""

    def __init__(self, name):
        self.name = name
        self.cuda = name == "cuda"

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def milliseconds(self, work, repeats):
        """One call of `work`, from `repeats` of them in a row."""
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return 1000 * (time.perf_counter() - start) / repeats

    def median(self, work, rounds, target_ms=10.0):
        """Median milliseconds of a call, enough calls in a row to take target_ms."""
        self.milliseconds(work, 3)
        repeats = max(1, min(2000, int(target_ms / max(1e-4, self.milliseconds(work, 3)))))
        return statistics.median(self.milliseconds(work, repeats) for _ in range(rounds))

    def captured(self, work, repeats=20):
        """`work`, `repeats` times in a CUDA graph, as one call; None where that is impossible."""
        if not self.cuda:
            return None
        try:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    work()
            self.wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(repeats):
                    work()
            return graph.replay
        except RuntimeError:
            return None

    def median_captured(self, work, rounds, repeats=20):
        """As median, without what launching costs where the device can record `work`."""
        replay = self.captured(work, repeats)
        return self.median(replay, rounds) / repeats if replay else self.median(work, rounds)


class ResidentData:
    """A set of bytes in the device's memory; each epoch shuffles, cuts and mirrors it there."""

    def __init__(self, device, count, batch, dtype, channels_last):
        self.device, self.batch, self.dtype = device, batch, dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.padded = torch.zeros(count, 3, 40, 40, dtype=torch.uint8, device=device)
        self.padded[:, :, 4:36, 4:36] = torch.randint(
            0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=device
        )
        self.labels = torch.randint(0, 10, (count,), device=device)
        self.step = 0
        self.begin_epoch()

    def begin_epoch(self):
        count, at = len(self.padded), torch.arange(32, device=self.device)
        order = torch.randperm(count, device=self.device)
        self.epoch_labels = self.labels[order]
        self.images = torch.empty(
            count, 3, 32, 32, dtype=self.dtype, device=self.device, memory_format=self.format
        )
        plane = torch.arange(3, device=self.device).view(1, 3, 1, 1)
        for first in range(0, count, 5000):
            some = order[first : first + 5000]
            corner = torch.randint(0, 9, (2, len(some), 1), device=self.device)
            mirrored = torch.randint(0, 2, (len(some), 1), device=self.device).bool()
            rows, columns = corner[0] + at, corner[1] + torch.where(mirrored, 31 - at, at)
            cut = self.padded[
                some.view(-1, 1, 1, 1), plane, rows.view(-1, 1, 32, 1), columns.view(-1, 1, 1, 32)
            ]
            self.images[first : first + 5000] = (cut.to(self.dtype) - 121.0) / 64.0

    def next(self):
        first = self.step * self.batch
        if first + self.batch > len(self.padded):
            self.begin_epoch()
            first = self.step = 0
        self.step += 1
        return self.images[first : first + self.batch], self.epoch_labels[first : first + self.batch]


class Trainer:
    """P1 to P4: one training step at a time."""

    def __init__(self, options, device):
        conv = {"P3": EmbeddedConv2d, "P4": DenseConv2d}.get(options.peer, RingConv2d)
        net = ResNet18(options.width, options.ring, 10, seed=1, conv=conv).to(device.name)
        self.as_is = options.peer == "P1"
        self.compiled = options.peer in ("P3", "P4")
        if not self.as_is:
            net = net.to(memory_format=torch.channels_last)
        dtype = torch.float32 if self.as_is else torch.bfloat16
        self.data = ResidentData(device.name, options.images, options.batch, dtype, not self.as_is)
        fused = {"fused": True} if device.cuda and not self.as_is else {}
        self.sgd = torch.optim.SGD(
            net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, **fused
        )
        self.parameters = sum(p.numel() for p in net.parameters())

        def loss_of(images, labels):
            if self.as_is:
                return F.cross_entropy(net(images), labels)
            with torch.autocast(device.name, dtype=torch.bfloat16):
                return F.cross_entropy(net(images), labels)

        self.loss_of = loss_of
        if options.compile_mode == "cudagraphs":  # needs no compiler
            how = {"backend": "cudagraphs"}
        else:
            how = {"mode": options.compile_mode}
        if self.compiled:
            self.loss_of = torch.compile(loss_of, **how)
        self.mark = device.cuda and self.compiled

    def step(self):
        images, labels = self.data.next()
        if self.mark:
            torch.compiler.cudagraph_mark_step_begin()
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss_of(images, labels)
        loss.backward()
        self.sgd.step()
        return loss.item() if self.as_is else loss.detach()


def describe(options, device):
    result = {
        "program": "torch " + torch.__version__,
        "peer": options.peer,
        "device": torch.cuda.get_device_name() if device.cuda else "cpu",
        "batch": options.batch,
        "width": options.width,
        "ring": options.ring,
    }
    if device.cuda:
        result |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return result


def measure_training(options, device, began):
    trainer = Trainer(options, device)
    trainer.step()
    device.wait()
    first = time.monotonic() - began
    for _ in range(options.warm_up):
        trainer.step()
    device.wait()
    result = describe(options, device) | {
        "parameters": trainer.parameters,
        "compile_mode": options.compile_mode if trainer.compiled else None,
        "first_step_s": first,
        "ready_s": time.monotonic() - began,
    }

    def window():
        ms = device.milliseconds(trainer.step, options.steps)
        return {"step_ms": ms, "images_per_second": 1000 * options.batch / ms}

    if options.serve:
        print(json.dumps(result | {"ready": True}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(window()), flush=True)
        return None
    windows = [window() for _ in range(options.windows)]
    loss = float(trainer.step())
    if not math.isfinite(loss):
        result["warning"] = "the loss is not finite (random labels and a high rate)"
    result["windows"] = windows
    result["step_ms"] = statistics.median(w["step_ms"] for w in windows)
    return result | {"images_per_second": 1000 * options.batch / result["step_ms"]}


def measure_chain(options, device):
    """P5. `graph`: the same, recorded, without what its launches cost; null where not recordable."""
    net = ResNet18(options.width, options.ring, 10, seed=1).to(device.name)
    ring, rounds = net.ring, options.windows
    gradients = [torch.randn(conv.shape, device=device.name) for conv in ring.convs]

    def forward():
        with torch.no_grad():
            return [conv.kernel() for conv in ring.convs]

    kernels = [conv.kernel() for conv in ring.convs]

    def backward():
        ring.weight.grad = None
        torch.autograd.backward(kernels, gradients, retain_graph=True)

    result = describe(options, device)
    for name, work in (("forward", forward), ("backward", backward)):
        result[f"{name}_us"] = 1000 * device.median(work, rounds)
        replay = device.captured(work, 5)
        result[f"{name}_graph_us"] = 1000 * device.median(replay, rounds) / 5 if replay else None
    return result


def conv_shapes(batch, width):
    """(name, input, outputs, kernel, stride), the names as in gpu_ops.c."""
    shapes, side, inputs = [("stem", (batch, 3, 32, 32), width, 3, 1)], 32, width
    for layer in range(4):
        outputs = width << layer
        if layer:
            x = (batch, inputs, side, side)
            shapes.append((f"layer{layer + 1} shortcut", x, outputs, 1, 2))
            shapes.append((f"layer{layer + 1} first", x, outputs, 3, 2))
            side //= 2
        shapes.append((f"layer{layer + 1}", (batch, outputs, side, side), outputs, 3, 1))
        inputs = outputs
    return shapes


def measure_convs(options, device):
    """The convolutions of a step, each pass alone, in bf16 and channels_last; the stem's gradient of
    its input is nobody's."""
    rows = []

    def tensor(shape):
        x = torch.randn(shape, device=device.name).to(torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last)

    for name, shape, outputs, kernel, stride in conv_shapes(options.batch, options.width):
        x, w = tensor(shape), tensor((outputs, shape[1], kernel, kernel))
        place = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), False, (0, 0), 1)

        def forward():
            return torch.ops.aten.convolution(x, w, None, *place)

        dy = torch.randn_like(forward())

        def backward(*wanted):
            return torch.ops.aten.convolution_backward(dy, x, w, None, *place, wanted)

        passes = {
            "conv forward": forward,
            "conv backward weights": lambda: backward(False, True, False),
            "conv backward data": lambda: backward(True, False, False),
        }
        flops = 2.0 * dy.numel() * shape[1] * kernel * kernel
        for what, work in passes.items():
            if what == "conv backward data" and name == "stem":
                continue
            us = 1000 * device.median_captured(work, options.windows)
            rows.append({"what": what, "name": name, "us": us, "teraflops": flops / us / 1e6})
    return rows


def measure_norms(options, device):
    """Norm, add and ReLU as P2 has them (three operations), forward and backward, and compiled."""
    rows = []
    for layer in range(4):
        shape = (options.batch, options.width << layer, 32 >> layer, 32 >> layer)

        def tensor(grad=True):
            x = torch.randn(shape, device=device.name).to(torch.bfloat16)
            return x.contiguous(memory_format=torch.channels_last).requires_grad_(grad)

        x, residual, dy = tensor(), tensor(), tensor(False)
        norm = nn.BatchNorm2d(shape[1]).to(device.name)

        def forward():
            return F.relu(norm(x) + residual)

        runs = {"eager": forward}
        if not options.smoke:
            runs["compiled"] = torch.compile(forward)
        for kind, run in runs.items():
            y = run()

            def backward():
                torch.autograd.grad(y, (x, residual, norm.weight, norm.bias), dy, retain_graph=True)

            passes = (("bn forward", run, 4), ("bn backward", backward, 6))
            for what, work, count in passes:
                us = 1000 * device.median(work, options.windows)
                rows.append({
                    "what": what,
                    "name": f"layer{layer + 1} bn add relu {kind}",
                    "us": us,
                    "gigabytes_per_second": count * 2 * x.numel() / us / 1e3,
                })
    return rows


def measure_ops(options, device):
    bytes_moved = (1 << 24) if options.smoke else (1 << 30)
    source = torch.zeros(bytes_moved, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    us = 1000 * device.median(lambda: target.copy_(source), options.windows)
    copy = {"what": "copy", "name": "device memory", "us": us,
            "gigabytes_per_second": 2 * bytes_moved / us / 1e3}
    del source, target
    rows = [copy] + measure_convs(options, device) + measure_norms(options, device)
    return describe(options, device) | {"rows": rows}


def run_peer(options):
    began = time.monotonic()
    device = Device(options.device)
    if options.smoke:
        options.width, options.batch, options.ring = 8, 16, 36864
        options.steps, options.windows, options.warm_up, options.images = 2, 2, 1, 64
        options.compile_mode = "default"
    if device.cuda and not torch.cuda.is_available():
        sys.exit("peer_torch: no CUDA device (or --device cpu --smoke to rehearse)")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(1)
    if options.peer == "P5":
        return measure_chain(options, device)
    if options.peer == "ops":
        return measure_ops(options, device)
    return measure_training(options, device, began)


def run_mode(options):
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
    return result


def main():
    parser = argparse.ArgumentParser(description="PyTorch peers of Ringmaster's figures")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--mode", choices=["contiguous", "channels_last", "compile"])
    which.add_argument("--peer", choices=["P1", "P2", "P3", "P4", "P5", "ops"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ring", type=int, default=2359296)
    parser.add_argument("--steps", type=int, default=5, help="timed steps (of a window)")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--chain", action="store_true", help="time the ring's operations alone too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="of --peer")
    parser.add_argument("--windows", type=int, default=7, help="of --peer: how often it is timed")
    parser.add_argument("--images", type=int, default=50000, help="of --peer: the set")
    parser.add_argument("--compile-mode", default="max-autotune",
                        help="of P3 and P4; cudagraphs: recorded only, nothing compiled")
    parser.add_argument("--cache", help="of --peer: folder for compiled code")
    parser.add_argument("--serve", action="store_true", help="of --peer: a window for each line")
    parser.add_argument("--smoke", action="store_true", help="of --peer: tiny")
    options = parser.parse_args()
    if options.cache:
        folder = os.path.abspath(options.cache)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
        os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "triton")
    result = run_peer(options) if options.peer else run_mode(options)
    if result:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
