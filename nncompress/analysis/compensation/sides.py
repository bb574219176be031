"""Two runs of one graph side by side on all calibration batches: the original, and the model as cut so far.

A value is computed when it is first asked for and dropped once all its readers have run, so that what is held
is the frontier of the walk, never the whole network's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.couplings import Couplings, Removal, ZeroedReference
from nncompress.ir import Model

Env = dict[fx.Node, Any]


class Side:
    """One of the two runs.

    Args:
        interpreter: computes a node from an environment.
        batches: the model's inputs, batch by batch.

    Attributes:
        weights: tensor name -> value that stands in for the stored one.
        instead: node -> what computes it instead, from the environment of a batch.
    """

    def __init__(self, interpreter: fx.Interpreter, batches: Sequence[tuple[Tensor, ...]]) -> None:
        self._interpreter = interpreter
        module = interpreter.module
        assert isinstance(module, fx.GraphModule)
        graph = module.graph
        self._envs: list[Env] = [{} for _ in batches]
        self._done: set[fx.Node] = set()
        self._waiting = {node: len(node.users) for node in graph.nodes}
        self.weights: dict[str, Tensor] = {}
        self.instead: dict[fx.Node, Callable[[Env], Tensor]] = {}
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        for env, values in zip(self._envs, batches):
            env.update(zip(inputs, values))
        self._done.update(inputs)

    def values(self, node: fx.Node) -> list[Any]:
        """The node's value in every batch."""
        self.evaluate(node)
        return [env[node] for env in self._envs]

    def hold(self, nodes: Iterable[fx.Node]) -> None:
        """Keep these nodes' values, once computed, until `release`d as often."""
        for node in nodes:
            self._waiting[node] += 1

    def release(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            self._waiting[node] -= 1
            if not self._waiting[node]:
                for env in self._envs:
                    env.pop(node, None)

    def evaluated(self, node: fx.Node) -> bool:
        return node in self._done

    def evaluate(self, node: fx.Node) -> None:
        """Compute the node, and first whatever it needs."""
        stack = [node]
        while stack:
            last = stack[-1]
            if last in self._done:
                stack.pop()
                continue
            missing = [n for n in last.all_input_nodes if n not in self._done]
            if missing:
                stack += missing
            else:
                self._compute(stack.pop())

    def _compute(self, node: fx.Node) -> None:
        with torch.no_grad():
            for env in self._envs:
                env[node] = self._one(node, env)
        self._done.add(node)
        self.release(node.all_input_nodes)

    def _one(self, node: fx.Node, env: Env) -> Any:
        if node in self.instead:
            return self.instead[node](env)
        if node.op == "get_attr" and str(node.target) in self.weights:
            return self.weights[str(node.target)]
        self._interpreter.env = env
        return self._interpreter.run_node(node)


def original_side(model: Model, batches: Sequence[tuple[Tensor, ...]]) -> Side:
    return Side(fx.Interpreter(model.graph_module, garbage_collect_values=False), batches)


def cut_side(couplings: Couplings, removal: Removal, batches: Sequence[tuple[Tensor, ...]]) -> Side:
    """The same graph with the removed units' contributions at zero (see `ZeroedReference`)."""
    return Side(ZeroedReference(couplings, removal), batches)


def frontier_bytes(model: Model) -> int:
    """The most bytes per record that a walk through the graph holds at a time, on one side."""
    from nncompress.ir.shapes import Shapes

    shapes = Shapes(model)
    waiting = {node: len(node.users) for node in model.graph.nodes}
    held = peak = 0
    size = {}
    for node in model.graph.nodes:
        value = node.meta.get("val")
        own = node.op != "get_attr" and isinstance(value, Tensor)
        size[node] = torch.Size(shapes.of(node)).numel() * value.element_size() if own else 0
        held += size[node]
        peak = max(peak, held)
        for source in node.all_input_nodes:
            waiting[source] -= 1
            if not waiting[source]:
                held -= size[source]
    return peak
