"""Cross-layer equalisation: channels of one layer made alike in range, at the expense of the next layer's.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", eq. 7-11. Between
two layers with nothing but positively homogeneous ops per channel, f(s x) = s f(x), channel i may be divided
by any s_i > 0 in the first and multiplied by it in the second. s_i = √(r1_i / r2_i) with r the largest weight
of the channel in either makes both ranges the same. relu6 is not homogeneous: layers around it are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import HOMOGENEOUS, HOMOGENEOUS_PER_CHANNEL, op_name
from nncompress.ir.layers.weights import Layer, layers, owns_tensors

ROUNDS = 20
LIMIT = 1e3  # of a scale: a channel that is almost zero is not blown up


@dataclass(frozen=True)
class Pair:
    """Two layers, the second reading the first's channels and nothing else."""

    first: Layer
    second: Layer


def equalize(model: Model) -> list[tuple[str, str]]:
    """Equalise every pair in place, together, until nothing moves; returns their names.

    The model computes the same function up to rounding.
    """
    found = pairs(model)
    for _ in range(ROUNDS):
        moved = [_equalize(pair) for pair in found]
        if max(moved, default=0.0) < 0.01:
            break
    return [(pair.first.name, pair.second.name) for pair in found]


def pairs(model: Model) -> list[Pair]:
    """Neighbours whose float weights belong to them alone."""
    by_node = {layer.node: layer for layer in layers(model)}
    found = []
    for layer in by_node.values():
        second = _next(layer, by_node)
        if second is None or second.channel_dim != layer.channel_dim:
            continue
        if not all(_scalable(model, each) for each in (layer, second)):
            continue
        if _channels(second) == layer.weight.value().shape[0]:
            found.append(Pair(layer, second))
    return found


def _next(layer: Layer, by_node: dict[fx.Node, Layer]) -> Layer | None:
    node, convolution = layer.node, layer.roles.groups is not None  # a pool's channels are a convolution's
    passing = HOMOGENEOUS | HOMOGENEOUS_PER_CHANNEL if convolution else HOMOGENEOUS
    while len(node.users) == 1:
        (user,) = node.users
        if user in by_node:
            return by_node[user] if by_node[user].data is node else None
        if op_name(user) not in passing or user.args[0] is not node:
            return None
        node = user
    return None


def _scalable(model: Model, layer: Layer) -> bool:
    return layer.roles.outputs == 0 and layer.roles.inputs == 1 and owns_tensors(model, layer)


def _channels(layer: Layer) -> int:
    return layer.weight.value().shape[1] * layer.groups


def _by_input(layer: Layer) -> Tensor:
    """The weight as [groups, outputs per group, inputs per group, rest]; a view."""
    weight = layer.weight.value()
    return weight.reshape(layer.groups, -1, weight.shape[1], max(weight[0, 0].numel(), 1))


def _equalize(pair: Pair) -> float:
    """Scale one pair; returns the largest |log| of a scale."""
    weight = pair.first.weight.value()
    own = weight.abs().flatten(1).amax(1)
    following = _by_input(pair.second).abs().amax((1, 3)).flatten()
    usable = (own > 0) & (following > 0)
    scale = torch.where(usable, (own / following.clamp_min(1e-30)).sqrt(), torch.ones_like(own))
    scale = scale.clamp(1 / LIMIT, LIMIT)
    pair.first.weight.assign(weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    if pair.first.bias is not None:
        pair.first.bias.assign(pair.first.bias.value() / scale)
    grouped = _by_input(pair.second)
    scaled = grouped * scale.reshape(grouped.shape[0], 1, grouped.shape[2], 1)
    pair.second.weight.assign(scaled.reshape(pair.second.weight.value().shape))
    return float(scale.log().abs().max())
