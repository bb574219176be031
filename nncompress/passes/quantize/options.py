"""`quantize`: int8, so that layers run on integer kernels; or fewer bits for smaller files.

Weights become int8 with a scale per output channel, activations uint8 with a range found on calibration data
(Jacob et al. 2018; Nagel et al. 2021, "A white paper on neural network quantization"). One quantized graph
means the same in every runtime: torch computes its rounding in floats, an exported ONNX file runs its layers
on int8 kernels (`nncompress.export.check.int8_coverage` says which). The steps are in
`nncompress.passes.int8`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from nncompress.errors import UnsupportedError, UsageError, VerificationError
from nncompress.options import flag_of
from nncompress.passes.base import Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.ir import Model

SAMPLE = 64  # records whose moments are kept


@dataclass(frozen=True)
class Quantize(Pass):
    """Round weights, and with them the activations of convolutions and linear layers, to 8 bits.

    --mode static rounds activations on ranges set once, on --data; dynamic on the range of each batch, in
    matrix products alone; weights leaves the arithmetic in float; float16 is for GPUs.
    """

    name = "quantize"
    summary = "int8 weights and activations, calibrated on data"
    example = "nncompress quantize model.pt2 --data calibration.npz"
    stored_weights = False
    protects = "keep"

    mode: Literal["static", "dynamic", "weights", "float16"] = option(
        "static", help="what is rounded, and how"
    )
    calibration: Literal["mse", "min-max", "percentile", "entropy"] = option(
        "mse", help="how the range of an activation is chosen from what was seen"
    )
    percentile: float = option(
        99.99, above=50, most=100, help="with --calibration percentile: the share kept at each end"
    )
    weight_bits: int = option(
        8,
        least=2,
        most=8,
        help="bits of a weight; 7 avoids overflow on x86 without VNNI, 4 halves the file",
    )
    group_size: int | None = option(
        None,
        least=16,
        most=256,
        metavar="N",
        help="with --weight-bits 4: a scale for every N inputs of an output; float arithmetic",
    )
    asymmetric: bool = option(False, help="with --group-size: a zero point beside every scale")
    size: float | None = option(
        None,
        above=0,
        below=1,
        help="share of the bytes to keep: 8 or 4 bits a layer, by Fisher information",
    )
    max_drop: float | None = option(
        None,
        least=0,
        most=100,
        metavar="POINTS",
        help="top-1 (or --metric) to lose at most: the worst layers stay in float",
    )
    metric: str = option(
        "top1", metavar="NAME", help="what --max-drop is measured by, as in eval; points of a share"
    )
    keep: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave in float, e.g. 'head*' (repeatable)"
    )
    rounding: Literal["auto", "nearest", "adaptive"] = option(
        "auto", help="adaptive: up or down, so that the layer's output errs least; auto: so below 8 bits"
    )
    equalize: bool = option(False, help="make the channels of neighbouring layers alike in range first")
    correct_bias: bool = option(False, help="take back how far rounding moved the mean of each channel")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None:
            self._check_groups()
        elif self.asymmetric:
            raise UsageError("quantize: --asymmetric is for --group-size", remedy="add --group-size 32")
        given = [name for name in self.settings() if name != "mode"]
        if self.mode == "float16" and given:
            raise UsageError(
                f"quantize: --mode float16 goes without {flag_of(given[0])}, which is about int8"
            )
        if self.mode != "static" and "calibration" in given:
            raise UsageError(
                "quantize: --calibration sets the ranges of --mode static", got=f"--mode {self.mode}"
            )
        if self.calibration != "percentile" and "percentile" in given:
            raise UsageError(
                "quantize: --percentile is for --calibration percentile",
                got=f"--calibration {self.calibration}",
            )
        if self.size is not None and self.max_drop is not None:
            raise UsageError("quantize: give one of --size and --max-drop", got="both")
        if self.size is not None and self.weight_bits != 8:
            raise UsageError("quantize: give one of --size and --weight-bits", got="both")

    def _check_groups(self) -> None:
        if self.mode not in ("static", "weights"):
            raise UsageError("quantize: --group-size is for --mode weights", got=f"--mode {self.mode}")
        if self.group_size is not None and self.group_size & (self.group_size - 1):
            raise UsageError(
                "quantize: --group-size is a power of two, as kernels have it",
                got=str(self.group_size),
                expected="16, 32, 64, 128 or 256",
            )
        if self.weight_bits != 4:
            raise UsageError(
                "quantize: --group-size is for weights of 4 bits",
                got=f"--weight-bits {self.weight_bits}",
                remedy="add --weight-bits 4",
            )
        fitting = ("mode", "weight_bits", "group_size", "asymmetric", "keep", "rounding")
        other = next((name for name in self.settings() if name not in fitting), None)
        if other is not None:
            raise UsageError(f"quantize: --group-size goes without {flag_of(other)}")
        object.__setattr__(self, "mode", "weights")  # no integer kernel has a scale per group

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.analysis.metrics.registry import named_metric
        from nncompress.ir.edit.fold import fold_batch_norms, norm_names
        from nncompress.ir.layers.weights import layers
        from nncompress.passes.quantize.choose import choose, integer_layers
        from nncompress.passes.quantize.groups import check_groups
        from nncompress.passes.quantize.prepare import prepare

        model = model.copy()
        prepare(model)
        fold_batch_norms(model)  # those that are left have names to keep
        found = list(layers(model))
        if not found:
            raise UsageError(
                "quantize: no layer to quantize", got="no convolution, linear layer or embedding with weights"
            )
        names = [layer.name for layer in found] + norm_names(model)
        for pattern in self.keep:
            if not any(fnmatch(name, pattern) for name in names):
                raise UsageError(
                    f"quantize: --keep {pattern} names no layer",
                    expected=", ".join(layer.name for layer in found[:5]) + (", …" if found[5:] else ""),
                )
        chosen, _ = choose(model, self.keep)
        for layer in chosen:
            weight = layer.weight.value()
            dtype = str(weight.dtype).removeprefix("torch.")
            if dtype != "float32" and not (self.mode == "float16" and dtype == "float16"):
                raise UnsupportedError(
                    f"quantize works on float32, and {layer.name} is {dtype}",
                    remedy=f"quantize the float32 model, or leave that layer as it is: --keep {layer.name}",
                )
            if not weight.isfinite().all():
                raise UnsupportedError(f"quantize: the weight of {layer.name} has NaN or infinite values")
        if self.mode == "float16":
            for layer in found:
                if layer.weight.quantized:
                    raise UnsupportedError(
                        f"quantize: {layer.name} is quantized already",
                        remedy="use --mode float16 on the float model",
                    )
        elif self.mode == "static" and integer_layers(chosen, "static"):
            need_data(context, "quantize", "it sets the range of every activation")
        for needs in ("size", "max_drop", "correct_bias"):
            if chosen and getattr(self, needs) not in (None, False):
                data = need_data(context, f"quantize --{needs.replace('_', '-')}", "it is measured")
                if needs == "max_drop" and named_metric(self.metric).needs_labels:
                    data.require_labels("quantize --max-drop")
        if chosen and self.rounding == "adaptive":
            need_data(context, "quantize --rounding adaptive", "it is measured")
        if self.group_size is not None:
            check_groups(model, self.keep, self.group_size)

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.cost import cost
        from nncompress.ir.formats.qdq import round_biases
        from nncompress.passes.quantize.carry_out import carry_out
        from nncompress.passes.quantize.choose import choose, integer_layers
        from nncompress.passes.quantize.condition import condition
        from nncompress.passes.quantize.correct_bias import correct_biases
        from nncompress.passes.quantize.evidence import gather
        from nncompress.passes.quantize.groups import round_by_groups
        from nncompress.passes.quantize.prepare import prepare
        from nncompress.passes.quantize.small import too_small
        from nncompress.passes.quantize.worst import keep_worst

        prepare(model)
        if self.mode == "float16":
            return self._halve(model)
        chosen, left = choose(model, self.keep)
        if not chosen:
            return left
        original = cost(model).bytes
        condition(model, self, context)
        if self.group_size is not None:
            return round_by_groups(
                model,
                self.keep,
                self.group_size,
                asymmetric=self.asymmetric,
                nearest=self.rounding == "nearest",
                context=context,
            )
        chosen, left = choose(model, self.keep)
        evidence = gather(model, chosen, self, original, context)
        note = too_small(model, integer_layers(chosen, self.mode))
        if note is not None:
            context.notes.append(note)
        reference = model.copy() if self.correct_bias or self.max_drop is not None else model

        def rounded(each: Model, extra: tuple[str, ...]) -> list[Change]:
            chosen, left = choose(each, self.keep)
            wanted = [layer for layer in chosen if layer.name not in extra]
            changes = carry_out(each, wanted, self, evidence) if wanted else []
            each.refresh()
            if self.correct_bias and context.data is not None:
                correct_biases(each, reference, context.data, context.limit)
            round_biases(each)
            kept = [Change(layer.name, "left in float by --max-drop", applied=False) for layer in chosen]
            return changes + left + [change for change in kept if change.where in extra]

        def rounded_copy(extra: tuple[str, ...]) -> Model:
            copied = reference.copy()
            rounded(copied, extra)
            return copied

        extra: tuple[str, ...] = ()
        if self.max_drop is not None:
            extra = keep_worst(model, chosen, self, evidence, context, rounded_copy)
        changes = rounded(model, extra)
        if context.data is not None:  # what it was calibrated on is what exported files are compared on
            sample = next(iter(context.data.batches(SAMPLE, limit=SAMPLE))).inputs
            model.inputs = tuple(spec.drawn_like(x) for spec, x in zip(model.inputs, sample, strict=True))
        return changes

    def contributions(
        self, before: Model, after: Model, changes: list[Change], inputs: tuple[Tensor, ...], context: Context
    ) -> dict[str, float]:
        from nncompress.passes.quantize.condition import condition
        from nncompress.passes.quantize.prepare import prepare

        reference = before.copy()  # as it was when its layers were rounded
        prepare(reference)
        if self.mode != "float16":
            condition(reference, self, replace(context, notes=[]))
        return super().contributions(reference, after, changes, inputs, context)

    def _halve(self, model: Model) -> list[Change]:
        from nncompress.ir.edit.fold import fold_batch_norms
        from nncompress.ir.formats.precision import convert

        fold_batch_norms(model)
        return [
            Change(name, "float16", {"bytes_before": 4 * size, "bytes": 2 * size})
            for name, size in convert(model, "float16", float32_ends=True)
        ]

    def ensures(self, model: Model, changes: list[Change]) -> None:
        import torch

        from nncompress.ir.layers.weights import layers

        done = {change.where for change in changes if change.applied}
        for layer in layers(model):
            if self.mode == "float16":
                if layer.weight.value().dtype == torch.float32:
                    raise VerificationError(f"quantize: {layer.name} is not float16 after all")
            elif layer.name in done and not layer.weight.quantized:
                raise VerificationError(f"quantize: {layer.name} is not int8 after all")
