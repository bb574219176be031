"""What `inspect --units` shows: groups of removable nodes, then what cannot be removed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from nncompress.errors import on_one_line
from nncompress.report.line import line
from nncompress.report.tables import broken, plain
from nncompress.report.units import count

if TYPE_CHECKING:
    from nncompress.analysis.couplings.summary import GroupSummary

NAMES = 4  # names in a row of a list; the rest is counted
Pinned = Mapping[tuple[str, int], str]


def groups(rows: Sequence[GroupSummary], share_prunable: float, pinned: Pinned) -> RenderableType:
    """One row per group of removable nodes, then what cannot be removed and why; `--json` has it all."""
    table = plain("group", "nodes", "spans", "params", "MACs", right=3)
    table.columns[1].justify = "right"
    for row in rows:
        spans = some(_shortened(row.layers))
        table.add_row(
            Text(broken(on_one_line(row.name), 24)),
            str(row.units),
            spans,
            count(row.parameters),
            count(row.macs),
        )
    lines: list[RenderableType] = [table, line("params, MACs: what removing one node saves", style="dim")]
    lines.append(line(f"{100 * share_prunable:.1f} % of the parameters lie in nodes that can be removed"))
    return Group(*lines, *_fixed(pinned))


def _fixed(pinned: Pinned) -> list[RenderableType]:
    """A paragraph per reason: the reason and where it was met, then the tensors."""
    where: dict[str, list[str]] = {}
    tensors: dict[str, list[str]] = {}
    for (tensor, dim), why in pinned.items():
        node, _, reason = why.rpartition(": ")
        if reason == "a kernel's extent":  # true of every convolution, and no news
            continue
        nodes = where.setdefault(reason, [])
        if node not in ("", "output", *nodes):
            nodes.append(node)
        tensors.setdefault(reason, []).append(f"{tensor} dim {dim}")
    lines: list[RenderableType] = []
    for reason, names in tensors.items():
        met = line(f" (at {some(where[reason])})" if where[reason] else "", style="dim")
        lines += [Text(), Text.assemble("fixed, because: ", (reason, "bold"), met)]
        lines.append(Padding(line(some(names)), (0, 0, 0, 4)))
    return lines


def _shortened(names: Sequence[str]) -> list[str]:
    """Dotted names; of those after the first, what they share with it is left out: a.b.x, …y."""
    first = names[0].split(".")
    shared = len(first) - 1
    for name in names[1:]:
        parts = name.split(".")
        while parts[:shared] != first[:shared]:
            shared -= 1
    if not shared:
        return list(names)
    return ["…" + ".".join(name.split(".")[shared:]) for name in names]


def some(names: Sequence[str], limit: int = NAMES) -> str:
    """The first few: "a, b, c, d and 7 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
