"""What `quantize` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import torch
from torch import Tensor, fx

from nncompress.analysis.cost import cost
from nncompress.analysis.distance.precision import precision_of
from nncompress.analysis.metrics.fit import require_labels
from nncompress.analysis.metrics.registry import named_metric
from nncompress.analysis.observe.calibration import Histogram, RangeRule
from nncompress.analysis.observe.enough import too_few
from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.fold import fold_batch_norms, foldable_norms, folded_weight, norm_names
from nncompress.ir.factors import products
from nncompress.ir.formats.precision import MAKE_FLOAT32, computed_in_float32, convert
from nncompress.ir.formats.qdq import is_dequantized
from nncompress.ir.formats.samples import said_of, with_samples, without_samples
from nncompress.ir.graph.places import layer_name, place
from nncompress.ir.layers.other_products import AS_LAYER, other_products, stacks_left
from nncompress.ir.layers.recurrent import recurrent_layers
from nncompress.ir.layers.weights import Layer, Weight, layers
from nncompress.passes.base import Change, Context, Pass, need_data
from nncompress.passes.invariance.rotation.turn import SPREAD
from nncompress.passes.invariance.rotation.whichever import turned_alike, with_rotation
from nncompress.passes.quantize.by_clock import slow_in_int8
from nncompress.passes.quantize.calibrate import (
    CalibrationStatistics,
    activation_histograms,
    activation_qparams,
    bits_by_fisher,
    factor_qparams,
    for_target,
    moments_to_round_by,
    placement,
    rough_products,
    rounded_for_one,
)
from nncompress.passes.quantize.choose import choose, choose_products, integer_layers
from nncompress.passes.quantize.equalization.condition import condition
from nncompress.passes.quantize.equalization.smoothing import Hooks, smooth
from nncompress.passes.quantize.groups import check_groups, round_by_groups
from nncompress.passes.quantize.mixed_precision import within_drift, within_drop
from nncompress.passes.quantize.options import SAMPLE, Quantize
from nncompress.passes.quantize.prepare import prepare
from nncompress.passes.quantize.recurrent import (
    bytes_saved,
    choose_recurrent,
    for_the_kernel,
    one_layer_each,
    weights_of,
    without_groups,
)
from nncompress.passes.quantize.round import Left, Rounding
from nncompress.passes.quantize.small import too_small


def requires(options: Quantize, model: Model, context: Context) -> None:
    model = model.copy(weights=False)  # what `prepare` computes it stores anew
    prepare(model, include_head=options.include_head)
    found, recurrent = list(layers(model)), list(recurrent_layers(model))
    folded = {layer.name: norm for layer, norm in foldable_norms(model)}
    if not found and not recurrent:
        others = other_products(model)
        raise UsageError(
            "quantize: no layer to quantize",
            got="no convolution, linear layer, embedding or recurrent layer with weights"
            + (f"; {others}" if others else ""),
            remedy=AS_LAYER if others else "",
        )
    named = [layer.name for layer in found] + [name for layer in recurrent for name in layer.names]
    multiplied, _ = choose_products(model, (), options.mode, context.target)
    names = named + norm_names(model, folded.values()) + [product.name for product in multiplied]
    for pattern in options.keep:
        if not any(fnmatch(name, pattern) for name in names):
            raise UsageError(
                f"quantize: --keep {pattern} names no layer",
                expected=", ".join(named[:5]) + (", …" if named[5:] else ""),
            )
    chosen, _ = choose(model, options.keep)
    weights = weights_of(chosen, choose_recurrent(model, options.keep)[0])
    _refuse_other_dtypes(weights, "float16" if options.mode == "float16" else "float32")
    for weight in weights:
        if not weight.finite:
            raise UnsupportedError(
                f"quantize: the weight of {layer_name(weight.name)} has NaN or infinite values"
            )
    for layer in chosen:
        norm = folded.get(layer.name)
        if norm is not None and not folded_weight(model, layer, norm).isfinite().all():
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
        if weights and getattr(options, needs) not in (None, False):
            data = need_data(context, f"quantize --{needs.replace('_', '-')}", "it is measured")
            if needs == "max_drop":
                require_labels(named_metric(options.metric), data)
    if chosen and options.rounding == "adaptive":
        need_data(context, "quantize --rounding adaptive", "it is measured")
    if options.group_size is not None:
        check_groups(model, options.keep, options.group_size)


def _refuse_other_dtypes(weights: Sequence[Weight], taken: str) -> None:
    dtypes = {layer_name(weight.name): dtype_name(weight.value().dtype) for weight in weights}
    others = [name for name, dtype in dtypes.items() if dtype not in ("float32", taken)]
    if others:
        keep = " ".join(f"--keep {shlex.quote(name)}" for name in others)
        raise UnsupportedError(
            f"quantize works on float32, and {others[0]} is {dtypes[others[0]]}",
            got=f"{len(others)} of {len(dtypes)} layers of other dtypes",
            remedy=MAKE_FLOAT32
            + (f", or leave them as they are: {keep}" if len(others) < len(dtypes) else ""),
        )


def apply(options: Quantize, model: Model, context: Context) -> list[Change]:
    if options.rotate:
        work = partial(apply, replace(options, rotate=False))
        return with_rotation(options.name, SPREAD, model, context, work)
    prepare(model, include_head=options.include_head)
    if options.mode == "float16":
        return _halve(model)
    context.notes.extend(stacks_left(model))
    integers = for_the_kernel(options.mode, context.target, options.weight_bits)
    if integers:
        one_layer_each(model, options.keep)
    chosen, changes = choose(model, options.keep)
    recurrent, skipped = choose_recurrent(model, options.keep)
    changes += skipped
    if options.group_size is not None:
        changes += without_groups(recurrent)
    if chosen or recurrent:
        bytes_before = cost(model).bytes
        condition(model, options.mode, options.keep, options.equalize, context)
    if chosen and options.group_size is not None:
        changes = (
            skipped
            + without_groups(recurrent)
            + round_by_groups(
                model,
                options.keep,
                options.group_size,
                asymmetric=options.asymmetric,
                nearest=options.rounding == "nearest",
                context=context,
            )
        )
    elif options.group_size is None and (chosen or recurrent):
        ranges = RangeRule(options.calibration, options.percentile, options.symmetric_activations)
        seen = None
        if options.smooth:
            seen = _smooth(model, options.mode, options.keep, ranges, options.weight_bits, context)
        chosen, _ = choose(model, options.keep)  # anew: nodes were replaced
        integer = integer_layers(chosen, options.mode)
        multiplied, _ = choose_products(model, options.keep, options.mode, context.target)
        statistics = CalibrationStatistics(
            bits=dict.fromkeys((w.name for w in weights_of(chosen, recurrent)), options.weight_bits),
            placement=placement(context),
        )
        rough: Left = {}
        if options.mode == "static":
            if seen is None:
                seen = activation_histograms(model, integer, multiplied, context)
            plan = statistics.plan(model, integer, multiplied)
            statistics.qparams = activation_qparams(plan, seen, ranges, context)
            statistics.factors = factor_qparams(plan, seen, ranges)
            rough = rough_products(model, multiplied, statistics.factors, context)
        if options.size is not None:
            statistics.bits = bits_by_fisher(
                model, chosen, options.size, bytes_before, bytes_saved(recurrent), context
            )
        adaptive = _rounded_adaptively(chosen, options.rounding, statistics.bits)
        statistics.moments = moments_to_round_by(model, adaptive, context)
        timed = context.target is not None and not options.every_layer
        note = None if timed else too_small(model, integer)
        if note is not None:
            context.notes.append(note)
        compared = options.correct_bias or options.max_drop is not None or options.drift_bound is not None
        rounding = Rounding(
            options.mode,
            options.keep,
            statistics,
            reference=model.copy() if compared else model,
            unbiased=context.data if options.correct_bias else None,
            limit=context.limit,
            integers=integers,
            target=context.target,
            left=rough,
        )
        for_one = rounded_for_one(model, integer, context) if options.mode == "static" else None
        if timed:
            copied = partial(_copy_with_samples, rounding, context)
            whole = [product for product in multiplied if product.name not in rough]
            slow = slow_in_int8(model, integer, whole, options.mode, copied, context)
            rounding = replace(rounding, left={**rough, **slow})
        drop = None if options.max_drop is None else (options.max_drop, options.metric)
        changes = _round_within(model, rounding, drop, options.drift_bound, context)
        if for_one is not None and any(change.applied for change in changes):
            context.notes.append(for_one)
        context.warn(too_few("quantize", statistics.rows()))
    if context.data is not None and precision_of(model) in ("int8", "int4"):
        _keep_samples(model, context, options.no_samples)
    return changes


def _copy_with_samples(rounding: Rounding, context: Context, left: Left) -> Model:
    """What is timed is exported, and checked as what will be kept is: noise reaches values that the ranges of
    the data do not, and refuses right files."""
    small = rounding.copy(left)
    _keep_samples(small, replace(context, notes=[]), none=False)
    return small


def _keep_samples(model: Model, context: Context, none: bool) -> None:
    """Of the data, what exported files are compared on: its moments, and samples where they may be kept."""
    assert context.data is not None
    given = next(iter(context.data.batches(SAMPLE, limit=SAMPLE))).inputs
    specs = [spec.drawn_like(x) for spec, x in zip(model.inputs, given, strict=True)]
    model.inputs = without_samples(specs) if none else with_samples(specs, given)
    said = said_of(model.inputs)
    if said is not None:
        context.notes.append(said)


def _smooth(
    model: Model, mode: str, keep: tuple[str, ...], ranges: RangeRule, bits: int, context: Context
) -> dict[fx.Node, Histogram] | None:
    """The same function with other scales per channel before matrix products, in place.

    Returns: the histograms of what will be rounded, where the data was run for them and they still hold.
    """
    integer = integer_layers(choose(model, keep)[0], mode)
    multiplied, _ = choose_products(model, keep, mode, context.target)
    seen: dict[fx.Node, Histogram] = {}

    def run(hooks: Hooks) -> None:
        seen.update(activation_histograms(model, integer, multiplied, context, hooks))

    if mode == "static":
        smoothed = smooth(model, integer, for_target(ranges, context), bits, context, run)
    else:
        smoothed = smooth(model, integer, RangeRule("min-max"), bits, context)
    if smoothed is not None:
        context.notes.append(f"quantize: {smoothed}")
    return seen if seen and smoothed is None else None


def _rounded_adaptively(chosen: list[Layer], rounding: str, bits: Mapping[str, int]) -> list[Layer]:
    """The layers whose weights are rounded for what they multiply."""
    if rounding == "auto":  # nearest is as good at 8 bits
        return [layer for layer in chosen if bits[layer.weight.name] < 8]
    return chosen if rounding == "adaptive" else []


def _round_within(
    model: Model, rounding: Rounding, drop: tuple[float, str] | None, drift: float | None, context: Context
) -> list[Change]:
    """Round it, in place, without the layers that cost more than may be lost.

    Args:
        drop: of this metric, by name, as much may be lost.
        drift: outputs may move as far.
    """
    changes = rounding.round(model, {} if drop is None else within_drop(rounding, *drop, context))
    left = {} if drift is None else within_drift(rounding, model, drift, context)
    if left:
        model.graph_module = rounding.reference.copy().graph_module
        changes = rounding.round(model, left)
    return changes


def contributions(
    options: Quantize,
    before: Model,
    after: Model,
    changes: list[Change],
    inputs: tuple[Tensor, ...],
    context: Context,
) -> dict[str, float]:
    reference = before.copy()  # as it was when its layers were rounded
    if options.rotate:
        turned_alike(reference, changes, SPREAD, context)
    prepare(reference, include_head=options.include_head)
    if for_the_kernel(options.mode, context.target, options.weight_bits):
        one_layer_each(reference, options.keep)
    if options.mode != "float16":
        silent = replace(context, notes=[])
        condition(reference, options.mode, options.keep, options.equalize, silent)
        if options.smooth:
            ranges = RangeRule(options.calibration, options.percentile, options.symmetric_activations)
            _smooth(reference, options.mode, options.keep, ranges, options.weight_bits, silent)
    return Pass.contributions(options, reference, after, changes, inputs, context)


def _halve(model: Model) -> list[Change]:
    fold_batch_norms(model)
    halves = [
        Change(name, "float16", {"bytes_before": 4 * size, "bytes": 2 * size})
        for name, size in convert(model, "float16", float32_ends=True)
    ]
    what = "left in float32: torch has no kernel of float16"
    return halves + [Change(place(node), what, applied=False) for node in computed_in_float32(model)]


def ensures(options: Quantize, model: Model, changes: list[Change]) -> None:
    done = {change.where for change in changes if change.applied}
    for layer in layers(model):
        if options.mode == "float16":
            if layer.weight.value().dtype == torch.float32:
                raise VerificationError(f"quantize: {layer.name} is not float16 after all")
        elif layer.name in done and not layer.weight.quantized:
            raise VerificationError(f"quantize: {layer.name} is not quantized after all")
    for product in products(model) if options.mode == "static" else ():
        if product.name in done and not all(map(is_dequantized, product.factors)):
            raise VerificationError(f"quantize: what {product.name} multiplies is not quantized after all")
    for recurrent in recurrent_layers(model) if options.mode != "float16" else ():
        if recurrent.name in done and not all(weight.quantized for weight in recurrent.matrices):
            raise VerificationError(f"quantize: {recurrent.name} is not quantized after all")
