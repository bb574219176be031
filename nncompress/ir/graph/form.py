"""What the shapes in a graph follow from: two graphs of one form have the same, whatever their weights; and
what its values follow from: the same calls on the same tensors give the same ones, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


def form_of(module: fx.GraphModule) -> Hashable | None:
    """The code, and of every stored tensor its name, kind, layout and which others are the same memory.

    None where it cannot be told from these (a branch in a graph of its own), or a node has no shape yet.
    """
    tensors: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, Tensor):
                return None
            tensors[str(node.target)] = value
        elif node.op != "output" and "val" not in node.meta:
            return None
    tensors |= module.state_dict(keep_vars=True)
    places: dict[int, int] = {}
    stored = tuple(
        (name, type(t), tuple(t.shape), t.stride(), t.dtype, t.device, places.setdefault(t.data_ptr(), i))
        for i, (name, t) in enumerate(tensors.items())
    )
    return module.graph.python_code("self").src, stored


@dataclass(frozen=True)
class _Value:
    """The result of a step, by its number, or a stored tensor, by its name."""

    place: int | str


def same_calls(one: fx.Graph, other: fx.Graph, same_tensor: Callable[[str, str], bool]) -> bool:
    """Their outputs follow from their inputs by the same calls in the same order.

    Dead code does not count, nor how outputs are nested. False where it cannot be told: something is written
    or drawn at random, or a call has graphs of its own.

    Args:
        same_tensor: the stored tensors of these names, one of each graph, are the same to the last bit.
    """
    first, second = _steps(one), _steps(other)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(_alike(a, b, same_tensor) for a, b in zip(first, second))


def _steps(graph: fx.Graph) -> list[Any] | None:
    """What is called with what, and in the end the outputs."""
    live: set[fx.Node] = set()
    waiting = [graph.output_node()]
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting += node.all_input_nodes
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    values: dict[fx.Node, Any] = {node: _Value(place) for place, node in enumerate(inputs)}
    steps: list[Any] = [len(inputs)]
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = _Value(str(node.target))
        elif node.op == "call_function":
            if not _only_computes(node.target):
                return None
            if node in live:
                steps.append([node.target, *fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)])
                values[node] = _Value(len(inputs) + len(steps))
    results: list[fx.Node] = []
    fx.map_arg(graph.output_node().args, results.append)
    return [*steps, [values[node] for node in results]]


def _only_computes(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return not isinstance(target, torch._ops.HigherOrderOperator)


def _alike(a: Any, b: Any, same_tensor: Callable[[str, str], bool]) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, same_tensor) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], same_tensor) for key in a)
    if isinstance(a, _Value) and isinstance(b, _Value) and isinstance(a.place, str):
        return isinstance(b.place, str) and same_tensor(a.place, b.place)
    return type(a) is type(b) and a == b
