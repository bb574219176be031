"""How many units of each choice go: by ratio, threshold, outlier bounds, or a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.importance.costs import Costs
from nncompress.analysis.importance.ranking import Ranking, Scores
from nncompress.errors import UsageError

Counts = dict[str, int]  # choice -> units removed
STEPS = 64  # a budget takes units away in at least this many steps per choice


def allowed(choice: Choice, ranking: Ranking, round_to: int) -> list[int]:
    """How many units may be left, most first: multiples of `round_to`, or all; at least one."""
    least = max(1, choice.size - len(ranking.order))
    if round_to > 1:
        counts = range(choice.size // round_to * round_to, 0, -round_to)
        return [choice.size, *(c for c in counts if least <= c < choice.size)]
    return list(range(choice.size, least - 1, -1))


def nearest(wanted: float, counts: Sequence[int]) -> int:
    return min(counts, key=lambda count: (abs(count - wanted), -count))


def normalized(rankings: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Rankings whose scores are relative to their choice's mean: magnitudes of different layers compare."""
    found = {}
    for name, ranking in rankings.items():
        mean = float(ranking.scores.mean())
        found[name] = Ranking(
            ranking.order, ranking.loss / max(mean, 1e-30), ranking.scores / max(mean, 1e-30)
        )
    return found


def by_ratio(
    choices: Sequence[Choice],
    rankings: Mapping[str, Ranking],
    ratio: float,
    round_to: int,
    *,
    everywhere: bool,
) -> Counts:
    """Remove a share of every choice, or (`everywhere`) of all units together, those of least score first."""
    if not everywhere:
        return {
            c.name: c.size - nearest((1 - ratio) * c.size, allowed(c, rankings[c.name], round_to))
            for c in choices
        }
    scores = np.concatenate([rankings[c.name].scores for c in choices])
    cut = np.sort(scores)[min(round(ratio * len(scores)), len(scores) - 1)]
    return by_threshold(choices, rankings, float(cut), round_to)


def by_share(
    choices: Sequence[Choice],
    rankings: Mapping[str, Ranking],
    share: float,
    round_to: int,
) -> Counts:
    """Remove from every choice what is worth at most this share of it."""
    counts = {}
    for c in choices:
        loss = rankings[c.name].loss
        going = int(np.searchsorted(loss, share * loss[-1], side="right")) - 1
        left = [count for count in allowed(c, rankings[c.name], round_to) if count >= c.size - going]
        counts[c.name] = c.size - left[-1]
    return counts


def by_threshold(
    choices: Sequence[Choice], rankings: Mapping[str, Ranking], threshold: float, round_to: int
) -> Counts:
    """Remove the units whose score is below the threshold, but the best one of each choice."""
    counts = {}
    for c in choices:
        ranking = rankings[c.name]
        below = int((ranking.scores[list(ranking.order)] < threshold).sum())
        counts[c.name] = c.size - nearest(c.size - below, allowed(c, ranking, round_to))
    return counts


def outliers(scores: Scores, bound: float) -> list[int]:
    """Units outside mean ± `bound` · variance of the scores (the papers' bounds), worst first; never all.

    A few units that carry nothing among many that do stand below the lower bound, as do a few that dominate
    above the upper one: the papers remove both.
    """
    mean, spread = float(scores.mean()), float(scores.var())
    gone = np.flatnonzero((scores <= mean - bound * spread) | (scores >= mean + bound * spread))
    if spread == 0:
        return []
    ordered = gone[np.argsort(-np.abs(scores[gone] - mean), kind="stable")]
    return [int(u) for u in ordered[: len(scores) - 1]]


def within_budget(
    choices: Sequence[Choice],
    rankings: Mapping[str, Ranking],
    costs: Costs,
    share: float,
    round_to: int,
    option: str,
) -> Counts:
    """Remove what loses least per unit of cost, until the budget is met.

    Args:
        share: of the cost before that may be left.
        option: the flag's name, for messages.

    Raises:
        UsageError: even the least of every choice costs more.
    """
    steps = {c.name: _coarse(allowed(c, rankings[c.name], round_to)) for c in choices}
    sizes = {c.name: c.size for c in choices}
    reachable = costs.left({name: counts[-1] for name, counts in steps.items()})
    if reachable > share * costs.total:
        raise UsageError(
            f"prune-nodes: {option} {share:g} cannot be reached",
            got=f"{reachable / costs.total:.3f} is left with one node (or --round-to nodes) per group",
            remedy=f"{option} {np.ceil(reachable / costs.total * 1000) / 1000:g}, fewer --exclude patterns, "
            "or nncompress factorize after prune-nodes",
        )
    kept = dict(sizes)
    best = {name: _best_step(name, steps[name], kept, rankings[name], costs, sizes[name]) for name in steps}
    cost = costs.left(kept)
    target = share * costs.total
    while cost > target:
        name = min(best, key=lambda n: best[n][0])
        if (
            best[name][1] == kept[name]
        ):  # nothing is left to take: the sum of what was saved was off by a hair
            break
        _, count = best[name]
        saved = costs.saved(name, count, kept)
        kept[name] = count
        cost -= saved
        for other in costs.touching(name) | {name}:
            best[other] = _best_step(other, steps[other], kept, rankings[other], costs, sizes[other])
    counts = {c.name: allowed(c, rankings[c.name], round_to) for c in choices}
    _give_back(kept, counts, rankings, costs, target)
    return {name: sizes[name] - kept[name] for name in sizes}


def _give_back(
    kept: Counts, counts: Mapping[str, list[int]], rankings: Mapping[str, Ranking], costs: Costs, most: float
) -> None:
    """The last steps may have gone too far: return what is worth most per cost and still fits."""
    left = costs.left(kept)
    while True:
        found: tuple[float, str, int, float] | None = None
        for name, each in counts.items():
            size = each[0]
            more = min((c for c in each if c > kept[name]), default=None)
            if more is None:
                continue
            cost = -costs.saved(name, more, kept)
            gain = float(rankings[name].loss[size - kept[name]] - rankings[name].loss[size - more])
            if cost > 0 and left + cost <= most and (found is None or gain / cost > found[0]):
                found = (gain / cost, name, more, cost)
        if found is None:
            return
        kept[found[1]] = found[2]
        left += found[3]


def _coarse(counts: list[int]) -> list[int]:
    stride = max(1, len(counts) // STEPS)
    return [*counts[:-1:stride], counts[-1]]


def _best_step(
    name: str, counts: Sequence[int], kept: Mapping[str, int], ranking: Ranking, costs: Costs, size: int
) -> tuple[float, int]:
    """The step down with the least loss per cost saved: over several units, since losses come in jumps."""
    now = kept[name]
    further = [c for c in counts if c < now]
    best = (float("inf"), now)
    for count in further[:8] + further[8:32:4]:
        saved = costs.saved(name, count, kept)
        if saved > 0:
            lost = ranking.loss[size - count] - ranking.loss[size - now]
            best = min(best, (max(float(lost), 0.0) / saved, count))
    return best


def uniform_budget(
    choices: Sequence[Choice],
    rankings: Mapping[str, Ranking],
    costs: Costs,
    share: float,
    round_to: int,
    option: str,
) -> Counts:
    """The same ratio everywhere, as large as the budget asks for (bisection)."""
    within_reach = {c.name: c.size - allowed(c, rankings[c.name], round_to)[-1] for c in choices}
    sizes = {c.name: c.size for c in choices}

    def cost(counts: Counts) -> float:
        return costs.left({name: sizes[name] - removed for name, removed in counts.items()})

    if cost(within_reach) > share * costs.total:
        within_budget(choices, rankings, costs, share, round_to, option)  # raises, with what is reachable
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        counts = by_ratio(choices, rankings, middle, round_to, everywhere=False)
        low, high = (middle, high) if cost(counts) > share * costs.total else (low, middle)
    removed = by_ratio(choices, rankings, high, round_to, everywhere=False)
    kept = {name: sizes[name] - count for name, count in removed.items()}
    allow = {c.name: allowed(c, rankings[c.name], round_to) for c in choices}
    _give_back(kept, allow, rankings, costs, share * costs.total)
    return {name: sizes[name] - count for name, count in kept.items()}
