"""What `sensitivity` prints with --json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nncompress.report.facts.content import Axis, Bar, Bars, Column, Part, Section, Table
from nncompress.report.facts.limits import SHOWN, clipped, first
from nncompress.report.facts.typed import rebuilt
from nncompress.report.search import DONE, worst
from nncompress.search.layers.sensitivity import Effect, Sensitivity


def section(document: dict[str, Any], source: str) -> Section:
    """The section of a sensitivity analysis.

    Raises:
        Rejected: it is no such document.
    """
    found = rebuilt(Sensitivity, document)
    methods = list(dict.fromkeys(effect.method for effect in found.effects))
    parts: list[Part] = []
    told = []
    for method in methods:
        mine = [effect for effect in found.effects if effect.method == method]
        parts += [*_errors(method, mine), _effects(method, mine)]
        told.append(f"{clipped(method)}: {clipped(worst(mine))}")
    summary = "; ".join(told) or "nothing was measured"
    return Section(source, "sensitivity", f"{summary} (error of the outputs {found.samples}).", tuple(parts))


def _done(method: str, strength: float) -> str:
    return DONE[method].format(strength) if method in DONE else f"strength {strength:g}"


def _errors(method: str, effects: Sequence[Effect]) -> list[Part]:
    strengths = sorted({effect.strength for effect in effects if effect.error is not None})[:6]
    errors = {(e.where, e.strength): e.error for e in effects if e.error is not None}
    places = sorted(
        {where for where, _ in errors},
        key=lambda where: -max(error for (name, _), error in errors.items() if name == where),
    )
    rows, left = first(places, SHOWN)
    if not rows:
        return []
    bars = tuple(Bar(clipped(where), tuple(errors.get((where, s)) for s in strengths)) for where in rows)
    return [
        Bars(
            f"{clipped(method)}: error by layer and strength",
            "How far the outputs move when this pass is applied to one layer alone, at each strength; the "
            "layer that moves them most is first.",
            Axis("distance of the outputs", "share", log=True),
            tuple(_done(method, strength) for strength in strengths),
            bars,
            dots=True,
            left_out=left,
        )
    ]


def _effects(method: str, effects: Sequence[Effect]) -> Table:
    ordered = sorted(effects, key=lambda e: (e.error is None, -(e.error or 0.0), e.where, e.strength))
    rows, left = first(
        [
            (
                clipped(e.where),
                _done(method, e.strength) if e.error is not None else clipped(e.said),
                e.error,
                e.macs,
                e.bytes,
                clipped(e.remedy),
            )
            for e in ordered
        ],
        SHOWN,
    )
    columns = (
        Column("layer"),
        Column("what"),
        Column("error", "share"),
        Column("MACs saved", "share"),
        Column("bytes saved", "share"),
        Column("to leave it as it is"),
    )
    note = "Of the whole model's MACs and bytes."
    return Table(f"{clipped(method)}: every measurement", columns, tuple(rows), note, left)
