"""Singular spectra of weights: how low their rank could be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from nncompress.analysis.lowrank.decompose import singular_values
from nncompress.errors import ModelFileError
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.weights import layers


@dataclass(frozen=True)
class LayerSpectrum:
    """The singular values of one weight as a matrix [outputs, inputs × kernel].

    Attributes:
        name: the layer.
        shape: of that matrix.
        values: singular values, descending.
    """

    name: str
    shape: tuple[int, int]
    values: tuple[float, ...]

    def rank_for(self, energy: float) -> int:
        """The lowest rank that keeps this share of the sum of squared singular values."""
        squares = torch.tensor(self.values, dtype=torch.float64).square()
        if not float(squares.sum()):
            return 0
        kept = squares.cumsum(0) / squares.sum()
        return int((kept < energy).sum()) + 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def spectra(model: Model) -> list[LayerSpectrum]:
    """A spectrum per weight that `factorize` could consider, each tied weight once, in graph order.

    Raises:
        ModelFileError: a weight has NaN or infinite values.
    """
    found, seen = [], set()
    for layer in layers(model):
        tensor = model.tensor(layer.weight.name)
        if tensor.dim() < 2 or layer.depthwise or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        matrix = layer.matrix().double()
        if not matrix.isfinite().all():
            raise ModelFileError(f"the weight of {layer.name} has NaN or infinite values")
        values = singular_values(matrix)
        found.append(LayerSpectrum(layer.name, (matrix.shape[0], matrix.shape[1]), tuple(values.tolist())))
    return found
