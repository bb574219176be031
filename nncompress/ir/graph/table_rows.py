"""How many rows the tables have that inputs, or positions, look up: one beyond them stops every run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import DataError
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import COPIES, RESHAPES, op_name

_SAME_NUMBERS = COPIES | RESHAPES | {"to", "_to_copy"}


def table_rows(model: Model) -> list[int | None]:
    """Per input the rows of the smallest table that it is looked up in as it is; None where there is none."""
    found = []
    for node in (node for node in model.graph.nodes if node.op == "placeholder"):
        rows = [_rows(reader) for each in _aliases(node) for reader in each.users if _looks_up(reader, each)]
        found.append(min(rows, default=None))
    return found


def _aliases(node: fx.Node, ops: Collection[str] = _SAME_NUMBERS) -> list[fx.Node]:
    """The node and what has the same numbers in another form."""
    found = [node]
    for each in found:
        found += [user for user in each.users if op_name(user) in ops]
    return found


def _looks_up(reader: fx.Node, indices: fx.Node) -> bool:
    return op_name(reader) == "embedding" and reader.args[1] is indices


def _rows(embedding: fx.Node) -> int:
    table = embedding.args[0]
    assert isinstance(table, fx.Node)
    value = table.meta["val"]
    assert isinstance(value, Tensor)
    return int(value.shape[0])


def most_positions(model: Model) -> dict[str, tuple[int, str]]:
    """By the name of a free dim, the most that it may be, and the stored tensor that ends there.

    That is a table that 0, 1, … are looked up in (`arange`), or of which the first rows are taken.
    """
    names = dict(_names_of_sizes(model))
    found: dict[str, tuple[int, str]] = {}
    for node in model.graph.nodes:
        for length, most, tensor in _ends(node):
            name = names.get(str(length))
            if name is not None and most < found.get(name, (most + 1, ""))[0]:
                found[name] = most, tensor
    return found


def check_positions(model: Model, sizes: Mapping[str, int], what: str) -> None:
    """Refuse samples that are longer than the model has positions for.

    Args:
        sizes: of free dims.
        what: has them, for the message.

    Raises:
        DataError
    """
    for name, (most, tensor) in most_positions(model).items():
        if sizes.get(name, 0) > most:
            raise DataError(
                f"{what} has more positions than the model",
                got=f"{sizes[name]} ({name})",
                expected=f"at most {most}: {tensor} has that many",
                remedy=f"cut the samples to {most}",
            )


def _names_of_sizes(model: Model) -> Iterator[tuple[str, str]]:
    """(symbol, name) of the free dims of inputs."""
    placeholders = (node for node in model.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, model.inputs):
        for size, dim in zip(node.meta["val"].shape, spec.shape):
            if isinstance(dim, str):
                yield str(size), dim


def _ends(node: fx.Node) -> Iterator[tuple[Any, int, str]]:
    """(size of its result, size of the stored tensor that it must not exceed, its name)."""
    name, value = op_name(node), node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor):
        return
    first = node.args[0] if node.args else None
    if name == "arange" and value.dim() == 1 and _counts(node):
        for each in _aliases(node, _SAME_NUMBERS | {"expand"}):
            for reader in each.users:
                if _looks_up(reader, each):
                    yield value.shape[0], _rows(reader), str(getattr(reader.args[0], "target", "a table"))
    if name == "slice" and isinstance(first, fx.Node) and first.op == "get_attr":
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        if not isinstance(value.shape[dim], int) and (len(node.args) < 3 or node.args[2] in (None, 0)):
            yield value.shape[dim], int(first.meta["val"].shape[dim]), str(first.target)


def _counts(arange: fx.Node) -> bool:
    """It is 0, 1, 2, …"""
    if arange.target is torch.ops.aten.arange.default:
        return True
    return bool(arange.args[0] == 0 and (len(arange.args) < 3 or arange.args[2] == 1))
