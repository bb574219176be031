"""How many records may go through a model at once."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.ir.model import Model
from nncompress.ir.shapes import Shapes

GRADIENT_BYTES = 2**29  # of the values that a backward pass keeps


def gradient_batch_size(model: Model, batch_size: int) -> int:
    """Records per backward pass: at most `batch_size`, and no more than whose values fit `GRADIENT_BYTES`.

    Autograd keeps values of all layers until it comes back, where a forward pass drops them on its way.
    """
    shapes, kept = Shapes(model), 0
    for node in model.graph.nodes:
        value = node.meta.get("val")
        if node.op != "get_attr" and isinstance(value, Tensor):
            kept += torch.Size(shapes.of(node)).numel() * value.element_size()
    return max(1, min(batch_size, GRADIENT_BYTES // max(kept, 1)))
