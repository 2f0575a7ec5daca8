"""What the scripts of this folder and bench_cuda.py share: finding the programs of a build or of a
bundle, running them with a limit, and saying what machine this is. Standard library only."""
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLACES = ["", "bin", "trainer", "tests", "tests/dist", "tests/gpu", "tests/bench", "tests/nccl"]


class NotRun(Exception):
    """What a check or a figure needs is not here."""


class Done:
    """A process that has ended; `code` None: it ran past its limit."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def last_line(self):
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else ""

    def why(self):
        """In one line, for somebody who did not see it run."""
        ended = "ran past its limit" if self.code is None else f"exit code {self.code}"
        return f"{ended}: {self.last_line()}" if self.last_line() else ended


class Programs:
    """The programs under a folder: a build's, or a bundle's."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()

    def find(self, name):
        for place in PLACES:
            path = self.folder / place / name
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
        raise NotRun(f"{name} is not part of this build")

    def suites(self, pattern):
        found = {}
        for place in PLACES:
            for path in sorted((self.folder / place).glob(pattern)):
                if path.is_file() and os.access(path, os.X_OK):
                    found.setdefault(path.name, str(path))
        return [found[name] for name in sorted(found)]

    def mpirun(self, ranks):
        """The start of a command line; the bundle's own mpirun before the machine's."""
        own = self.folder / "mpi" / "bin" / "mpirun"
        program = str(own) if own.is_file() else shutil.which("mpirun")
        if not program:
            raise NotRun("there is no mpirun")
        command = [program, "-np", str(ranks), "--bind-to", "none", "--oversubscribe"]
        return command + (["--allow-run-as-root"] if os.getuid() == 0 else [])


def end_group(process):
    """It and all that it started; each is in the session that was made for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(command, limit, environment=None):
    """One command to its end or to its limit in seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        [str(c) for c in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        end_group(process)
        out, err = process.communicate()
        code = None
    except BaseException:
        end_group(process)
        raise
    return Done(code, out, err, time.monotonic() - began)


def json_of(text):
    """The JSON object in a program's output, or None."""
    try:
        return json.loads(text[text.index("{") :])
    except ValueError:
        return None


def first_line(*command):
    if not shutil.which(command[0]):
        return None
    try:
        done = run(command, 20)
    except OSError:
        return None
    return done.out.splitlines()[0].strip() if done.code == 0 and done.out.strip() else None


def revision():
    """Of the checkout, or what the bundle says that it was made from."""
    manifest = ROOT / "BUNDLE.json"
    if manifest.is_file():
        return json.loads(manifest.read_text(encoding="utf-8")).get("revision")
    return first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")


def describe_device(programs):
    """Device, driver and libraries, as far as the programs here can tell."""
    found = {}
    try:
        found = json_of(run([programs.find("gpu_gather"), "--device"], 60).out) or {}
    except NotRun:
        pass
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    smi = first_line(*query)
    if smi and ", " in smi:
        found["device"], found["driver"] = smi.rsplit(", ", 1)
    return found


def describe_host():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = re.search(r"^model name\s*: (.*)$", f.read(), re.M)
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        system = platform.platform()
    return {
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": system,
        "python": platform.python_version(),
    }


def without_paths(command):
    """The command as it is put on record: folders of this machine say nothing to others."""
    return re.sub(r" --(build|out|data|cache|torch)[ =]\S+", "", command)


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_new(folder, stem, texts):
    """{suffix: text} as files of one name that is not taken yet; their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, number = stem, 2
    while any((folder / (name + suffix)).exists() for suffix in texts):
        name, number = f"{stem}-{number}", number + 1
    paths = []
    for suffix, text in texts.items():
        temporary = folder / f"{name}{suffix}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / (name + suffix))
        paths.append(folder / (name + suffix))
    return paths


def say(program, text):
    sys.stderr.write(f"{program}: {text}\n")
    sys.stderr.flush()
