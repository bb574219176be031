"""The promise, on samples that nothing was fitted to; and how much of a share of right answers is lost at
most, with what confidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.sample_keys import sample_keys
from nncompress.data import Dataset
from nncompress.errors import PromiseError, UsageError
from nncompress.progress import Progress
from nncompress.results import Result

CONFIDENCE = 0.95  # one-sided
RESULT = "result.json"  # in the folder of a search: what was taken at last, and what is promised of it
BY_CHANCE = 0.001  # of the samples of the promise: so many are shared by data sets now and then
_STEPS = 60  # of bisection: beyond the precision of a float


@dataclass(frozen=True)
class Promise(Result):
    """What is said of a metric, from samples that nothing was chosen by.

    Attributes:
        metric: its name.
        original, changed: its values, shares as 0 … 1.
        drop: what is lost, below 0 where it is won; low, high: each a one-sided bound with `confidence`.
        interval: what the bounds are, in words.
        bound: what was asked for; None: nothing was.
        kept: high is not above the bound.
        needed: how many such samples it would take; None where no number would do.
        looks: how many searches of this folder were held against these samples, this one included.
    """

    kind: ClassVar[str] = "promise"

    metric: str
    samples: int
    original: float
    changed: float
    drop: float
    low: float
    high: float
    interval: str
    confidence: float
    bound: float | None
    kept: bool
    needed: int | None
    looks: int


def upper(row: Mapping[str, Any]) -> float:
    """The one-sided 95 % bound of what a trial loses; infinite where there is none."""
    bound: float = row.get("at_most", math.inf)
    return bound


def nothing_held(
    rows: Sequence[Mapping[str, Any]],
    within: Sequence[Mapping[str, Any]],
    asked: float | None,
    metric: Metric,
    alone: int,
) -> PromiseError:
    """Why no trial could be taken, and what would help.

    Args:
        rows: the trials that were measured.
        within: those of them that hold the bounds on size and latency.
        asked: the most that may be lost.
        alone: how many measurements of single layers there are.
    """
    if not rows:
        return PromiseError(
            "optimize: no recipe could be carried out in the time given",
            got=f"{alone} measurements of single layers, which are kept",
            remedy="the same command again, which goes on from there; or a longer --time",
        )
    if asked is None or not within:
        return PromiseError(
            "optimize: no recipe tried keeps the bounds on size and latency",
            got=f"{min(row['size'] for row in rows)} bytes at the least",
            remedy="more --trials, or a larger bound",
        )
    closest = min(within, key=upper)
    needed = closest.get("needed")
    more = f"about {2 * needed} samples in --data would do" if needed else "no number of samples would do"
    return PromiseError(
        "optimize: of no recipe tried"
        + ("" if len(within) == len(rows) else " that is as small and as fast as is asked")
        + f" can it be said that it loses at most {metric.unit(asked)}",
        got=f"the closest loses {metric.unit(closest['lost'])} on {closest['samples']} samples, at most "
        f"{metric.unit(upper(closest))} with 95 % confidence; {more}",
        remedy="more samples in --data, more --trials, or a larger --max-drop",
    )


def largest_drop(
    only_original: float, only_changed: float, samples: float, confidence: float = CONFIDENCE
) -> float:
    """The upper end of the one-sided interval of a paired drop in top-1, 0 … 1.

    The score interval of Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design": unlike Wald's, it does not collapse to a point where the two
    models answer alike.

    Args:
        only_original, only_changed: samples that only this one has right.
        samples: all samples.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (only_original - only_changed) / samples, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        inside = _score(middle, only_original, only_changed, samples) > -z
        low, high = (middle, high) if inside else (low, middle)
    return high


def _score(drop: float, only_original: float, only_changed: float, samples: float) -> float:
    """Standard errors by which the counts lie above what `drop` would give."""
    a = 2 * samples
    b = -only_original - only_changed + (2 * samples - only_original + only_changed) * drop
    c = -only_changed * drop * (1 - drop)
    rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of only_changed, at its likeliest
    variance = samples * (2 * rate + drop * (1 - drop))
    distance = only_original - only_changed - samples * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def shared(fitted: Dataset, unseen: Dataset, limit: int | None, progress: Progress) -> tuple[int, int]:
    """How many samples of `unseen` are among those that passes take of `fitted`, by what the model receives,
    whatever their labels; and how many samples `unseen` has.

    Args:
        limit: what passes take of the data, or of either part of it (`Dataset.split`); None: all.

    Raises:
        UsageError: more than `BY_CHANCE`.
    """
    parts = (fitted,) if limit is None else (fitted, *fitted.split())
    known = {key for part in parts if part is not None for key in _keys(part, limit, progress)}
    found = [key in known for key in _keys(unseen, None, progress)]
    if sum(found) > BY_CHANCE * len(found):
        raise UsageError(
            "what --fit names holds samples of the half of --data that the promise is made on",
            got=f"{sum(found)} of the {len(found)} samples of {unseen.spec} are in {fitted.spec}",
            remedy="name other samples, or leave --fit out: the half that chooses is fitted to then",
        )
    return sum(found), len(found)


def _keys(data: Dataset, limit: int | None, progress: Progress) -> Iterator[bytes]:
    """A digest of each sample's inputs."""
    total, seen = data.planned_samples(limit), 0
    for batch in data.batches(64, limit):
        yield from sample_keys(batch)
        seen += len(batch)
        progress.step(f"reading {data.spec}", seen, total)
