"""What each group of units is worth: the rows of `inspect --units`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nncompress.analysis.couplings.groups import Couplings


@dataclass(frozen=True)
class GroupSummary:
    """One group of interchangeable units.

    Attributes:
        name: what removal calls it.
        units: how many there are.
        layers: the layers that one unit spans, in graph order.
        parameters, macs: what removing one unit saves.
    """

    name: str
    units: int
    layers: tuple[str, ...]
    parameters: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(couplings: Couplings) -> list[GroupSummary]:
    """A row per group, in graph order. A group of one unit can lose none, so it saves nothing."""
    parameters, macs = couplings.parameters(), couplings.macs()
    rows = []
    for group in couplings.groups:
        one = {group.name: [0]} if group.size > 1 else {}
        rows.append(
            GroupSummary(
                group.name,
                group.size,
                group.layers,
                parameters - couplings.parameters(one),
                macs - couplings.macs(one),
            )
        )
    return rows
