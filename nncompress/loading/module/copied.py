"""A copy of a module in memory, of which nothing is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, in which tensors that hold the graph of a gradient are their values.

    torch copies no such tensor, and a module may hold one in any attribute: the weight of
    `torch.nn.utils.prune` and of the older weight norm, an output kept for a look at it.

    Raises:
        Exception: whatever attributes of the module raise when they are copied.
    """
    memo = {
        id(each): each.detach().clone()
        for held in (part.__dict__ for part in module.modules())
        for each in _tensors(held, set())
        if not each.is_leaf
    }
    return copy.deepcopy(module, memo)


def _tensors(held: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping | list | tuple) and id(held) not in seen:
        seen.add(id(held))  # a list may hold itself
        for each in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors(each, seen)
