"""Epochs and cycles as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from nncompress.analysis.metrics.registry import named_metric
from nncompress.report.line import line
from nncompress.report.tables import plain
from nncompress.report.units import count

if TYPE_CHECKING:
    from nncompress.analysis.metrics.base import Metric
    from nncompress.cycles import Cycle, CycleResult
    from nncompress.train import TrainResult

SHOWN = 12  # the last epochs of a long run


def epochs(result: TrainResult) -> RenderableType:
    """One row per epoch, the kept one marked."""
    rows: Sequence[dict[str, Any]] = result.epochs
    held_out = any("loss" in row.get("validation", {}) for row in rows)
    metrics = _metrics([row.get("validation", {}) for row in rows])
    grown = any("grown" in row for row in rows)
    headers = ["epoch", "rate", "loss", *(["val loss"] if held_out else []), *(m.title for m in metrics)]
    headers += ["grown to"] if grown else []
    table = plain(*headers, right=0)
    for row in rows[-SHOWN:]:
        validation = row.get("validation", {})
        cells = [str(row["epoch"]), f"{row['lr']:.3g}", f"{row['loss']:.4g}"]
        if held_out:
            cells.append(f"{validation['loss']:.4g}")
        cells += [metric.text(validation[metric.name]) for metric in metrics]
        if grown:
            cells.append(_growth(row) if "grown" in row else "")
        table.add_row(*cells, style="bold" if row["epoch"] == result.kept_epoch else None)
    lines: list[RenderableType] = [table]
    if len(rows) > SHOWN:
        lines.insert(0, line(f"the last {SHOWN} of {len(rows)} epochs (the log has all)"))
    lines.append(line(f"stopped after {result.stopped}; the weights are those of epoch {result.kept_epoch}"))
    return Group(*lines)


def _metrics(validations: Iterable[dict[str, float]]) -> list[Metric]:
    """What was measured beside the loss."""
    names = dict.fromkeys(name for found in validations for name in found if name != "loss")
    return [named_metric(name) for name in names]


def _growth(row: dict[str, Any]) -> str:
    """What the model costs after a growth; the log tells the nodes of every layer."""
    latency = f", {row['latency']:.2f}x latency" if "latency" in row else ""
    return f"{count(row['macs'])} MACs{latency}"


def cycle_line(cycle: Cycle) -> str:
    """One cycle as a sentence, while the next is running."""
    nodes = "-".join(map(str, cycle.nodes.values()))
    taken_back = "" if cycle.accepted else ", taken back"
    grown = f", {cycle.grown} added" if cycle.grown else ""
    return (
        f"cycle {cycle.cycle}: {nodes} nodes, loss {cycle.loss:.4g}{taken_back}; {cycle.pruned} pruned{grown}"
    )


def cycles(result: CycleResult) -> RenderableType:
    """One row per cycle, and what is left."""
    metrics = _metrics([cycle.validation for cycle in result.cycles])
    titles = [metric.title for metric in metrics]
    added = ["added"] if any(cycle.grown for cycle in result.cycles) else []
    table = plain("cycle", "nodes", "epochs", "loss", *titles, "pruned", *added, "s", right=0)
    for cycle in result.cycles:
        cells = [str(cycle.cycle), "-".join(map(str, cycle.nodes.values())), str(cycle.epochs)]
        cells.append(f"{cycle.loss:.4g}")
        cells += [metric.text(cycle.validation[metric.name]) for metric in metrics]
        cells += [str(cycle.pruned), *([str(cycle.grown)] if added else []), f"{cycle.seconds:.1f}"]
        table.add_row(*cells, style=None if cycle.accepted else "dim")
    left = ", ".join(f"{name}: {count}" for name, count in result.nodes.items())
    return Group(table, line(f"stopped: {result.stopped}. Nodes left: {left}; loss {result.loss:.4g}"))
