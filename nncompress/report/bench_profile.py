"""Where each model's time goes, as one table per model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from nncompress.report.line import line
from nncompress.report.tables import plain
from nncompress.report.units import duration, share

if TYPE_CHECKING:
    from nncompress.results import CandidateResult, OperatorTime

SHOWN = 8  # kinds of operators per model
NODE_WIDTH = 30


def profiles(candidates: Sequence[CandidateResult]) -> list[RenderableType]:
    """A table per model that has a profile; a line for one that has none where others have."""
    if all(candidate.profile is None for candidate in candidates):
        return []
    parts: list[RenderableType] = []
    for candidate in candidates:
        if candidate.profile is None:
            parts += [
                Text(),
                line(f"{candidate.name}: {candidate.runtime} tells no time per operator", style="dim"),
            ]
        else:
            parts += [
                Text(),
                line(f"operators of {candidate.name}", style="bold"),
                _profile(candidate.profile),
            ]
    return [*parts, line("shares hold; profiling makes a run itself slower", style="dim")]


def _profile(rows: Sequence[OperatorTime]) -> RenderableType:
    kinds: dict[str, list[OperatorTime]] = defaultdict(list)
    for row in rows:
        kinds[row.op].append(row)
    total = sum(row.seconds for row in rows)
    table = plain("operator", "calls", "time", "%", "slowest")
    table.columns[4].justify = "left"
    ordered = sorted(kinds.items(), key=lambda kind: -_seconds(kind[1]))
    for op, of_kind in ordered[:SHOWN]:
        slowest = max(of_kind, key=lambda row: row.seconds)
        where = f"{duration(slowest.seconds)} {_end(slowest.node)}" if slowest.node else ""
        table.add_row(
            op,
            f"{sum(row.calls for row in of_kind):.0f}",
            duration(_seconds(of_kind)),
            share(_seconds(of_kind), total),
            where,
        )
    rest = [row for _, of_kind in ordered[SHOWN:] for row in of_kind]
    if rest:
        table.add_row(
            f"{len(ordered) - SHOWN} others", "", duration(_seconds(rest)), share(_seconds(rest), total)
        )
    return table


def _seconds(rows: Sequence[OperatorTime]) -> float:
    return sum(row.seconds for row in rows)


def _end(node: str) -> str:
    return node if len(node) <= NODE_WIDTH else f"…{node[1 - NODE_WIDTH :]}"
