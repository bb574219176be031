"""From what ranges whole numbers may be, by the tables that they end in: ids, types, positions, classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.ops import MOVES, op_name

Range = tuple[int, int]  # [low, high)

_SAME_RANGE = MOVES | {"to", "_to_copy", "where", "masked_fill", "cat", "stack", "maximum", "minimum"}
_BAGS = frozenset({"embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"})

_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


def id_ranges(module: fx.GraphModule) -> dict[fx.Node, Range]:
    """Of the values that tables are asked with, as they are or after arithmetic with constants: the range
    within which every one of these tables has a row; of it what is not negative, if anything is."""
    found: dict[fx.Node, Range] = {}
    for reader in reversed(module.graph.nodes):  # whoever reads it has said what it takes
        for value in reader.all_input_nodes:
            asked = _looked_up(reader, value) or _passed_on(module, reader, value, found.get(reader))
            if asked is not None:
                low, high = found.get(value, asked)
                found[value] = max(low, asked[0]), min(high, asked[1])
    usual = {value: (max(low, 0) if high > 0 else low, high) for value, (low, high) in found.items()}
    return {value: (low, high) for value, (low, high) in usual.items() if low < high}


def _looked_up(reader: fx.Node, ids: fx.Node) -> Range | None:
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
    if isinstance(constant, fx.Node) and constant.op == "get_attr":
        path, _, leaf = str(constant.target).rpartition(".")
        constant = getattr(module.get_submodule(path), leaf)
    if (
        isinstance(constant, Tensor)
        and constant.dtype in _WHOLE
        and constant.numel()
        and not constant.is_meta
    ):
        return int(constant.min()), int(constant.max())
    return (constant, constant) if type(constant) is int else None
