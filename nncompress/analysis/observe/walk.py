"""The one walk over a graph with data: from what is known of a batch to what is wanted of it.

    walk = Walk(model)
    walk.hooks[node] = [statistics.add]              # are shown its value
    walk.instead[node] = lambda env: 2 * env[other]  # computes it
    env = walk.run(walk.start(*inputs), [node])
    env[node]

Computed is what lies between, in graph order; a value is dropped as soon as nothing needs it.

| client                                 | what it adds                                                     |
|----------------------------------------|------------------------------------------------------------------|
| `statistics.observe`                   | hooks, over many batches                                         |
| `layerwise.LayerwiseRunner`            | goes on from where the last walk ended, on many batches          |
| `gradient_hooks.GradientHooks`         | gradients                                                        |
| `distance.contributions`, and `worst`  | other values in place of some                                    |
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from nncompress.ir.graph.model import Model

Env = dict[fx.Node, Any]
Inputs = tuple[Tensor, ...]


class Walk:
    """What of a graph is computed, and how.

    Args:
        model: or an interpreter of its graph that computes some nodes otherwise.

    Attributes:
        weights: tensor name -> value that stands in for the stored one.
        instead: node -> what computes it instead, from the values that are there.
        hooks: node -> what is shown its value; of hooks on several nodes, in graph order.
    """

    def __init__(self, model: Model | fx.Interpreter) -> None:
        if isinstance(model, Model):
            model = fx.Interpreter(model.graph_module, garbage_collect_values=False)
        self._interpreter = model
        assert isinstance(model.module, fx.GraphModule)
        self._order = {node: place for place, node in enumerate(model.module.graph.nodes)}
        self._inputs = [node for node in self._order if node.op == "placeholder"]
        self.weights: Mapping[str, Tensor] = {}
        self.instead: dict[fx.Node, Callable[[Env], Any]] = {}
        self.hooks: dict[fx.Node, Sequence[Callable[[Any], None]]] = {}

    def start(self, *inputs: Tensor) -> Env:
        """What is known of a batch at first."""
        return dict(zip(self._inputs, inputs, strict=True))

    def outputs(self, *inputs: Tensor) -> tuple[Any, ...]:
        """Walk to the end."""
        end = next(reversed(self._order))
        return self.run(self.start(*inputs), [end])[end]

    def run(self, known: Env, wanted: Sequence[fx.Node], kept: Container[fx.Node] | None = None) -> Env:
        """What is known, and the values of `wanted`, computed from it.

        Args:
            kept: which of the computed values are in the result, and which of the known stay there once they
                have been read; None: `wanted`.
        """
        path, starts = self.between(known, wanted)
        kept = wanted if kept is None else kept
        last = {source: node for node in path for source in node.all_input_nodes}
        env = dict(known)
        for node in sorted(starts & self.hooks.keys(), key=self._order.__getitem__):
            self._show(node, env[node])
        for node in path:
            value = env[node] = self.compute(node, env)
            self._show(node, value)
            del value
            for source in dict.fromkeys((*node.all_input_nodes, node)):
                if last.get(source, source) is node and source not in kept:
                    del env[source]
        return env

    def compute(self, node: fx.Node, env: Env) -> Any:
        """The value of one node, from those that it reads."""
        if node in self.instead:
            return self.instead[node](env)
        if node.op == "get_attr" and str(node.target) in self.weights:
            return self.weights[str(node.target)]
        self._interpreter.env = env
        return self._interpreter.run_node(node)

    def _show(self, node: fx.Node, value: Any) -> None:
        for hook in self.hooks.get(node, ()):
            hook(value)

    def between(
        self, known: Container[fx.Node], wanted: Iterable[fx.Node]
    ) -> tuple[list[fx.Node], set[fx.Node]]:
        """What to compute, in graph order, to get from `known` values to `wanted` ones; which of `known` that
        takes."""
        path: set[fx.Node] = set()
        starts: set[fx.Node] = set()
        waiting = list(wanted)
        while waiting:
            node = waiting.pop()
            if node in known:
                starts.add(node)
            elif node not in path:
                path.add(node)
                waiting += node.all_input_nodes
        return sorted(path, key=self._order.__getitem__), starts
