"""What `substitute` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial

from torch import Tensor, fx

from nncompress.analysis.cost import cost
from nncompress.analysis.observe.statistics import ChannelStatistics, observe
from nncompress.analysis.observe.walk import Inputs
from nncompress.analysis.weight_targets import Target, find_targets
from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.convolution import CONVOLUTIONS
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import layers
from nncompress.passes.base import Change, Context
from nncompress.passes.repair import repair
from nncompress.passes.substitute.insert import insert
from nncompress.passes.substitute.operations import Plan, make_plan
from nncompress.passes.substitute.options import RATIO, Substitute


def requires(options: Substitute, model: Model, context: Context) -> None:
    names = [layer.name for layer in layers(model)]
    for pattern in options.layers:
        if not any(fnmatch(name, pattern) for name in names):
            raise UsageError(
                f"substitute: no layer is called {pattern}", remedy="nncompress inspect shows the layers"
            )
    for layer in layers(model):
        if "conv" in layer.kind and not layer.weight.value().isfinite().all():
            raise ModelFileError(f"substitute: the weight of {layer.name} has NaN or infinite values")


def apply(options: Substitute, model: Model, context: Context) -> list[Change]:
    plans, left = _plans(options, model, context)
    changes = [Change(name, f"skipped: {reason}", applied=False) for name, reason in left.items()]
    if not plans:
        return changes
    statistics = _statistics(model, plans, context) if options.with_ == "nonlinear-separable" else {}
    original = model.copy() if context.data is not None else None
    stages: dict[Target, list[str]] = {}
    for done, plan in enumerate(plans):
        context.progress.step("substituting", done, len(plans))
        weights = plan.weights()
        changes.append(_change(plan))
        stages[plan.target] = insert(model, plan, weights, options.linear, statistics)
    context.progress.step("substituting", len(plans), len(plans))
    model.refresh()
    if original is not None:
        changes += repair(original, model, stages, context)
    return changes


def ensures(options: Substitute, model: Model, changes: list[Change]) -> None:
    for change in changes:
        if change.numbers.get("macs_after", 0) > change.numbers.get("macs_before", 0):
            raise VerificationError(f"substituting {change.where} did not reduce its MACs")


def _plans(options: Substitute, model: Model, context: Context) -> tuple[list[Plan], dict[str, str]]:
    """What is done, in graph order, and by layer name why the rest is skipped."""
    shapes, named = Shapes(model), partial(_named, options.layers)
    targets, left = find_targets(model, shapes)
    convolutions = [t for t in targets if not t.is_matrix]
    left = {name: reason for name, reason in left.items() if named(name)}
    if options.layers:
        left |= {t.name: "not a convolution" for t in targets if t.is_matrix and named(t.name)}
    elif not convolutions and not left:
        left["model"] = "it has no convolution with a stored weight"
    plans = []
    for number, target in enumerate(convolutions):
        if not any(named(layer.name) for layer in target.layers):
            continue
        if number == 0 and not options.layers:
            left[target.name] = "the first convolution"
            continue
        found = make_plan(
            target, options.with_, shapes, options.channels, options.ratio or RATIO, context.seed
        )
        if isinstance(found, str):
            left[target.name] = found
        elif found.macs >= target.macs:
            left[target.name] = "it would not multiply less"
        elif options.share_lost is not None and found.error > options.share_lost:
            left[target.name] = f"it would lose {found.error:.0%} of its weight"
        else:
            plans.append(found)
    if options.macs is None:
        return plans, left
    chosen, total = [], cost(model).macs
    budget, now = options.macs * total, total
    for each in sorted(plans, key=lambda p: p.macs - p.target.macs):
        if now > budget:
            chosen.append(each)
            now -= each.target.macs - each.macs
        else:
            left[each.target.name] = "the budget is met without it"
    return [each for each in plans if each in chosen], left


def _named(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _statistics(model: Model, plans: list[Plan], context: Context) -> dict[str, ChannelStatistics]:
    """Of what the depthwise convolutions give, on the data, or on random inputs where there is none."""
    found: dict[str, ChannelStatistics] = {}
    watches: dict[fx.Node, list] = {}
    for plan in plans:
        depthwise = plan.weights()[0].to(plan.target.weight.value().dtype)
        place = plan.chain[0][0]
        for layer in plan.target.layers:
            seen = found[layer.name] = ChannelStatistics(dim=1)

            def take(
                value: Tensor, w: Tensor = depthwise, place=place, seen: ChannelStatistics = seen
            ) -> None:
                convolve = CONVOLUTIONS[place.dims]
                args = (list(place.stride), list(place.padding), list(place.dilation), place.groups)
                seen.add(convolve(value, w, None, *args))

            watches.setdefault(layer.data, []).append(take)
    if context.data is None:
        context.notes.append("statistics of random inputs went into the batch norms: better give --data")
        batches: Sequence[Inputs] = [model.example_inputs(batch=8, seed=context.seed)]
    else:
        batches = context.data.input_batches(context.batch_size, context.limit)
    observe(model, batches, watches, progress=context.progress, total=context.limit)
    return found


def _change(plan: Plan) -> Change:
    target = plan.target
    numbers = {
        "macs_before": target.macs,
        "macs_after": plan.macs,
        "parameters_before": target.weight.value().numel(),
        "parameters_after": plan.parameters,
        "relative_error": plan.error,
    }
    what = f"{plan.operation}: {target.macs / plan.macs:.1f}x fewer MACs, {plan.error:.0%} of the weight lost"
    return Change(target.name, what, numbers)
