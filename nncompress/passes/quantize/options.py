"""`quantize`: int8, so that layers run on integer kernels; or fewer bits for smaller files.

Weights become int8 with a scale per output channel, activations uint8 with a range found on calibration data
(Jacob et al. 2018; Nagel et al. 2021, "A white paper on neural network quantization"). One quantized graph
means the same in every runtime: torch computes its rounding in floats, an exported ONNX file runs its layers
on int8 kernels (`nncompress.exporting.check.int8_coverage` says which).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.options import flag_of
from nncompress.passes.base import NEAR, Pass, option, step

SAMPLE = 64  # samples whose moments are kept


def check_divides(size: int, layer: str, width: int) -> None:
    """Refuse groups of inputs that do not fill a layer's rows.

    Raises:
        UsageError
    """
    if width % size:
        fits = [each for each in (128, 64, 32, 16) if width % each == 0]
        other = f"--group-size {fits[0]}, or " if fits else ""
        raise UsageError(
            f"quantize: --group-size {size} does not divide the inputs of {layer}",
            got=f"{width} inputs",
            remedy=f"{other}--keep {layer} leaves it in float",
        )


@dataclass(frozen=True)
class Quantize(Pass):
    """Round weights, and with them the activations of convolutions and linear layers, to 8 bits.

    --mode static rounds activations on ranges set once, on --data; dynamic on the range of each batch, in
    matrix products alone; weights leaves the arithmetic in float; float16 is for GPUs.
    """

    name = "quantize"
    summary = "weights of 2 to 8 bits, int8 activations, calibrated on data"
    example = "nncompress quantize model.pt2 --data calibration.npz"
    stored_weights = False
    recurrent = True
    protects = "keep"
    afterwards = f"--max-drift {NEAR:g} finds the fewest to leave so that the outputs stay that near."
    tensorwise = ("mode", "weight_bits", "group_size", "asymmetric", "keep")

    mode: Literal["static", "dynamic", "weights", "float16"] = option(
        "static", help="what is rounded, and how"
    )
    calibration: Literal["mse", "min-max", "percentile", "entropy"] = option(
        "mse", metavar="HOW", help="how the range of an activation is chosen from what was seen"
    )
    percentile: float = option(
        99.99, above=50, most=100, help="with --calibration percentile: the share kept at each end"
    )
    symmetric_activations: bool = option(
        False, help="zero in the middle of every range, as TensorRT takes it; --target tensorrt means it"
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
    max_drift: float | None = option(
        None,
        above=0,
        below=1,
        metavar="SHARE",
        help="how far the outputs may move: the worst layers stay in float "
        f"[default: {NEAR:.0%} with --mode weights or dynamic at 8 bits]",
    )
    metric: str = option(
        "top1", metavar="NAME", help="what --max-drop is measured by, as in eval; points of a share"
    )
    keep: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave in float, e.g. 'head*' (repeatable)"
    )
    every_layer: bool = option(
        False, help="with --target: also those that take longer in int8 there, which else stay in float"
    )
    include_head: bool = option(
        False, help="also round the detection head, where the model is known to have one"
    )
    rounding: Literal["auto", "nearest", "adaptive"] = option(
        "auto", help="adaptive: up or down, so that the layer's output errs least; auto: so below 8 bits"
    )
    no_samples: bool = option(
        False, help="keep no samples of --data in the .pt2; exports are then compared on random inputs"
    )
    equalize: bool = option(False, help="make the channels of neighbouring layers alike in range first")
    smooth: bool = option(
        True, help="with data, scale channels before matrix products where rounding then errs less"
    )
    rotate: bool = option(
        False,
        help="also see a transformer's residual stream in other axes, if it then errs less on --data",
    )
    correct_bias: bool = option(False, help="take back how far rounding moved the mean of each channel")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None:
            self._check_groups()
        elif self.asymmetric:
            raise UsageError(
                "quantize: --asymmetric is for --group-size", remedy="add --weight-bits 4 --group-size 32"
            )
        given = [name for name in self.settings() if name != "mode"]
        if self.mode == "float16" and given:
            raise UsageError(
                f"quantize: --mode float16 goes without {flag_of(given[0])}, which is about int8"
            )
        if self.mode != "static" and "calibration" in given:
            raise UsageError(
                "quantize: --calibration sets the ranges of --mode static", got=f"--mode {self.mode}"
            )
        if self.mode != "static" and self.symmetric_activations:
            raise UsageError(
                "quantize: --symmetric-activations is about the ranges of --mode static",
                got=f"--mode {self.mode}",
            )
        if self.mode != "static" and self.every_layer:
            raise UsageError(
                "quantize: --every-layer is about the layers that --mode static would leave in float",
                got=f"--mode {self.mode}",
            )
        if self.calibration != "percentile" and "percentile" in given:
            raise UsageError(
                "quantize: --percentile is for --calibration percentile",
                got=f"--calibration {self.calibration}",
            )
        self.refuse_several(("max_drop", "max_drift"), "which layers stay in float")
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
        fitting = {"mode", "weight_bits", "group_size", "asymmetric", "keep", "include_head"}
        fitting |= {"rounding", "no_samples", "rotate"}
        other = next((name for name in self.settings() if name not in fitting), None)
        if other is not None:
            raise UsageError(f"quantize: --group-size goes without {flag_of(other)}")
        object.__setattr__(self, "mode", "weights")  # no integer kernel has a scale per group

    @property
    def drift_bound(self) -> float | None:
        """How far the outputs may move; None where something else was asked for."""
        asked = self.size is not None or self.max_drop is not None or self.weight_bits != 8
        bounded = self.mode in ("weights", "dynamic") and not asked
        return NEAR if self.max_drift is None and bounded else self.max_drift

    def treats(self, kind: str) -> bool:
        return self.group_size is None or kind != "convolution"

    def needs_network(self) -> str:
        if self.mode == "weights":
            return ""
        return f"--mode {self.mode} is about activations; add --mode weights (or --group-size 64)"

    def check_shape(self, layer: str, shape: tuple[int, ...]) -> None:
        if self.group_size is not None and len(shape) == 2:
            check_divides(self.group_size, layer, shape[1])

    requires = step("nncompress.passes.quantize.apply:requires")
    apply = step("nncompress.passes.quantize.apply:apply")
    contributions = step("nncompress.passes.quantize.apply:contributions")
    ensures = step("nncompress.passes.quantize.apply:ensures")
