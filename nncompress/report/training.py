"""Epochs and cycles as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.report.tables import plain

if TYPE_CHECKING:
    from nncompress.train import TrainResult

SHOWN = 12  # the last epochs of a long run


def epochs(result: TrainResult) -> RenderableType:
    """One row per epoch, the kept one marked."""
    rows: Sequence[dict[str, Any]] = result.epochs
    accuracy = any("top1" in row.get("validation", {}) for row in rows)
    held_out = any("validation" in row for row in rows)
    headers = ["epoch", "rate", "loss", *(["val loss"] if held_out else []), *(["top-1"] if accuracy else [])]
    table = plain(*headers, right=0)
    for row in rows[-SHOWN:]:
        validation = row.get("validation", {})
        cells = [str(row["epoch"]), f"{row['lr']:.3g}", f"{row['loss']:.4g}"]
        if held_out:
            cells.append(f"{validation['loss']:.4g}")
        if accuracy:
            cells.append(f"{100 * validation['top1']:.2f} %")
        table.add_row(*cells, style="bold" if row["epoch"] == result.kept_epoch else None)
    lines: list[RenderableType] = [table]
    if len(rows) > SHOWN:
        lines.insert(0, Text(f"the last {SHOWN} of {len(rows)} epochs (the log has all)"))
    lines.append(Text(f"stopped after {result.stopped}; the weights are those of epoch {result.kept_epoch}"))
    return Group(*lines)
