"""Artifacts measured against each other, so that the ratio can be believed.

    result = benchmark([Arm("original", model), Arm("int8", "model.onnx")], batch=1)
    result.arms[1].speedup          # Estimate(value=1.61, low=1.58, high=1.64, confidence=0.95)

`measure` takes the times over several `sessions`, `stats` makes ratios of them, `noise` says when not to
believe them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nncompress.bench import noise, stats
from nncompress.bench.environment import environment
from nncompress.bench.inputs import Inputs, random_inputs
from nncompress.bench.measure import ArmTimes
from nncompress.bench.parity import compare_outputs
from nncompress.bench.peak_memory import peak_memory
from nncompress.bench.sessions import Arm, measure_sessions
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.progress import NullProgress, Progress
from nncompress.results import ArmResult, BenchResult, Estimate, Samples
from nncompress.runtimes import Runner, open_artifact

__all__ = ["Arm", "benchmark"]

SESSIONS = 8
PARITY_RECORDS = 16


def benchmark(
    arms: Sequence[Arm],
    *,
    inputs: Inputs | None = None,
    parity_inputs: Inputs | None = None,
    batch: int = 1,
    threads: int = 1,
    time_budget: float = 10.0,
    rounds: int | None = None,
    sessions: int = SESSIONS,
    memory: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure all arms in one interleaved run.

    Args:
        arms: the first one is what the others are compared with.
        inputs: arrays of one call; None: random ones of this `batch`.
        parity_inputs: what outputs are compared on; None: `inputs`, or random ones of more records.
        threads: per call. With 1, ratios are taken from the thread's CPU time, else from the wall clock.
        time_budget: seconds of measuring, without opening and warming up. Where these take more than twice
            as long, there are fewer sessions, but at least 3 of 5 rounds.
        rounds: measure this many rounds instead, spread over the sessions.
        sessions: how often every artifact is opened anew (see `stats`).
        memory: also measure each artifact's peak memory, which takes a process of its own and some seconds.
        seed: of the inputs and of the order of the arms.
    Raises:
        UsageError: no arms, an option below its minimum, or an artifact that takes other inputs.
        ModelFileError, UnsupportedError: an artifact cannot be opened.
        DataError: an artifact does not run on the inputs.
    """
    _check_options(arms, batch=batch, threads=threads, rounds=rounds, sessions=sessions, seconds=time_budget)
    progress = progress or NullProgress()
    progress.step("opening", 0, len(arms))
    runners = [open_artifact(arm.artifact, threads) for arm in arms]
    free = all(isinstance(spec.shape[0], str) for r in runners for spec in r.inputs if spec.shape)
    records = max(batch, PARITY_RECORDS) if free else batch
    if parity_inputs is None:
        parity_inputs = inputs if inputs is not None else _example(arms, runners, records, seed + 1)
    inputs = inputs if inputs is not None else _example(arms, runners, batch, seed)
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else batch
    parity, parity_warnings = compare_outputs([arm.name for arm in arms], runners, parity_inputs)
    names, sizes = [runner.name for runner in runners], [runner.file_size for runner in runners]
    del runners  # the sessions open their own

    measured = measure_sessions(
        arms,
        inputs,
        threads,
        time_budget=time_budget,
        rounds=rounds,
        sessions=sessions,
        seed=seed,
        progress=progress,
    )
    peaks: list[int | None] = [None] * len(arms)
    if memory:
        for i, arm in enumerate(arms):
            progress.step("measuring peak memory", i, len(arms))
            peaks[i] = peak_memory(arm.artifact, inputs, threads)
        progress.step("measuring peak memory", len(arms), len(arms))

    results = []
    wall_speedups: list[Estimate | None] = []
    for i, arm in enumerate(arms):
        wall = [session[i].wall_ns for session in measured.times]
        cpu = [session[i].cpu_ns for session in measured.times] if threads == 1 else None
        wall_speedups.append(_speedup(measured.times, i, "wall_ns", seed))
        results.append(
            ArmResult(
                name=arm.name,
                runtime=names[i],
                wall=stats.latency(np.concatenate(wall)),
                cpu=stats.latency(np.concatenate(cpu)) if cpu else None,
                speedup=_speedup(measured.times, i, "cpu_ns", seed) if cpu else wall_speedups[-1],
                parity=parity[i],
                samples=Samples(_flat(wall), _flat(cpu) if cpu else None),
                load_s=min(measured.load_s[i]) if sizes[i] is not None else None,
                peak_memory=peaks[i],
                file_size=sizes[i],
                parameters=arm.parameters,
                macs=arm.macs,
            )
        )
    return BenchResult(
        arms=tuple(results),
        batch=batch,
        threads=threads,
        clock="cpu" if threads == 1 else "wall",
        rounds_per_session=tuple(len(session[0].wall_ns) for session in measured.times),
        warmup=measured.warm_up_rounds,
        seed=seed,
        environment=environment(),
        warnings=(*parity_warnings, *measured.warnings, *noise.warnings(results, wall_speedups)),
    )


def _speedup(times: list[list[ArmTimes]], arm: int, clock: str, seed: int) -> Estimate | None:
    if arm == 0:
        return None
    first, other = ([getattr(session[i], clock) for session in times] for i in (0, arm))
    return stats.speedup(first, other, seed=seed)


def _example(arms: Sequence[Arm], runners: Sequence[Runner], batch: int, seed: int) -> Inputs:
    """Random inputs of this batch. A loaded model knows the bounds of its dynamic dims, a file does not."""
    model = next((arm.artifact for arm in arms if isinstance(arm.artifact, Model)), None)
    if model is None:
        return random_inputs(runners[0].inputs, batch, seed)
    tensors = model.example_inputs(batch, seed)
    return tuple((x.float() if x.is_floating_point() else x).numpy() for x in tensors)


def _flat(sessions: list[list[int]]) -> tuple[int, ...]:
    return tuple(t for session in sessions for t in session)


def _check_options(arms: Sequence[Arm], *, rounds: int | None, seconds: float, **at_least_one: int) -> None:
    if not arms:
        raise UsageError("there is nothing to benchmark", expected="at least one artifact")
    for name, value in {**at_least_one, **({} if rounds is None else {"rounds": rounds})}.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1", got=str(value))
    if not seconds > 0:
        raise UsageError("the time to measure must be above 0 seconds", got=str(seconds))
