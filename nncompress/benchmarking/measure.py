"""Time several calls against each other, so that what disturbs one disturbs all.

On a busy machine the median of a loop over A, then a loop over B, compares two moments of the machine and not
A and B: int8 once showed 2.85x this way and was really 1.6x. Therefore
- candidates take turns: every round visits each once, in an order drawn anew for each round;
- each visit first calls once unmeasured, so that it finds its weights in the cache as it would alone;
- both clocks are read: the wall's, which includes the time that the scheduler gave to others, and the
  thread's own CPU time, which does not (but misses other threads: it counts only with one).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

Call = Callable[[], object]

LONGEST_REWARMED_NS = 20_000_000  # longer calls reload the cache anyway: not worth the second call
WARM_UP_WINDOW = 5  # calls whose median must settle
SLOW_ROUND_NS = 100_000_000  # rounds longer than this settle in windows of
SLOW_WINDOW = 2
WARM_UP_TOLERANCE = 0.05
LONGEST_WARM_UP_NS = 3_000_000_000


class Clock(Protocol):
    """Both times in nanoseconds.

    Attributes:
        shortest_sample_ns: shorter calls are repeated within a sample, or reading the clock would count.
    """

    shortest_sample_ns: int

    def wall(self) -> int: ...
    def cpu(self) -> int: ...


class SystemClock:
    """This machine's clocks; `cpu` is that of the calling thread."""

    shortest_sample_ns = 200_000

    def wall(self) -> int:
        return time.perf_counter_ns()

    def cpu(self) -> int:
        return time.thread_time_ns()


@dataclass
class CandidateTimes:
    """Of one candidate, entry i from round i: nanoseconds per call, its place in the round (0 the first)."""

    wall_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    place: list[int] = field(default_factory=list)


class Measurement:
    """An interleaved measurement that can go on for as long as wanted.

    Args:
        calls: one per candidate: does the candidate's work once and returns when it is done.
        seed: of the order of the candidates.
        by_cpu: warm up until the CPU times settle, not the wall's; for calls of one thread.
        clock: replaced in tests.
    """

    def __init__(
        self, calls: Sequence[Call], *, seed: int = 0, by_cpu: bool = False, clock: Clock | None = None
    ) -> None:
        self._calls = list(calls)
        self._clock = clock or SystemClock()
        self._by_cpu = by_cpu
        self._random = np.random.default_rng(seed)
        self._repeats = [1] * len(self._calls)
        self._rewarm = [False] * len(self._calls)
        self.times = [CandidateTimes() for _ in self._calls]

    @property
    def rounds(self) -> int:
        """How many were kept so far."""
        return len(self.times[0].wall_ns)

    def warm_up(self) -> tuple[int, bool]:
        """Call every candidate in turn until its times settle.

        Returns:
            the number of rounds, and whether all candidates settled within `LONGEST_WARM_UP_NS`.
        """
        history: list[list[int]] = [[] for _ in self._calls]
        begin = self._clock.wall()
        settled = False
        while not settled:
            for i in self._order():
                history[i].append(self._time(i, 1)[self._by_cpu])
            taken, rounds = self._clock.wall() - begin, len(history[0])
            window = WARM_UP_WINDOW if taken < SLOW_ROUND_NS * rounds else SLOW_WINDOW
            settled = all(_is_settled(times, window) for times in history)
            if taken > LONGEST_WARM_UP_NS and rounds >= 2 * window:
                break
        for i, times in enumerate(history):
            usual = max(1, int(median(times[-SLOW_WINDOW:])))
            self._repeats[i] = max(1, math.ceil(self._clock.shortest_sample_ns / usual))
            self._rewarm[i] = usual < LONGEST_REWARMED_NS
        return len(history[0]), settled

    def round(self) -> None:
        """Visit every candidate once, in random order, and keep the times; of an interrupted round, none."""
        order = self._order()
        measured = []
        for i in order:
            if self._rewarm[i]:
                self._calls[i]()
            measured.append(self._time(i, self._repeats[i]))
        for place, (i, (wall, cpu)) in enumerate(zip(order, measured)):
            self.times[i].wall_ns.append(wall)
            self.times[i].cpu_ns.append(cpu)
            self.times[i].place.append(place)

    def _order(self) -> list[int]:
        return self._random.permutation(len(self._calls)).tolist()

    def _time(self, candidate: int, repeats: int) -> tuple[int, int]:
        """Wall and CPU nanoseconds per call."""
        call, clock = self._calls[candidate], self._clock
        wall, cpu = clock.wall(), clock.cpu()
        for _ in range(repeats):
            call()
        cpu, wall = clock.cpu() - cpu, clock.wall() - wall
        return round(wall / repeats), round(cpu / repeats)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Meanwhile Python's garbage collector runs only by hand, and looks only at what is new."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _is_settled(times: list[int], window: int) -> bool:
    """The last window's median is that of the window before, within the tolerance."""
    if len(times) < 2 * window:
        return False
    before, now = median(times[-2 * window : -window]), median(times[-window:])
    return abs(now - before) <= WARM_UP_TOLERANCE * before
