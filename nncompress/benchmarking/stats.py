"""From raw times to a ratio that can be believed.

Two things make the times of one artifact differ: the machine from moment to moment, and the artifact from one
opening to the next (where its weights happen to lie in memory: up to some percent, constant until it is
closed). The first averages out within a session; the second does not, however long the session is. So every
artifact is opened anew in several sessions, and the interval comes from the spread between sessions
(Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time"). Within a session, candidates are compared
round by round, so that what slows a whole round (drift, throttling, a neighbour) cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nncompress.analysis.intervals import CONFIDENCE, student_t
from nncompress.results import Estimate, Latency

RESAMPLES = 2000
RESOLUTION = (
    0.001  # no interval is narrower than +-0.1 %: runs of one file against itself differ by that much
)

Times = Sequence[int] | np.ndarray


def latency(times_ns: Times) -> Latency:
    """Median, 90th and 99th percentile and median absolute deviation, in seconds."""
    seconds = np.asarray(times_ns, np.float64) / 1e9
    median, p90, p99 = np.percentile(seconds, [50, 90, 99])
    mad = np.median(np.abs(seconds - median))
    return Latency(float(median), float(p90), float(p99), float(mad))


def speedup(first: Sequence[Times], other: Sequence[Times], *, seed: int = 0) -> Estimate:
    """How many times as fast as the first candidate the other one is, with its 95 % interval.

    Args:
        first, other: per session the times of each round; round i of both was measured together.
        seed: of the bootstrap, which is used where there is one session only.
    Returns:
        above 1: `other` is faster. The value is the geometric mean over sessions of each session's median
        of per-round ratios; the interval is Student's t over sessions of their logarithms.
    """
    logs = [
        np.log(np.maximum(np.asarray(a, np.float64), 1)) - np.log(np.maximum(np.asarray(b, np.float64), 1))
        for a, b in zip(first, other, strict=True)
    ]
    if len(logs) == 1:
        low, high = _bootstrap(logs[0], seed)
        return _estimate(float(np.median(logs[0])), low, high)
    medians = np.array([np.median(session) for session in logs])
    return _around(float(medians.mean()), _squared_error(medians), len(medians) - 1)


def typical(sessions: Sequence[Times], *, seed: int = 0) -> Estimate:
    """Seconds of a call: geometric mean over sessions of their medians, with its 95 % interval."""
    one_second = [np.full(len(session), 1e9) for session in sessions]
    return speedup(sessions, one_second, seed=seed)


def slowdown(then: Sequence[float], now: Sequence[float]) -> Estimate:
    """How many times as slow it is now as in an earlier run, with its 95 % interval (Welch 1947).

    Args:
        then, now: per session, at least two of each: the median time, or the median ratio to another one.
    """
    before, after = np.log(then), np.log(now)
    a, b = _squared_error(before), _squared_error(after)
    spread = a * a / (len(before) - 1) + b * b / (len(after) - 1)
    freedom = (a + b) ** 2 / spread if spread else len(before) + len(after) - 2
    return _around(float(after.mean() - before.mean()), a + b, max(1, math.floor(freedom)))


def precision(estimate: Estimate) -> float:
    """Half the interval's width relative to the value: 0.01 is "to within 1 %"."""
    return math.sqrt(estimate.high / estimate.low) - 1


def _squared_error(values: np.ndarray) -> float:
    """Squared standard error of the mean."""
    return float(values.var(ddof=1)) / len(values)


def _around(centre: float, squared_error: float, freedom: int) -> Estimate:
    """Student's t interval, from logarithms."""
    half = student_t(freedom) * math.sqrt(squared_error)
    return _estimate(centre, centre - half, centre + half)


def _bootstrap(logs: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile interval of the median, resampling blocks of consecutive rounds.

    Neighbouring rounds are alike, which single draws would deny: circular blocks of n^(1/3) rounds (Politis &
    Romano 1992).
    """
    count = len(logs)
    block = max(1, round(count ** (1 / 3)))
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, count, (RESAMPLES, -(-count // block)))
    rounds = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    low, high = np.percentile(np.median(logs[rounds], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _estimate(value: float, low: float, high: float) -> Estimate:
    """From logarithms."""
    low, high = min(low, value - RESOLUTION), max(high, value + RESOLUTION)
    return Estimate(math.exp(value), math.exp(low), math.exp(high), CONFIDENCE)
