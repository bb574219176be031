"""A graph that computes in float16, float32 on the outside: for GPUs, and half the bytes.

Floating inputs are cast to float16 where they come in and outputs back to float32, so that data and callers
need not know. ONNX Runtime's CPU kernels compute such a graph in float32 between casts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.ir import edit
from nncompress.ir.model import Model

LARGEST = torch.finfo(torch.float16).max  # 65504


def to_float16(model: Model) -> list[tuple[str, int]]:
    """Convert in place; returns (tensor name, number of values) of every tensor that was converted.

    Constants of the graph beyond the range of float16 (−1e9 of a mask, say) become its ends.

    Raises:
        UnsupportedError: a stored value is beyond 65504.
    """
    done: dict[int, tuple[str, int]] = {}
    for name, tensor in list(model.state_dict().items()):
        tensor = model.tensor(name)
        if tensor.dtype != torch.float32 or id(tensor) in done:
            continue
        if bool((tensor.detach().abs() > LARGEST).any()):
            raise UnsupportedError(
                f"{name} holds values beyond {LARGEST:g}, the largest of float16",
                got=f"{float(tensor.detach().abs().max()):.3g}",
                remedy="keep float32, or quantize to int8",
            )
        edit.replace_tensor(model, name, tensor.detach().half())
        done[id(model.tensor(name))] = (name, tensor.numel())
    for node in model.graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, narrow)
            node.kwargs = fx.node.map_aggregate(node.kwargs, narrow)
    _cast_at_the_border(model)
    model.refresh()
    return list(done.values())


def narrow(value: Any) -> Any:
    if value is torch.float32:
        return torch.float16
    if isinstance(value, float) and abs(value) > LARGEST and value not in (float("inf"), -float("inf")):
        return LARGEST if value > 0 else -LARGEST
    return value


def _cast_at_the_border(model: Model) -> None:
    cast = torch.ops.aten.to.dtype
    placeholders = [n for n in model.graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        if _is_float32(node):
            with edit.inserting_before(placeholders[-1].next) as call:
                inside = call(cast, node, torch.float16)
            node.replace_all_uses_with(inside, delete_user_cb=lambda user, inside=inside: user is not inside)
    output = model.graph.output_node()
    values: Any = output.args[0]
    with edit.inserting_before(output) as call:
        outside = [call(cast, v, torch.float32) if _is_float32(v) else v for v in values]
    output.args = (tuple(outside),)


def _is_float32(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32
