"""Linear systems that are too large to write down, but can be multiplied with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], residual: Tensor, start: Tensor, steps: int, enough: float = 0.0
) -> Tensor:
    """x with normal(x) = b, nearly, from `start`; all of the shape of x.

    Args:
        normal: multiplies with a symmetric matrix without negative eigenvalues.
        residual: b - normal(start).
        steps: at the most.
        enough: a square of the residual that is small enough.
    """
    x, direction, size = start, residual, float(residual.square().sum())
    for _ in range(steps):
        if size <= enough:
            break
        image = normal(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:  # rounding is all that is left
            break
        x = x + (size / curvature) * direction
        residual = residual - (size / curvature) * image
        before, size = size, float(residual.square().sum())
        direction = residual + (size / before) * direction
    return x
