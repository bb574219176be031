"""ONNX Runtime on the CPU.

Sources: onnxruntime's documentation of quantization; what its kernels were measured to like is in the
modules of `nncompress.exporting.lower.onnxruntime`, each with its figures.
"""

from nncompress.targets.base import Target

TARGET = Target(
    name="ort-cpu",
    title="ONNX Runtime, CPU",
    device="cpu",
    runtime="onnxruntime",
    suffixes=(".onnx", ".ort"),
    extra="",
    activations="unsigned 8 bits, one scale and zero point per tensor",
    weights="signed 8 bits, a scale per output channel, zero point 0; unsigned where the CPU has no VNNI",
    floats="float32",
    compiler="fuses dequantize, op, quantize where every part fits a kernel, else computes in float; "
    "`export` says which layers, asked of the optimised graph",
    clock="CPU time of the calling thread, interleaved",
    rewrites=(
        *("blocks", "pools", "channels", "silu", "sums", "lstm"),
        *("amx-tiles", "unsigned-weights", "nbits"),
    ),
    notes=(
        "the file depends on the processor that wrote it where that has AMX, or has no VNNI: then the report "
        "says what is in it",
    ),
)
