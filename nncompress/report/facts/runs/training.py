"""What `train` and `cycle` print with --json, and the lines that they log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nncompress.cycles.result import Cycle
from nncompress.report.facts.content import Axis, Cell, Column, Part, Plot, Point, Section, Series, Table
from nncompress.report.facts.limits import SHOWN, clipped, thinned
from nncompress.report.facts.metrics import metric_named
from nncompress.report.facts.shown import shown
from nncompress.report.facts.typed import rebuilt

LINES = 8  # groups of nodes that are drawn


@dataclass(frozen=True)
class Epoch:
    """A line of the log of `train`."""

    epoch: int
    loss: float
    lr: float = math.nan
    validation: dict[str, float] = field(default_factory=dict)
    macs: int | None = None
    grown: dict[str, Any] | list[Any] | int | None = None


@dataclass(frozen=True)
class Training:
    """The document of `train`."""

    loss: float
    kept_epoch: int
    stopped: str
    epochs: tuple[Epoch, ...]
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cycles:
    """The document of `cycle`."""

    cycles: tuple[Cycle, ...]
    nodes: dict[str, int]
    loss: float
    stopped: str


def train(document: dict[str, Any], source: str) -> Section:
    """The section of a training.

    Raises:
        Rejected: it is no such document.
    """
    found = rebuilt(Training, document)
    text = f"Trained for {_epochs(len(found.epochs))}: {_course(found.epochs)}"
    kept = next((row for row in found.epochs if row.epoch == found.kept_epoch), None)
    if kept is not None:
        text += f"; the weights are those of epoch {kept.epoch}{_validated(kept.validation)}"
    text += f". It ended after {clipped(found.stopped)}."
    return Section(source, "train", text, tuple(_curves(found.epochs, found.kept_epoch)))


def log(rows: Sequence[Any], source: str) -> Section:
    """The section of a log of `train`, which may still be written to.

    Raises:
        Rejected: a line is none of it.
    """
    epochs = rebuilt(tuple[Epoch, ...], list(rows))
    last = epochs[-1]
    text = f"{_epochs(len(epochs))} so far: {_course(epochs)}{_validated(last.validation)}."
    return Section(source, "train", text, tuple(_curves(epochs, None)))


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _course(epochs: Sequence[Epoch]) -> str:
    if not epochs:
        return "no loss is known"
    return f"the loss went from {epochs[0].loss:.4g} to {epochs[-1].loss:.4g}"


def _validated(found: dict[str, float]) -> str:
    text = [
        f"{metric_named(name).title} {shown(value, metric_named(name).unit)}"
        for name, value in found.items()
        if name != "loss"
    ]
    return f", with {', '.join(text)} on held-out data" if text else ""


def _curves(epochs: Sequence[Epoch], kept: int | None) -> list[Part]:
    if not epochs:
        return []
    rows = thinned(epochs, SHOWN)
    losses = [Series("training", tuple(_point(row, row.loss, "loss", kept) for row in rows))]
    held_out = [row for row in rows if "loss" in row.validation]
    if held_out:
        points = (_point(row, row.validation["loss"], "held-out loss", kept) for row in held_out)
        losses.append(Series("held out", tuple(points)))
    parts: list[Part] = [
        Plot(
            "Learning curve",
            "The mean loss of every epoch; held out: on data that was not trained on. Marked: the epoch "
            "that was kept.",
            Axis("epoch", "count"),
            Axis("loss", "number", log=_spread([p.y for s in losses for p in s.points])),
            _finite(losses),
        )
    ]
    for name in dict.fromkeys(key for row in rows for key in row.validation if key != "loss"):
        metric = metric_named(name)
        points_ = [
            _point(row, row.validation[name], metric.title, kept, metric.unit)
            for row in rows
            if name in row.validation
        ]
        parts.append(
            Plot(
                f"{metric.title} on held-out data",
                f"{metric.title} after every epoch. Marked: the epoch that was kept.",
                Axis("epoch", "count"),
                Axis(metric.title, metric.unit),
                _finite([Series(metric.title, tuple(points_))]),
            )
        )
    return [part for part in parts if isinstance(part, Plot) and any(each.points for each in part.series)]


def _point(row: Epoch, y: float, what: str, kept: int | None, unit: Any = "number") -> Point:
    return Point(row.epoch, y, f"epoch {row.epoch}: {what} {shown(y, unit)}", chosen=row.epoch == kept)


def _finite(series: Sequence[Series]) -> tuple[Series, ...]:
    """Without points that have no place."""
    return tuple(
        Series(s.name, tuple(p for p in s.points if math.isfinite(p.y)), joined=True) for s in series
    )


def _spread(values: Sequence[float]) -> bool:
    """Whether they reach over decades."""
    found = [v for v in values if math.isfinite(v)]
    return bool(found) and min(found) > 0 and max(found) > 30 * min(found)


def cycle(document: dict[str, Any], source: str) -> Section:
    """The section of a run of cycles.

    Raises:
        Rejected: it is no such document.
    """
    found = rebuilt(Cycles, document)
    return _cycles(found.cycles, f"It ended: {clipped(found.stopped)}.", source)


def cycle_log(rows: Sequence[Any], source: str) -> Section:
    """The section of `cycles.jsonl`, which may still be written to.

    Raises:
        Rejected: a line is none of it.
    """
    return _cycles(rebuilt(tuple[Cycle, ...], list(rows)), "", source)


def _cycles(rows: Sequence[Cycle], ended: str, source: str) -> Section:
    if not rows:
        return Section(source, "cycle", f"No cycle was run. {ended}".strip())
    first, last = rows[0], next((row for row in reversed(rows) if row.accepted), rows[-1])
    before, after = sum(first.nodes.values()), sum(last.nodes.values())
    text = (
        f"{len(rows)} cycle{'s' * (len(rows) != 1)}: from {before} to {after} nodes, the loss from "
        f"{first.loss:.4g} to {last.loss:.4g}{_validated(last.validation)}. {ended}"
    )
    return Section(source, "cycle", text.strip(), (*_cycle_plots(rows), _cycle_table(rows)))


def _cycle_plots(rows: Sequence[Cycle]) -> list[Part]:
    kept = [row for row in thinned(rows, SHOWN) if math.isfinite(row.loss)]
    chosen = next((row for row in reversed(rows) if row.accepted), None)
    points = [
        Point(
            sum(row.nodes.values()),
            row.loss,
            f"cycle {row.cycle}: {sum(row.nodes.values())} nodes, loss {row.loss:.4g}"
            f"{'' if row.accepted else ', taken back'}",
            chosen=row is chosen,
        )
        for row in kept
    ]
    plots: list[Part] = [
        Plot(
            "Loss against nodes",
            "Every cycle by the nodes it was trained with and the loss it reached. Marked: what was kept.",
            Axis("nodes", "count"),
            Axis("loss", "number", log=_spread([point.y for point in points])),
            (Series("cycles", tuple(points), joined=True),),
        )
    ] * bool(points)
    names = list(rows[0].nodes)[:LINES]
    series = [
        Series(
            clipped(name),
            tuple(
                Point(
                    row.cycle,
                    row.nodes[name],
                    f"cycle {row.cycle}: {clipped(name)} has {row.nodes[name]} nodes",
                )
                for row in kept
                if name in row.nodes
            ),
            joined=True,
        )
        for name in names
    ]
    if len(kept) > 1 and names:
        more = len(rows[0].nodes) - len(names)
        plots.append(
            Plot(
                "Nodes left, group by group"
                + (f" (the first {len(names)} of {len(rows[0].nodes)})" if more else ""),
                "The number of nodes of each group in every cycle.",
                Axis("cycle", "count"),
                Axis("nodes", "count"),
                tuple(series),
            )
        )
    return plots


def _cycle_table(rows: Sequence[Cycle]) -> Table:
    metrics = list(dict.fromkeys(key for row in rows for key in row.validation if key != "loss"))[:4]
    columns = (
        Column("cycle"),
        Column("nodes"),
        Column("epochs", "count"),
        Column("loss", "number"),
        *(Column(metric_named(name).title, metric_named(name).unit) for name in metrics),
        Column("pruned", "count"),
        Column("added", "count"),
        Column("time, s", "number"),
        Column("kept"),
    )
    made: list[tuple[Cell, ...]] = [
        (
            str(row.cycle),
            clipped("-".join(map(str, row.nodes.values()))),
            row.epochs,
            row.loss,
            *(row.validation.get(name) for name in metrics),
            row.pruned,
            row.grown,
            row.seconds,
            "yes" if row.accepted else "taken back",
        )
        for row in rows[:SHOWN]
    ]
    return Table("Cycles", columns, tuple(made), left_out=max(0, len(rows) - SHOWN))
