"""What the analysis knows about one tensor in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.labels import Factor
from nncompress.ir.graph.shapes import Shapes

EXAMPLE_BATCH = 3  # labels are traced at this batch size: a number that rarely is a size of anything else

UNKNOWN_SIZE = 97  # stands for sizes that only running the model can tell


@dataclass
class Value:
    """A tensor: its concrete shape (dynamic dims at an example size) and the labels of its positions."""

    shape: tuple[int, ...]
    factors: list[Factor] = field(default_factory=list)

    @property
    def spans(self) -> list[bool]:
        return [size > 1 for size in self.shape]

    def at(self, dim: int) -> int:
        """A dim counted from the end, counted from the front."""
        return dim % len(self.shape) if self.shape else 0


Result = Value | list["Result"] | None
Arguments = dict[str, Any]  # of a call, by schema name


def nested_shape(shapes: Shapes, value: Any) -> Any:
    """The concrete shape of a node's value; a list for several; None where it is no tensor."""
    if isinstance(value, Tensor):
        return tuple(shapes.size(s) for s in value.shape)
    if isinstance(value, list | tuple):
        return [nested_shape(shapes, v) for v in value]
    return None


def arguments(node: fx.Node) -> Arguments:
    """An ATen call's arguments by schema name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    bound = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def as_dims(dims: Any, rank: int) -> list[int]:
    """A `dim` argument (int, list or None for all) as dims counted from the front."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(rank))
    return [d % rank if rank else 0 for d in ([dims] if isinstance(dims, int) else dims)]


def flat(result: Result) -> Iterator[Value]:
    """Every tensor of a result."""
    if isinstance(result, Value):
        yield result
    elif isinstance(result, list):
        for each in result:
            yield from flat(each)
