"""Where the channels of an activation go: which products read each of them, and which are used otherwise.

If what makes channel i is divided by s_i, and the column of every weight that reads it is multiplied by s_i,
the model computes the same. To find the columns, every channel gets a number, and the numbers are moved
through the graph by the graph's own ops: views, permutations and slices move them as they move values,
`relu(x / s)` is `relu(x) / s`, and what attention mixes of its values keeps their channels. A channel that
reaches anything else keeps its scale.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import HOMOGENEOUS, MOVES, op_name
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer, argument

OTHER = -1  # what no channel of the source is
_BATCH, _UNKNOWN = 3, 7  # example sizes: numbers are moved through tensors that are as small as can be
_MOVES = MOVES | {
    *("broadcast_to", "repeat", "tile", "repeat_interleave", "narrow", "split", "split_with_sizes", "chunk"),
    *("unbind", "getitem", "cat", "flip", "roll"),
}


@dataclass(frozen=True)
class ChannelReader:
    """A product that reads channels.

    Attributes:
        channels: int64 [in]; which channel of the source each of its inputs is, `OTHER` where none.
    """

    layer: Layer
    channels: Tensor


class Followed:
    """The channels of one activation, followed to where they are read.

    Args:
        source: a node; its channels are its last dim.
        products: those whose columns may be scaled, by their nodes.
        order: the place of every node.

    Attributes:
        readers: in graph order.
        free: bool [channels]; whether products alone read a channel.
    """

    def __init__(
        self,
        source: fx.Node,
        products: Mapping[fx.Node, Layer],
        order: Mapping[fx.Node, int],
        shapes: Shapes,
    ) -> None:
        self.readers: list[ChannelReader] = []
        self._shapes, self._products = shapes, products
        shape = shapes.of(source)
        self.free = torch.ones(shape[-1], dtype=torch.bool)
        self._labels: dict[fx.Node, Any] = {source: torch.arange(shape[-1]).expand(shape)}
        waiting = [(order[user], user) for user in source.users]
        heapq.heapify(waiting)
        seen = set(source.users)
        while waiting:
            _, node = heapq.heappop(waiting)
            moved = self._visit(node)
            if moved is None:
                continue
            self._labels[node] = moved
            for user in node.users.keys() - seen:
                seen.add(user)
                heapq.heappush(waiting, (order[user], user))

    def _visit(self, node: fx.Node) -> Any:
        """The numbers of a node's result, None where there are none; what is not followed is pinned."""
        labelled = [each for each in node.all_input_nodes if each in self._labels]
        if node.op == "call_function" and not _has_tensors(node.meta.get("val")):
            return None  # asks for a size
        layer = self._products.get(node)
        if layer is not None and labelled == [layer.data]:
            numbers = self._constant(self._labels[layer.data], range(len(self._shapes.of(layer.data)) - 1))
            self.readers.append(ChannelReader(layer, numbers.flatten()))
            return None
        moved = None
        if node.op == "call_function":
            try:
                moved = self._moved(node, labelled)
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError):
                moved = None  # a form of the op that takes no integers
        if isinstance(moved, Tensor) and tuple(moved.shape) != self._shapes.of(node):
            moved = None
        if moved is None:
            for each in labelled:
                self._pin(self._labels[each])
        return moved

    def _moved(self, node: fx.Node, labelled: list[fx.Node]) -> Any:
        name, shape = op_name(node), self._shapes.of(node)
        first = node.args[0] if node.args else None
        if name in _MOVES:
            target: Any = node.target
            return target(*fx.map_arg(node.args, self._value), **fx.map_arg(dict(node.kwargs), self._value))
        if name in ("pad", "constant_pad_nd"):
            constant = name == "constant_pad_nd" or argument(node, 2, "constant") == "constant"
            pads: Any = fx.map_arg(node.args[1], self._value)
            return torch.constant_pad_nd(self._value(first), pads, OTHER) if constant else None
        if name in HOMOGENEOUS or name == "neg":
            return self._value(first)
        if name in ("mean", "sum") and first in labelled:
            dims: Any = argument(node, 1)
            dims = range(len(self._shapes.of(first))) if dims is None else dims
            kept = self._constant(self._value(first), dims)
            return kept if argument(node, 2) else kept.squeeze(list(dims))
        if name in ("add", "sub", "mul", "div"):
            return self._pointwise(name, *(self._value(each) for each in node.args[:2]))
        place = {"scaled_dot_product_attention": 2, "matmul": 1, "bmm": 1}.get(name)
        if place is not None and node.args[place] in labelled:
            # one node may be query and value at once
            others = [*node.args[:place], *node.args[place + 1 :], *node.kwargs.values()]
            self._pin(*(self._labels[each] for each in labelled if each in others))
            return self._mixed(self._value(node.args[place]), shape)
        return None

    def _mixed(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Rows of [..., rows, channels] are summed up with weights."""
        mixed = self._constant(numbers, [-2])
        if mixed.dim() == len(shape) and mixed.dim() > 3 and 1 < mixed.shape[-3] < shape[-3]:
            mixed = mixed.repeat_interleave(shape[-3] // mixed.shape[-3], -3)  # heads that share values
        return mixed.expand(shape)

    def _pointwise(self, name: str, a: Any, b: Any) -> Tensor:
        a, b = torch.broadcast_tensors(_as_labels(a), _as_labels(b))
        if name == "mul":
            both = (a != OTHER) & (b != OTHER)
            self._pin(a[both], b[both])
            return torch.where(a == OTHER, b, a)
        if name == "div":
            self._pin(b)
            return a
        self._pin(a[a != b], b[a != b])
        return torch.where(a == b, a, OTHER)

    def _constant(self, numbers: Tensor, dims: Any) -> Tensor:
        """Those along `dims` are one, and the same, or pinned; the dims stay, with size 1."""
        dims = list(dims)
        if not dims:
            return numbers
        one = numbers.amax(dims, keepdim=True)
        self._pin(numbers[numbers != one], one.expand_as(numbers)[numbers != one])
        return one

    def _pin(self, *several: Any) -> None:
        for numbers in several:
            if isinstance(numbers, list | tuple):
                self._pin(*numbers)
            elif isinstance(numbers, Tensor):
                self.free[numbers[numbers != OTHER].unique()] = False

    def _value(self, given: Any) -> Any:
        """What an op is called with in the place of a node."""
        if not isinstance(given, fx.Node):
            return given
        if given in self._labels:
            return self._labels[given]
        value = given.meta.get("val")
        if isinstance(value, Tensor):
            return torch.full((1,), OTHER).expand(self._shapes.of(given))
        return self._shapes.size(value)


def example_shapes(model: Model) -> Shapes:
    """Shapes at the example sizes."""
    return Shapes(model, _BATCH, _UNKNOWN)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensors, value))
    return isinstance(value, Tensor)


def _as_labels(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(OTHER)
