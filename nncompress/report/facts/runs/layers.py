"""Layers before and after, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nncompress.analysis.cost import LayerCost
from nncompress.report.facts.content import Axis, Bar, Bars, Cell, Column, Part, Table
from nncompress.report.facts.limits import SHOWN, first

_BITS = {8: "int8", 16: "16 bits", 32: "float32", 64: "float64"}


def before_and_after(before: Sequence[LayerCost], after: Sequence[LayerCost]) -> list[Part]:
    """MACs per layer as bars, and all costs as a table. What a layer was split into counts as that layer."""
    pairs = _paired(before, after)
    heavy = [pair for pair in pairs if pair[1] is not None and pair[1].macs]
    shown, left = first(heavy, SHOWN)
    bars = Bars(
        "Multiply-accumulates per layer",
        "For each layer that multiplies, the MACs of one sample in the original and in the result.",
        Axis("MACs", "count"),
        ("before", "after"),
        tuple(Bar(name, (one.macs, sum(row.macs for row in now))) for name, one, now in shown if one),
        left_out=left,
    )
    rows, left = first([_row(*pair) for pair in pairs], SHOWN)
    table = Table(
        "Layers before and after",
        (
            Column("layer"),
            Column("kind"),
            Column("weight before"),
            Column("weight after"),
            Column("parameters before", "count"),
            Column("parameters after", "count"),
            Column("MACs before", "count"),
            Column("MACs after", "count"),
            Column("bytes before", "bytes"),
            Column("bytes after", "bytes"),
        ),
        tuple(rows),
        "Of one sample. What a layer was split into counts as that layer; “–” is no longer there, because it "
        "was folded into another or removed.",
        left,
    )
    return [*([bars] if bars.rows else []), table]


def _paired(
    before: Sequence[LayerCost], after: Sequence[LayerCost]
) -> list[tuple[str, LayerCost | None, list[LayerCost]]]:
    names = {row.name for row in before}
    found: dict[str, list[LayerCost]] = {}
    new: list[LayerCost] = []
    for row in after:
        whole = _whole(row.name, names)
        if whole is None:
            new.append(row)
        else:
            found.setdefault(whole, []).append(row)
    pairs: list[tuple[str, LayerCost | None, list[LayerCost]]] = []
    calls = Counter(row.name for row in before)  # a layer that is called several times has a row per call
    for row in before:
        now = found.get(row.name, [])
        share = -(-len(now) // calls[row.name])
        pairs.append((row.name, row, now[:share]))
        found[row.name] = now[share:]
        calls[row.name] -= 1
    return pairs + [(row.name, None, [row]) for row in new]


def _whole(name: str, names: set[str]) -> str | None:
    """The layer of which `name` is a part: itself, or "6" of "6.0", "proj" of "proj_0"."""
    if name in names:
        return name
    head, _, last = name.rpartition("." if "." in name else "_")
    head = head or name
    if last.isdigit() and head in names:
        return head
    stem, _, number = name.rpartition("_")
    return stem if number.isdigit() and stem in names else None


def _row(name: str, before: LayerCost | None, after: Sequence[LayerCost]) -> tuple[Cell, ...]:
    def total(which: str) -> Cell:
        return sum(getattr(row, which) for row in after) if after else "–"

    one = before or after[0]
    cells: list[Cell] = [name, one.kind]
    cells += [weight_of([before]) if before else "–", weight_of(after) if after else "–"]
    for which in ("parameters", "macs", "bytes"):
        cells += [getattr(before, which) if before else "–", total(which)]
    return tuple(cells)


def weight_of(rows: Sequence[LayerCost]) -> str:
    """Shapes, and in how many bits: "64×32×3×3 int8"."""
    shapes = " · ".join("×".join(map(str, row.shape)) for row in rows if row.shape)
    bits = max((row.bits for row in rows), default=0)
    said = _BITS.get(bits, f"int{bits}" if 0 < bits < 8 else "")
    return f"{shapes} {said}".strip()
