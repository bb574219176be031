"""Open every artifact anew, warm up, measure in turns; several times over."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncompress.bench.inputs import Inputs, inputs_for
from nncompress.bench.measure import ArmTimes, Call, Measurement, undisturbed
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.runtimes import open_artifact

FEWEST_SESSIONS = 3  # so many even where the time is up: fewer say nothing of their spread
FEWEST_ROUNDS = 5  # per session
LONGEST = 3  # times the budget, with opening and warming up: then no further session begins


@dataclass(frozen=True)
class Arm:
    """One artifact to measure.

    Attributes:
        artifact: a path that a runtime owns, or a loaded model, which torch runs.
        parameters, macs: carried into the result, where known.
    """

    name: str
    artifact: str | Path | Model
    parameters: int | None = None
    macs: int | None = None


@dataclass
class Measured:
    """What `measure_sessions` returns: times[session][arm], load_s[arm][session]."""

    times: list[list[ArmTimes]]
    load_s: list[list[float]]
    warm_up_rounds: int = 0
    warnings: tuple[str, ...] = ()


def measure_sessions(
    arms: Sequence[Arm],
    inputs: Inputs,
    threads: int,
    *,
    time_budget: float,
    rounds: int | None,
    sessions: int,
    seed: int,
    progress: Progress,
) -> Measured:
    """Measure all arms in turns; see `benchmark` for the arguments."""
    measured = Measured([], [[] for _ in arms])
    generator = np.random.default_rng(seed)
    unsettled = 0
    order: list[int] = []
    begin = time.perf_counter()
    with undisturbed():
        for session in range(sessions):
            late = time.perf_counter() - begin > LONGEST * time_budget
            if rounds is None and session >= FEWEST_SESSIONS and late:
                break
            # The order of opening decides where the weights lie in memory, so it must not favour an arm:
            # every order is followed by its reverse.
            order = order[::-1] if session % 2 else generator.permutation(len(arms)).tolist()
            calls = _open(arms, order, inputs, threads, measured.load_s)
            seed_here = int(generator.integers(2**32))
            measurement = Measurement(calls, seed=seed_here, by_cpu=threads == 1)
            count, settled = measurement.warm_up()
            measured.warm_up_rounds += count
            unsettled += not settled
            _measure(measurement, time_budget, rounds, session, sessions, progress)
            measured.times.append(measurement.times)
            del measurement, calls
            gc.collect()  # what this session had open
    progress.step("benchmarking", 100, 100)
    if unsettled:
        measured.warnings = (
            f"in {unsettled} of {len(measured.times)} sessions the times had not settled after warming up. "
            "Other programs are likely; stop them, or measure longer (--time 60s).",
        )
    return measured


def _open(
    arms: Sequence[Arm], order: list[int], inputs: Inputs, threads: int, load_s: list[list[float]]
) -> list[Call]:
    """One call per arm, each artifact opened in new memory. What opening took is added to `load_s`."""
    calls: dict[int, Call] = {}
    for i in order:
        artifact = arms[i].artifact
        started = time.perf_counter()
        runner = open_artifact(artifact.copy() if isinstance(artifact, Model) else artifact, threads)
        load_s[i].append(time.perf_counter() - started)
        calls[i] = runner.bind(*inputs_for(runner, inputs, arms[i].name))
    return [calls[i] for i in range(len(arms))]


def _measure(
    measurement: Measurement,
    time_budget: float,
    rounds: int | None,
    session: int,
    sessions: int,
    progress: Progress,
) -> None:
    """The session's share of the rounds, or of the time."""
    begin = time.perf_counter()
    while True:
        if rounds is None:
            share = (time.perf_counter() - begin) * sessions / time_budget
            enough = share >= 1 and measurement.rounds >= FEWEST_ROUNDS
        else:
            wanted = -(-rounds // sessions)
            share, enough = measurement.rounds / wanted, measurement.rounds >= wanted
        progress.step("benchmarking", round(100 * (session + min(share, 1.0)) / sessions), 100)
        if enough:
            return
        measurement.round()
