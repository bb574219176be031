"""Put an operation into the graph, so that it starts as the linear chain that its weights were fitted as.

The activation between two convolutions must not spoil the initial weights:

- a PReLU starts with slope 1, the identity, and learns to bend;
- batch norm and ReLU start with the norm's shift so high that the ReLU passes what is `MARGIN` standard
  deviations below the mean; the bias after it takes the shift out again. A pointwise convolution without
  padding follows, so that is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.statistics import ChannelStatistics
from nncompress.ir import Model
from nncompress.ir.edit.convolution import insert_convolution
from nncompress.ir.edit.nodes import add_tensor, inserting_before, read_tensor, replace_node
from nncompress.ir.layers.weights import Layer, argument
from nncompress.passes.substitute.operations import Plan

aten = torch.ops.aten
MARGIN = 3.0  # standard deviations
EPS, MOMENTUM = 1e-5, 0.1


def insert(
    model: Model,
    plan: Plan,
    weights: Sequence[Tensor],
    linear: bool,
    statistics: Mapping[str, ChannelStatistics],
) -> list[str]:
    """Replace every layer of the plan's target; returns the names of the new weights.

    Args:
        linear: nothing between the convolutions.
        statistics: of the depthwise output by layer name, for nonlinear-separable.
    """
    target = plan.target
    prefix = f"{target.name}_" if target.name == target.weight.name else f"{target.name}."
    dtype = target.weight.value().dtype
    weights = [w.to(dtype) for w in weights]
    names = [add_tensor(model, f"{prefix}{i}.weight", w) for i, w in enumerate(weights)]
    for layer in target.layers:
        node, value = layer.node, layer.data
        bias = argument(node, layer.roles.bias)  # type: ignore[arg-type]
        for number, (place, name) in enumerate(zip([p for p, _ in plan.chain], names)):
            last = number == len(names) - 1
            if plan.operation == "nonlinear-separable" and last:
                value, bias = _norm_relu(model, layer, value, prefix, weights[1], statistics[layer.name])
            stage_bias: object = bias if last else None
            between = plan.operation in ("kernel-composing", "stacked-3x3") and not linear and not last
            if between:
                zeros = add_tensor(
                    model, f"{prefix}{number}.bias", torch.zeros(len(weights[number]), dtype=dtype)
                )
                stage_bias = read_tensor(model, zeros, node)
            value = insert_convolution(place, node, value, read_tensor(model, name, node), stage_bias)
            if between:
                slope = add_tensor(
                    model, f"{prefix}act{number}.weight", torch.ones(len(weights[number]), dtype=dtype)
                )
                with inserting_before(node) as call:
                    value = call(aten.prelu.default, value, read_tensor(model, slope, node))
        replace_node(node, value)
    return names


def _norm_relu(
    model: Model, layer: Layer, value: fx.Node, prefix: str, pointwise: Tensor, seen: ChannelStatistics
) -> tuple[fx.Node, fx.Node]:
    """Batch norm and ReLU after `value`, and the bias of the layer that undoes their shift."""
    mean, variance = seen.mean, seen.variance * (seen.count / max(seen.count - 1, 1))
    deviation = (variance + EPS).sqrt()
    tensors = {"weight": deviation, "bias": MARGIN * deviation, "running_mean": mean, "running_var": variance}
    dtype = pointwise.dtype
    names = {
        leaf: add_tensor(model, f"{prefix}norm.{leaf}", value.to(dtype), trainable=leaf in ("weight", "bias"))
        for leaf, value in tensors.items()
    }
    # norm(z) = z − mean + MARGIN · deviation, so z = relu(norm(z)) + mean − MARGIN · deviation
    undo = pointwise.double().flatten(1) @ (mean - MARGIN * deviation)
    present = 0.0 if layer.bias is None else layer.bias.value().double()
    bias = add_tensor(model, f"{prefix}1.bias", (present + undo).to(dtype))
    node = layer.node
    reads = [read_tensor(model, name, node) for name in names.values()]
    with inserting_before(node) as call:
        normed = call(aten.batch_norm.default, value, *reads, False, MOMENTUM, EPS, True)
        return call(aten.relu.default, normed), read_tensor(model, bias, node)
