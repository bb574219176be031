"""A study's rows: the paper's number beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.report.tables import plain

if TYPE_CHECKING:
    from nncompress.studies import StudyResult


def study(result: StudyResult) -> RenderableType:
    """One row per way of doing it, mean ± standard deviation over the seeds."""
    table = plain("", "paper", "seeds", "nodes", "cycles", "loss", right=2)
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for row in result.rows:
        nodes = "-".join(f"{n:.3g}" for n in row.mean_nodes())
        cycles = sum(t.cycles for t in row.trials) / len(row.trials)
        mean = sum(row.losses) / len(row.losses)
        loss = f"{mean:.2g} ± {row.loss_spread():.1g}" if len(row.trials) > 1 else f"{mean:.2g}"
        table.add_row(row.name, row.paper or "–", str(len(row.trials)), nodes, f"{cycles:.3g}", loss)
    return Group(table, Text(f"{result.verdict} ({result.seconds:.0f} s)"))
