"""Open every artifact anew, warm up, measure in turns; several times over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncompress.bench.inputs import Inputs, inputs_for
from nncompress.bench.measure import ArmTimes, Measurement, undisturbed
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.runtimes import Runner, open_artifact

FEWEST_SESSIONS = 3  # so many even where the time is up: fewer say nothing of their spread
FEWEST_ROUNDS = 5  # per session


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
    time_budget: float,
    rounds: int | None,
    sessions: int,
    seed: int,
    progress: Progress,
) -> Measured:
    measured = Measured([], [[] for _ in arms])
    generator = np.random.default_rng(seed)
    unsettled = 0
    begin = time.perf_counter()
    for session in range(sessions):
        if rounds is None and session >= FEWEST_SESSIONS and time.perf_counter() - begin > time_budget:
            break
        runners: dict[int, Runner] = {}
        # The order of opening decides where the weights lie in memory, so it must not favour an arm.
        for i in generator.permutation(len(arms)).tolist():
            artifact = arms[i].artifact
            started = time.perf_counter()
            runners[i] = open_artifact(artifact.copy() if isinstance(artifact, Model) else artifact, threads)
            measured.load_s[i].append(time.perf_counter() - started)
        calls = [runners[i].bind(*inputs_for(runners[i], inputs, arm.name)) for i, arm in enumerate(arms)]
        measurement = Measurement(calls, seed=int(generator.integers(2**32)))
        with undisturbed():
            count, settled = measurement.warm_up()
            measured.warm_up_rounds += count
            unsettled += not settled
            deadline = begin + time_budget * (session + 1) / sessions
            while not _is_enough(measurement.rounds, rounds, sessions, deadline):
                measurement.round()
                used = (time.perf_counter() - begin) / time_budget if rounds is None else session / sessions
                progress.step("benchmarking", min(100, round(100 * used)), 100)
        measured.times.append(measurement.times)
    progress.step("benchmarking", 100, 100)
    if unsettled:
        measured.warnings = (
            f"in {unsettled} of {len(measured.times)} sessions the times had not settled after warming up. "
            "Other programs are likely; stop them, or measure longer (--time 60s).",
        )
    return measured


def _is_enough(done: int, rounds: int | None, sessions: int, deadline: float) -> bool:
    if rounds is not None:
        return done >= max(1, -(-rounds // sessions))
    return done >= FEWEST_ROUNDS and time.perf_counter() >= deadline
