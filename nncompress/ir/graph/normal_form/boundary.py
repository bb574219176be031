"""The mark of a value that is an input or an output of one of the graphs that were joined to one.

    marked = boundary(value, "step:past_key_values_0_key")     # the value itself

It outlives every edit, so that the graphs can be taken apart again; where the joined graph leaves the house
(`Model.exported_program`), it goes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.state import as_writes, changed_tensors


@torch.library.custom_op("nncompress::boundary", mutates_args=())
def _boundary(value: Tensor, place: str) -> Tensor:
    return value.clone()


@_boundary.register_fake
def _(value: Tensor, place: str) -> Tensor:
    return torch.empty_like(value)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient, None


_boundary.register_autograd(_backward)
BOUNDARY = torch.ops.nncompress.boundary.default


def for_others(module: fx.GraphModule) -> fx.GraphModule:
    """The module as it leaves the house: what it changes when run is written, no value is marked."""
    marked = any(node.target is BOUNDARY for node in module.graph.nodes)
    if not marked and not changed_tensors(module.graph):
        return module
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in list(module.graph.nodes):
        if node.target is BOUNDARY:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    as_writes(module.graph)
    module.recompile()
    return module
