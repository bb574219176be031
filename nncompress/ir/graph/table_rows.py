"""How many rows the tables have that inputs look up: a token beyond them stops every run."""

from __future__ import annotations

from torch import Tensor, fx

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name

_SAME_NUMBERS = ("to", "_to_copy", "clone", "view", "reshape", "unsqueeze", "squeeze", "contiguous", "detach")


def table_rows(model: Model) -> list[int | None]:
    """Per input the rows of the smallest table that it is looked up in as it is; None where there is none."""
    found = []
    for node in (node for node in model.graph.nodes if node.op == "placeholder"):
        rows = [_rows(reader) for each in _aliases(node) for reader in each.users if _looks_up(reader, each)]
        found.append(min(rows, default=None))
    return found


def _aliases(node: fx.Node) -> list[fx.Node]:
    """The node and what has the same numbers in another form."""
    found = [node]
    for each in found:
        found += [user for user in each.users if op_name(user) in _SAME_NUMBERS]
    return found


def _looks_up(reader: fx.Node, indices: fx.Node) -> bool:
    return op_name(reader) == "embedding" and reader.args[1] is indices


def _rows(embedding: fx.Node) -> int:
    table = embedding.args[0]
    assert isinstance(table, fx.Node)
    value = table.meta["val"]
    assert isinstance(value, Tensor)
    return int(value.shape[0])
