"""What a layer's inputs say about its weights: which errors matter, and which cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.curvature.ridge import with_ridge
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.layerwise import Inputs, LayerwiseRunner
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.statistics import Moments
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_records
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer
from nncompress.passes.factorize.targets import MATRIX_KINDS, Target

RIDGE = 1e-2  # of the mean second moment: with few records, correlations are less certain than they look
ROWS = 2048  # positions of a layer that are drawn from every batch


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


class SeenInputs:
    """Second moments of every layer's inputs, as the layers before it, already rounded, make them.

    The network is run layer by layer, on all batches.

    Attributes:
        rows: what was seen of each layer that was asked for.
    """

    def __init__(self, model: Model, batches: Sequence[Inputs], seed: int) -> None:
        self._run = LayerwiseRunner(model, batches)
        self._generator = torch.Generator().manual_seed(seed)
        self._records = sum(count_records(model.inputs, inputs) for inputs in batches)
        self.rows: list[Rows] = []

    def second_moments(self, layer: Layer) -> Tensor:
        """E[x xᵀ] with a ridge, float64 [groups, in, in]; of an embedding its diagonal [1, in].

        Layers must be asked for in graph order.
        """
        seen = self._run.values(layer.data)
        if layer.kind == "embedding":
            counts = torch.zeros(len(layer.weight.value()), dtype=torch.float64)
            for (value,) in seen:
                counts += torch.bincount(value.flatten(), minlength=len(counts))
            return with_ridge(counts, RIDGE).unsqueeze(0)
        moments = Moments()
        for (value,) in seen:
            moments.add(input_rows(layer, value, ROWS, self._generator))
        self.rows.append(Rows(layer.name, moments.count, moments.total.shape[1], self._records))
        return with_ridge(moments.second, RIDGE)
