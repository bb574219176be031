"""What `share` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from itertools import chain
from typing import Literal

import torch

from nncompress.analysis.compensation.batch_norms import reestimate
from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.errors import ModelFileError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.nodes import tie_tensors
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.base import Change, Context
from nncompress.passes.share.candidates import find_groups
from nncompress.passes.share.fit import TURNS, Problem, fit
from nncompress.passes.share.merge import Cluster, merge_cheapest
from nncompress.passes.share.moments import GroupMoments
from nncompress.passes.share.options import Share
from nncompress.passes.share.scales import norm_after, norm_before, scale_inputs, scale_outputs


def requires(options: Share, model: Model, context: Context) -> None:
    groups, _ = find_groups(model, Shapes(model), options.which, options.first_blocks, options.exclude)
    for layer in chain.from_iterable(groups):
        if not layer.weight.value().isfinite().all():
            raise ModelFileError(f"share: the weight of {layer.name} has NaN or infinite values")


def apply(options: Share, model: Model, context: Context) -> list[Change]:
    groups, left = find_groups(model, Shapes(model), options.which, options.first_blocks, options.exclude)
    changes = [Change(name, f"skipped: {reason}", applied=False) for name, reason in left.items()]
    groups = [group for group in groups if not _tied(model, group)]
    if not groups:
        if not left:
            changes.append(Change("model", "skipped: no two residual blocks could share", applied=False))
        return changes
    original = model.copy() if context.data is not None else None
    problems = _problems(model, groups, context, rescale=options.rescale)
    for group, problem in _clusters(model, groups, problems, context, options.saving, options.share_lost):
        if _tied(model, group):
            why = "it would cost more than others"
            if options.saving is None:
                why = f"no other layer's weight is within {options.share_lost:g} of its own"
            changes.append(Change(group[0].name, f"skipped: {why}", applied=False))
            continue
        changes += _tie(model, group, problem)
        tie_tensors(model, [layer.weight.name for layer in group])
    model.refresh()
    if original is not None and any(change.applied for change in changes):
        changes += _renew_statistics(original, model, context)
    return changes


def ensures(options: Share, model: Model, changes: list[Change]) -> None:
    tensors = {layer.name: id(model.tensor(layer.weight.name)) for layer in layers(model)}
    found = set(tensors.values())
    saved = sum(change.numbers.get("tied", 0) for change in changes)
    if saved and len(tensors) - len(found) < saved:
        raise VerificationError(
            "share: not all layers share their weight", got=f"{len(tensors) - len(found)} of {saved}"
        )


def _problems(
    model: Model, groups: list[list[Layer]], context: Context, *, rescale: bool
) -> list[list[Problem]]:
    """What the fit knows of every layer: its weight, its inputs' moments, which sides may be scaled."""

    def scaled(layer: Layer) -> Literal["outputs", "inputs", ""]:
        if not rescale or context.data is None:
            return ""
        if norm_after(model, layer) is not None:
            return "outputs"
        return "inputs" if norm_before(model, layer) is not None else ""

    def problem(layer: Layer) -> Problem:
        weight = layer.weight.value().to(torch.float64)
        return Problem(
            weight=layer.matrix(weight).unflatten(0, (layer.groups, -1)),
            kernel=weight[0, 0].numel(),
            scaled=scaled(layer),
        )

    problems = [[problem(layer) for layer in group] for group in groups]
    if context.data is None:
        return problems
    moments = GroupMoments(model, groups, context)
    return [
        moments.given_to(several, [layer.name for layer in group]) for group, several in zip(groups, problems)
    ]


def _clusters(
    model: Model,
    groups: list[list[Layer]],
    problems: list[list[Problem]],
    context: Context,
    saving: float | None,
    share_lost: float | None,
) -> list[tuple[list[Layer], list[Problem]]]:
    """The layers that get one weight, and those that stay alone.

    Args:
        saving: of what all sharing would save; None: as far as no layer loses more than `share_lost`.
    """
    if saving == 1:
        return list(zip(groups, problems))
    tried = 0
    turns = 2 if share_lost is None else TURNS  # enough to compare, not to keep to a bound

    def error(group: int, cluster: Cluster) -> float:
        nonlocal tried
        tried += 1
        context.progress.step("pairing layers", tried, None)
        errors = fit([problems[group][i] for i in cluster], turns=turns).errors
        return sum(errors) if share_lost is None or max(errors) <= share_lost else float("inf")

    start = [_tied_clusters(model, group) for group in groups]
    sizes = [group[0].weight.value().numel() for group in groups]
    return [
        ([groups[number][i] for i in cluster], [problems[number][i] for i in cluster])
        for number, clusters in enumerate(merge_cheapest(start, sizes, error, saving or 1))
        for cluster in sorted(clusters)
    ]


def _tie(model: Model, group: list[Layer], problems: list[Problem]) -> list[Change]:
    """Store the fitted weight in the first layer; every layer's scale goes to its batch norm."""
    found = fit(problems)
    first = group[0]
    shared = first.from_matrix(found.weight)
    changes = []
    own = {id(model.tensor(first.weight.name))}
    for k, (layer, problem, error) in enumerate(zip(group, problems, found.errors)):
        if problem.scaled == "outputs":
            scale_outputs(model, layer, found.outputs[k].flatten())
        elif problem.scaled == "inputs":
            scale_inputs(model, layer, found.inputs[k].flatten()[:: problem.kernel])
        tensor = id(model.tensor(layer.weight.name))
        numbers = {"relative_error": error, "tied": int(tensor not in own)}
        own.add(tensor)
        others = "the others" if layer is first else first.name
        lost = "weight's" if problem.moment is None else "output's"
        what = f"shares its weight with {others}; {error:.0%} of its {lost} power lost"
        changes.append(Change(layer.name, what, numbers))
    first.weight.assign(shared)
    return changes


def _tied(model: Model, group: list[Layer]) -> bool:
    return len(_tied_clusters(model, group)) == 1


def _tied_clusters(model: Model, group: list[Layer]) -> list[tuple[int, ...]]:
    """The positions of the layers, those together that read one tensor."""
    found: dict[int, list[int]] = {}
    for position, layer in enumerate(group):
        found.setdefault(id(model.tensor(layer.weight.name)), []).append(position)
    return [tuple(positions) for positions in found.values()]


def _renew_statistics(original: Model, model: Model, context: Context) -> list[Change]:
    """Batch-norm statistics for the shared weights, as far as they help on held-out samples."""
    assert context.data is not None
    fitted, held = fit_and_decide(model, context.data, context.batch_size, context.limit)
    share, before, after = reestimate(model, fitted, output_error(original, model.outputs_of, held))
    numbers = {"error_before": before, "error_after": after, "share": share}
    if share:
        return [Change("batch norms", f"{share:.0%} new statistics", numbers)]
    what = "skipped: new statistics did not help on held-out data"
    return [Change("batch norms", what, numbers, applied=False)]
