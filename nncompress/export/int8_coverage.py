"""Which heavy ops of an ONNX file really run on int8 kernels: asked of ONNX Runtime, not of the file.

The runtime replaces `DequantizeLinear, op, QuantizeLinear` by an int8 kernel where every part of the pattern
fits, and computes in float where one does not, without a word. The graph after its optimiser tells.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

INT8_KERNELS = {
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
    "DynamicQuantizeMatMul", "QAttention",
}  # fmt: skip
FLOAT_KERNELS = {
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Attention",
}


@dataclass(frozen=True)
class Coverage:
    """Heavy ops (convolutions and matrix products) by the arithmetic they run in.

    Attributes:
        int8: (kernel, name) of each that runs on an integer kernel.
        float: (op, name) of each that has a weight and runs in float.
        activations: float products of two activations (attention); quantizing weights does not touch them.
        conversions: Quantize- and DequantizeLinear nodes left over: what each costs is lost speed.
    """

    int8: tuple[tuple[str, str], ...]
    float: tuple[tuple[str, str], ...]
    activations: tuple[tuple[str, str], ...]
    conversions: int

    def summary(self) -> str:
        """ "21 of 22 in int8; in float: ConvTranspose node_up"."""
        total = len(self.int8) + len(self.float)
        text = f"{len(self.int8)} of {total} in int8"
        if self.float:
            text += "; in float: " + ", ".join(f"{op} {name}" for op, name in self.float[:5])
            text += ", …" if len(self.float) > 5 else ""
        return text


def int8_coverage(path: str | Path) -> Coverage:
    """Let ONNX Runtime optimise the file for this CPU and sort its heavy ops.

    Raises:
        UnsupportedError: it cannot load the file.
    """
    from nncompress.export.verify_onnx import open_session

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(Path(path), save_to=optimised)
        graph = onnx.load(optimised, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Transpose", "Cast") and node.input[0] in stored:
            stored.update(node.output)
    groups: dict[str, list[tuple[str, str]]] = {"int8": [], "float": [], "activations": []}
    conversions = 0
    for node in graph.node:
        entry = (node.op_type, node.name)
        if node.op_type in INT8_KERNELS:
            groups["int8"].append(entry)
        elif node.op_type in FLOAT_KERNELS:
            weighted = any(name in stored for name in node.input[:2])
            groups["float" if weighted else "activations"].append(entry)
        conversions += node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return Coverage(tuple(groups["int8"]), tuple(groups["float"]), tuple(groups["activations"]), conversions)
