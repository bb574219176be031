"""Functions whose own steps torch takes with the sizes of the example, said in steps that keep them free.

They are composed in C++ of sizes as plain numbers: traced with a free batch, they fixed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FreeSizes(TorchFunctionMode):
    """Meanwhile these functions are computed by their steps here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _STEPS or kwargs.get("out") is not None:  # the sizes are those of what it writes to
            return func(*args, **kwargs)
        return _STEPS[func](*args, **{name: value for name, value in kwargs.items() if name != "out"})


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return input.flatten().gather(0, indices.flatten())
    if input.dim() != indices.dim() or not -input.dim() <= dim < input.dim():
        return torch.take_along_dim(input, indices, dim)  # which says what is wrong
    sizes = [[*input.shape], [*indices.shape]]
    for size in sizes:
        size[dim] = 1
    sizes = [[*torch.broadcast_shapes(*sizes)] for _ in sizes]
    for size, given in zip(sizes, (input, indices)):
        size[dim] = given.shape[dim]
    return input.expand(sizes[0]).gather(dim, indices.expand(sizes[1]))


def _kron(input: Tensor, other: Tensor) -> Tensor:
    dims = max(input.dim(), other.dim())
    left, right = ([1] * (dims - t.dim()) + [*t.shape] for t in (input, other))
    spread = input.reshape([size for each in left for size in (each, 1)])
    product = spread * other.reshape([size for each in right for size in (1, each)])
    return product.reshape([a * b for a, b in zip(left, right)])


_STEPS: dict[Any, Callable[..., Any]] = {
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    torch.kron: _kron,
    Tensor.kron: _kron,
}
