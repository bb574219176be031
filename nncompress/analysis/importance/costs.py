"""What is left of a model's MACs and parameters when some units of some choices go, computed fast.

The units of a choice are interchangeable, so the size of every dim is its fixed part plus, per choice, so
many indices for each unit that is left. The cost of an op follows from those sizes by the rule that also
counts the finished model (`nncompress.analysis.cost`): the prediction is exact, whatever the op.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import fx

from nncompress.analysis.cost import counted_tensors, node_macs
from nncompress.analysis.importance.choices import Choice
from nncompress.ir import Model
from nncompress.ir.graph.places import layer_name
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import argument, roles_of, weight_at

Place = tuple[object, int]  # a node or the name of a stored tensor, and a dim
Indices = tuple[int, int, dict[str, int]]  # how many in all, those that stay, and per unit of each choice


class Costs:
    """Cost under a removal: `Costs(model, choices, "macs").left({"conv1": 12})`.

    Args:
        unit: "macs" (for one sample) or "params" (as `inspect` counts them).
        gone: layers that are left out altogether; they count in `total` only.

    Attributes:
        total: the cost before.
    """

    def __init__(
        self, model: Model, choices: Sequence[Choice], unit: str, gone: Collection[str] = ()
    ) -> None:
        self._sizes = {choice.name: choice.size for choice in choices}
        self._terms: list[_Term] = []
        self._own: dict[str, list[int]] = {choice.name: [] for choice in choices}
        self._gone, self.total = frozenset(gone), 0.0
        places = _places(choices)
        (self._add_macs if unit == "macs" else self._add_parameters)(model, places)

    def left(self, kept: Mapping[str, int]) -> float:
        """The cost once only `kept[name]` units of each named choice are left."""
        return sum(term.value(kept) for term in self._terms)

    def saved(self, name: str, count: int, kept: Mapping[str, int]) -> float:
        """What is saved by going from `kept` to `count` units of one choice."""
        then = {**kept, name: count}
        return sum(self._terms[t].value(kept) - self._terms[t].value(then) for t in self._own[name])

    def touching(self, name: str) -> set[str]:
        """The choices whose savings depend on how many units of `name` are left."""
        return {n for term in self._own[name] for n in self._terms[term].names}

    def _add(self, layer: str, names: Collection[str], count: Callable[[Mapping[str, int]], float]) -> None:
        self.total += count(self._sizes)
        if layer in self._gone:
            return
        for name in names:
            self._own[name].append(len(self._terms))
        self._terms.append(_Term(tuple(names), self._sizes, count))

    def _add_macs(self, model: Model, places: Mapping[Place, Indices]) -> None:
        shapes = _SurvivingShapes(model, places)
        samples = model.fixed_batch or 1
        for node in model.graph.nodes:
            if node.op != "call_function" or not node_macs(node, shapes):
                continue

            def count(kept: Mapping[str, int], node: fx.Node = node) -> float:
                shapes.kept = kept
                return node_macs(node, shapes) // samples

            roles = roles_of(node)
            weight = weight_at(model, argument(node, roles.weight)) if roles is not None else None
            names = {n for each in (node, *node.all_input_nodes) for n in shapes.names(each)}
            self._add(layer_name(weight.name) if weight else "", names, count)

    def _add_parameters(self, model: Model, places: Mapping[Place, Indices]) -> None:
        for _, _, fresh, scales in counted_tensors(model):
            for tensor, value in fresh:
                if tensor in scales:
                    continue
                own = [places.get((tensor, dim)) for dim in range(value.dim())]

                def count(
                    kept: Mapping[str, int],
                    shape: Sequence[int] = value.shape,
                    own: Sequence[Indices | None] = own,
                ) -> float:
                    return prod(n if i is None else _left(n, i, kept) for n, i in zip(shape, own))

                self._add(layer_name(tensor), {n for i in own if i is not None for n in i[2]}, count)


class _Term:
    """One summand, and what it depends on; values are kept, since a budget asks for the same ones again."""

    def __init__(
        self, names: tuple[str, ...], sizes: Mapping[str, int], count: Callable[[Mapping[str, int]], float]
    ) -> None:
        self.names = names
        self._full, self._count = sizes, count
        self._known: dict[tuple[int, ...], float] = {}

    def value(self, kept: Mapping[str, int]) -> float:
        key = tuple(kept.get(name, self._full[name]) for name in self.names)
        if key not in self._known:
            self._known[key] = self._count(dict(zip(self.names, key)))
        return self._known[key]


class _SurvivingShapes(Shapes):
    """Shapes at batch 1 with `kept` units of each choice."""

    def __init__(self, model: Model, places: Mapping[Place, Indices]) -> None:
        super().__init__(model)
        self.kept: Mapping[str, int] = {}
        self._before: dict[fx.Node, tuple[int, ...]] = {}
        self._own: dict[fx.Node, tuple[Indices | None, ...]] = {}
        for node in model.graph.nodes:
            self._before[node] = super().of(node)
            key: object = str(node.target) if node.op == "get_attr" else node
            self._own[node] = tuple(places.get((key, d)) for d in range(len(self._before[node])))

    def of(self, node: Any) -> tuple[int, ...]:
        shape, own = self._before.get(node, ()), self._own.get(node, ())
        return tuple(n if i is None or not self.kept else _left(n, i, self.kept) for n, i in zip(shape, own))

    def names(self, node: fx.Node) -> set[str]:
        return {name for indices in self._own[node] if indices is not None for name in indices[2]}


def _left(size: int, indices: Indices, kept: Mapping[str, int]) -> int:
    """A dim's size. One that merges batch and heads was traced at another batch: its share counts."""
    count, fixed, units = indices
    return size * (fixed + sum(per * kept[name] for name, per in units.items())) // count


def _places(choices: Sequence[Choice]) -> dict[Place, Indices]:
    """Where the choices own indices."""
    found: dict[Place, Indices] = {}
    for choice in choices:
        rows: list[tuple[object, int, Any]] = [(m.tensor, m.dim, m.unit) for m in choice.members]
        rows += [(s.node, s.dim, s.unit) for s in choice.carriers]
        for place, dim, unit in rows:
            owned = int((np.asarray(unit) >= 0).sum())
            count, fixed, units = found.get((place, dim), (len(unit), len(unit), {}))
            if choice.name not in units:
                found[place, dim] = (count, fixed - owned, {**units, choice.name: owned // choice.size})
    return found
