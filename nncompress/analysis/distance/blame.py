"""Which layers moved the outputs: each changed layer by itself put into the model as it was.

Every layer computes, from the inputs it had in the original, what it computes now; the original network goes
on from there. How far its outputs then move is that layer's own contribution. Measured for those layers whose
own outputs err most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.residual import norm_of
from nncompress.ir import Model
from nncompress.ir.graph.normalize import op_name
from nncompress.ir.graph.verify import Distances
from nncompress.ir.layers.weights import Layer, layers

Inputs = tuple[Tensor, ...]

TRIED = 8  # layers whose effect on the outputs is measured
TOLD = 3  # of these, how many are told


def contributions(original: Model, changed: Model, names: Sequence[str], inputs: Inputs) -> dict[str, float]:
    """By layer, how far it alone moves the outputs (`Drift.amount`): the worst `TOLD`, worst first.

    Left out are layers whose inputs or outputs have other shapes than in the original.

    Args:
        names: of layers of `original`, which stand in `changed` under the same name or as "name.0", "name.1".
    """
    original, changed = original.copy(), changed.copy()  # running a model may change its state
    places = dict(_places(original, changed, names))
    ends = {node for place in places.values() for node in (place.start, place.end)}
    with torch.no_grad():
        usual = _Run(original, kept=ends)
        reference = usual.run(*inputs)
        made: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        for name, place in places.items():
            value = _new_value(changed, place, usual.values[place.start], inputs)
            wanted = usual.values[place.end]
            if value is not None and value.shape == wanted.shape:
                made[name] = value.to(wanted.dtype)
                errors[name] = _relative(made[name], wanted)
        effects = {}
        for name in sorted(errors, key=errors.__getitem__, reverse=True)[:TRIED]:
            distances = Distances(original.outputs)
            distances.add(_Run(original, replaced={places[name].end: made[name]}).run(*inputs), reference)
            effects[name] = max(row.amount for row in distances.rows())
    worst = sorted(effects, key=effects.__getitem__, reverse=True)
    return {name: effects[name] for name in worst[:TOLD]}


@dataclass(frozen=True)
class _Place:
    """Where a layer stands: what it reads and what it gives, in the original and in the changed graph."""

    start: fx.Node
    end: fx.Node
    new_start: fx.Node
    new_end: fx.Node


def _places(original: Model, changed: Model, names: Sequence[str]) -> Iterator[tuple[str, _Place]]:
    old = {layer.name: layer for layer in layers(original)}
    new = list(layers(changed))
    for name in dict.fromkeys(names):
        if name not in old:
            continue
        stages = [layer for layer in new if _stands_for(layer.name, name, old)]
        if stages:
            norm = norm_of(old[name])
            new_norm = norm_of(stages[-1]) if norm is not None else None  # folded, if it is not there
            yield (
                name,
                _Place(
                    old[name].data,
                    norm or old[name].node,
                    _unrounded(stages[0]),
                    new_norm or stages[-1].node,
                ),
            )


def _stands_for(stage: str, name: str, old: Collection[str]) -> bool:
    if stage == name:
        return True
    stem, number = stage[:-1], stage[-1]
    return number.isdigit() and stem in (f"{name}.", f"{name}_") and stage not in old


def _unrounded(layer: Layer) -> fx.Node:
    """What the layer reads, before it is rounded to int8."""
    node = layer.data
    while node.op == "call_function" and "quantize" in op_name(node):
        node = node.all_input_nodes[0]
    return node


def _new_value(changed: Model, place: _Place, start: Tensor, inputs: Inputs) -> Tensor | None:
    """What the changed layer makes of its original input; None where that does not fit it."""
    placeholders = [n for n in changed.graph.nodes if n.op == "placeholder"]
    known: dict[fx.Node, Any] = {**dict(zip(placeholders, inputs)), place.new_start: start}
    try:
        return _evaluated(changed, place.new_end, known)
    except RuntimeError:  # fewer channels
        return None


def _evaluated(model: Model, wanted: fx.Node, known: dict[fx.Node, Any]) -> Any:
    needed, waiting = {wanted}, [wanted]
    while waiting:
        node = waiting.pop()
        if node not in known:
            new = set(node.all_input_nodes) - needed
            needed |= new
            waiting += new
    runner = fx.Interpreter(model.graph_module, garbage_collect_values=False)
    runner.env = known
    for node in model.graph.nodes:
        if node in needed and node not in known:
            known[node] = runner.run_node(node)
    return known[wanted]


class _Run(fx.Interpreter):
    """Runs a graph; keeps some values, and puts others in place of what nodes compute."""

    def __init__(
        self,
        model: Model,
        kept: Collection[fx.Node] = (),
        replaced: Mapping[fx.Node, Tensor] | None = None,
    ) -> None:
        super().__init__(model.graph_module)
        self._kept, self._replaced = kept, replaced or {}
        self.values: dict[fx.Node, Tensor] = {}

    def run(self, *inputs: Tensor) -> Any:  # type: ignore[override]
        return super().run(*(x.clone() for x in inputs))

    def run_node(self, n: fx.Node) -> Any:
        value = self._replaced[n] if n in self._replaced else super().run_node(n)
        if n in self._kept:
            self.values[n] = value
        return value


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / (b.double().norm() or 1.0))
