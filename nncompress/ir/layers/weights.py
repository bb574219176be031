"""Layers and their weights: which node reads which parameter, in which role, whatever wraps it.

A weight is a parameter (`get_attr`), or an int8 tensor behind a `dequantize` node after `quantize`, with
scales per channel or per group (`nncompress.ir.formats.groups`). `Weight` reads and writes all of them as
floats, so that passes need not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import layer_name


@dataclass(frozen=True)
class Roles:
    """Argument positions of a weighted op, and where its weight keeps output and input features.

    `outputs` and `inputs` are dims of the weight. For grouped convolutions the input dim counts the channels
    of one group (for transposed ones, the output dim does).
    """

    kind: str
    data: int
    weight: int
    bias: int | None
    outputs: int
    inputs: int
    groups: int | None = None


# op -> roles.            kind              data weight bias outputs inputs groups
WEIGHTED_OPS: dict[str, Roles] = {
    "conv1d": Roles("conv1d", 0, 1, 2, 0, 1, 6),
    "conv2d": Roles("conv2d", 0, 1, 2, 0, 1, 6),
    "conv3d": Roles("conv3d", 0, 1, 2, 0, 1, 6),
    "convolution": Roles("convolution", 0, 1, 2, 0, 1, 8),  # `roles_of` swaps dims when it is transposed
    "conv_transpose1d": Roles("conv_transpose1d", 0, 1, 2, 1, 0, 6),
    "conv_transpose2d": Roles("conv_transpose2d", 0, 1, 2, 1, 0, 6),
    "conv_transpose3d": Roles("conv_transpose3d", 0, 1, 2, 1, 0, 6),
    "linear": Roles("linear", 0, 1, 2, 0, 1),
    "addmm": Roles("addmm", 1, 2, 0, 1, 0),
    "matmul": Roles("matmul", 0, 1, None, -1, -2),
    "mm": Roles("mm", 0, 1, None, 1, 0),
    "embedding": Roles("embedding", 1, 0, None, 1, 0),
}

_PART = 2**20  # values that are looked at together

# what makes floats of a stored int8 tensor
DEQUANTIZE = ("dequantize_per_channel", "dequantize_per_tensor", "dequantize_per_channel_group")


def roles_of(node: fx.Node) -> Roles | None:
    """The roles of a weighted op's arguments, or None for any other node."""
    if node.op != "call_function":
        return None
    roles = WEIGHTED_OPS.get(op_name(node))
    if roles is not None and roles.kind == "convolution" and node.args[6]:
        return Roles("convolution_transposed", 0, 1, 2, 1, 0, 8)
    return roles


def argument(node: fx.Node, position: int, default: object = None) -> object:
    """Positional argument of an ATen call, looked up by schema where it was passed by name or left out."""
    if position < len(node.args):
        return node.args[position]
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        if position < len(arguments):
            schema = arguments[position]
            if schema.name in node.kwargs:
                return node.kwargs[schema.name]
            if schema.has_default_value():
                return schema.default_value
    return default


@dataclass(frozen=True)
class Weight:
    """A tensor that a layer reads: a float parameter, or int8 with scales.

    Attributes:
        source: the node the layer reads: `get_attr`, or a node of `DEQUANTIZE` of a `get_attr`.
        name: dotted name of the stored tensor.
    """

    model: Model
    source: fx.Node
    name: str

    @property
    def quantized(self) -> bool:
        return self.source.op != "get_attr"

    @property
    def group_size(self) -> int | None:
        """How many inputs of an output share a scale; None where scales are per channel or tensor."""
        if op_name(self.source) != DEQUANTIZE[2]:
            return None
        return int(argument(self.source, 6))  # type: ignore[call-overload]

    @property
    def dim(self) -> int:
        return self.model.tensor(self.name).dim()

    def value(self) -> Tensor:
        """The float value, detached. A copy if it is quantized, else the parameter's own memory."""
        stored = self.model.tensor(self.name).detach()
        if not self.quantized:
            return stored
        scale, zero = self._scales(stored)
        shape = (len(stored), -1, self.group_size) if self.group_size is not None else stored.shape
        return (stored.to(torch.float32).reshape(shape) - zero).mul_(scale).reshape(stored.shape)

    @property
    def finite(self) -> bool:
        """No value is NaN or infinite."""
        return all(bool(part.isfinite().all()) for part in self.value().flatten().split(_PART))

    def assign(self, value: Tensor) -> None:
        """Store `value` (same shape) in place for every reader; if quantized, rounded to its scales."""
        stored = self.model.tensor(self.name)
        if tuple(value.shape) != tuple(stored.shape):
            raise ValueError(f"{self.name}: shape {tuple(value.shape)} does not fit {tuple(stored.shape)}")
        with torch.no_grad():
            if self.quantized:
                scale, zero = self._scales(stored)
                start = 4 if op_name(self.source) == DEQUANTIZE[0] else 3
                bounds: Any = self.source.args[start : start + 2]
                shape = (len(stored), -1, self.group_size) if self.group_size is not None else stored.shape
                codes = torch.round(value.reshape(shape) / scale) + zero
                value = codes.clamp(int(bounds[0]), int(bounds[1])).reshape(stored.shape)
            stored.copy_(value.to(stored.dtype))

    def _scales(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points, float32, that broadcast against `stored`."""

        def read(argument: object) -> Tensor:
            if isinstance(argument, fx.Node):
                return self.model.tensor(str(argument.target)).detach().to(torch.float32)
            return torch.tensor(float(argument or 0))  # type: ignore[arg-type]

        scale, zero = read(self.source.args[1]), read(self.source.args[2])
        if self.group_size is not None:
            scale, zero = (t[..., None] if t.dim() else t for t in (scale, zero))
        if op_name(self.source) != DEQUANTIZE[0]:
            return scale, zero
        axis = int(self.source.args[3])  # type: ignore[arg-type]
        shape = [-1 if d == axis else 1 for d in range(stored.dim())]
        return scale.reshape(shape), zero.reshape(shape)


def weight_at(model: Model, source: object) -> Weight | None:
    """The weight behind a node that a layer reads, or None where it is computed (then it is no weight)."""
    if not isinstance(source, fx.Node):
        return None
    if source.op == "get_attr":
        return Weight(model, source, str(source.target))
    if op_name(source) in DEQUANTIZE:
        stored = source.args[0]
        known = all(each.op == "get_attr" for each in source.all_input_nodes)  # its scales, too
        if known and isinstance(stored, fx.Node):
            return Weight(model, source, str(stored.target))
    return None


@dataclass(frozen=True)
class Layer:
    """A weighted op whose weight is stored in the model.

    Attributes:
        name: the dotted name of the module it came from, read off its weight ("layer1.0.conv1"); where one
            weight serves several layers the later ones are told apart by "#2", "#3".
    """

    name: str
    node: fx.Node
    roles: Roles
    weight: Weight
    bias: Weight | None

    @property
    def kind(self) -> str:
        return self.roles.kind

    @property
    def groups(self) -> int:
        return 1 if self.roles.groups is None else int(argument(self.node, self.roles.groups, 1))  # type: ignore[call-overload]

    @property
    def depthwise(self) -> bool:
        """Each input channel has its own filters."""
        if self.groups == 1:
            return False
        channels = self.weight.value().shape[self.roles.inputs]
        return self.groups == (channels if "transpose" in self.kind else channels * self.groups)

    @property
    def channel_dim(self) -> int:
        """The dim of its result that holds output features, and of its data that holds input features.

        Counted from the end: -1, or the one before an image's sizes.
        """
        return -1 if self.roles.groups is None else 1 - self.weight.value().dim()

    def matrix(self, value: Tensor | None = None) -> Tensor:
        """The weight, or a tensor of its shape, as W [out, in/groups · K…], for rows of inputs as
        `nncompress.analysis.observe.patches.filter_rows` gives them.

        A transposed convolution is an ordinary one with its filters turned round (Dumoulin and Visin 2016, "A
        guide to convolution arithmetic for deep learning", §4.6).
        """
        value = self.weight.value() if value is None else value
        if "transpose" not in self.kind:
            return value.movedim(self.roles.outputs, 0).flatten(1)
        grouped = value.unflatten(0, (self.groups, -1)).transpose(1, 2)  # [groups, out/groups, in/groups, K…]
        return grouped.flatten(0, 1).flip([*range(2, value.dim())]).flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: a tensor of the weight's shape."""
        shape = self.weight.value().shape
        if "transpose" not in self.kind:
            dim = range(len(shape))[self.roles.outputs]
            return matrix.reshape(-1, *shape[:dim], *shape[dim + 1 :]).movedim(0, dim)
        inputs = shape[0] // self.groups
        grouped = matrix.reshape(self.groups, -1, inputs, *shape[2:])
        return grouped.flip([*range(3, len(shape) + 1)]).transpose(1, 2).flatten(0, 1)

    @property
    def data(self) -> fx.Node:
        node = argument(self.node, self.roles.data)
        assert isinstance(node, fx.Node)
        return node


def layers(model: Model) -> Iterator[Layer]:
    """Every weighted op with a stored weight that has values, in graph order."""
    seen: dict[str, int] = {}
    for node in model.graph.nodes:
        roles = roles_of(node)
        if roles is None:
            continue
        weight = weight_at(model, argument(node, roles.weight))
        if weight is None or not model.tensor(weight.name).numel():
            continue
        bias = weight_at(model, argument(node, roles.bias)) if roles.bias is not None else None
        name = layer_name(weight.name)
        seen[name] = seen.get(name, 0) + 1
        yield Layer(name if seen[name] == 1 else f"{name}#{seen[name]}", node, roles, weight, bias)


def readers(model: Model, name: str) -> list[fx.Node]:
    """The get_attr nodes that read this stored tensor, under any of its names."""
    tensor = model.tensor(name)
    return [n for n in model.graph.nodes if n.op == "get_attr" and model.tensor(str(n.target)) is tensor]


def reads(model: Model, name: str) -> int:
    """How often nodes read this stored tensor, under any of its names; one may read it more than once."""
    sources = readers(model, name)
    users = {user for source in sources for user in source.users}
    return sum(leaf in sources for user in users for leaf in tree_leaves((user.args, user.kwargs)))


def owns_tensors(model: Model, layer: Layer) -> bool:
    """May its weight and bias be scaled? Both are floats that nothing else reads; the bias may be missing.

    A bias that is computed is no stored tensor, and stays what it is when the weight is scaled.
    """
    position = layer.roles.bias
    if layer.bias is None and position is not None and argument(layer.node, position) is not None:
        return False
    own = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(not each.quantized and reads(model, each.name) == 1 for each in own)
