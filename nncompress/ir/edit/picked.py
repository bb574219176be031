"""What a fixed list of indices picks from a dim: channels in another order, or some of them."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.state import changed_tensors

_MAKING = {"lift_fresh_copy", "clone", "to", "_to_copy", "arange", "flip"}  # a list


def listed_pick(node: fx.Node) -> tuple[fx.Node, int, NDArray[np.int64]] | None:
    """The node of the list, the dim and what is picked there, of `x[:, [2, 0, 1]]` and `index_select`.

    None where several dims are picked from, or there is none, by a mask, by more than a list, or by what
    depends on the input or on what the model changes when it runs.
    """
    x, *how = cast(list[Any], node.args)
    picking = [tuple(how)]
    if op_name(node) == "index":
        picking = [(dim, each) for dim, each in enumerate(how[0]) if each is not None]
    if len(picking) > 1:
        return None
    ((dim, index),) = picking
    made = index.meta.get("val")
    rank = x.meta["val"].dim()
    if not rank or not isinstance(made, Tensor) or made.dim() != 1 or made.dtype in (torch.bool, torch.uint8):
        return None
    stored = _numbers(index, changed_tensors(node.graph))
    return None if stored is None else (index, dim % rank, stored.numpy(force=True).astype(np.int64))


def _numbers(node: fx.Node, state: Collection[str]) -> Tensor | None:
    """The value of what is stored and stays what it is, or made of nothing else."""
    if node.op == "get_attr":
        if node.target in state:
            return None
        assert node.graph.owning_module is not None
        return attrgetter(str(node.target))(node.graph.owning_module)
    if op_name(node) not in _MAKING:
        return None
    known = {each: _numbers(each, state) for each in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    assert callable(node.target)
    given: Any = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
    found: Tensor = node.target(*given[0], **given[1])
    return found
