"""What `inspect --target` shows: where time goes in a target, and where it could be saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from nncompress.report.line import line
from nncompress.report.tables import Name, plain
from nncompress.report.units import duration, share

if TYPE_CHECKING:
    from nncompress.benchmarking.latency.forecast import Forecast


def forecast(found: Forecast, path: Path) -> RenderableType:
    """A row per layer, then what they make of the model's time."""
    table = plain("layer", "kind", "weight", "now", "%", "int8", "bf16", "half the width", right=3)
    table.columns[1].no_wrap = False
    for row in found.layers:
        table.add_row(
            Name(row.name),
            row.kind,
            "×".join(map(str, row.weight)),
            duration(row.seconds),
            share(row.share, 1.0),
            "is int8" if row.int8 is None else duration(row.int8),
            "" if row.bf16 is None else duration(row.bf16),
            "" if row.half is None else duration(row.half),
        )
    timed = sum(row.seconds for row in found.layers)
    lines = [
        line(
            f"{path} in {found.target}, floats in {found.floats}: {duration(found.seconds)} (one sample, one "
            f"thread, CPU time); its layers, each by itself, {duration(timed)}",
            style="bold",
        )
    ]
    floats = [row for row in found.layers if row.int8 is not None]
    notes = []
    if timed > found.seconds:
        notes.append(
            "layers by themselves take more than in the model, which leaves out what each does to its inputs "
            "and outputs: % and what int8 saves are in proportion"
        )
    if not found.layers and not found.skipped:
        notes.append("it has no layer with weights of its own to be timed by itself")
    if floats:
        notes.append(
            f"in int8, where that is faster: {duration(found.seconds - found.saved)} for the model at "
            "best, without the rounding between int8 and float"
        )
    slower = [row.name for row in floats if row.int8 is not None and row.int8 >= row.seconds]
    if slower:
        notes.append(f"no faster in int8: {', '.join(slower)}")
    if found.no_bf16:
        notes.append(f"bf16: {found.no_bf16}")
    notes += [f"{name} is not timed: {why}" for name, why in found.skipped]
    notes.append(
        "half the width: half its outputs (of a depthwise convolution, half its channels); the layer that "
        "reads them gains, too"
    )
    if found.unkept:
        notes.append(f"these times are not kept: {found.unkept}")
    return Group(*lines, table, *(line(note, style="dim") for note in notes))
