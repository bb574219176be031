"""A convolution of a given geometry, put into the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nncompress.ir.edit.nodes import inserting_before
from nncompress.ir.layers.geometry import Geometry

aten = torch.ops.aten

CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}


def insert_convolution(
    place: Geometry, before: fx.Node, data: fx.Node, weight: fx.Node, bias: Any
) -> fx.Node:
    """Insert it before `before`."""
    args: tuple[Any, ...]
    stride, padding, dilation = list(place.stride), list(place.padding), list(place.dilation)
    with inserting_before(before) as call:
        if place.transposed:
            args = (stride, padding, list(place.output_padding), place.groups, dilation)
            return call(TRANSPOSED[place.dims], data, weight, bias, *args)
        return call(CONVOLUTIONS[place.dims], data, weight, bias, stride, padding, dilation, place.groups)
