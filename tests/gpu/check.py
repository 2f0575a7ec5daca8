#!/usr/bin/env python3
"""Checks a backend on the machine that has its device; run by deploy/gpu-check.

Every check ends as `pass`, `FAIL` or `not run` with the reason, within a limit of its own, and all
of them within --limit seconds. A table, a verdict line that also names what was not run, and with
--out a JSON report. Exit code: 0 nothing failed, 1 something did, 5 there is no device.
--backend cpu|reference rehearses the same checks where there is no GPU.
"""
import argparse
import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

import golden
import machine
from machine import NotRun

NO_DEVICE = {"CUDA_VISIBLE_DEVICES": ""}
SANITIZERS = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer",
              "/opt/nvidia/nsight-compute/compute-sanitizer"]
HELD_MIB = 3072  # what is left of the device's memory for the check of running out of it
SUITES = ["test_ops_*", "test_nccl_*", "test_gpu_*"]

# A training that takes seconds on anything; its checkpoints are compared byte for byte.
JOB = {
    "name": "check",
    "model": {"width": 8},
    "rpg": {"size": 4608},
    "data": {"size": 16, "train_count": 256, "eval_count": 64},
    "train": {"epochs": 2, "batch": 64, "shard": 32, "momentum": 0.9, "checkpoint_every": 1},
}


class Failed(Exception):
    """A check that found something wrong."""


class Checker:
    """What all checks work with."""

    def __init__(self, options, scratch):
        self.options = options
        self.backend = options.backend
        self.on_gpu = options.backend == "cuda"
        self.programs = machine.Programs(options.programs)
        self.scratch = pathlib.Path(scratch)
        self.end = time.monotonic() + options.limit
        self.device = None  # what backend_probe says, once it was found
        self.numbers = 0

    def left(self, most):
        """Seconds that a process may take: `most`, or what the whole has left."""
        left = self.end - time.monotonic()
        if left < 5:
            raise NotRun("no time was left")
        return min(most, left)

    def new_path(self, name):
        self.numbers += 1
        return self.scratch / f"{name}-{self.numbers}"

    def need_gpu(self):
        if not self.on_gpu:
            raise NotRun(f"it is about a GPU, and this rehearses on {self.backend}")

    def train_command(self, out, sets, backend=None, ranks=1):
        job = self.scratch / "job.json"
        job.write_text(json.dumps(JOB), encoding="utf-8")
        command = self.programs.mpirun(ranks) if ranks > 1 else []
        command += [self.programs.find("ringtrain"), "train", job]
        command += ["--backend", backend or self.backend]
        for assignment in (f"out={out}", "resources.threads=1", *sets):
            command += ["--set", assignment]
        return command

    def train(self, name, *sets, ranks=1, backend=None, environment=None, codes=(0,), most=120):
        """One training of JOB; its run folder."""
        out = self.new_path(name)
        self.train_into(out, *sets, ranks=ranks, backend=backend, environment=environment,
                        codes=codes, most=most)
        return out

    def train_into(self, out, *sets, ranks=1, backend=None, environment=None, codes=(0,), most=120):
        command = self.train_command(out, sets, backend, ranks)
        done = machine.run(command, self.left(most), environment)
        if done.code not in codes:
            raise Failed(f"a training ended with {done.why()}")
        return done


def same_file(a, b, what):
    first, second = a.read_bytes(), b.read_bytes()
    if first != second:
        at = next((i for i, (x, y) in enumerate(zip(first, second)) if x != y), len(first))
        raise Failed(f"{what}: checkpoints of {len(first)} and {len(second)} bytes differ, first at {at}")


def last(out):
    return out / "last.safetensors"


def one_line(done, code, *words):
    """It ended with `code` and said so in one line that holds one of `words`."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    if done.code != code:
        raise Failed(f"exit code {code} was expected; {done.why()}")
    said = lines[-1] if lines else ""
    if not re.search("|".join(words), said, re.I):
        raise Failed(f"the line says nothing of {' or '.join(words)}: {said}")
    errors = [line for line in lines if "ringtrain: " in line or "error" in line.lower()]
    if len(errors) > 1:
        raise Failed(f"{len(errors)} lines where one is expected: {errors[0]} / {errors[1]}")
    return said


# ---- the checks: each returns what is worth saying ----


def check_device(c):
    """The backend opens here, and says on what."""
    done = machine.run([c.programs.find("backend_probe"), c.backend], c.left(90))
    found = machine.json_of(done.out) or {}
    if done.code != 0:
        why = found.get("error") or done.why()
        if c.on_gpu and done.code in (2, 5):
            raise NotRun(f"no CUDA device: {why}")
        raise Failed(why)
    c.device = found["plan"]
    described = machine.describe_device(c.programs) if c.on_gpu else {}
    return described.get("device") or f"the {c.backend} backend"


def check_no_device_line(c):
    """Without a visible device: one line, exit code 5."""
    built = machine.json_of(machine.run([c.programs.find("backend_probe")], c.left(60)).out) or {}
    if not any(b["name"] == "cuda" for b in built.get("backends", [])):
        raise NotRun("this build has no cuda backend")
    command = c.train_command(c.new_path("none"), (), "cuda")
    return one_line(machine.run(command, c.left(60), NO_DEVICE), 5, "device", "GPU", "driver")


def run_suite(c, path, most, environment):
    """A Check program: (checks, None), or (checks, why it is not good)."""
    environment = {"CK_DEFAULT_TIMEOUT": "120", "OMP_WAIT_POLICY": "passive", **environment}
    done = machine.run([path], c.left(most), environment)
    counted = re.search(r"Checks: (\d+), Failures: (\d+), Errors: (\d+)", done.out + done.err)
    checks = int(counted.group(1)) if counted else 0
    if done.code == 77:
        return checks, None
    if done.code == 0 and counted:
        return checks, None
    lines = [line for line in (done.out + done.err).splitlines() if re.search(r":[FE]:", line)]
    return checks, lines[0] if lines else done.why()


def check_conformance(c):
    """Every op against `reference`: all suites of ops, on every backend that can run here."""
    suites = [path for pattern in SUITES for path in c.programs.suites(pattern)]
    if not suites:
        raise NotRun("this build has no suites of ops")
    # A process that opens a GPU for each check would take minutes for that alone: one a suite,
    # a few side by side.
    on_gpu = {"CK_FORK": "no", "RINGMASTER_TEST_BACKEND": "cuda"}
    environment, workers = (on_gpu, 4) if c.on_gpu else ({}, 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(run_suite, c, path, 150, environment) for path in suites]
    total, bad = 0, []
    for path, done in zip(suites, runs):
        checks, why = done.result()
        total += checks
        if why:
            bad.append(f"{pathlib.Path(path).name}: {why}")
    if bad:
        raise Failed("; ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else ""))
    return f"{total} checks in {len(suites)} suites"


def compare_with_golden(c, precision):
    said = []
    for name, (_, _, precisions) in golden.CASES.items():
        if precision not in precisions:
            continue
        gradients, first, ten = golden.compare(
            c.programs, c.scratch, c.backend, name, precision, c.left(60)
        )
        text = f"{name} {sorted(gradients)[len(gradients) // 2]:.1e}/{max(gradients):.1e}"
        if not golden.verdict(gradients, first, ten, precision):
            raise Failed(f"{text}, first loss off by {first:.1e}, ten by {ten:.1e}; "
                         f"allowed {golden.TOLERANCES[precision]}")
        said.append(text)
    return "gradients off by (median/worst of seeds) " + ", ".join(said)


def check_golden_fp32(c):
    """Whole networks in fp32: first gradient, ten losses, against the stored ones."""
    return compare_with_golden(c, "fp32")


def check_golden_tf32(c):
    """The same with TF32."""
    c.need_gpu()
    return compare_with_golden(c, "tf32")


def check_golden_bf16(c):
    """The same in bf16."""
    c.need_gpu()
    return compare_with_golden(c, "bf16")


def precisions(c):
    return ("fp32", "tf32", "bf16") if c.on_gpu else ("fp32",)


def check_repeat(c):
    """The same spec twice: the same checkpoint, in every precision."""
    for precision in precisions(c):
        sets = [f"train.precision={precision}"]
        a, b = c.train("once", *sets), c.train("again", *sets)
        same_file(last(a), last(b), precision)
    return ", ".join(precisions(c)) + ": same bits"


def kill_in_time(c, out, sets):
    """Starts a training and kills it at its first checkpoint; False where it was done by then."""
    process = machine.subprocess.Popen(
        [str(x) for x in c.train_command(out, sets)],
        stdin=machine.subprocess.DEVNULL,
        stdout=machine.subprocess.DEVNULL,
        stderr=machine.subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + c.left(90)
    try:
        while process.poll() is None and time.monotonic() < end:
            if list((out / "attempt-1").glob("ckpt-*.safetensors")):
                break
            time.sleep(0.002)
    finally:
        machine.end_group(process)
        process.wait()
    return process.returncode == -signal.SIGKILL


def check_kill_and_resume(c):
    """Killed at a checkpoint and started again: the same bits as never killed."""
    for precision in ("fp32", "bf16") if c.on_gpu else ("fp32",):
        for epochs in (4, 40, 400):
            sets = [f"train.precision={precision}", f"train.epochs={epochs}",
                    f"train.eval_every={epochs}"]
            out = c.new_path("killed")
            if kill_in_time(c, out, sets):
                break
        else:
            raise Failed("every training was over before it could be killed")
        c.train_into(out, *sets)
        attempt = json.loads((out / "attempt-2" / "run.json").read_text(encoding="utf-8"))
        if not attempt.get("resumed_from"):
            raise Failed("the second attempt did not resume")
        same_file(last(c.train("whole", *sets)), last(out), precision)
    return f"resumed from step {attempt['resumed_from'].get('step')}: same bits"


def check_two_ranks(c):
    """Two ranks on one device against one, at the same shards."""
    c.programs.mpirun(2)
    sets = ["train.exact=true", "train.shard=16"]
    one, two = c.train("one", *sets), c.train("two", *sets, ranks=2)
    same_file(last(one), last(two), "exact")
    sets = ["train.shard=16"]
    a, b = (golden.probe(c.programs, c.scratch, c.backend, 1, sets, c.left(90), ranks)
            for ranks in (1, 2))
    apart = golden.difference(b[0], a[0])
    if not apart <= 1e-5:
        raise Failed(f"the gradients of one and two ranks differ by {apart:.1e}, allowed 1e-5")
    return f"exact: same bits; else gradients off by {apart:.1e}"


def backend_of(out, attempt):
    plan = json.loads((out / f"attempt-{attempt}" / "run.json").read_text(encoding="utf-8"))["plan"]
    return (json.loads(plan) if isinstance(plan, str) else plan).get("backend")


def check_other_backend(c):
    """A checkpoint of the CPU goes on on the GPU, and the reverse."""
    c.need_gpu()
    sets = ["train.epochs=400", "train.batch=16", "train.shard=16", "train.eval_every=400",
            "backend.on_plan_change=continue"]
    said = []
    for begin, go_on in ((NO_DEVICE, {}), ({}, NO_DEVICE)):
        out = c.new_path("moved")
        for attempt, environment in ((1, begin), (2, go_on)):
            process = machine.subprocess.Popen(
                [str(x) for x in c.train_command(out, sets, "auto")],
                env={**os.environ, **environment},
                stdin=machine.subprocess.DEVNULL,
                stdout=machine.subprocess.DEVNULL,
                stderr=machine.subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stop_at_checkpoint(c, process, out / f"attempt-{attempt}")
        names = [backend_of(out, attempt) for attempt in (1, 2)]
        if (names[0] == "cuda") == (names[1] == "cuda"):
            raise Failed(f"both attempts ran on {names[0]}")
        resumed = json.loads((out / "attempt-2" / "run.json").read_text(encoding="utf-8"))
        if not resumed.get("resumed_from"):
            raise Failed(f"{names[1]} did not resume what {names[0]} left")
        said.append(f"{names[0]} to {names[1]}")
    return ", ".join(said)


def stop_at_checkpoint(c, process, attempt):
    """SIGUSR1 once the attempt has written a checkpoint; it must end as stopped, or done."""
    end = time.monotonic() + c.left(60)
    try:
        while process.poll() is None and time.monotonic() < end:
            if list(attempt.glob("ckpt-*.safetensors")):
                process.send_signal(signal.SIGUSR1)
                break
            time.sleep(0.002)
        _, err = process.communicate(timeout=c.left(60))
    finally:
        machine.end_group(process)
    if process.returncode not in (0, 143):
        raise Failed(f"a training ended with exit code {process.returncode}: {err.strip()[-200:]}")


def check_out_of_memory(c):
    """With little of the device's memory left: one line that says what to lower, exit code 6."""
    c.need_gpu()
    command = [c.programs.find("gpu_gather"), "--leave", str(HELD_MIB), "--seconds", "120"]
    holder = machine.subprocess.Popen(command, stdout=machine.subprocess.PIPE, text=True)
    try:
        free = machine.json_of(holder.stdout.readline() or "")
        if not free:
            raise NotRun("the device's memory could not be taken")
        sets = ["model.width=64", "train.batch=4096", "train.shard=4096", "data.size=32",
                "data.train_count=4096", "data.eval_count=64", "rpg.size=36864"]
        done = machine.run(c.train_command(c.new_path("large"), sets), c.left(110))
    finally:
        holder.kill()
        holder.wait()
    return one_line(done, 6, "train.batch", "train.shard", "model.width")


def check_not_finite(c):
    """A loss that is not finite: the step is named, exit code 4."""
    out = c.new_path("hot")
    sets = ["train.lr=1000", "train.epochs=50", "train.eval_every=50"]
    done = machine.run(c.train_command(out, sets), c.left(60))
    return one_line(done, 4, "step" if c.on_gpu else "finite")


def check_chosen(c):
    """--backend auto takes the device that is there."""
    c.need_gpu()
    out = c.train("auto", backend="auto")
    if backend_of(out, 1) != "cuda":
        raise Failed(f"auto took {backend_of(out, 1)}")
    return "auto is cuda"


def check_accuracy(c):
    """A narrow training reaches the cpu backend's accuracy."""
    if c.backend == "reference":
        raise NotRun("the reference backend is too slow for it")
    name = "cifar10" if c.options.data else "synthetic"
    stored = golden.load("accuracy")["sets"].get(name)
    if not stored:
        raise NotRun(f"golden/accuracy.json has nothing of {name}")
    said = []
    for precision in ("fp32", "bf16") if c.on_gpu else ("fp32",):
        top1 = golden.train_narrow(c.programs, c.scratch, c.backend, c.options.data, 1,
                                   c.left(240), [f"train.precision={precision}"])
        said.append(f"{precision} {top1:.2%}")
        if not top1 >= stored["mean"] - golden.POINTS:
            raise Failed(f"{name}, {', '.join(said)}: the cpu backend reached {stored['mean']:.2%}, "
                         f"{golden.POINTS:.1%} less is allowed")
    return f"{name}: {', '.join(said)}; cpu {stored['mean']:.2%}"


def sanitize(c, tool):
    """compute-sanitizer over the suites of ops. Only our own kernels, where it can be told so:
    cuDNN's take many times as long and are not ours to mend."""
    c.need_gpu()
    program = next((p for p in SANITIZERS if shutil.which(p)), None)
    if not program:
        raise NotRun("there is no compute-sanitizer")
    options = [program, "--tool", tool, "--error-exitcode", "99"]
    if "--kernel-name" in machine.run([program, "--help"], 30).out:
        options += ["--kernel-name", "kernel_substring=_kernel"]
    clean, unfinished = [], []
    for path in c.programs.suites("test_ops_*"):
        name = pathlib.Path(path).name
        try:
            limit = c.left(c.options.sanitizer_limit)
        except NotRun:
            unfinished.append(name)
            continue
        environment = {"CK_FORK": "no", "RINGMASTER_TEST_BACKEND": "cuda"}
        done = machine.run([*options, path], limit, environment)
        text = done.out + done.err
        if "Device not supported" in text or "not supported on this" in text:
            raise NotRun("compute-sanitizer does not support this device or system")
        found = re.findall(r"========= (?:Invalid|Race|Error|Potential|Misaligned|Program hit)[^\n]*", text)
        if done.code is None:
            unfinished.append(name)
        elif done.code != 0 or found:
            raise Failed(f"{name}: {found[0].lstrip('= ') if found else done.why()}")
        else:
            clean.append(name)
    if unfinished:
        raise NotRun(f"no time was left for {', '.join(unfinished)}; clean: {', '.join(clean) or '-'}")
    return f"clean: {len(clean)} suites"


def check_memcheck(c):
    """No access out of bounds in the suites of ops."""
    return sanitize(c, "memcheck")


def check_racecheck(c):
    """No race in shared memory in the suites of ops."""
    return sanitize(c, "racecheck")


CHECKS = {
    f.__name__.removeprefix("check_"): f
    for f in (check_device, check_no_device_line, check_conformance, check_golden_fp32,
              check_golden_tf32, check_golden_bf16, check_repeat, check_kill_and_resume,
              check_two_ranks, check_chosen, check_other_backend, check_not_finite,
              check_out_of_memory, check_accuracy, check_memcheck, check_racecheck)
}
ANYWHERE = ("device", "no_device_line")  # do not need the backend to open


# ---- running and reporting ----


def run_check(c, name):
    began = time.monotonic()
    try:
        if c.device is None and name not in ANYWHERE:
            raise NotRun("no CUDA device" if c.on_gpu else "the backend does not open")
        result, detail = "pass", CHECKS[name](c)
    except NotRun as e:
        result, detail = "not run", str(e)
    except Failed as e:
        result, detail = "FAIL", str(e)
    except (RuntimeError, OSError, ValueError, KeyError, machine.subprocess.TimeoutExpired) as e:
        result, detail = "FAIL", f"{type(e).__name__}: {e}"
    seconds = time.monotonic() - began
    row = {"name": name, "result": result, "detail": detail, "seconds": round(seconds, 2)}
    print(f"  {result:8} {name:18} {seconds:6.1f} s  {detail}", flush=True)
    return row


def verdict_of(rows):
    def names(result):
        return [row["name"] for row in rows if row["result"] == result]

    failed, missing = names("FAIL"), names("not run")
    text = "FAILED: " + ", ".join(failed) if failed else f"{len(names('pass'))} checks passed"
    return text + (f"; NOT RUN: {', '.join(missing)}" if missing else "; nothing was left out")


def report(c, options, rows):
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": machine.without_paths(options.command),
        "revision": machine.revision(),
        "backend": options.backend,
        "device": machine.describe_device(c.programs) if c.on_gpu else {},
        "plan": c.device,
        "host": machine.describe_host(),
        "tolerances": {"fp32, tf32, bf16": golden.TOLERANCES, "accuracy": golden.POINTS},
        "checks": rows,
        "verdict": verdict_of(rows),
    }


def main():
    parser = argparse.ArgumentParser(description="checks a backend on its device")
    parser.add_argument("--programs", required=True, help="folder of a build or of a bundle")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu", "reference"])
    parser.add_argument("--data", action="append", default=[], help="FIELD=VALUE of the real set")
    parser.add_argument("--only", action="append", choices=list(CHECKS), help="repeatable")
    parser.add_argument("--limit", type=float, default=460, help="seconds for everything")
    parser.add_argument("--sanitizer-limit", type=float, default=60, help="seconds for a suite")
    parser.add_argument("--out", help="folder for the JSON report")
    parser.add_argument("--command", default="deploy/gpu-check", help="to put on record")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ringmaster-check."))
        c = Checker(options, scratch)
        names = [n for n in CHECKS if not options.only or n in options.only or n == "device"]
        rows = [run_check(c, name) for name in names]
        if options.out and c.device is not None:  # without a device there is nothing to report
            stem = [datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "gpu-check"]
            result = report(c, options, rows)
            stem.append(machine.slug(result["device"].get("device") or options.backend))
            text = json.dumps(result, indent=1) + "\n"
            for path in machine.write_new(options.out, "-".join(stem), {".json": text}):
                print(path, file=sys.stderr)
    print(f"gpu-check: {verdict_of(rows)}")
    if any(row["result"] == "FAIL" for row in rows):
        return 1
    return 5 if c.device is None else 0


if __name__ == "__main__":
    sys.exit(main())
