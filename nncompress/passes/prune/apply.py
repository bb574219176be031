"""What `prune` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.analysis.compensation.fittable import why_not_fitted
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.seen_inputs import SeenInputs
from nncompress.analysis.rounding.sparsegpt import largest, pruned
from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.graph.ops import RECURRENT
from nncompress.ir.layers.other_products import AS_LAYER, other_products, stacks_left
from nncompress.ir.layers.recurrent import excluded, with_recurrent_matrices
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Change, Context
from nncompress.passes.prune.dead_nodes import remove_dead_nodes
from nncompress.passes.prune.options import Prune, parse_pattern

_PART = 2**20  # weights whose squares are summed up at a time, in float64


def requires(options: Prune, model: Model, context: Context) -> None:
    chosen = weights_to_prune(model, options.exclude)
    if not chosen:
        others = other_products(model)
        raise UsageError(
            "prune: no layer to prune",
            got="no convolution, linear layer or product with a stored matrix"
            + (" left by --exclude" if options.exclude else "")
            + (f"; {others}" if others else ""),
            remedy=AS_LAYER if others else "nncompress inspect shows the layers",
        )
    for layer in chosen:
        if not layer.weight.finite:
            raise ModelFileError(f"prune: the weight of {layer.name} has NaN or infinite values")


def apply(options: Prune, model: Model, context: Context) -> list[Change]:
    chosen = weights_to_prune(model, options.exclude)
    kept: dict[str, Tensor] = {}
    if options.sparsity is not None and options.scope == "global":
        kept = _kept_of_all(chosen, options.sparsity)
    seen = _seen(model, context) if options.pattern is not None else None
    changes = []
    for done, layer in enumerate(chosen):
        context.progress.step("pruning connections", done, len(chosen))
        weight = layer.weight.value()
        if not weight.numel():
            changes.append(Change(layer.name, "skipped: its weight is empty", applied=False))
            continue
        if options.pattern is not None:
            changes.append(patterned(model, layer, *parse_pattern(options.pattern), seen))
        elif options.sparsity is not None:
            keep = kept[layer.name] if kept else _all_but_smallest(weight.abs(), options.sparsity)
            changes.append(_assigned(layer, weight.masked_fill(~keep, 0), {}))
        else:
            bound = _threshold(weight, options.threshold, options.std, options.share_lost or 0.0)
            left = weight.masked_fill(weight.abs() < bound, 0)
            changes.append(_assigned(layer, left, {"threshold": bound}))
    if seen is not None:
        context.warn(too_few(options.name, seen.rows))
    if options.remove_dead:
        changes += remove_dead_nodes(model)
    context.notes.extend(stacks_left(model))
    return changes


def _seen(model: Model, context: Context) -> SeenInputs | None:
    """What the layers multiply, from which weights make up for what a pattern takes."""
    if context.data is None:
        return None
    return SeenInputs(model, context.data.input_batches(context.batch_size, context.limit), context.seed)


def ensures(options: Prune, model: Model, changes: list[Change]) -> None:
    if options.pattern is not None and not options.remove_dead:
        pruned = {change.where for change in changes if change.applied}
        ensure_pattern(
            options.pattern,
            [each for each in weights_to_prune(model, options.exclude) if each.name in pruned],
        )
    if options.sparsity is None or options.remove_dead:
        return
    weights = [layer.weight.value() for layer in weights_to_prune(model, options.exclude)]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    if zeros < int(options.sparsity * total) - len(weights):
        raise VerificationError("prune: the sparsity asked for was not reached", got=f"{zeros} of {total}")


def ensure_pattern(pattern: str, pruned: Sequence[Layer]) -> None:
    """Refuse layers that do not have it."""
    n, m = parse_pattern(pattern)
    for layer in pruned:
        rows = layer.weight.value().movedim(layer.roles.inputs, -1)
        if int((rows.unflatten(-1, (-1, m)) != 0).sum(-1).max()) > n:
            raise VerificationError(f"prune: {layer.name} is not {pattern}")


def weights_to_prune(model: Model, exclude: Sequence[str]) -> list[Layer]:
    """A layer for each weight, in graph order."""
    seen: set[int] = set()
    chosen = []
    for layer in with_recurrent_matrices(model):
        tensor = model.tensor(layer.weight.name)
        if layer.kind == "embedding" or tensor.dim() < 2 or id(tensor) in seen:
            continue
        if excluded(layer, exclude):
            continue
        seen.add(id(tensor))
        chosen.append(layer)
    return chosen


def _threshold(weight: Tensor, threshold: float | None, std: float | None, share_lost: float) -> float:
    """Below which a weight of this matrix is zeroed."""
    if threshold is not None:
        return threshold
    if std is not None:
        return std * math.sqrt(_squares(weight) / weight.numel())
    wide = weight.dtype if weight.dtype == torch.float64 else torch.float32
    magnitudes = weight.abs().flatten().to(wide).numpy()
    magnitudes.sort()  # in place: torch would give the order, too, of eight bytes a weight
    ordered = torch.from_numpy(magnitudes)
    room = share_lost * _squares(ordered)
    for part in ordered.split(_PART):  # in float64 all of a large matrix would take much memory
        lost = part.double().square().cumsum(0)
        going = int((lost <= room).sum())
        if going < len(part):
            return float(part[going])
        room -= float(lost[-1])
    return 0.0


def _squares(weight: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in weight.flatten().split(_PART))


def _kept_of_all(chosen: list[Layer], sparsity: float) -> dict[str, Tensor]:
    """By layer, which weights stay when all of the chosen layers compete."""
    weights = [layer.weight.value() for layer in chosen]
    keep = _all_but_smallest(torch.cat([w.abs().flatten() for w in weights]), sparsity)
    parts = keep.split([w.numel() for w in weights])
    return {layer.name: part.reshape(w.shape) for layer, part, w in zip(chosen, parts, weights)}


def _assigned(layer: Layer, value: Tensor, numbers: dict[str, float], how: str = "") -> Change:
    """Store the weight that is left, and say how much of it is zero."""
    before = layer.weight.value()
    zeros_before, zeros, total = int((before == 0).sum()), int((value == 0).sum()), value.numel()
    changed = zeros > zeros_before
    if changed:
        layer.weight.assign(value)
    numbers |= {"zeros_before": zeros_before, "zeros": zeros, "of": total}
    return Change(layer.name, f"{zeros / total:.1%} of {total} weights are zero{how}", numbers, changed)


def patterned(model: Model, layer: Layer, n: int, m: int, seen: SeenInputs | None) -> Change:
    """Keep n of every m neighbouring inputs, at each place of a kernel, as sparse tensor cores read them."""
    weight = layer.weight.value()
    inputs = weight.shape[layer.roles.inputs]
    if inputs % m:
        return Change(layer.name, f"skipped: {inputs} inputs are no multiple of {m}", applied=False)
    alone = layer.kind in RECURRENT or "transpose" in layer.kind
    if seen is None or alone or why_not_fitted(model, layer) is not None:
        return _assigned(layer, _largest_of(weight, layer.roles.inputs, n, m), {})
    left = seen.solved(layer, lambda second: _compensated(layer, weight, second, n, m))
    return _assigned(layer, left, {}, ", the others make up for it")


def _largest_of(weight: Tensor, dim: int, n: int, m: int) -> Tensor:
    """The n largest magnitudes of every m neighbours along `dim`, the others zero."""
    groups = weight.movedim(dim, -1).unflatten(-1, (-1, m))
    kept = torch.where(largest(groups.abs(), n), groups, torch.zeros_like(groups))
    return kept.flatten(-2).movedim(-1, dim)


def _compensated(layer: Layer, weight: Tensor, second: Tensor, n: int, m: int) -> Tensor:
    """The weight that gives the least error of the layer's output on what it was seen to multiply."""
    filters = layer.matrix(weight)
    inputs = filters.shape[1] // weight[0, 0].numel()  # of a group
    # The inputs last, so that neighbours stand side by side; the moments have them first.
    matrix = filters.unflatten(1, (inputs, -1)).transpose(1, 2).flatten(1)
    order = torch.arange(matrix.shape[1]).reshape(inputs, -1).T.flatten()
    second = second[:, order[:, None], order]
    left = torch.cat([pruned(part, h, n, m) for part, h in zip(matrix.chunk(len(second)), second)])
    left = left.unflatten(1, (-1, inputs)).transpose(1, 2).reshape(filters.shape)
    return layer.from_matrix(left.to(weight.dtype))


def _all_but_smallest(magnitudes: Tensor, share: float) -> Tensor:
    """False for exactly this share of the magnitudes, of any shape, rounded down, smallest first.

    Where several tie at the cut (an int8 or codebook weight has few values), those that go are spread evenly.
    """
    count = int(share * magnitudes.numel())
    if not count:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.flatten()
    cutoff = flat.kthvalue(count).values
    keep = flat >= cutoff
    ties = torch.nonzero(flat == cutoff).flatten()
    going = count - int((~keep).sum())
    keep[ties[torch.arange(going) * len(ties) // going]] = False
    return keep.reshape(magnitudes.shape)
