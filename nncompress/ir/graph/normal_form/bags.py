"""Embedding bags whose offsets are values, as sums, means or maxima of looked-up rows.

The kernel trusts its offsets, and reads outside its tensors where they are wrong; so only bags that all hold
the same number of rows stay one op. The steps of the others check every index, and any runtime has them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.normal_form.decompose import take_apart

aten = torch.ops.aten
SUM, MEAN, MAX = range(3)
_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)


def take_bags_apart(graph: fx.Graph) -> None:
    """Replace them, in place, where only the bags themselves are read."""
    for node in list(graph.nodes):
        if node.target not in _BAGS or counts_up(node.args[2]):
            continue
        for user in [user for user in node.users if not user.users]:
            graph.erase_node(user)
        if all(user.args[1] == 0 for user in node.users):
            take_apart(graph, node, by=_bags)


def counts_up(offsets: Any) -> bool:
    """They are `arange(end)`, `arange(0, end)` or `arange(0, end, step)`."""
    schema = getattr(getattr(offsets, "target", None), "_schema", None)
    if schema is None or schema.name != "aten::arange":
        return False
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given = defaults | dict(zip((a.name for a in schema.arguments), offsets.args)) | dict(offsets.kwargs)
    step = given.get("step", 1)
    return given.get("start", 0) == 0 and (isinstance(step, fx.Node) or step > 0)


def _bags(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> list[Tensor]:
    """Arguments and result as of `aten.embedding_bag`; of its four results the first."""
    starts = offsets[:-1] if include_last_offset else offsets
    bags, width = starts.shape[0], weight.shape[1]
    places = torch.arange(indices.shape[0], dtype=offsets.dtype)
    bag = (torch.bucketize(places, starts, right=True) - 1).clamp(0)
    rows = torch.embedding(weight, indices)
    kept = None
    if padding_idx is not None:
        kept = (indices != padding_idx % weight.shape[0]).unsqueeze(1)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    empty = rows.new_zeros((bags, width))
    if mode == MAX:
        lowest = torch.full_like(rows, torch.finfo(rows.dtype).min)
        rows = rows if kept is None else torch.where(kept, rows, lowest)
        columns = bag.unsqueeze(1).expand_as(rows)
        found = torch.full_like(empty, torch.finfo(rows.dtype).min).scatter_reduce(0, columns, rows, "amax")
        return [torch.where(found == torch.finfo(rows.dtype).min, empty, found)]
    rows = rows if kept is None else rows * kept.to(rows.dtype)
    total = empty.index_add(0, bag, rows)
    if mode == SUM:
        return [total]
    ones = torch.ones_like(rows[:, :1]) if kept is None else kept.to(rows.dtype)
    counts = rows.new_zeros((bags, 1)).index_add(0, bag, ones)
    return [total / counts.clamp(1)]
