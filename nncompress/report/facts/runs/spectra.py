"""Spectra: what every rank would lose, and which was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nncompress.analysis.lowrank.spectrum import LayerSpectrum
from nncompress.loading.json_schema import Rejected
from nncompress.passes import Change
from nncompress.report.facts.content import Axis, Column, Part, Plot, Point, Section, Series, Table
from nncompress.report.facts.limits import PLOTS, SHOWN, clipped, first, thinned
from nncompress.report.facts.typed import rebuilt

POINTS = 48  # of one curve
_FLOOR = 1e-6  # of the error: below, a curve says nothing any more


def spectra_of(name: str, changes: Sequence[Change]) -> list[Part]:
    """A curve per factorized layer: share of its error that a rank loses, the chosen one marked.

    Raises:
        Rejected: a spectrum is none.
    """
    curves = []
    for change in changes:
        if "spectrum" not in change.numbers:
            continue
        try:
            rows = rebuilt(tuple[tuple[int, float], ...], change.numbers["spectrum"])
        except Rejected as rejected:
            rejected.path += ["spectrum", change.where[:80]]
            raise
        rank = change.numbers.get("rank")
        curves.append((change.where, rows, rank if type(rank) is int else None))
    shown = [_curve(where, rows, rank) for where, rows, rank in curves[:PLOTS]]
    return [plot for plot in shown if plot.series[0].points]


def _curve(where: str, rows: Sequence[tuple[int, float]], rank: int | None) -> Plot:
    points = [
        Point(r, max(lost, _FLOOR), f"rank {r} loses {lost:.3%}", chosen=r == rank)
        for r, lost in rows
        if math.isfinite(lost)
    ]
    taken = f"; rank {rank} was taken" if rank is not None else ""
    return Plot(
        f"Spectrum of {clipped(where)}{taken}",
        "The share of the layer's energy, under the error that was minimised, that each rank loses.",
        Axis("rank", "count"),
        Axis("energy lost", "share", log=True),
        (Series(clipped(where), tuple(points), joined=True),),
        small=True,
    )


def singular_values(rows: Sequence[LayerSpectrum]) -> list[Part]:
    """What `inspect --spectrum` says: the singular values of each weight."""
    parts: list[Part] = []
    for row in rows[:PLOTS]:
        largest = max(row.values, default=0.0)
        kept = thinned(list(enumerate(row.values, 1)), POINTS)
        points = [
            Point(i, max(v / largest, _FLOOR), f"singular value {i}: {v:.4g}") for i, v in kept if largest > 0
        ]
        shape = "×".join(map(str, row.shape))
        plot = Plot(
            f"Singular values of {clipped(row.name)} ({shape})",
            "Singular values of the weight as a matrix, as a share of the largest.",
            Axis("number", "count"),
            Axis("share of the largest", "share", log=True),
            (Series(clipped(row.name), tuple(points), joined=True),),
            small=True,
        )
        parts += [plot] if points else []
    return parts


@dataclass(frozen=True)
class Spectra:
    """The document of `inspect --spectrum`."""

    spectra: tuple[LayerSpectrum, ...]
    model: str = "the model"


def section(document: dict[str, Any], source: str) -> Section:
    """The section of the singular values of a model's weights.

    Raises:
        Rejected: it is no such document.
    """
    found = rebuilt(Spectra, document)
    rows = [
        (
            clipped(row.name),
            "×".join(map(str, row.shape)),
            row.rank_for(0.9),
            row.rank_for(0.99),
            len(row.values),
        )
        for row in found.spectra
    ]
    shown, left = first(rows, SHOWN)
    columns = (
        Column("layer"),
        Column("matrix"),
        Column("rank for 90 %", "count"),
        Column("rank for 99 %", "count"),
        Column("of", "count"),
    )
    note = "The rank that keeps this share of the squared singular values."
    table = Table("How low the ranks could be", columns, tuple(shown), note, left)
    low = sum(2 * row.rank_for(0.99) < len(row.values) for row in found.spectra)
    text = f"{low} of {len(rows)} weights of {clipped(found.model)} keep 99 % of their energy in half "
    text += "their ranks."
    return Section(source, "inspect", text, (*singular_values(found.spectra), table))
