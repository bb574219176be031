"""What is known of a place where models run: data, so that commands, writers and docs say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress import extras

# What a file says in a way that only one runtime, or one processor, likes; the numbers stay the same.
# blocks:            a strided first convolution as one over 2×2 blocks of pixels
# pools:             average pools of 8-bit values as convolutions of each channel alone
# channels:          zero channels up to a multiple of 4 or 16
# silu:              x · sigmoid(x) of 8-bit values as ONNX Runtime's own QuickGelu
# sums:              residual sums that one layer norm reads as Sum, which is not fused with it
# amx-tiles:         weights w as w − 1 with the zero point −1, where the processor that writes has AMX
# unsigned-weights:  weights w as w + 128 with the zero point 128, where it has no VNNI and sums overflow
# matrices:          products of more than a matrix as MatMul, where ONNX Runtime wants a Gemm over rows
# biases:            products without a bias, or with one that all units share, with one that differs by 1e-30
# lstm:              LSTMs by ONNX Runtime's own operator with int8 weights, which rounds every state
# float16:           floats of an int8 file, since it computes in the types of the file
# nbits:             weights of 4 bits by groups as operands of ONNX Runtime's own operators
# nbits-floats:      the same at accuracy level 1, where rounding what they multiply takes outputs too far
Rewrite = Literal[
    "blocks",
    "pools",
    "channels",
    "silu",
    "sums",
    "matrices",
    "biases",
    "lstm",
    "amx-tiles",
    "unsigned-weights",
    "nbits",
    "nbits-floats",
    "float16",
]
SAID: dict[str, str] = {
    "blocks": "convolutions over blocks of pixels",
    "pools": "pools as convolutions",
    "channels": "values with zero channels for its kernels",
    "silu": "SiLUs as QuickGelu",
    "sums": "residual sums kept apart from layer norms",
    "matrices": "products of tokens as MatMul",
    "biases": "biases of 1e-30 where there were none, without which its kernel reads foreign memory",
    "lstm": "LSTMs whose inputs and states are rounded at every step",
    "amx-tiles": "weights moved by one for AMX tiles",
    "unsigned-weights": "weights unsigned for a processor without VNNI",
    "float16": "tensors of floats in float16",
    "nbits": "operators of ONNX Runtime for weights of 4 bits (accuracy level 4: their inputs in 8 bits)",
    "nbits-floats": "operators of ONNX Runtime for weights of 4 bits (accuracy level 1, slower: their inputs "
    "are not rounded, which took outputs too far)",
}


@dataclass(frozen=True)
class Target:
    """A runtime on a device.

    Attributes:
        name: what `--target` takes.
        title: for tables.
        device: "cpu", "mobile" or "cuda", as `bench --device` has them.
        runtime: what runs its files here: a key of `nncompress.runtimes.RUNTIMES`; "" where nothing does, so
            that its files are checked in ONNX Runtime on the CPU.
        suffixes: of its files.
        extra: of this package, that brings the runtime; "" for what every installation has.
        activations, weights: how its integer kernels want them rounded, in words, for tables; `quantize`
            goes by the booleans below.
        floats: in what it computes the layers that stay in float, by itself.
        compiler: what it makes of quantize and dequantize nodes, and where that is told.
        clock: how its latency is measured.
        float_results: its int8 convolutions give floats as fast, and compute the activation behind them
            before they round: what float ops read, and what lies between the two, stays float.
        symmetric: it refuses activations with a zero point other than 0.
        fused_sums: its convolutions add a residual branch before they round.
        products: its products of two activations (queries and keys) run in int8 where both are signed bytes
            with the zero point 0.
        joined_concats: the branches of a concatenation are written into one tensor, if they have one grid.
        rewrites: what its files may have that those of no other target have.
        notes: what its users must know.
    """

    name: str
    title: str
    device: Literal["cpu", "mobile", "cuda"]
    runtime: str
    suffixes: tuple[str, ...]
    extra: str
    activations: str
    weights: str
    floats: str
    compiler: str
    clock: str
    float_results: bool = False
    symmetric: bool = False
    fused_sums: bool = False
    joined_concats: bool = False
    products: bool = False
    rewrites: tuple[Rewrite, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def runtime_name(self) -> str:
        """For sentences: "ONNX Runtime"."""
        return self.title.partition(",")[0]

    @property
    def installed(self) -> bool:
        """Whether its runtime is there; no runtime is imported."""
        return bool(self.runtime) and (not self.extra or extras.installed(self.extra))

    def need(self) -> None:
        """Raise MissingExtraError where its runtime is an extra that is not installed."""
        if self.extra:
            extras.need(self.extra, f"--target {self.name}")
