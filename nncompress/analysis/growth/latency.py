"""The largest growth within a measured latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nncompress.analysis.growth.step import Growth

DOUBLINGS, HALVINGS = 5, 4


class Fit(NamedTuple):
    """scale: how many times what was wished fits (0: nothing); share: the latency measured then."""

    scale: float
    share: float


def largest_within(
    most: float,
    share: Callable[[Growth], float],
    step: Callable[[float], Growth],
    *,
    open_ended: bool = False,
) -> Fit:
    """Begin with all that is wished, double it while there is room (`open_ended`), then halve the interval.

    Args:
        most: bound on the latency.
        share: the latency of a grown model, measured in the unit of `most`.
        step: carries out so many times the wish. Growths with the same nodes are measured once.
    """
    measured: dict[tuple[tuple[str, int], ...], float] = {}
    best = Fit(0.0, 1.0)

    def fits(scale: float) -> bool:
        nonlocal best
        grown = step(scale)
        if not grown.added:
            return True
        key = tuple(sorted(grown.added.items()))
        if key not in measured:
            measured[key] = share(grown)
        if measured[key] > most:
            return False
        best = Fit(scale, measured[key])
        return True

    low, high = 0.0, 1.0
    for _ in range(DOUBLINGS if open_ended else 1):
        if not fits(high):
            break
        low, high = high, 2 * high
    else:
        return best
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return best
