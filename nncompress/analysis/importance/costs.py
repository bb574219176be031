"""What is left of a model's MACs and parameters when some units of some choices go, computed fast.

MACs of a contraction are proportional to the size of each of its output and summed dims, parameters to the
size of each dim of a tensor: a product of fractions. The exact cost is measured once the model is cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import fx

from nncompress.analysis.cost import node_macs
from nncompress.analysis.importance.choices import Choice
from nncompress.ir import Model
from nncompress.ir.normalize import op_name
from nncompress.ir.shapes import Shapes
from nncompress.ir.weights import argument, layer_name, roles_of, weight_at

Factor = tuple[float, tuple[tuple[str, float], ...]]  # fixed share, (choice, its share)


class Costs:
    """Cost under a removal: `Costs(model, choices, "macs").left({"conv1": 12})`.

    Args:
        unit: "macs" (at batch 1) or "params".
        gone: layers that are left out altogether; they count in `total` only.

    Attributes:
        total: the cost before.
    """

    def __init__(
        self, model: Model, choices: Sequence[Choice], unit: str, gone: Collection[str] = ()
    ) -> None:
        self._sizes = {choice.name: choice.size for choice in choices}
        self._terms: list[tuple[float, list[Factor]]] = []
        self._own: dict[str, list[int]] = {choice.name: [] for choice in choices}
        self._gone, self.total = frozenset(gone), 0.0
        (self._add_macs if unit == "macs" else self._add_parameters)(model, choices)

    def left(self, kept: Mapping[str, int]) -> float:
        """The cost once only `kept[name]` units of each named choice are left."""
        return sum(self._value(term, kept) for term in range(len(self._terms)))

    def saved(self, name: str, count: int, kept: Mapping[str, int]) -> float:
        """What is saved by going from `kept` to `count` units of one choice."""
        then = {**kept, name: count}
        return sum(self._value(t, kept) - self._value(t, then) for t in self._own[name])

    def touching(self, name: str) -> set[str]:
        """The choices whose savings depend on how many units of `name` are left."""
        return {n for term in self._own[name] for _, factor in self._terms[term][1] for n, _ in factor}

    def _value(self, term: int, kept: Mapping[str, int]) -> float:
        value, factors = self._terms[term]
        for fixed, shares in factors:
            value *= fixed + sum(share * kept.get(n, self._sizes[n]) / self._sizes[n] for n, share in shares)
        return value

    def _add(self, layer: str, base: float, factors: list[Factor]) -> None:
        self.total += base
        if layer in self._gone:
            return
        number = len(self._terms)
        self._terms.append((base, factors))
        for name in {name for _, shares in factors for name, _ in shares}:
            self._own[name].append(number)

    def _add_macs(self, model: Model, choices: Sequence[Choice]) -> None:
        shapes = Shapes(model)
        stored = _by_place((m.tensor, m.dim, m.unit, c) for c in choices for m in c.members)
        carried = _by_place((s.node, s.dim, s.unit, c) for c in choices for s in c.sites if c.kind == "group")
        for node in model.graph.nodes:
            macs = node_macs(node, shapes) if node.op == "call_function" else 0
            if not macs:
                continue
            roles = roles_of(node)
            weight = weight_at(model, argument(node, roles.weight)) if roles is not None else None
            factors = []
            if roles is not None and weight is not None:
                rank = len(shapes.of(argument(node, roles.weight)))
                dims = {roles.outputs % rank, roles.inputs % rank}
                factors = [stored[weight.name, d] for d in dims if (weight.name, d) in stored]
                own = 1 if "conv" in roles.kind else len(shapes.of(node)) - 1
                others = [d for d in range(len(shapes.of(node))) if d != own]
            else:
                others = list(range(len(shapes.of(node))))
                factors = _summed(node, carried, shapes)
            factors += [carried[node, d] for d in others if (node, d) in carried]
            self._add(layer_name(weight.name) if weight else "", macs, factors)

    def _add_parameters(self, model: Model, choices: Sequence[Choice]) -> None:
        stored = _by_place((m.tensor, m.dim, m.unit, c) for c in choices for m in c.members)
        for name, parameter in model.graph_module.named_parameters():
            places = [(name, d) for d in range(parameter.dim())]
            self._add(layer_name(name), parameter.numel(), [stored[p] for p in places if p in stored])


def _by_place(rows: object) -> dict[tuple[object, int], Factor]:
    """(tensor or node, dim) -> the shares of the choices that own indices there."""
    found: dict[tuple[object, int], tuple[float, list[tuple[str, float]]]] = {}
    for place, dim, unit, choice in rows:  # type: ignore[attr-defined]
        share = float((np.asarray(unit) >= 0).mean())
        fixed, shares = found.get((place, dim), (1.0, []))
        if all(name != choice.name for name, _ in shares):
            found[place, dim] = (fixed - share, [*shares, (choice.name, share)])
    return {key: (max(fixed, 0.0), tuple(shares)) for key, (fixed, shares) in found.items()}


def _summed(node: fx.Node, carried: Mapping[tuple[object, int], Factor], shapes: Shapes) -> list[Factor]:
    """The dim that a matrix product sums over, at its first operand."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or op_name(node) not in ("matmul", "mm", "bmm"):
        return []
    place = (first, len(shapes.of(first)) - 1)
    return [carried[place]] if place in carried else []
