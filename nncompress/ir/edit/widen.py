"""Make dims of stored tensors wider: `resize` backwards, a gather with repeated indices instead of a subset.

    source    [0, 1, 2, 2, 2]      a dim of 3 that has become 5: its last index stands three times
    new       [-, -, -, x, x]      the copies; whoever widens gives them values of their own

Where a unit owns several places of a dim, a run of neighbours (the positions of one channel in a flattened
image) is repeated as a whole, behind itself: that is where a view of the wider tensor has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncompress.ir.edit.nodes import replace_tensor
from nncompress.ir.edit.resize import Survivors, rewrite_literals
from nncompress.ir.graph.model import Model


@dataclass(frozen=True)
class Gather:
    """Where each index of a widened dim comes from.

    Attributes:
        source: `[new size]`: the index before.
        new: `[new size]`: it is a copy.
    """

    source: NDArray[np.int64]
    new: NDArray[np.bool_]

    def chosen(self, of: NDArray[np.bool_]) -> Tensor:
        """`[new size]`: the copies of the indices `of` `[old size]`."""
        return torch.from_numpy(self.new & of[self.source])


Gathers = dict[int, Gather]  # by dim


def repeat_runs(owners: NDArray[np.int64], times: NDArray[np.int64]) -> Gather:
    """The gather that repeats every run of equal `owners` as often as `times` says (1: not at all).

    Args:
        owners, times: `[size of the dim]`.
    """
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    source, new = [], []
    for start, end in zip(starts, np.r_[starts[1:], len(owners)]):
        run = np.arange(start, end)
        source.append(np.tile(run, times[start]))
        new.append(np.repeat(np.arange(times[start]) > 0, len(run)))
    return Gather(np.concatenate(source), np.concatenate(new))


def widen(model: Model, counts: Survivors, gathers: Mapping[str, Gathers]) -> None:
    """Repeat indices of stored tensors and rewrite every literal; then refresh.

    Raises:
        UnsupportedError: a size is computed at run time in a way that cannot be rewritten, or the result does
            not trace.
    """
    rewrite_literals(model, counts)
    for name, dims in gathers.items():
        replace_tensor(model, name, gathered(model.tensor(name).detach(), dims))
    model.refresh()


def gathered(tensor: Tensor, dims: Gathers) -> Tensor:
    for dim, gather in dims.items():
        tensor = tensor.index_select(dim, torch.from_numpy(gather.source).to(tensor.device))
    return tensor


def anywhere(dims: Mapping[int, Tensor], rank: int) -> Tensor:
    """Bool, broadcastable to a tensor of that rank: chosen along any of the dims (dim -> bool `[size]`)."""
    found = torch.zeros([1] * rank, dtype=torch.bool)
    for dim, chosen in dims.items():
        shape = [1] * rank
        shape[dim] = -1
        found = found | chosen.reshape(shape)
    return found
