"""What `substitute` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

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
    shapes, plans = Shapes(model), []
    targets, left = _convolutions(model, shapes, options.layers)
    for target in targets:
        ratio = options.ratio or RATIO
        plan = make_plan(target, options.with_, shapes, options.channels, ratio, context.seed)
        reason = plan if isinstance(plan, str) else _why_not(plan, options.share_lost)
        if isinstance(plan, str) or reason:
            left[target.name] = reason
        else:
            plans.append(plan)
    if options.macs is not None:
        total = cost(model).macs
        plans, others = _within(options.macs * total, total, plans)
        left |= {each.target.name: "the budget is met without it" for each in others}
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


def _convolutions(
    model: Model, shapes: Shapes, patterns: Sequence[str]
) -> tuple[list[Target], dict[str, str]]:
    """Those of these names, without patterns all but the first; and by layer name why the rest is skipped."""
    targets, left = find_targets(model, shapes)
    found = [target for target in targets if not target.is_matrix]
    left = {name: reason for name, reason in left.items() if _named(patterns, name)}
    if patterns:
        left |= {t.name: "not a convolution" for t in targets if t.is_matrix and _named(patterns, t.name)}
        return [t for t in found if any(_named(patterns, layer.name) for layer in t.layers)], left
    if found:
        left[found[0].name] = "the first convolution"
    elif not left:
        left["model"] = "it has no convolution with a stored weight"
    return found[1:], left


def _why_not(plan: Plan, share_lost: float | None) -> str:
    """Why it is not done; "" where it is."""
    if plan.macs >= plan.target.macs:
        return "it would not multiply less"
    if share_lost is not None and plan.error > share_lost:
        return f"it would lose {plan.error:.0%} of its weight"
    return ""


def _within(budget: float, total: int, plans: Sequence[Plan]) -> tuple[list[Plan], list[Plan]]:
    """Those that save most, as many as take `total` MACs to the budget, in the order given; the others."""
    chosen, others = [], []
    for each in sorted(plans, key=lambda plan: plan.macs - plan.target.macs):
        if total > budget:
            chosen.append(each)
            total -= each.target.macs - each.macs
        else:
            others.append(each)
    return [each for each in plans if each in chosen], others


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
