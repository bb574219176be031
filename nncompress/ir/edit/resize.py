"""Literal sizes after removal or growth: every size, offset and group count in the graph, derived anew.

`torch.export` bakes sizes into the arguments of view, expand, split, slice, … When indices leave a tensor, or
come twice, those literals are stale. Given how often each index of every node's every dim occurs afterwards
(0 or 1 in a removal, 1 or more in a growth), `rewrite_literals` rewrites them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.ir.edit.nodes import replace_tensor
from nncompress.ir.edit.picked import listed_pick
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import place
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
Mask = NDArray[Any]  # bool: which indices stay; or int: how often each occurs
Kept = dict[int, Mask]  # dims that do not change are absent


@dataclass(frozen=True)
class Survivors:
    """What stays after a removal, or how often it occurs after a growth.

    Attributes:
        tensors: stored tensor -> kept indices by dim.
        nodes: node -> kept indices by dim; a list of these for a node with several results.
        shapes: node -> its concrete shape before (a list for several results).
    """

    tensors: Mapping[str, Kept]
    nodes: Mapping[fx.Node, Any]
    shapes: Mapping[fx.Node, Any]

    def of(self, node: Any) -> Kept:
        kept = self.nodes.get(node, {}) if isinstance(node, fx.Node) else {}
        return kept if isinstance(kept, dict) else {}

    def size(self, node: fx.Node, dim: int) -> int:
        """The size of a node's dim afterwards."""
        kept = self.of(node).get(dim)
        return int(kept.sum()) if kept is not None else self.shapes[node][dim]


def resize(model: Model, survivors: Survivors) -> None:
    """Keep the surviving indices of every stored tensor and rewrite every literal; then refresh.

    Raises:
        UnsupportedError: a size is computed at run time in a way that cannot be rewritten, or the result does
            not trace.
    """
    rewrite_literals(model, survivors)
    for name, kept in survivors.tensors.items():
        replace_tensor(model, name, take(model.tensor(name).detach(), kept))
    model.refresh()


def rewrite_literals(model: Model, survivors: Survivors) -> None:
    """Rewrite every size, offset and group count in the graph's arguments.

    Raises:
        UnsupportedError: a size is computed at run time in a way that cannot be rewritten.
    """
    for node in list(model.graph.nodes):
        rewrite_literal(node, survivors)


def rewrite_literal(node: fx.Node, survivors: Survivors) -> None:
    """Rewrite the sizes, offsets and group counts among one call's arguments.

    Raises:
        UnsupportedError: a size is computed at run time in a way that cannot be rewritten.
    """
    touched = any(survivors.nodes.get(n) for n in (node, *node.all_input_nodes))
    rewrite = REWRITES.get(op_name(node)) if node.op == "call_function" and touched else None
    if rewrite is not None:
        rewrite(node, survivors)


def take(tensor: Tensor, kept: Kept) -> Tensor:
    for dim, mask in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
    return tensor


def position_of(node: fx.Node, name: str) -> int:
    assert isinstance(node.target, torch._ops.OpOverload)
    return [a.name for a in node.target._schema.arguments].index(name)


def source_of(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def read(node: fx.Node, name: str) -> Any:
    return argument(node, position_of(node, name))


def write(node: fx.Node, name: str, value: Any) -> None:
    """Set an argument by its schema name, wherever it was given."""
    position = position_of(node, name)
    if name in node.kwargs:
        node.update_kwarg(name, value)
        return
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    if schema[position].kwarg_only:
        node.update_kwarg(name, value)
        return
    given = list(node.args)
    while len(given) < position:
        given.append(schema[len(given)].default_value)
    given[position : position + 1] = [value]
    node.args = tuple(given)


# -- one rewrite per kind of literal -----------------------------------------------------------------------


def _sizes(argument_name: str) -> Callable[[fx.Node, Survivors], None]:
    """view, reshape, expand, zeros, …: the list of result sizes."""

    def rewrite(node: fx.Node, s: Survivors) -> None:
        sizes = list(read(node, argument_name))
        shape = s.shapes[node]
        for dim in s.of(node):
            if isinstance(sizes[dim], fx.Node):
                _free(sizes, dim, shape, s, node)
                sizes[dim] = -1
            elif sizes[dim] != -1:
                sizes[dim] = s.size(node, dim)
        write(node, argument_name, sizes)

    return rewrite


def _free(sizes: list[Any], dim: int, shape: Sequence[int], s: Survivors, node: fx.Node) -> None:
    """Make the one -1 of a view available for `dim`: another dim that has it gets its number."""
    for other, size in enumerate(sizes):
        if other != dim and isinstance(size, int) and size == -1:
            if isinstance(node.meta["val"].shape[other], torch.SymInt):
                raise UnsupportedError(f"{place(node)}: two of its sizes are only known at run time")
            sizes[other] = s.size(node, other)


def _unflatten(node: fx.Node, s: Survivors) -> None:
    start = read(node, "dim") % len(s.shapes[source_of(node)])
    sizes = [
        size if size == -1 or isinstance(size, fx.Node) else s.size(node, start + i)
        for i, size in enumerate(read(node, "sizes"))
    ]
    write(node, "sizes", sizes)


def _repeat(node: fx.Node, s: Survivors) -> None:
    name = "repeats" if op_name(node) == "repeat" else "dims"
    times = list(read(node, name))
    shape, source = s.shapes[node], s.shapes[source_of(node)]
    for dim in s.of(node):
        place, own = dim - (len(shape) - len(times)), dim - (len(shape) - len(source))
        if own < 0 or source[own] == 1:
            times[place] = s.size(node, dim)
    write(node, name, times)


def _before(kept: Mask, index: int) -> int:
    return int(kept[:index].sum())


def _slice(node: fx.Node, s: Survivors) -> None:
    source = source_of(node)
    dim = read(node, "dim") % len(s.shapes[source])
    kept = s.of(source).get(dim)
    if kept is None:
        return
    size = len(kept)
    start, end = read(node, "start") or 0, read(node, "end")
    start = max(start + size, 0) if start < 0 else start
    end = size if end is None or end > size else end + size if end < 0 else end
    if not strides_whole(start, read(node, "step"), size):  # there, whole strides go and the start stays
        write(node, "start", _before(kept, start))
    write(node, "end", _before(kept, end))


def strides_whole(start: object, step: object, size: int) -> bool:
    """A slice with this start reads one index of every `step` of the whole dim."""
    numbers = isinstance(start, int) and isinstance(step, int)
    return numbers and step > 1 and 0 <= start < step and size % step == 0  # type: ignore[operator]


def _narrow(node: fx.Node, s: Survivors) -> None:
    source = source_of(node)
    dim = read(node, "dim") % len(s.shapes[source])
    kept = s.of(source).get(dim)
    if kept is None:
        return
    start, length = read(node, "start"), read(node, "length")
    start = start + len(kept) if start < 0 else start
    write(node, "start", _before(kept, start))
    write(node, "length", int(kept[start : start + length].sum()))


def _select(node: fx.Node, s: Survivors) -> None:
    source = source_of(node)
    dim = read(node, "dim") % len(s.shapes[source])
    kept = s.of(source).get(dim)
    if kept is not None:
        index = read(node, "index")
        write(node, "index", _before(kept, index % len(kept)))


def _split(node: fx.Node, s: Survivors) -> None:
    """chunk, split, tensor_split with now unequal parts can only be said as split_with_sizes."""
    source = source_of(node)
    position = next((i for i, a in enumerate(node.target._schema.arguments) if a.name == "dim"), None)  # type: ignore[union-attr]
    dim = (argument(node, position, 0) if position is not None else 0) % len(s.shapes[source])  # type: ignore[operator]
    if dim not in s.of(source):
        return
    parts = s.nodes[node]
    sizes = [
        int(kept[dim].sum()) if dim in kept else shape[dim] for kept, shape in zip(parts, s.shapes[node])
    ]
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (source, sizes, dim), {}


def _pad(node: fx.Node, s: Survivors) -> None:
    rank = len(s.shapes[node])
    pad = list(read(node, "pad"))
    for dim, kept in s.of(node).items():
        place = 2 * (rank - 1 - dim)
        if place < len(pad):
            low, high = pad[place], pad[place + 1]
            pad[place] = int(kept[:low].sum())
            pad[place + 1] = int(kept[len(kept) - high :].sum())
    write(node, "pad", pad)


def _convolution(node: fx.Node, s: Survivors) -> None:
    groups = read(node, "groups")
    if groups == 1 or isinstance(groups, fx.Node):  # none, or one for each sample
        return
    data, weight = read(node, "input"), read(node, "weight")
    transposed = "transpose" in op_name(node) or (op_name(node) == "convolution" and read(node, "transposed"))
    channels = s.size(node, 1) if transposed else s.size(data, 1)
    write(node, "groups", channels // s.size(weight, 1))


def _group_norm(node: fx.Node, s: Survivors) -> None:
    """Whole groups go or come; or the same channels of every group, and their number stays."""
    kept = s.of(node).get(1)
    if kept is not None:
        rows = kept.reshape(read(node, "num_groups"), -1)
        whole = bool((rows == rows[:, :1]).all())
        write(node, "num_groups", int(rows[:, 0].sum() if whole else rows.any(1).sum()))


def _layer_norm(node: fx.Node, s: Survivors) -> None:
    rank, count = len(s.shapes[node]), len(read(node, "normalized_shape"))
    write(node, "normalized_shape", [s.size(node, dim) for dim in range(rank - count, rank)])


def _attention(node: fx.Node, s: Survivors) -> None:
    """The scale stays what it was when heads lose dims."""
    query = read(node, "query")
    last = len(s.shapes[query]) - 1
    if last in s.of(query) and read(node, "scale") is None:
        write(node, "scale", s.shapes[query][last] ** -0.5)


def _squeeze(node: fx.Node, s: Survivors) -> None:
    """A squeeze must not take a dim that has just shrunk to 1; of a larger one it was no squeeze."""
    shape = s.shapes[source_of(node)]
    asked: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = [d % len(shape) for d in ([asked] if isinstance(asked, int) else asked)]
    node.target, node.args = aten.squeeze.dims, (source_of(node), [d for d in dims if shape[d] == 1])


def _listed(node: fx.Node, s: Survivors) -> None:
    """Another list: where what stays stands among what stays."""
    source, found = source_of(node), listed_pick(node)
    before = s.of(source).get(found[1]) if found is not None else None
    if found is None or before is None:
        return
    index, dim, picked = found
    times = s.of(node).get(dim, np.ones(len(picked), int)).astype(int)
    first = np.cumsum(before) - before
    places = [first[each] + copy for each, count in zip(picked, times) for copy in range(count)]
    module = node.graph.owning_module
    assert module is not None
    name = f"{node.name}_list"
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, torch.tensor(places, dtype=index.meta["val"].dtype))
    with node.graph.inserting_before(node):
        node.replace_input_with(index, node.graph.get_attr(name))


def _roll(node: fx.Node, s: Survivors) -> None:
    """By as many as stay of those that go round."""
    shape = s.shapes[source_of(node)]
    shifts: dict[int, int] = {}  # of a dim that is named more than once, the sum
    for shift, dim in zip(read(node, "shifts"), read(node, "dims")):
        shifts[dim % len(shape)] = shifts.get(dim % len(shape), 0) + shift
    for dim, kept in s.of(node).items():
        if dim in shifts:
            shifts[dim] = int(kept[: shifts[dim] % shape[dim]].sum())
    write(node, "shifts", list(shifts.values()))
    write(node, "dims", list(shifts))


REWRITES: dict[str, Callable[[fx.Node, Survivors], None]] = {
    **dict.fromkeys(
        ("view", "_unsafe_view", "expand", "broadcast_to", "zeros", "ones", "full", "empty"), _sizes("size")
    ),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _sizes("size")),
    "reshape": _sizes("shape"),
    "unflatten": _unflatten,
    "repeat": _repeat,
    "tile": _repeat,
    "slice": _slice,
    "slice_scatter": _slice,
    "narrow": _narrow,
    "select": _select,
    **dict.fromkeys(
        ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), _split
    ),
    "pad": _pad,
    "constant_pad_nd": _pad,
    **dict.fromkeys(
        (
            "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
            "convolution",
        ),
        _convolution,
    ),
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "squeeze": _squeeze,
    "index": _listed,
    "index_select": _listed,
    "roll": _roll,
}  # fmt: skip
