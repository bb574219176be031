"""K-means on a line, exactly: the best codebook for a tensor's values.

On a line every cluster is an interval of the sorted values, so the best K intervals follow by dynamic
programming (Wu 1991; Wang and Song 2011): D[k, j] = min_i D[k-1, i] + cost(i, j), the cost of intervals from
prefix sums. The first index i never moves left as j grows, so each row needs j·log j steps only.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

EXACT = 4096  # values beyond so many distinct ones are first gathered in groups
POLISH = 50  # Lloyd iterations on all values after that

Array = NDArray[np.float64]


def codebook(values: NDArray[np.floating], size: int, weights: Array | None = None) -> Array:
    """The `size` (or fewer) numbers with the least squared distance to `values` [n], sorted.

    Exact for up to 4096 distinct values; beyond, exact on so many narrow groups, then polished on all.

    Args:
        weights: how much each value counts, [n], not negative: how often it occurs, or the curvature there.
    """
    if weights is None:  # which of them are alike, n indices, is not asked
        points, counts = np.unique(values, return_counts=True)
        points, mass = points.astype(np.float64), counts.astype(np.float64)
    else:
        points, inverse = np.unique(values, return_inverse=True)
        points, mass = points.astype(np.float64), np.bincount(inverse, weights=weights).astype(np.float64)
    if (mass > 0).sum() >= size:  # what counts for nothing draws no entry
        points, mass = points[mass > 0], mass[mass > 0]
    if len(points) <= size:
        return points
    if len(points) <= EXACT:
        return _optimal(points, mass, size)
    # Equal counts follow the bulk and equal widths the tails, where a few values cost much.
    counts = np.searchsorted(np.cumsum(mass), np.linspace(0, mass.sum(), EXACT // 2)[1:-1])
    widths = np.searchsorted(points, np.linspace(points[0], points[-1], EXACT // 2)[1:-1])
    starts = np.unique(np.concatenate([[0], counts + 1, widths]))
    starts = starts[starts < len(points)]
    groups = np.add.reduceat(mass, starts)
    means = np.add.reduceat(mass * points, starts) / groups
    return _polished(points, mass, _optimal(means, groups, size))


def nearest(values: Array, book: Array) -> NDArray[np.int64]:
    """The index of the closest entry of the sorted `book` for every value."""
    return np.searchsorted((book[1:] + book[:-1]) / 2, values)


def _optimal(points: Array, mass: Array, size: int) -> Array:
    count = len(points)
    centre = float(np.average(points, weights=mass))  # prefix sums lose less around the middle
    shifted = points - centre
    w, s, q = (np.concatenate([[0.0], np.cumsum(x)]) for x in (mass, mass * shifted, mass * shifted**2))

    def cost(start: NDArray[np.int64], stop: NDArray[np.int64]) -> Array:
        """Squared distances of points[start:stop] to their mean."""
        total = s[stop] - s[start]
        weight = w[stop] - w[start]
        return q[stop] - q[start] - np.divide(total**2, weight, out=np.zeros_like(total), where=weight > 0)

    stops = np.arange(count + 1)
    best = cost(np.zeros_like(stops), stops)
    splits = []
    for _ in range(size - 1):
        best, split = _row(best, cost, count)
        splits.append(split)
    bounds = [count]
    for split in reversed(splits):
        bounds.append(int(split[bounds[-1]]))
    bounds = sorted({*bounds, 0})
    means = [(s[b] - s[a]) / (w[b] - w[a]) + centre for a, b in pairwise(bounds)]
    return np.asarray(means)


def _row(previous: Array, cost: object, count: int) -> tuple[Array, NDArray[np.int64]]:
    """min over i ≤ j of previous[i] + cost(i, j), for all j: the middles first, then what lies between."""
    best, split = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    low, high = np.zeros(1, dtype=np.int64), np.full(1, count)  # open ranges of j still to solve
    left, right = np.zeros(1, dtype=np.int64), np.full(1, count)  # where their i may lie
    while len(low):
        middle = (low + high) // 2
        ends = np.minimum(right, middle)
        lengths = ends - left + 1
        owner = np.repeat(np.arange(len(middle)), lengths)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        i = left[owner] + offset
        total = previous[i] + cost(i, middle[owner])  # type: ignore[operator]
        starts = np.cumsum(lengths) - lengths
        least = np.minimum.reduceat(total, starts)
        first = np.flatnonzero(total == least[owner])
        chosen = i[first[np.unique(owner[first], return_index=True)[1]]]
        best[middle], split[middle] = least, chosen
        below, above = low < middle, middle < high
        low, high, left, right = (
            np.concatenate([low[below], middle[above] + 1]),
            np.concatenate([middle[below] - 1, high[above]]),
            np.concatenate([left[below], chosen[above]]),
            np.concatenate([chosen[below], right[above]]),
        )
    return best, split


def _polished(points: Array, mass: Array, book: Array) -> Array:
    for _ in range(POLISH):
        owner = nearest(points, book)
        weight = np.bincount(owner, weights=mass, minlength=len(book))
        total = np.bincount(owner, weights=mass * points, minlength=len(book))
        moved = np.sort(np.divide(total, weight, out=book.copy(), where=weight > 0))
        if np.allclose(moved, book, rtol=1e-9, atol=0):
            break
        book = moved
    return book
