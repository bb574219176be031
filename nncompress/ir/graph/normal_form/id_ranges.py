"""From what ranges whole numbers may be, by the tables that they end in: ids, types, positions, classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.ops import MOVES, op_name

Range = tuple[int, int]  # [low, high)

_SAME_RANGE = MOVES | {"to", "_to_copy", "where", "masked_fill", "cat", "stack", "maximum", "minimum"}
_MOVED = MOVES | {"lift_fresh_copy"}
_BAGS = frozenset({"embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"})

_MOST_COUNTED = 2**20  # rows of a one-hot

_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


_Asked = Callable[[fx.GraphModule, fx.Node, fx.Node], Range | None]


def id_ranges(module: fx.GraphModule) -> dict[fx.Node, Range]:
    """Of the values that tables are asked with, as they are or after arithmetic with constants: the range
    within which every one of these tables has a row; of it what is not negative, if anything is. Of values
    that no table is asked with, but all numbers of a row are compared with (one-hot as JAX and TensorFlow
    write it): that row."""
    return {**_ranges(module, _told_apart), **_ranges(module, _looked_up)}


def _ranges(module: fx.GraphModule, of: _Asked) -> dict[fx.Node, Range]:
    found: dict[fx.Node, Range] = {}
    for reader in reversed(module.graph.nodes):  # whoever reads it has said what it takes
        for value in reader.all_input_nodes:
            asked = of(module, reader, value) or _passed_on(module, reader, value, found.get(reader))
            if asked is not None:
                low, high = found.get(value, asked)
                found[value] = max(low, asked[0]), min(high, asked[1])
    usual = {value: (max(low, 0) if high > 0 else low, high) for value, (low, high) in found.items()}
    return {value: (low, high) for value, (low, high) in usual.items() if low < high}


def _looked_up(module: fx.GraphModule, reader: fx.Node, ids: fx.Node) -> Range | None:
    """The rows of the table that `reader` looks `ids` up in."""
    name, args = op_name(reader), reader.args
    if name == "embedding" or name in _BAGS:
        return _rows(args[0], 0) if args[1] is ids else None
    if name in ("index_select", "gather"):
        return _rows(args[0], args[1]) if args[2] is ids else None
    if name == "one_hot":
        most = args[1] if len(args) > 1 else None
        return (0, most) if isinstance(most, int) and most > 0 else None
    if name == "index" and isinstance(args[1], list | tuple) and ids.meta["val"].dtype != torch.bool:
        sizes = [_rows(args[0], dim) for dim, each in enumerate(args[1]) if each is ids]
        return min((size for size in sizes if size), default=None)
    return None


def _told_apart(module: fx.GraphModule, reader: fx.Node, value: fx.Node) -> Range | None:
    """The numbers, one after the other, each of which `reader` compares `value` with."""
    if op_name(reader) != "eq" or reader.args[0] is reader.args[1]:
        return None
    row = _known(module, reader.args[1] if reader.args[0] is value else reader.args[0])
    if row is None or row.numel() < 2:
        return None
    low, high = int(row.min()), int(row.max()) + 1
    return (low, high) if len(row.unique()) == high - low else None


def _rows(table: Any, dim: Any) -> Range | None:
    value = table.meta.get("val") if isinstance(table, fx.Node) else None
    size = value.shape[dim] if isinstance(value, Tensor) and value.dim() else None
    return (0, size) if isinstance(size, int) else None


def _passed_on(module: fx.GraphModule, reader: fx.Node, value: fx.Node, taken: Range | None) -> Range | None:
    """What `value` may be, where what `reader` makes of it has to be in the range `taken`."""
    name, args = op_name(reader), reader.args
    if taken is None or name in _SAME_RANGE:
        return taken
    if len(args) < 2 or reader.kwargs or args[0] is args[1]:
        return None
    ends = _ends(module, args[1] if args[0] is value else args[0])
    if ends is None:
        return None
    low, high = taken
    least, most = ends
    if name == "add":
        return low - least, high - most
    if name == "sub" and args[0] is value:
        return low + most, high + least
    if name == "sub" or name == "rsub":
        return most - high + 1, least - low + 1
    if name == "mul" and least == most > 0:
        return -(-low // most), (high - 1) // most + 1
    return None


def _ends(module: fx.GraphModule, constant: Any) -> Range | None:
    """The least and the largest of a number, or of a stored tensor, of whole numbers."""
    known = _known(module, constant)
    if known is not None:
        return int(known.min()), int(known.max())
    return (constant, constant) if type(constant) is int else None


def _known(module: fx.GraphModule, constant: Any) -> Tensor | None:
    """Whole numbers that are stored, or counted, and then only moved."""
    while isinstance(constant, fx.Node) and op_name(constant) in _MOVED:
        constant = constant.args[0]
    if isinstance(constant, fx.Node) and op_name(constant) == "arange":
        ends: Any = constant.args
        if not all(type(end) is int and abs(end) <= _MOST_COUNTED for end in ends):
            return None
        counted = torch.arange(*ends)
        return counted if counted.numel() else None
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    path, _, leaf = str(constant.target).rpartition(".")
    stored = getattr(module.get_submodule(path), leaf)
    whole = isinstance(stored, Tensor) and stored.dtype in _WHOLE
    return stored if whole and stored.numel() and not stored.is_meta else None
