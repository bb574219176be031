"""Run a graph a few nodes at a time, on many batches: what a layer-by-layer method needs.

    run = Lockstep(model, batches)
    run.to(node)                 # every batch has computed `node`
    run.value(node, batch=0)     # also of its inputs, until the next call of `to`

Changing a weight that later nodes read takes effect for them: the whole network is run once, whatever the
number of layers. Held in memory are the values that later nodes still read, for all batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from nncompress.ir.graph.model import Model

Inputs = tuple[Tensor, ...]


class Lockstep:
    """A model in the middle of its work.

    Attributes:
        batches: how many batches there are.
    """

    def __init__(self, model: Model, batches: Sequence[Inputs]) -> None:
        self._runner = fx.Interpreter(model.graph_module, garbage_collect_values=False)
        self._nodes = list(model.graph.nodes)
        self._order = {node: i for i, node in enumerate(self._nodes)}
        self._last_use = {n: max((self._order[u] for u in n.users), default=-1) for n in self._nodes}
        self._next = 0
        self.batches = len(batches)
        placeholders = [n for n in self._nodes if n.op == "placeholder"]
        self._values: list[dict[fx.Node, object]] = [dict(zip(placeholders, inputs)) for inputs in batches]

    def reached(self, node: fx.Node) -> bool:
        """Has `node` been computed?"""
        return self._order[node] < self._next

    def to(self, node: fx.Node) -> None:
        """Compute everything up to and including `node`; nothing if that is done."""
        end = self._order[node] + 1
        if end <= self._next:
            return
        with torch.no_grad():
            for values in self._values:
                self._runner.env = values
                for position in range(self._next, end):
                    each = self._nodes[position]
                    self._forget(values, position)
                    if each.op not in ("placeholder", "output"):
                        values[each] = self._runner.run_node(each)
        self._next = end

    def value(self, node: fx.Node, batch: int) -> Tensor:
        """A value that has been computed and that a node not before the last `to` reads."""
        value = self._values[batch][node]
        assert isinstance(value, Tensor)
        return value

    def _forget(self, values: dict[fx.Node, object], position: int) -> None:
        """Drop what the previous node was the last to read."""
        if position == 0:
            return
        previous = self._nodes[position - 1]
        for read in previous.all_input_nodes:
            if self._last_use[read] < position:
                values.pop(read, None)
