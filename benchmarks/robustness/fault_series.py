"""One command, and at each of its writes children that are killed within it (see `faults`).

    the command        ──mkdtemp──────────mkdtemp──────────mkdtemp──── …   runs once
    its children            └─ ✗  └─ ✗         └─ ✗             └─ ✗  └─ ✗    each lives for one write

A write begins where a temporary folder is made and no other is open. There the process forks once per fault
that falls to this write, looks at what the child left, puts the folder back to what it was, and goes on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.robustness.fault_files import RECORD, contents, is_whole, leftovers, restore, weights
from nncompress.cli.app import run
from nncompress.files.atomic import replacing
from nncompress.files.leftovers import MOVING

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkdtemp")
CODES = {signal.SIGINT: (130,), signal.SIGTERM: (143, -signal.SIGTERM)}  # which a shell reports as 143
MOST_CONTINUED = 6  # of the killed runs of a command
MOST_AFTER = 0.5  # seconds of one write in which a child is killed; later it measures or trains
DEAF = 99  # exit code of a victim that went on to its end after a signal


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        outputs: files, the session's among them, that it writes; a directory stands for all in it.
        fresh: what an earlier run of it wrote is removed first: it would have nothing to write.
        converts: "module:function" whose result is computed once, before the children are forked.
        continues: arguments that make it go on where it was killed; None where nothing does.
        result: the file or folder whose weights are then those of a run that nothing disturbed.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    converts: str = ""
    continues: tuple[str, ...] | None = None
    result: str = "out.pt2"
    fresh: bool = False


@dataclass(frozen=True)
class Write:
    """What the undisturbed child did from one temporary folder to the next."""

    events: int
    seconds: float  # to the last of its events


def faults(
    command: Command, make_inputs: Callable[[], None], kills: int, signals: int, seed: int = 0
) -> Counter[str]:
    """Run the command, with faults, in a directory of its own; counts of what was seen.

    Args:
        make_inputs: writes kept.pt, kept.pt2, other.pt, other.pt2 and what else the command reads.
    """
    with tempfile.TemporaryDirectory() as folder:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                series = _Series(command, Path(folder).resolve(), kills, signals, random.Random(seed))
                os.write(writer, json.dumps(series.run(make_inputs)).encode())
                status = 0
            except Exception:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            content = pipe.read()
        os.waitpid(pid, 0)
        if not content:
            raise SystemExit(f"{command.name}: the series did not end")
        counts, notes = json.loads(content)
        for note in notes:
            print(f"{command.name}: {note}", file=sys.stderr)
        return Counter(counts)


class _Split(BaseException):
    """What was to be computed once is."""


class _Series:
    def __init__(
        self, command: Command, folder: Path, kills: int, signals: int, chance: random.Random
    ) -> None:
        self.command, self.chance = command, chance
        self.numbers = [
            *[signal.SIGKILL] * kills,
            *[signal.SIGINT] * signals,
            *[signal.SIGTERM] * signals,
        ]
        self.work, self.before, self.copy = folder / "work", folder / "before", folder / "copy"
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.role = "ready"  # then "command"; in forks "undisturbed", "victim"
        self.seen, self.die_at, self.number = 0, -1, signal.SIGKILL
        self.started = self.last = 0.0
        self.struck = False
        self.writes: list[Write] = []
        self.due: list[list[signal.Signals]] = []  # faults that fall to each write
        self.at_write = -1

    def run(self, make_inputs: Callable[[], None]) -> tuple[dict[str, int], list[str]]:
        self.work.mkdir()
        os.chdir(self.work)
        os.environ["XDG_CACHE_HOME"] = str(self.work / "cache")
        make_inputs()
        _quiet(self.before.with_name("log"))
        self._run_for_another_model()
        if self.command.converts:
            _compute_once(self.command)
        sys.addaudithook(self._hook)
        code = run(list(self.command.arguments))
        if self.role == "undisturbed":
            self._next_write()
            Path(RECORD).write_text(json.dumps([vars(write) for write in self.writes]))
        if self.role != "command":  # of the victims only those that nothing ended come here
            self.role = "ended"
            os._exit(DEAF if self.struck and code == 0 else code)
        return dict(self.counts), self.notes

    def _run_for_another_model(self) -> None:
        """What lies there before: the outputs of the same command."""
        shutil.copy("other.pt2", "m.pt2")
        shutil.copy("other.pt", "m.pt")
        shutil.copy("other.safetensors", "m.safetensors")
        run(list(self.command.arguments))
        if (
            self.command.continues is not None or self.command.fresh
        ):  # what lies there would be refused, or do
            for name in self.command.outputs:
                shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
        shutil.copy("kept.pt2", "m.pt2")
        shutil.copy("kept.pt", "m.pt")
        shutil.copy("kept.safetensors", "m.safetensors")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or threading.current_thread() is not threading.main_thread():
            return
        if self.role == "pausing":
            return
        writes = event == "tempfile.mkdtemp" and _is_in(arguments[0], self.work) and not leftovers(self.work)
        if writes and self.role in ("ready", "command"):
            role, self.role = self.role, "pausing"
            try:
                forked = self._begin() if role == "ready" else None
                self.role = forked or self._next_faults() or "command"
            except Exception:  # the command would take it for its own
                self.notes.append(traceback.format_exc())
                self.counts["torn"] += 1
                self.role = "command"
        elif writes and self.role == "undisturbed":
            self._next_write()
        elif self.role in ("undisturbed", "victim"):
            self.seen += 1
            self.last = time.monotonic()
            if self.seen == self.die_at:
                self._strike()

    def _next_write(self) -> None:
        if self.seen:
            self.writes.append(Write(self.seen, self.last - self.started))
        self.seen, self.started, self.last = 1, time.monotonic(), time.monotonic()

    def _begin(self) -> str | None:
        """Let a child run to the end, and deal the faults to the writes that it tells of."""
        self._keep()
        if (pid := os.fork()) == 0:
            self.seen, self.started = 1, time.monotonic()
            return "undisturbed"
        self.undisturbed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.writes = [Write(**write) for write in json.loads(Path(RECORD).read_text())]
        Path(RECORD).unlink()
        self.new = contents(self.work, self.command.outputs)
        self.new_weights = (
            weights(self.work / self.command.result) if self.command.continues is not None else None
        )
        restore(self.work, self.before)
        self.due = [[] for _ in self.writes]
        shares = [write.events for write in self.writes]
        for number in self.numbers:
            self.chance.choices(self.due, shares)[0].append(number)
        return None

    def _next_faults(self) -> str | None:
        """Fork those of the write that begins; the role of the child, in it."""
        self.at_write += 1
        if self.at_write >= len(self.due) or not self.due[self.at_write]:
            return None
        self._keep()
        write = self.writes[self.at_write]
        for number in self.due[self.at_write]:
            at = self.chance.randint(1, write.events) if self.chance.random() < 0.5 else None
            after = self.chance.uniform(0, min(write.seconds, MOST_AFTER))
            if (pid := os.fork()) == 0:
                self._become_victim(number, at, after)
                return "victim"
            self._judge(number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            restore(self.work, self.before)
        return None

    def _become_victim(self, number: signal.Signals, at: int | None, after: float) -> None:
        _quiet(self.before.with_name("said"))
        self.number = number
        if at is None:
            timer = threading.Timer(after, self._strike)
            timer.daemon = True
            timer.start()
        elif at == 1:
            self._strike()
        else:
            self.seen, self.die_at = 1, at

    def _strike(self) -> None:
        if self.role != "ended":
            self.struck = True
            os.kill(os.getpid(), self.number)

    def _keep(self) -> None:
        """The folder as it is now: what a fault may leave of what it changes."""
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.copytree(self.work, self.before)

    def _judge(self, number: int, code: int) -> None:
        old, now = (contents(place, self.command.outputs) for place in (self.before, self.work))
        if number == signal.SIGKILL:
            self.counts["kill"] += 1
        else:
            self.counts["signal"] += 1
            said = self.before.with_name("said").read_text(errors="replace")
            clean = not _names(self.work) - _names(self.before)
            polite = code in CODES[signal.Signals(number)] and "Traceback" not in said and clean
            if not polite and code != self.undisturbed:  # the signal came after the end
                self.counts["rude"] += 1
                self.notes.append(f"{signal.Signals(number).name} gave {code}: {said[-2000:]}")
        for path in {*old, *now, *self.new}:
            content = now.get(path)
            spent = content is None and path not in self.new  # a checkpoint, once all is done
            if content == old.get(path):
                self.counts["old"] += 1
            elif (
                spent or content == self.new.get(path) or (content is not None and is_whole(self.work / path))
            ):
                self.counts["new"] += 1
            else:
                self.counts["torn"] += 1
                self.notes.append(f"{path} is torn after {number}")
        kept = {p: c for p, c in contents(self.before).items() if p not in old}
        for path, content in kept.items():
            if not (self.work / path).is_file() or (self.work / path).read_bytes() != content:
                self.counts["lost"] += 1
                self.notes.append(f"{path} is lost")
        self._write_again()
        if self.command.continues is not None and number == signal.SIGKILL and self._may_continue():
            self._continue()

    def _write_again(self) -> None:
        """In a copy, where this process, which goes on, has no locks: is what the dead one left removed?"""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.work, self.copy, copy_function=_copy)
        for folder in sorted({self.copy, *(path.parent for path in leftovers(self.copy))}):
            if folder.exists():  # else it was inside another
                with replacing(folder / "next") as path:
                    path.write_text("next")
                (folder / "next").unlink()
        self.counts["left"] += len(leftovers(self.copy))

    def _may_continue(self) -> bool:
        share = max(len(self.numbers) // MOST_CONTINUED, 1)
        return self.counts["kill"] % share == 0 and self.counts["resumes"] < MOST_CONTINUED

    def _continue(self) -> None:
        """Continue what was killed, in the copy and one more child, and compare the weights."""
        self.counts["resumes"] += 1
        if (pid := os.fork()) == 0:
            os.chdir(self.copy)
            os.environ["XDG_CACHE_HOME"] = str(self.copy / "cache")
            os._exit(run([*self.command.arguments, *(self.command.continues or ())]))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        same = code == self.undisturbed and weights(self.copy / self.command.result) == self.new_weights
        self.counts["resumed"] += same
        if not same:
            self.notes.append(f"continued, it ended with {code} or in other weights")


def _copy(source: str, target: str) -> None:
    """What is about to be moved stays the very file, by which the next writer tells it."""
    (os.link if Path(source).parent.name == MOVING else shutil.copy2)(source, target)


def _names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in leftovers(folder)}


def _is_in(name: str | bytes, folder: Path) -> bool:
    return Path(os.path.abspath(os.fsdecode(name))).is_relative_to(folder)


def _compute_once(command: Command) -> None:
    """Replace a conversion of seconds, that writes nothing, by its result."""
    module_name, name = command.converts.split(":")
    module = sys.modules[module_name]
    convert = getattr(module, name)
    kept: list[Any] = []

    def first(*arguments: Any, **options: Any) -> Any:
        kept.append(convert(*arguments, **options))
        raise _Split

    setattr(module, name, first)
    with suppress(_Split):
        run(list(command.arguments))
    setattr(module, name, lambda *arguments, **options: kept[0])


def _quiet(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
