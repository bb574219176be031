"""Quantization-aware training: a float copy of every int8 weight is trained, and rounded to its scales again.

    int8  -> dequantize -> conv    the artifact, which is measured and written
    float -> round      -> conv    the copy that is trained: the same values, with a gradient

Rounding has no gradient of its own; it is taken for the identity within the grid's range and for a constant
outside (straight-through estimator; Bengio et al. 2013; Jacob et al. 2018). Activations keep the grids that
`quantize` calibrated, weights their scales. A bias is trained in float, too, and rounded where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.qdq import bias_units, in_units, ops, round_biases
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import float_name, place
from nncompress.ir.layers.weights import Weight, argument, weight_at

DEQUANTIZE = (
    ops.dequantize_per_channel.default,
    ops.dequantize_per_tensor.default,
    ops.dequantize_per_channel_group.default,
)
DIFFERENTIABLE = (*DEQUANTIZE, ops.quantize_per_tensor.default)


@dataclass(frozen=True)
class Copy:
    """`name`: the float parameter that is trained for the int8 tensor `weight`."""

    name: str
    weight: Weight


def refuse_other_rounding(model: Model) -> None:
    """Grids that depend on the data, or are found while running, have no straight-through form here.

    Raises:
        UnsupportedError: there are such.
    """
    for node in model.graph.nodes:
        known = node.target in DIFFERENTIABLE
        if not known and ("quantize_per" in op_name(node) or "choose_qparams" in op_name(node)):
            raise UnsupportedError(
                "train: this model is quantized in a way that has no gradient",
                got=place(node),
                remedy="train first, then nncompress quantize; or train what nncompress quantize made",
            )


def add_float_copies(model: Model) -> dict[str, Copy]:
    """Store a parameter beside every int8 weight, named as the weight was before `quantize`; by int8 name."""
    copies: dict[str, Copy] = {}
    for node in list(model.graph.nodes):
        weight = weight_at(model, node) if node.target in DEQUANTIZE else None
        if weight is not None and weight.name not in copies:
            name = edit.add_tensor(model, float_name(weight.name), weight.value())
            copies[weight.name] = Copy(name, weight)
    return copies


def read_float_copies(graph: fx.Graph, copies: Mapping[str, Copy]) -> None:
    """In a graph to be trained, round the float copies in place of dequantizing, and activations likewise."""
    for node in list(graph.nodes):
        if node.target is ops.quantize_per_tensor.default:
            node.replace_all_uses_with(node.args[0])  # rounded where the pair ends
        elif node.target in DEQUANTIZE:
            stored: Any = node.args[0]
            if stored.op == "get_attr" and stored.target in copies:
                with graph.inserting_before(node):
                    node.update_arg(0, graph.get_attr(copies[stored.target].name))
            node.target = dict(zip(DEQUANTIZE, (round_per_channel, round_per_tensor, round_per_group)))[
                node.target
            ]
            node.kwargs = {}
    graph.eliminate_dead_code()


def round_biases_where_read(model: Model, same: Mapping[fx.Node, fx.Node]) -> None:
    """In a copy of the model's graph, read every bias as an integer kernel stores it, with a gradient.

    Args:
        same: the model's nodes -> those of the copy.
    """
    for layer, scale, _ in bias_units(model):
        node, position, scales = same[layer.node], layer.roles.bias, layer.weight.source.args[1]
        assert position is not None
        assert isinstance(scales, fx.Node)
        bias: Any = argument(node, position)
        with node.graph.inserting_before(node):
            rounded = node.graph.call_function(round_bias, (bias, scale, same[scales]))
        edit.set_argument(node, position, rounded)


def round_bias(bias: Tensor, scale: float, scales: Tensor) -> Tensor:
    return bias + (in_units(bias.detach(), scale, scales) - bias.detach())


def round_per_tensor(x: Tensor, scale: float, zero: int, low: int, high: int, *_: Any) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, low, high)


def round_per_channel(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, low: int, high: int, *_: Any
) -> Tensor:
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero is None else zero.to(torch.int32)
    return torch.fake_quantize_per_channel_affine(x.float(), scale, zero, axis, low, high)


def round_per_group(
    x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, _: Any, size: int, *rest: Any
) -> Tensor:
    rows = x.reshape(-1, size)
    flat_zero = None if zero is None else zero.flatten()
    return round_per_channel(rows, scale.flatten(), flat_zero, 0, low, high).reshape(x.shape)


def round_copies(model: Model, copies: Mapping[str, Copy]) -> None:
    """Bring the int8 weights to where their float copies are."""
    for copy in copies.values():
        copy.weight.assign(model.tensor(copy.name).detach())


def remove_copies(model: Model, copies: Mapping[str, Copy]) -> None:
    """What is left is the artifact: its biases were rounded where they were read, and now where they lie."""
    for copy in copies.values():
        edit.remove_tensor(model, copy.name)
    round_biases(model)
