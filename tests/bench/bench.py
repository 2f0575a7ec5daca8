#!/usr/bin/env python3
"""Measures every CPU figure of the project and writes tests/bench/results/DATE-MACHINE-....{json,md}.

Run by deploy/bench. The programs that a figure compares run interleaved, round after round, each
in a process of its own. A ratio is taken within each round; every figure is the median over the
rounds, beside the least and the greatest. Standard library only.

    bench.py --build FOLDER [--torch PYTHON]   measure
    bench.py --report FILE.json                figures and report again from a run's raw results
"""
import argparse
import concurrent.futures
import datetime
import functools
import itertools
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MODES = ["contiguous", "channels_last", "compile"]
ENVIRONMENTS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {},
    "native": {},
}
QUIET_LOAD = 0.3  # above it something else takes a share that shows in the figures
QUIET_WAIT_S = 180  # what the load average needs to forget a build


def say(text):
    sys.stderr.write(f"bench: {text}\n")  # one write: two programs may run at the same time
    sys.stderr.flush()


class Failed(Exception):
    """A program that did not end well."""

    def __init__(self, why, shown):
        super().__init__(f"{why}: {shown}")
        self.why = why


# ---- the programs ----


class Bench:
    """Runs the programs and keeps their command lines. `smoke`: a network that takes no time."""

    def __init__(self, options, scratch, smoke, broken=None):
        self.options = options
        self.smoke = smoke
        self.steps = 1 if smoke else options.steps
        self.broken = broken or {}  # (isa, mode) of the peer: why it does not run here
        self.build = pathlib.Path(options.build)
        self.scratch = pathlib.Path(scratch)
        self.commands = []
        # what stands in a report for paths of this machine
        self.hidden = {
            str(options.torch or "python"): "python",
            str(self.scratch): "SCRATCH",
            str(HERE.parents[1]) + "/": "",
            str(self.build.resolve().parents[1]) + "/": "",
        }

    def run(self, command, environment):
        """One process; its JSON, and when it was started. Distinct commands are kept."""
        command = [str(c) for c in command]
        shown = " ".join([f"{k}={v}" for k, v in environment.items()] + command)
        for path, name in self.hidden.items():
            shown = shown.replace(path, name)
        if shown not in self.commands:
            self.commands.append(shown)
        say(shown)
        spawned = time.monotonic()
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        except OSError as e:
            raise Failed(f"cannot be started ({e.strerror})", shown) from e
        if done.returncode != 0:
            raise Failed(f"exit code {done.returncode}", shown)
        try:
            result = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as e:
            raise Failed("no JSON on its stdout", shown) from e
        return {**result, "spawned_monotonic_s": spawned}

    def ours(self, isa, *sets, ranks=1, threads=None, core=None, steps=None, warmup=2):
        command = [] if core is None else ["taskset", "-c", core]
        if ranks > 1:
            # hardware threads are slots: what counts as one core here may be half of one
            command = ["mpirun", "-np", ranks, "--bind-to", "none", "--use-hwthread-cpus"]
            command += ["--allow-run-as-root"] if os.getuid() == 0 else []
        command += [self.build / "trainer" / "ringtrain", "bench", HERE / "job.json", "--json"]
        command += ["--steps", steps or self.steps, "--warmup", warmup]
        small = ["model.width=8", "rpg.size=36864", "train.batch=64", "data.train_count=640"]
        threads = f"resources.threads={threads or self.options.threads}"
        for assignment in (threads, *(small if self.smoke else []), *sets):
            command += ["--set", assignment]
        return self.run(command, ENVIRONMENTS[isa])

    def peer(self, isa, mode):
        """A mode that fails says so in its result; the others go on."""
        if (isa, mode) in self.broken:
            return {"failed": self.broken[isa, mode]}
        command = [self.options.torch, HERE / "peer_torch.py", "--mode", mode]
        command += ["--threads", self.options.threads, "--steps", self.steps]
        command += ["--chain"] if mode == "contiguous" else []
        if self.smoke:
            command += ["--width", 8, "--ring", 36864, "--batch", 16]
        # Code compiled for one instruction set crashes or gives NaN under another, and TorchInductor
        # finds it again in its cache: one cache for each.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.scratch / isa)}
        try:
            return self.run(command, {**ENVIRONMENTS[isa], **cache})
        except Failed as e:
            say(f"PyTorch failed, {e}")
            return {"failed": e.why}

    def convs(self, isa):
        command = [self.build / "tests" / "bench" / "bench_convs", "--rounds", self.steps]
        if self.smoke:
            command += ["--width", 8, "--batch", 16]
        return self.run(command, {**ENVIRONMENTS[isa], "OMP_NUM_THREADS": str(self.options.threads)})

    def ops(self, isa, index):
        command = [self.build / "tests" / "bench" / "bench_ops", "--index", index]
        command += ["--threads", self.options.threads, "--rounds", self.steps]
        if self.smoke:
            command += ["--width", 8, "--batch", 16, "--ring", 36864]
        return self.run(command, ENVIRONMENTS[isa])

    def cifar(self):
        """A folder of CIFAR-10's files at full size, of random bytes; in the page cache from then on."""
        folder = self.scratch / "CIFAR10"
        if folder.exists():
            return folder
        folder.mkdir()
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            with open(folder / name, "wb") as f:
                for _ in range(10):
                    image = os.urandom(3072)
                    f.write(b"".join(bytes([k % 10]) + image for k in range(1000)))
        return folder


def step_programs(bench, isa):
    """Our step (even, tile), the convolutions alone, the peer's step in each mode. What a figure
    compares stands close together: a round takes minutes, and machines change their speed."""
    modes = [m for m in MODES if m != "compile" or not bench.options.no_compile]
    return {
        "ops_even": lambda: bench.ops(isa, "even"),
        "convs": lambda: bench.convs(isa),
        "even": lambda: bench.ours(isa),
        **{m: functools.partial(bench.peer, isa, m) for m in modes if bench.options.torch},
        "tile": lambda: bench.ours(isa, "rpg.index=tile"),
        "ops_tile": lambda: bench.ops(isa, "tile"),
    }


def ranks_programs(bench, isa):
    """Two ranks of one thread against one, the same global batch and shards; beside it, what the
    machine itself gives: two processes that have nothing to do with each other, at the same time."""
    shard = "train.shard=32" if bench.smoke else "train.shard=64"
    cores = sorted(os.sched_getaffinity(0))[:2]

    def apart():
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [pool.submit(bench.ours, isa, shard, threads=1, core=core) for core in cores]
            speeds = [run.result()["images_per_second"] for run in runs]
        return {"images_per_second": sum(speeds), "each": speeds}

    return {
        "one": lambda: bench.ours(isa, shard, threads=1),
        "two": lambda: bench.ours(isa, shard, ranks=2, threads=1),
        "apart": apart,
    }


def exact_programs(bench, isa):
    """Exact mode against the default mode at the same shard."""
    shard = "train.shard=16" if bench.smoke else "train.shard=32"
    return {
        "default": lambda: bench.ours(isa, shard),
        "exact": lambda: bench.ours(isa, shard, "train.exact=true"),
    }


def start_programs(bench, isa):
    """From the start of the process to the first step and to its end, on CIFAR-10's files."""
    data = ["data.kind=cifar10", f"data.path={bench.cifar()}"]
    return {"start": lambda: bench.ours(isa, *data, steps=1, warmup=0)}


# ---- the figures, from the raw results alone ----


def speed(result):
    return result["images_per_second"]


def works(result):
    return "failed" not in result


def over_rounds(raw, figure, *programs):
    """`figure` of what `programs` gave in a round: its median, least and greatest over the rounds in
    which all of them worked; None where there is none."""
    each = zip(*(raw.get(program, []) for program in programs))
    values = [figure(*results) for results in each if all(works(r) for r in results)]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peer_speed(raw, mode):
    """The peer's images/s in one mode; how often it failed."""
    results = raw.get(mode, [])
    failures = [r["failed"] for r in results if not works(r)]
    figure = over_rounds(raw, speed, mode)
    if failures:
        often = f"failed in {len(failures)} of {len(results)} rounds ({failures[0]})"
        figure = {**(figure or {}), "failed": often}
    return figure


def step_figures(raw):
    def ring_share(ops, step):
        """Expand and reduce, timed alone, as a share of the whole step."""
        return (ops["milliseconds"]["expand"] + ops["milliseconds"]["reduce"]) / step["step_ms"]

    # A mode that never worked is out; where another failed in a round, that round gives no ratio.
    modes = [m for m in MODES if any(works(r) for r in raw.get(m, []))]
    figures = {
        "images_per_second": over_rounds(raw, speed, "even"),
        "images_per_second_tile": over_rounds(raw, speed, "tile"),
        "convolutions_images_per_second": over_rounds(raw, speed, "convs"),
        "of_convolutions": over_rounds(raw, lambda e, c: speed(e) / speed(c), "even", "convs"),
        "ring_share_even": over_rounds(raw, ring_share, "ops_even", "even"),
        "ring_share_tile": over_rounds(raw, ring_share, "ops_tile", "tile"),
        "peak_rss_bytes": over_rounds(raw, lambda e: e["peak_rss_bytes"], "even"),
        **{f"peer_{mode}": peer_speed(raw, mode) for mode in MODES},
    }
    if modes:
        figures["fastest_peer"] = over_rounds(raw, lambda *p: max(map(speed, p)), *modes)
        figures["against_fastest_peer"] = over_rounds(
            raw, lambda e, *p: speed(e) / max(map(speed, p)), "even", *modes
        )
        figures["memory_against_peer"] = over_rounds(
            raw, lambda e, *p: e["peak_rss_bytes"] / min(r["peak_rss_bytes"] for r in p), "even", *modes
        )
    for name in ("expand", "reduce"):
        figures[f"{name}_ms"] = over_rounds(raw, lambda o: o["milliseconds"][name], "ops_even")
        figures[f"peer_{name}_ms"] = over_rounds(raw, lambda p: p[f"{name}_ms"], "contiguous")
        figures[f"{name}_against_peer"] = over_rounds(
            raw, lambda o, p: p[f"{name}_ms"] / o["milliseconds"][name], "ops_even", "contiguous"
        )
    return figures


def ranks_figures(raw):
    def ratio(a, b):
        return over_rounds(raw, lambda x, y: speed(x) / speed(y), a, b)

    return {
        **{name: over_rounds(raw, speed, name) for name in ("one", "two", "apart")},
        "ratio": ratio("two", "one"),
        "ratio_apart": ratio("apart", "one"),
        "two_against_apart": ratio("two", "apart"),
    }


def exact_figures(raw):
    return {
        **{name: over_rounds(raw, speed, name) for name in ("default", "exact")},
        "slower": over_rounds(raw, lambda d, e: 1 - speed(e) / speed(d), "default", "exact"),
    }


def start_figures(raw):
    def to_first_step(r):
        return r["first_step_monotonic_s"] - r["spawned_monotonic_s"]

    def to_its_end(r):
        return to_first_step(r) + r["start_to_first_step_done_s"] - r["start_to_first_step_s"]

    figures = {"in_command_s": over_rounds(raw, lambda r: r["start_to_first_step_s"], "start")}
    if all("first_step_monotonic_s" in r for r in raw.get("start", [])):  # older results lack it
        figures["start_to_first_step_s"] = over_rounds(raw, to_first_step, "start")
        figures["first_step_done_s"] = over_rounds(raw, to_its_end, "start")
    return figures


PARTS = {
    "step": (step_programs, step_figures),
    "ranks": (ranks_programs, ranks_figures),
    "exact": (exact_programs, exact_figures),
    "start": (start_programs, start_figures),
}


def figures_of(raw):
    return {
        isa: {part: PARTS[part][1](results) for part, results in parts.items()}
        for isa, parts in raw.items()
    }


# ---- the report ----

# (figure, part and key of it, format, "what counts as reached" on AVX2, on AVX-512)
ROWS = [
    ("training images/s", ("step", "images_per_second"), "{:.1f}", None, None),
    ("PyTorch contiguous, images/s", ("step", "peer_contiguous"), "{:.1f}", None, None),
    ("PyTorch channels-last, images/s", ("step", "peer_channels_last"), "{:.1f}", None, None),
    ("PyTorch torch.compile, images/s", ("step", "peer_compile"), "{:.1f}", None, None),
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
    ("process start to first step, seconds", ("start", "start_to_first_step_s"), "{:.2f}", -3.0, -3.0),
    ("process start to its end, seconds", ("start", "first_step_done_s"), "{:.2f}", None, None),
    ("of it, inside the command, to the first step", ("start", "in_command_s"), "{:.2f}", None, None),
]


def cell(figure, form):
    """Median and range, or why there is none."""
    if figure is None:
        return "not measured"
    if "median" not in figure:
        return figure["failed"]
    text = f"{form.format(figure['median'])} ({form.format(figure['min'])}..{form.format(figure['max'])})"
    return text + (f", {figure['failed']}" if "failed" in figure else "")


def bound(figure, form, goal):
    """The goal, and whether the median missed it; one below zero is an upper bound."""
    if goal is None:
        return ""
    text = ("at least " if goal > 0 else "at most ") + form.format(abs(goal))
    value = (figure or {}).get("median")
    missed = value is not None and (value < goal if goal > 0 else value > -goal)
    return text + (" (missed)" if missed else "")


def table(figures):
    isas = list(figures)
    lines = ["| figure | " + " | ".join(f"{isa} | goal" for isa in isas) + " |"]
    lines.append("|---|" + "---|---|" * len(isas))
    for name, (part, key), form, avx2, avx512 in ROWS:
        cells = []
        for isa in isas:
            figure = figures[isa].get(part, {}).get(key)
            cells += [cell(figure, form), bound(figure, form, avx512 if isa == "avx512" else avx2)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(result):
    m, v = result["machine"], result["versions"]
    load = f"Load at start: {m['load_at_start']:.2f}"
    load += "." if m["load_at_start"] <= QUIET_LOAD else ": the machine may not have been idle."
    made = [f"Made by `{result['command']}`. PyTorch: {result.get('torch') or 'not measured'}."]
    if "figures_revision" in result:
        made.append(f"The figures were made again from its raw results, at {result['figures_revision']}.")
    if "incomplete" in result:
        made.append(f"**Incomplete**: {result['incomplete']}.")
    lines = [
        f"# CPU figures, {result['date']}",
        "",
        f"{m['cpu']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB; ResNet-18 with the "
        f"CIFAR stem, width 64, batch 128, fp32, N = 2,359,296, {result['threads']} threads. "
        f"{result['rounds']} interleaved rounds, a program's figure in each the median of "
        f"{result['steps']} steps in a process of its own. Ratios are taken within a round; medians "
        f"over the rounds (least..greatest). {load}",
        "",
        table(result["figures"]),
        "",
        "The start is the process's: loading its libraries and starting itself anew are included. "
        "Program and data are in the page cache.",
        "",
        " ".join(made),
        "",
        *(f"- {name}: {v[name]}" for name in v if v[name]),
        "",
        "Programs run:",
        "",
        *(f"    {command}" for command in result["commands"]),
        "",
    ]
    return "\n".join(lines)


def stem_of(result):
    """DATE-MACHINE-CORES-ISAS, the parts where not all were measured, and whether it is complete."""
    raw = result["raw"]
    slug = re.sub(r"[^a-z0-9]+", "-", result["machine"]["cpu"].lower()).strip("-")
    words = [result["date"], slug, f"{result['machine']['cores']}-cores", *raw]
    parts = [part for part in PARTS if any(part in measured for measured in raw.values())]
    words += parts if parts != list(PARTS) else []
    return "-".join(words + (["partial"] if "incomplete" in result else []))


def write(result, out):
    """Both files under a name that is not taken yet."""
    out.mkdir(parents=True, exist_ok=True)
    stem = stem_of(result)
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    suffixes = {".json": json.dumps(result, indent=1) + "\n", ".md": report(result)}
    name = next(n for n in names if not any((out / (n + s)).exists() for s in suffixes))
    for suffix, text in suffixes.items():
        temporary = out / f"{name}{suffix}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / (name + suffix))
        print(out / (name + suffix), file=sys.stderr)


# ---- measuring ----


def describe_machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        text = f.read()
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = re.search(r"^flags\s*: (.*)$", text, re.M)
    flags = flags.group(1).split() if flags else []
    with open("/proc/meminfo", encoding="utf-8") as f:
        memory = int(re.search(r"MemTotal:\s*(\d+)", f.read()).group(1)) * 1024
    return {
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "avx512": "avx512f" in flags,
        "avx2": "avx2" in flags,
        "memory_bytes": memory,
        "kernel": platform.release(),
    }


def first_line(*command):
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else None


def revision():
    return first_line("git", "-C", str(HERE), "describe", "--always", "--dirty")


def describe_versions():
    return {
        "revision": revision(),
        "gcc": first_line("gcc", "--version"),
        "mpi": first_line("mpirun", "--version"),
        "onednn": first_line("dpkg-query", "-W", "-f", "${Version}\n", "libdnnl2"),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME"),
    }


def load_at_start():
    """The load, once the build before is forgotten; a warning where something else keeps it up."""
    deadline = time.monotonic() + QUIET_WAIT_S
    if os.getloadavg()[0] > QUIET_LOAD:
        say(f"load {os.getloadavg()[0]:.2f}: waiting up to {QUIET_WAIT_S} s for a quiet machine")
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(5)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        say(f"warning: the load at start is {load:.2f}; what else runs here makes the figures worse")
    return load


def instruction_sets(machine):
    return [isa for isa in ("avx2", "avx512") if machine[isa]] or ["native"]


def chosen_parts(options, machine):
    parts = [part for part in PARTS if part in (options.only or PARTS)]
    if "ranks" in parts and machine["cores"] < 2:
        say("ranks are left out: two of them need two cores")
        parts.remove("ranks")
    return parts


def try_all(options, scratch, isas, parts):
    """Each program once, small, so that a missing piece shows in the first minutes. Returns the
    modes of the peer that do not run here."""
    say("first every program once, on a tiny network")
    bench = Bench(options, scratch, smoke=True)
    broken, tried = {}, []
    for isa, part in itertools.product(isas, parts):
        results = {name: program() for name, program in PARTS[part][0](bench, isa).items()}
        tried += [name for name in results if name in MODES]
        broken |= {(isa, name): r["failed"] for name, r in results.items() if not works(r)}
    if tried and len(broken) == len(tried):
        raise Failed("no mode of PyTorch works here", "leave it out with --no-torch, or mend it")
    return broken


def measure(bench, isas, parts, raw):
    """Round after round into `raw`, which holds what was measured even if a program fails."""
    for isa, part in itertools.product(isas, parts):
        programs = PARTS[part][0](bench, isa)
        results = raw.setdefault(isa, {}).setdefault(part, {name: [] for name in programs})
        for _ in range(bench.options.rounds):
            for name, program in programs.items():
                results[name].append(program())


def without_paths(command):
    """The command as it is put on record: paths of this machine say nothing to others."""
    return re.sub(r"--torch[ =]\S+", "--torch python", re.sub(r" --out[ =]\S+", "", command))


def measure_all(options):
    """Everything that was asked for; exit code 1 and what there is where a program of ours fails."""
    machine = describe_machine()
    isas, parts = instruction_sets(machine), chosen_parts(options, machine)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": without_paths(options.command),
        "machine": machine,
        "versions": describe_versions(),
        **{name: getattr(options, name) for name in ("threads", "rounds", "steps", "smoke")},
    }
    raw = {}
    with tempfile.TemporaryDirectory(prefix="ringmaster-bench.") as scratch:
        machine["load_at_start"] = os.getloadavg()[0] if options.smoke else load_at_start()
        bench = Bench(options, scratch, options.smoke)
        try:
            if not options.smoke:
                bench.broken = try_all(options, scratch, isas, parts)
            measure(bench, isas, parts, raw)
        except (Failed, KeyboardInterrupt) as e:
            result["incomplete"] = str(e) or "interrupted"
            say(result["incomplete"])
    peers = [r for measured in raw.values() for m in MODES for r in measured.get("step", {}).get(m, [])]
    result["torch"] = next((r["program"] for r in peers if works(r)), None)
    result |= {"figures": figures_of(raw), "commands": bench.commands, "raw": raw}
    if raw:
        print(table(result["figures"]))
    if raw and not options.smoke:
        write(result, pathlib.Path(options.out))
    return 1 if "incomplete" in result else 0


def report_again(options):
    """Figures and report of an earlier run's raw results by this version; a new pair of files."""
    try:
        result = json.loads(pathlib.Path(options.report).read_text(encoding="utf-8"))
        result["figures"] = figures_of(result["raw"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        say(f"{options.report} is not the JSON of a run of this program: {e!r}")
        return 2
    result["command"] = without_paths(result["command"])
    result["figures_revision"] = revision()
    print(table(result["figures"]))
    write(result, pathlib.Path(options.out))
    return 0


def main():
    parser = argparse.ArgumentParser(description="measures the CPU figures")
    parser.add_argument("--build", help="release build folder")
    parser.add_argument("--torch", help="python of a venv with PyTorch; left out: no peer")
    parser.add_argument("--out", default=str(HERE / "results"), help="folder of the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; repeatable")
    parser.add_argument("--smoke", action="store_true", help="tiny network: does each piece run")
    parser.add_argument("--report", metavar="FILE", help="measure nothing: report FILE's results again")
    parser.add_argument("--command", default="deploy/bench", help="the command to put on record")
    options = parser.parse_args()
    if options.report:
        sys.exit(report_again(options))
    if not options.build:
        parser.error("--build is needed to measure")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what there is gets written
    sys.exit(measure_all(options))


if __name__ == "__main__":
    main()
