"""Adaptive sharing: tie only the layers that one weight serves well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import inf

Cluster = tuple[int, ...]


def merge_cheapest(
    start: Sequence[Sequence[Cluster]],
    sizes: Sequence[int],
    error: Callable[[int, Cluster], float],
    saving: float,
) -> list[list[Cluster]]:
    """Merge pairs of clusters, least extra error per saved parameter first, until enough is saved.

    Args:
        start: per group the clusters of its layers that share a weight already, mostly one each.
        sizes: per group the parameters of one weight.
        error: of the group with that number, if these layers of it share one weight; infinite if they cannot.
        saving: share of what merging all groups whole would save.

    Returns: per group the clusters of its layers, singles included.
    """
    clusters = [list(group) for group in start]
    wanted = saving * sum((len(group) - 1) * size for group, size in zip(start, sizes))
    known: dict[tuple[int, Cluster], float] = {}

    def cost(group: int, cluster: Cluster) -> float:
        if len(cluster) == 1:
            return 0.0
        if (group, cluster) not in known:
            known[group, cluster] = error(group, cluster)
        return known[group, cluster]

    saved = 0
    while saved < wanted:
        steps = []
        for group, parameters in enumerate(sizes):
            for a, b in combinations(clusters[group], 2):
                extra = cost(group, tuple(sorted(a + b))) - cost(group, a) - cost(group, b)
                steps.append((extra / parameters, group, a, b))
        extra, group, a, b = min(steps, default=(inf, 0, (), ()))
        if extra == inf:
            break
        clusters[group] = [c for c in clusters[group] if c not in (a, b)] + [tuple(sorted(a + b))]
        saved += sizes[group]
    return clusters
