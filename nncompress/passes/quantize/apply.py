"""What `quantize` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from nncompress.analysis.cost import cost
from nncompress.analysis.distance.precision import precision_of
from nncompress.analysis.metrics.registry import named_metric
from nncompress.analysis.observe.calibration import Histogram
from nncompress.analysis.observe.enough import too_few
from nncompress.data import Dataset
from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.fold import fold_batch_norms, foldable_norms, folded_weight, norm_names
from nncompress.ir.formats.precision import convert
from nncompress.ir.formats.qdq import round_biases
from nncompress.ir.formats.samples import said_of, with_samples, without_samples
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.base import Change, Context, Pass, need_data
from nncompress.passes.quantize.by_clock import Left, slow_in_int8
from nncompress.passes.quantize.calibrate import (
    CalibrationStatistics,
    activation_histograms,
    activation_qparams,
    bits_by_fisher,
    moments_to_round_by,
    placement,
    rounded_for_one,
    target_is_symmetric,
)
from nncompress.passes.quantize.choose import choose, integer_layers
from nncompress.passes.quantize.correct_bias import correct_biases
from nncompress.passes.quantize.equalization.condition import condition
from nncompress.passes.quantize.equalization.smoothing import Hooks, smooth, spanning
from nncompress.passes.quantize.groups import check_groups, round_by_groups
from nncompress.passes.quantize.mixed_precision import within_drift, within_drop
from nncompress.passes.quantize.options import SAMPLE, Quantize
from nncompress.passes.quantize.prepare import prepare
from nncompress.passes.quantize.round import round_layers
from nncompress.passes.quantize.small import too_small


def requires(options: Quantize, model: Model, context: Context) -> None:
    model = model.copy()
    prepare(model, include_head=options.include_head)
    found = list(layers(model))
    folded = {layer.name: norm for layer, norm in foldable_norms(model)}
    if not found:
        raise UsageError(
            "quantize: no layer to quantize", got="no convolution, linear layer or embedding with weights"
        )
    names = [layer.name for layer in found] + norm_names(model, folded.values())
    for pattern in options.keep:
        if not any(fnmatch(name, pattern) for name in names):
            raise UsageError(
                f"quantize: --keep {pattern} names no layer",
                expected=", ".join(layer.name for layer in found[:5]) + (", …" if found[5:] else ""),
            )
    chosen, _ = choose(model, options.keep)
    _refuse_other_dtypes(chosen, "float16" if options.mode == "float16" else "float32")
    for layer in chosen:
        norm = folded.get(layer.name)
        finite = layer.weight.finite and (norm is None or folded_weight(model, layer, norm).isfinite().all())
        if not finite:
            raise UnsupportedError(f"quantize: the weight of {layer.name} has NaN or infinite values")
    if options.mode == "float16":
        for layer in found:
            if layer.weight.quantized:
                raise UnsupportedError(
                    f"quantize: {layer.name} is quantized already",
                    remedy="use --mode float16 on the float model",
                )
    elif options.mode == "static" and integer_layers(chosen, "static"):
        need_data(context, "quantize", "it sets the range of every activation")
    for needs in ("size", "max_drop", "correct_bias"):
        if chosen and getattr(options, needs) not in (None, False):
            data = need_data(context, f"quantize --{needs.replace('_', '-')}", "it is measured")
            if needs == "max_drop" and named_metric(options.metric).needs_labels:
                data.require_labels("quantize --max-drop")
    if chosen and options.rounding == "adaptive":
        need_data(context, "quantize --rounding adaptive", "it is measured")
    if options.group_size is not None:
        check_groups(model, options.keep, options.group_size)


def _refuse_other_dtypes(chosen: Sequence[Layer], taken: str) -> None:
    dtypes = {layer.name: dtype_name(layer.weight.value().dtype) for layer in chosen}
    others = [name for name, dtype in dtypes.items() if dtype not in ("float32", taken)]
    if others:
        keep = " ".join(f"--keep {shlex.quote(name)}" for name in others)
        raise UnsupportedError(
            f"quantize works on float32, and {others[0]} is {dtypes[others[0]]}",
            got=f"{len(others)} of {len(chosen)} layers of other dtypes",
            remedy="quantize the float32 model (module.float() before it is saved)"
            + (f", or leave them as they are: {keep}" if len(others) < len(chosen) else ""),
        )


def apply(options: Quantize, model: Model, context: Context) -> list[Change]:
    changes = _quantized(options, model, context)
    if context.data is not None and precision_of(model) in ("int8", "int4"):
        _keep_samples(model, context, options.no_samples)
    return changes


def _keep_samples(model: Model, context: Context, none: bool) -> None:
    """Of the data, what exported files are compared on: its moments, and samples where they may be kept."""
    assert context.data is not None
    given = next(iter(context.data.batches(SAMPLE, limit=SAMPLE))).inputs
    specs = [spec.drawn_like(x) for spec, x in zip(model.inputs, given, strict=True)]
    model.inputs = without_samples(specs) if none else with_samples(specs, given)
    said = said_of(model.inputs)
    if said is not None:
        context.notes.append(said)


def _quantized(options: Quantize, model: Model, context: Context) -> list[Change]:
    prepare(model, include_head=options.include_head)
    if options.mode == "float16":
        return _halve(model)
    chosen, left = choose(model, options.keep)
    if not chosen:
        return left
    original = cost(model).bytes
    seen = _condition(options, model, context)
    if options.group_size is not None:
        return round_by_groups(
            model,
            options.keep,
            options.group_size,
            asymmetric=options.asymmetric,
            nearest=options.rounding == "nearest",
            context=context,
        )
    chosen, left = choose(model, options.keep)
    statistics = _calibrate(options, model, chosen, original, seen, context)
    integer = integer_layers(chosen, options.mode)
    timed = context.target is not None and not options.every_layer
    note = None if timed else too_small(model, integer)
    if note is not None:
        context.notes.append(note)
    bound = options.drift_bound
    compared = options.correct_bias or options.max_drop is not None or bound is not None
    unbiased = context.data if options.correct_bias else None
    reference = model.copy() if compared else model
    rounding = _Rounding(options.mode, options.keep, statistics, reference, unbiased, context.limit)
    for_one = rounded_for_one(model, integer, context) if options.mode == "static" else None
    slow = slow_in_int8(model, integer, options.mode, rounding.copy, context) if timed else {}
    keep = (*options.keep, *slow)
    reason = "left in float by " + ("--max-drop" if options.max_drop is not None else "--max-drift")

    def without(names: Iterable[str]) -> Left:
        return {**dict.fromkeys(names, reason), **slow}

    def copy_without(names: tuple[str, ...]) -> Model:
        return rounding.copy(without(names))

    worst: tuple[str, ...] = ()
    if options.max_drop is not None:
        searched, _ = choose(model, keep)
        drop = options.max_drop, options.metric, copy_without
        worst = within_drop(model, searched, options.mode, statistics, context, *drop)
    changes = rounding.round(model, without(worst))
    if bound is not None:
        worst = within_drift(
            rounding.reference, model, keep, options.mode, statistics, context, bound, copy_without
        )
        if worst:
            model.graph_module = rounding.reference.copy().graph_module
            changes = rounding.round(model, without(worst))
    if for_one is not None and any(change.applied for change in changes):
        context.notes.append(for_one)
    context.warn(too_few("quantize", statistics.rows()))
    return changes


@dataclass(frozen=True)
class _Rounding:
    """Rounds a model and copies of it by the same statistics.

    Attributes:
        keep: patterns of layers that stay in float.
        reference: in floats.
        unbiased: on these samples, `limit` of them, biases make up for the mean error; None leaves them.
    """

    mode: str
    keep: tuple[str, ...]
    statistics: CalibrationStatistics
    reference: Model
    unbiased: Dataset | None
    limit: int | None

    def round(self, model: Model, left: Left) -> list[Change]:
        """In place, without the layers that are `left`."""
        chosen, changes = choose(model, self.keep)
        wanted = [layer for layer in chosen if layer.name not in left]
        kept = [Change(layer.name, left[layer.name], applied=False) for layer in chosen if layer.name in left]
        rounded = round_layers(model, wanted, self.mode, self.statistics) if wanted else []
        model.refresh()
        if self.unbiased is not None:
            correct_biases(model, self.reference, self.unbiased, self.limit)
        round_biases(model)
        return rounded + changes + kept

    def copy(self, left: Left) -> Model:
        """The reference, rounded."""
        copied = self.reference.copy()
        self.round(copied, left)
        return copied


def _condition(options: Quantize, model: Model, context: Context) -> dict[fx.Node, Histogram] | None:
    """The same function with other scales per channel, in place.

    Returns: the histograms of what will be rounded, where the data was run for them and they still hold.
    """
    condition(model, options.mode, options.keep, options.equalize, context)
    if not options.smooth or options.mode not in ("static", "dynamic"):
        return None
    static = options.mode == "static"
    method = options.calibration if static else "min-max"
    symmetric = static and (options.symmetric_activations or target_is_symmetric(context))
    integer = integer_layers(choose(model, options.keep)[0], options.mode)
    ranges = spanning(method, options.percentile, symmetric)
    seen: dict[fx.Node, Histogram] = {}

    def run(hooks: Hooks) -> None:
        seen.update(activation_histograms(model, integer, context, hooks))

    smoothed = smooth(model, integer, ranges, options.weight_bits, context, run if static else None)
    if smoothed is not None:
        context.notes.append(f"quantize: {smoothed}")
    return seen if seen and smoothed is None else None


def _calibrate(
    options: Quantize,
    model: Model,
    chosen: list[Layer],
    original: int,
    seen: dict[fx.Node, Histogram] | None,
    context: Context,
) -> CalibrationStatistics:
    """Run the data through the model as often as the options need: not at all, or up to three times.

    Args:
        original: bytes of the model that `--size` is a share of.
        seen: from `activation_histograms`, where it was called already.
    """
    found = CalibrationStatistics(bits={layer.weight.name: options.weight_bits for layer in chosen})
    if options.mode == "static":
        integer = integer_layers(chosen, "static")
        found.placement = placement(context)
        ranges = options.calibration, options.percentile, options.symmetric_activations
        seen = activation_histograms(model, integer, context) if seen is None else seen
        found.qparams = activation_qparams(found.plan(model, integer), seen, *ranges, context)
    if options.size is not None:
        found.bits = bits_by_fisher(model, chosen, options.size, original, context)
    if options.rounding == "adaptive":
        found.moments = moments_to_round_by(model, chosen, context)
    elif options.rounding == "auto":  # nearest is as good at 8 bits
        few = [layer for layer in chosen if found.bits[layer.weight.name] < 8]
        found.moments = moments_to_round_by(model, few, context)
    return found


def contributions(
    options: Quantize,
    before: Model,
    after: Model,
    changes: list[Change],
    inputs: tuple[Tensor, ...],
    context: Context,
) -> dict[str, float]:
    reference = before.copy()  # as it was when its layers were rounded
    prepare(reference, include_head=options.include_head)
    if options.mode != "float16":
        _condition(options, reference, replace(context, notes=[]))
    return Pass.contributions(options, reference, after, changes, inputs, context)


def _halve(model: Model) -> list[Change]:
    fold_batch_norms(model)
    return [
        Change(name, "float16", {"bytes_before": 4 * size, "bytes": 2 * size})
        for name, size in convert(model, "float16", float32_ends=True)
    ]


def ensures(options: Quantize, model: Model, changes: list[Change]) -> None:
    done = {change.where for change in changes if change.applied}
    for layer in layers(model):
        if options.mode == "float16":
            if layer.weight.value().dtype == torch.float32:
                raise VerificationError(f"quantize: {layer.name} is not float16 after all")
        elif layer.name in done and not layer.weight.quantized:
            raise VerificationError(f"quantize: {layer.name} is not int8 after all")
