"""Open every artifact anew, warm up, measure in turns; several times over."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.benchmarking import stats
from nncompress.benchmarking.gpu import event_clock, gpu_state
from nncompress.benchmarking.inputs import Inputs, inputs_for
from nncompress.benchmarking.measure import Call, CandidateTimes, Measurement, undisturbed
from nncompress.ir import InputSpec, Model
from nncompress.ir.stated_constants import Constant
from nncompress.progress import Progress
from nncompress.runtimes import Runner, open_artifact
from nncompress.runtimes.base import input_array
from nncompress.runtimes.cuda.on_cuda import Cuda, open_on_cuda
from nncompress.runtimes.with_constants import with_constants

FEWEST_SESSIONS = 3  # so many even where the time is up: fewer say nothing of their spread
FEWEST_ROUNDS = 5  # per session
LONGEST = 3  # times the budget, with opening and warming up: then no further session begins
LONGEST_TO_TARGET = 10  # the same where an interval must become narrow


@dataclass(frozen=True)
class Candidate:
    """One artifact to measure.

    Attributes:
        artifact: a path that a runtime owns, or a loaded model, which torch runs.
        parameters, macs, sha256: carried into the result, where known.
        cuda: run it on the GPU.
        runtime, precision: of a file: another runtime than its own, and in what that computes floats.
        inputs, sizes: how a file's inputs are to be read, where that was stated: `Runner.inputs`, `.sizes`.
        constants: inputs of a file that have the same value in every run.
    """

    name: str
    artifact: str | Path | Model
    parameters: int | None = None
    macs: int | None = None
    sha256: str | None = None
    cuda: Cuda | None = None
    runtime: str | None = None
    precision: str | None = None
    inputs: tuple[InputSpec, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    constants: tuple[Constant, ...] = ()

    def open(self, threads: int, *, anew: bool = False) -> Runner:
        """In its runtime; `anew`: in memory of its own, also where it is a loaded model."""
        artifact = self.artifact
        if anew and isinstance(artifact, Model):
            artifact = artifact.copy()
        if self.cuda is not None:
            opened = with_constants(open_on_cuda(artifact, self.cuda), self.constants, self.name)
        else:
            opened = open_artifact(
                artifact,
                threads,
                runtime=self.runtime,
                precision=self.precision,
                constants=self.constants,
            )
        if self.inputs:
            opened.inputs, opened.sizes = self.inputs, self.sizes
        return opened

    def complete(self, inputs: Inputs) -> Inputs:
        """All that the file takes, constants too."""
        if not self.constants:
            return inputs
        return tuple(map(input_array, self.open(1).complete(inputs)))


def clock_of(candidates: Sequence[Candidate], threads: int) -> str:
    """The clock that ratios are taken from: "GPU" (events), else "cpu" with one thread, else "wall"."""
    if any(candidate.cuda is not None for candidate in candidates):
        return "GPU"
    return "cpu" if threads == 1 else "wall"


@dataclass
class Measured:
    """What `measure_sessions` returns: times[session][candidate], load_s[candidate][session].

    Attributes:
        gpu: its state at the end of each session, where there were candidates on one.
    """

    times: list[list[CandidateTimes]]
    load_s: list[list[float]]
    warm_up_rounds: int = 0
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    gpu: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        time_budget: seconds of measuring, shared by the sessions.
        rounds: so many rounds instead, shared by the sessions.
        target_error: measure further sessions until every ratio (of a single candidate: its latency) is
            known to within this, 0.01 is 1 %; at most `LONGEST_TO_TARGET` times the budget.
    """

    time_budget: float
    rounds: int | None
    sessions: int
    target_error: float | None = None


def measure_sessions(
    candidates: Sequence[Candidate],
    inputs: Inputs,
    threads: int,
    plan: Plan,
    *,
    seed: int,
    progress: Progress,
) -> Measured:
    """Measure all candidates in turns; see `benchmark` for the arguments.

    Raises:
        KeyboardInterrupt: before there was anything to keep. Later it ends the measurement early.
    """
    measured = Measured([], [[] for _ in candidates])
    by_cpu = clock_of(candidates, threads) == "cpu"
    clock = event_clock() if clock_of(candidates, threads) == "GPU" else None
    generator = np.random.default_rng(seed)
    unsettled = 0
    order: list[int] = []
    begin = time.perf_counter()
    try:
        with undisturbed():
            while not _enough(measured.times, plan, time.perf_counter() - begin, by_cpu):
                # The order of opening decides where the weights lie in memory, and must favour none:
                # every order is followed by its reverse.
                odd = len(measured.times) % 2
                order = order[::-1] if odd else generator.permutation(len(candidates)).tolist()
                calls = _open(candidates, order, inputs, threads, measured.load_s)
                seed_here = int(generator.integers(2**32))
                measurement = Measurement(calls, seed=seed_here, by_cpu=by_cpu, clock=clock)
                count, settled = measurement.warm_up()
                measured.warm_up_rounds += count
                unsettled += not settled
                try:
                    _measure(measurement, plan, len(measured.times), progress)
                finally:  # Ctrl-C does not take back what is measured
                    if measurement.rounds >= (FEWEST_ROUNDS if plan.rounds is None else 1):
                        measured.times.append(measurement.times)
                if clock is not None:
                    measured.gpu.append(gpu_state())  # while it is warm: an idle one is never throttled
                del measurement, calls
                gc.collect()  # what this session had open
    except KeyboardInterrupt:
        if not measured.times:
            raise
        measured.interrupted = True
    progress.step("benchmarking", 100, 100)
    measured.warnings = _notices(measured, plan, unsettled, by_cpu)
    return measured


def widest(times: list[list[CandidateTimes]], by_cpu: bool) -> float:
    """To within what the least certain ratio is known: 0.01 is 1 %. Of a single candidate: its latency."""
    clock = "cpu_ns" if by_cpu else "wall_ns"
    candidates = [[getattr(session[i], clock) for session in times] for i in range(len(times[0]))]
    estimates = [stats.speedup(candidates[0], other) for other in candidates[1:]] or [
        stats.typical(candidates[0])
    ]
    return max(stats.precision(estimate) for estimate in estimates)


def _enough(times: list[list[CandidateTimes]], plan: Plan, elapsed: float, by_cpu: bool) -> bool:
    sessions = len(times)
    if plan.rounds is not None:
        return sessions >= plan.sessions
    if plan.target_error is None:
        late = sessions >= FEWEST_SESSIONS and elapsed > LONGEST * plan.time_budget
        return late or sessions >= plan.sessions
    # Never fewer sessions than without a target: stopping as soon as the first few happen to agree would
    # report intervals that are too narrow.
    late = sessions >= FEWEST_SESSIONS and elapsed > LONGEST_TO_TARGET * plan.time_budget
    return late or (sessions >= plan.sessions and widest(times, by_cpu) <= plan.target_error)


def _notices(measured: Measured, plan: Plan, unsettled: int, by_cpu: bool) -> tuple[str, ...]:
    found = []
    if measured.interrupted:
        found.append(
            f"interrupted after {len(measured.times)} of {plan.sessions} sessions. The intervals hold for "
            "what was measured; fewer sessions say less of how openings of one file differ."
        )
    if unsettled:
        found.append(
            f"in {unsettled} of {len(measured.times)} sessions the times had not settled after warming up. "
            "Other programs are likely; stop them, or measure longer (--time 60s)."
        )
    if plan.target_error is not None:
        reached = widest(measured.times, by_cpu)
        if reached > plan.target_error:
            found.append(
                f"the interval is still ±{100 * reached:.2g} % and not ±{100 * plan.target_error:.2g} % "
                f"after {len(measured.times)} sessions. Stop other programs, or allow more (a longer --time)."
            )
    return tuple(found)


def _open(
    candidates: Sequence[Candidate], order: list[int], inputs: Inputs, threads: int, load_s: list[list[float]]
) -> list[Call]:
    """One call per candidate, each artifact opened in new memory. What opening took is added to `load_s`."""
    calls: dict[int, Call] = {}
    for i in order:
        started = time.perf_counter()
        runner = candidates[i].open(threads, anew=True)
        load_s[i].append(time.perf_counter() - started)
        calls[i] = runner.bind(*inputs_for(runner, inputs, candidates[i].name))
    return [calls[i] for i in range(len(candidates))]


def _measure(measurement: Measurement, plan: Plan, session: int, progress: Progress) -> None:
    """The session's share of the rounds, or of the time."""
    begin = time.perf_counter()
    while True:
        if plan.rounds is None:
            share = (time.perf_counter() - begin) * plan.sessions / plan.time_budget
            enough = share >= 1 and measurement.rounds >= FEWEST_ROUNDS
        else:
            wanted = -(-plan.rounds // plan.sessions)
            share, enough = measurement.rounds / wanted, measurement.rounds >= wanted
        if session < plan.sessions:
            percent = round(100 * (session + min(share, 1.0)) / plan.sessions)
            progress.step("benchmarking", percent, 100)
        else:
            progress.step("benchmarking until the interval is narrow", session, None)
        if enough:
            return
        measurement.round()
