"""When the numbers should not be believed: what was seen, what likely causes it, what to try."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nncompress.benchmarking.machine import Meanwhile
from nncompress.results import CandidateResult, Estimate

CLOCKS_DISAGREE = 1.10  # wall over CPU time of a single-threaded call
DRIFTS = 1.10  # last third of the rounds over the first
TAIL = 3.0  # 99th percentile over the median
WIDE = 1.10  # upper over lower end of a ratio's interval
FIRST = 1.05  # a call at the first place of a round over calls at the others
FIRST_SESSION = 1.10  # a candidate's median in the first session over the other sessions'
OTHERS = 0.25  # cores that other programs may keep busy
CERTAIN = 4.0  # standard errors between two medians


def warnings(
    candidates: Sequence[CandidateResult],
    wall_speedups: Sequence[Estimate | None],
    *,
    rounds_per_session: Sequence[int] = (),
    threads: int = 1,
    cores: int | None = None,
    meanwhile: Meanwhile | None = None,
    gpu_throttled: bool = False,
) -> tuple[str, ...]:
    """What a reader of the table must know.

    Args:
        candidates: their `speedup` is by the clock to believe.
        wall_speedups: the same by the wall clock, None for the first candidate.
        rounds_per_session: into which sessions the samples divide.
        threads: of one call.
        cores: that this process may use.
        meanwhile: what else the machine did, where that is known.
        gpu_throttled: the GPU's driver said so.
    """
    found = [_interval(candidate, candidates[0].name) for candidate in candidates[1:]]
    found += [_clocks_of_ratio(candidate, wall) for candidate, wall in zip(candidates, wall_speedups)]
    found += [_clocks(candidates), _drift(candidates), _tail(candidates), _first_in_round(candidates)]
    found += [_first_session(candidates, rounds_per_session)]
    if meanwhile is not None:
        found += [_throttled(meanwhile), _neighbours(meanwhile, threads, cores)]
    found.append(_threads(threads, cores))
    if gpu_throttled:
        found.append(
            "the GPU held its clock down, for heat or power. Ratios are taken round by round and hold; "
            "latencies on a cool GPU would be lower."
        )
    return tuple(text for text in found if text)


def _interval(candidate: CandidateResult, first: str) -> str:
    ratio = candidate.speedup
    if ratio is None or ratio.high / ratio.low < WIDE:
        return ""
    if 1.0 in ratio:
        seen = f"the machine was too noisy to tell whether {candidate.name} is faster than {first}: it is"
    else:
        seen = f"the machine was noisy: {candidate.name} is"
    return (
        f"{seen} between {ratio.low:.2f} and {ratio.high:.2f} times as fast. Other programs or a changing "
        "clock frequency are likely; stop them, or measure longer (--time 60s)."
    )


def _clocks_of_ratio(candidate: CandidateResult, wall: Estimate | None) -> str:
    ratio = candidate.speedup
    if ratio is None or wall is None or candidate.cpu is None:
        return ""
    apart = max(ratio.value, wall.value) / min(ratio.value, wall.value)
    overlap = ratio.low <= wall.high and wall.low <= ratio.high
    if overlap or apart < CLOCKS_DISAGREE:
        return ""
    return (
        f"the clocks disagree on {candidate.name}: {ratio.value:.2f}x by the thread's CPU time, "
        f"{wall.value:.2f}x by the wall clock. The scheduler gave time to other programs; "
        "the CPU time is the one to believe."
    )


def _clocks(candidates: Sequence[CandidateResult]) -> str:
    away = {
        a.name: a.wall.median / a.cpu.median for a in candidates if a.cpu is not None and a.cpu.median > 0
    }
    worst = max(away, key=lambda name: away[name], default=None)
    if worst is None or away[worst] < CLOCKS_DISAGREE:
        return ""
    return (
        f"a call of {worst} took {100 * (away[worst] - 1):.0f} % longer by the wall clock than its thread "
        "computed. Other programs took the processor; ratios are taken from CPU time, latencies on an idle "
        "machine would be lower."
    )


def _drift(candidates: Sequence[CandidateResult]) -> str:
    changes = []
    for candidate in candidates:
        times = _times(candidate)
        third = len(times) // 3
        if third < 5:
            return ""
        changes.append(np.median(times[-third:]) / np.median(times[:third]))
    change = float(np.exp(np.mean(np.log(changes))))
    if 1 / DRIFTS < change < DRIFTS:
        return ""
    kind = "slower" if change > 1 else "faster"
    return (
        f"all candidates together became {100 * abs(change - 1):.0f} % {kind} during the run. The processor "
        "throttled, or another program came or went; ratios are taken round by round and hold, the latencies "
        "may not."
    )


def _tail(candidates: Sequence[CandidateResult]) -> str:
    heavy = [a.name for a in candidates if a.latency.p99 > TAIL * a.latency.median]
    if not heavy:
        return ""
    return (
        f"1 % of the calls of {', '.join(heavy)} took more than {TAIL:.0f} times the median. Other programs "
        "are likely; the medians hold, the 99th percentile says more about the machine than about the model."
    )


def _first_in_round(candidates: Sequence[CandidateResult]) -> str:
    """Is whichever model comes first in a round slower, as the first of a naive comparison would be?"""
    worst, slowest = 1.0, ""
    for candidate in candidates:
        logs, place = np.log(np.maximum(_times(candidate), 1)), np.asarray(candidate.samples.place)
        if len(place) != len(logs) or min((place == 0).sum(), (place > 0).sum()) < 10:
            continue
        first, later = logs[place == 0], logs[place > 0]
        error = np.hypot(*(1.4826 * _mad(each) * 1.2533 / len(each) ** 0.5 for each in (first, later)))
        apart = np.median(first) - np.median(later)
        if apart > np.log(FIRST) and apart > CERTAIN * error and np.exp(apart) > worst:
            worst, slowest = float(np.exp(apart)), candidate.name
    if not slowest:
        return ""
    return (
        f"a call of {slowest} took {100 * (worst - 1):.0f} % longer where it was the first of its round. "
        "The processor was waking up, or the caches were cold. Every model was first equally often, so the "
        "ratios hold; a loop over one model after the other would have got them wrong."
    )


def _first_session(candidates: Sequence[CandidateResult], rounds_per_session: Sequence[int]) -> str:
    """Was one candidate, other than the rest, slow at the beginning only?"""
    if len(rounds_per_session) < 3 or len(candidates) < 2:
        return ""
    ends = np.cumsum(rounds_per_session)[:-1]
    excess = []
    for candidate in candidates:
        sessions = np.split(np.log(np.maximum(_times(candidate), 1)), ends)
        medians = [float(np.median(session)) for session in sessions]
        excess.append(medians[0] - max(medians[1:]))
    for i, candidate in enumerate(candidates):
        rest = max(0.0, max(excess[:i] + excess[i + 1 :]))
        if excess[i] - rest > np.log(FIRST_SESSION):
            return (
                f"{candidate.name} was at least {100 * (np.exp(excess[i]) - 1):.0f} % slower in "
                "the first session than in every later one. It was slower for being early, not for what "
                "it is; measure again, or longer (--time 60s)."
            )
    return ""


def _throttled(meanwhile: Meanwhile) -> str:
    if not meanwhile.throttled:
        return ""
    return (
        f"the processor throttled for heat {meanwhile.throttled} times during the run. Ratios are taken "
        "round by round and hold; latencies on a cool machine would be lower."
    )


def _neighbours(meanwhile: Meanwhile, threads: int, cores: int | None) -> str:
    others = meanwhile.other_cores
    if others is None or cores is None or others < OTHERS or others + threads <= cores:
        return ""
    return (
        f"other programs kept {others:.1f} cores busy during the run, and {threads} of {cores} were needed. "
        "Stop them for latencies that hold."
    )


def _threads(threads: int, cores: int | None) -> str:
    if cores is None or threads <= cores:
        return ""
    return f"{threads} threads on {cores} cores: they wait for each other. Try --threads {cores}."


def _times(candidate: CandidateResult) -> np.ndarray:
    """By the clock to believe, nanoseconds."""
    return np.asarray(candidate.samples.cpu_ns or candidate.samples.wall_ns, np.float64)


def _mad(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values))))
