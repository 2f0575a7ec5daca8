#!/usr/bin/env python3
"""Measures the GPU figures and writes tests/bench/results/DATE-DEVICE-cuda-PHASES.{json,md}.

Run by `deploy/bench --cuda --phase X`; each phase takes under 8 minutes on one H200. Ours and its
peers run interleaved within a phase, round after round; a ratio is taken within each round, and a
figure is the median over the rounds, beside the least and the greatest. Our plans are tuned once a
batch size, before the rounds. Peers that compile are started once and measured whenever their turn
comes. Standard library only; PyTorch is the peers' (--torch PYTHON).

    unknowns   random gathers from rings of several sizes, tiles, copy bandwidth
    ops        expand, reduce, batch norm and convolutions, against P5 and PyTorch's
    train512   the ring network at batch 512 against P1, P2, P3, and our own dense one
    train128   the same at batch 128, without P1
    dense      our dense network against P4, at both
    start      from the start of the process to the first step, plans cold and cached
    wire       floats on the wire a step against dense
    phases     the step by phase
"""
import argparse
import datetime
import json
import os
import pathlib
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "gpu"))
import machine  # noqa: E402

GFLOP_PER_IMAGE = 3.329  # trained: forward, backward of data and of weights
FLOOR_IMAGES = 143000  # a second, on an H200 (PERFORMANCE 8)
SIZES = (2359296, 100000, 36864, 8192)
READY_LIMIT_S = 300


def peer_environment():
    """PyTorch brings its own libraries: it gets the path that there was before ours was set."""
    path = os.environ.get("PEER_LIBRARY_PATH")
    return {} if path is None else {"LD_LIBRARY_PATH": path}


class Failed(Exception):
    """A program that did not end well."""


class Served:
    """A peer that stays: it says when it is ready and measures a window when asked."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            [str(c) for c in command],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ready = None

    def read(self, limit):
        """The next JSON line. One line at a time is asked for, so none waits in a buffer."""
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.process.stdout], [], [], left)[0]:
                break
            line = self.process.stdout.readline()
            if not line:
                raise Failed(f"a peer ended with exit code {self.process.wait()}")
            if line.startswith("{"):
                return json.loads(line)
        raise Failed(f"a peer said nothing for {limit:.0f} s")

    def window(self):
        try:
            self.process.stdin.write("window\n")
            self.process.stdin.flush()
        except OSError as e:
            raise Failed(f"a peer is gone ({e.strerror})") from e
        return self.read(120)

    def close(self):
        machine.end_group(self.process)
        self.process.wait()


class Bench:
    """Runs the programs and keeps their command lines."""

    def __init__(self, options, scratch):
        self.options, self.smoke = options, options.smoke
        self.rounds = 1 if options.smoke else options.rounds
        self.programs = machine.Programs(options.programs)
        self.scratch = pathlib.Path(scratch)
        self.cache = pathlib.Path(options.cache) if options.cache else self.scratch / "cache"
        self.plans, self.commands, self.served = {}, [], {}
        self.hidden = {str(options.torch or "python3"): "python", str(self.cache): "CACHE",
                       str(self.scratch): "SCRATCH", str(self.programs.folder) + "/": "",
                       str(machine.ROOT) + "/": ""}

    def show(self, command):
        shown = " ".join(str(c) for c in command)
        for path, name in self.hidden.items():
            shown = shown.replace(path, name)
        if shown not in self.commands:
            self.commands.append(shown)
        machine.say("bench", shown)

    def run(self, command, limit=400, environment=None):
        self.show(command)
        spawned = time.monotonic()
        done = machine.run(command, limit, {"RINGMASTER_CACHE": str(self.cache / "plans"),
                                            **(environment or {})})
        result = machine.json_of(done.out)
        if done.code != 0 or result is None:
            raise Failed(f"{pathlib.Path(str(command[0])).name}: {done.why()}")
        return {**result, "spawned_monotonic_s": spawned}

    # -- ours --

    def precision(self):
        return "bf16" if self.options.backend == "cuda" else "fp32"

    def ours(self, batch, *sets, steps=None, warmup=None, plan=None, environment=None):
        """`ringtrain bench` of one job; the plan is the tuned one of its batch size."""
        small = ["model.width=8", "rpg.size=36864", "data.train_count=64", "data.size=16"]
        batch = 16 if self.smoke else batch
        fields = [f"train.batch={batch}", f"train.precision={self.precision()}",
                  "data.train_count=25600", "data.eval_count=64", *(small if self.smoke else []),
                  f"backend.plan={plan or self.plan(batch)}", *sets]
        fields += ["resources.threads=1"] if self.smoke else []
        command = [self.programs.find("ringtrain"), "bench", HERE / "job.json", "--json"]
        command += ["--backend", self.options.backend]
        command += ["--steps", steps or (2 if self.smoke else 300)]
        command += ["--warmup", (1 if self.smoke else 60) if warmup is None else warmup]
        for field in fields:
            command += ["--set", field]
        result = self.run(command, environment=environment)
        # of all steps, as the peers' windows are: a median would leave the ends of epochs out
        result["images_per_second"] = 1000 * batch / statistics.fmean(result["steps_ms"])
        return result

    def plan(self, batch):
        """The file of the tuned plan of a batch size; made when first asked for."""
        if batch not in self.plans:
            self.plans[batch] = self.scratch / f"plan-{batch}.json"
            tuned = self.ours(batch, plan="tune", steps=2, warmup=1)
            self.plans[batch].write_text(json.dumps(tuned["plan"]), encoding="utf-8")
        return self.plans[batch]

    def ops(self, what, batch=512, plan="tune", write=None):
        command = [self.programs.find("gpu_ops"), "--backend", self.options.backend, "--what", what]
        command += ["--precision", self.precision(), "--plan", plan, "--cache", self.cache / "plans"]
        command += ["--write-plan", write] if write else []
        small = ["--batch", 2, "--width", 8, "--rounds", 1, "--target-ms", 1]
        (self.cache / "plans").mkdir(parents=True, exist_ok=True)
        return self.run(command + (small if self.smoke else ["--batch", batch]))

    # -- peers --

    def peer_command(self, peer, batch=512):
        if not self.options.torch:
            raise machine.NotRun("no PyTorch was given (--torch)")
        command = [self.options.torch, HERE / "peer_torch.py", "--peer", peer, "--batch", batch]
        command += ["--cache", self.cache / "torch"]
        if self.smoke:
            command += ["--smoke", "--device", "cuda" if self.options.backend == "cuda" else "cpu"]
        return command

    def peer(self, peer, *more, batch=512):
        return self.run([*self.peer_command(peer, batch), *more], environment=peer_environment())

    def serve(self, peer, batch):
        """Starts a peer, or finds it running. Where max-autotune is not done in time, or cannot
        be, the peer is tried again with what is easier; which one it was is on record."""
        if (peer, batch) in self.served:
            return self.served[peer, batch]
        command = self.peer_command(peer, batch) + ["--serve", "--steps", 20 if peer == "P1" else 50]
        command += ["--warm-up", 20]
        modes = [[]]
        if peer in ("P3", "P4") and not self.smoke:
            modes += [["--compile-mode", mode] for mode in ("reduce-overhead", "cudagraphs")]
        for mode in modes:
            self.show(command + mode)
            served = Served(command + mode, peer_environment())
            try:
                served.ready = served.read(READY_LIMIT_S if mode is modes[0] else 120)
                self.served[peer, batch] = served
                return served
            except Failed as e:
                served.close()
                machine.say("bench", f"{peer}: {e}")
                why = e
        raise Failed(f"{peer}: {why}")

    def close(self):
        for served in self.served.values():
            served.close()
        self.served = {}


# ---- the phases: each gives its raw results ----


def attempt(raw, name, program):
    """One result into raw[name]; what cannot be run says so there, and the others go on."""
    try:
        result = program()
    except (Failed, machine.NotRun, OSError) as e:
        machine.say("bench", f"{name}: {e}")
        result = {"failed": str(e)}
    raw.setdefault(name, []).append(result)
    return result


def phase_unknowns(bench, raw):
    attempt(raw, "gather", lambda: bench.run([bench.programs.find("gpu_gather")]))


def phase_ops(bench, raw):
    plan = bench.scratch / "ops-plan.json"
    attempt(raw, "ops", lambda: bench.ops("all", write=plan))
    given = str(plan) if plan.exists() else "default"
    attempt(raw, "peer_ops", lambda: bench.peer("ops"))
    attempt(raw, "P5", lambda: bench.peer("P5"))
    for side in ("cudnn", "own"):
        forced = force_norms(plan, bench.scratch / f"{side}.json", side)
        if forced:
            attempt(raw, f"bn_{side}", lambda path=forced: bench.ops("bn", plan=path))
    for _ in range(max(1, min(3, bench.rounds)) - 1):
        attempt(raw, "ops", lambda: bench.ops("all", plan=given))
        attempt(raw, "peer_ops", lambda: bench.peer("ops"))
        attempt(raw, "P5", lambda: bench.peer("P5"))


def force_norms(plan, path, side):
    """The plan with every batch norm on one side; None where the plan says nothing of them."""
    text = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else {}
    if not text.get("batch_norm"):
        return None
    text["batch_norm"] = dict.fromkeys(text["batch_norm"], side)
    path.write_text(json.dumps(text), encoding="utf-8")
    return str(path)


def phase_train(bench, raw, batch, peers):
    for peer in peers:
        attempt(raw, f"{peer}_ready", lambda peer=peer: bench.serve(peer, batch).ready)
    kinds = {"even": (), "tile": ("rpg.index=tile",), "dense": ("rpg.scope=none", "rpg.size=0")}
    for _ in range(bench.rounds):
        for name, sets in kinds.items():
            attempt(raw, name, lambda sets=sets: bench.ours(batch, *sets))
        for peer in peers:
            attempt(raw, peer, lambda peer=peer: window_of(bench, peer, batch))
    bench.close()


def window_of(bench, peer, batch):
    if (peer, batch) not in bench.served:
        raise Failed("it did not start")
    return bench.served[peer, batch].window()


def phase_dense(bench, raw):
    for batch in (512, 128):
        attempt(raw, f"P4_ready_{batch}", lambda batch=batch: bench.serve("P4", batch).ready)
        for _ in range(bench.rounds):
            attempt(raw, f"dense_{batch}",
                    lambda batch=batch: bench.ours(batch, "rpg.scope=none", "rpg.size=0"))
            attempt(raw, f"P4_{batch}", lambda batch=batch: window_of(bench, "P4", batch))
        bench.close()


def random_cifar(folder):
    """CIFAR-10's files at full size, of random bytes."""
    folder.mkdir(exist_ok=True)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        with open(folder / name, "wb") as f:
            for _ in range(10):
                image = os.urandom(3072)
                f.write(b"".join(bytes([k % 10]) + image for k in range(1000)))
    return folder


def phase_start(bench, raw):
    data = []
    if not bench.smoke:
        data = ["data.kind=cifar10", f"data.path={random_cifar(bench.scratch / 'cifar10')}"]
    one = {"steps": 1, "warmup": 0, "plan": "default"}
    for number in range(2):
        cold = bench.scratch / f"cold-{number}"
        place = {"RINGMASTER_CACHE": str(cold), "XDG_CACHE_HOME": str(cold)}
        for name, count in (("cold", 1), ("cached", max(1, bench.rounds // 2 + 1))):
            for _ in range(count):
                attempt(raw, name, lambda: bench.ours(512, *data, **one, environment=place))
    attempt(raw, "P3_again", lambda: bench.peer("P3", "--windows", 1, "--steps", 5))


def phase_wire(bench, raw):
    ringtrain = bench.programs.find("ringtrain")
    for size in SIZES:
        for classes in (10, 100):
            command = [ringtrain, "info", HERE / "job.json", "--json"]
            command += ["--set", f"rpg.size={size}", "--set", f"model.classes={classes}"]
            attempt(raw, f"{size}, {classes} classes", lambda command=command: bench.run(command))


def phase_phases(bench, raw):
    for batch in (512, 128):
        attempt(raw, f"step_{batch}", lambda batch=batch: bench.ours(batch))
        attempt(raw, f"ops_{batch}", lambda batch=batch: bench.ops("all", batch))


PHASES = {
    "unknowns": phase_unknowns,
    "ops": phase_ops,
    "train512": lambda bench, raw: phase_train(bench, raw, 512, ("P3", "P1", "P2")),
    "train128": lambda bench, raw: phase_train(bench, raw, 128, ("P3", "P2")),
    "dense": phase_dense,
    "start": phase_start,
    "wire": phase_wire,
    "phases": phase_phases,
}


# ---- the figures, from the raw results alone ----


def over_rounds(raw, figure, *names):
    """`figure` of what the programs gave in a round: median, least and greatest."""
    values = []
    for results in zip(*(raw.get(name, []) for name in names)):
        if any("failed" in r for r in results):
            continue
        value = figure(*results)
        if value is not None:
            values.append(value)
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speed(result):
    return result["images_per_second"]


def row(result, what, name):
    """Microseconds of an op; None where it was not measured."""
    found = [r for r in result["rows"] if r["what"] == what and r["name"] == name]
    return found[0] if found else None


def us(result, what, name):
    found = row(result, what, name)
    return found["us"] if found else None


def ratio(above, below):
    return above / below if above and below else None


def train_rows(raw, batch, targets):
    rows = [(f"images/s, batch {batch}, even", over_rounds(raw, speed, "even"), "{:.0f}", None)]
    rows += [(f"images/s, batch {batch}, {name}", over_rounds(raw, speed, name), "{:.0f}", None)
             for name in ("tile", "dense", "P1", "P2", "P3") if name in raw]
    rows.append((f"of the floor of {FLOOR_IMAGES} images/s",
                 over_rounds(raw, lambda r: speed(r) / FLOOR_IMAGES, "even"), "{:.1%}", None))
    rows.append(("TFLOP/s of the step",
                 over_rounds(raw, lambda r: speed(r) * GFLOP_PER_IMAGE / 1e3, "even"), "{:.0f}", None))
    for peer, goal in targets["peers"].items():
        rows.append((f"batch {batch} against {peer}",
                     over_rounds(raw, lambda a, b: speed(a) / speed(b), "even", peer), "{:.2f}x", goal))
    for kind, goal in targets["overhead"].items():
        rows.append((f"batch {batch}, ring step over our dense step, {kind}",
                     over_rounds(raw, lambda a, b: speed(b) / speed(a) - 1, kind, "dense"),
                     "{:.1%}", -goal))
    return rows


def p5_us(result, which):
    """The faster of the chain as it is and the chain recorded."""
    times = [result.get(f"{which}_us"), result.get(f"{which}_graph_us")]
    return min((t for t in times if t), default=None)


def ring_rows(raw):
    rows = []
    for kind, goals in (("even", (2, 5)), ("tile", (10, 20))):
        for what, which, goal in (("expand", "forward", goals[0]), ("reduce", "backward", goals[1])):
            rows.append((f"{what} against P5, {kind}", over_rounds(
                raw, lambda o, p, w=what, k=kind, d=which: ratio(
                    p5_us(p, d), us(o, w, f"{k} 2359296")), "ops", "P5"), "{:.1f}x", goal))
            rows.append((f"{what}, {kind}, us", over_rounds(
                raw, lambda o, w=what, k=kind: us(o, w, f"{k} 2359296"), "ops"), "{:.1f}", None))
        for size in (36864, 8192):
            def both(o, n, k=kind):
                a, b = us(o, "expand", f"{k} {n}"), us(o, "reduce", f"{k} {n}")
                return a + b if a and b else None

            rows.append((f"expand + reduce at N = {size} over that at 2359296, {kind}", over_rounds(
                raw, lambda o, n=size, f=both: ratio(f(o, n), f(o, 2359296)), "ops"),
                "{:.2f}x", -1.0))
    return rows


def norm_rows(raw):
    """Of copy bandwidth, at 64 channels, 32x32, batch 512, by the side that the plan chose and by
    each side alone."""
    rows = []
    name = "layer1 bn add relu"
    for program, label, goal in (("ops", "tuned", 0.75), ("bn_cudnn", "cuDNN's", None),
                                 ("bn_own", "ours", None)):
        for what in ("bn forward", "bn backward"):
            def share(o, copies, w=what):
                norm, copy = row(o, w, name), row(copies, "copy", "device memory")
                return ratio(norm and norm["gigabytes_per_second"],
                             copy and copy["gigabytes_per_second"])

            rows.append((f"{what} + add + ReLU of copy bandwidth, {label}",
                         over_rounds(raw, share, program, "ops"), "{:.1%}", goal))
    for what in ("bn forward", "bn backward"):
        rows.append((f"{what} + add + ReLU against PyTorch's", over_rounds(
            raw, lambda o, p, w=what: ratio(us(p, w, f"{name} eager"), us(o, w, name)),
            "ops", "peer_ops"), "{:.2f}x", None))
    return rows


def conv_rows(raw):
    def pairs(o, p):
        for r in o["rows"]:
            theirs = us(p, r["what"], r["name"]) if r["what"].startswith("conv ") else None
            if theirs:
                yield r["count"], r["us"], theirs

    def whole(o, p):
        found = list(pairs(o, p))
        return ratio(sum(c * t for c, _, t in found), sum(c * a for c, a, _ in found))

    def least(o, p):
        return min((t / a for _, a, t in pairs(o, p)), default=None)

    def rate(o):
        convs = [r for r in o["rows"] if r["what"].startswith("conv ")]
        work = sum(r["count"] * r["us"] * r["teraflops"] for r in convs)
        return ratio(work, sum(r["count"] * r["us"] for r in convs))

    return [
        ("all convolutions of a step against PyTorch's", over_rounds(raw, whole, "ops", "peer_ops"),
         "{:.3f}x", 0.98),
        ("the slowest of them against PyTorch's", over_rounds(raw, least, "ops", "peer_ops"),
         "{:.3f}x", 0.98),
        ("TFLOP/s of the convolutions", over_rounds(raw, rate, "ops"), "{:.0f}", None),
    ]


def start_rows(raw):
    def to_first_step(r):
        return r["first_step_monotonic_s"] - r["spawned_monotonic_s"]

    return [
        ("start to first step, plans cached, seconds", over_rounds(raw, to_first_step, "cached"),
         "{:.2f}", -3.0),
        ("start to first step, plans cold, seconds", over_rounds(raw, to_first_step, "cold"),
         "{:.2f}", -60.0),
        ("P3 started again, its cache warm, to the end of its first step, seconds",
         over_rounds(raw, lambda r: r["first_step_s"], "P3_again"), "{:.1f}", None),
    ]


def wire_rows(raw):
    rows = []
    for name in raw:
        def formula(r):
            direct = r["stem"] + r["bn"] + r["fc"]
            exact = (r["wire"] == r["ring"] + direct + r["statistics"]
                     and r["wire_dense"] == r["generated"] + direct + r["statistics"])
            return r["wire_dense"] / r["wire"] if exact else 0.0

        rows.append((f"fewer floats on the wire, N = {name} (0: not the formula)",
                     over_rounds(raw, formula, name), "{:.2f}x", 1.0))
    return rows


def unknown_rows(raw):
    rows = []
    for result in raw.get("gather", []):
        for r in result.get("rows", []):
            value = r["giga_gathers_per_second"] or r["gigabytes_per_second"]
            unit = "G gathers/s" if r["giga_gathers_per_second"] else "GB/s"
            rows.append((f"{r['what']}, {r['type']}, {r['n']}: {r['us']:.1f} us, {unit}",
                         {"median": value, "min": value, "max": value}, "{:.1f}", None))
    return rows


def phase_rows(raw):
    """The step as measured, and the sums of its ops as each runs alone."""
    rows = []
    for batch in (512, 128):
        for result in raw.get(f"step_{batch}", []):
            phases = {**result.get("phases_ms", {}), "whole": result.get("step_ms")}
            rows += [(f"batch {batch}, step, {name}, ms", alone(ms), "{:.3f}", None)
                     for name, ms in phases.items() if ms is not None]
        for result in raw.get(f"ops_{batch}", []):
            sums = {}
            for r in result.get("rows", []):
                if r["what"] in ("expand", "reduce") and r["name"] != "even 2359296":
                    continue
                sums[r["what"]] = sums.get(r["what"], 0) + r["count"] * r["us"] / 1e3
            sums["all ops"] = sum(sums.values())
            rows += [(f"batch {batch}, ops alone, {name}, ms", alone(ms), "{:.3f}", None)
                     for name, ms in sums.items() if name != "copy"]
    return rows


def alone(value):
    return {"median": value, "min": value, "max": value}


def figures_of(raw):
    """{phase: [(figure, values, format, goal)]}; a goal below zero is an upper bound."""
    targets = {
        512: {"peers": {"P1": 3, "P2": 1.6, "P3": 1.15}, "overhead": {"even": 0.04, "tile": 0.01}},
        128: {"peers": {"P2": 2.5, "P3": 1.25}, "overhead": {"even": 0.12, "tile": 0.03}},
    }
    made = {}
    for phase, results in raw.items():
        if phase.startswith("train"):
            made[phase] = train_rows(results, int(phase[5:]), targets[int(phase[5:])])
        elif phase == "ops":
            made[phase] = ring_rows(results) + norm_rows(results) + conv_rows(results)
        elif phase == "dense":
            made[phase] = [(f"batch {b}, our dense against P4", over_rounds(
                results, lambda a, p: speed(a) / speed(p), f"dense_{b}", f"P4_{b}"), "{:.2f}x", None)
                for b in (512, 128)]
        else:
            rows = {"start": start_rows, "wire": wire_rows, "unknowns": unknown_rows,
                    "phases": phase_rows}
            made[phase] = rows[phase](results)
    return made


# ---- the report ----


def judged(values, form, goal):
    if goal is None:
        return ""
    text = ("at least " if goal > 0 else "at most ") + form.format(abs(goal))
    if not values:
        return text
    met = values["median"] >= goal if goal > 0 else values["median"] <= -goal
    return f"{text}: {'met' if met else 'MISSED'}"


def table(figures):
    lines = ["| figure | median (least..greatest) | target |", "|---|---|---|"]
    for phase, rows in figures.items():
        lines.append(f"| **{phase}** | | |")
        for name, values, form, goal in rows:
            shown = "not measured"
            if values:
                shown = form.format(values["median"])
                if values["min"] != values["max"]:
                    shown += f" ({form.format(values['min'])}..{form.format(values['max'])})"
            lines.append(f"| {name} | {shown} | {judged(values, form, goal)} |")
    return "\n".join(lines)


def failures(raw):
    return [f"{phase}, {name}: {r['failed']}" for phase, results in raw.items()
            for name, runs in results.items() for r in runs if "failed" in r]


def report(result):
    device, host = result["device"], result["host"]
    lines = [
        f"# GPU figures, {result['date']}",
        "",
        f"{device.get('device', 'no GPU')}, driver {device.get('driver', 'unknown')}, CUDA "
        f"{device.get('runtime_cuda', 'unknown')}; {host['cpu']}, {host['cores']} cores. ResNet-18 "
        f"with the CIFAR stem, width 64, {result['precision']}, N = 2,359,296, "
        f"{result['rounds']} interleaved rounds; ratios are taken within a round.",
        "",
        table(result["figures"]),
        "",
        f"Made by `{result['command']}` at {result['revision']}. PyTorch: "
        f"{result['torch'] or 'not measured'}. Libraries: {result['libraries'] or 'see the plans'}.",
        "",
    ]
    modes = {f"{r['peer']}, batch {r['batch']}: {r['compile_mode']}, ready after {r['ready_s']:.0f} s"
             for results in result["raw"].values() for runs in results.values() for r in runs
             if r.get("compile_mode")}
    lines += [*(f"- {line}" for line in sorted(modes)), ""] if modes else []
    bad = failures(result["raw"])
    if bad:
        lines += ["Not measured:", "", *(f"- {line}" for line in bad), ""]
    lines += ["Programs run:", "", *(f"    {command}" for command in result["commands"]), ""]
    return "\n".join(lines)


def libraries_of(bench):
    """What the backend says of itself: its plan without the engines of shapes."""
    try:
        done = machine.run([bench.programs.find("backend_probe"), bench.options.backend], 60)
    except machine.NotRun:
        return None
    plan = (machine.json_of(done.out) or {}).get("plan") or {}
    return {k: v if not isinstance(v, dict) else v.get("version") for k, v in plan.items()}


def torch_of(raw):
    for results in raw.values():
        for runs in results.values():
            for r in runs:
                if str(r.get("program", "")).startswith("torch"):
                    return f"{r['program']}, cuDNN {r.get('cudnn')}"
    return None


def measure(options, scratch):
    bench = Bench(options, scratch)
    phases = [p for p in PHASES if "all" in options.phase or p in options.phase]
    raw, seconds = {}, {}
    try:
        for phase in phases:
            began = time.monotonic()
            machine.say("bench", f"phase {phase}")
            try:
                PHASES[phase](bench, raw.setdefault(phase, {}))
            except (Failed, machine.NotRun) as e:
                raw[phase].setdefault("phase", []).append({"failed": str(e)})
                machine.say("bench", f"{phase}: {e}")
            seconds[phase] = round(time.monotonic() - began, 1)
    except KeyboardInterrupt:
        machine.say("bench", "interrupted: what was measured is written")
    finally:
        bench.close()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": machine.without_paths(options.command),
        "revision": machine.revision(),
        "device": machine.describe_device(bench.programs),
        "host": machine.describe_host(),
        "libraries": libraries_of(bench),
        "torch": torch_of(raw),
        "precision": bench.precision(),
        "rounds": bench.rounds,
        "smoke": options.smoke,
        "seconds": seconds,
        "figures": figures_of(raw),
        "commands": bench.commands,
        "raw": raw,
    }


def main():
    parser = argparse.ArgumentParser(description="measures the GPU figures")
    parser.add_argument("--programs", required=True, help="folder of a release build or of a bundle")
    parser.add_argument("--phase", action="append", choices=[*PHASES, "all"], help="repeatable")
    parser.add_argument("--torch", help="python with PyTorch; left out: no peers")
    parser.add_argument("--backend", default="cuda", help="another one only to rehearse (--smoke)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", help="folder for compiled plans and peers' code, kept")
    parser.add_argument("--out", default=str(HERE / "results"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="tiny: does each piece run")
    parser.add_argument("--command", default="deploy/bench --cuda", help="to put on record")
    options = parser.parse_args()
    options.phase = options.phase or ["all"]
    if options.torch:
        options.torch = shutil.which(options.torch) or options.torch
    if options.backend != "cuda" and not options.smoke:
        parser.error("only --smoke is of use on another backend")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ringmaster-bench.") as scratch:
        result = measure(options, scratch)
    print(table(result["figures"]))
    stem = [result["date"], machine.slug(result["device"].get("device") or "no-gpu"), "cuda"]
    stem += [] if "all" in options.phase else options.phase
    texts = {".json": json.dumps(result, indent=1) + "\n", ".md": report(result)}
    if not options.smoke:
        for path in machine.write_new(options.out, "-".join(stem), texts):
            print(path, file=sys.stderr)
    bad = failures(result["raw"])
    for line in bad:
        machine.say("bench", f"not measured: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
