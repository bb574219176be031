"""A model's outputs, gone through more than once: held within a byte budget, computed again beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir.graph.model import Model

Values = tuple[Tensor, ...]


class Outputs:
    """Of every batch its inputs and what a model, which does not change meanwhile, makes of them.

    Args:
        budget: what the outputs that are held may take.
    """

    def __init__(self, model: Model, batches: Sequence[Inputs], budget: ByteBudget | None = None) -> None:
        self._model, self._batches, self._budget = model, batches, budget or ByteBudget()
        self._held: dict[int, Values] = {}

    def __iter__(self) -> Iterator[tuple[Inputs, Values]]:
        for number, inputs in enumerate(self._batches):
            outputs = self._held.get(number)
            if outputs is None:
                with torch.no_grad():
                    outputs = tuple(self._model.outputs_of(*inputs))
                if self._budget.fits(sum(y.nbytes for y in outputs)):
                    self._held[number] = outputs
            yield inputs, outputs
