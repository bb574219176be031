"""`quantize`: static int8, so that layers run on integer kernels.

Weights become int8 with a scale per output channel, activations uint8 with a range found on calibration data
(Jacob et al. 2018; Nagel et al. 2021, "A white paper on neural network quantization"). One quantized graph
means the same in every runtime: torch computes its rounding in floats, an exported ONNX file runs its layers
on int8 kernels (`nncompress.export.int8_coverage` says which).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal

from nncompress.errors import UnsupportedError, UsageError, VerificationError
from nncompress.passes.base import Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.ir import Model
    from nncompress.ir.qdq import Affine
    from nncompress.ir.weights import Layer

# Weights alone are int8: ONNX Runtime has no int8 kernel for these, so rounding their activations only costs.
WEIGHTS_ONLY = ("embedding", "conv_transpose", "convolution_transposed")


@dataclass(frozen=True)
class Quantize(Pass):
    """Round the weights and activations of convolutions and linear layers to 8 bits."""

    name = "quantize"
    summary = "int8 weights and activations, calibrated on data"
    example = "nncompress quantize model.pt2 --data calibration.npz"

    calibration: Literal["mse", "min-max", "percentile", "entropy"] = option(
        "mse", help="how the range of an activation is chosen from what was seen"
    )
    percentile: float = option(
        99.99, above=50, most=100, help="with --calibration percentile: the share kept at each end"
    )
    weight_bits: int = option(
        8, least=2, most=8, help="bits a weight uses; 7 avoids overflow on x86 without VNNI"
    )
    keep: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave in float, e.g. 'head*' (repeatable)"
    )

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.ir.weights import layers

        found = list(layers(model))
        if not found:
            raise UsageError(
                "quantize: no layer to quantize", got="no convolution, linear layer or embedding with weights"
            )
        for pattern in self.keep:
            if not any(fnmatch(layer.name, pattern) for layer in found):
                raise UsageError(
                    f"quantize: --keep {pattern} names no layer",
                    expected=", ".join(layer.name for layer in found[:5]) + (", …" if found[5:] else ""),
                )
        chosen, _ = self._chosen(model)
        for layer in chosen:
            weight = layer.weight.value()
            dtype = str(weight.dtype).removeprefix("torch.")
            if dtype != "float32":
                raise UnsupportedError(
                    f"quantize works on float32, and {layer.name} is {dtype}",
                    remedy="quantize the float32 model",
                )
            if not weight.isfinite().all():
                raise UnsupportedError(f"quantize: the weight of {layer.name} has NaN or infinite values")
        if _on_integer_kernels(chosen):
            need_data(context, "quantize", "it sets the range of every activation")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.calibration import choose_range, observe
        from nncompress.analysis.int8_plan import plan_activations
        from nncompress.ir.fold import fold_batch_norms
        from nncompress.ir.qdq import Affine, insert_pair

        chosen, left = self._chosen(model)
        if not chosen:
            return left
        fold_batch_norms(model)
        chosen, left = self._chosen(model)
        integer = _on_integer_kernels(chosen)
        plan = plan_activations(model, integer)
        grids: dict[Any, Affine] = {}
        if plan.points:
            seen = observe(
                model,
                [node for node in plan.points if node not in plan.same_grid],
                need_data(context, "quantize", "it sets the range of every activation"),
                limit=context.limit,
                batch_size=context.batch_size,
                progress=context.progress,
            )
            for done, (node, histogram) in enumerate(seen.items()):
                context.progress.step("choosing ranges", done, len(seen))
                grids[node] = Affine.covering(*choose_range(histogram, self.calibration, self.percentile))
        for node, source in plan.same_grid.items():
            grids[node] = grids[source] if source in grids else Affine.of(source)
        changes = self._store_weights(model, chosen, grids)
        for node in plan.points:
            insert_pair(node, grids[node], plan.readers[node])
        model.refresh()
        return changes + left

    def ensures(self, model: Model, changes: list[Change]) -> None:
        from nncompress.ir.weights import layers

        done = {change.where for change in changes if change.applied}
        for layer in layers(model):
            if layer.name in done and not layer.weight.quantized:
                raise VerificationError(f"quantize: {layer.name} is not int8 after all")

    def _chosen(self, model: Model) -> tuple[list[Layer], list[Change]]:
        """Layers to quantize, and a record of each that is left alone with the reason."""
        from nncompress.ir.weights import layers

        found = list(layers(model))
        kept = {
            layer.weight.name for layer in found if any(fnmatch(layer.name, pattern) for pattern in self.keep)
        }
        chosen, left = [], []
        for layer in found:
            if layer.weight.quantized:
                left.append(Change(layer.name, "left: already int8", applied=False))
            elif layer.weight.name in kept:
                left.append(Change(layer.name, "left in float by --keep", applied=False))
            else:
                chosen.append(layer)
        return chosen, left

    def _store_weights(self, model: Model, chosen: list[Layer], grids: dict[Any, Affine]) -> list[Change]:
        """One int8 copy of every weight, however many layers share it."""
        from nncompress.ir.qdq import round_weight, store_int8

        changes: list[Change] = []
        integer = {layer.node for layer in _on_integer_kernels(chosen)}
        for name, sharing in _by_weight(chosen).items():
            axis = _scale_axis(sharing)
            weight = sharing[0].weight.value()
            least = [_least_scale(layer, axis, grids) for layer in sharing]
            stored, scales = round_weight(weight, axis, self.weight_bits, sum(least))
            shape = [-1 if d == axis else 1 for d in range(weight.dim())]
            noise = float((weight - stored * scales.reshape(shape)).double().square().sum())
            power = float(weight.double().square().sum())
            numbers: dict[str, Any] = {
                "bytes_before": 4 * weight.numel(),
                "bytes": stored.numel() + 4 * scales.numel(),
                "weight_sqnr_db": round(10 * math.log10(power / noise), 2) if noise and power else None,
            }
            for layer in sharing:
                what = (
                    "int8 weights and activations"
                    if layer.node in integer
                    else "int8 weights, float arithmetic"
                )
                if layer is not sharing[0]:
                    what += f", shared with {sharing[0].name}"
                changes.append(Change(layer.name, what, numbers if layer is sharing[0] else {}))
            store_int8(model, name, stored, scales, axis, self.weight_bits)
        return changes


def _scale_axis(sharing: list[Layer]) -> int:
    """The dim of the weight that has a scale per index: the outputs, or the rows of a table."""
    if any(layer.kind == "embedding" for layer in sharing):
        return 0
    return sharing[0].roles.outputs % sharing[0].weight.value().dim()


def _least_scale(layer: Layer, axis: int, grids: dict[Any, Affine]) -> Tensor | float:
    """Weight scales from which on the layer's bias fits 32 bits."""
    from nncompress.ir.qdq import Affine, is_dequantized

    grid = grids.get(layer.data) or (Affine.of(layer.data) if is_dequantized(layer.data) else None)
    if layer.bias is None or grid is None or layer.bias.value().dim() != 1:
        return 0.0
    bias = layer.bias.value()
    if len(bias) != layer.weight.value().shape[axis]:
        return 0.0
    return bias.abs().double() / (grid.scale * 2**30)


def _on_integer_kernels(chosen: list[Layer]) -> list[Layer]:
    """The layers whose activations are rounded too.

    Of layers that share a weight, only those whose outputs have its scales: an integer kernel adds up int8
    products first and scales their sum, so a scale per input cannot be had.
    """
    outputs_scaled = {
        layer.node
        for sharing in _by_weight(chosen).values()
        for layer in sharing
        if layer.roles.outputs % layer.weight.value().dim() == _scale_axis(sharing)
    }
    return [
        layer for layer in chosen if layer.node in outputs_scaled and not layer.kind.startswith(WEIGHTS_ONLY)
    ]


def _by_weight(chosen: list[Layer]) -> dict[str, list[Layer]]:
    shared: dict[str, list[Layer]] = {}
    for layer in chosen:
        shared.setdefault(layer.weight.name, []).append(layer)
    return shared
