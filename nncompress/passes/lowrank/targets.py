"""Which weights can be factorized: every stored weight once, with all layers that read it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from torch import fx

from nncompress.analysis.cost import node_macs
from nncompress.ir import Model
from nncompress.ir.shapes import Shapes
from nncompress.ir.weights import Layer, Weight, argument, layers, readers

MATRIX_KINDS = {"linear", "addmm", "mm", "matmul", "embedding"}


@dataclass(frozen=True)
class Target:
    """A weight and the layers that read it: several where it is tied; they will share the factors too.

    Attributes:
        macs: multiply-accumulates of all its layers for one record.
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


def find_targets(
    model: Model, shapes: Shapes, exclude: tuple[str, ...] = ()
) -> tuple[list[Target], dict[str, str]]:
    """The weights that may be factorized, in graph order, and by layer name why the others may not.

    Args:
        exclude: patterns of layer names to leave alone, "head*".
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
