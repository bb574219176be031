"""What a run over a checkpoint did, in a table that stays short however many tensors there are."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.report.tables import Name, plain
from nncompress.report.units import size, times

if TYPE_CHECKING:
    from nncompress.streaming import Row, Streamed

WORST = 5  # weights that are named


def streamed(done: Streamed) -> RenderableType:
    """Kinds of outcome with their bytes, the weights that moved farthest, and what was written."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in done.rows:
        kinds["changed" if row.applied else row.what].append(row)
    summary = plain("tensors", "number", "before", "bytes", "smaller")
    for what, rows in [*kinds.items(), ("all", list(done.rows))]:
        before, after = sum(row.bytes_before for row in rows), sum(row.bytes for row in rows)
        summary.add_row(Text(what), str(len(rows)), size(before), size(after), times(before, after))
    parts: list[RenderableType] = [summary]
    changed = sorted((row for row in done.rows if row.applied), key=lambda row: -row.error)
    if changed:
        worst = plain("moved farthest", "by", "what", right=1)
        worst.columns[2].justify = "left"
        worst.columns[2].no_wrap = False
        for row in changed[:WORST]:
            worst.add_row(Name(row.name), f"{row.error:.2%}", Text(row.what))
        parts += ["", worst]
    many = done.shards > 1
    told = f"wrote {done.folder}: {done.shards} shard{'s' * many} and {'their' if many else 'its'} index"
    if done.resumed:
        told += f", {done.resumed} of them by an earlier run"
    if done.copied:
        told += f"; copied {', '.join(done.copied[:6])}{', …' if len(done.copied) > 6 else ''}"
    return Group(*parts, "", Text(told))
