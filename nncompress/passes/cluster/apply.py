"""What `cluster` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, uint8

from nncompress.analysis.curvature.diagonal import fisher_diagonal
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.moments import with_ridge
from nncompress.analysis.observe.seen_inputs import UNSEEN, SeenInputs
from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.deflate import encode
from nncompress.ir.formats.packed import distinct_values, smallest
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.cluster.codebooks import Codebooks
from nncompress.passes.cluster.entropy import counts_of, entropy_bytes, times
from nncompress.passes.cluster.options import SIZES, Cluster
from nncompress.passes.cluster.positions import Positions
from nncompress.passes.cluster.round import importance_of, round_weight, smallest_books


def requires(options: Cluster, model: Model, context: Context) -> None:
    chosen = _chosen(model)
    if not chosen:
        raise UsageError(
            "cluster: no weight to cluster",
            got="no convolution, linear layer or stored matrix",
            remedy="nncompress inspect shows the layers",
        )
    for pattern in options.exclude:
        if not any(fnmatch(layer.name, pattern) for layer in chosen):
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
    by_inputs = options.compensate or options.weighting in (None, "inputs")
    seen = _inputs(model, context) if by_inputs else None
    why_not = partial(_why_not, exclude=options.exclude, codebook=options.codebook, decimals=options.decimals)
    fisher = [layer.weight.name for layer in chosen if not why_not(layer)]
    curvature = _curvature(model, fisher if options.weighting == "fisher" else [], context)
    changes = []
    for done, layer in enumerate(chosen):
        context.progress.step("clustering", done, len(chosen))
        reason = why_not(layer)
        if reason:
            changes.append(Change(layer.name, f"skipped: {reason}", applied=False))
        else:
            changes.append(_cluster(options, layer, seen, curvature.get(layer.weight.name)))
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
    return changes


def _chosen(model: Model) -> list[Layer]:
    """The first reader of every stored weight, in graph order."""
    first: dict[int, Layer] = {}
    for layer in layers(model):
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


def _why_not(layer: Layer, exclude: tuple[str, ...], codebook: int | None, decimals: int | None) -> str:
    """Why the layer is skipped; "" where it is not."""
    if any(fnmatch(layer.name, pattern) for pattern in exclude):
        return "excluded"
    if layer.weight.quantized:
        return "its weight is quantized already"
    weight = layer.weight.value()
    if not weight.dtype.is_floating_point or not weight.numel():
        return f"its weight is {weight.dtype}"
    present = distinct_values(weight)
    if codebook is not None and present is not None and len(present) <= codebook:
        return f"it has only {len(present)} values"
    if decimals is not None and bool((weight.round(decimals=decimals) == weight).all()):
        return "rounding does not change it"
    return ""


def _cluster(options: Cluster, layer: Layer, seen: SeenInputs | None, curvature: Tensor | None) -> Change:
    weight = layer.weight.value().clone()
    clustered = _rounded(options, layer, weight, seen, curvature)
    if isinstance(clustered, str):
        return Change(layer.name, f"skipped: {clustered}", applied=False)
    size = weight.numel() * weight.element_size()
    parts = (smallest(clustered) or {"dense": clustered}).values()
    stored = [part.flatten().view(uint8).numpy().tobytes() for part in parts]  # numpy has no bfloat16
    channels = _channels(options.per, layer, weight)
    packed, coded = sum(map(len, stored)), sum(min(len(data), len(encode(data))) for data in stored)
    if packed >= size and options.share_lost is not None:
        return Change(layer.name, "skipped: a file would hold it in no fewer bytes", applied=False)
    layer.weight.assign(clustered)
    numbers: dict[str, Any] = {
        "bytes_before": size,
        "bytes_after": packed,
        "bytes_coded": coded,
        "entropy_bytes": entropy_bytes(clustered, channels),
        "mse": float((clustered - weight).double().square().mean()),
    }
    values = f"{options.codebook} per channel"
    if options.per != "channel" or options.codebook is None:
        values = _what(clustered)
    what = f"{values}, {size:,} → {packed:,} bytes, coded {coded:,}"
    return Change(layer.name, f"{what}, entropy {numbers['entropy_bytes']:,.0f}", numbers)


def _rounded(
    options: Cluster, layer: Layer, weight: Tensor, seen: SeenInputs | None, curvature: Tensor | None
) -> Tensor | str:
    """The weight with allowed values only; or why it is left as it is."""
    channels = _channels(options.per, layer, weight)
    owners = channels.flatten()
    positions = Positions.of(layer) if seen is not None else None
    moments = None if seen is None or positions is None else seen.second_moments(layer)
    known = None if positions is None or moments is None else (positions, moments)
    made_up = known if known and known[1].dim() == 3 and options.compensate else None
    if options.decimals is not None:
        decimals = options.decimals
        return round_weight(weight, lambda values, at: values.double().round(decimals=decimals), made_up)
    importance = curvature
    if known is not None and options.weighting in (None, "inputs"):
        importance = importance_of(weight, known[1], known[0])
    if options.codebook is not None:
        books: Codebooks | str = Codebooks.fit(weight, channels, options.codebook, importance)
    else:
        books = smallest_books(options.share_lost or 0.0, weight, channels, importance)
    if isinstance(books, str):
        return books
    return round_weight(weight, lambda values, at: books.nearest(values, owners[at]), made_up)


def _channels(per: str, layer: Layer, weight: Tensor) -> Tensor:
    """Which codebook each weight has, int64 of its shape: all the same, or its output channel's."""
    if per == "tensor" or weight.dim() < 2:
        return torch.zeros(1, dtype=torch.int64).expand(weight.shape)
    axis = layer.roles.outputs % weight.dim()
    spread = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    return torch.arange(weight.shape[axis]).reshape(spread).expand(weight.shape)


def _what(clustered: Tensor) -> str:
    values = distinct_values(clustered)
    if values is None:
        return "more than 256 values"
    return f"{len(values)} value{'s' if len(values) > 1 else ''}"


def ensures(options: Cluster, model: Model, changes: list[Change]) -> None:
    if options.decimals is not None:
        return
    allowed = options.codebook or SIZES[-1]
    by_name = {layer.name: layer for layer in layers(model)}
    for change in changes:
        if not change.applied:
            continue
        layer = by_name[change.where]
        weight = layer.weight.value()
        most = int(counts_of(weight, _channels(options.per, layer, weight))[0].bincount().max())
        if most > allowed:
            raise VerificationError(f"{change.where} has {most} values", expected=f"{allowed}")
