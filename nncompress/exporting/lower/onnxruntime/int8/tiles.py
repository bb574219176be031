"""Convolutions with long dot products, laid out for the matrix tiles (AMX) of this machine's CPU.

ONNX Runtime has two int8 convolutions on x86. Weights with a zero point of 0 get a direct one, written for
VNNI. Any other zero point gets patches and a matrix product, and matrix products run on AMX where there is
one. So weights w with the zero point 0 are stored as w − 1 with the zero point −1: the same numbers.

What the detour costs, patches and 32-bit sums that go through memory, is repaid where dot products are long.
The bounds were measured with 23 shapes of ResNets and MobileNetV2, alone, on one thread.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from nncompress.devices import processor
from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, store

LONG_POINTWISE = 512  # products per output from which it pays where a pixel is its own patch
LONG = 2048  # … where patches have to be gathered
LONG_CACHED = 1024  # … and all of them take at most
PATCHES = 2**20  # bytes


def lower_tiles(graph: ir.Graph) -> int:
    """Rewrite in place what pays on this machine; nothing on one without AMX.

    It ties the file to this runtime on such machines: for a target that says so alone (`nncompress.targets`).

    Returns:
        the number of weights that were moved by one.
    """
    if "amx_int8" not in processor().flags:
        return 0
    return sum(_shift_zero(graph, node) for node in list(graph) if node.op_type == "Conv" and _pays(node))


def _pays(conv: ir.Node) -> bool:
    data, result = conv.inputs[0], conv.outputs[0]
    kernel = producer(conv.inputs[1], "DequantizeLinear")
    weight = array(kernel.inputs[0]) if kernel is not None else None
    if weight is None or producer(data, "DequantizeLinear") is None:
        return False
    if "group" in conv.attributes and conv.attributes["group"].as_int() != 1:
        return False  # has no direct kernel
    products = prod(weight.shape[1:])
    strides = conv.attributes["strides"].as_ints() if "strides" in conv.attributes else [1]
    if prod(weight.shape[2:]) == 1 and max(strides) == 1:
        return products >= LONG_POINTWISE
    pixels = [size for size in result.shape[2:] if isinstance(size, int)] if result.shape is not None else []
    small = len(pixels) == weight.ndim - 2 and products * prod(pixels) <= PATCHES
    return products >= (LONG_CACHED if small else LONG)


def _shift_zero(graph: ir.Graph, conv: ir.Node) -> bool:
    kernel = producer(conv.inputs[1], "DequantizeLinear")
    assert kernel is not None
    stored, zero = array(kernel.inputs[0]), array(kernel.inputs[2]) if len(kernel.inputs) > 2 else None
    alone = len(list(kernel.outputs[0].uses())) == 1 and len(list(kernel.inputs[0].uses())) == 1  # type: ignore[union-attr]
    if not alone or stored is None or zero is None or zero.any() or stored.dtype != np.int8:
        return False
    if stored.min(initial=0) < -127:
        return False
    name = kernel.inputs[0].name  # type: ignore[union-attr]
    inputs = [
        store(graph, f"{name}_shifted", stored - np.int8(1)),
        kernel.inputs[1],
        store(graph, f"{name}_minus_one", np.full(zero.shape, -1, np.int8)),
    ]
    shifted = ir.node("DequantizeLinear", inputs, {"axis": kernel.attributes["axis"].as_int()})
    conv.replace_input_with(1, insert(graph, conv, shifted, conv.inputs[1]))
    return True
