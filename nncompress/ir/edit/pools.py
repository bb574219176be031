"""Average pools that count their padding, with windows that stick out: padded first, then pooled.

With `ceil_mode`, the last window may reach beyond the padding. torch divides by the pixels that it has,
padding counted; ONNX Runtime's int8 kernel by those of a whole window. Without padding of its own a pool can
be told to count what is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten


def pad_before_pools(model: Model) -> None:
    """Rewrite every such pool over an image of known size, in place; refreshes the model if there was one."""
    changed = False
    for node in list(model.graph.nodes):
        if op_name(node) == "avg_pool2d" and argument(node, 4) and argument(node, 5):
            changed |= argument(node, 6) is None and _pad_before(node)
    if changed:
        model.refresh()


def _pad_before(pool: fx.Node) -> bool:
    source: Any = pool.args[0]
    kernel, padding = (_pair(argument(pool, position)) for position in (1, 3))
    stride = _pair(argument(pool, 2) or kernel)
    sizes, wanted = source.meta["val"].shape[-2:], pool.meta["val"].shape[-2:]
    if not any(padding) or not all(isinstance(size, int) for size in (*sizes, *wanted)):
        return False
    with edit.inserting_before(pool) as call:
        amounts = [padding[1], padding[1], padding[0], padding[0]]
        padded = call(aten.constant_pad_nd.default, source, amounts, 0.0)
        result = call(aten.avg_pool2d.default, padded, kernel, stride, [0, 0], True, False)
        for dim, size in zip((-2, -1), wanted):  # a window may start in the padding behind only now
            result = call(aten.slice.Tensor, result, dim, 0, size)
    edit.replace_node(pool, result)
    return True


def _pair(value: Any) -> list[int]:
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return sizes * 2 if len(sizes) == 1 else sizes
