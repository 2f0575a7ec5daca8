#!/usr/bin/env python3
"""Measures every CPU figure of the project and writes tests/bench/results/DATE-MACHINE.{json,md}.

Run by deploy/bench. The programs that a figure compares run interleaved, round after round, each
in a process of its own; every number is the median over the rounds. Standard library only.
"""
import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODES = ["contiguous", "channels_last", "compile"]


class Bench:
    """The programs, and what they said."""

    def __init__(self, options):
        self.options = options
        self.build = pathlib.Path(options.build)
        self.ringtrain = str(self.build / "trainer" / "ringtrain")
        self.job = str(HERE / "job.json")
        self.commands = []
        self.caches = tempfile.TemporaryDirectory(prefix="ringmaster-bench.")
        # what stands in a report for paths of this machine
        self.hidden = {
            str(options.torch): "python",
            self.caches.name: "CACHE",
            str(HERE.parents[1]) + "/": "",
            str(pathlib.Path(options.build).resolve().parents[1]) + "/": "",
        }

    def run(self, command, environment):
        """One process; its JSON. Every distinct command is kept for the report."""
        shown = " ".join([f"{k}={v}" for k, v in environment.items()] + [str(c) for c in command])
        for path, name in self.hidden.items():
            shown = shown.replace(path, name)
        if shown not in self.commands:
            self.commands.append(shown)
        print("bench:", shown, file=sys.stderr, flush=True)
        done = subprocess.run(
            [str(c) for c in command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"bench: exit code {done.returncode} of: {shown}")
        return json.loads(done.stdout[done.stdout.index("{") :])

    def ours(self, isa, *sets, ranks=1, threads=None, core=None):
        threads = threads or self.options.threads
        command = [] if core is None else ["taskset", "-c", core]
        if ranks > 1:
            command = ["mpirun", "-np", ranks, "--bind-to", "none"]
            command += ["--allow-run-as-root"] if os.getuid() == 0 else []
        command += [self.ringtrain, "bench", self.job, "--json"]
        command += ["--steps", self.options.steps, "--warmup", 2]
        for assignment in (f"resources.threads={threads}", *self.small(), *sets):
            command += ["--set", assignment]
        return self.run(command, isa)

    def peer(self, isa, mode):
        command = [self.options.torch, HERE / "peer_torch.py", "--mode", mode]
        command += ["--threads", self.options.threads, "--steps", self.options.steps]
        command += ["--chain"] if mode == "contiguous" else []
        if self.options.smoke:
            command += ["--width", 8, "--ring", 36864, "--batch", 16]
        # Code compiled for one instruction set crashes or gives NaN under another, and TorchInductor
        # finds it again in its cache: one cache for each.
        cache = pathlib.Path(self.caches.name) / isa.get("ONEDNN_MAX_CPU_ISA", "all")
        return self.run(command, {**isa, "TORCHINDUCTOR_CACHE_DIR": str(cache)})

    def convs(self, isa):
        command = [self.build / "tests" / "bench" / "bench_convs", "--rounds", self.options.steps]
        if self.options.smoke:
            command += ["--width", 8, "--batch", 16]
        return self.run(command, {**isa, "OMP_NUM_THREADS": str(self.options.threads)})

    def ops(self, isa, index):
        command = [self.build / "tests" / "bench" / "bench_ops", "--index", index]
        command += ["--threads", self.options.threads, "--rounds", self.options.steps]
        if self.options.smoke:
            command += ["--width", 8, "--batch", 16, "--ring", 36864]
        return self.run(command, isa)

    def small(self):
        """A network that takes no time, to see that every piece works."""
        if not self.options.smoke:
            return []
        return ["model.width=8", "rpg.size=36864", "train.batch=64", "data.train_count=640"]


def rounds(count, **programs):
    """Runs all programs once a round; lists of results by name."""
    results = {name: [] for name in programs}
    for _ in range(count):
        for name, program in programs.items():
            results[name].append(program())
    return results


def median(results, *keys):
    def dig(result):
        for key in keys:
            result = result[key]
        return result

    return statistics.median(dig(r) for r in results)


def ring_share(ops, steps):
    """Expand and reduce, timed alone, as a share of the whole step of the same round."""
    return statistics.median(
        (o["milliseconds"]["expand"] + o["milliseconds"]["reduce"]) / s["step_ms"] for o, s in zip(ops, steps)
    )


def measure_step(bench, isa):
    """Our step (even, tile), the peer's in each mode, the convolutions alone; interleaved."""
    modes = [m for m in MODES if m != "compile" or not bench.options.no_compile]
    programs = {
        "even": lambda: bench.ours(isa),
        "tile": lambda: bench.ours(isa, "rpg.index=tile"),
        "ops_even": lambda: bench.ops(isa, "even"),
        "ops_tile": lambda: bench.ops(isa, "tile"),
        "convs": lambda: bench.convs(isa),
    }
    if bench.options.torch:
        for mode in modes:
            programs[mode] = lambda mode=mode: bench.peer(isa, mode)
    r = rounds(bench.options.rounds, **programs)
    figures = {
        "images_per_second": median(r["even"], "images_per_second"),
        "images_per_second_tile": median(r["tile"], "images_per_second"),
        "convolutions_images_per_second": median(r["convs"], "images_per_second"),
        "ring_share_even": ring_share(r["ops_even"], r["even"]),
        "ring_share_tile": ring_share(r["ops_tile"], r["tile"]),
        "expand_ms": median(r["ops_even"], "milliseconds", "expand"),
        "reduce_ms": median(r["ops_even"], "milliseconds", "reduce"),
        "peak_rss_bytes": median(r["even"], "peak_rss_bytes"),
    }
    figures["of_convolutions"] = (
        figures["images_per_second"] / figures["convolutions_images_per_second"]
    )
    if bench.options.torch:
        peers = {mode: median(r[mode], "images_per_second") for mode in modes}
        figures["peer_images_per_second"] = peers
        figures["against_fastest_peer"] = figures["images_per_second"] / max(peers.values())
        figures["peer_peak_rss_bytes"] = min(median(r[m], "peak_rss_bytes") for m in modes)
        figures["peer_expand_ms"] = median(r["contiguous"], "expand_ms")
        figures["peer_reduce_ms"] = median(r["contiguous"], "reduce_ms")
        figures["expand_against_peer"] = figures["peer_expand_ms"] / figures["expand_ms"]
        figures["reduce_against_peer"] = figures["peer_reduce_ms"] / figures["reduce_ms"]
    return figures, r


def measure_ranks(bench, isa):
    """Two ranks of one thread against one, the same global batch and shards; beside it, what the
    machine itself gives: two processes that have nothing to do with each other, at the same time."""
    shard = "train.shard=32" if bench.options.smoke else "train.shard=64"
    cores = sorted(os.sched_getaffinity(0))[:2]

    def apart():
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [pool.submit(bench.ours, isa, shard, threads=1, core=core) for core in cores]
            speeds = [run.result()["images_per_second"] for run in runs]
        return {"images_per_second": sum(speeds), "each": speeds}

    r = rounds(
        bench.options.rounds,
        one=lambda: bench.ours(isa, shard, threads=1),
        two=lambda: bench.ours(isa, shard, ranks=2, threads=1),
        apart=apart,
    )
    figures = {name: median(r[name], "images_per_second") for name in r}
    figures["ratio"] = figures["two"] / figures["one"]
    figures["ratio_apart"] = figures["apart"] / figures["one"]
    figures["two_against_apart"] = figures["two"] / figures["apart"]
    return figures, r


def measure_exact(bench, isa):
    """Exact mode against the default mode at the same shard."""
    shard = "train.shard=16" if bench.options.smoke else "train.shard=32"
    r = rounds(
        bench.options.rounds,
        default=lambda: bench.ours(isa, shard),
        exact=lambda: bench.ours(isa, shard, "train.exact=true"),
    )
    speed = {name: median(r[name], "images_per_second") for name in r}
    slower = 1 - speed["exact"] / speed["default"]
    return {"default": speed["default"], "exact": speed["exact"], "slower": slower}, r


def measure_start(bench, isa):
    """From start to the end of the first step on CIFAR-10's files (of random bytes, full size)."""
    with tempfile.TemporaryDirectory(prefix="ringmaster-bench.") as folder:
        bench.hidden[folder] = "CIFAR10"
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        for name in names:
            with open(pathlib.Path(folder) / name, "wb") as f:
                for _ in range(10):
                    record = bytes([0]) + os.urandom(3072)
                    f.write(b"".join(bytes([k % 10]) + record[1:] for k in range(1000)))
        r = rounds(
            bench.options.rounds,
            start=lambda: bench.ours(isa, "data.kind=cifar10", f"data.path={folder}"),
        )
    seconds = median(r["start"], "start_to_first_step_s")
    return {"start_to_first_step_s": seconds}, r


def describe_machine():
    model = platform.machine()
    flags = ""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        text = f.read()
    found = re.search(r"^model name\s*: (.*)$", text, re.M)
    model = found.group(1).strip() if found else model
    found = re.search(r"^flags\s*: (.*)$", text, re.M)
    flags = found.group(1).split() if found else []
    with open("/proc/meminfo", encoding="utf-8") as f:
        memory = int(re.search(r"MemTotal:\s*(\d+)", f.read()).group(1)) * 1024
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "avx512": "avx512f" in flags,
        "avx2": "avx2" in flags,
        "memory_bytes": memory,
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
    }


def describe_versions():
    def first_line(*command):
        if not shutil.which(command[0]):
            return None
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()[0] if done.stdout else None

    return {
        "revision": first_line("git", "-C", str(HERE), "describe", "--always", "--dirty"),
        "gcc": first_line("gcc", "--version"),
        "mpi": first_line("mpirun", "--version"),
        "onednn": first_line("dpkg-query", "-W", "-f", "${Version}\n", "libdnnl2"),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME"),
    }


# (figure, key path below an ISA's figures, format, "what counts as reached" on AVX2, on AVX-512)
ROWS = [
    ("training images/s", ("step", "images_per_second"), "{:.1f}", None, None),
    ("the fastest PyTorch mode, images/s", ("step", "fastest_peer"), "{:.1f}", None, None),
    ("against the fastest PyTorch mode", ("step", "against_fastest_peer"), "{:.2f}x", 1.05, 2.0),
    ("of the bare oneDNN convolutions", ("step", "of_convolutions"), "{:.1%}", 0.88, 0.80),
    ("expand + reduce, share of the step, even", ("step", "ring_share_even"), "{:.2%}", -0.03, -0.05),
    ("expand + reduce, share of the step, tile", ("step", "ring_share_tile"), "{:.2%}", -0.015, -0.025),
    ("expand against PyTorch's chain", ("step", "expand_against_peer"), "{:.2f}x", 2.0, 2.0),
    ("reduce against PyTorch's chain", ("step", "reduce_against_peer"), "{:.2f}x", 1.5, 1.5),
    ("two ranks of one thread against one", ("ranks", "ratio"), "{:.2f}x", 1.9, 1.9),
    ("two unrelated processes against one", ("ranks", "ratio_apart"), "{:.2f}x", None, None),
    ("peak memory against PyTorch", ("step", "memory_against_peer"), "{:.2f}x", -1.0, -1.0),
    ("exact mode slower by", ("exact", "slower"), "{:.1%}", -0.10, -0.35),
    ("start to first step, seconds", ("start", "start_to_first_step_s"), "{:.2f}", -3.0, -3.0),
]


def table(figures):
    """Markdown; a goal below zero is an upper bound."""
    isas = list(figures)
    lines = ["| figure | " + " | ".join(f"{isa} | goal" for isa in isas) + " |"]
    lines.append("|---|" + "---|---|" * len(isas))
    for name, (group, key), form, avx2, avx512 in ROWS:
        cells = []
        for isa in isas:
            value = figures[isa].get(group, {}).get(key)
            goal = avx512 if isa == "avx512" else avx2
            if goal is None:
                bound = ""
            else:
                reached = value is not None and (value >= goal if goal > 0 else value <= -goal)
                bound = ("at least " if goal > 0 else "at most ") + form.format(abs(goal))
                bound += "" if reached or value is None else " (missed)"
            cells += ["not measured" if value is None else form.format(value), bound]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(result):
    m, v = result["machine"], result["versions"]
    cut = [f"- {name}: {v[name]}" for name in v if v[name]]
    commands = [f"    {c}" for c in result["commands"]]
    return "\n".join(
        [
            f"# CPU figures, {result['date']}",
            "",
            f"{m['cpu']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB; "
            f"ResNet-18 with the CIFAR stem, width 64, batch 128, fp32, N = 2,359,296, "
            f"{result['threads']} threads. Medians of {result['rounds']} interleaved rounds, each the "
            f"median of {result['steps']} steps in a process of its own.",
            "",
            table(result["figures"]),
            "",
            f"Made by `{result['command']}`. PyTorch: {result.get('torch') or 'not measured'}.",
            "",
            *cut,
            "",
            "Programs run:",
            "",
            *commands,
            "",
        ]
    )


def measure(bench, options, machine):
    isas = {}
    if machine["avx2"]:
        isas["avx2"] = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if machine["avx512"]:
        isas["avx512"] = {}
    if not isas:
        isas["native"] = {}
    parts = {
        "step": measure_step,
        "ranks": measure_ranks,
        "exact": measure_exact,
        "start": measure_start,
    }
    figures, raw = {}, {}
    for isa, environment in isas.items():
        figures[isa], raw[isa] = {}, {}
        for part in options.only or parts:
            figures[isa][part], raw[isa][part] = parts[part](bench, environment)
        step = figures[isa].get("step", {})
        if "peer_images_per_second" in step:
            step["fastest_peer"] = max(step["peer_images_per_second"].values())
            step["memory_against_peer"] = step["peak_rss_bytes"] / step["peer_peak_rss_bytes"]
    return figures, raw


def main():
    parser = argparse.ArgumentParser(description="measures the CPU figures")
    parser.add_argument("--build", required=True, help="release build folder")
    parser.add_argument("--torch", help="python of a venv with PyTorch; left out: no peer")
    parser.add_argument("--out", default=str(HERE / "results"), help="folder of the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--only", action="append", choices=["step", "ranks", "exact", "start"])
    parser.add_argument("--smoke", action="store_true", help="tiny network: does each piece run")
    parser.add_argument("--command", default="deploy/bench", help="the command to put on record")
    options = parser.parse_args()

    bench = Bench(options)
    machine = describe_machine()
    figures, raw = measure(bench, options, machine)
    peers = [r for isa in raw.values() for r in isa.get("step", {}).get("contiguous", [])]
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    result = {
        "date": date,
        "command": options.command.replace(str(options.torch), "python"),
        "machine": machine,
        "versions": describe_versions(),
        "torch": peers[0]["program"] if peers else None,
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "smoke": options.smoke,
        "figures": figures,
        "commands": bench.commands,
        "raw": raw,
    }
    print(table(figures))
    if options.smoke:
        return
    slug = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    base = out / f"{date}-{slug}-{machine['cores']}-cores"
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", report(result))):
        temporary = base.with_suffix(suffix + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(base.with_suffix(suffix))
        print(base.with_suffix(suffix), file=sys.stderr)


if __name__ == "__main__":
    main()
