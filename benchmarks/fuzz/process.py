"""Files read in processes that may die: what became of each (see `files.py` and `operators.py`).

Wrong is: an exception that is not one of `nncompress.errors`, the death of the process, more than 10 seconds
of processor time, more than 1 GiB beyond what Python and torch take, a process started, a connection opened,
a file written or removed, but for temporary ones of the reader's that it removes itself.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MOST_SECONDS = 10  # of processor time, whatever else the machine does
MOST_WAITED = 120  # seconds: a case that sleeps, or waits for something, takes no processor time
MOST_BYTES = 2**30

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


@dataclass(frozen=True)
class Outcome:
    """What became of one file: "read", the name of an error of ours, or what is `wrong`."""

    what: str
    wrong: bool
    content: bytes = b""  # of a file that went wrong


@dataclass
class Counts:
    """Of many outcomes; the first file of each fault is kept in the folder `out`."""

    out: Path
    executions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, outcome: Outcome) -> None:
        self.executions[kind] += 1
        self.outcomes["finding" if outcome.wrong else outcome.what] += 1
        of, _, what = outcome.what.partition(": ")
        what = f"{of}: " + re.sub(r"\d+|'[^']*'", "#", what)  # the same fault with another number
        if outcome.wrong and what not in self.findings:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(outcome.content)
            print(f"{name}: {outcome.what}", file=sys.stderr, flush=True)
            self.findings[what] = name

    def __str__(self) -> str:
        return json.dumps(
            {
                "executions": dict(self.executions),
                "outcomes": dict(self.outcomes),
                "findings": {name: what for what, name in self.findings.items()},
            },
            indent=1,
        )


class CodeRun(BaseException):
    """The file made the process do what no file may; no reader catches it."""


class _Watch:
    """An audit hook, active while a file is read. What is temporary, below `scratch`, is allowed."""

    def __init__(self, scratch: Path) -> None:
        self.active, self.seen, self.scratch = False, "", scratch
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        writes = writes and str(arguments[0]) != os.devnull
        if event in _FORBIDDEN or (
            (event in _CHANGES or writes) and not self._is_temporary(event, arguments)
        ):
            self.seen = f"{event} {arguments[:2]!r}"[:200]
            raise CodeRun(self.seen)

    def _is_temporary(self, event: str, arguments: tuple) -> bool:
        path, *_, last = arguments
        if event not in ("open", "os.mkdir", "os.remove", "os.rmdir") or isinstance(path, int):
            return False
        from_folder = event != "open" and last >= 0  # the descriptor of the one that `path` is relative to
        folder = Path(os.readlink(f"/proc/self/fd/{last}")) if from_folder else Path()
        return (folder / os.fsdecode(path)).is_relative_to(self.scratch)


def batch(
    kind: str,
    make: Callable[[int], bytes],
    read: Callable[[Path], None],
    folder: Path,
    place: str,
    count: int,
    prepare: Callable[[Path], None] = Path.mkdir,
) -> Iterator[Outcome]:
    """What becomes of `count` files, each written at `place` in `folder` and read, in processes of their own.

    Args:
        make: the content of a file, by its number; called in the process that reads it.
        folder: which nothing else is in; it is removed.
        prepare: makes it.
    """
    path, first = folder / place, 0
    prepare(folder)
    while first < count:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _serve(kind, make, read, path, folder, range(first, count), writer)
        os.close(writer)
        with os.fdopen(reader, "r") as lines:
            told = [json.loads(line) for line in lines if line.endswith("\n")]
        _, status = os.waitpid(child, 0)
        for index, what, wrong in told:
            yield Outcome(what, wrong, _kept(folder, index).read_bytes() if wrong else b"")
            first = index + 1
        if first < count:  # it died of file `first`
            yield Outcome(f"{kind}: {_death(status)}", True, path.read_bytes() if path.exists() else b"")
            first += 1
    shutil.rmtree(folder)
    shutil.rmtree(_scratch(folder), ignore_errors=True)


def _scratch(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-scratch")


def _kept(folder: Path, index: int) -> Path:
    return folder / f"wrong-{index}"


def _death(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"exited with {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    late = {signal.SIGPROF: MOST_SECONDS, signal.SIGALRM: MOST_WAITED}
    return f"more than {late[number]} s" if number in late else f"killed by signal {number}"


def _serve(
    kind: str,
    make: Callable[[int], bytes],
    read: Callable[[Path], None],
    path: Path,
    folder: Path,
    indices: range,
    writer: int,
) -> None:
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        scratch = _scratch(folder)
        scratch.mkdir(exist_ok=True)  # also where one before died
        tempfile.tempdir = str(scratch)
        watch = _Watch(scratch)
        for index in indices:
            path.unlink(missing_ok=True)
            path.write_bytes(content := make(index))
            what, wrong = _outcome(read, path, watch, kind)
            if wrong:
                _kept(folder, index).write_bytes(content)
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
    if any(watch.scratch.iterdir()) and not wrong:
        what, wrong = f"{kind}: temporary files are left", True
    return what, wrong
