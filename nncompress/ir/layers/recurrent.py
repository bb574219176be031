"""Fused recurrent layers (LSTM, GRU, RNN): one node that reads many weights, so `layers` has none of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import fx

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import RECURRENT, op_name
from nncompress.ir.graph.places import layer_name
from nncompress.ir.layers.weights import Layer, Roles, Weight, argument, layers, weight_at


@dataclass(frozen=True)
class RecurrentLayer:
    """One such node.

    Attributes:
        matrices: its stored weights of two dims, those behind `dequantize` included. Of every layer and
            direction: weight_ih [gates · hidden, in], weight_hh [gates · hidden, hidden], and weight_hr
            [projected, hidden] where an LSTM projects.
    """

    name: str
    node: fx.Node
    matrices: tuple[Weight, ...]

    @property
    def kind(self) -> str:
        return op_name(self.node)

    @property
    def data(self) -> fx.Node:
        """The sequence that it reads."""
        node = argument(self.node, 0)
        assert isinstance(node, fx.Node)
        return node

    @property
    def projects(self) -> bool:
        """An LSTM that hands on fewer numbers than it has units."""
        return any(name.startswith("weight_hr") for name in recurrent_parameters(self.node))

    @property
    def names(self) -> list[str]:
        """Its own, and those that its layers have where each is a node of its own."""
        count = op_arguments(self.node)["num_layers"]
        return [self.name, *(f"{self.name}#{layer}" for layer in range(2, count + 1))]

    @property
    def result(self) -> fx.Node | None:
        """Its outputs of all steps; None where nothing reads them."""
        return next((user for user in self.node.users if user.args[1] == 0), None)


def recurrent_layers(model: Model) -> Iterator[RecurrentLayer]:
    """Every fused recurrent layer, in graph order; those of one module are told apart by "#2", "#3"."""
    seen: dict[str, int] = {}
    for node in model.graph.nodes:
        if node.op == "call_function" and op_name(node) in RECURRENT:
            found = [weight_at(model, source) for source in recurrent_parameters(node).values()]
            matrices = tuple(each for each in found if each is not None and each.dim == 2)
            name = recurrent_name(model, node)
            seen[name] = seen.get(name, 0) + 1
            yield RecurrentLayer(name if seen[name] == 1 else f"{name}#{seen[name]}", node, matrices)


def with_recurrent_matrices(model: Model) -> list[Layer]:
    """Layers, and every matrix of fused recurrent ones as a layer called as that weight, in graph order.

    What such a matrix multiplies stands in no node: these are for who looks at weights alone.
    """
    found = list(layers(model))
    for layer in recurrent_layers(model):
        roles = Roles(layer.kind, data=0, weight=2, bias=None, outputs=0, inputs=1)
        found += [Layer(each.name, layer.node, roles, each, None) for each in layer.matrices]
    places = {node: place for place, node in enumerate(model.graph.nodes)}
    return sorted(found, key=lambda each: places[each.node])


def excluded(layer: Layer, patterns: Collection[str]) -> bool:
    """Is its name among them; of a recurrent layer's matrix also that of the module?"""
    names = {layer.name, layer_name(layer.weight.name) if layer.kind in RECURRENT else layer.name}
    return any(fnmatch(name, pattern) for pattern in patterns for name in names)


def recurrent_parameters(node: fx.Node) -> dict[str, fx.Node]:
    """What such a node reads as its weights, by their names in torch.nn: "weight_ih_l0_reverse"."""
    given = op_arguments(node)
    count = given["num_layers"] * (2 if given["bidirectional"] else 1)
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if given["has_biases"] else [])]
    if len(given["params"]) > count * len(kinds):
        kinds.append("weight_hr")
    sides = ("", "_reverse") if given["bidirectional"] else ("",)
    names = [f"{kind}_l{at}{side}" for at in range(given["num_layers"]) for side in sides for kind in kinds]
    return dict(zip(names, given["params"], strict=True))


def op_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, left out ones as they are by default."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return {each.name: argument(node, position) for position, each in enumerate(schema)}


def recurrent_name(model: Model, node: fx.Node) -> str:
    """The name of such a layer: of the module that its first stored weight lies in."""
    found = (weight_at(model, source) for source in recurrent_parameters(node).values())
    first = next((each for each in found if each is not None), None)
    return node.name if first is None else layer_name(first.name)
