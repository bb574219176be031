"""Which layers moved the outputs: each changed layer by itself put into the model as it was.

Every layer computes, from the inputs it had in the original, what it computes now; the original network goes
on from there. How far its outputs then move is that layer's own contribution. Measured for those layers whose
own outputs err most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.residual import norm_of
from nncompress.analysis.observe.walk import Inputs, Walk
from nncompress.ir import Model
from nncompress.ir.factors import products
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.verify import Distances
from nncompress.ir.layers.recurrent import recurrent_layers
from nncompress.ir.layers.weights import layers

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
    ends = {node for place in places.values() for node in (*place.starts, place.end)}
    walk, end = Walk(original), original.graph.output_node()
    known = walk.start(*(x.clone() for x in inputs))
    with torch.no_grad():
        usual = walk.run(known, [end, *ends])
        made: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        for name, place in places.items():
            value = _new_value(changed, place, [usual[start] for start in place.starts], inputs)
            wanted = usual[place.end]
            if value is not None and value.shape == wanted.shape:
                made[name] = value.to(wanted.dtype)
                errors[name] = _relative(made[name], wanted)
        effects = {}
        for name in sorted(errors, key=errors.__getitem__, reverse=True)[:TRIED]:
            distances = Distances(original.outputs)
            distances.add(walk.run({**known, places[name].end: made[name]}, [end])[end], usual[end])
            effects[name] = max(row.amount for row in distances.rows())
    worst = sorted(effects, key=effects.__getitem__, reverse=True)
    return {name: effects[name] for name in worst[:TOLD]}


@dataclass(frozen=True)
class _Place:
    """Where a layer stands: what it reads and what it gives, in the original and in the changed graph."""

    starts: tuple[fx.Node, ...]
    end: fx.Node
    new_starts: tuple[fx.Node, ...]
    new_end: fx.Node


def _places(original: Model, changed: Model, names: Sequence[str]) -> Iterator[tuple[str, _Place]]:
    recurrent = {layer.name: layer for layer in recurrent_layers(changed)}
    for layer in recurrent_layers(original):
        own = {layer.name, *(each.name for each in layer.matrices)}
        other = recurrent.get(layer.name) if own & {*names} else None
        if other is not None and layer.result is not None and other.result is not None:
            yield layer.name, _Place((layer.data,), layer.result, (_unrounded(other.data),), other.result)
    multiplied = {product.name: product for product in products(changed)}
    for product in products(original):
        twin = multiplied.get(product.name) if product.name in names else None
        if twin is not None:
            yield (
                product.name,
                _Place(product.factors, product.node, tuple(map(_unrounded, twin.factors)), twin.node),
            )
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
                    (old[name].data,),
                    norm or old[name].node,
                    (_unrounded(stages[0].data),),
                    new_norm or stages[-1].node,
                ),
            )


def _stands_for(stage: str, name: str, old: Collection[str]) -> bool:
    if stage == name:
        return True
    stem, number = stage[:-1], stage[-1]
    return number.isdigit() and stem in (f"{name}.", f"{name}_") and stage not in old


def _unrounded(node: fx.Node) -> fx.Node:
    """What a layer reads, before it is rounded to int8."""
    while node.op == "call_function" and "quantize" in op_name(node):
        node = node.all_input_nodes[0]
    return node


def _new_value(changed: Model, place: _Place, starts: Sequence[Tensor], inputs: Inputs) -> Tensor | None:
    """What the changed layer makes of its original inputs; None where that does not fit it."""
    walk = Walk(changed)
    try:
        known = {**walk.start(*inputs), **dict(zip(place.new_starts, starts))}
        return walk.run(known, [place.new_end])[place.new_end]
    except RuntimeError:  # fewer channels
        return None


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / (b.double().norm() or 1.0))
