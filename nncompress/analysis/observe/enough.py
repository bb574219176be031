"""Are there enough samples for what is fitted to them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Rows:
    """What a layer was fitted to.

    Attributes:
        layer: its name.
        count: vectors seen of its input: samples times the positions of each that were taken.
        inputs: how long these vectors are; with fewer of them, many weights fit them all.
        samples: they came from.
    """

    layer: str
    count: int
    inputs: int
    samples: int

    @property
    def short(self) -> bool:
        """Many weights fit them all."""
        return 0 < self.count < self.inputs

    @property
    def enough(self) -> int:
        """Samples that give as many rows as there are inputs."""
        return ceil(self.inputs * self.samples / self.count)


def too_few(name: str, fitted: Sequence[Rows]) -> str | None:
    """A warning where layers were fitted to fewer rows than they have inputs; None where none was.

    Args:
        name: of the pass.
    """
    short = [rows for rows in fitted if rows.short]
    if not short:
        return None
    worst = max(short, key=lambda rows: rows.inputs / rows.count)
    need = max(rows.enough for rows in short)
    return (
        f"{name}: {len(short)} of {len(fitted)} fitted layers saw fewer rows (samples × positions) than they"
        f" have inputs, {worst.layer} the fewest: {worst.count} for {worst.inputs}. Give at least {need}"
        f" samples to fit to, instead of {worst.samples}: more in --data, a higher --limit."
    )
