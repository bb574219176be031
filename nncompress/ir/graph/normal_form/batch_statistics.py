"""Batch norms that a source runs in training mode: they normalise by each batch's own statistics.

They read their running statistics for nothing but to update them, in a kernel whose schema does not tell that
it writes; so every run of ours would change what is stored. What they compute needs none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nncompress.ir.graph.state import NEXT_STATE

aten = torch.ops.aten
_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_functional.default)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def drop_unread_statistics(graph: fx.Graph) -> None:
    """In place: such norms keep no statistics."""
    norms = set()
    for node in graph.nodes:
        if node.target in _NORMS and node.args[5] is True and isinstance(mean := node.args[3], fx.Node):
            norms.add(str(mean.target).rpartition(".")[0])
            node.args = (*node.args[:3], None, None, *node.args[5:])
    for node in list(graph.nodes):
        stored: Any = node.args[0] if node.target is NEXT_STATE else None
        if stored is not None:
            norm, _, leaf = str(stored.target).rpartition(".")
            if norm in norms and leaf in _STATISTICS:
                graph.erase_node(node)
