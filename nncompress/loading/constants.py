"""Which of the tensors that a graph itself holds are weights, where it does not say so."""

from __future__ import annotations

from torch import Tensor


def is_weight(tensor: Tensor) -> bool:
    """Floats with a dim; with infinities among them they are a mask that is added to scores."""
    return bool(tensor.is_floating_point() and tensor.dim() and not tensor.isinf().any())
