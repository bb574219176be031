"""The values of new units: what the network computes stays, and training can reach them.

| new units | incoming weights     | outgoing weights                                                |
|-----------|----------------------|-----------------------------------------------------------------|
| fresh     | He or Xavier, random | next to zero (`SILENT`): the first step of training moves them  |
| split     | the original's       | the original's, shared out at random, so that no two stay alike |

Biases start at 0, norms at scale 1 and shift 0 with statistics 0 and 1; what else belongs to a fresh unit (a
PReLU's slope, a layer scale) is copied from the unit that it is placed beside.

A silent weight is 1e-20 and not 0, for a weight of exactly 0 means elsewhere that `prune` removed it:
training keeps it at 0, and a unit with nothing but zeros is dead. In float32 a sum is not changed by it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.couplings import Couplings
from nncompress.analysis.couplings.groups import Group
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gather, Gathers, anywhere
from nncompress.ir.graph.ops import NORMS, op_name
from nncompress.ir.layers.weights import layers

SILENT = 1e-20
UNEVEN = 0.5  # shares of a split weight are drawn from 1 ± this, then made to add up to 1
RECTIFIERS = {"relu", "relu6", "leaky_relu", "prelu", "gelu", "silu", "mish", "hardswish", "elu", "hardtanh"}
NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def initialize(
    model: Model,
    couplings: Couplings,
    new_units: NewUnits,
    gathers: dict[str, Gathers],
) -> None:
    """Give the copies that widening made the values of new units.

    Args:
        model: widened already; couplings: of the model before.
        gathers: per widened tensor and dim, where each index comes from.
    """
    generator = torch.Generator().manual_seed(new_units.seed)
    scale = new_units.scale
    grown = [couplings[name] for name in new_units.beside]
    fresh = [g for g in grown if g.name not in new_units.split]
    copied = [g for g in grown if g.name in new_units.split]
    he = {
        m.tensor for g in grown if scale == "he" or (scale == "auto" and _rectified(g)) for m in g.producers
    }
    consumers = couplings.trace.consumers()
    fans, neutral = _fans(model), _neutral(model)
    for name, dims in gathers.items():
        value = model.tensor(name).detach()
        inputs = {d for d in dims if (name, d) in consumers}
        outputs = {d for d in dims if (name, d) in couplings.trace.outputs} - inputs
        new = {d: gather.chosen(owned(fresh, name, d, gather)) for d, gather in dims.items()}
        result = value
        for d in inputs:
            result = _shared_out(result, d, dims[d], owned(copied, name, d, dims[d]), generator)
        silent = anywhere({d: new[d] for d in inputs}, value.dim())
        result = torch.where(silent, SILENT * torch.sign(_noise(value, generator)), result)
        if outputs:
            deviation = _deviation(value, new, fans.get(name), name in he)
            made = anywhere({d: new[d] for d in outputs}, value.dim())
            result = torch.where(made, deviation * _noise(value, generator), result)
        if not inputs and not outputs and name in neutral:
            result = torch.where(anywhere(new, value.dim()), neutral[name], result)
        value.copy_(result)


def owned(groups: Collection[Group], tensor: str, dim: int, gather: Gather) -> np.ndarray:
    """`[old size]`: the indices of a dim, as it was, that belong to one of the groups."""
    found = np.zeros(int(gather.source.max()) + 1, bool)
    for group in groups:
        for member in group.members:
            if (member.tensor, member.dim) == (tensor, dim):
                found |= member.unit >= 0
    return found


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def _shared_out(
    value: Tensor, dim: int, gather: Gather, of: np.ndarray, generator: torch.Generator
) -> Tensor:
    """Multiply every copy of an index by a random share; the shares of one index add up to 1."""
    source = torch.from_numpy(gather.source)
    several = torch.bincount(source) > 1
    several &= torch.from_numpy(of)
    shape = [1] * value.dim()
    shape[dim] = -1
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    drawn = torch.where(several[source].reshape(shape), 1 + UNEVEN * (2 * noise - 1), 1.0)
    size = list(value.shape)
    size[dim] = len(several)
    total = torch.zeros(size, dtype=torch.float64).index_add_(dim, source, drawn).index_select(dim, source)
    share = torch.where(several[source].reshape(shape), drawn / total, 1.0)
    return (value.double() * share).to(value.dtype)


def _deviation(value: Tensor, new: dict[int, Tensor], fans: tuple[int, int] | None, he: bool) -> float:
    """The standard deviation of incoming weights.

    He: He et al. 2015, "Delving Deep into Rectifiers", eq. 10. Xavier: Glorot and Bengio 2010, "Understanding
    the difficulty of training deep feedforward neural networks", eq. 12. A tensor that is no layer's weight
    (an embedding, a bare parameter) takes the deviation of what it has.
    """
    if fans is None:
        old = value[~anywhere(new, value.dim()).expand_as(value)]
        return float(old.double().std(correction=0)) if len(old) else 1.0
    inputs, outputs = fans
    return math.sqrt(2 / inputs if he else 2 / (inputs + outputs))


def _fans(model: Model) -> dict[str, tuple[int, int]]:
    """Per layer weight the number of values that each output sums over, and that each input goes to."""
    found = {}
    for layer in layers(model):
        shape = layer.weight.value().shape
        if layer.kind == "embedding" or 0 in shape:
            continue
        grouped = "outputs" if "transpose" in layer.kind else "inputs"
        made = shape[layer.roles.outputs] * (layer.groups if grouped == "outputs" else 1)
        read = shape[layer.roles.inputs] * (layer.groups if grouped == "inputs" else 1)
        each = math.prod(shape)
        found[layer.weight.name] = (max(1, each // made), max(1, each // read))
    return found


def _neutral(model: Model) -> dict[str, float]:
    """Vectors with a value at which they do nothing: layers' biases, norms' scales, shifts and statistics."""
    found = {layer.bias.name: 0.0 for layer in layers(model) if layer.bias is not None}
    for node in model.graph.nodes:
        if op_name(node) not in NORMS or not isinstance(node.target, torch._ops.OpOverload):
            continue
        names = [a.name for a in node.target._schema.arguments]
        for name, argument in [*zip(names, node.args), *node.kwargs.items()]:
            if name in NEUTRAL and isinstance(argument, fx.Node) and argument.op == "get_attr":
                found[str(argument.target)] = NEUTRAL[name]
    return found


def _rectified(group: Group) -> bool:
    """The units pass through a rectifier, or something of its kind, before they are read."""
    return any(op_name(site.node) in RECTIFIERS for site in group.sites)
