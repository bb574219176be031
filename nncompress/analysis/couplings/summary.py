"""What each group of units is worth, as `inspect --units` shows it; and why others are in no group."""

from __future__ import annotations

from collections import Counter
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


def why_fixed(couplings: Couplings, most: int = 3) -> str:
    """Which ops fix the outputs of layers, and how: the reasons, those of most layers first."""
    reasons = Counter(why for place, why in couplings.pinned.items() if place in couplings.trace.outputs)
    shown = [why for why, _ in reasons.most_common(most)]
    return "; ".join(shown) + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")


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
