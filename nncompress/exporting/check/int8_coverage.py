"""Which heavy ops of an ONNX file really run on int8 kernels: asked of ONNX Runtime, not of the file.

The runtime replaces `DequantizeLinear, op, QuantizeLinear` by an int8 kernel where every part of the pattern
fits, and computes in float where one does not, without a word. The graph after its optimiser tells.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from nncompress.exporting.check.onnxruntime import open_session
from nncompress.exporting.lower.onnxruntime.int8.pools import is_pool
from nncompress.exporting.lower.onnxruntime.weights import WEIGHT_OPS

INT8_KERNELS = {
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
    "DynamicQuantizeMatMul", "QAttention", "DynamicQuantizeLSTM",
}  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN")
FLOAT_KERNELS = {
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Attention",
    *RECURRENT,
}


@dataclass(frozen=True)
class Coverage:
    """Heavy ops (convolutions, matrix products, recurrent layers) by the arithmetic they run in.

    Attributes:
        int8: (kernel, name) of each that runs on an integer kernel.
        int4: (kernel, name) of each that runs on a kernel for weights of 4 bits.
        float: (op, name) of each that has a weight and runs in float.
        activations: float products of two activations (attention); quantizing weights does not touch them.
        conversions: Quantize- and DequantizeLinear nodes left over: what each costs is lost speed.
        reasons: of names in `float`, why, where the runtime tells.
    """

    int8: tuple[tuple[str, str], ...]
    int4: tuple[tuple[str, str], ...]
    float: tuple[tuple[str, str], ...]
    activations: tuple[tuple[str, str], ...]
    conversions: int
    reasons: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """ "21 of 22 in int8; in float: up (ONNX Runtime has no int8 ConvTranspose)"."""
        total = len(self.int8) + len(self.int4) + len(self.float)
        kinds = ((self.int8, "in int8"), (self.int4, "with weights of 4 bits"))
        named = [f"{len(found)} of {total} {kind}" for found, kind in kinds if found]
        text = ", ".join(named) or f"0 of {total} in int8"
        if self.float:
            text += "; in float: " + ", ".join(self._said(name) for _, name in self.float[:5])
            text += ", …" if len(self.float) > 5 else ""
        return text

    def _said(self, name: str) -> str:
        return f"{name} ({self.reasons[name]})" if name in self.reasons else name


def int8_coverage(path: str | Path) -> Coverage:
    """Let ONNX Runtime optimise the file for this CPU and sort its heavy ops.

    Raises:
        UnsupportedError: it cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(Path(path), save_to=optimised)
        graph = onnx.load(optimised, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    products = ("MatMul", "Gemm")  # of two weights: a weight that is computed
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Transpose", "Cast") and node.input[0] in stored:
            stored.update(node.output)
        if node.op_type in products and stored.issuperset(filter(None, node.input)):
            stored.update(node.output)
    groups: dict[str, list[tuple[str, str]]] = {"int8": [], "int4": [], "float": [], "activations": []}
    conversions = 0
    for node in graph.node:
        entry = (node.op_type, layer_of(node.name))
        if is_pool(entry[1]) or stored.issuperset(node.output):
            continue
        if node.op_type in INT8_KERNELS:
            groups["int8"].append(entry)
        elif node.op_type == "MatMulNBits":
            groups["int4"].append(entry)
        elif node.op_type in FLOAT_KERNELS:
            weighted = any(name in stored for name in node.input[:2])
            groups["float" if weighted else "activations"].append(entry)
        conversions += node.op_type in ("QuantizeLinear", "DequantizeLinear")
    reasons = _reasons(onnx.load(path, load_external_data=False).graph, groups["float"])
    int8, int4, floats, activations = (tuple(found) for found in groups.values())
    return Coverage(int8, int4, floats, activations, conversions, reasons)


def layer_of(node: str) -> str:
    """The layer's name in that of a node of the optimised graph: "fused 0/MatMulAddFusion" -> "0"."""
    return re.sub(
        r"^fused |^node_(?=LSTM|GRU|RNN|lstm|gru|rnn)|/MatMulAddFusion.*$|_nchwc$|_token_\d+$", "", node
    ).strip()


def _reasons(graph: onnx.GraphProto, left: list[tuple[str, str]]) -> dict[str, str]:
    """Why each of these layers runs in float, told by the file as it was written."""
    made_by = {name: node for node in graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    written = {node.name: node for node in graph.node}

    def from_int8(name: str) -> bool:
        while name in made_by and made_by[name].op_type in (*WEIGHT_OPS, "Concat", "Unsqueeze"):
            name = made_by[name].input[0]
        return types.get(name) in (onnx.TensorProto.INT8, onnx.TensorProto.INT4)

    def made(name: str) -> str:
        return made_by[name].op_type if name in made_by else ""

    reasons = {}
    for op, name in left:
        node = written.get(name)
        if op in RECURRENT and node is not None and from_int8(node.input[1]):
            here = op == "LSTM" and made(node.input[0]) == "DequantizeLinear"
            kernel = "--target ort-cpu has an int8 kernel" if here else "float arithmetic"
            reasons[name] = f"its weights are int8; {kernel}"
        elif op in RECURRENT:
            reasons[name] = "left in float"
        elif node is None or len(node.input) < 2:
            reasons[name] = "the runtime's optimiser took it apart"
        elif not from_int8(node.input[1]):
            reasons[name] = "left in float"
        elif op == "ConvTranspose":
            reasons[name] = "ONNX Runtime has no int8 ConvTranspose for CPUs"
        elif made(node.input[0]) != "DequantizeLinear":
            reasons[name] = "only its weights are int8, or 4 bits"
        else:
            reasons[name] = "no int8 kernel fits how its result is read"
    return reasons
