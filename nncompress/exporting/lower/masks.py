"""Attention masks that are the same in every call, said so that runtimes need not look at them.

| the mask                            | becomes                                                          |
|-------------------------------------|------------------------------------------------------------------|
| hides nothing (true, or adds 0)     | none                                                             |
| leaves every query something to see | a sum (−inf where it hides) between two products and a softmax   |

Where a mask may hide everything from a query, torch gives zeros and a softmax gives NaN, which a file has to
replace: two passes over all weights, and runtimes that have a kernel of an attention no longer see one. A
library that makes its masks for all cases (`transformers` with none given: all true) pays that for nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.computed import constants, value_of
from nncompress.ir.graph.normal_form.decompose import take_apart
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

MASK = 3  # the position of an attention's


def with_known_masks(model: Model) -> Model:
    """The model, or a copy that shares its weights and has the masks of the table."""
    if not _masks(model):
        return model
    model = model.copy(weights=False)
    known: dict[fx.Node, Any] = {}
    stored: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for node, values in _masks(model).items():
        content = value_of(model, values, known)
        if _hides_nothing(content):
            node.update_arg(MASK, None)
        elif _leaves_something(content) and _is_plain(node):
            guarded, dtype = node.args[MASK], node.meta["val"].dtype
            if content.dtype == torch.bool and (values, dtype) not in stored:
                added = torch.zeros(content.shape, dtype=dtype)
                name = edit.add_tensor(
                    model, f"{node.name}.mask", added.masked_fill_(~content, -torch.inf), trainable=False
                )
                stored[values, dtype] = read = edit.read_tensor(model, name, values)
                read.meta["val"] = values.meta["val"].new_empty(content.shape, dtype=dtype)
            node.update_arg(MASK, stored.get((values, dtype), values))
            if not take_apart(model.graph, node, _attention):
                node.update_arg(MASK, guarded)
    model.refresh()
    return model


def _attention(
    query: Tensor,  # [..., L, E]
    key: Tensor,  # [..., S, E]
    value: Tensor,  # [..., S, V]
    added: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return torch.matmul((torch.matmul(query * factor, key.mT) + added).softmax(-1), value)


def _hides_nothing(mask: Tensor) -> bool:
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())


def _leaves_something(mask: Tensor) -> bool:
    """Of every query, one key at least."""
    shown = mask if mask.dtype == torch.bool else mask > -torch.inf
    return bool(shown.any(-1).all())


def _is_plain(attention: fx.Node) -> bool:
    """Its heads have keys of their own, and nothing is dropped."""
    dropout = argument(attention, MASK + 1, 0.0)
    return dropout == 0 and not attention.kwargs.get("enable_gqa")


def _masks(model: Model) -> dict[fx.Node, fx.Node]:
    """Per attention, its mask where it is known in advance, as it is before it is repeated for the batch."""
    found = {}
    same = None
    for node in model.graph.nodes:
        mask = node.args[MASK] if len(node.args) > MASK else None
        if op_name(node) != "scaled_dot_product_attention" or not isinstance(mask, fx.Node):
            continue
        same = constants(model) if same is None else same
        values = mask
        while values not in same and op_name(values) == "expand" and isinstance(values.args[0], fx.Node):
            values = values.args[0]
        if values in same:
            found[node] = values
    return found
