"""What is to be removed from a network, and the weights that are left of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nncompress.analysis.compensation.affine import Affine
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.residual import Branch
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers


@dataclass(frozen=True)
class Cut:
    """What is to be removed.

    Attributes:
        units: group -> units.
        reads, writes: layer -> channels that it no longer reads, or writes.
        branches: the residual branches that are left out.
    """

    units: Mapping[str, Sequence[int]] = field(default_factory=dict)
    reads: Mapping[str, Sequence[int]] = field(default_factory=dict)
    writes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    branches: Sequence[Branch] = ()

    def __bool__(self) -> bool:
        return bool(self.units or self.reads or self.writes or self.branches)


@dataclass(frozen=True)
class Fitted:
    """The weights that the cut asks for, at the size before.

    Attributes:
        weights: stored tensor -> its new value.
        constants: per branch that is left out, `[channels]` to add in its place; None for nothing.
        layers: of the layers that were fitted, from how many rows.
        left: layer -> why it was not, though what it reads has changed.
    """

    weights: dict[str, Tensor]
    constants: list[Tensor | None]
    layers: Sequence[Rows] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def without_data(model: Model, cut: Cut) -> Fitted:
    """Nothing compensates: what is not read counts zero, and what is not written is zero."""
    weights: dict[str, Tensor] = {}
    for layer in layers(model):
        if layer.name in cut.reads:
            value = weights.get(layer.weight.name, layer.weight.value()).clone()
            _zero(value, layer.roles.inputs, cut.reads[layer.name])
            weights[layer.weight.name] = value
        if layer.name in cut.writes:
            affine = Affine(model, layer)
            for name in _written(affine):
                value = weights.get(name, model.tensor(name).detach()).clone()
                dim = layer.roles.outputs if name == layer.weight.name else 0
                _zero(value, dim, cut.writes[layer.name])
                weights[name] = value
    return Fitted(weights, [None] * len(cut.branches))


def _written(affine: Affine) -> list[str]:
    bias = affine.layer.bias
    if affine.norm is not None:
        return [affine.layer.weight.name, affine.norm.weight, affine.norm.bias]
    return [affine.layer.weight.name, *([bias.name] if bias else [])]


def _zero(value: Tensor, dim: int, indices: Sequence[int]) -> None:
    value.index_fill_(dim, torch.tensor(list(indices), dtype=torch.long), 0)
