"""Fused recurrent layers: a node for each, and what they multiply their inputs by as a layer of its own.

    h' = step(W x + b, h)    is a linear layer W x + b in front of step(1 g + 0, h)

So whoever works on linear layers works on these, too, within `inputs_as_layers`. Of a chain of linear layers
that the work leaves there, the recurrent layer takes in the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.recurrent import (
    RecurrentLayer,
    op_arguments,
    recurrent_layers,
    recurrent_parameters,
)
from nncompress.ir.layers.weights import Weight, argument, reads, weight_at

aten = torch.ops.aten
WEIGHT, BIAS = "weight_ih", "bias_ih"


# -- a node for each layer -----------------------------------------------------------------------------------


def one_node_each(model: Model, layers: Iterable[RecurrentLayer]) -> None:
    """Nodes of several layers as one node a layer, in place; calls `model.refresh()` if there was one."""
    several = [layer.node for layer in layers if op_arguments(layer.node)["num_layers"] > 1]
    for node in several:
        _take_apart(node)
    if several:
        model.refresh()


def _take_apart(node: fx.Node) -> None:
    given = op_arguments(node)
    x, layers, params, share = given["input"], given["num_layers"], given["params"], given["dropout"]
    directions = 2 if given["bidirectional"] else 1
    each = len(params) // layers
    several = isinstance(given["hx"], list | tuple)  # an LSTM has two states
    ends: list[list[fx.Node]] = []
    with edit.inserting_before(node) as call:
        for layer in range(layers):
            first = layer * directions
            states = [
                call(aten.slice.Tensor, state, 0, first, first + directions)
                for state in (given["hx"] if several else [given["hx"]])
            ]
            own = params[layer * each : (layer + 1) * each]
            both, batch_first = given["bidirectional"], given["batch_first"]
            rest = given["has_biases"], 1, 0.0, given["train"], both, batch_first
            made = call(node.target, x, states if several else states[0], own, *rest)
            x, *last = (call(getitem, made, position) for position in range(1 + len(states)))
            ends.append(last)
            if share and layer < layers - 1:
                x = call(aten.dropout.default, x, share, given["train"])
        results = [x, *(call(aten.cat.default, list(parts), 0) for parts in zip(*ends))]
    for user in list(node.users):
        edit.replace_node(user, results[user.args[1]])  # type: ignore[index]
    node.graph.erase_node(node)


# -- what multiplies the inputs ------------------------------------------------------------------------------


@contextmanager
def inputs_as_layers(model: Model, exclude: Collection[str] = ()) -> Iterator[dict[str, str]]:
    """Meanwhile every product of an input is a linear layer, `lstm.input_l0`.

    Args:
        exclude: patterns of layers that stay as they are.

    Yields: by name why others stay.
    """
    exposed, left = expose_inputs(model, exclude)
    try:
        yield left
    finally:
        absorb_inputs(model, exposed)


@dataclass(frozen=True)
class Exposed:
    """A recurrent layer that reads its gates: by the names of its stored tensors, one per direction.

    Attributes:
        name: of the linear layer that makes them.
        weights, biases: as they were called before.
        identities: what the layer multiplies its gates by now.
    """

    name: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    identities: tuple[str, ...]


def expose_inputs(model: Model, exclude: Collection[str] = ()) -> tuple[list[Exposed], dict[str, str]]:
    """Every product of an input as a linear layer, in place; calls `model.refresh()` if there was one.

    Args:
        exclude: patterns of layers that stay as they are.

    Returns: those, and by name why others stay.
    """
    found = [(layer, _reason(model, layer, exclude)) for layer in recurrent_layers(model)]
    left = {layer.name: reason for layer, reason in found if reason}
    one_node_each(model, [layer for layer, reason in found if not reason])
    found = [(layer, _reason(model, layer, exclude)) for layer in recurrent_layers(model)]
    exposed = [_expose(model, layer) for layer, reason in found if not reason]
    if exposed:
        model.refresh()
    return exposed, left


def _reason(model: Model, layer: RecurrentLayer, exclude: Collection[str]) -> str:
    given = op_arguments(layer.node)
    if any(fnmatch(layer.name, pattern) for pattern in exclude):
        return "excluded"
    if "input" not in given:
        return "its sequences are packed"
    if not given["has_biases"]:
        return "it has no bias to take up the mean of an error"
    sources = [node for name, node in recurrent_parameters(layer.node).items() if "_ih_" in name]
    stored = [weight_at(model, source) for source in sources]
    if any(each is None for each in stored):
        return "its weights are computed"
    found = [each for each in stored if each is not None]
    if any(each.quantized for each in found):
        return "its weights are quantized: factorize before quantize"
    if any(reads(model, each.name) > 1 for each in found):
        return "its weights are shared: they are read more than once"
    return ""


def _expose(model: Model, layer: RecurrentLayer) -> Exposed:
    node, given = layer.node, op_arguments(layer.node)
    found = {name: weight_at(model, source) for name, source in recurrent_parameters(node).items()}
    weights, biases = (_of(found, kind) for kind in (WEIGHT, BIAS))
    values, offsets = [each.value() for each in weights], [each.value() for each in biases]
    first = weights[0].name
    name = first.replace(WEIGHT, "input") if WEIGHT in first else f"{first}_input"
    stored = [edit.add_tensor(model, f"{name}.weight", torch.cat(values))]
    stored.append(edit.add_tensor(model, f"{name}.bias", torch.cat(offsets)))
    gates = sum(map(len, values))
    identities, params, start = [], list(given["params"]), 0
    for weight, bias, value, offset in zip(weights, biases, values, offsets):
        own = value.new_zeros(len(value), gates)
        own[:, start : start + len(value)].fill_diagonal_(1)
        start += len(value)
        identities.append(edit.add_tensor(model, f"{name}.identity", own))
        _exchange(model, node, params, weight.source, identities[-1])
        nothing = edit.add_tensor(model, f"{name}.nothing", torch.zeros_like(offset))
        _exchange(model, node, params, bias.source, nothing)
    read = [edit.read_tensor(model, each, node) for each in stored]
    with edit.inserting_before(node) as call:
        product = call(aten.linear.default, layer.data, *read)
    _set(node, product, params)
    for each in (*weights, *biases):
        edit.remove_tensor(model, each.name)
    names = tuple(each.name for each in weights), tuple(each.name for each in biases)
    return Exposed(stored[0].rpartition(".")[0], *names, tuple(identities))


def absorb_inputs(model: Model, exposed: Sequence[Exposed]) -> None:
    """What makes the gates, back into the recurrent layers; calls `model.refresh()` if there was one."""
    for each in exposed:
        node = next(user for read in _readers(model, each.identities[0]) for user in read.users)
        product = argument(node, 0)
        assert isinstance(product, fx.Node)
        x, weight, bias = (argument(product, position) for position in range(3))
        parts = [_value(model, source).chunk(len(each.weights)) for source in (weight, bias)]
        params = list(op_arguments(node)["params"])
        old = recurrent_parameters(node)
        for at, side in enumerate(("", "_reverse")[: len(each.weights)]):
            for kind, names, values in zip((WEIGHT, BIAS), (each.weights, each.biases), parts):
                name = edit.add_tensor(model, names[at], values[at])
                _exchange(model, node, params, old[f"{kind}_l0{side}"], name)
        _set(node, x, params)
    if exposed:
        model.refresh()


def _of(found: dict[str, Weight | None], kind: str) -> list[Weight]:
    return [each for name, each in found.items() if each is not None and name.startswith(kind)]


def _exchange(model: Model, node: fx.Node, params: list[Any], old: fx.Node, name: str) -> None:
    params[params.index(old)] = edit.read_tensor(model, name, node)


def _set(node: fx.Node, data: object, params: list[Any]) -> None:
    positions = list(op_arguments(node))
    edit.set_argument(node, 0, data)
    edit.set_argument(node, positions.index("params"), params)


def _readers(model: Model, name: str) -> list[fx.Node]:
    return [node for node in model.graph.nodes if node.op == "get_attr" and str(node.target) == name]


def _value(model: Model, source: object) -> Tensor:
    found = weight_at(model, source)
    assert found is not None
    return found.value()
