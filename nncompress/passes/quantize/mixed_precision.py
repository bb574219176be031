"""Mixed precision (`--max-drop`, `--max-drift`): layers that int8 hurts most stay float, as few as can be.

Each layer's damage is measured by itself: how far the outputs move when it alone is rounded. The accuracy, or
how far the outputs have moved, then says how many of the worst must stay in float; it is measured on the
rounded model as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.metrics.registry import named_metric
from nncompress.analysis.metrics.two_classes import assumption
from nncompress.analysis.observe.batch_size import largest_batch
from nncompress.analysis.observe.walk import Env, Inputs, Walk
from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.factors import Product
from nncompress.ir.formats.qdq import QParams
from nncompress.ir.graph.verify import drift
from nncompress.ir.layers.recurrent import RecurrentLayer
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context
from nncompress.passes.quantize.calibrate import CalibrationStatistics
from nncompress.passes.quantize.choose import by_weight, integer_layers, scale_axis
from nncompress.passes.quantize.recurrent import by_first_matrix, rounded_weights
from nncompress.passes.quantize.round import Left, Rounding, rounded

SAMPLES = 64  # on which the damage of every layer is measured
RANDOM = 8  # inputs, where there is no data


def damages(
    model: Model,
    chosen: list[Layer],
    recurrent: list[RecurrentLayer],
    products: list[Product],
    mode: str,
    statistics: CalibrationStatistics,
    inputs: Inputs,
) -> dict[str, float]:
    """Per stored weight (recurrent layer, product of activations), ‖y' − y‖² / ‖y‖² of the outputs when only
    the layers that read it are rounded."""
    integer = integer_layers(chosen, mode)
    plan = statistics.plan(model, integer, products) if mode == "static" else None
    qparams = {node: statistics.qparams[node.name] for node in plan.points} if plan is not None else {}
    found = {}
    with torch.no_grad():
        reference = [y.double() for y in model.outputs_of(*inputs) if y.is_floating_point()]

        def moved_by(walk: Walk) -> float:
            outputs = [y.double() for y in walk.outputs(*inputs) if y.is_floating_point()]
            # Scores of -inf are masked, whatever the weights.
            moved = sum(float((a - b)[b.isfinite()].square().sum()) for a, b in zip(outputs, reference))
            return moved / (sum(float(b[b.isfinite()].square().sum()) for b in reference) or 1.0)

        for name, readers in by_first_matrix(recurrent).items():
            walk = Walk(model)
            walk.weights = rounded_weights(readers[0], statistics.bits)
            found[name] = moved_by(walk)
        for name, sharing in by_weight(chosen).items():
            axis = scale_axis(sharing)
            stored, scales = rounded(sharing, axis, statistics.bits[name], qparams, statistics)
            shape = [-1 if d == axis else 1 for d in range(stored.dim())]
            walk = Walk(model)
            for layer in sharing:
                given = qparams if layer in integer else None
                walk.instead[layer.node] = partial(_one_rounded, layer, stored * scales.reshape(shape), given)
            found[name] = moved_by(walk)
        for product in products:
            walk = Walk(model)
            walk.instead[product.node] = partial(_factors_rounded, product, statistics.factors)
            found[product.name] = moved_by(walk)
    return found


def _one_rounded(layer: Layer, weight: Tensor, qparams: Mapping[fx.Node, QParams] | None, env: Env) -> Tensor:
    """What a layer gives with its weight rounded and, where there are qparams, what it reads."""
    given: list[Any] = list(fx.map_arg(layer.node.args, env.__getitem__))
    kwargs: Any = fx.map_arg(layer.node.kwargs, env.__getitem__)
    given[layer.roles.weight] = weight
    if qparams is not None:
        given[layer.roles.data] = _rounded(given[layer.roles.data], qparams.get(layer.data))
    assert callable(layer.node.target)
    return layer.node.target(*given, **kwargs)


def _factors_rounded(product: Product, qparams: Mapping[str, QParams], env: Env) -> Tensor:
    given: list[Any] = list(fx.map_arg(product.node.args, env.__getitem__))
    kwargs: Any = fx.map_arg(product.node.kwargs, env.__getitem__)
    given[:2] = [_rounded(x, qparams.get(factor.name)) for x, factor in zip(given, product.factors)]
    assert callable(product.node.target)
    return product.node.target(*given, **kwargs)


def _rounded(value: Tensor, known: QParams | None) -> Tensor:
    if known is None:  # a range of its own
        known = QParams.covering(min(float(value.min()), 0.0), max(float(value.max()), 0.0))
    return known.rounded(value)


def within_drop(rounding: Rounding, most: float, metric_name: str, context: Context) -> Left:
    """The layers to leave in float so that the metric falls by at most `most`: points of a share, else in
    its own unit."""
    data = context.data
    if data is None:
        raise UsageError("quantize --max-drop needs data with labels", remedy="add --data FILE.npz")
    model = rounding.reference

    metric = named_metric(metric_name)
    threshold: float | None = None

    def reached_by(each: Model) -> float:
        nonlocal threshold
        result = evaluate(
            each,
            data,
            metric=metric_name,
            batch_size=context.batch_size,
            limit=context.limit,
            threshold=threshold,
        )
        if not samples and (taken := assumption(result.threshold)):
            context.notes.append(taken)
        threshold = result.threshold
        samples.append(result.samples)
        assert result.value is not None
        return result.value

    samples: list[int] = []
    original = reached_by(model)
    whole = reached_by(rounding.copy({}))
    on = f"of {samples[0]} samples"
    if metric_name == "top1":
        on += f" (one is {100 / samples[0]:.2g} points)"
    fell = f"{metric.title} {metric.text(original)} -> {metric.text(whole)} with every layer rounded"
    if metric.lost(original, whole) <= most:
        context.notes.append(f"{fell}, {on}")
        return {}
    inputs, _ = _inputs(model, data, context.seed)
    search = _Search(rounding, inputs, "left in float by --max-drop", context)
    reached = original

    def good(left: Left) -> bool:
        nonlocal reached
        found = reached_by(rounding.copy(left))
        if metric.lost(original, found) > most:
            return False
        reached = found
        return True

    left, count = search.fewest(good)
    context.notes.append(
        f"{fell}, {metric.text(reached)} with the worst {count} of {len(search)} in float, {on}"
    )
    return left


def within_drift(rounding: Rounding, whole: Model, bound: float, context: Context) -> Left:
    """The layers to leave in float so that no output moves by more than `bound` (`Drift.amount`).

    Args:
        whole: the model with every layer rounded.
    """
    model = rounding.reference
    inputs, origin = _inputs(model, context.data, context.seed)
    with torch.no_grad():
        reference = model.outputs_of(*(x.clone() for x in inputs))

    def moved(rounded: Model) -> float:
        with torch.no_grad():
            outputs = rounded.outputs_of(*(x.clone() for x in inputs))
        return max((row.amount for row in drift(model, outputs, reference)), default=0.0)

    at_first = moved(whole)
    if at_first <= bound:
        return {}
    search = _Search(rounding, inputs, "left in float by --max-drift", context)
    left, count = search.fewest(lambda left: moved(rounding.copy(left)) <= bound)
    context.notes.append(
        f"quantize: with every layer rounded the outputs would be {at_first:.0%} away {origin}, more than "
        f"{bound:.0%}: the worst {count} of {len(search)} layers stay in float ({', '.join(left)}); "
        "--max-drift sets another bound"
    )
    return left


def _inputs(model: Model, data: Dataset | None, seed: int) -> tuple[Inputs, str]:
    """What damage is measured on, and what that is."""
    size = min(SAMPLES, largest_batch(model))
    if data is not None:
        return next(iter(data.batches(size, limit=size))).inputs, "on the data"
    return model.example_inputs(min(RANDOM, size), seed), "on random inputs"


class _Search:
    """Layers by their damage on these inputs, those together that read one weight.

    Args:
        reason: why those found stay in float.
    """

    def __init__(self, rounding: Rounding, inputs: Inputs, reason: str, context: Context) -> None:
        model = rounding.reference
        chosen, recurrent = rounding.chosen(model), rounding.chosen_recurrent(model)
        products = rounding.chosen_products(model)
        damage = damages(model, chosen, recurrent, products, rounding.mode, rounding.statistics, inputs)
        self._context, self._reason = context, reason
        self._ranked = sorted(damage, key=lambda name: -damage[name])
        self._layers = {
            name: tuple(layer.name for layer in sharing)
            for shared in (by_first_matrix(recurrent), by_weight(chosen))
            for name, sharing in shared.items()
        } | {product.name: (product.name,) for product in products}

    def __len__(self) -> int:
        return len(self._ranked)

    def fewest(self, good: Callable[[Left], bool]) -> tuple[Left, int]:
        """The fewest of the worst (and how many weights those are) that are `good` to leave in float; all, if
        need be."""
        fewest, low = len(self), 0
        while low + 1 < fewest:
            self._context.progress.step(
                "finding the layers to leave in float", len(self) - fewest + low, len(self)
            )
            middle = (low + fewest) // 2
            if good(self._worst(middle)):
                fewest = middle
            else:
                low = middle
        return self._worst(fewest), fewest

    def _worst(self, count: int) -> Left:
        return {layer: self._reason for name in self._ranked[:count] for layer in self._layers[name]}
