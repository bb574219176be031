"""One command, forked at the moment when it begins to write, once per fault (see `faults`)."""

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

from benchmarks.robustness.fault_files import SETTLED, contents, is_whole, leftovers, weights
from nncompress.cli.app import run
from nncompress.files.atomic import replacing

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkdtemp")
CODES = {signal.SIGINT: (130,), signal.SIGTERM: (143, -signal.SIGTERM)}  # which a shell reports as 143


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        outputs: files, the session's among them, that it writes; a directory stands for all in it.
        fresh: what an earlier run of it wrote is removed first: it would have nothing to write.
        converts: "module:function" whose result is computed once, before the children are forked.
        resumes: `--resume` continues it.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    converts: str = ""
    resumes: bool = False
    fresh: bool = False


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
                found = _Series(
                    command, make_inputs, Path(folder).resolve(), kills, signals, random.Random(seed)
                ).run()
                os.write(writer, json.dumps(found).encode())
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
    """The command has come to where the children begin."""


class _Series:
    def __init__(
        self,
        command: Command,
        make_inputs: Callable[[], None],
        folder: Path,
        kills: int,
        signals: int,
        chance: random.Random,
    ) -> None:
        self.make_inputs = make_inputs
        self.command, self.kills, self.signals, self.chance = command, kills, signals, chance
        self.work, self.before = folder / "work", folder / "before"
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.child = False  # in a child: count events, and die at one
        self.splitting = False
        self.seen, self.die_at, self.number = 0, -1, signal.SIGKILL
        self.started = 0.0

    def run(self) -> tuple[dict[str, int], list[str]]:
        self.work.mkdir()
        os.chdir(self.work)
        os.environ["XDG_CACHE_HOME"] = str(self.work / "cache")
        self.make_inputs()
        _quiet(self.before.with_name("log"))
        self._run_for_another_model()
        self.before.mkdir()
        if self.command.converts:
            _compute_once(self.command)
        sys.addaudithook(self._hook)
        self.splitting = True
        try:
            code = run(list(self.command.arguments))
        except _Split:
            code = 0
        for number in CODES if self.child else ():  # as the entry point does, once all is done
            signal.signal(number, signal.SIG_IGN)
        if self.child:  # only the child that nothing ended comes here, as the command of a user would
            (self.work / SETTLED).write_text(json.dumps([self.seen, time.monotonic() - self.started]))
            os._exit(code)
        return dict(self.counts), self.notes

    def _run_for_another_model(self) -> None:
        """What lies there before: the outputs of the same command."""
        shutil.copy("other.pt2", "m.pt2")
        shutil.copy("other.pt", "m.pt")
        run(list(self.command.arguments))
        if self.command.resumes or self.command.fresh:  # what lies there would be refused, or do
            for name in self.command.outputs:
                shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
        shutil.copy("kept.pt2", "m.pt2")
        shutil.copy("kept.pt", "m.pt")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if self.child and threading.current_thread() is threading.main_thread():
            self.seen += 1
            if self.seen == self.die_at:
                os.kill(os.getpid(), self.number)
        elif (
            self.splitting
            and event == "tempfile.mkdtemp"
            and Path(os.path.abspath(arguments[0])).is_relative_to(self.work)
        ):
            self.splitting = False
            try:
                self._fork_all()
            except Exception:  # the command would take it for its own
                self.notes.append(traceback.format_exc())
                self.counts["torn"] += 1
                raise _Split from None

    def _fork_all(self) -> None:
        """Returns in every child; in the parent it raises when all have ended."""
        shutil.rmtree(self.before)
        shutil.copytree(self.work, self.before)  # with the folders that the command has made by now
        if self._fork(0, None, 0.0):
            return
        events, seconds = json.loads((self.work / SETTLED).read_text())
        self.new = self._outputs()
        for number in (
            *[signal.SIGKILL] * self.kills,
            *[signal.SIGINT] * self.signals,
            *[signal.SIGTERM] * self.signals,
        ):
            self._restore()
            at_event = self.chance.random() < 0.5
            at = self.chance.randint(1, events) if at_event else None
            if self._fork(number, at, self.chance.uniform(0, seconds)):
                return
        raise _Split

    def _fork(self, number: int, at: int | None, after: float) -> bool:
        """Whether this is the child, which dies at an event or after a time; the parent judges it."""
        pid = os.fork()
        if pid == 0:
            self.child, self.started = True, time.monotonic()
            _quiet(self.before.with_name("said"))
            if number:
                self.number = signal.Signals(number)
            if at is not None:
                self.die_at = at
            elif number:
                timer = threading.Timer(after, os.kill, (os.getpid(), number))
                timer.daemon = True
                timer.start()
            return True
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if number:
            self._judge(number, code)
        else:
            self.undisturbed = code
        return False

    def _judge(self, number: int, code: int) -> None:
        settled = (self.work / SETTLED).exists()
        (self.work / SETTLED).unlink(missing_ok=True)
        if number == signal.SIGKILL:
            self.counts["kill"] += 1
        else:
            self.counts["signal"] += 1
            said = self.before.with_name("said").read_text(errors="replace")
            polite = code in CODES[signal.Signals(number)] and "Traceback" not in said and not leftovers()
            if not polite and not (settled and code == self.undisturbed):  # the signal came after the end
                self.counts["rude"] += 1
                self.notes.append(f"{signal.Signals(number).name} gave {code}: {said[-2000:]}")
        old = contents(self.before, self.command.outputs)
        now = self._outputs()
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
        kept = {p: c for p, c in contents(self.before, (".",)).items() if p not in old}
        for path, content in kept.items():
            if not (self.work / path).is_file() or (self.work / path).read_bytes() != content:
                self.counts["lost"] += 1
                self.notes.append(f"{path} is lost")
        for folder in sorted({self.work, *(path.parent for path in leftovers())}):
            if not folder.exists():  # it was inside another
                continue
            with replacing(folder / "next") as path:
                path.write_text("next")
            (folder / "next").unlink()
        self.counts["left"] += len(leftovers())
        if self.command.resumes and number == signal.SIGKILL and self.counts["kill"] % 10 == 0:
            self._resume()

    def _resume(self) -> None:
        """Continue what was killed, in one more child, and compare the weights."""
        self.counts["resumes"] += 1
        pid = os.fork()
        if pid == 0:
            os._exit(run([*self.command.arguments, "--resume"]))
        os.waitpid(pid, 0)
        same = weights(self.work / "out.pt2") == self.new_weights
        self.counts["resumed"] += same

    def _outputs(self) -> dict[str, bytes]:
        found = contents(self.work, self.command.outputs)
        if self.command.resumes and not hasattr(self, "new_weights"):
            self.new_weights = weights(self.work / "out.pt2")
        return found

    def _restore(self) -> None:
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.before, self.work, dirs_exist_ok=True)


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
