"""Growth: `couplings` backwards. Units are added to a group in every tensor that it touches, for real.

| module    | one idea                                                                          |
|-----------|-----------------------------------------------------------------------------------|
| `new_units` | which units are added, and what they start as                                   |
| `units`   | add units to groups of a model                                                    |
| `initial` | the values of new units: they add nothing yet, and training can reach them        |
| `proof`   | output before = output after, and gradients arrive; a group that fails stays      |
| `need`    | which groups need units: spread of activations, gradient of candidates            |
| `amounts` | how many units each group gets: a number, a factor, a quarter, a budget           |
| `step`    | all of it, once                                                                   |
| `latency` | as much of a step as stays within a measured latency                              |

    step = grow_step(model, Wish(Amount(by=16)), data, ...)    # step.model computes what `model` computes
"""

from __future__ import annotations

from nncompress.analysis.growth.amounts import Amount, Budget
from nncompress.analysis.growth.latency import Fit, largest_within
from nncompress.analysis.growth.need import require_fitting_labels
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.analysis.growth.proof import Grown, grow_proven
from nncompress.analysis.growth.step import Growth, Wish, grow_step, is_quantized
from nncompress.analysis.growth.units import grow_units, normalized_groups

__all__ = [
    "Amount",
    "Budget",
    "Fit",
    "Grown",
    "Growth",
    "NewUnits",
    "Wish",
    "grow_proven",
    "grow_step",
    "grow_units",
    "is_quantized",
    "largest_within",
    "normalized_groups",
    "require_fitting_labels",
]
