"""A model file: what was done to it, as it carries that with it, and what its layers cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress import api
from nncompress.analysis.cost import LayerCost, cost
from nncompress.loading.json_schema import Rejected
from nncompress.report.facts.content import Cell, Code, Column, Outcome, Part, Section, Table
from nncompress.report.facts.limits import MOST_CODE, SHOWN, clipped, first
from nncompress.report.facts.runs.layers import weight_of
from nncompress.report.facts.runs.passes import Totals, recipe_of
from nncompress.report.facts.typed import rebuilt


@dataclass(frozen=True)
class Past:
    """What a pass left in the history; `name` is its key "pass"."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    changed: int | None = None
    before: Totals | None = None
    after: Totals | None = None


def section(path: str) -> Section:
    """The section of a model file, which is loaded for it, without running code of it.

    Raises:
        NNCompressError: it cannot be loaded.
        Rejected: its history is none.
    """
    said: list[str] = []
    model = api.load(path, notice=said.append)
    past = _past(model.history)
    costed = [each for each in past if each.before is not None and each.after is not None]
    name, costs = clipped(Path(path).name), cost(model)
    text = f"{name} has {len(costs.layers)} layers, {costs.parameters:,} parameters and {costs.macs:,} MACs"
    text += (
        f"; made by {', '.join(clipped(each.name) for each in past)}." if past else "; it records no pass."
    )
    parts: list[Part] = [*([_history(past)] if past else []), _layers(costs.layers)]
    recipe = recipe_of((each.name, each.settings) for each in costed)
    if recipe is not None and len(recipe) <= MOST_CODE:
        parts.append(Code("Recipe", "toml", recipe))
    outcomes = [_outcome(name, costed)] if costed else []
    return Section(path, "model", text, tuple(parts), tuple(outcomes), tuple(map(clipped, said)))


def _past(history: Sequence[Any]) -> tuple[Past, ...]:
    if any(type(each) is not dict for each in history):
        raise Rejected("a history that nncompress does not write")
    return rebuilt(tuple[Past, ...], [{**each, "name": each.get("pass")} for each in history])


def _outcome(name: str, costed: Sequence[Past]) -> Outcome:
    before, after = costed[0].before, costed[-1].after
    assert before is not None
    assert after is not None
    return Outcome(
        name,
        "what it was made of",
        smaller=before.bytes / after.bytes if after.bytes else None,
        macs=after.macs / before.macs if before.macs else None,
        parameters=after.parameters / before.parameters if before.parameters else None,
    )


def _history(past: Sequence[Past]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for each in past:
        cells: list[Cell] = []
        for key in ("parameters", "macs", "bytes"):
            cells += [getattr(side, key) if side else None for side in (each.before, each.after)]
        settings = ", ".join(f"{key} {value}" for key, value in each.settings.items())
        rows.append((clipped(each.name), clipped(settings), each.changed, *cells))
    columns = [Column("pass"), Column("settings"), Column("layers changed", "count")]
    for title, unit in (("parameters", "count"), ("MACs", "count"), ("bytes", "bytes")):
        columns += [Column(f"{title} {when}", unit) for when in ("before", "after")]  # type: ignore[arg-type]
    shown, left = first(rows, SHOWN)
    note = "As the file carries it with it. What a pass changed where, its --json tells."
    return Table("What was done to it", tuple(columns), tuple(shown), note, left)


def _layers(layers: Sequence[LayerCost]) -> Table:
    rows, left = first(
        [
            (clipped(row.name), clipped(row.kind), weight_of([row]), row.parameters, row.macs, row.bytes)
            for row in layers
        ],
        SHOWN,
    )
    columns = (
        Column("layer"),
        Column("kind"),
        Column("weight"),
        Column("parameters", "count"),
        Column("MACs", "count"),
        Column("bytes", "bytes"),
    )
    return Table("Layers", columns, tuple(rows), "MACs of one sample.", left)
