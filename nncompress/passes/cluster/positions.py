"""Where the numbers of a weight stand in the matrices that its layer multiplies with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.weight_targets import MATRIX_KINDS, Target
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer


@dataclass(frozen=True)
class Positions:
    """Where a weight's numbers stand in the matrices M [groups, out, in] of its layer, y = M x.

    Attributes:
        index: flat positions in the weight, int64 [groups, out, in].
    """

    index: Tensor

    @classmethod
    def of(cls, layer: Layer) -> Positions | None:
        """None where the layer is no plain matrix product: uneven padding, or a batch of matrices."""
        weight = layer.weight.value()
        if layer.kind in MATRIX_KINDS:
            if weight.dim() != 2:
                return None
        elif geometry(layer) is None:
            return None
        target = Target((layer,), 0)
        return cls(target.matrices(torch.arange(weight.numel()).reshape(weight.shape)))
