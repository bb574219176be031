"""What the shapes in a graph follow from: two graphs of one form have the same, whatever their weights."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, fx


def form_of(module: fx.GraphModule) -> Hashable | None:
    """The code, and of every stored tensor its name, kind, layout and which others are the same memory.

    None where it cannot be told from these (a branch in a graph of its own), or a node has no shape yet.
    """
    tensors: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, Tensor):
                return None
            tensors[str(node.target)] = value
        elif node.op != "output" and "val" not in node.meta:
            return None
    tensors |= module.state_dict(keep_vars=True)
    places: dict[int, int] = {}
    stored = tuple(
        (name, type(t), tuple(t.shape), t.stride(), t.dtype, t.device, places.setdefault(t.data_ptr(), i))
        for i, (name, t) in enumerate(tensors.items())
    )
    return module.graph.python_code("self").src, stored
