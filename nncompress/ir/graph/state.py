"""Tensors that a model changes whenever it runs: caches, counters, streaming state.

In a graph of ours such a change is a call `next_state(tensor, contents)`: it says what the next call would
start from, and does nothing when run. So no run of ours, of whatever kind, changes what is stored. Where the
graph leaves the house (`Model.exported_program`), the calls become writes again.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

_library = torch.library.Library("nncompress", "DEF")
# declared as a write, so that nobody takes it for dead code
_library.define("next_state(Tensor(a!) tensor, Tensor contents) -> ()")


def _next_state(tensor: Tensor, contents: Tensor) -> None:
    return None


_library.impl("next_state", _next_state, "CompositeExplicitAutograd")
_library.impl("next_state", _next_state, "Meta")
NEXT_STATE = torch.ops.nncompress.next_state.default


def changed_tensors(graph: fx.Graph) -> list[str]:
    """The dotted names of the tensors that a run would change."""
    calls = graph.find_nodes(op="call_function", target=NEXT_STATE)
    return [str(node.args[0].target) for node in calls]


def as_writes(graph: fx.Graph) -> None:
    """Let the graph change its tensors when it is run, as the original did."""
    for node in graph.nodes:
        if node.target is NEXT_STATE:
            node.target = torch.ops.aten.copy_.default
