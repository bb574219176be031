"""What a layer's inputs say about its weights, as the layers before it, already changed, make them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import FEW, HELD_OUT, Moments, held_out_ridge, with_ridge
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_records
from nncompress.ir.layers.weights import Layer

ROWS = 2048  # positions of a layer that are drawn from every batch
UNSEEN = 1e-2  # what a row that is never looked up counts, of what they count in the mean


class SeenInputs:
    """Second moments of every layer's inputs. The network is run layer by layer, on all batches.

    Attributes:
        rows: what was seen of each layer that was asked for.
        ridges: by layer, what its moments were lifted by.
    """

    def __init__(self, model: Model, batches: Sequence[Inputs], seed: int) -> None:
        self._run = LayerwiseRunner(model, batches)
        self._generator = torch.Generator().manual_seed(seed)
        self._records = [count_records(model.inputs, inputs) for inputs in batches]
        self.rows: list[Rows] = []
        self.ridges: dict[str, float] = {}

    def second_moments(self, layer: Layer) -> Tensor:
        """E[x xᵀ], float64 [groups, in, in], with the ridge that is best on every fourth sample, held out for
        that; of an embedding its diagonal [1, in].

        Layers must be asked for in graph order.
        """
        seen = self._run.values(layer.data)
        if layer.kind == "embedding":
            lookups = Moments()
            for (value,) in seen:
                lookups.add_lookups(value, len(layer.weight.value()))
            return with_ridge(lookups.total[0], UNSEEN).unsqueeze(0)
        fitted, held = Moments(), Moments()
        first = 0
        for (value,), records in zip(seen, self._records, strict=True):
            # of which sample each entry of the first dim is; a value without that dim is of the first
            numbers = first + torch.arange(len(value)) * records // len(value) if value.dim() > 1 else None
            held_out = (
                torch.zeros(1, dtype=torch.bool) if numbers is None else numbers % HELD_OUT == HELD_OUT - 1
            )
            first += records
            for moments, mine in ((fitted, ~held_out), (held, held_out)):
                if mine.any():
                    part = value if mine.all() else value[mine]
                    most = max(1, ROWS * int(mine.sum()) // len(mine))
                    moments.add(input_rows(layer, part, most, self._generator))
        ridge = held_out_ridge(fitted.second, held.second) if fitted.count and held.count else FEW
        fitted.join(held)
        self.ridges[layer.name] = ridge
        self.rows.append(Rows(layer.name, fitted.count, fitted.total.shape[1], sum(self._records)))
        return with_ridge(fitted.second, ridge)
