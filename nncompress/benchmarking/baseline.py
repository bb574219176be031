"""Is it slower than it was, or is that noise?

A measurement of today against the file of an earlier one, on the same machine. Of two moments of a machine
the latencies differ by some percent although nothing changed, and no number of calls within one moment shows
it. So the first model is the control: what counts for the others is their ratio to it, then and now, from
which the state of the machine cancels. Where there is no control (one model only, or another file in its
place), latencies are compared, and the tolerance must cover the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.benchmarking import stats
from nncompress.errors import DataError, UsageError
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.results import SCHEMA, BaselineResult, BenchResult, BenchSuite, Change

TOLERANCE = 0.05
LARGEST = 1 << 30  # bytes of a baseline: raw samples of a long run
# What must be as it was: another processor or runtime is another measurement.
SAME = ("cpu", "architecture", "cores", "instruction_sets")
# What is worth a note.
NOTED = ("cores_usable", "governor", "memory", "system", "python")


@dataclass(frozen=True)
class Run:
    """What is compared of one batch size: per candidate and session the times of each round, nanoseconds."""

    batch: int
    threads: int
    clock: str
    environment: Mapping[str, Any]
    gpu: str
    runtimes: Mapping[str, str]
    digests: Mapping[str, str | None]
    times: Mapping[str, list[np.ndarray]]

    @property
    def first(self) -> str:
        return next(iter(self.times))


def read(path: str | Path) -> tuple[Run, ...]:
    """The runs of a file that `bench -o` wrote (or `bench --json` printed).

    Raises:
        DataError: it is missing, no such file, or of another version.
    """
    try:
        content = read_json(path, LARGEST)
    except Unreadable as problem:
        raise DataError(f"cannot read the baseline {path}", got=str(problem), remedy=_MAKE_ONE) from problem
    if not isinstance(content, dict) or content.get("kind") != BenchSuite.kind:
        got = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path} is no result of bench", got=str(got), expected=BenchSuite.kind, remedy=_MAKE_ONE
        )
    if content.get("schema") != SCHEMA:
        raise DataError(
            f"{path} was written by another version",
            got=f"schema {content.get('schema')}",
            expected=f"schema {SCHEMA}",
            remedy=_MAKE_ONE,
        )
    try:
        runs = tuple(_run(run) for run in content["runs"])
        if not runs:
            raise ValueError("no runs")
        return runs
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as problem:
        raise DataError(
            f"{path} is damaged", got=f"{type(problem).__name__}: {problem}", remedy=_MAKE_ONE
        ) from problem


_MAKE_ONE = "measure a baseline on this machine: nncompress bench MODEL... -o baseline.json"


def compare(
    baseline: tuple[Run, ...], suite: BenchSuite, *, name: str, tolerance: float = TOLERANCE
) -> BaselineResult:
    """What became of each model since the baseline.

    Args:
        name: of the baseline, for messages.
        tolerance: a slowdown whose whole interval lies above 1 + this is a regression.
    Raises:
        UsageError: another machine, other settings, or a model of the baseline was not measured now.
    """
    changes: list[Change] = []
    notes: list[str] = []
    for result in suite.runs:
        now = of(result)
        then = next((run for run in baseline if run.batch == now.batch), None)
        if then is None:
            notes.append(f"batch {now.batch} is not in {name}: nothing to compare with")
            continue
        notes += _check(then, now, name)
        changes += _changes(then, now, name, tolerance, notes)
    return BaselineResult(name, tolerance, tuple(changes), tuple(dict.fromkeys(notes)))


def check_plan(
    baseline: tuple[Run, ...],
    environment: Mapping[str, Any],
    *,
    batches: Sequence[int],
    threads: int,
    clock: str,
    names: Sequence[str],
    name: str,
) -> None:
    """Refuse before the measurement what cannot be compared after it.

    Raises:
        UsageError: another machine, number of threads or clock, no batch size in common, a model of the
            baseline is missing, or the baseline has a single session.
    """
    common = [run for run in baseline if run.batch in batches]
    if not common:
        raise UsageError(
            f"{name} has no batch size in common with this measurement",
            got=f"--batch {','.join(map(str, batches))}",
            expected=f"--batch {','.join(str(run.batch) for run in baseline)}",
        )
    for run in common:
        _check_machine(run, environment, name)
        _check_settings(run, threads, clock, name)
        _check_names(run, names, name)
        _check_sessions(run, name)


def of(result: BenchResult) -> Run:
    """A measurement as it would be read back from its file."""
    return _run(result.to_json())


def _run(content: Mapping[str, Any]) -> Run:
    lengths = [int(length) for length in content["rounds_per_session"]]
    if any(length < 1 for length in lengths):
        raise ValueError("a session without rounds")
    candidates = {str(candidate["name"]): candidate for candidate in content["candidates"]}
    clock = content["clock"]
    if clock not in ("cpu", "wall", "GPU"):
        raise ValueError("another clock")
    times = {}
    for name, candidate in candidates.items():
        samples = np.asarray(candidate["samples"]["cpu_ns" if clock == "cpu" else "wall_ns"], np.float64)
        if (
            samples.shape != (sum(lengths),)
            or not lengths
            or not (np.isfinite(samples) & (samples >= 0)).all()
        ):
            raise ValueError(f"the samples of {name} are not complete")
        times[name] = [np.maximum(session, 1) for session in np.split(samples, np.cumsum(lengths)[:-1])]
    if not times:
        raise ValueError("no models")
    if not isinstance(content["environment"].get("versions") or {}, dict):
        raise ValueError("no versions")
    return Run(
        batch=int(content["batch"]),
        threads=int(content["threads"]),
        clock=str(clock),
        environment=dict(content["environment"]),
        gpu=str(content["environment"].get("gpu", {"before": {}})["before"].get("name", "")),
        runtimes={name: str(candidate["runtime"]) for name, candidate in candidates.items()},
        digests={name: candidate.get("sha256") for name, candidate in candidates.items()},
        times=times,
    )


def _check(then: Run, now: Run, name: str) -> list[str]:
    """Refuse what cannot be compared; notes on what is different and may matter."""
    _check_machine(then, now.environment, name)
    _check_settings(then, now.threads, now.clock, name)
    _check_names(then, list(now.times), name)
    if then.gpu != now.gpu:
        raise UsageError(
            f"{name} was measured on another GPU", got=now.gpu, expected=then.gpu, remedy=_MAKE_ONE
        )
    notes = []
    for key in NOTED:
        if then.environment.get(key) != now.environment.get(key):
            notes.append(f"{key} was {then.environment.get(key)}, is {now.environment.get(key)}")
    versions = [dict(run.environment.get("versions") or {}) for run in (then, now)]
    for package in sorted({*versions[0], *versions[1]}):
        was, is_now = (each.get(package, "not installed") for each in versions)
        if was != is_now:
            notes.append(f"{package} was {was}, is {is_now}")
    return notes


def _check_machine(then: Run, environment: Mapping[str, Any], name: str) -> None:
    for key in SAME:
        if then.environment.get(key) != environment.get(key):
            raise UsageError(
                f"{name} was measured on another machine: {key} differs",
                got=str(environment.get(key)),
                expected=str(then.environment.get(key)),
                remedy=_MAKE_ONE,
            )


def _check_settings(then: Run, threads: int, clock: str, name: str) -> None:
    if then.threads != threads:
        raise UsageError(
            f"{name} was measured with other threads",
            got=f"--threads {threads}",
            expected=f"--threads {then.threads}",
        )
    if then.clock != clock:
        raise UsageError(
            f"{name} was measured by another clock", got=clock, expected=then.clock, remedy=_MAKE_ONE
        )


def _check_names(then: Run, names: Sequence[str], name: str) -> None:
    missing = [each for each in then.times if each not in names]
    if missing:
        raise UsageError(
            f"{name} holds {', '.join(missing)}, which is not measured now",
            got=", ".join(names),
            remedy="name the same models, or measure a new baseline",
        )


def _check_sessions(run: Run, name: str) -> None:
    if len(run.times[run.first]) < 2:
        raise UsageError(
            f"{name} has a single session, which tells nothing of its noise",
            remedy="measure it again without interrupting it",
        )


def _changes(then: Run, now: Run, name: str, tolerance: float, notes: list[str]) -> list[Change]:
    _check_sessions(then, name)
    _check_sessions(now, "this measurement")
    control = now.first
    digests = [run.digests.get(control) for run in (then, now)]
    if then.first != control or digests[0] != digests[1]:
        notes.append(f"{control} is not the file that was first in {name}: latencies are compared")
        control = ""
    elif len(now.times) == 1:
        control = ""
    changes = []
    for candidate in now.times:
        if candidate not in then.times:
            notes.append(f"{candidate} is not in {name}")
            continue
        if _runtime(then.runtimes[candidate]) != _runtime(now.runtimes[candidate]):
            raise UsageError(
                f"{candidate} was measured in another runtime",
                got=now.runtimes[candidate],
                expected=then.runtimes[candidate],
                remedy=_MAKE_ONE,
            )
        before, after = _medians(then, candidate, control), _medians(now, candidate, control)
        slowdown = stats.slowdown(before, after)
        if candidate == control:
            away = max(slowdown.value, 1 / slowdown.value) - 1
            if away > tolerance:
                notes.append(
                    f"{candidate}, the same file as then, takes {slowdown.value:.2f} times as long: "
                    "the machine or its software is in another state. Ratios to it are compared, "
                    "which are free of that"
                )
            continue
        changes.append(
            Change(
                name=candidate,
                batch=now.batch,
                measure=f"ratio to {control}" if control else "latency",
                slowdown=slowdown,
                regressed=slowdown.low > 1 + tolerance,
            )
        )
    return changes


def _runtime(name: str) -> str:
    """Without the version: "ONNX Runtime 1.31.1 CPU" is "ONNX Runtime CPU"; versions are noted elsewhere."""
    return " ".join(word for word in name.split() if not word[0].isdigit())


def _medians(run: Run, candidate: str, control: str) -> list[float]:
    """Per session the median time of the candidate, of its ratio to the control where there is one."""
    if not control or control == candidate:
        return [float(np.median(session)) for session in run.times[candidate]]
    pairs = zip(run.times[candidate], run.times[control])
    return [float(np.median(mine / other)) for mine, other in pairs]
