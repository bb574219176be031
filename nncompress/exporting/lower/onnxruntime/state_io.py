"""Tensors that a model changes in every call (caches, counters), as inputs and outputs of an exported graph.

    keys (changed by each call)   ->   an input keys_in, an output keys_out

ONNX has no state. Whoever runs the file hands each call's `keys_out` to the next one's `keys_in`; a call
without `keys_in` starts from what the model had stored, which the file keeps as the input's default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import onnx_ir as ir
from torch import Tensor

from nncompress.dtypes import dtype_name
from nncompress.ir import InputSpec, Model
from nncompress.ir.graph.state import NEXT_STATE


@dataclass(frozen=True)
class State:
    """One such tensor.

    Attributes:
        tensor: its dotted name.
        input, output: what it became.
        initial: its contents in the model.
    """

    tensor: str
    input: str
    output: str
    initial: Tensor


def state_as_inputs(model: Model) -> tuple[Model, list[State]]:
    """A copy of `model` without state, and what became of each; `model` itself where it changes nothing.

    The inputs and outputs of the copy are those of `model`, then those of its state.
    """
    if not any(node.target is NEXT_STATE for node in model.graph.nodes):
        return model, []
    model = model.copy()
    graph = model.graph
    states: list[State] = []
    results: list[Any] = []
    taken = {spec.name for spec in model.inputs} | set(model.outputs)
    for node in [node for node in graph.nodes if node.target is NEXT_STATE]:
        stored: Any
        stored, contents = node.args
        name = str(stored.target)
        called = re.sub(r"\W", "_", name)
        called = f"state_{called}" if called[0].isdigit() else called  # "0.cache" is no name for an argument
        came_in, goes_out = (_free(f"{called}_{end}", taken) for end in ("in", "out"))
        initial = model.tensor(name).detach()
        with graph.inserting_before(next(iter(graph.nodes))):
            given = graph.placeholder(came_in)
        given.meta = dict(stored.meta)
        for reader in [
            n for n in graph.nodes if n.op == "get_attr" and model.tensor(str(n.target)) is model.tensor(name)
        ]:
            reader.replace_all_uses_with(given)
        graph.erase_node(node)
        results.append(given if contents is stored else contents)
        states.append(State(name, came_in, goes_out, initial.clone()))
        dtype = dtype_name(initial.dtype)
        model.inputs = (*model.inputs, InputSpec(came_in, dtype, tuple(initial.shape)).drawn_like(initial))
        model.outputs = (*model.outputs, goes_out)
    _order_placeholders(model, states)
    output = graph.output_node()
    output.args = ((*output.args[0], *results),)  # type: ignore[misc]
    model.refresh()
    return model, states


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _order_placeholders(model: Model, states: Sequence[State]) -> None:
    """The model's own in their order, whatever they are called, then those of the state."""
    found = {str(node.target): node for node in model.graph.nodes if node.op == "placeholder"}
    given = [found.pop(state.input) for state in states]
    order = [*found.values(), *given]
    next(iter(model.graph.nodes)).prepend(order[0])
    for previous, node in pairwise(order):
        previous.append(node)


def store_initial(graph: ir.Graph, states: Sequence[State]) -> None:
    """Keep what the model had stored as the default of each input."""
    given = {value.name: value for value in graph.inputs}
    for state in states:
        value = given[state.input]
        value.const_value = ir.tensor(state.initial.cpu().numpy(), name=state.input)
        graph.initializers[state.input] = value
