"""Weights that other ones can stand for: every stored weight once, with all layers that read it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, fx

from nncompress.analysis.cost import node_macs
from nncompress.ir import Model
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.geometry import Geometry, geometry
from nncompress.ir.layers.weights import Layer, Weight, argument, layers, readers

MATRIX_KINDS = PRODUCTS | {"embedding"}


@dataclass(frozen=True)
class Target:
    """A weight and the layers that read it: several where it is tied; they will share the factors too.

    Attributes:
        macs: multiply-accumulates of all its layers for one sample.
    """

    layers: tuple[Layer, ...]
    macs: int

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def weight(self) -> Weight:
        return self.layers[0].weight

    @property
    def is_matrix(self) -> bool:
        return self.layers[0].kind in MATRIX_KINDS

    @property
    def groups(self) -> int:
        return self.layers[0].groups

    @property
    def geometry(self) -> Geometry | None:
        """Of a convolution; None for a matrix."""
        return None if self.is_matrix else geometry(self.layers[0])

    @property
    def outputs_first(self) -> bool:
        """The weight is stored [out, in]; matrix products store [in, out], as do embeddings."""
        return not self.is_matrix or any(layer.kind == "linear" for layer in self.layers)

    def matrices(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as M [groups, out, in], so that each layer is y = M x.

        | layer                  | in                | out           | x is                            |
        |------------------------|-------------------|---------------|---------------------------------|
        | linear, matrix product | features          | features      | the input                       |
        | embedding              | rows of the table | features      | 1 at the row that is looked up  |
        | convolution            | channels · K…     | channels      | a patch                         |
        | transposed convolution | channels          | channels · K… | a pixel                         |
        """
        if self.is_matrix:
            return (weight if self.outputs_first else weight.T).unsqueeze(0)
        if "transpose" in self.layers[0].kind:
            return weight.unflatten(0, (self.groups, -1)).flatten(2).transpose(1, 2)
        return self.layers[0].matrix(weight).unflatten(0, (self.groups, -1))


def find_targets(
    model: Model, shapes: Shapes, exclude: tuple[str, ...] = ()
) -> tuple[list[Target], dict[str, str]]:
    """The weights that factors may stand for, in graph order, and by layer name why the others may not.

    Args:
        exclude: patterns of layer names to skip, "head*".
    """
    by_tensor: dict[int, list[Layer]] = {}
    for layer in layers(model):
        by_tensor.setdefault(id(model.tensor(layer.weight.name)), []).append(layer)
    targets, left = [], {}
    for group in by_tensor.values():
        reason = _reason_to_leave(model, group)
        if any(fnmatch(layer.name, pattern) for layer in group for pattern in exclude):
            reason = "excluded"
        if reason:
            left[group[0].name] = reason
        else:
            targets.append(Target(tuple(group), sum(node_macs(layer.node, shapes) for layer in group)))
    return targets, left


def _reason_to_leave(model: Model, group: list[Layer]) -> str:
    first = group[0]
    if first.weight.quantized:
        return "its weight is quantized: factorize before quantize"
    if first.depthwise:
        return "depthwise"
    weight = first.weight.value()
    if not weight.dtype.is_floating_point:
        return f"its weight is {weight.dtype}"
    if first.kind in MATRIX_KINDS and weight.dim() != 2:
        return f"its weight has {weight.dim()} dims"
    if weight.shape.numel() == 0:
        return "its weight is empty"
    matrix = {layer.kind in MATRIX_KINDS for layer in group}
    if len(matrix) > 1 or (matrix == {False} and len({(g.kind, g.groups) for g in group}) > 1):
        return "its weight is shared by layers of different kinds"
    if matrix == {False} and None in (places := {geometry(layer) for layer in group}):
        return "its padding is not the same on both sides"
    if matrix == {False} and len(places) > 1:
        return "the layers that share its weight differ in stride, padding or dilation"
    if any(layer.kind == "addmm" and layer.node.kwargs for layer in group):
        return "addmm with factors alpha or beta"
    reading = {user for get_attr in readers(model, first.weight.name) for user in get_attr.users}
    others = reading - {layer.node for layer in group}
    if others:
        return f"its weight is also read by {_names(others)}"
    if any(argument(g.node, g.roles.data) is g.weight.source for g in group):
        return "its weight is also its input"
    return ""


def _names(nodes: set[fx.Node]) -> str:
    return ", ".join(sorted(n.name for n in nodes))
