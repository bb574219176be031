"""Artifacts measured against each other, so that the ratio can be believed.

    result = benchmark([Candidate("original", model), Candidate("int8", "model.onnx")], batch=1)
    result.candidates[1].speedup          # Estimate(value=1.61, low=1.58, high=1.64, confidence=0.95)

| module        |                                                                     |
|---------------|---------------------------------------------------------------------|
| `measure`     | times of one session, in turns                                      |
| `sessions`    | several of them, every artifact opened anew                         |
| `stats`       | from times to a ratio and its interval                              |
| `noise`       | when not to believe them                                            |
| `own_process` | peak memory and cold start                                          |
| `gpu`         | time by events, clocks of the GPU                                   |
| `energy`      | joules per call, where the machine counts them                      |
| `profile`     | time per operator                                                   |
| `baseline`    | against an earlier result: a regression, or noise?                  |
| `files`       | results as JSON and CSV                                             |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nncompress.benchmarking import noise, stats
from nncompress.benchmarking.energy import energy_per_call, meters
from nncompress.benchmarking.environment import environment
from nncompress.benchmarking.gpu import gpu_environment, gpu_state, waiting
from nncompress.benchmarking.inputs import Inputs, inputs_for, inputs_of_model, random_inputs
from nncompress.benchmarking.machine import activity, between
from nncompress.benchmarking.measure import CandidateTimes
from nncompress.benchmarking.own_process import in_own_process
from nncompress.benchmarking.parity import compare_outputs
from nncompress.benchmarking.profile import profile
from nncompress.benchmarking.sessions import Candidate, Measured, Plan, clock_of, measure_sessions
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH, count_samples
from nncompress.options import check_whole, shown
from nncompress.progress import NullProgress, Progress
from nncompress.results import BenchResult, CandidateResult, Estimate, OperatorTime, Samples
from nncompress.runtimes import Runner
from nncompress.runtimes.on_torch import kept_threads
from nncompress.targets.written_for import notes as written_for

__all__ = ["Candidate", "benchmark"]

SESSIONS = 8
PARITY_SAMPLES = 16


@kept_threads()
def benchmark(
    candidates: Sequence[Candidate],
    *,
    inputs: Inputs | None = None,
    parity_inputs: Inputs | None = None,
    batch: int = 1,
    threads: int = 1,
    time_budget: float = 10.0,
    rounds: int | None = None,
    sessions: int = SESSIONS,
    target_error: float | None = None,
    memory: bool = True,
    energy: bool = True,
    profiled: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure all candidates in one interleaved run.

    Ctrl-C ends it early: what was measured is returned, `interrupted`, with a warning.

    Args:
        candidates: the first one is what the others are compared with.
        inputs: arrays of one call; None: random ones of this `batch`.
        parity_inputs: what outputs are compared on; None: `inputs`, or random ones of more samples.
        threads: per call. With 1, ratios are taken from the thread's CPU time, else from the wall clock; on a
            GPU, from events there.
        time_budget: seconds of measuring, without opening and warming up. Where these take more than twice
            as long, there are fewer sessions, but at least 3 of 5 rounds.
        rounds: measure this many rounds instead, spread over the sessions.
        sessions: how often every artifact is opened anew (see `stats`).
        target_error: add sessions until every ratio (of a single candidate: its latency) is known to
            within this, 0.01 is 1 %, for at most ten times the budget.
        memory: also measure each artifact's peak memory and cold start, which takes a process of its own and
            some seconds.
        energy: also measure energy per call, where the machine counts it; 1.5 s per candidate.
        profiled: also take each artifact's time per operator.
        seed: of the inputs and of the order of the candidates.
    Raises:
        UsageError: no candidates, an option below its minimum, or an artifact that takes other inputs.
        ModelFileError, UnsupportedError: an artifact cannot be opened.
        DataError: an artifact does not run on the inputs.
        KeyboardInterrupt: before the first session ended.
    """
    _check_options(
        candidates,
        rounds=rounds,
        seconds=time_budget,
        target_error=target_error,
        batch=batch,
        threads=threads,
        sessions=sessions,
    )
    progress = progress or NullProgress()
    progress.step("opening", 0, len(candidates))
    runners = [candidate.open(threads) for candidate in candidates]
    clock = clock_of(candidates, threads)
    free = all(BATCH in spec.shape or spec.batch_dim is None for r in runners for spec in r.inputs)
    compared = max(batch, PARITY_SAMPLES) if free else batch
    if parity_inputs is None:
        parity_inputs = inputs if inputs is not None else _example(candidates, runners, compared, seed + 1)
    if inputs is None:
        inputs = _example(candidates, runners, batch, seed)
        _check_batch(candidates[0].name, runners[0], inputs, batch)
    batch = count_samples(runners[0].inputs, inputs)
    parity, parity_warnings = compare_outputs(
        [candidate.name for candidate in candidates], runners, parity_inputs
    )
    names, sizes = [runner.name for runner in runners], [runner.file_size for runner in runners]
    notes = tuple(
        f"{candidate.name}: {note}."
        for candidate, runner in zip(candidates, runners)
        for note in (*runner.notes, *written_for(runner.metadata, runner.runtime, runner.device))
    )
    del runners  # the sessions open their own

    surroundings = environment()
    before = activity()
    gpu_before = gpu_state() if clock == "GPU" else {}
    plan = Plan(time_budget, rounds, sessions, target_error)
    measured = measure_sessions(candidates, inputs, threads, plan, seed=seed, progress=progress)
    meanwhile = between(before, activity())
    gpu = gpu_environment([gpu_before, *measured.gpu, gpu_state()]) if clock == "GPU" else {}

    results = []
    wall_speedups: list[Estimate | None] = []
    for i, candidate in enumerate(candidates):
        wall_speedups.append(_speedup(measured.times, i, "wall_ns", seed))
        samples = _samples(measured, i, with_cpu=clock == "cpu")
        results.append(
            CandidateResult(
                name=candidate.name,
                runtime=names[i],
                wall=stats.latency(samples.wall_ns),
                cpu=stats.latency(samples.cpu_ns) if samples.cpu_ns else None,
                speedup=_speedup(measured.times, i, "cpu_ns", seed) if clock == "cpu" else wall_speedups[-1],
                parity=parity[i],
                samples=samples,
                load_s=min(measured.load_s[i]) if sizes[i] is not None else None,
                parameters=candidate.parameters,
                macs=candidate.macs,
                file_size=sizes[i],
                sha256=candidate.sha256,
            )
        )
    rounds_per_session = tuple(len(session[0].wall_ns) for session in measured.times)
    doubts = noise.warnings(
        results,
        wall_speedups,
        rounds_per_session=rounds_per_session,
        threads=threads,
        cores=surroundings["cores_usable"],
        meanwhile=meanwhile,
        gpu_throttled=bool(gpu.get("throttled")),
    )
    result = BenchResult(
        candidates=tuple(results),
        batch=batch,
        threads=threads,
        clock=clock,
        rounds_per_session=rounds_per_session,
        warmup=measured.warm_up_rounds,
        seed=seed,
        environment={
            **surroundings,
            "other_cores_busy": meanwhile.other_cores,
            "throttled": meanwhile.throttled,
            **({"gpu": gpu} if gpu else {}),
        },
        energy_source="not measured",
        interrupted=measured.interrupted,
        warnings=(*notes, *parity_warnings, *measured.warnings, *doubts),
    )
    memory, profiled = memory and clock != "GPU", profiled and clock != "GPU"  # which know no GPU
    steps: list[Step] = [_with_memory] if memory else []
    steps += [_with_energy] if energy else []
    steps += [_with_profiles] if profiled else []
    for step in steps:
        if not result.interrupted:
            try:
                result = step(result, candidates, inputs, threads, progress)
            except KeyboardInterrupt:
                result = replace(result, interrupted=True)
    return result


Step = Callable[[BenchResult, Sequence[Candidate], Inputs, int, Progress], BenchResult]


def _with_memory(
    result: BenchResult, candidates: Sequence[Candidate], inputs: Inputs, threads: int, progress: Progress
) -> BenchResult:
    """The result with each artifact's peak memory and cold start."""
    found = []
    for i, candidate in enumerate(candidates):
        progress.step("measuring peak memory and cold start", i, len(candidates))
        given, how = (
            candidate.complete(inputs),
            {"runtime": candidate.runtime, "precision": candidate.precision},
        )
        own = in_own_process(candidate.artifact, given, threads, **how)
        found.append(
            replace(result.candidates[i], peak_memory=own.peak_memory, cold_start_s=own.cold_start_s)
        )
    return replace(result, candidates=tuple(found))


def _with_energy(
    result: BenchResult, candidates: Sequence[Candidate], inputs: Inputs, threads: int, progress: Progress
) -> BenchResult:
    """The result with joules per call, or why there are none."""
    counters, source = meters(gpu=any("CUDA" in candidate.runtime for candidate in result.candidates))
    if not counters:
        return replace(result, energy_source=source)
    progress.step("measuring energy", 0, None)
    calls = []
    for candidate in candidates:
        runner = candidate.open(threads)
        call = runner.bind(*inputs_for(runner, inputs, candidate.name))
        calls.append(call if candidate.cuda is None else waiting(call))
        calls[-1]()
    spent = energy_per_call(calls, counters)
    found = tuple(replace(candidate, energy=each) for candidate, each in zip(result.candidates, spent))
    return replace(result, candidates=found, energy_source=source)


def _with_profiles(
    result: BenchResult, candidates: Sequence[Candidate], inputs: Inputs, threads: int, progress: Progress
) -> BenchResult:
    """The result with each artifact's time per operator."""
    found = []
    for i, candidate in enumerate(candidates):
        progress.step("profiling", i, len(candidates))
        found.append(replace(result.candidates[i], profile=_profile(candidate, inputs, threads)))
    return replace(result, candidates=tuple(found))


def _profile(candidate: Candidate, inputs: Inputs, threads: int) -> tuple[OperatorTime, ...] | None:
    given, how = candidate.complete(inputs), {"runtime": candidate.runtime, "precision": candidate.precision}
    return profile(candidate.artifact, given, threads, **how)


def _speedup(times: list[list[CandidateTimes]], candidate: int, clock: str, seed: int) -> Estimate | None:
    if candidate == 0:
        return None
    first, other = ([getattr(session[i], clock) for session in times] for i in (0, candidate))
    return stats.speedup(first, other, seed=seed)


def _example(candidates: Sequence[Candidate], runners: Sequence[Runner], batch: int, seed: int) -> Inputs:
    """Random inputs of this batch."""
    model = next(
        (candidate.artifact for candidate in candidates if isinstance(candidate.artifact, Model)), None
    )
    if model is None:
        return random_inputs(runners[0].inputs, batch, seed, runners[0].sizes)
    return inputs_of_model(model, batch, seed)


def _samples(measured: Measured, candidate: int, *, with_cpu: bool) -> Samples:
    """Of one candidate, all sessions one after the other."""
    wall, cpu, place = (
        tuple(value for session in measured.times for value in getattr(session[candidate], name))
        for name in ("wall_ns", "cpu_ns", "place")
    )
    return Samples(wall, cpu if with_cpu else None, place)


def _check_batch(first: str, runner: Runner, inputs: Inputs, batch: int) -> None:
    """Refuse a model whose inputs are of another, fixed batch."""
    fixed = count_samples(runner.inputs, inputs)
    if fixed != batch:
        raise UsageError(
            f"{first} takes batches of {fixed} only",
            got=f"--batch {batch}",
            remedy=f"--batch {fixed}, or export it with a dynamic batch",
        )


def _check_options(
    candidates: Sequence[Candidate],
    *,
    rounds: int | None,
    seconds: float,
    target_error: float | None,
    **at_least_one: int,
) -> None:
    if not candidates:
        raise UsageError("there is nothing to benchmark", expected="at least one artifact")
    for name, value in {**at_least_one, **({} if rounds is None else {"rounds": rounds})}.items():
        check_whole(name, value)
    if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise UsageError("the time to measure must be above 0 seconds", got=shown(seconds))
    if target_error is not None and not stats.RESOLUTION <= target_error < 1:
        raise UsageError(
            "the target error is out of range",
            got=f"{target_error:.3g}",
            expected=f"{stats.RESOLUTION:.1%} to 100 %: finer differences lie in how a file is opened",
        )
