"""Which units are added to a model, and what they start as."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nncompress.analysis.couplings.groups import Growth


@dataclass(frozen=True)
class NewUnits:
    """What is added.

    Attributes:
        beside: group name -> per new unit the unit that it is placed beside, or copies.
        split: groups whose new units are copies that share the outgoing weights of their original (Chen et
            al. 2016, "Net2Net: Accelerating Learning via Knowledge Transfer", §2.2); new units of the others
            start with fresh incoming weights and (next to) zero outgoing ones.
        scale: of fresh incoming weights: "he", "xavier", or "auto": He before a rectifier, else Xavier.
        seed: of random weights, and of the copies' shares.
    """

    beside: Growth
    split: Collection[str] = ()
    scale: str = "auto"
    seed: int = 0
