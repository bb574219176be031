"""Two runs of one graph side by side, batch by batch: the original, and the model as cut so far.

No batch's activations are kept. What is kept of a batch is a *checkpoint*: the values from which everything
that is still to come can be computed (at first its inputs, later the frontier of the walk). Checkpoints move
forward as long as all of them fit in a fixed `Room`; a batch for which there is none stays where it is and is
computed again from there. So memory does not grow with the data, and where there is room nothing is computed
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.analysis.couplings import Couplings, Removal, ZeroedReference
from nncompress.ir import Model

Env = dict[fx.Node, Any]


@dataclass
class Room:
    """Bytes that the checkpoints of all batches may take, and do take."""

    limit: float = float("inf")
    taken: int = 0


class Side:
    """One of the two runs.

    Args:
        interpreter: computes a node from an environment.
        batches: the model's inputs, batch by batch.
        room: what its checkpoints may take, shared with the other side.

    Attributes:
        weights: tensor name -> value that stands in for the stored one. A weight must not change any more
            once a value that depends on it has been asked for.
        instead: node -> what computes it instead, from the environment of a batch.
    """

    def __init__(
        self, interpreter: fx.Interpreter, batches: Sequence[tuple[Tensor, ...]], room: Room | None = None
    ) -> None:
        self._interpreter = interpreter
        module = interpreter.module
        assert isinstance(module, fx.GraphModule)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._points: list[Env] = [dict(zip(inputs, values)) for values in batches]
        self._room = room or Room()
        self._done = set(inputs)
        self._waiting = {node: len(node.users) for node in module.graph.nodes}
        self.weights: dict[str, Tensor] = {}
        self.instead: dict[fx.Node, Callable[[Env], Tensor]] = {}

    # -- what the walk has reached -------------------------------------------------------------------------

    def hold(self, nodes: Iterable[fx.Node]) -> None:
        """These nodes will be asked for, whatever else reads them, until `release`d as often."""
        for node in nodes:
            self._waiting[node] += 1

    def release(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            self._waiting[node] -= 1

    def reached(self, node: fx.Node) -> bool:
        """It, or something that reads it, has been asked for."""
        return node in self._done

    def _reach(self, node: fx.Node) -> None:
        stack = [node]
        while stack:
            last = stack[-1]
            missing = [n for n in last.all_input_nodes if n not in self._done]
            if last not in self._done and missing:
                stack += missing
                continue
            stack.pop()
            if last not in self._done:
                self._done.add(last)
                self.release(last.all_input_nodes)

    def _alive(self, node: fx.Node) -> bool:
        """Its value is needed for what is still to come."""
        return node.op != "get_attr" and node in self._done and self._waiting[node] > 0

    # -- values --------------------------------------------------------------------------------------------

    def values(self, *nodes: fx.Node) -> Iterator[tuple[Any, ...]]:
        """The values of these nodes, one tuple per batch."""
        for node in nodes:
            self._reach(node)
        return self._stream(nodes)

    def _stream(self, nodes: tuple[fx.Node, ...]) -> Iterator[tuple[Any, ...]]:
        alive = {node for node in self._done if self._alive(node)}
        for number, point in enumerate(self._points):
            env = self._run(point, nodes, alive)
            yield tuple(env[node] for node in nodes)
            self._move(number, env, alive)

    def _run(self, point: Env, nodes: tuple[fx.Node, ...], alive: set[fx.Node]) -> Env:
        """The environment in which `nodes` have been computed: them, and of the rest what is alive."""
        path, _ = _between(point, nodes)
        last = {source: node for node in path for source in node.all_input_nodes}
        env = dict(point)
        with torch.no_grad():
            for node in path:
                env[node] = self._one(node, env)
                for source in node.all_input_nodes:
                    if last[source] is node and source not in nodes and source not in alive:
                        del env[source]
        return env

    def _one(self, node: fx.Node, env: Env) -> Any:
        if node in self.instead:
            return self.instead[node](env)
        if node.op == "get_attr" and str(node.target) in self.weights:
            return self.weights[str(node.target)]
        self._interpreter.env = env
        return self._interpreter.run_node(node)

    def _move(self, number: int, env: Env, alive: set[fx.Node]) -> None:
        """Move a batch's checkpoint to what is alive in `env`, if there is room."""
        old = self._points[number]
        new = {node: env[node] for node in alive if node in env}
        _, starts = _between({**old, **new}, alive - set(new))
        new.update((node, old[node]) for node in starts if node in old)
        added = _bytes(new) - _bytes(old)
        if added <= 0 or self._room.taken + added <= self._room.limit:
            self._points[number] = new
            self._room.taken += added


def _between(known: Container[fx.Node], wanted: Iterable[fx.Node]) -> tuple[list[fx.Node], set[fx.Node]]:
    """What to compute, in order, to get from `known` values to `wanted` ones; which of `known` that takes."""
    path: list[fx.Node] = []
    starts: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    stack = [(node, False) for node in wanted]
    while stack:
        node, ready = stack.pop()
        if ready:
            path.append(node)
        elif node in known:
            starts.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(n, False) for n in node.all_input_nodes]
    return path, starts


def _bytes(env: Env) -> int:
    """What the values take, each stretch of memory counted once."""
    stores = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in pytree.tree_leaves(list(env.values()))
        if isinstance(value, Tensor)
    }
    return sum(stores.values())


def original_side(model: Model, batches: Sequence[tuple[Tensor, ...]], room: Room | None = None) -> Side:
    return Side(fx.Interpreter(model.graph_module, garbage_collect_values=False), batches, room)


def cut_side(
    couplings: Couplings, removal: Removal, batches: Sequence[tuple[Tensor, ...]], room: Room | None = None
) -> Side:
    """The same graph with the removed units' contributions at zero (see `ZeroedReference`)."""
    return Side(ZeroedReference(couplings, removal), batches, room)


def frontier_bytes(model: Model) -> int:
    """The most bytes per record that a walk through the graph holds at a time, on one side."""
    from nncompress.ir.graph.shapes import Shapes

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
