"""What `optimize` prints with --json, and keeps in its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress.errors import UsageError
from nncompress.recipe import make_pass, recipe_text
from nncompress.report.facts.content import (
    Axis,
    Code,
    Column,
    Outcome,
    Part,
    Plot,
    Point,
    Section,
    Series,
    Table,
    Unit,
)
from nncompress.report.facts.limits import MOST_CODE, SHOWN, clipped, first
from nncompress.report.facts.metrics import Shown, metric_named
from nncompress.report.facts.runs.environment import environment
from nncompress.report.facts.shown import shown
from nncompress.report.facts.typed import rebuilt
from nncompress.results import Estimate
from nncompress.search.promise import Promise


@dataclass(frozen=True)
class Measured:
    """A latency, as a share of the original's."""

    share: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A recipe and what was measured of it, on the samples that choose.

    Attributes:
        lost: of the metric, shares as 0 … 1; at_most: so much, with 95 % confidence.
    """

    recipe: tuple[dict[str, Any], ...]
    macs: float | None = None
    size: float | None = None
    lost: float | None = None
    at_most: float | None = None
    samples: int | None = None
    latency: dict[str, Measured] | None = None
    failed: str | None = None
    trained: dict[str, Any] | None = None

    @property
    def fastest(self) -> Measured | None:
        """On the first machine that it was measured on."""
        return next(iter((self.latency or {}).values()), None)

    @property
    def title(self) -> str:
        """Its passes."""
        trained = ["train"] if self.trained else []
        return " → ".join([*(_pass_title(entry) for entry in self.recipe), *trained]) or "nothing"


@dataclass(frozen=True)
class Best:
    """The file that was written."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Found:
    """The document of `optimize`."""

    best: Trial
    trials: dict[str, Trial]
    promise: Promise
    output: Best
    commands: tuple[str, ...]
    stopped: bool = False
    model: str = "the original"
    environment: dict[str, Any] = field(default_factory=dict)


def section(document: dict[str, Any], source: str, since: int = 0) -> Section:
    """The section of a search that has ended.

    Args:
        since: trials that were made after this.

    Raises:
        Rejected: it is no such document.
    """
    found = rebuilt(Found, document)
    made, name = found.promise, clipped(Path(found.output.path).name)
    metric = metric_named(made.metric)
    promised = _promise(made, metric)
    text = f"{', '.join((name, *_gains(found.best)))}: {promised}. "
    text += f"The best of {len(found.trials) - since} trials: {found.best.title}."
    if since:
        text += f" Trials made since: {since}; the same command tells what can be promised now."
    if found.stopped:
        text += " The search was stopped: the same command goes on."
    parts: list[Part] = [*_pareto(found.trials, found.best, metric), _trials(found.trials, metric)]
    commands = "\n".join(found.commands)
    parts += [
        *_recipe(found.best),
        *([Code("Commands", "sh", commands)] if len(commands) <= MOST_CODE else []),
    ]
    return Section(
        source,
        "optimize",
        text,
        tuple(parts),
        (_outcome(found, name, metric),),
        () if made.kept else (f"Not promised: {promised}.",),
        environment(found.environment),
    )


def trials(rows: Mapping[str, Any], metric_name: str | None, source: str) -> Section:
    """The section of a folder of `optimize`: of a search that may be going on.

    Raises:
        Rejected: a trial is none.
    """
    found, metric = rebuilt(dict[str, Trial], dict(rows)), metric_named(metric_name)
    measured = [trial for trial in found.values() if trial.lost is not None]
    text = f"{len(found)} trials so far, {len(found) - len(measured)} of them refused or not measured"
    return Section(source, "optimize", f"{text}.", (*_pareto(found, None, metric), _trials(found, metric)))


def _promise(made: Promise, metric: Shown) -> str:
    text = (
        f"{metric.title} {metric.text(made.original)} -> {metric.text(made.changed)} on {made.samples} "
        "samples that the search has not seen, "
    )
    if not math.isfinite(made.high):
        text += "too few for any bound of the loss"
    else:
        text += f"at most {metric.loss(made.high)} lost with {made.confidence:.0%} confidence"
    if made.bound is None:
        return text
    asked = f"{text} (asked for: at most {metric.loss(made.bound)})"
    needed = f"; about {made.needed} such samples would do" if made.needed and not made.kept else ""
    return f"{asked}{needed}"


def _told(trial: Trial, metric: Shown) -> str:
    parts = [trial.title, *_gains(trial)]
    if trial.lost is not None:
        parts.append(f"{metric.loss(trial.lost)} of {metric.title} lost on the samples that choose")
    if trial.failed:
        parts.append(trial.failed)
    return clipped(", ".join(parts))


def _gains(trial: Trial) -> list[str]:
    parts = []
    if trial.fastest is not None:
        parts.append(f"{shown(_speedup(trial.fastest), 'times')} as fast")
    if trial.macs is not None:
        parts.append(f"{trial.macs:.0%} of the MACs")
    if trial.size is not None:
        parts.append(f"{shown(trial.size, 'bytes')} of weights")
    return parts


def _speedup(measured: Measured) -> Estimate | None:
    if min(measured.share, measured.low, measured.high) <= 0:
        return None
    return Estimate(1 / measured.share, 1 / measured.high, 1 / measured.low)


def _pass_title(entry: Mapping[str, Any]) -> str:
    options = {key: value for key, value in entry.items() if key != "name"}
    ratios = options.pop("ratios", None)
    told = [f"of {len(ratios)} layer{'s' if len(ratios) != 1 else ''}"] if isinstance(ratios, list) else []
    told += [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in options.items()
    ]
    name = str(entry.get("name", "?"))
    return clipped(f"{name} ({', '.join(told)})" if told else name)


def _pareto(found: Mapping[str, Trial], best: Trial | None, metric: Shown) -> list[Part]:
    """What every trial loses against what it gains."""
    lost = {key: metric.change(trial.lost) for key, trial in found.items() if trial.lost is not None}
    unit = "points lost" if metric.of_change == "points" else f"{metric.title} lost"
    plots: list[Part] = []
    for title, form, gain in GAINS:
        points = [
            Point(x, float(y), _told(found[key], metric), chosen=found[key] == best)  # type: ignore[arg-type]
            for key, y in lost.items()
            if (x := gain(found[key])) is not None
        ]
        if len(points) < 2:
            continue
        front = _front(points)
        others = [point for point in points if point not in front]
        plots.append(
            Plot(
                f"{metric.title} lost against {title}",
                "Every trial on the samples that choose; the curve joins those that no other trial beats in "
                "both. Marked: the one that was taken.",
                Axis(title, form),
                Axis(unit, "number"),
                (Series("not beaten", tuple(front), joined=True), Series("other trials", tuple(others))),
            )
        )
    return plots


GAINS: tuple[tuple[str, Unit, Callable[[Trial], float | None]], ...] = (
    ("latency, as a share of the original's", "share", lambda t: t.fastest.share if t.fastest else None),
    ("size of the weights", "bytes", lambda t: t.size),
    ("MACs, as a share of the original's", "share", lambda t: t.macs),
)


def _front(points: Sequence[Point]) -> list[Point]:
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y, not p.chosen)):  # of equal ones that which was taken
        if not front or point.y < front[-1].y:
            front.append(point)
    return front


def _trials(found: Mapping[str, Trial], metric: Shown) -> Table:
    ordered = sorted(found.values(), key=lambda t: (t.lost is None, t.macs or 0.0, t.title))
    rows, left = first(
        [
            (
                trial.title,
                trial.macs,
                trial.size,
                _speedup(trial.fastest) if trial.fastest else None,
                None if trial.lost is None else metric.loss(trial.lost),
                None if trial.at_most is None else metric.loss(trial.at_most),
                trial.samples,
                clipped(trial.failed or ""),
            )
            for trial in ordered
        ],
        SHOWN,
    )
    columns = (
        Column("recipe"),
        Column("MACs left", "share"),
        Column("weights", "bytes"),
        Column("speed-up", "times"),
        Column(f"{metric.title} lost", "number"),
        Column("at most", "number"),
        Column("samples", "count"),
        Column("refused"),
    )
    note = "Lost on the samples that choose, at most with 95 % confidence."
    return Table("Trials", columns, tuple(rows), note, left)


def _recipe(trial: Trial) -> list[Part]:
    try:
        passes = [
            make_pass(str(entry.get("name")), {k: v for k, v in entry.items() if k != "name"}, "a trial")
            for entry in trial.recipe
        ]
    except UsageError:
        return []
    text = recipe_text(passes)
    return [Code("Recipe", "toml", text)] if passes and len(text) <= MOST_CODE else []


def _outcome(found: Found, name: str, metric: Shown) -> Outcome:
    made = found.promise
    sign = 1 if metric.higher_is_better else -1
    low, high = sorted((0.0 - sign * made.high, 0.0 - sign * made.low))  # 0 − 0 is 0, and no −0
    change = Estimate(0.0 - sign * made.drop, low, high, made.confidence)
    return Outcome(
        name,
        clipped(found.model),
        speedup=_speedup(found.best.fastest) if found.best.fastest else None,
        macs=found.best.macs,
        metric=metric.title,
        change=metric.change(change),
        unit=metric.of_change,
    )
