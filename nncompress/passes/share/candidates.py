"""Which layers share one weight.

ShaResNet (Boulch 2018, §3.2) lets the residual blocks of a stage share one 3×3 convolution: the only one of a
bottleneck block, the second one of a basic block. Its Table 1 follows exactly if

- a strided convolution, whose input has another resolution, never takes part;
- in wide networks (basic blocks, pre-activation) the first block of a stage, which changes the channels,
  keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

from torch import fx

from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer, readers
from nncompress.passes.share.blocks import find_blocks, passes_sum_on


def find_groups(
    model: Model, shapes: Shapes, which: str, first_blocks: str, exclude: Iterable[str] = ()
) -> tuple[list[list[Layer]], dict[str, str]]:
    """Layers of equal shape that can share a weight, per stage, and by layer name why others cannot.

    Args:
        which: "second-3x3", "all-3x3" or "auto".
        first_blocks: what blocks do whose shortcut is not the identity: "share", "keep" or "auto".
    """
    blocks = find_blocks(model, shapes)
    preactivation = passes_sum_on(blocks)
    groups: dict[tuple[object, ...], list[Layer]] = {}
    left: dict[str, str] = {}
    for block in blocks:
        spatial = [layer for layer in block.convolutions if _is_3x3(layer)]
        basic = len(spatial) > 1
        second = which == "second-3x3" or (which == "auto" and basic)
        keeps = first_blocks == "keep" or (first_blocks == "auto" and preactivation and second)
        for layer in spatial[1:2] if second else spatial:
            reason = _reason_to_leave(model, layer, shapes)
            if keeps and not block.identity:
                reason = "its block changes the shape"
            if any(fnmatch(layer.name, pattern) for pattern in exclude):
                reason = "excluded"
            if reason:
                left[layer.name] = reason
                continue
            key = (block.stage, tuple(shapes.of(layer.weight.source)), layer.kind, geometry(layer))
            groups.setdefault(key, []).append(layer)
    found = []
    for group in groups.values():
        nodes = {layer.node for layer in group}
        own = [layer for layer in group if _readers(model, layer) <= nodes]
        left |= {layer.name: "something else reads its weight" for layer in group if layer not in own}
        if len(own) > 1:
            found.append(own)
        elif own:
            left[own[0].name] = "no other layer of its stage has its shape, padding and dilation"
    return found, left


def _is_3x3(layer: Layer) -> bool:
    kernel = tuple(layer.weight.value().shape[2:])
    return kernel == (3,) * len(kernel)


def _reason_to_leave(model: Model, layer: Layer, shapes: Shapes) -> str:
    if layer.weight.quantized:
        return "its weight is quantized: share before quantize"
    if "transpose" in layer.kind:
        return "a transposed convolution"
    place = geometry(layer)
    if place is None:
        return "its padding is not the same on both sides"
    if any(stride > 1 for stride in place.stride):
        return "strided"
    return ""


def _readers(model: Model, layer: Layer) -> set[fx.Node]:
    return {user for node in readers(model, layer.weight.name) for user in node.users}
