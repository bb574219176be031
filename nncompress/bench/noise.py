"""When the numbers should not be believed: what was seen, what likely causes it, what to try."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nncompress.results import ArmResult, Estimate

CLOCKS_DISAGREE = 1.10  # wall over CPU time of a single-threaded call
DRIFTS = 1.10  # last third of the rounds over the first
TAIL = 3.0  # 99th percentile over the median
WIDE = 1.10  # upper over lower end of a ratio's interval


def warnings(arms: Sequence[ArmResult], wall_speedups: Sequence[Estimate | None]) -> tuple[str, ...]:
    """What a reader of the table must know.

    Args:
        arms: their `speedup` is by the clock to believe.
        wall_speedups: the same by the wall clock, None for the first arm.
    """
    found = [_interval(arm, arms[0].name) for arm in arms[1:]]
    found += [_clocks_of_ratio(arm, wall) for arm, wall in zip(arms, wall_speedups)]
    found += [_clocks(arms), _drift(arms), _tail(arms)]
    return tuple(text for text in found if text)


def _interval(arm: ArmResult, first: str) -> str:
    ratio = arm.speedup
    if ratio is None or ratio.high / ratio.low < WIDE:
        return ""
    verdict = "the machine was too noisy to tell whether" if 1.0 in ratio else "the machine was noisy:"
    return (
        f"{verdict} {arm.name} is faster than {first}: between {ratio.low:.2f} and {ratio.high:.2f} times. "
        "Other programs or a changing clock frequency are likely; stop them, or measure longer (--time 60s)."
    )


def _clocks_of_ratio(arm: ArmResult, wall: Estimate | None) -> str:
    ratio = arm.speedup
    if ratio is None or wall is None or arm.cpu is None:
        return ""
    apart = max(ratio.value, wall.value) / min(ratio.value, wall.value)
    overlap = ratio.low <= wall.high and wall.low <= ratio.high
    if overlap or apart < CLOCKS_DISAGREE:
        return ""
    return (
        f"the clocks disagree on {arm.name}: {ratio.value:.2f}x by the thread's CPU time, {wall.value:.2f}x "
        "by the wall clock. The scheduler gave time to other programs; the CPU time is the one to believe."
    )


def _clocks(arms: Sequence[ArmResult]) -> str:
    away = {a.name: a.wall.median / a.cpu.median for a in arms if a.cpu is not None and a.cpu.median > 0}
    worst = max(away, key=lambda name: away[name], default=None)
    if worst is None or away[worst] < CLOCKS_DISAGREE:
        return ""
    return (
        f"a call of {worst} took {100 * (away[worst] - 1):.0f} % longer by the wall clock than its thread "
        "computed. Other programs took the processor; ratios are taken from CPU time, latencies on an idle "
        "machine would be lower."
    )


def _drift(arms: Sequence[ArmResult]) -> str:
    changes = []
    for arm in arms:
        times = np.asarray(arm.samples.cpu_ns or arm.samples.wall_ns, np.float64)
        third = len(times) // 3
        if third < 5:
            return ""
        changes.append(np.median(times[-third:]) / np.median(times[:third]))
    change = float(np.exp(np.mean(np.log(changes))))
    if 1 / DRIFTS < change < DRIFTS:
        return ""
    kind = "slower" if change > 1 else "faster"
    return (
        f"all arms together became {100 * abs(change - 1):.0f} % {kind} during the run. The processor "
        "throttled, or another program came or went; ratios are taken round by round and hold, the latencies "
        "may not."
    )


def _tail(arms: Sequence[ArmResult]) -> str:
    heavy = [a.name for a in arms if a.latency.p99 > TAIL * a.latency.median]
    if not heavy:
        return ""
    return (
        f"1 % of the calls of {', '.join(heavy)} took more than {TAIL:.0f} times the median. Other programs "
        "are likely; the medians hold, the 99th percentile says more about the machine than about the model."
    )
