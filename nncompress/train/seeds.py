"""Seeds that follow from where a run is, so that a resumed one draws the same numbers."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed of its own for every combination of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
