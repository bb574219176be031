"""Fuzzing of everything that reads a file: thousands of broken files, in processes that may die.

    python benchmarks/fuzz.py --minutes 60 --out FOLDER     files that went wrong are kept in FOLDER

A case takes a good file of one kind and damages it: bytes, members of an archive, values of a JSON document,
opcodes of a pickle. Then it is read as the commands read it, and used. Wrong is: an exception that is not one
of `nncompress.errors`, the death of the process, more than 10 seconds of processor time, more than 1 GiB
beyond what Python and torch take, a process started, a connection opened, a file written or removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz_cases import TARGETS, Target
from fuzz_damage import mutated
from fuzz_good import good_files

MOST_SECONDS = 10  # of processor time, whatever else the machine does
MOST_WAITED = 120  # seconds: a case that sleeps, or waits for something, takes no processor time
MOST_BYTES = 2**30
BATCH = 25  # cases per process

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "pty.spawn",
)
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)


class CodeRun(BaseException):
    """The file made the process do what no file may; no reader catches it."""


class _Watch:
    """An audit hook, active while a file is read."""

    def __init__(self) -> None:
        self.active, self.seen = False, ""
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        writes = writes and str(arguments[0]) != os.devnull
        if event in _FORBIDDEN or event in _CHANGES or writes:
            self.seen = f"{event} {arguments[:2]!r}"[:200]
            raise CodeRun(self.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds, joined by commas", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            options.only.split(","), options.minutes * 60, options.seed, options.out.resolve(), Path(folder)
        )
    print(json.dumps(found, indent=1))


def run(kinds: list[str], seconds: float, seed: int, out: Path, folder: Path, batch: int = BATCH) -> dict:
    """Fuzz the `kinds` in turn for so long; the counts, and what went wrong."""
    os.chdir(folder)
    good = good_files(folder)
    executions: Counter = Counter()
    outcomes: Counter = Counter()
    findings: dict[str, str] = {}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        kind = kinds[number % len(kinds)]
        for what, content in _batch(TARGETS[kind], good[kind], seed * 1_000_003 + number, batch, folder):
            executions[kind] += 1
            outcomes[what if content is None else "finding"] += 1
            if content is not None:
                name = f"{kind}-{seed}-{number}-{executions[kind]}"
                what = re.sub(r"\d+|'[^']*'", "#", what)  # the same fault with another number
                if what not in findings:
                    out.mkdir(parents=True, exist_ok=True)
                    (out / name).write_bytes(content)
                    print(f"{name}: {what}", file=sys.stderr, flush=True)
                findings.setdefault(what, name)
        number += 1
    return {
        "executions": dict(executions),
        "outcomes": dict(outcomes),
        "findings": {name: what for what, name in findings.items()},
    }


def _batch(
    target: Target, good: list[bytes], seed: int, count: int, folder: Path
) -> list[tuple[str, bytes | None]]:
    """What became of `count` cases in a process of their own; its content with each that went wrong."""
    results: list[tuple[str, bytes | None]] = []
    first = 0
    while first < count:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _serve(target, good, seed, first, count, folder, writer)
        os.close(writer)
        with os.fdopen(reader, "r") as lines:
            told = [json.loads(line) for line in lines if line.endswith("\n")]
        _, status = os.waitpid(child, 0)
        for index, what, wrong in told:
            results.append((what, case(good, target, seed, index) if wrong else None))
            first = index + 1
        if first < count:  # it died in case `first`
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                late = {signal.SIGPROF: MOST_SECONDS, signal.SIGALRM: MOST_WAITED}
                died = f"more than {late[number]} s" if number in late else f"killed by signal {number}"
            else:
                died = f"exited with {os.waitstatus_to_exitcode(status)}"
            results.append((f"{target.kind}: {died}", case(good, target, seed, first)))
            first += 1
    return results


def case(good: list[bytes], target: Target, seed: int, index: int) -> bytes:
    """The content of one case: the same for the same numbers."""
    random = Random(seed * 1000 + index)
    return mutated(random.choice(good), target.kind, random)


def _serve(
    target: Target, good: list[bytes], seed: int, first: int, count: int, folder: Path, writer: int
) -> None:
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        watch = _Watch()
        for index in range(first, count):
            content = case(good, target, seed, index)
            path = folder / f"process-{os.getpid()}" / target.place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            what, wrong = _outcome(target.read, path, watch, target.kind)
            os.write(writer, (json.dumps([index, what, wrong]) + "\n").encode())
    finally:
        os._exit(0)


def _outcome(read: Callable[[Path], None], path: Path, watch: _Watch, kind: str) -> tuple[str, bool]:
    from nncompress.errors import NNCompressError

    signal.alarm(MOST_WAITED)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    watch.active, watch.seen = True, ""
    try:
        read(path)
        what, wrong = "read", False
    except NNCompressError as error:
        lines = str(error).splitlines()
        what, wrong = type(error).__name__, False
        if max(map(len, lines)) > 2000:
            what, wrong = f"{kind}: a message of {len(str(error))} characters", True
    except CodeRun as error:
        what, wrong = f"{kind}: ran {error}", True
    except BaseException as error:  # whatever a reader lets through
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "nncompress" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        what, wrong = f"{kind}: {type(error).__name__} at {where}: {str(error)[:80]}", True
    finally:
        watch.active = False
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    if watch.seen and not wrong:
        what, wrong = f"{kind}: ran {watch.seen}", True
    return what, wrong


if __name__ == "__main__":
    main()
