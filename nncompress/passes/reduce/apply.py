"""What `reduce` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nncompress.analysis.compensation import compensate
from nncompress.analysis.compensation.sequential import Projection
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.curvature.autograd import differentiable_outputs
from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.importance import (
    Choice,
    Rankings,
    Setting,
    group_choices,
    rank,
    separate_choices,
)
from nncompress.analysis.importance.choices import Indices
from nncompress.analysis.importance.costs import Costs
from nncompress.analysis.lowrank.nearest import nearest
from nncompress.analysis.lowrank.ranks import Candidate
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.moments import with_ridge
from nncompress.analysis.observe.residual import find_branches
from nncompress.errors import DataError, ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.graph.verify import spoiling
from nncompress.ir.layers.weights import layers
from nncompress.options import LossWeights
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.cut import (
    apply_cut,
    check_budget,
    cut_of,
    proven_cut,
    refusal,
    refuse_16_bits,
    removals,
)
from nncompress.passes.reduce.curves import Curve, curves, factorizable
from nncompress.passes.reduce.options import Reduce
from nncompress.passes.reduce.plan import Budget, Plan
from nncompress.passes.reduce.split import Split, split


def requires(options: Reduce, model: Model, context: Context) -> None:
    _ = options.budget  # there is one
    need_data(context, "reduce", "it weighs nodes against ranks by what the outputs lose")
    broken = spoiling(model)
    if broken:
        raise ModelFileError(f"reduce: {broken} has NaN or infinite values")
    refuse_16_bits(options.name, model, "reduce the float32 model and convert the result")


def apply(options: Reduce, model: Model, context: Context) -> list[Change]:
    data = need_data(context, "reduce", "it fits what stays")
    batches = data.input_batches(context.batch_size, context.limit)
    if not batches:
        raise DataError(f"{data.spec} gave no samples")
    counted, share = options.budget
    unit = {"params": "parameters"}.get(counted, counted)
    context.progress.step("finding what is tied together", 0, 1)
    couplings, shapes = find_couplings(model), Shapes(model)
    if options.blocks == "separate":
        choices, branches = separate_choices(model, couplings)
    else:
        choices, branches = group_choices(model, couplings), find_branches(model)
    choices = [c for c in choices if not c.excluded(options.exclude)]
    targets, left = factorizable(model, shapes, options.exclude)
    if not choices and not targets:
        raise UsageError(
            "reduce: no nodes can be removed, and no rank lowered",
            got="every node and every layer is fixed" + (" or excluded" if options.exclude else ""),
            remedy="nncompress inspect --units shows why",
        )
    with differentiable_outputs(model) as discrete:
        rankings = _ranked(model, choices, context)
        found = curves(
            model, targets, shapes, data, context, form=options.form, unit=unit, round_to=options.round_to
        )
    if discrete:
        context.notes.append(
            f"reduce: {', '.join(discrete)}: discrete, so losses are those of what it is chosen from"
        )
    weights = LossWeights(options.name, options.loss_weight)
    weights.check([*(layer.name for layer in layers(model)), *(name for c in choices for name in c.names)])
    costs = Costs(model, choices, counted)
    budget = Budget(choices, rankings, found, costs, unit, options.round_to, weights)
    plan = budget.plan(share, f"--{counted}")
    context.progress.step("removing nodes", 0, 1)
    cut, proven = cut_of(choices, plan.removed), None
    if cut.units:
        cut, proven = proven_cut(couplings, cut)
    refused = refusal(options.name, proven.refused if proven else {}, len(plan.removed))
    if refused:
        context.notes.append(refused)
    fitted = compensate(
        model,
        couplings,
        cut,
        branches,
        batches,
        projections=_projections(plan.factors, found),
        behind_relu=True,
        seed=context.seed,
        progress=context.progress,
    )
    context.warn(too_few(options.name, fitted.layers))
    small, proof = apply_cut(model, cut, fitted, proven, verify=True)
    factored = split(small, plan.factors, unit)
    if refused:
        missed = getattr(cost(small), unit) / getattr(cost(model), unit)
        context.notes.append(f"reduce: so {missed:.1%} of the {unit} are left; {share:.1%} were asked for")
    else:
        check_budget(options.name, unit, share, model, small)
    changes = removals(choices, plan.removed, plan.losses, proven, proof)
    changes += _lowered(plan, found, factored, unit)
    skipped = {**fitted.left, **left}
    changes += [Change(name, f"skipped: {why}", applied=False) for name, why in skipped.items()]
    model.graph_module, model.traced_form = small.graph_module, small.traced_form
    return changes


def _ranked(model: Model, choices: Sequence[Choice], context: Context) -> Rankings:
    if not choices:
        return {}
    setting = Setting(
        model, choices, context.data, context.limit, context.batch_size, context.seed, context.progress
    )
    return rank("reconstruction", setting)


def _projections(factors: Mapping[str, Candidate], found: Sequence[Curve]) -> dict[str, Projection]:
    """How the weights of the layers whose rank is lowered become of that rank."""
    return {curve.name: _projection(curve, factors[curve.name]) for curve in found if curve.name in factors}


def _projection(curve: Curve, candidate: Candidate) -> Projection:
    layer = curve.target.layers[0]
    kernel = tuple(layer.weight.value().shape[2:]) if layer.roles.groups is not None else ()

    def project(matrix: Tensor, second: Tensor, rows: Indices) -> Tensor:
        index = torch.from_numpy(rows)
        gradient = with_ridge(curve.gradient[index][:, index], of_nothing=1e-30)
        return nearest(candidate.form, candidate.ranks, matrix, kernel, Metric(second, gradient))

    return project


def _lowered(plan: Plan, found: Sequence[Curve], factored: Mapping[str, Split], unit: str) -> list[Change]:
    changes = []
    for curve in found:
        done = factored.get(curve.name)
        if done is None:
            continue
        numbers: dict[str, object] = {
            f"{unit}_before": curve.dense,
            f"{unit}_after": done.cost,
            "form": done.form,
            "rank": done.ranks[0] if len(done.ranks) == 1 else list(done.ranks),
            "loss": plan.losses[curve.name],
        }
        of = " and ".join(f"rank {a} of {b}" for a, b in zip(done.ranks, done.full))
        changes.append(Change(curve.name, f"{done.form}: {of}", numbers))
    return changes
