"""Several processes at work in one folder; any is killed at any time and begun again (see `faults`)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.robustness.fault_commands import SEARCH, TRAINING
from benchmarks.robustness.fault_files import contents, is_whole, leftovers, weights
from nncompress.cli.app import run
from nncompress.files.atomic import replacing

PATIENCE = 300  # seconds, for a process that nothing kills
LONGEST = 20  # seconds, until one is killed


@dataclass(frozen=True)
class Storm:
    """What is killed.

    Attributes:
        commands: at work at the same time; of one that was killed, `again` are the arguments to go on with.
        outputs: which must be whole at every kill.
        result: that of one of the commands alone, at the end of a round.
        begun: the file that the first writes before the others can begin; each then does its own trials,
            and begun again some more, so that the result is that of a longer search.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    result: str
    again: tuple[str, ...] = ()
    begun: str = ""


STORMS = (
    Storm(
        "prune, two onto one file",
        tuple(("prune", f"{name}.pt2", "--sparsity", "0.5", "-o", "out.pt2") for name in ("kept", "other")),
        ("out.pt2", ".nncompress"),
        "out.pt2",
    ),
    Storm(
        "quantize --stream",  # a second onto one folder is refused
        (("quantize", "kept.safetensors", "--stream", "--mode", "weights", "-o", "shards"),),
        ("shards",),
        "shards",
    ),
    Storm(
        "train",
        (("train", "kept.pt2", *TRAINING, "--epochs", "20", "-o", "out.pt2"),),
        ("out.pt2", "out.pt2.checkpoint", "out.pt2.jsonl", ".nncompress"),
        "out.pt2",
        again=("--resume",),
    ),
    Storm(  # OpenVINO's threads do not live on in a fork: no series of it
        "export .xml",
        (("export", "kept.pt2", "-o", "out.xml"),),
        ("out.xml", "out.bin", ".nncompress"),
        "out.xml",
    ),
    Storm(
        "optimize, two workers",
        (
            ("optimize", "kept.pt2", *SEARCH[2:], "--max-drop", "90", "-o", "out.pt2"),
            ("optimize", "--join", "kept", "--trials", "2"),
        ),
        ("kept", "out.pt2", "out.toml", ".nncompress"),
        "out.pt2",
        begun="kept/started.json",
    ),
)


def storm(each: Storm, make_inputs: Callable[[], None], kills: int, seed: int) -> Counter[str]:
    """Counts of what was seen, over as many rounds as it takes."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "before").mkdir()
        with chdir(folder / "before"):
            make_inputs()
        known, seconds = _undisturbed(each, folder)
        counts: Counter[str] = Counter()
        while counts["kill"] < kills:
            work = folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(folder / "before", work)
            _Round(each, work, chance, seconds, counts).run(kills)
            counts["rounds"] += 1
            found = weights(work / each.result)
            counts["same"] += found is not None if each.begun else found in known
            kept = contents(folder / "before")
            left = contents(work)
            counts["lost"] += sum(left.get(path) != content for path, content in kept.items())
            with replacing(work / "next") as path:
                path.write_text("next")
            counts["left"] += sum(found.parent == work for found in leftovers(work))
        counts["same"] = f"{counts['same']}/{counts['rounds']}"  # type: ignore[assignment]
        return counts


def _undisturbed(each: Storm, folder: Path) -> tuple[list[object], float]:
    """What the commands come to by themselves, each in a folder of its own, and how long that takes."""
    known: list[object] = []
    seconds = 0.0
    for number, command in enumerate(each.commands):
        if each.begun and number:  # one that only helps
            break
        work = folder / f"alone-{number}"
        shutil.copytree(folder / "before", work)
        started = time.monotonic()
        assert _wait(_begun(command, work, work / ".said")) == 0, (work / ".said").read_text()
        seconds = time.monotonic() - started
        known.append(weights(work / each.result))
    return known, seconds


@dataclass
class _Round:
    """Until every command has ended by itself."""

    storm: Storm
    work: Path
    chance: random.Random
    seconds: float
    counts: Counter[str]
    running: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def run(self, kills: int) -> None:
        first, *others = self.storm.commands
        self._begin(first)
        end = time.monotonic() + PATIENCE
        while self.storm.begun and not (self.work / self.storm.begun).exists():
            assert time.monotonic() < end, f"{self.storm.begun} does not come"
            time.sleep(0.01)
        for command in others:
            self._begin(command)
        while self.running:
            if self.counts["kill"] >= kills:
                for pid in list(self.running):
                    self._ended(pid, _wait(pid))
                return
            pid = self.chance.choice(list(self.running))
            self._ended(pid, _killed(pid, self.chance.uniform(0, min(self.seconds, LONGEST))))

    def _begin(self, command: tuple[str, ...]) -> None:
        self.running[_begun(command, self.work, self.work.with_name("said"))] = command

    def _ended(self, pid: int, code: int) -> None:
        command = self.running.pop(pid)
        if code == -signal.SIGKILL:
            self.counts["kill"] += 1
            self._check()
            missing = [part for part in self.storm.again if part not in command]
            self._begin((*command, *missing))
        elif code == 0:
            self.counts["ended"] += 1
        else:
            self.counts["torn"] += 1
            print(f"{self.storm.name}: {' '.join(command)} ended with {code}", file=sys.stderr)
            print(self.work.with_name("said").read_text()[-2000:], file=sys.stderr)

    def _check(self) -> None:
        """In a copy: the others go on meanwhile, and what they replace is whole before and after."""
        copy = self.work.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        found = contents(self.work, self.storm.outputs)
        for place, content in found.items():
            (copy / place).parent.mkdir(parents=True, exist_ok=True)
            (copy / place).write_bytes(content)
        for place in found:
            if not _is_whole_apart(copy / place):
                self.counts["torn"] += 1
                print(f"{self.storm.name}: {place} is torn", file=sys.stderr)


def _is_whole_apart(path: Path) -> bool:
    """In a process of its own: runtimes leave threads behind, that forks of this one would wait for."""
    if (pid := os.fork()) == 0:
        os._exit(not is_whole(path))
    return _wait(pid) == 0


def _begun(command: tuple[str, ...], work: Path, log: Path) -> int:
    if (pid := os.fork()) == 0:
        os.chdir(work)
        os.environ["XDG_CACHE_HOME"] = str(work.with_name("cache"))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os._exit(run(list(command)))
    return pid


def _killed(pid: int, after: float) -> int:
    """Exit code of a process that is killed after so many seconds, if it has not ended by itself."""
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return _wait(pid)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
