#!/usr/bin/env python3
"""Whole-network gradients and losses, stored and compared; and accuracies of narrow trainings.

golden/NAME.json holds, for a spec and some seeds, the gradient of the first step (every k-th
element, so that there are at most 4096) and the losses of ten steps, by the reference backend,
which adds in double. golden/accuracy.json holds the accuracies of the narrow trainings of
check.py by the cpu backend. Both are made from a build with oneDNN by

    tests/gpu/golden.py --programs BUILD [--data FOLDER]      deploy/gpu-check --golden does this

Two backends that round differently agree to about 1e-6 in the gradient unless some ReLU's input
lies between their roundings: then a thousandth or a hundredth of it is another's. So a case has
several seeds, on which the reference and the cpu backend do agree; fp32 must agree with them to
1e-5 on at least half, and to 5e-2 on all.
TF32 and bf16 flip ReLUs everywhere; their tolerances are twice and one and a half times what
PyTorch shows for the same networks (relative L2 0.1 and 0.35, cosine 0.94).
"""
import argparse
import array
import base64
import concurrent.futures
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile

import machine

FOLDER = machine.HERE / "golden"
SPEC = {
    "name": "golden",
    "model": {"width": 8, "classes": 10},
    "rpg": {"size": 4608},
    "data": {"size": 16, "train_count": 640, "eval_count": 64},
    "train": {"epochs": 1, "batch": 64, "lr": 0.001},
    "resources": {"threads": 1},
}
MOST = 4096

# name: what differs from SPEC, how many seeds, precisions
CASES = {
    "even": ([], 4, ("fp32", "tf32", "bf16")),
    "tile": (["rpg.index=tile", "rpg.size=9000"], 3, ("fp32", "bf16")),
    "dense": (["rpg.scope=none", "rpg.size=0"], 3, ("fp32", "bf16")),
    "block": (["rpg.scope=block", "rpg.size=0", "rpg.share=0.1"], 3, ("fp32",)),
    "shards": (["train.shard=16"], 3, ("fp32", "bf16")),
    "exact": (["train.exact=true", "train.shard=16"], 3, ("fp32",)),
    "imagenet": (
        ["model.stem=imagenet", "data.size=64", "train.batch=32"],
        3,
        ("fp32", "tf32", "bf16"),
    ),
}

# relative: gradient of most seeds, of every seed; loss of the first step, of ten
TOLERANCES = {
    "fp32": (1e-5, 5e-2, 1e-5, 5e-3),
    "tf32": (0.2, 0.2, 1e-3, 5e-3),
    "bf16": (0.5, 0.5, 3e-3, 2e-2),
}

# The trainings that must reach the cpu backend's accuracy, by set.
NARROW = {
    "name": "narrow",
    "model": {"width": 8},
    "rpg": {"size": 9216},
    "data": {"size": 32},
    "train": {"epochs": 4, "batch": 128, "shard": 128, "schedule": "cosine", "lr": 0.1},
}
POINTS = 0.05  # below the cpu backend's mean over seeds, which themselves are 4 points apart


def probe(programs, scratch, backend, seed, sets, limit, ranks=1):
    """Gradient of the first step and the losses of ten."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
    spec, gradient, losses = (folder / name for name in ("spec.json", "gradient", "losses"))
    spec.write_text(json.dumps(SPEC), encoding="utf-8")
    command = [programs.find("step_probe"), spec, gradient, losses]
    command += [f"backend.name={backend}", f"train.seed={seed}", *sets]
    if ranks > 1:
        command = programs.mpirun(ranks) + command
    done = machine.run(command, limit)
    if done.code != 0:
        raise RuntimeError(done.why())
    values = array.array("f", gradient.read_bytes())
    return values, [float(line) for line in losses.read_text(encoding="utf-8").split()]


def thinned(values):
    every = (len(values) + MOST - 1) // MOST
    return values[::every], every


def difference(a, b):
    """Relative L2; not a number where either holds one."""
    if len(a) != len(b):
        raise RuntimeError(f"{len(a)} elements of the gradient, {len(b)} were stored")
    norm = math.fsum(y * y for y in b)
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b)) / norm)


def worst(*values):
    """The greatest; a NaN is worse than anything, and max() would lose it."""
    return math.nan if any(math.isnan(x) for x in values) else max(values)


def load(name):
    try:
        return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except OSError as e:
        raise machine.NotRun(f"tests/gpu/golden/{name}.json is missing ({e.strerror})") from e


def compare(programs, scratch, backend, name, precision, limit):
    """One case against what is stored: (gradient differences, first loss, all losses), worst of
    the seeds each but the gradients', which are all there."""
    stored, gradients, first, ten = load(name), [], 0.0, 0.0
    sets = CASES[name][0] + ([] if precision == "fp32" else [f"train.precision={precision}"])
    # most of a probe's time is its start, and little of that is the device's
    with concurrent.futures.ThreadPoolExecutor(max(1, min(4, os.cpu_count() // 2))) as pool:
        probes = [pool.submit(probe, programs, scratch, backend, seed, sets, limit)
                  for seed in stored["seeds"]]
    for made, golden in zip(probes, stored["seeds"].values(), strict=True):
        gradient, losses = made.result()
        expected = array.array("f", base64.b64decode(golden["gradient"]))
        gradients.append(difference(gradient[:: stored["every"]], expected))
        apart = [abs(a - b) / abs(b) for a, b in zip(losses, golden["losses"], strict=True)]
        first, ten = worst(first, apart[0]), worst(ten, *apart)
    return gradients, first, ten


def verdict(gradients, first, ten, precision):
    """Whether all is within the tolerances; NaN never is."""
    most, every, one, all_ten = TOLERANCES[precision]
    within = sum(g <= most for g in gradients)
    good = 2 * within >= len(gradients) and all(g <= every for g in gradients)
    return good and first <= one and ten <= all_ten


# ---- making them ----


def store(path, value):
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    machine.say("golden", f"wrote {path}")


def make_case(programs, scratch, name):
    sets, count, _ = CASES[name]
    made, every, seed = {}, 1, 0
    while len(made) < count:
        seed += 1
        gradient, losses = probe(programs, scratch, "reference", seed, sets, 600)
        other, _ = probe(programs, scratch, "cpu", seed, sets, 600)
        if difference(other, gradient) > TOLERANCES["fp32"][0]:
            continue  # some ReLU is at its kink
        some, every = thinned(gradient)
        text = base64.b64encode(some.tobytes()).decode("ascii")
        made[str(seed)] = {"losses": losses, "gradient": text}
    store(
        FOLDER / f"{name}.json",
        {"made_by": "deploy/gpu-check --golden", "backend": "reference", "sets": sets, "every": every,
         "seeds": made},
    )


def train_narrow(programs, scratch, backend, data, seed, limit, sets=()):
    """Top-1 of the last epoch of a narrow training."""
    scratch = pathlib.Path(scratch)
    job, out = scratch / "narrow.json", scratch / f"narrow-{seed}-{len(list(scratch.iterdir()))}"
    job.write_text(json.dumps(NARROW), encoding="utf-8")
    command = [programs.find("ringtrain"), "train", job, "--backend", backend]
    for assignment in (f"out={out}", f"train.seed={seed}", *data, *sets):
        command += ["--set", assignment]
    done = machine.run(command, limit)
    if done.code != 0:
        raise RuntimeError(done.why())
    result = json.loads((out / "attempt-1" / "result.json").read_text(encoding="utf-8"))
    return result["final"]["top1"]


def make_accuracy(programs, scratch, data):
    path = FOLDER / "accuracy.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sets": {}}
    name = "cifar10" if data else "synthetic"
    top1 = [train_narrow(programs, scratch, "cpu", data, seed, 3600) for seed in (1, 2, 3)]
    stored |= {"made_by": "deploy/gpu-check --golden [--data FOLDER]", "backend": "cpu"}
    stored["sets"][name] = {"top1": top1, "mean": statistics.fmean(top1)}
    store(path, stored)


def main():
    parser = argparse.ArgumentParser(description="makes tests/gpu/golden")
    parser.add_argument("--programs", required=True, help="build folder")
    parser.add_argument("--only", action="append", choices=[*CASES, "accuracy"])
    parser.add_argument("--data", action="append", default=[], help="FIELD=VALUE of the real set")
    options = parser.parse_args()
    programs = machine.Programs(options.programs)
    with tempfile.TemporaryDirectory(prefix="ringmaster-golden.") as scratch:
        for name in options.only or [*CASES, "accuracy"]:
            if name == "accuracy":
                make_accuracy(programs, scratch, options.data)
            else:
                make_case(programs, scratch, name)


if __name__ == "__main__":
    try:
        main()
    except (machine.NotRun, RuntimeError) as e:
        machine.say("golden", str(e))
        sys.exit(5)
