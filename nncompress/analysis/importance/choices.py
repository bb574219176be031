"""What can be removed: a list of choices, each a set of interchangeable units.

| kind     | unit                                                      | when                   |
|----------|-----------------------------------------------------------|------------------------|
| "group"  | indices of many tensors that stand or fall together       | always                 |
| "reads"  | a channel that one layer of a residual branch reads       | `--blocks separate`    |
| "writes" | a channel that the last layer of a residual branch writes | `--blocks separate`    |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch

import numpy as np
from numpy.typing import NDArray
from torch import fx

from nncompress.analysis.couplings import Couplings, Group, Member, Site
from nncompress.analysis.observe.residual import (
    Branch,
    find_branches,
    names,
    norm_of,
    sums_over_channels,
)
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import layer_name
from nncompress.ir.layers.weights import Layer, layers

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Consumer:
    """A layer that sums over units.

    Attributes:
        unit: `[input features of the layer's weight]`: the unit of each, -1 for none.
    """

    layer: Layer
    unit: Indices

    @property
    def columns(self) -> Indices:
        """`[units, columns]`: the columns of the weight matrix `[out, in · K…]` that read each unit."""
        shape = self.layer.weight.value().shape
        per_input = int(np.prod(shape)) // (shape[self.layer.roles.outputs] * shape[self.layer.roles.inputs])
        unit = np.repeat(self.unit, per_input)
        owned = np.flatnonzero(unit >= 0)
        return owned[np.argsort(unit[owned], kind="stable")].reshape(int(unit.max()) + 1, -1)


@dataclass(frozen=True)
class Choice:
    """Units of which some may go.

    Attributes:
        name: the group's name, or "layer reads", "layer writes".
        members: stored tensors that the units touch.
        sites: activations that carry them; where there are none, one computed or stored tensor.
        consumers: the layers that sum over them; for "writes" none.
        layer: for "reads" and "writes", the layer that is narrowed.
        carriers: for "group", every computed tensor that has the units.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)
    consumers: tuple[Consumer, ...] = field(repr=False)
    layer: Layer | None = field(default=None, repr=False)
    carriers: tuple[Site, ...] = field(default=(), repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer_name(m.tensor) for m in self.members))

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called by: its own name, and those of its layers."""
        return (self.name, *self.layers)

    def excluded(self, patterns: tuple[str, ...]) -> bool:
        return any(matches(layer, patterns) for layer in self.layers)


def matches(layer: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(layer, pattern) for pattern in patterns)


def group_choices(model: Model, couplings: Couplings) -> list[Choice]:
    """One choice per group of coupled units."""
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers(model):
        by_tensor.setdefault(layer.weight.name, []).append(layer)
    return [
        Choice(
            g.name, "group", g.size, g.members, _sites(model, g), _consumers(g, by_tensor), None, g.carriers
        )
        for g in couplings.groups
    ]


def _sites(model: Model, group: Group) -> tuple[Site, ...]:
    """Of units inside a weight that the graph computes (ranks of a product, states of a kernel), which no
    activation carries: the last value on the way to it, or a stored one."""
    if group.sites or group.carriers:
        return group.sites or group.carriers[-1:]
    member = group.members[-1]
    stored = model.graph.find_nodes(op="get_attr", target=member.tensor)
    return tuple(Site(node, member.dim, member.unit) for node in stored[:1])


def _consumers(group: Group, by_tensor: dict[str, list[Layer]]) -> tuple[Consumer, ...]:
    return tuple(
        Consumer(layer, member.unit)
        for member in group.consumers
        for layer in by_tensor.get(member.tensor, ())
        if sums_over_channels(layer) and member.dim == layer.roles.inputs
    )


def separate_choices(model: Model, couplings: Couplings) -> tuple[list[Choice], list[Branch]]:
    """Choices for `--blocks separate`: the groups that no addition joins, and per residual branch what its
    layers read of the stream and what it writes to it.

    Returns: the choices, and the branches.
    """
    branches = find_branches(model)
    adds = {branch.add for branch in branches}
    joined = {g.name for g in couplings.groups if any(s.node in adds for s in g.sites)}
    inner = {(m.tensor, m.dim) for g in couplings.groups if g.name not in joined for m in g.members}
    choices = [c for c in group_choices(model, couplings) if c.name not in joined]
    seen: set[str] = set()
    for branch in branches:
        for layer in branch.layers:
            if layer.name in seen or not _alone(model, layer):
                continue
            seen.add(layer.name)
            if (layer.weight.name, layer.roles.inputs) not in inner and layer.data.op != "placeholder":
                choices.append(_reads(layer))
            if layer is branch.writer and (layer.weight.name, layer.roles.outputs) not in inner:
                choices.append(_writes(layer))
    return [c for c in choices if c.size > 1], branches


def _alone(model: Model, layer: Layer) -> bool:
    """The layer is of a kind that can be narrowed and shares its weight with nobody."""
    readers = [n for n in model.graph.nodes if n.op == "get_attr" and n.target == layer.weight.name]
    return (
        sums_over_channels(layer) and not layer.weight.quantized and sum(len(n.users) for n in readers) == 1
    )


def _reads(layer: Layer) -> Choice:
    size = layer.weight.value().shape[layer.roles.inputs]
    unit = np.arange(size)
    member = Member(layer.weight.name, layer.roles.inputs, unit, "input")
    site = Site(layer.data, layer.channel_dim % layer.data.meta["val"].dim(), unit)
    return Choice(f"{layer.name} reads", "reads", size, (member,), (site,), (Consumer(layer, unit),), layer)


def _writes(layer: Layer) -> Choice:
    size = layer.weight.value().shape[layer.roles.outputs]
    unit = np.arange(size)
    members = [Member(layer.weight.name, layer.roles.outputs, unit, "output")]
    if layer.bias is not None:
        members.append(Member(layer.bias.name, 0, unit, "vector"))
    norm = norm_of(layer)
    if norm is not None:
        members += [Member(n, 0, unit, "vector") for n in norm_tensors(norm)]
    site = Site(norm or layer.node, layer.channel_dim % layer.node.meta["val"].dim(), unit)
    return Choice(f"{layer.name} writes", "writes", size, tuple(members), (site,), (), layer)


def norm_tensors(norm: fx.Node) -> list[str]:
    """Weight, bias, running mean and running variance of a batch norm, those that it has."""
    assert op_name(norm) == "batch_norm"
    stored = [a for a in norm.args[1:5] if isinstance(a, fx.Node) and a.op == "get_attr"]
    return [str(a.target) for a in stored]


__all__ = ["Branch", "Choice", "Consumer", "group_choices", "names", "norm_tensors", "separate_choices"]
