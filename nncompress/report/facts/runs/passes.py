"""What `compress` and the commands of single passes print with --json."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress.analysis.cost import LayerCost
from nncompress.errors import UsageError
from nncompress.ir.graph.verify import Drift
from nncompress.loading.json_schema import Rejected
from nncompress.passes import Change
from nncompress.recipe import make_pass, recipe_text
from nncompress.report.facts.content import (
    Axis,
    Code,
    Column,
    Outcome,
    Part,
    Plot,
    Point,
    Section,
    Series,
    Table,
)
from nncompress.report.facts.limits import MOST_CODE, SHOWN, clipped, first
from nncompress.report.facts.runs.environment import environment
from nncompress.report.facts.runs.layers import before_and_after
from nncompress.report.facts.runs.spectra import spectra_of
from nncompress.report.facts.shown import number, shown
from nncompress.report.facts.typed import rebuilt

_TOTALS = {"parameters": "parameters", "nonzero": "non-zero", "macs": "MACs", "bytes": "bytes"}


@dataclass(frozen=True)
class Totals:
    """Of a whole model."""

    parameters: int
    nonzero: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class Compared:
    """On how many inputs outputs were compared, and where those are from."""

    count: int
    origin: str

    def __str__(self) -> str:
        return f"on {self.count} {self.origin} sample{'s' * (self.count != 1)}"


@dataclass(frozen=True)
class StepRecord:
    """What one pass did; `name` is its key "pass"."""

    name: str
    settings: dict[str, Any]
    changes: tuple[Change, ...]
    before: Totals
    after: Totals
    drift: tuple[Drift, ...]
    samples: Compared
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def moved(self) -> float:
        """How far the outputs are from the original's."""
        return max((row.amount for row in self.drift), default=0.0)

    @property
    def title(self) -> str:
        """The pass with its options."""
        options = ", ".join(f"{key} {_option(value)}" for key, value in self.settings.items())
        return f"{self.name} ({clipped(options)})" if options else self.name


@dataclass(frozen=True)
class Written:
    """The file that was written."""

    path: Path
    bytes: int
    int8: str = ""
    int8_speedup: float | None = None
    target: str = ""


@dataclass(frozen=True)
class Layers:
    """Costs of every layer around all passes."""

    before: tuple[LayerCost, ...] = ()
    after: tuple[LayerCost, ...] = ()


@dataclass(frozen=True)
class PassesRecord:
    """The whole document."""

    steps: tuple[StepRecord, ...]
    output: Written
    model: str = "the model"
    command: str = ""
    layers: Layers = field(default_factory=Layers)
    environment: dict[str, Any] = field(default_factory=dict)


def section(document: dict[str, Any], source: str) -> Section:
    """The section of a pipeline.

    Raises:
        Rejected: it is no such document.
    """
    steps = document.get("steps")
    if type(steps) is not list or not steps:
        raise Rejected("no steps")
    named = [{**step, "name": step.get("pass")} if type(step) is dict else step for step in steps]
    record = rebuilt(PassesRecord, {**document, "steps": named})
    parts: list[Part] = [totals(record.steps), *_path(record.steps)]
    if record.layers.before and record.layers.after:
        parts += before_and_after(record.layers.before, record.layers.after)
    for step in record.steps:
        parts += [_changes(step), *spectra_of(step.name, step.changes)]
    recipe, unknown = _recipe(record)
    return Section(
        source,
        " → ".join(step.name for step in record.steps),
        _summary(record),
        (*parts, *recipe),
        (_outcome(record),),
        (*(clipped(text) for step in record.steps for text in step.warnings), *unknown),
        environment(record.environment),
    )


def totals(steps: Sequence[StepRecord]) -> Table:
    """Before and after all passes, and what is left."""
    first_, last = steps[0].before, steps[-1].after
    rows = []
    for key, title in _TOTALS.items():
        form = "bytes" if key == "bytes" else "count"
        before, after = getattr(first_, key), getattr(last, key)
        left = after / before if before else None
        rows.append((title, number(before, form), number(after, form), left))  # type: ignore[arg-type]
    columns = (Column("cost"), Column("before", "number"), Column("after", "number"), Column("left", "share"))
    return Table("The model before and after", columns, tuple(rows))


def _path(steps: Sequence[StepRecord]) -> list[Part]:
    """How far the outputs moved against what was saved, pass by pass."""
    before = steps[0].before
    if not before.macs or not before.bytes or len(steps) < 2:
        return []
    places = [Point(1.0, 0.0, "the original")]
    for step in steps:
        macs, left = step.after.macs / before.macs, step.after.bytes / before.bytes
        said = f"{step.title}: {macs:.0%} of the MACs, {left:.0%} of the bytes, outputs {step.moved:.2%} away"
        places.append(Point(left, step.moved, said, chosen=step is steps[-1]))
    description = (
        "Each pass in order: the bytes that are left, and how far the outputs are from the original's."
    )
    plot = Plot(
        "Pass by pass: size against error",
        description,
        Axis("bytes left", "share"),
        Axis("distance of the outputs", "share"),
        (Series("passes", tuple(places), joined=True),),
    )
    return [plot]


def _changes(step: StepRecord) -> Table:
    done = [change for change in step.changes if change.applied]
    left = [change for change in step.changes if not change.applied]
    rows = [(clipped(change.where), clipped(change.what)) for change in (*done, *left)]
    shown_rows, left_out = first(rows, SHOWN)
    title = f"{step.title}: what changed, and what was skipped"
    note = f"{len(done)} changed, {len(left)} skipped, {step.seconds:.1f} s."
    note = " ".join((note, *(clipped(text) for text in step.notes)))
    return Table(title, (Column("layer"), Column("change")), tuple(shown_rows), note, left_out)


def _summary(record: PassesRecord) -> str:
    before, last = record.steps[0].before, record.steps[-1]
    parts = []
    for key in ("macs", "parameters", "bytes"):
        one, now = getattr(before, key), getattr(last.after, key)
        if one and now != one:
            parts.append(f"{abs(1 - now / one):.0%} {'fewer' if now < one else 'more'} {_TOTALS[key]}")
    did = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else "no cost changed"
    text = f"{record.output.path.name}, made of {Path(record.model).name}: {did}"
    if last.drift:
        text += f"; its outputs are {shown(last.moved, 'share')} away from the original's, {last.samples}"
    return text + "."


def _outcome(record: PassesRecord) -> Outcome:
    before, last = record.steps[0].before, record.steps[-1]
    return Outcome(
        record.output.path.name,
        Path(record.model).name,
        smaller=before.bytes / last.after.bytes if last.after.bytes else None,
        macs=last.after.macs / before.macs if before.macs else None,
        parameters=last.after.parameters / before.parameters if before.parameters else None,
        drift=last.moved if last.drift else None,
    )


def _recipe(record: PassesRecord) -> tuple[list[Part], list[str]]:
    """What makes the result again: the recipe, and the command where it is known."""
    text = recipe_of((step.name, step.settings) for step in record.steps)
    if text is None:
        return [], ["The recipe is not shown: this version does not know all of its passes and options"]
    if len(text) > MOST_CODE:
        return [], [f"The recipe is not shown: it has {len(text)} characters"]
    parts: list[Part] = [Code("Recipe", "toml", text)]
    command = record.command or f"nncompress compress {shlex.quote(record.model)} --recipe recipe.toml"
    return [*parts, *([Code("Command", "sh", command)] if len(command) <= MOST_CODE else [])], []


def recipe_of(steps: Iterable[tuple[str, dict[str, Any]]]) -> str | None:
    """The recipe of passes with their settings; None where one of them is not known here."""
    try:
        return recipe_text([make_pass(name, settings, "a record") for name, settings in steps])
    except UsageError:
        return None


def _option(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
