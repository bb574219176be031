"""What `cluster` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from typing import Any

from torch import Tensor, uint8

from nncompress.analysis.curvature.diagonal import fisher_diagonal
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.moments import with_ridge
from nncompress.analysis.observe.seen_inputs import UNSEEN, SeenInputs
from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.deflate import encode
from nncompress.ir.formats.packed import smallest
from nncompress.ir.graph.ops import RECURRENT
from nncompress.ir.layers.other_products import stacks_left
from nncompress.ir.layers.recurrent import excluded, with_recurrent_matrices
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.cluster.entropy import counts_of, entropy_bytes, times
from nncompress.passes.cluster.options import Cluster
from nncompress.passes.cluster.positions import Positions
from nncompress.passes.cluster.round import importance_of
from nncompress.passes.cluster.rule import ValueRule


def requires(options: Cluster, model: Model, context: Context) -> None:
    chosen = _chosen(model)
    if not chosen:
        raise UsageError(
            "cluster: no weight to cluster",
            got="no convolution, linear layer or stored matrix",
            remedy="nncompress inspect shows the layers",
        )
    for pattern in options.exclude:
        if not any(excluded(layer, [pattern]) for layer in chosen):
            raise UsageError(
                f"cluster: --exclude {pattern} names no layer",
                expected=", ".join(layer.name for layer in chosen[:5]) + (", …" if chosen[5:] else ""),
            )
    for layer in chosen:
        if not layer.weight.finite:
            raise ModelFileError(f"cluster: the weight of {layer.name} has NaN or infinite values")
    if options.weighting in ("inputs", "fisher"):
        need_data(context, "cluster", f"--weighting {options.weighting} is measured on it")


def apply(options: Cluster, model: Model, context: Context) -> list[Change]:
    chosen = _chosen(model)
    rule = ValueRule(options.decimals, options.codebook, options.share_lost, options.per == "channel")
    by_inputs = options.decimals is None and options.weighting in (None, "inputs")
    seen = _inputs(model, context) if options.compensate or by_inputs else None
    reasons = {layer.name: _why_not(layer, options.exclude, rule) for layer in chosen}
    fisher = [layer.weight.name for layer in chosen if not reasons[layer.name]]
    curvature = _curvature(model, fisher if options.weighting == "fisher" else [], context)
    changes = []
    for done, layer in enumerate(chosen):
        context.progress.step("clustering", done, len(chosen))
        if reasons[layer.name]:
            changes.append(Change(layer.name, f"skipped: {reasons[layer.name]}", applied=False))
            continue
        known = None if seen is None else _moments(layer, seen)
        importance = curvature.get(layer.weight.name)
        if known is not None and by_inputs:
            importance = importance_of(layer.weight.value(), known[1], known[0])
        made_up = known if known is not None and known[1].dim() == 3 and options.compensate else None
        changes.append(_cluster(layer, rule, importance, made_up))
    context.progress.step("clustering", len(chosen), len(chosen))
    if seen is not None and options.compensate:
        context.warn(too_few(options.name, seen.rows))
    if applied := [change.numbers for change in changes if change.applied]:
        before, packed, coded, least = (
            sum(numbers[key] for numbers in applied)
            for key in ("bytes_before", "bytes_after", "bytes_coded", "entropy_bytes")
        )
        context.notes.append(
            f"files hold these weights in {packed:,} bytes{times(packed, least)} instead of {before:,}, "
            f"with --storage entropy in {coded:,}{times(coded, least)}; "
            f"entropy of the indices: {least:,.0f}"
        )
        context.notes.append(
            "that saves the disk: runtimes make floats of them when they open the file, where quantize saves "
            "memory and time, too"
        )
    context.notes.extend(stacks_left(model))
    return changes


def _chosen(model: Model) -> list[Layer]:
    """The first reader of every stored weight, in graph order."""
    first: dict[int, Layer] = {}
    for layer in with_recurrent_matrices(model):
        first.setdefault(id(model.tensor(layer.weight.name)), layer)
    return list(first.values())


def _inputs(model: Model, context: Context) -> SeenInputs | None:
    if context.data is None:
        return None
    batches = context.data.input_batches(context.batch_size, context.limit)
    return SeenInputs(model, batches, context.seed)


def _curvature(model: Model, weights: list[str], context: Context) -> dict[str, Tensor]:
    if not weights:
        return {}
    found = fisher_diagonal(
        model,
        weights,
        need_data(context, "cluster", "--weighting fisher is measured on it"),
        limit=context.limit,
        seed=context.seed,
        progress=context.progress,
    )
    return {name: with_ridge(value.flatten(), UNSEEN).reshape(value.shape) for name, value in found.items()}


def _moments(layer: Layer, seen: SeenInputs) -> tuple[Positions, Tensor] | None:
    """Where the weight stands in its layer's matrices, and the second moments of what they multiply."""
    positions = None if layer.kind in RECURRENT else Positions.of(layer)
    moments = None if positions is None else seen.second_moments(layer)
    return None if positions is None or moments is None else (positions, moments)


def _why_not(layer: Layer, exclude: tuple[str, ...], rule: ValueRule) -> str:
    """Why the layer is skipped; "" where it is not."""
    if excluded(layer, exclude):
        return "excluded"
    if layer.weight.quantized:
        return "its weight is quantized already"
    weight = layer.weight.value()
    if not weight.dtype.is_floating_point or not weight.numel():
        return f"its weight is {weight.dtype}"
    return rule.why_not(weight)


def _cluster(
    layer: Layer, rule: ValueRule, importance: Tensor | None, made_up: tuple[Positions, Tensor] | None
) -> Change:
    weight = layer.weight.value().clone()
    channels = rule.channels(layer, weight)
    clustered = rule.rounded(weight, channels, importance, made_up)
    if isinstance(clustered, str):
        return Change(layer.name, f"skipped: {clustered}", applied=False)
    size = weight.numel() * weight.element_size()
    parts = (smallest(clustered) or {"dense": clustered}).values()
    stored = [part.flatten().view(uint8).numpy().tobytes() for part in parts]  # numpy has no bfloat16
    packed, coded = sum(map(len, stored)), sum(min(len(data), len(encode(data))) for data in stored)
    if packed >= size and rule.share_lost is not None:
        return Change(layer.name, "skipped: a file would hold it in no fewer bytes", applied=False)
    layer.weight.assign(clustered)
    numbers: dict[str, Any] = {
        "bytes_before": size,
        "bytes_after": packed,
        "bytes_coded": coded,
        "entropy_bytes": entropy_bytes(clustered, channels),
        "mse": float((clustered - weight).double().square().mean()),
    }
    what = f"{rule.described(clustered)}, {size:,} → {packed:,} bytes, coded {coded:,}"
    return Change(layer.name, f"{what}, entropy {numbers['entropy_bytes']:,.0f}", numbers)


def ensures(options: Cluster, model: Model, changes: list[Change]) -> None:
    if options.decimals is not None:
        return
    rule = ValueRule(options.decimals, options.codebook, options.share_lost, options.per == "channel")
    by_name = {layer.name: layer for layer in with_recurrent_matrices(model)}
    for change in changes:
        if not change.applied:
            continue
        layer = by_name[change.where]
        weight = layer.weight.value()
        most = int(counts_of(weight, rule.channels(layer, weight))[0].bincount().max())
        if most > rule.most:
            raise VerificationError(f"{change.where} has {most} values", expected=f"{rule.most}")
