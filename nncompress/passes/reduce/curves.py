"""What every rank of every layer loses, in the unit in which removing nodes is measured.

Errors of a weight are weighed by the second moments of what the layer reads and of the outputs' gradients at
what it gives, as by `factorize`. Then one rank of each form is tried on the data: the mean of ½ (Σ g·δ)² with
all correlations, g the gradient of the loss, scales the curve. The reconstruction criterion does this with
nodes, so both estimate how much the loss grows: for a classifier, the Kullback-Leibler divergence from the
original.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from nncompress.analysis.compensation.fittable import why_not_fitted
from nncompress.analysis.curvature.autograd import gradient_batch_size
from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.curvature.sensitivity import output_gradients
from nncompress.analysis.curvature.stream import curvature_gradients
from nncompress.analysis.importance.reconstruction import apply_layer
from nncompress.analysis.importance.sample_dims import SampleDims
from nncompress.analysis.lowrank.ranks import Candidate
from nncompress.analysis.observe.gradient_hooks import GradientHooks
from nncompress.analysis.observe.moments import Moments, with_ridge
from nncompress.analysis.weight_targets import Target, find_targets
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.base import Context
from nncompress.passes.factors.forms.base import Form
from nncompress.passes.factors.forms.choice import forms_of
from nncompress.passes.moments import input_moments

TRIED = 0.45  # share of the layer's cost at which a form is tried on the data
DRAWS = 2  # random scalars per batch there
KEPT = 64  # candidates per layer and form


@dataclass(frozen=True)
class Curve:
    """One layer and what it could become.

    Attributes:
        candidates: what each loses; their cost is that of the layer as wide as it is.
        dense: the cost of the layer itself.
        gradient: second moment of the outputs' gradients at what it gives, float64 [out, out].
    """

    target: Target
    forms: Mapping[str, Form] = field(repr=False)
    candidates: Sequence[Candidate] = field(repr=False)
    dense: int
    gradient: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        return self.target.name


def factorizable(
    model: Model, shapes: Shapes, exclude: tuple[str, ...]
) -> tuple[list[Target], dict[str, str]]:
    """The layers that can be of low rank and be fitted as such, and why each other one cannot."""
    targets, left = find_targets(model, shapes, exclude)
    found = []
    for target in targets:
        reason = _why_not(model, target)
        if reason:
            left[target.name] = reason
        else:
            found.append(target)
    return found, {name: f"keeps its rank: {reason}" for name, reason in left.items()}


def _why_not(model: Model, target: Target) -> str | None:
    if target.groups > 1:
        return "a grouped convolution"
    if "transpose" in target.layers[0].kind:
        return "a transposed convolution"
    if len(target.layers) > 1:
        return "its weight serves several layers"
    return why_not_fitted(model, target.layers[0])


def curves(
    model: Model,
    targets: Sequence[Target],
    shapes: Shapes,
    data: Dataset,
    context: Context,
    *,
    form: str,
    unit: str,
    round_to: int,
) -> list[Curve]:
    """One per layer for which a lower rank costs less.

    Args:
        form: of convolutions, or "auto".
        unit: "macs" or "parameters".
    """
    if not targets:
        return []
    inputs = input_moments(model, {target.name: target.layers for target in targets}, data, context)
    gradients = output_gradients(
        model,
        [(target.layers[0].node, target.layers[0].channel_dim) for target in targets],
        data.input_batches(context.batch_size, context.limit),
        seed=context.seed,
        progress=context.progress,
        total=context.limit,
    )
    found, trials = [], []
    for done, target in enumerate(targets):
        context.progress.step("decomposing", done, len(targets))
        moments, gradient = inputs[target.name], gradients[target.layers[0].node]
        metric = Metric(with_ridge(moments.covariance)[0], with_ridge(gradient, of_nothing=1e-30))
        forms = {f.name: f for f in forms_of(target, shapes, form, partial(_one, metric))}
        dense = target.macs if unit == "macs" else target.weight.value().numel()
        candidates: list[Candidate] = []
        for each in forms.values():
            useful = [c for c in each.candidates(unit, round_to) if c.cost < dense]
            if useful:
                trials.append(_Trial(target, each, useful, moments, dense))
                candidates += _thinned(useful)
        metric.forget()
        if candidates:
            found.append(Curve(target, forms, candidates, dense, gradient))
    context.progress.step("decomposing", len(targets), len(targets))
    scales = _scales(model, trials, data, context)
    return [
        replace(
            curve,
            candidates=[replace(c, error=c.error * scales[curve.name, c.form]) for c in curve.candidates],
        )
        for curve in found
    ]


def _one(metric: Metric) -> Sequence[Metric]:
    return [metric]


def _thinned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most `KEPT` of those that no other beats in cost and error, the steps even in cost."""
    best, least = [], float("inf")
    for each in sorted(candidates, key=lambda c: (c.cost, c.error)):
        if each.error < least:
            best.append(each)
            least = each.error
    return [best[round(i * (len(best) - 1) / (KEPT - 1))] for i in range(KEPT)] if len(best) > KEPT else best


class _Trial:
    """One form of one layer at one rank: how the layer's output changes."""

    def __init__(
        self, target: Target, form: Form, candidates: Sequence[Candidate], moments: Moments, dense: int
    ) -> None:
        tried = min(candidates, key=lambda c: abs(c.cost - TRIED * dense))
        self.key, self.layer, self.estimated = (target.name, form.name), target.layers[0], tried.error
        weight = target.weight.value()
        change = form.compose(form.weights(tried.ranks)) - weight.double()
        self._change = change.to(weight.dtype)
        self._offset = -(target.matrices(change)[0] @ moments.mean[0]).to(weight.dtype)  # the bias makes up

    def __call__(self, hooks: GradientHooks) -> Tensor:
        read = hooks.value[self.layer.data].detach()
        return apply_layer(self.layer, read, self._change, self._offset)


def _scales(
    model: Model, trials: Sequence[_Trial], data: Dataset, context: Context
) -> dict[tuple[str, str], float]:
    """Layer and form -> what the data says that the tried rank loses, by what was estimated."""
    dims, total, seen = SampleDims(model), {trial.key: 0.0 for trial in trials}, 0
    layers = {trial.layer.name: trial.layer for trial in trials}.values()
    for hooks, gradients, batch in curvature_gradients(
        model,
        [layer.node for layer in layers],
        [layer.data for layer in layers],
        data,
        limit=context.limit,
        batch_size=gradient_batch_size(model, context.batch_size),
        draws=DRAWS,
        seed=context.seed + 1,
        progress=context.progress,
        what="comparing ranks",
    ):
        seen += len(batch)
        for trial in trials:
            change, node = trial(hooks), trial.layer.node
            for each in gradients:
                rows = dims.total(node, each[node] * change, len(batch))
                total[trial.key] += float(rows.double().square().sum()) / DRAWS
    found = {t.key: total[t.key] / max(seen, 1) / 2 / t.estimated for t in trials if t.estimated > 0}
    typical = statistics.median(found.values()) if found else 1.0  # for layers of that rank already
    return {trial.key: found.get(trial.key, typical) for trial in trials}
