"""A model in another float precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.ir.half import LARGEST, narrow
from nncompress.ir.model import Model
from nncompress.ir.normalize import op_name

PRECISIONS = ("float32", "float16", "bfloat16")


def in_precision(model: Model, precision: str) -> Model:
    """A copy whose weights, inputs and arithmetic are of `precision`, one of `PRECISIONS`.

    Raises:
        UnsupportedError: the model is quantized, or does not trace in this precision.
    """
    changed = model.copy()
    if precision == "float32":
        return changed
    if is_quantized(model):
        raise UnsupportedError(
            f"a quantized model has no {precision} form", remedy="convert the float32 model instead"
        )
    dtype = getattr(torch, precision)
    for name, tensor in changed.state_dict().items():
        if precision == "float16" and tensor.is_floating_point() and bool((tensor.abs() > LARGEST).any()):
            raise UnsupportedError(
                f"{name} holds values beyond {LARGEST:g}, the largest of float16",
                remedy="bfloat16, which has the range of float32",
            )
    changed.graph_module.to(dtype)
    changed.inputs = tuple(
        replace(spec, dtype=precision) if spec.dtype == "float32" else spec for spec in model.inputs
    )

    def other(value: Any) -> Any:
        if precision == "float16":
            return narrow(value)
        return dtype if value is torch.float32 else value

    for node in changed.graph.nodes:  # literal types: casts, constants made on the way
        if node.op == "call_function":
            node.args = _mapped(node.args, other)
            node.kwargs = _mapped(node.kwargs, other)
    changed.refresh()
    return changed


def is_quantized(model: Model) -> bool:
    """It rounds weights or activations to integers."""
    return any("quantize_per" in op_name(node) for node in model.graph.nodes)


def _mapped(arguments: Any, change: Any) -> Any:
    return fx.node.map_aggregate(arguments, change)
