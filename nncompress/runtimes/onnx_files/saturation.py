"""Which layers of an int8 `.onnx` x86 processors without VNNI compute wrongly.

There, ONNX Runtime multiplies unsigned activations with signed weights by VPMADDUBSW, which adds two
products in 16 bits and cuts off what is beyond: 255 · 127 + 255 · 127 becomes 32,767. Unsigned weights, and
signed ones of at most 7 bits, are computed rightly.

Source: onnxruntime's documentation of quantization, "Data type selection" and "When to try U8U8".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TOP = 2**15 - 1  # of a sum of two products
LARGEST_ACTIVATION = 255

_INTEGER_PRODUCTS = {  # op -> the inputs that are its weights
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "QGemm": (3,),
    "MatMulInteger": (1,),
    "ConvInteger": (1,),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (1,),
    "DynamicQuantizeLSTM": (1, 2),
}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}  # between DequantizeLinear and QuantizeLinear


def overflows(weight: np.ndarray) -> bool:
    """Can two products of `weight` (int8, of any shape) and unsigned bytes add up to more than 16 bits hold?

    Which two meet depends on the kernel, so any two may.
    """
    values = np.sort(weight.astype(np.int64), axis=None)
    if values.size < 2:
        return False
    low, high = LARGEST_ACTIVATION * values[:2].sum(), LARGEST_ACTIVATION * values[-2:].sum()
    return bool(low < -TOP - 1 or high > TOP)


def saturating_weights(path: Path) -> tuple[str, ...]:
    """The signed weights of an `.onnx` whose products with unsigned activations could overflow, in order."""
    if not _has_integers(path):  # mostly: then the file need not be parsed, nor the parser imported
        return ()
    import onnx
    from onnx import TensorProto, numpy_helper

    graph = onnx.load(path).graph
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1}
    return tuple(
        dict.fromkeys(
            name
            for name in _multiplied(graph)
            if name in stored and overflows(numpy_helper.to_array(stored[name]))
        )
    )


def _has_integers(path: Path) -> bool:
    """Whether the file names an operator of 8-bit numbers."""
    names = [name.encode() for name in ("DequantizeLinear", *_INTEGER_PRODUCTS)]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in names)


def _multiplied(graph: object) -> Iterator[str]:
    """Names of what integer kernels multiply with."""
    made_by = {name: node for node in graph.node for name in node.output}  # type: ignore[attr-defined]

    def behind(name: str, *ops: str) -> str | None:
        """The first input of the node of one of these ops that makes `name`."""
        node = made_by.get(name)
        return node.input[0] if node is not None and node.op_type in ops else None

    for node in graph.node:  # type: ignore[attr-defined]
        weights: list[str | None] = []
        if node.op_type in _INTEGER_PRODUCTS:
            weights = [node.input[position] for position in _INTEGER_PRODUCTS[node.op_type]]
        elif node.op_type in _PRODUCTS and behind(node.input[0], "DequantizeLinear") is not None:
            weights = [behind(node.input[1], "DequantizeLinear")]
        for weight in filter(None, weights):
            yield behind(weight, "Transpose") or weight
